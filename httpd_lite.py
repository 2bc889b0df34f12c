"""Web monitor of a cluster: pages for any number of browsers, a JSON API, a stream of changes, metrics for Prometheus.

    client = dispycos_lite.Client([work])       # or a Cluster
    monitor = httpd_lite.HTTPServer(client)     # logs the address to open
    ...
    monitor.shutdown()

Sections (the banners below carry the same numbers and titles):

     1. Settings and errors
     2. Texts of users' objects (pure)
     3. Cluster view (pure)
     4. History (pure)
     5. Requests (pure)
     6. Site
     7. Pages
     8. Answers
     9. Connections
    10. HTTPServer

A change goes up through them: what `HTTPServer` (10) is told it hands to `Site.feed` (6), which has the `ClusterView`
(3) take it in and wakes the streams. A request goes down: a `_Connection` (9) reads it with limits, section 5 decides
whether it is let in, `ROUTES` (8) has the function that answers, from the view and the client's figures as they are.

The API
-------
Paths are relative to the monitor's root, as a proxy may put a prefix before them. Answers are JSON in UTF-8 unless it
says else; errors are ``{"error": "a sentence"}`` with a status of 4xx or 5xx. Times are seconds since the epoch.

Signing in: the URL that is logged is ``http://HOST:PORT/#token=TOKEN``. Its page posts the token to api/sign_in and
gets a cookie. Programs send ``Authorization: Bearer TOKEN`` instead, and need no more than that. Pages, scripts,
styles and icons hold no data and need no sign-in; everything else answers 401 without. Every POST but api/sign_in needs
the header X-Pycoslite-Token, with the "csrf" of api/session (or the Authorization header), else it is a 403. A body is
a form (fields may be repeated) or a JSON object (``{"field": value or list of values}``) of at most 64 KiB.

    GET   /                     the cluster's page; /index.html and /cluster.html are the same; there are /node.html,
                                /server.html and every other file of static/, too
    POST  api/sign_in           token=      {} and the cookie; 403 for a wrong token
    POST  api/sign_out          {}; the cookie is worthless then
    GET   api/session           {csrf, instance, version, name, started, now, poll_sec, show_task_args, alive_sec,
                                stale_sec, read_only, can_act}
    GET   api/changes           ?instance= &seq= &host= &wait=          CHANGES since seq; waits for one, `wait` s (25)
    GET   api/events            ?interval= &host=                       text/event-stream, see below
    GET   api/history           ?scope=recent|run                       HISTORY: the last 15 minutes, or the whole run
    GET   api/tasks             ?state= &host= &location= &text= &limit=100         {count, tasks: [TASK, newest first]}
                                state: running, ended, or one of the ends done, failed, terminated, abandoned
    GET   api/log               ?after=0 &limit=200                     {seq, log: [LINE, oldest first]}
    GET   metrics               the Prometheus text format

and the documented ones, with the names, fields and methods of older programs:

    GET   cluster_status        [NODE without its last line below]
    GET   cluster_updates       ?reader=    [the same, of nodes that changed since this reader's last call]: each cookie
                                is a reader of its own, and each name that is given as `reader`
    POST  node_info             host=id, name or address                NODE with "servers": [SERVER]; {} if unknown
    POST  server_info           location= limit=                        SERVER with "tasks": [TASK, oldest first] and
                                "jobs": ["name#number" of what else runs]; {} if unknown. limit <= 0: all. These two may
                                be read with GET, too
    POST  update                timeout= show_task_args=                nothing: sets poll_sec and whether arguments are
                                shown ("true"), for all viewers; timeout below 1 is 0, no refresh by itself
    POST  terminate_tasks       task=id, repeated                       [ids accepted]; as terminate_coros, coro=, too
    POST  suspend_node, resume_node         nodes=JSON list of ids, names or addresses      [those acted on]
    POST  suspend_server, resume_server     servers=JSON list of locations                  [those acted on]

Anything else is a 404 (GET) or 400 (POST).

    CHANGES  instance (of this monitor), seq, full, now, status ("Waiting", "Running", "Closed"), poll_sec,
             show_task_args, totals, nodes: [NODE that changed], servers: [SERVER that changed, only with host=], gone:
             [ids of nodes no longer kept]. full: seq is too old, of another instance or missing, so this is everything
    totals   of jobs of all kinds: submitted (pending + running + done), pending (not begun; null if unknown), running,
             done (all that ended; of these:) failed, terminated, abandoned; and nodes, servers (in use)
    NODE     name, addr, status, servers (in use), update_time, tasks_submitted, tasks_done,
             avail_info: {location: null, cpu: % free, memory: bytes free, disk: bytes free, swap: % free; or null},
             id (unique), cpus, platform, tasks_running, tasks_failed, servers_up (that take tasks). tasks_* are
             figures of jobs of all kinds, here and below; submitted is running + done, as what waits has no place yet
    SERVER   location, node (id), name (of the node), status, tasks_submitted, tasks_done, tasks_failed, tasks_running,
             tasks_listed (of these; the others have no task: plain functions, say), update_time
    TASK     task (id: name/number@address:port; of a job without a task, which is listed when it failed, name#number or
             name#number@address:port), name, args, kwargs (texts; "" when hidden), start_time (null: unknown), state,
             location, node ("": none), and once ended: end_time, error (type of the exception), detail (traceback, or
             why), result
    LINE     seq, time, level ("info", "warning", "error"), subject, text
    HISTORY  now, step (seconds), and lists, oldest first, the last value ends at now, null: unknown: done_rate,
             failed_rate (per second), running, pending, nodes, servers, cpu_used (mean, %), memory_free (sum, bytes)
    status   of nodes and servers: Discovered, Initialized, Suspended, Closed, Disconnected, Abandoned, Ignore

Events of the stream: "full" with CHANGES at once; then "change" with CHANGES, at most one per `interval` seconds (0.2
or more; poll_sec if it is not given) but the first after a quiet time at once; and "alive" with {now} whenever nothing
came for alive_sec. With too many streams open it is a 503, and the page asks api/changes instead.
"""
from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http
import http.server
import io
import ipaddress
import itertools
import json
import math
import os
import re
import reprlib
import secrets
import selectors
import socket
import threading
import time
import urllib.parse
from collections import Counter, OrderedDict, deque
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

try:
    from . import dispycos_lite, pycoslite
except ImportError:                     # the files lie side by side, not in a package
    import dispycos_lite
    import pycoslite


# ======================================================================================================================
# 1. Settings and errors
# ======================================================================================================================


@dataclasses.dataclass
class MonitorSettings:
    """Limits and defaults of the monitor; units are in the names. An instance, `settings`, is what the code reads.

    As with `pycoslite.Settings`, an environment variable ``PYCOSLITE_`` plus the name in capitals overrides a field.
    Fields are read when they are needed; those of what is kept, and of the history, when a monitor is made.

    http_*      bound what strangers can cost: so many connections, each with one thread and one header or body
    kept_*      bound what a long run costs; what is dropped has been counted, and goes on counting
    *_chars     bound what one task costs, and what its arguments cost on their way to a browser
    """

    http_connections: int = 64          # open at once; beyond, one that has not asked for anything is cut
    http_streams: int = 32              # of these, streams of events
    http_header_s: float = 3.0          # from the first byte of a request to the end of its header; again for a body
    http_idle_s: float = 15.0           # a connection is kept so long for the next request
    http_send_s: float = 10.0           # for taking an answer, or one event of a stream
    http_header_bytes: int = 16 * 1024
    http_body_bytes: int = 64 * 1024
    http_readers: int = 256             # of cluster_updates; who has not come for longest is told everything again
    http_alive_s: float = 10.0          # a stream says so often that it lives
    kept_tasks: int = 1000              # ended tasks, with their texts
    kept_nodes: int = 500               # nodes, and likewise servers, that are not in use any more
    kept_lines: int = 500               # of the log
    text_chars: int = 200               # of one argument or result ...
    texts_chars: int = 2000             # ... of all arguments of a task ...
    detail_chars: int = 4000            # ... and of a traceback
    sample_s: float = 5.0               # between two points of the history
    samples: int = 180                  # points of the recent one; of the whole run there are up to twice as many

    __post_init__ = pycoslite.Settings.__post_init__


settings = MonitorSettings()


class Refusal(Exception):
    """A request is not answered as it wishes: `status` of HTTP, and the sentence that says why and what to change."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


# ======================================================================================================================
# 2. Texts of users' objects (pure)                                      whatever they are, they become short plain text
# ======================================================================================================================
#
# Arguments and results are anybody's objects: huge, with a `__str__` that fails or a `__class__` that lies. What is
# made of them here is never longer than the limit, and of text, bytes and containers not more is looked at than that
# takes. Other objects have their `str` called, as the documents say: a class that has a short one is shown by it.
#
# Nothing here makes it safe to show as HTML: pages set it as text, and JSON and the metrics have their own escapes.
# There is one place for each of the three, so that nobody has to know what has been escaped before.


class _Short(reprlib.Repr):
    """`repr` of containers that does not look at more of them than will be shown."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("maxtuple", "maxlist", "maxdict", "maxset", "maxfrozenset", "maxdeque", "maxarray"):
            setattr(self, name, 60)
        self.maxstring = self.maxother = self.maxlong = 120


_short = _Short()
_CONTAINERS = (tuple, list, dict, set, frozenset, deque)        # exactly these types: a subclass may have its own `str`


def cut(text: str, limit: int) -> str:
    """`text`, or its beginning and an ellipsis: at most `limit` characters. Pure."""
    return text if len(text) <= limit else text[:limit - 1] + "\u2026"


def shortened(text: str, limit: int) -> str:
    """`text`, or its beginning and its end: the end of a traceback says the most. At most `limit` characters. Pure."""
    if len(text) <= limit:
        return text
    start = limit // 3
    return text[:start] + "\n\u2026\n" + text[len(text) - (limit - start - 3):]


def shown(value: Any, limit: Optional[int] = None) -> str:
    """`value` as `str` has it, cut to `limit` characters (default: `MonitorSettings.text_chars`). Runs the `__str__`
    of users' classes, and survives it: an exception becomes a text that names it. Pure otherwise."""
    limit = limit or settings.text_chars
    try:
        if type(value) in (bytes, bytearray):
            more = len(value) - limit
            text = repr(bytes(value[:limit])) + (" and %d bytes more" % more if more > 0 else "")
        elif type(value) in _CONTAINERS:
            text = _short.repr(value)
        else:
            text = str(value[:limit + 1] if type(value) is str else value)
    except Exception as error:              # the user's code: it may raise anything
        text = "<%s that cannot be shown: %s>" % (type(value).__name__, type(error).__name__)
    return cut(text, limit)


def shown_arguments(args: Iterable, kwargs: Dict[str, Any]) -> Tuple[str, str]:
    """Positional and keyword arguments as two texts, joined by commas, each at most `MonitorSettings.texts_chars`
    long; it stops converting when that is full."""
    found = []
    for texts in ((shown(value) for value in args), ("%s=%s" % (name, shown(value)) for name, value in kwargs.items())):
        joined = ""
        for text in texts:
            joined += (", " if joined else "") + text
            if len(joined) > settings.texts_chars:
                break
        found.append(cut(joined, settings.texts_chars))
    return found[0], found[1]


def number(value: Any) -> Any:
    """`value` if it is a finite number, else None: what nodes say of themselves is not trusted to be one. Pure."""
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if fine else None


# ======================================================================================================================
# 3. Cluster view (pure)                                                         status messages in, answers as JSON out
# ======================================================================================================================
#
# What is known of nodes, servers and tasks from the messages that a status task is sent, in bounded memory: what is in
# use, the last so many that are not, the last so many tasks that ended, and counts of all.
#
# Every change gets the next `seq`, and each record knows the seq of its last change. "What is new since seq N" is then
# the records with a larger one, whoever asks and how often: nothing is kept per viewer, and nobody takes changes away
# from others. What was dropped meanwhile is in `_gone` with the seq at which it was; who comes with a seq older than
# that list reaches (`_floor`) is told everything.
#
#   message                         what it changes
#   DispycosStatus, a node's code   status of the node (`STATUS_WORDS`); a new node
#   DispycosStatus, a server's      the same of the server
#   DispycosStatus, TaskStarted     a running task; submitted + 1 of all, its node and its server
#   DispycosStatus, Client*         status of the whole
#   MonitorStatus of such a task    it has ended: done + 1, and one of its outcomes
#   MonitorStatus of a PlainJob     it is among those that have ended
#   DispycosNodeAvailInfo           what the node has free
#   anything else                   nothing
#
# Messages tell of tasks alone, and most jobs are none. So where a client counts its jobs, its figures (`take_counts`)
# take the place of those that follow from messages, for good; these are for programs that relay messages by hand.
#
# A server's message says where it is, and not whose it is: it belongs to the node in use at that address. Of several
# at one address it is the one that has not got all its servers, with the closest port below (see `_home`), until a
# client's figures, which know better, come.
#
# What holds after every message (the tests look at it from outside):
#   - `submitted` is `done` plus what runs, for the whole, for each node and for each server; none of them ever shrinks
#     as long as the record is there, whatever computations begin and end in between (W25).
#   - A task is in `running` and in its server's `tasks`, or in neither: then it may be in `ended`.
#   - `seq` is larger than before if anything that a viewer can see is different.
#   - There are at most `kept_nodes` records of nodes that are not in use, and as many of servers.
# Why not ...
#   - ... a list of changes, which readers work off: a node of which they have missed a hundred changes is still sent
#     once, and the list would have to be kept for the slowest of them.
#   - ... tasks among the changes: ten thousand may start and end between two of a reader's questions. Totals, and those
#     of nodes and servers, say that there are some; a page that shows tasks asks for as many as it has room for.
#
# Methods are not for several threads at once: `Site` has the lock. Only `prepare` and the records of tasks do without,
# as they run code of the user's; what they read is set in an order that makes that safe.

