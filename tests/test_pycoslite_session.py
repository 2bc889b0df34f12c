"""Section 8: exactly once and in order, over connections that break at any byte."""
from __future__ import annotations

import random
import struct
import sys
from typing import Any, Callable, List, Optional, Tuple

from pycoslite import (Code, FrameDecoder, ProtocolError, RecordOpener, RecordSealer, Session, Settings, ack_frame,
                       encode_frame, frame_buffers, parse_ack, parse_session)
from tests.support import TestCase

LIMIT = 1 << 18
SMALL = Settings(record_bytes=4096, window_bytes=30_000, window_messages=150, ack_bytes=6000, ack_messages=40,
                 ack_delay_s=0.2)


def frame(text: bytes = b"") -> bytes:
    return encode_frame(64, text)


def push(session: Session, *texts: bytes) -> bool:
    below = True
    for text in texts:
        below = session.push(frame(text), len(frame(text)), text)
    return below


def sent(session: Session, now: float = 0.0, limit: int = LIMIT) -> bytes:
    """All that the session has to say now."""
    data = b""
    while True:
        batch = session.next_batch(limit, now)
        if not batch:
            return data
        data += b"".join(batch)


def taken(session: Session, data: bytes, now: float = 0.0) -> List[Any]:
    """Hand `data` in as a driver would; bodies of messages, results of SESSION and ACK, in order."""
    found: List[Any] = []
    for code, body in FrameDecoder(1 << 30).feed(data):
        if code == Code.SESSION:
            found.append(session.on_session(*parse_session(body)))
        elif code == Code.ACK:
            found.append(session.on_ack(parse_ack(body)))
        elif code >= Code.FIRST_SEQUENCED:
            session.note_received(1, len(body), now)
            found.append(bytes(body))
    return found


def connect(a: Session, b: Session) -> Tuple[str, str]:
    """A new connection; both SESSION frames arrive."""
    a.connected()
    b.connected()
    from_a, from_b = sent(a), sent(b)
    return taken(a, from_b)[0], taken(b, from_a)[0]


def pair(limits: Settings = SMALL) -> Tuple[Session, Session]:
    a, b = Session(1, limits), Session(2, limits)
    connect(a, b)
    return a, b


def check(test: TestCase, session: Session) -> None:
    """The invariants written at the head of the section."""
    kept = [(frames, tags, nbytes) for _, nbytes, frames, tags in session._kept]
    batches = kept + list(session._ready)
    for frames, tags, nbytes in batches:
        test.assertTrue(frames)
        test.assertEqual(len(frames), len(tags))
        test.assertEqual(nbytes, sum(len(f) if isinstance(f, bytes) else sum(map(len, f)) for f in frames))
    count = sum(len(batch[0]) for batch in batches) + len(session._frames)
    test.assertEqual(session.unconfirmed_frames, count)
    test.assertEqual(session.unconfirmed_bytes, sum(batch[2] for batch in batches) + session._nbytes)
    test.assertLessEqual(session._base, session._confirmed)
    test.assertLessEqual(session._confirmed, max(session._sent, session._sent_before))
    test.assertEqual(session._sent - session._base if session._open else 0, sum(len(batch[0]) for batch in kept))
    number = session._base
    for last, _, frames, _ in session._kept:
        number += len(frames)
        test.assertEqual(last, number)
    if session._clear:
        test.assertTrue(session._open)
        test.assertFalse(session._rest or session._control or session._ready or session._frames)


