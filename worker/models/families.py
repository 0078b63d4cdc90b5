"""torchvision's families of detectors, each cut in two.

`core` is the network up to plain tensors, where nearly all of the time goes and which an engine may
compile. The rest is `detect`: anchors, thresholds, suppression. Its finds are torchvision's own.

| family | core | detect |
| --- | --- | --- |
| SSD, SSDlite | backbone and head | one threshold, one suppression for all classes |
| RetinaNet, FCOS | backbone and head | torchvision's |
| Faster, Mask, Keypoint R-CNN | backbone | torchvision's: proposals and the heads on each |
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import batched_nms, clip_boxes_to_image

Detections = dict[str, Tensor]

_ANCHORS_KEPT = 8  # padded shapes; those of a large image are megabytes


class Family(Protocol):
    """What is common to the families.

    Attributes:
        core: normalised images (N, 3, H, W) to the tensors that `detect` takes.
    """

    core: nn.Module

    def detect(
        self, outputs: Sequence[Tensor], images: ImageList, floor: float
    ) -> list[Detections]:
        """Finds of each image, best score first, in pixels of the resized image.

        Args:
            outputs: of `core`.
            images: what `core` was given, with the sizes without padding.
            floor: scores below it are not wanted. What is above is not affected by them, because
                only a better box suppresses another one.
        """


def family_of(network: Any) -> Family:
    """Cut one of torchvision's networks in two. The parts share its weights."""
    if isinstance(network, SSD):
        return _Ssd(network, ("bbox_regression", "cls_logits"))
    if isinstance(network, RetinaNet):
        return _Dense(network, ("cls_logits", "bbox_regression"))
    if isinstance(network, FCOS):
        return _Dense(network, ("cls_logits", "bbox_regression", "bbox_ctrness"))
    return _Rcnn(network)


class _HeadCore(nn.Module):
    """Backbone and head: the head's outputs, then zeros of each map's size.

    A map's own values are nobody's: in a small one, with most of it cut off at 0, rounding is large
    beside them, and an engine would be refused for it.
    """

    def __init__(self, network: Any, keys: tuple[str, ...]) -> None:
        super().__init__()
        self.backbone, self.head, self.keys = network.backbone, network.head, keys

    def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        maps = list(self.backbone(batch).values())
        outputs = self.head(maps)
        sizes = (torch.zeros_like(level[:1, :1]) for level in maps)
        return (*(outputs[key] for key in self.keys), *sizes)


class _Dense:
    """Families with one score and one box an anchor."""

    def __init__(self, network: Any, keys: tuple[str, ...]) -> None:
        self.core: nn.Module = _HeadCore(network, keys)
        self._network = network
        self._keys = keys
        self._own_floor: float = network.score_thresh
        self._kept: dict[tuple[int, ...], Tensor] = {}

    def detect(
        self, outputs: Sequence[Tensor], images: ImageList, floor: float
    ) -> list[Detections]:
        heads, maps = outputs[: len(self._keys)], outputs[len(self._keys) :]
        anchors = self._anchors(images, maps)
        self._network.score_thresh = max(self._own_floor, _below(floor))
        return self._choose(dict(zip(self._keys, heads, strict=True)), anchors, maps, images)

    def _anchors(self, images: ImageList, maps: Sequence[Tensor]) -> Tensor:
        """(A, 4), the same for all images of one padded shape."""
        shape = tuple(images.tensors.shape[-2:])
        if shape not in self._kept:
            if len(self._kept) == _ANCHORS_KEPT:
                self._kept.clear()
            one = ImageList(images.tensors[:1], images.image_sizes[:1])
            self._kept[shape] = self._network.anchor_generator(one, list(maps))[0]
        return self._kept[shape]

    def _choose(
        self, heads: Detections, anchors: Tensor, maps: Sequence[Tensor], images: ImageList
    ) -> list[Detections]:
        cells = [level.shape[-2] * level.shape[-1] for level in maps]
        each = len(anchors) // sum(cells)
        levels = [cell * each for cell in cells]
        found: list[Detections] = self._network.postprocess_detections(
            {key: list(torch.split(values, levels, 1)) for key, values in heads.items()},
            [list(torch.split(anchors, levels))] * len(images.image_sizes),
            images.image_sizes,
        )
        return found


class _Ssd(_Dense):
    """torchvision goes class by class, 90 times; here all go at once, with the same outcome."""

    def _choose(
        self, heads: Detections, anchors: Tensor, maps: Sequence[Tensor], images: ImageList
    ) -> list[Detections]:
        every = heads["cls_logits"].softmax(-1)[..., 1:]  # without the background
        return [
            self._of_image(scores, offsets, anchors, size)
            for scores, offsets, size in zip(
                every, heads["bbox_regression"], images.image_sizes, strict=True
            )
        ]

    def _of_image(
        self, scores: Tensor, offsets: Tensor, anchors: Tensor, size: tuple[int, int]
    ) -> Detections:
        network = self._network
        anchor, label = (scores > network.score_thresh).nonzero().unbind(1)
        score, order = scores[anchor, label].sort(descending=True, stable=True)
        anchor, label = anchor[order], label[order]
        keep = _rank_in_class(label) < network.topk_candidates
        anchor, label, score = anchor[keep], label[keep], score[keep]
        boxes = network.box_coder.decode_single(offsets[anchor], anchors[anchor])
        boxes = clip_boxes_to_image(boxes, size)
        keep = batched_nms(boxes, score, label, network.nms_thresh)[: network.detections_per_img]
        return {"boxes": boxes[keep], "scores": score[keep], "labels": label[keep] + 1}


class _MapsCore(nn.Module):
    """The backbone's maps, finest first."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.backbone = network.backbone

    def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone(batch).values())


class _Rcnn:
    """Two stages: proposals, then heads that look at each of them."""

    def __init__(self, network: Any) -> None:
        self.core: nn.Module = _MapsCore(network)
        self._network = network
        self._own_floor: float = network.roi_heads.score_thresh

    def detect(
        self, outputs: Sequence[Tensor], images: ImageList, floor: float
    ) -> list[Detections]:
        names = [*map(str, range(len(outputs) - 1)), "pool"]  # as torchvision's pyramids have them
        maps = dict(zip(names, outputs, strict=True))
        self._network.roi_heads.score_thresh = max(self._own_floor, _below(floor))
        proposals, _ = self._network.rpn(images, maps)
        found: list[Detections]
        found, _ = self._network.roi_heads(maps, proposals, images.image_sizes)
        return found


def _below(floor: float) -> float:
    """The next smaller float32: torchvision keeps what is above its threshold, we what reaches."""
    return float(np.nextafter(np.float32(floor), np.float32(-1)))


def _rank_in_class(labels: Tensor) -> Tensor:
    """How many of the same label come before each of (n,) labels."""
    by_class = labels.argsort(stable=True)
    counts = labels.bincount()
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    ranks = torch.empty_like(labels)
    ranks[by_class] = torch.arange(len(labels), device=labels.device) - starts
    return ranks
