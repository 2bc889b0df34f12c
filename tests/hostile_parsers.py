"""Fuzzing of everything that reads what came from outside and is pure: bytes in, events or one of our errors out.

Each parser is a function of (seed chosen, damaged bytes) that returns what it made of them; it may raise PycosError and
nothing else. Those that take a stream are also fed the same bytes cut at random places: the outcome must not differ.
"""
from __future__ import annotations

import collections
import itertools
import os
import random
import time
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Tuple

import dispycos_lite
import pycoslite
from pycoslite import (Code, FrameDecoder, Handshake, PycosError, RecordOpener, RecordSealer, Session, encode_frame)
from tests.figures import Figure
from tests.hostile_wire import KEY, in_pieces, mutated, strange_arguments

NONCE, OTHER_NONCE = bytes(32), b"\1" * 32
A, B = b"a" * 16, b"b" * 16
TLS = pycoslite.CAN_ENCRYPT | pycoslite.WANTS_ENCRYPTION
MOST = 1 << 16                              # longest frame the fuzzed decoders take
STREAMS_CUT = 10                            # one in so many streams is fed in pieces, too


class Parser(NamedTuple):
    """Something to be fuzzed: well-formed inputs to be damaged, and what takes the pieces of one."""

    seeds: List[bytes]
    take: Callable[[Iterable[bytes], List[Any]], None]      # (pieces, events to be appended to); may raise PycosError
    stream: bool = True                                     # may come in pieces


def accepting(key: Any = KEY, flags: int = 0) -> Handshake:
    """The accepting end of a handshake, whose first words have not been sent; `flags` offer TLS."""
    end = Handshake("accept", key, B, {"name": "b"}, NONCE, "c")
    end.offer(flags)
    return end


def dialling(key: Any = KEY, flags: int = 0) -> Handshake:
    """The dialling end of a handshake."""
    end = Handshake("dial", key, A, {"name": "a"}, OTHER_NONCE, "c")
    end.offer(flags)
    return end


def conversation(key: Any = KEY, flags: int = 0) -> Tuple[bytes, bytes, bytes]:
    """What is said in a handshake: by the accepting end, by the dialling end, and by the accepting end again. With
    `flags` for TLS, of which the bytes are left out."""
    a, b = dialling(key, flags), accepting(key, flags)
    hello = b.data_to_send()
    hear(a, hello)
    said = a.data_to_send()
    hear(b, said)
    return hello, said, b.data_to_send()


def hear(end: Handshake, data: bytes) -> None:
    """Have a handshake take what came. Once TLS is agreed on, what follows counts as what came through it."""
    agreed = end.channel
    end.receive(data)
    if end.channel != agreed:
        below = end.ciphertext()
        end.bind(b"finished")
        if below:
            end.receive(below)


def take_handshake(make: Callable[[], Handshake]) -> Callable:
    """A taker that feeds a handshake, as a connection does."""
    def take(pieces: Iterable[bytes], events: List[Any]) -> None:
        end, rest = make(), b""
        try:
            for piece in pieces:
                if end.result is None:
                    hear(end, piece)
                else:
                    rest += piece
        finally:
            events.append(end.data_to_send())
            if end.result is not None:
                events.append((end.result.peer_id, end.result.leftover + rest))
    return take


def take_records(key: Any) -> Callable:
    """A taker that feeds records and the frames in them; link frames are read, too."""
    def take(pieces: Iterable[bytes], events: List[Any]) -> None:
        opener, decoder = RecordOpener(key, MOST), FrameDecoder(MOST)
        for piece in pieces:
            for body in opener.feed(piece):
                for code, frame in decoder.feed(body):
                    events.append((code, bytes(frame)))
                    if code == Code.SESSION:
                        pycoslite.parse_session(frame)
                    elif code == Code.ACK:
                        pycoslite.parse_ack(frame)
    return take


def take_whole(function: Callable[[bytes], Any]) -> Callable:
    """A taker of what comes in one piece."""
    def take(pieces: Iterable[bytes], events: List[Any]) -> None:
        events.append(function(b"".join(pieces)))
    return take


def read_frame(body: bytes) -> Any:
    """What is read of a frame of the cluster: the first byte says of which kind."""
    readers = (dispycos_lite.unpack_job, dispycos_lite.unpack_started, dispycos_lite.unpack_result,
               dispycos_lite.unpack_recall, dispycos_lite.unpack_run, dispycos_lite.unpack_returned)
    return readers[body[0] % len(readers)](body[1:])


def frames_of_the_link() -> List[bytes]:
    """A conversation's frames."""
    return [pycoslite.session_frame(1, 2, 3), encode_frame(64, b"x" * 30), pycoslite.ack_frame(1),
            encode_frame(65, b""), encode_frame(Code.PING, b"ping"), encode_frame(66, b"y" * 300),
            encode_frame(Code.BYE, b"bye")]


