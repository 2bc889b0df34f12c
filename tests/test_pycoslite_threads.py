"""Thread pools and database cursors: H01-H08, on the default kernel."""
from __future__ import annotations

import queue
import sqlite3
import threading
import unittest

import pycoslite
from pycoslite import AsyncDBCursor, AsyncThreadPool, MisuseError, Task
from tests.support import TestCase


class ThreadTestCase(TestCase):
    """Pools end with the test."""

    def setUp(self):
        self.addCleanup(pycoslite.stop_default)

    def pool(self, num_threads):
        pool = AsyncThreadPool(num_threads)
        self.addCleanup(pool.terminate)
        return pool


class AsyncThreadPoolTest(ThreadTestCase):
    """H01-H04."""

    def test_result_and_exception(self):
        pool = self.pool(2)

        def function():
            total = yield pool.async_task(sum, [1, 2, 3])
            text = yield pool.async_task("{}-{b}".format, 1, b=2)
            by_keyword = yield pool.async_task(target=divmod, args=(7, 2))
            with_kwargs = yield pool.async_task(target=dict, kwargs={"a": 1})
            try:
                yield pool.async_task(int, "no number")
            except ValueError as error:
                return total, text, by_keyword, with_kwargs, "no number" in str(error)
        self.assertEqual(Task(function).value(60), (6, "1-2", (3, 1), {"a": 1}, True))

    def test_yield_from_and_await(self):
        pool = self.pool(1)

        def older():
            return (yield from pool.async_task(len, "abc"))

        async def modern():
            return await pool.async_task(len, "abcd")
        self.assertEqual((Task(older).value(60), Task(modern).value(60)), (3, 4))

    def test_the_kernel_goes_on_meanwhile(self):
        pool, go_on = self.pool(1), threading.Event()

        def blocking():
            return (yield pool.async_task(go_on.wait, 20))

        def other():
            yield
            go_on.set()
        blocked = Task(blocking)
        Task(other)
        self.assertIs(blocked.value(60), True)

    def test_threads_are_daemons_and_no_more_than_asked_for(self):
        pool = self.pool(3)
        barrier = threading.Barrier(3)
        seen = set()

        def work(meet):
            seen.add(threading.current_thread())
            if meet:
                barrier.wait(60)            # all three at once

        def function(meet):
            yield pool.async_task(work, meet)
        tasks = [Task(function, n < 3) for n in range(30)]
        for task in tasks:
            self.assertIsNone(task.value(60))
        self.assertEqual(len(seen), 3)
        self.assertTrue(all(thread.daemon for thread in seen))

    def test_no_thread_before_there_is_work(self):
        before = threading.active_count()
        pool = self.pool(4)
        self.assertEqual(threading.active_count(), before)
        pool.terminate()

    def test_calls_wait_for_a_thread_in_order(self):
        pool, gate, order = self.pool(1), threading.Event(), []

        def work(n):
            gate.wait(60)
            order.append(n)

        def function(n):
            yield pool.async_task(work, n)
        tasks = [Task(function, n) for n in range(20)]
        gate.set()
        for task in tasks:
            task.value(60)
        self.assertEqual(order, list(range(20)))

    def test_join(self):
        pool, gate, done = self.pool(1), threading.Event(), []

        def function(n):
            yield pool.async_task(lambda: gate.wait(60) and done.append(n))
        for n in range(3):
            Task(function, n)
        self.wait_until(lambda: pool._calls.unfinished_tasks == 3)
        gate.set()
        pool.join()
        self.assertEqual(done, [0, 1, 2])

    def test_terminate(self):
        pool = self.pool(2)
        self.assertEqual(Task(lambda: (yield pool.async_task(len, "ab"))).value(60), 2)
        before = threading.active_count()
        pool.terminate()
        self.assertLess(threading.active_count(), before)
        pool.terminate()

        def late():
            try:
                yield pool.async_task(len, "ab")
            except MisuseError as error:
                return "was terminated" in str(error)
        self.assertTrue(Task(late).value(60))

    def test_as_a_context_manager(self):
        with AsyncThreadPool(1) as pool:
            self.assertEqual(Task(lambda: (yield pool.async_task(len, "ab"))).value(60), 2)
        self.assertTrue(pool._closed)

    def test_not_to_be_joined_in_a_task(self):
        pool = self.pool(1)

        def function():
            for call in (pool.join, pool.terminate):
                with self.assertRaisesRegex(MisuseError, r"was called inside task function/\d+.*: call it in the main"):
                    call()
            return (yield pool.async_task(len, "still usable"))
        self.assertEqual(Task(function).value(60), 12)

    def test_wrong_sizes(self):
        for size in (0, -1):
            with self.assertRaises(ValueError):
                AsyncThreadPool(size)

    def test_a_terminated_task_drops_its_call(self):
        pool, gate, ran = self.pool(1), threading.Event(), []

        def function(work):
            yield pool.async_task(work)
        first = Task(function, lambda: gate.wait(60))
        second = Task(function, lambda: ran.append(1))
        self.wait_until(lambda: pool._calls.unfinished_tasks == 2)
        second.terminate()
        first.terminate()
        self.assertIsNone(second.value(60))
        self.assertIsNone(first.value(60))
        gate.set()
        pool.join()
        self.assertEqual(ran, [])

    def test_an_exit_in_a_thread_is_raised_in_the_task(self):
        pool = self.pool(1)

        def leave():
            raise SystemExit(5)

        def function():
            try:
                yield pool.async_task(leave)
            except SystemExit as error:
                return error.code
        self.assertEqual(Task(function).value(60), 5)
        self.assertEqual(Task(lambda: (yield pool.async_task(len, "ab"))).value(60), 2)


