"""dispycos_lite.py section 7: the documented Client (Computation), on a real node on the loopback interface."""
from __future__ import annotations

import contextlib
import functools
import gc
import io
import os
import signal
import sys
import threading
import types
import unittest
from pathlib import Path

import dispycos_lite
import pycoslite
from dispycos_lite import Client, Computation, DispycosNodeAllocate, DispycosStatus, Scheduler
from tests import client_jobs as jobs
from tests import cluster_jobs
from tests.client_support import LOOPBACK, ClientTestCase, Statuses, each, running_node
from tests.rows_dispycos import ROWS
from tests.support import ROOT, TestCase, free_port, need_cpus, needs_threads_after_main, running


class RowsTest(TestCase):

    def test_every_row_has_its_tests(self):
        loader = unittest.TestLoader()
        for row, names in ROWS.items():
            for name in names.split():
                with self.subTest(row):
                    loader.loadTestsFromName("tests." + name)
                    self.assertEqual(loader.errors, [])


class RestartedServerTest(TestCase):
    """A server that is back at its port before the end of its predecessor was heard of; no network."""

    def found(self, names, seconds=()):
        """Which of the peers that answer, one after the other, is taken for the process "new"."""
        answers, times = iter(names), iter([0.0, *seconds])
        driver = object.__new__(dispycos_lite._ServerDriver)
        driver.network = types.SimpleNamespace(connect=lambda _locations, timeout: next(answers),
                                               engine=types.SimpleNamespace(clock=lambda: next(times)))
        steps, peer = driver._server_process([], b"new".hex()), None
        with self.assertRaises(StopIteration) as caught:
            while True:
                given = steps.send(peer)
                peer = types.SimpleNamespace(process_id=given) if isinstance(given, bytes) else None
        return caught.exception.value.process_id

    def test_the_predecessor_goes_first(self):
        self.assertEqual(self.found([b"old", b"old", b"new"], [0.1, 0.2]), b"new")

    def test_it_stays(self):
        with self.assertRaisesRegex(pycoslite.PeerLost, "another process answers there"):
            self.found([b"old", b"old"], [0.1, pycoslite.settings.message_timeout_s])


class ConstructorTest(TestCase):
    """What a client is made with; no network."""

    def tearDown(self):
        pycoslite.stop_default()

    def task(self):
        def waits(task=None):
            task.set_daemon()
            yield task.receive()
        return pycoslite.Task(waits)

    def options(self, *args, **options):
        return vars(Client([], *args, **options)._options)

    def test_form_of_pycos(self):
        status = self.task()
        found = self.options(["host1"], status, jobs.load_node, jobs.load_server, True, True, 20, [], 30, True, 200,
                             True)
        self.assertEqual(found["nodes"], ["host1"])
        self.assertIs(found["status_task"], status)
        self.assertIs(found["node_setup"], jobs.load_node)
        self.assertIs(found["server_setup"], jobs.load_server)
        self.assertEqual((found["disable_nodes"], found["disable_servers"], found["pulse_interval"]), (True, True, 20))
        self.assertEqual((found["ping_interval"], found["restart_servers"], found["zombie_period"]), (30, True, 200))
        self.assertTrue(found["abandon_zombie_nodes"])

    def test_form_of_the_first_dispycos(self):
        status, rule = self.task(), DispycosNodeAllocate("*", cpus=1)
        found = self.options(25, [rule], status, jobs.load_node, jobs.load_server, True, False, True)
        self.assertEqual((found["pulse_interval"], found["node_allocations"]), (25, [rule]))
        self.assertIs(found["status_task"], status)
        self.assertTrue(found["peers_communicate"])
        found = self.options(status_coro=status, pulse_interval=25, node_allocations=[rule])
        self.assertIs(found["status_task"], status)

    def test_form_of_discoro(self):
        status = self.task()
        found = self.options(status, 5, 20, 300)
        self.assertIs(found["status_task"], status)
        self.assertEqual((found["timeout"], found["pulse_interval"], found["zombie_period"]), (5, 20, 300))

    def test_defaults(self):
        found = self.options()
        self.assertEqual(found["pulse_interval"], 5 * dispycos_lite.MinPulseInterval)
        self.assertIsNone(found["status_task"])

    def test_options_of_both_names_are_one(self):
        client = Client([], nodes=["a"], node_allocations=[DispycosNodeAllocate("b", cpus=1)])
        self.assertEqual([rule.node for rule in client._wanted.rules], ["a", "b"])
        with self.assertRaisesRegex(TypeError, "status_task twice"):
            Client([], status_task=None, status_coro=None)
        with self.assertRaises(TypeError):
            Client([], no_such_option=1)

    def test_what_does_not_fit_is_said(self):
        for options, sentence in (
                ({"pulse_interval": 1}, "pulse_interval=1 is not between"),
                ({"pulse_interval": 1000}, "pulse_interval=1000 is not between"),
                ({"pulse_interval": 50, "ping_interval": 20}, "ping_interval=20 is shorter"),
                ({"pulse_interval": 50, "zombie_period": 100}, "zombie_period=100 is shorter"),
                ({"timeout": -1}, "timeout=-1 is no time to wait"),
                ({"nodes": [1]}, "is not a list of host names"),
                ({"status_task": "me"}, "status_task='me' is not a task"),
                ({"node_setup": jobs.double}, "node_setup=.* is not a generator function"),
                ({"server_setup": 3}, "server_setup=3 is not a generator function"),
                ({"disable_nodes": True}, "need a status_task"),
                ({"disable_servers": True}, "need a status_task")):
            with self.subTest(options), self.assertRaisesRegex(pycoslite.MisuseError, sentence):
                Client([], **options)
        Client([], zombie_period=0)                     # off

    def test_how_long_a_client_may_be_idle(self):
        """The shorter one of its own limit and the scheduler's; the pulse follows."""
        for own, shared_s, zombie_s, rule, pulse_s in (
                (None, 0, 500, "zombie_period=500", 50), (0, 0, 0, "zombie_period=0", 50),
                (250, 0, 250, "zombie_period=250", 50), (250, 1000, 250, "zombie_period=250", 50),
                (0, 1000, 1000, "zombie_period=1000 of the scheduler", 50),
                (None, 90, 90, "zombie_period=90 of the scheduler", 30)):
            with self.subTest(own=own, shared_s=shared_s):
                client = Client([], pulse_interval=50, zombie_period=own)
                wanted = client._wanted
                client._options.patience(shared_s, wanted)
                self.assertEqual((wanted.zombie_s, wanted.idle_rule[0], wanted.pulse_s), (zombie_s, rule, pulse_s))
                self.assertEqual("zombie_period=0" in wanted.idle_rule[1], "scheduler" not in rule)

    def test_components_that_cannot_be(self):
        with self.assertRaisesRegex(pycoslite.MisuseError, "/no/such/file cannot be sent: No such file"):
            Client(["/no/such/file"])
        for builtin in (int, 3, [1]):
            with self.subTest(builtin), self.assertRaisesRegex(TypeError, "built-in"):
                Client([builtin])
        lock = threading.Lock()
        with self.assertRaisesRegex(dispycos_lite.CannotShip, "lock"):
            Client([lambda: lock])

    def test_callers_list_is_left_alone(self):
        components = [jobs.double, jobs.Point(1), __file__]
        client = Client(components)
        self.assertEqual(len(components), 3)
        self.assertEqual(len(client._wanted.components), 2)

    def test_names_of_files(self):
        here = os.getcwd()
        self.addCleanup(os.chdir, here)
        folder = self.temp_dir().resolve()
        (folder / "data").mkdir()
        (folder / "data" / "in.txt").write_text("x")
        os.chdir(str(folder))
        wanted = Client([os.path.join("data", "in.txt"), os.path.abspath(__file__)])._wanted
        self.assertEqual([name for name, _ in wanted.files], ["data/in.txt", "test_dispycos_client.py"])

    def test_status_task_may_be_set_later(self):
        client, status = Client([]), self.task()
        client.status_coro = status
        self.assertIs(client.status_task, status)
        with self.assertRaisesRegex(pycoslite.MisuseError, "not a task"):
            client.status_task = 1

    def test_old_names(self):
        self.assertIs(Computation, Client)
        for old, new in (("DiscoroStatus", "DispycosStatus"), ("CoroInfo", "DispycosTaskInfo"),
                         ("DiscoroNodeAllocate", "DispycosNodeAllocate"), ("NodeAvailInfo", "DispycosNodeAvailInfo")):
            self.assertIs(getattr(dispycos_lite, old), getattr(dispycos_lite, new))


