"""CSV: one line for each find."""

import csv
from io import StringIO

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


def _as_text(label: str) -> str:
    risky = label.startswith(("'", "\t", "\r", "\n")) or label.lstrip().startswith(_FORMULA)
    return "'" + label if risky else label
