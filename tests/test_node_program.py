"""The node program, as people start it, and clusters that name it."""
from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
import unittest
import zipfile
from pathlib import Path
from typing import Any, Dict, Iterator, Optional

import dispycos_lite
import dispycosnode_lite
import pycoslite
from tests import cluster_jobs as jobs
from tests import support

WAIT_S = support.PROCESS_S
READY = r"listening at"
QUICK = {"PYCOSLITE_HEARTBEAT_S": "0.3"}

USE = "with dispycos_lite.Cluster(cpus=1, cluster='t%d') as c: print(c.submit(abs, -7).result())" % os.getpid()
CLIENT = """
import os, sys, time
sys.path.insert(0, %r)
import dispycos_lite

def nap(seconds):
    print("job", os.getpid(), flush=True)
    time.sleep(seconds)
    return sys.version_info[:2]

class Point:
    def __init__(self, x):
        self.x = x

    def double(self):
        return Point(2 * self.x)

if __name__ == "__main__":
    print("client", os.getpid(), flush=True)
    with dispycos_lite.Cluster(sys.argv[1].split(), cluster=%r) as cluster:
        print("open", flush=True)
        if len(sys.argv) > 2:
            print(cluster.submit(nap, float(sys.argv[2])).result())
        print([p.x for p in cluster.map(Point.double, [Point(1), Point(2)])], flush=True)
"""


class NodeCase(support.TestCase):
    """Starts node programs and clusters that use them."""

    @contextlib.contextmanager
    def node(self, *options: Any, port: int = 0, python: str = sys.executable, daemon: bool = True,
             program: Any = ("dispycosnode_lite.py",), env: Optional[Dict[str, Optional[str]]] = None,
             cwd: Any = support.ROOT) -> Iterator[Any]:
        """A node program; `location` is what clients name it by."""
        port = port or support.free_port()
        command = [python, *program, "--tcp_ports", port, "--udp_port", support.free_port(), "--cpus", "1", *options]
        with support.running(command + (["--daemon"] if daemon else []), ready=READY, env=env, cwd=cwd) as process:
            process.port, process.location = port, "127.0.0.1:%d" % port
            yield process

    @contextlib.contextmanager
    def quick_give_up(self) -> Iterator[None]:
        """A node that is lost is not waited for as long as usual."""
        before, pycoslite.settings.give_up_s = pycoslite.settings.give_up_s, 1.0
        try:
            yield
        finally:
            pycoslite.settings.give_up_s = before

    def client_program(self, cluster: str = "pycoslite") -> str:
        path = self.temp_dir() / "client.py"
        path.write_text(CLIENT % (str(support.ROOT), cluster))
        return str(path)


