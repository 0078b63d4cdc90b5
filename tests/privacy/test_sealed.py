"""A client may seal its payload itself: then the front door works on what it cannot open."""

import asyncio
import contextlib
import dataclasses
import io
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pytest
from PIL import Image

from jobs.contract import Annotated
from jobs.sealing import Capability, Payload, PrivateKey, SealError, key_text, open_result
from jobs.settings import Settings
from jobs.store import Store
from scripts.canary import encodings
from scripts.client import Client, ServiceError, box
from scripts.client.calls import Calls
from tests.calls import BOX_REQUEST, Answer, call
from tests.conftest import picture_bytes, running_front_door, running_worker
from tests.fakes import Echo

SEALED = "application/vnd.mayfly.sealed"
MODEL = {"model": "exemplar"}


@pytest.fixture
def url(service: aiohttp.ClientSession) -> str:
    return str(service._base_url)


async def test_the_result_is_the_same_as_in_the_open(url: str, picture: bytes) -> None:
    """References, formats and pinning included."""
    wish = {"prompts": [box(1, 2, 30, 40, label="coin"), box(1, 1, 9, 9, image="other")]}
    references = {"other": picture_bytes((20, 20), "JPEG")}
    async with Client(url) as plain, Client(url, seal=True) as sealing:
        ours = await sealing.annotate(picture, wish, references)
        theirs = await plain.annotate(picture, wish, references)
        assert ours.annotations == theirs.annotations
        assert ours.image == theirs.image
        jobs = [await each.submit(picture, BOX_REQUEST) for each in (plain, sealing)]
        texts = [
            await each.fetch(job, "csv") for each, job in zip((plain, sealing), jobs, strict=True)
        ]
        assert texts[0] == texts[1]
        pinned = (await plain.info())["sealing_key"]["x25519"]
    async with Client(url, seal=pinned + "\n") as sealing:
        assert (await sealing.annotate(picture, BOX_REQUEST)).annotations


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        ({"prompts": [box(9, 9, 1, 1)]}, "box_inverted"),
        ({"prompts": [box(0, 0, 9999, 9)]}, "box_outside_image"),
        ({"prompts": [box(1, 1, 9, 9, image="other")]}, "image_missing"),
        ({"prompts": []}, "prompt_missing"),
        ({"prompts": [{"type": "text", "text": "coin"}]}, "prompt_unsupported"),
        ({"prompts": [box(1, 1, 9, 9)] * 33}, "invalid_request"),
        ({"prompts": [box(1, 1, 9, 9)], "min_score": 2}, "invalid_request"),
        ({**BOX_REQUEST, "model": "dowsing"}, "model_unknown"),
    ],
)
async def test_a_worker_checks_what_the_front_door_cannot(
    url: str, picture: bytes, wish: dict[str, Any], code: str
) -> None:
    async with Client(url, seal=True) as client:
        with pytest.raises(ServiceError) as caught:
            await client.annotate(picture, wish)
    assert (caught.value.status, caught.value.code) == (422, code)


@pytest.mark.parametrize(
    ("images", "status", "code"),
    [
        ({}, 422, "image_missing"),
        ({"other": b"x"}, 422, "image_missing"),
        ({"image": b"GIF89a"}, 415, "not_an_image"),
        ({"image": b"x", **{str(n): b"x" for n in range(8)}}, 413, "too_many_images"),
        ({"image": b"x" * 1001}, 413, "too_many_bytes"),
    ],
)
async def test_a_worker_counts_and_weighs_the_images(
    store: Store,
    key: PrivateKey,
    settings: Settings,
    images: Mapping[str, bytes],
    status: int,
    code: str,
) -> None:
    small = dataclasses.replace(settings, max_image_bytes=1000)
    async with (
        running_worker(store, key, Echo(), small),
        running_front_door(settings, key) as session,
    ):
        reply = PrivateKey.new()
        job, answer = await _post(session, key, reply, dict(images))
        assert answer.status == 202
        result = await _result(session, job, reply)
    assert (result["outcome"], result["status"], result["code"]) == ("failed", status, code)


