"""Goals about hostile input (see hostile.py), held in every run; and that the attacks notice what is wrong."""
from __future__ import annotations

import concurrent.futures
import contextlib
import json
import random
import socket
import struct
import threading
import unittest
from typing import Any, Iterator, List
from unittest import mock

import dispycos_lite
import pycoslite
from pycoslite import Location, ProtocolError, Pycos, PycosError, Task, encode_frame
from tests import figures, hostile, hostile_parsers, hostile_secrets, hostile_streams
from tests.figures import Figure
from tests.hostile_wire import HOST, SECRET, Insider, request_frame
from tests.support import TestCase
from tests.test_pycoslite_network import COME_S, NetworkTestCase

LINUX = unittest.skipUnless(hostile_parsers.memory(), "needs /proc to see what a process costs")


class GoalsTest(TestCase):
    """Each row, at the size of every run."""

    timeout_s = 240

    def test_no_row_is_forgotten(self) -> None:
        tested = {name.split("_")[1].upper() for name in dir(self) if name[:6] in ("test_s", "test_i")}
        self.assertEqual(tested, set(hostile.ROWS))

    @LINUX
    def test_s1_strangers_make_it_unpickle_nothing(self) -> None:
        figures.check(self, hostile.ROWS["S1"])

    @LINUX
    def test_s2_what_strangers_make_it_keep(self) -> None:
        figures.check(self, hostile.ROWS["S2"])

    @LINUX
    def test_s3_fuzzing(self) -> None:
        figures.check(self, hostile.ROWS["S3"])

    @LINUX
    def test_s4_crowds_and_too_few_descriptors(self) -> None:
        figures.check(self, hostile.ROWS["S4"])

    @LINUX
    def test_s5_datagrams(self) -> None:
        figures.check(self, hostile.ROWS["S5"])

    def test_s6_changed_and_repeated_connections(self) -> None:
        figures.check(self, hostile.ROWS["S6"])

    def test_s9_files(self) -> None:
        figures.check(self, hostile.ROWS["S9"])

    @LINUX
    def test_s10_web_monitor(self) -> None:
        figures.check(self, hostile.ROWS["S10"])

    @LINUX
    def test_s11_defaults_and_secrets(self) -> None:
        figures.check(self, hostile.ROWS["S11"])

    @LINUX
    def test_i1_insiders(self) -> None:
        figures.check(self, hostile.ROWS["I1"])

    @LINUX
    def test_i2_answers_that_nobody_reads(self) -> None:
        figures.check(self, hostile.ROWS["I2"])


