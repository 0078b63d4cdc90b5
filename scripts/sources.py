"""Images by path: files, folders, globs, zip and tar archives, and a list on stdin.

Archives are read where they lie and never unpacked to a disk. What they declare of themselves is
not believed: reads are bounded, names are cut to plain relative ones, links are not followed.
"""

import bz2
import glob
import gzip
import os
import re
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from jobs.settings import SettingsError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_ENTRIES = 200_000  # in one archive
_MAX_DIRECTORY = 64 << 20  # bytes of a zip's own list
_MAX_HEADER = 1 << 20  # bytes that a tar may want to be read at once, besides images
_MAX_GROWTH = (
    100  # a compressed tar unpacks to at most so many times its size: images hardly shrink
)
_BROKEN_ARCHIVE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, ValueError)
# lzma is not among them: its files say themselves how much memory reading them takes
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
_TAR_KINDS = {".tar": open, ".tar.gz": gzip.open, ".tgz": gzip.open}
_TAR_KINDS |= {".tar.bz2": bz2.open, ".tbz2": bz2.open}


class Source(NamedTuple):
    """An image that can be read.

    Attributes:
        name: relative to the root of all inputs, with forward slashes.
        key: what it is on this machine, whatever it is called: a path, or archive and member.
        stamp: changes when the image changes.
        size: bytes, as declared.
        path: where it lies; None inside an archive.
        read: all its bytes. Raises `Unreadable`, an OSError.
    """

    name: str
    key: str
    stamp: str
    size: int
    path: Path | None
    read: Callable[[], bytes]


