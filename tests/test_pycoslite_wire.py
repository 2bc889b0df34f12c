"""Section 6: records and frames, cut anyhow, damaged anyhow."""
from __future__ import annotations

import hashlib
import random
import struct
import tracemalloc
from typing import Any, Callable, Iterable, List, Optional
from unittest import mock

import pycoslite
from pycoslite import FrameDecoder, ProtocolError, RecordOpener, RecordSealer, encode_frame, frame_buffers
from tests.support import TestCase

KEY = bytes(range(32))
MIB = 1 << 20


def records(bodies: Iterable[bytes], key: Optional[bytes] = KEY) -> List[bytes]:
    """Each body sealed as one record."""
    sealer = RecordSealer(key)
    return [b"".join(sealer.seal([body])) for body in bodies]


def opened(pieces: Iterable[bytes], key: Optional[bytes] = KEY) -> List[bytes]:
    opener = RecordOpener(key)
    return [bytes(body) for piece in pieces for body in opener.feed(piece)]


def decoded(pieces: Iterable[bytes], cap: int = 1 << 30) -> List[tuple]:
    decoder = FrameDecoder(cap)
    return [(code, bytes(body)) for piece in pieces for code, body in decoder.feed(piece)]


def split_once(data: bytes) -> Iterable[List[bytes]]:
    """`data` in two pieces, cut at every place."""
    return ([data[:cut], data[cut:]] for cut in range(len(data) + 1))


def in_pieces(data: bytes, size: int) -> List[bytes]:
    return [data[start:start + size] for start in range(0, len(data), size)]


