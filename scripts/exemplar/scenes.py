"""Training pictures: objects pasted on backgrounds, many of them alike, some only nearly.

A scene is drawn from its seed alone. What counts as one class is decided here, and so is what the
head learns to tell apart: the same drawing turned, stretched and lit otherwise; individuals of one
kind; and against them neighbours of the same font, folder or code block, hue-shifted copies and
mutations, which are other classes.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from scripts.exemplar.sources import Bank, Rgb

WIDTH, HEIGHT = 512, 384
_MOST_OBJECTS = 17
_FLAT = ("lucide", "font-awesome", "ph", "mdi", "game-icons", "healthicons")
_ICONS = {  # how often an icon scene takes its objects from a set
    **{"fluent-3d": 0.15, "fluent-flat": 0.14, "clip-art": 0.2, "noto": 0.16, "emojione": 0.08},
    **{"fxemoji": 0.07, "circle-flags": 0.04, "vscode-icons": 0.06},
    **{"font-awesome": 0.02, "lucide": 0.02, "ph": 0.02, "mdi": 0.02, "game-icons": 0.02},
}
_DRAWINGS = {  # the same of a scene of lines
    **{"lucide": 0.2, "font-awesome": 0.12, "ph": 0.22, "mdi": 0.2, "game-icons": 0.14},
    **{"healthicons": 0.12},
}
Draw = Callable[[], Image.Image]  # one individual of a class, RGBA


@dataclass(frozen=True)
class Scene:
    """A picture with its objects.

    Attributes:
        pixels: (H, W, 3) uint8, RGB.
        boxes: (N, 4) float32, of the visible pixels.
        classes: (N,) int64.
    """

    pixels: Rgb
    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]


class Painter:
    """Draws scenes of one bank and a set of photographs.

    Args:
        bank: cut-outs.
        photographs: for backgrounds and for pieces of them as objects.
        held_out: take the cut-outs that training never sees, instead of those that it does.
    """

    def __init__(self, bank: Bank, photographs: Sequence[Rgb], held_out: bool = False) -> None:
        prefix = "held-out/"
        self._bank = bank
        self._photographs = photographs
        self._groups = {
            name.removeprefix(prefix): places
            for name, places in bank.groups.items()
            if name.startswith(prefix) == held_out
        }
        self._fonts = [name for name in self._groups if "/" in name]

    def scene(self, seed: int) -> Scene:
        """The scene of a seed: always the same one."""
        rng = np.random.default_rng(seed)
        mode = rng.choice(["photo", "icon", "line"], p=[0.30, 0.34, 0.36])
        canvas, ink = self._background(rng, mode)
        classes = self._classes(rng, mode, ink)
        counts = [int(rng.integers(1, 3)) for _ in classes]
        for n in rng.permutation(len(classes))[: rng.integers(1, 4)]:
            counts[n] = int(rng.integers(3, 6))
        base = rng.uniform(44, 76)
        spread, turn = [(1.1, 5), (1.4, 18), (1.65, 35), (1.65, 35)][rng.integers(4)]
        if mode == "line" and rng.random() < 0.4:
            turn = 2
        coloured = rng.random() < 0.5
        boxes: list[tuple[float, ...]] = []
        labels: list[int] = []
        order = [n for n, count in enumerate(counts) for _ in range(count)]
        for n in rng.permutation(order)[:_MOST_OBJECTS]:
            size = base * spread ** rng.uniform(-1, 1)
            piece = _vary(rng, classes[n](), size, rng.uniform(-turn, turn), coloured)
            place = _free(rng, piece, boxes) if piece else None
            if piece is None or place is None:
                continue
            canvas.paste(piece, place, piece)
            boxes.append((*place, place[0] + piece.width, place[1] + piece.height))
            labels.append(int(n))
        return Scene(
            _photograph(rng, canvas),
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(labels, np.int64),
        )

    def _background(
        self, rng: np.random.Generator, mode: str
    ) -> tuple[Image.Image, tuple[int, ...]]:
        """A canvas, and an ink that can be seen on it."""
        if mode == "photo" or (mode == "icon" and rng.random() < 0.75):
            return self._crop(rng), (0, 0, 0)
        dark = rng.random() < 0.15
        paper = rng.integers(10, 60, 3) if dark else rng.integers(190, 256) - rng.integers(0, 25, 3)
        ink = rng.integers(200, 256, 3) if dark else rng.integers(0, 110, 3)
        shade = np.linspace(rng.uniform(0.85, 1), rng.uniform(0.9, 1.05), WIDTH)[None, :, None]
        plain = np.broadcast_to(paper * shade, (HEIGHT, WIDTH, 3)).clip(0, 255)
        canvas = Image.fromarray(plain.astype(np.uint8))
        if rng.random() < 0.15:
            canvas = Image.blend(canvas, self._crop(rng), rng.uniform(0.1, 0.3))
        pen = ImageDraw.Draw(canvas)
        colour = tuple(int(c) for c in ink)
        if rng.random() < (0.6 if mode == "line" else 0.2):
            _plan(rng, pen, colour)
        if rng.random() < 0.12:
            step = int(rng.integers(14, 40))
            faint = tuple(int(c) for c in (0.75 * paper + 0.25 * ink))
            for at in range(0, WIDTH, step):
                pen.line((at, 0, at, HEIGHT), faint)
                pen.line((0, at, WIDTH, at), faint)
        return canvas, colour

    def _crop(self, rng: np.random.Generator) -> Image.Image:
        if rng.random() < 0.06:
            flat = rng.integers(0, 256, (1, 1, 3), np.uint8)
            return Image.fromarray(flat).resize((WIDTH, HEIGHT))
        picture = self._photographs[int(rng.integers(len(self._photographs)))]
        height, width = picture.shape[:2]
        share = rng.uniform(0.35, 1)
        w, h = int(width * share), int(height * share)
        x, y = rng.integers(width - w + 1), rng.integers(height - h + 1)
        crop = Image.fromarray(picture[y : y + h, x : x + w]).resize((WIDTH, HEIGHT))
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop

    def _classes(self, rng: np.random.Generator, mode: str, ink: tuple[int, ...]) -> list[Draw]:
        """Three to six classes of a scene's mode."""
        number = int(rng.integers(3, 7))
        if mode == "photo":
            return self._photo_classes(rng, number)
        if mode == "icon":
            return self._icon_classes(rng, number)
        return self._line_classes(rng, number, ink)

    def _photo_classes(self, rng: np.random.Generator, number: int) -> list[Draw]:
        classes: list[Draw] = []
        for _ in range(number):
            kind = rng.random()
            if kind < 0.42:
                classes.append(_same(rng, self._blob(rng), warp=rng.random() < 0.3))
            elif kind < 0.54:  # crops of one texture
                picture, shape = self._texture(rng), _outline(rng)
                classes.append(lambda p=picture, s=shape: _cut(rng, p, s))  # type: ignore[misc]
            elif kind < 0.72:
                classes.append(_individuals(rng))
            else:
                group = "clip-art" if rng.random() < 0.5 else "fluent-3d"
                classes.append(_same(rng, self._one(rng, group), warp=rng.random() < 0.2))
        if rng.random() < 0.15:
            turned = _turn_hue(rng, classes[0]())
            classes.append(_same(rng, turned))
        return classes

    def _icon_classes(self, rng: np.random.Generator, number: int) -> list[Draw]:
        group = self._set(rng, _ICONS)
        ink = tuple(int(c) for c in rng.integers(0, 256, 3)) if group in _FLAT else None
        warp = rng.random() < 0.2
        classes: list[Draw] = []
        places: list[int] = []
        for _ in range(number):
            place = self._neighbour(rng, group, places, 0.5)
            places.append(place)
            concept = self._bank.concepts[place]
            akin = [p for p in self._groups[group] if self._bank.concepts[p] == concept]
            if len(akin) > 1 and rng.random() < 0.5:  # all skin tones, one class
                pictures = [self._picture(p, ink) for p in akin[:6]]
                classes.append(lambda ps=pictures: ps[rng.integers(len(ps))])  # type: ignore[misc]
            else:
                classes.append(_same(rng, self._picture(place, ink), warp))
        if ink is None and rng.random() < 0.12:
            classes.append(_same(rng, _turn_hue(rng, classes[0]()), warp))
        return classes

    def _line_classes(
        self, rng: np.random.Generator, number: int, ink: tuple[int, ...]
    ) -> list[Draw]:
        kind = rng.choice(["symbols", "letters", "icons"], p=[0.36, 0.28, 0.36])
        opaque = tuple(int(255 - c) for c in ink) if rng.random() < 0.2 else None
        warp = rng.random() < 0.2
        many_inks = rng.random() < 0.25

        def pen() -> tuple[int, ...]:
            return tuple(int(c) for c in rng.integers(0, 256, 3)) if many_inks else ink

        classes: list[Draw] = []
        if kind == "symbols":
            first = _symbol(rng)
            for n in range(number):
                strokes = first if n == 0 else _mutation(rng, first)
                if n and rng.random() < 0.45:
                    strokes = _symbol(rng)
                picture = _draw_symbol(strokes, pen())
                classes.append(_same(rng, _backed(picture, opaque), warp))
            return classes
        group = self._set(rng, _DRAWINGS)
        if kind == "letters":
            group = self._fonts[rng.integers(len(self._fonts))]
        places: list[int] = []
        for _ in range(number):
            place = self._neighbour(rng, group, places, 0.45)
            places.append(place)
            colour = pen()
            alike = [place]
            if kind == "letters" and rng.random() < 0.25:  # one letter in related fonts
                family = group.rsplit("-", 1)[0]
                concept = self._bank.concepts[place]
                alike = [
                    p
                    for name in self._fonts
                    if name.startswith(family)
                    for p in self._groups[name]
                    if self._bank.concepts[p] == concept
                ]
            pictures = [_backed(self._picture(p, colour), opaque) for p in alike]
            if len(pictures) > 1:
                classes.append(lambda ps=pictures: ps[rng.integers(len(ps))])  # type: ignore[misc]
            else:
                classes.append(_same(rng, pictures[0], warp))
        return classes

    def _set(self, rng: np.random.Generator, shares: dict[str, float]) -> str:
        names = [name for name in shares if name in self._groups]
        weights = np.array([shares[name] for name in names])
        return names[rng.choice(len(names), p=weights / weights.sum())]

    def _neighbour(
        self, rng: np.random.Generator, group: str, places: list[int], share: float
    ) -> int:
        """Another object of a group, with probability `share` one akin to an earlier one."""
        members = self._groups[group]
        for _ in range(20):
            at = int(rng.integers(len(members)))
            if places and rng.random() < share:
                near = members.index(places[rng.integers(len(places))])
                at = (near + int(rng.choice([-4, -3, -2, -1, 1, 2, 3, 4]))) % len(members)
            used = {self._bank.concepts[p] for p in places}
            if self._bank.concepts[members[at]] not in used:
                return members[at]
        return members[at]

    def _one(self, rng: np.random.Generator, group: str) -> Image.Image:
        members = self._groups[group]
        return self._picture(members[rng.integers(len(members))], None)

    def _picture(self, place: int, ink: tuple[int, ...] | None) -> Image.Image:
        cut = self._bank[place]
        if ink is not None:
            cut[..., :3] = ink
        return Image.fromarray(cut)

    def _blob(self, rng: np.random.Generator) -> Image.Image:
        for _ in range(8):
            picture = self._photographs[int(rng.integers(len(self._photographs)))]
            blob = _cut(rng, picture, _outline(rng))
            if np.asarray(blob)[..., :3].std() > 20:
                break
        return blob

    def _texture(self, rng: np.random.Generator) -> Rgb:
        picture = self._photographs[int(rng.integers(len(self._photographs)))]
        side = int(min(picture.shape[:2]) * rng.uniform(0.35, 0.8))
        y = rng.integers(picture.shape[0] - side + 1)
        x = rng.integers(picture.shape[1] - side + 1)
        texture: Rgb = picture[y : y + side, x : x + side]
        return texture