_CODES = dispycos_lite.SchedulerStatus
STATUS_WORDS = {
    _CODES.NodeIgnore: "Ignore", _CODES.NodeDiscovered: "Discovered", _CODES.NodeInitialized: "Initialized",
    _CODES.NodeSuspended: "Suspended", _CODES.NodeResumed: "Initialized", _CODES.NodeClosed: "Closed",
    _CODES.NodeDisconnected: "Disconnected", _CODES.NodeAbandoned: "Abandoned",
}
"""Code of a node -> the word that viewers see. A server's code is its node's and the difference below."""
_SERVER_CODES = _CODES.ServerClosed - _CODES.NodeClosed
_OUT = ("Ignore", "Closed", "Disconnected", "Abandoned")        # not in use
_LEVELS = {"Disconnected": "warning", "Abandoned": "warning"}   # of a line in the log; else "info"
_CLIENT_WORDS = {_CODES.ClientScheduled: "Running", _CODES.ClientClosed: "Closed"}
_ENDS = {_CODES.TaskTerminated: "terminated", _CODES.TaskAbandoned: "abandoned"}    # type of a MonitorStatus -> outcome
OUTCOMES = ("done", "failed", "terminated", "abandoned")
_NOTHING_FREE = dispycos_lite.DispycosNodeAvailInfo()


def outcome_of(status: Any) -> str:
    """Which of the OUTCOMES a MonitorStatus is. Pure."""
    if isinstance(status.type, type):
        return "done" if status.type is StopIteration else "failed"
    return _ENDS.get(status.type, "failed")


class _Counts:
    """What nodes, servers and the whole count of tasks. `seq` is that of the last change, `time` when it was."""

    def __init__(self) -> None:
        self.submitted = self.done = self.failed = self.seq = 0
        self.time = 0.0

    @property
    def running(self) -> int:
        """Those that have not ended."""
        return self.submitted - self.done

    def take(self, jobs: Any) -> bool:
        """Have a client's figures (JobCounts) for its own; whether they are others."""
        new = jobs.submitted, jobs.done, jobs.failed
        changed = new != (self.submitted, self.done, self.failed)
        self.submitted, self.done, self.failed = new
        return changed


class _Node(_Counts):
    """A node. `id` is its process's "address:port", as several may share an address and a name."""

    def __init__(self, id: str, name: str, addr: str, port: int) -> None:
        super().__init__()
        self.id, self.name, self.addr, self.port = id, name, addr, port
        self.cpus: Optional[int] = None
        self.platform = self.status = ""
        self.avail: Any = _NOTHING_FREE
        self.servers: Dict[str, _Server] = {}       # by location

    def documented(self) -> Dict[str, Any]:
        """Its record as older programs have it."""
        avail = {name: number(getattr(self.avail, name)) for name in ("cpu", "memory", "disk", "swap")}
        return {"name": self.name, "addr": self.addr, "status": self.status, "update_time": self.time,
                "servers": sum(server.status not in _OUT for server in self.servers.values()),
                "tasks_submitted": self.submitted, "tasks_done": self.done, "avail_info": {"location": None, **avail}}

    def record(self) -> Dict[str, Any]:
        """NODE of the API."""
        up = sum(server.status == "Initialized" for server in self.servers.values())
        return {**self.documented(), "id": self.id, "cpus": number(self.cpus), "platform": cut(str(self.platform), 200),
                "tasks_running": self.running, "tasks_failed": self.failed, "servers_up": up}


class _Server(_Counts):
    """A server process; the one that replaces it at its location goes on with its counts."""

    def __init__(self, location: str, port: int, node: _Node) -> None:
        super().__init__()
        self.location, self.port, self.node, self.status = location, port, node, ""
        self.tasks: Dict[str, _Task] = {}           # that run, by id

    def record(self) -> Dict[str, Any]:
        """SERVER of the API."""
        return {"location": self.location, "node": self.node.id, "name": self.node.name, "status": self.status,
                "tasks_submitted": self.submitted, "tasks_done": self.done, "tasks_failed": self.failed,
                "tasks_running": self.running, "tasks_listed": len(self.tasks), "update_time": self.time}


class _Task:
    """A task, from its start on, or a job that none stands for, once it has ended. Its arguments are the client's own
    objects, so they are let go of when it ends, and made into texts (`texts`) before; until then that is done for
    whoever asks, who may be nobody. `server` is None for a job that was at no server, or at one that is forgotten."""

    __slots__ = ("id", "name", "info", "server", "state", "texts", "end_time", "error", "detail", "result")

    def __init__(self, id: str, name: str, info: Any, server: Optional[_Server]) -> None:
        self.id, self.name, self.info, self.server, self.state = id, name, info, server, "running"
        self.texts: Optional[Tuple[str, str]] = None
        self.end_time: Optional[float] = None
        self.error = self.detail = self.result = ""

    def is_at(self, node: Optional[_Node], location: str) -> bool:
        """Whether it is or was at that node (None: any) and at the server there ('': any)."""
        if self.server is None:
            return node is None and not location
        return node in (None, self.server.node) and location in ("", self.server.location)

    def prepare(self, status: Any, show: bool) -> None:
        """It is about to end as the MonitorStatus says: make texts of that and, if these may be shown, of arguments and
        result. Runs `__str__` of the user's objects: not to be called with a lock."""
        self.texts = shown_arguments(self.info.args, self.info.kwargs) if show else ("", "")
        if status.type is StopIteration:
            self.result = shown(status.value) if show else ""
        else:
            self.error = shown(getattr(status.type, "__name__", "")) or outcome_of(status)
            self.detail = shortened(shown(status.value, 1 << 20), settings.detail_chars)

    def end(self, state: str, now: float) -> None:
        """It has ended; let go of the client's objects."""
        self.info = dispycos_lite.DispycosTaskInfo(self.info.task, (), {}, self.info.start_time)
        self.state, self.end_time = state, now

    def record(self, show: bool) -> Dict[str, Any]:
        """TASK of the API. Runs `__str__` of the user's objects, for a task that runs: not to be called with a lock."""
        info, texts = self.info, self.texts         # in this order: the texts are there before the arguments are gone
        if texts is None:
            texts = shown_arguments(info.args, info.kwargs) if show else ("", "")
        elif not show:
            texts = ("", "")
        server = self.server
        found = {"task": self.id, "name": self.name, "args": texts[0], "kwargs": texts[1], "state": self.state,
                 "start_time": info.start_time or None, "location": "" if server is None else server.location,
                 "node": "" if server is None else server.node.id}
        if self.end_time is not None:
            found.update(end_time=self.end_time, error=self.error, detail=self.detail,
                         result=self.result if show else "")
        return found


def _id_of(task: Any) -> str:
    """How viewers and older programs name a task; '' for what is none, whose `repr` might be anything."""
    return repr(task) if hasattr(task, "location") else ""


class _Places:
    """The nodes and servers of a `ClusterView`, the log, and what has been dropped of them."""

    def __init__(self) -> None:
        self.seq = 0
        self.nodes: Dict[str, _Node] = {}           # by id
        self.servers: Dict[str, _Server] = {}       # by location
        self.log: Any = deque(maxlen=settings.kept_lines)
        self._nodes_out: Any = OrderedDict()        # ids of nodes that are not in use, longest first
        self._servers_out: Any = OrderedDict()
        self._gone: Any = deque()                   # (seq, id) of nodes that were dropped
        self._floor = 0                             # seq of the last one that is not even in there any more

    def note(self, now: float, level: str, subject: str, text: str, reason: str = "") -> None:
        """Add a LINE to the log: what (`text`) became of what (`subject`), and why, if that is known."""
        self._touch(now)
        text = "%s: %s" % (text, reason) if reason else text
        self.log.append({"seq": self.seq, "time": now, "level": level, "subject": cut(subject, settings.text_chars),
                         "text": cut(text, settings.texts_chars)})

    def touch(self) -> None:
        """Something that is part of every answer has changed: a setting, what waits."""
        self.seq += 1

    def find_node(self, name: str) -> Optional[_Node]:
        """The node with that id, or name or address; of several with that name or address the first in use."""
        found = [node for node in self.nodes.values() if name in (node.name, node.addr)]
        return self.nodes.get(name) or min(found, key=lambda node: node.status in _OUT, default=None)

    def is_shared(self, name: str) -> bool:
        """Whether it is no id, but a name or address of several nodes in use."""
        return name not in self.nodes and 1 < sum(
            name in (node.name, node.addr) and node.status not in _OUT for node in self.nodes.values())

    def _touch(self, now: float, *changed: _Counts) -> None:
        self.seq += 1
        for counts in changed:
            counts.seq, counts.time = self.seq, now

    def _node(self, addr: str, port: int, name: str) -> _Node:
        """The node of that place; a new one if there is none."""
        id = repr(pycoslite.Location(addr, port)) if port else addr
        return self.nodes.get(id) or self.nodes.setdefault(id, _Node(id, name, addr, port))

    def _at(self, addr: str) -> Optional[_Node]:
        """The node in use at an address, if it is the only one."""
        found = [node for node in self.nodes.values() if node.addr == addr and node.status not in _OUT]
        return found[0] if len(found) == 1 else None

    def _server(self, location: Any) -> _Server:
        """The server at a location, also by another address of its host if only one server in use has that port."""
        server = self.servers.get(repr(location))
        if server is None:
            same = [other for other in self.servers.values()
                    if other.port == location.port and other.status not in _OUT and other.node.addr != location.addr]
            if len(same) == 1 and self._at(location.addr) is None:
                return same[0]
            node = self._home(location)
            server = self.servers[repr(location)] = _Server(repr(location), location.port, node)
            node.servers[server.location] = server
        return server

    def _home(self, location: Any) -> _Node:
        """The node that a new server belongs to; see above. Without any it is a node of which only the address is
        known."""
        def fit(node: _Node) -> tuple:
            used = sum(server.status not in _OUT for server in node.servers.values())
            return node.cpus is not None and used >= node.cpus, node.port > location.port, -node.port
        found = [node for node in self.nodes.values() if node.addr == location.addr and node.status not in _OUT]
        return min(found, key=fit) if found else self._node(location.addr, 0, location.addr)

    def _move(self, server: _Server, node: _Node, now: float) -> None:
        """A server turns out to be another node's."""
        self._touch(now, server, server.node, node)
        server.node.servers.pop(server.location, None)
        server.node = node
        node.servers[server.location] = server

    @staticmethod
    def _sort_out(out: Any, id: str, word: str) -> None:
        """Keep the list of what is not in use."""
        out.pop(id, None)
        if word in _OUT:
            out[id] = None

    def _drop_server(self, location: str) -> None:
        """Forget a server that is not in use; its tasks that still run, if any, keep it for themselves."""
        server = self.servers.pop(location)
        server.node.servers.pop(location, None)

    def _drop_node(self, id: str) -> None:
        """Forget a node that is not in use, and its servers, and remember that it was dropped."""
        for location in list(self.nodes.pop(id).servers):
            self._servers_out.pop(location, None)
            self._drop_server(location)
        self.seq += 1
        self._gone.append((self.seq, id))
        if len(self._gone) > settings.kept_nodes:
            self._floor = self._gone.popleft()[0]


