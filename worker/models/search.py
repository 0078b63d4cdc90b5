"""The search that `exemplar` makes: what on an image is like some examples, and from where on.

Places that look promising are proposed, judged by the head, moved and judged again; then finds
speak for further finds, and what is meant is parted from the rest.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from jobs.contract import MAIN_IMAGE, Box
from worker.models import head
from worker.models.embedding import Remembered
from worker.models.head import Maps, Thing, look, move
from worker.models.overlap import box_iou, nms
from worker.models.proposals import Template, propose
from worker.models.regions import FeatureMap, Whitening, suppress
from worker.models.views import COARSER, OWN, View, turned

_MOST_PROPOSED = 300  # of one example on one view
_SURELY_PROPOSED = 40
_PROMISING = 0.4  # share of the best proposals' score from which others are looked at, too
_EDGE = 1.25  # times the smallest size tried, or a share of the largest: there may be more beyond
_LESS, _DOUBT = 0.8, 1.6  # of a turned example's proposals, times; of its verdicts, logits
_SECOND_ROUND = 1.5  # candidates for it, for each find that the first round expects
_MOVED_IOU = 0.75  # from which two candidates are one after the first round
_TELLING, _SAME = 3, 0.4  # finds that say how alike things are here; IoU that makes two one
_ALIKE, _KINDNESS, _KINDEST, _UNLIKE, _ONSET = 4.4, 0.9, 2.4, -0.5, 2.7  # see `kindness`
_OWN = 4.0  # logit that an example is given where it stands; if it is less, its like's is, too
_ASKED, _BELOW = 8, 1.5  # finds that judge one another; how far below the best three they may be
_MUTUAL, _CLOSER = -0.4, 1.5  # what those of a kind say of one another; how much more copies do
_RIVALRY = 4.0  # how fast a find is lost that is more like something else
_SUPPORTS, _SURE, _HOPELESS = 3, 0.5, -3.5  # of query expansion
_MANY, _CHORUS = 8, 12  # of more sure finds than that, so many support
_CUT = 2.0  # logit that becomes .5 if nothing else is known
_PARTING, _REACH = 1.0, 2.4  # sigma and half width of where finds may part, round what is expected
_CROWD, _TAIL, _STRAYED = 10, 2.4, 3.5  # sure finds from which on the end lies lower: `parting`
_TOLD, _LOOSER, _STRICTEST = 0.3, 0.3, 2.8  # how far the least alike examples tell where that is


@dataclass(frozen=True)
class Example:
    """One example on its way through the device.

    Attributes:
        label: what its like is to be called.
        negative: it shows what is not meant.
        image: part name of the image it lies on; None for an embedded one.
        box: in pixels of that image; (0, 0, width, height) for an embedded one.
        remembered: an embedded one.
    """

    label: str
    negative: bool
    image: str | None
    box: Box
    remembered: Remembered | None = None

    @property
    def size(self) -> float:
        """Root of the area in pixels of its image."""
        x0, y0, x1, y1 = self.box
        return math.sqrt((x1 - x0) * (y1 - y0))

    @property
    def slimness(self) -> float:
        """How many times as long as wide, or as wide as long."""
        x0, y0, x1, y1 = self.box
        return max((x1 - x0) / (y1 - y0), (y1 - y0) / (x1 - x0))

    def turned(self, eighths: int) -> "Example":
        """The same after so many eighths of a turn, on no image."""
        width, height = self.box[2] - self.box[0], self.box[3] - self.box[1]
        width, height = turned(width, height, eighths)
        return Example(self.label, self.negative, None, (0, 0, width, height))


class Field:
    """One view of the main image, made ready to be searched.

    Attributes:
        level: of the pyramid.
        maps: what the head embeds of it.
    """

    def __init__(self, level: int, view: View, maps: Maps) -> None:
        self.level = level
        self.view = view
        self.maps = maps
        self.features: FeatureMap

    def whiten(self, whitening: Whitening) -> None:
        self.features = FeatureMap(self.maps.coarse, whitening)


@dataclass(frozen=True)
class Shown:
    """An example, made ready to be searched for.

    Attributes:
        levels: on which to look for its like, with the sizes to try: roots of the area in pixels.
        turned: the same after turns, if what lies so is wished.
        unwished: the same, if it is not.
    """

    example: Example
    thing: Thing
    prompt: head.Prompt
    levels: dict[int, tuple[float, ...]]
    turned: tuple["Shown", ...] = ()
    unwished: tuple["Shown", ...] = ()

    @classmethod
    def of(
        cls,
        example: Example,
        thing: Thing,
        levels: dict[int, tuple[float, ...]],
        turned: tuple["Shown", ...] = (),
        wished: bool = True,
    ) -> "Shown":
        prompt = head.Prompt.of(thing)
        turned, unwished = (turned, ()) if wished else ((), turned)
        return cls(example, thing, prompt, levels, turned, unwished)


@dataclass(frozen=True)
class _Places:
    """Boxes on several fields: (N, 4) in pixels of the view, and (N,) places of the field."""

    boxes: Tensor
    fields: Tensor

    def __getitem__(self, index: Tensor) -> "_Places":
        return _Places(self.boxes[index], self.fields[index])

    def and_(self, more: "_Places") -> "_Places":
        return _Places(torch.cat([self.boxes, more.boxes]), torch.cat([self.fields, more.fields]))


def _owned(boxes: Tensor, scores: Tensor, owner: int) -> tuple[Tensor, Tensor, Tensor]:
    return boxes, scores, torch.full_like(scores, owner, dtype=torch.int64)


def _turned(shown: list[Shown]) -> list[Shown]:
    return [lying for one in shown for lying in one.turned]


class Search:
    """Looks for one label's like on all fields of an image."""

    def __init__(self, judge: head.Head, fields: list[Field], whitening: Whitening) -> None:
        self._head = judge
        self._fields = fields
        self._whitening = whitening

    def run(self, shown: list[Shown], against: list[Shown]) -> tuple[Tensor, Tensor]:
        """Find the like of `shown` that is not rather the like of `against`.

        Proposals are judged, moved, judged again and moved again. A sure find that is about as
        small or as large as was looked for proposes what is smaller or larger still, and examples
        propose what is like them after turns, or lose what is rather like these. The surest
        finds serve as further examples (query expansion), which also finds what is like them only;
        and where even the best finds are only fairly like the example, all are judged more kindly.

        Returns:
            (N, 4) boxes in pixels of the image and (N,) logits, 0 at the cut.
        """
        places, logits, by = self._first_round(shown)
        if outermost := self._outermost(shown, places, logits):
            more, theirs, _ = self._first_round(outermost)
            places, logits = places.and_(more), torch.cat([logits, theirs])
            by = torch.cat([by, torch.zeros_like(theirs, dtype=by.dtype)])
        most = max(_SURELY_PROPOSED, int(_SECOND_ROUND * (logits > -1).sum()))
        kept = nms(self._outward(places), logits, _MOVED_IOU)[:most]
        places, by = places[kept], by[kept]
        things = self._look(places)
        every, deltas = self._judge(shown, things)
        lying = torch.full_like(every[0], -math.inf)
        for n, one in enumerate(_turned(shown), len(shown)):
            mine = (by == n).nonzero()[:, 0]
            if len(mine):
                theirs, moves = self._head.compare(one.prompt, things[mine])
                lying[mine] = theirs - _DOUBT
                better = lying[mine] > every.amax(0)[mine]
                deltas[mine] = torch.where(better[:, None], moves, deltas[mine])
        boxes = self._outward(_Places(move(places.boxes, deltas), places.fields))
        best = torch.maximum(every.amax(0), lying)
        lead = self._lead(shown, against, things, best)
        decided, meant = torch.minimum(_RIVALRY * lead, best - _CUT), lead >= 0
        told = self._decide(shown, boxes[meant], things[meant], every[:, meant], lying[meant])
        decided[meant] = torch.minimum(_RIVALRY * lead[meant], told)
        return boxes, decided

    def _lead(
        self, shown: list[Shown], against: list[Shown], things: Thing, best: Tensor
    ) -> Tensor:
        """How far `best`, (N,) logits, is ahead of what is not meant: (N,), infinite if all is."""
        lead = torch.full_like(best, math.inf)
        for one in against:
            rivals, _ = self._judge([one, *one.turned], things)
            rivals[1:] -= _DOUBT
            lead = torch.minimum(lead, best - rivals.amax(0))
        if unwished := [pose for one in shown for pose in one.unwished]:
            rivals, _ = self._judge(unwished, things)
            lead = torch.minimum(lead, best - rivals.amax(0) + _DOUBT)
        return lead

    def _first_round(self, shown: list[Shown]) -> tuple[_Places, Tensor, Tensor]:
        """Places that the examples and their turned ones propose, moved once; what these say of
        them, (N,) logits; and which one does, (N,), the turned ones after the others."""
        places, by = self._propose(shown)
        logits, deltas = self._screen([*shown, *_turned(shown)], self._look(places), by)
        logits = logits - _DOUBT * (by >= len(shown))
        return _Places(move(places.boxes, deltas), places.fields), logits, by

    def _outermost(self, shown: list[Shown], places: _Places, logits: Tensor) -> list[Shown]:
        """The smallest and the largest sure find, those of them that are at the edge of the sizes
        that were tried."""
        sure = logits > _SURE
        places, boxes = places[sure], self._outward(places)[sure]
        if not len(boxes):
            return []
        tried = [
            size / field.view.zoom
            for field in self._fields
            for one in shown
            for size in one.levels.get(field.level, ())
        ]
        roots = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
        least, most = int(roots.argmin()), int(roots.argmax())
        chosen: list[tuple[int, tuple[float, ...]]] = []
        if roots[least] < _EDGE * min(tried):
            chosen.append((least, OWN))
        if roots[most] > max(tried) / _EDGE:
            chosen.append((most, (1.0, *COARSER)))
        outermost = []
        for n, shares in chosen:
            place = places[torch.tensor([n], device=boxes.device)]
            field, thing = self._fields[int(place.fields)], self._look(place)
            x0, y0, x1, y1 = boxes[n].tolist()
            example = Example(shown[0].example.label, False, MAIN_IMAGE, (x0, y0, x1, y1))
            sizes = tuple(share * example.size * field.view.zoom for share in shares)
            outermost.append(Shown.of(example, thing, {field.level: sizes}))
        return outermost

    def _propose(self, shown: list[Shown]) -> tuple[_Places, Tensor]:
        """Where to look, and (N,) which example wants to, or turned one."""
        boxes, fields, by = [], [], []
        for n, field in enumerate(self._fields):
            found: list[tuple[Tensor, Tensor, Tensor]] = []
            first = len(shown)  # of the turned ones of `one`
            for m, one in enumerate(shown):
                if field.level in one.levels:
                    box, score = self._search(one, field)
                    least = _PROMISING * score[:3].mean()
                    promising = score > least
                    promising[:_SURELY_PROPOSED] = True
                    found.append(_owned(box[promising], score[promising], m))
                    for k, lying in enumerate(one.turned, first):
                        box, score = self._search(lying, field)
                        promising = score > least
                        found.append(_owned(box[promising], _LESS * score[promising], k))
                first += len(one.turned)
            if found:
                pooled, scores, owner = map(torch.cat, zip(*found, strict=True))
                if len(found) > 1:
                    kept = nms(pooled, scores, 0.6)[:_MOST_PROPOSED]
                    pooled, owner = pooled[kept], owner[kept]
                boxes.append(pooled)
                by.append(owner)
                fields.append(torch.full((len(pooled),), n, device=pooled.device))
        return _Places(torch.cat(boxes), torch.cat(fields)), torch.cat(by)

    def _search(self, one: Shown, field: Field) -> tuple[Tensor, Tensor]:
        """What one example proposes on one field: (N, 4) boxes and (N,) scores, best first."""
        x0, y0, x1, y1 = one.example.box
        shape = torch.tensor([x1 - x0, y1 - y0], dtype=torch.float32) / one.example.size
        sizes = shape * torch.tensor(one.levels[field.level])[:, None]
        template = Template(one.thing, self._whitening)
        return propose(template, field.features, sizes.to(field.maps.coarse.device), _MOST_PROPOSED)

    def _screen(self, shown: list[Shown], things: Thing, by: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N,) and moves (N, 4) of things, each by the example that proposed it."""
        parts, order = [], []
        for n, one in enumerate(shown):
            mine = (by == n).nonzero()[:, 0]
            if len(mine):
                parts.append(self._head.glance(one.prompt, things[mine]))
                order.append(mine)
        back = torch.cat(order).argsort()
        return torch.cat([p[0] for p in parts])[back], torch.cat([p[1] for p in parts])[back]

    def _look(self, places: _Places) -> Thing:
        """Read each box on its own field, in the order of the boxes."""
        parts, order = [], []
        for n, field in enumerate(self._fields):
            mine = (places.fields == n).nonzero()[:, 0]
            if len(mine):
                parts.append(look(field.maps, places.boxes[mine]))
                order.append(mine)
        back = torch.cat(order).argsort()
        return Thing.join(parts)[back]

    def _outward(self, places: _Places) -> Tensor:
        boxes = torch.empty_like(places.boxes)
        for n, field in enumerate(self._fields):
            mine = places.fields == n
            boxes[mine] = field.view.outward(places.boxes[mine])
        return boxes

    def _judge(self, shown: list[Shown], things: Thing) -> tuple[Tensor, Tensor]:
        """Logits of each example, (k, N), and the moves of the one that fits best, (N, 4)."""
        judged = [self._head.compare(one.prompt, things) for one in shown]
        logits = torch.stack([logit for logit, _ in judged])
        rows = torch.arange(logits.shape[1], device=logits.device)
        return logits, torch.stack([delta for _, delta in judged])[logits.argmax(0), rows]

    def _kinship(self, shown: list[Shown]) -> Tensor:
        """How much each example is like each other one: (k, k) logits, infinite on the diagonal."""
        things = Thing.join([one.thing for one in shown])
        alike = torch.stack([self._head.compare(one.prompt, things)[0] for one in shown])
        return alike.fill_diagonal_(math.inf)

    def _kindred(self, boxes: Tensor, things: Thing, logits: Tensor, lying: Tensor) -> float:
        """How far the best finds are of one kind, by what they say of one another.

        Finds by chance are less like one another. Copies of a look-alike are much more so than the
        example is like them: they may be a kind, but not its.

        Returns:
            From -1, as where there are not three finds, to 1; 0 if what lies turned is among the
            best three, or if these are so alike that it makes no difference.
        """
        best = nms(boxes, torch.maximum(logits, lying), _SAME)[:_TELLING]
        likeness = logits[best].mean()
        if (lying > logits)[best].any() or likeness > _ALIKE:
            return 0.0
        best = nms(boxes, logits, _SAME)[:_ASKED]
        best = best[logits[best] > likeness - _BELOW]
        if len(best) < _TELLING:
            return -1.0
        seen = things[best]
        told = [
            self._head.compare(head.Prompt.of(seen[slice(n, n + 1)]), seen)[0]
            for n in range(len(best))
        ]
        others = ~torch.eye(len(best), dtype=torch.bool, device=boxes.device)
        mutual = torch.stack(told)[others].quantile(0.5).item()
        copies = mutual - logits[best].mean().item() > _CLOSER
        return min(max(mutual - _MUTUAL, -1.0), 0.0 if copies else 1.0)

    def _decide(
        self,
        shown: list[Shown],
        boxes: Tensor,
        things: Thing,
        every: Tensor,
        lying: Tensor,
    ) -> Tensor:
        """Logits (N,), 0 at the cut, from those of each example, (k, N), and of any turned one."""
        logits, best = every.max(0)
        on = torch.zeros_like(every, dtype=torch.bool)  # the place of an example itself
        for n, one in enumerate(shown):
            if one.example.image == MAIN_IMAGE:
                prompted = torch.tensor([one.example.box], device=boxes.device)
                on[n] = box_iou(prompted, boxes)[0] >= 0.5
        decided = logits.clone()
        supports = (~on.any(0) & (logits > _SURE)).nonzero()[:, 0]
        supports = supports[nms(boxes[supports], logits[supports], 0.3)]
        supports = supports[: _CHORUS if len(supports) > _MANY else _SUPPORTS]
        hopeful = (logits > _HOPELESS).nonzero()[:, 0]
        seen, kinship = things[hopeful], self._kinship(shown)
        speaks = kinship.sigmoid()
        votes, kin = list(every[:, hopeful]), list(speaks[:, best[hopeful]])
        for support in supports.tolist():
            prompt = head.Prompt.of(things[slice(support, support + 1)])
            vote, _ = self._head.compare(prompt, seen)
            votes.append(torch.where(hopeful == support, logits[hopeful], vote))
            kin.append(speaks[best[support]][best[hopeful]])
        # Each speaks as far as its example and that of the candidate are alike.
        weights = torch.stack(kin)
        decided[hopeful] = (weights * torch.stack(votes)).sum(0) / weights.sum(0)
        decided = torch.maximum(decided, lying)
        others = every.masked_fill(on, -math.inf).amax(0)
        apart = lying.masked_fill(on.any(0), -math.inf)
        own = every[on].amax().item() if on.any() else _OWN
        ease = max(0.0, _OWN - own) + self._kindred(boxes, things, others, apart)
        kind = kindness(boxes, torch.maximum(others, apart), ease)
        expected = _CUT - kind
        if len(shown) > 1:
            told = (kinship + kinship.T).min().item() / 2 - _LOOSER
            expected += _TOLD * (min(max(told, 0.0), _STRICTEST) - expected)
        new = ~on.any(0)
        return decided - parting(boxes[new], decided[new], expected, some=kind > 0)


def kindness(boxes: Tensor, logits: Tensor, ease: float = 0.0) -> float:
    """How much more kindly a picture is judged whose best finds are only fairly alike.

    Individuals of a kind differ, copies do not, and the three best finds tell. Nothing is added
    where there are no three good ones: an object without its like is no reason to be kind. With
    `ease` they need be less good, and more is added.

    Args:
        boxes: (N, 4).
        logits: (N,), of finds other than the examples; of an example, what the others say of it;
            -inf, if there is no other.
        ease: by how much finds may be less alike than usual; less than 0, if they have to be more.
    """
    others = logits[nms(boxes, logits, _SAME)[:_TELLING]]
    if len(others) < _TELLING:
        return 0.0
    likeness = others.mean().item()
    fair, modest = _KINDNESS * (_ALIKE - likeness), _ONSET * (likeness + ease - _UNLIKE)
    kind = min(max(min(fair, modest), 0.0), _KINDEST + max(ease, 0.0))
    return kind if others[0] + ease > _SURE else 0.0


def parting(boxes: Tensor, logits: Tensor, expected: float, some: bool = False) -> float:
    """The logit at which a picture's finds part into the like and the unlike.

    That is in the middle of a wide gap close to where it is expected: the product of the gap's
    width and of a Gaussian round `expected` is the greatest there. The weakest of many lies lower
    than the weakest of few, so the end of a crowd, of more than ten sure finds, is expected lower:
    by the logarithm of their number, but not more than 3.5 standard deviations below their mean.

    Args:
        boxes: (N, 4), of finds that are not examples themselves.
        logits: (N,).
        expected: the cut, if there were no gaps.
        some: something is meant, so the cut is not above all finds.
    """
    crowd = _distinct(boxes, logits, _SURE)
    if len(crowd) > _CROWD:
        lowest = (crowd.mean() - _STRAYED * crowd.std()).item()
        tail = expected - _TAIL * math.log(len(crowd) / _CROWD)
        expected = min(expected, max(tail, lowest))
    low, high = expected - _REACH, expected + _REACH
    found = _distinct(boxes, logits, low).clamp(max=high).tolist()
    best, cut = 0.0, expected
    for upper, lower in pairwise([*found, low] if some and found else [high, *found, low]):
        middle = (upper + lower) / 2
        gap = (upper - lower) * math.exp(-(((middle - expected) / _PARTING) ** 2) / 2)
        if gap > best:
            best, cut = gap, middle
    return cut


def _distinct(boxes: Tensor, logits: Tensor, least: float) -> Tensor:
    """Logits above `least` without duplicates, on the CPU, highest first."""
    near = logits > least
    boxes, logits = boxes[near].cpu(), logits[near].cpu()
    return logits[suppress(boxes, logits, _SAME)]
