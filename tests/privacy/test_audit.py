"""`mayfly audit` passes a service that keeps nothing, fails one that does, and fails if blind."""

import argparse
import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from jobs.sealing import Payload, PrivateKey, PublicKey
from jobs.settings import Settings
from jobs.store import Store
from scripts import audit
from scripts.canary import Place, encodings, find
from tests.conftest import running_front_door, running_worker
from tests.fakes import Echo

SECRET = b"\x00\x7f\xff'\"\\canary \xe9 of 32 bytes and more"


@pytest_asyncio.fixture
async def options(
    valkey: object, settings: Settings, key: PrivateKey, tmp_path: Path
) -> AsyncIterator[argparse.Namespace]:
    """A service whose worker takes any picture, as `mayfly audit --server … --folder …` has it."""
    brief = dataclasses.replace(settings, result_ttl_s=1, upload_timeout_s=1.0)
    store = Store.open(brief)
    async with (
        running_worker(store, key, Echo(), brief),
        running_front_door(brief, key) as session,
    ):
        yield argparse.Namespace(
            server=str(session._base_url),
            redis=settings.redis_url,
            api_key=None,
            ca=None,
            pid=[],
            log=[],
            folder=[tmp_path],
            json=True,
        )
    await store.close()


async def test_a_service_that_keeps_nothing_passes(
    options: argparse.Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what was not looked at is said."""
    assert await audit.run(options) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["clean"]
    assert [row["way"] for row in report["rows"] if row["moment"] == "afterwards"] == [
        "success",
        "refusal",
        "failure",
        "time-out",
        "never fetched",
    ]
    assert all(row["searched"]["redis key"] > 0 for row in report["rows"])
    assert report["rows"][0]["not_searched"] == ["log", "open file"]
    assert report["not_run"] == ["crash", "expiry"]


async def test_a_service_that_keeps_an_image_fails(
    options: argparse.Namespace,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A front door that leaves what it takes in a folder, in the middle of something else."""
    seal = PublicKey.seal

    def leaky(self: PublicKey, job_id: str, payload: Payload) -> bytes:
        (tmp_path / "upload.tmp").write_bytes(b"x" + payload.images["image"])
        return seal(self, job_id, payload)

    monkeypatch.setattr(PublicKey, "seal", leaky)
    assert await audit.run(options) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["clean"]
    assert report["rows"][0]["findings"] == ["image in file upload.tmp"]


def test_a_canarys_pixels_do_not_lie_in_its_file() -> None:
    """So that a finding says which of both it is."""
    for _ in range(3):
        canary = audit.Canary("raw")
        assert find([Place("file", "upload", canary.image)], canary.secrets) == [
            "image in file upload"
        ]


async def test_a_search_that_finds_nothing_planted_is_not_believed(
    options: argparse.Namespace,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audit, "in_redis", lambda _: iter([Place("redis key", "other", b"")]))
    options.json = False
    assert await audit.run(options) == 1
    shown = capsys.readouterr().out
    assert "BLIND: the planted canary was not found in a redis key" in shown
    assert "NOT CLEAN" in shown


@pytest.mark.parametrize("around", [b"", b"some text before ", b"xy"])
def test_a_secret_is_found_in_every_form(around: bytes) -> None:
    """Whole, and for base64 in whatever alignment."""
    import base64
    from urllib.parse import quote_from_bytes

    whole: Any = around + SECRET + b" and after"
    for form in (
        whole,
        whole.hex().encode(),
        whole.hex().upper().encode(),
        base64.b64encode(whole),
        base64.urlsafe_b64encode(whole),
        repr(whole).encode(),
        json.dumps(whole.decode("latin-1")).encode(),
        quote_from_bytes(whole).encode(),
        whole.decode("latin-1").encode(),
    ):
        assert find([Place("file", "some", form)], {"it": SECRET}) == ["it in file some"], form
    assert find([Place("file", "some", b"none of it")], {"it": SECRET}) == []
    assert len(encodings(SECRET)) >= 9
