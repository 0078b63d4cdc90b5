"""Server logs: aged by a clock that the tests turn, read, erased and exported."""

import json
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.access_log import (
    AccessLog,
    Visit,
    export,
    shown_address,
    shown_browser,
    shown_referrer,
)
from jobs.process import timestamp
from jobs.settings import Settings, SettingsError

DAY_S = 86_400
START = datetime(2026, 1, 1, 10, tzinfo=UTC).timestamp()


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _log(folder: Path, clock: Clock, **more: Any) -> AccessLog:
    log = AccessLog(Settings(access_log=str(folder), **more), clock)
    log.open()
    return log


def _visit(clock: Clock, ip: str | None = "203.0.113.7", **more: Any) -> Visit:
    line: dict[str, Any] = {"method": "GET", "route": "/", "status": 200}
    line |= {"bytes_in": 0, "bytes_out": 9}
    return Visit(time=timestamp(clock()), ip=ip, browser=None, referrer=None, **line | more)


def _written(folder: Path) -> list[Any]:
    lines = [line for path in sorted(folder.iterdir()) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines if line.strip()]


@pytest.mark.parametrize("days", [89, 30, 1])
def test_no_line_is_ever_older_than_the_days(tmp_path: Path, clock: Clock, days: int) -> None:
    """120 days with a request every six hours: the oldest line at the end of each of them."""
    log = _log(tmp_path, clock, access_log_days=days)
    for _ in range(480):
        log.write(_visit(clock))
        oldest = datetime.fromisoformat(_written(tmp_path)[0]["time"]).timestamp()
        end_of_day = clock.now - clock.now % DAY_S + DAY_S
        assert end_of_day - oldest <= days * DAY_S
        clock.now += DAY_S / 4
    log.close()
    assert len(list(tmp_path.iterdir())) == days


def test_a_start_removes_what_became_too_old_meanwhile_and_nothing_else(
    tmp_path: Path, clock: Clock
) -> None:
    log = _log(tmp_path, clock)
    log.write(_visit(clock))
    log.close()
    (tmp_path / "access-notes.jsonl").touch()
    (tmp_path / "other.log").touch()
    clock.now += 400 * DAY_S
    _log(tmp_path, clock).close()
    assert {path.name for path in tmp_path.iterdir()} == {
        "access-2027-02-05.jsonl",
        "access-notes.jsonl",
        "other.log",
    }


