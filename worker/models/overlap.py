"""How boxes overlap: torchvision's compiled suppression, without the rest of torchvision.

Whoever imports torchvision, any part of it, imports torch's compiler with it: two seconds and
150 MB, and a worker of `exemplar` needs one function. Boxes are x0, y0, x1, y1.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor


def _load() -> None:
    """Register torchvision's operators with torch, as torchvision does, before or after."""
    spec = find_spec("torchvision")
    if spec and spec.origin:
        for library in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    if not hasattr(torch.ops.torchvision, "nms"):  # its files have other names here
        import torchvision.ops  # noqa: F401


_load()


def nms(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Places of the boxes that overlap no better one by more than `iou`, best score first."""
    kept: Tensor = torch.ops.torchvision.nms(boxes, scores, iou)
    return kept


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU (N, M) of each of (N, 4) with each of (M, 4)."""
    low = torch.maximum(boxes[:, None, :2], others[:, :2])
    high = torch.minimum(boxes[:, None, 2:], others[:, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas, other_areas = ((each[:, 2:] - each[:, :2]).prod(-1) for each in (boxes, others))
    return shared / (areas[:, None] + other_areas - shared)
