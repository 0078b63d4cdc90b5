"""`mayfly bench`: rounds over all measures, then the report."""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from jobs.settings import SettingsError
from scripts.bench import report
from scripts.bench.bench import FULL, QUICK, Bench
from scripts.bench.measures import MEASURES, Measure
from scripts.bench.peers import run as peers
from scripts.bench.pictures import DETECTOR, make_pictures, make_weights

_MEASURE_S = 900.0  # the longest that one measure of one round may take
_RUN_S = 3600.0


async def run(options: argparse.Namespace) -> int:
    """Measure and report. 1 if a measure failed, which the others survive; 143 if it was ended,
    which what was measured until then survives."""
    wanted, ratios = _chosen(options), [*report.RATIOS]
    if options.peers:
        wanted.append(peers.measure())
        ratios += peers.RATIOS
    task = asyncio.current_task()
    assert task  # for the type checker  # noqa: S101
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    rounds: list[report.Round] = []
    code = 0
    try:
        async with asyncio.timeout(_RUN_S), contextlib.AsyncExitStack() as stack:
            bench = _prepare(options, stack)
            for number in range(options.rounds or (1 if options.quick else 3)):
                rounds.append({})
                for measure in wanted:
                    if not await _measure(bench, measure, rounds[-1], number + 1):
                        code = 1
    except TimeoutError:
        code = 1
    except asyncio.CancelledError:
        code = 143
    if any(rounds):
        _report(options, bench, rounds, wanted, ratios)
    return code


def _prepare(options: argparse.Namespace, stack: contextlib.AsyncExitStack) -> Bench:
    """Pin this process and all that it starts; make what is measured with."""
    available = sorted(os.sched_getaffinity(0))
    cores, spare = available[-1:], available[:-1][-1:]
    os.sched_setaffinity(0, cores)
    sizes = QUICK if options.quick else FULL
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mayfly-bench-")))
    pictures = make_pictures(sizes.pictures)
    _say(f"{len(pictures)} JPEGs of {sum(map(len, pictures)) / len(pictures) / 1e3:.0f} kB")
    sleep_s = options.stand_in / 1e3 if options.stand_in else None
    if sleep_s is None:
        make_weights(folder / f"{DETECTOR}.pth", pictures[:12])
    return Bench(folder, sizes, pictures, cores, spare, sleep_s, stack)


async def _measure(bench: Bench, measure: Measure, into: report.Round, number: int) -> bool:
    begin = time.monotonic()
    try:
        async with asyncio.timeout(_MEASURE_S):
            into[measure.name] = await measure.run(bench)
    except Exception as error:  # whatever it is, the others go on
        _say(f"{measure.name} failed: {type(error).__name__}: {error}")
        return False
    _say(f"round {number}, {measure.name}: {time.monotonic() - begin:.0f} s")
    return True


def _report(
    options: argparse.Namespace,
    bench: Bench,
    rounds: list[report.Round],
    wanted: list[Measure],
    ratios: list[report.Ratio],
) -> None:
    about = report.machine(bench.cores) | {
        "quick": options.quick,
        "stand_in_ms": options.stand_in,
        "engines": bench.engines,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    report.write(options.out, about, rounds, ratios)
    report.plot(options.out / "bench.png", rounds, wanted)
    print(report.table(rounds, wanted, ratios, bench.engines))
    print(f"\n{options.out / 'bench.json'}, {options.out / 'bench.png'}")


def _chosen(options: argparse.Namespace) -> list[Measure]:
    known = {measure.name: measure for measure in MEASURES}
    if unknown := set(options.only) - known.keys():
        raise SettingsError(
            f"No measure is called {', '.join(sorted(unknown))}. There are: {', '.join(known)}."
        )
    return [measure for name, measure in known.items() if name in (options.only or known)]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
