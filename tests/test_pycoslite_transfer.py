"""Files sent to other processes: what arrives, what is refused, what an interrupted transfer leaves behind."""
from __future__ import annotations

import binascii
import os
import random
import shutil
import signal
import socket
import stat
import threading
import unittest
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, List
from unittest import mock

import pycoslite
from pycoslite import FileStat, Location, Pycos, Task
from tests.cutting import CuttingProxy
from tests.support import TestCase
from tests.test_pycoslite_network import COME_S, SECRET
from tests.test_pycoslite_remote_channels import ServiceTestCase

OUTSIDE = ["../evil", "/evil", "a/../../evil", "base-twin/../../evil", "nul\0", "link", "link/deeper", "..", "n" * 300,
           "..\\evil"]


OFFER = {"id": 1, "name": "data.bin", "dir": "", "place": "", "size": 3, "mtime_ns": 0, "mode": 0o600,
         "overwrite": False}


class TransferTestCase(ServiceTestCase):
    """A test with an agent whose files are in `self.there`, and `self.file` to be sent."""

    def begin(self, size: int = 10, *options: str) -> None:
        """Start all; the file has `size` bytes."""
        self.outside = self.temp_dir()
        self.there = self.outside / "base"
        self.file = self.temp_dir() / "data.bin"
        self.write(os.urandom(size))
        self.node()
        self.process = self.peer("dest_path=%r" % str(self.there), *options)

    def write(self, data: bytes, mtime: float = 1_600_000_000.25) -> None:
        """Give the file another content."""
        self.file.write_bytes(data)
        os.utime(self.file, (mtime, mtime))
        self.file.chmod(0o640)

    def call(self, what: str, *args: Any, **kwargs: Any) -> Any:
        """What send_file or del_file gives."""
        def run():
            return [(yield getattr(Pycos(), what)(self.process.at, *args, **kwargs))]
        return self.do(run)[0]

    def send(self, **kwargs: Any) -> Any:
        """Send the file."""
        return self.call("send_file", self.file, **kwargs)

    def names(self) -> List[str]:
        """All that is there."""
        return sorted(str(path.relative_to(self.there)) for path in self.there.rglob("*"))


class SendTest(TransferTestCase):
    def test_content_time_and_permissions_are_kept(self):
        self.begin()
        for size in (0, 1, 10_000_001):
            self.write(os.urandom(size))
            self.assertEqual(self.send(dir="some/where", overwrite=True), 0)
            arrived = self.there / "some" / "where" / "data.bin"
            self.assertEqual(arrived.read_bytes(), self.file.read_bytes())
            self.assertEqual(arrived.stat().st_mode & 0o777, 0o640)
            self.assertEqual(arrived.stat().st_mtime_ns, self.file.stat().st_mtime_ns)
        self.assertEqual(self.names(), ["some", "some/where", "some/where/data.bin"])

    def test_results(self):
        self.begin()
        self.assertEqual(self.send(), 0)
        self.assertEqual(self.send(), 1)
        self.assertEqual(self.send(overwrite=True), 1)
        old = self.file.read_bytes()
        self.write(b"longer than ten bytes")
        there = self.send()
        self.assertIsInstance(there, FileStat)
        self.assertEqual((there.st_size, there.st_mtime, there.st_mode & 0o777), (10, 1_600_000_000.25, 0o640))
        self.assertTrue(there > 1 and not there < 0 and there >= 1 and not there <= 1)
        self.assertEqual((self.there / "data.bin").read_bytes(), old)
        self.assertEqual(self.send(overwrite=True), 0)
        self.assertEqual((self.there / "data.bin").read_bytes(), b"longer than ten bytes")

    def test_what_cannot_be_sent(self):
        self.begin()
        for path, reason in ((self.file.parent / "absent", "No such file"), (self.file.parent, "no regular file")):
            with self.expect_log("was not sent to .*" + reason):
                self.assertEqual(self.call("send_file", path), -1)

        def nobody():
            return (yield Pycos().send_file(Location("127.0.0.1", 1), self.file))
        with self.expect_log("was not sent to .*connection refused"):
            self.assertEqual(self.do(nobody), -1)
        self.assertEqual(self.names(), [])

    def test_paths_in_any_form(self):
        self.begin()
        for dir, sent in ((None, 0), ("sub", 0), (b"sub", 1), (Path("sub"), 1)):
            self.assertEqual(self.send(dir=dir), sent)
        self.assertEqual(self.call("send_file", os.fsencode(self.file)), 1)
        self.assertEqual(self.call("del_file", os.fsencode(self.file), dir=Path("sub")), 0)
        self.assertEqual(self.names(), ["data.bin"])

    def test_what_is_no_location(self):
        """As when nobody was located; nor is there such a path."""
        self.begin()
        for what, args, line in (("send_file", (None, self.file), "was not sent to None: None is no address"),
                                 ("send_file", ("::1:x]", self.file), "was not sent to .* is neither a host name nor"),
                                 ("send_file", (self.process.at, "a\0b"), "was not sent to .*embedded null"),
                                 ("del_file", (None, self.file), "was not deleted at None: None is no address"),
                                 ("close_peer", (None,), "close_peer: None is no address")):
            def run(what=what, args=args):
                return [(yield getattr(Pycos(), what)(*args))]
            with self.subTest(what, args=args), self.expect_log(line):
                self.assertEqual(self.do(run), [-1])

    def test_a_timeout_that_is_no_number(self):
        self.begin()

        def run():
            with self.assertRaises(TypeError):
                yield Pycos().send_file(self.process.at, self.file, timeout="1")
            return (yield Pycos().send_file(self.process.at, self.file))
        self.assertEqual(self.do(run), 0)

    def test_progress_that_fails(self):
        self.begin(5_000_000)
        seen: List[tuple] = []

        def told(*numbers):
            seen.append(numbers)
            raise ValueError("it does this each time")
        with self.expect_log("has failed, and is told no more: .*told"):
            self.assertEqual(self.send(progress=told), 0)
            self.wait_until(lambda: seen)
        self.assertEqual(self.send(dir="again"), 0)
        self.assertEqual(len(seen), 1)
        with self.assertRaisesRegex(TypeError, "progress must be a function"):
            Pycos().send_file(self.process.at, self.file, progress=5)

    def test_max_file_size(self):
        self.begin(100, "max_file_size=99")
        with self.expect_log("100 bytes, more than the 99"):
            self.assertEqual(self.send(), -1)
        self.write(b"x" * 99)
        self.assertEqual(self.send(), 0)

    def test_progress_and_messages_in_between(self):
        self.begin(20_000_000)
        seen: List[tuple] = []
        echoes: List[int] = []

        def chat(task=None):
            while not echoes or echoes[-1] is not None:
                self.process.agent.send(("echo", task, len(echoes)))
                echoes.append((yield task.receive(COME_S)))
                if seen and seen[-1][0] == seen[-1][1]:
                    break
        talk = Task(chat)
        self.assertEqual(self.send(progress=lambda done, size: seen.append((done, size))), 0)
        talk.value(COME_S)
        self.assertEqual(seen[-1], (20_000_000, 20_000_000))
        self.assertEqual(seen, sorted(seen))
        self.assertGreater(len(seen), 2)
        self.assertGreater(len(echoes), 5)

    def test_many_files_at_the_same_time(self):
        self.begin()
        paths = [self.file.with_name("f%d" % n) for n in range(10)]
        for path in paths:
            path.write_bytes(os.urandom(500_000))

        def send(path):
            return (yield Pycos().send_file(self.process.at, path))
        self.assertEqual([task.value(COME_S) for task in [Task(send, path) for path in paths]], [0] * 10)
        for path in paths:
            self.assertEqual((self.there / path.name).read_bytes(), path.read_bytes())


