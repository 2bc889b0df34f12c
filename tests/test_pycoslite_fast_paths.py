"""What is done in short for the usual case gives what the long way gives: sections 6, 8, 18."""
from __future__ import annotations

import mmap
import os
import pickle
import random
import sys
import unittest
from collections import deque
from types import SimpleNamespace
from typing import Any, Callable, Iterator, List
from unittest import mock

import pycoslite
from pycoslite import (Engine, FrameDecoder, Kernel, Link, Peer, ProtocolError, RecordOpener, RecordSealer, Session,
                       Settings, ack_frame, encode_frame, frame_buffers)
from tests.support import TestCase

MIB = 1 << 20
LIMITS = Settings(record_bytes=4096, window_bytes=20_000, window_messages=60, queue_messages=60, ack_delay_s=0.2)


def whole_frame(body: bytes, first: int = 7) -> Any:
    """What comes out of a decoder that was fed a frame in two pieces, the first one of so many bytes."""
    frame = encode_frame(64, body)
    decoder = FrameDecoder(1 << 30)
    (_, came), = decoder.feed(frame[:first]) + decoder.feed(frame[first:])
    return came


class LongMessagesTest(TestCase):
    """Long messages are neither joined to be sent nor kept beside what they are unpickled to."""

    VALUES = (b"x" * (3 * MIB), bytearray(b"y" * (2 * MIB)), {"a": b"z" * 100_000, "b": [1, "two", b"w" * MIB]},
              list(range(300_000)), "u" * (2 * MIB))

    def test_parts_are_the_pickle(self) -> None:
        for value in self.VALUES + (1, b"", {"short": 1}):
            self.assertEqual(pickle.loads(b"".join(pycoslite.serialize_long(value))), value)

    def test_bytes_are_not_copied_and_bytearrays_are(self) -> None:
        fixed, changing = b"x" * (2 * MIB), bytearray(b"y" * (2 * MIB))
        parts = pycoslite.serialize_long([fixed, changing])
        self.assertTrue(any(part is fixed for part in parts))
        changing[:] = bytes(len(changing))          # as a program may, once it has sent it
        self.assertEqual(pickle.loads(b"".join(parts)), [fixed, bytearray(b"y" * (2 * MIB))])

    @unittest.skipUnless(pycoslite._Mapped._ADVICE, "only Linux can keep such memory")
    def test_memory_of_a_copy_is_used_again_once_nobody_has_a_view_of_it(self) -> None:
        copy_of, spare = pycoslite._Mapped.copy_of, pycoslite._Mapped._spare
        spare.clear()
        self.addCleanup(spare.clear)
        first = copy_of(bytearray(b"1" * 3 * MIB))
        piece, memory = first[5:10], first.obj
        first = None
        second = copy_of(bytearray(b"2" * 3 * MIB))
        self.assertIsNot(second.obj, memory)
        self.assertEqual(bytes(piece), b"11111")
        piece = None
        third = copy_of(bytearray(b"3" * 2 * MIB))
        self.assertIs(third.obj, memory)
        self.assertEqual((len(third), bytes(third[:1]), bytes(second[:1])), (2 * MIB, b"3", b"2"))
        large = copy_of(bytearray(60 * MIB))            # more than is kept beside the others
        self.assertLessEqual(sum(map(len, spare)), 64 * MIB)
        self.assertEqual((bytes(second[-1:]), bytes(third[-1:]), large[-1]), (b"2", b"3", 0))
        pycoslite._Mapped.forget_spare()
        self.assertTrue(spare)
        pycoslite._Mapped.forget_spare()
        self.assertFalse(spare)

    def test_buffers_of_other_libraries(self) -> None:
        """As numpy's arrays are pickled."""
        for size in (10, 100_000, 2 * MIB):
            data = bytearray(b"n" * size)
            parts = pycoslite.serialize_long([pickle.PickleBuffer(data)])
            data[:] = bytes(size)
            self.assertEqual(pickle.loads(b"".join(parts)), [bytearray(b"n" * size)])

    def test_a_report_of_what_was_lost_has_the_message_that_was_sent_in_parts(self) -> None:
        value = [b"x" * (2 * MIB), "between", bytearray(b"y" * MIB)]
        frame = frame_buffers(pycoslite.MESSAGE, b"8 bytes.", *pycoslite.serialize_long(value))
        self.assertGreater(len(frame), 3)
        report = pycoslite.Undelivered(None, None, "unknown", None, "", pycoslite._behind_head(frame, 8))
        self.assertEqual(report.message, value)
        self.assertTrue(any(part is value[0] for part in report._data))         # not copied until it is asked for

    def test_every_value_comes_out_of_a_long_frame(self) -> None:
        for value in self.VALUES:
            for protocol in (0, 2, 5):
                body = whole_frame(b"head" + pickle.dumps(value, protocol))
                self.assertEqual(pycoslite.deserialize_frame(body, 4), value)

    def test_a_long_body_reads_as_its_bytes(self) -> None:
        data = os.urandom(MIB + 1)
        body = whole_frame(data)
        self.assertEqual(body, data)
        self.assertEqual(bytes(body[5:9]), data[5:9])

    @unittest.skipUnless(sys.platform.startswith("linux"), "only Linux gives single pages back")
    def test_memory_is_given_back_while_the_message_is_unpickled(self) -> None:
        body = whole_frame(pickle.dumps(b"x" * (4 * MIB), 5))
        self.assertEqual(len(pycoslite.deserialize_frame(body, 0)), 4 * MIB)
        self.assertEqual(bytes(body[MIB:3 * MIB]).strip(b"\0"), b"")

    def test_where_no_memory_can_be_reserved_it_grows(self) -> None:
        class Refused:
            def __init__(self, size: int) -> None:
                raise OSError("no memory")
        self.addCleanup(setattr, pycoslite, "_Mapped", pycoslite._Mapped)
        pycoslite._Mapped = Refused
        data = os.urandom(2 * MIB)
        self.assertEqual(whole_frame(data), data)

    def test_a_bytearray_is_received_where_it_stays(self) -> None:
        for size in (100_000, MIB, 5 * MIB):
            data = bytearray(os.urandom(size))
            body = whole_frame(b"head" + pickle.dumps(data, 5), 200)
            message = pycoslite.deserialize_frame(body, 4)
            self.assertIs(message, body)
            self.assertEqual(message, data)
            message += b"more"                  # it is like any other
            message[:2] = b""
            self.assertEqual(message, data[2:] + b"more")

    def test_what_only_looks_like_a_bytearray_is_unpickled(self) -> None:
        data = bytearray(2 * MIB)
        pickled = pickle.dumps(data, 5)
        for body in (pickled[:-2] + b"0N.",                 # taken off again, and None
                     b"\x80\x05N0" + pickled[2:],           # after another value, which is taken off
                     pickle.dumps([data], 5), pickle.dumps((data, data), 5), pickle.dumps(data, 3)):
            came = whole_frame(b"head" + body, 200)
            found = pycoslite.deserialize_frame(came, 4)
            self.assertIsNot(found, came)
            self.assertEqual(found, pickle.loads(body))

    def test_memory_of_a_bytearray_is_taken_as_its_bytes_come(self) -> None:
        if not sys.platform.startswith("linux"):
            self.skipTest("only Linux tells easily what a process holds")
        if sys.flags.dev_mode:
            self.skipTest("python -X dev fills fresh memory, so that it is held at once")

        def held() -> int:
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * mmap.PAGESIZE
        size, before = 64 * MIB, held()
        decoder = FrameDecoder(1 << 30)
        start = pickle.dumps(bytearray(size), 5)[:100]
        decoder.feed(pycoslite._FRAME.pack(size + 13, 64) + start)
        self.assertIs(type(decoder._body.obj), bytearray)
        self.assertLess(held() - before, 8 * MIB)

    def test_large_pages_are_only_asked_for(self) -> None:
        self.addCleanup(pycoslite._find_madvise.cache_clear)
        for refused in (True, False):
            pycoslite._find_madvise.cache_clear()
            with mock.patch.dict(sys.modules, {"ctypes": None} if refused else {}):
                memory = pycoslite._blank(5 * MIB)
            memory[:] = b"x" * len(memory)
            self.assertEqual(memory.count(b"x"), 5 * MIB)


