#!/usr/bin/env python3
"""Pass on what each client of a chat says to all the others.

    python3 examples/chat_server.py [PORT]          port 8008 if none is given, 0: any that is free; Ctrl-C ends it
    python3 examples/chat_client.py 8008 ann        in other terminals, once for each person

Printed: `listening on port N`, and everything that is said. `send_msg` frames it: on the wire its length comes first.
"""
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the module lies

from pycoslite import AsyncSocket, Task  # noqa: E402

writers = set()         # one task for each client


def say(text):
    """Tell everybody. Sending to a task never waits, so a slow client holds up nobody."""
    print(text, flush=True)
    for writer in writers:
        writer.send(text)


def write(conn, task=None):
    """The only task that writes to a client: takes its turn from the task's mailbox."""
    while True:
        yield conn.send_msg((yield task.receive()).encode())


def read(conn):
    """The only task that reads from a client. Its first message is the name."""
    with conn:
        name = (yield conn.recv_msg(limit=100)).decode(errors="replace")
        writer = Task(write, conn)
        writers.add(writer)
        say("%s joined" % name)
        while (text := (yield conn.recv_msg(limit=10_000))):
            say("%s: %s" % (name, text.decode(errors="replace")))
        writers.discard(writer)
        writer.terminate()
        say("%s left" % name)


def serve(sock):
    """Accept clients for ever."""
    with AsyncSocket(sock) as listener:
        print("listening on port %d" % listener.getsockname()[1], flush=True)
        while True:
            Task(read, (yield listener.accept())[0])


if __name__ == "__main__":
    try:
        Task(serve, socket.create_server(("127.0.0.1", int((sys.argv[1:] or ["8008"])[0]))))
    except (OSError, OverflowError, ValueError) as error:
        sys.exit("cannot listen at that port: %s\n\n%s" % (error, __doc__))