class ServesTest(NodeCase):
    """What a named node does for clusters."""

    def test_default_port_and_reuse(self) -> None:
        self.assertEqual(dispycos_lite.NODE_PORT, pycoslite.settings.net_port + 1)
        with self.node() as node:
            pids = []
            for _ in range(3):
                with dispycos_lite.Cluster(nodes=[node.location]) as cluster:
                    name, pid = cluster.submit(jobs.where).result(WAIT_S)
                    pids.append(pid)
                    self.assertRegex(name, "/1$")
            self.assertEqual(len(set(pids)), 3)             # no process serves two clients
            self.wait_until(lambda: not any(map(support.alive, pids)))
            node.signal(signal.SIGTERM)
            self.assertEqual(node.wait(), 0)
            self.assertNotIn("Traceback", node.output)

    def test_second_client_waits_and_is_told(self) -> None:
        with self.node() as node, support.running(
                [sys.executable, self.client_program(), node.location, "1"], ready="open") as holder:
            with self.expect_log(r"serves another client \(client\.py, process %d.*number 1 in the queue" % holder.pid):
                with self.expect_log("is free now"):
                    with dispycos_lite.Cluster(nodes=[node.location]) as cluster:
                        future = cluster.submit(jobs.double, 2)
                        self.assertRegex(future.why(), "no server is known yet")
                        self.assertEqual(future.result(WAIT_S), 4)
            self.assertEqual(holder.wait(), 0)

    def test_several_nodes_and_one_that_is_not_there(self) -> None:
        folder = self.temp_dir()
        with self.node("--name", "one") as one, self.node("--name", "two") as two:
            nowhere = "127.0.0.1:%d" % support.free_port()
            with self.expect_log("without a node: cannot reach %s: connection refused" % nowhere):
                cluster = dispycos_lite.Cluster(nodes=[one.location, two.location, nowhere])
                with cluster:
                    mark, go = folder / "mark", folder / "go"
                    held = [cluster.submit(jobs.hold, str(mark), str(go)) for _ in range(2)]
                    self.wait_until(lambda: mark.exists() and len(mark.read_text().split()) == 2)
                    go.touch()
                    self.assertEqual(len({future.result(WAIT_S) for future in held}), 2)

    def test_unreachable_and_refused_nodes_are_named(self) -> None:
        nowhere = "127.0.0.1:%d" % support.free_port()
        with self.assertRaisesRegex(
                pycoslite.PeerLost, "cannot reach %s: connection refused.*start dispycosnode_lite.py" % nowhere):
            dispycos_lite.Cluster(nodes=[nowhere])
        secret = self.temp_dir() / "secret"
        secret.write_text("0" * 64)
        secret.chmod(0o600)
        with self.node("--secret-file", secret) as node:
            with self.assertRaisesRegex(pycoslite.AuthenticationError, node.location + ".*secret"):
                dispycos_lite.Cluster(nodes=[node.location])
            with dispycos_lite.Cluster(nodes=[node.location], secret_file=str(secret)) as cluster:
                self.assertEqual(cluster.submit(jobs.double, 2).result(WAIT_S), 4)
                port = re.search(r"\d+$", cluster.submit(jobs.why_here).result(WAIT_S)).group()
                with self.assertRaisesRegex(pycoslite.MisuseError, "is no node program but a server"):
                    dispycos_lite.Cluster(nodes=["127.0.0.1:" + port])
        self.assertIsNone(pycoslite.running_network())


class EndsTest(NodeCase):
    """All ways a node or its client can end."""

    def stopped(self, stop: Any, reason: str, **options: Any) -> None:
        """`stop(node)` ends it while it serves: nothing is left, the client knows why."""
        mark = self.temp_dir() / "mark"
        with self.node(**options) as node, self.expect_log("node .* is lost: " + reason):
            with self.expect_log("no node is left for now"), self.quick_give_up():
                with dispycos_lite.Cluster(nodes=[node.location]) as cluster:
                    future = cluster.submit(jobs.spin, str(mark))
                    pid = int(self.wait_until(lambda: mark.exists() and mark.read_text()))
                    stop(node)
                    error = future.exception(WAIT_S)
                    self.assertIsInstance(error, dispycos_lite.NodeLost)
                    self.assertRegex(str(error), reason)
                    node.wait()
                    self.assertFalse(support.alive(pid))
            self.assertNotIn("Traceback", node.output)

    def test_interrupt(self) -> None:
        self.stopped(lambda node: node.signal(signal.SIGINT), r"it was stopped \(SIGINT\)")

    def test_sigterm(self) -> None:
        self.stopped(lambda node: node.signal(signal.SIGTERM), r"it was stopped \(SIGTERM\)")

    def test_terminate_command(self) -> None:
        self.stopped(lambda node: node.write("terminate\n"), "it was stopped at its console", daemon=False)

    def test_kill(self) -> None:
        self.stopped(lambda node: node.signal(signal.SIGKILL), "its process has ended")

    def test_node_comes_back_during_a_run(self) -> None:
        mark = self.temp_dir() / "mark"
        port = support.free_port()
        with contextlib.ExitStack() as stack:
            node = stack.enter_context(self.node(port=port))
            stack.enter_context(self.expect_log("is lost: its process has ended"))
            stack.enter_context(self.expect_log("no node is left for now"))
            cluster = stack.enter_context(dispycos_lite.Cluster(nodes=[node.location]))
            lost, kept = cluster.submit(jobs.nap, 60, str(mark)), cluster.submit(jobs.double, 3)
            self.wait_until(mark.exists)
            node.signal(signal.SIGKILL)
            self.assertIsInstance(lost.exception(WAIT_S), dispycos_lite.NodeLost)
            stack.enter_context(self.node(port=port))
            self.assertEqual(kept.result(WAIT_S), 6)
            cluster.shutdown()

    def test_killed_client_leaves_nothing(self) -> None:
        with self.node() as node:
            for name in node.location, "":                  # "": the cores of this machine
                program = self.client_program("pycoslite" if name else "test-%d" % os.getpid())
                with support.running([sys.executable, program, name, "60"], ready="open", env=QUICK) as client:
                    pid = int((node if name else client).wait_for(r"job (\d+)").group(1))
                    client.signal(signal.SIGKILL)
                    self.wait_until(lambda: not support.alive(pid))
            with dispycos_lite.Cluster(nodes=[node.location]) as cluster:       # it is free again
                self.assertEqual(cluster.submit(jobs.double, 2).result(WAIT_S), 4)


