"""The guarantees of messages between processes, as figures: what is lost, doubled, reordered, noticed and reported.

    python3 -m tests.reliability                every row, at the size of every run
    python3 -m tests.reliability R4 --soak      one row, at the size of a release: real heartbeats, real partitions

R1  cuts of the connection (RST, FIN, within a frame, at every byte, black holes)      nothing lost, doubled, reordered
R2  50 ms, 5 % loss, 1 % doubled, reordering                                           likewise
R3  the throughput there, 1 KiB messages                                               1,000 a second
R4  a partition heals                                                                  messages flow within 2 s
R5  a dead peer                                                                        known within 1 s, or 3 heartbeats
R6  a lossy line, a computing task                                                     nobody is taken for dead
R7  messages to a dead peer                                                            bounded, each one accounted for
R8  a crash while messages arrive                                                      likewise
R9  all kinds of messages, calls and files, over connections that break                nothing grows

Each end is a process of its own (see reliability_peer.py), in a host of its own where the line matters. The figures
that are times are goals in release runs only: elsewhere the machine may be busy with other things.
"""
from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional

from pycoslite import Location

from .cutting import CuttingProxy
from .figures import Figure, Row, main
from .support import Host, running
from .switch import Line, Switch, switched_hosts

PEER = Path(__file__).with_name("reliability_peer.py")
KINDS = Path(__file__).with_name("every_kind.py")
COME_S = 120                            # what a process is asked for comes within this
BEHIND = "127.0.0.3"                    # address of a process that can only be reached through a proxy: ...
HIDDEN = ("host=" + BEHIND, "ext_host=127.0.0.8")           # ... the one that it tells leads nowhere
BAD_LINE = Line(delay_s=0.025, loss=0.05, duplicate=0.01, reorder=0.05)     # each way


class Agent:
    """A process that does what it is told; its lines of output, in turn."""

    def __init__(self, process: Any) -> None:
        self.process = process
        self.at = Location.parse(process.match.group(1))
        self._read = 0                  # characters of its output that were looked at

    def tell(self, *words: Any) -> None:
        """Have it do something; see reliability_peer.py."""
        self.process.write(json.dumps(words) + "\n")

    def hear(self, word: str, timeout_s: float = COME_S) -> dict:
        """The next line that begins with `word`."""
        found = self.process.wait_for(r"^%s (\{.*\})$" % word, timeout_s, self._read)
        self._read = found.end()
        return json.loads(found.group(1))

    def heard(self, word: str) -> list:
        """All lines so far that begin with `word`."""
        return [json.loads(text) for text in re.findall(r"^%s (\{.*\})$" % word, self.process.output, re.M)]

    def finds(self, word: str, start: int, **facts: Any) -> dict:
        """The first line behind character `start` of its output that begins with `word` and tells these facts, as soon
        as it is there; `end` in it is where the line ends."""
        while True:
            found = self.process.wait_for(r"^%s (\{.*\})$" % word, COME_S, start)
            told, start = json.loads(found.group(1)), found.end()
            if facts.items() <= told.items():
                return dict(told, end=start)

    def do(self, *words: Any) -> dict:
        """Have it do something, and wait for what it says at the end."""
        self.tell(*words)
        return self.hear("DONE")


@contextlib.contextmanager
def agent(*options: str, host: Optional[Host] = None, **settings: Any) -> Iterator[Agent]:
    """A process, on a host if one is given; `settings` become its Settings."""
    env = {"PYCOSLITE_" + name.upper(): str(value) for name, value in settings.items()}
    command = [sys.executable, PEER, *options]
    if host is not None:
        command.append("host=" + host.address)
    with (running if host is None else host.running)(command, ready=r"READY (\S+)", env=env) as process:
        yield Agent(process)


@contextlib.contextmanager
def two_agents(line: Line, **settings: Any) -> Iterator[tuple]:
    """(switch, hosts, agents): two processes on hosts joined by such a line."""
    with switched_hosts(2, seed=9705) as (switch, hosts):
        with agent("name=a", host=hosts[0], **settings) as a, agent("name=b", host=hosts[1], **settings) as b:
            switch.line = line
            yield switch, hosts, (a, b)


