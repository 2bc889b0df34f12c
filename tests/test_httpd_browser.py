"""The pages of the web monitor in a real browser: what they show, what they do, what becomes of hostile texts.

A faked cluster sends the messages that a status task gets; the last class has a node, a client and jobs instead. Each
test also asks that the console has nothing to say, and that no request went anywhere else.
"""
from __future__ import annotations

import contextlib
import itertools
import re
import time
import unittest
from typing import Any, Callable, Dict, Iterator, List
from unittest import mock

import dispycos_lite
import httpd_lite
import pycoslite
from dispycos_lite import DispycosStatus, DispycosTaskInfo, Scheduler
from pycoslite import Location, MonitorStatus
from tests.browser import BrowserError, ENTER, ESCAPE, SPACE, TAB, browsing
from tests.client_support import LOOPBACK, running_node
from tests.cutting import CuttingProxy
from tests.httpd_support import HOSTILE, TOKEN, Feed, FakeTask, MonitorTestCase
from tests.support import ROOT, TestCase

MARKUP = "<img src=x onerror=alert(1)>\"'&amp;<script>alert(2)</script>"
STATIC = ROOT / "static"
FAST_S = 0.2
PAGES = ("", "node.html?host=10.0.0.1:9705", "server.html?location=10.0.0.1:9706", "history.html")

# Texts whose contrast with the ground behind them is less than WCAG's 4.5 : 1; what is disabled need not have it.
FAINT = """
const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
const light = (color) => numbers(color).slice(0, 3).map((c) => c / 255).map(
  (c) => c <= 0.03928 ? c / 12.92 : Math.pow((c + 0.055) / 1.055, 2.4)).reduce(
  (sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const ground = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const color = getComputedStyle(at).backgroundColor;
    if (numbers(color)[3] !== 0) return color;
  }
  return "rgb(255, 255, 255)";
};
return [...document.querySelectorAll("body *")].filter((element) => element.offsetParent && !element.disabled
  && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())).map((element) => {
    const both = [light(getComputedStyle(element).color), light(ground(element))].sort((a, b) => b - a);
    return [element.textContent.trim().slice(0, 40), (both[0] + 0.05) / (both[1] + 0.05)];
  }).filter((found) => found[1] < 4.5);
"""
UNREACHABLE = r"Failed to load resource: net::ERR_|status of (401|403|503)"     # what a browser says of those


class FakeCluster:
    """A client without a cluster: what happens is fed to the monitor (`feed`), what viewers do is done and reported."""

    def __init__(self) -> None:
        self.feed: Any = None                   # takes messages
        self.calls: List[tuple] = []            # (method, where) of what viewers did
        self.nodes: Dict[str, Feed] = {}        # by address
        self._numbers = itertools.count(1)

    def __repr__(self) -> str:
        return "the faked cluster"

    def schedule(self, code: int = Scheduler.ClientScheduled) -> None:
        """The computation begins, or another such code."""
        self.feed(DispycosStatus(code, 1))

    def node(self, addr: str, name: str = "", servers: int = 0, cpu: float = 50.0) -> None:
        """A node turns up at port 9705, with servers at the ports above."""
        self.nodes[addr] = Feed(self.feed, addr, 9705, name or "node-" + addr, max(servers, 1)).up(servers)
        self.available(addr, cpu)

    def available(self, addr: str, cpu: float) -> None:
        """A node reports what it has free."""
        self.feed(self.nodes[addr].avail(cpu))

    def start(self, location: str, name: str = "work", *args: Any, **kwargs: Any) -> FakeTask:
        """A task starts."""
        task = FakeTask(next(self._numbers), Location.parse(location), name)
        self.feed(DispycosStatus(Scheduler.TaskStarted, DispycosTaskInfo(task, args, kwargs, time.time())))
        return task

    def end(self, task: FakeTask, kind: Any = StopIteration, value: Any = None) -> None:
        """A task ends."""
        self.feed(MonitorStatus(task, kind, value))

    def watch(self, callback: Any) -> Any:
        """As a Client's; nothing ends it."""
        self.feed = callback
        return lambda: None

    def suspend_node(self, node: Location) -> int:
        """As a Client's."""
        self.nodes[node.addr].node("Suspended")
        return self._note("suspend_node", node)

    def resume_node(self, node: Location) -> int:
        """As a Client's."""
        self.nodes[node.addr].node("Resumed")
        return self._note("resume_node", node)

    def suspend_server(self, location: Location) -> int:
        """As a Client's."""
        self.nodes[location.addr].server(location.port - 9705, "Suspended")
        return self._note("suspend_server", location)

    def resume_server(self, location: Location) -> int:
        """As a Client's."""
        self.nodes[location.addr].server(location.port - 9705, "Resumed")
        return self._note("resume_server", location)

    def _note(self, method: str, where: Any) -> int:
        self.calls.append((method, str(where)))
        return 0


_open = contextlib.ExitStack()              # holds the browser


def tearDownModule() -> None:
    """Called by unittest after the last test."""
    BrowserTestCase.browser = None
    _open.close()


