"""Main program of a measured process; `runner` starts it.

    python3 -m bench.one [--pin CORE] WORKLOAD CONTESTANT N      prints one line of JSON
    python3 -m bench.one --child MODULE FUNCTION [ARGUMENT...]   a helper process of such a measurement
"""
from __future__ import annotations

import importlib
import json
import os
import sys
from typing import List

from . import harness


def measure(workload: str, name: str, size: int) -> None:
    """Run one contestant and print what it found."""
    harness.load_families()
    found = harness.CONTESTANTS[workload, name].measure(size)
    print(json.dumps({"workload": workload, "contestant": name, "n": size, "operations": found.operations,
                      "cost": round(found.cost, 6), "rate": round(found.operations / found.cost, 4),
                      "notes": found.notes or {}}), flush=True)


def main(argv: List[str]) -> None:
    """See the module's docstring."""
    harness.follow_parent()
    if argv[0] == "--child":
        getattr(importlib.import_module(argv[1]), argv[2])(*argv[3:])
        return
    if argv[0] == "--pin":
        os.sched_setaffinity(0, {int(argv[1])})     # children inherit it
        argv = argv[2:]
    status = 1
    try:
        measure(argv[0], argv[1], int(argv[2]))
        status = 0
    except Exception as error:                      # told in one line: the runner shows the last line of stderr
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        harness.leave(status)


if __name__ == "__main__":
    main(sys.argv[1:])
