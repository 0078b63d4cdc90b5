"""Two things that lose results elsewhere: many readers at once, and connections that break."""

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from typing import Any

import aiohttp

from jobs.sealing import Capability
from tests.conftest import picture_bytes
from tests.faults.network import reset

READERS = 32
_AT_ONCE = 4  # jobs
_DONE_S = 30.0
Outcome = tuple[dict[str, Any], list[str]]  # lines of the report, violations


async def readers(ports: list[int], count: int, seed: int) -> Outcome:
    """Every other job is read plain, the others under leases with a key for each reader."""
    chance = random.Random(seed)
    seen: Counter[str] = Counter()
    problems: list[str] = []
    connector = aiohttp.TCPConnector(limit=_AT_ONCE * READERS)
    turn = asyncio.Semaphore(_AT_ONCE)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def one(number: int) -> None:
            async with turn:
                job = Capability(chance.randbytes(32))
                await _submit(session, ports[number % len(ports)], job, f"job-{number}")
                await _settle(session, ports[0], job)

                async def read(reader: int) -> tuple[int, bytes]:
                    headers = {"Authorization": f"Bearer {job.token}"}
                    if number % 2:
                        headers["Idempotency-Key"] = f"reader-{reader}"
                    url = _url(ports[reader % len(ports)], job, "/result")
                    async with session.get(url, headers=headers) as response:
                        return response.status, await response.read()

                answers = await asyncio.gather(*(read(reader) for reader in range(READERS)))
                statuses = Counter(status for status, _ in answers)
                seen.update(
                    {f"{'leased' if number % 2 else 'plain'} {s}": n for s, n in statuses.items()}
                )
                if statuses != {200: 1, 409 if number % 2 else 410: READERS - 1}:
                    problems.append(f"job {number}: {dict(statuses)}")
                body = next((body for status, body in answers if status == 200), b"{}")
                if f'"job-{number}"'.encode() not in body:
                    problems.append(f"job {number}: not its own result")

        await asyncio.gather(*(one(number) for number in range(count)))
    lines = {"jobs": count, "readers of each": READERS, "answers": dict(sorted(seen.items()))}
    return {**lines, "jobs with overlapping deliveries": len(problems)}, problems


async def resets(ports: list[int], count: int, seed: int, share: float = 0.7) -> Outcome:
    """Acknowledged downloads; `share` of the reads are reset 0-4 ms after the request."""
    chance = random.Random(seed)
    tally: Counter[str] = Counter()
    problems: list[str] = []
    turn = asyncio.Semaphore(16)
    async with aiohttp.ClientSession() as session:

        async def one(number: int) -> None:
            async with turn:
                job = Capability(chance.randbytes(32))
                await _submit(session, ports[number % len(ports)], job, f"job-{number}")
                await _settle(session, ports[0], job)
                reader = f"reader-{number}"
                status, body = 0, b""
                deadline = time.monotonic() + _DONE_S
                while status != 200 and time.monotonic() < deadline:
                    broken = chance.random() < share
                    after = chance.uniform(0, 0.004) if broken else None
                    tally["reads"] += 1
                    tally["reads reset"] += broken
                    status, body = await _raw_read(chance.choice(ports), job, reader, after)
                    if status not in (0, 200):
                        break
                if status != 200 or f'"job-{number}"'.encode() not in body:
                    problems.append(f"job {number} lost: {status}")
                    return
                headers = {"Authorization": f"Bearer {job.token}", "Idempotency-Key": reader}
                async with session.delete(_url(ports[0], job), headers=headers) as answer:
                    tally[f"acknowledged with {answer.status}"] += 1
                async with session.get(_url(ports[1], job, "/result"), headers=headers) as answer:
                    if answer.status != 410:
                        problems.append(f"job {number}: {answer.status} after acknowledgement")

        await asyncio.gather(*(one(number) for number in range(count)))
    return {"downloads": count, **tally, "lost": len(problems)}, problems


async def _submit(session: aiohttp.ClientSession, port: int, job: Capability, label: str) -> None:
    request = {"prompts": [{"type": "box", "box": [4, 4, 20, 20], "label": label}]}
    async with session.post(
        f"http://127.0.0.1:{port}/v1/jobs",
        params={"request": json.dumps(request)},
        data=_PICTURE,
        headers={"Authorization": f"Bearer {job.token}", "Content-Type": "image/png"},
    ) as response:
        if response.status != 202:
            raise RuntimeError(f"submission answered {response.status}")


async def _settle(session: aiohttp.ClientSession, port: int, job: Capability) -> None:
    headers = {"Authorization": f"Bearer {job.token}"}
    async with session.get(_url(port, job) + f"?wait={_DONE_S:g}", headers=headers) as response:
        state = await response.json()
        if state["status"] != "done":
            raise RuntimeError(f"the job is {state['status']}")


async def _raw_read(
    port: int, job: Capability, reader: str, reset_after_s: float | None
) -> tuple[int, bytes]:
    """Status and body; 0 when the connection was reset before the whole answer was there."""
    down, up = await asyncio.open_connection("127.0.0.1", port)
    up.write(
        f"GET /v1/jobs/{job.id}/result HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: Bearer {job.token}\r\nIdempotency-Key: {reader}\r\n\r\n".encode()
    )
    if reset_after_s is not None:
        await asyncio.sleep(reset_after_s)
        reset(up)  # whatever has arrived is thrown away, as by a client that died
        return 0, b""
    answer = b""
    with contextlib.suppress(OSError):
        answer = await down.read(-1)
    up.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split()[1]), body) if head else (0, b"")


def _url(port: int, job: Capability, more: str = "") -> str:
    return f"http://127.0.0.1:{port}/v1/jobs/{job.id}{more}"


_PICTURE = picture_bytes((48, 32))
