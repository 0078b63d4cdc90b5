"""What `worker.decode` makes of good, odd, damaged and hostile files."""

import io
import logging
import math
import random
import struct
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin
from skimage.data import astronaut

from jobs.contract import WEBP_COST
from jobs.problems import Problem
from tests.faults.bombs import chunk, png
from worker import decode as module
from worker.decode import decode
from worker.models.base import Pixels

MANY = 10_000_000
FORMATS = ["JPEG", "PNG", "WEBP"]


def picture(height: int = 24, width: int = 40) -> Pixels:
    """A smooth picture without symmetry, so that every flip and turn shows."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [x * 255 // width, y * 255 // height, (x + 2 * y) % 256]
    return np.stack(channels, axis=2).astype(np.uint8)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    lossless: dict[str, dict[str, object]] = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "PNG": {},
        "WEBP": {"lossless": True, "exact": True},
    }
    out = io.BytesIO()
    image.save(out, kind, **(lossless[kind] | options))
    return out.getvalue()


def exif(orientation: int, order: str = ">") -> bytes:
    return b"Exif\0\0" + tiff(orientation, order)


def tiff(orientation: int, order: str = ">") -> bytes:
    start = b"MM\0*" if order == ">" else b"II*\0"
    entries = struct.pack(order + "HHII", 0x0100, 4, 1, 7)  # another tag first: ImageWidth
    entries += struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return start + struct.pack(order + "IH", 8, 2) + entries + bytes(4)


def photograph() -> Pixels:
    """512 x 512 pixels of noise, edges and skin."""
    pixels: Pixels = astronaut()  # type: ignore[no-untyped-call]
    return pixels


def refused(data: bytes, max_pixels: int = MANY) -> Problem:
    with pytest.raises(Problem) as caught:
        decode(data, max_pixels)
    assert caught.value.__cause__ is None
    return caught.value


def on_white(rgba: NDArray[np.uint8]) -> NDArray[np.float64]:
    alpha = rgba[..., 3:] / 255
    blended: NDArray[np.float64] = rgba[..., :3] * alpha + 255 * (1 - alpha)
    return blended


def close(got: Pixels, wanted: NDArray[np.generic], tolerance: float) -> bool:
    return bool(np.abs(got.astype(float) - wanted.astype(float)).max() <= tolerance)


# --- what is decoded ---


@pytest.mark.parametrize(("kind", "tolerance"), [("JPEG", 4), ("PNG", 0), ("WEBP", 0)])
def test_colours_survive(kind: str, tolerance: int) -> None:
    got = decode(encode(Image.fromarray(picture()), kind), MANY)
    assert got.dtype == np.uint8
    assert got.flags.c_contiguous
    assert got.flags.writeable
    assert close(got, picture(), tolerance)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("options", [{"progressive": True}, {"optimize": True}, {"quality": 30}])
def test_encoder_options_do_not_matter(kind: str, options: dict[str, object]) -> None:
    if kind == "WEBP":
        options = {"lossless": False, **options}
    got = decode(encode(Image.fromarray(picture()), kind, **options), MANY)
    assert np.abs(got.astype(float) - picture()).mean() < 20


MODES = {
    "JPEG": ["1", "L", "RGB", "CMYK", "YCbCr"],
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "WEBP": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"],
}


@pytest.mark.parametrize(("kind", "mode"), [(k, mode) for k in MODES for mode in MODES[k]])
def test_every_mode_a_format_can_carry_becomes_rgb(kind: str, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(picture()[:, :, 0].astype(np.uint16) * 257)
        wanted = picture()[:, :, [0, 0, 0]]
    else:
        image = Image.fromarray(picture()).convert(mode)
        wanted = np.array(image.convert("RGB"))
    got = decode(encode(image, kind), MANY)
    assert got.shape == (24, 40, 3)
    sharp_edges_in_jpeg = kind == "JPEG" and mode == "1"
    assert close(got, wanted, 40 if sharp_edges_in_jpeg else 4 if kind == "JPEG" else 1)


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa", "CMYK", "I", "F", "YCbCr"])
def test_modes_inside_pillow_become_rgb(mode: str) -> None:
    source = Image.fromarray(picture()).convert("RGBA")
    through = {"La": "LA", "RGBa": "RGBA", "PA": "P", "I": "L", "F": "L"}.get(mode)
    image = (source.convert(through) if through else source).convert(mode)
    got = module._rgb(image)
    assert got.shape == (24, 40, 3)
    assert got.dtype == np.uint8


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_laid_over_white(kind: str) -> None:
    alpha = np.linspace(0, 255, 24 * 40).reshape(24, 40, 1).astype(np.uint8)
    rgba = np.concatenate([picture(), alpha], axis=2)
    got = decode(encode(Image.fromarray(rgba), kind), MANY)
    assert close(got, on_white(rgba), 1)
    assert (got[0, 0] == 255).all()


def test_grey_alpha_is_laid_over_white() -> None:
    grey_alpha = np.stack([picture()[:, :, 0], picture()[:, :, 1]], axis=2)
    got = decode(encode(Image.fromarray(grey_alpha), "PNG"), MANY)
    assert close(got, on_white(grey_alpha[:, :, [0, 0, 0, 1]]), 1)


@pytest.mark.parametrize("colour", [4, 6])
def test_16_bit_alpha_is_laid_over_white(colour: int) -> None:
    samples = {4: (0x4000, 0x8000), 6: (0x4000, 0x4000, 0x4000, 0x8000)}[colour]
    row = b"\0" + struct.pack(f">{len(samples)}H", *samples)
    assert close(decode(png((1, 1), 16, colour, row), MANY), np.full((1, 1, 3), 159), 1)


def test_palette_with_transparency_is_laid_over_white() -> None:
    palette = chunk(b"PLTE", bytes([200, 0, 0, 0, 200, 0, 0, 0, 200]))
    transparency = chunk(b"tRNS", bytes([255, 0, 128]))
    got = decode(png((3, 1), 8, 3, b"\0\0\1\2", palette + transparency), MANY)
    wanted = np.array([[[200, 0, 0], [255, 255, 255], [127, 127, 227]]])
    assert close(got, wanted, 1)


def test_palette_with_one_transparent_entry_is_laid_over_white() -> None:
    palette = chunk(b"PLTE", bytes([200, 0, 0, 0, 200, 0]))
    got = decode(png((2, 1), 8, 3, b"\0\0\1", palette + chunk(b"tRNS", b"\xff\0")), MANY)
    assert got.tolist() == [[[200, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize(
    ("depth", "row", "key", "wanted"),
    [
        (1, b"\x40", 0, [255, 255]),
        (1, b"\x40", 1, [0, 255]),
        (2, b"\x1b", 2, [0, 85, 255, 255]),
        (4, b"\x01\x23", 2, [0, 17, 255, 51]),
        (8, b"\x05\x80", 0x80, [5, 255]),
        (16, struct.pack(">HH", 300, 257), 300, [255, 1]),
    ],
)
def test_transparent_grey_is_white(depth: int, row: bytes, key: int, wanted: list[int]) -> None:
    key_chunk = chunk(b"tRNS", struct.pack(">H", key))
    got = decode(png((len(wanted), 1), depth, 0, b"\0" + row, key_chunk), MANY)
    assert got[0].tolist() == [[value] * 3 for value in wanted]


def test_transparent_rgb_is_white() -> None:
    key = chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))
    got = decode(png((2, 1), 8, 2, b"\0" + bytes([1, 2, 3, 1, 2, 4]), key), MANY)
    assert got.tolist() == [[[255, 255, 255], [1, 2, 4]]]


def test_transparent_colour_of_16_bit_rgb_is_left_alone() -> None:
    key = chunk(b"tRNS", struct.pack(">HHH", 1, 1, 1))
    row = b"\0" + struct.pack(">HHH", 0x0101, 0x8080, 0xFFFF)
    got = decode(png((1, 1), 16, 2, row, key), MANY)
    assert got.tolist() == [[[1, 128, 255]]]


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    gradient = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    got = decode(encode(Image.fromarray(gradient), "PNG"), MANY)
    assert np.array_equal(got[:, :, 0], np.round(gradient / 257).astype(np.uint8))
    assert np.array_equal(got[:, :, 0], got[:, :, 2])


def test_cmyk_jpeg_shows_its_colours() -> None:
    """Pillow writes Adobe's inverted CMYK, as Photoshop does."""
    patches = {(255, 0, 0): "red", (0, 255, 0): "lime", (255, 255, 255): "white", (0, 0, 0): "k"}
    for colour in patches:
        image = Image.new("RGB", (16, 16), colour).convert("CMYK")
        got = decode(encode(image, "JPEG"), MANY)
        assert close(got, np.full((16, 16, 3), colour), 3)


