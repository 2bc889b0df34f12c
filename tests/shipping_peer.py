"""A server for the tests of code shipping: a process of any Python with a Namespace of its own, and the client's end.

    with Server(python, dispycos_lite) as server:
        server.call(function, 1, 2)         # result, or the function's exception

The process finds the four modules and this package, but nothing of the client's program.
"""
from __future__ import annotations

import asyncio
import inspect
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, Dict, List, Optional, Tuple

ROOT = Path(__file__).resolve().parent.parent
HEAD = struct.Struct(">BI")                 # what it is, length of what follows
DEFINE, JOB, VALUE, ERROR, MAGIC = range(5)


def read(file: BinaryIO) -> Tuple[int, bytes]:
    """One message; (-1, b"") at the end of the stream."""
    head = file.read(HEAD.size)
    if len(head) < HEAD.size:
        return -1, b""
    code, length = HEAD.unpack(head)
    return code, file.read(length)


def write(file: BinaryIO, code: int, body: bytes) -> None:
    """Send one message."""
    file.write(HEAD.pack(code, len(body)) + body)
    file.flush()


def run(function: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
    """What a server does with a job; what a generator yields comes as a list."""
    result = function(*args, **kwargs)
    if inspect.isgenerator(result):
        return list(result)
    return asyncio.run(result) if inspect.iscoroutine(result) else result


def serve() -> None:
    """Main program of the server process."""
    import importlib.util

    import dispycos_lite
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    sys.stdout = sys.stderr
    space = dispycos_lite.Namespace()
    write(sink, MAGIC, importlib.util.MAGIC_NUMBER)
    while True:
        code, body = read(source)
        if code < 0:
            return
        if code == DEFINE:
            space.define(body)
            continue
        try:
            function = space.function(body[:16])
            args, kwargs = space.loads(body[16:])
            answer = VALUE, space.dumps(run(function, args, kwargs))
        except Exception as error:
            answer = ERROR, space.pack_exception(error)
        write(sink, *answer)


class Server:
    """The client's end. `python` is an interpreter, `ship` the module dispycos_lite that the client uses."""

    def __init__(self, python: str, ship: Any) -> None:
        self.packer = ship.Packer()
        self.sent: List[bytes] = []
        self._directory = tempfile.TemporaryDirectory()
        environment = dict(os.environ, PYTHONPATH=str(ROOT), PYTHONDONTWRITEBYTECODE="1")
        self._process: Optional[subprocess.Popen] = subprocess.Popen(
            [python, "-c", "import tests.shipping_peer as p; p.serve()"], env=environment, cwd=self._directory.name,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.magic = read(self._process.stdout)[1]

    def call(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """Run one job and return its result, or raise its exception."""
        key = self.packer.function(fn)
        data, needed = self.packer.dumps((args, kwargs))
        for one in (key, *needed):
            for digest in self.packer.closure_of(one):
                if digest not in self.sent:
                    write(self._process.stdin, DEFINE, self.packer.blob(digest, self.magic))
                    self.sent.append(digest)
        write(self._process.stdin, JOB, key + data)
        code, body = read(self._process.stdout)
        if code == VALUE:
            return self.packer.loads(body)
        if code == ERROR:
            raise self.packer.unpack_exception(body)
        raise RuntimeError("the server ended with status %s" % self._process.wait())

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._directory.cleanup()
