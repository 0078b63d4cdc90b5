"""A worker on a real queue: what it does when things break."""

import asyncio
import dataclasses
import time
from typing import Any

import msgspec
import pytest
import redis
from arq import Worker, func
from arq.connections import ArqRedis

from jobs.contract import Annotated, Annotation, BoxPrompt, Failed, Request, Result
from jobs.sealing import Capability, Payload, PrivateKey, open_result
from jobs.settings import Settings
from jobs.store import Claimed, Store, connection_pool, crash_key, deserialize, queue_key, serialize
from tests.conftest import picture_bytes, running_worker
from tests.fakes import Echo, Shown
from worker.models.base import Finds
from worker.pipeline import Pipeline
from worker.queue import QueueWorker


async def _submit(
    store: Store, key: PrivateKey, label: str = "coin", subject: str = "test"
) -> Capability:
    capability = Capability.new()
    request = Request(model="exemplar", prompts=(BoxPrompt(box=(1, 1, 9, 9), label=label),))
    now = time.time_ns() // 1_000_000
    payload = Payload(
        capability.result_key, msgspec.json.encode(request), {"image": picture_bytes()}, now
    )
    sealed = key.public.seal(capability.id, payload)
    await store.submit(capability.id, sealed, "exemplar", bulk=False, subject=subject)
    return capability


async def _result(store: Store, capability: Capability, seconds: float = 8) -> Result | None:
    """What is delivered; None if the job is gone."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        fetched = await store.fetch(capability.id)
        if fetched.status == "done":
            plain = open_result(capability.result_key, capability.id, fetched.sealed)
            result: Result = msgspec.json.decode(plain, type=Result)
            return result
        if fetched.status == "gone":
            return None
        await asyncio.sleep(0.02)
    raise AssertionError("no result in time")


async def test_polling_alone_finds_the_jobs_too(
    store: Store, key: PrivateKey, settings: Settings
) -> None:
    """The wake-up signal may be lost; the queue is looked at all the same."""
    async with running_worker(store, key, Echo(), settings) as queue:
        queue.listen = lambda: asyncio.sleep(0)  # type: ignore[method-assign]
        await store.redis.client_kill_filter(_type="pubsub")
        assert await _result(store, await _submit(store, key))


async def test_a_full_worker_goes_on_with_what_it_had_no_room_for(
    store: Store, key: PrivateKey, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a job is then what makes it look again: the jobs' signals came when it was full,
    and polling is switched off here."""
    monkeypatch.setattr("worker.queue.POLL_S", 3600.0)
    jobs = [await _submit(store, key) for _ in range(5)]
    two = dataclasses.replace(settings, max_in_flight=2)
    async with running_worker(store, key, Echo(), two):
        for job in jobs:
            assert await _result(store, job)


async def test_stock_arq_can_serve_the_queue(
    store: Store, key: PrivateKey, settings: Settings, worker: QueueWorker
) -> None:
    """What lies in Redis is arq's own form: its unchanged worker runs it."""
    ran = []

    async def annotate(ctx: dict[str, str]) -> None:
        ran.append(ctx["job_id"])

    await worker.drain(1)
    capability = await _submit(store, key)
    stock = Worker(
        functions=[func(annotate, name="annotate")],
        queue_name=queue_key("exemplar"),
        redis_pool=ArqRedis(connection_pool(settings)),
        burst=True,
        handle_signals=False,
        keep_result=0,
        job_serializer=serialize,
        job_deserializer=deserialize,
    )
    await stock.async_run()
    await stock.pool.aclose(close_connection_pool=True)
    assert ran == [capability.id]


async def test_a_job_of_a_dead_worker_runs_again_by_itself(
    store: Store, key: PrivateKey, settings: Settings
) -> None:
    """Its lease ends after 2 s; then another takes it."""
    capability = await _submit(store, key)
    assert await store.claim("exemplar", 1, 0.5), "claimed by a worker that then dies"
    async with running_worker(store, key, Echo(), settings):
        assert await _result(store, capability)


