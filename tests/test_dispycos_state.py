"""Sections 1, 2, 4 and 5: errors, records and messages as tables; the cluster state by scenario, simulation and growth.

The simulation plays thousands of cluster histories with a clock of its own: servers die, nodes vanish and return,
results come late, twice or not at all. What it checks is written in `History`.
"""
from __future__ import annotations

import collections
import concurrent.futures
import functools
import heapq
import itertools
import operator
import pickle
import random
import re
import sys
from typing import Any, Callable, Dict, List, Optional, Tuple

import dispycos_lite
import pycoslite
from dispycos_lite import (CANCEL_JOB, ERROR, EXCEPTION, FUNCTION, IO, JOB_DONE, RECALL_JOBS, RELEASE_NODE,
                           RESTART_SERVER, SEND_JOB, STATUS, TASK, TERMINATED, VALUE, Cancelled, ClusterClosed,
                           ClusterState, DispycosNodeAllocate, DispycosNodeAvailInfo, DispycosNodeInfo,
                           DispycosStatus, DispycosTaskInfo, Job, JobCounts, JobError, NodeLost, ResultError,
                           SchedulerStatus, Server, Terms, TimedOut, WorkerDied)
from tests.support import TestCase

KEY = b"k" * 16
CODE_NAMES = {value: name for name, value in vars(SchedulerStatus).items()
              if isinstance(value, int) and not name.endswith("Created") and not name.startswith("Computation")}


class ErrorsTest(TestCase):
    def test_every_error_is_a_pycos_error_and_travels(self) -> None:
        for kind in (JobError, WorkerDied, NodeLost, Cancelled, TimedOut, ResultError, ClusterClosed):
            with self.subTest(kind.__name__):
                error = pickle.loads(pickle.dumps(kind("a sentence", 7, 2, "server 1")))
                self.assertIsInstance(error, pycoslite.PycosError)
                self.assertEqual((str(error), error.job_id, error.attempt, error.where),
                                 ("a sentence", 7, 2, "server 1"))

    def test_the_standard_library_recognises_its_own(self) -> None:
        self.assertTrue(issubclass(Cancelled, concurrent.futures.CancelledError))
        self.assertTrue(issubclass(TimedOut, (TimeoutError, pycoslite.OperationTimeout)))


class RecordsTest(TestCase):
    def test_status_is_a_tuple_with_names(self) -> None:
        status, info = message = DispycosStatus(SchedulerStatus.TaskStarted, "x")
        self.assertEqual((message.status, message.info), (status, info))
        self.assertEqual(SchedulerStatus.TaskCreated, 21)
        self.assertEqual(SchedulerStatus.ComputationClosed, SchedulerStatus.ClientClosed)

    def test_node_info_delegates_and_prints_as_its_address(self) -> None:
        info = DispycosNodeInfo("alpha", "10.0.0.1", 4, "Linux", DispycosNodeAvailInfo("place", 90.0, 1, 2, 3.0))
        self.assertEqual("%s %s" % (info, info.location), "10.0.0.1 place")
        self.assertEqual((info.cpu, info.memory, info.disk, info.swap), (90.0, 1, 2, 3.0))
        self.assertIsNone(DispycosNodeInfo("a", "b", 1).memory)

    def test_task_info_has_both_names(self) -> None:
        info = DispycosTaskInfo("rtask", (1,), {"a": 2}, 3.5)
        self.assertIs(info.task, info.coro)

    def test_allocation_rules(self) -> None:
        node = ("10.0.0.7", "alpha", "Linux-5.4-x86_64", 4, 1000, None)
        for arguments, expected in (
                (dict(node="10.0.0.7"), 4), (dict(node="10.0.0.*"), 4), (dict(node="*"), 4), (dict(node="ALPHA"), 4),
                (dict(node="10.0.0.1"), -1), (dict(node="10.0.0"), -1), (dict(node="10x0.0.7"), -1),
                (dict(node=r"10\.0\.(0|1)\.\d+"), 4), (dict(node=r"10\.1\.(0|1)\.\d+"), -1),
                (dict(node="*", platform="linux.*X86_64"), 4), (dict(node="*", platform="windows"), -1),
                (dict(node="*", cpus=2), 2), (dict(node="*", cpus=8), 0), (dict(node="*", cpus=0), 0),
                (dict(node="*", cpus=-1), 3), (dict(node="*", cpus=-9), 0),
                (dict(node="*", memory=1000), 4), (dict(node="*", memory=1001), 0), (dict(node="*", disk=10 ** 9), 4)):
            with self.subTest(**arguments):
                self.assertEqual(DispycosNodeAllocate(**arguments).allocate(*node), expected)

    def test_older_positional_form(self) -> None:
        rule = dispycos_lite.DiscoroNodeAllocate("*", "Linux", 2, 10, 20)
        self.assertEqual((rule.platform, rule.cpus, rule.memory, rule.disk, rule.port), ("linux", 2, 10, 20, None))
        self.assertEqual(dispycos_lite.DiscoroNodeAllocate("*", "", cpus=3).cpus, 3)

    def test_a_bad_expression_is_refused(self) -> None:
        with self.assertRaisesRegex(pycoslite.MisuseError, r"no regular expression"):
            DispycosNodeAllocate("10.0.(")

    def test_first_rule_with_an_opinion_decides(self) -> None:
        info = DispycosNodeInfo("alpha", "10.0.0.7", 4, "Linux")
        for rules, cpus in (([], 4), ([("x", 1)], 4), ([("x", 1), ("alpha", 2), ("*", 3)], 2),
                            ([("x", 1), ("*", 0)], 0)):
            with self.subTest(rules):
                self.assertEqual(dispycos_lite.allocate_node(
                    [DispycosNodeAllocate(node, cpus=n) for node, n in rules], info), cpus)


class MessagesTest(TestCase):
    def test_frames_come_back_as_they_went(self) -> None:
        big, last = 2 ** 63, 2 ** 32 - 1
        d = dispycos_lite
        self.assertEqual(d.unpack_job(d.pack_job(big, last, IO, KEY) + b"args"), (big, last, IO, KEY, b"args"))
        self.assertEqual(d.unpack_started(d.pack_started(1, 2, big)), (1, 2, big))
        self.assertEqual(d.unpack_result(d.pack_result(1, 2, TERMINATED)), (1, 2, TERMINATED, b""))
        self.assertEqual(d.unpack_recall(d.pack_recall(9)), 9)
        self.assertEqual(d.unpack_run(d.pack_run(1, 2)), (1, 2))
        for runs in ([], [(1, 2)], [(big, last), (0, 0)]):
            self.assertEqual(d.unpack_returned(d.pack_returned(runs)), runs)

    def test_the_layout_is_the_documented_one(self) -> None:
        self.assertEqual(dispycos_lite.pack_job(1, 2, 1, KEY).hex(), "0000000000000001" "00000002" "01" + KEY.hex())
        self.assertEqual((dispycos_lite.DEFINE, dispycos_lite.CANCEL), (64, 70))

    def test_what_is_cut_or_unknown_is_refused(self) -> None:
        d = dispycos_lite
        for unpack, whole in ((d.unpack_job, d.pack_job(1, 2, 0, KEY)), (d.unpack_started, d.pack_started(1, 2, 3)),
                              (d.unpack_result, d.pack_result(1, 2, 0)), (d.unpack_recall, d.pack_recall(1)),
                              (d.unpack_run, d.pack_run(1, 2)), (d.unpack_returned, d.pack_run(1, 2))):
            for length in range(len(whole)):
                if length or unpack is not d.unpack_returned:
                    with self.assertRaises(pycoslite.ProtocolError):
                        unpack(whole[:length])
        for unpack, body in ((d.unpack_job, d.pack_job(1, 2, 3, KEY)), (d.unpack_result, d.pack_result(1, 2, 4))):
            with self.assertRaises(pycoslite.ProtocolError):
                unpack(body)

    def test_operations_are_checked(self) -> None:
        checked = dispycos_lite.checked
        good = {"n": 1, "reason": "x", "later": None}
        self.assertIs(checked("node.restart", good), good)
        self.assertTrue(checked("node.avail", {"free": 3}, {"free": float}))
        reply = dispycos_lite.OPS["node.reserve"].reply
        self.assertTrue(checked("node.reserve", {"state": "waiting", "position": 2}, reply))
        for op, args in (("node.restart", {"n": 1}), ("node.restart", {"n": "1", "reason": "x"}), ("node.release", []),
                         ("node.restart", {"n": True, "reason": "x"}),
                         ("node.restart", {"n": 1, "reason": "x", "again": 1})):
            with self.subTest(op, args=args), self.assertRaises(pycoslite.ProtocolError):
                checked(op, args)


    def test_a_grant_says_how_often_to_ask(self) -> None:
        grant = {"servers": [], "directory": "d", "name": "n", "cpus": 1, "platform": "p"}
        for pulses in (None, [0, 0], [0.5, 100], [10, 20.5]):
            facts = dict(grant, **({} if pulses is None else {"pulses": pulses}))
            self.assertIs(dispycos_lite.checked_grant(facts), facts)
        for pulses in (5, [], [1], [1, 2, 3], ["1", 2], [-1, 2], [True, 2], [0, float("inf")], [float("nan"), 1]):
            with self.subTest(pulses=pulses), self.assertRaises(pycoslite.ProtocolError):
                dispycos_lite.checked_grant(dict(grant, pulses=pulses))


