"""The handlers that tell about the service itself."""

from importlib.resources import files

import msgspec
from aiohttp import web

from api import consent, openapi
from api.asked import preferred_languages
from api.callers import may_go_without_key
from api.keys import GATE, METRICS, NOTICES, PULSE, SETTINGS
from jobs import __version__, formats
from jobs.contract import WEBP_COST
from jobs.problems import Problem
from jobs.sealing import key_text

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}


async def models(request: web.Request) -> web.Response:
    """What can be asked for: every served model with its labels, prompts, outputs and licence."""
    return _json(
        {
            "default": request.app[SETTINGS].default_model,
            "models": list(request.app[PULSE].models().values()),
        }
    )


async def info(request: web.Request) -> web.Response:
    """Version, limits and retention, as they are configured here."""
    settings = request.app[SETTINGS]
    key = request.app[PULSE].sealing_key()
    behind, gate = settings.trusted_proxies, request.app[GATE]
    return _json(
        {
            "version": __version__,
            "limits": {
                "max_image_bytes": settings.max_image_bytes,
                "max_body_bytes": settings.max_body_bytes,
                "max_images": settings.max_images,
                "max_pixels": settings.max_pixels,
                "max_webp_pixels": int(settings.max_pixels / WEBP_COST),
                "of_key": settings.key_limits,
                "of_address": settings.address_limits if settings.anonymous == "limited" else "",
                "upload_timeout_s": settings.upload_timeout_s,
            },
            "retention": {
                "image_ttl_s": settings.image_ttl_s,
                "result_ttl_s": settings.result_ttl_s,
                "lease_s": settings.lease_s,
                "lease_grace_s": settings.lease_grace_s,
            },
            "transport": {
                "tls": "here" if settings.tls_cert else "proxy" if behind else "loopback",
                "trusted_proxies": list(settings.trusted_proxies),
            },
            "guard": {
                "redis": gate.redis,
                "swap": gate.memory.swap if gate.memory else "unknown",
            },
            "formats": list(formats.FORMATS),
            "api_key_required": not may_go_without_key(request),
            "sealing_key": {"id": key.id, "x25519": key_text(key.raw).strip()},
        }
    )


async def healthz(_: web.Request) -> web.Response:
    """The process is up."""
    return _json({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """A job can be accepted and answered now; otherwise 503 says what is missing."""
    if reason := why_not_ready(request.app):
        raise Problem(503, "not_ready", reason, {"Retry-After": "1"})
    return _json({"status": "ready"})


def why_not_ready(app: web.Application) -> str | None:
    """What keeps jobs for the default model from being answered; None when nothing does."""
    fleet, default = app[PULSE].fleet, app[SETTINGS].default_model
    gate = app[GATE]
    if gate.findings:
        return "The set-up could keep images, so no jobs are taken: " + " ".join(gate.findings)
    if fleet is None or not gate.open:
        return "Redis does not answer; check MAYFLY_REDIS_URL."
    if not fleet.workers:
        return "No worker is running; start one with `mayfly worker`."
    key = app[PULSE].sealing_key()
    ours = [worker for worker in fleet.workers if key.id in worker.key_ids]
    if not ours:
        return "The workers have another sealing key than this front door; give both one pair."
    if not any(m.name == default and m.ready for worker in ours for m in worker.models):
        return f"No worker serves the default model {default}; check MAYFLY_MODELS."
    return None


async def metrics(request: web.Request) -> web.Response:
    """Counters and gauges in Prometheus text format."""
    return web.Response(
        body=request.app[METRICS].render(),
        headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
    )


async def description(_: web.Request) -> web.Response:
    """This interface as OpenAPI 3.1."""
    return _json(openapi.DOCUMENT)


async def docs(_: web.Request) -> web.Response:
    """The same for people."""
    return _page("docs.html")


async def index(_: web.Request) -> web.Response:
    """The page where a person draws a box and sees what is found."""
    return _page("index.html")


async def usage(_: web.Request) -> web.Response:
    """The page with the operator's charts; what is in them it asks for with the operator's key."""
    return _page("usage.html")


async def privacy(request: web.Request) -> web.Response:
    """The privacy notice, and what a person can do about their data."""
    return _html(request.app[NOTICES].page(_language(request)))


async def notice(request: web.Request) -> web.Response:
    """The privacy notice as JSON."""
    return _json(request.app[NOTICES].by_language[_language(request)])


def _language(request: web.Request) -> str:
    """Asked for, selected before, or preferred by the browser."""
    given = consent.given(request)
    selected = given.selections.language if given else None
    asked = (request.query.get("lang", ""), selected or "", *preferred_languages(request))
    return request.app[NOTICES].language(*asked)


async def page_file(request: web.Request) -> web.Response:
    """A script or style sheet of the pages."""
    return _page(request.match_info["name"])


def _page(name: str) -> web.Response:
    source = files("api").joinpath("pages", name)
    if not source.is_file():
        raise web.HTTPNotFound
    return _html(source.read_bytes(), _PAGE_TYPES[name.rpartition(".")[2]])


def _html(body: bytes, content_type: str = "text/html") -> web.Response:
    return web.Response(
        body=body,
        content_type=content_type,
        charset="utf-8",
        headers={"Content-Security-Policy": _PAGE_POLICY, "Cache-Control": "no-cache"},
    )


def _json(body: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")
