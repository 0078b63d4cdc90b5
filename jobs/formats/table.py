"""CSV: one line for each find, or the counts of each image."""

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from io import StringIO
from typing import Any, BinaryIO

from jobs.contract import Annotated

_FORMULA = tuple("=+-@＝＋－＠")


def table(result: Annotated) -> str:
    """``label,score,x0,y0,x1,y1`` with the box in pixels; UTF-8 text for RFC 4180 readers.

    A spreadsheet takes a cell that starts with ``=``, ``+``, ``-``, ``@`` or a tab or line break
    for a formula, and labels are anybody's text. Such a label gets an apostrophe in front, and so
    does one that starts with an apostrophe: taking one leading apostrophe away restores it.
    """
    out = StringIO()
    writer = csv.writer(out)
    writer.writerow(("label", "score", "x0", "y0", "x1", "y1"))
    for find in result.annotations:
        writer.writerow((_as_text(find.label), find.score, *find.box))
    return out.getvalue()


def write_table(out: BinaryIO, items: Iterable[tuple[str, Annotated]]) -> None:
    """As `table` for any number of images, with the image's name in the first column."""
    _write(out, ("image", "label", "score", "x0", "y0", "x1", "y1"))
    for name, result in items:
        for find in result.annotations:
            _write(out, (_as_text(name), _as_text(find.label), find.score, *find.box))


def write_counts(
    out: BinaryIO, items: Iterable[tuple[str, Annotated]], labels: Sequence[str]
) -> None:
    """One line an image, one column a label: how many finds have it. Text as in `table`.

    Args:
        labels: all that occur.
    """
    _write(out, ("image", *map(_as_text, labels)))
    for name, result in items:
        counts = Counter(find.label for find in result.annotations)
        _write(out, (_as_text(name), *(counts[label] for label in labels)))


def _write(out: BinaryIO, row: Sequence[Any]) -> None:
    line = StringIO()
    csv.writer(line).writerow(row)
    out.write(line.getvalue().encode(errors="replace"))


def _as_text(label: str) -> str:
    risky = label.startswith(("'", "\t", "\r", "\n")) or label.lstrip().startswith(_FORMULA)
    return "'" + label if risky else label
