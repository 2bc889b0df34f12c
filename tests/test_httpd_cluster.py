"""httpd_lite.py on a real cluster: a client, a node on the loopback interface, and viewers who look and act."""
from __future__ import annotations

import sys
import threading
import unittest
from typing import Any

import dispycos_lite
import httpd_lite
import pycoslite
from dispycos_lite import Client, DispycosStatus, Scheduler
from tests import client_jobs as jobs
from tests import cluster_jobs
from tests.client_support import ClientTestCase
from tests.httpd_support import HOSTILE, MonitorTestCase, Stream
from tests.support import ROOT, TestCase, need_cpus, needs_threads_after_main, running


MARKUP = "<b>broken</b>"


def idle(*arguments, task=None):
    """Runs at a server until it is stopped."""
    yield task.receive()


class ClusterTestCase(MonitorTestCase, ClientTestCase):
    """The test's thread is the browser; what the program does, it does in tasks (`program`)."""

    def scheduled(self, components: Any = (), early: bool = True, **options: Any) -> Any:
        """A client that has its turn, with a monitor (made after that if not `early`)."""
        shown = {name: options.pop(name) for name in ("show_task_args", "poll_sec") if name in options}
        self.scheduler()
        self.client = Client(components, pulse_interval=dispycos_lite.MinPulseInterval, **options)
        if early:
            self.http = self.monitor(self.client, **shown)
        self.assertEqual(self.program(self.client.schedule), 0)
        if not early:
            self.wait_until(lambda: len(self.program(self.client.servers)) == self.cpus)
            self.http = self.monitor(self.client, **shown)
        self.wait_until(lambda: self.totals()["servers"] == self.cpus)
        self.addCleanup(lambda: self.program(self.client.close, terminate=True))
        return self.client

    def program(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        """What the program gets for a call that is used with yield."""
        def main(task: Any = None) -> Any:
            return (yield call(*args, **kwargs))
        return self.run_task(main)

    def started(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        """The task that was started so, and that it runs: its reference here."""
        rtask = self.program(method, *args, **kwargs)
        self.assertIsInstance(rtask, pycoslite.Task)
        self.wait_until(lambda: repr(rtask) in [task["task"] for task in self.tasks("running")])
        return rtask

    def get(self, path: str) -> Any:
        """What the monitor answers."""
        answer = self.ask(self.http, path)
        self.assertEqual(answer.status, 200, answer.text)
        return answer.json

    def post(self, path: str, **fields: Any) -> Any:
        """Likewise a page's POST."""
        answer = self.ask(self.http, path, fields, token=None, **self.signed_in(self.http))
        self.assertEqual(answer.status, 200, answer.text)
        return answer.json

    def totals(self) -> dict:
        """The totals now."""
        return self.get("/api/changes")["totals"]

    def tasks(self, state: str = "") -> list:
        """The tasks now."""
        return self.get("/api/tasks?state=" + state)["tasks"]

    def node_record(self) -> dict:
        """The node that is used."""
        return self.get("/api/changes")["nodes"][0]

    def places(self) -> list:
        """Locations of the servers."""
        return sorted(server["location"] for server in self.post("/node_info", host="127.0.0.1")["servers"]
                      if server["status"] != "Closed")


class WatchTest(ClusterTestCase):
    """What viewers see."""

    def test_documented_views_of_a_run(self):
        self.scheduled([idle])
        rtask = self.started(self.client.rtask, idle, HOSTILE.replace("\ud800", ""))
        self.program(self.client.run_result, jobs.square, 4)
        self.wait_until(lambda: self.totals()["done"] == 1)
        node, = self.get("/cluster_status")
        self.assertEqual(set(node), {"name", "addr", "status", "servers", "update_time", "tasks_submitted",
                                     "tasks_done", "avail_info"})
        self.assertEqual((node["addr"], node["status"], node["servers"], node["tasks_submitted"], node["tasks_done"]),
                         ("127.0.0.1", "Initialized", 2, 2, 1))
        self.assertIsInstance(node["avail_info"]["memory"], int)
        for host in ("127.0.0.1", node["name"], self.node_record()["id"]):
            found = self.post("/node_info", host=host)
            self.assertEqual((found["addr"], len(found["servers"])), ("127.0.0.1", 2))
        self.assertEqual(sorted(server["tasks_running"] for server in found["servers"]), [0, 1])
        self.assertEqual(self.post("/node_info", host="nobody"), {})
        found = self.post("/server_info", location=repr(rtask.location))
        task, = found["tasks"]
        self.assertEqual((task["task"], task["name"], task["kwargs"]), (repr(rtask), "idle", ""))
        self.assertIn("<img src=x", task["args"])
        self.assertLess(abs(task["start_time"] - found["update_time"]), 60)
        self.assertEqual(self.post("/server_info", location="127.0.0.1:1"), {})
        rtask.terminate()

    def test_limit_of_tasks_shown(self):
        self.scheduled([idle])
        where = self.program(self.client.servers)[0]
        for _ in range(5):
            self.started(self.client.io_rtask_at, where, idle, None)
        for limit, count in ((0, 5), (3, 3), (-1, 5), ("x", 5)):
            self.assertEqual(len(self.post("/server_info", location=repr(where), limit=limit)["tasks"]), count)
        self.assertEqual(self.post("/server_info", location=repr(where), limit=3)["tasks_running"], 5)

    def test_arguments_are_hidden_when_asked_for(self):
        self.scheduled([idle], show_task_args=False)
        rtask = self.started(self.client.rtask, idle, "private")
        for path in ("/server_info?location=%s" % rtask.location, "/api/tasks", "/api/changes", "/api/log"):
            self.assertNotIn("private", self.ask(self.http, path).text)

    def test_outcomes(self):
        self.scheduled()
        self.program(self.client.run_result, jobs.square, 3)
        self.program(self.client.run_result, jobs.fail, "broken")
        self.wait_until(lambda: self.totals()["done"] == 2)
        totals = self.totals()
        self.assertEqual((totals["submitted"], totals["failed"], totals["running"]), (2, 1, 0))
        failed, = self.tasks("failed")
        self.assertEqual((failed["error"], failed["state"]), ("ValueError", "failed"))
        self.assertIn("broken", failed["detail"])
        self.assertIn("Traceback", failed["detail"])
        self.assertEqual(self.tasks("done")[0]["result"], "9")

    def test_words_of_a_life(self):
        """W23, W25, K25 as viewers see it, to the end and through a second computation."""
        client = self.scheduled()
        with Stream(self.http, "?interval=0.2") as stream:
            self.assertEqual(stream.follow(1), ["full"])
            self.program(client.run_result, jobs.square, 3)
            self.program(client.close)
            self.wait_until(lambda: self.get("/api/changes")["status"] == "Closed")
            stream.follow(self.get("/api/changes")["seq"])
            node, = stream.known.values()
            self.assertEqual((node["status"], node["servers"], node["tasks_done"]), ("Closed", 0, 1))
        words = [line["text"] for line in self.get("/api/log")["log"] if line["subject"].startswith("node")]
        self.assertEqual(words, ["Discovered", "Initialized", "Closed"])
        self.assertEqual(self.program(client.schedule), 0)
        self.wait_until(lambda: self.totals()["servers"] == 2)
        self.program(client.run_result, jobs.square, 3)
        self.wait_until(lambda: self.totals()["done"] == 2)
        self.assertEqual(self.get("/api/changes")["status"], "Running")

    def test_jobs_that_wait(self):
        self.addCleanup(setattr, httpd_lite.settings, "sample_s", httpd_lite.settings.sample_s)
        httpd_lite.settings.sample_s = 0.05
        self.scheduled([idle])
        self.wait_until(lambda: self.totals()["pending"] == 0)
        self.get("/api/history")
        jobs_ = [pycoslite.Task(lambda task=None: (yield self.client.rtask(idle))) for _ in range(20)]
        self.wait_until(lambda: self.totals()["pending"])
        self.wait_until(lambda: any(self.get("/api/history?scope=run")["pending"]))
        self.program(self.client.close, terminate=True)
        for job in jobs_:
            job.value(60)
        self.wait_until(lambda: self.totals()["pending"] == 0)
        totals = self.totals()
        self.assertEqual((totals["submitted"], totals["done"], totals["terminated"]), (20, 20, 20))

    def test_plain_functions_are_counted_and_listed_when_they_fail(self):
        """W20 to W22, W25 for jobs of which no message tells."""
        for name, value in (("sample_s", 3600.0), ("http_alive_s", 5.0)):       # nobody asks but for a viewer, and soon
            self.addCleanup(setattr, httpd_lite.settings, name, getattr(httpd_lite.settings, name))
            setattr(httpd_lite.settings, name, value)
        client = self.scheduled()
        self.program(client.run_result, jobs.fail_plainly, MARKUP)
        with Stream(self.http, "?interval=0.2") as stream:
            stream.follow(1)
            for number in range(6):
                self.assertEqual(self.program(client.run_result, jobs.double, number), 2 * number)
            node = {"tasks_done": 1}
            while node["tasks_done"] < 7:
                name, data = stream.read()
                self.assertEqual(name, "change")
                node = (data["nodes"] or [node])[0]
        totals = self.totals()
        self.assertEqual([totals[name] for name in ("submitted", "pending", "running", "done", "failed")],
                         [7, 0, 0, 7, 1])
        self.assertEqual((node["tasks_submitted"], node["tasks_done"], node["tasks_failed"]), (7, 7, 1))
        servers = self.post("/node_info", host=node["id"])["servers"]
        self.assertEqual([sum(server["tasks_" + name] for server in servers) for name in ("done", "failed", "listed")],
                         [7, 1, 0])
        failed, = self.tasks("failed")
        self.assertEqual((failed["name"], failed["error"], failed["args"], failed["start_time"]),
                         ("fail_plainly", "ValueError", MARKUP, None))
        self.assertIn("Traceback", failed["detail"])
        self.assertIn(failed["location"], [server["location"] for server in servers if server["tasks_failed"]])
        self.assertIn("tasks_ended_total{outcome=\"failed\"} 1", self.ask(self.http, "/metrics").text)

    def test_server_that_dies(self):
        self.scheduled([jobs.die])
        with self.expect_log("killed by signal 9"):
            self.program(self.client.run_result, jobs.die)
        self.wait_until(lambda: any(line["text"].startswith("Disconnected") for line in self.get("/api/log")["log"]))
        self.wait_until(lambda: self.totals()["servers"] == 2)          # it was replaced

    def test_all_viewers_see_all(self):
        """V21, with a real cluster."""
        self.scheduled([jobs.square])
        viewers = [Stream(self.http, "?interval=0.2") for _ in range(3)]
        seen = [dict(), dict()]
        try:
            for viewer in viewers:
                viewer.follow(1)
            for number in range(6):
                self.program(self.client.run_result, jobs.square, number)
                for found in self.get("/cluster_updates?reader=%d" % (number % 2)):
                    seen[number % 2][found["addr"]] = found
            self.wait_until(lambda: self.totals()["done"] == 6)
            last = self.get("/api/changes")
            for viewer in viewers:
                viewer.follow(last["seq"])
                self.assertEqual([node["tasks_done"] for node in viewer.known.values()], [6])
            for reader in range(2):
                for found in self.get("/cluster_updates?reader=%d" % reader):
                    seen[reader][found["addr"]] = found
                self.assertEqual(seen[reader]["127.0.0.1"]["tasks_done"], 6)
                self.assertEqual(self.get("/cluster_updates?reader=%d" % reader), [])
        finally:
            for viewer in viewers:
                viewer.__exit__()


class ExecutorTest(ClusterTestCase):
    """A `Cluster` has a monitor, too."""

    def test_its_jobs_are_counted_and_its_nodes_shown(self):
        self.addCleanup(self.stop_all)
        with dispycos_lite.Cluster(nodes=["127.0.0.1:%d" % self.node.port]) as cluster:
            self.http = self.monitor(cluster)
            self.assertEqual(list(cluster.map(jobs.double, range(100))), [2 * number for number in range(100)])
            self.assertIsInstance(cluster.submit(jobs.fail_plainly, "broken").exception(), ValueError)
            self.wait_until(lambda: self.tasks("failed"))
            self.assertEqual([self.totals()[name] for name in ("submitted", "done", "failed")], [101, 101, 1])
            self.wait_until(lambda: self.node_record()["avail_info"]["memory"])
            self.wait_until(lambda: self.totals()["servers"] == self.cpus)
            found = self.get("/api/changes")
            self.assertEqual(found["status"], "Running")
            self.assertEqual(found["nodes"][0]["tasks_done"], 101)
            folder = self.temp_dir()
            held = cluster.submit(cluster_jobs.hold, str(folder / "began"), str(folder / "go on"))
            self.wait_until((folder / "began").exists)
            servers = [self.post("/server_info", location=place) for place in self.places()]
            self.assertEqual([job for server in servers for job in server["jobs"]], ["hold#%d" % held.job_id])
            self.assertEqual(sorted(server["tasks_running"] for server in servers), [0, 1])
            (folder / "go on").write_text("")
            held.result(60)
            self.assertFalse(self.get("/api/session")["can_act"])
            self.assertEqual(self.ask(self.http, "/suspend_node", {"nodes": '["127.0.0.1"]'}).status, 409)
        self.wait_until(lambda: self.get("/api/changes")["status"] == "Closed")
        self.assertEqual(self.totals()["done"], 102)


class ChainTest(ClusterTestCase):
    """The status task that the program has goes on getting its messages."""

    def test_monitor_first_then_the_programs_own_task(self):
        seen = []

        def status(task=None):
            task.set_daemon()
            while True:
                message = yield task.receive()
                if isinstance(message, DispycosStatus) and message.status == Scheduler.TaskStarted:
                    seen.append(repr(message.info.task) in self.http._site.view.running)
                elif isinstance(message, pycoslite.MonitorStatus):
                    seen.append(message.value)
        own = pycoslite.Task(status)
        client = self.scheduled(status_task=own)
        self.assertIs(client.status_task, own)
        self.assertIs(self.http.status_coro, self.http.status_task)
        self.program(client.run_result, jobs.square, 5)
        self.wait_until(lambda: seen == [True, 25])
        self.http.shutdown(wait=False)
        self.assertIs(client.status_task, own)
        self.program(client.run_result, jobs.square, 6)
        self.wait_until(lambda: seen[2:] == [True, 36] or len(seen) > 3)

    def test_messages_relayed_by_hand(self):
        """W02, as the oldest programs do it."""
        self.scheduler()
        self.http = self.monitor()
        client = Client([jobs.square], status_task=self.http.status_task)
        self.program(client.schedule)
        self.program(client.run_result, jobs.square, 5)
        self.wait_until(lambda: self.totals()["done"] == 1)
        self.assertEqual(self.ask(self.http, "/suspend_node", {"nodes": '["127.0.0.1"]'}).status, 409)
        self.program(client.close)

    def test_monitor_that_comes_late(self):
        self.scheduled(early=False)
        self.assertEqual(self.node_record()["servers_up"], 2)
        self.program(self.client.run_result, jobs.square, 5)
        self.wait_until(lambda: self.totals()["done"] == 1)


class ActTest(ClusterTestCase):
    """What viewers do."""

    def test_terminate_tasks(self):
        self.scheduled([idle])
        one, two, three = (self.started(self.client.io_rtask, idle, None) for _ in range(3))
        self.assertEqual(self.post("/terminate_tasks", task=[repr(one), "idle/999@127.0.0.1:1", repr(two)]),
                         [repr(one), repr(two)])
        self.wait_until(lambda: self.totals()["done"] == 2)
        self.assertEqual(self.post("/terminate_coros", coro=repr(three)), [repr(three)])
        self.wait_until(lambda: self.totals()["running"] == 0)
        self.assertEqual(self.post("/terminate_tasks", task=repr(one)), [])     # it has ended
        self.assertIn("terminate: a viewer asked for it", [line["text"] for line in self.get("/api/log")["log"]])

    def test_suspend_and_resume_a_node(self):
        self.scheduled()
        name = self.node_record()["name"]
        for who in ("127.0.0.1", name, self.node_record()["id"]):
            with self.subTest(who):
                self.assertEqual(self.post("/suspend_node", nodes='["%s", "nobody"]' % who), [who])
                self.wait_until(lambda: self.node_record()["status"] == "Suspended")
                self.assertEqual(self.post("/resume_node", nodes='["%s"]' % who), [who])
                self.wait_until(lambda: self.node_record()["status"] == "Initialized")
        self.program(self.client.run_result, jobs.square, 3)

    def test_suspend_and_resume_servers(self):
        self.scheduled()
        here = self.places()[0]
        self.assertEqual(self.post("/suspend_server", servers='["%s", "127.0.0.1:1"]' % here), [here])

        def status():
            return self.get("/server_info?location=" + here)["status"]
        self.wait_until(lambda: status() == "Suspended")
        for number in range(4):
            self.program(self.client.run_result, jobs.square, number)
        self.wait_until(lambda: self.totals()["done"] == 4)
        self.assertEqual(self.get("/server_info?location=" + here)["tasks_submitted"], 0)
        self.assertEqual(self.post("/resume_server", servers=[here]), [here])
        self.wait_until(lambda: status() == "Initialized")

    def test_after_the_end(self):
        self.scheduled()
        self.program(self.client.close)
        with self.expect_log("no such node or server"):
            self.assertEqual(self.post("/suspend_node", nodes='["127.0.0.1"]'), [])

    def test_program_that_is_busy(self):
        """A task that does not yield does not keep viewers waiting for ever, nor from looking."""
        self.scheduled()
        self.addCleanup(setattr, httpd_lite, "_ACT_S", httpd_lite._ACT_S)
        httpd_lite._ACT_S = 0.1
        go_on, busy = threading.Event(), threading.Event()

        def hog(task=None):
            busy.set()
            go_on.wait(60)
            yield
        task = pycoslite.Task(hog)
        busy.wait(60)
        try:
            self.assertEqual(self.get("/cluster_status")[0]["status"], "Initialized")
            answer = self.ask(self.http, "/suspend_node", {"nodes": '["127.0.0.1"]'})
            self.assertEqual((answer.status, list(answer.json)), (503, ["error"]))
        finally:
            go_on.set()
        task.value(60)
        self.wait_until(lambda: self.node_record()["status"] == "Suspended")     # it was only late


class ProgramTest(TestCase):
    """Programs as users write them."""

    def setUp(self):
        need_cpus(2)

    @needs_threads_after_main
    def test_example(self):
        command = [sys.executable, "-X", "dev", "-W", "error", ROOT / "examples" / "monitor.py", "4", "0"]
        with running(command, ready="http://127[.]0[.]0[.]1:.*/#token=", env={"PYCOSLITE_EMBEDDED": "2"}) as process:
            self.assertEqual(process.wait(60), 0, process.output)
        self.assertIn("4 tasks done, 0 failed", process.output)
        self.assertNotIn("Traceback", process.output)

    @needs_threads_after_main
    def test_old_program(self):
        """The names of pycos and asyncoro lead here, and the program ends by itself."""
        script = self.temp_dir() / "old.py"
        script.write_text(OLD_PROGRAM)
        with running([sys.executable, "-m", "pycoslite", "run", script], env={"PYCOSLITE_EMBEDDED": "2"}) as process:
            self.assertEqual(process.wait(60), 0, process.output)
        self.assertIn("gave 49", process.output)
        self.assertIn("monitor: open http://127.0.0.1:", process.output)


OLD_PROGRAM = """
def square(n, task=None):
    yield task.sleep(0.01)
    return n * n

def client_proc(task=None):
    httpd = pycos.httpd.HTTPServer(client, '', 0, poll_sec=1)
    assert asyncoro.httpd.HTTPServer is pycos.httpd.HTTPServer
    if (yield client.schedule()):
        raise Exception('could not schedule')
    rtask = yield client.rtask(square, 7)
    print('gave', (yield rtask.finish()))
    yield client.close()
    httpd.shutdown()

if __name__ == '__main__':
    import pycos, pycos.netpycos, pycos.httpd, asyncoro.httpd
    from pycos.dispycos import *
    client = Client([square])
    pycos.Task(client_proc)
"""


if __name__ == "__main__":
    unittest.main()
