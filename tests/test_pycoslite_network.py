"""Messages between processes: references, names, deliveries, monitors, and what must hold when something breaks."""
from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import unittest
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Iterator, List

import pycoslite
from pycoslite import Handshake, Location, MonitorStatus, Pycos, Refusal, RemoteTask, Task
from tests.cutting import CuttingProxy
from tests.support import PROCESS_S, ROOT, TestCase, running

HOST = "127.0.0.1"
BEHIND = "127.0.0.3"                            # where agents listen that are to be reached through a proxy only
SECRET = "7e57" * 16                            # that of network_peer.py: a key, which does not go through scrypt
AGENT = Path(__file__).with_name("network_peer.py")
QUICK = {"PYCOSLITE_HEARTBEAT_S": "0.2"}        # silent for 0.6 s is offline
COME_S = PROCESS_S                              # everything that is waited for comes within this, or the test fails
CHILD = """
import multiprocessing, os
from pycoslite import Location, Pycos, Task

def begin():
    Pycos(host="127.0.0.1", tcp_port=0, secret="7e57" * 16, discover_peers=False)

def find():
    def search():
        return (yield Task.locate("agent", Location("127.0.0.1", PORT), 60))
    return Task(search).value(60)
"""
FORKED = """
PORT = %d
begin()
agent = find()
child = os.fork()
if not child:
    def deliver():
        return (yield agent.deliver("lost"))
    print("parent's reference:", agent.send("lost"), agent.terminate(), Task(deliver).value(60), flush=True)
    begin()
    own = find()
    print("own:", own.send(("number", 0)), flush=True)
    print("again:", agent.send(("number", 1)), own == agent, flush=True)
    Pycos().terminate()
    os._exit(0)
os.waitpid(child, 0)
"""
MULTIPROCESSING = """
PORT = %d
def child():
    begin()
    def speak():
        agent = yield Task.locate("agent", Location("127.0.0.1", PORT), 60)
        for number in range(2000):
            agent.send(("number", number, bytes(10_000)))
    Task(speak)
process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join(60)
print("exit", process.exitcode)
"""


class Mute(Exception):
    """An exception that fails when it is printed."""

    def __str__(self) -> str:
        raise ValueError("no text")


class NotPickled:
    """What no pickle can be made of, for a reason that cannot be told."""

    def __reduce__(self) -> tuple:
        raise Mute


class NotUnpickled:
    """Likewise, at the other end."""

    def __reduce__(self) -> tuple:
        return exec, ("class Mute(Exception):\n def __str__(self): raise ValueError\nraise Mute",)


class NetworkTestCase(TestCase):
    """A test with this process's network and any number of agents (see network_peer.py)."""

    def node(self, **options: Any) -> Pycos:
        """This process's network."""
        options = dict(dict(host=HOST, tcp_port=0, name="test", secret=SECRET, discover_peers=False), **options)
        node = Pycos(**options)
        self.addCleanup(node.terminate)
        return node

    def setting(self, **values: Any) -> None:
        """Change settings of this process for the test."""
        for name, value in values.items():
            self.addCleanup(setattr, pycoslite.settings, name, getattr(pycoslite.settings, name))
            setattr(pycoslite.settings, name, value)

    @contextlib.contextmanager
    def agent(self, *options: str, **how: Any) -> Iterator[Any]:
        """A process that runs network_peer.py; `.at` is where it listens."""
        with running([sys.executable, AGENT, *options], ready=r"READY (\S+)", **how) as process:
            process.at = Location.parse(process.match.group(1))
            yield process

    def do(self, function: Callable, *args: Any, timeout_s: float = COME_S) -> Any:
        """Result of a task."""
        task = Task(function, *args)
        result = task.value(timeout_s)
        if task.is_alive():
            self.fail("%r has not ended within %g s" % (task, timeout_s))
        if isinstance(result, MonitorStatus):
            self.fail("task failed: %s" % result.value)
        return result

    def find(self, process: Any, name: str = "agent") -> Any:
        """Reference to a task of an agent."""
        def search():
            return (yield Task.locate(name, process.at, timeout=COME_S))
        found = self.do(search)
        self.assertIsNotNone(found, "task %r was not found" % name)
        return found

    @contextlib.contextmanager
    def lost_messages(self) -> Iterator[None]:
        """A process is killed in the block; what it had not confirmed yet is reported then or a moment later, if there
        was anything."""
        self.log.allowed.append("were not confirmed")
        yield

    @staticmethod
    def stop(process: Any) -> None:
        """SIGSTOP; when this returns it has stopped."""
        process.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)

    def peer_events(self) -> List[tuple]:
        """(event, detail) of all peers from now on."""
        events: List[tuple] = []
        Pycos().network.on_peer(lambda peer, event, detail: events.append((event, detail)))
        return events

    def ask(self, agent: Any, *message: Any, timeout_s: float = COME_S) -> Any:
        """What the agent answers to (message[0], asker, *message[1:])."""
        def asking(task=None):
            agent.send((message[0], task) + message[1:])
            return (yield task.receive(timeout_s, "no answer within %g s" % timeout_s))
        return self.do(asking)


