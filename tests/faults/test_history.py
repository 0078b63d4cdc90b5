"""The checker of histories: silent on every correct one, loud on each fault that is planted."""

import random
from collections.abc import Callable
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults.history import Event, Op, Rules, check

RULES = Rules(image_ttl_s=60, lease_s=3, grace_s=30, restarts=[(5000.0, 5001.0)])
SEEDS = st.integers(0, 2**32)


class Server:
    """One job on a server without faults; each operation takes effect at one moment."""

    def __init__(self, chance: random.Random, job: str, start: float) -> None:
        self.events: list[Event] = []
        self._chance = chance
        self._job = job
        self._now = start
        self._calls = chance.randrange(1_000_000) * 1000
        self._state = "none"
        self._done_at = self._over_at = 0.0
        self._lease = ("", 0.0)

    def operate(self, op: Op, reader: str = "") -> bool:
        """Let some time pass, then operate, and lose the answer now and then."""
        self._now += self._chance.choice([0.001, 0.3, 4])
        ok, status = self._effect(op, reader)
        shown = self._job if op == "submit" or (ok and op in ("plain", "read")) else ""
        lost = op != "submit" and self._chance.random() < 0.15
        self.record(
            op, reader, self._now, "lost" if lost else "ok" if ok else "fail", status, shown
        )
        return ok and not lost

    def record(
        self, op: Op, reader: str, at: float, outcome: str, status: int = 200, shown: str = ""
    ) -> None:
        """An operation that took effect at `at`, as its client saw it."""
        self._calls += 1
        begin, end = at - self._chance.uniform(0, 0.2), at + self._chance.uniform(0, 0.2)
        event = Event(self._calls, "c", self._job, op, "invoke", begin, reader)
        self.events.append(event._replace(digest=shown if op == "submit" else ""))
        if outcome != "lost":
            body = f"body of {shown}" if op in ("plain", "read") and outcome == "ok" else ""
            phase: Literal["ok", "fail"] = "ok" if outcome == "ok" else "fail"
            ended = event._replace(phase=phase, at=end, status=status, digest=shown, body=body)
            self.events.append(ended)

    def live(self) -> "Server":
        """A life: submitted, looked at and read in any order, ended in the end."""
        readers = ["", "a", "b"]
        self.operate("submit")
        self._done_at = self._now + self._chance.choice([0, 1, 8])
        for _ in range(self._chance.randrange(6)):
            reader = self._chance.choice(readers)
            ops: list[Op] = ["state", "read" if reader else "plain"]
            ops += ["acknowledge"] if reader and self._chance.random() < 0.5 else []
            self.operate(self._chance.choice(ops), reader)
        while not self.operate("erase"):
            pass
        return self

    def _effect(self, op: Op, reader: str) -> tuple[bool, int]:
        if op == "submit":
            self._state, self._over_at = "there", self._now + RULES.image_ttl_s + 60
            return True, 202
        if self._state == "there" and self._now > self._over_at:
            self._state = "gone"
        holder = self._lease[0] if self._now < self._lease[1] else ""
        if op == "erase" or (op == "acknowledge" and holder in ("", reader)):
            self._state = "gone"
            return True, 204
        if op == "acknowledge":
            return False, 409
        if self._state == "gone":
            return False, 410
        if op == "state":
            return True, 200
        if self._now < self._done_at:
            return False, 202
        if holder not in ("", reader):
            return False, 409
        if op == "plain":
            self._state = "gone"
        else:
            self._over_at = min(self._over_at, self._now + RULES.grace_s)
            self._lease = (reader, self._now + min(RULES.lease_s, self._over_at - self._now))
        return True, 200


def _good(seed: int) -> list[Event]:
    chance = random.Random(seed)
    return [
        event
        for number in range(4)
        for event in Server(chance, f"job-{number}", chance.uniform(0, 50)).live().events
    ]


Plant = Callable[[Server], None]