class InPlaceTest(TestCase):
    """Long frames received where they stay, against frames that were copied there."""

    KEY = b"k" * 32
    USUAL = 200_000             # bytes of the place for all that is not received where it stays

    def stream(self, rng: random.Random, bodies: List[Any], key: Any) -> bytes:
        """Frames with these bodies, cut over records of any size."""
        frames, sealer = b"".join(encode_frame(64, body) for body in bodies), RecordSealer(key)
        records, position = [], 0
        while position < len(frames):
            size = rng.choice((1, 1000, 20_000, 70_000, 262_144, 262_144, 262_144, 1_000_000))
            records += sealer.seal([frames[position:position + size]])
            position += size
        return b"".join(records)

    def received(self, stream: bytes, key: Any, most: Callable[[int], int]) -> Iterator[tuple]:
        """The frames, as a link finds them whose socket gives at most `most(asked)` bytes at a time."""
        opener, decoder, position = RecordOpener(key), FrameDecoder(1 << 30), 0
        usual = memoryview(bytearray(self.USUAL))
        while position < len(stream):
            space = decoder.long and opener.place(decoder.room) or usual
            count = min(most(len(space)), len(space), len(stream) - position)
            space[:count] = stream[position:position + count]
            position += count
            for body in opener.feed(space[:count]):
                for code, body in decoder.feed(body):
                    yield code, pycoslite.deserialize_frame(body, 0)

    def test_both_ways_receive_the_same(self) -> None:
        rng = random.Random(5)
        values = [bytearray(os.urandom(3 * MIB)), b"short", os.urandom(2 * MIB), bytearray(os.urandom(MIB)),
                  list(range(9)), bytearray(os.urandom(5 * MIB)), bytearray(os.urandom(2 * MIB))]
        pickled = [pickle.dumps(value, 5) for value in values]
        for key in (self.KEY, None):
            for most in (lambda asked: asked, lambda asked: 65_483, lambda asked: rng.randrange(1, 2 * asked + 1),
                         lambda asked: rng.choice((1, 3, asked, 100_000))):
                stream = self.stream(rng, pickled, key)
                found = list(self.received(stream, key, most))
                self.assertEqual([code for code, _ in found], [64] * len(values))
                self.assertTrue(all(value == came for value, (_, came) in zip(values, found)))

    def test_little_is_copied(self) -> None:
        stream = self.stream(self.Whole(), [pickle.dumps(bytearray(8 * MIB), 5)], self.KEY)
        copied = 0

        def most(asked: int) -> int:
            nonlocal copied
            copied += asked == self.USUAL
            return asked
        self.assertEqual(list(self.received(stream, self.KEY, most)), [(64, bytearray(8 * MIB))])
        self.assertLess(copied, 5)          # of the first record, with which the frame begins, and of the last

    class Whole(random.Random):
        """All records are 256 KiB long."""

        def choice(self, _: Any) -> int:
            """The same each time."""
            return 262_144

    def test_a_changed_byte_is_refused(self) -> None:
        stream = bytearray(self.stream(self.Whole(), [pickle.dumps(bytearray(2 * MIB), 5)], self.KEY))
        for place in (700_000, 524_290 + 40, len(stream) - 500_000):
            stream[place] ^= 1
            with self.assertRaisesRegex(ProtocolError, "wrong MAC|announced"):
                list(self.received(stream, self.KEY, lambda asked: asked))
            stream[place] ^= 1


