"""The benchmarks still run, believe nobody who did not do the work, and do their sums right."""
from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import unittest
from typing import Any, Dict, List, Tuple
from unittest import mock

from tests import support
from tests.bench import __main__ as program
from tests.bench import catalogue, harness, report, runner

harness.load_families()


def run_program(*argv: str) -> Tuple[int, str]:
    """Exit status and standard output of the command line."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()):
        status = program.main(list(argv))
    return status, output.getvalue()


def run_record(contestant: str, rate: float, n: int = 10, **notes: float) -> Dict:
    """What a run of L1 comes to."""
    return {"workload": "L1", "contestant": contestant, "n": n, "rate": rate, "notes": notes, "pinned": None}


class Programs(support.TestCase):
    """The command line and the processes it starts."""

    def smoke(self, workloads: Tuple[str, ...], contestants: Tuple[str, ...]) -> None:
        """A tiny run of each contestant at each workload: all succeed, and have done at least what they were asked."""
        options = ("--smoke", "--json", "--timeout", "100", "--only", ",".join(contestants))
        status, output = run_program(*workloads, *options)
        runs = [json.loads(line) for line in output.splitlines()]
        self.assertEqual([run.get("error") for run in runs], [None] * len(runs))
        self.assertEqual(status, 0)
        self.assertEqual({(run["workload"], run["contestant"]) for run in runs},
                         {(workload, contestant) for workload in workloads for contestant in contestants})
        self.assertTrue(all(run["rate"] > 0 and run["operations"] >= run["n"] for run in runs))

    def test_local_workloads_run(self) -> None:
        self.smoke(("L1", "L2", "L3", "L3b", "L4", "L5", "D6a"), ("limit", "ours", "asyncio"))

    def test_stream_workloads_run(self) -> None:
        self.smoke(("L6a", "L6b", "L6c"), ("limit", "ours", "asyncio"))

    def test_ours_runs_with_other_processes(self) -> None:
        support.need_cpus(2)
        self.smoke(("D1", "D3p", "D4b", "D6b", "J1"), ("ours",))

    def test_ours_runs_without_authentication(self) -> None:
        self.smoke(("D2", "D3"), ("open",))

    def test_files_are_sent(self) -> None:
        self.smoke(("D5",), ("limit", "checked", "asyncio", "ours"))

    def test_sizes_give_a_rate_each(self) -> None:
        status, output = run_program("L2", "--only", "limit", "--rounds", "1", "--sizes", "10,20")
        self.assertEqual(status, 0)
        self.assertRegex(output, r"10 +20 +last / first\n +limit +[\d,]+ +[\d,]+ +[\d.]+")

    def test_a_run_that_fails_is_told_and_fails_the_program(self) -> None:
        status, output = run_program("L1", "--only", "limit", "--sizes", "-1", "--rounds", "2")
        self.assertEqual(status, 1)
        self.assertEqual(output.count("FAILED at n=-1: exit status 1: "), 1)    # and it is not tried again
        self.assertIn("WrongResult: sum of results", output)

    def test_a_run_that_hangs_is_killed(self) -> None:
        slow = str(catalogue.WORKLOADS["L4"].size)
        self.assertEqual(runner.run_one(["L4", "limit", slow], timeout_s=0.3), {"error": "killed after 0.3 s"})

    def test_a_helper_ends_with_its_parent(self) -> None:
        command = [sys.executable, "-m", "tests.bench.one", "--child", "tests.bench.messages", "serve_echo_limit"]
        with subprocess.Popen(command, cwd=runner.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as helper:
            self.assertIn(b"READY", helper.stdout.readline())
            helper.stdin.close()
            self.assertEqual(helper.wait(60), 1)


class Rounds(support.TestCase):
    """Which runs a plan has."""

    def names(self, contestants: Tuple[str, ...], **plan: Any) -> str:
        """First letters of those that ran, in order; "open" fails."""
        def run(command: List[str], *_rest: Any) -> Dict:
            return {"error": "x"} if command[-2] == "open" else {}
        whole = runner.Plan(catalogue.WORKLOADS["L1"], contestants, 2, 1.0, 1, lambda workload: None, **plan)
        with mock.patch.object(runner, "run_one", run):
            return "".join(result["contestant"][0] for result in runner.run_plan(whole))

    def test_every_other_round_goes_backwards(self) -> None:
        self.assertEqual(self.names(("limit", "asyncio")), "laal")

    def test_those_that_goals_compare_run_in_more_rounds(self) -> None:
        self.assertEqual(self.names(("limit", "asyncio"), repeat=2), "laal" + "ll")

    def test_who_fails_is_left_out(self) -> None:
        self.assertEqual(self.names(("limit", "open")), "lol")


class Table(support.TestCase):
    """Every workload can be measured and judged."""

    def test_each_workload_has_a_limit_and_ours(self) -> None:
        for name in catalogue.WORKLOADS:
            with self.subTest(name):
                self.assertEqual(harness.contestants_of(name)[:2], ["limit", "ours"])

    def test_each_contestant_is_of_a_workload(self) -> None:
        self.assertEqual({workload for workload, _ in harness.CONTESTANTS} - set(catalogue.WORKLOADS), set())

    def test_goals_compare_with_contestants_there_are(self) -> None:
        rivals = [(workload.name, goal.contestant) for workload in catalogue.WORKLOADS.values()
                  for goal in workload.goals if isinstance(goal, catalogue.Ahead)]
        self.assertEqual([rival for rival in rivals if rival not in harness.CONTESTANTS], [])

    def test_a_contestant_whose_package_is_missing_takes_no_part(self) -> None:
        key = ("L1", "stranger")
        harness.contestant(*key, needs="no_such_package")(lambda n: harness.Measured(n, 1))
        self.addCleanup(harness.CONTESTANTS.pop, key)
        self.assertNotIn("stranger", harness.contestants_of("L1"))


class Sums(support.TestCase):
    """Medians, ratios, goals."""

    def judge(self, goal, ours: float = 40.0, **notes: float) -> Tuple:
        """Hold a goal against ours beside a limit of 100."""
        runs = [run_record("limit", 100.0), run_record("ours", ours, **notes)]
        return tuple(goal.judge(report.summarise(runs)))

    def test_summary_is_the_median_of_good_runs(self) -> None:
        runs = [run_record("ours", rate, p50_us=rate) for rate in (3.0, 1.0, 20.0)]
        runs.append({"contestant": "ours", "error": "killed"})
        self.assertEqual(report.summarise(runs)["ours"], catalogue.Summary(
            3.0, 1.0, 20.0, 3, 10, {"p50_us": 3.0}, (3.0, 1.0, 20.0)))

    def test_ratios_are_of_runs_side_by_side(self) -> None:
        runs = [run_record(name, rate * slow) for slow in (1.0, 0.1, 0.5) for name, rate in (
            ("limit", 100.0), ("ours", 40.0))]
        runs.append(run_record("ours", 0.4))            # the limit has no run beside it: medians, then
        self.assertEqual(tuple(catalogue.Share(0.4).judge(report.summarise(runs[:-1]))), (True, "0.40 of limit: 0.400"))
        self.assertEqual(tuple(catalogue.Share(0.4).judge(report.summarise(runs))), (False, "0.40 of limit: 0.240"))

    def test_share_of_the_limit(self) -> None:
        self.assertEqual(self.judge(catalogue.Share(0.40)), (True, "0.40 of limit: 0.400"))
        self.assertEqual(self.judge(catalogue.Share(0.41)), (False, "0.41 of limit: 0.400"))

    def test_ahead_of_another(self) -> None:
        self.assertEqual(self.judge(catalogue.Ahead("limit", 0.5)), (False, "0.5 x limit: 0.40 x"))
        self.assertEqual(self.judge(catalogue.Ahead("zmq")), (None, "ahead of zmq"))

    def test_at_most(self) -> None:
        goal = catalogue.AtMost("early", 0)
        self.assertEqual(self.judge(goal, early=0), (True, "early <= 0: 0"))
        self.assertEqual(self.judge(goal, early=1), (False, "early <= 0: 1"))
        self.assertEqual(self.judge(goal), (None, "early <= 0"))

    def test_table_shows_ratio_goal_and_failure(self) -> None:
        runs = [run_record("limit", 100.0), run_record("ours", 30.0)]
        runs.append(dict(run_record("asyncio", 0), error="exit status 1: KeyError: 'x'"))
        text = report.table(catalogue.WORKLOADS["L1"], runs)
        self.assertRegex(text, r"ours +30 .* 0\.300 ")
        self.assertIn("goal 0.40 of limit: 0.300 (NOT reached)", text)
        self.assertIn("goal ahead of asyncio (not measured)", text)
        self.assertIn("asyncio    FAILED: exit status 1: KeyError: 'x'", text)

    def test_size_table_compares_last_with_first(self) -> None:
        runs = [run_record("ours", 100.0, n=10), run_record("ours", 50.0, n=1000)]
        self.assertRegex(report.size_table(catalogue.WORKLOADS["L1"], runs), r"ours +100 +50 +0\.50")

    def test_wrong_results_are_refused(self) -> None:
        harness.expect([2, 4], [2, 4], "results")
        with self.assertRaisesRegex(harness.WrongResult, "results: got .2., wanted"):
            harness.expect([2], [2, 4], "results")


if __name__ == "__main__":
    unittest.main()
