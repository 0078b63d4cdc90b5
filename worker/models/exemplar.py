"""Visual prompting: find everything that looks like the boxes a user drew.

No training and no labels: frozen features, whitened by the picture's own statistics, are compared
with those of the examples. It finds visually similar objects, not the members of a class.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import nms

from jobs.contract import MAIN_IMAGE, Annotation, Box, BoxPrompt, ModelInfo, Request
from worker.models import efficientnet_lite
from worker.models.base import Pixels
from worker.models.matching import Matcher, Template
from worker.models.regions import FeatureMap, Whitening, suppress
from worker.models.views import Example, View, clip, plan

_NEGATIVE, _NEGATIVE_MARGIN = 2.0, 0.05  # penalty for being more like a negative example
_ACROSS_LABELS = 0.6  # IoU from which two labels claim one object
_GIVEN = 2.0  # raw score of a prompted box itself, above any find's
_SHARE, _DOUBT, _TRUST, _SLOPE = 0.45, 0.33, 0.4, 2.7  # of `calibrate`


@dataclass(frozen=True)
class Item:
    """A request, ready for the device.

    Attributes:
        width, height: of the image, in pixels.
        labels: distinct labels of the positive prompts, in their order.
        pyramid: views of the image by level.
        examples: the distinct prompts.
    """

    request: Request
    width: int
    height: int
    labels: list[str]
    pyramid: dict[int, View]
    examples: list[Example]


@dataclass(frozen=True)
class Candidates:
    """Boxes before suppression and threshold, on the CPU.

    Attributes:
        boxes: (N, 4) float, in pixels of the image; may reach outside.
        scores: (N,) float, raw, at most 1; comparable within one request only.
        labels: (N,) int64, places in `Item.labels`.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Exemplar:
    """Implements `worker.models.base.Model` on any device that torch has.

    Args:
        device: where `forward` runs.

    Raises:
        FileNotFoundError: the package with the weights is not installed.
        ValueError: its weights are not the published ones.
    """

    info = ModelInfo(
        name="exemplar",
        version="1",
        labels=[],
        tasks=["detect"],
        prompts=["box"],
        outputs=["box"],
        min_score=0.5,
        nms_iou=0.4,
        licence="Apache-2.0 (EfficientNet-Lite0 weights, trained on ImageNet)",
    )
    max_batch = 1  # one pyramid keeps a device busy; nothing is shared between images

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.backbone = efficientnet_lite.load().to(device)

    def prepare(self, images: Mapping[str, Pixels], request: Request) -> Item:
        """Choose the working scales and resize.

        Raises:
            Problem: 422, if a prompt lies on an image that was not sent or none is positive.
        """
        height, width = images[MAIN_IMAGE].shape[:2]
        prompts = [p for p in dict.fromkeys(request.prompts) if isinstance(p, BoxPrompt)]
        pyramid, examples = plan(images, prompts)
        labels = list(dict.fromkeys(p.label for p in prompts if not p.negative))
        return Item(request, width, height, labels, pyramid, examples)

    def bucket(self, item: Item) -> Hashable:
        """Shapes of the pyramid's views."""
        return tuple(view.pixels.shape[2:] for view in item.pyramid.values())

    def forward(self, items: list[Item]) -> list[Candidates]:
        """Match every example on every level it asks for, one item after the other."""
        with torch.inference_mode():
            return [self._match(item) for item in items]

    def finish(self, raw: Candidates, item: Item) -> list[Annotation]:
        """Suppress duplicates, calibrate, cut; a prompted box itself is a find of score 1.

        Each label is suppressed by itself (NMS and containment), then one against the other: an
        object that two labels claim goes to the one that fits better. What a caller asked for in
        `min_score`, `nms_iou` and `max_annotations` holds.
        """
        request = item.request
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
        calibrated = torch.empty_like(scores)
        for n in range(len(item.labels)):
            calibrated[labels == n] = calibrate(scores[labels == n])
        order = calibrated.argsort(descending=True, stable=True)
        order = order[calibrated[order] >= least][: request.max_annotations]
        return [
            Annotation(
                item.labels[int(labels[n])], round(calibrated[n].item(), 4), _rounded(boxes[n])
            )
            for n in order.tolist()
        ]

    def _match(self, item: Item) -> Candidates:
        stages = {n: self._stages(view) for n, view in item.pyramid.items()}
        whitening = Whitening.fit(list(stages.values()))
        levels = {n: FeatureMap(whitening.apply(maps)) for n, maps in stages.items()}
        shown: list[tuple[Example, Template]] = []
        against: list[Template] = []
        for example in item.examples:
            view = FeatureMap(whitening.apply(self._stages(example.view)))
            box, bounds = example.box.to(self.device), example.bounds.to(self.device)
            template = Template.of(view, box, bounds)
            if example.prompt.negative:
                against.append(template)
            else:
                shown.append((example, template))
        boxes, scores, labels = [], [], []
        for n, level in levels.items():
            negatives = [Matcher(template, level) for template in against]
            for example, template in shown:
                if n not in example.levels:
                    continue
                matcher = Matcher(template, level)
                found, score = matcher.refine(matcher.propose())
                if negatives:
                    unlike = torch.stack([one.similarity(found) for one in negatives]).amax(0)
                    excess = unlike - matcher.similarity(found) + _NEGATIVE_MARGIN
                    score = score - _NEGATIVE * excess.clamp(min=0)
                boxes.append(item.pyramid[n].outward(found).cpu())
                scores.append(score.cpu())
                labels.append(torch.full((len(found),), item.labels.index(example.prompt.label)))
        return Candidates(torch.cat(boxes), torch.cat(scores), torch.cat(labels))

    def _stages(self, view: View) -> tuple[Tensor, ...]:
        maps: tuple[Tensor, ...] = self.backbone(view.pixels.to(self.device))
        return maps


