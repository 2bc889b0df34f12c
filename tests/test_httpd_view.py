"""httpd_lite.py sections 2 to 5: texts of objects, the view of the cluster, history, who may ask what. No network."""
from __future__ import annotations

import itertools
import json
import unittest

import httpd_lite
from dispycos_lite import ClusterCounts, DispycosNodeAvailInfo, DispycosStatus, JobCounts, PlainJob, Scheduler
from httpd_lite import ClusterView, Histories, History, Refusal, Request
from pycoslite import Location, MonitorStatus
from tests.httpd_support import HOSTILE, Feed
from tests.support import TestCase


class Unfriendly:
    """An argument whose text cannot be had."""

    def __str__(self):
        raise KeyError("x" * 1000)

    __repr__ = __str__


class TextTest(TestCase):
    """What becomes of objects."""

    def test_texts_are_those_of_str(self):
        class Point:
            def __str__(self):
                return "at 3"
        for value, text in ((1, "1"), ("a'b", "a'b"), ([1, "a"], "[1, 'a']"), ({"k": (1,)}, "{'k': (1,)}"),
                            (None, "None"), (b"\0", r"b'\x00'"), (Point(), "at 3"), (1.5, "1.5"), (set(), "set()")):
            with self.subTest(value=value):
                self.assertEqual(httpd_lite.shown(value), text)

    def test_texts_are_short_and_made_in_no_time(self):
        nested = []
        nested.append(nested)
        for value in ("x" * 10**6, b"x" * 10**6, bytearray(10**6), list(range(10**6)), {n: n for n in range(10**5)},
                      [["x" * 10**6] * 1000] * 1000, nested, 1 << 10**5, Unfriendly(), [Unfriendly()]):
            with self.subTest(type(value)):
                self.assertLessEqual(len(httpd_lite.shown(value)), httpd_lite.settings.text_chars)

    def test_long_texts_keep_their_end(self):
        text = "".join("line %d\n" % number for number in range(1000)) + "ValueError: why"
        for limit in (100, 101, 4000):
            found = httpd_lite.shortened(text, limit)
            self.assertEqual((len(found), found[:6], found[-15:]), (limit, "line 0", "ValueError: why"))
        self.assertEqual(httpd_lite.shortened("as it is", 8), "as it is")

    def test_str_that_fails_is_named(self):
        self.assertEqual(httpd_lite.shown(Unfriendly()), "<Unfriendly that cannot be shown: KeyError>")

    def test_arguments_are_joined_and_cut(self):
        self.assertEqual(httpd_lite.shown_arguments((1, "a"), {"b": 2, "c": []}), ("1, a", "b=2, c=[]"))
        asked = []

        class Counted:
            def __str__(self):
                asked.append(1)
                return "y" * 100
        text, _ = httpd_lite.shown_arguments([Counted()] * 10**5, {})
        self.assertEqual(len(text), httpd_lite.settings.texts_chars)
        self.assertLess(len(asked), 30)

    def test_numbers_of_nodes_are_numbers(self):
        for value in ("9", float("nan"), float("inf"), True, None, [1], {}):
            self.assertIsNone(httpd_lite.number(value))
        self.assertEqual(httpd_lite.number(1.5), 1.5)


class ViewTestCase(TestCase):
    """A view that is fed; each message comes a second after the last."""

    def setUp(self):
        self.view = ClusterView("me")
        self.clock = itertools.count(5000)
        self.feed = Feed(self.take)

    def take(self, message):
        self.view.apply(message, next(self.clock))

    def node(self, name="n1"):
        return self.view.find_node(name).record()

    def server(self, number):
        return self.view.servers[repr(self.feed.at(number))].record()

    def changes(self, seq, **options):
        return self.view.changes("me", seq, **options)


