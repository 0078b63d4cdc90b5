"""Reads what clients saw, afterwards, and finds what must not have happened.

Only what is certain is reported: an operation took effect at some moment between its begin and its
end, and a finding has to hold wherever that moment was. An operation whose answer was lost may
have taken effect or not, so it excuses a job that is gone, and accuses nobody.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

Op = Literal["submit", "state", "read", "plain", "acknowledge", "erase"]
Kind = Literal["delivered twice", "foreign bytes", "changed bytes", "leases overlap", "vanished",
               "no outcome"]  # fmt: skip
NOT_THERE = (404, 410)


class Event(NamedTuple):
    """One end of an operation.

    Attributes:
        call: the same number for an invocation and its answer.
        phase: `ok` did what was asked, `fail` did nothing; without either the answer was lost.
        digest: of what a job was shown (submit), of what a result shows (read, plain); empty for
            a result that tells of a failure.
        body: digest of the bytes received.
    """

    call: int
    client: str
    job: str
    op: Op
    phase: Literal["invoke", "ok", "fail"]
    at: float
    reader: str = ""
    status: int = 0
    digest: str = ""
    body: str = ""


class Operation(NamedTuple):
    """Both ends together; `end` is infinite when the answer was lost."""

    op: Op
    reader: str
    begin: float
    end: float
    outcome: Literal["ok", "fail", "lost"]
    status: int
    digest: str
    body: str


class Finding(NamedTuple):
    kind: Kind
    job: str
    detail: str


class Rules(NamedTuple):
    """What the service was set to, and when its memory was lost."""

    image_ttl_s: float
    lease_s: float
    grace_s: float
    restarts: Sequence[tuple[float, float]] = ()


def operations(events: Iterable[Event]) -> dict[str, list[Operation]]:
    """Operations by job, in the order of their begin."""
    answers = {}
    invocations = []
    for event in events:
        if event.phase == "invoke":
            invocations.append(event)
        else:
            answers[event.call] = event
    jobs: defaultdict[str, list[Operation]] = defaultdict(list)
    for invoked in sorted(invocations, key=lambda event: event.at):
        answer = answers.get(invoked.call)
        jobs[invoked.job].append(
            Operation(
                invoked.op,
                invoked.reader,
                invoked.at,
                answer.at if answer else float("inf"),
                "lost" if answer is None else "ok" if answer.phase == "ok" else "fail",
                answer.status if answer else 0,
                (answer.digest if answer else "") or invoked.digest,
                answer.body if answer else "",
            )
        )
    return dict(jobs)


def check(events: Iterable[Event], rules: Rules) -> list[Finding]:
    """All findings of a complete history: its clients gave up on no job."""
    found = []
    for job, ops in operations(events).items():
        for kind, detail in (
            *_delivered_twice(ops),
            *_foreign_bytes(ops),
            *_overlaps(ops, rules.lease_s),
            *_vanished(ops, rules),
            *_without_outcome(ops),
        ):
            found.append(Finding(kind, job, detail))
    return found


def _ok(ops: list[Operation], *kinds: Op) -> list[Operation]:
    return [op for op in ops if op.op in kinds and op.outcome == "ok"]


def _delivered_twice(ops: list[Operation]) -> Iterator[tuple[Kind, str]]:
    """A plain delivery, an acknowledgement and an erasure end it: nobody reads afterwards."""
    plain = _ok(ops, "plain")
    if len(plain) > 1:
        yield "delivered twice", f"{len(plain)} plain deliveries"
    for last in _ok(ops, "plain", "acknowledge", "erase"):
        for later in _ok(ops, "plain", "read"):
            if later.begin > last.end and not (later.op == last.op == "plain"):
                yield (
                    "delivered twice",
                    f"{later.op} {later.begin - last.end:.3f} s after {last.op}",
                )


def _foreign_bytes(ops: list[Operation]) -> Iterator[tuple[Kind, str]]:
    shown = {op.digest for op in ops if op.op == "submit"}
    deliveries = _ok(ops, "plain", "read")
    for delivery in deliveries:
        if delivery.digest and delivery.digest not in shown:
            yield "foreign bytes", f"{delivery.op} shows what the job was not shown"
    if len({delivery.body for delivery in deliveries}) > 1:
        yield "changed bytes", "two reads of one result differ"


def _overlaps(ops: list[Operation], lease_s: float) -> Iterator[tuple[Kind, str]]:
    """Two readers within one lease. A read, or a plain delivery while another holds the lease."""
    deliveries = _ok(ops, "plain", "read")
    for i, one in enumerate(deliveries):
        for two in deliveries[i + 1 :]:
            if one.op == two.op == "plain" or (one.op == two.op and one.reader == two.reader):
                continue
            if one.op == two.op:
                certain = max(two.end - one.begin, one.end - two.begin) < lease_s
            else:  # reading first is what makes the plain one wrong
                read, plain = (one, two) if one.op == "read" else (two, one)
                certain = read.end < plain.begin and plain.end - read.begin < lease_s
            if certain:
                yield "leases overlap", f"{one.op} {one.reader!r} and {two.op} {two.reader!r}"


def _vanished(ops: list[Operation], rules: Rules) -> Iterator[tuple[Kind, str]]:
    """Accepted, then not there, and nothing that explains it."""
    accepted = _ok(ops, "submit")
    if not accepted:
        return
    since = min(op.begin for op in accepted)
    first = min(op.begin for op in ops if op.op == "submit")
    taking = [
        op.begin
        for op in ops
        if op.op in ("plain", "acknowledge", "erase") and op.outcome != "fail"
    ]
    leased = [op.begin for op in ops if op.op == "read" and op.outcome != "fail"]
    for op in ops:
        if op.outcome != "fail" or op.status not in NOT_THERE or op.begin < accepted[0].end:
            continue
        if (
            any(begin < op.end for begin in taking)
            or any(begin + rules.grace_s < op.end for begin in leased)
            or any(begin < op.end and end > since for begin, end in rules.restarts)
            or first + rules.image_ttl_s < op.end
        ):
            continue
        yield "vanished", f"{op.op} answered {op.status} {op.end - since:.1f} s after acceptance"
        return


def _without_outcome(ops: list[Operation]) -> Iterator[tuple[Kind, str]]:
    """Accepted, and neither delivered nor erased nor told to be gone."""
    if not _ok(ops, "submit"):
        return
    over = _ok(ops, "plain", "read", "acknowledge", "erase")
    over += [op for op in ops if op.outcome == "fail" and op.status in NOT_THERE]
    if not over:
        yield "no outcome", f"after {len(ops)} operations"
