"""How work is grouped: the batcher knows neither torch nor jobs, so integers do."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import pytest_asyncio

from worker.batcher import Batcher


class Device:
    """Squares numbers; holds until released, so that a test decides when a batch ends."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()
        self.running = threading.Semaphore(0)

    def run(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.running.release()
        assert self.go.wait(5)
        if 13 in items:
            raise ValueError("13 is bad")
        return [item * item for item in items]


@pytest.fixture
def device() -> Device:
    return Device()


@pytest_asyncio.fixture
async def batcher(device: Device) -> AsyncIterator[Batcher[int, int]]:
    with ThreadPoolExecutor(1) as executor:
        yield Batcher(device.run, executor, max_batch=3)


async def _while_busy(
    device: Device, batcher: Batcher[int, int], submit: Callable[[], None]
) -> None:
    """Occupy the device with a first item, let `submit` queue more, then go on."""
    device.go.clear()
    first = asyncio.create_task(batcher.submit(0, "a"))
    await asyncio.to_thread(device.running.acquire, timeout=5)
    submit()
    await asyncio.sleep(0.05)
    device.go.set()
    await first


async def test_an_idle_device_starts_at_once(device: Device, batcher: Batcher[int, int]) -> None:
    """One item alone is a batch of one; nobody waits for company."""
    ran = await batcher.submit(7, "a")
    assert (ran.raw, ran.batch_size, device.batches) == (49, 1, [[7]])


async def test_while_it_runs_the_next_batch_fills(
    device: Device, batcher: Batcher[int, int]
) -> None:
    """What arrives meanwhile goes together, up to the largest batch."""
    tasks: list[asyncio.Task[object]] = []

    def submit() -> None:
        tasks.extend(asyncio.create_task(batcher.submit(n, "a")) for n in (1, 2, 3, 4))

    await _while_busy(device, batcher, submit)
    await asyncio.gather(*tasks)
    assert device.batches == [[0], [1, 2, 3], [4]]


async def test_the_device_goes_on_while_the_loop_is_busy(
    device: Device, batcher: Batcher[int, int]
) -> None:
    """It takes its next batch by itself: the loop, which stands still here, is not asked."""
    tasks: list[asyncio.Task[object]] = []

    def submit() -> None:
        tasks.extend(asyncio.create_task(batcher.submit(n, "a")) for n in (1, 2))
        asyncio.get_running_loop().call_later(0.01, go_on)

    def go_on() -> None:
        device.go.set()
        assert device.running.acquire(timeout=5)  # on the loop's own thread

    await _while_busy(device, batcher, submit)
    await asyncio.gather(*tasks)
    assert device.batches == [[0], [1, 2]]


async def test_a_batch_is_of_one_bucket(device: Device, batcher: Batcher[int, int]) -> None:
    """Items of another shape wait for their own batch."""
    tasks: list[asyncio.Task[object]] = []

    def submit() -> None:
        for number, bucket in ((1, "a"), (2, "b"), (3, "a")):
            tasks.append(asyncio.create_task(batcher.submit(number, bucket)))

    await _while_busy(device, batcher, submit)
    await asyncio.gather(*tasks)
    assert device.batches == [[0], [1, 3], [2]]


async def test_who_is_first_in_the_queue_goes_first(
    device: Device, batcher: Batcher[int, int]
) -> None:
    """Interactive before bulk, an account that has waited before one that has had its share."""
    tasks: list[asyncio.Task[object]] = []

    def submit() -> None:
        tasks.extend(asyncio.create_task(batcher.submit(n, "a", turn=1)) for n in (1, 2, 3, 4))
        tasks.append(asyncio.create_task(batcher.submit(9, "a")))

    await _while_busy(device, batcher, submit)
    await asyncio.gather(*tasks)
    assert device.batches == [[0], [9, 1, 2], [3, 4]]


async def test_one_bad_item_fails_alone(device: Device, batcher: Batcher[int, int]) -> None:
    """Its neighbours are run again without it."""
    tasks: list[asyncio.Task[object]] = []

    def submit() -> None:
        tasks.extend(asyncio.create_task(batcher.submit(n, "a")) for n in (2, 13, 3))

    await _while_busy(device, batcher, submit)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [getattr(outcome, "raw", type(outcome)) for outcome in outcomes] == [4, ValueError, 9]


async def test_a_cancelled_item_is_not_run(device: Device, batcher: Batcher[int, int]) -> None:
    """Who went away before their turn costs nothing."""
    tasks: list[asyncio.Task[object]] = []

    def submit() -> None:
        tasks.extend(asyncio.create_task(batcher.submit(n, "a")) for n in (1, 2))
        asyncio.get_running_loop().call_later(0.01, tasks[0].cancel)

    await _while_busy(device, batcher, submit)
    await tasks[1]
    assert device.batches == [[0], [2]]