class StateTest(TestCase):
    """A state with helpers that say what an event should do."""

    def setUp(self) -> None:
        self.state = ClusterState()
        self.ids = itertools.count(1)
        self.now = 0.0
        self.log_of: List[tuple] = []

    def cluster(self, *cpus: int) -> List[List[Server]]:
        """Nodes 'a', 'b', ... with so many servers each."""
        rows = []
        for name, count in zip("abcdef", cpus):
            self.state.node_up(name, DispycosNodeInfo("node-" + name, "addr-" + name, count), self.now)
            rows.append([self.state.server_up(name, n, b"p", (name, n), self.now) for n in range(count)])
        self.take()
        return rows

    def take(self, *kinds: str) -> List[tuple]:
        """The instructions so far; only those of some kinds, if named."""
        self.state.validate()
        out = self.state.take()
        self.log_of += out
        return [each for each in out if not kinds or each[0] in kinds]

    def submit(self, kind: int = FUNCTION, **terms: Any) -> Job:
        job = Job(next(self.ids), KEY, kind, Terms(**terms))
        self.state.submit(job, self.now)
        return job

    def sent(self) -> List[Tuple[Any, int]]:
        """(location, job id) of the SENDs since the last look."""
        return [(each[1].location, each[2].id) for each in self.take(SEND_JOB)]

    def end(self, *jobs: Job, outcome: int = VALUE, after: float = 0.001) -> None:
        self.now += after
        for job in jobs:
            self.assertTrue(self.state.ended(job.id, job.attempt, outcome, "v", self.now), job.id)

    def done(self) -> List[Tuple[int, Any]]:
        """(job id, name of the error or the outcome) of the jobs that ended since the last look."""
        return [(each[1].id, type(each[3]).__name__ if each[2] == ERROR else each[2]) for each in self.take(JOB_DONE)]

    def statuses(self) -> List[str]:
        return ["%s %s" % (CODE_NAMES[each[1]], each[2]) for each in self.take(STATUS)]


class SendingTest(StateTest):
    def test_nothing_is_sent_before_there_is_a_server(self) -> None:
        jobs = [self.submit() for _ in range(3)]
        self.assertEqual(self.sent(), [])
        self.assertEqual(self.state.why(1), "job 1 waits: no server is known yet")
        self.cluster(1)
        self.assertEqual([each[2] for each in self.log_of if each[0] == SEND_JOB], jobs[:2])

    def test_jobs_spread_over_nodes_before_any_server_gets_two(self) -> None:
        self.cluster(2, 4)
        for _ in range(6):
            self.submit()
        places = [place for place, _ in self.sent()]
        self.assertEqual(len(set(places)), 6)
        self.assertEqual({place[0] for place in places[:2]}, {"a", "b"})
        self.assertEqual(sum(place[0] == "b" for place in places[:3]), 2)       # twice the servers, twice the jobs

    def test_a_server_holds_two_then_the_rest_waits_in_order(self) -> None:
        self.cluster(1)
        jobs = [self.submit() for _ in range(5)]
        self.assertEqual([job for _, job in self.sent()], [1, 2])
        self.assertEqual(self.state.why(1), "job 1 runs on server 0 of node 'node-a' (('a', 0)) (attempt 1)")
        self.assertIn("behind 1 others", self.state.why(2))
        self.assertIn("are busy and 3 jobs wait", self.state.why(3))
        self.end(jobs[0], after=1.0)
        self.assertEqual(self.sent(), [(("a", 0), 3)])

    def test_priority_first_then_age(self) -> None:
        self.cluster(1)
        first, second = self.submit(), self.submit()
        for priority in (0, 1, 5, 1, -1):
            self.submit(priority=priority)
        self.take()
        order = []
        self.end(first, after=1)
        while True:
            running = [each[2] for each in self.take(SEND_JOB)]
            if not running:
                break
            order += [job.id for job in running]
            self.end(*running, after=1)
        self.assertEqual(order, [5, 4, 6, 3, 7])
        self.assertEqual(second.attempt, 1)

    def test_the_window_follows_the_pace(self) -> None:
        for seconds, window in ((0.0001, 200), (0.001, 20), (0.00001, 512), (0.02, 2), (3.0, 2)):
            with self.subTest(seconds=seconds):
                self.setUp()
                (server,), = self.cluster(1)
                for _ in range(6000):
                    self.submit()
                for _ in range(400):
                    held = list(server.held.values())
                    self.end(*held, after=seconds * len(held))
                    self.state.take()
                self.assertAlmostEqual(server.window, window, delta=window * 0.1)

    def test_the_window_is_the_same_however_results_are_batched(self) -> None:
        for batch in (1, 3, 7, 20):
            with self.subTest(batch=batch):
                self.setUp()
                (server,), = self.cluster(1)
                for _ in range(3000):
                    self.submit()
                owed = 0.0
                for _ in range(600):
                    held = list(itertools.islice(server.held.values(), batch))
                    self.end(*held, after=0.001 * len(held) + owed)
                self.assertAlmostEqual(server.window, 20, delta=2)

    def test_one_late_batch_does_not_close_the_window(self) -> None:
        (server,), = self.cluster(1)
        for _ in range(8000):
            self.submit()
        for _ in range(20):
            held = list(server.held.values())
            self.end(*held, after=0.00003 * len(held))
        self.assertEqual(server.window, 512)
        self.end(*list(server.held.values()), after=0.05)
        self.end(*list(server.held.values()), after=0.00003 * 512)
        self.assertGreater(server.window, 200)

    def test_the_window_doubles_at_most_once_per_turn(self) -> None:
        (server,), = self.cluster(1)
        for _ in range(2000):
            self.submit()
        ends, last = 0, server.window
        while server.window < 512:
            self.end(next(iter(server.held.values())), after=0.00001)
            ends += 1
            if server.window != last:
                self.assertGreaterEqual(ends, last)
                self.assertLessEqual(server.window, 2 * last)
                ends, last = 0, server.window

    def test_long_jobs_close_it_again(self) -> None:
        (server,), = self.cluster(1)
        for _ in range(8000):
            self.submit()
        for _ in range(20):
            held = list(server.held.values())
            self.end(*held, after=0.00003 * len(held))
        for _ in range(3):
            self.end(next(iter(server.held.values())), after=5)
        self.assertEqual(server.window, 2)

    def test_io_jobs_take_no_slot_and_go_to_the_least_loaded(self) -> None:
        self.cluster(2)
        self.submit()
        for _ in range(4):
            self.submit(IO)
        self.assertEqual([place[1] for place, _ in self.sent()], [0, 1, 0, 1, 0])
        cpu = [self.submit() for _ in range(3)]
        self.assertEqual(len(self.sent()), len(cpu))

    def test_a_place_that_nobody_has_waits_and_says_so(self) -> None:
        self.cluster(1)
        job = self.submit(where="node-b")
        other = self.submit(IO, where=("b", 0))
        self.assertEqual(self.sent(), [])
        self.assertIn("no node or server that is known has the id, name or address 'node-b'", self.state.why(job.id))
        self.state.node_up("b", DispycosNodeInfo("node-b", "addr-b", 1), self.now)
        self.state.server_up("b", 0, b"p", ("b", 0), self.now)
        self.assertEqual(sorted(self.sent()), [(("b", 0), job.id), (("b", 0), other.id)])

    def test_a_place_by_any_of_its_names(self) -> None:
        self.cluster(1, 2)
        for where in ("b", "node-b", "addr-b", ("b", 1)):
            self.submit(where=where)
        for _ in range(10):
            self.submit(where=("a", 0))
        self.assertEqual([place[0] for place, _ in self.sent()], ["b"] * 4 + ["a"] * 2)

    def test_jobs_for_a_place_and_for_anywhere_take_turns_by_age(self) -> None:
        self.cluster(1)
        jobs = [self.submit(where=where) for where in (None, None, "a", None, ("a", 0), "a")]
        self.take()
        order = []
        for _ in range(4):
            self.end(jobs[len(order)], after=1)
            order += [job for _, job in self.sent()]
        self.assertEqual(order, [3, 4, 5, 6])

    def test_ids_must_grow_and_a_closed_cluster_refuses(self) -> None:
        self.submit()
        with self.assertRaisesRegex(pycoslite.MisuseError, "job ids grow"):
            self.state.submit(Job(1, KEY), 0)
        self.state.close(0)
        with self.assertRaisesRegex(ClusterClosed, "takes no more jobs"):
            self.submit()


