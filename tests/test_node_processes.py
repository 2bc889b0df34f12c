"""The processes of a node, with real ones: birth, death, what is left behind, for both ways of starting them."""
from __future__ import annotations

import os
import queue
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import dispycosnode_lite as node
import pycoslite
from tests import support

WAIT_S = support.PROCESS_S
HAS_FORK = hasattr(os, "fork")
POSIX = os.name == "posix"


# -- what runs in the servers: module level, so that a spawned process finds it


def server(spec: Dict[str, Any], control: node.Control) -> Optional[int]:
    """A server that says who it is and does what it is told: ["name of a function below", argument...]."""
    orders: "queue.Queue[Dict[str, Any]]" = queue.Queue()
    control.listen(orders.put)
    control.report(ready=True, pid=os.getpid(), spec=spec, cwd=os.getcwd(), path=sys.path[:2],
                   number=random.random(), data=STATE.get("data"))
    while True:
        name, *arguments = orders.get()["do"]
        result = ORDERS[name](*arguments)
        if name == "leave":
            return result
        control.report(done=name, result=result)


def leave(status: int) -> int:
    return status


def become_stubborn() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def fail() -> None:
    sys.stderr = open(os.devnull, "w")  # the traceback is not this test's subject
    raise ValueError("told to fail")


def hog() -> None:
    while True:
        pass


def start_child(detached: bool) -> int:
    """A process of the user's that outlives its parent if nobody minds; its end of the pipe at stderr stays open."""
    code = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.write(1, b'x'); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE,
                             **({"preexec_fn": os.setpgrp} if detached else {}))
    CHILDREN.append(child)
    child.stdout.read(1)                # it ignores SIGTERM from here on
    return child.pid


def descriptors() -> List[str]:
    return sorted("%d %s" % item for item in support.open_descriptors().items() if item[0] > 2)


def what_is_open() -> Dict[str, Any]:
    return {"stdin": os.fstat(0).st_rdev == os.stat(os.devnull).st_rdev, "others": descriptors(),
            "term": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
            "threads": threading.active_count()}


ZIPPED = """
import queue, sys
from app import dispycosnode_lite as node

def main():
    events = queue.Queue()
    processes = node.SpawnedProcesses(node.zipped_server, events.put)
    processes.start()
    processes.new_generation(1, sys.argv[1])
    processes.start_server(1, 1, {"status": 3})
    while True:
        event = events.get()
        if "report" in event:
            print(event["report"]["name"])
        if event["event"] == "died":
            print(event["returncode"])
            break
main()
"""
ZIPPED_SERVER = """

def zipped_server(spec, control):
    control.report(name=__name__)
    return spec["status"]
"""

STATE: Dict[str, Any] = {}
CHILDREN: List[Any] = []
ORDERS: Dict[str, Callable[..., Any]] = {f.__name__: f for f in (
    leave, become_stubborn, fail, hog, start_child, what_is_open)}
ORDERS["sys.exit"] = lambda: sys.exit(4)


def setup(spec: Dict[str, Any]) -> Optional[str]:
    if spec.get("fail"):
        raise ValueError("setup was told to fail")
    STATE["data"] = spec["data"]
    return None


def supervise(method: str, directory: str) -> None:
    """A supervisor of two servers, one busy and one stopped, that is there to be killed; run as a process."""
    ready: "queue.Queue[int]" = queue.Queue()

    def report(event: Dict[str, Any]) -> None:
        if "report" in event:
            ready.put(event["report"].get("pid", 0))
    processes = node.START_METHODS[method](server, report, setup)
    processes.start()
    processes.new_generation(1, directory)
    for n in (1, 2, 3):
        processes.start_server(1, n, {})
    pids = [ready.get() for _ in range(3)]
    processes.tell(1, 1, {"do": ["start_child", False]})
    ready.get()
    for n in (1, 2):
        processes.tell(1, n, {"do": ["become_stubborn"]})
        ready.get()
        processes.tell(1, n, {"do": ["hog"]})
    if method == "fork":
        os.kill(pids[2], signal.SIGSTOP)
    print("ready", flush=True)
    threading.Event().wait()