async def _post(
    session: aiohttp.ClientSession,
    key: PrivateKey,
    reply: PrivateKey,
    images: dict[str, bytes],
    **changes: Any,
) -> tuple[Capability, Answer]:
    """A submission sealed by hand, as docs/sealed.md has it."""
    job = changes.pop("job", None) or Capability.new()
    text = msgspec.json.encode({**BOX_REQUEST, **MODEL, **changes.pop("wish", {})})
    reply_key = changes.pop("reply_key", reply.public.raw)
    sealed = key.public.seal(job.id, Payload(reply_key, text, images, 0, by_client=True))
    query = {**MODEL, "key": key.public.id, **changes.pop("query", {})}
    headers = {"Content-Type": SEALED, **changes.pop("headers", {})}
    token = changes.pop("token", job.token)
    answer = await call(
        session, "POST", "/v1/jobs", token, data=io.BytesIO(sealed), params=query, headers=headers
    )
    return job, answer


async def _result(session: aiohttp.ClientSession, job: Capability, reply: PrivateKey) -> Any:
    answer = await call(session, "GET", f"/v1/jobs/{job.id}/result?wait=10", job.token)
    assert (answer.status, answer.headers["Content-Type"]) == (200, SEALED)
    return msgspec.json.decode(reply.open_result(job.id, answer.body))


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"token": None}, 400, "token_required"),
        ({"token": "short"}, 400, "token_malformed"),
        ({"query": {"model": ""}}, 400, "query_malformed"),
        ({"query": {"key": ""}}, 400, "query_malformed"),
        ({"query": {"priority": "first"}}, 400, "query_malformed"),
        ({"query": {"key": "0123456789abcdef"}}, 422, "sealing_key_unknown"),
        ({"query": {"model": "dowsing"}}, 422, "model_unknown"),
        ({"headers": {"Content-Encoding": "gzip"}}, 415, "encoding_unsupported"),
        ({"images": {"image": b"\0" * 40_000_000}}, 413, "too_many_bytes"),
    ],
)
async def test_what_the_front_door_can_check_is_told_at_once(
    front_door: aiohttp.ClientSession,
    key: PrivateKey,
    changes: dict[str, Any],
    status: int,
    code: str,
) -> None:
    images = changes.get("images", {"image": b"x"})
    more = {name: value for name, value in changes.items() if name != "images"}
    _, answer = await _post(front_door, key, PrivateKey.new(), images, **more)
    assert (answer.status, answer.code) == (status, code)


async def test_the_same_token_is_the_same_job(
    front_door: aiohttp.ClientSession, key: PrivateKey, picture: bytes
) -> None:
    job, reply = Capability.new(), PrivateKey.new()
    for _ in range(2):
        _, answer = await _post(front_door, key, reply, {"image": picture}, job=job)
        assert (answer.status, answer.json["id"]) == (202, job.id)
        assert answer.json["position"] == 0


async def test_waiting_brings_the_sealed_result_with_the_submission(
    service: aiohttp.ClientSession, key: PrivateKey, picture: bytes
) -> None:
    reply = PrivateKey.new()
    job, answer = await _post(
        service, key, reply, {"image": picture}, headers={"Prefer": "wait=10"}
    )
    assert (answer.status, answer.headers["Content-Type"]) == (200, SEALED)
    assert b"annotated" in reply.open_result(job.id, answer.body)
    gone = await call(service, "GET", f"/v1/jobs/{job.id}/result", job.token)
    assert gone.status == 410