async def test_a_job_that_kills_its_worker_fails_alone_after_two_tries(
    store: Store, key: PrivateKey, settings: Settings, valkey: "redis.Redis"
) -> None:
    """Two workers died with both jobs in hand, the second while it ran the poison by itself."""
    poison, neighbour = await _submit(store, key), await _submit(store, key)
    for capability in (poison, neighbour):
        valkey.set(f"arq:retry:{capability.id}", 2, ex=60)
    valkey.set(crash_key(poison.id), 1, ex=60)
    async with running_worker(store, key, Echo(), settings):
        failed = await _result(store, poison)
        assert isinstance(failed, Failed)
        assert failed.code == "worker_crashed"
        assert not isinstance(await _result(store, neighbour), Failed)


@pytest.mark.parametrize("score", [object(), float("nan"), "high"])
async def test_a_result_that_nobody_could_read_is_a_failure_and_not_a_silence(
    store: Store, key: PrivateKey, settings: Settings, score: Any
) -> None:
    """The fault is the model's; whoever waits is told at once, and the worker goes on."""

    class Wrong(Echo):
        def finish(self, raw: Shown, item: Shown) -> Finds:
            (label, box), *_ = raw.boxes
            return Finds([Annotation(label, score if label == "wrong" else 1.0, box)])

    async with running_worker(store, key, Wrong(), settings):
        failed = await _result(store, await _submit(store, key, "wrong"))
        assert isinstance(failed, Failed)
        assert (failed.status, failed.code) == (500, "internal_error")
        assert isinstance(await _result(store, await _submit(store, key)), Annotated)


async def test_a_full_server_still_runs_what_is_queued(
    store: Store, key: PrivateKey, settings: Settings, valkey: "redis.Redis"
) -> None:
    """At 100 % of its memory, from the claim to the result; a suspect is counted all the same."""
    jobs = [await _submit(store, key) for _ in range(3)]
    valkey.set(f"arq:retry:{jobs[0].id}", 1, ex=60)
    valkey.script_flush()
    before = dict(valkey.config_get("maxmemory"))  # type: ignore[arg-type]
    valkey.config_set("maxmemory", 1_000_000)
    try:
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            valkey.incr("something")
        async with running_worker(store, key, Echo(), settings):
            for job in jobs:
                assert isinstance(await _result(store, job), Annotated)
    finally:
        valkey.config_set("maxmemory", before["maxmemory"])


async def test_a_job_that_is_handed_back_is_no_suspect(
    store: Store, key: PrivateKey, worker: QueueWorker
) -> None:
    """A worker that stops in order hands back what it cannot finish: others run it at once."""
    job = await _submit(store, key, label="slow")
    while not worker.tasks:
        await asyncio.sleep(0.01)
    await worker.drain(0)
    [claimed] = await store.claim("exemplar", 1, 5)
    assert (claimed.id, claimed.tries) == (job.id, 1)


async def test_a_suspect_goes_before_the_rest(
    store: Store, key: PrivateKey, settings: Settings, valkey: "redis.Redis"
) -> None:
    """The longer it runs alone, the likelier is it blamed for another one's accident."""
    neighbours = [await _submit(store, key, label="slow") for _ in range(12)]
    suspect = await _submit(store, key, label="slow")
    valkey.set(f"arq:retry:{suspect.id}", 1, ex=60)
    async with running_worker(store, key, Echo(), settings):
        await _result(store, suspect)
        states = [await store.state(job.id) for job in neighbours]
    assert [state.status for state in states].count("running") >= 4


