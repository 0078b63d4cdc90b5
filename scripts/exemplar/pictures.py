"""The pictures of the quality benchmark: fixed seeds, objects that training never saw.

Its own generator, apart from `scenes`: pieces of held-out photographs, emoji of a set that no
training picture has, symbols on drawn plans, letters of held-out fonts, individuals of a kind, and
real ones: photographs with boxes checked by hand, and faces in mosaics.
"""

import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from jobs.contract import Box
from scripts.exemplar.sources import Bank, Rgb, sample

SIZE = (768, 576)
_DATA = Path(__file__).parents[2] / "tests" / "data"
COINS, REAL = _DATA / "coins.json", _DATA / "real.json"

# Pieces of photographs that are in no training picture: name, box, and whether it is an ellipse.
Piece = tuple[str, tuple[int, int, int, int], bool]
_PIECES: tuple[Piece, ...] = (
    ("astronaut", (150, 10, 305, 190), True),  # head
    ("astronaut", (132, 345, 212, 425), True),  # badge
    ("astronaut", (360, 0, 462, 275), False),  # shuttle
    ("astronaut", (280, 340, 510, 510), True),  # helmet
    ("astronaut", (110, 145, 310, 305), True),  # collar
    ("coffee", (170, 10, 410, 245), True),  # cup
    ("coffee", (320, 235, 410, 335), True),  # spoon
    ("chelsea", (130, 75, 210, 155), True),  # eye
    ("chelsea", (110, 40, 370, 290), True),  # cat
    ("chelsea", (225, 215, 295, 275), True),  # nose
    ("camera", (160, 60, 275, 205), True),  # head of the man
    ("camera", (250, 135, 330, 210), False),  # camera
)
_BACKGROUNDS = ("grass", "gravel", "brick", "rocket", "hubble_deep_field", "moon")
_TONES = tuple(f"1f3f{digit}" for digit in "bcdef")
Draw = Callable[[np.random.Generator], Image.Image]


@dataclass(frozen=True)
class Query:
    """One question to a picture.

    Attributes:
        pixels: (H, W, 3) uint8.
        truth: boxes of the class that is asked for, the prompted ones included.
        prompts: places in `truth` that are shown.
        look_alike: a box of another class that resembles it, if there is one.
        real: a photograph as it is, with boxes checked by hand.
    """

    row: str
    pixels: Rgb
    truth: list[Box]
    prompts: list[int]
    look_alike: Box | None = None
    real: bool = False


