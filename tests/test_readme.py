"""What README.md shows works as shown."""
from __future__ import annotations

import re
import sys
import unittest

import dispycos_lite
from tests.support import ROOT, TestCase, running

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


class ReadmeTest(TestCase):

    @unittest.skipUnless(hasattr(dispycos_lite, "Cluster"), "no Cluster yet")
    def test_program_prints_what_is_said(self):
        programs = re.findall(r"```python\n(.*?)```.*?```text\n(.*?)```", TEXT, re.DOTALL)
        self.assertTrue(programs)
        for code, expected in programs:
            folder = self.temp_dir()
            (folder / "program.py").write_text(code)
            with running([sys.executable, "program.py"], cwd=folder, env={"PYTHONPATH": str(ROOT)}) as process:
                self.assertEqual(process.wait(60), 0, process.output)
            said = [line for line in process.output.splitlines(True) if not line.startswith("no node was named")]
            self.assertEqual("".join(said), expected)

    def test_files_that_it_names_exist(self):
        named = set(re.findall(r"[\w./]*\w\.py\b|LICENSE", TEXT))
        self.assertTrue(named)
        self.assertEqual([name for name in named if not (ROOT / name).exists()], [])

    def test_lines_are_short_enough_to_read_in_a_terminal(self):
        self.assertEqual([line for line in TEXT.splitlines() if len(line) > 120], [])
