"""`mayfly annotate` and `mayfly demo` as a user runs them, with the real model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from scripts.demo import COIN, iou
from tests.e2e.conftest import Service

BOX = ",".join(f"{number:.0f}" for number in COIN)


def _mayfly(*arguments: str, timeout: float = 100) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "scripts.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="module")
def coins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "coins.png"
    Image.fromarray(skimage.data.coins()).save(path)  # type: ignore[no-untyped-call]
    return path


def test_a_box_on_the_first_file_finds_things_in_all(
    running: Service, coins: Path, tmp_path: Path
) -> None:
    """The second picture is the first one mirrored; the example is sent along as a reference."""
    mirrored = tmp_path / "mirrored.jpg"
    Image.fromarray(np.fliplr(np.asarray(Image.open(coins)))).save(mirrored, quality=92)
    out = tmp_path / "out.json"
    run = _mayfly(
        "annotate",
        str(coins),
        str(mirrored),
        "--box",
        BOX,
        "--label",
        "coin",
        "--format",
        "coco",
        "-o",
        str(out),
        "--server",
        running.url,
    )
    assert run.returncode == 0, run.stderr
    data = json.loads(out.read_text())
    assert [image["file_name"] for image in data["images"]] == [str(coins), str(mirrored)]
    assert [category["name"] for category in data["categories"]] == ["coin"]
    truth = json.loads((Path(__file__).parents[1] / "data" / "coins.json").read_text())
    for image, boxes in (
        (1, truth),
        (2, [[384 - x1, y0, 384 - x0, y1] for x0, y0, x1, y1 in truth]),
    ):
        found = [
            (x, y, x + width, y + height)
            for x, y, width, height in (
                a["bbox"] for a in data["annotations"] if a["image_id"] == image
            )
        ]
        hits = sum(any(iou(tuple(box), one) >= 0.5 for one in found) for box in boxes)
        assert hits >= 20, f"image {image}: {hits} of 24"


def test_json_goes_to_stdout_and_the_progress_does_not(running: Service, coins: Path) -> None:
    run = _mayfly("annotate", str(coins), "--box", BOX, "--server", running.url)
    result = json.loads(run.stdout)[str(coins)]
    assert result["outcome"] == "annotated"
    assert "1/1" in run.stderr


def test_a_file_that_fails_is_named_and_the_others_are_kept(
    running: Service, coins: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(coins.read_bytes()[:20_000])
    run = _mayfly("annotate", str(coins), str(broken), "--box", BOX, "--server", running.url)
    assert run.returncode == 1
    assert "broken.png" in run.stderr
    assert "image_undecodable" in run.stderr
    assert list(json.loads(run.stdout)) == [str(coins)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere.png", "--box", BOX], "nowhere.png is not a file"),
        ([__file__, "--box", "1,2,3"], "A box is [IMAGE:]X0,Y0,X1,Y1"),
        ([__file__, "--box", "nowhere.png:1,2,3,4"], "nowhere.png is not a file"),
        ([__file__, "--box", BOX, "--server", "http://127.0.0.1:9"], "No service answers at"),
    ],
)
def test_a_wrong_call_says_what_to_do(arguments: list[str], told: str) -> None:
    run = _mayfly("annotate", *arguments)
    assert run.returncode == 78
    assert told in run.stderr
    assert "Traceback" not in run.stderr


def test_the_demo_finds_the_coins(tmp_path: Path) -> None:
    run = _mayfly("demo", "--out", str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert "24 coins at IoU >= 0.5" in run.stdout
    assert "HTTP 410" in run.stdout
    assert len(json.loads((tmp_path / "coins.json").read_text())["annotations"]) >= 22
    with Image.open(tmp_path / "coins.png") as picture:
        assert picture.size == (384, 303)
