"""Peers beside us: their environments, their servers, tuned, and the measures of both.

Nothing of this is a dependency: ``--peers`` makes a virtual environment for each under
``~/.cache/mayfly-bench``, which takes torch and all else that it can from the one that runs this.
"""

import asyncio
import base64
import json
import os
import signal
import site
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import aiohttp

from scripts.bench.bench import Bench
from scripts.bench.load import Cases, Figures, Target, load, mayfly
from scripts.bench.measures import Measure
from scripts.bench.processes import Group, group
from scripts.bench.report import Ratio
from scripts.bench.servers import START_S
from scripts.bench.stand_in import NAME as SLEEPER

_BOUNDARY = "mayfly-bench"
_OFF = {"BENTOML_DO_NOT_TRACK": "True", "DO_NOT_TRACK": "1"}  # LitServe has no telemetry
_BATCHES = (1, 4, 8)
_CONCURRENCY = 32
WORKS = {"nothing": (1, 32), "plain": (32,), "same": (32,)}  # at which concurrencies
_TUNING_S = 3.0


@dataclass(frozen=True)
class Peer:
    """One of the others.

    Attributes:
        requirement: what pip is asked for.
        command: arguments of its environment's Python.
        body: what it takes an image as.
    """

    name: str
    requirement: str
    command: tuple[str, ...]
    route: str
    content_type: str
    body: Callable[[bytes], bytes]


def _form(image: bytes) -> bytes:
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="image.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    return head.encode() + image + f"\r\n--{_BOUNDARY}--\r\n".encode()


def _json(image: bytes) -> bytes:
    return json.dumps({"image": base64.b64encode(image).decode()}).encode()


PEERS = [
    Peer(
        "LitServe",
        "litserve==0.2.19",
        ("-m", "scripts.bench.peers.litserve_server"),
        "/predict",
        "application/json",
        _json,
    ),
    Peer(
        "BentoML",
        "bentoml==1.4.39",
        ("-m", "bentoml", "serve", "scripts.bench.peers.bentoml_server:Peer"),
        "/annotate",
        f"multipart/form-data; boundary={_BOUNDARY}",
        _form,
    ),
    Peer(
        "mosec",
        "mosec==0.9.8",
        ("-m", "scripts.bench.peers.mosec_server"),
        "/inference",
        "image/jpeg",
        bytes,
    ),
]


@cache
def environment(peer: Peer) -> Path:
    """The Python of the peer's environment, which is made if it is not there.

    It is completed once a run: what it took from the one that runs this may have gone from there.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(caches, "mayfly-bench", peer.requirement)
    python = folder / "bin" / "python"
    if not python.with_name("pip").exists():  # which comes last
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    [packages] = folder.glob("lib/python3*/site-packages")
    ours = [path for path in site.getsitepackages() if "site-packages" in path]
    (packages / "mayfly.pth").write_text("\n".join(ours) + "\n")  # torch is not fetched again
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([str(python), *install, peer.requirement], check=True)
    return python


async def _start(bench: Bench, processes: Group, peer: Peer, work: str, batch: int) -> Target:
    """One server with its work; returns when it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(environment(peer)), *peer.command]
    if peer.name == "BentoML":
        command += ["--host", "127.0.0.1", "--port", str(port)]
    folder = bench.folder / peer.name / f"{work}-{batch}"
    folder.mkdir(parents=True, exist_ok=True)  # it may have been tuned there
    settings = {
        **_OFF,
        "MAYFLY_CHECKPOINTS": bench.checkpoint,
        "MAYFLY_CACHE_DIR": bench.cache,
        "MAYFLY_MODELS": bench.wish["model"],
        "PEER_WORK": work,
        "PEER_BATCH": str(batch),
        "PEER_PORT": str(port),
        "BENTOML_HOME": str(folder),
    }
    log = folder / "log"
    await processes.start(peer.name, command, environment=settings, log=log, cores=bench.cores)
    target = Target(
        f"http://127.0.0.1:{port}{peer.route}",
        processes,
        [peer.body(picture) for picture in bench.pictures],
        {"Content-Type": peer.content_type},
    )
    await _answers(target, log)
    return target