def exchanged(told: dict, count: int, back: Optional[int] = None) -> Iterator[Figure]:
    """What an exchange of `count` messages, and of `back` (None: as many) in return, has come to."""
    back = count if back is None else back
    for where, wanted, (arrived, in_order) in (("here", back, told["here"]), ("there", count, told["there"])):
        yield Figure("messages that arrived %s, of %d" % (where, wanted), arrived, "", "==", wanted)
        yield Figure("arrived %s once, and in the order of sending" % where, int(in_order), "", "==", 1)


# ======================================================================================================================
# R1: cuts
# ======================================================================================================================


def _through_cuts(count: int, budget: Callable[[], int], reset: Callable[[], bool]) -> tuple:
    """What an exchange through a proxy that cuts comes to, and how often it has cut."""
    quick = {"reconnect_min_s": 0.001, "reconnect_max_s": 0.005}
    with agent(*HIDDEN, **quick) as there:
        proxy = CuttingProxy(Location(BEHIND, there.at.port), budget, reset)
        with contextlib.closing(proxy), agent("dialler", "host=127.0.0.2", "ext_host=127.0.0.9", **quick) as here:
            return here.do("exchange", repr(proxy.at), count, 0), proxy.cuts


def cuts(soak: bool) -> Iterator[Figure]:
    """R1: connections that are cut by chance, at every byte, and that go dark."""
    count, wanted = (1_000_000, 2000) if soak else (50_000, 200)
    chance = random.Random(9705)
    length = 160 * count // wanted
    told, cut = _through_cuts(count, lambda: chance.choice((chance.randrange(1, 3000), chance.randrange(1, length))),
                              lambda: chance.random() < 0.5)
    yield from exchanged(told, count)
    yield Figure("cuts by RST or FIN, anywhere", cut, "", ">=", wanted)
    yield Figure("cuts until all was there: what a connection has carried counts", cut, "", "<=", 6 * wanted)
    step = 1 if soak else 4                     # the pure tests cut at every byte, too
    budget = iter(range(1, 1 << 30, step))
    told, cut = _through_cuts(200, lambda: next(budget), lambda: chance.random() < 0.5)
    yield from exchanged(told, 200)
    yield Figure("cuts after 1, %d, %d ... bytes" % (1 + step, 1 + 2 * step), cut, "", ">=", 600 / step)
    yield from _lanes_cut(20 if soak else 1)
    yield from _dark(5 if soak else 1)


def _lanes_cut(rounds: int) -> Iterator[Figure]:
    """Connections of links that have lanes: most lanes are cut, or end by themselves, first connections live long
    enough to get some."""
    forced = {"lanes_loss": 0, "lanes_after_s": 0, "lanes_idle_s": 0.01, "reconnect_min_s": 0.001,
              "reconnect_max_s": 0.005}
    chance, count, size, wide, cut = random.Random(9705), 10_000, 8000, 0, 0
    for _ in range(rounds):
        with agent(*HIDDEN, **forced) as there:
            proxy = CuttingProxy(Location(BEHIND, there.at.port), lambda: chance.randrange(1, 60_000_000),
                                 lambda: chance.random() < 0.5)
            with contextlib.closing(proxy), agent("dialler", "host=127.0.0.2", "ext_host=127.0.0.9", **forced) as here:
                yield from exchanged(here.do("exchange", repr(proxy.at), count, size), count)
                cut += proxy.cuts
                wide += sum(each.process.output.count("its messages go over") for each in (here, there))
    yield Figure("times that a direction changed to lanes, which were cut then", wide, "", ">=", rounds)
    yield Figure("cuts of connections, lanes included", cut, "", ">=", rounds)


def _dark(rounds: int) -> Iterator[Figure]:
    """Black holes: nothing is passed on, nothing is closed, until both ends have noticed."""
    quick = {"heartbeat_s": 0.2}
    with agent(*HIDDEN, **quick) as there:
        proxy = CuttingProxy(Location(BEHIND, there.at.port), lambda: 1 << 60, lambda: False)
        with contextlib.closing(proxy), agent("dialler", "host=127.0.0.2", "ext_host=127.0.0.9", **quick) as here:
            here.do("watch")
            here.tell("exchange", repr(proxy.at), 50_000, 0)
            for _ in range(rounds):
                while here.hear("EVENT")["event"] != "online":
                    pass
                proxy.dark = True
                while here.hear("EVENT")["event"] != "offline":
                    pass
                proxy.dark = False
            yield from exchanged(here.hear("DONE"), 50_000)
            yield Figure("black holes until the other end was offline", rounds)


