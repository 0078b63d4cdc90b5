"""The short form of `tests/batch/interrupted.py`, which is a command of its own."""

from pathlib import Path

import pytest

from tests.batch.interrupted import compare


@pytest.mark.parametrize(("kind", "kills"), [("coco", 2), ("yolo", 1)])
async def test_a_killed_run_goes_on_and_ends_the_same(
    url: str, tmp_path: Path, kind: str, kills: int
) -> None:
    report = await compare(url, tmp_path, images=60, kills=kills, seed=1, kind=kind)
    assert report.same
    assert 0 < report.finished_at_kills[0] < 60
