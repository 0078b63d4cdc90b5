"""The only module that knows what lies in Redis: keys, lifetimes, and arq's own keys.

Every key gets its TTL from the step that creates it. Keys of one job:

    image   sealed request and images     image TTL      gone when the result is stored
    job     the model's name              outlives both  tells "gone" from "never was"
    result  sealed result                 result TTL     gone when fetched
    lease   digest of a reader's key      lease          who may read the result again
    uncounted  nothing                    outlives both  its account objected to statistics

of one account:

    account  ids of its jobs, by the      as its last job  what it can see and erase;
             time when they have gone                      the key names a keyed hash

and of one queue, interactive and bulk by themselves:

    turn    which turn was served last    image TTL      where newcomers begin
    lane    an owner's last turn          image TTL      nobody goes twice in a turn
"""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable
from ssl import TLSVersion
from typing import Any, Literal, NamedTuple, cast

import msgspec
from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix
from arq.jobs import serialize_job
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from jobs import lua
from jobs.contract import ModelInfo
from jobs.settings import Settings, SettingsError, is_loopback
from jobs.usage import Batch, Finished, read_rows

PREFIX = "mayfly:"
QUEUE_PREFIX = PREFIX + "queue:"
LIMITS_PREFIX = PREFIX + "limit"  # below it lie the counters of the `limits` library
USAGE_KEY = PREFIX + "usage"  # counts of finished jobs that are not in a database yet
USAGE_BATCH_KEY = USAGE_KEY + ":batch"  # those that are on their way
WORKERS_KEY = PREFIX + "workers"
CHANGED_CHANNEL = PREFIX + "changed"  # ids of jobs that are over, for waiting clients
STARTED_CHANNEL = PREFIX + "started"  # ids of jobs that a worker claimed, for those who follow them
TASK_NAME = "annotate"
_JOB_MARGIN_S = 60
_WORKER_TTL_MS = 3_000
_WITHIN_S = 3.0
_SILENCE_S = 5.0  # of a subscription, until the server is asked whether it is there
_ANSWER_S = 2.0
USAGE_TTL_S = 7 * 86_400

STORE_ERRORS = (RedisError, OSError)  # what every method may raise when Redis does not answer
Submitted = Literal["queued", "exists", "full"]
State = Literal["queued", "running", "done", "gone", "unknown"]


def image_key(job_id: str) -> str:
    return f"{PREFIX}{job_id}:image"


def job_key(job_id: str) -> str:
    return f"{PREFIX}{job_id}:job"


def result_key(job_id: str) -> str:
    return f"{PREFIX}{job_id}:result"


def lease_key(job_id: str) -> str:
    return f"{PREFIX}{job_id}:lease"


def uncounted_key(job_id: str) -> str:
    return f"{PREFIX}{job_id}:uncounted"


def owned_key(subject: str) -> str:
    return f"{PREFIX}account:{subject}"


def crash_key(job_id: str) -> str:
    return f"{PREFIX}{job_id}:crash"


def queue_key(model: str) -> str:
    return QUEUE_PREFIX + model


def turn_key(model: str, bulk: bool) -> str:
    return f"{PREFIX}turn:{_band(bulk)}:{model}"


def lane_key(model: str, bulk: bool, subject: str) -> str:
    return f"{PREFIX}lane:{_band(bulk)}:{model}:{subject}"


def swept_key(model: str) -> str:
    return f"{PREFIX}swept:{model}"


def wake_channel(model: str) -> str:
    return f"{PREFIX}wake:{model}"


class JobState(NamedTuple):
    """What can be told of a job; `ahead` counts jobs before it, `ttl_ms` what is left of it."""

    status: State
    ahead: int
    ttl_ms: int


class Fetched(NamedTuple):
    """`sealed` is there when `status` is done; `ttl_ms` is the lease's or the image's."""

    status: Literal["done", "pending", "leased", "gone", "unknown"]
    ttl_ms: int
    sealed: bytes = b""


class Claimed(NamedTuple):
    """A job that this worker may run. `turn` is its place in the queue, lowest first; `tries`
    counts how often it was claimed and not handed back, this time included."""

    id: str
    turn: float
    tries: int


class WorkerInfo(msgspec.Struct, frozen=True):
    """What a worker says of itself each second."""

    id: str
    key_ids: list[str]  # of the sealing keys that it can open with
    device: str
    models: list[ModelInfo]
    in_flight: int = 0


class Fleet(NamedTuple):
    """Who serves, how many jobs each model's queue holds, how full the memory is."""

    workers: list[WorkerInfo]
    depth: dict[str, int]
    used_bytes: int
    max_bytes: int


