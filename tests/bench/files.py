"""D5: a file goes to another process, over the loopback interface, and is a file there.

The child receives: all contestants but ours take what comes with `recv_into` and write it, and tell its size at the
end. The limit and asyncio do no more than that. "checked" is the limit with what a transfer owes its user besides:
SHA-256 at both ends, compared, and the file on the disk (fsync) before it is told to be there. Both machines of such a
transfer have processors of their own; here sender and receiver share those of one, and hashing takes longer than all
the rest.
"""
from __future__ import annotations

import hashlib
import os
import socket
import struct
import tempfile
from pathlib import Path
from typing import Any

from .harness import HOST, Measured, child, clock, contestant, expect, ready, run_task
from .messages import get_exactly

MEBIBYTE = 1 << 20
TOLD = struct.Struct(">Q32s")           # bytes that were written, their SHA-256 or zeros
TIMEOUT_S = 30.0


def _source(n: int) -> Path:
    """A file of `n` MiB that is in the system's cache; it stays for the other runs."""
    path = Path(tempfile.gettempdir()) / ("pycoslite-bench-%d.bin" % n)
    if not path.exists() or path.stat().st_size != n * MEBIBYTE:
        block = os.urandom(MEBIBYTE)
        path.write_bytes(b"".join([block] * n))
    path.read_bytes()
    return path


def _digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with open(str(path), "rb", buffering=0) as file:
        space = memoryview(bytearray(MEBIBYTE))
        for count in iter(lambda: file.readinto(space), 0):
            digest.update(space[:count])
    return digest.digest()


# ---- limit, and the limit that checks --------------------------------------------------------------------------------

def serve_sink(size: str, checked: str) -> None:
    """Receive a file of that size into a temporary one."""
    listener = socket.create_server((HOST, 0))
    ready(listener.getsockname()[1])
    sock = listener.accept()[0]
    space = memoryview(bytearray(MEBIBYTE))
    digest, missing = hashlib.sha256(), int(size)
    with tempfile.NamedTemporaryFile(buffering=0) as file:
        while missing:
            count = sock.recv_into(space)
            if not count:
                return
            if checked == "True":
                digest.update(space[:count])
            file.write(space[:count])
            missing -= count
        if checked == "True":
            os.fsync(file.fileno())
        sock.sendall(TOLD.pack(os.fstat(file.fileno()).st_size, digest.digest() if checked == "True" else bytes(32)))


def _send(n: int, checked: bool) -> Measured:
    """Blocking sockets and `socket.sendfile`."""
    path = _source(n)
    address = HOST, int(child(serve_sink, n * MEBIBYTE, checked).told[0])
    start = clock()
    with socket.create_connection(address) as sock, open(str(path), "rb") as file:
        sock.sendfile(file)
        wanted = n * MEBIBYTE, _digest(path) if checked else bytes(32)
        got = TOLD.unpack(get_exactly(sock, TOLD.size))
    seconds = clock() - start
    expect(got, wanted, "size and digest of what arrived")
    return Measured(n, seconds)


@contestant("D5", "limit")
def file_limit(n: int) -> Measured:
    """Nothing is checked."""
    return _send(n, checked=False)


@contestant("D5", "checked")
def file_checked(n: int) -> Measured:
    """SHA-256 and fsync."""
    return _send(n, checked=True)


# ---- asyncio ---------------------------------------------------------------------------------------------------------

@contestant("D5", "asyncio")
def file_asyncio(n: int) -> Measured:
    """Its `sendfile` into the limit's receiver."""
    import asyncio
    path = _source(n)
    port = int(child(serve_sink, n * MEBIBYTE, False).told[0])

    async def main() -> float:
        reader, writer = await asyncio.open_connection(HOST, port)
        start = clock()
        with open(str(path), "rb") as file:
            await asyncio.get_event_loop().sendfile(writer.transport, file)
        size, _ = TOLD.unpack(await reader.readexactly(TOLD.size))
        seconds = clock() - start
        expect(size, n * MEBIBYTE, "size of what arrived")
        return seconds
    return Measured(n, asyncio.new_event_loop().run_until_complete(main()))


# ---- ours ------------------------------------------------------------------------------------------------------------

def _network(name: str, folder: str) -> Any:
    import pycoslite
    return pycoslite.Pycos(host=HOST, tcp_port=0, name=name, discover_peers=False, dest_path=folder)


def serve_ours(folder: str) -> None:
    """Files are received without a task; one waits so that the process stays."""
    node = _network("bench-server", folder)

    def main(task=None):
        ready(node.location.port)
        yield task.receive()
    run_task(main)


@contestant("D5", "ours")
def file_ours(n: int) -> Measured:
    """send_file()."""
    path = _source(n)
    with tempfile.TemporaryDirectory() as folder:
        port = int(child(serve_ours, folder).told[0])
        import pycoslite
        node = _network("bench-client", os.path.join(folder, "here"))

        def main(task=None):
            where = pycoslite.Location(HOST, port)
            expect((yield node.peer(where)), 0, "peer()")
            start = clock()
            expect((yield node.send_file(where, path, timeout=TIMEOUT_S)), 0, "send_file()")
            return clock() - start
        seconds = run_task(main)
        expect(_digest(Path(folder) / path.name), _digest(path), "digest of what arrived")
        return Measured(n, seconds)
