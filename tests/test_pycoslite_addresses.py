"""Section 5: addresses are parsed, compared and printed, never resolved."""
from __future__ import annotations

import pickle

import pycoslite
from pycoslite import Location
from tests.support import TestCase


class LocationTest(TestCase):
    def test_parse_forms(self) -> None:
        for text, default, addr, port in (
                ("node7:9706", None, "node7", 9706),
                (" node7:9706 ", 1, "node7", 9706),
                ("node7", 9705, "node7", 9705),
                ("10.0.0.1:0", None, "10.0.0.1", 0),
                ("[::1]:65535", None, "::1", 65535),
                ("[fe80::1%eth0]:1", None, "fe80::1%eth0", 1),
                ("[::1]", 9705, "::1", 9705),
                ("fe80::1", 9705, "fe80::1", 9705),
        ):
            with self.subTest(text):
                location = Location.parse(text, default)
                self.assertEqual((location.addr, location.port), (addr, port))

    def test_parse_refuses_with_a_sentence(self) -> None:
        for text, default, sentence in (
                ("node7", None, "'node7' names no port: write host:port"),
                ("::1", None, "'::1' names no port"),
                ("node7:", 1, "must be a port number"),
                ("node7:http", 1, "must be a port number"),
                ("node7:-1", 1, "must be a port number"),
                ("node7:\u0661", 1, "must be a port number"),
                ("node7:65536", 1, "'65536' is not a port number"),
                ("[::1", 1, r"write \[address\]:port"),
                ("[::1]9", 1, r"write \[address\]:port"),
                ("[::1]:", 1, "must be a port number"),
                ("", 1, "'' is not a host"),
                (":9705", 1, "'' is not a host"),
                ("[]:9705", 1, "'' is not a host"),
        ):
            with self.subTest(text), self.assertRaisesRegex(ValueError, sentence):
                Location.parse(text, default)

    def test_constructor_checks_its_arguments(self) -> None:
        for host, port in ((None, 1), (b"host", 1), (" ", 1), ("host", None), ("host", "x"), ("host", -1)):
            with self.subTest(host=host, port=port), self.assertRaises(ValueError):
                Location(host, port)

    def test_port_is_made_a_number(self) -> None:
        self.assertEqual(Location("host", "9705").port, 9705)

    def test_equality_and_hash_are_by_host_and_port(self) -> None:
        self.assertEqual(Location("a", 1), Location("a", "1"))
        self.assertEqual(Location("[::1]", 1), Location("::1", 1))
        self.assertEqual(len({Location("a", 1), Location("a", 1), Location("a", 2), Location("b", 1)}), 3)
        self.assertNotEqual(Location("a", 1), ("a", 1))

    def test_printed_form_parses_back(self) -> None:
        for location, text in ((Location("node7", 9705), "node7:9705"), (Location("::1", 9705), "[::1]:9705")):
            self.assertEqual(repr(location), text)
            self.assertEqual(Location.parse(text), location)

    def test_every_spelling_of_an_ipv6_address_is_the_same(self) -> None:
        for text in ("fd00:0:0:0:0:0:0:1", "FD00::0001", "[fd00:0::1]"):
            self.assertEqual(Location(text, 1), Location("fd00::1", 1))
        self.assertEqual(Location("::ffff:10.0.0.1", 1), Location("10.0.0.1", 1))       # an IPv4 address, wrapped
        self.assertEqual(Location("FE80::0:1%eth0", 1).addr, "fe80::1%eth0")
        with self.assertRaisesRegex(ValueError, "'a:b:c' is neither a host name nor an IPv6 address"):
            Location.parse("a:b:c", 1)

    def test_what_another_machine_can_be_told(self) -> None:
        for host, bare in (("fe80::1%eth0", "fe80::1"), ("fd00::1", "fd00::1"), ("10.0.0.1", "10.0.0.1"), ("a", "a")):
            self.assertEqual(Location(host, 1).bare, bare)

    def test_kinds_of_addresses(self) -> None:
        for host, loopback, link_local in (
                ("127.0.0.1", True, False), ("127.9.9.9", True, False),
                ("::1", True, False), ("10.0.0.1", False, False),
                ("fe80::1", False, True), ("febf::1%eth0", False, True), ("fec0::1", False, False),
                ("fe80.example.com", False, False), ("localhost", False, False)):
            with self.subTest(host):
                self.assertEqual((pycoslite.is_loopback(host), pycoslite.is_link_local(host)), (loopback, link_local))

    def test_same_network(self) -> None:
        for one, other, prefix, same in (
                ("10.0.0.1", "10.0.0.254", 24, True), ("10.0.0.1", "10.0.1.1", 24, False),
                ("10.0.0.1", "10.0.1.1", 16, True), ("10.0.0.1", "10.0.0.1", 32, True),
                ("10.0.0.1", "8.8.8.8", 0, True),
                ("fd00::1", "fd00::2", 64, True), ("fd00::1", "fd00:0:0:1::2", 64, False),
                ("10.0.0.1", "::1", 0, False),
                ("fe80::1%eth0", "fe80::2%eth1", 64, True)):
            with self.subTest(one=one, other=other):
                self.assertIs(pycoslite.same_network(one, other, prefix), same)

    def test_survives_pickling(self) -> None:
        self.assertEqual(pickle.loads(pickle.dumps(Location("::1", 9705))), Location("::1", 9705))
