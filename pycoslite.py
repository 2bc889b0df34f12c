"""Lightweight tasks, messages and peers from one file of standard-library Python.

A task is a generator function (or an ``async def``) that the kernel of this module runs; tasks send each
other messages, whether they live in the same process or on another machine.

    import pycoslite

    def server(task=None):
        while True:
            client, number = yield task.receive()
            client.send(number * 2)

    def client(server, task=None):
        server.send((task, 21))
        print((yield task.receive()))          # 42

    pycoslite.Task(client, pycoslite.Task(server, daemon=True))

Sections (the banners below carry the same numbers and titles):

     1. Settings
     2. Errors
     3. Logging and platform
     4. Timer queue (pure)
     5. Addresses (pure)
     6. Wire format (pure)
     7. Handshake (pure)
     8. Session (pure)

Rules that hold everywhere: importing starts nothing (no thread, socket, file, signal handler); sections marked
"pure" take bytes, events and ``now`` and give bytes, events and instructions, and touch no socket, clock or thread;
a section uses only what stands above it; nothing on the wire names a Python module of ours.
"""
from __future__ import annotations

import atexit
import dataclasses
import functools
import hashlib
import hmac
import inspect
import itertools
import json
import logging
import os
import select
import selectors
import socket
import struct
import sys
import threading
import time
import traceback
import types
from _thread import get_ident
from collections import deque, namedtuple
from heapq import heapify, heappop, heappush
from typing import Any, Callable, Dict, Generator, List, Optional, Tuple

__version__ = "0.1.0"

# ======================================================================================================================
# 1. Settings                                              every number that has a unit, and the environment's overrides
# ======================================================================================================================


@dataclasses.dataclass
class Settings:
    """Defaults of the whole package; units are in the names. An instance, `settings`, is what the code reads.

    Every field can be set before the network starts with an environment variable of its name in capitals with the
    prefix ``PYCOSLITE_`` (``PYCOSLITE_HEARTBEAT_S=1``).
    """

    heartbeat_s: float = 5.0            # an idle connection says it lives this often
    missed_heartbeats: int = 3          # so many silent intervals make a peer offline
    give_up_s: float = 60.0             # an unreachable peer's messages are kept this long, then reported as lost
    refused_s: float = 1.0              # a port that refuses for this long has no process behind it any more
    reconnect_min_s: float = 0.05       # back-off of a broken connection: doubles from here ...
    reconnect_max_s: float = 5.0        # ... to here
    connect_s: float = 2.0              # one TCP connection attempt
    handshake_s: float = 3.0            # a connection must have proved the secret by then
    pending_handshakes: int = 64        # connections that have not; the oldest gives way to the next
    handshake_bytes: int = 4096         # most that is kept of what such a connection says
    record_bytes: int = 256 * 1024      # what one write carries at most (one MAC each)
    frame_bytes: int = 1 << 30          # longest message taken from an authenticated peer
    window_bytes: int = 64 << 20        # unconfirmed bytes per peer before senders are held back
    window_messages: int = 100_000      # likewise, messages
    ack_bytes: int = 256 * 1024         # received bytes after which a confirmation is owed at once
    ack_messages: int = 1000            # likewise, messages
    ack_delay_s: float = 0.2            # a confirmation that found nothing to ride on goes by itself after this
    message_timeout_s: float = 10.0     # control requests (the documents' MsgTimeout)
    takeover_s: float = 0.05            # a user task that holds its thread this long loses the network to the watcher
    net_port: int = 9705                # UDP discovery, and the first TCP port tried

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            text = os.environ.get("PYCOSLITE_" + field.name.upper())
            if text is not None:
                kind = type(field.default)
                try:
                    setattr(self, field.name, kind(text))
                except ValueError:
                    raise ValueError("PYCOSLITE_%s=%r is not a %s (its default is %r)" % (
                        field.name.upper(), text, kind.__name__, field.default)) from None


settings = Settings()

# ======================================================================================================================
# 2. Errors                                                                                            one small tree
# ======================================================================================================================


class PycosError(Exception):
    """Root of every error this package raises by itself."""


class ProtocolError(PycosError):
    """The other end broke the wire format; the connection is closed, the sentence says what was wrong."""


class AuthenticationError(PycosError):
    """A handshake was refused, by us or by the other end; the sentence says why and what to change."""


class PeerLost(PycosError):
    """The peer's process is gone, or was unreachable for longer than `Settings.give_up_s`."""


class OperationTimeout(PycosError, TimeoutError):
    """What was waited for did not come in time."""


class MisuseError(PycosError):
    """The program used an API in a way that cannot work; the sentence names the place and the remedy."""


# ======================================================================================================================
# 3. Logging and platform                                                             quiet unless the program asks
# ======================================================================================================================

log = logging.getLogger("pycoslite")     # no handler: warnings and errors reach stderr, the rest only who asks for it

# ======================================================================================================================
# 4. Timer queue (pure)                                                              deadlines in order; `now` comes in
# ======================================================================================================================


class TimerQueue:
    """Items in the order of their deadlines; each item is in it at most once.

    An item is any object with a writable attribute ``timer`` (0 when it is not queued) and a method ``expire()``.
    Cancelling is O(1): the heap's entry goes stale, and once more than half of the heap is stale it is rebuilt, so
    that timers set and cancelled a million times leave nothing behind.
    """

    __slots__ = ("_heap", "_sequence", "_stale")

    def __init__(self) -> None:
        self._heap: list = []           # (deadline, sequence, item); live while item.timer == sequence
        self._sequence = 0
        self._stale = 0

    def __len__(self) -> int:
        return len(self._heap) - self._stale

    def push(self, deadline: float, item: Any) -> None:
        """Queue `item`, which must not be queued already, for `deadline`."""
        self._sequence = sequence = self._sequence + 1
        item.timer = sequence
        heappush(self._heap, (deadline, sequence, item))

    def cancel(self, item: Any) -> None:
        """Take `item` out; does nothing when it is not queued."""
        if item.timer:
            item.timer = 0
            self._stale += 1
            if self._stale > 64 and self._stale * 2 > len(self._heap):
                self._heap = [entry for entry in self._heap if entry[2].timer == entry[1]]
                heapify(self._heap)
                self._stale = 0

    def next_deadline(self) -> Optional[float]:
        """When the first item is due; None when there is none."""
        heap = self._heap
        while heap:
            deadline, sequence, item = heap[0]
            if item.timer == sequence:
                return deadline
            heappop(heap)
            self._stale -= 1
        return None

    def expired(self, now: float) -> list:
        """Take out and return every item due at `now`, earliest first."""
        heap, due = self._heap, []
        while heap and heap[0][0] <= now:
            _, sequence, item = heappop(heap)
            if item.timer == sequence:
                item.timer = 0
                due.append(item)
            else:
                self._stale -= 1
        return due

# ======================================================================================================================
# 5. Addresses (pure)                                                                   where a process can be reached
# ======================================================================================================================
#
# Spec. An address is written ``host:port``, ``host``, ``[v6]:port``, ``[v6]`` or a bare IPv6 address (two colons or
# more, so it cannot carry a port). Nothing is resolved here: names and numbers are kept as they were given.


class Location:
    """Where a process can be reached: ``Location("node7", 9705)``. Equal and hashed by host and port.

    `host` is a name or a numeric address, kept as given but for the brackets of an IPv6 address; `tcp_port` is anything
    `int` takes, 0 to 65535. They are read back as ``.addr`` and ``.port``. Raises ValueError with a sentence.
    """

    __slots__ = ("addr", "port")

    def __init__(self, host: str, tcp_port: Any) -> None:
        if not isinstance(host, str) or not host.strip("[] "):
            raise ValueError("%r is not a host name or address" % (host,))
        try:
            port = int(tcp_port)
        except (TypeError, ValueError):
            port = -1
        if not 0 <= port <= 65535:
            raise ValueError("%r is not a port number (0 to 65535)" % (tcp_port,))
        self.addr = host[1:-1] if host[0] == "[" and host[-1] == "]" else host
        self.port = port

    @classmethod
    def parse(cls, text: str, default_port: Optional[int] = None) -> Location:
        """Location written as ``host:port``, ``[v6]:port``, or either without the port, which is then `default_port`.

        Raises ValueError when the port is missing and has no default, or when something is no host or no port.
        """
        text = text.strip()
        if text.startswith("["):
            host, bracket, rest = text.partition("]")
            if not bracket or rest and rest[0] != ":":
                raise ValueError("%r is not an address: write [address]:port" % text)
            host, colon, port = host[1:], rest[:1], rest[1:]
        elif text.count(":") > 1:
            host, colon, port = text, "", ""
        else:
            host, colon, port = text.partition(":")
        if not colon:
            if default_port is None:
                raise ValueError("%r names no port: write host:port" % text)
            return cls(host, default_port)
        if not (port.isascii() and port.isdigit()):
            raise ValueError("%r is not an address: what follows the colon must be a port number" % text)
        return cls(host, port)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Location):
            return NotImplemented
        return self.addr == other.addr and self.port == other.port

    def __hash__(self) -> int:
        return hash((self.addr, self.port))

    def __repr__(self) -> str:
        return ("[%s]:%d" if ":" in self.addr else "%s:%d") % (self.addr, self.port)


