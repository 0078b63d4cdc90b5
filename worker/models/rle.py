"""COCO's compressed run-length encoding of a mask, as `Mask.counts` carries it."""

import numpy as np
from numpy.typing import NDArray


def encode(
    window: NDArray[np.bool_], *, top: int = 0, left: int = 0, size: tuple[int, int] | None = None
) -> str:
    """Encode a mask that is false outside a window.

    Args:
        window: bool (height, width), the part of the mask that may be true.
        top: row of the whole mask where the window begins.
        left: column where it begins.
        size: height and width of the whole mask; the window itself if None.

    Returns:
        What pycocotools gives for the whole mask: run lengths in column-major order, false first,
        from the third on as differences to the one before the last, five bits a character.
    """
    height, width = size or window.shape
    return _text(_runs(window, top, left, height, width))


def _runs(
    window: NDArray[np.bool_], top: int, left: int, height: int, width: int
) -> NDArray[np.int64]:
    """Lengths of the runs of the whole mask, starting with a (perhaps empty) run of false."""
    columns = np.zeros((window.shape[1], window.shape[0] + 2), dtype=bool)
    columns[:, 1:-1] = window.T
    column, row = np.nonzero(columns[:, 1:] != columns[:, :-1])
    turns = (left + column) * height + top + row
    # A run that ends with its column where another begins with the next is one run.
    joined = np.flatnonzero(turns[1:] == turns[:-1])
    turns = np.delete(turns, np.concatenate([joined, joined + 1]))
    runs = np.diff(turns, prepend=0, append=height * width)
    return runs if runs[-1] or len(runs) == 1 else runs[:-1]


def _text(runs: NDArray[np.int64]) -> str:
    rest = runs.copy()
    rest[3:] -= runs[1:-2]
    digits = []
    pending = np.ones(len(rest), dtype=bool)
    while pending.any():
        digit = rest & 0x1F
        rest >>= 5
        more = rest != np.where(digit & 0x10, -1, 0)  # the sign is the last digit's high bit
        digits.append(np.where(pending, digit + 0x20 * more + 48, 0))
        pending &= more
    characters = np.stack(digits, axis=1).ravel()
    return characters[characters > 0].astype(np.uint8).tobytes().decode("ascii")
