#!/usr/bin/env python3
"""Fifty tasks send a datagram each to one that receives them all.

    python3 examples/udp.py

Printed: fifty lines `Received "client N" from ADDRESS`, in any order.
"""
import random
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the module lies

from pycoslite import AsyncSocket, Task  # noqa: E402

CLIENTS = 50


def server(sock):
    """Receive until everybody was heard, or nobody is for five seconds: datagrams can be lost."""
    sock.settimeout(5)
    for _ in range(CLIENTS):
        data, address = yield sock.recvfrom(1024)
        print('Received "%s" from %s:%d' % (data.decode(), address[0], address[1]))


def client(number, address, task=None):
    """Send one datagram, some time."""
    yield task.sleep(random.random() / 10)
    with AsyncSocket(socket.socket(type=socket.SOCK_DGRAM)) as sock:
        yield sock.sendto(b"client %d" % number, address)


def main():
    """The server's socket is bound before the first client starts."""
    with AsyncSocket(socket.socket(type=socket.SOCK_DGRAM)) as sock:
        sock.bind(("127.0.0.1", 0))
        for number in range(CLIENTS):
            Task(client, number, sock.getsockname())
        yield Task(server, sock).finish()


if __name__ == "__main__":
    Task(main).value()
