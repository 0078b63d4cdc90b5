"""Statistics: each job counted once, whatever breaks on the way to the database."""

import asyncio
import contextlib
import dataclasses
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from api.accounts import create_account, create_key, list_keys, today
from api.database import open_database, prepare
from api.usage import UsageMover, read_usage
from jobs.sealing import PrivateKey
from jobs.settings import Settings
from jobs.store import USAGE_BATCH_KEY, USAGE_KEY, USAGE_TTL_S, Store
from jobs.usage import Counts, Finished, Row
from tests.calls import call, submit
from tests.conftest import running_front_door
from tests.contract.test_accounts import make_key

MODEL = "exemplar"
ONE = Finished("annotated", Counts(1, 2, 300, 4, 50, 60, 70))


@pytest.fixture
def database(settings: Settings) -> Iterator[Engine]:
    engine = open_database(settings)
    prepare(engine)
    yield engine
    engine.dispose()


async def _finish(store: Store, number: int, finished: Finished | None = ONE, **more: Any) -> bool:
    job_id = f"{number:032x}"
    await store.submit(job_id, b"sealed", MODEL, bulk=False, subject="x", **more)
    return await store.finish(job_id, b"result", finished)


def _all(database: Engine) -> list[Row]:
    return read_usage(database, today(), today())


async def test_a_job_is_counted_once_by_who_finishes_it(
    store: Store, valkey: "redis.Redis", database: Engine
) -> None:
    """Not by a second worker that finishes it late, and not when it was erased or objected to."""
    assert await _finish(store, 1)
    assert not await store.finish(f"{1:032x}", b"again", ONE)
    assert not await store.finish(f"{2:032x}", b"erased", ONE)
    assert await _finish(store, 3, counted=False)
    assert 0 < int(valkey.ttl(USAGE_KEY)) <= USAGE_TTL_S  # type: ignore[arg-type]
    await UsageMover(store, database, lambda _: None).move()
    assert _all(database) == [Row(today(), MODEL, "annotated", ONE.counts)]
    assert not valkey.exists(USAGE_KEY, USAGE_BATCH_KEY)


async def test_days_models_and_outcomes_are_counted_apart_and_added_up(
    store: Store, valkey: "redis.Redis", database: Engine
) -> None:
    mover = UsageMover(store, database, lambda _: None)
    failed = Finished("image_undecodable", Counts(jobs=1, images=1, bytes=9))
    for number, finished in enumerate([ONE, failed, ONE, ONE]):
        await _finish(store, number, finished)
        if number % 2:
            await mover.move()
    valkey.hset(USAGE_KEY, "19000 other annotated jobs", "5")
    valkey.expire(USAGE_KEY, 60)
    await mover.move()
    summed = Counts(*(3 * count for count in ONE.counts))
    assert _all(database) == [
        Row(today(), MODEL, "annotated", summed),
        Row(today(), MODEL, "image_undecodable", failed.counts),
    ]
    long_ago = read_usage(database, today().replace(year=2022, month=1, day=1), today())[0]
    assert (long_ago.day.isoformat(), long_ago.counts.jobs) == ("2022-01-08", 5)


class _Dies(Exception):
    """The front door ends here."""


