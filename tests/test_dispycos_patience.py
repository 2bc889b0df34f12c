"""What becomes of servers and clients that are idle, and of nodes that are silent: by scenario, then for real."""
from __future__ import annotations

import contextlib
import signal
import sys
import unittest
from types import SimpleNamespace
from typing import Any, Iterator, List

import dispycos_lite
import pycoslite
from dispycos_lite import (IO, JOB_DONE, RELEASE_NODE, RESTART_SERVER, SEND_JOB, STATUS, TASK, VALUE, WAKE, Client,
                           Cluster, Scheduler)
from tests import client_jobs as jobs
from tests.client_support import LOOPBACK, ClientTestCase, Statuses, running_node
from tests.support import ROOT, TestCase, free_port, running
from tests.test_dispycos_state import CODE_NAMES, StateTest

ADVICE = "make it with zombie_period=0"


class PatienceTest(StateTest):
    """A state that closes what is idle for 60 s, and abandons what is silent for 50 s."""

    def setUp(self) -> None:
        super().setUp()
        self.state.limit(60.0, 50.0, "zombie_period=60", ADVICE, self.now)

    def pass_time(self, seconds: float) -> List[tuple]:
        """Advance the clock, calling `tick` whenever it is due; the instructions of all that."""
        until, out = self.now + seconds, []
        while True:
            due = self.state.next_deadline()
            if due is None or due > until:
                break
            self.assertGreaterEqual(due, self.now)
            self.now = due
            self.state.tick(self.now)
            out += self.take()
            self.assertNotEqual(self.state.next_deadline(), due, "it would be called without end")
        self.now = until
        return out

    @staticmethod
    def told(out: List[tuple]) -> List[tuple]:
        """(name of the status, subject, reason) of the statuses among instructions."""
        return [(CODE_NAMES[each[1]], str(each[2]), each[3] if len(each) > 3 else "")
                for each in out if each[0] == STATUS]

    def commands(self, out: List[tuple]) -> List[tuple]:
        return [each for each in out if each[0] in (RESTART_SERVER, RELEASE_NODE, WAKE)]


