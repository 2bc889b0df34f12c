"""Processes of different Pythons exchange every kind of message, both ways; the kinds are in every_kind.py."""
from __future__ import annotations

import itertools
import sys
import unittest
from pathlib import Path
from typing import Dict, Tuple

from tests.every_kind import KINDS
from tests.support import TestCase, interpreters, running

PROGRAM = Path(__file__).with_name("every_kind.py")
WANTED = ((3, 8), (3, 13))              # the oldest and the newest, beside the one that runs the tests


def pythons() -> Dict[Tuple[int, int], str]:
    """Version -> path."""
    return {**{other.version: other.path for other in interpreters() if other.version in WANTED},
            sys.version_info[:2]: sys.executable}


class MixedTest(TestCase):
    timeout_s = 240

    def check(self, serving: str, trying: str, *options: str) -> None:
        """All kinds, from `trying` to `serving`."""
        folder = self.temp_dir()
        flags = ["-X", "dev", "-W", "error"]
        with running([serving, *flags, PROGRAM, "serve", folder], ready=r"READY (\S+)") as server, \
                running([trying, *flags, PROGRAM, "try", server.match.group(1), folder]) as client:
            self.assertEqual(client.wait(60), 0, client.output)
            lines = [line for line in client.output.splitlines() if line.startswith(("ok ", "FAILED "))]
            self.assertEqual(lines, ["ok " + name for name in KINDS], client.output)
            self.assertNotIn("Traceback", client.output + server.output)

    def test_one_python(self):
        self.check(sys.executable, sys.executable)

    def test_each_way_between_oldest_and_newest_and_this_one(self):
        found = pythons()
        for version in WANTED:
            if version not in found:
                raise unittest.SkipTest("there is no Python %d.%d on this machine" % version)
        for serving, trying in itertools.permutations(sorted(found), 2):
            with self.subTest(serving=serving, trying=trying):
                self.check(found[serving], found[trying])

    def test_every_kind_is_here(self):
        """What an API has that sends something to another process has a kind that uses it."""
        text = PROGRAM.read_text()
        for call in ("send(", "deliver(", "receive(", "locate(", "monitor(", "finish(", "terminate(", "subscribe(",
                     "unsubscribe(", "close(", "send_file(", "del_file(", "peer(", "peers(", "peer_status(",
                     "close_peer("):
            self.assertIn("." + call, text)
        self.assertGreaterEqual(len(KINDS), 16)


if __name__ == "__main__":
    unittest.main()