class FirstContactTest(TestCase):
    def test_nothing_is_sent_before_both_have_said_session(self) -> None:
        a, b = Session(1), Session(2)
        push(a, b"early")
        self.assertFalse(a.wants_write(0.0))
        a.connected()
        self.assertTrue(a.wants_write(0.0))
        self.assertEqual(FrameDecoder(100).feed(sent(a)), [(Code.SESSION, struct.pack(">QQQ", 1, 0, 0))])
        self.assertFalse(a.wants_write(0.0))
        self.assertEqual(a.on_session(2, 0, 0), "new")
        self.assertEqual(sent(a), frame(b"early"))
        b.connected()
        with self.assertRaisesRegex(ProtocolError, "before the session was announced"):
            taken(b, frame(b"early"))

    def test_order_is_kept_both_ways(self) -> None:
        a, b = pair()
        texts = [b"%d" % number for number in range(100)]
        push(a, *texts)
        push(b, *texts)
        self.assertEqual(taken(b, sent(a)), texts)
        self.assertEqual([item for item in taken(a, sent(b)) if isinstance(item, bytes)], texts)

    def test_second_session_frame_is_refused(self) -> None:
        a, _ = pair()
        with self.assertRaisesRegex(ProtocolError, "twice"):
            a.on_session(2, 1, 0)

    def test_ids_are_checked(self) -> None:
        for sid in (0, -1, 1 << 64):
            with self.assertRaises(ValueError):
                Session(sid)
        a = Session(1)
        a.connected()
        with self.assertRaisesRegex(ProtocolError, "without a number"):
            a.on_session(0, 0, 0)


class BatchTest(TestCase):
    def test_what_is_queued_goes_out_as_one_batch(self) -> None:
        a, _ = pair()
        push(a, b"1", b"2", b"3")
        self.assertEqual(a.next_batch(LIMIT, 0.0), [frame(b"1"), frame(b"2"), frame(b"3")])
        self.assertEqual(a.next_batch(LIMIT, 0.0), [])
        self.assertEqual(len(a._kept), 1)               # one entry for the three

    def test_batches_stay_below_the_limit(self) -> None:
        a, b = pair(Settings(record_bytes=4096))
        rng = random.Random(5)
        texts = [bytes(rng.choice((0, 10, 500, 3000, 5000))) for _ in range(300)]
        push(a, *texts)
        a.control(encode_frame(Code.PING, b"x"))
        data = b""
        while a.wants_write(0.0):
            batch = a.next_batch(4096, 0.0)
            self.assertLessEqual(sum(map(len, batch)), 4096)
            data += b"".join(batch)
        self.assertEqual(taken(b, data), texts)

    def test_any_limit_gives_the_same_stream(self) -> None:
        texts = [bytes((number,)) * (number * 7) for number in range(40)]
        streams = set()
        for limit in (1, 2, 5, 100, 1000, LIMIT):
            a, _ = pair()
            push(a, *texts)
            streams.add(sent(a, limit=limit))
        self.assertEqual(streams, {b"".join(map(frame, texts))})

    def test_long_frame_is_cut_uncopied_with_nothing_in_between(self) -> None:
        a, b = pair()
        long = bytes(range(256)) * 100
        buffers = frame_buffers(64, long)
        push(a, b"before")
        a.push(buffers, sum(map(len, buffers)))
        push(a, b"after")
        stream = b"".join(a.next_batch(4096, 0.0))
        self.assertEqual(stream, frame(b"before"))
        pieces = [a.next_batch(4096, 0.0)]
        self.assertIs(pieces[0][1].obj, long)
        a.control(encode_frame(Code.PING, b""))
        while a._rest:
            self.assertTrue(a.wants_write(0.0))
            pieces.append(a.next_batch(4096, 0.0))
        for piece in pieces:
            self.assertLessEqual(sum(map(len, piece)), 4096)
            stream += b"".join(piece)
        self.assertEqual(stream, frame(b"before") + frame(long))
        self.assertEqual(taken(b, stream + sent(a)), [b"before", long, b"after"])

    def test_link_frames_go_first_and_never_again(self) -> None:
        a, b = pair()
        push(a, b"1")
        a.control(encode_frame(Code.PING, b"x"))
        self.assertEqual(sent(a), encode_frame(Code.PING, b"x") + frame(b"1"))
        a.control(encode_frame(Code.PING, b"y"))
        connect(a, b)
        self.assertEqual(sent(a), frame(b"1"))

    def test_confirmation_costs_per_batch(self) -> None:
        """Python-level calls per message do not grow with the backlog."""
        def calls(count: int) -> float:
            limits = Settings(window_messages=10 * count)
            a, b = pair(limits)
            counted = [0]

            def profile(_frame: Any, event: str, _arg: Any) -> None:
                counted[0] += event == "call" or event == "c_call"
            data = frame(b"x" * 100)
            before = sys.getprofile()
            sys.setprofile(profile)
            try:
                for _ in range(count):
                    a.push(data, len(data))
                for number in range(1, 100_000):
                    if not a.next_batch(LIMIT, 0.0):
                        break
                    a.on_ack(a._sent)
            finally:
                sys.setprofile(before)
            self.assertEqual(a.unconfirmed_frames, 0)
            self.assertLess(number, count / 1000)
            return counted[0] / count
        few, many = calls(5000), calls(50_000)
        self.assertLess(many, few * 1.1)
        self.assertLess(many, 5)                        # push(), its type(), two append()