class ConsoleTest(NodeCase):
    """Commands and options."""

    def test_commands(self) -> None:
        with self.node(daemon=False) as node:
            node.write("status\n")
            node.wait_for("served 0 clients; now free")
            node.write("what?\n")
            node.wait_for("commands: status - ")
            with self.expect_log("its owner took it back"), self.expect_log("no node is left: its owner"):
                with dispycos_lite.Cluster(nodes=[node.location]) as cluster:
                    self.assertEqual(cluster.submit(jobs.double, 2).result(WAIT_S), 4)
                    waiting = cluster.submit(jobs.nap, 60)
                    node.write("\n")
                    node.wait_for("now test|now python|now __main__|process %d" % os.getpid())
                    node.write("close\n")
                    self.assertIsInstance(waiting.exception(WAIT_S), dispycos_lite.NodeLost)
                    self.assertIsInstance(cluster.submit(jobs.double, 2).exception(WAIT_S), dispycos_lite.NodeLost)
            with dispycos_lite.Cluster(nodes=[node.location]) as cluster:
                self.assertEqual(cluster.submit(jobs.double, 2).result(WAIT_S), 4)
                node.write("quit\n")
            self.assertEqual(node.wait(), 0)

    def test_serve_one(self) -> None:
        with self.node("--serve", "1") as node:
            with dispycos_lite.Cluster(nodes=[node.location]) as cluster:
                self.assertEqual(cluster.submit(jobs.double, 2).result(WAIT_S), 4)
            self.assertEqual(node.wait(), 0)

    def test_end_of_input_changes_nothing(self) -> None:
        with self.node(daemon=False) as node:
            node.popen.stdin.close()
            with dispycos_lite.Cluster(nodes=[node.location]) as cluster:
                self.assertEqual(cluster.submit(jobs.double, 2).result(WAIT_S), 4)

    def test_peer_option_reaches_a_client_and_second_node_finds_its_ports(self) -> None:
        with self.node() as first, self.node("--peer", first.location) as second:
            with dispycos_lite.Cluster(nodes=[first.location, second.location]) as cluster:
                self.assertEqual(cluster.submit(jobs.double, 2).result(WAIT_S), 4)

    def test_taken_port_is_named(self) -> None:
        with self.node() as node:
            command = [sys.executable, "dispycosnode_lite.py", "--tcp_ports", node.port, "--daemon"]
            with support.running(command) as second:
                self.assertEqual(second.wait(), 1)
                self.assertRegex(second.output, r"cannot listen at port %d .*in use" % node.port)
                self.assertNotIn("Traceback", second.output)


HOURS_PROGRAM = """
import sys, time
sys.path.insert(0, %r)
import dispycosnode_lite as node

def localtime(*when):
    with open(sys.argv[1]) as file:
        hours, minutes = map(int, file.read().split(":"))
    return time.struct_time((2026, 1, 1, hours, minutes, 0, 0, 0, 0))

time.localtime, node._HOURS_S = localtime, 0.05
sys.exit(node.main(sys.argv[2:]))
""" % str(support.ROOT)


