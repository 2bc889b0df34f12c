#!/usr/bin/env python3
"""Send a text file through a connection, line by line, and count and checksum it at both ends.

    python3 examples/socket_as_file.py [FILE]       this file if none is given

Printed: `sent N lines, sha1 DIGEST` and `received N lines, sha1 DIGEST`: the same in both.
"""
import argparse
import hashlib
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the module lies

from pycoslite import AsyncFile, AsyncSocket, Task  # noqa: E402


def copy_lines(source, target, what):
    """Read lines from one AsyncFile, write them to another one if there is one."""
    count, digest = 0, hashlib.sha1()
    while True:
        line = yield source.readline()
        if not line:
            break
        if target is not None:
            yield target.write(line, full=True)
        count += 1
        digest.update(line)
    print("%s %d lines, sha1 %s" % (what, count, digest.hexdigest()))


def client(path, address):
    """A file on a disk and a socket are both AsyncFiles."""
    sock = AsyncSocket(socket.socket())
    yield sock.connect(address)
    with AsyncFile(open(path, "rb")) as source, AsyncFile(sock) as target:
        yield copy_lines(source, target, "sent")


def main(path):
    """Both ends in one program."""
    with AsyncSocket(socket.create_server(("127.0.0.1", 0))) as listener:
        sending = Task(client, path, listener.getsockname())
        conn, _ = yield listener.accept()
        with AsyncFile(conn) as source:
            yield copy_lines(source, None, "received")
        yield sending.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", default=__file__, help="(default: this program)")
    path = parser.parse_args().file
    if not Path(path).is_file():
        parser.error("%s is no file" % path)
    Task(main, path).value()
