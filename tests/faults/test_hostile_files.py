"""Files made to hurt: each one gives pixels or a problem of the sender's, in bounded time and room.

A few hundred here; `python -m tests.faults.hostile` runs ten thousand and prints the figures.
"""

import hashlib
import os
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.faults.bombs import encode, pixels, plain
from tests.faults.hostile import damaged, files
from tests.faults.ordeal import MB, MEMORY, Rules, endure

MANY = 4_000_000
HERE = "tests.faults.test_hostile_files"
GOOD = [("good", encode(plain("RGB", (8, 8)), "PNG"))] * 2

linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory by /proc")


@linux
def test_no_file_breaks_a_rule() -> None:
    """All bombs, and a sample of every family of damage."""
    report = endure(islice(files(1, MANY), 600), MANY, Rules(memory=160 * MB))
    print(report.table())  # noqa: T201 - the figures, with pytest -rP
    assert report.broken() == []
    outcomes = {verdict.outcome for _, verdict in report.verdicts}
    refusals = {"not_an_image", "image_undecodable", "too_many_pixels", "too_many_scans"}
    assert outcomes == {"decoded", *refusals}
    good = [verdict for name, verdict in report.verdicts if name.startswith("good")]
    assert {(verdict.outcome, verdict.front) for verdict in good} == {("decoded", "decoded")}
    assert not any(verdict.sizes_differ for verdict in good)  # of others, the two may disagree


@linux
def test_ten_bytes_for_each_pixel_that_is_allowed() -> None:
    """Of every format and mode the largest picture: what sizes a worker's memory."""
    limit = 6_000_000
    report = endure(pixels(limit), limit, Rules(memory=MEMORY + 10 * limit))
    assert report.broken() == []
    outcomes = Counter(verdict.outcome for _, verdict in report.verdicts)
    assert outcomes == {"decoded": 20, "too_many_pixels": 4}


def test_the_same_seed_makes_the_same_files() -> None:
    def prints(seed: int) -> list[str]:
        some = islice(damaged(seed), 250)
        return [name + hashlib.sha256(data).hexdigest() for name, data in some]

    assert prints(3) == prints(3)
    assert prints(3) != prints(4)


# --- what the ordeal would say of worse decoders ---


def dies(_: bytes, __: int) -> Any:
    if _:
        os._exit(3)


def raises(_: bytes, __: int) -> Any:
    raise ValueError


def devours(data: bytes, _: int) -> Any:
    if data:
        b"x" * (100 * MB)


def toils(data: bytes, _: int) -> Any:
    until = time.process_time() + (0.2 if data else 0)
    while time.process_time() < until:
        pass


def hangs(data: bytes, _: int) -> Any:
    time.sleep(60 if data else 0)


def blames_us(_: bytes, __: int) -> Any:
    from jobs.problems import Problem

    raise Problem(500, "internal_error", "Nothing that a file may cause.")


@linux
@pytest.mark.parametrize(
    ("planted", "complaint"),
    [
        (dies, "DEATH 3"),
        (raises, "RAISED VALUEERROR"),
        (devours, " MB"),
        (toils, "decoder took"),
        (hangs, "HANG OF 1 S"),
        (blames_us, "STATUS 500"),
    ],
)
def test_a_planted_fault_is_found_in_each_file(planted: Any, complaint: str) -> None:
    """The process is replaced where it died, so that the second file is judged as well."""
    rules = Rules(seconds=0.15, memory=50 * MB)
    patience_s = 1 if planted is hangs else 60
    report = endure(GOOD, MANY, rules, f"{HERE}:{planted.__name__}", patience_s)
    assert sum(complaint in line for line in report.broken()) == 2, report.broken()
