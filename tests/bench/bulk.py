"""D4, D4b, D6b: large messages to another process, and a channel with subscribers in four.

D4 sends LARGE bytes, D4b a bytearray, each confirmed before the next. A receiver is owed an object of its own for each
message, of the type that was sent: the limit of D4b receives into a fresh bytearray, that of D4 makes bytes of it,
which costs a copy. "checked" is the limit with what a message owes its user besides: a MAC of every RECORD bytes, made
at one end and proved at the other before the next is taken, and a copy of what may change before it is confirmed. Both
machines of such a transfer have processors of their own; here both ends share those of one. `peer_peak_x` is by how
much the receiver's memory grew at most, in messages. D6b sends SMALL messages to PROCESSES others, pickled once for
all.
"""
from __future__ import annotations

import functools
import hashlib
import pickle
import socket
import sys
from typing import Any, Callable, Dict, List

from .harness import HOST, Child, Measured, child, clock, contestant, expect, ready, run_task
from .messages import (BURST, COUNT, PROTOCOL, SMALL, Inbox, accept_one, connect, count_messages, counted_batches,
                       get_exactly, start_network)

LARGE = 64 << 20
MIB = 1 << 20
PROCESSES = 4
RECORD = 256 << 10
TYPES = {"D4": bytes, "D4b": bytearray}
CHAIN = hashlib.blake2b(key=bytes(32), digest_size=16)


# ---- large messages --------------------------------------------------------------------------------------------------

def _peak(helper: Child) -> int:
    """Most memory that a helper process has held at a time, in bytes; 0 where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return 0
    with open("/proc/%d/status" % helper.process.pid) as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _timed_messages(n: int, data: Any, deliver: Callable[[Any], Any], confirmation: Any) -> Measured:
    """D4 for anything that looks like a function call; the receiver is the helper that was started last."""
    before = _peak(Child.running[-1])
    start = clock()
    for _ in range(n):
        expect(deliver(data), confirmation, "confirmation")
    return Measured(n * LARGE / MIB, clock() - start, _growth(before))


def _growth(before: int) -> Dict[str, float]:
    return {"peer_peak_x": round((_peak(Child.running[-1]) - before) / LARGE, 2)}


def serve_large_limit(workload: str) -> None:
    """A fresh object per message, confirmed with a byte; no length goes along, and no pickle."""
    sock = accept_one()
    try:
        while True:
            message = get_exactly(sock, LARGE)
            if workload == "D4":
                message = bytes(message)
            sock.sendall(b"\1")
            del message
    except EOFError:
        return


def _large_limit(n: int, workload: str) -> Measured:
    """One sendall per message."""
    sock = connect(serve_large_limit, workload)

    def deliver(data):
        sock.sendall(data)
        return sock.recv(1)
    return _timed_messages(n, TYPES[workload](LARGE), deliver, b"\1")


def serve_large_checked(workload: str) -> None:
    """As the limit's; each record is proved before the next is taken."""
    sock = accept_one()
    mac, told = CHAIN.copy(), memoryview(bytearray(CHAIN.digest_size))
    try:
        while True:
            message = bytearray(LARGE)
            for record in _records(message):
                _fill(sock, record)
                mac.update(hashlib.sha256(record).digest())
                _fill(sock, told)
                expect(bytes(told), mac.copy().digest(), "MAC")
            if workload == "D4":
                message = bytes(message)
            sock.sendall(b"\1")
            del message, record
    except EOFError:
        return


def _large_checked(n: int, workload: str) -> Measured:
    """Each record is copied, if it is of a bytearray, hashed and sent before the next: so it stays in the processor's
    cache meanwhile. The memory of the copies is used again and again."""
    sock = connect(serve_large_checked, workload)
    mac, copy = CHAIN.copy(), memoryview(bytearray(LARGE if workload == "D4b" else 0))

    def deliver(data):
        kept = iter(_records(copy))
        for record in _records(data):
            if workload == "D4b":
                target = next(kept)
                target[:] = record
                record = target
            mac.update(hashlib.sha256(record).digest())
            told = mac.copy().digest()
            sent = sock.sendmsg([record, told])
            if sent < len(record):
                sock.sendall(record[sent:])
            sock.sendall(told[max(0, sent - len(record)):])
        return sock.recv(1)
    return _timed_messages(n, TYPES[workload](LARGE), deliver, b"\1")


def _records(data: Any) -> List[memoryview]:
    view = memoryview(data)
    return [view[start:start + RECORD] for start in range(0, len(view), RECORD)]


def _fill(sock: socket.socket, view: memoryview) -> None:
    while view:
        taken = sock.recv_into(view)
        if not taken:
            raise EOFError("connection closed")
        view = view[taken:]


def serve_large_ours(secure: str) -> None:
    """A registered task that keeps no message."""
    node = start_network("bench-server", secure == "True")

    def main(task=None):
        task.register("srv")
        ready(node.location.port)
        size = 0
        while True:
            message = yield task.receive()
            if isinstance(message, (bytes, bytearray)):
                size += len(message)
            else:
                message.send(size)
            message = None              # or it would be there beside the next one
    run_task(main)


