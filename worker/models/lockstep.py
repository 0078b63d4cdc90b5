"""Works that need a network now and then, done side by side so that they share its batches.

A work is a generator: it yields the views that it needs embedded, is sent their maps, and goes on.
"""

from collections.abc import Callable, Generator
from itertools import islice
from typing import Any, TypeVar

from worker.models.head import Maps
from worker.models.views import View

T = TypeVar("T")
Steps = Generator[list[View], list[Maps], T]
Embed = Callable[[list[View]], list[Maps]]


def together(works: list[Steps[T]], embed: Embed) -> list[T]:
    """Take all works to their ends; `embed` gets at once what all of them need next."""
    results: dict[int, T] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(works)))  # None begins a work
    while answers:
        wanted: dict[int, list[View]] = {}
        for n, answer in answers.items():
            try:
                wanted[n] = works[n].send(answer)
            except StopIteration as end:
                results[n] = end.value
        maps = iter(embed([view for views in wanted.values() for view in views]))
        answers = {n: list(islice(maps, len(views))) for n, views in wanted.items()}
    return [results[n] for n in range(len(works))]


def by_shape(views: list[View], most: int) -> list[list[int]]:
    """Places of views that may share a batch: of one shape, at most so many."""
    shapes: dict[tuple[int, ...], list[list[int]]] = {}
    for n, view in enumerate(views):
        batches = shapes.setdefault(tuple(view.pixels.shape), [[]])
        if len(batches[-1]) == most:
            batches.append([])
        batches[-1].append(n)
    return [batch for batches in shapes.values() for batch in batches]