class SessionTest(TestCase):
    """`pass_on` and `push_all` against `push` and `next_batch`."""

    @staticmethod
    def opened() -> Session:
        session = Session(1, LIMITS)
        session.connected()
        session.next_batch(4096, 0.0)
        session.on_session(2, 0, 0)
        return session

    @staticmethod
    def state(session: Session) -> tuple:
        kept = [(last, nbytes, list(frames), list(tags)) for last, nbytes, frames, tags in session._kept]
        return (kept, session._sent, session._sent_before, session.unconfirmed_bytes, session.unconfirmed_frames,
                session.below_window, session.has_more)

    def send(self, plain: Session, fast: Session, frames: List[Any], now: float) -> None:
        queued = deque((frame, len(b"".join(frame) if isinstance(frame, list) else frame)) for frame in frames)
        for frame, nbytes in queued:
            plain.push(frame, nbytes)
        first = fast.pass_on(queued, 4096, now)
        if first is None:
            fast.push_all(queued)
        self.assertFalse(queued)
        slow_out = [b"".join(plain.next_batch(4096, now))]
        fast_out = [b"".join(fast.next_batch(4096, now)) if first is None else first]
        while slow_out[-1] or fast_out[-1]:
            slow_out.append(b"".join(plain.next_batch(4096, now)))
            fast_out.append(b"".join(fast.next_batch(4096, now)))
        self.assertEqual(fast_out, slow_out)
        self.assertEqual(self.state(fast), self.state(plain))

    def test_both_ways_send_the_same(self) -> None:
        rng = random.Random(9)
        plain, fast = self.opened(), self.opened()
        for round_number in range(400):
            now = round_number * 0.01
            frames: List[Any] = [encode_frame(64, bytes(rng.choice((0, 10, 900, 4090)))) for _ in range(
                rng.choice((0, 1, 1, 1, 2, 12)))]
            if rng.random() < 0.1:
                frames.append(frame_buffers(64, b"head", bytes(9000)))
            for session in (plain, fast):
                if round_number % 3 == 0:
                    session.note_received(1, 10, now)
                if round_number % 11 == 0:
                    session.control(encode_frame(3, b""))
            self.send(plain, fast, frames, now)
            confirmed = rng.randrange(plain.confirmed, plain._sent + 1)
            self.assertEqual(fast.on_ack(confirmed), plain.on_ack(confirmed))

    def test_nothing_is_passed_on_before_the_session_is_open(self) -> None:
        session = Session(1, LIMITS)
        queued = deque([(encode_frame(64, b""), 5)])
        self.assertIsNone(session.pass_on(queued, 4096, 0.0))
        self.assertEqual(len(queued), 1)

    def test_what_was_passed_on_is_repeated_and_reported(self) -> None:
        session, frame = self.opened(), encode_frame(64, b"text")
        session.pass_on(deque([(frame, len(frame))]), 4096, 0.0)
        session.disconnected()
        session.connected()
        session.next_batch(4096, 0.0)
        session.on_session(2, 1, 0)
        self.assertEqual(session.next_batch(4096, 0.0), [frame])
        self.assertEqual([(item.frame, item.sent) for item in session.lost(3)], [(frame, True)])


