"""Jobs on a real Valkey under every order of events that Hypothesis can think of.

A model in plain Python says beforehand what each step must answer. Clocks are moved by letting
keys expire at once, workers die by losing their lease.
"""

import asyncio
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

import pytest
import redis
from arq.constants import in_progress_key_prefix, job_key_prefix
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyFailure
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from jobs import store as keys
from jobs.settings import Settings
from jobs.store import Fetched, Store
from jobs.usage import Finished
from tests.conftest import keys_without_ttl

MODEL = "exemplar"
LONG_S = 60.0
READERS = st.sampled_from(["a", "b", "c"])
BOUNDED = hypothesis_settings(
    max_examples=100,
    stateful_step_count=40,
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)
T = TypeVar("T")


class Job:
    """What must be true of one job."""

    def __init__(self, number: int, bulk: bool) -> None:
        self.id = f"{number:032x}"
        self.order = (bulk, number)
        self.image = self.queued = True
        self.started = self.claimed = self.result = self.over = False
        self.holder = ""
        self.sealed = b""
        self.plain = 0

    def end(self) -> None:
        """Delivered, acknowledged, erased or expired: nothing comes back."""
        self.image = self.result = False
        self.holder = ""
        self.over = True

    def status(self) -> str:
        if self.result:
            return "done"
        if self.image:
            return "running" if self.claimed else "queued"
        return "gone"

    def fetched(self, reader: str) -> str:
        """What a fetch must answer; changes the model when it takes or leases."""
        if not self.result:
            return "pending" if self.image else "gone"
        if self.holder and self.holder != reader:
            return "leased"
        if reader:
            self.holder = reader
        else:
            self.end()
        return "done"


