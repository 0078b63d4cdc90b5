"""The bare loop: decode, prepare, forward, finish and encode in one process, without a service.

    python -m scripts.bench.raw PICTURES [SECONDS]

With SECONDS, round the model that sleeps so long. Reads numbers of seconds from stdin; answers each
with how many images a run that long annotated, and how many a second.
"""

import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from jobs.contract import MAIN_IMAGE, Request
from jobs.process import configure_logging
from jobs.settings import Settings
from scripts.bench.pictures import DETECTOR, WISH
from scripts.bench.stand_in import Sleeper, blank
from worker.decode import decode
from worker.main import load_models
from worker.models.base import Model


def main(folder: Path, sleep_s: float | None = None) -> None:
    settings = Settings.from_env()
    configure_logging(settings)  # which says the engine
    model: Model[Any, Any] = Sleeper(sleep_s) if sleep_s else load_models(settings)[0][DETECTOR]
    read = blank if sleep_s else decode
    request = msgspec.convert(WISH, Request)
    pictures = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]

    def annotate(batch: list[bytes]) -> None:
        images = [read(data, settings.max_pixels) for data in batch]
        items = [model.prepare({MAIN_IMAGE: image}, request) for image in images]
        for raw, item in zip(model.forward(items), items, strict=True):
            msgspec.json.encode(model.finish(raw, item))

    size = min(model.max_batch, len(pictures))
    batches = [pictures[at : at + size] for at in range(0, len(pictures) - size + 1, size)]
    annotate(batches[0])
    print("ready", flush=True)
    for line in sys.stdin:
        done, begin = 0, time.perf_counter()
        while (took := time.perf_counter() - begin) < float(line):
            annotate(batches[done // size % len(batches)])
            done += size
        print(done, done / took, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(float, sys.argv[2:]))
