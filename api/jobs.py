"""The handlers of a job's life: submit, look, fetch, follow, erase."""

import asyncio
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
from aiohttp import web

from api.announce import tell_once
from api.asked import (
    brought_capability,
    owned_capability,
    preferred_wait,
    reader,
    refuse_partial,
    sealed_wish,
    wait_seconds,
    wanted_format,
)
from api.callers import submitter
from api.convert import write
from api.images import check_image
from api.keys import CHANGES, GATE, JOB, METRICS, PULSE, SETTINGS, STORE
from api.limits import LIMITS
from api.upload import SEALED_TYPE, read_json, read_upload
from api.watch import FALLBACK_S, wait
from jobs import formats
from jobs.contract import (
    Embedded,
    Failed,
    Request,
    Result,
    Size,
    check_inside,
    check_model,
    check_parts,
    parse_request,
)
from jobs.problems import Problem, gone, job_not_found, store_unavailable, unprocessable
from jobs.sealing import Capability, Payload, SealError, for_client, open_result
from jobs.store import Fetched, JobState

_result = msgspec.json.Decoder(Result)


async def submit(request: web.Request) -> web.StreamResponse:
    """Take an image and a request; answer with the job, or with its result if asked to wait."""
    store = request.app[STORE]
    asking = submitter(request)
    capability = brought_capability(request) or Capability.new()
    request[JOB] = capability.id
    wait_s = preferred_wait(request)
    result_format = wanted_format(request)
    _refuse_when_unsafe(request)
    _refuse_when_full(request)
    await request.app[LIMITS].submission(request, asking)
    await tell_once(request, asking)
    if request.content_type == SEALED_TYPE:
        sealed = await _sealed_by_client(request)
    else:
        sealed = await _seal(request, capability)
    account = asking.key.account if asking.key else None
    with request.app[CHANGES].watching(capability.id) as changed:
        outcome = await store.submit(
            capability.id,
            sealed.payload,
            sealed.model,
            bulk=sealed.bulk,
            subject=asking.subject,
            counted=not (account and account.no_statistics),
            has_account=account is not None,
        )
        if outcome == "full":
            raise _queue_full()
        if outcome == "queued":
            request.app[METRICS].submitted_bytes.inc(sealed.image_bytes)
        del sealed  # nothing of the image is held while the client waits
        if wait_s:
            is_new = outcome == "queued"
            fetched = await _fetched(request, capability.id, changed, wait_s, is_new=is_new)
            if fetched.status not in ("pending", "unknown"):
                return await _deliver(capability, fetched, result_format)
    state = await store.state(capability.id)
    if state.status in ("gone", "unknown"):
        raise gone()
    return _json(
        {
            "id": capability.id,
            "token": capability.token,
            **_state(state),
            "links": _links(capability.id),
        },
        status=202,
        headers={"Location": f"/v1/jobs/{capability.id}"},
    )


class _Sealed(NamedTuple):
    payload: bytes
    model: str
    bulk: bool
    image_bytes: int


async def _seal(request: web.Request, capability: Capability) -> _Sealed:
    """Read what was sent in the open, check it, seal it to the workers."""
    settings = request.app[SETTINGS]
    upload = await read_upload(request, settings)
    spec = parse_request(upload.request)
    spec = msgspec.structs.replace(spec, model=spec.model or settings.default_model)
    _check_fit(request, spec, upload.images)
    payload = Payload(
        capability.result_key,
        msgspec.json.encode(spec),
        upload.images,
        time.time_ns() // 1_000_000,
    )
    return _Sealed(
        request.app[PULSE].sealing_key().seal(capability.id, payload),
        str(spec.model),
        spec.priority == "bulk",
        sum(map(len, upload.images.values())),
    )


async def _sealed_by_client(request: web.Request) -> _Sealed:
    """What a client sealed to the workers itself. Only they can look into it, and check it all."""
    wish = sealed_wish(request)
    known = request.app[PULSE].models()
    if wish.model not in known and wish.model != request.app[SETTINGS].default_model:
        raise _model_unknown(known)
    if wish.key_id not in {key.id for key in request.app[PULSE].accepted_keys()}:
        raise unprocessable(
            "sealing_key_unknown",
            "The payload is sealed to a key that the workers do not have (any more). Seal it to "
            "the key that /v1/info shows.",
        )
    settings = request.app[SETTINGS]
    payload = await read_json(request, settings, settings.max_body_bytes)
    return _Sealed(payload, wish.model, wish.bulk, len(payload))


async def show(request: web.Request) -> web.StreamResponse:
    """A job's state, at once or when it settles."""
    capability = owned_capability(request)
    state = await request.app[CHANGES].settled(capability.id, wait_seconds(request))
    _raise_if_gone(state)
    return _json({"id": capability.id, **_state(state), "links": _links(capability.id)})


async def fetch(request: web.Request) -> web.StreamResponse:
    """Hand out the result, once."""
    capability = owned_capability(request)
    refuse_partial(request)
    result_format = wanted_format(request)
    with request.app[CHANGES].watching(capability.id) as changed:
        fetched = await _fetched(request, capability.id, changed, wait_seconds(request))
    return await _deliver(capability, fetched, result_format)


