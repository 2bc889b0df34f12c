"""Processes on several hosts find each other, whatever the networks between them are; hosts are network namespaces."""
from __future__ import annotations

import contextlib
import itertools
import sys
import time
from pathlib import Path
from typing import Any, Iterator, List

from tests import figures, lan as lan_module
from tests.figures import Figure
from tests.lan import Machine, lan, wire
from tests.support import PROCESS_S, Host, TestCase, empty_hosts
from tests.switch import Line, switched_hosts

PEER = Path(__file__).with_name("lan_peer.py")
GATEWAY = Path(lan_module.__file__)
# All that can be found is found by then (reliability.md, J10), on a machine that does nothing else.
FOUND_S = 10.0 if figures.SOAK else PROCESS_S


class LanTestCase(TestCase):
    """Tests whose processes run on hosts of a `lan`."""

    def enter(self, manager: Any) -> Any:
        """Enter a context manager until the end of the test."""
        value = manager.__enter__()
        self.addCleanup(manager.__exit__, None, None, None)
        return value

    def start(self, host: Host, name: str, *options: str, **how: Any) -> Any:
        """A process there, called `name`; `port` is its TCP port. `how` is for `running`."""
        command = [sys.executable, PEER, "name=" + name, *options]
        process = self.enter(host.running(command, ready=r"READY (\d+)", **how))
        process.name, process.port = name, int(process.match.group(1))
        return process

    def do(self, process: Any, command: str) -> str:
        """Have a process do something, and give its answer."""
        start = len(process.output)
        process.write(command + "\n")
        return process.wait_for(r"^DONE (.*)$", start=start).group(1)

    def meets(self, one: Any, other: Any, at: str = "") -> None:
        """They find each other, `one` sees the other `at` that address, and a message goes each way."""
        found = one.wait_for(r"^PEER %s 1 (.*):\d+$" % other.name).group(1)
        self.assertEqual(found.strip("[]"), at or found.strip("[]"))
        other.wait_for(r"^PEER %s 1 " % one.name)
        self.talks(one, other)
        self.talks(other, one)

    def talks(self, one: Any, other: Any) -> None:
        """A message gets from the one to the other."""
        self.assertEqual(self.do(one, "say %s hello" % other.name), "1")
        other.wait_for("^HEARD %s: hello$" % one.name)

    def quiet(self, *processes: Any) -> None:
        """None of them has warned."""
        for process in processes:
            self.assertNotIn("WARNING", process.output)
            self.assertNotIn("ERROR", process.output)


class DiscoveryTest(LanTestCase):
    """Who is on the same wire is found, by whatever the wire has."""

    def all_meet(self, at: str, *options: str, **wired: bool) -> None:
        """Two hosts, and three, on such a wire find each other, without a default route; `at` says which of the
        addresses is used."""
        for letters in "ab", "abc":
            with self.subTest(hosts=len(letters)):
                hosts = self.enter(lan(wire(letters, **wired)))
                processes = [self.start(host, "on_" + host.letter, *options) for host in hosts]
                for (_, one), (there, other) in itertools.combinations(zip(hosts, processes), 2):
                    address = getattr(there.on[0], at).partition("%")[0]
                    self.meets(one, other, address + ("%eth0" if at == "link_local" else ""))
                self.assertEqual([host.ip("route", "show", "default") for host in hosts], [""] * len(hosts))
                self.quiet(*processes)

    def test_ipv4_is_preferred_where_there_is_both(self) -> None:
        self.all_meet("address")

    def test_ipv6_only(self) -> None:
        self.all_meet("address6", ipv4=False)

    def test_link_local_only(self) -> None:
        self.all_meet("link_local", ipv4=False, ipv6=False)

    def test_ipv6_alone_is_wanted(self) -> None:
        self.all_meet("address6", "socket_family=10")

    def test_ipv4_alone_is_wanted(self) -> None:
        self.all_meet("address", "socket_family=2")

    def test_ipv4_multicast(self) -> None:
        self.all_meet("address", "ipv4_udp_multicast=True", ipv6=False, link_local=False, broadcast=False)

    def test_only_one_end_searches_by_multicast(self) -> None:
        a, b = self.enter(lan(wire("ab", ipv6=False, link_local=False, broadcast=False)))
        one = self.start(a, "one")              # there is nothing it could send a broadcast to
        two = self.start(b, "two", "ipv4_udp_multicast=True")
        self.meets(one, two)