class JobsTest(ClientTestCase):
    """Running jobs."""

    def test_components_are_there_before_jobs(self):
        folder = self.temp_dir()
        (folder / "data.txt").write_text("content")
        (folder / "data.txt").chmod(0o640)

        def body(client, task):
            self.assertEqual((yield client.run_result(jobs.read_file, "data.txt")), ("content", 0o640))
            _, name, beside = yield client.run_result(jobs.place)
            self.assertIn("data.txt", beside)
            self.assertRegex(name, r"^dispycos_server_\d$")

            def other(task=None):                       # not a component: it travels with the job
                yield
                import __main__
                return sorted({"double", "Point"} & set(vars(__main__))), jobs.double(2)
            self.assertEqual((yield client.run_result(other))[1], 4)
        self.with_client(body, [jobs.square, jobs.double, jobs.Point(0), jobs, str(folder / "data.txt")])

    def test_a_file_longer_than_a_message_is_a_component(self):
        folder = self.temp_dir()
        (folder / "data.txt").write_text("content" * 200_000)
        self.addCleanup(setattr, pycoslite.settings, "frame_bytes", pycoslite.settings.frame_bytes)
        pycoslite.settings.frame_bytes = 1 << 20

        def body(client, task):
            return (yield client.run_result(jobs.file_size, "data.txt"))
        self.assertEqual(self.with_client(body, [str(folder / "data.txt")]), 7 * 200_000)

    def test_files_go_to_the_directory_of_a_job_and_come_back(self):
        folder = self.temp_dir()
        (folder / "data.bin").write_bytes(bytes(1_000_000))

        def body(client, task):
            node = pycoslite.Pycos()
            node.dest_path = "of-%s" % self.id()
            rtask = yield client.rtask(jobs.measure_file, task)
            self.assertEqual((yield node.send_file(rtask.location, folder / "data.bin")), 0)
            rtask.send("data.bin")
            self.assertEqual((yield rtask.finish()), 0)
            return (Path(node.dest_path) / "results" / "size-data.bin").read_text()
        self.assertEqual(self.with_client(body), "1000000")

    def test_all_ways_to_wait(self):
        """yield, yield from and await, each in a program of its own kind."""
        self.scheduler()

        async def asynchronous():
            client = Client(jobs.square)
            self.assertEqual(await client.schedule(), 0)
            rtask = await client.rtask(jobs.square, 3)
            found = [await rtask(), await client.run_result(jobs.square_async, 4), await client.nodes()]
            await client.close()
            return found

        def delegating(task=None):
            client = Client(jobs.square)
            yield from client.schedule()
            rtask = yield from client.rtask(jobs.square, 3)
            found = [(yield from rtask.finish()), (yield from client.run_result(jobs.square_async, 4)),
                     (yield from client.nodes())]
            yield from client.close()
            return found
        for program in (asynchronous, delegating):
            self.assertEqual(self.run_task(program), [9, 16, ["127.0.0.1"]])

    def test_cpu_tasks_have_a_server_each(self):
        def body(client, task):
            first = yield each(client.rtask(jobs.wait, task) for _ in range(2))
            here = yield each(task.receive() for _ in range(2))
            self.assertEqual(len({pid for _, _, pid in here}), 2)

            def third(client, task=None):
                return (yield client.rtask(jobs.square, 5))
            waiting = pycoslite.Task(third, client)
            quick = yield client.io_rtask(jobs.square, 2)               # needs no slot
            self.assertEqual((yield quick()), 4)
            self.assertTrue(waiting.is_alive())
            self.assertEqual(Scheduler().status()["PendingCPU"], 0)     # it waits at its server already
            first[0].send("go on")
            rtask = yield waiting()
            self.assertEqual((yield rtask.finish()), 25)
            first[1].send(None)
        self.with_client(body)

    def test_waits_for_the_first_node(self):
        """The client is there before any node; a job handed in meanwhile runs when one comes."""
        self.scheduler(nodes=[])
        location = pycoslite.Location("127.0.0.1", self.node.port)

        def main(task=None):
            client = Client([])
            yield client.schedule()
            job = pycoslite.Task(lambda task=None: (yield client.run_result(jobs.square, 3)))
            self.assertEqual((yield client.nodes()), [])
            yield task.sleep(0.05)
            self.assertEqual(Scheduler().status()["PendingCPU"], 1)
            yield pycoslite.Pycos().peer(location)
            result = yield job()
            yield client.close()
            return result
        self.assertEqual(self.run_task(main), 9)

    def test_at_a_place(self):
        def body(client, task):
            servers = yield client.servers()
            node = (yield client.nodes())[0]
            pids = []
            for where in servers:
                rtask = yield client.rtask_at(where, jobs.place)
                self.assertEqual(rtask.location, where)
                pids.append((yield rtask())[0])
            self.assertEqual(len(set(pids)), 2)
            for where in (node, "localhost", Scheduler().network and self.node_name(client)):
                self.assertIn((yield client.run_result_at(where, jobs.place))[0], pids)
            rtask = yield client.io_rtask_at(servers[1], jobs.place)
            self.assertEqual((yield rtask())[0], pids[1])
        self.with_client(self.when_up(body, 2))

    @staticmethod
    def node_name(client):
        return client._nodes()[0].info.name

    @staticmethod
    def when_up(body, count):
        """The same body, once so many servers are up."""
        def waiting(client, task):
            while len((yield client.servers())) < count:
                yield task.sleep(0.01)
            return (yield body(client, task))
        return waiting

    def test_what_cannot_run_is_refused(self):
        def body(client, task):
            for method, args, sentence in (
                    (client.rtask, (jobs.double, 1), "double was not started: it is neither a generator function"),
                    (client.rtask, (jobs.square,), "square was not started: (?s:.*)missing 1 required"),
                    (client.rtask, (jobs.square, threading.Lock()), "square was not started: cannot send argument 1"),
                    (client.io_rtask, (len, "x"), "len was not started: it is neither"),
                    (functools.partial(client.rtask_at, "192.0.2.1"), (jobs.square, 1),
                     "no node or server '192.0.2.1' is in use"),
                    (functools.partial(client.rtask_at, pycoslite.Location("127.0.0.1", 1)), (jobs.square, 1),
                     "no node or server 127.0.0.1:1 is in use; there are: 127.0.0.1:")):
                with self.subTest(sentence), self.expect_log(sentence, level=40):
                    self.assertIsNone((yield method(*args)))
        self.with_client(self.when_up(body, 2))

    def test_not_scheduled(self):
        client = Client([])
        self.addCleanup(self.stop_all)
        with self.expect_log("is not scheduled"):
            self.assertIsNone(self.run_task(lambda task=None: (yield client.run_result(jobs.square, 1))))

    def test_results(self):
        def body(client, task):
            self.assertEqual((yield client.run_result(jobs.square, 7)), 49)
            self.assertEqual((yield client.run_result(jobs.square_async, 7)), 49)
            self.assertEqual((yield client.run_result(jobs.double, 7)), 14)
            self.assertEqual((yield client.run_results(jobs.square, range(20))), [n * n for n in range(20)])
            self.assertEqual((yield client.run_results(jobs.total, [(1, 2), [3, 4, 5], 6, ()])), [3, 12, 6, 0])
            self.assertEqual((yield client.run_result(jobs.total, 1, 2, scale=5)), 15)
            failed = yield client.run_result(jobs.fail, "text")
            self.assertIsInstance(failed, pycoslite.MonitorException)
            self.assertIs(failed.type, ValueError)
            failed = yield client.run_result(jobs.give_lock)
            self.assertIs(failed.type, dispycos_lite.ResultError)
            self.assertIn("lock", failed.value)
        self.with_client(body)

    def test_many_at_once(self):
        def body(client, task):
            servers = yield client.servers()
            tasks = yield client.run_servers(jobs.place)
            pids = {pid for pid, _, _ in (yield each(rtask() for rtask in tasks))}
            self.assertEqual(len(pids), 2)
            for call, expected in (
                    (client.run_nodes(jobs.place), 1), (client.run_each("node", jobs.place), 1),
                    (client.run_each("server", jobs.place), 2), (client.run_each(servers[0], jobs.place), 2),
                    (client.run_each("127.0.0.1", jobs.place), 2), (client.run_each("anything", jobs.place), 1),
                    (client.run_node_servers("127.0.0.1", jobs.place), 2),
                    (client.run_node_servers("192.0.2.1", jobs.place), 0)):
                tasks = yield call
                found = {pid for pid, _, _ in (yield each(rtask() for rtask in tasks))}
                self.assertEqual(len(found), expected)
                self.assertLessEqual(found, pids)
        self.with_client(self.when_up(body, 2))

    def test_end_of_a_task(self):
        def body(client, task):
            rtask = yield client.rtask(jobs.square, 3)
            self.assertIsInstance(rtask, pycoslite.Task)
            self.assertEqual((yield rtask()), 9)
            self.assertEqual((yield rtask.finish(0)), 9)                # again
            self.assertFalse(rtask.is_alive())
            rtask = yield client.rtask(jobs.wait, task)
            yield task.receive()
            self.assertIsNone((yield rtask.finish(0.01)))               # time is up
            self.assertTrue(rtask.is_alive())
            rtask.send(None)
            self.assertIsNone((yield rtask()))
            rtask = yield client.rtask(jobs.fail, "text")
            failed = yield rtask()
            self.assertIs(failed.type, ValueError)
            self.assertRegex(failed.value, r"^Traceback (?s:.*)in fail(?s:.*)ValueError: text\s*$")
            self.assertEqual((failed.info, str(failed.error)), (rtask, "text"))
        self.with_client(body)

    def test_failure_that_nobody_looks_at_is_logged(self):
        def body(client, task):
            with self.expect_log("fail/.* failed, and nobody has asked: (?s:.*)ValueError: text"):
                yield client.rtask(jobs.fail, "text")
                yield client.run_result(jobs.square, 1)
                while (yield client.tasks()):
                    yield task.sleep(0.01)
                gc.collect()
        self.with_client(body)

    def test_messages_both_ways(self):
        def body(client, task):
            rtask = yield client.rtask(jobs.echo_points, task)
            for n in range(3):
                self.assertEqual(rtask.send(jobs.Point(n)), 0)
                self.assertEqual((yield task.receive()).x, n + 1)
            self.assertEqual((yield rtask.deliver(None, timeout=60)), 1)
            self.assertEqual((yield rtask()), "done")
            self.assertEqual((yield rtask.deliver("late", timeout=60)), -1)
            rtask = yield client.io_rtask(jobs.wait, task)
            _, named, _ = yield task.receive()
            self.assertEqual(named, rtask)                              # it has sent a reference to itself
            self.assertEqual({rtask: 1}[named], 1)
            named.send("by the other reference")
            self.assertEqual((yield rtask()), "by the other reference")
        self.with_client(body, [jobs.Point])

    def test_monitor_and_terminate(self):
        def body(client, task):
            rtask = yield client.rtask(jobs.wait, task)
            yield task.receive()
            self.assertEqual((yield task.monitor(rtask)), 0)
            self.assertEqual(rtask.terminate(), 0)
            status = yield task.receive(60)
            self.assertEqual((status.info, status.type, status.value), (rtask, StopIteration, None))
            self.assertIsNone((yield rtask()))
            self.assertEqual(rtask.notify(task), -1)                    # too late
            self.assertEqual((yield client.run_results(jobs.square, [1, 2, 3])), [1, 4, 9])     # its server is free
        self.with_client(body)

    def test_what_is_in_use(self):
        def body(client, task):
            rtask = yield client.io_rtask_at((yield client.servers())[1], jobs.wait, task)
            yield task.receive()
            servers = yield client.servers()
            self.assertEqual((yield client.nodes()), ["127.0.0.1"])
            self.assertEqual([location.addr for location in servers], ["127.0.0.1"] * 2)
            for where, expected in ((None, [rtask]), ("127.0.0.1", [rtask]), (servers[1], [rtask]), (servers[0], []),
                                    ("192.0.2.1", [])):
                self.assertEqual((yield client.tasks(where)), expected, where)
            status = Scheduler().status()
            self.assertEqual([status[name] for name in ("Pending", "PendingCPU", "Nodes", "Servers")], [0, 0, 1, 2])
            self.assertIn("client", status["Client"])
            rtask.send(None)
            yield rtask()
        self.with_client(self.when_up(body, 2))
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            Scheduler().print_status()
        self.assertEqual(output.getvalue(), "Client: \nPending: 0\nPendingCPU: 0\nNodes: 0\nServers: 0\n")
        self.assertEqual(Scheduler().status(), {"Client": "", "Pending": 0, "PendingCPU": 0, "Nodes": 0, "Servers": 0})


