"""Tasks on a kernel whose time stands still: what a task may yield, how it ends, messages, joins, exceptions."""
from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import sys
import types
import unittest
import weakref

import pycoslite
from pycoslite import HotSwapException, MisuseError, MonitorException, MonitorStatus, Task
from tests.fake_kernel import FakeKernel
from tests.support import TestCase


class KernelTestCase(TestCase):
    """With a kernel of its own for each test."""

    def setUp(self):
        self.kernel = FakeKernel(self)
        self.spawn, self.run_all, self.result = self.kernel.spawn, self.kernel.run, self.kernel.result

    def failing(self, function, *args):
        """Status of a task that ends with an exception, which is logged."""
        with self.expect_log("ended with an uncaught exception"):
            status = self.result(function, *args)
        self.assertIsInstance(status, MonitorStatus)
        return status


def parked(task=None):
    """A task that waits for messages and never ends."""
    while True:
        yield task.receive()


class ConstructionTest(KernelTestCase):
    """T01, X03: what can be a task, and what it is given."""

    def test_arguments_are_passed_on(self):
        def add(a, b=0, *, c=0):
            yield
            return a, b, c
        self.assertEqual(self.result(add, 1, b=2, c=3), (1, 2, 3))

    def test_the_keyword_form(self):
        def add(a, b=0):
            yield
            return a + b
        task = Task.__new__(Task)
        task._start(self.kernel, *pycoslite._keyword_form({"target": add, "args": (1,), "kwargs": {"b": 2}}))
        self.run_all()
        self.assertEqual(task.outcome, 3)

    def test_the_keyword_form_refuses_other_keywords(self):
        with self.assertRaisesRegex(TypeError, "not daemon="):
            Task(target=parked, daemon=True)
        with self.assertRaisesRegex(TypeError, "the function is missing"):
            Task()

    def test_only_generator_and_async_functions(self):
        async def agen():
            yield
        for wrong in (len, print, lambda: 1, 5, None, object, agen):
            with self.subTest(wrong), self.assertRaisesRegex(TypeError, "generator function or an async function"):
                self.spawn(wrong)

    def test_a_function_that_was_called_already(self):
        async def awaits():
            pass
        coroutine = awaits()
        for wrong in (parked(), coroutine):
            with self.subTest(wrong), self.assertRaisesRegex(TypeError, r"was called: write Task\(function, \*args"):
                self.spawn(wrong)
        coroutine.close()

    def test_arguments_that_do_not_fit_raise_at_once(self):
        with self.assertRaises(TypeError):
            self.spawn(parked, 1, 2, 3)
        self.assertEqual(len(self.kernel.tasks), 0)

    def test_injection_into_task_or_coro(self):
        def old(coro=None):
            yield
            return coro

        def keyword_only(*args, task=None):
            yield
            return task

        async def modern(n, task=None):
            return task
        for function, args in ((old, ()), (keyword_only, (1, 2)), (modern, (1,))):
            with self.subTest(function):
                task = self.spawn(function, *args)
                self.run_all()
                self.assertIs(task.outcome, task)

    def test_no_injection_where_the_default_is_not_none_or_a_value_is_given(self):
        def other_default(task=5):
            yield
            return task

        def no_default(task):
            yield
            return task

        def given(task=None):
            yield
            return task
        self.assertEqual(self.result(other_default), 5)
        self.assertEqual(self.result(no_default, 6), 6)
        self.assertEqual(self.result(given, 7), 7)
        self.assertEqual(self.result(given, task=8), 8)

    def test_methods_and_partials(self):
        class Service:
            """Something with methods."""

            def serve(self, n, task=None):
                """One positional argument, then the task."""
                yield
                return n, task is not None

            @classmethod
            def build(cls, task=None):
                """Gets the class."""
                yield
                return cls, task is not None

            @staticmethod
            def help(task=None):
                """Gets nothing."""
                yield
                return task is not None
        service = Service()
        for _ in range(2):                  # the second time from the cache
            self.assertEqual(self.result(service.serve, 1), (1, True))
            self.assertEqual(self.result(Service.serve, service, 1), (1, True))
        self.assertEqual(self.result(Service.build), (Service, True))
        self.assertEqual(self.result(service.help), True)
        self.assertEqual(self.result(functools.partial(service.serve, 3)), (3, True))
        self.assertEqual(self.result(functools.partial(Service.serve, service, n=4)), (4, True))

    def test_a_task_runs_only_after_its_creator_yields(self):
        seen = []

        def child():
            seen.append("child")
            yield

        def parent():
            self.spawn(child)
            seen.append("parent")
            yield
        self.spawn(parent)
        self.assertEqual(seen, [])
        self.run_all()
        self.assertEqual(seen, ["parent", "child"])

    def test_name_and_repr(self):
        task = self.spawn(parked)
        self.assertEqual(task.name, "parked")
        self.assertEqual(repr(task), "parked/%d" % task.id)
        self.assertEqual(str(task), repr(task))
        self.assertEqual(self.spawn(functools.partial(parked)).name, "partial")

    def test_tasks_are_equal_to_themselves_only(self):
        one, two = self.spawn(parked), self.spawn(parked)
        self.assertEqual(len({one: 1, two: 2}), 2)
        self.assertNotEqual(one, two)
        self.assertLess(one.id, two.id)