class RecallTest(StateTest):
    def test_a_long_job_gives_back_what_waits_behind_it(self) -> None:
        (server, other), = self.cluster(2)
        long, quick, behind = self.submit(), self.submit(), self.submit()
        self.take()
        self.assertEqual((long.server, quick.server, behind.server), (server, other, server))
        self.end(quick)
        self.assertEqual(self.take(RECALL_JOBS), [])            # not yet: the job may be short
        self.now = self.state.next_deadline()
        self.state.tick(self.now)
        self.assertEqual(self.take(RECALL_JOBS), [(RECALL_JOBS, server, 1)])
        self.state.tick(self.now + 1)
        self.assertEqual(self.take(RECALL_JOBS), [])            # one at a time
        self.state.returned(server, [(behind.id, 1)], self.now + 1)
        self.assertEqual(self.sent(), [(other.location, behind.id)])
        self.assertEqual(behind.attempt, 2)
        self.assertFalse(self.state.ended(behind.id, 1, VALUE, None, self.now))
        self.assertEqual(self.state.stale, 1)

    def test_a_job_that_was_given_back_has_no_result(self) -> None:
        (server,), = self.cluster(1)
        self.submit()
        behind = self.submit()
        self.state.suspend(server, 0.0)
        self.state.returned(server, [(behind.id, 1)], 0.0)
        self.assertFalse(self.state.ended(behind.id, 1, VALUE, None, 0.0))
        self.assertEqual(self.done(), [])

    def test_recall_that_comes_too_late(self) -> None:
        (server, _), = self.cluster(2)
        long, quick, behind = self.submit(), self.submit(), self.submit()
        self.end(quick)
        self.state.tick(self.now + 1)
        self.end(long)
        self.take()
        self.state.returned(server, [], self.now)
        self.end(behind)
        self.assertEqual(self.done(), [(behind.id, VALUE)])

    def test_what_cannot_move_is_not_recalled(self) -> None:
        (server, _), = self.cluster(2)
        self.submit(where=server.location)
        self.submit(where=server.location)
        for _ in range(5):
            self.state.tick(self.now)
            self.now += 1
        self.assertEqual(self.take(RECALL_JOBS), [])
        self.assertIsNone(self.state.next_deadline())           # and nobody wakes up for it again and again

    def test_every_waiting_job_finds_an_idle_server_in_the_end(self) -> None:
        (server,), = self.cluster(1)
        jobs = [self.submit() for _ in range(300)]
        while server.window < 64:                               # short jobs, deep window; then one that stays
            held = list(server.held.values())
            self.end(*held, after=0.0001 * len(held))
        self.take()
        self.state.server_up("a", 1, b"p", ("a", 1), self.now)
        stuck, ended, recalls = next(iter(server.held)), 0, 0
        for _ in range(2000):
            self.now += 0.004
            self.state.tick(self.now)
            for each in self.take(RECALL_JOBS):
                recalls += 1
                back = list(server.held)[1:][-each[2]:]
                self.state.returned(server, [(job, jobs[job - 1].attempt) for job in back], self.now)
            for other in list(self.state.nodes["a"].servers[1].held.values())[:1]:
                self.end(other)
            ended = len(self.state.jobs)
        self.assertEqual((ended, list(self.state.jobs)), (1, [stuck]))
        self.assertLess(recalls, 10)

    def test_after_a_fruitless_recall_the_search_goes_on(self) -> None:
        (server, _), = self.cluster(2)
        long, quick, behind = self.submit(), self.submit(), self.submit()
        self.end(quick)
        self.state.tick(1.0)
        self.assertEqual(len(self.take(RECALL_JOBS)), 1)
        self.state.returned(server, [], 1.0)
        self.state.tick(self.state.next_deadline())
        self.assertEqual(len(self.take(RECALL_JOBS)), 1)
        self.assertEqual((long.server, behind.server), (server, server))

    def test_only_what_runs_for_long_is_disturbed(self) -> None:
        old, fresh, *others = [row[0] for row in self.cluster(1, 1, 1, 1)]
        fresh.resize(3)
        for _ in range(9):
            self.submit()
        self.now = 1.0
        for server in others:
            self.end(*server.held.values(), after=0.0)
        self.end(next(iter(fresh.held.values())), after=0.003)
        self.take()
        for now, disturbed in ((1.004, []), (1.0051, [old]), (1.011, [fresh])):
            self.state.tick(now)
            self.assertEqual([each[1] for each in self.take(RECALL_JOBS)], disturbed)

    def test_where_some_can_move_and_some_not_all_come_back(self) -> None:
        (server, other), = self.cluster(2)
        server.resize(8)
        server.node.servers[1].resize(1)
        self.state.suspend(other, 0.0)
        jobs = [self.submit(where=where) for where in (None, server.location, None, server.location)]
        self.state.resume(other, 0.0)
        self.take()
        self.state.tick(1.0)
        self.assertEqual(self.take(RECALL_JOBS), [(RECALL_JOBS, server, 3)])
        self.state.returned(server, [(job.id, 1) for job in jobs[1:]], 1.0)
        self.assertIn((other.location, 3), self.sent())

    def test_only_what_a_server_has_is_taken_back_from_it(self) -> None:
        (server, other), = self.cluster(2)
        jobs = [self.submit() for _ in range(4)]
        self.take()
        self.state.returned(server, [(jobs[1].id, 1), (jobs[2].id, 7), (99, 1)], 1.0)
        self.assertEqual((self.state.stale, self.sent()), (3, []))
        self.assertEqual(len(other.held), 2)

    def test_a_second_recall_takes_the_rest_when_a_server_closes(self) -> None:
        (server, other), = self.cluster(2)
        self.state.suspend(other, 0.0)
        server.resize(8)
        jobs = [self.submit() for _ in range(8)]
        self.state.resume(other, 0.0)
        self.take()
        self.state.tick(1.0)
        self.assertEqual(self.take(RECALL_JOBS), [(RECALL_JOBS, server, 6)])
        self.state.close_server(server, 1.0)
        self.assertEqual(self.take(RECALL_JOBS), [])
        self.state.returned(server, [(job.id, 1) for job in jobs[2:]], 1.0)
        self.assertEqual(self.take(RECALL_JOBS), [(RECALL_JOBS, server, 1)])

    def test_suspending_takes_back_what_has_not_started(self) -> None:
        (server,), (other,) = self.cluster(1, 1)
        self.state.suspend(other, self.now)
        running, waiting = self.submit(), self.submit()
        self.take()
        self.state.suspend(server, self.now)
        self.assertEqual(self.take(RECALL_JOBS), [(RECALL_JOBS, server, 1)])
        self.state.returned(server, [(waiting.id, 1)], self.now)
        self.assertIn("takes jobs now (suspended)", self.state.why(waiting.id))
        self.end(running)
        self.assertEqual(self.sent(), [])
        self.state.resume(other, self.now)
        self.assertEqual(self.sent(), [(other.location, waiting.id)])


