"""Clients in a closed loop: each sends its next image when its last one is answered."""

import asyncio
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import aiohttp
import yarl

from scripts.bench.processes import Group

Figures = dict[str, float]
Cases = dict[str, Figures]


@dataclass(frozen=True)
class Target:
    """Where images go, as bodies that are ready to be sent.

    Attributes:
        group: the server's processes, whose CPU time and memory count.
        parts: those of them whose CPU time is reported by itself, too.
    """

    url: str
    group: Group
    bodies: list[bytes]
    headers: dict[str, str]
    query: dict[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = ()


def mayfly(url: str, group: Group, pictures: list[bytes], wish: dict[str, Any]) -> Target:
    """A front door of ours: an image and its result in one exchange."""
    headers = {"Content-Type": "image/jpeg", "Prefer": "wait=30"}
    return Target(f"{url}/v1/jobs", group, pictures, headers, {"request": json.dumps(wish)})


async def load(target: Target, concurrency: int, seconds: float) -> Figures:
    """Send for `seconds`, then wait for what is on its way.

    Raises:
        RuntimeError: an answer was not 200.
    """
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        bodies = cycle(target.bodies)
        await _send(session, target, next(bodies))  # what is slow once is not counted
        latencies: list[float] = []
        batches: list[float] = []

        async def client(bodies: Iterator[bytes], until: float) -> None:
            while time.perf_counter() < until:
                start = time.perf_counter()
                answer = await _send(session, target, next(bodies))
                latencies.append(time.perf_counter() - start)
                if size := _batch_size(answer):
                    batches.append(size)

        cpu, begin = _cpu_s(target), time.perf_counter()
        async with asyncio.TaskGroup() as clients:
            for _ in range(concurrency):
                clients.create_task(client(bodies, begin + seconds))
        took = time.perf_counter() - begin
        spent = [after - before for after, before in zip(_cpu_s(target), cpu, strict=True)]
    figures = {
        "images/s": len(latencies) / took,
        "p50 ms": statistics.median(latencies) * 1e3,
        "p99 ms": percentile(latencies, 99) * 1e3,
        "CPU ms/image": spent[0] / len(latencies) * 1e3,
        "memory MB": target.group.memory_mb(),
    }
    for part, cpu_s in zip(target.parts, spent[1:], strict=True):
        figures[f"{part} CPU ms/image"] = cpu_s / len(latencies) * 1e3
    return figures | ({"images/batch": statistics.mean(batches)} if batches else {})


def _cpu_s(target: Target) -> list[float]:
    """Of the whole server, then of its parts."""
    return [target.group.cpu_s(part) for part in (None, *target.parts)]


def percentile(values: list[float], percent: int) -> float:
    """The smallest value that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


async def _send(session: aiohttp.ClientSession, target: Target, body: bytes) -> bytes:
    async with session.post(
        target.url, params=target.query, data=body, headers=target.headers
    ) as response:
        answer, status = await response.read(), response.status
    if status == 202:  # a service of ours that took longer than it waits
        job = json.loads(answer)
        result = yarl.URL(target.url).with_path(job["links"]["result"])
        owner = {"Authorization": f"Bearer {job['token']}"}
        while status == 202:
            async with session.get(result % {"wait": 30}, headers=owner) as response:
                answer, status = await response.read(), response.status
    if status != 200:
        raise RuntimeError(f"{target.url} answered {status}: {answer[:200]!r}")
    return answer


def _batch_size(answer: bytes) -> int:
    """How many images shared the forward; 0 if the answer does not say."""
    rest = answer.partition(b'"batch_size":')[2]
    return int(rest.partition(b"}")[0] or 0)
