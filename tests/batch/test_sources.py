"""Archives that mean harm, and names that lead elsewhere."""

import contextlib
import gzip
import io
import os
import struct
import sys
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.settings import SettingsError
from scripts import sources
from scripts.sources import Inputs, Source, Unreadable, plain_name

LIMIT = 1 << 20


@pytest.fixture
def inputs() -> Iterator[Callable[..., Inputs]]:
    with contextlib.ExitStack() as stack:

        def make(*paths: Path, besides: Path | None = None) -> Inputs:
            made = Inputs([str(path) for path in paths], LIMIT, besides)
            stack.callback(made.close)
            return made

        yield make


Make = Callable[..., Inputs]


def add(tar: tarfile.TarFile, name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    info.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    tar.addfile(info, io.BytesIO(data))


@given(st.text())
def test_a_name_never_leads_out_of_a_folder(name: str) -> None:
    plain = plain_name(name)
    folder = Path("/folder")
    assert os.path.normpath(folder / plain).startswith("/folder")
    assert not {"", ".", ".."} & set(plain.split("/")) or plain == ""
    assert plain_name(plain) == plain
    assert plain.isprintable()


def test_members_stay_under_the_root(inputs: Make, tmp_path: Path) -> None:
    """Climbing, absolute and doubled names, links and devices."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "../../up.png", b"1")
        add(tar, "/root.png", b"2")
        add(tar, "C:\\dos\\a.png", b"3")
        add(tar, "up.png", b"4")
        add(tar, "link.png", b"", tarfile.SYMTYPE)
        add(tar, "hard.png", b"", tarfile.LNKTYPE)
        add(tar, "fifo.png", b"", tarfile.FIFOTYPE)
    found = {source.name: source.read() for source in inputs(path)}
    assert found == {"up.png": b"1", "root.png": b"2", "dos/a.png": b"3"}


def test_a_member_is_read_up_to_the_limit_whatever_it_declares(
    inputs: Make, tmp_path: Path
) -> None:
    """A bomb of zeros, and one that lies about its size."""
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("honest.png", bytes(20 << 20))
        archive.writestr("small.png", b"fine")
    data = bytearray(path.read_bytes())
    size = struct.pack("<L", 20 << 20)
    assert data.count(size) == 2  # in the local header and in the directory
    lying = tmp_path / "lying.zip"
    lying.write_bytes(data.replace(size, struct.pack("<L", 4)))
    for each in (path, lying):
        tracemalloc.start()
        small, bomb = sorted(inputs(each), key=lambda source: "honest" in source.name)
        assert small.read() == b"fine"
        with pytest.raises(Unreadable):
            bomb.read()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8 * LIMIT


def test_packing_that_costs_memory_is_not_unpacked(inputs: Make, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.png", b"x" * 100)
    (source,) = inputs(path)
    with pytest.raises(Unreadable, match="unusual method"):
        source.read()


def test_a_directory_that_would_fill_the_memory_is_refused_unread(
    inputs: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, classic in enumerate((zipfile.ZIP_FILECOUNT_LIMIT, 2)):
        path = tmp_path / f"{number}.zip"
        with monkeypatch.context() as patch, zipfile.ZipFile(path, "w") as archive:
            patch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", classic)  # above it, it is a ZIP64
            for name in "abc":
                archive.writestr(f"{name}.png", b"")
            archive.close()
        assert sum(1 for _ in inputs(path)) == 3
        with monkeypatch.context() as patch:
            patch.setattr(sources, "MAX_ENTRIES", 2)
            patch.setattr(zipfile, "ZipFile", None)
            with pytest.raises(SettingsError, match="2 members"):
                inputs(path)
    assert b"PK\x06\x06" in path.read_bytes()


def test_a_compressed_tar_may_not_unpack_to_many_times_its_size(
    inputs: Make, tmp_path: Path
) -> None:
    """5 MB that claim to be 5 GB, and a header of a gigabyte."""
    path = tmp_path / "bomb.tar.gz"
    with gzip.open(path, "wb", 1) as file:
        info = tarfile.TarInfo("a.png")
        info.size = 5 << 30
        file.write(info.tobuf())
        for _ in range(64):
            file.write(bytes(1 << 20))
    with pytest.raises(SettingsError, match="far more than its size"):
        inputs(path)

    with gzip.open(path, "wb", 1) as file:
        info = tarfile.TarInfo("a.png")
        info.type, info.size = tarfile.XHDTYPE, 1 << 30
        file.write(info.tobuf(tarfile.PAX_FORMAT))
        file.write(bytes(2 << 20))
    with pytest.raises(SettingsError, match="larger than any that is honest"):
        inputs(path)


def read(source: Source) -> bytes:
    return source.read()


@pytest.mark.parametrize("cut", [10, 200, 600, 900])
@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.bz2"])
def test_a_torn_archive_is_an_error_that_says_so(
    inputs: Make, tmp_path: Path, name: str, cut: int
) -> None:
    """Some images of it may be read before; nothing else escapes."""
    path = tmp_path / name
    if name.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.png", os.urandom(900))
    else:
        modes: Any = {".tar": "w", ".gz": "w:gz", ".bz2": "w:bz2"}
        with tarfile.open(path, modes[path.suffix]) as tar:
            add(tar, "a.png", os.urandom(900))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises((SettingsError, Unreadable)):
        list(map(read, inputs(path)))


def test_the_output_is_not_annotated(inputs: Make, tmp_path: Path) -> None:
    for name in ("a.png", "out/b.png", "c/d.JPG", "c/._d.jpg", ".git/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    all_of_it = inputs(tmp_path, besides=tmp_path / "out")
    assert [source.name for source in all_of_it] == ["a.png", "c/d.JPG"]
    assert all_of_it.root == tmp_path
    assert all_of_it.ignored == 2
    several = inputs(tmp_path / "c", tmp_path / "a.png")
    assert [source.name for source in several] == ["c/d.JPG", "a.png"]


def test_the_same_images_by_every_way(
    inputs: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder, a glob of one, archives, and a list on stdin; files in order of their names."""
    folder = tmp_path / "pictures"
    content = {"a.png": b"1", "b.jpg": b"22", "deep/er/c.webp": b"333"}
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in content:
            archive.write(folder / name, name)
    for name, mode in (("a.tar", "w"), ("a.tar.bz2", "w:bz2")):
        with tarfile.open(tmp_path / name, mode) as tar:  # type: ignore[call-overload]
            tar.add(folder, "")
    listed = "".join(f"{folder / name}\n" for name in content)
    monkeypatch.setattr(sys, "stdin", io.StringIO(listed))
    for path in (folder, folder / "**/*", tmp_path / "a.zip", tmp_path / "a.tar.bz2", Path("-")):
        found = {source.name: source.read() for source in inputs(path)}
        assert found == content, path
    both = inputs(tmp_path / "a.zip", tmp_path / "a.tar")
    assert [source.name for source in both] == [
        f"{name}/{member}" for name in ("a.zip", "a.tar") for member in content
    ]
