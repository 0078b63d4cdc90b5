"""What the objects of a training scene are made of: drawings that a scene's seed decides.

A class is a `Draw`, which draws one individual after the other.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from scripts.exemplar.sources import Rgb

WIDTH, HEIGHT = 512, 384  # of a scene
_WRITTEN = "ABCDEFGHKLMNRST0123456789 .-"
Draw = Callable[[], Image.Image]  # one individual of a class, RGBA


def same(rng: np.random.Generator, picture: Image.Image, warp: bool = False) -> Draw:
    """A class of one drawing, each individual bent a little if `warp`."""
    if not warp:
        return lambda: picture
    bend = rng.uniform(0.03, 0.09)
    return lambda: _warp(rng, picture, bend)


def _warp(rng: np.random.Generator, picture: Image.Image, bend: float) -> Image.Image:
    """Displace the knots of a 4 x 4 grid by `bend` of the size."""
    knots, width, height = 4, picture.width, picture.height
    grid = np.stack(np.meshgrid(np.linspace(0, 1, knots), np.linspace(0, 1, knots)), -1)
    moved = grid + rng.normal(0, bend / 1.5, grid.shape)
    mesh = []
    for row in range(knots - 1):
        for column in range(knots - 1):
            x0, y0 = grid[row, column] * (width, height)
            x1, y1 = grid[row + 1, column + 1] * (width, height)
            corners = [(row, column), (row + 1, column), (row + 1, column + 1), (row, column + 1)]
            quad = [float(v) for at in corners for v in moved[at] * (width, height)]
            mesh.append(((round(x0), round(y0), round(x1), round(y1)), quad))
    return picture.transform(picture.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def outline(rng: np.random.Generator) -> Image.Image:
    """The shape of a piece of a photograph: ellipse, smooth polygon or rectangle."""
    width, height = (int(v) for v in rng.integers(70, 141, 2))
    mask = Image.new("L", (width, height), 0)
    pen = ImageDraw.Draw(mask)
    kind = rng.random()
    if kind < 0.35:
        pen.ellipse((0, 0, width - 1, height - 1), fill=255)
    elif kind < 0.75:
        angles = np.linspace(0, 2 * math.pi, 40, endpoint=False)
        radius = np.full(40, 0.8)
        for k in (2, 3, 4, 5):
            radius += rng.uniform(0, 0.3 / k) * np.cos(k * angles + rng.uniform(0, 6.3))
        radius = radius / radius.max() / 2
        points = [
            (width * (0.5 + r * math.cos(a)), height * (0.5 + r * math.sin(a)))
            for r, a in zip(radius, angles, strict=True)
        ]
        pen.polygon(points, fill=255)
    else:
        pen.rectangle((0, 0, width, height), fill=255)
    return mask


def cut(rng: np.random.Generator, picture: Rgb, mask: Image.Image) -> Image.Image:
    """A piece of a photograph of the mask's shape, from a random place."""
    zoom = rng.uniform(0.5, 1.6)
    width = min(picture.shape[1], max(8, int(mask.width * zoom)))
    height = min(picture.shape[0], max(8, int(mask.height * zoom)))
    x, y = rng.integers(picture.shape[1] - width + 1), rng.integers(picture.shape[0] - height + 1)
    piece = Image.fromarray(picture[y : y + height, x : x + width]).resize(mask.size)
    piece.putalpha(mask)
    return piece


