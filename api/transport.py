"""How a request came here: from which address, and encrypted or not."""

import asyncio
import logging
import os
import ssl
import stat
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from api.keys import SETTINGS
from jobs.problems import Problem
from jobs.settings import Settings, SettingsError, is_loopback

log = logging.getLogger(__name__)
_LOOK_EVERY_S = 1.0
# What probes and Prometheus ask from inside, without a certificate: nothing of anybody's is in it.
_PLAIN_ROUTES = ("/healthz", "/readyz", "/metrics")

Address = IPv4Address | IPv6Address
_CLIENT = web.RequestKey("client", str)  # its address, found out once
_PEER = web.RequestKey("peer", tuple[Address | None])  # the other end's


def client_address(request: web.Request) -> str:
    """The address that a request came from, for logs, limits and quotas.

    It is the peer's own, unless the peer is one of ``MAYFLY_TRUSTED_PROXIES``: then
    ``X-Forwarded-For`` is read from its end to the first address that is no such proxy. What other
    peers send in that header is ignored, so nobody chooses their address.
    """
    if _CLIENT not in request:
        request[_CLIENT] = _client_address(request)
    return request[_CLIENT]


def _client_address(request: web.Request) -> str:
    peer = _peer(request)
    if peer is None:
        return "unknown"
    hops = ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")
    while _is_trusted(request, peer) and hops:
        before = _address(hops.pop())
        if before is None:
            break
        peer = before
    return str(peer)


def came_encrypted(request: web.Request) -> bool:
    """Whether the client spoke TLS: with us, or with a trusted proxy that says so."""
    if request.secure:
        return True
    peer = _peer(request)
    return peer is not None and _is_trusted(request, peer) and _forwarded_as(request) == {"https"}


@web.middleware
async def refuse_plain(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Nothing is taken that crossed a network in the clear.

    Without TLS of its own the service hears this machine, and proxies that are trusted and say
    that their client spoke TLS.
    """
    if not came_encrypted(request) and request.path not in _PLAIN_ROUTES:
        peer = _peer(request)
        local = peer is not None and peer.is_loopback
        if not local or (_is_trusted(request, peer) and _forwarded_as(request)):
            raise Problem(
                403,
                "tls_required",
                "This service is spoken to over TLS only: use its https address. Behind a proxy, "
                "its operator names the proxy in MAYFLY_TRUSTED_PROXIES and lets it set "
                "X-Forwarded-Proto.",
                {"Connection": "close"},
            )
    return await handler(request)


def _peer(request: web.Request) -> Address | None:
    """The address at the other end of the connection, None for a socket without one."""
    if _PEER not in request:
        request[_PEER] = (_address(request.remote or ""),)
    return request[_PEER][0]


def _is_trusted(request: web.Request, peer: Address | None) -> bool:
    networks = request.app[SETTINGS].proxy_networks()
    return peer is not None and any(peer in network for network in networks)


def _forwarded_as(request: web.Request) -> set[str]:
    """The schemes that the proxies on the way saw, as the last one tells it."""
    schemes = ",".join(request.headers.getall("X-Forwarded-Proto", [])).split(",")
    return {scheme.strip().lower() for scheme in schemes if scheme.strip()}


def _address(text: str) -> Address | None:
    """An IP address, without port, brackets and zone; IPv4 that came as IPv6 is IPv4."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


class Certificate:
    """The front door's certificate and key. Renewed files are taken over without a restart.

    Attributes:
        context: for the server; TLS 1.2 or newer. New connections get the newest certificate.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = certificate, key
        self._seen = self._state()
        try:
            self.context = self._newest = _context(*self._files)
        except ssl.SSLError:
            raise SettingsError(
                "MAYFLY_TLS_CERT and MAYFLY_TLS_KEY do not hold a certificate chain and its "
                "private key, both PEM, the key without a password."
            ) from None
        except OSError as error:
            raise SettingsError(
                f"MAYFLY_TLS_CERT or MAYFLY_TLS_KEY cannot be read ({error.strerror})."
            ) from None
        self.context.sni_callback = self._hand_over  # called for clients without SNI as well

    async def watch(self) -> None:
        """Look for renewed files each second, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            self.look()

    def look(self) -> None:
        """Take over the files if they changed and belong together; else the old ones go on."""
        if (state := self._state()) == self._seen:
            return
        self._seen = state
        try:
            self._newest = _context(*self._files)
        except OSError as error:  # SSLError is one; half of a renewal looks like this, too
            log.warning("new certificate is not usable, the old one goes on", exc_info=error)
        else:
            log.info("certificate renewed")

    def _hand_over(self, connection: Any, _: str | None, __: ssl.SSLContext) -> None:
        connection.context = self._newest

    def _state(self) -> list[tuple[int, int, int] | None]:
        return [_file_state(path) for path in self._files]


def _file_state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):  # a pipe, which is read once
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(certificate, key, password=lambda: "")  # never ask on a terminal
    return context


def load_certificate(settings: Settings) -> Certificate | None:
    """The certificate that the settings name; None for plain HTTP where that is allowed.

    Raises:
        SettingsError: the front door would speak plain HTTP with a network; the text says what to
            change.
    """
    if settings.tls_cert and settings.tls_key:
        return Certificate(settings.tls_cert, settings.tls_key)
    if is_loopback(settings.host) or settings.trusted_proxies:
        return None
    raise SettingsError(
        f"The front door would listen on {settings.host} without TLS. Set MAYFLY_TLS_CERT and "
        "MAYFLY_TLS_KEY (`mayfly serve --tls self-signed` makes its own, for a trial), or listen "
        "on 127.0.0.1, or name the proxy that ends TLS in MAYFLY_TRUSTED_PROXIES."
    )
