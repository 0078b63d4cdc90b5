"""What can be said of an image without decoding it."""

import io

import imagesize

from jobs.contract import Size
from jobs.problems import Problem, unprocessable

MEDIA_TYPES = ("image/jpeg", "image/png", "image/webp")


def check_image(data: bytes, max_pixels: int) -> Size:
    """Refuse early what no worker would decode. The content decides, not the declared type.

    Returns the stored size, before EXIF orientation.

    Raises:
        Problem: 400 ``empty_image``, 415 ``not_an_image``, 422 ``image_undecodable`` when the
            header gives no size, 413 ``too_many_pixels``.
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
    width, height = imagesize.get(io.BytesIO(data), exif_rotation=False)
    if width < 1 or height < 1:
        raise unprocessable(
            "image_undecodable", "The image is damaged: its header gives no size. Save it again."
        )
    if width * height > max_pixels:
        raise Problem(
            413,
            "too_many_pixels",
            f"The image has {width} x {height} pixels, more than the {max_pixels} that are "
            "allowed. Scale it down or cut it into tiles.",
        )
    return Size(width, height)
