"""Partitions as long as real ones, with the settings that programs have: two and three hosts, of which two are parted.

All processes send to each other all the time, each by tasks of its own. What is asserted is the order of events and the
fate of each message; how long it takes until traffic resumes is for ``python3 -m tests.reliability R4 --soak``.
"""
from __future__ import annotations

import contextlib
import itertools
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List, Tuple

from pycoslite import Settings
from tests.reliability import Agent, agent
from tests.support import TestCase
from tests.switch import switched_hosts

HOSTS = (2, 3)
PAIR = ("a", "b"), ("b", "a")           # who is parted, either way
BRIEF_S, LONG_S = 20, 75                # shorter and longer than what an unreachable peer is waited for


class Parted:
    """So many hosts, each with a process, of which the first two are parted for some seconds. `run` does all that; then
    `events`, `fates`, `heard` and `delivered` tell what happened."""

    def __init__(self, count: int, cut_s: float) -> None:
        self.count, self.cut_s = count, cut_s
        self.given_up = cut_s > Settings().give_up_s
        self.events: Dict[Tuple[str, str], List[str]] = {}      # (who, whom): what came and went
        self.fates: Dict[Tuple[str, str], dict] = {}            # (from, to): accepted, reports, last
        self.heard: Dict[Tuple[str, str], List[int]] = {}       # (from, to): numbers that arrived
        self.delivered: List[int] = []                          # results of what was delivered during the cut

    def run(self) -> "Parted":
        """The whole story."""
        with contextlib.ExitStack() as stack:
            switch, hosts = stack.enter_context(switched_hosts(self.count))
            agents = [stack.enter_context(agent("name=" + letter, host=host)) for letter, host in zip("abc", hosts)]
            names = dict(zip("abc", agents))
            self._begin(names)
            switch.part(*hosts[:2])
            self._while_parted(names)
            healed = {name: len(each.process.output) for name, each in names.items()}
            sent = {name: max(told["number"] for told in each.heard("SENT")) for name, each in names.items()}
            switch.heal()
            for one, other in itertools.permutations(names, 2):
                self._flows(names[other], one, healed[other], sent[one])
            self._end(names)
        return self

    @staticmethod
    def _flows(there: Agent, by: str, start: int, number: int) -> None:
        """Wait until a number greater than that comes through from `by`."""
        told: Dict[str, Any] = {"number": 0, "end": start}
        while told["number"] <= number:
            told = there.finds("HEARD", told["end"], by=by)

    def _begin(self, names: Dict[str, Agent]) -> None:
        """Have all talk to all."""
        for each in names.values():
            each.do("watch")
            each.do("listen")
        for one, other in itertools.permutations(names, 2):
            names[one].tell("stream", repr(names[other].at))
        for one, other in itertools.permutations(names, 2):
            self._flows(names[other], one, 0, 1)
        for one, other in PAIR:
            names[one].do("deliver", repr(names[other].at))

    def _while_parted(self, names: Dict[str, Agent]) -> None:
        """The cut: as long as it is meant to be, and until both ends have noticed, which they may do late on a machine
        that is busy."""
        began = time.monotonic()
        for one, _ in PAIR:
            names[one].tell("go")
        for one, other in PAIR:
            names[one].finds("EVENT", 0, peer=other, event="lost" if self.given_up else "offline")
        if self.given_up:               # what they are told then does not wait for the line
            self.delivered = [names[one].finds("DELIVERED", 0)["status"] for one, _ in PAIR]
        for one, other in itertools.permutations(names, 2):
            if "c" in (one, other):     # whose lines are whole
                self._flows(names[other], one, len(names[other].process.output), 0)
        time.sleep(max(0.0, began + self.cut_s - time.monotonic()))     # the length of the cut is what is tried

    def _end(self, names: Dict[str, Agent]) -> None:
        """Have all come to an end, and collect what they have seen."""
        if not self.given_up:
            self.delivered = [names[one].finds("DELIVERED", 0)["status"] for one, _ in PAIR]
        for each in names.values():
            each.tell("stop")
        for one, other in itertools.permutations(names, 2):
            fate = self.fates[one, other] = names[one].finds("DONE", 0, to=repr(names[other].at))
            names[other].finds("HEARD", 0, by=one, number=fate["accepted"][-1] + 1)     # delivered, but said yet?
        for one, other in itertools.permutations(names, 2):
            self.heard[one, other] = [told["number"] for told in names[other].heard("HEARD") if told["by"] == one]
            self.events[one, other] = [told["event"] for told in names[one].heard("EVENT") if told["peer"] == other]


class PartitionTest(TestCase):
    timeout_s = 400

    def test_partitions(self) -> None:
        """All at once: they only wait."""
        cases = list(itertools.product(HOSTS, (BRIEF_S, LONG_S)))
        with ThreadPoolExecutor(len(cases)) as pool:
            for count, cut_s, future in [(count, cut_s, pool.submit(Parted(count, cut_s).run))
                                         for count, cut_s in cases]:
                with self.subTest(hosts=count, seconds=cut_s):
                    parted = future.result()        # raises SkipTest where there are no namespaces
                    for one, other in itertools.permutations("abc"[:count], 2):
                        self.check_pair(parted, one, other)

    def check_pair(self, parted: Parted, one: str, other: str) -> None:
        """What one has sent to the other, and seen of it."""
        events, fate, heard = parted.events[one, other], parted.fates[one, other], parted.heard[one, other]
        accepted, reports = fate["accepted"], dict(map(tuple, fate["reports"]))
        self.assertEqual(heard, sorted(set(heard)), "%s to %s: doubled or reordered" % (one, other))
        self.assertEqual(fate["last"], 1)
        self.assertEqual(heard[-1], accepted[-1] + 1)
        if "c" in (one, other):
            self.assertEqual(events, ["online"])
        elif parted.given_up:
            self.assertEqual(events, ["online", "offline", "lost", "online"])
            self.assertEqual(parted.delivered, [0, 0])
            self.check_reports(accepted, heard, fate["reports"])
            return
        else:
            self.assertEqual(events, ["online", "offline", "online"])
            self.assertEqual(parted.delivered, [1, 1])
        self.assertEqual(heard[:-1], accepted)
        self.assertEqual(reports, {})

    def check_reports(self, accepted: List[int], heard: List[int], reports: List[tuple]) -> None:
        """Of a peer that was given up: each message has arrived or is reported, once and in order, as it was."""
        numbers = [number for number, _ in reports]
        self.assertTrue(numbers)
        self.assertEqual(numbers, sorted(set(numbers)))
        self.assertEqual(set(accepted) - set(heard) - set(numbers), set())
        self.assertLessEqual(set(numbers), set(accepted))
        never_sent = {number for number, status in reports if status == "never sent"}
        self.assertTrue(never_sent)
        self.assertFalse(never_sent & set(heard))


if __name__ == "__main__":
    unittest.main()
