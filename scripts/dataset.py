"""Writes what a run has found as the data set that was asked for.

Everything is written from the journal, sorted by image name, so it does not matter in which order
or in how many runs the images were annotated. Each file is complete when it appears: a reader
never meets half of one, whenever this process is killed.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import msgspec

from jobs import formats
from jobs.contract import Annotated
from jobs.settings import SettingsError
from scripts.journal import Entry, Journal
from scripts.sources import Source, Unreadable

Part = Literal["train", "val"]
Pictures = Literal["none", "link", "copy"]
PARTS: tuple[Part, Part] = ("train", "val")


class Items:
    """Names and results of a journal's images, of one part or all; may be read again and again."""

    def __init__(self, journal: Journal, share: float = 0, part: Part | None = None) -> None:
        self._journal, self._share, self._part = journal, share, part

    def __iter__(self) -> Iterator[tuple[str, Annotated]]:
        for entry in self._journal:
            if self._part in (None, part_of(entry.sha256, self._share)):
                yield entry.name, entry.result


def part_of(sha256: str, share: float) -> Part:
    """Which part of a data set an image belongs to, by the hash of its bytes.

    So copies of a picture never stand in both, and images that come later move none.

    Args:
        share: of the validation part, 0 to 1.
    """
    return "val" if int(sha256[:12], 16) < share * 16**12 else "train"


class _Kind(NamedTuple):
    """A format of a data set: either `write` makes one file, or `each` one for each image."""

    extension: str
    write: Callable[[BinaryIO, Items, list[str], "Output"], None] | None = None
    each: Callable[[Entry, list[str], "Output"], bytes] | None = None
    outputs: tuple[str, ...] = ()  # what it cannot do without


class Output:
    """Where a data set goes and how it is written.

    Args:
        path: file or folder; a folder if the format has many files, or there is a validation part.
        kind: one of `KINDS`.
        labels: in their order; others that occur follow, sorted.
        share: of the validation part, 0 to 1.
        pictures: whether data sets in folders get the images too, linked or copied.
        image_prefix: what stands before an image's name in Label Studio's tasks.
        sources: where the images are, by name.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        labels: list[str],
        share: float,
        pictures: Pictures,
        image_prefix: str,
        sources: dict[str, Source],
    ) -> None:
        self.path, self.labels, self.share = path, labels, share
        self.pictures, self.image_prefix, self.sources = pictures, image_prefix, sources
        self.keypoints = 0
        self.unlinked = 0  # images that could not be put beside their labels
        self._name, self._kind = kind, KINDS[kind]
        self._state: object = None
        self._written: dict[str, int] = {}

    def write(self, journal: Journal) -> None:
        """Bring the files up to what the journal holds."""
        self.keypoints = journal.keypoints
        labels = [*self.labels, *sorted(journal.labels - set(self.labels))]
        if self._kind.write:
            for path, items in self._files(journal):
                with atomic(path, durable=True) as file:
                    self._kind.write(file, items, labels, self)
        else:
            if self._state != (labels, self.keypoints):
                self._state, self._written = (labels, self.keypoints), {}
            self._write_each(journal, labels)
            self._write_lists(journal, labels)

    def to_stdout(self, journal: Journal, stdout: BinaryIO) -> None:
        assert self._kind.write  # the command line is checked before  # noqa: S101
        labels = [*self.labels, *sorted(journal.labels - set(self.labels))]
        self._kind.write(stdout, Items(journal), labels, self)

    def _files(self, journal: Journal) -> Iterator[tuple[Path, Items]]:
        if not self.share:
            yield self.path, Items(journal)
            return
        for part in PARTS:
            path = self.path / f"{part}.{self._kind.extension}"
            yield path, Items(journal, self.share, part)

    def _write_each(self, journal: Journal, labels: list[str]) -> None:
        assert self._kind.each  # it is this or `write`  # noqa: S101
        for entry in journal:
            version = journal.version(entry.name)
            if self._written.get(entry.name) == version:
                continue
            part = part_of(entry.sha256, self.share)
            picture, label = self._places(entry.name, part)
            for left in self._places(entry.name, "train" if part == "val" else "val"):
                if left not in (picture, label):  # a changed picture may change its part
                    left.unlink(missing_ok=True)
            with atomic(label) as file:
                file.write(self._kind.each(entry, labels, self))
            if self.pictures != "none":
                self._put(entry.name, picture)
            self._written[entry.name] = version

    def clash(self) -> tuple[str, str] | None:
        """Two images whose labels would go into one file, if there are such."""
        if self._kind.write:
            return None
        taken: dict[Path, str] = {}
        for name in self.sources:
            if (other := taken.setdefault(self.places(name)[1], name)) != name:
                return other, name
        return None

    def places(self, name: str) -> tuple[Path, Path]:
        """Where an image and its labels go, whatever part it is in, to see if two would clash."""
        return self._places(name, "train")

    def _places(self, name: str, part: Part) -> tuple[Path, Path]:
        stem = Path(name).with_suffix(f".{self._kind.extension}")
        if self._name.startswith("yolo"):
            return self.path / "images" / part / name, self.path / "labels" / part / stem
        if self._name == "voc":
            return self.path / "JPEGImages" / name, self.path / "Annotations" / stem
        return self.path / name, self.path / stem

    def _put(self, name: str, place: Path) -> None:
        source = self.sources.get(name)
        if place.is_symlink() or (place.exists() and (not source or _size(place) == source.size)):
            return
        if source is None or (self.pictures == "link" and source.path is None):
            self.unlinked += 1
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        if self.pictures == "link" and source.path:
            place.symlink_to(os.path.relpath(source.path, place.parent.resolve()))
            return
        try:
            data = source.read()
        except Unreadable:
            self.unlinked += 1
            return
        with atomic(place) as file:
            file.write(data)

    def _write_lists(self, journal: Journal, labels: list[str]) -> None:
        if self._name.startswith("yolo"):
            train, val = "images/train", "images/val" if self.share else "images/train"
            for folder in (train, val):
                (self.path / folder).mkdir(parents=True, exist_ok=True)
            points = self.keypoints if self._name == "yolo-pose" else None
            with atomic(self.path / "data.yaml") as file:
                file.write(formats.data_yaml(labels, train, val, points).encode())
        if self._name == "voc":
            for part in PARTS if self.share else PARTS[:1]:
                with atomic(self.path / "ImageSets" / "Main" / f"{part}.txt") as file:
                    for name, _ in Items(journal, self.share, part):
                        file.write(f"{Path(name).with_suffix('')}\n".encode())


@contextlib.contextmanager
def atomic(path: Path, durable: bool = False) -> Iterator[BinaryIO]:
    """A binary file that appears under its name when it is complete.

    Args:
        durable: and on the disk, so that even a loss of power leaves the old one or the new.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def place_for(output: str | None, kind: str, share: float) -> tuple[Path | None, bool]:
    """The output's path, and whether it is a folder. None for stdout.

    Raises:
        SettingsError: there is a file where a folder is needed.
    """
    if output is None:
        return None, False
    path = Path(output)
    many = KINDS[kind].write is None or share > 0
    if not many and (path.is_dir() or output.endswith("/")):
        return path / f"annotations.{KINDS[kind].extension}", False
    if many and path.exists() and not path.is_dir():
        raise SettingsError(f"{path} is a file; {kind} with these options needs a folder.")
    return path, many


