"""What is measured runs in processes of its own: pinned, looked at, and ended by pid."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import psutil

from scripts.processes import child_setup, stop

ROOT = Path(__file__).parents[2]


class Group:
    """A server: its processes by name, and all that these start."""

    def __init__(self) -> None:
        self._processes: dict[str, asyncio.subprocess.Process] = {}

    async def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        cores: Sequence[int],
        pipe: bool = False,
    ) -> None:
        """Start one more process of this server, on `cores` and on no other.

        Args:
            pipe: let `said` and `ask` talk to it, instead of logging what it says.
        """

        def setup() -> None:
            child_setup()
            os.sched_setaffinity(0, cores)

        with log.open("ab") as file:
            self._processes[name] = await asyncio.create_subprocess_exec(
                *command,
                env={**_inherited(), "PYTHONPATH": str(ROOT), **environment},
                stdin=asyncio.subprocess.PIPE if pipe else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if pipe else file,
                stderr=file,
                preexec_fn=setup,
            )

    async def said(self, name: str, prefix: str, seconds: float) -> str:
        """The rest of the line that begins with `prefix`, which a process says next.

        Raises:
            RuntimeError: it said something else, or ended.
        """
        output = self._processes[name].stdout
        assert output  # noqa: S101 - it was started with a pipe
        async with asyncio.timeout(seconds):
            line = (await output.readline()).decode()
        if not line.startswith(prefix):
            raise RuntimeError(f"{name} did not start; see its log")
        return line[len(prefix) :].strip()

    async def ask(self, name: str, line: str, seconds: float) -> str:
        """What a process answers to one line."""
        put = self._processes[name].stdin
        assert put  # noqa: S101 - it was started with a pipe
        put.write(f"{line}\n".encode())
        await put.drain()
        return await self.said(name, "", seconds)

    def members(self, name: str | None = None) -> list[psutil.Process]:
        """The processes, or the one of that `name`, with all their descendants."""
        found = []
        for process in [self._processes[name]] if name else self._processes.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = psutil.Process(process.pid)
                found += [parent, *parent.children(recursive=True)]
        return found

    def running(self) -> bool:
        """Whether none of those that were started has ended."""
        return all(process.returncode is None for process in self._processes.values())

    def cpu_s(self, name: str | None = None) -> float:
        """CPU time of all their threads that live, as exactly as the scheduler knows it."""
        return sum(_cpu_s(process) for process in self.members(name))

    def memory_mb(self) -> float:
        """Memory of all of them; of shared pages each has its share."""
        total = 0
        for process in self.members():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
        return total / 1e6

    def signal(self, number: int, name: str | None = None) -> None:
        """Send a signal to all of them, or to the one of that `name` and its descendants."""
        for process in self.members(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    async def end(self) -> None:
        """End all of them, and whoever they would leave behind."""
        members = self.members()
        self.signal(signal.SIGCONT)  # a stopped process would not hear that it is to end
        await stop(list(self._processes.values()), 2)
        left = [process for process in members if process.is_running()]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()  # psutil has made sure that the pid is still this process
        psutil.wait_procs(left, timeout=3)
        self._processes.clear()


@contextlib.asynccontextmanager
async def group() -> AsyncIterator[Group]:
    """A group that is ended when the body ends."""
    processes = Group()
    try:
        yield processes
    finally:
        await processes.end()


def python(module: str, *arguments: str) -> list[str]:
    """A command that runs a module of ours."""
    return [sys.executable, "-P", "-m", module, *arguments]


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MAYFLY_")}


def _cpu_s(process: psutil.Process) -> float:
    total = 0
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            with contextlib.suppress(OSError):  # it has just ended
                total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9
