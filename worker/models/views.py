"""Which views of the images a search by example needs, at which scales."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

from jobs.contract import Box
from worker.models.efficientnet_lite import STRIDE

EXAMPLE = 64.0  # square root of an example's area at its working scale, in pixels
RATIO = 1.6  # of the scales of neighbouring levels
_MAX_ZOOM = 3.0
_MAX_AREA = 8e6  # pixels of the largest level
_MAX_TILE = 1.5e6  # pixels of one view
_OVERLAP = 192  # pixels of neighbouring tiles, so that each object lies whole on one of them
_MIN_SIDE = 32  # pixels of a view

# Sizes to look for on each level, in shares of the example's: on its own one what is as large and
# smaller, on the next coarser one what is larger.
OWN = (0.65, 0.8, 1.0, 1.25)
COARSER = (1.28, 1.6)


@dataclass(frozen=True)
class View:
    """A rectangle of an image at some scale.

    Attributes:
        pixels: (1, 3, H, W) uint8, RGB, H and W multiples of 16.
        origin: (4,) the rectangle's upper left corner in the image as x, y, x, y.
        scale: (4,) view pixels per image pixel, in the same order.
    """

    pixels: Tensor
    origin: Tensor
    scale: Tensor

    @property
    def zoom(self) -> float:
        """View pixels per image pixel, of both axes together."""
        return float(self.scale[:2].prod().sqrt())

    def inward(self, boxes: Tensor) -> Tensor:
        """(N, 4) boxes from image to view pixels."""
        return (boxes - self.origin) * self.scale

    def outward(self, boxes: Tensor) -> Tensor:
        """(N, 4) boxes from view to image pixels."""
        return boxes / self.scale + self.origin

    def holds(self, box: Tensor) -> float:
        """How far a (4,) box of image pixels lies within the view, in view pixels; < 0 outside."""
        inner = self.inward(box)
        height, width = self.pixels.shape[2:]
        x0, y0, x1, y1 = (float(side) for side in inner)
        return min(x0, y0, width - x1, height - y1)


@dataclass(frozen=True)
class Wanted:
    """An example as the plan sees it.

    Attributes:
        sizes: roots of the area, in pixels of the main image, that its like may have.
        here: it lies on the main image itself.
        negative: it shows what is not meant.
    """

    sizes: tuple[float, ...]
    here: bool
    negative: bool


@dataclass(frozen=True)
class Plan:
    """Levels of the pyramid, and where to look for what.

    Attributes:
        scales: view pixels per pixel of the main image, by level.
        searched: for each example, by level, the sizes to look for: roots of the area in pixels of
            the level. Empty for negative ones.
        own: for each example, the level that shows it, or its like, at its working scale.
    """

    scales: dict[int, float]
    searched: list[dict[int, tuple[float, ...]]]
    own: list[int]


def plan(width: int, height: int, wanted: Sequence[Wanted]) -> Plan:
    """Lay out the pyramid of a main image of `width` x `height` pixels.

    Each example wants to be searched at the scale that makes it 64 pixels wide, so that the
    backbone always sees objects of one size. All scales lie on one geometric grid, so that
    examples of different sizes share levels, and the work has a bound however many they are.
    """
    limit = min(_MAX_ZOOM, math.sqrt(_MAX_AREA / (width * height)))
    shown = sorted(min(limit, EXAMPLE / one.sizes[0]) for one in wanted if not one.negative)
    base = shown[len(shown) // 2]
    highest = math.floor(math.log(limit / base, RATIO) + 1e-6)

    def level(size: float) -> int:
        return min(highest, round(math.log(EXAMPLE / size / base, RATIO)))

    searched: list[dict[int, tuple[float, ...]]] = []
    own = [level(one.sizes[0]) for one in wanted]
    for one in wanted:
        levels: dict[int, tuple[float, ...]] = {}
        for size in () if one.negative else one.sizes:
            at = level(size)
            tried = [(at - 1, COARSER), (at, OWN)]
            if not one.here and at < highest:  # sizes may differ more between images
                tried.append((at + 1, tuple(share / RATIO for share in OWN)))
            for n, shares in tried:
                fresh = [share * size * base * RATIO**n for share in shares]
                levels[n] = levels.get(n, ()) + tuple(
                    root
                    for root in fresh
                    if all(abs(root / r - 1) > 0.1 for r in levels.get(n, ()))
                )
        searched.append(levels)
    used = {at for levels in searched for at in levels}
    used |= {at for at, one in zip(own, wanted, strict=True) if one.here}
    return Plan({at: base * RATIO**at for at in sorted(used)}, searched, own)


def tiles(image: Tensor, scale: float) -> list[View]:
    """Views that cover a (3, H, W) image at some scale: one, or overlapping ones if it is large."""
    height, width = image.shape[1:]
    columns, rows = 1, 1
    while (width * scale / columns + _OVERLAP * (columns > 1)) * (
        height * scale / rows + _OVERLAP * (rows > 1)
    ) > _MAX_TILE:
        if width / columns >= height / rows:
            columns += 1
        else:
            rows += 1
    views = []
    for y0, y1 in _spans(height, rows, _OVERLAP / scale):
        for x0, x1 in _spans(width, columns, _OVERLAP / scale):
            views.append(render(image, (x0, y0, x1, y1), scale))
    return views


def _spans(length: int, count: int, overlap: float) -> list[tuple[int, int]]:
    step, half = length / count, overlap / 2
    return [
        (max(0, math.floor(n * step - half)), min(length, math.ceil((n + 1) * step + half)))
        for n in range(count)
    ]


def cut(image: Tensor, box: Box, scale: float) -> tuple[View, Tensor]:
    """A box with surroundings as large as itself: the view, and the (1, 4) box in its pixels."""
    height, width = image.shape[1:]
    x0, y0, x1, y1 = box
    margin = math.sqrt((x1 - x0) * (y1 - y0))
    across, down = max(margin, (x1 - x0) / 4), max(margin, (y1 - y0) / 4)
    window = (
        max(0, math.floor(x0 - across)),
        max(0, math.floor(y0 - down)),
        min(width, math.ceil(x1 + across)),
        min(height, math.ceil(y1 + down)),
    )
    view = render(image, window, scale)
    return view, view.inward(torch.tensor([box], dtype=torch.float32, device=image.device))


def turn(view: View, box: Tensor, eighths: int) -> tuple[View, Tensor]:
    """A view and a (1, 4) box in its pixels after so many eighths of a turn, each to the left.

    The view's place in the image is lost.
    """
    if eighths % 2:
        view, box = _aslant(view, box)
    pixels = torch.rot90(view.pixels, eighths // 2, (2, 3))
    x0, y0, x1, y1 = box.unbind(1)
    height, width = view.pixels.shape[2:]
    for _ in range(eighths // 2):
        x0, y0, x1, y1 = y0, width - x1, y1, width - x0
        height, width = width, height
    return View(pixels, view.origin, view.scale), torch.stack([x0, y0, x1, y1], 1)


def turned(width: float, height: float, eighths: int) -> tuple[float, float]:
    """Width and height of a box of that size after eighths of a turn, of an odd number as if an
    ellipse filled it."""
    if eighths % 2:
        side = math.hypot(width, height) / math.sqrt(2)
        return side, side
    return (height, width) if eighths % 4 else (width, height)


def _aslant(view: View, box: Tensor) -> tuple[View, Tensor]:
    """The middle of a view, with a (1, 4) box and half its size round it, an eighth of a turn to
    the left."""
    (width, height), middle = (box[0, 2:] - box[0, :2]).tolist(), (box[0, :2] + box[0, 2:]) / 2
    wanted = math.hypot(width, height) + math.sqrt(width * height)
    side = max(_MIN_SIDE, round(wanted / STRIDE) * STRIDE)
    at = (torch.arange(side, device=box.device) + 0.5 - side / 2) / math.sqrt(2)
    v, u = torch.meshgrid(at, at, indexing="ij")
    size = torch.tensor(view.pixels.shape[:1:-1], device=box.device)
    grid = 2 * (torch.stack([u - v, u + v], -1) + middle) / size - 1
    pixels = F.grid_sample(
        view.pixels.float(), grid[None], padding_mode="border", align_corners=False
    )
    half = torch.tensor(turned(width, height, 1), device=box.device) / 2
    return (
        View(pixels.round().to(torch.uint8), view.origin, view.scale),
        torch.cat([side / 2 - half, side / 2 + half])[None],
    )


def render(image: Tensor, window: tuple[int, int, int, int], scale: float) -> View:
    """Resize the window `x0, y0, x1, y1` of a (3, H, W) uint8 image, with anti-aliasing.

    The sides are rounded to what the backbone takes, so the scale of the two axes may differ.
    """
    x0, y0, x1, y1 = window
    height, width = (
        max(_MIN_SIDE, round(side * scale / STRIDE) * STRIDE) for side in (y1 - y0, x1 - x0)
    )
    part = image[None, :, y0:y1, x0:x1]
    if part.device.type != "cpu":  # only the CPU resizes bytes
        part = part.float()
    pixels = F.interpolate(part, (height, width), mode="bilinear", antialias=True)
    sx, sy = width / (x1 - x0), height / (y1 - y0)
    return View(
        pixels.round().to(torch.uint8),
        torch.tensor([x0, y0, x0, y0], dtype=torch.float32, device=image.device),
        torch.tensor([sx, sy, sx, sy], dtype=torch.float32, device=image.device),
    )


def clip(box: Box, width: int, height: int) -> Box:
    """The part of `box` within an image of that size, at least a pixel each way."""
    left, top, right, bottom = map(float, box)
    x0, y0 = min(max(left, 0.0), width - 1.0), min(max(top, 0.0), height - 1.0)
    return x0, y0, max(min(right, float(width)), x0 + 1), max(min(bottom, float(height)), y0 + 1)