class LossTest(StateTest):
    def test_what_had_not_begun_runs_elsewhere_in_order_and_for_free(self) -> None:
        (server, _), = self.cluster(2)
        self.state.suspend(self.state.nodes["a"].servers[1], 0)
        jobs = [self.submit() for _ in range(4)]
        self.take()
        self.state.server_down("a", 0, "killed by signal 9 (SIGKILL)", 1.0)
        self.assertEqual(self.done(), [(1, "WorkerDied")])
        self.state.resume(self.state.nodes["a"].servers[1], 0)
        self.assertEqual([job for _, job in self.sent()], [2, 3])
        self.assertEqual([job.attempt for job in jobs], [1, 2, 1, 0])

    def test_the_error_names_server_signal_and_attempt(self) -> None:
        self.cluster(1)
        self.submit()
        self.state.server_down("a", 0, "killed by signal 9 (SIGKILL)", 1.0)
        error = self.take(JOB_DONE)[0][3]
        self.assertEqual(str(error), "job 1 was lost with server 0 of node 'node-a' (('a', 0)) in attempt 1 "
                         "(killed by signal 9 (SIGKILL)); submit it with retries= if it may run more than once")
        self.assertEqual((error.job_id, error.attempt), (1, 1))

    def test_retries_are_used_up(self) -> None:
        job = self.submit(retries=1)
        for attempt in (1, 2):
            self.cluster(1)
            self.assertEqual(job.attempt, attempt)
            self.state.server_down("a", 0, "exit status 3", 1.0)
        self.assertRegex(str(self.take(JOB_DONE)[0][3]), r"attempt 2 \(exit status 3\); its 1 retries are used up")

    def test_no_job_takes_more_than_three_servers_along(self) -> None:
        job = self.submit(retries=100)
        for _ in range(3):
            self.cluster(1)
            self.state.server_down("a", 0, "segfault", 1.0)
        self.assertEqual(self.done(), [(job.id, "WorkerDied")])
        self.assertRegex(str(self.log_of[-1][3]), "went down with 3 servers")

    def test_a_suspect_runs_alone(self) -> None:
        """The results of those before it die too, so that it looks as if it had not begun, until it runs alone."""
        poison = None
        for _ in range(2):
            first = self.submit(priority=9)
            poison = poison or self.submit()
            self.cluster(1)
            self.state.server_down("a", 0, "segfault", 1.0)
            self.assertIn((first.id, "WorkerDied"), self.done())
        self.assertEqual((poison.doubts, poison.suspect), (2, True))
        later = [self.submit() for _ in range(3)]
        (server,), = self.cluster(1)
        self.assertEqual(list(server.held), [poison.id])
        self.end(poison)
        self.assertEqual([job for _, job in self.sent()], [job.id for job in later[:2]])

    def test_a_server_is_kept_free_for_a_suspect(self) -> None:
        suspect = self.submit(retries=5)
        self.cluster(1)
        self.state.server_down("a", 0, "segfault", 1.0)
        _, (other,) = self.cluster(1, 1)
        jobs = [self.submit() for _ in range(8)]
        self.take()
        self.state.server_down("a", 0, "segfault", 1.0)
        self.assertTrue(suspect.suspect)
        self.assertRegex(self.state.why(suspect.id), "2 servers died with it, so it runs alone on the next one")
        self.assertEqual(self.take(RECALL_JOBS), [(RECALL_JOBS, other, 1)])
        running, waiting = list(other.held.values())
        self.state.returned(other, [(waiting.id, waiting.attempt)], 1.0)
        self.assertEqual(self.sent(), [])
        self.end(running)
        self.assertEqual(self.sent(), [(other.location, suspect.id)])
        self.end(suspect)
        self.assertEqual(len(self.sent()), 2)
        self.assertEqual(len(jobs), 8)

    def test_a_reserved_server_that_goes_is_replaced_by_another(self) -> None:
        for goes in (self.suspend, self.restart):
            with self.subTest(goes.__name__):
                self.setUp()
                suspect = self.submit(retries=5)
                self.cluster(1)
                self.state.server_down("a", 0, "segfault", 1.0)
                _, (full,), (free,) = self.cluster(1, 1, 1)
                for _ in range(4):
                    self.submit()
                self.assertEqual((len(full.held), len(free.held)), (2, 1))
                self.state.server_down("a", 0, "segfault", 1.0)
                self.take()
                self.assertEqual((full.reserved, free.reserved), (False, True))
                goes(free)
                self.take()
                self.assertEqual((full.reserved, free.reserved), (True, False))
                self.assertTrue(self.state.cancel(suspect.id, 1.0))
                self.take()
                self.assertEqual((full.reserved, free.reserved), (False, False))

    def suspend(self, server: Server) -> None:
        self.state.suspend(server, 1.0)

    def restart(self, server: Server) -> None:
        self.state.restart_server(server, "silent", 1.0)

    def test_the_node_knows_how_far_the_process_came(self) -> None:
        for begun, ended in ((None, [1]), (0, []), (1, [1]), (2, [1, 2]), (99, [])):
            with self.subTest(begun=begun):
                self.setUp()
                (server,), = self.cluster(1)
                for _ in range(2):
                    self.submit()
                self.take()
                self.state.server_down("a", 0, "gone", 1.0, begun)
                self.assertEqual([job for job, _ in self.done()], ended)
                self.assertEqual(sum(job.doubts for job in self.state.jobs.values()), begun in (None, 0, 99))

    def test_io_jobs_have_all_begun(self) -> None:
        self.cluster(1)
        self.submit(IO)
        self.submit(IO, retries=1)
        self.state.node_down("a", "silent for 60 s", 1.0)
        self.assertEqual(self.done(), [(1, "NodeLost")])

    def test_results_of_an_older_attempt_are_ignored(self) -> None:
        job = self.submit(retries=2)
        for _ in range(2):
            self.cluster(1)
            self.state.node_down("a", "lost", 1.0)
        self.cluster(1)
        for attempt in (0, 1, 2, 4):
            self.assertFalse(self.state.ended(job.id, attempt, VALUE, None, 2.0))
        self.end(job)
        self.assertFalse(self.state.ended(job.id, 3, VALUE, None, 3.0))
        self.assertEqual((self.done(), self.state.stale), ([(1, VALUE)], 5))

    def test_silent_node_gets_nothing_new_and_keeps_what_it_has(self) -> None:
        (server,), = self.cluster(1)
        job = self.submit()
        self.take()
        self.state.node_silent("a", 1.0)
        self.submit()
        self.assertEqual(self.sent(), [])
        self.state.node_heard("a", 2.0)
        self.assertEqual(self.sent(), [(server.location, 2)])
        self.end(job)


class StoppingTest(StateTest):
    def test_cancel_by_state(self) -> None:
        self.cluster(1)
        running, sent, queued = [self.submit() for _ in range(3)]
        self.take()
        for job, expected in ((queued, [JOB_DONE]), (sent, [CANCEL_JOB, JOB_DONE]), (running, [CANCEL_JOB])):
            self.assertTrue(self.state.cancel(job.id, 0.0))
            self.assertEqual([each[0] for each in self.take()], expected)
            self.assertFalse(self.state.cancel(job.id, 0.0))
        self.assertRegex(self.state.why(running.id), "was asked to stop on server 0")
        self.assertRegex(self.state.why(sent.id), "has yet to let go of it")
        self.end(sent, outcome=TERMINATED)
        self.end(running, outcome=TERMINATED)
        self.assertEqual(self.done(), [(1, "Cancelled")])
        self.assertEqual(self.state.jobs, {})

    def test_a_result_that_comes_first_counts(self) -> None:
        self.cluster(1)
        job = self.submit()
        self.state.cancel(job.id, 0.0)
        self.end(job, outcome=EXCEPTION)
        self.assertEqual(self.done(), [(1, EXCEPTION)])

    def test_a_ghost_that_ran_after_all_is_ignored(self) -> None:
        self.cluster(1)
        first, second = self.submit(), self.submit()
        self.state.cancel(second.id, 0.0)
        self.end(first)
        self.end(second)
        self.assertEqual(self.done(), [(2, "Cancelled"), (1, VALUE)])

    def test_who_does_not_stop_is_killed(self) -> None:
        (server,), = self.cluster(1)
        job, behind = self.submit(), self.submit()
        self.take()
        self.state.cancel(job.id, 0.0)
        self.assertEqual(self.state.next_deadline(), dispycos_lite.settings.grace_s)
        self.state.tick(dispycos_lite.settings.grace_s)
        out = self.take()
        self.assertEqual([each[0] for each in out], [CANCEL_JOB, JOB_DONE, STATUS, RESTART_SERVER])
        self.assertEqual(out[-1][2], "job 1 did not stop within 1 s")
        self.state.server_down("a", 0, "killed by signal 9", 2.0)
        self.state.server_up("a", 0, b"p2", ("a", 0), 2.0)
        self.assertEqual(self.sent(), [(("a", 0), behind.id)])
        self.assertEqual(self.state.ghosts, 0)

    def test_a_ghost_that_turned_out_to_run_is_killed_too(self) -> None:
        self.cluster(1)
        first, second = self.submit(), self.submit()
        self.state.cancel(second.id, 0.0)
        self.state.tick(1.0)
        self.assertEqual(self.take(RESTART_SERVER), [])         # it may still wait behind the first
        self.end(first)
        self.state.tick(2.0)
        self.assertEqual(len(self.take(RESTART_SERVER)), 1)

    def test_the_timeout_counts_from_the_start(self) -> None:
        self.cluster(1)
        first, second = self.submit(), self.submit(timeout=3.0)
        self.assertIsNone(self.state.next_deadline())
        self.end(first, after=10.0)
        self.assertEqual(self.state.next_deadline(), 13.0)
        self.state.tick(13.0)
        self.assertEqual([each[0] for each in self.take()][-1], CANCEL_JOB)
        self.end(second, outcome=TERMINATED)
        (job, outcome, error), = [each[1:] for each in self.take(JOB_DONE)]
        self.assertEqual((job.id, outcome, type(error)), (2, ERROR, TimedOut))
        self.assertRegex(str(error), r"longer than its timeout of 3 s on server 0 of node 'node-a'")

    def test_a_job_in_time_leaves_no_timer(self) -> None:
        self.cluster(1)
        for kind in (FUNCTION, TASK, IO):
            self.end(self.submit(kind, timeout=3.0))
        self.assertIsNone(self.state.next_deadline())

    def test_started_is_told_once(self) -> None:
        self.cluster(1)
        job = self.submit(TASK)
        self.take()
        for attempt in (2, 0, 1, 1):
            self.state.started(job.id, attempt, 70 + attempt, 0.0)
        self.assertEqual(self.take(), [(STATUS, SchedulerStatus.TaskStarted, (job, 71))])

    def test_a_job_that_said_it_began_is_not_dropped_at_once(self) -> None:
        self.cluster(1)
        self.submit(TASK)
        second = self.submit(TASK)
        self.state.started(second.id, 1, 5, 0.0)                # the result of the first is still on its way
        self.state.cancel(second.id, 0.0)
        self.assertEqual(self.done(), [])

    def test_old_entries_do_not_pile_up(self) -> None:
        self.cluster(2)
        for _ in range(3000):
            self.end(self.submit())
            self.end(self.submit(IO))
        place = self.state.anywhere
        self.assertLess(len(place.free) + len(place.io_free), 200)

    def test_cancelled_jobs_do_not_pile_up(self) -> None:
        for _ in range(5000):
            self.state.cancel(self.submit().id, 0.0)
            self.state.cancel(self.submit(priority=1).id, 0.0)
        queue = self.state.anywhere.queue
        self.assertLess(len(queue.fresh) + len(queue.ranked), 100)


