"""`Client` for code without an event loop."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from jobs.contract import Annotated, ModelInfo
from scripts.client.many import Item, Outcome, Progress
from scripts.client.service import Client, Job, Wish

T = TypeVar("T")


class SyncClient:
    """`Client` for code without an event loop; its methods are documented there.

    Requests run on a thread of its own, so it works inside a notebook too, and may be shared
    between threads.
    """

    def __init__(self, url: str, api_key: str | None = None, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="mayfly-client", daemon=True
        )
        self._thread.start()

        async def connect() -> Client:
            return Client(url, api_key, **options)

        self._client = self._wait(connect())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections and end the thread."""
        self._wait(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def info(self) -> dict[str, Any]:
        return self._wait(self._client.info())

    def model(self, name: str | None = None) -> ModelInfo:
        return self._wait(self._client.model(name))

    def annotate(
        self, image: bytes, request: Wish, references: Mapping[str, bytes] | None = None
    ) -> Annotated:
        return self._wait(self._client.annotate(image, request, references))

    def embed(
        self,
        image: bytes,
        prompts: Sequence[Mapping[str, Any]],
        model: str | None = None,
        references: Mapping[str, bytes] | None = None,
    ) -> str:
        return self._wait(self._client.embed(image, prompts, model, references))

    def annotate_many(
        self,
        items: Iterable[Item],
        concurrency: int = 8,
        progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[Outcome]:
        outcomes = self._client.annotate_many(items, concurrency, progress)

        async def following() -> Outcome | None:
            return await anext(outcomes, None)

        try:
            while (outcome := self._wait(following())) is not None:
                yield outcome
        finally:
            self._wait(outcomes.aclose())

    def submit(
        self, image: bytes, request: Wish, references: Mapping[str, bytes] | None = None
    ) -> Job:
        return self._wait(self._client.submit(image, request, references))

    def fetch(self, job: Job, result_format: str = "mayfly") -> bytes:
        return self._wait(self._client.fetch(job, result_format))

    def erase(self, job: Job) -> None:
        self._wait(self._client.erase(job))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C while waiting must not leave the call running
            future.cancel()
            raise
