"""The results of a run as they come, in a file that only grows.

It is what makes a run resumable: an image counts as finished when its line is in the journal, and
every output is written from it. One JSON object a line; the first says what was asked for. A line
that a crash has cut off at the end is dropped when the journal is opened again.
"""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from jobs.contract import Annotated
from jobs.settings import SettingsError


class Entry(Struct, frozen=True):
    """A finished image. `sha256` is of its bytes, in hex; `stamp` changes when the image does."""

    name: str
    stamp: str
    sha256: str
    result: Annotated


class _Head(Struct, frozen=True):
    """The first line."""

    mayfly: int
    begun: str


class _Place(NamedTuple):
    offset: int
    length: int
    stamp: str


_entry = msgspec.json.Decoder(Entry)


class Journal:
    """An open journal. Iterating gives its entries by name, read from the file one by one.

    Args:
        path: the file; None for one in memory, for runs that cannot be resumed.
        begun: digest of all that makes results what they are.

    Attributes:
        labels: those that occur.
        keypoints: the most that a find has.

    Raises:
        SettingsError: the file is of a run that asked for something else, or is in use.
    """

    def __init__(self, path: Path | None, begun: str) -> None:
        self.path = path
        self.labels: set[str] = set()
        self.keypoints = 0
        self._places: dict[str, _Place] = {}
        if path is None:
            self._file = os.memfd_create("mayfly-journal")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._lock()
            self._end = self._load(begun)
            os.ftruncate(self._file, self._end)
            if not self._end:
                self._append(msgspec.json.encode(_Head(1, begun)))
        except BaseException:
            os.close(self._file)
            raise

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Entry]:
        for name in sorted(self._places):
            yield self[name]

    def __getitem__(self, name: str) -> Entry:
        place = self._places[name]
        return _entry.decode(os.pread(self._file, place.length, place.offset))

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def has(self, name: str, stamp: str) -> bool:
        """Whether this image is finished, as it is now."""
        place = self._places.get(name)
        return place is not None and place.stamp == stamp

    def version(self, name: str) -> int:
        """Differs when an image was annotated again."""
        return self._places[name].offset

    def add(self, entry: Entry) -> None:
        """Note a finished image; it takes the place of an earlier line of the same name."""
        line = msgspec.json.encode(entry)
        self._note(entry, _Place(self._end, len(line), entry.stamp))
        self._append(line)

    def sync(self) -> None:
        """Bring what was added to the disk. May take long."""
        os.fdatasync(self._file)

    def close(self) -> None:
        if self.path:
            os.fsync(self._file)
        os.close(self._file)

    def _append(self, line: bytes) -> None:
        rest = memoryview(line + b"\n")
        while rest:
            written = os.pwrite(self._file, rest, self._end)
            self._end += written
            rest = rest[written:]

    def _note(self, entry: Entry, place: _Place) -> None:
        self._places[entry.name] = place
        self.labels.update(find.label for find in entry.result.annotations)
        counts = (len(find.keypoints or ()) for find in entry.result.annotations)
        self.keypoints = max(self.keypoints, *counts, 0)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SettingsError(
                f"{self.path} is in use by another `mayfly annotate`. Wait, or name another output."
            ) from None

    def _load(self, begun: str) -> int:
        """Note what is there; returns where the last whole line ends."""
        end = 0
        with os.fdopen(os.dup(self._file), "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                if not end:
                    self._check_head(line, begun)
                else:
                    try:
                        entry = _entry.decode(line)
                    except (msgspec.DecodeError, UnicodeDecodeError):
                        break  # the disk lost the rest
                    self._note(entry, _Place(end, len(line) - 1, entry.stamp))
                end += len(line)
        return end

    def _check_head(self, line: bytes, begun: str) -> None:
        try:
            head = msgspec.json.decode(line, type=_Head)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise SettingsError(
                f"{self.path} is not a journal of Mayfly's; move it away."
            ) from None
        if head.begun != begun:
            raise SettingsError(
                f"{self.path} is of a run with other prompts, another model or other settings. "
                "Name another output, or remove that file to begin anew."
            )