_worker = msgspec.msgpack.Decoder(WorkerInfo)
serialize = msgspec.msgpack.encode
deserialize = msgspec.msgpack.decode


def connection_pool(settings: Settings, *, patient: bool = False) -> BlockingConnectionPool:
    """A bounded pool that never waits for ever.

    Args:
        settings: where Redis is.
        patient: keep trying for about 20 s when Redis restarts (workers), instead of failing at
            once and letting the caller answer 503 (front door).
    """
    if not settings.redis_url:
        raise SettingsError(
            "MAYFLY_REDIS_URL is not set. Point it at a Redis or Valkey without persistence, "
            "or run `mayfly serve`, which starts a private one."
        )
    retries = 40 if patient else 1
    try:
        encryption = _encryption(settings.redis_url)
        return BlockingConnectionPool.from_url(
            settings.redis_url,
            max_connections=64,
            timeout=2,
            socket_timeout=2,
            socket_connect_timeout=1,
            health_check_interval=15,
            decode_responses=False,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.02), retries),
            retry_on_error=[RedisConnectionError, RedisTimeoutError, OSError] if patient else [],
            retry_on_timeout=patient,
            **encryption,
        )
    except ValueError:
        raise SettingsError(
            "MAYFLY_REDIS_URL must begin with redis://, rediss:// or unix://."
        ) from None


def _encryption(url: str) -> dict[str, Any]:
    """What the client library must be told so that TLS means TLS.

    Raises:
        SettingsError: what goes to Redis could be read or changed on its way.
        ValueError: it is no URL of Redis.
    """
    options: dict[str, Any] = dict(parse_url(url))
    kind = options.get("connection_class")
    if kind is UnixDomainSocketConnection:
        return {}
    if kind is SSLConnection:
        if options.get("ssl_cert_reqs", "required") != "required" or not options.get(
            "ssl_check_hostname", True
        ):
            raise SettingsError(
                "MAYFLY_REDIS_URL switches the check of the server's certificate off. Leave "
                "ssl_cert_reqs and ssl_check_hostname out; for a certificate of your own "
                "authority add ?ssl_ca_certs=/path/to/ca.pem."
            )
        return {"ssl_check_hostname": True, "ssl_min_version": TLSVersion.TLSv1_2}
    if not is_loopback(options.get("host", "localhost")):
        raise SettingsError(
            "MAYFLY_REDIS_URL speaks to another machine without TLS. Use rediss://, or unix:// or "
            "127.0.0.1 for a server on this one."
        )
    return {}


