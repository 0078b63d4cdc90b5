"""Round every request: errors become problem documents, one log line, headers that protect."""

import logging
import time

import msgspec
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from sqlalchemy.exc import SQLAlchemyError

from api.access_log import Visit, shown_address, shown_browser, shown_referrer
from api.callers import presented_key
from api.keys import (
    ACCESS_LOG,
    ANONYMOUS,
    JOB,
    LIMIT_HEADERS,
    METRICS,
    NEW_NOTICE,
    NOTICES,
    SETTINGS,
)
from api.transport import came_encrypted, client_address
from jobs.problems import Problem, store_unavailable
from jobs.process import timestamp
from jobs.store import STORE_ERRORS

log = logging.getLogger(__name__)
_PERMISSIONS = "camera=(), microphone=(), geolocation=(), payment=(), usb=(), browsing-topics=()"


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """One line and one count a request: the route's template, never the path or the query."""
    begin, start = time.time(), time.monotonic()
    status = 499  # the client went away
    sent = 0
    try:
        response = await handler(request)
        status = response.status
        sent = response.body_length or response.content_length or 0  # streamed, or yet to be
        return response
    finally:
        method = request.method if request.method in hdrs.METH_ALL else "other"
        resource = request.match_info.route.resource
        route = resource.canonical if resource else "unmatched"
        seconds = time.monotonic() - start
        request.app[METRICS].observe(method, route, status, seconds)
        request.app[ACCESS_LOG].write(
            Visit(
                time=timestamp(begin),
                **_visitor(request),
                method=method,
                route=route,
                status=status,
                bytes_in=request.content.total_bytes,
                bytes_out=sent,
                job=request.get(JOB),
            )
        )


def _visitor(request: web.Request) -> dict[str, str | None]:
    """What a line says of whom it is about; nothing if the request asks for that."""
    key = presented_key(request)
    if request.get(ANONYMOUS) or (key and key.account.no_logs):
        return {"ip": None, "browser": None, "referrer": None}
    return {
        "ip": shown_address(client_address(request), request.app[SETTINGS].access_log_ip),
        "browser": shown_browser(request.headers.get(hdrs.USER_AGENT)),
        "referrer": shown_referrer(request.headers.get(hdrs.REFERER)),
    }


@web.middleware
async def render_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error has the same shape (RFC 9457), whoever raised it."""
    try:
        return await handler(request)
    except Problem as problem:
        return problem_response(problem)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return problem_response(_from_http(error))
    except SQLAlchemyError as error:
        log.warning("database does not answer", exc_info=error)
        return problem_response(
            Problem(
                503,
                "database_unavailable",
                "The database of accounts and counts does not answer. Try again in a moment.",
                {"Retry-After": "5"},
            )
        )
    except STORE_ERRORS as error:
        log.warning("store does not answer", exc_info=error)
        return problem_response(store_unavailable())
    except Exception:
        log.exception("request failed")
        return problem_response(
            Problem(500, "internal_error", "The front door failed; the fault is on our side.")
        )


def _from_http(error: web.HTTPException) -> Problem:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return Problem(
            405, "method_not_allowed", f"This address takes {allowed}.", {"Allow": allowed}
        )
    if error.status == 404:
        return Problem(404, "not_found", "No such address. See /docs for those there are.")
    return Problem(error.status, "refused", error.reason)


def problem_response(problem: Problem) -> web.Response:
    response = web.Response(
        status=problem.status,
        body=msgspec.json.encode(problem.document()),
        content_type="application/problem+json",
        headers=problem.headers,
    )
    if problem.headers.get("Connection") == "close":
        response.force_close()
    return response


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Answers are nobody else's business: not a cache's, not another site's."""
    response.headers.update(request.get(LIMIT_HEADERS, {}))
    if NEW_NOTICE in request:
        response.headers["Mayfly-Notice"] = "new"
    response.headers["Server"] = "mayfly"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    version = request.app[NOTICES].version  # RFC 6903 for the link, RFC 8288 for its title
    response.headers["Link"] = f'</privacy>; rel="privacy-policy"; title="{version}"'
    response.headers["X-Frame-Options"] = "DENY"
    response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    response.headers["Permissions-Policy"] = _PERMISSIONS
    if (seconds := request.app[SETTINGS].hsts_s) and came_encrypted(request):
        response.headers["Strict-Transport-Security"] = f"max-age={seconds}"
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers.setdefault(
        "Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"
    )
