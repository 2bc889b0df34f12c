"""Handshake, records and session between two processes over a hostile network, with a virtual clock and a seed.

The network cuts, delays, loses, doubles, reorders, truncates, changes and replays what is on its way and goes dark; the
processes crash, restart, and give each other up. Whatever happens: what arrives has been sent, once, in order; what was
confirmed has arrived; what was not is named when the session is given up; and once the network is healed all arrives.
"""
from __future__ import annotations

import itertools
import random
import struct
import unittest
from collections import deque
from heapq import heappop, heappush
from typing import Any, Callable, Dict, List, Optional
from unittest import mock

import pycoslite
from pycoslite import (Code, FrameDecoder, Handshake, PycosError, RecordOpener, RecordSealer, Session, Settings,
                       encode_frame, frame_buffers, parse_ack, parse_session)
from tests.figures import SOAK
from tests.support import TestCase

KEY = b"k" * 32
CODE = 64
HEAD = struct.Struct(">II")             # incarnation of the sender, number of the message
LIMITS = Settings(record_bytes=4096, window_bytes=30_000, window_messages=60, queue_messages=30, ack_bytes=6000,
                  ack_messages=20, ack_delay_s=0.2)
TICK_S, HEARTBEAT_S, SILENT_S, HANDSHAKE_S, GIVE_UP_S = 0.1, 1.0, 3.0, 3.0, 6.0
HOSTILE_S, HEALED_S = 12.0, 60.0        # so long is the network hostile; so long may it take until all is settled


class Violation(AssertionError):
    """An invariant does not hold."""


def demand(true: Any, text: str, *args: Any) -> None:
    """Raise Violation unless `true`."""
    if not true:
        raise Violation(text % args)


def content(incarnation: int, number: int) -> bytes:
    """The one message that this number of that sender can be: most are short, some take several records."""
    size = (9000, 3000, 200, 50)[number % 97 % 7] if number % 97 < 4 else number % 13
    return HEAD.pack(incarnation, number) + bytes((number + incarnation & 0xFF,)) * size


class Sent:
    """What one session has sent and what became of it: the oracle's view."""

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.pushed = 0                 # messages handed to the session or waiting to be
        self.arrived = 0                # of these, at the other end: 0, 1, 2 ... in this order
        self.taker: Any = None          # process that they arrived at; there is only one

    def arrives(self, body: bytes, taker: Any) -> None:
        """A message of this session has come out at the other end."""
        _, number = HEAD.unpack_from(body)
        demand(number == self.arrived, "message %d came instead of %d", number, self.arrived)
        demand(number < self.pushed, "message %d came, and %d were sent", number, self.pushed)
        demand(bytes(body) == content(self.incarnation, number), "message %d was changed", number)
        demand(self.taker in (None, taker), "two processes got messages of one session")
        self.taker = taker
        self.arrived += 1

    def given_up(self, lost: list, waiting: int, confirmed: int) -> None:
        """The session is given up: `lost` is what it names, `waiting` messages it had not been handed yet."""
        numbers = [HEAD.unpack_from(item.frame[5:] if isinstance(item.frame, bytes) else item.frame[1])[1]
                   for item in lost]
        demand(confirmed <= self.arrived, "%d were confirmed, %d have arrived", confirmed, self.arrived)
        demand(numbers == list(range(confirmed, self.pushed - waiting)), "named are %s, of %d to %d", numbers,
               confirmed, self.pushed - waiting)
        for number, item in zip(numbers, lost):
            demand(item.sent or number >= self.arrived, "message %d has arrived and was 'never sent'", number)


