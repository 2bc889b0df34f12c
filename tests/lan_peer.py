"""A process for tests of networks: python3 lan_peer.py [option=value ...], which are options of `Pycos`, or loss=0.3:
so many of the datagrams it sends are lost.

It prints ``READY port``, a line ``PEER name status location`` for every peer that comes or goes, and what other such
processes say to it (``HEARD name: text``). It takes commands at its standard input, answers each with ``DONE result``,
and ends with the last line:

    peer PLACE [relay]      `Pycos.peer`
    host PLACE PORT         `Pycos.peer` of a host by way of a UDP port
    say NAME TEXT           send a text to the process of that name
    pass NAME OTHER         give NAME a reference to this process's task, which sends "reference" by way of it to OTHER
    peers                   names of those online
"""
import logging
import os
import random
import sys
from pathlib import Path

sys.path[:0] = map(str, list(Path(__file__).resolve().parents)[:2])
import pycoslite                                                        # noqa: E402  (found through the line above)
from peer_options import options_from                                   # noqa: E402  (likewise)
from pycoslite import Location, Pycos, Task                             # noqa: E402


def said(text):
    """Print a line, in one piece whatever other threads print."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def ear(task=None):
    """Prints what others say, and answers by a reference that came along."""
    task.set_daemon()
    task.register("ear")
    while True:
        name, text, reference = yield task.receive()
        said("HEARD %s: %s" % (name, text))
        if reference is not None:
            reference.send((Pycos().name, "by reference", None))


def watch(task=None):
    """Prints who comes and goes."""
    task.set_daemon()
    Pycos().peer_status(task)
    while True:
        status = yield task.receive()
        said("PEER %s %d %r" % (status.name, status.status, status.location))


def on_peer(place, relay="", task=None):
    """See above."""
    return (yield Pycos().peer(Location.parse(place), relay=bool(relay)))


def on_host(host, port, task=None):
    """See above."""
    return (yield Pycos().peer(host, udp_port=int(port)))


def find(name):
    """Reference to the ear of a process."""
    location = yield Pycos().locate(name, 10)
    return (yield Task.locate("ear", location, 10))


def on_say(name, text, task=None):
    """See above."""
    found = yield find(name)
    return (yield found.deliver((Pycos().name, text, None), 10))


def on_pass(name, third, task=None):
    """Give `name` a reference to a task of `third`, which it may never have heard of."""
    found = yield find(name)
    reference = yield find(third)
    return (yield found.deliver((Pycos().name, "use it", reference), 10))


def lose(share):
    """From now on that share of the datagrams sent here is lost."""
    send, chance = pycoslite.Discovery._send, random.Random(os.getpid()).random
    pycoslite.Discovery._send = lambda self, sock, data, to: chance() < share or send(self, sock, data, to)


def on_peers(task=None):
    """See above."""
    yield
    return sorted(peer.name for peer in list(Pycos().network.peers.values()) if peer.online)


def main(words):
    """Start the network, and do what the lines say."""
    options = options_from(words, tcp_port=0, secret="5e" * 32)         # a key, which does not go through scrypt
    lose(options.pop("loss", 0))
    node = Pycos(**options)
    Task(ear)
    Task(watch)
    said("READY %d" % node.location.port)
    said("LOCATIONS %s" % node.locations)
    for line in sys.stdin:
        command, *arguments = line.split()
        said("DONE %s" % Task(globals()["on_" + command], *arguments).value())
    node.terminate()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stdout)
    main(sys.argv[1:])
