"""Over a real socket: the notice, and the one cookie that a visitor may agree to."""

import dataclasses
import json
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from api.app import ROUTES
from jobs.sealing import PrivateKey
from jobs.settings import Settings
from jobs.store import Store
from tests.calls import Answer, call, submit
from tests.conftest import running_front_door
from tests.contract.test_accounts import make_key

CONSENT = "/v1/privacy/consent"
CHOSEN = {"language": "de", "model": "exemplar", "format": "coco", "min_score": 0.4}
PAGES = ("/", "/privacy", "/docs", "/usage")


def _cookie(answer: Answer) -> str:
    """What a browser would send back."""
    return str(answer.headers["Set-Cookie"]).partition(";")[0]


async def _agree(session: aiohttp.ClientSession, **more: Any) -> Answer:
    return await call(session, "PUT", CONSENT, data=json.dumps(CHOSEN), **more)


async def test_the_notice_has_the_figures_of_this_service(
    store: Store, settings: Settings, key: PrivateKey
) -> None:
    settings = dataclasses.replace(settings, image_ttl_s=77, controller="Example Ltd")
    async with running_front_door(settings, key) as session:
        notice = (await call(session, "GET", "/v1/privacy/notice?lang=de")).json
        page = (await call(session, "GET", "/privacy?lang=de")).body.decode()
    assert notice["language"] == "de"
    assert notice["retention"]["image_s"] == 77
    for text in (notice["short"], page):
        assert "77 Sekunden" in text
    assert "Example Ltd" in page


@pytest.mark.parametrize(
    ("path", "header", "language"),
    [
        ("", "", "en"),
        ("", "de-AT,de;q=0.9,en;q=0.5", "de"),
        ("", "fr;q=0.9, zh-CN;q=0.8, en;q=0.7", "zh"),
        ("", "fr", "en"),
        ("", "de;q=x, ;;, zh", "zh"),
        ("?lang=zh", "de", "zh"),
        ("?lang=klingon", "de", "de"),
    ],
)
async def test_the_language_is_the_one_asked_for_or_preferred(
    front_door: aiohttp.ClientSession, path: str, header: str, language: str
) -> None:
    headers = {"Accept-Language": header}
    notice = await call(front_door, "GET", "/v1/privacy/notice" + path, headers=headers)
    assert notice.json["language"] == language


async def test_every_answer_links_the_notice(
    service: aiohttp.ClientSession, picture: bytes
) -> None:
    """Also that of a submission which is the result itself."""
    version = (await call(service, "GET", "/v1/privacy/notice")).json["version"]
    link = f'</privacy>; rel="privacy-policy"; title="{version}"'
    for wait in ("0", "5"):
        answer = await submit(service, picture, headers={"Prefer": f"wait={wait}"})
        assert answer.headers["Link"] == link


async def test_nothing_is_set_before_the_visitor_agrees(
    front_door: aiohttp.ClientSession, picture: bytes
) -> None:
    """Every page and every GET of the interface, a submission, a mere question."""
    paths = [route.path for route in ROUTES if isinstance(route, web.RouteDef)]
    for path in [path for path in paths if "{" not in path]:
        async with front_door.get(path) as response:
            assert "Set-Cookie" not in response.headers, path
    assert "Set-Cookie" not in (await submit(front_door, picture)).headers


async def test_agreeing_sets_one_strict_cookie_and_withdrawing_deletes_it(
    front_door: aiohttp.ClientSession,
) -> None:
    agreed = await _agree(front_door)
    (header,) = agreed.headers.getall("Set-Cookie")
    name, _, attributes = header.partition("=")
    assert name == "__Host-mayfly"
    for attribute in ("Secure", "HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=15552000"):
        assert attribute in attributes.split("; ")
    assert "Domain" not in attributes

    headers = {"Cookie": _cookie(agreed)}
    known = (await call(front_door, "GET", CONSENT, headers=headers)).json
    assert known["given"]["selections"] == CHOSEN
    assert known["given"]["notice"] == known["notice"]
    notice = await call(front_door, "GET", "/v1/privacy/notice", headers=headers)
    assert notice.json["language"] == "de"

    gone = await call(front_door, "DELETE", CONSENT, headers=headers)
    assert gone.status == 204
    (header,) = gone.headers.getall("Set-Cookie")
    assert header.startswith('__Host-mayfly="";')
    assert "Max-Age=0" in header
    assert "Secure" in header, "or a browser would not let go of it"


