"""Visual prompting: find everything that looks like the examples a user shows.

No labels and no training by the user: frozen features (`efficientnet_lite`), read through a small
learned head (`head`), which compares an example with places that look promising (`proposals`) on
views of the picture at the right scales (`views`). The box that a point means is drawn by `extent`.
It finds visually similar objects, not the members of a class.
"""

import math
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jobs.contract import (
    MAIN_IMAGE,
    Annotation,
    Box,
    BoxPrompt,
    EmbeddingPrompt,
    Match,
    ModelInfo,
    PointPrompt,
    Request,
)
from jobs.problems import unprocessable
from worker.engine import Run, Tuner
from worker.models import efficientnet_lite, extent, head
from worker.models.base import Embedding, Finds, Pixels
from worker.models.embedding import Remembered, pack, unpack
from worker.models.head import Maps, Thing, look, move
from worker.models.lockstep import Steps, by_shape, together
from worker.models.outline import outline
from worker.models.overlap import box_iou, nms
from worker.models.proposals import Template, propose
from worker.models.regions import FeatureMap, Whitening, suppress
from worker.models.views import COARSER, EXAMPLE, OWN, View, Wanted, clip, cut, plan, quarter, tiles

_BATCH = 8  # images, and views of one shape, that a GPU takes at a time; one keeps a CPU core busy
_MOST_PROPOSED = 300  # of one example on one view
_SURELY_PROPOSED = 40
_PROMISING = 0.4  # share of the best proposals' score from which others are looked at, too
_EDGE = 1.25  # times the smallest size tried, or a share of the largest: there may be more beyond
_MOST_TURNED = 4  # examples of a label; more show the angles themselves
_LESS, _DOUBT = 0.8, 1.2  # of a quarter turn's proposals, times; of its verdicts, logits
_SECOND_ROUND = 1.5  # candidates for it, for each find that the first round expects
_MOVED_IOU = 0.75  # from which two candidates are one after the first round
_TELLING, _SAME = 3, 0.4  # finds that say how alike things are here; IoU that makes two one
_ALIKE, _KINDNESS, _KINDEST, _UNLIKE, _ONSET = 4.7, 0.9, 2.4, -0.5, 2.7  # see `kindness`
_RIVALRY = 4.0  # how fast a find is lost that is more like something else
_SUPPORTS, _SURE, _HOPELESS = 3, 0.5, -3.5  # of query expansion
_CUT, _SHARPNESS = 2.0, 2.0  # logit that becomes .5 if nothing else is known; one more's worth
_PARTING, _REACH = 1.4, 2.4  # sigma and half width of where finds may part, round what is expected
_TOLD, _LOOSER, _STRICTEST = 0.3, 0.3, 2.8  # how far the least alike examples tell where that is
_STRICTER: dict[Match, float] = {"strict": 0.6, "normal": 0.0, "kind": -0.8}
_ACROSS_LABELS = 0.6  # IoU from which two labels claim one object


