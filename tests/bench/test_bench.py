"""`mayfly bench` as it is run, round a model that sleeps: figures are measured, nothing is left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from scripts.bench.bench import QUICK
from scripts.bench.measures import MEASURES
from worker.engine import NAMES

SLEEP_MS = 50


class Ran(NamedTuple):
    out: Path
    printed: str
    figures: dict[str, dict[str, dict[str, Any]]]
    started: set[psutil.Process]
    temporary: Path


def _start(folder: Path, *options: str) -> subprocess.Popen[str]:
    (folder / "tmp").mkdir()
    command = [
        sys.executable,
        "-m",
        "scripts.cli",
        "bench",
        "--quick",
        "--out",
        str(folder / "out"),
    ]
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "TMPDIR": str(folder / "tmp")},
        )


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("bench")
    process = _start(folder, "--stand-in", str(SLEEP_MS))
    started = set()
    while process.poll() is None:
        started |= set(psutil.Process(process.pid).children(recursive=True))
        time.sleep(0.05)
    printed, _ = process.communicate()
    assert process.returncode == 0, (folder / "log").read_text()
    figures = json.loads((folder / "out" / "bench.json").read_text())["figures"]
    return Ran(folder / "out", printed, figures, started, folder / "tmp")


def test_every_measure_reports(ran: Ran) -> None:
    missing = {"stages"}  # of a detector, for which a model that sleeps stands in here
    if len(os.sched_getaffinity(0)) == 1:
        missing |= {"apart"}
    assert set(ran.figures) == {measure.name for measure in MEASURES} - missing
    for name in ran.figures:
        assert f"{name}: " in ran.printed


def test_a_model_that_sleeps_cannot_appear_faster(ran: Ran) -> None:
    most = 1000 / SLEEP_MS
    assert 0 < ran.figures["raw"]["loop"]["images/s"]["median"] <= most
    for case in ran.figures["service"].values():
        assert 0 < case["images/s"]["median"] <= most
        assert case["p50 ms"]["median"] >= SLEEP_MS
        assert case["images/batch"]["median"] == 1
    ideal = max(case["of the ideal"]["high"] for case in ran.figures["scaling"].values())
    assert ideal < 1.5, "a worker that sleeps half a second does two jobs a second"


def test_what_is_looked_at_is_there(ran: Ran) -> None:
    """The jobs are in flight, the CPU time and the memory are those of real processes."""
    for count in QUICK.in_flight:
        assert ran.figures["in-flight"][f"{count} jobs"]["in flight"]["median"] == count
    for case in ran.figures["front-door"].values():
        assert case["memory MB"]["median"] > 20
        assert case["CPU ms/image"]["median"] > 0.1
    assert set(ran.figures["idle"]) == {"worker", "front door", "valkey"}


def test_the_plot_is_a_picture(ran: Ran) -> None:
    assert (ran.out / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_left_running(ran: Ran) -> None:
    assert len(ran.started) > 10
    assert [process for process in ran.started if process.is_running()] == []
    assert list(ran.temporary.iterdir()) == []


def test_interrupted_it_leaves_nothing_either(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("cut")  # paths of sockets must be short
    process = _start(folder, "--stand-in", str(SLEEP_MS), "--only", "service")
    started: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while len(started) < 3 and time.monotonic() < deadline:
        started = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert len(started) == 3
    assert [each for each in started if each.is_running()] == []
    assert list((folder / "tmp").iterdir()) == []


def test_the_detectors_engine_is_said(tmp_path_factory: pytest.TempPathFactory) -> None:
    """In the bare loop and in a worker the one that was measured first, on this machine."""
    folder = tmp_path_factory.mktemp("engine")
    process = _start(folder, "--only", "raw", "service")
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, (folder / "log").read_text()
    engines = json.loads((folder / "out" / "bench.json").read_text())["about"]["engines"]
    assert engines.keys() == {"raw", "detector"}
    assert engines["raw"] == engines["detector"] in NAMES
    assert f"  detector: {engines['detector']}\n" in printed


def test_an_unknown_measure_is_named(tmp_path: Path) -> None:
    process = _start(tmp_path, "--only", "speed")
    process.communicate(timeout=60)
    assert process.returncode == 78
    assert "No measure is called speed. There are: raw, stages," in (tmp_path / "log").read_text()
