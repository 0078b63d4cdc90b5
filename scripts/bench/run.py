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
from scripts.bench.pictures import DETECTOR, make_pictures, make_weights

_MEASURE_S = 420.0  # the longest that one measure of one round may take
_RUN_S = 3600.0


async def run(options: argparse.Namespace) -> int:
    """Measure and report; 1 if a measure failed, which the others survive."""
    wanted = _chosen(options)
    task = asyncio.current_task()
    assert task  # for the type checker  # noqa: S101
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    available = sorted(os.sched_getaffinity(0))
    cores, spare = available[-1:], available[:-1][-1:]
    os.sched_setaffinity(0, cores)  # and so all threads that are yet to be started
    sizes = QUICK if options.quick else FULL
    rounds: list[report.Round] = []
    failed: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mayfly-bench-")))
        pictures = make_pictures(sizes.pictures)
        _say(f"{len(pictures)} JPEGs of {sum(map(len, pictures)) / len(pictures) / 1e3:.0f} kB")
        sleep_s = options.stand_in / 1e3 if options.stand_in else None
        if sleep_s is None:
            make_weights(folder / f"{DETECTOR}.pth", pictures[:12])
        bench = Bench(folder, sizes, pictures, cores, spare, sleep_s, stack)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RUN_S):
                for number in range(options.rounds or (1 if options.quick else 3)):
                    rounds.append({})
                    for measure in wanted:
                        begin = time.monotonic()
                        try:
                            async with asyncio.timeout(_MEASURE_S):
                                rounds[-1][measure.name] = await measure.run(bench)
                        except (RuntimeError, OSError, TimeoutError) as error:
                            failed.append(f"{measure.name}: {type(error).__name__} {error}")
                        took = time.monotonic() - begin
                        _say(f"round {number + 1}, {measure.name}: {took:.0f} s")
    about = report.machine(cores) | {"quick": options.quick, "stand_in_ms": options.stand_in}
    options.out.mkdir(parents=True, exist_ok=True)
    report.write(options.out, about, rounds, report.RATIOS)
    if any(rounds):
        report.plot(options.out / "bench.png", rounds, wanted)
    print(report.table(rounds, wanted, report.RATIOS))
    print(f"\n{options.out / 'bench.json'}, {options.out / 'bench.png'}")
    for failure in failed:
        _say(f"failed: {failure}")
    return int(bool(failed) or not any(rounds))


def _chosen(options: argparse.Namespace) -> list[Measure]:
    known = {measure.name: measure for measure in MEASURES}
    if unknown := set(options.only) - known.keys():
        raise SettingsError(
            f"No measure is called {', '.join(sorted(unknown))}. There are: {', '.join(known)}."
        )
    return [measure for name, measure in known.items() if name in (options.only or known)]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
