"""Turn the bytes of a hostile file into pixels, and nothing else of it.

Only JPEG, PNG and WebP are decoded, recognised by content. Orientation is the only metadata that is
looked at; the rest ends with the call, ICC profiles included: pixels are taken as sRGB, which is
what the models were trained on. Everything happens in memory.
"""

import logging
import re
import struct
import warnings
from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple

import numpy as np
import simplejpeg

# Registered here, because Pillow's first `open` would otherwise look for plugins on some thread.
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin  # noqa: F401

from jobs.contract import MAX_SCANS, WEBP_COST, Size, check_scans
from jobs.problems import Problem, unprocessable
from worker.models.base import Pixels

# What a file may hold beside its pixels. Encoders stay far below; without a limit, 20 MB of empty
# segments keep a thread and Python's lock for seconds, some other content for minutes.
MAX_SEGMENTS = 2_000  # of a JPEG; an ICC profile may take 255
MAX_PARSED_SEGMENTS = 64  # Exif, which Pillow joins one by one, and Photoshop's lists of blocks
MAX_JUNK_BYTES = 65_536  # between the segments before a JPEG's first scan
MAX_FILL_BYTES = 4_096  # FF before a later marker: libjpeg reads them anew with each new buffer
MAX_CHUNKS = 20_000  # of a PNG; 20 MB in pieces of 1 kB

# Decoding takes at most 10 bytes a pixel that is allowed: Pillow's image has 4, the coefficients of
# a progressive JPEG 6 besides, or else the result 3. What takes more counts for more pixels.
CMYK_COST = 1.2  # 12 bytes: coefficients of four channels
_STRIP_PIXELS = 500_000  # converted at a time

_SIGNATURES = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WEBP": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
}
_JPEG_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")
_JPEG_END = b"\xd9"
_JPEG_SCAN = b"\xda"
_JPEG_PARSED = (b"Exif\0\0", b"Photoshop 3.0\0")
_JPEG_NEVER_BEFORE_PIXELS = {_JPEG_END, b"\xc8", *(bytes([code]) for code in range(0xF0, 0xFE))}

# Set once, for every thread. `decode` has a limit of its own, which Pillow's would only forestall
# with a warning; and Pillow's warnings and debug lines quote metadata, so neither may reach a log.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.WARNING)


class Decoded(NamedTuple):
    """An image, each of whose pixels covers `reduction` by `reduction` of the file's."""

    pixels: Pixels
    reduction: int


def whole(height: int, width: int) -> int:
    """The reduction of who wants every pixel."""
    return 1


def decode(data: bytes, max_pixels: int) -> Pixels:
    """Decode one image, every pixel of it. See `decode_reduced`."""
    return decode_reduced(data, max_pixels, whole).pixels


def decode_reduced(data: bytes, max_pixels: int, reduction: Callable[[int, int], int]) -> Decoded:
    """Decode one image. Safe to call from several threads.

    Of an animation, the first frame counts. Transparency is laid over white. 16-bit grey is scaled
    to 8 bits. Memory peaks at 10 bytes a pixel of `max_pixels`.

    Args:
        data: the whole file.
        max_pixels: most pixels (width times height) that are decoded; of WebP and CMYK, which
            take more memory for each, fewer by `WEBP_COST` and `CMYK_COST`.
        reduction: gets height and width as displayed, and says by which common divisor of both
            the picture may be reduced, 1, 2, 4 or 8. Only a JPEG's pixels are, by a smaller inverse
            transform of each block, which averages them.

    Returns:
        uint8 array (height, width, 3), RGB, as displayed (EXIF orientation applied), contiguous,
        writable and owned by the caller; and by what it was reduced.

    Raises:
        Problem: 415 ``not_an_image`` for anything but JPEG, PNG and WebP, 413 ``too_many_pixels``
            above that, 413 ``too_many_scans`` for a JPEG that paints them too often, 422
            ``image_undecodable`` for a damaged or truncated file. The details are fixed sentences,
            with the dimensions at most.
    """
    kind = next((name for name, start in _SIGNATURES.items() if start.match(data)), None)
    if kind is None:
        raise Problem(
            415,
            "not_an_image",
            "The content is not an image that is taken: send JPEG, PNG or WebP.",
        )
    try:
        scans = _scans(kind, data)
        with Image.open(BytesIO(data), formats=[kind]) as image:
            cost = WEBP_COST if kind == "WEBP" else CMYK_COST if image.mode == "CMYK" else 1
            _check_size(image.size, int(max_pixels / cost))
            check_scans(scans, Size(*image.size), int(max_pixels / cost))
            if kind == "JPEG":
                orientation = _orientation(image.info.get("exif"))
                by = reduction(*(image.size if orientation >= 5 else image.size[::-1]))
                if (pixels := _jpeg_pixels(data, image, by)) is not None:
                    return Decoded(_turned(pixels, orientation), by)
            image.load()
            # After the pixels, because PNG may carry its EXIF behind them.
            orientation = _orientation(image.info.get("exif"))
            if kind == "PNG":
                _scale_key_colour(image, depth=data[24])
            return Decoded(_upright(image, orientation), 1)
    except Problem:
        raise
    except Exception:  # of every kind: SyntaxError, OSError, struct.error, ... (hostile input)
        raise _undecodable() from None


def _undecodable() -> Problem:
    return unprocessable(
        "image_undecodable", "The image is damaged or incomplete. Check the file and send it again."
    )


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise Problem(
            413,
            "too_many_pixels",
            f"The image has {width} x {height} pixels; at most {max_pixels} are taken. "
            "Scale it down and send it again.",
        )


