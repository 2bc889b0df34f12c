"""Tests of the package; at the root of the checkout: ``python3 -m unittest`` (or ``python3 -m unittest tests.test_x``).

Importing this package, which happens before any module under test is imported, gives the run a home of its own: no
test reads or makes the real user's secret, or leaves anything in the real temporary directory, settings from the developer's
environment do not change what is tested, and nobody outside is met on the network.
"""
from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import random
import shutil
import socket
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Tuple

# The user's home: other interpreters are looked for below it. In the environment it marks the processes of a test run.
REAL_HOME = Path(os.environ.get("PYCOSLITE_TEST_REAL_HOME") or Path.home())


def _make_home() -> None:
    os.environ["PYCOSLITE_TEST_REAL_HOME"] = str(REAL_HOME)
    for name in list(os.environ):
        if name.startswith("PYCOSLITE_") and not name.startswith(("PYCOSLITE_TEST_", "PYCOSLITE_UPSTREAM_")):
            del os.environ[name]
    home, owner = tempfile.mkdtemp(prefix="pycoslite-tests-"), os.getpid()
    os.environ["HOME"] = os.environ["USERPROFILE"] = home
    os.environ["TMPDIR"] = os.path.join(home, "tmp")
    os.mkdir(os.environ["TMPDIR"])
    os.environ["PYCOSLITE_NET_PORT"] = str(_own_net_port())
    tempfile.tempdir = None         # forget the directory chosen a moment ago
    # Hundreds of processes are started that import the modules: compiled once for each Python, and not beside the source.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = os.path.join(home, "pycache")

    def remove() -> None:           # a forked child that ends the ordinary way must not take the home along
        if os.getpid() == owner:
            shutil.rmtree(home, ignore_errors=True)
    atexit.register(remove)


def _own_net_port() -> int:
    """A port for all that uses the usual one in this run, with some free ones above it: no test meets the programs of
    this machine's users, of its neighbours, or of another run."""
    dice = random.SystemRandom()
    while True:
        port = dice.randrange(10_100, 20_000, 20)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for number in range(port, port + 10):
                for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM:
                    stack.enter_context(socket.socket(socket.AF_INET, kind)).bind(("", number))
            return port


def _move_net_port() -> None:
    """Have this process use another usual port from now on than the one with which the modules were imported."""
    import dispycos_lite
    import dispycosnode_lite
    import pycoslite
    port = _own_net_port()
    os.environ["PYCOSLITE_NET_PORT"] = str(port)
    pycoslite.settings.net_port = port
    dispycos_lite.NODE_PORT = dispycosnode_lite.DEFAULT_PORT = port + 1


# Test modules that use nodes, and that talk to peers of whole machines. Tests of one list do not meet those of another,
# as each has discovery ports of its own.
NODES = ("node_program", "node_server", "node_announcement", "dispycos_cluster", "dispycos_client", "dispycos_patience",
         "example_word_count", "readme", "examples_network", "upstream_examples", "httpd_browser", "httpd_cluster")
PEERS = ("pycoslite_discovery", "pycoslite_network", "pycoslite_networks", "pycoslite_rps", "pycoslite_mixed",
         "pycoslite_undelivered", "pycoslite_hostile", "pycoslite_reliability")
# Test modules that wait for heartbeats, partitions, and limits of time, most of the while.
WAITING = ("pycoslite_partitions", "pycoslite_doctor", "pycoslite_lan", "node_lan", "pycoslite_command")
# As many of the others as make this process end when the rest of them does.
OTHERS = ("pycoslite_simulation", "pycoslite_tls", "pycoslite_kernel", "node_processes", "pycoslite_transfer",
          "structure", "dispycos_shipping")
APART = NODES, PEERS, WAITING, OTHERS   # each of these lists has a process of its own, all other modules have the first


class _Told:
    """A test that ran in the other process, as results name it."""

    failureException = None

    def __init__(self, name: str) -> None:
        self._name = name

    def __str__(self) -> str:
        return self._name

    def id(self) -> str:
        """Name of the test."""
        return self._name

    def shortDescription(self) -> None:
        """None: the name will do."""


class SideBySide(unittest.TestSuite):
    """Several suites at once, all but the first in forked processes: most tests wait for processes most of the time."""

    def run(self, result: unittest.TestResult, debug: bool = False) -> unittest.TestResult:
        """See unittest; one suite after the other where processes cannot be forked."""
        here, *apart = self
        if not hasattr(os, "fork") or not apart:
            return super().run(result, debug)
        forked = [_forked(suite) for suite in apart if suite.countTestCases()]
        here.run(result, debug)
        for pid, reading in forked:
            with open(reading, "rb") as pipe:
                self._take_over(pickle.loads(pipe.read() or pickle.dumps(None)), result)
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:       # a leak check has reaped it
                pass
        return result

    @staticmethod
    def _take_over(told: object, result: unittest.TestResult) -> None:
        """Add what the other process found to `result`."""
        if told is None:
            told = 0, {"errors": [("the tests of the other process", "it ended before it could tell its results")]}, []
        count, lists, timings = told
        result.testsRun += count
        for kind, found in lists.items():
            getattr(result, kind).extend((_Told(name), text) for name, text in found)
        from tests import support
        support.DURATIONS.extend(timings)


def _forked(suite: unittest.TestSuite) -> Tuple[int, int]:
    """Run `suite` in a new process; its id, and a descriptor from which the results can be read."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        os.close(reading)
        _run_apart(suite, writing)
    os.close(writing)
    return pid, reading


def _run_apart(suite: unittest.TestSuite, writing: int) -> None:
    """The forked process: run `suite`, tell the results, and end."""
    status = 1
    try:
        from tests import support
        support.adopt_orphans()         # is not inherited
        _move_net_port()
        result = unittest.TestResult()
        suite.run(result)
        lists = {kind: [(str(test), text) for test, text in getattr(result, kind)]
                 for kind in ("failures", "errors", "skipped", "expectedFailures")}
        lists["failures"] += [(str(test), "unexpected success") for test in result.unexpectedSuccesses]
        with open(writing, "wb") as pipe:
            pipe.write(pickle.dumps((result.testsRun, lists, support.DURATIONS)))
        status = 0
    finally:
        os._exit(status)


def load_tests(loader: unittest.TestLoader, _standard: unittest.TestSuite, pattern: str) -> unittest.TestSuite:
    """For ``python3 -m unittest`` at the root: everything, in one process more than there are lists in `APART`."""
    suites = [unittest.TestSuite() for _ in range(1 + len(APART))]
    folder = Path(__file__).parent
    for path in sorted(folder.glob(pattern or "test*.py")):
        name = path.stem[len("test_"):]
        number = next((number for number, names in enumerate(APART, 1) if name in names), 0)
        suites[number].addTests(loader.loadTestsFromName("tests." + path.stem))
    return SideBySide(suites)


if "PYCOSLITE_TEST_REAL_HOME" not in os.environ:        # else a program of this package that a test started
    _make_home()
