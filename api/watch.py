"""What the front door keeps an eye on: changed jobs, and who serves what."""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence

from redis.asyncio.client import PubSub

from jobs.contract import ModelInfo
from jobs.sealing import PublicKey
from jobs.store import (
    CHANGED_CHANNEL,
    STARTED_CHANNEL,
    STORE_ERRORS,
    Fleet,
    JobState,
    Store,
    messages,
)

FALLBACK_S = 1.0  # a lost signal costs a waiting client this much
_REMEMBER_S = 60.0  # a model whose workers restart is still known for this long


class Changes:
    """One subscription for all clients that wait for jobs.

    That a job starts is listened to only while somebody follows one, since every job does.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: defaultdict[tuple[str, str], set[asyncio.Event]] = defaultdict(set)
        self._closing = False
        self._followers = 0
        self._signals: PubSub | None = None  # while there is a connection
        self._tuning = asyncio.Lock()

    async def serve(self) -> None:
        """Pass on the signals until cancelled; survive the loss of the connection."""
        while True:
            with contextlib.suppress(*STORE_ERRORS):
                async with await self._store.changes() as signals:
                    await self._pass_on(signals)
            await asyncio.sleep(0.2)

    async def _pass_on(self, signals: PubSub) -> None:
        self._signals = signals
        try:
            await self._tune()
            async for message in messages(signals):
                if message["type"] == "message":
                    self._wake((message["channel"].decode(), message["data"].decode()))
                elif message["type"] == "subscribe":  # there may have been signals before
                    self._wake_all()
        finally:
            self._signals = None

    async def _tune(self) -> None:
        """Listen to starts if there are followers, and not if there are none."""
        async with self._tuning:  # the last one to come through knows how many there are
            if self._signals is None:
                return
            change = self._signals.subscribe if self._followers else self._signals.unsubscribe
            with contextlib.suppress(*STORE_ERRORS):  # whoever follows looks again after a while
                await change(STARTED_CHANNEL)

    async def settled(self, job_id: str, seconds: float) -> JobState:
        """The job's state once it is neither queued nor running, or after `seconds`."""
        deadline = time.monotonic() + seconds
        with self.watching(job_id) as changed:
            while True:
                changed.clear()
                state = await self._store.state(job_id)
                left = deadline - time.monotonic()
                if state.status not in ("queued", "running") or left <= 0 or self._closing:
                    return state
                await wait(changed, min(left, FALLBACK_S))

    @contextlib.contextmanager
    def watching(
        self, job_id: str, channels: Sequence[str] = (CHANGED_CHANNEL,)
    ) -> Iterator[asyncio.Event]:
        """An event that is set when the job is over; look at its state after entering."""
        changed = asyncio.Event()
        keys = [(channel, job_id) for channel in channels]
        for key in keys:
            self._waiting[key].add(changed)
        try:
            yield changed
        finally:
            for key in keys:
                self._waiting[key].discard(changed)
                if not self._waiting[key]:
                    del self._waiting[key]

    @contextlib.asynccontextmanager
    async def following(self, job_id: str) -> AsyncIterator[asyncio.Event]:
        """The same, set when the job starts too."""
        with self.watching(job_id, (CHANGED_CHANNEL, STARTED_CHANNEL)) as changed:
            self._followers += 1
            try:
                if self._followers == 1:
                    await self._tune()
                yield changed
            finally:
                self._followers -= 1
                if not self._followers:
                    await self._tune()

    @property
    def closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Let everybody who waits go: the process is about to stop."""
        self._closing = True
        self._wake_all()

    def _wake_all(self) -> None:
        for key in list(self._waiting):
            self._wake(key)

    def _wake(self, key: tuple[str, str]) -> None:
        for changed in self._waiting.get(key, ()):
            changed.set()


async def wait(event: asyncio.Event, seconds: float) -> bool:
    """Whether the event was set within `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


class Pulse:
    """The fleet as it was half a second ago, so that requests need not ask for it.

    Args:
        keys: the workers' public keys, the newest first.
    """

    def __init__(self, store: Store, keys: Sequence[PublicKey]) -> None:
        self._store = store
        self._keys = keys
        self._seen: dict[str, tuple[float, ModelInfo]] = {}
        self.fleet: Fleet | None = None  # None: Redis does not answer

    async def serve(self) -> None:
        """Look again twice a second until cancelled."""
        while True:
            await self.beat()
            await asyncio.sleep(0.5)

    async def beat(self) -> None:
        try:
            self.fleet = await self._store.fleet()
        except STORE_ERRORS:
            self.fleet = None
            return
        now = time.monotonic()
        for worker in self.fleet.workers:
            for model in worker.models:
                self._seen[model.name] = (now, model)

    def models(self) -> dict[str, ModelInfo]:
        """Models that workers serve or served a moment ago, by name."""
        since = time.monotonic() - _REMEMBER_S
        return {name: model for name, (seen, model) in sorted(self._seen.items()) if seen > since}

    def accepted_keys(self) -> list[PublicKey]:
        """The sealing keys, newest first, that every worker which is heard of can open with; all
        while none is heard of."""
        workers = self.fleet.workers if self.fleet else []
        return [key for key in self._keys if all(key.id in each.key_ids for each in workers)]

    def sealing_key(self) -> PublicKey:
        """The key to seal to. While keys are exchanged, that is the old one until every worker has
        the new one; where workers share none, the newest."""
        return next(iter(self.accepted_keys()), self._keys[0])