class Jobs(RuleBasedStateMachine):
    """Submitters, workers, readers and the clock; `make` builds the store under test."""

    url = ""
    make: type[Store] = Store
    jobs: Bundle[Job] = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.valkey: Any = redis.Redis.from_url(self.url)
        self.valkey.flushall()
        self.all: list[Job] = []
        self.runs = 0
        self.store = self.run(self._open())

    async def _open(self) -> Store:
        return self.make.open(Settings(redis_url=self.url))

    def teardown(self) -> None:
        self.run(self.store.close())
        self.runner.close()
        self.valkey.close()

    def run(self, step: Awaitable[T]) -> T:
        async def whole() -> T:
            return await step

        return self.runner.run(whole())

    # submitters

    @rule(target=jobs, bulk=st.booleans())
    def submit(self, bulk: bool) -> Any:
        if len(self.all) == 12:
            return multiple()
        job = Job(len(self.all), bulk)
        self.all.append(job)
        assert self._submitted(job) == "queued"
        return job

    @rule(target=jobs, bulk=st.booleans())
    def submit_and_annotate(self, bulk: bool) -> Any:
        """The usual way in one step, so that much is tried with results."""
        job = self.submit(bulk)
        if isinstance(job, Job):
            self.claim(12)
            self.finish(job)
        return job

    @rule(job=jobs)
    def submit_again(self, job: Job) -> None:
        """The same id changes nothing, whatever has become of the job."""
        assert self._submitted(job) == "exists"

    def _submitted(self, job: Job) -> str:
        payload = job.id.encode()
        step = self.store.submit(job.id, payload, MODEL, bulk=job.order[0], subject="test")
        return str(self.run(step))

    @rule(job=jobs)
    def poll(self, job: Job) -> None:
        assert self.run(self.store.state(job.id)).status == job.status()

    @rule(job=jobs)
    def erase(self, job: Job) -> None:
        assert self.run(self.store.erase(job.id)) == self._erased(job)

    # workers

    @rule(room=st.integers(1, 4))
    def claim(self, room: int) -> None:
        free: list[Job] = []
        for job in sorted((j for j in self.all if j.queued), key=lambda j: j.order):
            if len(free) < room:
                job.queued = job.image  # dead entries are dropped where they are met
                free += [job] if job.image and not job.claimed else []
        claimed = [job.id for job in self.run(self.store.claim(MODEL, room, LONG_S))]
        assert claimed == [job.id for job in free]
        for job in free:
            job.claimed = job.started = True
            assert self.run(self.store.take(job.id)) == job.id.encode()

    @rule(job=jobs)
    def worker_dies(self, job: Job) -> None:
        """Its lease ends; another one may claim the job."""
        self._expire(in_progress_key_prefix + job.id)
        job.claimed = False

    @rule(job=jobs)
    def finish(self, job: Job) -> None:
        """By whoever has ever begun it: the first one, or one that was thought dead."""
        if not job.started:
            return
        self.runs += 1
        sealed = f"{job.id}, run {self.runs}".encode()
        assert self.run(self.store.finish(job.id, sealed)) == job.image
        if job.image:
            job.image, job.result, job.sealed = False, True, sealed
        job.queued = job.claimed = False

    # readers

    @rule(job=jobs)
    def plain(self, job: Job) -> None:
        self._check_fetched(job, "", self.run(self.store.fetch(job.id)))

    @rule(job=jobs)
    def two_plain_at_once(self, job: Job) -> None:
        self._at_once(job, "", "")

    @rule(job=jobs, reader=READERS)
    def read(self, job: Job, reader: str) -> None:
        """Also a broken one: for the server there is no difference until it is acknowledged."""
        self._check_fetched(job, reader, self.run(self.store.fetch(job.id, reader)))

    @rule(job=jobs, one=READERS, two=READERS)
    def two_readers_at_once(self, job: Job, one: str, two: str) -> None:
        self._at_once(job, one, two)

    @rule(job=jobs, reader=READERS)
    def reader_against_plain(self, job: Job, reader: str) -> None:
        self._at_once(job, reader, "")

    @rule(job=jobs, reader=READERS, times=st.integers(1, 2))
    def acknowledge(self, job: Job, reader: str, times: int) -> None:
        """By the one who holds it, another one, after the lease has ended, or repeatedly."""
        for _ in range(times):
            fenced = job.holder not in ("", reader)
            expected = "fenced" if fenced else self._erased(job)
            assert self.run(self.store.erase(job.id, reader)) == expected

    # the clock

    @rule(job=jobs)
    def image_expires(self, job: Job) -> None:
        self._expire(keys.image_key(job.id), job_key_prefix + job.id)
        if job.image:
            job.end()

    @rule(job=jobs)
    def result_expires(self, job: Job) -> None:
        self._expire(keys.result_key(job.id), keys.lease_key(job.id))
        if job.result:
            job.end()

    @rule(job=jobs)
    def lease_ends(self, job: Job) -> None:
        self._expire(keys.lease_key(job.id))
        job.holder = ""

    # what always holds

    @invariant()
    def every_key_has_a_ttl(self) -> None:
        assert keys_without_ttl(self.valkey) == []

    @invariant()
    def who_is_done_has_left_the_queue(self) -> None:
        for job in self.all:
            there = self.valkey.zscore(keys.queue_key(MODEL), job.id) is not None
            assert there == job.queued

    @invariant()
    def there_is_an_image_or_a_result_or_nothing(self) -> None:
        for job in self.all:
            image, result = keys.image_key(job.id), keys.result_key(job.id)
            there = [self.valkey.exists(image), self.valkey.exists(result)]
            assert there == [job.image, job.result]
            assert not all(there)
            assert not (job.over and any(there)), "what is over never comes back"

    @invariant()
    def nobody_is_served_plain_twice(self) -> None:
        assert all(job.plain <= 1 for job in self.all)

    def _at_once(self, job: Job, one: str, two: str) -> None:
        """Who comes first is not known beforehand; that one order explains both answers is."""

        async def both() -> tuple[Fetched, Fetched]:
            first, second = self.store.fetch(job.id, one), self.store.fetch(job.id, two)
            return await asyncio.gather(first, second)

        first, second = self.run(both())
        state = dict(vars(job))
        for order in ([(one, first), (two, second)], [(two, second), (one, first)]):
            vars(job).update(state)
            if [job.fetched(reader) for reader, _ in order] == [f.status for _, f in order]:
                break
        else:
            raise AssertionError(f"no order explains {first.status} and {second.status}")
        for reader, fetched in order:
            self._note(job, reader, fetched)

    def _check_fetched(self, job: Job, reader: str, fetched: Fetched) -> None:
        assert fetched.status == job.fetched(reader)
        self._note(job, reader, fetched)

    def _note(self, job: Job, reader: str, fetched: Fetched) -> None:
        if fetched.status == "done":
            assert fetched.sealed == job.sealed, "the first result, and this job's"
            job.plain += not reader

    def _erased(self, job: Job) -> str:
        was_there = job.image or job.result
        job.end()
        job.queued = False
        return "erased" if was_there else "nothing"

    def _expire(self, *names: str) -> None:
        for name in names:
            self.valkey.pexpire(name, 1)
        deadline = time.monotonic() + 2
        while self.valkey.exists(*names):
            assert time.monotonic() < deadline
            time.sleep(0.0005)


