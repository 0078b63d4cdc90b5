"""What is measured: one function each, called once a round, and the list of them all.

A measure answers with figures by case. What it keeps for the next round idles meanwhile.
"""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import NamedTuple

import msgspec

from jobs import lua
from jobs.contract import MAIN_IMAGE, Request
from jobs.process import background
from jobs.sealing import Capability, Payload, PublicKey
from jobs.store import STARTED_CHANNEL, Store, image_key, job_key, queue_key
from scripts.bench.bench import Bench, sleeper
from scripts.bench.load import Cases, Figures, load, mayfly, percentile
from scripts.bench.processes import group
from scripts.bench.servers import Service, start_service
from scripts.bench.stand_in import NAME as SLEEPER

_SLEEP_S = 0.5  # of the model that is scaled out: so that 64 workers need a part of a core only
_SETTLE_S = 1.0  # until what has been started is over with it
_STARTS = 200  # jobs whose start is timed
_FEED_S = 0.02  # between looks at a queue that is kept long
_AHEAD = 100  # of a long queue's jobs are interactive
_AT_A_TIME = 5_000
_TOGETHER = 32  # submissions on their way at a time
# KEYS queue image_pattern job_pattern; ARGV from to bulk_offset
_FILL = """#!lua
for number = ARGV[1] + 1, ARGV[2] do
  local id = string.format('%032x', number)
  redis.call('SET', string.format(KEYS[2], id), '', 'PX', 1800000)
  redis.call('SET', string.format(KEYS[3], id), '', 'PX', 1800000)
  redis.call('ZADD', KEYS[1], ARGV[3] + number, id)
end
"""
_REQUEST = msgspec.json.encode(Request(model=SLEEPER))


class Measure(NamedTuple):
    """`about` says in the report what the figures are of."""

    name: str
    about: str
    run: Callable[[Bench], Awaitable[Cases]]


async def raw(bench: Bench) -> Cases:
    stand_in = [] if bench.sleep_s is None else [str(bench.sleep_s)]
    processes = await bench.loop("scripts.bench.raw", *stand_in)
    cpu = processes.cpu_s()
    count, rate = map(float, (await processes.ask("loop", str(bench.sizes.seconds), 60)).split())
    cpu = processes.cpu_s() - cpu
    memory = processes.memory_mb()
    return {"loop": {"images/s": rate, "CPU ms/image": cpu / count * 1e3, "memory MB": memory}}


async def stages(bench: Bench) -> Cases:
    if bench.sleep_s is not None:
        return {}
    processes = await bench.loop("scripts.bench.stages")
    costs = msgspec.json.decode(await processes.ask("loop", str(bench.sizes.images), 120))
    return {
        way: {"all ms": sum(spent.values())} | {f"{name} ms": ms for name, ms in spent.items()}
        for way, spent in costs.items()
    }


async def service(bench: Bench) -> Cases:
    its = await bench.detector()
    target = mayfly(its.url, its.group, bench.pictures, bench.wish)
    return {
        f"concurrency {c}": await load(target, c, bench.sizes.seconds)
        for c in bench.sizes.concurrency
    }


async def apart(bench: Bench) -> Cases:
    if not bench.spare:
        return {}
    its = await bench.detector("apart", worker_cores=bench.spare)
    target = replace(
        mayfly(its.url, its.group, bench.pictures, bench.wish), parts=("worker", "front door")
    )
    most = [c for c in bench.sizes.concurrency if c <= 32][-1]
    return {f"concurrency {most}": await load(target, most, bench.sizes.seconds)}


async def front_door(bench: Bench) -> Cases:
    its = await bench.nothing()
    target = mayfly(its.url, its.group, bench.pictures, {"model": SLEEPER})
    counts = [c for c in bench.sizes.concurrency if c in (1, 8, 32)]
    return {f"concurrency {c}": await load(target, c, bench.sizes.seconds) for c in counts}


async def start(bench: Bench) -> Cases:
    its = await bench.nothing()
    store = Store.open(its.settings)
    latencies = []
    try:
        async with store.redis.pubsub() as starts:
            await starts.subscribe(STARTED_CHANNEL)
            await starts.get_message(timeout=5)  # that it is subscribed
            for _ in range(_STARTS):
                begin = time.perf_counter()
                await _submit(store, its.key, bench.pictures[0])
                await starts.get_message(ignore_subscribe_messages=True, timeout=5)
                latencies.append((time.perf_counter() - begin) * 1e3)
                await asyncio.sleep(0.005)  # until it is done
    finally:
        await store.close()
    return {
        "idle worker": {"p50 ms": statistics.median(latencies), "p99 ms": percentile(latencies, 99)}
    }


async def idle(bench: Bench) -> Cases:
    its = await bench.nothing()
    took, spent = await _spent(its, bench.sizes.seconds, "worker", "front door", "valkey")
    return {role: {"% of a core": cpu_s / took * 100} for role, cpu_s in spent.items()}


