"""The workloads: what they do, how large, in which unit, and what is to be reached. The only table of goals."""
from __future__ import annotations

import statistics
from typing import Dict, Mapping, NamedTuple, Optional, Tuple


class Summary(NamedTuple):
    """What several runs of one contestant come to: median, lowest and highest rate, runs, size, medians of notes; and
    the rates in the order of the rounds."""

    rate: float
    low: float
    high: float
    runs: int
    size: int
    notes: Mapping[str, float]
    rates: Tuple[float, ...] = ()

    def times(self, other: "Summary") -> float:
        """How many times as fast as the other. Where both ran in the same rounds that is the median of the ratios of
        runs that came right after each other: what else the machine has to do for a while then weighs on both."""
        if self.rates and len(self.rates) == len(other.rates):
            return statistics.median(mine / its for mine, its in zip(self.rates, other.rates))
        return self.rate / other.rate


class Verdict(NamedTuple):
    """A goal held against measurements; `reached` is None when what it compares with was not measured."""

    reached: Optional[bool]
    sentence: str


class Share:
    """Ours reaches at least this share of the limit's rate."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __str__(self) -> str:
        return "%.2f of limit" % self.share

    def judge(self, summaries: Mapping[str, Summary]) -> Verdict:
        """Compare; `summaries` maps contestants to their figures and holds "ours"."""
        if "limit" not in summaries:
            return Verdict(None, str(self))
        share = summaries["ours"].times(summaries["limit"])
        return Verdict(share >= self.share, "%s: %.3f" % (self, share))


class Ahead:
    """Ours is at least so many times as fast as another contestant."""

    def __init__(self, contestant: str, factor: float = 1.0) -> None:
        self.contestant = contestant
        self.factor = factor

    def __str__(self) -> str:
        return "ahead of %s" % self.contestant if self.factor == 1 else "%g x %s" % (self.factor, self.contestant)

    def judge(self, summaries: Mapping[str, Summary]) -> Verdict:
        """Compare, as in `Share`."""
        if self.contestant not in summaries:
            return Verdict(None, str(self))
        ratio = summaries["ours"].times(summaries[self.contestant])
        return Verdict(ratio >= self.factor, "%s: %.2f x" % (self, ratio))


class AtMost:
    """A figure that ours notes beside its rate (a latency, bytes) is no larger than this."""

    def __init__(self, note: str, most: float) -> None:
        self.note = note
        self.most = most

    def __str__(self) -> str:
        return "%s <= %g" % (self.note, self.most)

    def judge(self, summaries: Mapping[str, Summary]) -> Verdict:
        """Compare, as in `Share`."""
        value = summaries["ours"].notes.get(self.note)
        if value is None:
            return Verdict(None, str(self))
        return Verdict(value <= self.most, "%s: %g" % (self, value))


class Workload(NamedTuple):
    """One row of the table.

    `size` is the `n` a contestant gets; `sizes` holds others for contestants so much faster or slower that the run
    would be too short to tell or too long to wait for. `smoke` is a tiny one that only proves that it still runs.
    `pinned`: round trips between two processes take one of two very different times, depending on whether both
    happen to sit on one core; such a workload is taken on one.
    `repeat`: so many times the rounds for those in COMPARED, where a goal is about a few hundredths.
    """

    name: str
    title: str
    unit: str
    size: int
    smoke: int
    goals: tuple
    sizes: Dict[str, int] = {}
    pinned: bool = False
    repeat: int = 1

    def size_for(self, contestant: str) -> int:
        """The `n` this contestant gets unless the command line says otherwise."""
        return self.sizes.get(contestant, self.size)


AUTHENTICATED = 0.85            # of the rate of the same without authentication
COMPARED = ("limit", "ours", "open")

_TABLE: Tuple[Workload, ...] = (
    Workload("L1", "spawn tasks and join them", "tasks/s", 100_000, 300,
             (Share(0.40), Ahead("asyncio"))),
    Workload("L2", "bare switch between 100 tasks (n: switches of each)", "switches/s", 20_000, 20,
             (Share(0.65), Ahead("asyncio", 10)), {"limit": 50_000, "asyncio": 5_000, "uvloop": 5_000}),
    Workload("L3", "ping-pong of two tasks", "round trips/s", 100_000, 300,
             (Share(0.45), Ahead("uvloop", 3))),
    Workload("L3b", "one-way messages between two tasks", "messages/s", 500_000, 1_000,
             (Share(0.45), Ahead("asyncio"), Ahead("uvloop"))),
    Workload("L4", "sleepers with random deadlines within 2 s", "timers/CPU second", 100_000, 200,
             (Share(0.65), AtMost("early", 0), AtMost("late_p99_ms", 150))),
    Workload("L5", "memory of idle tasks", "tasks/MiB", 100_000, 2_000,
             (AtMost("bytes_per_task", 700),)),
    Workload("L6a", "TCP echo, 64 B, 1 connection", "round trips/s", 20_000, 20,
             (Share(0.60), Ahead("asyncio")), pinned=True),
    Workload("L6b", "TCP echo, 200 connections (n: round trips of each)", "round trips/s", 100, 2,
             (Share(0.58), Ahead("asyncio"))),
    Workload("L6c", "bulk TCP", "MiB/s", 2_048, 4,
             (Share(0.90),)),
    Workload("D1", "request and response, 100 B", "requests/s", 5_000, 20,
             (Share(0.45), Ahead("open", AUTHENTICATED)), pinned=True, repeat=3),
    Workload("D2", "one-way small messages", "messages/s", 100_000, 100,
             (Share(0.33), Ahead("asyncio"), Ahead("open", AUTHENTICATED)), {"limit": 300_000}, repeat=3),
    Workload("D3", "confirmed delivery, one at a time", "deliveries/s", 5_000, 20,
             (Share(0.60), Ahead("open", AUTHENTICATED)), pinned=True, repeat=3),
    Workload("D3p", "confirmed delivery, 16 in flight", "deliveries/s", 32_000, 64,
             (Share(0.40), Ahead("open", AUTHENTICATED)), {"limit": 80_000}, repeat=3),
    # The limits of these two do not look at the bytes. SHA-256 at both ends takes as long as all the rest of D4b: who
    # does it by hand ("checked") comes to 0.85 of that limit and a bit more while sender and receiver have a core each
    # and nothing else runs, and to half of it where they have to share. The first figure stays the goal; the second
    # one tells, on a machine that is busy, whether it is missed by us or by all.
    Workload("D4", "messages of 64 MiB, bytes (n: messages)", "MiB/s", 8, 1,
             (Share(0.85), Ahead("checked", 0.90), AtMost("peer_peak_x", 2.1))),
    Workload("D4b", "messages of 64 MiB, a bytearray (n: messages)", "MiB/s", 8, 1,
             (Share(0.85), Ahead("checked", 0.90), AtMost("peer_peak_x", 1.1))),
    # The limit does not look at the bytes. Who makes a checksum of them at both ends needs 2.3 times its processor time
    # with CRC-32, which is enough within a host, and 3.5 times with SHA-256; with both ends on two cores that is what
    # counts, however it is written ("checked" and "sha256" are). So ours is held against "checked".
    Workload("D5", "a file to another process", "MiB/s", 256, 1,
             (Ahead("checked", 0.90),)),
    Workload("D6a", "a channel with 50 subscribers (n: messages)", "deliveries/s", 10_000, 20,
             (Share(0.45), Ahead("asyncio"))),
    Workload("D6b", "a channel with subscribers in 4 processes (n: messages)", "deliveries/s", 20_000, 20,
             (Share(0.20),), {"limit": 100_000}),
    Workload("J1", "jobs that do nothing, 2 workers", "jobs/s", 20_000, 20,
             (Share(0.11), Ahead("mppool")), {"limit": 50_000, "ppe": 5_000}),
    Workload("J1b", "one job at a time", "jobs/s", 500, 5,
             (AtMost("p50_us", 120),)),
    Workload("J2", "jobs of about 20 ms of computing, 2 workers", "jobs/s", 100, 4,
             (Share(0.98),)),
    Workload("J3", "start of a client to its first result", "1/s", 5, 1,
             (AtMost("first_result_s", 0.10), AtMost("node_ready_s", 0.12), AtMost("clients_hung", 0))),
)

WORKLOADS: Dict[str, Workload] = {workload.name: workload for workload in _TABLE}
