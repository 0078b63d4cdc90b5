"""Works that need a network now and then, done side by side so that they share its batches.

A work is a generator: it yields the views that it needs embedded, is sent their maps, and goes on.
"""

from collections.abc import Callable, Generator
from itertools import islice
from typing import TypeVar

from worker.models.head import Maps
from worker.models.views import View

T = TypeVar("T")
Steps = Generator[list[View], list[Maps], T]
Embed = Callable[[list[View]], list[Maps]]


def together(works: list[Steps[T]], embed: Embed) -> list[T]:
    """Take all works to their ends; `embed` gets at once what all of them need next."""
    results: dict[int, T] = {}
    wanted: dict[int, list[View]] = {}
    for n, work in enumerate(works):
        _advance(n, work, None, wanted, results)
    while wanted:
        maps = iter(embed([view for views in wanted.values() for view in views]))
        answers = {n: list(islice(maps, len(views))) for n, views in wanted.items()}
        wanted = {}
        for n, answer in answers.items():
            _advance(n, works[n], answer, wanted, results)
    return [results[n] for n in range(len(works))]


def _advance(
    n: int,
    work: Steps[T],
    answer: list[Maps] | None,
    wanted: dict[int, list[View]],
    results: dict[int, T],
) -> None:
    try:
        wanted[n] = next(work) if answer is None else work.send(answer)
    except StopIteration as end:
        results[n] = end.value


def by_shape(views: list[View], most: int) -> list[list[int]]:
    """Places of views that may share a batch: of one shape, at most so many."""
    shapes: dict[tuple[int, ...], list[list[int]]] = {}
    for n, view in enumerate(views):
        batches = shapes.setdefault(tuple(view.pixels.shape), [[]])
        if len(batches[-1]) == most:
            batches.append([])
        batches[-1].append(n)
    return [batch for batches in shapes.values() for batch in batches]
