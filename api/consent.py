"""What the page may keep in a browser, if the visitor agrees: one cookie with their selections.

The cookie is the consent: without it nothing is known, deleting it withdraws. It is always
``Secure``; on plain loopback browsers that count that as secure take it (Chromium, Firefox), others
keep nothing. The page never reads it, so that it is ``HttpOnly`` as well.
"""

import base64
import contextlib
import time
from typing import Annotated as Hint

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from api.keys import NOTICES, SETTINGS
from api.notice import COOKIE_DAYS
from api.upload import read_json
from jobs.contract import Output, Unit
from jobs.problems import Problem, unprocessable

COOKIE = "__Host-mayfly"  # browsers take this prefix from this very host over TLS only

_MAX_BYTES = 2048  # browsers keep 4 kB, as base64
_Name = Hint[str, Meta(max_length=100)]


class Selections(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a visitor chose on the page. Labels and prompts say what is in images: never kept."""

    language: _Name | None = None
    model: _Name | None = None
    format: _Name | None = None
    min_score: Unit | None = None
    outputs: Hint[tuple[Output, ...], Meta(max_length=3)] = ()


class Given(Struct, frozen=True):
    """A consent: since which day (UTC), and which version of the notice was seen last."""

    since: str
    notice: str
    selections: Selections


class State(Struct, frozen=True):
    """How things stand for a visitor; `possible` is false where the browser says no for them."""

    possible: bool
    given: Given | None
    notice: str


_given = msgspec.json.Decoder(Given)
_selections = msgspec.json.Decoder(Selections)


def given(request: web.Request) -> Given | None:
    """The consent that a request carries; None for none, a broken one, and a browser's no."""
    if _says_no(request):
        return None
    with contextlib.suppress(ValueError, msgspec.DecodeError):
        return _given.decode(base64.urlsafe_b64decode(request.cookies.get(COOKIE, "")))
    return None


def forget(response: web.StreamResponse) -> None:
    """Delete the cookie."""
    _set(response, "", 0)


async def show(request: web.Request) -> web.Response:
    """How things stand; a cookie from before the browser said no goes."""
    response = _state(request, given(request))
    if COOKIE in request.cookies and _says_no(request):
        forget(response)
    return response


async def agree(request: web.Request) -> web.Response:
    """Agree, or change selections; the notice as it is now counts as seen."""
    if _says_no(request):
        raise Problem(
            403,
            "browser_says_no",
            "Your browser sends Global Privacy Control or Do Not Track, which counts as a no. "
            "To keep selections, switch it off for this site.",
        )
    try:
        chosen = _selections.decode(await read_json(request, request.app[SETTINGS], _MAX_BYTES))
    except msgspec.ValidationError as error:
        raise unprocessable("invalid_selections", f"The selections do not fit: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Problem(400, "malformed_selections", "The selections are not valid JSON.") from None
    before = given(request)
    since = before.since if before else time.strftime("%Y-%m-%d", time.gmtime())
    now = Given(since, request.app[NOTICES].version, chosen)
    response = _state(request, now)
    value = base64.urlsafe_b64encode(msgspec.json.encode(now)).decode()
    _set(response, value, COOKIE_DAYS * 86_400)
    return response


async def withdraw(_: web.Request) -> web.Response:
    """Withdraw: the cookie is deleted. Doing it again changes nothing."""
    response = web.Response(status=204)
    forget(response)
    return response


def _says_no(request: web.Request) -> bool:
    return "1" in (request.headers.get("Sec-GPC"), request.headers.get("DNT"))


def _state(request: web.Request, now: Given | None) -> web.Response:
    state = State(not _says_no(request), now, request.app[NOTICES].version)
    return web.Response(body=msgspec.json.encode(state), content_type="application/json")


def _set(response: web.StreamResponse, value: str, seconds: int) -> None:
    response.set_cookie(
        COOKIE, value, max_age=seconds, path="/", secure=True, httponly=True, samesite="Strict"
    )
