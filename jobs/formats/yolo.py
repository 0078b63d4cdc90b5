"""YOLO text: one line for each find, numbers as fractions of the image's sides."""

from collections.abc import Iterable, Sequence

from jobs.contract import Annotated, Annotation, Size
from jobs.formats.labels import numbers
from jobs.formats.masks import outlines


def yolo(
    result: Annotated, labels: Sequence[str], *, polygons: bool = False, confidence: bool = False
) -> str:
    """Label file of one image: ``class cx cy w h``, or ``class x y x y …`` with `polygons`.

    Everything is cut to the image, since trainers drop an image whose numbers leave 0..1.

    Args:
        labels: what the classes 0, 1, … stand for; the file itself has no place for names.
        polygons: write the outline of the mask's largest part (a line is one polygon), or the
            corners of the box where there is no mask.
        confidence: add the score as the last column, which predictions have and training labels
            must not.

    Raises:
        ValueError: `labels` lacks a label of `result` or has one twice.
    """
    classes = numbers(labels)
    lines = []
    for find in result.annotations:
        if find.label not in classes:
            raise ValueError(f"The label {find.label!r} is not among the labels given.")
        shape = _polygon(find, result.image) if polygons else _box(find, result.image)
        fields = [str(classes[find.label]), *(f"{number:.8f}" for number in shape)]
        if confidence:
            fields.append(f"{find.score:.6f}")
        lines.append(" ".join(fields) + "\n")
    return "".join(lines)


def yolo_pose(result: Annotated, labels: Sequence[str], keypoints: int | None = None) -> str:
    """Label file of one image with keypoints: ``class cx cy w h x y v x y v …``.

    Args:
        labels: as for `yolo`.
        keypoints: how many each line has, the same in a whole data set; what a find lacks is 0.
            None for the most that a find of `result` has.

    Raises:
        ValueError: as `yolo`; a find has more keypoints.
    """
    counts = [len(find.keypoints or ()) for find in result.annotations]
    count = max(counts, default=0) if keypoints is None else keypoints
    if max(counts, default=0) > count:
        raise ValueError(f"A find has more than {count} keypoints.")
    lines = yolo(result, labels).splitlines()
    for at, find in enumerate(result.annotations):
        for x, y, visibility in find.keypoints or ():
            across, down = _fractions([x, y] if visibility else [0, 0], result.image)
            lines[at] += f" {across:.8f} {down:.8f} {visibility}"
        lines[at] += " 0 0 0" * (count - counts[at])
    return "".join(line + "\n" for line in lines)


def data_yaml(
    labels: Sequence[str], train: str = "images", val: str = "images", keypoints: int | None = None
) -> str:
    """The data.yaml of a YOLO data set.

    Args:
        labels: names of the classes 0, 1, …
        train: folder of the training images, relative to the file; label files are looked for
            under the same path with ``images`` replaced by ``labels``.
        val: the same for validation.
        keypoints: how many each find has, in data sets of `yolo_pose`.
    """
    head = f"train: {_scalar(train)}\nval: {_scalar(val)}\nnc: {len(labels)}\n"
    if keypoints is not None:
        head += f"kpt_shape: [{keypoints}, 3]\n"
    if not labels:
        return head + "names: {}\n"
    names = "".join(f"  {number}: {_scalar(label)}\n" for number, label in enumerate(labels))
    return head + "names:\n" + names


def _box(find: Annotation, image: Size) -> list[float]:
    x0, y0, x1, y1 = _fractions(find.box, image)
    return [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]


def _polygon(find: Annotation, image: Size) -> list[float]:
    parts = outlines(find.mask) if find.mask else []
    if parts:
        return _fractions([number for corner in parts[0] for number in corner], image)
    x0, y0, x1, y1 = find.box
    return _fractions([x0, y0, x1, y0, x1, y1, x0, y1], image)


def _fractions(coordinates: Iterable[float], image: Size) -> list[float]:
    sides = (image.width, image.height)
    return [min(max(number / sides[at % 2], 0.0), 1.0) for at, number in enumerate(coordinates)]


def _scalar(text: str) -> str:
    """A double-quoted YAML string; what is not plainly visible is written as its code point."""
    safe = (
        char if char.isprintable() and char not in '"\\' else f"\\U{ord(char):08x}" for char in text
    )
    return f'"{"".join(safe)}"'