class ClusterView(_Places):
    """What viewers can know; see above. `instance` tells this view from others, whose seqs mean nothing here."""

    def __init__(self, instance: str) -> None:
        super().__init__()
        self.instance = instance
        self.status = "Waiting"
        self.totals = _Counts()
        self.outcomes: Counter = Counter()
        self.counted: Any = None                    # a client's JobCounts of the whole, where it counts
        self.show_args = True
        self.running: Dict[str, _Task] = {}         # by id, in order of their start
        self.ended: Any = deque(maxlen=settings.kept_tasks)

    # -- messages ------------------------------------------------------------------------------------------------------

    def apply(self, message: Any, now: float) -> None:
        """Take in what a status task was sent at `now` (seconds since the epoch); anything else changes nothing."""
        self.take_in(message, now, self.prepare(message))

    def prepare(self, message: Any) -> Optional[_Task]:
        """The first half of `apply`, which is not to be called with a lock: it may run code of the user's. Gives what
        the second half needs."""
        if not isinstance(message, pycoslite.MonitorStatus):
            return None
        job = message.info
        if isinstance(job, dispycos_lite.PlainJob):
            where = "" if job.location is None else "@%s" % job.location
            task: Any = _Task("%s#%d%s" % (job.name, job.job_id, where), job.name,
                              dispycos_lite.DispycosTaskInfo(None, job.args, job.kwargs), None)
        else:
            task = self.running.get(_id_of(job))
        if task is not None:
            task.prepare(message, self.show_args)
        return task

    def take_in(self, message: Any, now: float, task: Optional[_Task] = None) -> None:
        """The second half of `apply`; `task` is what the first one gave."""
        if isinstance(message, dispycos_lite.DispycosStatus):
            code, info = message
            if code == _CODES.TaskStarted:
                self._on_started(info, now)
            elif code in STATUS_WORDS and isinstance(info, dispycos_lite.DispycosNodeInfo):
                self._on_node(info, STATUS_WORDS[code], message.reason, now)
            elif code - _SERVER_CODES in STATUS_WORDS and isinstance(info, pycoslite.Location):
                self._on_server(info, STATUS_WORDS[code - _SERVER_CODES], message.reason, now)
            elif code in _CLIENT_WORDS:
                self.status = _CLIENT_WORDS[code]
                self.note(now, "warning" if message.reason else "info", "computation", self.status, message.reason)
        elif isinstance(message, pycoslite.MonitorStatus):
            if task is not None:
                self._on_ended(task, message, now)
        elif isinstance(message, dispycos_lite.DispycosNodeAvailInfo):
            self._on_available(message, now)

    def take_counts(self, counts: Any, now: float) -> bool:
        """Take in a client's ClusterCounts; whether anything is new. Nodes and servers of which no message has told, or
        that are forgotten, are no concern of a viewer."""
        before = self.seq
        for place, home in counts.node_of.items():
            server, node = self.servers.get(repr(place)), self.nodes.get(repr(home))
            if server is not None and node is not None and server.node is not node:
                self._move(server, node, now)
        for records, figures in ((self.servers, counts.servers), (self.nodes, counts.nodes)):
            for place, jobs in figures.items():
                record: Any = records.get(repr(place))
                if record is not None and record.take(jobs):
                    self._touch(now, record)
        if counts.total != self.counted:
            self.counted = counts.total
            self.touch()
        return self.seq > before

    def _on_node(self, info: Any, word: str, reason: str, now: float) -> None:
        location = info.location
        node = self._node(info.addr, location.port if location is not None else 0, info.name)
        node.name, node.cpus, node.platform = cut(str(info.name), 200), info.cpus, info.platform
        node.avail = info.avail_info
        if word != node.status:
            self.note(now, _LEVELS.get(word, "info"), "node %s at %s" % (node.name, node.id), word, reason)
        node.status = word
        self._touch(now, node)
        self._sort_out(self._nodes_out, node.id, word)
        while len(self._nodes_out) > settings.kept_nodes:
            self._drop_node(self._nodes_out.popitem(last=False)[0])

    def _on_server(self, location: Any, word: str, reason: str, now: float) -> None:
        server = self._server(location)
        if word != server.status:
            self.note(now, _LEVELS.get(word, "info"), "server %s" % server.location, word, reason)
        server.status = word
        self._touch(now, server, server.node)
        self._sort_out(self._servers_out, server.location, word)
        while len(self._servers_out) > settings.kept_nodes:
            self._drop_server(self._servers_out.popitem(last=False)[0])

    def _on_started(self, info: Any, now: float) -> None:
        task_id = _id_of(info.task)
        server = self._server(info.task.location)
        if task_id in self.running:                 # relayed twice
            return
        self.running[task_id] = server.tasks[task_id] = _Task(task_id, task_id.partition("/")[0], info, server)
        for counts in (self.totals, server.node, server) if self.counted is None else ():
            counts.submitted += 1
        self._touch(now, server, server.node)

    def _on_ended(self, task: _Task, status: Any, now: float) -> None:
        """A MonitorStatus. Of a task whose start is not known here it is no business: programs relay those, too."""
        outcome = outcome_of(status)
        if isinstance(status.info, dispycos_lite.PlainJob):
            task.server = self.servers.get(repr(status.info.location))
        elif self.running.pop(task.id, None) is not task:           # told twice
            return
        else:
            self._count_end(task, outcome)
        task.end(outcome, now)
        self.ended.append(task)
        self._touch(now, *() if task.server is None else (task.server, task.server.node))
        if outcome != "done":
            what = "job" if task.info.task is None else "task"
            self.note(now, "error" if outcome == "failed" else "warning", "%s %s" % (what, task.id), outcome,
                      task.error if outcome == "failed" else task.detail)

    def _count_end(self, task: _Task, outcome: str) -> None:
        """One that ran has ended."""
        server: Any = task.server
        del server.tasks[task.id]
        if self.counted is None:
            self.outcomes[outcome] += 1
            for counts in (self.totals, server.node, server):
                counts.done += 1
                counts.failed += outcome == "failed"

    def _on_available(self, avail: Any, now: float) -> None:
        location = avail.location
        if location is not None:
            node = self.nodes.get(repr(location)) or self._at(location.addr)
            if node is not None:
                node.avail = avail
                self._touch(now, node)

    # -- answers -------------------------------------------------------------------------------------------------------

    def changed_nodes(self, seq: int) -> List[_Node]:
        """The nodes that changed after seq."""
        return [node for node in self.nodes.values() if node.seq > seq]

    def changes(self, instance: str, seq: Optional[int], host: str = "") -> Dict[str, Any]:
        """CHANGES of the API, without the settings of the site: all if `seq` cannot be continued; only of the node
        `host`, and with its servers, if that is given."""
        full = instance != self.instance or seq is None or not self._floor <= seq <= self.seq
        since = -1 if full or seq is None else seq
        nodes, servers = self.changed_nodes(since), []
        if host:
            node = self.find_node(host)
            nodes = [other for other in nodes if other is node]
            servers = [server.record() for server in node.servers.values() if server.seq > since] if node else []
        return {"instance": self.instance, "seq": self.seq, "full": full, "status": self.status,
                "show_task_args": self.show_args, "totals": self.summary(), "nodes": [node.record() for node in nodes],
                "servers": servers, "gone": [] if full else [id for when, id in self._gone if when > since]}

    def summary(self) -> Dict[str, Any]:
        """The totals of the API."""
        jobs = self.counted or dispycos_lite.JobCounts(
            self.totals.submitted, 0, len(self.running), self.totals.done,
            *(self.outcomes[outcome] for outcome in OUTCOMES[1:]))
        return {**jobs._asdict(), "pending": jobs.pending if self.counted else None,
                "nodes": sum(node.status not in _OUT for node in self.nodes.values()),
                "servers": sum(server.status not in _OUT for server in self.servers.values())}

    def tasks(self, state: str = "", host: str = "", location: str = "", text: str = "") -> Iterator[_Task]:
        """The tasks that run and the last ones that ended, newest first, as far as they match: `state` is one of the
        API's or '' for all, `host` a node, `text` occurs in the id."""
        node = self.find_node(host) if host else None
        states = {"": OUTCOMES, "ended": OUTCOMES, "running": ()}.get(state, (state,))
        running = reversed(list(self.running.values())) if state in ("", "running") else ()
        for task in itertools.chain(running, (task for task in reversed(self.ended) if task.state in states)):
            if text in task.id and task.is_at(node, location) and (node is not None or not host):
                yield task

    def sample(self) -> Dict[str, Any]:
        """A point of the history: counts so far, and what there is now; None where unknown."""
        used = [node for node in self.nodes.values() if node.status not in _OUT]
        cpu = [100 - value for value in (number(node.avail.cpu) for node in used) if value is not None]
        memory = [value for value in (number(node.avail.memory) for node in used) if value is not None]
        totals = self.summary()
        return {"done": totals["done"], "failed": totals["failed"], "running": totals["running"],
                "pending": totals["pending"], "nodes": totals["nodes"], "servers": totals["servers"],
                "cpu_used": sum(cpu) / len(cpu) if cpu else None, "memory_free": sum(memory) if memory else None}


# ======================================================================================================================
# 4. History (pure)                                                   points in equal steps, and never more than so many
# ======================================================================================================================

#
# Two histories of the same samples: the last minutes, in which a point that is too old is dropped, and the whole run,
# in which each two points become one whenever there are too many, so that a minute and a month take the same room.
#
#   samples                  1 2 3 4 5 6 7 8 9 ...          `every` = 1: each is a point
#   whole run, at 8 points   12  34  56  78  9_             `every` = 2: the next point is made of two
#
# A point is the mean of its samples, which is right for rates and for what there is at a time alike. Nothing is known
# of the time in which the machine slept: that is None, and not zero.

HISTORY_COLUMNS = ("done_rate", "failed_rate", "running", "pending", "nodes", "servers", "cpu_used", "memory_free")


def _mean(rows: List[tuple]) -> tuple:
    """One point for several: the mean of each column, of what is known of it."""
    found = []
    for column in zip(*rows):
        known = [value for value in column if value is not None]
        found.append(sum(known) / len(known) if known else None)
    return tuple(found)


class History:
    """At most `points` points, `step` seconds apart. When there are more, the oldest is dropped; with `whole` each two
    become one and the step doubles, so that it reaches back to the start."""

    def __init__(self, step: float, points: int, whole: bool, now: float) -> None:
        self.step, self.points, self.whole = step, max(points, 2), whole
        self.every = 1                              # points given for one that is kept
        self.rows: List[tuple] = []
        self.end = now                              # when the last one was
        self._open: List[tuple] = []

    def add(self, row: tuple, now: float) -> None:
        """One more point, `step` after the last."""
        self._open.append(row)
        if len(self._open) < self.every:
            return
        self.rows.append(_mean(self._open))
        self._open, self.end = [], now
        if self.whole and len(self.rows) >= self.points:
            self.rows = [_mean(self.rows[at:at + 2]) for at in range(0, len(self.rows), 2)]
            self.every *= 2
        elif len(self.rows) > self.points:
            del self.rows[0]

    def record(self) -> Dict[str, Any]:
        """HISTORY of the API."""
        columns: Iterable = zip(*self.rows) if self.rows else ((),) * len(HISTORY_COLUMNS)
        return {"now": self.end, "step": self.step * self.every, **dict(zip(HISTORY_COLUMNS, map(list, columns)))}


class Histories:
    """The recent history and that of the whole run, from samples of the view (`ClusterView.sample`)."""

    def __init__(self, now: float) -> None:
        self._step, self._last = settings.sample_s, now
        self._counts = (0, 0)
        self.scopes = {"recent": History(self._step, settings.samples, False, now),
                       "run": History(self._step, 2 * settings.samples, True, now)}

    def due(self, now: float) -> bool:
        """Whether it is time for the next sample; also when the clock was set back."""
        return not self._last <= now < self._last + self._step

    def add(self, sample: Dict[str, Any], now: float) -> None:
        """Take a sample that is due. Steps that were missed (the machine slept) are points at which nothing is known;
        as many of them as can matter."""
        passed_s = max(now - self._last, self._step)
        steps = int(passed_s / self._step)
        counts = (sample["done"], sample["failed"])
        rates = tuple((new - old) / passed_s for new, old in zip(counts, self._counts))
        self._last, self._counts = now, counts
        row = rates + tuple(sample[name] for name in HISTORY_COLUMNS[2:])
        unknown = (None,) * len(row)
        for history in self.scopes.values():
            for _ in range(min(steps - 1, history.points * history.every)):
                history.add(unknown, now)
            history.add(row, now)


