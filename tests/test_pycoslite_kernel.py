"""The kernel: order, fairness, growth, timers, other threads; then whole programs: their end, Ctrl-C, fork."""
from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import unittest
from typing import Any

import pycoslite
from pycoslite import EpollPoller, Kernel, MonitorStatus, SelectorPoller, Task
from tests.fake_kernel import FakeKernel
from tests.support import ROOT, TestCase, needs_threads_after_main, running


def send_from_threads(send: Any, count: int) -> None:
    """Send (thread, number) for so many numbers in each of 4 threads at once."""
    threads = [threading.Thread(target=lambda k=k: [send((k, n)) for n in range(count)]) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class OrderTest(TestCase):
    """P12, P13: who runs when."""

    def setUp(self):
        self.kernel = FakeKernel(self)
        self.spawn = self.kernel.spawn

    def test_ready_tasks_run_in_turn(self):
        seen = []

        def function(name):
            while True:
                seen.append(name)
                yield
        for name in "abc":
            self.spawn(function, name)
        for _ in range(4):
            self.kernel.once()
        self.assertEqual("".join(seen), "abc" * 4)

    def test_a_task_that_is_woken_waits_for_its_turn(self):
        seen = []

        def sleeper(task=None):
            yield task.suspend()
            seen.append("woken")

        def busy(name):
            for _ in range(2):
                yield
                seen.append(name)
        task = self.spawn(sleeper)
        self.kernel.once()
        self.spawn(busy, "a")
        self.kernel.once()
        task.resume()
        self.spawn(busy, "b")
        self.kernel.settle()
        self.assertEqual(seen, ["a", "woken", "a", "b", "b"])

    def test_a_busy_ready_queue_does_not_starve_timers(self):
        stop = []

        def busy():
            while not stop:
                self.kernel.clock.advance(0.001)
                yield

        def sleeper(task=None):
            yield task.sleep(1)
            stop.append(self.kernel.clock())
        for _ in range(3):
            self.spawn(busy)
        start = self.kernel.clock()
        self.spawn(sleeper)
        self.kernel.settle()
        self.assertLess(stop[0] - start, 1 + 0.001 * 3 * (pycoslite.PASSES + 2))

    def test_many_busy_tasks_are_looked_away_from_before_each_has_had_a_turn(self):
        steps = []

        def busy():
            while len(steps) < 20_000:
                steps.append(1)
                yield
        for _ in range(5000):
            self.spawn(busy)
        self.kernel.turn(0)
        self.assertEqual(len(steps), pycoslite.STEPS)

    def test_those_whose_time_has_come_go_before_a_long_ready_queue(self):
        order = []

        def sleeper(name, task=None):
            yield task.sleep(1)
            order.append(name)

        def busy():
            order.append("busy")
            yield
        for name in ("first", "second"):
            self.spawn(sleeper, name)
        self.kernel.turn(0)
        self.kernel.clock.advance(1)
        for _ in range(pycoslite.STEPS + 1):
            self.spawn(busy)
        self.kernel.turn(0)
        self.assertEqual(order[:3], ["first", "second", "busy"])

    def test_sleepers_do_not_keep_ready_tasks_from_their_turn(self):
        steps = []

        def restless(task=None):
            while not steps:
                yield task.sleep(0.001)

        def patient():
            yield
            steps.append(1)
        for _ in range(3 * pycoslite.STEPS):
            self.spawn(restless)
        self.kernel.turn(0)
        self.spawn(patient)
        for _ in range(20):
            self.kernel.clock.advance(0.001)
            self.kernel.turn(0)
        self.assertEqual(steps, [1])

    def test_a_busy_ready_queue_does_not_starve_calls_of_threads(self):
        stop = []

        def busy():
            while not stop:
                yield
        self.spawn(busy)
        self.kernel.turn(0)
        self.kernel.post(stop.append, 1)
        self.kernel.turn(0)
        self.kernel.settle()
        self.assertEqual(len(self.kernel.tasks), 0)

    def test_a_busy_kernel_looks_at_its_descriptors(self):
        def busy():
            for _ in range(1000):
                self.kernel.clock.advance(0.001)
                yield
        self.spawn(busy)
        self.kernel.settle()
        self.assertGreaterEqual(self.kernel.poller.waits, 1000 // pycoslite.PASSES - 1)

    def test_timers_of_one_deadline_wake_in_order(self):
        woken = []

        def sleeper(n, task=None):
            yield task.sleep(1)
            woken.append(n)
        for n in range(100):
            self.spawn(sleeper, n)
        self.kernel.run()
        self.assertEqual(woken, list(range(100)))

    def test_nobody_wakes_early(self):
        late = []

        def sleeper(seconds, task=None):
            start = self.kernel.clock()
            yield task.sleep(seconds)
            late.append(self.kernel.clock() - start - seconds)
        for n in range(200):
            self.spawn(sleeper, n / 7)
        self.kernel.run()
        self.assertEqual(len(late), 200)
        self.assertGreaterEqual(min(late), -1e-9)
        self.assertLess(max(late), 1e-9)


class GrowthTest(TestCase):
    """Linear and bounded, by counts."""

    def setUp(self):
        self.kernel = FakeKernel(self)

    def test_100000_sleepers(self):
        def sleeper(n, task=None):
            yield task.sleep(1 + n % 100)
        for n in range(100_000):
            self.kernel.spawn(sleeper, n)
        turns = 0
        while self.kernel.timeout() is not None:
            self.kernel.turn()
            turns += 1
        self.assertEqual(len(self.kernel.tasks), 0)
        self.assertLess(turns, 300)
        self.assertEqual(len(self.kernel.timers.heap), 0)

    def test_100000_timeouts_that_never_run_out(self):
        largest = []

        def receiver(task=None):
            for _ in range(100_000):
                yield task.receive(60)
                largest.append(len(self.kernel.timers.heap))

        def sender():
            for n in range(100_000):
                task.send(n)
                yield
        task = self.kernel.spawn(receiver)
        self.kernel.spawn(sender)
        self.kernel.settle()
        self.assertEqual(len(largest), 100_000)
        self.assertLess(max(largest), 100)

    def test_100000_tasks_are_made_joined_and_forgotten(self):
        def child(n):
            return n
            yield

        def parent():
            total = 0
            for task in [self.kernel.spawn(child, n) for n in range(100_000)]:
                total += yield task.finish()
            return total
        self.assertEqual(self.kernel.result(parent), 100_000 * 99_999 // 2)
        self.assertEqual(len(self.kernel.tasks), 0)

    def test_many_waiters_of_one_task_that_give_up(self):
        """Taking a watcher back must not look at all the others; counted by comparisons."""
        compared = []

        class Watcher:
            """Counts how often it is compared."""

            def __call__(self, task):
                """Never called."""

            def __eq__(self, other):
                compared.append(1)
                return self is other

            __hash__ = object.__hash__
        task = self.kernel.spawn(lambda: (yield from iter(())) or (yield))
        watchers = [Watcher() for _ in range(2000)]
        for watcher in watchers:
            task.watch(watcher)
        for watcher in reversed(watchers):
            task.unwatch(watcher)
        self.assertLess(len(compared), 100)


class _WakesTwice(pycoslite.Request):
    """A request with a mistake in it."""

    __slots__ = ()

    def begin(self, kernel: Kernel, task: Task) -> bool:
        """There at once, and once more."""
        task.unpark("one")
        task.unpark("two")
        return False


class _FailsToBegin(pycoslite.Request):
    """A request that has begun to wait when it fails."""

    __slots__ = ()

    def begin(self, kernel: Kernel, task: Task) -> bool:
        """Always fails."""
        task.wait = self
        raise OSError("not today")


class ResilienceTest(TestCase):
    """Whatever fails around the kernel, it goes on."""

    def setUp(self):
        self.kernel = FakeKernel(self)

    def alive(self):
        def function(task=None):
            yield task.sleep(1)
            return "alive"
        self.assertEqual(self.kernel.result(function), "alive")

    def test_a_call_that_fails(self):
        with self.expect_log("posted to the kernel failed"):
            self.kernel.post(lambda: 1 / 0)
            self.alive()

    def test_a_timer_that_fails(self):
        class Bomb:
            """Fails when it is due."""

            timer = 0

            def expire(self):
                raise ValueError("boom")
        self.kernel.timers.push(self.kernel.clock(), Bomb())
        with self.expect_log("at a certain time failed"):
            self.alive()

    def test_a_watcher_that_fails(self):
        def short():
            yield
        self.kernel.spawn(short).watch(lambda task: 1 / 0)
        with self.expect_log("telling .* failed"):
            self.alive()

    def test_a_request_that_wakes_its_task_twice(self):
        def function():
            return (yield _WakesTwice())
        task = self.kernel.spawn(function)
        with self.expect_log("ended with an uncaught exception", level=logging.ERROR):
            self.alive()
        self.assertEqual((task.is_alive(), task.outcome), (False, "two"))

    def test_a_request_that_fails_when_it_has_begun_to_wait(self):
        def function():
            with self.assertRaises(OSError):
                yield _FailsToBegin()
            while True:
                yield
        task = self.kernel.spawn(function)
        self.kernel.once()
        self.kernel.once()
        task.terminate()
        self.kernel.once()
        self.assertFalse(task.is_alive())
        self.alive()

    def test_a_descriptor_handler_that_fails(self):
        kernel = Kernel()
        self.addCleanup(kernel.close)
        near, far = socket.socketpair()
        self.addCleanup(near.close)
        self.addCleanup(far.close)
        kernel.poller.register(near.fileno(), pycoslite.READ, lambda events: 1 / 0)
        self.addCleanup(kernel.poller.unregister, near.fileno())
        far.send(b"x")
        with self.expect_log("descriptor's handler failed"):
            kernel.turn(5)


class PollerTest(TestCase):
    """P11: both pollers keep the same contract."""

    def pollers(self):
        for kind in {pycoslite.Poller, SelectorPoller}:
            with self.subTest(kind.__name__):
                poller = kind()
                near, far = socket.socketpair()
                try:
                    yield poller, near, far
                finally:
                    poller.close()
                    near.close()
                    far.close()

    def test_the_best_one_is_chosen(self):
        import select
        self.assertIs(pycoslite.Poller, EpollPoller if hasattr(select, "epoll") else SelectorPoller)

    def test_readiness(self):
        for poller, near, far in self.pollers():
            seen = []
            poller.register(near.fileno(), pycoslite.READ, seen.append)
            self.assertEqual(poller.poll(0), [])
            far.send(b"x")
            poller.handle(poller.poll(5))
            self.assertEqual(seen, [pycoslite.READ])
            poller.modify(near.fileno(), pycoslite.READ | pycoslite.WRITE)
            self.assertEqual([events for _, events in poller.poll(5)], [pycoslite.READ | pycoslite.WRITE])
            poller.unregister(near.fileno())
            poller.unregister(near.fileno())
            self.assertEqual(poller.poll(0), [])

    def test_a_handler_may_unregister_the_next(self):
        for poller, near, far in self.pollers():
            seen = []

            def first_come(events):
                seen.append(events)
                poller.unregister(near.fileno())
                poller.unregister(far.fileno())
            for end in (near, far):
                poller.register(end.fileno(), pycoslite.WRITE, first_come)
            poller.handle(poller.poll(5))
            self.assertEqual(seen, [pycoslite.WRITE])

    def test_an_error_of_a_descriptor_is_both_events(self):
        for poller, near, far in self.pollers():
            seen = []
            far.shutdown(socket.SHUT_RDWR)
            near.shutdown(socket.SHUT_RDWR)
            poller.register(near.fileno(), pycoslite.READ | pycoslite.WRITE, seen.append)
            poller.handle(poller.poll(5))
            self.assertEqual(seen, [pycoslite.READ | pycoslite.WRITE])

    def test_one_poller_watches_another(self):
        for outer, near, far in self.pollers():
            if not outer.nests:
                continue
            inner = type(outer)()
            self.addCleanup(inner.close)
            inner.register(near.fileno(), pycoslite.READ, print)
            outer.register(inner.fileno(), pycoslite.READ, print)
            self.assertEqual(outer.poll(0), [])
            far.send(b"x")
            self.assertEqual(len(outer.poll(5)), 1)

    def test_a_closed_descriptor_can_be_unregistered(self):
        for poller, near, far in self.pollers():
            number = far.fileno()
            poller.register(number, pycoslite.READ, print)
            far.close()
            poller.unregister(number)


class ThreadTest(TestCase):
    """P14: what other threads may do, on the default kernel."""

    def tearDown(self):
        pycoslite.stop_default()

    def task(self, function, *args):
        ready = threading.Event()

        def announce(task=None):
            self.assertIs(pycoslite.default_kernel().current, task)
            ready.set()
            return (yield from function(task, *args))
        task = Task(announce)
        self.assertTrue(ready.wait(60))
        return task

    def test_send(self):
        def receiver(task):
            got = []
            while len(got) < 4000:
                got.append((yield task.receive()))
            return got
        task = self.task(receiver)
        send_from_threads(task.send, 1000)
        got = task.value(60)
        for k in range(4):
            self.assertEqual([n for key, n in got if key == k], list(range(1000)))
        self.assertEqual(task.send("late"), -1)

    def test_resume(self):
        task = self.task(lambda task: (yield from task.suspend()))
        self.assertEqual(task.resume("update"), 0)
        self.assertEqual(task.value(60), "update")
        self.assertEqual(task.resume(), -1)

    def test_throw(self):
        def function(task):
            try:
                yield task.receive()
            except ValueError as error:
                return error.args
        task = self.task(function)
        self.assertEqual(task.throw(ValueError("x")), 0)
        self.assertEqual(task.value(60), ("x",))

    def test_terminate(self):
        ended = threading.Event()

        def function(task):
            try:
                yield task.receive()
            finally:
                ended.set()
        task = self.task(function)
        self.assertEqual(task.terminate(), 0)
        self.assertTrue(ended.wait(60))
        self.assertIsNone(task.value(60))
        self.assertFalse(task.is_alive())
        self.assertEqual(task.terminate(), -1)

    def test_throw_and_terminate_while_the_task_computes(self):
        """A thread is not told -1 because the task happens to run just then."""
        entered, go_on = threading.Event(), threading.Event()

        def function(task):
            entered.set()
            go_on.wait(60)
            try:
                yield task.receive()
            except ValueError:
                entered.set()
                go_on.wait(60)
                yield task.receive()
        task = Task(lambda task=None: (yield from function(task)))
        self.assertTrue(entered.wait(60))
        entered.clear()
        self.assertEqual(task.throw(ValueError()), 0)
        go_on.set()
        self.assertTrue(entered.wait(60))
        self.assertEqual(task.terminate(), 0)
        self.assertIsNone(task.value(60))

    def test_value(self):
        task = self.task(lambda task: (yield from task.receive()) and None or (yield 7))
        self.assertIsNone(task.value(0.01))
        self.assertIsNone(task.value(0))
        task.send(1)
        self.assertEqual(task.value(), 7)
        self.assertEqual(task.value(), 7)

    def test_value_of_a_failed_task(self):
        def function(task):
            yield task.receive()
            raise KeyError("gone")
        task = self.task(function)
        values = []
        waiting = threading.Thread(target=lambda: values.append(task.value(60)))
        waiting.start()
        self.wait_until(lambda: task.watchers)
        task.send(1)
        waiting.join()
        self.assertIsInstance(values[0], MonitorStatus)
        self.assertIs(values[0].type, KeyError)

    def test_value_inside_a_task_is_misuse(self):
        sleeper = self.task(lambda task: (yield from task.suspend()))

        def blocker(task):
            try:
                yield sleeper.value()
            except pycoslite.MisuseError as error:
                return str(error)
        self.assertIn("yield task.finish()", self.task(blocker).value(60))

    def test_tasks_are_made_in_any_thread(self):
        tasks = []

        def child():
            yield
            return threading.current_thread().name
        threads = [threading.Thread(target=lambda: tasks.append(Task(child))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual({task.value(60) for task in tasks}, {"pycoslite"})

    def test_join_waits_for_all_but_daemons(self):
        def daemon(task):
            task.set_daemon()
            yield task.receive()
        self.task(daemon)
        kernel = pycoslite.default_kernel()
        self.assertTrue(kernel.join(60))
        sleeper = self.task(lambda task: (yield from task.suspend()))
        self.assertFalse(kernel.join(0.01))
        sleeper.resume()
        self.assertTrue(kernel.join(60))

    def test_after_the_end_a_new_kernel_starts(self):
        first = self.task(lambda task: (yield from task.suspend()))
        pycoslite.stop_default()
        self.assertFalse(first.is_alive())
        self.assertIsNone(first.value(0))
        second = Task(lambda: (yield 5))
        self.assertEqual(second.value(60), 5)
        self.assertIsNot(first.kernel, second.kernel)

    def test_an_uncaught_exception_is_logged_with_its_traceback(self):
        def fails():
            yield
            raise ValueError("told on stderr")
        with self.expect_log("(?s)fails/.*Traceback.*told on stderr"):
            Task(fails)


class ProgramTest(TestCase):
    """P05: whole programs, in processes of their own."""

    def program(self, text: str) -> list:
        path = self.temp_dir() / "prog.py"
        path.write_text("import sys, threading, time, os, signal\nsys.path.insert(0, %r)\nimport pycoslite\n"
                        "from pycoslite import Task\n%s" % (str(ROOT), textwrap.dedent(text)))
        return [sys.executable, "-X", "dev", str(path)]

    def output(self, text: str, status: int = 0) -> str:
        done = subprocess.run(self.program(text), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=100)
        self.assertEqual(done.returncode, status, done.stdout)
        return done.stdout

    def test_a_program_lives_until_its_tasks_have_ended(self):
        lines = self.output("""
            def work(n, task=None):
                while not task.kernel.idle_events:      # the main program has not ended yet
                    yield task.sleep(0.01)
                yield task.sleep(0.05 * n)
                print("work", n)
            def daemon(task=None):
                task.set_daemon()
                try:
                    while True:
                        yield task.sleep(0.01)
                finally:
                    print("daemon ended")
            Task(daemon)
            for n in (2, 1):
                Task(work, n)
            print("main ends")
            """).splitlines()
        self.assertEqual((lines[0], sorted(lines[1:3]), lines[3:]), ("main ends", ["work 1", "work 2"], ["daemon ended"]))

    @needs_threads_after_main
    def test_it_starts_tasks_threads_and_processes_while_it_waits(self):
        self.assertEqual(self.output("""
            import subprocess
            def late(task=None):
                yield task.sleep(0.1)
                thread = threading.Thread(target=print, args=("thread",), kwargs={"flush": True})
                thread.start()
                thread.join()
                print(subprocess.run([sys.executable, "-c", "print('process')"], stdout=subprocess.PIPE).stdout)
                Task(last)
            def last():
                yield
                print("last")
            Task(late)
            """), "thread\nb'process\\n'\nlast\n")

    def test_tasks_of_threads_that_outlive_the_main_one(self):
        self.assertEqual(self.output("""
            def server(task=None):
                task.set_daemon()
                while True:
                    print((yield task.receive()))
            def late(task=None):
                yield task.sleep(0.05)
                print("late")
            def thread():
                time.sleep(0.2)
                server_task.send("from a thread")
                Task(late)
            server_task = Task(server)
            threading.Thread(target=thread).start()
            """), "from a thread\nlate\n")

    def test_an_error_of_the_main_program_does_not_stop_its_tasks(self):
        text = self.output("""
            def work(task=None):
                while not task.kernel.idle_events:      # the main program has not ended yet
                    yield task.sleep(0.01)
                print("work done")
            Task(work)
            raise ValueError("main failed")
            """, status=1)
        self.assertIn("ValueError: main failed", text)
        self.assertTrue(text.endswith("work done\n"), text)

    def test_an_uncaught_error_of_a_task_is_on_stderr(self):
        text = self.output("""
            def fails():
                yield
                raise KeyError("lost")
            Task(fails)
            """)
        self.assertRegex(text, r"(?s)task fails/1 ended with an uncaught exception:\nTraceback.*KeyError: 'lost'\n")

    def interrupted(self, text: str, presses: int = 1, apart_s: float = 0.0) -> tuple:
        with running(self.program(text), ready="^ready\n") as process:
            for _ in range(presses):
                process.signal(signal.SIGINT)
                time.sleep(apart_s)
            return process.wait(60), process.output

    WAITING = """
        def work(task=None):
            print("ready", flush=True)
            try:
                yield task.suspend()
            finally:
                print("finally", flush=True)
        """

    def test_ctrl_c_while_the_program_waits_for_its_tasks(self):
        status, output = self.interrupted(self.WAITING.replace("work(task=None):", """work(task=None):
            while not task.kernel.idle_events:      # the main program has not ended yet
                yield task.sleep(0.01)""") + """
        Task(work)
        """)
        self.assertEqual((status, output), (0, "ready\nfinally\n"))

    def test_ctrl_c_that_is_told_twice_at_once(self):
        """As `timeout` does it: to the process, and to its group. It is one, and nothing is left waiting."""
        for apart_s in (0, 0.0002, 0.0004, 0.0006, 0.0008, 0.001):
            status, output = self.interrupted(self.WAITING.replace("work(task=None):", """work(task=None):
            while not task.kernel.idle_events:      # the main program has not ended yet
                yield task.sleep(0.01)""") + """
        Task(work)
        """, 2, apart_s)
            self.assertIn(status, (0, -signal.SIGINT))      # the second may come when Python has ended already
            self.assertEqual(output, "ready\nfinally\n")

    def test_ctrl_c_while_the_main_program_waits_for_a_task(self):
        status, output = self.interrupted(self.WAITING + """
        try:
            Task(work).value()
        except KeyboardInterrupt:
            print("interrupted")
            pycoslite.stop_default()
            sys.exit(3)
        """)
        self.assertEqual((status, output), (3, "ready\ninterrupted\nfinally\n"))

    def test_ctrl_c_that_ends_the_main_program_ends_its_tasks(self):
        status, output = self.interrupted(self.WAITING + """
        Task(work)
        time.sleep(30)
        """)
        self.assertNotEqual(status, 0)
        self.assertTrue(output.startswith("ready\n"), output)
        self.assertTrue(output.endswith("KeyboardInterrupt\nfinally\n"), output)
        self.assertEqual(output.count("Traceback"), 1)

    def test_ctrl_c_does_not_wait_long_for_a_task_that_blocks(self):
        status, output = self.interrupted("""
        pycoslite.HURRY_S = 0.2
        def hog(task=None):
            while not (task.kernel.inbox or task.kernel.idle_events):       # the main program has not ended yet
                time.sleep(0.01)
            print("ready", flush=True)
            time.sleep(60)
            yield
        Task(hog)
        """)
        self.assertEqual(status, 0)
        self.assertIn("the program ends while task hog/1 is busy", output)
        self.assertNotIn("Traceback", output)

    def test_a_task_that_ignores_its_end_does_not_hold_the_program(self):
        text = self.output("""
            def endless(task=None):
                task.set_daemon()
                try:
                    yield task.receive()
                finally:
                    Task(endless)
            Task(endless)
            time.sleep(0.05)
            """)
        self.assertEqual(text, "")

    @unittest.skipUnless(hasattr(os, "fork"), "needs fork")
    def test_a_forked_child_starts_anew(self):
        text = self.output("""
            import warnings
            warnings.simplefilter("ignore", DeprecationWarning)
            def work(name, task=None):
                try:
                    yield task.sleep(0.2)
                    print(name, "done", flush=True)
                finally:
                    print(name, "finally", flush=True)
            Task(work, "parent")
            time.sleep(0.05)
            pid = os.fork()
            if pid == 0:
                Task(work, "child").value(60)
                os._exit(7)
            print(os.WEXITSTATUS(os.waitpid(pid, 0)[1]), flush=True)
            """)
        self.assertEqual(sorted(text.splitlines()), [
            "7", "child done", "child finally", "parent done", "parent finally"])

    @unittest.skipUnless(hasattr(os, "fork"), "needs fork")
    @needs_threads_after_main
    def test_a_child_forked_by_a_task(self):
        text = self.output("""
            import multiprocessing, warnings
            warnings.simplefilter("ignore", DeprecationWarning)
            def child():
                def work():
                    yield
                    print("task of the child", flush=True)
                Task(work).value(60)
            def parent(task=None):
                process = multiprocessing.get_context("fork").Process(target=child)
                process.start()
                while process.exitcode is None:
                    yield task.sleep(0.01)
                print("exit code", process.exitcode)
            Task(parent)
            """)
        self.assertEqual(text, "task of the child\nexit code 0\n")

    def test_from_the_interactive_interpreter(self):
        with running([sys.executable, "-i", "-q", "-c", "import pycoslite"], cwd=ROOT, ready=">>>") as process:
            process.write("def work(task=None):\n    yield task.sleep(0.05)\n    print('work ' + 'done')\n\n")
            process.write("task = pycoslite.Task(work)\n")
            process.wait_for("work done")
            process.write("task.value()\nexit()\n")
            self.assertEqual(process.wait(60), 0)
            self.assertNotIn("Traceback", process.output)


if __name__ == "__main__":
    unittest.main()