class ViewTest(ViewTestCase):
    """Messages in, records out."""

    def test_documented_record_of_a_node(self):
        self.feed.up().start(1)
        self.assertEqual(self.view.find_node("n1").documented(), {
            "name": "n1", "addr": "10.0.0.1", "status": "Initialized", "servers": 2, "update_time": 5006,
            "tasks_submitted": 1, "tasks_done": 0,
            "avail_info": {"location": None, "cpu": 75.0, "memory": 1 << 30, "disk": 1 << 40, "swap": 100.0}})

    def test_words_of_nodes_and_servers(self):
        self.feed.up()
        for name, word in (("Ignore", "Ignore"), ("Discovered", "Discovered"), ("Initialized", "Initialized"),
                           ("Suspended", "Suspended"), ("Resumed", "Initialized"), ("Closed", "Closed"),
                           ("Disconnected", "Disconnected"), ("Abandoned", "Abandoned")):
            with self.subTest(name):
                self.feed.node(name).server(1, name)
                self.assertEqual((self.node()["status"], self.server(1)["status"]), (word, word))

    def test_counts_of_tasks(self):
        feed = self.feed.up()
        tasks = [feed.start(number, 1 + number % 2) for number in range(5)]
        feed.end(tasks[0])
        feed.end(tasks[1], ValueError, "Traceback")
        feed.end(tasks[2], Scheduler.TaskTerminated, "stopped")
        feed.end(tasks[3], Scheduler.TaskAbandoned, "lost")
        self.assertEqual(self.view.summary(), {
            "submitted": 5, "running": 1, "done": 4, "failed": 1, "terminated": 1, "abandoned": 1, "pending": None,
            "nodes": 1, "servers": 2})
        self.assertEqual([self.node()["tasks_" + name] for name in ("submitted", "running", "done", "failed")],
                         [5, 1, 4, 1])
        self.assertEqual([self.server(1)["tasks_" + name] for name in ("submitted", "running", "done", "failed")],
                         [3, 1, 2, 0])

    def test_counts_survive_the_end_of_a_computation(self):
        feed = self.feed.up()
        feed.end(feed.start(1))
        feed.server(1, "Closed").server(2, "Closed").node("Closed")
        self.take(DispycosStatus(Scheduler.ClientClosed, 1))
        self.assertEqual(self.view.status, "Closed")
        self.assertEqual((self.view.summary()["nodes"], self.node()["servers"], self.node()["tasks_done"]), (0, 0, 1))
        self.take(DispycosStatus(Scheduler.ClientScheduled, 2))
        feed.up().start(2)
        self.assertEqual((self.view.status, self.node()["tasks_submitted"], self.server(1)["tasks_submitted"]),
                         ("Running", 2, 2))

    def test_ends_of_tasks_that_are_not_known_count_for_nothing(self):
        feed = self.feed.up()
        task = feed.start(1)
        for _ in range(2):
            feed.end(task)
        self.take(MonitorStatus("some task of the program", StopIteration, 1))
        self.take(MonitorStatus(None, ValueError))
        self.assertEqual(self.view.summary()["done"], 1)

    def test_figures_of_a_client_take_the_place_of_those_of_messages(self):
        """For good; a server belongs to the node they say, and what is not known here is left out."""
        feed = self.feed.up()
        other = Feed(self.take, port=9806, name="n2").up(0)
        feed.start(1)
        here, there, unknown = feed.at(1), feed.at(2), Feed(None, addr="10.9.9.9").location
        five, two = JobCounts(5, 0, 2, 3, 1), JobCounts(2, 0, 1, 1)
        counts = ClusterCounts(JobCounts(9, 2, 3, 4, 1, 1, 1), {feed.location: five, other.location: two},
                               {here: five, there: two, unknown: JobCounts(1)},
                               {here: feed.location, there: other.location, unknown: unknown})
        seq = self.view.seq
        self.assertTrue(self.view.take_counts(counts, 6000))
        self.assertFalse(self.view.take_counts(counts, 6001))
        found = self.changes(seq)
        self.assertEqual({name: found["totals"][name] for name in JobCounts._fields}, counts.total._asdict())
        names = ("name", "tasks_running", "tasks_failed", "servers", "update_time")
        self.assertEqual([tuple(node[name] for name in names) for node in found["nodes"]],
                         [("n1", 2, 1, 1, 6000), ("n2", 1, 0, 1, 6000)])
        self.assertEqual((self.server(1)["tasks_running"], self.server(1)["tasks_listed"]), (2, 1))
        self.assertEqual(self.server(2)["node"], repr(other.location))
        feed.start(2)
        feed.end(feed.start(3), ValueError)
        self.assertEqual((self.view.summary()["submitted"], self.node()["tasks_submitted"]), (9, 5))

    def test_jobs_without_a_task_are_listed_when_they_fail(self):
        feed = self.feed.up()
        for number, where in ((7, feed.at(1)), (8, None)):
            job = PlainJob(number, "resize", where, ("a.png",), {"width": 3})
            self.take(MonitorStatus(job, ValueError, "Traceback\nValueError: no image"))
        lost, failed = (task.record(True) for task in self.view.tasks("failed"))
        self.assertEqual((failed["task"], failed["name"], failed["args"], failed["kwargs"], failed["start_time"]),
                         ("resize#7@10.0.0.1:9707", "resize", "a.png", "width=3", None))
        self.assertEqual((failed["node"], lost["task"], lost["location"], lost["node"]),
                         (repr(feed.location), "resize#8", "", ""))
        self.assertEqual([task.id for task in self.view.tasks(host="n1")], ["resize#7@10.0.0.1:9707"])
        self.assertEqual([task.id for task in self.view.tasks(location=repr(feed.at(1)))], ["resize#7@10.0.0.1:9707"])
        self.assertEqual(self.view.log[-1]["subject"], "job resize#8")
        self.assertEqual(self.view.summary()["done"], 0)        # counted elsewhere, or nowhere

    def test_start_that_is_told_twice_counts_once(self):
        feed = self.feed.up()
        task = feed.start(1)
        feed.target(DispycosStatus(Scheduler.TaskStarted, next(iter(self.view.running.values())).info))
        feed.end(task)
        self.assertEqual((self.node()["tasks_submitted"], self.node()["tasks_running"]), (1, 0))

    def test_what_is_no_status_message_changes_nothing(self):
        self.feed.up()
        seq = self.view.seq
        for message in (None, "text", DispycosStatus(999, None), DispycosStatus(Scheduler.NodeClosed, "10.0.0.1"),
                        DispycosStatus(Scheduler.ServerClosed, None), DispycosNodeAvailInfo(None, 1.0),
                        DispycosNodeAvailInfo(Location("10.9.9.9", 1), 1.0)):
            self.take(message)
        self.assertEqual(self.view.seq, seq)

    def test_availability(self):
        self.feed.up()
        self.take(self.feed.avail(cpu=12.5, swap="<b>", memory=float("nan")))
        self.assertEqual(self.node()["avail_info"],
                         {"location": None, "cpu": 12.5, "memory": None, "disk": 1 << 40, "swap": None})
        self.assertEqual(self.node()["update_time"], 5006)

    def test_servers_of_several_nodes_at_one_address(self):
        first, second = Feed(self.take, port=9706, name="a", cpus=2), Feed(self.take, port=9806, name="b", cpus=2)
        first.node("Initialized")
        second.node("Initialized")
        for feed in (second, first):
            feed.server(1, "Initialized").server(2, "Initialized")
        self.assertEqual({server.location: server.node.name for server in self.view.servers.values()},
                         {"10.0.0.1:9707": "a", "10.0.0.1:9708": "a", "10.0.0.1:9807": "b", "10.0.0.1:9808": "b"})
        self.assertEqual([node["id"] for node in self.changes(None)["nodes"]], ["10.0.0.1:9706", "10.0.0.1:9806"])

    def test_server_without_a_node(self):
        self.feed.server(1, "Initialized").start(1)
        self.assertEqual((self.node("10.0.0.1")["servers"], self.node("10.0.0.1")["tasks_running"]), (1, 1))

    def test_task_of_a_server_at_its_hosts_other_address(self):
        self.feed.up()
        Feed(self.take, addr="192.168.0.1", port=9706).start(1, 2)
        self.assertEqual((len(self.view.nodes), self.server(2)["tasks_running"]), (1, 1))

    def test_record_of_a_task(self):
        feed = self.feed.up()
        task = feed.start(7, 2, 3, "x", depth=4)
        running = {"task": "compute/7@10.0.0.1:9708", "name": "compute", "args": "3, x", "kwargs": "depth=4",
                   "start_time": 1007.0, "state": "running", "location": "10.0.0.1:9708", "node": "10.0.0.1:9706"}
        self.assertEqual([found.record(True) for found in self.view.tasks()], [running])
        feed.end(task, StopIteration, [1, 2])
        ended = {**running, "state": "done", "end_time": 5007, "error": "", "detail": "", "result": "[1, 2]"}
        self.assertEqual([found.record(True) for found in self.view.tasks()], [ended])
        self.assertEqual([found.record(False) for found in self.view.tasks()],
                         [{**ended, "args": "", "kwargs": "", "result": ""}])

    def test_ended_tasks_hold_no_objects_of_the_program(self):
        class Big:
            gone = 0

            def __del__(self):
                Big.gone += 1
        feed = self.feed.up()
        feed.end(feed.start(1, 1, Big(), of=Big()), StopIteration, Big())
        self.assertEqual(Big.gone, 3)

    def test_hidden_arguments_are_never_made_texts(self):
        feed = self.feed.up()
        self.view.show_args = False
        feed.end(feed.start(1, 1, Unfriendly()))
        self.view.show_args = True
        self.assertEqual([task.record(True)["args"] for task in self.view.tasks()], [""])

    def test_tasks_are_found(self):
        feed = self.feed.up()
        other = Feed(self.take, addr="10.0.0.2", name="n2").up()
        tasks = [feed.start(1, 1), feed.start(2, 2), other.start(3, 1, name="render"), other.start(4, 1)]
        feed.end(tasks[0])
        feed.end(tasks[3], ValueError)
        for criteria, numbers in (
                ({}, [3, 2, 4, 1]), ({"state": "running"}, [3, 2]), ({"state": "ended"}, [4, 1]),
                ({"state": "failed"}, [4]), ({"host": "n1"}, [2, 1]), ({"host": "10.0.0.2"}, [3, 4]),
                ({"location": "10.0.0.1:9707"}, [1]), ({"text": "rend"}, [3]), ({"host": "none"}, [])):
            with self.subTest(criteria):
                self.assertEqual([task.info.task.number for task in self.view.tasks(**criteria)], numbers)

    def test_log(self):
        feed = self.feed.up()
        feed.end(feed.start(1), ValueError, "Traceback")
        feed.server(1, "Disconnected")
        lines = [(line["level"], line["subject"], line["text"]) for line in self.view.log]
        self.assertEqual(lines[:2], [("info", "node n1 at 10.0.0.1:9706", word)
                                     for word in ("Discovered", "Initialized")])
        self.assertEqual(lines[-2:], [("error", "task compute/1@10.0.0.1:9707", "failed: ValueError"),
                                      ("warning", "server 10.0.0.1:9707", "Disconnected")])

    def test_reasons_are_in_the_log(self):
        self.feed.up()
        message = DispycosStatus(Scheduler.NodeAbandoned, self.feed.info)
        message.reason = "it was silent for 50 seconds"
        self.take(message)
        self.assertEqual(self.view.log[-1]["text"], "Abandoned: it was silent for 50 seconds")

    def test_names_are_taken_as_they_are(self):
        feed = Feed(self.take, name=HOSTILE)
        feed.up()
        kind = type(HOSTILE.replace("\0", "").encode("utf-8", "replace").decode(), (Exception,), {})
        feed.end(feed.start(1, 1, HOSTILE, name=HOSTILE), kind, HOSTILE)
        found = json.loads(httpd_lite.to_json([self.changes(None)] + [task.record(True) for task in self.view.tasks()]))
        self.assertEqual((found[0]["nodes"][0]["name"], found[1]["args"], found[1]["detail"]), (HOSTILE,) * 3)


