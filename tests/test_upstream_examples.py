"""Example programs of pycos run unmodified through ``python3 -m pycoslite run``, each with the proof of what it did.

They are not part of this repository: PYCOSLITE_UPSTREAM_EXAMPLES names the directory of a pycos release that has them.
"""
from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import signal
import sys
import unittest
import urllib.request
from pathlib import Path
from typing import Any, Iterator, List, Tuple

from tests.support import ROOT, Process, TestCase, free_port, running

EXAMPLES = os.environ.get("PYCOSLITE_UPSTREAM_EXAMPLES", "")
FIXED_PORT = 8010                       # written in sock_server.py, sock_client.py and webserver.py
QUIT = "quit\n"


@unittest.skipUnless(EXAMPLES, "PYCOSLITE_UPSTREAM_EXAMPLES does not name the directory of the example programs")
class ExampleTest(TestCase):
    """What they share: starting an example, alone or several that find each other."""

    @classmethod
    def setUpClass(cls):
        if not (Path(EXAMPLES) / "tasks.py").exists():
            raise unittest.SkipTest("there is no tasks.py in %s" % EXAMPLES)
        cls.port = free_port()          # of the network; one for all, so that they find each other

    def example(self, name: str, *args: Any, ready: Any = None) -> contextlib.AbstractContextManager:
        """A context manager that runs it, in the directory of the examples."""
        command = [sys.executable, "-m", "pycoslite", "run", name + ".py", *args]
        return running(command, ready=ready, cwd=EXAMPLES,
                       env={"PYTHONPATH": str(ROOT), "PYCOSLITE_NET_PORT": self.port, "PYCOSLITE_DUMP_SIGNAL": "1"})

    def finished(self, process: Process) -> str:
        """Wait for its end, and give its output, which must have no traceback in it."""
        self.assertEqual(process.wait(), 0, process.output)
        self.assertNotIn("Traceback", process.output)
        return process.output

    def output(self, name: str, *args: Any) -> str:
        """What an example that needs nobody prints."""
        with self.example(name, *args) as process:
            return self.finished(process)

    def quit(self, *processes: Process) -> None:
        """End what ends when it reads that."""
        for process in processes:
            process.write(QUIT)
        for process in processes:
            self.finished(process)

    def text_file(self, lines: List[str]) -> Tuple[Path, str]:
        """A file of those lines, and its SHA-1."""
        path = self.temp_dir() / "input.txt"
        path.write_text("".join(line + "\n" for line in lines))
        return path, hashlib.sha1(path.read_bytes()).hexdigest()


class LocalTest(ExampleTest):
    """Those of one process."""

    def test_tasks(self):
        lines = self.output("tasks").splitlines()
        self.assertEqual((len(lines), sum("terminating" in line for line in lines)), (20, 10))
        when = [float(line.split(":")[0]) for line in lines]
        self.assertLess(when[-1] - when[0], 10 * 0.5)       # one after the other they would sleep for longer

    def test_channel(self):
        text = self.output("channel")
        sent = [float(number) for number in re.findall(r"sent (\S+)", text)]
        self.assertEqual(len(sent), 4)
        self.assertAlmostEqual(float(re.search(r"sum: (\S+)", text).group(1)), sum(sent), places=4)
        self.assertAlmostEqual(float(re.search(r"prod: (\S+)", text).group(1)) / math.prod(sent), 1, places=4)

    def test_client_server(self):
        numbers = re.findall(r"Received msg_id (\d+)", self.output("client_server"))
        self.assertEqual([int(number) for number in numbers], list(range(1, 31)))

    def test_udp(self):
        self.assertEqual(len(re.findall("^Received", self.output("udp"), re.MULTILINE)), 50)

    @unittest.skipIf(sys.version_info >= (3, 13), "the example reads what exec() defined from locals(), see PEP 667")
    def test_hotswap(self):
        with self.example("hotswap", ready="received: 1$") as process:
            process.write("server\n")
            ident = process.wait_for(r"\* server_proc2/(\d+) received: \d+,  (?:log|sqrt)=").group(1)
            self.assertIn("server_proc/%s received: 1" % ident, process.output)
            process.write("client\n")
            process.wait_for(r"\* client_proc2/\d+: sending 44")
            process.wait_for(r"received: 44,")
            self.quit(process)


