"""AsyncSocket: every row of the feature list (A01-A21), the ways out of a wait, TLS with real certificates."""
from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import unittest
import warnings
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pycoslite
from pycoslite import AsyncSocket, MisuseError, MonitorStatus, ProtocolError, Task
from tests.support import TestCase

ROWS: Dict[str, str] = {
    "A01": "test_wraps_a_socket",
    "A02": "test_connect_gives_0_or_the_right_error",
    "A03": "test_accept_gives_a_socket_and_an_address",
    "A04": "test_recv_gives_what_is_there_and_then_the_end",
    "A05": "test_recvall_gives_exactly_so_much",
    "A06": "test_datagrams",
    "A07": "test_send_gives_a_count",
    "A08": "test_datagrams",
    "A09": "test_sendall_sends_everything",
    "A10": "test_messages_keep_their_borders",
    "A11": "test_messages_that_are_cut_off_or_too_long",
    "A12": "test_timeouts_raise_socket_timeout",
    "A13": "test_timeouts_are_told",
    "A14": "test_default_timeout_is_for_new_sockets",
    "A15": "test_blocking_sockets_serve_threads",
    "A16": "test_close_ends_the_waits_of_other_tasks",
    "A17": "test_unwrap_gives_the_socket_back",
    "A18": "test_create_connection_binds_and_connects",
    "A19": "test_oldest_tls_version_can_be_set",
    "A20": "test_context_manager_and_order",
    "A21": "test_one_task_reads_while_another_writes",
}

BIG = os.urandom(1 << 16) * 64          # more than a socket's buffers hold


class SocketCase(TestCase):
    """Runs test bodies as tasks; the kernel and everything in it must be gone afterwards."""

    def setUp(self) -> None:
        self.addCleanup(pycoslite.stop_default)

    def task(self, body: Any, *args: Any) -> Any:
        """Run one task to its end; its exit value, or a failure with its traceback."""
        task = Task(body, *args)
        value = task.value(60)
        self.assertFalse(task.is_alive(), "the task has not ended")
        if isinstance(value, MonitorStatus):
            self.fail(value.value)
        return value

    def keep(self, thing: Any) -> Any:
        """Close `thing` after the test, while the kernel still runs."""
        self.addCleanup(thing.close)
        return thing

    def pair(self) -> Tuple[AsyncSocket, AsyncSocket]:
        first, second = socket.socketpair()
        return self.keep(AsyncSocket(first)), self.keep(AsyncSocket(second))

    def listener(self, family: int = socket.AF_INET, address: Any = ("127.0.0.1", 0), **tls: Any) -> AsyncSocket:
        sock = self.keep(AsyncSocket(socket.socket(family), **tls))
        sock.bind(address)
        sock.listen(8)
        return sock

    def client(self, family: int = socket.AF_INET, **tls: Any) -> AsyncSocket:
        return self.keep(AsyncSocket(socket.socket(family), **tls))

    def assertNothingWaits(self, *socks: AsyncSocket) -> None:
        for sock in socks:
            self.assertIsNone(sock.watch.reader)
            self.assertIsNone(sock.watch.writer)
        self.assertEqual(len(pycoslite.default_kernel().timers), 0)