class Events:
    """Collects what a `Processes` reports, and waits for what a test needs."""

    def __init__(self) -> None:
        self.all: List[Dict[str, Any]] = []
        self._changed = threading.Condition()

    def __call__(self, event: Dict[str, Any]) -> None:
        with self._changed:
            self.all.append(event)
            self._changed.notify_all()

    def _find(self, start: int, wanted: Dict[str, Any]) -> Optional[Dict[str, Any]]:
        for event in self.all[start:]:
            facts = dict(event, **event.get("report", {}))
            if all(key in facts and facts[key] == value for key, value in wanted.items()):
                return event
        return None

    def wait(self, start: int = 0, **wanted: Any) -> Dict[str, Any]:
        """The first event from number `start` on that has these items (a report's own items count, too)."""
        with self._changed:
            self._changed.wait_for(lambda: self._find(start, wanted), WAIT_S)
            found = self._find(start, wanted)
            if found is None:
                raise AssertionError("no event %r; there were:\n%s" % (wanted, "\n".join(map(str, self.all[start:]))))
            return found


class ProcessesCase(support.TestCase):
    """One `Processes` per test, ended afterwards."""

    method = "fork"

    def setUp(self) -> None:
        self.events = Events()
        self.processes = node.START_METHODS[self.method](server, self.events, setup)
        self.processes.start()
        self.addCleanup(self.processes.close)
        self.directory = str(self.temp_dir())

    def generation(self, number: int, servers: int) -> List[int]:
        """Start one, wait for its servers, return their process ids."""
        directory = os.path.join(self.directory, "client-%d" % number)
        os.mkdir(directory)
        self.processes.new_generation(number, directory)
        for n in range(1, servers + 1):
            self.processes.start_server(number, n, {"name": "server %d" % n})
        return [self.ready(number, n)["pid"] for n in range(1, servers + 1)]

    def ready(self, generation: int, n: int, start: int = 0) -> Dict[str, Any]:
        return self.events.wait(start, event="report", generation=generation, n=n, ready=True)["report"]

    def order(self, generation: int, n: int, *words: Any) -> Any:
        """Let a server do something and return what came of it."""
        start = len(self.events.all)
        self.processes.tell(generation, n, {"do": words})
        return self.events.wait(start, generation=generation, n=n, done=words[0])["report"]["result"]

    def gone(self, pid: int) -> None:
        self.wait_until(lambda: not support.alive(pid), WAIT_S, "the end of process %d" % pid)


