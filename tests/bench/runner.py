"""Starts measured processes, one at a time and alternately, and never waits for one for ever."""
from __future__ import annotations

import compileall
import functools
import json
import os
import platform
import signal
import subprocess
import sys
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from .catalogue import COMPARED, Workload

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ERROR_CHARS = 200
STDERR_CHARS = 4000


class Plan(NamedTuple):
    """What to run: `size` replaces the table's sizes unless None; `pin_core` gives the core for a workload, or None;
    those in COMPARED run in `repeat` times the rounds; without `randomised`, pinned processes start by `aligned`."""

    workload: Workload
    contestants: Sequence[str]
    rounds: int
    timeout_s: float
    size: Optional[int]
    pin_core: Callable[[Workload], Optional[int]]
    repeat: int = 1
    randomised: bool = False


def _environment() -> Dict[str, str]:
    """Measured processes share the home that importing `tests` gave to this one: with it a secret, kept in its file as
    a user's is, that nobody else's nodes and clients have.

    They import this package as `bench`, without `tests` around it, for that would give a home of its own to each.
    """
    return dict(os.environ, PYTHONPATH=os.pathsep.join([ROOT, os.path.join(ROOT, "tests")]))


def compile_modules() -> None:
    """Compile what is measured, as installing it or running it once does; where the environment forbids Python to keep
    compiled files, every process would do it again at its start."""
    for directory in (ROOT, os.path.dirname(os.path.abspath(__file__))):
        compileall.compile_dir(directory, maxlevels=0, quiet=2)


@functools.lru_cache(maxsize=None)
def aligned() -> Tuple[str, ...]:
    """What a command is begun with so that its processes do without address space randomisation; nothing where that
    cannot be had (not Linux, or not allowed).

    The two ends of a round trip have a processor each, as a rule, and with it a branch predictor. Two ends that are
    pinned to one core share that one, and an interpreter in a shared library lies at another address in each of them:
    nothing that one end has taught it is of use to the other, and there is not room for both. It makes the very same
    instructions (ours of D1) take 70 us instead of 47, but by half less for code that is short (the limit's: 27 instead
    of 25), and by another amount in each run. With both ends at the same addresses each finds what it would find on a
    processor of its own. An interpreter that is linked to a fixed address (Debian's) is measured like that in any case.
    """
    command = ("setarch", platform.machine(), "-R")
    try:
        subprocess.run(command + (sys.executable, "-c", ""), check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return ()
    return command


def _kill_group(process: subprocess.Popen) -> None:
    """Kill what is left of a measured process and its helpers, and reap it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _read_result(output: str, errors: str, status: int) -> Dict:
    """The line of JSON a measured process printed; without one, the last thing it said."""
    for line in reversed(output.splitlines()):
        if line.startswith('{"workload"'):
            return json.loads(line)
    said = (errors.strip().splitlines() or ["no output"])[-1]
    return {"error": "exit status %d: %s" % (status, said[:ERROR_CHARS]), "stderr": errors[-STDERR_CHARS:]}


def run_one(command: List[str], timeout_s: float, begin: Tuple[str, ...] = ()) -> Dict:
    """Run a measured process, the command line of which begins with `begin`; its result, or a dict with the key
    "error"."""
    its_end, our_end = os.pipe()                    # open for as long as this process lives: harness.follow_parent
    try:
        process = subprocess.Popen([*begin, sys.executable, "-m", "bench.one"] + command, cwd=ROOT, env=_environment(),
                                   stdin=its_end, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   start_new_session=True)
        with process.stdout, process.stderr:
            try:
                output, errors = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                hung = "killed" if process.poll() is None else "it ended, but processes it started had not"
                return {"error": "%s after %g s" % (hung, timeout_s)}
            finally:
                _kill_group(process)
    finally:
        os.close(its_end)
        os.close(our_end)
    return _read_result(output, errors, process.returncode)


def run_plan(plan: Plan) -> Iterator[Dict]:
    """Every round has a run of every contestant; one that failed is left out of further rounds. Every other round goes
    backwards, so that none profits from being always first."""
    failed = set()
    core = plan.pin_core(plan.workload)
    options = [] if core is None else ["--pin", str(core)]
    begin = () if core is None or plan.randomised else aligned()
    for round_number in range(plan.rounds * plan.repeat):
        for name in plan.contestants[::-1 if round_number % 2 else 1]:
            if name in failed or round_number >= plan.rounds and name not in COMPARED:
                continue
            size = plan.size or plan.workload.size_for(name)
            result = run_one(options + [plan.workload.name, name, str(size)], plan.timeout_s, begin)
            if "error" in result:
                failed.add(name)
            result.update(workload=plan.workload.name, contestant=name, n=size, round=round_number, pinned=core,
                          same_addresses=bool(begin))
            yield result