class Half:
    """One end of a connection: the handshake, then the codecs."""

    def __init__(self, process: "Process", wire: "Wire", role: str) -> None:
        self.process, self.wire, self.role = process, wire, role
        world = process.world
        self.handshake: Optional[Handshake] = Handshake(role, world.key, process.id, {}, world.bytes(32), "c")
        self.began = self.last_in = self.last_out = world.now
        self.closed = False
        self.say()

    def say(self) -> None:
        """Send what the handshake has to say."""
        data = self.handshake.data_to_send()
        if data:
            self.wire.send(self, data)

    def receive(self, data: bytes) -> None:
        """Bytes have come; `b""` is the end of the connection."""
        process = self.process
        if self.closed or process.dead:
            return
        self.last_in = process.world.now
        try:
            if not data:
                raise PycosError("closed")
            if self.handshake is not None:
                self._shake(data)
            else:
                self._take(data)
        except PycosError:
            process.drop(self)

    def _shake(self, data: bytes) -> None:
        try:
            self.handshake.receive(data)
        finally:
            self.say()
        result = self.handshake.result
        if result is not None:
            self.handshake = None
            demand(result.peer_id == self.wire.ids[self.role], "an impostor was authenticated")
            self.sealer, self.opener = RecordSealer(result.send_key), RecordOpener(result.receive_key)
            self.decoder = FrameDecoder(1 << 20)
            self.process.authenticated(self, result.peer_id)
            if result.leftover and not self.closed:
                self._take(result.leftover)

    def _take(self, data: bytes) -> None:
        lone = self.opener.lone_frame(data, self.decoder)
        if lone is not None:
            self.process.frame(self, *lone)
            return
        for body in self.opener.feed(data):
            for code, payload in self.decoder.feed(body):
                self.process.frame(self, code, payload)
                if self.closed:
                    return


class Process:
    """What a process does with its session and its connection: the driver of sections 19 and 20 in short."""

    def __init__(self, world: "World", dials: bool) -> None:
        self.world, self.dials = world, dials
        self.id = world.bytes(16)
        self.dead = False
        self.other_id = b""             # who the session is with
        self.link: Optional[Half] = None
        self.arriving: Optional[Half] = None        # not authenticated yet
        self.next_dial = 0.0
        self.alone_since = world.now
        self.begin()

    def begin(self) -> None:
        """A fresh session."""
        self.sent = self.world.incarnation()
        self.session = self.world.session(self.world.sid(), LIMITS)
        self.outbox: deque = deque()

    def give_up(self, restart: bool = False) -> None:
        """End the session; what it names must be all that was not confirmed."""
        session, confirmed, waiting = self.session, self.session.confirmed, len(self.outbox)
        lost = (session.restart if restart else session.lost)(self.world.sid())
        self.sent.given_up(lost, waiting, confirmed)
        self.world.lost += len(lost)
        self.begin()

    def produce(self) -> None:
        """Send some messages, while the window allows."""
        world = self.world
        for _ in range(world.chance.choice((0, 0, 1, 1, 3, 20))):
            if self.sent.pushed == world.most or not self.session.below_window:
                return
            body = content(self.sent.incarnation, self.sent.pushed)
            frame: Any = encode_frame(CODE, body) if len(body) < 5000 else frame_buffers(CODE, body)
            self.outbox.append((frame, len(body) + 5))
            self.sent.pushed += 1

    def flush(self) -> None:
        """Hand to the connection what there is to send, by the same calls as a Peer."""
        session, link, now = self.session, self.link, self.world.now
        if link is not None:
            frame = session.pass_on(self.outbox, 1024, now)
            if frame is not None:
                self.write(link, [link.sealer.seal_short(frame)])
                return
        session.push_all(self.outbox)
        while link is not None and not link.closed and session.wants_write(now):
            parts = session.next_batch(self.world.chance.choice((700, 4096)), now)
            if not parts:
                return
            self.write(link, link.sealer.seal(parts))

    def write(self, link: Half, record: list) -> None:
        """One record, in parts."""
        link.last_out = self.world.now
        link.wire.send(link, b"".join(bytes(part) for part in record))

    def authenticated(self, half: Half, other_id: bytes) -> None:
        """A connection stands: it replaces the one before."""
        if self.link is not None:
            self.drop(self.link)
        if self.other_id not in (b"", other_id):
            self.give_up()              # another process answers there: that one is gone
        self.other_id = other_id
        self.link, self.arriving = half, None
        self.session.connected()
        self.flush()

    def drop(self, half: Half) -> None:
        """A connection has ended, or must."""
        if half.closed:
            return
        half.closed = True
        half.wire.send(half, b"")
        if half is self.arriving:
            self.arriving = None
        elif half is self.link:
            self.link, self.alone_since = None, self.world.now
            self.session.disconnected()

    def frame(self, half: Half, code: int, body: bytes) -> None:
        """A frame of the authenticated other end."""
        session = self.session
        if code == Code.SESSION:
            if session.on_session(*parse_session(body)) == "mismatch":
                if session.remote_sid:
                    self.give_up(restart=True)
                self.drop(half)
            else:
                self.flush()
        elif code == Code.ACK:
            session.on_ack(parse_ack(body))
        elif code == Code.PING:
            session.control(encode_frame(Code.PONG, bytes(body)))
            self.flush()
        elif code >= Code.FIRST_SEQUENCED:
            demand(code == CODE, "a frame of the kind %d came", code)
            session.note_received(1, len(body), self.world.now)
            self.world.arrives(bytes(body), self)

    def tick(self) -> None:
        """Time has passed."""
        now, link = self.world.now, self.link
        self.produce()
        for half in (link, self.arriving):
            if half is not None and now - half.last_in >= SILENT_S or (
                    half is not None and half.handshake is not None and now - half.began >= HANDSHAKE_S):
                self.drop(half)
        if self.link is not None and now - self.link.last_out >= HEARTBEAT_S:
            self.session.control(encode_frame(Code.PING, b""))
        if self.link is None and now - self.alone_since >= GIVE_UP_S:
            self.give_up()
            self.alone_since = now
        if self.dials and self.link is None and self.arriving is None and now >= self.next_dial:
            self.next_dial = now + 0.3
            self.world.connect(self)
        self.flush()