class IdleTest(PatienceTest):
    """Servers, nodes, and the client."""

    def test_an_idle_server_is_closed_while_another_works(self) -> None:
        (first, second), = self.cluster(2)
        job = self.submit()
        self.take()
        self.assertIs(job.server, first)
        self.assertEqual(self.pass_time(59.9), [])
        out = self.pass_time(0.2)
        reason = "idle for 60 s, zombie_period=60"
        self.assertEqual(self.told(out), [("ServerClosed", "('a', 1)", reason)])
        self.assertEqual(self.commands(out), [(RESTART_SERVER, second, reason, False)])
        self.state.server_down("a", 1, "ended: idle", self.now)
        self.assertEqual(self.statuses(), ["ServerDisconnected ('a', 1)"])
        self.assertEqual(self.pass_time(1000), [], "the one that works is not idle, nor is the client")
        self.end(job)

    def test_idleness_counts_from_the_last_job(self) -> None:
        (server,), = self.cluster(1)
        self.pass_time(50)
        self.end(self.submit())
        self.take()
        self.assertEqual(self.pass_time(59), [])
        self.assertEqual([each[0] for each in self.commands(self.pass_time(1.1))], [RELEASE_NODE])

    def test_io_jobs_are_work(self) -> None:
        self.cluster(1)
        job = self.submit(IO)
        self.take()
        self.assertEqual(self.pass_time(500), [])
        self.end(job)
        self.take()
        self.assertEqual(self.pass_time(59), [])
        self.assertEqual([each[0] for each in self.commands(self.pass_time(1.1))], [RELEASE_NODE])

    def test_a_node_whose_servers_are_all_idle_is_given_back(self) -> None:
        (first, second), = self.cluster(2)
        job = self.submit()
        self.pass_time(30)
        self.end(job)
        out = self.pass_time(40)                    # the second has 70 s, the first 40
        self.assertEqual(self.commands(out), [(RESTART_SERVER, second, "idle for 60 s, zombie_period=60", False)])
        out = self.pass_time(20.1)                  # even if the end of the second was not reported
        self.assertEqual([each[0] for each in self.commands(out)], [RELEASE_NODE])
        self.assertEqual([name for name, _, reason in self.told(out) if reason], ["ServerClosed", "NodeClosed"])
        self.assertTrue(self.state.sleeps("a"))

    def test_the_client_is_closed_after_twice_the_time_and_hears_why(self) -> None:
        self.cluster(1, 1)
        out = self.pass_time(119)
        self.assertEqual(len(self.commands(out)), 2)
        self.assertFalse(self.state.closing)
        out = self.pass_time(1.1)
        self.assertEqual(self.told(out), [
            ("ClientClosed", "None", "the client was idle for 120 s, zombie_period=60; " + ADVICE)])
        self.assertTrue(self.state.closed)
        with self.assertRaises(dispycos_lite.ClusterClosed):
            self.submit()

    def test_a_client_that_never_had_a_node_is_closed_too(self) -> None:
        self.assertEqual([name for name, _, _ in self.told(self.pass_time(121))], ["ClientClosed"])

    def test_a_client_whose_jobs_wait_is_not_idle(self) -> None:
        self.submit()
        self.assertEqual(self.pass_time(10000), [])

    def test_a_setup_is_work(self) -> None:
        self.state.setting_up(1, self.now)
        self.assertEqual(self.pass_time(10000), [])
        self.state.setting_up(-1, self.now)
        self.assertEqual(self.told(self.pass_time(119)), [])
        self.assertEqual(len(self.told(self.pass_time(2))), 1)

    def test_suspended_servers_are_closed_with_the_client(self) -> None:
        (server,), = self.cluster(1)
        self.state.suspend(server, self.now)
        self.take()
        self.assertEqual(self.pass_time(119), [])
        self.assertEqual([name for name, _, _ in self.told(self.pass_time(2))],
                         ["ServerClosed", "NodeClosed", "ClientClosed"])

    def test_without_a_limit_nothing_is_closed(self) -> None:
        self.state.limit(0.0, 0.0, "", "", self.now)
        self.cluster(1)
        self.assertEqual(self.pass_time(1e6), [])
        self.assertIsNone(self.state.next_deadline())

    def test_a_job_that_has_to_wait_wakes_all(self) -> None:
        (first, *others), = self.cluster(4)
        long = self.submit()
        self.pass_time(60.1)
        for server in others:
            self.state.server_down("a", server.n, "ended", self.now)
        self.take()
        self.submit()                               # waits behind the long one
        self.assertEqual(self.take(WAKE), [(WAKE, first.node, n) for n in (1, 2, 3)])
        self.submit()                               # waits for a server
        self.state.server_up("a", 1, b"p", ("a", 1), self.now)
        self.assertEqual([job for _, job in self.sent()], [3])
        self.end(long)

    def test_nothing_is_closed_while_a_job_waits(self) -> None:
        """It may want what is idle, but suspended or not ready."""
        (_, second), = self.cluster(2)
        self.state.suspend(second, self.now)
        job = self.submit(where=second.location)
        self.take()
        self.assertEqual(self.pass_time(1000), [])
        self.state.resume(second, self.now)
        self.end(job)

    def test_jobs_have_a_node_taken_anew(self) -> None:
        for kind in (TASK, IO):
            with self.subTest(kind):
                self.setUp()
                (server,), = self.cluster(1)
                self.pass_time(60.1)
                job = self.submit(kind)
                self.assertEqual(self.take(WAKE), [(WAKE, server.node, None)])
                self.assertFalse(self.state.sleeps("a"))
                self.submit(kind)
                self.assertEqual(self.take(WAKE), [])
                self.assertEqual(self.pass_time(1000), [], "it has work")
                self.cluster(1)
                self.end(job)

    def test_lost_jobs_wake_servers(self) -> None:
        (first, second), = self.cluster(2)
        job = self.submit(retries=1)
        self.pass_time(60.1)
        self.state.server_down("a", second.n, "ended", self.now)
        self.take()
        self.state.server_down("a", first.n, "killed", self.now)
        self.assertEqual(self.take(WAKE), [(WAKE, first.node, 1)])
        self.assertEqual(job.state, "queued")

    def test_a_node_that_takes_itself_back(self) -> None:
        (server,), = self.cluster(1)
        self.assertTrue(self.state.rest_node("a", "its client was idle", self.now))
        self.assertEqual(self.told(self.take()), [("ServerClosed", "('a', 0)", "its client was idle"),
                                                  ("NodeClosed", "addr-a", "its client was idle")])
        self.assertFalse(self.state.rest_node("a", "its client was idle", self.now), "it is gone")
        self.submit()
        self.assertEqual(self.take(WAKE), [(WAKE, server.node, None)])
        (server,), = self.cluster(1)
        self.assertFalse(self.state.rest_node("a", "its client was idle", self.now), "it has the job")

    def test_a_node_that_takes_itself_back_while_a_job_waits_is_wanted_at_once(self) -> None:
        (server,), = self.cluster(1)
        self.state.suspend(server, self.now)
        self.submit()
        self.assertTrue(self.state.rest_node("a", "its client was idle", self.now))
        self.assertEqual(self.take(WAKE), [(WAKE, server.node, None)])

    def test_what_is_gone_is_not_woken(self) -> None:
        (first, second), (third,) = self.cluster(2, 1)
        self.submit(where="a")
        self.submit(where="b")
        self.pass_time(60.1)
        self.state.node_down("a", "lost", self.now)
        self.submit()
        self.assertEqual(self.take(WAKE), [])


