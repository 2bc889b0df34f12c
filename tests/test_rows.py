"""The table in rows.py: complete, without contradiction, and its tests exist."""
from __future__ import annotations

import importlib
import unittest

from tests.rows import CHOICES, COVERED, NOT_YET, SECTIONS
from tests.rows_httpd import ROWS as MONITOR
from tests.support import TestCase


def expanded(name: str) -> list:
    """The rows of "T24-T26"."""
    first, _, last = name.partition("-")
    return ["%s%02d" % (first[0], n) for n in range(int(first[1:]), int((last or first)[1:]) + 1)]


class RowsTest(TestCase):
    """See the module."""

    def test_every_row_is_covered_or_named_as_missing(self):
        rows = {"%s%02d" % (letter, n) for letter, last in SECTIONS.items() for n in range(1, last + 1)} | set(CHOICES)
        missing = [row for name in NOT_YET for row in expanded(name)]
        self.assertEqual(set(COVERED) & set(missing), set())
        self.assertEqual(set(COVERED) | set(missing), rows)
        self.assertEqual(len(missing), len(set(missing)))

    def test_the_tests_exist(self):
        for row, where in COVERED.items():
            with self.subTest(row):
                file, _, test = where.partition(": ")
                owner, _, method = test.partition(".")
                name = file if file.startswith("test_") else "test_pycoslite_" + file
                module = importlib.import_module("tests." + name)
                self.assertTrue(callable(getattr(getattr(module, owner), method)))
                self.assertTrue(method.startswith("test_"))


class MonitorRowsTest(TestCase):
    """The table in rows_httpd.py."""

    def test_every_row_is_covered(self):
        rows = [row for names in MONITOR for row in names.split()]
        self.assertEqual(sorted(row for row in rows if row[0] == "W"), expanded("W01-W26"))
        self.assertEqual(len(rows), len(set(rows)))

    def test_the_tests_exist(self):
        for rows, names in MONITOR.items():
            for name in names.split():
                with self.subTest(rows):
                    module, owner, method = name.split(".")
                    self.assertTrue(method.startswith("test_"))
                    self.assertTrue(callable(getattr(getattr(importlib.import_module("tests." + module), owner), method)))


if __name__ == "__main__":
    unittest.main()