class ChangesTest(ViewTestCase):
    """What is new since a seq, for any number of readers."""

    def names(self, changes):
        return [node["name"] for node in changes["nodes"]]

    def test_every_reader_gets_every_change(self):
        """V21. Three who read at times of their own all end with what is the case."""
        feeds = [Feed(self.take, addr="10.0.0.%d" % n, name="n%d" % n) for n in range(5)]
        readers = [{"every": every, "seq": None, "nodes": {}} for every in (1, 3, 7)]

        def read(reader):
            found = self.changes(reader["seq"])
            reader["seq"] = found["seq"]
            reader["nodes"].update((node["id"], node) for node in found["nodes"])
        for step in range(42):
            feed = feeds[step % 5]
            feed.node("Initialized").start(step, 1)
            for reader in readers:
                if step % reader["every"] == 0:
                    read(reader)
        for reader in readers:
            read(reader)
            self.assertEqual(list(reader["nodes"].values()), self.changes(None)["nodes"])
            self.assertEqual(self.changes(reader["seq"])["nodes"], [])

    def test_only_what_has_changed(self):
        first, second = self.feed.up(), Feed(self.take, addr="10.0.0.2", name="n2").up()
        seq = self.changes(None)["seq"]
        self.assertEqual(self.names(self.changes(seq)), [])
        task = second.start(1)
        self.assertEqual(self.names(self.changes(seq)), ["n2"])
        self.take(first.avail())
        self.assertEqual(self.names(self.changes(seq)), ["n1", "n2"])
        seq = self.changes(seq)["seq"]
        second.end(task)
        self.assertEqual(self.names(self.changes(seq)), ["n2"])

    def test_everything_for_who_cannot_go_on(self):
        self.feed.up()
        for instance, seq in (("me", None), ("other", 1), ("me", self.view.seq + 1), ("", None)):
            with self.subTest(instance=instance, seq=seq):
                found = self.view.changes(instance, seq)
                self.assertEqual((found["full"], self.names(found)), (True, ["n1"]))
        self.assertFalse(self.changes(0)["full"])

    def test_one_node_with_its_servers(self):
        self.feed.up()
        other = Feed(self.take, addr="10.0.0.2", name="n2").up()
        found = self.changes(None, host="n2")
        self.assertEqual((self.names(found), len(found["servers"])), (["n2"], 2))
        seq = found["seq"]
        other.start(1, 2)
        self.feed.start(2)
        found = self.changes(seq, host="n2")
        self.assertEqual((self.names(found), [server["location"] for server in found["servers"]]),
                         (["n2"], ["10.0.0.2:9708"]))
        self.assertEqual((found["totals"]["running"], self.changes(None, host="unknown")["nodes"]), (2, []))

    def test_nodes_that_are_dropped(self):
        limit = httpd_lite.settings.kept_nodes
        self.addCleanup(setattr, httpd_lite.settings, "kept_nodes", limit)
        httpd_lite.settings.kept_nodes = 2
        feeds = [Feed(self.take, addr="10.0.0.%d" % n, name="n%d" % n).up() for n in range(6)]
        seqs = []
        for feed in feeds[:5]:
            seqs.append(self.view.seq)
            feed.server(1, "Closed").server(2, "Disconnected").node("Closed")
        self.assertEqual(self.names(self.changes(None)), ["n3", "n4", "n5"])
        self.assertEqual(self.changes(seqs[3])["gone"], ["10.0.0.1:9706", "10.0.0.2:9706"])
        self.assertTrue(self.changes(seqs[0])["full"])
        self.assertEqual(sorted(self.view.servers),
                         ["10.0.0.%d:%d" % (n, port) for n in (4, 5) for port in (9707, 9708)])

    def test_node_that_is_dropped_takes_its_servers_along(self):
        limit = httpd_lite.settings.kept_nodes
        self.addCleanup(setattr, httpd_lite.settings, "kept_nodes", limit)
        httpd_lite.settings.kept_nodes = 1
        feed = self.feed.up().server(1, "Closed")
        task = feed.start(1, 2)
        feed.node("Abandoned")                              # and not a word of its servers
        Feed(self.take, addr="10.0.0.2", name="n2").node("Initialized", "Closed")
        self.assertEqual((self.names(self.changes(None)), list(self.view.servers)), (["n2"], []))
        feed.end(task, Scheduler.TaskAbandoned, "lost")     # its end is counted all the same
        self.assertEqual(self.view.summary()["abandoned"], 1)

    def test_node_that_comes_back_is_not_dropped(self):
        limit = httpd_lite.settings.kept_nodes
        self.addCleanup(setattr, httpd_lite.settings, "kept_nodes", limit)
        httpd_lite.settings.kept_nodes = 1
        self.feed.up().node("Closed").node("Initialized")
        for n in range(2, 5):
            Feed(self.take, addr="10.0.0.%d" % n, name="n%d" % n).node("Initialized", "Closed")
        self.assertEqual(self.names(self.changes(None)), ["n1", "n4"])

    def test_servers_that_come_and_go_at_a_node_that_stays(self):
        limit = httpd_lite.settings.kept_nodes
        for number in range(1, limit + 100):
            self.feed.server(number, "Initialized", "Disconnected")
        self.assertEqual((len(self.view.servers), len(self.view.find_node("10.0.0.1").servers)), (limit, limit))

    def test_memory_is_bounded(self):
        """Whatever comes and goes: what is kept does not grow."""
        feed = self.feed.up()
        for number in range(5000):
            feed.end(feed.start(number, 1, "x" * 1000), ValueError, "y" * 10000)
            visitor = Feed(self.take, addr="10.1.%d.%d" % divmod(number, 256), name="v")
            visitor.node("Discovered").server(1, "Initialized", "Closed").node("Closed")
        limits = httpd_lite.settings
        self.assertEqual((len(self.view.ended), len(self.view.running), len(self.view.log)),
                         (limits.kept_tasks, 0, limits.kept_lines))
        self.assertLessEqual(len(self.view.nodes), limits.kept_nodes + 1)
        self.assertLessEqual(len(self.view.servers), limits.kept_nodes + 3)
        self.assertLessEqual(max(len(task.record(True)["detail"]) for task in self.view.ended), limits.detail_chars)
        self.assertEqual((self.view.totals.submitted, self.view.totals.done), (5000, 5000))