class ConfirmationTest(TestCase):
    """What came is confirmed in time, with something or by itself."""

    def test_a_timer_that_comes_too_early_is_set_again(self) -> None:
        session, planned, sent = SessionTest.opened(), [], []       # type: ignore[var-annotated]
        engine = SimpleNamespace(now=0.0, clock=lambda: engine.now)
        engine.call_later = lambda delay_s, function: planned.append((engine.now + delay_s, function)) or planned
        peer = Peer.__new__(Peer)
        peer.session, peer.engine, peer.ack_timer = session, engine, None
        peer.flush = lambda: sent.extend(session.next_batch(4096, engine.now))      # type: ignore[method-assign]
        peer.note_received(1, 10)
        engine.now = 0.15
        session.push(encode_frame(64, b"answer"), 11)
        peer.flush()                            # the first one is confirmed with it
        engine.now = 0.18
        peer.note_received(1, 10)
        for _ in range(9):
            if planned:
                engine.now, function = planned.pop(0)
                function()
        self.assertEqual(sent, [ack_frame(1), encode_frame(64, b"answer"), ack_frame(2)])
        self.assertAlmostEqual(engine.now, 0.38)
        self.assertIsNone(session.ack_deadline)


class ReferenceTest(TestCase):
    """The reference that came last is used again when it comes again."""

    def test_each_task_has_its_own(self) -> None:
        peer = Peer.__new__(Peer)
        peer.latest, peer.network, peer.process_id = None, SimpleNamespace(host=None), b"p" * 16
        with mock.patch.object(pycoslite, "_network", SimpleNamespace(peers={peer.process_id: peer})):
            def come(task_id: int, name: str) -> Any:
                return pycoslite._revive_task(peer.process_id, b"[]", task_id, name)
            first = come(1, "asker")
            self.assertIs(come(1, "asker"), first)
            other = come(2, "asker")
            self.assertEqual((other.id, other.peer), (2, peer))
            self.assertNotEqual(other, first)
            self.assertEqual(come(1, "swapped").name, "swapped")
            self.assertEqual(come(1, "swapped"), first)


    def test_a_process_that_is_only_named_is_known_by_its_id(self) -> None:
        """Its addresses are not looked at again, and it does not keep itself."""
        peer = Peer.__new__(Peer)
        peer.latest, peer.network, peer.process_id = None, SimpleNamespace(host=None), b"p" * 16
        network = SimpleNamespace(peers={}, known={peer.process_id: peer}.get)
        with mock.patch.object(pycoslite, "_network", network):
            found = pycoslite._revive_task(peer.process_id, b"no JSON", 1, "asker")
        self.assertEqual((found.peer, found.id, peer.latest), (peer, 1, None))