def calibrate(raw: Tensor) -> Tensor:
    """Scores of one label's finds on 0..1, where .5 is the best cut in most pictures.

    Raw scores depend on the picture, so a find is judged by the mean of its three best finds, the
    prompted boxes apart. Where that is high there is more of the kind, and the cut is ``_SHARE`` of
    it. Where it is low the best are probably look-alikes, and the cut is ``_DOUBT`` less
    ``_TRUST`` of it, which is more.
    The cut becomes .5, twice the cut .94; order is kept. Prompted boxes, of the raw score
    ``_GIVEN``, become 1.

    Args:
        raw: (N,) after suppression, in any order.
    """
    given = raw >= _GIVEN
    top = raw[~given].sort(descending=True).values[:3]
    best = max(0.0, top.mean().item()) if len(top) else 0.0
    cut = max(_SHARE * best, _DOUBT - _TRUST * best)
    return torch.where(given, 1.0, torch.sigmoid(_SLOPE * (raw / cut - 1)))


def _with_given(raw: Candidates, item: Item) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates cut at the image's edges, after the prompted boxes on the image itself."""
    size = (item.height, item.width)
    given: dict[Box, int] = {}  # of labels that claim the same box, the first has it
    for example in item.examples:
        prompt = example.prompt
        if prompt.image == MAIN_IMAGE and not prompt.negative:
            given.setdefault(clip(prompt.box, size), item.labels.index(prompt.label))
    edge = torch.tensor([item.width, item.height] * 2, dtype=torch.float32)
    boxes = torch.minimum(raw.boxes.clamp(min=0), edge)
    real = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1) & raw.scores.isfinite()
    return (
        torch.cat([torch.tensor(list(given), dtype=torch.float32).view(-1, 4), boxes[real]]),
        torch.cat([torch.full((len(given),), _GIVEN), raw.scores[real]]),
        torch.cat([torch.tensor(list(given.values()), dtype=torch.int64), raw.labels[real]]),
    )


def _rounded(box: Tensor) -> Box:
    x0, y0, x1, y1 = (round(side, 2) for side in box.tolist())
    return x0, y0, x1, y1
