"""A service whose model costs nothing, pictures to annotate, and the command as a user runs it."""

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import numpy as np
import pytest
from PIL import Image

from tests.fakes import Bright
from worker.models.base import Model

BOX = "8,8,24,24"


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Annotate = Callable[..., Coroutine[Any, Any, Ran]]


@pytest.fixture
def model() -> Model[Any, Any]:
    """In place of the one that the service's fixtures take."""
    return Bright()


@pytest.fixture
def url(service: aiohttp.ClientSession) -> str:
    return str(service._base_url)


@pytest.fixture
def annotate(url: str) -> Annotate:
    """Run `mayfly annotate` against the service."""

    async def run(*arguments: object, stdin: str = "") -> Ran:
        return await mayfly("annotate", *arguments, "--server", url, stdin=stdin)

    return run


async def mayfly(*arguments: object, stdin: str = "") -> Ran:
    process = await start(*arguments)
    out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


async def start(*arguments: object) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "scripts.cli",
        *map(str, arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eight pictures, two of them in a folder, each with bright patches of its own."""
    folder = tmp_path / "pictures"
    for number in range(8):
        name = f"{number}.png" if number < 6 else f"more/{number}.jpg"
        paint(folder / name, number)
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("not one either")
    return folder


NAMES = [*(f"{n}.png" for n in range(6)), "more/6.jpg", "more/7.jpg"]


def paint(path: Path, seed: int, size: tuple[int, int] = (160, 120)) -> None:
    """A dark picture with one to four bright patches on a grid of 16 pixels."""
    width, height = size
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 90, (height, width, 3)).astype(np.uint8)
    for column in range(1 + seed % 4):
        top = 16 * int(rng.integers(0, height // 16 - 1))
        pixels[top : top + 16, 32 * column : 32 * column + 16] = 250
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=98)


def coco(path: Path) -> Any:
    """A COCO file's images by name, each with the labels and boxes of its annotations."""
    data = json.loads(path.read_text())
    names = {each["id"]: each["name"] for each in data["categories"]}
    found: dict[str, list[Any]] = {each["file_name"]: [] for each in data["images"]}
    files = {each["id"]: each["file_name"] for each in data["images"]}
    for each in data["annotations"]:
        found[files[each["image_id"]]].append((names[each["category_id"]], each["bbox"]))
    return found


def lines(path: Path) -> Iterator[Any]:
    return map(json.loads, path.read_text().splitlines())
