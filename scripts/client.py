"""A client for the HTTP contract, to import: `Client` for asyncio, `SyncClient` for everybody else.

    from scripts.client import SyncClient, box

    with SyncClient("http://127.0.0.1:8080") as client:
        image = Path("picture.png").read_bytes()
        result = client.annotate(image, {"prompts": [box(184, 103, 228, 146, label="coin")]})
        for find in result.annotations:
            print(find.label, find.score, find.box)

It needs aiohttp and msgspec, holds nothing but the open jobs, and tells nobody anything but the
service. A job is never submitted twice, because its capability is made here and goes with each
repetition; a result is never lost, because it is read under a lease and acknowledged when it is
here.
"""

import asyncio
import contextlib
import io
import random
import ssl
import threading
import time
import uuid
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import aiohttp
import msgspec

from jobs.contract import MAIN_IMAGE, Annotated, Embedded, Failed, ModelInfo, Request, Result
from jobs.formats import FORMATS
from jobs.sealing import Capability, Payload, PrivateKey, PublicKey

T = TypeVar("T")
Wish = Mapping[str, Any] | Request  # what to do with an image, as the contract has it
Picture = bytes | Path | Callable[[], bytes]  # JPEG, PNG or WebP, or where it comes from

_RETRIED = (408, 409, 429, 502, 503, 504)  # slow, leased, too many, and what proxies say
_FORGOTTEN = (404, 410)  # the service restarted, or nobody came to the job in time
_SUBMISSIONS = 3
_WAIT_S = 25
_jitter = random.SystemRandom().uniform


class ServiceError(Exception):
    """The service refused or failed a job.

    Attributes:
        status: HTTP status.
        code: the problem's stable code.
        detail: the problem's sentence.
    """

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"{detail} ({status} {code})")
        self.status = status
        self.code = code
        self.detail = detail


BROKEN = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError)
FAILURES = (ServiceError, aiohttp.ClientError, TimeoutError)  # all that a call may end with


class Job(NamedTuple):
    """A submitted job: its id, the token that owns it, and the key that its result is sealed to."""

    id: str
    token: str
    key: PrivateKey | None = None

    @classmethod
    def new(cls, *, sealed: bool = False) -> Self:
        """A job yet to be submitted; the service derives the id from the token as we do."""
        capability = Capability.new()
        return cls(capability.id, capability.token, PrivateKey.new() if sealed else None)

    def __repr__(self) -> str:
        return f"Job({self.id})"


class Item(NamedTuple):
    """One image for `annotate_many`, under a key of the caller's."""

    key: Any
    image: Picture
    request: Wish
    references: Mapping[str, bytes] | None = None


class Outcome(NamedTuple):
    """What became of an item: a result, or the error that it ended with."""

    key: Any
    result: Annotated | None
    error: Exception | None


class Progress(NamedTuple):
    """How far `annotate_many` has come: images done, of these failed, and annotations found."""

    done: int
    failed: int
    found: int


def box(
    x0: float, y0: float, x1: float, y1: float, label: str = "object", **more: Any
) -> dict[str, Any]:
    """A prompt: a box round one example, in pixels; `more` may hold ``negative`` and ``image``."""
    return {"type": "box", "box": [x0, y0, x1, y1], "label": label, **more}


