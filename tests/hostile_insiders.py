"""Peers with the secret and with mistakes in them: malformed requests, wrong types, huge numbers, pickles that fail.

Each may cost that peer its answer or its connection, and a line in the log; the other process lives, and serves others.
Every kind of process is attacked: a peer, a node, a server, a scheduler program and a client.
"""
from __future__ import annotations

import contextlib
import json
import random
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional

import dispycos_lite
import pycoslite
from pycoslite import PycosError, encode_frame
from tests.figures import Figure
from tests.hostile_parsers import usual_arguments
from tests.hostile_wire import (CANARY, HOST, SECRET, STRANGE, Insider, Prober, Target, mutated, request_frame,
                                strange_arguments, target)
from tests.support import ROOT, free_port, running

QUICK = {"PYCOSLITE_GIVE_UP_S": "1"}        # who vanished is forgotten after that

HEADS = [b"", b"{", b"[]", b"null", b"1", b"{}", b'{"op":1,"args":{}}', b'{"op":[],"args":{}}', b'{"op":{},"args":{}}',
         b'{"op":"no.such","args":{}}', b'{"op":"task.seek"}', b'{"args":{}}', b"[" * 100_000, b"\xff\xfe", b'"' * 3,
         b'{"op":"task.seek","args":' + b'{"a":' * 20_000, b'{"op":"' + b"x" * 100_000 + b'","args":{}}', b"1" * 5000]
"""What is no head of a request."""

PICKLES = [b"", b"\x80", b"\x80\x05", b".", b"N", CANARY[:-5], b"cno_such_module\nname\n.", b"csys\nexit\n(S'x'\ntR.",
           b"cbuiltins\nSystemExit\n.", b"cbuiltins\nint\n(S'x'\ntR.", b"]" * 10 + b"a" * 20,
           b"(" * 100_000 + b"t" * 100_000, b"\x80\x05\x8e" + struct.pack("<Q", 1 << 60),
           b"\x80\x05\x96" + struct.pack("<Q", 1 << 62), b"P1\n.", b"\x82\x01.",
           b"cpycoslite\n_revive\n(S'task'\ntR.", b"cpycoslite\n_revive\n(S'no such kind'\ntR.", b"\x80\xff.", b"g9\n."]
"""What fails to load, in many ways."""

NETWORK_OPS: Dict[str, Dict[str, Any]] = {
    "task.terminate": {"task": 1 << 40}, "task.monitor": {"task": 1 << 40, "id": 1}, "task.ended": {"id": 1},
    "task.seek": {"kind": "task", "name": "n", "id": 1}, "task.unseek": {"id": 1}, "task.found": {"id": 1},
    "channel.subscribe": {"name": "n"}, "channel.unsubscribe": {"name": "n"},
    "channel.gone": {"from": "n", "tasks": [1], "channels": ["n"]}, "rps.call": {"name": "n", "id": 1},
    "peer.relay": {}, "peer.meet": {"process": "00" * 16, "addresses": [["127.0.0.1", 1]]}, "no.such": {"a": 1}}
"""What every process answers, with arguments as they should be."""


def strange_requests(choose: random.Random, ops: Dict[str, Dict[str, Any]], count: int) -> Iterator[bytes]:
    """Requests that are wrong, `count` for each of `ops`, and some that are none at all."""
    for op, usual in ops.items():
        for _ in range(count):
            args, payload = strange_arguments(choose, usual), choose.choice(PICKLES)
            if op == "task.terminate" and isinstance(args, dict) and args.get("task") == 1:
                continue                            # the victim's only task: to end it is no mistake
            yield request_frame(choose.randrange(3), json.dumps({"op": op, "args": args}).encode(), payload)
        yield request_frame(1, json.dumps({"op": op, "args": usual}).encode(), b"\x80\x05")
    for head in HEADS:
        yield request_frame(1, head)
        yield request_frame(1, head, size=1 << 31)
        yield encode_frame(pycoslite.REPLY, struct.pack(">IBI", 1, 0, len(head)) + head)


def strange_frames(choose: random.Random, count: int) -> Iterator[bytes]:
    """Messages, deliveries and messages of channels that cannot be read, to tasks that are there and not."""
    number = struct.Struct(">Q")
    for data in PICKLES * count:
        yield encode_frame(pycoslite.MESSAGE, number.pack(choose.choice((1, 2, 1 << 63))) + data)
        yield encode_frame(pycoslite.DELIVER, number.pack(1) + struct.pack(">I", 1) + data)
        for text in (b'{"from":null,"tasks":[],"channels":["c"]}', b'{"from":null,"tasks":[],"channels":[]}',
                     b'{"from":[],"tasks":[[]],"channels":[{}]}', b"{}", b'{"from":"c","tasks":1,"channels":2}'):
            seconds = choose.choice((1.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e308))
            n = choose.choice((0, 1, (1 << 32) - 1))
            head = struct.pack(">IBIdI", choose.randrange(2), choose.randrange(256), n, seconds, len(text))
            yield encode_frame(pycoslite.SPREAD, head, text, data)
    for code in (6, 16, 17, 18, 19, 20, 21, 22, 24, 25, 30, 63, 64, 65, 66, 67, 68, 69, 70, 71, 255):
        for size in (0, 1, 4, 7, 8, 12, 13, 29, 100):
            yield encode_frame(code, bytes(size))
            yield encode_frame(code, b"\xff" * size)


