"""Where a prompt's like may be: a dense search that costs milliseconds and misses little.

The coarse maps are whitened by the picture's own statistics, which makes its background weigh
little. A prompt is a grid of 7 x 7 cells of such a map, weighted by how much they differ from their
surroundings. A box is scored by how alike the grids are, less how much the ring just outside looks
like the object, too: that keeps boxes from sitting on parts or between two things. `Comparator`
then looks at the best boxes closely.
"""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

from worker.models.head import COARSE, Thing
from worker.models.overlap import nms
from worker.models.regions import GRID, FeatureMap, Whitening, grid

_RING = 1.5  # weight of an object-like surrounding
_OVERLAP = 0.6  # IoU from which two proposals are one
_PRIOR = 0.6  # sigma of the Gaussian prior that a thing fills its box's middle, in half sides
_CONTRAST = 8.0  # steepness of the foreground weights


class Template:
    """What is searched for of one prompt.

    Attributes:
        cells: (49, C) whitened unit features of its 7 x 7 grid.
        weights: (49,) share of each cell in the similarity; sum 1.
    """

    def __init__(self, thing: Thing, whitening: Whitening) -> None:
        """Take the only thing in `thing`; cells that look like its surroundings weigh less."""
        around = whitening.apply(thing.coarse[0]).view(COARSE, COARSE, -1)
        edge = torch.ones(COARSE, COARSE, dtype=torch.bool, device=around.device)
        edge[1:-1, 1:-1] = False
        self.cells = around[~edge]
        at = torch.linspace(-1, 1, GRID, device=around.device) * (GRID - 1) / GRID
        prior = torch.exp(-(at[:, None] ** 2 + at**2) / (2 * _PRIOR**2)).flatten()
        background = (self.cells @ around[edge].T).mean(1)
        weights = prior * torch.sigmoid(-_CONTRAST * (background - background.median()))
        self.weights = weights / weights.sum()


def propose(
    template: Template, view: FeatureMap, sizes: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """The best local maxima of the score over all cells and a few sizes.

    Args:
        template: of the prompt.
        view: to search.
        sizes: (S, 2) widths and heights in pixels of the view, each tried at every cell.
        most: boxes to keep.

    Returns:
        (N, 4) boxes in pixels of the view and their (N,) scores, best first.
    """
    centres = view.centres()
    boxes = torch.cat([-sizes / 2, sizes / 2], 1)  # relative to a cell's centre
    scores = _everywhere(template, view, boxes)
    dense = scores.view(1, len(boxes), view.height, view.width)
    peak = (F.max_pool2d(dense, 3, 1, 1) == dense).view(scores.shape)
    found, value = (boxes[:, None] + centres.repeat(1, 2))[peak], scores[peak]
    value, order = value.topk(min(len(value), 8 * most))
    kept = nms(found[order], value, _OVERLAP)[:most]
    return found[order][kept], value[kept]


def _everywhere(template: Template, view: FeatureMap, boxes: Tensor) -> Tensor:
    """Scores of (S, 4) boxes relative to a cell's centre, for every cell: (S, H * W)."""
    products = template.cells @ view.cells.T  # (49, H * W)
    likeness = (template.weights @ products).clamp(min=0)[None]  # to the object as a whole
    like = template.weights / view.mean_norms(grid(boxes))
    outer = boxes * ((GRID + 2) / GRID)  # a cell more on each side
    ring = _ring(GRID + 2).to(boxes.device)
    scores = []
    for n, box in enumerate(boxes):
        inside = view.sweep(products, box, like[n])
        scores.append(inside - _RING * view.sweep(likeness, outer[n], ring))
    return torch.stack(scores)


def _ring(side: int) -> Tensor:
    """Equal weights of a grid's outermost cells, which sum to 1: (side * side,)."""
    cells = torch.ones(side, side)
    cells[1:-1, 1:-1] = 0
    return cells.flatten() / cells.sum()
