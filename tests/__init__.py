"""Tests of the package; at the root of the checkout: ``python3 -m unittest`` (or ``python3 -m unittest tests.test_x``).

Importing this package, which happens before any module under test is imported, gives the run a home of its own: no
test reads or makes the real user's secret, or leaves anything in the real temporary directory, and settings from the
developer's environment do not change what is tested.
"""
from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

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
    tempfile.tempdir = None         # forget the directory chosen a moment ago
    # Hundreds of processes are started that import the modules: compiled once for each Python, and not beside the source.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = os.path.join(home, "pycache")

    def remove() -> None:           # a forked child that ends the ordinary way must not take the home along
        if os.getpid() == owner:
            shutil.rmtree(home, ignore_errors=True)
    atexit.register(remove)


if "PYCOSLITE_TEST_REAL_HOME" not in os.environ:        # else a program of this package that a test started
    _make_home()
