#!/usr/bin/env python3
"""A task that others find by its name and send messages to.

    python3 examples/remote_task_server.py          on this machine, or another one that has the same secret file
    python3 examples/remote_task_client.py          in other terminals; they find the server by themselves

Printed: `serving`, then each message with its sender. The end: Ctrl-C.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the module lies

from pycoslite import Pycos, Task  # noqa: E402


def server(task=None):
    """Answers each number with its square."""
    task.register("squares")
    print("serving", flush=True)
    while True:
        client, number = yield task.receive()
        print("%d from %s" % (number, client.name), flush=True)
        client.send(number * number)


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(__doc__)
    Pycos(name="square server")         # an option starts the network, and the search for others
    Task(server)
