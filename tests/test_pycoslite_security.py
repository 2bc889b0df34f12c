"""What strangers can do to a process that listens: nothing is unpickled, little is kept, everything is cut in time."""
from __future__ import annotations

import contextlib
import pickle
import random
import select
import socket
import struct
import threading
from typing import Any, Iterator, List

import pycoslite
from pycoslite import AuthenticationError, Location, Pycos, Refusal, Task
from tests.support import free_port
from tests.test_pycoslite_network import COME_S, HOST, NetworkTestCase

CANARY = pickle.dumps(("cos", "system", "echo unpickled"))


class SecurityTestCase(NetworkTestCase):
    """A listening process (this one) and sockets of strangers."""

    def connect(self, node: Pycos) -> socket.socket:
        """A stranger's connection, with what this process says first already read."""
        sock = socket.create_connection((HOST, node.location.port), timeout=COME_S)
        self.addCleanup(sock.close)
        self.assertEqual(sock.recv(4096)[:4], b"PYCL")
        return sock

    def assert_closed(self, sock: socket.socket) -> None:
        """The other end closes the connection."""
        try:
            while sock.recv(65536):
                pass
        except ConnectionError:
            pass

    @contextlib.contextmanager
    def pickle_forbidden(self) -> Iterator[List[str]]:
        """Within the block unpickling anything is noted and fails."""
        used: List[str] = []

        def forbidden(*args: Any, **kwargs: Any) -> Any:
            used.append("unpickled %r" % (args,))
            raise AssertionError("something was unpickled")
        before = pickle.loads, pickle.load, pickle.Unpickler
        pickle.loads = pickle.load = pickle.Unpickler = forbidden        # type: ignore[assignment,misc]
        defaults, pycoslite.deserialize.__defaults__ = pycoslite.deserialize.__defaults__, (forbidden,)
        try:
            self.assertRaises(AssertionError, pycoslite.deserialize, b"N.")
            used.clear()
            yield used
        finally:
            pycoslite.deserialize.__defaults__ = defaults
            pickle.loads, pickle.load, pickle.Unpickler = before         # type: ignore[misc]

    def assert_serves(self, node: Pycos) -> None:
        """A process with the secret still gets through."""
        with self.agent() as process:
            self.assertEqual(self.ask(self.find(process), "echo", 1), 1)


