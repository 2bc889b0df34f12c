"""Locks, conditions, events, semaphores: L01-L18, on a kernel whose time stands still."""
from __future__ import annotations

import threading
import unittest

import pycoslite
from pycoslite import Condition, Event, Lock, MisuseError, MonitorStatus, RLock, Semaphore, Task
from tests.fake_kernel import FakeKernel
from tests.support import TestCase


class SyncTestCase(TestCase):
    """With a kernel of its own for each test."""

    def setUp(self):
        self.kernel = FakeKernel(self)
        self.spawn, self.settle, self.result = self.kernel.spawn, self.kernel.settle, self.kernel.result
        self.seen = []

    def holder(self, lock):
        """A task that has the lock until it gets a message."""
        def hold(task=None):
            yield lock.acquire()
            yield task.receive()
            lock.release()
        task = self.spawn(hold)
        self.settle()
        return task

    def error(self, function, *args):
        """The exception that ends a task."""
        with self.expect_log("uncaught exception"):
            status = self.result(function, *args)
        self.assertIsInstance(status, MonitorStatus)
        return status.error


class LockTest(SyncTestCase):
    """L01-L05."""

    def test_one_at_a_time_in_the_order_of_asking(self):
        lock = Lock()

        def worker(n, task=None):
            self.assertIs((yield lock.acquire()), True)
            self.seen.append(n)
            inside = len(self.seen)
            yield task.sleep(1)
            self.assertEqual(len(self.seen), inside)
            lock.release()
        for n in range(10):
            self.spawn(worker, n)
        self.kernel.run()
        self.assertEqual(self.seen, list(range(10)))
        self.assertIsNone(lock.owner)
        self.assertEqual(len(lock.line), 0)

    def test_not_blocking_and_in_time(self):
        for lock in (Lock(), RLock(), Condition()):
            self.holder(lock)

            def function():
                return [(yield lock.acquire(False)), (yield lock.acquire(blocking=False)),
                        (yield lock.acquire(timeout=2))]
            start = self.kernel.clock()
            self.assertEqual(self.result(function), [False, False, False])
            self.assertEqual(self.kernel.clock() - start, 2)
            self.assertEqual(len(lock.line), 0)

    def test_a_free_lock_is_had_at_once(self):
        def function(lock):
            got = yield lock.acquire(False)
            lock.release()
            return got, (yield lock.acquire(True, 5))
        for lock in (Lock(), RLock(), Condition()):
            self.assertEqual(self.result(function, lock), (True, True))

    def test_release_may_be_yielded(self):
        def function():
            lock = Lock()
            yield lock.acquire()
            yield lock.release()
            return lock.owner
        self.assertIsNone(self.result(function))

    def test_only_the_owner_releases(self):
        for lock in (Lock(), RLock(), Condition()):
            holder = self.holder(lock)

            def thief():
                yield
                lock.release()
            error = self.error(thief)
            self.assertIsInstance(error, RuntimeError)
            self.assertIn("task hold/%d owns" % holder.id, str(error))
            with self.assertRaisesRegex(RuntimeError, "owns"):
                lock.release()
            with self.assertRaisesRegex(RuntimeError, "nobody has acquired"):
                type(lock)().release()

    def test_a_lock_is_not_reentrant(self):
        def function(timeout):
            lock = Lock()
            yield lock.acquire()
            return (yield lock.acquire(timeout=timeout)), (yield lock.acquire(False))
        self.assertEqual(self.result(function, 1), (False, False))
        error = self.error(function, -1)
        self.assertIsInstance(error, MisuseError)
        self.assertIn("RLock", str(error))

    def test_reentrant(self):
        for lock in (RLock(), Condition()):
            def function():
                for _ in range(3):
                    self.assertIs((yield lock.acquire()), True)
                for _ in range(3):
                    self.assertIsNotNone(lock.owner)
                    lock.release()
                return "released"
            self.assertEqual(self.result(function), "released")
            self.assertIsNone(lock.owner)

    def test_depth_holds_others_off(self):
        lock = RLock()

        def outer(task=None):
            yield lock.acquire()
            yield lock.acquire()
            lock.release()
            yield task.receive()
            lock.release()

        def other():
            return (yield lock.acquire(False)), (yield lock.acquire())
        holder = self.spawn(outer)
        self.settle()
        waiter = self.spawn(other)
        self.settle()
        self.assertTrue(waiter.is_alive())
        holder.send(1)
        self.settle()
        self.assertEqual(waiter.outcome, (False, True))

    def test_a_waiter_that_is_terminated_leaves_the_line(self):
        lock = Lock()
        holder = self.holder(lock)
        first, second = self.spawn(self.once, lock), self.spawn(self.once, lock)
        self.settle()
        first.terminate()
        self.settle()
        self.assertEqual(len(lock.line), 1)
        holder.send(1)
        self.settle()
        self.assertEqual(second.outcome, "had it")
        self.assertIsNone(lock.owner)

    def once(self, lock):
        yield lock.acquire()
        try:
            yield
        finally:
            lock.release()
        return "had it"

    def test_a_waiter_that_is_terminated_with_the_lock_on_its_way_gives_it_back(self):
        lock = Lock()
        holder = self.holder(lock)
        first, second = self.spawn(self.once, lock), self.spawn(self.once, lock)
        self.settle()
        holder.send(1)
        while lock.owner is not first:
            self.kernel.once()
        self.assertIs(first.wait, pycoslite.HANDED)
        first.terminate()
        self.settle()
        self.assertFalse(first.is_alive())
        self.assertEqual(second.outcome, "had it")

    def test_an_owner_that_ends_without_releasing(self):
        lock = Lock()

        def forgetful(task=None):
            yield lock.acquire()
            yield task.receive()
        forgetful_task = self.spawn(forgetful)
        self.settle()
        waiters = [self.spawn(self.catcher, lock) for _ in range(2)]
        self.settle()
        forgetful_task.send(1)
        self.settle()
        later = self.result(self.catcher, lock)
        for text in [waiter.outcome for waiter in waiters] + [later]:
            self.assertIn("forgetful/%d ended without releasing a Lock" % forgetful_task.id, text)

    def catcher(self, lock):
        try:
            yield lock.acquire()
        except MisuseError as error:
            return str(error)

    def test_tasks_of_two_kernels(self):
        lock = Lock()
        self.holder(lock)
        other = FakeKernel(self)
        self.assertIn("SysTask", other.result(self.catcher, lock))

    def test_async_with(self):
        async def function(lock):
            async with lock as same:
                self.seen.append((same is lock, lock.owner is not None))
            return lock.owner
        for lock in (Lock(), RLock(), Condition()):
            self.assertIsNone(self.result(function, lock))
        self.assertEqual(self.seen, [(True, True)] * 3)

    def test_leaving_a_long_line_from_anywhere(self):
        """The line of 20,000 empties by timeouts without a scan for each."""
        lock = Lock()
        self.holder(lock)

        def impatient(n):
            return (yield lock.acquire(timeout=1 + n % 7))
        tasks = [self.spawn(impatient, n) for n in range(20_000)]
        self.kernel.run()
        self.assertEqual({task.outcome for task in tasks}, {False})
        self.assertEqual(len(lock.line), 0)


