"""Numbers for labels, in formats that know classes by number."""

from collections.abc import Iterable, Sequence

from jobs.contract import Annotated


def labels_of(results: Iterable[Annotated]) -> list[str]:
    """Distinct labels of `results` in the order of their code points.

    A label's place in this list, from 0, is its class in the answers that know classes by number
    only. It holds for these results: one more image may shift it, so a data set is written with
    the labels of all of its images.
    """
    return sorted({find.label for result in results for find in result.annotations})


def numbers(labels: Sequence[str], first: int = 0) -> dict[str, int]:
    """Class of each label, counted from `first`.

    Raises:
        ValueError: a label stands there twice.
    """
    classes = {label: number for number, label in enumerate(labels, first)}
    if len(classes) != len(labels):
        raise ValueError("Labels must be distinct.")
    return classes
