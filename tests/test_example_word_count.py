"""examples/word_count.py: right totals, the same in both modes and on every Python, and no noise when interrupted."""
from __future__ import annotations

import os
import re
import signal
import sys
import unittest
from pathlib import Path

import dispycos_lite
from tests.support import ROOT, TestCase, interpreters, need_cpus, running

SCRIPT = ROOT / "examples" / "word_count.py"
READY = hasattr(dispycos_lite, "Cluster")


def make_tree(top: Path, copies: int = 1) -> Path:
    """A small tree with everything that is easy to count wrongly."""
    (top / "pkg" / "__pycache__").mkdir(parents=True)
    (top / "pkg" / "site-packages").mkdir()
    (top / "pkg" / "__pycache__" / "a.py").write_bytes(b"skipped = 1\n")
    (top / "pkg" / "site-packages" / "b.py").write_bytes(b"skipped = 1\n")
    (top / "notes.txt").write_bytes(b"not Python\n")
    (top / "empty.py").write_bytes(b"")
    for n in range(copies):
        (top / "pkg" / ("m%03d.py" % n)).write_bytes(
            b"alpha = beta  # gamma\n"                          # names in comments do not count
            b"if alpha: beta('gamma', \"\"\"gamma\n gamma\"\"\", rb'\\'gamma')\n"
            b"beta\x0ct\xc3\xa9 = 0x1F # \xff\r\n"                # form feed, UTF-8, not UTF-8, no name in a number
            b"delta")                                           # no newline at the end
    return top


EXPECTED = ["files 2", "lines 4", "words 18", "unreadable 0", "  beta 3", "  alpha 2", "  delta 1",
            "  t\\xc3\\xa9 1"]


class WordCountTest(TestCase):

    def count(self, *args, python: str = sys.executable, status: int = 0) -> list:
        with running([python, SCRIPT, *args]) as process:
            self.assertEqual(process.wait(60), status, process.output)
        return process.output.splitlines()

    def totals(self, lines: list) -> list:
        """The lines that must not depend on how they were counted."""
        start, end = (next(n for n, line in enumerate(lines) if line.startswith(word)) for word in ("files ", "files/s"))
        return lines[start:end]

    @unittest.skipUnless(READY, "no Cluster yet")
    def test_serial(self):
        lines = self.count(make_tree(self.temp_dir()), "--serial")
        self.assertEqual(self.totals(lines), EXPECTED)
        self.assertRegex(lines[0], r"^counted 2 files, 0\.0 MB, in [\d.]+ s$")
        self.assertRegex("\n".join(lines[len(EXPECTED) + 1:]),
                         r"^files/s \d+\nMB/s [\d.]+\nserver .+: 1 jobs, 2 files, 0.0 MB$")

    @unittest.skipUnless(READY, "no Cluster yet")
    def test_cluster_gives_the_same(self):
        need_cpus(2)
        tree = make_tree(self.temp_dir(), copies=300)
        for n in range(4):                                      # several jobs
            (tree / ("big%d.py" % n)).write_bytes(b"big = 'x'\n" * 40000)
        serial, cluster = self.count(tree, "--serial"), self.count(tree, "-c", "2")
        self.assertEqual(self.totals(cluster), self.totals(serial))
        self.assertEqual(serial[1], "files 305")
        self.assertEqual(sum(int(n) for n in re.findall(r" jobs, (\d+) files", "\n".join(cluster))), 305)

    @unittest.skipUnless(READY, "no Cluster yet")
    def test_other_pythons_give_the_same(self):
        tree = make_tree(self.temp_dir())
        for version, python in interpreters():
            with self.subTest(version):
                self.assertEqual(self.totals(self.count(tree, "--serial", python=python)), EXPECTED)

    @unittest.skipUnless(READY, "no Cluster yet")
    def test_unreadable_files_are_counted_and_named(self):
        tree = make_tree(self.temp_dir())
        os.symlink("nowhere", str(tree / "broken.py"))
        os.mkfifo(str(tree / "pipe.py"))
        (tree / "folder.py").mkdir()
        lines = self.count(tree, "--serial")
        self.assertIn("unreadable 2", lines)
        self.assertIn("files 2", lines)
        self.assertEqual(len([line for line in lines if line.startswith("cannot read")]), 2)

    def test_missing_directory(self):
        self.assertIn("is not a directory", self.count("/no/such/place", "--serial", status=2)[-1])

    def test_mistyped_node(self):
        self.assertIn("must be a port number", self.count("--node", "127.0.0.1:x", status=2)[-1])

    @unittest.skipUnless(READY, "no Cluster yet")
    def test_killed_server_changes_no_total(self):
        need_cpus(2)
        tree, flag = make_tree(self.temp_dir()), self.temp_dir() / "killed"
        for n in range(6):
            (tree / ("big%d.py" % n)).write_bytes(b"big = 'x'\n" * 60000)
        serial = self.count(tree, "--serial")
        with running([sys.executable, "-c", WRAPPED % DEADLY, SCRIPT, tree, "-c", "2"], env={"FLAG": flag}) as process:
            self.assertEqual(process.wait(60), 0, process.output)
        self.assertTrue(flag.exists())
        self.assertRegex(process.output, "SIGKILL|signal 9")            # the death is announced
        totals = process.output[process.output.index("files "):].splitlines()
        self.assertEqual(self.totals(totals), self.totals(serial))

    @unittest.skipUnless(READY, "no Cluster yet")
    def test_interrupted(self):
        """Ctrl-C while it waits for a server: one line, status 130, nothing left behind."""
        tree = self.temp_dir()
        (tree / "endless.py").write_bytes(b"x = 1\n")
        for mode in ("--serial",), ("-c", "1"):
            with self.subTest(mode):
                with running([sys.executable, "-c", WRAPPED % SLOW, SCRIPT, tree, *mode]) as process:
                    process.wait_for("counting")
                    process.signal(signal.SIGINT)
                    self.assertEqual(process.wait(), 130, process.output)
                self.assertEqual(process.output.split("\n")[-2:], ["interrupted", ""])
                self.assertNotIn("Traceback", process.output)


# Runs the script with another job in place of its own.
WRAPPED = """
import os, runpy, sys
sys.argv = sys.argv[1:]
script = runpy.run_path(sys.argv[0], run_name="word_count")
honest = script["count"]
%s
script["main"].__globals__["count"] = count
sys.exit(script["main"]())
"""

# Says that it has begun, and then takes its time.
SLOW = """
def count(batch):
    import os, time
    os.write(1, b"counting\\n")             # in one piece, whatever happens next
    time.sleep(60)
"""

# The first one kills its server.
DEADLY = """
flag = os.environ["FLAG"]
def count(batch):
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return honest(batch)
    os.kill(os.getpid(), 9)
"""