class StreamTest(ExampleTest):
    """Sockets, pipes and files."""

    def test_sock_server_and_client(self):
        with self.example("sock_server", ready="Enter") as server:
            self.assertEqual(len(re.findall("connected", self.output("sock_client"))), 10)
            self.wait_until(lambda: server.output.count("recieved: ") == 10)
            self.quit(server)
            self.assertIn("Received 10 messages", server.output)

    def test_webserver(self):
        with self.example("webserver") as server:
            def page() -> str:
                with contextlib.suppress(OSError):
                    with urllib.request.urlopen("http://127.0.0.1:%d/" % FIXED_PORT, timeout=60) as answer:
                        return "%d %s" % (answer.status, answer.read().decode())
                return ""
            self.assertEqual(self.wait_until(page), "200 Pong!")
            self.assertEqual({page() for _ in range(100)}, {"200 Pong!"})
            self.quit(server)

    def chat(self, name: str) -> None:
        port = free_port()
        with self.example(name, "127.0.0.1", port, ready="server at") as server:
            with self.example("chat_client", "127.0.0.1", port) as one, \
                    self.example("chat_client", "127.0.0.1", port) as two:
                def heard() -> Any:
                    one.write("hello\n")    # until the other one is connected, too
                    return re.search(r"says: .*hello", two.output)
                self.wait_until(heard)
                two.write("good day\n")
                one.wait_for("says: .*good day")
                self.assertNotIn("good day", two.output)
                self.quit(one, two)
            self.quit(server)

    def test_chat_server(self):
        self.chat("chat_server")

    def test_chat_server2(self):
        self.chat("chat_server2")

    def test_chat_sock_server_and_client(self):
        port = free_port()
        with self.example("chat_sock_server", "127.0.0.1", port, ready="server at") as server:
            with self.example("chat_sock_client", "127.0.0.1", port, ready=r"id: \d+") as one:
                with self.example("chat_sock_client", "127.0.0.1", port, ready=r"id: \d+") as two:
                    one.wait_for("joined")
                    one.write("hello\n")
                    two.wait_for("says: hello")
                    self.quit(two)
                one.wait_for("left")
                self.quit(one)
            server.signal(signal.SIGINT)
            self.finished(server)

    @unittest.skipUnless(shutil.which("sha1sum"), "there is no sha1sum here")
    def test_pipe_csum(self):
        path, digest = self.text_file(["line %d" % number for number in range(20_000)])
        self.assertEqual(self.output("pipe_csum", path).count(digest), 2)

    @unittest.skipUnless(shutil.which("grep") and shutil.which("wc"), "there is no grep or wc here")
    def test_pipe_grep(self):
        path, _ = self.text_file(["an Error", "nothing", "ERROR and error", "terror"] * 100)
        self.assertEqual(self.output("pipe_grep", path).split()[:2], ["300", "600"])

    def test_socket_afile(self):
        path, digest = self.text_file(["line %d" % number for number in range(20_000)])
        text = self.output("socket_afile", path)
        self.assertEqual(re.findall(r"(\w+) sha1 csum: %s" % digest, text), ["client", "server"])


