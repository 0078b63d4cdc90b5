"""From the figures of several rounds to what is printed and written."""

import asyncio
import json
from pathlib import Path

import pytest

from scripts.bench import report
from scripts.bench.bench import Bench
from scripts.bench.load import Cases, percentile
from scripts.bench.measures import Measure


async def _nothing(_: Bench) -> Cases:
    await asyncio.sleep(0)
    return {}


MEASURE = Measure("speed", "how fast it is", _nothing)
ROUNDS: list[report.Round] = [
    {"speed": {"here": {"images/s": 100.0, "p50 ms": 4.0}, "there": {"images/s": 50.0}}},
    {"speed": {"here": {"images/s": 20.0, "p50 ms": 5.0}, "there": {"images/s": 10.0}}},
    {"speed": {"here": {"images/s": 60.0, "p50 ms": 4.5}, "there": {"images/s": 20.0}}},
]
RATIO = report.Ratio(
    "here ÷ there", "≥ 2", ("speed", "here", "images/s"), ("speed", "there", "images/s")
)


def test_a_figure_is_the_median_of_its_rounds_with_its_spread() -> None:
    assert report.spreads(ROUNDS)["speed"]["here"]["images/s"] == (60, 20, 100)


def test_a_ratio_is_taken_in_each_round_by_itself() -> None:
    """A machine that is five times slower in one round does not change it."""
    assert report.ratios(ROUNDS, [RATIO]) == [(RATIO, (2, 2, 3))]


def test_a_ratio_without_figures_is_left_out() -> None:
    assert report.ratios([{}, {"speed": {}}], [RATIO]) == []


def test_the_table_has_a_row_a_case_and_a_column_a_figure() -> None:
    assert report.table(ROUNDS, [MEASURE], [RATIO], {"raw": "eager"}).splitlines() == [
        "speed: how fast it is",
        "         images/s          p50 ms",
        "  here   60.0 (20.0–100)   4.50 (4.00–5.00)",
        "  there  20.0 (10.0–50.0)",
        "",
        "ratios: of figures of the same round",
        "  here ÷ there  2.00 (2.00–3.00)       ≥ 2",
        "",
        "engines: what the detector ran on",
        "  raw: eager",
    ]


def test_json_and_plot_are_written(tmp_path: Path) -> None:
    report.write(tmp_path, {"cores": [1]}, ROUNDS, [RATIO])
    report.plot(tmp_path / "bench.png", ROUNDS, [MEASURE])
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["about"] == {"cores": [1]}
    assert written["figures"]["speed"]["there"]["images/s"] == {
        "median": 20,
        "low": 10,
        "high": 50,
    }
    assert written["ratios"][0]["median"] == 2
    assert written["rounds"] == ROUNDS
    assert (tmp_path / "bench.png").stat().st_size > 1000


@pytest.mark.parametrize(("percent", "value"), [(50, 2), (99, 4), (1, 1)])
def test_a_percentile_is_one_of_the_values(percent: int, value: float) -> None:
    assert percentile([4, 1, 3, 2], percent) == value
