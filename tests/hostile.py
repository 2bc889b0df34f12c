"""Figures about hostile input: what strangers, eavesdroppers and those who hold the secret can do to a process.

    python3 -m tests.hostile [S1 S2 ...] [--soak] [--json]

    S1  strangers make a process unpickle nothing            S5  datagrams: no amplification, nothing gained by a replay
    S2  what a stranger makes a process keep                 S6  changed, repeated and reflected connections
    S3  fuzzing, of the pure parsers and over TCP            S9  files stay below their directory, whole or not at all
    S4  silent and slow strangers, too few descriptors       S11 what is open by default, and where secrets show
    S10 what other sites and slow viewers can do to a web monitor
    I1  peers that hold the secret and say what makes no sense
    I2  peers that ask and ask, and do not read the answers

Each row is a generator of `Figure`s, see figures.py; test_pycoslite_hostile.py holds the same rows against their goals.
"""
from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import ssl
import struct
import sys
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import pycoslite
from pycoslite import Code, Handshake, RecordSealer
from tests import (figures, hostile_files, hostile_insiders, hostile_monitor, hostile_parsers, hostile_secrets,
                   hostile_streams)
from tests.figures import Figure
from tests.hostile_wire import (CANARY, HOST, KEY, PATIENCE_S, Insider, Prober, Target, closed_within, mutated,
                                stranger, target)
from tests.support import free_port
from tests.test_pycoslite_tls import make_pair

KIB, MIB = 1024, 1024 * 1024
AUTH = struct.Struct(">cBB32s16sH")         # the dialling end's message, as section 7 of pycoslite.py has it


def auth_head(size: int) -> bytes:
    """The beginning of a dialling end's message that promises `size` bytes of info."""
    return AUTH.pack(b"A", 1, 1, os.urandom(32), os.urandom(16), size)


def send_all(sock: socket.socket, data: bytes) -> None:
    """Send, for as long as the other end wants to hear it."""
    with contextlib.suppress(OSError):
        sock.sendall(data)


# ======================================================================================================================
# S1: strangers make a process unpickle nothing
# ======================================================================================================================


def canaries() -> List[bytes]:
    """A pickle, in all places where somebody might have put one."""
    frame = pycoslite.encode_frame(pycoslite.MESSAGE, struct.pack(">Q", 1), CANARY)
    request = pycoslite.encode_frame(pycoslite.REQUEST, struct.pack(">II", 1, 2), b"{}", CANARY)
    bare = [CANARY, struct.pack(">I", len(CANARY)) + CANARY, struct.pack("<I", len(CANARY)) + CANARY, frame, request]
    sealed = [b"".join(RecordSealer(key).seal([data])) for data in bare for key in (None, bytes(32))]
    proofs = [auth_head(len(CANARY)) + CANARY + bytes(32), auth_head(0) + bytes(32) + CANARY,
              b"R" + CANARY, b"B" + CANARY, b"PYCL" + CANARY]
    return bare + sealed + proofs + [b"\x16\x03\x01" + CANARY, b"POST / HTTP/1.1\r\n\r\n" + CANARY]


def unpickles(soak: bool) -> Iterator[Figure]:
    """S1."""
    port, tries = free_port(), 20 if soak else 2
    with target("discover_peers=True", "udp_port=%d" % port) as victim:
        socks = []
        for data in canaries() * tries:
            sock = stranger(victim.port)
            send_all(sock, data)
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            socks.append(sock)
        for sock in socks:
            closed_within(sock, PATIENCE_S)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for data in canaries() * tries:
                for head in (b"", b"PCLD\x01\x01", b"PCLD\x01\x02"):
                    sock.sendto((head + data).ljust(81, b".")[:512], (HOST, port))
        yield Figure("canaries sent over TCP and UDP", len(canaries()) * tries * 4)
        with Insider(victim.port) as insider:
            insider.ping()                  # all that was sent before has been read
            yield Figure("unpickled in the process, before anybody proved the secret",
                         victim.lines("UNPICKLED") + victim.lines("CANARY LOADED"), "", "==", 0)
            insider.say(pycoslite.encode_frame(pycoslite.MESSAGE, struct.pack(">Q", 1), CANARY))
            insider.ping()
        with contextlib.suppress(AssertionError):       # what it has printed may be read here a moment later
            victim.process.wait_for("(?s)UNPICKLED.*CANARY LOADED|CANARY LOADED.*UNPICKLED")
        yield Figure("unpickled for one who has (the canary can sing)", victim.lines("CANARY LOADED"), "", "==", 1)
        yield Figure("uses of pickle noticed then", victim.lines("UNPICKLED"), "", "==", 1)
    if shutil.which("openssl"):
        yield from unpickles_below_tls()