# ======================================================================================================================
# 5. Requests (pure)                                                                  who may ask what, decided by table
# ======================================================================================================================
#
# A page of another site can make the browser of somebody who is signed in send requests here, and a name of another
# site may be made to mean this machine's address (DNS rebinding). So, in this order, all before the body is read:
#
#   Host             exactly one; the address the connection came to, localhost, or a name that was allowed: else 403
#   Origin           if the browser says whose page asks, it must be one of this Host: else 403. (https will do for
#                    http: a proxy may be what speaks TLS)
#   Sec-Fetch-Site   same-origin, or none (typed, or a bookmark); pages may be opened from elsewhere: else 403
#   sign-in          by cookie or Authorization, for whatever has data in it: else 401
#   POST             the header X-Pycoslite-Token, which no other site's page can send or know: else 403
#
# The order matters: a foreign site is not told whether somebody is signed in.
#
# Each of them alone would do against what browsers do today; older ones do not say where a request comes from, and a
# cookie that is SameSite=Strict still goes along with requests of pages at other ports of this host. What cookies do
# not keep out are other servers on the same host name that the viewer visits: browsers send them the cookie, too. Who
# has to share a host with such people opens the monitor by a name of its own.
#
# A header that is there twice, a body whose length is not clear, a request that ends early: refused rather than
# guessed, as a proxy in front may have guessed otherwise.

TOKEN_HEADER = "X-Pycoslite-Token"
SECURITY_HEADERS = (
    ("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
     "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    ("X-Content-Type-Options", "nosniff"), ("X-Frame-Options", "DENY"), ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"), ("Cross-Origin-Opener-Policy", "same-origin"))
"""Headers of every answer."""
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")
_ALONE = ("host", "origin", "content-length", "content-type", "authorization", "sec-fetch-site", "transfer-encoding")


class Request(NamedTuple):
    """One request: `path` without query, `headers` by name in small letters, fields of query and body, and of the
    connection whether it is encrypted (`secure`) and the address it came to (`local`)."""

    method: str
    path: str
    headers: Dict[str, str]
    fields: Dict[str, List[str]]
    secure: bool = False
    local: str = "127.0.0.1"
    session: Any = None                 # set once it is known

    def field(self, *names: str, default: str = "") -> str:
        """The first value of the first of these fields that is there."""
        return next((self.fields[name][0] for name in names if self.fields.get(name)), default)

    def number(self, name: str, default: float, least: float, most: float) -> float:
        """A field as a number within limits; the default if it is missing or none."""
        try:
            value = float(self.field(name))
        except ValueError:
            return default
        return min(max(value, least), most) if math.isfinite(value) else default


class Response(NamedTuple):
    """One answer: `body` as it goes out, or `stream`, an iterator of parts that goes on."""

    status: int = 200
    type: str = "application/json; charset=utf-8"
    body: bytes = b""
    headers: Tuple[Tuple[str, str], ...] = (("Cache-Control", "no-store"),)
    stream: Optional[Iterator[bytes]] = None


def to_json(value: Any) -> bytes:
    """JSON that any reader takes: ASCII, and no NaN. Pure."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def answer(value: Any, status: int = 200) -> Response:
    """An answer with `value` as JSON."""
    return Response(status, body=to_json(value))


def refusal(error: Refusal) -> Response:
    """The answer to a request that was refused."""
    return answer({"error": str(error)}, error.status)


def joined_headers(pairs: Iterable[Tuple[str, str]]) -> Dict[str, str]:
    """Headers by name in small letters. Raises Refusal where one that decides something is there twice, as two readers
    would take it for two things."""
    found: Dict[str, str] = {}
    for name, value in pairs:
        name = name.lower()
        if name in found and name in _ALONE:
            raise Refusal(400, "the header %s is there more than once" % name)
        found[name] = found[name] + ", " + value if name in found else value.strip()
    return found


def is_address(host: str) -> bool:
    """Whether it is a numeric address. Pure."""
    try:
        return bool(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        return False


def check_source(request: Request, names: Iterable[str], is_page: bool) -> None:
    """Raise Refusal unless the request comes from where it may; see the table above. `names` are the hosts allowed
    besides addresses; `is_page`: what is asked for may be opened from anywhere."""
    host = request.headers.get("host", "")
    found = _HOST.fullmatch(host)
    name = found.group(1).strip("[]").lower() if found else ""
    own = {"localhost", "127.0.0.1", "::1", request.local.partition("%")[0], *names}
    if name not in own:
        raise Refusal(403, "this monitor is not known as %s: open it by its address, or name that host in "
                           "HTTPServer(hosts=[...])" % (cut(repr(host), 80) if host else "a host without a name"))
    origin, schemes = request.headers.get("origin"), ("https",) if request.secure else ("http", "https")
    if origin is not None and origin.lower() not in ["%s://%s" % (scheme, host.lower()) for scheme in schemes]:
        raise Refusal(403, "requests of pages of other sites are refused (Origin %s)" % cut(repr(origin), 80))
    site = request.headers.get("sec-fetch-site", "none")
    opened = is_page and request.method in ("GET", "HEAD") and request.headers.get("sec-fetch-mode") == "navigate"
    if site not in ("none", "same-origin") and not opened:
        raise Refusal(403, "requests of pages of other sites are refused (Sec-Fetch-Site %s)" % cut(repr(site), 80))


def body_length(method: str, headers: Dict[str, str]) -> int:
    """Bytes of the body that follows the header. Raises Refusal unless that is clear, allowed and short enough."""
    if "transfer-encoding" in headers:
        raise Refusal(411, "the body must come with its length (Content-Length), and in one piece")
    text = headers.get("content-length", "0")
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise Refusal(400, "the Content-Length is not a number")
    if int(text) > settings.http_body_bytes:
        raise Refusal(413, "the body is longer than %d bytes" % settings.http_body_bytes)
    if int(text) and method != "POST":
        raise Refusal(400, "only a POST may have a body")
    return int(text)


def parse_fields(text: str, what: str = "query") -> Dict[str, List[str]]:
    """Fields of a query or a form. Raises Refusal when there are too many, or they are no UTF-8."""
    try:
        return urllib.parse.parse_qs(text, keep_blank_values=True, errors="strict", max_num_fields=1000)
    except ValueError as error:
        raise Refusal(400, "the %s cannot be read: %s" % (what, cut(str(error), 80))) from None


def parse_body(kind: str, body: bytes) -> Dict[str, List[str]]:
    """Fields of a body of the Content-Type `kind`, a form if that is not given; see the API. Raises Refusal."""
    kind = kind.partition(";")[0].strip().lower()
    try:
        text = body.decode("utf-8")
        if kind in ("application/x-www-form-urlencoded", ""):
            return parse_fields(text, "form")
        value = json.loads(text) if kind == "application/json" else None
    except (ValueError, RecursionError):
        raise Refusal(400, "the body is no UTF-8, or not the %s it says" % (cut(kind, 80) or "form")) from None
    if not isinstance(value, dict):
        raise Refusal(415 if value is None else 400, "the body must be a form, or a JSON object of fields")
    return {name: [item if isinstance(item, str) else json.dumps(item) for item in
                   (found if isinstance(found, list) else [found])] for name, found in value.items()}


def listed(request: Request, name: str) -> List[str]:
    """Values of a field that is a list in JSON, or repeated. Raises Refusal for what is neither."""
    values: Any = request.fields.get(name, [])
    if len(values) == 1 and values[0][:1] == "[" and not _HOST.fullmatch(values[0]):     # else an IPv6 address
        try:
            values = json.loads(values[0])
        except (ValueError, RecursionError):
            raise Refusal(400, "%s is not a list in JSON" % name) from None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise Refusal(400, "%s is not a list of texts" % name)
    return values


# ======================================================================================================================
# 6. Site                                                                                     what all connections share
# ======================================================================================================================
#
# Which thread does what:
#
#   user kernel           feeds the view (`feed`), and carries out what viewers want done (`_do`)
#   listener              takes samples for the history; asks the client for its figures while anybody waits for news
#   connections           ask (the client for its figures, too), wait for changes, leave word with the user kernel
#
# Messages come by themselves, the client's figures have to be asked for (`refresh`): there may be ten thousand jobs a
# second, and nobody who looks.
#
# `changed` is the lock of everything here and in the view, and what streams wait at. It is held for building records,
# never for `str` of users' objects, for JSON or for writing: a message costs the user kernel some microseconds, however
# many viewers there are and however slow their lines.
#
# What viewers want done is done in a task of the program, since that is where a client's methods belong; so it waits
# until the program's other tasks yield, and a viewer is told when that takes long.

_ACT_S = 5.0                            # the program's tasks come round within that, or the viewer is told
_WAIT_S = 25.0                          # longest wait of api/changes: proxies cut what is silent for longer
_STALE_PULSES = 3                       # a node that has missed so many reports is shown as stale
NO_POLL = 0.0                           # poll_sec of a page that does not refresh by itself


class Site:
    """The view, who may see it, and what viewers can do. Any thread, unless a method says else.

    `computation` is the client whose nodes can be suspended, None for one that only sends messages. `token` opens the
    site, `names` are the hosts it may be called by.
    """

    def __init__(self, computation: Any, token: str, names: Iterable[str], poll_sec: float, read_only: bool) -> None:
        self.computation, self.names, self.read_only = computation, frozenset(names), read_only
        self.poll_sec = poll_sec                    # seconds; NO_POLL: pages do not refresh by themselves
        self.started = time.time()
        self.cookie = ""                            # its name; set when the port is known
        self.secure = False                         # with TLS
        self.pages: Dict[str, Any] = {}
        self.changed = threading.Condition()        # guards: all below
        self.closing = threading.Event()
        self.view = ClusterView(secrets.token_hex(8))
        self._counts = getattr(computation, "counts", None)     # None: figures follow from messages
        self._asking = threading.Lock()             # guards: the order of figures; taken before `changed`
        self.asked = False                          # somebody who is signed in has looked
        self.statuses: Counter = Counter()          # answers, by status of HTTP
        self.streams = self.connections = 0
        self.waiting = 0                            # requests that wait for a change
        self._token = token.encode()
        self._signed_out: Any = deque(maxlen=settings.http_readers)     # sessions that are over
        self._readers: Any = OrderedDict()          # of cluster_updates -> seq they have seen
        self._histories = Histories(self.started)

    # -- messages ------------------------------------------------------------------------------------------------------

    def feed(self, message: Any) -> None:
        """Take in a message of the kind that status tasks are sent."""
        task = self.view.prepare(message)
        with self.changed:
            self.view.take_in(message, time.time(), task)
            self.changed.notify_all()

    def refresh(self) -> None:
        """Ask the client how many jobs there were; who waits for changes is told if that is news."""
        with self._asking:
            if self._counts is None:
                return
            try:
                counts = self._counts()
            except Exception as error:              # the client's fault: what the listener does besides must go on
                pycoslite.log.error("monitor: no more figures of jobs from now on: %r", error, exc_info=True)
                self._counts = None
                return
            with self.changed:
                if self.view.take_counts(counts, time.time()):
                    self.changed.notify_all()

    def plain_jobs(self, location: str) -> List[str]:
        """What runs at a server without a task, as far as anybody here knows."""
        if self._counts is None:
            return []
        jobs = self.computation.plain_jobs(pycoslite.Location.parse(location))
        return ["%s#%d" % (cut(job.name, settings.text_chars), job.job_id) for job in jobs]

    def look(self) -> None:
        """See what is new, for those who wait for that; add to the history, if it is time to."""
        now = time.time()
        due = self._histories.due(now)
        if due or self.streams or self.waiting:
            self.refresh()
        if due:
            with self.changed:
                self._histories.add(self.view.sample(), now)

    def close(self) -> None:
        """End the streams, and answer nothing that takes long."""
        self.closing.set()
        with self.changed:
            self.changed.notify_all()

    # -- who asks ------------------------------------------------------------------------------------------------------

    # A cookie is a random number and its MAC by the token: there is no table of sessions that strangers could fill, and
    # with a token that stays the same so do they when the program starts anew.

    def sign_in(self, token: str) -> str:
        """The value of a new session's cookie. Raises Refusal for a wrong token."""
        if not self._is_token(token):
            raise Refusal(403, "that is not this monitor's token: it is at the end of the URL in the program's log")
        nonce = secrets.token_hex(16)
        return "%s.%s" % (nonce, self._mac("cookie", nonce))

    def cookie_header(self, value: str, more: str) -> str:
        """A Set-Cookie header: scripts cannot read it, and other sites' requests do not bring it along."""
        return "%s=%s; Path=/; HttpOnly; SameSite=Strict%s%s" % (
            self.cookie, value, "; Secure" if self.secure else "", more)

    def sign_out(self, request: Request) -> None:
        """The session of that request is over; of so many, the last ones are remembered."""
        key = self.key_of(request)
        if key:
            self._signed_out.append(key)

    def _is_token(self, token: str) -> bool:
        return secrets.compare_digest(token.encode("utf-8", "replace"), self._token)

    def _mac(self, purpose: str, text: str) -> str:
        return hashlib.blake2b(("%s %s" % (purpose, text)).encode(), key=hashlib.sha256(self._token).digest(),
                               digest_size=32).hexdigest()

    def key_of(self, request: Request) -> str:
        """What names the session that a request's cookie belongs to, '' without a good one."""
        found = re.search(r"(?:^|;)\s*%s=([0-9a-f]{32})\.([0-9a-f]{64})(?:;|$)" % re.escape(self.cookie),
                          request.headers.get("cookie", ""))
        if found is None or not secrets.compare_digest(found.group(2), self._mac("cookie", found.group(1))):
            return ""
        return found.group(1) if found.group(1) not in self._signed_out else ""

    def csrf_of(self, request: Request) -> str:
        """What the pages of that request's session send along with a POST; '' for a program, which needs none."""
        key = self.key_of(request)
        return self._mac("csrf", key) if key else ""

    def check_signed_in(self, request: Request, posts: bool) -> None:
        """Raise Refusal unless the request comes from somebody who is signed in and, if it `posts`, from one of our own
        pages. A program's Authorization header is proof of both."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(token.strip()):
            self.asked = True
            return
        csrf = self.csrf_of(request)
        if not csrf:
            raise Refusal(401, "sign in first: open the URL that the program has logged, with its token")
        given = request.headers.get(TOKEN_HEADER.lower(), "")
        if posts and not secrets.compare_digest(given.encode("utf-8", "replace"), csrf.encode()):
            raise Refusal(403, "the header %s is missing or old: reload the page" % TOKEN_HEADER)
        self.asked = True

    # -- what they see -------------------------------------------------------------------------------------------------

    def changes(self, request: Request, instance: str, seq: Optional[int]) -> Dict[str, Any]:
        """CHANGES of the API."""
        self.refresh()
        with self.changed:
            found = self.view.changes(instance, seq, request.field("host"))
        return {**found, "now": time.time(), "poll_sec": self.poll_sec}

    def wait(self, seq: int, wait_s: float) -> bool:
        """Wait until something has changed after `seq`; whether it has."""
        with self.changed:
            self.waiting += 1
            self.changed.wait_for(lambda: self.view.seq > seq or self.closing.is_set(), wait_s)
            self.waiting -= 1
            return self.view.seq > seq

    def updates(self, reader: str) -> List[dict]:
        """What cluster_updates gives that reader: nodes that changed since its last call."""
        self.refresh()
        with self.changed:
            nodes = self.view.changed_nodes(self._readers.pop(reader, -1))
            self._readers[reader] = self.view.seq
            while len(self._readers) > settings.http_readers:
                self._readers.popitem(last=False)
            return [node.documented() for node in nodes]

    def history(self, scope: str) -> Dict[str, Any]:
        """HISTORY of the API. Raises Refusal for an unknown scope."""
        with self.changed:
            if scope not in self._histories.scopes:
                raise Refusal(400, "scope is recent or run, not %s" % cut(repr(scope), 80))
            return self._histories.scopes[scope].record()

    def texts(self, tasks: Iterable[_Task]) -> List[dict]:
        """Records of tasks that were picked with the lock held; without it, as users' code may run."""
        show = self.view.show_args
        return [task.record(show) for task in tasks]

    def set_up(self, poll_sec: Optional[float], show_args: Optional[bool]) -> None:
        """Change settings that all viewers share; None leaves one as it is."""
        with self.changed:
            if poll_sec is not None:
                self.poll_sec = poll_sec
            if show_args is not None:
                self.view.show_args = show_args
            self.view.touch()
            self.changed.notify_all()

    # -- what they do --------------------------------------------------------------------------------------------------

    def terminate(self, ids: List[str]) -> List[str]:
        """End tasks; the ids of those that run."""
        with self.changed:
            tasks = [self.view.running[id] for id in dict.fromkeys(ids) if id in self.view.running]
        return self._do("terminate", [(task.id, task.info.task.terminate) for task in tasks])

    def change_nodes(self, method: str, names: List[str]) -> List[str]:
        """Call that method of the client for nodes; the names of those that it has done something about. Raises Refusal
        for a name or address that may mean several."""
        with self.changed:
            found = [(name, self.view.find_node(name)) for name in dict.fromkeys(names)]
            for name, node in found:
                if node is not None and self.view.is_shared(name):
                    raise Refusal(409, "several nodes have the name or address %s: say which by its id, address:port" %
                                  cut(repr(name), 80))
            wanted = [(name, pycoslite.Location(node.addr, node.port) if node.port else node.addr)
                      for name, node in found if node is not None]
        return self._do(method, [(name, self._call(method, where)) for name, where in wanted])

    def change_servers(self, method: str, names: List[str]) -> List[str]:
        """The same for servers, by their locations."""
        with self.changed:
            known = [name for name in dict.fromkeys(names) if name in self.view.servers]
        return self._do(method, [(name, self._call(method, pycoslite.Location.parse(name))) for name in known])

    def can_act(self) -> bool:
        """Whether viewers can change anything here."""
        return hasattr(self.computation, "suspend_node") and not self.read_only

    def _call(self, method: str, where: Any) -> Callable[[], Any]:
        if not hasattr(self.computation, method):
            raise Refusal(409, "this monitor has no client to act through: it was made by HTTPServer() without one, or "
                               "for a Cluster")
        return lambda: getattr(self.computation, method)(where)

    def _do(self, what: str, calls: List[Tuple[str, Callable[[], Any]]]) -> List[str]:
        """Make those calls in a task of the program, where clients' methods belong; the names of those that give 0.
        Raises Refusal when the program's tasks do not come round to it."""
        def act(task: Any = None) -> Iterator:
            task.set_daemon()
            return [name for name, call in calls if call() == 0]
            yield
        if not calls or self.closing.is_set():
            return []
        done = pycoslite.Task(act).value(_ACT_S)
        if not isinstance(done, list):
            raise Refusal(503, "the program's tasks have not come round to it so far: it is done when they do")
        with self.changed:
            for name in done:
                self.view.note(time.time(), "info", name, what, "a viewer asked for it")
            self.changed.notify_all()
        return done


