"""What the front door says of an image by its header alone."""

import contextlib
import io
import struct
from typing import Any

import pytest
from PIL import Image

from api.images import check_image
from jobs.contract import Size
from jobs.problems import Problem

MANY = 50_000_000


def encoded(size: tuple[int, int], kind: str, mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size).save(out, kind, **options)
    return out.getvalue()


def refused(data: bytes) -> str:
    with pytest.raises(Problem) as caught:
        check_image(data, MANY)
    return caught.value.code


def test_of_webp_fewer_pixels_are_taken() -> None:
    """The decoder needs more memory for each; what it would refuse is refused at once."""
    header = b"RIFF\0\0\0\0WEBPVP8X" + struct.pack("<II", 10, 0)
    side = struct.pack("<I", 5_399)[:3]
    assert check_image(header + side * 2, 50_000_000) == Size(5_400, 5_400)
    with pytest.raises(Problem) as caught:
        check_image(header + side * 2, 49_000_000)
    assert caught.value.code == "too_many_pixels"


@pytest.mark.parametrize("size", [(1, 1), (40, 30), (255, 256), (16_383, 2)])
def test_sizes_are_those_of_the_header(size: tuple[int, int]) -> None:
    files = [
        encoded(size, "JPEG"),
        encoded(size, "JPEG", progressive=True),
        encoded(size, "JPEG", "L"),
        encoded(size, "JPEG", "CMYK"),
        encoded(size, "PNG"),
        encoded(size, "PNG", "1"),
        encoded(size, "WEBP"),
        encoded(size, "WEBP", lossless=True),
        encoded(size, "WEBP", "RGBA", exif=b"Exif\0\0II*\0"),
    ]
    assert {check_image(data, MANY) for data in files} == {Size(*size)}


@pytest.mark.parametrize(
    "before",
    [
        b"\xff\xe1\x03\xff" + encoded((8, 8), "JPEG")[:400].ljust(1021),
        b"\xff\xe2\xff\xff" + bytes(65_533),
        b"\xff\xe2\xff\xff" * 2 + bytes(65_529),
        b"\xff" * 300,
        bytes(300),
        b"\xff\xfe\0\2" * 1000,
    ],
    ids=["thumbnail", "profile", "markers inside", "fill bytes", "junk", "comments"],
)
def test_what_lies_before_a_jpegs_size_is_skipped(before: bytes) -> None:
    good = encoded((40, 30), "JPEG")
    assert check_image(good[:2] + b"\xff\xe0\0\2" + before + good[2:], MANY) == Size(40, 30)


@pytest.mark.parametrize(
    "fill",
    [b"\0", b"\xff", b"\xff\0", b"\xff\xd0", b"\xff\xfe\0\2", b"\xff\xe1\0\0", b"\xff\xc0"],
)
def test_twenty_megabytes_without_a_size_are_left_alone(fill: bytes) -> None:
    """The check runs on the event loop: a few thousand steps, then it gives up."""
    good = encoded((40, 30), "JPEG")
    many = fill * (20_000_000 // len(fill))
    assert refused(good[:2] + b"\xff\xe0\0\2" + many + good[2:]) in (
        "image_undecodable",
        "too_many_pixels",
    )


@pytest.mark.parametrize("fill", [b"\xff", b"\xff\0", b"\xff\xda", b"\xff\xfe\0\2"])
def test_twenty_megabytes_of_pixels_are_not_walked_through_for_scans(fill: bytes) -> None:
    """On the event loop, too; the size is known by then."""
    good = encoded((5_000, 4_000), "JPEG", progressive=True)
    steps = 0

    class Counted(bytes):
        def __getitem__(self, key: Any) -> Any:
            nonlocal steps
            steps += 1
            return super().__getitem__(key)

    with contextlib.suppress(Problem):
        check_image(Counted(good[:-2] + fill * (20_000_000 // len(fill))), MANY)
    assert steps < 5_000


def test_many_scans_of_many_pixels_are_refused_before_anybody_decodes_them() -> None:
    """Of a small picture the worker counts. Those of another picture behind it do not count."""
    good = encoded((400, 300), "JPEG", progressive=True)
    scan = good[good.rfind(b"\xff\xda") : -2]
    bomb = good[:-2] + scan * 30 + good[-2:]
    assert check_image(bomb, 4 * 120_000) == Size(400, 300)
    for taken in (good, good + scan * 30, good + bomb):
        assert check_image(taken, 120_000) == Size(400, 300)
    with pytest.raises(Problem) as caught:
        check_image(bomb, 120_000)
    assert "more than the 18 scans that are taken of 400 x 300" in caught.value.detail
    assert (caught.value.status, caught.value.code) == (413, "too_many_scans")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_any_start_of_a_file_gives_its_size_or_a_problem(kind: str) -> None:
    good = encoded((40, 30), kind)
    outcomes = set()
    for length in range(len(good)):
        try:
            outcomes.add(str(check_image(good[:length], MANY)))
        except Problem as problem:
            outcomes.add(problem.code)
    assert outcomes == {
        "empty_image",
        "not_an_image",
        "image_undecodable",
        "Size(width=40, height=30)",
    }
