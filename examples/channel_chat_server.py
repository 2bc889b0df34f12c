#!/usr/bin/env python3
"""A chat over a channel whose transform decides what everybody hears: names are added, shouting and spam are not passed on.

    python3 examples/channel_chat_server.py         on this machine, or another one that has the same secret file
    python3 examples/channel_chat_client.py NAME    in other terminals; they find the channel by themselves

Printed: `chat is open`, then `dropped: ...` for what was not passed on. The end: Ctrl-C.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the module lies

from pycoslite import Channel, Pycos, Task  # noqa: E402


def moderate(_channel, message):
    """What is sent in place of `message`, a (name, text) pair: a line for people, or None for nothing."""
    name, text = message
    if "buy now" in text.lower():
        print("dropped: %s" % text, flush=True)
        return None
    return "%s: %s" % (name, text.capitalize() if text.isupper() else text)


def keeper(chat, task=None):
    """The channel lives as long as its process has something to do."""
    print("%s is open" % chat.name, flush=True)
    yield task.receive()


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(__doc__)
    Pycos(name="chat server")           # an option starts the network, and the search for others
    channel = Channel("chat", moderate)     # a transform runs where its channel is, once a message
    channel.register()
    Task(keeper, channel)