# ======================================================================================================================
# 7. Pages                                                                 files read once, and then found by name alone
# ======================================================================================================================
#
# All files that can be asked for are in one table from the start; a request's path is a key of it and never becomes
# part of a file's name, so there is no way to write one that leads elsewhere. The built-in ones are package data: they
# are read by what has imported this module, and so also from a zip file.
#
# Pages say what is their own, and begin with their title; what comes before and after in all of them is in frame.html
# once (`framed`). Its holes: {{title}}, {{name}} (of the page's script), {{page}}.
#
# A DocumentRoot is a directory whose files take the place of the built-in ones, or come in addition; its pages may be
# whole documents, or begin with their title. Links that lead out of it are left out; what is changed later is not seen.
# Only files of `_TYPES` are shown, so that one that happens to lie there (a key, a backup) is not.

STATIC_FILES = (
    "cluster.html", "history.html", "node.html", "server.html", "signin.html", "style.css", "icon.svg", "favicon.ico",
    "api.js", "chart.js", "cluster.js", "format.js", "history.js", "live.js", "node.js", "page.js", "server.js",
    "signin.js", "table.js", "timeline.js")
"""The built-in files, in the directory static/ beside this module, where _FRAME is, too."""
_FRAME = "frame.html"
_TITLE = re.compile(rb"<title>([^<]*)</title>\n")
_HOLE = re.compile(rb"{{(title|name|page)}}")
_TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8",
          ".js": "text/javascript; charset=utf-8", ".json": "application/json", ".svg": "image/svg+xml",
          ".png": "image/png", ".ico": "image/x-icon", ".txt": "text/plain; charset=utf-8"}
"""Suffixes of the files that are shown."""
_HOME_PAGE = "/cluster.html"
_FILES_MOST, _FILE_BYTES = 500, 4 << 20         # of a DocumentRoot


class Page(NamedTuple):
    """A file that can be asked for."""

    type: str
    body: bytes

    def served(self, site: Site, request: Request) -> Response:
        """It as an answer: nothing if the browser has it already. Those with text are looked after each time, as a day
        of old scripts with a new API is no good; icons are kept for a day."""
        body = self.body
        if self.type.startswith("text/html"):
            body = body.replace(b"{{poll_sec}}", b"%g" % site.poll_sec)
            body = body.replace(b"{{show_task_args}}", to_json(site.view.show_args))
        tag = '"%s"' % hashlib.sha256(body).hexdigest()[:32]
        lasting = "max-age=86400" if self.type.startswith("image/") else "no-cache"
        headers = (("Cache-Control", lasting), ("ETag", tag))
        if tag in request.headers.get("if-none-match", ""):
            return Response(304, self.type, b"", headers)
        return Response(200, self.type, body, headers)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def framed(name: str, body: bytes, frame: bytes) -> bytes:
    """The document for a file of that name: what begins with a title gets the frame around it, unless it lies deeper,
    where the frame's links lead nowhere. Pure."""
    found = _TITLE.match(body)
    if found is None or "/" in name:
        return body
    link = b'<a href="%s">' % name.encode()
    filling = {b"title": found.group(1), b"name": os.path.splitext(name)[0].encode(), b"page": body[found.end():]}
    return _HOLE.sub(lambda hole: filling[hole.group(1)], frame.replace(link, link[:-1] + b' aria-current="page">'))


def _built_in(name: str) -> bytes:
    """A file in static/, b"" if it is not there."""
    try:
        return __spec__.loader.get_data(os.path.join(os.path.dirname(__file__), "static", name))        # type: ignore
    except OSError:
        return b""


def built_in_pages() -> Dict[str, Page]:
    """The pages that belong to this module, by path. Those that are not there are left out: copying the modules without
    static/ gives the API without pages."""
    files, frame = [(name, _built_in(name)) for name in STATIC_FILES], _built_in(_FRAME)
    return {"/" + name: Page(_TYPES[_suffix(name)], framed(name, body, frame)) for name, body in files if body}


def document_root_pages(root: str) -> Dict[str, Page]:
    """The pages in a directory, by path. Raises MisuseError when it is none, or has more than a monitor can need."""
    if not os.path.isdir(root):
        raise pycoslite.MisuseError("HTTPServer(): DocumentRoot=%r is not a directory" % root)
    found: Dict[str, Page] = {}
    frame = _built_in(_FRAME)
    for folder, _, names in os.walk(root):
        for name in sorted(names):
            path = os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")
            if _suffix(name) in _TYPES:
                body = _read_below(root, path)
                if body is not None:
                    found["/" + path] = Page(_TYPES[_suffix(name)], framed(path, body, frame))
                if len(found) > _FILES_MOST:
                    raise pycoslite.MisuseError("HTTPServer(): there are more than %d pages, styles and scripts in "
                                                "DocumentRoot=%r: name a directory of its own" % (_FILES_MOST, root))
    return found


def _read_below(root: str, path: str) -> Optional[bytes]:
    """A file of a DocumentRoot, None (with a line in the log) for one that is not shown."""
    try:
        real = pycoslite.confined_path(root, path)
        if os.path.isfile(real) and os.path.getsize(real) <= _FILE_BYTES:
            with open(real, "rb") as file:
                return file.read(_FILE_BYTES)
        reason = "it is no file of at most %d bytes" % _FILE_BYTES
    except (OSError, pycoslite.MisuseError) as error:
        reason = str(error)
    pycoslite.log.warning("monitor: %s of the DocumentRoot is not shown: %s", path, reason)
    return None


# ======================================================================================================================
# 8. Answers                                                                      one function for each path, in a table
# ======================================================================================================================
#
# Each takes the site and the request, and gives a Response or raises Refusal. `ROUTES` below them says what is needed
# to ask: nothing (OPEN), being signed in (READ), or that and a monitor that is not `read_only` (CHANGE). Every POST
# needs the token header besides, reading by POST, too: there is one rule for all of them. What is not in the table, and
# no page, is not there.
#
# An answer is built with the lock, from records; it is made JSON without it.

OPEN, READ, CHANGE = "open", "read", "change"


def _session(site: Site, request: Request) -> Response:
    """What a page needs to know before it asks for anything else; also where it gets its token for POSTs."""
    name = "" if site.computation is None else cut(repr(site.computation), 200)
    return answer({
        "csrf": site.csrf_of(request), "instance": site.view.instance, "version": pycoslite.__version__, "name": name,
        "started": site.started, "now": time.time(), "poll_sec": site.poll_sec, "show_task_args": site.view.show_args,
        "alive_sec": settings.http_alive_s, "stale_sec": _STALE_PULSES * 5 * dispycos_lite.MinPulseInterval,
        "read_only": site.read_only, "can_act": site.can_act()})


