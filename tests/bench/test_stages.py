"""Where the time goes: each stage by itself, in the very code that workers run."""

import time
from typing import Any

import pytest

from scripts.bench import stages
from scripts.bench.pictures import DETECTOR, make_pictures, make_weights


def _spin(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_a_stage_within_another_counts_once() -> None:
    clock = stages.Clock()
    inner = clock.stage("inner")(_spin)
    with clock.stage("outer"):
        _spin(0.02)
        inner(0.05)
    assert clock.spent["inner"] == pytest.approx(0.05, abs=0.01)
    assert clock.spent["outer"] == pytest.approx(0.02, abs=0.01)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("stages")
    pictures = make_pictures(2)
    make_weights(folder / f"{DETECTOR}.pth", pictures)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAYFLY_CHECKPOINTS", f"{DETECTOR}={folder / DETECTOR}.pth")
        patch.setenv("MAYFLY_MODELS", DETECTOR)
        patch.setenv("MAYFLY_ENGINE", "eager")
        yield pictures


@pytest.mark.parametrize("make", [stages.ours, stages.plain])
def test_the_stages_are_all_of_the_loop(make: Any, pictures: list[bytes]) -> None:
    """Nearly all of its CPU time is some stage's, and each stage takes some."""
    clock = stages.Clock()
    annotate, _ = make(clock)
    annotate(pictures[:1])
    clock.spent.clear()
    begin = time.process_time()
    annotate(pictures[:1])
    took = time.process_time() - begin
    assert set(clock.spent) == {"decode", "prepare", "network", "choose", "JSON"}
    assert min(clock.spent.values()) > 0
    assert 0.9 * took < clock.total() <= took
