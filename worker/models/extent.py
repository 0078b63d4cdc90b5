"""From a point to a box: how far the thing under it reaches.

A small network looks at windows round the point, each twice as wide as the one before. Of each it
says which box it would draw there and how well that would fit; the best fit is taken. Trained by
``scripts/train_extent.py`` on the maps of the head that it stands beside.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from jobs.contract import Box
from worker.models.head import COARSE_CHANNELS, FINE_CHANNELS, Maps, read
from worker.models.lockstep import Steps
from worker.models.regions import STRIDE
from worker.models.views import View, render

WEIGHTS = Path(__file__).with_name("exemplar_extent.pt")

FIRST, RATIO = 2.0, 2.0  # view pixels per image pixel in the narrowest window, and between windows
CELLS = 23  # of 8 pixels along each side of what the network sees; an odd number
_WINDOW = 256  # pixels of the view round the point
_USUAL, _SMALLEST, _LARGEST = 24.0, 3.0, 110.0  # pixels of the view from the point to a side


class Extent(nn.Module):
    """Which box is meant by a point, on one view."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(FINE_CHANNELS, 24, 3, stride=2)
        self.body = nn.Sequential(
            nn.Conv2d(COARSE_CHANNELS + 24 + 2, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 36, 128),
            nn.ReLU(),
            nn.Linear(128, 5),
        )

    def forward(self, maps: Maps, points: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a box round each of (N, 2) points, in pixels of the view.

        Returns:
            (N,) logits of the box's IoU with the object; (N, 4) boxes, each holds its point.
        """
        half = CELLS * STRIDE / 2
        seen = read(maps, torch.cat([points - half, points + half], 1), CELLS, 2 * CELLS + 1)
        coarse = seen.coarse.transpose(1, 2).reshape(len(points), -1, CELLS, CELLS)
        fine = seen.fine.transpose(1, 2).reshape(len(points), -1, 2 * CELLS + 1, 2 * CELLS + 1)
        middle = coarse[:, :, CELLS // 2, CELLS // 2, None, None]
        like = (coarse * middle).sum(1, keepdim=True)
        x = torch.cat([5 * coarse, self.fine(fine).relu(), like, self._inside(maps, points)], 1)
        out = self.body(x)
        reach = (_USUAL * out[:, 1:].exp()).clamp(_SMALLEST, _LARGEST)
        return out[:, 0], torch.cat([points - reach[:, :2], points + reach[:, 2:]], 1)

    def _inside(self, maps: Maps, points: Tensor) -> Tensor:
        """(N, 1, cells, cells): 1 where the view is, 0 beyond its edges."""
        size = torch.tensor(maps.coarse.shape[:1:-1], device=points.device) * STRIDE
        steps = (torch.arange(CELLS, device=points.device) - CELLS // 2) * STRIDE
        at = points[:, :, None] + steps
        within = ((at >= 0) & (at < size[:, None])).float()
        return (within[:, 1, :, None] * within[:, 0, None, :])[:, None]


def load(path: Path = WEIGHTS) -> Extent:
    """The trained network on the CPU."""
    network = Extent()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False)


def around(point: tuple[float, float], image: Tensor, network: Extent) -> Steps[Box]:
    """The box that fits best round a point, of those that the network draws on each view.

    Args:
        point: x, y in pixels of the image.
        image: (3, H, W) uint8.
        network: on the image's device.

    Returns:
        A box that holds the point; it may reach a little outside the image.
    """
    height, width = image.shape[1:]
    x, y = (min(max(at, 0.0), side - 1.0) for at, side in zip(point, (width, height), strict=True))
    views: list[View] = []
    scale, window = FIRST, (0, 0, 0, 0)
    while window != (0, 0, width, height):
        half = _WINDOW / scale / 2
        window = (
            max(0, math.floor(x - half)),
            max(0, math.floor(y - half)),
            min(width, math.ceil(x + half)),
            min(height, math.ceil(y + half)),
        )
        views.append(render(image, window, scale))
        scale /= RATIO
    at = torch.tensor([[x, y, x, y]], dtype=torch.float32, device=image.device)
    drawn = [
        (network(maps, view.inward(at)[:, :2]), view)
        for view, maps in zip(views, (yield views), strict=True)
    ]
    (_, boxes), view = max(drawn, key=lambda each: float(each[0][0]))
    x0, y0, x1, y1 = view.outward(boxes)[0].tolist()
    return x0, y0, x1, y1
