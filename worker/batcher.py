"""Groups items into batches for one device. Knows neither torch nor jobs: test it with integers."""

import asyncio
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


class Batcher(Generic[Item, Raw]):
    """Collect, run, hand back.

    The rule: an idle device starts at once with what is there; while it runs, the next batch
    fills itself. So there is no timer to tune, and no wait when nobody else comes.

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
        self._waiting: list[_Waiting[Item, Raw]] = []
        self._arrived = asyncio.Event()
        self.busy_since: float | None = None  # monotonic seconds; a watchdog reads it

    async def submit(self, item: Item, bucket: Hashable, turn: float = 0) -> Ran[Raw]:
        """Wait for the item's turn and output. A lower `turn` goes first.

        Raises whatever `run` raises for this item alone; a bad item fails by itself.
        """
        waiting = _Waiting[Item, Raw](
            item, bucket, turn, asyncio.get_running_loop().create_future()
        )
        self._waiting.append(waiting)
        self._arrived.set()
        try:
            return await waiting.done
        finally:
            if waiting in self._waiting:  # cancelled before its turn
                self._waiting.remove(waiting)

    async def serve(self) -> None:
        """Run batches until cancelled."""
        while True:
            batch = await self._collect()
            for waiting, outcome in zip(batch, await self._forward(batch), strict=True):
                if waiting.done.done():
                    continue
                if isinstance(outcome, Ran):
                    waiting.done.set_result(outcome)
                else:
                    waiting.done.set_exception(outcome)

    async def _collect(self) -> list[_Waiting[Item, Raw]]:
        """Wait for items; take the one whose turn it is, and the next that share its bucket."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        self._waiting.sort(key=lambda waiting: waiting.turn)  # stable: first come, first served
        bucket = self._waiting[0].bucket
        batch = [waiting for waiting in self._waiting if waiting.bucket == bucket]
        batch = batch[: self._max_batch]
        self._waiting = [waiting for waiting in self._waiting if waiting not in batch]
        return batch

    async def _forward(self, batch: list[_Waiting[Item, Raw]]) -> list[Ran[Raw] | Exception]:
        try:
            return list(await self._on_device(batch))
        except Exception as error:
            if len(batch) == 1:
                return [error]
        # one of them is bad: find out which, so that its neighbours do not suffer
        return [outcome for waiting in batch for outcome in await self._forward([waiting])]

    async def _on_device(self, batch: list[_Waiting[Item, Raw]]) -> list[Ran[Raw]]:
        items = [waiting.item for waiting in batch]
        self.busy_since = start = time.monotonic()
        try:
            loop = asyncio.get_running_loop()
            outputs = await loop.run_in_executor(self._device, self._run, items)
        finally:
            self.busy_since = None
        ms = (time.monotonic() - start) * 1000
        if len(outputs) != len(items):
            raise RuntimeError("the model returned another number of outputs than it got items")
        return [Ran(raw, ms, len(items)) for raw in outputs]