class TurnTest(ClientTestCase):
    """schedule and close."""

    def test_clients_take_turns(self):
        self.scheduler()
        order = []

        def other(first, task=None):
            client = Client([])
            self.assertEqual((yield client.schedule(timeout=0.05)), -1)         # it is not its turn
            order.append("late")
            self.assertEqual((yield client.schedule()), 0)
            order.append("second")
            pid = (yield client.run_result(jobs.place))[0]
            yield client.close()
            return pid

        def main(task=None):
            client = Client([])
            self.assertEqual((yield client.schedule()), 0)
            self.assertEqual((yield client.schedule()), 0)                      # does no harm
            second = pycoslite.Task(other, client)
            pid = (yield client.run_result(jobs.place))[0]
            while not order:
                yield task.sleep(0.01)
            yield task.sleep(0.02)
            self.assertEqual(Scheduler().status()["Pending"], 1)
            order.append("first closes")
            self.assertEqual((yield client.close()), 0)
            self.assertEqual((yield client.close()), 0)
            self.assertEqual((yield client.nodes()), [])
            self.assertNotEqual(pid, (yield second()))                          # servers are new for each client
            self.assertEqual(order, ["late", "first closes", "second"])
            self.assertEqual((yield client.schedule()), 0)                      # and the first one again
            self.assertEqual((yield client.run_result(jobs.square, 2)), 4)
            yield client.close()
        self.run_task(main)

    def test_client_that_is_terminated_in_the_queue(self):
        self.scheduler()

        def waits(task=None):
            yield Client([]).schedule()

        def main(task=None):
            client = Client([])
            yield client.schedule()
            waiting = pycoslite.Task(waits)
            yield task.sleep(0.01)
            waiting.terminate()
            yield waiting()
            yield client.close()
            third = Client([])
            self.assertEqual((yield third.schedule()), 0)
            yield third.close()
        self.run_task(main)

    def test_close_waits_for_cpu_tasks_only(self):
        self.scheduler()

        def main(task=None):
            statuses = Statuses()
            client = Client([], status_task=statuses.task)
            yield client.schedule()
            cpu = yield client.rtask(jobs.wait, task)
            inout = yield client.io_rtask(jobs.wait, task)
            yield each(task.receive() for _ in range(2))
            self.assertEqual((yield client.close(timeout=0.05)), -1)            # but it is closing now
            self.assertIsNone((yield client.rtask(jobs.square, 1)))
            ended = yield statuses.wait(lambda message: getattr(message, "info", None) == inout, task)
            self.assertEqual(ended.type, Scheduler.TaskAbandoned)
            self.assertIsNone((yield inout()))
            cpu.send("last words")
            self.assertEqual((yield client.close()), 0)
            self.assertEqual((yield cpu()), "last words")
        self.run_task(main)

    def test_close_waits_for_all(self):
        self.scheduler()

        def main(task=None):
            client = Client([])
            yield client.schedule()
            rtasks = []
            for option in ("await_io", "await_async"):
                yield client.schedule()
                rtask = yield client.io_rtask(jobs.wait, task)
                yield task.receive()
                self.assertEqual((yield client.close(timeout=0.05, **{option: True})), -1)
                rtask.send(option)
                self.assertEqual((yield client.close(**{option: True})), 0)
                rtasks.append((yield rtask()))
            self.assertEqual(rtasks, ["await_io", "await_async"])
        self.run_task(main)

    def test_close_stops_all(self):
        """KeyboardInterrupt in those that run, whose value counts; what does not listen is killed."""
        self.scheduler()

        def main(task=None):
            statuses = Statuses()
            client = Client([], status_task=statuses.task)
            yield client.schedule()
            polite = yield client.rtask(jobs.interruptible, task)
            deaf = yield client.rtask(jobs.stubborn, task)
            plain = yield client.io_rtask_at(polite.location, jobs.wait, task)
            for _ in range(3):
                yield task.receive()
            self.assertEqual((yield client.close(terminate=True)), 0)
            self.assertEqual((yield polite()), "interrupted")
            self.assertIsNone((yield deaf()))
            self.assertIsNone((yield plain()))
            kinds = {message.info: message.type for message in statuses.messages
                     if isinstance(message, pycoslite.MonitorStatus)}
            self.assertEqual(kinds, {polite: StopIteration, deaf: Scheduler.TaskTerminated,
                                     plain: Scheduler.TaskTerminated})
        self.run_task(main)

    def test_scheduler_closes_the_client(self):
        self.scheduler()

        def main(task=None):
            client = Client([])
            yield client.schedule()
            yield Scheduler().close()
            self.assertEqual((yield client.nodes()), [])
            yield Scheduler().close()                                           # without one
        self.run_task(main)

    def test_scheduler_is_one(self):
        scheduler = self.scheduler()
        self.assertIs(Scheduler(nodes=["elsewhere"]), scheduler)
        self.assertIs(Scheduler.NodeDiscovered, dispycos_lite.SchedulerStatus.NodeDiscovered)
        self.assertEqual(Scheduler.TaskStarted, Scheduler.CoroCreated)