class HistoryTest(TestCase):
    """Points in equal steps."""

    SAMPLE = {"done": 0, "failed": 0, "running": 1, "pending": None, "nodes": 1, "servers": 2, "cpu_used": None,
              "memory_free": 10}

    def test_recent_points(self):
        history = History(5.0, 3, False, 0.0)
        for number in range(1, 6):
            history.add((number,) * 8, 5.0 * number)
        found = history.record()
        self.assertEqual((found["now"], found["step"], found["running"]), (25.0, 5.0, [3, 4, 5]))

    def test_whole_run_gets_coarser_and_loses_nothing(self):
        history = History(1.0, 8, True, 0.0)
        for number in range(1, 65):
            history.add((1.0,) * 7 + (number,), float(number))
        found = history.record()
        self.assertLessEqual(len(found["running"]), 8)
        self.assertEqual(found["step"] * len(found["running"]), found["now"])
        self.assertAlmostEqual(sum(found["memory_free"]) / len(found["memory_free"]), sum(range(1, 65)) / 64)

    def test_empty(self):
        self.assertEqual(History(5.0, 3, False, 7.0).record()["done_rate"], [])

    def test_rates_and_missed_steps(self):
        histories = Histories(100.0)
        self.assertFalse(histories.due(104.9))
        self.assertTrue(histories.due(105.0))
        histories.add({**self.SAMPLE, "done": 50, "failed": 10}, 105.0)
        histories.add({**self.SAMPLE, "done": 70, "failed": 10}, 125.0)     # three steps were missed
        found = histories.scopes["recent"].record()
        self.assertEqual(found["done_rate"], [10.0, None, None, None, 1.0])
        self.assertEqual(found["failed_rate"], [2.0, None, None, None, 0.0])
        self.assertEqual(found["pending"], [None] * 5)
        histories.add(self.SAMPLE, 1e9)                                     # asleep for years
        self.assertEqual(len(histories.scopes["recent"].rows), httpd_lite.settings.samples)

    def test_sample_of_the_view(self):
        view = ClusterView("me")
        for n, cpu in ((1, 50.0), (2, None), (3, 100.0)):
            feed = Feed(lambda message: view.apply(message, 0.0), addr="10.0.0.%d" % n)
            feed.up()
            view.apply(feed.avail(cpu=cpu, memory=100), 0.0)
        found = view.sample()
        self.assertEqual((found["cpu_used"], found["memory_free"], found["nodes"]), (25.0, 300, 3))
        self.assertIsNone(ClusterView("me").sample()["cpu_used"])


