#!/usr/bin/env python3
"""Answer every HTTP request with `Pong!`.

    python3 examples/web_server.py [PORT]           port 8010 if none is given, 0: any that is free; Ctrl-C ends it
    curl http://127.0.0.1:8010/                     in another terminal

Printed: `listening on port N`. A client that says nothing for five seconds, or too much, is dropped.
"""
import argparse
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the module lies

from pycoslite import AsyncFile, AsyncSocket, Task  # noqa: E402

REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nPong!"
MOST_LINES, LONGEST_LINE = 100, 8192


def request_head(file):
    """Read the lines of a request up to the empty one; gives False when there is no (whole) request."""
    for _ in range(MOST_LINES):
        line = yield file.readline(size=LONGEST_LINE, timeout=5)
        if not line.endswith(b"\n"):
            return False
        if not line.strip():
            return True
    return False


def answer(conn):
    """One connection, any number of requests. A socket can be used as a file, which has lines."""
    with AsyncFile(conn) as file:
        try:
            while (yield request_head(file)):
                yield file.write(REPLY, full=True, timeout=5)
        except OSError:                         # a timeout is one, too
            pass


def serve(sock):
    """Accept browsers for ever."""
    with AsyncSocket(sock) as listener:
        print("listening on port %d" % listener.getsockname()[1], flush=True)
        while True:
            conn, _ = yield listener.accept()
            Task(answer, conn)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("port", nargs="?", type=int, default=8010, help="0: any that is free (default: %(default)s)")
    try:
        Task(serve, socket.create_server(("127.0.0.1", parser.parse_args().port), backlog=512))
    except (OSError, OverflowError) as error:
        sys.exit("cannot listen at that port: %s" % error)
