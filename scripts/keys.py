"""`mayfly keys`: accounts and their API keys, in the database that the front doors read."""

import argparse
import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from sqlalchemy import Connection

from api import accounts
from api.database import open_database, prepare
from api.limits import parse_limits
from jobs.settings import Settings, SettingsError

_DAY_S = 86_400


def create(options: argparse.Namespace) -> int:
    """Make a key, and an account for it unless it names one."""
    parse_limits(options.limits, "--limits")
    with _database() as database:
        if options.account is None:
            if not options.label:
                raise SettingsError("--label says whose account it is; --account adds to one.")
            account = accounts.create_account(
                database, options.label, options.contact, options.news
            )
        else:
            account = options.account
            if account not in {key.account.id for key in accounts.list_keys(database)}:
                raise SettingsError(f"No account {account}. `mayfly keys list` shows all.")
        expires = None if options.days is None else int(time.time() + options.days * _DAY_S)
        scopes = options.scope or [accounts.SUBMIT]
        key = accounts.create_key(database, account, scopes, options.limits, expires)
    _show(key)
    return 0


def show(_: argparse.Namespace) -> int:
    """Every key, without its secret."""
    with _database() as database:
        found = accounts.list_keys(database)
    line = "{:10}{:18}{:22}{:24}{:18}{:18}{}"
    print(line.format("KEY", "ACCOUNT", "LABEL", "CONTACT", "SCOPES", "EXPIRES", "LIMITS"))
    for key in found:
        owner = key.account
        expires = datetime.fromtimestamp(key.expires, UTC) if key.expires is not None else None
        print(
            line.format(
                key.id,
                owner.id,
                owner.label,
                owner.contact,
                ",".join(key.scopes),
                f"{expires:%Y-%m-%d %H:%M}" if expires else "never",
                key.limits,
            )
        )
    return 0


def revoke(options: argparse.Namespace) -> int:
    """End a key; an account goes with its last one."""
    with _database() as database:
        key = _find(database, options.key)
        accounts.expire_key(database, key.id, 0)
        accounts.sweep(database)
    print(f"{key.id} is revoked; front doors refuse it within 2 s")
    return 0


def rotate(options: argparse.Namespace) -> int:
    """Make a key that may do the same; the old one ends, at once or after a while."""
    with _database() as database:
        old = _find(database, options.key)
        key = accounts.create_key(database, old.account.id, old.scopes, old.limits, old.expires)
        end = int(time.time() + options.keep_hours * 3600)
        accounts.expire_key(database, old.id, min(end, old.expires or end))
        accounts.sweep(database)
    _show(key)
    return 0


@contextlib.contextmanager
def _database() -> Iterator[Connection]:
    """One transaction."""
    engine = open_database(Settings.from_env())
    try:
        prepare(engine)
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def _find(database: Connection, key_id: str) -> accounts.Key:
    for key in accounts.list_keys(database):
        if key.id == key_id:
            return key
    raise SettingsError(f"No key {key_id}. `mayfly keys list` shows all.")


def _show(key: str) -> None:
    print(f"{key}  give it to the account; it is not stored and not shown again")
