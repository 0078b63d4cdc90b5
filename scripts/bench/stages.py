"""Where the time of one image goes: CPU time of each stage, ours and torchvision's as documented.

    python -m scripts.bench.stages PICTURES

Reads numbers of images from stdin, annotates so many in each way, and answers with JSON: way,
stage, milliseconds an image.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import msgspec

from jobs.contract import MAIN_IMAGE, Request
from jobs.process import configure_logging
from jobs.settings import Settings
from scripts.bench.peers.work import Plain
from scripts.bench.pictures import DETECTOR, WISH
from worker.decode import decode
from worker.main import load_models


class Clock:
    """CPU seconds by stage; of stages within one another each counts its own time alone."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)

    def total(self) -> float:
        return sum(self.spent.values())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what the body, or a function that it decorates, takes, less the stages within."""
        begin, within = time.process_time(), self.total()
        yield
        took = time.process_time() - begin
        self.spent[name] += took - (self.total() - within)


Loop = Callable[[list[bytes]], None]


def ours(clock: Clock) -> tuple[Loop, int]:
    """The worker's own stages, and how many images it takes at a time."""
    settings = Settings.from_env()
    configure_logging(settings)  # which says the engine
    model: Any = load_models(settings)[0][DETECTOR]
    request = msgspec.convert(WISH, Request)
    vars(model)["_run"] = clock.stage("network")(vars(model)["_run"])

    def annotate(batch: list[bytes]) -> None:
        with clock.stage("decode"):
            images = [decode(data, settings.max_pixels) for data in batch]
        with clock.stage("prepare"):
            items = [model.prepare({MAIN_IMAGE: image}, request) for image in images]
        with clock.stage("choose"):
            raws = model.forward(items)
            finds = [model.finish(raw, item) for raw, item in zip(raws, items, strict=True)]
        with clock.stage("JSON"):
            for each in finds:
                msgspec.json.encode(each)

    return annotate, model.max_batch


def plain(clock: Clock) -> tuple[Loop, int]:
    """torchvision as its documentation uses it, one image at a time."""
    work = Plain()
    network = vars(work)["_network"]
    for name, stage in (("transform", "prepare"), ("backbone", "network"), ("head", "network")):
        part = getattr(network, name)
        part.forward = clock.stage(stage)(part.forward)
    vars(work)["_json"] = clock.stage("JSON")(vars(Plain)["_json"].__get__(work))

    def annotate(batch: list[bytes]) -> None:
        with clock.stage("decode"):
            items = [work.decode(data) for data in batch]
        with clock.stage("choose"):
            work.run(items)

    return annotate, 1


def main(folder: Path) -> None:
    pictures = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    clocks = {"ours": Clock(), "plain torchvision": Clock()}
    loops = [make(clock) for make, clock in zip((ours, plain), clocks.values(), strict=True)]
    for annotate, size in loops:
        annotate(pictures[:size])
    print("ready", flush=True)
    for line in sys.stdin:
        costs = {}
        for (way, clock), (annotate, size) in zip(clocks.items(), loops, strict=True):
            clock.spent.clear()
            images, count = cycle(pictures), -(-int(line) // size) * size
            for _ in range(0, count, size):
                annotate(list(islice(images, size)))
            costs[way] = {stage: spent / count * 1e3 for stage, spent in clock.spent.items()}
        print(msgspec.json.encode(costs).decode(), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