def _scans(kind: str, data: bytes) -> int:
    """How often a file paints its pixels; 0 if it does so once.

    Raises:
        Problem: reading it would take far longer than its pixels take.
    """
    scans = _jpeg_scans(data) if kind == "JPEG" else 0
    if scans is None or (kind == "PNG" and not _png_is_bounded(data)):
        raise _undecodable()
    return scans


def _jpeg_scans(data: bytes) -> int | None:
    """Walk over the segments of a JPEG's first image, as Pillow and libjpeg do, until there are
    more scans than any image may have. None for one that is not worth going on with.

    A thumbnail's scans do not count, and a comment cannot hide the end. Unknown markers count as
    data: libjpeg does not skip behind them. Before the first scan, what libjpeg would refuse is
    refused here, because Pillow's own reader goes on byte by byte.
    """
    scans = segments = parsed = junk = position = 0
    while True:
        end = len(data) if scans else position + MAX_JUNK_BYTES
        marker = _JPEG_MARKER.search(data, position, end)
        if marker is None:
            return scans or None
        code, after = marker[1], marker.end()
        if not scans:
            junk += marker.start() - position
            if junk > MAX_JUNK_BYTES or code in _JPEG_NEVER_BEFORE_PIXELS:
                return None
        elif data.find(b"\xff" * MAX_FILL_BYTES, position, marker.start()) >= 0:
            return None
        elif code == _JPEG_END:
            return scans
        segments += 1
        scans += code == _JPEG_SCAN
        parsed += data.startswith(_JPEG_PARSED, after + 2)
        if scans > MAX_SCANS:
            return scans
        if segments > MAX_SEGMENTS or parsed > MAX_PARSED_SEGMENTS:
            return None
        position = after + int.from_bytes(data[after : after + 2], "big")


def _png_is_bounded(data: bytes) -> bool:
    """Count the chunks; of colour profiles, each of which is unpacked, one is all that may be."""
    profiles, position = 0, 8
    for _ in range(MAX_CHUNKS):
        name = data[position + 4 : position + 8]
        profiles += name == b"iCCP"
        if profiles > 1:
            return False
        if name in (b"", b"IEND"):
            return True
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return False


def _orientation(exif: bytes | None) -> int:
    """Read tag 0x0112 of the first directory, 1 (upright) if there is none that makes sense.

    Pillow's own reader parses all tags and falls back to XMP, which browsers do not look at.
    """
    tiff = (exif or b"").removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for number in range(count):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * number)
            if tag == 0x0112:
                return value if kind == 3 and 1 <= value <= 8 else 1  # kind 3 is SHORT
    except struct.error:
        pass
    return 1


def _jpeg_pixels(data: bytes, image: Image.Image, by: int) -> Pixels | None:
    """By libjpeg-turbo straight into the result, which takes half of Pillow's time for the same
    pixels. None for colours that it does not convert and for files that it complains of, which are
    Pillow's to judge."""
    if image.mode not in ("L", "RGB"):
        return None
    width, height = image.size[0] // by, image.size[1] // by
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
    except ValueError:
        return None
    return pixels if pixels.shape[:2] == (height, width) else None


def _scale_key_colour(image: Image.Image, depth: int) -> None:
    """Bring a grey PNG's transparent value to 8 bits, where Pillow leaves it at 2 or 4.

    The transparent colour of 16-bit RGB is dropped: its pixels arrive as 8 bits, which cannot
    tell it from its neighbours.
    """
    key = image.info.get("transparency")
    if image.mode == "L" and isinstance(key, int) and depth < 8:
        image.info["transparency"] = key * 255 // (2**depth - 1)
    elif image.mode == "RGB" and depth == 16:
        image.info.pop("transparency", None)


def _upright(image: Image.Image, orientation: int) -> Pixels:
    """The loaded image as displayed: strip by strip, so that no second one of its size is made."""
    width, height = image.size
    shape = (width, height) if orientation >= 5 else (height, width)
    upright = np.empty((*shape, 3), np.uint8)
    stored = _as_stored(upright, orientation)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        stored[top:bottom] = _rgb(image.crop((0, top, width, bottom)))
    return upright


def _turned(pixels: Pixels, orientation: int) -> Pixels:
    if orientation == 1:
        return pixels
    height, width = pixels.shape[:2]
    upright = np.empty((width, height, 3) if orientation >= 5 else pixels.shape, np.uint8)
    _as_stored(upright, orientation)[:] = pixels
    return upright


def _as_stored(upright: Pixels, orientation: int) -> Pixels:
    """A view of displayed pixels in the order of the file, by one of EXIF's eight orientations."""
    if orientation in (3, 4, 7, 8):
        upright = upright[::-1]
    if orientation in (2, 3, 6, 7):
        upright = upright[:, ::-1]
    return upright.transpose(1, 0, 2) if orientation >= 5 else upright


def _rgb(image: Image.Image) -> Pixels:
    """Any of Pillow's modes as (height, width, 3) uint8."""
    if image.mode.startswith("I"):
        return _rgb_from_16_bits(image)
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.new("RGB", rgba.size, "white")
        image.paste(rgba, mask=rgba.getchannel("A"))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _rgb_from_16_bits(image: Image.Image) -> Pixels:
    wide = np.asarray(image).clip(0, 65535).astype(np.uint32)
    grey = ((wide + 128) // 257).astype(np.uint8)
    key = image.info.get("transparency")
    if key is not None:
        grey[wide == key] = 255
    return np.repeat(grey[:, :, None], 3, axis=2)
