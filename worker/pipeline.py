"""One job's way through the worker: take, open, decode, batch, finish, seal."""

import asyncio
import logging
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, NamedTuple

import msgspec

from jobs.contract import MAIN_IMAGE as MAIN
from jobs.contract import (
    Annotated,
    Embedded,
    Failed,
    ModelInfo,
    ModelRef,
    Request,
    Result,
    Size,
    Timing,
    check_inside,
    check_model,
    check_parts,
    parse_request,
)
from jobs.problems import Problem, unprocessable
from jobs.sealing import PrivateKey, SealError, open_payload
from jobs.settings import Settings
from jobs.store import Claimed, Store
from jobs.usage import Counts, Finished
from worker.batcher import Batcher
from worker.decode import Decoded, decode_reduced, whole
from worker.models.base import Embedding, Model, Reducing

log = logging.getLogger(__name__)
_MAX_CRASHES = 1
_OUR_FAULT = Failed(
    500, "internal_error", "The worker failed on this job; the fault is on our side."
)
_result = msgspec.json.Decoder(Result)


class Prepared(NamedTuple):
    """A model's item with the size of the picture it came from."""

    item: Any
    bucket: Any
    size: Size


class Work(NamedTuple):
    """What a payload asks for."""

    request: Request
    images: dict[str, bytes]
    received_ms: int


class Pipeline:
    """Annotates jobs; overlaps their stages across threads.

    Args:
        models: the served models by name; those of one device share its only thread.
        device: executor with one thread, where forwards run.
    """

    def __init__(
        self,
        store: Store,
        keys: Sequence[PrivateKey],
        models: dict[str, Model[Any, Any]],
        device: Executor,
        settings: Settings,
    ) -> None:
        self._store = store
        self._keys = keys
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
            payload = open_payload(self._keys, job.id, sealed)
        except SealError:
            log.error("job sealed to another key", extra={"fields": {"job": job.id}})
            await self._store.drop(job.id)
            return
        del sealed
        model: str | None = None
        try:
            work = Work(parse_request(payload.request), payload.images, payload.received_ms)
            if work.request.model in self._models:  # else it may be anything that a client wrote
                model = work.request.model
        except Problem as problem:
            result: Result = _failed(problem)
        else:
            result = await self._run(job, work, started_ms)
        result, text = _written(result)
        try:
            sealed = payload.seal_result(job.id, text)
        except SealError:
            log.error("no key to seal the result to", extra={"fields": {"job": job.id}})
            await self._store.drop(job.id)
            return
        finished = _finished(payload.images, result)
        stored = await self._store.finish(job.id, sealed, finished)
        log.info("job", extra={"fields": _line(job, model, payload.images, result, stored)})

    async def _run(self, job: Claimed, work: Work, started_ms: float) -> Result:
        if job.tries == 1:
            return await self._result(work, started_ms, job.turn)
        # A worker died with this job in hand. Such jobs run one at a time, so that one that
        # kills its worker is found out and its neighbours go on.
        async with self._suspects:
            return await self._alone(job.id, work, started_ms)

    async def _alone(self, job_id: str, work: Work, started_ms: float) -> Result:
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
            return await self._result(work, started_ms, turn=-math.inf)
        finally:
            await self._store.forget_crash(job_id)

    async def _result(self, work: Work, started_ms: float, turn: float) -> Result:
        try:
            return await self._work(work, started_ms, turn)
        except Problem as problem:
            return _failed(problem)
        except Exception:
            log.exception("job failed")
            return _OUR_FAULT

    async def _work(self, work: Work, started_ms: float, turn: float) -> Result:
        model = self._models.get(work.request.model or "")
        if model is None:
            raise unprocessable("model_unknown", "No worker serves this model any more.")
        in_thread = asyncio.get_running_loop().run_in_executor
        start = time.perf_counter()
        prepared = await in_thread(self._threads, self._prepare, model, work)
        decode_ms = (time.perf_counter() - start) * 1000
        ran = await self.batchers[model.info.name].submit(prepared.item, prepared.bucket, turn)
        answer = await in_thread(self._threads, model.finish, ran.raw, prepared.item)
        made_by = ModelRef(model.info.name, model.info.version)
        timing = Timing(
            queued_ms=round(max(0.0, started_ms - work.received_ms), 1),
            decode_ms=round(decode_ms, 1),
            infer_ms=round(ran.ms, 1),
            batch_size=ran.batch_size,
        )
        if isinstance(answer, Embedding):
            return Embedded(made_by, answer.text, timing)
        return Annotated(
            prepared.size, made_by, answer.annotations, timing, answer.suggested_min_score
        )

    def _prepare(self, model: Model[Any, Any], work: Work) -> Prepared:
        """Runs on a decoding thread. Whatever the front door checks is checked here again."""
        request = work.request
        check_model(request, model.info)
        check_parts(request, work.images)
        _check_sizes(work.images, self._settings)
        reduction = model.reduction if isinstance(model, Reducing) else whole
        images = {
            name: decode_reduced(data, self._settings.max_pixels, reduction)
            for name, data in work.images.items()
        }
        sizes = {name: _size_of(decoded) for name, decoded in images.items()}
        for name, size in sizes.items():
            check_inside(request, name, size)
        pixels = {name: decoded.pixels for name, decoded in images.items()}
        if isinstance(model, Reducing):
            item = model.prepare(pixels, request, images[MAIN].reduction)
        else:
            item = model.prepare(pixels, request)
        return Prepared(item, model.bucket(item), sizes[MAIN])

    def infos(self) -> list[ModelInfo]:
        return [model.info for model in self._models.values()]

    def wedged(self) -> bool:
        """Whether a forward has been running for longer than any should."""
        limit = time.monotonic() - self._settings.forward_timeout_s
        return any(
            b.busy_since is not None and b.busy_since < limit for b in self.batchers.values()
        )


