#!/usr/bin/env python3
"""Send back whatever comes in, to any number of clients at once.

    python3 examples/echo_server.py [PORT]          port 8007 if none is given, 0: any that is free; Ctrl-C ends it
    python3 examples/echo_client.py 8007            in another terminal

Printed: `listening on port N`, then `ADDRESS: N bytes` for each client that has gone.
"""
import argparse
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the module lies

from pycoslite import AsyncSocket, Task  # noqa: E402


def echo(conn, address):
    """One client; a task of its own, so that slow ones hold up nobody."""
    count = 0
    with conn:
        while True:
            data = yield conn.recv(64 * 1024)
            if not data:
                break
            yield conn.sendall(data)
            count += len(data)
    print("%s:%d: %d bytes" % (address[0], address[1], count), flush=True)


def serve(sock):
    """Accept clients for ever."""
    with AsyncSocket(sock) as listener:
        print("listening on port %d" % listener.getsockname()[1], flush=True)
        while True:
            conn, address = yield listener.accept()
            Task(echo, conn, address)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("port", nargs="?", type=int, default=8007, help="0: any that is free (default: %(default)s)")
    port = parser.parse_args().port
    try:
        sock = socket.create_server(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        sys.exit("cannot listen at port %d: %s" % (port, error))
    Task(serve, sock)    # the program lives as long as its tasks
