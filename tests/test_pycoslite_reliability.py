"""The rows of reliability.py against their goals, at the size of every run (PYCOSLITE_TEST_SOAK=1: of a release)."""
from __future__ import annotations

import unittest
from concurrent.futures import ThreadPoolExecutor
from typing import List

from tests import reliability
from tests.figures import SOAK, Figure, check
from tests.support import TestCase


def measured(name: str) -> List[Figure]:
    """All figures of a row."""
    return list(reliability.ROWS[name](SOAK))


class ReliabilityTest(TestCase):
    timeout_s = 7200 if SOAK else 400

    def test_rows(self) -> None:
        """All at once: nearly all of the time they wait for something to be noticed."""
        with ThreadPoolExecutor(len(reliability.ROWS)) as pool:
            rows = {name: pool.submit(measured, name) for name in reliability.ROWS}
            for name, row in rows.items():
                with self.subTest(name):
                    figures = row.result()          # raises SkipTest where there are no namespaces
                    check(self, lambda _soak: iter(figures))


if __name__ == "__main__":
    unittest.main()
