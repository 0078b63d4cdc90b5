"""Hostile, damaged and odd image files without end, the same ones for the same seed.

    python -m tests.faults.hostile --files 10000 --seed 1

lets each of them pass the front door's check and the decoder, in a process of its own, and prints
what came of it.
"""

import io
import itertools
import random
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image
from skimage import data as pictures

from tests.faults import bombs
from tests.faults.bombs import chunk, encode, png, riff, segment

File = tuple[str, bytes]
Maker = Callable[[random.Random], Iterator[File]]

FORMATS = ("JPEG", "PNG", "WEBP")
MODES = {
    "JPEG": ("1", "L", "RGB", "CMYK", "YCbCr"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WEBP": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"),
}
OTHER_FORMATS = (
    *("GIF", "BMP", "TIFF", "EPS", "ICO", "PPM", "TGA", "JPEG2000", "PCX", "SGI", "DDS", "ICNS"),
    *("MSP", "QOI", "XBM", "AVIF"),
)
STARTS = (
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\xff\xff\0\0WEBPVP8 ",
    b"GIF89a",
    b"II*\0",
)
_CHUNKS = (
    *(b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"acTL", b"fcTL", b"fdAT"),
    *(b"iCCP", b"eXIf", b"tIME", b"bKGD", b"sBIT", b"IHDR", b"CgBI", b"iTXt", b"zTXt"),
)
_SIZES = (0, 1, 2, 255, 4095, 16383, 16384, 32768, 65535, 2**24 - 1, 2**31 - 1, 2**31, 2**32 - 1)


def files(seed: int, max_pixels: int) -> Iterator[File]:
    """Names and contents: first what is heavy, then what is damaged or odd, endlessly.

    Args:
        seed: decides on every byte.
        max_pixels: how large the pictures get that are meant to be just about taken.
    """
    yield from bombs.bombs(max_pixels)
    yield from damaged(seed)


def damaged(seed: int) -> Iterator[File]:
    """All families in turn; those that come to an end drop out."""
    families: list[tuple[str, Iterator[File]]] = [
        (make.__name__, make(random.Random(f"{seed} {make.__name__}"))) for make in FAMILIES
    ]
    while families:
        for family in list(families):
            found = next(family[1], None)
            if found is None:
                families.remove(family)
            else:
                yield f"{family[0]} {found[0]}", found[1]


@lru_cache(1)
def seeds() -> tuple[File, ...]:
    """Good files of every kind, of photographs and drawings, 1 to 60 kB each."""
    astronaut, cat, coins, page = map(sample, ("astronaut", "chelsea", "coins", "page"))
    photo, small = astronaut.resize((160, 120)), cat.resize((97, 61))
    clear = photo.copy()
    clear.putalpha(coins.resize(photo.size))
    wide = Image.fromarray(np.asarray(coins.resize((120, 90))).astype(np.uint16) * 257)
    frames: dict[str, Any] = {"save_all": True, "duration": 40}
    frames["append_images"] = [small.rotate(angle) for angle in (90, 180)]
    return (
        ("jpeg", encode(photo, "JPEG", exif=tiff_exif(6))),
        ("jpeg-progressive", encode(photo, "JPEG", progressive=True)),
        ("jpeg-grey", encode(coins.resize((130, 100)), "JPEG")),
        ("jpeg-cmyk", encode(small.convert("CMYK"), "JPEG")),
        ("jpeg-restarts", encode(small, "JPEG", restart_marker_blocks=4, subsampling="4:4:4")),
        ("jpeg-mpo", encode(small, "MPO", save_all=True, append_images=[photo])),
        ("png", encode(small, "PNG", exif=tiff_exif(8), icc_profile=bytes(300))),
        ("png-alpha", encode(clear.resize((80, 60)), "PNG")),
        ("png-palette", encode(photo.quantize(64), "PNG", transparency=3)),
        ("png-bits", encode(page.convert("1"), "PNG")),
        ("png-grey-alpha", encode(clear.convert("LA").resize((64, 48)), "PNG")),
        ("png-16", encode(wide, "PNG")),
        ("png-interlaced", interlaced()),
        ("png-animated", encode(small, "PNG", **frames)),
        ("webp", encode(photo, "WEBP", exif=tiff_exif(3))),
        ("webp-alpha", encode(clear, "WEBP")),
        ("webp-lossless", encode(small, "WEBP", lossless=True)),
        ("webp-animated", encode(small, "WEBP", **frames)),
    )