class StatusTest(ClientTestCase):
    """What the status task is told."""

    def test_order(self):
        self.scheduler()

        def main(task=None):
            statuses = Statuses()
            client = Client([jobs.square], status_task=statuses.task)
            yield client.schedule()
            info = yield statuses.status(Scheduler.NodeDiscovered, task)
            self.assertEqual((info.addr, info.cpus, str(info)), ("127.0.0.1", 2, "127.0.0.1"))
            yield statuses.status(Scheduler.ServerInitialized, task, 2)
            rtask = yield client.rtask(jobs.square, 40)
            started = yield statuses.status(Scheduler.TaskStarted, task)
            self.assertEqual((started.task, started.coro, started.args, started.kwargs), (rtask, rtask, (40,), {}))
            self.assertGreater(started.start_time, 1e9)
            yield client.close()
            closed = yield statuses.status(Scheduler.ClientClosed, task)
            self.assertEqual(closed, id(client))
            return statuses
        statuses = self.run_task(main)
        self.assertEqual(statuses.codes(), [
            Scheduler.ClientScheduled, Scheduler.NodeDiscovered, Scheduler.NodeInitialized,
            *statuses.codes()[3:7], Scheduler.TaskStarted, Scheduler.ServerClosed, Scheduler.ServerClosed,
            Scheduler.NodeClosed, Scheduler.ClientClosed])
        self.assertEqual(sorted(statuses.codes()[3:7]),
                         [Scheduler.ServerDiscovered] * 2 + [Scheduler.ServerInitialized] * 2)
        kinds = [message.status if isinstance(message, DispycosStatus) else message.value
                 for message in statuses.messages if not isinstance(message, dispycos_lite.NodeAvailInfo)]
        self.assertEqual(kinds[8:], [1600, Scheduler.ServerClosed, Scheduler.ServerClosed, Scheduler.NodeClosed,
                                     Scheduler.ClientClosed])                   # the result follows the start
        locations = [message.info for message in statuses.messages
                     if getattr(message, "status", 0) == Scheduler.ServerInitialized]
        self.assertTrue(all(isinstance(location, pycoslite.Location) for location in locations))

    def test_availability(self):
        self.scheduler()
        self.addCleanup(setattr, dispycos_lite, "MinPulseInterval", dispycos_lite.MinPulseInterval)
        dispycos_lite.MinPulseInterval = 0.02

        def main(task=None):
            statuses = Statuses()
            client = Client([], status_task=statuses.task, pulse_interval=0.02, zombie_period=0)
            yield client.schedule()
            is_it = functools.partial(lambda kind, message: isinstance(message, kind), dispycos_lite.NodeAvailInfo)
            info = yield statuses.wait(is_it, task)
            self.assertEqual(info.location, pycoslite.Location("127.0.0.1", self.node.port))
            self.assertGreater(info.disk, 0)
            for value in (info.cpu, info.swap):
                self.assertTrue(value is None or 0 <= value <= 100)
            yield client.close()
        self.run_task(main)

    def test_suspend_and_resume(self):
        self.scheduler()

        def main(task=None):
            statuses = Statuses()
            client = Client([], status_task=statuses.task)
            yield client.schedule()
            servers = yield each(statuses.status(Scheduler.ServerInitialized, task, n) for n in (1, 2))
            self.assertEqual(client.suspend_server(servers[0]), 0)
            self.assertEqual((yield statuses.status(Scheduler.ServerSuspended, task)), servers[0])
            found = yield client.run_results(jobs.place, [()] * 4)
            self.assertEqual(len({pid for pid, _, _ in found}), 1)
            self.assertEqual(client.resume_server(servers[0]), 0)
            self.assertEqual((yield statuses.status(Scheduler.ServerResumed, task)), servers[0])
            self.assertEqual(client.suspend_node("127.0.0.1"), 0)
            info = yield statuses.status(Scheduler.NodeSuspended, task)
            self.assertEqual(info.addr, "127.0.0.1")
            waiting = pycoslite.Task(lambda task=None: (yield client.run_result(jobs.square, 3)))
            yield task.sleep(0.05)
            self.assertTrue(waiting.is_alive())
            self.assertEqual(client.resume_node(info), 0)
            self.assertEqual((yield waiting()), 9)
            yield statuses.status(Scheduler.NodeResumed, task)
            for method in (client.suspend_node, client.resume_node, client.close_node):
                self.assertEqual(method("192.0.2.1"), -1)
            for method in (client.suspend_server, client.resume_server, client.close_server, client.restart_server):
                self.assertEqual(method(pycoslite.Location("127.0.0.1", 1)), -1)
            yield client.close()
        with self.expect_log("no such node or server"):
            self.run_task(main)

    def test_closing_servers_and_nodes(self):
        self.scheduler()

        def main(task=None):
            statuses = Statuses()
            client = Client([], status_task=statuses.task)
            yield client.schedule()
            first, second = yield each(statuses.status(Scheduler.ServerInitialized, task, n) for n in (1, 2))
            old = (yield client.run_result_at(first, jobs.place))[0]
            self.assertEqual(client.restart_server(first), 0)
            yield statuses.status(Scheduler.ServerClosed, task)
            yield statuses.status(Scheduler.ServerDisconnected, task)
            again = yield statuses.status(Scheduler.ServerInitialized, task, 3)
            self.assertNotEqual(old, (yield client.run_result_at(again, jobs.place))[0])
            rtask = yield client.rtask_at(second, jobs.wait, task)
            yield task.receive()
            self.assertEqual(client.close_server(second), 0)
            self.assertEqual((yield statuses.status(Scheduler.ServerClosed, task, 2)), second)
            rtask.send("last")
            self.assertEqual((yield rtask()), "last")
            self.assertEqual((yield statuses.status(Scheduler.ServerDisconnected, task, 2)), second)
            self.assertEqual((yield client.servers()), [again])
            deaf = yield client.rtask(jobs.stubborn, task)
            yield task.receive()
            self.assertEqual(client.close_node("127.0.0.1", terminate=True), 0)
            yield statuses.status(Scheduler.NodeClosed, task)
            self.assertIsNone((yield deaf()))
            self.assertEqual((yield client.nodes()), [])
            yield client.close()
            ended = [message for message in statuses.messages if getattr(message, "info", None) == deaf]
            self.assertEqual([message.type for message in ended], [Scheduler.TaskTerminated])
        self.run_task(main)

    def test_restart_servers(self):
        """The option, and what tasks may do to their own server and node."""
        self.scheduler()

        def main(task=None):
            statuses = Statuses()
            client = Client([], status_task=statuses.task, restart_servers=True)
            yield client.schedule()
            yield statuses.status(Scheduler.ServerInitialized, task, 2)
            pid = yield client.run_result(jobs.close_own_server, False)
            yield statuses.status(Scheduler.ServerInitialized, task, 3)
            tasks = yield client.run_servers(jobs.place)
            pids = {pid for pid, _, _ in (yield each(rtask() for rtask in tasks))}
            self.assertEqual(len(pids), 2)
            self.assertNotIn(pid, pids)
            yield client.run_result(jobs.close_own_node)
            yield statuses.status(Scheduler.NodeClosed, task)
            yield client.close()
        self.run_task(main)

    def test_server_that_dies(self):
        self.scheduler()

        def main(task=None):
            statuses = Statuses()
            client = Client([], status_task=statuses.task)
            yield client.schedule()
            rtask = yield client.rtask(jobs.die)
            self.assertIsNone((yield rtask()))
            ended = yield statuses.wait(lambda message: getattr(message, "info", None) == rtask, task)
            self.assertEqual(ended.type, Scheduler.TaskAbandoned)
            self.assertIn("SIGKILL", ended.value)
            self.assertEqual((yield statuses.status(Scheduler.ServerDisconnected, task)), rtask.location)
            result = yield client.run_result(jobs.die)
            self.assertEqual(result.type, Scheduler.TaskAbandoned)
            self.assertEqual((yield client.run_result(jobs.square, 3)), 9)
            yield client.close()
        with self.expect_log("SIGKILL"):
            self.run_task(main)