def _same(rng: np.random.Generator, picture: Image.Image, warp: bool = False) -> Draw:
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


def _outline(rng: np.random.Generator) -> Image.Image:
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


def _cut(rng: np.random.Generator, picture: Rgb, mask: Image.Image) -> Image.Image:
    """A piece of a photograph of the mask's shape, from a random place."""
    zoom = rng.uniform(0.5, 1.6)
    width = min(picture.shape[1], max(8, int(mask.width * zoom)))
    height = min(picture.shape[0], max(8, int(mask.height * zoom)))
    x, y = rng.integers(picture.shape[1] - width + 1), rng.integers(picture.shape[0] - height + 1)
    piece = Image.fromarray(picture[y : y + height, x : x + width]).resize(mask.size)
    piece.putalpha(mask)
    return piece


def _individuals(rng: np.random.Generator) -> Draw:
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

    def draw() -> Image.Image:
        width, height = 120, int(120 * aspect * math.exp(rng.normal(0, spread)))
        middle = np.array([width, height]) / 2
        picture = Image.new("RGBA", (width, height), (0, 0, 0, 0))
        pen = ImageDraw.Draw(picture)
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
        light = np.linspace(-1, 1, width) * rng.uniform(-35, 35)
        pixels[..., :3] += light[None, :, None] + rng.normal(0, texture, (height, width, 1))
        pixels[..., 3] = np.asarray(picture)[..., 3]
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    return draw


