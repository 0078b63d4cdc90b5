"""POST /v1/convert: what a client has, in a format that it wants; bounded, and nothing is kept."""

import io
import json
from typing import Any

import aiohttp
import pytest
import redis

from jobs import formats
from tests.calls import Answer, call, submit


async def _result(service: aiohttp.ClientSession, picture: bytes) -> Any:
    return (await submit(service, picture, headers={"Prefer": "wait=5"})).json


async def _convert(session: aiohttp.ClientSession, body: Any, query: str = "") -> Answer:
    text = body if isinstance(body, str) else json.dumps(body)
    return await call(session, "POST", "/v1/convert" + query, data=io.BytesIO(text.encode()))


@pytest.mark.parametrize("name", formats.FORMATS)
async def test_every_format_is_written_as_for_a_job(
    service: aiohttp.ClientSession, picture: bytes, valkey: "redis.Redis", name: str
) -> None:
    result = await _result(service, picture)
    keys = valkey.keys("*:image") + valkey.keys("*:result")  # type: ignore[operator]
    direct = await submit(service, picture, headers={"Prefer": "wait=5"}, params={"format": name})
    written = await _convert(service, result, f"?format={name}")
    assert written.status == 200
    assert written.headers["Content-Type"] == direct.headers["Content-Type"]
    assert written.headers.get("Mayfly-Labels") == direct.headers.get("Mayfly-Labels")
    if name not in ("mayfly", "roboflow"):  # which say how long each took
        assert written.body == direct.body
    assert valkey.keys("*:image") + valkey.keys("*:result") == keys == []  # type: ignore[operator]


async def test_what_was_corrected_is_written_under_the_name_that_is_given(
    service: aiohttp.ClientSession, picture: bytes
) -> None:
    result = await _result(service, picture)
    result["annotations"][0]["label"] = "button"
    coco = (await _convert(service, result, "?format=coco&name=photo.jpg")).json
    assert [category["name"] for category in coco["categories"]] == ["button"]
    assert coco["images"][0]["file_name"] == "photo.jpg"


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ("{", 400, "malformed_result"),
        ("{}", 422, "invalid_result"),
        ({"image": {"width": 10**9, "height": 1}}, 422, "invalid_result"),
        ({"image": {"width": 60_000, "height": 60_000}}, 422, "invalid_result"),
        ({"mask": {"size": [1, 50_000_000], "counts": "0"}}, 422, "invalid_result"),
        ({"mask": {"size": [48, 64], "counts": "0"}}, 422, "invalid_result"),
        ({"mask": {"size": [48, 64], "counts": "1" * 100_001}}, 413, "too_many_masks"),
        (" " * 3_000_000, 413, "too_many_bytes"),
    ],
)
async def test_what_no_model_answers_is_refused(
    service: aiohttp.ClientSession, picture: bytes, change: Any, status: int, code: str
) -> None:
    body = change
    if isinstance(change, dict):
        body = await _result(service, picture)
        if "mask" in change:
            body["annotations"][0] |= change
        else:
            body |= change
    answer = await _convert(service, body, "?format=yolo-seg")
    assert (answer.status, answer.code) == (status, code)


async def test_many_wide_masks_are_too_many(service: aiohttp.ClientSession, picture: bytes) -> None:
    result = await _result(service, picture)
    find = result["annotations"][0] | {"mask": {"size": [1, 50_000], "counts": "0"}}
    body = result | {"image": {"width": 50_000, "height": 1}, "annotations": [find] * 61}
    answer = await _convert(service, body, "?format=coco")
    assert (answer.status, answer.code) == (413, "too_many_masks")


async def test_an_unknown_format_says_which_there_are(service: aiohttp.ClientSession) -> None:
    answer = await _convert(service, "{}", "?format=pdf")
    assert (answer.status, answer.code) == (400, "format_unknown")
