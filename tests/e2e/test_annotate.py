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
    """The second picture is the first one mirrored; the example goes along as an embedding."""
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
    assert "each image is sent with an embedding of the examples" in run.stderr
    data = json.loads(out.read_text())
    names = sorted(f"{path.parent.name}/{path.name}" for path in (coins, mirrored))
    assert [image["file_name"] for image in data["images"]] == names
    assert [category["name"] for category in data["categories"]] == ["coin"]
    truth = json.loads((Path(__file__).parents[1] / "data" / "coins.json").read_text())
    numbers = {image["file_name"]: image["id"] for image in data["images"]}
    for path, boxes in (
        (coins, truth),
        (mirrored, [[384 - x1, y0, 384 - x0, y1] for x0, y0, x1, y1 in truth]),
    ):
        found = [
            (x, y, x + width, y + height)
            for x, y, width, height in (
                a["bbox"]
                for a in data["annotations"]
                if a["image_id"] == numbers[f"{path.parent.name}/{path.name}"]
            )
        ]
        hits = sum(any(iou(tuple(box), one) >= 0.5 for one in found) for box in boxes)
        assert hits >= 20, f"{path.name}: {hits} of 24"


def test_the_demo_finds_the_coins(tmp_path: Path) -> None:
    run = _mayfly("demo", "--out", str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert "24 coins at IoU >= 0.5" in run.stdout
    assert "HTTP 410" in run.stdout
    assert len(json.loads((tmp_path / "coins.json").read_text())["annotations"]) >= 22
    with Image.open(tmp_path / "coins.png") as picture:
        assert picture.size == (384, 303)
