"""The other process of the network tests: python3 network_peer.py [--name=N] [--secret=S] [option=value ...]

It listens at 127.0.0.1, prints ``READY host:port``, and runs a task registered as "agent" that does what its messages say;
each is a tuple whose first item names one of the functions below. It ends with the message ("end",).
"""
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path

sys.path[:0] = map(str, list(Path(__file__).resolve().parents)[:2])
import pycoslite                                                        # noqa: E402  (found through the line above)
from peer_options import options_from                                   # noqa: E402  (likewise)
from pycoslite import Task                                              # noqa: E402

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
SECRET = "7e57" * 16                        # a key, which does not have to go through scrypt
PICKLED_NOWHERE = threading.Lock()
received = []


class Broken(Exception):
    """What a failing task raises; the tests' process has no such class."""


def returns(value, task=None):
    """A task that waits for a message and returns `value`."""
    yield task.receive()
    return value


def fails(task=None):
    """A task that waits for a message and fails."""
    yield task.receive()
    raise Broken("as it was told")


def unpicklable(task=None):
    """A task that waits for a message and returns what cannot be sent."""
    yield task.receive()
    return PICKLED_NOWHERE


def silent(task=None):
    """A task that only waits."""
    while True:
        yield task.receive()


def flood(target, count, size=0, task=None):
    """A task that sends numbers, a few between two yields, each with `size` bytes behind it."""
    filler = bytes(size)
    for number in range(count):
        target.send((number, filler) if size else number)
        if not number % 20:
            yield


def on_echo(asker, value, task):
    """Send `value` back."""
    asker.send(value)


def on_number(number, *rest):
    """Note a number; it may have company."""
    received.append(number)


def on_report(asker, task):
    """Send how many numbers came, and whether they were 0, 1, 2 ..."""
    asker.send((len(received), received == list(range(len(received)))))


def on_connections(asker, task):
    """Send how many connections there are to who asks."""
    asker.send(asker.peer.connections)


def on_spawn(asker, function, args, task):
    """Start one of the tasks above and send its reference."""
    asker.send(Task(globals()[function], *args))


def on_hog(asker, seconds, task):
    """Compute without a yield; say so before."""
    asker.send("hogging")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def on_register(name, task):
    """Take one more name."""
    task.register(name)


def on_pid(asker, task):
    """Send the process id."""
    asker.send(os.getpid())


def on_pass_on(target, message, task):
    """Send `message` to a task that may live anywhere."""
    target.send(message)


def on_last_words(target, count, task):
    """Send some messages and end the program right after."""
    for number in range(count):
        target.send(number)
    finish()


def on_memory(asker, task):
    """Send this process's resident memory in KiB, now and at its highest."""
    with open("/proc/self/status") as file:
        words = dict(line.split(":", 1) for line in file)
    asker.send((int(words["VmRSS"].split()[0]), int(words["VmHWM"].split()[0])))


def on_end(task):
    """End the program."""
    finish()


def on_size(asker, data, task):
    """Send back how long `data` is, and its ends."""
    asker.send((len(data), bytes(data[:1]), bytes(data[-1:])))


def agent(task=None):
    """Does what it is told."""
    task.set_daemon()
    task.register("agent")
    while True:
        message = yield task.receive()
        globals()["on_" + message[0]](*message[1:], task)


def main(words, begin=lambda: None, listen=None):
    """Start the network with the options given, call `begin`, and wait for the end. `listen()` is what reads the
    standard input, if that is to be read."""
    node = pycoslite.Pycos(**options_from(words, host="127.0.0.1", tcp_port=0, name="agent", secret=SECRET,
                                          discover_peers=False))
    begin()
    Task(agent)
    signal.signal(signal.SIGTERM, lambda *_: finish())              # an orderly end
    signal.set_wakeup_fd(_wake.fileno())                        # at a lock the main thread might miss it
    sys.stdout.write("READY %r\n" % node.location)              # in one write, as the log is being written, too
    sys.stdout.flush()
    if listen:                                  # it reads the input, and sees its end
        threading.Thread(target=listen, daemon=True).start()
    watched = [_woken] if listen else [_woken, 0]
    while not finished.is_set():
        ready, _, _ = select.select(watched, [], [])
        if 0 in ready and not os.read(0, 1):    # the test has ended, killed perhaps
            finished.set()
        elif _woken in ready:
            _woken.recv(64)


def finish():
    """End the program."""
    finished.set()
    _wake.send(b"\0")


finished = threading.Event()
_woken, _wake = socket.socketpair()
_wake.setblocking(False)
if __name__ == "__main__":
    main(sys.argv[1:])