class BrowserTestCase(MonitorTestCase):
    """One browser for all tests, a monitor for each. `grumbles`: what the console may say, as a regular expression."""

    browser: Any = None                     # a tests.browser.Browser
    grumbles = ""

    @classmethod
    def setUpClass(cls) -> None:
        if BrowserTestCase.browser is None:
            BrowserTestCase.browser = _open.enter_context(browsing())

    def setUp(self) -> None:
        self.origins: List[str] = []
        self.browser.forget()
        self.browser.size(1280, 900)

    def tearDown(self) -> None:
        """Nothing was run, refused or sent elsewhere."""
        self.assertIsNone(self.browser.alert())
        said = [line for line in self.browser.complaints() if not self.grumbles or not re.search(self.grumbles, line)]
        self.assertEqual(said, [])
        elsewhere = [url for url in self.browser.requests()
                     if not url.startswith(tuple(self.origins) + ("data:", "about:"))]
        self.assertEqual(elsewhere, [])
        self.browser.open("about:blank")                # before the server goes

    def monitor(self, computation: Any = None, *args: Any, **options: Any) -> httpd_lite.HTTPServer:
        """A monitor whose pages refresh as fast as can be."""
        server = super().monitor(computation, *args, **options)
        server._site.set_up(FAST_S, None)
        self.origins.append("http://127.0.0.1:%d/" % server.port)
        return server

    def cluster(self, **options: Any) -> FakeCluster:
        """A faked cluster with its monitor, `self.server`."""
        cluster = FakeCluster()
        self.server = self.monitor(cluster, **options)
        cluster.schedule()
        return cluster

    def open(self, page: str = "", origin: str = "") -> None:
        """Open a page of the last monitor, signed in."""
        self.browser.open("%s%s#token=%s" % (origin or self.origins[-1], page, TOKEN))

    def wait(self, condition: str) -> Any:
        """See Browser.wait."""
        return self.browser.wait(condition)

    def wait_text(self, css: str, text: str) -> None:
        """Wait until the first element that matches reads like that."""
        self.wait("document.querySelector(%r).innerText.trim() === %r" % (css, text))

    def shows(self, expected: Any, read: Callable, *args: Any, message: Any = None) -> None:
        """``read(*args)``, what the page shows, is that, or will be in a moment: it is drawn when it has time."""
        with contextlib.suppress(AssertionError):
            self.wait_until(lambda: read(*args) == expected)
        self.assertEqual(read(*args), expected, message)

    def column(self, number: int, table: str = "table") -> List[str]:
        """The texts of a table's column, from 1, row by row."""
        return self.browser.script(
            "return [...document.querySelectorAll(arguments[0])].map((cell) => cell.innerText.trim())",
            "%s tbody tr > :nth-child(%d)" % (table, number))

    def rows(self, count: int, table: str = "table") -> None:
        """Wait until the table has so many rows."""
        self.wait("document.querySelectorAll('%s tbody tr').length === %d" % (table, count))

    def rows_and(self, condition: str) -> None:
        """Wait until there is a row, and the condition is true."""
        self.wait("document.querySelector('tbody tr') && " + condition)

    @contextlib.contextmanager
    def same_page(self) -> Iterator[None]:
        """Within the block the page must not be loaded again."""
        self.browser.script("window.stillHere = true")
        yield
        self.assertTrue(self.browser.script("return window.stillHere === true"))


