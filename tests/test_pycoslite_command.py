"""The command line: programs of pycos and asyncoro run as they are written."""
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, List

import pycoslite
from tests.support import MODULES, ROOT, TestCase, free_port, interpreters

WAYS = (["-m", "pycoslite"], [str(ROOT / "pycoslite.py")])     # to start it


class CommandTestCase(TestCase):
    """Runs programs through the command line."""

    def command(self, *words: Any, how: List[str] = WAYS[0], python: str = sys.executable,
                cwd: Any = ROOT, **env: str) -> subprocess.CompletedProcess:
        """What a call of the command line does."""
        environment = dict(os.environ, PYTHONPATH=str(ROOT) if how is WAYS[0] else "", **env)
        return subprocess.run([python, "-W", "error", "-X", "dev", *how, *map(str, words)], cwd=str(cwd), timeout=100,
                              env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              stdin=subprocess.DEVNULL)

    def program(self, text: str) -> Path:
        """A file of that text."""
        path = self.temp_dir() / "program.py"
        path.write_text(text)
        return path

    def run_text(self, text: str, *words: Any, **options: Any) -> str:
        """What a program prints that ends well."""
        path = self.program(text)
        done = self.command("run", path, *words, cwd=path.parent, **options)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        return done.stdout


class UsageTest(CommandTestCase):
    def test_help_and_version(self):
        for how in WAYS:
            with self.subTest(how):
                self.assertIn("run a program written for pycos", self.command("--help", how=how).stdout)
                self.assertEqual(self.command("--version", how=how).stdout, "pycoslite %s\n" % pycoslite.__version__)

    def test_wrong_calls(self):
        for words in ((), ("run",), ("walk", "x.py"), ("--colour",)):
            with self.subTest(words):
                done = self.command(*words)
                self.assertEqual((done.returncode, done.stdout), (2, ""))
                self.assertTrue(done.stderr.startswith("usage: python3 -m pycoslite"))
                self.assertNotIn("Traceback", done.stderr)

    def test_a_file_that_is_not_there(self):
        done = self.command("run", "nobody.py")
        self.assertEqual((done.returncode, done.stderr),
                         (2, "python3 -m pycoslite: cannot open nobody.py: No such file or directory\n"))


OLD = """
import sys, pickle
import asyncoro, asyncoro.disasyncoro, asyncoro.asyncfile, pycos

class Mine:
    pass

def client(server, coro=None):
    server.send((coro, 21))
    answer = yield coro.receive()
    assert type(pickle.loads(pickle.dumps(Mine()))) is Mine       # after the end of the program's own code
    print("answer", answer)

def server(coro=None):
    coro.set_daemon()
    while True:
        asker, number = yield coro.receive()
        asker.send(number * 2)

if __name__ == '__main__':
    asyncoro.AsynCoro(node="127.0.0.1", tcp_port=0, discover_peers=False, secret="x")
    copies = [m for m in list(sys.modules.values()) if str(vars(m).get("__file__")).endswith("pycoslite.py")]
    print(len(set(map(id, copies))), sys.argv[1:], asyncoro.Coro is pycos.Task)
    asyncoro.Coro(client, asyncoro.Coro(server))
"""


