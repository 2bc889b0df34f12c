"""A blocking call without ``yield`` is reported with task, place and remedy; programs without one pay nothing."""
from __future__ import annotations

import importlib
import re
import subprocess
import sys
import unittest
from typing import Any, List

import pycoslite
from tests.support import MODULES, ROOT, TestCase

# Each line with "forgotten" makes a request that nobody begins; all other requests are begun, or do nothing anyway.
PROGRAM = """
import socket, sqlite3, threading, time, concurrent.futures
import pycoslite

def proc(task=None):
    task.sleep(1)                               # forgotten
    task.receive()                              # forgotten
    kept = task.receive(1)                      # forgotten
    lock.acquire()                              # forgotten
    left.sendall(b"x")                          # forgotten
    pool.async_task(time.sleep, 9)              # forgotten
    cursor.execute("CREATE TABLE t (x)")        # forgotten
    for _ in range(3):
        event.wait(                             # forgotten
            1)
    if semaphore.acquire(False):                # forgotten
        pass
    lock.release if (yield lock.acquire()) else None
    lock.release()
    yield nested()
    yield awaits()
    yield Holder().method()
    later = event.wait(0.001)
    yield later
    task.send("message")
    message = yield task.receive()
    yield from task.receive(0.001)
    yield done
    task.deliver("there already")
    yield right.sendall(b"received")
    blocking = pycoslite.AsyncSocket(left.unwrap(), blocking=True)
    data = blocking.recv(8)
    blocking.close()
    return message, data

def nested():
    event.wait()                                # forgotten
    yield from event.wait(0.001)

async def awaits():
    event.wait(1)                               # forgotten
    await event.wait(0.001)

class Holder:
    def method(self):
        pycoslite.Condition().acquire()         # forgotten
        yield

def unused():
    yield

lock, event, semaphore = pycoslite.Lock(), pycoslite.Event(), pycoslite.Semaphore()
pool = pycoslite.AsyncThreadPool(1)
done = concurrent.futures.Future()
done.set_result(1)
left, right = map(pycoslite.AsyncSocket, socket.socketpair())
cursor = pycoslite.AsyncDBCursor(pool, sqlite3.connect(":memory:", check_same_thread=False).cursor())
print(pycoslite.Task(START).value())
for thing in (left, right, cursor.connection):
    thing.close()
"""


class ForgottenTest(TestCase):
    """See the module; in programs of their own, as watching does not end once it has begun."""

    def run_program(self, start: str, source: str = PROGRAM) -> Any:
        path = self.temp_dir() / "prog.py"
        path.write_text(source.replace("START", start))
        result = subprocess.run([sys.executable, "-W", "error", str(path)], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, env={"PYTHONPATH": str(ROOT)}, text=True, timeout=100)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result

    def forgotten(self) -> List[int]:
        return [n for n, line in enumerate(PROGRAM.split("\n"), 1) if line.endswith("# forgotten")]

    def test_each_is_reported_once_with_task_place_and_remedy(self):
        result = self.run_program("proc")
        self.assertEqual(result.stdout, "('message', b'received')\n")
        lines = result.stderr.splitlines()
        found = sorted(int(re.search(r"in .*prog\.py, line (\d+), and did not wait for it", line).group(1))
                       for line in lines)
        self.assertEqual(found, self.forgotten(), result.stderr)
        for line in lines:
            self.assertRegex(line, r'^task proc/1 called \w+\(\) in .* put "yield" before it \("await" in an async')
        self.assertIn("called acquire()", [line for line in lines if "line %d," % found[3] in line][0])

    def test_functions_that_no_task_has_begun_with_are_seen_too(self):
        """The task's own code is blameless, and calls a method that is not."""
        result = self.run_program("lambda: (yield Holder().method())")
        self.assertRegex(result.stderr, r"^task <lambda>/1 called acquire\(\) in .*\n$")

    def test_who_forgets_nothing_is_not_watched(self):
        """Not even where requests are kept in lists, passed on or made by comprehensions."""
        source = ("import pycoslite\n"
                  "def child(task=None):\n    got = yield task.receive(9)\n    return got\n"
                  "def proc(task=None):\n"
                  "    tasks = [pycoslite.Task(child) for _ in range(3)]\n"
                  "    for task in tasks:\n        task.send(1)\n"
                  "    ends = [task.finish() for task in tasks]\n"
                  "    return sum((yield helper(ends)))\n"
                  "def helper(ends):\n    total = []\n    for end in ends:\n"
                  "        total.append((yield end))\n    return total\n"
                  "async def awaits(task=None):\n    value = await task.receive(0)\n    return value\n"
                  "print(pycoslite.Task(proc).value(), pycoslite.Task(awaits).value())\n"
                  "print(pycoslite._Forgotten.watching, '__del__' in vars(pycoslite.Request))\n")
        self.assertEqual(self.run_program("", source).stdout, "3 None\nFalse False\n")

    def test_our_own_modules_forget_nothing(self):
        """Nor does anything in them look so, or all who use them would be watched. (The lowest one is not searched.)"""
        for name in MODULES[1:]:
            with self.subTest(name):
                try:
                    module = importlib.import_module(name)
                except ImportError:
                    continue
                codes = pycoslite._Forgotten._codes_of(list(vars(module).values()), name)
                self.assertGreater(len(codes), 100)
                suspects = [code.co_name for code in codes if code.co_flags & pycoslite._GENERATOR_FLAGS
                            and pycoslite._Forgotten._drops_results(code)]
                self.assertEqual(suspects, [])


if __name__ == "__main__":
    unittest.main()