def _large_ours(n: int, workload: str, secure: bool) -> Measured:
    """deliver(), one at a time."""
    helper = child(serve_large_ours, secure)
    import pycoslite
    node = start_network("bench-client", secure)

    def main(task=None):
        where = pycoslite.Location(HOST, int(helper.told[0]))
        expect((yield node.peer(where)), 0, "peer()")
        server = yield pycoslite.Task.locate("srv", location=where, timeout=5)
        data = TYPES[workload](LARGE)
        before, start = _peak(helper), clock()
        for _ in range(n):
            expect((yield server.deliver(data, timeout=30)), 1, "confirmation")
        seconds = clock() - start
        server.send(task)
        expect((yield task.receive()), n * LARGE, "bytes the other end counted")
        return Measured(n * LARGE / MIB, seconds, _growth(before))
    return run_task(main)


def serve_large_mpconn() -> None:
    """Confirms with the length."""
    from multiprocessing.connection import Listener
    with Listener((HOST, 0)) as listener:
        ready(listener.address[1])
        connection = listener.accept()
    try:
        while True:
            connection.send(len(connection.recv()))
    except EOFError:
        return


def _large_mpconn(n: int, workload: str) -> Measured:
    """send() and recv() of a Connection."""
    from multiprocessing.connection import Client
    connection = Client((HOST, int(child(serve_large_mpconn).told[0])))

    def deliver(data):
        connection.send(data)
        return connection.recv()
    return _timed_messages(n, TYPES[workload](LARGE), deliver, LARGE)


for _workload in TYPES:
    contestant(_workload, "limit")(functools.partial(_large_limit, workload=_workload))
    contestant(_workload, "checked")(functools.partial(_large_checked, workload=_workload))
    contestant(_workload, "ours")(functools.partial(_large_ours, workload=_workload, secure=True))
    contestant(_workload, "open")(functools.partial(_large_ours, workload=_workload, secure=False))
    contestant(_workload, "mpconn")(functools.partial(_large_mpconn, workload=_workload))


# ---- one channel, four processes -------------------------------------------------------------------------------------

def serve_subscriber_limit(port: str) -> None:
    """Counts until None comes, then tells."""
    sock = socket.create_connection((HOST, int(port)))
    ready()
    count_messages(Inbox(sock))


@contestant("D6b", "limit")
def broadcast_limit(n: int) -> Measured:
    """Each message is pickled once; batches of BATCH bytes go to each of the processes."""
    with socket.create_server((HOST, 0)) as listener:
        sockets = []
        for _ in range(PROCESSES):
            child(serve_subscriber_limit, listener.getsockname()[1])
            sockets.append(listener.accept()[0])
    return Measured(n * PROCESSES, counted_batches(n, sockets))


def serve_subscriber_ours(port: str) -> None:
    """A task that subscribes, and tells the task "home" so; then as in the limit."""
    node = start_network("bench-subscriber")
    import pycoslite
    where = pycoslite.Location(HOST, int(port))

    def main(task=None):
        expect((yield node.peer(where)), 0, "peer()")
        channel = yield pycoslite.Channel.locate("news", location=where, timeout=5)
        home = yield pycoslite.Task.locate("home", location=where, timeout=5)
        expect((yield channel.subscribe(task)), 0, "subscribe()")
        home.send("up")
        count = 0
        while (yield task.receive()) is not None:
            count += 1
        home.send(count)
        yield task.receive()            # until it is ended
    ready()
    run_task(main)


@contestant("D6b", "ours")
def broadcast_ours(n: int) -> Measured:
    """send() of a channel of this process."""
    node = start_network("bench-publisher")
    import pycoslite

    def main(task=None):
        task.register("home")
        channel = pycoslite.Channel("news")
        channel.register()
        for _ in range(PROCESSES):
            child(serve_subscriber_ours, node.location.port)
        for _ in range(PROCESSES):
            expect((yield task.receive(20)), "up", "a subscriber's first word")
        start = clock()
        for i in range(n):
            channel.send(SMALL)
            if not i % BURST:
                yield
        channel.send(None)
        counts: List[int] = []
        for _ in range(PROCESSES):
            counts.append((yield task.receive(60)))
        seconds = clock() - start
        expect(counts, [n] * PROCESSES, "messages that each process counted")
        return Measured(n * PROCESSES, seconds)
    return run_task(main)


@contestant("D6b", "asyncio")
def broadcast_asyncio(n: int) -> Measured:
    """Streams; a drain() of each after every BURST of messages. The subscribers are those of the limit."""
    import asyncio

    async def main():
        streams: List[tuple] = []
        server = await asyncio.start_server(lambda *stream: streams.append(stream), HOST, 0)
        for _ in range(PROCESSES):
            await asyncio.get_running_loop().run_in_executor(
                None, child, serve_subscriber_limit, server.sockets[0].getsockname()[1])
        while len(streams) < PROCESSES:
            await asyncio.sleep(0.001)
        start = clock()
        for i in range(n + 1):
            data = pickle.dumps(SMALL if i < n else None, PROTOCOL)
            data = len(data).to_bytes(4, "big") + data
            for _, writer in streams:
                writer.write(data)
            if not i % BURST:
                for _, writer in streams:
                    await writer.drain()
        counts = [COUNT.unpack(await reader.readexactly(COUNT.size))[0] for reader, _ in streams]
        seconds = clock() - start
        expect(counts, [n] * PROCESSES, "messages that each process counted")
        return Measured(n * PROCESSES, seconds)
    return asyncio.run(main())
