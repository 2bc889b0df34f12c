#!/usr/bin/env python3
"""Find a task of another process, send it messages, and deliver one for certain.

    python3 examples/remote_task_client.py          while remote_task_server.py runs somewhere near

Printed: `found squares at HOST:PORT`, `N squared is M` for N from 1 to 3, and `delivered: 1`.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the module lies

from pycoslite import Pycos, Task  # noqa: E402


def client(task=None):
    """Asks for some squares."""
    server = yield Task.locate("squares", timeout=10)
    if server is None:
        print("nobody serves squares here")
        return
    print("found squares at", server.location)
    for number in range(1, 4):
        server.send((task, number))                         # sent when the network gets to it
        print("%d squared is %d" % (number, (yield task.receive())))
    print("delivered:", (yield server.deliver((task, 4))))  # 1: the server's mailbox has it


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(__doc__)
    Pycos(name="square client")
    Task(client)
