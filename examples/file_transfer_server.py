#!/usr/bin/env python3
"""Receive files, below one directory and nowhere else.

    python3 examples/file_transfer_server.py DIRECTORY      where the files go; made if need be
    python3 examples/file_transfer_client.py FILE           in another terminal

Printed: `files go to DIRECTORY`, then who comes and goes. The end: Ctrl-C.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the module lies

from pycoslite import Pycos, Task  # noqa: E402


def watch(task=None):
    """Says who comes and goes."""
    node = Pycos()
    node.peer_status(task)
    print("files go to", node.dest_path, flush=True)
    while True:
        print((yield task.receive()), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", nargs="?", default="received", help="where files go (default: %(default)s)")
    directory = parser.parse_args().directory
    try:
        Pycos(name="file server", dest_path=directory, max_file_size=1 << 30)
    except OSError as error:
        sys.exit(str(error))
    Task(watch)
