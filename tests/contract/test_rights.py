"""The rights of who is concerned: see, take along, correct, object, erase."""

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis

from jobs.sealing import PrivateKey
from jobs.settings import Settings
from jobs.store import USAGE_KEY, Store, owned_key
from jobs.usage import Counts, Finished
from tests.calls import BOX_REQUEST, Answer, call, submit
from tests.conftest import running_front_door
from tests.contract.test_accounts import make_key

DATA, OBJECTIONS = "/v1/privacy/data", "/v1/privacy/objections"


class Person:
    """Who has a key, or none."""

    def __init__(self, session: aiohttp.ClientSession, key: str = "") -> None:
        self._session = session
        self.headers = {"X-API-Key": key} if key else {}

    async def ask(self, method: str, path: str, **more: Any) -> Answer:
        return await call(self._session, method, path, headers=self.headers, **more)

    async def submit(self, picture: bytes) -> Any:
        answer = await submit(self._session, picture, BOX_REQUEST, headers=self.headers)
        assert answer.status == 202
        return answer.json


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


@pytest.fixture
def logging_settings(settings: Settings, logs: Path) -> Settings:
    return dataclasses.replace(settings, access_log=str(logs))


@contextlib.asynccontextmanager
async def people(
    settings: Settings, key: PrivateKey
) -> AsyncIterator[tuple[Person, Person, Person]]:
    """Two with accounts of their own, and one without."""
    keys = [make_key(settings), make_key(settings)]
    async with running_front_door(settings, key) as session:
        yield Person(session, keys[0]), Person(session, keys[1]), Person(session)


async def test_everybody_sees_their_own_and_nothing_of_others(
    store: Store, logging_settings: Settings, key: PrivateKey, picture: bytes
) -> None:
    """Record, keys without secrets, live jobs, log lines of the address; as a download."""
    async with people(logging_settings, key) as (one, other, nobody):
        job = await one.submit(picture)
        await nobody.submit(picture)
        answer = await one.ask("GET", DATA)
        assert answer.headers["Content-Disposition"].startswith("attachment")
        held = answer.json
        assert held["account"]["contact"] == "coins@example.org"
        assert held["account"]["news_since"] is None
        assert held["notice_seen"], "its job was answered with the notice"
        [shown] = held["keys"]
        assert shown["scopes"] == ["submit"]
        assert one.headers["X-API-Key"].split("_", 2)[2] not in answer.body.decode()
        assert [(j["id"], j["status"]) for j in held["jobs"]] == [(job["id"], "queued")]
        assert held["log_lines"][0]["job"] == job["id"]
        assert (await other.ask("GET", DATA)).json["jobs"] == []
        anonymous = (await nobody.ask("GET", DATA)).json
    assert (anonymous["account"], anonymous["keys"], anonymous["jobs"]) == (None, [], [])
    assert {line["ip"] for line in anonymous["log_lines"]} == {"127.0.0.1"}


async def test_a_record_is_corrected_and_consent_given_and_withdrawn(
    front_door: aiohttp.ClientSession, store: Store, settings: Settings, key: PrivateKey
) -> None:
    async with people(settings, key) as (one, other, nobody):
        changed = await one.ask("PATCH", DATA, json={"contact": "new@example.org", "news": True})
        assert (changed.status, changed.json["contact"]) == (200, "new@example.org")
        held = (await one.ask("GET", DATA)).json["account"]
        assert held == changed.json
        assert held["news_since"] is not None
        assert held["label"] == "Numismatists", "what is left out stays"
        await one.ask("PATCH", DATA, json={"news": False})
        assert (await one.ask("GET", DATA)).json["account"]["news_since"] is None
        assert (await other.ask("GET", DATA)).json["account"]["contact"] == "coins@example.org"
        assert (await nobody.ask("PATCH", DATA, json={"label": "x"})).status == 401


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("PATCH", DATA, b"{", 400, "malformed_body"),
        ("PATCH", DATA, b'{"label": ""}', 422, "invalid_body"),
        ("PATCH", DATA, b'{"scopes": ["operator"]}', 422, "invalid_body"),
        ("PATCH", DATA, b'"' + b"x" * 5000 + b'"', 413, "too_many_bytes"),
        ("PUT", OBJECTIONS, b'{"logs": 1}', 422, "invalid_body"),
        ("DELETE", DATA + "?what=everything", b"", 400, "part_unknown"),
    ],
)
async def test_what_cannot_be_meant_changes_nothing(
    store: Store,
    settings: Settings,
    key: PrivateKey,
    method: str,
    path: str,
    body: bytes,
    status: int,
    code: str,
) -> None:
    async with people(settings, key) as (one, _, _):
        before = (await one.ask("GET", DATA)).json["account"]
        refused = await one.ask(method, path, data=body)
        assert (refused.status, refused.code) == (status, code)
        assert (await one.ask("GET", DATA)).json["account"] == before


