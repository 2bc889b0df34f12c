"""Every kind of message between two processes, whatever their Pythons: both run this program.

    python3 every_kind.py serve FOLDER          offers what the kinds need, and prints ``READY host:port``
    python3 every_kind.py try HOST:PORT FOLDER  runs all kinds with that process, and prints ``ok NAME`` for each, until
                                                one has ``FAILED NAME``, and why
    python3 every_kind.py again HOST:PORT FOLDER    does so again and again, until it is killed, with ``ROUND N`` after
                                                each time, and breaks all connections then

A kind is a task that checks what it gets by value. FOLDER is where received files go. See test_pycoslite_mixed.py.
"""
from __future__ import annotations

import array
import os
import pickle
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, Callable, Dict

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import pycoslite                                                        # noqa: E402  (found through the line above)
from pycoslite import RPS, Channel, Location, MonitorStatus, PeerStatus, Pycos, Task     # noqa: E402  (likewise)

COME_S = 60
KINDS: Dict[str, Callable] = {}         # name -> generator function or async function of (location, folder)
LARGE = 3_000_000


class Point:
    """A class of the program, of which both ends have their own."""

    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and other.x == self.x


VALUES = (None, True, 0, -1, 2 ** 200, 1.5, float("inf"), 3 + 4j, "text \u20ac \U0001f40d \0", b"\0\xff",
          bytearray(b"b"), (), [1, [2]], {"a": {1, 2}, None: frozenset((3,))}, Point(7), range(3), slice(1, None, 2),
          Ellipsis, int, len, Location("h", 1), Location("fe80::1", 9705), array.array("d", (1.0, 2.0)))
FAILURES = (ValueError("wrong", 3), KeyError("k"), OSError(2, "No such file", "f"), StopIteration(5),
            UnicodeDecodeError("utf8", b"\xff", 0, 1, "r"), pycoslite.PeerLost("gone"),
            pycoslite.OperationTimeout("late"))


def kind(function: Callable) -> Callable:
    """Decorator: `function` is a kind."""
    KINDS[function.__name__] = function
    return function


def same(got: Any, expected: Any) -> None:
    """Raises with both unless they are equal, and of one type."""
    if type(got) is not type(expected) or got != expected:
        raise AssertionError("got %.200r, expected %.200r" % (got, expected))


# -- what the serving end offers ---------------------------------------------------------------------------------------


def echo(task=None):
    """Sends back what comes with the task that asks."""
    task.set_daemon()
    task.register("echo")
    while True:
        asker, value = yield task.receive()
        asker.send(value)


async def async_echo(task=None):
    """The same as an asynchronous function."""
    task.set_daemon()
    task.register("async echo")
    while True:
        asker, value = await task.receive()
        await asker.deliver(value)


def subscriber(channel, task=None):
    """Answers what is sent to the channel with its name."""
    task.set_daemon()
    yield channel.subscribe(task)
    while True:
        asker, value = yield task.receive()
        asker.send((channel.name, value))


def double(number, by=2):
    """A service."""
    yield
    return number * by


async def add(one, other, task=None):
    """A service that is an asynchronous function, and waits for a message."""
    return one + other + await task.receive()


def fails(number):
    """A service that fails."""
    yield
    raise ZeroDivisionError("told to", number)


def lasts(task=None):
    """A service that ends when it is made to."""
    yield task.receive()


def offer() -> None:
    """Begin to serve."""
    for service in (double, add, fails, lasts):
        RPS(service).register()
    news = Channel("news", lambda _name, message: message)
    news.register()
    for function, args in ((echo, ()), (async_echo, ()), (subscriber, (news,))):
        Task(function, *args)


# -- the kinds ---------------------------------------------------------------------------------------------------------


def asked(target, value, task):
    """What `target` sends back."""
    target.send((task, value))
    return (yield task.receive(COME_S, "nothing came"))


def found(kind_of, name, location):
    """A reference, which must be found there."""
    reference = yield kind_of.locate(name, location, COME_S)
    if reference is None:
        raise AssertionError("%s %r is not found" % (kind_of.__name__, name))
    return reference


@kind
def send_and_locate_task(location, _folder, task=None):
    """Messages to a task and from it; each value comes back as it was."""
    target = yield found(Task, "echo", location)
    same(repr(target.location), repr(location))
    for value in VALUES:
        same((yield asked(target, value, task)), value)