class BothMethods:
    """Test cases that hold for forked and for spawned servers."""

    def test_generation_of_three_servers_reports_ready(self) -> None:
        pids = self.generation(1, 3)
        self.assertEqual(len(set(pids)), 3)
        for n, pid in enumerate(pids, 1):
            self.assertEqual(self.events.wait(event="started", generation=1, n=n)["pid"], pid)
            said = self.ready(1, n)
            self.assertEqual(said["spec"], {"name": "server %d" % n})
            self.assertEqual(os.path.realpath(said["cwd"]), os.path.realpath(
                os.path.join(self.directory, "client-1", "dispycos_server_%d" % n)))
            self.assertEqual(said["path"], [os.path.join(self.directory, "client-1", "dispycos_server_%d" % n),
                                            os.path.join(self.directory, "client-1")])
        self.assertEqual(len({self.ready(1, n)["number"] for n in (1, 2, 3)}), 3, "random numbers repeat")

    def test_death_by_signal_is_reported_and_the_server_replaced(self) -> None:
        pid = self.generation(1, 2)[1]
        os.kill(pid, signal.SIGKILL)
        died = self.events.wait(event="died", generation=1, n=2)
        self.assertEqual((died["pid"], died["returncode"], died["reason"]), (pid, -9, "killed by signal 9 (SIGKILL)"))
        start = len(self.events.all)
        self.processes.start_server(1, 2, {"name": "second life"})
        again = self.ready(1, 2, start)
        self.assertNotEqual(again["pid"], pid)
        self.assertEqual(again["spec"], {"name": "second life"})
        self.assertIsNone(self.events._find(0, {"event": "died", "n": 1}), "the other server died, too")

    def test_each_way_to_end_is_reported_with_its_reason(self) -> None:
        for n, (words, returncode, reason) in enumerate([
                (["leave", 0], 0, "exit status 0"), (["leave", 3], 3, "exit status 3"),
                (["sys.exit"], 4, "exit status 4"), (["fail"], 1, "exit status 1")], 1):
            self.processes.new_generation(n, self.directory)
            self.processes.start_server(n, 1, {})
            self.ready(n, 1)
            self.processes.tell(n, 1, {"do": words})
            died = self.events.wait(event="died", generation=n, n=1)
            self.assertEqual((died["returncode"], died["reason"]), (returncode, reason))

    def test_kill_server_spares_the_others(self) -> None:
        pids = self.generation(1, 3)
        child = self.order(1, 2, "start_child", False)
        self.processes.kill_server(1, 2)
        self.assertEqual(self.events.wait(event="died", generation=1, n=2)["pid"], pids[1])
        self.gone(child)
        for n in (1, 3):
            self.assertEqual(self.order(1, n, "become_stubborn"), None)

    def test_kill_with_grace_is_sigterm_first(self) -> None:
        self.generation(1, 2)
        self.order(1, 2, "become_stubborn")
        self.processes.kill_server(1, 1, grace_s=60)
        self.assertEqual(self.events.wait(event="died", n=1)["returncode"], -signal.SIGTERM)
        self.processes.kill_server(1, 2, grace_s=0.05)
        self.assertEqual(self.events.wait(event="died", n=2)["returncode"], -signal.SIGKILL)

    def test_kill_generation_takes_stopped_stubborn_busy_servers_and_their_children(self) -> None:
        pids = self.generation(1, 4)
        others = self.generation(2, 1)
        children = [self.order(1, 4, "start_child", False)]
        if self.method == "fork" and sys.platform == "linux":
            children.append(self.order(1, 4, "start_child", True))
        self.order(1, 2, "become_stubborn")
        self.processes.tell(1, 3, {"do": ["hog"]})
        os.kill(pids[0], signal.SIGSTOP)
        self.processes.kill_generation(1, grace_s=0.05)
        self.events.wait(event="died", generation=1, n=None)
        for pid in pids + children:
            self.gone(pid)
        self.assertTrue(support.alive(others[0]))

    def test_kill_generation_without_grace_ends_before_its_report(self) -> None:
        pids = self.generation(1, 3)
        self.processes.kill_generation(1)
        self.events.wait(event="died", generation=1, n=None)
        for pid in pids:
            self.gone(pid)
        last = self.events.all[-1]
        self.assertEqual((last["event"], last["generation"], last["n"]), ("died", 1, None))

    def test_messages_that_come_too_late_are_dropped(self) -> None:
        self.generation(1, 1)
        self.processes.kill_generation(1)
        self.events.wait(event="died", generation=1, n=None)
        count = len(self.events.all)
        self.processes.tell(1, 1, {"do": ["leave", 0]})
        self.processes.start_server(1, 1, {})
        self.processes.kill_server(1, 1)
        self.generation(2, 1)
        self.assertEqual([e for e in self.events.all[count:] if e["generation"] == 1], [])

    def test_kill_generation_is_answered_even_when_it_is_gone(self) -> None:
        for number in (1, 1, 7):
            start = len(self.events.all)
            self.processes.kill_generation(number)
            self.assertIsNone(self.events.wait(start, event="died", generation=number, n=None)["pid"])

    def test_nothing_of_the_supervisor_is_open_in_a_server(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        self.generation(1, 3)
        found = self.order(1, 3, "what_is_open")
        self.assertTrue(found["stdin"], "standard input is not the null device")
        self.assertTrue(found["term"], "SIGTERM is still handled")
        self.assertEqual(found["threads"], 2)           # its own and the one that watches its line
        if self.method == "fork":
            self.assertEqual(len(found["others"]), 1, found["others"])      # its line to the template
        else:
            self.assertEqual(len(found["others"]), 2, found["others"])

    def test_twenty_generations_leak_nothing_here_or_in_the_nursery(self) -> None:
        self.generation(1, 1)
        self.end(1)
        before = self.holdings()
        for number in range(2, 22):
            self.generation(number, 1)
            self.end(number)
        self.wait_until(lambda: self.holdings() == before, WAIT_S, "%s again" % (before,))

    def end(self, number: int) -> None:
        self.processes.kill_generation(number)
        self.events.wait(event="died", generation=number, n=None)

    def holdings(self) -> Any:
        nursery = getattr(self.processes, "_pid", 0)
        return (threading.active_count(), len(support.open_descriptors()),
                len(os.listdir("/proc/%d/fd" % nursery)) if nursery and os.path.isdir("/proc/self/fd") else 0)

    def test_close_ends_everything(self) -> None:
        pids = self.generation(1, 2) + self.generation(2, 1)
        self.processes.close()
        for pid in pids:
            self.gone(pid)
        self.processes.close()
        count = len(self.events.all)
        self.processes.close()
        self.assertEqual(len(self.events.all), count)

    @unittest.skipUnless(POSIX, "needs signals")
    def test_supervisor_killed_leaves_no_process(self) -> None:
        read_fd, write_fd = os.pipe()
        code = "from tests import test_node_processes as t; t.supervise(%r, %r)" % (self.method, self.directory)
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=write_fd,
                              cwd=str(support.ROOT), start_new_session=True) as supervisor:
            os.close(write_fd)
            self.addCleanup(os.close, read_fd)
            self.assertEqual(supervisor.stdout.readline(), b"ready\n")
            supervisor.kill()
        self.assert_end_of_file(read_fd)

    def assert_end_of_file(self, fd: int) -> None:
        """All descendants have inherited the other end; the last one of them closes it by its death."""
        said, deadline = b"", time.monotonic() + WAIT_S
        while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            data = os.read(fd, 4096)
            if not data:
                return
            said += data
        self.fail("processes outlive their supervisor; they said: %s" % said.decode())


