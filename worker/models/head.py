"""The learned part of `exemplar`: what a thing is remembered by, and how alike two things are.

`Embedder` turns the frozen backbone's maps into two small ones. A thing is what `look` reads of
them inside and just round its box; that, as 4-bit numbers, is also the portable embedding of a
prompt. Each `Comparator` says of a remembered thing and of candidates whether they are of one
class, and how the candidates' boxes should move. Trained by ``scripts/train_exemplar.py``; its
model card stands in docs/exemplar.md.
"""

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name

from worker.models.efficientnet_lite import CHANNELS
from worker.models.regions import CENTRE, STRIDE

WEIGHTS = Path(__file__).with_name("exemplar_head.pt")

COARSE, FINE = 9, 14  # cells along each side of what is remembered: stride 8 and stride 4
INNER = 7 * 7  # of the coarse cells lie in the box
GROWN = 9 / 7  # of the box: a ring of its surroundings is remembered, too
COARSE_CHANNELS, FINE_CHANNELS = 48, 16
COMPARATORS = 2  # that vote; one more brought nothing
MAX_DELTA = 0.5

_ANGLES = (-28.0, -14.0, 0.0, 14.0, 28.0)  # degrees at which a thing is held against another
_SHAPE = 4 + len(_ANGLES)  # numbers that tell of the boxes' aspects and of the angle
_THIN = 1e-3  # pixels; thinner boxes have no aspect
_REACH = 2  # cells that parts may be displaced by
# Of stage 1; the coarse map has those of stage 2, see `regions`.
_FINE_STRIDE, _FINE_CENTRE = 4, 3.5


@dataclass(frozen=True)
class Maps:
    """Embedded maps of one view.

    Attributes:
        coarse: (1, 48, H/8, W/8), of norm 1 in every cell.
        fine: (1, 16, H/4, W/4), of norm below 1.
    """

    coarse: Tensor
    fine: Tensor


@dataclass(frozen=True)
class Thing:
    """What is read inside and round N boxes.

    Attributes:
        coarse: (N, 81, 48), row by row.
        fine: (N, 196, 16), row by row.
        aspect: (N,), logarithm of how many times as wide as high each box is, which the grids
            do not tell.
    """

    coarse: Tensor
    fine: Tensor
    aspect: Tensor

    def __getitem__(self, index: Tensor | slice) -> "Thing":
        return Thing(self.coarse[index], self.fine[index], self.aspect[index])

    def to(self, device: torch.device) -> "Thing":
        return Thing(self.coarse.to(device), self.fine.to(device), self.aspect.to(device))

    @staticmethod
    def join(things: Sequence["Thing"]) -> "Thing":
        """All in one, in their order."""
        return Thing(
            torch.cat([thing.coarse for thing in things]),
            torch.cat([thing.fine for thing in things]),
            torch.cat([thing.aspect for thing in things]),
        )


