"""Command line of the benchmarks; the package's docstring has examples."""
from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Dict, Iterable, List, Optional

from . import harness, report
from .catalogue import WORKLOADS, Workload
from .runner import Plan, compile_modules, run_plan


def _numbers(text: str) -> List[int]:
    """Comma-separated whole numbers."""
    return [int(word) for word in text.split(",")]


def _core(text: str) -> Optional[int]:
    """A core's number, or "none"."""
    return None if text == "none" else int(text)


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench", description=(
        "Run ours beside hand-written limits and the means of the standard library."))
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="default: all; see --list")
    parser.add_argument("--rounds", type=int, default=3, help=(
        "runs of each contestant (default 3; three times as many of ours and its limit where little is at stake)"))
    parser.add_argument("--only", default="", metavar="NAMES", help="contestants, comma-separated: limit,ours")
    parser.add_argument("--sizes", type=_numbers, metavar="N,N,...", help="rate by size instead of goals")
    parser.add_argument("--pin", type=_core, default=-1, metavar="CORE", help=(
        "run everything on this core, 'none': nothing (default: only workloads that ask for it, on the first; our J "
        "workloads refuse, as a node lends no more cores than it may use)"))
    parser.add_argument("--randomised", action="store_true", help=(
        "leave the two ends of a pinned workload at addresses of their own, see runner.aligned"))
    parser.add_argument("--timeout", type=float, default=60, metavar="S", help="kill a run after this (default 60)")
    parser.add_argument("--smoke", action="store_true", help="one round of tiny sizes: does it still run?")
    parser.add_argument("--json", action="store_true", help="one line per run on standard output, no tables")
    parser.add_argument("--list", action="store_true", help="workloads, contestants and goals, and nothing else")
    options = parser.parse_args(argv)
    unknown = [name for name in options.workloads if name not in WORKLOADS]
    if unknown:
        parser.error("no such workload: %s (there are: %s)" % (", ".join(unknown), " ".join(WORKLOADS)))
    return options


def _pinning(options: argparse.Namespace):
    """The function a Plan asks for the core of a workload."""
    if options.pin != -1:
        return lambda workload: options.pin
    if not hasattr(os, "sched_setaffinity"):
        return lambda workload: None
    first = min(os.sched_getaffinity(0))
    return lambda workload: first if workload.pinned else None


def _chosen(workload: Workload, only: str) -> List[str]:
    names = harness.contestants_of(workload.name)
    return [name for name in names if name in only.split(",")] if only else names


def _plans(workload: Workload, options: argparse.Namespace) -> Iterable[Plan]:
    """One plan, or one for each size asked for."""
    sizes: List[Optional[int]] = [workload.smoke] if options.smoke else (options.sizes or [None])
    rounds = 1 if options.smoke else options.rounds
    repeat = 1 if options.smoke or options.sizes else workload.repeat
    for size in sizes:
        yield Plan(workload, _chosen(workload, options.only), rounds, options.timeout, size, _pinning(options), repeat,
                   options.randomised)


def _tell(run: Dict, as_json: bool) -> None:
    """One run: as data on standard output, or as a sign of life on standard error."""
    if as_json:
        print(json.dumps(run), flush=True)
    else:
        found = run.get("error") or "%.6g" % run["rate"]
        line = "%-4s %-8s n=%-8d %s" % (run["workload"], run["contestant"], run["n"], found)
        print(line, run.get("stderr", ""), sep="\n" if "stderr" in run else "", file=sys.stderr, flush=True)


def _list() -> None:
    for workload in WORKLOADS.values():
        goals = "; ".join(map(str, workload.goals))
        print("%-4s %s\n     %s; goal: %s" % (
            workload.name, workload.title, ", ".join(harness.contestants_of(workload.name)), goals))


def main(argv: Optional[List[str]] = None) -> int:
    """Run what the command line asks for; 1 when a run failed. Goals that were not reached are no failure."""
    options = _parse(argv)
    harness.load_families()
    if options.list:
        _list()
        return 0
    compile_modules()
    failed = False
    for workload in [WORKLOADS[name] for name in options.workloads or WORKLOADS]:
        runs: List[Dict] = []
        for plan in _plans(workload, options):
            for run in run_plan(plan):
                _tell(run, options.json)
                runs.append(run)
        failed = failed or any("error" in run for run in runs)
        if not options.json:
            print((report.size_table if options.sizes else report.table)(workload, runs), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
