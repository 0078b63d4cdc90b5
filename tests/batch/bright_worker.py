"""The worker's process as it is, with a model of the tests in place of one with weights.

Named `patches`, it needs no prompt; named `patches:30`, it keeps a core busy
for 30 ms an image, too.
"""

import hashlib
import sys
import time
from typing import Any

from jobs.process import run
from tests.fakes import Bright, Patches, Seen
from worker import models
from worker.main import run as worker


def _cpu(_: str) -> Any:
    """Not torch's: without it the process starts in a fraction of the time."""
    return "cpu"


class _Busy(Patches):
    """Takes as much of a core as a model with weights does, and leaves the others alone."""

    def __init__(self, ms: float) -> None:
        self._seconds = ms / 1000

    def forward(self, items: list[Seen]) -> list[Seen]:
        until = time.thread_time() + self._seconds * len(items)
        while time.thread_time() < until:
            hashlib.sha256(bytes(500_000))
        return items


def _bright(*_: Any, **__: Any) -> Any:
    name, *ms = "".join(sys.argv[1:]).split(":")
    return _Busy(float("".join(ms) or 0)) if name == "patches" else Bright()


if __name__ == "__main__":
    vars(models).update(pick_device=_cpu, load=_bright)
    sys.exit(run(worker))