@pytest.mark.parametrize("seed", range(5))
async def test_front_doors_that_die_anywhere_lose_nothing_and_count_nothing_twice(
    store: Store, database: Engine, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Several move at once, and die before and after each step; the counters of those that live
    tell Prometheus at most what is true."""
    chance = random.Random(seed)
    told: list[Row] = []

    class Mortal(Store):
        async def drop_usage(self, batch: Any) -> None:
            if chance.random() < 0.4:
                raise _Dies  # the database has it, Redis has it still
            await asyncio.sleep(chance.random() / 100)
            await super().drop_usage(batch)

        async def take_usage(self) -> Any:
            batch = await super().take_usage()
            await asyncio.sleep(chance.random() / 100)
            if chance.random() < 0.3:
                raise _Dies  # the database does not have it
            return batch

    mortal = Mortal(store.redis, store._settings)

    async def door() -> None:
        with contextlib.suppress(_Dies, SQLAlchemyError):  # another is started
            await UsageMover(mortal, database, told.append).move()

    for number in range(40):
        await _finish(store, number)
        await asyncio.gather(*(door() for _ in range(chance.randrange(4))))
    await UsageMover(store, database, told.append).move()
    [row] = _all(database)
    assert row.counts == Counts(*(40 * count for count in ONE.counts))
    assert sum(row.counts.jobs for row in told) <= 40


async def test_a_database_that_is_away_costs_nothing(
    store: Store, settings: Settings, valkey: "redis.Redis", database: Engine
) -> None:
    """Its batch waits, and so does what is counted meanwhile."""
    away = open_database(dataclasses.replace(settings, database_url="sqlite:////nowhere/at/all.db"))
    await _finish(store, 1)
    for _ in range(2):
        with pytest.raises(SQLAlchemyError):
            await UsageMover(store, away, lambda _: None).move()
        await _finish(store, 2)
    assert valkey.exists(USAGE_KEY, USAGE_BATCH_KEY) == 2
    await UsageMover(store, database, lambda _: None).move()
    assert _all(database)[0].counts.jobs == 2


async def test_the_operator_sees_what_was_done(
    service: aiohttp.ClientSession, picture: bytes
) -> None:
    """As JSON, as CSV and in Prometheus' form: a job that went well and one that did not."""
    for image in (picture, picture[:60] + b"\0" * 900):
        job = (await submit(service, image)).json
        await call(service, "GET", job["links"]["self"] + "?wait=5", job["token"])
    answer = (await call(service, "GET", "/v1/usage")).json
    rows = {row["outcome"]: row for row in answer["usage"]}
    assert rows.keys() == {"annotated", "image_undecodable"}
    good = rows["annotated"]
    assert (good["jobs"], good["images"], good["annotations"]) == (1, 1, 1)
    assert (good["bytes"], good["model"]) == (len(picture), MODEL)
    assert rows["image_undecodable"]["jobs"] == 1
    table = await call(service, "GET", "/v1/usage?format=csv")
    lines = table.body.decode().splitlines()
    assert lines[0] == ",".join(good)
    assert lines[1].startswith(f"{good['day']},{MODEL},annotated,1,1,{len(picture)},1,")
    metrics = (await call(service, "GET", "/metrics")).body.decode()
    label = f'{{model="{MODEL}",outcome="annotated"}}'
    assert f"mayfly_finished_annotations_total{label} 1.0" in metrics
    assert f'mayfly_stage_seconds_total{{model="{MODEL}",stage="infer"}}' in metrics


@pytest.mark.parametrize(
    ("query", "status", "rows"),
    [
        ("", 200, 1),
        ("?until=2026-01-31", 200, 0),
        ("?since=2026-01-01&until=2026-01-31&format=csv", 200, 0),
        ("?since=yesterday", 400, 0),
        ("?until=0001-01-01", 400, 0),
        ("?format=pdf", 400, 0),
    ],
)
async def test_days_can_be_chosen(
    store: Store, front_door: aiohttp.ClientSession, query: str, status: int, rows: int
) -> None:
    await _finish(store, 1)
    answer = await call(front_door, "GET", f"/v1/usage{query}")
    assert answer.status == status
    if status == 200 and "csv" not in query:
        assert len(answer.json["usage"]) == rows


async def test_the_statistics_are_the_operators(
    store: Store, settings: Settings, key: PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the machine itself anybody's, until there is a key for them; from elsewhere never."""

    async def statuses(*keys: str) -> list[int]:
        headers = [{"X-API-Key": key} if key else {} for key in keys]
        async with running_front_door(settings, key) as session:
            return [(await call(session, "GET", "/v1/usage", headers=h)).status for h in headers]

    submitter = make_key(settings, "submit")
    assert await statuses("", submitter) == [200, 403]
    operator = make_key(settings, "operator", "submit")
    assert await statuses("", submitter, operator) == [401, 403, 200]
    monkeypatch.setattr("api.callers.client_address", lambda _: "192.0.2.7")
    assert await statuses("", operator) == [401, 200]


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server on a socket of its own, if PostgreSQL is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    program = found[-1] if found else shutil.which("initdb")
    if not program:
        pytest.skip("needs PostgreSQL")
    folder = Path(f"/tmp/mayfly-test-{time.time_ns()}")  # socket paths must be short
    folder.mkdir()
    root = folder.stat().st_uid == 0
    user = "postgres" if root else None  # the server refuses to run as root
    if root:
        shutil.chown(folder, "postgres")
    data = folder / "data"
    initdb = [str(program), "-D", str(data), "-U", "mayfly", "--auth=trust", "--no-sync"]
    subprocess.run(initdb, user=user, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    command = [str(Path(program).with_name("postgres")), "-D", str(data), "-k", str(folder)]
    server = subprocess.Popen(
        [*command, "-c", "listen_addresses=", "-c", "fsync=off"],
        user=user,
        cwd=folder,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 20
    while not (folder / ".s.PGSQL.5432").exists():
        assert time.monotonic() < deadline, "PostgreSQL did not start"
        time.sleep(0.05)
    yield f"postgresql://mayfly@/postgres?host={folder}"
    server.send_signal(signal.SIGINT)  # at once, whoever is connected
    server.wait()
    shutil.rmtree(folder)


async def test_postgresql_holds_accounts_and_counts_as_well(
    store: Store, settings: Settings, postgresql: str, valkey: "redis.Redis"
) -> None:
    """Two front doors share it."""
    shared = dataclasses.replace(settings, database_url=postgresql)
    one, other = open_database(shared), open_database(shared)
    deadline = time.monotonic() + 10
    while True:
        try:
            peppers = {prepare(one), prepare(other)}
            break
        except Exception:  # it has a socket before it takes connections
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
    assert len(peppers) == 1
    with one.begin() as connection:
        create_key(connection, create_account(connection, "Numismatists"), ["operator"])
    with other.begin() as connection:
        [key] = list_keys(connection)
    assert (key.account.label, key.scopes) == ("Numismatists", ("operator",))
    for number in range(20):
        await _finish(store, number)
        movers = [UsageMover(store, database, lambda _: None) for database in (one, other)]
        await asyncio.gather(*(mover.move() for mover in movers))
    assert _all(other) == [
        Row(today(), MODEL, "annotated", Counts(*(20 * count for count in ONE.counts)))
    ]
    one.dispose()
    other.dispose()
