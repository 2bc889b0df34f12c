"""L6a-L6c: TCP over the loopback interface, between two processes that use the same means.

The child serves: it echoes what comes, or (bulk) counts it and tells the count at the end of the stream. The parent
sends, checks the answers and takes the time. All contestants read and write in pieces of the same size.
"""
from __future__ import annotations

import select
import socket
import struct
from typing import Any, Callable, Dict, Generator, List

from .harness import HOST, Measured, child, clock, contestant, event_loops, expect, ready, run_async, run_task
from .messages import get_exactly, nodelay

CONNECTIONS = 200       # of L6b
BACKLOG = 512           # more than those: one that finds the queue full tries again after a second
MESSAGE = b"x" * 64
MOST = 4096             # asked for by those who wait for a MESSAGE
PIECE = 1 << 20         # bytes of L6c written, and asked for, at a time
COUNT = struct.Struct(">Q")


def _listener() -> socket.socket:
    """In a child: listen on a free port and tell it."""
    listener = socket.create_server((HOST, 0), backlog=BACKLOG)
    ready(listener.getsockname()[1])
    return listener


def _serve(serve: Callable, *args: object) -> tuple:
    """Start a server in a child; its address."""
    return HOST, int(child(serve, *args).told[0])


def _transferred(n: int, told: bytes, seconds: float) -> Measured:
    expect(COUNT.unpack(told)[0], n * PIECE, "bytes that arrived")
    return Measured(n, seconds)


# ---- limit: L6a and L6c with blocking sockets, L6b with epoll and nothing above it -----------------------------------

def serve_echo_limit() -> None:
    """L6a: one connection, whatever comes goes back."""
    sock = nodelay(_listener().accept()[0])
    while True:
        data = sock.recv(MOST)
        if not data:
            return
        sock.sendall(data)


@contestant("L6a", "limit")
def echo_limit(n: int) -> Measured:
    """Blocking sockets."""
    address = _serve(serve_echo_limit)
    start = clock()
    with nodelay(socket.create_connection(address)) as sock:
        for _ in range(n):
            sock.sendall(MESSAGE)
            expect(len(sock.recv(MOST)), len(MESSAGE), "bytes of an answer")
    return Measured(n, clock() - start)


def serve_echoes_limit() -> None:
    """L6b: any number of connections; what does not fit into the system's buffers would be lost, and it all fits."""
    listener = _listener()
    epoll = select.epoll()
    epoll.register(listener.fileno(), select.EPOLLIN)
    socks: Dict[int, socket.socket] = {}
    while True:
        for fd, _ in epoll.poll():
            if fd == listener.fileno():
                sock = nodelay(listener.accept()[0])
                sock.setblocking(False)
                socks[sock.fileno()] = sock
                epoll.register(sock.fileno(), select.EPOLLIN)
                continue
            data = socks[fd].recv(MOST)
            if data:
                socks[fd].send(data)
            else:
                epoll.unregister(fd)
                socks.pop(fd).close()


@contestant("L6b", "limit")
def echoes_limit(n: int) -> Measured:
    """One loop around epoll."""
    address = _serve(serve_echoes_limit)
    epoll = select.epoll()
    socks: Dict[int, socket.socket] = {}
    start = clock()
    for _ in range(CONNECTIONS):
        sock = nodelay(socket.create_connection(address))
        sock.setblocking(False)
        socks[sock.fileno()] = sock
        epoll.register(sock.fileno(), select.EPOLLIN)
        sock.send(MESSAGE)
    left = dict.fromkeys(socks, n)
    while left:
        for fd, _ in epoll.poll():
            expect(len(socks[fd].recv(MOST)), len(MESSAGE), "bytes of an answer")
            left[fd] -= 1
            if left[fd]:
                socks[fd].send(MESSAGE)
            else:
                del left[fd]
                epoll.unregister(fd)
                socks[fd].close()
    return Measured(n * CONNECTIONS, clock() - start)


def serve_bulk_limit() -> None:
    """L6c: one connection, into memory that is kept."""
    sock = _listener().accept()[0]
    space = bytearray(PIECE)
    count = 0
    while True:
        taken = sock.recv_into(space)
        if not taken:
            break
        count += taken
    sock.sendall(COUNT.pack(count))


@contestant("L6c", "limit")
def bulk_limit(n: int) -> Measured:
    """Blocking sockets."""
    address = _serve(serve_bulk_limit)
    piece = bytes(PIECE)
    start = clock()
    with socket.create_connection(address) as sock:
        for _ in range(n):
            sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
        told = bytes(get_exactly(sock, COUNT.size))
    return _transferred(n, told, clock() - start)


# ---- ours: a task for each connection --------------------------------------------------------------------------------

def _serve_ours(handle: Callable) -> None:
    """Accept for ever; each connection gets a task that runs `handle`."""
    import pycoslite

    def server():
        listener = pycoslite.AsyncSocket(_listener())
        while True:
            sock, _ = yield listener.accept()
            pycoslite.Task(handle, nodelay(sock))
    run_task(server)


def serve_echo_ours() -> None:
    """L6a and L6b."""
    def echo(sock):
        with sock:
            while True:
                data = yield sock.recv(MOST)
                if not data:
                    return
                yield sock.sendall(data)
    _serve_ours(echo)


