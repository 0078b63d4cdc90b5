"""What a run-length mask looks like from outside: its area, its outline, its runs by rows.

Works on runs, never on single pixels, so that a mask costs what its outline costs. Corners lie
between pixels: a mask of the one pixel (0, 0) has the outline (0,0) (1,0) (1,1) (0,1), and the
bounds of an outline are the box of the mask.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise

from msgspec import Struct

from jobs.contract import Mask

Corner = tuple[int, int]
Ring = list[Corner]  # closed: the last corner joins the first
Columns = dict[int, list[tuple[int, int]]]  # x -> spans of y from..to (exclusive), downwards


class Rows(Struct, frozen=True):
    """A mask cut to its bounds (pixels), its runs along the rows, background first."""

    left: int
    top: int
    width: int
    height: int
    runs: list[int]


def area(mask: Mask) -> int:
    """Pixels that `mask` covers.

    Raises:
        ValueError: it is not COCO's compressed run-length encoding, or does not fill its size.
    """
    return sum(_runs(mask)[1::2])


def outlines(mask: Mask, tolerance: float = 1.0) -> list[Ring]:
    """Outer outlines of the parts of `mask`, largest first; holes are left out.

    Pixels that touch at a corner belong to one part. Corners are pixels, clockwise as displayed,
    at least three to an outline. What is only a few pixels wide stays exact.

    Args:
        tolerance: how far in pixels an outline may leave the exact one to have fewer corners; its
            bounds stay exact. 0 keeps the staircase of pixels.

    Raises:
        ValueError: as `area`.
    """
    rings = [ring for ring in _rings(_columns(mask)) if _signed_area(ring) > 0]
    rings.sort(key=_signed_area, reverse=True)
    return [_simplified(ring, tolerance) for ring in rings] if tolerance else rings


def by_rows(mask: Mask) -> Rows | None:
    """`mask` as runs along the rows of its bounds; None if it covers nothing.

    Raises:
        ValueError: as `area`.
    """
    columns = _columns(mask)
    if not columns:
        return None
    left, right = min(columns), max(columns) + 1
    top = min(spans[0][0] for spans in columns.values())
    bottom = max(spans[-1][1] for spans in columns.values())
    width, height = right - left, bottom - top
    pixels = bytearray(width * height)  # column after column
    for x, spans in columns.items():
        origin = (x - left) * height - top
        for start, end in spans:
            pixels[origin + start : origin + end] = b"\x01" * (end - start)
    rows = b"".join(pixels[y::height] for y in range(height))
    runs, at = [], 0
    for run in re.finditer(rb"\x01+", rows):
        runs += [run.start() - at, run.end() - run.start()]
        at = run.end()
    if at < len(rows):
        runs.append(len(rows) - at)
    return Rows(left, top, width, height, runs)


def _runs(mask: Mask) -> list[int]:
    """Pixels per run down the columns, background and mask in turn."""
    runs: list[int] = []
    value = shift = 0
    for code in mask.counts.encode():
        bits = code - 48  # five bits of a number, low ones first, and one that says "more follow"
        if not 0 <= bits < 64:
            raise ValueError("The mask is not compressed COCO run-length encoding.")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]  # from the fourth run on, the change since the last of its kind
        runs.append(value)
        value = shift = 0
    if shift or min(runs, default=0) < 0 or sum(runs) != mask.size[0] * mask.size[1]:
        raise ValueError("The runs of the mask do not fill its size.")
    return runs


def _columns(mask: Mask) -> Columns:
    height = mask.size[0]
    columns: Columns = {}
    at = 0
    for number, length in enumerate(_runs(mask)):
        start, at = at, at + length
        while number % 2 and start < at:  # a run may go on at the top of the next column
            x, top = divmod(start, height)
            bottom = min(height, top + at - start)
            spans = columns.setdefault(x, [])
            if spans and spans[-1][1] == top:
                top = spans.pop()[0]
            spans.append((top, bottom))
            start = x * height + bottom
    return columns


def _edges(columns: Columns) -> dict[Corner, list[Corner]]:
    """Edges between mask and background, from corner to corner, the mask on their right."""
    edges: dict[Corner, list[Corner]] = defaultdict(list)
    for x in columns.keys() | {x + 1 for x in columns}:
        for top, bottom in columns.get(x, ()):
            edges[x, top].append((x + 1, top))
            edges[x + 1, bottom].append((x, bottom))
        before = {y for span in columns.get(x - 1, ()) for y in span}
        after = {y for span in columns.get(x, ()) for y in span}
        in_before = in_after = False
        for upper, lower in pairwise(sorted(before | after)):
            in_before ^= upper in before
            in_after ^= upper in after
            if in_after and not in_before:
                edges[x, lower].append((x, upper))
            elif in_before and not in_after:
                edges[x, upper].append((x, lower))
    return edges


def _rings(columns: Columns) -> Iterator[Ring]:
    """Outlines of parts, clockwise, and of holes, counter-clockwise, straight runs in one piece."""
    edges = _edges(columns)
    left = {(start, end): None for start, ends in edges.items() for end in ends}
    while left:
        edge = first = next(iter(left))
        ring = []
        while True:
            del left[edge]
            following = _next(edge, edges)
            if _direction(edge) != _direction(following):
                ring.append(edge[1])
            edge = following
            if edge == first:
                break
        yield ring


def _next(
    edge: tuple[Corner, Corner], edges: Mapping[Corner, list[Corner]]
) -> tuple[Corner, Corner]:
    corner = edge[1]
    ends = edges[corner]
    if len(ends) == 2:  # two pixels touch here: a left turn crosses over to the other one
        dx, dy = _direction(edge)
        ends = [end for end in ends if _direction((corner, end)) == (dy, -dx)]
    return corner, ends[0]


def _direction(edge: tuple[Corner, Corner]) -> tuple[int, int]:
    (x0, y0), (x1, y1) = edge
    return (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)


def _signed_area(ring: Ring) -> float:
    """Square pixels, positive if clockwise as displayed."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise([*ring, ring[0]])) / 2


def _simplified(ring: Ring, tolerance: float) -> Ring:
    """Douglas-Peucker between the outermost corners; narrow rings stay as they are."""
    length = sum(abs(x1 - x0) + abs(y1 - y0) for (x0, y0), (x1, y1) in pairwise([*ring, ring[0]]))
    if _signed_area(ring) < 3 * tolerance * length:
        return ring  # a pixel more or less would change much of it
    anchors = {
        pick(range(len(ring)), key=lambda at: ring[at][axis])
        for pick in (min, max)
        for axis in (0, 1)
    }
    closed = [*ring, *ring]
    kept = set(anchors)
    stack = list(pairwise([*sorted(anchors), min(anchors) + len(ring)]))
    while stack:
        first, last = stack.pop()
        (x0, y0), (x1, y1) = closed[first], closed[last]
        dx, dy = x1 - x0, y1 - y0
        limit, farthest = tolerance * (dx * dx + dy * dy) ** 0.5, 0
        for at in range(first + 1, last):
            x, y = closed[at]
            distance = abs(dx * (y - y0) - dy * (x - x0))
            if distance > limit:
                limit, farthest = distance, at
        if farthest:
            kept.add(farthest % len(ring))
            stack += [(first, farthest), (farthest, last)]
    return [ring[at] for at in sorted(kept)]