@kind
async def async_task(location, _folder, task=None):
    """Both ends are asynchronous functions."""
    target = await Task.locate("async echo", location, COME_S)
    for value in VALUES:
        same(await target.deliver((task, value), COME_S), 1)
        same(await task.receive(COME_S), value)


@kind
def deliver(location, _folder, task=None):
    """1 when the message is in the mailbox; -1 when the task has ended."""
    target = yield found(Task, "echo", location)
    same((yield target.deliver((task, "delivered"), COME_S)), 1)
    same((yield task.receive(COME_S)), "delivered")
    service = yield found(RPS, "double", location)
    ended = yield service(1)
    same((yield ended.finish()), 2)
    same((yield ended.deliver("late", COME_S)), -1)


@kind
def references(location, _folder, task=None):
    """References to tasks, channels and services cross and lead to the same thing."""
    target = yield found(Task, "echo", location)
    for thing in (task, target, (yield found(Channel, "news", location)), (yield found(RPS, "double", location))):
        same((yield asked(target, thing, task)), thing)
    if (yield asked(target, task, task)) is not task:
        raise AssertionError("a reference that came home is not the task itself")


@kind
def exceptions(location, _folder, task=None):
    """Exceptions as messages, by type, arguments and text."""
    target = yield found(Task, "echo", location)
    for failure in FAILURES:
        got = yield asked(target, failure, task)
        same((type(got), got.args, str(got)), (type(failure), failure.args, str(failure)))


@kind
def statuses(location, _folder, task=None):
    """MonitorStatus and PeerStatus as messages."""
    target = yield found(Task, "echo", location)
    for status in (MonitorStatus(task, StopIteration, 3), MonitorStatus("x", ValueError, "Traceback")):
        got = yield asked(target, status, task)
        same((got.info, got.type, got.value), (status.info, status.type, status.value))
    got = yield asked(target, PeerStatus(location, "n", PeerStatus.Offline), task)
    same((got.location, got.name, got.status), (location, "n", PeerStatus.Offline))


@kind
def large_buffers(location, _folder, task=None):
    """Out-of-band buffers, several in a message, writable where they were."""
    target = yield found(Task, "echo", location)
    data = os.urandom(LARGE)
    for value in (data, bytearray(data), [bytearray(data), "between", bytearray(data[::-1])],
                  array.array("B", data)):
        same((yield asked(target, value, task)), value)
    buffer = yield asked(target, pickle.PickleBuffer(bytearray(data)), task)
    same(bytes(buffer), data)


@kind
def call(location, _folder):
    """A service is called, with arguments of both sorts; its exit value comes back."""
    service = yield found(RPS, "double", location)
    same((service.name, repr(service.location)), ("double", repr(location)))
    same((yield (yield service(21)).finish()), 42)
    same((yield (yield service("ab", by=3)).finish()), "ababab")
    same((yield (yield service([Point(1)]))()), [Point(1), Point(1)])


@kind
def call_and_message(location, _folder):
    """A service that is an asynchronous function gets a message."""
    service = yield found(RPS, "add", location)
    running = yield service(1, other=2)
    running.send(4)
    same((yield running.finish()), 7)


@kind
def call_that_fails(location, _folder):
    """The exit value is a MonitorStatus, with type and traceback."""
    service = yield found(RPS, "fails", location)
    status = yield (yield service(5)).finish()
    same((type(status), status.type), (MonitorStatus, ZeroDivisionError))
    if "told to" not in str(status.value):
        raise AssertionError("no traceback in %r" % (status.value,))


@kind
def monitor(location, _folder, task=None):
    """A task there is monitored from here, and so is whatever a service starts."""
    service = yield found(RPS, "lasts", location)
    running = yield service()
    same((yield task.monitor(running)), 0)
    running.send("end")
    status = yield task.receive(COME_S)
    same((status.info == running, status.type, status.value), (True, StopIteration, "end"))
    failing = yield found(RPS, "fails", location)
    same(failing.monitor(task), 0)
    running = yield failing(1)
    status = yield task.receive(COME_S)
    same((status.info == running, status.type), (True, ZeroDivisionError))


@kind
def terminate(location, _folder):
    """A task there is ended from here."""
    service = yield found(RPS, "lasts", location)
    running = yield service()
    same(running.terminate(), 0)
    same((yield running.finish()), None)