class Wire:
    """A connection: two directions, each in order unless the network interferes."""

    def __init__(self, world: "World", one: Process, other: Process) -> None:
        self.world = world
        self.ids = {"dial": other.id, "accept": one.id}         # role -> who is at the other end
        self.free = {"dial": 0.0, "accept": 0.0}                # role of the sender -> when its last piece arrives
        self.dark = {"dial": False, "accept": False}
        self.forged = False                                     # bytes were added, or are missing
        self.halves: Dict[str, Half] = {}
        self.early: List[tuple] = []                            # said before both halves were made
        other.arriving = self.halves["accept"] = Half(other, self, "accept")
        one.arriving = self.halves["dial"] = Half(one, self, "dial")
        for half, data in self.early:
            self.send(half, data)

    def send(self, half: Half, data: bytes) -> None:
        """Put a piece on its way."""
        if len(self.halves) < 2:
            self.early.append((half, data))
            return
        if not self.dark[half.role]:
            for piece in self.world.interfere(self, half.role, data):
                delay = self.world.chance.choice((0.001, 0.01, 0.1)) if self.world.hostile else 0.001
                self.free[half.role] = when = max(self.free[half.role], self.world.now + delay)
                self.world.at(when, self.halves["accept" if half.role == "dial" else "dial"].receive, piece)

    def cut(self) -> None:
        """Both ends learn of the end of the connection, sooner or later."""
        for half in self.halves.values():
            self.world.at(self.world.now + self.world.chance.choice((0.0, 0.2, 2.0)), half.receive, b"")
        self.dark = dict.fromkeys(self.dark, True)


