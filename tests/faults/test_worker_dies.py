"""Jobs that take their worker with them, in real worker processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from jobs.sealing import PrivateKey, key_text
from jobs.settings import Settings
from jobs.store import Store
from tests.calls import call, submit
from tests.conftest import picture_bytes, running_front_door


def _worker(url: str, key_file: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.echo_worker"],
        cwd=Path(__file__).parents[2],
        env={
            **os.environ,
            "MAYFLY_REDIS_URL": url,
            "MAYFLY_WORKER_KEY_FILE": str(key_file),
            "MAYFLY_FORWARD_TIMEOUT_S": "1",
        },
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(("label", "exit_code"), [("wedged", 70), ("deadly", 1)])
async def test_a_poison_job_fails_alone_after_its_second_worker(
    valkey: "redis.Redis",
    valkey_url: str,
    store: Store,
    settings: Settings,
    key: PrivateKey,
    tmp_path: Path,
    label: str,
    exit_code: int,
) -> None:
    """A hung device or a crash: two workers end, the third gives the job up; its neighbours, in
    hand at the first crash, are annotated."""
    key_file = tmp_path / "key"
    key_file.write_text(key_text(key.raw))
    prompt = {"type": "box", "box": [1, 1, 9, 9], "label": label}
    async with running_front_door(settings, key) as session:
        poison = (await submit(session, picture_bytes(), {"prompts": [prompt]})).json
        others = [(await submit(session, picture_bytes())).json for _ in range(5)]
        for _ in range(2):
            assert _worker(valkey_url, key_file).wait(20) == exit_code
        last = _worker(valkey_url, key_file)
        try:
            path = poison["links"]["result"] + "?wait=20"
            given_up = await call(session, "GET", path, poison["token"])
            assert (given_up.status, given_up.code) == (500, "worker_crashed")
            for job in others:
                answer = await call(
                    session, "GET", job["links"]["result"] + "?wait=20", job["token"]
                )
                assert answer.status == 200
        finally:
            last.terminate()
            assert last.wait(15) == 0