def _two_plain(server: Server) -> None:
    server.record("plain", "", 10, "ok", shown="bad")
    server.record("plain", "", 10.01, "ok", shown="bad")


def _plain_after_acknowledgement(server: Server) -> None:
    server.record("read", "a", 10, "ok", shown="bad")
    server.record("acknowledge", "a", 11, "ok", 204)
    server.record("plain", "", 12, "ok", shown="bad")


def _read_after_acknowledgement(server: Server) -> None:
    server.record("read", "a", 10, "ok", shown="bad")
    server.record("acknowledge", "a", 11, "ok", 204)
    server.record("read", "a", 12, "ok", shown="bad")


def _read_after_erasure(server: Server) -> None:
    server.record("erase", "", 11, "ok", 204)
    server.record("read", "a", 12, "ok", shown="bad")


def _foreign(server: Server) -> None:
    server.record("plain", "", 10, "ok", shown="another")


def _changed(server: Server) -> None:
    server.record("read", "a", 10, "ok", shown="bad")
    server.record("read", "a", 11, "ok", shown="bad")
    server.events[-1] = server.events[-1]._replace(body="another run's")


def _two_leases(server: Server) -> None:
    server.record("read", "a", 10, "ok", shown="bad")
    server.record("read", "b", 11, "ok", shown="bad")


def _plain_under_a_lease(server: Server) -> None:
    server.record("read", "a", 10, "ok", shown="bad")
    server.record("plain", "", 11, "ok", shown="bad")


def _vanished(server: Server) -> None:
    server.record("read", "a", 10, "fail", 410)


def _vanished_before_the_grace_was_over(server: Server) -> None:
    server.record("read", "a", 5, "ok", shown="bad")
    server.record("read", "a", 20, "fail", 410)


def _never_done(server: Server) -> None:
    server.record("read", "a", 10, "fail", 202)
    server.record("read", "a", 50, "fail", 202)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(SEEDS)
def test_a_history_without_faults_passes(seed: int) -> None:
    assert check(_good(seed), RULES) == []


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (_two_plain, "delivered twice"),
        (_plain_after_acknowledgement, "delivered twice"),
        (_read_after_acknowledgement, "delivered twice"),
        (_read_after_erasure, "delivered twice"),
        (_foreign, "foreign bytes"),
        (_changed, "changed bytes"),
        (_two_leases, "leases overlap"),
        (_plain_under_a_lease, "leases overlap"),
        (_vanished, "vanished"),
        (_vanished_before_the_grace_was_over, "vanished"),
        (_never_done, "no outcome"),
    ],
)
@settings(max_examples=30, derandomize=True, deadline=None)
@given(seed=SEEDS)
def test_a_planted_fault_is_found(plant: Plant, kind: str, seed: int) -> None:
    """In its own job and no other one."""
    bad = Server(random.Random(seed), "bad", 0)
    bad.record("submit", "", 1, "ok", 202, "bad")
    plant(bad)
    found = check(_good(seed) + bad.events, RULES)
    assert (kind, "bad") in {(finding.kind, finding.job) for finding in found}
    assert {finding.job for finding in found} == {"bad"}


def _restarted(server: Server) -> None:
    server.record("read", "a", 5010, "fail", 404)


def _lost_answer(server: Server) -> None:
    server.record("plain", "", 5, "lost")
    server.record("plain", "", 6, "fail", 410)


def _expired(server: Server) -> None:
    server.record("read", "a", 70, "fail", 410)


@pytest.mark.parametrize("excuse", [_lost_answer, _expired, _restarted])
def test_what_explains_a_job_that_is_gone(excuse: Plant) -> None:
    """A plain read whose answer was lost, the end of its time, a restart of Valkey."""
    server = Server(random.Random(1), "bad", 0)
    server.record("submit", "", 4990 if excuse is _restarted else 1, "ok", 202, "bad")
    excuse(server)
    assert check(server.events, RULES) == []
    if excuse is _restarted:
        assert check(server.events, RULES._replace(restarts=[])) != []
