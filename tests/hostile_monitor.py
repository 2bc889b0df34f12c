"""What other sites, strangers and slow connections can do to a web monitor; and what names of users' things can.

A monitor runs in a program of its own, whose memory, descriptors and processor time are watched.
"""
from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import threading
import time
from typing import Any, Dict, Iterator, List, Optional, Tuple

import httpd_lite
from tests.figures import Figure
from tests.hostile_insiders import program
from tests.hostile_wire import HOST, PATIENCE_S, Target, closed_within
from tests.support import ROOT

TOKEN = "token-that-a-viewer-has"
MARKUP = "<img src=x onerror=alert(1)>"
MONITOR = """
import resource, sys; sys.path.insert(0, %r)
if %d: resource.setrlimit(resource.RLIMIT_NOFILE, (%d, %d))
import pycoslite, dispycos_lite as d, httpd_lite
monitor = httpd_lite.HTTPServer(None, port=0, token=%r)
place, name = pycoslite.Location("10.0.0.1", 9706), %r
free = d.DispycosNodeAvailInfo(place, 50.0, 1, 1, 1.0)
for code in ("NodeDiscovered", "NodeInitialized"):
    monitor.feed(d.DispycosStatus(getattr(d.Scheduler, code), d.DispycosNodeInfo(name, "10.0.0.1", 1, name, free)))
monitor.feed(d.DispycosStatus(d.Scheduler.ServerInitialized, pycoslite.Location("10.0.0.1", 9707)))
print("AT", monitor.port, flush=True); sys.stdin.read()
"""
READS = [path for (method, path), route in httpd_lite.ROUTES.items() if method == "GET"]
POSTS = [path for (method, path), route in httpd_lite.ROUTES.items() if method == "POST"]
GOOD = {"Host": HOST, "Authorization": "Bearer " + TOKEN}
EVIL: Dict[str, Dict[str, str]] = {
    "of other hosts": {"Host": "evil.example"}, "of names that look like ours": {"Host": "localhost.evil.example"},
    "of other origins": {"Origin": "http://evil.example"}, "of no origin": {"Origin": "null"},
    "of other ports": {"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site"},
    "of other sites": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    "without a token": {"Authorization": ""}, "with a wrong token": {"Authorization": "Bearer " + TOKEN[:-1]}}
"""Requests that must not be answered: which, and their headers beside (or in place of) good ones."""
UP = ("..", "%2e%2e", ".%2e", "%252e%252e", "..%2f", "..%5c", "..\\", "%c0%ae%c0%ae", "..%00", "....//", "..;")
MALFORMED = (
    b"\0" * 50, b"\x16\x03\x01\x02\0", b"GET", b"GET /", b"GET /\r\n\r\n", b"GET / HTTP/0.9\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nHost\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"POST /update HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /update HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n",
    b"POST /update HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
    b"GET /" + b"a" * 100_000, b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000, b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 20_000)


def monitor(header_s: float, descriptors: int = 0) -> Any:
    """A program with a monitor that gives a header so much time; with at most so many descriptors, if that is given."""
    code = MONITOR % (str(ROOT), descriptors, descriptors, descriptors, TOKEN, MARKUP)
    return program(["-c", code], r"AT (\d+)", {"PYCOSLITE_HTTP_HEADER_S": str(header_s)})


def ask(port: int, method: str, path: str, headers: Dict[str, str]) -> Tuple[int, str, bytes]:
    """Status, type and body of an answer; of a stream the first bytes."""
    connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE_S)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        kind = answer.headers.get("Content-Type", "")
        return answer.status, kind, answer.fp.readline() if "event-stream" in kind else answer.read()
    finally:
        connection.close()


def signed_in(port: int) -> str:
    """The cookie of somebody who is signed in."""
    connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE_S)
    try:
        connection.request("POST", "/api/sign_in", "token=" + TOKEN)
        return connection.getresponse().headers["Set-Cookie"].partition(";")[0]
    finally:
        connection.close()