# ======================================================================================================================
# R2, R3, R6: a bad line
# ======================================================================================================================


def bad_line(soak: bool) -> Iterator[Figure]:
    """R2: many small messages over a bad line."""
    count = 200_000 if soak else 20_000
    with two_agents(BAD_LINE) as (switch, _, (a, b)):
        told = a.do("exchange", repr(b.at), count, 0)
        yield from exchanged(told, count)
        yield Figure("frames lost on the line", switch.counts["lost"], "", ">", 0)
        yield Figure("frames doubled", switch.counts["doubled"], "", ">", 0)
        yield Figure("frames that overtook others", switch.counts["overtook"], "", ">", 0)
        yield Figure("messages a second, each way", count / told["seconds"], "1/s")


def throughput(soak: bool) -> Iterator[Figure]:
    """R3: how fast messages of 1 KiB get through. The first half second goes by before the line is known."""
    count = 20_000 if soak else 5000
    for there, back, how in ((count, 1, "one way"), (1, count, "to the end that dialled"), (count, count, "each way")):
        with two_agents(BAD_LINE) as (_, _hosts, (a, b)):
            told = a.do("exchange", repr(b.at), there, 1024, back)
            yield from exchanged(told, there, back)
            if there == count:
                yield Figure("messages on their way at a time, at most", told["most"], "", ">=", 500)
            yield Figure("connections that they went over", told["connections"], "", ">", 1)
            yield Figure("messages a second, " + how, count / told["seconds"], "1/s", ">=", 1000)
    with tempfile.TemporaryDirectory() as folder, switched_hosts(2, seed=9705) as (switch, hosts):
        with agent("name=a", host=hosts[0]) as a, agent("dest_path=" + folder, host=hosts[1]) as b:
            switch.line, size = BAD_LINE, 32_000_000 if soak else 8_000_000
            told = a.do("send_file", repr(b.at), size)
            yield Figure("files that arrived, of 1", 1 - abs(told["status"]), "", "==", 1)
            yield Figure("of a file, in lanes once the line is known", size / 1024 / told["seconds"], "KiB/s", ">=",
                         800)
    with two_agents(Line(delay_s=0.1)) as (_, _hosts, (a, b)):         # so little that the switch drops nothing
        told = a.do("exchange", repr(b.at), 400, 1024, 1)
        yield Figure("connections over a line that is long, and sound", told["connections"], "", "==", 1)


def no_false_deaths(soak: bool) -> Iterator[Figure]:
    """R6: who is slow, or hard to reach, is not dead."""
    seconds, hog_s, heartbeat_s = (600, 60, 5) if soak else (6, 5, 1)
    with two_agents(BAD_LINE, heartbeat_s=heartbeat_s) as (switch, _, (a, b)):
        for each in (a, b):
            each.do("watch")
        a.tell("beat", repr(b.at))
        a.hear("BEAT")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            a.hear("BEAT")
        b.do("hog", hog_s)
        a.hear("BEAT")
        deaths = [event for each in (a, b) for event in each.heard("EVENT") if event["event"] != "online"]
        yield Figure("times a living process was taken for dead", len(deaths), "", "==", 0)
        yield Figure("seconds at 5 % loss, and of a computing task", seconds + hog_s, "s")
        yield Figure("frames lost on the line", switch.counts["lost"], "", ">", 0)


# ======================================================================================================================
# R4, R5: partitions and deaths
# ======================================================================================================================


def _healed(switch: Switch, hosts: list, a: Agent, cut_s: float, one_way: bool) -> float:
    """Part two hosts for so long; seconds from the healing to the first message that is confirmed."""
    switch.part(*hosts, one_way=one_way)
    time.sleep(cut_s)                   # the length of the cut is what is tried
    healed = time.monotonic()
    switch.heal()
    while True:
        beat = a.hear("BEAT")
        if beat["t"] > healed:
            return beat["t"] - healed