class SilentTest(PatienceTest):
    """Nodes out of reach, and back."""

    def setUp(self) -> None:
        super().setUp()
        (self.first, self.second), = self.cluster(2)
        self.node = self.first.node
        self.state.abandon(self.node, True, self.now)

    def silence(self, seconds: float) -> List[tuple]:
        self.state.node_silent("a", self.now)
        self.take()
        return self.pass_time(seconds)

    def test_a_node_is_abandoned_after_its_time_and_only_if_that_is_wanted(self) -> None:
        job = self.submit(TASK)
        self.state.started(job.id, 1, 5, self.now)
        self.assertEqual(self.silence(49.9), [])
        reason = "node node-a could not be reached for 50 s"
        out = self.pass_time(0.2)
        self.assertEqual(self.told(out), [
            ("ServerAbandoned", "('a', 0)", reason), ("ServerAbandoned", "('a', 1)", reason),
            ("NodeAbandoned", "addr-a", reason)])
        (_, done, _, error), = [each for each in out if each[0] == JOB_DONE]
        self.assertIs(done, job)
        self.assertIsInstance(error, dispycos_lite.NodeLost)
        self.assertIn(reason, str(error))
        self.setUp()
        self.state.abandon(self.node, False, self.now)
        self.submit()
        self.assertEqual(self.silence(1000), [])

    def test_a_node_that_is_heard_in_time_goes_on(self) -> None:
        job = self.submit()
        self.silence(49)
        self.state.node_heard("a", self.now)
        self.assertEqual(self.statuses(), [])
        self.pass_time(2)
        self.end(job)
        self.assertEqual(self.done(), [(job.id, VALUE)])

    def test_a_node_that_is_heard_again_is_reclaimed_and_its_servers_are_busy(self) -> None:
        job = self.submit()
        self.silence(51)
        self.state.node_heard("a", self.now)
        self.assertEqual(self.statuses(), [
            "NodeDiscovered addr-a", "NodeInitialized addr-a",
            "ServerDiscovered ('a', 0)", "ServerInitialized ('a', 0)",
            "ServerDiscovered ('a', 1)", "ServerInitialized ('a', 1)"])
        later = [self.submit() for _ in range(3)]
        self.assertEqual([place for place, _ in self.sent()], [("a", 1), ("a", 0), ("a", 1)])
        self.assertEqual(list(self.first.held), [job.id, later[1].id], "the one that runs there still counts")
        self.assertTrue(self.state.ended(job.id, 1, VALUE, "late", self.now))
        self.assertEqual(self.done(), [], "it was settled before")
        self.assertEqual(list(self.first.held), [later[1].id])

    def test_jobs_with_retries_run_elsewhere_and_their_server_is_restarted(self) -> None:
        job = self.submit(retries=1)
        self.assertIs(job.server, self.first)
        other = self.add_node()
        out = self.silence(51)
        self.assertEqual([(each[1], each[2], each[3]) for each in out if each[0] == SEND_JOB], [(other, job, 2)])
        self.assertFalse(self.state.ended(job.id, 1, VALUE, "of the first run", self.now))
        self.state.node_heard("a", self.now)
        out = self.take()
        self.assertEqual([each[1] for each in self.commands(out)], [self.first])
        self.assertEqual([name for name, what, _ in self.told(out) if what == "('a', 0)"],
                         ["ServerDiscovered", "ServerClosed"])
        self.end(job)
        self.assertEqual(self.done(), [(job.id, VALUE)])

    def add_node(self) -> Any:
        self.state.node_up("z", dispycos_lite.DispycosNodeInfo("node-z", "addr-z", 1), self.now)
        server = self.state.server_up("z", 0, b"p", ("z", 0), self.now)
        self.take()
        return server

    def test_one_that_is_lost_after_all_takes_its_ghosts_along(self) -> None:
        self.submit()
        self.silence(51)
        self.state.node_down("a", "not reached for 60 s", self.now)
        self.assertEqual([each for each in self.statuses() if not each.startswith("ServerClosed")], [
            "ServerDisconnected ('a', 0)", "ServerDisconnected ('a', 1)", "NodeDisconnected addr-a"])
        self.assertEqual(self.state.jobs, {})

    def test_a_client_that_closes_does_not_wait_for_it(self) -> None:
        self.submit()
        self.silence(51)
        self.state.close(self.now)
        self.assertEqual([each[0] for each in self.take(RELEASE_NODE)], [RELEASE_NODE])
        self.assertTrue(self.state.closed)

    def test_a_client_that_is_closing_waits_no_longer_than_that(self) -> None:
        job = self.submit()
        self.state.close(self.now)
        out = self.silence(51)
        self.assertEqual([(each[1], type(each[3])) for each in out if each[0] == JOB_DONE],
                         [(job, dispycos_lite.NodeLost)])
        self.assertEqual(self.told(out)[-1][0], "ClientClosed")

    def test_jobs_that_are_being_stopped_end_with_their_own_fate(self) -> None:
        job = self.submit(TASK)
        self.state.started(job.id, 1, 5, self.now)
        self.state.cancel(job.id, self.now)
        self.take()
        self.state.limit(0.0, dispycos_lite.settings.grace_s / 2, "", "", self.now)
        out = self.silence(100)
        (_, _, _, error), = [each for each in out if each[0] == JOB_DONE]
        self.assertIsInstance(error, dispycos_lite.Cancelled)