def check(url: str, make: type[Store], bounds: hypothesis_settings = BOUNDED) -> None:
    """Run the machine against a kind of store."""
    machine = type("JobsHere", (Jobs,), {"url": url, "make": make})
    run_state_machine_as_test(machine, settings=bounds)


def test_every_order_of_events_keeps_the_promises(valkey: "redis.Redis", valkey_url: str) -> None:
    check(valkey_url, Store)


class GetThenDelete(Store):
    """The race that most services of this kind have shipped once."""

    async def fetch(self, job_id: str, reader: str = "") -> Fetched:
        if reader or await self.redis.exists(keys.lease_key(job_id)):
            return await super().fetch(job_id, reader)
        sealed = await self.redis.get(keys.result_key(job_id))
        if sealed is None:
            return await super().fetch(job_id)
        await self.redis.delete(keys.result_key(job_id))
        return Fetched("done", 0, sealed)


class ResultForEver(Store):
    """A result that is stored and then given its TTL, or not."""

    async def finish(self, job_id: str, sealed: bytes, finished: Finished | None = None) -> bool:
        stored = await super().finish(job_id, sealed)
        await self.redis.persist(keys.result_key(job_id))
        return stored


class ResultReturns(Store):
    """A worker that does not look whether its job is still wanted."""

    async def finish(self, job_id: str, sealed: bytes, finished: Finished | None = None) -> bool:
        await self.redis.delete(keys.image_key(job_id))
        await self.redis.set(keys.result_key(job_id), sealed, px=60_000)
        return True


class ImageStays(Store):
    """The image is left to its TTL."""

    async def finish(self, job_id: str, sealed: bytes, finished: Finished | None = None) -> bool:
        image = await self.redis.get(keys.image_key(job_id))
        stored = await super().finish(job_id, sealed)
        if stored and image:
            await self.redis.set(keys.image_key(job_id), image, px=60_000)
        return stored


class NobodyHolds(Store):
    """A lease that does not keep others away."""

    async def fetch(self, job_id: str, reader: str = "") -> Fetched:
        await self.redis.delete(keys.lease_key(job_id))
        return await super().fetch(job_id, reader)


class AnybodyAcknowledges(Store):
    """An acknowledgement that is not fenced by the lease."""

    async def erase(self, job_id: str, reader: str = "") -> Any:
        return await super().erase(job_id)


@pytest.mark.leaks_on_purpose
@pytest.mark.parametrize(
    "broken",
    [
        GetThenDelete,
        ResultForEver,
        ResultReturns,
        ImageStays,
        NobodyHolds,
        AnybodyAcknowledges,
    ],
)
def test_each_broken_store_is_found_out(
    broken: type[Store], valkey: "redis.Redis", valkey_url: str
) -> None:
    """The machine fails on the very faults that it is there for."""
    quick = hypothesis_settings(  # it ends with the first example that fails
        BOUNDED, phases=[Phase.generate], report_multiple_bugs=False, max_examples=400
    )
    with pytest.raises((AssertionError, FlakyFailure)):  # a race need not fall the same way twice
        check(valkey_url, broken, quick)
