"""One job's way through the worker: take, open, decode, batch, finish, seal."""

import asyncio
import logging
import math
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, NamedTuple

import msgspec

from jobs.contract import MAIN_IMAGE as MAIN
from jobs.contract import (
    Annotated,
    Failed,
    ModelInfo,
    ModelRef,
    Result,
    Size,
    Timing,
    check_inside,
    check_model,
)
from jobs.problems import Problem, unprocessable
from jobs.sealing import Payload, PrivateKey, SealError, seal_result
from jobs.settings import Settings
from jobs.store import Claimed, Store
from worker.batcher import Batcher
from worker.decode import decode
from worker.models.base import Model

log = logging.getLogger(__name__)
_MAX_CRASHES = 1


class Prepared(NamedTuple):
    """A model's item with the size of the picture it came from."""

    item: Any
    bucket: Any
    size: Size


class Pipeline:
    """Annotates jobs; overlaps their stages across threads.

    Args:
        models: the served models by name; those of one device share its only thread.
        device: executor with one thread, where forwards run.
    """

    def __init__(
        self,
        store: Store,
        key: PrivateKey,
        models: dict[str, Model[Any, Any]],
        device: Executor,
        settings: Settings,
    ) -> None:
        self._store = store
        self._key = key
        self._models = models
        self._settings = settings
        self._threads = ThreadPoolExecutor(settings.decode_threads, "decode")
        self._suspects = asyncio.Lock()
        self.batchers = {
            name: Batcher(model.forward, device, model.max_batch) for name, model in models.items()
        }

    async def annotate(self, job: Claimed) -> None:
        """Run one job to its sealed result. Raises only when Redis does not answer."""
        sealed = await self._store.take(job.id)
        if sealed is None:
            return  # erased or expired while it waited
        started_ms = time.time() * 1000
        try:
            payload = self._key.open(job.id, sealed)
        except SealError:
            log.error("job sealed to another key", extra={"fields": {"job": job.id}})
            await self._store.drop(job.id)
            return
        del sealed
        if job.tries == 1:
            result = await self._result(payload, started_ms, job.turn)
        else:
            # A worker died with this job in hand. Such jobs run one at a time, so that one that
            # kills its worker is found out and its neighbours go on.
            async with self._suspects:
                result = await self._alone(job.id, payload, started_ms)
        plain = msgspec.json.encode(result)
        stored = await self._store.finish(job.id, seal_result(payload.result_key, job.id, plain))
        log.info("job", extra={"fields": _line(job, payload, result, stored)})

    async def _alone(self, job_id: str, payload: Payload, started_ms: float) -> Result:
        """Count the run before it starts, and take it back if this process lives to see its end.

        Its turn comes first: the shorter the run, the rarer is it hit by another one's accident.
        """
        if await self._store.count_crash(job_id) > _MAX_CRASHES:
            return Failed(
                500,
                "worker_crashed",
                "Workers died on this job, so it was given up. Submit another image.",
            )
        try:
            return await self._result(payload, started_ms, turn=-math.inf)
        finally:
            await self._store.forget_crash(job_id)

    async def _result(self, payload: Payload, started_ms: float, turn: float) -> Result:
        try:
            return await self._work(payload, started_ms, turn)
        except Problem as problem:
            return Failed(problem.status, problem.code, problem.detail)
        except Exception:
            log.exception("job failed")
            return Failed(
                500, "internal_error", "The worker failed on this job; the fault is on our side."
            )

    async def _work(self, payload: Payload, started_ms: float, turn: float) -> Result:
        request = payload.request
        model = self._models.get(request.model or "")
        if model is None:
            raise unprocessable("model_unknown", "No worker serves this model any more.")
        in_thread = asyncio.get_running_loop().run_in_executor
        start = time.perf_counter()
        prepared = await in_thread(self._threads, self._prepare, model, payload)
        decode_ms = (time.perf_counter() - start) * 1000
        ran = await self.batchers[model.info.name].submit(prepared.item, prepared.bucket, turn)
        annotations = await in_thread(self._threads, model.finish, ran.raw, prepared.item)
        return Annotated(
            image=prepared.size,
            model=ModelRef(model.info.name, model.info.version),
            annotations=annotations,
            timing=Timing(
                queued_ms=round(max(0.0, started_ms - payload.received_ms), 1),
                decode_ms=round(decode_ms, 1),
                infer_ms=round(ran.ms, 1),
                batch_size=ran.batch_size,
            ),
        )

    def _prepare(self, model: Model[Any, Any], payload: Payload) -> Prepared:
        """Runs on a decoding thread."""
        request = payload.request
        check_model(request, model.info)
        images = {
            name: decode(data, self._settings.max_pixels) for name, data in payload.images.items()
        }
        for name, pixels in images.items():
            check_inside(request, name, Size(pixels.shape[1], pixels.shape[0]))
        item = model.prepare(images, request)
        height, width = images[MAIN].shape[:2]
        return Prepared(item, model.bucket(item), Size(width, height))

    def infos(self) -> list[ModelInfo]:
        return [model.info for model in self._models.values()]

    async def serve(self) -> None:
        """Run the models' batches until cancelled."""
        await asyncio.gather(*(batcher.serve() for batcher in self.batchers.values()))

    def wedged(self) -> bool:
        """Whether a forward has been running for longer than any should."""
        limit = time.monotonic() - self._settings.forward_timeout_s
        return any(
            b.busy_since is not None and b.busy_since < limit for b in self.batchers.values()
        )


def _line(job: Claimed, payload: Payload, result: Result, stored: bool) -> dict[str, Any]:
    """A job's log line: ids, sizes, times and outcome; nothing of the image or the prompts."""
    line: dict[str, Any] = {
        "job": job.id,
        "model": payload.request.model,
        "bytes": sum(map(len, payload.images.values())),
        "try": job.tries,
        "outcome": result.code if isinstance(result, Failed) else "annotated",
        "stored": stored,
    }
    if isinstance(result, Annotated):
        line["annotations"] = len(result.annotations)
        line.update(msgspec.structs.asdict(result.timing))
    return line