def _sign_in(site: Site, request: Request) -> Response:
    """The token for a cookie. Everybody may try: 256 bits cannot be guessed, so there is nothing to count."""
    return _with_cookie(site.cookie_header(site.sign_in(request.field("token")), ""))


def _sign_out(site: Site, request: Request) -> Response:
    """The end of a session; the browser is told to forget the cookie, and we do not take it any more."""
    site.sign_out(request)
    return _with_cookie(site.cookie_header("", "; Max-Age=0"))


def _with_cookie(header: str) -> Response:
    empty = answer({})
    return empty._replace(headers=(*empty.headers, ("Set-Cookie", header)))


def _seq(request: Request) -> Optional[int]:
    """The seq that a request goes on from; None for one that is none, which is then told everything."""
    text = request.field("seq")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _changes(site: Site, request: Request) -> Response:
    """What is new since a seq (V21): for pages that cannot have a stream, and for programs."""
    instance, seq = request.field("instance"), _seq(request)
    wait_s = request.number("wait", 0, 0, _WAIT_S)
    if wait_s and seq is not None and instance == site.view.instance:
        site.wait(seq, wait_s)
    return answer(site.changes(request, instance, seq))


def _event(kind: str, data: dict) -> bytes:
    """An event as the stream carries it: one line of JSON has no line ends that would have to be escaped."""
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), to_json(data))


def _rest(site: Site, seq: int, quiet_s: float, most_s: float) -> None:
    """Wait until something has changed since `seq`, for `most_s` at most: while `quiet_s` lasts, whatever changes."""
    if quiet_s > 0:
        site.closing.wait(min(quiet_s, most_s))
    else:
        site.wait(seq, most_s)


def _stream(site: Site, request: Request, interval: float) -> Iterator[bytes]:
    """The events for one viewer; see the head of this module. Ends with the site."""
    found = site.changes(request, "", None)
    yield _event("full", found)
    clock, alive_s = time.monotonic, settings.http_alive_s
    due = (told := clock()) + interval
    while not site.closing.is_set():
        left_s = max(told + alive_s - clock(), 0.0)
        _rest(site, found["seq"], due - clock(), left_s)
        if clock() >= due and site.view.seq > found["seq"]:
            found = site.changes(request, found["instance"], found["seq"])
            yield _event("change", found)
            due = (told := clock()) + interval
        elif clock() >= told + alive_s:
            yield _event("alive", {"now": time.time()})
            told = clock()


def _events(site: Site, request: Request) -> Response:
    """A stream of changes; see `_stream`."""
    interval = request.number("interval", site.poll_sec or 1.0, 0.2, 3600)
    if site.streams >= settings.http_streams:
        raise Refusal(503, "%d streams are open already: ask api/changes from time to time" % site.streams)
    return Response(200, "text/event-stream; charset=utf-8", stream=_stream(site, request, interval))


def _history(site: Site, request: Request) -> Response:
    """Points for charts."""
    return answer(site.history(request.field("scope", default="recent")))


def _tasks(site: Site, request: Request) -> Response:
    """Tasks that run and those that ended last, newest first. Their texts are made without the lock."""
    state, limit = request.field("state"), int(request.number("limit", 100, 0, 1000))
    if state not in ("", "running", "ended", *OUTCOMES):
        raise Refusal(400, "state is running, ended, %s, not %s" % (", ".join(OUTCOMES), cut(repr(state), 80)))
    with site.changed:
        found = list(site.view.tasks(state, *(request.field(name) for name in ("host", "location", "text"))))
    return answer({"count": len(found), "tasks": site.texts(found[:limit])})


def _log(site: Site, request: Request) -> Response:
    """Lines of the log after a seq; of more than `limit` the newest."""
    after, limit = request.number("after", 0, 0, 1e18), int(request.number("limit", 200, 1, settings.kept_lines))
    with site.changed:
        return answer({"seq": site.view.seq, "log": [line for line in site.view.log if line["seq"] > after][-limit:]})


def _cluster_status(site: Site, request: Request) -> Response:
    """W09: all nodes."""
    site.refresh()
    with site.changed:
        found = [node.documented() for node in site.view.nodes.values()]
    return answer(found)


def _cluster_updates(site: Site, request: Request) -> Response:
    """W10: the nodes that changed since this reader asked last; each cookie and name is one (V21)."""
    return answer(site.updates(repr((site.key_of(request), cut(request.field("reader"), 200)))))


def _node_info(site: Site, request: Request) -> Response:
    """W11: a node and its servers."""
    site.refresh()
    with site.changed:
        node = site.view.find_node(request.field("host"))
        found = {} if node is None else {
            **node.record(), "servers": [server.record() for server in node.servers.values()]}
    return answer(found)


def _server_info(site: Site, request: Request) -> Response:
    """W12: a server and the tasks that it runs, the longest first."""
    limit = int(request.number("limit", 0, -1, 1e9))
    site.refresh()
    with site.changed:
        server = site.view.servers.get(request.field("location"))
        found = {} if server is None else server.record()
        tasks = [] if server is None else list(itertools.islice(server.tasks.values(), limit if limit > 0 else None))
    if found:
        found["tasks"] = site.texts(tasks)
        found["jobs"] = site.plain_jobs(server.location)[:limit if limit > 0 else None]
    return answer(found)


def _update(site: Site, request: Request) -> Response:
    """W14: settings that all viewers share. What is no number, or not there, is left as it is."""
    poll_sec: Optional[float] = request.number("timeout", -1, 0, 86400)
    if "timeout" not in request.fields or poll_sec == -1:
        poll_sec = None
    elif poll_sec < 1:
        poll_sec = NO_POLL
    show = request.field("show_task_args", "show_coro_args")
    site.set_up(poll_sec, show.lower() == "true" if show else None)
    return Response(200, "text/plain; charset=utf-8")


def _terminate_tasks(site: Site, request: Request) -> Response:
    """W13, in both generations of its name."""
    return answer(site.terminate(listed(request, "task") + listed(request, "coro")))


def _on_nodes(method: str) -> Callable:
    """W15 and W16: a function for a path, which calls that method of the client for each node."""
    return lambda site, request: answer(site.change_nodes(method, listed(request, "nodes")))


def _on_servers(method: str) -> Callable:
    """W17 and W18: the same for servers."""
    return lambda site, request: answer(site.change_servers(method, listed(request, "servers")))


def _label(value: Any) -> str:
    """A label's value in the metrics."""
    return str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _metric(name: str, kind: str, text: str, values: Iterable[Tuple[dict, Any]]) -> Iterator[str]:
    """One metric, with all its series; those whose value is unknown are left out."""
    yield "# HELP pycoslite_%s %s" % (name, text)
    yield "# TYPE pycoslite_%s %s" % (name, kind)
    for labels, value in values:
        if value is not None:
            shown_labels = ",".join('%s="%s"' % (label, _label(found)) for label, found in labels.items())
            yield "pycoslite_%s%s %s" % (name, "{%s}" % shown_labels if labels else "", value)


_NODE_METRICS = (
    ("cpu_free_percent", "Free CPU.", lambda node: node["avail_info"]["cpu"]),
    ("memory_free_bytes", "Free memory.", lambda node: node["avail_info"]["memory"]),
    ("disk_free_bytes", "Free disk space where tasks write.", lambda node: node["avail_info"]["disk"]),
    ("swap_free_percent", "Free swap.", lambda node: node["avail_info"]["swap"]),
    ("servers", "Server processes in use.", lambda node: node["servers"]),
    ("tasks_running", "Jobs that run.", lambda node: node["tasks_running"]),
    ("update_time_seconds", "When the node was last heard of.", lambda node: node["update_time"]))
"""Gauges per node: name, help, how its NODE has it."""


def _metrics(site: Site, request: Request) -> Response:
    """All figures for Prometheus. Counters never go down, as long as the program lives."""
    site.refresh()
    with site.changed:
        totals, nodes = site.view.summary(), [node.record() for node in site.view.nodes.values()]
        statuses, streams, connections = sorted(site.statuses.items()), site.streams, site.connections
    words = Counter(node["status"] for node in nodes)
    lines = [
        _metric("tasks_submitted_total", "counter", "Jobs that were handed in.", [({}, totals["submitted"])]),
        _metric("tasks_ended_total", "counter", "Jobs that have ended, by outcome.",
                [({"outcome": "done"}, totals["done"] - sum(totals[name] for name in OUTCOMES[1:]))]
                + [({"outcome": name}, totals[name]) for name in OUTCOMES[1:]]),
        _metric("tasks_running", "gauge", "Jobs that run.", [({}, totals["running"])]),
        _metric("tasks_pending", "gauge", "Jobs that have not begun.", [({}, totals["pending"])]),
        _metric("servers", "gauge", "Server processes in use.", [({}, totals["servers"])]),
        _metric("nodes", "gauge", "Nodes, by status.", [({"status": word}, words[word]) for word in sorted(words)]),
        *(_metric("node_" + name, "gauge", text, [({"node": node["name"], "id": node["id"]}, value(node))
                                                  for node in nodes if node["status"] not in _OUT])
          for name, text, value in _NODE_METRICS),
        _metric("monitor_answers_total", "counter", "Answers of the monitor, by status of HTTP.",
                [({"status": status}, count) for status, count in statuses]),
        _metric("monitor_connections", "gauge", "Open connections to the monitor.", [({}, connections)]),
        _metric("monitor_streams", "gauge", "Viewers that are told of changes.", [({}, streams)]),
        _metric("monitor_start_time_seconds", "gauge", "When the monitor was started.", [({}, site.started)])]
    text = "\n".join(itertools.chain.from_iterable(lines)) + "\n"
    return Response(200, "text/plain; version=0.0.4; charset=utf-8", text.encode("utf-8", "replace"))


class Route(NamedTuple):
    """What answers a path, and what is needed to ask."""

    function: Callable[[Site, Request], Response]
    needs: str = READ


ROUTES: Dict[Tuple[str, str], Route] = {
    ("POST", "/api/sign_in"): Route(_sign_in, OPEN),
    ("POST", "/api/sign_out"): Route(_sign_out, CHANGE),
    ("GET", "/api/session"): Route(_session),
    ("GET", "/api/changes"): Route(_changes),
    ("GET", "/api/events"): Route(_events),
    ("GET", "/api/history"): Route(_history),
    ("GET", "/api/tasks"): Route(_tasks),
    ("GET", "/api/log"): Route(_log),
    ("GET", "/metrics"): Route(_metrics),
    ("GET", "/cluster_status"): Route(_cluster_status),
    ("GET", "/cluster_updates"): Route(_cluster_updates),
    ("GET", "/node_info"): Route(_node_info),
    ("POST", "/node_info"): Route(_node_info),
    ("GET", "/server_info"): Route(_server_info),
    ("POST", "/server_info"): Route(_server_info),
    ("POST", "/update"): Route(_update, CHANGE),
    ("POST", "/terminate_tasks"): Route(_terminate_tasks, CHANGE),
    ("POST", "/terminate_coros"): Route(_terminate_tasks, CHANGE),
    ("POST", "/suspend_node"): Route(_on_nodes("suspend_node"), CHANGE),
    ("POST", "/resume_node"): Route(_on_nodes("resume_node"), CHANGE),
    ("POST", "/suspend_server"): Route(_on_servers("suspend_server"), CHANGE),
    ("POST", "/resume_server"): Route(_on_servers("resume_server"), CHANGE),
}
"""Method and path -> what answers. Paths that are not here are those of pages (`Site.pages`)."""
_HOME_PATHS = ("/", "/index.html")
_METHODS = {"GET": "GET", "HEAD": "GET", "POST": "POST"}        # how a method is looked up


def find_route(site: Site, request: Request) -> Route:
    """What answers a request, if it may be made: everything but the body is looked at. Raises Refusal."""
    method = _METHODS.get(request.method)
    if method is None:
        raise Refusal(405, "the methods are GET, HEAD and POST")
    page = site.pages.get(_HOME_PAGE if request.path in _HOME_PATHS else request.path) if method == "GET" else None
    check_source(request, site.names, page is not None)
    if page is not None:
        return Route(page.served, OPEN)
    route = ROUTES.get((method, request.path))
    if route is None:
        missing = " (static/ does not lie beside httpd_lite.py, so there are no pages)" if not site.pages else ""
        raise Refusal(400 if method == "POST" else 404, "there is nothing at %s%s" % (
            cut(repr(request.path), 80), missing))
    if route.needs != OPEN:
        site.check_signed_in(request, request.method == "POST")
    if route.needs == CHANGE and site.read_only and route.function is not _sign_out:
        raise Refusal(403, "this monitor is for looking only (read_only=True)")
    return route


