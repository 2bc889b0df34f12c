"""Options of Pycos that say where a process listens, what it tells of that, and how it finds and is found."""
from __future__ import annotations

import socket
import unittest
from typing import Any, List
from unittest import mock

import pycoslite
from pycoslite import Location, MisuseError, Pycos, Task
from tests.support import free_port
from tests.test_pycoslite_network import COME_S, SECRET, NetworkTestCase

HAS_IPV6 = bool(pycoslite.source_address("::1"))
needs_ipv6 = unittest.skipUnless(HAS_IPV6, "this machine has no IPv6")


class ListenTest(NetworkTestCase):
    """Where it listens."""

    def connects(self, *places: tuple) -> None:
        """Something answers at each of these."""
        for place in places:
            with socket.create_connection(place, COME_S) as sock:
                self.assertTrue(sock.recv(1))           # a handshake begins

    def test_options_of_the_newest_generation(self):
        node = self.node(udp_port=0, tcp_port=None, host="127.0.0.1", ext_host=None, socket_family=None,
                         ipv4_udp_multicast=False, name="new", discover_peers=False, secret="s", certfile=None,
                         keyfile=None, notifier=None, dest_path=str(self.temp_dir()), max_file_size=None)
        self.assertEqual((node.name, node.location.addr), ("new", "127.0.0.1"))
        self.assertEqual(node.discovery.udp_port, pycoslite.settings.net_port)
        self.assertIs(Pycos(), node)

    def test_options_of_asyncoro(self):
        path = self.temp_dir()
        node = pycoslite.AsynCoro(node="127.0.0.1", udp_port=None, tcp_port=0, ext_ip_addr=None, name=None,
                                  discover_peers=False, peers=[], secret="s", certfile=None, keyfile=None,
                                  notifier=None, dest_path_prefix=str(path), max_file_size=None)
        self.addCleanup(node.terminate)
        self.assertEqual((node.name, node.dest_path), (socket.gethostname(), str(path)))

    def test_tcp_port_none_is_the_usual_one_or_any(self):
        self.setting(net_port=free_port())
        node = self.node(tcp_port=None)
        self.assertEqual(node.location.port, pycoslite.settings.net_port)
        node.terminate()
        with socket.create_server(("127.0.0.1", pycoslite.settings.net_port)):
            self.assertNotIn(self.node(tcp_port=None).location.port, (0, pycoslite.settings.net_port))

    def test_tcp_port_that_is_named_is_that_or_an_error(self):
        port = free_port()
        with socket.create_server(("127.0.0.1", port)):
            with self.assertRaisesRegex(OSError, "cannot listen at port %d of 127.0.0.1: .*in use" % port):
                self.node(tcp_port=port)
        self.assertEqual(self.node(tcp_port=port).location.port, port)

    def test_processes_of_a_machine_share_the_udp_port_and_differ_in_tcp_port(self):
        node = self.node(tcp_port=0)
        with self.agent("tcp_port=0") as process:
            self.assertNotEqual(process.at.port, node.location.port)

    def test_all_interfaces_of_both_protocols(self):
        node = self.node(host=None)
        port = node.location.port
        self.assertEqual(node.locations, [Location(address, port) for address in pycoslite.own_addresses(
            node.network.hosts)])
        self.connects(("127.0.0.1", port), *([("::1", port)] if HAS_IPV6 else []))

    def test_several_hosts(self):
        hosts = ["127.0.0.1", "127.0.0.2"] + (["0:0::0:1"] if HAS_IPV6 else [])
        node = self.node(host=hosts)
        port = node.location.port
        self.assertEqual([at.addr for at in node.locations], ["127.0.0.1", "127.0.0.2", "::1"][:len(hosts)])
        self.connects(*((at.addr, port) for at in node.locations))

    @needs_ipv6
    def test_the_port_must_be_free_for_both_protocols(self):
        self.addCleanup(pycoslite.stop_default)
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(("::", 0))
            sock.listen()
            with self.assertRaisesRegex(OSError, "in use"):
                self.node(host=None, tcp_port=sock.getsockname()[1])

    @needs_ipv6
    def test_the_families(self):
        for family, host, refused in ((socket.AF_INET, "127.0.0.1", "::1"), (socket.AF_INET6, "::1", "127.0.0.1")):
            node = self.node(host=None, socket_family=family)
            self.assertTrue(all((":" in at.addr) == (":" in host) for at in node.locations), node.locations)
            self.connects((host, node.location.port))
            with self.assertRaises(ConnectionRefusedError):
                self.connects((refused, node.location.port))
            node.terminate()

    def test_families_and_hosts_that_are_refused(self):
        self.addCleanup(pycoslite.stop_default)
        for options, error, sentence in (
                ({"socket_family": socket.AF_UNIX}, MisuseError, "must be socket.AF_INET or socket.AF_INET6"),
                ({"socket_family": socket.AF_INET6, "host": "127.0.0.1"}, MisuseError, "no address of that family"),
                ({"host": "no.such.host.invalid"}, OSError, "cannot be resolved .*use an IP address of this machine"),
                ({"host": "192.0.2.77"}, OSError, "no such address .*ext_ip_addr"),
                ({"ext_host": "a:b"}, ValueError, "'a:b' is neither a host name nor an IPv6 address"),
        ):
            with self.subTest(options), self.assertRaisesRegex(error, sentence):
                self.node(**options)
            self.assertIsNone(pycoslite.running_network())

    def test_a_host_by_its_name(self):
        self.assertEqual(self.node(host="localhost").location.addr, "127.0.0.1")

    def test_a_host_that_is_named_twice(self):
        for hosts, wanted in ((["127.0.0.1", "localhost", "127.0.0.1"], ["127.0.0.1"]),
                              (["127.0.0.2", "0.0.0.0", "127.0.0.1"], ["0.0.0.0"]), ("[127.0.0.1]", ["127.0.0.1"])):
            with self.subTest(hosts):
                node = self.node(host=hosts)
                self.assertEqual(node.network.hosts, wanted)
                node.terminate()

    def test_other_options_of_old_are_accepted(self):
        node = self.node(ipv4_udp_multicast=True)
        self.assertTrue(node.discovery.multicast)


