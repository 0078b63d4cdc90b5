"""Truth and predictions of the same images, read from COCO and matched.

Images are matched by file name and categories by name, because ids differ from tool to tool.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from jobs.settings import SettingsError


class Find(NamedTuple):
    """One object: box as x, y, width, height in pixels; score 1 and maybe `crowd` for the truth."""

    label: str
    box: tuple[float, float, float, float]
    score: float
    crowd: bool


class Pairs(NamedTuple):
    """Truth and predictions of the same images.

    `truth` and `found` are by file name; `coco` and `results` are the same for pycocotools.
    """

    truth: dict[str, list[Find]]
    found: dict[str, list[Find]]
    coco: dict[str, Any]
    results: list[dict[str, Any]]
    unknown: int  # images with predictions that the truth does not have


class Matches(NamedTuple):
    """One image at one threshold: pairs of indices, and what is left on both sides."""

    pairs: list[tuple[int, int]]
    missed: list[int]
    false: list[int]


def read(truth: Path, predictions: Path) -> Pairs:
    """Both files, matched by names.

    Raises:
        SettingsError: one of them is not COCO, or they have no image in common.
    """
    known, answers = _load(truth), _load(predictions)
    if isinstance(answers, list):  # COCO's own form of results: the ids are those of the truth
        answers = {**known, "annotations": answers}
    try:
        files = {image["id"]: image["file_name"] for image in known["images"]}
        labels = {each["id"]: each["name"] for each in known["categories"]}
        found = _finds(answers)
        expected = _finds(known)
        numbers = {label: number for number, label in labels.items()}
        for label in sorted({find.label for finds in found.values() for find in finds}):
            numbers.setdefault(label, max(numbers.values(), default=0) + 1)
        results = _results(answers, {name: number for number, name in files.items()}, numbers)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise SettingsError(
            f"{truth} or {predictions} is not COCO with images, categories and annotations "
            f"({error!r})."
        ) from None
    if not found.keys() & set(files.values()):
        raise SettingsError(
            "No image is in both files. They are matched by file_name: write both from one folder."
        )
    coco = dict(known)
    coco["categories"] = [{"id": number, "name": label} for label, number in numbers.items()]
    coco["annotations"] = [
        {"area": each["bbox"][2] * each["bbox"][3], "iscrowd": 0, **each, "id": number}
        for number, each in enumerate(known["annotations"], 1)
    ]
    return Pairs(
        {name: expected.get(name, []) for name in files.values()},
        {name: found.get(name, []) for name in files.values()},
        coco,
        results,
        len(found.keys() - set(files.values())),
    )


def match(truth: list[Find], found: list[Find], iou: float, *, labels_too: bool) -> Matches:
    """Pair finds with the truth, best scores first, each with the free one that it overlaps most.

    Crowds are nobody's pair; what lies in one is neither right nor false.
    """
    overlaps = _overlaps(truth, found)
    free = {at for at, each in enumerate(truth) if not each.crowd}
    pairs, false = [], []
    for got in sorted(range(len(found)), key=lambda at: -found[at].score):
        near = [
            (overlaps[got, at], -at)
            for at in free
            if overlaps[got, at] >= iou and (not labels_too or truth[at].label == found[got].label)
        ]
        if near:
            at = -max(near)[1]
            free.discard(at)
            pairs.append((at, got))
        elif not any(
            each.crowd and overlaps[got, at] >= iou and (each.label == found[got].label)
            for at, each in enumerate(truth)
        ):
            false.append(got)
    return Matches(pairs, sorted(free), false)


def _overlaps(truth: list[Find], found: list[Find]) -> NDArray[np.float64]:
    if not truth or not found:
        return np.zeros((len(found), len(truth)))
    boxes = [np.array([each.box for each in side], dtype=float) for side in (found, truth)]
    overlaps: NDArray[np.float64] = coco_mask.iou(*boxes, [int(each.crowd) for each in truth])
    return overlaps


def _finds(document: Any) -> dict[str, list[Find]]:
    files = {image["id"]: image["file_name"] for image in document["images"]}
    labels = {each["id"]: each["name"] for each in document["categories"]}
    finds: dict[str, list[Find]] = {name: [] for name in files.values()}
    for each in document["annotations"]:
        x, y, width, height = map(float, each["bbox"])
        score, crowd = float(each.get("score", 1)), bool(each.get("iscrowd", 0))
        label = labels[each["category_id"]]
        finds[files[each["image_id"]]].append(Find(label, (x, y, width, height), score, crowd))
    return finds


def _results(
    document: Any, images: dict[str, int], numbers: dict[str, int]
) -> list[dict[str, Any]]:
    """Predictions in pycocotools' form, under the ids of the truth."""
    files = {image["id"]: image["file_name"] for image in document["images"]}
    labels = {each["id"]: each["name"] for each in document["categories"]}
    results = []
    for each in document["annotations"]:
        if (image := images.get(files[each["image_id"]])) is not None:
            result: dict[str, Any] = {"image_id": image}
            result |= {"category_id": numbers[labels[each["category_id"]]]}
            result |= {"bbox": each["bbox"], "score": float(each.get("score", 1))}
            if each.get("segmentation"):
                result["segmentation"] = each["segmentation"]
            results.append(result)
    return results


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read as JSON: {error}.") from None