def attack(make: Callable[[], Insider], frames: Iterable[bytes], at_once: int = 20) -> int:
    """Say all of that, on a new connection whenever one has been ended, and wait after each so many until they have
    been taken; gives how many frames there were."""
    insider: Optional[Insider] = None
    count = 0
    for count, frame in enumerate(frames, 1):
        try:
            insider = insider or make()
            insider.say(frame)
            if count % at_once == 0:
                insider.ping()
        except (OSError, PycosError):
            if insider is not None:
                insider.close()
            insider = None
    if insider is not None:
        with insider, contextlib.suppress(OSError, PycosError):
            insider.ping()
    return count


def judged(what: str, victim: Target, said: int, serves: bool) -> Iterator[Figure]:
    """What became of a process."""
    yield Figure("%s: malformed messages of an insider" % what, said)
    yield Figure("%s: lives, and serves others" % what, victim.alive and serves, "", "==", 1)
    lines = [line for line in victim.process.output.splitlines() if not line.startswith(("INFO", "DONE"))]
    yield Figure("%s: lines of its log for each of them" % what, len(lines) / said, "", "<=", 1)
    yield Figure("%s: tracebacks in its log" % what, victim.lines("Traceback (most recent call last)"), "", "==", 0)


def insiders(soak: bool) -> Iterator[Figure]:
    """All kinds of processes."""
    count, choose = 300 if soak else 15, random.Random(11)
    yield from against_peer(choose, count)
    with tempfile.TemporaryDirectory() as folder:
        secret = Path(folder, "secret")
        secret.write_text(SECRET)
        secret.chmod(0o600)
        yield from against_node(choose, count, secret)
        yield from against_scheduler(choose, count, secret)
        yield from against_client(choose, count, secret)


ASK = request_frame(1, b'{"op":"task.monitor","args":{"task":1099511627776,"id":1}}')
"""A request that is answered at once, with "no such task"."""