class Recorder(Echo):
    """Remembers what labels each batch had."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def forward(self, items: list[Shown]) -> list[Shown]:
        self.batches.append([label for item in items for label, _ in item.boxes])
        return super().forward(items)


async def test_who_queues_many_delays_another_by_two_batches(
    store: Store, key: PrivateKey, settings: Settings
) -> None:
    """The one that is running and the one that the idle device begins meanwhile."""
    model = Recorder()
    many = [await _submit(store, key, "slow", "many") for _ in range(60)]
    async with running_worker(store, key, model, settings):
        while len(model.batches) < 2:
            await asyncio.sleep(0.01)
        one = await _submit(store, key, "one", "somebody else")
        assert await _result(store, one)
        [number] = [n for n, labels in enumerate(model.batches) if "one" in labels]
        assert number <= 1 + 2
        await asyncio.gather(*(store.erase(job.id) for job in many))


async def test_a_payload_for_other_workers_is_given_up(
    store: Store, key: PrivateKey, worker: QueueWorker, valkey: "redis.Redis"
) -> None:
    """Nobody can be told, since the key for the answer is inside; the image does not stay."""
    capability = await _submit(store, PrivateKey.new())
    assert await _result(store, capability) is None
    assert not list(valkey.scan_iter("*:image"))


async def test_a_job_erased_while_it_runs_leaves_nothing(
    store: Store, key: PrivateKey, worker: QueueWorker, valkey: "redis.Redis"
) -> None:
    capability = await _submit(store, key, label="slow")
    while (await store.state(capability.id)).status != "running":
        await asyncio.sleep(0.01)
    assert await store.erase(capability.id) == "erased"
    while worker.tasks:
        await asyncio.sleep(0.01)
    assert not list(valkey.scan_iter("*:result"))
    assert (await store.state(capability.id)).status == "gone"


async def test_draining_finishes_what_runs_and_leaves_the_rest(
    store: Store, key: PrivateKey, worker: QueueWorker
) -> None:
    running = await _submit(store, key, label="slow")
    while (await store.state(running.id)).status != "running":
        await asyncio.sleep(0.01)
    await worker.drain(5)
    assert (await store.state(running.id)).status == "done"
    waiting = await _submit(store, key)
    await asyncio.sleep(0.7)
    assert (await store.state(waiting.id)).status == "queued"


async def test_draining_waits_for_a_claim_under_way(
    store: Store, key: PrivateKey, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its jobs would start behind the drain's back and be cut off with the process."""
    claim, claimed = store.claim, asyncio.Event()

    async def late(model: str, room: int, lease_s: float) -> list[Claimed]:
        jobs = await claim(model, room, lease_s)
        if jobs:
            claimed.set()
            await asyncio.sleep(0.1)
        return jobs

    monkeypatch.setattr(store, "claim", late)
    job = await _submit(store, key)
    async with running_worker(store, key, Echo(), settings) as worker:
        await claimed.wait()
        await worker.drain(5)
        assert (await store.state(job.id)).status == "done"


async def test_nothing_of_arq_is_left_when_a_job_is_done(
    store: Store, key: PrivateKey, worker: QueueWorker, valkey: "redis.Redis"
) -> None:
    """No arguments, no result, no retry count: arq's keys go with the job."""
    capability = await _submit(store, key)
    assert await _result(store, capability)
    while worker.tasks:
        await asyncio.sleep(0.01)
    assert list(valkey.scan_iter("arq:*")) == []


async def test_a_wedged_device_is_noticed(
    store: Store, key: PrivateKey, settings: Settings
) -> None:
    import dataclasses
    from concurrent.futures import ThreadPoolExecutor

    impatient = dataclasses.replace(settings, forward_timeout_s=0.1)
    with ThreadPoolExecutor(1) as device:
        pipeline = Pipeline(store, [key], {"exemplar": Echo()}, device, impatient)
        await _submit(store, key, label="slow")
        [job] = await store.claim("exemplar", 1, 5)
        running = asyncio.create_task(pipeline.annotate(job))
        assert not pipeline.wedged()
        await asyncio.sleep(0.35)
        assert pipeline.wedged()
        await running
        assert not pipeline.wedged()


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff" + b"\0" * 50, b"GIF89a"])
async def test_a_bad_image_fails_alone_with_its_code(
    store: Store, key: PrivateKey, worker: QueueWorker, data: bytes
) -> None:
    """Should one get past the front door."""
    capability = Capability.new()
    request = Request(model="exemplar", prompts=(BoxPrompt(box=(1, 1, 9, 9)),))
    payload = Payload(capability.result_key, msgspec.json.encode(request), {"image": data}, 0)
    sealed = key.public.seal(capability.id, payload)
    await store.submit(capability.id, sealed, "exemplar", bulk=False, subject="test")
    good = await _submit(store, key)
    failed = await _result(store, capability)
    assert isinstance(failed, Failed)
    assert failed.status in (415, 422)
    assert not isinstance(await _result(store, good), Failed)