class ExitValueTest(KernelTestCase):
    """T02, X01, X02, X43: what a task leaves."""

    def test_return_value(self):
        def function():
            yield 1
            return 2
        self.assertEqual(self.result(function), 2)

    def test_without_a_return_value_it_is_what_the_last_yield_gave(self):
        def zero():
            yield 5
            yield 0

        def return_zero():
            yield 5
            return 0

        def nothing():
            return
            yield

        def bare():
            yield 5
            yield

        def message(task=None):
            yield task.receive()

        def nested():
            yield zero()

        def explicit_none():
            yield 5
            return None
        self.assertEqual(self.result(zero), 0)
        self.assertEqual(self.result(return_zero), 0)
        self.assertIsNone(self.result(nothing))
        self.assertIsNone(self.result(bare))
        self.assertEqual(self.result(nested), 0)
        self.assertEqual(self.result(explicit_none), 5)
        task = self.spawn(message)
        task.send("last")
        self.run_all()
        self.assertEqual(task.outcome, "last")

    def test_an_async_function_leaves_what_it_returns(self):
        async def receiver(task=None):
            await task.receive()
        task = self.spawn(receiver)
        task.send("message")
        self.run_all()
        self.assertIsNone(task.outcome)

    def test_so_does_a_generator_marked_as_a_coroutine(self):
        @types.coroutine
        def marked():
            yield 5

        def caller():
            return ((yield marked()),)
        self.assertIsNone(self.result(marked))
        self.assertEqual(self.result(caller), (None,))

    def test_raise_stop_iteration(self):
        def one():
            yield
            raise StopIteration(5)

        def many():
            yield
            raise StopIteration(1, 2)

        def none():
            yield 3
            raise StopIteration

        def outer():
            value = yield one()
            return value * 2
        self.assertEqual(self.result(one), 5)
        self.assertEqual(self.result(many), (1, 2))
        self.assertEqual(self.result(none), 3)
        self.assertEqual(self.result(outer), 10)

    def test_an_uncaught_exception(self):
        def fails():
            yield
            raise ValueError("why")
        status = self.failing(fails)
        self.assertIs(status.type, ValueError)
        self.assertIn("why", status.value)
        self.assertIn("in fails", status.value)
        self.assertEqual(status.info.name, "fails")
        self.assertIsInstance(status.error, ValueError)

    def test_before_the_first_yield(self):
        def fails():
            raise KeyError("early")
            yield
        self.assertIs(self.failing(fails).type, KeyError)

    def test_only_that_task_ends(self):
        def fails():
            yield
            raise ValueError

        other = self.spawn(parked)
        self.failing(fails)
        self.assertTrue(other.is_alive())
        self.assertEqual(other.send(1), 0)

    def test_exits_of_the_interpreter_end_the_task_only(self):
        def leaves():
            yield
            sys.exit(3)
        self.assertIs(self.failing(leaves).type, SystemExit)

    def test_monitor_status_is_an_exception_too(self):
        status = MonitorStatus("info", ValueError, "trace")
        self.assertIs(MonitorException, MonitorStatus)
        self.assertIsInstance(status, Exception)
        self.assertEqual(status.args, ("info", (ValueError, "trace")))
        self.assertEqual((status.info, status.type, status.value), ("info", ValueError, "trace"))
        self.assertIsNone(MonitorStatus("info", ValueError).value)

    def test_nothing_of_an_ended_task_stays(self):
        class Thing:
            """Weakly referable."""

        def function(thing, task=None):
            yield thing
            return None

        thing = Thing()
        gone = weakref.ref(thing)
        task = self.spawn(lambda: (yield from function(None)))
        task.send(thing)
        del thing
        self.run_all()
        self.assertIsNone(gone())
        self.assertEqual(len(self.kernel.tasks), 0)