IDLE_PROGRAM = """
import sys
sys.path.insert(0, %r)
import dispycos_lite, pycoslite

def work(n, task=None):
    yield task.sleep(0.01)
    return n * n

def main(place, task=None):
    client = dispycos_lite.Client([work])
    print("asks", flush=True)
    assert (yield client.schedule(pycoslite.Location.parse(place))) == 0
    print("has", (yield client.run_result(work, 3)), flush=True)
    yield task.receive(float(sys.argv[2]))
    print("then", (yield client.run_result(work, 4)), flush=True)
    yield client.close()
    print("done", flush=True)

dispycos_lite.Scheduler(host="127.0.0.1", tcp_port=0, discover_peers=False)
pycoslite.Task(main, sys.argv[1])
""" % str(ROOT)
IMPATIENT_PROGRAM = """
import sys
sys.path.insert(0, %r)
import dispycos_lite
dispycos_lite.MaxPulseInterval = 0.1
sys.exit(dispycos_lite.main(sys.argv[1:]))
""" % str(ROOT)


class RealTest(ClientTestCase):
    """Processes, with short times."""

    def setUp(self) -> None:
        for name in ("MinPulseInterval", "MaxPulseInterval"):
            self.addCleanup(setattr, dispycos_lite, name, getattr(dispycos_lite, name))
        dispycos_lite.MinPulseInterval = 0.02

    def test_idle_servers_go_and_come_back_with_the_next_job(self) -> None:
        self.scheduler()

        def main(task: Any = None) -> Iterator:
            statuses = Statuses()
            client = Client([], status_task=statuses.task, pulse_interval=0.05, zombie_period=0.5)
            yield client.schedule()
            (used, _, _) = yield client.run_result(jobs.place)
            yield statuses.status(Scheduler.NodeClosed, task)
            reasons = [message.reason for message in statuses.messages
                       if getattr(message, "status", 0) in (Scheduler.ServerClosed, Scheduler.NodeClosed)]
            self.assertRegex(reasons[-1], r"^idle for \d\S* s, zombie_period=0\.5$")
            (again, _, _) = yield client.run_result(jobs.place)
            self.assertNotEqual(used, again)
            with self.expect_log(r"ClientClosed: the client was idle for \d\S* s, zombie_period=0\.5; schedule it again "
                                 "when there is work, or make it with zombie_period=0"):
                yield statuses.status(Scheduler.ClientClosed, task)
            self.assertRegex(statuses.messages[-1].reason, "^the client was idle")
            with self.expect_log(r"job place was not started: the client was idle for \d\S* s, zombie_period=0\.5; .*: "
                                 "'yield client.schedule\\(\\)' comes first", level=40):
                self.assertIsNone((yield client.run_result(jobs.place)))
            self.assertEqual((yield client.schedule()), 0)
            self.assertEqual((yield client.run_result(jobs.square, 3)), 9)
            yield client.close()
        self.run_task(main)

    def test_an_idle_server_is_closed_while_another_works_and_comes_back_when_it_is_wanted(self) -> None:
        self.scheduler()

        def main(task: Any = None) -> Iterator:
            statuses = Statuses()
            client = Client([], status_task=statuses.task, pulse_interval=0.05, zombie_period=0.4)
            yield client.schedule()
            works = yield client.rtask(jobs.wait, task)
            yield task.receive()
            closed = yield statuses.status(Scheduler.ServerDisconnected, task)
            self.assertNotEqual(closed, works.location)
            self.assertEqual((yield client.servers()), [works.location])
            other = yield client.run_result(jobs.place)             # waits behind the one that works, but for that
            self.assertEqual(len((yield client.servers())), 2)
            works.send(None)
            yield works()
            self.assertNotEqual(other[0], (yield client.run_result_at(works.location, jobs.place))[0])
            yield client.close()
        self.run_task(main)

    def test_a_node_takes_itself_back_from_an_idle_client(self) -> None:
        """It is asked for again when there are jobs; a task that only waits is none the less one that runs."""
        with running_node(1, "--zombie_period", "1") as node:
            self.scheduler(nodes=["127.0.0.1:%d" % node.port])

            def main(task: Any = None) -> Iterator:
                statuses = Statuses()
                client = Client([], status_task=statuses.task, zombie_period=0)
                yield client.schedule()
                waits = yield client.io_rtask(jobs.wait, task)
                yield task.receive()
                yield task.sleep(1.5)
                self.assertNotIn(Scheduler.NodeClosed, statuses.codes())
                waits.send("go on")
                self.assertEqual((yield waits()), "go on")
                yield statuses.status(Scheduler.NodeClosed, task)
                self.assertRegex(statuses.messages[-1].reason, r"its client was idle for \d\S* s, --zombie_period 1 "
                                 "of the node; it may have it again when there is work")
                self.assertEqual((yield client.run_result(jobs.square, 3)), 9)
                yield client.close()
            self.run_task(main)

    @unittest.skipUnless(hasattr(signal, "SIGSTOP"), "a process cannot be stopped for a while on this system")
    def test_a_node_that_is_silent_is_abandoned_and_reclaimed_when_it_is_heard(self) -> None:
        self.addCleanup(setattr, pycoslite.settings, "heartbeat_s", pycoslite.settings.heartbeat_s)
        pycoslite.settings.heartbeat_s = 0.5         # a node that has no time for a moment is not silent yet
        folder = self.temp_dir()
        with running_node(1) as node:
            self.scheduler(nodes=["127.0.0.1:%d" % node.port])

            def main(task: Any = None) -> Iterator:
                statuses = Statuses()
                client = Client([], status_task=statuses.task, pulse_interval=0.1, zombie_period=0)
                yield client.schedule()
                yield statuses.status(Scheduler.ServerInitialized, task)
                self.assertEqual(client.abandon_zombie("127.0.0.1"), 0)
                self.assertEqual(client.abandon_zombie("192.0.2.1"), -1)
                rtask = yield client.rtask(jobs.until_there, str(folder / "go"), task)
                yield task.receive()
                node.signal(signal.SIGSTOP)
                info = yield statuses.status(Scheduler.NodeAbandoned, task)
                self.assertEqual(info.addr, "127.0.0.1")
                ended = yield statuses.wait(lambda message: getattr(message, "info", None) == rtask, task)
                self.assertEqual(ended.type, Scheduler.TaskAbandoned)
                self.assertIsNone((yield rtask()))
                self.assertEqual(((yield client.nodes()), (yield client.servers())), ([], []))
                node.signal(signal.SIGCONT)
                yield statuses.status(Scheduler.ServerInitialized, task, 2)
                server, = client._servers()
                self.assertEqual(len(server.held), 1, "its server is busy with what still runs there")
                waiting = pycoslite.Task(lambda task=None: (yield client.run_result(jobs.place)))
                yield task.sleep(0.1)
                self.assertTrue(waiting.is_alive())
                (folder / "go").touch()
                pid, _, _ = yield waiting()
                self.assertEqual(pid, (yield task.receive()), "it is the same process")
                self.assertEqual(statuses.codes().count(Scheduler.NodeDiscovered), 2)
                yield client.close()
            with self.expect_log(r"there is no such node|NodeAbandoned \(127\.0\.0\.1\): node \S+ could not be reached "
                                 r"for \d.*|cannot be reached"):
                self.run_task(main)

    def test_a_restart_that_the_node_refuses_is_no_loss_of_the_node(self) -> None:
        def body(client: Any, task: Any) -> Iterator:
            yield client.run_result(jobs.square, 2)
            driver = client._driver
            link, = driver.nodes.values()
            with self.expect_log("server 99 is not restarted by its node: .*: there is no server 99, only 1 to 2"):
                driver.network.post(driver.network.spawn, driver._ask_restart, link, 99, "why not", True, None)
                yield task.sleep(0.1)
            self.assertEqual((yield client.nodes()), ["127.0.0.1"])
            self.assertEqual((yield client.run_result(jobs.square, 3)), 9)
        self.with_client(body, zombie_period=0)

    def test_an_idle_client_leaves_the_queue_of_a_shared_scheduler(self) -> None:
        command = [sys.executable, "-c", IMPATIENT_PROGRAM, "--host", "127.0.0.1", "--tcp_port", "0", "--udp_port",
                   LOOPBACK["udp_port"], "--node", "127.0.0.1:%d" % self.node.port, "--zombie_period", "0.5"]
        with running(command, ready=r"listens at (\S+)") as program, contextlib.ExitStack() as stack:
            first, second = [
                stack.enter_context(running([sys.executable, "-c", IDLE_PROGRAM, program.match.group(1), hold],
                                            ready="asks")) for hold in ("600", "0")]
            first.wait_for("has 9")
            first.wait_for("ClientClosed: the client was idle for .* s, zombie_period=0.5 of the scheduler; schedule")
            second.wait_for("done")
            self.assertEqual(second.wait(), 0, second.output)
            self.assertNotIn("done", first.output)