class ToldTest(NetworkTestCase):
    """What others are told."""

    def told(self, **options: Any) -> List[str]:
        """Addresses of this process with these options."""
        node = self.node(**options)
        try:
            self.assertEqual(len({at.port for at in node.locations}), 1)
            return [at.addr for at in node.locations]
        finally:
            node.terminate()

    def test_ext_ip_addr(self):
        two = ["127.0.0.1", "127.0.0.2"]
        for host, given, wanted in (
                ("127.0.0.1", "203.0.113.9", ["203.0.113.9"]),
                ("127.0.0.1", "ec2-1-2-3-4.example.com", ["ec2-1-2-3-4.example.com"]),
                (two, ["203.0.113.9"], ["203.0.113.9", "127.0.0.2"]),
                (two, ["203.0.113.9", "203.0.113.8"], ["203.0.113.9", "203.0.113.8"]),
                ("127.0.0.1", ["203.0.113.9", "2001:DB8::9"], ["203.0.113.9", "2001:db8::9"]),
                (None, "203.0.113.9", ["203.0.113.9"]),
        ):
            for name in "ext_host", "ext_ip_addr":
                with self.subTest(host=host, given=given):
                    self.assertEqual(self.told(host=host, **{name: given}), wanted)

    def test_peers_know_what_was_told_after_what_was_seen(self):
        node = self.node()
        with self.agent("ext_ip_addr='203.0.113.9'") as process:
            def contact():
                return (yield node.peer(Location("127.0.0.1", process.at.port)))
            self.assertEqual(self.do(contact), 0)
            [peer] = node.network.peers.values()
            self.assertEqual([at.addr for at in peer.locations], ["127.0.0.1", "203.0.113.9"])

    def test_a_link_local_address_travels_without_its_interface(self):
        said = {"port": 9, "addresses": ["fe80::1", "10.0.0.1", "fe80::2%eth9", 7, "", "a:b", "FD00:0::1"] + ["x"] * 9}
        seen = "fe80::9%eth0"
        self.assertEqual(pycoslite._said_addresses(said, seen), (
            9, ["fe80::1%eth0", "10.0.0.1", "fe80::2%eth0", "fd00::1", "x"]))
        self.assertEqual(pycoslite._said_addresses(said, "10.0.0.9"), (9, ["10.0.0.1", "fd00::1", "x"]))
        for nonsense in ({}, {"port": -1, "addresses": "abc"}, {"port": True, "addresses": {}}):
            self.assertIn(pycoslite._said_addresses(nonsense, "10.0.0.9"), ((0, []), (True, [])))

    def test_where_a_peer_listens(self):
        for hosts, seen, listens in (
                (["0.0.0.0", "::"], "10.0.0.1", True), (["::"], "10.0.0.1", False), (["::"], "fd00::1", True),
                (["10.0.0.1"], "10.0.0.1", True), (["10.0.0.1"], "127.0.0.1", False),
                (["fe80::1"], "fe80::1%eth0", True), (None, "10.0.0.1", True), ("0.0.0.0", "10.0.0.1", True)):
            with self.subTest(hosts=hosts, seen=seen):
                self.assertIs(pycoslite._listens_at({"hosts": hosts}, seen), listens)

    def test_a_peer_that_dialled_from_where_it_does_not_listen(self):
        if not HAS_IPV6:
            self.skipTest("this machine has no IPv6")
        node = self.node()
        with self.agent("host=::1", "peers=['127.0.0.1:%d']" % node.location.port):
            self.wait_until(node.peers)
            [peer] = node.network.peers.values()
            self.assertEqual([at.addr for at in peer.locations], ["::1"])

    def test_addresses_of_sockets(self):
        for address, text in ((("10.0.0.1", 5), "10.0.0.1"), (("::ffff:10.0.0.1", 5, 0, 0), "10.0.0.1"),
                              (("fd00::1", 5, 0, 0), "fd00::1"), (("fe80::1", 5, 0, 0), "fe80::1"),
                              (("fe80::1", 5, 0, 999), "fe80::1%999"), (("::1", 5, 0, 0), "::1")):
            self.assertEqual(pycoslite.address_text(address), text)
        self.assertEqual(pycoslite.address_text(("fe80::1", 5, 0, 1)), "fe80::1%" + socket.if_indextoname(1))
        self.assertEqual(pycoslite.socket_address("fe80::1%" + socket.if_indextoname(1), 5), ("fe80::1", 5, 0, 1))
        self.assertEqual(pycoslite.socket_address("10.0.0.1", 5), ("10.0.0.1", 5))
        with self.assertRaises(OSError):
            pycoslite.socket_address("fe80::1%nowhere", 5)