class ServiceTest(NodeCase):
    """The service window, and what was left by a node before."""

    def test_hours(self) -> None:
        clock, folder = self.temp_dir() / "clock", self.temp_dir()

        def set_clock(text: str) -> None:
            (folder / "next").write_text(text)
            os.replace(str(folder / "next"), str(clock))
        set_clock("16:59")
        refused = "this node serves from 17:00 to 07:00; what runs then may go on until 08:00"
        with self.node("--service_start", "17:00", "--service_stop", "07:00", "--service_end", "08:00",
                       program=("-c", HOURS_PROGRAM, str(clock))) as node:
            node.wait_for("it is closed now")
            with self.assertRaisesRegex(pycoslite.PycosError, refused):
                dispycos_lite.Cluster(nodes=[node.location])
            set_clock("17:00")
            node.wait_for("it is open now")
            mark, go = folder / "mark", folder / "go"
            with self.quick_give_up(), dispycos_lite.Cluster(nodes=[node.location]) as cluster:
                running = cluster.submit(jobs.hold, str(mark), str(go))
                self.wait_until(lambda: mark.exists() and mark.read_text())
                with self.expect_log("gets no more jobs: " + refused):
                    set_clock("07:30")
                    node.wait_for("it is stopping now")
                with self.expect_log("going on without|no node is left for now|cannot be used for now"):
                    go.touch()
                    self.assertIsNotNone(running.result(WAIT_S))
            set_clock("18:00")
            node.wait_for("it is open now", start=node.output.rindex("stopping"))
            with self.quick_give_up(), self.expect_log("no node is left for now"):
                with self.expect_log("is lost: " + refused), dispycos_lite.Cluster(nodes=[node.location]) as cluster:
                    endless = cluster.submit(jobs.spin, str(folder / "spins"))
                    self.wait_until(lambda: (folder / "spins").exists())
                    set_clock("08:00")
                    self.assertIsInstance(endless.exception(WAIT_S), dispycos_lite.NodeLost)

    @unittest.skipUnless(hasattr(os, "fork"), "processes are not told by signals on this system")
    def test_clean_ends_the_node_before(self) -> None:
        folder = self.temp_dir()
        with self.node("--dest_path", folder) as first:
            with support.running([sys.executable, "dispycosnode_lite.py", "--tcp_ports", first.port, "--dest_path",
                                  folder, "--udp_port", support.free_port(), "--cpus", "1", "--daemon"]) as second:
                self.assertEqual(second.wait(), 1)
            with self.node("--dest_path", folder, "--clean", port=first.port) as third:
                self.assertEqual(first.wait(), 0)
                self.assertIn("process %d, is ended (SIGTERM)" % first.pid, third.output)
                with dispycos_lite.Cluster(nodes=[third.location]) as cluster:
                    self.assertEqual(cluster.submit(jobs.double, 2).result(WAIT_S), 4)
                third.signal(signal.SIGKILL)
                third.wait()
            with self.node("--dest_path", folder, "--clean", port=first.port) as fourth:
                self.assertNotIn("is ended", fourth.output)         # nothing was left

    @unittest.skipUnless(hasattr(os, "fork"), "processes are not told by signals on this system")
    def test_clean_ends_nothing_but_nodes(self) -> None:
        folder, port = self.temp_dir(), support.free_port()
        lock = dispycosnode_lite.FileLock(str(folder / ("node-%d.lock" % port)))
        self.assertTrue(lock.take())
        self.addCleanup(lock.give_back)
        for text in ("process %d" % os.getpid(), "process 1", "process -1", "what?"):
            lock.note(text)
            with support.running([sys.executable, "dispycosnode_lite.py", "--tcp_ports", port, "--dest_path", folder,
                                  "--clean", "--cpus", "1", "--daemon"]) as process:
                self.assertEqual(process.wait(), 1)
                self.assertIn("end it by hand", process.output)