class YieldTest(KernelTestCase):
    """P15, T30: values, nested generators, yield from and await."""

    def test_a_plain_value_comes_back(self):
        def function():
            got = []
            for value in (1, "text", (2, 3), [4], None, True, object, ValueError("no raise"), {5: 6}):
                got.append((yield value) == value)
            return got
        self.assertTrue(all(self.result(function)))

    def test_a_plain_value_gives_others_a_turn(self):
        seen = []

        def function(name):
            for n in range(3):
                seen.append((name, n))
                yield n
        self.spawn(function, "a")
        self.spawn(function, "b")
        self.run_all()
        self.assertEqual(seen, [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)])

    def test_three_ways_to_wait(self):
        def by_yield(task=None):
            return (yield task.sleep(1, "a"))

        def by_yield_from(task=None):
            return (yield from task.sleep(1, "a"))

        async def by_await(task=None):
            return await task.sleep(1, "a")
        for function in (by_yield, by_yield_from, by_await):
            self.assertEqual(self.result(function), "a")

    def test_a_generator_is_called(self):
        def inner(n, task=None):
            self.assertIsNone(task)         # the same task, so there is nothing to inject
            yield
            return n + 1

        def outer():
            total = 0
            for n in range(5):
                total += yield inner(n)
            return total
        self.assertEqual(self.result(outer), 15)
        self.assertEqual(len(self.kernel.tasks), 0)

    def test_generators_and_coroutines_mix(self):
        async def coroutine(n):
            return n * 2

        def generator(n):
            return (yield coroutine(n)) + 1

        async def top():
            return await types.coroutine(generator)(10)
        self.assertEqual(self.result(generator, 5), 11)
        self.assertEqual(self.result(top), 21)

    def test_an_exception_surfaces_at_the_yield_that_called(self):
        def inner():
            yield
            raise ValueError("inner")

        def middle():
            yield inner()

        def outer():
            try:
                yield middle()
            except ValueError as error:
                yield
                return str(error)
        self.assertEqual(self.result(outer), "inner")

    def test_the_traceback_names_every_level(self):
        def inner():
            yield
            raise ValueError

        def middle():
            yield inner()

        def outer():
            yield middle()
        text = self.failing(outer).value
        for name in ("in inner", "in middle", "in outer"):
            self.assertIn(name, text)

    def test_deep_recursion_is_no_recursion_of_python(self):
        def down(n):
            if n:
                return (yield down(n - 1)) + 1
            yield
            return 0
        self.assertEqual(self.result(down, 5000), 5000)

    def test_endless_recursion_is_an_error(self):
        def down():
            yield down()

        def top():
            try:
                yield down()
            except RecursionError as error:
                return "deep" in str(error)
        self.assertTrue(self.result(top))

    def test_a_finished_generator_gives_nothing(self):
        def inner():
            yield
            return 5

        def outer():
            generator = inner()
            first = yield generator
            second = yield generator
            return first, second
        self.assertEqual(self.result(outer), (5, None))

    def test_a_running_generator_is_an_error(self):
        running = []

        def inner():
            try:
                yield from running[0]
            except ValueError as error:
                return str(error)
            yield
        running.append(inner())

        def outer():
            return (yield running[0])
        self.assertIn("already executing", self.result(outer))

    def test_many_results_at_once_still_give_others_a_turn(self):
        turns = []

        def greedy(task=None):
            for n in range(10 * pycoslite.TURNS):
                yield task.deliver(n)

        def other():
            while greedy_task.is_alive():
                turns.append(1)
                yield
        greedy_task = self.spawn(greedy)
        self.spawn(other)
        self.run_all()
        self.assertGreaterEqual(len(turns), 10)

    def test_a_failing_request_raises_at_the_yield(self):
        class Broken(pycoslite.Request):
            """A request that cannot begin."""

            __slots__ = ()

            def begin(self, kernel, task):
                raise OSError("no such thing")

        def function():
            try:
                yield Broken()
            except OSError as error:
                return str(error)
        try:
            self.assertEqual(self.result(function), "no such thing")
        finally:
            del pycoslite.REQUESTS[Broken]

    def test_a_timeout_that_is_no_number_raises_at_the_yield(self):
        def function(task=None):
            try:
                yield task.receive("soon")
            except TypeError:
                return "refused"
        self.assertEqual(self.result(function), "refused")

    def test_timeouts_beyond_measure(self):
        def function(seconds, task=None):
            return (yield task.receive(seconds, "late"))
        for seconds in (float("inf"), 1e30):
            task = self.spawn(function, seconds)
            self.kernel.turn()
            self.assertEqual(self.kernel.timeout(), pycoslite.LONGEST_SLEEP_S)
            task.send("message")
            self.run_all()
            self.assertEqual(task.outcome, "message")
        self.assertEqual(self.result(function, float("nan")), "late")


class ForeignAwaitableTest(KernelTestCase):
    """What belongs to another event loop is refused, by name."""

    def foreign(self):
        loop = asyncio.new_event_loop()
        self.addCleanup(loop.close)
        return loop.create_future()

    def test_awaited(self):
        async def function(future):
            try:
                await future
            except MisuseError as error:
                return str(error)
        text = self.result(function, self.foreign())
        self.assertIn("Future", text)
        self.assertIn("another event loop", text)
        self.assertIn("function/", text)

    def test_yielded(self):
        def function(future):
            try:
                yield future
            except MisuseError as error:
                return str(error)
        self.assertIn("another event loop", self.result(function, self.foreign()))

    def test_a_plain_value_from_the_depth_of_an_await(self):
        @types.coroutine
        def foreign():
            yield "what only its own loop understands"

        async def function():
            try:
                await foreign()
            except MisuseError as error:
                return "refused" if "understands" in str(error) else str(error)
        self.assertEqual(self.result(function), "refused")

    def test_plain_classes_do_not_fill_the_table(self):
        def function():
            for n in range(3000):
                yield type("Plain%d" % n, (), {})()
        self.result(function)
        self.assertLessEqual(len(pycoslite.REQUESTS), pycoslite.REQUESTS._MOST + 100)


class FutureTest(KernelTestCase):
    """Futures of threads, both ways."""

    def test_yield_a_future(self):
        def function(future):
            return (yield future)

        async def modern(future):
            return await pycoslite.FutureResult(future)
        for target in (function, modern):
            future = concurrent.futures.Future()
            task = self.spawn(target, future)
            self.kernel.settle()
            self.assertTrue(task.is_alive())
            future.set_result(5)
            self.run_all()
            self.assertEqual(task.outcome, 5)

    def test_one_that_is_done(self):
        def function():
            future = concurrent.futures.Future()
            future.set_result(6)
            return (yield future)
        self.assertEqual(self.result(function), 6)

    def test_its_exception_is_raised(self):
        def function(future):
            try:
                yield future
            except ZeroDivisionError:
                return "raised"
        for done_first in (True, False):
            future = concurrent.futures.Future()
            if done_first:
                future.set_exception(ZeroDivisionError())
            task = self.spawn(function, future)
            self.kernel.settle()
            if not done_first:
                future.set_exception(ZeroDivisionError())
            self.run_all()
            self.assertEqual(task.outcome, "raised")

    def test_terminated_while_waiting(self):
        def function(future):
            yield future
        future = concurrent.futures.Future()
        task = self.spawn(function, future)
        self.kernel.settle()
        task.terminate()
        self.run_all()
        future.set_result(1)
        self.run_all()
        self.assertIsNone(task.outcome)

    def test_future_of_a_task(self):
        def good():
            yield
            return 7

        def bad():
            yield
            raise ValueError("bad")
        good_future = self.spawn(good).future()
        bad_future = self.spawn(bad).future()
        parked_task = self.spawn(parked)
        ended = parked_task.future()
        dropped = parked_task.future()
        self.assertTrue(dropped.cancel())
        parked_task.terminate()
        self.run_all()
        self.assertEqual(good_future.result(0), 7)
        self.assertIsInstance(bad_future.exception(0), ValueError)
        self.assertTrue(ended.cancelled())
        self.assertTrue(dropped.cancelled())

    def test_future_of_an_ended_task(self):
        def good():
            yield
            return 7
        task = self.spawn(good)
        self.run_all()
        self.assertEqual(task.future().result(0), 7)