class ApiTest(SocketCase):

    def test_every_row_has_a_test(self):
        self.assertEqual(sorted(ROWS), ["A%02d" % n for n in range(1, 22)])
        for name in ROWS.values():
            self.assertTrue(callable(getattr(type(self), name, None) or getattr(TlsTest, name, None)), name)

    def test_wraps_a_socket(self):
        raw = self.keep(socket.socket())
        sock = AsyncSocket(raw)                         # outside of any task
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        self.assertEqual(sock.getsockname(), raw.getsockname())
        self.assertEqual((sock.fileno(), sock.family), (raw.fileno(), raw.family))
        self.assertFalse(hasattr(sock, "no_such_attribute"))
        with self.expect_log("AsyncSocket already"):
            second = AsyncSocket(sock)
        self.assertEqual(second.fileno(), raw.fileno())
        with self.assertRaisesRegex(ValueError, "is not a socket"):
            AsyncSocket(3)

    def test_two_wrappers_share_a_socket(self):
        left, right = self.pair()
        with self.expect_log("AsyncSocket already"):
            twin = AsyncSocket(right)

        def body():
            yield left.sendall(b"ab")
            self.assertEqual((yield twin.recv(1)), b"a")
            self.assertEqual((yield right.recv(1)), b"b")
        self.task(body)

    def test_connect_gives_0_or_the_right_error(self):
        listener = self.listener()

        def body():
            self.assertEqual((yield self.client().connect(listener.getsockname())), 0)
            with self.assertRaises(ConnectionRefusedError) as caught:
                closed = socket.socket()
                closed.bind(("127.0.0.1", 0))           # nobody listens there
                with closed:
                    yield self.client().connect(closed.getsockname())
            self.assertIn("127.0.0.1", str(caught.exception))
            self.assertEqual((yield self.client().connect(("localhost", listener.getsockname()[1]))), 0)
            with self.assertRaises(socket.gaierror):
                yield self.client().connect(("no-such-host.invalid", 1))
        self.task(body)

    def test_ipv6(self):
        try:
            listener = self.listener(socket.AF_INET6, ("::1", 0))
        except OSError as error:
            self.skipTest("no IPv6 here: %s" % error)

        def body():
            client = self.client(socket.AF_INET6)
            self.assertEqual((yield client.connect(("::1", listener.getsockname()[1]))), 0)
            conn, address = yield listener.accept()
            with conn:
                self.assertEqual(address[:2], client.getsockname()[:2])
        self.task(body)

    @unittest.skipUnless(hasattr(socket, "AF_UNIX"), "no Unix sockets here")
    def test_unix_sockets(self):
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(str(self.temp_dir()))
        path = "sock"                               # with its directory it might be longer than such an address may be
        listener = self.client(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(0)

        def connect(client):
            yield client.connect(path)
            yield client.sendall(b"x")

        def body():
            with self.assertRaises(FileNotFoundError):
                yield self.client(socket.AF_UNIX).connect(path + "-not")
            tasks = [Task(connect, self.client(socket.AF_UNIX)) for _ in range(4)]     # more than its queue holds
            for _ in tasks:
                conn, _ = yield listener.accept()
                with conn:
                    self.assertEqual((yield conn.recv(10)), b"x")
        self.task(body)

    def test_accept_gives_a_socket_and_an_address(self):
        listener = self.listener()

        def connect(client):
            yield client.connect(listener.getsockname())

        def body():
            client = self.client()
            task = Task(connect, client)
            conn, address = yield listener.accept()     # waits for it
            yield task.finish()
            with conn:
                self.assertIsInstance(conn, AsyncSocket)
                self.assertEqual(address, client.getsockname())
                yield client.sendall(b"hello")
                self.assertEqual((yield conn.recv(100)), b"hello")
        self.task(body)

    def test_recv_gives_what_is_there_and_then_the_end(self):
        left, right = self.pair()

        def body():
            yield left.sendall(b"hello")
            self.assertEqual((yield right.recv(2)), b"he")
            self.assertEqual((yield right.recv(100)), b"llo")
            left.close()
            self.assertEqual((yield right.recv(100)), b"")
            self.assertEqual((yield right.recv(100)), b"")
            self.assertEqual((yield right.recvall(3)), b"")
            self.assertEqual((yield right.recv(0)), b"")
            with self.assertRaises(OSError):
                yield left.recv(1)
            with self.assertRaises(ValueError):
                yield right.recv(-1)
            with self.assertRaises(TypeError):
                yield right.recv("1")
        self.task(body)

    def test_recv_into_fills_a_buffer(self):
        left, right = self.pair()

        def body():
            buffer = bytearray(4)
            yield left.sendall(b"hello")
            self.assertEqual((yield right.recv_into(buffer)), 4)
            self.assertEqual(buffer, b"hell")
            self.assertEqual((yield right.recv_into(memoryview(buffer)[2:], 2)), 1)
            self.assertEqual(buffer, b"heol")
            left.close()
            self.assertEqual((yield right.recv_into(buffer)), 0)
        self.task(body)

    def test_recvall_gives_exactly_so_much(self):
        left, right = self.pair()

        def write():
            for piece in (b"ab", b"c", b"defg"):
                yield left.sendall(piece)
                yield
            yield left.sendall(BIG + b"rest")
            left.close()

        def body():
            task = Task(write)
            self.assertEqual((yield right.recvall(5)), b"abcde")
            self.assertEqual((yield right.recvall(0)), b"")
            self.assertEqual((yield right.recvall(2)), b"fg")
            self.assertEqual((yield right.recvall(len(BIG))), BIG)
            self.assertEqual((yield right.recvall(5)), b"")         # closed first
            yield task.finish()
            with self.assertRaises(ValueError):
                right.recvall(-1)
        self.task(body)

    def test_datagrams(self):
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with self.subTest(host):
                if not pycoslite.source_address(host):
                    self.skipTest("this machine has no IPv6")
                with contextlib.ExitStack() as stack:
                    socks = [stack.enter_context(AsyncSocket(socket.socket(family, socket.SOCK_DGRAM)))
                             for _ in range(2)]
                    for sock in socks:
                        sock.bind((host, 0))
                    self.task(self.exchange_datagrams, *socks)

    def exchange_datagrams(self, one, two):
        self.assertEqual((yield one.sendto(b"hello", two.getsockname())), 5)
        self.assertEqual((yield two.recvfrom(100)), (b"hello", one.getsockname()))
        if one.family == socket.AF_INET:
            self.assertEqual((yield one.sendto(b"named", ("localhost", two.getsockname()[1]))), 5)
            self.assertEqual((yield two.recvfrom(100))[0], b"named")
        two.settimeout(0.01)
        with self.assertRaises(socket.timeout):
            yield two.recvfrom(100)

    def test_send_gives_a_count(self):
        left, right = self.pair()

        def body():
            self.assertEqual((yield left.send(b"hello")), 5)
            count = yield left.send(BIG)
            self.assertGreater(count, 0)
            self.assertLess(count, len(BIG))
            self.assertEqual((yield right.recvall(5 + count)), b"hello" + BIG[:count])
        self.task(body)

    def test_sendall_sends_everything(self):
        left, right = self.pair()

        def write():
            for data in (BIG, bytearray(b"ab"), memoryview(struct.pack("3i", 1, 2, 3)).cast("i"), b""):
                self.assertIsNone((yield left.sendall(data)))
            return "sent"

        def body():
            task = Task(write)
            self.assertEqual((yield right.recvall(len(BIG))), BIG)
            self.assertEqual((yield right.recvall(14)), b"ab" + struct.pack("3i", 1, 2, 3))
            self.assertEqual((yield task.finish()), "sent")
            with self.assertRaises(TypeError):
                left.sendall("text")
        self.task(body)

    def test_sendfile(self):
        left, right = self.pair()
        path = self.temp_dir() / "file"
        path.write_bytes(BIG)

        def read(size):
            return (yield right.recvall(size))

        def send(size, *args):
            task = Task(read, size)
            with open(str(path), "rb") as file:
                count = yield left.sendfile(file, *args)
            self.assertEqual(count, size)
            return (yield task.finish())

        def body():
            self.assertEqual((yield send(len(BIG))), BIG)
            self.assertEqual((yield send(5, 3, 5)), BIG[3:8])
            self.assertEqual((yield send(7, len(BIG) - 7, 1000)), BIG[-7:])
            left.plain = False                          # what TLS has to do
            self.assertEqual((yield send(len(BIG))), BIG)
            self.assertEqual((yield send(5, 3, 5)), BIG[3:8])
        self.task(body)

    def test_messages_keep_their_borders(self):
        left, right = self.pair()
        messages = [b"one", b"", BIG, b"two" * 1000]

        def write():
            for message in messages:
                self.assertIsNone((yield left.send_msg(message)))
            yield left.sendall(b"\0\0\0\3abc")           # what is on the wire

        def body():
            task = Task(write)
            for message in messages + [b"abc"]:
                got = yield right.recv_msg()
                self.assertIs(type(got), bytes)
                self.assertEqual(got, message)
            yield task.finish()
        self.task(body)

    def test_messages_that_are_cut_off_or_too_long(self):
        for sent in (b"", b"\0\0", b"\0\0\0\5abc"):
            with self.subTest(sent):
                left, right = self.pair()

                def body():
                    yield left.sendall(sent)
                    left.close()
                    self.assertEqual((yield right.recv_msg()), b"")
                self.task(body)
        left, right = self.pair()

        def too_long():
            yield left.send_msg(b"x" * 101)
            with self.assertRaisesRegex(ProtocolError, "101 bytes"):
                yield right.recv_msg(limit=100)
        self.task(too_long)

    def test_message_goes_on_after_a_timeout(self):
        left, right = self.pair()
        right.settimeout(0.01)

        def body():
            for piece in (b"\0\0", b"\0\6", b"abc"):
                yield left.sendall(piece)
                with self.assertRaises(socket.timeout):
                    yield right.recv_msg()
            yield left.sendall(b"def")
            self.assertEqual((yield right.recv_msg()), b"abcdef")
        self.task(body)

    def test_timeouts_raise_socket_timeout(self):
        left, right = self.pair()
        left.settimeout(0.01)
        right.settimeout(0.01)

        def fill():
            count = yield left.sendall(BIG * 2)
            self.assertTrue(0 < count < len(BIG) * 2, count)        # what has gone
            for call in (left.sendall, left.send, left.send_msg):
                with self.assertRaises(socket.timeout):
                    yield call(b"x")

        def body():
            for call in (right.recv, right.recvall, right.recvfrom, right.recv_into):
                with self.assertRaises(socket.timeout):
                    yield call(bytearray(1) if call == right.recv_into else 1)
            with self.assertRaises(socket.timeout):
                yield right.recv_msg()
            with self.assertRaises(socket.timeout):
                yield self.waiting_accept()
            yield left.sendall(b"part")
            self.assertEqual((yield right.recvall(10)), b"part")
            yield fill()
        self.task(body)
        self.assertNothingWaits(left, right)

    def waiting_accept(self):
        listener = self.listener()
        listener.settimeout(0.01)
        return listener.accept()

    def test_timeouts_are_told(self):
        sock = self.client()
        self.assertEqual(sock.gettimeout(), 0)
        sock.settimeout(2.5)
        self.assertEqual(sock.gettimeout(), 2.5)
        sock.settimeout(None)
        self.assertIsNone(sock.gettimeout())
        with self.assertRaises(ValueError):
            sock.settimeout(-1)

    def test_default_timeout_is_for_new_sockets(self):
        old = self.client()
        self.addCleanup(AsyncSocket.setdefaulttimeout, AsyncSocket.getdefaulttimeout())
        AsyncSocket.setdefaulttimeout(7)
        self.assertEqual(AsyncSocket.getdefaulttimeout(), 7)
        self.assertEqual((old.gettimeout(), self.client().gettimeout()), (0, 7))

    def test_blocking_sockets_serve_threads(self):
        listener = self.listener(blocking=True)
        served: List[Any] = []

        def serve():
            conn, _ = listener.accept()
            with conn:
                served.append(conn.recv_msg())
                conn.sendall(BIG)
                served.append(conn.recvall(4))
                conn.settimeout(0.01)
                try:
                    conn.recv(10)
                except socket.timeout as error:
                    served.append(type(error))
        thread = threading.Thread(target=serve)
        thread.start()
        with AsyncSocket(socket.socket(), blocking=True) as client:
            self.assertEqual(client.connect(("localhost", listener.getsockname()[1])), 0)
            self.assertIsInstance(client, AsyncSocket)
            self.assertIsNone(client.send_msg(b"hello"))
            self.assertEqual(client.recvall(len(BIG)), BIG)
            self.assertEqual(client.send(b"done"), 4)
            thread.join()
            client.setblocking(False)
            self.assertEqual(self.task(lambda sock: (yield sock.recv(10)), client), b"")
        self.assertEqual(served, [b"hello", b"done", socket.timeout])
        with AsyncSocket(socket.socket(), blocking=True) as client:
            with self.assertRaises(ConnectionRefusedError):
                with socket.socket() as closed:
                    closed.bind(("127.0.0.1", 0))
                    client.connect(closed.getsockname())

    def test_close_ends_the_waits_of_other_tasks(self):
        def wait(request):
            return (yield request)

        def body():
            for make, expected in ((lambda s: s.recv(1), b""), (lambda s: s.recvall(1), b""),
                                   (lambda s: s.recv_msg(), b""), (lambda s: s.recv_into(bytearray(1)), 0)):
                left, _right = self.pair()
                task = Task(wait, make(left))
                yield
                left.close()
                self.assertEqual((yield task.finish()), expected)
            left, _right = self.pair()
            listener = self.listener()
            for sock, request in ((left, left.sendall(BIG)), (listener, listener.accept())):
                task = Task(self.outcome, request)
                yield
                self.assertTrue(task.is_alive())
                sock.close()
                sock.close()                            # again does no harm
                self.assertIsInstance((yield task.finish()), OSError)
                self.assertEqual(sock.fileno(), -1)
        self.task(body)

    def test_a_reader_that_comes_just_after_another_thread_has_closed(self):
        """Whether it waited already must make no difference: it gets an end of file, once."""
        for make, expected in ((lambda s: s.recv(1), b""), (lambda s: s.recvall(1), b""),
                               (lambda s: s.recv_msg(), b""), (lambda s: s.recv_into(bytearray(1)), 0)):
            left, _right = self.pair()
            left.close()
            self.assertEqual(self.task(self.outcome, make(left)), expected)
            self.assertIsInstance(self.task(self.outcome, make(left)), OSError)
        left, _right = self.pair()
        left.close()
        self.assertIsInstance(self.task(self.outcome, left.sendall(b"x")), OSError)

    def outcome(self, request):
        """Task: the exception of a request, or its result."""
        try:
            return (yield request)
        except Exception as error:
            return error

    def test_close_from_another_thread(self):
        left, right = self.pair()
        task = Task(self.outcome, left.recv(1))
        self.task(lambda: (yield))                      # by then the other one waits
        left.close()
        self.assertEqual(task.value(60), b"")
        self.assertIsInstance(self.task(self.outcome, left.recv(1)), OSError)       # that was told
        self.assertEqual(self.task(lambda: (yield right.recv(1))), b"")

    def test_unwrap_gives_the_socket_back(self):
        raw, other = socket.socketpair()
        self.keep(raw)
        right = self.keep(AsyncSocket(other))
        left = AsyncSocket(raw)

        def body():
            task = Task(self.outcome, left.recv(1))
            yield
            with self.assertRaisesRegex(MisuseError, "waits for"):
                left.unwrap()
            yield right.sendall(b"xy")
            yield task.finish()
        self.task(body)
        self.assertIs(left.unwrap(), raw)
        self.assertIsNone(raw.gettimeout())             # as it came
        self.assertEqual(raw.recv(1), b"y")
        self.assertEqual(left.fileno(), -1)
        self.assertIsInstance(self.task(self.outcome, left.recv(1)), (OSError, AttributeError))
        fd = right.detach()
        self.addCleanup(os.close, fd)
        self.assertEqual(right.fileno(), -1)

    def test_create_connection_binds_and_connects(self):
        listener = self.listener()

        def body():
            client = self.client()
            result = yield client.create_connection(listener.getsockname(), timeout=60, source_address=("127.0.0.2", 0))
            self.assertIsNone(result)
            self.assertEqual(client.gettimeout(), 60)
            conn, address = yield listener.accept()
            conn.close()
            self.assertEqual(address[0], "127.0.0.2")
        self.task(body)

    def test_context_manager_and_order(self):
        socks = [AsyncSocket(socket.socket()) for _ in range(3)]
        numbers = [sock.fileno() for sock in socks]
        self.assertEqual([sock.fileno() for sock in sorted(socks, reverse=True)], sorted(numbers, reverse=True))
        for sock in socks:
            with sock as same:
                self.assertIs(same, sock)
            self.assertEqual(sock.fileno(), -1)
        with self.assertRaises(KeyError):
            with self.client():
                raise KeyError

    def test_one_task_reads_while_another_writes(self):
        left, right = self.pair()

        def write(sock, data):
            yield sock.sendall(data)

        def body():
            other = BIG[::-1]
            tasks = [Task(write, left, BIG), Task(write, right, other)]     # neither can end before the other is read
            yield
            got = yield left.recvall(len(BIG))
            self.assertEqual((yield right.recvall(len(BIG))), BIG)
            self.assertEqual(got, other)
            for task in tasks:
                yield task.finish()
        self.task(body)
        self.assertNothingWaits(left, right)


class WaitingTest(SocketCase):
    """What a wait leaves behind, whichever way it ends."""

    def test_all_three_ways_to_wait(self):
        left, right = self.pair()

        async def awaiting():
            await left.sendall(b"ab")
            self.assertEqual(await right.recv(1), b"a")
            with self.assertRaises(ConnectionRefusedError):
                with socket.socket() as closed:
                    closed.bind(("127.0.0.1", 0))
                    await self.client().connect(closed.getsockname())
            return await right.recv(1)

        def from_():
            yield from left.sendall(b"ab")
            self.assertEqual((yield from right.recv(1)), b"a")
            return (yield from right.recvall(1))
        self.assertEqual(self.task(awaiting), b"b")
        self.assertEqual(self.task(from_), b"b")

    def test_second_reader_and_writer_are_refused(self):
        left, _right = self.pair()

        def wait(request):
            yield request

        def body():
            tasks = [Task(wait, left.recv(1)), Task(wait, left.sendall(BIG))]
            yield
            for request in (left.recv(1), left.recvall(1), left.recv_msg(), left.recv_into(bytearray(1))):
                with self.assertRaisesRegex(MisuseError, "reading from .* take turns"):
                    yield request
            for request in (left.send(b"x"), left.sendall(b"x"), left.send_msg(b"x")):
                with self.assertRaisesRegex(MisuseError, "writing to .* take turns"):
                    yield request
            for task in tasks:
                task.terminate()
                yield task.finish()
        self.task(body)

    def test_exception_thrown_into_a_wait(self):
        left, right = self.pair()
        left.settimeout(100)

        def wait():
            try:
                yield left.recv(10)
            except KeyError:
                return (yield left.recv(10))

        def body():
            task = Task(wait)
            yield
            self.assertIsNotNone(left.watch.reader)
            task.throw(KeyError())
            yield right.sendall(b"later")
            self.assertEqual((yield task.finish()), b"later")
        self.task(body)
        self.assertNothingWaits(left, right)

    def test_an_interrupted_read_takes_nothing(self):
        """What recvall and recv_msg had received is there for the next read, whichever that is."""
        message = struct.pack(">I", 6) + b"abcdef"
        into = bytearray(2)
        reads = {                       # what to read it with -> expected
            "recv": (lambda sock: sock.recv(3), message[:3]), "recv_msg": (lambda sock: sock.recv_msg(), b"abcdef"),
            "recvall": (lambda sock: sock.recvall(10), message), "recv_into": (lambda sock: sock.recv_into(into), 2)}

        def interrupted(sock, call):
            with self.assertRaises(KeyError):
                yield call(sock)

        def body(left, right, first, read, expected):
            yield left.sendall(message[:7])
            reader = Task(interrupted, right, first)
            yield
            reader.throw(KeyError())
            yield reader.finish()
            with self.assertRaisesRegex(MisuseError, "holds 7 bytes .* read them before"):
                right.unwrap()
            yield right.sendall(b"?")               # who has asked expects to wait for the answer: not now
            rest = Task(lambda: (yield left.sendall(message[7:] + b"next")))
            self.assertEqual((yield read(right)), expected)
            yield rest.finish()
            taken = len(message) if expected == b"abcdef" else expected if isinstance(expected, int) else len(expected)
            self.assertEqual((yield right.recvall(len(message) + 4 - taken)), (message + b"next")[taken:])
            self.assertTrue(right.plain)
        for first in (lambda sock: sock.recvall(20), lambda sock: sock.recv_msg()):
            for name, (read, expected) in reads.items():
                with self.subTest(name):
                    self.task(body, *self.pair(), first, read, expected)
        self.assertEqual(into, message[:2])

    def test_terminated_while_waiting(self):
        left, right = self.pair()
        left.settimeout(100)

        def body():
            for request in (left.recv(1), left.recvall(1), left.recv_msg(), left.sendall(BIG)):
                task = Task(self.waits, request)
                yield
                self.assertTrue(task.is_alive())
                task.terminate()
                yield task.finish()
        self.task(body)
        self.assertNothingWaits(left, right)

    def waits(self, request):
        yield request

    def test_kernel_ends_while_tasks_wait(self):
        left, right = self.pair()
        task = Task(self.waits, left.recv(1))
        self.task(lambda: (yield))
        pycoslite.stop_default()
        self.assertFalse(task.is_alive())
        self.assertIsNone(left.watch.reader)

        def body():                                     # a new kernel takes the same sockets
            yield left.sendall(b"x")
            return (yield right.recv(1))
        self.assertEqual(self.task(body), b"x")

    def test_data_that_nobody_waits_for_keeps_nobody_busy(self):
        left, right = self.pair()

        def body():
            for _ in range(2):
                task = Task(self.waits, right.recv(2))
                yield
                yield left.sendall(b"ab")
                yield task.finish()
                yield left.sendall(b"cd")
                while right.watch.kernel is not None:   # until the poller has seen it
                    yield
                self.assertEqual((yield right.recv(2)), b"cd")
        self.task(body)

    def test_dropped_socket_is_forgotten(self):
        left, right = socket.socketpair()
        self.keep(left)

        def body():
            sock = AsyncSocket(right)
            left.send(b"x")
            yield sock.recv(1)
            task = Task(self.waits, sock.recv(1))
            yield
            task.terminate()
            yield task.finish()
            self.assertIn(sock.fileno(), pycoslite.default_kernel().poller._handlers)
            return sock.fileno()
        if pycoslite.Poller is not pycoslite.EpollPoller:
            self.skipTest("looks into the poller of Linux")
        number = self.task(body)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)    # the socket's own
            right = None
            gc.collect()
            self.task(lambda: (yield))
            gc.collect()
        self.assertNotIn(number, pycoslite.default_kernel().poller._handlers)

    @unittest.skipUnless(hasattr(os, "fork"), "no fork here")
    def test_forked_child_closes_its_copy_only(self):
        left, right = self.pair()
        task = Task(self.outcome, left.recv(10))
        self.task(lambda: (yield))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)     # of forking with threads
            child = os.fork()
        if child == 0:
            left.close()
            os._exit(0 if left.fileno() == -1 else 1)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        self.task(lambda: (yield right.sendall(b"still here")))
        self.assertEqual(task.value(60), b"still here")

    def test_used_by_two_kernels_at_once(self):
        left, right = self.pair()
        task = Task(self.waits, left.recv(1))
        self.task(lambda: (yield))
        other = pycoslite.Kernel()
        self.addCleanup(other.close)
        other.owner = threading.get_ident()
        second = other.spawn(self.outcome, left.sendall(BIG))
        while second.is_alive():
            other.turn(0.1)
        other.owner = None
        self.assertIsInstance(second.outcome, MisuseError)
        task.terminate()
        task.value(60)

    def outcome(self, request):
        try:
            return (yield request)
        except Exception as error:
            return error

    def test_foreign_event_loop_is_told(self):
        async def body():
            with self.assertRaisesRegex(MisuseError, "another event loop"):
                await asyncio.sleep(0)
                await asyncio.Future(loop=loop)
        loop = asyncio.new_event_loop()
        self.addCleanup(loop.close)
        self.task(body)


