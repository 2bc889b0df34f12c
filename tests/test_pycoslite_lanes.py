"""Lanes: one stream of bytes over several connections, cut, carried out of order, put together; when there are any."""
from __future__ import annotations

import os
import random
import socket
import struct
import sys
import unittest
from collections import deque
from typing import Any, Callable, Dict, List, Optional
from unittest import mock

import pycoslite
from pycoslite import (READ, WRITE, Assembly, ChunkReader, ChunkWriter, PycosError, ProtocolError, RecordOpener,
                       RecordSealer, settings)
from tests.figures import SOAK
from tests.support import FakeClock, TestCase

KEY = b"k" * 32
HEAD_BYTES = 20


def chunks(*pieces: tuple, key: Any = KEY) -> bytes:
    """What a lane carries that begins with these (position, bytes)."""
    writer, data = ChunkWriter(key), b""
    for position, body in pieces:
        data += writer.chunk(position, body)
        writer.sent()
    return data


def dealt(data: bytes, chance: random.Random, count: int, longest: int = 300) -> List[bytes]:
    """What `count` lanes carry of `data`, dealt out by chance."""
    lanes, position = [[] for _ in range(count)], 0     # type: List[list], int
    while position < len(data):
        piece = data[position:position + chance.randint(1, longest)]
        chance.choice(lanes).append((position, piece))
        position += len(piece)
    return [chunks(*lane) for lane in lanes]


class Receiver:
    """Readers of several lanes and what they make together."""

    def __init__(self, count: int) -> None:
        self.readers = [ChunkReader(KEY) for _ in range(count)]
        self.assembly = Assembly()

    def feed(self, lane: int, data: bytes) -> None:
        """Bytes have come by a lane."""
        for position, piece in self.readers[lane].feed(data):
            self.assembly.add(position, piece)

    def take(self, most: int = 1 << 20) -> bytes:
        """What is in order."""
        space = memoryview(bytearray(most))
        return bytes(space[:self.assembly.read_into(space)])


def arrivals(lanes: List[bytes], chance: random.Random) -> Any:
    """(lane, bytes) as they may arrive: each lane in order, cut anywhere."""
    left = [deque([data]) for data in lanes]
    while any(left):
        number = chance.randrange(len(left))
        if left[number]:
            data = left[number].popleft()
            cut = chance.randint(1, 400)
            if data[cut:]:
                left[number].appendleft(data[cut:])
            if data[:cut]:
                yield number, data[:cut]


