"""`mayfly evaluate`: pycocotools' figures, and ours where it has none."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from scripts.cli import main
from scripts.evaluate import evaluate
from scripts.pairs import read

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Box = tuple[float, float, float, float]
Found = tuple[str, Box, float]


def write(
    path: Path, images: dict[str, list[Found]], first: int = 1, names: list[str] | None = None
) -> Path:
    """A COCO file; ids start at `first`, categories come in the order of `names`."""
    names = names or sorted({label for finds in images.values() for label, _, _ in finds})
    labels = {name: number for number, name in enumerate(names, first)}
    data: dict[str, Any] = {"images": [], "categories": [], "annotations": []}
    data["categories"] = [{"id": number, "name": name} for name, number in labels.items()]
    for number, (name, finds) in enumerate(images.items(), first):
        data["images"].append({"id": number, "file_name": name, "width": 640, "height": 480})
        for label, box, score in finds:
            data["annotations"].append(
                {
                    "id": len(data["annotations"]) + first,
                    "image_id": number,
                    "category_id": labels[label],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "score": score,
                }
            )
    path.write_text(json.dumps(data))
    return path


TRUTH: dict[str, list[Found]] = {
    "a.png": [("nut", (0, 0, 20, 20), 1), ("bolt", (100, 0, 20, 20), 1)],
    "b.png": [("nut", (50, 50, 30, 30), 1), ("nut", (200, 50, 30, 30), 1)],
    "c.png": [],
}
FOUND: dict[str, list[Found]] = {
    "c.png": [("nut", (5, 5, 20, 20), 0.6)],  # false
    "b.png": [("nut", (52, 50, 30, 30), 0.9), ("nut", (200, 50, 30, 30), 0.3)],
    "a.png": [("nut", (0, 0, 20, 20), 0.8), ("nut", (100, 0, 20, 20), 0.7)],  # a bolt for a nut
    "z.png": [("nut", (0, 0, 9, 9), 0.9)],
}


def test_the_report_counts_what_is_there(tmp_path: Path) -> None:
    """The other file has other ids, another order, a category less and an image more."""
    truth = write(tmp_path / "truth.json", TRUTH, names=["nut", "bolt"])
    found = write(tmp_path / "found.json", FOUND, first=7)
    report = evaluate(read(truth, found), 0.5, 0.5)
    assert report["at_threshold"] == {
        "precision": 2 / 4,
        "recall": 2 / 4,
        "F1": 2 * 2 / (2 * 2 + 2 + 2),
        "right": 2,
        "false": 2,
        "missed": 2,
    }
    assert report["best"] == {"F1": pytest.approx(2 * 2 / (2 + 4)), "threshold": 0.8}
    assert report["labels"]["bolt"]["missed"] == 1
    assert report["counts"]["nut"] == {
        "truth": 3,
        "found": 4,
        "mean_absolute_error": 1.0,
        "bias": pytest.approx(1 / 3),
        "images_right": 0,
    }
    assert report["confusion"] == {
        "nut": {"nut": 2, "(missed)": 1},
        "bolt": {"nut": 1},
        "(nothing)": {"nut": 1},
    }
    assert sorted(report["worst"]) == [["a.png", 1], ["b.png", 1], ["c.png", 1]]
    assert report["images_unknown_to_the_truth"] == 1
    assert evaluate(read(truth, truth), 0.5, 0.5)["at_threshold"]["F1"] == 1


def random_sets(images: int, seed: int) -> tuple[dict[str, list[Found]], dict[str, list[Found]]]:
    rng = np.random.default_rng(seed)
    truth: dict[str, list[Found]] = {}
    found: dict[str, list[Found]] = {}
    for number in range(images):
        boxes = rng.uniform((0, 0, 10, 10), (500, 400, 80, 80), (rng.integers(1, 9), 4))
        moved = boxes + rng.normal(0, 4, boxes.shape)
        extra = rng.uniform((0, 0, 10, 10), (500, 400, 80, 80), (2, 4))
        names = [("nut", "bolt")[n] for n in rng.integers(0, 2, len(boxes))]
        truth[f"{number}.png"] = [
            (name, (x, y, width, height), 1.0)
            for name, (x, y, width, height) in zip(names, boxes.tolist(), strict=True)
        ]
        found[f"{number}.png"] = [
            (name, (x, y, width, height), float(rng.uniform()))
            for name, (x, y, width, height) in zip(
                [*names, "nut", "bolt"], [*moved.tolist(), *extra.tolist()], strict=True
            )
        ]
    return truth, found


def test_average_precision_is_that_of_pycocotools(tmp_path: Path) -> None:
    expected, answers = random_sets(20, 1)
    truth = write(tmp_path / "truth.json", expected)
    found = write(tmp_path / "found.json", answers)
    box = evaluate(read(truth, found), 0.5, 0.5)["box"]
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(str(truth))
        evaluation = COCOeval(
            known, known.loadRes(json.loads(found.read_text())["annotations"]), "bbox"
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert 0.2 < evaluation.stats[0] < 0.9
    assert [box[name] for name in ("AP", "AP50", "AP75")] == pytest.approx(evaluation.stats[:3])
    assert box["AR"] == pytest.approx(evaluation.stats[8])
    # the same as a list of results, which has the ids of the truth
    results = tmp_path / "results.json"
    results.write_text(json.dumps(json.loads(found.read_text())["annotations"]))
    assert evaluate(read(truth, results), 0.5, 0.5)["box"] == box


def test_boxes_without_masks_and_images_without_sizes_are_fine(tmp_path: Path) -> None:
    """A set labelled by hand may have nothing but boxes, or nothing at all."""
    truth = write(tmp_path / "truth.json", {"a.png": []}, names=["nut"])
    found = write(tmp_path / "found.json", {"a.png": [("nut", (1, 1, 9, 9), 0.9)]})
    data = json.loads(truth.read_text())
    data["images"] = [{"id": 1, "file_name": "a.png"}]
    truth.write_text(json.dumps(data))
    report = evaluate(read(truth, found), 0.5, 0.5)
    assert "mask" not in report
    assert report["at_threshold"]["false"] == 1


def test_more_than_a_hundred_an_image_count(tmp_path: Path) -> None:
    """Colonies: pycocotools' own bound would call the rest missed."""
    dots: list[Found] = [
        ("colony", (20.0 * (n % 20), 20.0 * (n // 20), 10, 10), 1 - n / 1000) for n in range(250)
    ]
    path = write(tmp_path / "truth.json", {"plate.png": dots})
    report = evaluate(read(path, path), 0.5, 0.5)
    assert report["box"]["AR"] == 1
    assert report["counts"]["colony"]["found"] == 250


def test_the_command_prints_writes_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = write(tmp_path / "truth.json", TRUTH, names=["nut", "bolt"])
    found = write(tmp_path / "found.json", FOUND)
    for name in "ab":
        Image.new("RGB", (640, 480)).save(tmp_path / f"{name}.png")
    arguments = ["evaluate", "--truth", str(truth), "--predictions", str(found)]
    out = tmp_path / "report"
    assert main([*arguments, "--out", str(out), "--images", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "best F1 0.667 at score >= 0.800" in shown
    assert json.loads((out / "report.json").read_text())["images"] == 3
    with Image.open(out / "worst.png") as sheet:
        assert sheet.size == (4 * 360, 374)
        red, green, blue = np.moveaxis(np.asarray(sheet.convert("RGB")), 2, 0)
    assert ((red > 150) & (green < 90) & (blue < 90)).any(), "no false find in red"


@pytest.mark.parametrize(
    ("content", "told"),
    [("nonsense", "cannot be read as JSON"), ("{}", "is not COCO"), ("[1]", "is not COCO")],
)
def test_what_is_not_coco_is_told(
    tmp_path: Path, content: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = write(tmp_path / "truth.json", TRUTH)
    other = tmp_path / "other.json"
    other.write_text(content)
    assert main(["evaluate", "--truth", str(truth), "--predictions", str(other)]) == 78
    assert told in capsys.readouterr().err
    strange = write(tmp_path / "strange.json", {"q.png": []})
    assert main(["evaluate", "--truth", str(truth), "--predictions", str(strange)]) == 78
    assert "No image is in both" in capsys.readouterr().err
