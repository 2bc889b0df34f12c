"""The examples of sockets, files and pipes: each does and prints what its header says."""
from __future__ import annotations

import ast
import hashlib
import re
import shutil
import signal
import socket
import sys
import unittest
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.support import ROOT, TestCase, free_port, running

EXAMPLES = ROOT / "examples"
NAMES = ("echo_server", "echo_client", "chat_server", "chat_client", "web_server", "udp", "pipes", "socket_as_file")
LISTENING = r"^listening on port (\d+)$"


def command(name: str, *args: Any) -> list:
    return [sys.executable, "-X", "dev", "-W", "error", EXAMPLES / (name + ".py"), *args]


class ExampleTest(TestCase):

    def output(self, name: str, *args: Any) -> list:
        """Run an example to its end; the lines it prints."""
        with running(command(name, *args)) as process:
            self.assertEqual(process.wait(60), 0, process.output)
        return process.output.splitlines()

    def test_nobody_listens(self):
        port = free_port()
        with running(command("chat_client", port, "ann")) as client:
            self.assertEqual(client.wait(60), 0)
            self.assertRegex(client.output, r"^there is no chat at 127.0.0.1, port %d: .*refused" % port)
        with running(command("echo_client", port)) as client:
            self.assertEqual(client.wait(60), 1)
            self.assertRegex(client.output, r"^nobody echoes at 127.0.0.1, port %d: .*refused.*\n$" % port)

    def test_a_port_that_is_in_use(self):
        with socket.create_server(("127.0.0.1", 0)) as sock:
            for name in "echo_server", "web_server":
                with running(command(name, sock.getsockname()[1])) as server:
                    self.assertEqual(server.wait(60), 1)
                    self.assertRegex(server.output, r"^cannot listen at .*port.*: .*in use.*\n$")

    def interrupted(self, server: Any) -> None:
        """Ctrl-C ends a server, with nothing more to say."""
        before = server.output
        server.signal(signal.SIGINT)
        server.wait(60)
        self.assertEqual(server.output, before)

    def test_they_are_short_and_say_how_to_run_them(self):
        for name in NAMES:
            with self.subTest(name):
                text = (EXAMPLES / (name + ".py")).read_text(encoding="utf-8")
                header = ast.get_docstring(ast.parse(text))
                self.assertLess(len(text.splitlines()), 60)
                self.assertIn("python3 examples/%s.py" % name, header)
                self.assertIn("Printed:", header)

    def test_echo(self):
        with running(command("echo_server", 0), ready=LISTENING) as server:
            lines = self.output("echo_client", server.match.group(1))
            self.assertEqual(lines[-1], "all done")
            sent = sorted(int(re.match(r"(\d+) bytes came back$", line).group(1)) for line in lines[:-1])
            self.assertEqual(len(sent), 10)
            self.wait_until(lambda: server.output.count(" bytes\n") == 10)
            self.assertEqual(sorted(map(int, re.findall(r": (\d+) bytes$", server.output, re.M))), sent)
            self.interrupted(server)

    def test_chat(self):
        with running(command("chat_server", 0), ready=LISTENING) as server:
            port = server.match.group(1)
            with running(command("chat_client", port, "ann"), ready="ann joined") as ann:
                with running(command("chat_client", port, "bob"), ready="bob joined") as bob:
                    ann.wait_for("bob joined")
                    ann.write("hello\n")
                    bob.wait_for("ann: hello")
                    bob.write("h\u00e9!\n\nbye\n")
                    ann.wait_for("bob: h\u00e9!\nbob: bye$")
                    bob.popen.stdin.close()
                    self.assertEqual(bob.wait(), 0)
                    ann.wait_for("bob left")
                ann.popen.stdin.close()
                self.assertEqual(ann.wait(), 0)
            server.wait_for("ann left")
            self.interrupted(server)

    def test_web_server(self):
        def get(url: str) -> tuple:
            with urllib.request.urlopen(url, timeout=60) as reply:
                return reply.status, reply.headers["Content-Length"], reply.read()
        with running(command("web_server", 0), ready=LISTENING) as server:
            with ThreadPoolExecutor(20) as threads:
                replies = Counter(threads.map(get, ["http://127.0.0.1:%s/" % server.match.group(1)] * 200))
            self.assertEqual(replies, {(200, "5", b"Pong!"): 200})
            self.interrupted(server)

    def test_udp(self):
        lines = self.output("udp")
        heard = [re.match(r'Received "client (\d+)" from 127.0.0.1:\d+$', line).group(1) for line in lines]
        self.assertEqual(sorted(map(int, heard)), list(range(50)))

    @unittest.skipUnless(all(map(shutil.which, ("sha1sum", "grep", "wc"))), "needs sha1sum, grep and wc")
    def test_pipes(self):
        path = self.temp_dir() / "text"
        path.write_bytes(b"one yield\ntwo\nyield three\n" * 20000)
        digest = hashlib.sha1(path.read_bytes()).hexdigest()
        self.assertEqual(self.output("pipes", path), ["sha1sum, at once: " + digest, "sha1sum, by hand: " + digest,
                                                      "hashlib:          " + digest, 'lines with "yield": 40000'])

    def test_socket_as_file(self):
        path = self.temp_dir() / "text"
        path.write_bytes(b"one\ntwo\nthe last has no newline")
        digest = hashlib.sha1(path.read_bytes()).hexdigest()
        self.assertEqual(sorted(self.output("socket_as_file", path)),
                         ["%s 3 lines, sha1 %s" % (what, digest) for what in ("received", "sent")])
        own = self.output("socket_as_file")
        self.assertEqual(own[0].split(" ", 1)[1], own[1].split(" ", 1)[1])


if __name__ == "__main__":
    unittest.main()
