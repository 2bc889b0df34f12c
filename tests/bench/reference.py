"""The least a scheduler of generators can do and still offer tasks, mailboxes and timers: the limit of L1 and L3-L5.

No threads, no errors, no names, no priorities, no network: what is left is the deque, the heap and the generators,
which no implementation in Python can do without.
"""
from __future__ import annotations

import time
from collections import deque
from heapq import heappop, heappush
from typing import Any, Deque, Generator, List, Optional, Tuple

from .harness import clock


class Loop:
    """Runs strands until none is ready and no timer is left."""

    def __init__(self) -> None:
        self.ready: Deque["Strand"] = deque()
        self.timers: List[Tuple[float, int, "Strand"]] = []
        self.made = 0

    def wake_due(self) -> None:
        """Make the strands ready whose time has come; sleep until the first when nothing else is to be done."""
        timers = self.timers
        while True:
            now = clock()
            while timers and timers[0][0] <= now:
                strand = heappop(timers)[2]
                strand.parked = False
                self.ready.append(strand)
            if self.ready or not timers:
                return
            time.sleep(max(0.0, timers[0][0] - now))

    def run(self) -> None:
        """Pass after pass over what is ready."""
        ready = self.ready
        take, put = ready.popleft, ready.append
        while ready or self.timers:
            if self.timers:
                self.wake_due()
            for _ in range(len(ready)):
                strand = take()
                try:
                    value = strand.advance(strand.value)
                except StopIteration as stop:
                    strand.result = stop.value
                    strand.advance = None
                else:
                    if not strand.parked:
                        strand.value = value
                        put(strand)


class Strand:
    """A generator with a mailbox; its methods return what the generator is to yield."""

    __slots__ = ("loop", "advance", "value", "parked", "mailbox", "result")

    def __init__(self, loop: Loop, generator: Generator) -> None:
        self.loop = loop
        self.advance = generator.send
        self.value: Any = None
        self.parked = False
        self.mailbox: Optional[Deque[Any]] = None
        loop.ready.append(self)

    def send(self, message: Any) -> None:
        """Hand a message over, or keep it until asked for."""
        if self.parked:
            self.parked = False
            self.value = message
            self.loop.ready.append(self)
        elif self.mailbox is None:
            self.mailbox = deque((message,))
        else:
            self.mailbox.append(message)

    def receive(self) -> Any:
        """The oldest message; parks when there is none."""
        if self.mailbox:
            return self.mailbox.popleft()
        self.parked = True
        return None

    def park(self) -> None:
        """Not ready until somebody sends."""
        self.parked = True

    def sleep(self, seconds: float) -> None:
        """Not ready for so long."""
        loop = self.loop
        loop.made += 1                              # breaks ties, so that the heap never compares strands
        self.parked = True
        heappush(loop.timers, (clock() + seconds, loop.made, self))
