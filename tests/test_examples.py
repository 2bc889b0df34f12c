"""The examples: each runs without noise and prints what its head says. (The big one has a file of its own.)"""
from __future__ import annotations

import ast
import re
import subprocess
import sys
import unittest
from typing import List

from tests.support import ROOT, TestCase

FOLDER = ROOT / "examples"
LONGEST = 60                        # lines


def numbers(pattern: str, text: str) -> List[int]:
    """The numbers that a pattern with one group finds, line by line."""
    return [int(found) for found in re.findall(pattern, text, re.MULTILINE)]


class ExamplesTest(TestCase):
    """One test each, and what holds for all."""

    def run_example(self, name: str) -> str:
        done = subprocess.run([sys.executable, "-X", "dev", "-W", "error", str(FOLDER / (name + ".py"))], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=100, stdin=subprocess.DEVNULL)
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertNotIn("Traceback", done.stdout)
        return done.stdout

    def test_tasks(self):
        text = self.run_example("tasks")
        self.assertEqual(numbers(r"^task (\d+) sleeps", text), list(range(10)))
        self.assertEqual(numbers(r"^task (\d+) is done$", text), list(range(9, -1, -1)))

    def test_client_server(self):
        text = self.run_example("client_server")
        self.assertEqual(numbers(r"^request (\d+) of client", text), list(range(1, 31)))
        self.assertEqual(sorted(numbers(r"^client (\d+): 3 answers$", text)), list(range(10)))

    def test_channel(self):
        text = self.run_example("channel")
        a, b, c, d = map(int, re.match(r"numbers: (\d+) (\d+) (\d+) (\d+)\n", text).groups())
        self.assertEqual(numbers(r"^sum: (\d+)$", text), [a + b + c + d])
        self.assertEqual(numbers(r"^product: (\d+)$", text), [a * b * c * d])

    def test_hotswap(self):
        text = self.run_example("hotswap")
        self.assertEqual(numbers(r"^square of \d: (\d+)$", text), [1, 4, 9])
        self.assertEqual(numbers(r"^cube of \d: (\d+)$", text), [64, 125, 216])
        self.assertRegex(text, r"cube/\d+ is still the same task: True\n$")

    def test_thread_pool(self):
        text = self.run_example("thread_pool")
        self.assertEqual(sorted(numbers(r"^call \d done: (\d+)$", text)), [0, 1, 4, 9])
        self.assertGreaterEqual(text.count("tick"), 2)
        self.assertIn("raised in the task: invalid literal", text)

    def test_database(self):
        lines = self.run_example("database").splitlines()
        self.assertEqual(sorted(lines[:3]), ["inserted apples", "inserted pears", "inserted plums"])
        self.assertEqual(lines[3:], ["apples 1", "apples 2", "pears  1", "pears  2", "plums  1", "plums  2"])

    def test_categories(self):
        self.assertEqual(self.run_example("categories").split("\n")[:-1], [
            "urgent: 2", "urgent: 4", "urgent: 6", "ordinary: 1", "ordinary: 3", "ordinary: 5", "ordinary: 7"])

    def test_async_await(self):
        self.assertEqual(self.run_example("async_await"), "worker 0 had the lock\nworker 1 had the lock\n"
                         "worker 2 had the lock\necho: HELLO\n3 results: [0, 1, 4]\n")

    def test_asyncio_interop(self):
        self.assertEqual(self.run_example("asyncio_interop"),
                         "asyncio got 42 from a task\na task got 'slow answer' from asyncio\n")

    def test_each_is_short_and_says_how_to_run_it_and_what_is_printed(self):
        for path in sorted(FOLDER.glob("*.py")):
            with self.subTest(path.name):
                text = path.read_text(encoding="utf-8")
                head = ast.get_docstring(ast.parse(text)) or ""
                self.assertIn("python3 examples/" + path.name, head)
                self.assertIn("\nPrinted: ", head)
                if path.name != "word_count.py":
                    self.assertLess(text.count("\n"), LONGEST)

    def test_arguments_that_are_wrong(self):
        """Each that takes some, or goes on until it is ended, says what it takes, and does nothing."""
        folder = self.temp_dir()
        started = {}
        for path in sorted(FOLDER.glob("*.py")):
            if "sys.argv" in path.read_text(encoding="utf-8") or "argparse" in path.read_text(encoding="utf-8"):
                started[path.name] = subprocess.Popen([sys.executable, str(path), "--no-such-option"], cwd=str(folder),
                                                      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                                      stderr=subprocess.STDOUT, text=True)
        self.assertGreater(len(started), 20)
        for name, process in started.items():
            with self.subTest(name):
                said = process.communicate(timeout=100)[0]
                self.assertNotEqual(process.returncode, 0, said)
                self.assertRegex(said, "usage: %s|python3 examples/%s" % (name, name))
                self.assertNotIn("Traceback", said)
        self.assertEqual(list(folder.iterdir()), [])

    def test_each_is_run_by_a_test(self):
        tests = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").glob("test_*.py")))
        for path in FOLDER.glob("*.py"):
            topic = re.sub("_(server|client)$", "", path.stem)      # such pairs are named by what they have in common
            self.assertTrue(re.search(r"\b(test_)?(%s|%s)\b" % (re.escape(path.stem), re.escape(topic)), tests), path.name)


if __name__ == "__main__":
    unittest.main()
