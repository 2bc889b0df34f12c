"""What the tests of the client run at servers. A module of its own, so that no more than this travels."""
from __future__ import annotations

import os
import threading
import time

LOADED = []                     # filled by node_setup


class Point:
    """Goes both ways in messages."""

    def __init__(self, x):
        self.x = x


def double(n):
    """A plain function, for components."""
    return 2 * n


def square(n, task=None):
    """A CPU task."""
    yield task.sleep(0.01)
    return n * n


def total(*numbers, scale=1, task=None):
    """Takes any arguments."""
    yield
    return sum(numbers) * scale


async def square_async(n):
    """The same as an async function."""
    return n * n


def place(task=None):
    """Where it runs: process id, names of the working directory and of what is beside it."""
    yield
    return os.getpid(), os.path.basename(os.getcwd()), sorted(os.listdir(".."))


def read_file(name, task=None):
    """A file that was sent as a component, as jobs find it."""
    yield
    with open(os.path.join("..", name)) as file:
        return file.read(), os.stat(file.fileno()).st_mode & 0o777


def file_size(name, task=None):
    """Bytes of a file that was sent as a component."""
    yield
    return os.path.getsize(os.path.join("..", name))


def measure_file(client, task=None):
    """Waits for the name of a file that was sent to its server, and sends one back that tells how long it is."""
    import pycoslite
    name = yield task.receive()
    with open(name, "rb") as file, open("size-" + name, "w") as result:
        result.write(str(len(file.read())))
    return (yield pycoslite.Pycos().send_file(client.location, "size-" + name, dir="results"))


def wait(client, task=None):
    """Says that it is there, then waits for a message and gives that."""
    client.send(("waits", task, os.getpid()))
    return (yield task.receive())


def until_there(path, client, task=None):
    """Says that it is there, then waits for a file, and says which process it was."""
    client.send("waits")
    while not os.path.exists(path):
        yield task.sleep(0.01)
    client.send(os.getpid())


def answers(name, client, task=None):
    """Can be found by its name; gives the first message it gets."""
    task.register(name)
    client.send("waits")
    return (yield task.receive(20))


def finds(name, timeout, task=None):
    """Looks for a task of that name at another server, and says something to it; None when there is none."""
    import pycoslite
    other = yield pycoslite.Task.locate(name, timeout=timeout)
    if other is not None:
        other.send("found")
    return other is not None


def echo_points(client, task=None):
    """Answers points, with another point each."""
    while True:
        point = yield task.receive()
        if point is None:
            return "done"
        client.send(Point(point.x + 1))


def fail(text, task=None):
    """Raises."""
    yield
    raise ValueError(text)


def fail_plainly(text):
    """The same of a plain function."""
    raise ValueError(text)


def give_lock(task=None):
    """A value that cannot travel."""
    yield
    return threading.Lock()


def interruptible(client, task=None):
    """Counts until it is stopped, and gives the count."""
    client.send("counts")
    count = 0
    try:
        while True:
            count += 1
            yield task.sleep(0.005)
    except KeyboardInterrupt:
        return "interrupted"


def stubborn(client, task=None):
    """Does not yield, and so cannot be stopped but with its process."""
    client.send("sleeps")
    yield
    time.sleep(60)


def die(task=None):
    """Takes its server along."""
    yield task.sleep(0.05)              # that it has started is known
    os.kill(os.getpid(), 9)


def close_own_server(restart, task=None):
    """Uses what servers offer to tasks."""
    yield
    dispycos_close_server(restart=restart)              # noqa: F821
    return os.getpid()


def close_own_node(task=None):
    """Likewise."""
    yield
    dispycos_close_node()                               # noqa: F821
    return os.getpid()


def load_node(word, status=0, task=None):
    """A node_setup: what it leaves in memory and in its directory, all servers have."""
    LOADED.append((word, os.getpid()))
    with open("loaded.txt", "w") as file:
        file.write(word)
    yield task.sleep(0.01)
    return status


def load_server(word, task=None):
    """A server_setup; ends with 0 as old programs do."""
    LOADED.append((word, os.getpid()))
    yield 0


def loaded(task=None):
    """What the two have left."""
    yield
    return list(LOADED), os.getpid()