class HostInfoTest(NetworkTestCase):
    """What is known of hosts."""

    def test_host_ipaddr(self):
        for host, address in (("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), ("0:0::1", "::1"),
                              ("no.such.host.invalid", None)):
            self.assertEqual(Pycos.host_ipaddr(host), address)

    def test_host_addrinfo(self):
        lo = socket.if_indextoname(1)
        self.assertEqual(Pycos.host_addrinfo("127.0.0.1"), (socket.AF_INET, "127.0.0.1", lo, "127.255.255.255",
                                                            "255.0.0.0"))
        self.assertEqual(Pycos.host_addrinfo("127.0.0.1", ipv4_multicast=True).broadcast, "239.255.97.5")
        self.assertEqual(Pycos.host_addrinfo("203.0.113.9"), (socket.AF_INET, "203.0.113.9", None, None, None))
        self.assertIsNone(Pycos.host_addrinfo("no.such.host.invalid"))
        self.assertIsNone(Pycos.host_addrinfo("127.0.0.1", socket.AF_INET6))
        best = Pycos.host_addrinfo()
        self.assertEqual((best.family, best.ip), (socket.AF_INET, pycoslite.own_addresses(["0.0.0.0"])[0]))

    @needs_ipv6
    def test_host_addrinfo_of_ipv6(self):
        self.assertEqual(Pycos.host_addrinfo("::1", socket.AF_INET6)[:3], (socket.AF_INET6, "::1",
                                                                           socket.if_indextoname(1)))
        best = Pycos.host_addrinfo(socket_family=socket.AF_INET6)
        self.assertEqual((best.family, best.broadcast), (socket.AF_INET6, "ff05::674f:48ba:b409:3171:9705"))


class PeersTest(NetworkTestCase):
    """Peers that are named, and the end."""

    def peer(self, place: Any, **options: Any) -> int:
        """Result of `Pycos.peer`."""
        def contact():
            return (yield Pycos().peer(place, **options))
        return self.do(contact)

    def test_a_peer_that_starts_later(self):
        port = free_port()
        with self.expect_log("no peer yet: .*connection refused.*; trying again") as lines:
            node = self.node(peers=["127.0.0.1:%d" % port, Location("127.0.0.1", port)])
            self.wait_until(lambda: len(self.log.records) > 1 and not node.peers())
        self.assertLessEqual(len(lines), 2)
        with self.agent("tcp_port=%d" % port) as process:
            self.wait_until(lambda: node.peers() == [process.at])

    def test_a_peer_with_another_secret_is_seldom_tried_again(self):
        """Who starts it anew with the right one need not start all others anew."""
        self.assertGreaterEqual(pycoslite._REFUSED_AGAIN_S[0], 30)
        self.log.allowed.append("no peer yet")          # between the two
        with mock.patch.object(pycoslite, "_REFUSED_AGAIN_S", (0.1, 0.2)):
            with self.agent("secret=another") as process:
                with self.expect_log("no peer: .*another secret.*; trying again") as lines:
                    node = self.node(peers=[process.at])
                    process.wait_for("refused a connection")
                self.assertEqual((node.peers(), len(lines)), ([], 1))
            with self.agent("tcp_port=%d" % process.at.port):
                self.wait_until(lambda: node.peers() == [process.at])

    def test_one_peer_that_is_no_list(self):
        with self.agent() as process:
            for peer in process.at, repr(process.at):
                node = self.node(peers=peer)
                self.wait_until(lambda: node.peers() == [process.at])
                node.terminate()

    def test_itself_is_no_peer(self):
        node = self.node()
        with self.expect_log("no peer: .*itself"), self.expect_log("refused a connection .*itself"):
            self.assertEqual(self.peer(node.location), -1)

    def test_ipv6_peer_in_any_spelling(self):
        if not HAS_IPV6:
            self.skipTest("this machine has no IPv6")
        node = self.node(host=["127.0.0.1", "::1"])
        with self.agent("host=::1") as process:
            self.assertEqual(self.peer("[0:0::0:1]:%d" % process.at.port), 0)
            self.assertEqual(node.peers(), [Location("::1", process.at.port)])
            self.assertEqual(self.ask(self.find(process), "echo", 1), 1)

    def test_a_name_is_resolved_by_who_connects(self):
        """A Location keeps the name it was given, so that making one never waits for a look-up."""
        node = self.node()
        with self.agent() as process:
            named = Location("localhost", str(process.at.port))
            self.assertEqual((named.addr, named.port), ("localhost", process.at.port))
            self.assertEqual(self.peer(named), 0)
            self.assertEqual(self.peer(process.at), 0)
            self.assertEqual(len(node.peers()), 1)

            def find():
                return (yield Task.locate("agent", location=named, timeout=COME_S))
            self.assertEqual(self.do(find), self.find(process))
        with self.expect_log("the host name 'no.such.host.invalid' cannot be resolved"):
            self.assertEqual(self.peer(Location("no.such.host.invalid", 9705)), -1)

    def test_a_host_where_nobody_answers(self):
        self.setting_times((0.0,))
        self.node(udp_port=free_port())
        with self.expect_log("no peer: nobody at 127.0.0.1 has answered at UDP port"):
            self.assertEqual(self.peer(Location("127.0.0.1", 0)), 0)

    def setting_times(self, times: tuple) -> None:
        """Ping at other times."""
        self.addCleanup(setattr, pycoslite, "PING_TIMES_S", pycoslite.PING_TIMES_S)
        pycoslite.PING_TIMES_S = times

    def test_a_process_that_did_not_start_with_discovery(self):
        """As a server of a node, whose program decides that it wants peers."""
        self.setting(net_port=free_port())
        pycoslite.start_network("127.0.0.1", 0, "server", key=pycoslite.secret_key(SECRET), role="server")
        self.addCleanup(lambda: Pycos().terminate())
        options = "discover_peers=True", "udp_port=%d" % pycoslite.settings.net_port
        with self.agent("name=sooner", *options):
            self.assertEqual(Pycos().peers(), [])
            Pycos().discover_peers()
            self.wait_until(lambda: len(Pycos().peers()) == 1)
            with self.agent("name=later", *options) as later:
                later.wait_for('"server" @ .* is online')
                self.wait_until(lambda: len(Pycos().peers()) == 2)

    def test_watchers_can_leave(self):
        node = self.node()
        heard: List[Any] = []
        node.network.on_peer(watcher := lambda *event: heard.append(event))
        with self.agent() as process:
            self.assertEqual(self.peer(process.at), 0)
            self.assertEqual([event for _, event, _ in heard], ["online"])
            node.network.off_peer(watcher)
            node.network.off_peer(watcher)
        self.wait_until(lambda: not node.network.peers)
        self.assertEqual(len(heard), 1)

    def test_the_end_is_told_to_peers(self):
        for end in "finish", "terminate":
            with self.subTest(end), self.agent() as process:
                node = self.node()
                self.assertEqual(self.peer(process.at), 0)
                getattr(node, end)()
                process.wait_for('"test" @ 127.0.0.1:%s is gone: it has ended' % r"\d+")
                self.assertEqual((node.is_alive(), pycoslite.running_network()), (False, None))
                self.assertIsNot(self.node(), node)

    def test_times_of_the_documents(self):
        self.assertEqual((pycoslite.settings.message_timeout_s, pycoslite.settings.connect_s), (10.0, 2.0))


if __name__ == "__main__":
    unittest.main()
