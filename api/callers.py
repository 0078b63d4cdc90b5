"""Whose request it is: an account's, by its key, or that of an address."""

import ipaddress
from dataclasses import dataclass

from aiohttp import web

from api.accounts import OPERATOR, SUBMIT, Key
from api.keys import ACCOUNTS, SETTINGS
from api.transport import client_address
from jobs.problems import Problem
from jobs.settings import is_loopback


@dataclass(frozen=True)
class Caller:
    """`subject` is what Redis knows it by: a keyed hash of the account or address."""

    subject: str
    key: Key | None


def presented_key(request: web.Request) -> Key | None:
    """The known key that the request carries; None for none and for one that is not good."""
    text = request.headers.get("X-API-Key", "")
    return request.app[ACCOUNTS].find(text) if text else None


def caller(request: web.Request) -> Caller:
    """Who asks, known or not.

    Raises:
        Problem: 401 ``api_key_unknown`` for a key that is not good.
    """
    accounts = request.app[ACCOUNTS]
    if key := presented_key(request):
        return Caller(accounts.subject(f"account {key.account.id}"), key)
    if request.headers.get("X-API-Key"):
        raise _unauthorized("api_key_unknown", "This key is unknown, revoked or expired.")
    return Caller(accounts.subject(f"address {_network(client_address(request))}"), None)


def submitter(request: web.Request) -> Caller:
    """Who submits a job.

    Raises:
        Problem: 401 without a key where one is needed, 403 with one that may not submit.
    """
    asking = caller(request)
    if asking.key is None and not may_go_without_key(request):
        raise _unauthorized(
            "api_key_required",
            "This service takes jobs from known accounts. Send your key as X-API-Key.",
        )
    return _in_scope(asking, SUBMIT)


def operator(request: web.Request) -> Caller:
    """Who reads what is the operator's: a key of that scope, or, as long as there is none, anybody
    on this machine.

    Raises:
        Problem: 401 or 403.
    """
    asking = caller(request)
    if asking.key is None and (request.app[ACCOUNTS].has_operator() or not _is_here(request)):
        raise _unauthorized(
            "api_key_required",
            "This is for the operator. Send a key of the scope `operator` as X-API-Key.",
        )
    return _in_scope(asking, OPERATOR)


def may_go_without_key(request: web.Request) -> bool:
    """Whether this request may submit without a key."""
    match request.app[SETTINGS].anonymous:
        case "limited":
            return True
        case "loopback":
            return _is_here(request)
        case _:
            return False


def _in_scope(asking: Caller, scope: str) -> Caller:
    if asking.key and scope not in asking.key.scopes:
        raise Problem(403, "scope_missing", f"This key does not have the scope `{scope}`.")
    return asking


def _unauthorized(code: str, detail: str) -> Problem:
    return Problem(401, code, detail)


def _is_here(request: web.Request) -> bool:
    """Whether it comes from this machine, and not from a proxy on it that nobody named."""
    relayed = "X-Forwarded-For" in request.headers or "Forwarded" in request.headers
    return is_loopback(client_address(request)) and not relayed


def _network(address: str) -> str:
    """One household, one subject: whoever has an IPv6 address has at least 2**64 of them."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address