def healing(soak: bool) -> Iterator[Figure]:
    """R4: after a partition messages flow again by themselves."""
    cuts_s = (1, 5, 9, 13, 20, 40, 58, 20, 40) if soak else (0.5, 2, 4)
    goal = ("<=", 2) if soak else ("", 0)
    with two_agents(Line(delay_s=0.005), **({} if soak else {"heartbeat_s": 0.5})) as (switch, hosts, (a, b)):
        a.do("watch")
        a.tell("beat", repr(b.at))
        a.hear("BEAT")
        for number, cut_s in enumerate(cuts_s):
            took_s = _healed(switch, hosts, a, cut_s, number % 3 == 2)
            kind = "a cut of %g s%s" % (cut_s, ", one way" * (number % 3 == 2))
            yield Figure("usable again after " + kind, took_s, "s", *goal)
        yield Figure("given up", sum(event["event"] == "lost" for event in a.heard("EVENT")), "", "==", 0)
    settings, cuts_s = ({}, (75, 80)) if soak else ({"heartbeat_s": 0.3, "give_up_s": 2.0}, (4.5,))
    with two_agents(Line(delay_s=0.005), **settings) as (switch, hosts, (a, b)):
        a.do("watch")
        a.tell("beat", repr(b.at))
        a.hear("BEAT")
        for number, cut_s in enumerate(cuts_s, 1):
            took_s = _healed(switch, hosts, a, cut_s, False)
            goal = ("<=", 8) if soak else ("", 0)
            yield Figure("usable again after %g s, when it had been given up" % cut_s, took_s, "s", *goal)
            lost = [event for event in a.heard("EVENT") if event["event"] == "lost"]
            yield Figure("times that it had been given up until then", len(lost), "", "==", number)


def _until(event: str, a: Agent, begin: Callable[[], Any]) -> float:
    """Seconds from `begin()` until `a` says so of its peer."""
    began = time.monotonic()
    begin()
    while True:
        told = a.hear("EVENT")
        if told["event"] == event:
            return told["t"] - began


def deaths(soak: bool) -> Iterator[Figure]:
    """R5: a process that is killed, one that is stopped, and a host that is silent."""
    heartbeat_s = 5 if soak else 0.5
    limit = ("<=", 3 * heartbeat_s + 0.05) if soak else ("", 0)
    for kind in ("killed", "killed while messages flow", "stopped", "stopped while messages flow"):
        with agent("name=a", heartbeat_s=heartbeat_s) as a, agent("name=b", heartbeat_s=heartbeat_s) as b:
            a.do("watch")
            a.do("exchange", repr(b.at), 10, 0)
            if "flow" in kind:
                a.tell("beat", repr(b.at))
                a.hear("BEAT")
            if kind.startswith("killed"):
                took_s = _until("lost", a, lambda: b.process.signal(signal.SIGKILL))
                yield Figure("process %s: known after" % kind, took_s, "s", *(("<=", 1) if soak else ("", 0)))
            else:
                took_s = _until("offline", a, lambda: b.process.signal(signal.SIGSTOP))
                yield Figure("process %s: known after" % kind, took_s, "s", *limit)
                b.process.signal(signal.SIGKILL)
    with two_agents(Line(), heartbeat_s=heartbeat_s) as (switch, hosts, (a, b)):
        a.do("watch")
        a.do("exchange", repr(b.at), 10, 0)
        took_s = _until("offline", a, lambda: switch.part(*hosts))
        yield Figure("silent host: known after", took_s, "s", *limit)


# ======================================================================================================================
# R7, R8: what becomes of messages to the dead
# ======================================================================================================================


def _accounts(told: dict, arrived: list, count: int) -> Iterator[Figure]:
    """Whether each message that was sent has arrived or is reported, and no report is wrong."""
    reports, accepted = dict(map(tuple, told["told"])), told["accepted"]
    silently = set(accepted) - set(arrived) - set(reports)
    yield Figure("messages sent, of %d" % count, len(accepted))
    yield Figure("arrived", len(arrived))
    yield Figure("reported", len(reports))
    yield Figure("neither arrived nor reported", len(silently), "", "==", 0)
    wrong = [number for number in arrived if reports.get(number) == "never sent"]
    yield Figure("arrived, and reported as never sent", len(wrong), "", "==", 0)
    yield Figure("arrived twice or out of order", sum(one != n for n, one in enumerate(arrived)), "", "==", 0)
    yield Figure("reported, and not sent", len(set(reports) - set(accepted)), "", "==", 0)