def individuals(rng: np.random.Generator) -> Draw:
    """A kind by its plan: an outline with parts, each individual with its own proportions.

    Like faces, wheels or cells: the same parts in about the same places, of other sizes, tones and
    edges, so that what they share is the arrangement.
    """
    spread = rng.uniform(0.04, 0.13)
    round_ = rng.random() < 0.7
    hue = rng.integers(0, 256, 3)
    parts = []
    for _ in range(rng.integers(2, 7)):
        x, y = rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6)
        w, h = rng.uniform(0.08, 0.4), rng.uniform(0.06, 0.35)
        tone, alike = rng.integers(0, 256, 3), rng.random() < 0.5
        parts.append((x, y, w, h, tone, alike))
        if rng.random() < 0.5:
            parts.append((-x, y, w, h, tone, alike))
    aspect = rng.uniform(0.7, 1.3)
    texture = rng.uniform(0, 25)
    grounded = rng.random() < 0.45  # cut out with what is behind it, as a crop of a portrait is

    def draw() -> Image.Image:
        width, height = 120, int(120 * aspect * math.exp(rng.normal(0, spread)))
        middle = np.array([width, height]) / 2
        picture = Image.new("RGBA", (width, height), (0, 0, 0, 0))
        pen = ImageDraw.Draw(picture)
        if grounded:
            pen.rectangle((0, 0, width, height), (*(int(c) for c in rng.integers(0, 256, 3)), 255))
        body = (hue + rng.normal(0, 22, 3)).clip(0, 255).astype(int)
        shape = pen.ellipse if round_ else pen.rectangle
        shape((0, 0, width - 1, height - 1), (*(int(c) for c in body), 255))
        for x, y, w, h, tone, alike in parts:
            at = middle * (1 + np.array([x, y]) + rng.normal(0, spread, 2))
            half = middle * np.array([w, h]) * np.exp(rng.normal(0, 1.5 * spread, 2))
            shade = (tone + rng.normal(0, 15 if alike else 45, 3)).clip(0, 255).astype(int)
            pen.ellipse(
                (*(at - half).tolist(), *(at + half).tolist()), (*(int(c) for c in shade), 255)
            )
        pixels = np.array(picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 3)))).astype(
            float
        )
        across = np.linspace(-1, 1, width)[None, :, None] * rng.uniform(-45, 45)
        down = np.linspace(-1, 1, height)[:, None, None] * rng.uniform(-45, 45)
        pixels[..., :3] += across + down + rng.normal(0, texture, (height, width, 1))
        pixels[..., 3] = np.asarray(picture)[..., 3]
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    return draw


Stroke = tuple[str, tuple[float, ...], bool, int]


def symbol(rng: np.random.Generator) -> list[Stroke]:
    return [_stroke(rng, rng.uniform(3, 10)) for _ in range(rng.integers(1, 5))]


def _stroke(rng: np.random.Generator, width: float) -> Stroke:
    kinds = ["ellipse", "square", "triangle", "polygon", "arc", "line", "cross", "zigzag", "arrow"]
    kind = str(rng.choice(kinds))
    x, y = rng.uniform(35, 85, 2)
    return (
        kind,
        (
            x,
            y,
            rng.uniform(15, 50),
            rng.uniform(15, 50),
            rng.uniform(0, 360),
            int(rng.integers(5, 8)),
        ),
        bool(rng.random() < 0.25),
        round(width),
    )


def mutation(rng: np.random.Generator, strokes: list[Stroke]) -> list[Stroke]:
    """A symbol with one stroke added, left out or replaced."""
    changed = list(strokes)
    at = int(rng.integers(len(changed)))
    fresh = _stroke(rng, strokes[0][3])
    what = rng.random()
    if what < 0.45:
        changed.append(fresh)
    elif what < 0.65 and len(changed) > 1:
        del changed[at]
    else:
        changed[at] = fresh
    return changed


