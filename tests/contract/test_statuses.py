"""Every status that the contract names, reached over a real socket: route × method × status.

`call` holds each answer against the OpenAPI document, so a status that is not documented, a body
of another form or an error that is not problem+json fails here too.
"""

import asyncio
import base64
import dataclasses
import io
import json
import os
from typing import Any

import aiohttp
import pytest
import redis

from jobs.sealing import Capability, PrivateKey
from jobs.settings import Settings
from jobs.store import Store
from tests.calls import BOX_REQUEST, call, submit
from tests.conftest import picture_bytes, running_front_door, running_worker
from tests.fakes import Echo

UNKNOWN = "/v1/jobs/" + "0" * 32


def _token() -> str:
    return base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")


async def _done(service: aiohttp.ClientSession, picture: bytes, **more: Any) -> Any:
    """A job whose result waits to be fetched."""
    job = (await submit(service, picture, **more)).json
    state = await call(service, "GET", job["links"]["self"] + "?wait=5", job["token"])
    assert state.json["status"] == "done"
    return job


# POST /v1/jobs


async def test_submit_202(front_door: aiohttp.ClientSession, picture: bytes) -> None:
    answer = await submit(front_door, picture)
    job = answer.json
    assert answer.status == 202
    assert answer.headers["Location"] == job["links"]["self"] == f"/v1/jobs/{job['id']}"
    assert job["status"] == "queued"
    assert job["position"] == 0
    assert answer.headers["Cache-Control"] == "no-store"


async def test_submit_200_with_prefer_wait(service: aiohttp.ClientSession, picture: bytes) -> None:
    answer = await submit(service, picture, headers={"Prefer": "respond-async, wait=5"})
    assert (answer.status, answer.json["outcome"]) == (200, "annotated")


async def test_submit_202_when_the_wait_is_too_short(
    front_door: aiohttp.ClientSession, picture: bytes
) -> None:
    answer = await submit(front_door, picture, headers={"Prefer": "wait=1"})
    assert answer.status == 202


async def test_submit_200_leased_with_an_idempotency_key(
    service: aiohttp.ClientSession, picture: bytes
) -> None:
    """The answer got lost: the same request again, with the same token and key, has it again."""
    token = _token()
    headers = {"Prefer": "wait=5", "Idempotency-Key": "me"}
    first = await submit(service, picture, token=token, headers=headers)
    again = await submit(service, picture, token=token, headers=headers)
    assert (first.status, again.status) == (200, 200)
    assert first.body == again.body


@pytest.mark.parametrize(
    ("more", "status", "code"),
    [
        ({"request": "{"}, 400, "malformed_request"),
        ({"token": "not-a-token"}, 400, "token_malformed"),
        ({"params": {"format": "pdf"}}, 400, "format_unknown"),
        ({"headers": {"Content-Type": "text/plain"}}, 415, "media_type_unsupported"),
        ({"headers": {"Content-Encoding": "gzip"}}, 415, "encoding_unsupported"),
        ({"request": {"colour": "red"}}, 422, "invalid_request"),
        ({"request": {}}, 422, "prompt_missing"),
        ({"request": {"model": "no-such-model"}}, 422, "model_unknown"),
        ({"request": {"task": "embed"}}, 422, "task_unsupported"),
        ({"request": BOX_REQUEST | {"outputs": ["mask"]}}, 422, "output_unsupported"),
        ({"request": {"prompts": [{"type": "text", "text": "coin"}]}}, 422, "prompt_unsupported"),
        (
            {"request": {"prompts": [{"type": "box", "box": [9, 9, 8, 20]}]}},
            422,
            "box_inverted",
        ),
        (
            {"request": {"prompts": [{"type": "box", "box": [9, 9, 900, 20]}]}},
            422,
            "box_outside_image",
        ),
        (
            {"request": {"prompts": [{"type": "box", "box": [1, 1, 9, 9], "image": "b"}]}},
            422,
            "image_missing",
        ),
    ],
)
async def test_submit_refusals(
    service: aiohttp.ClientSession,
    picture: bytes,
    valkey: "redis.Redis",
    more: dict[str, Any],
    status: int,
    code: str,
) -> None:
    """A refused submission says why, and leaves nothing in Redis."""
    answer = await submit(service, picture, **more)
    assert (answer.status, answer.code) == (status, code)
    assert len(answer.json["detail"]) > 20
    assert not list(valkey.scan_iter("*:image"))


JPEG_START, PNG_START = b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"


