"""Ways in which jobs were lost once."""

import asyncio
import time

import pytest
import redis
from redis.exceptions import TimeoutError as RedisTimeoutError

from jobs.sealing import Capability, PrivateKey
from jobs.settings import Settings
from jobs.store import Store, queue_key
from tests.calls import BOX, call, submit
from tests.conftest import picture_bytes, running_front_door, running_worker
from tests.fakes import Echo

MODEL = "exemplar"


async def test_jobs_that_come_at_the_same_moment_all_stay_in_the_queue(
    store: Store, valkey: "redis.Redis"
) -> None:
    """A submission sweeps dead entries out; one of some microseconds before is not dead."""
    ids = [Capability.new().id for _ in range(500)]
    outcomes = await asyncio.gather(
        *(store.submit(i, b"sealed", MODEL, bulk=False, subject="x") for i in ids)
    )
    assert set(outcomes) == {"queued"}
    assert valkey.zcard(queue_key(MODEL)) == len(ids)


async def test_a_worker_does_not_start_what_it_is_running(
    store: Store,
    valkey: "redis.Redis",
    key: PrivateKey,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Redis hung for longer than a lease: the worker finds its own job free, and leaves it so."""
    request = {"prompts": [{"type": "box", "box": BOX, "label": "slow"}]}
    async with (
        running_worker(store, key, Echo(), settings) as worker,
        running_front_door(settings, key) as session,
    ):
        job = (await submit(session, picture_bytes(), request)).json
        deadline = time.monotonic() + 5
        while not worker.tasks:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        running = dict(worker.tasks)
        valkey.delete(f"arq:in-progress:{job['id']}")
        worker._wake.set()
        await asyncio.sleep(0.1)
        assert worker.tasks == running
        answer = await call(session, "GET", job["links"]["result"] + "?wait=5", job["token"])
        assert answer.status == 200
    assert "Exception in callback" not in caplog.text


async def test_a_redis_that_answers_late_costs_a_job_time_and_not_its_life(
    store: Store, key: PrivateKey, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """arq takes an exception for the end of a job; this one only means: again."""
    take = store.take
    failed: list[str] = []

    async def hung_once(job_id: str) -> bytes | None:
        if not failed:
            failed.append(job_id)
            raise RedisTimeoutError("Timeout reading from socket")
        return await take(job_id)

    monkeypatch.setattr(store, "take", hung_once)
    async with (
        running_worker(store, key, Echo(), settings),
        running_front_door(settings, key) as session,
    ):
        answer = await submit(session, picture_bytes(), headers={"Prefer": "wait=8"})
        assert (failed != [], answer.status) == (True, 200)
