#!/usr/bin/env python3
"""Ten tasks talk to an echo server at the same time and check what comes back.

    python3 examples/echo_client.py PORT [HOST]     with examples/echo_server.py running there

Printed: `N bytes came back` for each of the ten, then `all done`.
"""
import argparse
import os
import random
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the module lies

from pycoslite import AsyncSocket, Task  # noqa: E402

CLIENTS = 10


async def client(host, port):
    """Send some bytes and wait for them; returns what is wrong, or None. Tasks can be async functions, too: await
    instead of yield."""
    data = os.urandom(random.randrange(1, 100_000))
    with AsyncSocket(socket.socket()) as sock:
        sock.settimeout(10)
        try:
            await sock.connect((host, port))
        except (OSError, OverflowError) as error:
            return "nobody echoes at %s, port %d: %s" % (host, port, error)
        sending = Task(send, sock, data)        # one task may read while another one writes
        echoed = await sock.recvall(len(data))
        await sending.finish()
    assert echoed == data
    print("%d bytes came back" % len(data))


async def send(sock, data):
    """The other half of a client."""
    await sock.sendall(data)


async def main(host, port):
    """Start them all, then wait for them all."""
    for task in [Task(client, host, port) for _ in range(CLIENTS)]:
        trouble = await task.finish()
        if trouble:
            return trouble
    print("all done")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("port", type=int, help="that the server has printed")
    parser.add_argument("host", nargs="?", default="127.0.0.1", help="where it runs (default: %(default)s)")
    arguments = parser.parse_args()
    sys.exit(Task(main, arguments.host, arguments.port).value())
