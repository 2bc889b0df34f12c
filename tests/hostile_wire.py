"""What attacks are made of: strangers' sockets, insiders who may say anything, probes, mutations, a process's memory.

    Target          a process of hostile_target.py, with its memory, processor time and log
    Insider         a connection of somebody who holds the secret, made of the pure parts: it says whatever it likes
    Prober          asks a process again and again, in a thread, whether it still serves
    mutated(...)    bytes that were damaged in one of the ways that find bugs
    STRANGE         JSON values that nobody should send
"""
from __future__ import annotations

import contextlib
import json
import math
import os
import random
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import pycoslite
from pycoslite import Code, FrameDecoder, Handshake, RecordOpener, RecordSealer
from tests.support import running

HOST = "127.0.0.1"
SECRET = "0123456789abcdef" * 4             # the key itself: nothing to be stretched
KEY = bytes.fromhex(SECRET)
PROGRAM = Path(__file__).with_name("hostile_target.py")
CANARY = b"cbuiltins\nprint\n(S'CANARY LOADED'\ntR."       # a pickle that prints a line wherever it is loaded
PATIENCE_S = 60.0                           # what comes at all comes within this


class Target:
    """A process that is attacked: where it listens, what it costs, what it says."""

    def __init__(self, process: Any, port: int) -> None:
        self.process, self.port, self.pid = process, port, process.pid

    def memory(self) -> int:
        """Resident memory in bytes, now (Linux)."""
        with open("/proc/%d/statm" % self.pid) as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu_s(self) -> float:
        """Processor time so far in seconds (Linux)."""
        with open("/proc/%d/stat" % self.pid) as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        """How many it has open (Linux)."""
        return len(os.listdir("/proc/%d/fd" % self.pid))

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.process.popen.poll() is None

    def lines(self, text: str) -> int:
        """How many lines of its output hold `text`."""
        return sum(text in line for line in self.process.output.splitlines())


@contextlib.contextmanager
def target(*options: str, env: Optional[Dict[str, Optional[str]]] = None) -> Iterator[Target]:
    """A `Target` with the secret of this module; `options` as hostile_target.py takes them."""
    words = [sys.executable, PROGRAM, "secret=%r" % SECRET, *options]
    with running(words, ready=r"READY \S+:(\d+)", env=env) as process:
        yield Target(process, int(process.match.group(1)))


def stranger(port: int) -> socket.socket:
    """A connection of somebody who knows no secret; what the process says first has been read."""
    sock = socket.create_connection((HOST, port), timeout=PATIENCE_S)
    with contextlib.suppress(ConnectionError):
        sock.recv(4096)
    return sock


def closed_within(sock: socket.socket, limit_s: float) -> float:
    """Wait until the other end closes `sock`; gives the seconds that took, infinite when it took more than that."""
    started = time.monotonic()
    with sock, contextlib.suppress(ConnectionError):
        while True:
            left = limit_s - (time.monotonic() - started)
            if left <= 0:
                return math.inf
            sock.settimeout(left)
            try:
                if not sock.recv(65536):
                    break
            except socket.timeout:
                return math.inf
    return time.monotonic() - started