class CountsTest(StateTest):
    """How many jobs there were, and where."""

    def total(self, **others: int) -> None:
        """The total has these figures, and no others but 0."""
        self.assertEqual(self.state.counts().total, JobCounts(**others))

    def test_from_waiting_to_the_end(self) -> None:
        (one, two), = self.cluster(2)
        jobs = [self.submit() for _ in range(7)]
        self.total(submitted=7, pending=5, running=2)
        self.submit(IO)
        self.total(submitted=8, pending=5, running=3)
        self.end(jobs[0])
        self.end(jobs[1], outcome=EXCEPTION)
        self.total(submitted=8, pending=3, running=3, done=2, failed=1)
        counts = self.state.counts()
        self.assertEqual(counts.node_of, {one.location: "a", two.location: "a"})
        self.assertEqual(counts.nodes, {"a": JobCounts(5, 0, 3, 2, 1)})
        self.assertEqual(sorted(counts.servers.values()), [JobCounts(2, 0, 1, 1, 1), JobCounts(3, 0, 2, 1)])

    def test_what_is_cancelled_is_done_at_once(self) -> None:
        """Also where its server is still busy with it."""
        self.cluster(1)
        jobs = [self.submit() for _ in range(3)]
        for job in jobs[::-1]:
            self.state.cancel(job.id, self.now)
        self.total(submitted=3, running=1, done=2, terminated=2)            # the first one was asked to stop
        self.now += dispycos_lite.settings.grace_s
        self.state.tick(self.now)
        self.total(submitted=3, done=3, terminated=3)
        self.state.server_down("a", 0, "killed", self.now)
        self.total(submitted=3, done=3, terminated=3)

    def test_a_run_that_is_repeated_is_lost_where_it_was_and_not_in_the_total(self) -> None:
        self.cluster(1, 1)
        job = self.submit(retries=1)
        (place, _), = self.sent()
        self.state.server_down(place[0], 0, "killed", self.now)
        self.total(submitted=1, running=1)
        self.end(job)
        self.total(submitted=1, done=1)
        nodes = self.state.counts().nodes
        self.assertEqual(sorted(nodes.values()), [JobCounts(1, 0, 0, 1), JobCounts(1, 0, 0, 1, abandoned=1)])

    def test_what_did_not_run_anywhere_is_in_the_total_alone(self) -> None:
        job = self.submit()
        self.state.cancel(job.id, self.now)
        self.assertEqual(self.state.counts(), (JobCounts(1, done=1, terminated=1), {}, {}, {}))

    def test_io_at_a_close_is_abandoned_unless_all_is_terminated(self) -> None:
        for terminate, figures in ((False, {"abandoned": 1}), (True, {"terminated": 1})):
            self.setUp()
            self.cluster(1)
            job = self.submit(IO)
            self.state.close(self.now, terminate=terminate)
            self.end(job, outcome=TERMINATED)
            self.total(submitted=1, done=1, **figures)

    def test_the_next_turn_goes_on_counting(self) -> None:
        self.cluster(1)
        self.end(self.submit())
        self.state.close(self.now)
        ledger = self.state.ledger
        self.state = ClusterState()
        self.state.ledger = ledger
        self.cluster(1)
        self.end(self.submit())
        self.total(submitted=2, done=2)
        self.assertEqual(list(self.state.counts().servers.values()), [JobCounts(2, done=2)])

    def test_servers_that_are_gone_for_long_are_counted_with_their_node(self) -> None:
        self.addCleanup(setattr, dispycos_lite, "_KEPT_PLACES", dispycos_lite._KEPT_PLACES)
        dispycos_lite._KEPT_PLACES = 3
        self.state.node_up("a", DispycosNodeInfo("n", "x", 1), self.now)
        for port in range(10):
            self.state.server_up("a", 0, b"p", port, self.now)
            self.end(self.submit())
            self.state.server_down("a", 0, "killed", self.now)
        counts = self.state.counts()
        self.assertEqual((sorted(counts.servers), counts.nodes["a"].done, counts.total.done), ([7, 8, 9], 10, 10))
        self.state.node_down("a", "lost", self.now)
        for name in "bcd":
            self.state.node_up(name, DispycosNodeInfo("n", "x", 1), self.now)
            self.state.server_up(name, 0, b"p", name, self.now)
            self.state.node_down(name, "lost", self.now)
        self.assertEqual((sorted(self.state.counts().nodes), self.state.counts().total.done), (["b", "c", "d"], 10))

    def test_what_was_told_of_the_places_there_are(self) -> None:
        (one, two), (three,) = self.cluster(2, 1)
        self.state.suspend(one, self.now)
        self.submit(where=two.location)
        self.state.close_server(two, self.now)
        self.state.suspend(three.node, self.now)
        self.assertEqual(["%s %s" % (CODE_NAMES[code], info) for code, info in self.state.told()], [
            "NodeDiscovered addr-a", "NodeInitialized addr-a", "ServerDiscovered ('a', 0)",
            "ServerInitialized ('a', 0)", "ServerSuspended ('a', 0)", "NodeDiscovered addr-b",
            "NodeInitialized addr-b", "NodeSuspended addr-b", "ServerDiscovered ('b', 0)",
            "ServerInitialized ('b', 0)"])