async def test_the_token_does_not_open_the_result_nor_does_another_client(
    service: aiohttp.ClientSession, key: PrivateKey, picture: bytes, store: Store
) -> None:
    """Who has Redis and the token, as a front door may have, has ciphertext."""
    reply = PrivateKey.new()
    job, _ = await _post(service, key, reply, {"image": picture})
    await call(service, "GET", f"/v1/jobs/{job.id}?wait=10", job.token)
    fetched = await store.fetch(job.id)
    with pytest.raises(SealError):
        open_result(job.result_key, job.id, fetched.sealed)
    for other, job_id in ((PrivateKey.new(), job.id), (key, job.id), (reply, "0" * 32)):
        with pytest.raises(SealError):
            other.open_result(job_id, fetched.sealed[1:])
    assert b"annotated" in reply.open_result(job.id, fetched.sealed[1:])


@pytest.mark.parametrize("reply_key", [bytes(32), b"short", b"\1" + bytes(31)])
async def test_a_reply_key_that_is_none_ends_its_job_alone(
    service: aiohttp.ClientSession, key: PrivateKey, picture: bytes, reply_key: bytes
) -> None:
    job, answer = await _post(
        service, key, PrivateKey.new(), {"image": picture}, reply_key=reply_key
    )
    assert answer.status == 202
    answer = await call(service, "GET", f"/v1/jobs/{job.id}/result?wait=10", job.token)
    assert answer.status == 410
    reply = PrivateKey.new()
    job, _ = await _post(service, key, reply, {"image": picture})
    assert (await _result(service, job, reply))["outcome"] == "annotated"


async def test_a_model_name_that_a_client_made_up_is_not_logged(
    service: aiohttp.ClientSession,
    key: PrivateKey,
    picture: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    reply = PrivateKey.new()
    made_up = {"model": "canary-model-name"}
    job, _ = await _post(service, key, reply, {"image": picture}, wish=made_up)
    assert (await _result(service, job, reply))["code"] == "model_unknown"
    lines = [getattr(record, "fields", {}) for record in caplog.records]
    assert any(line.get("outcome") == "model_unknown" for line in lines)
    assert "canary" not in str(lines)


# the front door's memory, from outside


@contextlib.asynccontextmanager
async def _front_door_process(
    folder: Path, redis_url: str, key: PrivateKey
) -> AsyncIterator[tuple[int, str]]:
    (folder / "worker.pub").write_text(key_text(key.public.raw))
    environment = {
        **os.environ,
        "MAYFLY_REDIS_URL": redis_url,
        "MAYFLY_PORT": "0",
        "MAYFLY_WORKER_PUBLIC_KEY_FILE": str(folder / "worker.pub"),
        "MAYFLY_UPLOAD_TIMEOUT_S": "60",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "api"], env=environment, stdout=subprocess.PIPE, stderr=log
        )
    assert process.stdout
    try:
        line = await asyncio.to_thread(process.stdout.readline)
        yield process.pid, line.decode().split()[1]
    finally:
        process.terminate()
        process.wait(15)
        process.stdout.close()


def _in_memory(pid: int, secrets: Mapping[str, bytes]) -> set[str]:
    """Which of the secrets lie in a process's memory, in whatever form."""
    forms = [(name, form) for name, secret in secrets.items() for form in encodings(secret)]
    found = set()
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb") as memory:
        for line in maps:
            place, mode, *_ = line.split()
            if "r" not in mode or line.rstrip().endswith(("[vvar]", "[vsyscall]")):
                continue
            start, end = (int(number, 16) for number in place.split("-"))
            memory.seek(start)
            with contextlib.suppress(OSError, ValueError):  # a device, or not there any more
                content = memory.read(end - start)
                found |= {name for name, form in forms if form in content}
    return found