class InsidersTest(NetworkTestCase):
    """What a peer that holds the secret says wrongly is an error of its own, and nobody waits for it."""

    def insider(self) -> Insider:
        """A connection to this process."""
        insider = Insider(self.node(secret=SECRET).location.port)
        self.addCleanup(insider.close)
        return insider

    def asking(self, function: Any) -> Any:
        """Have `function(peer)`, a generator function, run as a system task with the insider as its peer."""
        answer: Any = concurrent.futures.Future()

        def run() -> Iterator:
            peer, = Pycos().network.peers.values()
            try:
                answer.set_result((yield function(peer)))
            except PycosError as error:
                answer.set_exception(error)
        pycoslite.SysTask(run)
        return answer

    def test_an_answer_that_cannot_be_read_fails_the_request(self) -> None:
        insider = self.insider()
        for head in (b"", b"{", b"[]", b"null", b"[" * 100_000):
            for failed in (0, 1):
                answer = self.asking(lambda peer: (yield peer.request("anything", {})))
                number = struct.unpack_from(">II", insider.wait_for(pycoslite.REQUEST))[0]
                insider.say(encode_frame(pycoslite.REPLY, struct.pack(">IBI", number, failed, len(head)) + head))
                with self.assertRaisesRegex(ProtocolError, "its answer cannot be read"):
                    answer.result(COME_S)

    def test_a_refusal_without_a_reason(self) -> None:
        insider = self.insider()
        answer = self.asking(lambda peer: (yield peer.request("anything", {})))
        number = struct.unpack_from(">II", insider.wait_for(pycoslite.REQUEST))[0]
        insider.say(encode_frame(pycoslite.REPLY, struct.pack(">IBI", number, 1, 2) + b"{}"))
        with self.assertRaisesRegex(PycosError, "it gives no reason"):
            answer.result(COME_S)

    def test_a_monitor_hears_of_an_end_that_cannot_be_unpickled(self) -> None:
        insider = self.insider()
        peer, = Pycos().network.peers.values()

        def monitor(task: Any = None) -> Iterator:
            status = yield pycoslite.RemoteTask(peer, 5, "far").notify(task)
            return status, (yield task.receive(COME_S))
        task = Task(monitor)
        body = insider.wait_for(pycoslite.REQUEST)
        number, size = struct.unpack_from(">II", body)
        insider.say(encode_frame(pycoslite.REPLY, struct.pack(">IBI", number, 0, 12) + b'{"status":0}'))
        head = {"op": "task.ended", "args": {"id": json.loads(body[8:8 + size])["args"]["id"]}}
        insider.say(request_frame(0, json.dumps(head).encode(), b"csys\nexit\n(S'no'\ntR."))
        status, told = task.value(COME_S)
        self.assertEqual((status, told.type), (0, PycosError))
        self.assertIn("cannot be unpickled here: unpickling it ended with SystemExit: no", told.value)

    def test_who_asks_about_a_task_and_goes_leaves_nothing_at_it(self) -> None:
        port = self.node(secret=SECRET).location.port

        def lasts(task: Any = None) -> Iterator:
            yield task.receive()
        long, tasks = Task(lasts), Pycos().network.tasks
        for _ in range(5):
            with Insider(port) as insider:
                for number in range(3):
                    self.assertEqual(insider.request("task.monitor", {"task": long.id, "id": number})[1], {"status": 0})
                self.assertEqual(len(long.watchers or ()), 3)
        self.wait_until(lambda: not long.watchers and not tasks.watched)
        with Insider(port) as insider:
            insider.request("task.monitor", {"task": long.id, "id": 7})
            long.send("end")
            insider.wait_for(pycoslite.REQUEST)
            self.assertEqual([*tasks.watched.values()], [{}])

    def test_a_name_cannot_forge_lines_of_the_log(self) -> None:
        with Insider(self.node(secret=SECRET).location.port, name="x\nERROR all is lost\x1b[2J" + "y" * 500):
            peer, = Pycos().network.peers.values()
            self.assertRegex(repr(peer), r'^"x\\nERROR all is lost\\x1b\[2Jy+" @ \w+$')
            self.assertLess(len(repr(peer)), 150)

    def test_pings_without_end_are_not_answered_without_end(self) -> None:
        insider = self.insider()
        peer, = Pycos().network.peers.values()
        insider.sock.settimeout(0.2)
        with contextlib.suppress(OSError):              # until the buffers of the system are full, both ways
            for _ in range(3000):
                insider.say(encode_frame(pycoslite.Code.PING, bytes(200)) * 100)
        self.assertLessEqual(peer.session.queued_control, 100)

    def test_a_long_ping_ends_the_connection(self) -> None:
        insider = self.insider()
        insider.ping()
        insider.say(encode_frame(pycoslite.Code.PING, bytes(257)))
        with self.assertRaises(ConnectionError):
            insider.wait_for(pycoslite.Code.PONG)

    def test_a_name_that_no_host_can_have(self) -> None:
        self.node()

        def contact() -> Iterator:
            return (yield Pycos().peer(Location("x" * 70, 1)))
        with self.expect_log("the host name 'x+' cannot be resolved .*label too long"):
            self.assertEqual(self.do(contact), -1)

    def test_messages_of_an_unknown_kind_are_one_line(self) -> None:
        insider = self.insider()
        with self.expect_log("a message of kind 200 could not be handled: ProtocolError: nothing here takes") as lines:
            insider.say(encode_frame(200, b"what"))
            insider.ping()
        self.assertEqual([line.exc_info for line in lines], [None])