class MessageTest(KernelTestCase):
    """T10-T12: send, deliver, receive."""

    def test_oldest_first(self):
        def receiver(task=None):
            got = []
            for _ in range(5):
                got.append((yield task.receive()))
            return got
        task = self.spawn(receiver)
        for n in range(3):
            self.assertEqual(task.send(n), 0)
        self.kernel.settle()
        self.assertEqual(task.send(3), 0)
        self.assertEqual(task.send(4), 0)
        self.run_all()
        self.assertEqual(task.outcome, [0, 1, 2, 3, 4])

    def test_none_is_a_message(self):
        def receiver(task=None):
            return (yield task.receive(5, "late"))
        task = self.spawn(receiver)
        self.kernel.settle()
        task.send(None)
        self.run_all()
        self.assertIsNone(task.outcome)

    def test_poll_and_timeout(self):
        def receiver(task=None):
            start = self.kernel.clock()
            first = yield task.receive(0, "empty")
            second = yield task.receive(2.5, "late")
            negative = yield task.receive(-1, "negative")
            return first, second, negative, self.kernel.clock() - start
        self.assertEqual(self.result(receiver), ("empty", "late", "negative", 2.5))

    def test_a_message_in_time_cancels_the_timer(self):
        def receiver(task=None):
            return (yield task.recv(10, "late"))
        task = self.spawn(receiver)
        self.kernel.settle()
        task.send("message")
        self.assertEqual(len(self.kernel.timers), 0)
        self.run_all()
        self.assertEqual(task.outcome, "message")

    def test_messages_for_a_suspended_task_wait(self):
        def receiver(task=None):
            woken = yield task.suspend()
            return woken, (yield task.receive())
        task = self.spawn(receiver)
        self.kernel.settle()
        task.send("message")
        self.kernel.settle()
        self.assertTrue(task.is_alive())
        task.resume("resumed")
        self.run_all()
        self.assertEqual(task.outcome, ("resumed", "message"))

    def test_send_to_an_ended_task(self):
        def short():
            yield
        task = self.spawn(short)
        task.send("never read")
        self.run_all()
        self.assertEqual(task.send(1), -1)

        def deliverer():
            return (yield task.deliver(1))
        self.assertEqual(self.result(deliverer), -1)

    def test_deliver(self):
        receiver = self.spawn(parked)

        def deliverer():
            return (yield receiver.deliver("x", timeout=5))
        self.assertEqual(self.result(deliverer), 1)

    def test_receive_of_another_task_is_misuse(self):
        other = self.spawn(parked)

        def thief():
            yield other.receive()
        self.assertIs(self.failing(thief).type, MisuseError)
        with self.assertRaisesRegex(MisuseError, "outside"):
            other.receive()


class SuspendTest(KernelTestCase):
    """T07-T09."""

    def test_resume_gives_the_value(self):
        def sleeper(task=None):
            return (yield task.suspend(10, "late"))
        task = self.spawn(sleeper)
        self.kernel.settle()
        self.assertEqual(task.resume("update"), 0)
        self.run_all()
        self.assertEqual(task.outcome, "update")
        self.assertEqual(task.resume(), -1)

    def test_without_a_value(self):
        def sleeper(task=None):
            return ((yield task.sleep()),)
        task = self.spawn(sleeper)
        self.kernel.settle()
        self.assertEqual(task.wakeup(), 0)
        self.run_all()
        self.assertEqual(task.outcome, (None,))

    def test_timeouts(self):
        def sleeper(task=None):
            start = self.kernel.clock()
            values = []
            for timeout in (1.5, 0, -1):
                values.append((yield task.suspend(timeout, "alarm")))
            return values, self.kernel.clock() - start
        self.assertEqual(self.result(sleeper), (["alarm"] * 3, 1.5))

    def test_a_timeout_that_is_no_number(self):
        def sleeper(task=None):
            return (yield task.suspend("soon"))
        with self.expect_log("suspend.*soon.* in .*, line .* must be a number of seconds"):
            self.assertEqual(self.result(sleeper), -1)

    def test_of_another_task(self):
        other = self.spawn(parked)

        def meddler():
            return (yield other.suspend(1))
        self.assertEqual(self.result(meddler), -1)

    def test_resume_of_a_task_that_is_not_suspended_is_ignored(self):
        def receiver(task=None):
            return (yield task.receive())
        task = self.spawn(receiver)
        self.kernel.settle()
        with self.expect_log(r"^resume\('ignored'\) of task receiver/\d+ in .*tasks.py, line \d+, is ignored"):
            self.assertEqual(task.resume("ignored"), 0)
        self.kernel.settle()
        task.send("message")
        self.run_all()
        self.assertEqual(task.outcome, "message")