class RemoteTest(ExampleTest):
    """Those whose processes find each other."""

    @contextlib.contextmanager
    def pair(self, server: str, client: str, *args: Any) -> Iterator[Tuple[Process, Process]]:
        with self.example(server, ready="Enter") as serving, self.example(client, *args) as asking:
            yield serving, asking

    def test_remote_task(self):
        with self.pair("remote_task_server", "remote_task_client") as (server, client):
            self.finished(client)
            self.wait_until(lambda: server.output.count("done with") == 30)
            self.assertEqual(server.output.count("processing"), 30)
            self.quit(server)

    def test_remote_task_whose_server_comes_later(self):
        with self.example("remote_task_client") as client, self.example("remote_task_server", ready="Enter") as server:
            self.finished(client)
            self.wait_until(lambda: server.output.count("done with") == 30)
            self.quit(server)

    def test_pico_service(self):
        with self.pair("pico_service_task", "pico_client_task") as (server, client):
            self.assertRegex(self.finished(client), r"result: .*, from: pico_service/\d+@")
            self.quit(server)

    def test_remote_channel(self):
        with self.pair("remote_channel_server", "remote_channel_client") as (server, client):
            text = self.finished(client)
            self.assertEqual(text.count("Delivered to: 2"), 10)
            self.assertEqual(re.findall(r'Received "(.*?)" from sender_proc', text),
                             ["message %d" % number for number in range(10)] + ["None"])
            self.wait_until(lambda: server.output.count("Received") == 11)
            self.quit(server)

    def test_chat_over_a_channel(self):
        with self.example("chat_chan_server", ready="Enter") as server:
            with self.example("chat_chan_client") as one, self.example("chat_chan_client") as two:
                def heard() -> Any:
                    one.write("hello\n")        # until both have subscribed
                    return "says: hello" in two.output
                self.wait_until(heard)
                two.write("SHOUT\ngood day\n")
                one.wait_for("says: good day")
                self.assertNotIn("SHOUT", one.output)
                self.assertNotIn("good day", two.output)
                self.quit(two)
                one.wait_for(r"left :-\(")
                self.quit(one)
            self.quit(server)

    def test_rps_pico_service(self):
        with self.pair("rps_pico_service", "rps_pico_client", 4) as (server, client):
            tasks = re.findall(r"result: .*, from: (pico_service/\d+@)", self.finished(client))
            self.assertEqual((len(tasks), len(set(tasks))), (4, 4), client.output)
            self.quit(server)

    def test_rps_monitor(self):
        with self.example("rps_monitor_server", ready="listens") as server, \
                self.example("rps_monitor_client") as client:
            self.assertEqual(client.wait(), 0)
            self.assertEqual(sorted(re.findall(r"finished with: msg:(\d)", client.output)), list("1234"))
            self.assertIn("invalid invocation: 0", client.output)
            server.write(QUIT)
            self.assertEqual(server.wait(), 0)
            self.assertIn("invalid invocation: 0", server.output)

    @contextlib.contextmanager
    def update(self, password: str) -> Iterator[Tuple[Process, Process]]:
        """rps_node_server.py, and the client that sends its script to be run, with that password."""
        with self.example("rps_node_server", ready="Enter authentication") as server:
            server.write("right\n")
            server.wait_for("quit")
            with self.example("rps_node_client", ready="Enter authentication") as client:
                client.write(password + "\n")
                yield server, client
            self.quit(server)

    def test_rps_node(self):
        with self.update("right") as (server, client):
            self.assertRegex(self.finished(client), r"script output: b'.*node_update_script.py done")
            self.assertRegex(server.output, r"(?m)^RPS \S+ running ")

    def test_rps_node_with_another_password(self):
        """The server ends its task; the example's client waits for output for ever."""
        with self.update("wrong") as (server, client):
            client.wait_for("RPS server is at")

            def refused() -> bool:
                client.signal(signal.SIGQUIT)
                server.signal(signal.SIGQUIT)
                last = server.output.rpartition("tasks in process")[2]
                return "outerr = yield task.recv()" in client.output and "task node_update_rps" not in last
            self.wait_until(refused)
            self.assertNotRegex(server.output, r"(?m)^RPS \S+ running ")      # its own line; dumps have the word, too

    def test_rps_log_watch(self):
        path, _ = self.text_file([])
        with self.example("rps_log_watch_server", path, "bad", ready="Enter") as server, \
                self.example("rps_log_watch_client", ready="Enter") as client:
            self.addCleanup(os.killpg, server.pid, signal.SIGTERM)      # it leaves its tail running
            def seen() -> Any:
                with path.open("a") as file:
                    file.write("fine\nit is bad\n")
                return re.search(r"^\d+\.\S+: it is bad", client.output, re.MULTILINE)
            self.wait_until(seen)
            self.assertNotIn("fine", client.output)
            self.quit(client)


class ClusterTest(ExampleTest):
    """Those that need a node."""

    def node(self) -> contextlib.AbstractContextManager:
        """A node that they find."""
        return running([sys.executable, ROOT / "dispycosnode_lite.py", "--cpus", 1, "--host", "127.0.0.1", "--daemon",
                        "--udp_port", self.port], ready="listening at")

    def test_dispycos_client4(self):
        """A file goes to a server's working directory, and what its job makes of it comes back."""
        with self.node():
            text = self.output("dispycos_client4", "1")
        result = Path(re.search(r"job 0 output is in (.*)", text).group(1))
        self.addCleanup(result.unlink)
        lines = (Path(EXAMPLES) / result.name.replace("result-", "")).read_text().splitlines()
        self.assertEqual(result.read_text().splitlines(), ["%d: %d" % (n, len(line)) for n, line in enumerate(lines, 1)])

    def monitored(self, text: str) -> List[Any]:
        """Nodes that the web monitor at the URL in that text knows."""
        url = re.search(r"(http://127\.0\.0\.1:8181)/#token=(\S+)", text)
        request = urllib.request.Request(url.group(1) + "/cluster_status",
                                         headers={"Authorization": "Bearer " + url.group(2)})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def test_dispycos_client1(self):
        with self.node(), self.example("dispycos_client1", "1", ready="job 0 processed by") as process:
            self.assertEqual([node["tasks_submitted"] for node in self.monitored(process.output)], [1])
            self.assertEqual(process.wait(60), 0, process.output)       # it runs on for a while, for the browser

    def test_dispycos_httpd1(self):
        with self.node(), self.example("dispycos_httpd1", ready="monitor: open") as process:
            process.write("0.1\n0.1\n")
            self.wait_until(lambda: [node["tasks_done"] for node in self.monitored(process.output)] == [2])
            process.write(QUIT)
            self.assertEqual(process.wait(60), 0, process.output)

    def test_dispycos_httpd2(self):
        with self.node(), self.example("dispycos_httpd2", ready="monitor: open") as process:
            process.write("go\n")
            process.wait_for(r"rtask compute/\d+@\S+ started")         # relayed by the monitor
            process.write(QUIT)
            process.wait_for(r"rtask compute/\d+@\S+ failed: 23")      # I/O tasks are stopped by close()
            self.assertEqual(process.wait(60), 0, process.output)


if __name__ == "__main__":
    unittest.main()