def _sent_to_the_dead(count: int, size: int, when: str, **settings: Any) -> Iterator[Figure]:
    """Send to a process that is dead before the first message (`when` is "before"), or dies in the middle."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "arrived")
        log.touch()
        with agent("name=a", **settings) as a, agent("name=b", "log=%s" % log, **settings) as b:
            a.do("send", repr(b.at), count, size)
            if when == "before":
                b.process.signal(signal.SIGSTOP)        # its port takes connections, nobody answers
            a.tell("go")
            if when == "between":
                while a.hear("SENT")["number"] < count // 2:
                    pass
                b.process.signal(signal.SIGKILL)
            told = a.hear("DONE")
            b.process.signal(signal.SIGKILL)
            yield from _accounts(told, [int(line) for line in log.read_text().split()], count)
            yield Figure("memory that the queue took", told["grown_kib"] / 1024, "MiB", "<=", 80)


def bounded_queue(soak: bool) -> Iterator[Figure]:
    """R7: messages to a dead peer, of all sizes; those of more than 6 kB fill the window."""
    quick = {} if soak else {"heartbeat_s": 0.3, "give_up_s": 1.0}
    sizes = (0, 100, 1000, 2000, 4000, 6000, 20_000, 60_000, 70_000, 300_000, 1 << 20)
    for size in sizes if soak else (0, 20_000, 70_000):
        yield from _sent_to_the_dead(10_000 if size <= 6000 else max(150, 80_000_000 // size), size, "before", **quick)


def crashes(soak: bool) -> Iterator[Figure]:
    """R8: a process dies while messages arrive."""
    for size in (0, 3000, 100_000) if soak else (0,):
        yield from _sent_to_the_dead(20_000 if size < 10_000 else 2000, size, "between")


# ======================================================================================================================
# R9: what is left behind
# ======================================================================================================================


def _held_by(process: Any) -> Dict[str, int]:
    """Descriptors, threads, and KiB of memory of a process (Linux)."""
    with open("/proc/%d/statm" % process.pid) as file:
        memory = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    return {"descriptors": len(os.listdir("/proc/%d/fd" % process.pid)),
            "threads": len(os.listdir("/proc/%d/task" % process.pid)), "KiB of memory": memory}


def _more_open(least: list) -> bool:
    """Whether more descriptors are open than in the third before: in a few rounds there may have been a connection each
    time one looked; what leaks never comes back."""
    return len(least) > 1 and any(least[-1][end]["descriptors"] > least[-2][end]["descriptors"] for end in (0, 1))


def growth(soak: bool) -> Iterator[Figure]:
    """R9: two processes do everything that processes do together, again and again; each third of the time counts by the
    least that was held in it, as large messages come and go."""
    if not os.path.isdir("/proc/self/fd"):
        raise unittest.SkipTest("needs /proc to see what a process holds")
    seconds, least = 600 if soak else 5, []
    given_back = {"MALLOC_MMAP_THRESHOLD_": "65536"}        # glibc would keep what long messages took, in large steps
    with tempfile.TemporaryDirectory() as folder, running(
            [sys.executable, KINDS, "serve", folder], ready=r"READY (\S+)", env=given_back) as there, running(
            [sys.executable, KINDS, "again", there.match.group(1), folder], "ROUND 1$", env=given_back) as here:
        rounds = 1
        for third in range(3):
            seen, until = [], time.monotonic() + seconds / 3
            while not seen or time.monotonic() < until or _more_open(least) and time.monotonic() < until + COME_S:
                rounds += 1
                here.wait_for("ROUND %d$" % rounds, COME_S)
                seen.append([_held_by(process) for process in (here, there)])
                found = [{kind: min(held[end][kind] for held in seen) for kind in seen[0][end]} for end in (0, 1)]
                least[third:] = [found]
    yield Figure("rounds of %d kinds of messages, and cuts" % (here.output.count("ok ") // rounds), rounds)
    for end, what in enumerate(("asks", "serves")):
        for kind, most in (("descriptors", 0), ("threads", 2), ("KiB of memory", 4096 if soak else 16384)):
            grown = least[2][end][kind] - least[1][end][kind]
            yield Figure("%s more at the end, of the one who %s" % (kind, what), grown, "", "<=", most)


ROWS: Dict[str, Row] = {"R1": cuts, "R2": bad_line, "R3": throughput, "R4": healing, "R5": deaths,
                        "R6": no_false_deaths, "R7": bounded_queue, "R8": crashes, "R9": growth}

if __name__ == "__main__":
    sys.exit(main(ROWS))
