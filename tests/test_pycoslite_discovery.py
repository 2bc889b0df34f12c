"""Processes that find each other without being told where they are; on several hosts in test_pycoslite_lan.py."""
from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import struct
import sys
import time
import unittest
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, Iterator, List, Tuple
from unittest import mock

import pycoslite
from pycoslite import HOST_PING, PASSED_PING, PING, PING_TIMES_S, PONG, REFUSAL, Discovery, Interface, Pycos, Target
from tests import figures
from tests.figures import Figure
from tests.support import FakeClock, TestCase, free_port, two_hosts
from tests.test_pycoslite_network import AGENT, NetworkTestCase

KEY, OTHER_KEY, PROCESS, NONCE = b"k" * 32, b"o" * 32, b"p" * 16, b"n" * 16
LO = Interface("127.0.0.1", None, "lo", 1, 8)
LO6 = Interface("::1", None, "lo", 1, 128)
ETH = Interface("10.0.0.5", "10.0.0.255", "eth0", 2, 24)
ETH6 = Interface("fd00::5", None, "eth0", 2, 64)
LINK = Interface("fe80::5%eth0", None, "eth0", 2, 64)
VPN = Interface("10.9.0.5", None, "tun0", 3, 32)                # point to point: no broadcast
WLAN = Interface("192.168.7.5", "192.168.7.255", "wlan0", 4, 24)
ALL = ["0.0.0.0", "::"]
GROUP4, GROUP6 = "239.255.97.5", "ff05::674f:48ba:b409:3171:9705"


def ping_of(key: Any = KEY, kind: int = PING, cluster: Any = "c", **more: Any) -> bytes:
    """A datagram."""
    return pycoslite.encode_datagram(key, kind, PROCESS, 9705, 3, cluster, NONCE, **more)


