"""Reads a submission into memory: bounded in bytes and time, never through a temporary file."""

import asyncio
from typing import NamedTuple

from aiohttp import BodyPartReader, MultipartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from api.images import MEDIA_TYPES
from jobs.contract import MAIN_IMAGE
from jobs.problems import Problem
from jobs.settings import Settings

SEALED_TYPE = "application/vnd.mayfly.sealed"  # see docs/sealed.md

_CHUNK = 256 * 1024
_MAX_REQUEST_BYTES = 2 * 1024 * 1024  # embeddings travel in it
# all that aiohttp's parser raises for one broken form or another
_UNREADABLE = (
    ValueError,
    RuntimeError,
    LookupError,
    AssertionError,
    HttpProcessingError,
    web.RequestPayloadError,
)


class Upload(NamedTuple):
    """The request as JSON text and the images by part name."""

    request: bytes
    images: dict[str, bytes]


async def read_upload(request: web.Request, settings: Settings) -> Upload:
    """Read a raw image or a multipart form.

    Raises:
        Problem: 400 malformed, 408 too slow, 413 too large, 415 not a form that is understood.
    """
    _refuse_encoded(request)
    if request.content_type not in (*MEDIA_TYPES, "multipart/form-data"):
        raise Problem(
            415,
            "media_type_unsupported",
            f"Send the image with Content-Type {', '.join(MEDIA_TYPES)}, or a form as "
            "multipart/form-data with the parts `request` and `image`.",
        )
    if (request.content_length or 0) > settings.max_body_bytes:
        raise _too_large("The request", settings.max_body_bytes)
    try:
        async with asyncio.timeout(settings.upload_timeout_s):
            if request.content_type == "multipart/form-data":
                return await _read_form(request, settings)
            body = await _read_raw(request, settings.max_image_bytes)
            return Upload(request.query.get("request", "{}").encode(), {MAIN_IMAGE: body})
    except TimeoutError:
        raise _too_slow(settings) from None


async def read_json(
    request: web.Request, settings: Settings, limit: int = _MAX_REQUEST_BYTES
) -> bytes:
    """Read a body that is no image, of at most `limit` bytes; does not look into it.

    Raises:
        Problem: 408 too slow, 413 too large, 415 compressed.
    """
    _refuse_encoded(request)
    try:
        async with asyncio.timeout(settings.upload_timeout_s):
            return await _read_raw(request, limit, "The body")
    except TimeoutError:
        raise _too_slow(settings) from None


async def _read_raw(request: web.Request, limit: int, what: str = "The image") -> bytes:
    if (request.content_length or 0) > limit:
        raise _too_large(what, limit)
    chunks, size = [], 0
    async for chunk in request.content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            raise _too_large(what, limit)
    return b"".join(chunks)


async def _read_form(request: web.Request, settings: Settings) -> Upload:
    spec: bytes | None = None
    images: dict[str, bytes] = {}
    room = settings.max_body_bytes
    try:
        form = await request.multipart()
        while (part := await form.next()) is not None:
            if isinstance(part, MultipartReader) or not part.name:
                raise _malformed("Each part needs a name, and no part may be a form itself.")
            is_spec = part.name == "request"
            if part.name in images or (is_spec and spec is not None):
                raise _malformed("Two parts have the same name.")
            limit = min(_MAX_REQUEST_BYTES if is_spec else settings.max_image_bytes, room)
            data = await _read_part(part, limit)
            room -= len(data)
            if is_spec:
                spec = data
                continue
            images[part.name] = data
            if len(images) > settings.max_images:
                raise Problem(
                    413, "too_many_images", f"At most {settings.max_images} images in one request."
                )
    except _UNREADABLE:
        raise _malformed("The form cannot be read; check its boundary and part headers.") from None
    if MAIN_IMAGE not in images:
        raise _malformed(f"The form has no part named `{MAIN_IMAGE}`.")
    return Upload(spec if spec is not None else b"{}", images)


async def _read_part(part: BodyPartReader, limit: int) -> bytes:
    transfer = part.headers.get("Content-Transfer-Encoding", "binary").lower()
    if "Content-Encoding" in part.headers or transfer not in ("binary", "8bit", "7bit"):
        raise Problem(415, "encoding_unsupported", "Send the parts without an encoding.")
    data = bytearray()
    while chunk := await part.read_chunk(_CHUNK):  # its own limit does not count, so we do
        data += chunk
        if len(data) > limit:
            raise _too_large("A part", limit)
    return bytes(data)


def _refuse_encoded(request: web.Request) -> None:
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise Problem(415, "encoding_unsupported", "Send the body without Content-Encoding.")


def _too_slow(settings: Settings) -> Problem:
    return Problem(
        408,
        "upload_too_slow",
        f"The upload took longer than {settings.upload_timeout_s:g} s. Send a smaller image.",
    )


def _too_large(what: str, limit: int) -> Problem:
    return Problem(
        413,
        "too_many_bytes",
        f"{what} is larger than {limit} bytes. Send less: scale images down, or cut them up.",
        {"Connection": "close"},
    )


def _malformed(detail: str) -> Problem:
    return Problem(400, "malformed_form", detail)
