"""`mayfly audit`: canaries go through a service on every way a job can take, and are looked for.

Each way has an image, a label, a file name and a token of its own. They are searched in every key
of Redis, its slow logs, the service's logs, files, open files and cores, in every form that
`scripts/canary.py` knows. Before that, the search must find what is planted for it.
"""

import argparse
import asyncio
import contextlib
import hashlib
import io
import json
import os
import secrets
import signal
import ssl
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
import redis
from PIL import Image

from jobs import __version__
from jobs.sealing import Capability
from jobs.settings import SettingsError
from scripts.canary import Place, find, in_files, in_redis, open_files
from scripts.local import local_service

KINDS = ("redis key", "slow log", "log", "file", "open file", "core")
_SIDE = 1200  # pixels; large enough that a worker can be ended while it has it in hand
_OWN = {
    "MAYFLY_IMAGE_TTL_S": "15",
    "MAYFLY_RESULT_TTL_S": "4",
    "MAYFLY_UPLOAD_TIMEOUT_S": "2",
    "MAYFLY_LOG_LEVEL": "DEBUG",
}
_CORES = (Path("/var/lib/systemd/coredump"), Path("/var/crash"))


class Row(msgspec.Struct):
    """One search: where a job was on its way, what was searched, what was found."""

    way: str
    moment: str
    searched: dict[str, int]
    findings: list[str]
    not_searched: list[str]


class Canary:
    """An image of noise and what goes with it, to be told from everything else."""

    def __init__(self, way: str) -> None:
        self.way = way
        self.job = Capability.new()
        noise = np.frombuffer(secrets.token_bytes(_SIDE * _SIDE * 3), dtype=np.uint8)
        pixels = noise >> 1  # seven bits are packed, eight would lie in a PNG as they are
        file = io.BytesIO()
        Image.fromarray(pixels.reshape(_SIDE, _SIDE, 3)).save(file, "PNG", compress_level=1)
        self.image = file.getvalue()
        self.label = f"canary-label-{secrets.token_hex(8)}"
        self.file_name = f"canary-{secrets.token_hex(8)}.png"
        middle = len(pixels) // 2
        self.secrets = {
            "image": self.image[len(self.image) // 2 :][:32],
            "pixels": pixels[middle : middle + 32].tobytes(),
            "label": self.label.encode(),
            "file name": self.file_name.encode(),
            "token": self.job.token.encode(),
        }

    def form(self, image: bytes | None = None, area: Sequence[float] = (100, 100, 180, 180)) -> Any:
        request = {"prompts": [{"type": "box", "box": area, "label": self.label}]}
        form = aiohttp.FormData()
        form.add_field("request", json.dumps(request), content_type="application/json")
        content = io.BytesIO(self.image if image is None else image)
        form.add_field("image", content, filename=self.file_name, content_type="image/png")
        return form

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.job.token}"}