def test_ycck_jpeg_shows_its_colours() -> None:
    """YCCK is CMYK whose first three channels went through the YCbCr transform."""
    image = Image.new("RGB", (16, 16), (200, 60, 20)).convert("CMYK")
    inverted = 255 - np.array(image)
    ycc = np.array(Image.fromarray(255 - inverted[:, :, :3]).convert("YCbCr"))
    stored = np.concatenate([255 - ycc, 255 - inverted[:, :, 3:]], axis=2)
    cmyk = bytearray(encode(Image.frombytes("CMYK", (16, 16), stored.tobytes()), "JPEG"))
    adobe = cmyk.index(b"Adobe")
    cmyk[adobe + 11] = 2  # colour transform: YCCK
    got = decode(bytes(cmyk), MANY)
    assert close(got, np.full((16, 16, 3), (200, 60, 20)), 6)


def test_icc_profile_is_ignored() -> None:
    image = Image.fromarray(picture())
    plain = decode(encode(image, "PNG"), MANY)
    assert np.array_equal(decode(encode(image, "PNG", icc_profile=b"not a profile"), MANY), plain)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_first_frame_of_an_animation_counts(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
    assert decode(data, MANY)[4, 4].tolist() == [255, 0, 0]


def test_first_picture_of_a_multi_picture_jpeg_counts() -> None:
    out = io.BytesIO()
    second = Image.new("RGB", (8, 8), "blue")
    Image.new("RGB", (8, 8), "red").save(out, "MPO", save_all=True, append_images=[second])
    assert decode(out.getvalue(), MANY)[4, 4].tolist() == [254, 0, 0]


@pytest.mark.parametrize("kind", FORMATS)
def test_one_pixel(kind: str) -> None:
    got = decode(encode(Image.new("RGB", (1, 1), (9, 9, 9)), kind), 2)
    assert got.shape == (1, 1, 3)
    assert close(got, np.full((1, 1, 3), 9), 1)


def test_a_photograph_matches_pillow() -> None:
    data = encode(Image.fromarray(photograph()), "JPEG", quality=85)
    assert np.array_equal(decode(data, MANY), np.array(Image.open(io.BytesIO(data))))


# --- orientation ---

UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {  # what EXIF's definition says the viewer must do
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", list(UPRIGHT))
@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_is_applied(kind: str, orientation: int, order: str) -> None:
    stored = encode(Image.fromarray(picture()), kind)
    turned = encode(Image.fromarray(picture()), kind, exif=exif(orientation, order))
    wanted = UPRIGHT[orientation](decode(stored, MANY))
    got = decode(turned, MANY)
    assert np.array_equal(got, wanted)
    assert got.flags.c_contiguous
    pillow = ImageOps.exif_transpose(Image.open(io.BytesIO(turned)))
    assert np.array_equal(got, np.array(pillow))


def test_orientation_behind_the_pixels_of_a_png_is_applied() -> None:
    got = decode(png((2, 1), 8, 0, b"\0\1\2", after=chunk(b"eXIf", tiff(6))), MANY)
    assert got[:, :, 0].tolist() == [[1], [2]]


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientation_out_of_range_means_upright(orientation: int) -> None:
    data = encode(Image.fromarray(picture()), "PNG", exif=exif(orientation))
    assert np.array_equal(decode(data, MANY), picture())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # Pillow's; ours ignores them
@pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning")
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("cut", range(6, 44, 4))
def test_damaged_exif_does_not_matter(kind: str, cut: int) -> None:
    data = encode(Image.fromarray(picture()), kind, exif=exif(1)[:cut])
    assert decode(data, MANY).shape == (24, 40, 3)


def test_orientation_in_xmp_is_not_applied() -> None:
    """Browsers show such a file as it is stored."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    assert decode(encode(Image.fromarray(picture()), "PNG", pnginfo=info), MANY).shape[0] == 24


# --- what is refused ---


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "EPS", "PPM", "ICO", "JPEG2000", "TGA"])
def test_other_formats_are_not_images_here(kind: str) -> None:
    out = io.BytesIO()
    Image.fromarray(picture()).save(out, kind)
    problem = refused(out.getvalue())
    assert (problem.status, problem.code) == (415, "not_an_image")


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff", b"RIFF", b"<svg/>", b"%PDF-1.7", b"MZ"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    assert refused(data).code == "not_an_image"


def test_random_bytes_are_refused() -> None:
    rng = random.Random(1)
    for start in (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x40\x00\x00\x00WEBPVP8 "):
        for length in (0, 1, 20, 500, 5000):
            problem = refused(start + rng.randbytes(length))
            assert problem.code == ("image_undecodable" if start else "not_an_image")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95])
def test_truncated_files_are_undecodable(kind: str, share: float) -> None:
    data = encode(Image.fromarray(photograph()[::4, ::4]), kind)
    problem = refused(data[: max(16, int(len(data) * share))])
    assert (problem.status, problem.code) == (422, "image_undecodable")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's about metadata; ours ignores them
@pytest.mark.parametrize("kind", FORMATS)
def test_flipped_bytes_give_pixels_or_a_problem(kind: str) -> None:
    rng = random.Random(kind)
    good = encode(Image.fromarray(picture()), kind, exif=exif(6))
    outcomes = set()
    for _ in range(300):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            outcomes.add(decode(bytes(data), MANY).dtype.name)
        except Problem as problem:
            outcomes.add(problem.code)
    assert outcomes <= {"uint8", "image_undecodable", "not_an_image", "too_many_pixels"}
    assert {"uint8", "image_undecodable"} <= outcomes


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_the_short_way_gives_the_same_pixels(
    mode: str, progressive: bool, subsampling: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turned or not; damaged files and other colours go Pillow's way."""
    image = Image.fromarray(photograph()[:301, :407]).convert(mode)
    options = {"quality": 80, "progressive": progressive, "subsampling": subsampling}
    files = [encode(image, "JPEG", exif=exif(number), **options) for number in range(1, 9)]
    short = [decode(data, MANY) for data in files]
    taken = []

    def judged_by_pillow(data: bytes, _: Image.Image, by: int) -> None:
        taken.append(data)

    monkeypatch.setattr(module, "_jpeg_pixels", judged_by_pillow)
    for data, pixels in zip(files, short, strict=True):
        assert (pixels.flags.writeable, pixels.flags.c_contiguous) == (True, True)
        assert np.array_equal(decode(data, MANY), pixels)
    assert taken == files


@pytest.mark.parametrize("kind", FORMATS)
def test_pixel_limit_is_exact(kind: str) -> None:
    data = encode(Image.fromarray(picture()), kind)
    limit = math.ceil(24 * 40 * (WEBP_COST if kind == "WEBP" else 1))
    assert decode(data, limit).shape == (24, 40, 3)
    problem = refused(data, limit - 1)
    assert (problem.status, problem.code) == (413, "too_many_pixels")
    assert "40 x 24" in problem.detail


@pytest.mark.parametrize("max_pixels", [100, 500_000_000])
def test_huge_dimensions_cost_nothing(max_pixels: int) -> None:
    """20000 x 20000 in a file of 73 bytes: refused by its header, or for its missing pixels."""
    problem = refused(png((20_000, 20_000), 1, 0, b"\0"), max_pixels)
    assert problem.code == ("too_many_pixels" if max_pixels == 100 else "image_undecodable")


def test_huge_webp_canvas_is_refused_by_its_header() -> None:
    still = encode(Image.new("RGB", (8, 8)), "WEBP")[12:]
    last = struct.pack("<I", 16_383)[:3]
    frame = bytes(6) + b"\7\0\0" * 2 + bytes(4) + still
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + last * 2
    body += b"ANIM" + struct.pack("<IIH", 6, 0, 0) + b"ANMF" + struct.pack("<I", len(frame)) + frame
    problem = refused(b"RIFF" + struct.pack("<I", len(body)) + body)
    assert problem.code == "too_many_pixels"


def test_zero_pixels_are_undecodable() -> None:
    assert refused(png((0, 0), 8, 0, b"")).code == "image_undecodable"


def test_text_that_inflates_is_undecodable() -> None:
    bomb = zlib.compress(bytes(64_000_000), 9)
    text = b"XML:com.adobe.xmp\0\1\0\0\0" + bomb
    for extra in (chunk(b"iTXt", text), chunk(b"zTXt", b"Comment\0\0" + bomb)):
        assert refused(png((1, 1), 8, 0, b"\0\1", extra)).code == "image_undecodable"


def test_pixels_that_inflate_past_the_image_are_dropped() -> None:
    assert decode(png((1, 1), 8, 0, b"\0\1" + bytes(50_000_000)), MANY).tolist() == [[[1, 1, 1]]]


def test_a_jpeg_of_countless_scans_is_refused() -> None:
    """Each scan of 10 bytes or so would cost a walk over all pixels."""
    good = encode(Image.new("L", (64, 64)), "JPEG", progressive=True)
    scan = good[good.rfind(b"\xff\xda") : -2]
    assert decode(good[:-2] + scan * 10 + b"\xff\xd9", MANY).shape == (64, 64, 3)
    for hiding in (b"", b"\xff\xfe\0\4\xff\xd9", b"\xff\xff", b"\xff\x02\xff\xff"):
        data = good[:-2] + hiding + scan * 100 + b"\xff\xd9"
        assert refused(data).code == "too_many_scans"


def test_the_more_pixels_the_fewer_scans() -> None:
    """What an encoder writes is taken of the largest picture, too."""
    good = encode(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    scan = good[good.rfind(b"\xff\xda") : -2]
    for max_pixels, most in ((64 * 64, 18), (2 * 64 * 64, 36), (MANY, 64)):
        own = good.count(b"\xff\xda")
        taken = good[:-2] + scan * (most - own) + good[-2:]
        assert decode(taken, max_pixels).shape == (64, 64, 3)
        with pytest.raises(Problem) as caught:
            decode(good[:-2] + scan * (most - own + 1) + good[-2:], max_pixels)
        assert f"more than the {most} scans that are taken" in caught.value.detail
        assert (caught.value.status, caught.value.code) == (413, "too_many_scans")


def test_scans_of_a_thumbnail_or_behind_the_image_do_not_count() -> None:
    good = encode(Image.fromarray(picture()), "JPEG", progressive=True)
    comment = b"\xff\xfe" + struct.pack(">H", 402) + b"\xff\xda" * 200
    data = good[:2] + comment + good[2:] + b"\xff\xda" * 200
    assert np.array_equal(decode(data, MANY), decode(good, MANY))


COMMENT = b"\xff\xfe\0\2"
SMALL_EXIF = b"\xff\xe1\0\x09Exif\0\0a"
PHOTOSHOP = b"\xff\xed\0\x10Photoshop 3.0\0"


@pytest.mark.parametrize(
    ("structure", "taken"),
    [
        (COMMENT * 1000, True),
        (COMMENT * 2000, False),
        (b"\xff\xe2\xff\xff" + bytes(65_533), True),
        (SMALL_EXIF * 64, True),
        (SMALL_EXIF * 65, False),
        (PHOTOSHOP * 64, True),
        (PHOTOSHOP * 65, False),
        (bytes(60_000), True),
        (bytes(70_000), False),
        (b"\xff" * 60_000, True),
        (b"\xff" * 70_000, False),
        (b"\xff\xd0" * 40_000, False),
        (b"\xff\xc8\0\2", False),
        (b"\xff\xf0\0\2", False),
        (b"\xff\xd9", False),
    ],
)
def test_structure_of_a_jpeg_is_bounded(structure: bytes, taken: bool) -> None:
    """Segments, joined EXIF and junk before the pixels: Pillow reads each of them in Python."""
    good = encode(Image.fromarray(picture()), "JPEG")
    data = good[:2] + COMMENT + structure + good[2:]
    if taken:
        assert np.array_equal(decode(data, MANY), decode(good, MANY))
    else:
        assert refused(data).code == "image_undecodable"


def test_segments_behind_the_pixels_count_too() -> None:
    good = encode(Image.fromarray(picture()), "JPEG")
    assert refused(good[:-2] + COMMENT * 2000 + good[-2:]).code == "image_undecodable"


def test_fill_behind_the_pixels_is_bounded() -> None:
    """20 MB of it took seconds."""
    good = encode(Image.fromarray(picture()), "JPEG")
    few = good[:-2] + b"\xff" * 4000 + good[-2:]
    assert np.array_equal(decode(few, MANY), decode(good, MANY))
    assert refused(good[:-2] + b"\xff" * 4100 + good[-2:]).code == "image_undecodable"
    assert np.array_equal(decode(good + b"\xff" * 9000 + b"\xd9", MANY), decode(good, MANY))


@pytest.mark.parametrize("name", [b"abCd", b"IDAT", b"fcTL"])
def test_chunks_of_a_png_are_bounded(name: bytes) -> None:
    for many in ({"before": chunk(name, b"") * 20_000}, {"after": chunk(name, b"") * 20_000}):
        assert refused(png((1, 1), 8, 0, b"\0\1", **many)).code == "image_undecodable"
    few = chunk(b"abCd", b"") * 10_000
    assert decode(png((1, 1), 8, 0, b"\0\1", few), MANY).tolist() == [[[1, 1, 1]]]


def test_one_colour_profile_is_all_that_a_png_may_have() -> None:
    """Pillow unpacks each of them, up to a megabyte."""
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1000)))
    assert decode(png((1, 1), 8, 0, b"\0\1", profile), MANY).shape == (1, 1, 3)
    assert refused(png((1, 1), 8, 0, b"\0\1", profile * 2)).code == "image_undecodable"


