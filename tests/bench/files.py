"""D5: a file goes to another process, over the loopback interface, and is a file there.

The child receives: all contestants but ours take what comes with `recv_into` and write it, and tell its size at the
end. The limit and asyncio do no more than that. "checked" and "sha256" are the limit with what a transfer owes its user
besides: a checksum at both ends, compared. Ours makes CRC-32 within a host, as "checked" does, and SHA-256 between
hosts, as "sha256"; "ours256" is ours made to believe that the other process is on another host. Both machines of such
a transfer have processors of their own; here sender and receiver share those of one, and checking takes as long as all
the rest, or twice as long. "synced" is "sha256" with the file on the disk (fsync) before it is told to be there, and
"ours+sync" ours with that asked for.

The file received is in the system's temporary directory, or where TMPDIR says.
"""
from __future__ import annotations

import binascii
import hashlib
import os
import socket
import struct
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict

from .harness import HOST, Measured, child, clock, contestant, expect, ready, run_task
from .messages import get_exactly

MEBIBYTE = 1 << 20
SPACE = 512 * 1024                      # what is checked is to stay in the processor's cache until it is written
TOLD = struct.Struct(">Q32s")           # bytes that were written, their checksum or zeros
TIMEOUT_S = 30.0


class Crc32:
    """With the methods of hashlib's objects."""

    def __init__(self) -> None:
        self.sum = 0

    def update(self, data: Any) -> None:
        """Take bytes."""
        self.sum = binascii.crc32(data, self.sum)

    def digest(self) -> bytes:
        """What it is so far."""
        return self.sum.to_bytes(32, "big")


class Unchecked:
    """Takes everything for right."""

    def update(self, data: Any) -> None:
        """Take bytes."""

    def digest(self) -> bytes:
        """Always the same."""
        return bytes(32)


CHECKS: Dict[str, Callable] = {"": Unchecked, "crc32": Crc32, "sha256": hashlib.sha256}


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


# ---- limit, and limits that check ------------------------------------------------------------------------------------

def serve_sink(size: str, kind: str, synced: str) -> None:
    """Receive a file of that size into a temporary one."""
    listener = socket.create_server((HOST, 0))
    ready(listener.getsockname()[1])
    sock = listener.accept()[0]
    space = memoryview(bytearray(SPACE if kind else MEBIBYTE))
    check, missing = CHECKS[kind](), int(size)
    with tempfile.NamedTemporaryFile(buffering=0) as file:
        while missing:
            count = sock.recv_into(space)
            if not count:
                return
            check.update(space[:count])
            file.write(space[:count])
            missing -= count
        if synced == "True":
            os.fsync(file.fileno())
        sock.sendall(TOLD.pack(os.fstat(file.fileno()).st_size, check.digest()))


def _send(n: int, kind: str, synced: bool = False) -> Measured:
    """Blocking sockets and sendfile; what was sent is checked while the receiver takes it."""
    path = _source(n)
    address = HOST, int(child(serve_sink, n * MEBIBYTE, kind, synced).told[0])
    check, space, size = CHECKS[kind](), memoryview(bytearray(SPACE)), n * MEBIBYTE
    start = clock()
    with socket.create_connection(address) as sock, open(str(path), "rb", buffering=0) as file:
        if not kind:
            sock.sendfile(file)
        else:
            sent = 0
            while sent < size:
                sent += os.sendfile(sock.fileno(), file.fileno(), sent, MEBIBYTE)
                while file.tell() < sent:
                    check.update(space[:file.readinto(space[:sent - file.tell()])])
        got = TOLD.unpack(get_exactly(sock, TOLD.size))
    seconds = clock() - start
    expect(got, (size, check.digest()), "size and checksum of what arrived")
    return Measured(n, seconds)


@contestant("D5", "limit")
def file_limit(n: int) -> Measured:
    """Nothing is checked."""
    return _send(n, "")


@contestant("D5", "checked")
def file_checked(n: int) -> Measured:
    """CRC-32."""
    return _send(n, "crc32")


@contestant("D5", "sha256")
def file_sha256(n: int) -> Measured:
    """SHA-256."""
    return _send(n, "sha256")


@contestant("D5", "synced")
def file_synced(n: int) -> Measured:
    """SHA-256 and fsync."""
    return _send(n, "sha256", synced=True)


# ---- asyncio ---------------------------------------------------------------------------------------------------------

@contestant("D5", "asyncio")
def file_asyncio(n: int) -> Measured:
    """Its `sendfile` into the limit's receiver."""
    import asyncio
    path = _source(n)
    port = int(child(serve_sink, n * MEBIBYTE, "", False).told[0])

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

def _network(name: str, folder: str, way: str) -> Any:
    import pycoslite
    if way == "between hosts":
        pycoslite._network_stack = lambda: ""           # what tells that both processes are on one
    elif way == "synced":
        pycoslite.settings.sync_files = 1
    return pycoslite.Pycos(host=HOST, tcp_port=0, name=name, discover_peers=False, dest_path=folder)


def serve_ours(folder: str, way: str) -> None:
    """Files are received without a task; one waits so that the process stays."""
    node = _network("bench-server", folder, way)

    def main(task=None):
        ready(node.location.port)
        yield task.receive()
    run_task(main)


def _send_ours(n: int, way: str) -> Measured:
    path = _source(n)
    with tempfile.TemporaryDirectory() as folder:
        port = int(child(serve_ours, folder, way).told[0])
        import pycoslite
        node = _network("bench-client", os.path.join(folder, "here"), way)

        def main(task=None):
            where = pycoslite.Location(HOST, port)
            expect((yield node.peer(where)), 0, "peer()")
            start = clock()
            expect((yield node.send_file(where, path, timeout=TIMEOUT_S)), 0, "send_file()")
            return clock() - start
        seconds = run_task(main)
        expect(_digest(Path(folder) / path.name), _digest(path), "digest of what arrived")
        return Measured(n, seconds)


@contestant("D5", "ours")
def file_ours(n: int) -> Measured:
    """send_file()."""
    return _send_ours(n, "")


@contestant("D5", "ours256")
def file_ours_between_hosts(n: int) -> Measured:
    """send_file(), as if to another host."""
    return _send_ours(n, "between hosts")


@contestant("D5", "ours+sync")
def file_ours_synced(n: int) -> Measured:
    """send_file(), to the disk."""
    return _send_ours(n, "synced")