class MessagesTest(NetworkTestCase):
    def test_messages_both_ways(self):
        self.node()
        with self.agent() as process:
            agent = self.find(process)
            for value in (None, 7, "text", {"a": [1, 2.5]}, b"x" * 100_000, Location("h", 1)):
                self.assertEqual(self.ask(agent, "echo", value), value)

    def test_a_thread_that_is_no_task_sends(self):
        self.node()
        with self.agent() as process:
            agent = self.find(process)
            for number in range(1000):
                self.assertEqual(agent.send(("number", number)), 0)
            self.assertEqual(self.ask(agent, "report"), (1000, True))

    def test_locate_gives_none_when_there_is_no_such_task_or_process(self):
        self.node()

        def search(location):
            return (yield Task.locate("nobody", location, timeout=0.2))
        with self.agent() as process:
            self.assertIsNone(self.do(search, process.at))
        self.assertIsNone(self.do(search, process.at))
        self.assertEqual(Pycos().network.tasks.searches, {})

    def test_locate_waits_for_a_name_registered_later(self):
        self.node()
        with self.agent() as process:
            agent = self.find(process)

            def search(task=None):
                finder = Task(find)
                agent.send(("echo", task, "asked"))     # after the question, which is on its way
                yield task.receive()
                agent.send(("register", "later"))
                return (yield finder())

            def find():
                return (yield Task.locate("later", timeout=COME_S))
            self.assertEqual(self.do(search), agent)

    def test_locate_includes_peers_that_come_later(self):
        self.node()

        def find():
            return (yield Task.locate("agent", timeout=COME_S))
        search = Task(find)
        with self.agent("peers=[]") as process:
            def contact():
                return (yield Pycos().peer(process.at))
            self.assertEqual(self.do(contact), 0)
            self.assertEqual(search.value(COME_S), self.find(process))

    def test_a_search_ends_with_the_task_that_waits_for_it(self):
        self.node()

        def find():
            yield Task.locate("nobody")
        task = Task(find)
        searches = Pycos().network.tasks.searches
        self.wait_until(lambda: searches)
        task.terminate()
        self.wait_until(lambda: not searches)

    def test_deliver_tells_what_became_of_the_message(self):
        self.node()
        with self.agent() as process:
            agent = self.find(process)

            def deliver(message, timeout=COME_S, to=agent):
                return (yield to.deliver(message, timeout))
            self.assertEqual(self.do(deliver, ("number", 0)), 1)
            with self.expect_log("not delivered: it cannot be pickled"):
                self.assertEqual(self.do(deliver, threading.Lock()), -1)
            ended = self.ask(agent, "spawn", "returns", (1,))
            self.assertEqual(self.do(deliver, "go", COME_S, ended), 1)
            self.wait_until(lambda: self.do(deliver, "late", COME_S, ended) == -1)
            self.stop(process)
            self.assertEqual(self.do(deliver, ("number", 1), 0.2), 0)
            process.signal(signal.SIGCONT)
            self.assertEqual(self.do(deliver, ("number", 2)), 1)
            with self.lost_messages():
                process.signal(signal.SIGKILL)
                self.wait_until(lambda: not Pycos().network.peers)
            self.assertEqual(self.do(deliver, ("number", 3), None), 0)

    def test_a_delivery_without_timeout_ends_when_the_process_does(self):
        self.node()
        with self.agent() as process:
            agent = self.find(process)
            self.stop(process)

            def deliver():
                return (yield agent.deliver(("number", 1)))
            task = Task(deliver)
            self.wait_until(lambda: agent.peer.session.unconfirmed_frames)
            process.signal(signal.SIGKILL)
            self.assertEqual(task.value(COME_S), 0)             # which tells it: there is no line in the log
            self.assertEqual(pycoslite._deliveries, {})

    def test_a_message_that_cannot_be_pickled_is_refused_and_the_next_arrives(self):
        self.node()
        with self.agent() as process:
            agent = self.find(process)
            with self.expect_log("was not sent: it cannot be pickled"):
                self.assertEqual(agent.send(("number", threading.Lock())), -1)
            agent.send(("number", 0))
            self.assertEqual(self.ask(agent, "report"), (1, True))

    def test_exceptions_without_a_text(self):
        self.node()
        with self.agent() as process:
            agent = self.find(process)

            def deliver(message):
                return (yield agent.deliver(message))
            with self.expect_log("was not sent: it cannot be pickled: its exception, Mute, has no text"):
                self.assertEqual(agent.send(NotPickled()), -1)
            with self.expect_log("was not delivered: it cannot be pickled: its exception, Mute, has no text"):
                self.assertEqual(self.do(deliver, NotPickled()), -1)
            self.assertEqual(self.do(deliver, NotUnpickled()), -1)
            process.wait_for("ERROR .* cannot be unpickled: Mute: its exception, Mute, has no text")
            self.assertNotIn("Logging error", process.output)

    def test_a_location_is_also_a_text(self):
        self.node()
        with self.agent() as process:
            def search():
                with self.assertRaisesRegex(ValueError, "5 is no address: it must be a Location"):
                    yield Task.locate("agent", 5)
                return (yield Task.locate("agent", repr(process.at), COME_S))
            self.assertEqual(self.do(search).location, process.at)

    def test_addresses_that_others_understand_go_first(self):
        peer = SimpleNamespace(locations=[Location(host, 9705) for host in (
            "localhost", "127.0.0.1", "node7", "192.0.2.7", "2001:db8::7", "fe80::7%eth0")])
        self.assertEqual([host for host, _ in pycoslite._addresses_of(peer)],
                         ["192.0.2.7", "2001:db8::7", "fe80::7", "localhost", "node7", "127.0.0.1"])

    def test_references_after_a_new_start(self):
        with self.agent() as process:
            node = self.node()
            agent = self.find(process)
            node.terminate()
            self.assertEqual(agent.send(("number", 0)), -1)
            self.node()
            self.assertEqual(agent.send(("number", 0)), -1)         # nothing has been heard of it here
            self.assertEqual(self.find(process), agent)
            self.assertEqual(agent.send(("number", 0)), 0)
            self.assertEqual(self.ask(agent, "report"), (1, True))

    def test_references_to_who_was_only_named_end_with_the_network(self):
        node = self.node()
        far = RemoteTask(node.network.peer(b"q" * 16, [Location(HOST, 9)]), 5, "far")
        node.terminate()
        self.assertEqual(far.send("nobody takes this any more"), -1)
        self.node()

        def deliver():
            return (yield far.deliver("nor this"))
        self.assertEqual(self.do(deliver), 0)

    @unittest.skipUnless(hasattr(os, "fork"), "needs fork")
    def test_references_in_a_forked_child(self):
        with self.agent() as process:
            found = self.child(FORKED % (process.at.port,))
        self.assertEqual(found, ["parent's reference: -1 -1 0", "own: 0", "again: 0 True"])

    @unittest.skipUnless(hasattr(os, "fork"), "needs fork")
    def test_last_words_of_a_child_of_multiprocessing(self):
        """It leaves without `atexit`, when its tasks have ended and what they sent has arrived."""
        self.node()
        with self.agent() as process:
            self.assertEqual(self.child(MULTIPROCESSING % (process.at.port,)), ["exit 0"])
            self.assertEqual(self.ask(self.find(process), "report"), (2000, True))

    @staticmethod
    def child(code: str) -> List[str]:
        """Lines that a program prints on its standard output."""
        done = subprocess.run([sys.executable, "-c", CHILD + code], cwd=str(ROOT), stdout=subprocess.PIPE, text=True,
                              timeout=COME_S)
        return done.stdout.splitlines()

    def test_a_reference_comes_home_as_the_task_itself(self):
        self.node()
        with self.agent() as process:
            agent = self.find(process)

            def main(task=None):
                agent.send(("echo", task, [task, agent]))
                mine, theirs = yield task.receive()
                return mine is task, theirs == agent, len({theirs, agent})
            self.assertEqual(self.do(main), (True, True, 1))

            def brief():
                yield
            ended = Task(brief)
            ended.value()
            ghost = self.ask(agent, "echo", ended)
            self.assertIs(ghost, ended)
            self.assertEqual(ghost.send("too late"), -1)

            def deliver():
                return (yield ghost.deliver("too late"))
            self.assertEqual(self.do(deliver), -1)

    def test_a_reference_works_in_a_third_process(self):
        self.node()
        with self.agent("name=one") as first, self.agent("name=two") as second:
            one, two = self.find(first), self.find(second)

            def main(task=None):
                one.send(("pass_on", two, ("echo", task, "by way of both")))
                return (yield task.receive(COME_S))
            self.assertEqual(self.do(main), "by way of both")

    def test_system_tasks_have_references_too(self):
        self.node()
        with self.agent() as process:
            agent = self.find(process)
            got = threading.Event()

            def system(task=None):
                agent.send(("echo", task, 5))
                if (yield task.receive()) == 5:
                    got.set()
            pycoslite.SysTask(system)
            self.assertTrue(got.wait(COME_S))

    def test_terminate_ends_a_remote_task(self):
        self.node()
        with self.agent() as process:
            remote = self.ask(self.find(process), "spawn", "silent", ())

            def main(task=None):
                status = yield task.monitor(remote)
                remote.terminate()
                return status, (yield task.receive(COME_S))
            status, notice = self.do(main)
            self.assertEqual((status, notice.info, notice.type), (0, remote, StopIteration))