def _size(path: Path) -> int:
    return path.stat().st_size


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1)


def _list_of(out: BinaryIO, values: Iterator[bytes], ends: bytes) -> None:
    out.write(ends[:1])
    for number, value in enumerate(values):
        out.write((b"," if number else b"") + b"\n" + value)
    out.write(b"\n" + ends[1:] + b"\n")


def _mayfly(out: BinaryIO, items: Items, _: list[str], __: Output) -> None:
    pairs = (msgspec.json.encode(name) + b": " + formats.mayfly(result) for name, result in items)
    _list_of(out, pairs, b"{}")


def _label_studio(out: BinaryIO, items: Items, _: list[str], output: Output) -> None:
    tasks = (
        msgspec.json.encode(formats.label_studio_task(result, output.image_prefix + name))
        for name, result in items
    )
    _list_of(out, tasks, b"[]")


def _labelme(entry: Entry, _: list[str], output: Output) -> bytes:
    source = output.sources.get(entry.name)
    picture, label = output.places(entry.name)
    if output.pictures == "none" and source and source.path:
        picture = source.path
    name = os.path.relpath(os.path.abspath(picture), os.path.abspath(label.parent))
    return _json(formats.labelme(entry.result, name))


KINDS: dict[str, _Kind] = {
    "mayfly": _Kind("json", write=_mayfly),
    "coco": _Kind(
        "json", write=lambda out, items, labels, _: formats.write_coco(out, items, labels)
    ),
    "coco-polygon": _Kind(
        "json",
        write=lambda out, items, labels, _: formats.write_coco(out, items, labels, polygons=True),
        outputs=("mask",),
    ),
    "yolo": _Kind("txt", each=lambda entry, labels, _: formats.yolo(entry.result, labels).encode()),
    "yolo-seg": _Kind(
        "txt",
        each=lambda entry, labels, _: formats.yolo(entry.result, labels, polygons=True).encode(),
        outputs=("mask",),
    ),
    "yolo-pose": _Kind(
        "txt",
        each=lambda entry, labels, output: formats.yolo_pose(
            entry.result, labels, output.keypoints
        ).encode(),
        outputs=("keypoints",),
    ),
    "voc": _Kind("xml", each=lambda entry, _, __: formats.voc(entry.result, Path(entry.name).name)),
    "labelme": _Kind("json", each=_labelme),
    "label-studio": _Kind("json", write=_label_studio),
    "cvat": _Kind(
        "xml", write=lambda out, items, labels, _: formats.write_cvat(out, items, labels)
    ),
    "roboflow": _Kind(
        "json", each=lambda entry, _, __: _json(formats.roboflow(entry.result, entry.name))
    ),
    "csv": _Kind("csv", write=lambda out, items, _, __: formats.write_table(out, items)),
    "counts": _Kind(
        "csv", write=lambda out, items, labels, _: formats.write_counts(out, items, labels)
    ),
}
