#!/usr/bin/env python3
"""Other programs as parts of a program: their input and output are read and written by tasks.

    python3 examples/pipes.py [FILE]                this file if none is given; needs sha1sum, grep and wc

Printed: the file's SHA-1 digest three times (from sha1sum in one call, from sha1sum fed piece by piece, from Python),
then `lines with "yield": N`, which `grep yield | wc -l` has counted.
"""
import hashlib
import sys
from pathlib import Path
from subprocess import PIPE

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the module lies

from pycoslite import AsyncFile, AsyncPipe, Popen, Task  # noqa: E402


def digest_at_once(path):
    """Hand over the file, get the output."""
    pipe = AsyncPipe(Popen(["sha1sum"], stdin=PIPE, stdout=PIPE))
    return (yield pipe.communicate(open(path, "rb")))[0].split()[0].decode()


def feed(path, pipe):
    """Write the file into a process, as fast as that takes it."""
    with AsyncFile(open(path, "rb")) as file:
        while (piece := (yield file.read(16 * 1024))):
            yield pipe.write(piece, full=True)
    pipe.stdin.close()


def digest_by_hand(path):
    """One task writes, another one reads."""
    with AsyncPipe(Popen(["sha1sum"], stdin=PIPE, stdout=PIPE)) as pipe:
        Task(feed, path, pipe)
        line = yield pipe.readline()
        yield pipe.finish()
    return line.split()[0].decode()


def count_lines(path):
    """Two processes in a chain, as in a shell."""
    grep = Popen(["grep", "yield"], stdin=PIPE, stdout=PIPE)
    pipe = AsyncPipe(grep, Popen(["wc", "-l"], stdin=grep.stdout, stdout=PIPE))
    return int((yield pipe.communicate(open(path, "rb")))[0])


def main(path):
    print("sha1sum, at once:", (yield digest_at_once(path)))
    print("sha1sum, by hand:", (yield digest_by_hand(path)))
    print("hashlib:         ", hashlib.sha1(Path(path).read_bytes()).hexdigest())
    print('lines with "yield":', (yield count_lines(path)))


if __name__ == "__main__":
    path = (sys.argv[1:] or [__file__])[0]
    Task(main, path).value() if Path(path).is_file() else sys.exit("%s is no file\n\n%s" % (path, __doc__))
