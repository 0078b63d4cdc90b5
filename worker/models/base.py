"""What a model is to the rest of the worker."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from jobs.contract import Annotation, ModelInfo, Request

Pixels = NDArray[np.uint8]  # (height, width, 3), RGB, as displayed
Item = TypeVar("Item")
Raw = TypeVar("Raw")


@dataclass(frozen=True)
class Finds:
    """What ``task: "detect"`` answers.

    Attributes:
        annotations: best score first.
        suggested_min_score: a threshold that parts this picture's finds well, if the model has one.
    """

    annotations: list[Annotation]
    suggested_min_score: float | None = None


@dataclass(frozen=True)
class Embedding:
    """What ``task: "embed"`` answers: a portable prompt, base64."""

    text: str


class Model(Protocol[Item, Raw]):
    """Three stages that run on different threads, so that they overlap across jobs.

    Attributes:
        info: name, version, labels, prompts, outputs and licence, as shown to users.
        max_batch: most items that `forward` gains from on this device.
    """

    info: ModelInfo
    max_batch: int

    def prepare(self, images: Mapping[str, Pixels], request: Request) -> Item:
        """Turn decoded images into what `forward` takes. Runs on a decoding thread.

        Args:
            images: pixels by part name; ``MAIN_IMAGE`` is the one to annotate. The request was
                checked against `info` and its boxes against the images before.
            request: what was asked.

        Raises:
            Problem: 422, when this request cannot be served on these images.
        """

    def bucket(self, item: Item) -> Hashable:
        """Items of one bucket may share a batch."""

    def forward(self, items: list[Item]) -> list[Raw]:
        """Run the network on one batch of one bucket. Runs on the device's only thread.

        A result must not depend on the other items of its batch.
        """

    def finish(self, raw: Raw, item: Item) -> Finds | Embedding:
        """Turn the network's output into what the request's task answers, within its `min_score`,
        `nms_iou`, `max_annotations` and `outputs`. Runs on a decoding thread.
        """


@runtime_checkable
class Reducing(Protocol):
    """A model that can do with fewer pixels than an image has, which saves decoding them."""

    def reduction(self, height: int, width: int) -> int:
        """By which common divisor, 1, 2, 4 or 8, an image's sides may be reduced."""

    def prepare(self, images: Mapping[str, Pixels], request: Request, reduction: int = 1) -> Any:
        """The same as `Model.prepare`, of a main image that was reduced."""