# ======================================================================================================================
# 6. Wire format (pure)                                                records carry the MAC, frames carry the messages
# ======================================================================================================================
#
# Spec. After the handshake a connection is a chain of records each way; the bodies of the records, put end to end, are
# a chain of frames. The two have nothing to do with each other's borders: one record holds many small frames, a long
# frame is cut over many records. Numbers are big-endian.
#
#   record   offset 0       u32  length of the body, at most RECORD_CAP
#                   4            body
#                   4 + n  16 B  MAC, absent when the connection has no key (open cluster, or below TLS)
#            MAC = HMAC-SHA-256(key of the direction, u64 number of the record | length | body), first 16 bytes. The
#            number is counted by both ends and never sent, so nothing can be replayed, reordered, left out or
#            reflected; whatever does not fit ends the connection (and not the session above it).
#   frame    offset 0       u32  length of the body, at most Settings.frame_bytes
#                   4       u8   code: 1-15 link control, not counted by the session; 16-63 this module; 64-255 others
#                   5            body
#
# Invariants: lengths are checked before anything is kept; what is kept grows with what came, never with what was
# promised; events do not depend on where the stream was cut.

RECORD_CAP = 1 << 20            # part of the wire format: every end takes this, Settings.record_bytes stays below it
MAC_BYTES = 16
_SMALL = 16 * 1024              # copying less than this is cheaper than a buffer of its own in sendmsg
_FEW = 16                       # likewise, number of buffers
_ASSEMBLED = 64 * 1024          # longer frames that came in pieces are handed out as the bytearray they grew in

_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_FRAME = struct.Struct(">IB")
_HELD = struct.Struct(">QQQ")


class Code:
    """Frame codes of the link itself; these frames are not counted, kept or repeated by the session."""

    SESSION = 1                 # '>QQQ' own session id, other's session id or 0, frames received: first on a connection
    ACK = 2                     # '>Q'   sequenced frames received so far in this session
    PING = 3                    # any bytes; answered with PONG and the same bytes
    PONG = 4
    BYE = 5                     # UTF-8 reason; the sender ends this session for good
    FIRST_SEQUENCED = 16        # from here on frames are counted and arrive exactly once, in order


def encode_frame(code: int, *parts: bytes) -> bytes:
    """One frame as one bytes object; for bodies that are cheap to copy."""
    if len(parts) == 1:
        return _FRAME.pack(len(parts[0]), code) + parts[0]
    return b"".join((_FRAME.pack(sum(map(len, parts)), code), *parts))


def frame_buffers(code: int, *parts: bytes) -> list:
    """The same as [header, *parts] without a copy; every part must be bytes-like with one byte per item."""
    return [_FRAME.pack(sum(map(len, parts)), code), *parts]


def session_frame(local_sid: int, remote_sid: int, received: int) -> bytes:
    """SESSION frame; see section 8 for what its fields do."""
    return encode_frame(Code.SESSION, _HELD.pack(local_sid, remote_sid, received))


def ack_frame(received: int) -> bytes:
    """ACK frame: `received` sequenced frames have been taken in this session."""
    return encode_frame(Code.ACK, _U64.pack(received))


def parse_session(body: bytes) -> tuple:
    """The three fields of a SESSION frame, in `session_frame`'s order; ProtocolError if malformed."""
    return _unpack(_HELD, body, "SESSION")


def parse_ack(body: bytes) -> int:
    """Frames received, of an ACK frame; ProtocolError if malformed."""
    return _unpack(_U64, body, "ACK")[0]


def _unpack(layout: struct.Struct, body: bytes, name: str) -> tuple:
    if len(body) != layout.size:
        raise ProtocolError("%s frame of %d bytes instead of %d" % (name, len(body), layout.size))
    return layout.unpack(body)


class _RecordMac:
    """MACs of one direction.

    This is HMAC written out (RFC 2104): two hashes that have taken the key are copied for each record, which for short
    records takes 0.7 us where hmac.digest takes 1.6.
    """

    __slots__ = ("_inner", "_number", "_outer")

    def __init__(self, key: bytes) -> None:
        padded = key.ljust(64, b"\0")           # keys are 32 bytes, a block of SHA-256 is 64
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded))
        self._number = 0

    def next(self, *parts: bytes) -> bytes:
        """MAC of the next record, whose length field and body are `parts`."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(_U64.pack(self._number))
        self._number += 1
        for part in parts:
            inner.update(part)
        outer.update(inner.digest())
        return outer.digest()[:MAC_BYTES]


class RecordSealer:
    """Makes records of one direction. `key` is the direction's key, or None for records without a MAC."""

    __slots__ = ("_mac",)

    def __init__(self, key: Optional[bytes]) -> None:
        self._mac = None if key is None else _RecordMac(key)

    def seal(self, parts: list) -> list:
        """One record whose body is `parts` end to end, as buffers to be sent in this order.

        Small records and records of many parts come as few joined buffers (usually one bytes object); a few large parts
        are passed on uncopied and must not change until sent. The body must not be longer than RECORD_CAP.
        """
        size = sum(map(len, parts)) if len(parts) <= _FEW else 0
        if size <= _SMALL:
            parts = [b"".join(parts)]
            size = len(parts[0])
        length = _U32.pack(size)
        mac = b"" if self._mac is None else self._mac.next(length, *parts)
        if size <= _SMALL:
            return [b"".join((length, parts[0], mac))]
        return [length, *parts, mac]


class RecordOpener:
    """Takes one direction's records apart; only what carries the right MAC ever comes out.

    `key` as for RecordSealer; `cap` is the longest body taken. After an error it takes nothing any more.
    """

    __slots__ = ("_cap", "_error", "_kept", "_mac", "_tail", "_wanted")

    def __init__(self, key: Optional[bytes], cap: int = RECORD_CAP) -> None:
        self._mac = None if key is None else _RecordMac(key)
        self._cap = cap
        self._tail = 0 if key is None else MAC_BYTES
        self._kept = bytearray()        # the record that has begun, at most 4 + cap + 16 bytes
        self._wanted = 4                # bytes it must have before there is something to decide
        self._error = ""

    def feed(self, data: bytes) -> list:
        """Take what came; return the bodies of the records now complete, to be fed to FrameDecoder in this order.

        Bodies are bytes, long ones may be memoryviews (of `data`, which must not change while they are used). Raises
        ProtocolError for a record that is too long or whose MAC is wrong; bodies before it in `data` are lost with it.
        """
        if self._error:
            raise ProtocolError(self._error)
        bodies: list = []
        view = memoryview(data)
        position, end = (self._complete(view, bodies) if self._kept else 0), len(data)
        while end - position >= 4:
            stop = position + self._length(view[position:position + 4])
            if stop > end:
                break
            bodies.append(self._body(view[position:stop]))
            position = stop
        if position < end:
            self._kept = bytearray(view[position:])
            self._wanted = 4 if end - position < 4 else self._length(view[position:position + 4])
        return bodies

    def _complete(self, view: memoryview, bodies: list) -> int:
        """Fill up the record that had begun from the start of `view`; return how much of it that took."""
        kept, position = self._kept, 0
        while position < len(view):
            piece = view[position:position + self._wanted - len(kept)]
            kept += piece
            position += len(piece)
            if len(kept) < self._wanted:
                break
            if self._wanted == 4:
                self._wanted = self._length(kept)
            if len(kept) == self._wanted:       # at once for an empty record without a MAC
                self._kept, self._wanted = bytearray(), 4
                bodies.append(self._body(memoryview(kept)))
                break
        return position

    def _length(self, head: bytes) -> int:
        """Bytes of the whole record that begins with `head`."""
        size = _U32.unpack_from(head)[0]
        if size > self._cap:
            raise self._fail("a record of %d bytes was announced, more than the %d allowed" % (size, self._cap))
        return 4 + size + self._tail

    def _body(self, record: memoryview) -> bytes:
        """Body of a whole record, once its MAC is proved."""
        stop = len(record) - self._tail
        if self._mac is not None and not hmac.compare_digest(self._mac.next(record[:stop]), record[stop:]):
            raise self._fail("a record was changed, repeated or forged on its way (wrong MAC)")
        return bytes(record[4:stop]) if stop <= _SMALL else record[4:stop]      # type: ignore[return-value]

    def _fail(self, sentence: str) -> ProtocolError:
        self._error = sentence
        self._kept = bytearray()
        return ProtocolError(sentence)


class FrameDecoder:
    """Takes the bodies of one connection's records, gives its frames. `cap` is the longest frame body in bytes."""

    __slots__ = ("_body", "_cap", "_code", "_head", "_missing")

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._head = b""                            # begun header, less than 5 bytes
        self._body: Optional[bytearray] = None      # begun body, of which ...
        self._missing = 0                           # ... so much has not come yet
        self._code = 0

    @property
    def between_frames(self) -> bool:
        """Whether the stream may end here: nothing has begun and not ended."""
        return self._body is None and not self._head

    def feed(self, data: bytes) -> list:
        """Take what came; return the frames now complete as (code, body) pairs.

        A body is bytes, or a bytearray of its own when it is longer than 64 KiB and came in pieces. Raises
        ProtocolError for a frame longer than the cap.
        """
        frames: list = []
        position = 0
        if self._body is not None:
            position = self._continue(self._body, data, frames)
        if position or type(data) is not bytes:
            if position == len(data):
                return frames
            data = bytes(memoryview(data)[position:])
        if self._head:
            data, self._head = self._head + data, b""
        self._parse(data, frames)
        return frames

    def _continue(self, body: bytearray, data: bytes, frames: list) -> int:
        """Add the start of `data` to the frame that has begun; return how much of it that took."""
        missing = self._missing
        if len(data) < missing:
            body += data
            self._missing = missing - len(data)
            return len(data)
        body += memoryview(data)[:missing]
        self._body = None
        frames.append((self._code, body if len(body) > _ASSEMBLED else bytes(body)))
        return missing

    def _parse(self, data: bytes, frames: list) -> None:
        """The hot loop: whole frames of `data`, which begins with a header."""
        unpack, append, cap = _FRAME.unpack_from, frames.append, self._cap
        position, end = 0, len(data)
        last = end - _FRAME.size
        while position <= last:
            size, code = unpack(data, position)
            if size > cap:
                raise ProtocolError("a message of %d bytes was announced, more than the %d allowed" % (size, cap))
            start = position + 5
            position = start + size
            if position > end:
                self._body, self._missing, self._code = bytearray(data[start:]), position - end, code
                return
            append((code, data[start:position]))
        self._head = data[position:]


