"""Figures: what a goal of reliability or security came to, one line each, for test modules and programs alike.

A row is a goal with an id; it is measured by a generator function that takes `soak` (False: the size of every run,
True: that of a release) and yields a `Figure` for each number. A program of rows ends with ``sys.exit(main(ROWS))``,
a test calls `check(self, ROWS["S3"])`.

    python3 -m tests.hostile                 every row, at the size of every run
    python3 -m tests.hostile S3 --soak       one row, at the size of a release
    python3 -m tests.hostile --json          one JSON object per line
"""
from __future__ import annotations

import argparse
import json
import operator
import os
import sys
import time
import unittest
from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional, Sequence

SOAK = os.environ.get("PYCOSLITE_TEST_SOAK") == "1"     # tests take the sizes of a release

TIMES = ("us", "ms", "s")

_RELATIONS: Dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt}


class Figure(NamedTuple):
    """One number: what was measured, how much it is in which unit, and how it must compare with `limit`.

    A `relation` of "" makes it a remark that cannot fail (how many were tried, how long it took).
    """

    name: str
    value: float
    unit: str = ""
    relation: str = ""
    limit: float = 0

    @property
    def right(self) -> bool:
        """Whether the goal is reached."""
        return not self.relation or _RELATIONS[self.relation](self.value, self.limit)

    @property
    def timed(self) -> bool:
        """Whether it tells of time, and so of the machine and what else it does, too."""
        return self.unit in TIMES or self.unit.endswith("/s")

    @property
    def goal(self) -> str:
        """The limit as text; empty for a remark."""
        return "%s %s" % (self.relation, _number(self.limit)) if self.relation else ""


Row = Callable[[bool], Iterator[Figure]]


def check(case: unittest.TestCase, row: Row, soak: bool = SOAK) -> None:
    """Measure a row in a test, which fails with all figures that miss their goals. Times and speeds are goals in release
    runs only: elsewhere the machine is busy with other tests."""
    missed = ["%s: %s %s, must be %s" % (figure.name, _number(figure.value), figure.unit, figure.goal)
              for figure in row(soak) if not figure.right and (soak or not figure.timed)]
    if missed:
        case.fail("\n".join(missed))


def main(rows: Dict[str, Row], argv: Optional[Sequence[str]] = None) -> int:
    """The program: measure the rows named in `argv` (None: the command line's; none named: all); the exit status is the
    number of figures that miss their goals, 99 at most."""
    parser = argparse.ArgumentParser(description="Measure goals; ids: %s." % ", ".join(rows))
    parser.add_argument("row", nargs="*", help="id of a goal")
    parser.add_argument("--soak", action="store_true", default=SOAK, help="the sizes of a release")
    parser.add_argument("--json", action="store_true", help="one JSON object per figure")
    options = parser.parse_args(argv)
    unknown = set(options.row) - set(rows)
    if unknown:
        parser.error("no such goal: %s" % ", ".join(sorted(unknown)))
    show, missed = (_show_json if options.json else _show_line), 0
    for name in options.row or rows:
        started = time.perf_counter()
        for figure in rows[name](options.soak):
            show(name, figure)
            missed += not figure.right
        show(name, Figure("measured in", time.perf_counter() - started, "s"))
    return min(missed, 99)


def _show_line(row: str, figure: Figure) -> None:
    state = "" if not figure.relation else "ok" if figure.right else "MISSED"
    print("%-4s %-76s %12s %-5s %-12s %s" % (
        row, figure.name, _number(figure.value), figure.unit, figure.goal, state), flush=True)


def _show_json(row: str, figure: Figure) -> None:
    json.dump(dict(figure._asdict(), row=row, right=figure.right), sys.stdout)
    print(flush=True)


def _number(value: float) -> str:
    return "%d" % value if value == int(value) else "%.3g" % value