class Insider:
    """A connection of a process that holds the secret, up to and including the exchange of SESSION frames.

    `at` is the port, `info` what it says about itself. Raises PycosError when the other end refuses, OSError.
    """

    def __init__(self, at: int, key: Optional[bytes] = KEY, **info: Any) -> None:
        self.process_id = os.urandom(16)
        self.frames: List[Tuple[int, bytes]] = []       # came and not looked at yet
        self._numbers = self._taken = 0
        self.sock = socket.create_connection((HOST, at), timeout=PATIENCE_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._shake(key, dict({"name": "insider", "port": 0, "role": "peer", "addresses": []}, **info))
        except BaseException:
            self.sock.close()
            raise

    def _shake(self, key: Optional[bytes], info: dict) -> None:
        handshake = Handshake("dial", key, self.process_id, info, os.urandom(32), "pycoslite")
        while handshake.result is None:
            handshake.receive(self._received())
            self.sock.sendall(handshake.data_to_send())
        result = handshake.result
        self.peer_info = result.peer_info
        self._sealer, self._opener = RecordSealer(result.send_key), RecordOpener(result.receive_key)
        self._decoder = FrameDecoder(1 << 26)
        self.say(pycoslite.session_frame(random.getrandbits(63) | 1, 0, 0))
        self._take(result.leftover)
        self.wait_for(Code.SESSION)

    def _received(self) -> bytes:
        data = self.sock.recv(1 << 16)
        if not data:
            raise ConnectionError("the other end closed the connection")
        return data

    def _take(self, data: bytes) -> None:
        before = self._taken
        for body in self._opener.feed(data):
            frames = self._decoder.feed(body)
            self._taken += sum(code >= Code.FIRST_SEQUENCED for code, _ in frames)
            self.frames += frames
        if self._taken > before:
            self.say(pycoslite.ack_frame(self._taken))

    def say(self, *frames: bytes) -> None:
        """Send encoded frames, a record for each MiB of them."""
        data = b"".join(frames)
        for start in range(0, len(data), pycoslite.RECORD_CAP):
            self.sock.sendall(b"".join(self._sealer.seal([data[start:start + pycoslite.RECORD_CAP]])))

    def wait_for(self, code: int) -> bytes:
        """The body of the next frame of that code; those before it are dropped."""
        while True:
            while self.frames:
                found, body = self.frames.pop(0)
                if found == code:
                    return bytes(body)
            self._take(self._received())

    def request(self, op: Any, args: Any, payload: bytes = b"", **more: Any) -> Tuple[int, Any, bytes]:
        """(failed, reply, payload) of a request."""
        self._numbers += 1
        self.say(request_frame(self._numbers, json.dumps(dict({"op": op, "args": args}, **more)).encode(), payload))
        return self.reply(self._numbers)

    def reply(self, number: int) -> Tuple[int, Any, bytes]:
        """(failed, reply, payload) of the request of that number."""
        while True:
            body = self.wait_for(pycoslite.REPLY)
            found, failed, size = struct.unpack_from(">IBI", body)
            if found == number:
                return failed, json.loads(body[9:9 + size]), body[9 + size:]

    def ping(self) -> float:
        """Seconds until a PING is answered: then all that was said before it has been taken."""
        mark, started = os.urandom(8), time.perf_counter()
        self.say(pycoslite.encode_frame(Code.PING, mark))
        while self.wait_for(Code.PONG) != mark:
            pass
        return time.perf_counter() - started

    def close(self) -> None:
        """Say goodbye, so that the other end keeps nothing of it."""
        with self.sock, contextlib.suppress(OSError):
            self.say(pycoslite.encode_frame(Code.BYE, b"done"))
            self.sock.shutdown(socket.SHUT_WR)
            while self.sock.recv(1 << 16):
                pass

    def __enter__(self) -> "Insider":
        return self

    def __exit__(self, *_error: Any) -> None:
        self.close()


def request_frame(number: int, head: bytes, payload: bytes = b"", size: Optional[int] = None) -> bytes:
    """A REQUEST frame; `size` is a lie about the length of `head`."""
    return pycoslite.encode_frame(pycoslite.REQUEST, struct.pack(">II", number, len(head) if size is None else size),
                                  head, payload)


class Prober:
    """Connects to a process every now and then, in a thread, proves the secret and asks for an answer.

        with Prober(port) as prober:
            ...                                     the attack
        prober.worst_s, prober.failures, prober.count
    """

    def __init__(self, port: int, pause_s: float = 0.05) -> None:
        self.port, self.pause_s = port, pause_s
        self.worst_s, self.count = 0.0, 0
        self.failures: List[str] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prober")

    def _probe(self) -> None:
        started = time.perf_counter()
        with Insider(self.port) as insider:
            insider.ping()
            self.worst_s = max(self.worst_s, time.perf_counter() - started)
        self.count += 1

    def _run(self) -> None:
        while True:
            for last in (False, False, False, True):
                try:
                    self._probe()
                    break
                except (pycoslite.PeerBusy, ConnectionResetError) as error:     # as every client does: try again
                    if last:
                        self.failures.append("%s: %s" % (type(error).__name__, error))
                except (OSError, pycoslite.PycosError) as error:
                    self.failures.append("%s: %s" % (type(error).__name__, error))
                    break
            if self._end.wait(self.pause_s):
                break

    def __enter__(self) -> "Prober":
        self._thread.start()
        return self

    def __exit__(self, *_error: Any) -> None:
        self._end.set()
        self._thread.join()


LENGTHS = (0, 1, 255, 4096, 65_535, 1 << 20, (1 << 20) + 1, 1 << 30, (1 << 31) - 1, (1 << 32) - 1)


def mutated(choose: random.Random, data: bytes) -> bytes:
    """`data`, damaged in one to three places: a bit, a byte, a cut, an insertion, a length that lies, a piece twice."""
    damaged = bytearray(data)
    for _ in range(choose.choice((1, 1, 1, 2, 3))):
        where, kind = int(choose.random() * len(damaged)), int(choose.random() * 6)
        if kind == 0:
            damaged[where] ^= 1 << int(choose.random() * 8)
        elif kind == 1:
            damaged[where] = int(choose.random() * 256)
        elif kind == 2:
            del damaged[where:where + 1 + int(choose.random() * 8)]
        elif kind == 3:
            damaged[where:where] = choose.getrandbits(64).to_bytes(8, "big")[:1 + int(choose.random() * 8)]
        elif kind == 4:
            damaged[where:where + 4] = struct.pack(">I", LENGTHS[int(choose.random() * len(LENGTHS))])
        else:
            damaged[where:where] = damaged[where // 2:where]
        damaged = damaged or bytearray(1)
    return bytes(damaged)


def in_pieces(choose: random.Random, data: bytes) -> List[bytes]:
    """`data`, cut at random places."""
    pieces, start = [], 0
    while start < len(data):
        end = start + 1 + int(choose.random() ** 3 * 200)
        pieces.append(data[start:end])
        start = end
    return pieces


STRANGE: Tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 65_536, 1 << 31, -(1 << 31), 1 << 63, 1 << 64, 1 << 200, 0.5, -0.0, 1e308,
    float("nan"), float("inf"), -float("inf"), "", "x", "\0", "..", "../../etc/passwd", "/etc/passwd", "C:\\x",
    "a" * 300, "x" * 100_000, "\ud800", "%s%n{0}", "<script>", [], [[]], [None], [-1], ["x"], [1 << 200],
    [[[]] * 100] * 100, {}, {"": None}, {"a": {"b": {"c": []}}}, [0] * 10_000)
"""Values that have a place in JSON and none in a request."""


def strange_arguments(choose: random.Random, usual: Dict[str, Any]) -> Any:
    """Arguments like `usual`, with one or more of them missing, of another type, or beyond all limits."""
    kind = choose.randrange(8)
    if kind == 0:
        return choose.choice(STRANGE)
    args = dict(usual)
    for name in choose.sample(sorted(usual), choose.randint(1, len(usual))) if usual else ():
        if kind == 1:
            del args[name]
        else:
            args[name] = choose.choice(STRANGE)
    if kind == 2:
        args["never heard of"] = choose.choice(STRANGE)
    return args

