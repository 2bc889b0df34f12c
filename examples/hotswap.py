"""A running task gets new code: same task, same mailbox.

    python3 examples/hotswap.py

Printed: "square ..." for the numbers 1 to 3, "cube ..." for 4 to 6, and that the task is the same.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where pycoslite.py lies

from pycoslite import HotSwapException, Task  # noqa: E402


def square(task=None):
    task.hot_swappable(True)                        # from here on it may be replaced, between two messages
    try:
        while True:
            number = yield task.receive()
            print("square of %d: %d" % (number, number ** 2))
    except HotSwapException:
        print("square gives way")
        raise                                       # catching it would mean to refuse


def cube(task=None):
    while True:
        number = yield task.receive()
        if number is None:
            return
        print("cube of %d: %d" % (number, number ** 3))


def main(task=None):
    worker = Task(square)
    before = worker.id
    for number in (1, 2, 3):
        worker.send(number)
    yield task.sleep(0.1)                           # time for the old code to do these
    worker.hot_swap(cube)
    for number in (4, 5, 6, None):
        worker.send(number)
    yield worker.finish()
    print("%s is still the same task: %s" % (worker, worker.id == before))


Task(main)
