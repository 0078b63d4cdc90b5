"""What Mayfly does, one idea a test. Read this first."""

import base64
import os

import aiohttp
import redis

from tests.calls import BOX, call, submit


async def test_an_image_goes_in_and_its_annotations_come_out(
    service: aiohttp.ClientSession, picture: bytes
) -> None:
    """Submit, wait, fetch."""
    job = (await submit(service, picture)).json
    state = await call(service, "GET", job["links"]["self"] + "?wait=5", job["token"])
    assert state.json["status"] == "done"
    result = (await call(service, "GET", job["links"]["result"], job["token"])).json
    assert result["outcome"] == "annotated"
    assert result["annotations"] == [{"label": "coin", "score": 1.0, "box": BOX}]


async def test_a_result_is_fetched_once_and_then_it_is_gone(
    service: aiohttp.ClientSession, picture: bytes
) -> None:
    """The second reader is told so, with 410."""
    job = (await submit(service, picture)).json
    first = await call(service, "GET", job["links"]["result"] + "?wait=5", job["token"])
    second = await call(service, "GET", job["links"]["result"], job["token"])
    assert (first.status, second.status, second.code) == (200, 410, "gone")


async def test_nothing_stays(
    service: aiohttp.ClientSession, picture: bytes, valkey: "redis.Redis"
) -> None:
    """After delivery only a marker is left, with a TTL and without content: it makes the 410."""
    job = (await submit(service, picture)).json
    await call(service, "GET", job["links"]["result"] + "?wait=5", job["token"])
    left = {key for key in valkey.scan_iter() if job["id"].encode() in key}
    assert left == {f"mayfly:{job['id']}:job".encode()}
    assert valkey.get(f"mayfly:{job['id']}:job") == b"exemplar"


async def test_one_request_is_enough(service: aiohttp.ClientSession, picture: bytes) -> None:
    """With `Prefer: wait` the answer to the submission is the result."""
    answer = await submit(service, picture, headers={"Prefer": "wait=5"})
    assert answer.status == 200
    assert len(answer.json["annotations"]) == 1


async def test_a_lease_survives_a_broken_download(
    service: aiohttp.ClientSession, picture: bytes
) -> None:
    """With an Idempotency-Key the result stays until it is acknowledged."""
    job = (await submit(service, picture)).json
    mine = {"Idempotency-Key": "reader-1"}
    url = job["links"]["result"] + "?wait=5"
    first = await call(service, "GET", url, job["token"], headers=mine)
    again = await call(service, "GET", url, job["token"], headers=mine)
    assert first.body == again.body
    assert (
        await call(service, "DELETE", job["links"]["self"], job["token"], headers=mine)
    ).status == 204
    assert (await call(service, "GET", url, job["token"], headers=mine)).status == 410


async def test_a_brought_capability_makes_a_submission_repeatable(
    front_door: aiohttp.ClientSession, picture: bytes, valkey: "redis.Redis"
) -> None:
    """The same token is the same job, however often it is sent."""
    token = base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")
    first = (await submit(front_door, picture, token=token)).json
    again = (await submit(front_door, picture, token=token)).json
    assert first["id"] == again["id"]
    assert again["token"] == token
    assert valkey.zcard("mayfly:queue:exemplar") == 1


async def test_who_has_the_id_has_nothing(
    front_door: aiohttp.ClientSession, picture: bytes
) -> None:
    """An id may be logged: without its token it opens nothing, and a guess looks like a miss."""
    job = (await submit(front_door, picture)).json
    other = (await submit(front_door, picture)).json
    for path in job["links"].values():
        assert (await call(front_door, "GET", path)).status == 401
        assert (await call(front_door, "GET", path, other["token"])).status == 404


async def test_a_waiting_job_can_be_erased(
    front_door: aiohttp.ClientSession, picture: bytes, valkey: "redis.Redis"
) -> None:
    """DELETE takes the image out of memory before anybody has seen it; again is no error."""
    job = (await submit(front_door, picture)).json
    for _ in range(2):
        assert (await call(front_door, "DELETE", job["links"]["self"], job["token"])).status == 204
    assert not valkey.exists(f"mayfly:{job['id']}:image")
    assert (await call(front_door, "GET", job["links"]["self"], job["token"])).status == 410
