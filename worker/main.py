"""The worker process: loads the models, says what it serves, works until it is told to stop."""

import asyncio
import contextlib
import logging
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jobs.gate import Gate
from jobs.memory import Memory
from jobs.process import background, harden, stop_signal, until_stopped
from jobs.sealing import PrivateKey
from jobs.settings import Settings, SettingsError
from jobs.store import STORE_ERRORS, Store, WorkerInfo
from worker import models
from worker.models.base import Model
from worker.pipeline import Pipeline
from worker.queue import QueueWorker

log = logging.getLogger(__name__)
EX_WEDGED = 70  # sysexits.h: internal software error; the supervisor starts another


async def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    if settings.worker_key_file is None:
        raise SettingsError(
            "MAYFLY_WORKER_KEY_FILE is not set. Make a key pair with `mayfly keys worker`."
        )
    keys = PrivateKey.load(settings.worker_key_file)
    harden()
    store = Store.open(settings, patient=True)
    gate = Gate(store.redis, settings)
    gate.memory = Memory(settings)
    await gate.look()
    gate.refuse_start()
    served, device_name = load_models(settings)
    with ThreadPoolExecutor(1, "device") as device:
        pipeline = Pipeline(store, keys, served, device, settings)
        queues = [QueueWorker(name, store, pipeline, settings, gate) for name in served]
        worker_id, key_ids = secrets.token_hex(8), [key.public.id for key in keys]

        async def heartbeat() -> None:
            while True:
                in_flight = sum(len(queue.tasks) for queue in queues)
                info = WorkerInfo(worker_id, key_ids, device_name, pipeline.infos(), in_flight)
                if gate.open:  # a worker that takes no jobs is not there
                    with contextlib.suppress(*STORE_ERRORS):
                        await store.heartbeat(info)
                if pipeline.wedged():
                    log.critical("device thread is wedged, giving up")
                    os._exit(EX_WEDGED)  # a stuck thread cannot be stopped; its jobs run elsewhere
                await asyncio.sleep(1)

        stopping = stop_signal()
        loops = [loop for queue in queues for loop in (queue.main(), queue.listen(), queue.renew())]
        async with background(heartbeat(), gate.serve(), *loops) as tasks:
            log.info("worker ready", extra={"fields": {"models": sorted(served)}})
            await until_stopped(stopping, tasks)
            with contextlib.suppress(*STORE_ERRORS):
                await store.farewell(worker_id)
            await asyncio.gather(*(queue.drain(settings.drain_s) for queue in queues))
    for queue in queues:
        await queue.pool.aclose(close_connection_pool=True)
    await store.close()
    log.info("worker stopped")
    return 0


def load_models(settings: Settings) -> tuple[dict[str, Model[Any, Any]], str]:
    """The models that the settings name, on the device that they name.

    Raises:
        SettingsError: a model is unknown or its weights are missing; the text says what to do.
    """
    try:
        models.check_known(*settings.models)  # before torch, which takes seconds to import
        device = models.pick_device(settings.device)
        served = {
            name: models.load(
                name,
                device,
                settings.weights_dir,
                settings.checkpoint_paths(),
                exact=settings.resize == "exact",
                engine=settings.engine,
                cache=settings.cache_folder(),
            )
            for name in settings.models
        }
    except models.ModelUnavailable as error:
        raise SettingsError(str(error)) from None
    return served, str(device)
