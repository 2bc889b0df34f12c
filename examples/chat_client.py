#!/usr/bin/env python3
"""Take part in the chat of examples/chat_server.py.

    python3 examples/chat_client.py PORT NAME [HOST]        type lines; end of file (Ctrl-D) leaves

Printed: what everybody says, one line each, and who joins and leaves.
"""
import argparse
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the module lies

from pycoslite import AsyncFile, AsyncSocket, Task  # noqa: E402


def read(sock):
    """Show what comes from the server until it goes."""
    while True:
        text = yield sock.recv_msg()
        if not text:
            break
        print(text.decode(), flush=True)


def chat(host, port, name):
    """Send what is typed; another task reads from the same socket meanwhile."""
    with AsyncSocket(socket.socket()) as sock:
        try:
            yield sock.connect((host, port))
        except (OSError, OverflowError) as error:
            print("there is no chat at %s, port %d: %s" % (host, port, error))
            return
        yield sock.send_msg(name.encode())
        reader = Task(read, sock)
        keyboard = AsyncFile(sys.stdin)
        while True:
            line = yield keyboard.readline()
            if not line:
                break
            if line.strip():
                yield sock.send_msg(line.strip())
        sock.shutdown(socket.SHUT_WR)           # no more from here; what is under way still comes
        yield reader.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("port", type=int, help="that the server has printed")
    parser.add_argument("name", help="under which you speak")
    parser.add_argument("host", nargs="?", default="127.0.0.1", help="where it runs (default: %(default)s)")
    arguments = parser.parse_args()
    Task(chat, arguments.host, arguments.port, arguments.name).value()