async def _answers(target: Target, log: Path) -> None:
    deadline = time.monotonic() + START_S
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline and target.group.running():
            try:
                async with session.post(
                    target.url, data=target.bodies[0], headers=target.headers
                ) as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.2)
    raise RuntimeError(f"a peer did not start:\n{log.read_text()[-1500:]}")


async def _tuned(bench: Bench, peer: Peer) -> int:
    """The batch size with which it serves most images a second through plain torchvision."""
    rates = {}
    for batch in _BATCHES if bench.sizes.tuned else ():
        async with group() as processes:
            target = await _start(bench, processes, peer, "plain", batch)
            rates[batch] = (await load(target, _CONCURRENCY, _TUNING_S))["images/s"]
    return max(rates, key=rates.__getitem__, default=1)


class Peers:
    """All of them, each with each work, started once; stopped while others are measured."""

    def __init__(self) -> None:
        self._targets: dict[tuple[str, str], Target] = {}
        self._batches: dict[str, int] = {}

    async def _start(self, bench: Bench) -> None:
        targets = {}
        for peer in PEERS:
            batch = self._batches[peer.name] = await _tuned(bench, peer)
            for work in WORKS:
                processes = await bench.stack.enter_async_context(group())
                targets[work, peer.name] = await _start(bench, processes, peer, work, batch)
                processes.signal(signal.SIGSTOP)
        self._targets = targets

    async def measure(self, bench: Bench) -> Cases:
        """Each work in each server, the service between them, and the best peer of each figure."""
        if not self._targets:
            await self._start(bench)
        nothing, detector = await bench.nothing(), await bench.detector()
        idle = mayfly(nothing.url, nothing.group, bench.pictures, {"model": SLEEPER})
        busy = mayfly(detector.url, detector.group, bench.pictures, bench.wish)
        cases: Cases = {}
        for work, concurrencies in WORKS.items():
            ours = idle if work == "nothing" else busy
            for count in concurrencies:
                name, figures = f"{work}, {count}", {}
                for (its_work, peer), target in self._targets.items():
                    if its_work == work:
                        target.group.signal(signal.SIGCONT)
                        figures[peer] = await load(target, count, bench.sizes.seconds)
                        target.group.signal(signal.SIGSTOP)
                cases[f"{name}: best peer"] = best(list(figures.values()))
                for peer, its in figures.items():
                    cases[f"{name}: {peer}"] = its | {"largest batch": self._batches[peer]}
                cases[f"{name}: Mayfly"] = await load(ours, count, bench.sizes.seconds)
        return cases


def measure() -> Measure:
    """The measure of all peers."""
    return Measure("peers", "other servers: no model, plain torchvision, our code", Peers().measure)


def best(figures: list[Figures]) -> Figures:
    """The highest rate, and the lowest of all else."""
    return {
        what: (max if what.endswith("/s") else min)(each[what] for each in figures)
        for what in figures[0]
    }


def _ratio(name: str, goal: str, case: str, what: str, peer: str = "best peer") -> Ratio:
    return Ratio(name, goal, ("peers", f"{case}: Mayfly", what), ("peers", f"{case}: {peer}", what))


RATIOS = [
    _ratio("ours ÷ best peer with plain torchvision, images/s", "≥ 2.5", "plain, 32", "images/s"),
    _ratio("the same model code, ÷ best peer, images/s", "≥ 1.0", "same, 32", "images/s"),
    _ratio("memory ÷ best peer, the same model code", "≤ 1.0", "same, 32", "memory MB"),
    _ratio("no model, ÷ best peer, requests/s", "", "nothing, 32", "images/s"),
    _ratio("no model, ÷ BentoML, requests/s", "≥ 3", "nothing, 32", "images/s", "BentoML"),
    _ratio("no model, alone, ÷ best peer, ms", "≤ 0.5", "nothing, 1", "p50 ms"),
]