class _Upload:
    """A submission in three steps, to look between them: its last byte comes when it is asked."""

    def __init__(self, session: aiohttp.ClientSession, job: Capability, **more: Any) -> None:
        self._go = asyncio.Event()
        self._body: bytes = more.pop("body")
        headers = {"Authorization": f"Bearer {job.token}", **more.pop("headers")}
        headers["Content-Length"] = str(len(self._body))
        self._answer = asyncio.create_task(self._post(session, headers, more["params"]))

    async def _post(self, session: aiohttp.ClientSession, headers: Any, params: Any) -> Any:
        async def chunks() -> AsyncIterator[bytes]:
            yield self._body[:-1]
            await self._go.wait()
            yield self._body[-1:]

        async with session.post(
            "/v1/jobs", data=chunks(), headers=headers, params=params
        ) as answer:
            return answer.status, await answer.json()

    async def end(self) -> None:
        self._go.set()
        status, body = await self._answer
        assert status == 202, body


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may read a hardened process's memory")
async def test_the_front_doors_process_never_holds_what_its_client_sealed(
    store: Store, key: PrivateKey, settings: Settings, tmp_path: Path
) -> None:
    """Its memory is searched while it takes the upload, afterwards, and when it has delivered.

    The same search finds the image and the label of a submission in the open, so it can find.
    """
    pixels = np.random.default_rng(11).integers(0, 256, (120, 120, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    image, label = file.getvalue(), "canary-label-5eb1a7"
    secrets = {"image": image[20000:20032], "label": label.encode()}
    text = msgspec.json.encode({"prompts": [box(1, 1, 60, 60, label=label)], **MODEL})
    job, reply = Capability.new(), PrivateKey.new()
    payload = Payload(reply.public.raw, text, {"image": image}, 0, by_client=True)
    async with (
        running_worker(store, key, Echo(), settings),
        _front_door_process(tmp_path, settings.redis_url, key) as (pid, url),
        aiohttp.ClientSession(url) as session,
    ):
        sealed = _Upload(
            session,
            job,
            body=key.public.seal(job.id, payload),
            headers={"Content-Type": SEALED},
            params={**MODEL, "key": key.public.id},
        )
        await asyncio.sleep(0.5)
        assert _in_memory(pid, secrets) == set(), "while it takes the upload"
        await sealed.end()
        assert _in_memory(pid, secrets) == set(), "when it has stored it"
        path, headers = f"/v1/jobs/{job.id}", {"Authorization": f"Bearer {job.token}"}
        async with session.get(f"{path}/result?wait=20", headers=headers) as answer:
            result = reply.open_result(job.id, await answer.read())
        assert msgspec.json.decode(result, type=Annotated).annotations[0].label == label
        assert _in_memory(pid, secrets) == set(), "when it has delivered the result"

        plain = _Upload(
            session,
            Capability.new(),
            body=image,
            headers={"Content-Type": "image/png"},
            params={"request": text.decode()},
        )
        await asyncio.sleep(0.5)
        assert "image" in _in_memory(pid, secrets), "the search finds what is there"
        await plain.end()
        assert "label" in _in_memory(pid, secrets), "and what was, because Python does not wipe"


async def test_a_client_whose_key_is_retired_asks_again(
    store: Store, key: PrivateKey, settings: Settings, picture: bytes
) -> None:
    """A pinned key is not replaced by whatever is shown."""
    new = PrivateKey.new()
    async with running_front_door(settings, key) as before:
        client = Client(str(before._base_url), seal=True)
        pinned = Client(str(before._base_url), seal=key_text(key.public.raw))
        for each in (client, pinned):
            await each.info()
            each._sealing_key, each._default_model = key.public, "exemplar"
    async with (
        running_worker(store, new, Echo(), settings),
        running_front_door(settings, new) as after,
    ):
        for each in (client, pinned):
            await each.close()
            each._calls = Calls(str(after._base_url), None, 120, None)
        assert (await client.annotate(picture, BOX_REQUEST)).annotations
        with pytest.raises(ServiceError, match="sealing_key_unknown"):
            await pinned.annotate(picture, BOX_REQUEST)
        await client.close()
        await pinned.close()