# ======================================================================================================================
# 9. Connections                                                                           slow ones cost others nothing
# ======================================================================================================================
#
# A connection that has said something has a thread, as `http.server` means it to be; before that it only waits in the
# listener's selector, as strangers may open them by the hundred. The listener's thread looks after all of them: it
# accepts, and several times a second cuts those whose time is up. So nothing depends on timeouts of single reads, which
# somebody who sends a byte now and then would never run into.
#
# A connection is in one of these states; `_Connection.due` is when it is cut:
#
#   state     from                            to                                  due
#   silent    accept                          its first byte                      http_header_s
#   reading   first byte of a request         end of the header                   http_header_s (since accept, if new)
#   body      the header was let in           end of the body                     http_header_s
#   working   the request is there            the answer is ready                 never
#   sending   the answer, or event, is ready  it is out                           http_send_s
#   waiting   the answer is out               first byte of the next request      http_idle_s
#
# When all `http_connections` are in use, a new one takes the place of the oldest silent one, if there is none of the
# oldest that is waiting, then reading: these have not asked for anything, so nobody loses an answer by it, and a
# thousand silent ones do not keep the next viewer out. Reading comes last, as a viewer's whole request may be there
# and its thread not have come to it on a busy machine. The handshake of TLS is part of "reading".
#
# Why `http.server`: it reads request lines and headers as everybody expects, and has been looked at by many. What it
# lacks is added around it: limits (`_Source`, the listener), a parser that gets whole headers only, errors in JSON. Its
# answers are written in one place, `_Handler._write`.

_LOOK_S = 0.2                           # the listener looks at connections so often
_JOIN_S = 2.0                           # threads of connections that were cut have ended by then
_NO_THREAD = ("no thread can be started (%s). CPython 3.12.0 and 3.12.1 refuse that once the main program has ended: "
              "let it wait for its tasks, with Pycos().join() at its end, or use another Python")
_REQUEST_LINE = 8192
_SILENT, _READING, _BODY, _WORKING, _SENDING, _WAITING = "silent", "reading", "body", "working", "sending", "waiting"
_DISPLACED = (_SILENT, _WAITING, _READING)         # in this order


class _TooLong(Exception):
    """More has come than a header may have."""


class _Source(io.RawIOBase):
    """What a socket brings, of which only `left` more bytes are taken."""

    def __init__(self, sock: Any) -> None:
        super().__init__()
        self._sock = sock
        self.left = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase. Raises _TooLong when no more may come."""
        view = memoryview(buffer)[:self.left]
        if not view:
            raise _TooLong
        count = self._sock.recv_into(view)
        self.left -= count
        return count


class _Connection:
    """A connection, as the listener sees it. `sock` is the plain socket, or that with TLS around it."""

    def __init__(self, sock: Any, address: Any) -> None:
        self.sock, self.address = sock, address
        self.thread: Optional[threading.Thread] = None      # none while it is silent
        self.fresh = True                                   # its first request is still to come
        self.enter(_SILENT, settings.http_header_s)

    def enter(self, state: str, limit_s: float = math.inf) -> None:
        """Go on to a state, which may last so long. In this order: the listener may look in between."""
        self.due, self.state = time.monotonic() + limit_s, state

    def cut(self) -> None:
        """End it from outside of its thread, which wakes up from whatever it waits for and ends."""
        try:                                # not the method of a TLS socket, which its thread may be using
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
        except OSError:                     # it has ended itself
            pass


class _Handler(http.server.BaseHTTPRequestHandler):
    """The requests of one connection, in its thread. `server` is the Listener."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16                      # header and body leave in one write
    disable_nagle_algorithm = True
    server: "Listener"

    def __init__(self, connection: _Connection, server: "Listener") -> None:
        self.holder = connection
        self.site = server.site
        super().__init__(connection.sock, connection.address, server)       # type: ignore[arg-type]

    def setup(self) -> None:
        """Make the streams; for the base class, as are the next three."""
        super().setup()
        self.rfile.close()
        self.source = _Source(self.connection)
        self.rfile = io.BufferedReader(self.source, 4096)       # type: ignore[assignment]

    def version_string(self) -> str:
        """What the header Server says: no versions, which are of use to attackers alone."""
        return "pycoslite"

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are worth a line for those who look for a fault in the monitor itself."""
        pycoslite.log.debug("monitor: %s %s", self.client_address[0], cut(ascii(format % args), 300))

    def handle_expect_100(self) -> bool:
        """The body comes when it is asked for, and that is when the header was let in: see `_read_body`."""
        self.awaits_go = True
        return True

    def send_error(self, code: int, message: Optional[str] = None, explain: Optional[str] = None) -> None:
        """The base class has found something wrong with a header."""
        self.close_connection = True
        self.request_version = "HTTP/1.0"                       # it may have been one that has no header in answers
        self._write(answer({"error": message or http.HTTPStatus(code).phrase}, code))

    def handle_one_request(self) -> None:
        """Wait for a request, read and answer it. What is wrong with the connection just ends it."""
        self.close_connection, self.command, self.request_version = True, None, "HTTP/1.0"  # type: ignore[assignment]
        self.requestline, self.awaits_go = "", False
        try:
            if self._has_come() and self._read_header():
                self._answer()
        except _TooLong:
            self.send_error(431, "the header is longer than %d bytes" % settings.http_header_bytes)
        except OSError:                         # cut, or gone
            self.close_connection = True

    def _has_come(self) -> bool:
        """Wait for the first byte of the next request; the time of the first one runs since the connection was made."""
        self.source.left = settings.http_header_bytes
        if not self.rfile.peek(1):              # type: ignore[attr-defined]
            return False
        if not self.holder.fresh:
            self.holder.enter(_READING, settings.http_header_s)
        self.holder.fresh = False
        return True

    def _read_header(self) -> bool:
        """Read request line and header; False if there was something wrong, and that is answered, or it never ended."""
        self.raw_requestline = self.rfile.readline(_REQUEST_LINE + 1)
        if len(self.raw_requestline) > _REQUEST_LINE:
            self.send_error(414, "the address is longer than %d bytes" % _REQUEST_LINE)
            return False
        lines = [self.raw_requestline]
        while lines[-1] not in (b"\r\n", b"\n"):       # an empty line in place of a request is none, too
            if not lines[-1].endswith(b"\n"):
                return False
            lines.append(self.rfile.readline())
        return self._parse_header(b"".join(lines[1:]))

    def _parse_header(self, lines: bytes) -> bool:
        """The base class's parser takes the end of the connection for the end of the header: it gets no connection."""
        rest, self.rfile = self.rfile, io.BytesIO(lines)        # type: ignore[assignment]
        try:
            if not self.parse_request():
                return False
        finally:
            self.rfile = rest
        if self.request_version not in ("HTTP/1.0", "HTTP/1.1"):
            self.send_error(505, "HTTP/1.0 and HTTP/1.1 are spoken here")
            return False
        if self.headers.defects or self.headers.get_payload():
            self.send_error(400, "there is a line in the header that is none")
            return False
        return True

    def _answer(self) -> None:
        """Answer the request whose header has been read. Faults of ours are a 500, and a traceback in the log."""
        keep, self.close_connection = not self.close_connection, True
        try:
            response = self._response()
        except Refusal as error:
            keep, response = False, refusal(error)              # its body, if any, was not read
        except (OSError, _TooLong):
            raise
        except Exception as error:              # one bad answer must not end the monitor
            pycoslite.log.error("monitor: %r could not be answered: %r", cut(self.requestline, 300), error,
                                exc_info=True)
            keep, response = False, answer({"error": "the monitor failed to answer, see the program's log"}, 500)
        self.close_connection = not keep or response.stream is not None or self.site.closing.is_set()
        self._write(response)
        if response.stream is not None and self.command != "HEAD":
            self._write_stream(response.stream)
        self.holder.enter(_WAITING, settings.http_idle_s)

    def _response(self) -> Response:
        """The answer to the request. Raises Refusal."""
        target, _, query = self.path.partition("?")
        headers = joined_headers(self.headers.items())
        length = body_length(self.command, headers)
        try:
            path = urllib.parse.unquote(target, errors="strict")
        except UnicodeDecodeError:
            raise Refusal(400, "the address is no UTF-8") from None
        request = Request(self.command, path, headers, parse_fields(query), self.site.secure,
                          self.connection.getsockname()[0])
        route = find_route(self.site, request)
        if length:
            body = parse_body(headers.get("content-type", ""), self._read_body(length))
            request = request._replace(fields={**request.fields, **body})
        self.holder.enter(_WORKING)
        return route.function(self.site, request)

    def _read_body(self, length: int) -> bytes:
        self.holder.enter(_BODY, settings.http_header_s)
        self.source.left = length
        if self.awaits_go:
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.wfile.flush()
        body = self.rfile.read(length)
        if len(body) < length:
            raise Refusal(400, "the body is shorter than its Content-Length")
        return body

    def _write(self, response: Response) -> None:
        """The one place that writes an answer."""
        self.holder.enter(_SENDING, settings.http_send_s)
        with self.site.changed:
            self.site.statuses[response.status] += 1
        self.log_request(response.status)
        self.send_response_only(response.status)
        headers = [("Server", self.version_string()), ("Date", self.date_time_string()), *SECURITY_HEADERS,
                   *response.headers]
        if response.status != 304:
            headers.append(("Content-Type", response.type))
        if response.stream is None and response.status != 304:
            headers.append(("Content-Length", str(len(response.body))))
        headers.append(("Connection", "close" if self.close_connection else "keep-alive"))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)
        self.wfile.flush()

    def _write_stream(self, stream: Iterator[bytes]) -> None:
        """Send the parts of a stream as they come, until it ends or the viewer goes."""
        with self.site.changed:
            self.site.streams += 1
        try:
            for part in self._parts(stream):
                self.holder.enter(_SENDING, settings.http_send_s)
                self.wfile.write(part)
                self.wfile.flush()
        finally:
            with self.site.changed:
                self.site.streams -= 1

    def _parts(self, stream: Iterator[bytes]) -> Iterator[bytes]:
        """The parts of a stream. A fault of ours ends it, with a traceback in the log."""
        while True:
            self.holder.enter(_WORKING)
            try:
                part = next(stream, None)
            except Exception as error:          # as in `_answer`
                pycoslite.log.error("monitor: a stream of events failed: %r", error, exc_info=True)
                return
            if part is None:
                return
            yield part


