"""A model without weights, so that tests of the service do not wait for a network."""

import os
import time
from collections.abc import Hashable, Mapping
from typing import NamedTuple

from jobs.contract import Annotation, Box, BoxPrompt, ModelInfo, Request
from worker.models.base import Pixels


class Shown(NamedTuple):
    boxes: list[tuple[str, Box]]
    shape: tuple[int, int]


class Echo:
    """Finds exactly what it is shown. The label decides on accidents:

    ``brief`` takes 50 ms, ``slow`` half a second, ``wedged`` for ever; ``broken`` raises,
    ``deadly`` ends the process.
    """

    info = ModelInfo(
        name="exemplar",
        version="echo",
        labels=[],
        tasks=["detect"],
        prompts=["box"],
        outputs=["box"],
        min_score=0.5,
        nms_iou=0.5,
        licence="none",
    )
    max_batch = 4

    def prepare(self, images: Mapping[str, Pixels], request: Request) -> Shown:
        boxes = [(p.label, p.box) for p in request.prompts if isinstance(p, BoxPrompt)]
        height, width = images["image"].shape[:2]
        return Shown(boxes, (height, width))

    def bucket(self, item: Shown) -> Hashable:
        return item.shape

    def forward(self, items: list[Shown]) -> list[Shown]:
        labels = {label for item in items for label, _ in item.boxes}
        if "broken" in labels:
            raise RuntimeError("this message must not reach a log: secret-in-exception")
        if "deadly" in labels:
            os._exit(1)
        if "wedged" in labels:
            time.sleep(3600)
        if "brief" in labels:
            time.sleep(0.05)
        if "slow" in labels:
            time.sleep(0.5)
        return items

    def finish(self, raw: Shown, item: Shown) -> list[Annotation]:
        return [Annotation(label, 1.0, box) for label, box in raw.boxes]