def test_polyglots_are_only_the_image_that_they_start_as() -> None:
    jpeg = encode(Image.fromarray(picture()), "JPEG")
    archive = b"PK\3\4 and <script>alert(1)</script> %!PS-Adobe"
    assert np.array_equal(decode(jpeg + archive, MANY), decode(jpeg, MANY))
    assert refused(archive + jpeg).code == "not_an_image"
    assert refused(b"GIF89a" + jpeg).code == "not_an_image"


def test_an_image_in_another_ones_clothes_is_undecodable() -> None:
    """A TIFF behind a JPEG's first bytes must not reach another decoder."""
    out = io.BytesIO()
    Image.fromarray(picture()).save(out, "TIFF")
    assert refused(b"\xff\xd8\xff" + out.getvalue()).code == "image_undecodable"


# --- what stays quiet, and shared ---


def test_problems_and_logs_hold_no_content(caplog: pytest.LogCaptureFixture) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("secret", "tell nobody")
    data = encode(Image.fromarray(picture()), "PNG", pnginfo=info, exif=exif(6))
    with caplog.at_level(logging.DEBUG):
        decode(data, MANY)
        problem = refused(data[: len(data) // 2])
    assert not caplog.records
    assert "secret" not in problem.detail + str(problem)


def test_pillow_leaves_the_limit_to_us() -> None:
    """It would warn above 89 million pixels, and warnings are errors in this test run."""
    huge = png((20_000, 20_000), 1, 0, b"\0")
    assert Image.open(io.BytesIO(huge)).size == (20_000, 20_000)


def test_threads_do_not_disturb_each_other() -> None:
    files = [
        encode(Image.fromarray(np.roll(picture(60, 80), turn, axis=1)), kind, exif=exif(turn + 1))
        for turn in range(8)
        for kind in FORMATS
    ]
    wanted = [decode(data, MANY) for data in files]
    start = threading.Barrier(8)

    def work(thread: int) -> bool:
        start.wait()
        order = list(range(len(files))) * 5
        random.Random(thread).shuffle(order)
        return all(np.array_equal(decode(files[i], MANY), wanted[i]) for i in order)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
