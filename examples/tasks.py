"""Ten tasks sleep at the same time: together they take as long as the longest of them.

    python3 examples/tasks.py

Printed: "task N sleeps ..." ten times, then "task N is done" ten times, the shortest sleep first.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where pycoslite.py lies

from pycoslite import Task  # noqa: E402


def sleeper(number, seconds, task=None):            # `task` is the Task that runs this function
    print("task %d sleeps %.2f seconds" % (number, seconds))
    yield task.sleep(seconds)
    print("task %d is done" % number)


for number in range(10):
    Task(sleeper, number, 0.05 * (10 - number))     # it begins at once; the program ends after the last one
