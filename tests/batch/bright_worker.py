"""The worker's process as it is, with a model of the tests in place of one with weights.

Named `patches`, it needs no prompt.
"""

import sys
from typing import Any

from jobs.process import run
from tests.fakes import Bright, Patches
from worker import models
from worker.main import run as worker


def _cpu(_: str) -> Any:
    """Not torch's: without it the process starts in a fraction of the time."""
    return "cpu"


def _bright(*_: Any) -> Any:
    return Patches() if sys.argv[1:] == ["patches"] else Bright()


if __name__ == "__main__":
    vars(models).update(pick_device=_cpu, load=_bright)
    sys.exit(run(worker))
