"""How much one account or address may ask for, counted in Redis by the `limits` library.

A window begins with a subject's first request and is one counter with a TTL: nothing in Redis
says when somebody asked, and `Retry-After` is exact. Across the end of a window as many as twice
the limit can pass.
"""

import asyncio
import math
import time
from typing import Any, NamedTuple

from aiohttp import web
from limits import RateLimitItem, parse_many
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter

from api.callers import Caller
from api.keys import LIMIT_HEADERS
from jobs.problems import Problem
from jobs.settings import Settings, SettingsError
from jobs.store import LIMITS_PREFIX, Store

_WITHIN_S = 3.0


class _Window(NamedTuple):
    passed: bool
    left: int
    reset_s: int
    limit: RateLimitItem


class Limits:
    """Counts requests. Methods raise one of `STORE_ERRORS` when Redis does not answer."""

    def __init__(self, store: Store, settings: Settings) -> None:
        pool: Any = store.redis.connection_pool  # the library's types know plain options only
        self._counters = FixedWindowRateLimiter(
            RedisStorage(
                "async+redis://",  # the pool knows where
                implementation="redispy",
                key_prefix=LIMITS_PREFIX,
                connection_pool=pool,
            )
        )
        self._anonymous = settings.anonymous
        self._of_address = parse_limits(settings.address_limits, "MAYFLY_ADDRESS_LIMITS")
        self._of_key = parse_limits(settings.key_limits, "MAYFLY_KEY_LIMITS")

    async def submission(self, request: web.Request, asking: Caller, what: str = "submit") -> None:
        """Count a job that is about to be uploaded; see `spend`. A key has its own limits or the
        common ones. Where only this machine needs no key, it has none. Anything else that costs
        work is counted apart, by the name `what`, under the same limits."""
        if asking.key:
            limits = parse_limits(asking.key.limits, "limits") or self._of_key
        else:
            limits = self._of_address if self._anonymous == "limited" else []
        await self.spend(request, limits, what, asking.subject)

    async def spend(
        self, request: web.Request, limits: list[RateLimitItem], what: str, whose: str
    ) -> None:
        """Count one request and let its answer say what is left.

        Raises:
            Problem: 429 ``quota_exceeded`` with ``Retry-After``, when nothing was left.
        """
        windows = []
        async with asyncio.timeout(_WITHIN_S):
            for limit in limits:
                passed = await self._counters.hit(limit, what, whose)
                reset, left = await self._counters.get_window_stats(limit, what, whose)
                reset_s = max(1, math.ceil(reset - time.time()))
                windows.append(_Window(passed, left, reset_s, limit))
        if not windows:
            return
        nearest = min(windows, key=lambda window: (window.passed, window.left, -window.reset_s))
        request[LIMIT_HEADERS] = {
            "RateLimit-Limit": str(nearest.limit.amount),
            "RateLimit-Remaining": str(nearest.left),
            "RateLimit-Reset": str(nearest.reset_s),
            "RateLimit-Policy": ", ".join(f"{w.amount};w={w.get_expiry()}" for w in limits),
        }
        if not nearest.passed:
            raise Problem(
                429,
                "quota_exceeded",
                f"More requests than the {nearest.limit} that are allowed. "
                f"Go on in {nearest.reset_s} s.",
                {"Retry-After": str(nearest.reset_s)},
            )


LIMITS = web.AppKey("limits", Limits)


def parse_limits(text: str, name: str) -> list[RateLimitItem]:
    """Limits in the library's notation, such as ``10/minute; 500/day``; none for an empty text.

    Raises:
        SettingsError: the text cannot be understood; the error calls it `name`.
    """
    try:
        return parse_many(text) if text.strip() else []
    except ValueError:
        raise SettingsError(
            f"{name} takes limits such as 10/minute or 10/minute; 500/day."
        ) from None
