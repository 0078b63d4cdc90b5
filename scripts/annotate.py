"""`mayfly annotate`: images in, a data set out, against a running service or one of its own."""

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

import aiohttp
import msgspec
from tqdm import tqdm

from jobs.contract import ModelInfo, check_model, parse_request
from jobs.problems import Problem
from jobs.sealing import PublicKey
from jobs.settings import SettingsError
from scripts.client import BROKEN, FAILURES, Client, Item, Outcome, ServiceError
from scripts.dataset import KINDS, Output, place_for
from scripts.examples import Examples
from scripts.journal import Entry, Journal
from scripts.local import local_service
from scripts.sources import Inputs, Source, Unreadable

_MAX_BYTES = 20 << 20  # until the service has said what it takes
_LOOK_S = 1.0  # between two looks at a watched folder
_SYNC_S = 1.0  # what a loss of power may cost; a killed process loses nothing
_WRITE_S = 10.0  # shortest time between two versions of the output on the way
_BUSY = (401, 403, 429, 503)  # the service's trouble or the caller's, not the image's


async def run(options: argparse.Namespace) -> int:
    """Annotate everything; 1 if an image failed, 130 if interrupted."""
    _check(options)
    kind = options.format
    place, folder = place_for(options.output, kind, options.split)
    inputs = Inputs(options.paths, _MAX_BYTES, place if folder else None)
    with contextlib.closing(inputs):
        sources = list(inputs)
        if not sources and not options.watch:
            raise SettingsError("There is no image: no .jpg, .jpeg, .png or .webp is in there.")
        examples = Examples(options, inputs, sources)
        if options.dry_run:
            return _tell(sources, examples, place, kind, inputs.ignored)
        async with _service(options) as client, contextlib.AsyncExitStack() as stack:
            model = await _model(client, options)
            request = _request(options, examples, model)
            limits = (await client.info())["limits"]
            begun = _digest(request, examples, model)
            journal = Journal(_beside(place, folder, "journal.jsonl"), begun)
            stack.callback(journal.close)
            try:
                embedded = await examples.compile(client, model, limits["max_images"])
            except FAILURES as error:
                raise SettingsError(f"The examples cannot be used: {error}") from None
            say("each image is sent with an embedding of the examples" if embedded else "")
            labels = examples.labels or list(dict.fromkeys(model.labels))
            output = Output(
                place or Path(),
                kind,
                labels,
                options.split,
                options.images or ("link" if kind.startswith("yolo") else "none"),
                options.image_prefix,
                {source.name: source for source in sources},
            )
            if pair := output.clash():
                raise SettingsError(f"{pair[0]} and {pair[1]} would share one file; rename one.")
            failures = Failures(_beside(place, folder, "failures.jsonl"))
            stack.callback(failures.close)
            batch = Batch(options, inputs, examples, request, journal, output, failures)
            batch.preview_to = _beside(place, folder, "preview")
            return await batch.run(client, sources)


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
        bar = tqdm(total=len(pending), unit="image", smoothing=0.1, dynamic_ncols=True)
        with bar:
            outcomes = client.annotate_many(
                self._items(pending, bar), self._options.concurrency, lambda _: self._show(bar)
            )
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
        bar.update()
        self._show(bar)

    def _show(self, bar: "tqdm[Any]") -> None:
        bar.set_postfix(found=self._found, failed=self._failures.count, refresh=False)

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


def _check(options: argparse.Namespace) -> None:
    if options.concurrency < 1:
        raise SettingsError("--concurrency must be at least 1.")
    if not 0 <= options.split < 1:
        raise SettingsError("--split is the share of the validation part, from 0 to below 1.")
    needs_output = options.split or options.watch or options.preview
    if not options.output and (KINDS[options.format].write is None or needs_output):
        raise SettingsError("Say where it goes with -o: there is more to write than stdout takes.")


@contextlib.asynccontextmanager
async def _service(options: argparse.Namespace) -> AsyncIterator[Client]:
    """A client of the service that was named, or of one for the time of this run."""
    async with contextlib.AsyncExitStack() as stack:
        url = options.server
        if url is None:
            say("starting a service for this run …")
            settings = {"MAYFLY_MODELS": options.model} if options.model else {}
            url = await stack.enter_async_context(local_service(environment=settings))
        try:
            if isinstance(options.seal, str):
                PublicKey.from_text(options.seal)  # told now rather than at the first image
            connection = Client(url, options.api_key, ca_file=options.ca, seal=options.seal)
        except OSError as error:
            raise SettingsError(f"{options.ca} is not a certificate: {error}.") from None
        except ValueError:
            raise SettingsError(f"{options.seal} is not a sealing key.") from None
        client = await stack.enter_async_context(connection)
        try:
            await client.info()
        except (aiohttp.ClientError, TimeoutError, ValueError):
            raise SettingsError(
                f"No service answers at {url}. Start one with `mayfly serve`, or drop --server."
            ) from None
        yield client


async def _model(client: Client, options: argparse.Namespace) -> ModelInfo:
    try:
        return await client.model(options.model)
    except ServiceError as error:
        raise SettingsError(error.detail) from None


def _request(options: argparse.Namespace, examples: Examples, model: ModelInfo) -> dict[str, Any]:
    """What is asked of every image, but for the prompts; checked against the model."""
    outputs = ["box", *KINDS[options.format].outputs]
    outputs += [name for name in ("mask", "keypoints") if getattr(options, name)]
    request = {
        "model": model.name,
        "outputs": list(dict.fromkeys(outputs)),
        "min_score": options.min_score,
        "max_annotations": options.max_annotations,
        "priority": "bulk",
    }
    request = {key: value for key, value in request.items() if value is not None}
    try:
        whole = parse_request(msgspec.json.encode(request | {"prompts": examples.prompts()[:32]}))
        check_model(whole, model)
    except Problem as problem:
        raise SettingsError(problem.detail) from None
    return request


def _digest(request: dict[str, Any], examples: Examples, model: ModelInfo) -> str:
    parts = [request, model.version, examples.digest()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _beside(place: Path | None, folder: bool, name: str) -> Path | None:
    """Where what belongs to an output lies: in its folder, or beside its file."""
    if place is None:
        return None
    return place / name if folder else place.with_name(f"{place.name}.{name}")


def _reason(error: Exception) -> tuple[str, str]:
    if isinstance(error, ServiceError | Unreadable):
        return error.code, error.detail
    return "unreachable", f"The service does not answer ({type(error).__name__})."


def _is_hopeless(error: Exception) -> bool:
    if isinstance(error, ServiceError):
        return error.status in _BUSY
    return isinstance(error, BROKEN)


def _tell(
    sources: list[Source], examples: Examples, place: Path | None, kind: str, ignored: int
) -> int:
    megabytes = sum(source.size for source in sources) / 1e6
    labelled = sum(source.key in examples.labelled for source in sources)
    print(f"images     {len(sources)}, {megabytes:.1f} MB; {labelled} of them have labels already")
    print(f"passed by  {ignored} other files")
    print(f"examples   {len(examples)}: {', '.join(examples.labels) or 'none, labels of a model'}")
    print(f"output     {kind} to {place or 'stdout'}")
    for source in sources[:5]:
        print(f"           {source.name}")
    if len(sources) > 5:
        print(f"           and {len(sources) - 5} more")
    return 0
