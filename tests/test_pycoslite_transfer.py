"""Files sent to other processes: what arrives, what is refused, what an interrupted transfer leaves behind."""
from __future__ import annotations

import os
import random
import signal
import threading
import unittest
from pathlib import Path
from typing import Any, Callable, List
from unittest import mock

import pycoslite
from pycoslite import FileStat, Location, Pycos, Task
from tests.cutting import CuttingProxy
from tests.support import TestCase
from tests.test_pycoslite_network import COME_S, SECRET
from tests.test_pycoslite_remote_channels import ServiceTestCase

OUTSIDE = ["../evil", "/evil", "a/../../evil", "base-twin/../../evil", "nul\0", "link", "link/deeper", "..", "n" * 300,
           "..\\evil"]


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
        self.begin(100_000)
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
        fsync = os.fsync

        def with_trouble(fd: int) -> None:
            meanwhile()
            fsync(fd)
        with mock.patch.object(os, "fsync", with_trouble):
            return self.ask(self.process.agent, "send_file", Pycos().location, str(self.file))

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

    def test_a_large_file_is_written_out_along_the_way(self):
        self.write(os.urandom(2_000_000))
        syncs: List[None] = []
        with mock.patch.object(pycoslite, "_SYNC_EVERY", 500_000):
            self.assertEqual(self.receive(lambda: syncs.append(None)), 0)
        self.assertGreaterEqual(len(syncs), 2)
        self.assertEqual((self.here / "data.bin").read_bytes(), self.file.read_bytes())

    def test_a_link_put_in_its_place_meanwhile_is_replaced_and_not_followed(self):
        outside = self.outside / "outside"
        outside.write_text("untouched")
        self.assertEqual(self.receive(lambda: (self.here / "data.bin").symlink_to(outside)), -1)
        self.assertEqual(outside.read_text(), "untouched")
        self.assertEqual([path.name for path in self.here.iterdir()], ["data.bin"])

    def test_no_room(self):
        with mock.patch.object(pycoslite._Folder, "room", lambda folder: 2):
            self.assertEqual(self.receive(lambda: None), -1)
        self.assertEqual(list(self.here.iterdir()), [])
        self.assertEqual(self.receive(lambda: None), 0)

    def test_the_empty_directory_is_deleted_meanwhile(self):
        """It is not empty, but nothing is to be seen in it yet."""
        offer = {"id": 1, "name": "data.bin", "dir": "a/b", "place": "", "size": 3, "mtime_ns": 0, "mode": 0o600,
                 "overwrite": False}
        incoming = pycoslite._Incoming(None, offer)         # type: ignore[arg-type]
        incoming.open(str(self.here), 0)
        self.addCleanup(lambda: incoming.folder.close())
        with pycoslite._Folder(str(self.here), "a/b", create=False) as folder:
            folder.prune()
        self.assertEqual((self.here / "a").exists(), incoming._named)
        incoming._write(b"new")
        incoming.complete(incoming._digest.hexdigest())
        self.assertEqual((self.here / "a" / "b" / "data.bin").read_bytes(), b"new")

    def test_another_file_got_the_name_meanwhile(self):
        offer = {"id": 1, "name": "data.bin", "dir": "", "place": "", "size": 3, "mtime_ns": 0, "mode": 0o600,
                 "overwrite": False}
        incoming = pycoslite._Incoming(None, offer)         # type: ignore[arg-type]
        self.assertEqual(incoming.open(str(self.here), 0), {"state": "go"})
        (self.here / "data.bin").write_text("came first")
        incoming._write(b"new")
        with self.assertRaisesRegex(pycoslite.PycosError, "another file has got its name"):
            incoming.complete(incoming._digest.hexdigest())
        incoming._discard()
        incoming.folder.close()
        self.assertEqual((self.here / "data.bin").read_text(), "came first")
        self.assertEqual([path.name for path in self.here.iterdir()], ["data.bin"])


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
            self.assertRegex(ended.value(COME_S), "what arrived of it is not what was sent|more of it came than was")
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
                     max_file_size=7)
        self.addCleanup(node.terminate)
        self.assertEqual((node.dest_path, node.max_file_size), (str(base / "files"), 7))
        self.assertTrue((base / "files").is_dir())
        node.dest_path = base / "files" / "below"
        self.assertEqual(node.dest_path, str(base / "files" / "below"))
        node.dest_path = "/some/where"
        self.assertEqual(node.dest_path, str(base / "files" / "some" / "where"))
        self.assertTrue(os.path.isdir(node.dest_path))
        with self.assertRaises(pycoslite.MisuseError):
            node.dest_path = "../out"
        node.max_file_size = None
        self.assertIsNone(node.max_file_size)


if __name__ == "__main__":
    unittest.main()