class ExecutorTest(TestCase):
    """`Cluster` has no limit of its own, but nodes may have."""

    def test_a_node_that_takes_itself_back_is_had_again_with_the_next_job_and_nobody_complains(self) -> None:
        with running_node(1, "--zombie_period", "1") as node:
            with Cluster(nodes=["127.0.0.1:%d" % node.port]) as cluster:
                self.assertEqual(cluster.submit(abs, -3).result(60), 3)
                driver = cluster._driver
                self.wait_until(lambda: not driver.nodes and not driver.servers)
                self.assertEqual(list(cluster.map(abs, range(-50, 0))), list(range(50, 0, -1)))
                self.wait_until(lambda: not driver.nodes and not driver.servers)        # and the end while it is away


class AcquaintanceTest(ClientTestCase):
    """Who is told of whom: servers of each other, a client of nodes of other networks."""

    def talk(self, client: Any, where: Any, other: Any, timeout: float, task: Any) -> Iterator:
        """Whether a task at one server finds one at another."""
        waits = yield client.io_rtask_at(where, jobs.answers, "somebody", task)
        yield task.receive()
        found = yield client.run_result_at(other, jobs.finds, "somebody", timeout)
        if not found:
            waits.send(None)
        self.assertEqual((yield waits()), "found" if found else None)
        return found

    def test_servers_know_each_other_only_if_that_is_wanted(self) -> None:
        self.scheduler()

        def main(task: Any = None) -> Iterator:
            for wanted, timeout in ((True, 60.0), (False, 0.3)):
                statuses = Statuses()
                client = Client([], status_task=statuses.task, peers_communicate=wanted)
                yield client.schedule()
                yield statuses.status(Scheduler.ServerInitialized, task, 2)
                one, other = yield client.servers()
                self.assertEqual((yield self.talk(client, one, other, timeout, task)), wanted)
                yield client.close()
        self.run_task(main)

    def test_servers_of_nodes_that_discover_peers_find_each_other(self) -> None:
        port = free_port()
        options = ["--discover_peers", "--udp_port", port]
        with running_node(1, *options) as one, running_node(1, *options) as other:
            self.scheduler(nodes=["127.0.0.1:%d" % node.port for node in (one, other)])

            def main(task: Any = None) -> Iterator:
                statuses = Statuses()
                client = Client([], status_task=statuses.task)
                yield client.schedule()
                yield statuses.status(Scheduler.ServerInitialized, task, 2)
                servers = yield client.servers()
                self.assertTrue((yield self.talk(client, *servers, 60.0, task)))
                yield client.close()
            self.run_task(main)

    def test_a_node_announces_the_client_to_the_nodes_of_its_network(self) -> None:
        """The client names one, and has another UDP port than both."""
        port = free_port()
        with running_node(1, "--udp_port", port, "--name", "one") as one, running_node(1, "--udp_port", port):
            self.scheduler(nodes=["127.0.0.1:%d" % one.port], relay_nodes=True)

            def main(task: Any = None) -> Iterator:
                statuses = Statuses()
                client = Client([], status_task=statuses.task)
                yield client.schedule()
                yield statuses.status(Scheduler.ServerInitialized, task, 2)
                self.assertEqual(len({node.id for node in client._nodes()}), 2)
                yield client.close()
            self.run_task(main)

    def test_a_scheduler_program_has_nodes_announce_it(self) -> None:
        port = free_port()
        with running_node(1, "--udp_port", port) as one, running_node(1, "--udp_port", port) as other:
            command = [sys.executable, ROOT / "dispycos_lite.py", "--host", "127.0.0.1", "--tcp_port", "0",
                       "--udp_port", LOOPBACK["udp_port"], "--node", "127.0.0.1:%d" % one.port, "--relay_nodes"]
            with running(command, ready=r"listens at (\S+)") as program:
                self.wait_until(lambda: program.write("status\n") or "127.0.0.1:%d" % other.port in program.output)