class ConditionTest(SyncTestCase):
    """L06-L11."""

    def waiter(self, condition, name, timeout=None, depth=1):
        def wait(task=None):
            for _ in range(depth):
                yield condition.acquire()
            got = yield condition.wait(timeout)
            self.seen.append((name, got, condition.owner is task and condition.depth))
            if got:
                yield
                for _ in range(depth):
                    condition.release()
        task = self.spawn(wait)
        self.settle()
        return task

    def test_notify_wakes_so_many_in_order(self):
        condition = Condition()
        for name in "abcd":
            self.waiter(condition, name)
        condition.notify()
        self.settle()
        self.assertEqual(self.seen, [("a", True, 1)])
        condition.notify(2)
        self.settle()
        self.assertEqual([name for name, _, _ in self.seen], ["a", "b", "c"])
        condition.notify(5)
        self.settle()
        self.assertEqual(len(self.seen), 4)
        self.assertIsNone(condition.owner)

    def test_notify_all(self):
        for method in ("notify_all", "notifyAll"):
            condition = Condition()
            for name in "abc":
                self.waiter(condition, name)
            getattr(condition, method)()
            self.settle()
        self.assertEqual([name for name, _, _ in self.seen], list("abcabc"))

    def test_all_depth_is_released_and_had_again(self):
        condition = Condition()
        task = self.waiter(condition, "deep", depth=3)
        self.assertIsNone(condition.owner)
        condition.notify()
        self.settle()
        self.assertEqual(self.seen, [("deep", True, 3)])
        self.assertFalse(task.is_alive())
        self.assertIsNone(condition.owner)

    def test_time_is_up(self):
        condition = Condition()
        self.waiter(condition, "late", timeout=2)
        self.kernel.run()
        self.waiter(condition, "not at all", timeout=0)
        self.assertEqual(self.seen, [("late", False, False), ("not at all", False, False)])
        self.assertIsNone(condition.owner)
        self.assertEqual(len(condition.waiting), 0)

    def test_who_was_notified_in_time_gets_the_lock_however_late(self):
        condition = Condition()
        self.waiter(condition, "a", timeout=2)
        holder = self.holder(condition)
        condition.notify()
        self.kernel.clock.advance(10)
        self.settle()
        self.assertEqual(self.seen, [])
        holder.send(1)
        self.settle()
        self.assertEqual(self.seen, [("a", True, 1)])

    def test_notify_without_waiters_is_forgotten(self):
        condition = Condition()
        condition.notify()
        self.waiter(condition, "a")
        self.assertEqual(self.seen, [])

    def test_wait_needs_the_lock(self):
        condition = Condition()

        def function():
            yield condition.wait()
        self.assertIsInstance(self.error(function), RuntimeError)

    def test_terminated_while_waiting(self):
        condition = Condition()
        task = self.waiter(condition, "a")
        task.terminate()
        self.settle()
        self.assertEqual(len(condition.waiting), 0)
        holder = self.holder(condition)
        task = self.waiter(condition, "b")
        holder.send(1)
        self.settle()
        holder = self.holder(condition)
        condition.notify()
        task.terminate()                    # notified, and waiting for the lock
        self.settle()
        holder.send(1)
        self.settle()
        self.assertFalse(task.is_alive())
        self.assertEqual(len(condition.line), 0)
        self.assertIsNone(condition.owner)

    def careful(self, condition, name, timeout=None, depth=1):
        """A task that releases the lock in a ``finally`` block, and notes whether it could."""
        def wait(task=None):
            for _ in range(depth):
                yield condition.acquire()
            try:
                yield condition.wait(timeout)
            except KeyError as error:
                self.seen.append((name, error.args[0]))
            finally:
                self.seen.append((name, condition.owner is task and condition.depth))
                for _ in range(depth):
                    condition.release()
            return name
        task = self.spawn(wait)
        self.settle()
        return task

    def test_an_exception_comes_when_the_lock_is_had_again(self):
        for stop, outcome in ((lambda task: task.throw(KeyError(1)), [("a", 1), ("a", 2)]),
                              (Task.terminate, [("a", 2)])):
            condition, self.seen = Condition(), []
            task = self.careful(condition, "a", depth=2)
            stop(task)
            self.settle()
            self.assertEqual(self.seen, outcome)
            self.assertFalse(task.is_alive())
            self.assertIsNone(condition.owner)

            self.seen = []
            task, holder = self.careful(condition, "a", 5, depth=2), self.holder(condition)
            second = self.careful(condition, "behind it")
            stop(task)
            self.settle()
            self.kernel.clock.advance(10)           # its timeout counts no more
            self.settle()
            self.assertEqual(self.seen, [])
            holder.send(1)
            self.settle()
            self.assertEqual(self.seen, outcome)
            self.assertFalse(task.is_alive())
            self.assertIsNone(condition.owner)
            second.terminate()
            self.settle()

    def test_of_several_exceptions_the_last_one_comes_and_nothing_after_the_end(self):
        condition = Condition()
        task, holder = self.careful(condition, "a"), self.holder(condition)
        task.throw(KeyError(1))
        task.throw(KeyError(2))
        holder.send(1)
        self.settle()
        self.assertEqual(self.seen, [("a", 2), ("a", 1)])
        task, holder = self.careful(condition, "b"), self.holder(condition)
        task.throw(KeyError(1))
        task.terminate()
        task.throw(KeyError(2))
        holder.send(1)
        self.kernel.post(task.throw, KeyError(3))   # while the lock is on its way to it
        self.settle()
        self.assertEqual(self.seen[2:], [("b", 1)])
        self.assertIsNone(condition.owner)

    def test_an_exception_comes_also_when_the_lock_is_never_released(self):
        condition = Condition()

        def take_along(task=None):
            yield condition.acquire()
            yield task.receive()

        def wait(task=None):
            yield condition.acquire()
            try:
                yield condition.wait()
            except KeyError as error:
                self.seen.append((error.args, condition.owner is task))
        waiters = [self.spawn(wait) for _ in range(3)]
        owner = self.spawn(take_along)
        self.settle()
        waiters[0].throw(KeyError(1))
        waiters[1].terminate()
        self.settle()
        self.assertEqual(self.seen, [])
        owner.send(1)
        self.settle()
        waiters[2].throw(KeyError(2))               # when nobody can release it any more
        self.settle()
        self.assertEqual(self.seen, [((1,), False), ((2,), False)])
        self.assertFalse(any(task.is_alive() for task in waiters))

    def test_all_get_the_lock_again_also_at_the_end_of_the_program(self):
        condition, other = Condition(), Condition()
        for _ in range(400):
            self.careful(condition, "careful")
            self.waiter(other, "careless")
        self.kernel._end_all()
        self.assertEqual(self.kernel.tasks, {})
        self.assertEqual(self.seen, [("careful", 1)] * 400)

    def test_a_notification_is_not_lost_with_who_got_it(self):
        for stop in (Task.terminate, lambda task: task.throw(KeyError(1))):
            condition, self.seen = Condition(), []
            first, second = self.careful(condition, "first"), self.waiter(condition, "second")
            holder = self.holder(condition)
            condition.notify()
            stop(first)
            holder.send(1)
            self.settle()
            self.assertIn(("second", True, 1), self.seen)
            self.assertFalse(second.is_alive())
            self.assertIsNone(condition.owner)

    def test_producers_and_consumers(self):
        condition, items, got = Condition(), [], []

        def producer(n):
            for k in range(20):
                yield condition.acquire()
                items.append((n, k))
                condition.notify()
                condition.release()
                yield

        def consumer():
            while len(got) < 60:
                yield condition.acquire()
                while not items and len(got) < 60:
                    yield condition.wait()
                if items:
                    got.append(items.pop(0))
                if len(got) == 60:
                    condition.notify_all()
                condition.release()
        consumers = [self.spawn(consumer) for _ in range(4)]
        for n in range(3):
            self.spawn(producer, n)
        self.kernel.run()
        self.assertEqual(len(set(got)), 60)
        self.assertFalse(any(task.is_alive() for task in consumers))


