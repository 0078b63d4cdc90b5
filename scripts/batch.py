"""One run over many images: each is sent, and what came of it noted, until all are done."""

import argparse
import asyncio
import contextlib
import hashlib
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from scripts.client import BROKEN, Client, Item, Outcome, ServiceError
from scripts.dataset import Output
from scripts.examples import Examples
from scripts.journal import Entry, Journal
from scripts.sources import Inputs, Source, Unreadable

_LOOK_S = 1.0  # between two looks at a watched folder
_SYNC_S = 1.0  # what a loss of power may cost; a killed process loses nothing
_WRITE_S = 10.0  # shortest time between two versions of the output on the way
_HOPELESS = (0, 401, 403, 429, 503)  # the service's trouble or the caller's, not the image's


class Failures:
    """Images that failed in this run, by name and code, one JSON object a line."""

    def __init__(self, path: Path | None) -> None:
        self.count = 0
        self._path = path
        if path:
            path.unlink(missing_ok=True)

    def add(self, name: str, code: str, detail: str) -> None:
        self.count += 1
        if self._path:
            line = json.dumps({"image": name, "code": code, "detail": detail})
            with self._path.open("a") as file:
                file.write(line + "\n")

    def close(self) -> None:
        if self.count and self._path:
            say(f"{self.count} failed, see {self._path}; run the same command to try them again")


class Batch:
    """One run over many images."""

    def __init__(
        self,
        options: argparse.Namespace,
        inputs: Inputs,
        examples: Examples,
        request: dict[str, Any],
        journal: Journal,
        output: Output,
        failures: Failures,
    ) -> None:
        self._options, self._inputs, self._examples = options, inputs, examples
        self._request, self._journal = request, journal
        self._output, self._failures = output, failures
        self.preview_to: Path | None = None
        self._previewed: set[str] = set()
        self._stopping = asyncio.Event()
        self._interrupted = self._broken = False
        self._hashes: dict[str, str] = {}  # of images that are on their way
        self._found = 0

    async def run(self, client: Client, sources: list[Source]) -> int:
        pending = [source for source in sources if not self._done(source)]
        for source in sources[: self._options.preview]:
            self._previewed.add(source.name)
        finished = len(sources) - len(pending)
        if finished:
            say(f"{finished} of {len(sources)} images are finished already, or have labels")
        if self._options.limit is not None:
            pending = pending[: self._options.limit]
        self._catch_signals()
        bar = tqdm(
            total=len(pending),
            unit="image",
            smoothing=0.1,
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 5,  # a log needs no moving picture
        )
        with bar:
            outcomes = client.annotate_many(self._items(pending, bar), self._options.concurrency)
            writer = asyncio.create_task(self._keep_writing())
            try:
                async for outcome in outcomes:
                    await self._take(outcome, bar)
            finally:
                writer.cancel()
                await asyncio.wait([writer])
                await asyncio.to_thread(self._write)
        return self._end()

    def _done(self, source: Source) -> bool:
        labelled = source.key in self._examples.labelled
        return labelled or self._journal.has(source.name, source.stamp)

    async def _items(self, pending: list[Source], bar: "tqdm[Any]") -> AsyncIterator[Item]:
        for source in pending:
            if self._stopping.is_set():
                return
            yield self._item(source)
        if self._options.watch:
            async for source in self._new(pending):
                bar.total += 1
                yield self._item(source)

    async def _new(self, seen: list[Source]) -> AsyncIterator[Source]:
        """Images that appear, once they have stopped growing."""
        known = {source.name: source.stamp for source in seen}
        growing: dict[str, str] = {}
        while not await self._stopped_after(_LOOK_S):
            for source in await asyncio.to_thread(list, self._inputs):
                if known.get(source.name) == source.stamp or self._done(source):
                    continue
                if growing.get(source.name) != source.stamp:
                    growing[source.name] = source.stamp
                    continue
                known[source.name] = source.stamp
                del growing[source.name]
                self._output.sources[source.name] = source
                yield source
                if self._stopping.is_set():
                    return

    def _item(self, source: Source) -> Item:
        prompts, references = self._examples.for_image(source)

        def read() -> bytes:
            image = source.read()
            self._hashes[source.name] = hashlib.sha256(image).hexdigest()
            return image

        return Item(source, read, self._request | {"prompts": prompts}, references)

    async def _take(self, outcome: Outcome, bar: "tqdm[Any]") -> None:
        source: Source = outcome.key
        sha256 = self._hashes.pop(source.name, "")
        if outcome.result:
            self._found += len(outcome.result.annotations)
            self._journal.add(Entry(source.name, source.stamp, sha256, outcome.result))
            if source.name in self._previewed and self.preview_to:
                await asyncio.to_thread(self._draw, source, self.preview_to)
        elif outcome.error:
            code, detail = _reason(outcome.error)
            self._failures.add(source.name, code, detail)
            bar.write(f"{source.name}: {detail} ({code})", file=sys.stderr)
            if _is_hopeless(outcome.error) and not self._stopping.is_set():
                self._broken = True
                self._stopping.set()
        bar.set_postfix(found=self._found, failed=self._failures.count, refresh=False)
        bar.update()

    async def _keep_writing(self) -> None:
        """Bring the journal to the disk each second, and the output up to date on the way, seldom
        enough to cost a fiftieth of the time."""
        written, due = len(self._journal), time.monotonic() + _WRITE_S
        while True:
            await asyncio.sleep(_SYNC_S)
            await asyncio.to_thread(self._journal.sync)
            begin = time.monotonic()
            if begin < due or len(self._journal) == written:
                continue
            written = len(self._journal)
            await asyncio.to_thread(self._write)
            due = time.monotonic() + max(_WRITE_S, 50 * (time.monotonic() - begin))

    def _write(self) -> None:
        if self._options.output:
            self._output.write(self._journal)

    def _draw(self, source: Source, folder: Path) -> None:
        from scripts.draw import draw

        path = folder / f"{source.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(source.read(), self._journal[source.name].result, path, [])

    def _end(self) -> int:
        if not self._options.output:
            self._output.to_stdout(self._journal, sys.stdout.buffer)
        if self._output.unlinked:
            say(
                f"{self._output.unlinked} images were not put beside their labels: they lie in an "
                "archive, or cannot be read. --images copy writes those of archives too."
            )
        if self._broken:
            say("the service cannot go on now; run the same command later to go on")
        if self._interrupted and not self._options.watch:
            return 130
        return 1 if self._failures.count else 0

    def _catch_signals(self) -> None:
        task = asyncio.current_task()
        assert task  # a coroutine runs in one  # noqa: S101

        def stop() -> None:
            if self._stopping.is_set():
                task.cancel()  # the second time
                return
            self._interrupted = True
            self._stopping.set()
            say("finishing the images on their way; once more to leave them")

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop)

    async def _stopped_after(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return self._stopping.is_set()


def say(text: str) -> None:
    """To whoever watches; stdout belongs to the data."""
    if text:
        tqdm.write(f"mayfly: {text}", file=sys.stderr)


def _reason(error: Exception) -> tuple[str, str]:
    if isinstance(error, ServiceError | Unreadable):
        return error.code, error.detail
    return "unreachable", f"The service does not answer ({type(error).__name__})."


def _is_hopeless(error: Exception) -> bool:
    if isinstance(error, ServiceError):
        return error.status in _HOPELESS
    return isinstance(error, BROKEN)
