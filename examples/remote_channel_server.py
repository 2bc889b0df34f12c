#!/usr/bin/env python3
"""A channel that tasks of any process subscribe to, and send to.

    python3 examples/remote_channel_server.py       on this machine, or another one that has the same secret file
    python3 examples/remote_channel_client.py       in other terminals; they find the channel by themselves

Printed: `channel news is open`, then what is sent to it. The end: Ctrl-C.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the module lies

from pycoslite import Channel, Pycos, Task  # noqa: E402


def listener(channel, task=None):
    """A subscriber like any other, in the channel's own process."""
    yield channel.subscribe(task)
    print("channel %s is open" % channel.name, flush=True)
    while True:
        print("heard: %s" % (yield task.receive()), flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(__doc__)
    Pycos(name="channel server")        # an option starts the network, and the search for others
    news = Channel("news")
    news.register()
    Task(listener, news)
