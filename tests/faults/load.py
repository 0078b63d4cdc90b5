"""Clients of all kinds that write down what they did and what they saw."""

import asyncio
import contextlib
import hashlib
import json
import random
import struct
import time
import zlib
from collections import Counter
from typing import Any, NamedTuple

import aiohttp

from jobs.sealing import Capability
from tests.conftest import picture_bytes
from tests.faults.history import NOT_THERE, Event, Op
from tests.faults.network import reset

HOSTILE, RESET_BY_CLIENT = 0.05, 0.01
_JOB_S = 45.0  # a job that is not over after this has no outcome
_TIMEOUT = aiohttp.ClientTimeout(total=9, sock_connect=2)
_OURS = ("result_unreadable", "leased", "store_unavailable", "queue_full", "not_ready")


class Answer(NamedTuple):
    status: int
    body: bytes

    @property
    def code(self) -> str:
        try:
            return str(json.loads(self.body)["code"])
        except (ValueError, KeyError, TypeError):
            return ""


class Job:
    """One job, in the hands of its client."""

    def __init__(self, label: str, secret: bytes) -> None:
        capability = Capability(secret)
        self.id, self.token, self.label = capability.id, capability.token, label
        self.accepted_at = 0.0
        self.deadline = time.time() + _JOB_S


class Load:
    """The load of one run.

    Args:
        ports: of the front doors, or of the proxies before them.
        seed: decides what each client does, not in which order their steps fall.
    """

    def __init__(self, ports: list[int], seed: int) -> None:
        self.events: list[Event] = []
        self.counts: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.crashed: list[tuple[float, float]] = []  # jobs given up as killers: from, until
        self.gone: list[tuple[float, float]] = []  # jobs that were not there any more
        self.calm = False
        self._ports = ports
        self._seed = seed
        self._calls = 0

    async def client(self, number: int, until: float) -> None:
        """Job after job until the time is over; each is followed to its end."""
        chance = random.Random(f"{self._seed}/{number}")
        connector = aiohttp.TCPConnector(force_close=True)  # each request meets the network anew
        async with aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as session:
            session._retry_connection = False  # the library repeats a GET that broke, silently
            count = 0
            while time.time() < until:
                count += 1
                visitor = _Visitor(self, session, chance, f"c{number}", f"c{number}-{count}")
                if chance.random() < HOSTILE:
                    await visitor.hostile()
                else:
                    await visitor.honest()
                await asyncio.sleep(chance.uniform(0, 0.15))

    def next_call(self) -> int:
        self._calls += 1
        return self._calls

    def port(self, chance: random.Random) -> int:
        return chance.choice(self._ports)