class ClusterPageTest(BrowserTestCase):
    """W05, W20."""

    def test_it_fills_and_follows_changes_without_being_loaded_again(self):
        cluster = self.cluster()
        cluster.node("10.0.0.1", "alpha", servers=2, cpu=37)
        self.open()
        self.rows(1)
        self.shows(["10.0.0.1", "alpha", "Initialized", "2", "37 %", "1.0 GiB", "100 %", "1.0 TiB", "0", "0", "0"],
                   lambda: [self.column(number)[0] for number in range(2, 13)])
        self.assertRegex(self.column(14)[0], r"^(now|\d+ s ago)$")
        self.assertTrue(self.browser.script("return document.querySelector('tbody time').title.includes(arguments[0])",
                                            str(time.localtime().tm_year)))
        with self.same_page():
            self.browser.script("document.querySelector('tbody tr').mark = 1")
            task = cluster.start("10.0.0.1:9706")
            self.wait_text("#total-running", "1")
            cluster.end(task)
            cluster.available("10.0.0.1", 12)
            self.wait_text("#total-done", "1")
            self.wait_text("td[data-column=cpu]", "12 %")
            cluster.node("10.0.0.2", "beta", servers=1)
            self.rows(2)
            self.wait_text("#total-nodes", "2")
            self.shows(1, self.browser.script,
                       "return [...document.querySelectorAll('tbody tr')].filter((row) => row.mark).length")
        self.wait_text("#state", "Live")

    def test_before_the_first_node_it_says_what_to_do(self):
        cluster = self.cluster()
        self.open()
        self.wait("!document.querySelector('#empty').hidden")
        self.assertIn("python3 dispycosnode_lite.py", self.browser.text("#empty"))
        cluster.node("10.0.0.1")
        self.wait("document.querySelector('#empty').hidden")

    def test_sorted_by_address_descending_and_by_what_is_clicked(self):
        cluster = self.cluster()
        for number, name in ((9, "beta"), (10, "alpha"), (2, "gamma")):
            cluster.node("10.0.0.%d" % number, name, servers=1)
        self.open()
        self.rows(3)
        self.shows(["alpha", "beta", "gamma"], self.column, 3)
        self.browser.click("th[data-sort=addr] button")
        self.shows(["gamma", "beta", "alpha"], self.column, 3)
        self.browser.click("th[data-sort=name] button")
        self.shows(["alpha", "beta", "gamma"], self.column, 3)
        self.shows("ascending", self.browser.script,
                   "return document.querySelector('th[data-sort=name]').ariaSort")
        self.browser.click("th[data-sort=name] button")
        self.shows(["gamma", "beta", "alpha"], self.column, 3)
        self.browser.click("th[data-sort=done] button")
        self.browser.click("th[data-sort=done] button")
        cluster.end(cluster.start("10.0.0.9:9706"))
        self.wait("document.querySelector('tbody tr td.name').innerText === 'beta'")

    def test_the_filter_hides_what_does_not_match_and_its_ticks(self):
        cluster = self.cluster()
        for number in (1, 2, 3):
            cluster.node("10.0.0.%d" % number, "node%d" % number)
        self.open()
        self.rows(3)
        self.browser.click("thead input")
        self.wait_text("#suspend", "Suspend 3")
        self.browser.type("#filter", "NODE2")
        self.rows(1)
        self.wait_text("#shown", "1 of 3")
        self.wait_text("#suspend", "Suspend 1")
        self.browser.type("#filter", "nothing like that")
        self.wait("!document.querySelector('#unmatched').hidden")
        self.wait("document.querySelector('#suspend').disabled")

    def test_ticked_nodes_are_suspended_and_resumed(self):
        cluster = self.cluster()
        for number in (1, 2, 3):
            cluster.node("10.0.0.%d" % number, "node%d" % number)
        self.open()
        self.rows(3)
        self.wait("document.querySelector('#suspend').disabled")
        self.browser.click("tbody tr:nth-child(1) input")
        self.browser.click("tbody tr:nth-child(3) input")
        self.browser.click("#suspend")
        self.wait("document.querySelectorAll('[data-status=Suspended]').length === 2")
        self.shows(["Suspended", "Initialized", "Suspended"], self.column, 4)
        self.wait("document.querySelector('#notices').innerText.includes('2 nodes suspended')")
        self.browser.click("tbody tr:nth-child(1) input")
        self.browser.click("#resume")
        self.wait("document.querySelectorAll('[data-status=Suspended]').length === 1")
        self.wait("document.querySelector('#notices').innerText.includes('node node1 resumed')")
        self.assertEqual(sorted(cluster.calls[:2]),
                         [("suspend_node", "10.0.0.1:9705"), ("suspend_node", "10.0.0.3:9705")])
        self.assertEqual(cluster.calls[2:], [("resume_node", "10.0.0.1:9705")])

    def test_who_may_only_look_is_offered_no_action(self):
        cluster = self.cluster(read_only=True)
        cluster.node("10.0.0.1")
        self.open()
        self.rows(1)
        with self.assertRaises(BrowserError):
            self.browser.click("tbody input")
        self.wait("document.querySelector('#interval').disabled")

    def test_refresh_interval_and_argument_box_reach_the_server(self):
        cluster = self.cluster()
        cluster.node("10.0.0.1", servers=1)
        self.open()
        self.rows(1)
        self.browser.type("#interval", "3" + ENTER)
        self.wait_until(lambda: self.server._site.poll_sec == 3)
        self.browser.click("#arguments")
        self.wait_until(lambda: not self.server._site.view.show_args)
        self.browser.type("#interval", "0" + ENTER)
        self.wait_text("#state", "Not refreshing")
        cluster.node("10.0.0.2")
        self.browser.click("#refresh")
        self.rows(2)
        self.browser.type("#interval", "1" + ENTER)
        self.wait_text("#state", "Live")

    def test_it_says_that_the_computation_has_ended(self):
        cluster = self.cluster()
        self.open()
        self.wait_text("#status", "Running")
        cluster.schedule(Scheduler.ClientClosed)
        self.wait("!document.querySelector('#ended').hidden")

    def test_nodes_at_one_address_show_their_ports(self):
        cluster = self.cluster()
        cluster.node("10.0.0.1", "twin")
        self.open()
        self.rows(1)
        self.shows(["10.0.0.1"], self.column, 2)
        Feed(cluster.feed, "10.0.0.1", 9805, "twin").up(0)
        self.rows(2)
        self.shows(["10.0.0.1:9805", "10.0.0.1:9705"], self.column, 2)
        self.browser.click("tbody tr:nth-child(1) input")
        self.browser.click("#suspend")
        self.wait("document.querySelector('#notices').innerText.includes('node 10.0.0.1:9805 suspended')")
        self.assertEqual(cluster.calls, [("suspend_node", "10.0.0.1:9805")])

    def test_a_node_that_has_not_reported_for_long_is_marked(self):
        cluster = self.cluster()
        cluster.node("10.0.0.1")
        self.open()
        self.rows(1)
        self.assertEqual(self.browser.script("return document.querySelectorAll('tr.old').length"), 0)
        pulses = mock.patch.object(httpd_lite, "_STALE_PULSES", 0.001)
        pulses.start()
        self.addCleanup(pulses.stop)
        self.open()
        self.wait("document.querySelectorAll('tr.old').length === 1")

    def test_charts_tell_their_figures_as_text_too(self):
        cluster = self.cluster()
        cluster.node("10.0.0.1", cpu=25)
        with self.server._site.changed:
            self.server._site._histories.add(self.server._site.view.sample(), time.time())
        self.open()
        self.wait("document.querySelector('#cpu-used svg').ariaLabel.includes('75 %')")
        self.wait("document.querySelector('#cpu-used .now').innerText.includes('75 %')")
        self.browser.click("#scope option[value=run]")
        self.wait("document.querySelector('#cpu-used svg').ariaLabel.includes('in the last')")
        self.wait("performance.getEntriesByType('resource').some((entry) => entry.name.includes('scope=run'))")

    def test_a_thousand_nodes_are_shown_and_updated_in_place(self):
        cluster = self.cluster()
        for number in range(1000):
            cluster.node("10.0.%d.%d" % divmod(number, 250), "node-%04d" % number, servers=2)
        self.open()
        self.rows(1000)
        self.wait_text("#total-servers", "2,000")
        with self.same_page():
            self.browser.script("document.querySelectorAll('tbody tr').forEach((row) => { row.mark = 1; })")
            for number in range(1000):
                cluster.available("10.0.%d.%d" % divmod(number, 250), 7)
            self.wait("[...document.querySelectorAll('[data-column=cpu]')].every((cell) => cell.innerText === '7 %')")
            self.browser.click("th[data-sort=name] button")
            self.wait("document.querySelector('tbody tr td.name').innerText === 'node-0000'")
            self.shows(1000, self.browser.script,
                       "return [...document.querySelectorAll('tbody tr')].filter((row) => row.mark).length")


