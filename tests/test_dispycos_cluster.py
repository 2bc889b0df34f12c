"""Cluster, the executor, with real nodes and servers on this machine."""
from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import itertools
import os
import signal
import sys
import threading
import time
import unittest
from typing import Any, Callable, Iterator, List, Optional

import dispycos_lite
import pycoslite
from dispycosnode_lite import available_cpus
from tests import cluster_jobs as jobs
from tests import support

WAIT_S = support.PROCESS_S
CLUSTER = "test-%d" % os.getpid()           # nodes that others run on this network are none of ours
HERE = r"using \d+ cores of this machine"
STOPS = r"(server|node) .*(killed|cannot be reached|lost|restarted)"


def cores() -> int:
    """How many servers these tests have: two, or as many as can be had."""
    return min(2, available_cpus()[0])


class ClusterCase(support.TestCase):
    """What these tests have in common."""

    @contextlib.contextmanager
    def cluster(self, cpus: Optional[int] = None, **options: Any) -> Iterator[dispycos_lite.Cluster]:
        """A cluster of this machine's cores."""
        with self.expect_log(HERE):
            cluster = dispycos_lite.Cluster(cpus=cpus or cores(), cluster=CLUSTER, **options)
        with cluster:
            yield cluster

    def marks(self, path: Any) -> List[str]:
        """What `jobs.touch` has left."""
        return path.read_text().split() if path.exists() else []

    def wait_marks(self, path: Any, count: int = 1) -> List[str]:
        return self.wait_until(lambda: len(self.marks(path)) >= count and self.marks(path), what="%d marks" % count)

    @contextlib.contextmanager
    def held(self, cluster: Any) -> Iterator[concurrent.futures.Future]:
        """A job that has begun, and goes on until the block ends."""
        folder = self.temp_dir()
        future = cluster.submit(jobs.hold, str(folder / "mark"), str(folder / "go"))
        self.wait_marks(folder / "mark")
        try:
            yield future
        finally:
            (folder / "go").touch()

    @contextlib.contextmanager
    def grace(self, seconds: float = 0.2) -> Iterator[None]:
        """Jobs that do not stop are killed sooner, or later."""
        before, dispycos_lite.settings.grace_s = dispycos_lite.settings.grace_s, seconds
        try:
            yield
        finally:
            dispycos_lite.settings.grace_s = before


class WorkTest(ClusterCase):
    """Jobs that do what they should."""

    def test_what_runs(self) -> None:
        offset = 10
        bound = {"number": 4}.get
        with self.cluster() as cluster:
            cases = [
                (cluster.submit(jobs.double, 21), 42),
                (cluster.submit(lambda x: x + offset, 1), 11),
                (cluster.submit(functools.partial(jobs.double, 4)), 8),
                (cluster.submit(jobs.steps, 4), 6),
                (cluster.submit(jobs.awaits, 4), 5),
                (cluster.submit(abs, -3), 3),
                (cluster.submit(bound, "number"), 4),
                (cluster.submit(dict, fn=1, self=2), {"fn": 1, "self": 2}),
            ]
            for future, result in cases:
                self.assertEqual(future.result(WAIT_S), result)
            self.assertEqual(len(cluster.submit(jobs.large, 50 << 20).result(WAIT_S)), 50 << 20)
            self.assertEqual(cluster.submit(len, b"x" * (50 << 20)).result(WAIT_S), 50 << 20)

    def test_every_server_is_used(self) -> None:
        folder = self.temp_dir()
        with self.cluster() as cluster:
            futures = [cluster.submit(jobs.hold, str(folder / "mark"), str(folder / "go")) for _ in range(cores())]
            self.wait_marks(folder / "mark", cores())
            (folder / "go").touch()
            self.assertEqual(len({future.result(WAIT_S) for future in futures}), cores())
            self.assertRegex(cluster.submit(jobs.where).result(WAIT_S)[0], r"^\S+/\d$")
            self.assertEqual(dispycos_lite.current_server(), "")

    def test_prefetched_jobs_move_to_idle_servers(self) -> None:
        with self.cluster() as cluster:
            list(cluster.map(jobs.double, range(2000)))         # the windows grow
            release = self.temp_dir() / "go"
            held = cluster.submit(jobs.hold, str(self.temp_dir() / "mark"), str(release))
            if cores() > 1:
                self.assertEqual([f.result(WAIT_S) for f in [cluster.submit(jobs.double, n) for n in range(50)]],
                                 [2 * n for n in range(50)])
            release.touch()
            held.result(WAIT_S)

    def test_two_clusters_in_one_process(self) -> None:
        with self.cluster(1) as first, self.cluster(1) as second:
            one, two = first.submit(jobs.where), second.submit(jobs.where)
            self.assertNotEqual(one.result(WAIT_S)[1], two.result(WAIT_S)[1])
            first.shutdown()
            self.assertEqual(second.submit(jobs.double, 1).result(WAIT_S), 2)
            with self.assertRaisesRegex(pycoslite.MisuseError, "another secret or cluster name"):
                dispycos_lite.Cluster(cluster="other")

    def test_user_tasks_go_on_beside_it_and_after_it(self) -> None:
        def waits(cluster: Any, task: Any = None) -> Iterator:
            return (yield cluster.submit(jobs.double, 5))
        with self.cluster(1) as cluster:
            self.assertEqual(pycoslite.Task(waits, cluster).value(WAIT_S), 10)
            asleep = pycoslite.Task(self.sleeper)
        self.assertTrue(asleep.is_alive())
        asleep.resume()
        asleep.value(WAIT_S)
        pycoslite.stop_default()

    @staticmethod
    def sleeper(task: Any = None) -> Iterator:
        yield task.suspend()

    def test_unsendable_is_refused_before_submission(self) -> None:
        lock = threading.Lock()

        def closes_over_a_lock() -> Any:
            return lock
        with self.cluster(1) as cluster:
            with self.assertRaisesRegex(dispycos_lite.CannotShip, r"closes_over_a_lock.*'lock'.*_thread\.l") as caught:
                cluster.submit(closes_over_a_lock)
            self.assertRegex(str(caught.exception), r"test_dispycos_cluster\.py:\d+")
            with self.assertRaisesRegex(dispycos_lite.CannotShip, "argument 1"):
                cluster.submit(jobs.double, lock)
            self.assertEqual(cluster.submit(jobs.double, 1).result(WAIT_S), 2)