def _size_of(decoded: Decoded) -> Size:
    """Width and height of the image itself, as displayed."""
    height, width = decoded.pixels.shape[:2]
    return Size(width * decoded.reduction, height * decoded.reduction)


def _check_sizes(images: Mapping[str, bytes], settings: Settings) -> None:
    if len(images) > settings.max_images:
        raise Problem(
            413, "too_many_images", f"At most {settings.max_images} images in one request."
        )
    if max(map(len, images.values())) > settings.max_image_bytes:
        raise Problem(
            413, "too_many_bytes", f"An image is larger than {settings.max_image_bytes} bytes."
        )


def _failed(problem: Problem) -> Failed:
    return Failed(problem.status, problem.code, problem.detail)


def _written(result: Result) -> tuple[Result, bytes]:
    """A result and its JSON. One that its reader could not read, such as a model's that returns
    scores that are no numbers, becomes a failure: the client gets an answer in any case."""
    try:
        text = msgspec.json.encode(result)
        _result.decode(text)
        return result, text
    except Exception:
        log.exception("result cannot be written")
        return _OUR_FAULT, msgspec.json.encode(_OUR_FAULT)


def _finished(images: Mapping[str, bytes], result: Result) -> Finished:
    """What the statistics count of a job."""
    counts = Counts(jobs=1, images=len(images), bytes=_size(images))
    if not isinstance(result, Failed):
        counts = counts._replace(
            annotations=len(result.annotations) if isinstance(result, Annotated) else 0,
            queued_ms=round(result.timing.queued_ms),
            decode_ms=round(result.timing.decode_ms),
            infer_ms=round(result.timing.infer_ms),
        )
    return Finished(_outcome(result), counts)


def _outcome(result: Result) -> str:
    return result.code if isinstance(result, Failed) else str(result.__struct_config__.tag)


def _size(images: Mapping[str, bytes]) -> int:
    return sum(map(len, images.values()))


def _line(
    job: Claimed, model: str | None, images: Mapping[str, bytes], result: Result, stored: bool
) -> dict[str, Any]:
    """A job's log line: ids, sizes, times and outcome; nothing of the image or the prompts."""
    line: dict[str, Any] = {
        "job": job.id,
        "model": model,
        "bytes": _size(images),
        "try": job.tries,
        "outcome": _outcome(result),
        "stored": stored,
    }
    if isinstance(result, Annotated):
        line["annotations"] = len(result.annotations)
    if not isinstance(result, Failed):
        line.update(msgspec.structs.asdict(result.timing))
    return line