class MonitorTest(NetworkTestCase):
    def ending(self, agent: Any, function: str, *args: Any, end: Any = None) -> MonitorStatus:
        """What a monitor is told of the end of such a task."""
        remote = self.ask(agent, "spawn", function, args)

        def main(task=None):
            if (yield task.monitor(remote)) == 0:
                (end or (lambda: remote.send("go on")))()
                return [(yield task.receive(COME_S))]       # a status as result would look like a failure
        notice, = self.do(main)
        self.assertEqual(notice.info, remote)
        return notice

    def test_a_monitor_is_told_of_every_end(self):
        self.node()
        with self.agent() as process:
            agent = self.find(process)
            told = self.ending(agent, "returns", {"x": 1})
            self.assertEqual((told.type, told.value), (StopIteration, {"x": 1}))
            told = self.ending(agent, "fails")
            self.assertEqual(told.type.__name__, "Broken")
            self.assertIn("as it was told", told.value)
            told = self.ending(agent, "unpicklable")
            self.assertTrue(issubclass(told.type, Exception))
            self.assertIn("cannot be pickled", told.value)

    def test_a_monitor_is_told_when_the_process_is_lost(self):
        self.node()
        with self.agent() as process, self.lost_messages():
            told = self.ending(self.find(process), "silent", end=lambda: process.signal(signal.SIGKILL))
            self.assertIs(told.type, pycoslite.PeerLost)
            self.assertEqual(Pycos().network.tasks.monitored, {})

    def test_an_ended_task_cannot_be_monitored(self):
        self.node()
        with self.agent() as process:
            remote = self.ask(self.find(process), "spawn", "returns", (1,))

            def main(task=None):
                yield task.monitor(remote)
                remote.send("go on")
                yield task.receive()
                return (yield task.monitor(remote))
            self.assertEqual(self.do(main), -1)