class ChunkTest(TestCase):
    """The pure parts."""

    def test_any_order_gives_the_same_bytes(self) -> None:
        for seed in range(60):
            chance = random.Random(seed)
            data = chance.randbytes(5000) if hasattr(chance, "randbytes") else bytes(
                chance.getrandbits(8) for _ in range(5000))
            count = chance.randint(1, 6)
            there, got = Receiver(count), b""
            for number, piece in arrivals(dealt(data, chance, count), chance):
                there.feed(number, piece)
                if chance.random() < 0.5:
                    got += there.take(chance.choice((1, 7, 1000)))
            while there.assembly.ready:
                got += there.take()
            self.assertEqual(got, data)
            self.assertEqual(there.assembly.held, 0)

    def test_what_is_held_is_counted(self) -> None:
        there = Receiver(2)
        there.feed(0, chunks((1, bytes(10))))
        self.assertFalse(there.assembly.ready)
        self.assertEqual(there.assembly.held, 10 + pycoslite._PIECE_COSTS)
        there.feed(1, chunks((0, b"1")))
        self.assertEqual(there.assembly.held, 11 + 2 * pycoslite._PIECE_COSTS)      # in order, and not taken
        self.assertEqual(there.take(4), b"1\0\0\0")
        self.assertEqual(there.take(), bytes(7))
        self.assertEqual(there.assembly.held, 0)

    def test_an_empty_chunk_says_nothing(self) -> None:
        there = Receiver(1)
        there.feed(0, chunks((0, b""), (0, b"ab"), (0, b"")))
        self.assertEqual(there.take(), b"ab")

    def test_what_comes_twice_is_refused(self) -> None:
        first = chunks((0, b"abcd"))
        for again in (first, chunks((3, b"de")), chunks((1, b"b"))):
            there = Receiver(2)
            there.feed(0, first)
            with self.assertRaisesRegex(ProtocolError, "came twice"):
                there.feed(1, again)
        there = Receiver(2)                         # also of what waits
        there.feed(0, chunks((2, b"cdef")))
        with self.assertRaisesRegex(ProtocolError, "came twice"):
            there.feed(1, chunks((0, b"abc")))

    def test_a_lane_does_not_go_back(self) -> None:
        with self.assertRaisesRegex(ProtocolError, "came behind what ends at 102"):
            ChunkReader(KEY).feed(chunks((100, b"ab"), (101, b"b")))

    def test_a_chunk_that_is_too_long_is_refused_at_once(self) -> None:
        with self.assertRaisesRegex(ProtocolError, "more than the"):
            ChunkReader(KEY).feed(chunks((0, bytes(pycoslite.RECORD_CAP + 1)))[:HEAD_BYTES])

    def test_the_end_of_a_lane(self) -> None:
        writer, reader = ChunkWriter(KEY), ChunkReader(KEY)
        data = writer.chunk(5, b"ab")
        writer.sent()
        for at, byte in enumerate(data + writer.end()):
            self.assertFalse(reader.ended, at)
            reader.feed(bytes((byte,)))
        self.assertTrue(reader.ended)
        for late in (writer.end(), writer.chunk(7, b"c"), writer.chunk(7, b"")):
            again = ChunkReader(KEY)
            again.feed(data)
            with self.assertRaisesRegex(ProtocolError, "wrong check|behind the last one"):
                again.feed(chunks((5, b"ab"), (pycoslite._LANE_ENDS, b""))[len(data):] + late)

    def test_a_changed_head_is_noticed_at_once(self) -> None:
        """Whatever bit of it is changed, with a key and without one; likewise a chunk that is left out, comes again, or
        is another lane's."""
        for key in (KEY, None):
            first, second, third = (chunks(*[(at, b"abc") for at in range(0, 3 * count, 3)], key=key)
                                    for count in (1, 2, 3))
            second, third = second[len(first):], third[len(second):]
            for bit in range(8 * HEAD_BYTES):
                changed = bytearray(second)
                changed[bit // 8] ^= 1 << bit % 8
                reader = ChunkReader(key)
                reader.feed(first)
                with self.assertRaisesRegex(ProtocolError, "wrong check"):
                    reader.feed(bytes(changed[:HEAD_BYTES]))
            for wrong in (first + third, second, first + first):
                with self.assertRaisesRegex(ProtocolError, "wrong check"):
                    ChunkReader(key).feed(wrong)
        with self.assertRaisesRegex(ProtocolError, "wrong check"):
            ChunkReader(b"x" * 32).feed(chunks((0, b"abc")))

    def test_a_chunk_that_was_not_sent_can_be_made_anew(self) -> None:
        writer = ChunkWriter(KEY)
        writer.chunk(0, b"no room for this")
        data = writer.chunk(0, b"but for this")
        writer.sent()
        self.assertEqual(ChunkReader(KEY).feed(data + writer.chunk(12, b".")), [(0, b"but for this"), (12, b".")])

    def test_nothing_changed_on_the_way_is_believed(self) -> None:
        """The records inside are what proves: whatever bit of a lane is changed, what comes out is a part of what was
        sent, or an error."""
        chance, sealer = random.Random(9705), RecordSealer(KEY)
        bodies = [b"%d " % number * 20 for number in range(30)]
        lanes = dealt(b"".join(part for body in bodies for part in sealer.seal([body])), chance, 3, 100)
        complete = 0
        for _ in range(300):
            changed = [bytearray(data) for data in lanes]
            victim = chance.choice(changed)
            victim[chance.randrange(len(victim))] ^= 1 << chance.randrange(8)
            there, opener, got = Receiver(3), RecordOpener(KEY), []
            try:
                for number, piece in arrivals(list(map(bytes, changed)), chance):
                    there.feed(number, piece)
                    if there.assembly.ready:
                        got += map(bytes, opener.feed(there.take()))
            except PycosError:
                pass
            self.assertEqual(got, bodies[:len(got)])
            complete += len(got) == len(bodies)
        self.assertEqual(complete, 0)


def line(sent: int, resent: int, rtt_s: float = 0.05, confirmed: int = 0) -> Any:
    """A line as TCP counts."""
    return pycoslite._Line(rtt_s, resent, sent, confirmed)


class StrainTest(TestCase):
    """When there are to be more connections."""

    def judged(self, now: float, found: Optional[Any], wide: bool = False, carried: float = 0.0) -> str:
        """What is said `now` seconds after it began with a fresh line."""
        strain = pycoslite._Strain()
        strain._carried = carried
        strain.begin(0.0, line(0, 0))
        return strain.judge(now, found, wide)

    def test_a_long_and_lossy_line(self) -> None:
        self.assertEqual(self.judged(settings.lanes_after_s, line(100, 5)),
                         "of the packets 5 % had to be sent again, at 50 ms there and back")

    def test_not_at_once(self) -> None:
        self.assertEqual(self.judged(settings.lanes_after_s / 2, line(100, 5)), "")

    def test_other_lines(self) -> None:
        for what, found in (("sound", line(10_000, 0)), ("few losses", line(10_000, 20)), ("not told", None),
                            ("short", line(100, 5, 0.001)), ("too few packets to know", line(10, 2))):
            with self.subTest(what):
                self.assertEqual(self.judged(1.0, found), "")

    def test_only_what_is_new_counts(self) -> None:
        strain = pycoslite._Strain()
        strain.begin(0.0, line(1000, 900))
        self.assertEqual(strain.judge(1.0, line(2000, 901), False), "")
        self.assertEqual(strain.judge(3.0, line(9000, 902), False), "")     # looked at anew from here on
        self.assertIn("50 %", strain.judge(4.0, line(9100, 952), False))

    def test_more_if_it_has_paid(self) -> None:
        found = line(1000, 50, 0.05, 1_000_000)
        self.assertTrue(self.judged(1.0, found, True, 500_000.0))
        self.assertEqual(self.judged(1.0, found, True, 900_000.0), "")

    def test_more_not_before_that_shows(self) -> None:
        self.assertTrue(self.judged(1.0, line(1000, 50, 0.05), True))
        self.assertEqual(self.judged(1.0, line(1000, 50, 0.2), True), "")

    def test_forced(self) -> None:
        with mock.patch.object(settings, "lanes_loss", 0.0), mock.patch.object(settings, "lanes_after_s", 0.0):
            self.assertIn("lanes_loss", self.judged(0.0, None))

    def test_what_a_system_tells(self) -> None:
        told = bytearray(pycoslite._TCP_INFO_BYTES)
        for layout, offset, value in (("=I", 68, 50_000), ("=I", 100, 7), ("=Q", 120, 1 << 33), ("=I", 156, 100)):
            struct.pack_into(layout, told, offset, value)
        self.assertEqual(pycoslite._line_by([bytes(told)]), line(100, 7, 0.05, 1 << 33))
        self.assertEqual(pycoslite._line_by([bytes(told)] * 2), line(200, 14, 0.05, 1 << 34))
        for short in ([], [b""], [bytes(told), bytes(told[:104])]):         # an older system
            self.assertIsNone(pycoslite._line_by(short))

    @unittest.skipUnless(sys.platform.startswith("linux"), "only Linux tells")
    def test_what_this_system_tells(self) -> None:
        near, far = connected()
        with near, far:
            near.sendall(bytes(5000))
            while len(far.recv(5000, socket.MSG_PEEK)) < 5000:
                pass
            found = pycoslite._line_of([near])
        self.assertGreaterEqual(found.sent, 1)
        self.assertEqual(found.resent, 0)
        self.assertLess(found.rtt_s, 1)
        self.assertIsNone(pycoslite._line_of([near]))               # closed


# ======================================================================================================================
# Two ends
# ======================================================================================================================


def connected() -> tuple:
    """The two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        return near, listener.accept()[0]


class Later:
    """What `call_later` gives."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def cancel(self) -> None:
        """Forget it."""
        self.call = ()


class FakeEngine:
    """A poller, a clock that stands still, and timers that are only noted."""

    def __init__(self, poller: Any) -> None:
        self.poller = poller
        self.clock = FakeClock()
        self.now = self.clock()
        self.space = memoryview(bytearray(65536))
        self.timers: List[Later] = []

    @staticmethod
    def post(function: Callable, *args: Any) -> None:
        """Now is soon enough."""
        function(*args)

    def call_later(self, _delay_s: float, function: Callable, *args: Any) -> Later:
        """Note a timer."""
        self.timers.append(Later(function, *args))
        return self.timers[-1]


class FakeLink:
    """What `_Lanes` needs of a `Link`: it sends and takes records, and keeps what came of them."""

    cipher = None

    def __init__(self, engine: FakeEngine, sock: socket.socket, role: str) -> None:
        self.engine, self.role = engine, role
        self.sock: Any = sock
        sock.setblocking(False)
        self.peer = mock.Mock(link=self, state="up")
        self.network = mock.Mock()
        self.where = "there"
        self.unsent: list = []
        self.interest = READ
        self.last_out = 0.0
        self.record_bytes = 1000
        self.sealer, self.opener = RecordSealer(KEY), RecordOpener(KEY)
        self.got = b""
        self.errors: List[Exception] = []
        engine.poller.register(sock.fileno(), READ, self.on_events)
        self.lanes: Any = pycoslite._Lanes(self, "name", 16)

    def on_events(self, events: int) -> None:
        """The socket is ready."""
        if events & READ:
            self.read()
        if events & WRITE and self.sock is not None:
            self.send([])

    def read(self) -> bool:
        """As Link.read."""
        try:
            count = self.sock.recv_into(self.engine.space)
        except BlockingIOError:
            return False
        except OSError as error:
            self.fail(error)
            return True
        if not count:
            self.fail(ConnectionError("closed"))
            return True
        for body in self.opener.feed(self.engine.space[:count]):
            self.got += body
            if not body:
                self.lanes.turn()
        return True

    def send(self, buffers: list) -> None:
        """As Link.write and what follows."""
        self.unsent += buffers
        try:
            while self.unsent:
                sent = self.sock.sendmsg(self.unsent)
                self.unsent = pycoslite._behind(self.unsent, sent)
        except BlockingIOError:
            pass
        except OSError as error:
            self.mute(error)
        before, self.interest = self.interest, READ | (WRITE if self.unsent else 0)
        if self.interest == before:
            return
        if self.sock is self.lanes:
            self.lanes.watch()
        elif self.sock is not None:
            self.engine.poller.modify(self.sock.fileno(), self.interest)

    def fail(self, error: Exception) -> None:
        """It ends."""
        if self.sock is not None:
            self.errors.append(error)
            self.engine.poller.unregister(self.sock.fileno())
            sock, self.sock = self.sock, None
            self.lanes.stop()
            sock.close()

    mute = fail


class HalfSocket:
    """A socket that sends half of what it is given."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def send(self, data: bytes) -> int:
        """Send the first half."""
        return self.sock.send(data[:(len(data) + 1) // 2])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


class LanesTest(TestCase):
    """Two ends with real connections, driven by hand."""

    def setUp(self) -> None:
        super().setUp()
        self.poller = pycoslite.Poller()
        self.addCleanup(self.poller.close)
        self.begin(9705)

    def begin(self, seed: int) -> None:
        """A link, and a chance of its own."""
        near, far = connected()
        self.a = FakeLink(FakeEngine(self.poller), near, "dial")
        self.b = FakeLink(FakeEngine(self.poller), far, "accept")
        for link in (self.a, self.b):
            self.addCleanup(link.fail, ConnectionError("the test is over"))
        self.chance = random.Random(seed)

    def lane(self) -> tuple:
        """One more lane; its two sockets."""
        near, far = connected()
        for sock, link, keys in ((near, self.a, (KEY, b"2" * 32)), (far, self.b, (b"2" * 32, KEY))):
            sock.setblocking(False)
            self.assertTrue(link.lanes.join(sock, link is self.a, keys))
        return near, far

    def turns(self, until: Callable[[], Any]) -> None:
        """Handle events until something holds."""
        for _ in range(5000):
            if until():
                return
            self.poller.handle(self.poller.poll(0.5))
        self.fail("it does not come")

    def widen(self, *links: FakeLink, count: int = 4) -> None:
        """Have lanes, and have them used."""
        for _ in range(count):
            self.lane()
        self.turns(lambda: all(lane.usable for lane in self.b.lanes.lanes))
        for link in links:
            link.lanes.supply.reason = "the test says so"
            link.send(link.sealer.seal([b"-"]))
            self.assertTrue(link.lanes.wide)

    def test_both_directions(self) -> None:
        self.widen(self.a, self.b)
        sent: Dict[FakeLink, bytes] = {self.a: b"-", self.b: b"-"}
        for _ in range(200):
            link = self.chance.choice((self.a, self.b))
            body = bytes((self.chance.randrange(256),)) * self.chance.choice((1, 100, 30_000, 200_000))
            sent[link] += body
            link.send(link.sealer.seal([body]))
            if self.chance.random() < 0.3:
                self.poller.handle(self.poller.poll(0))
        self.turns(lambda: len(self.b.got) == len(sent[self.a]) and len(self.a.got) == len(sent[self.b]))
        self.assertTrue(self.b.got == sent[self.a] and self.a.got == sent[self.b])
        for link in (self.a, self.b):
            self.assertGreater(sum(lane.reader.position > 0 for lane in link.lanes.lanes), 1)     # several were used
            self.assertEqual(link.errors, [])

    def test_each_direction_changes_by_itself(self) -> None:
        self.widen(self.a)
        self.b.send(self.b.sealer.seal([b"the old way"]))
        self.turns(lambda: self.a.got == b"the old way" and self.b.got == b"-")
        self.assertTrue(self.b.lanes._turned and not self.a.lanes._turned)

    def test_not_before_all_is_with_the_first_connection(self) -> None:
        for _ in range(2):
            self.lane()
        self.a.lanes.supply.reason = "the test says so"
        self.a.sock._first.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        body = bytes(3_000_000)
        for at in range(0, len(body), 100_000):
            self.a.send(self.a.sealer.seal([body[at:at + 100_000]]))
        self.assertFalse(self.a.lanes.wide)
        self.turns(lambda: len(self.b.got) == len(body))
        self.assertTrue(self.a.lanes.wide)

    def test_one_lane_is_not_used(self) -> None:
        self.lane()
        self.a.lanes.supply.reason = "the test says so"
        self.a.send(self.a.sealer.seal([b"-"]))
        self.assertFalse(self.a.lanes.wide)

    def test_what_is_kept_is_bounded(self) -> None:
        """One lane owes the first bytes, the others go on: they are read no more, that one is."""
        with mock.patch.object(settings, "lanes_held_bytes", 100_000):
            self.widen(self.a)
            self.turns(lambda: self.b.got == b"-")
            first = self.b.lanes._assembly.position
            owing, other = self.a.lanes.lanes[:2]
            other.sock.setblocking(True)
            other.sock.settimeout(0.5)
            filler = other.writer.chunk(first + 1000, bytes(1 << 20))
            position, held = 0, self.b.lanes._assembly
            while position < len(filler):
                try:
                    position += other.sock.send(filler[position:position + 65536])
                except socket.timeout:
                    break                               # TCP's own buffers are full
                self.poller.handle(self.poller.poll(0))
            self.turns(lambda: self.b.lanes._crowded)
            other.sock.setblocking(False)
            for _ in range(20):
                self.poller.handle(self.poller.poll(0))
            self.assertLessEqual(held.held, 100_000 + 2 * 65536 + 1000 * pycoslite._PIECE_COSTS)
            reading = [bool(lane.interest & READ) for lane in self.b.lanes.lanes]
            self.assertEqual(reading.count(False), 1)
            body = self.chance.getrandbits(8000).to_bytes(1000, "big")
            taken = []
            with mock.patch.object(self.b, "read", lambda: taken.append(self.take_all())):
                owing.sock.send(owing.writer.chunk(first, body))
                self.turns(lambda: sum(map(len, taken)) >= 1000 + 65536)
            self.assertEqual(b"".join(taken)[:1000], body)
            self.assertFalse(self.b.lanes._crowded)

    def take_all(self) -> bytes:
        """What is in order at b, without looking at it."""
        space = memoryview(bytearray(1 << 20))
        return bytes(space[:self.b.sock.recv_into(space)])

    def test_the_end_is_that_of_all_connections(self) -> None:
        self.widen(self.a)
        self.a.send(self.a.sealer.seal([b"last words"]))
        self.a.fail(ConnectionError("enough"))
        self.turns(lambda: self.b.errors)
        self.assertEqual(self.b.got, b"-last words")
        self.assertEqual(str(self.b.errors[0]), "closed")

    def test_what_comes_behind_the_end_of_the_first_connection(self) -> None:
        self.widen(self.a)
        self.turns(lambda: self.b.got == b"-")
        self.a.sock._first.sock.shutdown(socket.SHUT_WR)
        self.turns(lambda: self.b.engine.timers)
        self.a.send(self.a.sealer.seal([b"it goes on"]))
        self.turns(lambda: self.b.got == b"-it goes on")
        self.assertEqual(self.b.errors, [])

    def test_half_a_chunk(self) -> None:
        """The system takes a part of a chunk, and there is nothing else to be sent."""
        self.widen(self.a)
        for lane in self.a.lanes.lanes:
            lane.sock = HalfSocket(lane.sock)
        self.a.send(self.a.sealer.seal([b"these are two halves"]))
        self.assertEqual(self.a.unsent, [])
        self.turns(lambda: self.b.got == b"-these are two halves")

    def test_one_end_is_not_waited_for_without_limit(self) -> None:
        self.widen(self.a)
        self.turns(lambda: self.b.got == b"-")
        self.a.lanes.lanes[1].sock.shutdown(socket.SHUT_WR)
        self.turns(lambda: any(timer.call for timer in self.b.engine.timers))
        self.assertEqual(self.b.errors, [])
        function, error = self.b.engine.timers[-1].call
        function(error)
        self.assertIn("a part of it", str(self.b.errors[0]))

    def test_a_lane_that_is_not_used_may_go(self) -> None:
        self.lane()
        self.lane()
        self.turns(lambda: all(lane.usable for lane in self.b.lanes.lanes))
        self.a.lanes.lanes[0].sock.shutdown(socket.SHUT_RDWR)
        self.turns(lambda: len(self.b.lanes.lanes) == 1 and len(self.a.lanes.lanes) == 1)
        self.assertEqual(self.a.errors + self.b.errors, [])

    def test_a_dial_that_was_given_up_ends_nothing(self) -> None:
        self.widen(self.a)
        near, far = connected()
        far.setblocking(False)
        self.b.lanes.join(far, False, (KEY, KEY))
        near.close()                                    # it has said nothing
        self.turns(lambda: len(self.b.lanes.lanes) == 4)
        self.assertEqual([timer.call for timer in self.b.engine.timers], [])

    def test_a_broken_lane_ends_the_link(self) -> None:
        self.widen(self.a)
        self.turns(lambda: self.b.got == b"-")
        lane = self.a.lanes.lanes[0].sock
        lane.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.poller.unregister(lane.fileno())
        lane.close()
        self.turns(lambda: self.b.errors)
        self.assertIsInstance(self.b.errors[0], ConnectionResetError)

    def test_nonsense_in_a_lane_ends_the_link(self) -> None:
        self.widen(self.a)
        self.turns(lambda: self.b.got == b"-")
        self.a.lanes.lanes[2].sock.send(b"GET / HTTP/1.1\r\nHost: there\r\n\r\n")
        self.turns(lambda: self.b.errors)
        self.assertIsInstance(self.b.errors[0], ProtocolError)
        self.assertIsNone(self.b.sock)

    def test_the_first_connection_stays_silent(self) -> None:
        self.widen(self.a)
        self.turns(lambda: self.b.got == b"-")
        self.a.sock._first.sock.send(b"more")
        self.turns(lambda: self.b.errors)
        self.assertIn("nothing follows", str(self.b.errors[0]))

    def test_no_more_than_both_want(self) -> None:
        self.a.lanes.most = 3
        for _ in range(3):
            self.assertTrue(self.a.lanes.join(self.new(), True, (KEY, KEY)))
        spare = self.new()
        self.assertFalse(self.a.lanes.join(spare, True, (KEY, KEY)))
        spare.close()

    def new(self) -> socket.socket:
        """A connection to nobody in particular."""
        near, far = connected()
        self.addCleanup(far.close)
        near.setblocking(False)
        return near

    def test_wrong_words(self) -> None:
        with self.assertRaisesRegex(ProtocolError, "by the end that dials"):
            self.b.lanes.supply.told(4)
        with self.assertRaisesRegex(ProtocolError, "without any lanes"):
            self.b.lanes.turn()
        self.widen(self.a)
        self.turns(lambda: self.b.got == b"-")
        with self.assertRaisesRegex(ProtocolError, "twice"):
            self.b.lanes.turn()

    # -- fewer ---------------------------------------------------------------------------------------------------------

    def connect_supplies(self) -> None:
        """What the accepting end has to say about lanes reaches the other one, which dials none."""
        def say(frame: bytes) -> None:
            self.assertEqual(frame[4], pycoslite.Code.LANES)
            self.a.lanes.supply.told(frame[5])
        self.b.peer.session.control = say
        dials = mock.patch.object(pycoslite, "_Dial")
        self.dials = dials.start()
        self.addCleanup(dials.stop)

    @staticmethod
    def rest(link: FakeLink) -> None:
        """The time of an end's `lanes_idle_s` is up."""
        supply = link.lanes.supply
        timer, = (timer for timer in link.engine.timers if timer.call and timer.call[0] == supply._rest)
        timer.call = ()
        supply._rest()

    def counts(self) -> tuple:
        """How many lanes there are at both ends."""
        return len(self.a.lanes.lanes), len(self.b.lanes.lanes)

    def test_half_of_the_lanes_end_when_both_ends_have_been_idle(self) -> None:
        self.connect_supplies()
        self.widen(self.a, self.b, count=8)
        self.b.lanes.supply._want(8)
        self.a.lanes.supply._want(4)
        for idle, wanted in ((self.a, 8), (self.b, 4), (self.b, 2)):
            self.rest(idle)
            self.turns(lambda wanted=wanted: self.counts() == (wanted, wanted))
        for link in (self.a, self.b):           # no fewer, and nobody looks any more
            self.assertEqual([timer.call for timer in link.engine.timers], [()] * len(link.engine.timers))
            link.send(link.sealer.seal([b"still here"]))
            self.assertEqual(link.errors, [])
        self.turns(lambda: self.a.got == self.b.got == b"-still here")
        self.dials.assert_not_called()
        self.a.lanes.supply._want(4)            # more again
        self.assertEqual(self.dials.call_count, 2)

    def test_an_end_that_was_held_up_keeps_its_lanes(self) -> None:
        self.connect_supplies()
        self.widen(self.a, count=8)
        supply = self.a.lanes.supply
        supply._want(8)
        for hold_up in (supply.strained, lambda: self.a.unsent.append(b"waits")):
            hold_up()
            self.rest(self.a)
            self.assertEqual((supply.wanted, len(self.a.lanes.used())), (8, 8))
        self.a.unsent.clear()
        self.rest(self.a)
        self.assertEqual((supply.wanted, len(self.a.lanes.used())), (4, 4))

    def test_nothing_is_lost_when_lanes_end(self) -> None:
        """Lanes end, full as they are, while both ends send; one by one, by chance, or told by the other end."""
        for seed in range(200 if SOAK else 3):
            with self.subTest(seed):
                self.begin(seed)
                self.lanes_end()
                self.a.fail(ConnectionError("enough"))
                self.b.fail(ConnectionError("enough"))

    def lanes_end(self) -> None:
        """The same with one link."""
        self.connect_supplies()
        self.widen(self.a, self.b, count=16)
        self.a.lanes.most = self.b.lanes.most = 16
        sent: Dict[FakeLink, List[bytes]] = {self.a: [b"-"], self.b: [b"-"]}
        for lane in self.a.lanes.lanes + self.b.lanes.lanes:
            lane.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        for turn in range(400):
            link = self.chance.choice((self.a, self.b))
            body = bytes((self.chance.randrange(256),)) * self.chance.choice((1, 100, 3000, 30_000, 200_000))
            sent[link].append(body)
            link.send(link.sealer.seal([body]))
            if self.chance.random() < 0.5:
                self.poller.handle(self.poller.poll(0))
            used = self.a.lanes.used()
            if turn % 40 == 0 and len(used) > 4:
                self.a.lanes.let_go(self.chance.choice(used))
            elif turn == 300:
                self.b.lanes.supply._want(3)
        self.turns(lambda: all(map(self.all_came, sent.items())) and self.counts() == (3, 3))
        self.assertEqual(self.a.got + self.b.got, b"".join(sent[self.b] + sent[self.a]))
        self.assertEqual(self.a.errors + self.b.errors, [])

    def all_came(self, sent: tuple) -> bool:
        """Whether the other end of `sent[0]` has as many bytes as it was sent."""
        return len((self.b if sent[0] is self.a else self.a).got) == sum(map(len, sent[1]))

    def test_half_a_chunk_and_the_end(self) -> None:
        self.widen(self.a)
        for lane in self.a.lanes.lanes:
            lane.sock = HalfSocket(lane.sock)
        self.a.send(self.a.sealer.seal([b"these are two halves"]))
        lane, = (lane for lane in self.a.lanes.lanes if lane.unsent)
        self.a.lanes.let_go(lane)
        self.turns(lambda: self.counts() == (3, 3))
        self.assertEqual(self.b.got, b"-these are two halves")
        self.assertEqual(self.a.errors + self.b.errors, [])

    def test_either_end_may_begin(self) -> None:
        self.widen(self.a)
        self.b.lanes.let_go(self.b.lanes.lanes[1])
        self.turns(lambda: self.counts() == (3, 3))
        self.assertEqual(self.a.errors + self.b.errors, [])

    def test_a_lane_that_breaks_before_its_end_ends_the_link(self) -> None:
        self.widen(self.a)
        self.turns(lambda: self.b.got == b"-")
        for lane in self.a.lanes.lanes:
            lane.leave()
        lane = self.b.lanes.lanes[0].sock
        lane.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.poller.unregister(lane.fileno())
        lane.close()
        self.turns(lambda: self.a.errors)
        self.assertIsInstance(self.a.errors[0], ConnectionError)

    def test_lanes_are_used_in_turn_when_little_is_sent(self) -> None:
        self.widen(self.a)
        for _ in range(8):
            self.a.send(self.a.sealer.seal([b"ping"]))
            self.a.last_out, self.a.engine.now = self.a.engine.now, self.a.engine.now + pycoslite._TURN_S
        self.turns(lambda: self.b.got == b"-" + b"ping" * 8)
        self.assertTrue(all(lane.reader.position for lane in self.b.lanes.lanes))


class WhoTest(TestCase):
    """Which links may have lanes."""

    def lanes_for(self, near: bool, **info: Any) -> Any:
        """What a link to a peer that says `info` gets."""
        result = mock.Mock(peer_info=info)
        result.name = "n"
        with mock.patch.object(pycoslite, "_is_near", lambda _sock: near):
            return pycoslite._lanes_for(mock.Mock(), result)

    def test_both_ends_want_them(self) -> None:
        self.assertEqual(self.lanes_for(False, lanes=5).most, 5)
        self.assertEqual(self.lanes_for(False, lanes=1 << 40).most, settings.lanes)
        with mock.patch.object(settings, "lanes", 1000):
            self.assertEqual(self.lanes_for(False, lanes=1000).most, 255)       # what the frame LANES can ask for
        for said in ({}, {"lanes": 1}, {"lanes": 0}, {"lanes": "16"}, {"lanes": -1}):
            self.assertIsNone(self.lanes_for(False, **said))
        with mock.patch.object(settings, "lanes", 1):
            self.assertIsNone(self.lanes_for(False, lanes=16))

    def test_not_within_a_host(self) -> None:
        self.assertIsNone(self.lanes_for(True, lanes=16))
        with mock.patch.object(settings, "lanes_loss", 0.0):
            self.assertIsNotNone(self.lanes_for(True, lanes=16))

    def test_both_ends_give_a_connection_the_same_name(self) -> None:
        names = set()
        for _ in range(2):
            ends = [pycoslite.Handshake(role, KEY, role.encode().ljust(16), {}, os.urandom(32), "c")
                    for role in ("accept", "dial")]
            for _ in range(2):
                for one, other in (ends, ends[::-1]):
                    data = one.data_to_send()
                    if data:
                        other.receive(data)
            self.assertEqual(ends[0].result.name, ends[1].result.name)
            names.add(ends[0].result.name)
        self.assertEqual(len(names), 2)


if __name__ == "__main__":
    unittest.main()
