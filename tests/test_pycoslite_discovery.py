"""Processes that find each other without being told where they are."""
from __future__ import annotations

import sys
from pathlib import Path

import pycoslite
from pycoslite import Pycos
from tests.support import TestCase, free_port, running, two_hosts
from tests.test_pycoslite_network import AGENT, NetworkTestCase

KEY, OTHER_KEY, PROCESS, NONCE = b"k" * 32, b"o" * 32, b"p" * 16, b"n" * 16


class DatagramTest(TestCase):
    def encode(self, key=KEY, kind=pycoslite.PING, cluster="c"):
        return pycoslite.encode_datagram(key, kind, PROCESS, 9705, 3, cluster, NONCE)

    def test_what_goes_in_comes_out(self):
        found = pycoslite.parse_datagram(KEY, "c", self.encode())
        self.assertEqual(found, (True, pycoslite.PING, PROCESS, 9705, 3, NONCE))

    def test_every_kind_has_one_size(self):
        sizes = {len(self.encode(kind=kind)) for kind in (pycoslite.PING, pycoslite.PONG, pycoslite.REFUSAL)}
        self.assertEqual(len(sizes), 1)

    def test_another_secret_shows(self):
        self.assertFalse(pycoslite.parse_datagram(OTHER_KEY, "c", self.encode()).authentic)
        self.assertFalse(pycoslite.parse_datagram(None, "c", self.encode()).authentic)
        self.assertTrue(pycoslite.parse_datagram(None, "c", self.encode(key=None)).authentic)

    def test_another_cluster_is_not_seen(self):
        self.assertIsNone(pycoslite.parse_datagram(KEY, "another", self.encode()))

    def test_every_changed_bit_shows(self):
        data = self.encode()
        for position in range(len(data) * 8):
            changed = bytearray(data)
            changed[position // 8] ^= 1 << position % 8
            found = pycoslite.parse_datagram(KEY, "c", bytes(changed))
            self.assertFalse(found is not None and found.authentic, position)

    def test_another_length_is_no_datagram(self):
        data = self.encode()
        for other in (b"", data[:-1], data + b"x"):
            self.assertIsNone(pycoslite.parse_datagram(KEY, "c", other))


class OneHostTest(NetworkTestCase):
    def searching(self, port, *options):
        """An agent that searches, and lets itself be found, at that UDP port."""
        return self.agent("discover_peers=True", "udp_port=%d" % port, *options)

    def names(self):
        """Names of the peers online."""
        return sorted(peer.name for peer in list(Pycos().network.peers.values()) if peer.online)

    def test_several_processes_share_the_port_and_find_each_other(self):
        port = free_port()
        with self.searching(port, "name=one") as one, self.searching(port, "name=two") as two:
            self.node(discover_peers=True, udp_port=port)
            self.wait_until(lambda: self.names() == ["one", "two"])
            for process in one, two:
                self.assertEqual(self.ask(self.find(process), "echo", 1), 1)

    def test_two_clusters_on_one_wire_never_meet(self):
        port = free_port()
        with self.searching(port, "name=one", "cluster=another"), self.searching(port, "name=two"):
            self.node(discover_peers=True, udp_port=port)
            self.wait_until(lambda: self.names() == ["two"])
            self.wait_until(lambda: len(Pycos().discovery._nonces) == len(pycoslite.PING_TIMES_S))
            self.assertEqual(self.names(), ["two"])

    def test_another_secret_is_one_line_at_each_end(self):
        port = free_port()
        with self.searching(port, "secret=another") as process:
            with self.expect_log("a process at 127.0.0.1 has another secret") as lines:
                self.node(discover_peers=True, udp_port=port)
                process.wait_for("WARNING a process at 127.0.0.1 has another secret")
                self.wait_until(lambda: len(Pycos().discovery._nonces) == len(pycoslite.PING_TIMES_S))
            self.assertEqual(len(lines), 1)
            self.assertEqual(process.output.count("WARNING"), 1)
            self.assertEqual(self.names(), [])


class TwoHostsTest(TestCase):
    """Two machines on a cable: no default route, no name service."""

    def setUp(self):
        self.hosts = self.enter(two_hosts())
        self.secret = self.temp_dir() / "secret"
        self.secret.write_text("5" * 64)
        self.secret.chmod(0o600)

    def enter(self, manager):
        """Enter a context manager until the end of the test."""
        value = manager.__enter__()
        self.addCleanup(manager.__exit__, None, None, None)
        return value

    def start(self, host, *options):
        """An agent there, on all its interfaces."""
        command = [sys.executable, Path(AGENT), "host=None", "discover_peers=True", "secret=", *options]
        return self.enter(host.running(command, ready="READY", env={"PYCOSLITE_SECRET_FILE": str(self.secret)}))

    def test_found_by_broadcast_with_the_same_secret_file(self):
        one = self.start(self.hosts[0], "name=one")
        two = self.start(self.hosts[1], "name=two")
        one.wait_for('"two" @ %s:\\d+ is online' % self.hosts[1].address)
        two.wait_for('"one" @ %s:\\d+ is online' % self.hosts[0].address)
        self.assertNotIn("WARNING", one.output + two.output)

    def test_different_secrets_are_one_line_at_each_end(self):
        one = self.start(self.hosts[0], "name=one")
        two = self.start(self.hosts[1], "name=two", "secret=typed")
        two.wait_for("WARNING a process at %s has another secret" % self.hosts[0].address)
        one.wait_for("WARNING a process at %s has another secret" % self.hosts[1].address)
        self.assertEqual((one.output.count("WARNING"), two.output.count("WARNING")), (1, 1))
