"""arq's worker, made to start jobs at once, to share a queue fairly and to free jobs of the dead.

The queue's form and its limits are arq's. How jobs are found, claimed, started and ended is
replaced: stock arq polls on a timer, reads the head of the queue with the running jobs in it,
claims one job in four round trips, and counts its tries with a command that a full Redis refuses.
Here a published signal ends the wait (polling stays as the fallback), one script claims and counts
all that there is room for, and the one that stores the result takes the job off the queue.
"""

import asyncio
import contextlib
import logging
from typing import Any

from arq import Worker, func
from arq.connections import ArqRedis

from jobs.gate import Gate
from jobs.settings import Settings
from jobs.store import (
    STORE_ERRORS,
    TASK_NAME,
    Claimed,
    Store,
    connection_pool,
    deserialize,
    messages,
    queue_key,
    serialize,
)
from worker.pipeline import Pipeline

log = logging.getLogger(__name__)
LEASE_S = 2.0  # a killed worker's jobs are free after this; renewed four times as often
POLL_S = 0.5


class QueueWorker(Worker):
    """Serves one model's queue."""

    def __init__(
        self, model: str, store: Store, pipeline: Pipeline, settings: Settings, gate: Gate
    ) -> None:
        async def annotate(ctx: dict[str, Any]) -> None:
            await pipeline.annotate(Claimed(ctx["job_id"], ctx["score"], ctx["job_try"]))

        super().__init__(
            functions=[func(annotate, name=TASK_NAME)],
            queue_name=queue_key(model),
            redis_pool=ArqRedis(connection_pool(settings, patient=True)),
            handle_signals=False,
            max_jobs=settings.max_in_flight,
            job_timeout=settings.image_ttl_s + settings.forward_timeout_s,
            keep_result=0,
            log_results=False,
            job_serializer=serialize,
            job_deserializer=deserialize,
        )
        self._model = model
        self._store = store
        self._gate = gate
        self._wake = asyncio.Event()
        self._full = True  # whether there may be free jobs that there was no room for
        self._claiming = asyncio.Lock()

    async def main(self) -> None:
        """Claim and start jobs until cancelled; outlive a Redis that is away."""
        while True:
            self._wake.clear()
            room = self.max_jobs - len(self.tasks)
            async with self._claiming:
                if room > 0 and self.allow_pick_jobs and self._gate.open:
                    await self._claim(room)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()

    async def _claim(self, room: int) -> None:
        self._full = True
        with contextlib.suppress(*STORE_ERRORS):
            claimed = await self._store.claim(self._model, room, LEASE_S)
            self._full = len(claimed) == room
            for job in claimed:
                if job.id not in self.tasks:  # its lease ran out under us: it goes on
                    self._start(job)

    def _start(self, job: Claimed) -> None:
        def done(task: asyncio.Task[None]) -> None:
            del self.tasks[job.id]
            if self._full:  # there is room for another; else the next signal tells of one
                self._wake.set()
            if not task.cancelled() and (error := task.exception()):
                # its lease runs out and the job runs again, here or elsewhere
                log.warning("job interrupted", exc_info=error, extra={"fields": {"job": job.id}})

        self.tasks[job.id] = asyncio.create_task(self._run(job))
        self.tasks[job.id].add_done_callback(done)

    async def _run(self, job: Claimed) -> None:
        """The pipeline ends it, and decides when to give it up; what takes too long ends here."""
        ctx = {"job_id": job.id, "job_try": job.tries, "score": job.turn}
        try:
            async with asyncio.timeout(self.job_timeout_s) as limit:
                await self.functions[TASK_NAME].coroutine(ctx)
            return
        except (asyncio.CancelledError, *STORE_ERRORS):  # drained, or Redis did not answer
            if not limit.expired():
                await asyncio.shield(self._store.hand_back(job))
                raise
        await asyncio.shield(
            self.finish_job(
                job.id,
                finish=True,
                result_data=None,
                result_timeout_s=0,
                keep_result_forever=False,
                incr_score=None,
                keep_in_progress=None,
            )
        )

    async def listen(self) -> None:
        """Turn the published signals into wake-ups; survive the loss of the connection."""
        while True:
            with contextlib.suppress(*STORE_ERRORS):
                async with await self._store.wake_ups(self._model) as signals:
                    async for _ in messages(signals):
                        self._wake.set()
            await asyncio.sleep(POLL_S)  # polling goes on meanwhile

    async def renew(self) -> None:
        """Keep the leases of the running jobs."""
        while True:
            with contextlib.suppress(*STORE_ERRORS):
                await self._store.renew(list(self.tasks), LEASE_S)
            await asyncio.sleep(LEASE_S / 4)

    async def drain(self, seconds: float) -> None:
        """Take no more jobs; wait for the running ones, hand the rest back to the queue."""
        self.allow_pick_jobs = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._claiming:
                pass  # what was being claimed has started
        running = list(self.tasks.values())
        if running:
            _, late = await asyncio.wait(running, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