# ======================================================================================================================
# 7. Handshake (pure)                                                   both ends prove the secret, then share two keys
# ======================================================================================================================
#
# Spec. B accepted the connection and speaks first, A dialled. K is the cluster's 32-byte key (empty when the cluster
# runs open: then the MACs prove nothing). M is all that was said before, both ways, plus the message itself.
#
#   B  HELLO    4s 'PYCL' | u8 lowest | u8 highest version | u8 flags (bit 0: authentication) | 32s nonce
#   A  AUTH     'A' | u8 version | u8 flags | 32s nonce | 16s process id | u16 n | n info | 32s HMAC(K, 'A' M)
#   B  ACCEPT   'B' | 16s process id | u16 n | n info | 32s HMAC(K, 'B' M)
#   or REFUSE   'R' | u8 code      instead of any message but the first; both ends then raise AuthenticationError
#
#   state       waits for         next, having checked
#   A hello     HELLO             answer: magic, common version, both authenticate or neither       (else REFUSE)
#   B proof     AUTH, REFUSE      done:   the same, then the MAC, then info, cluster, not ourselves (else REFUSE)
#   A answer    ACCEPT, REFUSE    done:   the MAC, then info, cluster, not ourselves
#
# Who only connects learns a nonce and has nothing to guess against: B proves itself last. Letters in the MACs stop
# reflection, both nonces stop replay; versions, flags, ids and info (which names the cluster) are all under the MACs.
# Keys: HKDF (extract with all that was said as salt, expand once per direction). JSON is read only after its MAC holds.

_MAGIC = b"PYCL"
_HELLO = struct.Struct(">4sBBB32s")
_AUTH = struct.Struct(">cBB32s16sH")
_ACCEPT = struct.Struct(">c16sH")
_AUTHENTICATED = 1              # flag bit
_INFO_BYTES = 2048              # longest info
_PROOF_BYTES = 32


class Refusal:
    """Codes of REFUSE; `Handshake.refusal` has the one a handshake ended with."""

    SECRET = 1
    CLUSTER = 2
    VERSION = 3
    ITSELF = 4
    BUSY = 5
    ONE_SIDED = 6


_REFUSALS = {
    Refusal.SECRET: "the other end has another secret: copy ~/.pycoslite/secret from one machine to the other, "
                    "or set PYCOSLITE_SECRET_FILE",
    Refusal.CLUSTER: "the other end belongs to another cluster than this one (%(cluster)r): "
                     "start both with the same cluster name",
    Refusal.VERSION: "the other end speaks another version of the protocol (this one %(lowest)d to %(highest)d): "
                     "install the same release of pycoslite on both machines",
    Refusal.ITSELF: "the address leads back to this process itself: name another process's address and port",
    Refusal.BUSY: "too many connections wait to be authenticated at the accepting end: try again in a moment",
    Refusal.ONE_SIDED: "one end demands authentication and the other runs without (this one %(mode)s): "
                       "start both with the same secret, or both without authentication (--no-auth)",
}
_UNKNOWN_REFUSAL = ("the other end refused the connection with a reason (%(code)d) that this release does not know: "
                    "install the same release of pycoslite on both machines")


@dataclasses.dataclass
class HandshakeResult:
    """What a finished handshake knows; the keys are None in an open cluster."""

    peer_id: bytes                      # 16 bytes: the other process
    peer_info: dict                     # what it says about itself
    send_key: Optional[bytes] = dataclasses.field(repr=False)       # for RecordSealer
    receive_key: Optional[bytes] = dataclasses.field(repr=False)    # for RecordOpener
    version: int                        # of the protocol, from here on
    leftover: bytes = b""               # what came behind the handshake: the first bytes for RecordOpener


class Handshake:
    """One end of a connection's first exchange; bytes in, bytes out.

    `role` is 'dial' or 'accept'; `key` 32 bytes or None for an open cluster; `process_id` 16 bytes; `info` what the
    other end is told (JSON, at most 2 KiB with the cluster's name, which is added); `nonce` 32 random bytes, never used
    twice. Send what `data_to_send` gives at once and after each `receive`, also when that raised: it tells the other
    end why, close after it. `result` is None until this end is satisfied; `refusal` is a code of `Refusal` when the
    handshake ended with one.
    """

    VERSIONS = (1, 1)                   # lowest and highest version of the protocol spoken here

    def __init__(self, role: str, key: Optional[bytes], process_id: bytes, info: dict, nonce: bytes,
                 cluster: str) -> None:
        self.result: Optional[HandshakeResult] = None
        self.refusal: Optional[int] = None
        self._key = key
        self._flags = 0 if key is None else _AUTHENTICATED
        self._process_id = process_id
        self._info = json.dumps(dict(info, cluster=cluster), separators=(",", ":")).encode()
        self._nonce = nonce
        self._cluster = cluster
        self._version = 0
        self._inbox = bytearray()
        self._outbox = b""
        self._said = b""                # everything said so far, both ways
        if len(nonce) != 32 or len(process_id) != 16 or len(self._info) > _INFO_BYTES:
            raise MisuseError("a handshake takes 32 bytes of nonce, 16 of process id, up to %d of info (this one: "
                              "%d, %d, %d)" % (_INFO_BYTES, len(nonce), len(process_id), len(self._info)))
        self._labels = (b"dial to accept", b"accept to dial")       # what we send, what we receive
        self._step: Optional[Callable[[], int]] = self._on_hello    # takes one message; returns its length or 0
        if role == "accept":
            self._labels = self._labels[::-1]
            self._step = self._on_proof
            self._say(_HELLO.pack(_MAGIC, self.VERSIONS[0], self.VERSIONS[1], self._flags, nonce))

    def bind(self, channel: bytes) -> None:
        """Tie the handshake to the channel below it: both ends must give the same bytes (the TLS certificate's hash).

        To be called before anything is received.
        """
        self._said = channel + self._said

    def data_to_send(self) -> bytes:
        """What is to be sent now; each byte is given out once."""
        data, self._outbox = self._outbox, b""
        return data

    def receive(self, data: bytes) -> None:
        """Take what came, cut anyhow. Raises AuthenticationError or ProtocolError; the handshake is over then."""
        if self._step is None:
            raise MisuseError("this handshake is over: what comes now belongs to RecordOpener")
        self._inbox += data
        try:
            while self._step is not None:
                used = self._step()
                if not used:
                    break
                del self._inbox[:used]
            if self.result is not None:
                self.result.leftover, self._inbox = bytes(self._inbox), bytearray()
            elif len(self._inbox) > settings.handshake_bytes:
                raise ProtocolError("the other end says more than a handshake has")
        except PycosError:
            self._step, self._inbox = None, bytearray()
            raise

    def refuse(self, code: int) -> AuthenticationError:
        """End the handshake with a code of `Refusal`: REFUSE is queued; returns the error for this end."""
        self._outbox += b"R" + bytes((code,))
        return self._refused(code)

    def _refused(self, code: int) -> AuthenticationError:
        self._step, self.refusal = None, code
        return AuthenticationError(_REFUSALS.get(code, _UNKNOWN_REFUSAL) % dict(
            code=code, cluster=self._cluster, lowest=self.VERSIONS[0], highest=self.VERSIONS[1],
            mode="runs without" if self._key is None else "demands it"))

    def _say(self, message: bytes) -> None:
        self._outbox += message
        self._said += message

    def _prove(self, letter: bytes, message: bytes) -> bytes:
        """Proof that `message`, by the end called `letter`, was said after all that was said before."""
        return hmac.digest(self._key or b"", letter + self._said + message, "sha256")

    def _on_hello(self) -> int:
        """Dialling end: HELLO in, AUTH out."""
        if self._inbox[:4] != _MAGIC[:len(self._inbox)]:
            raise ProtocolError("what answers there is not pycoslite: it began with %r" % bytes(self._inbox[:16]))
        if len(self._inbox) < _HELLO.size:
            return 0
        _, lowest, highest, flags, _ = _HELLO.unpack_from(self._inbox)
        version = min(highest, self.VERSIONS[1])
        self._check_terms(version, version >= lowest, flags)
        self._said += bytes(self._inbox[:_HELLO.size])
        message = _AUTH.pack(b"A", version, self._flags, self._nonce, self._process_id, len(self._info)) + self._info
        self._say(message + self._prove(b"A", message))
        self._step = self._on_answer
        return _HELLO.size

    def _on_proof(self) -> int:
        """Accepting end: AUTH in, ACCEPT out."""
        message = self._whole_message(b"A", _AUTH)
        if not message:
            return 0
        _, version, flags, _, peer_id, size = _AUTH.unpack_from(message)
        self._check_terms(version, True, flags)
        self._check_proof(b"A", message)
        peer_info = self._admit(peer_id, message[_AUTH.size:_AUTH.size + size])
        answer = _ACCEPT.pack(b"B", self._process_id, len(self._info)) + self._info
        self._say(answer + self._prove(b"B", answer))
        self._finish(peer_id, peer_info)
        return len(message)

    def _on_answer(self) -> int:
        """Dialling end: ACCEPT in, and done."""
        message = self._whole_message(b"B", _ACCEPT)
        if not message:
            return 0
        _, peer_id, size = _ACCEPT.unpack_from(message)
        self._check_proof(b"B", message)
        self._finish(peer_id, self._admit(peer_id, message[_ACCEPT.size:_ACCEPT.size + size]))
        return len(message)

    def _whole_message(self, letter: bytes, layout: struct.Struct) -> bytes:
        """The message of that letter once it is here whole, else nothing; `layout` ends with info's length."""
        inbox = self._inbox
        if inbox[:1] == b"R" and len(inbox) >= 2:
            raise self._refused(inbox[1])
        if inbox[:1] not in (b"", b"R", letter):
            raise ProtocolError("what comes from there is not pycoslite: it began with %r" % bytes(inbox[:16]))
        if inbox[:1] != letter or len(inbox) < layout.size:
            return b""
        size = layout.unpack_from(inbox)[-1]
        if size > _INFO_BYTES:
            raise ProtocolError("%d bytes of info were announced, more than the %d allowed" % (size, _INFO_BYTES))
        whole = layout.size + size + _PROOF_BYTES
        return bytes(inbox[:whole]) if len(inbox) >= whole else b""

    def _check_terms(self, version: int, common: bool, flags: int) -> None:
        """Refuse unless both speak `version` and both authenticate, or neither does."""
        if not common or not self.VERSIONS[0] <= version <= self.VERSIONS[1]:
            raise self.refuse(Refusal.VERSION)
        if (flags ^ self._flags) & _AUTHENTICATED:
            raise self.refuse(Refusal.ONE_SIDED)
        self._version = version

    def _check_proof(self, letter: bytes, message: bytes) -> None:
        """Refuse unless `message` ends with the proof of the other end, called `letter`; then it has been said."""
        claim, proof = message[:-_PROOF_BYTES], message[-_PROOF_BYTES:]
        if not hmac.compare_digest(self._prove(letter, claim), proof):
            raise self.refuse(Refusal.SECRET)
        self._said += message

    def _admit(self, peer_id: bytes, text: bytes) -> dict:
        """Info of the other end, whose proof held; refuse another cluster and ourselves."""
        try:
            info = json.loads(text)
        except (ValueError, RecursionError):
            info = None
        if not isinstance(info, dict):
            raise ProtocolError("what the other end says about itself is not a JSON object")
        if info.get("cluster") != self._cluster:
            raise self.refuse(Refusal.CLUSTER)
        if peer_id == self._process_id:
            raise self.refuse(Refusal.ITSELF)
        return info

    def _finish(self, peer_id: bytes, peer_info: dict) -> None:
        send_key = receive_key = None
        if self._key is not None:
            extracted = hmac.digest(self._said, self._key, "sha256")
            send_key, receive_key = (hmac.digest(extracted, label + b"\x01", "sha256") for label in self._labels)
        self.result = HandshakeResult(peer_id, peer_info, send_key, receive_key, self._version)
        self._step = None


