"""Results in the formats that annotation tools and trainers read.

Pure functions over `Annotated`. `FORMATS` holds the answers for one image, by the name that stands
in ``?format=``. Data sets are made of those that start with ``write``, and of `yolo`, `yolo_pose`,
`data_yaml`, `voc`, `labelme`, `label_studio_task` and `roboflow`. Only `mayfly` can also say what
``task: "embed"`` answers. Labels are anybody's text and are escaped in every format; what XML
cannot carry becomes U+FFFD there.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct

from jobs.contract import Annotated, Embedded
from jobs.formats.coco import coco, write_coco
from jobs.formats.labels import labels_of
from jobs.formats.markup import cvat, voc, write_cvat
from jobs.formats.masks import outlines
from jobs.formats.table import table, write_counts, write_table
from jobs.formats.tools import (
    label_studio,
    label_studio_regions,
    label_studio_task,
    labelme,
    roboflow,
)
from jobs.formats.yolo import data_yaml, yolo, yolo_pose

__all__ = [
    "FORMATS",
    "Format",
    "data_yaml",
    "label_studio_regions",
    "label_studio_task",
    "labelme",
    "labels_of",
    "mayfly",
    "outlines",
    "roboflow",
    "voc",
    "write_coco",
    "write_counts",
    "write_cvat",
    "write_table",
    "yolo",
    "yolo_pose",
]


class Format(Struct, frozen=True):
    """How one image's result is written.

    Attributes:
        media_type: for ``Content-Type``.
        extension: of a file with it, without the dot.
        write: result and image file name to bytes; call `render` instead.
        numbered: the body knows classes by number only. What they stand for is
            ``labels_of([result])`` and has to travel beside the body.
    """

    media_type: str
    extension: str
    write: Callable[[Annotated, str], bytes]
    numbered: bool = False

    def render(self, result: Annotated, name: str = "image") -> bytes:
        """`result` in this format.

        Args:
            name: file name of the image; folders in front of it are dropped, because readers
                look for the image under this name.

        Raises:
            ValueError: a mask is not COCO run-length encoding of its size, or a number is not
                finite.
        """
        name = re.split(r"[/\\]", name)[-1]
        return self.write(result, "image" if name in ("", ".", "..") else name)


def mayfly(result: Annotated | Embedded) -> bytes:
    """The result as the API describes it, in JSON."""
    return msgspec.json.encode(result)


def _json(write: Callable[[Annotated, str], Any]) -> Callable[[Annotated, str], bytes]:
    return lambda result, name: json.dumps(write(result, name), allow_nan=False).encode()


def _text(write: Callable[[Annotated], str]) -> Callable[[Annotated, str], bytes]:
    return lambda result, name: write(result).encode(errors="replace")


_JSON, _XML, _TEXT = "application/json", "application/xml", "text/plain; charset=utf-8"

FORMATS: dict[str, Format] = {
    "mayfly": Format(_JSON, "json", lambda result, name: mayfly(result)),
    "coco": Format(_JSON, "json", coco),
    "coco-polygon": Format(_JSON, "json", partial(coco, polygons=True)),
    "yolo": Format(
        _TEXT, "txt", _text(lambda result: yolo(result, labels_of([result]))), numbered=True
    ),
    "yolo-seg": Format(
        _TEXT,
        "txt",
        _text(lambda result: yolo(result, labels_of([result]), polygons=True)),
        numbered=True,
    ),
    "yolo-pose": Format(
        _TEXT, "txt", _text(lambda result: yolo_pose(result, labels_of([result]))), numbered=True
    ),
    "voc": Format(_XML, "xml", voc),
    "labelme": Format(_JSON, "json", _json(labelme)),
    "label-studio": Format(_JSON, "json", _json(label_studio)),
    "cvat": Format(_XML, "xml", cvat),
    "roboflow": Format(_JSON, "json", _json(roboflow)),
    "csv": Format("text/csv; charset=utf-8; header=present", "csv", _text(table)),
}