def through_the_link() -> Any:
    """A context: no connections are made for files."""
    return mock.patch.object(pycoslite, "_dialled_from", return_value="")


class WaysTest(TransferTestCase):
    """How the bytes get there: a connection dialled from either end, several of them, or the link."""

    SIZE = 3_000_001

    def setUp(self) -> None:
        super().setUp()
        self.dialled: List[bool] = []           # whether each connection for a file, dialled from here, could be made
        dial = pycoslite._dial_for_file

        def noting(*args: Any) -> Any:
            self.dialled.append(False)
            made = dial(*args)
            self.dialled[-1] = True
            return made
        self.enter(mock.patch.object(pycoslite, "_dial_for_file", noting))

    def arrives(self) -> None:
        """The file is sent, and what is there is the same."""
        self.assertEqual(self.send(), 0)
        self.assertEqual((self.there / "data.bin").read_bytes(), self.file.read_bytes())
        self.assertEqual(self.names(), ["data.bin"])
        self.wait_until(lambda: not Pycos().network.files.expected)

    def test_a_connection(self):
        self.begin(self.SIZE)
        self.arrives()
        self.assertEqual(self.dialled, [True])

    def test_the_link(self):
        self.begin(self.SIZE)
        self.process.agent.peer.longest = 100_000       # of a message
        with through_the_link():
            self.arrives()
        self.assertEqual(self.dialled, [])

    @unittest.skipUnless(pycoslite.can_encrypt_by_secret(), "this Python cannot use a secret as the key of TLS")
    def test_the_link_when_it_is_encrypted(self):
        self.setting(encrypt="always")
        self.begin(self.SIZE)
        self.assertTrue(self.process.agent.peer.link.encrypted)
        self.arrives()
        self.assertEqual(self.dialled, [])

    def test_the_link_when_no_connection_can_be_made(self):
        self.begin(self.SIZE)
        refused = mock.Mock(side_effect=ConnectionRefusedError("as in a network that lets one in"))
        with mock.patch.object(pycoslite, "_dial_for_file", refused):
            self.arrives()
        self.assertEqual(refused.call_count, 1)

    def test_the_system_has_no_sendfile(self):
        self.begin(self.SIZE)
        for error in (None, OSError(pycoslite.errno.EINVAL, "not for this file system")):
            with self.subTest(error):
                with mock.patch.object(os, "sendfile", side_effect=error) as sendfile:
                    if error is None:
                        del os.sendfile
                    self.arrives()
                    if error is None:
                        os.sendfile = sendfile      # for the patch to undo
            (self.there / "data.bin").unlink()

    def dialled_from_there(self) -> None:
        """As `begin`, but the link is the agent's."""
        self.outside = self.temp_dir()
        self.there = self.outside / "base"
        self.file = self.temp_dir() / "data.bin"
        self.write(os.urandom(self.SIZE))
        node = self.node()
        node.network.process_id = b"\xff" * 16          # of two links both ends keep what the smaller id dialled
        self.process = self.peer("dest_path=%r" % str(self.there), "peers=[%r]" % str(node.location))
        peer, = node.network.peers.values()
        self.wait_until(lambda: peer.link is not None and peer.link.role == "accept")

    def test_the_receiver_dials(self):
        self.dialled_from_there()
        attached = []
        attach = pycoslite._Outgoing.attach
        with mock.patch.object(pycoslite._Outgoing, "attach",
                               lambda outgoing, sock: attached.append(sock) or attach(outgoing, sock)):
            self.arrives()
        self.assertEqual((self.dialled, len(attached)), ([], 1))

    def test_the_receiver_cannot_dial(self):
        self.dialled_from_there()
        network = Pycos().network
        with mock.patch.object(network.files, "attach", lambda link, result: link.close()):
            self.arrives()

    def test_cut_connections_are_made_again_and_go_on_where_they_were(self):
        self.outside = self.temp_dir()
        self.there = self.outside / "base"
        self.file = self.temp_dir() / "data.bin"
        self.write(os.urandom(8_000_000))
        self.node(host="127.0.0.2", ext_host="127.0.0.9")
        self.process = self.peer("dest_path=%r" % str(self.there))
        chance = random.Random(5)
        passed: List[int] = []

        def budget() -> int:
            passed.append(chance.randrange(500_000, 2_500_000))
            return passed[-1]
        proxy = CuttingProxy(self.process.at, budget, lambda: chance.random() < 0.5)
        self.addCleanup(proxy.close)
        link, = (peer.link for peer in Pycos().network.peers.values())
        with mock.patch.object(pycoslite, "_link_address", return_value=(proxy.at.addr, proxy.at.port)):
            self.arrives()
        self.assertIs(next(iter(Pycos().network.peers.values())).link, link)        # the connections only were cut
        self.assertGreaterEqual(len(self.dialled), 4)
        self.assertTrue(all(self.dialled))
        self.assertLess(sum(passed[:-1]), 2 * 8_000_000)

    def test_connections_that_carry_nothing_are_given_up(self):
        self.begin(self.SIZE)
        proxy = CuttingProxy(self.process.at, lambda: 500, lambda: False)       # enough for the handshake
        self.addCleanup(proxy.close)
        with mock.patch.object(pycoslite, "_link_address", return_value=(proxy.at.addr, proxy.at.port)):
            self.arrives()
        self.assertLessEqual(len(self.dialled), pycoslite._TRIES)

    def test_the_link_takes_over_from_a_connection_that_was_cut(self):
        self.begin(8_000_000)

        def deaf(outgoing: Any, sock: Any, heard: bytearray) -> None:
            """A connection is cut in whose last moment much was written that this end does not know of."""
            sent = outgoing._send_some(sock, 0)
            while sent < 5_000_000:
                outgoing._await(sock, pycoslite.selectors.EVENT_WRITE)
                sent += outgoing._send_some(sock, sent)
            while int.from_bytes(heard[-8:], "big") < 4_000_000:
                outgoing._await(sock, pycoslite.selectors.EVENT_READ)
                heard += sock.recv(4096)
            outgoing._hash(sent)
            raise ConnectionResetError("for the test")
        with mock.patch.object(pycoslite._Outgoing, "_transmit", deaf):
            self.arrives()
        self.assertEqual(len(self.dialled), 1)

    def with_lanes(self) -> Any:
        """As `begin`, but the link may have lanes; the peer."""
        self.setting(lanes_loss=0.0)
        self.enter(mock.patch.dict(os.environ, PYCOSLITE_LANES_LOSS="0"))
        self.begin(8_000_000)
        return self.process.agent.peer

    def test_the_link_takes_over_from_a_connection_when_the_line_is_bad(self):
        self.with_lanes()
        looks = iter((None, None, pycoslite._BadLine("for the test")))
        with mock.patch.object(pycoslite._LineWatch, "look", side_effect=looks) as look:
            self.arrives()
        self.assertEqual((self.dialled, look.call_count), ([True], 3))

    def test_the_link_when_it_goes_over_lanes(self):
        peer = self.with_lanes()
        supply = peer.link.lanes.supply
        peer.engine.post(supply._want, 4)
        self.wait_until(lambda: peer.connections == 5)
        supply.reason = "the test says so"
        self.assertEqual(self.ask(self.process.agent, "echo", 1), 1)
        self.assertTrue(peer.link.lanes.wide)
        self.arrives()
        self.assertEqual(self.dialled, [])

    def test_what_a_bad_line_is(self):
        lines = iter([pycoslite._Line(0.05, resent, sent, 0) for resent, sent in ((0, 0), (0, 100), (9, 200))])
        with mock.patch.object(pycoslite, "_line_of", lambda _socks: next(lines)):
            watch = pycoslite._LineWatch(mock.Mock(), 0.0)
            for now in (0.0, pycoslite._LOOK_S / 2, pycoslite.settings.lanes_after_s):      # the second: too early
                watch.look(now)
            with self.assertRaisesRegex(pycoslite._BadLine, "4 % had to be sent again"):
                watch.look(2 * pycoslite.settings.lanes_after_s)

    def test_a_connection_that_nobody_expects(self):
        self.begin()
        peer, = Pycos().network.peers.values()
        for token in ("0" * 32, ["no", "text"]):
            sock, rest = pycoslite._dial_for_file(peer, peer.link.sock.getpeername(), token)
            with sock:
                self.assertEqual((rest, sock.recv(1)), (b"", b""))
        self.assertEqual(self.send(), 0)


