"""Draws annotations on their image."""

import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from jobs.contract import Annotated, Box

_FOUND, _PROMPT, _TEXT = (20, 140, 60), (200, 40, 40), (255, 255, 255)


def draw(image: bytes, result: Annotated, path: Path, prompts: list[Box]) -> None:
    """Write a PNG with a box and a score at each find; prompts are drawn in red."""
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(image))).convert("RGB")
    pen = ImageDraw.Draw(picture)
    width = max(2, round(max(picture.size) / 400))
    for found in result.annotations:
        pen.rectangle(found.box, outline=_FOUND, width=width)
        text = f"{found.score:.2f}"
        x, y = found.box[0], max(0.0, found.box[1] - 11)
        pen.rectangle(pen.textbbox((x + 1, y), text), fill=_FOUND)
        pen.text((x + 1, y), text, fill=_TEXT)
    for box in prompts:
        pen.rectangle(box, outline=_PROMPT, width=width)
    picture.save(path)