class _Visitor:
    """One job's client."""

    def __init__(
        self,
        load: Load,
        session: aiohttp.ClientSession,
        chance: random.Random,
        client: str,
        label: str,
    ) -> None:
        self._load = load
        self._session = session
        self._chance = chance
        self._client = client
        self._job = Job(label, chance.randbytes(32))

    async def honest(self) -> None:
        load, chance = self._load, self._chance
        load.counts["submitted"] += 1
        image = picture_bytes((48 + chance.randrange(3), 32))
        if not load.calm and chance.random() < RESET_BY_CLIENT:
            load.counts["reset by the client"] += 1
            await self._break_off(image)
        if not await self._submit(image):
            load.counts["never accepted"] += 1
            return
        load.counts["accepted"] += 1
        begin = time.time()
        way = chance.random()
        if way < 0.08:
            over = await self._erased()
        elif way < 0.4:
            over = await self._plain()
        else:
            over = await self._acknowledged(rivals=2 if way < 0.5 else 0)
        load.counts[over or "no outcome"] += 1
        if over == "given up by workers":
            load.crashed.append((begin, time.time()))
        if over == "gone":
            load.gone.append((begin, time.time()))

    async def hostile(self) -> None:
        """Refused at the door or failed by a worker; never a 5xx, never a dead process."""
        kind = self._chance.choice(["truncated", "text", "bomb"])
        image = _hostile(kind)
        self._load.counts["hostile"] += 1
        if not await self._submit(image, refusals=(400, 413, 415, 422)):
            return
        self._load.counts["accepted"] += 1
        over = await self._acknowledged(rivals=0)
        self._load.counts[over or "no outcome"] += 1

    async def _submit(self, image: bytes, refusals: tuple[int, ...] = ()) -> bool:
        """With the same token until there is an answer: it stays one job."""
        box = {"type": "box", "box": [4, 4, 20, 20]}
        labels = [self._job.label] + (["slow"] if self._chance.random() < 0.3 else [])
        request = {"prompts": [{**box, "label": label} for label in labels]}
        while time.time() < self._job.deadline:
            answer = await self._call(
                "submit",
                "POST",
                "/v1/jobs",
                params={"request": json.dumps(request)},
                data=image,
                headers={"Content-Type": "image/png"},
            )
            if answer and answer.status == 202:
                self._job.accepted_at = time.time()
                return True
            if answer and answer.status in refusals:
                self._load.failed[f"{answer.status} {answer.code}"] += 1
                return False
            if answer and answer.status in NOT_THERE:
                return False  # an attempt whose answer was lost, then a restart
            if answer and answer.status != 503:
                self._load.wrong.append(f"submit answered {answer.status} {answer.code}")
            await self._pause()
        return False

    async def _plain(self) -> str | None:
        """At most once: an answer that is lost on its way is lost."""
        while time.time() < self._job.deadline:
            answer = await self._read("plain", "")
            if answer is None or answer.status in (202, 409, 503):
                await self._pause()
            elif answer.status in NOT_THERE:
                return "gone"
            else:
                if self._chance.random() < 0.2:
                    await self._read("plain", "")
                return self._delivered(answer)
        return None

    async def _acknowledged(self, rivals: int) -> str | None:
        """Read under a lease as often as it takes, then say that it has arrived."""
        reader = f"{self._job.label}/a"
        others = [
            asyncio.create_task(self._read("read", f"{self._job.label}/{n}")) for n in range(rivals)
        ]
        over = await self._read_and_acknowledge(reader)
        await asyncio.gather(*others)
        if self._chance.random() < 0.1:
            await self._read("read", f"{self._job.label}/late")
        return over

    async def _read_and_acknowledge(self, reader: str) -> str | None:
        over = None
        while over is None and time.time() < self._job.deadline:
            answer = await self._read("read", reader)
            if answer is None or answer.status in (202, 409, 503):
                await self._pause()
            elif answer.status in NOT_THERE:
                return "gone"
            else:
                over = self._delivered(answer)
        while over and time.time() < self._job.deadline:
            answer = await self._call("acknowledge", "DELETE", self._path(), reader)
            if answer and answer.status == 204:
                self._load.counts["acknowledged"] += 1
                return over
            await self._pause()
        return over

    async def _erased(self) -> str | None:
        await asyncio.sleep(self._chance.uniform(0, 0.1))
        while time.time() < self._job.deadline:
            answer = await self._call("erase", "DELETE", self._path())
            if answer and answer.status == 204:
                if self._chance.random() < 0.5:
                    await self._call("state", "GET", self._path())
                return "erased"
            await self._pause()
        return None

    def _delivered(self, answer: Answer) -> str:
        if answer.status == 200:
            return "delivered"
        self._load.failed[f"{answer.status} {answer.code}"] += 1
        return "given up by workers" if answer.code == "worker_crashed" else "failed"

    async def _read(self, op: Op, reader: str) -> Answer | None:
        return await self._call(op, "GET", self._path() + "/result", reader, params={"wait": "3"})

    async def _call(
        self, op: Op, method: str, path: str, reader: str = "", **more: Any
    ) -> Answer | None:
        """One attempt at one of the front doors, written down; None when the answer was lost."""
        load, call = self._load, self._load.next_call()
        shown = _digest(self._job.label.encode()) if op == "submit" else ""
        begun = Event(call, self._client, self._job.id, op, "invoke", time.time(), reader)
        load.events.append(begun._replace(digest=shown))
        headers = {**more.pop("headers", {}), "Authorization": f"Bearer {self._job.token}"}
        if reader:
            headers["Idempotency-Key"] = reader
        url = f"http://127.0.0.1:{load.port(self._chance)}{path}"
        try:
            async with self._session.request(method, url, headers=headers, **more) as response:
                answer = Answer(response.status, await response.read())
        except (aiohttp.ClientError, OSError, TimeoutError):
            load.counts["answers lost"] += 1
            return None
        load.statuses[answer.status] += 1
        if answer.status >= 500 and answer.status != 503 and answer.code != "worker_crashed":
            load.wrong.append(f"{op} answered {answer.status} {answer.code}")
        if answer.status == 503:
            return answer  # it may have taken effect: the event stays open
        delivery = op in ("read", "plain") and _is_delivery(answer)
        done = delivery or (op not in ("read", "plain") and answer.status < 300)
        ended = begun._replace(phase="ok" if done else "fail", at=time.time())
        load.events.append(
            ended._replace(
                status=answer.status,
                digest=_label_digest(answer) if delivery else shown,
                body=_digest(answer.body) if delivery else "",
            )
        )
        return answer

    async def _break_off(self, image: bytes) -> None:
        """Half a submission, then a reset."""
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", self._load.port(self._chance))
            head = f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: {len(image)}\r\n"
            head += f"Authorization: Bearer {self._job.token}\r\nContent-Type: image/png\r\n\r\n"
            whole = head.encode() + image
            writer.write(whole[: self._chance.randrange(1, len(whole))])
            await asyncio.sleep(self._chance.uniform(0, 0.02))
            reset(writer)

    async def _pause(self) -> None:
        await asyncio.sleep(self._chance.uniform(0.1, 0.5))

    def _path(self) -> str:
        return f"/v1/jobs/{self._job.id}"


def _is_delivery(answer: Answer) -> bool:
    """A result, or the worker's word that there is none."""
    if answer.status in (202, *NOT_THERE):
        return False
    return answer.status == 200 or answer.code not in _OURS


def _label_digest(answer: Answer) -> str:
    if answer.status != 200:
        return ""
    labels = {found["label"] for found in json.loads(answer.body)["annotations"]} - {"slow"}
    return _digest(" ".join(sorted(labels)).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _hostile(kind: str) -> bytes:
    if kind == "text":
        return b"This is not a picture. " * 100
    if kind == "truncated":
        whole = picture_bytes((64, 48))
        return whole[: len(whole) // 2]
    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)  # 10 GB once decoded
    chunk = b"IHDR" + size
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", len(size))
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
    )