# ======================================================================================================================
# 8. Session (pure)                                                    exactly once and in order, whatever connections do
# ======================================================================================================================
#
# Spec. One per pair of processes; it outlives connections and ends with either process, or when it is given up. Each
# end numbers its frames 1, 2, 3 ... without sending the numbers; the other counts what it takes. A frame is in turn:
#
#   queued -> batched (a batch becomes one record) -> on its way, kept -> confirmed by a count, forgotten
#                          ^______ a new connection puts all kept batches back ______|
#
# On each new connection both ends first say SESSION (own id, other's id or 0, frames taken), and nothing sequenced
# before the other's SESSION is in. L, R: our id and what we know of the other's (0: nothing); l, r, n: what came.
#
#   R == 0 or l      r == 0 or L     what it means                               result
#   R == 0, yes      r == 0, yes     first contact                               'new'       R = l
#   R == 0, yes      r == L, yes     our SESSION arrived once, theirs never did  'new'       R = l
#   R == l, yes      yes             the connection was re-made                  'resumed'   n confirmed, rest again
#   R == other       any             the other end gave our session up           'mismatch'  restart(): ours is lost
#   R == 0           r == other      our own restart; they do not know yet       'mismatch'  restart(): nothing to do
#   R == l           r == other      cannot be: they know both ids               'mismatch'  restart(): ours is lost
#
# After a mismatch the driver calls restart() and re-makes the connection; the second exchange then agrees.
# Invariants: confirmed <= sent <= numbered; kept batches + ready batches + the open batch = all that is unconfirmed, in
# order; the window counts exactly these. One batch costs one entry, so a confirmation costs per batch, not per frame.
# A batch longer than its record (a long frame) is handed out over several, nothing in between; a new connection starts
# at its first byte again, or at the first byte of the first frame not confirmed.

_RIDERS = 1024                  # bytes of a record kept free for link frames that ride along with a full batch

Unconfirmed = namedtuple("Unconfirmed", "tag frame sent")
Unconfirmed.__doc__ = "A frame given up: its tag, its bytes or buffers, and whether it may have arrived (`sent`)."


def _frame_bytes(frame: Any) -> int:
    return len(frame) if type(frame) is bytes else sum(map(len, frame))


