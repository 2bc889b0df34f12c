"""Status messages as a client's status task is sent them, and a monitor to ask, for the tests of httpd_lite.py."""
from __future__ import annotations

import http.client
import json
import re
import urllib.parse
from typing import Any, Dict, List, NamedTuple, Optional

import httpd_lite
import pycoslite
from dispycos_lite import DispycosNodeAvailInfo, DispycosNodeInfo, DispycosStatus, DispycosTaskInfo, Scheduler
from pycoslite import Location, MonitorStatus
from tests.support import TestCase

HOSTILE = "<img src=x onerror=\"alert('x')\">\u2028</script>\x00\ud800"
TOKEN = "a-token-of-the-tests"


class FakeTask:
    """What stands for a remote task: a name, a number, a place, and whether somebody has ended it."""

    def __init__(self, number: int, location: Location, name: str = "compute") -> None:
        self.name, self.number, self.location, self.terminated = name, number, location, 0

    def __repr__(self) -> str:
        return "%s/%d@%s" % (self.name, self.number, self.location)

    def terminate(self) -> int:
        """Note it."""
        self.terminated += 1
        return 0


class Feed:
    """Makes the messages of one node, and hands them to `target` (anything that takes a message)."""

    def __init__(self, target: Any, addr: str = "10.0.0.1", port: int = 9706, name: str = "n1", cpus: int = 2) -> None:
        self.target, self.addr, self.port = target, addr, port
        self.location = Location(addr, port)
        self.info = DispycosNodeInfo(name, addr, cpus, "Linux-6", self.avail())

    def avail(self, cpu: Any = 75.0, memory: Any = 1 << 30, disk: Any = 1 << 40, swap: Any = 100.0) -> Any:
        """What the node has free."""
        return DispycosNodeAvailInfo(self.location, cpu, memory, disk, swap)

    def node(self, *names: str) -> "Feed":
        """Codes of the node, by what follows "Node" in their names."""
        for name in names:
            self.target(DispycosStatus(getattr(Scheduler, "Node" + name), self.info))
        return self

    def server(self, number: int, *names: str) -> "Feed":
        """Codes of the server at the node's port plus `number`."""
        for name in names:
            self.target(DispycosStatus(getattr(Scheduler, "Server" + name), self.at(number)))
        return self

    def at(self, number: int) -> Location:
        """Where that server is."""
        return Location(self.addr, self.port + number)

    def up(self, servers: int = 2) -> "Feed":
        """The node and its servers take tasks."""
        self.node("Discovered", "Initialized")
        for number in range(1, servers + 1):
            self.server(number, "Discovered", "Initialized")
        return self

    def start(self, number: int, server: int = 1, *args: Any, name: str = "compute", **kwargs: Any) -> FakeTask:
        """A task starts; gives it."""
        task = FakeTask(number, self.at(server), name)
        self.target(DispycosStatus(Scheduler.TaskStarted, DispycosTaskInfo(task, args, kwargs, 1000.0 + number)))
        return task

    def end(self, task: FakeTask, kind: Any = StopIteration, value: Any = None) -> None:
        """It ends."""
        self.target(MonitorStatus(task, kind, value))


class Answer(NamedTuple):
    """What a monitor answered."""

    status: int
    headers: Dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)

    @property
    def text(self) -> str:
        """The body."""
        return self.body.decode()


class MonitorTestCase(TestCase):
    """Tests that ask a monitor which they feed themselves; no network but the loopback interface."""

    def monitor(self, computation: Any = None, *args: Any, **options: Any) -> httpd_lite.HTTPServer:
        """A monitor at a free port, which ends with the test."""
        self.addCleanup(pycoslite.stop_default)
        with self.expect_log("^monitor: open http"):
            found = httpd_lite.HTTPServer(computation, *args, **{"port": 0, "token": TOKEN, **options})
        self.addCleanup(found.shutdown, wait=False)
        return found

    def ask(self, monitor: Any, path: str, fields: Any = None, method: Optional[str] = None,
            token: Optional[str] = TOKEN, **headers: str) -> Answer:
        """Ask it once, as a program does (with the token): a POST of the fields if there are any."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            given.setdefault("Authorization", "Bearer " + token)
        body = None
        if fields is not None:
            body = fields if isinstance(fields, bytes) else urllib.parse.urlencode(fields, doseq=True).encode()
            given.setdefault("Content-Type", "application/x-www-form-urlencoded")
        connection = http.client.HTTPConnection("127.0.0.1", monitor.port, timeout=60)
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, given)
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def signed_in(self, monitor: Any) -> Dict[str, str]:
        """Sign in as a page does; gives the headers that go along with requests from then on."""
        answer = self.ask(monitor, "/api/sign_in", {"token": TOKEN}, token=None)
        self.assertEqual(answer.status, 200, answer.text)
        cookie = re.match("[^;]+", answer.headers["set-cookie"]).group()
        session = self.ask(monitor, "/api/session", token=None, Cookie=cookie).json
        return {"Cookie": cookie, "X_Pycoslite_Token": session["csrf"]}


class Stream:
    """A stream of events that is read as it comes. A context manager."""

    def __init__(self, monitor: Any, query: str = "", token: str = TOKEN) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", monitor.port, timeout=60)
        self._connection.request("GET", "/api/events" + query, headers={"Authorization": "Bearer " + token})
        self.answer = self._connection.getresponse()
        self.known: Dict[str, dict] = {}            # nodes by id, as a page has them

    def read(self) -> Any:
        """The next event: its name and data; None at the end of the stream."""
        line = self.answer.fp.readline()
        if not line:
            return None
        data = self.answer.fp.readline()
        blank = self.answer.fp.readline()
        assert line.startswith(b"event: ") and data.startswith(b"data: ") and blank == b"\n", (line, data, blank)
        return line[7:].strip().decode(), json.loads(data[6:])

    def follow(self, seq: int) -> List[str]:
        """Read on until something at least as new as `seq` has come, and keep the nodes; the names of the events."""
        names = []
        while True:
            name, data = self.read()
            names.append(name)
            if name == "alive":
                continue
            if data["full"]:
                self.known.clear()
            for node in data["nodes"]:
                self.known[node["id"]] = node
            for id in data["gone"]:
                self.known.pop(id, None)
            if data["seq"] >= seq:
                return names

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_error: Any) -> None:
        self.answer.close()
        self._connection.close()