async def test_a_change_keeps_the_day_of_the_consent_and_a_new_notice_is_told(
    store: Store, settings: Settings, key: PrivateKey, front_door: aiohttp.ClientSession
) -> None:
    agreed = await _agree(front_door)
    headers = {"Cookie": _cookie(agreed)}
    changed = dataclasses.replace(settings, result_ttl_s=301)
    async with running_front_door(changed, key) as session:
        told = (await call(session, "GET", CONSENT, headers=headers)).json
        assert told["given"]["notice"] == agreed.json["notice"] != told["notice"]
        seen = (await _agree(session, headers=headers)).json
    assert seen["given"]["notice"] == seen["notice"] == told["notice"]
    assert seen["given"]["since"] == agreed.json["given"]["since"]


async def test_an_account_is_told_once_of_each_version(
    store: Store, settings: Settings, key: PrivateKey, picture: bytes
) -> None:
    """By every front door together, and after a restart as well."""

    async def told(settings: Settings) -> list[bool]:
        async with running_front_door(settings, key) as session:
            answers = [await submit(session, picture, headers=known) for _ in range(2)]
            assert "Mayfly-Notice" not in (await submit(session, picture)).headers
        return ["Mayfly-Notice" in answer.headers for answer in answers]

    known = {"X-API-Key": make_key(settings)}
    assert await told(settings) == [True, False]
    assert await told(settings) == [False, False]
    assert await told(dataclasses.replace(settings, result_ttl_s=301)) == [True, False]


@pytest.mark.parametrize("signal", [{"Sec-GPC": "1"}, {"DNT": "1"}])
async def test_a_browsers_no_is_a_no(
    front_door: aiohttp.ClientSession, signal: dict[str, str]
) -> None:
    refused = await _agree(front_door, headers=signal)
    assert (refused.status, refused.code) == (403, "browser_says_no")
    assert "Set-Cookie" not in refused.headers
    headers = {**signal, "Cookie": _cookie(await _agree(front_door))}
    state = await call(front_door, "GET", CONSENT, headers=headers)
    assert state.json["possible"] is False
    assert state.json["given"] is None
    assert "Max-Age=0" in state.headers["Set-Cookie"], "a cookie from before goes"
    notice = await call(front_door, "GET", "/v1/privacy/notice", headers=headers)
    assert notice.json["language"] == "en", "what was selected before is not used"


@pytest.mark.parametrize("value", ["", "x", "e30=", "bm90IGpzb24=", "é" * 9])
async def test_a_broken_cookie_is_none(front_door: aiohttp.ClientSession, value: str) -> None:
    headers = {"Cookie": f"__Host-mayfly={value}"}
    assert (await call(front_door, "GET", CONSENT, headers=headers)).json["given"] is None


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ("{", 400, "malformed_selections"),
        ('{"label":"coin"}', 422, "invalid_selections"),
        ('{"min_score":7}', 422, "invalid_selections"),
        ('{"model":"' + "x" * 5000 + '"}', 413, "too_many_bytes"),
    ],
)
async def test_selections_that_are_none_are_refused(
    front_door: aiohttp.ClientSession, body: str, status: int, code: str
) -> None:
    """Labels, for one: they say what is in an image."""
    answer = await call(front_door, "PUT", CONSENT, data=body)
    assert (answer.status, answer.code) == (status, code)
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize("path", PAGES)
async def test_pages_have_a_strict_policy(front_door: aiohttp.ClientSession, path: str) -> None:
    """Nothing from elsewhere, nothing inline, in no frame; and the page keeps to it."""
    page = await call(front_door, "GET", path)
    policy = dict(
        rule.strip().partition(" ")[::2]
        for rule in page.headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    for kind in ("script-src", "style-src", "connect-src"):
        assert policy[kind] == "'self'"
    assert "unsafe" not in str(policy)
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert page.headers["Referrer-Policy"] == "no-referrer"
    for inline in (b"<style", b" style=", b" onclick=", b"<script>"):
        assert inline not in page.body
