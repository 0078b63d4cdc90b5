"""Small or well-formed files that are meant to cost far more than they look."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from jobs.contract import WEBP_COST
from worker.decode import CMYK_COST

File = tuple[str, bytes]
FILE_BYTES = 20 * 1024 * 1024 - 4096  # what the front door takes


def bombs(max_pixels: int) -> Iterator[File]:
    """All of them; the pictures among them are just as large as is taken."""
    for family in (pixels, declared, unpacked, segments, chunks, frames, scans):
        for name, data in family(max_pixels):
            yield f"bomb {name}", data


def pixels(max_pixels: int) -> Iterator[File]:
    """Plain pictures up to the limit, and a row above it."""
    side = int(max_pixels**0.5)
    webp_side, cmyk_side = (int((max_pixels / cost) ** 0.5) for cost in (WEBP_COST, CMYK_COST))
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        yield f"png {mode}", encode(plain(mode, (side, side)), "PNG")
    yield "png RGBA 16 bits", png((side, side), 16, 6, bytes(side * (1 + 8 * side)))
    for mode, across in (("L", side), ("RGB", side), ("CMYK", cmyk_side)):
        image = plain(mode, (across, across))
        yield f"jpeg {mode}", encode(image, "JPEG")
        whole: dict[str, Any] = {"progressive": True, "subsampling": 0}
        yield f"jpeg progressive {mode}", encode(image, "JPEG", **whole)
    for shape, size in (
        ("square", (side, side)),
        ("tall", (1000, max_pixels // 1000)),
        ("above", (side + 1, max_pixels // side + 1)),
    ):
        image = plain("RGB", size)
        yield f"png {shape}", encode(image, "PNG")
        yield f"jpeg progressive {shape}", encode(image, "JPEG", progressive=True)
    for shape, across in (("square", webp_side), ("above", webp_side + 1)):
        image = plain("RGB", (across, across))
        yield f"webp {shape}", encode(image, "WEBP", method=0)
        image.putalpha(100)
        yield f"webp alpha {shape}", encode(image, "WEBP", method=0, lossless=True, quality=0)


def declared(_: int) -> Iterator[File]:
    """Huge by their header, with next to nothing behind it."""
    webp = encode(plain("RGB", (8, 8)), "WEBP")
    last = struct.pack("<I", 16_383)[:3]
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + last * 2
    frame = bytes(6) + b"\7\0\0" * 2 + bytes(4) + webp[12:]
    jpeg = encode(plain("RGB", (8, 8)), "JPEG")
    size = jpeg.index(b"\xff\xc0") + 5
    yield "png declares 2^31", png((2**31 - 1, 2**31 - 1), 8, 6, b"\0")
    yield "png declares 7000 x 7000", png((7000, 7000), 16, 6, b"\0")
    yield "jpeg declares 65535", jpeg[:size] + b"\xff" * 4 + jpeg[size + 4 :]
    yield "jpeg declares 7000", jpeg[:size] + b"\x1b\x58" * 2 + jpeg[size + 4 :]
    animation = canvas + riff(b"ANIM", bytes(6)) + riff(b"ANMF", frame)
    yield "webp canvas 16384", webp_file(animation)
    yield "webp canvas 2^24", webp_file(canvas[:12] + b"\xff" * 6 + webp[12:])


def unpacked(_: int) -> Iterator[File]:
    """Text, profiles and pixels that inflate."""
    large, medium = zlib.compress(bytes(200_000_000), 9), zlib.compress(bytes(1_000_000), 9)
    dot = (1, 1), 8, 0, b"\0\1"
    text, profile = chunk(b"zTXt", b"a\0\0" + medium), chunk(b"iCCP", b"a\0\0" + medium)
    yield "png zTXt", png(*dot, chunk(b"zTXt", b"a\0\0" + large))
    yield "png zTXt behind", png(*dot, after=chunk(b"zTXt", b"a\0\0" + large))
    yield "png iTXt", png(*dot, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + large))
    yield "png 60 zTXt", png(*dot, text * 60)
    yield "png 10000 zTXt", png(*dot, text * 10_000)
    yield "png iCCP", png(*dot, chunk(b"iCCP", b"a\0\0" + large))
    yield "png 15000 iCCP", png(*dot, profile * 15_000)
    yield "png pixels past the end", png((1, 1), 8, 0, b"\0\1" + bytes(300_000_000))
    nothing = b"\x78\1" + b"\0\0\0\xff\xff" * (FILE_BYTES // 5)
    yield "png IDAT of stored nothing", png_of((9, 9), nothing)


def segments(_: int) -> Iterator[File]:
    """JPEGs of 20 MB that hold nothing but structure."""
    jpeg = encode(plain("RGB", (64, 48)), "JPEG")
    fills = {
        "comments": segment(0xFE, b""),
        "APP5": segment(0xE5, b""),
        "Exif": segment(0xE1, b"Exif\0\0a"),
        "Exif of 64 kB": segment(0xE1, b"Exif\0\0" + bytes(65_000)),
        "profiles": segment(0xE2, b"ICC_PROFILE\0\1\1"),
        "Photoshop": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\0\1\0\0\0\0\0\0" * 5000),
        "MPF": segment(0xE2, b"MPF\0II*\0\x08\0\0\0"),
        "tables": segment(0xDB, b"\0" + bytes(64)),
        "trees": segment(0xC4, bytes(17)),
        "frames": jpeg[jpeg.index(b"\xff\xc0") :][:19],
        "restarts": b"\xff\xd0",
        "starts": b"\xff\xd8",
        "ends": b"\xff\xd9",
        "zeros": b"\0",
        "ff": b"\xff",
        "ff 00": b"\xff\0",
        "ff 01": b"\xff\1",
        "ff f0": b"\xff\xf0",
        "hidden": b"\xff\xc8\xff\xff" + segment(0xFE, b"") * 5000,
    }
    for name, fill in fills.items():
        many = fill * (FILE_BYTES // len(fill))
        yield f"jpeg {name} first", jpeg[:2] + many + jpeg[2:]
        yield f"jpeg {name} last", jpeg[:-2] + many + jpeg[-2:]
        yield f"jpeg {name} only", jpeg[:2] + b"\xff\xe0\0\2" + many


def chunks(_: int) -> Iterator[File]:
    """The same of PNG and WebP."""
    dot = (1, 1), 8, 0, b"\0\1"
    fills = {
        "unknown": chunk(b"abCd", b""),
        "tEXt": chunk(b"tEXt", b"a\0b"),
        "iTXt": chunk(b"iTXt", b"a\0\0\0\0\0b"),
        "IDAT": chunk(b"IDAT", b""),
        "tRNS": chunk(b"tRNS", b"\0\1"),
        "eXIf": chunk(b"eXIf", b"MM\0*" + bytes(8)),
        "fcTL": chunk(b"fcTL", bytes(26)),
        "acTL": chunk(b"acTL", b"\0\0\xff\xff\0\0\0\0"),
        "critical": chunk(b"ABCD", b""),
    }
    for name, fill in fills.items():
        many = fill * (FILE_BYTES // len(fill))
        yield f"png {name} first", png(*dot, many)
        yield f"png {name} last", png(*dot, after=many)
    webp = encode(plain("RGB", (8, 8)), "WEBP")[12:]
    extended = b"VP8X" + struct.pack("<I", 10) + b"\x0c\0\0\0" + b"\7\0\0" * 2 + webp
    for code in (b"abcd", b"EXIF", b"XMP ", b"ALPH", b"ICCP"):
        many = riff(code, b"") * (FILE_BYTES // 8)
        yield f"webp {code.decode()} plain", webp_file(webp + many)
        yield f"webp {code.decode()} extended", webp_file(extended + many)
    long = riff(b"EXIF", bytes(FILE_BYTES - 200))
    yield "webp EXIF of 20 MB", webp_file(extended + long)


def frames(max_pixels: int) -> Iterator[File]:
    """Animations: very many frames, or a canvas at the limit."""
    webp = encode(plain("RGB", (8, 8)), "WEBP")[12:]

    def animation(canvas: int, count: int) -> bytes:
        last = struct.pack("<I", canvas - 1)[:3]
        header = b"VP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + last * 2
        frame = riff(b"ANMF", bytes(6) + b"\7\0\0" * 2 + bytes(4) + webp)
        return webp_file(header + riff(b"ANIM", bytes(6)) + frame * count)

    yield "webp 200000 frames", animation(8, 200_000)
    yield "webp canvas at the limit", animation(int((max_pixels / WEBP_COST) ** 0.5), 2)
    more = [Image.new("RGB", (8, 8), (n % 256, n // 256, 9)) for n in range(300)]
    yield "png 300 frames", encode(more[0], "PNG", save_all=True, append_images=more[1:])
    control = chunk(b"acTL", b"\x7f\xff\xff\xff\0\0\0\0")
    yield "png acTL 2^31", png((1, 1), 8, 0, b"\0\1", control)


def scans(max_pixels: int) -> Iterator[File]:
    """A progressive JPEG whose last scan comes again and again, as often as is taken or oftener."""
    side = int(max_pixels**0.5)
    for mode, across, count in (
        ("L", side, 12),
        ("RGB", side, 8),
        ("RGB", side // 2, 54),
        ("L", side, 50),
        ("L", 2000, 5000),
    ):
        good = encode(plain(mode, (across, across)), "JPEG", progressive=True, subsampling=0)
        scan = good[good.rfind(b"\xff\xda") : -2]
        yield f"jpeg {mode} {count} scans of {across}", good[:-2] + scan * count + good[-2:]


# --- writing files ---


def plain(mode: str, size: tuple[int, int]) -> Image.Image:
    """A picture of few colours, which compresses to next to nothing."""
    if mode == "I;16":
        return Image.fromarray(np.full(size[::-1], 4711, np.uint16))
    return Image.new("RGB", size, (200, 120, 40)).convert(mode)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The file of an image."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


def riff(name: bytes, content: bytes) -> bytes:
    """A chunk of a WebP."""
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def segment(code: int, content: bytes) -> bytes:
    """A segment of a JPEG."""
    return bytes([0xFF, code]) + struct.pack(">H", len(content) + 2) + content


def png(
    size: tuple[int, int],
    depth: int,
    colour: int,
    rows: bytes,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A PNG from its rows with their filter bytes, and further chunks round the pixels."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    return _png(header, zlib.compress(rows), before, after)


def png_of(size: tuple[int, int], packed: bytes) -> bytes:
    """A grey PNG from the content of its IDAT."""
    return _png(struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0), packed, b"", b"")


def _png(header: bytes, packed: bytes, before: bytes, after: bytes) -> bytes:
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + before + chunk(b"IDAT", packed) + after + chunk(b"IEND", b"")


def webp_file(body: bytes) -> bytes:
    """A WebP from its chunks."""
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