class _Stream:
    """A socket that gives `data` in pieces of at most `most` bytes, and takes as many bytes as `takes`."""

    def __init__(self, data: bytes = b"", most: int = 1 << 30, takes: int = 0) -> None:
        self.data, self.most, self.takes = memoryview(data), most, takes
        self.calls: List[str] = []              # which of the two ways to read
        self.sent = b""

    def recv(self, size: int) -> bytes:
        self.calls.append("recv")
        return self._take(size)

    def recv_into(self, space: memoryview) -> int:
        self.calls.append("recv_into")
        piece = self._take(len(space))
        space[:len(piece)] = piece
        return len(piece)

    def _take(self, size: int) -> bytes:
        piece, self.data = bytes(self.data[:min(size, self.most)]), self.data[min(size, self.most):]
        return piece

    def send(self, data: bytes) -> int:
        if not self.takes:
            raise BlockingIOError
        self.sent += data[:self.takes]
        return min(len(data), self.takes)


def authenticated_link(stream: _Stream, key: Any, frames: List[tuple]) -> Link:
    """A link that reads from and writes to `stream`, and puts what comes into `frames`."""
    link = Link.__new__(Link)
    link.sock, link.sealer, link.opener = stream, RecordSealer(key), RecordOpener(key)      # type: ignore[assignment]
    link.decoder = FrameDecoder(1 << 30)
    link.cipher = link.lanes = None
    link.brief, link.unsent, link.interest = False, [], pycoslite.READ | pycoslite.WRITE
    session = SimpleNamespace(note_received=lambda count, size, now: None)
    link.peer = SimpleNamespace(session=session, note_received=lambda count, size: None)    # type: ignore[assignment]
    link.engine = SimpleNamespace(space=memoryview(bytearray(256 * 1024)), now=1.0)         # type: ignore[assignment]
    link.network = SimpleNamespace(frame_handlers={                                         # type: ignore[assignment]
        64: lambda peer, body: frames.append(bytes(body))})
    return link


