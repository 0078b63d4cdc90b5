"""Groups items into batches for one device. Knows neither torch nor jobs: test it with integers."""

import asyncio
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Raw = TypeVar("Raw")


@dataclass(frozen=True)
class Ran(Generic[Raw]):
    """What came of one item: its output, how long its batch ran, how many shared it."""

    raw: Raw
    ms: float
    batch_size: int


@dataclass(eq=False)
class _Waiting(Generic[Item, Raw]):
    item: Item
    bucket: Hashable
    turn: float
    done: "asyncio.Future[Ran[Raw]]"

    def hand_back(self, outcome: "Ran[Raw] | Exception") -> None:
        if self.done.done():  # nobody waits any more
            return
        if isinstance(outcome, Ran):
            self.done.set_result(outcome)
        else:
            self.done.set_exception(outcome)


class Batcher(Generic[Item, Raw]):
    """Collect, run, hand back.

    The rule: an idle device starts at once with what is there; while it runs, the next batch
    fills itself. So there is no timer to tune, and no wait when nobody else comes. The device's
    thread takes its next batch by itself, so it does not stand still while the event loop is busy,
    and takes it no earlier than it can run it, so that it is as full and as fair as can be.

    Args:
        run: turns a list of items of one bucket into a list of outputs, on the device's thread.
        device: an executor with one thread.
        max_batch: most items in one batch.
    """

    def __init__(
        self, run: Callable[[list[Item]], list[Raw]], device: Executor, max_batch: int
    ) -> None:
        self._run = run
        self._device = device
        self._max_batch = max_batch
        self._lock = threading.Lock()  # over the next two: the loop and the device's thread meet
        self._waiting: list[_Waiting[Item, Raw]] = []
        self._running = False  # whether the device has a batch, or was told to take one
        self.busy_since: float | None = None  # monotonic seconds; a watchdog reads it

    async def submit(self, item: Item, bucket: Hashable, turn: float = 0) -> Ran[Raw]:
        """Wait for the item's turn and output. A lower `turn` goes first.

        Raises whatever `run` raises for this item alone; a bad item fails by itself.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting[Item, Raw](item, bucket, turn, loop.create_future())
        with self._lock:
            self._waiting.append(waiting)
            idle, self._running = not self._running, True
        if idle:  # soon: what is submitted in this turn of the loop may go along
            loop.call_soon(self._device.submit, self._next_batch)
        try:
            return await waiting.done
        finally:
            with self._lock:
                if waiting in self._waiting:  # cancelled before its turn
                    self._waiting.remove(waiting)

    def _next_batch(self) -> None:
        """Run one batch, on the device's thread; other models' batches may come before the next."""
        with self._lock:
            batch = self._take()
        if batch:
            outcomes = self._forward(batch)
            batch[0].done.get_loop().call_soon_threadsafe(_hand_back, batch, outcomes)
        with self._lock:
            self._running = bool(self._waiting)
            if self._running:
                self._device.submit(self._next_batch)

    def _take(self) -> list[_Waiting[Item, Raw]]:
        """The item whose turn it is, and the next ones that share its bucket."""
        self._waiting.sort(key=lambda waiting: waiting.turn)  # stable: first come, first served
        batch = [w for w in self._waiting if w.bucket == self._waiting[0].bucket]
        batch = batch[: self._max_batch]
        self._waiting = [waiting for waiting in self._waiting if waiting not in batch]
        return batch

    def _forward(self, batch: list[_Waiting[Item, Raw]]) -> list[Ran[Raw] | Exception]:
        try:
            return list(self._on_device([waiting.item for waiting in batch]))
        except Exception as error:
            if len(batch) == 1:
                return [error]
        # one of them is bad: find out which, so that its neighbours do not suffer
        return [outcome for waiting in batch for outcome in self._forward([waiting])]

    def _on_device(self, items: list[Item]) -> list[Ran[Raw]]:
        self.busy_since = start = time.monotonic()
        try:
            outputs = self._run(items)
        finally:
            self.busy_since = None
        ms = (time.monotonic() - start) * 1000
        if len(outputs) != len(items):
            raise RuntimeError("the model returned another number of outputs than it got items")
        return [Ran(raw, ms, len(items)) for raw in outputs]


def _hand_back(batch: list[_Waiting[Item, Raw]], outcomes: list["Ran[Raw] | Exception"]) -> None:
    """On the event loop, whose futures these are."""
    for waiting, outcome in zip(batch, outcomes, strict=True):
        waiting.hand_back(outcome)
