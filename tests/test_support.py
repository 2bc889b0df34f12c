"""The helpers of tests.support do what the other tests rely on: leaks are found, processes end, hosts are alone."""
from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest
import warnings

from tests import support


def outcome(function, grace_s: float = 0.2) -> unittest.TestResult:
    """Run `function(test)` as a test of its own and return the result. What is left behind in these tests stays."""
    class Sample(support.TestCase):
        def test(self) -> None:
            function(self)
    result = unittest.TestResult()
    with support_grace(grace_s):
        Sample("test").run(result)
    return result


class support_grace:
    """Shorten the grace within a block, as these leaks are certain."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        self.before, support.GRACE_S = support.GRACE_S, self.seconds

    def __exit__(self, *exc) -> None:
        support.GRACE_S = self.before


class LeakTest(unittest.TestCase):

    def failure(self, function) -> str:
        result = outcome(function)
        self.assertEqual(len(result.failures), 1, result)
        self.assertEqual(result.errors, [])
        return result.failures[0][1]

    def test_clean(self):
        def thrifty(test):
            thread = threading.Thread(target=lambda: None)
            thread.start()
            socket.socket().close()
            subprocess.run([sys.executable, "-c", ""], check=True)
            thread.join()
        self.assertTrue(outcome(thrifty, support.GRACE_S).wasSuccessful())

    def test_thread(self):
        release = threading.Event()
        self.addCleanup(release.set)
        text = self.failure(lambda test: threading.Thread(target=release.wait, name="lingerer").start())
        self.assertIn("lingerer", text)
        self.assertIn("self._cond", text)           # its stack is there

    def test_thread_that_ends_in_time(self):
        def brisk(test):
            threading.Timer(0.05, lambda: None).start()
        self.assertTrue(outcome(brisk, support.GRACE_S).wasSuccessful())

    def test_descriptor(self):
        kept = []
        self.addCleanup(lambda: kept[0].close())

        def leak(test):
            kept.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            kept[0].bind(("127.0.0.1", 0))
        self.assertIn("127.0.0.1", self.failure(leak))

    def test_child(self):
        kept = []
        text = self.failure(lambda test: kept.append(subprocess.Popen(["sleep", "60"])))
        self.assertIn("sleep 60", text)
        self.assertFalse(support.alive(kept[0].pid))
        kept[0].wait()                              # tells Popen; the process was reaped

    def test_grandchild(self):
        code = "import subprocess; subprocess.Popen(['sleep', '60'], start_new_session=True).returncode = 0"
        text = self.failure(lambda test: subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL))
        self.assertIn("sleep 60", text)

    def test_warning(self):
        result = outcome(lambda test: warnings.warn("old", DeprecationWarning))
        self.assertIn("old", result.errors[0][1])

    def test_unclosed_socket(self):
        def forget(test):
            socket.socket()
            gc.collect()
        self.assertIn("unclosed", self.failure(forget))

    def test_exception_in_thread(self):
        def die():
            raise ValueError("in the thread")

        def start(test):
            thread = threading.Thread(target=die)
            thread.start()
            thread.join()
        self.assertIn("in the thread", self.failure(start))

    def test_hang(self):
        def hang(test):
            threading.Event().wait()

        class Sample(support.TestCase):
            timeout_s = 1                           # or it might end before it hangs

            def test(self):
                hang(self)
        result = unittest.TestResult()
        Sample("test").run(result)
        self.assertIn("not done after 1 s", result.failures[0][1])
        self.assertIn("in hang", result.failures[0][1])

    def test_own_failure_is_reported_alone(self):
        def fail(test):
            open_one = socket.socket()
            test.fail("mine %s" % open_one)
        self.assertIn("mine", self.failure(fail))


class LogTest(unittest.TestCase):
    log = logging.getLogger("pycoslite")

    def test_unexpected(self):
        result = outcome(lambda test: self.log.warning("disk %s", "full"))
        self.assertIn("WARNING pycoslite: disk full", result.failures[0][1])

    def test_expected(self):
        def expects(test):
            with test.expect_log("disk .*") as records:
                self.log.warning("disk %s", "full")
            test.assertEqual(len(records), 1)
        self.assertTrue(outcome(expects).wasSuccessful())

    def test_expected_from_a_thread_a_little_later(self):
        def expects(test):
            thread = threading.Timer(0.05, self.log.error, ["late"])
            with test.expect_log("late"):
                thread.start()
            thread.join()
        self.assertTrue(outcome(expects).wasSuccessful())

    def test_expected_does_not_come(self):
        def expects(test):
            with test.expect_log("disk", timeout_s=0.01):
                self.log.info("other")
        self.assertIn("no log line matches 'disk'", outcome(expects).failures[0][1])

    def test_info_is_seen_when_asked_for(self):
        def expects(test):
            with test.expect_log("port 5", level=logging.INFO):
                self.log.info("port %d", 5)
        self.assertTrue(outcome(expects).wasSuccessful())


class ProcessTest(support.TestCase):

    def test_ready_and_conversation(self):
        code = "print('port 77'); print('got', input()); input()"
        with support.running([sys.executable, "-c", code], ready=r"port (\d+)$") as process:
            self.assertEqual(process.match.group(1), "77")
            process.write("hello\n")
            process.wait_for("got hello")
            self.assertTrue(support.alive(process.pid))
        self.assertFalse(support.alive(process.pid))
        self.assertEqual(process.wait(), -signal.SIGTERM)

    def test_stubborn_process_is_killed(self):
        code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"
        with support.running([sys.executable, "-c", code], ready="up", stop_s=0.1) as process:
            pass
        self.assertEqual(process.wait(), -signal.SIGKILL)

    def test_ends_before_it_is_ready(self):
        with self.assertRaisesRegex(AssertionError, "it ended(.|\n)*no such thing"), silenced():
            with support.running([sys.executable, "-c", "print('no such thing')"], ready="port"):
                self.fail("not reached")

    def test_ready_function(self):
        port = support.free_port()
        code = "import socket, signal; s = socket.create_server(('127.0.0.1', %d)); signal.pause()" % port

        def answers(process):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except ConnectionRefusedError:
                return False
            return True
        with support.running([sys.executable, "-c", code], ready=answers):
            pass

    def test_environment(self):
        code = "import os; print(os.environ.get('A'), os.environ.get('B'), os.environ.get('HOME'))"
        os.environ["B"] = "1"
        self.addCleanup(os.environ.pop, "B")
        with support.running([sys.executable, "-c", code], env={"A": "2", "B": None}) as process:
            self.assertEqual(process.wait(), 0)
        self.assertEqual(process.output.split(), ["2", "None", os.environ["HOME"]])

    def test_output_of_a_long_talker_does_not_block_it(self):
        with support.running([sys.executable, "-c", "print('x' * 1000000)"]) as process:
            self.assertEqual(process.wait(), 0)
        self.assertEqual(len(process.output), 1000001)


class silenced:
    """Hide what goes to stderr within the block."""

    def __enter__(self):
        self.before, sys.stderr = sys.stderr, open(os.devnull, "w")

    def __exit__(self, *exc):
        sys.stderr.close()
        sys.stderr = self.before


class HostsTest(support.TestCase):

    def test_they_reach_each_other_and_nothing_else(self):
        with support.two_hosts() as (a, b):
            serve = "import socket; s = socket.create_server(('%s', 0)); print('port', s.getsockname()[1]); s.accept()"
            with b.running([sys.executable, "-c", serve % b.address], ready=r"port (\d+)") as server:
                code = "import socket; socket.create_connection(('%s', %s), 5)" % (b.address, server.match.group(1))
                self.assertEqual(a.run([sys.executable, "-c", code]).stdout, "")
                self.assertEqual(server.wait(), 0)
            away = a.run([sys.executable, "-c", "import socket; socket.create_connection(('192.0.2.1', 80), 5)"])
            self.assertIn("unreachable", away.stdout)
            named = a.run([sys.executable, "-c", "import socket; socket.getaddrinfo(socket.gethostname() + '.x', 1)"])
            self.assertIn("gaierror", named.stdout)
            names = a.name, b.name
        left = subprocess.run(["ip", "netns", "list"], stdout=subprocess.PIPE, text=True).stdout
        for name in names:
            self.assertNotIn(name, left)

    def test_what_runs_there_is_killed(self):
        with support.two_hosts() as (a, b):
            process = subprocess.Popen(a.command([sys.executable, "-c", "print(1, flush=True); input()"]),
                                       stdout=subprocess.PIPE, stdin=subprocess.PIPE)
            process.stdout.readline()
        self.assertEqual(process.wait(10), -signal.SIGKILL)
        process.stdout.close()
        process.stdin.close()


class SmallTest(support.TestCase):

    def test_free_port(self):
        ports = [support.free_port() for _ in range(20)]
        self.assertEqual(len(set(ports)), 20)
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", ports[0]))

    def test_interpreters(self):
        for version, path in support.interpreters():
            self.assertGreaterEqual(version, (3, 8))
            self.assertNotEqual(version, sys.version_info[:2])
            text = subprocess.run([path, "-V"], stdout=subprocess.PIPE, text=True).stdout
            self.assertTrue(text.startswith("Python %d.%d." % version), text)

    def test_clock(self):
        clock = support.FakeClock(5.0)
        self.assertEqual((clock(), clock.advance(2.0), clock.time()), (5.0, 7.0, 7.0))
        with self.assertRaises(ValueError):
            clock.advance(-1)

    def test_wait_until(self):
        answers = iter([0, 0, 3])
        self.assertEqual(self.wait_until(lambda: next(answers)), 3)
        with self.assertRaisesRegex(AssertionError, "the moon"):
            self.wait_until(lambda: False, timeout_s=0.01, what="the moon")

    def test_home_is_not_the_users(self):
        self.assertNotEqual(os.path.expanduser("~"), str(support.REAL_HOME))
        self.assertLess(time.time() - os.stat(os.path.expanduser("~")).st_ctime, 3600)
