"""Section 7: who knows the secret gets in, nobody else, and everybody is told why not."""
from __future__ import annotations

import hmac
import json
import random
import struct
from typing import Any, Callable, Iterator, List, Optional, Tuple
from unittest import mock

import pycoslite
from pycoslite import AuthenticationError, Handshake, MisuseError, ProtocolError, PycosError, Refusal
from tests.support import TestCase

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
A, B = b"a" * 16, b"b" * 16
HELLO_BYTES = 39


def dialling(key: Optional[bytes] = KEY, cluster: str = "c", process_id: bytes = A, nonce: bytes = b"1" * 32,
             **info: Any) -> Handshake:
    return Handshake("dial", key, process_id, dict(info, name="alice"), nonce, cluster)


def accepting(key: Optional[bytes] = KEY, cluster: str = "c", process_id: bytes = B, nonce: bytes = b"2" * 32,
              **info: Any) -> Handshake:
    return Handshake("accept", key, process_id, dict(info, name="bob"), nonce, cluster)


Mangle = Callable[[int, bytes], bytes]      # (number of the message, message) -> what arrives


def converse(a: Handshake, b: Handshake, mangle: Optional[Mangle] = None,
             step: int = 1 << 20) -> Tuple[Optional[PycosError], Optional[PycosError]]:
    """Let the ends talk until both are silent; the errors of a and of b. `step` is how many bytes arrive at once."""
    errors: List[Optional[PycosError]] = [None, None]
    ends, number, silent = (a, b), 0, 0
    sender = 1
    while silent < 2:
        data, receiver = ends[sender].data_to_send(), 1 - sender
        silent = 0 if data else silent + 1
        if data and mangle is not None:
            data = mangle(number, data)
        number += bool(data)
        for start in range(0, len(data), step):
            if errors[receiver] is None and ends[receiver].result is None:
                try:
                    ends[receiver].receive(data[start:start + step])
                except PycosError as error:
                    errors[receiver] = error
        sender = receiver
    return errors[0], errors[1]


def recorded(a: Handshake, b: Handshake) -> List[bytes]:
    """HELLO, AUTH and ACCEPT (or what came instead) of a conversation."""
    messages: List[bytes] = []

    def note(_number: int, message: bytes) -> bytes:
        messages.append(message)
        return message
    converse(a, b, note)
    return messages


