"""The application: settings in, app out. The route list is the table of contents."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from api import consent, convert, rights, service, usage
from api import jobs as job_handlers
from api.access_log import AccessLog
from api.accounts import Accounts
from api.database import open_database
from api.keys import (
    ACCESS_LOG,
    ACCOUNTS,
    CHANGES,
    CONVERTING,
    GATE,
    METRICS,
    NOTICES,
    PULSE,
    SETTINGS,
    STORE,
    TOLD,
)
from api.limits import LIMITS, Limits
from api.metrics import Metrics
from api.middleware import add_headers, observe, render_problems
from api.notice import Notices
from api.transport import refuse_plain
from api.usage import USAGE, UsageMover
from api.watch import Changes, Pulse
from jobs.gate import Gate
from jobs.process import background
from jobs.sealing import PublicKey
from jobs.settings import Settings
from jobs.store import Store

ROUTES = [
    web.post("/v1/jobs", job_handlers.submit),
    web.get("/v1/jobs/{id}", job_handlers.show, allow_head=False),
    web.get("/v1/jobs/{id}/result", job_handlers.fetch, allow_head=False),
    web.get("/v1/jobs/{id}/events", job_handlers.follow, allow_head=False),
    web.delete("/v1/jobs/{id}", job_handlers.erase),
    web.post("/v1/convert", convert.convert),
    web.get("/v1/models", service.models),
    web.get("/v1/info", service.info),
    web.get("/v1/usage", usage.show),
    web.get("/v1/privacy/notice", service.notice),
    web.get("/v1/privacy/data", rights.show),
    web.patch("/v1/privacy/data", rights.correct),
    web.delete("/v1/privacy/data", rights.erase),
    web.put("/v1/privacy/objections", rights.object_to),
    web.get("/v1/privacy/consent", consent.show),
    web.put("/v1/privacy/consent", consent.agree),
    web.delete("/v1/privacy/consent", consent.withdraw),
    web.get("/healthz", service.healthz),
    web.get("/readyz", service.readyz),
    web.get("/metrics", service.metrics),
    web.get("/openapi.json", service.description),
    web.get("/", service.index),
    web.get("/docs", service.docs),
    web.get("/privacy", service.privacy),
    web.get("/usage", service.usage),
    web.get(r"/pages/{name:[a-z]+\.(js|css)}", service.page_file),
]


def make_app(settings: Settings, *public_keys: PublicKey) -> web.Application:
    """Build the front door. Does no I/O: Redis and the database are reached when the app starts."""
    app = web.Application(middlewares=[observe, render_problems, refuse_plain])
    store = Store.open(settings)
    pulse = Pulse(store, public_keys)
    app[SETTINGS] = settings
    app[STORE] = store
    app[GATE] = Gate(store.redis, settings)
    app[CHANGES] = Changes(store)
    app[PULSE] = pulse
    app[METRICS] = Metrics(pulse)
    app[CONVERTING] = asyncio.Lock()
    app[NOTICES] = Notices(settings)
    app[TOLD] = set()
    app[ACCESS_LOG] = AccessLog(settings)
    app[ACCOUNTS] = Accounts(open_database(settings))
    app[LIMITS] = Limits(store, settings)
    app[USAGE] = UsageMover(store, app[ACCOUNTS].database, app[METRICS].count)
    app.add_routes(ROUTES)
    app.on_response_prepare.append(add_headers)
    app.on_shutdown.append(_let_go)
    app.cleanup_ctx.append(_watch)
    return app


async def _watch(app: web.Application) -> AsyncIterator[None]:
    app[ACCESS_LOG].open()
    await app[GATE].look()
    await app[ACCOUNTS].open()
    await app[PULSE].beat()
    parts = (CHANGES, PULSE, ACCESS_LOG, ACCOUNTS, USAGE)
    async with background(*(app[part].serve() for part in parts)):
        yield
    app[ACCESS_LOG].close()
    await app[ACCOUNTS].close()
    with contextlib.suppress(OSError):
        await app[STORE].close()


async def _let_go(app: web.Application) -> None:
    app[CHANGES].close()