class FaultsTest(NetworkTestCase):
    def proxy(self, process: Any, budget: Callable[[], int], reset: Callable[[], bool]) -> CuttingProxy:
        proxy = CuttingProxy(Location(BEHIND, process.at.port), budget, reset)
        self.addCleanup(proxy.close)
        return proxy

    def hidden_node(self) -> Pycos:
        """A network that others cannot dial; it always dials first."""
        node = self.node(host="127.0.0.2", ext_host="127.0.0.9")
        node.network.process_id = bytes(16)
        return node

    def hidden_agent(self, **how: Any) -> Any:
        """An agent that can only be reached through a proxy: it tells an address where nobody listens."""
        return self.agent("host=" + BEHIND, "ext_host=127.0.0.8", **how)

    def exchange(self, process: Any, proxy: CuttingProxy, count: int) -> tuple:
        """Send `count` numbers each way at once; what arrived here and there."""
        got: List[int] = []

        def main(task=None):
            agent = None
            while agent is None:                # the first connections may be cut before they are any
                agent = yield Task.locate("agent", proxy.at, timeout=COME_S)
            agent.send(("spawn", task, "flood", (task, count)))
            for number in range(count):
                agent.send(("number", number))
                if not number % 20:
                    yield
            while len(got) < count:
                message = yield task.receive(COME_S)
                if message is None:
                    break
                if isinstance(message, int):
                    got.append(message)
            agent.send(("report", task))
            return (yield task.receive(COME_S))
        there = self.do(main)
        return got, there

    def cut_and_cut_again(self, count: int, cuts: int) -> None:
        """Exchange `count` numbers each way through at least so many cuts."""
        self.setting(reconnect_min_s=0.001, reconnect_max_s=0.005)
        choose = random.Random(9705)
        with self.hidden_agent() as process:
            proxy = self.proxy(process, lambda: choose.choice((choose.randrange(1, 3000), choose.randrange(1, 30000))),
                               lambda: choose.random() < 0.5)
            got, there = self.exchange(process, proxy, count)
            self.assertEqual(there, (count, True))
            self.assertEqual(got, list(range(count)))
            self.assertGreaterEqual(proxy.cuts, cuts)
            self.log.allowed.append("were not confirmed")       # the last confirmation may have been cut off

    def test_exactly_once_and_in_order_through_200_cuts(self):
        self.hidden_node()
        self.cut_and_cut_again(20_000, 200)

    def test_exactly_once_also_when_the_end_that_cannot_dial_should_do_so_first(self):
        self.hidden_node().network.process_id = b"\xff" * 16
        self.cut_and_cut_again(10_000, 50)

    def test_nothing_is_lost_in_a_black_hole(self):
        self.setting(heartbeat_s=0.2)
        self.hidden_node()
        with self.hidden_agent(env=QUICK) as process:
            proxy = self.proxy(process, lambda: 1 << 60, lambda: False)
            events = self.peer_events()

            def main(task=None):
                agent = yield Task.locate("agent", proxy.at, timeout=COME_S)
                proxy.dark = True
                for number in range(100):
                    agent.send(("number", number))
                while ("offline" not in [event for event, _ in events]):
                    yield task.sleep(0.01)
                proxy.dark = False
                agent.send(("report", task))
                return (yield task.receive(COME_S))
            self.assertEqual(self.do(main), (100, True))
            self.assertEqual([event for event, _ in events], ["online", "offline", "online"])

    def test_a_reference_that_has_found_its_process_again(self):
        """What waits for the process that was lost ends, though the reference leads to the new one already; and it can
        be asked to monitor at once."""
        node = self.node()
        with self.agent() as process:
            agent = self.find(process)
            self.stop(process)

            def deliver():
                return (yield agent.deliver(("number", 1)))
            task, peer = Task(deliver), agent.peer
            self.wait_until(lambda: pycoslite._deliveries)
            agent.peer = other = pycoslite.Peer(node.network, b"p" * 16)
            node.network.post(peer.lost, "for the test", True)
            self.assertEqual(task.value(COME_S), 0)
            self.assertEqual(pycoslite._deliveries, {})

            agent.peer, other.state = other, "lost"
            other.process_id = peer.process_id
            process.signal(signal.SIGCONT)

            def monitor(task=None):
                yield node.peer(process.at)
                return (yield task.monitor(agent))
            self.assertEqual(self.do(monitor), 0)

    def test_a_killed_process_is_soon_known_to_be_lost(self):
        self.node()
        with self.agent() as process:
            self.find(process)
            events = self.peer_events()
            with self.lost_messages():
                process.signal(signal.SIGKILL)
                self.wait_until(lambda: [event for event, _ in events][-1:] == ["lost"])

    def outcome_of_a_dial(self, refusal: int) -> tuple:
        """(error, gone) of dialling a peer at its address, where every connection is refused with that code."""
        hello = Handshake("accept", bytes(32), b"b" * 16, {}, bytes(32), "pycoslite").data_to_send()
        listener = socket.create_server((HOST, 0))

        def refuse() -> None:                       # as often as it is tried
            with contextlib.suppress(OSError), listener:
                while True:
                    with listener.accept()[0] as sock:
                        sock.sendall(hello)
                        sock.recv(4096)
                        sock.sendall(b"R" + bytes((refusal,)))
        thread = threading.Thread(target=refuse)
        thread.start()
        at, outcome, ended = Location(HOST, listener.getsockname()[1]), [], threading.Event()

        def done(_peer: Any, error: Any, gone: bool) -> None:
            outcome.extend((error, gone))
            ended.set()
        network = self.node().network
        dial = pycoslite._Dial(network, [at], done, b"b" * 16, at)
        network.post(dial.next)
        self.assertTrue(ended.wait(COME_S))
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        return tuple(outcome)

    def test_a_process_that_is_busy_is_not_gone(self):
        error, gone = self.outcome_of_a_dial(Refusal.BUSY)
        self.assertIsInstance(error, pycoslite.PeerLost)        # whoever dials comes again, after some time
        self.assertIn("try again in a moment", str(error))
        self.assertFalse(gone)
        error, gone = self.outcome_of_a_dial(Refusal.SECRET)
        self.assertIsInstance(error, pycoslite.AuthenticationError)
        self.assertTrue(gone)                       # another process is there

    def test_who_was_given_up_for_being_silent_is_found_again(self):
        self.setting(heartbeat_s=0.1, give_up_s=0.3, handshake_s=0.3)
        self.hidden_node()
        with self.hidden_agent(env=dict(QUICK, PYCOSLITE_GIVE_UP_S="0.3")) as process:
            proxy = self.proxy(process, lambda: 1 << 60, lambda: False)

            def contact():
                return (yield Task.locate("agent", proxy.at, timeout=COME_S))
            agent, events = self.do(contact), self.peer_events()
            proxy.dark = True
            self.wait_until(lambda: [event for event, _ in events][-1:] == ["lost"])
            self.assertEqual(agent.send("lost"), -1)
            proxy.dark = False
            self.wait_until(lambda: [event for event, _ in events][-1:] == ["online"])      # nobody has asked for it
            self.assertEqual(self.ask(agent, "echo", 1), 1)

    def test_a_stopped_process_goes_offline_and_comes_back_with_everything(self):
        self.setting(heartbeat_s=0.2)
        self.node()
        with self.agent(env=QUICK) as process:
            agent = self.find(process)
            events = self.peer_events()
            self.stop(process)
            for number in range(500):
                agent.send(("number", number))
            self.wait_until(lambda: events, what="offline")
            self.assertEqual(events[0][0], "offline")
            process.signal(signal.SIGCONT)
            self.assertEqual(self.ask(agent, "report"), (500, True))
            self.assertEqual([event for event, _ in events], ["offline", "online"])

    def test_a_link_has_as_many_lanes_as_it_needs(self):
        """Some as soon as something has to wait, as the settings say here; few of them later; more again (which takes a
        bad line, or somebody who says so); and what is sent meanwhile arrives."""
        forced = {"lanes_loss": 0.0, "lanes_after_s": 0.0, "lanes_idle_s": 0.3}
        self.setting(**forced)
        self.node()
        with self.agent(env={"PYCOSLITE_" + name.upper(): str(value) for name, value in forced.items()}) as process:
            agent = self.find(process)
            peer, sent = agent.peer, 0
            for most in (5, 9):
                if most == 9:
                    peer.engine.post(peer.link.lanes.supply._want, 8)
                while peer.connections < most:
                    for _ in range(20):
                        agent.send(("number", sent, bytes(1_000_000)))
                        sent += 1
                    self.assertEqual(self.ask(agent, "report"), (sent, True))
                self.wait_until(lambda: peer.connections == 3, what="the first connection and two lanes")
                self.wait_until(lambda: self.ask(agent, "connections") == 3)
            self.assertEqual(self.ask(agent, "echo", "it works"), "it works")

    def test_an_unreachable_process_is_given_up_and_what_it_missed_is_reported(self):
        self.setting(heartbeat_s=0.1, give_up_s=0.5)
        self.hidden_node()
        with self.hidden_agent() as process:
            proxy = self.proxy(process, lambda: 1 << 60, lambda: False)

            def main(task=None):
                agent = yield Task.locate("agent", proxy.at, timeout=COME_S)
                yield agent.deliver(("number", 0), COME_S)
                agent.peer.session.confirm()
                while agent.peer.session.unconfirmed_frames:
                    yield task.sleep(0.01)
                proxy.dark = True
                for number in range(10):
                    agent.send(("number", number))
                result = yield agent.deliver(("number", 10))
                late = agent.send("too late")
                proxy.dark = False
                yield Task.locate("agent", proxy.at, timeout=COME_S)
                again = agent.send(("echo", task, "back"))          # the old reference works again
                return result, late, again, (yield task.receive(COME_S))
            with self.expect_log("10 messages were not confirmed, 10 of them may have arrived: not reached"):
                self.assertEqual(self.do(main), (0, -1, 0, "back"))

    def test_both_dial_at_once_and_keep_one_connection(self):
        node = self.node()
        for _ in range(5):
            with self.agent("peers=['%r']" % node.location) as process:
                agent = self.find(process)
                self.assertEqual(self.ask(agent, "echo", 1), 1)
                self.wait_until(lambda: len(node.network.links) == 1)

    def test_who_goes_on_sending_does_not_hold_up_the_end(self):
        node = self.node()
        with self.agent() as process, self.lost_messages():
            agent, sent = self.find(process), [0]

            def stream(task=None):
                task.set_daemon()
                while agent.send(("number", sent[0])) == 0:
                    sent[0] += 1
                    yield task.sleep(0.05)
            self.stop(process)
            Task(stream)
            self.wait_until(lambda: sent[0])
            node.terminate()
            process.signal(signal.SIGKILL)
        self.assertLess(sent[0], 400)               # of 1200 until the peer would have been given up

    def test_references_that_are_dropped_leave_nothing(self):
        self.setting(give_up_s=0.3)
        network, nowhere = self.node().network, [Location("127.0.0.1", 1)]
        kept = [network.peer(bytes((n,)) * 16, nowhere) for n in range(1, 4)]
        for number in range(1000):
            RemoteTask(network.peer(number.to_bytes(16, "big"), nowhere), 1, "far")
        self.assertIs(network.peer(kept[0].process_id, ()), kept[0])
        gc.collect()
        self.assertEqual(network.peers, {})
        self.assertEqual(len(network._named), 3)
        task = RemoteTask(kept[1], 1, "far")
        with self.expect_log("1 messages were not confirmed, 0 of them may have arrived"):
            self.assertEqual(task.send("hello"), 0)         # now it is dialled
            self.assertIs(network.peer(kept[1].process_id, ()), kept[1])
            self.wait_until(lambda: kept[1].state == "lost")
        self.wait_until(lambda: not network.peers)
        fresh = network.peer(kept[1].process_id, nowhere)
        self.assertIsNot(fresh, kept[1])
        self.assertTrue(task.reachable())                   # by the new one

    def test_last_words_arrive(self):
        self.node()
        for _ in range(3):
            with self.agent() as process:
                agent = self.find(process)
                count = 3000

                def main(task=None):
                    agent.send(("last_words", task, count))
                    numbers = []
                    while len(numbers) < count:
                        numbers.append((yield task.receive(COME_S)))
                    return numbers
                self.assertEqual(self.do(main), list(range(count)))
                self.assertEqual(process.wait(), 0)
                self.assertNotIn("WARNING", process.output)

    def test_a_long_message_is_confirmed_as_soon_as_it_is_there(self):
        """Not as late as a short one may be: it keeps its memory, and others waiting, until then."""
        self.node()
        with self.agent(env={"PYCOSLITE_ACK_DELAY_S": "1000"}) as process:
            agent = self.find(process)
            agent.send(("number", 0, bytearray(3 << 20)))
            self.wait_until(lambda: not agent.peer.session.unconfirmed_frames)

    def outrun(self, function: Callable) -> None:
        """A task `function(agent)` sends 3000 numbers to a stopped process, each with 1 KB."""
        self.setting(window_bytes=1 << 19)
        self.node()
        with self.agent() as process:
            agent = self.find(process)
            self.stop(process)
            task = Task(function, agent)
            self.wait_until(lambda: agent.peer.held)
            queued = agent.peer.session.unconfirmed_bytes
            self.assertTrue(task.is_alive())
            self.assertLess(queued, 2 << 20)
            process.signal(signal.SIGCONT)
            task.value(COME_S)
            self.assertEqual(self.ask(agent, "report"), (3000, True))

    def test_a_sender_that_outruns_a_stopped_peer_is_held_back(self):
        def sender(agent):
            for number in range(3000):
                agent.send(("number", number, bytes(1000)))
                yield
        self.outrun(sender)

    def test_a_sender_is_held_back_also_when_a_helper_does_the_sending(self):
        def helper(agent, number):
            agent.send(("number", number, bytes(1000)))
            return number
            yield

        def sender(agent):
            for number in range(3000):
                if (yield helper(agent, number)) != number:
                    raise AssertionError("the helper's result was lost")
        self.outrun(sender)

    def test_a_thread_that_outruns_a_stopped_peer_is_held_back(self):
        self.setting(window_bytes=1 << 19)
        self.node()
        with self.agent() as process:
            agent = self.find(process)
            self.stop(process)

            def send():
                for number in range(3000):
                    agent.send(("number", number, bytes(1000)))
            thread = threading.Thread(target=send)
            thread.start()
            self.wait_until(lambda: agent.peer.held)
            self.assertTrue(thread.is_alive())
            process.signal(signal.SIGCONT)
            thread.join(COME_S)
            self.assertEqual(self.ask(agent, "report"), (3000, True))

    def test_a_process_that_computes_stays_online_and_takes_messages(self):
        self.setting(heartbeat_s=0.2)
        self.node()
        with self.agent(env=QUICK) as process:
            agent, events = self.find(process), self.peer_events()

            def main(task=None):
                agent.send(("hog", task, 1.5))
                yield task.receive(COME_S)
                confirmed = 0
                for number in range(20):
                    confirmed += yield agent.deliver(("number", number), 1.0)
                hogged = agent.peer.online
                agent.send(("report", task))
                return confirmed, hogged, (yield task.receive(COME_S))
            self.assertEqual(self.do(main), (20, True, (20, True)))
            self.assertEqual(events, [])

    def test_what_a_computing_task_sends_goes_out_meanwhile(self):
        self.node()
        with self.agent() as process:
            agent, come = self.find(process), threading.Event()

            def system(task=None):
                agent.send(("echo", task, 1))
                yield task.receive()
                agent.send(("echo", task, 2))
                yield task.receive()
                come.set()

            def hog():
                pycoslite.SysTask(system)
                return come.wait(COME_S)        # blocks the thread of all user tasks
                yield
            self.assertTrue(self.do(hog))