class DatagramTest(TestCase):
    def test_what_goes_in_comes_out(self):
        self.assertEqual(pycoslite.parse_datagram(KEY, "c", ping_of()), (True, PING, PROCESS, 9705, 3, NONCE, "", 0))

    def test_places(self):
        for place, interface in (("10.0.0.1", 0), ("fd00::1", 0), ("fe80::1", 7), ("::1", 0)):
            with self.subTest(place):
                found = pycoslite.parse_datagram(KEY, "c", ping_of(kind=PONG, place=(place, interface)))
                self.assertEqual((found.place, found.interface), (place, interface))
                self.assertEqual(found.location(("10.9.9.9", 1)), pycoslite.Location(place, 9705))
        self.assertEqual(pycoslite.parse_datagram(KEY, "c", ping_of()).location(("10.9.9.9", 1)),
                         pycoslite.Location("10.9.9.9", 9705))

    def test_every_kind_has_one_size(self):
        kinds = PING, PONG, REFUSAL, HOST_PING, PASSED_PING
        self.assertEqual({len(ping_of(kind=kind, place=place)) for kind in kinds for place in (("", 0), ("::1", 1))},
                         {101})

    def test_another_secret_shows(self):
        self.assertFalse(pycoslite.parse_datagram(OTHER_KEY, "c", ping_of()).authentic)
        self.assertFalse(pycoslite.parse_datagram(None, "c", ping_of()).authentic)
        self.assertTrue(pycoslite.parse_datagram(None, "c", ping_of(key=None)).authentic)

    def test_of_a_forged_one_the_place_is_not_looked_at(self):
        found = pycoslite.parse_datagram(OTHER_KEY, "c", ping_of(place=("10.0.0.1", 0)))
        self.assertEqual((found.authentic, found.place), (False, ""))

    def test_another_cluster_is_not_seen(self):
        self.assertIsNone(pycoslite.parse_datagram(KEY, "another", ping_of()))
        self.assertTrue(pycoslite.parse_datagram(KEY, None, ping_of()).authentic)
        self.assertTrue(pycoslite.parse_datagram(KEY, "another", ping_of(cluster=None)).authentic)     # asks every one

    def test_every_changed_bit_shows(self):
        data = ping_of(place=("fd00::1", 0))
        for position in range(len(data) * 8):
            changed = bytearray(data)
            changed[position // 8] ^= 1 << position % 8
            found = pycoslite.parse_datagram(KEY, "c", bytes(changed))
            self.assertFalse(found is not None and found.authentic, position)

    def test_another_length_is_no_datagram(self):
        data = ping_of()
        for other in (b"", data[:-1], data + b"x"):
            self.assertIsNone(pycoslite.parse_datagram(KEY, "c", other))


class TargetsTest(TestCase):
    """Where a search is sent, for what interfaces a machine has and which of them are wanted."""

    def targets(self, found: List[Interface], hosts: List[str], multicast: bool = False) -> List[tuple]:
        """(host, interface) of the targets."""
        links = [(2, "eth0"), (4, "wlan0")]
        return [target[1:] for target in pycoslite.search_targets(found, links, hosts, multicast)]

    def test_table(self):
        group, lo, machine = (GROUP6, 2), ("127.255.255.255", None), [LO, ETH, VPN, WLAN, LO6, ETH6, LINK]
        for hosts, multicast, wanted in (
                (ALL, False, [("10.0.0.255", None), ("192.168.7.255", None), group, lo]),
                (ALL, True, [(GROUP4, "10.0.0.5"), (GROUP4, "10.9.0.5"), (GROUP4, "192.168.7.5"), group, lo,
                             (GROUP4, "127.0.0.1")]),
                (["0.0.0.0"], False, [("10.0.0.255", None), ("192.168.7.255", None), lo]),
                (["::"], False, [group, lo]),
                (["10.0.0.5"], False, [("10.0.0.255", None)]),
                (["10.0.0.5", "192.168.7.5"], False, [("10.0.0.255", None), ("192.168.7.255", None)]),
                (["fd00::5"], False, [group]),
                (["fe80::5%eth0"], False, [group]),
                (["127.0.0.1"], False, [lo]),
                (["::1"], False, [lo]),
                (["10.1.1.1"], False, []),
        ):
            with self.subTest(hosts=hosts, multicast=multicast):
                self.assertEqual(self.targets(machine, hosts, multicast), wanted)

    def test_a_system_that_does_not_tell_its_interfaces(self):
        lo = [("127.255.255.255", None), (GROUP4, "127.0.0.1")]
        self.assertEqual(self.targets([], ALL), [("255.255.255.255", None), (GROUP6, 2), (GROUP6, 4)] + lo)
        self.assertEqual(self.targets([], ALL, True), [(GROUP4, None), (GROUP6, 2), (GROUP6, 4)] + lo)
        self.assertEqual(self.targets([], ["127.0.0.1"]), lo)
        self.assertEqual(self.targets([], ["::1"]), lo)

    def test_groups_can_be_chosen(self):
        module = sys.modules["pycoslite"]
        self.assertEqual((module.IPV4_MULTICAST_GROUP, module.IPV6_MULTICAST_GROUP), (GROUP4, GROUP6))
        self.addCleanup(setattr, module, "IPV4_MULTICAST_GROUP", GROUP4)
        module.IPV4_MULTICAST_GROUP = "239.1.2.3"
        self.assertIn(("239.1.2.3", "10.0.0.5"), self.targets([ETH], ALL, True))


class InterfacesTest(TestCase):
    """What the system says of its interfaces."""

    def test_this_machine(self):
        if not sys.platform.startswith("linux"):
            self.skipTest("only Linux tells them")
        found = pycoslite.interfaces()
        self.assertIn(LO, found)
        for interface in found:
            self.assertEqual(socket.if_nametoindex(interface.name), interface.index)
            pycoslite.canonical_host(interface.address)

    def test_a_recorded_answer(self):
        def attribute(kind: int, data: bytes) -> bytes:
            return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)

        def message(kind: int, fixed: bytes, attributes: bytes) -> bytes:
            return struct.pack("=IHHII", 16 + len(fixed + attributes), kind, 2, 1, 0) + fixed + attributes

        def address(family: int, prefix: int, flags: int, attributes: bytes) -> bytes:
            return message(20, struct.pack("=BBBBI", family, prefix, flags, 0, 1), attributes)
        v4, v6 = socket.inet_aton("10.0.0.5"), socket.inet_pton(socket.AF_INET6, "fd00::5")
        links = message(16, struct.pack("=BxHiII", 0, 1, 1, 0x1003, 0), attribute(3, b"lo\0"))
        links += message(16, struct.pack("=BxHiII", 0, 1, 9, 0x1002, 0), attribute(3, b"down\0"))
        dumps = [links, address(socket.AF_INET, 24, 0, attribute(1, b"peer") + attribute(2, v4) + attribute(
            4, socket.inet_aton("10.0.0.255"))) + address(socket.AF_INET6, 64, 0x40, attribute(1, v6))     # tentative
            + address(socket.AF_INET6, 64, 0x80, attribute(1, v6))]

        class Recorded:
            def __init__(self, *_args: Any) -> None:
                self.left = [dumps.pop(0), struct.pack("=IHHII", 16, 3, 2, 1, 0)]

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_exc: Any) -> None:
                pass

            def send(self, data: bytes) -> None:
                pass

            def recv(self, _size: int) -> bytes:
                return self.left.pop(0)
        self.addCleanup(setattr, socket, "socket", socket.socket)
        socket.socket = Recorded        # type: ignore[misc]
        self.assertEqual(pycoslite.interfaces(), [Interface("10.0.0.5", "10.0.0.255", "lo", 1, 24),
                                                  Interface("fd00::5", None, "lo", 1, 64)])

    def test_own_addresses(self):
        found = pycoslite.own_addresses()
        self.assertEqual(len(found), len(set(found)))
        self.assertTrue(all(":" not in address for address in pycoslite.own_addresses(["0.0.0.0"])))
        self.assertTrue(all(":" in address for address in pycoslite.own_addresses(["::", "fd00::1"])))
        self.assertEqual(found, sorted(found, key=lambda address: ":" in address))      # IPv4 first