class FleetTest(StateTest):
    def test_order_of_statuses(self) -> None:
        self.cluster(2)
        jobs = [self.submit(TASK), self.submit(IO)]
        self.state.started(1, 1, 5, 0.0)
        self.state.close(0.0, await_io=True)
        self.end(*jobs)
        self.take()
        names = ["%s %s" % (CODE_NAMES[each[1]], each[2]) for each in self.log_of if each[0] == STATUS]
        self.assertEqual([name for name in names if not name.startswith("Task")], [
            "NodeDiscovered addr-a", "NodeInitialized addr-a",
            "ServerDiscovered ('a', 0)", "ServerInitialized ('a', 0)",
            "ServerDiscovered ('a', 1)", "ServerInitialized ('a', 1)",
            "ServerClosed ('a', 0)", "ServerClosed ('a', 1)", "NodeClosed addr-a", "ClientClosed None"])
        self.assertTrue(self.state.closed)

    def test_setup_holds_a_node_and_a_server_back(self) -> None:
        self.submit()
        self.state.node_up("a", DispycosNodeInfo("a", "b", 1), 0.0, ready=False)
        self.state.server_up("a", 0, b"p", "here", 0.0, ready=False)
        self.assertEqual(self.statuses(), ["NodeDiscovered b", "ServerDiscovered here"])
        self.state.node_ready("a", 0.0)
        self.assertEqual(self.sent(), [])
        self.state.server_ready("a", 0, 0.0)
        self.assertEqual(self.sent(), [("here", 1)])

    def test_a_node_that_is_lost(self) -> None:
        self.cluster(1)
        self.state.node_down("a", "silence", 0.0)
        self.assertEqual(self.statuses(), ["ServerClosed ('a', 0)", "ServerDisconnected ('a', 0)",
                                           "NodeDisconnected addr-a"])
        self.state.node_down("a", "silence", 0.0)
        self.assertEqual(self.take(), [])

    def test_suspend_and_resume_once(self) -> None:
        (server,), = self.cluster(1)
        node = server.node
        for entity, name in ((server, "Server%s ('a', 0)"), (node, "Node%s addr-a")):
            self.assertTrue(self.state.suspend(entity, 0.0))
            self.assertFalse(self.state.suspend(entity, 0.0))
            self.submit()
            self.assertEqual(self.sent(), [])
            self.assertTrue(self.state.resume(entity, 0.0))
            self.assertFalse(self.state.resume(entity, 0.0))
            names = ["%s %s" % (CODE_NAMES[each[1]], each[2]) for each in self.log_of if each[0] == STATUS][-1:]
            self.assertEqual(names + self.statuses(), [name % "Suspended", name % "Resumed"])

    def test_close_server_waits_for_what_runs(self) -> None:
        (server, other), = self.cluster(2)
        jobs = [self.submit(), self.submit(), self.submit()]
        self.take()
        self.state.close_server(server, 0.0, restart=True)
        self.assertEqual([each[0] for each in self.take()], [STATUS, RECALL_JOBS])
        self.state.returned(server, [(jobs[2].id, 1)], 0.0)
        self.assertEqual(self.sent(), [(other.location, jobs[2].id)])
        self.end(jobs[0])
        self.assertEqual(self.take(RESTART_SERVER), [(RESTART_SERVER, server, "it was closed", True)])

    def test_close_server_at_once(self) -> None:
        (server,), = self.cluster(1)
        self.submit(), self.submit(IO)
        self.state.close_server(server, 0.0, terminate=True)
        self.assertEqual(len(self.take(CANCEL_JOB)), 2)
        for job in list(self.state.jobs.values()):
            self.end(job, outcome=TERMINATED)
        self.assertEqual([name for _, name in self.done()], ["Cancelled"] * 2)
        self.assertEqual(self.log_of[-1][0], RESTART_SERVER)

    def test_close_node_releases_it_when_it_is_empty(self) -> None:
        (server, _), (elsewhere,) = self.cluster(2, 1)
        job = self.submit(where=server.location)
        self.take()
        self.state.close_node(server.node, 0.0)
        self.assertEqual(self.take(RELEASE_NODE), [])
        self.end(job)
        self.assertEqual([each[0] for each in self.take()][-2:], [STATUS, RELEASE_NODE])
        self.submit()
        self.assertEqual(self.sent(), [(elsewhere.location, 2)])

    def test_an_empty_node_is_released_at_once(self) -> None:
        (server, _), = self.cluster(2)
        self.state.close_node(server.node, 0.0)
        self.assertEqual(self.statuses(), ["ServerClosed ('a', 0)", "ServerClosed ('a', 1)", "NodeClosed addr-a"])

    def test_close_stops_io_jobs_and_awaits_the_others(self) -> None:
        self.cluster(1)
        cpu, io = self.submit(), self.submit(IO)
        self.submit(IO, where="nowhere")
        self.state.close(0.0)
        self.end(cpu)
        self.assertFalse(self.state.closed)
        self.state.tick(5.0)                                    # the I/O job does not stop; its node ends it anyway
        self.assertTrue(self.state.closed)
        self.assertEqual(sorted(self.done()), [(1, VALUE), (2, "Cancelled"), (3, "Cancelled")])
        self.assertFalse(self.state.ended(io.id, 1, VALUE, None, 6.0))

    def test_close_at_once(self) -> None:
        self.cluster(1)
        for _ in range(4):
            self.submit(retries=3)
        self.state.close(0.0, terminate=True)
        self.assertEqual(sorted(self.done()), [(job, "Cancelled") for job in (2, 3, 4)])
        self.state.server_down("a", 0, "killed", 0.1)
        self.assertEqual(self.done(), [(1, "Cancelled")])
        self.assertEqual(self.log_of[-1], (STATUS, SchedulerStatus.ClientClosed, None))

    def test_close_without_anything(self) -> None:
        self.state.close(0.0)
        self.assertEqual(self.statuses(), ["ClientClosed None"])
        self.state.close(0.0)
        self.assertEqual(self.take(), [])

    def test_a_process_that_is_there_again_replaces_the_old_one(self) -> None:
        self.cluster(1)
        self.submit()
        self.state.server_up("a", 0, b"p2", ("a", 0), 1.0)
        self.assertEqual(self.done(), [(1, "WorkerDied")])
        self.state.node_up("a", DispycosNodeInfo("node-a", "addr-a", 1), 2.0)
        self.assertEqual(list(self.state.anywhere.servers), [])

    def test_transitions_are_what_the_tables_say(self) -> None:
        for event, moves in dispycos_lite.JOB_MOVES.items():
            for state in ("queued", "sent", "started", "stopping", "ghost", "ended"):
                job = Job(1, KEY)
                job.state = state
                if state in moves:
                    job.move(event)
                    self.assertEqual(job.state, moves[state])
                else:
                    self.assertRaises(KeyError, job.move, event)


class History:
    """Everything that happened in a simulation, and what must be true of it.

    Every job ends exactly once. A result is accepted from the current attempt alone, and only if that run came to its
    end. A job begins at most once more than its `retries` where it is known what each server began (no node is lost),
    and never more than `max_runs` times. A server gets the jobs that may run anywhere in the order of their ids, and
    never more than its limit. There is one RECALL at a time. Statuses of an entity come in their order, but that it is
    abandoned may be told of it at any time. Counts say the same as what was told of each job, and never shrink.
    """

    ORDER = ["Discovered", "Initialized", "Closed", "Disconnected"]

    def __init__(self, test: TestCase) -> None:
        self.test = test
        self.began: Dict[int, List[int]] = collections.defaultdict(list)
        self.finished: set = set()                  # (job id, attempt) that ran to the end
        self.done: Dict[int, Any] = {}
        self.last_fresh: Dict[Server, int] = {}
        self.statuses: Dict[Any, List[str]] = collections.defaultdict(list)
        self.kinds: collections.Counter = collections.Counter()         # of the outcomes in `done`
        self.places: Dict[Any, tuple] = {}          # -> what had ended there

    def counted(self, counts: dispycos_lite.ClusterCounts, submitted: int) -> None:
        """What the state counts when so many jobs have been submitted."""
        total, test = counts.total, self.test
        test.assertEqual((total.submitted, total.done), (submitted, len(self.done)))
        lost = sum(self.kinds[kind] for kind in ("Cancelled", "TimedOut", "WorkerDied", "NodeLost"))
        test.assertEqual(total.terminated + total.abandoned, lost)
        test.assertEqual(total.failed, len(self.done) - lost - self.kinds[VALUE])
        test.assertGreaterEqual(min(total), 0)
        for name, places in (("node", counts.nodes), ("server", counts.servers)):
            for place, found in places.items():
                ends = found[3:]                    # done and what it is made of
                test.assertTrue(all(map(operator.ge, ends, self.places.get((name, place), (0,) * 4))), place)
                self.places[name, place] = ends
        sums = [tuple(map(sum, zip(*places.values()))) for places in (counts.nodes, counts.servers)]
        test.assertEqual(*sums)

    def sent(self, server: Server, job: Job, attempt: int) -> None:
        self.test.assertNotIn(job.id, self.done)
        if attempt == 1 and job.kind != IO and not job.terms.priority and job.terms.where is None:
            self.test.assertLess(self.last_fresh.get(server, 0), job.id, "order at %s" % server)
            self.last_fresh[server] = job.id

    def ended(self, job: Job, outcome: int, payload: Any) -> None:
        self.test.assertNotIn(job.id, self.done, "job %d ended twice" % job.id)
        self.done[job.id] = type(payload).__name__ if outcome == ERROR else outcome
        self.kinds[self.done[job.id]] += 1
        if outcome == VALUE:
            self.test.assertEqual(payload, (job.id, job.attempt))
            self.test.assertIn(payload, self.finished)

    def status(self, code: int, info: Any) -> None:
        match = re.match("(Node|Server)(Disc.*|Init.*|Closed)", CODE_NAMES[code])
        if match:
            seen = self.statuses[(match.group(1), str(info))]
            if match.group(2) == "Discovered":
                seen.clear()
            seen.append(match.group(2))
            places = [self.ORDER.index(each) for each in seen]
            self.test.assertEqual(places, sorted(set(places)), (info, seen))

    def conclude(self, jobs: List[Job], exact: bool) -> None:
        self.test.assertEqual(sorted(self.done), [job.id for job in jobs])
        for job in jobs:
            runs = len(self.began[job.id])
            self.test.assertEqual(len(set(self.began[job.id])), runs, "attempt of job %d began twice" % job.id)
            self.test.assertLessEqual(runs, dispycos_lite.settings.max_runs)
            if exact:
                self.test.assertLessEqual(runs, job.terms.retries + 1, "job %d" % job.id)