def sample(name: str) -> Image.Image:
    """One of scikit-image's pictures."""
    return Image.fromarray(getattr(pictures, name)())


def _seeds(rng: random.Random) -> Iterator[File]:
    """Good files at random, endlessly."""
    while True:
        yield rng.choice(seeds())


def _shuffled(rng: random.Random, found: Iterator[Any]) -> list[Any]:
    every = list(found)
    rng.shuffle(every)
    return every


# --- the families ---


def good(rng: random.Random) -> Iterator[File]:
    """Every orientation, those that do not exist included, of every mode of every format."""
    small = sample("astronaut").resize((48, 32))
    grey = Image.fromarray(np.asarray(small.convert("L")).astype(np.uint16) * 257)
    every = ((k, m, o) for k in FORMATS for m in MODES[k] for o in (*range(10), 65535))
    for kind, mode, orientation in _shuffled(rng, every):
        image = grey if mode == "I;16" else small.convert(mode)
        yield f"{kind} {mode} {orientation}", encode(image, kind, exif=tiff_exif(orientation))


def truncated(rng: random.Random) -> Iterator[File]:
    """Cut at each 1/64, and at each of the first bytes."""
    cuts = itertools.product(seeds(), ((n, 64) for n in range(64)))
    starts = itertools.product(seeds(), ((n, 0) for n in range(60)))
    for (name, data), (n, parts) in _shuffled(rng, itertools.chain(cuts, starts)):
        yield f"{name} {n}/{parts}", data[: len(data) * n // parts if parts else n]


def flipped_bits(rng: random.Random) -> Iterator[File]:
    """One to eight bits, half of them among the first 200 bytes, where the structure is."""
    for number, (name, data) in enumerate(_seeds(rng)):
        changed = bytearray(data)
        reach = len(data) if number % 2 else min(200, len(data))
        for _ in range(rng.randint(1, 8)):
            changed[rng.randrange(reach)] ^= 1 << rng.randrange(8)
        yield f"{name} {number}", bytes(changed)


def overwritten(rng: random.Random) -> Iterator[File]:
    """Bytes replaced, inserted and taken out, single ones and runs."""
    for number, (name, data) in enumerate(_seeds(rng)):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 6)):
            place = rng.randrange(len(changed))
            length = rng.choice((1, 1, 1, 2, 4, 16, 400))
            fill = rng.choice((rng.randbytes(length), b"\xff" * length, bytes(length), b""))
            changed[place : place + rng.choice((0, length))] = fill
        yield f"{name} {number}", bytes(changed)


def rearranged(rng: random.Random) -> Iterator[File]:
    """Chunks and segments swapped, doubled, left out, of other files, with a false length."""
    for number, (name, data) in enumerate(_seeds(rng)):
        start, parts = pieces(data)
        others = pieces(rng.choice(seeds())[1])[1]
        for _ in range(rng.randint(1, 3)):
            at, to = rng.randrange(len(parts)), rng.randrange(len(parts))
            action = rng.randrange(6)
            if action == 0:
                parts[at], parts[to] = parts[to], parts[at]
            elif action == 1:
                parts[to:to] = [parts[at]] * rng.choice((1, 2, 50))
            elif action == 2 and len(parts) > 1:
                del parts[at]
            elif action == 3:
                parts.insert(at, rng.choice(others))
            elif action == 4:
                parts[at] = parts[at][: rng.randrange(len(parts[at]) + 1)]
            else:
                length = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"))
                place = rng.choice((0, 2, 4))
                parts[at] = parts[at][:place] + length + parts[at][place + 4 :]
        yield f"{name} {number}", start + b"".join(parts)


def dimensions(rng: random.Random) -> Iterator[File]:
    """Width and height replaced where the format states them, the pixels as they were."""
    every = itertools.product(seeds(), _SIZES, _SIZES)
    for (name, data), width, height in _shuffled(rng, every):
        yield f"{name} {width}x{height}", resized(data, width, height)


