"""A database that blocks, used by tasks: its calls run in a thread, one at a time.

    python3 examples/database.py

Printed: "inserted" by three tasks, then all rows, sorted.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where pycoslite.py lies

import sqlite3  # noqa: E402

from pycoslite import AsyncDBCursor, AsyncThreadPool, Task  # noqa: E402


def insert(cursor, name, rows):
    yield cursor.executemany("INSERT INTO stock VALUES (?, ?)", rows)
    print("inserted", name)


def main(pool):
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    cursor = AsyncDBCursor(pool, connection.cursor())
    yield cursor.execute("CREATE TABLE stock (item TEXT, pieces INTEGER)")
    tasks = [Task(insert, cursor, name, [(name, n) for n in range(1, 3)]) for name in ("apples", "pears", "plums")]
    for task in tasks:
        yield task.finish()
    yield cursor.execute("SELECT item, pieces FROM stock ORDER BY item, pieces")
    for item, pieces in cursor.fetchall():          # other methods of the cursor are called as they are
        print("%-6s %d" % (item, pieces))
    connection.close()


with AsyncThreadPool(1) as pool:
    Task(main, pool).value()
