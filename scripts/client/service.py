"""The client: what can be asked of the service, for asyncio."""

import asyncio
import contextlib
import io
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import aiohttp
import msgspec

from jobs.contract import MAIN_IMAGE, Annotated, Embedded, Failed, ModelInfo, Request, Result
from jobs.formats import FORMATS
from jobs.sealing import Capability, Payload, PrivateKey, PublicKey
from scripts.client.calls import FAILURES, Calls, ServiceError, understood
from scripts.client.many import Item, Outcome, Progress, annotate_many

Wish = Mapping[str, Any] | Request  # what to do with an image, as the contract has it

_FORGOTTEN = (404, 410)  # the service restarted, or nobody came to the job in time
_SUBMISSIONS = 3
_WAIT_S = 25


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
        self._calls = Calls(url, api_key, patience_s, ca_file)
        self._boundary = uuid.uuid4().hex  # the same for all forms: both sides parse it once
        self._seal = seal
        self._sealing_key: PublicKey | None = None
        self._default_model = ""

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
        await self._calls.close()

    async def info(self) -> dict[str, Any]:
        """Version, limits and retention of the service. Asks once, to see whether it is there."""
        _, body = await self._calls.once("GET", "/v1/info")
        with understood():
            return msgspec.json.decode(body, type=dict[str, Any])

    async def model(self, name: str | None = None) -> ModelInfo:
        """What a model can do; the service's default one if it is not named.

        Raises:
            ServiceError: 422 ``model_unknown``, no worker serves it.
        """
        _, body = await self._calls.call("GET", "/v1/models")
        with understood():
            listing = msgspec.json.decode(body)
            name = name or listing["default"]
            models = {each["name"]: each for each in listing["models"]}
            if name in models:
                return msgspec.convert(models[name], ModelInfo)
        served = ", ".join(models) or "none at the moment"
        raise ServiceError(422, "model_unknown", f"No worker serves {name}. Served: {served}.")

    async def annotate(
        self, image: bytes, request: Wish, references: Mapping[str, bytes] | None = None
    ) -> Annotated:
        """Annotate one image.

        Args:
            image: JPEG, PNG or WebP.
            request: the contract's request, such as ``{"prompts": [{"type": "box", …}]}``.
            references: further images that prompts name.

        Raises:
            ServiceError: refused, failed, or expired again and again before a worker came to it;
                or the service is none that can be trusted or understood.
            aiohttp.ClientError, TimeoutError: the service could not be reached.
        """
        body = await self._run(image, request, references)
        with understood():
            return msgspec.json.decode(body, type=Annotated)

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
        with understood():
            return msgspec.json.decode(body, type=Embedded).embedding

    def annotate_many(
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
        return annotate_many(self.annotate, items, concurrency, progress)

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
                status, body = await self._calls.call("GET", path, job.token, query=query)
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
        await self._calls.call("DELETE", f"/v1/jobs/{job.id}", job.token)

    async def _submit(
        self, job: Job, image: bytes, request: Wish, references: Mapping[str, bytes] | None
    ) -> None:
        images = {MAIN_IMAGE: image, **(references or {})}
        if not job.key:
            await self._calls.call(
                "POST", "/v1/jobs", job.token, body=_form(self._boundary, request, images)
            )
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
            _, body = await self._calls.call("GET", "/v1/info")
            with understood():
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

        await self._calls.call("POST", "/v1/jobs", job.token, query=query, body=make)

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


def _form(
    boundary: str, request: Wish, images: Mapping[str, bytes]
) -> Callable[[], aiohttp.MultipartWriter]:
    """A submission's body, made anew for each attempt."""
    spec = msgspec.json.encode(request)

    def make() -> aiohttp.MultipartWriter:
        form = aiohttp.MultipartWriter("form-data", boundary)
        parts = [("request", spec, "application/json")]
        parts += [(name, image, "application/octet-stream") for name, image in images.items()]
        for name, content, kind in parts:
            part = form.append(io.BytesIO(content), {"Content-Type": kind})
            part.set_content_disposition("form-data", name=name)
        return form

    return make


def _opened(job: Job, body: bytes, result_format: str) -> bytes:
    """A result that only we can open, as the service would have written it."""
    assert job.key  # noqa: S101 - for the type checker; the caller has looked
    with understood():
        plain = job.key.open_result(job.id, body)
        result = msgspec.json.decode(plain, type=Result)
    if isinstance(result, Failed):
        raise ServiceError(result.status, result.code, result.detail)
    if result_format == "mayfly" or isinstance(result, Embedded):
        return plain
    return FORMATS[result_format].render(result)