Stroke = tuple[str, tuple[float, ...], bool, int]


def _symbol(rng: np.random.Generator) -> list[Stroke]:
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


def _mutation(rng: np.random.Generator, strokes: list[Stroke]) -> list[Stroke]:
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


def _draw_symbol(strokes: list[Stroke], ink: tuple[int, ...]) -> Image.Image:
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
        return _draw_symbol([*strokes, ("ellipse", (60, 60, 25, 25, 0, 5), False, 5)], ink)
    return picture.crop(drawn)


def _backed(picture: Image.Image, paper: tuple[int, ...] | None) -> Image.Image:
    """Put a flat drawing on a box of paper, so that nothing shows through it."""
    if paper is None:
        return picture
    box = Image.new("RGBA", picture.size, (*paper, 255))
    box.alpha_composite(picture)
    return box


def _plan(rng: np.random.Generator, pen: ImageDraw.ImageDraw, ink: tuple[int, ...]) -> None:
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
            text = "".join(rng.choice(list("ABCDEFGHKLMNRST0123456789 .-"), rng.integers(2, 12)))
            pen.text((x, y), text, ink, font_size=float(rng.uniform(8, 26)))


def _turn_hue(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    hsv = np.array(picture.convert("RGB").convert("HSV"))
    hsv[..., 0] += np.uint8(rng.integers(50, 200))
    turned = Image.fromarray(hsv, "HSV").convert("RGB")
    turned.putalpha(picture.getchannel("A"))
    return turned


def _vary(
    rng: np.random.Generator, picture: Image.Image, size: float, turn: float, coloured: bool
) -> Image.Image | None:
    """One instance: resized to `size` (root of the area), turned, stretched and lit its own way."""
    stretch = math.exp(rng.normal(0, 0.06))
    scale = size / math.sqrt(picture.width * picture.height)
    width, height = (
        max(6, round(picture.width * scale * stretch)),
        max(6, round(picture.height * scale / stretch)),
    )
    piece = picture.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2)
    piece = piece.rotate(turn, Image.Resampling.BICUBIC, expand=True)
    box = piece.getchannel("A").point(lambda alpha: 255 * (alpha > 100)).getbbox()
    if box is None or min(box[2] - box[0], box[3] - box[1]) < 6:
        return None
    piece = piece.crop(box)
    if rng.random() < 0.3:
        piece = piece.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.3)))
    pixels = np.array(piece).astype(np.float32)
    pixels[..., :3] = pixels[..., :3] * rng.uniform(0.7, 1.3) + rng.uniform(-20, 20)
    if coloured:
        pixels[..., :3] *= rng.uniform(0.75, 1.25, 3)
    if rng.random() < 0.08:
        pixels[..., :3] = pixels[..., :3].mean(-1, keepdims=True)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _free(
    rng: np.random.Generator, piece: Image.Image, boxes: list[tuple[float, ...]]
) -> tuple[int, int] | None:
    """A place where the piece overlaps the others by little; None if there is none."""
    width, height = piece.size
    if width >= WIDTH or height >= HEIGHT:
        return None
    for _ in range(25):
        x, y = int(rng.integers(WIDTH - width)), int(rng.integers(HEIGHT - height))
        for x0, y0, x1, y1 in boxes:
            across = min(x + width, x1) - max(x, x0)
            down = min(y + height, y1) - max(y, y0)
            least = min(width * height, (x1 - x0) * (y1 - y0))
            if across > 0 and down > 0 and across * down > 0.08 * least:
                break
        else:
            return x, y
    return None


def _photograph(rng: np.random.Generator, canvas: Image.Image) -> Rgb:
    """What a camera and a file format do to a picture."""
    if rng.random() < 0.6:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    pixels = np.asarray(canvas).astype(np.float32)
    if rng.random() < 0.12:
        pixels = np.repeat(pixels.mean(-1, keepdims=True), 3, -1)
    pixels = pixels + rng.normal(0, rng.uniform(0, 5), pixels.shape).astype(np.float32)
    canvas = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if rng.random() < 0.6:
        file = io.BytesIO()
        canvas.save(file, "JPEG", quality=int(rng.integers(35, 91)))
        canvas = Image.open(file).convert("RGB")
    return np.array(canvas)