def blobs() -> List[bytes]:
    """A definition as a client sends it."""
    def function(number: int) -> int:
        return number + 1
    packer = dispycos_lite.Packer()
    key = packer.function(function)
    magic = pycoslite.importlib.util.MAGIC_NUMBER
    return [packer.blob(digest, magic) for digest in packer.closure_of(key)]


def parsers() -> Dict[str, Parser]:
    """All of them, by name."""
    hello, auth, accept = conversation()
    tls_hello, start, tls_accept = conversation(KEY, TLS)
    frames = frames_of_the_link()
    sealed, sealer = [], RecordSealer(KEY)
    for frame in frames:
        sealed += sealer.seal([frame])
    plain = [b"".join(RecordSealer(None).seal([frame])) for frame in frames]
    datagram = pycoslite.encode_datagram(KEY, pycoslite.PING, A, 9705, 1, "c", bytes(16))
    job = b"\0" + dispycos_lite.pack_job(1, 2, 0, bytes(16)) + b"arguments"
    setup = dispycos_lite._encode({"setup": bytes(16).hex()}, [b"arguments", b"a definition", b""])
    runs = b"\5" + dispycos_lite.pack_returned([(1, 2), (3, 4)])
    return {
        "handshake, accepting": Parser([auth, auth + b"more"], take_handshake(accepting)),
        "handshake, dialling": Parser([hello + accept, hello + accept + b"more"], take_handshake(dialling)),
        "handshake with TLS, accepting": Parser([start], take_handshake(lambda: accepting(KEY, TLS))),
        "handshake with TLS, dialling": Parser([tls_hello + tls_accept], take_handshake(lambda: dialling(KEY, TLS))),
        "handshake of an open cluster": Parser([conversation(None)[1]], take_handshake(lambda: accepting(None))),
        "records with MAC": Parser([b"".join(sealed)], take_records(KEY)),
        "records without MAC": Parser([b"".join(plain)], take_records(None)),
        "one record without MAC": Parser(plain, take_records(None)),
        "datagram": Parser([datagram], take_whole(lambda data: pycoslite.parse_datagram(KEY, "c", data)), False),
        "frames of the cluster": Parser([job, runs, b"\1" + bytes(20), b"\2" + bytes(13), b"\3" + bytes(4)],
                                        take_whole(read_frame), False),
        "definitions": Parser(blobs(), take_whole(lambda data: dispycos_lite._Received(data).key), False),
        "setup": Parser([setup], take_whole(dispycos_lite.unpack_setup), False),
    }


class Tally:
    """What a run of fuzzing has found."""

    def __init__(self) -> None:
        self.inputs = self.refused = self.cut = 0
        self.uncaught: Dict[str, int] = collections.Counter()
        self.differing: Dict[str, int] = collections.Counter()

    def outcome(self, name: str, take: Callable, pieces: Iterable[bytes]) -> Tuple[List[Any], bool]:
        """(events, whether they ended with an error of ours)."""
        events: List[Any] = []
        try:
            take(pieces, events)
        except PycosError:
            return events, True
        except Exception as error:          # whatever it is: this is what is looked for
            self.uncaught["%s: %s: %s" % (name, type(error).__name__, str(error)[:80])] += 1
            return events, True
        return events, False

    def one(self, name: str, parser: Parser, choose: random.Random) -> None:
        """Damage one input and have it parsed."""
        data = mutated(choose, choose.choice(parser.seeds))
        self.inputs += 1
        events, failed = self.outcome(name, parser.take, (data,))
        self.refused += failed
        if parser.stream and choose.random() * STREAMS_CUT < 1:
            self.cut += 1
            slowly = self.outcome(name, parser.take, in_pieces(choose, data))
            if not same(events, failed, *slowly):
                self.differing[name] += 1


def same(events: List[Any], failed: bool, slow_events: List[Any], slow_failed: bool) -> bool:
    """Whether a stream meant the same in one piece and in many. Where it ends the connection, what was right before
    that may have been handed out or not: the connection's end is all the same."""
    if not failed:
        return (events, False) == (slow_events, slow_failed)
    return slow_failed and slow_events[:len(events)] == events


