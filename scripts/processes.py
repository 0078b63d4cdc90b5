"""Child processes that end with their parent."""

import asyncio
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def child_setup() -> None:
    """Run in the child before exec: its own session, so that Ctrl-C reaches the parent alone,
    which then stops its children in order; and a SIGTERM should the parent be killed (Linux)."""
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


async def stop(processes: list[asyncio.subprocess.Process], seconds: float) -> None:
    """Ask them to end; kill those that have not after `seconds`."""
    alive = [process for process in processes if process.returncode is None]
    for process in alive:
        process.terminate()
    try:
        async with asyncio.timeout(seconds):
            await asyncio.gather(*(process.wait() for process in alive))
    except TimeoutError:
        for process in alive:
            if process.returncode is None:
                process.kill()
        await asyncio.gather(*(process.wait() for process in alive))
