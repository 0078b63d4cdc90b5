"""JSON that annotation tools read: LabelMe, Label Studio and Roboflow."""

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.contract import Annotated, Annotation
from jobs.formats.labels import labels_of, numbers
from jobs.formats.masks import outlines

CONTROLS = {"rectanglelabels": "label", "polygonlabels": "polygon", "keypointlabels": "keypoint"}


def labelme(result: Annotated, name: str) -> dict[str, Any]:
    """LabelMe's file for one image, without the image; also read by X-AnyLabeling.

    A find is a polygon for each part of its mask, or a rectangle of two corners, in pixels. Its
    keypoints are points named by their number. Shapes of one find share a group.
    """
    shapes: list[dict[str, Any]] = []
    for number, find in enumerate(result.annotations):
        x0, y0, x1, y1 = find.box
        parts: list[tuple[str, str, Sequence[Sequence[float]]]] = [
            (find.label, "polygon", ring) for ring in _parts(find)
        ] or [(find.label, "rectangle", [(x0, y0), (x1, y1)])]
        for at, (x, y, visibility) in enumerate(find.keypoints or ()):
            if visibility:
                parts.append((str(at), "point", [(x, y)]))
        shapes += [
            {
                "label": label,
                "points": points,
                "group_id": number if len(parts) > 1 else None,
                "description": "",
                "shape_type": kind,
                "flags": {},
                "score": find.score,
            }
            for label, kind, points in parts
        ]
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": name,
        "imageData": None,
        "imageHeight": result.image.height,
        "imageWidth": result.image.width,
    }


def label_studio(result: Annotated, name: str) -> list[dict[str, Any]]:
    """A Label Studio import of one task, as `label_studio_task` makes it."""
    return [label_studio_task(result, name)]


def label_studio_task(result: Annotated, name: str) -> dict[str, Any]:
    """A task with one prediction, for a list of them that Label Studio imports.

    ``data.image`` is `name`; it is to be an address that Label Studio reaches. The controls of the
    labelling setup are to be called as in `CONTROLS` and its image ``image``.
    """
    scores = [find.score for find in result.annotations]
    prediction = {
        "model_version": f"{result.model.name} {result.model.version}",
        "score": sum(scores) / len(scores) if scores else 0.0,
        "result": label_studio_regions(result),
    }
    return {"data": {"image": name}, "predictions": [prediction]}


def label_studio_regions(
    result: Annotated, controls: Mapping[str, str] = CONTROLS, to_name: str = "image"
) -> list[dict[str, Any]]:
    """The regions of one Label Studio prediction, in percent of the image's sides.

    A find is a polygon for each part of its mask if `controls` has polygons, else a rectangle if
    it has those. Keypoints point at the find's first region as their parent.

    Args:
        controls: which of ``rectanglelabels``, ``polygonlabels`` and ``keypointlabels`` the
            labelling setup has, and under what name.
        to_name: what the setup calls the image.
    """
    across, down = 100 / result.image.width, 100 / result.image.height
    regions: list[dict[str, Any]] = []

    def add(kind: str, key: str, find: Annotation, value: dict[str, Any], **more: str) -> None:
        region = {
            "id": key,
            "type": kind,
            "from_name": controls[kind],
            "to_name": to_name,
            "original_width": result.image.width,
            "original_height": result.image.height,
            "image_rotation": 0,
            "score": find.score,
            "value": value | {kind: [find.label]},
        }
        regions.append(region | more)

    for number, find in enumerate(result.annotations, 1):
        x0, y0, x1, y1 = find.box
        rings = _parts(find) if "polygonlabels" in controls else []
        for part, ring in enumerate(rings, 1):
            points = [[x * across, y * down] for x, y in ring]
            add("polygonlabels", f"{number}-{part}", find, {"points": points, "closed": True})
        if not rings and "rectanglelabels" in controls:
            corner = {"x": x0 * across, "y": y0 * down, "rotation": 0}
            sides = {"width": (x1 - x0) * across, "height": (y1 - y0) * down}
            add("rectanglelabels", f"{number}-1", find, corner | sides)
        parent = {"parentID": f"{number}-1"} if rings or "rectanglelabels" in controls else {}
        for at, (x, y, visibility) in enumerate(find.keypoints or ()):
            if visibility and "keypointlabels" in controls:
                place = {"x": x * across, "y": y * down, "width": 0.5}
                add("keypointlabels", f"{number}-k{at}", find, place, **parent)
    return regions


def roboflow(result: Annotated, name: str) -> dict[str, Any]:
    """An answer of Roboflow Inference: boxes by centre and sides, in pixels.

    Classes are numbered as by `labels_of`. A mask comes exact, as run-length encoding, and as the
    outline of its largest part for readers that know polygons only. A keypoint's confidence is
    half of its visibility; those without a place are left out, as Roboflow does.
    """
    classes = numbers(labels_of([result]))
    predictions = []
    for find in result.annotations:
        x0, y0, x1, y1 = find.box
        prediction: dict[str, Any] = {
            "x": (x0 + x1) / 2,
            "y": (y0 + y1) / 2,
            "width": x1 - x0,
            "height": y1 - y0,
            "confidence": find.score,
            "class": find.label,
            "class_id": classes[find.label],
        }
        if parts := _parts(find):
            prediction["points"] = [{"x": x, "y": y} for x, y in parts[0]]
        if find.mask:
            prediction["rle"] = {"size": find.mask.size, "counts": find.mask.counts}
        if find.keypoints is not None:
            prediction["keypoints"] = [
                {"x": x, "y": y, "confidence": visibility / 2, "class_id": at, "class": str(at)}
                for at, (x, y, visibility) in enumerate(find.keypoints)
                if visibility
            ]
        predictions.append(prediction)
    size = {"width": result.image.width, "height": result.image.height}
    return {"time": result.timing.infer_ms / 1000, "image": size, "predictions": predictions}


def _parts(find: Annotation) -> list[list[tuple[int, int]]]:
    return outlines(find.mask) if find.mask else []
