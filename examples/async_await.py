"""Tasks written with async and await; they and generator tasks work together.

    python3 examples/async_await.py

Printed: "worker N had the lock" three times, in order, then "echo: HELLO" and "3 results: [0, 1, 4]".
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where pycoslite.py lies

from pycoslite import Lock, Task  # noqa: E402


def echo(task=None):                                # a generator task ...
    sender, text = yield task.receive()
    sender.send("echo: " + text.upper())


async def worker(number, lock, task=None):
    async with lock:
        await task.sleep(0.01)
        print("worker %d had the lock" % number)
    return number ** 2


async def main(task=None):                          # ... and an async one
    lock = Lock()
    workers = [Task(worker, n, lock) for n in range(3)]
    results = [await w.finish() for w in workers]
    Task(echo).send((task, "hello"))
    print(await task.receive())
    print("%d results: %r" % (len(results), results))


Task(main)