class JoinTest(KernelTestCase):
    """T20-T23."""

    def worker(self, seconds=1, value="done"):
        def work(task=None):
            yield task.sleep(seconds)
            return value
        return self.spawn(work)

    def test_finish_before_and_after_the_end(self):
        worker = self.worker()

        def waiter():
            first = yield worker.finish()
            second = yield worker()
            return first, second
        one, two = self.spawn(waiter), self.spawn(waiter)
        self.run_all()
        self.assertEqual(one.outcome, ("done", "done"))
        self.assertEqual(two.outcome, ("done", "done"))
        self.assertEqual(self.result(waiter), ("done", "done"))

    def test_finish_times_out(self):
        worker = self.worker(10)

        def waiter():
            early = yield worker.finish(2)
            return early, (yield worker.finish(0)), (yield worker.finish(20))
        self.assertEqual(self.result(waiter), (None, None, "done"))

    def test_waits_that_timed_out_leave_nothing_behind(self):
        worker = self.worker(10_000)

        def waiter():
            for _ in range(1000):
                yield worker.finish(1)
        task = self.spawn(waiter)
        while task.is_alive():
            self.kernel.turn()
        self.assertEqual(len(worker.watchers), 0)

    def test_waiting_for_itself_is_misuse(self):
        def narcissus(task=None):
            yield task.finish()
        self.assertIs(self.failing(narcissus).type, MisuseError)

    def test_value_from_the_thread_of_the_kernel_is_misuse(self):
        worker = self.worker()
        with self.assertRaisesRegex(MisuseError, "yield task.finish"):
            worker.value()
        self.run_all()
        self.assertEqual(worker.value(), "done")

    def test_is_alive(self):
        worker = self.worker()
        self.assertTrue(worker.is_alive())
        self.run_all()
        self.assertFalse(worker.is_alive())

    def test_daemons_do_not_count(self):
        import threading

        def daemon(task=None):
            first = task.set_daemon()
            yield task.receive()
            second = task.set_daemon(False)
            yield task.receive()
            return first, second
        task = self.spawn(daemon)
        self.assertEqual(task.set_daemon(), -1)
        idle = threading.Event()
        self.kernel.notify_idle(idle)
        self.assertFalse(idle.is_set())
        self.kernel.settle()
        self.assertTrue(idle.is_set())
        task.send(1)
        self.kernel.settle()
        again = threading.Event()
        self.kernel.notify_idle(again)
        self.assertFalse(again.is_set())
        task.send(2)
        self.kernel.settle()
        self.assertTrue(again.is_set())
        self.assertEqual(task.outcome, (0, 0))


class MonitorTest(KernelTestCase):
    """T14-T16, X04."""

    def observe(self, target, count=1):
        def monitor(task=None):
            result = yield task.monitor(target)
            statuses = []
            for _ in range(count if result == 0 else 0):
                statuses.append((yield task.receive()))
            return result, statuses
        return self.spawn(monitor)

    def test_normal_end(self):
        def work():
            yield
            return "value"
        worker = self.spawn(work)
        monitors = [self.observe(worker) for _ in range(3)]
        self.run_all()
        for monitor in monitors:
            result, (status,) = monitor.outcome
            self.assertEqual(result, 0)
            self.assertIs(status.info, worker)
            self.assertIs(status.type, StopIteration)
            self.assertEqual(status.value, "value")

    def test_failure_is_told_and_not_shouted(self):
        def work():
            yield
            raise ValueError("told")
        worker = self.spawn(work)
        monitor = self.observe(worker)
        self.run_all()
        _, (status,) = monitor.outcome
        self.assertIs(status.type, ValueError)
        self.assertIn("told", status.value)
        self.assertIs(status.info, worker)

    def test_terminated(self):
        worker = self.spawn(parked)
        monitor = self.observe(worker)
        self.kernel.settle()
        worker.terminate()
        self.run_all()
        _, (status,) = monitor.outcome
        self.assertIs(status.type, StopIteration)
        self.assertIsNone(status.value)

    def test_an_ended_task_cannot_be_monitored(self):
        def short():
            yield
        worker = self.spawn(short)
        self.run_all()
        self.assertEqual(self.result(lambda: (yield from self.monitor_once(worker))), -1)
        self.assertEqual(worker.notify(self.spawn(parked)), -1)

    def monitor_once(self, worker):
        return (yield self.kernel.current.monitor(worker))

    def test_notify(self):
        def short():
            yield
            return 1

        def receiver(task=None):
            return (yield task.receive())
        worker, monitor = self.spawn(short), self.spawn(receiver)
        self.assertEqual(worker.notify(monitor), 0)
        self.run_all()
        self.assertEqual(monitor.outcome.value, 1)


