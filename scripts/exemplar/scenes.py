"""Training pictures: objects pasted on backgrounds, many of them alike, some only nearly.

A scene is drawn from its seed alone. What counts as one class is decided here, and so is what the
head learns to tell apart: the same drawing turned, stretched and lit otherwise; individuals of one
kind; and against them neighbours of the same font, folder or code block, hue-shifted copies,
mutations and what differs inside a common frame, which are other classes.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from scripts.exemplar.drawings import (
    HEIGHT,
    WIDTH,
    Draw,
    backed,
    badged,
    cross,
    cut,
    draw_symbol,
    framed,
    individuals,
    lobed,
    mutation,
    outline,
    plan,
    same,
    silhouette,
    slim,
    symbol,
    turn_hue,
)
from scripts.exemplar.sources import Bank, Rgb

_MOST = {"scattered": (17, 5), "packed": (24, 8), "grid": (28, 8)}  # objects, and of one class
_CROSSED = {"line": 0.5, "flat": 0.15, "photo": 0.06, "icon": 0.06}  # of scenes, by lines
_SLIM = 0.15  # of symbols and flat parts
_PRESSED = 0.1  # of scenes, in which a thing is pressed flat and then is another
_SLENDER = (0.3, 0.85)  # of scenes of flat parts, and how many of their parts are slim
_WHIRLED = 0.25  # of scenes but those of lines, in which things lie at any angle
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


@dataclass(frozen=True)
class Scene:
    """A picture with its objects.

    Attributes:
        pixels: (H, W, 3) uint8, RGB.
        boxes: (N, 4) float32, of the visible pixels.
        classes: (N,) int64.
        turns: (N,) float32, degrees that each is turned to the left.
    """

    pixels: Rgb
    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    turns: NDArray[np.float32]


class Painter:
    """Draws scenes of one bank and a set of photographs.

    Args:
        bank: cut-outs.
        photographs: for backgrounds and for pieces of them as objects.
        held_out: take the cut-outs that training never sees, instead of those that it does.

    Raises:
        ValueError: the bank was made before all that scenes need was among its sources.
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
        self._garments: dict[str, list[int]] = {}
        if "fashion" not in self._groups:
            raise ValueError(f"{bank.folder} is of an earlier version: run `fetch` again")
        for place in self._groups["fashion"]:
            self._garments.setdefault(bank.concepts[place], []).append(place)
        self._fonts = [name for name in self._groups if "/" in name]

    def scene(self, seed: int) -> Scene:
        """The scene of a seed: always the same one."""
        rng = np.random.default_rng(seed)
        mode = rng.choice(["photo", "icon", "line", "flat"], p=[0.22, 0.3, 0.38, 0.1])
        canvas, ink = self._background(rng, mode)
        classes = self._classes(rng, mode, ink)
        base = rng.uniform(44, 76)
        spread, turn = [(1.1, 5), (1.4, 18), (1.65, 35), (1.65, 35)][rng.integers(4)]
        if mode == "line" and rng.random() < 0.4:
            turn = 2
        if mode != "line" and rng.random() < _WHIRLED:
            turn = 180
        packed = 0.35 if mode == "flat" else 0.15
        layout = str(rng.choice(["scattered", "packed", "grid"], p=[0.85 - packed, packed, 0.15]))
        if layout == "grid":
            base, spread = rng.uniform(38, 60), 1.1
        room = _Room(rng, layout, base, heaped=mode == "flat" and rng.random() < 0.4)
        if layout == "grid" and rng.random() < 0.6:
            room.draw_lines(canvas, ink)
        look = _Look(
            turn,
            coloured=rng.random() < 0.5,
            coarse=rng.uniform(0.25, 0.6),
            enlarged=0.8 if rng.random() < 0.12 else 0.0,
        )
        labels: list[int] = []
        turns: list[float] = []
        for n in _order(rng, len(classes), *_MOST[layout]):
            size = base * spread ** rng.uniform(-1, 1)
            turned = rng.uniform(-look.turn, look.turn)
            piece = _vary(rng, classes[n](), size, turned, look)
            place = room.take(piece) if piece else None
            if piece is None or place is None:
                continue
            canvas.paste(piece, place, piece)
            labels.append(int(n))
            turns.append(turned)
        if room.boxes and rng.random() < _CROSSED[mode]:
            cross(rng, ImageDraw.Draw(canvas), ink, room.boxes)
        return Scene(
            _photograph(rng, canvas),
            np.array(room.boxes, np.float32).reshape(-1, 4),
            np.array(labels, np.int64),
            np.array(turns, np.float32),
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
            plan(rng, pen, colour)
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
        """Three to six classes of a scene's mode; in some one is another, pressed flat."""
        number = int(rng.integers(3, 7))
        if mode == "flat":
            classes = self._flat_classes(rng, number, ink)
        elif mode == "photo":
            classes = self._photo_classes(rng, number)
        elif mode == "icon":
            classes = self._icon_classes(rng, number)
        else:
            classes = self._line_classes(rng, number, ink)
        if rng.random() < _PRESSED:
            classes.append(same(rng, slim(rng, classes[0](), 0.35)))
        return classes

    def _photo_classes(self, rng: np.random.Generator, number: int) -> list[Draw]:
        classes: list[Draw] = []
        garments = rng.permutation(sorted(self._garments)).tolist()
        for _ in range(number):
            kind = rng.random()
            if kind < 0.42:
                classes.append(same(rng, self._blob(rng), warp=rng.random() < 0.3))
            elif kind < 0.54:  # crops of one texture
                picture, shape = self._texture(rng), outline(rng)
                classes.append(lambda p=picture, s=shape: cut(rng, p, s))  # type: ignore[misc]
            elif kind < 0.67:
                classes.append(individuals(rng))
            elif kind < 0.77 and garments:
                classes.append(self._photographed(rng, self._garments[garments.pop()]))
            else:
                group = "clip-art" if rng.random() < 0.5 else "fluent-3d"
                classes.append(same(rng, self._one(rng, group), warp=rng.random() < 0.2))
        if rng.random() < 0.15:
            turned = turn_hue(rng, classes[0]())
            classes.append(same(rng, turned))
        return classes

    def _flat_classes(
        self, rng: np.random.Generator, number: int, ink: tuple[int, ...]
    ) -> list[Draw]:
        """Parts in one ink, to be told apart by their outlines."""
        classes: list[Draw] = []
        slender = _SLENDER[1] if rng.random() < _SLENDER[0] else _SLIM
        for _ in range(number):
            kind = rng.random()
            if kind < 0.6:
                mask = lobed(rng)
            elif kind < 0.66:
                mask = outline(rng)
            else:
                group = "clip-art" if kind < 0.85 else self._set(rng, _DRAWINGS)
                mask = self._one(rng, group).getchannel("A")
            picture = silhouette(mask, ink)
            if rng.random() < slender:  # as blades and tools are
                picture = slim(rng, picture)
            classes.append(same(rng, picture, warp=rng.random() < 0.2))
        return classes

    def _photographed(self, rng: np.random.Generator, akin: Sequence[int]) -> Draw:
        """Individuals of a kind of garment; in half of the scenes cropped with what is behind."""
        grounded = rng.random() < 0.5
        inverted = rng.random() < 0.3

        def draw() -> Image.Image:
            picture = self._picture(akin[int(rng.integers(len(akin)))], None)
            if inverted:
                alpha = picture.getchannel("A")
                picture = ImageOps.invert(picture.convert("RGB"))
                picture.putalpha(alpha)
            if not grounded:
                return picture
            ground = Image.new("RGBA", picture.size, (*rng.integers(0, 256, 3).tolist(), 255))
            return Image.alpha_composite(ground, picture)

        return draw

    def _icon_classes(self, rng: np.random.Generator, number: int) -> list[Draw]:
        group = self._set(rng, _ICONS)
        ink = tuple(int(c) for c in rng.integers(0, 256, 3)) if group in _FLAT else None
        warp = rng.random() < 0.2
        frame = self._frame(rng, group, ink)
        classes: list[Draw] = []
        places: list[int] = []
        for _ in range(number):
            place = self._neighbour(rng, group, places, 0.5)
            places.append(place)
            concept = self._bank.concepts[place]
            akin = [p for p in self._groups[group] if self._bank.concepts[p] == concept]
            if frame and rng.random() < 0.75:
                classes.append(same(rng, frame(self._picture(place, ink)), warp))
            elif len(akin) > 1 and rng.random() < 0.5:  # all skin tones, one class
                pictures = [self._picture(p, ink) for p in akin[:6]]
                classes.append(lambda ps=pictures: ps[rng.integers(len(ps))])  # type: ignore[misc]
            else:
                classes.append(same(rng, self._picture(place, ink), warp))
        if ink is None and rng.random() < 0.18:
            classes.append(same(rng, turn_hue(rng, classes[0]()), warp))
        return classes

    def _line_classes(
        self, rng: np.random.Generator, number: int, ink: tuple[int, ...]
    ) -> list[Draw]:
        kind = rng.choice(["symbols", "letters", "icons"], p=[0.38, 0.26, 0.36])
        opaque = tuple(int(255 - c) for c in ink) if rng.random() < 0.2 else None
        warp = rng.random() < 0.2
        many_inks = rng.random() < 0.25

        def pen() -> tuple[int, ...]:
            return tuple(int(c) for c in rng.integers(0, 256, 3)) if many_inks else ink

        classes: list[Draw] = []
        if kind == "symbols":
            first = symbol(rng)
            shape = str(rng.choice(["ring", "box", "plate"])) if rng.random() < 0.25 else None
            for n in range(number):
                strokes = first if n == 0 else mutation(rng, first)
                if n and rng.random() < 0.45:
                    strokes = symbol(rng)
                colour = pen()
                picture = draw_symbol(strokes, colour)
                if shape and rng.random() < 0.75:
                    picture = framed(picture, shape, colour, ground=False)
                elif rng.random() < _SLIM:  # as windows and rails are, among lines
                    picture = slim(rng, picture)
                classes.append(same(rng, backed(picture, opaque), warp))
            return classes
        group = self._set(rng, _DRAWINGS)
        frame = self._frame(rng, group, ink) if kind == "icons" else None
        if kind == "letters":
            group = self._fonts[rng.integers(len(self._fonts))]
            number = int(rng.integers(3, 10))
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
            pictures = [backed(self._picture(p, colour), opaque) for p in alike]
            if frame and rng.random() < 0.75:
                pictures = [frame(picture) for picture in pictures]
            if len(pictures) > 1:
                classes.append(lambda ps=pictures: ps[rng.integers(len(ps))])  # type: ignore[misc]
            else:
                classes.append(same(rng, pictures[0], warp))
        return classes

    def _frame(
        self, rng: np.random.Generator, group: str, ink: tuple[int, ...] | None
    ) -> Callable[[Image.Image], Image.Image] | None:
        """What gives most drawings of a scene one frame, or makes them badges of one drawing; None
        in most scenes."""
        kind = rng.random()
        if kind < 0.08:
            frame = str(rng.choice(["ring", "box", "plate"]))
            colour, ground = tuple(int(c) for c in rng.integers(0, 200, 3)), rng.random() < 0.6
            return lambda picture: framed(picture, frame, ink or colour, ground)
        if kind < 0.22:
            members = self._groups[group]
            base = self._picture(members[rng.integers(len(members))], ink)
            corner = 3 if rng.random() < 0.7 else int(rng.integers(4))
            share = rng.uniform(0.35, 0.55)
            return lambda picture: badged(base, picture, corner, share)
        return None

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
            blob = cut(rng, picture, outline(rng))
            if np.asarray(blob)[..., :3].std() > 20:
                break
        return blob

    def _texture(self, rng: np.random.Generator) -> Rgb:
        for _ in range(8):  # of one that is nearly plain, pieces could not be told from others
            picture = self._photographs[int(rng.integers(len(self._photographs)))]
            side = int(min(picture.shape[:2]) * rng.uniform(0.35, 0.8))
            y = rng.integers(picture.shape[0] - side + 1)
            x = rng.integers(picture.shape[1] - side + 1)
            texture: Rgb = picture[y : y + side, x : x + side]
            if texture.std() > 20:
                break
        return texture


def _order(rng: np.random.Generator, classes: int, most: int, most_alike: int) -> list[int]:
    """Which class each object is of: one or two of most classes, several of one to three."""
    counts = rng.integers(1, 3, classes)
    for n in rng.permutation(classes)[: rng.integers(1, 4)]:
        counts[n] = rng.integers(3, most_alike + 1)
    order = np.repeat(np.arange(classes), counts)
    return [int(n) for n in rng.permutation(order)[:most]]


class _Look(NamedTuple):
    """How the objects of one scene vary.

    Attributes:
        turn: most degrees.
        coloured: lit in other colours.
        coarse: share of its resolution that an enlarged piece has.
        enlarged: how many pieces are, as a crop of a small picture is.
    """

    turn: float
    coloured: bool
    coarse: float
    enlarged: float


def _vary(
    rng: np.random.Generator, picture: Image.Image, size: float, turn: float, look: _Look
) -> Image.Image | None:
    """One instance: resized to `size` (root of the area), turned by so many degrees, stretched and
    lit its own way."""
    stretch = math.exp(rng.normal(0, 0.06))
    scale = size / math.sqrt(picture.width * picture.height)
    sides = (
        max(6, round(picture.width * scale * stretch)),
        max(6, round(picture.height * scale / stretch)),
    )
    if rng.random() < look.enlarged:
        few = (max(4, round(sides[0] * look.coarse)), max(4, round(sides[1] * look.coarse)))
        picture = picture.resize(few, Image.Resampling.BILINEAR, reducing_gap=2)
    piece = picture.resize(sides, Image.Resampling.BILINEAR, reducing_gap=2)
    piece = piece.rotate(turn, Image.Resampling.BICUBIC, expand=True)
    box = piece.getchannel("A").point(lambda alpha: 255 * (alpha > 100)).getbbox()
    if box is None or min(box[2] - box[0], box[3] - box[1]) < 6:
        return None
    piece = piece.crop(box)
    if rng.random() < 0.3:
        piece = piece.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.3)))
    pixels = np.array(piece).astype(np.float32)
    pixels[..., :3] = pixels[..., :3] * rng.uniform(0.7, 1.3) + rng.uniform(-20, 20)
    if look.coloured:
        pixels[..., :3] *= rng.uniform(0.75, 1.25, 3)
    if rng.random() < 0.08:
        pixels[..., :3] = pixels[..., :3].mean(-1, keepdims=True)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


