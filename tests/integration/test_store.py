"""The atomic steps on a real Valkey: who wins, what is left, for how long."""

import asyncio
import dataclasses
from typing import Any

import pytest
import redis

from jobs.sealing import Capability
from jobs.settings import Settings
from jobs.store import Store, WorkerInfo, image_key, job_key, queue_key, result_key
from tests.conftest import keys_without_ttl

MODEL = "exemplar"


async def _submit(store: Store, **more: Any) -> str:
    job_id = Capability.new().id
    options = {"bulk": False, "subject": "someone", **more}
    outcome = await store.submit(job_id, b"sealed", MODEL, **options)
    assert outcome == "queued"
    return job_id


async def _finished(store: Store) -> str:
    job_id = await _submit(store)
    await store.claim(MODEL, 100, 1)
    assert await store.finish(job_id, b"result")
    return job_id


async def test_every_key_of_a_job_has_its_lifetime_from_the_start(
    store: Store, valkey: "redis.Redis", settings: Settings
) -> None:
    job_id = await _submit(store)
    image, job = valkey.ttl(image_key(job_id)), valkey.ttl(job_key(job_id))
    assert image in (settings.image_ttl_s - 1, settings.image_ttl_s)
    assert job > settings.image_ttl_s + settings.result_ttl_s  # type: ignore[operator]
    assert valkey.ttl(f"arq:job:{job_id}") == image
    await store.finish(job_id, b"result")
    assert valkey.ttl(result_key(job_id)) in (settings.result_ttl_s - 1, settings.result_ttl_s)


@pytest.mark.leaks_on_purpose
def test_the_check_for_lifetimes_finds_a_key_without_one(valkey: "redis.Redis") -> None:
    """The rule that the fixture checks after every test can fail."""
    valkey.set("mayfly:0:image", b"for ever")
    assert keys_without_ttl(valkey) == ["mayfly:0:image"]


async def test_the_image_goes_in_the_step_that_stores_the_result(
    store: Store, valkey: "redis.Redis"
) -> None:
    job_id = await _finished(store)
    assert not valkey.exists(image_key(job_id))
    assert valkey.get(result_key(job_id)) == b"result"


async def test_a_result_never_brings_an_erased_job_back(
    store: Store, valkey: "redis.Redis"
) -> None:
    job_id = await _submit(store)
    assert await store.erase(job_id) == "erased"
    assert not await store.finish(job_id, b"result")
    assert not valkey.exists(result_key(job_id))
    assert (await store.state(job_id)).status == "gone"


async def test_a_second_result_never_replaces_the_first_nor_a_delivered_one(
    store: Store, valkey: "redis.Redis"
) -> None:
    """A job that ran twice, because its first worker was thought dead."""
    job_id = await _finished(store)
    assert not await store.finish(job_id, b"another")
    assert (await store.fetch(job_id)).sealed == b"result"
    assert not await store.finish(job_id, b"another")
    assert (await store.fetch(job_id)).status == "gone"


async def test_of_many_readers_one_gets_it(store: Store) -> None:
    job_id = await _finished(store)
    fetched = await asyncio.gather(*(store.fetch(job_id) for _ in range(32)))
    assert sorted(f.status for f in fetched) == ["done", *["gone"] * 31]


async def test_a_lease_goes_on_to_the_next_reader_when_it_ends(
    store: Store, settings: Settings, valkey: "redis.Redis"
) -> None:
    """The first read cuts what is left of the result to the grace; the second does not renew it."""
    short = Store(store.redis, dataclasses.replace(settings, lease_s=1, lease_grace_s=2))
    job_id = await _finished(store)
    assert (await short.fetch(job_id, "one")).status == "done"
    assert valkey.pttl(result_key(job_id)) <= 2000  # type: ignore[operator]
    assert (await short.fetch(job_id, "two")).status == "leased"
    await asyncio.sleep(1.1)
    assert (await short.fetch(job_id, "two")).sealed == b"result"
    assert await short.erase(job_id, "one") == "fenced", "late, its lease is lost"
    await asyncio.sleep(1.1)
    assert (await short.fetch(job_id, "two")).status == "gone", "the grace is over"


async def test_interactive_jobs_go_before_bulk_jobs(store: Store) -> None:
    bulk = [await _submit(store, bulk=True) for _ in range(3)]
    interactive = [await _submit(store) for _ in range(2)]
    claimed = await store.claim(MODEL, 4, 1)
    assert [job.id for job in claimed] == interactive + bulk[:2]


async def test_owners_take_turns(store: Store) -> None:
    """One has 500 jobs and has been served for a while; who comes then need not wait for them."""
    many = [await _submit(store, subject="many") for _ in range(500)]
    served = await store.claim(MODEL, 40, 5)
    assert [job.id for job in served] == many[:40]
    for job in served:
        await store.finish(job.id, b"result")
    few = [await _submit(store, subject="few") for _ in range(3)]
    one = await _submit(store, subject="one")
    claimed = [job.id for job in await store.claim(MODEL, 7, 5)]
    assert claimed == [few[0], one, many[40], few[1], many[41], few[2], many[42]]


async def test_newcomers_do_not_pile_up_before_who_has_waited(store: Store) -> None:
    """A turn admits a thousand newcomers, no more: also the second job of a few is served."""
    mine = [await _submit(store, subject="me") for _ in range(2)]
    newcomers = [await _submit(store, subject=f"n{number}") for number in range(1010)]
    claimed = [job.id for job in await store.claim(MODEL, 1012, 5)]
    assert claimed[0] == mine[0]
    assert 990 < claimed.index(mine[1]) <= 1000
    assert [job for job in claimed if job not in mine] == newcomers, "first come, first served"