class StrangersTest(SecurityTestCase):
    def test_garbage_is_neither_unpickled_nor_kept(self):
        node, choose = self.node(), random.Random(1)
        streams = [CANARY, struct.pack(">I", len(CANARY)) + CANARY, b"\xff" * 100, b"A" + b"\xff" * 200_000,
                   struct.pack(">IB", 1 << 31, 18) + CANARY, b"GET / HTTP/1.1\r\n\r\n"]
        streams += [bytes(choose.randrange(256) for _ in range(choose.randrange(1, 3000))) for _ in range(100)]
        with self.pickle_forbidden() as used, self.expect_log("refused .* is not encrypted although both ends can"):
            for stream in streams:                              # one begins like a START, by chance
                sock = self.connect(node)
                with contextlib.suppress(OSError):              # it may be cut before all is said
                    sock.sendall(stream)
                    sock.shutdown(socket.SHUT_WR)
                self.assert_closed(sock)
        self.assertEqual(used, [])
        self.wait_until(lambda: not node.network.links)
        self.assert_serves(node)

    def test_what_a_connection_may_make_the_process_keep_is_bounded(self):
        node = self.node()
        socks = [self.connect(node) for _ in range(8)]
        for sock in socks:
            sock.sendall(struct.pack(">cBB32s16sH", b"A", 1, 1, bytes(32), bytes(16), 2048))
            sock.sendall(bytes(2000))                   # of 2048 + 32
        self.wait_until(lambda: len(node.network.links) == 8 and all(
            len(link.handshake._inbox) >= 2000 for link in node.network.links))
        self.assertLess(max(len(link.handshake._inbox) for link in node.network.links), 8192)
        for sock in socks:
            sock.sendall(struct.pack(">cBB32s16sH", b"A", 1, 1, bytes(32), bytes(16), 65535))
            self.assert_closed(sock)

    def test_silent_and_dribbling_connections_are_cut_in_time(self):
        self.setting(handshake_s=0.3)
        node = self.node()
        silent, dribbling = self.connect(node), self.connect(node)
        beginning = iter(b"A")
        with contextlib.suppress(ConnectionError):
            while not select.select([dribbling], [], [], 0.02)[0]:      # that it is cut can be read
                dribbling.sendall(bytes((next(beginning, 1),)))
        self.assert_closed(silent)
        self.wait_until(lambda: not node.network.links)

    def test_so_many_may_wait_and_the_oldest_gives_way(self):
        self.setting(pending_handshakes=8, handshake_s=COME_S)
        node = self.node()
        with self.expect_log("^too many connections wait to be authenticated: .*flooding"):
            socks = [self.connect(node) for _ in range(20)]
            for sock in socks[:12]:
                self.assertEqual(sock.recv(100), b"R" + bytes((Refusal.BUSY,)))
                self.assert_closed(sock)
        self.assertEqual(len(node.network.links), 8)
        self.assert_serves(node)

    def test_a_recorded_session_cannot_be_replayed(self):
        node = self.node()
        recorded: List[bytes] = []
        listener = socket.create_server((HOST, 0))
        self.addCleanup(listener.close)

        def relay() -> None:
            near = listener.accept()[0]
            far = socket.create_connection((HOST, node.location.port))
            with near, far:
                back = threading.Thread(target=self.copy, args=(far, near, []))
                back.start()
                self.copy(near, far, recorded)
                back.join()
        thread = threading.Thread(target=relay)
        thread.start()
        with self.agent("peers=['%s:%d']" % listener.getsockname()):
            self.wait_until(lambda: [peer for peer in node.network.peers.values() if peer.online])
        thread.join()
        stream = b"".join(recorded)
        self.assertGreater(len(stream), 300)
        with self.expect_log("refused a connection from 127.0.0.1: the other end has another secret") as lines:
            for _ in range(3):
                sock = self.connect(node)
                with contextlib.suppress(ConnectionError):
                    sock.sendall(stream)
                self.assert_closed(sock)
        self.assertEqual(len(lines), 1)                         # not one for each attempt
        self.assertEqual([peer for peer in node.network.peers.values() if peer.online], [])

    @staticmethod
    def copy(source: socket.socket, target: socket.socket, record: List[bytes]) -> None:
        """Pass on what comes until the end, and record it."""
        with contextlib.suppress(OSError):
            while True:
                data = source.recv(65536)
                if not data:
                    break
                record.append(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def test_datagrams_of_strangers_are_dropped_and_hardly_logged(self):
        port = free_port()
        node = self.node(discover_peers=True, udp_port=port)
        choose = random.Random(2)
        ping = pycoslite.encode_datagram(bytes(32), pycoslite.PING, bytes(16), 1, 255, "pycoslite", bytes(16))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, self.pickle_forbidden() as used, \
                self.expect_log("a process at 127.0.0.1 has another secret") as lines:
            sock.settimeout(COME_S)
            sock.bind((HOST, 0))
            for number in range(2000):
                data = bytearray(ping)
                data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
                sock.sendto(data, (HOST, port))
                sock.sendto(CANARY + bytes(choose.randrange(400)), (HOST, port))
            sock.sendto(ping, (HOST, port))
            answer = sock.recv(4096)
        self.assertLessEqual(len(answer), len(ping))
        self.assertEqual(used, [])
        self.assertLessEqual(len(lines), 10)
        self.assertEqual((len(node.network.links), node.network.peers), (0, {}))


class RefusalsTest(SecurityTestCase):
    def refused(self, process: Any, here: str) -> None:
        """This process does not become a peer of that one, and logs `here`."""
        def contact():
            return (yield Pycos().peer(process.at))
        with self.expect_log(here):
            self.assertEqual(self.do(contact), -1)
        self.assertEqual(Pycos().peers(), [])

    def test_a_wrong_secret_is_one_clear_line_at_both_ends(self):
        self.node()
        with self.agent("secret=another") as process:
            self.refused(process, "no peer: .*the other end has another secret: copy ~/.pycoslite/secret")
            process.wait_for("WARNING refused a connection from 127.0.0.1: the other end has another secret")
            self.assertEqual(process.output.count("WARNING"), 1)

    def test_another_cluster_is_refused(self):
        self.node()
        with self.agent("cluster=another") as process:
            self.refused(process, "no peer: .*belongs to another cluster than this one")
            process.wait_for("WARNING refused a connection from 127.0.0.1: .*another cluster")

    def test_open_and_authenticated_ends_refuse_each_other(self):
        self.node()
        with self.agent("secret=False") as process:
            self.refused(process, "no peer: .*one end demands authentication")
            process.wait_for("WARNING refused a connection from 127.0.0.1: one end demands authentication")

    def test_two_open_ends_talk(self):
        with self.expect_log("running without authentication"):
            self.node(secret=False)
        with self.agent("secret=False") as process:
            self.assertEqual(self.ask(self.find(process), "echo", 1), 1)

    def test_a_port_of_something_else_is_named_so(self):
        self.node()
        with socket.create_server((HOST, 0)) as listener:
            def serve() -> None:
                with listener.accept()[0] as sock:
                    sock.sendall(b"SSH-2.0-OpenSSH\r\n")
                    sock.recv(100)
            thread = threading.Thread(target=serve)
            thread.start()

            def contact():
                return (yield Pycos().peer(Location(*listener.getsockname())))
            with self.expect_log("what answers there is not pycoslite"):
                self.assertEqual(self.do(contact), -1)
            thread.join()

    def test_a_search_with_a_wrong_secret_is_a_warning(self):
        self.node()
        with self.agent("secret=another") as process:
            def search():
                return (yield Task.locate("agent", process.at, timeout=COME_S))
            with self.expect_log("task 'agent' was not found: .*another secret"):
                self.assertIsNone(self.do(search))

    def test_no_address_of_its_own(self):
        node = self.node()

        def connect():
            try:
                yield node.network.connect([Location("localhost", node.location.port)], timeout=COME_S)
            except AuthenticationError as error:
                return str(error)
        result: List[Any] = []
        done = threading.Event()

        def system():
            result.append((yield connect()))
            done.set()
        with self.expect_log("refused a connection from 127.0.0.1: the address leads back", timeout_s=COME_S):
            pycoslite.SysTask(system)
            self.assertTrue(done.wait(COME_S))
        self.assertIn("leads back to this process itself", result[0])