class LonelyTest(LanTestCase):
    """A machine that has a loopback interface and nothing else."""

    def test_its_processes_find_each_other(self) -> None:
        [host] = self.enter(empty_hosts(1))
        host.ip("link", "set", "lo", "up")
        one, two = self.start(host, "one"), self.start(host, "two")
        one.wait_for(r"^LOCATIONS \[127.0.0.1:\d+\]$")
        six = self.start(host, "six", "socket_family=10")
        six.wait_for(r"^LOCATIONS \[\[::1\]:\d+\]$")
        self.meets(one, two, "127.0.0.1")
        self.meets(one, six, "::1")
        self.quiet(one, two, six)


class LossTest(LanTestCase):
    """Nobody is missed where datagrams, or whatever frames, are lost (reliability.md, J10)."""

    timeout_s = 900 if figures.SOAK else LanTestCase.timeout_s

    def test_30_percent_of_the_datagrams_are_lost(self) -> None:
        figures.check(self, lambda soak: self.starts(30 if soak else 1, lan(wire("ab")), 6, "loss=0.3"))

    def test_5_percent_of_all_frames_are_lost(self) -> None:
        @contextlib.contextmanager
        def bad_hosts() -> Iterator[List[Host]]:
            with switched_hosts(3) as (switch, hosts):
                switch.line = Line(delay_s=0.005, loss=0.05)
                yield hosts
        figures.check(self, lambda soak: self.starts(30 if soak else 1, bad_hosts(), 3))

    def starts(self, times: int, network: Any, count: int, *options: str) -> Iterator[Figure]:
        """That many processes are started at once on the hosts of a network, again and again."""
        hosts, missed, slowest_s = self.enter(network), 0, 0.0
        for _ in range(times):
            with contextlib.ExitStack() as stack:
                processes = [stack.enter_context(hosts[n % len(hosts)].running(
                    [sys.executable, PEER, "name=p%d" % n, *options])) for n in range(count)]
                for process in processes:
                    process.wait_for("READY")
                began = time.monotonic()
                for process, other in itertools.permutations(range(count), 2):
                    try:
                        left_s = max(0.0, began + FOUND_S - time.monotonic())
                        processes[process].wait_for("^PEER p%d 1 " % other, left_s)
                    except AssertionError:
                        missed += 1
                slowest_s = max(slowest_s, time.monotonic() - began)
        yield Figure("processes that another one has not found within %g s" % FOUND_S, missed, "", "==", 0)
        yield Figure("until all were found, at most", slowest_s, "s")