async def test_a_bulk_run_costs_its_owner_no_interactive_turn(store: Store) -> None:
    for _ in range(20):
        await _submit(store, bulk=True, subject="me")
    other = [await _submit(store, subject="other") for _ in range(2)]
    mine = await _submit(store, subject="me")
    claimed = [job.id for job in await store.claim(MODEL, 3, 5)]
    assert claimed == [other[0], mine, other[1]]


async def test_a_claimed_job_is_claimed_once_until_its_lease_ends(store: Store) -> None:
    job_id = await _submit(store)
    first, second = await asyncio.gather(store.claim(MODEL, 5, 0.3), store.claim(MODEL, 5, 0.3))
    assert len(first) + len(second) == 1
    assert (await store.state(job_id)).status == "running"
    await store.renew([job_id], 0.3)
    await asyncio.sleep(0.2)
    assert await store.claim(MODEL, 5, 0.3) == []
    await asyncio.sleep(0.2)
    assert len(await store.claim(MODEL, 5, 0.3)) == 1, "its worker is dead"


async def test_running_jobs_at_the_head_hide_nobody(store: Store) -> None:
    """Many workers hold many jobs; a free worker still finds the first free one."""
    jobs = [await _submit(store) for _ in range(250)]
    assert len(await store.claim(MODEL, 249, 5)) == 249
    assert [job.id for job in await store.claim(MODEL, 9, 5)] == [jobs[-1]]


async def test_dead_entries_do_not_fill_the_queue(
    valkey: "redis.Redis", settings: Settings
) -> None:
    """Without a worker nobody removes expired jobs from the queue but the next submission."""
    store = Store.open(dataclasses.replace(settings, image_ttl_s=1, max_queue_jobs=2))
    for bulk in (True, False):
        await _submit(store, bulk=bulk)
    assert await store.submit("0" * 32, b"", MODEL, bulk=False, subject="x") == "full"
    await asyncio.sleep(1.1)
    job_id = await _submit(store)
    assert valkey.zrange(queue_key(MODEL), 0, -1) == [job_id.encode()]
    await store.close()


async def test_dead_entries_are_met_and_dropped(store: Store, valkey: "redis.Redis") -> None:
    """Jobs whose images have expired cost a claim nothing but a look."""
    jobs = [await _submit(store) for _ in range(450)]
    valkey.delete(*map(image_key, jobs[:449]))
    assert [job.id for job in await store.claim(MODEL, 9, 5)] == [jobs[449]]
    assert valkey.zcard(queue_key(MODEL)) == 1


async def test_a_full_server_still_finishes_and_fetches(
    store: Store, valkey: "redis.Redis"
) -> None:
    """At 100 % of its memory it refuses jobs, and lets those that are in it out."""
    jobs = [await _submit(store) for _ in range(3)]
    await store.claim(MODEL, 3, 5)
    before = dict(valkey.config_get("maxmemory"))  # type: ignore[arg-type]
    valkey.config_set("maxmemory", 1_000_000)
    try:
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            valkey.set("something", "else", ex=1)
        outcome = await store.submit("0" * 32, b"x", MODEL, bulk=False, subject="someone")
        assert outcome == "full"
        for job_id in jobs:
            assert await store.finish(job_id, b"result")
        assert (await store.fetch(jobs[0])).sealed == b"result"
        assert (await store.fetch(jobs[1], "reader")).sealed == b"result"
        assert await store.erase(jobs[1], "reader") == "erased"
        assert await store.erase(jobs[2]) == "erased"
    finally:
        valkey.config_set("maxmemory", before["maxmemory"])


async def test_workers_that_fall_silent_are_forgotten(store: Store) -> None:
    worker = WorkerInfo("w", ["k"], "cpu", [])
    await store.heartbeat(worker)
    assert (await store.fleet()).workers == [worker]
    await store.farewell("w")
    assert (await store.fleet()).workers == []


async def test_of_a_job_erased_after_its_claim_nothing_is_left(
    store: Store, valkey: "redis.Redis"
) -> None:
    """Neither its lease nor its count of tries; the marker alone says that there was one."""
    job_id = await _submit(store)
    assert await store.claim(MODEL, 1, 5)
    await store.erase(job_id)
    assert await store.take(job_id) is None
    keys = [key.decode() for key in valkey.keys(f"*{job_id}*")]  # type: ignore[union-attr]
    assert keys == [job_key(job_id)]


async def test_a_job_that_is_given_up_leaves_the_queue(store: Store, valkey: "redis.Redis") -> None:
    job_id = await _submit(store)
    assert await store.claim(MODEL, 1, 5)
    await store.drop(job_id)
    assert valkey.zcard(queue_key(MODEL)) == 0
    assert (await store.state(job_id)).status == "gone"


async def test_all_leases_are_renewed_at_once(store: Store, valkey: "redis.Redis") -> None:
    jobs = [await _submit(store) for _ in range(3)]
    assert len(await store.claim(MODEL, 3, 0.5)) == 3
    await store.renew(jobs[:2], 60)
    left = [valkey.pttl(f"arq:in-progress:{job_id}") for job_id in jobs]
    assert [ttl > 30_000 for ttl in left] == [True, True, False]  # type: ignore[operator]
