"""A switch between hosts (network namespaces) that delays, loses, doubles and reorders frames, and parts hosts.

    with switched_hosts(2) as (switch, (a, b)):
        switch.line = Line(delay_s=0.025, loss=0.05, duplicate=0.01, reorder=0.1)
        with a.running([...]), b.running([...]):
            switch.part(a, b)                   # nothing gets from a to b, or back
            switch.part(a, b, one_way=True)     # nothing gets from a to b
            switch.heal()

Each host has one Ethernet interface, a TAP device whose other end is a descriptor of this process; a thread takes the
frames from one and gives them to the others. So it works where the kernel has no ``netem``. Needs root and Linux.
"""
from __future__ import annotations

import contextlib
import os
import random
import select
import struct
import threading
import time
import unittest
from heapq import heappop, heappush
from typing import Dict, Iterator, List, NamedTuple, Set, Tuple

from .support import Host, empty_hosts

_TUN = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000           # Ethernet frames, with nothing before them
_LONGEST = 65536
_BROADCAST = b"\xff" * 6


class Line(NamedTuple):
    """What happens to a frame on its way through the switch; probabilities are 0 to 1."""

    delay_s: float = 0.0        # every frame takes this long ...
    jitter_s: float = 0.0       # ... and up to this much longer, by chance (frames overtake each other then)
    loss: float = 0.0           # does not arrive
    duplicate: float = 0.0      # arrives twice
    reorder: float = 0.0        # arrives at once, before those that wait


class Switch:
    """Passes frames on between the hosts that are plugged in; made by `switched_hosts`. Attributes may be changed any
    time: `line`, which holds for all frames. `counts`: how many were "passed", "lost", "doubled", "overtook", "parted".
    """

    def __init__(self, seed: int = 0) -> None:
        self.line = Line()
        self.counts: Dict[str, int] = dict.fromkeys(("passed", "lost", "doubled", "overtook", "parted"), 0)
        self._chance = random.Random(seed)
        self._ports: Dict[int, str] = {}                    # descriptor -> name of the host behind it
        self._learned: Dict[bytes, int] = {}                # MAC address -> descriptor
        self._parted: Set[Tuple[str, str]] = set()          # (from, to), by names of hosts
        self._waiting: List[tuple] = []                     # heap of (when, number, descriptor, frame)
        self._number = 0
        self._wake, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._run, name="switch")

    # -- what tests call: any thread -----------------------------------------------------------------------------------

    def plug(self, host: Host) -> None:
        """Give `host` its interface; before `start`."""
        import fcntl
        port = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
        self._ports[port] = host.name
        fcntl.ioctl(port, _TUNSETIFF, struct.pack("16sH22x", host.interface.encode(), _IFF_TAP | _IFF_NO_PI))
        host.take(host.interface)

    def start(self) -> None:
        """Begin to pass frames on."""
        self._thread.start()

    def close(self) -> None:
        """Stop, and take the interfaces away."""
        os.close(self._stop)
        if self._thread.ident is not None:
            self._thread.join()
        for descriptor in [self._wake, *self._ports]:
            os.close(descriptor)

    def part(self, one: Host, other: Host, one_way: bool = False) -> None:
        """Let nothing pass from `one` to `other` any more, nor back unless it is `one_way`; what waits is lost too."""
        pairs = {(one.name, other.name)} | (set() if one_way else {(other.name, one.name)})
        self._parted = self._parted | pairs                 # a new set: the thread reads it without a lock

    def heal(self) -> None:
        """Let everything pass again."""
        self._parted = set()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        poll = select.poll()
        for descriptor in [self._wake, *self._ports]:
            poll.register(descriptor, select.POLLIN)
        while True:
            left = max(0.0, self._waiting[0][0] - time.monotonic()) * 1000 if self._waiting else None
            for descriptor, _ in poll.poll(left):
                if descriptor == self._wake:
                    return
                self._take(descriptor)
            self._pass_on(time.monotonic())

    def _take(self, port: int) -> None:
        """All frames that a host has sent."""
        with contextlib.suppress(BlockingIOError):
            while True:
                frame = os.read(port, _LONGEST)
                self._learned[frame[6:12]] = port
                target = self._learned.get(frame[:6])
                for other in [target] if target is not None else [one for one in self._ports if one != port]:
                    self._send(port, other, frame)

    def _send(self, port: int, other: int, frame: bytes) -> None:
        """Have `frame` wait for its time, or lose it."""
        line, chance = self.line, self._chance.random
        if (self._ports[port], self._ports[other]) in self._parted:
            self.counts["parted"] += 1
        elif chance() < line.loss:
            self.counts["lost"] += 1
        else:
            twice = chance() < line.duplicate
            self.counts["doubled"] += twice
            for _ in range(1 + twice):
                overtakes = chance() < line.reorder
                self.counts["overtook"] += overtakes
                delay_s = 0.0 if overtakes else line.delay_s + line.jitter_s * chance()
                self._number += 1
                heappush(self._waiting, (time.monotonic() + delay_s, self._number, port, other, frame))

    def _pass_on(self, now: float) -> None:
        """Give the hosts the frames whose time has come."""
        while self._waiting and self._waiting[0][0] <= now:
            _, _, port, other, frame = heappop(self._waiting)
            if (self._ports[port], self._ports[other]) in self._parted:
                self.counts["parted"] += 1
                continue
            with contextlib.suppress(OSError):              # the interface is down, or its queue is full
                os.write(other, frame)
                self.counts["passed"] += 1


@contextlib.contextmanager
def switched_hosts(count: int, seed: int = 0) -> Iterator[Tuple[Switch, List[Host]]]:
    """A switch with so many hosts plugged in, all on one network; removed at the end. Raises SkipTest, with the reason,
    where this cannot be had."""
    if not os.path.exists(_TUN):
        raise unittest.SkipTest("a switch needs TAP devices (%s)" % _TUN)
    with contextlib.ExitStack() as stack:
        hosts = stack.enter_context(empty_hosts(count))
        switch = Switch(seed)
        stack.callback(switch.close)
        for host in hosts:
            try:
                switch.plug(host)
            except OSError as error:
                raise unittest.SkipTest("cannot make a TAP device: %s" % error) from None
        switch.start()
        yield switch, hosts