class Embedder(nn.Module):
    """Standardise, normalise, project each cell of the backbone's maps.

    `means` and `spreads` are the channels' statistics over training scenes.
    """

    def __init__(self) -> None:
        super().__init__()
        for n, channels in enumerate(CHANNELS):
            self.register_buffer(f"mean{n}", torch.zeros(1, channels, 1, 1))
            self.register_buffer(f"spread{n}", torch.ones(1, channels, 1, 1))
        self.one = nn.Conv2d(CHANNELS[0], FINE_CHANNELS, 1)
        self.two = nn.Conv2d(CHANNELS[1], COARSE_CHANNELS // 2, 1)
        self.four = nn.Conv2d(CHANNELS[2], COARSE_CHANNELS // 2, 1)

    def forward(self, one: Tensor, two: Tensor, four: Tensor) -> Maps:
        """Embed the backbone's maps of stages 1, 2 and 4 of one view, each (1, C, H, W)."""
        one, two, four = (
            (x - self.get_buffer(f"mean{n}")) / self.get_buffer(f"spread{n}")
            for n, x in enumerate((one, two, four))
        )
        fine = self.one(one)
        fine = fine / (1 + fine.square().sum(1, keepdim=True)).sqrt()
        two, four = self.two(unit(two)), self.four(unit(four))
        return Maps(F.normalize(torch.cat([two, double(four)], 1), dim=1), fine)


def look(maps: Maps, boxes: Tensor) -> Thing:
    """Read what is inside and round (N, 4) boxes, in pixels of the view."""
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * GROWN
    return read(maps, torch.cat([middle - half, middle + half], 1), COARSE, FINE)


def read(maps: Maps, boxes: Tensor, coarse: int, fine: int) -> Thing:
    """Sample both maps on grids of so many cells along each side of (N, 4) boxes."""
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=_THIN)
    return Thing(
        _sample(maps.coarse, boxes, coarse, STRIDE, CENTRE),
        _sample(maps.fine, boxes, fine, _FINE_STRIDE, _FINE_CENTRE),
        (sides[:, 0] / sides[:, 1]).log(),
    )


def _sample(x: Tensor, boxes: Tensor, cells: int, stride: int, centre: float) -> Tensor:
    """Bilinear samples on a grid over each box: (N, cells * cells, C)."""
    at = (torch.arange(cells, device=boxes.device) + 0.5) / cells - 0.5
    middle, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    xs = middle[:, :1] + at * sides[:, :1]
    ys = middle[:, 1:] + at * sides[:, 1:]
    height, width = x.shape[2:]
    # from pixels to cells, and from those to the -1..1 that grid_sample takes
    u = (xs - centre) / stride * (2 / max(1, width - 1)) - 1
    v = (ys - centre) / stride * (2 / max(1, height - 1)) - 1
    grid = torch.stack(
        [u[:, None, :].expand(-1, cells, -1), v[:, :, None].expand(-1, -1, cells)], -1
    ).reshape(1, -1, cells * cells, 2)
    found = F.grid_sample(x, grid, padding_mode="border", align_corners=True)
    return found[0].permute(1, 2, 0)


@dataclass(frozen=True)
class Prompt:
    """One remembered thing, made ready to be compared with many.

    Attributes:
        coarse, fine: as in `Thing`, of this one thing: (81, 48), (196, 16).
        turned_coarse: (5, 81, 48), at each of the angles; turned_fine: (5, 196, 16).
        aspect: (1,), as in `Thing`.
    """

    coarse: Tensor
    fine: Tensor
    aspect: Tensor
    turned_coarse: Tensor
    turned_fine: Tensor

    @classmethod
    def of(cls, thing: Thing) -> "Prompt":
        """Prepare the only thing in `thing`."""
        aspect = thing.aspect.exp()
        return cls(
            thing.coarse[0],
            thing.fine[0],
            thing.aspect,
            _turn(thing.coarse, COARSE, aspect),
            _turn(thing.fine, FINE, aspect),
        )


def _turn(cells: Tensor, side: int, aspect: Tensor) -> Tensor:
    """Read a (1, side * side, C) map on grids turned about its middle: (5, side * side, C)."""
    channels = cells.shape[2]
    x = cells.transpose(1, 2).reshape(1, channels, side, side)
    at = torch.linspace(-1, 1, side, device=cells.device)
    v, u = torch.meshgrid(at, at, indexing="ij")
    grids = []
    for angle in _ANGLES:
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        grids.append(torch.stack([cos * u - sin * v / aspect, sin * u * aspect + cos * v], -1))
    turned = F.grid_sample(
        x.expand(len(_ANGLES), -1, -1, -1),
        torch.stack(grids),
        padding_mode="border",
        align_corners=True,
    )
    return turned.flatten(2).transpose(1, 2)


class Comparator(nn.Module):
    """Whether candidates are of a prompt's class, and how their boxes should move.

    Two towers. The coarse one sees, cell by cell, the product of prompt and candidate after the
    prompt was turned to fit, how much rather a cell belongs to the prompt than to its
    surroundings, and whether each part of the prompt is found somewhere in the candidate. The fine
    one sees edges: products and differences at twice the resolution. Beside them stands how much
    longer than the prompt the candidate's box is, and how far the prompt had to be turned.
    """

    order: Tensor
    rank: Tensor
    far: Tensor
    there: Tensor
    back: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.tensor(8.0))
        self.sharpness = nn.Parameter(torch.tensor(10.0))
        self.places = nn.Parameter(torch.zeros(8, COARSE * COARSE))
        self.coarse = nn.Sequential(
            nn.Conv2d(COARSE_CHANNELS + 17, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.fine = nn.Sequential(
            nn.Conv2d(FINE_CHANNELS + 4, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        seen = 64 * 25 + 32 * 16 + _SHAPE
        self.decide = nn.Sequential(nn.Linear(seen, 128), nn.ReLU(), nn.Linear(128, 5))
        order = _inner_first(COARSE)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("rank", order.argsort(), persistent=False)
        self.register_buffer("far", _far(COARSE)[:, order], persistent=False)
        there, back = _neighbours(FINE)
        self.register_buffer("there", there, persistent=False)
        self.register_buffer("back", back, persistent=False)

    def forward(self, prompt: Prompt, candidates: Thing) -> tuple[Tensor, Tensor]:
        """Compare one prompt with N candidates.

        Returns:
            (N,) logits and (N, 4) moves: of the middle in shares of the sides, and of the sides'
            logarithms, -0.5..0.5.
        """
        inner, count = self.order[:INNER], len(candidates.coarse)
        fits = torch.einsum(
            "apc,npc->na", prompt.turned_coarse[:, inner], candidates.coarse[:, inner]
        ).div(INNER)
        shares = (4 * self.turn * fits).softmax(1)
        aligned = (shares @ prompt.turned_coarse.flatten(1)).view_as(candidates.coarse)
        coarse = self._coarse(prompt, aligned, candidates.coarse)
        aligned = (shares @ prompt.turned_fine.flatten(1)).view_as(candidates.fine)
        fine = self._fine(prompt, aligned, candidates.fine)
        x = torch.cat(
            [
                self.coarse(coarse.view(count, -1, COARSE, COARSE)),
                self.fine(fine.view(count, -1, FINE, FINE)),
                self._shape(prompt.aspect, candidates.aspect),
                shares,
            ],
            1,
        )
        out = self.decide(x)
        return out[:, 0] - 1, out[:, 1:].clamp(-MAX_DELTA, MAX_DELTA)

    def _shape(self, prompt: Tensor, found: Tensor) -> Tensor:
        """(N, 4), of the aspects of a prompt and of N candidates."""
        longer, own = found - prompt, prompt.expand_as(found)
        return 2 * torch.stack([longer, longer.abs(), found.abs(), own.abs()], 1)

    def _coarse(self, prompt: Prompt, aligned: Tensor, found: Tensor) -> Tensor:
        product = aligned * found
        half = COARSE_CHANNELS // 2
        ordered = prompt.coarse[self.order].T  # so that a slice is what the box holds
        like = found @ ordered  # (N, candidate cell, prompt cell)
        near = like + self.far
        own = self._belongs(prompt.coarse @ ordered)
        of_inner = like.view(-1, COARSE, COARSE, len(self.order))[:, 1:-1, 1:-1].amax((1, 2))
        single = [
            2 * product[..., :half].sum(2),
            2 * product[..., half:].sum(2),
            product.sum(2),
            self._belongs(like),
            like[..., :INNER].amax(2),
            of_inner[:, self.rank],
            near.amax(2),
            near.amax(1)[:, self.rank],
            own.expand(len(found), -1),
        ]
        places = self.places.expand(len(found), -1, -1)
        return torch.cat([5 * product.transpose(1, 2), torch.stack(single, 1), places], 1)

    def _belongs(self, like: Tensor) -> Tensor:
        """Log-odds of a cell being of the prompt rather than of its surroundings."""
        sharp = self.sharpness * like
        return (sharp[..., :INNER].logsumexp(-1) - sharp[..., INNER:].logsumexp(-1)) / 4

    def _fine(self, prompt: Prompt, aligned: Tensor, found: Tensor) -> Tensor:
        product = aligned * found
        beside = prompt.fine.index_select(0, self.there.flatten()).view(
            FINE * FINE, -1, FINE_CHANNELS
        )
        like = torch.bmm(found.transpose(0, 1), beside.transpose(1, 2)).transpose(0, 1)
        # like[n, c, o] is of candidate cell c and prompt cell c + o; `back` sorts it by the latter
        of_prompt = like.flatten(1).index_select(1, self.back.flatten()).view_as(like)
        single = [
            product.sum(2),
            like.amax(2),
            of_prompt.amax(2),
            (aligned - found).abs().sum(2) / 2,
        ]
        return torch.cat([3 * product.transpose(1, 2), torch.stack(single, 1)], 1)


class Head(nn.Module):
    """The learned parts, as they are saved: one embedder, and comparators that vote."""

    def __init__(self) -> None:
        super().__init__()
        self.embedder = Embedder()
        self.comparators = nn.ModuleList(Comparator() for _ in range(COMPARATORS))

    def glance(self, prompt: Prompt, candidates: Thing) -> tuple[Tensor, Tensor]:
        """Compare by the first comparator alone: for choosing what to look at again."""
        said: tuple[Tensor, Tensor] = self.comparators[0](prompt, candidates)
        return said

    def compare(self, prompt: Prompt, candidates: Thing) -> tuple[Tensor, Tensor]:
        """The mean of what all comparators say; each learned from prompts of its own."""
        logits, moves = zip(*(each(prompt, candidates) for each in self.comparators), strict=True)
        return torch.stack(logits).mean(0), torch.stack(moves).mean(0)


def load(path: Path = WEIGHTS) -> tuple[Head, bytes]:
    """The trained head on the CPU, and its identity: the first 8 bytes of its file's SHA-256."""
    data = path.read_bytes()
    head = Head()
    head.load_state_dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    return head.eval().requires_grad_(False), hashlib.sha256(data).digest()[:8]


def _inner_first(side: int) -> Tensor:
    """Cells that lie in the box, then those of the ring around it: (side * side,)."""
    ring = torch.ones(side, side, dtype=torch.bool)
    ring[1:-1, 1:-1] = False
    return ring.flatten().to(torch.uint8).argsort(stable=True)


def _far(side: int) -> Tensor:
    """(cells, cells): 0 where two cells are within reach of one another, -10 elsewhere."""
    at = torch.arange(side * side)
    row, column = at // side, at % side
    apart = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs())
    return torch.where(apart <= _REACH, 0.0, -10.0)


def _neighbours(side: int) -> tuple[Tensor, Tensor]:
    """For each cell and each of 25 offsets: the cell there, and where its pair with it stands.

    At the edges the nearest cell serves.
    """
    at = torch.arange(side * side)
    row, column = (at // side)[:, None], (at % side)[:, None]
    steps = torch.arange(-_REACH, _REACH + 1)
    down, across = steps.repeat_interleave(len(steps)), steps.repeat(len(steps))
    there = (row + down).clamp(0, side - 1) * side + (column + across).clamp(0, side - 1)
    origin = (row - down).clamp(0, side - 1) * side + (column - across).clamp(0, side - 1)
    offset = torch.arange(len(down))
    return there, origin * len(down) + offset


def move(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Apply a comparator's (N, 4) moves to (N, 4) boxes."""
    sides = boxes[:, 2:] - boxes[:, :2]
    middle = (boxes[:, 2:] + boxes[:, :2]) / 2 + deltas[:, :2] * sides
    half = sides * deltas[:, 2:].exp() / 2
    return torch.cat([middle - half, middle + half], 1)


def unit(x: Tensor) -> Tensor:
    """Cells of equal strength, one on average for each channel."""
    return F.normalize(x, dim=1) * math.sqrt(x.shape[1])


def double(x: Tensor) -> Tensor:
    """Stage 4 on stage 2's cells: odd ones share its centres, even ones lie between two."""
    size = (2 * x.shape[2] + 1, 2 * x.shape[3] + 1)
    x = F.pad(x, (1, 0, 1, 0), mode="replicate")
    return F.interpolate(x, size, mode="bilinear", align_corners=True)[:, :, 1:, 1:]
