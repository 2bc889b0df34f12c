#!/usr/bin/env python3
"""Take part in the chat of examples/channel_chat_server.py.

    python3 examples/channel_chat_client.py NAME    type lines; end of file (Ctrl-D) leaves

Printed: `welcome`, then what everybody says, as the channel's transform passes it on: `NAME: line`.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the module lies

from pycoslite import AsyncFile, Channel, Pycos, Task  # noqa: E402


def listener(task=None):
    """Shows what is said."""
    task.set_daemon()
    while True:
        print((yield task.receive()), flush=True)


def client(name):
    """Subscribes a task, and sends what is typed."""
    channel = yield Channel.locate("chat", timeout=10)
    if channel is None:
        print("there is no chat here")
        return
    ears = Task(listener)
    yield channel.subscribe(ears)
    print("welcome", flush=True)
    keyboard = AsyncFile(sys.stdin)
    while True:
        line = yield keyboard.readline()
        if not line:
            break
        if line.strip():
            channel.send((name, line.decode().strip()))
    yield channel.unsubscribe(ears)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="under which you speak")
    name = parser.parse_args().name
    Pycos(name="chat client " + name)
    Task(client, name)
