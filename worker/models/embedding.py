"""Portable prompts: what `exemplar` remembers of its examples, as text that a client keeps.

The text is base64 of a header and of records: for each example, its size and two grids of 4-bit
features, as it stood and, unless that was not wished, after each quarter turn. It fits the head
that made it and no other; it can be shown to any later image.

    bytes         content
    3             ``MFX``
    8             the head's identity: the first bytes of its file's SHA-256
    1             number of records, 1 to 32
    each record:
      1           quarter turns: 0 for an example as it stood; 1, 2, 3 follow it or do not
      3 x float32 width and height in pixels of its image, as it stood; root of its share of the
                  image's area
      float32     one step of the coarse features;  81 x 48 numbers, row by row
      float32     one step of the fine features;   196 x 16 numbers, row by row

A number is of steps, -7 to 7, and stored as 8 more; two share a byte, the first in its lower half.
"""

import math
import struct
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from worker.models import portable
from worker.models.head import COARSE, COARSE_CHANNELS, FINE, FINE_CHANNELS, Thing

_MAGIC = b"MFX"
_GRIDS = ((COARSE * COARSE, COARSE_CHANNELS), (FINE * FINE, FINE_CHANNELS))
_SIZE = struct.Struct("<B3f")
_STEP = struct.Struct("<f")
_STEPS, _ZERO = 7, 8  # the largest number; what is added to numbers before they are stored
_POSES = 4
_INSANE = "holds numbers that no example has"
_RECORD = _SIZE.size + sum(_STEP.size + cells * channels // 2 for cells, channels in _GRIDS)


@dataclass(frozen=True)
class Remembered:
    """One example apart from its image.

    Attributes:
        poses: what was read inside and round its box (N = 1), as it stood, and after 1, 2 and 3
            quarter turns or not.
        width, height: of the box, in pixels of its image.
        share: root of the box's share of the image's area.
    """

    poses: tuple[Thing, ...]
    width: float
    height: float
    share: float


def pack(examples: list[Remembered], head_id: bytes) -> str:
    """Write examples as an embedding of the head with that identity (8 bytes)."""
    records = []
    for one in examples:
        for turns, thing in enumerate(one.poses):
            parts = [_SIZE.pack(turns, one.width, one.height, one.share)]
            for grid in (thing.coarse, thing.fine):
                step = max(1e-6, float(grid.abs().max()) / _STEPS)
                pairs = ((grid / step).round() + _ZERO).to(torch.uint8).reshape(-1, 2).cpu().numpy()
                parts += [_STEP.pack(step), (pairs[:, 0] | pairs[:, 1] << 4).tobytes()]
            records.append(b"".join(parts))
    return portable.write(_MAGIC, head_id, records)


def unpack(text: str, head_id: bytes) -> list[Remembered]:
    """Read an embedding.

    Raises:
        Problem: 422 ``embedding_invalid`` if it is none, or one of another head.
    """
    examples: list[Remembered] = []
    for data in portable.read(text, _MAGIC, head_id, _RECORD):
        turns, width, height, share = _SIZE.unpack_from(data)
        if not (1 <= width <= 1e5 and 1 <= height <= 1e5 and 0 < share <= 1):
            raise portable.invalid(_INSANE)
        thing = _thing(data, math.log(width / height) * (-1) ** turns)
        if turns == 0:
            examples.append(Remembered((thing,), width, height, share))
        elif examples and turns == len(examples[-1].poses) < _POSES:
            whole = examples.pop()
            examples.append(replace(whole, poses=(*whole.poses, thing)))
        else:
            raise portable.invalid(_INSANE)
    return examples


def _thing(data: bytes, aspect: float) -> Thing:
    grids: list[Tensor] = []
    at = _SIZE.size
    for cells, channels in _GRIDS:
        (step,) = _STEP.unpack_from(data, at)
        size = cells * channels // 2
        pairs = np.frombuffer(data, np.uint8, size, at + _STEP.size)
        flat = np.stack([pairs & 15, pairs >> 4], 1).astype(np.float32) - _ZERO
        grids.append(torch.from_numpy(flat).view(1, cells, channels) * step)
        at += _STEP.size + size
    if not all(grid.isfinite().all() for grid in grids):
        raise portable.invalid(_INSANE)
    coarse, fine = grids
    return Thing(coarse, fine, torch.tensor([aspect]))
