"""How fast the service is itself again, and whether it stays the same over time. Figures only.

    python -m tests.faults.endurance --kills 100      # a worker under load, a warm second one
    python -m tests.faults.endurance --restarts 20    # Valkey
    python -m tests.faults.endurance --soak 30        # minutes of steady load

Real processes round the model without weights, loopback only. The exit code is 1 if a job was lost
or a process ended by itself.
"""

import argparse
import asyncio
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import psutil

from scripts.client import Client, ServiceError
from tests.calls import BOX_REQUEST
from tests.conftest import picture_bytes
from tests.faults.cluster import Cluster, running_cluster

_JOBS = 40  # in flight at a kill
_CLIENTS = 4  # of the soak


async def kills(cluster: Cluster, count: int) -> int:
    """Time from the kill of one of two workers until the last job of its load is delivered."""
    url = f"http://127.0.0.1:{cluster.ports[0]}"
    slow = {"prompts": [{"type": "box", "box": [1, 1, 9, 9], "label": "brief"}]}
    recovered, lost = [], 0
    async with Client(url) as client:
        for number in range(count):
            worker = cluster.workers[number % 2]
            jobs = [await client.submit(picture_bytes(), slow) for _ in range(_JOBS)]
            cluster.kill(worker)
            begin = time.monotonic()
            results = await asyncio.gather(
                *(client.fetch(job) for job in jobs), return_exceptions=True
            )
            recovered.append(time.monotonic() - begin)
            lost += sum(isinstance(result, BaseException) for result in results)
            await _until(worker.ready_again)
    _show("kills of a worker", count)
    _show("jobs in flight at each", _JOBS)
    _show("kill to the last result, s", _spread(recovered))
    _show("jobs lost", lost)
    return lost


async def restarts(cluster: Cluster, count: int) -> int:
    """Time from Valkey's first answer until a new job's result is delivered."""
    back = []
    async with aiohttp.ClientSession(f"http://127.0.0.1:{cluster.ports[0]}") as session:
        for _ in range(count):
            await cluster.restart_valkey()
            begin = time.monotonic()
            while not await _annotated(session):
                await asyncio.sleep(0.02)
            back.append(time.monotonic() - begin)
            await asyncio.sleep(0.5)
    _show("restarts of Valkey", count)
    _show("its first answer to a result, s", _spread(back))
    return 0


async def soak(cluster: Cluster, minutes: float, rate: float) -> int:
    """Memory, descriptors and keys of every process, as they were and as they are.

    At most `rate` jobs a second, so that a machine that others use is left to them as well.
    """
    until = time.monotonic() + minutes * 60
    done = failed = 0

    async def load(port: int) -> None:
        nonlocal done, failed
        async with Client(f"http://127.0.0.1:{port}") as client:
            while time.monotonic() < until:
                begin = time.monotonic()
                try:
                    await client.annotate(picture_bytes((320, 240)), BOX_REQUEST)
                    done += 1
                except ServiceError:
                    failed += 1
                await asyncio.sleep(max(0.01, begin + _CLIENTS / rate - time.monotonic()))

    clients = [asyncio.create_task(load(cluster.ports[n % 2])) for n in range(_CLIENTS)]
    await asyncio.sleep(min(200, minutes * 20))  # by then as many keys expire as are made
    first = _sizes(cluster)
    await asyncio.gather(*clients)
    last = _sizes(cluster)
    _show("minutes, jobs, failed", (minutes, done, failed))
    for name, (memory, files) in last.items():
        was_memory, was_files = first[name]
        _show(
            f"{name}: MB, descriptors", f"{was_memory:.0f} -> {memory:.0f}, {was_files} -> {files}"
        )
    kinds, endless = cluster.keys_left()
    _show("keys left, of them without a TTL", (kinds, endless))
    return failed + len(endless)


def _sizes(cluster: Cluster) -> dict[str, tuple[float, int]]:
    """Unique memory in MB and open descriptors by role."""
    sizes = {}
    for role in (*cluster.roles, cluster.valkey):
        process = psutil.Process(role.pid)
        sizes[role.name] = (process.memory_full_info().uss / 1e6, process.num_fds())
    return sizes


async def _annotated(session: aiohttp.ClientSession) -> bool:
    form = aiohttp.FormData()
    form.add_field("request", '{"prompts":[{"type":"box","box":[1,1,9,9]}]}')
    form.add_field("image", picture_bytes(), filename="image", content_type="image/png")
    headers = {"Prefer": "wait=5"}
    async with session.post("/v1/jobs", data=form, headers=headers) as response:
        return response.status == 200


async def _until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not ready():
        if time.monotonic() > deadline:
            raise RuntimeError("a worker did not come back")
        await asyncio.sleep(0.05)


def _spread(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]
    return f"p50 {statistics.median(ordered):.2f}, p99 {p99:.2f}, max {ordered[-1]:.2f}"


def _show(name: str, value: object) -> None:
    print(f"{name:36} {value}", flush=True)  # noqa: T201 - a command


async def _run(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="mayfly-endurance-") as folder:
        async with running_cluster(Path(folder)) as cluster:
            if options.kills:
                found = await kills(cluster, options.kills)
            elif options.restarts:
                found = await restarts(cluster, options.restarts)
            else:
                found = await soak(cluster, options.soak, options.rate)
            exits = sum(len(role.exits) for role in cluster.roles)
            _show("exits that nobody had asked for", exits)
            return 1 if found or exits else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.faults.endurance", description=__doc__)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--kills", type=int)
    mode.add_argument("--restarts", type=int)
    mode.add_argument("--soak", type=float, metavar="MINUTES")
    parser.add_argument("--rate", type=float, default=math.inf, help="most jobs a second (soak)")
    sys.exit(asyncio.run(_run(parser.parse_args())))