class Audit:
    """A service under audit, and what came of it.

    Args:
        places: everything that can be searched now.
        missing: the kinds of places that cannot be.
        own: the service is ours, so its worker may be stopped and killed.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        places: Callable[[], Iterator[Place]],
        missing: list[str],
        own: bool,
    ) -> None:
        self.session = session
        self.rows: list[Row] = []
        self.skipped: list[str] = []
        self._places = places
        self._missing = missing
        self._own = own

    async def run(self) -> None:
        """All ways, one after another."""
        info = await (await self.session.get("/v1/info")).json()
        upload_s, result_s = info["limits"]["upload_timeout_s"], info["retention"]["result_ttl_s"]
        await self._go("success", self.success)
        await self._go("refusal", self.refusal)
        await self._go("failure", self.failure)
        await self._go("time-out", lambda canary: self.time_out(canary, upload_s))
        await self._go("never fetched", lambda canary: self.never_fetched(canary, result_s))
        if self._own:
            await self._go("crash", self.crash)
            image_s = info["retention"]["image_ttl_s"]
            await self._go("expiry", lambda canary: self.expiry(canary, image_s))
        else:
            self.skipped = ["crash", "expiry"]

    async def _go(self, name: str, way: Callable[[Canary], Awaitable[None]]) -> None:
        canary = Canary(name)
        print(f"audit: {name} …", file=sys.stderr, flush=True)
        await way(canary)
        await asyncio.sleep(0.3)  # log lines are written after the answer
        await self._search(canary, "afterwards")

    async def _search(self, canary: Canary, moment: str) -> None:
        places = list(self._places())
        found = find(places, canary.secrets)
        counts = Counter(place.kind for place in places)
        self.rows.append(Row(canary.way, moment, dict(counts), found, self._missing))

    async def success(self, canary: Canary) -> None:
        await self._submit(canary)
        await self._search(canary, "submitted")
        await self._settled(canary, "done")
        await self._search(canary, "result is there")
        await self._fetch(canary, 200)

    async def refusal(self, canary: Canary) -> None:
        """Nothing that was sent may be quoted in what is written about it."""
        await self._submit(canary, 415, canary.form(b"GIF89a" + canary.image))
        await self._submit(canary, 422, canary.form(area=(180, 180, 100, 100)))
        async with self.session.post(
            "/v1/jobs",
            data=io.BytesIO(canary.image),
            headers={"Content-Type": "image/png", **canary.headers},
            params={"request": '{"prompts": "' + canary.label},
        ) as answer:
            _expect(answer.status, 400)

    async def failure(self, canary: Canary) -> None:
        """An image that breaks off, which only the worker can notice."""
        await self._submit(canary, form=canary.form(canary.image[:-100_000]))
        await self._settled(canary, "done")
        await self._search(canary, "failure is there")
        await self._fetch(canary, 422)

    async def time_out(self, canary: Canary, seconds: float) -> None:
        """An upload that stops half-way."""

        async def half() -> AsyncIterator[bytes]:
            yield canary.image[: len(canary.image) * 3 // 4]
            await asyncio.sleep(seconds / 2)
            await self._search(canary, "half is there")
            await asyncio.sleep(seconds)

        headers = {"Content-Type": "image/png", **canary.headers}
        with contextlib.suppress(aiohttp.ClientConnectionError):  # it may hang up on us
            async with self.session.post("/v1/jobs", data=half(), headers=headers) as answer:
                _expect(answer.status, 408)

    async def never_fetched(self, canary: Canary, seconds: float) -> None:
        await self._submit(canary)
        await self._settled(canary, "done")
        await asyncio.sleep(seconds + 0.5)
        await self._fetch(canary, 410)

    async def crash(self, canary: Canary) -> None:
        """The worker is killed while it has the job in hand; its successor runs it again."""
        await self._submit(canary)
        for _ in range(2000):
            if await self._status(canary) != "queued":
                break
            await asyncio.sleep(0.002)
        for pid in _workers():
            os.kill(pid, signal.SIGKILL)
        await self._search(canary, "worker is dead")
        status = await self._settled(canary, "done", "gone")
        await self._search(canary, "another has run it")
        await self._fetch(canary, 200 if status == "done" else 410)

    async def expiry(self, canary: Canary, seconds: float) -> None:
        """No worker comes to the job while it lives."""
        stopped = _workers()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            await self._submit(canary)
            await self._search(canary, "waits")
            await asyncio.sleep(seconds + 0.5)
            await self._fetch(canary, 410)
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)

    async def _submit(self, canary: Canary, status: int = 202, form: Any = None) -> None:
        for _ in range(200):
            async with self.session.post(
                "/v1/jobs", data=form or canary.form(), headers=canary.headers
            ) as answer:
                if answer.status != 503 or form is not None:
                    _expect(answer.status, status)
                    return
            await asyncio.sleep(0.1)
        raise SettingsError("The service took no job for 20 s.")

    async def _status(self, canary: Canary) -> str:
        async with self.session.get(f"/v1/jobs/{canary.job.id}", headers=canary.headers) as answer:
            return "gone" if answer.status == 410 else str((await answer.json())["status"])

    async def _settled(self, canary: Canary, *wanted: str) -> str:
        for _ in range(1200):
            status = await self._status(canary)
            if status in wanted:
                return status
            await asyncio.sleep(0.05)
        raise SettingsError(f"{canary.way}: the job was not {' or '.join(wanted)} within 60 s.")

    async def _fetch(self, canary: Canary, status: int) -> None:
        path = f"/v1/jobs/{canary.job.id}/result"
        async with self.session.get(path, headers=canary.headers) as answer:
            _expect(answer.status, status)
            await answer.read()


def _expect(status: int, wanted: int) -> None:
    if status != wanted:
        raise SettingsError(f"The service answered {status} where the audit expects {wanted}.")


async def run(options: argparse.Namespace) -> int:
    """Returns 1 on a finding, or when the search is blind."""
    if bool(options.server) != bool(options.redis):
        raise SettingsError("--server and --redis belong together.")
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mayfly-audit-")))
        logs, folders, pids = options.log, options.folder, options.pid
        url, redis_url = options.server, options.redis
        if own := url is None:
            log = stack.enter_context((folder / "service.log").open("wb"))
            settings = {**_OWN, "TMPDIR": str(folder)}
            url = await stack.enter_async_context(local_service(environment=settings, log=log))
            redis_url = f"unix://{next(folder.glob('mayfly-*/valkey.sock'))}"
            logs, folders = [folder / "service.log"], [folder]
        client = stack.enter_context(redis.Redis.from_url(redis_url))
        missing = [] if own else _not_given(options)
        begin = time.time()

        def places() -> Iterator[Place]:
            yield from in_redis(client)
            for path in logs:
                yield from in_files(path, "log")
            for path in folders:
                yield from (each for each in in_files(path) if each.name != "service.log")
            for pid in [os.getpid(), *(_family(os.getpid()) if own else pids)]:
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    try:
                        yield from open_files(pid)
                    except PermissionError:
                        if "open file (needs root)" not in missing:
                            missing.append("open file (needs root)")
            yield from _cores(begin)

        blind = _control(places, client, folder, own)
        headers = {"X-API-Key": options.api_key} if options.api_key else {}
        session = await stack.enter_async_context(
            aiohttp.ClientSession(url, headers=headers, connector=_connector(options.ca))
        )
        audit = Audit(session, places, missing, own)
        if not blind:
            await audit.run()
    return _report(audit, blind, options.json)


def _connector(ca: Path | None) -> aiohttp.TCPConnector:
    """A new connection for each call: whoever keeps one could be hung up on meanwhile."""
    trust = ssl.create_default_context(cafile=str(ca)) if ca else True
    return aiohttp.TCPConnector(ssl=trust, force_close=True)


def _not_given(options: argparse.Namespace) -> list[str]:
    given = {"log": options.log, "file": options.folder, "open file": options.pid}
    return [kind for kind, value in given.items() if not value]


def _control(
    places: Callable[[], Iterator[Place]], client: "redis.Redis", folder: Path, own: bool
) -> list[str]:
    """Plant a canary wherever something can be planted; returns where it was not found."""
    secret = secrets.token_bytes(32)
    server: Any = client
    key = f"mayfly:audit:{secrets.token_hex(4)}"
    server.set(key, repr(secret), px=30_000)
    planted = folder / "core.control"
    planted.write_bytes(secret.hex().encode())
    expected = ["redis key", "open file"]
    if own:  # of another server nothing is changed
        name = "commandlog-execution-slower-than"
        was = server.config_get(name)[name]
        server.config_set(name, "0")
        server.echo(secret)
        server.config_set(name, was)
        expected += ["slow log", "file"]
    with tempfile.TemporaryFile(dir=folder) as held:
        held.write(b"log line " + json.dumps(secret.decode("latin-1")).encode())
        held.flush()
        found = find(
            [*places(), *in_files(planted, "log"), *in_files(planted, "core")], {"control": secret}
        )
    server.delete(key)
    planted.unlink()
    if own:
        server.execute_command("COMMANDLOG", "RESET", "slow")
    expected += ["log", "core"]
    return [kind for kind in expected if not any(f"in {kind} " in each for each in found)]


def _cores(since: float) -> Iterator[Place]:
    """Core files of this folder and where systems collect them, written since."""
    for path in [*Path.cwd().glob("core*"), *(p for folder in _CORES for p in folder.glob("*"))]:
        with contextlib.suppress(OSError):
            if path.is_file() and path.stat().st_mtime >= since:
                yield Place("core", path.name, path.read_bytes())


def _family(pid: int) -> list[int]:
    """All processes that a process has started, and theirs."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children += map(int, task.read_text().split())
    return children + [each for child in children for each in _family(child)]