class InstallTest(NodeCase):
    """Ways to install and start it, and Pythons."""

    def use(self, node: Any, **client: Any) -> None:
        with dispycos_lite.Cluster(nodes=[node.location]) as cluster:
            self.assertEqual(cluster.submit(jobs.double, 2).result(WAIT_S), 4)
            self.assertEqual(list(cluster.map(lambda n: n + 1, range(5))), [1, 2, 3, 4, 5])
            self.assertEqual(cluster.submit(jobs.steps, 4).result(WAIT_S), 6)
            with self.expect_log(r"killed by signal 9|exit status"):
                self.assertIsInstance(cluster.submit(jobs.kill_itself).exception(WAIT_S), dispycos_lite.WorkerDied)
            self.assertEqual(cluster.submit(jobs.awaits, 2).result(WAIT_S), 3)

    def copy_modules(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        for name in support.MODULES:
            if (support.ROOT / (name + ".py")).exists():
                shutil.copy(support.ROOT / (name + ".py"), folder)

    def test_spawn(self) -> None:
        with self.node("--start_method", "spawn") as node:
            self.use(node)
        with self.node("--start_method", "spawn") as node:
            node.signal(signal.SIGTERM)
            self.assertEqual(node.wait(), 0)
            self.assertNotIn("Traceback", node.output)

    def test_as_a_module(self) -> None:
        with self.node(program=("-m", "dispycosnode_lite")) as node:
            self.use(node)

    def test_vendored(self) -> None:
        folder = self.temp_dir()
        self.copy_modules(folder / "app" / "_vendor")
        for package in (folder / "app", folder / "app" / "_vendor"):
            (package / "__init__.py").touch()
        for method in ("fork", "spawn"):
            program = ("-m", "app._vendor.dispycosnode_lite")
            with self.node("--start_method", method, program=program, cwd=folder) as node:
                self.use(node)
        code = ("from app._vendor import dispycos_lite\n"
                + USE)
        with support.running([sys.executable, "-c", code], cwd=folder) as client:
            self.assertEqual(client.wait(), 0)
            self.assertIn("7", client.output)

    def test_zip(self) -> None:
        folder = self.temp_dir()
        self.copy_modules(folder / "m")
        with zipfile.ZipFile(folder / "all.zip", "w") as archive:
            for path in (folder / "m").iterdir():
                archive.write(path, path.name)
        code = ("import sys; sys.path.insert(0, 'all.zip'); import dispycos_lite\n"
                + USE)
        with support.running([sys.executable, "-c", code], cwd=folder) as client:
            self.assertEqual(client.wait(), 0)
            self.assertIn("7", client.output)

    def test_mixed_versions(self) -> None:
        others = support.interpreters()
        if not others:
            self.skipTest("there is no other Python here")
        for other in {others[0], others[-1]}:
            with self.subTest(version=other.version):
                with self.node(python=other.path) as node:
                    self.use(node)
                with self.node() as node, support.running(
                        [other.path, self.client_program(), node.location, "0"]) as client:
                    self.assertEqual(client.wait(), 0)
                    self.assertIn("(%d, %d)" % sys.version_info[:2], client.output)
                    self.assertIn("[2, 4]", client.output)


class HomeTest(NodeCase):
    """Machines on which little is set up."""

    def test_home_that_cannot_be_written(self) -> None:
        folder = self.temp_dir()
        (folder / "file").touch()
        code = ("import dispycos_lite\n"
                + USE)
        with support.running([sys.executable, "-c", code], env={"HOME": str(folder / "file")}) as client:
            self.assertEqual(client.wait(), 0)
            self.assertIn("7", client.output)
            self.assertRegex(client.output, r"only this machine is used: cannot make the secret file .*set HOME")
            self.assertRegex(client.output, r"using 1 cores of this machine")
            self.assertEqual(client.output.count("\n"), 3, client.output)


if __name__ == "__main__":
    unittest.main()
