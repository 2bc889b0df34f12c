"""What is open by default, what refuses to start, and where secrets might show.

Programs are started as people start them, in a home of their own; everything they say and all their command lines are
searched for the secret and for the key that is made of it.
"""
from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pycoslite
from pycoslite import Pycos
from tests.figures import Figure
from tests.hostile_wire import HOST, PATIENCE_S, Insider
from tests.support import ROOT, free_port, running

TEXT = "correct-horse-battery-staple"       # a secret that would be noticed
CLEARED = {name: None for name in ("PYCOSLITE_SECRET", "PYCOSLITE_SECRET_FILE")}
STARTS = "import sys; sys.path.insert(0, %r); import pycoslite; p = pycoslite.Pycos(%s); " \
         "print('AT', p.location.port, flush=True); sys.stdin.read()"


def programs(*options: str) -> Dict[str, Tuple[List[Any], str]]:
    """Each program with these options: its words, and what it prints when it listens."""
    udp = ["--udp_port", free_port()]
    return {"node": ([ROOT / "dispycosnode_lite.py", "--cpus", 1, *udp, "--daemon", *options],
                     r"listening at \S+:(\d+)"),
            "scheduler program": ([ROOT / "dispycos_lite.py", *udp, "--tcp_port", 0, "--daemon", *options],
                                  r"listens at \S+:(\d+)")}


def peer(arguments: str) -> Tuple[List[Any], str]:
    """A program that makes a `Pycos` with these arguments."""
    return ["-c", STARTS % (str(ROOT), arguments)], r"AT (\d+)"


def hello(port: int) -> bytes:
    """What a process says first."""
    with socket.create_connection((HOST, port), timeout=PATIENCE_S) as sock:
        return sock.recv(39)


def secrets(soak: bool) -> Iterator[Figure]:
    """S11."""
    with tempfile.TemporaryDirectory() as folder:
        yield from defaults(Path(folder))
        yield from refusals(Path(folder))
        yield from spoken(Path(folder))
    yield from shown()


def defaults(folder: Path) -> Iterator[Figure]:
    """Nothing is asked for: does a process that listens demand the secret?"""
    demanding, home = [], folder / "home"
    home.mkdir()
    starts = dict(programs(), peer=peer("tcp_port=0, discover_peers=False"))
    for name, (words, ready) in starts.items():
        with running([sys.executable, *words], ready=ready, env=dict(CLEARED, HOME=str(home))) as process:
            if hello(int(process.match.group(1)))[6] & 1:
                demanding.append(name)
    made = home / ".pycoslite" / "secret"
    yield Figure("programs started without options that demand the secret, of %d" % len(starts), len(demanding), "",
                 "==", len(starts))
    yield Figure("the secret made for that can be read by its owner alone", made.stat().st_mode & 0o777 == 0o600, "",
                 "==", 1)


