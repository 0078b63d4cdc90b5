"""What every long-running process of Mayfly does at its start: logs, no core dumps, signals."""

import asyncio
import contextlib
import ctypes
import logging
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import uvloop

from jobs.settings import Settings, SettingsError

EX_CONFIG = 78  # sysexits.h: the set-up must be changed; restarting will not help
_PR_SET_DUMPABLE = 4
_OURS = ("api", "worker", "jobs", "scripts")


def timestamp(seconds: float) -> str:
    """A moment as logs write it: ISO 8601, UTC, milliseconds. Sorts by time as text."""
    whole, ms = divmod(int(seconds * 1000), 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{ms:03d}Z"


class JsonLines(logging.Formatter):
    """One JSON object a line, with nothing in it that was not meant for it.

    Of other libraries' records only the template is kept, of exceptions only the types and the
    places in the code: arguments and messages can quote what a user sent.
    """

    def format(self, record: logging.LogRecord) -> str:
        ours = record.name.split(".")[0] in _OURS
        line: dict[str, Any] = {
            "time": timestamp(record.created),
            "level": record.levelname,
            "event": record.getMessage() if ours else str(record.msg),
            **getattr(record, "fields", {}),
        }
        if not ours:
            line["logger"] = record.name
        if record.exc_info and record.exc_info[0]:
            line["error"] = record.exc_info[0].__name__
            line["at"] = [
                f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(record.exc_info[2])
            ][-6:]
        return msgspec.json.encode(line).decode()


def configure_logging(settings: Settings) -> None:
    """Log to stderr as JSON lines; other libraries only from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in _OURS:
        logging.getLogger(name).setLevel(settings.log_level)


def harden() -> None:
    """No core file, and no other process of the user may read this one's memory (Linux).

    The flag is lost on exec, so each process sets its own. Read key files before: afterwards
    ``/proc/self/fd`` belongs to root.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def stop_signal() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    return stopping


async def until_stopped(stopping: asyncio.Event, tasks: list["asyncio.Task[Any]"]) -> None:
    """Wait for the signal; a task that fails is one, too."""

    def end(task: "asyncio.Task[Any]") -> None:
        if not task.cancelled() and task.exception():
            stopping.set()

    for task in tasks:
        task.add_done_callback(end)
    await stopping.wait()


def run(role: Callable[[Settings], Coroutine[Any, Any, int]]) -> int:
    """Read the settings and run one role to its end; returns the process's exit code."""
    try:
        settings = Settings.from_env(os.environ)
        configure_logging(settings)
        return uvloop.run(role(settings))
    except SettingsError as error:
        print(f"mayfly: {error}", file=sys.stderr)  # noqa: T201 - for the operator, before logs
        return EX_CONFIG
    except KeyboardInterrupt:
        return 130


@contextlib.asynccontextmanager
async def background(*coroutines: Coroutine[Any, Any, Any]) -> Any:
    """Run coroutines beside the body; cancel them when it ends, raise if one of them fails."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield tasks
    finally:
        alive = set(tasks)
        while alive:  # a library may swallow a cancellation, so say it again
            for task in alive:
                task.cancel()
            _, alive = await asyncio.wait(alive, timeout=0.5)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()):
                raise error