def greedy(soak: bool) -> Iterator[Figure]:
    """I2: peers that ask and ask, and read the answers at once, late, or never."""
    window = pycoslite.Settings().window_messages if soak else 5000
    with target(env={"PYCOSLITE_WINDOW_MESSAGES": str(window)}) as victim, Prober(victim.port) as prober:
        yield Figure("answers to one who reads them soon", answered(victim, 500, window // 100), "", "==", 5 * window)
        before, asked = victim.memory(), 0
        insider = Insider(victim.port)
        with insider.sock, contextlib.suppress(OSError):
            while asked < 50 * window:
                insider.say(ASK * 500)
                asked += 500
        told = victim.process.wait_for(r"does not take the answers: it is cut off, and (\d+) messages")
        grown = max(0, victim.memory() - before)
        yield Figure("answers to one who reads them late", answered(victim, 2 * window, 2), "", "==", 4 * window)
    yield Figure("asked by one who reads nothing, until he was cut off", asked, "", "<", 50 * window)
    yield Figure("windows of answers that waited for him", int(told.group(1)) / window, "", "<=", 3.25)
    yield Figure("memory they took", grown / (1 << 20), "MiB", "<=", 64 if soak else 8)
    yield Figure("lines of the log about him", victim.lines("does not take the answers"), "", "==", 1)
    yield Figure("probes meanwhile that got no answer, of %d" % prober.count, len(prober.failures), "", "==", 0)


def answered(victim: Target, at_once: int, rounds: int) -> int:
    """Ask so many questions before reading the answers, several times; gives how many came. Heartbeats work as ever."""
    came = 0
    with Insider(victim.port) as insider:
        for _ in range(rounds):
            insider.say(ASK * at_once)
            for _ in range(at_once):
                insider.wait_for(pycoslite.REPLY)
                came += 1
        insider.ping()
    return came


def against_peer(choose: random.Random, count: int) -> Iterator[Figure]:
    """A process with tasks and channels."""
    with target(env=QUICK) as victim:
        said = attack(lambda: Insider(victim.port), strange_requests(choose, NETWORK_OPS, count))
        said += attack(lambda: Insider(victim.port), strange_frames(choose, max(1, count // 15)))
        for info in STRANGE:
            said += attack(lambda info=info: Insider(victim.port, **{       # type: ignore[misc]
                name: info for name in ("name", "port", "role", "addresses", "longest", "python", "magic", "cpus",
                                        "file", "lanes")
                if len(json.dumps(info)) < 150}), [])
            said += attack(lambda info=info: Insider(victim.port, lane=info), [ASK])    # type: ignore[misc]
        with Insider(victim.port) as insider:
            insider.say(encode_frame(pycoslite.DELIVER, struct.pack(">QI", 1, 7) + pycoslite.serialize(("number", 1))))
            serves = insider.wait_for(pycoslite.DELIVERED)[:4] == struct.pack(">I", 7)      # to whatever task is left
        yield from judged("peer", victim, said, serves)


@contextlib.contextmanager
def program(words: List[Any], ready: str, env: Optional[Dict[str, Optional[str]]] = None) -> Iterator[Target]:
    """A program of ours, as something to attack; `ready` finds its port."""
    with running([sys.executable, *words], ready=ready, cwd=ROOT, env=env) as process:
        yield Target(process, int(process.match.group(1)))


def node(secret: Path) -> Any:
    """A node program with one server."""
    return program(["dispycosnode_lite.py", "--cpus", 1, "--host", HOST, "--udp_port", free_port(), "--secret-file",
                    secret, "--daemon"], r"listening at 127\.0\.0\.1:(\d+)", QUICK)


def reserve(insider: Insider) -> Dict[str, Any]:
    """Become the client of a node; gives what it answers."""
    return insider.request("node.reserve", {"client": "insider", "python": [3, 11, 7], "magic": "00", "cpus": 1})[1]


def against_node(choose: random.Random, count: int, secret: Path) -> Iterator[Figure]:
    """A node and one of its servers, by those who have the node and those who have not."""
    ops = {op: usual_arguments(op) for op, facts in dispycos_lite.OPS.items()
           if op.startswith("node.") and op not in ("node.setup", "node.restart")}
    with node(secret) as victim:
        said = attack(lambda: Insider(victim.port), strange_requests(choose, {**NETWORK_OPS, **ops}, count))

        def holder() -> Insider:
            insider = Insider(victim.port)
            reserve(insider)
            return insider
        said += attack(holder, strange_requests(choose, ops, count * 2))
        said += attack(holder, strange_requests(choose, {"node.restart": usual_arguments("node.restart")}, 8))
        with holder() as insider:
            for payload in PICKLES[:3]:
                insider.request("node.setup", {}, payload)
                said += 1
        with Insider(victim.port) as insider:
            facts = reserve(insider)
            port = (facts.get("servers") or [insider_news(insider, "node.server")])[0]["port"]
            said += attack_server(choose, count, port)
            serves = attached(port)
        yield from judged("node", victim, said, facts["state"] == "granted")
        yield Figure("server: lives, and serves its client", serves, "", "==", 1)


def insider_news(insider: Insider, op: str) -> Dict[str, Any]:
    """The arguments of the next notice of that kind (of a server: that it is up)."""
    while True:
        body = insider.wait_for(pycoslite.REQUEST)
        size = struct.unpack_from(">II", body)[1]
        head = json.loads(body[8:8 + size])
        if head["op"] == op and head["args"].get("state") != "down":
            return head["args"]


def attack_server(choose: random.Random, count: int, port: int) -> int:
    """A server process, by one who is not its client (nobody is yet), and by its client, as whom it ends."""
    ops = {op: usual_arguments(op) for op in dispycos_lite.OPS if op.startswith("server.")}
    ops["server.setup"] = {"components": ["00"], "setup": ["zz"]}
    del ops["server.attach"]
    return attack(lambda: Insider(port), list(strange_requests(choose, {**NETWORK_OPS, **ops}, count // 3)) +
                  list(strange_frames(choose, 1)))


def attached(port: int) -> bool:
    """Whether a server takes a client, answers its malformed jobs one by one, and lives."""
    with Insider(port) as insider:
        failed = insider.request("server.attach", {})[0]
        for data in PICKLES:
            insider.say(encode_frame(dispycos_lite.DEFINE, data))
        for number, data in enumerate(PICKLES):
            insider.say(encode_frame(dispycos_lite.JOB, dispycos_lite.pack_job(number, 1, 0, bytes(16)), data))
            insider.wait_for(dispycos_lite.RESULT)
        for body in (b"", b"\xff" * 12, b"\xff" * 40):
            for code in range(64, 71):
                insider.say(encode_frame(code, body))
        insider.request("server.setup", {"components": ["zz"], "setup": []})
        insider.ping()
    return not failed


def against_scheduler(choose: random.Random, count: int, secret: Path) -> Iterator[Figure]:
    """A scheduler program."""
    ops = {op: usual_arguments(op) for op in dispycos_lite.OPS if op.startswith("scheduler.")}
    with program(["dispycos_lite.py", "--host", HOST, "--tcp_port", free_port(), "--udp_port", free_port(),
                  "--secret_file", secret, "--daemon"], r"listens at 127\.0\.0\.1:(\d+)", QUICK) as victim:
        said = attack(lambda: Insider(victim.port), strange_requests(choose, {**NETWORK_OPS, **ops}, count))
        with Insider(victim.port) as insider:
            insider.say(request_frame(0, b'{"op":"scheduler.enter","args":{"client":1,"name":"one"}}'))
            insider_news(insider, "scheduler.turn")
        yield from judged("scheduler program", victim, said, True)


CLIENT = """
import logging, sys
sys.path.insert(0, %r)
import dispycos_lite, pycoslite
logging.basicConfig(level=logging.INFO, format="%%(levelname)s %%(message)s")

def work(n, task=None):
    yield task.sleep(0)
    return n

def main(task=None):
    scheduler = dispycos_lite.Scheduler(nodes=[sys.argv[1]], host="127.0.0.1", tcp_port=0, udp_port=int(sys.argv[2]),
                                        discover_peers=False, secret_file=sys.argv[3])
    client = dispycos_lite.Client([work])
    yield client.schedule()
    print("CLIENT", pycoslite.Pycos().location.port, flush=True)
    n = 0
    while True:
        rtask = yield client.run(work, n)
        if isinstance(rtask, pycoslite.Task):
            print("DONE", (yield rtask.finish()), flush=True)
        n += 1
        yield task.sleep(0.05)

pycoslite.Task(main).value()
"""


def against_client(choose: random.Random, count: int, secret: Path) -> Iterator[Figure]:
    """A client that computes on an honest node, while others say they are nodes, too."""
    script = secret.with_name("client.py")
    script.write_text(CLIENT % str(ROOT))
    ops = {op: usual_arguments(op) for op in ("node.granted", "node.waiting", "node.refused", "node.server",
                                              "client.close_server", "client.close_node", "scheduler.turn")}
    with node(secret) as honest, program([script, "%s:%d" % (HOST, honest.port), free_port(), secret], r"CLIENT (\d+)",
                                         QUICK) as victim:
        said = attack(lambda: Insider(victim.port), strange_requests(choose, {**NETWORK_OPS, **ops}, count))
        for reply in STRANGE[::1 if count > 100 else 4]:
            said += pretend_node(victim.port, choose, ops, reply)
        done = [int(line.split()[1]) for line in victim.process.output.splitlines() if line.startswith("DONE ")]
        last = max(done, default=0)
        victim.process.wait_for(r"DONE (%s)\b" % "|".join(map(str, range(last + 2, last + 50))))
        yield from judged("client", victim, said, True)


def pretend_node(port: int, choose: random.Random, ops: Dict[str, Dict[str, Any]], strange: Any) -> int:
    """Say to be a node, answer what is asked with something strange, and tell strange news."""
    granted = {"state": "granted", "servers": [], "directory": "d", "name": "n", "cpus": 1, "platform": "p"}
    replies = [strange, dict(granted, servers=strange), dict(granted, servers=[strange]), dict(granted, cpus=strange),
               dict(granted, servers=[{"n": strange, "state": "up", "port": 1, "process": "00"}]),
               dict(granted, servers=[{"n": 1, "state": "up", "port": strange, "process": strange}]),
               {"state": "waiting", "position": strange, "holder": strange}, {"state": strange}]
    reply = json.dumps(choose.choice(replies)).encode()
    said = 0
    about = {"role": "node", "cpus": choose.choice((1, -1, "x", None, 1 << 70)),
             "magic": choose.choice(("00", "zz", 7)), "port": choose.choice((0, 1, port)),
             "addresses": choose.choice(([], [HOST]))}
    with contextlib.suppress(OSError, PycosError), Insider(port, **about) as insider:
        for _ in range(2):
            insider.sock.settimeout(0.3)
            try:
                number = struct.unpack_from(">II", insider.wait_for(pycoslite.REQUEST))[0]
            except OSError:                         # it asks for nothing
                break
            insider.sock.settimeout(5)
            insider.say(encode_frame(pycoslite.REPLY, struct.pack(">IBI", number, 0, len(reply)) + reply))
            for frame in strange_requests(choose, ops, 1):
                insider.say(frame)
                said += 1
            for code in (dispycos_lite.STARTED, dispycos_lite.RESULT, dispycos_lite.RETURNED):
                insider.say(encode_frame(code, mutated(choose, bytes(20))))
                said += 1
            insider.ping()
    return said
