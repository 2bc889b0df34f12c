"""Calls that block run in threads, while tasks go on.

    python3 examples/thread_pool.py

Printed: "tick" lines while four blocking calls sleep in two threads, "call N done", and what became of a failing one.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where pycoslite.py lies

import time  # noqa: E402

from pycoslite import AsyncThreadPool, Task  # noqa: E402


def blocking(number):
    time.sleep(0.2)                                 # stands for a library that knows nothing of tasks
    return number * number


def caller(pool, number):
    result = yield pool.async_task(blocking, number)
    print("call %d done: %d" % (number, result))


def ticker(task=None):
    task.set_daemon()
    while True:
        print("tick")
        yield task.sleep(0.1)


def failing(pool):
    try:
        yield pool.async_task(int, "no number")
    except ValueError as error:
        print("raised in the task:", error)


with AsyncThreadPool(2) as pool:                    # ends the threads when all calls are done
    Task(ticker)
    tasks = [Task(caller, pool, n) for n in range(4)] + [Task(failing, pool)]
    for task in tasks:
        task.value()                                # waits in the main thread; in a task it is: yield task.finish()
