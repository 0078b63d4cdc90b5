"""A person's rights over what is held about them: see it, take it along, correct it, object, erase.

With an API key these reach the account, its live jobs and the log lines of the requesting address;
without one the log lines and the cookie.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import date
from typing import Annotated as Hint
from typing import TypeVar

import msgspec
from aiohttp import web
from msgspec import UNSET, Meta, Struct, UnsetType
from sqlalchemy import Connection, Engine, select

from api import consent
from api.access_log import Visit
from api.accounts import Account, Key, change_account, erase_account, today
from api.callers import Caller, caller
from api.database import notices_seen
from api.keys import ACCESS_LOG, ACCOUNTS, ANONYMOUS, SETTINGS, STORE
from api.limits import LIMITS, parse_limits
from api.transport import client_address
from api.upload import read_json
from jobs.problems import Problem, unprocessable
from jobs.process import timestamp

_LIMITS = parse_limits("30/minute", "the limit of requests about data")
_MAX_BYTES = 4096
_PARTS = ("jobs", "logs", "consent", "account")
_BY_DEFAULT = "jobs,logs,consent"  # the account goes only when it is named
_Body = TypeVar("_Body")


class KeyShown(Struct, frozen=True):
    """A key as its account may see it; the secret is not known."""

    id: str
    scopes: tuple[str, ...]
    limits: str
    created: date
    expires: str | None


class LiveJob(Struct, frozen=True):
    id: str
    status: str
    expires_at: str


class Held(Struct, frozen=True):
    """All that is held about whoever asks. `notice_seen` is the version of the privacy notice that
    the account was told of, `cookie` what their browser sent."""

    account: Account | None
    notice_seen: str | None
    keys: list[KeyShown]
    jobs: list[LiveJob]
    log_lines: list[Visit]
    cookie: consent.Given | None


class Changes(Struct, frozen=True, forbid_unknown_fields=True):
    """Corrections; what is left out stays. `news` gives or withdraws consent to be sent news."""

    label: Hint[str, Meta(min_length=1, max_length=200)] | UnsetType = UNSET
    contact: Hint[str, Meta(max_length=320)] | UnsetType = UNSET
    news: bool | UnsetType = UNSET


class Objections(Struct, frozen=True, forbid_unknown_fields=True):
    """True: its jobs are not counted; its requests' log lines name nobody."""

    statistics: bool
    logs: bool


class Receipt(Struct, frozen=True):
    """What was erased, without saying what it was."""

    erased_at: str
    jobs: int
    log_lines: int
    consent: bool
    account: bool


async def show(request: web.Request) -> web.Response:
    """Everything, to read and to take along."""
    asking = await _asking(request)
    account = asking.key.account if asking.key else None
    held = Held(
        account=account,
        notice_seen=await asyncio.to_thread(_notice_seen, request.app[ACCOUNTS].database, account),
        keys=[_shown(key) for key in request.app[ACCOUNTS].keys_of(account)] if account else [],
        jobs=await _live_jobs(request, asking),
        log_lines=await request.app[ACCESS_LOG].lines_of(client_address(request)),
        cookie=consent.given(request),
    )
    response = _json(held)
    response.headers["Content-Disposition"] = 'attachment; filename="mayfly-data.json"'
    return response


async def correct(request: web.Request) -> web.Response:
    """Change the account's record."""
    key = _with_key(await _asking(request))
    changes = await _read(request, Changes)
    columns: dict[str, object] = {
        name: value
        for name, value in (("label", changes.label), ("contact", changes.contact))
        if value is not UNSET
    }
    if changes.news is not UNSET:
        columns["news_since"] = (key.account.news_since or today()) if changes.news else None
    return await _change(request, key, columns)


async def object_to(request: web.Request) -> web.Response:
    """Set the account's objections; from now on, they bind."""
    key = _with_key(await _asking(request))
    wanted = await _read(request, Objections)
    columns: dict[str, object] = {"no_statistics": wanted.statistics, "no_logs": wanted.logs}
    return await _change(request, key, columns)


async def erase(request: web.Request) -> web.Response:
    """Erase what is named, and say how much it was."""
    asking = await _asking(request)
    parts = request.query.get("what", _BY_DEFAULT).split(",")
    if not set(parts) <= set(_PARTS):
        raise Problem(400, "part_unknown", f"what takes {', '.join(_PARTS)}, comma-separated.")
    if "account" in parts:
        _with_key(asking)
    jobs = lines = 0
    if "jobs" in parts and asking.key:
        outcomes = [
            await request.app[STORE].erase(job.id) for job in await _live_jobs(request, asking)
        ]
        jobs = outcomes.count("erased")
    if "logs" in parts:
        lines = await request.app[ACCESS_LOG].erase(client_address(request))
        request[ANONYMOUS] = True  # this request leaves no line of it either
    if asking.key and "account" in parts:
        account_id = asking.key.account.id
        await _in_database(request, lambda database: erase_account(database, account_id))
    elif asking.key and "consent" in parts:
        account_id = asking.key.account.id
        withdrawn: dict[str, object] = {"news_since": None}
        await _in_database(request, lambda db: change_account(db, account_id, withdrawn))
    receipt = Receipt(
        erased_at=timestamp(time.time()),
        jobs=jobs,
        log_lines=lines,
        consent="consent" in parts,
        account="account" in parts,
    )
    response = _json(receipt)
    if "consent" in parts:
        consent.forget(response)
    return response


async def _asking(request: web.Request) -> Caller:
    asking = caller(request)
    await request.app[LIMITS].spend(request, _LIMITS, "privacy", asking.subject)
    return asking


def _with_key(asking: Caller) -> Key:
    if asking.key is None:
        raise Problem(
            401, "api_key_required", "This is about an account. Send its key as X-API-Key."
        )
    return asking.key


async def _live_jobs(request: web.Request, asking: Caller) -> list[LiveJob]:
    if asking.key is None:
        return []
    store = request.app[STORE]
    found = []
    for job_id in await store.jobs_of(asking.subject):
        state = await store.state(job_id)
        if state.status not in ("gone", "unknown"):
            expires_at = timestamp(time.time() + state.ttl_ms / 1000)
            found.append(LiveJob(job_id, state.status, expires_at))
    return found


async def _read(request: web.Request, kind: type[_Body]) -> _Body:
    body = await read_json(request, request.app[SETTINGS], _MAX_BYTES)
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise unprocessable("invalid_body", f"The body does not fit: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Problem(400, "malformed_body", "The body is not valid JSON.") from None


async def _change(request: web.Request, key: Key, columns: dict[str, object]) -> web.Response:
    """Write, and answer with the record as it is now."""
    if columns:
        await _in_database(request, lambda db: change_account(db, key.account.id, columns))
    return _json(msgspec.structs.replace(key.account, **columns))


async def _in_database(request: web.Request, change: Callable[[Connection], None]) -> None:
    """One transaction, which this front door knows of at once."""
    accounts = request.app[ACCOUNTS]

    def write() -> None:
        with accounts.database.begin() as connection:
            change(connection)

    await asyncio.to_thread(write)
    await accounts.look()


def _notice_seen(database: Engine, account: Account | None) -> str | None:
    if account is None:
        return None
    with database.connect() as connection:
        version: str | None = connection.scalar(
            select(notices_seen.c.version).where(notices_seen.c.account == account.id)
        )
    return version


def _shown(key: Key) -> KeyShown:
    expires = timestamp(key.expires) if key.expires is not None else None
    return KeyShown(key.id, key.scopes, key.limits, key.created, expires)


def _json(body: Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")