class ManyTest(TransferTestCase):
    """Many files at the same time, and files that cannot all be received at the same time."""

    def test_small_files_take_a_request_each_and_no_threads_of_their_own(self):
        self.begin()
        paths = [self.file.with_name("f%d" % n) for n in range(300)]
        for path in paths:
            path.write_bytes(os.urandom(1024))

        def send(path):
            return (yield Pycos().send_file(self.process.at, path, dir="many"))
        with mock.patch.object(pycoslite._Outgoing, "__init__", side_effect=AssertionError("it is small")):
            self.assertEqual([task.value(COME_S) for task in [Task(send, path) for path in paths]], [0] * 300)
        for path in paths:
            self.assertEqual((self.there / "many" / path.name).read_bytes(), path.read_bytes())
        files = Pycos().network.files
        self.assertLessEqual(len(files.calls._threads), pycoslite._CALLS)
        self.assertEqual(files.carriers._threads, [])

    def test_a_busy_receiver_is_asked_again(self):
        self.begin(pycoslite._SMALL_FILE + 1)
        peer = self.process.agent.peer
        offer = {"dir": "", "place": "", "size": 100_000, "mtime_ns": 0, "mode": 0o600, "overwrite": True}
        asked = []

        def occupy():
            for number in range(1, pycoslite._MOST_INCOMING + 2):
                reply, _ = yield peer.request("file.offer", dict(offer, id=1 << 40 | number, name="n%d" % number))
                asked.append(reply["state"])
        Pycos().network.spawn(occupy).value(COME_S)
        self.assertEqual(asked, ["go"] * pycoslite._MOST_INCOMING + ["busy"])
        pauses: List[float] = []
        suspend = pycoslite.Suspend

        def noting(pause_s: Any) -> Any:
            pauses.append(pause_s)
            if len(pauses) == 2:
                for number in range(1, pycoslite._MOST_INCOMING + 1):
                    peer.notify("file.abort", {"id": 1 << 40 | number})
            return suspend(pause_s)
        with mock.patch.object(pycoslite, "Suspend", noting):
            self.assertEqual(self.send(), 0)
        self.assertGreaterEqual(len(pauses), 2)
        self.wait_until(lambda: self.names() == ["data.bin"])


