"""The network engine between its threads: hand-overs, posts from everywhere, order, forked children, large messages."""
from __future__ import annotations

import os
import signal
import sys
import threading
import time
import unittest
from typing import Any, Iterator, List

import pycoslite
from pycoslite import Pycos, Task
from tests.support import ROOT, running
from tests.test_pycoslite_network import COME_S, HOST, SECRET, NetworkTestCase

MIB = 1 << 20


def asks_nothing():
    """A task."""
    yield
    return "well"


class HandOverTest(NetworkTestCase):
    def test_posts_from_many_threads_while_the_watcher_comes_and_goes(self):
        self.setting(takeover_s=0.002)
        node = self.node()
        done: List[int] = []
        threads, each = 8, 2000

        def poster(number: int) -> None:
            for count in range(each):
                node.network.post(done.append, number)
                if not count % 50:
                    time.sleep(0.0005)
        switching = threading.Event()

        def hog():
            while not switching.is_set():
                until = time.monotonic() + 0.004
                while time.monotonic() < until:     # longer than takeover_s: the watcher takes over
                    pass
                yield                               # and gives the engine back
        task = Task(hog)
        posters = [threading.Thread(target=poster, args=(number,)) for number in range(threads)]
        for thread in posters:
            thread.start()
        for thread in posters:
            thread.join(COME_S)
            self.assertFalse(thread.is_alive())
        self.wait_until(lambda: len(done) == threads * each)
        switching.set()
        task.value(COME_S)

    def test_sleep_and_wake_up_thousands_of_times(self):
        node = self.node()
        come: List[int] = []
        for number in range(3000):          # the kernel sleeps between two of them
            node.network.spawn(self.note, come, number)
            if number % 3 == 0:
                Task(self.note, come, number)
                self.wait_until(lambda: len(come) == number + 1 + number // 3 + 1)
        self.wait_until(lambda: len(come) == 4000)

    def test_waits_that_are_longer_than_pollers_can_count(self):
        """Of the engine and of the kernel that it sleeps for; while the agent starts nothing else is waited for."""
        for seconds in 3e6, 1e12, float("inf"):
            for wait in (lambda task=None: (yield Task.locate("nobody", timeout=seconds)),
                         lambda task=None: (yield task.sleep(seconds))):
                node = self.node()
                waiting = Task(wait)
                with self.subTest(seconds), self.agent() as process:
                    self.assertEqual(self.ask(self.find(process), "echo", 5), 5)
                    self.assertEqual(self.do(self.hogs, process), 1)
                    waiting.terminate()
                    waiting.value(COME_S)
                    node.terminate()

    def hogs(self, process: Any) -> Iterator:
        """A task that computes until the watcher drives the network, then asks for something."""
        agent = yield Task.locate("agent", process.at, COME_S)
        until = time.monotonic() + 0.2
        while time.monotonic() < until:
            pass
        return (yield agent.deliver(("number", 0), float("inf")))

    def test_a_task_that_is_ended_while_its_answer_comes_ends_once(self):
        network, inside = self.node().network, []

        def answer():
            inside.append(network.engine.current)
            return (yield pycoslite.Suspend(None))

        def asks():
            yield pycoslite._Remote(network, answer)

        def main(task=None):
            asking = Task(asks)
            while not (inside and inside[0].wait):
                yield task.sleep(0.001)
            with network.engine.lock:           # so that both are done at once, in this order
                inside[0].resume("the answer")
            asking.terminate()
            return (yield asking.finish(COME_S)), asking.is_alive()
        self.assertEqual(self.do(main), (None, False))
        self.assertEqual(self.do(asks_nothing), "well")     # the kernel goes on

    @staticmethod
    def note(come, number):
        """A task that notes a number."""
        come.append(number)
        yield

    def test_order_holds_across_hand_overs(self):
        self.setting(takeover_s=0.003)
        self.node()
        with self.agent() as process:
            agent = self.find(process)
            got: List[int] = []

            def main(task=None):
                agent.send(("spawn", task, "flood", (task, 5000)))
                yield task.receive(COME_S)
                while len(got) < 5000:
                    got.append((yield task.receive(COME_S)))
                    if not len(got) % 100:
                        until = time.monotonic() + 0.008
                        while time.monotonic() < until:
                            pass
            self.do(main)
            self.assertEqual(got, list(range(5000)))

    def test_a_timer_set_by_another_thread_rings_while_the_kernel_sleeps(self):
        node, rang = self.node(), threading.Event()
        time.sleep(0.01)                    # the kernel sleeps without a deadline by now
        node.network.post(node.network.call_later, 0.01, rang.set)
        self.assertTrue(rang.wait(COME_S))

    def test_a_network_can_be_closed_and_started_again(self):
        for _ in range(5):
            node = Pycos(host=HOST, tcp_port=0, name="again", secret=SECRET, discover_peers=False)
            self.assertTrue(node.location.port)
            node.terminate()
        self.assertIsNone(pycoslite.running_network())

    BUSY = """
import sys
sys.path.insert(0, %r)
from pycoslite import Pycos, Task

def busy():
    yield
    print("busy", flush=True)
    while True:
        pass
Pycos(host="127.0.0.1", tcp_port=0, secret="7e57" * 16, discover_peers=False)
Task(busy)
"""

    def test_ctrl_c_while_a_task_computes(self):
        """The network is ended though the thread that drives it does not come round; the task is left behind."""
        with running([sys.executable, "-c", self.BUSY % str(ROOT)], ready="^busy") as process:
            time.sleep(0.2)                         # until the main program has ended
            process.signal(signal.SIGINT)
            self.assertEqual(process.wait(COME_S), 0)
            self.assertIn("the program ends while task busy/", process.output)

    def test_a_second_network_and_a_taken_port_are_refused(self):
        node = self.node()
        with self.assertRaisesRegex(pycoslite.MisuseError, "is running already"):
            pycoslite.start_network(HOST, 0)
        node.terminate()
        self.addCleanup(pycoslite.stop_default)         # the kernel is there before the port is tried
        with self.agent() as process:
            with self.assertRaisesRegex(OSError, "cannot listen at port %d" % process.at.port):
                Pycos(host=HOST, tcp_port=process.at.port, secret=SECRET, discover_peers=False)


@unittest.skipUnless(hasattr(os, "fork"), "needs fork")
class ForkTest(NetworkTestCase):
    PROGRAM = """
import os, sys
import pycoslite
from pycoslite import Location, Pycos, Task
def main(where, value, task=None):
    agent = yield Task.locate("agent", where, timeout=60)
    agent.send(("echo", task, value))
    return (yield task.receive(60))
def talk(value):
    Pycos(host="127.0.0.1", tcp_port=0, name=value, secret=sys.argv[2], discover_peers=False)
    return Task(main, Location("127.0.0.1", int(sys.argv[1])), value).value()
print(talk("parent"), flush=True)
child = os.fork()
if not child:
    print(talk("child"), flush=True)
    Pycos().finish()
    os._exit(0)
os.waitpid(child, 0)
print(Task(main, Location("127.0.0.1", int(sys.argv[1])), "parent again").value())
"""

    def test_a_forked_child_has_a_network_of_its_own_and_spoils_no_other(self):
        with self.agent() as process:
            with running([sys.executable, "-W", "ignore", "-c", self.PROGRAM, process.at.port, SECRET]) as program:
                self.assertEqual(program.wait(), 0)
                self.assertEqual(program.output.split("\n")[:3], ["parent", "child", "parent again"])


class LargeMessagesTest(NetworkTestCase):
    def test_large_messages_both_ways(self):
        self.node()
        with self.agent() as process:
            agent = self.find(process)
            data = b"a" + bytes(64 * MIB) + b"z"
            self.assertEqual(self.ask(agent, "size", data), (len(data), b"a", b"z"))
            highest = self.ask(agent, "memory")[1]
            self.assertLess(highest, 250 * 1024, "KiB at the receiver: the message, its pickle and little else")
            del data
            echo = self.ask(agent, "echo", bytes(64 * MIB))
            self.assertEqual(len(echo), 64 * MIB)

    def test_small_messages_go_on_behind_a_large_one(self):
        self.node()
        with self.agent() as process:
            agent = self.find(process)

            def main(task=None):
                confirmed = []
                for size in (1, 16 * MIB, 1, 70_000, 3 * MIB, 1):
                    confirmed.append((yield agent.deliver(("number", len(confirmed), bytes(size)), COME_S)))
                agent.send(("report", task))
                return confirmed, (yield task.receive(COME_S))
            self.assertEqual(self.do(main), ([1] * 6, (6, True)))

    def test_a_message_longer_than_allowed_is_refused_at_the_sender(self):
        self.setting(frame_bytes=MIB)
        self.node()
        with self.agent() as process:
            agent = self.find(process)

            def deliver():
                return (yield agent.deliver(bytes(MIB)))
            for send, what in ((lambda: agent.send(bytes(MIB)), "sent"), (lambda: self.do(deliver), "delivered")):
                with self.expect_log("was not %s: .* bytes are more than a message to .* may have" % what):
                    self.assertEqual(send(), -1)
            self.assertEqual(self.ask(agent, "echo", "still connected"), "still connected")

    def test_the_receivers_limit_counts_too(self):
        self.node()
        with self.agent(env={"PYCOSLITE_FRAME_BYTES": str(MIB)}) as process:
            agent = self.find(process)
            with self.expect_log("was not sent: .* bytes are more than a message to .* may have"):
                self.assertEqual(agent.send(bytes(MIB)), -1)
            self.assertEqual(self.ask(agent, "echo", 1), 1)
