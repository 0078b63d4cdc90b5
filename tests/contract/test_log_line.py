"""A request's log line: the fields that the privacy notice names, nothing that was sent."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from api.access_log import AccessLog
from api.keys import ANONYMOUS
from jobs.sealing import PrivateKey
from jobs.settings import Settings
from jobs.store import Store
from tests.calls import call, submit
from tests.conftest import running_front_door

PERSONAL = {"ip", "browser", "referrer"}
FIELDS = {"time", "method", "route", "status", "bytes_in", "bytes_out", "job", *PERSONAL}
BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
SENT = {
    "User-Agent": BROWSER,
    "Referer": "https://user:canary-password@example.org/canary-path?q=canary-query",
}
REQUEST = {"prompts": [{"type": "box", "box": [1, 1, 9, 9], "label": "canary-label"}]}


def _lines(folder: Path) -> list[Any]:
    lines = [line for path in folder.iterdir() for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines if line.strip()]


async def test_a_line_has_the_fields_of_the_notice_and_no_content(
    store: Store, settings: Settings, key: PrivateKey, picture: bytes, tmp_path: Path
) -> None:
    settings = dataclasses.replace(settings, access_log=str(tmp_path / "logs"))
    async with running_front_door(settings, key) as session:
        job = (await submit(session, picture, REQUEST, headers=SENT)).json
        path = job["links"]["result"] + "?wait=0&format=coco"
        answer = await call(session, "GET", path, job["token"], headers=SENT)
        await call(session, "GET", "/canary-path?canary-query", headers=SENT)
    first, second, third = _lines(tmp_path / "logs")
    assert first.keys() == second.keys() == FIELDS
    assert third.keys() == FIELDS - {"job"}
    assert first["time"].endswith("Z")
    assert (first["ip"], first["browser"], first["referrer"]) == (
        "127.0.0.1",
        BROWSER,
        "https://example.org",
    )
    assert (first["method"], first["route"], first["status"]) == ("POST", "/v1/jobs", 202)
    assert first["bytes_in"] == len(picture)
    assert second["route"] == "/v1/jobs/{id}/result"
    assert second["bytes_out"] == len(answer.body)
    assert (third["route"], third["status"]) == ("unmatched", 404)
    assert "canary" not in str([first, second, third])
    assert job["token"] not in str([first, second, third])


async def test_stderr_names_nobody(
    service: aiohttp.ClientSession, picture: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The default: nothing on a disk, and no address where its age cannot be bounded."""
    caplog.set_level(logging.INFO, "api.access_log")
    await submit(service, picture, REQUEST, headers=SENT)
    (line,) = [getattr(record, "fields", {}) for record in caplog.records]
    assert line.keys() == FIELDS - PERSONAL - {"time"}  # the formatter adds the time


@pytest.mark.parametrize(
    ("mode", "ip"), [("full", "127.0.0.1"), ("truncated", "127.0.0.0/24"), ("off", None)]
)
async def test_addresses_as_the_setting_says(
    store: Store, settings: Settings, key: PrivateKey, tmp_path: Path, mode: str, ip: str | None
) -> None:
    settings = dataclasses.replace(settings, access_log=str(tmp_path), access_log_ip=mode)
    async with running_front_door(settings, key) as session:
        await call(session, "GET", "/healthz")
    (line,) = _lines(tmp_path)
    assert line["ip"] == ip


async def test_off_writes_nothing_anywhere(
    store: Store, settings: Settings, key: PrivateKey, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "jobs")  # another test may have let the gate speak
    caplog.set_level(logging.INFO, "api.access_log")
    settings = dataclasses.replace(settings, access_log="off")
    async with running_front_door(settings, key) as session:
        await call(session, "GET", "/healthz")
    assert caplog.records == []


async def test_a_request_can_ask_to_be_nobodys(
    store: Store,
    settings: Settings,
    key: PrivateKey,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As that of an account that objected: counted, without whom it is about."""

    async def objecting(request: web.Request) -> web.Response:
        request[ANONYMOUS] = True
        return web.Response()

    monkeypatch.setattr("api.app.ROUTES", [web.get("/objecting", objecting)])
    settings = dataclasses.replace(settings, access_log=str(tmp_path))
    async with running_front_door(settings, key) as session:
        await call(session, "GET", "/objecting", headers=SENT)
    (line,) = _lines(tmp_path)
    assert {line[name] for name in PERSONAL} == {None}
    assert line["route"] == "/objecting"


async def test_another_front_door_reads_and_erases_while_this_one_writes(
    store: Store, settings: Settings, key: PrivateKey, tmp_path: Path
) -> None:
    settings = dataclasses.replace(settings, access_log=str(tmp_path))
    async with running_front_door(settings, key) as session:
        for _ in range(3):
            await call(session, "GET", "/healthz")
        other = AccessLog(settings)
        assert len(await other.lines_of("127.0.0.1")) == 3
        assert await other.erase("127.0.0.1") == 3
        await call(session, "GET", "/v1/info")
        assert [line["route"] for line in _lines(tmp_path)] == ["/v1/info"]
        assert [visit.route for visit in await other.lines_of("127.0.0.1")] == ["/v1/info"]
