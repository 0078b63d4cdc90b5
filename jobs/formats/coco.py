"""COCO JSON, for one image or a data set of any length."""

import json
from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import Any, BinaryIO

from jobs.contract import Annotated, Annotation
from jobs.formats.labels import numbers
from jobs.formats.masks import area, outlines


def coco(result: Annotated, name: str, *, polygons: bool = False) -> bytes:
    """One image as a data set of its own."""
    out = BytesIO()
    write_coco(out, [(name, result)], polygons=polygons)
    return out.getvalue()


def write_coco(
    out: BinaryIO,
    items: Iterable[tuple[str, Annotated]],
    labels: Sequence[str] | None = None,
    *,
    polygons: bool = False,
) -> None:
    """Write a COCO data set: ids from 1, boxes as x, y, width, height in pixels, and scores.

    Image ids follow the order of `items`, category ids that of `labels`. Masks stay run-length
    encoded, with ``iscrowd`` 0; an annotation without one has an empty segmentation. The JSON is
    ASCII, because readers open it in whatever encoding their machine prefers.

    Args:
        out: a binary file; the parts go to it as they are made.
        items: file name (or path relative to the images) and result of each image. It is read
            twice, in the same order, and never held: a list, or an object whose ``__iter__``
            reads the results from where they are kept.
        labels: the categories in order; None for the labels that occur, sorted.
        polygons: write masks as the outlines of their parts, for tools that read nothing else.
            Holes are lost.

    Raises:
        TypeError: `items` is a generator, which can be read once only.
        ValueError: an annotation's label is not among `labels`, or `labels` has one twice.
    """
    if iter(items) is items:
        raise TypeError("write_coco reads its items twice: give it a list, not a generator.")
    if labels is not None:
        numbers(labels, 1)  # refuse before anything is written
    keypoints: dict[str, int] = {}  # label -> most keypoints of one find
    out.write(b'{"info":{"description":"Annotated by Mayfly"},"licenses":[],\n"images":[')
    for number, (name, result) in enumerate(items, 1):
        image = {"id": number, "file_name": name}
        image |= {"width": result.image.width, "height": result.image.height}
        _write_entry(out, number == 1, image)
        for find in result.annotations:
            count = max(len(find.keypoints or ()), keypoints.get(find.label, 0))
            keypoints[find.label] = count
    classes = numbers(sorted(keypoints) if labels is None else labels, 1)
    if unknown := keypoints.keys() - classes.keys():
        raise ValueError(f"The label {min(unknown)!r} is not among the labels given.")
    out.write(b'],\n"categories":[')
    for label, number in classes.items():
        category: dict[str, Any] = {"id": number, "name": label, "supercategory": ""}
        if count := keypoints.get(label, 0):
            category |= {"keypoints": [str(at) for at in range(count)], "skeleton": []}
        _write_entry(out, number == 1, category)
    out.write(b'],\n"annotations":[')
    written = 0
    for number, (_, result) in enumerate(items, 1):
        for find in result.annotations:
            written += 1
            ids = {"id": written, "image_id": number, "category_id": classes[find.label]}
            _write_entry(out, written == 1, ids | _entry(find, polygons))
    out.write(b"]}\n")


def _write_entry(out: BinaryIO, first: bool, entry: dict[str, Any]) -> None:
    out.write((b"\n" if first else b",\n") + json.dumps(entry).encode())


def _entry(find: Annotation, polygons: bool) -> dict[str, Any]:
    x0, y0, x1, y1 = find.box
    width, height = x1 - x0, y1 - y0
    entry: dict[str, Any] = {
        "bbox": [x0, y0, width, height],
        "area": area(find.mask) if find.mask else width * height,
        "segmentation": [],
        "iscrowd": 0,
        "score": find.score,
    }
    if find.mask and polygons:
        rings = outlines(find.mask)
        entry["segmentation"] = [[float(n) for corner in ring for n in corner] for ring in rings]
    elif find.mask:
        entry["segmentation"] = {"size": find.mask.size, "counts": find.mask.counts}
    if find.keypoints is not None:
        entry["keypoints"] = [number for point in find.keypoints for number in point]
        entry["num_keypoints"] = sum(visibility > 0 for *_, visibility in find.keypoints)
    return entry