class SourceTest(TestCase):
    """Where requests may come from."""

    def refused(self, is_page=False, method="GET", secure=False, local="127.0.0.1", names=("node7",), **headers):
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        request = Request(method, "/", {"host": "127.0.0.1:8181", **given}, {}, secure, local)
        try:
            httpd_lite.check_source(request, names, is_page)
        except Refusal as error:
            return error.status
        return 0

    def test_hosts(self):
        for host in ("127.0.0.1:8181", "127.0.0.1", "localhost:8181", "LOCALHOST", "[::1]:8181", "node7:8181", "Node7"):
            with self.subTest(host):
                self.assertEqual(self.refused(host=host), 0)
        for host in ("", "evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8181", "192.168.0.9:8181",
                     "node7.evil.example", "127.0.0.1:8181@evil.example", "evil.example/127.0.0.1", "127.0.0.1:x",
                     "[::1", "2130706433", "127.1", "0x7f.0.0.1", "node7, evil.example", " node7", "node7:8181:1"):
            with self.subTest(host):
                self.assertEqual(self.refused(host=host), 403)
        self.assertEqual(self.refused(host="192.168.0.9:8181", local="192.168.0.9"), 0)
        self.assertEqual(self.refused(host="[fe80::1]:8181", local="fe80::1%eth0"), 0)

    def test_origins(self):
        self.assertEqual(self.refused(origin="http://127.0.0.1:8181"), 0)
        self.assertEqual(self.refused(origin="https://127.0.0.1:8181", secure=True), 0)
        self.assertEqual(self.refused(origin="https://127.0.0.1:8181"), 0)       # through a proxy that speaks TLS
        self.assertEqual(self.refused(origin="http://127.0.0.1:8181", secure=True), 403)
        for origin in ("http://evil.example", "null", "ftp://127.0.0.1:8181", "http://127.0.0.1", "http://127.0.0.1:99",
                       "http://localhost:8181", "", "http://127.0.0.1:8181.evil.example", "http://127.0.0.1:8181 x"):
            with self.subTest(origin):
                self.assertEqual(self.refused(origin=origin), 403)

    def test_fetch_metadata(self):
        for site, expected in (("none", 0), ("same-origin", 0), ("same-site", 403), ("cross-site", 403), ("x", 403)):
            with self.subTest(site):
                self.assertEqual(self.refused(sec_fetch_site=site), expected)
        self.assertEqual(self.refused(True, sec_fetch_site="cross-site", sec_fetch_mode="navigate"), 0)
        self.assertEqual(self.refused(True, sec_fetch_site="cross-site", sec_fetch_mode="no-cors"), 403)
        self.assertEqual(self.refused(True, "POST", sec_fetch_site="cross-site", sec_fetch_mode="navigate"), 403)
        self.assertEqual(self.refused(False, sec_fetch_site="cross-site", sec_fetch_mode="navigate"), 403)


