"""Accounts and their API keys: what the operator enters, and the hash of what was handed out.

A key reads ``mayfly_<id>_<secret>``: the id finds it, is shown in lists and may be logged; the
whole is stored as its SHA-256 only and compared in constant time.
"""

import asyncio
import contextlib
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Iterable
from datetime import UTC, date, datetime

import msgspec
from sqlalchemy import Connection, Engine, delete, exists, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from api.database import accounts, keys, prepare

log = logging.getLogger(__name__)

SUBMIT, OPERATOR = SCOPES = ("submit", "operator")
_LOOK_AGAIN_S = 2.0  # so long a revoked key may still open a front door


class Account(msgspec.Struct, frozen=True):
    """All that is held about a customer. `news_since`: when it agreed to be sent news, if it did.
    The objections: its jobs are not counted; its log lines carry neither address nor key."""

    id: str
    label: str
    contact: str
    news_since: date | None
    no_statistics: bool
    no_logs: bool
    created: date


class Key(msgspec.Struct, frozen=True):
    """A key as it is stored. `expires` is in seconds since 1970."""

    id: str
    account: Account
    sha256: str
    scopes: tuple[str, ...]
    limits: str
    created: date
    expires: int | None

    @property
    def alive(self) -> bool:
        return self.expires is None or self.expires > time.time()


def create_account(database: Connection, label: str, contact: str = "", news: bool = False) -> str:
    """Returns the new account's id."""
    account_id = secrets.token_hex(8)
    database.execute(
        insert(accounts).values(
            id=account_id,
            label=label,
            contact=contact,
            news_since=today() if news else None,
            no_statistics=False,
            no_logs=False,
            created=today(),
        )
    )
    return account_id


def create_key(
    database: Connection,
    account_id: str,
    scopes: Iterable[str] = (SUBMIT,),
    limits: str = "",
    expires: int | None = None,
) -> str:
    """Returns the new key, which is not stored. The account must exist."""
    key_id = secrets.token_hex(4)
    key = f"mayfly_{key_id}_{secrets.token_urlsafe(32)}"
    database.execute(
        insert(keys).values(
            id=key_id,
            account=account_id,
            sha256=_sha256(key),
            scopes=",".join(scopes),
            limits=limits,
            created=today(),
            expires=expires,
        )
    )
    return key


def change_account(database: Connection, account_id: str, changes: dict[str, object]) -> None:
    """Set columns of an account's record."""
    database.execute(update(accounts).where(accounts.c.id == account_id).values(changes))


def erase_account(database: Connection, account_id: str) -> None:
    """The record and its keys."""
    database.execute(delete(accounts).where(accounts.c.id == account_id))


def expire_key(database: Connection, key_id: str, at: int) -> None:
    """It is accepted until then and no longer."""
    database.execute(update(keys).where(keys.c.id == key_id).values(expires=at))


def sweep(database: Connection) -> None:
    """Erase keys that have expired, and with its last key an account: it has no purpose left."""
    database.execute(delete(keys).where(keys.c.expires <= int(time.time())))
    orphaned = ~exists().where(keys.c.account == accounts.c.id)
    database.execute(delete(accounts).where(orphaned))


def list_keys(database: Connection) -> list[Key]:
    """Every key with its account, the oldest first."""
    rows = database.execute(
        select(accounts, *(column.label(f"key_{column.name}") for column in keys.c))
        .join_from(keys, accounts)
        .order_by(keys.c.created, keys.c.id)
    )
    return [
        Key(
            id=row.key_id,
            account=Account(*row[: len(accounts.c)]),
            sha256=row.key_sha256,
            scopes=tuple(row.key_scopes.split(",")),
            limits=row.key_limits,
            created=row.key_created,
            expires=row.key_expires,
        )
        for row in rows
    ]


class Accounts:
    """The keys as they were two seconds ago, so that requests need not ask the database, and go
    on when it does not answer."""

    def __init__(self, database: Engine) -> None:
        self.database = database
        self._pepper = b""
        self._keys: dict[str, Key] = {}

    async def open(self) -> None:
        """Raises SettingsError when the database cannot be used."""
        self._pepper = await asyncio.to_thread(prepare, self.database)
        await self.look()

    async def serve(self) -> None:
        """Look again every two seconds until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_AGAIN_S)
            try:
                await self.look()
            except SQLAlchemyError as error:
                log.warning("database does not answer", exc_info=error)

    async def look(self) -> None:
        self._keys = await asyncio.to_thread(self._read)

    def _read(self) -> dict[str, Key]:
        with self.database.begin() as database:
            found = list_keys(database)
            if not all(key.alive for key in found):
                sweep(database)
        return {key.id: key for key in found}

    def find(self, text: str) -> Key | None:
        """The key that `text` is; None for one that is unknown, revoked or expired."""
        with contextlib.suppress(ValueError):
            _, key_id, _ = text.split("_", 2)
            key = self._keys.get(key_id)
            if key and hmac.compare_digest(_sha256(text), key.sha256) and key.alive:
                return key
        return None

    def has_operator(self) -> bool:
        """Whether there is a key that opens what is the operator's."""
        return any(OPERATOR in key.scopes and key.alive for key in self._keys.values())

    def keys_of(self, account: Account) -> list[Key]:
        return [key for key in self._keys.values() if key.account.id == account.id]

    def subject(self, text: str) -> str:
        """What Redis may know of an account or address: 32 hex digits that who has only Redis can
        neither turn back nor guess."""
        return hmac.digest(self._pepper, text.encode(), "sha256").hex()[:32]

    async def close(self) -> None:
        await asyncio.to_thread(self.database.dispose)


def today() -> date:
    """In UTC, as all days that are stored."""
    return datetime.now(UTC).date()


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