def growth(function: Callable[[], Any]) -> int:
    """Most bytes of Python memory in use at once while `function` ran, beyond those in use before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        function()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


class RecordTest(TestCase):
    BODIES = [b"", b"a", b"hello" * 20, b"", b"\0\0\0\4"]

    def test_mac_is_the_documented_one(self) -> None:
        bodies = self.BODIES + [b"m" * size for size in (1023, 1024, 1025, 16_384, 16_385, 70_000)] + [b"last"]
        for key in (KEY, bytes(32)):
            sealer, chain = RecordSealer(key), b""
            for body in bodies:
                length = struct.pack(">I", len(body))
                chain += length + (body if len(body) <= 1024 else hashlib.sha256(body).digest())
                mac = hashlib.blake2b(chain, key=key, digest_size=16).digest()
                parts = [body[:len(body) // 2], body[len(body) // 2:]] if len(body) % 2 else [body]
                self.assertEqual(b"".join(sealer.seal(parts)), length + body + mac)

    def test_a_python_without_the_hash_says_so(self) -> None:
        with mock.patch.object(hashlib, "blake2b", side_effect=ValueError("disabled for FIPS")):
            for kind in (RecordSealer, RecordOpener):
                with self.assertRaisesRegex(pycoslite.AuthenticationError, "no BLAKE2b.*FIPS.*certfile"):
                    kind(KEY)
                kind(None)              # below TLS, or open

    def test_each_end_has_a_chain_of_its_own(self) -> None:
        """What was sealed by the long way is opened by the short one, and the other way round."""
        sealer, opener, decoder = RecordSealer(KEY), RecordOpener(KEY), FrameDecoder(MIB)
        for size in (0, 1019, 1020, 1, 40_000, 1019, 2, 1000):
            frame = encode_frame(64, b"f" * size)
            for record in (b"".join(sealer.seal([frame[:3], frame[3:]])), b"".join(sealer.seal([frame]))):
                found = opener.lone_frame(record, decoder)
                self.assertEqual(found is not None, size <= 1019)
                if found is None:
                    (found,) = decoder.feed(*opener.feed(record))
                self.assertEqual(found, (64, b"f" * size))

    def test_without_key_there_is_no_mac(self) -> None:
        self.assertEqual(records([b"abc"], None), [b"\0\0\0\3abc"])

    def test_every_cut_gives_the_same_bodies(self) -> None:
        for key in (KEY, None):
            stream = b"".join(records(self.BODIES, key))
            for pieces in split_once(stream):
                self.assertEqual(opened(pieces, key), self.BODIES)
            for size in (1, 2, 3, 5):
                self.assertEqual(opened(in_pieces(stream, size), key), self.BODIES)

    def test_long_records_in_pieces_of_any_size(self) -> None:
        rng = random.Random(1)
        bodies = [rng.randbytes(size) if hasattr(rng, "randbytes") else bytes(rng.getrandbits(8) for _ in range(size))
                  for size in (40_000, 16, 16_384, 16_381, 70_000)]
        stream = b"".join(records(bodies))
        for size in (len(stream), 999, 16_384, 40_020, 65_536):
            self.assertEqual(opened(in_pieces(stream, size)), bodies)

    def test_small_bodies_are_bytes(self) -> None:
        (record,) = records([b"small"])
        for pieces in split_once(record):
            opener = RecordOpener(KEY)
            (body,) = [body for piece in pieces for body in opener.feed(piece)]
            self.assertIs(type(body), bytes)

    def test_small_parts_become_one_buffer(self) -> None:
        parts = [b"a", bytearray(b"b"), memoryview(b"c")]
        self.assertEqual([type(buffer) for buffer in RecordSealer(KEY).seal(parts)], [bytes])
        self.assertEqual(len(RecordSealer(KEY).seal([b"x" * 100] * 2000)), 3)       # header, joined body, MAC

    def test_large_parts_are_not_copied(self) -> None:
        large = bytes(100_000)
        sealed = RecordSealer(KEY).seal([b"head", large])
        self.assertTrue(any(buffer is large for buffer in sealed))
        self.assertEqual(opened([b"".join(sealed)]), [b"head" + large])

    def test_every_flipped_bit_is_refused(self) -> None:
        bodies = [b"first", b"second message", b"third"]
        stream = b"".join(records(bodies))
        for bit in range(len(stream) * 8):
            damaged = bytearray(stream)
            damaged[bit >> 3] ^= 1 << (bit & 7)
            opener, found = RecordOpener(KEY), []
            try:
                for piece in in_pieces(bytes(damaged), 7):
                    found += opener.feed(piece)
            except ProtocolError:
                pass                    # otherwise the length grew and the rest of that record is being waited for
            self.assertEqual(found, bodies[:len(found)])
            self.assertLess(len(found), 3)

    def test_replay_reorder_hole_and_reflection_are_refused(self) -> None:
        first, second, third = records([b"1", b"2", b"3"])
        (reflected,) = records([b"1"], bytes(32))
        for pieces, good in (([first, first], 1), ([second, first], 0), ([first, third], 1), ([reflected], 0)):
            opener = RecordOpener(KEY)
            for piece in pieces[:good]:
                opener.feed(piece)
            with self.assertRaisesRegex(ProtocolError, "wrong MAC"):
                opener.feed(pieces[good])

    def test_a_lone_frame_is_what_the_long_way_gives(self) -> None:
        rng = random.Random(4)
        for key in (KEY, None):
            for _ in range(300):
                bodies = [b"".join(
                    encode_frame(rng.randrange(256), bytes(rng.choice((0, 3, 90, 1018, 1019, 1020, 1100))))
                    for _ in range(rng.choice((1, 1, 1, 1, 2)))) for _ in range(4)]
                cut, late = rng.randrange(3), rng.choice((0, 0, 1, 4))
                bodies[cut], bodies[cut + 1] = bodies[cut][:-late or None], bodies[cut][len(
                    bodies[cut]) - late:] + bodies[cut + 1]         # the end of a frame comes with the next record
                stream = b"".join(records(bodies, key))
                places = sorted(rng.sample(range(len(stream)), 3)) if rng.random() < 0.3 else [
                    len(b"".join(records(bodies[:count], key))) for count in (1, 2, 3)]
                short, long = (RecordOpener(key), FrameDecoder(MIB)), (RecordOpener(key), FrameDecoder(MIB))
                for start, stop in zip([0] + places, places + [len(stream)]):
                    data = stream[start:stop]
                    wanted = [frame for body in long[0].feed(data) for frame in long[1].feed(body)]
                    lone = short[0].lone_frame(data, short[1])
                    found = [lone] if lone else [
                        frame for body in short[0].feed(data) for frame in short[1].feed(body)]
                    self.assertEqual(found, wanted)

    def test_a_lone_frame_is_refused_as_any_other(self) -> None:
        first, second = records([encode_frame(64, b"first"), encode_frame(64, b"second")])
        for bit in range(len(first) * 8):
            damaged = bytearray(first)
            damaged[bit >> 3] ^= 1 << (bit & 7)
            opener, decoder = RecordOpener(KEY), FrameDecoder(MIB)
            with self.subTest(bit=bit):
                try:
                    self.assertIsNone(opener.lone_frame(bytes(damaged), decoder))   # no such form: for `feed` to judge
                    self.assertEqual(opener.feed(bytes(damaged)), [])               # its length grew
                except ProtocolError:
                    self.assertIsNone(opener.lone_frame(first, decoder))            # nothing is taken any more
        opener, decoder = RecordOpener(KEY), FrameDecoder(MIB)
        for replayed in (second, first):
            self.assertEqual(RecordOpener(KEY).lone_frame(first, decoder), (64, b"first"))
            with self.assertRaisesRegex(ProtocolError, "wrong MAC"):
                opener = RecordOpener(KEY)
                if replayed is first:
                    opener.lone_frame(first, decoder)
                opener.lone_frame(replayed, decoder)

    def test_a_frame_that_is_too_long_is_no_lone_one(self) -> None:
        (record,) = records([encode_frame(64, bytes(101))])
        opener, decoder = RecordOpener(KEY), FrameDecoder(100)
        self.assertIsNone(opener.lone_frame(record, decoder))
        with self.assertRaisesRegex(ProtocolError, "101 bytes"):
            decoder.feed(*opener.feed(record))
        self.assertIsNone(RecordOpener(KEY, cap=100).lone_frame(record, FrameDecoder(MIB)))

    def test_truncated_record_gives_nothing(self) -> None:
        (record,) = records([b"body"])
        for end in range(len(record)):
            self.assertEqual(opened([record[:end]]), [])

    def test_after_an_error_nothing_is_taken(self) -> None:
        first, second = records([b"1", b"2"])
        opener = RecordOpener(KEY)
        for data in (first[:-1] + b"\0", first, second, b""):
            with self.assertRaises(ProtocolError):
                opener.feed(data)

    def test_length_is_checked_before_anything_is_kept(self) -> None:
        for pieces in ([struct.pack(">I", 101)], [b"\0\0", b"\0\x65"], [b"\xff", b"\xff\xff\xff" + bytes(1000)]):
            opener = RecordOpener(KEY, cap=100)
            with self.assertRaisesRegex(ProtocolError, "more than the 100 allowed"):
                for piece in pieces:
                    opener.feed(piece)
        self.assertEqual(opened(records([bytes(100)])), [bytes(100)])

    def test_memory_follows_what_came_not_what_was_promised(self) -> None:
        def promise() -> None:
            openers = [RecordOpener(KEY) for _ in range(100)]
            for opener in openers:
                opener.feed(struct.pack(">I", MIB) + bytes(100))
        self.assertLess(growth(promise), MIB)

    def test_kept_part_never_exceeds_one_record(self) -> None:
        stream = b"".join(records([bytes(1000)] * 200))

        def dribble() -> None:
            opener = RecordOpener(KEY, cap=1000)
            for piece in in_pieces(stream, 1019):       # always one byte less than a record
                opener.feed(piece)
        self.assertLess(growth(dribble), len(stream) + 20_000)      # the list of pieces is the stream once more


class FrameTest(TestCase):
    FRAMES = [(64, b""), (65, b"x"), (255, b"hello" * 20), (1, b"\0" * 24), (16, b"")]

    def stream(self) -> bytes:
        return b"".join(encode_frame(code, body) for code, body in self.FRAMES)

    def test_layout(self) -> None:
        self.assertEqual(encode_frame(7, b"abc"), b"\0\0\0\3\7abc")
        self.assertEqual(encode_frame(7), b"\0\0\0\0\7")
        self.assertEqual(encode_frame(7, b"a", bytearray(b"bc"), memoryview(b"d")), b"\0\0\0\4\7abcd")
        self.assertIs(type(encode_frame(7, memoryview(b"d"))), bytes)

    def test_buffers_are_the_same_frame_uncopied(self) -> None:
        parts = [b"head", bytearray(100_000)]
        buffers = frame_buffers(64, *parts)
        self.assertEqual(b"".join(buffers), encode_frame(64, *parts))
        self.assertIs(buffers[2], parts[1])

    def test_every_cut_gives_the_same_frames(self) -> None:
        stream = self.stream()
        for pieces in split_once(stream):
            self.assertEqual(decoded(pieces), self.FRAMES)
            self.assertEqual(decoded(map(memoryview, pieces)), self.FRAMES)
        for size in (1, 2, 3, 5):
            self.assertEqual(decoded(in_pieces(stream, size)), self.FRAMES)

    def test_small_bodies_are_bytes_however_they_came(self) -> None:
        for pieces in split_once(encode_frame(64, b"body")):
            decoder = FrameDecoder(100)
            ((_, body),) = [frame for piece in pieces for frame in decoder.feed(piece)]
            self.assertIs(type(body), bytes)

    def test_long_frame_is_assembled_once(self) -> None:
        body = bytes(range(256)) * 4000
        stream = encode_frame(64, body) + encode_frame(65, b"next")
        for size in (len(stream), 1000, 65_536):
            for wrap in (bytes, memoryview):
                frames = decoded(map(wrap, in_pieces(stream, size)))
                self.assertEqual(frames, [(64, body), (65, b"next")])

    def test_result_does_not_change_with_later_feeds(self) -> None:
        decoder = FrameDecoder(MIB)
        buffer = bytearray(encode_frame(64, b"one") + encode_frame(64, b"two")[:6])
        frames = decoder.feed(memoryview(buffer))
        buffer[:] = bytes(len(buffer))
        frames += decoder.feed(b"wo")
        self.assertEqual(frames, [(64, b"one"), (64, b"two")])

    def test_cap_holds_for_whole_and_begun_frames(self) -> None:
        self.assertEqual(decoded([encode_frame(64, bytes(100))], cap=100), [(64, bytes(100))])
        whole = encode_frame(64, bytes(101))
        for pieces in ([whole], [whole[:5]], in_pieces(whole, 1)):
            with self.assertRaisesRegex(ProtocolError, "101 bytes was announced, more than the 100 allowed"):
                decoded(pieces, cap=100)

    def test_between_frames(self) -> None:
        decoder = FrameDecoder(100)
        frame = encode_frame(64, b"ab")
        seen = []
        for piece in in_pieces(frame + frame, 1):
            seen.append(decoder.between_frames)
            decoder.feed(piece)
        self.assertEqual(seen, ([True] + [False] * 6) * 2)
        self.assertTrue(decoder.between_frames)

    def test_memory_follows_what_came_not_what_was_promised(self) -> None:
        piece = bytes(64 * 1024)

        def promise() -> None:
            decoders = [FrameDecoder(1 << 30) for _ in range(20)]
            for decoder in decoders:
                decoder.feed(struct.pack(">IB", 1 << 30, 64) + bytes(1000))
            for _ in range(16):                         # one goes on, to 1 MiB
                decoders[0].feed(piece)
        self.assertLess(growth(promise), 3 * MIB)

    def test_control_frames(self) -> None:
        frames = decoded([pycoslite.session_frame(1, 2**64 - 1, 3) + pycoslite.ack_frame(9)])
        self.assertEqual([code for code, _ in frames], [pycoslite.Code.SESSION, pycoslite.Code.ACK])
        self.assertEqual(pycoslite.parse_session(frames[0][1]), (1, 2**64 - 1, 3))
        self.assertEqual(pycoslite.parse_ack(frames[1][1]), 9)
        for parse in (pycoslite.parse_session, pycoslite.parse_ack):
            for size in (0, 7, 9, 23, 25):
                with self.assertRaisesRegex(ProtocolError, "frame of %d bytes instead of" % size):
                    parse(bytes(size))


class FuzzTest(TestCase):
    """Damaged streams: nothing but ProtocolError comes out, memory stays small."""

    def mutate(self, rng: random.Random, data: bytes) -> bytes:
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 5))):
            start = rng.randrange(len(damaged))
            kind = rng.randrange(4)
            if kind == 0:
                damaged[start] = rng.randrange(256)
            elif kind == 1:
                del damaged[start:start + rng.randrange(1, 9)]
            elif kind == 2:
                damaged[start:start] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
            else:
                damaged[start:start + 4] = struct.pack(">I", rng.choice((0, 1, 255, 65_536, MIB, 1 << 30, 2**32 - 1)))
            damaged = damaged or bytearray(1)
        return bytes(damaged)

    def take(self, pieces: List[bytes], key: Optional[bytes]) -> int:
        """Run `pieces` through both layers as a driver would; return the number of frames, -1 after an error."""
        opener, decoder, count = RecordOpener(key), FrameDecoder(MIB), 0
        parsers = {pycoslite.Code.SESSION: pycoslite.parse_session, pycoslite.Code.ACK: pycoslite.parse_ack}
        try:
            for piece in pieces:
                for body in opener.feed(piece):
                    for code, frame in decoder.feed(body):
                        parsers.get(code, len)(frame)
                        count += 1
        except ProtocolError:
            return -1
        return count

    def test_mutated_streams(self) -> None:
        rng = random.Random(2)
        frames = [pycoslite.session_frame(1, 2, 3), encode_frame(64, b"x" * 30), pycoslite.ack_frame(1),
                  encode_frame(65, b""), encode_frame(66, b"y" * 200), encode_frame(64, b"z")]
        streams = {key: b"".join(records(frames, key)) for key in (KEY, None)}
        outcomes = {-1: 0}

        def attack() -> None:
            for turn in range(3400):                    # x 6 frames: 20,000 frames
                key = KEY if turn % 4 == 0 else None
                data = self.mutate(rng, streams[key])
                count = self.take(in_pieces(data, rng.choice((1000, 1000, 50, 9))), key)
                outcomes[count] = outcomes.get(count, 0) + 1
        self.assertLess(growth(attack), 2 * MIB)
        self.assertGreater(outcomes[-1], 1000)          # the mutations do hit something
        self.assertGreater(len(outcomes), 4)

    def test_noise(self) -> None:
        rng = random.Random(3)
        for _ in range(500):
            self.take([bytes(rng.randrange(256) for _ in range(rng.randrange(1, 60))) for _ in range(3)], None)
