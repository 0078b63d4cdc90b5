"""Breaks a whole service on purpose, for minutes, and proves from the clients' notes that no job
was lost and none delivered twice.

    python -m tests.faults.chaos --minutes 5 --seed 1
    python -m tests.faults.chaos --readers 1000
    python -m tests.faults.chaos --resets 2000

Real processes, loopback only. Which accidents happen when is decided by the seed; how they fall
into the jobs' lives is not. The exit code is 1 if anything was found.
"""

import argparse
import asyncio
import calendar
import contextlib
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.faults.cluster import (
    GRACE_S,
    IMAGE_TTL_S,
    LEASE_S,
    Cluster,
    Kill,
    Role,
    running_cluster,
)
from tests.faults.contention import readers, resets
from tests.faults.history import Finding, Rules, check
from tests.faults.load import Load
from tests.faults.network import Network, proxy

CLIENTS = 24
_MAX_MINUTES = 30.0
_MIN_RECOVERY_S = 1.4  # a dead worker's lease has at least this left, so its jobs wait as long
_DRAIN_S = 30.0


class Report:
    """What came of one run; `problems` decides."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.problems: list[str] = []

    def add(self, name: str, value: object) -> None:
        self.lines.append(f"{name:34} {value}")

    def show(self) -> int:
        """Print everything; the exit code."""
        shown = [f"VIOLATION {problem}" for problem in self.problems[:50]]
        verdict = f"verdict: {len(self.problems)} violations"
        print("\n".join([*self.lines, *shown, verdict]))  # noqa: T201 - a command
        return 1 if self.problems else 0


async def run(seconds: float, seed: int, kill_every_s: float = 5.0) -> Report:
    """Load and accidents for `seconds`, then calm until every job has its outcome."""
    with tempfile.TemporaryDirectory(prefix="mayfly-chaos-") as folder:
        async with running_cluster(Path(folder)) as cluster, contextlib.AsyncExitStack() as stack:
            network = Network(seed, resets=0.01)
            ports = [await stack.enter_async_context(proxy(p, network)) for p in cluster.ports]
            load = Load(ports, seed)
            until = time.time() + seconds
            clients = [asyncio.create_task(load.client(n, until)) for n in range(CLIENTS)]
            try:
                async with asyncio.timeout(seconds + 60):
                    await accidents(cluster, random.Random(seed), until - 1, kill_every_s)
                    network.calm = load.calm = True
                    await asyncio.wait(clients, timeout=_DRAIN_S)
            finally:
                for client in clients:
                    client.cancel()
                outcomes = await asyncio.gather(*clients, return_exceptions=True)
            report = judge(cluster, load, network)
            report.problems += [f"client: {o!r}" for o in outcomes if isinstance(o, BaseException)]
            return report


async def accidents(
    cluster: Cluster, chance: random.Random, until: float, kill_every_s: float
) -> None:
    """One after the other by the seed, a worker's death the most frequent."""
    kinds = ["worker killed"] * 6 + ["worker hangs", "door killed", "door hangs"]
    kinds += ["valkey killed", "valkey hangs"]
    bag: list[str] = []
    while True:
        if not bag:
            bag = chance.sample(kinds, len(kinds))  # each kind in each round
        kind = bag.pop()
        pause = chance.uniform(0.6, 1.4) * kill_every_s
        role = chance.choice(cluster.workers if kind.startswith("worker") else cluster.doors)
        hang = chance.uniform(0.5, 3.0)
        if time.time() + pause > until:
            await asyncio.sleep(max(0.0, until - time.time()))
            return
        await asyncio.sleep(pause)
        match kind:
            case "worker killed" | "door killed":
                cluster.kill(role)
            case "worker hangs" | "door hangs":
                await cluster.stop_for(role, hang)
            case "valkey killed":
                await cluster.restart_valkey()
            case "valkey hangs":
                await cluster.stop_for(cluster.valkey, hang)