class CheckTest(TransferTestCase):
    """Which checksum is made of a large file, where, and how often."""

    SIZE = 1_000_001

    def setUp(self) -> None:
        super().setUp()
        self.kinds: List[str] = []              # of the checksums that were asked for
        self.read = 0                           # times that some of the file was read for one
        check_with, read = pycoslite._Outgoing.check_with, pycoslite._Outgoing._read

        def asked(outgoing: Any, kind: Any) -> None:
            self.kinds.append(kind)
            check_with(outgoing, kind)

        def reading(outgoing: Any, *args: Any) -> Any:
            self.read += 1
            return read(outgoing, *args)
        self.enter(mock.patch.object(pycoslite._Outgoing, "check_with", asked))
        self.enter(mock.patch.object(pycoslite._Outgoing, "_read", reading))
        self.begin(self.SIZE)

    @unittest.skipUnless(pycoslite._network_stack(), "this system does not tell which network a process is in")
    def test_within_a_host(self):
        self.assertEqual(self.send(), 0)
        self.assertEqual(self.kinds, ["crc32"])

    def test_between_hosts(self):
        for number, stack in enumerate(("", "another host's")):
            with self.subTest(stack), mock.patch.object(pycoslite, "_network_stack", return_value=stack):
                self.assertEqual(self.send(dir=str(number)), 0)
        self.assertEqual(self.kinds, ["sha256"] * 2)

    def test_the_link_protects_what_it_carries(self):
        with through_the_link(), mock.patch.object(pycoslite, "_network_stack", return_value=""):
            self.assertEqual(self.send(), 0)
        self.assertEqual(self.kinds, ["crc32"])

    def test_what_is_changed_on_its_way_is_refused(self):
        def evil(sock: int, file: int, offset: int, count: int) -> int:
            data = bytearray(os.pread(file, min(count, 10_000), offset))
            data[-1] ^= 1
            return os.write(sock, data)
        for stack in (pycoslite._network_stack(), ""):
            with self.subTest(stack), mock.patch.object(pycoslite, "_network_stack", return_value=stack):
                with mock.patch.object(os, "sendfile", evil), self.expect_log("what arrived of it is not what was"):
                    self.assertEqual(self.send(), -1)
        self.wait_until(lambda: self.names() == [])

    def test_kinds_that_there_are_not(self):
        outgoing = pycoslite._Outgoing(self.process.agent.peer, str(self.file), self.file.stat(), None, None)
        for kind in ("md5", None, 7, ["crc32"]):
            with self.subTest(kind), self.assertRaisesRegex(pycoslite.ProtocolError, "checksum of the kind"):
                outgoing.check_with(kind)

    def test_a_file_for_many_peers_is_read_for_it_once(self):
        known = Pycos().network.files.checksums
        with mock.patch.object(pycoslite, "_SETTLED_NS", -10 ** 12):        # as if it had been there for long
            self.assertEqual(self.send(dir="a"), 0)
            self.assertGreater(self.read, 0)
            self.read = 0
            self.assertEqual(self.send(dir="b"), 0)
            self.assertEqual((self.read, len(known)), (0, 1))
            self.write(os.urandom(self.SIZE))           # another content, with the size and the time of the first
            self.assertEqual(self.send(dir="c"), 0)
            self.assertEqual((self.there / "c" / "data.bin").read_bytes(), self.file.read_bytes())
            for key in known:
                known[key] = "0" * 8                    # as if it had been changed without a trace
            with self.expect_log("what arrived of it is not what was"):
                self.assertEqual(self.send(dir="d"), -1)
            self.assertEqual(self.send(dir="d"), 0)

    def test_a_file_that_was_changed_a_moment_ago_may_change_again(self):
        self.assertEqual(self.send(), 0)
        self.assertEqual(Pycos().network.files.checksums, {})

    def test_no_more_checksums_are_kept_than_agreed(self):
        with mock.patch.object(pycoslite, "_SETTLED_NS", -10 ** 12), mock.patch.object(pycoslite, "_MOST_KNOWN", 2):
            for number in range(4):
                self.write(os.urandom(self.SIZE))
                self.assertEqual(self.send(dir=str(number)), 0)
        self.assertEqual(len(Pycos().network.files.checksums), 2)


@unittest.skipUnless(pycoslite._network_stack(), "this system does not tell which network a process is in")
class InnerLineTest(TestCase):
    """Whether a connection is known to stay in the system."""

    def ends(self, relayed: bool) -> List[Any]:
        """Both ends of a connection, or of two with a relay between them, in the place of peers."""
        sockets = [socket.create_server(("127.0.0.1", 0))]
        self.addCleanup(lambda: [sock.close() for sock in sockets])
        for _ in range(1 + relayed):
            sockets += [socket.create_connection(sockets[0].getsockname()), sockets[0].accept()[0]]
        dialled, accepted = sockets[1], sockets[-1]
        return [SimpleNamespace(link=SimpleNamespace(sock=sock)) for sock in (dialled, accepted)]

    def test_both_ends_of_a_connection_agree_and_nobody_else(self):
        here, there = self.ends(relayed=False)
        line = pycoslite._inner_line(here, "token")
        self.assertRegex(line, "^[0-9a-f]{64}$")
        self.assertEqual(pycoslite._inner_line(there, "token"), line)
        for token in ("another token", "\ud800"):
            self.assertRegex(pycoslite._inner_line(there, token), "^(?!%s)[0-9a-f]{64}$" % line)
        with mock.patch.object(pycoslite, "_network_stack", return_value="another"):
            self.assertNotEqual(pycoslite._inner_line(there, "token"), line)

    def test_a_relay_is_noticed(self):
        here, there = self.ends(relayed=True)
        self.assertNotEqual(pycoslite._inner_line(here, "token"), pycoslite._inner_line(there, "token"))

    def test_what_is_not_known_to_stay_here(self):
        here, _ = self.ends(relayed=False)
        with mock.patch.object(pycoslite, "_is_near", return_value=False):
            self.assertEqual(pycoslite._inner_line(here, "token"), "")
        here.link.sock.close()
        self.assertEqual(pycoslite._inner_line(here, "token"), "")
        self.assertEqual(pycoslite._inner_line(SimpleNamespace(link=None), "token"), "")


