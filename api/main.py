"""The front door's process: listens until it is told to stop."""

import asyncio
import logging
from typing import Any

from aiohttp import web
from yarl import URL

from api.app import make_app
from api.keys import GATE
from api.service import why_not_ready
from api.transport import load_certificate
from jobs.memory import Memory
from jobs.process import background, harden, stop_signal, until_stopped
from jobs.sealing import PublicKey
from jobs.settings import Settings, SettingsError

log = logging.getLogger(__name__)


async def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    if settings.worker_public_key_file is None:
        raise SettingsError(
            "MAYFLY_WORKER_PUBLIC_KEY_FILE is not set. "
            "Make a key pair with `mayfly keys worker` and give the front door its public half."
        )
    app = make_app(settings, *PublicKey.load(settings.worker_public_key_file))
    certificate = load_certificate(settings)
    harden()
    app[GATE].memory = Memory(settings)
    runner = make_runner(app, settings)
    await runner.setup()
    try:
        app[GATE].refuse_start()
        site = web.TCPSite(
            runner,
            settings.host,
            settings.port,
            reuse_port=settings.reuse_port,
            ssl_context=certificate.context if certificate else None,
        )
        try:
            await site.start()
        except OSError as error:
            raise SettingsError(
                f"Cannot listen on {settings.host}:{settings.port} ({error.strerror}). "
                "Choose another --port, or stop what listens there."
            ) from None
        stopping = stop_signal()
        watching = [certificate.watch()] if certificate else []
        announcing = _announce(app, _url(settings, runner))
        async with background(announcing, app[GATE].serve(), *watching) as tasks:
            await until_stopped(stopping, tasks)
    finally:
        await runner.cleanup()
    log.info("front door stopped")
    return 0


def make_runner(app: web.Application, settings: Settings) -> web.AppRunner:
    """How the app is served: every connection is bounded in time, whatever its client does."""
    return _Runner(
        app,
        access_log=None,  # the middleware writes the line
        auto_decompress=False,  # a few kB must not become hundreds of MB
        keepalive_timeout=settings.upload_timeout_s,  # it also ends headers that never end
        max_line_size=65_536,  # a request with many boxes in the query
        lingering_time=3,  # for the rest of a body that was refused
        shutdown_timeout=settings.drain_s,
    )


class _Runner(web.AppRunner):
    """Gives every request an address: on ``CONNECT`` without one aiohttp 3.14 forgets the
    connection, which then stays open as long as the client likes."""

    async def setup(self) -> None:
        await super().setup()
        assert self.server  # noqa: S101 - for the type checker; there is one after `setup`
        make = self.server.request_factory

        def make_request(message: Any, *more: Any) -> web.BaseRequest:
            if message.url is None:
                message = message._replace(path="/", url=URL("/"))
            return make(message, *more)

        self.server.request_factory = make_request


async def _announce(app: web.Application, url: str) -> None:
    """Say so on stdout when a job can be accepted and answered; until then, why not."""
    told = None
    while reason := why_not_ready(app):
        if reason != told:
            log.info("waiting", extra={"fields": {"reason": reason}})
            told = reason
        await asyncio.sleep(0.1)
    print(f"ready {url}", flush=True)  # noqa: T201 - what scripts and people wait for


def _url(settings: Settings, runner: web.AppRunner) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{'https' if settings.tls_cert else 'http'}://{host}:{runner.addresses[0][1]}"