def judge(cluster: Cluster, load: Load, network: Network) -> Report:
    """The table and the verdict."""
    report = Report()
    rules = Rules(IMAGE_TTL_S, LEASE_S, GRACE_S, cluster.restarts)
    found = check(load.events, rules)
    report.problems += [f"{f.kind}: {f.detail}\n{_told(f, load, cluster)}" for f in found]
    report.problems += load.wrong
    report.problems += [
        f"{role.name} ended by itself: {role.exits}" for role in cluster.roles if role.exits
    ]
    deaths = [at for name, at in cluster.kills if name.startswith("worker")]
    hangs = [at for name, at in cluster.hangs if not name.startswith("api")]
    for begin, end in load.crashed:  # to be given up, a job must have lost its worker twice
        if sum(begin - 4 < at < end for at in deaths + hangs) < 2:
            report.problems.append("a job was given up without two deaths or hangs")
    if load.counts["no outcome"]:
        report.problems.append(f"{load.counts['no outcome']} jobs without an outcome")
    for name, count in sorted(load.counts.items()):
        report.add(f"jobs {name}" if name != "answers lost" else name, count)
    for code, count in sorted(load.failed.items()):
        report.add(f"refused or failed with {code}", count)
    restarted = [
        any(b < end and begin < e for b, e in cluster.restarts) for begin, end in load.gone
    ]
    report.add("lost to Valkey restarts", sum(restarted))
    report.add("lost with a plain answer", len(restarted) - sum(restarted))
    report.add("statuses", dict(sorted(load.statuses.items())))
    report.add("connections, reset by the network", (network.connections, network.resets))
    report.add("kills", dict(sorted(Counter(kill.role for kill in cluster.kills).items())))
    report.add("hangs", dict(sorted(Counter(hang.role for hang in cluster.hangs).items())))
    report.add("Valkey restarts", len(cluster.restarts))
    report.add("exits that nobody had asked for", sum(len(r.exits) for r in cluster.roles))
    times = recovery(cluster.workers, cluster.kills)
    report.add("jobs that a worker's death delayed", len(times))
    if times:
        p50, p99 = (times[int(share * (len(times) - 1))] for share in (0.5, 0.99))
        report.add("recovery p50 / p99 / max, s", f"{p50:.2f} / {p99:.2f} / {times[-1]:.2f}")
    kinds, endless = cluster.keys_left()
    report.problems += [f"key without TTL: {name}" for name in endless if ":queue:" not in name]
    for kind, (count, ttl) in sorted(kinds.items()):
        report.add(f"left in Valkey: {kind}", f"{count}, longest TTL {ttl} s")
    for event, count in sorted(_errors(cluster).items()):
        report.add(f"log: {event}"[:70], count)
    report.add("findings by kind", dict(Counter(finding.kind for finding in found)))
    return report


def recovery(workers: list[Role], kills: list[Kill]) -> list[float]:
    """Seconds from a worker's death to the end of the jobs it had in hand, shortest first.

    A job's log line says whether it ran again. The death that it suffered is the last one long
    enough ago for a lease to have ended since.
    """
    deaths = [kill.at for kill in kills if kill.role.startswith("worker")]
    times = []
    for worker in workers:
        for line in worker.lines():
            if line.get("event") != "job" or line.get("try", 1) < 2 or not line.get("stored"):
                continue
            at = _moment(line)
            before = [at - death for death in deaths if at - death >= _MIN_RECOVERY_S]
            if before and min(before) < IMAGE_TTL_S:
                times.append(min(before))
    return sorted(times)


def _moment(line: dict[str, Any]) -> float:
    """When a log line was written."""
    whole, _, millis = str(line["time"]).rstrip("Z").partition(".")
    return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) + int(millis) / 1000


def _errors(cluster: Cluster) -> Counter[str]:
    return Counter(
        f"{line.get('level')} {line.get('event')} {line.get('error', '')}".strip()
        for role in cluster.roles
        for line in role.lines()
        if line.get("level") in ("WARNING", "ERROR", "CRITICAL")
    )


def _told(finding: Finding, load: Load, cluster: Cluster) -> str:
    """What its client did, in order, with the deaths that fell into it."""
    steps = [
        (event.at, f"{event.op} {event.phase} {event.status or ''} {event.reader} #{event.call}")
        for event in load.events
        if event.job == finding.job
    ]
    begin, end = steps[0][0], steps[-1][0]
    steps += [(kill.at, f"-- {kill.role} killed") for kill in cluster.kills]
    steps += [
        (_moment(line), f"-- {role.name}: {line['event']} {line.get('status', '')}")
        for role in cluster.roles
        for line in role.lines()
        if line.get("job") == finding.job
    ]
    return "\n".join(
        f"    {at - begin:7.3f} {step}" for at, step in sorted(steps) if begin - 3 < at < end + 3
    )


async def _contention(mode: str, count: int, seed: int) -> Report:
    report = Report()
    with tempfile.TemporaryDirectory(prefix="mayfly-chaos-") as folder:
        async with running_cluster(Path(folder)) as cluster:
            run_mode = readers if mode == "readers" else resets
            lines, problems = await run_mode(cluster.ports, count, seed)
            for name, value in lines.items():
                report.add(name, value)
            report.problems += problems
    return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between accidents, mean")
    parser.add_argument("--readers", type=int, help="instead: so many jobs, 32 readers at once")
    parser.add_argument("--resets", type=int, help="instead: so many downloads, 70 %% reset")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as with Ctrl-C: clean
    begin = time.monotonic()
    if options.readers or options.resets:
        mode, count = (
            ("readers", options.readers) if options.readers else ("resets", options.resets)
        )
        report = asyncio.run(_contention(mode, min(count, 20_000), options.seed))
    else:
        seconds = 60 * min(options.minutes, _MAX_MINUTES)
        report = asyncio.run(run(seconds, options.seed, options.every))
    report.add("took, s", round(time.monotonic() - begin))
    return report.show()


if __name__ == "__main__":
    sys.exit(main())