class AgreementTest(TestCase):
    def assert_agreed(self, a: Handshake, b: Handshake) -> None:
        assert a.result is not None and b.result is not None
        self.assertEqual((a.result.peer_id, b.result.peer_id), (B, A))
        self.assertEqual((a.result.peer_info["name"], b.result.peer_info["name"]), ("bob", "alice"))
        self.assertEqual(a.result.send_key, b.result.receive_key)
        self.assertEqual(a.result.receive_key, b.result.send_key)
        self.assertEqual((a.result.version, b.result.version), (1, 1))
        self.assertEqual((a.result.leftover, b.result.leftover), (b"", b""))

    def test_same_secret(self) -> None:
        a, b = dialling(), accepting()
        self.assertEqual(converse(a, b), (None, None))
        self.assert_agreed(a, b)
        assert a.result is not None and a.result.send_key and a.result.receive_key
        self.assertEqual((len(a.result.send_key), len(a.result.receive_key)), (32, 32))
        self.assertNotEqual(a.result.send_key, a.result.receive_key)
        self.assertIsNone(a.refusal)

    def test_open_cluster_has_no_keys(self) -> None:
        a, b = dialling(None), accepting(None)
        self.assertEqual(converse(a, b), (None, None))
        self.assert_agreed(a, b)
        assert a.result is not None
        self.assertEqual((a.result.send_key, a.result.receive_key), (None, None))

    def test_every_size_of_piece(self) -> None:
        for step in range(1, 200):
            a, b = dialling(), accepting()
            self.assertEqual(converse(a, b, step=step), (None, None))
            self.assert_agreed(a, b)

    def test_every_cut_of_every_message(self) -> None:
        messages = recorded(dialling(), accepting())
        for cut in range(len(messages[0]) + len(messages[2]) + 1):
            a, stream = dialling(), messages[0] + messages[2]
            a.receive(stream[:cut])
            a.receive(stream[cut:]) if a.result is None else None
            self.assertIsNotNone(a.result)
        for cut in range(len(messages[1]) + 1):
            b = accepting()
            b.receive(messages[1][:cut])
            b.receive(messages[1][cut:]) if b.result is None else None
            self.assertIsNotNone(b.result)

    def test_keys_are_fresh_each_time(self) -> None:
        keys = set()
        for nonce_a, nonce_b in ((b"1", b"2"), (b"1", b"3"), (b"3", b"2")):
            a, b = dialling(nonce=nonce_a * 32), accepting(nonce=nonce_b * 32)
            converse(a, b)
            assert a.result is not None
            keys |= {a.result.send_key, a.result.receive_key}
        self.assertEqual(len(keys), 6)

    def test_keys_are_the_documented_ones(self) -> None:
        a, b = dialling(), accepting()
        said = b"".join(recorded(a, b))
        extracted = hmac.new(said, KEY, "sha256").digest()      # RFC 5869, said as salt
        assert a.result is not None
        self.assertEqual(a.result.send_key, hmac.new(extracted, b"dial to accept\x01", "sha256").digest())
        self.assertEqual(a.result.receive_key, hmac.new(extracted, b"accept to dial\x01", "sha256").digest())

    def test_what_follows_is_left_over(self) -> None:
        def add(number: int, message: bytes) -> bytes:
            return message + b"first record" if number == 2 else message
        a = dialling()
        converse(a, accepting(), add)
        assert a.result is not None
        self.assertEqual(a.result.leftover, b"first record")

    def test_what_follows_may_be_longer_than_a_handshake(self) -> None:
        a = dialling()
        converse(a, accepting(), lambda number, message: message + bytes(100_000) if number == 2 else message)
        assert a.result is not None
        self.assertEqual(len(a.result.leftover), 100_000)

    def test_nothing_is_taken_after_the_end(self) -> None:
        a, b = dialling(), accepting()
        converse(a, b)
        with self.assertRaises(MisuseError):
            a.receive(b"more")

    def test_keys_are_not_printed(self) -> None:
        a, b = dialling(), accepting()
        converse(a, b)
        assert a.result is not None and a.result.send_key is not None
        for shown in (repr(a.result), str(a.result), repr(a)):
            self.assertNotIn("send_key", shown)
            self.assertNotIn(repr(a.result.send_key)[2:-1], shown)

    def test_same_channel_below(self) -> None:
        for channel_a, channel_b, agreed in ((b"x" * 32, b"x" * 32, True), (b"x" * 32, b"y" * 32, False)):
            a, b = dialling(), accepting()
            for end in (a, b):
                end.offer(pycoslite.HAS_CERTIFICATE)
            converse(a, b)
            self.assertEqual((a.result, a.channel, b.channel), (None, "certificates", "certificates"))
            a.bind(channel_a)
            b.bind(channel_b)
            converse(a, b)
            self.assertEqual((a.result is not None, b.result is not None), (agreed, agreed))

    def test_nothing_to_bind_without_tls(self) -> None:
        for end in (dialling(), accepting()):
            with self.assertRaisesRegex(MisuseError, "bound to TLS once, after START"):
                end.bind(b"x")

    def test_arguments_are_checked(self) -> None:
        for wrong, arguments in (("role", ("call", KEY, A, {}, bytes(32), "c")),
                                 ("key", ("dial", b"", A, {}, bytes(32), "c")),
                                 ("process_id", ("dial", KEY, b"", {}, bytes(32), "c")),
                                 ("nonce", ("dial", KEY, A, {}, b"", "c")),
                                 ("info", ("dial", KEY, A, {"x": "x" * 2048}, bytes(32), "c"))):
            with self.assertRaisesRegex(MisuseError, "wrong: %s" % wrong):
                Handshake(*arguments)