class Session:
    """What keeps frames in order and exactly once between two processes while both live. Not thread-safe.

    `local_sid` is a random number, 1 to 2**64 - 1; `limits` a `Settings` (window_*, ack_*, record_bytes are used).
    """

    __slots__ = ("_ack_at", "_ack_bytes", "_ack_frames", "_base", "_batch_bytes", "_confirmed", "_control", "_frames",
                 "_held", "_kept", "_limits", "_nbytes", "_open", "_ready", "_received", "_rest", "_room_bytes",
                 "_room_frames", "_sent", "_sent_most", "_tags", "local_sid", "remote_sid")

    def __init__(self, local_sid: int, limits: Optional[Settings] = None) -> None:
        self._limits = limits or settings
        self._batch_bytes = min(self._limits.record_bytes, RECORD_CAP) - _RIDERS
        self._begin(local_sid)

    def _begin(self, local_sid: int) -> None:
        if not 0 < local_sid < 1 << 64:
            raise ValueError("a session id is a number from 1 to 2**64 - 1, not %r" % (local_sid,))
        self.local_sid = local_sid
        self.remote_sid = 0
        self._frames: list = []                 # the open batch: frames, ...
        self._tags: list = []                   # ... their tags, ...
        self._nbytes = 0                        # ... their bytes
        self._ready: deque = deque()            # closed batches (frames, tags, nbytes) to be sent
        self._kept: deque = deque()             # batches on their way
        self._rest: deque = deque()             # buffers of the last kept batch not handed out yet
        self._control: list = []                # link frames to go before anything else
        self._open = False                      # the other end's SESSION of this connection is in
        self._base = 0                          # frames before the first kept (or ready) batch
        self._confirmed = 0                     # frames the other end has, >= _base (it may confirm half a batch)
        self._sent = 0                          # frames handed out on this connection or confirmed
        self._sent_most = 0                     # the same over all connections of the session
        self._received = 0                      # frames of the other end taken
        self._ack_bytes = self._ack_frames = 0  # taken and not confirmed yet
        self._ack_at: Optional[float] = None    # when that must be confirmed; 0.0: at once
        self._room_bytes = self._limits.window_bytes
        self._room_frames = self._limits.window_messages
        self._held = False

    # ---- sending

    @property
    def below_window(self) -> bool:
        """Whether senders may go on: False once the window is full, True again when it is half empty."""
        return not self._held

    @property
    def unconfirmed_bytes(self) -> int:
        """Bytes queued or on their way."""
        return self._limits.window_bytes - self._room_bytes

    @property
    def unconfirmed_frames(self) -> int:
        """Frames queued or on their way."""
        return self._limits.window_messages - self._room_frames

    def push(self, frame: Any, nbytes: int, tag: Any = None) -> bool:
        """Queue an encoded sequenced frame of `nbytes` bytes; False when the window is full: hold the sender back.

        `frame` is bytes, or a list of buffers for a frame too long to be copied (it gets records of its own, and must
        not change until confirmed). The frame is taken in any case. `tag` comes back from `lost` with the frame.
        """
        if type(frame) is not bytes:
            self._close_batch()
            self._ready.append(([frame], [tag], nbytes))
        else:
            if self._nbytes + nbytes > self._batch_bytes:
                self._close_batch()
            self._frames.append(frame)
            self._tags.append(tag)
            self._nbytes += nbytes
        self._room_bytes -= nbytes
        self._room_frames -= 1
        if self._room_bytes <= 0 or self._room_frames <= 0:
            self._held = True
        return not self._held

    def control(self, frame: bytes) -> None:
        """Queue a link frame (PING, PONG, BYE) of this connection: it goes out next and is never repeated."""
        self._control.append(frame)

    def wants_write(self, now: float) -> bool:
        """Whether `next_batch` would give anything."""
        return bool(self._rest or self._control or self._open and (
            self._ready or self._frames or self._ack_at is not None and now >= self._ack_at))

    def next_batch(self, limit_bytes: int, now: float) -> list:
        """Buffers to seal in one record, not more than `limit_bytes` together; [] when there is nothing to send.

        Link frames come first. What a long batch leaves over comes out of the next calls, before anything else.
        """
        if self._rest:
            return self._take(self._rest, [], limit_bytes)
        parts, self._control = self._control, []
        if not self._open:
            return parts
        if self._ack_at is not None and now >= self._ack_at - (
                self._limits.ack_delay_s / 2 if self._frames or self._ready else 0):
            parts.append(self._take_ack())      # rides along from half of the delay on, so that few go alone
        if self._ready:
            batch = self._ready.popleft()
        elif self._frames:
            batch = self._frames, self._tags, self._nbytes
            self._frames, self._tags, self._nbytes = [], [], 0
        else:
            return parts
        return self._hand_out(batch, parts, limit_bytes)

    def _close_batch(self) -> None:
        if self._frames:
            self._ready.append((self._frames, self._tags, self._nbytes))
            self._frames, self._tags, self._nbytes = [], [], 0

    def _hand_out(self, batch: tuple, parts: list, limit_bytes: int) -> list:
        """Keep `batch` until it is confirmed; return its buffers behind `parts`, up to the limit."""
        frames, _, nbytes = batch
        self._kept.append(batch)
        self._sent += len(frames)
        if self._sent > self._sent_most:
            self._sent_most = self._sent
        buffers = frames if type(frames[0]) is bytes else frames[0]
        used = sum(map(len, parts))
        if used + nbytes <= limit_bytes:
            return [*parts, *buffers]
        self._rest.extend(buffers)
        return self._take(self._rest, parts, limit_bytes - used)

    @staticmethod
    def _take(rest: deque, parts: list, room: int) -> list:
        """Move the first `room` bytes of `rest` behind `parts`."""
        while rest and room > 0:
            buffer = rest.popleft()
            if len(buffer) > room:
                view = memoryview(buffer)
                rest.appendleft(view[room:])
                buffer = view[:room]
            parts.append(buffer)
            room -= len(buffer)
        return parts

    # ---- confirmations

    @property
    def received(self) -> int:
        """Sequenced frames of the other end taken so far."""
        return self._received

    @property
    def ack_deadline(self) -> Optional[float]:
        """When `next_batch` must be called for a confirmation to go out: a time, 0.0 for at once, None for never."""
        return self._ack_at

    def note_received(self, count: int, nbytes: int, now: float) -> None:
        """`count` sequenced frames of `nbytes` bytes in all have been delivered, in order; they are confirmed later."""
        if not self._open:
            raise ProtocolError("messages came before the session was announced")
        self._received += count
        self._ack_frames += count
        self._ack_bytes += nbytes
        if self._ack_frames >= self._limits.ack_messages or self._ack_bytes >= self._limits.ack_bytes:
            self._ack_at = 0.0
        elif self._ack_at is None:
            self._ack_at = now + self._limits.ack_delay_s

    def on_ack(self, count: int) -> bool:
        """The other end has our first `count` frames. True when held senders may go on; ProtocolError if absurd."""
        if count > self._sent:
            raise ProtocolError("%d messages were confirmed, only %d were sent" % (count, self._sent))
        kept, base = self._kept, self._base
        while kept and base + len(kept[0][0]) <= count and not (self._rest and len(kept) == 1):
            frames, _, nbytes = kept.popleft()
            base += len(frames)
            self._room_bytes += nbytes
            self._room_frames += len(frames)
        self._base = base
        if count > self._confirmed:
            self._confirmed = count
        return self._held and self._release()

    def _release(self) -> bool:
        limits = self._limits
        if self._room_bytes * 2 >= limits.window_bytes and self._room_frames * 2 >= limits.window_messages:
            self._held = False
        return not self._held

    def _take_ack(self) -> bytes:
        self._ack_bytes = self._ack_frames = 0
        self._ack_at = None
        return ack_frame(self._received)

    # ---- connections

    def connected(self) -> None:
        """A new connection stands; SESSION is queued on it. Of earlier ones nothing may be handed in any more."""
        self.disconnected()
        self._control = [session_frame(self.local_sid, self.remote_sid, self._received)]

    def disconnected(self) -> None:
        """The connection is gone: all that is unconfirmed is queued again, link frames are forgotten."""
        self._open = False
        self._control = []
        self._rest.clear()
        self._ready.extendleft(reversed(self._kept))
        self._kept.clear()
        self._sent = self._base
        self._ack_bytes = self._ack_frames = 0      # SESSION says it anew
        self._ack_at = None

    def on_session(self, local_sid: int, remote_sid: int, received: int) -> str:
        """SESSION came, with these fields as its sender wrote them: 'new', 'resumed' or 'mismatch', see the table.

        ProtocolError when it contradicts what went before, or when it is the second on this connection.
        """
        if self._open or not local_sid:
            raise ProtocolError("a session was announced twice, or without a number")
        if self.remote_sid not in (0, local_sid) or remote_sid not in (0, self.local_sid):
            return "mismatch"
        if not self._confirmed <= received <= self._sent_most or not remote_sid and self._received:
            raise ProtocolError("%d messages are said to have arrived; between %d and %d can have" % (
                received, self._confirmed, self._sent_most))
        result = "resumed" if self.remote_sid else "new"
        self.remote_sid = local_sid
        self._open = True
        self._forget(received)
        return result

    def _forget(self, received: int) -> None:
        """Drop the first frames of what is to be sent again, up to number `received`."""
        ready = self._ready
        while self._base < received:
            frames, tags, nbytes = ready.popleft()
            known = min(len(frames), received - self._base)
            known_bytes = sum(map(_frame_bytes, frames[:known]))
            if known < len(frames):
                ready.appendleft((frames[known:], tags[known:], nbytes - known_bytes))
            self._base += known
            self._room_bytes += known_bytes
            self._room_frames += known
        self._confirmed = self._sent = received
        if self._held:
            self._release()

    def restart(self, local_sid: int) -> list:
        """After a mismatch: begin a fresh session with that id, unless ours is the fresh one. Returns what is lost."""
        return self.lost(local_sid) if self.remote_sid else []

    def lost(self, local_sid: int) -> list:
        """Give the session up and begin a fresh one with that id; returns its `Unconfirmed` frames in order."""
        self.disconnected()
        self._close_batch()
        found, number = [], self._base
        for frames, tags, _ in self._ready:
            for frame, tag in zip(frames, tags):
                number += 1
                if number > self._confirmed:
                    found.append(Unconfirmed(tag, frame, number <= self._sent_most))
        self._begin(local_sid)
        return found


# ======================================================================================================================
# 9. Poller and wake-up                                           the only place that knows which poller a platform has
# ======================================================================================================================

READ, WRITE = 1, 4                      # event bits; epoll's own, so that the fast poller need not translate
_BOTH = READ | WRITE


class EpollPoller:
    """Readiness of descriptors through epoll (Linux). Handlers are called by whoever polls, as ``handler(events)``."""

    nests = True                        # its own descriptor can be watched by another poller

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: Dict[int, Callable[[int], None]] = {}

    def register(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Watch `fd`, which must not be watched yet."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def modify(self, fd: int, events: int) -> None:
        """Watch a registered `fd` for other events; 0 keeps it registered and silent but for errors."""
        self._epoll.modify(fd, events)

    def unregister(self, fd: int) -> None:
        """Stop watching `fd`; harmless when it is not watched."""
        if self._handlers.pop(fd, None) is not None:
            try:
                self._epoll.unregister(fd)
            except OSError:             # closed before it was unregistered: the system has forgotten it already
                pass

    def poll(self, timeout: Optional[float]) -> list:
        """Wait at most `timeout` seconds (None: for ever); return (handler, events) pairs. Errors count as both events."""
        handlers, found = self._handlers, []
        for fd, events in self._epoll.poll(timeout, 256):
            handler = handlers.get(fd)
            if handler is not None:
                found.append((handler, events if events & ~_BOTH == 0 else _BOTH))
        return found

    def fileno(self) -> int:
        """Descriptor that is readable when any watched descriptor is ready."""
        return self._epoll.fileno()

    def close(self) -> None:
        """Forget everything and give the descriptor back."""
        self._handlers.clear()
        self._epoll.close()


class SelectorPoller:
    """The same over `selectors`, for platforms without epoll (kqueue on macOS, select on Windows)."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.nests = hasattr(self._selector, "fileno")

    def _mask(self, events: int) -> int:
        return (selectors.EVENT_READ if events & READ else 0) | (selectors.EVENT_WRITE if events & WRITE else 0)

    def register(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Watch `fd`, which must not be watched yet."""
        self._selector.register(fd, self._mask(events), handler)

    def modify(self, fd: int, events: int) -> None:
        """Watch a registered `fd` for other events."""
        self._selector.modify(fd, self._mask(events), self._selector.get_key(fd).data)

    def unregister(self, fd: int) -> None:
        """Stop watching `fd`; harmless when it is not watched."""
        try:
            self._selector.unregister(fd)
        except (KeyError, ValueError):
            pass

    def poll(self, timeout: Optional[float]) -> list:
        """Wait at most `timeout` seconds (None: for ever); return (handler, events) pairs."""
        return [(key.data, (READ if mask & selectors.EVENT_READ else 0) | (WRITE if mask & selectors.EVENT_WRITE else 0))
                for key, mask in self._selector.select(timeout)]

    def fileno(self) -> int:
        """Descriptor that is readable when any watched descriptor is ready (only where `nests` is true)."""
        return self._selector.fileno()      # type: ignore[attr-defined]

    def close(self) -> None:
        """Forget everything and give the descriptor back."""
        self._selector.close()


Poller = EpollPoller if hasattr(select, "epoll") else SelectorPoller


class Waker:
    """Ends another thread's wait in a poller: one end of a socket pair is watched there, the other written to."""

    def __init__(self, poller: Any) -> None:
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)
        self._awake = False             # a byte is under way: further calls would add nothing
        poller.register(self._near.fileno(), READ, self._drain)

    def wake(self) -> None:
        """Let the poller return. Any thread."""
        if not self._awake:
            self._awake = True
            try:
                self._far.send(b"\0")
            except OSError:             # closing, or the pipe is full of wake-ups already
                pass

    def _drain(self, _events: int) -> None:
        self._awake = False             # before the read: a call from now on may write again, what it posted is seen
        try:
            self._near.recv(4096)
        except OSError:
            pass

    def close(self) -> None:
        """Close both ends; the poller is closed by its owner."""
        self._near.close()
        self._far.close()


