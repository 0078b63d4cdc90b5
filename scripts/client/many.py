"""Any number of images at a time, in flat memory."""

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
)
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from jobs.contract import Annotated, Request
from scripts.client.calls import FAILURES

T = TypeVar("T")
Picture = bytes | Path | Callable[[], bytes]  # JPEG, PNG or WebP, or where it comes from


class Item(NamedTuple):
    """One image for `Client.annotate_many`, under a key of the caller's."""

    key: Any
    image: Picture
    request: Mapping[str, Any] | Request
    references: Mapping[str, bytes] | None = None


class Outcome(NamedTuple):
    """What became of an item: a result, or the error that it ended with."""

    key: Any
    result: Annotated | None
    error: Exception | None


class Progress(NamedTuple):
    """How far `Client.annotate_many` has come: images done, of these failed, and annotations
    found."""

    done: int
    failed: int
    found: int


Annotate = Callable[[bytes, Any, Mapping[str, bytes] | None], Coroutine[Any, Any, Annotated]]


async def annotate_many(
    annotate: Annotate,
    items: Iterable[Item] | AsyncIterable[Item],
    concurrency: int,
    progress: Callable[[Progress], None] | None,
) -> AsyncGenerator[Outcome, None]:
    """See `Client.annotate_many`."""
    places = asyncio.Semaphore(concurrency)
    outcomes: asyncio.Queue[Outcome | None] = asyncio.Queue()

    async def run(item: Item, image: bytes) -> None:
        try:
            result = await annotate(image, item.request, item.references)
            outcomes.put_nowait(Outcome(item.key, result, None))
        except FAILURES as error:
            outcomes.put_nowait(Outcome(item.key, None, error))

    async def feed() -> Exception | None:
        async with asyncio.TaskGroup() as running:  # its end waits for those in hand
            try:
                async for item in _each(items):
                    try:
                        image = await _read(item.image)  # while others are on their way
                    except OSError as error:
                        await places.acquire()
                        outcomes.put_nowait(Outcome(item.key, None, error))
                        continue
                    await places.acquire()
                    running.create_task(run(item, image))
                    del image
            except Exception as error:  # of the caller's items: told after what came before
                return error
        return None

    feeder = asyncio.create_task(feed())
    feeder.add_done_callback(lambda _: outcomes.put_nowait(None))
    done = failed = found = 0
    try:
        while (outcome := await outcomes.get()) is not None:
            done += 1
            failed += outcome.error is not None
            found += len(outcome.result.annotations) if outcome.result else 0
            if progress:
                progress(Progress(done, failed, found))
            yield outcome
            places.release()
        if broken := await feeder:
            raise broken
    finally:
        feeder.cancel()
        await asyncio.wait([feeder])


async def _each(items: Iterable[T] | AsyncIterable[T]) -> AsyncGenerator[T, None]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


async def _read(image: Picture) -> bytes:
    if isinstance(image, bytes):
        return image
    return await asyncio.to_thread(image.read_bytes if isinstance(image, Path) else image)
