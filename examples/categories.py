"""Messages by category: urgent ones are served first, whatever the order in which they came.

    python3 examples/categories.py

Printed: the urgent (even) numbers in order, then the others.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where pycoslite.py lies

from pycoslite import CategorizeMessages, Task  # noqa: E402


def urgency(number):
    return "urgent" if number % 2 == 0 else None    # None: no category, or ask the next function


def server(task=None):
    box = CategorizeMessages(task)
    box.add(urgency)
    while True:
        number = yield box.receive("urgent", timeout=0.1)
        if number is None:                          # none for a while: time for one of the others
            number = yield box.receive(timeout=0.1)
            if number is None:
                return
            print("ordinary:", number)
        else:
            print("urgent:", number)


task = Task(server)
for n in (1, 3, 2, 5, 4, 7, 6):
    task.send(n)