class FakeNetwork:
    """As much of a network as `Discovery` needs; time and the wire are the test's."""

    def __init__(self, number: int, clock: FakeClock, role: str = "peer", hosts: Any = ()) -> None:
        self.key, self.cluster, self.process_id, self.port, self.role = KEY, "c", bytes([number] * 16), 9705, role
        self.hosts, self.closing, self.peers = list(hosts) or list(ALL), False, {}
        self.sockets: List[Any] = []
        self.engine = self
        self.clock = clock
        self.timers: List[tuple] = []
        self.complaints: List[str] = []

    def call_later(self, delay_s: float, function: Any, *args: Any) -> Any:
        """Note a call; gives what can `cancel` it."""
        timer = (self.clock() + delay_s, function, args)
        self.timers.append(timer)
        return SimpleNamespace(cancel=lambda: timer in self.timers and self.timers.remove(timer))

    def run(self) -> None:
        """Make the calls that are due."""
        due = [timer for timer in self.timers if timer[0] <= self.clock()]
        self.timers = [timer for timer in self.timers if timer not in due]
        for _, function, args in due:
            function(*args)

    def complain(self, _level: int, text: str, *args: str) -> None:
        """Note a line."""
        self.complaints.append(text % args)


class FakeDiscovery(Discovery):
    """One whose datagrams go to a list, and which connects to nobody."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sent: List[Tuple[bytes, tuple]] = []
        self.found: Dict[bytes, Any] = {}
        self._asking = {socket.AF_INET: None, socket.AF_INET6: None}      # type: ignore[dict-item]

    def _send_all(self, targets: List[Target], data: bytes, port: int) -> None:
        self.sent += [(data, (target.host, port)) for target in targets]

    def _send(self, sock: Any, data: bytes, address: tuple) -> None:
        self.sent.append((data, address))

    def _found(self, process_id: bytes, location: Any) -> None:
        self.found.setdefault(process_id, location)

    def take(self, data: bytes, address: tuple = ("10.0.0.7", 4000)) -> List[tuple]:
        """Have it take a datagram; what it answers."""
        before = len(self.sent)
        self._take(None, address, data)           # type: ignore[arg-type]
        return self.sent[before:]


class RulesTest(TestCase):
    """What is answered, asked, believed and said, without any socket."""

    def setUp(self):
        self.clock = FakeClock()

    def machine(self, found: List[Interface]) -> None:
        """Let this machine have these interfaces."""
        self.addCleanup(setattr, pycoslite, "interfaces", pycoslite.interfaces)
        pycoslite.interfaces = lambda: found

    def discovery(self, number: int = 1, **options: Any) -> FakeDiscovery:
        """One that answers at an imagined network."""
        return FakeDiscovery(FakeNetwork(number, self.clock, **options), 9705)

    def kind(self, answers: List[tuple]) -> Any:
        """Kind of the one answer; None if there is none."""
        self.assertLessEqual(len(answers), 1)
        return pycoslite.parse_datagram(KEY, None, answers[0][0]).kind if answers else None

    def test_answers(self):
        one = self.discovery()
        self.assertEqual(self.kind(one.take(ping_of())), PONG)
        self.assertEqual(self.kind(one.take(ping_of(cluster=None))), PONG)
        self.assertIsNone(self.kind(one.take(ping_of(cluster="another"))))
        self.assertEqual(self.kind(one.take(ping_of(key=OTHER_KEY))), REFUSAL)
        self.assertIsNone(self.kind(one.take(ping_of(key=OTHER_KEY, cluster="another"))))
        self.assertIsNone(self.kind(self.discovery(role="scheduler").take(ping_of())))       # roles 3: peers and nodes
        self.assertIsNone(self.kind(self.discovery(role="scheduler").take(ping_of(key=OTHER_KEY))))
        self.assertIsNone(self.kind(self.discovery(ord("p")).take(ping_of())))               # its own
        one.ignore = True
        self.assertEqual((one.take(ping_of()), one.take(ping_of(key=OTHER_KEY))), ([], []))

    def test_a_ping_that_is_said_again_and_again(self):
        """Who has recorded one has nobody flooded with answers; who sent it is answered however often others say it."""
        one = self.discovery()
        victim = [answer for _ in range(1000) for answer in one.take(ping_of(), ("10.0.0.66", 4000))]
        self.assertLessEqual(len(victim), 8)
        self.assertEqual(self.kind(one.take(ping_of())), PONG)
        for n in range(10_000):
            one._first_few(NONCE, str(n))
        self.assertLessEqual(len(one._answered), 1024)

    def test_a_search_without_a_network(self):
        one = self.discovery()
        one._asking = {}
        with mock.patch.object(pycoslite, "_datagram_socket", side_effect=OSError(errno.EMFILE, "Too many open files")):
            self.assertFalse(one.search(1))
        self.assertEqual(one.network.complaints, ["no search for peers is possible now (Too many open files): name "
                                                  "their addresses, or search again later"])

    def test_who_is_connected_is_not_answered(self):
        one = self.discovery()
        one.network.peers[PROCESS] = peer = type("Peer", (), {"online": True})()
        self.assertEqual(one.take(ping_of()), [])
        peer.online = False
        self.assertEqual(self.kind(one.take(ping_of())), PONG)

    def test_another_secret_makes_few_lines_and_answers(self):
        one = self.discovery()
        for number in range(1000):
            one.take(pycoslite.encode_datagram(OTHER_KEY, PING, os.urandom(16), 1, 255, "c", NONCE),
                     ("10.0.%d.%d" % divmod(number, 250), 4000))
        self.assertEqual((len(one.network.complaints), len(one.sent)), (5, 20))
        one = self.discovery()
        for place in ("10.0.0.7", "127.0.0.1", "fd00::7"):      # one process on three ways
            one.take(ping_of(key=OTHER_KEY), (place, 4000))
        self.assertEqual(one.network.complaints, [
            "a process at 10.0.0.7 has another secret than this one, they are no peers (copy ~/.pycoslite/secret from "
            "one machine to the other)"])

    def test_only_asked_for_and_recent_answers_are_believed(self):
        one = self.discovery()
        one._ping(1, 9705, ["10.0.0.7"])
        nonce = pycoslite.parse_datagram(KEY, "c", one.sent[0][0]).nonce
        other = bytes([2] * 16)

        def answer(key: bytes = KEY, nonce: bytes = nonce) -> None:
            one.take(pycoslite.encode_datagram(key, PONG, other, 9706, 1, "c", nonce))
        answer(nonce=NONCE)
        answer(key=OTHER_KEY)
        self.assertEqual(one.found, {})
        answer()
        self.assertEqual(one.found.pop(other), pycoslite.Location("10.0.0.7", 9706))
        self.clock.advance(10.1)
        answer()
        self.assertEqual(one.found, {})

    def test_where_it_says_it_listens(self):
        self.machine([LO, ETH, WLAN, ETH6, LINK])
        for hosts, asker, wanted in (
                (ALL, "10.0.0.7", ""), (ALL, "fe80::7%eth0", ""), (["0.0.0.0"], "10.0.0.7", ""),
                (["10.0.0.5"], "10.0.0.7", "10.0.0.5"),         # which is not the address it would answer from here
                (["10.0.0.5"], "192.168.7.7", None), (["10.0.0.5"], "fd00::7", None),
                (["fd00::5"], "fe80::7%eth0", "fd00::5"), (["fd00::5"], "fe80::7%wlan0", None),
                (["127.0.0.1"], "10.0.0.7", None), (["127.0.0.1"], "127.0.0.1", ""),
                (["::"], "127.0.0.1", "::1"), (["fe80::5%eth0"], "127.0.0.1", "fe80::5"),
                (["10.0.0.5"], "127.0.0.1", "10.0.0.5"),
        ):
            with self.subTest(hosts=hosts, asker=asker):
                place = self.discovery(hosts=hosts)._place_for(asker)
                self.assertEqual(place if wanted or place is None else "", wanted)

    def test_a_host_ping_is_passed_on_once(self):
        one = self.discovery()
        one._answering = [type("Socket", (), {"family": socket.AF_INET})()]
        data = ping_of(kind=HOST_PING)
        passed, answer = one.take(data, ("10.0.0.7", 4000))
        self.assertEqual(passed[1], ("127.255.255.255", 9705))
        self.assertEqual(answer[1], ("10.0.0.7", 4000))
        self.assertEqual(self.kind(one.take(data)), PONG)              # repeated: answered, and not passed on
        two = self.discovery(2)
        self.assertEqual(two.take(passed[0], ("10.0.0.9", 5000)), [])          # not from this machine
        [(_, address)] = two.take(passed[0], ("127.0.0.1", 5000))
        self.assertEqual(address, ("10.0.0.7", 4000))
        self.assertEqual(one.take(ping_of(key=OTHER_KEY, kind=HOST_PING))[1:], [])

    def test_a_search_repeats_its_ping_and_a_second_one_prolongs_it(self):
        one = self.discovery()
        one.search(1, addresses=["10.0.0.7"])
        moments, start = [0.0], self.clock()
        while one.network.timers:
            before = len(one.sent)
            self.clock.advance(0.05)
            one.network.run()
            moments += [self.clock() - start] * (len(one.sent) - before)
        self.assertEqual(len(moments), len(PING_TIMES_S))
        for moment, planned in zip(moments, PING_TIMES_S):
            self.assertAlmostEqual(moment, planned, delta=1.0)
        for _ in range(3):                      # asked for again while it goes on: one ping at once, no second series
            one.search(1, addresses=["10.0.0.7"])
            self.assertEqual(len(one.network.timers), 1)
        one.close()
        self.assertEqual((one._searches, one.network.timers), ({}, []))

    def test_groups_are_joined_on_interfaces_that_come_later(self):
        joined = []
        self.addCleanup(setattr, pycoslite, "_join_group", pycoslite._join_group)
        pycoslite._join_group = lambda sock, interface: joined.append((sock.family, interface))
        self.addCleanup(setattr, socket, "if_nameindex", socket.if_nameindex)
        socket.if_nameindex = lambda: [(1, "lo"), (2, "eth0")]
        one, four, six = self.discovery(), socket.AF_INET, socket.AF_INET6
        one._answering = [SimpleNamespace(family=family) for family in (four, six)]
        for found, wanted in (([LO], {(four, "127.0.0.1")}), ([LO], set()),
                              ([LO, ETH, LINK], {(four, "10.0.0.5"), (six, 2)}), ([LO], set()),
                              ([LO, ETH], {(four, "10.0.0.5")}),        # which has been away
                              ([], {(four, "0.0.0.0"), *((six, index) for index in (1, 2))})):
            self.machine(found)
            one._join()
            self.assertEqual(set(joined), wanted)
            joined.clear()
            [(when, function, _)] = one.network.timers
            self.assertEqual((when - self.clock(), function), (10.0, one._join))
            one.network.timers.clear()

    def test_30_percent_loss_misses_nobody_in_ten_seconds(self):
        """A thousand starts of two processes, the second a while after the first. (Five pings would miss one in 29.)"""
        self.machine([LO, ETH])
        chance, missed = random.Random(30), 0
        for _ in range(1000):
            one, two, end = self.discovery(1), self.discovery(2), self.clock() + 10
            two.search(1)                       # what the first one asked when it started is long gone
            while two.network.timers and not two.found:
                for data, (host, _port) in two.sent:
                    if host != "127.255.255.255" and chance.random() >= 0.3:
                        for answer, _ in one.take(data):
                            if chance.random() >= 0.3:
                                two.take(answer)
                two.sent.clear()
                self.clock.now = min(timer[0] for timer in two.network.timers)
                two.network.run()
            missed += not two.found
            self.assertLess(self.clock(), end)
        self.assertEqual(missed, 0)


class CostTest(NetworkTestCase):
    """Strangers' datagrams cost little and start nothing (reliability.md, S5)."""

    def test_20000_garbage_datagrams(self):
        figures.check(self, self.garbage)

    def garbage(self, _soak: bool) -> Iterator[Figure]:
        """Each kind of garbage 5000 times; what it costs is the time of the thread that takes it."""
        port, done, answers, asked = free_port(), [], [], 0
        node = self.node(discover_peers=True, udp_port=port)
        choose, ping = random.Random(5), ping_of(key=OTHER_KEY, cluster="pycoslite")
        kinds = {"noise": lambda: os.urandom(choose.randrange(1, 400)), "of another cluster": ping_of,
                 "with another secret": lambda: ping,
                 "damaged": lambda: bytes([*ping[:40], choose.randrange(256), *ping[41:]])}
        self.wait_until(lambda: node.discovery._answering)
        ear, receive = node.discovery._answering[0], node.discovery._receive

        def measured() -> None:
            started = time.thread_time()
            receive(ear, pycoslite.READ)
            done.append(time.thread_time() - started)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, self.expect_log("another secret") as lines:
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
            node.network.post(node.network.engine.poller.unregister, ear.fileno())      # taken by `measured` alone
            for name, make in kinds.items():
                done.clear()
                for _ in range(100):
                    for _ in range(50):
                        data = make()
                        asked += len(data)
                        sock.sendto(data, ("127.0.0.1", port))
                    node.network.post(measured)
                self.wait_until(lambda: len(done) == 100)
                yield Figure("a datagram of garbage, " + name, sum(done) / 5000 * 1e6, "us", "<=", 20)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        answers.append(len(sock.recv(4096)))
            node.network.post(node.network.engine.poller.register, ear.fileno(), pycoslite.READ, lambda events: None)
        yield Figure("lines in the log", len(lines), "", "<=", 10)
        yield Figure("the longest answer, compared to a ping", max(answers) / len(ping), "", "<=", 1)
        yield Figure("bytes answered for each byte asked", sum(answers) / asked, "", "<=", 0.01)
        yield Figure("connections and peers", len(node.network.links) + len(node.network.peers), "", "==", 0)


