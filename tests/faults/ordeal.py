"""Lets a decoder take files one by one in a process of its own, and writes down what happens.

The process may die, hang or grow: that is seen from outside. It sees the front door's check too.
"""

import argparse
import contextlib
import ctypes
import importlib
import json
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from api.images import check_image
from jobs.problems import Problem
from jobs.settings import Settings
from tests.faults.bombs import encode, plain
from tests.faults.hostile import files

MB = 1_000_000
DECODER = "worker.decode:decode"
MEMORY = 12 * MB  # that a file may take beside 10 bytes for each pixel that is allowed
_GUARD = 8_000 * MB  # of address space: enough to be measured, too little to hurt the machine
_STATUS = Path("/proc/self/status")


class Verdict(NamedTuple):
    """What came of one file: ``decoded``, a problem's code, or a stray in capitals."""

    outcome: str
    ms: float = 0.0
    front: str = ""
    front_ms: float = 0.0
    grown: int = 0  # bytes at the peak, above the process's start
    sizes_differ: bool = False


@dataclass(frozen=True)
class Rules:
    """What no file may exceed, in CPU time. (The patience with a process is in real time.)"""

    seconds: float = 5.0
    front_seconds: float = 0.5
    memory: int = 512 * MB


@dataclass
class Report:
    """All verdicts, and which rules were broken by which file."""

    rules: Rules
    verdicts: list[tuple[str, Verdict]] = field(default_factory=list)

    def broken(self) -> list[str]:
        """One line a breach; empty when all went well."""
        return [
            f"{name}: {complaint}"
            for name, verdict in self.verdicts
            for complaint in self._complaints(verdict)
        ]

    def _complaints(self, verdict: Verdict) -> Iterable[str]:
        if verdict.outcome.isupper():
            yield f"the decoder: {verdict.outcome}"
        if verdict.front.isupper():
            yield f"the front door: {verdict.front}"
        if verdict.ms > self.rules.seconds * 1000:
            yield f"the decoder took {verdict.ms:.0f} ms"
        if verdict.front_ms > self.rules.front_seconds * 1000:
            yield f"the front door took {verdict.front_ms:.0f} ms"
        if verdict.grown > self.rules.memory:
            yield f"took {verdict.grown / MB:.0f} MB"

    def table(self) -> str:
        """Counts, times and memory, as text."""
        every = [verdict for _, verdict in self.verdicts]
        lines = [f"{'files':<42}{len(every):>10}"]
        for title, outcomes in (
            ("decoder", Counter(verdict.outcome for verdict in every)),
            ("front door", Counter(verdict.front for verdict in every)),
        ):
            lines += [f"{title + ': ' + name:<42}{n:>10}" for name, n in outcomes.most_common()]
        strange = [name for name, v in self.verdicts if v.outcome == "decoded" != v.front]
        differ = [name for name, v in self.verdicts if v.sizes_differ]
        lines += [f"{'decodable, refused by the front door':<42}{len(strange):>10}  {strange[:3]}"]
        lines += [f"{'decoded in another size than stated':<42}{len(differ):>10}  {differ[:3]}"]
        lines += self._row("decoder, ms of CPU", lambda verdict: verdict.ms)
        lines += self._row("front door, ms of CPU", lambda verdict: verdict.front_ms)
        lines += self._row("memory above the start, MB", lambda verdict: verdict.grown / MB)
        return "\n".join([*lines, *(f"BROKEN {line}" for line in self.broken())])

    def _row(self, title: str, value: Callable[[Verdict], float]) -> list[str]:
        ranked = sorted(self.verdicts, key=lambda pair: value(pair[1]))
        values = [value(verdict) for _, verdict in ranked]
        p50, p99 = statistics.median(values), values[len(values) * 99 // 100]
        worst = ", ".join(f"{name} {value(verdict):.1f}" for name, verdict in ranked[:-6:-1])
        return [
            f"{title:<42}{'p50':>10}{p50:>10.2f}{'p99':>6}{p99:>10.2f}{'max':>6}{values[-1]:>10.2f}",
            f"  most: {worst}",
        ]


def endure(
    found: Iterable[tuple[str, bytes]],
    max_pixels: int,
    rules: Rules,
    decoder: str = DECODER,
    patience_s: float = 60,
) -> Report:
    """Give each file to the front door's check and to `decoder`, a ``module:function``."""
    report = Report(rules)
    with contextlib.ExitStack() as stack:
        child: _Child | None = None
        for name, data in found:
            child = child or stack.enter_context(_Child(decoder, max_pixels))
            verdict = child.judge(data, patience_s)
            report.verdicts.append((name, verdict))
            if verdict.outcome.startswith(("DEATH", "HANG")):
                child = None
    return report


class _Child:
    """The process, from outside."""

    def __init__(self, decoder: str, max_pixels: int) -> None:
        command = [sys.executable, "-m", "tests.faults.ordeal", decoder, str(max_pixels)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._read()  # imported and warm

    def __enter__(self) -> "_Child":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._process.communicate()

    def judge(self, data: bytes, patience_s: float) -> Verdict:
        hung = threading.Event()

        def lose_patience() -> None:
            hung.set()
            self._process.kill()

        timer = threading.Timer(patience_s, lose_patience)
        timer.start()
        begin = time.perf_counter()
        try:
            with contextlib.suppress(OSError):
                self._write(data)
            line = self._read()
        finally:
            timer.cancel()
        if line:
            return Verdict(**json.loads(line))
        code = self._process.wait()
        outcome = f"HANG OF {patience_s:.0f} S" if hung.is_set() else f"DEATH {code}"
        return Verdict(outcome, (time.perf_counter() - begin) * 1000)

    def _write(self, data: bytes) -> None:
        assert self._process.stdin
        self._process.stdin.write(len(data).to_bytes(4, "big") + data)
        self._process.stdin.flush()

    def _read(self) -> bytes:
        assert self._process.stdout
        return self._process.stdout.readline()


def child(decoder: str, max_pixels: int) -> None:
    """The process, from inside: files on stdin, a line for each on stdout."""
    module, _, name = decoder.partition(":")
    decode = getattr(importlib.import_module(module), name)
    for kind in ("JPEG", "PNG", "WEBP"):
        with contextlib.suppress(Exception):
            decode(b"" if decoder != DECODER else encode(plain("RGB", (64, 64)), kind), max_pixels)
    start = _memory("VmRSS")
    room = _memory("VmSize") + _GUARD
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    _say(sink, {})
    while length := source.read(4):
        data = source.read(int.from_bytes(length, "big"))
        ctypes.CDLL(None).malloc_trim(0)  # what earlier files left in the heap
        _forget_peak()
        front, front_ms, stated = _attempt(check_image, data, max_pixels)
        outcome, ms, pixels = _attempt(decode, data, max_pixels)
        grown = _memory("VmHWM") - start
        differ = False
        if pixels is not None and stated is not None:
            differ = {stated.width, stated.height} != set(pixels.shape[:2])
        del pixels
        _say(sink, Verdict(outcome, ms, front, front_ms, grown, differ)._asdict())


def _attempt(call: Callable[..., Any], data: bytes, max_pixels: int) -> tuple[str, float, Any]:
    begin = time.process_time()  # what else the machine does is not the file's fault
    result = None
    try:
        result = call(data, max_pixels)
        outcome = "decoded"
    except Problem as problem:
        outcome = problem.code if 400 <= problem.status < 500 else f"STATUS {problem.status}"
    except Exception as error:  # what the whole exercise looks for
        outcome = f"RAISED {type(error).__name__}".upper()
    return outcome, (time.process_time() - begin) * 1000, result


def _say(sink: BinaryIO, line: dict[str, Any]) -> None:
    sink.write(json.dumps(line).encode() + b"\n")
    sink.flush()


def _memory(name: str) -> int:
    """Bytes. (`ru_maxrss` would do, had it not the parent's peak in it.)"""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _forget_peak() -> None:
    with contextlib.suppress(OSError):  # then the peak is that of all files so far
        Path("/proc/self/clear_refs").write_text("5")


def main() -> int:
    """The full exercise; returns 1 if a rule was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.hostile")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-pixels", type=int, default=Settings().max_pixels)
    options = parser.parse_args()
    rules = Rules(memory=MEMORY + 10 * options.max_pixels)  # 512 MB by default
    found = islice(files(options.seed, options.max_pixels), options.files)
    report = endure(found, options.max_pixels, rules, patience_s=300)
    print(report.table())  # noqa: T201 - a command
    return 1 if report.broken() else 0


if __name__ == "__main__":
    child(sys.argv[1], int(sys.argv[2]))