class BodyTest(TestCase):
    """What a request may bring along."""

    def status(self, call, *args):
        with self.assertRaises(Refusal) as caught:
            call(*args)
        return caught.exception.status

    def test_lengths(self):
        self.assertEqual(httpd_lite.body_length("POST", {"content-length": "10"}), 10)
        self.assertEqual(httpd_lite.body_length("GET", {}), 0)
        for method, headers, status in (
                ("POST", {"content-length": "-1"}, 400), ("POST", {"content-length": "1e3"}, 400),
                ("POST", {"content-length": "\u0661"}, 400), ("POST", {"content-length": "9" * 30}, 400),
                ("POST", {"content-length": "+1"}, 400), ("POST", {"content-length": "65537"}, 413),
                ("POST", {"transfer-encoding": "chunked"}, 411), ("GET", {"content-length": "3"}, 400)):
            with self.subTest(headers):
                self.assertEqual(self.status(httpd_lite.body_length, method, headers), status)

    def test_headers_that_decide_are_there_once(self):
        self.assertEqual(httpd_lite.joined_headers([("Accept", "a"), ("ACCEPT", "b"), ("Host", " x ")]),
                         {"accept": "a, b", "host": "x"})
        for name in ("Host", "Origin", "Content-Length", "Authorization", "Sec-Fetch-Site"):
            self.assertEqual(self.status(httpd_lite.joined_headers, [(name, "a"), (name.lower(), "a")]), 400)

    def test_fields_of_forms_and_of_json(self):
        form, text = "application/x-www-form-urlencoded", "application/json"
        for kind, body, fields in (
                (form, b"a=1&a=2&b=%C3%A9+x", {"a": ["1", "2"], "b": ["\u00e9 x"]}), ("", b"a=", {"a": [""]}),
                (form + "; charset=UTF-8", b"", {}), (text, b'{"a": ["x", 1], "b": true, "c": "y"}',
                                                      {"a": ["x", "1"], "b": ["true"], "c": ["y"]})):
            self.assertEqual(httpd_lite.parse_body(kind, body), fields)
        for kind, body, status in (
                (form, b"\xff", 400), (form, b"a=%ff", 400), (text, b"{", 400), (text, b"[1]", 400),
                (text, b"\xff", 400), (text, b"[" * 60000, 400), ("text/plain", b"a=1", 415),
                ("multipart/form-data; boundary=x", b"", 415),
                (form, b"&".join([b"a=1"] * 5000), 400)):
            with self.subTest(kind=kind, body=body[:10]):
                self.assertEqual(self.status(httpd_lite.parse_body, kind, body), status)

    def test_lists(self):
        def listed(*values):
            return httpd_lite.listed(Request("POST", "/", {}, {"nodes": list(values)}), "nodes")
        self.assertEqual(listed('["a", "b"]'), ["a", "b"])
        self.assertEqual(listed("a", "b"), ["a", "b"])
        self.assertEqual(listed("[::1]:9706"), ["[::1]:9706"])
        self.assertEqual((listed("[]"), listed()), ([], []))
        for text in ('["a"', "[1 2]", '["a", 1]', "[[" * 30000, '[{"a": 1}]'):
            with self.subTest(text[:10]):
                self.assertEqual(self.status(listed, text), 400)

    def test_numbers(self):
        request = Request("GET", "/", {}, {"n": ["5"], "big": ["1e9"], "nan": ["nan"], "bad": ["x"], "none": [""]})
        self.assertEqual([request.number(name, 1, 0, 10) for name in ("n", "big", "nan", "bad", "none", "missing")],
                         [5, 10, 1, 1, 1, 1])


if __name__ == "__main__":
    unittest.main()