def exif(rng: random.Random) -> Iterator[File]:
    """Directories that point to themselves, count to billions, end early or are noise."""
    small = sample("chelsea").resize((40, 30))
    for number in itertools.count():
        order = rng.choice("<>")
        entries = [
            (
                rng.choice((0x0112, 0x0112, 0x8769, 0x8825, 0x014A, 0x0201, 0x02BC, 0x927C)),
                rng.randrange(14),
                rng.choice((0, 1, 1, 2, 65535, 2**31, 2**32 - 1)),
                rng.choice((0, 3, 6, 8, 10, 22, 6 << 16, 65535, 2**32 - 1)),
            )
            for _ in range(rng.choice((0, 1, 2, 5, 40)))
        ]
        count = rng.choice((len(entries), len(entries), 0, 65535))
        start = rng.choice((8, 8, 8, 0, 4, 9, 2**32 - 1))
        content = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", start, count)
        for entry in entries:
            content += struct.pack(order + "HHII", *entry)
        content += struct.pack(order + "I", rng.choice((0, 8, 2**32 - 1)))
        content = rng.choice((content, content, content[: rng.randrange(40)], rng.randbytes(60)))
        kind = FORMATS[number % 3]
        yield f"{kind} {number}", encode(small, kind, exif=b"Exif\0\0" + content)