def _workers() -> list[int]:
    """Of the service that this process has started."""
    found = []
    for pid in _family(os.getpid()):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().endswith(b"\0-m\0worker\0"):
                found.append(pid)
    return found


def _report(audit: Audit, blind: list[str], as_json: bool) -> int:
    findings = [finding for row in audit.rows for finding in row.findings]
    clean = not findings and not blind
    body = {
        "version": __version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "control_found_nothing_in": blind,
        "not_run": audit.skipped,
        "rows": msgspec.to_builtins(audit.rows),
        "clean": clean,
    }
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    if as_json:
        print(json.dumps({**body, "sha256": digest}, indent=1))
        return 0 if clean else 1
    print(f"{'way':15}{'moment':22}" + "".join(f"{kind + 's':>13}" for kind in KINDS) + "  found")
    for row in audit.rows:
        counts = "".join(f"{row.searched.get(kind, 0):13}" for kind in KINDS)
        print(f"{row.way:15}{row.moment:22}{counts}  {len(row.findings) or 'nothing'}")
    for finding in findings:
        print(f"FOUND: {finding}")
    for kind in sorted({kind for row in audit.rows for kind in row.not_searched}):
        print(f"not searched: {kind}")
    for way in audit.skipped:
        print(f"not run: {way}; only a service of the audit's own is disturbed")
    for kind in blind:
        print(f"BLIND: the planted canary was not found in a {kind}")
    verdict = "nothing is left" if clean else "NOT CLEAN"
    print(f"signed off: {verdict}; mayfly {__version__}, {body['time']}, sha256 {digest}")
    return 0 if clean else 1