class ThrowTest(KernelTestCase):
    """T18."""

    def catcher(self, request):
        def catch(task=None):
            try:
                yield request(task)
            except (KeyError, ValueError) as error:
                return "caught", type(error), error.args
            return "not caught"
        return catch

    def waits(self):
        other = self.spawn(parked)
        return {
            "receive": lambda task: task.receive(),
            "receive with timeout": lambda task: task.receive(100),
            "suspend": lambda task: task.suspend(),
            "suspend with timeout": lambda task: task.suspend(100),
            "join": lambda task: other.finish(),
            "join with timeout": lambda task: other.finish(100),
            "bare": lambda task: None,
            "value": lambda task: 5,
        }

    def test_at_every_kind_of_yield(self):
        for name, request in self.waits().items():
            with self.subTest(name):
                task = self.spawn(self.catcher(request))
                self.kernel.once()
                self.assertEqual(task.throw(ValueError("x")), 0)
                self.kernel.settle()
                self.assertEqual(task.outcome, ("caught", ValueError, ("x",)))
                self.assertEqual(len(self.kernel.timers), 0)

    def test_forms(self):
        for args in ((ValueError,), (ValueError("a"),), (ValueError, ValueError("a")), ((ValueError, ValueError("a")),),
                     (ValueError, ValueError("a"), None)):
            with self.subTest(args):
                task = self.spawn(self.catcher(lambda task: task.suspend()))
                self.kernel.settle()
                self.assertEqual(task.throw(*args), 0)
                self.kernel.settle()
                self.assertEqual(task.outcome[:2], ("caught", ValueError))

    def test_nothing_to_throw_or_nobody(self):
        task = self.spawn(parked)
        self.assertEqual(task.throw(), -1)
        self.assertEqual(task.throw(5), -1)
        self.assertEqual(task.throw(()), -1)

        def itself(task=None):
            yield
            return task.throw(ValueError())
        self.assertEqual(self.result(itself), -1)
        task.terminate()
        self.run_all()
        self.assertEqual(task.throw(ValueError()), -1)

    def test_into_nested_generators(self):
        seen = []

        def inner(task):
            try:
                yield task.receive()
            except ValueError:
                seen.append("inner")
                raise KeyError("from inner") from None

        def outer(task=None):
            try:
                yield inner(task)
            except KeyError:
                seen.append("outer")
                return (yield task.receive())
        task = self.spawn(outer)
        self.kernel.settle()
        task.throw(ValueError())
        self.kernel.settle()
        self.assertEqual(seen, ["inner", "outer"])
        task.send("goes on")
        self.run_all()
        self.assertEqual(task.outcome, "goes on")

    def test_before_the_first_step(self):
        def function():
            yield
        task = self.spawn(function)
        task.throw(ValueError("early"))
        with self.expect_log("uncaught"):
            self.run_all()
        self.assertIs(task.outcome.type, ValueError)

    def test_a_message_on_its_way_is_not_lost(self):
        def receiver(task=None):
            first = yield task.receive()
            try:
                second = yield task.receive()
            except ValueError:
                second = "thrown"
            return first, second, (yield task.receive())
        task = self.spawn(receiver)
        self.kernel.settle()
        task.send("message")
        task.throw(ValueError())
        self.kernel.settle()
        task.send("after")
        self.run_all()
        self.assertEqual(task.outcome, ("message", "thrown", "after"))

    def test_a_result_on_its_way_through_nested_generators(self):
        def inner(task):
            return (yield task.receive())

        def outer(task=None):
            got = yield inner(task)
            try:
                yield task.receive()
            except ValueError:
                return got
        task = self.spawn(outer)
        self.kernel.settle()
        task.send("message")
        task.throw(ValueError())
        self.run_all()
        self.assertEqual(task.outcome, "message")

    def test_the_last_of_two_is_raised(self):
        task = self.spawn(self.catcher(lambda task: task.suspend()))
        self.kernel.settle()
        task.throw(ValueError("first"))
        task.throw(KeyError("second"))
        self.kernel.settle()
        self.assertEqual(task.outcome, ("caught", KeyError, ("second",)))


class MonitoredTest(KernelTestCase):
    """What is kept of monitors."""

    def test_monitors_that_have_ended_are_forgotten(self):
        server, lasting, seen = self.spawn(parked), [], []

        def brief(task=None):
            self.assertEqual((yield task.monitor(server)), 0)

        def patient(task=None):
            yield task.monitor(server)
            seen.append((yield task.receive()).info)
        for _ in range(500):
            self.spawn(brief)
            if len(lasting) < 20:
                lasting.append(self.spawn(patient))
            self.kernel.settle()
        self.assertLess(len(server.watchers), 100)
        server.terminate()
        self.kernel.settle()
        self.assertEqual(seen, [server] * 20)