class WatchedTest(ClientTestCase):
    """`counts` and `watch`, for jobs of every kind."""

    def test_counts_in_any_thread_and_over_turns(self):
        self.scheduler()
        client = Client([])
        self.assertEqual(client.counts(), (dispycos_lite.JobCounts(), {}, {}, {}))

        def main(turn, task=None):
            yield client.schedule()
            yield client.run_results(jobs.double, range(10))
            yield client.run_result(jobs.square, 3)
            yield client.run_result(jobs.fail_plainly, "broken")
            waits = yield client.rtask(jobs.wait, task)
            yield task.receive()
            total = client.counts().total           # also in a task
            self.assertEqual((total.running, total.done, total.submitted), (1, 13 * turn - 1, 13 * turn))
            waits.send("go on")
            yield waits()
            yield client.close()
        for turn in (1, 2):
            self.run_task(main, turn)
            counts = client.counts()
            self.assertEqual(counts.total, dispycos_lite.JobCounts(13 * turn, done=13 * turn, failed=turn))
            self.assertEqual({place.port for place in counts.nodes}, {self.node.port})
            for places in (counts.nodes, counts.servers):
                self.assertEqual(sum(found.done for found in places.values()), 13 * turn)

    def test_what_runs_without_a_task(self):
        self.scheduler()
        folder = self.temp_dir()

        def main(task=None):
            client = Client([])
            self.assertEqual(client.plain_jobs(), [])
            yield client.schedule()
            waits = yield client.io_rtask(jobs.wait, task)
            yield task.receive()
            held = [pycoslite.Task(lambda task=None: (yield client.run_result(
                cluster_jobs.hold, str(folder / "began"), str(folder / "go on")))) for _ in range(3)]
            while not list(folder.glob("began*")):
                yield task.sleep(0.01)
            found = client.plain_jobs()
            self.assertEqual({job.name for job in found}, {"hold"})
            self.assertEqual(found[0].args[1], str(folder / "go on"))
            for job in found:
                self.assertEqual(client.plain_jobs(job.location), [job])
            (folder / "go on").write_text("")
            for one in held:
                yield one()
            self.assertEqual(client.plain_jobs(), [])
            waits.send("end")
            yield client.close()
        self.run_task(main)

    def test_a_result_that_cannot_be_unpickled_here_has_failed(self):
        self.scheduler()

        def main(task=None):
            client = Client([])
            yield client.schedule()
            status = yield client.run_result(cluster_jobs.breaks_on_arrival)
            self.assertIsInstance(status, pycoslite.MonitorStatus)
            self.assertEqual(client.counts().total, dispycos_lite.JobCounts(1, done=1, failed=1))
            yield client.close()
        self.run_task(main)

    def test_watchers_hear_what_the_status_task_hears_and_of_failures_of_functions(self):
        self.scheduler()

        def main(task=None):
            statuses, seen = Statuses(), []
            client = Client([], status_task=statuses.task)
            end = client.watch(seen.append)
            yield client.schedule()
            yield client.run_result(jobs.double, 4)
            yield client.run_result(jobs.square, 3)
            yield client.run_result(jobs.fail_plainly, "broken")
            end()
            yield client.run_result(jobs.fail_plainly, "not seen any more")
            yield client.close()
            yield statuses.status(Scheduler.ClientClosed, task)
            plain, = [message for message in seen if isinstance(getattr(message, "info", None), dispycos_lite.PlainJob)]
            self.assertEqual((plain.info.name, plain.info.args, plain.type), ("fail_plainly", ("broken",), ValueError))
            self.assertIn(plain.info.location, client.counts().servers)
            self.assertIn("Traceback", plain.value)
            seen.remove(plain)
            self.assertEqual(seen, statuses.messages[:len(seen)])
            self.assertGreater(len(seen), 6)
        self.run_task(main)

    def test_who_comes_late_is_told_what_there_is(self):
        self.scheduler()

        def body(client, task):
            def broken(message):
                raise ValueError("of a watcher")
            seen = []
            with self.expect_log("which watches client .* failed"):
                ends = [client.watch(broken), client.watch(seen.append)]
                while sum(isinstance(message, DispycosStatus) for message in seen) < 7:
                    yield task.sleep(0.01)
                for end in ends:
                    end()
            codes = [message.status for message in seen if isinstance(message, DispycosStatus)]
            servers = 2 * [Scheduler.ServerDiscovered, Scheduler.ServerInitialized]         # set up by then, or not
            self.assertEqual(codes[:3],
                             [Scheduler.ClientScheduled, Scheduler.NodeDiscovered, Scheduler.NodeInitialized])
            self.assertEqual(sorted(codes[3:]), sorted(servers))
        self.with_client(self.when_up(body, 2))

    when_up = staticmethod(JobsTest.when_up)


