"""Own scheduling: the next job is started when a status message says that a server is free.

    python3 dispycosnode_lite.py                            on each machine to use
    python3 examples/dispycos_status.py 20                  20 jobs; PYCOSLITE_EMBEDDED=-1 before it: no node needed

Printed: `job N gave RESULT` as the jobs end, then `N jobs on M servers`.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the modules lie

import pycoslite  # noqa: E402
from dispycos_lite import Client, DispycosStatus, Scheduler  # noqa: E402


def square(n, task=None):
    """Runs at a server."""
    yield task.sleep(0.05)
    return n * n


def status_task(jobs, task=None):
    client = Client([square], status_task=task)
    yield client.schedule()
    waiting, servers, numbers = list(range(jobs)), set(), {}
    done = 0
    while done < jobs:
        message = yield task.receive()
        free = None
        if isinstance(message, DispycosStatus) and message.status == Scheduler.ServerInitialized:
            free = message.info                         # a server's location
        elif isinstance(message, pycoslite.MonitorStatus):
            print("job %d gave %s" % (numbers[message.info], message.value))
            done += 1
            free = message.info.location
        if free is not None and waiting:
            servers.add(free)
            number = waiting.pop(0)
            rtask = yield client.rtask_at(free, square, number)
            numbers[rtask] = number
    print("%d jobs on %d servers" % (jobs, len(servers)))
    yield client.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("jobs", nargs="?", type=int, default=10, help="how many (default: %(default)s)")
    pycoslite.Task(status_task, parser.parse_args().jobs)
