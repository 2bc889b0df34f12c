"""async/await: asyncio and tasks wait for each other, and every blocking call can be awaited."""
from __future__ import annotations

import asyncio
import concurrent.futures
import socket
import sqlite3
import subprocess
import sys
import threading
import unittest
from typing import Any

import pycoslite
from pycoslite import AsyncFile, AsyncPipe, AsyncSocket, MisuseError, Task
from tests.test_pycoslite_sockets import SocketCase

LIMIT_S = 60                            # everything that is waited for comes within this, or the test fails


class AsyncioTest(SocketCase):
    """Both ways, while asyncio runs in this thread and the tasks in theirs."""

    def run_async(self, main: Any) -> Any:
        return asyncio.run(asyncio.wait_for(main(), LIMIT_S))

    def test_asyncio_waits_for_a_task(self):
        def works(task=None):
            value = yield task.receive()        # its end must not come before somebody waits for it
            if value is None:
                raise KeyError("the task's own")
            return value

        async def main():
            good, bad = Task(works), Task(works)
            futures = [asyncio.wrap_future(task.future()) for task in (good, bad)]
            good.send(5)
            bad.send(None)
            self.assertEqual(await futures[0], 5)
            with self.assertRaisesRegex(KeyError, "the task's own"):
                await futures[1]
            waits = Task(lambda task=None: (yield task.receive()))
            future = asyncio.wrap_future(waits.future())
            waits.terminate()
            with self.assertRaises(asyncio.CancelledError):
                await future
        self.run_async(main)

    def test_giving_up_leaves_the_task_alone(self):
        waits = Task(lambda task=None: (yield task.receive()))

        async def main():
            with self.assertRaises(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.wrap_future(waits.future()), 0.01)
        self.run_async(main)
        self.assertTrue(waits.is_alive())
        waits.send("still there")
        self.assertEqual(waits.value(LIMIT_S), "still there")

    def test_many_at_once(self):
        def works(n, task=None):
            yield task.sleep(0.001 * (n % 3))
            return n

        async def main():
            return await asyncio.gather(*[asyncio.wrap_future(Task(works, n).future()) for n in range(100)])
        self.assertEqual(self.run_async(main), list(range(100)))

    def test_a_task_waits_for_asyncio(self):
        async def answers(value):
            await asyncio.sleep(0.001)
            if value is None:
                raise KeyError("asyncio's own")
            return value

        def asks(loop):
            with self.assertRaisesRegex(KeyError, "asyncio's own"):
                yield asyncio.run_coroutine_threadsafe(answers(None), loop)
            return (yield asyncio.run_coroutine_threadsafe(answers("generator"), loop))

        async def asks_too(loop):
            return await pycoslite.FutureResult(asyncio.run_coroutine_threadsafe(answers("async"), loop))

        async def main():
            loop = asyncio.get_running_loop()
            tasks = [Task(asks, loop), Task(asks_too, loop)]
            return [await asyncio.wrap_future(task.future()) for task in tasks]
        self.assertEqual(self.run_async(main), ["generator", "async"])

    def test_messages_between_them(self):
        """send, Event.set and a channel may be called in asyncio's thread; a task answers with call_soon_threadsafe."""
        event, channel = pycoslite.Event(), pycoslite.Channel("asyncio")

        def doubles(task=None):
            yield channel.subscribe(task)
            event.set()
            while True:
                loop, future, number = yield task.receive()
                loop.call_soon_threadsafe(future.set_result, number * 2)

        async def main():
            loop = asyncio.get_running_loop()
            task = Task(doubles)
            await asyncio.wrap_future(Task(lambda: (yield event.wait())).future())
            for send in (task.send, channel.send):
                future = loop.create_future()
                send((loop, future, 21))
                self.assertEqual(await future, 42)
            task.terminate()
        self.run_async(main)

    def test_what_only_asyncio_can_wait_for_is_refused(self):
        """And the sentence says what to do instead."""
        async def confused(future):
            with self.assertRaisesRegex(MisuseError, r"confused/\d+ .* event loop: .* concurrent.futures.Future"):
                await future
            return "went on"

        async def main():
            future = asyncio.get_running_loop().create_future()
            self.assertEqual(await asyncio.wrap_future(Task(confused, future).future()), "went on")
        self.run_async(main)


