"""A model without weights, so that tests of the service do not wait for a network."""

import os
import time
from collections.abc import Hashable, Mapping
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from jobs.contract import Annotation, Box, BoxPrompt, EmbeddingPrompt, ModelInfo, Request
from jobs.problems import unprocessable
from worker.models.base import Embedding, Finds, Pixels


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

    def finish(self, raw: Shown, item: Shown) -> Finds:
        return Finds([Annotation(label, 1.0, box) for label, box in raw.boxes])


class Bright:
    """Finds the bright patches of an image, each with the label of the first positive prompt.

    It looks at the pixels, so results differ from image to image, and costs next to nothing. Its
    embeddings are a fixed text, and it knows no others.
    """

    embedding = "QnJpZ2h0"

    info = ModelInfo(
        name="exemplar",
        version="bright",
        labels=[],
        tasks=["detect", "embed"],
        prompts=["box", "point", "embedding"],
        outputs=["box"],
        min_score=0.5,
        nms_iou=0.5,
        licence="none",
    )
    max_batch = 4

    def prepare(self, images: Mapping[str, Pixels], request: Request) -> "Seen":
        for prompt in request.prompts:
            if isinstance(prompt, EmbeddingPrompt) and prompt.data != self.embedding:
                raise unprocessable("embedding_unknown", "This is not an embedding of mine.")
        labels = [prompt.label for prompt in request.prompts if not prompt.negative]
        return Seen(labels[0], images["image"][::8, ::8].max(2) > 200, request.task)

    def bucket(self, item: "Seen") -> Hashable:
        return item.task

    def forward(self, items: list["Seen"]) -> list["Seen"]:
        return items

    def finish(self, raw: "Seen", item: "Seen") -> Finds | Embedding:
        if item.task == "embed":
            return Embedding(self.embedding)
        columns = np.flatnonzero(np.diff(raw.bright.any(0), prepend=False, append=False))
        finds = []
        for x0, x1 in columns.reshape(-1, 2):
            rows = np.flatnonzero(raw.bright[:, x0:x1].any(1))
            score = float(raw.bright[rows[0] : rows[-1] + 1, x0:x1].mean())
            left, top, right, bottom = (float(8 * at) for at in (x0, rows[0], x1, rows[-1] + 1))
            finds.append(Annotation(raw.label, score, (left, top, right, bottom)))
        return Finds(sorted(finds, key=lambda find: (-find.score, find.box)))


class Patches(Bright):
    """The same as a model with a fixed label, which needs no prompt."""

    info = msgspec.structs.replace(Bright.info, labels=["patch"], prompts=[], tasks=["detect"])

    def prepare(self, images: Mapping[str, Pixels], request: Request) -> "Seen":
        return Seen("patch", images["image"][::8, ::8].max(2) > 200, request.task)


class Seen(NamedTuple):
    label: str
    bright: NDArray[np.bool_]
    task: str
