"""The examples of two programs that find each other: each pair runs, and prints what its heads say."""
from __future__ import annotations

import contextlib
import sys
import unittest
from typing import Any, Iterator

from tests.support import ROOT, TestCase, free_port, needs_threads_after_main, running


class PairsTest(TestCase):
    """One test for each pair."""

    @contextlib.contextmanager
    def pair(self, name: str, ready: str, server_args: Any = (), client_args: Any = ()) -> Iterator[Any]:
        """The server of that name, and what its client has printed."""
        env = {"PYCOSLITE_NET_PORT": str(free_port())}          # so that they find each other and nobody else
        python = [sys.executable, "-X", "dev", "-W", "error"]
        program = str(ROOT / "examples" / name)
        with running(python + [program + "_server.py", *server_args], ready=ready, env=env) as server:
            with running(python + [program + "_client.py", *client_args], env=env) as client:
                self.assertEqual(client.wait(), 0, client.output)
                yield server, client.output
            self.assertNotIn("Traceback", server.output)

    def test_remote_task_server_and_remote_task_client(self):
        with self.pair("remote_task", "serving") as (server, text):
            self.assertRegex(text, r"^found squares at \S+:\d+\n")
            self.assertEqual(text.split("\n")[1:], [
                "1 squared is 1", "2 squared is 4", "3 squared is 9", "delivered: 1", ""])
            server.wait_for("^4 from client$")

    def test_remote_channel_server_and_remote_channel_client(self):
        with self.pair("remote_channel", "is open") as (server, text):
            self.assertRegex(text, r"^found news@\S+:\d+\ndelivered to 2\nheard: hello\n$")
            server.wait_for("^heard: hello$")

    def test_rps_server_and_rps_client(self):
        with self.pair("rps", "serving word_count") as (server, text):
            self.assertEqual(text, "1 words\n3 words\n5 words\nfailed: ValueError\n"
                                   "4 calls have ended, 1 of them badly\n")
            server.wait_for(r"^word_count/\d+: 'and a two'$")

    def test_channel_chat_server_and_channel_chat_client(self):
        env = {"PYCOSLITE_NET_PORT": str(free_port())}
        python, program = [sys.executable, "-X", "dev", "-W", "error"], str(ROOT / "examples" / "channel_chat")
        with running(python + [program + "_server.py"], ready="chat is open", env=env) as server, \
                running(python + [program + "_client.py", "ann"], ready="welcome", env=env) as ann, \
                running(python + [program + "_client.py", "bob"], ready="welcome", env=env) as bob:
            bob.write("hello there\nBuy NOW!\nANYBODY?\n")
            for process in ann, bob:
                process.wait_for("^bob: hello there\nbob: Anybody\\?$")
            server.wait_for("^dropped: Buy NOW!$")
            for process in ann, bob:
                process.popen.stdin.close()
                self.assertEqual(process.wait(), 0, process.output)
                self.assertEqual(process.output, "welcome\nbob: hello there\nbob: Anybody?\n")

    @needs_threads_after_main
    def test_file_transfer_server_and_file_transfer_client(self):
        folder = self.temp_dir()
        with self.pair("file_transfer", "files go to", [folder / "in"], [ROOT / "README.md"]) as (server, text):
            self.assertRegex(text, r"^(\d+) of \1 KiB\nsent: 0\nagain: 1\ndeleted: 0\n$")
            server.wait_for('^"file client" @ .* is online$')
            server.wait_for('^"file client" @ .* is offline$')
        self.assertEqual(list((folder / "in").iterdir()), [])


if __name__ == "__main__":
    unittest.main()
