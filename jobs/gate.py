"""The gate that jobs go through: open while nothing could keep what passes it.

Looked at before the first job and again each minute. What is known to be unsafe closes it; what
cannot be known closes it too, unless the operator answers for it.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Literal, cast

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from jobs.memory import Memory
from jobs.settings import Settings, SettingsError
from jobs.store import STORE_ERRORS

log = logging.getLogger(__name__)
_EVERY_S = 60.0
_EVERY_S_CLOSED = 1.0
_WITHIN_S = 3.0

Verdict = Literal["unchecked", "verified", "unverified", "unsafe"]

_LOGS = (
    "slowlog-log-slower-than",
    "commandlog-execution-slower-than",
    "commandlog-request-larger-than",
    "commandlog-reply-larger-than",
)


_CONFIG = ("save", "shutdown-on-sigterm", "shutdown-on-sigint", "crash-log-enabled", *_LOGS)


class Gate:
    """Both sides have one: a front door behind a closed gate takes no jobs, a worker starts none.

    Attributes:
        redis: what is known of the server. ``unverified``: it tells too little, and the operator
            answers for it.
        memory: looks at this process as well, where there is one of its own.
        findings: what is unsafe now, each with what to change.
    """

    def __init__(self, redis: "Redis", settings: Settings) -> None:
        self._redis = redis
        self._allow_unverified = settings.allow_unverified_redis
        self._passed = False
        self._saves: int | None = None
        self.redis: Verdict = "unchecked"
        self.memory: Memory | None = None
        self.findings: list[str] = []

    @property
    def open(self) -> bool:
        return self.redis in ("verified", "unverified") and not self.findings

    async def look(self) -> None:
        """Look once. While Redis does not answer, what was known of it stays."""
        was = self.open, self.findings
        own = self.memory.findings() if self.memory else []
        try:
            async with asyncio.timeout(_WITHIN_S):
                self.redis, server = await self._look_at_redis()
        except STORE_ERRORS:
            self.findings = own if self.redis != "unsafe" else self.findings
        else:
            self.findings = own + server
        self._passed = self._passed or self.open
        if self._passed and was != (self.open, self.findings):
            told = {"redis": self.redis, "findings": self.findings}
            log.log(
                logging.INFO if self.open else logging.ERROR,
                "gate open" if self.open else "gate closed, no jobs are taken",
                extra={"fields": told},
            )

    async def serve(self) -> None:
        """Look again each minute, or each second while it is closed, until cancelled.

        Raises:
            SettingsError: it has never been open and cannot be opened as things are set up.
        """
        while True:
            self.refuse_start()
            await asyncio.sleep(_EVERY_S if self.open else _EVERY_S_CLOSED)
            await self.look()

    def refuse_start(self) -> None:
        """Raise a SettingsError with all findings if the gate has never been open."""
        if self.findings and not self._passed:
            raise SettingsError("this set-up could keep images.\n  " + "\n  ".join(self.findings))

    async def _look_at_redis(self) -> tuple[Verdict, list[str]]:
        found: list[str] = []
        known = True
        try:
            info = await self._redis.info()
            found += [*_of_info(info), *self._of_snapshots(int(info.get("rdb_saves", 0)))]
        except ResponseError:  # of which "no permission" is one
            known = False
        try:
            config = await cast(Any, self._redis).config_get(*_CONFIG)  # its stubs are wrong
            found += _of_config(config)
            known = known and "save" in config
        except ResponseError:
            known = False
        if not known and not self._allow_unverified:
            found.append(
                "Redis does not tell how it is set up. Let its user call INFO and CONFIG GET (ACL: "
                "+info +config|get). Where a provider forbids that and promises the set-up itself, "
                "--allow-unverified-redis (MAYFLY_ALLOW_UNVERIFIED_REDIS=true) takes it unseen."
            )
        return ("unsafe" if found else "verified" if known else "unverified"), found

    def _of_snapshots(self, saves: int) -> list[str]:
        """Somebody may call BGSAVE whatever the settings say."""
        if self._saves is not None and saves > self._saves:
            return [
                "Redis has written a snapshot while jobs may have been in it. Delete its file, "
                "start Redis again, and forbid SAVE and BGSAVE by ACL."
            ]
        self._saves = saves  # it begins again with the server
        return []


def _of_info(info: Mapping[str, Any]) -> list[str]:
    """What a server's own report tells of it."""
    told = info.get
    version = int(str(told("redis_version", "0")).partition(".")[0])
    checks = [
        (version < 7, "Redis is older than 7, which the scripts need. Use Redis 7 or Valkey."),
        (told("aof_enabled") != 0, "Redis writes an append-only file. Set `appendonly no`."),
        (
            told("rdb_bgsave_in_progress") or told("aof_rewrite_in_progress"),
            "Redis is writing a snapshot. Wait, delete its file, and find who asked for it.",
        ),
        (
            told("role") != "master",
            "Redis is a replica: another server has a copy of all. Use one that stands alone.",
        ),
        (
            told("connected_slaves"),
            "Redis has replicas, which hold copies. Detach them (`REPLICAOF NO ONE` there).",
        ),
        (
            told("cluster_enabled"),
            "Redis runs as a cluster, which the scripts cannot use. Set `cluster-enabled no`.",
        ),
        (told("maxmemory") == 0, "Redis may use all memory. Set `maxmemory`, for example to 1gb."),
        (
            told("maxmemory_policy", "noeviction") != "noeviction",
            "Redis evicts jobs when it is full. Set `maxmemory-policy noeviction`.",
        ),
    ]
    return [text for is_so, text in checks if is_so]


def _of_config(config: Mapping[str, str]) -> list[str]:
    """What its configuration would make it write."""
    found = []
    if config.get("save"):
        found.append('Redis writes snapshots to a disk. Set `save ""`.')
    found += [
        f"Redis saves when it is stopped. Set `{name} nosave`."
        for name in ("shutdown-on-sigterm", "shutdown-on-sigint")
        if "save" in config.get(name, "").split()
    ]
    logs = [name for name in _LOGS if name in config]
    found += [
        f"Redis logs slow or large commands with their arguments. Set `{name} -1`."
        for name in logs[1:] or logs  # Valkey knows the first by another name, too
        if int(config[name]) >= 0
    ]
    if config.get("crash-log-enabled") == "yes":
        found.append("Redis prints what it holds when it crashes. Set `crash-log-enabled no`.")
    return found