class _Room:
    """Where in a scene there is room for another object.

    Args:
        layout: "scattered", "packed" (one beside the other, boxes touching) or "grid".
        size: about what an object's sides are.
        heaped: whether objects may lie across one another.
    """

    def __init__(
        self, rng: np.random.Generator, layout: str, size: float, heaped: bool = False
    ) -> None:
        self._rng = rng
        self._layout = layout
        self._most = 0.4 if heaped else 0.2 if layout == "packed" else 0.08  # of the smaller box
        self._cell = size * rng.uniform(1.1, 1.7, 2)
        self._origin = rng.uniform(0, self._cell)
        columns, rows = ((WIDTH, HEIGHT) - self._origin) // self._cell
        cells = [(x, y) for x in range(int(columns)) for y in range(int(rows))]
        self._cells = [cells[n] for n in rng.permutation(len(cells))]
        self.boxes: list[tuple[float, ...]] = []

    def draw_lines(self, canvas: Image.Image, ink: tuple[int, ...]) -> None:
        """The lines of the grid."""
        pen, width = ImageDraw.Draw(canvas), int(self._rng.integers(1, 4))
        for x in np.arange(self._origin[0], WIDTH, self._cell[0]):
            pen.line((float(x), 0, float(x), HEIGHT), ink, width)
        for y in np.arange(self._origin[1], HEIGHT, self._cell[1]):
            pen.line((0, float(y), WIDTH, float(y)), ink, width)

    def take(self, piece: Image.Image) -> tuple[int, int] | None:
        """A place where the piece overlaps the others by little; None if there is none."""
        width, height = piece.size
        if width >= WIDTH or height >= HEIGHT:
            return None
        for attempt in range(25):
            x, y = self._suggest(width, height, attempt)
            if not (0 <= x < WIDTH - width and 0 <= y < HEIGHT - height):
                continue
            for x0, y0, x1, y1 in self.boxes:
                across = min(x + width, x1) - max(x, x0)
                down = min(y + height, y1) - max(y, y0)
                least = min(width * height, (x1 - x0) * (y1 - y0))
                if across > 0 and down > 0 and across * down > self._most * least:
                    break
            else:
                self.boxes.append((x, y, x + width, y + height))
                return x, y
        return None

    def _suggest(self, width: int, height: int, attempt: int) -> tuple[int, int]:
        rng = self._rng
        if self._layout == "grid" and self._cells:
            shift = rng.normal(0, 0.04, 2)
            x, y = self._origin + self._cell * (np.array(self._cells.pop()) + 0.5 + shift)
            return int(x - width / 2), int(y - height / 2)
        if self._layout == "packed" and self.boxes and attempt < 20:
            x0, y0, x1, y1 = self.boxes[rng.integers(len(self.boxes))]
            gap, slide = rng.uniform(-3, 8), rng.uniform(-0.3, 0.3)
            beside = [
                (x1 + gap, y0 + slide * height),
                (x0 - gap - width, y0 + slide * height),
                (x0 + slide * width, y1 + gap),
                (x0 + slide * width, y0 - gap - height),
            ]
            x, y = beside[rng.integers(4)]
            return int(x), int(y)
        return int(rng.integers(WIDTH - width)), int(rng.integers(HEIGHT - height))


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