class TerminateTest(KernelTestCase):
    """T19, X43."""

    def test_an_end_that_is_put_off_comes_all_the_same(self):
        """A message comes first; nothing that is thrown between that and the end takes the place of the end."""
        seen = []

        def receiver(task=None):
            while True:
                try:
                    seen.append((yield task.receive()))
                except ValueError:
                    seen.append("thrown")
        task = self.spawn(receiver)
        self.kernel.settle()
        task.send("message")
        task.terminate()
        self.kernel.once()                  # the message
        task.throw(ValueError())
        self.run_all()
        self.assertEqual(seen, ["message"])
        self.assertFalse(task.is_alive())

    def test_finally_blocks_run_at_every_kind_of_wait(self):
        other = self.spawn(parked)
        for name, request in {
                "receive": lambda task: task.receive(), "receive with timeout": lambda task: task.receive(9),
                "suspend": lambda task: task.suspend(), "join": lambda task: other.finish(),
                "join with timeout": lambda task: other.finish(9), "bare": lambda task: None}.items():
            with self.subTest(name):
                seen = []

                def inner(task):
                    try:
                        while True:
                            yield request(task)
                    except GeneratorExit:
                        seen.append("exit")
                        raise
                    finally:
                        seen.append("inner")

                def outer(task=None):
                    try:
                        yield inner(task)
                    finally:
                        seen.append("outer")
                task = self.spawn(outer)
                self.kernel.once()
                self.assertEqual(task.terminate(), 0)
                self.kernel.settle()
                self.assertFalse(task.is_alive())
                self.assertIsNone(task.outcome)
                self.assertEqual(seen, ["exit", "inner", "outer"])
                self.assertEqual(len(self.kernel.timers), 0)
                self.assertEqual(task.terminate(), -1)
        self.assertFalse(other.watchers)

    def test_a_task_that_has_not_begun_never_does(self):
        def function():
            self.fail("it ran")
            yield
        task = self.spawn(function)
        self.assertEqual(task.terminate(), 0)
        self.run_all()
        self.assertIsNone(task.outcome)

    def test_the_running_task_ends_at_its_next_yield(self):
        for name, request in {
                "bare": lambda task: None, "value": lambda task: 5, "receive": lambda task: task.receive(),
                "at once": lambda task: task.deliver(1), "sleep": lambda task: task.sleep(1)}.items():
            with self.subTest(name):
                seen = []

                def function(task=None):
                    self.assertEqual(task.terminate(), 0)
                    seen.append("still here")
                    try:
                        yield request(task)
                        seen.append("too far")
                    finally:
                        seen.append("finally")
                task = self.spawn(function)
                self.kernel.settle()
                self.assertFalse(task.is_alive())
                self.assertEqual(seen, ["still here", "finally"])

    def test_the_running_task_ends_also_when_a_nested_generator_asked_for_it(self):
        seen = []

        def inner(task):
            task.terminate()
            return 1
            yield

        def outer(task=None):
            seen.append((yield inner(task)))
            yield
            seen.append("too far")
        task = self.spawn(outer)
        self.kernel.settle()
        self.assertFalse(task.is_alive())
        self.assertEqual(seen, [1])

    def test_one_that_swallows_the_exit_is_dropped(self):
        def stubborn(task=None):
            try:
                yield task.receive()
            except GeneratorExit:
                yield task.receive()
        task = self.spawn(stubborn)
        self.kernel.settle()
        task.terminate()
        self.kernel.settle()
        self.assertFalse(task.is_alive())
        self.assertIsNone(task.outcome)

    def test_one_that_fails_on_its_way_out(self):
        def clumsy(task=None):
            try:
                yield task.receive()
            finally:
                raise ValueError("in finally")
        task = self.spawn(clumsy)
        self.kernel.settle()
        with self.expect_log("error while it was terminated", level=10):
            task.terminate()
            self.kernel.settle()
        self.assertIsNone(task.outcome)

    def test_one_that_returns_on_its_way_out(self):
        def polite(task=None):
            try:
                yield task.receive()
            except GeneratorExit:
                return "bye"
        task = self.spawn(polite)
        self.kernel.settle()
        task.terminate()
        self.kernel.settle()
        self.assertIsNone(task.outcome)

    def test_an_async_task(self):
        seen = []

        async def inner(task):
            try:
                await task.receive()
            finally:
                seen.append("inner")

        async def outer(task=None):
            await inner(task)
        begun, fresh = self.spawn(outer), None
        self.kernel.settle()
        fresh = self.spawn(outer)
        begun.terminate()
        fresh.terminate()
        self.kernel.settle()
        self.assertEqual(seen, ["inner"])
        self.assertFalse(begun.is_alive() or fresh.is_alive())

    def test_an_exception_cannot_bring_it_back(self):
        def catches(task=None):
            while True:
                try:
                    yield task.receive()
                except ValueError:
                    pass
        for ready_with_result in (False, True):
            task = self.spawn(catches)
            self.kernel.settle()
            if ready_with_result:
                task.send("message")
            task.terminate()
            task.throw(ValueError())
            self.kernel.settle()
            self.assertFalse(task.is_alive())

    def test_waiters_are_told(self):
        worker = self.spawn(parked)

        def waiter():
            return ((yield worker.finish()),)
        task = self.spawn(waiter)
        self.kernel.settle()
        worker.terminate()
        self.run_all()
        self.assertEqual(task.outcome, (None,))

    def test_a_busy_receiver_is_ended_all_the_same(self):
        def producer(task=None):
            while receiver.is_alive():
                receiver.send("more")
                yield

        receiver = self.spawn(parked)
        producer_task = self.spawn(producer)
        self.kernel.turn(0)
        self.kernel.turn(0)
        receiver.terminate()
        for _ in range(3):
            self.kernel.turn(0)
        self.assertFalse(receiver.is_alive())
        self.kernel.settle()
        self.assertFalse(producer_task.is_alive())