class RefusalTest(TestCase):
    """Both ends raise AuthenticationError with a sentence that says what to change."""

    def assert_refused(self, a: Handshake, b: Handshake, refusal: int, at_a: str, at_b: str = "") -> None:
        errors = converse(a, b)
        for end, error, sentence in zip((a, b), errors, (at_a, at_b or at_a)):
            self.assertIsInstance(error, AuthenticationError)
            self.assertRegex(str(error), sentence)
            self.assertNotIn("\n", str(error))
            self.assertIsNone(end.result)
            self.assertEqual(end.refusal, refusal)
            with self.assertRaises(MisuseError):
                end.receive(b"again")

    def test_wrong_secret(self) -> None:
        self.assert_refused(dialling(), accepting(OTHER_KEY), Refusal.SECRET,
                            "another secret: copy ~/.pycoslite/secret .* or set PYCOSLITE_SECRET_FILE$")

    def test_wrong_cluster(self) -> None:
        for key in (KEY, None):
            self.assert_refused(dialling(key, "red"), accepting(key, "blue"), Refusal.CLUSTER,
                                r"another cluster than this one \('red'\): start both with the same cluster name",
                                r"another cluster than this one \('blue'\)")

    def test_no_common_version(self) -> None:
        for versions_a, versions_b in (((1, 1), (2, 3)), ((2, 3), (1, 1))):
            with mock.patch.object(Handshake, "VERSIONS", versions_b):
                b = accepting()
            a = dialling()
            a.VERSIONS, b.VERSIONS = versions_a, versions_b     # type: ignore[misc]
            self.assert_refused(a, b, Refusal.VERSION, r"\(this one %d to %d\): install the same release" % versions_a,
                                r"\(this one %d to %d\)" % versions_b)

    def test_newest_common_version_is_taken(self) -> None:
        for versions_a, versions_b, version in (((1, 3), (2, 5), 3), ((2, 9), (1, 4), 4), ((1, 1), (1, 1), 1)):
            with mock.patch.object(Handshake, "VERSIONS", versions_b):
                b = accepting()
            a = dialling()
            a.VERSIONS, b.VERSIONS = versions_a, versions_b     # type: ignore[misc]
            self.assertEqual(converse(a, b), (None, None))
            assert a.result is not None and b.result is not None
            self.assertEqual((a.result.version, b.result.version), (version, version))

    def test_version_outside_the_range_is_refused_by_the_accepting_end(self) -> None:
        def choose(number: int, message: bytes) -> bytes:
            return message[:1] + b"\7" + message[2:] if number == 1 else message
        b = accepting()
        self.assertRegex(str(converse(dialling(), b, choose)[1]), "another version")

    def test_open_against_authenticated(self) -> None:
        demands, without = r"\(this one demands it\): .*--no-auth", r"\(this one runs without\): .*--no-auth"
        self.assert_refused(dialling(None), accepting(), Refusal.ONE_SIDED, without, demands)
        self.assert_refused(dialling(), accepting(None), Refusal.ONE_SIDED, demands, without)

    def test_flag_cannot_be_lowered(self) -> None:
        def lower(number: int, message: bytes) -> bytes:
            return message[:6] + b"\0" + message[7:] if number == 0 else message
        a, b = dialling(), accepting()
        errors = converse(a, b, lower)
        self.assertEqual([type(error) for error in errors], [AuthenticationError] * 2)
        a, b = dialling(None), accepting()
        a.receive(lower(0, b.data_to_send()))                   # an open end is told that the other is open too ...
        with self.assertRaisesRegex(AuthenticationError, "this one demands it"):
            b.receive(a.data_to_send())                         # ... and gets nowhere

    def test_itself(self) -> None:
        for key in (KEY, None):
            self.assert_refused(dialling(key, process_id=A), accepting(key, process_id=A), Refusal.ITSELF,
                                "leads back to this process itself")

    def test_busy(self) -> None:
        a, b = dialling(), accepting()
        hello = b.data_to_send()
        self.assertIn("try again", str(b.refuse(Refusal.BUSY)))
        with self.assertRaisesRegex(AuthenticationError, "try again in a moment"):
            a.receive(hello + b.data_to_send())
        self.assertEqual((a.refusal, b.refusal), (Refusal.BUSY, Refusal.BUSY))

    def test_unknown_reason(self) -> None:
        a, b = dialling(), accepting()
        with self.assertRaisesRegex(AuthenticationError, r"a reason \(99\) that this release does not know"):
            a.receive(b.data_to_send() + b"R\x63")

    def test_every_code_has_a_sentence(self) -> None:
        for name, code in vars(Refusal).items():
            if name.isupper():
                self.assertNotIn("does not know", str(accepting().refuse(code)), name)