def serve_bulk_ours() -> None:
    """L6c, into memory that is kept."""
    def count(sock):
        space = bytearray(PIECE)
        count = 0
        with sock:
            while True:
                taken = yield sock.recv_into(space)
                if not taken:
                    break
                count += taken
            yield sock.sendall(COUNT.pack(count))
    _serve_ours(count)


def _ask_ours(address: tuple, n: int) -> Generator:
    """A task: so many round trips on one connection."""
    import pycoslite
    with pycoslite.AsyncSocket(socket.socket()) as sock:
        yield sock.connect(address)
        nodelay(sock)
        for _ in range(n):
            yield sock.sendall(MESSAGE)
            expect(len((yield sock.recv(MOST))), len(MESSAGE), "bytes of an answer")
    return n


def _echoes_ours(n: int, connections: int) -> Measured:
    import pycoslite
    address = _serve(serve_echo_ours)

    def main():
        start = clock()
        count = 0
        for task in [pycoslite.Task(_ask_ours, address, n) for _ in range(connections)]:
            count += yield task.finish()
        return count, clock() - start
    count, seconds = run_task(main)
    expect(count, n * connections, "round trips")
    return Measured(count, seconds)


@contestant("L6a", "ours")
def echo_ours(n: int) -> Measured:
    """One task."""
    return _echoes_ours(n, 1)


@contestant("L6b", "ours")
def echoes_ours(n: int) -> Measured:
    """As many tasks as connections."""
    return _echoes_ours(n, CONNECTIONS)


@contestant("L6c", "ours")
def bulk_ours(n: int) -> Measured:
    """One task."""
    import pycoslite
    address = _serve(serve_bulk_ours)
    piece = bytes(PIECE)

    def main():
        start = clock()
        with pycoslite.AsyncSocket(socket.socket()) as sock:
            yield sock.connect(address)
            for _ in range(n):
                yield sock.sendall(piece)
            sock.shutdown(socket.SHUT_WR)
            told = yield sock.recvall(COUNT.size)
        return told, clock() - start
    return _transferred(n, *run_task(main))


# ---- asyncio, and the loops that can stand in for its own: protocols, which are faster than its streams --------------

def _serve_asyncio(library: str, protocol: Callable) -> None:
    """Accept for ever; each connection gets a protocol."""
    import asyncio

    async def main():
        server = await asyncio.get_event_loop().create_server(protocol, sock=_listener(), backlog=BACKLOG)
        await server.serve_forever()
    run_async(library, main)


def serve_echo_asyncio(library: str) -> None:
    """L6a and L6b."""
    import asyncio

    class Echo(asyncio.Protocol):
        def connection_made(self, transport):
            self.write = transport.write

        def data_received(self, data):
            self.write(data)
    _serve_asyncio(library, Echo)


def serve_bulk_asyncio(library: str) -> None:
    """L6c, into memory that is kept."""
    import asyncio

    class Count(asyncio.BufferedProtocol):
        def connection_made(self, transport):
            self.transport = transport
            self.space = bytearray(PIECE)
            self.count = 0

        def get_buffer(self, _size):
            return self.space

        def buffer_updated(self, taken):
            self.count += taken

        def eof_received(self):
            self.transport.write(COUNT.pack(self.count))
    _serve_asyncio(library, Count)


async def _echoes_asyncio(address: tuple, n: int, connections: int) -> Any:
    """So many round trips on each connection; how many there were, and seconds."""
    import asyncio
    loop = asyncio.get_event_loop()
    ended: List[Any] = []

    class Ask(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport
            self.count = 0
            self.ended = loop.create_future()
            ended.append(self.ended)
            transport.write(MESSAGE)

        def data_received(self, data):
            expect(len(data), len(MESSAGE), "bytes of an answer")
            self.count += 1
            if self.count < n:
                self.transport.write(MESSAGE)
            else:
                self.transport.close()
                self.ended.set_result(self.count)
    start = clock()
    for _ in range(connections):
        await loop.create_connection(Ask, *address)
    return sum(await asyncio.gather(*ended)), clock() - start


def _echo_asyncio(library: str, n: int, connections: int) -> Measured:
    address = _serve(serve_echo_asyncio, library)
    count, seconds = run_async(library, lambda: _echoes_asyncio(address, n, connections))
    expect(count, n * connections, "round trips")
    return Measured(count, seconds)


@event_loops("L6a")
def echo_asyncio(library: str, n: int) -> Measured:
    """One connection."""
    return _echo_asyncio(library, n, 1)


@event_loops("L6b")
def echoes_asyncio(library: str, n: int) -> Measured:
    """Many."""
    return _echo_asyncio(library, n, CONNECTIONS)


@event_loops("L6c")
def bulk_asyncio(library: str, n: int) -> Measured:
    """A stream, whose `drain` does what a protocol's pausing and resuming is for."""
    import asyncio
    address = _serve(serve_bulk_asyncio, library)
    piece = bytes(PIECE)

    async def main():
        start = clock()
        reader, writer = await asyncio.open_connection(*address)
        for _ in range(n):
            writer.write(piece)
            await writer.drain()
        writer.write_eof()
        told = await reader.readexactly(COUNT.size)
        writer.close()
        return told, clock() - start
    return _transferred(n, *run_async(library, main))
