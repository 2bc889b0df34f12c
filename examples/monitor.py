"""A web monitor beside a computation: which nodes are used, what runs where, what failed, in a browser.

    python3 dispycosnode_lite.py                            on each machine to use
    python3 examples/monitor.py 100 60                      100 tasks, then a minute to look around

PYCOSLITE_EMBEDDED=-1 before it uses the cores of this machine, and needs no node. The URL to open in a browser is in
the log (stderr); whoever knows it may look, and act.

Printed: `N tasks done, N failed`, before the time to look around.
"""
import argparse
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the modules lie

import pycoslite  # noqa: E402
from dispycos_lite import Client  # noqa: E402
from httpd_lite import HTTPServer  # noqa: E402


def work(seconds, task=None):
    """Runs at a server; computes now and then."""
    for _ in range(10):
        yield task.sleep(seconds / 10)
        sum(n * n for n in range(100_000))
    return "%.2f s" % seconds


def main(count, look_s, task=None):
    client = Client([work])
    monitor = HTTPServer(client, port=0, poll_sec=2)        # logs the URL; any free port
    yield client.schedule()
    rtasks = []
    for _ in range(count):
        rtasks.append((yield client.rtask(work, random.uniform(0.2, 2) if look_s else 0.05)))
    results = []
    for rtask in rtasks:
        results.append((yield rtask.finish()))
    failed = sum(isinstance(result, pycoslite.MonitorStatus) for result in results)
    print("%d tasks done, %d failed" % (len(results) - failed, failed))
    yield task.sleep(look_s)
    yield client.close()
    monitor.shutdown()                                      # when browsers have had time to get the last changes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A web monitor beside a computation.")
    parser.add_argument("count", nargs="?", type=int, default=100, help="tasks to run (default: %(default)s)")
    parser.add_argument("look_s", nargs="?", type=float, default=60.0,
                        help="seconds to look around when they are done (default: %(default)g)")
    arguments = parser.parse_args()
    pycoslite.Task(main, arguments.count, arguments.look_s)
