"""Section 5: addresses are parsed, compared and printed, never resolved."""
from __future__ import annotations

import pickle

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

    def test_survives_pickling(self) -> None:
        self.assertEqual(pickle.loads(pickle.dumps(Location("::1", 9705))), Location("::1", 9705))