class NodeAndServerPageTest(BrowserTestCase):
    """W06, W07, W21, W22."""

    def test_a_node_leads_to_its_servers_and_their_tasks(self):
        cluster = self.cluster()
        cluster.node("10.0.0.1", "alpha", servers=2)
        cluster.start("10.0.0.1:9707", "render", "scene", frame=12)
        self.open()
        self.rows(1)
        self.browser.click("tbody th a")
        self.rows(2)
        self.wait_text("h1", "Node alpha")
        self.shows(["10.0.0.1:9706", "10.0.0.1:9707"], self.column, 2)
        self.shows(["0", "1"], self.column, 5)
        self.browser.click("tbody tr:nth-child(2) th a")
        self.rows(1)
        self.wait_text("h1", "Server 10.0.0.1:9707")
        self.shows((["render"], ["scene, frame=12"]), lambda: (self.column(2), self.column(3)))
        with self.same_page():
            cluster.start("10.0.0.1:9707", "second")
            self.rows(2)
        self.browser.click("#node")
        self.wait_text("h1", "Node alpha")

    def test_ticked_servers_and_the_node_are_suspended_and_resumed(self):
        cluster = self.cluster()
        cluster.node("10.0.0.1", "alpha", servers=3)
        self.open("node.html?host=alpha")
        self.rows(3)
        self.browser.click("tbody tr:nth-child(2) input")
        self.browser.click("#suspend")
        self.wait("document.querySelector('tbody tr:nth-child(2) .status').innerText === 'Suspended'")
        self.browser.click("#resume")
        self.wait("document.querySelector('tbody tr:nth-child(2) .status').innerText === 'Initialized'")
        self.browser.click("#suspend-node")
        self.wait_text("#status", "Suspended")
        self.browser.click("#resume-node")
        self.wait_text("#status", "Initialized")
        self.assertEqual(cluster.calls, [("suspend_server", "10.0.0.1:9707"), ("resume_server", "10.0.0.1:9707"),
                                         ("suspend_node", "10.0.0.1:9705"), ("resume_node", "10.0.0.1:9705")])

    def test_ticked_tasks_are_terminated_once_that_is_confirmed(self):
        cluster = self.cluster()
        cluster.node("10.0.0.1", servers=1)
        tasks = [cluster.start("10.0.0.1:9706", name) for name in ("first", "second", "third")]
        self.open("server.html?location=10.0.0.1:9706")
        self.rows(3)
        self.browser.click("tbody tr:nth-child(1) input")
        self.browser.click("tbody tr:nth-child(3) input")
        self.browser.click("#terminate")
        for text in "Terminate 2 tasks?", "first, third":
            self.wait("document.querySelector('#confirm').innerText.includes(%r)" % text)
        self.browser.press(ESCAPE)
        self.wait("document.querySelector('#confirm').hidden")
        self.browser.click("#terminate")
        self.browser.press(ENTER)                       # the focus is on "No"
        self.wait("document.querySelector('#confirm').hidden")
        self.assertEqual([task.terminated for task in tasks], [0, 0, 0])
        self.browser.click("#terminate")
        self.browser.click("#confirm-yes")
        self.wait("document.querySelector('#notices').innerText.includes('2 tasks told to end')")
        self.assertEqual([task.terminated for task in tasks], [1, 0, 1])
        for task in tasks[::2]:
            cluster.end(task, Scheduler.TaskTerminated)
        self.rows(1)
        self.wait("document.querySelector('#terminate').disabled")

    def test_a_thousand_rows_are_shown_and_more_when_asked_for(self):
        cluster = self.cluster()
        cluster.node("10.0.0.1", "alpha", servers=1100)
        self.open("node.html?host=alpha")
        self.rows(1000)
        self.wait_text("#shown", "1,100")
        self.wait("document.querySelector('#servers-more').innerText.includes('1000 of 1100')")
        self.browser.click("#servers-more")
        self.rows(1100)
        self.wait("document.querySelector('#servers-more').hidden")

    def test_no_more_tasks_are_shown_than_asked_for(self):
        cluster = self.cluster()
        cluster.node("10.0.0.1", servers=1)
        for number in range(150):
            cluster.start("10.0.0.1:9706", "task%d" % number)
        self.open("server.html?location=10.0.0.1:9706")
        self.rows(100)
        self.wait_text("#shown", "100 of 150")
        self.browser.type("#limit", "120" + ENTER)
        self.rows(120)

    def test_hidden_arguments_are_said_to_be_hidden(self):
        cluster = self.cluster(show_task_args=False)
        cluster.node("10.0.0.1", servers=1)
        cluster.start("10.0.0.1:9706", "work", "a secret")
        self.open("server.html?location=10.0.0.1:9706")
        self.rows(1)
        self.wait("!document.querySelector('#hidden-arguments').hidden")
        self.assertNotIn("a secret", self.browser.script("return document.documentElement.innerHTML"))

    def test_what_the_monitor_does_not_know_is_said(self):
        self.cluster()
        self.open("node.html?host=10.9.9.9")
        self.wait_text("#gone", "The monitor knows no node “10.9.9.9”.")
        self.open("server.html?location=10.9.9.9:1")
        self.wait_text("#gone", "The monitor knows no server “10.9.9.9:1”.")
        for page in ("node.html", "server.html"):
            self.browser.open(self.origins[-1] + page)
            self.wait("document.querySelector('#gone').innerText.includes('address names no')")

    def test_a_node_and_a_server_that_go(self):
        cluster = self.cluster()
        cluster.node("10.0.0.1", "alpha", servers=2)
        self.open("node.html?host=10.0.0.1:9705")
        self.rows(2)
        cluster.nodes["10.0.0.1"].server(1, "Disconnected")
        self.wait("document.querySelector('tbody tr .status').innerText === 'Disconnected'")
        cluster.nodes["10.0.0.1"].node("Abandoned")
        self.wait_text("#status", "Abandoned")


