#!/usr/bin/env python3
"""A function that tasks of other processes may call; each call is a task here.

    python3 examples/rps_server.py                  on this machine, or another one that has the same secret file
    python3 examples/rps_client.py                  in other terminals; they find the service by themselves

Printed: `serving word_count`, and a line for each call. The end: Ctrl-C.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the module lies

from pycoslite import RPS, Pycos, Task  # noqa: E402


def word_count(text, task=None):
    """Counts words; it could wait, receive and send like any task."""
    print("%s: %r" % (task, text), flush=True)
    yield task.sleep(0.01)
    if not text:
        raise ValueError("there is no text")
    return len(text.split())


def stay(task=None):
    """Keeps the program open, for it waits for calls only."""
    print("serving word_count", flush=True)
    yield task.receive()


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(__doc__)
    Pycos(name="word counter")          # an option starts the network, and the search for others
    RPS(word_count).register()
    Task(stay)
