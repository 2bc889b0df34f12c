#!/usr/bin/env python3
"""Call a function of another process: several calls at the same time, and one that fails.

    python3 examples/rps_client.py                  while rps_server.py runs somewhere near

Printed: `N words` for each of three texts, `failed: ValueError`, and `4 calls have ended, 1 of them badly`, which its
monitor has counted.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the module lies

from pycoslite import RPS, MonitorStatus, Pycos, Task  # noqa: E402


def client(task=None):
    """Starts all calls, then waits for their results; as a monitor it also hears of their ends in the order they come.
    """
    word_count = yield RPS.locate("word_count", timeout=10)
    if word_count is None:
        print("nobody counts words here")
        return
    word_count.monitor(task)                        # a MonitorStatus will come for each call that ends
    calls = []
    for text in ("one", "and a two", "and a one two three", ""):
        calls.append((yield word_count(text)))      # a task there; None if it could not be started
    for call in calls:
        result = yield call()                       # waits for its end
        if isinstance(result, MonitorStatus):
            print("failed:", result.type.__name__)
        else:
            print("%d words" % result)
    statuses = []
    for _ in calls:
        statuses.append((yield task.receive()))
    print("%d calls have ended, %d of them badly" % (
        len(statuses), sum(status.type is not StopIteration for status in statuses)))


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(__doc__)
    Pycos(name="word client")
    Task(client)
