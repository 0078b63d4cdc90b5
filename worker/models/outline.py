"""From a box to an approximate mask: what in it has other colours than what is round it.

GrabCut (Rother, Kolmogorov and Blake, 2004) as OpenCV has it. It knows nothing of things: it parts
colours. Good where a thing stands out from its surroundings, poor where it shares their colours.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from jobs.contract import Box, Mask
from worker.models import rle
from worker.models.base import Pixels

_GROWN = 0.3  # of the box's sides, of surroundings to each side
_LONGEST = 144  # pixels of the piece that is cut, which bounds the time
_ROUNDS = 3
_LEAST, _MOST = 0.1, 0.98  # share of the box; outside of it colours told nothing


def outline(image: Pixels, box: Box) -> Mask:
    """The mask of the thing in a box of a (H, W, 3) image; the whole box where colours do not tell.

    The same image and box give the same mask.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = _whole(box, width, height)
    across, down = round((x1 - x0) * _GROWN) + 2, round((y1 - y0) * _GROWN) + 2
    left, top = max(0, x0 - across), max(0, y0 - down)
    piece = image[top : min(height, y1 + down), left : min(width, x1 + across)]
    inside = np.zeros(piece.shape[:2], np.uint8)
    inside[y0 - top : y1 - top, x0 - left : x1 - left] = 1
    thing = _part(piece, inside)
    share = thing.sum() / inside.sum()
    if not _LEAST <= share <= _MOST:
        thing = inside.astype(bool)
    return Mask((height, width), rle.encode(thing, top=top, left=left, size=(height, width)))


def _part(piece: Pixels, inside: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Foreground of a piece, within where `inside` is 1."""
    size = (piece.shape[1], piece.shape[0])
    scale = min(1.0, _LONGEST / max(size))
    small = (max(8, round(size[0] * scale)), max(8, round(size[1] * scale)))
    pixels = cv2.resize(piece, small, interpolation=cv2.INTER_AREA)
    probable = cv2.resize(inside, small, interpolation=cv2.INTER_NEAREST)
    labels = np.where(probable, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    if not (probable == 0).any() or not probable.any():  # nothing to part it from
        return inside.astype(bool)
    cv2.setRNGSeed(0)
    models = np.zeros((2, 1, 65))
    try:
        cv2.grabCut(
            pixels, labels, (0, 0, 0, 0), models[0], models[1], _ROUNDS, cv2.GC_INIT_WITH_MASK
        )
    except cv2.error:  # too few colours for its models
        return inside.astype(bool)
    found = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.float32)
    large = cv2.resize(found, size, interpolation=cv2.INTER_LINEAR) > 0.5
    thing: NDArray[np.bool_] = large & inside.astype(bool)
    return thing


def _whole(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    x0, y0 = min(max(0, round(box[0])), width - 1), min(max(0, round(box[1])), height - 1)
    return x0, y0, max(x0 + 1, min(width, round(box[2]))), max(y0 + 1, min(height, round(box[3])))