class Store:
    """Jobs in Redis. Methods raise one of `STORE_ERRORS` when Redis does not answer."""

    def __init__(self, redis: Redis, settings: Settings, within_s: float | None = None) -> None:
        self.redis = redis
        self._settings = settings
        self._within_s = within_s
        self._submit = redis.register_script(lua.SUBMIT)
        self._state = redis.register_script(lua.STATE)
        self._finish = redis.register_script(lua.FINISH)
        self._fetch = redis.register_script(lua.FETCH)
        self._erase = redis.register_script(lua.ERASE)
        self._take_usage = redis.register_script(lua.TAKE_USAGE)
        self._drop_usage = redis.register_script(lua.DROP_USAGE)
        self._claim = redis.register_script(lua.CLAIM)
        self._let_go = redis.register_script(lua.LET_GO)
        self._renew = redis.register_script(lua.RENEW)
        self._count = redis.register_script(lua.COUNT)
        self._heartbeat = redis.register_script(lua.HEARTBEAT)

    @classmethod
    def open(cls, settings: Settings, *, patient: bool = False) -> "Store":
        """Without I/O. A patient store (workers) waits for Redis to come back; another (the front
        door) gives up after 3 s, whatever the client library still wants to try."""
        redis = Redis(connection_pool=connection_pool(settings, patient=patient))
        return cls(redis, settings, None if patient else _WITHIN_S)

    async def close(self) -> None:
        await self.redis.aclose()
        await self.redis.connection_pool.disconnect()

    # the front door's side

    async def submit(
        self,
        job_id: str,
        sealed: bytes,
        model: str,
        *,
        bulk: bool,
        subject: str,
        counted: bool = True,
        has_account: bool = False,
    ) -> Submitted:
        """Admit and enqueue in one step. The job's id decides: a second one changes nothing.

        Args:
            job_id: 32 hex digits.
            sealed: payload, sealed to the workers.
            model: whose queue it goes to.
            bulk: after all interactive jobs.
            subject: whose it is, as a keyed hash; owners take turns.
            counted: false keeps it out of the statistics.
            has_account: whether `jobs_of` its subject shall name it.
        """
        image_ttl = self._settings.image_ttl_s * 1000
        job_ttl = image_ttl + (self._settings.result_ttl_s + _JOB_MARGIN_S) * 1000
        task = serialize_job(
            TASK_NAME, (), {}, None, time.time_ns() // 1_000_000, serializer=serialize
        )
        try:
            status = await self._run(
                self._submit,
                [
                    image_key(job_id),
                    job_key(job_id),
                    queue_key(model),
                    job_key_prefix + job_id,
                    turn_key(model, bulk),
                    lane_key(model, bulk, subject),
                    swept_key(model),
                    uncounted_key(job_id),
                    owned_key(subject),
                ],
                [
                    job_id,
                    sealed,
                    image_ttl,
                    job_ttl,
                    model,
                    task,
                    lua.BULK if bulk else 0,
                    self._settings.max_queue_jobs,
                    self._settings.max_queue_bytes,
                    wake_channel(model),
                    image_key("%s"),
                    int(counted),
                    int(has_account),
                ],
            )
        except OutOfMemoryError:
            return "full"
        return status.decode()  # type: ignore[no-any-return]

    async def jobs_of(self, subject: str) -> list[str]:
        """Ids of an account's jobs that may be live, the oldest first."""
        async with asyncio.timeout(self._within_s):
            ids = await self.redis.zrange(owned_key(subject), 0, -1)
        return [job_id.decode() for job_id in ids]

    async def state(self, job_id: str) -> JobState:
        status, ahead, ttl_ms = await self._run(
            self._state,
            [
                image_key(job_id),
                job_key(job_id),
                result_key(job_id),
                in_progress_key_prefix + job_id,
            ],
            [job_id, QUEUE_PREFIX],
        )
        return JobState(status.decode(), ahead, ttl_ms)

    async def fetch(self, job_id: str, reader: str = "") -> Fetched:
        """Take the result: for good, or leased to `reader` until it is acknowledged."""
        status, *rest = await self._run(
            self._fetch,
            [image_key(job_id), job_key(job_id), result_key(job_id), lease_key(job_id)],
            [
                _digest(reader) if reader else "",
                self._settings.lease_s * 1000,
                self._settings.lease_grace_s * 1000,
            ],
        )
        return Fetched(status.decode(), *rest)

    async def erase(self, job_id: str, reader: str = "") -> Literal["erased", "nothing", "fenced"]:
        """Acknowledge (as `reader`), cancel or erase: afterwards nothing of the job is left."""
        status = await self._run(
            self._erase,
            [
                image_key(job_id),
                job_key(job_id),
                result_key(job_id),
                lease_key(job_id),
                job_key_prefix + job_id,
                retry_key_prefix + job_id,
            ],
            [job_id, _digest(reader) if reader else "", QUEUE_PREFIX, CHANGED_CHANNEL],
        )
        return status.decode()  # type: ignore[no-any-return]

    async def fleet(self) -> Fleet:
        """Workers that were heard of within 3 s, the depth of their queues, memory in use."""
        async with asyncio.timeout(self._within_s):
            return await self._fleet()

    async def _fleet(self) -> Fleet:
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hgetall(WORKERS_KEY)
            pipe.info("memory")
            (seconds, micros), entries, memory = await pipe.execute()
        since = seconds * 1000 + micros // 1000 - _WORKER_TTL_MS
        workers = [_worker.decode(e[13:]) for e in entries.values() if int(e[:13]) > since]
        stale = [name for name, e in entries.items() if int(e[:13]) <= since]
        if stale:
            await self._forget(stale)
        names = sorted({model.name for worker in workers for model in worker.models})
        async with self.redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.zcard(queue_key(name))
            depths = await pipe.execute()
        max_bytes = self._settings.max_queue_bytes
        if memory["maxmemory"]:  # the same rule as in the script that admits
            max_bytes = min(max_bytes, int(memory["maxmemory"] * 0.7))
        depth = dict(zip(names, depths, strict=True))
        return Fleet(workers, depth, int(memory["used_memory"]), max_bytes)

    async def take_usage(self) -> Batch | None:
        """What was counted and is in no database yet: the batch on its way, or a new one."""
        keys = [USAGE_KEY, USAGE_BATCH_KEY]
        reply = await self._run(self._take_usage, keys, [os.urandom(8).hex(), USAGE_TTL_S * 1000])
        fields = dict(zip(reply[::2], reply[1::2], strict=True))
        return Batch(fields.pop(b"id").decode(), read_rows(fields)) if fields else None

    async def drop_usage(self, batch: Batch) -> None:
        """It has arrived."""
        await self._run(self._drop_usage, [USAGE_BATCH_KEY], [batch.id])

    async def changes(self) -> PubSub:
        """A subscription to the ids of jobs that are over."""
        pubsub = self.redis.pubsub()
        await pubsub.subscribe(CHANGED_CHANNEL)
        return pubsub

    # the worker's side

    async def take(self, job_id: str) -> bytes | None:
        """The sealed payload of a claimed job; None when it was erased or has expired."""
        async with asyncio.timeout(self._within_s):
            sealed: bytes | None = await self.redis.get(image_key(job_id))
        if sealed is None:
            await self._run(
                self._let_go,
                [image_key(job_id), in_progress_key_prefix + job_id, retry_key_prefix + job_id],
                [],
            )
        return sealed

    async def finish(self, job_id: str, sealed: bytes, finished: Finished | None = None) -> bool:
        """Store the result, delete the image, leave the queue, be counted; False if it is gone."""
        return bool(
            await self._run(
                self._finish,
                [
                    image_key(job_id),
                    job_key(job_id),
                    result_key(job_id),
                    in_progress_key_prefix + job_id,
                    job_key_prefix + job_id,
                    retry_key_prefix + job_id,
                    uncounted_key(job_id),
                    USAGE_KEY,
                ],
                [
                    job_id,
                    sealed,
                    self._settings.result_ttl_s * 1000,
                    QUEUE_PREFIX,
                    CHANGED_CHANNEL,
                    lua.BULK,
                    turn_key("", False),
                    turn_key("", True),
                    USAGE_TTL_S * 1000,
                    *(finished.fields() if finished else ()),
                ],
            )
        )

    async def count_crash(self, job_id: str) -> int:
        """How often a worker has begun this job alone, this time included."""
        ttl_ms = self._settings.image_ttl_s * 1000
        return int(await self._run(self._count, [crash_key(job_id)], [ttl_ms]))

    async def forget_crash(self, job_id: str) -> None:
        """The run that was counted last did not end its worker."""
        await self.redis.delete(crash_key(job_id))

    async def drop(self, job_id: str) -> None:
        """Give up a job that nobody can be told about, because its payload does not open."""
        await self.erase(job_id)

    async def heartbeat(self, worker: WorkerInfo) -> None:
        await self._run(
            self._heartbeat, [WORKERS_KEY], [worker.id, serialize(worker), _WORKER_TTL_MS]
        )

    async def farewell(self, worker_id: str) -> None:
        await self._forget([worker_id])

    async def _run(self, script: AsyncScript, keys: list[str], args: list[Any]) -> Any:
        async with asyncio.timeout(self._within_s):
            return await script(keys=list(keys), args=args)

    async def _forget(self, worker_ids: list[Any]) -> None:
        await cast(Awaitable[int], self.redis.hdel(WORKERS_KEY, *worker_ids))

    async def claim(self, model: str, room: int, lease_s: float) -> list[Claimed]:
        """Lease up to `room` of the queue's first jobs that nobody holds."""
        claimed = await self._run(
            self._claim,
            [queue_key(model)],
            [
                room,
                int(lease_s * 1000),
                in_progress_key_prefix,
                retry_key_prefix,
                self._settings.image_ttl_s * 1000,
                image_key("%s"),
                STARTED_CHANNEL,
            ],
        )
        return [Claimed(job_id.decode(), float(turn), tries) for job_id, turn, tries in claimed]

    async def hand_back(self, job: Claimed) -> None:
        """Let others run it at once, as if it had not been claimed. A suspect stays one."""
        counted = [retry_key_prefix + job.id] if job.tries == 1 else []
        await self.redis.delete(in_progress_key_prefix + job.id, *counted)

    async def renew(self, job_ids: list[str], lease_s: float) -> None:
        """Keep the leases of running jobs, so that a dead worker's jobs are soon free again."""
        if not job_ids:
            return
        lease_ms = int(lease_s * 1000)
        await self._run(self._renew, [], [lease_ms, in_progress_key_prefix, " ".join(job_ids)])

    async def wake_ups(self, model: str) -> PubSub:
        """A subscription that fires when a job for `model` is queued."""
        pubsub = self.redis.pubsub()
        await pubsub.subscribe(wake_channel(model))
        return pubsub


async def messages(subscription: PubSub) -> AsyncIterator[dict[str, Any]]:
    """What a subscription brings, its own beginning included, until the connection is lost.

    The client library takes silence for a loss after its timeout, and then signals are missed until
    it is back; here the server is asked first.

    Raises:
        RedisError: the server is gone, or does not answer.
    """
    while True:
        message = await subscription.get_message(timeout=_SILENCE_S)
        if message is None:
            await subscription.ping()
            message = await subscription.get_message(timeout=_ANSWER_S)
        if message is None:
            raise RedisTimeoutError("the server of a subscription does not answer")
        yield message


def _band(bulk: bool) -> str:
    return "bulk" if bulk else "interactive"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]
