"""The short form of `python -m tests.faults.chaos`; the command runs for as long as it is told."""

import pytest

from tests.faults.chaos import run


@pytest.mark.timeout(120)
async def test_forty_seconds_of_accidents_lose_and_repeat_nothing() -> None:
    """Real processes are killed and hung while clients work; what they saw is then checked."""
    report = await run(seconds=35, seed=20, kill_every_s=2)
    print("\n".join(report.lines))  # noqa: T201 - shown when it fails
    assert report.problems == []