class Client:
    """Submits images and fetches results, without submitting twice and without losing a result.

    Full queues, quotas, proxies that answer for a service that restarts, and broken connections
    are waited for, with growing pauses or as long as the service says.

    Args:
        url: where the front door listens, such as ``http://127.0.0.1:8080``.
        api_key: the account's key, if the service wants one.
        patience_s: how long one call goes on trying before it raises.
        ca_file: certificates to trust besides the machine's, such as a self-signed one.
        seal: seal images and requests to the workers here, and have results sealed to us, so that
            nothing on the way sees either. True takes the workers' key as the service shows it;
            the text of ``worker.pub``, got from its operator, trusts nobody else.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        patience_s: float = 120,
        ca_file: Path | None = None,
        seal: bool | str = False,
    ) -> None:
        headers = {"X-API-Key": api_key} if api_key else {}
        timeout = aiohttp.ClientTimeout(total=60, sock_connect=5)
        trust: ssl.SSLContext | bool = True
        if ca_file:
            trust = ssl.create_default_context()
            trust.load_verify_locations(ca_file)
        # no limit of its own: whoever calls decides how many at a time
        connector = aiohttp.TCPConnector(limit=0, ssl=trust)
        self._session = aiohttp.ClientSession(
            url, headers=headers, timeout=timeout, connector=connector
        )
        self._patience_s = patience_s
        self._seal = seal
        self._sealing_key: PublicKey | None = None
        self._default_model = ""
        self._reader = uuid.uuid4().hex  # one for all leases, so that a fetch may be repeated

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def info(self) -> dict[str, Any]:
        """Version, limits and retention of the service. Asks once, to see whether it is there."""
        async with self._session.get("/v1/info") as response:
            info: dict[str, Any] = await response.json()
            return info

    async def model(self, name: str | None = None) -> ModelInfo:
        """What a model can do; the service's default one if it is not named.

        Raises:
            ServiceError: 422 ``model_unknown``, no worker serves it.
        """
        _, body = await self._call("GET", "/v1/models")
        listing = msgspec.json.decode(body)
        name = name or listing["default"]
        models = {each["name"]: each for each in listing["models"]}
        if name not in models:
            served = ", ".join(models) or "none at the moment"
            raise ServiceError(422, "model_unknown", f"No worker serves {name}. Served: {served}.")
        return msgspec.convert(models[name], ModelInfo)

    async def annotate(
        self, image: bytes, request: Wish, references: Mapping[str, bytes] | None = None
    ) -> Annotated:
        """Annotate one image.

        Args:
            image: JPEG, PNG or WebP.
            request: the contract's request, such as ``{"prompts": [{"type": "box", …}]}``.
            references: further images that prompts name.

        Raises:
            ServiceError: refused, failed, or expired again and again before a worker came to it.
            aiohttp.ClientError, TimeoutError: the service could not be reached.
        """
        return msgspec.json.decode(await self._run(image, request, references), type=Annotated)

    async def embed(
        self,
        image: bytes,
        prompts: Sequence[Mapping[str, Any]],
        model: str | None = None,
        references: Mapping[str, bytes] | None = None,
    ) -> str:
        """Turn prompts for one label into an embedding, which replaces them on any further image.

        It goes into a prompt ``{"type": "embedding", "data": …, "label": …}``; examples of what is
        not meant get an embedding of their own, and are sent with ``"negative": True``.

        Args:
            prompts: positive ones, of one label, on `image` or on the references that they name.

        Returns:
            base64 text, good for this model in this version.
        """
        wish = {"task": "embed", "prompts": list(prompts)} | ({"model": model} if model else {})
        body = await self._run(image, wish, references)
        return msgspec.json.decode(body, type=Embedded).embedding

    async def annotate_many(
        self,
        items: Iterable[Item] | AsyncIterable[Item],
        concurrency: int = 8,
        progress: Callable[[Progress], None] | None = None,
    ) -> AsyncGenerator[Outcome, None]:
        """Annotate any number of images in flat memory; outcomes come as they are ready.

        Items are taken, and their images read, one after another in their order, the next one
        while others are on their way. Closing the generator erases the jobs that are still open.

        Args:
            concurrency: most images on their way, outcomes that nobody took included. One more is
                held in memory.
            progress: called before each outcome is handed out.
        """
        places = asyncio.Semaphore(concurrency)
        outcomes: asyncio.Queue[Outcome | None] = asyncio.Queue()

        async def run(item: Item, image: bytes) -> None:
            try:
                result = await self.annotate(image, item.request, item.references)
                outcomes.put_nowait(Outcome(item.key, result, None))
            except FAILURES as error:
                outcomes.put_nowait(Outcome(item.key, None, error))

        async def feed() -> Exception | None:
            async with asyncio.TaskGroup() as running:  # its end waits for those in hand
                try:
                    async for item in _each(items):
                        try:
                            image = await _read(item.image)  # while others are on their way
                        except OSError as error:
                            await places.acquire()
                            outcomes.put_nowait(Outcome(item.key, None, error))
                            continue
                        await places.acquire()
                        running.create_task(run(item, image))
                        del image
                except Exception as error:  # of the caller's items: told after what came before
                    return error
            return None

        feeder = asyncio.create_task(feed())
        feeder.add_done_callback(lambda _: outcomes.put_nowait(None))
        done = failed = found = 0
        try:
            while (outcome := await outcomes.get()) is not None:
                done += 1
                failed += outcome.error is not None
                found += len(outcome.result.annotations) if outcome.result else 0
                if progress:
                    progress(Progress(done, failed, found))
                yield outcome
                places.release()
            if broken := await feeder:
                raise broken
        finally:
            feeder.cancel()
            await asyncio.wait([feeder])

    async def submit(
        self, image: bytes, request: Wish, references: Mapping[str, bytes] | None = None
    ) -> Job:
        """Submit one image, once: the job's token is made here and goes with each attempt."""
        job = Job.new(sealed=bool(self._seal))
        await self._submit(job, image, request, references)
        return job

    async def fetch(self, job: Job, result_format: str = "mayfly") -> bytes:
        """Wait for the result, read it under a lease, acknowledge it.

        Args:
            result_format: one of the service's formats, see ``info()["formats"]``.

        Raises:
            ServiceError: the job failed, or 404 or 410: there is nothing to fetch (any more).
        """
        path, query = f"/v1/jobs/{job.id}/result", {"wait": str(_WAIT_S), "format": result_format}
        try:
            while True:
                begin = time.monotonic()
                status, body = await self._call("GET", path, job.token, query=query)
                if status == 200:
                    break
                if time.monotonic() - begin < 1:
                    await asyncio.sleep(1)  # it would not let us wait there
        except ServiceError as error:
            if error.status not in _FORGOTTEN:
                await self._acknowledge(job)
            raise
        await self._acknowledge(job)
        return _opened(job, body, result_format) if job.key else body

    async def erase(self, job: Job) -> None:
        """Cancel a job and delete all that the service holds of it. May be repeated."""
        await self._call("DELETE", f"/v1/jobs/{job.id}", job.token)

    async def _submit(
        self, job: Job, image: bytes, request: Wish, references: Mapping[str, bytes] | None
    ) -> None:
        images = {MAIN_IMAGE: image, **(references or {})}
        if not job.key:
            await self._call("POST", "/v1/jobs", job.token, body=_form(request, images))
            return
        try:
            await self._submit_sealed(job, job.key.public, request, images)
        except ServiceError as error:
            if error.code != "sealing_key_unknown" or isinstance(self._seal, str):
                raise
            self._sealing_key = None  # the workers have a new one
            await self._submit_sealed(job, job.key.public, request, images)

    async def _submit_sealed(
        self, job: Job, reply_to: PublicKey, wish: Wish, images: dict[str, bytes]
    ) -> None:
        """See docs/sealed.md for the form."""
        if self._sealing_key is None:
            _, body = await self._call("GET", "/v1/info")
            shown = msgspec.json.decode(body)["sealing_key"]["x25519"]
            text = self._seal if isinstance(self._seal, str) else shown
            self._sealing_key = PublicKey.from_text(text)
            self._default_model = (await self.model()).name
        spec = dict(msgspec.to_builtins(wish))
        spec["model"] = spec.get("model") or self._default_model
        text, now = msgspec.json.encode(spec), time.time_ns() // 1_000_000
        payload = Payload(reply_to.raw, text, images, now, by_client=True)
        sealed = self._sealing_key.seal(job.id, payload)
        query = {
            "model": spec["model"],
            "priority": spec.get("priority", "interactive"),
            "key": self._sealing_key.id,
        }

        def make() -> aiohttp.BytesIOPayload:
            return aiohttp.BytesIOPayload(
                io.BytesIO(sealed), content_type="application/vnd.mayfly.sealed"
            )

        await self._call("POST", "/v1/jobs", job.token, query=query, body=make)

    async def _acknowledge(self, job: Job) -> None:
        """The result is here whatever happens now; unacknowledged it goes by itself, in seconds."""
        with contextlib.suppress(*FAILURES):
            await self.erase(job)

    async def _run(
        self, image: bytes, request: Wish, references: Mapping[str, bytes] | None
    ) -> bytes:
        """Submit and fetch; once more if the service has forgotten the job without an answer."""
        for submissions_left in reversed(range(_SUBMISSIONS)):
            job = Job.new(sealed=bool(self._seal))
            try:
                await self._submit(job, image, request, references)
                return await self.fetch(job)
            except ServiceError as error:
                if error.status not in _FORGOTTEN or not submissions_left:
                    raise
            except asyncio.CancelledError:
                with contextlib.suppress(*FAILURES):
                    async with asyncio.timeout(2):
                        await self.erase(job)
                raise
        raise AssertionError("unreachable")

    async def _call(
        self,
        method: str,
        path: str,
        token: str | None = None,
        *,
        query: Mapping[str, str] | None = None,
        body: Callable[[], aiohttp.FormData | aiohttp.BytesIOPayload] | None = None,
    ) -> tuple[int, bytes]:
        """One call, repeated until it is answered for good or patience ends. All are idempotent."""
        owner = {"Authorization": f"Bearer {token}", "Idempotency-Key": self._reader}
        deadline = time.monotonic() + self._patience_s
        pause = 0.2
        while True:
            wait = pause
            try:
                async with self._session.request(
                    method,
                    path,
                    headers=owner if token else None,
                    params=query,
                    data=body() if body else None,
                ) as response:
                    answer = await response.read()
                    if response.status < 400:
                        return response.status, answer
                    failure: Exception = _problem(response.status, answer)
                    if response.status not in _RETRIED:
                        raise failure
                    wait = max(wait, _seconds(response.headers.get("Retry-After")))
            except BROKEN as error:
                failure = error
            if time.monotonic() + wait > deadline:
                raise failure
            await asyncio.sleep(wait + _jitter(0, pause / 2))
            pause = min(pause * 2, 5)


