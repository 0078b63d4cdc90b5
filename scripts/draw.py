"""Draws annotations on their images."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageOps

from jobs.contract import Annotated, Box
from jobs.formats import labels_of, outlines

Colour = tuple[int, int, int]
FOUND, PROMPT, MISSED = (20, 140, 60), (200, 40, 40), (200, 120, 0)
_TEXT, _PAPER = (255, 255, 255), (245, 245, 245)
_LABELS: list[Colour] = [FOUND, (30, 90, 200), (150, 50, 170), (0, 130, 140), (150, 90, 20)]
_TITLE = 14  # pixels over each tile of a sheet


class Mark(NamedTuple):
    """A box to draw, in pixels of its image, with a few words at its corner."""

    box: Box
    colour: Colour
    text: str = ""


class Tile(NamedTuple):
    """One image of a sheet; `image` is None where it is not at hand."""

    title: str
    image: bytes | None
    marks: Sequence[Mark]


def draw(image: bytes, result: Annotated, path: Path, prompts: list[Box]) -> None:
    """Write a PNG with a box and a score at each find; prompts are drawn in red."""
    picture = _open(image)
    labels = labels_of([result])
    colours = {label: _LABELS[at % len(_LABELS)] for at, label in enumerate(labels)}
    pen = ImageDraw.Draw(picture)
    width = _width(picture)
    marks = []
    for found in result.annotations:
        colour = colours[found.label]
        for ring in outlines(found.mask) if found.mask else []:
            pen.polygon(ring, outline=colour, width=width)
        for x, y, visibility in found.keypoints or ():
            if visibility:
                pen.ellipse((x - width, y - width, x + width, y + width), fill=colour)
        name = f"{found.label} " if len(labels) > 1 else ""
        marks.append(Mark(found.box, colour, f"{name}{found.score:.2f}"))
    _mark(picture, [*marks, *(Mark(box, PROMPT) for box in prompts)])
    picture.save(path)


def draw_sheet(tiles: Sequence[Tile], path: Path, columns: int = 4, side: int = 360) -> None:
    """Write a PNG with all tiles in rows, each fitted into a square of `side` pixels."""
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * side, rows * (side + _TITLE)), _PAPER)
    for number, tile in enumerate(tiles):
        corner = (number % columns * side, number // columns * (side + _TITLE))
        if tile.image:
            picture = _open(tile.image)
            _mark(picture, tile.marks)
            picture.thumbnail((side - 4, side - 4))
            sheet.paste(picture, (corner[0] + 2, corner[1] + _TITLE))
        ImageDraw.Draw(sheet).text((corner[0] + 2, corner[1] + 1), tile.title, fill=(0, 0, 0))
    sheet.save(path)


def _open(image: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(io.BytesIO(image))).convert("RGB")


def _width(picture: Image.Image) -> int:
    return max(2, round(max(picture.size) / 400))


def _mark(picture: Image.Image, marks: Sequence[Mark]) -> None:
    pen = ImageDraw.Draw(picture)
    for mark in marks:
        pen.rectangle(mark.box, outline=mark.colour, width=_width(picture))
        if mark.text:
            x, y = mark.box[0], max(0.0, mark.box[1] - 11)
            pen.rectangle(pen.textbbox((x + 1, y), mark.text), fill=mark.colour)
            pen.text((x + 1, y), mark.text, fill=_TEXT)