def draw_symbol(strokes: list[Stroke], ink: tuple[int, ...]) -> Image.Image:
    picture = Image.new("RGBA", (120, 120), (*ink, 0))
    pen = ImageDraw.Draw(picture)
    colour = (*ink, 255)
    for kind, (x, y, w, h, angle, sides), filled, width in strokes:
        box = (x - w, y - h, x + w, y + h)
        fill = colour if filled else None
        turn = math.radians(angle)
        dx, dy = w * math.cos(turn), h * math.sin(turn)
        if kind == "ellipse":
            pen.ellipse(box, fill, colour, width)
        elif kind == "square":
            pen.rectangle(box, fill, colour, width)
        elif kind in ("triangle", "polygon"):
            corners = 3 if kind == "triangle" else int(sides)
            radius = min(w, h)
            pen.regular_polygon((x, y, radius), corners, angle, fill, colour, width)
        elif kind == "arc":
            pen.arc(box, angle, angle + 170, colour, width)
        elif kind == "line":
            pen.line((x - dx, y - dy, x + dx, y + dy), colour, width)
        elif kind == "cross":
            pen.line((x - dx, y - dy, x + dx, y + dy), colour, width)
            pen.line((x + dy, y - dx, x - dy, y + dx), colour, width)
        elif kind == "zigzag":
            points = [(x - w + w * n / 2, y + (h / 2 if n % 2 else -h / 2)) for n in range(5)]
            pen.line(points, colour, width, "curve")
        else:
            pen.line((x - dx, y - dy, x + dx, y + dy), colour, width)
            for side in (-2.6, 2.6):
                tip = (x + dx, y + dy)
                arm = (tip[0] + 18 * math.cos(turn + side), tip[1] + 18 * math.sin(turn + side))
                pen.line((*tip, *arm), colour, width)
    drawn = picture.getchannel("A").getbbox()
    if drawn is None or min(drawn[2] - drawn[0], drawn[3] - drawn[1]) < 10:
        return draw_symbol([*strokes, ("ellipse", (60, 60, 25, 25, 0, 5), False, 5)], ink)
    return picture.crop(drawn)


def backed(picture: Image.Image, paper: tuple[int, ...] | None) -> Image.Image:
    """Put a flat drawing on a box of paper, so that nothing shows through it."""
    if paper is None:
        return picture
    box = Image.new("RGBA", picture.size, (*paper, 255))
    box.alpha_composite(picture)
    return box


def plan(rng: np.random.Generator, pen: ImageDraw.ImageDraw, ink: tuple[int, ...]) -> None:
    """Walls, rectangles, circles and writing, as on a drawing."""
    for _ in range(rng.integers(4, 22)):
        x, y = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)
        w, h = rng.uniform(10, 220), rng.uniform(10, 160)
        width = int(rng.integers(1, 6))
        kind = rng.random()
        if kind < 0.45:
            end = (x + w, y) if rng.random() < 0.5 else (x, y + h)
            if rng.random() < 0.15:
                end = (x + w, y + h)
            pen.line((x, y, *end), ink, width)
        elif kind < 0.7:
            pen.rectangle((x, y, x + w, y + h), outline=ink, width=width)
        elif kind < 0.82:
            pen.ellipse((x, y, x + w / 2, y + w / 2), outline=ink, width=width)
        else:
            text = "".join(rng.choice(list(_WRITTEN), rng.integers(2, 12)))
            pen.text((x, y), text, ink, font_size=float(rng.uniform(8, 26)))


def cross(
    rng: np.random.Generator,
    pen: ImageDraw.ImageDraw,
    ink: tuple[int, ...],
    boxes: Sequence[tuple[float, ...]],
) -> None:
    """Long lines through some of the objects, as walls, wires and measures run on a drawing."""
    for _ in range(rng.integers(1, 6)):
        x0, y0, x1, y1 = boxes[int(rng.integers(len(boxes)))]
        x, y = rng.uniform(x0, x1), rng.uniform(y0, y1)
        kind, width = rng.random(), int(rng.integers(1, 6))
        near, far = rng.uniform(30, 400, 2)
        if kind < 0.45:
            pen.line((x - near, y, x + far, y), ink, width)
        elif kind < 0.9:
            pen.line((x, y - near, x, y + far), ink, width)
        else:
            slope = rng.uniform(-1, 1)
            pen.line((x - near, y - slope * near, x + far, y + slope * far), ink, width)
        if rng.random() < 0.15:
            text = "".join(rng.choice(list(_WRITTEN), rng.integers(2, 8)))
            pen.text((x, y), text, ink, font_size=float(rng.uniform(8, 18)))


