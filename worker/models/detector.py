"""One torchvision detector behind the worker's three stages."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks
from torchvision.ops import batched_nms

from jobs.contract import MAIN_IMAGE, Annotation, Mask, ModelInfo, Request
from jobs.problems import unprocessable
from worker.engine import Run, Tuner
from worker.models import rle
from worker.models.base import Finds, Pixels
from worker.models.families import Detections, family_of
from worker.models.transfer import Uploaded, Uploads, fetch

MASK_THRESHOLD = 0.5  # of a pixel's probability, as in torchvision's own evaluation
KEYPOINT_THRESHOLD = 0.0  # of a keypoint's heatmap logit; torchvision draws the same line


_REDUCTIONS = (8, 4, 2)  # that libjpeg makes of a block of 8 x 8 by a smaller transform
_SPARE = 4  # pixels a side that stay for each one of the input, so that the model sees no blur


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image as the network takes it."""

    image: Uploaded  # (3, height, width), resized, padded; float32 if it is normalised too
    size: tuple[int, int]  # height and width without the padding
    image_size: tuple[int, int]  # height and width of the image as displayed
    request: Request


class TorchvisionDetector:
    """A `Model` for every network of ``torchvision.models.detection``.

    The network's own limits come first and a request can only narrow them. As torchvision sets
    them: scores above 0.05 (R-CNN, RetinaNet), 0.2 (FCOS), 0.01 (SSD) and 0.001 (SSDlite), at most
    100 finds (R-CNN, FCOS), 200 (SSD) or 300, all after suppression at ``info.nms_iou``.

    torchvision makes floats of the whole image and resizes those. By default the image is resized
    as it is, in 8 bits, and a JPEG may lose half of its pixels or more while it is decoded; what
    this does to the finds is in docs/performance.md.

    Args:
        network: torchvision's, evaluating, on `device`. It belongs to this object from now on.
        info: what users see.
        classes: labels by class number; None for classes that are never reported.
        device: where the network lies.
        exact: prepare images as torchvision does.
    """

    def __init__(
        self,
        network: Any,
        info: ModelInfo,
        classes: list[str | None],
        device: torch.device,
        *,
        exact: bool = False,
    ) -> None:
        self.info = info
        self.max_batch = largest_batch(device)
        self._network = network
        self._family = family_of(network)
        self._run: Run = self._family.core
        self._classes = classes
        self._reported = torch.tensor([label is not None for label in classes])
        self._device = device
        self._exact = exact
        self._transform = network.transform
        mean, std = (
            torch.tensor(values, device=device).view(3, 1, 1)
            for values in (network.transform.image_mean, network.transform.image_std)
        )
        self._gain, self._offset = 1 / (255 * std), -mean / std
        self._uploads = Uploads(device)
        self._batch: list[Prepared] = []
        self._roi_heads: Any = getattr(network, "roi_heads", None)
        if self._roi_heads is not None:
            self._pools = self._roi_heads.mask_roi_pool, self._roi_heads.keypoint_roi_pool
            self._all_detections = self._roi_heads.postprocess_detections
            self._roi_heads.postprocess_detections = self._wanted_detections

    def tune(self, tuner: Tuner) -> None:
        """Run the core on the fastest engine, with the batches that gain on it."""
        height, width = self._input_size(960, 1280)
        stride = self._transform.size_divisible
        shape = height + -height % stride, width + -width % stride
        noise = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(0))
        engine = tuner.fastest(self.info.name, self._family.core, noise.to(self._device))
        self._run, self.max_batch = engine.run, engine.max_batch

    def reduction(self, height: int, width: int) -> int:
        """Which part of its pixels an image may lose: the most that leaves
        `_SPARE` pixels a side for one of the input.

        Only divisors of both sides, as those of cameras' pictures are, so that a reduced pixel
        covers just as many of the image everywhere and boxes need no correction.
        """
        if self._exact:
            return 1
        rows, columns = self._input_size(height, width)
        return next(
            (
                by
                for by in _REDUCTIONS
                if not (height % by or width % by)
                and height >= by * _SPARE * rows
                and width >= by * _SPARE * columns
            ),
            1,
        )

    @torch.inference_mode()
    def prepare(
        self, images: Mapping[str, Pixels], request: Request, reduction: int = 1
    ) -> Prepared:
        """Resize and pad the main image; with `exact`, by the model's own transform.

        Raises:
            Problem: 422 ``image_too_narrow`` when resizing would leave less than a pixel.
        """
        pixels = images[MAIN_IMAGE]
        height, width = (side * reduction for side in pixels.shape[:2])
        self._check_shape(height, width)
        if self._exact:
            floats = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div_(255)
            batch, _ = self._transform([floats])
            image = self._uploads.send(batch.tensors[0])
            return Prepared(image, batch.image_sizes[0], (height, width), request)
        rows, columns = self._input_size(height, width)
        stride = self._transform.size_divisible
        padded = np.zeros(
            (-(-rows // stride) * stride, -(-columns // stride) * stride, 3), np.uint8
        )
        # OpenCV's bilinear is torch's on 8 bits, bit for bit, in a third of the time
        padded[:rows, :columns] = cv2.resize(pixels, (columns, rows))
        image = self._uploads.send(torch.from_numpy(padded).permute(2, 0, 1))
        return Prepared(image, (rows, columns), (height, width), request)

    def _input_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to which the model's transform resizes."""
        if self._transform.fixed_size is not None:
            columns, rows = self._transform.fixed_size
            return rows, columns
        scale = min(
            self._transform.min_size[-1] / min(height, width),
            self._transform.max_size / max(height, width),
        )
        return math.floor(height * scale), math.floor(width * scale)

    def _check_shape(self, height: int, width: int) -> None:
        if self._transform.fixed_size is not None:
            return
        short, long = sorted((height, width))
        limit = self._transform.max_size
        if short * min(self._transform.min_size[-1] / short, limit / long) < 1:
            raise unprocessable(
                "image_too_narrow",
                f"Model {self.info.name} takes images of up to {limit} : 1, this one has "
                f"{width} x {height} pixels. Crop it.",
            )

    def bucket(self, item: Prepared) -> Hashable:
        """Padded height and width, and which of the costly outputs are wanted."""
        return item.image.tensor.shape[1:], "mask" in item.request.outputs, _keypoints_wanted(item)

    @torch.inference_mode()
    def forward(self, items: list[Prepared]) -> list[Detections]:
        """Run the network.

        Returns:
            For each item tensors on the CPU, in pixels of the resized image: boxes (n, 4), scores
            (n), labels (n), and if wanted masks (n, 1, 28, 28) or keypoints (n, k, 3) with
            keypoints_scores (n, k).
        """
        self._batch = items
        if self._roi_heads is not None:
            self._leave_out_unwanted_heads(items[0])
        images = ImageList(self._normalised(items), [item.size for item in items])
        floor = min(self._min_score(item.request) for item in items)
        return fetch(self._family.detect(self._run(images.tensors), images, floor))

    def _normalised(self, items: list[Prepared]) -> Tensor:
        """The batch on the device: sent in 8 bits, made floats there; its padding is zeros."""
        batch = self._uploads.stack([item.image for item in items])
        if batch.is_floating_point():
            return batch
        batch = batch.float().mul_(self._gain).add_(self._offset)
        for image, item in zip(batch, items, strict=True):
            rows, columns = item.size
            image[:, rows:] = 0
            image[:, :, columns:] = 0
        return batch

    def _leave_out_unwanted_heads(self, item: Prepared) -> None:
        masks, keypoints = self._pools
        self._roi_heads.mask_roi_pool = masks if "mask" in item.request.outputs else None
        self._roi_heads.keypoint_roi_pool = keypoints if _keypoints_wanted(item) else None

    def _wanted_detections(self, *arguments: Any) -> tuple[list[Tensor], ...]:
        """Stands in for ``RoIHeads.postprocess_detections``, before the mask and keypoint heads.

        They work box by box, so boxes that `finish` would drop need not go through them.
        """
        boxes, scores, labels = self._all_detections(*arguments)
        for i, item in enumerate(self._batch):
            keep = self._wanted(boxes[i], scores[i], labels[i], item.request)
            boxes[i], scores[i], labels[i] = boxes[i][keep], scores[i][keep], labels[i][keep]
        return boxes, scores, labels

    def _wanted(self, boxes: Tensor, scores: Tensor, labels: Tensor, request: Request) -> Tensor:
        """Indices of what the request leaves, best score first. Applied twice, it leaves the same.

        Boxes without an area and classes without a label are dropped. Overlap does not depend on
        the scale of either axis, so it does not matter that the boxes lie in the resized image.
        """
        keep = (scores >= self._min_score(request)) & self._reported.to(labels.device)[labels]
        keep &= (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        order = torch.argsort(scores, descending=True, stable=True)
        order = order[keep[order]]
        if request.nms_iou is not None and request.nms_iou < self.info.nms_iou:
            order = order[batched_nms(boxes[order], scores[order], labels[order], request.nms_iou)]
        return order[: request.max_annotations]

    def _min_score(self, request: Request) -> float:
        return self.info.min_score if request.min_score is None else request.min_score

    @torch.inference_mode()
    def finish(self, raw: Detections, item: Prepared) -> Finds:
        """Choose what was asked for and bring it to pixels of the image.

        A mask holds the pixels of a probability above 0.5. A keypoint is visible (2) when its
        heatmap score is above 0, else it is COCO's "not labelled": 0, 0, 0.
        """
        keep = self._wanted(raw["boxes"], raw["scores"], raw["labels"], item.request)
        found = {key: values[keep] for key, values in raw.items()}
        masks = found.pop("masks", None)  # pasted one by one: all at once would fill the memory
        self._transform.postprocess([found], [item.size], [item.image_size])
        height, width = item.image_size
        boxes = found["boxes"].clamp(min=torch.zeros(4), max=torch.tensor([width, height] * 2))
        annotations = []
        for index, (box, score, label) in enumerate(
            zip(boxes.tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True)
        ):
            mask = keypoints = None
            if masks is not None:
                mask = _paste(masks[index], found["boxes"][index], item.image_size)
            if "keypoints" in found:
                keypoints = _visible(found["keypoints"][index], found["keypoints_scores"][index])
            annotations.append(
                Annotation(self._classes[label] or "", score, tuple(box), mask, keypoints)
            )
        return Finds(annotations)


def largest_batch(device: torch.device) -> int:
    """Larger ones gain nothing on a CPU, whose cache they leave."""
    return 4 if device.type == "cpu" else 16


def _keypoints_wanted(item: Prepared) -> bool:
    return "keypoints" in item.request.outputs


def _paste(probability: Tensor, box: Tensor, size: tuple[int, int]) -> Mask:
    """Encode one mask (1, m, m) laid over its box, as torchvision pastes it into the image.

    Only the box is filled: the image may have millions of pixels, a hundred times over.
    """
    padded, scale = expand_masks(probability[None], padding=1)
    x0, y0, x1, y1 = expand_boxes(box[None], scale).to(torch.int64)[0].tolist()
    shape = max(y1 - y0 + 1, 1), max(x1 - x0 + 1, 1)
    filled = interpolate(padded, size=shape, mode="bilinear", align_corners=False)[0, 0]
    top, left = max(y0, 0), max(x0, 0)
    window = filled[top - y0 : max(size[0] - y0, 0), left - x0 : max(size[1] - x0, 0)]
    mask = (window > MASK_THRESHOLD).numpy()
    return Mask(size, rle.encode(mask, top=top, left=left, size=size))


def _visible(keypoints: Tensor, scores: Tensor) -> list[tuple[float, float, int]]:
    return [
        (x, y, 2) if score > KEYPOINT_THRESHOLD else (0.0, 0.0, 0)
        for (x, y, _), score in zip(keypoints.tolist(), scores.tolist(), strict=True)
    ]