class World:
    """Two processes, the network between them, a clock, and what must hold."""

    def __init__(self, seed: int, session: Callable = Session, most: int = 400) -> None:
        self.chance = random.Random(seed)
        self.key = None if seed % 5 == 0 else KEY       # without a key nothing can be noticed, so nothing is changed
        self.session, self.most = session, most
        self.now, self.hostile = 0.0, True
        self.badness = self.chance.choice((0.02, 0.1, 0.3))
        self.events: List[tuple] = []
        self.numbers = itertools.count(1)
        self.senders: Dict[int, Sent] = {}
        self.seen: List[bytes] = []                     # pieces of all connections, to be replayed
        self.lost = self.interfered = self.crashed = 0
        self.wire: Optional[Wire] = None
        self.processes = [Process(self, True), Process(self, False)]

    def bytes(self, count: int) -> bytes:
        """Random bytes."""
        return self.chance.getrandbits(8 * count).to_bytes(count, "big")

    def sid(self) -> int:
        """A session id that was never used."""
        return self.chance.getrandbits(63) | 1

    def incarnation(self) -> Sent:
        """The oracle's record of a new session."""
        sent = Sent(next(self.numbers))
        self.senders[sent.incarnation] = sent
        return sent

    def arrives(self, body: bytes, taker: Process) -> None:
        """A message has come out."""
        demand(len(body) >= HEAD.size, "garbage was accepted: %r", body[:20])
        sender = self.senders.get(HEAD.unpack_from(body)[0])
        demand(sender is not None, "garbage was accepted: %r", body[:20])
        sender.arrives(body, taker)

    def at(self, when: float, function: Callable, *args: Any) -> None:
        """Call `function(*args)` at that time."""
        heappush(self.events, (when, next(self.numbers), function, args))

    def connect(self, dialling: Process) -> None:
        """A new connection between the two."""
        accepting = self.processes[1]
        if accepting.arriving is not None:
            accepting.drop(accepting.arriving)
        self.wire = Wire(self, dialling, accepting)

    # -- the network ---------------------------------------------------------------------------------------------------

    def interfere(self, wire: Wire, role: str, data: bytes) -> List[bytes]:
        """What becomes of a piece on its way."""
        chance = self.chance
        if not self.hostile or chance.random() > self.badness:
            self.seen.append(data)
            return [data]
        self.interfered += 1
        choices = [self.cut_within, self.go_dark, self.stall]
        if self.key is not None:
            choices += [self.lose, self.double, self.truncate, self.flip, self.replay, self.swap]
        chosen = chance.choice(choices)
        wire.forged = wire.forged or chosen not in choices[:3]
        return chosen(wire, role, data)

    def cut_within(self, wire: Wire, _role: str, data: bytes) -> List[bytes]:
        """The connection ends at any byte."""
        self.at(self.now + 0.05, wire.cut)
        wire.dark = dict.fromkeys(wire.dark, True)
        piece = data[:self.chance.randrange(len(data) + 1)]
        return [piece] if piece else []

    def go_dark(self, wire: Wire, role: str, _data: bytes) -> List[bytes]:
        """Nothing gets through this connection any more, one way or both."""
        wire.dark[role] = True
        if self.chance.random() < 0.5:
            wire.dark = dict.fromkeys(wire.dark, True)
        return []

    def stall(self, wire: Wire, role: str, data: bytes) -> List[bytes]:
        """It takes long, and what follows waits behind it."""
        wire.free[role] = max(wire.free[role], self.now + self.chance.uniform(0.5, 4.0))
        return [data]

    def lose(self, _wire: Wire, _role: str, _data: bytes) -> List[bytes]:
        """A piece is missing, and what follows it comes."""
        return []

    def double(self, _wire: Wire, _role: str, data: bytes) -> List[bytes]:
        """A piece comes twice."""
        return [data, data]

    def truncate(self, _wire: Wire, _role: str, data: bytes) -> List[bytes]:
        """The end of a piece is missing, and what follows it comes."""
        return [data[:self.chance.randrange(len(data))]] if len(data) > 1 else []

    def flip(self, _wire: Wire, _role: str, data: bytes) -> List[bytes]:
        """A bit is changed."""
        changed = bytearray(data or b"\0")
        changed[self.chance.randrange(len(changed))] ^= 1 << self.chance.randrange(8)
        return [bytes(changed)]

    def replay(self, _wire: Wire, _role: str, data: bytes) -> List[bytes]:
        """A piece of before, of any connection and direction, comes instead or too."""
        old = self.chance.choice(self.seen or [b"\0"])
        return [old, data] if self.chance.random() < 0.5 else [old]

    def swap(self, wire: Wire, role: str, data: bytes) -> List[bytes]:
        """A piece comes after those that follow it."""
        target = wire.halves["accept" if role == "dial" else "dial"]
        self.at(max(wire.free[role], self.now) + 0.15, target.receive, data or b"\0")
        return []

    # -- the run -------------------------------------------------------------------------------------------------------

    def crash(self) -> None:
        """A process dies, and another takes its place."""
        self.crashed += 1
        index = self.chance.randrange(2)
        self.processes[index].dead = True
        if self.wire is not None and self.chance.random() < 0.7:
            self.wire.cut()
        self.processes[index] = Process(self, index == 0)

    def tick(self) -> None:
        """Ten times a second."""
        if self.hostile and self.chance.random() < 0.005:
            self.crash()
        for process in self.processes:
            process.tick()
        self.at(self.now + TICK_S, self.tick)

    def heal(self) -> None:
        """The network leaves everything as it is from now on. Where it has added or left out something, it has also
        rewritten TCP's numbers: they do not fit any more, and the connection is reset."""
        self.hostile = False
        if self.wire is not None and self.wire.forged:
            self.wire.cut()

    def settled(self) -> bool:
        """Whether all that the two have to say has arrived and is confirmed."""
        return all(process.sent.pushed == self.most and not process.outbox and not process.session.unconfirmed_frames
                   for process in self.processes)

    def run(self) -> None:
        """To the end; raises Violation."""
        self.at(0.0, self.tick)
        while self.now < HOSTILE_S or not self.settled():
            self.now, _, function, args = heappop(self.events)
            if self.hostile and self.now >= HOSTILE_S:
                self.heal()
            demand(self.now < HOSTILE_S + HEALED_S, "not settled %g s after the network was healed", HEALED_S)
            function(*args)
        for process in self.processes:
            demand(process.sent.arrived == self.most, "confirmed, and only %d arrived", process.sent.arrived)