class Gallery:
    """Draws the benchmark's queries.

    Args:
        bank: cut-outs; only the held-out ones are used.
        split: "test", or "dev" for choosing constants; they share no picture.
    """

    def __init__(self, bank: Bank, split: str) -> None:
        self._bank = bank
        self._first = {"dev": 0, "test": 50_000}[split]
        self._pieces = [_piece(*piece) for piece in _PIECES]
        half = 0 if split == "dev" else 1
        self._fonts: dict[str, dict[str, int]] = {}
        self._emoji: dict[str, list[int]] = {}
        for place in bank.groups["held-out/twemoji"]:
            self._emoji.setdefault(bank.concepts[place], []).append(place)
        self._names = sorted(self._emoji)[half::2]
        self._icons = bank.groups["held-out/tabler"][half::2]
        for name, places in bank.groups.items():
            if name.startswith(("held-out/lato", "held-out/roboto")) and not any(
                thin in name for thin in ("Thin", "Hairline", "Light")
            ):
                self._fonts[name] = {bank.concepts[place]: place for place in places}

    def rows(self, count: int) -> Iterator[Query]:
        """`count` pictures of each drawn row, then the real ones."""
        drawn = {
            "photographs, hard": self._photographs,
            "icons": self._coloured,
            "line icons": self._outlined,
            "symbols on plans": self._plans,
            "glyphs": self._glyphs,
            "individuals of a kind": self._kinds,
            "icons at any angle": self._turned,
            "crowds of individuals": self._crowds,
        }
        for number, (row, draw) in enumerate(drawn.items()):
            for n in range(count):
                yield draw(row, np.random.default_rng(self._first + 1000 * number + n))
        yield from self.coins()
        if self._first:  # no constant was chosen on these
            yield from self.real()
        for n in range(count):
            yield self._faces(np.random.default_rng(self._first + 9000 + n))

    def lone(self, count: int) -> Iterator[Query]:
        """Pictures whose prompted object has no like."""
        for n in range(count):
            for row, draw in (
                ("photographs, hard", self._photographs),
                ("icons", self._coloured),
                ("symbols on plans", self._plans),
                ("glyphs", self._glyphs),
            ):
                rng = np.random.default_rng(self._first + 20_000 + 10 * n)
                yield draw(row, rng, lone=True)

    def coins(self) -> Iterator[Query]:
        """scikit-image's coins, from each coin in turn."""
        pixels = np.stack([skimage.data.coins()] * 3, -1)  # type: ignore[no-untyped-call]
        truth: list[Box] = [(a, b, c, d) for a, b, c, d in json.loads(COINS.read_text())]
        for n in range(len(truth)):
            yield Query("coins", pixels, truth, [n], real=True)

    def real(self) -> Iterator[Query]:
        """Photographs with boxes checked by hand, from each thing that has its like in turn."""
        for picture in json.loads(REAL.read_text()):
            pixels = sample(self._bank.folder, picture["file"])
            for boxes in picture["things"].values():
                truth: list[Box] = [(a, b, c, d) for a, b, c, d in boxes]
                for n in range(len(truth)):
                    yield Query(picture["row"], pixels, truth, [n], real=True)

    def _photographs(self, row: str, rng: np.random.Generator, lone: bool = False) -> Query:
        """Turned by up to 30°, .6 to 1.6 times as large, other light, blurred, JPEG quality 50.

        What shows the object that is asked for is not among the others: the cat has eyes.
        """
        canvas = _background(rng)
        asked, *others = rng.permutation(len(self._pieces))[: rng.integers(4, 7)]
        others = [n for n in others if not _shows(_PIECES[n], _PIECES[asked])]
        classes = [_still(self._pieces[n]) for n in (asked, *others)]
        return _compose(row, rng, canvas, classes, lone, hard=True)

    def _coloured(
        self, row: str, rng: np.random.Generator, lone: bool = False, turn: float = 15
    ) -> Query:
        """Emoji among their neighbours in code order."""
        canvas = _background(rng) if rng.random() < 0.6 else _paper(rng)
        at = int(rng.integers(len(self._names) - 8))
        near = [at, at + 1, at + 2, *rng.integers(0, len(self._names), 3)]
        classes = [_still(self._picture(self._emoji[self._names[n]][0])) for n in near]
        return _compose(row, rng, canvas, classes, lone, turn=turn)

    def _turned(self, row: str, rng: np.random.Generator) -> Query:
        """The same at any angle."""
        return self._coloured(row, rng, turn=180)

    def _outlined(self, row: str, rng: np.random.Generator, lone: bool = False) -> Query:
        """Line icons in one ink, their neighbours in the alphabet among them."""
        canvas, ink = _paper(rng), tuple(int(c) for c in rng.integers(0, 120, 3))
        at = int(rng.integers(len(self._icons) - 8))
        near = [at, at + 1, at + 2, *rng.integers(0, len(self._icons), 3)]
        classes = [_still(self._picture(self._icons[n], ink)) for n in near]
        return _compose(row, rng, canvas, classes, lone, turn=10, spread=1.25)

    def _plans(self, row: str, rng: np.random.Generator, lone: bool = False) -> Query:
        """Building and wiring symbols between walls and writing, upright."""
        canvas = _paper(rng)
        ink = tuple(int(c) for c in rng.integers(0, 90, 3))
        _walls(rng, ImageDraw.Draw(canvas), ink)
        order = rng.permutation(len(_SYMBOLS))[:6]
        classes = [_still(_symbol(_SYMBOLS[n], ink, int(rng.integers(3, 7)))) for n in order]
        return _compose(row, rng, canvas, classes, lone, turn=4, spread=1.12, base=(36, 60))

    def _glyphs(self, row: str, rng: np.random.Generator, lone: bool = False) -> Query:
        """Letters of one font, in one ink."""
        canvas, ink = _paper(rng), tuple(int(c) for c in rng.integers(0, 120, 3))
        font = self._fonts[sorted(self._fonts)[rng.integers(len(self._fonts))]]
        letters = rng.permutation(sorted(font))[:7]
        classes = [_still(self._picture(font[letter], ink)) for letter in letters]
        return _compose(row, rng, canvas, classes, lone, turn=8, spread=1.25, base=(32, 60))

    def _kinds(self, row: str, rng: np.random.Generator, lone: bool = False) -> Query:
        """Other coins, other skin tones, other fonts: never the same individual twice."""
        which = rng.integers(3)
        if which == 0:
            return self._coins(row, rng, lone)
        if which == 1:
            canvas = _background(rng) if rng.random() < 0.5 else _paper(rng)
            people = [name for name in self._names if len(self._emoji[name]) > 1]
            first, *rest = rng.permutation(people)[:5]
            tones = [self._picture(p) for p in self._emoji[str(first)]]
            others = [_still(self._picture(self._emoji[str(name)][0])) for name in rest]
            return _compose(row, rng, canvas, [_individuals(rng, tones), *others], lone)
        return self._letters(row, rng, lone)

    def _crowds(self, row: str, rng: np.random.Generator) -> Query:
        """Twelve to twenty-one of a kind: faces, coins, or letters of other fonts."""
        which, many = rng.integers(3), int(rng.integers(12, 22))
        if which == 0:
            return self._faces(rng, row, many)
        if which == 1:
            return self._coins(row, rng, many=many)
        return self._letters(row, rng, many=many)

    def _coins(
        self, row: str, rng: np.random.Generator, lone: bool = False, many: int = 0
    ) -> Query:
        """Coins cut out of the photograph that `coins` asks about, among pieces of others."""
        canvas = _background(rng)
        coins = _coin_pieces()
        others = [_still(self._pieces[n]) for n in rng.permutation(len(self._pieces))[:3]]
        classes = [_individuals(rng, coins), *others]
        return _compose(row, rng, canvas, classes, lone, many=many)

    def _letters(
        self, row: str, rng: np.random.Generator, lone: bool = False, many: int = 0
    ) -> Query:
        """One letter in different fonts, among other letters."""
        canvas, ink = _paper(rng), tuple(int(c) for c in rng.integers(0, 120, 3))
        upright = [font for name, font in sorted(self._fonts.items()) if "Italic" not in name]
        first, *rest = rng.permutation(list("ABEGHKMRSWX&25"))[:5]
        alike = [self._picture(font[first], ink) for font in upright if first in font]
        others = [_still(self._picture(upright[0][letter], ink)) for letter in rest]
        classes = [_individuals(rng, alike), *others]
        return _compose(row, rng, canvas, classes, lone, turn=8, many=many)

    def _faces(self, rng: np.random.Generator, row: str = "faces", many: int = 10) -> Query:
        """Faces of different people between pieces of other things, 25 x 25 pixels enlarged."""
        patches = skimage.data.lfw_subset()  # type: ignore[no-untyped-call]
        canvas = _background(rng).convert("L")
        boxes: list[Box] = []
        cells = rng.permutation(30)[: many + 12]
        for n, cell in enumerate(cells):
            which = int(rng.integers(100)) + (0 if n < many else 100)
            side = int(rng.integers(52, 80))
            face = Image.fromarray((patches[which] * 255).astype(np.uint8)).resize((side, side))
            x = 14 + 125 * int(cell % 6) + int(rng.integers(0, 124 - side))
            y = 6 + 113 * int(cell // 6) + int(rng.integers(0, 112 - side))
            canvas.paste(face, (x, y))
            if n < many:
                boxes.append((x, y, x + side, y + side))
        return Query(row, np.array(canvas.convert("RGB")), boxes, [0])

    def _picture(self, place: int, ink: tuple[int, ...] | None = None) -> Image.Image:
        cut = self._bank[place]
        if ink is not None:
            cut[..., :3] = ink
        return Image.fromarray(cut)


def _compose(
    row: str,
    rng: np.random.Generator,
    canvas: Image.Image,
    classes: Sequence[Draw],
    lone: bool,
    hard: bool = False,
    turn: float = 15,
    spread: float = 1.35,
    base: tuple[int, int] = (48, 80),
    many: int = 0,
) -> Query:
    """Paste 4 to 8 of the first class, or `many` smaller ones, 1 to 3 of each other; ask for the
    first."""
    turn, spread = (30, 1.6) if hard else (turn, spread)
    counts = [1 if lone else many or int(rng.integers(4, 9))]
    counts += [int(rng.integers(1, 4)) for _ in classes[1:]]
    size = rng.uniform(*((42, 58) if many else base))
    placed: list[list[Box]] = [[] for _ in classes]
    for n in rng.permutation([n for n, count in enumerate(counts) for _ in range(count)]):
        picture = classes[n](rng)
        scale = size * spread ** rng.uniform(-1, 1) / math.sqrt(picture.width * picture.height)
        piece = picture.resize(
            (max(8, round(picture.width * scale)), max(8, round(picture.height * scale)))
        ).rotate(rng.uniform(-turn, turn), Image.Resampling.BICUBIC, expand=True)
        box = piece.getchannel("A").point(lambda alpha: 255 * (alpha > 100)).getbbox()
        if box is None:
            continue
        piece = piece.crop(box)
        if hard:
            alpha = piece.getchannel("A")
            piece = ImageEnhance.Brightness(piece).enhance(rng.uniform(0.7, 1.3))
            piece.putalpha(alpha)
        taken = [other for boxes in placed for other in boxes]
        for _ in range(60):
            x = int(rng.integers(0, canvas.width - piece.width))
            y = int(rng.integers(0, canvas.height - piece.height))
            here = (float(x), float(y), float(x + piece.width), float(y + piece.height))
            if not any(_touch(here, other) for other in taken):
                canvas.paste(piece, (x, y), piece)
                placed[n].append(here)
                break
    if hard or rng.random() < 0.5:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
    file = io.BytesIO()
    canvas.save(file, "JPEG", quality=50 if hard else 80)
    pixels = np.array(Image.open(file).convert("RGB"))
    truth = placed[0]
    sizes = [(b[2] - b[0]) * (b[3] - b[1]) for b in truth]
    middle = int(np.argsort(sizes)[len(sizes) // 2])
    prompts = [middle, *[n for n in range(len(truth)) if n != middle]]
    return Query(row, pixels, truth, prompts, placed[1][0] if placed[1] else None)


def _touch(a: Box, b: Box, gap: float = 4) -> bool:
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap


def _still(picture: Image.Image) -> Draw:
    return lambda _: picture


def _individuals(rng: np.random.Generator, pictures: Sequence[Image.Image]) -> Draw:
    """Another one of the pictures each time, until all were shown."""
    order = iter([*rng.permutation(len(pictures))] * 9)
    return lambda _: pictures[int(next(order))]


def _shows(one: Piece, other: Piece) -> bool:
    """Whether most of the other piece is in this one, too."""
    (name, (left, top, right, bottom), _), (of, (x0, y0, x1, y1), _) = one, other
    across, down = min(right, x1) - max(left, x0), min(bottom, y1) - max(top, y0)
    return name == of and min(across, down) > 0 and across * down > (x1 - x0) * (y1 - y0) / 2


def _piece(name: str, box: tuple[int, int, int, int], ellipse: bool) -> Image.Image:
    picture = Image.fromarray(getattr(skimage.data, name)()).convert("RGB").crop(box)
    return _masked(picture, ellipse)


def _masked(picture: Image.Image, ellipse: bool) -> Image.Image:
    mask = Image.new("L", picture.size, 0 if ellipse else 255)
    if ellipse:
        ImageDraw.Draw(mask).ellipse((0, 0, mask.width - 1, mask.height - 1), fill=255)
    picture.putalpha(mask)
    return picture


def _coin_pieces() -> list[Image.Image]:
    picture = Image.fromarray(skimage.data.coins()).convert("RGB")  # type: ignore[no-untyped-call]
    return [_masked(picture.crop(box), True) for box in json.loads(COINS.read_text())]


def _background(rng: np.random.Generator) -> Image.Image:
    name = _BACKGROUNDS[rng.integers(len(_BACKGROUNDS))]
    picture = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return picture.resize(SIZE, Image.Resampling.BICUBIC)


def _paper(rng: np.random.Generator) -> Image.Image:
    tone = rng.integers(225, 256) - rng.integers(0, 18, 3)
    grain = (
        rng.normal(0, 2, (SIZE[1], SIZE[0], 1))
        + np.linspace(0, rng.uniform(-14, 0), SIZE[0])[None, :, None]
    )
    return Image.fromarray((tone + grain).clip(0, 255).astype(np.uint8))


def _walls(rng: np.random.Generator, pen: ImageDraw.ImageDraw, ink: tuple[int, ...]) -> None:
    """A floor plan: rooms with thick walls, measures and names."""
    xs = [30, *sorted(rng.integers(120, 650, 3).tolist()), 738]
    ys = [30, *sorted(rng.integers(120, 470, 2).tolist()), 546]
    for x in xs:
        pen.line((x, ys[0], x, ys[-1]), ink, int(rng.integers(3, 7)))
    for y in ys:
        pen.line((xs[0], y, xs[-1], y), ink, int(rng.integers(3, 7)))
    for _ in range(14):
        x, y = rng.uniform(40, 680), rng.uniform(40, 520)
        kind = rng.random()
        if kind < 0.5:
            name = str(
                rng.choice(["Bath 4.2", "Kitchen", "R 2.07", "Hall", "12.5 m2", "UP", "3 050"])
            )
            pen.text((x, y), name, ink, font_size=float(rng.uniform(10, 20)))
        elif kind < 0.8:
            end = x + rng.uniform(40, 160)
            pen.line((x, y, end, y), ink, 1)
            pen.line((x, y - 5, x, y + 5), ink, 1)
            pen.line((end, y - 5, end, y + 5), ink, 1)
        else:
            pen.rectangle(
                (x, y, x + rng.uniform(30, 90), y + rng.uniform(30, 90)), outline=ink, width=2
            )


def _symbol(draw: str, ink: tuple[int, ...], width: int) -> Image.Image:
    """One symbol on 120 x 120 pixels, cut at what is drawn.

    `draw` is a list of strokes, each a letter and numbers: L line, R rectangle, E ellipse, F filled
    ellipse, A arc with two angles, P filled polygon, T a letter in the middle of a point.
    """
    picture = Image.new("RGBA", (140, 140), (*ink, 0))
    pen, colour = ImageDraw.Draw(picture), (*ink, 255)
    for stroke in draw.split(";"):
        kind, *words = stroke.split()
        if kind == "T":
            at = (float(words[1]) + 10, float(words[2]) + 10)
            pen.text(at, words[0], colour, anchor="mm", font_size=float(words[3]))
            continue
        numbers = [float(word) for word in words]
        shifted = [value + 10 for value in numbers[: 4 if kind in "REFA" else None]]
        if kind == "L":
            pen.line(shifted, colour, width)
        elif kind == "R":
            pen.rectangle(shifted, outline=colour, width=width)
        elif kind == "E":
            pen.ellipse(shifted, outline=colour, width=width)
        elif kind == "F":
            pen.ellipse(shifted, fill=colour)
        elif kind == "A":
            pen.arc(shifted, numbers[4], numbers[5], colour, width)
        else:
            pen.polygon(shifted, fill=colour)
    box = picture.getchannel("A").getbbox()
    assert box is not None  # noqa: S101 - every symbol has strokes
    return picture.crop(box)


_SYMBOLS = (
    "L 10 110 10 10;A -90 10 110 210 270 360;L 10 110 110 110",  # door
    "R 5 40 115 80;L 5 60 115 60",  # window
    "A 20 20 100 100 180 360;L 20 60 100 60;L 60 20 60 0",  # socket
    "E 40 60 80 100;L 74 66 110 20;L 110 20 95 10",  # switch
    "E 15 15 105 105;L 28 28 92 92;L 92 28 28 92",  # lamp
    "L 10 20 10 100;L 10 20 110 100;L 110 100 110 20;L 110 20 10 100",  # valve
    "E 15 15 105 105;L 30 30 100 60;L 100 60 30 90",  # pump
    "E 15 15 105 105;T M 60 60 52",  # motor
    "E 15 15 105 105;T G 60 60 52",  # generator
    "R 10 10 110 110;E 30 30 90 90;F 55 55 65 65",  # sink
    "R 35 5 85 35;E 30 30 90 115",  # toilet
    "R 5 20 115 100;L 25 20 25 100;L 45 20 45 100;L 65 20 65 100;L 85 20 85 100",  # stairs
    "E 20 20 100 100;F 48 48 72 72",  # smoke detector
    "R 15 15 105 105;L 15 105 105 15",  # distribution board
    "P 20 30 20 90 70 60;L 70 30 70 90;L 70 60 110 60;L 0 60 20 60",  # diode
    "L 0 60 20 60;L 20 60 30 30;L 30 30 50 90;L 50 90 70 30;L 70 30 90 90;L 90 90 100 60"
    ";L 100 60 118 60",  # resistor
    "L 0 60 50 60;L 50 25 50 95;L 70 25 70 95;L 70 60 118 60",  # capacitor
    "L 60 5 60 50;L 20 50 100 50;L 35 70 85 70;L 50 90 70 90",  # earth
    "R 20 40 80 80;L 80 60 110 40;L 110 40 110 80;L 110 80 80 60",  # camera
    "R 10 35 110 85;T HV 60 60 40",  # heater
)
