"""Worker processes as they are, round a model that only sleeps, or does nothing at all.

    python -m scripts.bench.stand_in SECONDS [WORKERS]

Images are not even decoded, so that what is measured is the service and nothing else. All workers
are forked from one process, because 64 of them would take a minute to start otherwise; it ends
when they have ended.
"""

import os
import signal
import sys
import time
from collections.abc import Hashable, Mapping
from types import FrameType
from typing import Any

import numpy as np

from jobs.contract import MAIN_IMAGE, ModelInfo, Request
from jobs.process import run
from worker import main, models, pipeline
from worker.decode import Decoded
from worker.models.base import Finds, Pixels

NAME = "sleeper"
_NO_PIXELS: Pixels = np.zeros((960, 1280, 3), np.uint8)


class Sleeper:
    """Keeps the device busy for so many seconds a batch, and finds nothing."""

    info = ModelInfo(
        name=NAME,
        version="1",
        labels=[],
        tasks=["detect"],
        prompts=[],
        outputs=["box"],
        min_score=0.5,
        nms_iou=0.5,
        licence="none",
    )

    def __init__(self, seconds: float) -> None:
        self.max_batch = 1 if seconds else 8
        self._seconds = seconds

    def prepare(self, images: Mapping[str, Pixels], request: Request) -> int:
        return len(images[MAIN_IMAGE])

    def bucket(self, item: int) -> Hashable:
        return None

    def forward(self, items: list[int]) -> list[int]:
        if self._seconds:
            time.sleep(self._seconds)
        return items

    def finish(self, raw: int, item: int) -> Finds:
        return Finds([])


def blank(*_: Any, **__: Any) -> Pixels:
    """In place of `decode`."""
    return _NO_PIXELS


def _serve(seconds: float) -> int:
    def load(*_: Any, **__: Any) -> Any:
        return Sleeper(seconds)

    vars(models).update(pick_device=str, load=load, check_known=lambda *_: None)
    vars(pipeline).update(decode_reduced=lambda *_: Decoded(_NO_PIXELS, 1))
    return run(main.run)


def _serve_many(seconds: float, count: int) -> int:
    children: list[int] = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            os._exit(_serve(seconds))
        children.append(pid)

    def pass_on(number: int, _: FrameType | None) -> None:
        for child in children:
            os.kill(child, number)

    signal.signal(signal.SIGTERM, pass_on)
    for child in children:
        os.waitpid(child, 0)
    return 0


if __name__ == "__main__":
    seconds, workers = float(sys.argv[1]), int((sys.argv[2:] or ["1"])[0])
    sys.exit(_serve(seconds) if workers == 1 else _serve_many(seconds, workers))