@unittest.skipUnless(HAS_FORK, "no os.fork here")
class ForkedTest(BothMethods, ProcessesCase):
    """Everything under one nursery."""

    method = "fork"

    def test_start_refuses_with_threads(self) -> None:
        done = threading.Event()
        thread = threading.Thread(target=done.wait, name="too early")
        thread.start()
        try:
            with self.assertRaisesRegex(pycoslite.MisuseError, "too early"):
                node.ForkedProcesses(server, self.events).start()
        finally:
            done.set()
            thread.join()

    def test_setup_is_shared_with_servers_that_start_after_it(self) -> None:
        os.mkdir(os.path.join(self.directory, "c"))
        self.processes.new_generation(1, os.path.join(self.directory, "c"))
        self.processes.setup(1, {"data": [1, 2, 3]})
        self.assertIsNone(self.events.wait(event="setup", generation=1)["error"])
        self.processes.start_server(1, 1, {})
        self.assertEqual(self.ready(1, 1)["data"], [1, 2, 3])
        self.assertEqual(self.generation(2, 1) and self.ready(2, 1)["data"], None)

    def test_setup_that_raises_is_reported_and_the_template_lives(self) -> None:
        self.processes.new_generation(1, self.directory)
        self.processes.setup(1, {"fail": True})
        self.assertIn("setup was told to fail", self.events.wait(event="setup", generation=1)["error"])
        self.processes.start_server(1, 1, {})
        self.ready(1, 1)

    def test_template_killed_takes_its_servers_along(self) -> None:
        pids = self.generation(1, 2)
        os.kill(self.events.wait(event="started", generation=1, n=None)["pid"], signal.SIGKILL)
        died = self.events.wait(event="died", generation=1, n=None)
        self.assertEqual(died["reason"], "killed by signal 9 (SIGKILL)")
        for pid in pids:
            self.gone(pid)

    def test_nursery_killed_is_reported_and_leaves_nothing(self) -> None:
        pids = self.generation(1, 2)
        os.kill(self.processes._pid, signal.SIGKILL)
        lost = self.events.wait(event="lost")
        self.assertIn("killed by signal 9 (SIGKILL)", lost["reason"])
        for pid in pids:
            self.gone(pid)

    def test_signals_to_the_terminals_group_end_no_server(self) -> None:
        pids = self.generation(1, 1)
        template = self.events.wait(event="started", generation=1, n=None)["pid"]
        for pid in (self.processes._pid, template):
            self.assertNotEqual(os.getsid(pid), os.getsid(0))
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        self.processes.start_server(1, 2, {})
        self.ready(1, 2)
        self.assertTrue(support.alive(pids[0]))

    def test_stopped_server_with_a_full_pipe_does_not_stop_its_template(self) -> None:
        pids = self.generation(1, 2)
        os.kill(pids[0], signal.SIGSTOP)
        for _ in range(64):
            self.processes.tell(1, 1, {"do": ["ignored"], "padding": "x" * 32768})
        self.order(1, 2, "become_stubborn")

    def test_stopped_nursery_is_killed_at_close(self) -> None:
        pids = self.generation(1, 1)
        os.kill(self.processes._pid, signal.SIGSTOP)
        before, node.JOIN_S = node.JOIN_S, 0.1
        try:
            self.processes.close()
        finally:
            node.JOIN_S = before
        self.gone(pids[0])