def fuzz(count: int, seed: int = 1, most_s: float = float("inf")) -> Iterator[Figure]:
    """`count` damaged inputs to all parsers in turn, sessions and control requests included."""
    choose, tally, table = random.Random(seed), Tally(), parsers()
    names, started = list(table), time.perf_counter()
    run_some(tally, table, names, choose, min(count, 2000))     # whatever is made once
    before = memory()
    for start in range(0, count - 2000, 10_000):
        run_some(tally, table, names, choose, min(10_000, count - 2000 - start))
        if time.perf_counter() - started > most_s:
            break
    sessions, arguments = tally.inputs // 20, tally.inputs // 20
    fuzz_sessions(tally, choose, sessions)
    fuzz_arguments(tally, choose, arguments)
    yield Figure("damaged inputs to the pure parsers", tally.inputs)
    yield Figure("of them refused", tally.refused, "", ">=", tally.inputs // 10)
    yield Figure("exceptions that are none of ours %s" % (dict(tally.uncaught) or ""), sum(tally.uncaught.values()), "",
                 "==", 0)
    yield Figure("streams cut at random that meant something else %s" % (dict(tally.differing) or ""),
                 sum(tally.differing.values()), "", "==", 0)
    yield Figure("streams cut at random", tally.cut)
    yield Figure("a conversation, cut at every byte, that meant something else", every_cut(), "", "==", 0)
    yield Figure("memory grown", max(0, memory() - before) / (1 << 20), "MiB", "<=", 8)


def run_some(tally: Tally, table: Dict[str, Parser], names: List[str], choose: random.Random, count: int) -> None:
    """`count` inputs, each to the next parser."""
    for name in itertools.islice(itertools.cycle(names), count):
        tally.one(name, table[name], choose)


def memory() -> int:
    """Resident memory of this process in bytes; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def every_cut() -> int:
    """Of all ways to cut a connection's bytes in two, or into single bytes: how many changed what they meant."""
    wrong, tally = 0, Tally()
    for name, parser in parsers().items():
        for seed in parser.seeds if parser.stream else ():
            whole = tally.outcome(name, parser.take, (seed,))
            cuts: List[Tuple[bytes, ...]] = [(seed[:at], seed[at:]) for at in range(1, len(seed))]
            cuts.append(tuple(bytes((byte,)) for byte in seed))
            wrong += sum(tally.outcome(name, parser.take, pieces) != whole for pieces in cuts)
    return wrong


# ---- sessions: what a peer with the secret may claim to have received


NUMBERS = (0, 1, 2, 3, 5, 100, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)


def fuzz_sessions(tally: Tally, choose: random.Random, count: int) -> None:
    """`count` things said to sessions, which are begun anew from time to time."""
    session = Session(7)
    for number in range(count):
        if not number % 50:
            session = Session(7)
        tally.inputs += 1
        try:
            step_session(session, choose)
        except PycosError:
            tally.refused += 1
            session.disconnected()
        except Exception as error:          # as above
            tally.uncaught["session: %s: %s" % (type(error).__name__, error)] += 1
        if not (0 <= session._base <= session._confirmed <= max(session._sent, session._sent_before)
                and session.unconfirmed_frames >= 0 and session.unconfirmed_bytes >= 0):
            tally.uncaught["session: its numbers contradict each other"] += 1
            session = Session(7)


def step_session(session: Session, choose: random.Random) -> None:
    """One thing that happens to a session: the other end's part of it is anything."""
    kind = choose.randrange(7)
    if kind == 0:
        session.connected()
    elif kind == 1:
        session.on_session(choose.choice((1, 2, 9)), choose.choice((0, 7, 7, 8)), choose.choice(NUMBERS))
    elif kind == 2:
        session.on_ack(choose.choice(NUMBERS))
    elif kind == 3:
        session.push(encode_frame(64, b"xyz"), 8)
    elif kind == 4:
        session.next_batch(1 << 16, 0.0)
    elif kind == 5:
        session.note_received(choose.randrange(1, 3), 8, 0.0)
    else:
        session.disconnected()


# ---- control requests: what `checked` lets through is of the types that are announced


EXAMPLES: Dict[type, Any] = {str: "text", int: 1, float: 1.5, list: [], bool: True, dict: {}}


def usual_arguments(op: str) -> Dict[str, Any]:
    """Arguments as they should be."""
    return {name.rstrip("?"): EXAMPLES[kind] for name, kind in dispycos_lite.OPS[op].args.items()}


def fuzz_arguments(tally: Tally, choose: random.Random, count: int) -> None:
    """`count` requests of the cluster with strange arguments, as they come out of JSON."""
    ops = sorted(dispycos_lite.OPS)
    usual = {op: usual_arguments(op) for op in ops}
    for _ in range(count):
        op = choose.choice(ops)
        args = strange_arguments(choose, usual[op])
        tally.inputs += 1
        try:
            checked = dispycos_lite.checked(op, args)
        except PycosError:
            tally.refused += 1
        except Exception as error:          # as above
            tally.uncaught["%s: %s: %s" % (op, type(error).__name__, error)] += 1
        else:
            for name, kind in dispycos_lite.OPS[op].args.items():
                value = checked.get(name.rstrip("?"), EXAMPLES[kind])
                if isinstance(value, bool) is not (kind is bool):
                    tally.uncaught["%s: %s has passed as %r" % (op, name, value)] += 1
