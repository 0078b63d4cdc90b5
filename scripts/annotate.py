"""`mayfly annotate`: images in, a data set out, against a running service or one of its own."""

import argparse
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from jobs.contract import ModelInfo, check_model, parse_request
from jobs.problems import Problem
from jobs.sealing import PublicKey
from jobs.settings import SettingsError
from scripts.batch import Batch, Failures, say
from scripts.client import FAILURES, Client, ServiceError
from scripts.dataset import KINDS, Output, place_for
from scripts.examples import Examples
from scripts.journal import Journal
from scripts.local import local_service
from scripts.sources import Inputs, Source

_MAX_BYTES = 20 << 20  # until the service has said what it takes


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
        except ServiceError as error:
            raise SettingsError(f"{url} cannot be used. {error.detail}") from None
        except (aiohttp.ClientError, TimeoutError):
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
        "match": options.match,
        "turned": False if options.upright else None,
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
