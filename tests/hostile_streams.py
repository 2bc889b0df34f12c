"""Connections that somebody in between has recorded and changed: every bit, every cut, repeated, reordered, reflected.

A whole connection (handshake, then records both ways) is played between two ends made of the pure parts; what stands in
between may change any byte. Nothing that was changed may be taken for a message, and the connection must end.
"""
from __future__ import annotations

import contextlib
import socket
from typing import Any, Callable, Iterator, List, Optional, Tuple

import pycoslite
from pycoslite import FrameDecoder, Handshake, PycosError, RecordOpener, RecordSealer, encode_frame
from tests.figures import Figure
from tests.hostile_wire import HOST, KEY, PATIENCE_S, Insider, closed_within, target

A, B = b"a" * 16, b"b" * 16
LONGEST = 4096                              # of a record, here: what claims to be longer is refused at once
BODIES = [b"first", b"second" * 10, b"", b"third"]
FILLER = [bytes(1024)] * 6                  # goes on behind them, so that nobody waits for a record that never ends

Tamper = Callable[[str, int, bytes], bytes]     # (who sent it, its place in his stream, the bytes) -> what arrives


class End:
    """One end of a connection: what it has to say, and which messages it has taken."""

    def __init__(self, name: str, nonce: bytes) -> None:
        self.name = name
        role, process_id = ("dial", A) if name == "A" else ("accept", B)
        self.handshake: Optional[Handshake] = Handshake(role, KEY, process_id, {}, nonce, "c")
        self.taken: List[bytes] = []
        self.error: Optional[Exception] = None
        self.outbox = self.handshake.data_to_send()

    def receive(self, data: bytes) -> None:
        """Take what came, unless it has closed the connection."""
        if self.error is None and data:
            try:
                self._shake(data) if self.handshake is not None else self._take(data)
            except PycosError as error:
                self.error = error

    def _shake(self, data: bytes) -> None:
        handshake = self.handshake
        try:
            handshake.receive(data)
        finally:
            self.outbox += handshake.data_to_send()
        if handshake.result is not None:
            result, self.handshake = handshake.result, None
            sealer = RecordSealer(result.send_key)
            self._opener, self._decoder = RecordOpener(result.receive_key, LONGEST), FrameDecoder(LONGEST)
            for body in BODIES + FILLER:
                self.outbox += b"".join(sealer.seal([encode_frame(64, body)]))
            self._take(result.leftover)

    def _take(self, data: bytes) -> None:
        for body in self._opener.feed(data):
            self.taken += [bytes(frame) for _, frame in self._decoder.feed(body)]

    def says(self) -> bytes:
        """What it sends now."""
        data, self.outbox = self.outbox, b""
        return data


def untouched(_sender: str, _offset: int, data: bytes) -> bytes:
    """Nobody in between."""
    return data


def play(tamper: Tamper = untouched) -> Tuple[End, End, List[bytes]]:
    """A connection from its first to its last byte: both ends, and what each has said (A's stream, B's stream)."""
    a, b = End("A", bytes(32)), End("B", b"\1" * 32)
    said = {"A": b"", "B": b""}
    while a.outbox or b.outbox:
        for sender, other in ((b, a), (a, b)):
            data = sender.says()
            arriving = tamper(sender.name, len(said[sender.name]), data)
            said[sender.name] += data
            other.receive(arriving)
        if a.error is not None and b.error is not None:
            break
    return a, b, [said["A"], said["B"]]


def flips(said: List[bytes]) -> Iterator[Tuple[str, int, Tamper]]:
    """(sender, place of the byte, what flips one bit there), for every bit of both streams."""
    for sender, stream in zip("AB", said):
        for bit in range(len(stream) * 8):
            def flip(who: str, offset: int, data: bytes, sender: str = sender, bit: int = bit) -> bytes:
                place = (bit >> 3) - offset
                if who != sender or not 0 <= place < len(data):
                    return data
                damaged = bytearray(data)
                damaged[place] ^= 1 << (bit & 7)
                return bytes(damaged)
            yield sender, bit >> 3, flip


def ends_of_records(stream: bytes) -> List[int]:
    """Where each record with a message ends in what an end has said; they are the last that it said."""
    sizes = [4 + 5 + len(body) + pycoslite.MAC_BYTES for body in BODIES + FILLER]
    at, found = len(stream) - sum(sizes), []
    for size in sizes:
        at += size
        found.append(at)
    return found


def recorded(soak: bool) -> Iterator[Figure]:
    """S6."""
    a, b, said = play()
    filler = len(said[0]) - sum(4 + 5 + len(body) + pycoslite.MAC_BYTES for body in FILLER)
    yield Figure("messages taken each way when nobody is in between", min(len(a.taken), len(b.taken)), "", "==",
                 len(BODIES + FILLER))
    yield from flipped(said, filler)
    yield from cut_and_reordered(said)
    yield from repeated(said)
    yield from replayed_over_tcp(20 if soak else 3)


