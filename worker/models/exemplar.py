"""Visual prompting: find everything that looks like the examples a user shows.

No labels and no training by the user: frozen features (`efficientnet_lite`), read through a small
learned head (`head`), on views of the picture at the right scales (`views`); `search` finds the
examples' like there. The box that a point means is drawn by `extent`. It finds visually similar
objects, not the members of a class.
"""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
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
from worker.models.head import Maps, Thing, look
from worker.models.lockstep import Steps, by_shape, together
from worker.models.outline import outline
from worker.models.overlap import nms
from worker.models.regions import Whitening, suppress
from worker.models.search import Example, Field, Search, Shown
from worker.models.views import EXAMPLE, View, Wanted, clip, cut, plan, tiles, turn

_BATCH = 8  # images, and views of one shape, that a GPU takes at a time; one keeps a CPU core busy
_TURNS = range(1, 8)  # eighths; an embedding has the quarters only, which keeps it small
_MOST_TURNED = 4  # examples of a label; more show the angles themselves
_SLIMMEST = 16.0  # times as long as wide: a slimmer one aslant would need a large view for little
_SHARPNESS = 2.0  # what one more logit is worth
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
        version="10",
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
        embedding, wished = item.request.task == "embed", item.request.turned
        turns = _turns(examples, item.request)
        read = yield from _cut_out(images, examples, turns, embedding)
        if embedding:
            kept = [
                _remember(images, one, [read[n, t] for t in (0, *turns[n])])
                for n, one in enumerate(examples)
            ]
            empty = torch.empty(0)
            return Candidates(empty.view(0, 4), empty, empty.long(), {}, pack(kept, self.head_id))
        width, height = item.size
        pyramid = plan(width, height, [_wanted(images, one) for one in examples])
        views = [
            (level, view)
            for level, scale in pyramid.scales.items()
            for view in tiles(images[MAIN_IMAGE], scale)
        ]
        maps = yield [view for _, view in views]
        fields = [Field(*view, each) for view, each in zip(views, maps, strict=True)]
        whitening = Whitening.fit([field.maps.coarse for field in fields])
        shown = []
        for n, one in enumerate(examples):
            levels = pyramid.searched[n]
            thing = read.get((n, 0)) or _thing(
                one, [f for f in fields if f.level == pyramid.own[n]]
            )
            coarsely = {level: sizes[::2] for level, sizes in levels.items()}
            turned = tuple(
                Shown.of(one.turned(t), read[n, t], coarsely) for t in turns[n] if (n, t) in read
            )
            shown.append(Shown.of(one, thing, levels, turned, wished))
        for field in fields:
            field.whiten(whitening)
        search = Search(self.head, fields, whitening)
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


def _turns(examples: list[Example], request: Request) -> list[Sequence[int]]:
    """The eighths of a turn after which each example is looked at, too.

    Those that are not wished are looked at, too, where something is searched for that must not be
    taken for them.
    """
    akin = Counter((one.label, one.negative) for one in examples)
    rivals = request.task != "embed"
    turns: list[Sequence[int]] = []
    for one in examples:
        looked_at = request.turned or (rivals and not one.negative)
        if not looked_at or akin[one.label, one.negative] > _MOST_TURNED:
            turns.append(())
        elif rivals and one.slimness <= _SLIMMEST:
            turns.append(_TURNS)
        else:
            turns.append(_TURNS[1::2])
    return turns


def _cut_out(
    images: dict[str, Tensor], examples: list[Example], turns: list[Sequence[int]], all_: bool
) -> Steps[dict[tuple[int, int], Thing]]:
    """Examples after turns, by place and eighths: as they were kept, or cut out and read at
    their working scale. Those of the main image that are not turned are left out unless `all_`.
    """
    device = images[MAIN_IMAGE].device
    read = {
        (n, t): pose.to(device)
        for n, one in enumerate(examples)
        if one.remembered
        for t, pose in zip(range(0, 8, 2), one.remembered.poses, strict=False)
    }
    poses = [
        (n, t)
        for n, one in enumerate(examples)
        if not one.remembered
        for t in (0, *turns[n])
        if t or all_ or one.image != MAIN_IMAGE
    ]
    whole = {}
    for n in dict.fromkeys(n for n, _ in poses):
        one = examples[n]
        whole[n] = cut(images[str(one.image)], one.box, min(3.0, EXAMPLE / one.size))
    cuts = [turn(*whole[n], t) for n, t in poses]
    maps = yield [view for view, _ in cuts]
    found = [look(each, box) for each, (_, box) in zip(maps, cuts, strict=True)]
    return read | dict(zip(poses, found, strict=True))


def _wanted(images: dict[str, Tensor], one: Example) -> Wanted:
    """The sizes that an example's like may have: its own, or of the same share of the image."""
    sizes: tuple[float, ...] = (one.size,)
    if one.remembered:
        sizes = (one.size, one.remembered.share * _edge(images[MAIN_IMAGE]))
    elif one.image != MAIN_IMAGE:
        share = one.size / _edge(images[str(one.image)])
        sizes = (one.size, share * _edge(images[MAIN_IMAGE]))
    return Wanted(sizes, one.image == MAIN_IMAGE, one.negative)


def _edge(image: Tensor) -> float:
    """Root of the area of a (3, H, W) image."""
    return math.sqrt(image.shape[1] * image.shape[2])


def _thing(one: Example, fields: list[Field]) -> Thing:
    """What is to be seen of an example of the main image, on the field that shows most of it."""
    box = torch.tensor(one.box, dtype=torch.float32, device=fields[0].maps.coarse.device)
    field = max(fields, key=lambda field: field.view.holds(box))
    return look(field.maps, field.view.inward(box[None]))


def _remember(images: dict[str, Tensor], one: Example, poses: list[Thing]) -> Remembered:
    x0, y0, x1, y1 = one.box
    share = one.size / _edge(images[str(one.image)])
    return Remembered(tuple(poses), x1 - x0, y1 - y0, share)


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
