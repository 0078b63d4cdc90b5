"""Writes annotations in the format that a client wants: those of a job, or those it brings."""

import asyncio
import json

import msgspec
from aiohttp import web

from api.asked import wanted_format
from api.callers import submitter
from api.keys import CONVERTING, SETTINGS
from api.limits import LIMITS
from api.upload import read_json
from jobs import formats
from jobs.contract import Annotated
from jobs.problems import Problem, unprocessable

_MAX_SIDE = 65_535
_MAX_COUNTS = 100_000  # characters of one mask: a very ragged outline has some ten thousand
_MAX_COLUMNS = 3_000_000  # of all masks; each costs as much as it is wide

_annotated = msgspec.json.Decoder(Annotated)


async def convert(request: web.Request) -> web.Response:
    """Write annotations that the client has, corrected perhaps; nothing of them is kept.

    One at a time: what a client makes up can cost more than what a model found.
    """
    asking = submitter(request)
    result_format = wanted_format(request)
    await request.app[LIMITS].submission(request, asking, "convert")
    name = request.query.get("name", "image")[:255]
    try:
        result = _annotated.decode(await read_json(request, request.app[SETTINGS]))
    except msgspec.ValidationError as error:
        raise unprocessable("invalid_result", f"This is not a result: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Problem(400, "malformed_result", "The result is not valid JSON.") from None
    _check(result, request.app[SETTINGS].max_pixels)
    async with request.app[CONVERTING]:
        try:
            return await write(result, result_format, name)
        except ValueError:
            raise unprocessable(
                "invalid_result", "A mask does not fill the image, or a number is not finite."
            ) from None


async def write(
    result: Annotated, result_format: formats.Format, name: str = "image"
) -> web.Response:
    """An answer with `result` in a format.

    Raises:
        ValueError: see `formats.Format.render`.
    """
    headers = {"Content-Type": result_format.media_type}
    if result_format.numbered:  # the body has no place for the names
        headers["Mayfly-Labels"] = json.dumps(formats.labels_of([result]))
    body = await asyncio.to_thread(result_format.render, result, name)  # masks become outlines
    return web.Response(body=body, headers=headers)


def _check(result: Annotated, max_pixels: int) -> None:
    """Refuse what no model answers, before it costs anything."""
    width, height = result.image.width, result.image.height
    if not (0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE and width * height <= max_pixels):
        raise unprocessable(
            "invalid_result", f"$.image must have 1 to {max_pixels} pixels, as images here have."
        )
    masks = [one.mask for one in result.annotations if one.mask]
    if any(mask.size != (height, width) for mask in masks):
        raise unprocessable("invalid_result", "A mask has another size than the image.")
    if len(masks) * width > _MAX_COLUMNS or any(len(m.counts) > _MAX_COUNTS for m in masks):
        raise Problem(413, "too_many_masks", "The masks are too many or too fine. Send fewer.")
