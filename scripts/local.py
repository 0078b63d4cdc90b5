"""A whole service for the time of one command."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Mapping
from typing import IO

from scripts.processes import child_setup, stop

_START_S = 120.0


@contextlib.asynccontextmanager
async def local_service(
    *options: str,
    environment: Mapping[str, str] | None = None,
    log: IO[bytes] | None = None,
) -> AsyncIterator[str]:
    """Run `mayfly serve` on a free port; yields its URL and stops it in the end.

    Args:
        log: where its log goes instead of stderr.

    Raises:
        RuntimeError: it did not become ready; its own message stands on stderr.
    """
    # What it is sent lies on this machine's disk anyway, so swap may be there.
    defaults = {"MAYFLY_LOG_LEVEL": "WARNING", "MAYFLY_ALLOW_SWAP": "true"}
    settings = {**defaults, **os.environ, **(environment or {})}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # never from the current folder
        "-m",
        "scripts.cli",
        "serve",
        "--port",
        "0",
        *options,
        stdout=asyncio.subprocess.PIPE,
        stderr=log,
        env=settings,
        preexec_fn=child_setup,
    )
    try:
        assert process.stdout  # it was asked for above  # noqa: S101
        async with asyncio.timeout(_START_S):
            line = (await process.stdout.readline()).decode().split()
        if len(line) != 2 or line[0] != "ready":
            raise RuntimeError("the service did not start; the lines above say why")
        yield line[1]
    finally:
        await stop([process], 20)
