"""Objects of the program's own classes, sent to a task at a server and back.

    python3 dispycosnode_lite.py                            on each machine to use
    python3 examples/dispycos_messages.py                   PYCOSLITE_EMBEDDED=-1 before it: no node needed

Printed: `WORD -> WORD` for each word that was sent, then how many the task at the server answered.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the modules lie

import pycoslite  # noqa: E402
from dispycos_lite import Client  # noqa: E402


class Word:
    """Goes both ways; the server has the class because it is a component."""

    def __init__(self, text):
        self.text = text

    def __repr__(self):
        return "Word(%r)" % self.text


def reverser(client, task=None):
    """Runs at a server: answers each word to the client's task until None comes."""
    count = 0
    while True:
        word = yield task.receive()
        if word is None:
            return count
        client.send(Word(word.text[::-1]))
        count += 1


def client_task(task=None):
    client = Client([Word, reverser])
    yield client.schedule()
    rtask = yield client.io_rtask(reverser, task)       # it mostly waits, so it needs no CPU of its own
    for text in ("stressed", "drawer", "level"):
        word = Word(text)
        rtask.send(word)
        print(word, "->", (yield task.receive()))
    rtask.send(None)
    print("the task answered %d words" % (yield rtask()))
    yield client.close()


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(__doc__)
    pycoslite.Task(client_task)