class AwaitTest(SocketCase):
    """Everything that can be yielded can be awaited, with the same result."""

    def test_messages_and_tasks(self):
        async def main(task=None):
            task.send(1)
            self.assertEqual(await task.deliver(2), 1)
            self.assertEqual([await task.receive(), await task.recv(1)], [1, 2])
            self.assertEqual(await task.receive(0.001, "late"), "late")
            self.assertEqual(await task.sleep(0.001, "over"), "over")
            other = Task(nested)
            self.assertEqual(await task.monitor(other), 0)
            self.assertEqual(await other.finish(), "deep")
            self.assertEqual(await other(), "deep")
            self.assertIs((await task.receive()).info, other)
            self.assertEqual(task.register("awaiting"), 0)
            self.assertIs(await Task.locate("awaiting", timeout=0), task)
            box = pycoslite.CategorizeMessages(task)
            box.add(lambda message: message[0])
            task.send("b1")
            task.send("a1")
            self.assertEqual([await box.receive("a"), await box.receive("b")], ["a1", "b1"])
            return "done"

        async def nested():
            return await deeper()

        async def deeper():
            return await pycoslite.FutureResult(pool.submit(lambda: "deep"))
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            self.assertEqual(self.task(main), "done")

    def test_synchronisation(self):
        async def main(task=None):
            for lock in (pycoslite.Lock(), pycoslite.RLock(), pycoslite.Condition(), pycoslite.Semaphore()):
                self.assertTrue(await lock.acquire())
                lock.release()
                async with lock:
                    Task(tries, lock).notify(task)
                    self.assertIs((await task.receive()).value, False)
            event, condition = pycoslite.Event(), pycoslite.Condition()
            self.assertIs(await event.wait(0.001), False)
            Task(sets, event, condition)
            self.assertIs(await event.wait(), True)
            async with condition:
                event.clear()
                self.assertTrue(await condition.wait())
            channel = pycoslite.Channel("awaited")
            self.assertEqual(await channel.subscribe(task), 0)
            self.assertEqual(await channel.deliver("to all", n=1), 1)
            self.assertEqual(await task.receive(), "to all")
            self.assertEqual(await channel.unsubscribe(task), 0)

        async def tries(lock):
            return await lock.acquire(False)

        async def sets(event, condition):
            event.set()
            while event.is_set():
                await task_turn()
            async with condition:
                condition.notify()

        async def task_turn():
            await pycoslite.Suspend(0.0001)
        self.task(main)

    def test_sockets(self):
        left, right = self.pair()

        async def main():
            self.assertEqual(await left.send(b"ab"), 2)
            self.assertEqual(await right.recv(10), b"ab")
            await left.sendall(b"cdefgh")
            self.assertEqual(await right.recvall(3), b"cde")
            buffer = bytearray(3)
            self.assertEqual(await right.recv_into(buffer), 3)
            await left.send_msg(b"message")
            self.assertEqual(await right.recv_msg(), b"message")
            with self.temp_dir().joinpath("file").open("w+b") as file:
                file.write(b"content")
                self.assertEqual(await left.sendfile(file), 7)
            self.assertEqual(await right.recvall(7), b"content")
            with AsyncSocket(socket.socket()) as listener, AsyncSocket(socket.socket()) as client:
                listener.bind(("127.0.0.1", 0))
                listener.listen(1)
                self.assertEqual(await client.connect(listener.getsockname()), 0)
                accepted, _ = await listener.accept()
                accepted.close()
                self.assertEqual(await client.recv(1), b"")
            with AsyncSocket(socket.socket(type=socket.SOCK_DGRAM)) as udp:
                udp.bind(("127.0.0.1", 0))
                self.assertEqual(await udp.sendto(b"datagram", udp.getsockname()), 8)
                self.assertEqual((await udp.recvfrom(100))[0], b"datagram")
        self.task(main)

    def test_files_pipes_and_threads(self):
        path = self.temp_dir() / "lines"
        path.write_bytes(b"one\ntwo\n")

        async def main():
            with AsyncFile(open(str(path), "r+b")) as file:
                self.assertEqual(await file.readline(), b"one\n")
                self.assertEqual(await file.read(), b"two\n")
                self.assertEqual(await file.write(b"three\n", full=True), 6)
            code = "import sys; print(sys.stdin.read().upper(), end='')"
            process = pycoslite.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            pipe = AsyncPipe(process)
            self.assertEqual(await pipe.communicate("text"), (b"TEXT", None))
            self.assertEqual(await pipe.finish(), 0)
            self.assertNotEqual(await pool.async_task(threading.get_ident), threading.get_ident())
            with self.assertRaises(ZeroDivisionError):
                await pool.async_task(lambda: 1 / 0)
            cursor = pycoslite.AsyncDBCursor(pool, connection.cursor())
            await cursor.execute("CREATE TABLE t (x)")
            await cursor.executemany("INSERT INTO t VALUES (?)", [(1,), (2,)])
            await cursor.execute("SELECT sum(x) FROM t")
            return cursor.fetchone()
        pool = pycoslite.AsyncThreadPool(2)
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        with pool:
            self.assertEqual(self.task(main), (3,))
        connection.close()

    def test_generators_and_async_functions_call_each_other(self):
        def generator(depth):
            return (yield awaits(depth - 1)) if depth else "bottom"

        async def awaits(depth):
            return await bridge(depth - 1) if depth > 0 else "bottom"

        class bridge:
            """What an async function awaits to call a generator function."""

            def __init__(self, depth):
                self.generator = generator(depth)

            def __await__(self):
                return (yield from self.generator)
        self.assertEqual(self.task(generator, 20), "bottom")


if __name__ == "__main__":
    unittest.main()
