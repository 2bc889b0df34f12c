"""Ten clients send three messages each to one server and get answers.

    python3 examples/client_server.py

Printed: "request N of client M: ..." thirty times, N from 1 to 30, then "client M: 3 answers" ten times in some order.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where pycoslite.py lies

from pycoslite import Task  # noqa: E402


def server(task=None):
    task.set_daemon()                               # the program may end although this loop does not
    count = 0
    while True:
        client, number, text = yield task.receive()
        count += 1
        print("request %d of client %d: %s" % (count, number, text))
        client.send(text.upper())


def client(number, server_task, task=None):
    answers = []
    for word in ("good", "better", "best"):
        server_task.send((task, number, word))
        answers.append((yield task.receive()))
    assert answers == ["GOOD", "BETTER", "BEST"]
    print("client %d: %d answers" % (number, len(answers)))


server_task = Task(server)
for n in range(10):
    Task(client, n, server_task)