class QuotaTest(TransferTestCase):
    """`max_total_size`: of all files together."""

    def sized(self, name: str, size: int) -> Path:
        """Another file to be sent."""
        path = self.file.with_name(name)
        path.write_bytes(os.urandom(size))
        return path

    def test_files_beyond_it_are_refused_until_others_have_gone(self):
        self.begin(100, "max_total_size=250_000")
        large, small = self.sized("large", 200_000), self.sized("small", 50_000)
        self.assertEqual(self.call("send_file", large), 0)
        with self.expect_log("was not sent .*it has 100 bytes, and of the 250000 .*max_total_size. 0 are left"):
            self.assertEqual((self.call("send_file", small, dir="a"), self.send()), (0, -1))
        self.assertEqual(self.names(), ["a", "a/small", "large"])
        self.assertEqual(self.call("del_file", small, dir="a"), 0)
        self.assertEqual(self.send(), 0)
        (self.there / "large").unlink()                 # by the program that used it
        self.assertEqual(self.call("send_file", self.sized("larger", 249_900)), 0)

    def test_a_file_counts_besides_the_one_it_replaces(self):
        self.begin(100, "max_total_size=250")
        for size in (110, 120, 115):
            self.write(os.urandom(size))
            self.assertEqual(self.send(overwrite=True), 0)
        self.write(os.urandom(140))
        with self.expect_log("it has 140 bytes, and of the 250 .* 135 are left"):
            self.assertEqual(self.send(overwrite=True), -1)
        self.assertEqual((self.there / "data.bin").stat().st_size, 115)

    def test_files_on_their_way_count(self):
        self.begin(10, "max_total_size=1_000_000")
        peer = self.process.agent.peer
        offer = {"dir": "", "place": "", "size": 400_000, "mtime_ns": 0, "mode": 0o600, "overwrite": True}
        answers: Dict[int, str] = {}

        def ask(number):
            try:
                reply, _ = yield peer.request("file.offer", dict(offer, id=1 << 40 | number, name="n%d" % number))
                answers[number] = reply["state"]
            except pycoslite.PycosError as error:
                answers[number] = str(error)
        network = Pycos().network
        for task in [network.spawn(ask, number) for number in range(4)]:
            task.value(COME_S)
        begun = [number for number, answer in answers.items() if answer == "go"]
        self.assertEqual(len(begun), 2)
        for number, answer in answers.items():
            self.assertRegex(answer, "go|max_total_size. 200000 are left")
        peer.notify("file.abort", {"id": 1 << 40 | begun[0]})

        def fits() -> bool:
            network.spawn(ask, 7).value(COME_S)
            return answers[7] == "go"
        self.wait_until(fits)

    def test_the_directory_is_walked_through_when_that_matters(self):
        base = self.temp_dir()
        for number in range(5):
            (base / str(number)).write_bytes(bytes(10))
        quota = pycoslite._Quota(str(base), 100)
        with mock.patch.object(os, "walk", side_effect=os.walk) as walk:
            for number in range(5):
                quota.claim("t%d" % number, 10)
                (base / ("t%d" % number)).write_bytes(bytes(5))
            self.assertEqual(walk.call_count, 1)
            with self.assertRaisesRegex(pycoslite.PycosError, "it has 10 bytes, and of the 100 .* 0 are left"):
                quota.claim("another", 10)
            self.assertEqual(walk.call_count, 2)
            quota.settle("t0", 0)
            quota.settle("t0", 1000)                    # again: it counts no more
            quota.settle("t1", 0)
            quota.claim("another", 10)
            self.assertEqual(walk.call_count, 2)
        quota.limit = 0
        quota.claim("huge", 1 << 60)


class ReceivedHereTest(TransferTestCase):
    """This process receives, so that its disk can be what the test wants."""

    def setUp(self) -> None:
        super().setUp()
        self.begin()
        self.here = self.temp_dir()
        Pycos().network.files.begin(str(self.here), None)
        self.write(b"new")

    def receive(self, meanwhile: Callable) -> Any:
        """Have the agent send the file, and `meanwhile()` called when all of it is written; what it got."""
        mark = pycoslite._Folder.mark

        def with_trouble(*args: Any) -> None:
            meanwhile()
            mark(*args)
        with mock.patch.object(pycoslite._Folder, "mark", with_trouble):
            return self.ask(self.process.agent, "send_file", Pycos().location, str(self.file))

    def test_a_mistake_in_this_program_ends_the_transfer(self):
        self.write(os.urandom(pycoslite._SMALL_FILE + 1))
        with self.expect_log("what was not foreseen"):
            with mock.patch.object(pycoslite._Incoming, "_next_bytes", side_effect=ValueError("what was not foreseen")):
                sent = self.ask(self.process.agent, "send_file", Pycos().location, str(self.file))
        self.assertEqual(sent, -1)
        self.wait_until(lambda: not Pycos().network.files.incoming)
        self.assertEqual(os.listdir(self.here), [])

    def test_a_slow_disk_delays_nobody_else(self):
        entered, go_on = threading.Event(), threading.Event()
        self.addCleanup(go_on.set)
        done: List[Any] = []

        def slow() -> None:
            entered.set()
            go_on.wait(COME_S)
        asker = threading.Thread(target=lambda: done.append(self.receive(slow)))
        asker.start()
        self.assertTrue(entered.wait(COME_S))
        self.assertEqual(self.ask(self.process.agent, "echo", 7), 7)
        self.assertEqual(done, [])
        go_on.set()
        asker.join(COME_S)
        self.assertEqual(done, [0])

    def synced(self) -> List[str]:
        """What was written out while the file was received: "file", or "directory"."""
        fsync = os.fsync
        found: List[str] = []

        def noting(fd: int) -> None:
            found.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
            fsync(fd)
        with mock.patch.object(os, "fsync", noting), mock.patch.object(pycoslite, "_SYNC_EVERY", 500_000):
            self.assertEqual(self.receive(lambda: None), 0)
        self.assertEqual((self.here / "data.bin").read_bytes(), self.file.read_bytes())
        return found

    def test_nothing_is_written_out_unless_that_is_asked_for(self):
        self.write(os.urandom(2_000_000))
        self.assertEqual(self.synced(), [])

    def test_a_large_file_is_written_out_along_the_way(self):
        self.setting(sync_files=1)
        self.write(os.urandom(2_000_000))
        found = self.synced()
        self.assertGreaterEqual(found.count("file"), 3)
        self.assertEqual(found[-2:], ["file", "directory"] if pycoslite._DIR_FDS else ["file", "file"])

    def test_a_small_file_is_written_out(self):
        self.setting(sync_files=1)
        self.assertEqual(self.synced(), ["file", "directory"] if pycoslite._DIR_FDS else ["file"])

    def test_a_link_put_in_its_place_meanwhile_is_replaced_and_not_followed(self):
        outside = self.outside / "outside"
        outside.write_text("untouched")
        self.assertEqual(self.receive(lambda: (self.here / "data.bin").symlink_to(outside)), -1)
        self.assertEqual(outside.read_text(), "untouched")
        self.assertEqual([path.name for path in self.here.iterdir()], ["data.bin"])

    def test_no_room(self):
        with mock.patch.object(pycoslite._Folder, "room", lambda folder: 2):
            self.assertEqual(self.receive(lambda: None), -1)
            incoming = pycoslite._Incoming(None, dict(OFFER))       # type: ignore[arg-type]
            with self.assertRaisesRegex(pycoslite.PycosError, "it has 3 bytes, and the disk there has room for 1"):
                incoming.open(str(self.here), 1)
        self.assertEqual(list(self.here.iterdir()), [])
        self.assertEqual(self.receive(lambda: None), 0)

    def test_the_empty_directory_is_deleted_meanwhile(self):
        """It is not empty, but nothing is to be seen in it yet."""
        incoming = pycoslite._Incoming(None, dict(OFFER, dir="a/b"))        # type: ignore[arg-type]
        incoming.open(str(self.here), 0)
        self.addCleanup(lambda: incoming.folder.close())
        with pycoslite._Folder(str(self.here), "a/b", create=False) as folder:
            folder.prune()
        self.assertEqual((self.here / "a").exists(), incoming._named)
        incoming._write(b"new")
        incoming.complete(incoming._digest.hexdigest())
        self.assertEqual((self.here / "a" / "b" / "data.bin").read_bytes(), b"new")

    def test_another_file_got_the_name_meanwhile(self):
        incoming = pycoslite._Incoming(None, dict(OFFER))           # type: ignore[arg-type]
        self.assertEqual(incoming.open(str(self.here), 0), {"state": "go", "check": "sha256"})
        (self.here / "data.bin").write_text("came first")
        incoming._write(b"new")
        with self.assertRaisesRegex(pycoslite.PycosError, "another file has got its name"):
            incoming.complete(incoming._digest.hexdigest())
        incoming._discard()
        incoming.folder.close()
        self.assertEqual((self.here / "data.bin").read_text(), "came first")
        self.assertEqual([path.name for path in self.here.iterdir()], ["data.bin"])


    def test_small_files_that_wait_for_the_disk_are_limited(self):
        files, peer = Pycos().network.files, self.process.agent.peer
        self.addCleanup(setattr, files, "storing", 0)
        files.storing = 1
        with mock.patch.object(pycoslite, "_MOST_STORED", 3), self.assertRaises(StopIteration) as answered:
            next(files._on_offer(peer, dict(OFFER, digest="%08x" % binascii.crc32(b"new")), b"new"))
        self.assertEqual((answered.exception.value, files.storing), ({"state": "busy"}, 1))


