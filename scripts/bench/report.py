"""Medians of the rounds with their spread: as a table, as JSON, as a plot, and as ratios."""

import json
import platform
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scripts.bench.load import Cases
from scripts.bench.measures import Measure

Round = dict[str, Cases]  # cases by measure


class Spread(NamedTuple):
    """One figure over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        if self.low == self.high:
            return _short(self.median)
        return f"{_short(self.median)} ({_short(self.low)}–{_short(self.high)})"


class Ratio(NamedTuple):
    """One figure by another of the same round. Figures are named measure, case, what."""

    name: str
    goal: str
    above: tuple[str, str, str]
    below: tuple[str, str, str]


RATIOS = [
    Ratio(
        "torchvision as documented ÷ ours, CPU of all stages",
        "",
        ("stages", "plain torchvision", "all ms"),
        ("stages", "ours", "all ms"),
    ),
    Ratio(
        "served ÷ bare loop, all on one core",
        "",
        ("service", "concurrency 32", "images/s"),
        ("raw", "loop", "images/s"),
    ),
    Ratio(
        "served ÷ bare loop, worker on a core as the loop is",
        "≥ 0.95",
        ("apart", "concurrency 32", "images/s"),
        ("raw", "loop", "images/s"),
    ),
    Ratio(
        "bare loop ÷ worker, CPU of an image",
        "",
        ("raw", "loop", "CPU ms/image"),
        ("apart", "concurrency 32", "worker CPU ms/image"),
    ),
    Ratio(
        "worker CPU, 64 in flight ÷ none",
        "≤ 1.2",
        ("in-flight", "64 jobs", "% of a core"),
        ("in-flight", "0 jobs", "% of a core"),
    ),
    Ratio(
        "drain rate, 100,000 queued ÷ 100",
        "≥ 0.95",
        ("drain", "100000 queued", "jobs/s"),
        ("drain", "100 queued", "jobs/s"),
    ),
]


def spreads(rounds: list[Round]) -> dict[str, dict[str, dict[str, Spread]]]:
    """Measure, case, what: the figure over the rounds that have it."""
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for each in rounds:
        for measure, cases in each.items():
            for case, figures in cases.items():
                for what, value in figures.items():
                    values[measure, case, what].append(value)
    found: dict[str, dict[str, dict[str, Spread]]] = defaultdict(lambda: defaultdict(dict))
    for (measure, case, what), several in values.items():
        found[measure][case][what] = Spread.of(several)
    return found


def ratios(rounds: list[Round], wanted: list[Ratio]) -> list[tuple[Ratio, Spread]]:
    """Those whose figures were measured; of each round by itself, since machines drift."""
    found = []
    for ratio in wanted:
        pairs = [(_at(each, ratio.above), _at(each, ratio.below)) for each in rounds]
        values = [above / below for above, below in pairs if above is not None and below]
        if values:
            found.append((ratio, Spread.of(values)))
    return found


def table(
    rounds: list[Round],
    measures: Sequence[Measure],
    wanted: list[Ratio],
    engines: Mapping[str, str],
) -> str:
    """What is printed: median (lowest–highest) of the rounds, and what the detector ran on."""
    measured = spreads(rounds)
    lines = []
    for measure in measures:
        if cases := measured.get(measure.name):
            lines += ["", f"{measure.name}: {measure.about}", *_rows(cases)]
    if found := ratios(rounds, wanted):
        width = max(len(ratio.name) for ratio, _ in found)
        lines += ["", "ratios: of figures of the same round"]
        lines += [f"  {r.name:{width}}  {spread!s:22} {r.goal}".rstrip() for r, spread in found]
    if engines:
        lines += ["", "engines: what the detector ran on"]
        lines += [f"  {name}: {engine}" for name, engine in engines.items()]
    return "\n".join(lines[1:])


def _rows(cases: dict[str, dict[str, Spread]]) -> list[str]:
    columns = list(dict.fromkeys(what for figures in cases.values() for what in figures))
    cells = [["", *columns]]
    for case, figures in cases.items():
        cells.append([case, *(str(figures.get(what, "")) for what in columns)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]


def write(folder: Path, about: dict[str, Any], rounds: list[Round], wanted: list[Ratio]) -> None:
    """Write ``bench.json``: every figure of every round, their spreads, and the ratios."""
    report = {
        "about": about,
        "figures": {
            measure: {
                case: {what: spread._asdict() for what, spread in figures.items()}
                for case, figures in cases.items()
            }
            for measure, cases in spreads(rounds).items()
        },
        "ratios": [
            {"name": ratio.name, "goal": ratio.goal, **spread._asdict()}
            for ratio, spread in ratios(rounds, wanted)
        ],
        "rounds": rounds,
    }
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "bench.json").write_text(text + "\n", encoding="utf-8")


def plot(path: Path, rounds: list[Round], measures: Sequence[Measure]) -> None:
    """Write a PNG: each measure's first figure by case, with the spread of the rounds."""
    from matplotlib.figure import Figure

    measured = {m: cases for m in measures if (cases := spreads(rounds).get(m.name))}
    figure = Figure(figsize=(8, 1.2 + 1.6 * len(measured)), layout="constrained")
    axes = figure.subplots(len(measured), squeeze=False)[:, 0]
    for axis, (measure, cases) in zip(axes, measured.items(), strict=True):
        what = next(iter(next(iter(cases.values()))))
        shown = {case: figures[what] for case, figures in cases.items() if what in figures}
        medians = [spread.median for spread in shown.values()]
        errors = [
            [spread.median - spread.low for spread in shown.values()],
            [spread.high - spread.median for spread in shown.values()],
        ]
        axis.barh(list(shown), medians, xerr=errors, color="#3b7a57", ecolor="#222", capsize=3)
        axis.invert_yaxis()
        axis.set_title(f"{measure.name}: {measure.about}", fontsize=9, loc="left")
        axis.set_xlabel(what, fontsize=8)
        axis.tick_params(labelsize=8)
    figure.savefig(path, dpi=110)


def machine(cores: list[int]) -> dict[str, Any]:
    """What the figures are of."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
    return {"cpu": name or platform.machine(), "cores": cores, "python": platform.python_version()}


def _at(each: Round, path: tuple[str, str, str]) -> float | None:
    measure, case, what = path
    return each.get(measure, {}).get(case, {}).get(what)


def _short(value: float) -> str:
    """Three digits that mean something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
