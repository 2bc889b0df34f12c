"""Count lines, words and the commonest identifiers of all the Python files below a directory, on many cores.

    python3 examples/word_count.py                              this Python's own library, on all cores of this machine
    python3 examples/word_count.py ~/src --serial               in this process alone: the same totals
    python3 examples/word_count.py ~/src --node hosta --node hostb:9706     on nodes that run dispycosnode_lite.py

Printed: a line that says it is done, `files N`, `lines N`, `words N` (what blanks separate), `unreadable N`, the ten
commonest identifiers (names outside comments and strings), each with its number, then files/s and MB/s, then what each
server did. Files are read here and their contents sent in batches, as other machines have other files. A server that is
killed meanwhile changes nothing but the time: its batches run again elsewhere.
"""
import argparse
import collections
import contextlib
import keyword
import logging
import os
import re
import shutil
import sys
import sysconfig
import time
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the modules lie

import dispycos_lite  # noqa: E402
import pycoslite  # noqa: E402

BATCH_BYTES = 512 * 1024        # one job: some 20 ms of work, next to which sending it costs nothing
SKIPPED = {"site-packages", "dist-packages", "__pycache__"}

# Bytes, not text, and no tokenizer: the same answer on every version of Python.
TOKEN = re.compile(rb"""
    \#[^\n]*                                                                        # a comment
  | [bfruBFRU]{0,2} (?: ''' (?:[^\\]|\\.)*? ''' | \"\"\" (?:[^\\]|\\.)*? \"\"\"     # a string
                      | ' (?:[^'\\\n]|\\.)* '   | " (?:[^"\\\n]|\\.)* " )
  | [0-9][A-Za-z0-9_]*                                                              # a number
  | ([A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*)                                      # a name
""", re.VERBOSE | re.DOTALL)


def count(batch):
    """The job: what one list of file contents holds, and which server counted it."""
    names = collections.Counter(name for content in batch for name in TOKEN.findall(content) if name)
    totals = collections.Counter(files=len(batch), size=sum(map(len, batch)),
                                 lines=sum(content.count(b"\n") for content in batch),
                                 words=sum(len(content.split()) for content in batch))
    return totals, names, dispycos_lite.current_server() or "this process"


def find_files(top, unreadable):
    """Paths and sizes of the Python files below `top`, in an order that does not depend on the file system."""
    for folder, folders, names in os.walk(top, onerror=lambda error: unreadable.append(str(error))):
        folders[:] = sorted(name for name in folders if name not in SKIPPED)
        for name in sorted(names):
            if name.endswith(".py"):
                path = os.path.join(folder, name)
                yield path, os.path.getsize(path) if os.path.isfile(path) else 0


def read_batches(files, unreadable):
    """Lists of file contents of about BATCH_BYTES each; what cannot be read goes to `unreadable`."""
    batch, size = [], 0
    for path, _ in files:
        try:
            if not os.path.isfile(path):                    # reading a pipe would wait for ever
                raise OSError("%s is not a file" % path)
            batch.append(Path(path).read_bytes())
            size += len(batch[-1])
        except OSError as error:
            unreadable.append(str(error))
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def open_executor(options):
    """Who runs the jobs: this process, or a cluster (without --node: on this machine)."""
    if options.serial:
        return contextlib.nullcontext(types.SimpleNamespace(map=lambda fn, jobs, retries: map(fn, jobs)))
    return dispycos_lite.Cluster(nodes=options.node, secret_file=options.secret_file, cpus=options.cpus)


def show_progress(done, whole, end=""):
    """Draw the bar anew, when somebody watches."""
    if sys.stdout.isatty():
        width = max(10, shutil.get_terminal_size().columns - 10)
        filled = min(width, width * done // max(whole, 1))
        print("\r[%-*s] %3d %%" % (width, "#" * filled, 100 * filled // width), end=end, flush=True)


def run(options):
    """Count everything and print it."""
    started, unreadable = time.monotonic(), []              # unreadable: a line for each
    files = list(find_files(options.path, unreadable))
    whole = sum(size for _, size in files)
    totals, names, servers = collections.Counter(), collections.Counter(), collections.defaultdict(collections.Counter)
    with open_executor(options) as executor:
        jobs = read_batches(files, unreadable)              # files are read while the servers count
        for part, part_names, server in executor.map(count, jobs, retries=2):
            totals.update(part)
            names.update(part_names)
            servers[server].update(part, jobs=1)
            show_progress(totals["size"], whole)
    show_progress(1, 1, end="\n")
    elapsed = time.monotonic() - started
    for why in unreadable:
        print("cannot read:", why, file=sys.stderr)
    totals["unreadable"] = len(unreadable)
    print("counted %d files, %.1f MB, in %.1f s" % (totals["files"], totals["size"] / 1e6, elapsed))
    report(totals, names, servers, elapsed)


def report(totals, names, servers, elapsed):
    """Print the results; equal counts are ordered by name."""
    lines = ["%s %d" % (name, totals[name]) for name in ("files", "lines", "words", "unreadable")]
    found = ((-number, name.decode("ascii", "backslashreplace")) for name, number in names.items())
    ranked = sorted(pair for pair in found if not keyword.iskeyword(pair[1]))
    lines += ["  %s %d" % (name, -minus) for minus, name in ranked[:10]]
    lines += ["files/s %.0f" % (totals["files"] / elapsed), "MB/s %.1f" % (totals["size"] / 1e6 / elapsed)]
    lines += ["server %s: %d jobs, %d files, %.1f MB" % (server, did["jobs"], did["files"], did["size"] / 1e6)
              for server, did in sorted(servers.items())]
    print("\n".join(lines))


def node_address(text):
    """An argument of --node, refused at once when it cannot be an address."""
    try:
        pycoslite.Location.parse(text, dispycos_lite.NODE_PORT)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def main(argv=None):
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", nargs="?", default=sysconfig.get_paths()["stdlib"], help="default: Python's library")
    parser.add_argument("--serial", action="store_true", help="in this process, without a cluster")
    parser.add_argument("--node", action="append", default=[], type=node_address, metavar="HOST[:PORT]",
                        help="use this node; repeatable")
    parser.add_argument("--secret-file", metavar="FILE", help="the cluster's secret (default: ~/.pycoslite/secret)")
    parser.add_argument("-c", "--cpus", type=int, metavar="N", help="servers of the local node (default: one per core)")
    options = parser.parse_args(argv)
    if not os.path.isdir(options.path):
        parser.error("%s is not a directory" % options.path)
    logging.basicConfig(format="%(levelname)s %(message)s")     # a server that dies says so on stderr
    try:
        run(options)
    except KeyboardInterrupt:
        print("\ninterrupted" if sys.stdout.isatty() else "interrupted", file=sys.stderr)
        return 130
    except pycoslite.PycosError as error:                   # no node, another secret: its sentence says what to do
        print("word_count:", error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