def flipped(said: List[bytes], filler: int) -> Iterator[Figure]:
    """Each bit of all that both ends say."""
    count = accepted = stayed_open = waits = 0
    ends = {"A": ends_of_records(said[0]), "B": ends_of_records(said[1])}
    spared = {"A": filler, "B": len(said[1]) - (len(said[0]) - filler)}
    for sender, place, tamper in flips(said):
        if place >= spared[sender]:                     # the filler is there to be waited for
            continue
        a, b, _ = play(tamper)
        receiver = b if sender == "A" else a
        count += 1
        accepted += len(receiver.taken) > sum(end <= place for end in ends[sender])
        if a.error is None and b.error is None:
            waits += receiver.handshake is not None         # a length has grown: it waits, until its time is up
            stayed_open += receiver.handshake is None
    yield Figure("bits flipped, of a connection from its first to its last byte", count)
    yield Figure("messages taken from a flipped bit on", accepted, "", "==", 0)
    yield Figure("connections that a flipped bit did not end", stayed_open, "", "==", 0)
    yield Figure("of those that it ended, by the time limit of the handshake", waits)


def cut_and_reordered(said: List[bytes]) -> Iterator[Figure]:
    """The dialling end's stream, cut after each byte; its records left out, repeated and exchanged."""
    stream, ends = said[0], ends_of_records(said[0])
    early = 0
    for cut in range(len(stream)):
        def truncate(who: str, offset: int, data: bytes, cut: int = cut) -> bytes:
            return data if who == "B" else data[:max(0, cut - offset)]
        early += len(play(truncate)[1].taken) != sum(end <= cut for end in ends)
    yield Figure("cuts after which another number of messages was taken than had come whole", early, "", "==", 0)
    starts = [ends[0] - (4 + 5 + len(BODIES[0]) + pycoslite.MAC_BYTES)] + ends[:-1]
    records = [stream[start:end] for start, end in zip(starts, ends)]
    accepted = count = 0
    for number in range(len(BODIES)):
        for changed in (records[:number] + records[number + 1:], records[:number + 1] + records[number:],
                        records[:number] + [records[number + 1], records[number]] + records[number + 2:]):
            def exchange(who: str, offset: int, data: bytes, changed: List[bytes] = changed) -> bytes:
                begins = starts[0] - offset         # where the records begin in what is said now
                return data if who == "B" or not 0 <= begins <= len(data) else data[:begins] + b"".join(changed)
            a, b, _ = play(exchange)
            count += 1
            accepted += b.error is None or len(b.taken) > number + (changed[number:number + 1] == [records[number]])
    yield Figure("records left out, repeated and exchanged", count)
    yield Figure("of these taken, or not answered by the end of the connection", accepted, "", "==", 0)


def repeated(said: List[bytes]) -> Iterator[Figure]:
    """Both streams, said again to ends of other connections, and to those who said them."""
    tries: List[End] = []
    for name, stream in (("B", said[0]), ("A", said[1]), ("A", said[0]), ("B", said[1])):
        end = End(name, b"\7" * 32)
        end.receive(stream)
        tries.append(end)
    a, b = End("A", bytes(32)), End("B", b"\1" * 32)
    for end in (a, b):                              # each hears nothing but itself
        end.receive(end.says() or said[0])
        end.receive(end.says())
        tries.append(end)
    yield Figure("streams replayed and reflected", len(tries))
    yield Figure("messages taken from them", sum(len(end.taken) for end in tries), "", "==", 0)
    yield Figure("connections that they did not end", sum(end.error is None for end in tries), "", "==", 0)


class Recording:
    """A socket that keeps what is sent."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self.sent = sock, b""

    def sendall(self, data: bytes) -> None:
        """Send and keep."""
        self.sent += data
        self._sock.sendall(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def replayed_over_tcp(times: int) -> Iterator[Figure]:
    """What a process with the secret has said to another, said again by one who has only listened."""
    with target() as victim:
        connect = socket.create_connection
        with contextlib.ExitStack() as stack:
            stack.callback(setattr, socket, "create_connection", connect)
            socket.create_connection = lambda *args, **how: Recording(connect(*args, **how))    # type: ignore
            insider = Insider(victim.port)
        with insider.sock._sock:                    # it goes without a goodbye, so nothing says the session is over
            insider.say(encode_frame(pycoslite.MESSAGE, bytes(8), pycoslite.serialize("once")))
            insider.ping()
        stayed_open = 0
        for _ in range(times):
            sock = connect((HOST, victim.port), timeout=PATIENCE_S)
            with contextlib.suppress(OSError):
                sock.sendall(insider.sock.sent)
            stayed_open += closed_within(sock, PATIENCE_S) == float("inf")
        with Insider(victim.port) as other:
            other.ping()
        victim.process.wait_for("(?s) is online.* is online")       # the one that was recorded, and the one right here
        online = victim.lines(" is online")
        yield Figure("a connection replayed to the process: stayed open, of %d" % times, stayed_open, "", "==", 0)
        yield Figure("and taken for a peer", online - 2, "", "==", 0)