@kind
def close_service(location, _folder, task=None):
    """What a reference has started ends with it."""
    service = yield found(RPS, "lasts", location)
    same(service.monitor(task), 0)
    running = yield service()
    same((yield service.close()), 0)
    same((yield task.receive(COME_S)).info == running, True)
    same((yield service.close()), -1)


@kind
def channel(location, _folder, task=None):
    """Subscribe, send, deliver and unsubscribe; the subscriber there answers, and we hear ourselves."""
    news = yield found(Channel, "news", location)
    same((news.name, repr(news.location)), ("news", repr(location)))
    same((yield news.subscribe(task)), 0)
    same((yield news.deliver((task, "one"), COME_S, 2)), 2)
    got = [(yield task.receive(COME_S)), (yield task.receive(COME_S))]
    same(sorted(got, key=repr), sorted([("news", "one"), (task, "one")], key=repr))
    same(news.send((task, "two")), 0)
    got = [(yield task.receive(COME_S)), (yield task.receive(COME_S))]
    same(sorted(got, key=repr), sorted([("news", "two"), (task, "two")], key=repr))
    same((yield news.unsubscribe(task)), 0)
    same((yield news.deliver((task, "three"), COME_S)), 1)
    same((yield task.receive(COME_S)), ("news", "three"))


@kind
def file(location, folder):
    """A file is sent, is there already, is deleted."""
    path = Path(folder) / ("sent by %d.%d" % sys.version_info[:2])
    path.write_bytes(os.urandom(LARGE))
    node = Pycos()
    same((yield node.send_file(location, str(path), dir="d", overwrite=True, timeout=COME_S)), 0)
    same((yield node.send_file(location, str(path), dir="d", timeout=COME_S)), 1)
    same((yield node.del_file(location, str(path), dir="d", timeout=COME_S)), 0)


@kind
def peers(location, _folder, task=None):
    """Who comes and goes is told; a peer that was parted with is one again when it is asked to."""
    node = Pycos()
    same(((yield node.peer(location)), location in node.peers()), (0, True))
    same((yield node.locate("served", COME_S)), location)
    same(node.peer_status(task), 0)
    same((yield told(location, task)), PeerStatus.Online)
    same((yield node.close_peer(location, COME_S)), 0)
    same((yield told(location, task)), PeerStatus.Offline)
    same((yield node.peer(location)), 0)
    same((yield told(location, task)), PeerStatus.Online)
    node.peer_status(None)
    target = yield found(Task, "echo", location)
    same((yield asked(target, "again", task)), "again")


def told(location, task):
    """The next status of that process."""
    status = yield task.receive(COME_S)
    same((status.name, status.location), ("served", location))
    return status.status


# -- the program -------------------------------------------------------------------------------------------------------


def run_all(location: Location, folder: str) -> bool:
    """Run the kinds one after the other, until one fails; whether none has."""
    for name, function in KINDS.items():
        task = Task(function, location, folder)
        result = task.value(2 * COME_S)
        if task.is_alive():
            print("FAILED %s\nit has not ended" % name)
            return False
        if isinstance(result, MonitorStatus) and result.info is task:       # and not what it has looked at last
            print("FAILED %s\n%s" % (name, result.value))
            return False
        print("ok %s" % name, flush=True)
    return True


def run_again(location: Location, folder: str) -> None:
    """Run all kinds, until one fails; between two rounds all connections break."""
    network, number = Pycos().network, 0

    def cut() -> None:
        for link in list(network.links):
            link.fail(ConnectionError("cut by the test"))
    while run_all(location, folder):
        network.post(cut)
        number += 1
        print("ROUND %d" % number, flush=True)


def main(role: str, *words: str) -> None:
    """See above."""
    node = Pycos(host="127.0.0.1", tcp_port=0, name="served" if role == "serve" else "tries", secret="tests",
                 discover_peers=False, dest_path=os.path.join(words[-1], "received by " + role))
    try:
        if role == "serve":
            ended = threading.Event()
            signal.signal(signal.SIGTERM, lambda *_: ended.set())
            offer()
            print("READY %r" % node.location, flush=True)
            ended.wait()
        else:
            (run_again if role == "again" else run_all)(Location.parse(words[0]), words[1])
    except Exception:
        traceback.print_exc()
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
