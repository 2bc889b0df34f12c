#!/usr/bin/env python3
"""Subscribe to a channel of another process, and send to all its subscribers.

    python3 examples/remote_channel_client.py       while remote_channel_server.py runs somewhere near

Printed: `found news@HOST:PORT`, `delivered to N` (the server's listener and one for each client), `heard: hello`.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the module lies

from pycoslite import Channel, Pycos, Task  # noqa: E402


def client(task=None):
    """Subscribes, sends, and hears itself."""
    channel = yield Channel.locate("news", timeout=10)
    if channel is None:
        print("there is no channel news here")
        return
    print("found", channel)
    yield channel.subscribe(task)
    count = yield channel.deliver("hello", timeout=5, n=2)      # once there are two subscribers
    print("delivered to", count)
    print("heard:", (yield task.receive()))
    yield channel.unsubscribe(task)


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(__doc__)
    Pycos(name="channel client")
    Task(client)