@dataclass(frozen=True)
class Item:
    """A request, ready for the device.

    Attributes:
        images: (3, H, W) uint8 by part name.
        labels: distinct labels of the positive prompts, in their order.
        embedded: what each embedding prompt holds.
    """

    request: Request
    images: dict[str, Tensor]
    labels: list[str]
    embedded: dict[EmbeddingPrompt, list[Remembered]]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the main image."""
        height, width = self.images[MAIN_IMAGE].shape[1:]
        return width, height


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
    def aspect(self) -> float:
        return (self.box[2] - self.box[0]) / (self.box[3] - self.box[1])

    def turned(self, quarters: int) -> "Example":
        """The same after so many quarter turns, on no image."""
        width, height = self.box[2] - self.box[0], self.box[3] - self.box[1]
        if quarters % 2:
            width, height = height, width
        return Example(self.label, self.negative, None, (0, 0, width, height))


@dataclass(frozen=True)
class Candidates:
    """What the device found, on the CPU; for `task: "embed"` only the embedding.

    Attributes:
        boxes: (N, 4) float, in pixels of the image; may reach outside.
        logits: (N,) float, of being of the label's class.
        labels: (N,) int64, places in `Item.labels`.
        given: boxes of the prompts on the main image, with the place of their label.
        embedding: packed examples.
    """

    boxes: Tensor
    logits: Tensor
    labels: Tensor
    given: dict[Box, int]
    embedding: str = ""


class Exemplar:
    """Implements `worker.models.base.Model` on any device that torch has.

    Args:
        device: where `forward` runs.
        weights: of the head.

    Raises:
        FileNotFoundError: the package with the weights is not installed.
        ValueError: its weights are not the published ones.
    """

    info = ModelInfo(
        name="exemplar",
        version="7",
        labels=[],
        tasks=["detect", "embed"],
        prompts=["box", "point", "embedding"],
        outputs=["box", "mask"],
        min_score=0.5,
        nms_iou=0.4,
        licence="Apache-2.0 (EfficientNet-Lite2 weights, trained on ImageNet; Mayfly's own head)",
    )

    def __init__(self, device: torch.device, weights: Path = head.WEIGHTS) -> None:
        self.device = device
        self.max_batch = 1 if device.type == "cpu" else _BATCH
        self.backbone = efficientnet_lite.load().to(device)
        self.run: Run = self.backbone
        self.head, self.head_id = head.load(weights)
        self.head.to(device)
        self.extent = extent.load().to(device)

    def tune(self, tuner: Tuner) -> None:
        """Run the backbone on the fastest engine."""
        seed = torch.Generator().manual_seed(0)
        noise = torch.randint(256, (1, 3, 512, 512), generator=seed, dtype=torch.uint8)
        self.run = tuner.fastest(self.info.name, self.backbone, noise.to(self.device), 1).run

    def prepare(self, images: Mapping[str, Pixels], request: Request) -> Item:
        """Check what only this model knows, and lay the pixels out for the device.

        Raises:
            Problem: 422, if the prompts do not fit the task or one another.
        """
        for prompt in request.prompts:
            if isinstance(prompt, BoxPrompt | PointPrompt) and prompt.image not in images:
                raise unprocessable("image_missing", "A prompt names an image that was not sent.")
        labels = list(dict.fromkeys(p.label for p in request.prompts if not p.negative))
        if not labels:
            raise unprocessable("prompt_missing", "At least one prompt must not be negative.")
        embedded = {
            p: unpack(p.data, self.head_id)
            for p in request.prompts
            if isinstance(p, EmbeddingPrompt)
        }
        if request.task == "embed" and (
            embedded or len(labels) > 1 or any(p.negative for p in request.prompts)
        ):
            raise unprocessable(
                "embed_one_label",
                "An embedding is made of boxes or points of one label, none of them negative. "
                "Embed other labels and look-alikes by requests of their own.",
            )
        tensors = {name: _tensor(pixels) for name, pixels in images.items()}
        return Item(request, tensors, labels, embedded)

    def bucket(self, item: Item) -> Hashable:
        """All are of one kind, and none shares a batch."""
        return ()

    def forward(self, items: list[Item]) -> list[Candidates]:
        """Search each item's image for its examples' like.

        The items go step by step together, so that views of one shape share the backbone's batches.
        """
        with torch.inference_mode():
            return together([self._run(item) for item in items], self._embed)

    def _embed(self, views: list[View]) -> list[Maps]:
        found: dict[int, Maps] = {}
        for batch in by_shape(views, self.max_batch):
            maps = self.head.embedder(*self.run(torch.cat([views[n].pixels for n in batch])))
            for at, n in enumerate(batch):
                found[n] = Maps(maps.coarse[at : at + 1], maps.fine[at : at + 1])
        return [found[n] for n in range(len(views))]

    def _run(self, item: Item) -> Steps[Candidates]:
        images = {name: image.to(self.device) for name, image in item.images.items()}
        examples = yield from self._examples(item, images)
        if item.request.task == "embed":
            things = yield from _cut_out(images, [(one, 0) for one in examples])
            kept = [_remember(images, *each) for each in zip(examples, things, strict=True)]
            empty = torch.empty(0)
            return Candidates(empty.view(0, 4), empty, empty.long(), {}, pack(kept, self.head_id))
        width, height = item.size
        edge = (width * height) ** 0.5
        wanted = []
        for one in examples:
            sizes: tuple[float, ...] = (one.size,)
            if one.remembered:
                sizes = (one.size, one.remembered.share * edge)
            elif one.image != MAIN_IMAGE:
                _, high, wide = images[str(one.image)].shape
                sizes = (one.size, one.size * edge / (wide * high) ** 0.5)
            wanted.append(Wanted(sizes, one.image == MAIN_IMAGE, one.negative))
        pyramid = plan(width, height, wanted)
        views = [
            (level, view)
            for level, scale in pyramid.scales.items()
            for view in tiles(images[MAIN_IMAGE], scale)
        ]
        maps = yield [view for _, view in views]
        fields = [Field(*view, each) for view, each in zip(views, maps, strict=True)]
        akin = Counter((one.label, one.negative) for one in examples)
        poses = [
            (one, turns)
            for one in examples
            for turns in range(4)
            if not one.remembered
            and (
                akin[one.label, one.negative] <= _MOST_TURNED if turns else one.image != MAIN_IMAGE
            )
        ]
        read = dict(zip(poses, (yield from _cut_out(images, poses)), strict=True))
        whitening = Whitening.fit([field.maps.coarse for field in fields])
        shown = []
        for one, levels, own in zip(examples, pyramid.searched, pyramid.own, strict=True):
            thing = read.get((one, 0)) or self._thing(one, [f for f in fields if f.level == own])
            coarsely = {level: sizes[::2] for level, sizes in levels.items()}
            turned = tuple(
                Shown.of(one.turned(turns), read[one, turns], coarsely)
                for turns in (1, 2, 3)
                if (one, turns) in read
            )
            shown.append(Shown.of(one, thing, levels, turned))
        for field in fields:
            field.whiten(whitening)
        search = _Search(self.head, fields, whitening)
        found = [
            search.run(
                [s for s in shown if s.example.label == label and not s.example.negative],
                [s for s in shown if s.example.negative or s.example.label != label],
            )
            for label in item.labels
        ]
        given: dict[Box, int] = {}  # of labels that claim the same box, the first has it
        for one in examples:
            if one.image == MAIN_IMAGE and not one.negative:
                given.setdefault(one.box, item.labels.index(one.label))
        return Candidates(
            torch.cat([boxes for boxes, _ in found]).cpu(),
            torch.cat([logits for _, logits in found]).cpu(),
            torch.cat([torch.full((len(x),), n) for n, (_, x) in enumerate(found)]),
            given,
        )

    def _examples(self, item: Item, images: dict[str, Tensor]) -> Steps[list[Example]]:
        """The distinct prompts as examples, points with the extent that they seem to mean."""
        examples: list[Example] = []
        for prompt in dict.fromkeys(item.request.prompts):
            if isinstance(prompt, EmbeddingPrompt):
                examples += [
                    Example(prompt.label, prompt.negative, None, (0, 0, r.width, r.height), r)
                    for r in item.embedded[prompt]
                ]
            elif isinstance(prompt, BoxPrompt | PointPrompt):
                image = images[prompt.image]
                height, width = image.shape[1:]
                if isinstance(prompt, BoxPrompt):
                    box = clip(prompt.box, width, height)
                else:
                    meant = yield from extent.around(prompt.point, image, self.extent)
                    box = clip(meant, width, height)
                examples.append(Example(prompt.label, prompt.negative, prompt.image, box))
        return examples

    def _thing(self, one: Example, fields: list["Field"]) -> Thing:
        """What is remembered of an example: as it was kept, or read where it lies whole."""
        if one.remembered:
            thing = one.remembered.thing
            return Thing(thing.coarse.to(self.device), thing.fine.to(self.device))
        box = torch.tensor(one.box, dtype=torch.float32, device=self.device)
        field = max(fields, key=lambda field: field.view.holds(box))
        return look(field.maps, field.view.inward(box[None]))

    def finish(self, raw: Candidates, item: Item) -> Finds | Embedding:
        """Suppress duplicates, cut; a prompted box itself is a find of score 1.

        Each label is suppressed by itself (NMS and containment), then one against the other: an
        object that two labels claim goes to the one that fits better. What a caller asked for in
        `min_score`, `nms_iou` and `max_annotations` holds.
        """
        request = item.request
        if request.task == "embed":
            return Embedding(raw.embedding)
        iou = self.info.nms_iou if request.nms_iou is None else request.nms_iou
        least = self.info.min_score if request.min_score is None else request.min_score
        boxes, scores, labels = _with_given(raw, item)
        kept = torch.cat(
            [
                (mine := (labels == n).nonzero()[:, 0])[suppress(boxes[mine], scores[mine], iou)]
                for n in range(len(item.labels))
            ]
        )
        kept = kept[nms(boxes[kept], scores[kept], max(iou, _ACROSS_LABELS))]
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        order = scores.argsort(descending=True, stable=True)
        with_masks = "mask" in request.outputs
        image = item.images[MAIN_IMAGE].permute(1, 2, 0).numpy()
        suggested = suggest(scores)
        order = order[scores[order] >= least][: request.max_annotations]
        return Finds(
            [
                Annotation(
                    item.labels[int(labels[n])],
                    round(min(1.0, scores[n].item()), 4),
                    (box := _rounded(boxes[n])),
                    outline(image, box) if with_masks else None,
                )
                for n in order.tolist()
            ],
            suggested,
        )


def _cut_out(images: dict[str, Tensor], poses: list[tuple[Example, int]]) -> Steps[list[Thing]]:
    """Read examples where they lie, each at its working scale, after so many quarter turns."""
    cuts = [
        quarter(*cut(images[str(one.image)], one.box, min(3.0, EXAMPLE / one.size)), turns)
        for one, turns in poses
    ]
    maps = yield [view for view, _ in cuts]
    return [look(each, box) for each, (_, box) in zip(maps, cuts, strict=True)]


def _remember(images: dict[str, Tensor], one: Example, thing: Thing) -> Remembered:
    image = images[str(one.image)]
    x0, y0, x1, y1 = one.box
    share = one.size / (image.shape[1] * image.shape[2]) ** 0.5
    return Remembered(thing, x1 - x0, y1 - y0, share)


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
        turned: the same after quarter turns.
    """

    example: Example
    thing: Thing
    prompt: head.Prompt
    levels: dict[int, tuple[float, ...]]
    turned: tuple["Shown", ...] = ()

    @classmethod
    def of(
        cls,
        example: Example,
        thing: Thing,
        levels: dict[int, tuple[float, ...]],
        turned: tuple["Shown", ...] = (),
    ) -> "Shown":
        return cls(example, thing, head.Prompt.of(thing, example.aspect), levels, turned)


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