class Process:
    """A simulated server process: runs CPU jobs one by one in order, I/O jobs at once, answers RECALL and CANCEL."""

    def __init__(self, world: "World", server: Server) -> None:
        self.world, self.server = world, server
        self.alive = True
        self.queue: collections.deque = collections.deque()
        self.running: Optional[Tuple[Job, int]] = None
        self.io: Dict[Tuple[int, int], Job] = {}
        self.begun = 0

    def receive(self, what: str, *args: Any) -> None:
        if self.alive:
            getattr(self, "on_" + what)(*args)

    def say(self, event: Callable, *args: Any) -> None:
        self.world.to_client(self, event, *args)

    def on_send(self, job: Job, attempt: int) -> None:
        self.world.test.assertLessEqual(len(self.queue), dispycos_lite.settings.credit_max)
        if job.kind == IO:
            self.io[job.id, attempt] = job
            self.begin(job, attempt)
        else:
            self.queue.append((job, attempt))
            self.next()

    def next(self) -> None:
        if self.running is None and self.queue:
            self.running = job, attempt = self.queue.popleft()
            self.begun = job.id
            self.begin(job, attempt)

    def begin(self, job: Job, attempt: int) -> None:
        self.world.history.began[job.id].append(attempt)
        if job.kind != FUNCTION:
            self.say(self.world.state.started, job.id, attempt, 1)
        if job.load == "poison":
            self.world.after(0.001, self.world.kill, self)
        elif job.load != "stuck":
            self.world.after(job.load, self.finish, job, attempt)

    def finish(self, job: Job, attempt: int, outcome: int = VALUE) -> None:
        here = self.io.pop((job.id, attempt), None) is not None or self.running == (job, attempt)
        if not self.alive or not here:
            return
        if outcome == VALUE:
            self.world.history.finished.add((job.id, attempt))
        self.say(self.world.state.ended, job.id, attempt, outcome, (job.id, attempt))
        if job.kind != IO:
            self.running = None
            self.next()

    def on_recall(self, count: int) -> None:
        back = [self.queue.pop() for _ in range(min(count, len(self.queue)))]
        self.say(self.world.state.returned, self.server, [(job.id, attempt) for job, attempt in back])

    def on_cancel(self, job: Job, attempt: int) -> None:
        if (job, attempt) in self.queue:
            self.queue.remove((job, attempt))
            self.say(self.world.state.ended, job.id, attempt, TERMINATED, None)
        elif job.kind == TASK or job.kind == IO:
            self.finish(job, attempt, TERMINATED)


class World:
    """A clock, processes on nodes, and the wires between them and one `ClusterState`."""

    def __init__(self, test: TestCase, seed: int, exact: bool) -> None:
        self.test, self.exact = test, exact
        self.random = random.Random(seed)
        self.state = ClusterState()
        self.history = History(test)
        self.now = 0.0
        self.numbers = itertools.count()
        self.events: List[tuple] = []
        self.processes: Dict[Server, Process] = {}
        self.wires: Dict[Any, float] = {}
        self.jobs: List[Job] = []
        self.tick_at: Optional[float] = None
        self.recalled: set = set()
        self.woken = self.abandoned = 0
        self.loads: Dict[Server, int] = {}

    def after(self, delay: float, fn: Callable, *args: Any) -> None:
        heapq.heappush(self.events, (self.now + delay, next(self.numbers), fn, args))

    def arrival(self, wire: Any) -> float:
        """When what is sent now comes out of a wire, which keeps the order."""
        at = max(self.wires.get(wire, 0.0), self.now + self.random.expovariate(1000))
        self.wires[wire] = at
        return at - self.now

    def to_client(self, process: Process, event: Callable, *args: Any) -> None:
        copies = 2 if event == self.state.ended and self.random.random() < 0.05 else 1
        for _ in range(copies):
            self.after(self.arrival(process), self.event, event, *args)

    def event(self, event: Callable, *args: Any) -> None:
        """Tell the state, check it, and do what it says."""
        if event == self.state.returned:
            self.recalled.remove(args[0])
        event(*args, self.now)
        self.carry_out()

    def carry_out(self) -> None:
        self.state.validate()
        for server in self.state.anywhere.servers:
            load = len(server.held)
            most = server.window if server.serves() else 0
            self.test.assertLessEqual(load, max(most, self.loads.get(server, 0)), "credit of %s" % server)
            self.loads[server] = load
        for instruction in self.state.take():
            getattr(self, "do_" + instruction[0])(*instruction[1:])
        self.history.counted(self.state.counts(), len(self.jobs))
        due = self.state.next_deadline()
        if due is not None and (self.tick_at is None or due < self.tick_at):
            self.tick_at = due
            self.after(max(due - self.now, 0), self.tick)

    def tick(self) -> None:
        self.tick_at = None
        self.event(self.state.tick)

    def do_send(self, server: Server, job: Job, attempt: int) -> None:
        self.history.sent(server, job, attempt)
        self.to_server(server, "send", job, attempt)

    def do_recall(self, server: Server, count: int) -> None:
        self.test.assertNotIn(server, self.recalled, "a second RECALL")
        self.test.assertGreater(count, 0)
        self.recalled.add(server)
        self.to_server(server, "recall", count)

    def do_cancel(self, server: Server, job: Job, attempt: int) -> None:
        self.to_server(server, "cancel", job, attempt)

    def to_server(self, server: Server, *message: Any) -> None:
        self.after(self.arrival(server), self.processes[server].receive, *message)

    def do_done(self, job: Job, outcome: int, payload: Any) -> None:
        self.history.ended(job, outcome, payload)

    def do_status(self, code: int, info: Any, reason: str = "") -> None:
        self.history.status(code, info)
        self.abandoned += CODE_NAMES[code] == "NodeAbandoned"

    def do_restart(self, server: Server, _reason: str, again: bool) -> None:
        self.kill(self.processes[server], again)

    def do_wake(self, node: Any, n: Optional[int]) -> None:
        self.woken += 1
        if n is None:
            self.after(0.02, self.add_node, node.id, node.info.cpus)
        else:
            self.after(0.02, self.add_server, node.id, n)

    def do_release(self, node: Any) -> None:
        for process in self.processes.values():
            process.alive = process.alive and process.server.node is not node

    def add_node(self, name: str, cpus: int) -> None:
        if self.state.closed:
            return
        self.event(lambda now: self.state.node_up(name, DispycosNodeInfo(name, "addr-" + name, cpus), now))
        self.event(functools.partial(self.state.abandon, self.state.nodes[name], not self.exact))
        for n in range(cpus):
            self.add_server(name, n)

    def add_server(self, name: str, n: int) -> None:
        if self.state.closed or name not in self.state.nodes:
            return
        server = self.state.server_up(name, n, b"p", (name, n), self.now, ready=False)
        self.processes[server] = Process(self, server)
        self.event(self.state.server_ready, name, n)

    def kill(self, process: Process, again: bool = True) -> None:
        """A server process dies; what it has said may arrive or not, then its death is known, then it is replaced."""
        if not process.alive:
            return
        process.alive = False
        server = process.server
        if self.random.random() < 0.5 and not self.exact:
            self.events = [each for each in self.events if not self._said_by(each, process)]
            heapq.heapify(self.events)
        delay = max(self.arrival(process), 0.001)
        self.after(delay, self.bury, server, process.begun if self.exact else None, again)

    @staticmethod
    def _said_by(event: tuple, process: Process) -> bool:
        """Whether a scheduled event is a result on its way from a process."""
        args = event[3]
        return len(args) > 1 and getattr(args[0], "__name__", "") == "ended" and args[1] in process.server.held

    def bury(self, server: Server, begun: Optional[int], again: bool) -> None:
        node = server.node
        if self.state.nodes.get(node.id) is node and node.servers.get(server.n) is server:
            self.event(lambda now: self.state.server_down(node.id, server.n, "killed", now, begun))
            if again:
                self.after(0.02, self.add_server, node.id, server.n)

    def vanish(self, name: str) -> None:
        """A node is lost with all that is on it; some time later there is a new one of its name."""
        node = self.state.nodes.get(name)
        if node is None:
            return
        self.do_release(node)
        self.event(lambda now: self.state.node_down(name, "lost", now))
        self.after(0.05, self.add_node, name, len(node.servers) or 2)

    def pause(self, name: str) -> None:
        node = self.state.nodes.get(name)
        if node is None:
            return
        there, back = self.random.choice([
            (lambda now: self.state.node_silent(name, now), lambda now: self.state.node_heard(name, now)),
            (lambda now: self.state.suspend(node, now), lambda now: self.state.resume(node, now))])
        self.event(there)
        self.after(0.03, lambda: self.state.nodes.get(name) is node and self.event(back))

    def close_one(self) -> None:
        servers = [server for server in self.state.anywhere.servers if server.limit]
        if servers:
            close = functools.partial(self.state.close_server, terminate=self.random.random() < 0.5, restart=True)
            self.event(close, self.random.choice(servers))

    def kill_some(self) -> None:
        alive = [process for process in self.processes.values() if process.alive]
        if alive:
            self.kill(self.random.choice(alive))

    def submit(self, load: Any, kind: int, terms: Terms) -> None:
        job = Job(len(self.jobs) + 1, KEY, kind, terms, load)
        self.jobs.append(job)
        self.event(self.state.submit, job)

    def submit_some(self, count: int) -> None:
        choice, chance = self.random.choice, self.random.random
        for _ in range(count):
            load: Any = choice([0.0001, 0.001, 0.01, 0.1])
            if chance() < 0.03:
                load = choice(["poison", "stuck"])
            stuck = load == "stuck"
            terms = Terms(choice([None] * 8 + ["a", "addr-b", ("c", 0)]), choice([0, 0, 1, 5]),
                          0.2 if stuck or chance() < 0.1 else None, choice([0] * 9 + [1, -1]))
            self.submit(load, choice([FUNCTION] * 6 + [TASK, IO]), terms)
            if chance() < 0.1:
                self.after(chance() * 0.1, self.event, self.state.cancel, len(self.jobs))

    def run(self, limit: float = 1e9) -> None:
        while self.events and self.events[0][0] <= limit:
            self.now, _, fn, args = heapq.heappop(self.events)
            fn(*args)