class HistoryPageTest(BrowserTestCase):

    grumbles = "willReadFrequently"         # the test's own reading of a canvas

    def test_outcomes_and_tracebacks_of_tasks(self):
        cluster = self.cluster()
        cluster.node("10.0.0.1", "alpha", servers=1)
        cluster.end(cluster.start("10.0.0.1:9706", "fine", 6), value=42)
        cluster.end(cluster.start("10.0.0.1:9706", "bad"), ValueError, "Traceback: at line 3\nValueError: no")
        self.open()
        self.wait_text("#total-failed", "1")
        self.browser.click("a[href='history.html?state=failed']")
        self.rows(1, "#tasks")
        self.shows(["failed"], self.column, 2, "#tasks")
        self.browser.click("summary")
        self.wait("document.querySelector('pre').innerText.includes('at line 3')")
        self.browser.script("document.querySelector('#which').value = 'done';"
                            "document.querySelector('#which').dispatchEvent(new Event('input'))")
        self.wait("document.querySelector('#tasks tbody th').innerText === 'fine'")
        self.shows((["6"], ["42"]), lambda: (self.column(3, "#tasks"), self.column(4, "#tasks")))
        self.wait("location.search.includes('state=done')")
        with self.same_page():
            cluster.end(cluster.start("10.0.0.1:9706", "more"), value=1)
            self.rows(2, "#tasks")
        self.wait_until(lambda: "node alpha at 10.0.0.1:9705" in self.column(2, "#log"))

    def test_jobs_of_plain_functions(self):
        """How many run at a server is said there; the history has those that failed, whose start is not known."""
        cluster = self.cluster()
        cluster.node("10.0.0.1", "alpha", servers=1)
        job = dispycos_lite.PlainJob(7, "resize", Location("10.0.0.1", 9706), ("a.png",), {})
        cluster.feed(MonitorStatus(job, ValueError, "Traceback\nValueError: no image"))
        found = dispycos_lite.JobCounts(9, 0, 2, 7, 1)
        places = {Location("10.0.0.1", 9706): found}
        self.server._site.view.take_counts(dispycos_lite.ClusterCounts(found, {}, places, {}), time.time())
        self.open("server.html?location=10.0.0.1:9706")
        self.wait_text("#running", "2")
        self.wait("!document.querySelector('#plain').hidden")
        self.wait("document.querySelector('#plain').innerText.startsWith('2 jobs without a task.')")
        self.assertEqual(self.browser.text("#empty"), "")
        self.open("history.html")
        self.rows(1, "#tasks")
        self.shows((["resize"], ["ValueError: no image"], ["–"]),
                   lambda: tuple(self.column(number, "#tasks") for number in (1, 4, 7)))
        self.wait("document.querySelector('#timeline').hidden")

    def test_the_timeline_has_a_bar_for_each_task(self):
        cluster = self.cluster()
        cluster.node("10.0.0.1", "alpha", servers=2)
        cluster.end(cluster.start("10.0.0.1:9706", "first"), ValueError, "why")
        cluster.start("10.0.0.1:9707", "second")
        self.open("history.html")
        self.rows(2, "#tasks")
        self.wait("document.querySelector('canvas').ariaLabel.includes('2 tasks on 2 servers')")
        for state, name in (("failed", "first"), ("running", "second")):
            self.browser.type("#text", name)
            self.rows(1, "#tasks")
            self.wait("document.querySelector('#tasks tbody th').innerText === %r" % name)
            self.wait("""(() => {
                const canvas = document.querySelector("canvas"), box = canvas.getBoundingClientRect();
                return [...Array(Math.floor(box.width)).keys()].some((x) => {
                  canvas.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + x, clientY: box.top + 6}));
                  window.pointedAt = x;
                  return document.querySelector("#pointed").innerText.startsWith("%s, %s, on 10.0.0.1:970");
                });
                })()""" % (name, state))
            self.assertGreater(self.browser.script("""
                const canvas = document.querySelector("canvas"), scale = canvas.width / canvas.clientWidth;
                const left = scale * (window.pointedAt - 3);
                const pixels = canvas.getContext("2d").getImageData(left, 4, 8 * scale, 1).data;
                return Math.max(...pixels.filter((_, i) => i % 4 === 3))"""), 100)      # there is something to see


