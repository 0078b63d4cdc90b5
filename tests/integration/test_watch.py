"""What waiting clients are told by the store's signals alone, without looking again."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import redis
from redis.exceptions import TimeoutError as RedisTimeoutError

from api.watch import Changes, wait
from jobs.process import background
from jobs.sealing import Capability
from jobs.store import STARTED_CHANNEL, Store, messages

MODEL = "exemplar"
_PATIENCE_S = 10.0


@pytest_asyncio.fixture
async def changes(store: Store) -> AsyncIterator[Changes]:
    changes = Changes(store)
    async with background(changes.serve()):
        yield changes


async def _submit(store: Store) -> str:
    job_id = Capability.new().id
    await store.submit(job_id, b"sealed", MODEL, bulk=False, subject="someone")
    return job_id


async def _until_listeners(valkey: "redis.Redis", count: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while valkey.pubsub_numsub(STARTED_CHANNEL)[0][1] != count:  # type: ignore[index]
        assert time.monotonic() < deadline, f"not {count} listeners to starts"
        await asyncio.sleep(0.01)


async def test_who_follows_a_job_hears_that_it_starts_and_that_it_is_over(
    store: Store, valkey: "redis.Redis", changes: Changes
) -> None:
    job_id = await _submit(store)
    async with changes.following(job_id) as changed:
        await _until_listeners(valkey, 1)
        for happens in (store.claim(MODEL, 1, 5), store.finish(job_id, b"result")):
            changed.clear()
            await happens
            assert await wait(changed, _PATIENCE_S)


async def test_starts_are_listened_to_only_while_somebody_follows(
    store: Store, valkey: "redis.Redis", changes: Changes
) -> None:
    with changes.watching(await _submit(store)) as changed:
        async with changes.following("one"), changes.following("other"):
            await _until_listeners(valkey, 1)
        await _until_listeners(valkey, 0)
        changed.clear()
        await store.claim(MODEL, 1, 5)
        assert not await wait(changed, 0.1), "who waits for the end was woken by a start"


async def test_a_lost_connection_is_made_anew_with_what_was_listened_to(
    store: Store, valkey: "redis.Redis", changes: Changes
) -> None:
    job_id = await _submit(store)
    async with changes.following(job_id) as changed:
        await _until_listeners(valkey, 1)
        (before,) = valkey.client_list(_type="pubsub")  # type: ignore[misc]
        assert valkey.client_kill_filter(_id=before["id"]) == 1
        await _until_listeners(valkey, 1)
        (after,) = valkey.client_list(_type="pubsub")  # type: ignore[misc]
        assert after["id"] != before["id"]
        await store.claim(MODEL, 1, 5)
        assert await wait(changed, _PATIENCE_S)


async def test_silence_does_not_end_the_subscription(
    valkey: "redis.Redis", changes: Changes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client library's timeout is 2 s; only the server's answers are heard for longer."""
    monkeypatch.setattr("jobs.store._SILENCE_S", 0.5)
    async with changes.following("nothing"):
        await _until_listeners(valkey, 1)
        (before,) = valkey.client_list(_type="pubsub")  # type: ignore[misc]
        await asyncio.sleep(2.5)
        (after,) = valkey.client_list(_type="pubsub")  # type: ignore[misc]
    assert after["id"] == before["id"]


async def test_a_server_that_falls_silent_is_noticed(
    store: Store, valkey: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.store._SILENCE_S", 0.1)
    monkeypatch.setattr("jobs.store._ANSWER_S", 0.3)
    async with await store.changes() as signals:
        heard = messages(signals)
        assert (await anext(heard))["type"] == "subscribe"
        assert (await anext(heard))["type"] == "pong"
        valkey.client_pause(1500, all=True)
        with pytest.raises(RedisTimeoutError):
            await anext(heard)
    valkey.ping()  # answered when the pause is over


async def test_a_follower_that_comes_while_the_connection_is_away_is_told_too(
    store: Store, valkey: "redis.Redis"
) -> None:
    changes, job_id = Changes(store), await _submit(store)
    async with changes.following(job_id) as changed, background(changes.serve()):
        await _until_listeners(valkey, 1)
        await store.claim(MODEL, 1, 5)
        assert await wait(changed, _PATIENCE_S)


async def test_who_waits_looks_again_when_the_connection_is_back(
    store: Store, valkey: "redis.Redis"
) -> None:
    """The job may have ended meanwhile, and its signal is not sent again."""
    changes, job_id = Changes(store), await _submit(store)
    with changes.watching(job_id) as changed:
        await store.finish(job_id, b"result")
        async with background(changes.serve()):
            assert await wait(changed, _PATIENCE_S)