async def follow(request: web.Request) -> web.StreamResponse:
    """Server-sent events: one `status` event at each change, until the job is over."""
    capability = owned_capability(request)
    changes, store = request.app[CHANGES], request.app[STORE]
    async with changes.following(capability.id) as changed:
        state = await store.state(capability.id)
        _raise_if_gone(state)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        told: dict[str, Any] = {}
        while not changes.closing:
            changed.clear()
            now = {"id": capability.id, "status": state.status, "position": state.ahead}
            if now != told:
                told = now
                await response.write(b"event: status\ndata: " + msgspec.json.encode(told) + b"\n\n")
            else:
                await response.write(b": still here\n\n")
            if state.status not in ("queued", "running"):
                break
            await wait(changed, 2.0)
            state = await store.state(capability.id)
    return response


async def erase(request: web.Request) -> web.StreamResponse:
    """Acknowledge a leased result, cancel or erase a job. Doing it again changes nothing."""
    capability = owned_capability(request)
    outcome = await request.app[STORE].erase(capability.id, reader(request))
    if outcome == "fenced":
        raise _leased(1000)
    return web.Response(status=204)


async def _fetched(
    request: web.Request,
    job_id: str,
    changed: asyncio.Event,
    seconds: float,
    *,
    is_new: bool = False,
) -> Fetched:
    """The result once it is there, or what there is after `seconds`.

    Args:
        changed: set when the job is over; watched since before the job was submitted.
        is_new: it was submitted just now, so that the first look would be too early.
    """
    changes, deadline = request.app[CHANGES], time.monotonic() + seconds
    if is_new:
        await wait(changed, min(seconds, FALLBACK_S))
    while True:
        changed.clear()
        fetched = await request.app[STORE].fetch(job_id, reader(request))
        left = deadline - time.monotonic()
        if fetched.status != "pending" or left <= 0 or changes.closing:
            return fetched
        await wait(changed, min(left, FALLBACK_S))


async def _deliver(
    capability: Capability, fetched: Fetched, result_format: formats.Format
) -> web.Response:
    match fetched.status:
        case "pending":
            return _json({"id": capability.id, "status": "pending"}, 202, {"Retry-After": "1"})
        case "leased":
            raise _leased(fetched.ttl_ms)
        case "gone":
            raise gone()
        case "unknown":
            raise job_not_found()
        case "done":
            pass
    if (ciphertext := for_client(fetched.sealed)) is not None:
        return web.Response(body=ciphertext, content_type=SEALED_TYPE)
    try:
        plain = open_result(capability.result_key, capability.id, fetched.sealed)
    except SealError:
        raise Problem(
            500, "result_unreadable", "The stored result does not belong to this job."
        ) from None
    result = _result.decode(plain)
    if isinstance(result, Failed):
        raise result.problem()
    if isinstance(result, Embedded) or result_format is formats.FORMATS["mayfly"]:
        return web.Response(body=plain, content_type="application/json")
    return await write(result, result_format)


def _refuse_when_unsafe(request: web.Request) -> None:
    """Before the body is read: what is taken must not be kept anywhere."""
    gate = request.app[GATE]
    if gate.findings:
        raise Problem(
            503,
            "store_unsafe",
            "The set-up of this service could keep images, so it takes none. Nothing was kept; "
            "its operator sees the reason at /readyz.",
            {"Retry-After": "60", "Connection": "close"},
        )
    if not gate.open:
        raise store_unavailable()


def _refuse_when_full(request: web.Request) -> None:
    """Before the body is read; the store decides again when the job is complete."""
    fleet = request.app[PULSE].fleet
    if fleet and fleet.used_bytes + (request.content_length or 0) > fleet.max_bytes:
        raise _queue_full()


def _check_fit(request: web.Request, spec: Request, images: dict[str, bytes]) -> None:
    known = request.app[PULSE].models()
    if model := known.get(str(spec.model)):
        check_model(spec, model)
    elif spec.model != request.app[SETTINGS].default_model:
        raise _model_unknown(known)
    check_parts(spec, images)
    for name, data in images.items():
        size = check_image(data, request.app[SETTINGS].max_pixels)
        # EXIF may turn the image, which only a worker reads: here the longer side serves for both
        longest = max(size.width, size.height)
        check_inside(spec, name, Size(longest, longest))


def _model_unknown(known: Iterable[str]) -> Problem:
    served = ", ".join(known) or "none at the moment"
    return unprocessable("model_unknown", f"No worker serves this model. Served: {served}.")


def _raise_if_gone(state: JobState) -> None:
    if state.status == "gone":
        raise gone()
    if state.status == "unknown":
        raise job_not_found()


def _queue_full() -> Problem:
    return Problem(
        503,
        "queue_full",
        "There are more jobs than the workers can take. Nothing was kept; try again later.",
        {"Retry-After": "5", "Connection": "close"},
    )


def _leased(ttl_ms: int) -> Problem:
    return Problem(
        409,
        "leased",
        "Another reader is fetching this result. Wait for its lease to end.",
        {"Retry-After": str(max(1, -(-ttl_ms // 1000)))},
    )


def _state(state: JobState) -> dict[str, Any]:
    expires = time.gmtime(time.time() + state.ttl_ms / 1000)
    shown: dict[str, Any] = {
        "status": state.status,
        "expires_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", expires),
    }
    if state.status == "queued":
        shown["position"] = state.ahead
    return shown


def _links(job_id: str) -> dict[str, str]:
    self = f"/v1/jobs/{job_id}"
    return {"self": self, "result": f"{self}/result", "events": f"{self}/events"}


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(body),
        status=status,
        headers=headers,
        content_type="application/json",
    )
