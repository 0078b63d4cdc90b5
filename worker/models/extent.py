"""From a point to a box: how far the thing under it seems to reach.

What is inside the box should be like the spot under the point, and unlike the picture's background,
which whitening brings near zero; the ring just outside should be neither.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

from jobs.contract import Box
from worker.models.lockstep import Steps
from worker.models.regions import CENTRE, STRIDE, Whitening
from worker.models.views import View, render

_WINDOW = 256  # pixels of the view round the point, at each scale
_FIRST, _RATIO = 2.0, 2.0  # view pixels per image pixel at the finest scale, and between scales
_SIDES = (26.0, 34.0, 45.0, 60.0, 80.0, 105.0)  # of boxes, in pixels of the view
_ASPECTS = (0.5, 0.7, 1.0, 1.4, 2.0)
_OFFSETS = (-0.3, -0.15, 0.0, 0.15, 0.3)  # of the box's middle from the point, in shares of a side
_MARGIN = 0.3  # of the ring that is held against the inside, in shares of a side
_FINER = 2  # times finer than the cells, for the sums
_STANDS_OUT = 0.7  # weight of being unlike the picture's background, against being like the spot
_RING = 2.0  # weight of the surroundings
_LARGE = 0.03  # what a scale coarser costs: the smallest of several fits is meant


def around(point: tuple[float, float], image: Tensor) -> Steps[Box]:
    """The box whose inside is most like the spot under the point, and whose surroundings least.

    Args:
        point: x, y in pixels of the image.
        image: (3, H, W) uint8.

    Returns:
        A box that holds the point; it may reach a little outside the image.
    """
    height, width = image.shape[1:]
    x, y = (min(max(at, 0.0), side - 1.0) for at, side in zip(point, (width, height), strict=True))
    views: list[View] = []
    scale, window = _FIRST, (0, 0, 0, 0)
    while window != (0, 0, width, height):
        half = _WINDOW / scale / 2
        window = (
            max(0, math.floor(x - half)),
            max(0, math.floor(y - half)),
            min(width, math.ceil(x + half)),
            min(height, math.ceil(y + half)),
        )
        views.append(render(image, window, scale))
        scale /= _RATIO
    maps = [each.coarse for each in (yield views)]
    whitening = Whitening.fit(maps)
    at = torch.tensor([[x, y, x, y]], dtype=torch.float32, device=image.device)
    fits = [
        _fit(coarse, view.inward(at)[0, :2], whitening)
        for view, coarse in zip(views, maps, strict=True)
    ]
    best = max(range(len(fits)), key=lambda n: fits[n][0] - _LARGE * n)
    x0, y0, x1, y1 = views[best].outward(fits[best][1][None])[0].tolist()
    return x0, y0, x1, y1


def _fit(coarse: Tensor, point: Tensor, whitening: Whitening) -> tuple[float, Tensor]:
    """The best box round a point of a view, both in its pixels, and how well it fits."""
    raw = (coarse[0].flatten(1).T - whitening.mean) @ whitening.root.T
    height, width = coarse.shape[2:]
    strength = raw.norm(dim=1)
    unlike = (
        (strength / strength.median().clamp(min=1e-6) - 1).clamp(-1, 2).view(1, 1, height, width)
    )
    unit = F.normalize(raw, dim=1).T.reshape(1, -1, height, width)
    spot = (point - CENTRE) / STRIDE
    span = torch.tensor([width - 1, height - 1], device=spot.device).clamp(min=1)
    seed = F.grid_sample(unit, (2 * spot / span - 1).view(1, 1, 1, 2), align_corners=True)
    like = (unit * F.normalize(seed, dim=1)).sum(1, keepdim=True) + _STANDS_OUT * unlike
    like = F.interpolate(like, scale_factor=_FINER, mode="bilinear")[0, 0]
    sums = F.pad(like.cumsum(0).cumsum(1), (1, 0, 1, 0))
    boxes = _boxes(point)
    margin = (boxes[:, 2:] - boxes[:, :2]) * _MARGIN
    grown = torch.cat([boxes[:, :2] - margin, boxes[:, 2:] + margin], 1)
    inside, area = _sum(sums, boxes)
    outside, all_ = _sum(sums, grown)
    ring = (outside - inside) / (all_ - area).clamp(min=1)
    score = inside / area.clamp(min=1) - _RING * ring
    best = int(score.argmax())
    return float(score[best]), boxes[best]


def _sum(sums: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over boxes by the summed-area table (Crow, 1984), and the number of cells in each."""
    step = STRIDE / _FINER
    at = ((boxes - (CENTRE - STRIDE / 2)) / step).round().long()
    x0, x1 = (at[:, n].clamp(0, sums.shape[1] - 1) for n in (0, 2))
    y0, y1 = (at[:, n].clamp(0, sums.shape[0] - 1) for n in (1, 3))
    return sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0], (
        (x1 - x0) * (y1 - y0)
    ).float()


def _boxes(point: Tensor) -> Tensor:
    """All boxes that are tried, (N, 4) in pixels of the view."""
    sides, aspects, offsets = (
        torch.tensor(v, device=point.device) for v in (_SIDES, _ASPECTS, _OFFSETS)
    )
    side, aspect, dx, dy = torch.meshgrid(sides, aspects.sqrt(), offsets, offsets, indexing="ij")
    w, h = (side * aspect).flatten(), (side / aspect).flatten()
    x, y = point[0] + dx.flatten() * w, point[1] + dy.flatten() * h
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