def say(port: int, data: bytes) -> bytes:
    """What comes back for bytes after which nothing follows."""
    with socket.create_connection((HOST, port), timeout=PATIENCE_S) as sock, contextlib.suppress(ConnectionError):
        found = b""
        with contextlib.suppress(ConnectionError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        while True:
            part = sock.recv(65536)
            if not part:
                break
            found += part
    return found


def sites(soak: bool) -> Iterator[Figure]:
    """S10."""
    header_s, goal_s = 3.0, 5.0 if soak else PATIENCE_S
    with monitor(header_s) as victim:
        yield from foreign(victim)
        yield from spellings(victim, soak)
        yield from markup(victim)
        yield from costs(victim, soak)
        yield from crowd(victim, header_s, goal_s)
    with monitor(header_s, 256) as victim:
        yield from without_descriptors(victim)


def foreign(victim: Target) -> Iterator[Figure]:
    """Requests that a browser sends for other people."""
    answered = sum(ask(victim.port, "GET", path, GOOD)[0] == 200 for path in READS)
    yield Figure("paths that answer who may ask, of %d" % len(READS), answered, "", "==", len(READS))
    for kind, headers in EVIL.items():
        found = [ask(victim.port, method, path, {**GOOD, **headers})[0]
                 for method, paths in (("GET", READS), ("POST", POSTS)) for path in paths]
        yield Figure("requests %s that were not refused, of %d" % (kind, len(found)),
                     sum(not 400 <= status < 500 for status in found), "", "==", 0)
    cookie = {"Host": HOST, "Cookie": signed_in(victim.port)}
    yield Figure("answered with a cookie alone", ask(victim.port, "GET", READS[0], cookie)[0], "", "==", 200)
    with_cookie = [ask(victim.port, "POST", path, cookie)[0] for path in POSTS]
    yield Figure("posts of a form with somebody's cookie that were not refused, of %d" % len(with_cookie),
                 sum(not 400 <= status < 500 for status in with_cookie), "", "==", 0)


def spellings(victim: Target, soak: bool) -> Iterator[Figure]:
    """Paths and requests that are not what they should be."""
    paths = ["/" + "/".join([word] * depth + [name]) for word in UP for depth in (1, 2, 8)
             for name in ("etc/passwd", "httpd_lite.py", "static/cluster.html")]
    paths += ["//etc/passwd", "/static/cluster.html", "/httpd_lite.py", "file:///etc/passwd", "/C:/boot.ini", "/."]
    head = "".join("%s: %s\r\n" % item for item in GOOD.items())
    replies = [say(victim.port, ("GET %s HTTP/1.1\r\n%s\r\n" % (path, head)).encode()) for path in paths]
    yield Figure("spellings of paths that lead somewhere, of %d" % len(replies),
                 sum(reply[9:12] not in (b"400", b"404") for reply in replies), "", "==", 0)
    choose, data = random.Random(3), b"POST /update HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\ntimeout=3"
    requests = list(MALFORMED)
    for _ in range(20_000 if soak else 300):
        damaged = bytearray(data)
        for _ in range(choose.randrange(1, 6)):
            damaged[choose.randrange(len(damaged))] = choose.randrange(256)
        requests.append(bytes(damaged))
    statuses = [say(victim.port, request)[9:12] for request in requests]
    yield Figure("malformed requests that were answered as if they were good, of %d" % len(statuses),
                 statuses.count(b"200"), "", "==", 0)
    yield Figure("malformed requests that found a fault of ours", statuses.count(b"500"), "", "==", 0)


def markup(victim: Target) -> Iterator[Figure]:
    """A node whose name is HTML."""
    seen, wrong = 0, 0
    for path in READS + ["/" + MARKUP.replace(" ", "%20"), "/node_info?host=10.0.0.1"]:
        _, kind, body = ask(victim.port, "GET", path, GOOD)
        seen += b"<img" in body
        wrong += b"<img" in body and not kind.startswith(("application/json", "text/plain", "text/event-stream"))
    yield Figure("answers with a name that is markup", seen, "", ">=", 4)
    yield Figure("of these as anything but plain data", wrong, "", "==", 0)
    yield Figure("answers with it that are no JSON", sum(not _is_json(victim, path) for path in (
        "/cluster_status", "/node_info?host=10.0.0.1", "/api/changes", "/api/log")), "", "==", 0)


def _is_json(victim: Target, path: str) -> bool:
    return MARKUP in json.dumps(json.loads(ask(victim.port, "GET", path, GOOD)[2]))


def costs(victim: Target, soak: bool) -> Iterator[Figure]:
    """What strangers make it keep."""
    before, descriptors = victim.memory(), victim.descriptors()
    for _ in range(20 if soak else 3):
        for data in MALFORMED[-3:]:
            socks = [socket.create_connection((HOST, victim.port), timeout=PATIENCE_S) for _ in range(40)]
            for sock in socks:
                with contextlib.suppress(OSError):
                    sock.sendall(data)
            for sock in socks:
                closed_within(sock, PATIENCE_S)
    ask(victim.port, "GET", "/cluster_status", GOOD)
    yield Figure("memory that huge headers leave behind", (victim.memory() - before) / (1 << 20), "MiB", "<=", 8)
    left = _settled(victim, descriptors)
    yield Figure("descriptors that they leave behind", left - descriptors, "", "<=", 1)


def _settled(victim: Target, goal: int) -> int:
    """How many descriptors there are once connections that have ended are forgotten."""
    deadline = time.monotonic() + PATIENCE_S
    while victim.descriptors() > goal + 1 and time.monotonic() < deadline:
        time.sleep(0.05)                    # another process's business
    return victim.descriptors()


class Viewer:
    """Asks for the cluster's status again and again, as somebody who is signed in does. A context manager."""

    def __init__(self, port: int) -> None:
        self.port, self.count, self.failures, self.worst_s = port, 0, 0, 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._end.wait(0.05):
            started = time.perf_counter()
            self.failures += not (self._answered() or self._answered())     # who sees an error tries again
            self.worst_s = max(self.worst_s, time.perf_counter() - started)
            self.count += 1

    def _answered(self) -> bool:
        try:
            return ask(self.port, "GET", "/cluster_status", GOOD)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def __enter__(self) -> "Viewer":
        self._thread.start()
        return self

    def __exit__(self, *_error: Any) -> None:
        self._end.set()
        self._thread.join()

    def figures(self, when: str) -> Iterator[Figure]:
        """What it has found."""
        yield Figure("%s: viewer's requests not answered, of %d" % (when, self.count), self.failures, "", "==", 0)
        yield Figure("%s: slowest one" % when, self.worst_s * 1000, "ms", "<=", 100)


def crowd(victim: Target, header_s: float, goal_s: float) -> Iterator[Figure]:
    """Silent and dribbling connections, all of which are to be cut within `goal_s`."""
    started = time.monotonic()
    with Viewer(victim.port) as viewer:
        silent = [socket.create_connection((HOST, victim.port), timeout=PATIENCE_S) for _ in range(500)]
        slow = [socket.create_connection((HOST, victim.port), timeout=PATIENCE_S) for _ in range(50)]
        dribble(slow, header_s + 0.5)
        cut = sum(closed_within(sock, max(started + goal_s - time.monotonic(), 0.01)) < goal_s
                  for sock in silent + slow)
    yield Figure("of 500 silent and 50 dribbling connections cut within %g s" % goal_s, cut, "", "==", 550)
    yield from viewer.figures("500 silent, 50 dribbling")
    before = victim.cpu_s()
    time.sleep(1.0)                         # as long as it is watched
    yield Figure("processor time while nothing happens", (victim.cpu_s() - before) * 100, "%", "<", 5)


def dribble(socks: List[socket.socket], limit_s: float) -> None:
    """Send a byte of a request on each now and then."""
    request, deadline = b"GET / HTTP/1.1\r\nX: " + b"a" * 1000, time.monotonic() + limit_s
    for number in range(len(request)):
        if time.monotonic() > deadline:
            return
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.sendall(request[number:number + 1])
        time.sleep(0.1)                     # dribbling is what they do


def without_descriptors(victim: Target) -> Iterator[Figure]:
    """256 descriptors, more strangers than that."""
    with Viewer(victim.port) as viewer:
        socks: List[Optional[socket.socket]] = [
            socket.create_connection((HOST, victim.port), timeout=PATIENCE_S) for _ in range(400)]
        time.sleep(0.5)                     # as long as it is watched
    for sock in socks:
        sock.close()
    yield from viewer.figures("256 descriptors, 400 strangers")