class CrowdTest(NetworkTestCase):
    """More knock than may wait."""

    def test_who_gives_way(self) -> None:
        links = [mock.Mock(where="%s:%d" % (host, timer), timer=timer) for timer, host in enumerate(
            ("10.0.0.1", "10.0.0.2", "[::1]", "10.0.0.2", "10.0.0.2", "10.0.0.1"), 1)]
        order = []
        while links:
            link = pycoslite._most_crowding(links)
            links.remove(link)
            order.append(link.timer)
        self.assertEqual(order, [2, 1, 4, 3, 5, 6])

    def test_who_has_a_whole_network_has_half_of_the_places(self) -> None:
        """One address for each connection, which an IPv6 network has enough of; links of the same wire are no such."""
        others = ["10.0.0.%d" % n for n in range(20)] + ["[2001:db8:1::%d]" % n for n in range(11)]
        crowd = ["[2001:db8::%x]" % n for n in range(33)]
        links = [mock.Mock(where="%s:9" % host, timer=timer) for timer, host in enumerate(others + crowd)]
        self.assertEqual(pycoslite._most_crowding(links).where, "[2001:db8::0]:9")
        self.assertEqual(pycoslite._most_crowding(links[:-1]).where, "10.0.0.0:9")
        local = [mock.Mock(where="[fe80::%x%%eth0]:9" % (n % 20), timer=n) for n in range(33)]
        self.assertEqual(pycoslite._most_crowding(local).where, "[fe80::0%eth0]:9")

    def test_noise_hides_no_warning(self) -> None:
        port = self.node().location.port
        for n in range(1, 16):                  # nobody sees these lines
            with socket.create_connection((HOST, port), source_address=("127.0.1.%d" % n, 0)) as sock:
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                with contextlib.suppress(OSError):
                    while sock.recv(4096):
                        pass
        with self.expect_log("refused a connection from 127.0.0.1: the other end has another secret"):
            with self.assertRaises(pycoslite.AuthenticationError):
                Insider(port, key=bytes(32))

    def test_a_crowd_from_everywhere_is_one_line(self) -> None:
        network, link = self.node().network, mock.Mock(where="")
        busy = pycoslite.PeerBusy("try again")
        with self.expect_log("too many connections wait to be authenticated") as lines:
            for n in range(30):
                link.where = "10.0.0.%d:9" % n
                network.refused(link, busy)
        self.assertEqual(len(lines), 1)

    def test_who_is_turned_away_as_too_many_wait_tries_again(self) -> None:
        self.node()
        with self.crowded(2) as at:
            def contact() -> Iterator:
                return (yield Pycos().peer(at))
            with self.expect_log("no peer: .*(refused|too many connections)"):
                self.assertEqual(self.do(contact), -1)

    def test_a_crowd_does_not_turn_away_for_ever(self) -> None:
        """A peer that was named is tried again when it is over, like one that was not there."""
        with self.crowded(5) as at:
            with self.expect_log("no peer yet: cannot reach .*too many connections wait.*; trying again"):
                node = self.node(peers=[at])
        with self.agent("tcp_port=%d" % at.port):
            self.wait_until(lambda: node.peers() == [at])

    @contextlib.contextmanager
    def crowded(self, times: int) -> Iterator[Location]:
        """Where so many connections are turned away by others' number, all there must be; and nobody is after that."""
        listener = socket.create_server((HOST, 0))
        self.addCleanup(listener.close)

        def turn_away() -> None:
            for _ in range(times):
                with listener.accept()[0] as sock:
                    end = pycoslite.Handshake("accept", bytes(32), bytes(16), {}, bytes(32), "pycoslite")
                    sock.sendall(end.data_to_send())
                    end.refuse(pycoslite.Refusal.BUSY)
                    sock.sendall(end.data_to_send())
                    sock.recv(4096)
            listener.close()                    # whoever comes now is refused by the system
        thread = threading.Thread(target=turn_away)
        thread.start()
        yield Location(*listener.getsockname())
        thread.join(COME_S)
        self.assertFalse(thread.is_alive(), "it was not tried again")


