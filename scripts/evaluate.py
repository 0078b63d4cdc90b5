"""`mayfly evaluate`: what was found against the truth, both as COCO.

Average precision and recall are pycocotools' own. The rest is at one score threshold, as a user
meets it: precision, recall and F1, counts, what was taken for what, and the images with the most
errors.
"""

import argparse
import contextlib
import io
import json
import sys
from collections import Counter, defaultdict
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jobs.contract import Box
from jobs.settings import SettingsError
from scripts.pairs import Find, Pairs, match, read

MISSED, NOTHING = "(missed)", "(nothing)"
_WORST = 12  # images on the sheet of the worst


def run(options: argparse.Namespace) -> int:
    """Print the report; write it and the sheet if asked to."""
    for name in ("threshold", "iou"):
        if not 0 < getattr(options, name) <= 1:
            raise SettingsError(f"--{name} is above 0 and at most 1.")
    pairs = read(options.truth, options.predictions)
    report = evaluate(pairs, options.threshold, options.iou)
    sys.stdout.write(render(report))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / "report.json"
        path.write_text(json.dumps(report, indent=1) + "\n")
        if options.images:
            _draw_worst(pairs, report, options)
    return 0


def evaluate(pairs: Pairs, threshold: float, iou: float) -> dict[str, Any]:
    """Everything that the report says, ready for JSON."""
    scored = _scored(pairs, iou)
    labels = sorted(
        {f.label for side in (pairs.truth, pairs.found) for fs in side.values() for f in fs}
    )
    overall = _at(scored, threshold)
    confusion: dict[str, Counter[str]] = defaultdict(Counter)
    errors: Counter[str] = Counter()
    for name, truth in pairs.truth.items():
        found = [find for find in pairs.found[name] if find.score >= threshold]
        matches = match(truth, found, iou, labels_too=False)
        for expected, got in matches.pairs:
            confusion[truth[expected].label][found[got].label] += 1
            errors[name] += truth[expected].label != found[got].label
        for expected in matches.missed:
            confusion[truth[expected].label][MISSED] += 1
        for got in matches.false:
            confusion[NOTHING][found[got].label] += 1
        errors[name] += len(matches.missed) + len(matches.false)
    report: dict[str, Any] = {
        "images": len(pairs.truth),
        "images_unknown_to_the_truth": pairs.unknown,
        "threshold": threshold,
        "iou": iou,
        "box": _average_precision(pairs, "bbox"),
    }
    if _has_masks(pairs):
        report["mask"] = _average_precision(pairs, "segm")
    report |= {
        "at_threshold": overall,
        "best": _best(scored),
        "labels": {
            label: _at([s for s in scored if s.label == label], threshold) for label in labels
        },
        "counts": {label: _counts(pairs, label, threshold) for label in labels},
        "confusion": {label: dict(row) for label, row in sorted(confusion.items())},
        "worst": [[name, count] for name, count in errors.most_common(_WORST) if count],
    }
    return report


def render(report: dict[str, Any]) -> str:
    """The report as text for a terminal."""
    out = io.StringIO()

    def line(*cells: Any, first: int = 24) -> None:
        shown = [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells]
        out.write(
            f"{shown[0][:first]:{first}}" + "".join(f"{c[:14]:>15}" for c in shown[1:]) + "\n"
        )

    line("images", report["images"])
    if report["images_unknown_to_the_truth"]:
        line("  not in the truth, left out", report["images_unknown_to_the_truth"], first=28)
    line("", "AP", "AP50", "AP75", "AR")
    for kind in ("box", "mask"):
        if kind in report:
            line(kind, *(report[kind][name] for name in ("AP", "AP50", "AP75", "AR")))
    out.write(f"\nat score >= {report['threshold']:g}, IoU >= {report['iou']:g}\n")
    line("", "precision", "recall", "F1", "right", "false", "missed")
    rows = {"all": report["at_threshold"], **report["labels"]}
    for label, row in rows.items():
        line(label, *(row[k] for k in ("precision", "recall", "F1", "right", "false", "missed")))
    best = report["best"]
    out.write(f"best F1 {best['F1']:.3f} at score >= {best['threshold']:.3f}\n\n")
    line("counts", "truth", "found", "off per image", "all right in")
    for label, row in report["counts"].items():
        line(label, row["truth"], row["found"], row["mean_absolute_error"], row["images_right"])
    columns = sorted({name for row in report["confusion"].values() for name in row})
    out.write("\nwhat was taken for what (rows: truth)\n")
    line("", *columns)
    for label, row in report["confusion"].items():
        line(label, *(row.get(name, 0) for name in columns))
    if report["worst"]:
        out.write("\nmost errors\n")
        for name, count in report["worst"]:
            out.write(f"{count:5}  {name}\n")
    return out.getvalue()