async def test_who_objects_is_neither_counted_nor_named(
    store: Store,
    logging_settings: Settings,
    key: PrivateKey,
    picture: bytes,
    valkey: "redis.Redis",
    logs: Path,
) -> None:
    """From then on, and others are as before."""
    async with people(logging_settings, key) as (one, other, nobody):
        assert (
            await nobody.ask("PUT", OBJECTIONS, json={"statistics": True, "logs": True})
        ).status == 401
        wanted = {"statistics": True, "logs": True}
        assert (await one.ask("PUT", OBJECTIONS, json=wanted)).json["no_logs"] is True
        jobs = [(await person.submit(picture))["id"] for person in (one, other)]
        assert await store.take(jobs[0])
        assert await store.take(jobs[1])
        for job in jobs:
            await store.finish(job, b"result", Finished("annotated", Counts(jobs=1)))
        assert list(valkey.hgetall(USAGE_KEY).values()) == [b"1"]  # type: ignore[union-attr]
    lines = [line for path in logs.iterdir() for line in path.read_text().splitlines()]
    mine, theirs = (next(line for line in lines if job in line) for job in jobs)
    assert "127.0.0.1" not in mine
    assert "127.0.0.1" in theirs
    assert "python" not in mine.lower(), "nor the browser"


async def test_erasing_leaves_nothing_and_says_how_much_it_was(
    store: Store,
    logging_settings: Settings,
    key: PrivateKey,
    picture: bytes,
    valkey: "redis.Redis",
    logs: Path,
) -> None:
    """Jobs of the account, lines of the address, the cookie; the account when it is named."""
    async with people(logging_settings, key) as (one, other, _):
        mine = [await one.submit(picture) for _ in range(2)]
        theirs = await other.submit(picture)
        erased = await one.ask("DELETE", DATA)
        assert erased.json.keys() == {"erased_at", "jobs", "log_lines", "consent", "account"}
        assert (erased.json["jobs"], erased.json["log_lines"]) == (2, 3)
        assert (erased.json["consent"], erased.json["account"]) == (True, False)
        assert "Max-Age=0" in erased.headers["Set-Cookie"]
        for job in mine:
            assert (await store.state(job["id"])).status == "gone"
        assert (await store.state(theirs["id"])).status == "queued"
        assert "127.0.0.1" not in "".join(path.read_text() for path in logs.iterdir())
        assert (await one.ask("GET", DATA)).json["account"] is not None

        gone = await one.ask("DELETE", DATA + "?what=account")
        assert gone.json["account"] is True
        assert (await one.ask("GET", DATA)).code == "api_key_unknown"
        assert (await other.ask("GET", DATA)).status == 200


async def test_who_has_no_key_erases_no_account(
    store: Store, settings: Settings, key: PrivateKey
) -> None:
    async with people(settings, key) as (_, _, nobody):
        assert (await nobody.ask("DELETE", DATA + "?what=account")).status == 401
        assert (await nobody.ask("DELETE", DATA)).json["jobs"] == 0


async def test_these_requests_are_limited(
    store: Store, settings: Settings, key: PrivateKey
) -> None:
    async with people(settings, key) as (one, other, _):
        answers = [await one.ask("GET", DATA) for _ in range(31)]
        assert [answer.status for answer in answers] == [200] * 30 + [429]
        assert int(answers[-1].headers["Retry-After"]) > 0
        assert (await other.ask("GET", DATA)).status == 200


async def test_redis_knows_an_accounts_jobs_for_as_long_as_they_can_live(
    store: Store, settings: Settings, key: PrivateKey, picture: bytes, valkey: "redis.Redis"
) -> None:
    """Under a hash, and of those without an account not at all."""
    async with people(settings, key) as (one, _, nobody):
        await nobody.submit(picture)
        assert list(valkey.scan_iter(owned_key("*"))) == []
        await one.submit(picture)
        [name] = valkey.scan_iter(owned_key("*"))
    longest = settings.image_ttl_s + settings.result_ttl_s + 60
    assert 0 < int(valkey.ttl(name)) <= longest  # type: ignore[arg-type]
    assert one.headers["X-API-Key"].split("_")[1].encode() not in name
