"""What is counted of jobs: sums by day, model and outcome. No ids, no addresses, no accounts.

The script that finishes a job adds to one hash in Redis, in the step that stores the result, so
that a job is counted once or, if it was erased meanwhile, not at all. A front door takes the hash
away as a batch and adds it to its database.
"""

from collections import defaultdict
from collections.abc import Mapping
from datetime import date
from typing import NamedTuple

_DAY_0 = date(1970, 1, 1).toordinal()


class Counts(NamedTuple):
    """Of one job or of many; times in ms, summed over the jobs, as their results tell them."""

    jobs: int = 0
    images: int = 0
    bytes: int = 0
    annotations: int = 0
    queued_ms: int = 0
    decode_ms: int = 0
    infer_ms: int = 0


class Finished(NamedTuple):
    """How a job ended: `annotated`, or the code of its problem."""

    outcome: str
    counts: Counts

    def fields(self) -> list[str | int]:
        """For the script that counts: fields without their day and model, each with its number."""
        return [
            word
            for name, value in self.counts._asdict().items()
            if value
            for word in (f"{self.outcome} {name}", value)
        ]


class Row(NamedTuple):
    """The counts of one day (UTC, by the clock of Redis), model and outcome."""

    day: date
    model: str
    outcome: str
    counts: Counts


class Batch(NamedTuple):
    """Counts on their way from Redis to the database; the id tells whether they have arrived."""

    id: str
    rows: list[Row]


def read_rows(fields: Mapping[bytes, bytes]) -> list[Row]:
    """The hash in Redis, as rows: its fields are named ``<days since 1970> <model> <outcome>
    <count>``."""
    sums: defaultdict[tuple[str, ...], dict[str, int]] = defaultdict(dict)
    for field, value in fields.items():
        *where, name = field.decode().split(" ")
        sums[tuple(where)][name] = int(value)
    return [
        Row(date.fromordinal(_DAY_0 + int(day)), model, outcome, Counts(**counts))
        for (day, model, outcome), counts in sorted(sums.items())
    ]
