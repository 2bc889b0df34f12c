"""asyncio and tasks side by side: each waits for what the other does.

    python3 examples/asyncio_interop.py

Printed: "asyncio got 42 from a task", then "a task got 'slow answer' from asyncio".
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where pycoslite.py lies

import asyncio  # noqa: E402

from pycoslite import Task  # noqa: E402


def compute(task=None):
    yield task.sleep(0.05)
    return 42


async def answer():
    await asyncio.sleep(0.05)
    return "slow answer"


def asker(loop):
    future = asyncio.run_coroutine_threadsafe(answer(), loop)   # a concurrent.futures.Future, which a task may yield
    print("a task got %r from asyncio" % (yield future))


async def main():
    value = await asyncio.wrap_future(Task(compute).future())
    print("asyncio got %d from a task" % value)
    await asyncio.wrap_future(Task(asker, asyncio.get_running_loop()).future())


asyncio.run(main())
