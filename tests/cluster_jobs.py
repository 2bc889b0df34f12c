"""Jobs for the tests of clusters; a module of the user's own, which travels to the servers by itself."""
import ctypes
import os
import signal
import sys
import time

import dispycos_lite
import pycoslite


def double(number):
    return number * 2


def where():
    """Name and process id of the server."""
    return dispycos_lite.current_server(), os.getpid()


def why_here():
    """Where the server can be reached."""
    return repr(pycoslite.running_network().locations[0])


def touch(path):
    """Leave a mark, with the number of earlier ones: it tells how often a job has run."""
    with open(path, "a") as file:
        file.write("%d\n" % os.getpid())


def nap(seconds, path=None):
    """Mark that it runs, then sleep."""
    if path is not None:
        touch(path)
    time.sleep(seconds)
    return seconds


def hold(path, until):
    """Mark that it runs, then wait for a file."""
    touch(path)
    while not os.path.exists(until):
        time.sleep(0.005)
    return os.getpid()


def spin(path=None):
    """Compute for ever, and never yield."""
    if path is not None:
        touch(path)
    while True:
        pass


def compute(seconds):
    """Compute for so long without giving anything else the interpreter."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))
    return seconds


def kill_first_time(path):
    """Take the server along, but only once."""
    touch(path)
    with open(path) as file:
        if len(file.readlines()) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def fail(text):
    raise ValueError(text)


def leave(code=None):
    sys.exit(code)


def leave_at_once():
    os._exit(3)


def crash():
    ctypes.string_at(0)


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def recurse():
    return recurse() + 1


def raise_it(kind):
    raise kind("on purpose")


def unpicklable():
    return (n for n in range(3))


def large(size):
    return b"x" * size


class Awkward(Exception):
    """Cannot be made from its args, so that it does not unpickle."""

    def __init__(self, first, second):
        super().__init__("%s and %s" % (first, second))


def raise_awkward():
    raise Awkward("this", "that")


class BreaksOnArrival:
    """Unpickles with an error."""

    def __reduce__(self):
        return fail, ("not unpicklable",)


def breaks_on_arrival():
    return BreaksOnArrival()


class Pig:
    """Pickles with an exception that is meant to end a program."""

    def __reduce__(self):
        raise KeyboardInterrupt


def pig():
    return Pig()


def steps(count, task=None):
    """A generator function."""
    total = 0
    for number in range(count):
        yield task.sleep(0.001)
        total += number
    return total


def endless(path, task=None):
    touch(path)
    while True:
        yield task.sleep(0.01)


async def awaits(number):
    return number + 1