async def test_files_go_without_a_request(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service runs and nobody comes: midnight alone removes the file."""
    slept = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.now += seconds
        if len(slept) > 89 * 25:
            raise StopAsyncIteration

    monkeypatch.setattr("asyncio.sleep", sleep)
    log = _log(tmp_path, clock)
    log.write(_visit(clock))
    with pytest.raises(StopAsyncIteration):
        await log.serve()
    assert list(tmp_path.iterdir()) == []
    assert max(slept) <= 3600
    log.close()


async def test_an_address_reads_and_erases_its_own_lines_only(tmp_path: Path, clock: Clock) -> None:
    log = _log(tmp_path, clock)
    quoting = 'curl "ip":"203.0.113.7"'  # somebody else who names the address
    for ip in ("203.0.113.7", "203.0.113.70", "203.0.113.0/24", None):
        log.write(_visit(clock, ip))
    log.write(_visit(clock, "198.51.100.1", route="/{x}"))
    log.write(Visit(timestamp(clock()), "198.51.100.2", "GET", "/", 200, 0, 0, quoting, None))
    clock.now += DAY_S
    log.write(_visit(clock, "203.0.113.7"))
    found = await log.lines_of("::ffff:203.0.113.7")
    assert [visit.ip for visit in found] == ["203.0.113.7", "203.0.113.7"]
    assert await log.erase("203.0.113.7") == 2
    assert await log.erase("203.0.113.7") == 0
    assert await log.lines_of("203.0.113.7") == []
    log.write(_visit(clock, "203.0.113.8"))
    log.close()
    left = [line["ip"] for line in _written(tmp_path)]
    others = ["203.0.113.70", "203.0.113.0/24", None, "198.51.100.1", "198.51.100.2"]
    assert left == [*others, "203.0.113.8"]
    raw = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert raw.count(b'"ip":"203.0.113.7"') == 0


@pytest.mark.parametrize("where", ["off", "stderr"])
async def test_where_no_files_are_kept_there_is_nothing_to_read(where: str) -> None:
    log = AccessLog(Settings(access_log=where))
    log.open()
    await log.serve()  # ends at once
    assert await log.lines_of("203.0.113.7") == []
    assert await log.erase("203.0.113.7") == 0


def test_files_belong_to_their_owner_alone(tmp_path: Path, clock: Clock) -> None:
    log = _log(tmp_path / "logs", clock)
    (path,) = (tmp_path / "logs").iterdir()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    log.close()


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="Name another folder"):
        AccessLog(Settings(access_log=str(tmp_path / "file" / "logs"))).open()


def test_a_full_disk_costs_the_line_and_is_said_once(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    log = _log(tmp_path, clock)
    os.dup2(os.open("/dev/full", os.O_WRONLY), log._file)
    log.write(_visit(clock))
    log.write(_visit(clock))
    assert [record.getMessage() for record in caplog.records] == ["access log cannot be written"]
    log.close()


@pytest.mark.parametrize(
    ("address", "full", "truncated"),
    [
        ("203.0.113.7", "203.0.113.7", "203.0.113.0/24"),
        ("::ffff:203.0.113.7", "203.0.113.7", "203.0.113.0/24"),
        ("2001:DB8:1:2:3::4", "2001:db8:1:2:3::4", "2001:db8:1::/48"),
        ("fe80::1%eth0", "fe80::1", "fe80::/48"),
        ("", None, None),
        (None, None, None),
        ("unix:", None, None),
    ],
)
def test_addresses(address: str | None, full: str | None, truncated: str | None) -> None:
    assert shown_address(address, "full") == full
    assert shown_address(address, "truncated") == truncated
    assert shown_address(address, "off") is None


@pytest.mark.parametrize(
    ("header", "shown"),
    [
        ("https://example.org/path?q=1#f", "https://example.org"),
        ("http://user:password@example.org:8080/", "http://example.org:8080"),
        ("https://EXAMPLE.org", "https://example.org"),
        ("about:blank", None),
        ("android-app://org.example/", None),
        ("file:///home/somebody/page.html", None),
        ("https://" + "a" * 300 + ".org/", None),
        ("/v1/jobs", None),
        ("https://[::1", None),
        ("", None),
        (None, None),
    ],
)
def test_a_referring_site_is_named_without_path_and_query(
    header: str | None, shown: str | None
) -> None:
    assert shown_referrer(header) == shown


@given(st.text())
def test_no_header_breaks_a_line(header: str) -> None:
    shown_address(header, "full")
    shown_referrer(header)
    assert len(shown_browser(header) or "") <= 256


def test_a_token_is_no_browser() -> None:
    token = "q2XrJ0c3VYd1N4aGZ1bXh0c2V0dGluZ3N0b2tlbg"
    assert shown_browser(f"tool/1.0 {token}") == "tool/1.0 …"
    assert shown_browser("x" * 31) == "x" * 31


def test_export_gives_the_lines_of_a_network_since_a_time(tmp_path: Path, clock: Clock) -> None:
    log = _log(tmp_path, clock)
    for ip in ("203.0.113.7", "203.0.113.0/24", "198.51.100.1", None, "2001:db8::1"):
        log.write(_visit(clock, ip))
    clock.now += 2 * DAY_S
    log.write(_visit(clock, "203.0.113.9"))
    log.close()

    def ips(*arguments: str) -> list[str]:
        return [json.loads(line)["ip"] for line in export(tmp_path, *arguments)]

    assert ips("203.0.113.7") == ["203.0.113.7", "203.0.113.0/24"]
    assert ips("203.0.113.0/24") == ["203.0.113.7", "203.0.113.0/24", "203.0.113.9"]
    assert ips("203.0.113.0/24", "2026-01-02") == ["203.0.113.9"]
    assert ips("", "2026-01-03T10:00:00Z") == ["203.0.113.9"]
    assert ips("", "2026-01-03T12:00:00+01:00") == []
    assert len(ips()) == 6
    for wrong in (("somewhere",), ("", "yesterday")):
        with pytest.raises(ValueError, match=r"somewhere|yesterday"):
            ips(*wrong)


def test_the_command_exports_what_the_setting_names(tmp_path: Path, clock: Clock) -> None:
    log = _log(tmp_path, clock)
    log.write(_visit(clock))
    log.close()
    command = [sys.executable, "-m", "scripts.cli", "logs", "export"]

    def run(*arguments: str, folder: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*command, *arguments],
            env={**os.environ, "MAYFLY_ACCESS_LOG": folder},
            capture_output=True,
            text=True,
            check=False,
        )

    done = run("--ip", "203.0.113.7", "--since", "2026-01-01", folder=str(tmp_path))
    assert (done.returncode, json.loads(done.stdout)["ip"]) == (0, "203.0.113.7")
    assert "Set MAYFLY_ACCESS_LOG" in run(folder="off").stderr
    wrong = run("--since", "yesterday", folder=str(tmp_path))
    assert (wrong.returncode, wrong.stdout) == (78, "")
    assert "yesterday" in wrong.stderr
