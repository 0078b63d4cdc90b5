"""A request's log line: fixed fields, the route's template, nothing that was sent."""

import logging

import aiohttp
import pytest

from tests.calls import call, submit

FIELDS = {"method", "route", "status", "bytes_in", "bytes_out", "ms", "job"}


async def test_a_line_has_sizes_and_the_template_and_no_content(
    service: aiohttp.ClientSession, picture: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "api.middleware")
    request = {"prompts": [{"type": "box", "box": [1, 1, 9, 9], "label": "canary-label"}]}
    job = (await submit(service, picture, request)).json
    path = job["links"]["result"] + "?wait=5&format=coco"
    answer = await call(service, "GET", path, job["token"])
    lines = [getattr(record, "fields", {}) for record in caplog.records]
    first, second = [line for line in lines if "route" in line][-2:]
    assert first.keys() == second.keys() == FIELDS
    assert (first["route"], first["status"], first["bytes_in"]) == ("/v1/jobs", 202, len(picture))
    assert second["route"] == "/v1/jobs/{id}/result"
    assert second["bytes_out"] == len(answer.body)
    assert "canary" not in str(lines)
    assert job["token"] not in str(lines)