class Unreadable(OSError):
    """An image cannot be read; `code` and `detail` are in the manner of the service's problems."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class Inputs:
    """Everything that was named on the command line. Iterating looks anew at what is there.

    Args:
        paths: files, folders, archives, globs that the shell has left alone, or ``-`` for a list
            of paths on stdin, one a line.
        max_bytes: largest image that is worth reading.
        besides: a folder that is not looked into, where the output goes.

    Attributes:
        root: the folder (or only archive) that names are relative to.
        ignored: files that the last look passed over, since they are not called like images.
    """

    def __init__(self, paths: Sequence[str], max_bytes: int, besides: Path | None = None) -> None:
        self._paths = [path for text in paths for path in _expand(text)]
        if not self._paths:
            raise SettingsError("No images are named. Give files, folders or archives.")
        self._max_bytes = max_bytes
        self._besides = Path(os.path.abspath(besides)) if besides else None
        self._archives = {
            path: archive for path in self._paths if (archive := _archive(path, max_bytes))
        }
        places = [p if p.is_dir() or p in self._archives else p.parent for p in self._paths]
        self.root = Path(os.path.commonpath(places))
        if len(self._paths) > 1 and self.root in self._archives:
            self.root = self.root.parent
        self.ignored = 0

    def __iter__(self) -> Iterator[Source]:
        self.ignored = 0
        names: set[str] = set()
        for source in self._all():
            if source.name not in names:  # the same file twice, or twice in an archive
                names.add(source.name)
                yield source

    def close(self) -> None:
        for archive in self._archives.values():
            archive.close()

    def file(self, path: Path) -> Source:
        """The image at `path`, whatever it is called."""
        path = Path(os.path.abspath(path))
        status = path.stat()
        return Source(
            plain_name(os.path.relpath(path, self.root)),
            str(path),
            f"{status.st_size}:{status.st_mtime_ns}",
            status.st_size,
            path,
            lambda: _read_file(path, self._max_bytes),
        )

    def _all(self) -> Iterator[Source]:
        for path in self._paths:
            if archive := self._archives.get(path):
                prefix = "" if path == self.root else plain_name(os.path.relpath(path, self.root))
                for member in archive:
                    if is_image(member.name):
                        yield member._replace(name="/".join(filter(None, (prefix, member.name))))
                    else:
                        self.ignored += 1
            elif path.is_dir():
                yield from self._folder(path)
            else:
                yield self.file(path)

    def _folder(self, folder: Path) -> Iterator[Source]:
        for here, folders, files in os.walk(folder):
            place = Path(here)
            folders[:] = sorted(f for f in folders if f[0] != "." and place / f != self._besides)
            for name in sorted(files):
                if is_image(name):
                    try:
                        yield self.file(place / name)
                    except OSError:
                        self.ignored += 1  # gone since, or a link to nowhere
                else:
                    self.ignored += 1


def is_image(name: str) -> bool:
    """Whether a file is called like an image; what macOS puts beside each file is not."""
    base = name.rpartition("/")[2]
    return base.lower().endswith(SUFFIXES) and not base.startswith(".")


def plain_name(name: str) -> str:
    """`name` with forward slashes and without what leads out of a folder.

    It may come from an archive, so from anybody: what starts at a root, climbs, names a drive or
    cannot be printed is cut away.
    """
    parts = re.split(r"[/\\]", "".join(char if char.isprintable() else "_" for char in name))
    return "/".join(
        p for p in parts if p not in ("", ".", "..") and not re.fullmatch("[A-Za-z]:", p)
    )


def _expand(text: str) -> list[Path]:
    if text == "-":
        lines = (line.rstrip("\r\n") for line in sys.stdin)
        return [path for line in lines if line for path in _expand(os.path.join(".", line))]
    path = Path(os.path.abspath(text))
    if path.is_file() or path.is_dir():
        return [path]
    if found := sorted(glob.glob(text, recursive=True)):
        return [Path(os.path.abspath(each)) for each in found if os.path.isfile(each)]
    raise SettingsError(f"{text} is not a file, a folder or an archive, and no such glob fits.")


def _read_file(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            return _bounded(file, limit)
    except OSError as error:
        raise _unreadable(error) from None


def _bounded(file: BinaryIO, limit: int) -> bytes:
    data = file.read(limit + 1)
    if len(data) > limit:
        raise Unreadable("too_many_bytes", f"The image is larger than {limit} bytes.")
    return data


def _unreadable(error: Exception) -> Unreadable:
    if isinstance(error, Unreadable):
        return error
    return Unreadable("unreadable", f"The image cannot be read: {error or type(error).__name__}.")


class _Zip:
    def __init__(self, path: Path, limit: int) -> None:
        self._path, self._limit = path, limit
        _check_directory(path)
        self._zip = zipfile.ZipFile(path)

    def close(self) -> None:
        self._zip.close()

    def __iter__(self) -> Iterator[Source]:
        for info in self._zip.infolist():
            if info.is_dir() or not (name := plain_name(info.filename)):
                continue
            key, stamp = f"{self._path}!{info.filename}", f"{info.file_size}:{info.CRC}"
            yield Source(name, key, stamp, info.file_size, None, self._reader(info))

    def _reader(self, info: zipfile.ZipInfo) -> Callable[[], bytes]:
        def read() -> bytes:
            if info.flag_bits & 1 or info.compress_type not in _ZIP_METHODS:
                raise Unreadable("unreadable", "It is encrypted, or packed by an unusual method.")
            try:
                with self._zip.open(info) as file:
                    return _bounded(file, self._limit)  # type: ignore[arg-type]
            except _BROKEN_ARCHIVE as error:
                raise _unreadable(error) from None

        return read


def _check_directory(path: Path) -> None:
    """Refuse a list of members that would not fit the memory, before it is read.

    The end-of-central-directory records are those of PKWARE's APPNOTE 4.3.14 to 4.3.16.
    """
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        start = file.seek(max(0, end - 65_577))
        tail = file.read()
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or len(tail) - at < 22:
            raise zipfile.BadZipFile("no list of members")
        *_, entries, size, _, _ = struct.unpack_from("<4s4H2LH", tail, at)
        if (entries == 0xFFFF or size == 0xFFFFFFFF) and at >= 20:
            _, _, place, _ = struct.unpack_from("<4sLQL", tail, at - 20)
            file.seek(min(place, start + at))
            record = file.read(56)
            if len(record) == 56 and record.startswith(b"PK\x06\x06"):
                entries, size = struct.unpack_from("<2Q", record, 32)
    if entries > MAX_ENTRIES or size > _MAX_DIRECTORY:
        raise SettingsError(f"{path} has more than {MAX_ENTRIES} members; split it.")


class _Tar:
    """Members by offset, in the order they lie in, so that a compressed one is read onwards."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path, self._limit = path, limit
        kind = next(suffix for suffix in _TAR_KINDS if path.name.lower().endswith(suffix))
        self._file = _Stream(
            _TAR_KINDS[kind](path, "rb"),  # type: ignore[operator]
            path.stat().st_size * _MAX_GROWTH + (64 << 20),
        )
        try:
            self._members = list(self._list())
        except BaseException:
            self.close()
            raise

    def _list(self) -> Iterator[Source]:
        with tarfile.open(fileobj=self._file, mode="r:") as tar:  # type: ignore[call-overload]
            count = 0
            while (member := tar.next()) is not None:
                tar.members.clear()  # or it would keep them all
                count += 1
                if count > MAX_ENTRIES:
                    raise SettingsError(
                        f"{self._path} has more than {MAX_ENTRIES} members; split it."
                    )
                name = plain_name(member.name)
                if name and member.isfile() and not member.issparse():
                    key, stamp = f"{self._path}!{member.name}", f"{member.size}:{member.mtime}"
                    read = self._reader(member.offset_data, member.size)
                    yield Source(name, key, stamp, member.size, None, read)

    def close(self) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Source]:
        return iter(self._members)

    def _reader(self, offset: int, size: int) -> Callable[[], bytes]:
        def read() -> bytes:
            if size > self._limit:
                raise Unreadable("too_many_bytes", f"The image is larger than {self._limit} bytes.")
            try:
                self._file.seek(offset)
                data = self._file.file.read(size)
            except _BROKEN_ARCHIVE as error:
                raise _unreadable(error) from None
            if len(data) < size:
                raise Unreadable("unreadable", "The archive ends within this image.")
            return data

        return read


class _Stream:
    """What tarfile reads from: never much at a time, and never past what an archive may hold."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self.file = file
        self._limit = limit
        self.close = file.close
        self.tell = file.tell

    def read(self, count: int) -> bytes:
        if not 0 <= count <= _MAX_HEADER:
            raise tarfile.ReadError("a header is larger than any that is honest")
        return self.file.read(count)

    def seek(self, place: int) -> int:
        if place > self._limit:
            raise tarfile.ReadError("it unpacks to far more than its size")
        return self.file.seek(place)


def _archive(path: Path, limit: int) -> _Zip | _Tar | None:
    name = path.name.lower()
    try:
        if path.is_dir():
            return None
        if name.endswith(".zip"):
            return _Zip(path, limit)
        if name.endswith(tuple(_TAR_KINDS)):
            return _Tar(path, limit)
    except _BROKEN_ARCHIVE as error:
        raise SettingsError(f"{path} cannot be read as an archive: {error}.") from None
    if name.endswith((".tar.xz", ".txz", ".tar.zst", ".7z", ".rar")):
        raise SettingsError(f"{path}: take a zip, tar, tar.gz or tar.bz2, or unpack it yourself.")
    return None