class AttackTest(TestCase):
    def flips(self, number: int, message: bytes) -> Iterator[Mangle]:
        """Manglings that each flip another bit of message `number`."""
        for bit in range(len(message) * 8):
            def flip(count: int, data: bytes, bit: int = bit) -> bytes:
                if count != number:
                    return data
                damaged = bytearray(data)
                damaged[bit >> 3] ^= 1 << (bit & 7)
                return bytes(damaged)
            yield flip

    def test_every_flipped_bit_is_refused(self) -> None:
        for number, message in enumerate(recorded(dialling(), accepting())):
            for mangle in self.flips(number, message):
                a, b = dialling(), accepting()
                converse(a, b, mangle)
                self.assertIsNone(a.result)
                if number < 2:          # the last message was on its way when the accepting end was content already
                    self.assertIsNone(b.result)

    def test_who_only_connects_learns_a_nonce(self) -> None:
        b = accepting()
        hello = b.data_to_send()
        self.assertEqual(hello, b"PYCL\1\1\1" + b"2" * 32)
        auth = recorded(dialling(), accepting())[1]
        for data in (auth[:-1], b"", b"A"):
            b = accepting()
            b.data_to_send()
            b.receive(data)
            self.assertEqual(b.data_to_send(), b"")
        with self.assertRaises(AuthenticationError):
            b.receive(auth[1:-1] + b"\0")
        self.assertEqual(b.data_to_send(), b"R\1")

    def test_replay_is_refused(self) -> None:
        hello, auth, accept = recorded(dialling(), accepting())
        with self.assertRaisesRegex(AuthenticationError, "another secret"):
            accepting(nonce=b"3" * 32).receive(auth)
        a = dialling(nonce=b"3" * 32)
        with self.assertRaisesRegex(AuthenticationError, "another secret"):
            a.receive(hello + accept)

    def test_reflection_is_refused(self) -> None:
        b = accepting()
        with self.assertRaises(ProtocolError):
            b.receive(b.data_to_send())
        a = dialling()
        a.receive(accepting().data_to_send())
        auth = a.data_to_send()
        proof = struct.pack(">c16sH", b"B", B, 0) + auth[-32:]
        for answer, error in ((auth, ProtocolError), (proof, AuthenticationError)):
            a = dialling()
            a.receive(accepting().data_to_send())
            with self.assertRaises(error):
                a.receive(answer)

    def test_relay_to_itself_is_refused(self) -> None:
        """An attacker who lets a process that both listens and dials talk to itself gets no session."""
        listening, dialled = accepting(process_id=A), dialling(process_id=A)
        errors = converse(dialled, listening)
        self.assertTrue(all(isinstance(error, AuthenticationError) for error in errors))

    def test_truncation_gives_nothing(self) -> None:
        hello, auth, accept = recorded(dialling(), accepting())
        for end in range(len(auth)):
            b = accepting()
            b.receive(auth[:end])
            self.assertIsNone(b.result)
        for end in range(len(hello + accept)):
            a = dialling()
            a.receive((hello + accept)[:end])
            self.assertIsNone(a.result)

    def test_other_protocols_are_named(self) -> None:
        for greeting in (b"HTTP/1.1 400 Bad Request\r\n", b"S", b"PYC!", b"\x16\x03\x01"):
            with self.assertRaisesRegex(ProtocolError, "not pycoslite: it began with b'"):
                dialling().receive(greeting)
        for request in (b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01", b"\0" * 100):
            with self.assertRaisesRegex(ProtocolError, "not pycoslite"):
                accepting().receive(request)

    def test_announced_info_is_capped(self) -> None:
        for size in (2049, 65_535):
            head = struct.pack(">cBB32s16sH", b"A", 1, 1, bytes(32), A, size)
            with self.assertRaisesRegex(ProtocolError, "%d bytes of info" % size):
                accepting().receive(head)

    def test_kept_bytes_are_capped(self) -> None:
        head = struct.pack(">cBB32s16sH", b"A", 1, 1, bytes(32), A, 2048)
        with mock.patch.object(pycoslite.settings, "handshake_bytes", 512):
            b = accepting()
            with self.assertRaisesRegex(ProtocolError, "says more than a handshake has"):
                for _ in range(100):
                    b.receive(head + bytes(451))
                    head = b""

    def test_json_is_not_read_before_the_proof(self) -> None:
        auth = recorded(dialling(OTHER_KEY), accepting(OTHER_KEY))[1]
        with mock.patch.object(pycoslite.json, "loads", side_effect=AssertionError("read too early")):
            with self.assertRaises(AuthenticationError):
                accepting().receive(auth)

    def test_info_that_is_no_object_is_refused(self) -> None:
        for text in (b"", b"[1]", b"{", b"\xff\xfe", b"[" * 2000, b"1" * 2000, b"null", b'{"a":' * 400):
            b = accepting(None)
            head = struct.pack(">cBB32s16sH", b"A", 1, 0, bytes(32), A, len(text)) + text
            proof = hmac.new(b"", b"A" + b.data_to_send() + head, "sha256").digest()
            with self.assertRaisesRegex(ProtocolError, "not a JSON object"):
                b.receive(head + proof)

    def test_info_travels_as_it_is(self) -> None:
        info = {"python": [3, 11, 7], "magic": "a70d", "addresses": ["10.0.0.1", "::1"], "name": "n\u00f6de"}
        a = Handshake("dial", KEY, A, info, bytes(32), "cl\u00fcster")
        b = Handshake("accept", KEY, B, {}, bytes(32), "cl\u00fcster")
        self.assertEqual(converse(a, b), (None, None))
        assert b.result is not None
        self.assertEqual(b.result.peer_info, dict(info, cluster="cl\u00fcster"))
        self.assertEqual(json.loads(json.dumps(b.result.peer_info)), b.result.peer_info)

    def test_mutated_conversations(self) -> None:
        rng = random.Random(4)
        for _ in range(3000):
            key = rng.choice((KEY, None))
            target = rng.randrange(3)

            def mangle(number: int, message: bytes) -> bytes:
                if number != target:
                    return message
                damaged, start = bytearray(message), rng.randrange(len(message))
                end = start + rng.randrange(4)
                damaged[start:end] = bytes(rng.randrange(256) for _ in range(rng.choice((end - start, 0, 1, 9))))
                return bytes(damaged)
            a, b = dialling(key), accepting(key)
            for error in converse(a, b, mangle, step=rng.choice((7, 60, 10_000))):
                self.assertIsInstance(error, (ProtocolError, AuthenticationError, type(None)))
            if key and a.result and b.result:           # the mutation changed nothing that counts
                self.assertEqual(a.result.send_key, b.result.receive_key)
