"""A kernel that stands still until told: time moves only while it sleeps, and it sleeps no real time.

    kernel = FakeKernel(test)          closed when the test ends
    task = kernel.spawn(function)      as ever
    kernel.once()                      one step of every ready task
    kernel.settle()                    runs all there is to do now
    kernel.run()                       ... and all that timers will bring
"""
from __future__ import annotations

from _thread import get_ident
from typing import Any, Callable, Optional
from unittest import mock

import pycoslite
from tests.support import FakeClock


class FakePoller:
    """Watches nothing; a wait moves the clock on by its timeout."""

    nests = False

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.waits = 0

    def register(self, fd: int, events: int, handler: Callable) -> None:
        """Ignored."""

    def unregister(self, fd: int) -> None:
        """Ignored."""

    def poll(self, timeout: Optional[float]) -> list:
        """Sleep; not at all where only something from outside could end it."""
        self.waits += 1
        self.clock.advance(timeout or 0)
        return []

    def close(self) -> None:
        """Nothing to close."""


class FakeKernel(pycoslite.Kernel):
    """A kernel run by the thread of its test."""

    def __init__(self, test: Any) -> None:
        clock = FakeClock()
        super().__init__(clock=clock, poller=FakePoller(clock))
        self.owner = get_ident()
        test.addCleanup(self.close)

    def once(self) -> None:
        """Step every task that is ready, once."""
        with mock.patch.object(pycoslite, "PASSES", 1):
            self.turn(0)

    def settle(self) -> None:
        """Turn until there is nothing to do at this time."""
        while self.timeout() == 0:
            self.turn(0)

    def run(self) -> None:
        """Turn until only something from outside could bring work."""
        while self.timeout() is not None:
            self.turn()

    def result(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """Exit value of a task that is run to its end."""
        task = self.spawn(function, *args, **kwargs)
        self.run()
        if task.is_alive():
            raise AssertionError("%r waits for something that does not come: %r" % (task, task.wait))
        return task.outcome
