"""The whole service on one machine: a private Valkey, the front door and its workers."""

import asyncio
import contextlib
import dataclasses
import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from api.usage import settle
from jobs.memory import Memory
from jobs.process import EX_CONFIG, background, harden, stop_signal
from jobs.sealing import PrivateKey, key_text
from jobs.settings import Settings, SettingsError
from scripts import certificates
from scripts.processes import child_setup, stop
from scripts.valkey import private_valkey

log = logging.getLogger(__name__)
_KEYS = ("MAYFLY_WORKER_KEY_FILE", "MAYFLY_WORKER_PUBLIC_KEY_FILE")
_MARGIN_S = 3.0  # on top of the drain time, before a child is killed


class _ConfigurationRefused(Exception):
    """A role ended with EX_CONFIG; it has said why."""


async def run(
    settings: Settings, workers: int, front_doors: int = 1, *, self_signed: bool = False
) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. The front door says `ready URL`."""
    stopping = stop_signal()
    async with contextlib.AsyncExitStack() as stack:
        # the roles' temporary files, should a library make one, go when the service goes
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mayfly-")))
        os.environ["TMPDIR"] = str(folder)
        if front_doors > 1:
            os.environ["MAYFLY_REUSE_PORT"] = "true"
            if settings.port == 0:
                os.environ["MAYFLY_PORT"] = str(stack.enter_context(_free_port(settings.host)))
        url = settings.redis_url or await stack.enter_async_context(private_valkey(folder))
        given = settings.worker_key_file
        keys = PrivateKey.load(given) if given else [PrivateKey.new()]
        for_worker = {"MAYFLY_WORKER_KEY_FILE": key_text(*(k.raw for k in keys)).encode()}
        for_api = {
            "MAYFLY_WORKER_PUBLIC_KEY_FILE": key_text(*(k.public.raw for k in keys)).encode()
        }
        if self_signed:
            for_api |= _own_certificate(settings, folder)
            os.environ["MAYFLY_HSTS_S"] = "0"  # browsers must not insist on it after the trial
        harden()
        if unsafe := Memory(settings).findings():  # the key is in this process as well
            raise SettingsError("\n  ".join(unsafe))
        supervisor = _Supervisor(url, {"api": for_api, "worker": for_worker}, settings.drain_s)
        roles = [supervisor.keep("api"), *(supervisor.keep("worker") for _ in range(workers))]
        roles += [supervisor.keep("api", quiet=True) for _ in range(front_doors - 1)]
        try:
            async with background(*roles) as tasks:
                stopped = asyncio.create_task(stopping.wait())
                await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
                stopped.cancel()
                await supervisor.close()
                await settle(dataclasses.replace(settings, redis_url=url))
        except _ConfigurationRefused:
            return EX_CONFIG
    return 0


class _Supervisor:
    """Starts roles as processes of their own, and again when they die."""

    def __init__(
        self, redis_url: str, secrets: Mapping[str, Mapping[str, bytes]], drain_s: float
    ) -> None:
        self._redis_url = redis_url
        self._secrets = secrets
        self._drain_s = drain_s
        self._running: list[asyncio.subprocess.Process] = []
        self._closing = False

    async def keep(self, role: str, *, quiet: bool = False) -> None:
        """Run a role; restart it with a growing pause if it ends by itself.

        One front door says that it is ready, the others are `quiet`.
        """
        pause = 0.1
        while not self._closing:
            started = time.monotonic()
            process = await self._start(role, quiet)
            self._running.append(process)
            code = await process.wait()
            self._running.remove(process)
            if self._closing:
                return
            if code == EX_CONFIG:
                raise _ConfigurationRefused
            log.error("role ended", extra={"fields": {"role": role, "exit_code": code}})
            pause = 0.1 if time.monotonic() - started > 30 else min(pause * 2, 5)
            await asyncio.sleep(pause)

    async def _start(self, role: str, quiet: bool) -> asyncio.subprocess.Process:
        """Keys go through pipes: never on a disk, a command line or in the environment."""
        environment = {k: v for k, v in os.environ.items() if k not in _KEYS}
        environment["MAYFLY_REDIS_URL"] = self._redis_url
        pipes = []
        for name, content in self._secrets[role].items():
            read_end, write_end = os.pipe()
            os.write(write_end, content)
            os.close(write_end)
            pipes.append(read_end)
            environment[name] = f"/dev/fd/{read_end}"
        try:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # never from the current folder
                "-m",
                role,
                env=environment,
                stdout=asyncio.subprocess.DEVNULL if quiet else None,
                pass_fds=pipes,
                preexec_fn=child_setup,
            )
        finally:
            for read_end in pipes:
                os.close(read_end)

    async def close(self) -> None:
        self._closing = True
        await stop(list(self._running), self._drain_s + _MARGIN_S)


@contextlib.contextmanager
def _free_port(host: str) -> Iterator[int]:
    """A port that several front doors may share: held, but not listened on, so that none of their
    connections ends up here."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((host, 0))
        yield held.getsockname()[1]


def _own_certificate(settings: Settings, folder: Path) -> dict[str, bytes]:
    """Made at the start, gone at the end; clients find the public half in `folder` meanwhile."""
    certificate, key = certificates.self_signed([settings.host])
    public = folder / "certificate.pem"
    public.write_bytes(certificate)
    print(
        f"self-signed certificate, for a trial: {public}\n"
        f"SHA-256 {certificates.fingerprint(certificate)}",
        file=sys.stderr,
    )
    return {"MAYFLY_TLS_CERT": certificate, "MAYFLY_TLS_KEY": key}