def refusals(folder: Path) -> Iterator[Figure]:
    """There is no secret, and none can be made."""
    (folder / "file").write_text("in the way")
    (folder / "empty").write_text("")
    starts = dict(programs(), peer=peer("tcp_port=0, discover_peers=False"))
    homeless = dict(CLEARED, HOME=str(folder / "file"))
    empty = dict(CLEARED, HOME=str(folder / "file"), PYCOSLITE_SECRET_FILE=str(folder / "empty"))
    started = unexplained = count = 0
    for words, ready in starts.values():
        for env in (homeless, empty):
            environ = {name: value for name, value in dict(os.environ, **env).items() if value is not None}
            done = subprocess.run([sys.executable, *map(str, words)], env=environ, cwd=str(ROOT), timeout=PATIENCE_S,
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            count += 1
            started += done.returncode == 0 or "listen" in done.stdout or "AT " in done.stdout
            unexplained += "secret file" not in done.stdout
    yield Figure("programs that started without a secret, of %d" % count, started, "", "==", 0)
    yield Figure("that refused and did not say why", unexplained, "", "==", 0)
    open_ones = dict(programs("--no-auth"), peer=peer("tcp_port=0, discover_peers=False, secret=False"))
    del open_ones["scheduler program"]              # it has no such option
    warned = 0
    for words, ready in open_ones.values():
        with running([sys.executable, *words], ready=ready, env=homeless) as process:
            warned += not hello(int(process.match.group(1)))[6] & 1 and "authentication" in process.output
    yield Figure("programs that run open because they were told to, and warn, of %d" % len(open_ones), warned, "", "==",
                 len(open_ones))


def tokens() -> List[str]:
    """The secret and its key, in the forms in which they might show."""
    key = bytes(pycoslite.secret_key(TEXT) or b"")
    return [TEXT, key.hex(), repr(key)[2:-1], repr(key)[2:20]]


def found_in(text: str) -> int:
    """How many of these a text shows."""
    return sum(token in text for token in tokens())


def spoken(folder: Path) -> Iterator[Figure]:
    """A cluster at work, with everything logged, wrong secrets included: all it says and all its command lines."""
    secret = folder / "secret"
    secret.write_text(TEXT + "\n")
    secret.chmod(0o600)
    client = ("import sys, logging; sys.path.insert(0, %r); logging.basicConfig(level=logging.DEBUG)\n"
              "import dispycos_lite\nwith dispycos_lite.Cluster(cpus=1, secret_file=%r) as c:\n"
              "    print(c.submit(abs, -7).result(), flush=True)\n    sys.stdin.read()" % (str(ROOT), str(secret)))
    said, lines = "", 0
    for name, (words, ready) in dict(programs("--secret-file", str(secret), "--debug"),
                                     cluster=(["-c", client], r"^(7)$")).items():
        words = [word if word != "--secret-file" or name == "node" else "--secret_file" for word in words]
        with running([sys.executable, *words], ready=ready, env=CLEARED) as process:
            port = int(process.match.group(1))
            if port != 7:
                with contextlib.suppress(pycoslite.PycosError, OSError):
                    Insider(port, key=bytes(32)).close()            # another secret
                with contextlib.suppress(pycoslite.PycosError, OSError):
                    Insider(port, key=pycoslite.secret_key(TEXT)).close()
            lines += command_lines(process.pid)
        said += process.output
    yield Figure("secrets in all that was logged, with debugging on (%d lines)" % said.count("\n"), found_in(said), "",
                 "==", 0)
    yield Figure("secrets in command lines and environments", lines, "", "==", 0)


def command_lines(pid: int) -> int:
    """How many secrets are in the command lines and environments of a process and all below it (Linux)."""
    found, todo = 0, [pid]
    while todo:
        pid = todo.pop()
        for kind in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                found += found_in(Path("/proc/%d/%s" % (pid, kind)).read_bytes().decode("latin-1"))
        for task in Path("/proc/%d/task" % pid).glob("*/children"):
            with contextlib.suppress(OSError):
                todo += map(int, task.read_text().split())
    return found


def shown() -> Iterator[Figure]:
    """What a process can print of itself."""
    texts: List[str] = []
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    pycoslite.log.addHandler(handler)
    level, propagate = pycoslite.log.level, pycoslite.log.propagate
    pycoslite.log.setLevel(logging.DEBUG)
    pycoslite.log.propagate = False
    os.environ["PYCOSLITE_SECRET"] = TEXT
    try:
        node = Pycos(host=HOST, tcp_port=0, discover_peers=False)
        try:
            with Insider(node.location.port, key=pycoslite.secret_key(TEXT)) as insider:
                insider.ping()
                peers = list(node.network.peers.values())
                texts += [repr(thing) for thing in (node, node.status(), node.network, peers, list(node.network.links),
                                                    vars(node), vars(node.network), [vars(peer) for peer in peers])]
                texts += [repr(node.network.handshake("dial")), repr(vars(node.network.handshake("dial")))]
                out = io.StringIO()
                pycoslite.dump(out)
                texts.append(out.getvalue())
            for wrong in ("handshake", "port"):
                texts.append(failure(node, wrong))
        finally:
            node.terminate()
    finally:
        del os.environ["PYCOSLITE_SECRET"]
        pycoslite.log.removeHandler(handler)
        pycoslite.log.setLevel(level)
        pycoslite.log.propagate = propagate
    texts.append(stream.getvalue())
    yield Figure("secrets in %d texts: repr, status, dump, attributes, logs, tracebacks with locals" % len(texts),
                 sum(map(found_in, texts)), "", "==", 0)


def failure(node: Pycos, what: str) -> str:
    """A traceback with the local variables of all functions in it."""
    try:
        if what == "port":
            pycoslite.start_network([HOST], node.location.port, "second", key=node.network.key)
        handshake = node.network.handshake("accept")
        handshake.data_to_send()
        handshake.receive(b"A" + bytes(200))
    except Exception as error:              # which one does not matter: it is to be printed
        return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    return ""
