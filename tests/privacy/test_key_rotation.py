"""The workers' sealing key is exchanged while jobs wait, and none of them is lost."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from api.app import make_app
from api.keys import PULSE
from jobs.sealing import PrivateKey, PublicKey
from jobs.settings import Settings, SettingsError
from jobs.store import Store
from scripts import cli
from tests.calls import call, submit
from tests.conftest import running_front_door, running_worker
from tests.fakes import Echo


def _keys(*arguments: str) -> None:
    assert cli.main(["keys", "worker", *arguments]) == 0


async def test_jobs_queued_before_during_and_after_an_exchange_are_annotated(
    store: Store, settings: Settings, picture: bytes, tmp_path: Path
) -> None:
    """Front doors and workers are started again in turns, each with the files as they are then."""
    private, public, out = tmp_path / "worker.key", tmp_path / "worker.pub", str(tmp_path)
    _keys("--out", out)
    jobs = []
    old = PrivateKey.load(private)
    async with running_front_door(settings, old[0]) as door:
        jobs.append((await submit(door, picture)).json)
    _keys("--rotate", "--out", out)
    both = PrivateKey.load(private)
    assert [key.public.id for key in both] == [key.id for key in PublicKey.load(public)]
    assert both[1].raw == old[0].raw
    app = make_app(settings, *PublicKey.load(public))
    async with running_front_door(settings, both[0], app) as door:
        async with running_worker(store, old, Echo(), settings):
            assert await _shown(app) == old[0].public.id, "a worker has the old one only"
            assert (await call(door, "GET", "/v1/info")).json["sealing_key"]["id"] == old[
                0
            ].public.id
            jobs.append((await submit(door, picture)).json)
            await _annotated(door, jobs)
        await store.farewell("test-worker")
        jobs = [(await submit(door, picture)).json]
        async with running_worker(store, both, Echo(), settings):
            assert await _shown(app) == both[0].public.id, "all have the new one"
            jobs.append((await submit(door, picture)).json)
            await _annotated(door, jobs)
        await store.farewell("test-worker")
        jobs = [(await submit(door, picture)).json]
        _keys("--retire", "--out", out)
        async with running_worker(store, PrivateKey.load(private), Echo(), settings):
            await _annotated(door, jobs)
    assert [key.raw for key in PrivateKey.load(private)] == [both[0].raw]
    assert [key.raw for key in PublicKey.load(public)] == [both[0].public.raw]
    assert private.stat().st_mode & 0o777 == 0o600


async def test_a_worker_that_missed_the_exchange_is_told_of(
    store: Store, settings: Settings, key: PrivateKey
) -> None:
    async with (
        running_worker(store, PrivateKey.new(), Echo(), settings),
        running_front_door(settings, key) as door,
    ):
        answer = await call(door, "GET", "/readyz")
        assert "another sealing key" in answer.json["detail"]


def test_what_is_no_key_is_refused(tmp_path: Path) -> None:
    for content in ("", "not base64!", "c2hvcnQ=\n"):
        (tmp_path / "worker.key").write_text(content)
        with pytest.raises(SettingsError, match="does not hold keys"):
            PrivateKey.load(tmp_path / "worker.key")
    with pytest.raises(SettingsError, match="cannot be read"):
        PrivateKey.load(tmp_path / "nowhere")


def test_an_exchange_needs_a_pair_to_begin_with(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "scripts.cli", "keys", "worker", "--rotate", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 78
    assert "cannot be read" in run.stderr
    assert list(tmp_path.iterdir()) == []


async def _shown(app: web.Application) -> str:
    """The key that is sealed to now."""
    await app[PULSE].beat()
    return app[PULSE].sealing_key().id


async def _annotated(door: aiohttp.ClientSession, jobs: list[Any]) -> None:
    for job in jobs:
        answer = await call(door, "GET", job["links"]["result"] + "?wait=10", job["token"])
        assert (answer.status, answer.json["outcome"]) == (200, "annotated")