async def in_flight(bench: Bench) -> Cases:
    cases = {}
    for count in bench.sizes.in_flight:
        endless = sleeper(10 * bench.sizes.seconds)
        async with _queue(bench, endless, max_in_flight=str(max(count, 1))) as (its, store):
            for _ in range(count):
                await _submit(store, its.key, bench.pictures[0])
            await asyncio.sleep(_SETTLE_S)
            took, spent = await _spent(its, bench.sizes.seconds, "worker")
            running = (await store.fleet()).workers[0].in_flight
        share = spent["worker"] / took * 100
        cases[f"{count} jobs"] = {"% of a core": share, "in flight": running}
    return cases


async def drain(bench: Bench) -> Cases:
    cases = {}
    for depth in bench.sizes.queued:
        async with _queue(bench, sleeper(0)) as (its, store):
            cases[f"{depth} queued"] = await _rate(its, store, depth, bench.sizes.seconds)
    return cases


async def scaling(bench: Bench) -> Cases:
    cases = {}
    for workers in bench.sizes.workers:
        command = sleeper(_SLEEP_S, workers)
        async with _queue(bench, command, workers=workers, max_in_flight="2") as (its, store):
            seconds = max(bench.sizes.seconds, 3 * _SLEEP_S)
            figures = await _rate(its, store, 4 * workers, seconds)
        figures["of the ideal"] = figures["jobs/s"] * _SLEEP_S / workers
        cases[f"{workers} workers"] = figures
    return cases


MEASURES = [
    Measure("raw", "the bare loop: decode, prepare, forward, finish, without a service", raw),
    Measure("stages", "CPU of each stage of the bare loop", stages),
    Measure("service", "an image and its result in one request, all on one core", service),
    Measure("apart", "the same with the worker alone on its core", apart),
    Measure("front-door", "a model that does nothing, and images not decoded", front_door),
    Measure("start", "from the submission to the store to the start of the job", start),
    Measure("idle", "CPU of the parts of a service that has nothing to do", idle),
    Measure("in-flight", "CPU of a worker whose jobs wait for the device", in_flight),
    Measure("drain", "one worker, a model that does nothing, a queue that stays as long", drain),
    Measure("scaling", f"workers of a model that sleeps {_SLEEP_S:g} s for each image", scaling),
]


@asynccontextmanager
async def _queue(
    bench: Bench, worker: list[str], *, workers: int = 1, max_in_flight: str = "16"
) -> AsyncIterator[tuple[Service, Store]]:
    """A Valkey with workers and no front door, ended when the body ends."""
    count = len(list(bench.folder.glob("queue-*")))
    async with group() as processes:
        its = await start_service(
            processes,
            bench.folder / f"queue-{count}",
            worker,
            bench.cores,
            workers=workers,
            front_door=False,
            models=SLEEPER,
            image_ttl_s="1800",
            result_ttl_s="1",
            max_in_flight=max_in_flight,
        )
        store = Store.open(its.settings)
        try:
            yield its, store
        finally:
            await store.close()


async def _rate(its: Service, store: Store, depth: int, seconds: float) -> Figures:
    """Jobs that workers finish from a queue that is kept at `depth`.

    Each job that is done is replaced, so that it costs the same at any depth. Those that wait
    longest are bulk jobs, whose turn does not come here; their payloads are blank.
    """
    submitted = 0
    behind = max(0, depth - _AHEAD)
    fill = store.redis.register_script(_FILL)
    for start in range(0, behind, _AT_A_TIME):
        keys = [queue_key(SLEEPER), image_key("%s"), job_key("%s")]
        await fill(keys, [start, min(start + _AT_A_TIME, behind), lua.BULK])

    async def left() -> int:
        return int(await store.redis.zcard(queue_key(SLEEPER)))

    async def feed() -> None:
        nonlocal submitted
        while True:
            if missing := min(_TOGETHER, depth - await left()):
                await asyncio.gather(*(_submit(store, its.key, b"\0") for _ in range(missing)))
                submitted += missing
            else:
                await asyncio.sleep(_FEED_S)

    async with background(feed()):
        await asyncio.sleep(_SETTLE_S)
        done = submitted - await left()
        took, spent = await _spent(its, seconds, "worker", "valkey")
        count = submitted - await left() - done
    costs = {f"{role} CPU ms/job": cpu_s / count * 1e3 for role, cpu_s in spent.items()}
    return {"jobs/s": count / took, **costs}


async def _spent(its: Service, seconds: float, *roles: str) -> tuple[float, dict[str, float]]:
    """Let so much time pass; returns how much it was, and the CPU time of parts of a service."""
    begin, before = time.perf_counter(), {role: its.group.cpu_s(role) for role in roles}
    await asyncio.sleep(seconds)
    took = time.perf_counter() - begin
    return took, {role: its.group.cpu_s(role) - at for role, at in before.items()}


async def _submit(store: Store, key: PublicKey, image: bytes) -> None:
    capability = Capability.new()
    payload = Payload(capability.result_key, _REQUEST, {MAIN_IMAGE: image}, time.time_ns() // 10**6)
    sealed = key.seal(capability.id, payload)
    outcome = await store.submit(capability.id, sealed, SLEEPER, bulk=False, subject="bench")
    if outcome != "queued":
        raise RuntimeError(f"a job was not queued: {outcome}")