class ConfirmationTest(TestCase):
    def test_confirmed_frames_are_forgotten(self) -> None:
        a, b = pair()
        push(a, b"1", b"2")
        taken(b, sent(a))
        self.assertEqual(a.unconfirmed_frames, 2)
        taken(a, sent(b, now=SMALL.ack_delay_s))
        self.assertEqual((a.unconfirmed_frames, a.unconfirmed_bytes), (0, 0))
        self.assertEqual(a.lost(9), [])

    def test_deadline_and_riding_along(self) -> None:
        a, b = pair()
        push(a, b"1")
        taken(b, sent(a), now=10.0)
        self.assertEqual(b.ack_deadline, 10.0 + SMALL.ack_delay_s)
        push(a, b"2")
        taken(b, sent(a), now=10.05)
        self.assertEqual(b.ack_deadline, 10.0 + SMALL.ack_delay_s)          # the first one counts
        self.assertFalse(b.wants_write(10.15))
        self.assertEqual(b.next_batch(LIMIT, 10.15), [])                    # too early to go alone ...
        push(b, b"answer")
        self.assertEqual(b.next_batch(LIMIT, 10.09), [frame(b"answer")])    # ... and to ride
        push(b, b"answer")
        self.assertEqual(b.next_batch(LIMIT, 10.11), [ack_frame(2), frame(b"answer")])
        self.assertIsNone(b.ack_deadline)
        push(a, b"3")
        taken(b, sent(a), now=11.0)
        self.assertTrue(b.wants_write(11.2))
        self.assertEqual(b.next_batch(LIMIT, 11.2), [ack_frame(3)])

    def test_owed_at_once_after_many_messages_or_bytes(self) -> None:
        for text, count in ((b"", SMALL.ack_messages), (bytes(SMALL.ack_bytes // 4), 4)):
            a, b = pair()
            for number in range(count):
                self.assertNotEqual(b.ack_deadline, 0.0)
                push(a, text)
                taken(b, sent(a), now=10.0)
            self.assertEqual(b.ack_deadline, 0.0)
            self.assertEqual(sent(b, now=10.0), ack_frame(count))

    def test_counting_begins_again_after_each_confirmation(self) -> None:
        a, b = pair()
        push(a, *[b""] * SMALL.ack_messages)
        taken(b, sent(a), now=10.0)
        self.assertEqual(sent(b, now=10.0), ack_frame(SMALL.ack_messages))
        push(a, b"")
        taken(b, sent(a), now=11.0)
        self.assertEqual(b.ack_deadline, 11.0 + SMALL.ack_delay_s)

    def test_half_a_batch_may_be_confirmed(self) -> None:
        a, b = pair()
        push(a, b"1", b"2", b"3")
        sent(a)
        a.on_ack(2)
        a.on_ack(1)                     # late and harmless
        self.assertEqual(a.unconfirmed_frames, 3)       # accounted per batch
        self.assertEqual([item.tag for item in a.lost(9)], [b"3"])

    def test_more_than_was_sent_is_refused(self) -> None:
        a, _ = pair()
        push(a, b"1", b"2")
        with self.assertRaisesRegex(ProtocolError, "1 messages were confirmed, only 0 were sent"):
            a.on_ack(1)
        sent(a)
        a.on_ack(2)
        with self.assertRaises(ProtocolError):
            a.on_ack(3)

    def test_window_in_bytes_and_messages_with_hysteresis(self) -> None:
        for text, count in ((bytes(995), 30), (b"", 150)):                  # 1000 bytes each: 30,000; 150 messages
            a, b = pair()
            for number in range(1, count + 1):
                self.assertTrue(a.below_window)
                self.assertEqual(push(a, text), number < count)
            self.assertFalse(a.below_window)
            self.assertFalse(push(a, text))             # taken all the same
            self.assertEqual(a.unconfirmed_frames, count + 1)
            freed = []
            while not a.below_window:
                batch = a.next_batch(LIMIT, 0.0)
                if batch:
                    taken(b, b"".join(batch))
                freed += taken(a, sent(b, now=1.0))
                check(self, a)
            self.assertEqual(freed.count(True), 1)      # says once that senders may go on
            self.assertLessEqual(a.unconfirmed_frames, count // 2)
            self.assertTrue(push(a, text))

    def test_reconnecting_opens_the_window_too(self) -> None:
        a, b = pair()
        push(a, *[b""] * 150)
        taken(b, sent(a))
        self.assertFalse(a.below_window)
        connect(a, b)
        self.assertTrue(a.below_window)
        check(self, a)


    def test_frames_that_take_more_memory_than_they_have_bytes(self) -> None:
        limits = Settings(window_bytes=1000, window_messages=100, queue_messages=100)
        for received in range(5):
            a, b = pair(limits)
            for number in range(4):
                self.assertEqual(a.push(frame(b"%d" % number * 50), 300), number < 3)
            sent(a)
            b._received = received
            a.disconnected()
            a.connected()
            sent(a)
            a.on_session(b.local_sid, a.local_sid, received)
            self.assertEqual(a.unconfirmed_bytes, 300 * (4 - received))
            sent(a)
            a.on_ack(4)
            self.assertEqual((a.unconfirmed_bytes, a.unconfirmed_frames, a.below_window), (0, 0, True))


class ReconnectTest(TestCase):
    def test_every_cut_of_a_stream(self) -> None:
        """Whatever part of the stream arrived, the next connection brings the rest, from the first byte of a frame."""
        texts = [b"a", b"", b"hello" * 3, b"x" * 30, b"end"]
        stream_length = len(b"".join(map(frame, texts)))
        for cut in range(stream_length + 1):
            a, b = pair()
            push(a, *texts)
            found = taken(b, sent(a)[:cut])
            a.disconnected()
            push(a, b"later")
            self.assertEqual(connect(a, b), ("resumed", "resumed"))
            check(self, a)
            found += taken(b, sent(a))
            self.assertEqual(found, texts + [b"later"])

    def test_long_frame_starts_again(self) -> None:
        a, b = pair()
        long = bytes(range(256)) * 40
        buffers = frame_buffers(64, long)
        a.push(buffers, sum(map(len, buffers)))
        taken(b, b"".join(a.next_batch(1000, 0.0) + a.next_batch(1000, 0.0)))
        connect(a, b)
        self.assertEqual(taken(b, sent(a, limit=1000)), [long])

    def test_half_open_first_contact(self) -> None:
        """One end's SESSION arrived, the other's did not: messages it sent meanwhile come on the next connection."""
        a, b = Session(1), Session(2)
        a.connected()
        b.connected()
        self.assertEqual(taken(a, sent(b)), ["new"])
        push(a, b"early")
        sent(a)                                         # lost, the SESSION before it as well
        self.assertEqual(connect(a, b), ("resumed", "new"))
        self.assertEqual(taken(b, sent(a)), [b"early"])

    def test_nothing_is_due_without_a_connection(self) -> None:
        a, b = pair()
        push(a, b"1")
        taken(b, sent(a), now=10.0)
        b.control(encode_frame(Code.PING, b""))
        b.disconnected()
        self.assertIsNone(b.ack_deadline)
        self.assertFalse(b.wants_write(99.0))
        self.assertEqual(connect(a, b), ("resumed", "resumed"))
        self.assertEqual(a.unconfirmed_frames, 0)       # SESSION has confirmed it
        self.assertIsNone(b.ack_deadline)

    def test_impossible_counts_are_refused(self) -> None:
        a, _ = pair()
        push(a, b"1", b"2", b"3")
        sent(a)
        a.on_ack(2)
        for received in (1, 4):
            a.connected()
            with self.assertRaisesRegex(ProtocolError, "between 2 and 3 can have"):
                a.on_session(2, 1, received)
        a.connected()
        self.assertEqual(a.on_session(2, 1, 3), "resumed")
        self.assertEqual(a.unconfirmed_frames, 0)

    def test_who_sent_messages_cannot_have_forgotten_us(self) -> None:
        a, b = pair()
        push(b, b"1")
        taken(a, sent(b))
        a.connected()
        with self.assertRaises(ProtocolError):
            a.on_session(2, 0, 0)


class MismatchTest(TestCase):
    def test_table(self) -> None:
        """The table at the head of the section: what we know, what came, result, whether restart() gives ours up."""
        fresh, known = 0, 2
        for remote_sid, f_local, f_remote, result, starts_afresh in (
                (fresh, 2, 0, "new", False),
                (fresh, 2, 1, "new", False),
                (known, 2, 0, "resumed", False),
                (known, 2, 1, "resumed", False),
                (known, 3, 0, "mismatch", True),
                (known, 3, 1, "mismatch", True),
                (known, 3, 9, "mismatch", True),
                (fresh, 2, 9, "mismatch", False),
                (known, 2, 9, "mismatch", True),
        ):
            with self.subTest(remote_sid=remote_sid, f_local=f_local, f_remote=f_remote):
                session = Session(1)
                if remote_sid:
                    session.connected()
                    session.on_session(remote_sid, 0, 0)
                push(session, b"1")
                session.connected()
                self.assertEqual(session.on_session(f_local, f_remote, 0), result)
                if result == "mismatch":
                    self.assertEqual(sent(session)[5:13], struct.pack(">Q", 1))     # nothing but our SESSION
                    lost = session.restart(7)
                    self.assertEqual([item.tag for item in lost], [b"1"] if starts_afresh else [])
                    self.assertEqual(session.local_sid, 7 if starts_afresh else 1)
                    self.assertEqual(session.remote_sid, 0)
                    self.assertEqual(session.unconfirmed_frames, 0 if starts_afresh else 1)
                else:
                    self.assertEqual(session.remote_sid, f_local)

    def settle(self, a: Session, b: Session) -> Tuple[int, List[bytes], List[bytes]]:
        """Connect until both agree, as drivers do; connections needed, and what each end lost."""
        lost: Tuple[List[bytes], List[bytes]] = ([], [])
        for attempt in range(1, 5):
            results = connect(a, b)
            for end, result, sid, tags in zip((a, b), results, (100 + attempt, 200 + attempt), lost):
                if result == "mismatch":
                    tags += [item.tag for item in end.restart(sid)]
            if "mismatch" not in results:
                return attempt, lost[0], lost[1]
        raise AssertionError("no agreement")

    def test_one_end_gave_up(self) -> None:
        a, b = pair()
        push(a, b"to b")
        push(b, b"to a")
        self.assertEqual([item.tag for item in b.lost(20)], [b"to a"])
        push(b, b"news")
        self.assertEqual(self.settle(a, b), (2, [b"to b"], []))
        push(a, b"more")
        self.assertEqual((taken(b, sent(a)), taken(a, sent(b))), ([b"more"], [b"news"]))

    def test_both_ends_gave_up(self) -> None:
        a, b = pair()
        push(a, b"1")
        a.lost(10)
        b.lost(20)
        push(b, b"2")
        self.assertEqual(self.settle(a, b), (1, [], []))
        self.assertEqual(taken(a, sent(b)), [b"2"])

    def test_gave_up_twice_before_meeting_again(self) -> None:
        a, b = pair()
        b.lost(20)
        b.lost(21)
        self.assertEqual(self.settle(a, b)[0], 2)

    def test_gave_up_between_two_halves_of_a_contact(self) -> None:
        a, b = Session(1), Session(2)
        a.connected()
        b.connected()
        taken(a, sent(b))                               # a knows b; then b gives up without having heard of a
        b.lost(20)
        self.assertEqual(self.settle(a, b)[0], 2)
        push(a, b"1")
        self.assertEqual(taken(b, sent(a)), [b"1"])

    def test_lost_tells_unknown_from_unsent(self) -> None:
        a, b = pair()
        push(a, b"confirmed")
        taken(b, sent(a))
        taken(a, sent(b, now=1.0))
        push(a, b"on its way")
        sent(a)
        a.disconnected()
        push(a, b"queued")
        long = frame_buffers(64, b"long")
        a.push(long, 9, "long")
        push(a, b"open")
        lost = a.lost(9)
        self.assertEqual([(item.tag, item.sent) for item in lost],
                         [(b"on its way", True), (b"queued", False), ("long", False), (b"open", False)])
        self.assertEqual(lost[1].frame, frame(b"queued"))
        self.assertIs(lost[2].frame, long)
        self.assertEqual((a.local_sid, a.remote_sid, a.unconfirmed_frames, a.below_window), (9, 0, 0, True))
        check(self, a)


    def test_what_was_sent_once_stays_unknown(self) -> None:
        a, b = pair()
        for text in (b"1", b"2"):
            push(a, text)
            sent(a)
        connect(a, b)
        self.assertEqual(a.next_batch(LIMIT, 0.0), [frame(b"1")])       # again; the second has not come round again
        self.assertEqual([item.sent for item in a.lost(9)], [True, True])


class End:
    """One end of the simulated link: a session and the codecs of its present connection."""

    def __init__(self, rng: random.Random, sid: int, count: int, key: Optional[bytes]) -> None:
        self.rng, self.count, self.key = rng, count, key
        self.session = Session(sid, SMALL)
        self.pushed = 0
        self.got: List[int] = []
        self.results: List[str] = []
        self.connection = -1

    def produce(self) -> None:
        """Push numbered messages of all sizes while the window allows."""
        for _ in range(self.rng.randrange(60)):
            if self.pushed == self.count or not self.session.below_window:
                return
            size = self.rng.choice((0, 4, 50, 200)) if self.rng.random() < 0.99 else self.rng.choice((3000, 9000))
            parts = struct.pack(">I", self.pushed), bytes(size)
            encoded: Any = encode_frame(64, *parts) if size < 9000 else frame_buffers(64, *parts)
            self.session.push(encoded, 5 + 4 + size, self.pushed)
            self.pushed += 1

    def join(self, connection: int) -> None:
        self.connection = connection
        self.sealer, self.opener = RecordSealer(self.key), RecordOpener(self.key)
        self.decoder = FrameDecoder(1 << 20)
        self.session.connected()

    def leave(self) -> None:
        self.connection = -1
        self.session.disconnected()

    def take(self, data: bytes, now: float) -> None:
        for body in self.opener.feed(data):
            taken_here = taken_bytes = 0
            for code, content in self.decoder.feed(body):
                if code == Code.SESSION:
                    self.results.append(self.session.on_session(*parse_session(content)))
                elif code == Code.ACK:
                    self.session.on_ack(parse_ack(content))
                else:
                    self.got.append(struct.unpack_from(">I", content)[0])
                    taken_here += 1
                    taken_bytes += len(content)
            if taken_here:
                self.session.note_received(taken_here, taken_bytes, now)


class Link:
    """A hostile network in memory, driven by a seed: bytes in order while a connection lasts, which is not long."""

    def __init__(self, seed: int, count: int) -> None:
        self.rng = random.Random(seed)
        key = b"k" * 32 if seed % 4 == 0 else None
        self.ends = End(self.rng, 1, count, key), End(self.rng, 2, count, key)
        self.pipes = [bytearray(), bytearray()]         # on their way to end 0, to end 1
        self.stuck = [False, False]                     # blackholed: what goes in never comes out
        self.now = 0.0
        self.connections = 0
        self.cuts = 0

    def step(self) -> None:
        self.now += self.rng.choice((0.001, 0.01, 0.15))
        self.change()
        for index, end in enumerate(self.ends):
            end.produce()
            if end.connection == self.connections:
                self.send(end, self.pipes[1 - index])
                self.deliver(index, end)

    def change(self) -> None:
        """Cut, blackhole or re-make the connection; the two ends learn of it at different times."""
        roll = self.rng.random()
        if roll < 0.03:
            self.cuts += 1
            self.connections += 1                       # a new one; ends join below
            self.pipes, self.stuck = [bytearray(), bytearray()], [False, False]
        elif roll < 0.04:
            self.stuck[self.rng.randrange(2)] = True
        for end in self.ends:
            if end.connection != self.connections and self.rng.random() < 0.3:
                if end.connection >= 0 and self.rng.random() < 0.5:
                    end.leave()
                else:
                    end.join(self.connections)

    def send(self, end: End, pipe: bytearray) -> None:
        limit = self.rng.choice((500, 4096, 4096))
        while len(pipe) < 20_000 and end.session.wants_write(self.now):
            pipe += b"".join(end.sealer.seal(end.session.next_batch(limit, self.now)))

    def deliver(self, index: int, end: End) -> None:
        pipe = self.pipes[index]
        if pipe and not self.stuck[index]:
            count = self.rng.choice((1, 30, 1000, len(pipe), len(pipe)))
            end.take(bytes(pipe[:count]), self.now)
            del pipe[:count]

    def finished(self) -> bool:
        return all(end.pushed == end.count and not end.session.unconfirmed_frames for end in self.ends)


class HostileLinkTest(TestCase):
    SEEDS, MESSAGES = 200, 1000         # each way; most seeds see several cuts, many of them in the middle of a frame

    def run_link(self, seed: int, count: int, watch: Callable[[Link], None] = lambda link: None) -> Link:
        link = Link(seed, count)
        for _ in range(200_000):
            link.step()
            watch(link)
            if link.finished():
                break
        for end in link.ends:
            self.assertEqual(end.got, list(range(count)), "seed %d" % seed)     # 0 lost, 0 twice, 0 out of order
            self.assertTrue(set(end.results) <= {"new", "resumed"})
            check(self, end.session)
        return link

    def test_nothing_is_lost_doubled_or_reordered(self) -> None:
        cuts = sum(self.run_link(seed, self.MESSAGES).cuts for seed in range(self.SEEDS))
        self.assertGreater(cuts, 2 * self.SEEDS)

    def test_invariants_hold_at_every_step(self) -> None:
        def watch(link: Link) -> None:
            for end in link.ends:
                check(self, end.session)
                self.assertLess(end.session.unconfirmed_bytes, SMALL.window_bytes + 10_000)
                self.assertLessEqual(end.session.unconfirmed_frames, SMALL.window_messages)
        for seed in range(1000, 1005):
            self.run_link(seed, 500, watch)