class OneHostTest(NetworkTestCase):
    def searching(self, port, *options):
        """An agent that searches, and lets itself be found, at that UDP port."""
        return self.agent("discover_peers=True", "udp_port=%d" % port, *options)

    def names(self):
        """Names of the peers online."""
        return sorted(peer.name for peer in list(Pycos().network.peers.values()) if peer.online)

    def test_several_processes_share_the_port_and_find_each_other(self):
        port = free_port()
        with self.searching(port, "name=one") as one, self.searching(port, "name=two") as two:
            self.node(discover_peers=True, udp_port=port)
            self.wait_until(lambda: self.names() == ["one", "two"])
            for process in one, two:
                self.assertEqual(self.ask(self.find(process), "echo", 1), 1)

    def test_two_clusters_on_one_wire_never_meet(self):
        port = free_port()
        with self.searching(port, "name=one", "cluster=another"), self.searching(port, "name=two"):
            self.node(discover_peers=True, udp_port=port)
            self.wait_until(lambda: self.names() == ["two"])
            self.wait_until(lambda: len(Pycos().discovery._nonces) >= 5)
            self.assertEqual(self.names(), ["two"])

    def test_another_secret_is_one_line_at_each_end(self):
        port = free_port()
        with self.searching(port, "secret=another") as process:
            with self.expect_log("a process at 127.0.0.1 has another secret") as lines:
                self.node(discover_peers=True, udp_port=port)
                process.wait_for("WARNING a process at 127.0.0.1 has another secret")
                self.wait_until(lambda: len(Pycos().discovery._nonces) >= 5)
            self.assertEqual(len(lines), 1)
            self.assertEqual(process.output.count("WARNING"), 1)
            self.assertEqual(self.names(), [])

    @unittest.skipUnless(pycoslite.source_address("::1"), "this machine has no IPv6")
    def test_processes_of_both_protocols_meet_on_the_loopback_interface(self):
        port = free_port()
        with self.agent("discover_peers=True", "udp_port=%d" % port, "name=six", "host=::1"):
            self.node(discover_peers=True, udp_port=port)
            self.wait_until(lambda: self.names() == ["six"])
            self.assertEqual([at.addr for at in Pycos().peers()], ["::1"])

    def test_a_udp_port_that_cannot_be_shared(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("", 0))
            with self.expect_log(r"discovery is off, UDP port %d cannot be used \(.*in use\): others must name" %
                                 sock.getsockname()[1]):
                node = self.node(discover_peers=True, udp_port=sock.getsockname()[1])
                self.assertEqual(node.discover_peers(), 0)              # it can search all the same