class NamedTest(LanTestCase):
    """Without discovery: peers that are named."""

    def test_udp_is_blocked(self) -> None:
        a, b = self.enter(lan(wire("ab")))
        a.block_udp()
        b.block_udp()
        one = self.start(a, "one", "peers=['%s:9800']" % b.on[0].address)
        one.wait_for("WARNING no peer yet: cannot reach .*: connection refused")
        two = self.start(b, "two", "tcp_port=9800")
        self.meets(one, two, b.on[0].address)
        self.assertEqual(one.output.count("WARNING"), 1)

    def test_link_local_addresses(self) -> None:
        a, b = self.enter(lan(wire("ab")))
        one, two = self.start(a, "one", "discover_peers=False"), self.start(b, "two", "discover_peers=False")
        place = "[%s%%eth0]:%d" % (b.on[0].link_local.partition("%")[0], two.port)
        self.assertEqual(self.do(one, "peer " + place), "0")
        self.meets(one, two, place.rpartition(":")[0].strip("[]"))
        three = self.start(b, "three", "discover_peers=False")
        self.assertEqual(self.do(three, "peer " + place.replace("%eth0", "")), "0")     # at whatever interface
        self.assertEqual(self.do(one, "peer " + place.replace("eth0", "eth7")), "-1")
        one.wait_for("WARNING no peer: cannot reach .*: this machine has no interface 'eth7'")

    def test_a_host_that_is_off(self) -> None:
        a, _ = self.enter(lan(wire("ab")))
        one = self.start(a, "one", env={"PYCOSLITE_CONNECT_S": "0.2"})
        self.assertEqual(self.do(one, "peer %s0:9705" % a.on[0].address), "-1")
        one.wait_for("WARNING no peer: cannot reach 10.1.1.10:9705: no answer: the host is off, the address is wrong")

    def test_all_processes_of_a_host_on_another_network(self) -> None:
        for ipv4 in True, False:
            with self.subTest(ipv4=ipv4), contextlib.ExitStack() as stack:
                a, b, c = stack.enter_context(lan(wire("ac", ipv4=ipv4), wire("bc", ipv4=ipv4)))
                self.enter, before = stack.enter_context, self.enter
                try:
                    self.host_ping(a, b, c)
                finally:
                    self.enter = before

    def host_ping(self, a: Machine, b: Machine, c: Machine) -> None:
        """The processes of b are found from a by the name of the host alone."""
        far, near = (b.on[1].address or b.on[1].address6), (a.on[0].address or a.on[0].address6)
        c.forwards()
        a.route(far, by=c.on[0].address or c.on[0].address6)
        b.route(near, by=c.on[1].address or c.on[1].address6)
        others = [self.start(b, "b%d" % n) for n in range(3)]
        one = self.start(a, "one")
        self.assertEqual(self.do(one, "peers"), "[]")
        self.assertEqual(self.do(one, "host %s 0" % far), "0")
        for other in others:
            self.meets(one, other, far)
        self.quiet(one, *others)