# ======================================================================================================================
# 10. Requests and tasks                                                              what a task may yield, and the task
# ======================================================================================================================
#
# A blocking call returns a request object; the task yields it (``yield request``, ``yield from request`` and
# ``await request`` all do) and the kernel calls its `begin(kernel, task)`:
#
#   True    there is a result, in task.carried; the task goes on at once, without a trip through the ready queue
#   False   the task is parked; task.wait is the request until something unparks it
#
# A parked task is unparked once, by whichever comes first: its event (`Task.unpark`), its timer (`expired` gives the
# value), or an exception thrown into it (`abandon` lets the request forget the task). Generators and coroutines are
# requests too: "run this, then go on with its result".

REQUESTS: Dict[type, Callable] = {}     # class of a yielded object -> begin function; anything else is a plain value


class Request:
    """Something a task waits for. Subclasses define `begin`; see the rules at the head of this section."""

    __slots__ = ()
    receives = False                    # a message sent to the task ends this wait

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        REQUESTS[cls] = cls.begin

    def begin(self, kernel: "Kernel", task: "Task") -> bool:
        """Start to wait, or answer at once."""
        raise NotImplementedError

    def expired(self, task: "Task") -> Any:
        """The task's timer ran out: what the yield gives."""
        return None

    def abandon(self, task: "Task") -> None:
        """The task no longer waits: an exception is thrown into it."""

    def __iter__(self) -> Generator:
        return (yield self)

    __await__ = __iter__


class _ReceiveForEver(Request):
    __slots__ = ()
    receives = True

    def begin(self, kernel: "Kernel", task: "Task") -> bool:
        if task.mailbox:
            task.carried = task.mailbox.popleft()
            return True
        task.wait = self
        return False


RECEIVE = _ReceiveForEver()             # one object for all tasks: a receive without timeout allocates nothing


class _Timed(Request):
    """A wait with an optional timer and the value that its expiry gives."""

    __slots__ = ("timeout", "alarm_value")

    def __init__(self, timeout: Optional[float], alarm_value: Any = None) -> None:
        self.timeout = timeout
        self.alarm_value = alarm_value

    def begin(self, kernel: "Kernel", task: "Task") -> bool:
        timeout = self.timeout
        if timeout is not None:
            if timeout <= 0:
                task.carried = self.alarm_value
                return True
            kernel.timers.push(kernel.clock() + timeout, task)
        task.wait = self
        return False

    def expired(self, task: "Task") -> Any:
        return self.alarm_value


class Suspend(_Timed):
    """Wait for `Task.resume`, at most `timeout` seconds."""

    __slots__ = ()


class _Receive(_Timed):
    __slots__ = ()
    receives = True

    def begin(self, kernel: "Kernel", task: "Task") -> bool:
        if task.mailbox:
            task.carried = task.mailbox.popleft()
            return True
        return super().begin(kernel, task)


class Join(_Timed):
    """Wait until another task of the same process has ended; gives its exit value, or None when time is up."""

    __slots__ = ("target",)

    def __init__(self, target: "Task", timeout: Optional[float] = None) -> None:
        super().__init__(timeout)
        self.target = target

    def begin(self, kernel: "Kernel", task: "Task") -> bool:
        target = self.target
        if target.generator is None:
            task.carried = target.outcome
            return True
        if super().begin(kernel, task):
            return True
        if target.kernel is kernel:
            target.watch(task.joined)
        else:                           # ends in another thread: its watchers run there
            target.kernel.post(target.watch, task.joined)
        return False

    def expired(self, task: "Task") -> Any:
        self.abandon(task)
        return None

    def abandon(self, task: "Task") -> None:
        self.target.unwatch(task.joined)


def _call(generator: Any, _kernel: "Kernel", task: "Task") -> bool:
    """A task yielded a generator or coroutine: its caller waits on the stack, it runs in the same task at once."""
    if task.callers is None:
        task.callers = []
    task.callers.append(task.generator)
    task.generator = generator
    task.step = generator.send
    task.carried = None
    return True


_COROUTINE = types.CoroutineType
REQUESTS[types.GeneratorType] = _call
REQUESTS[_COROUTINE] = _call


class MonitorStatus(Exception):
    """How a task ended: `info` (the task, or a text where there is none), `type` (StopIteration, or the exception's
    class), `value` (the exit value, or the traceback's text). Monitors get it as a message; a failed task has it as
    exit value. Also an exception with ``args == (info, (type, value))``, as older programs expect (MonitorException).
    """

    def __init__(self, info: Any, type: Any, value: Any = None) -> None:
        super().__init__(info, (type, value))
        self.info = info
        self.type = type
        self.value = value


MonitorException = MonitorStatus


class _Terminated(BaseException):
    """Ends a task inside the kernel after `Task.terminate`; user code sees GeneratorExit instead."""


_INJECTED = ("task", "coro")            # parameters that get the Task itself, by their names in both generations
_GENERATOR_FLAGS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE
_SIGNATURES: Dict[Any, Tuple[Optional[str], int]] = {}     # code object -> (injected parameter, its position)


def _signature(target: Any) -> Tuple[Optional[str], int]:
    """Which parameter of a generator function wants the Task, cached by its code object; TypeError when it is none."""
    function = target
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if code is None or not code.co_flags & _GENERATOR_FLAGS:
        raise TypeError("a task needs a generator function or an async function, %r is neither: use 'yield' or 'await' "
                        "in it, or call it directly" % (target,))
    found: Tuple[Optional[str], int] = (None, 0)
    for position, parameter in enumerate(inspect.signature(target).parameters.values()):
        if parameter.name in _INJECTED and parameter.default is None and parameter.kind is not parameter.POSITIONAL_ONLY:
            found = (parameter.name, position if parameter.kind is parameter.POSITIONAL_OR_KEYWORD else sys.maxsize)
            break
    if hasattr(target, "__code__"):     # a partial has none, and its signature depends on what it binds
        _SIGNATURES[code] = found
    return found


_task_ids = itertools.count(1)


