"""What the code of a measured process uses: registry of contestants, child processes, clock, checks."""
from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

HOST = "127.0.0.1"
FAMILIES = ("local", "streams", "messages", "bulk", "files", "jobs", "startup")

# One clock for everything: on the systems this runs on it is the same in all processes, which J3 relies on.
clock = time.monotonic


class WrongResult(Exception):
    """A contestant did not do the work it was about to be praised for."""


class Measured(NamedTuple):
    """What one run found: the rate is `operations / cost`; `notes` are further figures worth a look."""

    operations: float
    cost: float
    notes: Optional[Dict[str, float]] = None


class Contestant(NamedTuple):
    """One way to do one workload; `needs` is a package that must be installed, or empty."""

    workload: str
    name: str
    measure: Callable[[int], Measured]
    needs: str


CONTESTANTS: Dict[Tuple[str, str], Contestant] = {}


def contestant(workload: str, name: str, needs: str = "") -> Callable:
    """Decorator for a function `(n) -> Measured`: it measures `workload` done with `name`."""
    def register(measure: Callable[[int], Measured]) -> Callable[[int], Measured]:
        CONTESTANTS[workload, name] = Contestant(workload, name, measure, needs)
        return measure
    return register


def load_families() -> None:
    """Import the modules that register contestants."""
    for family in FAMILIES:
        importlib.import_module("." + family, __package__)


def contestants_of(workload: str) -> List[str]:
    """Names that can run here, the limit first, then ours, then the others by name."""
    names = [c.name for c in CONTESTANTS.values()
             if c.workload == workload and (not c.needs or importlib.util.find_spec(c.needs))]
    return sorted(names, key=lambda name: (name != "limit", name != "ours", name))


def expect(got: Any, wanted: Any, what: str) -> None:
    """Raise WrongResult unless the two are equal."""
    if got != wanted:
        raise WrongResult("%s: got %.200r, wanted %.200r" % (what, got, wanted))


def run_task(function: Callable, *args: Any) -> Any:
    """Exit value of one of our tasks; a failure is raised here, in the main thread."""
    import pycoslite                                # only a process that measures ours loads it
    outcome = pycoslite.Task(function, *args).value()
    if isinstance(outcome, BaseException):
        raise WrongResult("task failed: %s" % " ".join(map(str, outcome.args)))
    return outcome


def run_async(library: str, main: Callable) -> Any:
    """Run a coroutine function in a fresh event loop of a library (asyncio, or one that offers the same call)."""
    return importlib.import_module(library).new_event_loop().run_until_complete(main())


def event_loops(workload: str) -> Callable:
    """Register a function `(library, n)` for asyncio and for the loops that can stand in for its own."""
    def register(measure: Callable[[str, int], Measured]) -> Callable:
        for library in ("asyncio", "uvloop"):
            contestant(workload, library, needs=library)(
                lambda n, library=library: measure(library, n))
        return measure
    return register


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0..1) of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def latency_notes(seconds: Sequence[float]) -> Dict[str, float]:
    """Median and 99th percentile in microseconds."""
    return {"p50_us": round(percentile(seconds, 0.50) * 1e6, 1), "p99_us": round(percentile(seconds, 0.99) * 1e6, 1)}


# ---- processes -------------------------------------------------------------------------------------------------------

def follow_parent() -> None:
    """End this process, and the group it leads, as soon as standard input closes: the parent holds the other end.

    A process whose parent was killed would otherwise stay and disturb whatever is measured next.
    """
    def watch() -> None:
        while os.read(0, 4096):
            pass
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)
    threading.Thread(target=watch, name="follow_parent", daemon=True).start()


class Child:
    """A helper process of a measurement, ready to serve once the constructor returns.

    `told` holds the words it gave to `ready()`, usually its port.
    """

    running: List["Child"] = []

    def __init__(self, command: Sequence[str], **popen_options: Any) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, **popen_options)
        self.told: List[str] = []
        Child.running.append(self)

    def wait_for(self, marker: str) -> str:
        """Read its output up to the first line that holds `marker`; that line."""
        for line in self.process.stdout:
            if marker in line:
                return line
        raise WrongResult("%s ended without saying %s" % (self.process.args, marker))

    def end(self) -> None:
        """Terminate it, kill it if it does not go within 3 s, reap it."""
        self.process.terminate()
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def child(function: Callable[..., None], *args: object) -> Child:
    """Run a module-level function of a family in a process of its own, arguments as text; wait for its `ready()`."""
    command = [sys.executable, "-m", __package__ + ".one", "--child", function.__module__, function.__name__]
    helper = Child(command + [str(arg) for arg in args], stdout=subprocess.PIPE, text=True)
    helper.told = helper.wait_for("READY").split()[1:]
    return helper


def ready(*values: object) -> None:
    """In a child: tell the parent that it can begin, and with what."""
    print("READY", *values, flush=True)


def leave(status: int) -> None:
    """End the process at once, helpers first: the time a framework takes to shut down is not what is measured."""
    for helper in Child.running:
        helper.end()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
