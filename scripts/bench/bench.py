"""What the measures share: sizes, cores, pictures, and services that last from round to round."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from scripts.bench.pictures import DETECTOR, WISH
from scripts.bench.processes import Group, group, python
from scripts.bench.servers import START_S, Service, start_service
from scripts.bench.stand_in import NAME as SLEEPER


class Sizes(NamedTuple):
    """How much of everything."""

    pictures: int
    seconds: float  # of one figure
    images: int  # through each stage
    concurrency: Sequence[int]
    in_flight: Sequence[int]
    queued: Sequence[int]
    workers: Sequence[int]
    tuned: bool  # whether the peers are


FULL = Sizes(
    60, 4.0, 48, (1, 8, 32, 128), (0, 8, 64), (100, 10_000, 100_000), (1, 2, 4, 8, 16, 64), True
)
QUICK = Sizes(6, 0.5, 4, (1, 8), (8,), (100,), (2,), False)


@dataclass
class Bench:
    """One run.

    Attributes:
        cores: where every server runs, and the clients too.
        spare: a core that is none of these, if the machine has one.
        sleep_s: of a model that sleeps in place of the detector; None for the detector.
        stack: ends what is started, when the run ends.
        engines: on which one the detector runs, by whose it is.
    """

    folder: Path
    sizes: Sizes
    pictures: list[bytes]
    cores: list[int]
    spare: list[int]
    sleep_s: float | None
    stack: contextlib.AsyncExitStack
    engines: dict[str, str] = field(default_factory=dict)
    _services: dict[str, Service] = field(default_factory=dict)
    _groups: dict[str, Group] = field(default_factory=dict)

    async def group(self, name: str) -> tuple[Group, bool]:
        """Processes that last to the end of the run; and whether they are yet to be started."""
        if new := name not in self._groups:
            self._groups[name] = await self.stack.enter_async_context(group())
        return self._groups[name], new

    async def service(self, name: str, worker: Sequence[str], model: str, **more: Any) -> Service:
        """A service that lasts to the end of the run, started when it is first asked for."""
        if name not in self._services:
            processes, _ = await self.group(name)
            options = {"models": model, "default_model": model, **more}
            where = self.folder / name.replace(" ", "-")
            self._services[name] = await start_service(
                processes, where, worker, self.cores, **options
            )
            self._note_engine(name, where / "worker.log")
        return self._services[name]

    async def detector(self, name: str = "detector", **more: Any) -> Service:
        """The service with the detector, or with the model that stands in for it."""
        if self.sleep_s is None:
            more |= {"checkpoints": self.checkpoint, "cache_dir": self.cache}
            command = python("worker")
        else:
            command = sleeper(self.sleep_s)
        return await self.service(name, command, self.wish["model"], **more)

    async def nothing(self) -> Service:
        """The service with a model that does nothing, on images that nobody decodes."""
        return await self.service("nothing", sleeper(0), SLEEPER)

    @property
    def wish(self) -> dict[str, Any]:
        """What is asked of the detector."""
        return WISH if self.sleep_s is None else {"model": SLEEPER}

    def picture_folder(self) -> Path:
        """The pictures as files, for processes that read them."""
        folder = self.folder / "pictures"
        if not folder.exists():
            folder.mkdir()
            for number, picture in enumerate(self.pictures):
                (folder / f"{number:03}.jpg").write_bytes(picture)
        return folder

    async def loop(self, module: str, *arguments: str) -> Group:
        """A process of a module that goes through the pictures when it is asked to."""
        processes, new = await self.group(module)
        if new:
            log = self.folder / f"{module}.log"
            await processes.start(
                "loop",
                python(module, str(self.picture_folder()), *arguments),
                environment={
                    "MAYFLY_CHECKPOINTS": self.checkpoint,
                    "MAYFLY_CACHE_DIR": self.cache,
                    "MAYFLY_MODELS": self.wish["model"],
                },
                log=log,
                cores=self.cores,
                pipe=True,
            )
            await processes.said("loop", "ready", START_S)
            self._note_engine(module.rpartition(".")[2], log)
        return processes

    def _note_engine(self, name: str, log: Path) -> None:
        """What the worker's code says of itself in its log, if it runs the detector."""
        for line in log.read_bytes().splitlines():
            with contextlib.suppress(msgspec.DecodeError):  # not of ours
                said = msgspec.json.decode(line, type=dict[str, Any])
                if said.get("event") == "engine":
                    self.engines[name] = said["engine"]

    @property
    def checkpoint(self) -> str:
        """The detector's weights, as a setting of the worker."""
        return f"{DETECTOR}={self.folder / DETECTOR}.pth"

    @property
    def cache(self) -> str:
        """Where the engine that one found the fastest lies for all: of this run and no other."""
        return str(self.folder / "cache")


def sleeper(seconds: float, workers: int = 1) -> list[str]:
    """The command of workers whose model sleeps."""
    return python("scripts.bench.stand_in", str(seconds), str(workers))
