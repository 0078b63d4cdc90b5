"""arq's worker, made to start jobs at once, to share a queue fairly and to free jobs of the dead.

arq runs, retries and finishes the jobs. How they are found and claimed is replaced: stock arq
polls on a timer, reads the head of the queue with the running jobs in it, and claims one job in
four round trips. Here a published signal ends the wait (polling stays as the fallback) and one
script claims all that there is room for.
"""

import asyncio
import contextlib
import logging
from typing import Any

from arq import Worker, func
from arq.connections import ArqRedis
from arq.worker import RetryJob

from jobs.settings import Settings
from jobs.store import (
    STORE_ERRORS,
    TASK_NAME,
    Store,
    connection_pool,
    deserialize,
    queue_key,
    serialize,
)
from worker.pipeline import Pipeline

log = logging.getLogger(__name__)
LEASE_S = 2.0  # a killed worker's jobs are free after this; renewed four times as often
POLL_S = 0.5


class QueueWorker(Worker):
    """Serves one model's queue."""

    def __init__(self, model: str, store: Store, pipeline: Pipeline, settings: Settings) -> None:
        async def annotate(ctx: dict[str, Any]) -> None:
            try:
                await pipeline.annotate(ctx["job_id"], ctx["job_try"])
            except STORE_ERRORS as error:  # arq takes all others for the end of the job
                raise RetryJob from error

        super().__init__(
            functions=[func(annotate, name=TASK_NAME)],
            queue_name=queue_key(model),
            redis_pool=ArqRedis(connection_pool(settings, patient=True)),
            handle_signals=False,
            max_jobs=settings.max_in_flight,
            job_timeout=settings.image_ttl_s + settings.forward_timeout_s,
            keep_result=0,
            log_results=False,
            max_tries=1000,  # the pipeline decides when to give up, and tells the caller
            job_serializer=serialize,
            job_deserializer=deserialize,
        )
        self._model = model
        self._store = store
        self._wake = asyncio.Event()

    async def main(self) -> None:
        """Claim and start jobs until cancelled; outlive a Redis that is away."""
        while True:
            self._wake.clear()
            room = self.max_jobs - len(self.tasks)
            if room > 0 and self.allow_pick_jobs:
                with contextlib.suppress(*STORE_ERRORS):
                    for job_id, score in await self._store.claim(self._model, room, LEASE_S):
                        if job_id not in self.tasks:  # its lease ran out under us: it goes on
                            self._start(job_id, score)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()

    def _start(self, job_id: str, score: int) -> None:
        def done(task: asyncio.Task[None]) -> None:
            del self.tasks[job_id]
            self._wake.set()  # there is room for another
            if not task.cancelled() and (error := task.exception()):
                # its lease runs out and the job runs again, here or elsewhere
                log.warning("job interrupted", exc_info=error, extra={"fields": {"job": job_id}})

        self.tasks[job_id] = asyncio.create_task(self.run_job(job_id, score))
        self.tasks[job_id].add_done_callback(done)

    async def listen(self) -> None:
        """Turn the published signals into wake-ups; survive the loss of the connection."""
        while True:
            with contextlib.suppress(*STORE_ERRORS):
                async with await self._store.wake_ups(self._model) as signals:
                    async for _ in signals.listen():
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
        running = list(self.tasks.values())
        if running:
            _, late = await asyncio.wait(running, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
