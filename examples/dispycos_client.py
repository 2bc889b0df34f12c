"""CPU tasks on the servers of a cluster, and their results.

    python3 dispycosnode_lite.py                            on each machine to use
    python3 examples/dispycos_client.py 20                  20 jobs; PYCOSLITE_EMBEDDED=-1 before it: no node needed

Printed: `job N: RESULT` for each job, in order, then `N jobs on M servers`.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the modules lie

import pycoslite  # noqa: E402
from dispycos_lite import Client  # noqa: E402


def sum_of_squares(n, task=None):
    """Runs at a server, where no other such task runs at the same time."""
    import os
    yield
    return sum(k * k for k in range(n)), os.getpid()


def client_task(jobs, task=None):
    client = Client([sum_of_squares])
    if (yield client.schedule()):
        raise SystemExit("not scheduled")
    # run_results hands in all of them; the scheduler gives each server one after the other.
    results = yield client.run_results(sum_of_squares, [n * 1000 for n in range(jobs)])
    for n, (result, _) in enumerate(results):
        print("job %d: %d" % (n, result))
    # What run_results does for each: start a task when a server is free, then wait for its end.
    rtask = yield client.rtask(sum_of_squares, 10)
    result, pid = yield rtask()
    print("%d jobs on %d servers" % (jobs + 1, len({pid for _, pid in results + [(result, pid)]})))
    yield client.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("jobs", nargs="?", type=int, default=10, help="how many (default: %(default)s)")
    pycoslite.Task(client_task, parser.parse_args().jobs)