class SpawnedTest(BothMethods, ProcessesCase):
    """Each server a program of its own."""

    method = "spawn"

    def test_setup_is_refused_with_a_reason(self) -> None:
        self.processes.new_generation(1, self.directory)
        self.processes.setup(1, {"data": 1})
        self.assertIn("node_setup needs", self.events.wait(event="setup", generation=1)["error"])

    def test_modules_from_a_zip_file(self) -> None:
        archive = str(self.temp_dir() / "all.zip")
        with zipfile.ZipFile(archive, "w") as file:
            for name in ("pycoslite", "dispycos_lite", "dispycosnode_lite"):
                text = (support.ROOT / (name + ".py")).read_text()
                file.writestr("app/%s.py" % name, text + (ZIPPED_SERVER if "node" in name else ""))
            file.writestr("app/__init__.py", "")
            file.writestr("app/__main__.py", ZIPPED)
        done = subprocess.run([sys.executable, archive + "/app", self.directory], stdout=subprocess.PIPE,
                              env=dict(os.environ, PYTHONPATH=archive), cwd=self.directory, timeout=WAIT_S)
        self.assertEqual(done.stdout.split(), [b"app.dispycosnode_lite", b"3"])

    def test_python_that_cannot_be_started_is_reported(self) -> None:
        self.processes.new_generation(1, os.path.join(self.directory, "missing"))
        self.processes.start_server(1, 1, {})
        died = self.events.wait(event="died", generation=1, n=1)
        self.assertEqual((died["pid"], died["returncode"]), (None, None))
        self.assertIn("could not be started", died["reason"])


