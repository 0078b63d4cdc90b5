"""Each detector is shown the mistake that it is there for, as others have made it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import aiohttp
import pytest
import redis
from aiohttp import web
from arq import Worker, func
from arq.connections import ArqRedis

from jobs.sealing import Capability
from jobs.settings import Settings
from jobs.store import Store, connection_pool, lease_key, result_key
from scripts.canary import find, in_redis
from tests.faults.history import Event, Op, Rules, check

RULES = Rules(image_ttl_s=60, lease_s=10, grace_s=30)
MODEL = "exemplar"


class Notes:
    """What clients of a small front door saw."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def note(self, job_id: str, op: Op, method: str, url: str, reader: str = "") -> None:
        call = len(self.events)
        event = Event(call, "c", job_id, op, "invoke", time.time(), reader)
        self.events.append(event)
        headers = {"Idempotency-Key": reader} if reader else {}
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, url, headers=headers) as response,
        ):
            body = await response.text()
        phase: Any = "ok" if response.status < 300 else "fail"
        ended = event._replace(phase=phase, at=time.time(), status=response.status)
        self.events.append(ended._replace(digest=body, body=body))

    def accepted(self, job_id: str) -> None:
        event = Event(-1, "c", job_id, "submit", "invoke", time.time(), digest=job_id)
        self.events += [event, event._replace(phase="ok", at=time.time(), status=202)]

    def found(self) -> set[str]:
        return {finding.kind for finding in check(self.events, RULES)}


@contextlib.asynccontextmanager
async def _served(route: web.RouteDef) -> AsyncIterator[str]:
    app = web.Application()
    app.add_routes([route])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def _done(store: Store) -> str:
    job_id = Capability.new().id
    await store.submit(job_id, b"sealed", MODEL, bulk=False, subject="test")
    await store.finish(job_id, job_id.encode())
    return job_id


async def test_a_head_that_burns_the_result_is_found(store: Store) -> None:
    """aiohttp serves HEAD with the handler of GET unless it is told not to."""
    job_id = await _done(store)

    async def fetch(_: web.Request) -> web.Response:
        fetched = await store.fetch(job_id)
        return web.Response(body=fetched.sealed, status=200 if fetched.sealed else 410)

    notes = Notes()
    notes.accepted(job_id)
    async with _served(web.get("/", fetch)) as url:
        await notes.note(job_id, "state", "HEAD", url)
        await notes.note(job_id, "plain", "GET", url)
    assert notes.found() == {"vanished"}


async def test_get_and_then_delete_is_found(store: Store) -> None:
    """Of many readers at once, several get it."""
    job_id = await _done(store)

    async def fetch(_: web.Request) -> web.Response:
        sealed = await store.redis.get(result_key(job_id))
        await asyncio.sleep(0.05)  # as on a busy server
        await store.redis.delete(result_key(job_id))
        return web.Response(body=sealed, status=200 if sealed else 410)

    notes = Notes()
    notes.accepted(job_id)
    async with _served(web.get("/", fetch)) as url:
        await asyncio.gather(*(notes.note(job_id, "plain", "GET", url) for _ in range(16)))
    assert notes.found() == {"delivered twice"}


async def test_a_lease_that_is_not_looked_at_is_found(store: Store) -> None:
    job_id = await _done(store)

    async def fetch(request: web.Request) -> web.Response:
        await store.redis.delete(lease_key(job_id))
        fetched = await store.fetch(job_id, request.headers["Idempotency-Key"])
        return web.Response(body=fetched.sealed)

    notes = Notes()
    notes.accepted(job_id)
    async with _served(web.get("/", fetch)) as url:
        await notes.note(job_id, "read", "GET", url, "one")
        await notes.note(job_id, "read", "GET", url, "two")
    assert notes.found() == {"leases overlap"}


async def test_the_result_of_another_job_is_found(store: Store) -> None:
    mine, another = await _done(store), await _done(store)

    async def fetch(_: web.Request) -> web.Response:
        return web.Response(body=(await store.fetch(another)).sealed)

    notes = Notes()
    notes.accepted(mine)
    async with _served(web.get("/", fetch)) as url:
        await notes.note(mine, "plain", "GET", url)
    assert notes.found() == {"foreign bytes"}


@pytest.mark.leaks_on_purpose
async def test_what_stock_arq_keeps_is_found(valkey: "redis.Redis", settings: Settings) -> None:
    """Arguments travel in its job, and stay an hour in its result."""

    async def annotate(ctx: dict[str, Any], image: bytes) -> int:
        return len(image)

    secret = b"an image that must not stay, wherever it was"
    pool = ArqRedis(connection_pool(settings))
    await pool.enqueue_job("annotate", secret)
    assert find(in_redis(valkey), {"image": secret}), "on its way"
    worker = Worker(
        functions=[func(cast(Any, annotate), name="annotate")],
        redis_pool=pool,
        burst=True,
        handle_signals=False,
    )
    await worker.async_run()
    await pool.aclose(close_connection_pool=True)
    (found,) = find(in_redis(valkey), {"image": secret})
    assert found.startswith("image in redis key arq:result:")