class HotSwapTest(KernelTestCase):
    """T27-T29, U12."""

    def old(self, task=None):
        task.hot_swappable(True)
        while True:
            message = yield task.receive()
            self.seen.append(("old", message))

    def new(self, start, task=None):
        self.seen.append(("start", start))
        while True:
            message = yield task.receive()
            self.seen.append(("new", message))

    def setUp(self):
        super().setUp()
        self.seen = []

    def test_new_code_gets_the_mailbox(self):
        task = self.spawn(self.old)
        number = task.id
        self.kernel.settle()
        self.assertEqual(task.hot_swap(self.new, 5), 0)
        task.send("a")
        task.send("b")
        self.kernel.settle()
        self.assertEqual(self.seen, [("start", 5), ("new", "a"), ("new", "b")])
        self.assertEqual((task.name, task.id), ("new", number))

    def test_messages_on_their_way_go_to_the_old_code(self):
        task = self.spawn(self.old)
        self.kernel.settle()
        task.send("a")
        task.hot_swap(self.new, 5)
        self.kernel.settle()
        self.assertEqual(self.seen, [("old", "a"), ("start", 5)])

    def test_it_waits_until_it_is_allowed(self):
        def old(task=None):
            yield task.receive()
            self.assertEqual(task.hot_swappable(True), 0)
            yield task.receive()
            self.seen.append("too far")
        task = self.spawn(old)
        self.kernel.settle()
        self.assertEqual(task.hot_swap(self.new, 1), 0)
        self.kernel.settle()
        self.assertEqual(self.seen, [])
        task.send("go")
        self.kernel.settle()
        self.assertEqual(self.seen, [("start", 1)])

    def test_the_flag_is_the_tasks_own_and_reset_by_the_swap(self):
        task = self.spawn(self.old)
        self.kernel.settle()
        self.assertEqual(task.hot_swappable(True), -1)
        task.hot_swap(self.new, 1)
        self.kernel.settle()
        task.hot_swap(self.new, 2)
        self.kernel.settle()
        self.assertEqual(self.seen, [("start", 1)])

    def test_it_can_be_forbidden_again(self):
        def old(task=None):
            task.hot_swappable(True)
            task.hot_swappable(False)
            yield task.receive()
            return "kept"
        task = self.spawn(old)
        self.kernel.settle()
        task.hot_swap(self.new, 1)
        self.kernel.settle()
        task.send(1)
        self.run_all()
        self.assertEqual(task.outcome, "kept")

    def test_the_old_code_can_look_and_pass(self):
        def old(task=None):
            task.hot_swappable(True)
            try:
                yield task.receive()
            except HotSwapException as swap:
                self.seen.append(isinstance(swap.args[0], types.GeneratorType))
                raise
        task = self.spawn(old)
        self.kernel.settle()
        task.hot_swap(self.new, 1)
        self.kernel.settle()
        self.assertEqual(self.seen, [True, ("start", 1)])

    def test_the_old_code_can_refuse(self):
        def old(task=None):
            task.hot_swappable(True)
            try:
                yield task.receive()
            except HotSwapException:
                self.seen.append("no")
            return (yield task.receive())
        task = self.spawn(old)
        self.kernel.settle()
        task.hot_swap(self.new, 1)
        self.kernel.settle()
        task.send("kept")
        self.run_all()
        self.assertEqual(self.seen, ["no"])
        self.assertEqual((task.outcome, task.name), ("kept", "old"))

    def test_the_old_code_can_end(self):
        async def modern():
            self.fail("it ran")

        def old(task=None):
            task.hot_swappable(True)
            try:
                yield task.receive()
            except HotSwapException:
                return "ended"
        task = self.spawn(old)
        self.kernel.settle()
        task.hot_swap(modern)
        self.run_all()
        self.assertEqual(task.outcome, "ended")

    def test_only_at_top_level(self):
        def inner(task):
            return (yield task.receive())

        def old(task=None):
            task.hot_swappable(True)
            self.seen.append((yield inner(task)))
            yield task.receive()
            self.seen.append("too far")
        task = self.spawn(old)
        self.kernel.settle()
        task.hot_swap(self.new, 1)
        self.kernel.settle()
        task.send("inner")
        self.kernel.settle()
        self.assertEqual(self.seen, ["inner", ("start", 1)])

    def test_not_in_the_middle_of_io(self):
        def old(future, task=None):
            task.hot_swappable(True)
            self.seen.append((yield future))
            yield task.receive()
        future = concurrent.futures.Future()
        task = self.spawn(old, future)
        self.kernel.settle()
        task.hot_swap(self.new, 1)
        self.kernel.settle()
        self.assertEqual(self.seen, [])
        future.set_result("io")
        self.kernel.settle()
        self.assertEqual(self.seen, ["io", ("start", 1)])

    def test_what_is_no_generator_function(self):
        task = self.spawn(parked)
        with self.expect_log("is not swapped"):
            self.assertEqual(task.hot_swap(len, 5), -1)

    def test_the_last_offer_counts(self):
        async def modern():
            self.fail("it ran")

        def old(task=None):
            yield task.receive()
            task.hot_swappable()
            yield task.receive()
        task = self.spawn(old)
        self.kernel.settle()
        task.hot_swap(modern)
        task.hot_swap(self.new, 2)
        task.send(1)
        self.kernel.settle()
        self.assertEqual(self.seen, [("start", 2)])

    def test_an_ended_task_begins_anew(self):
        def short():
            yield
            return 1
        task = self.spawn(short)
        self.run_all()
        self.assertEqual(task.hot_swap(short), 0)
        self.assertTrue(task.is_alive())
        self.run_all()
        self.assertEqual(task.outcome, 1)

    def test_by_itself(self):
        def old(task=None):
            task.hot_swappable()
            task.hot_swap(self.new, 3)
            yield task.receive()
        self.spawn(old)
        self.kernel.settle()
        self.assertEqual(self.seen, [("start", 3)])


if __name__ == "__main__":
    unittest.main()