class EventTest(SyncTestCase):
    """L12-L15."""

    def waiter(self, event, timeout=None):
        def wait():
            return (yield event.wait(timeout))
        task = self.spawn(wait)
        self.settle()
        return task

    def test_set_wakes_every_waiter(self):
        event = Event()
        tasks = [self.waiter(event) for _ in range(5)]
        self.assertFalse(event.is_set())
        event.set()
        self.settle()
        self.assertTrue(event.isSet())
        self.assertEqual([task.outcome for task in tasks], [True] * 5)
        self.assertIs(self.waiter(event).outcome, True)
        event.clear()
        self.assertFalse(event.is_set())
        self.assertTrue(self.waiter(event).is_alive())

    def test_timeouts(self):
        event = Event()

        def function():
            return (yield event.wait(0)), (yield event.wait(-1)), (yield event.wait(3))
        start = self.kernel.clock()
        self.assertEqual(self.result(function), (False, False, False))
        self.assertEqual(self.kernel.clock() - start, 3)
        self.assertEqual(len(event.line), 0)
        event.set()
        self.assertEqual(self.result(function), (True, True, True))

    def test_set_in_time_cancels_the_timer(self):
        event = Event()
        task = self.waiter(event, 5)
        event.set()
        self.settle()
        self.assertIs(task.outcome, True)
        self.assertEqual(len(self.kernel.timers), 0)

    def test_set_and_clear_at_once_wakes_all_the_same(self):
        event = Event()
        task = self.waiter(event)
        event.set()
        event.clear()
        self.settle()
        self.assertIs(task.outcome, True)

    def test_terminated_while_waiting(self):
        event = Event()
        task = self.waiter(event)
        task.terminate()
        self.settle()
        event.set()
        self.settle()
        self.assertIsNone(task.outcome)

    def test_set_by_a_thread_just_while_a_task_begins_to_wait(self):
        class Racing(Event):
            """Set between the two looks of a wait."""

            __slots__ = ("looks",)

            @property
            def flag(self):
                """Set at the second look."""
                self.looks = getattr(self, "looks", 0) + 1
                return self.looks == 2

            @flag.setter
            def flag(self, value):
                """Ignored."""
        self.assertIs(self.waiter(Racing(), 100).outcome, True)
        self.assertEqual(len(self.kernel.timers), 0)

    def test_set_by_threads(self):
        self.addCleanup(pycoslite.stop_default)
        event, rounds = Event(), 300
        back = threading.Semaphore(0)

        def waiter():
            for _ in range(rounds):
                got = yield event.wait(20)
                event.clear()
                back.release()
                if not got:
                    return "lost"
            return "all"
        task = Task(waiter)
        for _ in range(rounds):
            event.set()
            back.acquire()
        self.assertEqual(task.value(20), "all")

    def test_await(self):
        event = Event()

        async def function():
            return await event.wait(1)
        self.assertIs(self.result(function), False)