def turn_hue(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    hsv = np.array(picture.convert("RGB").convert("HSV"))
    hsv[..., 0] += np.uint8(rng.integers(50, 200))
    turned = Image.fromarray(hsv, "HSV").convert("RGB")
    turned.putalpha(picture.getchannel("A"))
    return turned


def lobed(rng: np.random.Generator) -> Image.Image:
    """The mask of a flat part, such as a propeller, a leaf, a gear or a spanner."""
    width, height = (int(v) for v in rng.integers(50, 141, 2))
    angles = np.linspace(0, 2 * math.pi, 120, endpoint=False)
    lobes, sharp = int(rng.integers(2, 9)), rng.uniform(0.5, 3)
    waist = rng.uniform(0.15, 0.75)
    radius = waist + (1 - waist) * np.abs(np.cos(lobes * angles / 2)) ** sharp
    radius *= 1 + rng.uniform(0, 0.4) * np.cos(angles + rng.uniform(0, 6.3))
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * (radius / radius.max())[:, None]
    mask = Image.new("L", (width, height), 0)
    pen = ImageDraw.Draw(mask)
    pen.polygon([(float(x), float(y)) for x, y in (1 + points) / 2 * (width, height)], fill=255)
    if rng.random() < 0.35:  # with a hole
        half = np.array([width, height]) * waist * rng.uniform(0.15, 0.35)
        middle = np.array([width, height]) / 2
        pen.ellipse((*(middle - half).tolist(), *(middle + half).tolist()), fill=0)
    return mask


def silhouette(mask: Image.Image, ink: tuple[int, ...]) -> Image.Image:
    """A shape in one ink."""
    picture = Image.new("RGBA", mask.size, (*ink, 0))
    picture.putalpha(mask)
    return picture


def slim(rng: np.random.Generator, picture: Image.Image, least: float = 0.2) -> Image.Image:
    """A drawing pressed flat, lying or standing, to `least` or more of its height or width."""
    share = rng.uniform(least, 0.6)
    width, height = picture.width, max(12, round(picture.height * share))
    if rng.random() < 0.5:
        width, height = max(12, round(picture.width * share)), picture.height
    return picture.resize((width, height))


def framed(picture: Image.Image, frame: str, ink: tuple[int, ...], ground: bool) -> Image.Image:
    """A drawing inside a ring or a box, as road signs and buttons are: same frame, other inside.

    Args:
        frame: "ring", "box" or "plate" (a box with round corners).
        ground: whether the frame is filled.
    """
    side = 120
    whole = Image.new("RGBA", (side, side), (*ink, 0))
    pen = ImageDraw.Draw(whole)
    fill = (*(255 - c // 3 for c in ink), 255) if ground else None
    edge, around = (*ink, 255), (2, 2, side - 3, side - 3)
    if frame == "ring":
        pen.ellipse(around, fill, edge, 7)
    elif frame == "box":
        pen.rectangle(around, fill, edge, 7)
    else:
        pen.rounded_rectangle(around, 24, fill, edge, 7)
    inner = picture.copy()
    inner.thumbnail((66, 66))
    whole.alpha_composite(inner, ((side - inner.width) // 2, (side - inner.height) // 2))
    return whole


def badged(picture: Image.Image, badge: Image.Image, corner: int, share: float) -> Image.Image:
    """A drawing with a small other one in a corner, as icons of a set have: add, done, blocked.

    Args:
        corner: 0 to 3, the last one at the bottom right.
        share: of the sides that the badge takes.
    """
    side = 120
    whole = picture.resize((side, side), Image.Resampling.BILINEAR)
    small = badge.copy()
    small.thumbnail((round(side * share), round(side * share)))
    x = (side - small.width) * (corner % 2)
    y = (side - small.height) * (corner // 2)
    clear = (x - 6, y - 6, x + small.width + 5, y + small.height + 5)
    ImageDraw.Draw(whole).rectangle(clear, (0, 0, 0, 0))
    whole.alpha_composite(small, (x, y))
    return whole