def make_pair(path: Path) -> str:
    """A self-signed certificate and its key in one file, made as the documents say; returns the file's name."""
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-sha256", "-days", "2",
                    "-keyout", str(path), "-out", str(path)], check=True, stderr=subprocess.DEVNULL)
    return str(path)


@unittest.skipUnless(shutil.which("openssl"), "makes its certificates with the openssl program, which is not here")
class TlsTest(SocketCase):

    @classmethod
    def setUpClass(cls) -> None:
        folder = Path(tempfile.mkdtemp(prefix="t-"))
        cls.addClassCleanup(shutil.rmtree, str(folder), ignore_errors=True)
        cls.ours, cls.theirs = make_pair(folder / "ours.pem"), make_pair(folder / "theirs.pem")

    def echo(self, listener, count=1):
        for _ in range(count):
            conn, _ = yield listener.accept()
            with conn:
                while True:
                    data = yield conn.recv(1 << 16)
                    if not data:
                        break
                    yield conn.sendall(data)
        return count

    def test_right_pair_works(self):
        listener = self.listener(certfile=self.ours)

        def write(client):
            yield client.sendall(BIG)

        def body():
            server = Task(self.echo, listener)
            client = self.client(certfile=self.ours)
            self.assertEqual((yield client.connect(listener.getsockname())), 0)
            self.assertIn(client.version(), ("TLSv1.2", "TLSv1.3"))
            task = Task(write, client)                  # reads and writes at once
            self.assertEqual((yield client.recvall(len(BIG))), BIG)
            yield task.finish()
            client.settimeout(0.01)
            with self.assertRaises(socket.timeout):
                yield client.recv(1)
            client.settimeout(0)
            yield client.send_msg(BIG)
            self.assertEqual((yield client.recv_msg()), BIG)
            client.close()
            self.assertEqual((yield server.finish()), 1)
        self.task(body)

    def test_key_in_a_file_of_its_own(self):
        listener = self.listener(certfile=self.ours, keyfile=self.ours)

        def body():
            server = Task(self.echo, listener)
            client = self.client(certfile=self.ours)
            yield client.connect(listener.getsockname())
            client.close()
            yield server.finish()
        self.task(body)

    def refused(self, client):
        """Task: the error that a client meets, at the latest when it waits for an answer."""
        try:
            yield client.connect(self.address)
            yield client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return (yield client.recv(1)) or EOFError()
        except OSError as error:
            return error
        finally:
            client.close()

    def check_refused(self, client):
        listener = self.listener(certfile=self.ours)
        self.address = listener.getsockname()

        def body():
            server = Task(self.echo, listener)
            error = yield self.refused(client)
            self.assertIsInstance(error, (OSError, EOFError))
            good = self.client(certfile=self.ours)      # the listener goes on
            yield good.connect(self.address)
            good.close()
            self.assertEqual((yield server.finish()), 1)
            return error
        with self.expect_log("TLS connection from .*127.0.0.1.* refused"):
            return self.task(body)

    def test_client_with_another_certificate_is_refused(self):
        error = self.check_refused(self.client(certfile=self.theirs))
        self.assertIsInstance(error, ssl.SSLCertVerificationError)      # it does not trust the server either

    def test_client_that_trusts_us_is_refused_without_our_certificate(self):
        context = pycoslite.tls_context(False, self.theirs, cafile=self.ours)
        self.check_refused(self.client(context=context))

    def test_client_without_certificate_is_refused(self):
        context = ssl.create_default_context(cafile=self.ours)
        context.check_hostname = False
        self.check_refused(self.client(context=context))

    def test_client_without_tls_is_refused(self):
        self.check_refused(self.client())

    def test_own_context_checks_the_name(self):
        server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)        # as a web server: asks for no certificate
        server_context.load_cert_chain(self.ours)
        listener = self.listener(context=server_context)
        port = listener.getsockname()[1]

        def body():
            server = Task(self.echo, listener)
            client = self.client(context=ssl.create_default_context(cafile=self.ours))
            self.assertEqual((yield client.connect(("localhost", port))), 0)
            client.close()
            yield server.finish()
            client = self.client(context=ssl.create_default_context(cafile=self.ours))
            server = Task(self.echo, listener)
            with self.assertRaises(ssl.SSLCertVerificationError):
                yield client.connect(("127.0.0.1", port))
            client.close()
            server.terminate()
            yield server.finish()
        with self.expect_log("refused"):
            self.task(body)

    def test_silent_client_holds_up_nobody(self):
        listener = self.listener(certfile=self.ours)
        silent = self.keep(socket.create_connection(listener.getsockname()))

        def body():
            server = Task(self.echo, listener)
            client = self.client(certfile=self.ours)
            yield client.connect(listener.getsockname())
            client.close()
            self.assertEqual((yield server.finish()), 1)
        self.task(body)
        listener.close()
        self.assertEqual(silent.recv(1), b"")           # dropped with the listener

    def test_too_many_silent_clients_give_way(self):
        listener = self.listener(certfile=self.ours)
        before = pycoslite.settings.pending_handshakes
        self.addCleanup(setattr, pycoslite.settings, "pending_handshakes", before)
        pycoslite.settings.pending_handshakes = 2
        silent = [self.keep(socket.create_connection(listener.getsockname())) for _ in range(3)]
        server = Task(self.echo, listener)
        self.assertEqual(silent[0].recv(1), b"")
        server.terminate()
        server.value(60)
        listener.close()
        for sock in silent[1:]:
            self.assertEqual(sock.recv(1), b"")         # dropped with the listener

    def test_start_tls_on_a_connected_socket(self):
        left, right = self.pair()

        def serve():
            yield left.start_tls(pycoslite.tls_context(True, self.ours), server_side=True)
            yield left.sendall((yield left.recvall(5)))

        def body():
            task = Task(serve)
            result = yield right.start_tls(pycoslite.tls_context(False, self.ours))
            self.assertIsNone(result)
            yield right.sendall(b"hello")
            self.assertEqual((yield right.recvall(5)), b"hello")
            yield task.finish()
            self.assertIsInstance(self.keep(right.unwrap()), ssl.SSLSocket)
        self.task(body)

    def test_blocking_tls(self):
        listener = self.listener(blocking=True, certfile=self.ours)
        got: List[bytes] = []

        def serve():
            conn, _ = listener.accept()
            with conn:
                got.append(conn.recvall(len(BIG)))
                conn.sendall(b"thanks")
        thread = threading.Thread(target=serve)
        thread.start()
        with AsyncSocket(socket.socket(), blocking=True, certfile=self.ours) as client:
            client.connect(listener.getsockname())
            client.sendall(BIG)
            self.assertEqual(client.recvall(6), b"thanks")
        thread.join()
        self.assertEqual(got, [BIG])

    def test_what_cannot_be_tls_is_refused_at_once(self):
        left, right = socket.socketpair()
        self.keep(left)
        self.keep(right)
        with self.assertRaisesRegex(MisuseError, "start_tls"):
            AsyncSocket(left, certfile=self.ours)
        with self.assertRaisesRegex(MisuseError, "stream socket"):
            AsyncSocket(self.keep(socket.socket(type=socket.SOCK_DGRAM)), certfile=self.ours)
        with self.assertRaises(FileNotFoundError):
            AsyncSocket(self.keep(socket.socket()), certfile=self.ours + "-not")
        with self.assertRaisesRegex(ValueError, "without certfile"):
            AsyncSocket(self.keep(socket.socket()), keyfile=self.ours)
        unconnected = self.keep(ssl.create_default_context().wrap_socket(socket.socket(), server_hostname="x"))
        with self.assertRaisesRegex(MisuseError, "plain socket"):
            AsyncSocket(unconnected)

    def test_oldest_tls_version_can_be_set(self):
        self.assertIsNone(AsyncSocket.get_ssl_version())
        self.addCleanup(AsyncSocket.set_ssl_version, None)
        AsyncSocket.set_ssl_version(ssl.TLSVersion.TLSv1_3)
        self.assertEqual(AsyncSocket.get_ssl_version(), ssl.TLSVersion.TLSv1_3)
        listener = self.listener(certfile=self.ours)
        self.address = listener.getsockname()
        old = pycoslite.tls_context(False, self.ours, version=ssl.PROTOCOL_TLS)
        old.maximum_version = ssl.TLSVersion.TLSv1_2

        def body():
            server = Task(self.echo, listener)
            error = yield self.refused(self.client(context=old))
            server.terminate()
            yield server.finish()
            return error
        with self.expect_log("refused"):
            self.assertIsInstance(self.task(body), ssl.SSLError)
        for version in ("TLSv1", ssl.TLSVersion.SSLv3, 2):
            with self.assertRaisesRegex(ValueError, "TLS 1.2 or newer"):
                AsyncSocket.set_ssl_version(version)


if __name__ == "__main__":
    unittest.main()
