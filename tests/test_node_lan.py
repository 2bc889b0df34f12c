"""Nodes and their clients on different hosts, whatever the networks between them are."""
from __future__ import annotations

import sys
from typing import Any

from tests.lan import Machine, lan, wire
from tests.support import ROOT
from tests.test_pycoslite_lan import GATEWAY, LanTestCase

CLIENT = """
import os, sys
sys.path.insert(0, %r)
import pycoslite
from dispycos_lite import Client, Scheduler

def where():
    import os
    return os.readlink("/proc/self/ns/net")

def main(task=None):
    client = Client([where])
    yield client.schedule()
    while len((yield client.nodes())) < int(sys.argv[2]):
        yield task.sleep(0.05)
    for node in (yield client.nodes()):
        print("job", (yield client.run_result_at(node, where)), flush=True)
    yield client.close()

# It waits for nodes, and does without those of its own machine. With several one is named, which knows the others.
Scheduler(nodes=sys.argv[1].split(), relay_nodes=int(sys.argv[2]) > 1)
pycoslite.Task(main).value(60)
pycoslite.Pycos().terminate()
""" % str(ROOT)
READY = r"listening at (.*)"


class NodeTest(LanTestCase):
    """A job of a client on one host runs on another one."""

    def setUp(self) -> None:
        self.client = self.temp_dir() / "client.py"
        self.client.write_text(CLIENT)

    def node(self, host: Machine, *options: Any) -> Any:
        """A node program there; in a directory of its own, as the hosts have one disk."""
        command = [sys.executable, "dispycosnode_lite.py", "--cpus", "1", "--daemon", "--dest_path", self.temp_dir(),
                   *options]
        return self.enter(host.running(command, ready=READY))

    def uses(self, client: Machine, *nodes: Machine, named: str = "") -> None:
        """A client on the one host has jobs done on the others."""
        output = client.run([sys.executable, self.client, named, len(nodes)]).stdout
        self.assertNotIn("Traceback", output)
        for node in nodes:
            place = node.run([sys.executable, "-c", "import os; print(os.readlink('/proc/self/ns/net'))"]).stdout
            self.assertIn("job " + place.strip(), output)

    def test_behind_nat(self) -> None:
        """The node and its server have a port of the gateway each, as on rented machines."""
        a, b, c = self.enter(lan(wire("ac"), wire("bc")))
        outside, inside = c.on[1].address, a.on[0].address
        for port in 9706, 9707:
            self.enter(c.running([sys.executable, GATEWAY, "%s:%d" % (outside, port), "%s:%d" % (inside, port)],
                                 ready="READY"))
        node = self.node(a, "--ext_ip_addr", outside, "--tcp_ports", "9706")
        self.assertEqual(node.match.group(1), outside + ":9706")
        self.uses(b, a, named=outside + ":9706")

    def test_found_by_ipv6_alone(self) -> None:
        a, b = self.enter(lan(wire("ab", ipv4=False)))
        self.node(a)
        self.uses(b, a)

    def test_found_by_link_local_addresses_alone(self) -> None:
        a, b = self.enter(lan(wire("ab", ipv4=False, ipv6=False)))
        self.node(a)
        self.uses(b, a)

    def test_found_by_ipv4_multicast(self) -> None:
        """Neither end has a broadcast address; the client hears the node's announcement."""
        a, b = self.enter(lan(wire("ab", ipv6=False, link_local=False, broadcast=False)))
        self.node(a, "--ipv4_udp_multicast", "--ping_interval", "2")
        self.uses(b, a)

    def test_named_where_udp_is_blocked(self) -> None:
        a, b = self.enter(lan(wire("ab")))
        a.block_udp()
        self.node(a)
        self.uses(b, a, named=a.on[0].address)

    def test_a_node_announces_the_client_on_its_own_network(self) -> None:
        """--relay_nodes: the client names one node of another network, and has two."""
        a, b, c = self.enter(lan(wire("ac"), wire("bc")))
        c.forwards()
        a.route(b.on[1].address, by=c.on[0].address)
        b.route(a.on[0].address, by=c.on[1].address)
        self.node(c)
        self.node(b, "--dest_path", self.temp_dir())    # hosts have all but their networks in common
        self.uses(a, b, c, named=c.on[0].address)


if __name__ == "__main__":
    import unittest
    unittest.main()
