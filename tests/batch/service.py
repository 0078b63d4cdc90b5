"""A service of real processes whose model costs nothing: Valkey, one front door, one worker."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from jobs.sealing import PrivateKey, key_text
from scripts.processes import child_setup, stop
from scripts.valkey import private_valkey


@contextlib.asynccontextmanager
async def running_service(folder: Path, model: str = "bright") -> AsyncIterator[str]:
    """Yields its URL when jobs are answered; logs go to `folder`. The model is one of the fakes."""
    key = PrivateKey.new()
    (folder / "worker.key").write_text(key_text(key.raw))
    (folder / "worker.pub").write_text(key_text(key.public.raw))
    async with private_valkey(folder) as redis_url:
        environment = {
            **os.environ,
            "MAYFLY_REDIS_URL": redis_url,
            "MAYFLY_PORT": "0",
            "MAYFLY_DATA_DIR": str(folder / "data"),
            "MAYFLY_LOG_LEVEL": "WARNING",
            "MAYFLY_WORKER_KEY_FILE": str(folder / "worker.key"),
            "MAYFLY_WORKER_PUBLIC_KEY_FILE": str(folder / "worker.pub"),
        }
        processes = []
        try:
            for module, *more in (("tests.batch.bright_worker", model), ("api",)):
                with (folder / f"{module}.log").open("wb") as log:
                    process = await asyncio.create_subprocess_exec(
                        sys.executable,
                        "-m",
                        module,
                        *more,
                        env=environment,
                        stdout=asyncio.subprocess.PIPE,
                        stderr=log,
                        preexec_fn=child_setup,
                    )
                processes.append(process)
            door = processes[-1].stdout
            assert door
            async with asyncio.timeout(60):
                word, url = (await door.readline()).decode().split()
            assert word == "ready"
            yield url
        finally:
            await stop(processes, 20)
