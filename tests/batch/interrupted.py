"""Kill `mayfly annotate` at random moments and compare what it ends with, byte by byte.

    python -m tests.batch.interrupted --kills 10 --seed 1

A real service, with a model that costs nothing, annotates pictures into a COCO file and a YOLO
data set: once in one go, once with `kill -9` and Ctrl-C in turn at random moments. After each, what
lies there must be a whole data set. In the end both must be the same, and no finished picture may
have been sent again: the service's count of jobs tells.
"""

import argparse
import asyncio
import json
import random
import re
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from tests.batch.conftest import BOX, lines, paint, start
from tests.batch.service import running_service

KINDS = {"coco": "found.json", "yolo": "set"}
_IN_FLIGHT = 8  # those on their way when it is killed may be sent again


class Report(NamedTuple):
    kills: int
    finished_at_kills: list[int]
    journal_lines: int
    images: int
    same: bool


async def compare(url: str, folder: Path, images: int, kills: int, seed: int, kind: str) -> Report:
    """One run without and one with kills; raises AssertionError at the first broken promise."""
    pictures = folder / "pictures"
    if not pictures.exists():
        for number in range(images):
            paint(pictures / f"{number:05}.png", number)
    whole, torn = folder / kind / "whole" / KINDS[kind], folder / kind / "torn" / KINDS[kind]
    for out in (whole, torn):
        out.parent.mkdir(parents=True)
    process = await _annotate(url, pictures, whole, kind)
    _, err = await process.communicate()
    assert process.returncode == 0, err.decode()

    chance = random.Random(seed)
    finished: list[int] = []
    for number in range(kills):
        process = await _annotate(url, pictures, torn, kind)
        target = chance.randint(1, max(2, images // kills * 2))
        already = _finished(torn)
        while _finished(torn) - already < target and process.returncode is None:
            await asyncio.sleep(chance.uniform(0, 0.02))
        if process.returncode is None:
            process.send_signal(signal.SIGKILL if number % 2 == 0 else signal.SIGINT)
        await process.communicate()
        finished.append(_finished(torn))
        ends = [-signal.SIGKILL, 130, 0]
        if finished[-1] == images:  # of an interrupt after its work, Python dies while it ends
            ends.append(-signal.SIGINT)
        assert process.returncode in ends, process.returncode
        _check_whole(torn)
    process = await _annotate(url, pictures, torn, kind)
    _, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    names = [entry["name"] for entry in list(lines(_journal(torn)))[1:]]
    assert len(names) == len(set(names)) == images, "a finished image was annotated again"
    same = _contents(whole) == _contents(torn)
    return Report(len(finished), finished, len(names), images, same)


async def _annotate(url: str, pictures: Path, out: Path, kind: str) -> asyncio.subprocess.Process:
    example = f"{pictures / '00000.png'}:{BOX}:coin"
    return await start(
        "annotate", pictures, "--box", example, "--format", kind, "-o", out, "--server", url
    )


def _journal(out: Path) -> Path:
    return out / "journal.jsonl" if out.suffix == "" else Path(f"{out}.journal.jsonl")


def _finished(out: Path) -> int:
    path = _journal(out)
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0


def _check_whole(out: Path) -> None:
    """What a killed run left can be read, and every picture in it is complete."""
    if out.suffix:
        if out.exists():
            data = json.loads(out.read_text())
            known = {image["id"] for image in data["images"]}
            assert {each["image_id"] for each in data["annotations"]} <= known
        return
    for path in out.rglob("*.txt"):
        if not path.name.startswith("."):
            assert all(
                re.fullmatch(r"0( [01]\.\d{8}){4}\n", line)
                for line in path.read_text().splitlines(True)
            ), path


def _contents(out: Path) -> dict[str, bytes]:
    """All files but the journal, and links by where they lead."""
    if out.suffix:
        return {"": out.read_bytes()}
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "journal.jsonl"
    }


async def jobs_done(url: str) -> int:
    """How many jobs the service has taken since it started."""
    async with aiohttp.ClientSession(url) as session, session.get("/metrics") as response:
        text = await response.text()
    found = re.findall(
        r'mayfly_requests_total\{method="POST",route="/v1/jobs",status="202"\} (\S+)', text
    )
    return int(sum(map(float, found)))


async def _main(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="mayfly-kills-") as name:
        folder = Path(name)
        async with running_service(folder) as url:
            for kind in KINDS:
                before = await jobs_done(url)
                report = await compare(
                    url, folder, options.images, options.kills, options.seed, kind
                )
                sent: Any = await jobs_done(url) - before
                most = 2 * options.images + options.kills * (_IN_FLIGHT + 1)
                sys.stdout.write(f"{kind}: {report}; jobs {sent}, at most {most} allowed\n")
                sys.stdout.flush()
                if not report.same or sent > most:
                    return 1
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    sys.exit(asyncio.run(_main(parser.parse_args())))
