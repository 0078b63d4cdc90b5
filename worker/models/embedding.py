"""Portable prompts: what `exemplar` remembers of its examples, as text that a client keeps.

The text is base64 of a header and, for each example, its size and two grids of 8-bit features. It
fits the head that made it and no other; it can be shown to any later image.

    bytes         content
    3             ``MFX``
    8             the head's identity: the first bytes of its file's SHA-256
    1             number of examples, 1 to 32
    each example:
      3 x float32 width and height in pixels of its image; root of its share of the image's area
      float32     one step of the coarse features;  81 x 48 int8, row by row
      float32     one step of the fine features;   196 x 16 int8, row by row
"""

import struct
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.models import portable
from worker.models.head import COARSE, COARSE_CHANNELS, FINE, FINE_CHANNELS, Thing

_MAGIC = b"MFX"
_GRIDS = ((COARSE * COARSE, COARSE_CHANNELS), (FINE * FINE, FINE_CHANNELS))
_SIZE = struct.Struct("<3f")
_STEP = struct.Struct("<f")
_EXAMPLE = _SIZE.size + sum(_STEP.size + cells * channels for cells, channels in _GRIDS)


@dataclass(frozen=True)
class Remembered:
    """One example apart from its image.

    Attributes:
        thing: what was read inside and round its box (N = 1).
        width, height: of the box, in pixels of its image.
        share: root of the box's share of the image's area.
    """

    thing: Thing
    width: float
    height: float
    share: float


def pack(examples: list[Remembered], head_id: bytes) -> str:
    """Write examples as an embedding of the head with that identity (8 bytes)."""
    records = []
    for one in examples:
        parts = [_SIZE.pack(one.width, one.height, one.share)]
        for grid in (one.thing.coarse, one.thing.fine):
            step = max(1e-6, float(grid.abs().max()) / 127)
            parts += [
                _STEP.pack(step),
                (grid / step).round().to(torch.int8).cpu().numpy().tobytes(),
            ]
        records.append(b"".join(parts))
    return portable.write(_MAGIC, head_id, records)


def unpack(text: str, head_id: bytes) -> list[Remembered]:
    """Read an embedding.

    Raises:
        Problem: 422 ``embedding_invalid`` if it is none, or one of another head.
    """
    return [_example(data) for data in portable.read(text, _MAGIC, head_id, _EXAMPLE)]


def _example(data: bytes) -> Remembered:
    width, height, share = _SIZE.unpack_from(data)
    grids: list[Tensor] = []
    at = _SIZE.size
    for cells, channels in _GRIDS:
        (step,) = _STEP.unpack_from(data, at)
        flat = np.frombuffer(data, np.int8, cells * channels, at + _STEP.size)
        grids.append(torch.from_numpy(flat.astype(np.float32)).view(1, cells, channels) * step)
        at += _STEP.size + cells * channels
    sane = (1 <= width <= 1e5, 1 <= height <= 1e5, 0 < share <= 1)
    if not all(sane) or not all(grid.isfinite().all() for grid in grids):
        raise portable.invalid("holds numbers that no example has")
    return Remembered(Thing(*grids), width, height, share)
