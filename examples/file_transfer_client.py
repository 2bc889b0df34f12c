#!/usr/bin/env python3
"""Send a file to another process, again, and delete it there.

    python3 examples/file_transfer_client.py FILE           while file_transfer_server.py runs somewhere near

Printed: how much of it is there, for each MiB of a large file; `sent: 0` (it is there now), `again: 1` (it was already),
`deleted: 0`.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the module lies

from pycoslite import Pycos, Task  # noqa: E402


def show(written, size):
    """Called now and then while a file is sent; it must not block."""
    print("%d of %d KiB" % (written // 1024, size // 1024))


def client(path):
    """Does as said above."""
    node = Pycos()
    server = yield node.locate("file server", timeout=10)
    if server is None:
        print("there is no file server here")
        return
    sent = yield node.send_file(server, path, dir="from/client", overwrite=True, progress=show)
    print("sent:", sent)
    if sent < 0:                                    # why is in the log
        return
    print("again:", (yield node.send_file(server, path, dir="from/client")))
    print("deleted:", (yield node.del_file(server, path, dir="from/client")))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", default=__file__, help="(default: this program)")
    path = parser.parse_args().file
    Pycos(name="file client")
    Task(client, path)