class EndsTest(ClusterCase):
    """Jobs that end badly: each ends with an error that has a name, and the next job runs."""

    def check(self, function: Callable, *args: Any, kind: type, text: str, dies: bool = False) -> BaseException:
        with contextlib.ExitStack() as stack:
            if dies:
                stack.enter_context(self.expect_log(r"server 1 of node \S+: .*" + text))
            error = self.one.submit(function, *args).exception(WAIT_S)
        self.assertIs(type(error), kind, repr(error))
        self.assertRegex(str(error), text)
        self.assertEqual(self.one.submit(jobs.double, 3).result(WAIT_S), 6)
        return error

    def test_errors_have_names(self) -> None:
        with self.cluster(1) as self.one:
            error = self.check(jobs.fail, "so", kind=ValueError, text="^so$")
            self.assertIn("in fail", str(error.__cause__))
            self.check(jobs.unpicklable, kind=dispycos_lite.ResultError, text="generator")
            self.check(jobs.pig, kind=dispycos_lite.ResultError, text="KeyboardInterrupt")
            self.check(jobs.breaks_on_arrival, kind=dispycos_lite.ResultError, text="unpickled here.*ValueError")
            self.check(jobs.leave, "bye", kind=dispycos_lite.JobExit, text=r"sys\.exit\('bye'\)")
            self.check(jobs.recurse, kind=RecursionError, text="recursion")
            for kind in (KeyboardInterrupt, GeneratorExit, SystemExit):
                self.check(jobs.raise_it, kind, kind=dispycos_lite.JobExit, text="on purpose")
            self.check(jobs.double, kind=TypeError, text="missing 1 required")
            self.check(jobs.steps, kind=TypeError, text="missing 1 required")
            error = self.one.submit(jobs.raise_awkward).exception(WAIT_S)
            self.assertIn("this and that", str(error))

    def test_dead_servers_are_named_and_replaced(self) -> None:
        with self.cluster(1) as self.one:
            died = dispycos_lite.WorkerDied
            self.check(jobs.leave_at_once, kind=died, text="exit status 3", dies=True)
            self.check(jobs.crash, kind=died, text=r"signal 11 \(SIGSEGV\)", dies=True)
            error = self.check(jobs.kill_itself, kind=died, text=r"signal 9 \(SIGKILL\)", dies=True)
            self.assertEqual(error.attempt, 1)

    def test_retries(self) -> None:
        mark = self.temp_dir() / "mark"
        with self.cluster(1) as cluster, self.expect_log(STOPS) as lines:
            self.assertEqual(cluster.submit(jobs.kill_first_time, str(mark), retries=1).result(WAIT_S), "survived")
            self.assertEqual(len(self.marks(mark)), 2)
            error = cluster.submit(jobs.kill_itself, retries=9).exception(WAIT_S)
            self.assertIsInstance(error, dispycos_lite.WorkerDied)
            self.assertRegex(str(error), "3 servers")           # a job that kills is given up
        self.assertEqual(len(lines), 4)                         # one line for each

    def test_jobs_that_had_not_begun_run_elsewhere_once(self) -> None:
        folder = self.temp_dir()
        with self.cluster() as cluster:
            list(cluster.map(jobs.double, range(500)))
            release, held = folder / "go", folder / "held"
            first = cluster.submit(jobs.hold, str(held), str(release))
            pid = int(self.wait_marks(held)[0])
            others = [cluster.submit(jobs.touch, str(folder / str(n))) for n in range(300)]
            with self.expect_log(r"server \d of node \S+: killed by signal 9 \(SIGKILL\)") as lines:
                os.kill(pid, signal.SIGKILL)
                self.assertIsInstance(first.exception(WAIT_S), dispycos_lite.WorkerDied)
                for future in others:
                    future.result(WAIT_S)
            self.assertEqual(len(lines), 1)
            self.assertEqual({len(self.marks(folder / str(n))) for n in range(300)}, {1})

    def test_random_kills_lose_nothing(self) -> None:
        with self.cluster() as cluster, self.expect_log(STOPS):
            stop = threading.Event()

            def kills() -> None:
                while not stop.wait(0.25):
                    with contextlib.suppress(ProcessLookupError, dispycos_lite.WorkerDied):
                        os.kill(cluster.submit(jobs.where).result(WAIT_S)[1], signal.SIGKILL)
            thread = threading.Thread(target=kills)
            thread.start()
            futures = [cluster.submit(jobs.nap, 0.003, retries=50) for _ in range(400)]
            done, _ = concurrent.futures.wait(futures, WAIT_S)
            stop.set()
            thread.join()
            self.assertEqual(len(done), len(futures))
            lost = [f.exception() for f in futures if f.exception()]
            self.assertEqual(lost, [])

    def test_what_a_dead_server_had_begun_is_known(self) -> None:
        """Results of short jobs die with the server; these are not run again all the same, and no others are lost."""
        folder = self.temp_dir()
        with self.cluster(1) as cluster:
            list(cluster.map(jobs.double, range(500)))          # widens what a server may hold
            release, held = folder / "go", folder / "held"
            first = cluster.submit(jobs.hold, str(held), str(release))
            self.wait_marks(held)
            before = [cluster.submit(jobs.touch, str(folder / ("before%d" % n))) for n in range(2)]
            before += [cluster.submit(jobs.double, n) for n in range(5)]        # their results wait to be sent together
            killer = cluster.submit(jobs.kill_itself)
            again = cluster.submit(jobs.kill_first_time, str(folder / "again"), retries=1)
            after = [cluster.submit(jobs.touch, str(folder / ("after%d" % n))) for n in range(20)]
            with self.expect_log(r"server 1 of node \S+: killed by signal 9 \(SIGKILL\)") as lines:
                release.touch()
                error = killer.exception(WAIT_S)
                self.assertIsInstance(error, dispycos_lite.WorkerDied)
                self.assertEqual(error.attempt, 1)
                for future in after:
                    future.result(WAIT_S)
                self.assertEqual(again.result(WAIT_S), "survived")
            self.assertEqual(len(lines), 2)
            for future in [first, *before]:
                self.assertIn(type(future.exception(WAIT_S)), (type(None), dispycos_lite.WorkerDied))
            self.assertEqual({path.name: len(self.marks(path)) for path in folder.glob("*[0-9]")},
                             {name: 1 for name in ["before0", "before1"] + ["after%d" % n for n in range(20)]})

    def test_stopped_server_is_replaced(self) -> None:
        mark = self.temp_dir() / "mark"
        program = """
import os, signal, sys, logging, time
sys.path.insert(0, %r)
import dispycos_lite
from tests import cluster_jobs as jobs
with dispycos_lite.Cluster(cpus=1, cluster=%r) as cluster:
    pid = cluster.submit(jobs.where).result(60)[1]
    future = cluster.submit(jobs.nap, 60, %r)
    while not os.path.exists(%r):
        time.sleep(0.01)
    os.kill(pid, signal.SIGSTOP)
    print(type(future.exception(60)).__name__, future.exception())
    print(cluster.submit(jobs.double, 4).result(60))
""" % (str(support.ROOT), CLUSTER, str(mark), str(mark))
        with support.running([sys.executable, "-c", program], env={"PYCOSLITE_HEARTBEAT_S": "0.2"}) as process:
            self.assertEqual(process.wait(WAIT_S), 0)
        self.assertIn("WorkerDied job 2 was lost", process.output)
        self.assertIn("could not be reached", process.output)
        self.assertIn("\n8\n", process.output)


