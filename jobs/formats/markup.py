"""The XML formats: Pascal VOC and CVAT for images 1.1."""

import re
from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import BinaryIO
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from jobs.contract import Annotated, Annotation, Size
from jobs.formats.labels import labels_of
from jobs.formats.masks import by_rows

# What XML 1.0 cannot carry in any spelling.
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def voc(result: Annotated, name: str) -> bytes:
    """Pascal VOC: whole pixels counted from 1, the last one included; box and score only.

    The box x0, y0, x1, y1 becomes xmin = x0 + 1, ymin = y0 + 1, xmax = x1, ymax = y1, rounded.
    """
    root = Element("annotation")
    _leaves(root, folder="", filename=name)
    _leaves(SubElement(root, "source"), database="Mayfly")
    size = SubElement(root, "size")
    _leaves(size, width=result.image.width, height=result.image.height, depth=3)
    _leaves(root, segmented=0)
    for find in result.annotations:
        found = SubElement(root, "object")
        _leaves(found, name=find.label, pose="Unspecified", truncated=0, difficult=0)
        _leaves(found, score=find.score)
        xmin, ymin, xmax, ymax = _whole_pixels(find, result.image)
        _leaves(SubElement(found, "bndbox"), xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax)
    return _document(root)


def cvat(result: Annotated, name: str) -> bytes:
    """CVAT for images 1.1, as its importer takes it for a task that has an image of that name."""
    out = BytesIO()
    write_cvat(out, [(name, result)], labels_of([result]))
    return out.getvalue()


def write_cvat(
    out: BinaryIO, items: Iterable[tuple[str, Annotated]], labels: Sequence[str]
) -> None:
    """Write CVAT for images 1.1, for a task that has images of these names.

    A find is a mask where there is one, else a box, in pixels; its keypoints that have a place
    are a points shape in the same group. CVAT has no field for scores.

    Args:
        out: a binary file; the parts go to it as they are made.
        items: file name and result of each image; any iterable.
        labels: all that occur.
    """
    root = Element("annotations")
    _leaves(root, version="1.1")
    task = SubElement(SubElement(root, "meta"), "task")
    _leaves(task, mode="annotation")
    listed = SubElement(task, "labels")
    for label in labels:
        _leaves(SubElement(listed, "label"), name=label, type="any", attributes="")
    head, tail = _document(root).rsplit(b"</annotations>", 1)
    out.write(head)
    for number, (name, result) in enumerate(items):
        image = _cvat_image(result, name, number)
        indent(image, level=1)
        out.write(b"  " + _escaped(tostring(image, "utf-8")) + b"\n")
    out.write(b"</annotations>" + tail)


def _cvat_image(result: Annotated, name: str, number: int) -> Element:
    width, height = str(result.image.width), str(result.image.height)
    image = Element("image", id=str(number), name=_text(name), width=width, height=height)
    for group, find in enumerate(result.annotations, 1):
        common = {"label": _text(find.label), "source": "auto", "occluded": "0", "z_order": "0"}
        points = [f"{x},{y}" for x, y, visibility in find.keypoints or () if visibility]
        if points:
            common["group_id"] = str(group)
        tag, place = _cvat_place(find)
        SubElement(image, tag, common | place)
        if points:
            SubElement(image, "points", common | {"points": ";".join(points)})
    return image


def _cvat_place(find: Annotation) -> tuple[str, dict[str, str]]:
    rows = by_rows(find.mask) if find.mask else None
    if rows is None:
        return "box", dict(zip(("xtl", "ytl", "xbr", "ybr"), map(str, find.box), strict=True))
    place = {"left": rows.left, "top": rows.top, "width": rows.width, "height": rows.height}
    runs = ", ".join(map(str, rows.runs))
    return "mask", {"rle": runs} | {side: str(number) for side, number in place.items()}


def _whole_pixels(find: Annotation, image: Size) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = find.box
    xmin = min(max(round(x0) + 1, 1), image.width)
    ymin = min(max(round(y0) + 1, 1), image.height)
    return (
        xmin,
        ymin,
        max(min(round(x1), image.width), xmin),
        max(min(round(y1), image.height), ymin),
    )


def _leaves(parent: Element, **texts: object) -> None:
    for tag, text in texts.items():
        SubElement(parent, tag).text = _text(str(text))


def _text(text: str) -> str:
    return _ILLEGAL.sub("\ufffd", text)


def _document(root: Element) -> bytes:
    indent(root)
    return _escaped(tostring(root, "utf-8", xml_declaration=True))


def _escaped(document: bytes) -> bytes:
    return document.replace(b"\r", b"&#13;")  # a bare one would be read as a line feed
