"""Whitened coarse maps, and where the cells of a box lie on them.

Boxes are (N, 4) float tensors ``x0, y0, x1, y1`` in pixels of the view the map was made from.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

from worker.models.overlap import nms

STRIDE = 8
GRID = 7  # cells a box is cut into, along each side
# SAME padding at stride 2 puts the centres of stage 2's cells 3.5 px right of and below i*8 + 4.
CENTRE = 4 + 3.5
_SHRINKAGE = 0.5
_CONTAINED = 0.75


@dataclass(frozen=True)
class Whitening:
    """Mean and inverse square root of the covariance of a picture's features."""

    mean: Tensor
    root: Tensor

    @classmethod
    def fit(cls, maps: Sequence[Tensor]) -> "Whitening":
        """Statistics over views, which count the same whatever their sizes.

        What is frequent in a picture, its background, ends up near zero and so weighs little in a
        cosine. The covariance is shrunk towards a multiple of the identity (Ledoit and Wolf, 2004,
        with a fixed share).

        Args:
            maps: (1, C, H, W) of each view.
        """
        cells = [one.flatten(2)[0].T for one in maps]
        mean = torch.stack([x.mean(0) for x in cells]).mean(0)
        cov = torch.stack([(x - mean).T @ (x - mean) / len(x) for x in cells]).mean(0)
        ridge = _SHRINKAGE * cov.diagonal().mean() + 1e-6
        cov = cov + ridge * torch.eye(len(cov), device=cov.device)
        # Any square root gives the same scalar products. Small, and not on every device: CPU.
        lower = torch.linalg.cholesky(cov.cpu().double())
        root = torch.linalg.solve_triangular(
            lower, torch.eye(len(cov), dtype=lower.dtype), upper=False
        )
        return cls(mean, root.float().to(cov.device))

    def apply(self, x: Tensor) -> Tensor:
        """Whiten (..., C) features."""
        return F.normalize((x - self.mean) @ self.root.T, dim=-1)


class FeatureMap:
    """Unit features of one view at stride 8, with what interpolating between them needs.

    Attributes:
        cells: (H * W, C) features of norm 1, or 0 where a view has no contrast at all.
        height, width: in cells.
    """

    def __init__(self, coarse: Tensor, whitening: Whitening) -> None:
        """Whiten a (1, C, H, W) map."""
        self.height, self.width = coarse.shape[2:]
        self.cells = whitening.apply(coarse[0].flatten(1).T)
        unit = self.cells.T.reshape(-1, self.height, self.width)
        # Scalar products with the neighbours right, below and diagonal (both ways): the norm of an
        # interpolated feature follows from them, without interpolating features.
        padded = F.pad(unit[None], (0, 1, 0, 1), mode="replicate")[0]
        here, right = padded[:, :-1, :-1], padded[:, :-1, 1:]
        below, across = padded[:, 1:, :-1], padded[:, 1:, 1:]
        pairs = ((here, here), (here, right), (here, below), (here, across), (right, below))
        self.products = torch.stack([(a * b).sum(0).flatten() for a, b in pairs])

    def centres(self) -> Tensor:
        """Of all cells, row by row: (H * W, 2) x, y in pixels of the view."""
        y = torch.arange(self.height, device=self.cells.device)
        x = torch.arange(self.width, device=self.cells.device)
        at = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)
        return at * STRIDE + CENTRE

    def sweep(self, maps: Tensor, box: Tensor, weights: Tensor) -> Tensor:
        """Weighted sums over a grid in a box that moves along with every cell.

        Columns first, then rows: interpolating between cells is separable.

        Args:
            maps: (n * n, H * W), or (1, H * W) if all points read the same.
            box: (4,) relative to a cell's centre, in pixels; see `grid`.
            weights: (n * n,), row by row.

        Returns:
            (H * W,); beyond the edges, the nearest cell counts.
        """
        side = math.isqrt(len(weights))
        x0, y0, x1, y1 = (box / STRIDE).tolist()
        steps = [(n + 0.5) / side for n in range(side)]
        xs, ys = [x0 + (x1 - x0) * at for at in steps], [y0 + (y1 - y0) * at for at in steps]
        reach_x, reach_y = (int(max(map(abs, at))) + 1 for at in (xs, ys))
        padded = F.pad(
            maps.view(1, -1, self.height, self.width),
            (reach_x, reach_x, reach_y, reach_y),
            mode="replicate",
        )[0]
        rows = maps.new_zeros(side, padded.shape[1], self.width)
        for n, x in enumerate(xs):
            column = padded[n::side] if len(maps) > 1 else padded
            share = weights[n::side, None, None]
            at, part = _split(x + reach_x)
            rows.addcmul_(column[..., at : at + self.width], share * (1 - part))
            rows.addcmul_(column[..., at + 1 : at + 1 + self.width], share * part)
        total = maps.new_zeros(self.height, self.width)
        for row, y in zip(rows, ys, strict=True):
            at, part = _split(y + reach_y)
            total.add_(row[at : at + self.height], alpha=1 - part)
            total.add_(row[at + 1 : at + 1 + self.height], alpha=part)
        return total.flatten()

    def mean_norms(self, points: Tensor) -> Tensor:
        """Norms of features interpolated at (..., 2) offsets from cell centres, on average."""
        spot = points / STRIDE
        return _norm(list(self.products.mean(1)), _shares(spot - spot.floor()))


def _split(value: float) -> tuple[int, float]:
    whole = math.floor(value)
    return whole, value - whole


def _shares(fraction: Tensor) -> Tensor:
    """Bilinear weights of the four cells round (..., 2) positions between them: (..., 4)."""
    u, v = fraction.unbind(-1)
    return torch.stack([(1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v], -1)


def _norm(products: Sequence[Tensor], weights: Tensor) -> Tensor:
    a, b, c, d = weights.unbind(-1)
    same, right, below, across, anti = products
    square = (
        same * (a * a + b * b + c * c + d * d)
        + 2 * right * (a * b + c * d)
        + 2 * below * (a * c + b * d)
        + 2 * across * a * d
        + 2 * anti * b * c
    )
    norm: Tensor = square.clamp(min=1e-6).sqrt()
    return norm


def grid(boxes: Tensor, cells: int = GRID, grow: float = 1.0) -> Tensor:
    """Centres of a `cells` x `cells` grid over each box grown `grow` times about its centre.

    Returns:
        (N, cells * cells, 2) x, y, row by row.
    """
    steps = (torch.arange(cells, device=boxes.device) + 0.5) / cells - 0.5
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).reshape(1, -1, 2)
    centres = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    return centres + offsets * (boxes[:, None, 2:] - boxes[:, None, :2]) * grow


def suppress(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Non-maximum suppression, by IoU and by containment.

    A box goes if it overlaps a better one by more than `iou`, or if more than ``_CONTAINED`` of the
    smaller of the two lies in the larger (of `iou`, where that is more).

    Args:
        boxes: (N, 4).
        scores: (N,).
        iou: 0..1; 1 keeps all.

    Returns:
        Places of the boxes that stay, best score first.
    """
    order = nms(boxes, scores, iou)
    boxes = boxes[order]
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    inside = (high - low).clamp(min=0).prod(-1) / torch.minimum(areas[:, None], areas[None])
    clashes = inside > max(iou, _CONTAINED)
    stays = torch.ones(len(boxes), dtype=torch.bool)
    for n in range(len(boxes)):
        stays[n] = not (clashes[n, :n] & stays[:n]).any()
    return order[stays]
