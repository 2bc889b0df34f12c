#!/usr/bin/env python3
"""Call a function of another process: several calls at the same time, and one that fails.

    python3 examples/rps_client.py                  while rps_server.py runs somewhere near

Printed: `N words` for each of three texts, then `failed: ValueError`.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the module lies

from pycoslite import RPS, MonitorStatus, Pycos, Task  # noqa: E402


def client():
    """Starts all calls, then waits for their results."""
    word_count = yield RPS.locate("word_count", timeout=10)
    if word_count is None:
        print("nobody counts words here")
        return
    calls = []
    for text in ("one", "and a two", "and a one two three", ""):
        calls.append((yield word_count(text)))      # a task there; None if it could not be started
    for call in calls:
        result = yield call()                       # waits for its end
        if isinstance(result, MonitorStatus):
            print("failed:", result.type.__name__)
        else:
            print("%d words" % result)


if __name__ == "__main__":
    Pycos(name="word client")
    Task(client)
