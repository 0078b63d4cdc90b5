"""How much of the service's throughput reaches the disk through `mayfly annotate`.

    python -m tests.batch.throughput --images 1000 --rounds 3
    python -m tests.batch.throughput --images 10000 --small --rounds 0     # memory alone

In turn: the client in a loop over images that are in memory, as many at a time, results thrown
away; and the command over a folder of the same images, from its start to its end, writing COCO. The
service is real, its model costs nothing, so that what is compared is everything but a model; or
`--model-ms 30`, about what torchvision's quickest detector takes, for what a user will see. The
command's memory is looked at all the time. On a machine that does other things too, compare CPU
time for an image, of client and service together: it is what bounds both.
"""

import argparse
import asyncio
import io
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
import skimage.data
from PIL import Image

from scripts.client import Client, Item
from tests.batch.conftest import start
from tests.batch.service import running_service

_DISTINCT = 100
_CONCURRENCY = 8


def make_pictures(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """JPEGs cut from scikit-image's photographs; after the first hundred they are links."""
    photographs = [
        Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        for name in ("astronaut", "coffee", "chelsea", "rocket", "retina", "coins")
    ]
    paths: list[Path] = []
    for number in range(count):
        path = folder / f"{number:06}.jpg"
        if number < _DISTINCT:
            photograph = photographs[number % len(photographs)]
            shift = number // len(photographs) * 4
            cut = photograph.crop((shift, shift, photograph.width, photograph.height - 60 + shift))
            file = io.BytesIO()
            cut.resize(size).save(file, "JPEG", quality=90)
            path.write_bytes(file.getvalue())
        else:
            os.link(paths[number % _DISTINCT], path)
        paths.append(path)
    return paths


def _cpu_s() -> float:
    """CPU time of everything here: this process, the service, and commands that have ended."""
    me = psutil.Process()
    times = [me.cpu_times(), *(child.cpu_times() for child in me.children(recursive=True))]
    ended = times[0].children_user + times[0].children_system
    return ended + sum(time.user + time.system for time in times)


async def bare(url: str, paths: list[Path]) -> float:
    """Images a second through the client alone."""
    images = [path.read_bytes() for path in paths[:_DISTINCT]]
    request = {"priority": "bulk"}
    async with Client(url) as client:
        begin = time.monotonic()
        items = (Item(at, images[at % len(images)], request) for at in range(len(paths)))
        async for outcome in client.annotate_many(items, _CONCURRENCY):
            assert outcome.result, outcome.error
    return len(paths) / (time.monotonic() - begin)


async def command(url: str, folder: Path, out: Path, count: int) -> tuple[float, list[float]]:
    """Images a second through `mayfly annotate`, and its memory in MB at ten times of the run."""
    begin = time.monotonic()
    process = await start(
        "annotate", folder, "--format", "coco", "-o", out, "--server", url,
        "--concurrency", _CONCURRENCY,
    )  # fmt: skip
    ended = asyncio.create_task(process.communicate())
    seen = []
    while not (await asyncio.wait([ended], timeout=1))[0]:
        seen.append(psutil.Process(process.pid).memory_info().rss / 1e6)
    rate = count / (time.monotonic() - begin)
    assert process.returncode == 0, (await ended)[1].decode()[-2000:]
    return rate, seen[1 :: max(1, len(seen) // 10)]


async def main(options: argparse.Namespace) -> int:
    size = (320, 240) if options.small else (1280, 960)
    with tempfile.TemporaryDirectory(prefix="mayfly-throughput-") as name:
        folder = Path(name)
        pictures = folder / "pictures"
        pictures.mkdir()
        paths = make_pictures(pictures, options.images, size)
        kilobytes = sum(path.stat().st_size for path in paths[:_DISTINCT]) / _DISTINCT / 1e3
        _say(f"{len(paths)} images of {size[0]} x {size[1]}, {kilobytes:.0f} kB")
        async with running_service(folder, f"patches:{options.model_ms}") as url:
            await bare(url, paths[:50])
            ratios: list[float] = []
            costs: list[float] = []
            for number in range(max(1, options.rounds)):
                before = _cpu_s()
                rate = await bare(url, paths) if options.rounds else 0
                between = _cpu_s()
                out = folder / f"{number}.json"
                through, memory = await command(url, pictures, out, len(paths))
                after = _cpu_s()
                if rate:
                    ratios.append(through / rate)
                    costs.append((between - before) / (after - between))
                    _say(f"bare {rate:.1f}/s, command {through:.1f}/s, ratio {ratios[-1]:.3f}")
                    _say(
                        f"CPU ms an image: bare {(between - before) / len(paths) * 1e3:.1f}, "
                        f"command {(after - between) / len(paths) * 1e3:.1f}, "
                        f"ratio {costs[-1]:.3f}"
                    )
                _say(f"memory on the way, MB: {' '.join(f'{m:.1f}' for m in memory)}")
            if ratios:
                _say(f"median ratio {statistics.median(ratios):.3f}")
                _say(f"median ratio of CPU time {statistics.median(costs):.3f}")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="320 x 240 instead of 1280 x 960")
    parser.add_argument(
        "--model-ms", type=float, default=0, help="time of a core that the model takes for an image"
    )
    sys.exit(asyncio.run(main(parser.parse_args())))