class SetupTest(ClientTestCase):
    """Setting up nodes and servers; choosing them."""

    def setup(self, body, **options):
        """Run ``body(client, statuses, task)`` with a client that has a status task."""
        self.scheduler()

        def main(task=None):
            statuses = Statuses()
            client = Client([], status_task=statuses.task, **options)
            yield client.schedule()
            result = yield body(client, statuses, task)
            yield client.close()
            return result
        return self.run_task(main)

    @unittest.skipUnless(hasattr(os, "fork"), "node_setup needs fork")
    def test_node_setup_with_arguments(self):
        def body(client, statuses, task):
            info = yield statuses.status(Scheduler.NodeDiscovered, task)
            yield task.sleep(0.05)
            self.assertNotIn(Scheduler.NodeInitialized, statuses.codes())
            self.assertEqual(client.enable_node(info.addr, "word"), 0)
            yield statuses.status(Scheduler.ServerInitialized, task, 2)
            tasks = yield client.run_servers(jobs.loaded)
            results = yield each(rtask() for rtask in tasks)
            self.assertEqual(len({pid for _, pid in results}), 2)
            self.assertEqual(results[0][0], results[1][0])                      # run once, for both
            self.assertEqual([word for word, _ in results[0][0]], ["word"])
            self.assertIn("loaded.txt", (yield client.run_result(jobs.place))[2])
            self.assertEqual(client.restart_node(info.addr, "other"), 0)
            yield statuses.status(Scheduler.NodeClosed, task)
            yield statuses.status(Scheduler.ServerInitialized, task, 4)
            found, _ = yield client.run_result(jobs.loaded)
            self.assertEqual([word for word, _ in found], ["other"])
        self.setup(body, node_setup=jobs.load_node, disable_nodes=True)

    @unittest.skipUnless(hasattr(os, "fork"), "node_setup needs fork")
    def test_node_setup_that_fails(self):
        def body(client, statuses, task):
            info = yield statuses.status(Scheduler.NodeDiscovered, task)
            client.enable_node(info, "word", 3)
            yield statuses.status(Scheduler.NodeClosed, task)
            self.assertNotIn(Scheduler.NodeInitialized, statuses.codes())
            self.assertNotIn(Scheduler.ServerDiscovered, statuses.codes())
        with self.expect_log("its node_setup failed: it ended with 3, and success is 0"):
            self.setup(body, node_setup=jobs.load_node, disable_nodes=True)

    def test_server_setup_with_arguments(self):
        def body(client, statuses, task):
            first, second = yield each(statuses.status(Scheduler.ServerDiscovered, task, n) for n in (1, 2))
            self.assertEqual(client.enable_server(first, "one"), 0)
            self.assertEqual((yield statuses.status(Scheduler.ServerInitialized, task)), first)
            found, pid = yield client.run_result(jobs.loaded)
            self.assertEqual(found, [("one", pid)])
            self.assertEqual(client.enable_server(second, "two"), 0)
            yield statuses.status(Scheduler.ServerInitialized, task, 2)
            found, pid = yield client.run_result_at(second, jobs.loaded)
            self.assertEqual(found, [("two", pid)])
        self.setup(body, server_setup=jobs.load_server, disable_servers=True)

    def test_server_setup_that_fails(self):
        def body(client, statuses, task):
            yield statuses.status(Scheduler.ServerDisconnected, task, 2)
            self.assertNotIn(Scheduler.ServerInitialized, statuses.codes())
        with self.expect_log("its server_setup failed: (?s:.*)missing 1 required"):
            self.setup(body, server_setup=jobs.load_server)

    def test_rules_choose(self):
        asked = []

        class Rule(DispycosNodeAllocate):
            def allocate(self, ip_addr, name, platform, cpus, memory, disk):
                asked.append((ip_addr, name, platform, cpus, memory, disk))
                return 1

        def body(client, statuses, task):
            yield statuses.status(Scheduler.ServerInitialized, task)
            yield task.sleep(0.05)
            self.assertEqual(len((yield client.servers())), 1)
        self.setup(body, nodes=[DispycosNodeAllocate("10.9.*", cpus=0), Rule("*")])
        (address, name, platform, cpus, _, disk), = asked
        self.assertEqual((address, cpus), ("127.0.0.1", 2))
        self.assertTrue(name and platform and disk)

    def test_rules_reject(self):
        def body(client, statuses, task):
            yield task.sleep(0.3)
            self.assertEqual((yield client.nodes()), [])
            self.assertEqual(client.node_allocate("127.0.0.1"), -1)
            self.assertEqual(client.node_allocate(DispycosNodeAllocate("*", cpus=-1)), 0)       # in place of the other
            yield statuses.status(Scheduler.ServerInitialized, task)
            self.assertEqual(len((yield client.servers())), 1)
        self.setup(body, node_allocations=[DispycosNodeAllocate("*", cpus=0)])


