"""Networks of several hosts on this machine, made of network namespaces: wires, routers, NAT. Needs root and Linux.

    with lan(wire("ac"), wire("bc", ipv4=False)) as (a, b, c):      # c has two interfaces, the second with IPv6 alone
        c.forwards()                                                # c is a router now, and ...
        a.route(b.on[1].address6, by=c.on[0].address6)              # ... a knows that it is the way to b
        with a.running([...]), b.running([...]):
            ...

A host is named by its letter; the n-th wire gives it `on[n]`, an interface with its addresses there. There are no
default routes, no name service, no names in /etc/hosts. Everything is removed at the end.

As a program, ``python3 lan.py HOST:PORT HOST:PORT``, it is a gateway: it prints READY and hands connections made to the
first address on to the second one, and knows nothing of what they carry.
"""
from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import unittest
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.support import Host, empty_hosts     # noqa: E402  (found through the line above)


class Wire(NamedTuple):
    """A network: the letters of its hosts, and what addresses they have there."""

    hosts: str
    ipv4: bool
    ipv6: bool
    link_local: bool
    broadcast: bool


def wire(hosts: str, *, ipv4: bool = True, ipv6: bool = True, link_local: bool = True, broadcast: bool = True) -> Wire:
    """A wire between the hosts of these letters. Without `ipv6` they have link-local addresses, or none at all; without
    `broadcast` IPv4 has no broadcast address there."""
    return Wire(hosts, ipv4, ipv6, link_local or ipv6, broadcast)


class Plug(NamedTuple):
    """A host's place at a wire; an address that it does not have there is ''."""

    interface: str
    address: str
    address6: str
    link_local: str         # with the interface, as it is written on this host


class Machine(Host):
    """A host of a `lan`. Attribute `on`: number of a wire -> `Plug`."""

    on: Dict[int, Plug]

    def plug(self, number: int, on: Wire, interface: str) -> None:
        """Give an interface that is here its addresses, and switch it on."""
        n = on.hosts.index(self.letter) + 1
        plug = Plug(interface, "10.1.%d.%d" % (number + 1, n) if on.ipv4 else "",
                    "fd00:1:%x::%x" % (number + 1, n) if on.ipv6 else "",
                    "fe80::%x:%x%%%s" % (number + 1, n, interface) if on.link_local else "")
        self.on[number] = plug
        self.ip("link", "set", interface, "addrgenmode", "none", "up")
        if plug.address:
            self.ip("address", "add", plug.address + "/24", *(["broadcast", "+"] if on.broadcast else []),
                    "dev", interface)
        for address in filter(None, (plug.address6, plug.link_local.partition("%")[0])):
            self.ip("address", "add", address + "/64", "dev", interface, "nodad")

    @property
    def letter(self) -> str:
        """What the test calls it."""
        return self.name[-1]

    def forwards(self) -> None:
        """Be a router."""
        for switch in "ipv4/ip_forward", "ipv6/conf/all/forwarding":
            self.run(["sh", "-c", "echo 1 > /proc/sys/net/" + switch])

    def route(self, to: str, by: str) -> None:
        """Reach the network of an address by way of a router."""
        self.ip("route", "add", to.rpartition(":")[0] + ":/64" if ":" in to else to.rpartition(".")[0] + ".0/24",
                "via", by)

    def block_udp(self) -> None:
        """Let no datagram leave this host, not even for itself."""
        for family in ("-4", "-6"):
            self.ip(family, "rule", "add", "pref", "10", "lookup", "local")
            self.ip(family, "rule", "add", "pref", "5", "ipproto", "udp", "prohibit")
            self.ip(family, "rule", "del", "pref", "0")


@contextlib.contextmanager
def lan(*wires: Wire) -> Iterator[List[Machine]]:
    """The hosts of these wires, in the order of their letters, which begin with "a". Raises SkipTest, with the reason,
    where this cannot be had."""
    if any(each.link_local for each in wires) and not os.path.exists("/proc/net/if_inet6"):
        raise unittest.SkipTest("this kernel has no IPv6")
    letters = sorted(set("".join(each.hosts for each in wires)))
    with empty_hosts(len(letters) + 1) as spaces:
        hub = spaces.pop()                      # holds the wires
        machines = []
        for space in spaces:
            machine = Machine(space.name, "", "", "")
            machine.on = {}
            machine.ip("link", "set", "lo", "up")
            machines.append(machine)
        for number, each in enumerate(wires):
            hub.ip("link", "add", "w%d" % number, "type", "bridge", "mcast_snooping", "0")
            hub.ip("link", "set", "w%d" % number, "up")
            for machine in machines:
                if machine.letter in each.hosts:
                    end = "w%d%s" % (number, machine.letter)
                    hub.ip("link", "add", end, "type", "veth", "peer", "eth%d" % number, "netns", machine.name)
                    hub.ip("link", "set", end, "master", "w%d" % number, "up")
                    machine.plug(number, each, "eth%d" % number)
        yield machines


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            data = source.recv(65536)
            if not data:
                break
            target.sendall(data)
    for sock in source, target:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _hand_on(listener: socket.socket, place: Any) -> None:
    while True:
        near, _ = listener.accept()
        try:
            far = socket.create_connection(place)
        except OSError:
            near.close()
            continue
        for pair in (near, far), (far, near):
            threading.Thread(target=_copy, args=pair, daemon=True).start()


def main(near: str, far: str) -> None:
    """Be a gateway until killed."""
    host, _, port = near.rpartition(":")
    listener = socket.create_server((host, int(port)))
    host, _, port = far.rpartition(":")
    print("READY", flush=True)
    _hand_on(listener, (host, int(port)))


if __name__ == "__main__":
    main(*sys.argv[1:])