class FakeCursor:
    """Notes overlapping calls."""

    arraysize = 7

    def __init__(self):
        self.calls, self.overlaps, self.inside = [], 0, 0
        self.gate = queue.Queue()

    def _call(self, *args):
        self.overlaps += self.inside
        self.inside += 1
        self.gate.get(timeout=60)
        self.inside -= 1
        self.calls.append(args)
        return len(self.calls)

    execute = executemany = callproc = _call


class AsyncDBCursorTest(ThreadTestCase):
    """H05-H08."""

    def test_a_real_database(self):
        pool = self.pool(2)

        def function():
            connection = sqlite3.connect(":memory:", check_same_thread=False)
            cursor = AsyncDBCursor(pool, connection.cursor())
            yield cursor.execute("CREATE TABLE t (n INTEGER, name TEXT)")
            yield cursor.executemany("INSERT INTO t VALUES (?, ?)", [(1, "a"), (2, "b")])
            same = yield cursor.execute("SELECT name FROM t WHERE n > ?", (1,))
            rows = cursor.fetchall()
            try:
                yield cursor.execute("SELECT nonsense")
            except sqlite3.OperationalError:
                rows.append("raised")
            connection.close()
            return rows, same is cursor._cursor
        self.assertEqual(Task(function).value(60), ([("b",), "raised"], True))

    def test_one_call_at_a_time_in_order(self):
        pool, cursor = self.pool(4), FakeCursor()
        shared = AsyncDBCursor(pool, cursor)

        def function(n):
            return (yield shared.callproc("proc", (n,)))
        tasks = [Task(function, n) for n in range(8)]
        for _ in tasks:
            cursor.gate.put(1)
        self.assertEqual([task.value(60) for task in tasks], list(range(1, 9)))
        self.assertEqual(cursor.calls, [("proc", (n,)) for n in range(8)])
        self.assertEqual(cursor.overlaps, 0)

    def test_also_when_a_task_is_terminated_in_the_middle(self):
        pool, cursor = self.pool(4), FakeCursor()
        shared = AsyncDBCursor(pool, cursor)

        def function(query):
            return (yield shared.execute(query))
        first = Task(function, "first")
        self.wait_until(lambda: cursor.inside)
        second = Task(function, "second")
        first.terminate()
        self.assertIsNone(first.value(60))
        cursor.gate.put(1)
        cursor.gate.put(1)
        self.assertEqual(second.value(60), 2)
        self.assertEqual(cursor.overlaps, 0)

    def test_other_attributes_pass_through(self):
        cursor = AsyncDBCursor(self.pool(1), FakeCursor())
        self.assertEqual(cursor.arraysize, 7)
        with self.assertRaises(AttributeError):
            cursor.nonsense


if __name__ == "__main__":
    unittest.main()