class TwoHostsTest(TestCase):
    """Two machines on a cable: no default route, no name service."""

    def setUp(self):
        self.hosts = self.enter(two_hosts())
        self.secret = self.temp_dir() / "secret"
        self.secret.write_text("5" * 64)
        self.secret.chmod(0o600)

    def enter(self, manager):
        """Enter a context manager until the end of the test."""
        value = manager.__enter__()
        self.addCleanup(manager.__exit__, None, None, None)
        return value

    def start(self, host, *options):
        """An agent there, on all its interfaces, by IPv4 (or it might be met by IPv6 first)."""
        command = [sys.executable, Path(AGENT), "host=0.0.0.0", "discover_peers=True", "secret=", *options]
        return self.enter(host.running(command, ready="READY", env={"PYCOSLITE_SECRET_FILE": str(self.secret)}))

    def test_found_by_broadcast_with_the_same_secret_file(self):
        one = self.start(self.hosts[0], "name=one")
        two = self.start(self.hosts[1], "name=two")
        one.wait_for('"two" @ %s:\\d+ is online' % self.hosts[1].address)
        two.wait_for('"one" @ %s:\\d+ is online' % self.hosts[0].address)
        self.assertNotIn("WARNING", one.output + two.output)

    def test_different_secrets_are_one_line_at_each_end(self):
        one = self.start(self.hosts[0], "name=one")
        two = self.start(self.hosts[1], "name=two", "secret=typed")
        two.wait_for("WARNING a process at %s has another secret" % self.hosts[0].address)
        one.wait_for("WARNING a process at %s has another secret" % self.hosts[1].address)
        self.assertEqual((one.output.count("WARNING"), two.output.count("WARNING")), (1, 1))