class NodeDirectoryTest(support.TestCase):
    """Directories, their locks, and what is left in them."""

    def setUp(self) -> None:
        self.root = self.temp_dir() / "root"

    def open(self, label: str = "9706") -> node.NodeDirectory:
        directory = node.NodeDirectory(str(self.root), label)
        directory.open()
        self.addCleanup(directory.close)
        return directory

    def names(self) -> List[str]:
        return sorted(os.listdir(self.root))

    def test_open_makes_private_directories_and_close_removes_them(self) -> None:
        directory = self.open()
        client = directory.client(1)
        self.assertEqual(client, str(self.root / "node-9706" / "client-1"))
        self.assertEqual(directory.client(1), client)
        for path in (self.root, directory.path, client):
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o700)
        directory.close()
        directory.close()
        self.assertEqual(self.names(), [])

    def test_default_root_is_the_users_own(self) -> None:
        root = node.default_root()
        self.assertEqual(os.path.dirname(root), os.environ["TMPDIR"])
        self.assertTrue(root.endswith("pycoslite-%d" % os.getuid()), root)

    def test_two_nodes_share_no_directory(self) -> None:
        first, second = self.open("9706"), self.open("9710")
        self.assertNotEqual(first.client(1), second.client(1))
        sentence = r"another node \(process %d\) works in .*9706" % os.getpid()
        with self.assertRaisesRegex(pycoslite.MisuseError, sentence):
            node.NodeDirectory(str(self.root), "9706").open()
        self.assertTrue(os.path.isdir(first.client(1)))

    def test_directory_open_to_others_is_refused(self) -> None:
        for mode, explicit, refused in ((0o777, True, True), (0o755, True, False), (0o770, True, True),
                                        (0o755, False, True), (0o700, False, False)):
            with self.subTest(mode=oct(mode), explicit=explicit):
                path = self.temp_dir()
                path.chmod(mode)
                if refused:
                    with self.assertRaisesRegex(pycoslite.MisuseError, r"open to other users \(mode %o\)" % mode):
                        node.private_directory(str(path), 0o022 if explicit else 0o077)
                else:
                    node.private_directory(str(path), 0o022 if explicit else 0o077)

    @support.skip_unless_root
    def test_directory_of_somebody_else_is_refused(self) -> None:
        self.root.mkdir(mode=0o700)
        os.chown(self.root, 12345, 12345)
        with self.assertRaisesRegex(pycoslite.MisuseError, "belongs to user id 12345.*--dest_path"):
            self.open()

    def test_link_in_place_of_the_root_is_refused(self) -> None:
        self.root.symlink_to(self.temp_dir())
        with self.assertRaisesRegex(pycoslite.MisuseError, "is not a directory"):
            self.open()

    def test_leftovers_of_dead_nodes_go_and_living_ones_stay(self) -> None:
        living = self.open("1")
        kept = living.client(1)
        for name in ("node-2/client-7/dispycos_server_1", "node-3", "dead-1-1/x", "not ours"):
            (self.root / name).mkdir(parents=True)
        (self.root / "node-2.lock").write_text("process 1")
        self.open("3")
        self.wait_until(lambda: self.names() == ["node-1", "node-1.lock", "node-3", "node-3.lock", "not ours"],
                        what="leftovers gone")
        self.assertTrue(os.path.isdir(kept))

    def test_lock_ends_with_its_process(self) -> None:
        code = ("import dispycosnode_lite as n, sys; n.NodeDirectory(sys.argv[1], '5').open(); print('held'); "
                "sys.stdin.read()")
        with support.running([sys.executable, "-c", code, self.root], "held") as holder:
            with self.assertRaisesRegex(pycoslite.MisuseError, r"process %d\b" % holder.pid):
                self.open("5")
            holder.signal(signal.SIGKILL)
            holder.wait()
            self.open("5")

    def test_remove_does_not_follow_links_and_overcomes_permissions(self) -> None:
        outside = self.temp_dir()
        (outside / "precious").write_text("x")
        (outside / "precious").chmod(0o400)
        directory = self.open()
        for generation in (1, 2):
            client = Path(directory.client(generation))
            (client / "link").symlink_to(outside)
            (client / "file link").symlink_to(outside / "precious")
            (client / "locked" / "deeper").mkdir(parents=True)
            (client / "locked" / "deeper" / "file").write_text("y")
            (client / "locked" / "deeper").chmod(0)
            (client / "locked").chmod(0o500)
            if generation == 1:
                directory.remove(1)
                self.assertFalse(client.exists(), "its name is not free at once")
        directory.close()
        self.wait_until(lambda: self.names() == [], what="everything gone")
        self.assertEqual((outside / "precious").read_text(), "x")
        self.assertEqual((outside / "precious").stat().st_mode & 0o777, 0o400)

    def test_client_directory_that_was_replaced_by_a_link_is_removed_as_a_link(self) -> None:
        outside = self.temp_dir()
        (outside / "precious").write_text("x")
        directory = self.open()
        os.rmdir(directory.client(1))
        os.symlink(outside, os.path.join(directory.path, "client-1"))
        directory.remove(1)
        self.wait_until(lambda: self.names() == ["node-9706", "node-9706.lock"], what="the link gone")
        self.assertEqual(os.listdir(outside), ["precious"])

    def test_what_cannot_be_deleted_is_logged(self) -> None:
        path, original = self.temp_dir(), node.shutil.rmtree

        def fail(path: str, ignore_errors: bool = False) -> None:
            raise OSError("the disk is on fire")
        node.shutil.rmtree = fail
        self.addCleanup(setattr, node.shutil, "rmtree", original)
        with self.expect_log("could not delete all of .*the disk is on fire"):
            node.remove_tree(str(path))


class DeathReasonTest(support.TestCase):
    """death_reason."""

    def test_words(self) -> None:
        self.assertEqual(node.death_reason(0), "exit status 0")
        self.assertEqual(node.death_reason(3), "exit status 3")
        self.assertEqual(node.death_reason(-9), "killed by signal 9 (SIGKILL)")
        self.assertEqual(node.death_reason(-40), "killed by signal 40")


if __name__ == "__main__":
    unittest.main()
