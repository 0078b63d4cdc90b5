"""What can be said of an image without decoding it."""

import io
import re

import imagesize

from jobs.contract import MAX_SCANS, MAX_SCANS_OF_LARGEST, WEBP_COST, Size, check_scans
from jobs.problems import Problem, unprocessable

MEDIA_TYPES = ("image/jpeg", "image/png", "image/webp")

_MAX_SEGMENTS = 2_000  # before a JPEG's size is known; an ICC profile may take 255
_MAX_JUNK_BYTES = 65_536  # between them
_JPEG_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9
_MAX_WALK_BYTES = 4 << 20  # looked through for scans, which takes a millisecond for each million


def check_image(data: bytes, max_pixels: int) -> Size:
    """Refuse early what no worker would decode. The content decides, not the declared type.

    Returns the stored size, before EXIF orientation.

    Raises:
        Problem: 400 ``empty_image``, 415 ``not_an_image``, 422 ``image_undecodable`` when the
            header gives no size, 413 ``too_many_pixels`` or ``too_many_scans``.
    """
    if not data:
        raise Problem(400, "empty_image", "The image is empty. Send its bytes as the body.")
    if not (
        data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"))
        or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
    ):
        raise Problem(
            415, "not_an_image", "The content is not a JPEG, PNG or WebP image. Convert it first."
        )
    width, height = _jpeg_size(data) if data.startswith(b"\xff") else _size(data)
    if width < 1 or height < 1:
        raise unprocessable(
            "image_undecodable", "The image is damaged: its header gives no size. Save it again."
        )
    allowed = int(max_pixels / WEBP_COST) if data.startswith(b"RIFF") else max_pixels
    if width * height > allowed:
        raise Problem(
            413,
            "too_many_pixels",
            f"The image has {width} x {height} pixels, more than the {allowed} that are "
            "allowed. Scale it down or cut it into tiles.",
        )
    size = Size(width, height)
    if data.startswith(b"\xff") and width * height * MAX_SCANS > max_pixels * MAX_SCANS_OF_LARGEST:
        check_scans(_jpeg_scans(data), size, max_pixels)  # what is smaller a worker judges
    return size


def _size(data: bytes) -> tuple[int, int]:
    """Of a PNG or WebP, from its first bytes; at most 0 where they give none."""
    width, height = imagesize.get(io.BytesIO(data[:64]), exif_rotation=False)
    return width, height


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """From the first frame header, (0, 0) if there is none within reach.

    This runs on the event loop, so that a bounded number of steps is all that a file gets: a
    reader that goes byte by byte would take seconds for 20 MB of zeros.
    """
    position, junk = 2, _MAX_JUNK_BYTES
    for _ in range(_MAX_SEGMENTS):
        marker = _JPEG_MARKER.search(data, position, position + junk)
        if marker is None or marker[1][0] in (_JPEG_SCAN, _JPEG_END):
            break
        after = marker.end()
        if marker[1][0] in _JPEG_SIZES and len(data) >= after + 7:
            height, width = data[after + 3 : after + 5], data[after + 5 : after + 7]
            return int.from_bytes(width, "big"), int.from_bytes(height, "big")
        junk -= marker.start() - position
        position = after + int.from_bytes(data[after : after + 2], "big")
    return 0, 0


def _jpeg_scans(data: bytes) -> int:
    """Those of the first image that begin within reach; a worker sees the rest. FF among pixels is
    never followed by a marker's code."""
    scans, position = 0, 2
    for _ in range(_MAX_SEGMENTS):
        marker = _JPEG_MARKER.search(data, position, _MAX_WALK_BYTES)
        if marker is None or marker[1][0] == _JPEG_END:
            break
        scans += marker[1][0] == _JPEG_SCAN
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return scans