class ClusterMessagesTest(TestCase):
    """What nodes, clients and servers say to each other is looked at before it is used."""

    UP = {"n": 1, "state": "up", "pid": 7, "port": 9707, "process": "00"}
    GRANT = {"state": "granted", "servers": [UP], "directory": "d", "name": "n", "cpus": 1, "platform": "p"}

    def test_what_is_right_passes(self) -> None:
        for check, facts in ((dispycos_lite.checked_server, self.UP), (dispycos_lite.checked_grant, self.GRANT),
                             (dispycos_lite.checked_server, {"n": 2, "state": "down", "reason": "r"}),
                             (dispycos_lite.checked_place, self.GRANT),
                             (dispycos_lite.checked_place, {"state": "waiting", "position": 1, "holder": "h"})):
            self.assertIs(check(facts), facts)

    def test_what_is_wrong_is_refused(self) -> None:
        for check, facts in (
                (dispycos_lite.checked_server, dict(self.UP, port=0)),
                (dispycos_lite.checked_server, {"n": 1, "state": "up"}),
                (dispycos_lite.checked_server, dict(self.UP, port=65_536)), (dispycos_lite.checked_server, None),
                (dispycos_lite.checked_server, dict(self.UP, port=True)), (dispycos_lite.checked_grant, {}),
                (dispycos_lite.checked_grant, dict(self.GRANT, servers=[[]])),
                (dispycos_lite.checked_grant, dict(self.GRANT, servers=[dict(self.UP, port="x")])),
                (dispycos_lite.checked_place, {"state": "granted"}),
                (dispycos_lite.checked_place, {"state": "waiting"}),
                (dispycos_lite.checked_place, {}), (dispycos_lite.checked_place, [])):
            with self.subTest(facts), self.assertRaises(ProtocolError):
                check(facts)

    def test_definitions_and_setups(self) -> None:
        for head, parts in (({}, [b"", b""]),
                            ({"key": "00", "references": [], "bind": "", "kind": "module"}, [b"", b""]),
                            ({"key": "zz", "references": [], "bind": "", "kind": "k"}, [b"", b""]),
                            ({"key": "00", "references": [], "bind": 1, "kind": "k"}, [b"", b""]),
                            ({"key": "00", "references": [], "bind": "", "kind": []}, [b"", b""]),
                            ({"key": "00", "references": [], "bind": "", "kind": "k"}, []),
                            ({"setup": "zz"}, [b""]), ({"setup": "00"}, []), ([], [b"", b""])):
            blob = dispycos_lite._encode(head, parts)       # type: ignore[arg-type]
            for read in (dispycos_lite._Received, dispycos_lite.unpack_setup):
                with self.subTest(head=head, read=read), self.assertRaises(ProtocolError):
                    read(blob)

    def test_lengths_that_lie(self) -> None:
        blob = dispycos_lite._encode({"setup": "00"}, [b"arguments", b"definition"])
        self.assertEqual(dispycos_lite.unpack_setup(blob), (b"\0", b"arguments", [b"definition"]))
        for wrong in (blob[:-1], blob + b"x", blob[:8] + bytes(8) + blob[16:], b"", blob[:20]):
            with self.assertRaises(ProtocolError):
                dispycos_lite.unpack_setup(wrong)


class HonestyTest(TestCase):
    """The attacks find what they look for when it is there."""

    def missed(self, row: Iterator[Figure]) -> List[str]:
        """Names of the figures that miss their goals."""
        return [figure.name for figure in row if not figure.right]

    def changed(self, owner: Any, name: str, value: Any) -> None:
        """Change something of the package for the test."""
        self.addCleanup(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)

    def test_a_mac_that_nobody_looks_at(self) -> None:
        for owner, name in ((pycoslite.hmac, "compare_digest"), (pycoslite, "_equal")):
            self.changed(owner, name, lambda one, other: True)
        said = hostile_streams.play()[2]
        self.assertIn("messages taken from them", self.missed(hostile_streams.repeated(said)))

    def test_a_parser_that_fails_in_its_own_way(self) -> None:
        def careless(layout: struct.Struct, name: str, body: bytes) -> tuple:
            return layout.unpack_from(body)
        self.changed(dispycos_lite, "_unpack", careless)
        names = self.missed(hostile_parsers.fuzz(5000))
        self.assertTrue([name for name in names if "none of ours" in name and "requires a buffer" in name], names)

    def test_a_stream_that_means_something_else_when_cut(self) -> None:
        whole = pycoslite.RecordOpener.feed

        def forgetful(opener: Any, data: bytes) -> list:
            return whole(opener, data) if len(data) > 2 else []
        self.changed(pycoslite.RecordOpener, "feed", forgetful)
        names = self.missed(hostile_parsers.fuzz(5000))
        self.assertTrue([name for name in names if "cut at every byte" in name], names)

    def test_a_key_that_shows(self) -> None:
        self.changed(pycoslite.Key, "__repr__", bytes.__repr__)
        self.assertEqual(len(self.missed(hostile_secrets.shown())), 1)

    def test_mutations_change_and_pieces_are_whole(self) -> None:
        choose, data = random.Random(1), bytes(range(200))
        changed = sum(hostile_parsers.mutated(choose, data) != data for _ in range(500))
        self.assertGreater(changed, 480)
        self.assertEqual(b"".join(hostile_parsers.in_pieces(choose, data)), data)