class SimulationTest(TestCase):
    SEEDS = 100_000 if SOAK else 1000
    timeout_s = 7200 if SOAK else 240

    def test_whatever_the_network_does(self) -> None:
        lost = interfered = crashed = 0
        for seed in range(self.SEEDS):
            world = World(seed)
            try:
                world.run()
            except Violation as violation:
                self.fail("seed %d at %.3f: %s" % (seed, world.now, violation))
            lost, interfered, crashed = lost + world.lost, interfered + world.interfered, crashed + world.crashed
        self.assertGreater(lost, self.SEEDS)                # or the network was not hostile at all
        self.assertGreater(interfered, 5 * self.SEEDS)
        self.assertGreater(crashed, self.SEEDS / 4)

    # -- the checker itself: each of these is a session, or a codec, with a fault that it must find

    def assert_found(self, session: Callable = Session, seeds: int = 60) -> None:
        for seed in range(1, seeds):
            try:
                World(seed, session).run()
            except (Violation, IndexError):
                return
        self.fail("a fault was not found in %d seeds" % seeds)

    def test_a_session_that_forgets_what_was_on_its_way(self) -> None:
        class Faulty(Session):
            def disconnected(self) -> None:
                self._base += sum(len(batch[2]) for batch in self._kept)
                self._kept.clear()
                super().disconnected()
        self.assert_found(Faulty)

    def test_a_session_that_repeats_what_has_arrived(self) -> None:
        class Faulty(Session):
            def _forget(self, received: int) -> None:
                super()._forget(max(self._base, received - 1))
        self.assert_found(Faulty)

    def test_a_session_that_confirms_too_much(self) -> None:
        class Faulty(Session):
            def connected(self) -> None:
                self._received += self._received > 5
                super().connected()
        self.assert_found(Faulty)

    def test_a_session_that_says_nothing_of_what_it_loses(self) -> None:
        class Faulty(Session):
            def lost(self, local_sid: int) -> list:
                return super().lost(local_sid)[1:]
        self.assert_found(Faulty)

    def test_a_session_that_takes_what_it_has_sent_for_unsent(self) -> None:
        class Faulty(Session):
            def lost(self, local_sid: int) -> list:
                return [item._replace(sent=False) for item in super().lost(local_sid)]
        self.assert_found(Faulty)

    def test_a_session_that_never_confirms(self) -> None:
        class Faulty(Session):
            def note_received(self, count: int, nbytes: int, now: float) -> Optional[float]:
                super().note_received(count, nbytes, now)
                self._ack_at = None
                return None
        self.assert_found(Faulty)

    def test_records_whose_mac_is_not_looked_at(self) -> None:
        with mock.patch.object(pycoslite, "_equal", lambda one, other: True):
            self.assert_found()

    def test_a_run_can_be_repeated(self) -> None:
        first, second = World(7), World(7)
        for world in (first, second):
            world.run()
        self.assertEqual((first.now, first.lost, first.interfered), (second.now, second.lost, second.interfered))


if __name__ == "__main__":
    unittest.main()
