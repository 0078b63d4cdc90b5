"""Accounts, keys and limits, as who runs the service and who uses it see them."""

import asyncio
import contextlib
import dataclasses
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import redis

from api.accounts import create_account, create_key
from api.app import make_app
from api.database import open_database, prepare
from jobs.sealing import PrivateKey
from jobs.settings import Settings, SettingsError
from jobs.store import LIMITS_PREFIX, Store
from scripts import cli
from tests.calls import call, submit
from tests.conftest import running_front_door

KEY = re.compile(r"mayfly_[0-9a-f]{8}_[\w-]{43}")


def _mayfly(settings: Settings, *words: str) -> str:
    """Run `mayfly keys …` on the database of these settings; returns what it prints."""
    run = subprocess.run(
        [sys.executable, "-m", "scripts.cli", "keys", *words],
        env={"MAYFLY_DATA_DIR": str(settings.data_dir), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return run.stdout + run.stderr


def _make(settings: Settings, *words: str) -> str:
    found = KEY.search(_mayfly(settings, "create", *words))
    assert found
    return found[0]


def make_key(settings: Settings, *scopes: str, limits: str = "", expires: int | None = None) -> str:
    """A key of a new account."""
    engine = open_database(settings)
    prepare(engine)
    with engine.begin() as database:
        account = create_account(database, "Numismatists", "coins@example.org")
        key = create_key(database, account, scopes or ("submit",), limits, expires)
    engine.dispose()
    return key


@contextlib.asynccontextmanager
async def closed(
    settings: Settings, key: PrivateKey, **more: Any
) -> AsyncIterator[aiohttp.ClientSession]:
    """A front door that wants keys."""
    changed = dataclasses.replace(settings, **{"anonymous": "off", **more})
    async with running_front_door(changed, key) as session:
        yield session


def _with(key: str) -> dict[str, str]:
    return {"X-API-Key": key}


async def test_a_keys_life_from_the_command_line(
    store: Store,
    settings: Settings,
    key: PrivateKey,
    picture: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Made, used, listed without its secret, replaced, revoked; each as a running front door sees
    it; and then nothing is left of the account."""
    monkeypatch.setattr("api.accounts._LOOK_AGAIN_S", 0.02)
    first = _make(settings, "--label", "Numismatists", "--contact", "coins@example.org")
    async with closed(settings, key) as session:
        assert (await submit(session, picture, headers=_with(first))).status == 202
        listed = _mayfly(settings, "list")
        assert "coins@example.org" in listed
        assert first.split("_")[1] in listed
        assert first.split("_", 2)[2] not in listed

        rotated = _mayfly(settings, "rotate", first.split("_")[1], "--keep-hours", "1")
        second = KEY.findall(rotated)[0]
        while (await submit(session, picture, headers=_with(second))).status != 202:
            await asyncio.sleep(0.02)
        assert (await submit(session, picture, headers=_with(first))).status == 202, "for an hour"

        for one in (first, second):
            _mayfly(settings, "revoke", one.split("_")[1])
        while (await submit(session, picture, headers=_with(second))).status != 401:
            await asyncio.sleep(0.02)
        for one in (first, second):
            refused = await submit(session, picture, headers=_with(one))
            assert (refused.status, refused.code) == (401, "api_key_unknown")
    assert "Numismatists" not in _mayfly(settings, "list")
    kept = (settings.data_folder() / "mayfly.db").read_bytes()
    assert b"coins@example.org" not in kept, "overwritten, not only forgotten"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["create"], "--label"),
        (["create", "--account", "0" * 16], "mayfly keys list"),
        (["create", "--label", "x", "--limits", "many"], "--limits takes limits such as"),
        (["revoke", "00000000"], "mayfly keys list"),
        (["rotate", "00000000"], "mayfly keys list"),
    ],
)
def test_what_the_command_cannot_do_it_says(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    told: str,
) -> None:
    monkeypatch.setenv("MAYFLY_DATA_DIR", str(settings.data_dir))
    assert cli.main(["keys", *words]) == 78
    assert told in capsys.readouterr().err


def test_of_a_key_only_its_hash_is_stored_where_only_its_user_reads(settings: Settings) -> None:
    secret = make_key(settings).split("_", 2)[2]
    file = settings.data_folder() / "mayfly.db"
    assert secret.encode() not in file.read_bytes()
    assert file.stat().st_mode & 0o777 == 0o600


async def test_an_expired_key_opens_nothing_and_takes_its_account_with_it(
    store: Store, settings: Settings, key: PrivateKey, picture: bytes
) -> None:
    old = make_key(settings, expires=int(time.time()) - 1)
    async with closed(settings, key) as session:
        assert (await submit(session, picture, headers=_with(old))).status == 401
    assert b"Numismatists" not in (settings.data_folder() / "mayfly.db").read_bytes()


async def test_a_key_opens_what_its_scopes_name_and_no_more(
    store: Store, settings: Settings, key: PrivateKey, picture: bytes
) -> None:
    operator = make_key(settings, "operator")
    async with closed(settings, key) as session:
        refused = await submit(session, picture, headers=_with(operator))
    assert (refused.status, refused.code) == (403, "scope_missing")


@pytest.mark.parametrize(
    ("anonymous", "remote", "status"),
    [
        ("off", "127.0.0.1", 401),
        ("loopback", "127.0.0.1", 202),
        ("loopback", "::1", 202),
        ("loopback", "192.0.2.7", 401),
        ("loopback", "unknown", 401),
        ("limited", "192.0.2.7", 202),
    ],
)
async def test_who_needs_no_key(
    store: Store,
    settings: Settings,
    key: PrivateKey,
    picture: bytes,
    monkeypatch: pytest.MonkeyPatch,
    anonymous: str,
    remote: str,
    status: int,
) -> None:
    monkeypatch.setattr("api.callers.client_address", lambda _: remote)
    async with closed(settings, key, anonymous=anonymous) as session:
        assert (await submit(session, picture)).status == status
        info = (await call(session, "GET", "/v1/info")).json
        assert info["api_key_required"] is (status == 401)


async def test_what_an_unnamed_proxy_on_this_machine_passes_on_is_not_this_machines(
    front_door: aiohttp.ClientSession, picture: bytes
) -> None:
    refused = await submit(front_door, picture, headers={"X-Forwarded-For": "192.0.2.7"})
    assert (refused.status, refused.code) == (401, "api_key_required")


async def test_a_key_has_its_own_limits_and_the_answer_says_what_is_left(
    store: Store, settings: Settings, key: PrivateKey, picture: bytes, valkey: "redis.Redis"
) -> None:
    one = make_key(settings, limits="2/hour; 5/day")
    other = make_key(settings)
    async with closed(settings, key, key_limits="3/hour") as session:
        answers = [await submit(session, picture, headers=_with(one)) for _ in range(3)]
        assert [a.status for a in answers] == [202, 202, 429]
        assert [a.headers["RateLimit-Remaining"] for a in answers] == ["1", "0", "0"]
        refused = answers[2]
        assert refused.code == "quota_exceeded"
        assert refused.headers["RateLimit-Limit"] == "2"
        assert refused.headers["RateLimit-Policy"] == "2;w=3600, 5;w=86400"
        assert 3500 < int(refused.headers["Retry-After"]) <= 3600
        assert refused.headers["RateLimit-Reset"] == refused.headers["Retry-After"]
        answers = [await submit(session, picture, headers=_with(other)) for _ in range(4)]
        assert [a.status for a in answers] == [202, 202, 202, 429], "by itself, by the common limit"
    names = [name.decode() for name in valkey.scan_iter(f"{LIMITS_PREFIX}*")]
    assert names
    assert all(0 < int(valkey.ttl(name)) <= 86_400 for name in names)  # type: ignore[arg-type]
    assert not [name for name in names if one.split("_")[1] in name or "127.0.0.1" in name]


async def test_an_address_is_limited_where_anybody_may_come(
    store: Store,
    settings: Settings,
    key: PrivateKey,
    picture: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An IPv6 address counts as its network; a refused upload is not read."""
    remote = "2001:db8:1:2::1"
    monkeypatch.setattr("api.callers.client_address", lambda _: remote)
    async with closed(settings, key, anonymous="limited", address_limits="2/hour") as session:
        assert (await submit(session, picture)).status == 202
        remote = "2001:db8:1:2::ffff"
        assert (await submit(session, b"no image")).status == 415, "counts too"
        assert (await submit(session, b"no image")).status == 429
        remote = "2001:db8:1:3::1"
        assert (await submit(session, picture)).status == 202


async def test_on_this_machine_alone_nothing_is_limited(
    store: Store, settings: Settings, key: PrivateKey, picture: bytes
) -> None:
    async with closed(settings, key, anonymous="loopback", address_limits="1/hour") as session:
        answers = [await submit(session, picture) for _ in range(3)]
    assert {answer.status for answer in answers} == {202}
    assert "RateLimit-Limit" not in answers[0].headers


def test_a_limit_that_cannot_be_meant_is_refused_at_the_start(
    settings: Settings, key: PrivateKey
) -> None:
    for name in ("address_limits", "key_limits"):
        more: dict[str, Any] = {name: "a lot"}
        wrong = dataclasses.replace(settings, **more)
        with pytest.raises(SettingsError, match=f"MAYFLY_{name.upper()} takes limits"):
            make_app(wrong, key.public)
