"""Services (RPS): called, waited for, monitored, terminated, closed; peers by name, their status, and telling others."""
from __future__ import annotations

import signal
import socket
import sys
import threading
import unittest
from typing import Any, List
from unittest import mock

import pycoslite
from pycoslite import RPS, MonitorStatus, PeerLost, Pycos, Task
from tests.support import TestCase, free_port, running
from tests.test_pycoslite_network import COME_S
from tests.test_pycoslite_remote_channels import PEER, ServiceTestCase


def answer(number, task=None):
    """A service of this process."""
    yield task.sleep(0)
    return number + 1


class LocalTest(TestCase):
    """A service in its own process."""

    def setUp(self) -> None:
        self.addCleanup(lambda: Pycos().terminate())

    def test_only_generator_and_async_functions(self):
        with self.assertRaisesRegex(RuntimeError, "generator function"):
            RPS(print)
        self.assertEqual(RPS(answer).name, "answer")
        self.assertEqual(repr(RPS(answer, "other")), "other")

    def test_register(self):
        rps = RPS(answer)
        self.assertEqual((rps.register(), rps.register()), (0, 0))
        self.assertEqual(RPS(answer).register(), -1)
        self.assertEqual((rps.unregister(), rps.unregister()), (0, -1))
        self.assertIsNone(rps.location)
        self.assertEqual(rps.close(), -1)

    def test_call_at_home(self):
        rps = RPS(answer)
        rps.register()
        self.addCleanup(rps.unregister)

        def main(task=None):
            found = yield RPS.locate("answer")
            self.assertIs(found, rps)
            self.assertEqual((found.monitor(task), found.monitor("no task")), (0, -1))
            with self.expect_log("RPS answer was not called: .*argument"):
                self.assertIsNone((yield found()))
            rtask = yield found(1)
            status = yield task.receive()
            self.assertIs(status.info, rtask)
            return (yield rtask())
        self.assertEqual(Task(main).value(COME_S), 2)


