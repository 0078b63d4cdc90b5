"""`mayfly serve` and the single roles, as real processes."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import psutil
import pytest

from scripts.client import Client
from tests.calls import BOX_REQUEST
from tests.conftest import picture_bytes
from tests.e2e.conftest import Service

PYTHON = sys.executable


def _refusal(*command: str, **environment: str) -> str:
    """What a command says that ends with 78, EX_CONFIG."""
    run = subprocess.run(
        [PYTHON, *command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 78, run.stderr
    return run.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serve_answers_and_leaves_nothing_behind(tmp_path: Path, number: int) -> None:
    """From `ready` on a job is answered; a signal ends every process within 15 s."""
    service = Service(tmp_path)
    children = service.children()
    assert len(children) == 3, "Valkey, the front door and a worker"
    async with Client(service.url) as client:
        assert (await client.annotate(picture_bytes((200, 200)), BOX_REQUEST)).annotations
    code, seconds = service.stop(number)
    assert code == 0
    assert seconds < 15
    assert [child for child in children if child.is_running()] == []
    assert list(service.tmp.iterdir()) == []


def test_a_temporary_folder_too_deep_for_a_socket_is_named(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    told = _refusal("-m", "scripts.cli", "serve", TMPDIR=str(deep), MAYFLY_PORT="0")
    assert "Set TMPDIR to a folder with a shorter path" in told
    assert list(deep.iterdir()) == []


async def test_running_jobs_finish_before_the_end(tmp_path: Path) -> None:
    """A worker that is told to stop finishes what it has in hand."""
    service = Service(tmp_path)
    async with Client(service.url) as client:
        job = await client.submit(picture_bytes((200, 200)), BOX_REQUEST)
        worker = service.child("worker")
        worker.terminate()
        assert b'"annotated"' in await client.fetch(job)
    service.stop()


async def test_a_dead_role_is_started_again(tmp_path: Path) -> None:
    """`kill -9` of the worker: its supervisor starts another, and jobs go on."""
    service = Service(tmp_path)
    try:
        async with Client(service.url) as client:
            service.child("worker").kill()
            job = await client.submit(picture_bytes((200, 200)), BOX_REQUEST)
            assert b'"annotated"' in await client.fetch(job)
    finally:
        service.stop()


async def test_several_front_doors_share_one_port(tmp_path: Path) -> None:
    """While the first one hangs the other serves connections, and when it has died as well."""
    service = Service(tmp_path, "--front-doors", "2")
    try:
        doors = [child for child in service.children() if child.cmdline()[-1] == "api"]
        assert len(doors) == 2
        async with Client(service.url) as client:
            job = await client.submit(picture_bytes((200, 200)), BOX_REQUEST)
        for door in doors:
            door.suspend()
            assert await _answered(service.url), "by the other one"
            door.resume()
        doors[0].kill()
        assert await _answered(service.url)
        async with Client(service.url) as client:
            assert b'"annotated"' in await client.fetch(job)
    finally:
        service.stop()


async def _answered(url: str) -> bool:
    """Whether one of many new connections is served; the kernel gives some to who hangs."""
    for _ in range(40):
        timeout = aiohttp.ClientTimeout(total=0.5)
        with contextlib.suppress(TimeoutError, aiohttp.ClientError):
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(f"{url}/healthz") as response,
            ):
                return response.status == 200
    return False


def test_children_end_with_a_killed_parent(tmp_path: Path) -> None:
    service = Service(tmp_path)
    children = service.children()
    service.stop(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=15)
    assert alive == []


async def test_single_roles_work_together(valkey_url: str, valkey: object, tmp_path: Path) -> None:
    """`mayfly keys worker`, `python -m worker`, `mayfly api` on one Redis, as compose runs them."""
    made = subprocess.run(
        [PYTHON, "-m", "scripts.cli", "keys", "worker", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    key, public = tmp_path / "worker.key", tmp_path / "worker.pub"
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.read_text().strip() not in made.stdout
    environment = {
        **os.environ,
        "MAYFLY_REDIS_URL": valkey_url,
        "MAYFLY_WORKER_KEY_FILE": str(key),
        "MAYFLY_WORKER_PUBLIC_KEY_FILE": str(public),
        "MAYFLY_PORT": "0",
    }
    worker = subprocess.Popen([PYTHON, "-m", "worker"], env=environment, stderr=subprocess.DEVNULL)
    api = subprocess.Popen(
        [PYTHON, "-m", "scripts.cli", "api"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert api.stdout
    try:
        ready = api.stdout.readline().split()
        assert ready[0] == "ready"
        async with Client(ready[1]) as client:
            assert (await client.annotate(picture_bytes((200, 200)), BOX_REQUEST)).annotations
    finally:
        for process in (api, worker):
            process.terminate()
        assert [process.wait(15) for process in (api, worker)] == [0, 0]
        api.stdout.close()


@pytest.mark.parametrize(
    ("command", "environment", "told"),
    [
        (["-m", "api"], {}, "MAYFLY_WORKER_PUBLIC_KEY_FILE is not set"),
        (["-m", "worker"], {}, "MAYFLY_WORKER_KEY_FILE is not set"),
        (["-m", "worker"], {"MAYFLY_WORKER_KEY_FILE": "/nowhere"}, "cannot be read"),
        (["-m", "api"], {"MAYFLY_PORT": "many"}, "MAYFLY_PORT must be a number"),
        (["-m", "api"], {"MAYFLY_PROT": "1"}, "MAYFLY_PROT is not a setting"),
        (["-m", "scripts.cli", "serve"], {"MAYFLY_MODELS": "dowsing"}, "no model dowsing"),
        (
            ["-m", "scripts.cli", "serve"],
            {"MAYFLY_MODELS": "ssdlite320_mobilenet_v3_large", "MAYFLY_WEIGHTS_DIR": "/nowhere"},
            "mayfly models fetch ssdlite320_mobilenet_v3_large",
        ),
    ],
)
def test_a_wrong_setting_ends_with_78_and_says_what_to_do(
    command: list[str], environment: dict[str, str], told: str
) -> None:
    assert told in _refusal(*command, **{"MAYFLY_PORT": "0", **environment})


def test_a_taken_port_is_said_so(running: Service) -> None:
    port = running.url.rpartition(":")[2]
    told = _refusal("-m", "scripts.cli", "serve", "--port", port)
    assert "Choose another --port" in told