class ReceivedWithoutDescriptorsTest(ReceivedHereTest):
    """The same where the platform has no calls relative to an open directory."""

    def setUp(self) -> None:
        super().setUp()
        self.enter(mock.patch.object(pycoslite, "_DIR_FDS", False))


class ExchangedDirectoryTest(TestCase):
    """What is done there about a directory that becomes a link to elsewhere meanwhile."""

    def setUp(self) -> None:
        super().setUp()
        patch = mock.patch.object(pycoslite, "_DIR_FDS", False)
        patch.start()
        self.addCleanup(patch.stop)
        self.here, self.elsewhere = self.temp_dir(), self.temp_dir()
        self.incoming = pycoslite._Incoming(None, dict(OFFER, dir="a/b"))   # type: ignore[arg-type]
        self.addCleanup(self.incoming._close)

    def swap(self) -> None:
        """Put a link in the place of the upper one of two directories."""
        (self.here / "a").rename(self.here / "kept")
        (self.elsewhere / "b").mkdir(exist_ok=True)
        (self.here / "a").symlink_to(self.elsewhere)

    def nothing_elsewhere(self) -> None:
        """Nothing has been led astray."""
        self.assertEqual([str(path.relative_to(self.elsewhere)) for path in self.elsewhere.rglob("*")], ["b"])

    def test_links_are_refused(self):
        self.swap_made_first()
        with self.assertRaisesRegex(pycoslite.MisuseError, "does not stay below"):
            self.incoming.open(str(self.here), 0)
        with mock.patch.object(pycoslite, "confined_path", lambda base, name: os.path.join(base, name)):
            with self.assertRaisesRegex(pycoslite.MisuseError, "a, on the way to it, is no directory"):
                self.incoming.open(str(self.here), 0)
        self.nothing_elsewhere()

    def swap_made_first(self) -> None:
        """The link is there before anything else."""
        (self.here / "a").mkdir()
        self.swap()

    def test_junctions_are_refused(self):
        (self.here / "a").mkdir()
        found = SimpleNamespace(st_mode=stat.S_IFDIR | 0o700, st_dev=1, st_ino=2, st_reparse_tag=0xA0000003)
        with mock.patch.object(os, "lstat", return_value=found):
            self.assertRaises(pycoslite.MisuseError, pycoslite._which_directory, str(self.here / "a"))
        found.st_reparse_tag = 0x9000001A               # a directory of a cloud, which is one all the same
        with mock.patch.object(os, "lstat", return_value=found):
            self.assertEqual(pycoslite._which_directory(str(self.here / "a")), (1, 2))

    def test_a_directory_exchanged_before_the_file_is_made(self):
        look = pycoslite._Folder.look

        def late(folder: Any, name: str) -> Any:
            found = look(folder, name)
            self.swap()
            return found
        with mock.patch.object(pycoslite._Folder, "look", late):
            with self.assertRaisesRegex(pycoslite.MisuseError, "a, on the way to it, is no directory"):
                self.incoming.open(str(self.here), 0)
        self.nothing_elsewhere()

    def test_a_directory_exchanged_at_the_moment_the_file_is_made(self):
        made, opened = os.open, []

        def late(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & os.O_EXCL:
                self.swap()
                opened.append(path)
            return made(path, flags, *args, **kwargs)
        with mock.patch.object(os, "open", late):
            with self.assertRaisesRegex(pycoslite.MisuseError, "a, on the way to it, is no directory"):
                self.incoming.open(str(self.here), 0)
        self.assertEqual(len(opened), 1)
        self.nothing_elsewhere()

    def test_a_directory_that_was_exchanged_twice_at_that_moment(self):
        """The path leads where it did, and the file is elsewhere."""
        made = os.open

        def late(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if not flags & os.O_EXCL:
                return made(path, flags, *args, **kwargs)
            self.swap()
            try:
                return made(path, flags, *args, **kwargs)
            finally:
                (self.here / "a").unlink()
                (self.here / "kept").rename(self.here / "a")
        with mock.patch.object(os, "open", late), self.assertRaises((pycoslite.MisuseError, OSError)):
            self.incoming.open(str(self.here), 0)
        left, = (path for path in self.elsewhere.rglob("*") if path.is_file())
        self.assertEqual(left.stat().st_size, 0)        # nothing of the file went there

    def test_a_directory_exchanged_before_the_file_gets_its_name(self):
        self.assertEqual(self.incoming.open(str(self.here), 0)["state"], "go")
        self.incoming._write(b"new")
        pin = pycoslite._Folder._pin

        def late(path: str) -> Any:
            self.swap()
            (self.elsewhere / "b" / self.incoming.temporary).write_text("as it was")
            (self.elsewhere / "b" / "data.bin").write_text("as it was")
            return pin(path)
        with mock.patch.object(pycoslite._Folder, "_pin", staticmethod(late)):
            with self.assertRaisesRegex(pycoslite.MisuseError, "a, on the way to it, is no directory"):
                self.incoming.complete(self.incoming._digest.hexdigest())
        with self.expect_log("cannot be removed"):
            self.incoming._discard()
        self.assertEqual({path.name: path.read_text() for path in (self.elsewhere / "b").iterdir()},
                         {"data.bin": "as it was", self.incoming.temporary: "as it was"})

    def test_another_directory_in_its_place(self):
        self.assertEqual(self.incoming.open(str(self.here), 0)["state"], "go")
        (self.here / "a" / "b").rename(self.here / "a" / "c")
        (self.here / "a" / "b").mkdir()
        self.incoming._write(b"new")
        with self.assertRaisesRegex(pycoslite.MisuseError, "the directory b was exchanged for another one"):
            self.incoming.complete(self.incoming._digest.hexdigest())
        self.assertEqual(list((self.here / "a" / "b").iterdir()), [])

    def test_a_link_in_the_place_of_what_is_to_be_deleted(self):
        (self.here / "a" / "b").mkdir(parents=True)
        with pycoslite._Folder(str(self.here), "a/b", create=False) as folder:
            self.swap()
            (self.elsewhere / "b" / "data.bin").write_text("as it was")
            self.assertRaises(pycoslite.MisuseError, folder.look, "data.bin")
            self.assertRaises(pycoslite.MisuseError, folder.remove, "data.bin")
            (self.elsewhere / "b" / "data.bin").unlink()
            folder.prune()
        self.nothing_elsewhere()

    def test_room_is_known(self):
        with pycoslite._Folder(str(self.here), "", create=False) as folder:
            self.assertGreater(folder.room(), 0)
            with mock.patch.object(shutil, "disk_usage", side_effect=OSError("it does not tell")):
                self.assertIsNone(folder.room())


class ConfinementTest(TransferTestCase):
    def test_nothing_is_written_or_deleted_outside(self):
        self.begin()
        keep = self.outside / "keep"
        keep.mkdir()
        (keep / "data.bin").write_text("untouched")
        (self.outside / "base-twin").mkdir()
        (self.there / "link").symlink_to(keep)
        for folder in OUTSIDE:
            with self.subTest(folder):
                with self.expect_log("was not sent"):
                    self.assertEqual(self.send(dir=folder, overwrite=True), -1)
                with self.expect_log("was not deleted"):
                    self.assertEqual(self.call("del_file", self.file, dir=folder), -1)
        self.assertEqual((keep / "data.bin").read_text(), "untouched")
        self.assertEqual(sorted(path.name for path in self.outside.iterdir()), ["base", "base-twin", "keep"])
        self.assertEqual(self.names(), ["link"])

    def test_what_has_the_name_and_is_no_file(self):
        self.begin()
        outside = self.outside / "outside"
        outside.write_text("untouched")
        for make in (lambda path: path.symlink_to(outside), os.mkfifo, Path.mkdir):
            path = self.there / "data.bin"
            make(path)
            with self.expect_log("was not sent"):
                self.assertEqual(self.send(overwrite=True), -1)
            with self.expect_log("was not deleted"):
                self.assertEqual(self.call("del_file", self.file), -1)
            path.rmdir() if path.is_dir() else path.unlink()
        self.assertEqual(outside.read_text(), "untouched")

    def test_a_hard_link_is_replaced_and_not_written_through(self):
        self.begin()
        outside = self.outside / "outside"
        outside.write_text("untouched")
        os.link(outside, self.there / "data.bin")
        self.assertEqual(self.send(overwrite=True), 0)
        self.assertEqual(outside.read_text(), "untouched")

    def test_names_that_are_no_names(self):
        base = self.temp_dir()
        for name in ("", ".", "..", "a/b", "/a", "nul\0", "../a"):
            with self.subTest(name), self.assertRaises((pycoslite.MisuseError, ValueError)):
                pycoslite._plain_name(str(base), "", name)

    def test_offers_that_no_program_of_ours_makes(self):
        self.begin()
        peer = self.process.agent.peer
        good = {"id": 9, "name": "n", "dir": "", "place": "", "size": 100_000, "mtime_ns": 0, "mode": 0o600,
                "overwrite": True}
        wrong = [("id", -1), ("id", "9"), ("name", None), ("name", ""), ("name", "a/b"), ("dir", 7), ("size", -1),
                 ("size", 1.5), ("size", True), ("size", 1 << 64), ("mtime_ns", 1 << 70), ("mode", -1), ("mode", None),
                 ("overwrite", 1), ("place", "nowhere"), ("token", []), ("digest", "0" * 64), ("name", "\ud800")]

        def offer(**changed):
            try:
                yield peer.request("file.offer", dict(good, **changed))
            except pycoslite.PycosError as error:
                return str(error)
            return "it was taken"
        for name, value in wrong:
            with self.subTest(name, value=value):
                refused = Pycos().network.spawn(offer, **{name: value}).value(COME_S)
                self.assertNotEqual(refused, "it was taken")
                self.assertNotIn("Traceback", refused)
        self.assertEqual(self.names(), [])
        self.assertEqual(self.send(), 0)

    def test_names_that_are_none_on_windows(self):
        for part in ("NUL", "con.txt", "lpt1", "a:b", "a.", "a ", "q?", "x\x01", "Com9 .log"):
            self.assertTrue(pycoslite._misleads_windows(part), part)
        for part in ("nullable", "console.txt", "com10", "a.b", ".hidden", "a b"):
            self.assertFalse(pycoslite._misleads_windows(part), part)

    @unittest.skipUnless(pycoslite._DIR_FDS, "needs files relative to an open directory")
    def test_a_directory_that_is_swapped_for_a_link_leads_nowhere_else(self):
        base = self.temp_dir()
        other = self.temp_dir()
        with pycoslite._Folder(str(base), "a/b", create=True) as folder:
            (base / "a" / "b").rename(base / "a" / "c")
            (base / "a" / "b").symlink_to(other)
            with mock.patch.object(pycoslite, "_NAMELESS", 0):
                os.close(folder.create("file")[0])
            folder.prune()
        self.assertEqual(list(other.iterdir()), [])
        self.assertTrue((base / "a" / "c" / "file").exists())
        (base / "swapped").symlink_to(other)
        self.assertRaises(OSError, os.open, "swapped", os.O_DIRECTORY | pycoslite._NO_LINKS,
                          dir_fd=self.enter(_directory(base)))


def _directory(path: Path) -> Any:
    """An open directory, as a context."""
    import contextlib

    @contextlib.contextmanager
    def opened():
        fd = os.open(path, os.O_RDONLY)
        try:
            yield fd
        finally:
            os.close(fd)
    return opened()


class InterruptionTest(TransferTestCase):
    def interrupt(self, how: Any, **kwargs: Any) -> Any:
        """Send a large file over an old one, call `how(task)` when some of it has arrived; what send_file gives."""
        (self.there / "data.bin").write_text("the old one")
        self.write(bytes(200_000_000))
        begun = threading.Event()

        def sending():
            return (yield Pycos().send_file(self.process.at, self.file, overwrite=True,
                                            progress=lambda done, size: begun.set(), **kwargs))
        task = Task(sending)
        self.assertTrue(begun.wait(COME_S))
        how(task)
        return task.value(COME_S)

    def unharmed(self) -> None:
        """The old file is as it was, and nothing else is there."""
        self.wait_until(lambda: self.names() == ["data.bin"])
        self.assertEqual((self.there / "data.bin").read_text(), "the old one")

    def test_the_disk_takes_no_more(self):
        self.begin()
        self.assertEqual(self.ask(self.process.agent, "largest_file", 20_000_000), "limited")
        with self.expect_log("was not sent to .*File too large"):
            self.assertEqual(self.interrupt(lambda task: None), -1)
        self.unharmed()

    def test_the_file_becomes_shorter(self):
        self.begin()
        with self.expect_log("was not sent to .*become shorter|not what was sent"):
            self.assertEqual(self.interrupt(lambda task: os.truncate(self.file, 10)), -1)
        self.unharmed()

    def test_the_sender_gives_up(self):
        self.begin()
        self.assertIsNone(self.interrupt(lambda task: task.terminate()))
        self.unharmed()
        self.wait_until(lambda: not Pycos().network.files.outgoing)
        self.write(b"small")
        self.assertEqual(self.send(overwrite=True), 0)

    def test_the_sender_goes_away(self):
        self.begin()
        with self.lost_messages():
            self.interrupt(lambda task: Pycos().terminate())
        with self.log.changed:          # whether the call learns of the end, or is ended before, is open
            self.log.expected += [r for r in self.log.records if "was not sent" in r.getMessage()]
        self.unharmed()

    def test_the_receiver_stops(self):
        self.begin()
        with self.expect_log("nothing of it was taken for 0.5 seconds"):
            self.assertEqual(self.interrupt(lambda task: self.process.signal(signal.SIGSTOP), timeout=0.5), -1)
        self.process.signal(signal.SIGCONT)
        self.unharmed()

    def test_the_receiver_is_killed(self):
        self.begin()
        with self.expect_log("was not sent"), self.lost_messages():
            self.assertEqual(self.interrupt(lambda task: self.process.signal(signal.SIGKILL)), -1)
        self.assertEqual((self.there / "data.bin").read_text(), "the old one")
        if pycoslite._NAMELESS and self.takes_nameless_files():
            self.assertEqual(self.names(), ["data.bin"])

    def takes_nameless_files(self) -> bool:
        """Whether the file system of the test's directory does."""
        with pycoslite._Folder(str(self.temp_dir()), ".", create=False) as folder:
            fd, named = folder.create("probe")
            os.close(fd)
        return not named

    def test_more_than_was_announced_and_a_wrong_digest(self):
        self.begin()
        peer = self.process.agent.peer

        def forge(name, data, digest):
            offer = {"id": 77, "name": name, "dir": "", "place": "", "size": 4, "mtime_ns": 0, "mode": 0o600,
                     "overwrite": True}
            yield peer.request("file.offer", offer)
            peer.send_frame(pycoslite.CHUNK, pycoslite._TRANSFER.pack(77), data)
            try:
                yield peer.request("file.end", {"id": 77, "digest": digest})
            except pycoslite.PycosError as error:
                return str(error)
            return "it was taken"
        network = Pycos().network
        for data, digest in ((b"good", "0" * 64), (b"more than four", "0" * 64), (b"few", "0" * 64)):
            ended = network.spawn(forge, "forged", data, digest)
            self.assertRegex(ended.value(COME_S), "what arrived of it is not what was sent|more of it came than was|"
                             "it was given up there")       # for a reason of which its sender has been told then
        self.assertEqual(self.names(), [])


class InterruptionOfTheLinkTest(InterruptionTest):
    """The same for files that go through the link."""

    def setUp(self) -> None:
        super().setUp()
        self.enter(through_the_link())


class DeleteTest(TransferTestCase):
    def test_empty_directories_go_too(self):
        self.begin()
        self.assertEqual((self.send(dir="a/b"), self.send(dir="a")), (0, 0))
        self.assertEqual(self.call("del_file", self.file, dir="a/b"), 0)
        self.assertEqual(self.names(), ["a", "a/data.bin"])
        self.assertEqual(self.call("del_file", self.file, dir="a"), 0)
        self.assertEqual(self.names(), [])
        self.assertTrue(self.there.exists())
        with self.expect_log("was not deleted at .*No such file"):
            self.assertEqual(self.call("del_file", self.file, dir="a"), -1)
        with self.expect_log("was not deleted at .*there is no file"):
            self.assertEqual(self.call("del_file", self.file), -1)


class DestPathTest(TestCase):
    """The property of this process."""

    def test_dest_path(self):
        base = self.temp_dir()
        node = Pycos(host="127.0.0.1", tcp_port=0, secret=SECRET, discover_peers=False, dest_path=str(base / "files"),
                     max_file_size=7, max_total_size=8)
        self.addCleanup(node.terminate)
        self.assertEqual((node.dest_path, node.max_file_size, node.max_total_size), (str(base / "files"), 7, 8))
        self.assertTrue((base / "files").is_dir())
        node.dest_path = base / "files" / "below"
        self.assertEqual(node.dest_path, str(base / "files" / "below"))
        node.dest_path = "/some/where"
        self.assertEqual(node.dest_path, str(base / "files" / "some" / "where"))
        self.assertTrue(os.path.isdir(node.dest_path))
        with self.assertRaises(pycoslite.MisuseError):
            node.dest_path = "../out"
        node.max_file_size = node.max_total_size = None
        self.assertIsNone(node.max_file_size)
        self.assertIsNone(node.max_total_size)

    def test_nothing_can_be_written_for_a_while(self):
        """As in some containers: no reason not to start."""
        nowhere = str(self.temp_dir() / "file" / "below")
        Path(nowhere).parent.touch()
        missing = FileNotFoundError(2, "No usable temporary directory found")
        with mock.patch.object(pycoslite.tempfile, "gettempdir", side_effect=missing), \
                mock.patch.dict(os.environ, TMPDIR=nowhere):
            node = Pycos(host="127.0.0.1", tcp_port=0, secret=SECRET, discover_peers=False)
            self.addCleanup(node.terminate)
        with self.assertRaises(NotADirectoryError):
            self.fail(node.dest_path)


if __name__ == "__main__":
    unittest.main()
