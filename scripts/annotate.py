"""`mayfly annotate`: images in, annotations out, against a running service or one of its own."""

import argparse
import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Any, BinaryIO

import aiohttp
import msgspec
from tqdm import tqdm

from jobs import formats
from jobs.contract import MAIN_IMAGE, Annotated
from jobs.settings import SettingsError
from scripts.client import Client, ServiceError
from scripts.local import local_service

_CONCURRENCY = 4


class _Prompts:
    """Boxes from the command line, each on one of the images."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._label = options.label
        self._boxes: list[tuple[Path, list[float], bool]] = []
        for negative, texts in ((False, options.box), (True, options.not_box)):
            for text in texts:
                path, _, numbers = text.rpartition(":")
                try:
                    box = [float(number) for number in numbers.split(",")]
                except ValueError:
                    box = []
                if len(box) != 4:
                    raise SettingsError(
                        f"A box is [IMAGE:]X0,Y0,X1,Y1 in pixels, for example 52,30,110,88: {text}"
                    )
                self._boxes.append((Path(path) if path else options.files[0], box, negative))

    def images(self) -> list[Path]:
        """The images that the boxes lie on."""
        return [path for path, _, _ in self._boxes]

    def for_image(self, image: Path) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
        """The prompts as they are sent with `image`, and the reference images they name."""
        prompts: list[dict[str, Any]] = []
        references: dict[str, bytes] = {}
        names = {image: MAIN_IMAGE}
        for path, box, negative in self._boxes:
            if path not in names:
                names[path] = f"reference-{len(references) + 1}"
                references[names[path]] = path.read_bytes()
            prompts.append(
                {
                    "type": "box",
                    "box": box,
                    "label": self._label,
                    "negative": negative,
                    "image": names[path],
                }
            )
        return prompts, references


async def run(options: argparse.Namespace) -> int:
    """Annotate all files; returns 1 if one failed, and says which."""
    prompts = _Prompts(options)
    for path in (*options.files, *prompts.images()):
        if not path.is_file():
            raise SettingsError(f"{path} is not a file.")
    results: dict[Path, Annotated] = {}
    failures = 0
    async with contextlib.AsyncExitStack() as stack:
        url = options.server
        if url is None:
            print("starting a service for this run …", file=sys.stderr)
            settings = {"MAYFLY_MODELS": options.model} if options.model else {}
            url = await stack.enter_async_context(local_service(environment=settings))
        client = await stack.enter_async_context(Client(url, options.api_key))
        try:
            await client.info()
        except (aiohttp.ClientError, TimeoutError):
            raise SettingsError(
                f"No service answers at {url}. Start one with `mayfly serve`, or drop --server."
            ) from None
        bar = stack.enter_context(tqdm(total=len(options.files), unit="image"))
        places = asyncio.Semaphore(_CONCURRENCY)

        async def annotate(path: Path) -> None:
            nonlocal failures
            async with places:
                boxes, references = prompts.for_image(path)
                wish = {"model": options.model, "min_score": options.min_score}
                request = {k: v for k, v in wish.items() if v is not None} | {"prompts": boxes}
                try:
                    results[path] = await client.annotate(path.read_bytes(), request, references)
                except (ServiceError, aiohttp.ClientError, TimeoutError) as error:
                    failures += 1
                    bar.write(f"{path}: {error}", file=sys.stderr)
                bar.set_postfix(found=sum(len(r.annotations) for r in results.values()))
                bar.update()

        await asyncio.gather(*(annotate(path) for path in options.files))
    done = [(str(path), results[path]) for path in options.files if path in results]
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        with options.output.open("wb") as file:
            _write(done, options.format, file)
    else:
        _write(done, options.format, sys.stdout.buffer)
    return 1 if failures else 0


def _write(results: list[tuple[str, Annotated]], result_format: str, file: BinaryIO) -> None:
    if result_format == "coco":
        formats.write_coco(file, results)
    else:
        file.write(msgspec.json.format(msgspec.json.encode(dict(results)), indent=1) + b"\n")