class Task:
    """A generator function (or async function) run by the kernel beside all other tasks of its thread.

        Task(function, *args, **kwargs)      or      Task(target=function, args=(), kwargs={})

    It is scheduled at once; the first task of a program starts the kernel. If the function has a parameter ``task``
    (or ``coro``) that defaults to None and is not given, it gets the Task. Any thread may create tasks and call
    `send`, `resume`, `throw`, `terminate`, `value` and `is_alive`; what is described as "use with yield" works only in
    a task, as ``yield x``, ``yield from x`` or, in an async function, ``await x``. Raises TypeError when the target is
    no generator function or the arguments do not fit it.
    """

    # For the kernel and the requests only: `generator` now running (None: ended) and its `callers`, `step` (what runs
    # it on: its send, or a throw), `carried` (what the next step hands in: the last yield's result), `wait` (the request
    # it is parked in), `mailbox` and `watchers` (made when needed), `outcome` (exit value), `timer` (see TimerQueue).
    __slots__ = ("kernel", "id", "generator", "callers", "step", "carried", "wait", "mailbox", "watchers", "outcome",
                 "timer", "daemon", "_name", "__weakref__")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if args:
            target, args = args[0], args[1:]
        else:
            target, args, kwargs = kwargs.pop("target"), kwargs.pop("args", ()), kwargs.pop("kwargs", {})
        self._start(default_kernel(), target, args, kwargs)

    def _start(self, kernel: "Kernel", target: Callable, args: tuple, kwargs: dict) -> None:
        try:
            wanted, position = _SIGNATURES[target.__code__]
        except (AttributeError, KeyError):
            wanted, position = _signature(target)
        if wanted is not None and len(args) <= position and wanted not in kwargs:
            kwargs = dict(kwargs)
            kwargs[wanted] = self
        self.generator = generator = target(*args, **kwargs)
        self.step = generator.send
        self._name = target
        self.kernel = kernel
        self.id = next(_task_ids)
        self.callers = self.carried = self.wait = self.mailbox = self.watchers = self.outcome = None
        self.timer = 0
        self.daemon = False
        kernel.adopt(self)

    # -- what it is ----------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Name of the task's function."""
        target = self._name
        return getattr(target, "__name__", None) or type(target).__name__

    def __repr__(self) -> str:
        return "%s/%d" % (self.name, self.id)

    def is_alive(self) -> bool:
        """Whether the task has not ended yet. Any thread."""
        return self.generator is not None

    # -- messages ------------------------------------------------------------------------------------------------------

    def send(self, message: Any) -> int:
        """Put `message` into the task's mailbox; never waits. Any thread. Returns 0, or -1 when the task has ended."""
        kernel = self.kernel
        if get_ident() != kernel.owner:
            if self.generator is None:
                return -1
            kernel.post(self.send, message)
            return 0
        wait = self.wait
        if wait is RECEIVE:
            self.wait = None
            self.carried = message
            kernel.ready.append(self)
        elif wait is not None and wait.receives:
            self.unpark(message)
        elif self.generator is None:
            return -1
        elif self.mailbox is None:
            self.mailbox = deque((message,))
        else:
            self.mailbox.append(message)
        return 0

    def deliver(self, message: Any, timeout: Optional[float] = None) -> Any:
        """Like `send`, and tells whether the mailbox has the message: 1, or -1 when the task has ended.
        Use with yield. `timeout` (seconds) matters for remote tasks only."""
        return Value(1 if self.send(message) == 0 else -1)

    def receive(self, timeout: Optional[float] = None, alarm_value: Any = None) -> Any:
        """The oldest message of this task's mailbox; waits for one at most `timeout` seconds (None: for ever, 0: not
        at all), then gives `alarm_value`. Use with yield, in this task only."""
        if self.kernel.current is not self:
            raise MisuseError("receive() of task %r was called outside of it: a task reads its own mailbox only" % self)
        if timeout is None:
            return RECEIVE
        return _Receive(timeout, alarm_value)

    recv = receive

    # -- waiting -------------------------------------------------------------------------------------------------------

    def suspend(self, timeout: Optional[float] = None, alarm_value: Any = None) -> Any:
        """Wait until another task calls `resume`, at most `timeout` seconds (None: for ever; 0 or less: not at all);
        gives the value resumed with, or `alarm_value` when time is up. Use with yield, in this task only; for another
        task or a timeout that is no number the result is -1."""
        if timeout is not None and not isinstance(timeout, (int, float)):
            log.warning("%r: suspend(%r) ignored: the timeout is not a number of seconds", self, timeout)
            return Value(-1)
        return Suspend(timeout, alarm_value) if self.kernel.current is self else Value(-1)

    sleep = suspend

    def resume(self, update: Any = None) -> int:
        """End the `suspend` of the task, which gives `update`. Any thread. Returns 0 (also when the task was not
        suspended: ignored), or -1 when it has ended."""
        kernel = self.kernel
        if self.generator is None:
            return -1
        if get_ident() != kernel.owner:
            kernel.post(self.resume, update)
        elif self.wait.__class__ is Suspend:
            self.unpark(update)
        else:
            log.debug("%r: resume ignored, the task is not suspended", self)
        return 0

    wakeup = resume

    def finish(self, timeout: Optional[float] = None) -> Any:
        """The task's exit value (a `MonitorStatus` when it failed); waits for its end at most `timeout` seconds, then
        gives None. Use with yield; any task may call it any number of times."""
        return Join(self, timeout)

    __call__ = finish

    def value(self, timeout: Optional[float] = None) -> Any:
        """Like `finish`, for threads: blocks the calling thread. Raises MisuseError inside a task."""
        if self.generator is not None:
            if get_ident() == self.kernel.owner:
                raise MisuseError("value() of task %r was called inside a task, which would block all of them: "
                                  "use 'yield task.finish()'" % self)
            ended = threading.Event()
            self.kernel.post(self.watch, lambda _task: ended.set())
            if not ended.wait(timeout):
                return None
        return self.outcome

    # -- the end -------------------------------------------------------------------------------------------------------

    def set_daemon(self, flag: bool = True) -> int:
        """Let the program end without waiting for this task. Returns 0, or -1 when called outside of the task."""
        if self.kernel.current is not self:
            return -1
        self.kernel.count_daemon(self, bool(flag))
        return 0

    def throw(self, *args: Any) -> int:
        """Raise an exception at the task's current yield: throw(exc), throw(type, exc[, tb]) or throw((type, exc)).
        Any thread. Returns 0, or -1 without arguments, for an ended task and for the running one."""
        if len(args) == 1 and isinstance(args[0], tuple):
            args = args[0]
        exceptions = [arg for arg in args if isinstance(arg, BaseException)]
        if not exceptions and args and isinstance(args[0], type) and issubclass(args[0], BaseException):
            exceptions = [args[0]()]
        if not exceptions or self.generator is None or self.kernel.current is self:
            return -1
        self.kernel.call(self._interrupt, self._throwing, exceptions[0])
        return 0

    def terminate(self) -> int:
        """End the task: GeneratorExit is raised at its yield, so that its ``finally`` blocks run; its exit value is
        None. The running task ends at its next yield; one that has not begun never does. Any thread. Returns 0, or -1
        when it has ended already."""
        if self.generator is None:
            return -1
        if self.kernel.current is self:
            self.kernel.post(self._interrupt, self._closing, None)
        else:
            self.kernel.call(self._interrupt, self._closing, None)
        return 0

    def monitor(self, observe: "Task") -> Any:
        """Have a `MonitorStatus` sent to this task when `observe` ends. Use with yield. Gives 0, or -1 when `observe`
        has ended."""
        return Value(observe.notify(self))

    def notify(self, monitor: "Task") -> int:
        """Have a `MonitorStatus` sent to `monitor` when this task ends. Any thread. Returns 0, or -1 when this task has
        ended."""
        if self.generator is None:
            return -1
        self.kernel.call(self.watch, functools.partial(_tell_monitor, monitor))
        return 0

    # -- for the kernel and the requests (kernel thread only) ----------------------------------------------------------

    def unpark(self, value: Any) -> None:
        """What the task waited for is there: it goes on with `value`."""
        if self.timer:
            self.kernel.timers.cancel(self)
        self.wait = None
        self.carried = value
        self.kernel.ready.append(self)

    def unpark_with(self, error: BaseException) -> None:
        """What the task waited for failed: `error` is raised at its yield."""
        self.unpark(error)
        self.step = self._throwing

    def expire(self) -> None:
        """Its timer has run out."""
        wait = self.wait
        try:
            value = wait.expired(self)
        except Exception as error:      # a request's way to say that running out of time is an error
            self.unpark_with(error)
        else:
            self.unpark(value)

    def joined(self, other: "Task") -> None:
        """Watcher of a task it joins: `other` has ended."""
        wait = self.wait
        if wait.__class__ is Join and wait.target is other:
            if get_ident() == self.kernel.owner:
                self.unpark(other.outcome)
            else:
                self.kernel.post(self.joined, other)

    def watch(self, watcher: Callable[["Task"], None]) -> None:
        """Call `watcher(task)` when the task ends; at once when it has."""
        if self.generator is None:
            watcher(self)
        elif self.watchers is None:
            self.watchers = [watcher]
        else:
            self.watchers.append(watcher)

    def unwatch(self, watcher: Callable[["Task"], None]) -> None:
        """Take a watcher back; harmless when it has been called."""
        if self.watchers and watcher in self.watchers:
            self.watchers.remove(watcher)

    def _interrupt(self, step: Callable, carried: Any) -> None:
        """Make `step` the task's next one, wherever it is: parked, ready, or not begun."""
        if self.generator is None:
            return
        wait = self.wait
        if wait is not None:
            wait.abandon(self)
            self.unpark(carried)
        self.carried = carried
        self.step = step

    def _throwing(self, error: BaseException) -> Any:
        self.step = self.generator.send
        self.carried = None
        return self.generator.throw(error)

    def _closing(self, _carried: Any) -> Any:
        """Close the generators from the innermost outward; one that refuses to go is dropped."""
        for generator in [self.generator] + (self.callers or [])[::-1]:
            try:
                generator.close()
            except Exception:
                log.debug("%r: error while it was terminated", self, exc_info=True)
        self.callers = None
        raise _Terminated


def _tell_monitor(monitor: Task, task: Task) -> None:
    """Watcher: sends the completion notice."""
    outcome = task.outcome
    if not isinstance(outcome, MonitorStatus):
        outcome = MonitorStatus(task, StopIteration, outcome)
    monitor.send(outcome)


