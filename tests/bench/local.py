"""L1-L5, D6a: what tasks cost within one process. A library is imported by the contestant that needs it, no other."""
from __future__ import annotations

import os
import random
import time
from collections import deque
from typing import Any, Dict, List

from .harness import Measured, clock, contestant, event_loops, expect, percentile, run_async, run_task
from .reference import Loop, Strand

SWITCHERS = 100         # tasks of L2
BURST = 100             # messages of L3b between two yields of the sender
BUDGET = 64             # messages of L3b a receiver may take in one turn
SUBSCRIBERS = 50        # of D6a
RELAY = 10              # messages of D6a between two yields of the publisher
LONGEST_S = 2.0         # longest sleep of L4; with few sleepers (a smoke run) the wait is not worth it:
LONGEST_SMOKE_S = 0.05


# ---- L1: spawn and join ----------------------------------------------------------------------------------------------

def _joined(n: int, total: int, seconds: float) -> Measured:
    expect(total, n * (n - 1) // 2, "sum of results")
    return Measured(n, seconds)


@contestant("L1", "limit")
def spawn_limit(n: int) -> Measured:
    """Strands that return their number at once."""
    def number(i):
        return i
        yield
    loop = Loop()
    start = clock()
    strands = [Strand(loop, number(i)) for i in range(n)]
    loop.run()
    total = sum(strand.result for strand in strands)
    return _joined(n, total, clock() - start)


@contestant("L1", "ours")
def spawn_ours(n: int) -> Measured:
    """As many tasks, joined by one that adds up their results."""
    import pycoslite

    def number(i):
        return i
        yield

    def main():
        start = clock()
        tasks = [pycoslite.Task(number, i) for i in range(n)]
        total = 0
        for task in tasks:
            total += yield task.finish()
        return total, clock() - start
    return _joined(n, *run_task(main))


@event_loops("L1")
def spawn_asyncio(library: str, n: int) -> Measured:
    """As many tasks of asyncio."""
    import asyncio

    async def number(i):
        return i

    async def main():
        start = clock()
        tasks = [asyncio.ensure_future(number(i)) for i in range(n)]
        total = 0
        for task in tasks:
            total += await task
        return total, clock() - start
    return _joined(n, *run_async(library, main))


# ---- L2: bare switch -------------------------------------------------------------------------------------------------

def _switched(n: int, ended: List[int], seconds: float) -> Measured:
    expect(ended, [n] * SWITCHERS, "switches of each task")
    return Measured(n * SWITCHERS, seconds)


@contestant("L2", "limit")
def switch_limit(n: int) -> Measured:
    """A deque of `generator.send`, with neither tasks nor values."""
    ended: List[int] = []

    def switcher():
        for _ in range(n):
            yield
        ended.append(n)
    start = clock()
    ready = deque(switcher().send for _ in range(SWITCHERS))
    take, put = ready.popleft, ready.append
    while ready:
        advance = take()
        try:
            advance(None)
        except StopIteration:
            pass
        else:
            put(advance)
    return _switched(n, ended, clock() - start)


@contestant("L2", "ours")
def switch_ours(n: int) -> Measured:
    """Tasks that only yield."""
    import pycoslite
    ended: List[int] = []

    def switcher():
        for _ in range(n):
            yield
        ended.append(n)

    def main():
        start = clock()
        for task in [pycoslite.Task(switcher) for _ in range(SWITCHERS)]:
            yield task.finish()
        return clock() - start
    return _switched(n, ended, run_task(main))


@event_loops("L2")
def switch_asyncio(library: str, n: int) -> Measured:
    """`sleep(0)` is asyncio's bare switch."""
    import asyncio
    ended: List[int] = []

    async def switcher():
        for _ in range(n):
            await asyncio.sleep(0)
        ended.append(n)

    async def main():
        start = clock()
        await asyncio.gather(*[switcher() for _ in range(SWITCHERS)])
        return clock() - start
    return _switched(n, ended, run_async(library, main))


# ---- L3: ping-pong ---------------------------------------------------------------------------------------------------

def _answered(n: int, last: int, seconds: float) -> Measured:
    expect(last, n, "number after so many increments")
    return Measured(n, seconds)


@contestant("L3", "limit")
def ping_limit(n: int) -> Measured:
    """Two strands; the message carries whom to answer."""
    loop = Loop()

    def pong():
        me = strands[0]
        while True:
            asker, number = yield me.receive()
            if number is None:
                return
            asker.send(number + 1)

    def ping():
        other, me = strands
        number = 0
        start = clock()
        for _ in range(n):
            other.send((me, number))
            number = yield me.receive()
        seconds = clock() - start
        other.send((me, None))
        return number, seconds
    strands: List[Strand] = []
    strands.append(Strand(loop, pong()))
    strands.append(Strand(loop, ping()))
    loop.run()
    return _answered(n, *strands[1].result)


@contestant("L3", "ours")
def ping_ours(n: int) -> Measured:
    """Two tasks; the message carries whom to answer."""
    import pycoslite

    def pong(task=None):
        while True:
            asker, number = yield task.receive()
            if number is None:
                return
            asker.send(number + 1)

    def ping(task=None):
        other = pycoslite.Task(pong)
        number = 0
        start = clock()
        for _ in range(n):
            other.send((task, number))
            number = yield task.receive()
        seconds = clock() - start
        other.send((task, None))
        return number, seconds
    return _answered(n, *run_task(ping))


@event_loops("L3")
def ping_asyncio(library: str, n: int) -> Measured:
    """Two tasks and a queue for each."""
    import asyncio

    async def main():
        there, back = asyncio.Queue(), asyncio.Queue()

        async def pong():
            while True:
                number = await there.get()
                if number is None:
                    return
                back.put_nowait(number + 1)
        other = asyncio.ensure_future(pong())
        number = 0
        start = clock()
        for _ in range(n):
            there.put_nowait(number)
            number = await back.get()
        seconds = clock() - start
        there.put_nowait(None)
        await other
        return number, seconds
    return _answered(n, *run_async(library, main))


# ---- L3b: one way ----------------------------------------------------------------------------------------------------

def _taken(n: int, count: int, seconds: float) -> Measured:
    expect(count, n, "messages taken")
    return Measured(n, seconds)


class _Direct:
    """A strand for `one_way_limit`, whose loop looks into the mailbox itself."""

    __slots__ = ("advance", "value", "parked", "mailbox", "result")

    def __init__(self, generator) -> None:
        self.advance = generator.send
        self.value = self.result = None
        self.parked = False
        self.mailbox: Any = deque()


_RECEIVE = object()     # what a _Direct yields to be given a message


def _take_turn(strand: _Direct, ready) -> None:
    """Run one strand; while it finds messages it goes on at once, at most BUDGET times."""
    advance, value, budget = strand.advance, strand.value, BUDGET
    while budget:
        value = advance(value)
        if value is not _RECEIVE:
            break
        if not strand.mailbox:
            strand.parked = True
            return
        value = strand.mailbox.popleft()
        budget -= 1
    strand.value = value
    ready.append(strand)


@contestant("L3b", "limit")
def one_way_limit(n: int) -> Measured:
    """The sender rests after every BURST messages; the receiver does not return to the loop for each."""
    def sink():
        count = 0
        while (yield _RECEIVE) is not None:
            count += 1
        return count

    def send(message):
        if target.parked:
            target.parked = False
            target.value = message
            ready.append(target)
        else:
            target.mailbox.append(message)

    def source():
        for i in range(n):
            send(i)
            if not i % BURST:
                yield
        send(None)
    start = clock()
    target = _Direct(sink())
    ready = deque((target, _Direct(source())))
    while ready:
        strand = ready.popleft()
        try:
            _take_turn(strand, ready)
        except StopIteration as stop:
            strand.result = stop.value
    return _taken(n, target.result, clock() - start)


@contestant("L3b", "ours")
def one_way_ours(n: int) -> Measured:
    """The same with tasks."""
    import pycoslite

    def sink(task=None):
        count = 0
        while (yield task.receive()) is not None:
            count += 1
        return count

    def source():
        start = clock()
        target = pycoslite.Task(sink)
        for i in range(n):
            target.send(i)
            if not i % BURST:
                yield
        target.send(None)
        count = yield target.finish()
        return count, clock() - start
    return _taken(n, *run_task(source))


@event_loops("L3b")
def one_way_asyncio(library: str, n: int) -> Measured:
    """The same through a queue."""
    import asyncio

    async def main():
        queue = asyncio.Queue()

        async def sink():
            count = 0
            while (await queue.get()) is not None:
                count += 1
            return count
        start = clock()
        target = asyncio.ensure_future(sink())
        for i in range(n):
            queue.put_nowait(i)
            if not i % BURST:
                await asyncio.sleep(0)
        queue.put_nowait(None)
        return await target, clock() - start
    return _taken(n, *run_async(library, main))


# ---- L4: timers ------------------------------------------------------------------------------------------------------

def _delays(n: int) -> List[float]:
    """The same random sleeps for every contestant."""
    longest = LONGEST_S if n >= 10_000 else LONGEST_SMOKE_S
    dice = random.Random(1)
    return [dice.random() * longest for _ in range(n)]


def _woken(n: int, late: List[float], cpu: float) -> Measured:
    """Rate per CPU second: the wall clock only shows the longest sleep. `late` counts from each sleeper's own start."""
    expect(len(late), n, "sleepers that woke")
    notes: Dict[str, float] = {"cpu_s": round(cpu, 3), "early": sum(seconds < 0 for seconds in late)}
    for key, share in (("late_p50_ms", 0.50), ("late_p99_ms", 0.99)):
        notes[key] = round(percentile(late, share) * 1e3, 2)
    return Measured(n, cpu, notes)


@contestant("L4", "limit")
def timers_limit(n: int) -> Measured:
    """Strands on the reference loop's heap."""
    late: List[float] = []
    loop = Loop()
    strands: List[Strand] = []

    def sleeper(i, delay):
        begin = clock()
        yield strands[i].sleep(delay)
        late.append(clock() - begin - delay)
    start = time.process_time()
    for i, delay in enumerate(_delays(n)):
        strands.append(Strand(loop, sleeper(i, delay)))
    loop.run()
    return _woken(n, late, time.process_time() - start)


@contestant("L4", "ours")
def timers_ours(n: int) -> Measured:
    """Sleeping tasks, joined."""
    import pycoslite
    late: List[float] = []

    def sleeper(delay, task=None):
        begin = clock()
        yield task.sleep(delay)
        late.append(clock() - begin - delay)

    def main():
        start = time.process_time()
        for task in [pycoslite.Task(sleeper, delay) for delay in _delays(n)]:
            yield task.finish()
        return time.process_time() - start
    return _woken(n, late, run_task(main))


@event_loops("L4")
def timers_asyncio(library: str, n: int) -> Measured:
    """Sleeping tasks, gathered."""
    import asyncio
    late: List[float] = []

    async def sleeper(delay):
        begin = clock()
        await asyncio.sleep(delay)
        late.append(clock() - begin - delay)

    async def main():
        start = time.process_time()
        await asyncio.gather(*[sleeper(delay) for delay in _delays(n)])
        return time.process_time() - start
    return _woken(n, late, run_async(library, main))


# ---- L5: memory ------------------------------------------------------------------------------------------------------

def _resident_bytes() -> int:
    """Memory of this process that is really there. Linux only, like the figure in the goal."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _idle(n: int, reached: int, grown: int) -> Measured:
    expect(reached, n, "tasks that began to wait")
    return Measured(n, max(1, grown) / (1 << 20), {"bytes_per_task": round(grown / n, 1)})


@contestant("L5", "limit")
def memory_limit(n: int) -> Measured:
    """Parked strands."""
    count = [0]
    loop = Loop()
    strands: List[Strand] = []

    def idler(i):
        count[0] += 1
        yield strands[i].park()
    before = _resident_bytes()
    for i in range(n):
        strands.append(Strand(loop, idler(i)))
    loop.run()
    return _idle(n, count[0], _resident_bytes() - before)


@contestant("L5", "ours")
def memory_ours(n: int) -> Measured:
    """Suspended tasks."""
    import pycoslite
    count = [0]

    def idler(task=None):
        count[0] += 1
        yield task.suspend()

    def main(task=None):
        yield                                       # everything the kernel needs for itself is there by now
        before = _resident_bytes()
        tasks = [pycoslite.Task(idler) for _ in range(n)]
        while count[0] < len(tasks):
            yield task.sleep(0.01)
        return _resident_bytes() - before
    grown = run_task(main)
    return _idle(n, count[0], grown)


@event_loops("L5")
def memory_asyncio(library: str, n: int) -> Measured:
    """Tasks that wait for a future each."""
    import asyncio
    count = [0]

    async def idler(loop):
        count[0] += 1
        await loop.create_future()

    async def main():
        loop = asyncio.get_event_loop()
        before = _resident_bytes()
        tasks = [asyncio.ensure_future(idler(loop)) for _ in range(n)]
        while count[0] < len(tasks):
            await asyncio.sleep(0.01)
        return _resident_bytes() - before
    grown = run_async(library, main)
    return _idle(n, count[0], grown)


# ---- D6a: a channel --------------------------------------------------------------------------------------------------

def _spread(n: int, counts: List[int], seconds: float) -> Measured:
    expect(counts, [n] * SUBSCRIBERS, "messages of each subscriber")
    return Measured(n * SUBSCRIBERS, seconds)


@contestant("D6a", "limit")
def channel_limit(n: int) -> Measured:
    """A loop over strands."""
    loop = Loop()
    strands: List[Strand] = []

    def subscriber(i):
        count = 0
        while (yield strands[i].receive()) is not None:
            count += 1
        return count

    def publisher():
        for i in range(n):
            for strand in strands:
                strand.send(i)
            if not i % RELAY:
                yield
        for strand in strands:
            strand.send(None)
    for i in range(SUBSCRIBERS):
        strands.append(Strand(loop, subscriber(i)))
    start = clock()
    Strand(loop, publisher())
    loop.run()
    return _spread(n, [strand.result for strand in strands], clock() - start)


@contestant("D6a", "ours")
def channel_ours(n: int) -> Measured:
    """A Channel."""
    import pycoslite

    def subscriber(channel, task=None):
        yield channel.subscribe(task)
        count = 0
        while (yield task.receive()) is not None:
            count += 1
        return count

    def main():
        channel = pycoslite.Channel("news")
        tasks = [pycoslite.Task(subscriber, channel) for _ in range(SUBSCRIBERS)]
        expect((yield channel.deliver(0, n=SUBSCRIBERS)), SUBSCRIBERS, "subscribers")
        start = clock()
        for i in range(1, n):
            channel.send(i)
            if not i % RELAY:
                yield
        channel.send(None)
        counts = []
        for task in tasks:
            counts.append((yield task.finish()))
        return counts, clock() - start
    return _spread(n, *run_task(main))


@event_loops("D6a")
def channel_asyncio(library: str, n: int) -> Measured:
    """A queue for each subscriber."""
    import asyncio

    async def main():
        queues: List[Any] = [asyncio.Queue() for _ in range(SUBSCRIBERS)]

        async def subscriber(queue):
            count = 0
            while (await queue.get()) is not None:
                count += 1
            return count
        tasks = [asyncio.ensure_future(subscriber(queue)) for queue in queues]
        await asyncio.sleep(0)
        start = clock()
        for i in range(n):
            for queue in queues:
                queue.put_nowait(i)
            if not i % RELAY:
                await asyncio.sleep(0)
        for queue in queues:
            queue.put_nowait(None)
        return await asyncio.gather(*tasks), clock() - start
    return _spread(n, *run_async(library, main))