class PulseTest(ClientTestCase):
    """How often nodes are asked what they have free."""

    def test_a_node_that_may_not_be_asked_so_often(self) -> None:
        self.addCleanup(setattr, dispycos_lite, "MinPulseInterval", dispycos_lite.MinPulseInterval)
        dispycos_lite.MinPulseInterval = 0.02
        with running_node(1, "--min_pulse_interval", "0.5", "--max_pulse_interval", "7") as node:
            self.scheduler(nodes=["127.0.0.1:%d" % node.port])

            def main(task: Any = None) -> Iterator:
                statuses = Statuses()
                client = Client([], status_task=statuses.task, pulse_interval=0.05, zombie_period=0)
                yield client.schedule()
                yield statuses.status(Scheduler.ServerInitialized, task)
                link, = client._driver.nodes.values()
                self.assertEqual(dispycos_lite._pulse_of(link, 0.05), 0.5)
                yield client.close()
            with self.expect_log("is asked every 0.5 s what it has free, and not every 0.05 s: it was started with "
                                 "--min_pulse_interval 0.5 and --max_pulse_interval 7"):
                self.run_task(main)

    def test_what_takes_the_place_of_old_options_is_said(self) -> None:
        with self.expect_log(r"Scheduler\(pulse_interval=\.\.\.\) has no effect: each client says how often"):
            with self.expect_log(r"Scheduler\(clean=\.\.\.\) has no effect: nothing is left behind"):
                self.scheduler(pulse_interval=50, clean=True)
        with self.expect_log("a node that cannot be reached is given up after 60 s .* before 5 pulse intervals have "
                             r"passed \(250 s\)", level=20):
            def main(task: Any = None) -> Iterator:
                client = Client([])
                yield client.schedule()
                yield client.run_result(jobs.square, 1)
                yield client.close()
            self.run_task(main)

    def test_a_client_says_how_often_nodes_are_searched_for(self) -> None:
        scheduler = self.scheduler(nodes=[])
        searches: List[int] = []
        scheduler._discovery = SimpleNamespace(search=searches.append, listen=lambda: None, close=lambda: None)
        self.addCleanup(setattr, dispycos_lite, "MinPulseInterval", dispycos_lite.MinPulseInterval)
        dispycos_lite.MinPulseInterval = 0.02

        def main(task: Any = None) -> Iterator:
            client = Client([], pulse_interval=0.02, ping_interval=0.05, zombie_period=0)
            yield client.schedule()
            while len(searches) < 5:
                yield task.sleep(0.01)
            yield client.close()
        self.run_task(main)


if __name__ == "__main__":
    unittest.main()