def _png_header(width: int, height: int) -> bytes:
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return PNG_START + b"\0\0\0\rIHDR" + size + b"\x08\x02\0\0\0" + b"\0" * 8


@pytest.mark.parametrize(
    ("image", "status", "code"),
    [
        (b"", 400, "empty_image"),
        (b"this is text called image/png", 415, "not_an_image"),
        (b"GIF89a" + b"\0" * 100, 415, "not_an_image"),
        (_png_header(20_000, 20_000), 413, "too_many_pixels"),
        (JPEG_START + b"\0" * 40, 422, "image_undecodable"),
    ],
)
async def test_submit_refuses_images_at_the_door(
    service: aiohttp.ClientSession, image: bytes, status: int, code: str
) -> None:
    answer = await submit(service, image)
    assert (answer.status, answer.code) == (status, code)


async def test_submit_413_for_50_mb(service: aiohttp.ClientSession, settings: Settings) -> None:
    """Refused by its declared length, or as soon as the limit is passed when there is none."""
    answer = await submit(service, io.BytesIO(PNG_START + b"\0" * 50_000_000))
    assert (answer.status, answer.code) == (413, "too_many_bytes")

    async def stream() -> Any:
        for _ in range(settings.max_image_bytes // 1_000_000 + 2):
            yield b"\0" * 1_000_000

    answer = await submit(service, stream())
    assert (answer.status, answer.code) == (413, "too_many_bytes")


def _form(parts: dict[str, bytes], request: Any = BOX_REQUEST) -> aiohttp.FormData:
    form = aiohttp.FormData(default_to_multipart=True)
    if request is not None:
        form.add_field("request", json.dumps(request), content_type="application/json")
    for name, data in parts.items():
        form.add_field(name, data, content_type="image/png", filename="secret-name.png")
    return form


async def test_submit_202_as_a_form_with_a_reference_image(
    service: aiohttp.ClientSession, picture: bytes
) -> None:
    prompt = {"type": "box", "box": [1, 1, 9, 9], "image": "example"}
    form = _form({"image": picture, "example": picture}, {"prompts": [prompt]})
    answer = await call(service, "POST", "/v1/jobs", data=form)
    assert answer.status == 202


@pytest.mark.parametrize(
    ("parts", "status", "code"),
    [
        ({}, 400, "malformed_form"),
        ({"picture": b"x"}, 400, "malformed_form"),
        ({f"image{n or ''}": b"x" for n in range(9)}, 413, "too_many_images"),
    ],
)
async def test_submit_refuses_forms(
    service: aiohttp.ClientSession, parts: dict[str, bytes], status: int, code: str
) -> None:
    answer = await call(service, "POST", "/v1/jobs", data=_form(parts))
    assert (answer.status, answer.code) == (status, code)


async def test_submit_400_for_a_broken_form(service: aiohttp.ClientSession) -> None:
    for body in (b"", b"no boundary in here", b"--b\r\nnot a header\r\n\r\nx\r\n--b--"):
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = await call(service, "POST", "/v1/jobs", data=body, headers=headers)
        assert (answer.status, answer.code) == (400, "malformed_form"), body
    answer = await call(
        service, "POST", "/v1/jobs", data=b"x", headers={"Content-Type": "multipart/form-data"}
    )
    assert answer.status == 400


async def test_submit_400_for_the_same_part_twice(
    service: aiohttp.ClientSession, picture: bytes
) -> None:
    form = _form({"image": picture})
    form.add_field("image", io.BytesIO(picture), content_type="image/png")
    answer = await call(service, "POST", "/v1/jobs", data=form)
    assert (answer.status, answer.code) == (400, "malformed_form")


async def test_submit_401_without_a_good_key(
    store: Store, settings: Settings, key: PrivateKey, picture: bytes
) -> None:
    closed = dataclasses.replace(settings, anonymous="off")
    async with running_front_door(closed, key) as session:
        refused = await submit(session, picture)
        wrong = await submit(session, picture, headers={"X-API-Key": "a key"})
    assert (refused.status, refused.code) == (401, "api_key_required")
    assert (wrong.status, wrong.code) == (401, "api_key_unknown")


async def test_submit_408_for_a_slow_upload(
    store: Store, settings: Settings, key: PrivateKey
) -> None:
    hasty = dataclasses.replace(settings, upload_timeout_s=0.2)

    async def drip() -> Any:
        for _ in range(10):
            yield b"\0"
            await asyncio.sleep(0.1)

    async with running_front_door(hasty, key) as session:
        answer = await submit(session, drip())
    assert (answer.status, answer.code) == (408, "upload_too_slow")


async def test_submit_410_when_the_job_was_delivered(
    service: aiohttp.ClientSession, picture: bytes
) -> None:
    """The same token never makes a second job."""
    token = _token()
    job = await _done(service, picture, token=token)
    assert (await call(service, "GET", job["links"]["result"], token)).status == 200
    answer = await submit(service, picture, token=token)
    assert (answer.status, answer.code) == (410, "gone")


async def test_submit_409_when_another_reader_has_the_lease(
    service: aiohttp.ClientSession, picture: bytes
) -> None:
    token = _token()
    job = await _done(service, picture, token=token)
    reader = {"Idempotency-Key": "one"}
    await call(service, "GET", job["links"]["result"], token, headers=reader)
    headers = {"Prefer": "wait=1", "Idempotency-Key": "other"}
    answer = await submit(service, picture, token=token, headers=headers)
    assert (answer.status, answer.code) == (409, "leased")


@pytest.mark.parametrize("limit", ["max_queue_jobs", "max_queue_bytes"])
async def test_submit_503_when_the_queue_is_full(
    store: Store,
    valkey: "redis.Redis",
    settings: Settings,
    key: PrivateKey,
    picture: bytes,
    limit: str,
) -> None:
    """By depth or by bytes; what was accepted before is still there."""
    used = dict(valkey.info("memory"))["used_memory"]  # type: ignore[arg-type]
    room = {"max_queue_jobs": 1, "max_queue_bytes": used + 3_500_000}
    tight = dataclasses.replace(settings, **{limit: room[limit]})
    padded = picture + b"\0" * 1_000_000
    async with running_front_door(tight, key) as session:
        answers = [await submit(session, padded) for _ in range(4)]
        statuses = [answer.status for answer in answers]
        assert statuses[0] == 202
        assert statuses[-1] == 503
        assert answers[-1].code == "queue_full"
        assert int(answers[-1].headers["Retry-After"]) > 0
        first = answers[0].json
        assert (await call(session, "GET", first["links"]["self"], first["token"])).status == 200


async def test_503_when_redis_does_not_answer(
    settings: Settings, key: PrivateKey, picture: bytes
) -> None:
    away = dataclasses.replace(settings, redis_url="unix:///nowhere/valkey.sock")
    token = _token()
    async with running_front_door(away, key) as session:
        answer = await submit(session, picture)
        assert (answer.status, answer.code) == (503, "store_unavailable")
        assert int(answer.headers["Retry-After"]) > 0
        ready = await call(session, "GET", "/readyz")
        assert (ready.status, ready.code) == (503, "not_ready")
        assert (await call(session, "GET", "/healthz")).status == 200
        job = f"/v1/jobs/{_id(token)}"
        for method, path in (("GET", job), ("GET", job + "/result"), ("DELETE", job)):
            assert (await call(session, method, path, token)).status == 503


def _id(token: str) -> str:
    return Capability.from_token(token).id


# GET /v1/jobs/{id}, its result and events; DELETE


@pytest.mark.parametrize("suffix", ["", "/result", "/events"])
async def test_401_404_410_on_every_job_route(
    front_door: aiohttp.ClientSession, picture: bytes, suffix: str
) -> None:
    """No token, a wrong one, an unknown job, an erased job."""
    job = (await submit(front_door, picture)).json
    path = job["links"]["self"] + suffix
    assert (await call(front_door, "GET", path)).code == "token_required"
    for token in ("nonsense", _token()):
        wrong = await call(front_door, "GET", path, token)
        assert (wrong.status, wrong.code) == (404, "job_not_found")
    unknown = _token()
    missing = await call(front_door, "GET", f"/v1/jobs/{_id(unknown)}{suffix}", unknown)
    assert missing.body == wrong.body
    await call(front_door, "DELETE", job["links"]["self"], job["token"])
    assert (await call(front_door, "GET", path, job["token"])).status == 410


async def test_show_200_queued_then_done(
    store: Store,
    front_door: aiohttp.ClientSession,
    settings: Settings,
    key: PrivateKey,
    picture: bytes,
) -> None:
    first, second = [(await submit(front_door, picture)).json for _ in range(2)]
    state = (await call(front_door, "GET", second["links"]["self"], second["token"])).json
    assert (state["status"], state["position"]) == ("queued", 1)
    async with running_worker(store, key, Echo(), settings):
        path = second["links"]["self"] + "?wait=5"
        state = (await call(front_door, "GET", path, second["token"])).json
    assert state["status"] == "done"
    assert first["id"] != second["id"]


@pytest.mark.parametrize("seconds", ["31", "-1", "soon", "1e3", "nan"])
@pytest.mark.parametrize("suffix", ["", "/result"])
async def test_400_for_a_wait_out_of_range(
    front_door: aiohttp.ClientSession, picture: bytes, suffix: str, seconds: str
) -> None:
    job = (await submit(front_door, picture)).json
    path = f"{job['links']['self']}{suffix}?wait={seconds}"
    answer = await call(front_door, "GET", path, job["token"])
    assert (answer.status, answer.code) == (400, "wait_malformed")


async def test_result_202_when_it_is_not_ready(
    front_door: aiohttp.ClientSession, picture: bytes
) -> None:
    job = (await submit(front_door, picture)).json
    answer = await call(front_door, "GET", job["links"]["result"], job["token"])
    assert (answer.status, answer.headers["Retry-After"]) == (202, "1")


async def test_result_409_while_it_is_leased(
    service: aiohttp.ClientSession, picture: bytes
) -> None:
    """Neither another key nor a plain reader gets it; a late acknowledgement is fenced."""
    job = await _done(service, picture)
    url, token = job["links"]["result"], job["token"]
    one, other = {"Idempotency-Key": "one"}, {"Idempotency-Key": "other"}
    assert (await call(service, "GET", url, token, headers=one)).status == 200
    for headers in (other, {}):
        answer = await call(service, "GET", url, token, headers=headers)
        assert (answer.status, answer.code) == (409, "leased")
        assert 1 <= int(answer.headers["Retry-After"]) <= 10
    fenced = await call(service, "DELETE", job["links"]["self"], token, headers=other)
    assert (fenced.status, fenced.code) == (409, "leased")
    for _ in range(2):
        done = await call(service, "DELETE", job["links"]["self"], token, headers=one)
        assert done.status == 204


@pytest.mark.parametrize(
    "more",
    [
        {"headers": {"Range": "bytes=0-10"}},
        {"headers": {"Sec-Purpose": "prefetch"}},
        {"headers": {"Purpose": "prefetch"}},
        {"params": {"format": "pdf"}},
        {"params": {"wait": "soon"}},
        {"headers": {"Idempotency-Key": "k" * 256}},
    ],
)
async def test_result_400_consumes_nothing(
    service: aiohttp.ClientSession, picture: bytes, more: dict[str, Any]
) -> None:
    job = await _done(service, picture)
    answer = await call(service, "GET", job["links"]["result"], job["token"], **more)
    assert answer.status == 400
    assert (await call(service, "GET", job["links"]["result"], job["token"])).status == 200


async def test_head_and_a_wrong_token_consume_nothing(
    service: aiohttp.ClientSession, picture: bytes
) -> None:
    job = await _done(service, picture)
    assert (await call(service, "HEAD", job["links"]["result"], job["token"])).status == 405
    assert (await call(service, "GET", job["links"]["result"], _token())).status == 404
    assert (await call(service, "GET", job["links"]["result"], job["token"])).status == 200


FORMATS = "mayfly coco yolo yolo-seg voc labelme label-studio cvat roboflow csv"


@pytest.mark.parametrize("name", FORMATS.split())
async def test_result_200_in_every_format(
    service: aiohttp.ClientSession, picture: bytes, name: str
) -> None:
    job = await _done(service, picture)
    path = f"{job['links']['result']}?format={name}"
    answer = await call(service, "GET", path, job["token"])
    assert answer.status == 200
    named = answer.body + answer.headers.get("Mayfly-Labels", "").encode()
    assert b"coin" in named


async def test_result_422_once_for_an_image_that_does_not_decode(
    service: aiohttp.ClientSession, picture: bytes
) -> None:
    """The door sees a good header; the worker finds the damage. The failure is delivered once."""
    job = await _done(service, picture[: len(picture) // 2])
    answer = await call(service, "GET", job["links"]["result"], job["token"])
    assert (answer.status, answer.code) == (422, "image_undecodable")
    assert (await call(service, "GET", job["links"]["result"], job["token"])).status == 410


async def test_result_500_once_when_the_model_fails(
    service: aiohttp.ClientSession, picture: bytes
) -> None:
    request = {"prompts": [{"type": "box", "box": [1, 1, 9, 9], "label": "broken"}]}
    job = await _done(service, picture, request=request)
    answer = await call(service, "GET", job["links"]["result"], job["token"])
    assert (answer.status, answer.code) == (500, "internal_error")
    assert b"secret" not in answer.body


async def test_a_tiny_image_is_an_image(service: aiohttp.ClientSession) -> None:
    request = {"prompts": [{"type": "box", "box": [0, 0, 1, 1]}]}
    headers = {"Prefer": "wait=5"}
    answer = await submit(service, picture_bytes((1, 1)), request, headers=headers)
    assert (answer.status, answer.json["image"]) == (200, {"width": 1, "height": 1})


async def test_events_200_until_the_job_is_done(
    service: aiohttp.ClientSession, picture: bytes
) -> None:
    request = {"prompts": [{"type": "box", "box": [1, 1, 9, 9], "label": "slow"}]}
    job = (await submit(service, picture, request)).json
    answer = await call(service, "GET", job["links"]["events"], job["token"])
    assert answer.status == 200
    events = [line for line in answer.body.decode().split("\n\n") if line.startswith("event")]
    statuses = [json.loads(event.partition("data: ")[2])["status"] for event in events]
    assert statuses[-1] == "done"
    assert "running" in statuses


async def test_readyz_says_what_is_missing(
    front_door: aiohttp.ClientSession,
    store: Store,
    settings: Settings,
    valkey: "redis.Redis",
    picture: bytes,
) -> None:
    """No worker; then one with another key."""
    answer = await call(front_door, "GET", "/readyz")
    assert answer.status == 503
    assert "No worker is running" in answer.json["detail"]
    async with running_worker(store, PrivateKey.new(), Echo(), settings):
        await asyncio.sleep(0.7)
        answer = await call(front_door, "GET", "/readyz")
        assert "another sealing key" in answer.json["detail"]


async def test_a_job_without_a_worker_waits_and_then_is_gone(
    valkey: "redis.Redis", settings: Settings, key: PrivateKey, picture: bytes
) -> None:
    """It never hangs: when its time is over it answers 410."""
    short = dataclasses.replace(settings, image_ttl_s=1)
    async with running_front_door(short, key) as session:
        job = (await submit(session, picture)).json
        path = job["links"]["result"] + "?wait=5"
        answer = await call(session, "GET", path, job["token"])
    assert (answer.status, answer.code) == (410, "gone")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/info", "/healthz", "/readyz", "/metrics"])
async def test_200_on_what_the_service_tells_of_itself(
    service: aiohttp.ClientSession, path: str
) -> None:
    assert (await call(service, "GET", path)).status == 200
    assert (await call(service, "HEAD", path)).body == b""


async def test_models_tells_what_can_be_asked(service: aiohttp.ClientSession) -> None:
    models = (await call(service, "GET", "/v1/models")).json
    assert models["default"] == "exemplar"
    assert models["models"][0]["prompts"] == ["box"]
    assert models["models"][0]["ready"] is True


async def test_404_and_405_are_problems_too(service: aiohttp.ClientSession) -> None:
    assert (await call(service, "GET", "/v2/nothing")).code == "not_found"
    answer = await call(service, "PUT", "/v1/jobs")
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")


async def test_the_docs_page_is_served_with_a_strict_policy(
    service: aiohttp.ClientSession,
) -> None:
    answer = await call(service, "GET", "/docs")
    assert answer.status == 200
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "unsafe" not in answer.headers["Content-Security-Policy"]


async def test_bytes_that_are_no_text_are_no_500(
    service: aiohttp.ClientSession, picture: bytes, settings: Settings, key: PrivateKey
) -> None:
    """Headers and paths come in any encoding."""
    odd = b"\xff\xe4".decode(errors="surrogateescape")
    job = await _done(service, picture)
    wrong = await call(service, "GET", "/v1/jobs/%C3%A4", job["token"])
    assert (wrong.status, wrong.code) == (404, "job_not_found")
    url = service._base_url
    assert url
    for header in (b"Idempotency-Key: \xff\xe4", b"X-API-Key: \xff", b"Prefer: \xff=1"):
        reader, writer = await asyncio.open_connection(url.host, url.port)
        head = f"GET {job['links']['result']} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        writer.write(head.encode() + b"Authorization: Bearer \xff\r\n" + header + b"\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"404"
        token = f"Authorization: Bearer {job['token']}\r\n".encode()
        writer.close()
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(head.encode() + token + b"Idempotency-Key: \xff\xe4\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"200"
        writer.close()
    closed = dataclasses.replace(settings, anonymous="off")
    async with running_front_door(closed, key) as session:
        refused = await submit(session, picture, headers={"X-API-Key": odd})
        assert refused.status == 401