class Listener:
    """Accepts connections at a port, and bounds what they may take. `port` is the one it got for 0.

    Made, it listens; `start` has a thread serve. Raises OSError when it cannot. `tls` is an ssl.SSLContext, or None.
    """

    def __init__(self, site: Site, host: str, port: int, tls: Any = None) -> None:
        self.site, self._tls = site, tls
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            if os.name == "posix":              # elsewhere it would let two programs have one port
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(address)
            self._socket.listen(1024)           # the system takes less if that is its limit
        except OSError:
            self._socket.close()
            raise
        self._socket.setblocking(False)
        self.port = self._socket.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._wakes, self._woken = socket.socketpair()
        self._selector.register(self._socket, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._connections: List[_Connection] = []       # oldest first; the listener's thread's alone
        self._warned = False                            # of threads that cannot be had
        self._thread = threading.Thread(target=self._run, name="pycoslite monitor", daemon=True)

    def start(self) -> None:
        """Begin to serve. Raises MisuseError when this program cannot have another thread."""
        try:
            self._thread.start()
        except RuntimeError as error:
            self._close_sockets()
            raise pycoslite.MisuseError("HTTPServer(): " + _NO_THREAD % error) from None

    def close(self, wait: bool) -> None:
        """Cut all connections and stop to listen; `wait` for that, a moment. Any thread but the listener's."""
        self.site.close()
        with contextlib.suppress(OSError):      # it may have ended already
            self._wakes.send(b"x")
        if wait:
            self._thread.join()

    def _run(self) -> None:
        """The listener's thread."""
        looked = 0.0
        while not self.site.closing.is_set():
            ready = [key for key, _ in self._selector.select(_LOOK_S)]
            for key in ready:                   # before one of these is displaced
                if isinstance(key.data, _Connection):
                    self._converse(key.data)
            if any(key.fileobj is self._socket for key in ready):
                self._accept()
            if time.monotonic() - looked > _LOOK_S:
                looked = time.monotonic()
                self._look(looked)
                self.site.look()
        for connection in self._connections:
            self._cut(connection)
        for connection in self._connections:
            if connection.thread is not None:
                connection.thread.join(_JOIN_S)
        self._close_sockets()

    def _close_sockets(self) -> None:
        self._selector.close()
        for sock in (self._socket, self._wakes, self._woken):
            sock.close()

    def _accept(self) -> None:
        """A connection may have come; see above for what happens when there are too many."""
        try:
            sock, address = self._socket.accept()
        except BlockingIOError:                 # it has gone again
            return
        except OSError as error:                # no descriptors left, say: others may give some back
            pycoslite.log.debug("monitor: no connection could be accepted: %s", error)
            self.site.closing.wait(_LOOK_S)
            return
        if len(self._connections) >= settings.http_connections:
            displaced = next((other for state in _DISPLACED for other in self._connections if other.state == state),
                             None)
            if displaced is None:
                pycoslite.log.debug("monitor: refused %s: all %d connections are at work", address[0],
                                    len(self._connections))
                sock.close()
                return
            self._connections.remove(displaced)
            self._cut(displaced)
        connection = _Connection(sock, address)
        self._selector.register(sock, selectors.EVENT_READ, connection)
        self._connections.append(connection)
        self.site.connections = len(self._connections)

    def _converse(self, connection: _Connection) -> None:
        """A silent connection has something to read: from now on it has a thread."""
        self._selector.unregister(connection.sock)
        connection.sock.setblocking(True)
        connection.state = _READING             # its time goes on
        connection.thread = threading.Thread(target=self._serve, args=(connection,),
                                             name="pycoslite monitor connection", daemon=True)
        try:
            connection.thread.start()
        except RuntimeError as error:
            if not self._warned:
                pycoslite.log.warning("monitor: viewers get no answer: " + _NO_THREAD, error)
            self._warned = True
            self._connections.remove(connection)
            connection.sock.close()

    def _cut(self, connection: _Connection) -> None:
        """End a connection; its thread, if it has one, closes it."""
        if connection.thread is not None:
            connection.cut()
        else:
            self._selector.unregister(connection.sock)
            connection.sock.close()

    def _look(self, now: float) -> None:
        """Cut connections whose time is up, forget those that have ended."""
        for connection in self._connections:
            if connection.due < now:
                self._cut(connection)
        self._connections = [connection for connection in self._connections if (
            connection.due >= now if connection.thread is None else connection.thread.is_alive())]
        self.site.connections = len(self._connections)

    def _serve(self, connection: _Connection) -> None:
        """A connection's thread."""
        try:
            if self._tls is not None:
                connection.sock = self._tls.wrap_socket(connection.sock, server_side=True,
                                                        do_handshake_on_connect=False)
                connection.sock.do_handshake()
            _Handler(connection, self)
            self._see_off(connection)
        except OSError as error:                # it was cut, or does not speak TLS
            pycoslite.log.debug("monitor: connection of %s: %s", connection.address[0], error)
        finally:
            connection.sock.close()

    @staticmethod
    def _see_off(connection: _Connection) -> None:
        """Wait until the other end has read the last answer: closing a socket with unread data in it, such as the body
        of a request that was refused, would take the answer back."""
        connection.enter(_WAITING, 1.0)
        connection.sock.shutdown(socket.SHUT_WR)
        for _ in range(64):
            if not socket.socket.recv(connection.sock, 65536):
                return


# ======================================================================================================================
# 10. HTTPServer                                                                        a client's monitor, start to end
# ======================================================================================================================
#
# The parts are made bottom-up: what can be wrong with the options first, then the site with its pages, then the
# listener, which takes the port and a thread; then nothing can fail any more, and the client gets its new status task.
#
#   status messages:   client or cluster (`watch`), or by hand, status_task (`_receive`)  -->  Site.feed
#   figures:           client or cluster (`counts`)  <--  Site.refresh
#
# Who watches is told before the client's status task, so who is told of a change finds it there, too (W01). `_end`
# undoes it all in the opposite order; it is called by `shutdown`, at once or later, and before the kernel stops,
# whichever is first. Threads of the monitor are daemons: a program never waits for its viewers longer than `shutdown`
# says.

_PORT = 8181
_LOOPBACK = "127.0.0.1"
_LINGER_S = 0.5                         # on top of poll_sec: the browser's next request takes that long
_TOKEN_CHARS = 16                       # shortest token that a program may choose
_OLD_OPTIONS = {"show_coro_args": "show_task_args", "status_coro": "status_task"}


@dataclasses.dataclass
class _Options:
    """What `HTTPServer` is made with, in the order of older programs up to show_task_args; see there."""

    host: str = ""
    port: int = _PORT
    poll_sec: float = 10
    DocumentRoot: Optional[str] = None
    keyfile: Optional[str] = None
    certfile: Optional[str] = None
    show_task_args: bool = True
    token: Optional[str] = dataclasses.field(default=None, repr=False)
    hosts: Any = ()
    read_only: bool = False

    @classmethod
    def of_call(cls, args: tuple, options: Dict[str, Any]) -> "_Options":
        """What a call means. Raises TypeError as Python does, MisuseError."""
        found = cls(*args, **{_OLD_OPTIONS.get(name, name): value for name, value in options.items()})
        for wrong, sentence in (
                (not isinstance(found.host or "", str), "host=%r is not a name or address" % (found.host,)),
                (isinstance(found.port, bool) or not isinstance(found.port, int) or not 0 <= found.port <= 65535,
                 "port=%r is not a port number" % (found.port,)),
                (number(found.poll_sec) is None, "poll_sec=%r is not a number of seconds" % (found.poll_sec,)),
                (found.keyfile and not found.certfile, "keyfile without certfile: name the certificate, too"),
                (found.token is not None and not re.fullmatch(r"[\w.~-]{%d,200}" % _TOKEN_CHARS, str(found.token),
                                                              re.ASCII),
                 "token must be %d or more letters, digits and -._~; without it one is made up" % _TOKEN_CHARS)):
            if wrong:
                raise pycoslite.MisuseError("HTTPServer(): " + sentence)
        found.host, found.poll_sec = found.host or _LOOPBACK, max(found.poll_sec, 1)
        found.hosts = [found.hosts] if isinstance(found.hosts, str) else list(found.hosts)
        return found

    def tls(self) -> Any:
        """The ssl.SSLContext for certfile, None without. Raises MisuseError for files that will not do."""
        if not self.certfile:
            return None
        import ssl                          # not at the top: only monitors with certificates need it
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certfile, self.keyfile, password=lambda: b"")
        except (OSError, ValueError) as error:
            raise pycoslite.MisuseError("HTTPServer(): certfile=%r with keyfile=%r cannot be used: %s" % (
                self.certfile, self.keyfile, error)) from None
        return context

    def names(self) -> List[str]:
        """Names that the site may be called by, besides addresses and localhost."""
        return [name.lower() for name in (self.host, socket.gethostname(), *self.hosts)]

    def url(self, port: int, token: str) -> str:
        """What is to be opened in a browser."""
        host = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        return "%s://%s:%d/#token=%s" % ("https" if self.certfile else "http", "[%s]" % host if ":" in host else host,
                                         port, token)


class HTTPServer:
    """A web monitor for `computation`, a `dispycos_lite.Client` or `Cluster`: shows its nodes, servers, tasks and jobs
    to browsers.

        monitor = HTTPServer(client)            # in a task or any thread; best before `client.schedule`
        monitor.url                             # also logged: what to open
        monitor.shutdown()

    The client's changes are told here first and then to its status_task. Jobs of all kinds are counted; tasks are
    listed, too, and jobs of plain functions, or of a Cluster, when they fail. A Cluster is for looking only. Without a
    client (``HTTPServer()``, or the options alone, as the oldest programs have it) a program sends the messages of its
    status_task on to `status_task` itself, and then tasks are all that is counted. By position, or by keyword:

    host            where to listen: the default, '', is this machine alone (127.0.0.1). A name or address lets others
                    in, "0.0.0.0" at all interfaces; without certificates the token then travels in clear
    port            8181; 0 for any that is free, see `port`
    poll_sec        seconds between two updates of a page, at least 1; may be changed in the browser
    DocumentRoot    a directory with pages instead of the built-in ones; {{poll_sec}} and {{show_task_args}} in *.html
                    are replaced by their values
    keyfile, certfile       PEM files, for https; certfile may hold both
    show_task_args  whether arguments and results are shown, shortened; may be changed in the browser
    token           what opens the monitor, 16 characters or more, for a URL that stays the same; else it is made up
    hosts           more names that browsers may know this machine by, of a proxy, say
    read_only       viewers cannot change anything

    Attributes: `url` (with the token), `token`, `port`, `status_task` (also `status_coro`). Raises MisuseError with a
    sentence when an option cannot be, or the port is in use. Methods may be called from any thread, and in tasks.
    """

    def __init__(self, computation: Any = None, *args: Any, **options: Any) -> None:
        if isinstance(computation, str):        # the oldest form begins with the host
            computation, args = None, (computation, *args)
        if computation is not None and not hasattr(computation, "watch"):
            raise pycoslite.MisuseError("HTTPServer(): %r is not a Client or Cluster, which could be watched" % (
                computation,))
        chosen = _Options.of_call(args, options)
        self.token = chosen.token or secrets.token_urlsafe(32)
        self._computation = computation
        self._unwatch: Any = None
        self._site = site = Site(computation, self.token, chosen.names(), chosen.poll_sec, chosen.read_only)
        site.view.show_args = bool(chosen.show_task_args)
        site.pages = built_in_pages()
        if chosen.DocumentRoot is not None:
            site.pages.update(document_root_pages(os.fspath(chosen.DocumentRoot)))
        tls = chosen.tls()
        try:
            self._listener = Listener(site, chosen.host, chosen.port, tls)
        except OSError as error:
            raise pycoslite.MisuseError("HTTPServer(): cannot listen at %s port %d: %s; choose another port (0: any), "
                                        "or end what uses it" % (chosen.host, chosen.port, error.strerror)) from None
        self.port = self._listener.port
        self.url = chosen.url(self.port, self.token)
        site.secure, site.cookie = tls is not None, "pycoslite_%d" % self.port      # ports of a host share cookies
        self._listener.start()
        self._begin(chosen.host)

    def _begin(self, host: str) -> None:
        """The parts are there: connect them."""
        self.status_task = pycoslite.Task(self._receive)
        if self._computation is not None:
            self._unwatch = self._computation.watch(self.feed)
        _servers.append(self)
        local = is_address(host) and ipaddress.ip_address(host.partition("%")[0]).is_loopback
        pycoslite.log.warning("monitor: open %s in a browser (%s)", self.url, "on this machine only; others need "
                              "HTTPServer(host=...)" if local else "the token opens it to whoever has it")
        if not self._site.pages:
            pycoslite.log.warning("monitor: there are no pages, as the directory static/ does not lie beside "
                                  "httpd_lite.py: copy it along")

    @property
    def status_coro(self) -> Any:
        """The status task, by its older name."""
        return self.status_task

    def _receive(self, task: Any = None) -> Iterator:
        """The status task: take in each message. A client that is watched has told all that already."""
        task.set_daemon()
        while True:
            message = yield task.receive()
            if self._computation is None:
                self.feed(message)

    def feed(self, message: Any) -> None:
        """Take in a status message, for programs that have no task to send it from. Any thread, also a task."""
        try:
            self._site.feed(message)
        except (AttributeError, TypeError, ValueError) as error:        # it was relayed by hand, and is something else
            pycoslite.log_failure(error, "monitor: the status message %.300r makes no sense", message)

    # -- the end -------------------------------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True) -> None:
        """Stop the monitor. With `wait`, if anybody has looked at it, first wait for poll_sec and half a second, so
        that browsers get the last changes: a thread is held up for that time; a task is not, but the monitor stops
        later, and the program lives that long."""
        in_task = pycoslite.Pycos.cur_task() is not None
        if wait and self._site.asked and not self._site.closing.is_set():
            pause_s = self._site.poll_sec + _LINGER_S
            if in_task:
                pycoslite.Task(self._end_later, pause_s)
                return
            self._site.closing.wait(pause_s)
        self._end(not in_task)

    def _end_later(self, pause_s: float, task: Any = None) -> Iterator:
        yield task.sleep(pause_s)
        self._end(False)

    def _end(self, wait: bool) -> None:
        """Stop now; again does nothing."""
        if self in _servers:
            _servers.remove(self)
            if self._unwatch is not None:
                self._unwatch()
            self.status_task.terminate()
        self._listener.close(wait)

    def __enter__(self) -> "HTTPServer":
        return self

    def __exit__(self, *_error: Any) -> None:
        self.shutdown()


_servers: List[HTTPServer] = []         # those that have not ended


def _stop_servers() -> None:
    """Runs before the kernel is stopped."""
    for server in list(_servers):
        server.shutdown(wait=False)


pycoslite.STOPPERS.insert(0, _stop_servers)

if __name__ == "__main__":
    raise SystemExit("httpd_lite is part of a program, HTTPServer(client), and shows nothing by itself: see its first "
                     "lines, and examples/monitor.py")