class LinkTest(TestCase):
    """A link reads much or little at a time, and writes one short record in short."""

    def test_all_sizes_come_whichever_way_they_are_read(self) -> None:
        rng = random.Random(3)
        sizes = (0, 100, 1000, pycoslite._BRIEF - 30, pycoslite._BRIEF, 5000, 70_000, 3 * MIB)
        for key in (None, b"k" * 32):
            bodies = [os.urandom(size) for size in sizes + tuple(rng.choice(sizes) for _ in range(50))]
            sealer, stream = RecordSealer(key), b""
            for body in bodies:
                frame = encode_frame(64, body)
                stream += b"".join(bytes(part) for start in range(0, len(frame), 65536)
                                   for part in sealer.seal([frame[start:start + 65536]]))
            for most in (1, 700, pycoslite._BRIEF, 1 << 30):
                with self.subTest(key=key, most=most):
                    upto = len(stream) if most > 1 else 30_000
                    frames: List[bytes] = []
                    link = authenticated_link(_Stream(stream[:upto], most), key, frames)
                    while link.sock.data:                       # type: ignore[union-attr]
                        self.assertTrue(link.read())
                    self.assertEqual(frames, bodies[:len(frames)])
                    self.assertTrue(frames and (upto < len(stream) or len(frames) == len(bodies)))

    def test_who_has_had_little_asks_for_little(self) -> None:
        sealer, source = RecordSealer(None), _Stream()
        link = authenticated_link(source, None, [])
        for size in (100, 100, 9000, 100, 100):
            source.data = memoryview(b"".join(sealer.seal([encode_frame(64, bytes(size))])))
            while source.data:
                link.read()
        self.assertEqual(source.calls, ["recv_into", "recv", "recv", "recv_into", "recv_into", "recv"])

    def test_a_short_record_that_is_not_taken_whole_waits(self) -> None:
        record = b"r" * 50
        for takes in (0, 20, 50):
            ends = []
            for write in (lambda link: link.write([record]), lambda link: link.write_short(record)):
                link = authenticated_link(_Stream(takes=takes), None, [])
                write(link)
                ends.append((b"".join(map(bytes, link.unsent)), link.sock.sent))        # type: ignore[union-attr]
            self.assertEqual(ends, [(record[takes:], record[:takes])] * 2)


class _Line:
    """In the place of a link: tells whether there was something to read."""

    where = "nowhere"
    sock = True

    def __init__(self, found: bool) -> None:
        self.found, self.luck, self.reads = found, 0, 0

    def read(self) -> bool:
        self.reads += 1
        return self.found


class PeekTest(TestCase):
    """The engine looks for an answer before it asks the poller, where that was of use before."""

    def setUp(self) -> None:
        super().setUp()
        self.host = Kernel()
        self.engine = Engine(self.host)
        self.addCleanup(self.host.close)
        self.addCleanup(self.engine.close)
        self.engine.clock = lambda: 100.0
        self.engine.polled = 100.0
        self.host.stopping = True               # so that it does not sleep

    def peek(self, link: _Line) -> bool:
        """Come round once after something was written to `link`; whether an answer was found."""
        before = link.reads
        self.engine.spoken = link
        self.engine.visit()
        self.assertIsNone(self.engine.spoken)
        return link.reads > before and link.found

    def test_a_link_whose_answers_are_late_is_left_to_the_poller(self) -> None:
        link = _Line(False)
        for _ in range(1000):
            self.assertFalse(self.peek(link))
        self.assertLess(link.reads, 25)
        self.assertGreater(link.reads, 15)

    def test_it_is_tried_again_and_then_believed(self) -> None:
        link = _Line(False)
        self.peek(link)
        link.found = True
        self.assertTrue(any(self.peek(link) for _ in range(60)))
        self.assertTrue(self.peek(link))

    def test_others_are_not_kept_waiting(self) -> None:
        link = _Line(True)
        self.engine.polled = 99.99
        self.assertFalse(self.peek(link))
        self.assertEqual(link.reads, 0)

    def test_a_host_that_stays_awake_tells_the_watcher_that_believed_it_sleeps(self) -> None:
        self.engine._dozing = True              # the watcher came by between the host's two looks at its queues
        self.engine.visit()
        self.assertFalse(self.host.sleeping)
        self.assertTrue(self.engine._awake.is_set())


if __name__ == "__main__":
    unittest.main()
