"""What a request says besides its body: which job it owns, and how it wants to be answered."""

import contextlib
import hmac
import re
from typing import NamedTuple

from aiohttp import web

from api.keys import JOB
from jobs import formats
from jobs.problems import Problem, job_not_found
from jobs.sealing import Capability

MAX_WAIT_S = 30.0


def _token(request: web.Request) -> str | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def brought_capability(request: web.Request) -> Capability | None:
    """The capability that the client made for a job it submits, if it did."""
    token = _token(request)
    if token is None:
        return None
    try:
        return Capability.from_token(token)
    except ValueError:
        raise Problem(
            400,
            "token_malformed",
            "A token that you bring must be base64url of 32 random bytes, 43 characters. "
            "Leave it out and one is made.",
        ) from None


class SealedWish(NamedTuple):
    """What must be known of a payload that only the workers can open."""

    model: str
    bulk: bool
    key_id: str


def sealed_wish(request: web.Request) -> SealedWish:
    """From the query of a submission that its client sealed; its token must come along."""
    if _token(request) is None:
        raise Problem(
            400,
            "token_required",
            "A sealed payload is bound to its job: make 32 random bytes and send them as "
            "Authorization: Bearer <base64url>.",
        )
    query = request.query
    model, key_id, priority = (query.get(n, "") for n in ("model", "key", "priority"))
    if not model or not key_id or priority not in ("", "interactive", "bulk"):
        raise Problem(
            400,
            "query_malformed",
            "Send ?model=NAME&key=ID with a sealed payload: its model, and the id of the sealing "
            "key as /v1/info shows it. priority may be interactive or bulk.",
        )
    return SealedWish(model, priority == "bulk", key_id)


def owned_capability(request: web.Request) -> Capability:
    """The capability that owns the job in the path; a wrong one looks like an unknown job."""
    token = _token(request)
    if token is None:
        raise Problem(
            401,
            "token_required",
            "Send the job's token: Authorization: Bearer <token>.",
            {"WWW-Authenticate": "Bearer"},
        )
    try:
        capability = Capability.from_token(token)
    except ValueError:
        raise job_not_found() from None
    if not hmac.compare_digest(capability.id.encode(), _bytes(request.match_info["id"])):
        raise job_not_found()
    request[JOB] = capability.id
    return capability


def reader(request: web.Request) -> str:
    """Who reads under a lease; empty for a plain reader."""
    key = request.headers.get("Idempotency-Key", "")
    if len(key) > 255:
        raise Problem(
            400, "idempotency_key_too_long", "Idempotency-Key takes at most 255 characters."
        )
    return key


def wanted_format(request: web.Request) -> formats.Format:
    """How the result is to be written."""
    name = request.query.get("format", "mayfly")
    if name not in formats.FORMATS:
        raise Problem(
            400,
            "format_unknown",
            f"The formats are {', '.join(formats.FORMATS)}; take one of them.",
        )
    return formats.FORMATS[name]


def wait_seconds(request: web.Request) -> float:
    """How long the request may wait for its answer, 0 to 30 s."""
    text = request.query.get("wait", "0")
    if not re.fullmatch(r"\d{1,2}(\.\d+)?", text) or float(text) > MAX_WAIT_S:
        raise Problem(400, "wait_malformed", "wait takes seconds from 0 to 30.")
    return float(text)


def preferred_wait(request: web.Request) -> float:
    """RFC 7240: what cannot be understood is ignored, what is too much is cut."""
    found = re.search(r"\bwait=\"?(\d{1,6})\b", ",".join(request.headers.getall("Prefer", [])))
    return min(float(found[1]), MAX_WAIT_S) if found else 0.0


def preferred_languages(request: web.Request) -> list[str]:
    """What the browser asks for, best first, without regions: ``de-AT`` is ``de``."""
    weighted = []
    for part in request.headers.get("Accept-Language", "").split(",")[:20]:
        name, _, weight = part.partition(";q=")
        with contextlib.suppress(ValueError):
            weighted.append((-float(weight or 1), name.strip().partition("-")[0].lower()))
    return [name for _, name in sorted(weighted, key=lambda one: one[0])]


def refuse_partial(request: web.Request) -> None:
    """A browser that looks ahead, or a tool that resumes, must not use up a result."""
    if "Range" in request.headers or _is_prefetch(request):
        raise Problem(
            400,
            "not_fetchable_in_part",
            "A result is delivered whole and once. Ask without Range and prefetch headers.",
        )


def _bytes(text: str) -> bytes:
    """Text from outside as it came, whatever its encoding was."""
    return text.encode(errors="surrogateescape")


def _is_prefetch(request: web.Request) -> bool:
    hints = (request.headers.get(name, "") for name in ("Sec-Purpose", "Purpose", "X-Moz"))
    return any("prefetch" in hint.lower() or "preview" in hint.lower() for hint in hints)