class _Search:
    """Looks for one label's like on all fields of an image."""

    def __init__(self, judge: head.Head, fields: list[Field], whitening: Whitening) -> None:
        self._head = judge
        self._fields = fields
        self._whitening = whitening

    def run(self, shown: list[Shown], against: list[Shown]) -> tuple[Tensor, Tensor]:
        """Find the like of `shown` that is not rather the like of `against`.

        Proposals are judged, moved, judged again and moved again. A sure find that is about as
        small or as large as was looked for proposes what is smaller or larger still, and examples
        propose what is like them after quarter turns. The surest finds serve as further examples
        (query expansion), which also finds what is like them only; and where even the best finds
        are only fairly like the example, all are judged more kindly.

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
        decided = self._decide(shown, boxes, places, things, every, lying)
        best = torch.maximum(every.amax(0), lying)
        for one in against:
            rivals, _ = self._judge([one, *one.turned], things)
            rivals[1:] -= _DOUBT
            decided = torch.minimum(decided, _RIVALRY * (best - rivals.amax(0)))
        return boxes, decided

    def _first_round(self, shown: list[Shown]) -> tuple[_Places, Tensor, Tensor]:
        """Places that the examples and their quarter turns propose, moved once; what these say of
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
        """Where to look, and (N,) which example wants to, or quarter turn of one."""
        boxes, fields, by = [], [], []
        for n, field in enumerate(self._fields):
            found: list[tuple[Tensor, Tensor, Tensor]] = []
            first = len(shown)  # of the quarter turns of `one`
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
        return Thing(
            torch.cat([part.coarse for part in parts])[back],
            torch.cat([part.fine for part in parts])[back],
        )

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
        things = Thing(
            torch.cat([one.thing.coarse for one in shown]),
            torch.cat([one.thing.fine for one in shown]),
        )
        alike = torch.stack([self._head.compare(one.prompt, things)[0] for one in shown])
        return alike.fill_diagonal_(math.inf)

    def _decide(
        self,
        shown: list[Shown],
        boxes: Tensor,
        places: _Places,
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
        supports = supports[nms(boxes[supports], logits[supports], 0.3)[:_SUPPORTS]]
        hopeful = (logits > _HOPELESS).nonzero()[:, 0]
        seen, kinship = things[hopeful], self._kinship(shown)
        speaks = kinship.sigmoid()
        votes, kin = list(every[:, hopeful]), list(speaks[:, best[hopeful]])
        for support in supports.tolist():
            side = places.boxes[support, 2:] - places.boxes[support, :2]
            one_more = things[slice(support, support + 1)]
            prompt = head.Prompt.of(one_more, float(side[0] / side[1]))
            vote, _ = self._head.compare(prompt, seen)
            votes.append(torch.where(hopeful == support, logits[hopeful], vote))
            kin.append(speaks[best[support]][best[hopeful]])
        # Each speaks as far as its example and that of the candidate are alike.
        weights = torch.stack(kin)
        decided[hopeful] = (weights * torch.stack(votes)).sum(0) / weights.sum(0)
        decided = torch.maximum(decided, lying)
        others = every.masked_fill(on, -math.inf).amax(0)
        others = torch.maximum(others, lying.masked_fill(on.any(0), -math.inf))
        expected = _CUT - kindness(boxes, others)
        if len(shown) > 1:
            told = (kinship + kinship.T).min().item() / 2 - _LOOSER
            expected += _TOLD * (min(max(told, 0.0), _STRICTEST) - expected)
        new = ~on.any(0)
        return decided - parting(boxes[new], decided[new], expected)


def kindness(boxes: Tensor, logits: Tensor) -> float:
    """How much more kindly a picture is judged whose best finds are only fairly alike.

    Individuals of a kind differ, copies do not, and the three best finds tell. Nothing is added
    where there are no three good ones: an object without its like is no reason to be kind.

    Args:
        boxes: (N, 4).
        logits: (N,), of finds other than the examples; of an example, what the others say of it;
            -inf, if there is no other.
    """
    others = logits[nms(boxes, logits, _SAME)[:_TELLING]]
    if len(others) < _TELLING:
        return 0.0
    likeness = others.mean().item()
    fair, modest = _KINDNESS * (_ALIKE - likeness), _ONSET * (likeness - _UNLIKE)
    return min(max(min(fair, modest), 0.0), _KINDEST) if others[0] > _SURE else 0.0


def parting(boxes: Tensor, logits: Tensor, expected: float) -> float:
    """The logit at which a picture's finds part into the like and the unlike.

    That is in the middle of a wide gap close to where it is expected: the product of the gap's
    width and of a Gaussian round `expected` is the greatest there.

    Args:
        boxes: (N, 4), of finds that are not examples themselves.
        logits: (N,).
        expected: the cut, if there were no gaps.
    """
    low, high = expected - _REACH, expected + _REACH
    near = logits > low
    boxes, logits = boxes[near].cpu(), logits[near].cpu()
    found = logits[suppress(boxes, logits, _SAME)].clamp(max=high).tolist()
    best, cut = 0.0, expected
    for upper, lower in pairwise([high, *found, low]):
        middle = (upper + lower) / 2
        gap = (upper - lower) * math.exp(-(((middle - expected) / _PARTING) ** 2) / 2)
        if gap > best:
            best, cut = gap, middle
    return cut


def suggest(scores: Tensor) -> float | None:
    """The score at the widest gap of (N,) finds' scores, between .2 and .85; None without finds."""
    ordered = torch.cat([scores[(scores > 0.05) & (scores <= 1)], torch.tensor([0.05])])
    if len(ordered) < 2:
        return None
    ordered = ordered.sort(descending=True).values
    middle, gap = (ordered[:-1] + ordered[1:]) / 2, ordered[:-1] - ordered[1:]
    gap = gap * (1 - (middle - 0.5).abs()) * ((middle >= 0.2) & (middle <= 0.85))
    best = int(gap.argmax())
    return round(middle[best].item(), 3) if gap[best] > 0 else None


def _tensor(pixels: Pixels) -> Tensor:
    """(3, H, W) of (H, W, 3), copied if the decoder's memory is not ours to write."""
    return torch.from_numpy(np.require(pixels, requirements="W")).permute(2, 0, 1)


def _with_given(raw: Candidates, item: Item) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes cut at the image's edges, scores and labels; the prompted boxes first, above 1."""
    width, height = item.size
    edge = torch.tensor([width, height] * 2, dtype=torch.float32)
    boxes = torch.minimum(raw.boxes.clamp(min=0), edge)
    real = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1) & raw.logits.isfinite()
    logits = raw.logits[real] - _STRICTER[item.request.match]
    scores = (_SHARPNESS * logits).sigmoid()
    return (
        torch.cat([torch.tensor(list(raw.given), dtype=torch.float32).view(-1, 4), boxes[real]]),
        torch.cat([torch.full((len(raw.given),), 2.0), scores]),
        torch.cat([torch.tensor(list(raw.given.values()), dtype=torch.int64), raw.labels[real]]),
    )


def _rounded(box: Tensor) -> Box:
    x0, y0, x1, y1 = (round(side, 2) for side in box.tolist())
    return x0, y0, x1, y1