class SimulationTest(TestCase):
    def simulate(self, seed: int, exact: bool, faults: int) -> World:
        world = World(self, seed, exact)
        chance = world.random.random
        world.event(functools.partial(world.state.limit, 0.05, 0.02, "zombie_period=0.05", "..."))
        world.event(functools.partial(world.state.setting_up, 1))       # keeps the client, whose servers become idle
        for name, cpus in (("a", 1), ("b", 2), ("c", 3)):
            world.after(chance() * 0.1, world.add_node, name, cpus)
        for _ in range(8):
            world.after(chance(), world.submit_some, 25)
        for _ in range(faults):
            world.after(chance(), world.kill_some)
            fault = world.vanish if chance() < 0.2 and not exact else world.pause
            world.after(chance(), fault, world.random.choice("abc"))
        for _ in range(faults // 4):
            world.after(chance(), world.close_one)
        closing = dict(terminate=chance() < 0.3, await_io=chance() < 0.5)
        world.after(1.5, world.event, functools.partial(world.state.close, **closing))
        world.run()
        self.assertTrue(world.state.closed)
        world.history.conclude(world.jobs, exact)
        return world

    def test_without_faults_every_job_has_its_result(self) -> None:
        for seed in range(5):
            world = World(self, seed, True)
            world.add_node("a", 4)
            for _ in range(300):
                world.submit(world.random.choice([0.0001, 0.001, 0.05]), FUNCTION, Terms())
            world.event(world.state.close)
            world.run()
            self.assertEqual(set(world.history.done.values()), {VALUE})

    def test_random_histories_where_the_node_knows_what_began(self) -> None:
        for seed in range(25):
            with self.subTest(seed=seed):
                self.simulate(seed, True, 12)

    def test_random_histories_where_results_die_with_their_server(self) -> None:
        outcomes: collections.Counter = collections.Counter()
        for seed in range(1000, 1025):
            with self.subTest(seed=seed):
                world = self.simulate(seed, False, 12)
                outcomes.update(world.history.done.values())
                outcomes.update({"woken": world.woken, "abandoned": world.abandoned})
        self.assertLessEqual({VALUE, "WorkerDied", "NodeLost", "Cancelled", "TimedOut"}, set(outcomes), outcomes)
        self.assertGreater(min(outcomes["woken"], outcomes["abandoned"]), 20, outcomes)


class GrowthTest(TestCase):
    """Work per job, counted in lines executed, is the same for ten nodes and for a thousand."""

    JOBS = 3000

    def lines_per_job(self, nodes: int, terms: Callable[[int], Terms], kind: int, trickle: bool) -> float:
        state = ClusterState()
        for number in range(nodes):
            state.node_up(number, DispycosNodeInfo("n%d" % number, "x", 1), 0.0)
            state.server_up(number, 0, b"p", number, 0.0)
        state.take()
        jobs = [Job(number + 1, KEY, kind, terms(number % nodes)) for number in range(self.JOBS)]
        return _count_lines(lambda: self.play(state, jobs, trickle)) / self.JOBS

    def play(self, state: ClusterState, jobs: List[Job], trickle: bool) -> None:
        now = 0.0
        batches = [[job] for job in jobs] if trickle else [jobs]
        done = 0
        for batch in batches:
            for job in batch:
                state.submit(job, now)
            out = state.take()
            while out:
                now += 0.001
                for each in out:
                    done += each[0] == JOB_DONE
                    if each[0] == SEND_JOB:
                        state.ended(each[2].id, each[3], VALUE, None, now)
                due = state.next_deadline()
                if due is not None and due <= now:
                    state.tick(now)
                out = state.take()
        self.assertEqual(done, len(jobs))

    def test_flat(self) -> None:
        for name, terms, kind, trickle in (
                ("anywhere, at once", lambda n: Terms(), FUNCTION, False),
                ("anywhere, one by one", lambda n: Terms(), FUNCTION, True),
                ("at a node", lambda n: Terms(where=n), FUNCTION, False),
                ("I/O", lambda n: Terms(), IO, False),
                ("with a timeout", lambda n: Terms(timeout=5.0), FUNCTION, True)):
            with self.subTest(name):
                few, many = (self.lines_per_job(nodes, terms, kind, trickle) for nodes in (10, 1000))
                self.assertLess(many, few * 1.5 + 10, "lines per job with 10 and with 1000 nodes")


    def test_a_search_for_jobs_to_recall_looks_at_some(self) -> None:
        lines = []
        for nodes in (100, 1000):
            state = ClusterState()
            for number in range(nodes):
                state.node_up(number, DispycosNodeInfo("n%d" % number, "x", 1), 0.0)
                state.server_up(number, 0, b"p", number, 0.0)
            for number in range(2 * nodes - 2):
                state.submit(Job(number + 1, KEY), 0.0)
            for server in [each for each in state.anywhere.servers if len(each.held) == 1]:
                state.ended(next(iter(server.held)), 1, VALUE, None, 0.0)
            self.assertTrue(state.idle)
            lines.append(_count_lines(lambda: state.tick(1.0)))
            self.assertEqual(sum(each[0] == RECALL_JOBS for each in state.take()), len(state.idle))
        self.assertLess(lines[1], lines[0] * 1.2)


def _count_lines(play: Callable[[], None]) -> int:
    """How many lines of the module run during `play`."""
    count = 0

    def on_line(frame: Any, event: str, _arg: Any) -> Callable:
        nonlocal count
        count += event == "line"
        return on_line

    def on_call(frame: Any, _event: str, _arg: Any) -> Optional[Callable]:
        return on_line if frame.f_code.co_filename == dispycos_lite.__file__ else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        play()
    finally:
        sys.settrace(before)
    return count
