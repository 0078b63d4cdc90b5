"""Training-free matching of one example against one view: propose boxes, score them, improve them.

`Matcher.score` is the only place that knows how alike two regions are; a learned head would
replace it (and `refine`, if it regresses boxes) and keep the proposals.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name
from torchvision.ops import nms

from worker.models.regions import GRID, FeatureMap, grid, ring

_RING = 1.5  # weight of an object-like surrounding: what keeps boxes round whole objects
_SIZE = 0.05  # penalty for each doubling or halving of the example's size in pixels of the view
_ASPECT = 0.1  # the same for the aspect ratio
_SCALES = (0.84, 1.0, 1.19)  # of the example's size, tried at every cell
_PROPOSAL_IOU = 0.6
_PROPOSALS = 80  # kept per view
_STEPS = (0.12, 0.06)  # of the box's sides, in the rounds of local search
_PRIOR = 0.6  # sigma of the Gaussian prior that an example fills its box's middle, in half sides
_CONTRAST = 8.0  # steepness of the foreground weights
_CHUNK = 8192  # boxes scored at a time, which bounds memory


@dataclass(frozen=True)
class Template:
    """What is kept of an example.

    Attributes:
        cells: (49, C) unit features of its 7x7 grid.
        weights: (49,) share of each cell in the similarity; sum 1.
        size: (2,) width and height in pixels of the view.
    """

    cells: Tensor
    weights: Tensor
    size: Tensor

    @classmethod
    def of(cls, view: FeatureMap, box: Tensor, bounds: Tensor) -> "Template":
        """Cut the template out of a view.

        Cells that look like the surroundings weigh less, so that corners of the box do not count.

        Args:
            box: (4,) in pixels of the view.
            bounds: (4,) the rectangle of the view that shows the picture; nothing outside it is
                taken for surroundings.
        """
        cells = view.features(grid(box[None]))[0]
        at = torch.linspace(-1, 1, GRID, device=box.device) * (GRID - 1) / GRID
        weights = torch.exp(-(at[:, None] ** 2 + at**2) / (2 * _PRIOR**2)).flatten()
        spots = ring(box[None])[0]
        spots = spots[((spots > bounds[:2]) & (spots < bounds[2:])).all(-1)]
        if len(spots):
            background = (cells @ view.features(spots).T).mean(1)
            weights = weights * torch.sigmoid(-_CONTRAST * (background - background.median()))
        return cls(cells, weights / weights.sum(), box[2:] - box[:2])


class Matcher:
    """One template on one view.

    All scalar products of template cells and view cells are taken once, in one matrix product.
    What a box needs then are interpolated scalars instead of pooled features, which makes a dense
    search over every cell and a local search round many boxes cheap.
    """

    def __init__(self, template: Template, view: FeatureMap) -> None:
        self.template = template
        self.view = view
        self.products = template.cells @ view.cells.T  # (49, H * W)
        self.likeness = template.weights @ self.products  # (H * W,): to the object as a whole

    def similarity(self, boxes: Tensor) -> Tensor:
        """Weighted mean cosine of each box's 7x7 grid and the template's: (N,), -1..1."""
        cells, shares = self.view.taps(grid(boxes))
        row = torch.arange(len(self.products), device=boxes.device)[:, None]
        found = (self.products[row, cells] * shares).sum(-1)
        return (found / self.view.norms(cells, shares)) @ self.template.weights

    def score(self, boxes: Tensor) -> Tensor:
        """How well the template fits each of the (N, 4) boxes: (N,), at most 1.

        Similarity inside, minus how much the cells just outside look like the object, too: a box
        on a part of an object, or between two, is surrounded by object.
        """
        return torch.cat([self._score(chunk) for chunk in torch.split(boxes, _CHUNK)])

    def _score(self, boxes: Tensor) -> Tensor:
        cells, shares = self.view.taps(ring(boxes))
        around = (self.likeness[cells] * shares).sum(-1).clamp(min=0).mean(-1)
        ratio = ((boxes[:, 2:] - boxes[:, :2]) / self.template.size).log2()
        size, aspect = ratio.mean(1).abs(), (ratio[:, 0] - ratio[:, 1]).abs()
        return self.similarity(boxes) - _RING * around - _SIZE * size - _ASPECT * aspect

    def propose(self) -> Tensor:
        """The best local maxima of the score over all cells and a few sizes: (N, 4) boxes."""
        centres = self.view.centres()
        sizes = self.template.size * torch.tensor(_SCALES, device=centres.device)[:, None]
        boxes = torch.cat([-sizes / 2, sizes / 2], 1)  # relative to a cell's centre
        scores = self._everywhere(boxes)
        dense = scores.view(1, len(boxes), self.view.height, self.view.width)
        peak = (F.max_pool2d(dense, 3, 1, 1) == dense).view(scores.shape)
        found = (boxes[:, None] + centres.repeat(1, 2))[peak]
        return found[nms(found, scores[peak], _PROPOSAL_IOU)[:_PROPOSALS]]

    def _everywhere(self, boxes: Tensor) -> Tensor:
        """Approximate scores of (S, 4) boxes relative to a cell's centre, for all: (S, H * W)."""
        inside, outside = grid(boxes), ring(boxes)
        like = self.template.weights / self.view.mean_norms(inside)
        unlike = like.new_full(outside.shape[:2], -_RING / outside.shape[1])
        channels = [*range(len(self.products)), *[len(self.products)] * outside.shape[1]]
        scores = self.view.correlate(
            torch.cat([self.products, self.likeness.clamp(min=0)[None]]),
            torch.tensor(channels, device=boxes.device),
            torch.cat([inside, outside], 1),
            torch.cat([like, unlike], 1),
        )
        ratio = ((boxes[:, 2:] - boxes[:, :2]) / self.template.size).log2()
        return scores - _SIZE * ratio.mean(1, keepdim=True).abs()

    def refine(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Local search: move, resize and stretch each box while its score grows.

        Returns:
            (N, 4) boxes and their (N,) scores.
        """
        moves = _moves(boxes.device)
        scores = boxes.new_empty(0)
        for step in _STEPS:
            sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
            tried = boxes[:, None] + moves * step * sides[:, None]
            scores, best = self.score(tried.flatten(0, 1)).view(len(boxes), len(moves)).max(1)
            boxes = tried[torch.arange(len(boxes), device=boxes.device), best]
        return boxes, scores


def _moves(device: torch.device) -> Tensor:
    """What the search tries, in shares of the box's sides: (19, 4), the first is to stay."""
    one_side = torch.eye(4)
    shift = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 1]])
    stretch = torch.tensor([[-0.5, -0.5, 0.5, 0.5], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]])
    moves = torch.cat([one_side, shift, stretch])
    return torch.cat([torch.zeros(1, 4), moves, -moves]).to(device)