class NodesTest(TestCase):
    """Finding nodes, and losing them."""

    def stop(self):
        ClientTestCase.stop_all()

    def test_node_that_dies(self):
        self.addCleanup(self.stop)
        with running_node(1) as node:
            Scheduler(nodes=["127.0.0.1:%d" % node.port], **LOOPBACK)

            def main(task=None):
                statuses = Statuses()
                client = Client([], status_task=statuses.task)
                yield client.schedule()
                rtask = yield client.rtask(jobs.wait, task)
                yield task.receive()
                os.killpg(node.pid, signal.SIGKILL)
                ended = yield statuses.wait(lambda message: getattr(message, "info", None) == rtask, task)
                self.assertEqual(ended.type, Scheduler.TaskAbandoned)
                yield statuses.status(Scheduler.NodeDisconnected, task)
                yield client.close(terminate=True)
            with self.expect_log("is lost|cannot be reached|cannot be used|were not confirmed"):
                ClientTestCase.run_task(self, main)

    def test_nodes_of_one_name_and_address_are_told_apart_by_their_port(self):
        self.addCleanup(self.stop)
        with running_node(1, "--name", "twin") as one, running_node(1, "--name", "twin") as two:
            Scheduler(nodes=["127.0.0.1:%d" % node.port for node in (one, two)], **LOOPBACK)

            def main(task=None):
                statuses = Statuses()
                client = Client([], status_task=statuses.task)
                yield client.schedule()
                infos = yield each(statuses.status(Scheduler.NodeInitialized, task, n) for n in (1, 2))
                yield statuses.status(Scheduler.ServerInitialized, task, 2)
                info, = [info for info in infos if info.location.port == two.port]
                for who in (info.location, repr(info.location), info):
                    self.assertEqual(client.suspend_node(who), 0)
                    suspended = yield statuses.wait(
                        lambda message: isinstance(message, DispycosStatus)
                        and message.status == Scheduler.NodeSuspended, task)
                    self.assertIs(suspended.info, info)
                    statuses.messages.clear()
                    self.assertEqual(client.resume_node(who), 0)
                    yield statuses.status(Scheduler.NodeResumed, task)
                    pid, _, _ = yield (yield client.rtask_at(who, jobs.place))()
                    other, _, _ = yield (yield client.rtask_at(infos[infos[0] is info].location, jobs.place))()
                    self.assertNotEqual(pid, other)
                    self.assertEqual(len((yield client.run_each(who, jobs.place))), 1)
                with self.expect_log("twin is the name or address of several nodes, at .*: the first is taken"):
                    self.assertEqual(client.resume_node("twin"), 0)
                self.assertEqual(client.close_node(info.location), 0)
                self.assertIs((yield statuses.status(Scheduler.NodeClosed, task)), info)
                yield client.close()
            ClientTestCase.run_task(self, main)

    def test_names_of_nodes_of_a_client(self):
        """Client(nodes=['host:port']) contacts that node."""
        self.addCleanup(self.stop)
        with running_node(1) as node:
            Scheduler(**LOOPBACK)

            def main(task=None):
                client = Client([], nodes=["127.0.0.1:%d" % node.port])
                yield client.schedule()
                result = yield client.run_result(jobs.square, 3)
                yield client.close()
                return result
            self.assertEqual(ClientTestCase.run_task(self, main), 9)

    def test_says_why_it_waits(self):
        self.addCleanup(self.stop)
        self.addCleanup(setattr, dispycos_lite, "_PATIENCE_S", dispycos_lite._PATIENCE_S)
        dispycos_lite._PATIENCE_S = 0.05
        Scheduler(**LOOPBACK)

        def main(task=None):
            client = Client([])
            self.assertEqual((yield client.schedule()), 0)
            yield task.sleep(0.1)
            yield client.close(terminate=True)
        with self.expect_log("no node was found so far, so the client waits: start dispycosnode_lite.py"):
            ClientTestCase.run_task(self, main)

    def test_cores_of_this_machine(self):
        """Scheduler(embedded=...) needs no node and no network."""
        self.addCleanup(self.stop)
        Scheduler(embedded=1, **LOOPBACK)

        def main(task=None):
            client = Client([jobs.square])
            yield client.schedule()
            result = yield client.run_result(jobs.square, 3)
            servers = yield client.servers()
            yield client.close()
            return result, servers
        with self.expect_log("using 1 cores of this machine"):
            result, servers = ClientTestCase.run_task(self, main)
        self.assertEqual((result, len(servers)), (9, 1))


QUEUED_PROGRAM = """
import sys
sys.path.insert(0, %r)
import pycoslite
from dispycos_lite import Client, Scheduler

def work(n, task=None):
    yield task.sleep(0.01)
    return n * n

def main(place, task=None):
    client = Client([work])
    print("asks", flush=True)
    assert (yield client.schedule(pycoslite.Location.parse(place))) == 0
    print("has", (yield client.run_result(work, 3)), flush=True)
    yield task.receive(float(sys.argv[2]))
    yield client.close()
    print("closed", flush=True)

Scheduler(host="127.0.0.1", tcp_port=0, discover_peers=False)
pycoslite.Task(main, sys.argv[1])
""" % str(ROOT)