def polyglots(rng: random.Random) -> Iterator[File]:
    """Files that are two things: an image with an archive, a page, a script, another image."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr(zipfile.ZipInfo("x.html"), "<script>alert(1)</script>" * 100)
    strangers = {
        "zip": archive.getvalue(),
        "html": b"<html><script>alert(1)</script>" * 20,
        "pdf": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n%%EOF",
        "gif": b"GIF89a\1\0\1\0\0\0\0;",
        "elf": b"\x7fELF" + bytes(60),
        "php": b"<?php system($_GET['c']); ?>",
        "ps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
        **dict(seeds()),
    }
    every = itertools.product(seeds(), strangers.items(), ("behind", "before", "inside", "start"))
    for (name, data), (other, stranger), place in _shuffled(rng, every):
        yield f"{name} {other} {place}", _joined(data, stranger, place)


def _joined(data: bytes, stranger: bytes, place: str) -> bytes:
    if place == "behind":
        return data + stranger
    if place == "before":
        return stranger + data
    if place == "start":  # the one's signature, the other's content
        return data[:16] + stranger
    start, parts = pieces(data)
    inside = {0xFF: segment(0xFE, stranger[:65000]), 0x89: chunk(b"tEXt", b"a\0" + stranger)}
    return start + parts[0] + inside.get(data[0], riff(b"EXIF", stranger)) + b"".join(parts[1:])


def strangers(rng: random.Random) -> Iterator[File]:
    """Other formats, as they are and behind the signatures of those that are taken."""
    small = sample("chelsea").resize((40, 30))
    made: dict[str, bytes] = {}
    for kind in OTHER_FORMATS:
        mode = {"XBM": "1", "MSP": "1"}.get(kind, "RGB")
        made[kind] = encode(small.convert(mode), kind)
    made |= {
        "PSD": b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\x1e\0\0\0\x28\0\x08\0\3" + bytes(300),
        "SVG": b"<?xml version='1.0'?><svg width='9' height='9' onload='alert(1)'/>",
        "MP4": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(300),
        "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(300),
        "JXL": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(300),
        "FLIF": b"FLIF" + bytes(300),
        "text": b"just words, and no picture at all\n" * 30,
        "utf-16": "words\n".encode("utf-16") * 30,
        "json": b'{"image": "no"}',
        "PDF": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n%%EOF",
        "nothing": b"",
    }
    every = itertools.product(made.items(), ("", *FORMATS))
    signatures = {"": b"", **dict(zip(FORMATS, STARTS, strict=False))}
    for (name, data), front in _shuffled(rng, every):
        yield f"{name} {front}", signatures[front] + data


def tiny(rng: random.Random) -> Iterator[File]:
    """One byte, one pixel, one row of 60,000."""
    yield "empty", b""
    for byte in range(256):
        yield f"byte {byte}", bytes([byte])
    for kind, longest in (("JPEG", 65_500), ("PNG", 60_000), ("WEBP", 16_383)):
        for mode in MODES[kind]:
            for size in ((1, 1), (1, 2), (1, longest), (longest, 1), (8, 8), (17, 1)):
                yield f"{kind} {mode} {size}", encode(bombs.plain(mode, size), kind)


def noise(rng: random.Random) -> Iterator[File]:
    """Random bytes behind a good start."""
    for number in itertools.count():
        start = rng.choice((*STARTS, *(data[: rng.randrange(200)] for _, data in seeds())))
        yield str(number), start + rng.randbytes(rng.choice((1, 9, 30, 300, 3000, 60_000)))


def odd_pngs(rng: random.Random) -> Iterator[File]:
    """Well-formed chunks with values that the standard forbids, or hardly ever sees."""
    for number in itertools.count():
        size = (rng.choice((1, 2, 7, 33)), rng.choice((1, 2, 7, 33)))
        depth, colour = rng.choice((1, 2, 4, 8, 16, 3, 255)), rng.choice((0, 2, 3, 4, 6, 1, 7))
        more = b"".join(
            chunk(rng.choice(_CHUNKS), rng.randbytes(rng.choice((0, 1, 2, 3, 6, 8, 13, 26, 768))))
            for _ in range(rng.randint(0, 4))
        )
        rows = rng.randbytes(size[1] * (1 + 8 * size[0]))
        yield str(number), png(size, depth, colour, rows, more)


FAMILIES: tuple[Maker, ...] = (
    good,
    truncated,
    flipped_bits,
    overwritten,
    rearranged,
    dimensions,
    exif,
    polyglots,
    strangers,
    tiny,
    noise,
    odd_pngs,
)


# --- taking files apart ---


def pieces(data: bytes) -> tuple[bytes, list[bytes]]:
    """The start of a good file, and its chunks or segments."""
    parts, position = [], {0xFF: 2, 0x89: 8}.get(data[0], 12)
    start = data[:position]
    while position < len(data):
        length = _piece_length(data, position)
        parts.append(data[position : position + length])
        position += length
    return start, parts


def _piece_length(data: bytes, position: int) -> int:
    if data[0] == 0x89:
        return 12 + int.from_bytes(data[position : position + 4], "big")
    if data[0] != 0xFF:
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        return 8 + length + length % 2
    if data[position + 1] in (0xDA, 0xD9):  # the pixels, and whatever comes behind
        return len(data) - position
    return 2 + int.from_bytes(data[position + 2 : position + 4], "big")


def resized(data: bytes, width: int, height: int) -> bytes:
    """The file with another size in its header; nothing else fits it any longer."""
    start, parts = pieces(data)
    for number, part in enumerate(parts):
        if part[4:8] == b"IHDR":
            size = struct.pack(">II", width, height)
            parts[number] = chunk(b"IHDR", size + part[16:21])
        elif data[0] == 0xFF and 0xC0 <= part[1] <= 0xC2:
            size = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
            parts[number] = part[:5] + size + part[9:]
        elif part[:4] == b"VP8X":
            size = struct.pack("<I", width)[:3] + struct.pack("<I", height)[:3]
            parts[number] = part[:12] + size
        elif part[:4] == b"VP8 ":
            size = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
            parts[number] = part[:14] + size + part[18:]
        elif part[:4] == b"VP8L":
            bits = (width & 0x3FFF) | (height & 0x3FFF) << 14
            parts[number] = part[:9] + struct.pack("<I", bits) + part[13:]
    return start + b"".join(parts)


def tiff_exif(orientation: int) -> bytes:
    """EXIF with one tag."""
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)


def interlaced() -> bytes:
    """A PNG in Adam7's seven passes, which Pillow does not write."""
    pixels = np.asarray(sample("astronaut").resize((37, 29)))
    rows = b""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2))
    for y, x, down, right in (*passes, (1, 0, 2, 1)):
        for row in pixels[y::down, x::right]:
            rows += b"\0" + row.tobytes()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 37, 29, 8, 2, 0, 0, 1))
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


if __name__ == "__main__":
    from tests.faults.ordeal import main

    sys.exit(main())
