"""Calls over HTTP, and what may come of them."""

import asyncio
import contextlib
import random
import ssl
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec

from jobs import __version__
from jobs.sealing import SealError

_RETRIED = (408, 409, 429, 502, 503, 504)  # slow, leased, too many, and what proxies say
_jitter = random.SystemRandom().uniform

BROKEN = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError)


class ServiceError(Exception):
    """The service refused or failed a job, or cannot be spoken to at all.

    Attributes:
        status: HTTP status; 0 when there was no answer that could be trusted or understood.
        code: the problem's stable code. Of our own there are ``certificate_refused``,
            ``tls_failed`` and ``answer_unknown``.
        detail: the problem's sentence.
        retry_after_s: how long the service asks to wait before the next attempt.
    """

    def __init__(self, status: int, code: str, detail: str, retry_after_s: float = 0) -> None:
        super().__init__(f"{detail} ({status} {code})" if status else f"{detail} ({code})")
        self.status = status
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s


FAILURES = (ServiceError, aiohttp.ClientError, TimeoutError)  # all that a call may end with


class Answer(NamedTuple):
    """What came back, below 400."""

    status: int
    body: bytes


class Calls:
    """Calls to one service, all of them idempotent; the arguments are `Client`'s."""

    def __init__(
        self, url: str, api_key: str | None, patience_s: float, ca_file: Path | None
    ) -> None:
        trust: ssl.SSLContext | bool = True
        if ca_file:
            trust = ssl.create_default_context()
            trust.load_verify_locations(ca_file)
        self._session = aiohttp.ClientSession(
            url,
            headers={"X-API-Key": api_key} if api_key else {},
            timeout=aiohttp.ClientTimeout(total=60, sock_connect=5),
            # no limit of its own: whoever calls decides how many at a time
            connector=aiohttp.TCPConnector(limit=0, ssl=trust),
        )
        self._patience_s = patience_s
        self._reader = uuid.uuid4().hex  # one for all leases, so that a fetch may be repeated

    async def close(self) -> None:
        await self._session.close()

    async def call(self, method: str, path: str, token: str | None = None, **more: Any) -> Answer:
        """`once`, repeated with growing pauses until it is answered for good or patience ends."""
        deadline = time.monotonic() + self._patience_s
        pause = 0.2
        while True:
            wait = pause
            try:
                return await self.once(method, path, token, **more)
            except ServiceError as error:
                if error.status not in _RETRIED:
                    raise
                failure: Exception = error
                wait = max(pause, error.retry_after_s)
            except BROKEN as error:
                failure = error
            if time.monotonic() + wait > deadline:
                raise failure
            await asyncio.sleep(wait + _jitter(0, pause / 2))
            pause = min(pause * 2, 5)

    async def once(
        self,
        method: str,
        path: str,
        token: str | None = None,
        *,
        query: Mapping[str, str] | None = None,
        body: Callable[[], aiohttp.Payload] | None = None,
    ) -> Answer:
        """One attempt.

        Args:
            token: of the job that is spoken of.
            body: makes what is sent, anew for each attempt.

        Raises:
            ServiceError: refused, or nothing that a repetition could mend.
            aiohttp.ClientError, TimeoutError: the connection failed.
        """
        owner = {"Authorization": f"Bearer {token}", "Idempotency-Key": self._reader}
        try:
            async with self._session.request(
                method,
                path,
                headers=owner if token else None,
                params=query,
                data=body() if body else None,
            ) as response:
                answer = Answer(response.status, await response.read())
                if answer.status >= 400:
                    raise _refusal(answer, response.headers.get("Retry-After"))
                return answer
        except aiohttp.ClientConnectorCertificateError as error:
            raise _untrusted(error.certificate_error) from None
        except aiohttp.ClientConnectorSSLError as error:
            if isinstance(error.os_error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
                raise  # a server that goes away
            raise ServiceError(
                0,
                "tls_failed",
                f"TLS with the service fails: {getattr(error.os_error, 'reason', None) or error}. "
                "Check whether its address begins with http:// or with https://.",
            ) from None


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """Where an answer is read: one that has another form than ours ends the call at once."""
    try:
        yield
    except (msgspec.MsgspecError, SealError, ValueError, LookupError, TypeError):
        raise ServiceError(
            0,
            "answer_unknown",
            "The service answers in a form that is not known here. Compare the versions: this "
            f"client is of Mayfly {__version__}, and /v1/info tells the service's.",
        ) from None


def _untrusted(error: Exception) -> ServiceError:
    reason = getattr(error, "verify_message", None) or str(error)
    return ServiceError(
        0,
        "certificate_refused",
        f"The service's certificate is not trusted: {reason}. If it is the right one, give the "
        "file with it, or with the authority that signed it (`ca_file`, --ca); and call the "
        "service by a name that the certificate is for.",
    )


def _refusal(answer: Answer, retry_after: str | None) -> ServiceError:
    # ``Retry-After`` may be a date, which no part of Mayfly sends
    wait = float(retry_after) if retry_after and retry_after.isdecimal() else 0.0
    try:
        document = msgspec.json.decode(answer.body)
        return ServiceError(answer.status, document["code"], document["detail"], wait)
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError):
        detail = "The answer is not one of this service's."
        return ServiceError(answer.status, "unknown", detail, wait)