class RunTest(CommandTestCase):
    def test_a_program_of_old(self):
        for how in WAYS:
            with self.subTest(how):
                self.assertEqual(self.run_text(OLD, "-a", "--version", how=how),
                                 "1 ['-a', '--version'] True\nanswer 42\n")

    def test_with_other_pythons(self):
        for other in interpreters():
            with self.subTest(other.version):
                self.assertIn("answer 42", self.run_text(OLD, python=other.path))

    def test_names_of_modules(self):
        self.assertEqual(self.run_text("""
import pycos.netpycos as pycos
import pycos.asyncfile, pycos.config
from pycos.asyncfile import *
from pycos.dispycos import *
import pycoslite, pycos.dispycos
assert pycos.Task is pycoslite.Task and AsyncPipe is pycoslite.AsyncPipe
assert pycos.asyncfile.Popen is pycoslite.Popen
print(Client is Computation, Scheduler.NodeInitialized == DispycosStatus and 1, pycos.dispycos.MinPulseInterval)
pycos.config.MsgTimeout = 4
pycos.dispycos.MinPulseInterval = 5
pycos.NetPort = 51350
import dispycos_lite
print(pycoslite.settings.message_timeout_s, dispycos_lite.MinPulseInterval, pycoslite.settings.net_port)
assert pycos.__file__ == pycoslite.__file__         # examples look for files beside it
try:
    pycos.Colour
except AttributeError as error:
    print(error)
try:
    import pycos.colour
except ImportError as error:
    print(error)
"""), "True False 10\n4 5 51350\npycos has no attribute 'Colour': it stands for pycoslite here\n"
            "No module named 'pycos.colour'\n")

    def test_a_module_that_is_not_there_yet(self):
        if (ROOT / "httpd_lite.py").exists():
            self.assertIn("HTTPServer", self.run_text("import pycos.httpd\nprint(dir(pycos.httpd.HTTPServer.__name__), "
                                                      "pycos.httpd.HTTPServer.__name__)"))
            return
        done = self.command("run", self.program("import pycos.httpd"))
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr.splitlines()[-1], "^ImportError: pycos.httpd cannot be imported: it is httpd_lite")

    def test_the_network_starts_with_the_first_task(self):
        self.assertEqual(self.run_text("""
import threading
import pycos, pycos.netpycos
print(threading.active_count(), pycos.running_network())
def proc(task=None):
    yield
    print(task.location is not None)
pycos.Task(proc)
""", PYCOSLITE_NET_PORT=str(free_port())), "1 None\nTrue\n")

    def test_and_not_without_netpycos(self):
        self.assertEqual(self.run_text("""
import pycos
def proc(task=None):
    yield
    print(task.location)
pycos.Task(proc)
"""), "None\n")

    def test_errors_and_statuses_are_the_programs(self):
        done = self.command("run", self.program("import sys, pycos\nsys.exit(7)"))
        self.assertEqual((done.returncode, done.stderr), (7, ""))
        done = self.command("run", self.program("import pycos\n\nopen('nothing')"))
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"program.py\", line 3, in <module>\n(?:.*\n)*FileNotFoundError: .*nothing")

    def test_it_is_run_as_python_would(self):
        """Its directory is where its imports are looked for, and this package's options are not its own."""
        path = self.program("import beside, sys\nprint(beside.x, __name__, __file__ == sys.argv[0], "
                            "sys.modules['__main__'].beside is beside)\ndef f() -> undefined_name: pass")
        (path.parent / "beside.py").write_text("x = 5")
        done = self.command("run", path)
        self.assertEqual(done.returncode, 1)
        self.assertIn("NameError", done.stderr)         # annotations are evaluated, unlike in the package's own files
        self.assertEqual(done.stdout, "5 __main__ True True\n")

    def test_vendored(self):
        folder = self.temp_dir()
        (folder / "theirs").mkdir()
        (folder / "theirs" / "__init__.py").write_text("")
        for name in MODULES:
            if (ROOT / (name + ".py")).exists():
                (folder / "theirs" / (name + ".py")).write_bytes((ROOT / (name + ".py")).read_bytes())
        path = self.program("import pycos, pycos.dispycos as cluster\nprint(pycos.Task.__module__, "
                            "cluster.Client.__module__)")
        done = self.command("run", path, how=["-m", "theirs.pycoslite"], cwd=folder)
        self.assertEqual((done.stdout, done.stderr), ("theirs.pycoslite theirs.dispycos_lite\n", ""))

    def test_nothing_is_installed_by_importing(self):
        code = "import sys, pycoslite\nprint([f for f in sys.meta_path if 'Old' in str(f)])\nimport pycos"
        done = subprocess.run([sys.executable, "-c", code], cwd=str(ROOT), stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.PIPE, timeout=100)
        self.assertEqual(done.stdout, "[]\n")
        self.assertTrue(re.search("No module named 'pycos'", done.stderr))
