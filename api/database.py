"""What the front door keeps for longer than minutes: accounts, hashes of their keys, daily counts.
Nothing of a job is in it.

SQLite in the data folder, or any database that `MAYFLY_DATABASE_URL` names. Calls block, so the
event loop makes them on a thread.
"""

import contextlib
import os
import secrets
from typing import Any

from sqlalchemy import (
    URL,
    BigInteger,
    Boolean,
    Column,
    Date,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    insert,
    make_url,
    select,
)
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    IntegrityError,
    NoSuchModuleError,
    SQLAlchemyError,
)

from jobs.settings import Settings, SettingsError
from jobs.usage import Counts

_tables = MetaData()

accounts = Table(
    "accounts",
    _tables,
    Column("id", String(16), primary_key=True),
    Column("label", Text, nullable=False),
    Column("contact", Text, nullable=False),
    Column("news_since", Date),  # when it agreed to be sent news; empty: it did not
    Column("no_statistics", Boolean, nullable=False),
    Column("no_logs", Boolean, nullable=False),
    Column("created", Date, nullable=False),
)

keys = Table(
    "keys",
    _tables,
    Column("id", String(8), primary_key=True),
    Column("account", ForeignKey(accounts.c.id, ondelete="CASCADE"), nullable=False, index=True),
    Column("sha256", String(64), nullable=False),
    Column("scopes", Text, nullable=False),
    Column("limits", Text, nullable=False),
    Column("created", Date, nullable=False),
    Column("expires", BigInteger),  # seconds since 1970; empty: never
)

notices_seen = Table(  # the version of the privacy notice that an account was told of
    "notices_seen",
    _tables,
    Column("account", ForeignKey(accounts.c.id, ondelete="CASCADE"), primary_key=True),
    Column("version", String(8), nullable=False),
)

usage = Table(
    "usage",
    _tables,
    Column("day", Date, primary_key=True),
    Column("model", String(100), primary_key=True),
    Column("outcome", String(100), primary_key=True),
    *(Column(name, BigInteger, nullable=False) for name in Counts._fields),
)

usage_batches = Table(  # those that are in `usage` already
    "usage_batches",
    _tables,
    Column("id", String(16), primary_key=True),
    Column("day", Date, nullable=False),
)

_pepper = Table(
    "pepper",
    _tables,
    Column("id", Integer, primary_key=True),
    Column("value", String(64), nullable=False),
)


def open_database(settings: Settings) -> Engine:
    """Without I/O.

    Raises:
        SettingsError: `MAYFLY_DATABASE_URL` is of no use; the text says what to change.
    """
    file = settings.data_folder() / "mayfly.db"
    url = settings.database_url or URL.create("sqlite", database=str(file))
    try:
        engine = create_engine(make_url(url), pool_pre_ping=True, hide_parameters=True)
    except (ArgumentError, NoSuchModuleError):
        raise SettingsError(
            "MAYFLY_DATABASE_URL must begin with sqlite:/// or postgresql://."
        ) from None
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"MAYFLY_DATABASE_URL needs the package {error.name}. "
            "For PostgreSQL: pip install 'mayfly[postgresql]'."
        ) from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
    return engine


def prepare(engine: Engine) -> bytes:
    """Make what is missing; returns the pepper of hashes, 32 bytes that never go into Redis.

    Raises:
        SettingsError: the database cannot be reached or written; the text says what to change.
    """
    try:
        if engine.dialect.name == "sqlite" and engine.url.database:
            _make_private(engine.url.database)
        for _ in range(len(_tables.tables)):
            with contextlib.suppress(DatabaseError):  # another front door made one meanwhile
                _tables.create_all(engine)
                break
        return _read_pepper(engine)
    except (OSError, SQLAlchemyError) as error:
        raise SettingsError(
            f"The database cannot be used ({type(error).__name__}). Check MAYFLY_DATABASE_URL, or "
            "let MAYFLY_DATA_DIR name a folder that this user can write to."
        ) from None


def _read_pepper(engine: Engine) -> bytes:
    try:
        with engine.begin() as connection:
            found = connection.scalar(select(_pepper.c.value))
            if found is None:
                found = secrets.token_hex(32)
                connection.execute(insert(_pepper).values(id=1, value=found))
    except IntegrityError:  # another front door was faster
        with engine.begin() as connection:
            found = connection.scalar(select(_pepper.c.value))
    return bytes.fromhex(str(found))


def _make_private(file: str) -> None:
    """The file and a folder that is made for it are its user's alone."""
    os.makedirs(os.path.dirname(file) or ".", mode=0o700, exist_ok=True)
    os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))


def _set_up_sqlite(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")  # what is erased is overwritten in the file