class Value(Request):
    """A result that is there already, for calls that must be yielded only sometimes."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def begin(self, kernel: "Kernel", task: Task) -> bool:
        task.carried = self.value
        return True


# ======================================================================================================================
# 11. Kernel                                                                                  one kernel is one thread
# ======================================================================================================================
#
# A kernel owns a deque of ready tasks, a timer queue, a poller and an inbox of calls from other threads. Its loop:
#
#     inbox -> due timers -> ready tasks (a bounded number of passes) -> descriptors that are ready, then again
#
# Everything in it is touched by the thread that runs it (`owner`) and nothing is locked; other threads use `post`
# (or append to `ready`, which the interpreter makes atomic) and wake the poller only when it sleeps.

PASSES = 16                             # passes over the ready queue between two looks at timers and descriptors
TURNS = 64                              # results that were there already, before a task gives the others a turn
POLL_EVERY_S = 0.001                    # a busy kernel looks at its descriptors this often


class Kernel:
    """Runs tasks, timers and descriptor handlers. `clock` and `poller` can be replaced, so that tests need not wait."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, poller: Any = None) -> None:
        self.clock = clock
        self.poller = Poller() if poller is None else poller
        self.ready: deque = deque()
        self.timers = TimerQueue()
        self.inbox: deque = deque()
        self.tasks: Dict[int, Task] = {}
        self.current: Optional[Task] = None
        self.owner: Optional[int] = None    # ident of the thread that runs it
        self.sleeping = False               # in the poller, and nothing was there when it went
        self.polled = 0.0                   # when descriptors were last looked at
        self.daemons = 0                    # how many of `tasks` do not hold the program open
        self.idle_events: List[threading.Event] = []
        self.waker = Waker(self.poller)
        self.thread: Optional[threading.Thread] = None
        self.stopping = False
        self.guest: Any = None              # the network engine, when this kernel drives it (section 13)
        self.rounds = 0                     # grows while the loop comes round; the engine's watcher looks at it

    # -- from any thread -----------------------------------------------------------------------------------------------

    def post(self, function: Callable, *args: Any) -> None:
        """Call `function(*args)` in the kernel soon. Any thread."""
        self.inbox.append((function, args))
        if self.sleeping:
            self.waker.wake()

    def call(self, function: Callable, *args: Any) -> None:
        """Call `function(*args)` in the kernel: now when this is its thread, else soon. Any thread."""
        if get_ident() == self.owner:
            function(*args)
        else:
            self.post(function, *args)

    def spawn(self, target: Callable, *args: Any, **kwargs: Any) -> Task:
        """Start a task in this kernel. Any thread."""
        task = Task.__new__(Task)
        task._start(self, target, args, kwargs)
        return task

    def adopt(self, task: Task) -> None:
        """Schedule a new task. Any thread."""
        self.tasks[task.id] = task
        self.ready.append(task)
        if self.sleeping:
            self.waker.wake()

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run_inbox(self) -> None:
        """Make the calls that other threads have posted."""
        inbox = self.inbox
        for _ in range(len(inbox)):
            function, args = inbox.popleft()
            try:
                function(*args)
            except Exception:
                log.exception("a call posted to the kernel failed: %r", function)

    def run_timers(self) -> None:
        """Expire what is due."""
        if len(self.timers):
            for item in self.timers.expired(self.clock()):
                item.expire()

    def run_ready(self, passes: int = PASSES) -> None:
        """Step every ready task, `passes` times at most."""
        ready = self.ready
        pop, push, begin_of = ready.popleft, ready.append, REQUESTS.get
        while ready and passes:
            passes -= 1
            for _ in range(len(ready)):
                self.current = task = pop()
                turns = TURNS
                while turns:
                    try:
                        value = task.step(task.carried)
                    except StopIteration as stop:
                        if not self._returned(task, stop.value):
                            break
                    except BaseException as error:
                        if not self._raised(task, error):
                            break
                    else:
                        if value is None:
                            task.carried = None
                            push(task)
                            break
                        begin = begin_of(value.__class__)
                        if begin is None:
                            task.carried = value
                            if task.generator.__class__ is _COROUTINE:
                                self._refuse(task, value)
                            push(task)
                            break
                        if not begin(value, self, task):
                            break
                    turns -= 1
                else:
                    push(task)
        self.current = None

    def timeout(self) -> Optional[float]:
        """How long the kernel may sleep: 0 when there is work, None when only a descriptor can bring some."""
        if self.ready or self.inbox:
            return 0
        deadline = self.timers.next_deadline()
        return None if deadline is None else max(0.0, deadline - self.clock())

    def poll(self, timeout: Optional[float]) -> None:
        """Wait for descriptors and call their handlers."""
        if timeout != 0:
            self.sleeping = True
            if self.ready or self.inbox:    # came in before `sleeping` was set, so nobody woke us
                timeout = 0
        events = self.poller.poll(timeout)
        self.sleeping = False
        self.polled = self.clock()
        for handler, mask in events:
            handler(mask)

    def turn(self, limit: Optional[float] = None) -> None:
        """Once round the loop, sleeping at most `limit` seconds (None: as long as nothing is due)."""
        self.run_inbox()
        self.run_timers()
        self.run_ready()
        timeout = self.timeout()
        if limit is not None and (timeout is None or timeout > limit):
            timeout = limit
        if timeout != 0 or self.clock() - self.polled >= POLL_EVERY_S:
            self.poll(timeout)

    # -- ends of generators and tasks ----------------------------------------------------------------------------------

    def _returned(self, task: Task, value: Any) -> bool:
        """The innermost generator returned; an explicit value wins over what its last yield gave. True: goes on."""
        if value is None:
            value = task.carried
        if task.callers:
            task.generator = task.callers.pop()
            task.step = task.generator.send
            task.carried = value
            return True
        self._end(task, value)
        return False

    def _raised(self, task: Task, error: BaseException) -> bool:
        """The innermost generator raised; its caller gets the exception, if there is one. True: goes on."""
        if isinstance(error, RuntimeError) and isinstance(error.__cause__, StopIteration):
            values = error.__cause__.args       # ``raise StopIteration(v)``, a return in programs of old (PEP 479)
            return self._returned(task, values[0] if len(values) == 1 else values or None)
        if isinstance(error, _Terminated):
            self._end(task, None)
            return False
        if task.callers:
            task.generator = task.callers.pop()
            task.step = task._throwing
            task.carried = error
            return True
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        level = logging.DEBUG if task.watchers else logging.ERROR       # someone is told: no need to shout
        log.log(level, "task %r ended with an uncaught exception:\n%s", task, trace)
        self._end(task, MonitorStatus(task, type(error), trace))
        return False

    def _end(self, task: Task, outcome: Any) -> None:
        task.outcome = outcome
        task.generator = task.step = task.callers = task.carried = task.mailbox = None
        del self.tasks[task.id]
        self.daemons -= task.daemon
        self._check_idle()
        watchers, task.watchers = task.watchers, None
        for watcher in watchers or ():
            watcher(task)

    def count_daemon(self, task: Task, flag: bool) -> None:
        """A task becomes a daemon, or stops being one."""
        self.daemons += flag - task.daemon
        task.daemon = flag
        self._check_idle()

    def _check_idle(self) -> None:
        if self.idle_events and len(self.tasks) == self.daemons:
            events, self.idle_events = self.idle_events, []
            for event in events:
                event.set()

    def notify_idle(self, event: threading.Event) -> None:
        """Set `event` once only daemon tasks are left."""
        self.idle_events.append(event)
        self._check_idle()

    def _refuse(self, task: Task, value: Any) -> None:
        """An async task awaited what this kernel cannot run: say so at the await."""
        task.step = task._throwing
        task.carried = MisuseError("task %r awaited %r, which belongs to another event loop: await calls of pycoslite, "
                                   "or run it there and wait for a concurrent.futures.Future" % (task, value))

    # -- as a thread ---------------------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Run the kernel in a daemon thread of its own; `finish` is what makes a program wait for its tasks."""
        self.thread = threading.Thread(target=self.loop, name=name, daemon=True)
        self.thread.start()

    def loop(self) -> None:
        """Run until `stop`, in the calling thread."""
        self.owner = get_ident()
        self.stopping = False
        while not self.stopping:
            guest = self.guest
            if guest is None:
                self.turn()
            else:
                self.run_inbox()
                self.run_timers()
                self.run_ready()
                self.rounds += 1
                guest.visit()
        for task in list(self.tasks.values()):
            task.terminate()
        while self.ready or self.inbox:
            self.run_inbox()
            self.run_ready()
        self.owner = None

    def stop(self) -> None:
        """End the loop and every task that is left; waits for it unless called from within. Any thread."""
        self.post(setattr, self, "stopping", True)
        if self.thread is not None and get_ident() != self.owner:
            self.thread.join()
            self.close()

    def close(self) -> None:
        """Give the descriptors back; for a kernel that does not run (any more)."""
        self.waker.close()
        self.poller.close()

    def join(self, timeout: Optional[float] = None) -> bool:
        """Block this thread until only daemon tasks are left. True, or False when `timeout` seconds were not enough."""
        idle = threading.Event()
        self.post(self.notify_idle, idle)
        return idle.wait(timeout)


_default: Optional[Kernel] = None       # guarded by _default_lock; replaced only while no kernel runs
_default_lock = threading.Lock()


def default_kernel() -> Kernel:
    """The kernel that runs this program's tasks; started on first use. Any thread."""
    return _default or _start_default()


def _start_default() -> Kernel:
    global _default
    with _default_lock:
        if _default is None:
            _default = Kernel()
            _default.start("pycoslite")
            _at_exit(_wait_at_exit)
        return _default


def _at_exit(function: Callable[[], None]) -> None:
    """Call `function` in the main thread once the program's own code has ended, while threads and children can still be
    started: that is before `atexit`, which since 3.12 is too late for both. 3.8 has only `atexit`, and no such limit."""
    try:
        getattr(threading, "_register_atexit", atexit.register)(function)
    except RuntimeError:                # the first task is made by code that itself runs at exit
        atexit.register(function)


def _wait_at_exit() -> None:
    """A program lives until its non-daemon tasks have ended; Ctrl-C ends them."""
    kernel = _default
    if kernel is not None and kernel.thread is not None:
        try:
            kernel.join()
        except KeyboardInterrupt:
            pass
        stop_default()


def stop_default() -> None:
    """End the default kernel with all its tasks; the next task starts a new one. Not from within a task."""
    global _default
    with _default_lock:
        kernel, _default = _default, None
    if kernel is not None:
        kernel.stop()


def _forget_after_fork() -> None:
    """A forked child has the parent's memory but none of its threads: it starts anew."""
    global _default, _default_lock
    _default = None
    _default_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