class FuturesTest(ClusterCase):
    """What programs do with futures."""

    def test_standard_helpers(self) -> None:
        with self.cluster() as cluster:
            futures = [cluster.submit(jobs.double, n) for n in range(20)]
            self.assertEqual(len(concurrent.futures.wait(futures, WAIT_S).done), 20)
            futures = [cluster.submit(jobs.double, n) for n in range(9)]
            seen = [future.result() for future in concurrent.futures.as_completed(futures)]
            self.assertEqual(sorted(seen), [2 * n for n in range(9)])

            async def main() -> Any:
                one = await asyncio.wrap_future(cluster.submit(jobs.double, 7))
                two = await asyncio.get_running_loop().run_in_executor(cluster, jobs.double, 8)
                return one, two
            self.assertEqual(asyncio.run(main()), (14, 16))
            with self.held(cluster) as held, self.assertRaises(concurrent.futures.TimeoutError):
                held.result(0.01)

    def test_cancel_wherever_it_is(self) -> None:
        folder = self.temp_dir()
        with self.grace(), self.cluster(1) as cluster:
            running = cluster.submit(jobs.spin, str(folder / "spin"))
            self.wait_marks(folder / "spin")
            waiting = [cluster.submit(jobs.touch, str(folder / "never")) for _ in range(10)]
            follower = cluster.submit(jobs.double, 2)
            self.assertRegex(running.why(), "runs on server 1")
            self.assertRegex(waiting[-1].why(), "behind|busy")
            for future in waiting:
                self.assertTrue(future.cancel())
            self.assertTrue(all(future.cancelled() for future in waiting))
            self.assertTrue(running.cancel())               # the server does not listen: it is replaced
            self.assertEqual(follower.result(WAIT_S), 4)
            self.assertEqual(self.marks(folder / "never"), [])
            self.assertEqual(len(concurrent.futures.wait([running, *waiting], WAIT_S).done), 11)
            with self.assertRaises(concurrent.futures.CancelledError):
                running.result()
            self.assertFalse(follower.cancel())

    def test_cancelled_task_frees_its_slot_and_not_the_server(self) -> None:
        mark = self.temp_dir() / "mark"
        with self.grace(WAIT_S), self.cluster(1) as cluster:
            pid = cluster.submit(jobs.where).result(WAIT_S)[1]
            task = cluster.submit(jobs.endless, str(mark))
            self.wait_marks(mark)
            self.assertTrue(task.cancel())
            self.assertEqual(cluster.submit(jobs.where).result(WAIT_S)[1], pid)

    def test_map_is_lazy_and_ordered(self) -> None:
        with self.cluster() as cluster:
            taken = []

            def items() -> Iterator[int]:
                for number in itertools.count():
                    taken.append(number)
                    yield number
            results = cluster.map(jobs.double, items())
            self.assertEqual(list(itertools.islice(results, 10000)), [2 * n for n in range(10000)])
            self.assertLess(len(taken), 10000 + 5000)
            results.close()
            self.assertEqual(list(cluster.map(pow, [2, 3], [3, 2, 9])), [8, 9])
            self.assertEqual(list(cluster.map(jobs.double, [])), [])
            with self.assertRaises(ValueError):
                list(cluster.map(jobs.fail, ["first", "second"]))

    def test_map_begins_without_being_asked(self) -> None:
        mark = self.temp_dir() / "mark"
        with self.cluster(1) as cluster:
            cluster.map(jobs.touch, [str(mark)] * 3)
            self.wait_marks(mark, 3)

    def test_map_timeout_and_early_end_cancel_what_is_ahead(self) -> None:
        folder = self.temp_dir()
        with self.grace(), self.cluster(1) as cluster:
            with self.assertRaises(concurrent.futures.TimeoutError):
                list(cluster.map(jobs.nap, [30] * 5, [str(folder / "a")] * 5, timeout=0.3))
            self.assertEqual(cluster.submit(jobs.double, 1).result(WAIT_S), 2)
            self.assertLessEqual(len(self.marks(folder / "a")), 1)          # if it had begun by then
            results = cluster.map(jobs.nap, [0, 30, 30], [str(folder / "b")] * 3)
            self.assertEqual(next(results), 0)
            results.close()
            self.assertEqual(cluster.submit(jobs.double, 1).result(WAIT_S), 2)
            self.assertLessEqual(len(self.marks(folder / "b")), 2)

    def test_callbacks_may_raise_and_block(self) -> None:
        release = threading.Event()
        self.addCleanup(release.set)
        with self.cluster(1) as cluster:
            blocked = threading.Event()

            def block(_future: Any) -> None:
                blocked.set()
                release.wait(WAIT_S)
            with self.assertLogs("concurrent.futures", "ERROR"):
                future = cluster.submit(jobs.nap, 0.05)
                future.add_done_callback(lambda f: 1 / 0)
                concurrent.futures.wait([future], WAIT_S)
                self.assertEqual(cluster.submit(jobs.double, 1).result(WAIT_S), 2)
            with self.held(cluster) as held:
                held.add_done_callback(block)
            blocked.wait(WAIT_S)
            self.assertEqual([cluster.submit(jobs.double, n).result(WAIT_S) for n in range(5)], [0, 2, 4, 6, 8])
            release.set()

    def test_submit_in_a_callback_and_from_many_threads(self) -> None:
        with self.cluster() as cluster:
            chained: concurrent.futures.Future = concurrent.futures.Future()

            def go_on(future: Any) -> None:
                if future.result() > 1000:
                    chained.set_result(future.result())
                else:
                    cluster.submit(jobs.double, future.result()).add_done_callback(go_on)
            cluster.submit(jobs.double, 1).add_done_callback(go_on)
            self.assertEqual(chained.result(WAIT_S), 1024)
            results: List[Any] = []

            def many(start: int) -> None:
                futures = [cluster.submit(jobs.double, n) for n in range(start, start + 200)]
                results.extend(f.result(WAIT_S) for f in futures)
            threads = [threading.Thread(target=many, args=(1000 * t,)) for t in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(sorted(results), sorted(2 * (1000 * t + n) for t in range(8) for n in range(200)))

    def test_results_come_while_a_user_task_computes(self) -> None:
        end = threading.Event()
        self.addCleanup(end.set)

        def hog(task: Any = None) -> Iterator:
            end.wait(WAIT_S)
            yield
        with self.cluster(1) as cluster:
            hogging = pycoslite.Task(hog)
            self.assertEqual([cluster.submit(jobs.double, n).result(WAIT_S) for n in range(3)], [0, 2, 4])
            end.set()
            hogging.value(WAIT_S)


class ShutdownTest(ClusterCase):
    """All ways out."""

    def test_nothing_is_left(self) -> None:
        with self.cluster() as cluster:
            pid = cluster.submit(jobs.where).result(WAIT_S)[1]
            folder = cluster.submit(os.getcwd).result(WAIT_S)
        self.assertFalse(support.alive(pid))
        self.assertFalse(os.path.exists(folder))
        self.assertIsNone(pycoslite.running_network())
        self.assertIsNone(pycoslite.running_kernel())
        with self.assertRaisesRegex(dispycos_lite.ClusterClosed, "submit before shutdown"):
            cluster.submit(jobs.double, 1)
        cluster.shutdown()

    def test_with_waits_for_all_jobs(self) -> None:
        with self.cluster() as cluster:
            futures = [cluster.submit(jobs.nap, 0.01) for _ in range(20)]
        self.assertTrue(all(f.done() and f.result() == 0.01 for f in futures))

    def test_without_wait_the_jobs_end_all_the_same(self) -> None:
        with self.cluster(1) as cluster:
            with self.held(cluster) as held:
                futures = [cluster.submit(jobs.nap, 0.1) for _ in range(2)]
                cluster.shutdown(wait=False)
                self.assertFalse(held.done())
            self.assertEqual([f.result(WAIT_S) for f in futures], [0.1] * 2)
            self.assertIsInstance(held.result(WAIT_S), int)

    def test_cancel_futures_spares_what_has_begun(self) -> None:
        folder = self.temp_dir()
        with self.cluster(1) as cluster:
            first = cluster.submit(jobs.hold, str(folder / "mark"), str(folder / "go"))
            self.wait_marks(folder / "mark")
            others = [cluster.submit(jobs.touch, str(folder / "never")) for _ in range(100)]
            others[-1].add_done_callback(lambda _future: (folder / "go").touch())
            cluster.shutdown(cancel_futures=True)
            self.assertIsInstance(first.result(0), int)
            self.assertTrue(all(f.cancelled() for f in others))
            self.assertFalse((folder / "never").exists())

    def test_exception_ends_at_once(self) -> None:
        mark = self.temp_dir() / "mark"
        with self.assertRaises(KeyboardInterrupt):
            with self.cluster(1) as cluster:
                running = cluster.submit(jobs.spin, str(mark))
                others = [cluster.submit(jobs.double, n) for n in range(50)]
                pid = int(self.wait_marks(mark)[0])
                raise KeyboardInterrupt
        self.assertFalse(support.alive(pid))
        self.assertEqual(len(concurrent.futures.wait([running, *others], 0).done), 51)
        self.assertTrue(all(f.cancelled() for f in [running, *others]))

    def test_shutdown_in_a_callback(self) -> None:
        with self.cluster(1) as cluster:
            future = cluster.submit(jobs.nap, 0.05)
            future.add_done_callback(lambda f: cluster.shutdown())
            self.assertEqual(future.result(WAIT_S), 0.05)


SCRIPT = """
import sys, threading, time
sys.path.append(%r)
import dispycos_lite
import beside

FACTOR = 3

class Point:
    def __init__(self, x):
        self.x = x

    def scaled(self):
        return Point(self.x * FACTOR)

def outer(n):
    def inner(m):
        return beside.twice(n) + m + FACTOR
    return inner

def forever():
    print("running", flush=True)
    while True:
        time.sleep(1)

if __name__ == "__main__":
    with dispycos_lite.Cluster(cpus=1, cluster=%r) as cluster:
        print([p.x for p in cluster.map(Point.scaled, [Point(1), Point(2)])])
        print(cluster.submit(outer(5), 1).result(), cluster.submit(beside.twice, 4).result())
        print(cluster.submit(lambda p: p.scaled().x, Point(7)).result())
        if "forever" in sys.argv:
            cluster.submit(forever).result()
        if "leave" in sys.argv:
            cluster.shutdown(wait=False)
    if "lazy" in sys.argv:
        cluster = dispycos_lite.Cluster(cpus=1, cluster=%r)
        cluster.submit(time.sleep, 0.3).add_done_callback(lambda f: print("slept", f.result(), flush=True))
"""


class ScriptTest(ClusterCase):
    """Programs as people write them, in a directory of their own."""

    def script(self, *arguments: str, ready: Any = None) -> Any:
        folder = self.temp_dir()
        (folder / "script.py").write_text(SCRIPT % (str(support.ROOT), CLUSTER, CLUSTER))
        (folder / "beside.py").write_text("def twice(n):\n    return 2 * n\n")
        return support.running([sys.executable, "script.py", *arguments], ready, cwd=folder)

    def test_what_a_script_defines_travels(self) -> None:
        with self.script() as process:
            self.assertEqual(process.wait(WAIT_S), 0)
        self.assertRegex(process.output, r"\[3, 6\]\n14 8\n21\n$")

    def test_interrupt_ends_it_at_once(self) -> None:
        with self.script("forever", ready="running") as process:
            process.signal(signal.SIGINT)
            self.assertIn(process.wait(WAIT_S), (1, 130, -signal.SIGINT))
        self.assertEqual(process.output.count("Traceback"), 1)      # its own
        self.assertRegex(process.output, "KeyboardInterrupt\\s*$")

    def test_program_waits_for_a_cluster_that_was_not_shut_down(self) -> None:
        with self.script("lazy") as process:
            self.assertEqual(process.wait(WAIT_S), 0)
        self.assertRegex(process.output, r"slept None\n$")


class ScalingTest(ClusterCase):
    """Nothing costs more per job when there are many."""

    def test_thousands_of_futures_cost_linear_work(self) -> None:
        def submits(count: int) -> float:
            begin = time.thread_time()
            futures = [cluster.submit(jobs.double, n) for n in range(count)]
            spent = time.thread_time() - begin
            for future in futures[count // 2:]:
                future.cancel()
            concurrent.futures.wait(futures, WAIT_S)
            return spent / count
        with self.cluster() as cluster:
            submits(500)
            few, many = submits(1000), submits(10000)
            self.assertLess(many, 5 * few)


if __name__ == "__main__":
    unittest.main()