class HostileTextTest(BrowserTestCase):
    """S10: whatever nodes and programs call things, it is text. `tearDown` sees alerts and what the console says."""

    def test_names_arguments_results_and_tracebacks_are_shown_as_text(self):
        cluster = self.cluster()
        cluster.node("10.0.0.1", MARKUP, servers=1)
        cluster.start("10.0.0.1:9706", MARKUP.replace("/", "|"), MARKUP, key=MARKUP)
        cluster.end(cluster.start("10.0.0.1:9706", "done", MARKUP), value=MARKUP)
        cluster.end(cluster.start("10.0.0.1:9706", "failed"), type(MARKUP, (Exception,), {}), MARKUP)
        cluster.start("10.0.0.1:9706", "odd", HOSTILE)
        cluster.node(MARKUP, "odd")
        for page, shown in (("cluster.html", MARKUP), ("node.html?host=10.0.0.1:9705", "Node " + MARKUP),
                            ("server.html?location=10.0.0.1:9706", "%s, key=%s" % (MARKUP, MARKUP)),
                            ("history.html", MARKUP)):
            self.open(page)
            self.rows_and("document.querySelector('main').innerText.includes(%r)" % shown)
            self.assertEqual(self.browser.script(
                "return document.querySelectorAll('main img, main script, [onerror]').length"), 0, page)

    def test_addresses_made_by_somebody_else_do_not_lead_away(self):
        self.cluster()
        for next_page in ("javascript:alert(1)", "https://example.invalid/", "//example.invalid/cluster.html",
                          "cluster.html/../x"):
            self.browser.open("about:blank")
            self.browser.open(self.origins[-1] + "signin.html#next=" + next_page)
            self.browser.type("#token", TOKEN + ENTER)
            self.wait("location.pathname === '/cluster.html' && document.querySelector('#state').innerText === 'Live'")
            self.assertTrue(self.browser.url.startswith(self.origins[-1]))
        self.browser.open(self.origins[-1] + "node.html?host=" + "%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
        self.wait("document.querySelector('#gone').innerText.includes('<img src=x')")


class SignInTest(BrowserTestCase):

    grumbles = UNREACHABLE

    def setUp(self):
        super().setUp()
        self.cluster().node("10.0.0.1", "alpha", servers=1)

    def test_the_printed_address_signs_in_and_does_not_stay_in_the_address_bar(self):
        self.browser.open(self.server.url)
        self.rows(1)
        self.assertNotIn(TOKEN, self.browser.url)
        self.assertNotIn(TOKEN, self.browser.script(
            "return document.cookie + JSON.stringify([localStorage, sessionStorage].map(Object.entries))"))
        self.assertFalse([url for url in self.browser.requests() if TOKEN in url.partition("#")[0]])

    def test_without_a_token_a_page_says_where_it_is_and_leads_back(self):
        self.browser.open(self.origins[-1] + "node.html?host=alpha")
        self.wait("location.pathname === '/signin.html'")
        self.assertIn("has printed an address", self.browser.text("main"))
        self.browser.type("#token", "not the token" + ENTER)
        self.wait_text("#refused", "That is not this monitor's token.")
        self.browser.type("#token", self.server.url + ENTER)
        self.wait_text("h1", "Node alpha")
        self.assertIn("node.html?host=alpha", self.browser.url)

    def test_a_wrong_token_in_the_address(self):
        self.browser.open(self.origins[-1] + "#token=wrong")
        self.wait("location.pathname === '/signin.html'")

    def test_signing_out(self):
        self.open()
        self.rows(1)
        self.browser.click("#sign-out")
        self.wait("location.pathname === '/signin.html'")
        self.browser.open(self.origins[-1])
        self.wait("location.pathname === '/signin.html'")

    def test_an_open_page_goes_on_when_the_monitor_is_started_again_with_its_token(self):
        self.open()
        self.rows(1)
        with self.same_page():
            port = self.server.port
            self.server.shutdown(wait=False)
            self.wait("!document.querySelector('#lost').hidden")
            cluster = self.cluster(port=port)
            cluster.node("10.0.0.2", "beta", servers=1)
            self.wait("document.querySelector('#lost').hidden")
            self.wait("document.querySelector('tbody .name').innerText === 'beta'")
            self.rows(1)
            self.browser.click("tbody input")
            self.browser.click("#suspend")              # with the header that this monitor wants
            self.wait_text("tbody .status", "Suspended")

    def test_a_signed_in_browser_needs_no_token_until_the_monitor_is_another_one(self):
        self.open()
        self.rows(1)
        self.browser.open(self.origins[-1])
        self.rows(1)
        port = self.server.port
        self.server.shutdown(wait=False)
        self.wait("!document.querySelector('#lost').hidden")
        self.monitor(FakeCluster(), port=port, token="another-token-0123456789")
        self.wait("location.pathname === '/signin.html'")


class ConnectionTest(BrowserTestCase):
    """What the page says when it is cut off."""

    grumbles = UNREACHABLE

    def setUp(self):
        super().setUp()
        self.set_limit("http_alive_s", 0.3)
        self.feed = self.cluster()
        self.feed.node("10.0.0.1", "alpha", servers=1)

    def set_limit(self, name: str, value: Any) -> None:
        """A setting of the monitor for this test."""
        self.addCleanup(setattr, httpd_lite.settings, name, getattr(httpd_lite.settings, name))
        setattr(httpd_lite.settings, name, value)

    def behind_a_proxy(self) -> CuttingProxy:
        """Open the page through a relay that can go dark."""
        proxy = CuttingProxy(Location("127.0.0.1", self.server.port), lambda: 1 << 40, lambda: False)
        self.addCleanup(proxy.close)
        self.origins.append("http://127.0.0.1:%d/" % proxy.at.port)
        self.open()
        self.rows(1)
        return proxy

    def test_a_connection_that_goes_silent_is_told_with_its_time_and_comes_back(self):
        proxy = self.behind_a_proxy()
        with self.same_page():
            proxy.dark = True
            self.wait("!document.querySelector('#lost').hidden")
            self.wait("/No connection to the monitor since \\d\\d:\\d\\d:\\d\\d\\./.test("
                      "document.querySelector('#lost').innerText)")
            self.wait_text("#state", "Disconnected")
            self.wait("document.body.classList.contains('stale')")
            self.feed.node("10.0.0.2", "beta")
            proxy.dark = False
            self.wait("document.querySelector('#lost').hidden")
            self.rows(2)
        self.wait_text("#state", "Live")

    def test_a_monitor_that_has_ended(self):
        self.open()
        self.rows(1)
        self.server.shutdown(wait=False)
        self.wait("!document.querySelector('#lost').hidden")
        self.wait("document.querySelector('#lost').innerText.includes('Try now')")
        self.browser.click("#lost button")
        self.wait("document.querySelector('#lost .retry').innerText.includes('Next try in')")
        self.shows(["alpha"], self.column, 3)

    def test_where_streams_do_not_get_through_changes_are_asked_for(self):
        self.set_limit("http_streams", 0)
        self.open()
        self.wait_text("#state", "Live, by polling")
        with self.same_page():
            self.feed.node("10.0.0.2")
            self.rows(2)

    def test_three_viewers_agree(self):
        self.open()
        self.rows(1)
        self.browser.script("""
            window.others = [null, null];
            for (const n of [0, 1]) {
              const stream = new EventSource("api/events?interval=0.2");
              const take = (event) => { window.others[n] = JSON.parse(event.data).totals.running; };
              for (const kind of ["full", "change"]) stream.addEventListener(kind, take);
            }""")
        for _ in range(3):
            self.feed.start("10.0.0.1:9706")
        self.wait_text("#total-running", "3")
        self.wait("window.others.every((running) => running === 3)")


class LayoutTest(BrowserTestCase):

    def test_on_a_phone_nothing_is_wider_than_the_screen(self):
        cluster = self.cluster()
        cluster.node("10.0.0.1", "a-name-that-is-longer-than-what-most-people-would-call-a-machine", servers=2)
        cluster.start("10.0.0.1:9706", "task_with_a_long_name_" * 4, "argument" * 40)
        cluster.end(cluster.start("10.0.0.1:9706"), ValueError, "Traceback\n" + "a long line of it " * 9)
        self.browser.size(390, 800)
        for page in (*PAGES, "signin.html"):
            self.open(page)
            self.wait("document.querySelector('tbody tr') || document.querySelector('#token')")
            if page == "history.html":
                self.rows(2, "#tasks")
                self.browser.click("summary")
                self.wait("document.querySelector('.open')")
            for expected, code in (
                    (390, "document.documentElement.scrollWidth"),
                    (0, "[...document.querySelectorAll('.scroll')].filter((part) => part.scrollWidth > "
                        "part.clientWidth).length"),
                    (0, "[...document.querySelectorAll('tbody td[data-label]')].filter((cell) => "
                        "!getComputedStyle(cell, '::before').content.includes(cell.dataset.label)).length")):
                self.shows(expected, self.browser.script, "return " + code, message=page)

    def test_everything_can_be_done_with_the_keyboard(self):
        cluster = self.cluster()
        cluster.node("10.0.0.1", "alpha", servers=1)
        self.open()
        self.rows(1)
        self.browser.press(TAB)
        self.shows("skip", self.browser.script, "return document.activeElement.className")
        self.browser.script("document.querySelector('tbody input').focus()")
        self.browser.press(SPACE + TAB)
        self.wait_text("#suspend", "Suspend 1")
        self.shows("10.0.0.1", self.browser.script, "return document.activeElement.innerText")
        cluster.available("10.0.0.1", 3)
        self.wait_text("td[data-column=cpu]", "3 %")
        self.shows("10.0.0.1", self.browser.script, "return document.activeElement.innerText")
        self.browser.script("document.querySelector('th[data-sort=cpu] button').focus()")
        self.browser.press(ENTER)
        cluster.node("10.0.0.2", "beta", cpu=50)
        self.rows(2)
        self.browser.script("document.querySelectorAll('tbody a')[1].focus()")
        cluster.available("10.0.0.2", 1)                # its row goes up, and the focus with it
        self.wait("document.querySelector('tbody .name').innerText === 'beta'")
        self.shows("10.0.0.2", self.browser.script, "return document.activeElement.innerText")
        self.browser.press(ENTER)
        self.wait_text("h1", "Node beta")

    def test_texts_stand_out_from_what_is_behind_them_in_light_and_dark(self):
        cluster = self.cluster()
        cluster.node("10.0.0.1", "alpha", servers=1)
        cluster.node("10.0.0.2", "beta", servers=1)
        cluster.nodes["10.0.0.2"].node("Suspended")
        cluster.end(cluster.start("10.0.0.1:9706"), ValueError, "why")
        grounds = set()
        for dark in (False, True):
            self.browser.size(1280, 900, dark)
            for page in ("", "node.html?host=alpha", "history.html", "signin.html"):
                self.open(page)
                self.wait("document.querySelector('tbody tr') || document.querySelector('#token')")
                self.shows([], self.browser.script, FAINT, message=(page, dark))
            grounds.add(self.browser.script("return getComputedStyle(document.body).backgroundColor"))
        self.assertEqual(len(grounds), 2)

    def test_every_control_has_a_name(self):
        cluster = self.cluster()
        cluster.node("10.0.0.1", "alpha", servers=1)
        cluster.start("10.0.0.1:9706")
        for page in PAGES:
            self.open(page)
            self.wait("document.querySelector('tbody tr')")
            nodes = self.browser.cdp("Accessibility.getFullAXTree")["nodes"]
            controls = [node for node in nodes if not node["ignored"] and node["role"]["value"] in (
                "button", "link", "checkbox", "textbox", "searchbox", "spinbutton", "combobox", "table", "image")]
            self.assertGreater(len(controls), 5)
            nameless = [node["role"]["value"] for node in controls if not node["name"]["value"]]
            self.assertEqual([role for role in nameless if role not in ("table", "image")], [], page)

    def test_figures_are_told_as_people_read_them(self):
        self.cluster()
        self.open()
        self.browser.script("""import("./format.js").then((module) => { window.format = module; })""")
        self.wait("window.format")
        for call, expected in (
                ("count(1234567)", "1,234,567"), ("count(null)", "–"), ("percent(99.6)", "100 %"),
                ("bytes(1023)", "1023 B"), ("bytes(1536)", "1.5 KiB"), ("bytes(68719476736)", "64 GiB"),
                ("bytes(undefined)", "–"), ("rate(0)", "0"),
                ("rate(0.04)", "0.04"), ("rate(123.4)", "123"), ("duration(59.9)", "59 s"), ("duration(61)", "1 min"),
                ("duration(61, true)", "1 min 1 s"), ("duration(7300, true)", "2 h 1 min"),
                ("duration(90000)", "1 day"),
                ("duration(200000, true)", "2 days 7 h"), ("took(0.0451)", "45 ms"), ("took(1.26)", "1.3 s"),
                ("took(75)", "1 min 15 s"), ("plural(1, 'task')", "1 task"), ("plural(0, 'task')", "0 tasks")):
            self.assertEqual(self.browser.script("return window.format." + call), expected, call)


class RealClusterTest(BrowserTestCase):
    """A node, a client, jobs: nothing is faked."""

    def test_jobs_of_a_client_are_seen_suspended_and_terminated(self):
        def work(n, task=None):
            yield task.sleep(n)
            return n
        with running_node(2) as node:
            dispycos_lite.Scheduler(nodes=["127.0.0.1:%d" % node.port], **LOOPBACK)
            client = dispycos_lite.Client([work])
            self.server = self.monitor(client)
            self.addCleanup(lambda: pycoslite.Pycos().terminate())
            self.run_program(client, work)

    def run_program(self, client: Any, work: Any) -> None:
        """The client's program, which ends when the viewer has terminated its job."""
        def main(task=None):
            yield client.schedule()
            short = yield client.run_async(work, 0.01)
            yield short.finish()
            long = yield client.run_async(work, 3600)
            return (yield long.finish())
        program = pycoslite.Task(main)
        self.open()
        self.wait_text("#total-done", "1")
        self.wait_text("#total-running", "1")
        self.browser.click("tbody input")
        self.browser.click("#suspend")
        self.wait_text("tbody .status", "Suspended")
        self.browser.click("#resume")
        self.wait_text("tbody .status", "Initialized")
        self.browser.open(self.origins[-1] + "history.html?state=running")
        self.rows(1, "#tasks")
        self.shows((["work"], ["3600"]), lambda: (self.column(1, "#tasks"), self.column(3, "#tasks")))
        self.browser.click("#tasks tbody a")
        self.rows(1)
        self.browser.click("tbody input")
        self.browser.click("#terminate")
        self.browser.click("#confirm-yes")
        self.rows(0)
        program.value(60)
        self.assertFalse(program.is_alive())

        def end(task=None):
            yield client.close()
        pycoslite.Task(end).value(60)


class FilesTest(TestCase):
    """What can be seen of the pages without a browser."""

    @staticmethod
    def text(name: str) -> str:
        """A file as browsers get it."""
        return httpd_lite.built_in_pages()["/" + name].body.decode("utf-8")

    def test_they_need_nothing_from_elsewhere_and_make_no_html_of_texts(self):
        for path in STATIC.iterdir():
            if path.suffix in (".html", ".js", ".css"):
                text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")   # a name, no place
                self.assertEqual(re.findall(
                    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|javascript:|"
                    r"\bon\w+=\"|style=\"|<style|@import|url\(|(?:https?:)?//[\w.]+\.\w|(?:href|src)=\"/|"
                    r"(?:get|post|fetch|EventSource)\(\"/",
                    text), [], path.name)
                for script in re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL):
                    self.assertEqual(script, "", path.name)

    def test_what_they_name_is_there(self):
        names = set(httpd_lite.STATIC_FILES)
        for name in names:
            if name.endswith((".html", ".js")):
                text = self.text(name)
                named = re.findall(r'(?:href|src)="([\w.]+)[?"]', text) + re.findall(r'from "\./([\w.]+)"', text)
                self.assertEqual([file for file in named if file not in names], [], name)

    def test_scripts_find_the_elements_they_ask_for(self):
        shared = self.text("page.js")
        for page in ("cluster", "node", "server", "history"):
            ids = re.findall(r'\bid="([\w-]+)"', self.text(page + ".html"))
            self.assertEqual(len(ids), len(set(ids)))
            script = self.text(page + ".js")
            asked = re.findall(r'(?:\$|put)\("([\w-]+)"[,)]', script) + re.findall(r'\$\("([\w-]+)"\)', shared)
            missing = {name for name in asked if name not in ids}
            self.assertLessEqual(missing, {"gone"} if page in ("cluster", "history") else set(), page)

    def test_they_are_small(self):
        for page in ("cluster", "node", "server", "history", "signin"):
            needed, new = set(), {page + ".html"}
            while new:
                needed |= new
                texts = [self.text(name) for name in new]
                new = {name for text in texts for name in re.findall(
                    r'(?:src=|href=|from )"(?:\./)?([\w.]+\.(?:js|css|svg))"', text)} - needed
            self.assertLess(sum(len(self.text(name)) for name in needed), 70000, page)


if __name__ == "__main__":
    unittest.main()
