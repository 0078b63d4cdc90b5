"""Usage statistics: moved from Redis to the database, and shown to the operator."""

import asyncio
import contextlib
import csv
import io
import logging
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import msgspec
from aiohttp import web
from sqlalchemy import Connection, Engine, delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from api.accounts import today
from api.callers import operator
from api.database import open_database, usage, usage_batches
from api.keys import ACCOUNTS
from jobs.problems import Problem
from jobs.settings import Settings
from jobs.store import STORE_ERRORS, USAGE_TTL_S, Store
from jobs.usage import Batch, Counts, Row

log = logging.getLogger(__name__)

MOVE_EVERY_S = 10.0  # what Redis takes with it when it dies is not older
_SHOWN_DAYS = 30
_DAY_0 = date(1970, 1, 1)
_INSERT: dict[str, Callable[..., Any]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}


class UsageMover:
    """Takes counts out of Redis into the database; any number of front doors may do so.

    A batch keeps its id until the database has it, and the database takes each id once, so that
    it does not matter which of them dies in between.
    """

    def __init__(self, store: Store, database: Engine, moved: Callable[[Row], None]) -> None:
        self._store = store
        self._database = database
        self._moved = moved

    async def serve(self) -> None:
        """Move every ten seconds until cancelled."""
        while True:
            try:
                await self.move()
            except (*STORE_ERRORS, SQLAlchemyError) as error:
                log.warning("usage statistics wait", exc_info=error)
            await asyncio.sleep(MOVE_EVERY_S)

    async def move(self) -> None:
        """Raises one of `STORE_ERRORS` or an SQLAlchemyError; nothing is lost by it."""
        while batch := await self._store.take_usage():
            added = await asyncio.to_thread(_add, self._database, batch)
            for row in batch.rows if added else ():
                self._moved(row)
            await self._store.drop_usage(batch)


USAGE = web.AppKey("usage", UsageMover)


async def settle(settings: Settings) -> None:
    """Move what is left, for who is about to stop Redis."""
    store, database = Store.open(settings), open_database(settings)
    try:
        await UsageMover(store, database, lambda _: None).move()
    except (*STORE_ERRORS, SQLAlchemyError) as error:
        log.error("the last usage statistics are lost", exc_info=error)
    finally:
        database.dispose()
        await store.close()


async def show(request: web.Request) -> web.Response:
    """The counts of some days, as JSON or CSV; of the last 30 by default."""
    operator(request)
    until = _day(request, "until", today())
    since = _day(request, "since", until - timedelta(days=_SHOWN_DAYS - 1))
    as_csv = _format(request) == "csv"
    with contextlib.suppress(*STORE_ERRORS):  # then what is in Redis is not in it yet
        await request.app[USAGE].move()
    rows = await asyncio.to_thread(read_usage, request.app[ACCOUNTS].database, since, until)
    lines = [(row.day, row.model, row.outcome, *row.counts) for row in rows]
    names = ("day", "model", "outcome", *Counts._fields)
    if as_csv:
        text = io.StringIO(newline="")
        csv.writer(text).writerows([names, *lines])
        headers = {"Content-Disposition": f'attachment; filename="usage-{since}-{until}.csv"'}
        return web.Response(text=text.getvalue(), content_type="text/csv", headers=headers)
    body = {
        "since": since,
        "until": until,
        "usage": [dict(zip(names, line, strict=True)) for line in lines],
    }
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


def read_usage(database: Engine, since: date, until: date) -> list[Row]:
    """Both days included, the oldest first."""
    within = select(usage).where(usage.c.day.between(since, until))
    with database.connect() as connection:
        rows = connection.execute(within.order_by(*usage.primary_key)).all()
    return [Row(day, model, outcome, Counts(*counts)) for day, model, outcome, *counts in rows]


def _add(database: Engine, batch: Batch) -> bool:
    """In one transaction; False when the batch is in already."""
    with database.begin() as connection:
        insert = _INSERT[connection.dialect.name]
        mark = insert(usage_batches).values(id=batch.id, day=today()).on_conflict_do_nothing()
        if connection.scalar(mark.returning(usage_batches.c.id)) is None:
            return False
        for row in batch.rows:
            _add_row(connection, insert, row)
        # An older one cannot come again: its key in Redis has gone.
        old = today() - timedelta(seconds=USAGE_TTL_S) - timedelta(days=1)
        connection.execute(delete(usage_batches).where(usage_batches.c.day < old))
    return True


def _add_row(connection: Connection, insert: Callable[..., Any], row: Row) -> None:
    counts = row.counts._asdict()
    statement = insert(usage).values(day=row.day, model=row.model, outcome=row.outcome, **counts)
    summed = {name: usage.c[name] + statement.excluded[name] for name in counts}
    connection.execute(
        statement.on_conflict_do_update(index_elements=list(usage.primary_key), set_=summed)
    )


def _day(request: web.Request, name: str, default: date) -> date:
    if name not in request.query:
        return default
    try:
        day = date.fromisoformat(request.query[name])
    except ValueError:
        day = _DAY_0
    if day <= _DAY_0:
        raise Problem(400, "day_malformed", f"{name} takes a day such as 2026-01-31.")
    return day


def _format(request: web.Request) -> str:
    name = request.query.get("format", "json")
    if name not in ("json", "csv"):
        raise Problem(400, "format_unknown", "The formats are json and csv; take one of them.")
    return name