class CallTest(ServiceTestCase):
    """A service of another process."""

    def service(self, name: str = "double") -> Any:
        """Reference to a service of a new process, which is `self.process`."""
        self.node()
        self.process = self.peer()
        return self.rps(name)

    def rps(self, name: str, location: Any = None) -> Any:
        """A service that is found."""
        def locate():
            return (yield RPS.locate(name, location, COME_S))
        found = self.do(locate)
        self.assertIsInstance(found, RPS)
        return found

    def call(self, rps: Any, *args: Any, **kwargs: Any) -> Any:
        """The task it starts, or None."""
        def calling():
            return [(yield rps(*args, **kwargs))]
        return self.do(calling)[0]

    def test_what_a_reference_is(self):
        rps = self.service()
        self.assertEqual((rps.name, rps.location), ("double", self.process.at))
        self.assertEqual(repr(rps), "double@%r" % self.process.at)
        again = self.rps("double", self.process.at)
        self.assertEqual((again, hash(again)), (rps, hash(rps)))
        self.assertNotEqual(self.rps("later"), rps)
        self.assertEqual((rps.register(), rps.unregister()), (-1, -1))
        self.assertEqual(self.ask(self.process.agent, "echo", rps), rps)

        def absent():
            return (yield RPS.locate("absent", timeout=0.1))
        self.assertIsNone(self.do(absent))

    def test_a_call_and_its_exit_value(self):
        rps = self.service()

        def main():
            tasks = []
            for number in range(5):
                tasks.append((yield rps(number=number)))
            values = []
            for task in tasks:
                values.append((yield task.finish(COME_S)))
            return values, (yield tasks[1]())           # once more, it is known
        self.assertEqual(self.do(main), ([0, 2, 4, 6, 8], 2))

    def test_messages_time_out_and_threads(self):
        rps = self.service("later")
        rtask = self.call(rps, 7)
        self.assertIsInstance(rtask, Task)
        self.assertTrue(rtask.is_alive())

        def finish(timeout):
            return [(yield rtask.finish(timeout))]
        self.assertEqual(self.do(finish, 0.05), [None])
        rtask.send("go")
        self.assertEqual(rtask.value(COME_S), (7, "go"))
        self.assertFalse(rtask.is_alive())
        self.assertEqual(self.do(finish, 0), [(7, "go")])

    def test_failures(self):
        rps = self.service()

        def main():
            rtask = yield rps(-5)
            return [(yield rtask())]
        status, = self.do(main)
        self.assertIsInstance(status, MonitorStatus)
        self.assertIs(status.type, ValueError)
        self.assertIn("negative: -5", status.value)
        with self.expect_log("was not called: .*refused: TypeError: .*nonsense"):
            self.assertIsNone(self.call(rps, nonsense=1))
        with self.expect_log("it cannot be pickled"):
            self.assertIsNone(self.call(rps, threading.Lock()))
        rtask = self.call(self.rps("unsendable"))
        self.assertIn("cannot be pickled", rtask.value(COME_S).value)

    def test_terminate(self):
        rtask = self.call(self.service("later"), 1)
        self.assertEqual(rtask.terminate(), 0)
        self.assertIsNone(rtask.value(COME_S))
        self.assertFalse(rtask.is_alive())

    def test_a_task_monitors_one_it_has_started(self):
        rtask = self.call(self.service("later"), 1)

        def main(task=None):
            self.assertEqual((yield task.monitor(rtask)), 0)
            rtask.send("go")
            return [(yield task.receive(COME_S))]
        status, = self.do(main)
        self.assertEqual((status.info, status.type, status.value), (rtask, StopIteration, (1, "go")))

    def test_monitors_are_told_of_every_end(self):
        rps = self.service()

        def main(task=None):
            self.assertEqual((rps.monitor(task), rps.monitor(None)), (0, -1))
            tasks, told = [], {}
            for number in (1, -1, 2):
                tasks.append((yield rps(number)))
            for _ in tasks:
                status = yield task.receive(COME_S)
                told[status.info] = status.type, status.value if status.type is StopIteration else None
            return [told[rtask] for rtask in tasks]
        self.assertEqual(self.do(main), [(StopIteration, 2), (ValueError, None), (StopIteration, 4)])

    def test_close_ends_what_runs(self):
        rps = self.service("later")
        rtask, other = self.call(rps, 1), self.call(self.rps("later"), 2)
        self.assertEqual((rps.close(), rps.close()), (0, -1))
        self.assertIsNone(rtask.value(COME_S))
        self.assertFalse(rtask.is_alive())
        self.assertTrue(other.is_alive())               # of another reference to the same service
        with self.expect_log("it is closed"):
            self.assertIsNone(self.call(rps, 3))
        task, _ = self.collector()
        self.assertEqual(rps.monitor(task), -1)
        other.terminate()                               # else its process would wait for it before it ends
        self.assertIsNone(other.value(COME_S))

    def test_close_while_a_call_is_on_its_way(self):
        rps = self.service("later")

        def calling():
            return [(yield rps(1))]
        self.stop(self.process)
        call = Task(calling)
        self.wait_until(lambda: Pycos().network.tasks.monitored)
        self.assertEqual(rps.close(), 0)
        self.process.signal(signal.SIGCONT)
        [rtask] = call.value(COME_S)
        self.assertIsNone(rtask.value(COME_S))
        self.assertEqual(rps.running, {})

    def test_a_lost_process(self):
        rps = self.service("later")
        rtask = self.call(rps, 1)
        with self.lost_messages():
            self.process.signal(signal.SIGKILL)
            status = rtask.value(COME_S)
        self.assertIs(status.type, PeerLost)
        with self.expect_log("RPS later@.* was not called: .* is gone"):
            self.assertIsNone(self.call(rps, 2))
        self.assertEqual((rps.running, Pycos().network.tasks.monitored), ({}, {}))

    def test_monitors_that_have_ended_are_forgotten(self):
        rps = self.service()
        local = RPS(answer)
        last, got = self.collector()

        def monitored(service, task=None):
            self.assertEqual(service.monitor(task), 0)
            yield

        def main():
            for service, argument in ((rps, 2), (local, 3)):
                for _ in range(50):
                    yield Task(monitored, service)()
                self.assertLess(len(service._monitors), 20)
                service.monitor(last)
                rtask = yield service(argument)
                self.assertEqual((yield rtask()), 4)
                self.assertEqual(service._monitors, [last])
        self.do(main)
        self.wait_until(lambda: [status.value for status in got] == [4, 4])

    def test_those_of_a_living_task_are_forgotten_at_both_ends(self):
        rps, (last, got) = self.service("later"), self.collector()

        def monitored(rtask, task=None):
            self.assertEqual((yield task.monitor(rtask)), 0)

        def main():
            rtask = yield rps(1)
            yield last.monitor(rtask)
            for _ in range(200):
                yield Task(monitored, rtask)()
            return rtask
        rtask = self.do(main)
        self.assertLess(len(Pycos().network.tasks.monitored), 70)
        self.assertLess(self.ask(self.process.agent, "watched"), 70)
        rtask.send("enough")
        self.assertEqual(rtask.value(COME_S), (1, "enough"))
        self.wait_until(lambda: got)
        self.assertEqual([status.value for status in got], [(1, "enough")])
        self.assertEqual(self.ask(self.process.agent, "watched"), 0)

    def test_a_name_that_was_taken_back_at_once_is_told_when_it_is_registered_again(self):
        network, told = self.node().network, []
        asker = mock.Mock(process_id=b"p" * 16, network=network, notify=lambda *said: told.append(said[:2]))
        rps, wanted = RPS(answer, "ghost"), {"kind": "rps", "name": "ghost", "id": 7}
        self.addCleanup(rps.unregister)

        def briefly():
            """In the engine, which makes the calls that are posted meanwhile after this one."""
            pycoslite._on_seek(asker, wanted, b"")
            rps.register()
            rps.unregister()
        done = threading.Event()
        network.post(briefly)
        self.wait_until(lambda: network.tasks.seekers)
        network.post(done.set)
        self.assertTrue(done.wait(COME_S))                  # and so is what was posted before
        self.assertEqual(told, [])
        rps.register()
        self.wait_until(lambda: told)
        self.assertEqual(told, [("task.found", {"id": 7})])

    def test_references_of_a_network_that_has_ended(self):
        """They lead nowhere until their process is heard of again; whoever uses them is told so at once."""
        rps, agent = self.service(), self.process.agent
        Pycos().terminate()
        self.node()

        def use(task=None):
            return [(yield rps(1)), (yield task.monitor(agent))]
        with self.expect_log("RPS double@.* was not called: .* is gone"):
            with self.expect_log("cannot be monitored: .* is gone"):
                self.assertEqual(self.do(use), [None, -1])
        self.find(self.process)
        rtask, status = self.do(use)
        self.assertEqual((rtask.value(COME_S), status), (2, 0))

    def test_a_refusal_that_comes_after_its_caller_has_ended_leaves_nothing(self):
        rps = self.service()
        rps.name = "never"

        def calling():
            yield rps(1)

        def main(task=None):
            for _ in range(10):
                caller = Task(calling)
                yield
                caller.terminate()
                yield caller()
        with self.expect_log("no function is registered as 'never'"):
            self.do(main)
            self.wait_until(lambda: not Pycos().network.tasks.monitored)

    def test_what_an_ended_caller_has_started_ends_with_the_service(self):
        rps = self.service("later")

        def calling():
            yield rps(1)

        def main(task=None):
            caller = Task(calling)
            yield
            caller.terminate()
            yield caller()
        self.do(main)
        self.wait_until(lambda: rps.running)
        rps.close()
        self.wait_until(lambda: not rps.running and not Pycos().network.tasks.monitored)

    def test_an_unregistered_service_cannot_be_called(self):
        rps = self.service()
        rps.name = "never"
        with self.expect_log("no function is registered as 'never'"):
            self.assertIsNone(self.call(rps, 1))

    def test_a_service_task_can_be_passed_on(self):
        rtask = self.call(self.service("later"), 1)
        self.process.agent.send(("pass_on", rtask, "by way of the agent"))
        self.assertEqual(rtask.value(COME_S), (1, "by way of the agent"))
        self.assertEqual(self.ask(self.process.agent, "echo", rtask), rtask)