class SyncClient:
    """`Client` for code without an event loop; its methods are documented there.

    Requests run on a thread of its own, so it works inside a notebook too, and may be shared
    between threads.
    """

    def __init__(self, url: str, api_key: str | None = None, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="mayfly-client", daemon=True
        )
        self._thread.start()

        async def connect() -> Client:
            return Client(url, api_key, **options)

        self._client = self._wait(connect())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections and end the thread."""
        self._wait(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def info(self) -> dict[str, Any]:
        return self._wait(self._client.info())

    def model(self, name: str | None = None) -> ModelInfo:
        return self._wait(self._client.model(name))

    def annotate(
        self, image: bytes, request: Wish, references: Mapping[str, bytes] | None = None
    ) -> Annotated:
        return self._wait(self._client.annotate(image, request, references))

    def embed(
        self,
        image: bytes,
        prompts: Sequence[Mapping[str, Any]],
        model: str | None = None,
        references: Mapping[str, bytes] | None = None,
    ) -> str:
        return self._wait(self._client.embed(image, prompts, model, references))

    def annotate_many(
        self,
        items: Iterable[Item],
        concurrency: int = 8,
        progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[Outcome]:
        outcomes = self._client.annotate_many(items, concurrency, progress)

        async def following() -> Outcome | None:
            return await anext(outcomes, None)

        try:
            while (outcome := self._wait(following())) is not None:
                yield outcome
        finally:
            self._wait(outcomes.aclose())

    def submit(
        self, image: bytes, request: Wish, references: Mapping[str, bytes] | None = None
    ) -> Job:
        return self._wait(self._client.submit(image, request, references))

    def fetch(self, job: Job, result_format: str = "mayfly") -> bytes:
        return self._wait(self._client.fetch(job, result_format))

    def erase(self, job: Job) -> None:
        self._wait(self._client.erase(job))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C while waiting must not leave the call running
            future.cancel()
            raise


def _form(request: Wish, images: Mapping[str, bytes]) -> Callable[[], aiohttp.FormData]:
    """A submission's body, made anew for each attempt."""
    spec = msgspec.json.encode(request).decode()

    def make() -> aiohttp.FormData:
        data = aiohttp.FormData(default_to_multipart=True)
        data.add_field("request", spec, content_type="application/json")
        for name, content in images.items():
            data.add_field(name, io.BytesIO(content), content_type="application/octet-stream")
        return data

    return make


def _opened(job: Job, body: bytes, result_format: str) -> bytes:
    """A result that only we can open, as the service would have written it."""
    assert job.key  # noqa: S101 - for the type checker; the caller has looked
    plain = job.key.open_result(job.id, body)
    result = msgspec.json.decode(plain, type=Result)
    if isinstance(result, Failed):
        raise ServiceError(result.status, result.code, result.detail)
    if result_format == "mayfly" or isinstance(result, Embedded):
        return plain
    return FORMATS[result_format].render(result)


async def _each(items: Iterable[T] | AsyncIterable[T]) -> AsyncGenerator[T, None]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


async def _read(image: Picture) -> bytes:
    if isinstance(image, bytes):
        return image
    return await asyncio.to_thread(image.read_bytes if isinstance(image, Path) else image)


def _seconds(retry_after: str | None) -> float:
    """What ``Retry-After`` asks for; 0 where it is a date, which no part of Mayfly sends."""
    return float(retry_after) if retry_after and retry_after.isdecimal() else 0.0


def _problem(status: int, body: bytes) -> ServiceError:
    try:
        document = msgspec.json.decode(body)
        return ServiceError(status, document["code"], document["detail"])
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        return ServiceError(status, "unknown", "The answer is not one of this service's.")