def unpickles_below_tls() -> Iterator[Figure]:
    """The same through TLS, by one who has the cluster's certificate and not its secret, and by one who has neither."""
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = make_pair(Path(folder), "cluster")
        with target("certfile=%r" % certificate, "keyfile=%r" % key) as victim:
            through = 0
            for data in canaries():
                through += say_through_tls(victim, data, (certificate, key))
                say_through_tls(victim, data, None)
            yield Figure("canaries that came through TLS", through, "", "==", len(canaries()))
            yield Figure("unpickled there", victim.lines("UNPICKLED") + victim.lines("CANARY LOADED"), "", "==", 0)
            yield Figure("alive after them", victim.alive, "", "==", 1)


def say_through_tls(victim: Target, data: bytes, pair: Optional[Tuple[str, str]]) -> bool:
    """Agree on TLS, shake hands for it and send `data`; whether that was possible."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if pair is not None:
        context.load_cert_chain(*pair)
    sock = stranger(victim.port)
    send_all(sock, b"S" + bytes((1 | pycoslite.HAS_CERTIFICATE,)))
    try:
        with context.wrap_socket(sock) as tls:
            tls.sendall(data)
            with contextlib.suppress(OSError):
                tls.shutdown(socket.SHUT_WR)
                while tls.recv(65536):
                    pass
    except OSError:
        sock.close()
        return False
    return True


# ======================================================================================================================
# S2: what a stranger makes a process keep
# ======================================================================================================================


def kept(soak: bool) -> Iterator[Figure]:
    """S2."""
    count = 2000 if soak else 200
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        ends = [Handshake("accept", KEY, bytes(16), {}, bytes(32), "pycoslite") for _ in range(count)]
        for end in ends:
            end.receive(auth_head(2048) + bytes(2048 + 31))         # one byte is missing
        per_end = (tracemalloc.get_traced_memory()[0] - before) / count
    finally:
        tracemalloc.stop()
    yield Figure("kept of one who has not proved the secret, whatever he sends", per_end, "B", "<=", 8 * KIB)
    with target() as victim:
        huge_headers(victim, 2)             # whatever is made once
        before = victim.memory()
        slowest = huge_headers(victim, 100 if soak else 10)
        yield Figure("resident memory grown by 10 huge headers on each of 8 connections", max(
            0, victim.memory() - before) / MIB, "MiB", "<=", 1)
        yield Figure("slowest of them closed after", slowest, "s", "<=", 3)
        with Insider(victim.port) as insider:
            insider.ping()


def huge_headers(victim: Target, rounds: int) -> float:
    """Announce far too much, on eight connections at a time; gives the longest time until one was closed."""
    heads = [auth_head(65_535), struct.pack(">IB", (1 << 32) - 1, 18), b"B" + b"\xff" * 18,
             b"\x80\x05\x8d" + b"\xff" * 8, b"\xff" * 64, struct.pack(">Q", 1 << 63), b"A" + b"\xff" * 52,
             b"PYCL" + b"\xff" * 60]
    slowest = 0.0
    for _ in range(rounds):
        socks = [stranger(victim.port) for _ in heads]
        for sock, head in zip(socks, heads):
            send_all(sock, head + bytes(8 * KIB))
        for sock in socks:
            slowest = max(slowest, closed_within(sock, PATIENCE_S))
    return slowest


# ======================================================================================================================
# S3: fuzzing
# ======================================================================================================================


def fuzz(soak: bool) -> Iterator[Figure]:
    """S3."""
    yield from hostile_parsers.fuzz(10_000_000 if soak else 200_000)
    yield from fuzz_over_tcp(1_000_000 if soak else 20_000)


def fuzz_over_tcp(count: int) -> Iterator[Figure]:
    """Damaged frames to a process: half of them from strangers, half inside of records that are right."""
    choose = random.Random(3)
    with target(env={"PYCOSLITE_GIVE_UP_S": "0.3"}) as victim:        # who vanished is remembered for so long
        strangers_frames(victim, choose, 400)
        insiders_frames(victim, choose, 2000)                       # warm
        before = victim.memory()
        with Prober(victim.port) as prober:
            for _ in range(0, count, 2000):
                strangers_frames(victim, choose, 1000)
                insiders_frames(victim, choose, 1000)
        yield Figure("damaged frames over TCP", count)
        yield Figure("alive after them", victim.alive, "", "==", 1)
        yield Figure("resident memory grown", max(0, victim.memory() - before) / MIB, "MiB", "<=", 8)
        yield Figure("probes meanwhile", prober.count, "", ">=", 1)
        yield Figure("probes that got no answer", len(prober.failures), "", "==", 0)
        yield Figure("slowest probe, with its connection and handshake", prober.worst_s * 1000, "ms", "<=", 100)
        yield Figure("tracebacks in its log", victim.lines("Traceback (most recent call last)"), "", "==", 0)


STRANGERS_FRAMES = [auth_head(40) + bytes(72), auth_head(2048) + bytes(2080), b"R\x01", b"PYCL\x01\x01\x01" + bytes(32),
                    pycoslite.session_frame(1, 0, 0), pycoslite.encode_frame(pycoslite.MESSAGE, bytes(8), CANARY)]


def strangers_frames(victim: Target, choose: random.Random, count: int) -> None:
    """So many damaged frames, fifty to a connection, from connections that never prove anything."""
    for _ in range(0, count, 50):
        sock = stranger(victim.port)
        send_all(sock, b"".join(mutated(choose, choose.choice(STRANGERS_FRAMES)) for _ in range(50)))
        with sock, contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass


LINK_FRAMES = [pycoslite.ack_frame(0), pycoslite.session_frame(1, 0, 0), pycoslite.encode_frame(Code.PING, b"ping"),
               pycoslite.encode_frame(Code.PONG, b"pong"), pycoslite.encode_frame(Code.PING, bytes(100_000))]
INSIDERS_FRAMES = [
    pycoslite.encode_frame(code, body) for code, body in (
        (pycoslite.REQUEST, struct.pack(">II", 1, 27) + b'{"op":"file.end","args":{}}'),
        (pycoslite.REQUEST, struct.pack(">II", 0, 2) + b"{}"), (pycoslite.REPLY, struct.pack(">IBI", 1, 0, 2) + b"{}"),
        (pycoslite.MESSAGE, struct.pack(">Q", 1) + pycoslite.serialize("x")),
        (pycoslite.DELIVER, struct.pack(">QI", 1, 1) + pycoslite.serialize("x")), (pycoslite.DELIVERED, bytes(5)),
        (pycoslite.SPREAD, struct.pack(">IBIdI", 1, 0, 0, 1.0, 2) + b"{}" + CANARY), (pycoslite.REACHED, bytes(8)),
        (pycoslite.CHUNK, bytes(8) + b"data"), (pycoslite.WRITTEN, bytes(16)), (64, b"job"), (200, b""))]


def insiders_frames(victim: Target, choose: random.Random, count: int) -> None:
    """So many damaged frames in records with the right MAC; a new connection whenever one of them has ended it, as
    those of the link itself do."""
    hostile_insiders.attack(lambda: Insider(victim.port), (
        harmless(mutated(choose, choose.choice(INSIDERS_FRAMES if number % 50 else LINK_FRAMES)))
        for number in range(count)), 100)


def harmless(frame: bytes) -> bytes:
    """The frame with its true length (else it only waits for more), and not a pickle that does what pickles can do."""
    body, code = frame[5:], frame[4] if len(frame) > 4 else 200
    if code in (pycoslite.MESSAGE, pycoslite.DELIVER, pycoslite.SPREAD):
        body = body.replace(b"builtins", b"biultins")
    return pycoslite.encode_frame(code, body)


# ======================================================================================================================
# S4: silent and slow strangers, too few descriptors
# ======================================================================================================================


def crowds(soak: bool) -> Iterator[Figure]:
    """S4."""
    limit_s, goal_s = (3.0, 5.0) if soak else (1.0, PATIENCE_S)
    with target(env={"PYCOSLITE_HANDSHAKE_S": str(limit_s)}) as victim:
        started = time.monotonic()
        with Prober(victim.port) as prober:
            silent = [stranger(victim.port) for _ in range(500)]
            slow = [stranger(victim.port) for _ in range(50)]
            dribble(slow, limit_s)
            cut = sum(closed_within(sock, started + goal_s - time.monotonic()) < goal_s for sock in silent + slow)
        yield Figure("of 500 silent and 50 dribbling connections cut within %g s" % goal_s, cut, "", "==", 550)
        yield from probed(prober)
    yield from churn(soak)
    yield from few_descriptors(soak)


def dribble(socks: List[socket.socket], limit_s: float) -> None:
    """Send a byte of a handshake on each, every now and then, for as long as they may take."""
    message = auth_head(2048)
    for number in range(int(limit_s * 10)):
        for sock in socks:
            send_all(sock, message[number:number + 1])
        time.sleep(0.1)                     # dribbling is what they do


def churn(soak: bool) -> Iterator[Figure]:
    """Four strangers who connect again and again, as fast as they can: the places of the half-open are always taken."""
    ended, count = threading.Event(), [0] * 4
    with target() as victim:
        def knock(number: int) -> None:
            socks: List[socket.socket] = []
            while not ended.is_set():
                with contextlib.suppress(OSError):
                    socks.append(socket.create_connection((HOST, victim.port), timeout=PATIENCE_S))
                    count[number] += 1
                if len(socks) > 40:
                    socks.pop(0).close()
            for sock in socks:
                sock.close()
        threads = [threading.Thread(target=knock, args=(number,)) for number in range(len(count))]
        with Prober(victim.port) as prober:
            for thread in threads:
                thread.start()
            ended.wait(10 if soak else 1.5)         # as long as it is watched
            ended.set()
            for thread in threads:
                thread.join()
        yield Figure("connections of strangers who connect again and again", sum(count))
        yield Figure("probes meanwhile that got no answer, of %d" % prober.count, len(prober.failures), "", "==", 0)
        yield Figure("slowest probe, in the same queue as they", prober.worst_s * 1000, "ms")


def probed(prober: Prober) -> Iterator[Figure]:
    """What the probes found."""
    yield Figure("probes meanwhile that got no answer, of %d" % prober.count, len(prober.failures), "", "==", 0)
    yield Figure("slowest probe, with its connection and handshake", prober.worst_s * 1000, "ms", "<=", 100)


def few_descriptors(soak: bool) -> Iterator[Figure]:
    """256 descriptors and 400 strangers: first with the limit of half-open connections, then without one."""
    with target("descriptors=256") as victim:
        with Prober(victim.port) as prober:
            socks = [stranger(victim.port) for _ in range(400)]
            time.sleep(0.5)                 # as long as it is watched
        yield Figure("256 descriptors, 400 strangers: probes that got no answer, of %d" % prober.count,
                     len(prober.failures), "", "==", 0)
        for sock in socks:
            sock.close()
    watched_s = 5.0 if soak else 1.5
    wait_s = watched_s + 1.5
    with target("descriptors=256", env={"PYCOSLITE_PENDING_HANDSHAKES": "1000",
                                        "PYCOSLITE_HANDSHAKE_S": str(wait_s)}) as victim, Insider(victim.port) as known:
        with contextlib.ExitStack() as stack:
            for _ in range(400):            # most are only in the system's queue
                stack.enter_context(socket.create_connection((HOST, victim.port), timeout=PATIENCE_S))
            known.ping()
            before = victim.cpu_s()
            time.sleep(watched_s)           # as long as it is watched
            share = (victim.cpu_s() - before) / watched_s
            yield Figure("no descriptor left: answers who was connected before, after", known.ping() * 1000, "ms", "<=",
                         100)
            yield Figure("no descriptor left: processor time while nothing happens", share * 100, "%", "<", 5)
        with Insider(victim.port) as insider:
            insider.ping()
        yield Figure("no descriptor left: complaints in its log", victim.lines("no connection can be accepted"), "",
                     "<=", 2)
        yield Figure("served again once the strangers are gone", 1, "", "==", 1)


# ======================================================================================================================
# S5: datagrams
# ======================================================================================================================


def datagrams(soak: bool) -> Iterator[Figure]:
    """S5, but for the time that a datagram takes."""
    port, count = free_port(), 20_000 if soak else 2_000
    choose, ping = random.Random(5), new_ping()
    with target("discover_peers=True", "udp_port=%d" % port) as victim, \
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((HOST, 0))
        first_answer(sock, port)
        sock.settimeout(PATIENCE_S)
        descriptors, asked, most, answers = victim.descriptors(), 0, 0.0, 0
        for number in range(count):
            data = new_ping() if number % 3 == 0 else mutated(choose, ping)[:512]
            sock.sendto(data, (HOST, port))
            asked += len(data)
            if number % 3 == 0:
                answer = sock.recv(4096)            # one for each that is right, in order
                answers, most = answers + len(answer), max(most, len(answer) / len(ping))
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    answers += len(sock.recv(4096))
            sock.settimeout(PATIENCE_S)
        yield Figure("longest answer, in lengths of the question", most, "", "<=", 1)
        yield Figure("bytes answered for each byte asked", answers / asked, "", "<=", 1)
        yield Figure("connections and descriptors it opened", victim.descriptors() - descriptors, "", "==", 0)
        yield Figure("log lines about %d datagrams" % count, victim.lines("WARNING"), "", "<=", 10)
    yield from replayed_answers()


def new_ping() -> bytes:
    """A ping that nobody has sent before, by somebody who knows the secret."""
    return pycoslite.encode_datagram(KEY, pycoslite.PING, os.urandom(16), 1, 255, "pycoslite", os.urandom(16))


def first_answer(sock: socket.socket, port: int) -> None:
    """Ask until the process answers, which begins to listen at its UDP port a moment after it is ready."""
    sock.settimeout(0.2)
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        sock.sendto(new_ping(), (HOST, port))
        with contextlib.suppress(socket.timeout):
            sock.recv(4096)
            return
    raise AssertionError("the process does not answer a ping")


def replayed_answers() -> Iterator[Figure]:
    """A search is answered, and the answer repeated by an eavesdropper, when the search is long over."""
    with contextlib.ExitStack() as stack:
        network = FakeNetwork()
        discovery = pycoslite.Discovery(network, 1, [])             # type: ignore[arg-type]
        discovery._asking[socket.AF_INET] = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        discovery._send = lambda sock, data, address: network.sent.append(data)     # type: ignore[method-assign]
        found: List[Any] = []
        discovery._found = lambda *where: found.append(where)       # type: ignore[method-assign]
        discovery._ping(1, 1, [HOST])
        nonce = network.sent[0][33:49]
        strange = [os.urandom(16) for _ in range(100)]
        for this in strange:                                        # answers to what nobody asked
            feed(discovery, pycoslite.encode_datagram(KEY, pycoslite.PONG, os.urandom(16), 1, 1, "pycoslite", this))
        yield Figure("answers believed that nobody had asked for", len(found), "", "==", 0)
        answer = pycoslite.encode_datagram(KEY, pycoslite.PONG, os.urandom(16), 1, 1, "pycoslite", nonce)
        feed(discovery, answer)
        yield Figure("answers believed that somebody had asked for", len(found), "", "==", 1)
        network.engine.now += 3600
        feed(discovery, answer)
        yield Figure("answers believed when they were repeated an hour later", len(found) - 1, "", "==", 0)


class FakeNetwork:
    """As much of a network as `Discovery` needs to take a datagram."""

    def __init__(self) -> None:
        self.key, self.cluster, self.process_id, self.port = KEY, "pycoslite", bytes(16), 1
        self.role, self.closing, self.sockets, self.peers = "peer", False, [], {}
        self.sent: List[bytes] = []
        self.engine = self
        self.now = 1000.0

    def clock(self) -> float:
        """The time it is told to be."""
        return self.now

    def complain(self, *_args: Any) -> None:
        """Nobody listens."""


def feed(discovery: Any, data: bytes) -> None:
    """Have a `Discovery` take one datagram."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        far.setblocking(False)
        near.send(data)
        discovery._receive(AddressedSocket(far), 1)


class AddressedSocket:
    """A socket whose datagrams come from an address."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def recvfrom(self, size: int) -> Tuple[bytes, Tuple[str, int]]:
        """The next datagram."""
        return self._sock.recv(size), (HOST, 1)


ROWS: Dict[str, figures.Row] = {
    "S1": unpickles, "S2": kept, "S3": fuzz, "S4": crowds, "S5": datagrams, "S6": hostile_streams.recorded,
    "S9": hostile_files.files, "S10": hostile_monitor.sites, "S11": hostile_secrets.secrets,
    "I1": hostile_insiders.insiders, "I2": hostile_insiders.greedy}

if __name__ == "__main__":
    sys.exit(figures.main(ROWS))
