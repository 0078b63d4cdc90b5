"""Real processes: `mayfly serve` as a user starts it."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis


class Service:
    """A running `mayfly serve` with its own folder for temporary files and its log in a file."""

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        self.data = folder / "data"
        self.tmp = Path(tempfile.mkdtemp(prefix="e2e-"))  # paths of sockets must be short
        weakref.finalize(self, shutil.rmtree, self.tmp, ignore_errors=True)
        self.log = folder / "service.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "scripts.cli", "serve", "--port", "0", *options],
                stdout=subprocess.PIPE,
                stderr=log,
                env={
                    **os.environ,
                    "TMPDIR": str(self.tmp),
                    "MAYFLY_DATA_DIR": str(self.data),
                    "MAYFLY_LOG_LEVEL": "DEBUG",
                    **environment,
                },
            )
        assert self.process.stdout
        line = self.process.stdout.readline().decode().split()
        assert line[:1] == ["ready"], self.log.read_text()
        self.url = line[1]

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, role: str) -> psutil.Process:
        return next(c for c in self.children() if c.cmdline()[-1] == role)

    def valkey(self) -> Any:
        socket = next(self.tmp.glob("mayfly-*/valkey.sock"))
        return redis.Redis.from_url(f"unix://{socket}")

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """End it; returns the exit code and how long it took."""
        begin = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(20)
        assert self.process.stdout
        self.process.stdout.close()
        return code, time.monotonic() - begin


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all tests that only use it."""
    service = Service(tmp_path_factory.mktemp("service"))
    yield service
    service.stop()