class PeersTest(ServiceTestCase):
    """The calls of Pycos that are about peers."""

    def status_log(self) -> List[tuple]:
        """(name, status) of all peers from now on."""
        got: List[tuple] = []

        def watch(task=None):
            task.set_daemon()
            while True:
                status = yield task.receive()
                self.assertIsInstance(status, pycoslite.PeerStatus)
                got.append((status.name, status.location, status.status))
        self.assertEqual(Pycos().peer_status(Task(watch)), 0)
        return got

    def result(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """What a call gives that must be yielded."""
        def run():
            return [(yield request(*args, **kwargs))]
        return self.do(run)[0]

    def test_two_of_a_name_come_at_once(self):
        """Who looks for the name hears of one of them, and the log of nothing."""
        network = self.node().network
        twins = [mock.Mock(location=pycoslite.Location("192.0.2.1", port)) for port in (1, 2)]
        for twin in twins:
            twin.name = "twin"

        def find():
            return (yield Pycos().locate("twin", COME_S))

        def come():
            for twin in twins:
                network.roster._on_peer(twin, "online", "")
        task = Task(find)
        self.wait_until(lambda: network.roster._wanted)
        network.post(come)
        self.assertEqual(task.value(COME_S), twins[0].location)

    def test_locate_by_name(self):
        node = self.node()
        self.assertEqual(self.result(node.locate, "test"), node.location)
        self.assertIsNone(self.result(node.locate, "nobody", 0.1))
        process = self.peer("name=somebody")
        self.assertEqual(self.result(node.locate, "somebody", COME_S), process.at)

        def wait():
            return (yield node.locate("later", COME_S))
        waiting = Task(wait)
        later = self.peer("name=later")
        self.assertEqual(waiting.value(COME_S), later.at)
        self.assertEqual(set(node.peers()), {process.at, later.at})

    def test_peer(self):
        node = self.node()
        process = self.peer()
        for place in (process.at, repr(process.at), process.at):        # again changes nothing
            self.assertEqual(self.result(node.peer, place, stream_send=True), 0)
        self.assertEqual(node.peers(), [process.at])
        with self.expect_log("no peer: cannot reach"):
            self.assertEqual(self.result(node.peer, pycoslite.Location("127.0.0.1", 1)), -1)
        with self.expect_log("cannot be resolved"):
            self.assertEqual(self.result(node.peer, "no.such.host.invalid"), -1)

    def test_a_host_alone_is_asked_to_show_its_processes(self):
        port = free_port()
        node = self.node(udp_port=port)
        found = self.status_log()
        options = "discover_peers=True", "udp_port=%d" % port
        processes = [self.enter(running([sys.executable, PEER, "name=p%d" % n, *options], ready=r"READY (\S+)"))
                     for n in range(2)]
        self.wait_until(lambda: not found)
        self.assertEqual(self.result(node.peer, "127.0.0.1", udp_port=port), 0)
        self.wait_until(lambda: {name for name, _, _ in found} == {"p0", "p1"})
        self.assertEqual(len(processes), 2)

    def test_discover_peers_and_ignore_peers(self):
        port = free_port()
        node = self.node(udp_port=port, discover_peers=True)
        self.assertFalse(node.ignore_peers)
        node.ignore_peers = True
        self.assertTrue(node.ignore_peers)
        found = self.status_log()
        with running([sys.executable, PEER, "name=quiet", "udp_port=%d" % port], ready=r"READY (\S+)") as quiet:
            self.assertEqual(node.discover_peers(), 0)
            command = [sys.executable, PEER, "name=loud", "discover_peers=True", "udp_port=%d" % port]
            process = self.enter(running(command, ready=r"READY (\S+)"))
            node.ignore_peers(False)
            self.assertFalse(node.ignore_peers)
            self.assertEqual(node.discover_peers(port), 0)
            self.wait_until(lambda: any(name == "loud" for name, _, _ in found))
            self.assertNotIn("quiet", [name for name, _, _ in found])       # does not answer searches
            self.assertIsNotNone(quiet.match or process.match)

    def test_peer_status(self):
        node = self.node()
        first = self.peer("name=first")
        got = self.status_log()
        self.wait_until(lambda: got == [("first", first.at, 1)])            # who is here is told, too
        second = self.peer("name=second")
        self.wait_until(lambda: got[1:] == [("second", second.at, 1)])
        with self.lost_messages():
            first.signal(signal.SIGKILL)
            self.wait_until(lambda: got[2:] == [("first", first.at, 0)])
        self.assertEqual((node.peer_status(None), node.peer_status("no task")), (0, -1))
        third = self.peer("name=third")
        self.assertEqual(len(got), 3)
        self.assertIsNotNone(third)

    def test_close_peer(self):
        node = self.node()
        process = self.peer()
        theirs, mine = self.collector()
        got = self.status_log()
        process.agent.send(("peer_status", theirs))
        self.wait_until(lambda: mine == ["watching", ("test", 1)])
        self.assertEqual(self.result(node.close_peer, process.at), 0)
        self.wait_until(lambda: got[-1][2] == 0)
        self.assertEqual(node.peers(), [])
        process.wait_for("has closed the connection")
        self.assertEqual(process.agent.send("nobody hears"), -1)
        with self.expect_log("there is no peer at"):
            self.assertEqual(self.result(node.close_peer, process.at), -1)
        self.assertEqual(self.result(node.peer, process.at), 0)
        self.assertEqual(self.ask(process.agent, "echo", "again"), "again")

    def test_relay(self):
        node = self.node()
        middle, far = self.peer("name=middle"), self.enter(running(
            [sys.executable, PEER, "name=far"], ready=r"READY (\S+)"))
        at = pycoslite.Location.parse(far.match.group(1))
        middle.agent.send(("contact", at))
        far.wait_for("is online")
        self.assertEqual(node.peers(), [middle.at])
        self.assertEqual(self.result(node.peer, middle.at, relay=True), 0)
        self.wait_until(lambda: set(node.peers()) == {middle.at, at})

    def test_host_ipaddr_and_host_addrinfo(self):
        self.assertEqual(Pycos.host_ipaddr("127.0.0.1"), "127.0.0.1")
        self.assertIsNone(Pycos.host_ipaddr("no.such.host.invalid"))
        self.assertEqual(Pycos.host_addrinfo("127.0.0.1").family, socket.AF_INET)
        self.assertEqual(Pycos.host_addrinfo("::1", socket.AF_INET6).ip, "::1")
        self.assertIsNotNone(Pycos.host_addrinfo().ip)


if __name__ == "__main__":
    unittest.main()