class SemaphoreTest(SyncTestCase):
    """L16-L18."""

    def test_so_many_at_a_time(self):
        semaphore = Semaphore(3)
        inside = []

        def worker(task=None):
            self.assertIs((yield semaphore.acquire()), True)
            inside.append(task)
            self.seen.append(len(inside))
            yield task.sleep(1)
            inside.remove(task)
            semaphore.release()
        for _ in range(10):
            self.spawn(worker)
        self.kernel.run()
        self.assertEqual(max(self.seen), 3)
        self.assertEqual(len(self.seen), 10)
        self.assertEqual(semaphore.value, 3)

    def test_not_blocking(self):
        def function():
            semaphore = Semaphore()
            return (yield semaphore.acquire(False)), (yield semaphore.acquire(blocking=False))
        self.assertEqual(self.result(function), (True, False))

    def test_above_its_first_value(self):
        def function():
            semaphore = Semaphore(1)
            semaphore.release()
            yield semaphore.release()
            for _ in range(3):
                self.assertIs((yield semaphore.acquire(False)), True)
            return (yield semaphore.acquire(False))
        self.assertIs(self.result(function), False)

    def test_first_value(self):
        for value in (0, -1):
            with self.assertRaisesRegex(ValueError, "begins with 1 or more"):
                Semaphore(value)

    def test_terminated_waiters_take_nothing(self):
        semaphore = Semaphore()

        def worker(task=None):
            yield semaphore.acquire()
            yield task.receive()
        first, second, third = [self.spawn(worker) for _ in range(3)]
        self.settle()
        second.terminate()
        self.settle()
        semaphore.release()
        self.settle()
        third.send(1)
        self.settle()
        self.assertFalse(third.is_alive())
        self.assertEqual(semaphore.value, 0)

    def test_released_by_threads(self):
        self.addCleanup(pycoslite.stop_default)
        semaphore = Semaphore()

        def worker():
            for _ in range(101):
                yield semaphore.acquire()
            return "all"
        task = Task(worker)
        threads = [threading.Thread(target=lambda: [semaphore.release() for _ in range(25)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(task.value(20), "all")

    def test_async_with(self):
        semaphore = Semaphore()

        async def function():
            async with semaphore:
                self.seen.append(semaphore.value)
            return semaphore.value
        self.assertEqual(self.result(function), 1)
        self.assertEqual(self.seen, [0])


if __name__ == "__main__":
    unittest.main()