class SeveralNetworksTest(LanTestCase):
    """Hosts with several interfaces, and ways between networks."""

    def test_a_host_with_two_interfaces_is_found_on_both(self) -> None:
        a, b, c = self.enter(lan(wire("ac"), wire("bc")))
        middle = self.start(c, "middle")
        middle.wait_for(r"LOCATIONS \[10\.1\.1\.2:\d+, 10\.1\.2\.2:\d+, \[fd00:1:1::2\]:\d+, \[fd00:1:2::2\]:\d+\]")
        one, two = self.start(a, "one"), self.start(b, "two")
        self.meets(one, middle, c.on[0].address)
        self.meets(two, middle, c.on[1].address)
        self.assertEqual((self.do(one, "peers"), self.do(two, "peers")), ("['middle']", "['middle']"))
        self.quiet(one, two, middle)

    def test_only_the_interfaces_that_are_named(self) -> None:
        a, b, c = self.enter(lan(wire("ac"), wire("bc")))
        half = self.start(c, "half", "host=['%s', '%s']" % (c.on[0].address, c.on[0].address6))
        half.wait_for(r"LOCATIONS \[10\.1\.1\.2:(\d+), \[fd00:1:1::2\]:\1\]$")
        whole = self.start(c, "whole", "node=['%s', '%s']" % (c.on[0].address, c.on[1].address))
        one, two = self.start(a, "one"), self.start(b, "two")
        for other in half, whole:
            self.meets(one, other, c.on[0].address)
        self.meets(two, whole, c.on[1].address)
        self.assertEqual(self.do(two, "peers"), "['whole']")
        self.quiet(one, two, half, whole)

    def test_relay(self) -> None:
        a, b, c = self.enter(lan(wire("ac"), wire("bc")))
        c.forwards()
        a.route(b.on[1].address, by=c.on[0].address)
        b.route(a.on[0].address, by=c.on[1].address)
        middle, two = self.start(c, "middle"), self.start(b, "two")
        self.meets(two, middle)
        one = self.start(a, "one", "discover_peers=False")
        self.assertEqual(self.do(one, "peer %s:%d relay" % (c.on[0].address, middle.port)), "0")
        self.meets(one, two, b.on[1].address)
        late = self.start(b, "late")                    # found by the relay a moment later
        self.meets(one, late, b.on[1].address)
        self.quiet(one, two, late, middle)

    def test_relay_on_the_host_that_it_leads_to(self) -> None:
        a, b = self.enter(lan(wire("ab"), wire("b")))           # two hosts, two networks
        a.route(b.on[1].address, by=b.on[0].address)
        middle, two = self.start(b, "middle"), self.start(b, "two", "host='%s'" % b.on[1].address)
        self.meets(middle, two, b.on[1].address)
        one = self.start(a, "one", "discover_peers=False")
        self.assertEqual(self.do(one, "peer %s:%d relay" % (b.on[0].address, middle.port)), "0")
        self.meets(one, two, b.on[1].address)
        self.quiet(one, two, middle)

    def test_relay_without_a_way_between_the_networks(self) -> None:
        a, b, c = self.enter(lan(wire("ac"), wire("bc")))
        middle, two = self.start(c, "middle"), self.start(b, "two")
        self.meets(two, middle)
        one = self.start(a, "one", "discover_peers=False")
        self.assertEqual(self.do(one, "peer %s:%d relay" % (c.on[0].address, middle.port)), "0")
        for process in one, two:
            process.wait_for("WARNING a peer was introduced to this process that it cannot reach: cannot reach .*: no "
                             "route to that network; without a way")
        self.talks(one, middle)
        self.talks(two, middle)
        self.assertEqual([process.output.count("WARNING") for process in (one, two, middle)], [1, 1, 0])

    def test_behind_nat(self) -> None:
        for outside in "c", "cd":
            with self.subTest(hosts=1 + len(outside)):
                self.behind_nat(*self.enter(lan(wire("ab"), wire("b" + outside))))

    def behind_nat(self, a: Machine, gateway: Machine, *outside: Machine) -> None:
        """`a` is behind a gateway, one host or two are not."""
        place = "%s:9800" % gateway.on[1].address
        self.enter(gateway.running([sys.executable, GATEWAY, place, "%s:9800" % a.on[0].address], ready="READY"))
        inside = self.start(a, "inside", "tcp_port=9800", "ext_ip_addr='%s'" % gateway.on[1].address)
        inside.wait_for(r"LOCATIONS \[%s\]$" % place)
        one, *rest = [self.start(host, "on_" + host.letter) for host in outside]
        for two in rest:
            self.meets(one, two)
        self.assertEqual(self.do(one, "peer " + place), "0")
        self.meets(one, inside, gateway.on[1].address)
        for two in rest:            # a reference tells the third process the address outside, too
            self.assertEqual(self.do(one, "pass %s inside" % two.name), "1")
            inside.wait_for("^HEARD %s: by reference$" % two.name)
        self.quiet(inside, one, *rest)


class ClustersTest(LanTestCase):
    """Several clusters share a wire and a port, and have nothing to do with each other."""

    def test_clusters_of_several_names_and_secrets(self) -> None:
        for letters in "ab", "abc":
            with self.subTest(hosts=len(letters)):
                self.check(self.enter(lan(wire(letters))))

    def check(self, hosts: List[Machine]) -> None:
        """Each of four clusters has a process on each of the hosts."""
        clusters = {"red": "cluster='red'", "blue": "cluster='blue'", "own": "secret='%s'" % ("0e" * 32),
                    "else": "secret='%s'" % ("e0" * 32)}
        groups = {name: [self.start(host, name + host.letter, option) for host in hosts]
                  for name, option in clusters.items()}
        for group in groups.values():
            for one, two in itertools.combinations(group, 2):
                self.meets(one, two)
        for name, group in groups.items():
            for process in group:
                others = [other.name for other in group if other is not process]
                self.assertEqual(self.do(process, "peers"), repr(others))
                lines = [line for line in process.output.splitlines() if line.startswith(("WARNING", "ERROR"))]
                if name in ("red", "blue"):
                    self.assertEqual(lines, [])
                for line in lines:              # same name, another secret: one line for each host
                    self.assertIn("has another secret", line)
                self.assertLessEqual(len(lines), 5)


if __name__ == "__main__":
    import unittest
    unittest.main()