class _Scored(NamedTuple):
    label: str
    score: float  # -1 for what was missed whatever the threshold
    right: bool


def _scored(pairs: Pairs, iou: float) -> list[_Scored]:
    """Each find with whether it is right. A lower threshold only adds finds, in order of their
    scores, so that one matching serves for all thresholds."""
    scored = []
    for name, truth in pairs.truth.items():
        found = pairs.found[name]
        matches = match(truth, found, iou, labels_too=True)
        scored += [_Scored(found[got].label, found[got].score, True) for _, got in matches.pairs]
        scored += [_Scored(found[got].label, found[got].score, False) for got in matches.false]
        scored += [_Scored(truth[at].label, -1, True) for at in matches.missed]
    return scored


def _at(scored: list[_Scored], threshold: float) -> dict[str, Any]:
    right = sum(each.right and each.score >= threshold for each in scored)
    false = sum(not each.right and each.score >= threshold for each in scored)
    missed = sum(each.right and each.score < threshold for each in scored)
    return {
        "precision": right / (right + false) if right + false else 0.0,
        "recall": right / (right + missed) if right + missed else 0.0,
        "F1": 2 * right / (2 * right + false + missed) if right + false + missed else 1.0,
        "right": right,
        "false": false,
        "missed": missed,
    }


def _best(scored: list[_Scored]) -> dict[str, float]:
    total = sum(each.right for each in scored)
    best, threshold, right = 0.0, 1.0, 0
    ordered = sorted((each for each in scored if each.score >= 0), key=lambda each: -each.score)
    for count, each in enumerate(ordered, 1):
        right += each.right
        last = count == len(ordered) or ordered[count].score < each.score
        f1 = 2 * right / (count + total)
        if last and f1 > best:
            best, threshold = f1, each.score
    return {"F1": best, "threshold": threshold}


def _counts(pairs: Pairs, label: str, threshold: float) -> dict[str, Any]:
    truth = [sum(f.label == label and not f.crowd for f in fs) for fs in pairs.truth.values()]
    found = [
        sum(f.label == label and f.score >= threshold for f in pairs.found[name])
        for name in pairs.truth
    ]
    off = [got - expected for got, expected in zip(found, truth, strict=True)]
    return {
        "truth": sum(truth),
        "found": sum(found),
        "mean_absolute_error": sum(map(abs, off)) / len(off) if off else 0.0,
        "bias": sum(off) / len(off) if off else 0.0,
        "images_right": sum(not each for each in off),
    }


def _average_precision(pairs: Pairs, kind: str) -> dict[str, float]:
    """pycocotools' AP and AR, over all finds: its usual bound of 100 an image would cut counts."""
    most = Counter(each["image_id"] for each in pairs.results)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
        known = COCO()
        known.dataset = pairs.coco
        known.createIndex()
        if not pairs.results:
            return {"AP": 0.0, "AP50": 0.0, "AP75": 0.0, "AR": 0.0}
        evaluation = COCOeval(known, known.loadRes([dict(each) for each in pairs.results]), kind)
        evaluation.params.maxDets = [1, 10, max(100, *most.values())]
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]

    def mean(values: NDArray[np.float64]) -> float:
        return float(values[values > -1].mean()) if (values > -1).any() else 0.0

    return {
        "AP": mean(precision[:, :, :, 0, -1]),
        "AP50": mean(precision[0, :, :, 0, -1]),
        "AP75": mean(precision[5, :, :, 0, -1]),
        "AR": mean(recall[:, :, 0, -1]),
    }


def _has_masks(pairs: Pairs) -> bool:
    both = (pairs.coco["annotations"], pairs.results)
    return all(side and all(each.get("segmentation") for each in side) for side in both)


def _draw_worst(pairs: Pairs, report: dict[str, Any], options: argparse.Namespace) -> None:
    from scripts import draw

    def corners(find: Find) -> Box:
        x, y, width, height = find.box
        return (x, y, x + width, y + height)

    tiles = []
    for name, count in report["worst"]:
        truth = pairs.truth[name]
        found = [find for find in pairs.found[name] if find.score >= options.threshold]
        matches = match(truth, found, options.iou, labels_too=True)
        marks = [draw.Mark(corners(found[got]), draw.FOUND) for _, got in matches.pairs]
        marks += [draw.Mark(corners(truth[at]), draw.MISSED, "missed") for at in matches.missed]
        marks += [draw.Mark(corners(found[got]), draw.PROMPT, "false") for got in matches.false]
        path = options.images / name
        image = path.read_bytes() if path.is_file() else None
        tiles.append(draw.Tile(f"{name}: {count}", image, marks))
    draw.draw_sheet(tiles, options.out / "worst.png")