class SharedSchedulerTest(TestCase):
    """The scheduler program: clients of several processes take turns."""

    @contextlib.contextmanager
    def program(self, node):
        command = [sys.executable, ROOT / "dispycos_lite.py", "--host", "127.0.0.1", "--tcp_port", "0", "--udp_port",
                   LOOPBACK["udp_port"], "--node", "127.0.0.1:%d" % node.port]
        with running(command, ready=r"listens at (\S+)") as process:
            yield process

    def client(self, program, hold_s):
        return running([sys.executable, "-c", QUEUED_PROGRAM, program.match.group(1), str(hold_s)], ready="asks")

    def test_turns(self):
        with running_node(1) as node, self.program(node) as program, self.client(program, 600) as first:
            first.wait_for("has 9")
            with self.client(program, 0) as second, self.client(program, 0) as third:
                self.wait_until(lambda: program.write("status\n") or program.output.count("', '") > 0)     # two wait
                self.assertIn("Client: client ", program.output)
                self.assertNotIn("has", second.output + third.output)
                first.signal(signal.SIGKILL)                    # it need not say that it has done
                for process in (second, third):
                    process.wait_for("closed")
                    self.assertEqual(process.wait(), 0, process.output)
            program.write("what\nquit\n")
            self.assertEqual(program.wait(), 0)
            self.assertIn("commands: status, quit", program.output)

    def test_no_scheduler_there(self):
        self.addCleanup(ClientTestCase.stop_all)
        place = pycoslite.Location("127.0.0.1", free_port())
        Scheduler(**LOOPBACK)
        with self.expect_log("is not scheduled: .*%d" % place.port):
            self.assertEqual(ClientTestCase.run_task(self, lambda task=None: (yield Client([]).schedule(place))), -1)

    def test_node_is_no_scheduler(self):
        self.addCleanup(ClientTestCase.stop_all)
        with running_node(1) as node:
            Scheduler(**LOOPBACK)
            place = pycoslite.Location("127.0.0.1", node.port)
            with self.expect_log("is no scheduler program but a node"):
                self.assertEqual(
                    ClientTestCase.run_task(self, lambda task=None: (yield Client([]).schedule(place))), -1)

    def test_options(self):
        for args, status, said in ((["--help"], 0, "take turns"), (["--node", "a:b"], 1, "must be a port number"),
                                   (["--zombie_period", "50"], 2, "50 is neither 0 nor at least 100"),
                                   (["--max_file_size", "10X"], 2, "'10X' is not a size"),
                                   (["--config", "/no/such"], 2, "/no/such cannot be read: No such file"),
                                   (["--pulse_interval", "50", "--node", "a:b"], 1,
                                    "--pulse_interval has no effect: each client says"),
                                   (["--clean", "--node", "a:b"], 1, "--clean has no effect: nothing is left behind"),
                                   (["--no_such"], 2, "unrecognized")):
            with self.subTest(args), running([sys.executable, ROOT / "dispycos_lite.py", *args]) as process:
                self.assertEqual(process.wait(), status, process.output)
                self.assertIn(said, process.output)


class SchedulerOptionsTest(TestCase):
    """The scheduler program's command line and configuration file."""

    def parse(self, *argv):
        return dispycos_lite._parse_arguments(argv)

    def save(self, *argv):
        path = str(self.temp_dir() / "scheduler.ini")
        with self.assertRaises(SystemExit) as caught:
            self.parse(*argv, "--save_config", path)
        self.assertEqual(caught.exception.code, 0)
        return path

    def test_what_is_saved_comes_back(self):
        argv = ("-t", "9999", "--node", "a:1", "--node", "b", "--relay_nodes", "--zombie_period", "0", "--daemon",
                "--max_file_size", "10M", "--dest_path", "/var/100%", "--ping_interval", "7.5")
        path = self.save(*argv)
        saved, wanted = self.parse("--config", path), self.parse(*argv)
        wanted.config = path
        self.assertEqual(saved, wanted)
        self.assertEqual((saved.zombie_period, saved.max_file_size, saved.node), (0, 10 << 20, ["a:1", "b"]))
        self.assertEqual(os.stat(path).st_mode & 0o077, 0)

    def test_command_line_wins(self):
        path = self.save("--node", "a:1", "--zombie_period", "200", "-n", "name", "-s", "hunter2")
        options = self.parse("--config", path, "--node", "b:2", "--zombie_period", "0")
        self.assertEqual((options.node, options.zombie_period), (["b:2"], 0))
        self.assertEqual((options.name, options.secret), (None, None))          # of one machine; no place for it
        self.assertNotIn("hunter2", Path(path).read_text())

    def test_defaults(self):
        options = self.parse()
        self.assertEqual((options.zombie_period, options.relay_nodes, options.dest_path), (10000, False, None))

    def test_a_file_with_something_else_is_refused(self):
        path = self.temp_dir() / "wrong.ini"
        for text, said in (("[DEFAULT]\nsecret = x\n", "cannot be had from it: secret"),
                           ("cpus", "is no configuration"),
                           ("[DEFAULT]\nzombie_period = __import__('os')\n", "is not a number of seconds"),
                           ("[other]\ndaemon = True\n", r"has a section \[other\]")):
            path.write_text(text)
            printed = io.StringIO()
            with self.subTest(text), contextlib.redirect_stderr(printed), self.assertRaises(SystemExit) as caught:
                self.parse("--config", str(path))
            self.assertEqual(caught.exception.code, 2)
            self.assertRegex(printed.getvalue(), said)


OLD_PROGRAM = '''
import pycoslite as asyncoro
from dispycos_lite import *

def compute(i, coro=None):
    yield coro.sleep(0.01)
    raise StopIteration(i * i)

def status_proc(coro=None):
    coro.set_daemon()
    while True:
        message = yield coro.receive()
        if isinstance(message, DiscoroStatus) and message.status == Scheduler.CoroCreated:
            print("created", message.info.args)
        elif isinstance(message, asyncoro.MonitorException):
            print("ended", message.args[1][1])

def client_proc(computation, coro=None):
    if (yield computation.schedule()):
        raise Exception("not scheduled")
    rcoro = yield computation.run(compute, 5)
    if not isinstance(rcoro, asyncoro.Coro):
        raise Exception("not started")
    results = yield computation.run_results(compute, [1, 2, 3])
    print("results", results)
    yield computation.close()

if __name__ == "__main__":
    Scheduler()
    computation = Computation([compute], status_coro=asyncoro.Coro(status_proc))
    asyncoro.Coro(client_proc, computation)
'''


class ProgramTest(TestCase):
    """Programs as users write them, with the cores of this machine."""

    def run_program(self, *command):
        need_cpus(2)
        with running([sys.executable, *command], env={"PYCOSLITE_EMBEDDED": "2"}) as process:
            self.assertEqual(process.wait(60), 0, process.output)
        return process.output

    def test_old_names(self):
        script = self.temp_dir() / "old.py"
        script.write_text("import sys; sys.path.insert(0, %r)\n" % str(ROOT) + OLD_PROGRAM)
        output = self.run_program(script)
        self.assertIn("created (5,)\n", output)
        self.assertIn("ended 25\n", output)
        self.assertIn("results [1, 4, 9]\n", output)

    @needs_threads_after_main
    def test_example_client(self):
        output = self.run_program(ROOT / "examples" / "dispycos_client.py", "4")
        self.assertEqual([line for line in output.splitlines() if line.startswith("job")],
                         ["job %d: %d" % (n, sum(k * k for k in range(n * 1000))) for n in range(4)])

    @needs_threads_after_main
    def test_example_messages(self):
        output = self.run_program(ROOT / "examples" / "dispycos_messages.py")
        self.assertEqual([line for line in output.splitlines() if "->" in line],
                         ["Word('stressed') -> Word('desserts')", "Word('drawer') -> Word('reward')",
                          "Word('level') -> Word('level')"])
        self.assertIn("the task answered 3 words", output)

    @needs_threads_after_main
    def test_example_status(self):
        output = self.run_program(ROOT / "examples" / "dispycos_status.py", "5")
        self.assertEqual(sorted(line for line in output.splitlines() if line.startswith("job")),
                         ["job %d gave %d" % (n, n * n) for n in range(5)])
        self.assertRegex(output, "5 jobs on [12] servers")


if __name__ == "__main__":
    unittest.main()
