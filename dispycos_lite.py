"""Run Python on the cores of many machines: cluster scheduler, client API and a concurrent.futures.Executor.

Sections (the banners below carry the same numbers and titles):

     1. Settings and errors
     2. Status records (pure)
     3. Code shipping
     4. Messages (pure)
     5. Cluster state (pure)
     6. Scheduler driver
     7. Client (Computation)
     8. Cluster (Executor)
     9. Scheduler program

Processes, and who calls whom (each arrow is one `pycoslite` peer: what is sent arrives once and in order):

    client  ---- node.*, files ------>  node program (dispycosnode_lite.py), which starts the server processes
    client  ---- server.*, frames --->  server process: jobs and results go directly, not through the node
    client  ---- scheduler.* -------->  scheduler program (section 9), only where a client names one

A client process is `Client` (7) or `Cluster` (8) on top of one `SchedulerDriver` (6), which carries out what one
`ClusterState` (5) decides. Section 5 is the only place that decides; 6 to 8 carry, ask and tell. The server's half of
sections 3 and 4 is here too, so that both ends of each format stand side by side; dispycosnode_lite.py uses it.

Where code of a client process runs:

    engine         drivers and the cluster state. Never blocks, never runs code of the user
    user kernel    tasks of the program, methods of `Client`, results being unpickled, futures being settled
    any thread     `Cluster`, `ClusterFuture`, `Packer`, `Watched` (what a `Client` lets others see); they reach the
                   engine by `network.post` and `network.spawn`

A *system task* is a generator that the engine runs (`network.spawn`); where a docstring says so, it is to be yielded
from another one, or spawned, and does nothing when it is merely called.
"""
from __future__ import annotations

import __future__
import argparse
import ast
import builtins
import collections
import collections.abc
import concurrent.futures
import configparser
import copyreg
import dataclasses
import dis
import enum
import functools
import hashlib
import importlib.machinery
import importlib.util
import inspect
import io
import itertools
import json
import linecache
import logging
import marshal
import operator
import os
import pickle
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
import types
import weakref
from concurrent.futures import CancelledError
from heapq import heapify, heappop, heappush
from itertools import islice, takewhile
from typing import (Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple, TypeVar,
                    Union)

try:
    from . import pycoslite
except ImportError:                     # the files lie side by side, not in a package
    import pycoslite


# ======================================================================================================================
# 1. Settings and errors
# ======================================================================================================================


@dataclasses.dataclass
class ClusterSettings:
    """Defaults of the cluster; units are in the names. An instance, `settings`, is what the code reads.

    As with `pycoslite.Settings`, an environment variable ``PYCOSLITE_`` plus the name in capitals overrides a field.
    Fields are read when they are needed, so a change counts for what is decided from then on. What a change does:

    credit_*        more work held by servers hides a longer way to them; less leaves fewer jobs behind a long one
    recall_*        sooner and wider searches balance better at the end of a batch, and cost the engine time
    max_runs        the bound on how many servers one job can take along; a job is sent alone from the last run but one
    grace_s         also how long a job may take to react to `cancel` or to its timeout
    """

    credit_min: int = 2                 # jobs a server may hold: the one that runs and the one that is next ...
    credit_max: int = 512               # ... up to so many when they are short
    credit_target_s: float = 0.02       # work a server should hold in seconds, so that it never waits for the next job
    credit_memory: float = 0.75         # how much of what was measured of a server's pace survives each new measure
    recall_after_s: float = 0.005       # a job that runs for so long gives back what waits behind it, if others idle
    recall_look: int = 64               # servers examined in one search for something to give back
    max_runs: int = 3                   # a job that may have begun so often, and took its server along, is given up
    grace_s: float = 1.0                # after a request to stop, before the server process is replaced
    embedded: int = 0                   # cores of this machine that clients use by a node program of their own; -1: all

    __post_init__ = pycoslite.Settings.__post_init__


settings = ClusterSettings()

# Limits of the option pulse_interval of `Client`, in seconds. Names and meaning are those of older programs, which
# assign to them; both are read when a client is made. Without the option a client takes five times the lower one.
MinPulseInterval = 10
MaxPulseInterval = 100

# How a job can end without a result, as the caller sees it. `Cluster` raises these from the future; `Client` gives a
# MonitorStatus instead, whose `error` is one of them (see `_ended`).
#
#   Cancelled       before it began, or TERMINATED by its server after it was asked to stop
#   TimedOut        like Cancelled, the wish being that of ``timeout=``
#   WorkerDied      its server process ended, and the job may not run again
#   NodeLost        the same for its node; also jobs that waited when no node was left
#   ResultError     it ran; made at the client for outcome UNPICKLABLE, or when a result does not unpickle here
#   JobExit         made at the server: SystemExit and the like must not end the client when they are raised there
#   ClusterClosed   never accepted


class JobError(pycoslite.PycosError):
    """A job ended without a result of its own. The text is a sentence; the attributes are for programs.

    `job_id` and `attempt` (1 is the first run) tell which run it was, `where` names the server or node ('' if none),
    `ending` as what the job is counted: the name of one of the last three fields of `JobCounts`.
    """

    ending = "failed"

    def __init__(self, sentence: str, job_id: int = 0, attempt: int = 0, where: str = "") -> None:
        super().__init__(sentence)
        self.job_id, self.attempt, self.where = job_id, attempt, where


class WorkerDied(JobError):
    """The server process that ran the job ended; the sentence names the server, its signal or exit status, the run."""

    ending = "abandoned"


class NodeLost(JobError):
    """The node that ran the job was lost or given up; the sentence says why."""

    ending = "abandoned"


class Cancelled(JobError, CancelledError):
    """The job was cancelled, or its computation closed, before it had a result."""

    ending = "terminated"


class TimedOut(JobError, pycoslite.OperationTimeout):
    """The job ran for longer than the ``timeout=`` it was submitted with (seconds, counted from its start)."""

    ending = "terminated"


class ResultError(JobError):
    """The job ran, and what it returned or raised cannot be sent; the sentence names what does not pickle."""


class JobExit(JobError):
    """The job called ``sys.exit``, or raised something else that is meant to end a program."""


class ClusterClosed(JobError):
    """The cluster or computation is closed, or closing, and takes no more jobs."""


# ======================================================================================================================
# 2. Status records (pure)                                                                    what a status task is sent
# ======================================================================================================================


# These records are what programs see of the cluster; their names and fields are those of older programs. Section 5
# emits the codes, `Client` sends them on to its status task, in the user kernel and in the order in which things
# happened. A node's record is one object for as long as the client has the node; its `avail_info` is replaced.


class SchedulerStatus:
    """Codes of `DispycosStatus`, as attributes; compare by name. `Scheduler` inherits them.

    A server's code is its node's plus ten; section 5 relies on that (`_NODE_CODES`).

    Per entity they come in this order: NodeDiscovered, NodeInitialized, ServerDiscovered, ServerInitialized,
    TaskStarted, the result (a `pycoslite.MonitorStatus`), ServerClosed, NodeClosed, ClientClosed.
    """

    NodeIgnore = 1                      # reserved: a node that is not used is not reported
    NodeDiscovered = 2                  # info of the node codes: DispycosNodeInfo
    NodeInitialized = 3
    NodeSuspended = 4
    NodeResumed = 5
    NodeClosed = 6                      # released
    NodeDisconnected = 7                # its process is gone
    NodeAbandoned = 8                   # silent for too long
    ServerIgnore = 11                   # reserved
    ServerDiscovered = 12               # info of the server codes: Location
    ServerInitialized = 13
    ServerSuspended = 14
    ServerResumed = 15
    ServerClosed = 16                   # takes no more jobs
    ServerDisconnected = 17             # its process ended
    ServerAbandoned = 18                # its node was abandoned
    TaskStarted = TaskCreated = CoroCreated = 21                        # info: DispycosTaskInfo
    TaskFinished = 22                   # reserved
    TaskAbandoned = 23                  # type in the MonitorStatus of a job lost with its server or at close
    TaskTerminated = 24                 # type in the MonitorStatus of a job its server killed
    ClientScheduled = ComputationScheduled = 31
    ClientClosed = ComputationClosed = 32                               # info: id; the last message


class DispycosStatus(NamedTuple("_Status", [("status", int), ("info", Any)])):
    """A change in the cluster, as status tasks receive it: `status` is a code of `SchedulerStatus`, `info` its subject.

    Also a plain tuple: ``status, info = message``. A status task gets it by ``message = yield task.receive()``, among
    `pycoslite.MonitorStatus` (how jobs ended) and `DispycosNodeAvailInfo` (what nodes have free) messages. `reason` is
    a sentence where the change was nobody's wish: why a client or server that was idle is closed, a node abandoned.
    """

    reason = ""


@dataclasses.dataclass(eq=False)
class DispycosTaskInfo:
    """A job that started: its task (remote), its arguments, and when it started (seconds since the epoch).

    `start_time` is taken at the client when the news arrives, by the client's clock. `args` and `kwargs` are the
    caller's own objects, not copies. Compared by identity.
    """

    task: Any
    args: tuple = ()
    kwargs: Dict[str, Any] = dataclasses.field(default_factory=dict)
    start_time: float = 0.0

    @property
    def coro(self) -> Any:
        """The task, by its older name."""
        return self.task


@dataclasses.dataclass(frozen=True)
class DispycosNodeAvailInfo:
    """What a node has free. None stands for what its system does not tell.

    `location` of the node's process; `cpu` in percent (100 is idle); `memory` and `disk` (where jobs write) in bytes;
    `swap` in percent.
    """

    location: Any = None
    cpu: Optional[float] = None
    memory: Optional[int] = None
    disk: Optional[int] = None
    swap: Optional[float] = None


@dataclasses.dataclass(eq=False)
class DispycosNodeInfo:
    """A node: `name`, `addr` (IP address), `cpus` in use, `platform` text, `avail_info` (a DispycosNodeAvailInfo).

    ``str(info)`` is the address, and location, cpu, memory, disk and swap are there too, for programs written for
    the older records.
    """

    name: str
    addr: str
    cpus: int
    platform: str = ""
    avail_info: DispycosNodeAvailInfo = DispycosNodeAvailInfo()

    def __str__(self) -> str:
        return self.addr

    @property
    def location(self) -> Any:
        """Location of the node's process."""
        return self.avail_info.location

    @property
    def cpu(self) -> Optional[float]:
        """Free CPU in percent."""
        return self.avail_info.cpu

    @property
    def memory(self) -> Optional[int]:
        """Free memory in bytes."""
        return self.avail_info.memory

    @property
    def disk(self) -> Optional[int]:
        """Free disk space in bytes."""
        return self.avail_info.disk

    @property
    def swap(self) -> Optional[float]:
        """Free swap in percent."""
        return self.avail_info.swap


class JobCounts(NamedTuple):
    """How many jobs of every kind there were: plain functions, tasks, I/O. `submitted` is pending + running + done.

    `pending` have not begun, be it here or at a server behind others; they belong to no place yet, so this is 0 for
    nodes and servers. `running` are those that a server has begun, as far as that is known here: of its CPU jobs the
    first, and its I/O jobs. `done` have ended, with a result or else: `failed` (an exception), `terminated` (cancelled,
    or out of time), `abandoned` (lost with their server or node, or given up at the client's end).
    """

    submitted: int = 0
    pending: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0
    terminated: int = 0
    abandoned: int = 0


class ClusterCounts(NamedTuple):
    """The `JobCounts` of a whole client (`total`), and by Location of its `nodes` and `servers`; `node_of` has the
    node's for each server's.

    Servers and nodes that are gone are there, too, the last thousand, with what ended there. A run that was lost and is
    repeated (`retries=`) is done and abandoned where it was, and not in the total. What was at no server when it ended
    is in the total alone.
    """

    total: JobCounts
    nodes: Dict[Any, JobCounts]
    servers: Dict[Any, JobCounts]
    node_of: Dict[Any, Any]


class PlainJob(NamedTuple):
    """A job that no task stands for: of a plain function, or handed in by `Cluster.submit`, or one that never began.

    The subject of a `pycoslite.MonitorStatus` that watchers are sent (see `Client.watch`). `name` is its function's,
    `location` its last server's, None if it never was at one; `args` and `kwargs` are the caller's own objects, empty
    where they were not kept.
    """

    job_id: int
    name: str
    location: Any
    args: tuple
    kwargs: Dict[str, Any]


class DispycosNodeAllocate:
    """Which nodes a computation uses, and how many CPUs of each. Override `allocate` for rules of your own.

    `node` is an IP address, a name, a pattern with ``*``, or a regular expression of addresses. `port` of the node
    program, if not the usual one. `platform` is a regular expression that must occur in the node's platform text, in
    any case of letters. `cpus`: None takes all, 0 rejects the node, a positive number takes exactly that many and
    rejects nodes with fewer, a negative one leaves that many free. `memory` and `disk` are bytes that must be free.

    The older form without a port, ``(node, platform, cpus, memory, disk)``, is told by its second argument.

    `Client` asks its rules in the user kernel, before a node is reserved; a rule of the user's that raises counts as
    a 0. Raises MisuseError when `node` or `platform` is no regular expression.
    """

    def __init__(self, node: str, port: Union[int, str, None] = None, platform: Any = "", cpus: Optional[int] = None,
                 memory: Optional[int] = None, disk: Optional[int] = None) -> None:
        if isinstance(port, str):
            if not isinstance(platform, str):
                cpus, memory, disk = platform, cpus, memory
            port, platform = None, port
        self.node, self.port, self.platform = node, port, platform.lower()
        self.cpus, self.memory, self.disk = cpus, memory or 0, disk or 0
        expression = any(sign in node for sign in "\\^$[](|+?{")
        self.ip_rex = node if expression else re.escape(node).replace("\\*", ".*")
        try:
            self._match_node = re.compile(self.ip_rex, re.IGNORECASE).fullmatch
            self._search_platform = re.compile(self.platform, re.IGNORECASE).search
        except re.error as error:
            raise pycoslite.MisuseError("DispycosNodeAllocate(%r, platform=%r): %s is no regular expression (%s)" % (
                node, platform, error.pattern, error.msg)) from None

    def allocate(self, ip_addr: str, name: str, platform: str, cpus: int, memory: Optional[int],
                 disk: Optional[int]) -> int:
        """Return how many of the node's `cpus` to use: 0 rejects the node, a negative number asks the next rule.

        `memory` and `disk` are the free bytes, None where unknown (which passes). `name` and `platform` are what the
        node says of itself. Called in the user kernel, once per node and reservation; it must not block.
        """
        if not (self._match_node(ip_addr) or self._match_node(name)) or not self._search_platform(platform):
            return -1
        if memory is not None and memory < self.memory or disk is not None and disk < self.disk:
            return 0
        if self.cpus is None:
            return cpus
        if self.cpus > 0:
            return self.cpus if cpus >= self.cpus else 0
        return max(cpus + self.cpus, 0) if self.cpus else 0


def allocate_node(rules: Iterable[DispycosNodeAllocate], info: DispycosNodeInfo) -> int:
    """Return how many CPUs of the node to use: what the first rule that has an opinion says, all when none has.

    To restrict a computation to the nodes it names, end its rules with ``DispycosNodeAllocate('*', cpus=0)``. What a
    rule asks for beyond what the node has is cut to that. Pure; raises what a rule raises.
    """
    for rule in rules:
        cpus = rule.allocate(info.addr, info.name, info.platform, info.cpus, info.memory, info.disk)
        if cpus >= 0:
            return min(cpus, info.cpus)
    return info.cpus


# The same records under the names of discoro and of early dispycos, which programs in use still import.
DiscoroStatus = DispycosStatus
TaskInfo = CoroInfo = DiscoroCoroInfo = DispycosTaskInfo
DiscoroNodeInfo = DispycosNodeInfo
NodeAvailInfo = DiscoroNodeAvailInfo = DispycosNodeAvailInfo
NodeAllocate = DiscoroNodeAllocate = DispycosNodeAllocate


# ======================================================================================================================
# 3. Code shipping                                                             the only place that packs and builds code
# ======================================================================================================================
#
# A *definition* is one thing that a server has to know before a job can run. Its key is a digest of its content and of
# everything it needs, so equal content is sent once and changed content gets a new key. `Packer` makes definitions at
# the client, `Namespace` builds them at the server. Between them go blobs, in one of two forms: bytecode (marshal) for
# a Python with the same magic number, source text for any other.
#
#   kind      what it is                       how it travels
#   function  of __main__, or nested, lambda   by value: code, defaults, closure cells, attributes, the globals it names
#   class     of the top level of __main__     its class statement, which runs again at the server
#   made      any other class of the user      the call that makes it: type(name, bases, dict), namedtuple(...), ...
#   module    of the user's own tree           as it is in its file; the modules of the tree that it imports are needed
#   own       one of our four modules          by a code word: the server has its own copy
#   object    any other callable               a pickle: partial, bound method, instance with __call__, len
#
# What belongs to the standard library or to site-packages is imported by name at the server.
#
# Why classes run their statement again: to copy the class dictionary is to redo by hand what dataclass, Enum, slots,
# metaclasses, super() and __init_subclass__ do while a class is made, differently in every Python. What the program
# changed afterwards in plain attributes (Config.debug = True) is sent along. Only a class without a statement that can
# run alone (typed into a REPL or -c, made inside a function, by namedtuple()) is made from its dictionary.
#
# At the server the globals of shipped functions are the dictionary of the Namespace's __main__, one for all jobs of a
# client. So pickles that say __main__.Point mean the same class on both sides, and jobs of one server share globals.
#
# In pickles, functions, classes and modules are *words*, written as a call of importlib.import_module(word):
#   #3            the third reference of the definition or payload         $Point.Inner    an attribute of __main__
#   @pycoslite    our module, or with :name something of it                os.path         a module by its name
# A payload with words ends, behind the end of the pickle, with the keys of its references, their number (2 bytes) and
# a W. Plain data has no words: such a payload is what pickle.dumps makes, and costs no more.
#
# Header of a blob (JSON): kind, key, references (keys), same (it is bytecode), bind (its name in __main__), first (line
# of its text), file (as tracebacks show it); functions and classes also
#   globals  [name, "data" | "reference" | "module", where, mark, whether jobs assign it, needed while it is built]
#   imports  submodules to be imported                     package  what relative imports in __main__ are relative to
# and functions: name, qualname, module, home (the module whose globals it has), cells {variable: reference}. Parts:
# code, text, state, and the pickled globals. In source form `shape` tells what part of a file the text is.
#
# The way of a function, step by step (client above the line, server below it):
#
#   Packer.function    looks it up; a new one goes through _Graph.declare, the _FILLERS, close (digest), link (key)
#   Packer.closure_of  keys of all it needs, itself last
#   Packer.blob        the wire form that the server's Python reads
#   ---------------------------------------------------------------------------------------------------------
#   Namespace.define   stores the blob; import hooks know modules from here on; nothing has run yet
#   Namespace.function at the first job: the _BUILDERS make the object and what it needs, then globals are bound
#
# What holds:
#   - A refused round leaves no trace at the client (`forget_round`), a failed building none at the server (`_whole`),
#     so the same submit, or the next job, meets the same error and not a half-made object.
#   - Nothing is unpickled, unmarshalled or run for a peer that did not prove the secret: `define` and `loads` are only
#     called for what comes from the client that has the server, or (node_setup) the node.
#   - Circles are allowed everywhere (recursion, classes that name each other, modules that import each other): a key
#     covers the whole graph as seen from its definition, and an object is registered before its state is filled in.
#   - A payload never depends on the order in which definitions arrived, only on their being there.


class CannotShip(pycoslite.PycosError):
    """Something cannot travel to the servers; the sentence names it, where it stands, why, and what to change.

    Raised in the thread that submits, before anything is sent; only what depends on a server's Python (no source text
    for another version) ends the job later, with this as its error.
    """


class RemoteError(pycoslite.PycosError):
    """Stands for an exception whose own type could not travel: `type_name`, `message`, `traceback` are its text."""

    def __init__(self, type_name: str, message: str, traceback_text: str) -> None:
        super().__init__(type_name, message, traceback_text)
        self.type_name, self.message, self.traceback = type_name, message, traceback_text

    def __str__(self) -> str:
        return "%s: %s" % (self.type_name, self.message) if self.message else self.type_name


class RemoteTraceback(Exception):
    """The `__cause__` of an exception that was raised at a server; its text is the traceback there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return "\n\nat the server:\n" + self.text


_MAGIC = importlib.util.MAGIC_NUMBER    # equal at both ends: bytecode can be exchanged
_PICKLE_PROTOCOL = 5                    # the highest that Python 3.8, the oldest supported, has
# 128 bits: keys name content across all jobs of a client, who is trusted with running code anyway, so that only chance
# collisions count. Part of the JOB frame and of each payload's tail: a change is a change of the protocol.
_KEY_BYTES = 16
_STOP, _WORDS = ord("."), ord("W")      # last byte of a payload: plain pickle, or one that holds words
_TAIL = struct.Struct(">HB")            # end of such a payload: number of keys before it, _WORDS
_REMEMBERED = 4096                      # functions whose key is found without a look at them
_CLIENT = "<client>/"                   # stands for the client's folders in file names: tracebacks, __file__
_OWN_MODULES = ("pycoslite", "dispycos_lite", "dispycosnode_lite", "httpd_lite")
_HEAP_TYPE = 1 << 9                     # Py_TPFLAGS_HEAPTYPE: a class made by a class statement, not in C
_ABSENT = object()

_SCALARS = frozenset((int, float, bool, str, bytes, complex, type(None)))
_CONTAINERS = frozenset((tuple, list, dict))
_SMALL = 64                             # longer containers are not looked through: the pickler is faster

# What to do instead, by the type of what does not travel.
_LOCK_HINT = "create it inside the function, or pass what it protects"
_FILE_HINT = "open it inside the function, or send its name or content"
_PULL_HINT = "pass a list of what it yields, or call its function at the server"
_SOCKET_HINT = "connect inside the function"
_OTHER_HINT = "make it inside the function, or pass plain data that it can be made from"
_HINTS = {
    "_thread.lock": _LOCK_HINT, "_thread.RLock": _LOCK_HINT, "threading.Thread": "start it inside the function",
    "_io.TextIOWrapper": _FILE_HINT, "_io.BufferedReader": _FILE_HINT, "_io.BufferedWriter": _FILE_HINT,
    "_io.BufferedRandom": _FILE_HINT, "_io.FileIO": _FILE_HINT, "socket.socket": _SOCKET_HINT,
    "ssl.SSLSocket": _SOCKET_HINT, "generator": _PULL_HINT, "async_generator": _PULL_HINT, "coroutine": _PULL_HINT}


def _type_name(kind: type) -> str:
    """'generator', '_thread.lock', '__main__.Point': how a sentence names a type."""
    return kind.__qualname__ if kind.__module__ == "builtins" else "%s.%s" % (kind.__module__, kind.__qualname__)


def _because(what: str, value: Any, error: Exception) -> str:
    """The reason part of a refusal: `what` ("its global 'x'") is of which type, and what to do instead."""
    if isinstance(error, CannotShip):
        return "%s cannot travel: %s" % (what, error)
    name = _type_name(type(value))
    itself = name in _HINTS or any("'%s'" % known in str(error) for known in (name, type(value).__name__))
    detail = "" if itself else " and holds what cannot travel (%s)" % error
    return "%s is a %s%s; %s" % (what, name, detail, _HINTS.get(name, _OTHER_HINT))


# ---- which modules are ours, the user's, everybody's ----

# Only the folders of the standard library and of installed packages count as everybody's, not all of sys.prefix: with
# the prefix /usr a user's /usr/src/app would never be sent.
_STANDARD = os.path.normcase(os.path.realpath(os.path.dirname(os.__file__))) + os.sep
_INSTALLED = frozenset(("site-packages", "dist-packages", "lib-dynload", "DLLs"))
_STANDARD_NAMES = frozenset(getattr(sys, "stdlib_module_names", sys.builtin_module_names))


def _own_word(name: str) -> str:
    """'theirpkg._vendor.pycoslite' -> 'pycoslite'; '' for a module that is not ours."""
    word = name.rpartition(".")[2]
    return word if word in _OWN_MODULES else ""


def _own_module(word: str) -> types.ModuleType:
    """This process's copy of the module of ours that `word` stands for.

    Client and server may have us under different names (vendored in a package, or side by side), hence the word. The
    two that run already are never imported a second time.
    """
    loaded = {"pycoslite": pycoslite.__name__, "dispycos_lite": __name__}
    package = pycoslite.__name__.rpartition(".")[0]
    return importlib.import_module(loaded.get(word) or (package + "." + word if package else word))


@functools.lru_cache(maxsize=1024)
def _is_users(filename: str) -> bool:
    """Whether a file belongs to the user's own tree."""
    path = os.path.normcase(os.path.realpath(filename))
    return not path.startswith(_STANDARD) and _INSTALLED.isdisjoint(path.split(os.sep))


def _find_spec(name: str) -> Optional[importlib.machinery.ModuleSpec]:
    """The import spec of a module, loaded or not. Runs none of its code: only the file finders are asked."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__spec__", None)
    package, path = name.rpartition(".")[0], None
    if package:
        parent = _find_spec(package)
        if parent is None or parent.submodule_search_locations is None:
            return None
        path = list(parent.submodule_search_locations)
    try:
        return importlib.machinery.PathFinder.find_spec(name, path)
    except (ImportError, ValueError):
        return None                     # no such module, or no proper name: the import will say so where it stands


def _user_spec(name: str) -> Any:
    """The spec of a module of the user's own tree, None for any other module.

    This is the line between what is sent and what servers must have installed. A namespace package counts as the
    user's only if all its folders are.
    """
    if name.partition(".")[0] in _STANDARD_NAMES or name == "__main__" or _own_word(name):
        return None
    spec = _find_spec(name)
    if spec is None:
        return None
    places = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or ())
    return spec if places and all(map(_is_users, places)) else None


def _shown_name(filename: str) -> str:
    """A source file's name as the servers show it: below <client>/, relative to the entry of sys.path that holds it."""
    if filename.startswith("<"):
        return filename                 # <stdin>, <string>
    path = os.path.abspath(filename)
    entries = [os.path.abspath(entry) for entry in sys.path]
    below = [os.path.relpath(path, entry) for entry in entries if path.startswith(os.path.join(entry, ""))]
    return _CLIENT + min(below, key=len, default=os.path.basename(path)).replace(os.sep, "/")


def _lookup(obj: Any, main: types.ModuleType) -> Optional[Tuple[str, str]]:
    """(module, qualified name) under which a function or class is found again; None when it is not.

    `main` is the module that counts as __main__: a Namespace's own may not be the one in sys.modules.
    """
    module, name = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        return None
    found: Any = main if module == "__main__" else sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return (module, name) if found is obj else None


def _attribute(obj: Any, dotted: str) -> Any:
    """Attribute of an attribute, by a dotted name."""
    return functools.reduce(getattr, dotted.split("."), obj)


# ---- pickles with words ----


def _word(text: str) -> Tuple[Any, ...]:
    """The reduce value that stands for `text` in a pickle."""
    return importlib.import_module, (text,)


def _make_cached(function: Any, maxsize: Optional[int], typed: bool) -> Any:
    """Runs where the pickle is read: a cache around a function."""
    return functools.lru_cache(maxsize, typed)(function)


def _reduce_cached(function: Any) -> Tuple[Any, ...]:
    """A functools.lru_cache around a function: the function and the limits travel, the cache starts empty."""
    typed = hasattr(function, "cache_parameters") and function.cache_parameters()["typed"]      # Python 3.9
    return _make_cached, (function.__wrapped__, function.cache_info().maxsize, typed)


def _reduce_typevar(variable: Any) -> Tuple[Any, ...]:
    """A TypeVar, which pickle would look up by its name in a module."""
    options = {"covariant": variable.__covariant__, "contravariant": variable.__contravariant__}
    if variable.__bound__ is not None:
        options["bound"] = variable.__bound__
    return functools.partial(TypeVar, variable.__name__, *variable.__constraints__, **options), ()


# Types that pickle refuses, or names by a path that servers do not have.
_REDUCERS: Dict[Any, Callable[[Any], Tuple[Any, ...]]] = {
    type(functools.lru_cache()(_type_name)): _reduce_cached,
    TypeVar: _reduce_typevar,
    property: lambda p: (property, (p.fget, p.fset, p.fdel, p.__doc__)),
    staticmethod: lambda m: (staticmethod, (m.__func__,)),
    classmethod: lambda m: (classmethod, (m.__func__,)),
    functools.cached_property: lambda p: (functools.cached_property, (p.func,)),
    types.MappingProxyType: lambda m: (types.MappingProxyType, (dict(m),)),
}
_NAMED_TYPES = (types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type)


class _Pickler(pickle.Pickler):
    """Asks `refer(obj)` how to name each function, class and module: a word, or NotImplemented for the usual way."""

    def __init__(self, file: io.BytesIO, refer: Callable[[Any], Any]) -> None:
        super().__init__(file, _PICKLE_PROTOCOL)
        self._refer = refer

    def reducer_override(self, obj: Any) -> Any:
        """Called by pickle for everything that is no exact builtin scalar or container."""
        if isinstance(obj, _NAMED_TYPES):
            return self._refer(obj)
        reducer = _REDUCERS.get(type(obj))
        return NotImplemented if reducer is None else reducer(obj)


class _Unpickler(pickle.Unpickler):
    """Reads what `_Pickler` wrote; `codec` knows what the words mean in this process."""

    def __init__(self, data: Any, codec: "_Codec", references: Sequence[bytes]) -> None:
        super().__init__(io.BytesIO(data))
        self._codec, self._references = codec, references

    def find_class(self, module: str, name: str) -> Any:
        """Called by pickle for every global."""
        if module == "importlib" and name == "import_module":
            return self._meaning
        if module == "__main__":
            return self._codec.main_attribute(name)
        word = _own_word(module)
        return _attribute(_own_module(word), name) if word else super().find_class(module, name)

    def _meaning(self, word: str) -> Any:
        """What a word means here; stands in for importlib.import_module while this pickle is read.

        A pickle of the user's that really calls import_module comes here too, and gets what it asked for: a module's
        name has none of the marks.
        """
        mark, rest = word[:1], word[1:]
        if mark == "#":
            return self._codec.referred(self._references[int(rest)])
        if mark == "$":
            return self._codec.main_attribute(rest)
        if mark == "@":
            own, _, name = rest.partition(":")
            return _attribute(_own_module(own), name) if name else _own_module(own)
        return self._codec.module(word)


def _is_plain(obj: Any, deep: int = 2) -> bool:
    """True for scalars and small containers of them, two levels deep: what pickle handles without our help.

    It decides whether pickle.dumps may be called directly, which is much faster than a `_Pickler`, whose callback is
    Python. False is always safe: it only costs time. A dictionary with a key that is no scalar counts as not plain.
    """
    kind = type(obj)
    if kind in _SCALARS:
        return True
    if kind not in _CONTAINERS or len(obj) > _SMALL:
        return False
    if _SCALARS.issuperset(map(type, obj)):
        if kind is not dict:
            return True
        obj = obj.values()
    elif kind is dict:
        return False
    for item in obj:                    # no comprehension: this runs for every job
        if type(item) not in _SCALARS and (not deep or not _is_plain(item, deep - 1)):
            return False
    return True


class _Codec:
    """What `Packer` and `Namespace` share: payloads, and exceptions on their way back. One thread at a time.

    The two ends differ in what a name means, and in what may be referred to; that is `main_attribute`, `module`,
    `referred` and `refer`. What `refer` adds to `references` are definitions at the client, and keys at the server.
    """

    def main_attribute(self, dotted: str) -> Any:
        """The object of that (dotted) name in this end's __main__."""
        return _attribute(sys.modules["__main__"], dotted)

    def module(self, name: str) -> types.ModuleType:
        """The module of that name at this end."""
        return importlib.import_module(name)

    def referred(self, key: bytes) -> Any:
        """The object that a definition's key stands for."""
        raise NotImplementedError

    def refer(self, obj: Any, references: List[Any]) -> Any:
        """How a pickle names `obj`: a reduce value, or NotImplemented for pickle's own way. May add references."""
        raise NotImplementedError

    def pickle(self, value: Any, references: List[Any]) -> io.BytesIO:
        """Pickle one value into a buffer; whatever functions and classes it needs are added to `references`."""
        file = io.BytesIO()
        _Pickler(file, lambda obj: self.refer(obj, references)).dump(value)
        return file

    def unpickle(self, data: Any, references: Sequence[bytes]) -> Any:
        """Reverse of `pickle`; `references` are keys."""
        return _Unpickler(data, self, references).load()

    @staticmethod
    def close_payload(file: io.BytesIO, keys: Sequence[bytes]) -> bytes:
        """Put the keys that its words refer to behind a pickle, where `loads` of the other end finds them."""
        file.write(b"".join(keys))
        file.write(_TAIL.pack(len(keys), _WORDS))
        return file.getvalue()

    def loads(self, data: Any) -> Any:
        """The object that the other end's ``dumps`` made `data` (bytes-like) from. Raises what unpickling raises."""
        if data[-1] == _STOP:
            return pickle.loads(data)
        count = _TAIL.unpack_from(data, len(data) - _TAIL.size)[0]
        tail = bytes(data[len(data) - _TAIL.size - count * _KEY_BYTES:])
        return self.unpickle(data, [tail[n:n + _KEY_BYTES] for n in range(0, count * _KEY_BYTES, _KEY_BYTES)])

    def pack_exception(self, error: BaseException) -> bytes:
        """Bytes from which `unpack_exception` at the other end makes the exception again. Never fails for its content.

        The traceback goes as text, from the first frame on that is not of this package.
        """
        try:
            references: List[Any] = []
            body = self.close_payload(self.pickle(error, references), references)
        except Exception:               # user code runs here (__reduce__); then the text has to do
            body = b""
        try:
            message = str(error)
        except Exception:               # and here (__str__)
            message = "<its __str__ failed>"
        head = {"type": _type_name(type(error)), "message": message, "traceback": _traceback_text(error)}
        return _encode(head, [body])

    def unpack_exception(self, data: Any) -> BaseException:
        """The exception that `pack_exception` packed, as an instance of its own type; `__cause__` is a RemoteTraceback.

        A type that does not pickle, or does not unpickle here, gives a RemoteError with the same text instead.
        """
        head, (body,) = _decode(data)
        error: Any = None
        if body:
            try:
                error = self.loads(body)
            except (Exception, SystemExit) as failure:      # user code runs here (__init__, __setstate__)
                pycoslite.log.debug("exception %s arrives as text: %r", head["type"], failure)
        if not isinstance(error, BaseException):
            error = RemoteError(head["type"], head["message"], head["traceback"])
        error.__cause__ = RemoteTraceback(head["traceback"])
        return error


def _traceback_text(error: BaseException) -> str:
    """The traceback as Python prints it, without our own frames at its start.

    The last frame is kept even if it is ours: an empty traceback would say nothing of an error in our own code.
    """
    frames = error.__traceback__
    while frames is not None and frames.tb_next:
        name = os.path.basename(frames.tb_frame.f_code.co_filename)
        if os.path.splitext(name)[0] not in _OWN_MODULES:
            break
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))


# ---- wire form ----

# One envelope for definitions, exceptions and the payload of node.setup; `_encode` and `_decode` are its only users:
#
#   offset      size    content
#   0           4       bytes of the header, n
#   4           4       number of parts, p
#   8           8 * p   bytes of each part
#   8 + 8p      n       header, a JSON object in ASCII
#   8 + 8p + n  ...     the parts, one after the other; they end where the message ends, or it is refused

_COUNTS = struct.Struct(">II")          # bytes of the header, number of parts; then the length of each part


def _encode(head: Dict[str, Any], parts: Sequence[bytes]) -> bytes:
    """Header as JSON and parts as they are, in one piece."""
    text = json.dumps(head, separators=(",", ":")).encode("ascii")
    sizes = struct.pack(">%dQ" % len(parts), *map(len, parts))
    return b"".join([_COUNTS.pack(len(text), len(parts)), sizes, text, *parts])


def _decode(blob: Any) -> Tuple[Dict[str, Any], List[bytes]]:
    """Reverse of `_encode`. Raises pycoslite.ProtocolError when `blob` is nothing of the kind."""
    try:
        length, count = _COUNTS.unpack_from(blob)
        sizes = struct.unpack_from(">%dQ" % count, blob, _COUNTS.size)
        start = _COUNTS.size + 8 * count
        head, parts, start = json.loads(bytes(blob[start:start + length])), [], start + length
    except (struct.error, ValueError, RecursionError) as error:
        raise pycoslite.ProtocolError("a definition or exception cannot be read: %s" % error) from None
    if not isinstance(head, dict) or start + sum(sizes) != len(blob):
        raise pycoslite.ProtocolError("a definition or exception cannot be read: its header is no object, or it is %d "
                                      "bytes long and says %d" % (len(blob), start + sum(sizes)))
    for size in sizes:
        parts.append(bytes(blob[start:start + size]))
        start += size
    return head, parts


# ---- what code names ----

_READS = frozenset(("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"))
_STORES = frozenset(("STORE_GLOBAL", "DELETE_GLOBAL"))
_CONSTANTS = frozenset(("LOAD_CONST", "LOAD_SMALL_INT"))


def _nested(code: types.CodeType) -> List[types.CodeType]:
    """The code objects directly inside one."""
    return [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]


def _all_code(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code object and all those inside it."""
    yield code
    for inner in _nested(code):
        yield from _all_code(inner)


class _Names:
    """What code, with all the code inside it, takes from outside.

    The bytecode tells: co_names alone would not do, as a global `lock` is not meant by ``self.lock``. Names that are
    only reached through globals(), getattr with a computed text, or eval are not seen; such code must say what it
    needs in another way (an import, a default, the components of a `Client`).
    """

    def __init__(self, code: types.CodeType, now: bool) -> None:
        self.reads: Dict[str, bool] = {}            # global name -> needed while its definition is built
        self.stores: Set[str] = set()               # names it assigns with `global`
        self.attributes = {name for item in _all_code(code) for name in item.co_names}
        self.imports: List[Tuple[int, str]] = []    # level, dotted name
        self._scan(code, now)

    def _scan(self, code: types.CodeType, now: bool) -> None:
        """Add one code object; `now` says that it runs while its definition is built."""
        constants: List[Any] = [0, None]            # the last two that were loaded
        for step in dis.get_instructions(code):
            if step.opname in _READS:
                self.reads[step.argval] = self.reads.get(step.argval, False) or now
            elif step.opname in _STORES:
                self.stores.add(step.argval)
            elif step.opname in _CONSTANTS:
                constants = [constants[-1], step.argval]
            elif step.opname == "IMPORT_NAME":
                self._add_import(step.argval, *constants)
        for inner in _nested(code):                 # class bodies and comprehensions run at once, functions later
            self._scan(inner, now and (not inner.co_flags & inspect.CO_OPTIMIZED or inner.co_name.startswith("<")))

    def _add_import(self, name: str, level: int, parts: Any) -> None:
        """An import statement; what it takes from the module may be submodules."""
        self.imports.append((level, name))
        self.imports += [(level, "%s.%s" % (name, part) if name else part) for part in parts or ()]


def _absolute(level: int, name: str, package: str) -> str:
    """The absolute name of an import with so many leading dots; '' when it leads out of its package."""
    parents = package.split(".")
    if not level:
        return name
    if not package or level > len(parents):
        return ""
    return ".".join(parents[:len(parents) - level + 1] + ([name] if name else []))


def _imports_in(tree: ast.AST, package: str) -> Iterator[str]:
    """Absolute names of all modules that the import statements of a source text may mean."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node.level, node.module or "", package)
            yield base
            for alias in node.names:
                yield base + "." + alias.name


# ---- source text: to find it, to make code of it ----

_FUNCTION_NODES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)

# What has to be known to compile a piece of a file alone. first: line number of the text; lazy: see _compile; and for
# functions owner: class around it; prefix: start of its qualified name; free: its free variables; imports: names in it
# that its module imports; span: first and last column (a lambda only).
Shape = Dict[str, Any]


def _compile(tree: Any, filename: str, lazy: bool) -> types.CodeType:
    """Compile a syntax tree; `lazy`: its file has ``from __future__ import annotations`` (as this one has, too)."""
    flags = __future__.annotations.compiler_flag if lazy else 0
    return compile(tree, filename, "exec", flags=flags, dont_inherit=True)


def _parse_piece(text: str, shape: Shape) -> Any:
    """The syntax node of a def, class or lambda from the lines it stands in, with its line numbers.

    Lines are not dedented, which would change the strings that run over several of them: an indented statement gets
    an ``if`` around it. A lambda is cut out of its lines by `span` and stays in its column.
    """
    first, span = shape["first"], shape.get("span")
    if span:
        lines = text.encode().splitlines(True)
        lines[-1] = lines[-1][:span[1]]
        lines[0] = lines[0][span[0]:]
        node: Any = ast.parse("(" + " " * (span[0] - 1) + b"".join(lines).decode() + ")").body[0]
        node = node.value
    elif text[:1].isspace():
        node, first = ast.parse("if 1:\n" + text).body[0], first - 1
        node = node.body[0]
    else:
        node = ast.parse(text).body[0]
    return ast.increment_lineno(node, first - 1)


def _import_nodes(names: Iterable[str]) -> List[ast.stmt]:
    """Import statements of these names, which do not run.

    Since Python 3.11 calls through names that the module imports compile differently: without these the bytecode
    would not be the same.
    """
    return ast.parse("\n".join("import " + name for name in names)).body


def _compile_function(text: str, shape: Shape, filename: str) -> types.CodeType:
    """The code object of a def or lambda; nothing runs. Defaults, annotations and decorators are left out.

    It is compiled inside a function whose parameters are its free variables, and inside a class, whose name makes
    ``__private`` names come out as in the original (a class named _ leaves them alone) and which provides __class__.
    """
    node = _parse_piece(text, shape)
    node.args.defaults, node.args.kw_defaults = [], [None] * len(node.args.kwonlyargs)
    for argument in ast.walk(node.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    if isinstance(node, ast.Lambda):
        node = ast.copy_location(ast.Expr(node), node)
    else:
        node.decorator_list, node.returns = [], None
        node.type_params = []           # Python 3.12; an attribute that nobody looks at before
    outer: Any = ast.parse("def outer(%s):\n class %s: pass" % (", ".join(shape["free"]), shape["owner"] or "_"))
    outer.body[0].body[0].body = [node]
    outer.body += _import_nodes(shape["imports"])
    code = _compile(outer, filename, shape["lazy"])
    for _ in ("outer", "class", "function"):
        code = _nested(code)[0]
    return _renamed(code, "outer.<locals>.%s." % (shape["owner"] or "_"), shape["prefix"])


def _renamed(code: types.CodeType, old: str, new: str) -> types.CodeType:
    """The same code with another start of its qualified names, which are constants of the code around."""
    def rename(item: Any) -> Any:
        if isinstance(item, types.CodeType):
            return _renamed(item, old, new)
        return new + item[len(old):] if isinstance(item, str) and item.startswith(old) else item
    changes: Dict[str, Any] = {"co_consts": tuple(map(rename, code.co_consts))}
    if hasattr(code, "co_qualname"):    # Python 3.11
        changes["co_qualname"] = rename(code.co_qualname)
    return code.replace(**changes)


def _same_code(one: types.CodeType, two: types.CodeType) -> bool:
    """Whether two code objects do the same, whatever their lines, file and nesting.

    This guards the source form: what is sent as text must compile to what runs here. Types of constants are compared
    too, as 1 == 1.0 == True.
    """
    def outline(code: types.CodeType) -> Tuple[Any, ...]:
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        counts = (code.co_argcount, code.co_kwonlyargcount, code.co_posonlyargcount, code.co_flags & ~inspect.CO_NESTED)
        return code.co_code, names, counts, [type(constant) for constant in code.co_consts]
    if outline(one) != outline(two):
        return False
    pairs = zip(one.co_consts, two.co_consts)
    return all(_same_code(a, b) if isinstance(a, types.CodeType) else a == b for a, b in pairs)


def _first_line(node: Any) -> int:
    """The line on which a statement begins, its decorators included: what co_firstlineno says."""
    return min([node.lineno] + [decorator.lineno for decorator in getattr(node, "decorator_list", ())])


def _last_line(code: types.CodeType) -> int:
    """The last line that code, or code inside it, has an instruction on."""
    lines = [line for item in _all_code(code) for _, line in dis.findlinestarts(item) if line]
    return max(lines, default=code.co_firstlineno)


def _portable(code: types.CodeType, filename: str) -> types.CodeType:
    """The same code under the name that its file has at the servers."""
    constants = [_portable(item, filename) if isinstance(item, types.CodeType) else item for item in code.co_consts]
    return code.replace(co_filename=filename, co_consts=tuple(constants))


def _top_level(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes that are in no function and no class; they may be in an if or try."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, _FUNCTION_NODES + (ast.ClassDef,)):
            yield from _top_level(child)


class _SourceFile:
    """A source file as the running program has it: lines, and a syntax tree that is made when first needed.

    A file may have been edited since the program loaded it. So no text is taken that compiles to other bytecode.
    """

    def __init__(self, filename: str, namespace: Dict[str, Any]) -> None:
        self.filename, self.lines = filename, self._read(filename, namespace)

    @staticmethod
    def _read(filename: str, namespace: Dict[str, Any]) -> List[str]:
        """The loader knows best (zip files, -m); linecache also knows what was typed into some shells."""
        loader, spec = namespace.get("__loader__"), namespace.get("__spec__")
        text = None
        if filename == namespace.get("__file__") and hasattr(loader, "get_source"):
            try:
                text = loader.get_source(spec.name if spec else namespace["__name__"])
            except (ImportError, OSError, SyntaxError, UnicodeDecodeError):
                text = None             # then linecache is asked, and after it the sender does without
        return io.StringIO(text).readlines() if text else linecache.getlines(filename, namespace)

    @functools.cached_property
    def tree(self) -> ast.Module:
        """The whole file, parsed; empty if it cannot be."""
        try:
            return ast.parse("".join(self.lines))
        except (SyntaxError, ValueError):
            return ast.Module(body=[], type_ignores=[])

    @functools.cached_property
    def lazy(self) -> bool:
        """Whether the file has ``from __future__ import annotations``."""
        return any(isinstance(node, ast.ImportFrom) and node.module == "__future__"
                   and any(alias.name == "annotations" for alias in node.names) for node in self.tree.body)

    @functools.cached_property
    def imported(self) -> Set[str]:
        """Names that the module's own level gets by import."""
        aliases = [alias for node in _top_level(self.tree) if isinstance(node, (ast.Import, ast.ImportFrom))
                   for alias in node.names]
        return {(alias.asname or alias.name).partition(".")[0] for alias in aliases}.difference("*")

    def _functions(self) -> Iterator[Tuple[Any, str, str]]:
        """Every def and lambda, with the name of the innermost class around it, and the start of its qualified name."""
        stack: List[Tuple[Any, str, str]] = [(self.tree, "", "")]
        while stack:
            node, owner, prefix = stack.pop()
            if isinstance(node, _FUNCTION_NODES):
                yield node, owner, prefix
                prefix += getattr(node, "name", "<lambda>") + ".<locals>."
            elif isinstance(node, ast.ClassDef):
                owner, prefix = node.name, prefix + node.name + "."
            stack.extend((child, owner, prefix) for child in ast.iter_child_nodes(node))

    def function(self, code: types.CodeType) -> Optional[Tuple[str, Shape]]:
        """The text and shape from which another Python compiles `code`; None when the file has no such function (now).

        Of several lambdas that begin on one line that one is taken which gives the same bytecode.
        """
        for node, owner, prefix in self._functions():
            if getattr(node, "name", "<lambda>") == code.co_name and _first_line(node) == code.co_firstlineno:
                text, shape = self._cut(node, code)
                shape.update(owner=owner, prefix=prefix)
                try:
                    if _same_code(_compile_function(text, shape, code.co_filename), code):
                        return text, shape
                except (SyntaxError, ValueError, LookupError, AttributeError):
                    continue            # lambdas in f-strings have wrong columns before Python 3.12
        return None

    def _cut(self, node: Any, code: types.CodeType) -> Tuple[str, Shape]:
        """The lines of a function from its def on, and what has to be known to compile them alone."""
        free = [name for name in code.co_freevars if name != "__class__"]
        named = {name for item in _all_code(code) for name in item.co_names}
        shape: Shape = {"first": node.lineno, "free": free, "lazy": self.lazy, "imports": sorted(self.imported & named)}
        if isinstance(node, ast.Lambda):
            shape["span"] = [node.col_offset, node.end_col_offset]
        return "".join(self.lines[node.lineno - 1:node.end_lineno]), shape

    def klass(self, cls: type) -> Any:
        """The class statement of a class of the module's top level; None when it is not found, or changed since."""
        own = [item.__code__ for name, item in vars(cls).items() if isinstance(item, types.FunctionType)
               and item.__code__.co_name == name and item.__code__.co_filename == self.filename]
        found: List[Any] = [node for node in _top_level(self.tree)
                            if isinstance(node, ast.ClassDef) and node.name == cls.__name__]
        for code in own:
            found = [node for node in found if node.lineno <= code.co_firstlineno <= node.end_lineno]
        if len(found) != 1:
            return None
        tree = ast.Module([found[0], *_import_nodes(sorted(self.imported))], [])
        inside = list(_all_code(_compile(tree, "", self.lazy)))
        return found[0] if all(any(_same_code(code, other) for other in inside) for code in own) else None


def _remember_lines(filename: str, first: int, text: str) -> None:
    """Let tracebacks show these lines: `text` stands from line `first` on in the client's file.

    Several definitions of one file fill in their own lines of the same entry; lines nobody sent stay empty.
    """
    known = linecache.cache.get(filename)
    lines = list(known[2]) if known and len(known) == 4 else []
    new = io.StringIO(text).readlines()
    lines += [""] * (first - 1 + len(new) - len(lines))
    lines[first - 1:first - 1 + len(new)] = new
    if new:
        linecache.cache[filename] = (1, None, lines, filename)      # no time: never checked against a disk


# ---- client: definitions ----


def _index(items: List[Any], item: Any) -> int:
    """The place of `item` in a list, where it is added if need be; by identity."""
    for place, known in enumerate(items):
        if known is item:
            return place
    items.append(item)
    return len(items) - 1


class _Definition:
    """One thing that servers have to know: its header, its parts, and the definitions it needs.

    Declared (kind, subject, title) -> filled by its `_FILLERS` entry -> `close` -> `link`, after which it never changes
    but for `blobs`, a cache. `source` is called only when a server has another Python: to find text costs a parse.
    """

    __slots__ = ("kind", "subject", "title", "head", "parts", "references", "code", "text", "source", "notes", "digest",
                 "key", "order", "blobs")

    def __init__(self, kind: str, subject: Any, title: str) -> None:
        self.kind, self.subject, self.title = kind, subject, title
        self.head: Dict[str, Any] = {"bind": ""}            # "bind": its name in __main__, if it has one
        self.parts: List[bytes] = []
        self.references: List["_Definition"] = []
        self.code = b""                                     # marshalled
        self.text: Tuple[int, str] = (1, "")                # number of the first line, lines: for tracebacks
        self.source: Callable[[], Optional[Tuple[str, Shape]]] = lambda: None
        self.notes: List[str] = []                          # what stays behind
        self.digest = b""                                   # of its own content
        self.key = b""                                      # of that and of all it needs
        self.order: List["_Definition"] = []                # itself and all that it needs
        self.blobs: Dict[bool, bytes] = {}                  # wire forms made so far: bytecode (True), source (False)

    def close(self) -> None:
        """Its own content is complete now."""
        content = _encode(dict(self.head, kind=self.kind), [self.code, *self.parts])
        self.digest = hashlib.blake2b(content, digest_size=_KEY_BYTES).digest()

    def link(self) -> None:
        """Set key and order; everything it needs must be closed.

        Definitions may need each other in circles, so a key is the digest of the whole graph as seen from here: every
        content, with the numbers, in order of discovery, of what it refers to.
        """
        number = {id(self): 0}
        digest, self.order = hashlib.blake2b(digest_size=_KEY_BYTES), [self]
        for item in self.order:                             # grows meanwhile
            for reference in item.references:
                if number.setdefault(id(reference), len(self.order)) == len(self.order):
                    self.order.append(reference)
            digest.update(item.digest)
            digest.update(repr([number[id(reference)] for reference in item.references]).encode())
        self.key = digest.digest()

    def blob(self, same: bool) -> bytes:
        """The wire form: bytecode for the same Python (`same`), else source. Raises CannotShip when there is none."""
        if same not in self.blobs:
            head = dict(self.head, kind=self.kind, key=self.key.hex(), same=same, first=self.text[0],
                        references=[reference.key.hex() for reference in self.references])
            code, text = self.code, self.text[1]
            if code and not same:
                code, (text, head["shape"]) = b"", self._source_form()
            self.blobs[same] = _encode(head, [code, text.encode("utf-8", "surrogatepass"), *self.parts])
        return self.blobs[same]

    def _source_form(self) -> Tuple[str, Shape]:
        """Text and shape for another Python; the refusal names both ways out: a file, or the same Python there."""
        found = self.source()
        if found is None:
            raise CannotShip(
                "cannot send %s to another version of Python: its source text is not to be had, or has changed since "
                "it was loaded; define it in a file, or use Python %d.%d at the servers" % (
                    (self.title,) + sys.version_info[:2]))
        return found

    def form(self) -> str:
        """How it travels, in words."""
        if self.kind == "own":
            return "by name, every server has it"
        if not self.code:
            return "as a pickle"
        others = "source text for other versions" if self.source() else "other versions are refused"
        return "bytecode for Python %d.%d, %s" % (sys.version_info[:2] + (others,))


# Names of a __main__ that belong to the module itself; the server's has its own.
_MODULE_NAMES = frozenset(("__name__", "__builtins__", "__doc__", "__package__", "__spec__", "__loader__",
                           "__annotations__", "__cached__"))
# Entries of a class dictionary that Python makes by itself.
_CLASS_NAMES = frozenset(("__dict__", "__weakref__", "_abc_impl", "__abstractmethods__", "__firstlineno__",
                          "__static_attributes__", "__dataclass_fields__", "__dataclass_params__", "__match_args__"))
# Modules whose functions appear in classes that the user did not write them into.
_GENERATORS = frozenset(("enum", "dataclasses", "reprlib", "collections", "typing"))


def _title(obj: Any) -> str:
    """'work' (prog.py:12): how sentences name a function, class or any other object."""
    if isinstance(obj, str):
        return "'%s'" % obj             # a module
    name = getattr(obj, "__qualname__", None)
    code = getattr(obj, "__code__", None)
    if code is not None:
        return "'%s' (%s:%d)" % (name, os.path.basename(code.co_filename), code.co_firstlineno)
    return "'%s'" % name if name else "a %s" % _type_name(type(obj))


def _is_generated(item: Any) -> bool:
    """Whether a class attribute is a function that dataclass, Enum and the like put there.

    dataclass compiles text from a file called <string>; but so does ``python3 -c``, hence the look at the name.
    """
    return isinstance(item, types.FunctionType) and (item.__globals__.get("__name__") in _GENERATORS or (
        item.__code__.co_filename == "<string>" and item.__name__.startswith("__")))


def _entries(cls: Any) -> Dict[str, Any]:
    """What the user put into a class: its dictionary without what Python adds."""
    return {name: value for name, value in vars(cls).items()
            if name not in _CLASS_NAMES and not isinstance(value, types.MemberDescriptorType)}


def _maker(definition: _Definition) -> Callable[[], type]:
    """The call, as a partial, that makes a class again which has no class statement to run.

    namedtuple, Enum and dataclass are made by their own makers, as a copy of what those generated would not do; any
    other class by its metaclass from its dictionary, so without its class body's side effects.
    """
    cls, entries = definition.subject, _entries(definition.subject)
    if cls.__bases__ == (tuple,) and "_fields" in entries:
        return functools.partial(collections.namedtuple, cls.__name__, cls._fields, module=cls.__module__,
                                 defaults=tuple(cls._field_defaults.values()) or None)
    if isinstance(cls, enum.EnumMeta):
        if any(isinstance(item, types.FunctionType) and not _is_generated(item) for item in entries.values()):
            raise CannotShip("cannot send class %s: it is an Enum with methods, and has no class statement at the top "
                             "level of a file; move it there" % definition.title)
        members = [(name, member.value) for name, member in cls.__members__.items()]
        return functools.partial(cls.__base__, cls.__name__, members, module=cls.__module__, qualname=cls.__qualname__)
    if "__dataclass_params__" in vars(cls):
        return _dataclass_maker(cls, entries)
    return functools.partial(type(cls), cls.__name__, cls.__bases__, entries)


def _dataclass_maker(cls: Any, entries: Dict[str, Any]) -> Callable[[], type]:
    """Fields and methods of a dataclass; what the decorator generated is generated again."""
    inherited = [field for base in cls.__bases__ for field in getattr(base, "__dataclass_fields__", {}).values()]
    fields = []
    for field in cls.__dataclass_fields__.values():
        if not any(field is other for other in inherited):
            names = ("default", "default_factory", "init", "repr", "hash", "compare")
            options = {name: getattr(field, name) for name in names if getattr(field, name) is not dataclasses.MISSING}
            fields.append((field.name, field.type, options))
    left_out = {"__annotations__"}.union(field[0] for field in fields)
    kept = {name: value for name, value in entries.items() if name not in left_out and not _is_generated(value)
            and (name, value) != ("__hash__", None)}
    params = {name: getattr(cls.__dataclass_params__, name) for name in
              ("init", "repr", "eq", "order", "unsafe_hash", "frozen")}
    return functools.partial(_make_dataclass, cls.__name__, fields, bases=cls.__bases__, namespace=kept, **params)


def _make_dataclass(name: str, fields: List[Tuple[str, Any, Dict[str, Any]]], **options: Any) -> type:
    """Runs at the server: make_dataclass, with fields as (name, type, arguments of `dataclasses.field`)."""
    made = [(field, kind, dataclasses.field(**arguments)) for field, kind, arguments in fields]
    return dataclasses.make_dataclass(name, made, **options)


class _Graph(_Codec):
    """The client's definitions while they are found: `declare` notes one, `finish` completes it with all it needs.

    What is found is first only noted and then worked off from a list, so that long chains of functions do not recurse.

    A *round* is what is declared between two calls of `finish`. It is all or nothing: when anything in it cannot
    travel, `_known` is as before, so a later submit is refused for the same reason and not sent incomplete. Definitions
    that are complete stay for the life of the graph, and so do their subjects, whose ids are the keys of `_known`.
    """

    def __init__(self) -> None:
        self._known: Dict[Any, Tuple[Any, _Definition]] = {}    # identity -> object (kept: its id stays its own), ...
        self._new: List[_Definition] = []                       # of this round; a refused round is forgotten
        self._names: List[Any] = []                             # their identities
        self._files: Dict[str, _SourceFile] = {}
        self._codes: Dict[Tuple[types.CodeType, str], bytes] = {}
        self.subjects: Dict[bytes, Any] = {}                    # key -> object: for results that contain it
        self.made: Set[str] = set()                             # classes of __main__ that travel as kind "made"

    def referred(self, key: bytes) -> Any:
        """See `_Codec`: the client's own object, when a result names it."""
        return self.subjects[key]

    def refer(self, obj: Any, references: List[Any]) -> Any:
        """See `_Codec`: what travels by definition gets a word, all the rest is named by pickle."""
        if isinstance(obj, types.ModuleType):
            return _word(self.module_word(obj.__name__, references))
        if getattr(obj, "__module__", None) == "builtins":
            return NotImplemented
        place = self._place(obj)
        if place is None:
            definition = self.definition_of(obj)
            return NotImplemented if definition is None else _word("#%d" % _index(references, definition))
        module, name = place
        if module == "__main__":
            root = self.definition_of(getattr(sys.modules["__main__"], name.partition(".")[0]))
            if root is not None:
                _index(references, root)
            return _word("$" + name)
        word = self.module_word(module, references)
        return _word(word + ":" + name) if word.startswith("@") else NotImplemented

    def declare(self, kind: str, subject: Any, identity: Any = None) -> _Definition:
        """The definition of something; a new one is filled by `finish`. Without identity it is always a new one."""
        if identity in self._known:
            return self._known[identity][1]
        definition = _Definition(kind, subject, _title(subject))
        self._new.append(definition)
        if identity is not None:
            self._known[identity] = subject, definition
            self._names.append(identity)
        return definition

    def definition_of(self, obj: Any) -> Optional[_Definition]:
        """The definition under which a function or class travels; None if servers import it, or it is neither."""
        function = isinstance(obj, types.FunctionType)
        if not function and not (isinstance(obj, type) and obj.__flags__ & _HEAP_TYPE):
            return None
        place = self._place(obj)
        if place is not None and (place[0] != "__main__" or "." in place[1]):
            return None
        return self.declare("function" if function else "class", obj, id(obj))

    def _place(self, obj: Any) -> Optional[Tuple[str, str]]:
        """Like `_lookup`, but what is inside a class that is made from its dictionary cannot be found through it."""
        place = _lookup(obj, sys.modules["__main__"])
        if place is not None and place[0] == "__main__":
            root, _, rest = place[1].partition(".")
            return None if rest and root in self.made else place
        return place

    def module_word(self, name: str, references: List[Any]) -> str:
        """The word for a module; adds the modules that are to be sent for it. Raises CannotShip for the user's in C."""
        parts = name.split(".")
        for part in (".".join(parts[:n]) for n in range(1, len(parts) + 1)):
            if _own_word(part):
                _index(references, self.declare("own", part, ("module", part)))
                continue
            spec = _user_spec(part)
            if spec is not None and isinstance(spec.loader, importlib.machinery.ExtensionFileLoader):
                raise CannotShip("module '%s' (%s) is compiled, not Python source; install it in site-packages, here "
                                 "and at the servers" % (part, spec.origin))
            if spec is not None:
                _index(references, self.declare("module", part, ("module", part)))
        return "@" + _own_word(name) if _own_word(name) else name

    def finish(self) -> List[_Definition]:
        """Complete all that was declared, and return it. Raises CannotShip, and then forgets the whole round."""
        try:
            for definition in self._new:                        # grows meanwhile
                _FILLERS[definition.kind](self, definition)
                definition.close()
            for definition in self._new:
                definition.link()
                self.subjects[definition.key] = definition.subject
            done, self._new, self._names = self._new, [], []
            return done
        except BaseException:
            self.forget_round()
            raise

    def forget_round(self) -> None:
        """Drop what was declared since the last `finish`."""
        for name in self._names:
            self._known.pop(name, None)
        self._new, self._names = [], []

    def source_file(self, filename: str, namespace: Dict[str, Any]) -> _SourceFile:
        """The source file of that name; read once."""
        if filename not in self._files:
            self._files[filename] = _SourceFile(filename, namespace)
        return self._files[filename]

    def marshalled(self, code: types.CodeType) -> bytes:
        """Bytecode under its file's name at the servers. Kept, as equal code does not always marshal to equal bytes."""
        identity = code, code.co_filename
        if identity not in self._codes:
            self._codes[identity] = marshal.dumps(_portable(code, _shown_name(code.co_filename)))
        return self._codes[identity]

    def snapshot(self, definition: _Definition, value: Any, pieces: Iterable[Tuple[str, Any]]) -> bytes:
        """Pickle a value. Raises CannotShip for the first of its pieces ("its global 'x'", value) that does not."""
        try:
            return self.pickle(value, definition.references).getvalue()
        except Exception as error:                              # user code runs in pickle: anything may come
            reasons = (self._fault(what, piece) for what, piece in pieces)
            reason = next(filter(None, reasons), str(error))
            raise CannotShip("cannot send %s: %s" % (definition.title, reason)) from error

    def _fault(self, what: str, value: Any) -> str:
        """Why a value cannot travel; '' if it can."""
        try:
            self.pickle(value, [])
        except Exception as error:                              # as above
            return _because(what, value, error)
        return ""

    def bind(self, definition: _Definition, main: Dict[str, Any], names: _Names) -> None:
        """Note what the code's names mean in the client's __main__, so that they mean the same at the server."""
        package = main.get("__package__") or ""
        definition.head.update(package=package, imports=[], globals=[])
        for name in [*names.reads, *sorted(names.stores.difference(names.reads))]:
            if name in main and name not in _MODULE_NAMES:
                how, what, mark = self._meaning(definition, name, main[name], names)
                definition.head["globals"].append(
                    [name, how, what, mark, name in names.stores, names.reads.get(name, False)])
        for level, imported in names.imports:
            module = _absolute(level, imported, package)
            if _own_word(module) or _user_spec(module) is not None:
                self.module_word(module, definition.references)

    def _meaning(self, definition: _Definition, name: str, value: Any, names: _Names) -> Tuple[str, Any, str]:
        """How a global travels: (kind, where it is found, mark that tells one value from a later one)."""
        if isinstance(value, types.ModuleType):
            word = self._module_global(definition, name, value, names)
            return "module", word, word
        other = self.definition_of(value)
        if other is not None:
            return "reference", _index(definition.references, other), ""
        data = self.snapshot(definition, value, [("its global '%s'" % name, value)])
        definition.parts.append(data)
        return "data", len(definition.parts) - 1, hashlib.blake2b(data, digest_size=_KEY_BYTES).hexdigest()

    def _module_global(self, definition: _Definition, name: str, module: types.ModuleType, names: _Names) -> str:
        """The word of a module that code names, with the loaded submodules that it reaches by attributes.

        ``import xml.dom`` binds only `xml`; that xml.dom has to be imported is seen from the attribute in the code.
        """
        prefix = module.__name__ + "."
        try:
            for loaded in list(sys.modules):
                if loaded.startswith(prefix) and names.attributes.issuperset(loaded[len(prefix):].split(".")):
                    definition.head["imports"].append(self.module_word(loaded, definition.references))
            return "os.path" if module is os.path else self.module_word(module.__name__, definition.references)
        except CannotShip as error:
            raise CannotShip("cannot send %s: its global '%s' is %s" % (definition.title, name, error)) from None


def _main_name(obj: Any) -> str:
    """The name of a function or class at the top level of __main__; '' if it is anywhere else."""
    module, name = _lookup(obj, sys.modules["__main__"]) or ("", "")
    return name if module == "__main__" and "." not in name else ""


def _fill_function(graph: _Graph, definition: _Definition) -> None:
    """A function by value: code, state, and the globals it names if they are those of __main__."""
    function, code = definition.subject, definition.subject.__code__
    home = function.__globals__.get("__name__", "__main__")
    if vars(sys.modules.get(home, builtins)) is not function.__globals__:
        home = "__main__"               # made by exec with a dictionary of its own: it lives in __main__ at the server
    definition.head.update(
        name=function.__name__, qualname=function.__qualname__, module=function.__module__, cells={},
        file=_shown_name(code.co_filename), bind=_main_name(function))
    definition.parts.append(b"")        # keeps the first place for the state
    if home == "__main__":
        graph.bind(definition, function.__globals__, _Names(code, False))
    definition.head["home"] = graph.module_word(home, definition.references)
    definition.parts[0] = _function_state(graph, definition, function)
    definition.code = graph.marshalled(code)
    file = graph.source_file(code.co_filename, function.__globals__)
    first = code.co_firstlineno
    definition.text = first, "".join(file.lines[first - 1:_last_line(code)])
    definition.source = lambda: file.function(code)


def _function_state(graph: _Graph, definition: _Definition, function: Any) -> bytes:
    """Pickle of docstring, attributes, defaults and closure; cells that hold functions or classes become references.

    A function is often in its own cell (recursion), and a class in the cells of its methods.
    """
    cells = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        try:
            value = cell.cell_contents
        except ValueError:
            continue                    # not assigned yet
        other = graph.definition_of(value)
        if other is not None:
            definition.head["cells"][name] = _index(definition.references, other)
        else:
            cells[name] = value
    state = function.__doc__, function.__dict__, function.__defaults__, function.__kwdefaults__, cells
    pieces = [("its closure variable '%s'" % name, value) for name, value in cells.items()]
    pieces += [("the default of its parameter '%s'" % name, value) for name, value in _named_defaults(function)]
    pieces += [("its attribute '%s'" % name, value) for name, value in function.__dict__.items()]
    return graph.snapshot(definition, state, pieces)


def _named_defaults(function: Any) -> List[Tuple[str, Any]]:
    """Parameters with their default values."""
    count, defaults = function.__code__.co_argcount, function.__defaults__ or ()
    named = zip(function.__code__.co_varnames[count - len(defaults):count], defaults)
    return [*named, *(function.__kwdefaults__ or {}).items()]


def _fill_class(graph: _Graph, definition: _Definition) -> None:
    """A class: its statement if it has one at the top level of __main__, else the call that makes it again."""
    cls, main = definition.subject, sys.modules["__main__"]
    files = [item.__code__.co_filename for item in vars(cls).values()
             if isinstance(item, types.FunctionType) and not _is_generated(item)]
    filename = getattr(main, "__file__", None) or (files + ["<unknown>"])[0]
    bind = _main_name(cls)
    definition.head.update(name=cls.__name__, qualname=cls.__qualname__, module=cls.__module__, bind=bind,
                           file=_shown_name(filename))
    file = graph.source_file(filename, vars(main))
    node = file.klass(cls) if bind else None
    if node is None:
        definition.kind = "made"
        graph.made.add(bind)
        definition.parts.append(graph.snapshot(definition, _maker(definition), [
            ("its attribute '%s'" % name, item) for name, item in _entries(cls).items()]))
        return
    definition.title = "'%s' (%s:%d)" % (cls.__name__, os.path.basename(filename), node.lineno)
    first = _first_line(node)
    text = "".join(file.lines[first - 1:node.end_lineno])
    code = _compile(ast.Module([node], []), filename, file.lazy)
    changeable = _changeable(cls)
    definition.parts.append(graph.snapshot(definition, changeable, changeable.items()))
    graph.bind(definition, vars(main), _Names(code, True))
    definition.code, definition.text = graph.marshalled(code), (first, text)
    definition.source = lambda: (text, {"first": first, "lazy": file.lazy})


def _changeable(cls: Any) -> Dict[str, Any]:
    """Plain attributes of a class as the program has them now: it may have changed them after the class statement."""
    if isinstance(cls, enum.EnumMeta):
        return {}
    return {name: value for name, value in vars(cls).items() if not name.startswith("__") and _is_plain(value)}


def _fill_module(graph: _Graph, definition: _Definition) -> None:
    """A module of the user's tree: source, bytecode, and the modules of the tree that it imports."""
    name, spec = definition.subject, _user_spec(definition.subject)
    package = spec.submodule_search_locations is not None
    filename = _shown_name(spec.origin) if spec.has_location else _CLIENT + name.replace(".", "/")
    text, code = _module_content(name, spec)
    if text is None and code is None:
        raise CannotShip("cannot send module %s (%s): it has neither source nor bytecode; install it at the servers" % (
            definition.title, spec.origin))
    definition.head.update(name=name, package=package, file=filename)
    definition.code = marshal.dumps(_portable(code, filename)) if code is not None else b""
    if text is not None:
        definition.text, definition.source = (1, text), lambda: (text, {})
    for imported in sorted(set(_imports_in(ast.parse(text or ""), name if package else name.rpartition(".")[0]))):
        if _own_word(imported) or _user_spec(imported) is not None:
            try:
                graph.module_word(imported, definition.references)
            except CannotShip as error:         # it may be optional (try: import _speedups): the server will tell
                definition.notes.append(str(error))


def _module_content(name: str, spec: Any) -> Tuple[Optional[str], Optional[types.CodeType]]:
    """Source text and bytecode of a module, as far as its loader has them; a package may be a mere folder."""
    if not spec.has_location:
        return "", None
    text = spec.loader.get_source(name) if hasattr(spec.loader, "get_source") else None
    return text, spec.loader.get_code(name) if hasattr(spec.loader, "get_code") else None


def _fill_own(_: _Graph, definition: _Definition) -> None:
    """One of our modules, under the name that the client has it."""
    definition.head.update(name=definition.subject, word=_own_word(definition.subject))


def _fill_object(graph: _Graph, definition: _Definition) -> None:
    """Any other callable."""
    definition.parts.append(graph.snapshot(definition, definition.subject, [("it", definition.subject)]))


_FILLERS: Dict[str, Callable[[_Graph, _Definition], None]] = {
    "function": _fill_function, "class": _fill_class, "module": _fill_module, "own": _fill_own, "object": _fill_object}


class Packer:
    """Makes of a client's functions, classes and arguments what servers need to run them. Any thread may call it.

    One for a computation. A function is looked at when it is first submitted. Later changes of its globals, its module
    or its closure are not seen; a function that is defined anew is a new one. What has a state (callable instances,
    bound methods, partials) is packed at every call. Definitions are kept as long as the packer.
    """

    def __init__(self) -> None:
        self._graph = _Graph()
        self._lock = threading.RLock()                          # guards the graph and the two tables
        self._keys: Dict[Any, bytes] = {}                       # functions seen; the oldest go first
        self._definitions: Dict[bytes, _Definition] = {}

    def function(self, fn: Any) -> bytes:
        """The key (16 bytes) under which servers know a callable; a function seen before costs one dictionary look-up.

        Raises CannotShip before anything is sent: it names the function, the variable that cannot travel, its type,
        file and line.
        """
        try:
            return self._keys[fn]
        except (KeyError, TypeError):                           # TypeError: not hashable, so never remembered
            pass
        if not callable(fn):
            raise CannotShip("cannot send a %s as a function: it cannot be called" % _type_name(type(fn)))
        key = self.component(fn)
        if isinstance(fn, (types.FunctionType, types.BuiltinFunctionType, type)):
            with self._lock:
                while len(self._keys) >= _REMEMBERED:
                    del self._keys[next(iter(self._keys))]
                self._keys[fn] = key
        return key

    def component(self, obj: Any) -> bytes:
        """The key of a function, class, module or any object that pickles: what a computation is made with.

        Raises CannotShip.
        """
        with self._lock:
            if isinstance(obj, types.ModuleType):
                references: List[_Definition] = []
                self._graph.module_word(obj.__name__, references)
                definition = references[-1] if references else self._graph.declare("object", obj)
            else:
                definition = self._graph.definition_of(obj) or self._graph.declare("object", obj)
            self._finish()
            return definition.key

    def _finish(self) -> None:
        """Complete what was declared, and keep it; of equal content the first one stays. With the lock held."""
        for definition in self._graph.finish():
            self._definitions.setdefault(definition.key, definition)

    def closure_of(self, key: bytes) -> List[bytes]:
        """Keys of all definitions that one needs, itself last: to be sent in this order.

        No more of an order is promised, or needed: `Namespace` builds nothing before a job asks for it. Any thread, as
        the table only grows. KeyError for a key this packer did not give.
        """
        return list(dict.fromkeys(item.key for item in reversed(self._definitions[key].order)))

    def blob(self, key: bytes, magic: bytes) -> bytes:
        """The wire form of a definition for a server whose Python has the magic number `magic`.

        Raises CannotShip when that is another Python and there is no source text.
        """
        with self._lock:
            return self._definitions[key].blob(magic == _MAGIC)

    def dumps(self, obj: Any) -> Tuple[bytes, Tuple[bytes, ...]]:
        """Pickle a job's ``(args, kwargs)``: the bytes for `Namespace.loads`, and the keys of what they need there.

        Functions, classes and modules inside travel too. Raises CannotShip that names the argument and its type.
        """
        if type(obj) is tuple and len(obj) == 2:                # what most jobs have, found out in one call of C
            args, kwargs = obj
            if not kwargs and type(args) is tuple and len(args) <= _SMALL and _SCALARS.issuperset(map(type, args)):
                return pickle.dumps(obj, _PICKLE_PROTOCOL), ()
        if _is_plain(obj):
            return pickle.dumps(obj, _PICKLE_PROTOCOL), ()
        with self._lock:
            references: List[Any] = []
            try:
                file = self._graph.pickle(obj, references)
            except Exception as error:                          # user code runs in pickle: anything may come
                self._graph.forget_round()
                raise self._refused(obj, error) from error
            if not references:
                return file.getvalue(), ()
            self._finish()
            keys = tuple(definition.key for definition in references)
            return self._graph.close_payload(file, keys), keys

    def _refused(self, obj: Any, error: Exception) -> CannotShip:
        """Which of the arguments it was."""
        args, kwargs = obj if isinstance(obj, tuple) and list(map(type, obj)) == [tuple, dict] else ((obj,), {})
        named = [("argument %d" % number, value) for number, value in enumerate(args, 1)]
        for what, value in named + [("argument '%s'" % name, value) for name, value in kwargs.items()]:
            try:
                self._graph.pickle(value, [])
            except Exception as failure:                        # as above
                return CannotShip("cannot send %s: %s" % (what, _because("it", value, failure)))
            finally:
                self._graph.forget_round()
        return CannotShip("cannot send the arguments: %s" % error)

    def loads(self, data: Any) -> Any:
        """The object that a server's `Namespace.dumps` made `data` from. Raises what unpickling raises."""
        return self._graph.loads(data)

    def unpack_exception(self, data: Any) -> BaseException:
        """The exception that a server's `Namespace.pack_exception` packed, with a RemoteTraceback as `__cause__`."""
        return self._graph.unpack_exception(data)

    def explain(self, key: bytes) -> List[str]:
        """What goes to the servers with a definition, in which form, and what stays: lines for `explain_send`."""
        lines = []
        with self._lock:
            for item in reversed(self._definitions[key].order):
                lines.append("%s %s goes %s" % (item.kind, item.title, item.form()))
                modules = [entry[2] for entry in item.head.get("globals", ()) if entry[1] == "module"]
                sent = {"@" + str(other.head.get("word")) for other in item.references if other.kind == "own"}
                sent.update(other.head["name"] for other in item.references if other.kind == "module")
                lines += ["    it imports %s there, which is not sent" % name
                          for name in dict.fromkeys(modules + item.head.get("imports", [])) if name not in sent]
                lines += ["    not sent: " + note for note in item.notes]
        return lines


def explain_send(fn: Any) -> List[str]:
    """Say, line by line, what would travel to the servers if `fn` were submitted, in which form, and what would stay.

    For a function that cannot be sent it is one line: the sentence of its CannotShip. Nothing is sent. Any thread.
    """
    packer = Packer()
    try:
        return packer.explain(packer.function(fn))
    except CannotShip as error:
        return [str(error)]


# ---- server: definitions become functions, classes and modules again ----


_HEADS = {"module": ("name",), "own": ("name", "word")}     # kind -> what `Namespace.define` reads of it


class _Received:
    """A definition as it arrived. Raises pycoslite.ProtocolError for what is none, before anything of it is used."""

    __slots__ = ("key", "head", "code", "text", "parts", "references")

    def __init__(self, blob: Any) -> None:
        self.head, parts = _decode(blob)
        try:
            self.key = bytes.fromhex(self.head["key"])
            self.references = [bytes.fromhex(key) for key in self.head["references"]]
            wanted = ("kind", "bind") + _HEADS.get(self.head["kind"], ())
            if not all(isinstance(self.head[name], str) for name in wanted):
                raise TypeError("one of %s is no text" % ", ".join(wanted))
            self.code, self.text, self.parts = parts[0], parts[1].decode("utf-8", "surrogatepass"), parts[2:]
        except (LookupError, TypeError, ValueError) as error:
            raise pycoslite.ProtocolError("a definition cannot be read: %r" % error) from None


def _run(code: types.CodeType, namespace: Dict[str, Any]) -> None:
    """The only place that runs what a client sent; the client has proved that it knows the secret."""
    exec(code, namespace)


class _Finder:
    """Import hook for the modules a client sent, and their loader: import does packages, circles, relative names.

    It stands first in sys.meta_path, so what the client sent goes before what this machine's disk has. One module of
    ours inside a package of the client's is put there by `add_own`, as the package's code may import it relatively.
    """

    def __init__(self) -> None:
        self._modules: Dict[str, _Received] = {}
        self._own: Dict[str, Dict[str, types.ModuleType]] = {}      # package -> our modules that it contains

    def add(self, received: _Received) -> None:
        """Offer a module. It takes the place of a loaded one of that name: the client's version counts for its jobs."""
        name = received.head["name"]
        self._modules[name] = received
        sys.modules.pop(name, None)

    def add_own(self, name: str, module: types.ModuleType) -> None:
        """Offer one of our modules under the client's name for it."""
        package, _, last = name.rpartition(".")
        self._own.setdefault(package, {})[last] = sys.modules.setdefault(name, module)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Called by import."""
        if name not in self._modules:
            return None
        head = self._modules[name].head
        loader: Any = self
        spec = importlib.machinery.ModuleSpec(name, loader, origin=head["file"], is_package=head["package"])
        spec.has_location = True
        return spec

    def create_module(self, spec: Any) -> None:
        """Called by import: an ordinary module will do."""

    def exec_module(self, module: types.ModuleType) -> None:
        """Called by import."""
        received = self._modules[module.__name__]
        _remember_lines(received.head["file"], 1, received.text)
        code = marshal.loads(received.code) if received.code else compile(
            received.text, received.head["file"], "exec", dont_inherit=True)
        vars(module).update(self._own.get(module.__name__, {}))
        _run(code, vars(module))

    def get_source(self, name: str) -> str:
        """Called by inspect and linecache."""
        return self._modules[name].text


def _make_main(late: Callable[[str], Any]) -> types.ModuleType:
    """A client's __main__ at a server; `late(name)` is asked for what it does not have.

    So a message with an instance of a class, which is unpickled elsewhere, finds the class before any job used it.
    """
    class Main(types.ModuleType):       # `late` is in no attribute: all names there belong to the client's program
        def __getattr__(self, name: str) -> Any:
            return late(name)
    main = Main("__main__")
    vars(main)["__builtins__"] = builtins
    return main


class Namespace(_Codec):
    """A server's side: one client's __main__, built from the definitions that arrive.

    Functions run in one thread, which is the one that asks for them; definitions and messages may come in any.

    `install` makes it ``sys.modules["__main__"]`` and hooks the client's modules into import, for the rest of the
    process; tests that share a process with the client pass False, and import what they have on disk.

    Globals are shared by all jobs of a server, which may change them. So a value that was set once is not set again
    when another function brings the same one, and a name that jobs assign (``global x``) keeps what it has.

    How something is built (`_whole` is the frame around it, with the lock held):

    begun       its key is in `_building`; who needs it meanwhile gets _ABSENT, or a cell that is filled later
    registered  it is in `_objects` under its key, so that circles close; its name in __main__ is set
    complete    state, cells and the globals its code names are set (`_bind_all`, after the outermost building)

    When anything fails, all that the outermost call registered is forgotten again.
    """

    def __init__(self, install: bool = True) -> None:
        self.main = _make_main(self._late_attribute)
        self._lock = threading.RLock()                      # held while something is built
        self._finder = _Finder() if install else None
        self._received: Dict[bytes, _Received] = {}
        self._declared: Dict[str, bytes] = {}               # name in __main__ -> newest definition of it
        self._objects: Dict[bytes, Any] = {}                # built; functions are there before their state is
        self._keys: Dict[int, bytes] = {}                   # id of such an object -> its key
        self._marks: Dict[str, str] = {}                    # name in __main__ -> mark of the value it was set to last
        # The following are empty unless something is being built.
        self._building: List[bytes] = []                    # begun, innermost last
        self._built: List[bytes] = []                       # since the outermost call began
        self._set: List[str] = []                           # names set since then
        self._cells: Dict[bytes, List[Any]] = {}            # closure cells that wait for a class
        self._unbound: List[Tuple[_Received, List[Any]]] = []       # globals that are to be set
        if install:
            sys.modules["__main__"] = self.main
            finder: Any = self._finder
            sys.meta_path.insert(0, finder)

    def define(self, blob: Any) -> bytes:
        """Take one definition (bytes-like) and return its key. Nothing of it runs before it is needed.

        Raises pycoslite.ProtocolError when the bytes are no definition.
        """
        received = _Received(blob)
        head = received.head
        if received.key in self._received:
            return received.key
        self._received[received.key] = received
        if head["bind"]:
            self._declared[head["bind"]] = received.key
        if self._finder is not None and head["kind"] == "module":
            self._finder.add(received)
        elif self._finder is not None and head["kind"] == "own":
            self._finder.add_own(head["name"], _own_module(head["word"]))
        return received.key

    def function(self, key: bytes) -> Any:
        """The callable (or class, module, object) of that key; built at the first call, with all it needs.

        Raises what its building raises (ImportError, an error in a class statement), and tries again the next time;
        PycosError when a definition has not arrived.
        """
        try:
            return self._objects[key]
        except KeyError:
            pass                        # not in here: what building raises is no consequence of this
        return self._whole(self._build, key)

    def loads(self, data: Any) -> Any:
        """The arguments that `Packer.dumps` made `data` (bytes-like) from. Raises what unpickling raises."""
        return pickle.loads(data) if data[-1] == _STOP else self._whole(super().loads, data)

    def dumps(self, obj: Any) -> bytes:
        """A result for `Packer.loads`. Raises CannotShip, naming the type, when it does not pickle."""
        if _is_plain(obj):
            return pickle.dumps(obj, _PICKLE_PROTOCOL)
        references: List[bytes] = []
        try:
            return self.close_payload(self.pickle(obj, references), references)
        except Exception as error:                          # user code runs in pickle: anything may come
            raise CannotShip("cannot send the result: %s" % _because("it", obj, error)) from error

    def main_attribute(self, dotted: str) -> Any:
        """See `_Codec`; builds what has arrived and was not needed so far."""
        key = self._declared.get(dotted.partition(".")[0])
        if key is not None and key not in self._building:
            self.referred(key)
        return _attribute(self.main, dotted)

    def _late_attribute(self, name: str) -> Any:
        """What __main__ does not have: perhaps it has arrived and was not built so far."""
        key = self._declared.get(name)
        if key is None or key in self._building:
            raise AttributeError("module '__main__' has no attribute '%s'" % name)
        return self._whole(self.referred, key)

    def module(self, name: str) -> types.ModuleType:
        """See `_Codec`."""
        return self.main if name == "__main__" else importlib.import_module(name)

    def referred(self, key: bytes) -> Any:
        """See `_Codec`; with its globals set, as unpickling may call it."""
        if key not in self._objects:
            if key in self._building:
                raise pycoslite.PycosError("'%s' is needed to make itself" % self._received[key].head.get("name"))
            self._build(key)
            self._bind_all()
        return self._objects[key]

    def refer(self, obj: Any, references: List[Any]) -> Any:
        """See `_Codec`: what came from the client is named as the client names it."""
        if isinstance(obj, types.ModuleType):
            own = _own_word(obj.__name__)
            return _word("@" + own if own else obj.__name__)
        place = _lookup(obj, self.main)
        if place is None:
            key = self._keys.get(id(obj))
            return NotImplemented if key is None else _word("#%d" % _index(references, key))
        module, name = place
        if module == "__main__":
            return _word("$" + name)
        return _word("@%s:%s" % (_own_word(module), name)) if _own_word(module) else NotImplemented

    def _whole(self, work: Callable[[Any], Any], argument: Any) -> Any:
        """Do something that builds; afterwards all that it built is complete, or else nothing of it is remembered."""
        with self._lock:
            if self._building or self._built:
                return work(argument)                       # not the outermost call: user code that runs meanwhile
            try:
                result = work(argument)
                self._bind_all()
                return result
            except BaseException:
                for key in self._built:
                    self._keys.pop(id(self._objects.pop(key, None)), None)
                for name in self._set:
                    self._marks.pop(name, None)
                raise
            finally:
                self._building, self._built, self._set, self._unbound, self._cells = [], [], [], [], {}

    def _build(self, key: bytes) -> Any:
        """Make what a definition describes."""
        received = self._received.get(key)
        if received is None:
            raise pycoslite.PycosError("definition %s, which a job needs, has not arrived" % key.hex())
        self._building.append(key)
        try:
            return _BUILDERS[received.head["kind"]](self, received)
        finally:
            self._building.remove(key)

    def _have(self, key: bytes) -> Any:
        """The object of a key, made if need be; _ABSENT while it is being made."""
        if key in self._objects:
            return self._objects[key]
        return _ABSENT if key in self._building else self._build(key)

    def register(self, received: _Received, obj: Any) -> Any:
        """Builders call this with what a definition became: it gets its key, and its name in __main__."""
        key = received.key
        self._objects[key] = obj
        self._keys[id(obj)] = key
        self._built.append(key)
        for cell in self._cells.pop(key, ()):
            cell.cell_contents = obj
        if received.head["bind"]:
            self._assign(received.head["bind"], obj, received.head["key"])
        return obj

    def _assign(self, name: str, value: Any, mark: str) -> None:
        """Set a global of the client's; `mark` tells this value from a later one, and spares setting it again."""
        vars(self.main)[name] = value
        self._marks[name] = mark
        self._set.append(name)

    def fill_cell(self, cell: Any, key: bytes) -> None:
        """Put the object of `key` into a closure cell, now or as soon as it is made."""
        value = self._have(key)
        if value is _ABSENT:
            self._cells.setdefault(key, []).append(cell)
        else:
            cell.cell_contents = value

    def bind(self, received: _Received, now: bool) -> None:
        """Set the globals that a definition's code names: those needed to build it (`now`), or the others, later."""
        head = received.head
        if head.get("package"):
            vars(self.main)["__package__"] = head["package"]
        for name in head.get("imports", ()):
            self.module(name)
        self._unbound += [(received, entry) for entry in head.get("globals", ()) if bool(entry[5]) == now]
        if now:
            self._bind_all()

    def _bind_all(self) -> None:
        """Set all globals that wait for it. To build one may add more to the list, hence no for loop."""
        while self._unbound:
            self._bind_one(*self._unbound.pop())

    def _bind_one(self, received: _Received, entry: List[Any]) -> None:
        """Give one name of __main__ its value, unless it has that one, or jobs assign it."""
        name, how, what, mark, stored, _ = entry
        mark = received.head["references"][what] if how == "reference" else mark
        if self._marks.get(name) == mark or stored and name in vars(self.main):
            return
        if how == "data":
            value = self.unpickle(received.parts[what], received.references)
        elif how == "module":
            value = _own_module(what[1:]) if what.startswith("@") else self.module(what)
        else:
            value = self._have(received.references[what])
        if value is not _ABSENT:        # a class that is being made gets its name by itself
            self._assign(name, value, mark)


def _build_function(space: Namespace, received: _Received) -> Any:
    """A function: first the bare object, so that it can be found from its own cells; then its state and globals."""
    head = received.head
    if head["same"]:
        code = marshal.loads(received.code)
    else:
        code = _compile_function(received.text, head["shape"], head["file"])
    _remember_lines(head["file"], head.get("shape", head)["first"], received.text)
    cells = {name: types.CellType() for name in code.co_freevars}
    home = head["home"]
    namespace = vars(_own_module(home[1:]) if home.startswith("@") else space.module(home))
    function: Any = types.FunctionType(code, namespace, head["name"], None, tuple(cells.values()))
    function.__module__, function.__qualname__ = head["module"], head["qualname"]
    space.register(received, function)
    for name, reference in head["cells"].items():
        space.fill_cell(cells[name], received.references[reference])
    state = space.unpickle(received.parts[0], received.references)
    function.__doc__, attributes, function.__defaults__, function.__kwdefaults__, contents = state
    function.__dict__.update(attributes)
    for name, value in contents.items():
        cells[name].cell_contents = value
    space.bind(received, False)
    return function


def _build_class(space: Namespace, received: _Received) -> Any:
    """A class whose statement runs here again; what only its methods name is set later, as that may need the class."""
    head = received.head
    if head["same"]:
        code = marshal.loads(received.code)
    else:
        tree = ast.Module([_parse_piece(received.text, head["shape"])], [])
        code = _compile(tree, head["file"], head["shape"]["lazy"])
    _remember_lines(head["file"], head["first"], received.text)
    space.bind(received, True)
    _run(code, vars(space.main))
    cls = space.register(received, getattr(space.main, head["name"]))
    for name, value in space.unpickle(received.parts[0], received.references).items():
        if vars(cls).get(name, _ABSENT) != value:
            setattr(cls, name, value)
    space.bind(received, False)
    return cls


def _build_made(space: Namespace, received: _Received) -> Any:
    """A class that is made by a call."""
    cls = space.unpickle(received.parts[0], received.references)()
    cls.__module__, cls.__qualname__ = received.head["module"], received.head["qualname"]
    return space.register(received, cls)


def _build_module(space: Namespace, received: _Received) -> Any:
    """A module: imported by its name, which the finder or the disk has."""
    return space.register(received, space.module(received.head["name"]))


def _build_own(space: Namespace, received: _Received) -> Any:
    """One of our modules: this process's copy."""
    return space.register(received, _own_module(received.head["word"]))


def _build_object(space: Namespace, received: _Received) -> Any:
    """Any other callable."""
    return space.register(received, space.unpickle(received.parts[0], received.references))


_BUILDERS: Dict[str, Callable[[Namespace, _Received], Any]] = {
    "function": _build_function, "class": _build_class, "made": _build_made, "module": _build_module,
    "own": _build_own, "object": _build_object}


# ======================================================================================================================
# 4. Messages (pure)                                                      what client, node and server say to each other
# ======================================================================================================================
#
# Frames (the hot path). Integers are big-endian; a frame's length comes with it, so the last field runs to the end.
#
#   code  name      from    fields and their offsets
#   64    DEFINE    client  0 one packed definition (see Code shipping)
#   65    JOB       client  0 job u64 | 8 attempt u32 | 12 kind u8 | 13 function, 16 bytes | 29 pickled (args, kwargs)
#   66    STARTED   server  0 job u64 | 8 attempt u32 | 12 task id u64
#   67    RESULT    server  0 job u64 | 8 attempt u32 | 12 outcome u8 | 13 pickled value, exception or sentence
#   68    RECALL    client  0 count u32
#   69    RETURNED  server  0 job u64 | 8 attempt u32 | 12 the next one ...; answers every RECALL, even when empty
#   70    CANCEL    client  0 job u64 | 8 attempt u32
#
# A definition always precedes the first JOB that needs it. A job that was RETURNED has not started at that server,
# and never will under that attempt; the server gives back those that would have started last.
#
# Every JOB is answered by exactly one of RESULT and RETURNED, unless its server dies, which the node reports. An
# attempt number makes answers of an earlier run recognisable; they are counted (`stale`) and otherwise ignored.
#
#   a job that ...               client           server
#   is a plain function          JOB              RESULT (VALUE, EXCEPTION or UNPICKLABLE)
#   is a task, or does I/O       JOB              STARTED, RESULT; no STARTED if it could not begin
#   waits and is taken back      JOB, RECALL      RETURNED, with it among others
#   waits and is cancelled       JOB, CANCEL      RESULT TERMINATED
#   runs and is cancelled        JOB, CANCEL      a task gets KeyboardInterrupt: RESULT TERMINATED, or its own end;
#                                                 a plain function runs on: its server is killed after `grace_s`
#
# Requests (see `OPS` below for their fields). A reply that is an error is a refusal, with its sentence.
#
#   step          client                                     node or server
#   choosing      node.avail, if it has allocation rules     what is free
#   reserving     node.reserve                               granted, with the servers that are up; or waiting, with
#                                                            a place, then node.waiting as it changes, and node.granted
#   node set-up   its files, then node.setup                 error ('': none); the servers are made anew
#   servers       (connects to each that is up)              node.server for each that comes or goes, from then on
#                 server.attach; DEFINEs; server.setup       error ('': none); then the server gets jobs
#   in use        node.restart                               an empty reply, or a refusal; node.server 'down', and 'up'
#                                                            for the next one
#                 node.avail, every pulse_interval           what is free
#   the end       node.release                               an empty reply; the processes are killed
#   at any time                                              node.stopping: release it as soon as its jobs have ended;
#                                                            node.refused: the node is lost for this client
#
# Jobs of a client can close their server or node by client.close_server and client.close_node, which the client then
# carries out with node.restart or node.release. The node frees itself, too, when its client's process is lost.

DEFINE, JOB, STARTED, RESULT, RECALL, RETURNED, CANCEL = range(64, 71)

FUNCTION, TASK, IO = range(3)           # kinds of job: plain call; generator or async def on a CPU; ... without one

VALUE, EXCEPTION, UNPICKLABLE, TERMINATED = range(4)                    # outcomes a server reports
ERROR = 4                               # outcome the cluster state adds: no result, the payload is a JobError

_JOB = struct.Struct(">QIB16s")
_START = struct.Struct(">QIQ")
_RESULT = struct.Struct(">QIB")
_RUN = struct.Struct(">QI")             # one run of one job: its id and attempt
_COUNT = struct.Struct(">I")

pack_job = _JOB.pack                    # (job id, attempt, kind, function key) -> header; the arguments follow it
pack_started = _START.pack              # (job id, attempt, task id) -> frame
pack_result = _RESULT.pack              # (job id, attempt, outcome) -> header; the payload follows it
pack_recall = _COUNT.pack               # (count) -> frame
pack_run = _RUN.pack                    # (job id, attempt) -> frame of CANCEL, item of RETURNED

Bytes = Union[bytes, bytearray, memoryview]


def _unpack(layout: struct.Struct, name: str, body: Bytes) -> tuple:
    """The fixed fields at the start of a frame. What follows them is the caller's; a body too short is refused here."""
    try:
        return layout.unpack_from(body)
    except struct.error:
        raise pycoslite.ProtocolError("a %s frame of %d bytes is shorter than its %d fixed ones" % (
            name, len(body), layout.size)) from None


def unpack_job(body: Bytes) -> Tuple[int, int, int, bytes, memoryview]:
    """Return (job id, attempt, kind, function key, pickled arguments) of a JOB frame. Raises ProtocolError."""
    job_id, attempt, kind, key = _unpack(_JOB, "JOB", body)
    if kind > IO:
        raise pycoslite.ProtocolError("a JOB frame names kind %d; 0, 1 and 2 are known" % kind)
    return job_id, attempt, kind, key, memoryview(body)[_JOB.size:]


def unpack_started(body: Bytes) -> Tuple[int, int, int]:
    """Return (job id, attempt, task id) of a STARTED frame. Raises ProtocolError."""
    return _unpack(_START, "STARTED", body)


def unpack_result(body: Bytes) -> Tuple[int, int, int, memoryview]:
    """Return (job id, attempt, outcome, payload) of a RESULT frame. Raises ProtocolError."""
    job_id, attempt, outcome = _unpack(_RESULT, "RESULT", body)
    if outcome > TERMINATED:
        raise pycoslite.ProtocolError("a RESULT frame names outcome %d; 0 to 3 are known" % outcome)
    return job_id, attempt, outcome, memoryview(body)[_RESULT.size:]


def unpack_recall(body: Bytes) -> int:
    """Return how many jobs a RECALL frame asks back. Raises ProtocolError."""
    return _unpack(_COUNT, "RECALL", body)[0]


def unpack_run(body: Bytes) -> Tuple[int, int]:
    """Return (job id, attempt) of a CANCEL frame. Raises ProtocolError."""
    return _unpack(_RUN, "CANCEL", body)


def pack_returned(runs: Iterable[Tuple[int, int]]) -> bytes:
    """Return the RETURNED frame for (job id, attempt) pairs, which may be none."""
    return b"".join([_RUN.pack(*run) for run in runs])


def unpack_returned(body: Bytes) -> List[Tuple[int, int]]:
    """Return the (job id, attempt) pairs of a RETURNED frame. Raises ProtocolError."""
    if len(body) % _RUN.size:
        raise pycoslite.ProtocolError("a RETURNED frame of %d bytes is not made of items of %d" % (
            len(body), _RUN.size))
    return list(_RUN.iter_unpack(body))


CLIENT_PLACE = "client"                 # a node's place for files of its client: the client's directory


class Op(NamedTuple):
    """A control request: who sends it, the type of each argument and of each field of the reply (None: one-way).

    A name that ends in ``?`` may be left out. Arguments are JSON; ``float`` takes whole numbers too. One-way requests
    are sent with `Peer.notify`, the others with `Peer.request`, from a system task. Receivers check what they get by
    `checked` before they look at it: a peer that proved the secret may still run another version.
    """

    sender: str
    args: Dict[str, type]
    reply: Optional[Dict[str, type]]


OPS = {
    # Ask for a node's servers. state: 'granted' (the rest as in node.granted), or 'waiting' (position, holder).
    "node.reserve": Op("client", {"client": str, "python": list, "magic": str, "cpus": int},
                       {"state": str, "directory?": str, "servers?": list, "name?": str, "cpus?": int,
                        "platform?": str, "pulses?": list, "position?": int, "holder?": str}),
    # The turn of a client that waited. servers: [{n, pid, process, port, name}]; pulses: the least and the most seconds
    # between two node.avail.
    "node.granted": Op("node", {"servers": list, "directory": str, "name": str, "cpus": int, "platform": str,
                                "pulses?": list}, None),
    # The place of a client that waits (1 is next) has changed, or who has the node.
    "node.waiting": Op("node", {"position": int, "holder": str}, None),
    # The client does not get the node, or has it no longer. final: it need not ask again; idle: not before it has jobs.
    # A node that ends waits for the answer; otherwise this is sent like the one-way ones.
    "node.refused": Op("node", {"reason": str, "final?": bool, "idle?": bool}, {}),
    # The node takes no more jobs for now, so the client is to release it when those that run have ended.
    "node.stopping": Op("node", {"reason": str}, None),
    # A server process came ('up') or ended ('down'; begun: id of the CPU job that it began last, 0: none; left out
    # where the node could not find that out).
    "node.server": Op("node", {"n": int, "state": str, "pid?": int, "port?": int, "process?": str, "reason?": str,
                               "begun?": int}, None),
    # Kill server n and, unless again is false, start a fresh one in its place. Refused unless the node is the client's.
    "node.restart": Op("client", {"n": int, "reason": str, "again?": bool}, {}),
    # The client has done; the node frees itself.
    "node.release": Op("client", {}, {}),
    # What the node has free (see DispycosNodeAvailInfo; None: its system does not tell) and what it is.
    "node.avail": Op("client", {}, {"platform": str}),
    # Run node_setup, then start the servers anew. The payload: its key, its arguments, the definitions it needs.
    "node.setup": Op("client", {}, {"error": str}),
    # The server belongs to this client from now on.
    "server.attach": Op("client", {}, {}),
    # Make these definitions (hex keys) known, then run server_setup (a list of one key, or none; payload: arguments).
    "server.setup": Op("client", {"components": list, "setup": list}, {"error": str}),
    # A task wants the end of its own server, or node.
    "client.close_server": Op("server", {"terminate": bool, "restart": bool}, None),
    "client.close_node": Op("server", {"terminate": bool}, None),
    # To a scheduler program: one of this process's clients, by a number of its own, wants the nodes, or has done.
    "scheduler.enter": Op("client", {"client": int, "name": str}, None),
    "scheduler.leave": Op("client", {"client": int}, None),
    # The client's turn has come, or there are more nodes: [[host, port]]. zombie_s: how long it may be idle, 0: always.
    "scheduler.turn": Op("scheduler", {"client": int, "nodes": list, "zombie_s?": float}, None),
}


def checked(op: str, args: Any, fields: Optional[Dict[str, type]] = None) -> Dict[str, Any]:
    """Return `args` if they are what `OPS` says of `op` (or `fields`, for a reply), else raise ProtocolError.

    Arguments nobody knows pass: a newer version may send them.
    """
    fields = OPS[op].args if fields is None else fields
    if not isinstance(args, dict):
        raise pycoslite.ProtocolError("%s carries %s where an object belongs" % (op, type(args).__name__))
    for field, kind in fields.items():
        name = field.rstrip("?")
        value = args.get(name)
        if name not in args and field.endswith("?"):
            continue
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or isinstance(value, bool) and kind is not bool:
            raise pycoslite.ProtocolError("%s: %s must be %s, not %.80r" % (op, name, kind.__name__, value))
    return args


def checked_server(facts: Any) -> Dict[str, Any]:
    """Return what a node says of one of its servers, in node.server and in each item of a grant's `servers`: one that
    is up has a port and the id of its process. Raises ProtocolError."""
    checked("node.server", facts)
    if facts["state"] == "up" and not (0 < facts.get("port", 0) < 65536 and "process" in facts):
        raise pycoslite.ProtocolError("node.server: server %d is up, but not where: %.200r" % (facts["n"], facts))
    return facts


def checked_grant(facts: Any) -> Dict[str, Any]:
    """Return what a node grants, as node.granted or as an answer to node.reserve. Raises ProtocolError."""
    checked("node.granted", facts)
    for server in facts["servers"]:
        checked_server(server)
    pulses = facts.get("pulses", [0, 0])
    if not (len(pulses) == 2 and all(type(limit) in (int, float) and 0 <= limit < 1e9 for limit in pulses)):
        raise pycoslite.ProtocolError("node.granted: pulses must be two numbers of seconds, not %.80r" % (pulses,))
    return facts


def checked_place(reply: Any) -> Dict[str, Any]:
    """Return an answer to node.reserve: a grant, or a place in the queue. Raises ProtocolError."""
    checked("node.reserve", reply, OPS["node.reserve"].reply)
    return checked_grant(reply) if reply["state"] == "granted" else checked("node.waiting", reply)


# ======================================================================================================================
# 5. Cluster state (pure)                                                            events and now in, instructions out
# ======================================================================================================================
#
# `ClusterState` is told what happened (its public methods, each with the time it happened at) and collects what is to
# be done about it; the driver fetches that with `take()` after each batch of events and carries it out in order. No
# job costs more with a thousand nodes than with ten: no event looks at every node, server or job. What is in the way
# of that is found late instead: entries of heaps and queues go stale and are dropped when they come to the front.
#
#   instruction                                 what the driver does
#   (SEND_JOB, server, job, attempt)            send JOB (after the DEFINEs it needs)
#   (RECALL_JOBS, server, count)                send RECALL; its RETURNED goes to `returned`
#   (CANCEL_JOB, server, job, attempt)          send CANCEL
#   (JOB_DONE, job, outcome, payload)           settle the job; once per job. Outcome ERROR: payload is a JobError,
#                                               the others are a server's outcome and payload, untouched
#   (STATUS, code, info[, reason])              tell the status task; info is the node's DispycosNodeInfo, the server's
#                                               location, or for TaskStarted (job, task id)
#   (RESTART_SERVER, server, reason, again)     have the node kill the process; again: and start another
#   (RELEASE_NODE, node)                        give the node back
#   (WAKE, node, n)                             there is work again for what was ended because it was idle: have the
#                                               node start server n, or (n None) take the node anew
#
# CPU jobs: a server runs those it holds one after the other, in the order in which it got them. It holds the running
# one and some that wait (prefetched), within its window, which follows its pace: about `credit_target_s` of work.
# I/O jobs take no part in that; each goes to the server with the fewest.
# What a server that died has begun of the jobs it held, its node knows (`begun`), as the server keeps that where it
# outlives it. Without the node, which may be lost, too: the first one for sure (as far as the caller may know), those
# behind it not. A job that has not begun goes back to the head of the queue; one that has, runs again only within its
# `retries`. As "not begun" can be wrong without the node, and as a job may kill its server by its mere arrival, some
# are doubtful: all that had not begun without the node, with it the first if not even that had begun. A job that went
# down with `max_runs` - 1 servers is next sent alone to an idle one, so that the third time decides, and a job that
# kills its server cannot go round for ever.
#
# Five classes, each the base of the next: `_Dispatch` (which job goes where), `_Lives` (what becomes of a job),
# `_Fleet` (steps of what happens to nodes and servers), `_Patience` (what becomes of those that are idle, or silent),
# `ClusterState` (the events). The lower two call up only through `_emptied`, `_restart` and `_close_if_done`, which
# `_Fleet` has.
#
# A job (`JOB_MOVES`):
#
#   from             event     to         when, and where in the code
#   queued           send      sent       a server of its place has room: `_send`, `_send_io`
#   sent             start     started    STARTED came, which only tasks send: `started`
#   sent             requeue   queued     the server gave it back: `returned`
#   sent, started    requeue   queued     the server is gone, and the job may run again: `_lose`
#   sent, started    stop      stopping   it may have begun and is to end: `_stop`, for cancel, timeout or close
#   sent             drop      ghost      it has not begun and is to end: its caller is told at once, the server later
#   stopping         drop      ghost      it did not stop within `grace_s`: `_expire`, which has the server killed
#   sent, started,   drop      ghost      its node is abandoned, and it may not run again: `_give_up`
#   stopping
#   any              end       ended      a result, or a loss that is final: `_finish`; for ghosts `_lay`
#
# A node or server (`PLACE_MOVES`), where "takes jobs" is `Server.serves`:
#
#   state        takes jobs    how it gets there
#   discovered   no            node_up, server_up: it is being set up
#   up           yes           ready, resume
#   suspended    no            suspend; what it holds runs on, what it has not begun is recalled
#   closing      no            close_server, close_node; then RESTART_SERVER or RELEASE_NODE once it is empty
#   restarting   no            its process is being killed; what it holds is settled by server_down
#   gone         no            server_down, node_down, released
#   A node that is silent keeps its state, and its servers take no jobs until it is heard.
#
# What is idle, and what is silent (`limit` says after how long; all of it is off at first):
#
#   a server that takes jobs had none for `zombie_s`    it is closed, and its process ended, unless a job waits; the
#                                                       first job that has to wait wakes all (WAKE)
#   all servers of a node that are left                 the node is closed and given back; such a job has it taken anew
#   the client had no job for twice `zombie_s`          it is closed; its set-ups count as jobs as long as they run
#   a node was out of reach for `abandon_s`             it is abandoned, if that is wanted (`abandon`): its jobs are
#                                                       settled with NodeLost, or run again elsewhere by their retries
#   an abandoned node is heard again                    it is told as if it had just come. Servers are busy with what is
#                                                       settled and still runs there (ghosts); one that runs what was
#                                                       sent elsewhere, too, is restarted
#
# An idle server has nothing to finish, so it needs no second look after twice that time: its process is killed.
#
# Jobs are counted where they end, in the `Tally` of their server (`ended`, `_finish`, `_drop`: where JOB_DONE comes
# from); what has been handed in follows from that and from `jobs`, so most jobs cost one addition more. The `Ledger`
# has the tallies, also those of what is gone, and lives longer than the state: for all turns of a client.
#
# What holds after every event (`validate` checks it, the tests call that each time):
#   - A job is in exactly one place: a backlog, `_suspects`, a server's `held` or its `io`. `jobs` has them all until
#     their server has let go of them, even when their caller has been told (ghosts), because until then they take up
#     credit there, and a result that still comes must be recognised as one to ignore.
#   - No job waits while a server of its place has room; `free` of every place lists each server with room once, with
#     the number of jobs it holds, so that the best one is at the front after stale entries have been dropped.
#   - A server holds more than its limit only if the limit shrank since.
#   - Whatever was asked to stop has a timer, or its server is being killed: nothing waits for a reply for ever.
#   - While a suspect waits, no server of its place is idle, and one that serves is reserved: it gets nothing new.
# Why not ...
#   - ... one heap of servers kept exact: the load of a busy server changes with each result; a new entry per change of
#     what is on offer, and dropping old ones when met, costs nothing while the queue is not empty.
#   - ... the load of nodes: of equal servers the one goes first whose number, as a share of its node's, is lowest. That
#     fills all nodes alike without a figure per node that would have to be kept right in every server's entry.
#   - ... a clock per server for idleness: `idle` has the servers in the order in which they became so, hence the first
#     one is the next to be closed, and a busy cluster pays nothing for the rule.
#   - ... a window in seconds as told by the server: results arrive in batches, so what matters here is how fast they
#     arrive, the way back included; a server that runs dry looks slow, but its window still doubles turn by turn.

# The first item of an instruction; the driver looks its method up by it.
SEND_JOB, RECALL_JOBS, CANCEL_JOB, JOB_DONE, STATUS, RESTART_SERVER, RELEASE_NODE, WAKE = (
    "send", "recall", "cancel", "done", "status", "restart", "release", "wake")

_QUEUED = "queued"                      # in a backlog
_SENT = "sent"                          # held by a server; has begun if it is the first one there, or does I/O
_STARTED = "started"                    # likewise, and the server said that it has begun
_STOPPING = "stopping"                  # has begun and was asked to stop: `fate` says why, a timer how long it may take
_GHOST = "ghost"                        # settled, but the server has not let go of it yet, so it still takes its place
_ENDED = "ended"

JOB_MOVES = {
    "send": {_QUEUED: _SENT},
    "start": {_SENT: _STARTED},
    "requeue": {_SENT: _QUEUED, _STARTED: _QUEUED},
    "stop": {_SENT: _STOPPING, _STARTED: _STOPPING},
    "drop": {_SENT: _GHOST, _STARTED: _GHOST, _STOPPING: _GHOST},
    "end": {_QUEUED: _ENDED, _SENT: _ENDED, _STARTED: _ENDED, _STOPPING: _ENDED, _GHOST: _ENDED},
}
"""Event -> state before -> state after; what is not here cannot happen."""

_ON_SEND, _ON_END = JOB_MOVES["send"], JOB_MOVES["end"]

_FOUND = "discovered"                   # known, and not set up yet
_UP = "up"
_SUSPENDED = "suspended"                # takes no new jobs; what runs goes on
_CLOSING = "closing"                    # takes no new jobs and goes when it has none
_RESTARTING = "restarting"              # its process is being killed
_GONE = "gone"

PLACE_MOVES = {
    "ready": {_FOUND: _UP},
    "suspend": {_UP: _SUSPENDED},
    "resume": {_SUSPENDED: _UP},
    "close": {_FOUND: _CLOSING, _UP: _CLOSING, _SUSPENDED: _CLOSING},
    "restart": {_FOUND: _RESTARTING, _UP: _RESTARTING, _SUSPENDED: _RESTARTING, _CLOSING: _RESTARTING},
    "down": {_FOUND: _GONE, _UP: _GONE, _SUSPENDED: _GONE, _CLOSING: _GONE, _RESTARTING: _GONE},
}
"""The same for nodes and servers; an event that is not here for a state changes nothing (suspending twice)."""

_NODE_CODES = SchedulerStatus.ServerClosed - SchedulerStatus.NodeClosed     # a server's code less its node's
# By the state of a server, what was told of it, if it may still take jobs; a node's codes are less by the above.
_TOLD = {
    _FOUND: (SchedulerStatus.ServerDiscovered,),
    _UP: (SchedulerStatus.ServerDiscovered, SchedulerStatus.ServerInitialized),
    _SUSPENDED: (SchedulerStatus.ServerDiscovered, SchedulerStatus.ServerInitialized, SchedulerStatus.ServerSuspended),
}
_NEVER = float("inf")
_KEPT_PLACES = 1000                     # servers that are gone, and what ended there


class Terms:
    """How a job is to be run; one object may serve any number of jobs.

    `where`: None for anywhere, or a node's id, name or address, or a server's location. `retries`: how often a run that
    was lost with its server may be repeated. `timeout`: seconds a run may take, None for any. `priority`: higher first.

    A timeout counts from when the run begins, as far as that is known here: an I/O job's from when it is sent, a CPU
    job's from when it is the first one its server holds. `where` may name what is not there yet; the job then waits.
    Not to be changed once a job has them.
    """

    __slots__ = ("where", "retries", "timeout", "priority", "plain")

    def __init__(self, where: Any = None, retries: int = 0, timeout: Optional[float] = None,
                 priority: float = 0) -> None:
        self.where, self.retries, self.timeout, self.priority = where, retries, timeout, priority
        self.plain = where is None and timeout is None


class Job:
    """One job: `id` (whole, larger than any before it), `key` of its function, `kind`, `terms`; `load` is the driver's.

    `attempt` numbers its runs from 1; `server` is where it is, or was last. `runs` and `doubts` count only runs that
    were lost with their server: what was given back, or ran to an end, is no reason for suspicion.
    """

    __slots__ = ("id", "key", "kind", "terms", "load", "plain", "state", "attempt", "runs", "doubts", "server", "fate",
                 "timer")

    def __init__(self, id: int, key: bytes, kind: int = FUNCTION, terms: Terms = Terms(), load: Any = None) -> None:
        self.id, self.key, self.kind, self.terms, self.load = id, key, kind, terms, load
        self.plain = terms.plain and kind != IO     # the short paths do for it: no timer, no place, holds credit
        self.state = _QUEUED
        self.attempt = 0
        self.runs = 0                   # times it was lost after it had begun
        self.doubts = 0                 # times it was lost and may have begun
        self.server: Any = None
        self.fate: Optional[JobError] = None
        self.timer = 0

    @property
    def suspect(self) -> bool:
        """Whether so many servers died with it that it must run alone."""
        return self.kind != IO and self.runs + self.doubts >= max(settings.max_runs - 1, 1)

    def move(self, event: str) -> None:
        """Change state as `JOB_MOVES` says; KeyError means that the cluster state is wrong."""
        self.state = JOB_MOVES[event][self.state]


class Node:
    """One node: `id`, `info` (DispycosNodeInfo), `servers` by number, `state`; `silent` while it is out of reach.

    `location` is where its process was when it came, its id where nobody knows: jobs are counted under that.
    Silence is no state of its own, because a node can be suspended, or closing, and silent at the same time. `abandon`
    says whether it is to be abandoned when it is silent for too long, `abandoned` whether it is; its servers may run
    `strays` then, and later: jobs that were settled without an end.
    """

    __slots__ = ("id", "info", "location", "state", "silent", "abandon", "abandoned", "strays", "servers")

    def __init__(self, id: Any, info: DispycosNodeInfo) -> None:
        self.id, self.info, self.location = id, info, info.location or id
        self.state = _FOUND
        self.silent = self.abandon = self.abandoned = self.strays = False
        self.servers: Dict[int, Server] = {}


class Tally:
    """How many jobs have ended at a place: `done` are all, of these some otherwise than with a result."""

    __slots__ = ("done", "failed", "terminated", "abandoned")

    def __init__(self) -> None:
        self.done = self.failed = self.terminated = self.abandoned = 0

    def note(self, ending: str) -> None:
        """One more has ended: 'failed', 'terminated' or 'abandoned'."""
        self.done += 1
        setattr(self, ending, getattr(self, ending) + 1)

    def spoil(self) -> None:
        """The result of one that has ended turned out to be none."""
        self.failed += 1

    def add(self, other: "Tally") -> None:
        """Add the figures of another one."""
        self.done += other.done
        self.failed += other.failed
        self.terminated += other.terminated
        self.abandoned += other.abandoned

    def figures(self) -> Tuple[int, int, int, int]:
        """All of them, in the order of the fields of `JobCounts`."""
        return self.done, self.failed, self.terminated, self.abandoned


class Ledger:
    """What has ended where, from a client's first job on. One thread at a time, the engine; the figures may be read by
    any once its last state has closed.

    A server's key is its node's location and its own. Its successor at both goes on with its tally. Of those that are
    gone the last `_KEPT_PLACES` stand for themselves; older ones go into their node's, and nodes without any others
    into `nowhere`.
    """

    def __init__(self) -> None:
        self.servers: Dict[Tuple[Any, Any], Tally] = {}
        self.nodes: Dict[Any, Tally] = {}           # of a node's servers that are not in `servers` any more
        self.nowhere = Tally()                      # ended without a server, or where that is not kept any more
        self.repeats = 0                            # runs that were lost and are repeated: each is in a tally, too
        self._gone: Dict[Tuple[Any, Any], None] = {}            # of `servers`, longest first

    def open(self, server: "Server") -> Tally:
        """A server came: the tally to be its own."""
        key = server.node.location, server.location
        self._gone.pop(key, None)
        self.nodes.setdefault(key[0], Tally())
        return self.servers.setdefault(key, Tally())

    def close(self, server: "Server") -> None:
        """It has gone. What it held is still to be counted, in the tally that it has."""
        self._gone[server.node.location, server.location] = None
        if len(self._gone) > _KEPT_PLACES:
            oldest = next(iter(self._gone))
            del self._gone[oldest]
            node = oldest[0]
            self.nodes[node].add(self.servers.pop(oldest))
            if not any(key[0] == node for key in self.servers):
                self.nowhere.add(self.nodes.pop(node))

    def rows(self) -> List[tuple]:
        """The figures of all but the servers that are there, for `_summed`: (node, server, running, done, failed,
        terminated, abandoned), None for no place."""
        rows: List[tuple] = [(*key, 0, *self.servers[key].figures()) for key in list(self._gone)]
        rows += [(node, None, 0, *tally.figures()) for node, tally in list(self.nodes.items())]
        return rows + [(None, None, 0, *self.nowhere.figures())]


def _summed(rows: List[tuple], repeats: int, unfinished: int) -> ClusterCounts:
    """The counts that rows of figures give, when so many jobs have not ended. Pure, and not for the engine: with
    hundreds of servers it takes milliseconds."""
    tables: Tuple[Dict[Any, tuple], Dict[Any, tuple]] = {}, {}
    node_of = {}
    for node, server, *figures in rows:
        for table, place in zip(tables, (node, server)):
            before = table.get(place)
            table[place] = figures if before is None else tuple(map(operator.add, before, figures))
        node_of[server] = node
    total = tuple(map(sum, zip(*tables[0].values(), (0, -repeats, 0, 0, -repeats))))

    def _counts(running: int, done: int, *ends: int, pending: int = 0) -> JobCounts:
        return JobCounts(pending + running + done, pending, running, done, *ends)
    for table in (*tables, node_of):
        table.pop(None, None)
    nodes, servers = ({place: _counts(*figures) for place, figures in table.items()} for table in tables)
    return ClusterCounts(_counts(*total, pending=max(unfinished - total[0], 0)), nodes, servers, node_of)


def _ending(outcome: int, payload: Any) -> str:
    """As what a job is counted that ended without a result. What is no JobError could not be sent."""
    if outcome == TERMINATED:
        return Cancelled.ending
    return getattr(payload, "ending", JobError.ending) if outcome == ERROR else JobError.ending


class Server:
    """One server process: where it is, what it holds, how fast it is. `link` is the driver's.

    `held` has its CPU jobs by id in the order sent (the first one runs), `io` the others. `limit` is how many it may
    hold now: its `window`, 1 while it runs a suspect, 0 while it takes no jobs. `rtt_s` may be set to the round-trip
    time to it, which the window then covers too.

    A server record stands for one process: the next process of the same number gets a record of its own. Tickets: each
    entry in a heap carries one, and only that with the server's current ticket counts, so an entry is taken back by
    giving the server a new ticket (or 0) and not by searching the heap.
    """

    __slots__ = ("node", "n", "id", "location", "link", "tally", "state", "held", "io", "limit", "window", "solo",
                 "reserved", "again", "recalling", "astray", "timed", "places", "bias", "ticket", "io_ticket",
                 "since", "mark", "ends", "turn", "spent", "count", "rtt_s")

    def __init__(self, node: Node, n: int, id: Any, location: Any) -> None:
        self.node, self.n, self.id, self.location = node, n, id, location
        self.link: Any = None
        self.tally = Tally()                        # of jobs that ended here, and at its predecessors
        self.state = _FOUND
        self.held: Dict[int, Job] = {}
        self.io: Dict[int, Job] = {}
        self.limit = 0
        self.window = settings.credit_min
        self.solo = False                           # runs a suspect, which gets no company
        self.reserved = False                       # gets no more jobs until it is idle and can take a suspect
        self.again = self.recalling = False         # to be replaced when closed; a RECALL is on its way
        self.astray = False                         # may run jobs that were sent elsewhere while it was out of reach
        self.timed = 0                              # jobs held that have a timeout
        self.places: Tuple[Place, ...] = ()         # places it belongs to, besides anywhere
        self.bias = n / max(node.info.cpus, 1)      # among equals the lowest goes first: spreads jobs over the nodes
        self.ticket = self.io_ticket = 0            # number of its valid entry in the heaps of its places; 0: none
        self.since = self.mark = 0.0                # when the last batch of results came, and the one before it
        self.ends = self.turn = 0                   # results in that batch; results since the window grew
        self.spent = self.count = self.rtt_s = 0.0  # seconds and results, older ones fading

    def __str__(self) -> str:
        return "server %s of node %r (%s)" % (self.n, self.node.info.name, self.location)

    def reckon(self) -> None:
        """Set `limit` after anything it depends on has changed."""
        takes = self.serves() and not self.reserved
        self.limit = (1 if self.solo else self.window) if takes else 0

    def serves(self) -> bool:
        """Whether it is there for jobs, as far as its state and its node's go."""
        return self.state == _UP and self.node.state == _UP and not self.node.silent

    def pace(self, now: float) -> None:
        """Note that a new batch of results begins, and fit the window to how fast the last one came.

        Judging whole batches makes the figure right however results are grouped on their way; summing over several
        keeps one late batch from counting for much. The window doubles at most once per full turn of it.
        """
        if self.ends:
            keep = settings.credit_memory
            self.spent = self.spent * keep + self.since - self.mark
            self.count = self.count * keep + self.ends
            self.turn += self.ends
            goal = (settings.credit_target_s + self.rtt_s) * self.count / max(self.spent, 1e-9)
            if goal < self.window:
                self.resize(goal)
            elif self.turn >= self.window:
                self.resize(min(goal, 2 * self.window))
        self.mark, self.since, self.ends = self.since, now, 0

    def resize(self, window: float) -> None:
        """Set the window, within its limits, and start a new turn."""
        self.window = int(max(settings.credit_min, min(window, settings.credit_max)))
        self.turn = 0
        self.reckon()


class Backlog:
    """Jobs that wait, by priority, then by age. Those cancelled meanwhile stay until they are met, or too many.

    "Too many" is more than twice those that live, plus 64: so dropping them costs each job a constant number of steps,
    and short queues are never rebuilt. The heaps of `Place` are kept small by the same rule.
    """

    __slots__ = ("fresh", "ranked", "live")

    def __init__(self) -> None:
        self.fresh: Any = collections.deque()       # the usual case: priority 0, never sent yet
        self.ranked: List[tuple] = []               # heap of (-priority, id, job): the others
        self.live = 0                               # jobs in both that still wait

    def push(self, job: Job) -> None:
        """Put a job to where it belongs: one that was sent before goes before those that were not."""
        self.live += 1
        if job.attempt or job.terms.priority:
            heappush(self.ranked, (-job.terms.priority, job.id, job))
        else:
            self.fresh.append(job)

    def drop(self) -> None:
        """Note that a waiting job has ended."""
        self.live -= 1
        if len(self.fresh) + len(self.ranked) > 2 * self.live + 64:
            self.fresh = collections.deque(job for job in self.fresh if job.state == _QUEUED)
            self.ranked = [entry for entry in self.ranked if entry[2].state == _QUEUED]
            heapify(self.ranked)

    def peek(self) -> Optional[Job]:
        """Return the job that is next, None if there is none."""
        fresh, ranked = self.fresh, self.ranked
        while fresh and fresh[0].state != _QUEUED:
            fresh.popleft()
        while ranked and ranked[0][2].state != _QUEUED:
            heappop(ranked)
        if ranked and (not fresh or ranked[0][:2] < (0, fresh[0].id)):
            return ranked[0][2]
        return fresh[0] if fresh else None

    def pop(self) -> Job:
        """Take out the job that is next; there must be one (`live`)."""
        self.live -= 1
        if self.ranked:
            job: Any = self.peek()
            if self.ranked and self.ranked[0][2] is job:
                heappop(self.ranked)
            else:
                self.fresh.popleft()
            return job
        fresh = self.fresh
        job = fresh.popleft()
        while job.state != _QUEUED:
            job = fresh.popleft()
        return job


class Place:
    """What a job's `where` can name: its servers, the jobs that wait for one of them, and which server is next.

    `free` and `io_free` are heaps of (jobs held, bias, ticket, server). A server has at most one valid entry in each,
    the one with its current ticket.
    """

    __slots__ = ("where", "servers", "queue", "io_queue", "free", "io_free")

    def __init__(self, where: Any) -> None:
        self.where = where
        self.servers: Dict[Server, None] = {}
        self.queue, self.io_queue = Backlog(), Backlog()
        self.free: List[tuple] = []
        self.io_free: List[tuple] = []

    def offer(self, entry: tuple) -> None:
        """Note that the server of `entry` has room for a CPU job."""
        heappush(self.free, entry)
        if len(self.free) > 2 * len(self.servers) + 64:
            self.free = [entry for entry in self.free if entry[2] == entry[3].ticket]
            heapify(self.free)

    def offer_io(self, entry: tuple) -> None:
        """Note how many I/O jobs the server of `entry` has."""
        heappush(self.io_free, entry)
        if len(self.io_free) > 2 * len(self.servers) + 64:
            self.io_free = [entry for entry in self.io_free if entry[2] == entry[3].io_ticket]
            heapify(self.io_free)

    def best(self) -> Optional[Server]:
        """Return the server that holds the fewest CPU jobs and has room, None if there is none."""
        free = self.free
        while free:
            _, _, ticket, server = free[0]
            if ticket == server.ticket and len(server.held) < server.limit:
                return server
            heappop(free)
        return None

    def best_io(self) -> Optional[Server]:
        """Return the server for the next I/O job: one with the fewest, and no CPU job if there is a choice."""
        free = self.io_free
        while free and (free[0][2] != free[0][3].io_ticket or not free[0][3].limit):
            heappop(free)
        if not free:
            return None
        server, idle = free[0][3], self.best()
        return idle if idle is not None and not idle.held and len(idle.io) <= len(server.io) else server


class _Dispatch:
    """Which job goes to which server, and when one comes back. The lower half of `ClusterState`.

    CPU jobs: the server of the job's place that holds the fewest, if it has room. I/O jobs: the one with the fewest of
    these. When servers are idle while others hold jobs behind a long one, `_look` has half of those given back.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.ledger = Ledger()                      # another one may be put in its place before the first event
        self.jobs: Dict[int, Job] = {}              # all that have not ended, ghosts included
        self.ghosts = 0
        self.stale = 0                              # results of older attempts and second results: ignored
        self.anywhere = Place(None)
        self.places: Dict[Any, Place] = {}          # those some job has named
        self.idle: Dict[Server, float] = {}         # servers that take jobs and hold none, in the order of: since when
        self.rested = 0.0                           # when the last job was settled
        self._asleep: Dict[Tuple[Node, Optional[int]], None] = {}   # ended because they were idle; None: a whole node
        self._by_key: Dict[Any, Dict[Server, None]] = {}        # servers by all that a job may name
        self._suspects: Dict[int, Job] = {}         # jobs that wait for an idle server, to run alone
        self._reserved: Dict[Server, Place] = {}    # servers that get no jobs until they are idle, and for which place
        self._loaded: Dict[Server, None] = {}       # servers that hold two jobs or more, and perhaps some others
        self._look_at = _NEVER                      # when to search those for jobs to recall
        self._tickets = 0
        self._timers = pycoslite.TimerQueue()       # deadlines of jobs that run, and of those asked to stop
        self._out: List[tuple] = []

    def _place(self, where: Any) -> Place:
        """Return the place of that name. It is made when a job first names it, so that those nobody names cost nothing.

        It may have no servers yet; those that come later and answer to the name join it (`_Fleet._add`).
        """
        if where is None:
            return self.anywhere
        place = self.places.get(where)
        if place is None:
            place = self.places[where] = Place(where)
            for server in self._by_key.get(where, ()):
                self._join(server, place)
        return place

    def _join(self, server: Server, place: Place) -> None:
        """Make a server one of a place, and offer it there on the tickets it has."""
        place.servers[server] = None
        server.places += (place,)
        if server.limit:
            place.offer((len(server.held), server.bias, server.ticket, server))
            place.offer_io((len(server.io), server.bias, server.io_ticket, server))

    def _offer(self, server: Server) -> None:
        """Enter a server with room in the heaps of its places. Its new ticket makes what it had there before stale."""
        self._tickets = server.ticket = ticket = self._tickets + 1
        entry = (len(server.held), server.bias, ticket, server)
        self.anywhere.offer(entry)
        for place in server.places:
            place.offer(entry)
        if not server.held:
            self.idle.setdefault(server, self.now)
            self._look_soon()

    def _offer_io(self, server: Server) -> None:
        """The same for I/O jobs, for which there is always room; called whenever their number changes."""
        self._tickets = server.io_ticket = ticket = self._tickets + 1
        entry = (len(server.io), server.bias, ticket, server)
        self.anywhere.offer_io(entry)
        for place in server.places:
            place.offer_io(entry)

    def _send(self, server: Server, job: Job) -> None:
        """Send a CPU job to a server with room; the caller sees to what is on offer afterwards.

        It runs once per job, and so do `submit`, `ended`, `_refill` and `Backlog.pop`; everything that most jobs do not
        need (`Job.plain`) is kept out of these five.
        """
        held = server.held
        if not held:                    # its pace is measured from here: the time it had nothing to do does not count
            server.since = server.mark = self.now
            server.ends = 0
            self.idle.pop(server, None)
        job.state = _ON_SEND[job.state]
        job.attempt = attempt = job.attempt + 1
        job.server = server
        held[job.id] = job
        if len(held) == 2:
            self._loaded[server] = None
            self._look_soon()
            if self._asleep:
                self._wake()
        self._out.append((SEND_JOB, server, job, attempt))
        if not job.plain:
            self._send_special(server, job)

    def _send_special(self, server: Server, job: Job) -> None:
        """What sending takes besides for a job that must run alone, or has a timeout."""
        if job.suspect:
            server.solo = True
            server.reckon()
        if job.terms.timeout is not None:
            server.timed += 1
            self._arm(server)

    def _send_io(self, server: Server, job: Job) -> None:
        """Send an I/O job: it begins there at once, whatever else runs, so its timeout counts from now."""
        job.move("send")
        job.attempt += 1
        job.server = server
        server.io[job.id] = job
        self._out.append((SEND_JOB, server, job, job.attempt))
        if job.terms.timeout is not None:
            self._timers.push(self.now + job.terms.timeout, job)
        self._offer_io(server)

    def _arm(self, server: Server) -> None:
        """Start the clock of the job that runs at `server`, if it has a timeout and its clock does not run yet.

        A plain call sends no STARTED; it is taken to start when the result of the one before it arrives.
        """
        for job in server.held.values():
            if job.terms.timeout is not None and not job.timer:
                self._timers.push(self.now + job.terms.timeout, job)
            break

    def _unload(self, job: Job) -> None:
        """Take a job off its server, whatever becomes of it; `_refill` gives away the room if the server lives on."""
        server = job.server
        self._timers.cancel(job)
        if job.kind == IO:
            del server.io[job.id]
            if server.limit:
                self._offer_io(server)
            if self.idle.pop(server, None) is not None:
                self.idle[server] = self.now        # to the end: it is idle from now on
            return
        del server.held[job.id]
        if job.terms.timeout is not None:
            server.timed -= 1
        if server.solo:
            server.solo = False
            server.reckon()

    def _refill(self, server: Server) -> None:
        """Give a server that may have room what waits for it, and offer the room that is left.

        To be called after everything that may have made room: a job left, the window grew, the server came back.
        """
        held = server.held
        if not held and (self._suspects or server.reserved):
            self._attend(server)
        if server.timed:
            self._arm(server)
        if server.places:
            self._refill_by_rank(server)
        else:
            queue = self.anywhere.queue
            while queue.live and len(held) < server.limit:
                self._send(server, queue.pop())
        if len(held) < server.limit:
            self._offer(server)
        elif not server.limit and not held:
            self._emptied(server)

    def _refill_by_rank(self, server: Server) -> None:
        """As above, from the queues of several places: the job with the best priority first, then the oldest."""
        queues = [place.queue for place in (self.anywhere,) + server.places]
        while len(server.held) < server.limit:
            heads = [(-job.terms.priority, job.id, queue) for queue in queues for job in (queue.peek(),) if job]
            if not heads:
                break
            self._send(server, min(heads)[2].pop())

    def _queue(self, job: Job) -> Backlog:
        """Where a job waits (suspects wait elsewhere)."""
        place = self._place(job.terms.where)
        return place.io_queue if job.kind == IO else place.queue

    def _drain(self, place: Place) -> None:
        """Send what waits for a place to the servers there that have room."""
        while place.queue.live:
            server = place.best()
            if server is None:
                break
            self._send(server, place.queue.pop())
            if len(server.held) < server.limit:
                self._offer(server)
        while place.io_queue.live:
            server = place.best_io()
            if server is None:
                break
            self._send_io(server, place.io_queue.pop())

    def _wake(self) -> None:
        """A job has to wait: let all come back that was ended because it was idle. Not one for each job: a job may want
        a certain one, and not all of them can come back."""
        asleep, self._asleep = self._asleep, {}
        self._out += [(WAKE, node, n) for node, n in asleep]

    def _requeue(self, jobs: Iterable[Job]) -> None:
        """Put jobs that have left their servers back in front, and send them on where there is room."""
        places: Dict[Place, None] = {}
        for job in jobs:
            if job.suspect:
                self._suspects[job.id] = job
            else:
                self._queue(job).push(job)
                places[self._place(job.terms.where)] = None
            self._wake()
        if self._suspects:
            self._attend()
        for place in places:
            self._drain(place)

    def _attend(self, idle: Optional[Server] = None) -> None:
        """Send suspects to idle servers (one has just become idle). Where there is none, see that there will be."""
        if idle is not None and self._reserved.pop(idle, None):
            self._open(idle)
        lacking: Dict[Place, None] = {}
        for job in list(self._suspects.values()):
            place = self._place(job.terms.where)
            ready = idle is not None and idle.limit and not idle.held and idle in place.servers
            server = idle if ready else place.best()
            if server is not None and not server.held:
                del self._suspects[job.id]
                self._send(server, job)
            else:
                lacking[place] = None
        self._reserve(lacking)

    def _reserve(self, lacking: Dict[Place, None]) -> None:
        """Keep one server of each of these places, and no other, from getting jobs, so that it will be idle.

        Without that, servers that are refilled with each result would never be idle, and a suspect would wait as long
        as there are other jobs. The emptiest server is taken; what waits there is recalled.
        """
        for server, place in list(self._reserved.items()):
            if (place not in lacking or not server.serves()) and self._reserved.pop(server, None):
                self._open(server)
        for place in lacking:
            if place not in self._reserved.values():
                server = place.best() or next((each for each in place.servers if each.limit), None)
                if server is not None:
                    self._reserved[server] = place
                    self._open(server)

    def _open(self, server: Server) -> None:
        """Begin or cease to give a server jobs, after something of what that depends on has changed."""
        before = server.limit
        server.reserved = server in self._reserved
        server.reckon()
        if server.limit and not before:
            if len(server.held) > 1:
                self._loaded[server] = None
            self._offer_io(server)
            self._refill(server)
            for place in (self.anywhere,) + server.places:
                self._drain(place)
        elif before and not server.limit:
            server.ticket = server.io_ticket = 0
            self.idle.pop(server, None)
            self._recall_all(server)

    def _finish(self, job: Job, outcome: int, payload: Any) -> None:
        """Settle a job that is on no server any more."""
        self.rested = self.now
        tally = self.ledger.nowhere if job.state == _QUEUED else job.server.tally
        if outcome == VALUE:
            tally.done += 1
        else:
            tally.note(_ending(outcome, payload))
        job.move("end")
        del self.jobs[job.id]
        self._out.append((JOB_DONE, job, outcome, payload))

    def _look_soon(self) -> None:
        """Have `tick` search for jobs to recall, soon enough and not at every event; not at all if that is no use."""
        if self.idle and self._loaded:
            self._look_at = min(self._look_at, self.now + settings.recall_after_s)

    def _look(self) -> None:
        """If servers are idle, take from those that hold jobs behind a long one; the fullest of some first.

        It looks at `recall_look` servers, others each time, asks at most as many as there are idle ones, and comes back
        only if it left something that may become worth taking. Otherwise the next change that matters calls it:
        a server became idle or held a second job, or what was recalled came in.
        """
        now, loaded, found = self.now, self._loaded, []
        self._look_at = _NEVER
        again = len(loaded) > settings.recall_look
        for server in list(islice(loaded, settings.recall_look)):
            del loaded[server]
            if len(server.held) < 2 or not server.limit:
                continue
            loaded[server] = None                   # behind the others, which come first next time
            if now - server.since < settings.recall_after_s:
                again = True
            elif not server.recalling:
                found.append((self._movable(server), server))
        found.sort(key=lambda pair: pair[0], reverse=True)
        for movable, server in found[:len(self.idle)]:
            if movable:
                self._recall(server)
        if again:
            self._look_soon()

    def _movable(self, server: Server) -> int:
        """How many of the jobs that wait at a server an idle one could run."""
        if not server.places:
            return len(server.held) - 1
        able = {place: bool(best) and not best.held
                for place in (self.anywhere,) + server.places for best in (place.best(),)}
        return sum(able[self._place(job.terms.where)] for job in islice(server.held.values(), 1, None))

    def _recall(self, server: Server) -> None:
        """Ask a server for half of what waits there, and for all that its window, cut to its pace, does not cover.

        The window must shrink, else what comes back would be sent there again. Only half, because the job may end in
        this moment. All, if some jobs cannot go elsewhere: RECALL names no jobs, and those would come back in vain.
        """
        waiting = len(server.held) - 1
        pace = max(self.now - server.since, 1e-9)
        server.resize(min(server.window, settings.credit_target_s / pace))
        share = waiting if server.places else max((waiting + 1) // 2, waiting + 1 - server.window)
        server.recalling = True
        self._out.append((RECALL_JOBS, server, share))

    def _recall_all(self, server: Server) -> None:
        """Have a server that takes no jobs now, but can answer, give back what it has not started."""
        answers = server.state in (_UP, _SUSPENDED, _CLOSING) and not server.node.silent
        if answers and len(server.held) > 1 and not server.recalling:
            server.recalling = True
            self._out.append((RECALL_JOBS, server, len(server.held) - 1))


class _Lives(_Dispatch):
    """The life of a job from `submit` to JOB_DONE. The middle of `ClusterState`."""

    def __init__(self) -> None:
        super().__init__()
        self.closing = self.terminating = False     # the latter: its owner wants all jobs to be stopped
        self._last_id = -1

    def submit(self, job: Job, now: float) -> None:
        """A job was handed in. Raises ClusterClosed while closing, MisuseError for an id that is not a new one."""
        if self.closing:
            raise ClusterClosed("the cluster is closed and takes no more jobs; submit before close()", job.id)
        if job.id <= self._last_id:
            raise pycoslite.MisuseError("job ids grow: %d came after %d" % (job.id, self._last_id))
        self.now = now
        self._last_id = job.id
        self.jobs[job.id] = job
        place = self.anywhere if job.plain else self._place(job.terms.where)
        if job.kind == IO:
            server = place.best_io()
            if server is not None:
                return self._send_io(server, job)
            self._wake()
            return place.io_queue.push(job)
        server = place.best() if place.free and not place.queue.live else None
        if server is None:
            if self._asleep:
                self._wake()
            return place.queue.push(job)
        self._send(server, job)
        if len(server.held) < server.limit:
            self._offer(server)

    def started(self, job_id: int, attempt: int, task_id: int, now: float) -> None:
        """A server said that a job began (STARTED)."""
        self.now = now
        job = self.jobs.get(job_id)
        if job is None or job.attempt != attempt or job.state != _SENT:
            return
        job.move("start")
        self._out.append((STATUS, SchedulerStatus.TaskStarted, (job, task_id)))

    def ended(self, job_id: int, attempt: int, outcome: int, payload: Any, now: float) -> bool:
        """A server reported the end of a job (RESULT). Returns False for one that is not accepted.

        Results that arrived together should carry the same `now`.
        """
        job = self.jobs.get(job_id)
        if job is None or job.attempt != attempt or job.state == _QUEUED:
            self.stale += 1
            return False
        self.now = self.rested = now
        server = job.server
        if job.plain and job.state == _SENT:
            job.state = _ON_END[job.state]
            del server.held[job_id], self.jobs[job_id]
            self._out.append((JOB_DONE, job, outcome, payload))
            if outcome == VALUE:
                server.tally.done += 1
            else:
                server.tally.note(_ending(outcome, payload))
        else:
            self._unload(job)
            self._conclude(job, outcome, payload)
        if job.kind != IO:
            if now != server.since:
                server.pace(now)
            server.ends += 1
            self._refill(server)
        elif not server.limit:
            self._emptied(server)
        if self.closing:
            self._close_if_done()
        return True

    def _conclude(self, job: Job, outcome: int, payload: Any) -> None:
        """Settle a job that its server let go of: a stopped one with its fate, unless it had a result all the same."""
        if job.state == _GHOST:
            self._lay(job)
        elif job.state == _STOPPING and outcome == TERMINATED:
            self._finish(job, ERROR, job.fate)
        else:
            self._finish(job, outcome, payload)

    def _lay(self, ghost: Job) -> None:
        """Forget a job that was settled before, now that its server has let go of it."""
        ghost.move("end")
        del self.jobs[ghost.id]
        self.ghosts -= 1

    def returned(self, server: Server, runs: Iterable[Tuple[int, int]], now: float) -> None:
        """A server gave back jobs that it had not started (RETURNED), as (job id, attempt) pairs, perhaps none."""
        self.now = now
        server.recalling = False
        back = []
        for job_id, attempt in runs:
            job = self.jobs.get(job_id)
            if job is None or job.server is not server or job.attempt != attempt or job_id not in server.held:
                self.stale += 1
                continue
            self._unload(job)
            if job.state == _SENT:
                job.move("requeue")
                back.append(job)
            else:
                self._conclude(job, TERMINATED, None)
        self._requeue(back)
        self._refill(server)
        self._look_soon()
        if back and not server.limit:
            self._recall_all(server)                # a smaller recall was under way when it ceased to take jobs
        if self.closing:
            self._close_if_done()

    def cancel(self, job_id: int, now: float, fate: Optional[JobError] = None) -> bool:
        """Stop a job; `fate` is what it ends with, Cancelled if None. Returns False if it has ended or is stopping.

        One that waits ends at once, one that waits at a server too; one that runs when it has stopped or, after
        `grace_s`, together with its server. A result that comes before that is accepted.
        """
        self.now = now
        job = self.jobs.get(job_id)
        if job is None or job.state in (_STOPPING, _GHOST):
            return False
        self._stop(job, fate or Cancelled("job %d was cancelled" % job_id, job_id, job.attempt))
        if self.closing:
            self._close_if_done()
        return True

    def waiting(self) -> List[Job]:
        """Return the jobs that have not begun."""
        return [job for job in self.jobs.values() if job.state == _QUEUED or not self._begun(job)]

    def _stop(self, job: Job, fate: JobError) -> None:
        """Stop a job that is not stopping yet, wherever it is; see `cancel`."""
        if job.state == _QUEUED:
            self._finish(job, ERROR, fate)
            if self._suspects.pop(job.id, None):
                return self._attend()
            return self._queue(job).drop()
        self._out.append((CANCEL_JOB, job.server, job, job.attempt))
        if self._begun(job):
            job.move("stop")
            job.fate = fate
        else:
            self._drop(job, fate)
        self._timers.cancel(job)
        self._timers.push(self.now + settings.grace_s, job)

    def _drop(self, job: Job, fate: JobError) -> None:
        """Settle a job that its server still has."""
        self.rested = self.now
        job.server.tally.note(fate.ending)
        job.move("drop")
        self.ghosts += 1
        self._out.append((JOB_DONE, job, ERROR, fate))

    @staticmethod
    def _begun(job: Job) -> bool:
        """Whether a job on a server may have begun there."""
        return job.kind == IO or job.state == _STARTED or next(iter(job.server.held)) == job.id

    def tick(self, now: float) -> None:
        """Time has passed; to be called at `next_deadline()`."""
        self.now = now
        for job in self._timers.expired(now):
            self._expire(job)
        if now >= self._look_at:
            self._look()
        if self.closing:
            self._close_if_done()

    def next_deadline(self) -> Optional[float]:
        """When `tick` is next due; None while nothing is."""
        timer = self._timers.next_deadline()
        if self._look_at == _NEVER or timer is not None and timer < self._look_at:
            return timer
        return self._look_at

    def _expire(self, job: Job) -> None:
        """The timer of a job has run out: its timeout, or how long it may take to stop. Then its server must go."""
        server = job.server
        if job.state in (_SENT, _STARTED):
            timeout = job.terms.timeout
            self._stop(job, TimedOut("job %d ran for longer than its timeout of %g s on %s (attempt %d)" % (
                job.id, timeout, server, job.attempt), job.id, job.attempt, str(server)))
            return
        if job.state == _GHOST and not self._begun(job):
            return self._timers.push(self.now + settings.grace_s, job)      # the server is busy with those before it
        if job.state == _STOPPING:
            self._drop(job, job.fate)
        # When closing, the node ends all its processes soon; until then no CPU job is to suffer from an I/O job.
        if not self.closing or job.kind != IO and len(self.jobs) > self.ghosts:
            self._restart(server, "job %d did not stop within %g s" % (job.id, settings.grace_s))

    def _lose(self, server: Server, reason: str, error: type, begun: Optional[int]) -> None:
        """Settle or requeue all that a server had that is gone; `begun` as for `server_down`."""
        held = list(server.held)
        last = 0 if begun is None else held.index(begun) if begun in server.held else -1
        again = []
        for position, job in enumerate(list(server.held.values()) + list(server.io.values())):
            ran = position <= last or job.kind == IO or job.state == _STARTED
            self._unload(job)
            if job.state == _GHOST:
                self._lay(job)
            elif job.state == _STOPPING:
                self._finish(job, ERROR, job.fate)
            elif self._may_run_again(job, ran, begun is None or position == 0):
                job.move("requeue")
                again.append(job)
            else:
                self._finish(job, ERROR, self._loss(job, server, reason, error))
        self._requeue(again)

    def _may_run_again(self, job: Job, ran: bool, doubt: bool) -> bool:
        """Count that a job was lost with its server (doubt: it may have begun unnoticed); whether to send it again."""
        if ran:
            job.runs += 1
        elif doubt:
            job.doubts += 1
        job.plain = job.plain and not job.suspect
        again = (not ran or job.runs <= job.terms.retries) and job.runs + job.doubts < settings.max_runs
        if ran and again:
            job.server.tally.note(WorkerDied.ending)
            self.ledger.repeats += 1
        return again

    @staticmethod
    def _loss(job: Job, server: Server, reason: str, error: type) -> JobError:
        """What a job ends with that was lost: where, in which attempt, why, and what to do about it."""
        if job.runs <= job.terms.retries:
            hint = "it is given up because it went down with %d servers" % (job.runs + job.doubts)
        elif job.terms.retries:
            hint = "its %d retries are used up" % job.terms.retries
        else:
            hint = "submit it with retries= if it may run more than once"
        return error("job %d was lost with %s in attempt %d (%s); %s" % (job.id, server, job.attempt, reason, hint),
                     job.id, job.attempt, str(server))

    def why(self, job_id: int) -> str:
        """Return one sentence on what a job waits for."""
        job = self.jobs.get(job_id)
        if job is None:
            return "job %d has ended, or never was" % job_id
        if job.state == _QUEUED:
            return "job %d waits: %s" % (job_id, self._why_queued(job))
        if job.state == _GHOST:
            return "job %d has ended; %s has yet to let go of it" % (job_id, job.server)
        if job.state == _STOPPING:
            return "job %d was asked to stop on %s: %s" % (job_id, job.server, job.fate)
        if self._begun(job):
            return "job %d runs on %s (attempt %d)" % (job_id, job.server, job.attempt)
        ahead = list(job.server.held).index(job_id)
        return "job %d is at %s, behind %d others" % (job_id, job.server, ahead)

    def _why_queued(self, job: Job) -> str:
        """The rest of that sentence for a job that no server has."""
        if job.id in self._suspects:
            return "%d servers died with it, so it runs alone on the next one that is idle" % (job.runs + job.doubts)
        place = self._place(job.terms.where)
        name = "the cluster" if place.where is None else "%r" % (place.where,)
        if not place.servers:
            return ("no server is known yet" if place.where is None
                    else "no node or server that is known has the id, name or address %s" % name)
        if not any(server.limit for server in place.servers):
            return "none of the %d servers of %s takes jobs now (%s)" % (
                len(place.servers), name, ", ".join(sorted({server.state for server in place.servers})))
        return "the %d servers of %s are busy and %d jobs wait for them" % (
            len(place.servers), name, place.queue.live + place.io_queue.live)


def _move_place(entity: Union[Node, Server], event: str) -> bool:
    """Change the state of a node or server as `PLACE_MOVES` says; False if it says nothing."""
    state = PLACE_MOVES[event].get(entity.state)
    if state is None:
        return False
    entity.state = state
    return True


def _keys(server: Server) -> set:
    """All that the `where` of a job may say to mean this server."""
    info = server.node.info
    return {server.node.id, info.name, info.addr, server.location} - {None}


class _Fleet(_Lives):
    """How nodes and servers come, change and go. What the events of `ClusterState` are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: Dict[Any, Node] = {}
        self.closed = False
        self._why_closed = ""                       # unless its owner wished so
        self._silent: Dict[Node, float] = {}        # nodes out of reach and not abandoned, in the order of: since when

    def _add(self, server: Server) -> None:
        """Enter a new server in all places that it belongs to, and tell."""
        server.tally = self.ledger.open(server)
        server.node.servers[server.n] = server
        self.anywhere.servers[server] = None
        for key in _keys(server):
            self._by_key.setdefault(key, {})[server] = None
            if key in self.places:
                self._join(server, self.places[key])
        self._out.append((STATUS, SchedulerStatus.ServerDiscovered, server.location))

    def _say(self, code: int, info: Any, reason: str) -> None:
        """Tell of a change; the reason only where there is one."""
        self._out.append((STATUS, code, info, reason) if reason else (STATUS, code, info))

    def _remove(self, server: Server, code: Optional[int], reason: str = "") -> None:
        """Take a server out of all places, and tell that it closed, if that was not said before, and `code`."""
        self._reserved.pop(server, None)
        self._shut(server, "down", reason)
        self.ledger.close(server)
        del server.node.servers[server.n], self.anywhere.servers[server]
        for key in _keys(server):
            del self._by_key[key][server]
            if not self._by_key[key]:
                del self._by_key[key]
        for place in server.places:
            del place.servers[server]
        self._loaded.pop(server, None)
        if code is not None:
            self._out.append((STATUS, code, server.location))

    def _change(self, entity: Union[Node, Server], event: str, code: int, now: float) -> bool:
        """Carry out a change of state, if it is one, and tell. `code` as for a server; a node's is ten less."""
        self.now = now
        if not _move_place(entity, event):
            return False
        if isinstance(entity, Node):
            self._out.append((STATUS, code - _NODE_CODES, entity.info))
        else:
            self._out.append((STATUS, code, entity.location))
        self._reopen(entity)
        return True

    def _reopen(self, entity: Union[Node, Server]) -> None:
        """Whether these servers take jobs has to be found out anew. Suspects come last: a reserved one may be gone."""
        for server in list(entity.servers.values()) if isinstance(entity, Node) else [entity]:
            self._open(server)
        if self._suspects:
            self._attend()

    def _shut(self, server: Server, event: str, reason: str = "") -> bool:
        """Carry out an event after which a server takes no jobs for good; tell it once if it ever took any."""
        took = server.state in (_UP, _SUSPENDED)
        if not _move_place(server, event):
            return False
        if took:
            self._say(SchedulerStatus.ServerClosed, server.location, reason)
        self._open(server)
        return True

    def _restart(self, server: Server, reason: str) -> None:
        """Have a process killed. What it holds is settled when its death is reported, since it may still run on."""
        if self._shut(server, "restart"):
            self._out.append((RESTART_SERVER, server, reason, True))
        if self._suspects:
            self._attend()

    def _emptied(self, server: Server) -> None:
        """If a closing server has nothing left, have it ended."""
        if server.state != _CLOSING or self._occupied(server):
            return
        if server.node.state == _CLOSING:
            self._release_if_empty(server.node)
        elif _move_place(server, "restart"):
            self._out.append((RESTART_SERVER, server, "it was closed", server.again))

    def _release_if_empty(self, node: Node) -> None:
        """A closing node is released as a whole: its servers' processes end with it, so none is ended by itself."""
        if node.state == _CLOSING and not any(map(self._occupied, node.servers.values())):
            self._release(node)

    @staticmethod
    def _is_stray(job: Job) -> bool:
        """Whether it may be a job that was settled when its node was abandoned: nobody's any more."""
        return job.state == _GHOST and job.server.node.strays

    def _occupied(self, server: Server) -> bool:
        """Whether a server has jobs that its end has to wait for."""
        return not all(map(self._is_stray, list(server.held.values()) + list(server.io.values())))

    def _forget(self, node: Node) -> None:
        """A node is not there any more."""
        del self.nodes[node.id]
        self._silent.pop(node, None)
        for key in [key for key in self._asleep if key[0] is node and key[1] is not None]:
            del self._asleep[key]
        _move_place(node, "down")

    def _release(self, node: Node, reason: str = "") -> None:
        """Give a node back that has no jobs any more."""
        self._forget(node)
        for server in list(node.servers.values()):
            self._remove(server, None, reason)
        self._say(SchedulerStatus.NodeClosed, node.info, reason)
        self._out.append((RELEASE_NODE, node))
        if self._suspects:
            self._attend()

    def _stop_all(self, jobs: List[Job], cause: str) -> None:
        """Cancel these jobs, as far as they are not stopping yet; `cause` ends a sentence."""
        for job in jobs:
            if job.state not in (_STOPPING, _GHOST):
                fate = Cancelled("job %d was cancelled because %s" % (job.id, cause), job.id, job.attempt)
                if job.kind == IO and self.closing and not self.terminating:
                    fate.ending = NodeLost.ending
                self._stop(job, fate)

    def _close_if_done(self) -> None:
        """When closing and all jobs are settled: release the nodes and say good-bye."""
        if not self.closing or self.closed or len(self.jobs) > self.ghosts:
            return
        self.closed = True
        for ghost in list(self.jobs.values()):
            self._unload(ghost)
            self._lay(ghost)
        for node in list(self.nodes.values()):
            self._release(node, self._why_closed)
        self._say(SchedulerStatus.ClientClosed, None, self._why_closed)


class _Patience(_Fleet):
    """What becomes of servers, nodes and the client when nothing happens: the rules for what is idle, or silent.

    The head of this section has them in a table. Idleness counts from when the last job of a server, or of the client,
    was settled, or its last set-up ended; silence from `node_silent`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.zombie_s = self.abandon_s = 0.0        # 0: never
        self.setups = 0                             # set-ups of nodes and servers that run now
        self._rule = self._advice = ""              # where `zombie_s` comes from, and what to do then, for people

    def limit(self, zombie_s: float, abandon_s: float, rule: str, advice: str, now: float) -> None:
        """Begin to judge what is idle or silent, by these limits in seconds, 0 for never. `rule` says what the first
        one was set by, as in "zombie_period=60", `advice` what to do when the client was closed by it."""
        self.now = self.rested = now
        self.zombie_s, self.abandon_s, self._rule, self._advice = zombie_s, abandon_s, rule, advice

    def setting_up(self, change: int, now: float) -> None:
        """One set-up of a node or server more (1) or less (-1) runs; it is work, as jobs are."""
        self.now = self.rested = now
        self.setups += change

    def _client_idle(self) -> bool:
        """Whether the client has nothing to do, and is not closing anyway."""
        return not self.closing and not self.setups and len(self.jobs) == self.ghosts

    def next_deadline(self) -> Optional[float]:
        """When `tick` is next due; None while nothing is."""
        due = super().next_deadline()
        if not self.zombie_s and not self._silent:
            return due
        dues = [] if due is None else [due]
        if self.zombie_s and not self.closing:
            dues += (since + self.zombie_s for since in islice(self.idle.values(), 1))
            dues += [self.rested + 2 * self.zombie_s] if self._client_idle() else []
        if self.abandon_s:
            dues += islice((since + self.abandon_s for node, since in self._silent.items() if node.abandon), 1)
        return min(dues, default=None)

    def tick(self, now: float) -> None:
        """Time has passed; to be called at `next_deadline()`."""
        super().tick(now)
        if self.zombie_s and not self.closing:
            self._end_idle()
        for node, since in list(self._silent.items()) if self.abandon_s else ():
            if node.abandon and now >= since + self.abandon_s:
                self._abandon(node, since)

    # -- idle ----------------------------------------------------------------------------------------------------------

    def _idle_for(self, since: float) -> str:
        return "idle for %.3g s, %s" % (self.now - since, self._rule)

    def _end_idle(self) -> None:
        """Close the servers that were idle for long enough, nodes that have no others, then perhaps the client."""
        for node, servers in self._idle_by_node().items():
            if len(servers) == sum((node, n) not in self._asleep for n in node.servers):
                self._rest_node(node, self._idle_for(servers[-1][1]))
            else:
                for server, since in servers:
                    self._rest_server(server, self._idle_for(since))
        if self._client_idle() and self.now >= self.rested + 2 * self.zombie_s:
            self.closing = True
            self._why_closed = "the client was %s; %s" % (self._idle_for(self.rested), self._advice)
            self._close_if_done()

    def _idle_by_node(self) -> Dict[Node, List[Tuple[Server, float]]]:
        """The servers that are to be closed, and since when they are idle. The others' time begins anew."""
        found: Dict[Node, List[Tuple[Server, float]]] = {}
        due = list(takewhile(lambda entry: self.now >= entry[1] + self.zombie_s, self.idle.items()))
        waiting = bool(due) and self._any_waits()
        for server, since in due:
            if server.io or waiting:
                del self.idle[server]
                self.idle[server] = self.now
            else:
                found.setdefault(server.node, []).append((server, since))
        return found

    def _any_waits(self) -> bool:
        """Whether any job is on no server. It looks at all places that jobs have named."""
        return bool(self._suspects) or any(
            place.queue.live or place.io_queue.live for place in [self.anywhere, *self.places.values()])

    def rest_node(self, node_id: Any, reason: str, now: float) -> bool:
        """A node took itself back because it was idle; returns False when it is not: then that is its loss."""
        self.now = now
        node = self.nodes.get(node_id)
        if node is None or any(map(self._occupied, node.servers.values())):
            return False
        self._rest_node(node, reason)
        if self._any_waits():                       # for a server that was not ready, or suspended
            self._wake()
        return True

    def _rest_node(self, node: Node, reason: str) -> None:
        """Give a node back whose servers are all idle, or ended for that; `_wake` has it taken anew."""
        self._asleep[node, None] = None
        self._release(node, reason)

    def sleeps(self, node_id: Any) -> bool:
        """Whether a node was given back because it was idle, and is not wanted again so far."""
        return any(node.id == node_id and n is None for node, n in self._asleep)

    def _rest_server(self, server: Server, reason: str) -> None:
        """End the process of an idle server; `_wake` has another started."""
        self._shut(server, "close", reason)
        _move_place(server, "restart")
        self._asleep[server.node, server.n] = None
        self._out.append((RESTART_SERVER, server, reason, False))

    # -- silent --------------------------------------------------------------------------------------------------------

    def abandon(self, node: Node, flag: bool, now: float) -> None:
        """Whether this node is to be abandoned once it was silent for long enough; not at first."""
        self.now = now
        node.abandon = flag

    def node_silent(self, node_id: Any, now: float) -> None:
        """A node cannot be reached and may come back: it gets no new jobs."""
        self.now = now
        node = self.nodes[node_id]
        node.silent = True
        if not node.abandoned:
            self._silent.setdefault(node, now)
        self._reopen(node)

    def node_heard(self, node_id: Any, now: float) -> None:
        """A silent node is there again, with all it had."""
        self.now = now
        node = self.nodes[node_id]
        node.silent = False
        self._silent.pop(node, None)
        if node.abandoned:
            self._reclaim(node)
        self._reopen(node)

    def _abandon(self, node: Node, since: float) -> None:
        """Settle what a silent node has, or send it elsewhere; the node's record stays, as it may come back."""
        reason = "node %s could not be reached for %.3g s" % (node.info.name, self.now - since)
        del self._silent[node]
        node.abandoned = node.strays = True
        for server in node.servers.values():
            self._say(SchedulerStatus.ServerAbandoned, server.location, reason)
        self._say(SchedulerStatus.NodeAbandoned, node.info, reason)
        for server in list(node.servers.values()):
            self._give_up(server, reason)
        self._close_if_done()

    def _give_up(self, server: Server, reason: str) -> None:
        """The jobs of a server whose node is abandoned. One that may run again leaves it: the server is `astray`. The
        others keep their timers: a stray that exceeds its timeout has its server killed, as before."""
        first, again = next(iter(server.held), None), []
        for job in list(server.held.values()) + list(server.io.values()):
            ran = job.kind == IO or job.id == first or job.state == _STARTED
            if job.state == _STOPPING:
                self._drop(job, job.fate)
            elif job.state != _GHOST and self._may_run_again(job, ran, True):
                self._unload(job)
                server.astray = True
                job.move("requeue")
                again.append(job)
            elif job.state != _GHOST:
                self._drop(job, self._loss(job, server, reason, NodeLost))
        self._requeue(again)

    def _reclaim(self, node: Node) -> None:
        """An abandoned node is heard, and still serves this client: tell of it as of a new one."""
        node.abandoned = False
        self._say(SchedulerStatus.NodeDiscovered, node.info, "")
        if node.state != _FOUND:
            self._say(SchedulerStatus.NodeInitialized, node.info, "it is there again")
        for server in list(node.servers.values()):
            self._say(SchedulerStatus.ServerDiscovered, server.location, "")
            if server.astray:
                self._restart(server, "it runs jobs that were sent elsewhere while its node was out of reach")
            elif server.state in (_UP, _SUSPENDED):
                self._say(SchedulerStatus.ServerInitialized, server.location, "it is there again")


class ClusterState(_Patience):
    """The nodes, servers and jobs of one client. Every public method is one event; see the head of this section.

        state.node_up(id, info, now); state.server_up(id, 1, process_id, location, now)
        state.submit(Job(1, key), now)
        for instruction in state.take(): ...

    Events: node_up, node_ready, node_silent, node_heard, node_down; server_up, server_ready, server_down; submit,
    started, ended, returned, cancel; suspend, resume, restart_server, close_server, close_node, close; limit, abandon,
    setting_up, rest_node; tick. Questions: next_deadline, why, running, counts, figures, told, servers_at, sleeps,
    validate. One thread at a time.

    `now` is in seconds of any monotonic clock, the same for all events. Ids of nodes and servers may be anything that
    can be a key; the driver takes process ids. An event about a server or node that is not there (any more) raises
    KeyError where the caller must know better (node_ready, server_up), and does nothing where news may come late
    (node_down, server_down, ended, started, returned, cancel).
    """

    def take(self) -> List[tuple]:
        """Return the instructions collected since the last call."""
        out, self._out = self._out, []
        return out

    def servers_at(self, where: Any) -> List[Server]:
        """Return the servers that a job's `where` names; [] for what is not known (yet). All states are among them."""
        return list(self.anywhere.servers if where is None else self._by_key.get(where, ()))

    def node_up(self, node_id: Any, info: DispycosNodeInfo, now: float, ready: bool = True) -> Node:
        """A node was reserved. With ready=False it takes no jobs until `node_ready`. Returns its record."""
        self.now = now
        if node_id in self.nodes:
            self.node_down(node_id, "the node was started anew", now)
        node = self.nodes[node_id] = Node(node_id, info)
        self._out.append((STATUS, SchedulerStatus.NodeDiscovered, info))
        if ready:
            self.node_ready(node_id, now)
        return node

    def node_ready(self, node_id: Any, now: float) -> None:
        """A node is set up (files sent, node_setup done)."""
        self._change(self.nodes[node_id], "ready", SchedulerStatus.ServerInitialized, now)

    def node_down(self, node_id: Any, reason: str, now: float) -> None:
        """A node's process is gone, or was given up; does nothing for one that is not known."""
        self.now = now
        node = self.nodes.get(node_id)
        if node is None:
            return
        servers = list(node.servers.values())
        self._forget(node)
        for server in servers:
            self._remove(server, SchedulerStatus.ServerDisconnected)
        self._out.append((STATUS, SchedulerStatus.NodeDisconnected, node.info))
        for server in servers:
            self._lose(server, reason, NodeLost, None)
        self._close_if_done()

    def server_up(self, node_id: Any, n: int, server_id: Any, location: Any, now: float, ready: bool = True) -> Server:
        """Server process n of a node is connected. With ready=False it takes no jobs until `server_ready`."""
        self.now = now
        node = self.nodes[node_id]
        if n in node.servers:
            self.server_down(node_id, n, "its process was replaced", now)
        server = Server(node, n, server_id, location)
        self._asleep.pop((node, n), None)
        self._add(server)
        if ready:
            self.server_ready(node_id, n, now)
        return server

    def server_ready(self, node_id: Any, n: int, now: float) -> None:
        """A server is set up (server_setup done)."""
        self._change(self.nodes[node_id].servers[n], "ready", SchedulerStatus.ServerInitialized, now)

    def server_down(self, node_id: Any, n: int, reason: str, now: float, begun: Optional[int] = None) -> None:
        """A server process ended; `reason` as in "killed by signal 9 (SIGKILL)". Results it sent must be in already.

        `begun`, where the node knows it, is the id of the last CPU job that the process began (0: none).
        """
        self.now = now
        node = self.nodes.get(node_id)
        server = node.servers.get(n) if node is not None else None
        if server is None:
            return
        self._remove(server, SchedulerStatus.ServerDisconnected)
        self._lose(server, reason, WorkerDied, begun)
        if node.state == _CLOSING:
            self._release_if_empty(node)
        self._close_if_done()

    def suspend(self, entity: Union[Node, Server], now: float) -> bool:
        """Give a node or server no new jobs. Returns False if that changes nothing."""
        return self._change(entity, "suspend", SchedulerStatus.ServerSuspended, now)

    def resume(self, entity: Union[Node, Server], now: float) -> bool:
        """Undo `suspend`."""
        return self._change(entity, "resume", SchedulerStatus.ServerResumed, now)

    def restart_server(self, server: Server, reason: str, now: float) -> None:
        """Have a server process killed and replaced, whatever it does (it is silent, say); `server_down` follows."""
        self.now = now
        self._restart(server, reason)

    def close_server(self, server: Server, now: float, terminate: bool = False, restart: bool = False) -> None:
        """Let a server finish what it runs (terminate: stop it), then end its process (restart: replace it)."""
        server.again = restart
        self.now = now
        if self._shut(server, "close"):
            if terminate:
                self._stop_all(list(server.held.values()) + list(server.io.values()), "its server is closed")
            self._emptied(server)
        if self._suspects:
            self._attend()

    def close_node(self, node: Node, now: float, terminate: bool = False) -> None:
        """Close all servers of a node, then release it."""
        self.now = now
        if _move_place(node, "close"):
            for server in list(node.servers.values()):
                self.close_server(server, now, terminate)
            self._release_if_empty(node)

    def close(self, now: float, await_io: bool = False, terminate: bool = False) -> None:
        """Take no more jobs; when the CPU jobs have ended, release the nodes and report ClientClosed.

        I/O jobs are stopped at once unless `await_io`; `terminate` stops all. May be called again to hurry up.
        """
        self.now = now
        self.closing, self.terminating = True, self.terminating or terminate
        self._stop_all([job for job in self.jobs.values() if terminate or job.kind == IO and not await_io],
                       "its computation is closed")
        self._close_if_done()

    def told(self) -> List[Tuple[int, Any]]:
        """Return what status tasks were told of the nodes and servers that are there: (code, info) in that order."""
        found: List[Tuple[int, Any]] = []
        for node in self.nodes.values():
            if not node.abandoned:
                found += [(code - _NODE_CODES, node.info) for code in _TOLD.get(node.state, _TOLD[_UP])]
                for server in node.servers.values():
                    found += [(code, server.location) for code in _TOLD.get(server.state, ())]
        return found

    def running(self, where: Any) -> List[Job]:
        """Return the jobs that the servers of that name have begun, as far as is known here; None: all servers."""
        return [job for server in self.servers_at(where)
                for job in (*islice(server.held.values(), 1), *server.io.values()) if job.state != _GHOST]

    def counts(self) -> ClusterCounts:
        """Return how many jobs there were so far, and where."""
        return _summed(*self.figures())

    def figures(self) -> Tuple[List[tuple], int, int]:
        """Return what `_summed` makes the counts of; it looks at each server, and at jobs only where ghosts are among
        them."""
        rows = self.ledger.rows()
        for server in self.anywhere.servers:
            first = next(iter(server.held.values()), None)
            count = int(first is not None and first.state != _GHOST) + len(server.io)
            if self.ghosts:
                count -= sum(job.state == _GHOST for job in server.io.values())
            rows.append((server.node.location, server.location, count, *server.tally.figures()))
        return rows, self.ledger.repeats, len(self.jobs) - self.ghosts

    def validate(self) -> None:
        """Raise AssertionError if anything contradicts anything else. For tests: it looks at everything."""
        places = [self.anywhere] + list(self.places.values())
        self._validate_waiting(places)
        assert self.ghosts == sum(job.state == _GHOST for job in self.jobs.values())
        known = [server for node in self.nodes.values() for server in node.servers.values()]
        assert set(known) == set(self.anywhere.servers) and set(known) >= set(self._reserved)
        assert list(self.idle.values()) == sorted(self.idle.values()), "idle servers are not in order"
        assert all(node.silent and not node.abandoned for node in self._silent)
        for check, subjects in ((self._validate_sent, [job for job in self.jobs.values() if job.state != _QUEUED]),
                                (self._validate_suspect, self._suspects.values()),
                                (self._validate_place, places), (self._validate_server, known)):
            for subject in subjects:
                check(subject)

    def _validate_waiting(self, places: List[Place]) -> None:
        """Each backlog counts just the queued jobs of its place; those that are counted elsewhere are suspects."""
        waiting = collections.Counter(
            self._queue(job) for job in self.jobs.values() if job.state == _QUEUED and job.id not in self._suspects)
        queues = [queue for place in places for queue in (place.queue, place.io_queue)]
        assert waiting == {queue: queue.live for queue in queues if queue.live}

    def _validate_suspect(self, job: Job) -> None:
        """One that waits could not be sent now, and will be: some server is kept for it, if any serves."""
        servers = self._place(job.terms.where).servers
        assert job.state == _QUEUED and self.jobs[job.id] is job and job.suspect, job.id
        assert not any(server in self.idle for server in servers), "suspect %d could be sent" % job.id
        kept = any(server in self._reserved and server.serves() for server in servers)
        assert kept or not any(server.serves() and not server.reserved for server in servers), (
            "no server will be idle for suspect %d" % job.id)

    def _validate_sent(self, job: Job) -> None:
        """It is where it says, and something will end it: its server, a timer, or that server's end."""
        server = job.server
        assert (server.io if job.kind == IO else server.held).get(job.id) is job, (job.id, job.state)
        timed = job.timer or server.state == _RESTARTING or self.closing and job.kind == IO
        stray = self._is_stray(job)
        assert timed or stray or job.state in (_SENT, _STARTED), "nothing will end job %d, %s" % (job.id, job.state)
        assert not job.suspect or len(server.held) == 1 or stray, "suspect %d does not run alone" % job.id
        first = next(iter(server.held), None) == job.id and job.state in (_SENT, _STARTED)
        assert job.timer or not first or job.terms.timeout is None, "job %d has no deadline" % job.id

    @staticmethod
    def _validate_place(place: Place) -> None:
        """Each server with room is listed once, as loaded as it is; the best is found; no job waits in vain."""
        listed = [entry[3::-3] for entry in place.free if entry[2] == entry[3].ticket]
        listed_io = [entry[3::-3] for entry in place.io_free if entry[2] == entry[3].io_ticket]
        for server in place.servers:
            load, load_io = len(server.held), len(server.io)
            assert place.where is None or place in server.places and place.where in _keys(server), str(server)
            assert load >= server.limit or listed.count((server, load)) == 1, "%s is not offered" % server
            assert not server.limit or listed_io.count((server, load_io)) == 1, "%s is not offered for I/O" % server
        best, loads = place.best(), [len(server.held) for server in place.servers if len(server.held) < server.limit]
        assert (len(best.held) if best else None) == min(loads, default=None), "%s is not the best" % best
        assert best is None or place.queue.peek() is None, "a job could be sent to %s" % best
        assert place.best_io() is None or place.io_queue.peek() is None, "an I/O job could be sent to %r" % place.where

    def _validate_server(self, server: Server) -> None:
        """What is kept of a server, in it and in the sets it may be in, is what can be computed from its jobs."""
        held, limit = server.held, server.limit
        server.reckon()
        assert limit == server.limit and server.reserved == (server in self._reserved), str(server)
        assert len(held) <= settings.credit_max and settings.credit_min <= server.window <= settings.credit_max
        assert (server in self.idle) == bool(limit and not held), "%s: idle or not" % server
        assert len(held) < 2 or not limit or server in self._loaded, "%s: loaded or not" % server
        assert server.timed == sum(job.terms.timeout is not None for job in held.values()), str(server)
        assert all(self.jobs.get(job.id) is job for each in (held, server.io) for job in each.values()), str(server)


# ======================================================================================================================
# 6. Scheduler driver                                                                engine context, unless it says else
# ======================================================================================================================
#
# Carries out what `ClusterState` decides, and tells it what happens: frames and requests of nodes and servers, peers
# that come and go, jobs handed in. Results are only noted here; they are unpickled, and futures settled, in the user
# kernel, because both run code of the user, which must never run with the engine's lock held.
#
#   _Hub -> SchedulerDriver (nodes) -> _ServerDriver (server processes) -> _JobDriver (jobs) -> ClusterState
#
# A node is in `nodes` from before it is asked (so that what it says finds its driver) until `_leave`; a server is in
# `servers` from when it is attached until `_drop_server`. What comes later from either is nobody's.
#
# The way of a node and its servers, by the system tasks that wait for them (-> means: spawns):
#
#   use_node          connect, choose, node.reserve; `granted` in the reply or by node.granted leads to _grant
#   _grant            tells the cluster state of the node -> _set_up_node
#   _set_up_node      prepare_node, then the node is `ready` -> _use_server for each server that is up
#   _use_server       connect, server.attach, tells the cluster state of the server; _set_up_server
#   _set_up_server    prepare_server, then the server gets jobs
#   _bury             after node.server 'down': waits for results on their way, then server_down
#   _ask_restart      node.restart; a refusal is the end of that server, as far as this client goes, not of the node
#   _on_silence       after a link broke for good: a server that hangs is killed by its node
#   _await_release    node.release; when all have answered, `when_given_back` makes its calls
#
# Each of them may find after any yield that what it works for is gone, and then another may have come in its place. So
# they compare objects, not ids (`is link`, `is facts`, `_is_current`), and leave quietly when they differ.
#
# How a job crosses threads:
#
#   any thread     `submit` appends to `_submitted`, and posts `carry_out` when the engine is `_hungry`
#   engine         `_take_in` gives it to the state; `carry_out` sends it; a RESULT frame goes to `state.ended`, whose
#                  JOB_DONE appends a call to `_done`
#   user kernel    `_hand_over` makes the calls of `_done` in order: unpickles, settles, tells
#
# `_submitted` and `_done` are deques, and the flags beside them (`_hungry`, `_handing_over`) are written before the
# deque is looked at by its reader, and read after it was appended to by its writers. So no entry is overlooked, and a
# call too many is the worst that can happen.

_RESERVE_TIMEOUT_S = 10.0               # a node answers a reservation at once, with its servers or a place in the queue
_LOOK_AGAIN_S = 0.05                    # whether the predecessor of a server, at the same port, has gone
_LAST_WORDS_S = 0.5                     # results a dead server had sent may still be on their way for so long
_REPORT_S = 1.0                         # a node reports the end of a server sooner than that
_ENOUGH_JOBS = 256                      # as many wait that the engine need not hear of the next one at once
_LEAST_PULSE_S = 0.01                   # whatever a node says of the most seconds between two pulses

Notice = Callable[[str], None]


class _Load:
    """What the driver keeps with a job: its future, its pickled arguments, and the definitions these need."""

    __slots__ = ("future", "data", "needs")

    def __init__(self, future: Any, data: bytes, needs: Tuple[bytes, ...]) -> None:
        self.future, self.data, self.needs = future, data, needs


class _NodeLink:
    """A node that was reserved, or is waited for.

    Before `granted` it is only asked for, or in the node's queue; `ready` once prepare_node is done. One link stands
    for one reservation: a node that is taken again gets a new one.
    """

    __slots__ = ("peer", "granted", "ready", "servers", "arriving", "place", "final", "reason", "told", "pulses")

    def __init__(self, peer: Any) -> None:
        self.peer = peer
        self.granted = self.ready = False
        self.servers: Dict[int, Any] = {}           # n -> what the node said of it last
        self.arriving: Set[Any] = set()             # peers that are servers of it, and not attached yet
        self.place: Any = None                      # in the node's queue, and who has it, as last told
        self.final = False                          # the node does not want us any more
        self.reason = ""                            # why it is lost
        self.told: List[Callable] = []              # called once it is no more used
        self.pulses = [0.0, float("inf")]           # at least and at most so many seconds between node.avail


class _ServerLink:
    """The connection to a server: its peer, and the definitions it has been sent."""

    __slots__ = ("peer", "defined", "magic", "node", "n")

    def __init__(self, peer: Any, node: _NodeLink, n: int) -> None:
        self.peer, self.node, self.n = peer, node, n
        self.defined: Set[bytes] = set()
        self.magic = _magic_of(peer)


def _magic_of(peer: Any) -> bytes:
    """Which bytecode a process runs, as it says; nothing of ours if what it says is no such thing."""
    try:
        return bytes.fromhex(peer.info.get("magic", ""))
    except (TypeError, ValueError):
        return b""


def _check_is_node(peer: Any) -> None:
    """Raise a sentence, for people, when a peer that is to be reserved is no node that could be used."""
    if peer.info.get("role") != "node":
        raise pycoslite.MisuseError("%s is no node program but a %s: name the port that dispycosnode_lite.py "
                                    "prints" % (peer, peer.info.get("role")))
    if peer.location is None:
        raise pycoslite.PycosError("%s says nothing of where its servers could be reached" % peer)


class _Hub:
    """Of one network: brings what nodes and servers say to the driver that uses them, as several drivers may share it.

    The engine's, but for `_hub_of`. What comes from a peer that no driver uses is dropped here; only a node that grants
    itself too late is answered, with a release, as it would wait for this process for ever.
    """

    def __init__(self, network: Any) -> None:
        self.drivers: Dict[bytes, SchedulerDriver] = {}         # by process id of the nodes and servers they use
        self.watchers: List[Callable] = []                      # told of all peers: (peer, event)
        network.on_frame(RESULT, self._on_result)
        for code, take in ((STARTED, SchedulerDriver.on_started), (RETURNED, SchedulerDriver.on_returned)):
            network.on_frame(code, functools.partial(self._route, take))
        for op, take in (("node.waiting", SchedulerDriver.on_waiting), ("node.refused", SchedulerDriver.on_refused),
                         ("node.stopping", SchedulerDriver.on_stopping), ("node.server", SchedulerDriver.on_server)):
            network.on_request(op, functools.partial(self._route_news, take))
        network.on_request("node.granted", self._on_granted)
        network.on_peer(self._on_peer)

    def _on_result(self, peer: Any, body: Bytes) -> None:
        """A RESULT frame came. Runs once per job: `_route` and a method of the driver would be two calls more.

        All frames that one look at the sockets brought carry the same time, as `ClusterState.ended` wants it.
        """
        driver = self.drivers.get(peer.process_id)
        if driver is not None:
            driver.state.ended(*unpack_result(body), driver.network.engine.polled)
            if not driver.planned:
                driver.plan()

    def _route(self, take: Callable, peer: Any, *what: Any) -> None:
        """Call a method of the driver that uses a peer; if none does, what it says is nobody's."""
        driver = self.drivers.get(peer.process_id)
        if driver is not None:
            take(driver, peer, *what)

    # What nodes say is handled by system tasks: these run in the order in which they came, and after the task that an
    # earlier reply has woken. So news that follows a grant is never taken for news from before it.

    def _route_news(self, take: Callable, peer: Any, args: dict, payload: bytes) -> Iterator:
        self._route(take, peer, args, payload)
        return {}
        yield

    def _on_granted(self, peer: Any, args: dict, _payload: bytes) -> Iterator:
        driver = self.drivers.get(peer.process_id)
        if driver is None:
            peer.notify("node.release", {})         # the turn came after the client lost interest
        else:
            driver.on_granted(peer, args)
        return {}
        yield

    def _on_peer(self, peer: Any, event: str, detail: str) -> None:
        """`event` is 'online', 'offline' or 'lost'. Watchers hear of all peers: those found by a search, above all."""
        driver = self.drivers.get(peer.process_id)
        if driver is not None:
            driver.on_peer(peer, event, detail)
        for watcher in list(self.watchers):
            watcher(peer, event)


_hubs: "weakref.WeakKeyDictionary[Any, _Hub]" = weakref.WeakKeyDictionary()
_hubs_lock = threading.Lock()           # guards: _hubs


def _hub_of(network: Any) -> _Hub:
    """The one hub of a network. Any thread."""
    with _hubs_lock:
        hub = _hubs.get(network)
        if hub is None:
            hub = _hubs[network] = _Hub(network)
        return hub


class _JobDriver:
    """The half of `SchedulerDriver` that has to do with jobs.

    Jobs handed in wait in `_submitted`. The engine is told of them only while it is `_hungry`; when enough others wait
    anyway, it looks for more by itself as results come, and a submit costs its thread no trip into the engine.
    """

    def __init__(self, network: Any, packer: "Packer", settle: Callable, status: Callable, client: str) -> None:
        self.network, self.packer, self.settle, self.status, self.client = network, packer, settle, status, client
        self.state = ClusterState()
        self._submitted: Any = collections.deque()  # jobs; any thread appends
        self._hungry = True                         # more jobs would be sent on, or soon
        self._done: Any = collections.deque()       # calls that the user kernel is to make, in order
        self._handing_over = False                  # it was told so
        self.planned = False                        # `carry_out` is on its way
        self._timer: Any = None
        self._carry = {SEND_JOB: self._send_job, RECALL_JOBS: self._recall, CANCEL_JOB: self._cancel_job,
                       JOB_DONE: self._job_done, STATUS: self._tell}

    # -- from any thread -----------------------------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Take a job. Any thread, but ids must grow: `Cluster` holds a lock meanwhile, `Client` is in one thread.

        Does not wait and does not fail: a job that comes too late is settled with ClusterClosed.
        """
        self._submitted.append(job)
        if self._hungry or not job.plain:
            self.network.post(self.carry_out)

    def cancel(self, job_id: int) -> None:
        """Stop a job, wherever it is. Any thread."""
        self.network.post(self._event, self.state.cancel, job_id)

    def why(self, job_id: int) -> str:
        """A sentence that says what a job is doing or waiting for. Any thread but the engine's."""
        return self._ask(self.state.why, job_id)

    def counts(self) -> ClusterCounts:
        """How many jobs there were so far, and where. Any thread but the engine's."""
        return _summed(*self._ask(self.state.figures))

    def running(self, where: Any) -> List[Job]:
        """The jobs that run there (None: anywhere). Any thread but the engine's."""
        return self._ask(self.state.running, where)

    def introduce(self, begin: Callable) -> None:
        """Have ``begin(changes)`` called in the user kernel, with what was told of the places there are: whatever
        changes from then on is told after that. Any thread."""
        self.network.post(lambda: self._for_user(begin, (self.state.told(),)))

    def unreadable(self, job: Job) -> None:
        """A job was counted as one that has a result, which cannot be unpickled here. Any thread but the engine's."""
        self.network.post(job.server.tally.spoil)

    def _ask(self, question: Callable, *args: Any) -> Any:
        """What the state machine answers, when it knows all that was submitted. Any thread but the engine's."""
        answer: concurrent.futures.Future = concurrent.futures.Future()

        def _answer() -> None:
            try:
                self._take_in()
                answer.set_result(question(*args))
            except Exception as error:              # whoever waits must not wait for ever
                answer.set_exception(error)
        self.network.post(_answer)
        return answer.result()

    # -- carrying out --------------------------------------------------------------------------------------------------

    def _take_in(self) -> None:
        """Hand what was submitted to the state machine."""
        submitted, state = self._submitted, self.state
        while True:
            self._hungry = state.anywhere.queue.live < _ENOUGH_JOBS     # before the look: who comes later will tell
            if not submitted:
                return
            now = self.network.engine.clock()
            for _ in range(len(submitted)):
                job = submitted.popleft()
                try:
                    state.submit(job, now)
                except ClusterClosed as error:
                    self._job_done(job, ERROR, error)

    def _event(self, event: Callable, *args: Any) -> None:
        """Tell the state machine of something else than a frame. Jobs come first: it may be about one of them."""
        self._take_in()
        event(*args, self.network.engine.clock())
        self.plan()

    def plan(self) -> None:
        """Have `carry_out` run once what is being handled has been handled."""
        if not self.planned:
            self.planned = True
            self.network.engine.inbox.append((self.carry_out, ()))

    def carry_out(self) -> None:
        """Do what the state machine wants done."""
        self.planned = False
        self._take_in()
        carry = self._carry
        for instruction in self.state.take():
            carry[instruction[0]](*instruction[1:])
        self._arm()

    def _arm(self) -> None:
        """Keep one timer at the state machine's next deadline."""
        deadline, timer = self.state.next_deadline(), self._timer
        if timer is not None:
            if deadline is not None and timer[0] <= deadline:
                return                              # early is fine: it looks again then
            timer[1].cancel()
            self._timer = None
        if deadline is not None:
            delay_s = max(0.0, deadline - self.network.engine.clock())
            self._timer = deadline, self.network.call_later(delay_s, self._tick)

    def _tick(self) -> None:
        """The timer has run out, perhaps early; `carry_out`, which follows, sets the next one."""
        self._timer = None
        self._event(self.state.tick)

    def _send_job(self, server: Server, job: Job, attempt: int) -> None:
        """SEND_JOB: first what the server lacks of definitions, then the job; frames of a peer stay in order."""
        link: _ServerLink = server.link
        load: _Load = job.load
        try:
            if job.key not in link.defined:
                self._define(link, self.packer.closure_of(job.key))
            for digest in load.needs:
                if digest not in link.defined:
                    self._define(link, self.packer.closure_of(digest))
        except CannotShip as error:                 # not to the Python of that server
            self.state.ended(job.id, attempt, ERROR, error, self.network.engine.clock())
            self.plan()
            return
        link.peer.send_frame(JOB, pack_job(job.id, attempt, job.kind, job.key), load.data)

    def _define(self, link: _ServerLink, digests: Iterable[bytes]) -> None:
        """Send a server those of these definitions that it has not got. Raises CannotShip; what went before stays."""
        for digest in digests:
            if digest not in link.defined:
                link.peer.send_frame(DEFINE, self.packer.blob(digest, link.magic))
                link.defined.add(digest)

    @staticmethod
    def _recall(server: Server, count: int) -> None:
        """RECALL_JOBS."""
        server.link.peer.send_frame(RECALL, pack_recall(count))

    @staticmethod
    def _cancel_job(server: Server, job: Job, attempt: int) -> None:
        """CANCEL_JOB."""
        server.link.peer.send_frame(CANCEL, pack_run(job.id, attempt))

    def _job_done(self, job: Job, outcome: int, payload: Any) -> None:
        """JOB_DONE: the payload stays packed until the user kernel has it."""
        self._done.append((self.settle, (job, outcome, payload)))       # as _for_user, without the call
        if not self._handing_over:
            self._rouse_user()

    def _tell(self, *change: Any) -> None:
        """STATUS: code, info, perhaps a reason."""
        self._for_user(self.status, change)

    def _for_user(self, call: Callable, args: tuple) -> None:
        """Have the user kernel make a call. One queue for all of them keeps a job's start before its end."""
        self._done.append((call, args))
        if not self._handing_over:
            self._rouse_user()

    def _rouse_user(self) -> None:
        """There is something to hand over, the first since it was done last."""
        self._handing_over = True
        self.network.host.post(self._hand_over)

    def _hand_over(self) -> None:
        """Settle what has ended, tell what has changed. User kernel."""
        self._handing_over = False                  # before the look: who comes later has to post again
        done = self._done
        while True:
            try:
                call, args = done.popleft()
            except IndexError:                      # of two threads that do this one gets the last
                return
            try:
                call(*args)
            except BaseException:                   # user code may run in there; it must not end the kernel
                pycoslite.log.exception("a result or a change of status could not be handed over")


class _ServerDriver(_JobDriver):
    """The part of `SchedulerDriver` that has to do with server processes."""

    def __init__(self, network: Any, packer: "Packer", settle: Callable, status: Callable, client: str) -> None:
        super().__init__(network, packer, settle, status, client)
        self.hub = _hub_of(network)
        self.nodes: Dict[bytes, _NodeLink] = {}     # by process id
        self.servers: Dict[bytes, _ServerLink] = {}
        self._carry[RESTART_SERVER] = self._restart

    # -- what servers say ----------------------------------------------------------------------------------------------

    def on_started(self, _peer: Any, body: Bytes) -> None:
        """A STARTED frame came."""
        self.state.started(*unpack_started(body), self.network.engine.polled)
        self.plan()

    def on_returned(self, peer: Any, body: Bytes) -> None:
        """A RETURNED frame came."""
        link = self.servers.get(peer.process_id)
        server = self._record(link) if link is not None else None
        if server is not None:
            self.state.returned(server, unpack_returned(body), self.network.engine.polled)
            self.plan()

    def _record(self, link: _ServerLink) -> Optional[Server]:
        """The state's record of a server; None when it is not there (any more).

        Looked up each time, and compared with the link: the record of its successor has the same node and number.
        """
        node = self.state.nodes.get(link.node.peer.process_id)
        server = node.servers.get(link.n) if node is not None else None
        return server if server is not None and server.link is link else None

    # -- servers come and go -------------------------------------------------------------------------------------------

    def prepare_server(self, _peer: Any, _server: Server) -> Iterator:
        """Set a server up before it gets jobs. A system task. PycosError: it is not used, for that reason."""
        return
        yield

    def _server_came(self, link: _NodeLink, facts: dict) -> None:
        """A server is up. Until its node is set up it is only noted: node_setup replaces the servers anyway."""
        link.servers[facts["n"]] = facts
        if link.ready:
            self.network.spawn(self._use_server, link, facts)

    def _server_process(self, locations: List[Any], process: str) -> Iterator:
        """The peer that is that process (its id in hexadecimal digits), with yield from. Of a server that was restarted
        the end may not have been heard of here yet: its peer is still taken to be online at the same port, and has to
        go first. Raises PycosError."""
        until = self.network.engine.clock() + pycoslite.settings.message_timeout_s
        while True:
            peer = yield self.network.connect(locations, timeout=pycoslite.settings.message_timeout_s)
            if peer.process_id.hex() == process:
                return peer
            if self.network.engine.clock() >= until:
                raise pycoslite.PeerLost("another process answers there")
            yield pycoslite.Suspend(_LOOK_AGAIN_S)

    def _use_server(self, link: _NodeLink, facts: dict) -> Iterator:
        """Connect to a server process and put it to work. A system task.

        It is dialled at all addresses of its node. That the right process answers is checked, as a port may have been
        taken over by another one meanwhile. A server that cannot be reached is logged and left to its node.
        """
        locations = [pycoslite.Location(location.addr, facts["port"]) for location in link.peer.locations]
        peer = None
        try:
            peer = yield from self._server_process(locations, facts["process"])
            link.arriving.add(peer)
            peer.accounted = True
            if self._is_wanted(link, facts):
                yield peer.request("server.attach", {}, timeout=_RESERVE_TIMEOUT_S)
        except pycoslite.PycosError as error:
            if self._is_wanted(link, facts):
                pycoslite.log.warning("server %s of node %s cannot be used: %s", facts["n"], link.peer, error)
            return
        finally:
            link.arriving.discard(peer)
        if not self._is_wanted(link, facts):
            peer.lost("it is not needed", expected=True)
        else:
            server_link = self.servers[peer.process_id] = _ServerLink(peer, link, facts["n"])
            self.hub.drivers[peer.process_id] = self
            server = self.state.server_up(link.peer.process_id, facts["n"], peer.process_id, locations[0],
                                          self.network.engine.clock(), False)
            server.link = server_link
            self.plan()
            yield self._set_up_server(server)

    def _is_wanted(self, link: _NodeLink, facts: dict) -> bool:
        """Whether that server still lives, on a node that is still ours."""
        return (link.servers.get(facts["n"]) is facts and self.nodes.get(link.peer.process_id) is link
                and link.peer.process_id in self.state.nodes)

    def _set_up_server(self, server: Server) -> Iterator:
        """Do what the client wants done to a server before it gets jobs. A system task."""
        try:
            yield self.prepare_server(server.link.peer, server)
        except pycoslite.PycosError as error:
            if self._is_current(server):
                pycoslite.log.error("%s is not used: %s", server, error)
                self._event(self.state.close_server, server)
        else:
            if self._is_current(server):
                self._event(functools.partial(self.state.server_ready, server.node.id, server.n))

    def _server_died(self, link: _NodeLink, n: int, reason: str, begun: Optional[int]) -> None:
        """The node reports the end of a server; what that had sent before is taken first."""
        link.servers.pop(n, None)
        node = self.state.nodes.get(link.peer.process_id)
        server = node.servers.get(n) if node is not None else None
        wanted = not link.ready or node is None or server is not None and server.state == _RESTARTING
        pycoslite.log.log(logging.INFO if wanted else logging.WARNING, "server %s of node %s: %s", n, link.peer.name,
                          reason)
        if server is not None:
            self.network.spawn(self._bury, server, reason, begun)

    def _bury(self, server: Server, reason: str, begun: Optional[int]) -> Iterator:
        """Take a dead server out, after its last results. A system task.

        The node's report and the results come by different connections. The end of the server's own link says that
        all it sent is here; without it, half a second has to do.
        """
        peer, clock = server.link.peer, self.network.engine.clock
        deadline = clock() + _LAST_WORDS_S
        while peer.link is not None and clock() < deadline:
            yield pycoslite.Suspend(0.005)
        if self._is_current(server):
            self._take_in()
            self.state.server_down(server.node.id, server.n, reason, clock(), begun)
            self.plan()
        self._drop_server(server.link)

    def _is_current(self, server: Server) -> bool:
        return self._record(server.link) is server

    def _drop_server(self, link: _ServerLink) -> None:
        """Its process has ended: do not look for it any more."""
        if self.servers.pop(link.peer.process_id, None) is not None:
            self.hub.drivers.pop(link.peer.process_id, None)
            link.peer.lost("its process has ended", expected=True)

    def _restart(self, server: Server, reason: str, again: bool) -> None:
        """RESTART_SERVER. Its death comes back as node.server 'down', as if it had died by itself."""
        self.network.spawn(self._ask_restart, server.link.node, server.n, reason, again, server)

    def _ask_restart(self, link: _NodeLink, n: int, reason: str, again: bool, server: Optional[Server]) -> Iterator:
        """node.restart. If that is refused its `server` (None: it was none) is as good as dead: nothing will end what
        it holds. A system task."""
        try:
            yield link.peer.request("node.restart", {"n": n, "reason": reason, "again": again})
        except pycoslite.PeerLost:
            pass                                    # the news of that come another way, and concern the whole node
        except pycoslite.PycosError as error:
            pycoslite.log.warning("server %d is not restarted by its node: %s", n, error)
            if server is not None and self._is_current(server):
                self._event(self.state.server_down, server.node.id, n, "its node refused to end it: %s" % error)
                self._drop_server(server.link)

    def _on_silence(self, link: _ServerLink, event: str, detail: str) -> Iterator:
        """A server cannot be reached. If its node can, and does not say that it died, then it hangs. A system task."""
        if event == "lost":
            yield pycoslite.Suspend(_REPORT_S)
        server = self._record(link)
        if server is not None and link.node.peer.online:
            pycoslite.log.warning("%s cannot be reached (%s): it is started anew", server, detail)
            self._event(self.state.restart_server, server, "it could not be reached: %s" % detail)


def _availability(peer: Any, facts: dict) -> DispycosNodeAvailInfo:
    """What a node says of itself, as a record."""
    return DispycosNodeAvailInfo(peer.location, *(facts.get(name) for name in ("cpu", "memory", "disk", "swap")))


def _pulse_of(link: _NodeLink, wanted_s: float) -> float:
    """How often to ask a node, which may not be asked so often, or so seldom, as the client wants."""
    least_s, most_s = link.pulses
    pulse_s = max(least_s, min(wanted_s, most_s), _LEAST_PULSE_S)
    if pulse_s != wanted_s:
        pycoslite.log.warning(
            "node %s is asked every %g s what it has free, and not every %g s: it was started with "
            "--min_pulse_interval %g and --max_pulse_interval %g", link.peer, pulse_s, wanted_s, least_s, most_s)
    return pulse_s


class SchedulerDriver(_ServerDriver):
    """One client's scheduler. `status(code, info[, reason])` is called for each change in the cluster and `settle(job,
    outcome, payload)` for each job that has ended, both in the user kernel and in the order of events. Methods are for
    the engine, except `submit`, `cancel` and `why`. What clients want of nodes and servers before they use them is said
    by `choose`, `prepare_node` and `prepare_server`, which subclasses override."""

    def __init__(self, network: Any, packer: "Packer", settle: Callable, status: Callable, client: str) -> None:
        super().__init__(network, packer, settle, status, client)
        self._carry[RELEASE_NODE] = self._release
        self._carry[WAKE] = self._wake
        self._giving = 0                            # releases that nodes have not answered yet
        self._given_back: List[Callable] = []       # calls to be made when there are none

    # -- reserving -----------------------------------------------------------------------------------------------------

    def use_node(self, locations: List[Any], peer: Any = None) -> Iterator:
        """Connect to a node, reserve it, and use its servers when its turn comes. A system task; returns 'granted',
        'waiting' or 'rejected' (by `choose`), or raises PycosError with a sentence.

        `locations` are tried in order; they are not needed with a `peer` that is connected. A node that is in use
        already gives what it gave then. MisuseError when it is no node, or another driver of this process has it.
        """
        if peer is None:
            peer = yield self.network.connect(locations, timeout=pycoslite.settings.message_timeout_s)
        if peer.process_id in self.nodes:
            return "granted" if self.nodes[peer.process_id].granted else "waiting"
        _check_is_node(peer)
        if self.state.closing:
            return "rejected"                       # too late: nothing would give it back
        if self.hub.drivers.setdefault(peer.process_id, self) is not self:
            raise pycoslite.MisuseError("node %s is used by another cluster of this process already" % peer)
        link = self.nodes[peer.process_id] = _NodeLink(peer)
        peer.accounted = True
        try:
            cpus = yield self.choose(peer)
            if not cpus or self.nodes.get(peer.process_id) is not link:
                self._leave(link)
                return "rejected"
            reply, _ = yield peer.request("node.reserve", {
                "client": self.client, "python": list(sys.version_info[:3]),
                "magic": importlib.util.MAGIC_NUMBER.hex(), "cpus": cpus}, timeout=_RESERVE_TIMEOUT_S)
            checked_place(reply)
        except pycoslite.PycosError:
            self._leave(link)
            raise
        if self.nodes.get(peer.process_id) is not link:
            return "rejected"                       # closed meanwhile, and given back then: it may be another's now
        if reply["state"] == "granted":
            self._grant(link, reply)
        else:
            self._say_place(link, reply)
        return reply["state"]

    def _leave(self, link: _NodeLink) -> None:
        """Forget a node, whatever became of it."""
        process_id = link.peer.process_id
        if self.nodes.get(process_id) is link:
            del self.nodes[process_id]
            self.hub.drivers.pop(process_id, None)
            for server in [server for server in self.servers.values() if server.node is link]:
                self._drop_server(server)
            for peer in list(link.arriving):
                peer.lost("its node is not used any more", expected=True)
            for told in link.told:
                told()

    @staticmethod
    def _say_place(link: _NodeLink, facts: dict) -> None:
        """Log that a node is waited for, once for each change: the reply and the news may say the same."""
        place, holder = facts["position"], facts["holder"]
        if (place, holder) != link.place:
            link.place = place, holder
            pycoslite.log.warning("node %s serves another client (%s): waiting for its turn, number %d in the queue",
                                  link.peer, holder, place)

    def on_waiting(self, peer: Any, args: dict, _payload: bytes) -> None:
        """The queue of a node has moved on."""
        link = self.nodes.get(peer.process_id)
        if link is not None and not link.granted:
            self._say_place(link, checked("node.waiting", args))

    def on_granted(self, peer: Any, args: dict) -> None:
        """The turn has come."""
        link = self.nodes.get(peer.process_id)
        if link is not None and not link.granted:
            self._grant(link, checked_grant(args))
            if link.place:
                pycoslite.log.warning("node %s is free now: it is used", peer)

    def on_refused(self, peer: Any, args: dict, _payload: bytes) -> None:
        """A node does not want this client, or no longer."""
        link = self.nodes.get(peer.process_id)
        args = checked("node.refused", args)
        if link is not None and not (args.get("idle") and self.rest(link, args["reason"])):
            link.final = args.get("final", False)
            self._node_gone(link, args["reason"])

    def rest(self, link: _NodeLink, reason: str) -> bool:
        """A node took itself back because it was idle: whether it was, so that it is asked for again only when there
        are jobs. What is on its way there is lost, as with any node."""
        self._take_in()
        rests = self.state.rest_node(link.peer.process_id, reason, self.network.engine.clock())
        pycoslite.log.info("node %s has taken itself back: %s", link.peer, reason)
        self.plan()
        return rests

    def on_stopping(self, peer: Any, args: dict, _payload: bytes) -> None:
        """A node takes no more jobs: let those that run end, then give it back."""
        node, link = self.state.nodes.get(peer.process_id), self.nodes.get(peer.process_id)
        reason = checked("node.stopping", args)["reason"]
        if node is not None and link is not None:
            pycoslite.log.warning("node %s gets no more jobs: %s", peer, reason)
            link.reason = reason
            self._event(self.state.close_node, node)

    def _node_gone(self, link: _NodeLink, reason: str) -> None:
        """A node cannot be used any more: say so, and settle or send elsewhere what it had."""
        pycoslite.log.warning("node %s is lost: %s", link.peer, reason)
        link.reason = reason
        self._take_in()
        self.state.node_down(link.peer.process_id, reason, self.network.engine.clock())
        self.plan()
        self._leave(link)

    def _grant(self, link: _NodeLink, facts: dict) -> None:
        """The node is ours: set it up, then connect to its servers."""
        link.granted = True
        link.pulses = facts.get("pulses", link.pulses)
        peer = link.peer
        avail = DispycosNodeAvailInfo(location=peer.location)
        info = DispycosNodeInfo(facts["name"], peer.location.addr, facts["cpus"], facts["platform"], avail)
        node = self.state.node_up(peer.process_id, info, self.network.engine.clock(), False)
        self.plan()
        for server in facts["servers"]:
            self._server_came(link, server)
        self.network.spawn(self._set_up_node, link, node)

    def _set_up_node(self, link: _NodeLink, node: Node) -> Iterator:
        """Do what the client wants done to a node before it is used. A system task."""
        try:
            yield self.prepare_node(link.peer, node)
        except pycoslite.PycosError as error:
            if self.state.nodes.get(node.id) is node:
                pycoslite.log.error("node %s is not used: %s", link.peer, error)
                self._event(self.state.close_node, node)
            return
        if self.state.nodes.get(node.id) is node:
            link.ready = True
            self._event(self.state.node_ready, node.id)
            for facts in list(link.servers.values()):
                self.network.spawn(self._use_server, link, facts)

    # What a client may want; see also `prepare_server`. System tasks. PycosError: the node is not used, and why.

    def choose(self, peer: Any) -> Iterator:
        """How many servers of a node to take; 0 leaves the node alone."""
        return peer.info.get("cpus", 1)
        yield

    def prepare_node(self, _peer: Any, _node: Node) -> Iterator:
        """Set a node up before its servers are used."""
        return
        yield

    # -- news ----------------------------------------------------------------------------------------------------------

    def on_server(self, peer: Any, args: dict, _payload: bytes) -> None:
        """A node reports that a server came or went."""
        link = self.nodes.get(peer.process_id)
        if link is None or not link.granted:        # one of those that the client before us had
            return
        args = checked_server(args)
        if args["state"] == "up":
            self._server_came(link, args)
        else:
            self._server_died(link, args["n"], args.get("reason", "it ended"), args.get("begun"))

    def on_peer(self, peer: Any, event: str, detail: str) -> None:
        """A node or server was connected, cannot be reached for now, or is lost."""
        node = self.nodes.get(peer.process_id)
        if node is not None:
            self._on_node_peer(node, event, detail)
        link = self.servers.get(peer.process_id)
        if link is not None and event != "online":
            self.network.spawn(self._on_silence, link, event, detail)

    def _on_node_peer(self, link: _NodeLink, event: str, detail: str) -> None:
        """Out of reach is not lost: jobs go on there. Lost is what `pycoslite` gave up, or saw end."""
        process_id = link.peer.process_id
        if event == "lost":
            self._node_gone(link, detail)
        elif process_id in self.state.nodes:
            self._event(self.state.node_silent if event == "offline" else self.state.node_heard, process_id)

    def watch_availability(self, peer: Any, node: Node, wanted_s: float) -> Iterator:
        """Tell the client what a node has free, about every `wanted_s` seconds, as long as it has the node. A system
        task."""
        link = self.nodes.get(peer.process_id)
        pulse_s = 0.0 if link is None else _pulse_of(link, wanted_s)
        while self.state.nodes.get(node.id) is node:
            try:
                facts, _ = yield peer.request("node.avail", {}, timeout=pulse_s)
            except pycoslite.PycosError:
                pass                                # not this time: whether the node lives is others' concern
            else:
                node.info.avail_info = _availability(peer, facts)
                self._for_user(self.status, (None, node.info.avail_info))
            yield pycoslite.Suspend(pulse_s)

    # -- the end -------------------------------------------------------------------------------------------------------

    def _release(self, node: Node) -> None:
        """RELEASE_NODE: forget it first, so that what it still says is nobody's, then tell it."""
        link = self.nodes.get(node.id)
        if link is not None:
            self._leave(link)
            self._give_back(link.peer)

    def _wake(self, node: Node, n: Optional[int]) -> None:
        """WAKE; nothing to do for who looks himself whether a node still sleeps."""

    def _give_back(self, peer: Any) -> None:
        """Release a node, or leave its queue; `when_given_back` tells when the node knows."""
        self._giving += 1
        self.network.spawn(self._await_release, peer)

    def _await_release(self, peer: Any) -> Iterator:
        """Release a node and count its answer, whatever that is. A system task."""
        try:
            yield peer.request("node.release", {}, timeout=_RESERVE_TIMEOUT_S)
        except pycoslite.PycosError:
            pass                                    # it has ended, which is as good
        self._giving -= 1
        self.when_given_back()

    def when_given_back(self, *calls: Callable) -> None:
        """Make these calls once all nodes that were released know it."""
        self._given_back.extend(calls)
        while not self._giving and self._given_back:
            self._given_back.pop()()

    def close(self, terminate: bool = False) -> None:
        """Take no more jobs; release the nodes when those that run have ended. `terminate`: release them now, jobs that
        have not ended are cancelled."""
        self._take_in()
        self.wind_up(False, terminate)
        if terminate:
            self.carry_out()
            for node in list(self.state.nodes.values()):
                self._release(node)
                self.state.node_down(node.id, "the cluster was shut down", self.network.engine.clock())
            self.carry_out()

    def wind_up(self, await_io: bool, terminate: bool) -> None:
        """Take no more jobs; release the nodes when those that run have ended, I/O jobs (unless `await_io`) and all
        (`terminate`) being stopped first."""
        self.state.close(self.network.engine.clock(), await_io, terminate)
        self.plan()
        for link in [link for link in self.nodes.values() if not link.granted]:
            self._leave(link)
            self._give_back(link.peer)


# ---- what both kinds of client need ----

NODE_PORT = pycoslite.settings.net_port + 1     # where a node program listens unless it is told otherwise

_EMBEDDED_START = ("import importlib, sys; sys.path.insert(0, sys.argv.pop(1)); "
                   "sys.exit(importlib.import_module(sys.argv.pop(1)).main())")


def job_kind(fn: Any) -> int:
    """FUNCTION, or TASK for a generator function or async function."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return TASK if inspect.isgeneratorfunction(fn) or inspect.iscoroutinefunction(fn) else FUNCTION


def _client_name() -> str:
    """What nodes tell others that wait: program and process."""
    return "%s, process %d of %s" % (os.path.basename(sys.argv[0]) or "python", os.getpid(), socket.gethostname())


def _outcome(packer: Packer, outcome: int, payload: Any) -> Tuple[Any, Optional[BaseException]]:
    """Value and exception of a job that has ended. Unpickles, so not in the engine. Never raises.

    Outcome ERROR carries an exception made at the client; any other was packed by the server. TERMINATED is left for
    the last line: a server says it only of a job that it was asked to stop.
    """
    try:
        if outcome == VALUE:
            return packer.loads(payload), None
        if outcome == EXCEPTION:
            return None, packer.unpack_exception(payload)
    except BaseException as error:          # user code runs when its classes are unpickled, and the job must end
        return None, ResultError("the job has a result that cannot be unpickled here: %s: %s" % (
            type(error).__name__, error))
    if outcome == UNPICKLABLE:
        return None, ResultError(bytes(payload).decode("utf8", "replace"))
    return None, payload if outcome == ERROR else Cancelled("the job was stopped at its server")


def _module_root() -> str:
    """The sys.path entry from which this module and its siblings are imported, be they vendored or in a zip."""
    root = os.path.dirname(os.path.abspath(__file__))
    for _ in filter(None, (__package__ or "").split(".")):
        root = os.path.dirname(root)
    return root


def _module_name(sibling: str) -> str:
    """Full name of a module beside this one."""
    return "%s.%s" % (__package__, sibling) if __package__ else sibling


class LocalNode:
    """A node program for the cores of this machine (`cpus` of them, None: all) that serves this process alone and ends
    with it, or at `end`. `found(peer)` is called in the engine when it can be used. It can be reserved `serve` times
    (-1: any number). Any thread.

    The first line of the program's standard input is a JSON object: key (hex or null; so it is in no argument and no
    file), tls (arguments of `pycoslite.certificates`), cluster, serve, and dial, the [host, port] pairs where this
    process listens. The node connects to us, so nobody has to find it. The pipe stays
    open; its end tells the node that this process is gone, however it ended. Raises OSError when it cannot be started.
    """

    def __init__(self, network: Any, cpus: Optional[int], found: Callable, serve: int = 1) -> None:
        program = _module_name("dispycosnode_lite")
        command = [sys.executable, "-c", _EMBEDDED_START, _module_root(), program, "--embedded"]
        if cpus is not None:
            command += ["--cpus", str(cpus)]
        self._found: Optional[Callable] = found
        options: Dict[str, Any] = {"start_new_session": True}       # a Ctrl-C at the terminal is for this process alone
        if os.name == "nt":
            options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, **options)
        self._watchers = _hub_of(network).watchers
        self._watchers.append(self._watch)
        places = dict.fromkeys([pycoslite.Location("127.0.0.1", network.port), *network.locations])
        spec = {"key": network.key and network.key.hex(), "tls": network.secrecy.files,
                "cluster": network.cluster, "serve": serve,
                "dial": [[place.addr, place.port] for place in places]}
        stdin: Any = self._process.stdin
        try:
            stdin.write(json.dumps(spec).encode() + b"\n")
            stdin.flush()
        except OSError:                     # it has ended already, which `failed` tells
            pass

    def _watch(self, peer: Any, event: str) -> None:
        """Of all peers, ours is the one that says it has the process id of what was started here. Engine."""
        if event == "online" and self._found is not None and peer.info.get("pid") == self._process.pid:
            pycoslite.log.warning("no node was named or found: using %s cores of this machine", peer.info.get("cpus"))
            found, self._found = self._found, None
            found(peer)

    def failed(self) -> Optional[int]:
        """Its exit status if it has ended, None while it runs."""
        return self._process.poll()

    def give_up(self) -> None:
        """It is not needed: let it end by itself. `end` is still to be called."""
        self._found = None
        try:
            self._process.stdin.close()     # type: ignore[union-attr]
        except OSError:                     # it has ended, and what was written is still there
            pass

    def end(self) -> None:
        """End it: its standard input ends, and so does it."""
        self.give_up()
        if self._watch in self._watchers:
            self._watchers.remove(self._watch)
        process = self._process
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

# ======================================================================================================================
# 7. Client (Computation)                                                              user kernel, unless it says else
# ======================================================================================================================
#
# The documented way to use a cluster, on the same driver as `Cluster`. A `Client` says what is to run, on which terms;
# `Scheduler`, one in a process, finds the nodes and lets one client at a time have them; each time that a client has
# its turn a `_ClientDriver` carries out for it what the cluster state decides. Everything that clients are told comes
# through the driver's one queue, so a task's start is known before its end. `rtask` waits for the start: what it gives
# is a reference to a task that runs, as messages to it need, and not to a job that may never begin.
#
# Methods that are "used with yield" do nothing before they are yielded. The others take effect soon, not at once: they
# leave word with the engine. Why not block until it is done: they are called from status tasks, which must go on.
#
# A client, by what has been called (`_turn` and `_driver` are set and cleared together):
#
#   made        `_driver` is None: jobs are refused, with a line in the log
#   queued      in `schedule`: its _Turn is in the scheduler's queue, until `come` is set, or time is up
#   scheduled   `_driver` finds nodes and runs jobs
#   closing     `close` was called: no new jobs; the driver gives the nodes back when the CPU jobs have ended
#   made        ClientClosed came through the driver's queue: the turn is over, and it may be scheduled again
#
# Each turn has a driver of its own, so nothing of a turn that is over can reach the next one; `_packer` stays, so
# code that was found once is not looked for again.
#
# A client that is idle gives its nodes back before its turn is over (the rules are those of the cluster state). Their
# peers are kept in `_asleep` of its driver, which says no to them (`choose`) until a job has to wait and the state
# wants them back (WAKE): then they are reserved anew, and set up anew, like any other. So an idle client keeps others
# from the nodes for `zombie_period` at most, others in its queue for twice that, and loses no more than the time that a
# set-up takes.
#
# A node gets from being seen to being used in `Scheduler`: `_on_peer` (found by a search, or it found us) and
# `_keep_contact` (named, here or by a scheduler program) both end in `use_node`, which takes a node only once.
#
# Who may call what: `Client` and `_RemoteScheduler.enqueue`, `begin`, `leave` belong to the user kernel; drivers and
# the rest of `Scheduler`, as the comments there say, to the engine. The user kernel reads `state.nodes` and
# `anywhere.servers` of the driver without a lock, each time as one copy (`list(...)`), and changes nothing there.

_SEARCH_AGAIN_S = 5.0                   # a client without nodes looks for some this often
_CONTACT_AGAIN_S = 5.0                  # a node that was named and cannot be used is tried again this often
_PATIENCE_S = 3.0                       # a client that has waited so long for a node says what it waits for
_MISSED_PULSES = 5                      # so many pulse intervals of silence are too many


@dataclasses.dataclass
class _Wanted:
    """What a client wants of nodes and servers before it uses them."""

    rules: List[DispycosNodeAllocate]
    hosts: List[Any]                    # locations of the nodes it names
    files: List[Tuple[str, str]] = dataclasses.field(default_factory=list)     # name at the node, path here
    components: List[bytes] = dataclasses.field(default_factory=list)          # keys of definitions
    node_setup: Optional[bytes] = None
    server_setup: Optional[bytes] = None
    disable_nodes: bool = False
    disable_servers: bool = False
    restart_servers: bool = False
    pulse_s: float = 50.0               # how often nodes are asked what they have free
    zombie_s: float = 0.0               # after so long an idle server is closed, the client after twice that; 0: never
    idle_rule: Tuple[str, str] = ("", "")       # where that comes from, and what to do about it, for people
    timeout_s: float = _RESERVE_TIMEOUT_S       # a node must answer a request within that time
    ping_s: float = 0.0                 # how often nodes are searched for; 0: as the scheduler does
    introduce: bool = False             # servers are told of each other
    abandon: bool = False               # nodes out of reach for `_MISSED_PULSES` times pulse_s are abandoned


_Packed = Tuple[bytes, Tuple[bytes, ...]]       # arguments as `Packer.dumps` packs them, and the definitions they need


class _ClientDriver(SchedulerDriver):
    """The scheduler of one client for one turn: looks after what the client wants of nodes and servers. Engine.

    With disable_nodes (disable_servers) the system task that sets a node (server) up waits in `_permission` until
    `enable` brings the arguments for its setup; these may also come before the task has got so far. A node that is
    restarted goes the same way: its arguments are left in `_enabled` for when it is taken anew.
    """

    def __init__(self, network: Any, packer: Packer, settle: Callable, tell: Callable, wanted: _Wanted) -> None:
        super().__init__(network, packer, settle, tell, _client_name())
        self.wanted = wanted
        self.left_alone: Set[Any] = set()           # nodes that the client has closed: not to be taken again
        self._no_args = packer.dumps(((), {}))
        self._enabled: Dict[Any, _Packed] = {}      # id of a node or server -> arguments for its setup
        self._held: Dict[Any, Any] = {}             # id of one that waits to be enabled -> the task that waits
        self._again: Set[Any] = set()               # nodes to be taken anew as soon as they are released
        self._asleep: Dict[Any, Any] = {}           # nodes given back because they were idle -> their peers
        network.on_request("client.close_server", self._on_close_server)
        network.on_request("client.close_node", self._on_close_node)

    # -- before they are used ------------------------------------------------------------------------------------------

    def choose(self, peer: Any) -> Iterator:
        """See `SchedulerDriver`. The rules are the client's code, so the user kernel asks them."""
        if peer.process_id in self.left_alone or peer.process_id in self._asleep:
            return 0
        cpus = peer.info.get("cpus", 1)
        if not self.wanted.rules:
            return cpus
        facts, _ = yield peer.request("node.avail", {}, timeout=self.wanted.timeout_s)
        info = DispycosNodeInfo(peer.name, peer.location.addr, cpus, facts.get("platform", ""),
                                _availability(peer, facts))
        answer = yield pycoslite.Join(self.network.host.spawn(_ask_rules, list(self.wanted.rules), info))
        return answer if isinstance(answer, int) else 0         # a rule that fails is in the log, and counts as a no

    def prepare_node(self, peer: Any, node: Node) -> Iterator:
        """See `SchedulerDriver`: the client's files, then its node_setup.

        No definition is known at a node before, so all that node_setup needs goes in one request with it. How long it
        may take is up to the client's code: that request has no timeout.
        """
        self._event(self.state.abandon, node, self.wanted.abandon)
        self.network.spawn(self.watch_availability, peer, node, self.wanted.pulse_s)
        if self.wanted.disable_nodes:
            yield self._permission(node.id)
        args, needs = self._enabled.pop(node.id, self._no_args)
        yield self._at_work(self._send_setup(peer, args, needs))

    def _send_setup(self, peer: Any, args: bytes, needs: Tuple[bytes, ...]) -> Iterator:
        """The part of `prepare_node` that the client need not permit any more."""
        for path_there, path in self.wanted.files:
            folder, name = os.path.split(path_there)
            yield self.network.files.send_to(peer, path, {
                "name": name, "dir": folder, "place": CLIENT_PLACE, "overwrite": True}, self.wanted.timeout_s)
        setup = self.wanted.node_setup
        if setup is not None:
            magic = _magic_of(peer)
            digests = self._closure((setup,) + needs)
            blobs = [self.packer.blob(digest, magic) for digest in digests]
            reply, _ = yield peer.request("node.setup", {}, _encode({"setup": setup.hex()}, [args] + blobs))
            _check_setup("node_setup", reply)   # see `unpack_setup`

    def _at_work(self, setup: Iterator) -> Iterator:
        """Run a set-up; the client is not idle meanwhile."""
        self._event(self.state.setting_up, 1)
        try:
            return (yield setup)
        finally:
            self._event(self.state.setting_up, -1)

    def prepare_server(self, peer: Any, server: Server) -> Iterator:
        """See `SchedulerDriver`: the client's components, then its server_setup."""
        wanted = self.wanted
        if wanted.disable_servers:
            yield self._permission(server.id)
        args, needs = self._enabled.pop(server.id, self._no_args)
        setup = () if wanted.server_setup is None else (wanted.server_setup,)
        self._define(server.link, self._closure((*wanted.components, *setup, *needs)))
        reply, _ = yield self._at_work(peer.request("server.setup", {
            "components": [key.hex() for key in wanted.components], "setup": [key.hex() for key in setup]}, args))
        _check_setup("server_setup", reply)
        if wanted.introduce:
            for other in self.servers.values():
                self.network.roster.introduce(server.link.peer, other.peer)

    def _closure(self, keys: Iterable[bytes]) -> List[bytes]:
        """Keys of all definitions that these need, in the order in which they are to be sent."""
        return list(dict.fromkeys(digest for key in keys for digest in self.packer.closure_of(key)))

    def _permission(self, key: Any) -> Iterator:
        """Wait until the client enables a node or server."""
        while key not in self._enabled:
            self._held[key] = self.network.engine.current
            yield pycoslite.Suspend(None)

    def enable(self, key: Any, args: _Packed) -> None:
        """Let a node or server be set up, with these arguments."""
        self._enabled[key] = args
        task = self._held.pop(key, None)
        if task is not None:
            task.resume()

    # -- while they are used -------------------------------------------------------------------------------------------

    def change(self, event: str, entity: Union[Node, Server], **how: Any) -> None:
        """Let the cluster state handle an event that concerns a node or server."""
        self._event(lambda now: getattr(self.state, event)(entity, now=now, **how))

    def close_server(self, server: Server, terminate: bool, restart: bool) -> None:
        """Close a server, and replace it if that is wanted now or always."""
        self.change("close_server", server, terminate=terminate, restart=restart or self.wanted.restart_servers)

    def close_node(self, node: Node, terminate: bool, again: Optional[_Packed] = None) -> None:
        """Close a node; `again`: take it anew then, with these arguments for its setup."""
        if again is None:
            self.left_alone.add(node.id)
        else:
            self._again.add(node.id)
            self._enabled[node.id] = again
        self.change("close_node", node, terminate=terminate)

    def _release(self, node: Node) -> None:
        """Also take the node anew, if it was closed for that. Its release goes first on the same connection."""
        link = self.nodes.get(node.id)
        super()._release(node)
        if link is None or self.state.closing:
            return
        if self.state.sleeps(node.id):
            self._asleep[node.id] = link.peer
        elif node.id in self._again:
            self._again.discard(node.id)
            self.network.spawn(self.take, link.peer)

    def take(self, peer: Any) -> Iterator:
        """Use a node that is connected; if that fails it is tried again when it comes again. A system task."""
        try:
            yield self.use_node([], peer)
        except pycoslite.PycosError as error:
            pycoslite.log.warning("node %s is not used: %s", peer, error)

    def _wake(self, node: Node, n: Optional[int]) -> None:
        """See `SchedulerDriver`."""
        link, peer = self.nodes.get(node.id), self._asleep.pop(node.id, None) if n is None else None
        if n is not None and link is not None:
            self.network.spawn(self._ask_restart, link, n, "there is work for it", True, None)
        elif peer is not None and peer.online:
            self.network.spawn(self.take, peer)

    def begin(self) -> None:
        """The client's turn has come: begin to judge what is idle, and what is silent."""
        wanted, give_up_s = self.wanted, pycoslite.settings.give_up_s
        silence_s = _MISSED_PULSES * wanted.pulse_s
        if silence_s >= give_up_s:
            pycoslite.log.info("a node that cannot be reached is given up after %g s (Settings.give_up_s), before %d "
                               "pulse intervals have passed (%g s)", give_up_s, _MISSED_PULSES, silence_s)
        self._event(self.state.limit, wanted.zombie_s, silence_s, *wanted.idle_rule)

    def _on_close_server(self, peer: Any, args: dict, _payload: bytes) -> None:
        """A task wants the server to go that it runs on."""
        server = self._caller(peer)
        checked("client.close_server", args)
        if server is not None:
            self.close_server(server, args["terminate"], args["restart"])

    def _on_close_node(self, peer: Any, args: dict, _payload: bytes) -> None:
        """Likewise its node."""
        server = self._caller(peer)
        checked("client.close_node", args)
        if server is not None:
            self.close_node(server.node, args["terminate"])

    def _caller(self, peer: Any) -> Optional[Server]:
        """The server that a request came from; None for a peer that is none of ours, or not any more."""
        link = self.servers.get(peer.process_id)
        return None if link is None else self._record(link)


def unpack_setup(payload: Bytes) -> Tuple[bytes, bytes, List[bytes]]:
    """What a ``node.setup`` request brings: key of node_setup, its packed arguments, the definitions it needs. Pure.
    Raises pycoslite.ProtocolError when it is nothing of the kind."""
    head, parts = _decode(payload)
    try:
        return bytes.fromhex(head["setup"]), parts[0], parts[1:]
    except (LookupError, TypeError, ValueError) as error:
        raise pycoslite.ProtocolError("node.setup brings no setup: %r" % error) from None


def _check_setup(what: str, reply: dict) -> None:
    """Raise PycosError with what the other end says went wrong; then the node or server is closed, and that logged."""
    if reply.get("error"):
        raise pycoslite.PycosError("its %s failed: %s" % (what, reply["error"]))


def _ask_rules(rules: List[DispycosNodeAllocate], info: DispycosNodeInfo) -> Iterator:
    """A task that asks a client's rules about a node."""
    return allocate_node(rules, info)
    yield


class _Turn:
    """A client in a scheduler's queue: `come` is set when its turn has come, the rest is what is known of it there.

    One class serves `Scheduler` (clients of this process) and `_RemoteScheduler` (those that queue at a program); the
    latter uses the numbers and hosts. `driver` is set once the turn has begun.
    """

    def __init__(self, scheduler: Any, name: str) -> None:
        self.scheduler, self.name = scheduler, name
        self.refused = False                        # it came because it never will
        # For a scheduler program: its number there, the nodes it may have, and how many of them were contacted.
        self.number, self.hosts, self.contacted = 0, [], 0
        self.zombie_s = scheduler.zombie_s          # how long a client of this scheduler may be idle; 0: for ever
        self.come = pycoslite.Event()
        self.driver: Optional[_ClientDriver] = None
        self.close: Optional[Callable] = None       # the client's

    def leave(self) -> None:
        """The client is done, or has given up waiting."""
        self.scheduler.leave(self)


# Options of older schedulers, and what takes their place.
_TAKEN = {
    "pulse_interval": "each client says how often nodes tell what they have free (its pulse_interval), and connections "
                      "are watched anyway (Settings.heartbeat_s)",
    "clean": "nothing is left behind that would have to be removed: files and jobs go from clients to nodes directly",
}


class _Relays:
    """Has nodes announce this process to the other nodes that they know or find on their networks, which then connect:
    once each, or every `ping_s` seconds. Without `wanted` it does nothing. Engine."""

    def __init__(self, network: Any, wanted: bool, ping_s: float) -> None:
        self.network, self._wanted, self._ping_s = network, wanted, ping_s or float("inf")
        self._asked: Dict[bytes, float] = {}        # process id of a node -> when

    def ask(self, peer: Any) -> None:
        """A node that was named is connected; again changes nothing before its time."""
        now, before = self.network.engine.clock(), self._asked.get(peer.process_id)
        if self._wanted and (before is None or now >= before + self._ping_s):
            self._asked[peer.process_id] = now
            self.network.spawn(self._ask, peer)

    @staticmethod
    def _ask(peer: Any) -> Iterator:
        """A system task."""
        try:
            yield peer.request("peer.relay", {"roles": pycoslite.ROLES["node"]},
                               timeout=pycoslite.settings.message_timeout_s)
        except pycoslite.PycosError as error:
            pycoslite.log.warning("node %s does not announce this process on its network: %s", peer, error)


class Scheduler(SchedulerStatus, metaclass=pycoslite.Singleton):
    """Finds nodes for the clients of this process, which get them one after the other. There is one at most; the first
    client makes it with the defaults if the program has not made it before.

        Scheduler(nodes=["hosta", "hostb:9706"], secret="...")

    `nodes` are nodes to contact besides those found on the local networks: 'host', 'host:port' or a Location.
    `embedded` is how many cores of this machine to use, by a node program of its own and instead of a search; True for
    all; the default is `ClusterSettings.embedded`, 0. `ping_interval`: seconds between two searches for nodes, 0 for as
    often as makes sense. `node_port` is that of nodes named alone. `zombie_period`: the
    longest that its clients may have of their own, in seconds, 0 for any. `relay_nodes`: each of `nodes` announces this
    process on its own network, so that naming one there will do. `pulse_interval` and `clean` are taken for the sake of
    older programs, with a line in the log. All other options are those of `pycoslite.Pycos`, which is started
    with them unless the network runs already. Raises what that raises. Any thread.
    """

    def __init__(self, *, nodes: Iterable[Any] = (), embedded: Union[bool, int, None] = None, ping_interval: float = 0,
                 node_port: Optional[int] = None, zombie_period: float = 0, **options: Any) -> None:
        for name in _TAKEN:
            if options.pop(name, None):
                pycoslite.log.warning("Scheduler(%s=...) has no effect: %s", name, _TAKEN[name])
        node_port = options.pop("discoronode_port", None) or node_port
        relay_nodes = options.pop("relay_nodes", False)
        self.zombie_s = zombie_period
        self.node_port = node_port or NODE_PORT
        self.network = pycoslite.running_network() or pycoslite.Pycos(**options).network
        self._hosts = [self.location(node) for node in nodes]
        self._ping_s = ping_interval
        self._relays = _Relays(self.network, relay_nodes, ping_interval)
        self._cores = settings.embedded if embedded is None else -1 if embedded is True else int(embedded)
        self._local: Optional[LocalNode] = None
        self._turns: Any = collections.deque()      # of clients; the first one has the nodes
        udp_port = options.get("udp_port") or pycoslite.settings.net_port
        self._discovery = pycoslite.Discovery(self.network, udp_port,
                                              multicast=bool(options.get("ipv4_udp_multicast")))
        self._discovery.roles = pycoslite.ROLES["client"]       # whatever else this process is: nodes search for it
        self._remotes: Dict[bytes, _RemoteScheduler] = {}       # scheduler programs that clients have named
        self.network.on_peer(self._on_peer)
        self.network.on_request("scheduler.turn", self._on_turn)
        _running.append(self)

    def location(self, node: Any) -> Any:
        """The Location that a text ('host' or 'host:port') means for a node; a Location is one already. Any thread."""
        return node if isinstance(node, pycoslite.Location) else pycoslite.Location.parse(node, self.node_port)

    # -- what it does --------------------------------------------------------------------------------------------------

    def status(self) -> Dict[str, Any]:
        """The cluster at one glance: Client (its name, '' without one), Pending (clients that wait), PendingCPU (CPU
        jobs that wait), Nodes, Servers (numbers of them in use). Any thread."""
        turn = self._turns[0] if self._turns else None
        state = turn.driver.state if turn is not None and turn.driver is not None else ClusterState()
        pending = sum(job.state == _QUEUED and job.kind != IO for job in list(state.jobs.values()))
        return {"Client": turn.name if turn else "", "Pending": max(len(self._turns) - 1, 0), "PendingCPU": pending,
                "Nodes": len(state.nodes), "Servers": len(state.anywhere.servers)}

    def print_status(self) -> None:
        """Print what `status` gives, a line for each. Any thread."""
        sys.stdout.write("".join("%s: %s\n" % item for item in self.status().items()))

    # -- turns: user kernel --------------------------------------------------------------------------------------------

    def enqueue(self, name: str) -> _Turn:
        """A client wants the nodes. For `Client.schedule`."""
        turn = _Turn(self, name)
        self._turns.append(turn)
        self._turns[0].come.set()
        return turn

    def begin(self, turn: _Turn, driver: _ClientDriver, close: Callable) -> None:
        """Find nodes for a client whose turn has come. For `Client.schedule`."""
        turn.driver, turn.close = driver, close
        if self._cores and self._local is None:
            self._local = LocalNode(self.network, None if self._cores < 0 else self._cores, lambda peer: None, -1)
        self.network.post(self._begin, driver)

    def close(self) -> Any:
        """Close the client that has the nodes, if there is one. Use with yield. Gives 0."""
        turn = self._turns[0] if self._turns else None
        return pycoslite.Value(0) if turn is None or turn.close is None else turn.close()

    def leave(self, turn: _Turn) -> None:
        """A client is done, or has given up waiting. For `Client`."""
        if turn in self._turns:
            self._turns.remove(turn)
        if self._turns:
            self._turns[0].come.set()

    def stop(self) -> None:
        """End what this scheduler has started. Any thread, but not in a task: it waits for the engine, and for the end
        of the node program it may have started. Clients are not closed by it. The next client makes a new scheduler."""
        pycoslite.Singleton.discard(type(self))
        if self._local is not None:
            self._local.end()
        ended = threading.Event()
        self.network.post(self._stop, ended)
        ended.wait(_PATIENCE_S)

    def _stop(self, ended: threading.Event) -> None:
        self._turns.clear()
        self._discovery.close()
        self.network.off_peer(self._on_peer)
        ended.set()

    # -- nodes: engine -------------------------------------------------------------------------------------------------

    def offer(self, driver: _ClientDriver) -> None:
        """Let a client have what nodes are known. For `Client`."""
        for peer in list(self.network.peers.values()):
            self._on_peer(peer, "online" if peer.online else "", "")

    def contact(self, driver: _ClientDriver, hosts: Iterable[Any]) -> None:
        """Use these nodes for a client, as soon as they can be reached. For `Client`."""
        for location in hosts:
            self.network.spawn(self._keep_contact, driver, location)

    def _begin(self, driver: _ClientDriver) -> None:
        """The turn's first steps: nodes that are connected, nodes that were named, then the search."""
        self.offer(driver)
        self.contact(driver, self._hosts + driver.wanted.hosts)
        self._search(driver)
        self.network.call_later(_PATIENCE_S, self._say_why, driver)

    # -- schedulers elsewhere ------------------------------------------------------------------------------------------

    @types.coroutine
    def at(self, place: Any) -> Any:
        """The scheduler program at a Location, or host. Use with yield. Raises PycosError when it cannot be reached.
        For `Client.schedule`."""
        found: concurrent.futures.Future = concurrent.futures.Future()
        if not isinstance(place, pycoslite.Location):
            place = pycoslite.Location.parse(place, pycoslite.settings.net_port)
        self.network.spawn(self._reach, place, found)
        return (yield found)

    def _reach(self, location: Any, found: concurrent.futures.Future) -> Iterator:
        """The half of `at` that needs the engine. One record per program, however many clients name it. A system
        task."""
        try:
            peer = yield self.network.connect([location], timeout=pycoslite.settings.message_timeout_s)
            if peer.info.get("role") != "scheduler":
                raise pycoslite.PycosError("%s is no scheduler program but a %s: name the port that 'python3 -m "
                                           "dispycos_lite' prints" % (peer, peer.info.get("role")))
        except pycoslite.PycosError as error:
            found.set_exception(error)
        else:
            found.set_result(self._remotes.setdefault(peer.process_id, _RemoteScheduler(self, peer)))

    def _on_turn(self, peer: Any, args: dict, _payload: bytes) -> None:
        """A scheduler program says that a client's turn has come, or where more nodes are."""
        if peer.process_id in self._remotes:
            self._remotes[peer.process_id].on_turn(checked("scheduler.turn", args))

    @staticmethod
    def _serves(driver: Optional[_ClientDriver]) -> bool:
        """Whether that client has its turn and wants nodes."""
        return driver is not None and not driver.state.closing

    def _on_peer(self, peer: Any, event: str, detail: str) -> None:
        """A node that comes is for the client whose turn it is; who queues at a program that goes is told."""
        if event == "offline" and peer.process_id in self._remotes:
            pycoslite.log.warning("the scheduler program %s cannot be reached for now (%s): its queue stands still, "
                                  "the client that has the nodes goes on", peer, detail)
        driver = self._turns[0].driver if self._turns else None
        if event == "online" and peer.info.get("role") == "node" and self._serves(driver):
            self.network.spawn(driver.take, peer)
        if event == "lost" and peer.process_id in self._remotes:
            self._remotes.pop(peer.process_id).lost()

    def _keep_contact(self, driver: _ClientDriver, location: Any) -> Iterator:
        """Use a node that was named, whenever it can be reached. A system task."""
        silent = False
        while self._serves(driver):
            try:
                peer = yield self.network.connect([location], timeout=pycoslite.settings.message_timeout_s)
                self._relays.ask(peer)
                yield driver.use_node([], peer)
                silent = False
            except pycoslite.AuthenticationError as error:
                pycoslite.log.error("node %s cannot be used: %s", location, error)
                return
            except pycoslite.PycosError as error:
                if not silent and self._serves(driver):
                    pycoslite.log.warning("node %s cannot be used yet: %s; trying again every %g s", location, error,
                                          _CONTACT_AGAIN_S)
                silent = True
            yield pycoslite.Suspend(_CONTACT_AGAIN_S)

    def _search(self, driver: _ClientDriver) -> None:
        """Look for nodes on the local networks, now and then, and let those that start find this process; who wants the
        cores of this machine means these alone."""
        if self._serves(driver) and self._local is None:
            _let_nodes_find(self._discovery)
            ping_s = driver.wanted.ping_s or self._ping_s
            if ping_s or not driver.nodes:
                self._discovery.search(pycoslite.ROLES["node"])
            self.network.call_later(ping_s or _SEARCH_AGAIN_S, self._search, driver)
        elif not any(self._serves(turn.driver) for turn in self._turns):
            self._discovery.close()             # it would answer nodes that nobody wants

    def _say_why(self, driver: _ClientDriver) -> None:
        """A client that waits in silence looks like one that hangs: say once what it waits for, and the ways out."""
        if not self._serves(driver) or driver.nodes:
            return
        if self._local is not None:
            pycoslite.log.error("the node program for this machine did not start so far (exit status %s): run "
                                "dispycosnode_lite.py by hand to see why", self._local.failed())
        else:
            pycoslite.log.warning(
                "no node was found so far, so the client waits: start dispycosnode_lite.py on the machines to use, "
                "name them with Scheduler(nodes=['host']) if they are on other networks, or set PYCOSLITE_EMBEDDED=-1 "
                "to use the cores of this machine")


def _let_nodes_find(discovery: Any) -> None:
    """Answer nodes that search for clients, which they do when they start or become free. Engine."""
    try:
        discovery.listen()
    except OSError as error:
        pycoslite.log.debug("a node that starts is noticed up to %g s later, UDP port %d cannot be used: %s",
                            _SEARCH_AGAIN_S, discovery.udp_port, error.strerror)


class _RemoteScheduler:
    """A scheduler program, with the methods that `Client` uses of a `Scheduler`. It says whose turn it is and where the
    nodes are; the client then uses these directly, by way of this process's own scheduler."""

    def __init__(self, local: Scheduler, peer: Any) -> None:
        self.network = local.network
        self.zombie_s = 0.0                         # it says so when a turn comes
        self._local, self._peer = local, peer
        self._numbers = itertools.count(1)
        self._turns: Dict[int, _Turn] = {}          # by the number that the program knows the client by

    def enqueue(self, name: str) -> _Turn:
        """A client wants the nodes."""
        turn = _Turn(self, name)
        turn.number = next(self._numbers)
        self._turns[turn.number] = turn
        self._peer.notify("scheduler.enter", {"client": turn.number, "name": name})
        return turn

    def begin(self, turn: _Turn, driver: _ClientDriver, close: Callable) -> None:
        """Use the nodes for a client whose turn has come."""
        turn.driver, turn.close = driver, close
        self.network.post(self._contact, turn, driver.wanted.hosts)

    def leave(self, turn: _Turn) -> None:
        """A client is done, or has given up waiting."""
        if self._turns.pop(turn.number, None) is not None:
            self._peer.notify("scheduler.leave", {"client": turn.number})

    def offer(self, driver: _ClientDriver) -> None:
        """Let a client have what nodes are known. Engine."""
        for turn in list(self._turns.values()):
            if turn.driver is driver:
                self._local.contact(driver, turn.hosts)

    def on_turn(self, facts: dict) -> None:
        """A client's turn has come, or there are more nodes. Engine."""
        turn = self._turns.get(facts["client"])
        if turn is not None:
            turn.zombie_s = facts.get("zombie_s", 0.0)
            self._contact(turn, [pycoslite.Location(host, port) for host, port in facts["nodes"]])
            turn.come.set()

    def _contact(self, turn: _Turn, hosts: List[Any]) -> None:
        """Nodes that this turn may have. Before it has begun they are only noted; each is contacted once. Engine."""
        turn.hosts += [host for host in hosts if host not in turn.hosts]
        if turn.driver is not None:
            fresh, turn.contacted = turn.hosts[turn.contacted:], len(turn.hosts)
            self._local.contact(turn.driver, fresh)

    def lost(self) -> None:
        """The program has ended: who has the nodes keeps them, who waits has waited in vain. Engine."""
        for turn in list(self._turns.values()):
            if turn.driver is None:
                pycoslite.log.error("%s waited for its turn at %s, which is gone", turn.name, self._peer)
                turn.refused = True
                turn.come.set()


_running: List[Scheduler] = []          # the one there is


def _stop_scheduler() -> None:
    """Runs before the network is stopped."""
    while _running:
        _running.pop().stop()


pycoslite.STOPPERS.insert(0, _stop_scheduler)


# ---- jobs, as the program sees them ----


class _Run:
    """One job of a client, from the call that hands it in to its end.

    It stands where `Cluster` has a future (`_Load.future`). `begun` is always set before or with `ended`, so that who
    waits for the start of a job that never starts is woken, and then finds `task` to be None.
    """

    __slots__ = ("name", "args", "kwargs", "private", "job", "task", "begun", "ended", "result")

    def __init__(self, name: str, args: tuple, kwargs: Dict[str, Any], private: bool) -> None:
        self.name, self.args, self.kwargs = name, args, kwargs
        self.private = private                      # its caller gets the result, and no task
        self.job: Any = None
        self.task: Optional[JobTask] = None         # once it has started
        self.begun = pycoslite.Event()              # it has started, or ended without
        self.ended = pycoslite.Event()
        self.result: Any = None                     # value, or MonitorStatus


class JobTask(pycoslite.RemoteTask):
    """Reference to a task that a `Client` runs at a server: a remote task, for messages, `terminate` and monitors, that
    also knows how it ends. Equal to other references to the same task, which come in messages, say."""

    __slots__ = ("_ended", "_exit_value", "_failure", "_monitors", "_noticed")

    def __init__(self, peer: Any, task_id: int, name: str) -> None:
        super().__init__(peer, task_id, name)
        self._ended = pycoslite.Event()
        self._exit_value: Any = None
        self._failure: Any = None                   # if it failed: (type, value, error) of its MonitorStatus
        self._monitors: List[Any] = []
        self._noticed = False                       # somebody knows how it ended

    def __reduce__(self) -> Any:
        return copyreg.dispatch_table[pycoslite.RemoteTask](self)

    def __del__(self) -> None:
        if getattr(self, "_failure", None) is not None and not self._noticed:
            pycoslite.log.warning("%r failed, and nobody has asked: %s", self, self._failure[1])

    @types.coroutine
    def _finish(self, timeout: Optional[float]) -> Any:
        """The generator behind `finish`, which must do nothing before it is yielded."""
        ended = yield self._ended.wait(timeout)
        self._noticed = self._noticed or ended
        if self._failure is not None and ended:
            return _failed(self, *self._failure)    # made anew: it refers to this task, which must not refer to it
        return (yield pycoslite.Value(self._exit_value if ended else None))

    def finish(self, timeout: Optional[float] = None) -> Any:
        """The exit value; waits for the end at most `timeout` seconds. Use with yield. A task that failed gives a
        `MonitorStatus` (`type` is the exception's class, `value` the traceback); None when it was terminated or
        abandoned, or time is up."""
        return self._finish(timeout)

    __call__ = finish

    def is_alive(self) -> bool:
        """Whether it runs, as far as is known here. Any thread."""
        return not self._ended.is_set()

    def notify(self, monitor: Any) -> int:
        """Have a `MonitorStatus` sent to `monitor` when it ends. Returns 0, or -1 when it has ended."""
        if self._ended.is_set():
            return -1
        self._monitors.append(monitor)
        return 0

    def conclude(self, status: Any, told: bool) -> None:
        """It has ended: tell who wants to know. `told`: somebody is told anyway. For `Client`."""
        if status.error is None:
            self._exit_value = status.value
        elif isinstance(status.type, type):         # else it was stopped or lost, and has no value
            self._failure = status.type, status.value, status.error
        monitors, self._monitors = self._monitors, []
        for monitor in monitors:
            monitor.send(status)
        self._noticed = told or bool(monitors)
        self._ended.set()


def _failed(subject: Any, kind: Any, value: Any, error: Optional[BaseException]) -> Any:
    """The MonitorStatus of a job that ended with an exception, or was stopped or lost."""
    status = pycoslite.MonitorStatus(subject, kind, value)
    status.error = error
    return status


def _ended(subject: Any, value: Any, error: Optional[BaseException], outcome: int) -> Any:
    """How a job has ended, as monitors are told."""
    if error is None:
        return pycoslite.MonitorStatus(subject, StopIteration, value)
    if outcome in (ERROR, TERMINATED) and isinstance(error, JobError):
        stopped = error.ending == Cancelled.ending
        return _failed(subject, SchedulerStatus.TaskTerminated if stopped else SchedulerStatus.TaskAbandoned,
                       str(error), error)
    return _failed(subject, type(error), getattr(error.__cause__, "text", None) or str(error), error)


def _location_of(job: Job) -> Any:
    """Where the server is that has a job, or had it last."""
    return None if job.server is None else job.server.location


def _message(code: Optional[int], info: Any, reason: str) -> Any:
    """A change as status tasks are told; without a code it is what a node has free."""
    message = info if code is None else DispycosStatus(code, info)
    if reason:
        message.reason = reason
    return message


class Watched:
    """What `Client` and `Cluster` let others see of them: `counts` and `plain_jobs` to ask, `watch` to be told. Any
    thread."""

    def __init__(self) -> None:
        self._packer = Packer()
        self._driver: Any = None                    # a Client has one while the nodes are its own
        self._ledger = Ledger()
        self._watchers: List[Callable] = []         # changed in one step at a time

    def counts(self) -> ClusterCounts:
        """How many jobs of every kind there were since this was made, of all and by node and server; see `JobCounts`.
        Takes some microseconds for each server, most of them in the calling thread, and jobs next to nothing. Any
        thread, also in a task, but not in what was given to `watch`."""
        driver = self._driver
        return _summed(self._ledger.rows(), self._ledger.repeats, 0) if driver is None else driver.counts()

    def plain_jobs(self, location: Any = None) -> List[PlainJob]:
        """The jobs without a task that run now, at the server of that Location or (None) everywhere. For any thread, as
        `counts`."""
        jobs = [] if self._driver is None else self._driver.running(location)
        return [self._plain(job) for job in jobs if self._is_plain(job)]

    def _plain(self, job: Job) -> PlainJob:
        """The record of a job that has no task, or not yet. Any thread."""
        raise NotImplementedError

    def _is_plain(self, job: Job) -> bool:
        """Whether a job will never have a task here."""
        raise NotImplementedError

    def watch(self, callback: Callable[[Any], Any]) -> Callable[[], None]:
        """Have ``callback(message)`` called for whatever changes, before the status task hears of it; at first for the
        nodes and servers that are there already. Returns a function that ends that. Any thread.

        The messages are those that status tasks are sent, and for a job that ended otherwise than with a result, and
        has no task, a `pycoslite.MonitorStatus` of a `PlainJob`; those that were cancelled before any server had them
        are only counted. It is called in the user kernel (or, where that is held up, a thread of the cluster's own), so
        it must not block; what it raises is logged.
        """
        ended = threading.Event()

        def _watcher(message: Any) -> None:
            try:
                if not ended.is_set():
                    callback(message)
            except Exception:                       # anybody's code: the others are to be told, too
                pycoslite.log.exception("%r, which watches %r, failed", callback, self)

        def _begin(changes: Iterable[Tuple[int, Any]]) -> None:
            for change in changes:
                _watcher(DispycosStatus(*change))
            self._watchers.append(_watcher)

        def _end() -> None:
            ended.set()
            if _watcher in self._watchers:
                self._watchers.remove(_watcher)
        driver = self._driver
        if driver is None:
            _begin(())
        else:
            driver.introduce(lambda places: _begin([(SchedulerStatus.ClientScheduled, id(self)), *places]))
        return _end

    def _inform(self, message: Any) -> None:
        """Tell the watchers."""
        for watcher in list(self._watchers):
            watcher(message)

    def _outcome_of(self, job: Job, outcome: int, payload: Any) -> Tuple[Any, Optional[BaseException]]:
        """Value and exception of a job that has ended; see `_outcome`."""
        value, error = _outcome(self._packer, outcome, payload)
        if error is not None and outcome == VALUE:
            self._driver.unreadable(job)
        return value, error

    def _inform_of_end(self, subject: PlainJob, error: BaseException, outcome: int) -> None:
        """A job that has no task ended with an error. Thousands may be cancelled at once, which is no news of each."""
        if self._watchers and (subject.location is not None or not isinstance(error, Cancelled)):
            self._inform(_ended(subject, None, error, outcome))


# ---- what a client is made with ----

# What may follow the components, by the type of the first of it: three generations of programs.
_FORMS: List[Tuple[tuple, Tuple[str, ...]]] = [
    ((list, tuple), ("nodes", "status_task", "node_setup", "server_setup", "disable_nodes", "disable_servers",
                     "pulse_interval", "node_allocations", "ping_interval", "restart_servers", "zombie_period",
                     "abandon_zombie_nodes")),
    ((int, float), ("pulse_interval", "node_allocations", "status_task", "node_setup", "server_setup", "disable_nodes",
                    "disable_servers", "peers_communicate")),
    ((pycoslite.Task, type(None)), ("status_task", "timeout", "pulse_interval", "zombie_period")),
]
_OLD_OPTIONS = {"status_coro": "status_task"}


@dataclasses.dataclass
class _ClientOptions:
    """Everything but the components; `check` says what is wrong. See `Client` for what they mean."""

    nodes: Any = ()
    status_task: Any = None
    node_setup: Any = None
    server_setup: Any = None
    disable_nodes: bool = False
    disable_servers: bool = False
    pulse_interval: float = 0.0
    node_allocations: Any = ()
    ping_interval: Optional[float] = None
    restart_servers: bool = False
    zombie_period: Optional[float] = None
    abandon_zombie_nodes: bool = False
    peers_communicate: bool = False
    timeout: Optional[float] = None

    @classmethod
    def of_call(cls, args: tuple, options: Dict[str, Any]) -> "_ClientOptions":
        """What a call of `Client` means. Raises TypeError as Python does, MisuseError."""
        names = next((names for kinds, names in _FORMS if args and isinstance(args[0], kinds)), ())
        if len(args) > len(names):
            raise TypeError("Client(): the argument %r has no meaning there; use keywords" % (args[len(names)],))
        given = dict(zip(names, args))
        for name, value in options.items():
            name = _OLD_OPTIONS.get(name, name)
            if name in given:
                raise TypeError("Client() got %s twice" % name)
            given[name] = value
        found = cls(**given)
        found.pulse_interval = found.pulse_interval or 5 * MinPulseInterval
        found.check()
        return found

    def check(self) -> None:
        """Raise MisuseError for the first thing that cannot be."""
        for wrong, sentence in (
                (not MinPulseInterval <= self.pulse_interval <= MaxPulseInterval,
                 "pulse_interval=%r is not between MinPulseInterval and MaxPulseInterval (%g to %g seconds)" % (
                     self.pulse_interval, MinPulseInterval, MaxPulseInterval)),
                (self.ping_interval and self.ping_interval < self.pulse_interval,
                 "ping_interval=%r is shorter than pulse_interval=%g" % (self.ping_interval, self.pulse_interval)),
                (self.zombie_period and self.zombie_period < 5 * self.pulse_interval,
                 "zombie_period=%r is shorter than five times pulse_interval=%g" % (
                     self.zombie_period, self.pulse_interval)),
                ((self.timeout or 1) <= 0, "timeout=%r is no time to wait for an answer" % (self.timeout,)),
                (self.status_task is not None and not isinstance(self.status_task, pycoslite.Task),
                 "status_task=%r is not a task" % (self.status_task,)),
                ((self.disable_nodes or self.disable_servers) and self.status_task is None,
                 "disable_nodes and disable_servers need a status_task, which is told what there is to enable")):
            if wrong:
                raise pycoslite.MisuseError("Client(): " + sentence)
        self._check_setups()

    def _check_setups(self) -> None:
        """The part of `check` that looks at the client's functions."""
        for name in ("node_setup", "server_setup"):
            setup = getattr(self, name)
            if setup is not None and (not callable(setup) or job_kind(setup) != TASK):
                raise pycoslite.MisuseError("Client(): %s=%r is not a generator function" % (name, setup))

    def patience(self, shared_s: float, wanted: _Wanted) -> None:
        """Say in `wanted` how long to wait for what is idle, or silent. `shared_s` is what the scheduler allows, 0 for
        any time; of that and the client's own limit the shorter one counts. A pulse is at most a third of it."""
        own_s = 10 * self.pulse_interval if self.zombie_period is None else self.zombie_period
        shared = bool(shared_s) and (not own_s or shared_s < own_s)
        wanted.zombie_s = zombie_s = shared_s if shared else own_s
        wanted.idle_rule = ("zombie_period=%g%s" % (zombie_s, " of the scheduler" if shared else ""),
                            "schedule it again when there is work" + (
                                "" if shared else ", or make it with zombie_period=0, which is never"))
        wanted.pulse_s = min(self.pulse_interval, zombie_s / 3) if zombie_s else self.pulse_interval

    def rules(self) -> List[DispycosNodeAllocate]:
        """Allocation rules, in order; a host name is one for all its CPUs."""
        found = []
        for node in [*_as_list(self.nodes), *_as_list(self.node_allocations)]:
            if isinstance(node, str):
                node = DispycosNodeAllocate(pycoslite.Location.parse(node, 0).addr)
            if not isinstance(node, DispycosNodeAllocate):
                raise pycoslite.MisuseError("Client(): nodes=%r is not a list of host names and DispycosNodeAllocate "
                                            "objects" % (self.nodes,))
            found.append(node)
        return found

    def hosts(self) -> List[Any]:
        """Locations of the nodes that are named, and not described by a pattern."""
        found = []
        for node in _as_list(self.nodes):
            if isinstance(node, str):
                found.append(pycoslite.Location.parse(node, NODE_PORT))
            elif isinstance(node, DispycosNodeAllocate) and node.ip_rex == re.escape(node.node):
                found.append(pycoslite.Location(node.node, node.port or NODE_PORT))
        return found


def _as_list(value: Any) -> list:
    """Programs may give one thing where a list is meant."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _file_component(path: str) -> Tuple[str, str]:
    """A file's name at the node (its path below the working directory, or else its last part) and its path here."""
    path = os.path.abspath(path)
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise pycoslite.MisuseError("Client(): the file %s cannot be sent: %s" % (path, error.strerror)) from None
    below = os.path.join(os.getcwd(), "")
    name = path[len(below):] if path.startswith(below) else os.path.basename(path)
    return name.replace(os.sep, "/"), path


def _code_component(component: Any) -> Any:
    """What is sent for a component that is no file: a function, class or module; an object stands for its class."""
    if isinstance(component, (types.FunctionType, types.ModuleType, type)):
        subject = component
    else:
        subject = type(component)
    if isinstance(subject, type) and not subject.__flags__ & _HEAP_TYPE:
        raise TypeError("Client(): %r cannot be a component: servers have built-in classes already" % (component,))
    return subject


class _Places(Watched):
    """The nodes and servers that a client has, by what the program calls them. See `Client`."""

    def _nodes(self) -> List[Node]:
        """A copy, made in one step: the engine may change what it is copied from at any time."""
        return [] if self._driver is None else list(self._driver.state.nodes.values())

    def _servers(self) -> List[Server]:
        return [] if self._driver is None else list(self._driver.state.anywhere.servers)

    def _node_at(self, where: Any) -> Optional[Node]:
        """The node whose process has that Location, or that text of one, or that DispycosNodeInfo."""
        place = where.location if isinstance(where, DispycosNodeInfo) else where
        return next((node for node in self._nodes() for location in (node.info.location,)
                     if location is not None and place in (location, repr(location))), None)

    def _node(self, where: Any) -> Optional[Node]:
        """The node at that Location; else of that name or address, a Location of another port being one, too. Where
        several have that, the first, with a line in the log."""
        nodes, known = self._nodes(), self._node_at(where)
        if known is not None or not nodes:
            return known
        names = {getattr(where, "addr", where)}
        if not any(names & {node.info.name, node.info.addr} for node in nodes):
            try:
                names.update(found[4][0] for found in socket.getaddrinfo(names.pop(), None))
            except (OSError, UnicodeError, TypeError):
                return None                         # no host has that name
        found = [node for node in nodes if names & {node.info.name, node.info.addr}]
        if len(found) > 1:
            pycoslite.log.warning("%s is the name or address of several nodes, at %s: the first is taken; give the "
                                  "Location of the one that is meant", where,
                                  ", ".join(repr(node.info.location) for node in found))
        return found[0] if found else None

    def _server(self, location: Any) -> Optional[Server]:
        return next((server for server in self._servers() if server.location == location), None)

    def _place(self, where: Any) -> Any:
        """What a job's `where` is in the cluster state. Raises PycosError when there is no such place."""
        if where is None or self._driver.state.servers_at(where):
            return where
        node = self._node_at(where) if isinstance(where, pycoslite.Location) else self._node(where)
        if node is None:
            raise pycoslite.PycosError("no node or server %r is in use; there are: %s" % (
                where, ", ".join([repr(node.info.location) for node in self._nodes()]
                                 + [repr(server.location) for server in self._servers()]) or "none"))
        return node.id


class _Jobs(_Places):
    """Running jobs, and what becomes of them. See `Client`.

    The methods that run something, by what they wait for and give (all are used with yield):

    method                      kind of job             gives
    rtask, rtask_at             CPU, a task             JobTask when it has started, None if it cannot
    io_rtask, io_rtask_at       I/O, a task             the same
    run_result, run_result_at   CPU, task or function   the result, or a MonitorStatus
    run_results                 CPU, task or function   all results, in order
    run_each and run_nodes, run_servers, run_node_servers   I/O, a task     a list of JobTask
    """

    def __init__(self, options: _ClientOptions) -> None:
        super().__init__()
        self._options = options
        self._job_ids = itertools.count(1)
        self._runs: Dict[int, _Run] = {}            # by job id, those that have not ended
        self._why_closed = ""                       # unless it was at its own wish

    def rtask(self, gen: Callable, *args: Any, **kwargs: Any) -> Any:
        """Run a generator function (or async function) as a task on the CPU of some server, at which no other such task
        runs; waits for one. Use with yield. Gives a `JobTask` once it has started; None, with a line in the log, when
        it cannot start: it, or an argument, cannot travel, or the arguments do not fit. `run` is its older name."""
        return self._start(TASK, None, gen, args, kwargs)

    def rtask_at(self, where: Any, gen: Callable, *args: Any, **kwargs: Any) -> Any:
        """`rtask` at a place: a node (name, address, Location or DispycosNodeInfo) or a server (Location). None also
        when it is not in use."""
        return self._start(TASK, where, gen, args, kwargs)

    def io_rtask(self, gen: Callable, *args: Any, **kwargs: Any) -> Any:
        """`rtask` for a task that mostly waits: begins at once, at the server with the fewest of its kind, whatever
        else runs there. `close` does not wait for it. `run_async` is its older name."""
        return self._start(IO, None, gen, args, kwargs)

    def io_rtask_at(self, where: Any, gen: Callable, *args: Any, **kwargs: Any) -> Any:
        """`io_rtask` at a place; see `rtask_at`."""
        return self._start(IO, where, gen, args, kwargs)

    run, run_at, run_async, run_async_at = rtask, rtask_at, io_rtask, io_rtask_at

    def run_result(self, gen: Callable, *args: Any, **kwargs: Any) -> Any:
        """Run a job on the CPU of some server and wait for its result; plain functions will do, too. Use with yield.
        When it fails, or is lost, that is a `MonitorStatus`."""
        return self._result(None, gen, args, kwargs)

    def run_result_at(self, where: Any, gen: Callable, *args: Any, **kwargs: Any) -> Any:
        """`run_result` at a place; see `rtask_at`."""
        return self._result(where, gen, args, kwargs)

    @types.coroutine
    def run_results(self, gen: Callable, iterable: Iterable) -> Any:
        """`run_result` for each item of an iterable, as many at a time as there are servers. Use with yield. Gives the
        results in the order of the items. An item that is a tuple, or another iterable but text, has all arguments."""
        runs = [self._launch(None, None, gen, _arguments(item), {}) for item in iterable]
        results = []
        for run in runs:
            if run is not None:
                yield run.ended.wait()
            results.append(None if run is None else run.result)
        return results

    def run_each(self, where: Any, gen: Callable, *args: Any, **kwargs: Any) -> Any:
        """Run a task that mostly waits at many places. `where` is 'node' (one server on every node), 'server' (every
        server), a node by its address or Location (all its servers), or another Location (every server). Use with
        yield. Gives a list of `JobTask`."""
        if where == "server" or isinstance(where, pycoslite.Location) and self._node_at(where) is None:
            return self.run_servers(gen, *args, **kwargs)
        if where != "node" and self._node(where) is not None:
            return self.run_node_servers(where, gen, *args, **kwargs)
        return self.run_nodes(gen, *args, **kwargs)

    def run_nodes(self, gen: Callable, *args: Any, **kwargs: Any) -> Any:
        """Run a task at one server of every node; see `run_each`."""
        return self._start_each([node.id for node in self._nodes()], gen, args, kwargs)

    def run_servers(self, gen: Callable, *args: Any, **kwargs: Any) -> Any:
        """Run a task at every server; see `run_each`."""
        return self._start_each([server.location for server in self._servers()], gen, args, kwargs)

    def run_node_servers(self, node: Any, gen: Callable, *args: Any, **kwargs: Any) -> Any:
        """Run a task at every server of one node; see `run_each`. Gives [] for an unknown node."""
        known = self._node(node)
        return self._start_each([server.location for server in self._servers() if server.node is known],
                                gen, args, kwargs)

    @types.coroutine
    def _start_each(self, places: List[Any], gen: Callable, args: tuple, kwargs: Dict[str, Any]) -> Any:
        """All are handed in before the first is waited for; those that cannot start are left out of the list."""
        runs = [self._launch(IO, place, gen, args, kwargs) for place in places]
        started = []
        for run in runs:
            if run is not None:
                yield run.begun.wait()
                started += [run.task] if run.task is not None else []
        return started

    @types.coroutine
    def _start(self, kind: int, where: Any, gen: Callable, args: tuple, kwargs: Dict[str, Any]) -> Any:
        """Hand in a task and wait for its start, or for the news that there will be none."""
        run = self._launch(kind, where, gen, args, kwargs)
        if run is None:
            return None
        yield run.begun.wait()
        return (yield pycoslite.Value(run.task))

    @types.coroutine
    def _result(self, where: Any, gen: Callable, args: tuple, kwargs: Dict[str, Any]) -> Any:
        run = self._launch(None, where, gen, args, kwargs)
        if run is None:
            return None
        yield run.ended.wait()
        return (yield pycoslite.Value(run.result))

    def _launch(self, kind: Optional[int], where: Any, gen: Callable, args: tuple, kwargs: dict) -> Optional[_Run]:
        """Hand in a job (`kind` None: as its function is). None, with a line in the log, when it cannot run."""
        name = getattr(gen, "__name__", None) or repr(gen)
        try:
            if self._driver is None:
                raise pycoslite.MisuseError(
                    "%s: 'yield client.schedule()' comes first" % (self._why_closed or "the client is not scheduled"))
            actual = job_kind(gen)
            if kind is not None and actual != TASK:
                raise pycoslite.MisuseError("it is neither a generator function nor an async function")
            place = self._place(where)
            key = self._packer.function(gen)
            data, needs = self._packer.dumps((args, kwargs))
        except pycoslite.PycosError as error:
            pycoslite.log.error("job %s was not started: %s", name, error)
            return None
        run = _Run(name, args, kwargs, kind is None)
        run.job = Job(next(self._job_ids), key, actual if kind is None else kind, Terms(place), _Load(run, data, needs))
        self._runs[run.job.id] = run
        self._driver.submit(run.job)
        return run

    # -- what happens --------------------------------------------------------------------------------------------------

    def _inform(self, message: Any) -> None:
        super()._inform(message)
        if self._options.status_task is not None:
            self._options.status_task.send(message)

    def _started(self, job: Job, task_id: int) -> None:
        """A task has started: from here on its caller has a reference to it."""
        run: _Run = job.load.future
        run.task = JobTask(job.server.link.peer, task_id, run.name)
        self._inform(DispycosStatus(SchedulerStatus.TaskStarted,
                                    DispycosTaskInfo(run.task, run.args, run.kwargs, time.time())))
        run.begun.set()

    def _settle(self, job: Job, outcome: int, payload: Any) -> None:
        """A job has ended."""
        run: _Run = self._runs.pop(job.id)
        value, error = self._outcome_of(job, outcome, payload)
        status = _ended(run.name if run.task is None else run.task, value, error, outcome)
        run.result = value if error is None else status
        if run.task is not None:
            told = self._options.status_task is not None or bool(self._watchers)
            run.task.conclude(status, told or run.private)
            self._inform(status)
        elif error is not None:
            if job.kind != FUNCTION:
                pycoslite.log.log(logging.INFO if isinstance(error, (Cancelled, ClusterClosed)) else logging.ERROR,
                                  "job %s was not started: %s", run.name, status.value)
            self._inform_of_end(self._plain(job), error, outcome)
        run.begun.set()
        run.ended.set()

    def _plain(self, job: Job) -> PlainJob:
        run: _Run = job.load.future
        return PlainJob(job.id, run.name, _location_of(job), run.args, run.kwargs)

    def _is_plain(self, job: Job) -> bool:
        return job.kind == FUNCTION


class _Control(_Jobs):
    """What a client can do with its nodes and servers. See `Client`."""

    def nodes(self) -> Any:
        """Addresses of the nodes in use, a list; those that are abandoned are not. Use with yield."""
        return pycoslite.Value([node.info.addr for node in self._nodes() if not node.abandoned])

    def servers(self) -> Any:
        """Locations of the servers in use, a list. Use with yield."""
        return pycoslite.Value([server.location for server in self._servers() if not server.node.abandoned])

    def tasks(self, where: Any = None) -> Any:
        """The tasks that run at a node (name, address or Location) or server (Location), None for all; a list. Use
        with yield."""
        node = None if where is None else (
            self._node_at(where) if isinstance(where, pycoslite.Location) else self._node(where))
        return pycoslite.Value([
            run.task for run in self._runs.values() if run.task is not None and (
                where is None or run.job.server.location == where or run.job.server.node is node)])

    def _apply(self, entity: Any, event: Callable, *args: Any) -> int:
        """Have the engine make a call that concerns a node or server; -1 when there is none."""
        if entity is None:
            pycoslite.log.warning("there is no such node or server in use")
            return -1
        self._driver.network.post(event, *args)
        return 0

    def _event(self, entity: Any, name: str, **how: Any) -> int:
        """Have the cluster state handle an event that concerns a node or server; -1 when there is none."""
        return self._apply(entity, lambda: self._driver.change(name, entity, **how))

    def suspend_node(self, node: Any) -> int:
        """Give a node no new jobs; those that run go on. Returns 0, or -1 for an unknown one. `node`, here and below,
        is its Location (with its port), that as a text, its DispycosNodeInfo, or its name or address; of several nodes
        with one name or address the first is taken, with a line in the log."""
        return self._event(self._node(node), "suspend")

    def resume_node(self, node: Any) -> int:
        """Undo `suspend_node`."""
        return self._event(self._node(node), "resume")

    def suspend_server(self, location: Any) -> int:
        """Give a server (Location) no new jobs; those that run go on. Returns 0, or -1 for an unknown one."""
        return self._event(self._server(location), "suspend")

    def resume_server(self, location: Any) -> int:
        """Undo `suspend_server`."""
        return self._event(self._server(location), "resume")

    def close_server(self, location: Any, terminate: bool = False, restart: bool = False) -> int:
        """End a server process once what runs there has ended (`terminate`: stop that); `restart`: replace it, as the
        option restart_servers does always. Returns 0, or -1 for an unknown one."""
        known = self._server(location)
        return self._apply(known, lambda: self._driver.close_server(known, terminate, restart))

    def restart_server(self, location: Any, terminate: bool = False) -> int:
        """`close_server`, and a fresh process in its place."""
        return self.close_server(location, terminate, True)

    def close_node(self, node: Any, terminate: bool = False) -> int:
        """Close all servers of a node, then give it back; this client does not take it again. Returns 0, or -1 for an
        unknown one."""
        known = self._node(node)
        return self._apply(known, lambda: self._driver.close_node(known, terminate))

    def restart_node(self, node: Any, *setup_args: Any, terminate: bool = False) -> int:
        """Close all servers of a node, then take it anew: node_setup runs again, with these arguments. Returns 0, or -1
        for an unknown one."""
        known, args = self._node(node), self._packer.dumps((setup_args, {}))
        return self._apply(known, lambda: self._driver.close_node(known, terminate, args))

    def enable_node(self, node: Any, *setup_args: Any) -> int:
        """Set up a node that disable_nodes holds back, with these arguments for node_setup. Returns 0, or -1 for an
        unknown one. Raises CannotShip."""
        known, args = self._node(node), self._packer.dumps((setup_args, {}))
        return self._apply(known, lambda: self._driver.enable(known.id, args))

    def enable_server(self, location: Any, *setup_args: Any) -> int:
        """Set up a server (Location) that disable_servers holds back, with these arguments for server_setup. Returns 0,
        or -1 for an unknown one. Raises CannotShip."""
        known, args = self._server(location), self._packer.dumps((setup_args, {}))
        return self._apply(known, lambda: self._driver.enable(known.id, args))

    def abandon_zombie(self, node: Any = None, flag: bool = True) -> int:
        """Whether to give up the tasks of a node (None: of all nodes, also those that come) that was out of reach for
        five pulse intervals; otherwise they are waited for until `Settings.give_up_s`. When it is there again it is
        used again, if it still is this client's. Returns 0, or -1 for an unknown one."""
        if node is not None:
            known = self._node(node)
            return self._apply(known, lambda: self._driver.change("abandon", known, flag=flag))
        self._wanted.abandon = flag
        for known in self._nodes():
            self._driver.network.post(functools.partial(self._driver.change, "abandon", known, flag=flag))
        return 0

    def node_allocate(self, rule: Any) -> int:
        """Put an allocation rule before the others, in place of one for the same nodes, and look again at the nodes
        that are not in use. Returns 0, or -1 for what is no rule, or before `schedule`."""
        if not isinstance(rule, DispycosNodeAllocate) or self._driver is None:
            return -1
        rules = self._wanted.rules
        rules[:] = [rule] + [other for other in rules if other.node != rule.node]
        self._driver.network.post(self._turn.scheduler.offer, self._driver)
        return 0


_client_numbers = itertools.count(1)


class Client(_Control):
    """A program's part of the cluster: what its jobs need, and the methods that run them. Also named `Computation`.

        def work(n, task=None):                 # runs at a server
            yield task.sleep(n)
            return n * n

        def main(task=None):
            client = Client([work])
            yield client.schedule()
            print((yield client.run_result(work, 3)))
            yield client.close()

        pycoslite.Task(main)

    `components`: functions, classes, modules, objects (for their class) and paths of files that jobs use, in a list, or
    just one. Code is there before the first job; files are in the parent of the servers' working directory. Functions
    that are not listed travel with the job that needs them. The options, by keyword (by position, as older programs
    have them, too):

    nodes               host names or `DispycosNodeAllocate` rules, tried in order on each node; also node_allocations
    status_task         a task that is sent `DispycosStatus` messages, what nodes have free, and how jobs ended
    node_setup          generator function run once on each node before its servers are made; must end with 0
    server_setup        the same in each server
    disable_nodes       nodes are not set up before `enable_node`; disable_servers likewise, `enable_server`
    pulse_interval      seconds between two reports of what a node has free; 5 * MinPulseInterval
    restart_servers     servers that are closed are replaced
    zombie_period       a server that runs no job for so many seconds is closed (the next job brings it back), the
                        client after twice that; 0 is never; 10 * pulse_interval. A scheduler may have a shorter one
    abandon_zombie_nodes        tasks of a node that was out of reach for five times pulse_interval are given up, see
                        `abandon_zombie`; False: they are waited for. After `Settings.give_up_s` it is lost in any case
    ping_interval       seconds between two searches for nodes, also when there are some; as the scheduler does
    peers_communicate   each server is told of each other one, so that tasks can locate tasks there; False
    timeout             seconds that a node may take to answer, and each part of a file to arrive there; 10

    Raises MisuseError, or TypeError, with a sentence when something does not fit; CannotShip for code that cannot
    travel. Methods are for tasks of this process; those described as "use with yield" work with ``yield``,
    ``yield from`` and ``await``. `counts`, `plain_jobs` and `watch`, which show what happens (see `Watched`), are
    for any thread.
    """

    def __init__(self, components: Any = (), *args: Any, **options: Any) -> None:
        super().__init__(_ClientOptions.of_call(args, options))
        chosen = self._options
        self._wanted = wanted = _Wanted(chosen.rules(), chosen.hosts())
        for component in _as_list(components):
            if isinstance(component, str):
                wanted.files.append(_file_component(component))
            else:
                wanted.components.append(self._packer.component(_code_component(component)))
        for name in ("node_setup", "server_setup"):
            if getattr(chosen, name) is not None:
                setattr(wanted, name, self._packer.function(getattr(chosen, name)))
        for name in ("disable_nodes", "disable_servers", "restart_servers"):
            setattr(wanted, name, getattr(chosen, name))
        wanted.abandon, wanted.introduce = chosen.abandon_zombie_nodes, chosen.peers_communicate
        wanted.ping_s = chosen.ping_interval or 0.0
        wanted.timeout_s = chosen.timeout or wanted.timeout_s
        self._turn: Any = None                      # set from `schedule` to the end of `close`
        self._number = next(_client_numbers)        # tells it from others of this process, in texts
        self._closed = pycoslite.Event()

    @property
    def status_task(self) -> Any:
        """The task that is told of changes, None for no one. May be assigned until `schedule`."""
        return self._options.status_task

    @status_task.setter
    def status_task(self, task: Any) -> None:
        """See above; raises MisuseError for what is no task."""
        if task is not None and not isinstance(task, pycoslite.Task):
            raise pycoslite.MisuseError("status_task=%r is not a task" % (task,))
        self._options.status_task = task

    status_coro = status_task

    def __repr__(self) -> str:
        return "client %d of %s" % (self._number, _client_name())

    @types.coroutine
    def schedule(self, location: Any = None, timeout: Optional[float] = None) -> Any:
        """Wait until the nodes are this client's. Use with yield. Gives 0 (also when they are already), or -1 when
        `timeout` seconds were not enough. Nodes need not be there: they are used as they come. `location` (a Location,
        or host) is that of a scheduler program, where clients of many processes take turns; -1 if it is not there."""
        if self._driver is not None:
            return 0
        scheduler: Any = Scheduler()
        if location is not None:
            try:
                scheduler = yield scheduler.at(location)
            except pycoslite.PycosError as error:
                pycoslite.log.error("%s is not scheduled: %s", self, error)
                return -1
        turn = scheduler.enqueue(repr(self))
        come = False
        try:
            come = yield turn.come.wait(timeout)
        finally:                                    # the task that waits may be terminated
            if not come or turn.refused:
                turn.leave()
        if not come or turn.refused:
            return -1
        self._turn = turn
        self._closed.clear()
        self._why_closed = ""
        self._options.patience(turn.zombie_s, self._wanted)
        driver = _ClientDriver(scheduler.network, self._packer, self._settle, self._tell, self._wanted)
        driver.state.ledger = self._ledger
        self._driver = driver
        self._tell(SchedulerStatus.ClientScheduled, id(self))
        scheduler.network.post(driver.begin)
        scheduler.begin(turn, self._driver, self.close)
        return 0

    @types.coroutine
    def close(self, await_io: bool = False, terminate: bool = False, timeout: Optional[float] = None,
              await_async: bool = False) -> Any:
        """Take no more jobs, wait for the CPU jobs, give the nodes back. Use with yield. Gives 0, or -1 when `timeout`
        seconds were not enough (it goes on closing). I/O jobs are stopped unless `await_io`; `terminate` stops all:
        KeyboardInterrupt is raised in them, and those that do not end are killed. Closing again does no harm."""
        driver = self._driver
        if driver is None:
            return 0
        driver.network.post(driver.wind_up, await_io or await_async, terminate)
        closed = yield self._closed.wait(timeout)
        return 0 if closed else -1

    def _tell(self, code: Optional[int], info: Any, reason: str = "") -> None:
        """Something has changed; without a code it is what a node has free."""
        if code == SchedulerStatus.TaskStarted:
            self._started(*info)
            return
        if reason:
            self._explain(code, info, reason)
        self._inform(_message(code, id(self) if info is None else info, reason))
        if code == SchedulerStatus.ClientClosed:
            self._why_closed = reason
            turn, self._turn, self._driver = self._turn, None, None
            turn.leave()
            self._closed.set()

    @staticmethod
    def _explain(code: Optional[int], info: Any, reason: str) -> None:
        """Say why something changed that nobody wished: the end of all loudly, of what comes back when need be less."""
        name = next(name for name, value in vars(SchedulerStatus).items() if value == code)
        loud = code in (SchedulerStatus.ClientClosed, SchedulerStatus.NodeAbandoned)
        pycoslite.log.log(logging.WARNING if loud else logging.INFO, "%s%s: %s", name,
                          "" if info is None else " (%s)" % (info,), reason)


def _arguments(item: Any) -> tuple:
    """The arguments that an item of `Client.run_results` stands for."""
    if isinstance(item, tuple):
        return item
    return tuple(item) if isinstance(item, collections.abc.Iterable) and not isinstance(item, (str, bytes)) else (item,)


# ======================================================================================================================
# 8. Cluster (Executor)                                                                                       any thread
# ======================================================================================================================

#
# Three objects share the work of a `Cluster`:
#
#   _Nodes            which nodes there are: named ones, those a search finds, else a node program of its own
#   _ClusterDriver    keeps each in use: connect, reserve, serve, and again when it is lost (`keep_node`)
#   ClusterFuture     what the caller of `submit` has; settled by `Cluster._settle`, in the user kernel
#
# When there is nothing left to wait for, jobs end instead of waiting for ever: `kept` counts the nodes that are used,
# waited for or tried again, and the search while it may still find one. At zero all jobs fail with NodeLost, now and
# later (`_hopeless`). While nodes are tried again, jobs wait for `give_up_s` at most.
#
# The end, in this order, whoever begins it (the with block, `shutdown`, the end of the program, Ctrl-C):
#
#   _shut      no more jobs are taken
#   _wait      until `_open` is empty; skipped in a hurry
#   _end       once, however often it is called: has the engine make `_close`, and waits `_END_S` at most for that
#   _close     no more nodes are looked for; the driver releases those it has, and waits for their answer
#   _end       then ends the node program, and gives network and kernel back (`_Sharing`)
#
# A future may be waited for in any thread, even in one that keeps the user kernel busy. So when the user kernel does
# not come to the results for `takeover_s`, a thread of its own settles them (`_ClusterDriver._check`).

_SEARCH_S = 0.03                        # a node on the local networks answers a search sooner; the search goes on after
_LOCAL_START_S = 20.0                   # a node program on this machine, even a busy one, has started by then
_LOCAL_STARTS = 3                       # one that ends by itself is replaced, but not for ever
_AGAIN_S = (0.1, 2.0)                   # a node that is lost or cannot be reached is tried again after; doubles up to
_WAKE_S = 0.1                           # a node that was idle, and took itself back, is asked for so soon after a job
_END_S = 5.0                            # what remains to be done at the end is given up after so long
_AHEAD_BYTES = 64 << 20                 # arguments `map` keeps unfinished ...
_AHEAD_JOBS = 4096                      # ... and jobs
_HEADROOM = 1024                        # of a message's length, for all that is not the payload

_server_name = ""                       # set in a server process


def current_server() -> str:
    """Name of the server process that runs the calling job, as in 'host/1'; '' outside of a server. Any thread."""
    return _server_name


def enter_server(name: str) -> None:
    """This process is a server of that name. For the node program."""
    global _server_name
    _server_name = name


class _Sharing:
    """The network that the clusters of this process share: started for the first one unless it runs, and stopped
    after the last one, with the kernel if that was started for it, too. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()           # guards: the rest
        self._users = 0
        self._started: Any = None               # the network, if it was started here
        self._kernel: Any = None                # its kernel, if that was
        self.alone = False                      # there is no secret to share with other machines

    def join(self, locations: List[Any], secret: Any, secret_file: Optional[str], cluster: str) -> Any:
        """The network for one more cluster; each call needs its `leave`. Raises MisuseError when one runs with another
        secret or cluster name, and what starting it raises."""
        with self._lock:
            network = pycoslite.running_network()
            if network is None:
                kernel = pycoslite.running_kernel()
                network, self.alone = _client_network(locations, secret, secret_file, cluster)
                self._started = network
                self._kernel = network.host if kernel is None else None
                self._users = 0
            elif network.cluster != cluster or (secret is not None or secret_file) and (
                    network.key != pycoslite.secret_key(secret, secret_file)):
                raise pycoslite.MisuseError("the network of this process runs already, with another secret or cluster "
                                            "name: leave these arguments out, or shut down what uses it first")
            self._users += 1
            return network

    def leave(self, network: Any) -> None:
        """One cluster is done."""
        with self._lock:
            self._users -= 1
            if self._users or network is not self._started:
                return
            kernel, self._started, self._kernel = self._kernel, None, None
            if pycoslite.running_network() is network:
                pycoslite.stop_network()
            if kernel is not None and kernel is pycoslite.running_kernel() and not kernel.tasks:
                pycoslite.stop_default()


_sharing = _Sharing()


def _client_network(locations: List[Any], secret: Any, secret_file: Optional[str], cluster: str) -> Tuple[Any, bool]:
    """Start the network; also tells whether there is no secret. Without named nodes that is no hindrance: a key made up
    now does for the cores of this machine."""
    alone = False
    try:
        key = pycoslite.secret_key(secret, secret_file)
    except pycoslite.SecretError as error:
        if locations or secret or secret_file:
            raise
        pycoslite.log.warning("only this machine is used: %s", error)
        key, alone = os.urandom(32), True
    local = alone or locations and all(location.addr in ("localhost", "::1") or location.addr.startswith("127.")
                                       for location in locations)
    return pycoslite.start_network("127.0.0.1" if local else None, 0, key=key, cluster=cluster, role="client",
                                   tls=pycoslite.certificates()), alone


def _note(first: Any, error: Optional[Exception], outcome: str = "") -> bool:
    """Give a future (or None) its outcome unless it has one; whether that was done."""
    if first is None or first.done():
        return False
    if error is not None:
        first.set_exception(error)
    else:
        first.set_result(outcome)
    return True


class _ClusterDriver(SchedulerDriver):
    """The scheduler of one `Cluster`: keeps nodes in use, and gives futures their results even while the user kernel is
    held up by a callback that blocks or a task that computes. Engine."""

    def __init__(self, network: Any, packer: Packer, settle: Callable, status: Callable) -> None:
        super().__init__(network, packer, settle, status, _client_name())
        self.kept = 0                           # nodes that are used, waited for, or tried again
        self._watched = False                   # somebody wants to know what nodes have free
        self._hopeless = ""                     # why there will be no node any more
        self._checking = False                  # whether somebody makes the calls of `_done`

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def keep_node(self, locations: List[Any], peer: Any = None, first: Any = None) -> Iterator:
        """Use a node, and use it again when it was lost. `first` is a future for how the first attempt went: 'granted',
        'waiting' or an exception. A system task.

        It ends when the cluster closes, or the node is lost for good: a wrong secret, no node program, used by another
        cluster of this process, taken back by its owner. The pause between attempts doubles within `_AGAIN_S`, anew
        after each time of use.
        """
        self.kept += 1
        reason, final, pause_s, lost_at = "", False, _AGAIN_S[0], None
        while not self.state.closing:
            reason, final, used = yield self.stay(locations, peer, first, lost_at is not None)
            now = self.network.engine.clock()
            if final or self.state.closing:
                break
            if used and reason and not self.nodes:
                pycoslite.log.warning("no node is left for now; this one is dialled again, and jobs wait for it "
                                      "at most %g seconds", pycoslite.settings.give_up_s)
            if used or lost_at is None:
                pause_s, lost_at = _AGAIN_S[0], now
            if not self.nodes and now - lost_at > pycoslite.settings.give_up_s:
                self._fail_waiting("no node was reached for %g seconds: %s" % (pycoslite.settings.give_up_s, reason))
            if peer is not None:
                locations, peer = peer.locations, None
            yield pycoslite.Suspend(pause_s)
            pause_s = min(2 * pause_s, _AGAIN_S[1])
        self.drop_node(reason)

    def stay(self, locations: List[Any], peer: Any, first: Any, again: bool) -> Iterator:
        """Use a node until it is lost. Gives (why it is lost, whether for good, whether it was used); one that took
        itself back because it was idle is not lost (''), and is not asked for before there are jobs. A system task."""
        try:
            if peer is None:
                peer = yield self.network.connect(locations, timeout=pycoslite.settings.message_timeout_s)
            known = peer.process_id in self.nodes
            outcome = yield self.use_node([], peer)
        except pycoslite.PycosError as error:
            final = isinstance(error, (pycoslite.AuthenticationError, pycoslite.MisuseError))
            if not _note(first, error) and (final or not again):
                pycoslite.log.warning("a node cannot be used%s: %s", "" if final else " for now", error)
            return str(error), final, False
        _note(first, None, outcome)
        link = self.nodes.get(peer.process_id)
        if link is None or known:
            return "it is used already", known, False
        link.told.append(self.network.engine.current.resume)
        while self.nodes.get(peer.process_id) is link:
            yield pycoslite.Suspend(None)
        while self.state.sleeps(peer.process_id) and not self.state.closing:
            yield pycoslite.Suspend(_WAKE_S)
        return link.reason, link.final, True

    def drop_node(self, reason: str) -> None:
        """One node less that may come back. When it was the last, jobs cannot wait any longer."""
        self.kept -= 1
        if not self.kept and not self.state.closing:
            self._hopeless = "no node is left: %s" % reason
            pycoslite.log.error("%s", self._hopeless)
            self._fail_waiting(self._hopeless)

    def prepare_node(self, peer: Any, node: Node) -> Iterator:
        """See `SchedulerDriver`."""
        if self._watched:
            self._look_at(peer, node)
        return
        yield

    def introduce(self, begin: Callable) -> None:
        """See `_JobDriver`; from now on nodes are also asked what they have free."""
        super().introduce(begin)
        self.network.post(self._look_at_nodes)

    def _look_at_nodes(self) -> None:
        for node in () if self._watched else list(self.state.nodes.values()):
            link = self.nodes.get(node.id)
            if link is not None and link.ready:
                self._look_at(link.peer, node)
        self._watched = True

    def _look_at(self, peer: Any, node: Node) -> None:
        self.network.spawn(self.watch_availability, peer, node, 5 * MinPulseInterval)

    def _fail_waiting(self, reason: str) -> None:
        """End all jobs there are; with no node, they all wait."""
        now = self.network.engine.clock()
        for job in list(self.state.jobs.values()):
            self.state.cancel(job.id, now, NodeLost("job %d was given up: %s" % (job.id, reason), job.id, job.attempt))
        self.plan()

    def _take_in(self) -> None:
        """Jobs that come when there will be no node any more end at once."""
        super()._take_in()
        if self._hopeless and self.state.jobs and not self.nodes:
            self._fail_waiting(self._hopeless)

    def cancel_waiting(self) -> None:
        """Cancel the jobs that have not begun."""
        self._take_in()
        now = self.network.engine.clock()
        for job in self.state.waiting():
            self.state.cancel(job.id, now)
        self.plan()

    # -- results -------------------------------------------------------------------------------------------------------

    def _rouse_user(self) -> None:
        """Also see to it that somebody makes the calls if the user kernel does not; one check at a time."""
        super()._rouse_user()
        if not self._checking:
            self._checking = True
            self.network.call_later(pycoslite.settings.takeover_s, self._check, self._next_call())

    def _next_call(self) -> Any:
        """The entry itself is the mark by which `_check` sees whether there was progress; None when all are made."""
        try:
            return self._done[0]
        except IndexError:
            return None

    def _check(self, seen: Any) -> None:
        """If the user kernel has not come to the call that was next a while ago, let a thread make the calls."""
        following = self._next_call()
        if following is not None and following is seen:
            threading.Thread(target=self._hand_over, name="pycoslite results", daemon=True).start()
        self._checking = following is not None
        if self._checking:
            self.network.call_later(pycoslite.settings.takeover_s, self._check, following)


def _result(future: "ClusterFuture", deadline: Optional[float]) -> Any:
    """The result of a future, or concurrent.futures.TimeoutError after the deadline; the job is cancelled then."""
    try:
        return future.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
    except BaseException:
        future.cancel()                         # changes nothing if this is how it has ended
        raise


class ClusterFuture(concurrent.futures.Future):
    """Future of a job. `cancel` stops it wherever it is, running or not; a result that comes too late is dropped.

    Made by `Cluster.submit`. `job_id` is unique in its cluster. Callbacks run in the thread that cancels, else in the
    user kernel, or in a thread of the cluster's own while that is held up; one that blocks delays the other results.
    `running` is never true: that a plain function has begun is not reported.
    """

    def __init__(self, driver: SchedulerDriver, job_id: int, size: int) -> None:
        super().__init__()
        self._driver, self.job_id = driver, job_id
        self.size = size                        # bytes of its pickled arguments
        self.settled = False                    # like `done`, a little later, and for nothing

    def cancel(self) -> bool:
        """Cancel the job; True unless it has ended already. A running one is asked to stop, then killed with its server
        process after `ClusterSettings.grace_s`. Any thread."""
        cancelled = super().cancel()
        if cancelled:
            self._driver.cancel(self.job_id)
        return cancelled

    def withdraw(self) -> None:
        """Mark it as cancelled, where the job has been stopped already. For the cluster."""
        super().cancel()
        self.set_running_or_notify_cancel()

    def why(self) -> str:
        """A sentence that says what the job is doing or waiting for. Any thread but a callback's.

        It waits for the engine to answer, which must still run: not to be called after the cluster's end.
        """
        return self._driver.why(self.job_id)


class _Nodes:
    """Finds the nodes of one cluster: those that were named, else those that answer a search, else one of its own. Any
    thread, unless a method says else."""

    def __init__(self, network: Any, driver: _ClusterDriver, cpus: Optional[int]) -> None:
        self._network, self._driver, self._cpus = network, driver, cpus
        self._usable = threading.Event()            # a node was granted
        self._discovery: Any = None
        self._watchers = _hub_of(network).watchers
        self._lock = threading.Lock()               # guards: _local, _starts, _ended
        self._local: Optional[LocalNode] = None
        self._starts = 0
        self._ended = False
        self._local_used = False
        driver.kept += 1                            # as long as one is looked for; then it stands for the local node

    def find(self, locations: List[Any]) -> None:
        """Return once the first node can be used, or will be when it is free. Raises PycosError when there is none."""
        if locations:
            self._use_named(list(dict.fromkeys(locations)))
        else:
            self._use_any()
        if not self._local_used:
            self._network.post(self._driver.drop_node, "none of those named can be used")

    def _keep(self, locations: List[Any], peer: Any = None) -> concurrent.futures.Future:
        """Begin to use a node; the future has how that went first."""
        first: concurrent.futures.Future = concurrent.futures.Future()
        self._network.spawn(self._driver.keep_node, locations, peer, first)
        return first

    def _use_named(self, locations: List[Any]) -> None:
        """Try all at once and return with the first that is granted, or when all have answered; only if none can be
        used is it an error. Those that cannot are tried again in the background."""
        attempts = [self._keep([location]) for location in locations]
        pending = set(attempts)
        granted = False
        while pending and not granted:
            done, pending = concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED)
            granted = any(not attempt.exception() and attempt.result() == "granted" for attempt in done)
        problems = [attempt.exception() for attempt in attempts if attempt.done() and attempt.exception()]
        if len(problems) == len(attempts):
            kind: Any = type(problems[0])
            raise kind("no node can be used: %s; start dispycosnode_lite.py there, or name none to use the cores of "
                       "this machine" % "; ".join(map(str, problems)))
        for attempt in attempts:
            attempt.add_done_callback(_say_trouble)

    # -- those that are found ------------------------------------------------------------------------------------------

    def _use_any(self) -> None:
        """Search, and when nobody has answered yet go on searching while a node program is started here."""
        if not _sharing.alone:
            self._watchers.append(self._on_peer)
            self._discovery = pycoslite.Discovery(self._network, pycoslite.settings.net_port)
            self._network.post(self._search)
        if self._usable.wait(_SEARCH_S if self._discovery else 0):
            return
        local = self._start_local()
        deadline = time.monotonic() + _LOCAL_START_S
        while not self._usable.wait(0.05):
            if local.failed() is not None or time.monotonic() > deadline:
                raise pycoslite.PycosError(
                    "the node program for this machine did not start (%s); start dispycosnode_lite.py by hand to see "
                    "why" % ("it has printed why" if local.failed() else "it said nothing in %g s" % _LOCAL_START_S))
        if not self._local_used:
            local.give_up()

    def _search(self) -> None:
        """Look for nodes, now and then: some may be started later. Engine."""
        if not self._driver.state.closing:
            _let_nodes_find(self._discovery)
            self._discovery.search(pycoslite.ROLES["node"])
            self._network.call_later(_SEARCH_AGAIN_S, self._search)

    def _on_peer(self, peer: Any, event: str) -> None:
        """A node that was found is connected. Engine."""
        known = peer.process_id in self._driver.nodes or peer.info.get("embedded")
        if event == "online" and peer.info.get("role") == "node" and not known:
            first = self._keep([], peer)
            first.add_done_callback(_say_trouble)
            first.add_done_callback(self._note_first)

    def _note_first(self, first: concurrent.futures.Future) -> None:
        """A node that only waits for its turn does not let `find` return: the cores of this machine may be free."""
        if not first.exception() and first.result() == "granted":
            self._usable.set()

    # -- one of its own ------------------------------------------------------------------------------------------------

    def _start_local(self) -> LocalNode:
        """The first one; `_replace_local` starts the others, `_LOCAL_STARTS` in all."""
        with self._lock:
            self._starts += 1
            self._local = LocalNode(self._network, self._cpus, self._local_found)
            return self._local

    def _local_found(self, peer: Any) -> None:
        """It is connected. Engine."""
        self._local_used = True
        self._network.spawn(self._use_local, peer)

    def _use_local(self, peer: Any) -> Iterator:
        """Use it until it ends; then, unless that is the end of all, start another. A system task."""
        first: concurrent.futures.Future = concurrent.futures.Future()
        first.add_done_callback(_say_trouble)
        first.add_done_callback(self._note_first)
        reason, _, _ = yield self._driver.stay([], peer, first, False)
        if not self._driver.state.closing:
            threading.Thread(target=self._replace_local, args=(reason,), name="pycoslite node", daemon=True).start()

    def _replace_local(self, reason: str) -> None:
        """In a thread of its own, as to end a process may take seconds."""
        with self._lock:
            if self._ended or self._local is None:
                return
            self._local.end()
            if self._starts < _LOCAL_STARTS:
                self._starts += 1
                self._local = LocalNode(self._network, self._cpus, self._local_found)
                return
        self._network.post(self._driver.drop_node, reason)

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Look for no more. Engine."""
        if self._discovery is not None:
            self._discovery.close()
            self._watchers.remove(self._on_peer)

    def end(self) -> None:
        """End the node program that was started here."""
        with self._lock:
            self._ended = True
            if self._local is not None:
                self._local.end()


def _say_trouble(first: concurrent.futures.Future) -> None:
    """Log why a node cannot be used, if so; it is tried again, or there are others."""
    if first.exception():
        pycoslite.log.warning("going on without a node: %s", first.exception())


class Cluster(Watched, concurrent.futures.Executor):
    """The cores of all nodes as a `concurrent.futures.Executor`; the one obvious way in.

        with Cluster() as cluster:
            print(sum(cluster.map(work, range(1000))))

    `nodes` are the nodes to use ('host' or 'host:port'); without any, those found on the local networks are used, and
    if there are none, the cores of this machine (`cpus` of them, None: all) by a node program of its own. A node that
    serves another client is waited for, and joins in when it is free; one that is lost is used again once it is back.
    `secret`, `secret_file` and `cluster` as for `pycoslite.Pycos`; certificates for TLS are those of the environment
    (see `pycoslite.certificates`), or of a `Pycos(certfile=...)` made before. Raises PycosError with a sentence when no
    named node can be used. At the end of the with block all jobs are waited for; when an exception ends it, they are
    cancelled. All methods may be called from any thread, but not in a task.
    """

    def __init__(self, nodes: Iterable[str] = (), cpus: Optional[int] = None, *, secret: Any = None,
                 secret_file: Optional[str] = None, cluster: str = "pycoslite") -> None:
        super().__init__()
        if isinstance(nodes, str):
            nodes = [nodes]
        locations = [pycoslite.Location.parse(node, NODE_PORT) for node in nodes or ()]
        self._lock = threading.RLock()              # guards: _closed, _job_ids, _terms, _kinds, the order of submits
        self._job_ids = itertools.count(1)
        self._terms: Dict[int, Terms] = {}          # by retries: one object serves all jobs
        self._kinds: Dict[bytes, int] = {}          # key of a function -> its `job_kind`
        self._names: Dict[bytes, str] = {}          # ... -> what it is called
        self._closed = False
        self._open: Set[ClusterFuture] = set()      # not settled yet; changed without a lock, one step at a time
        self._settled = threading.Condition()       # told when _open has become empty, once the cluster is closed
        self._ending = threading.RLock()            # guards: _gone, _local
        self._gone = False
        self._network = _sharing.join(locations, secret, secret_file, cluster)
        self._driver = _ClusterDriver(self._network, self._packer, self._settle, self._on_status)
        self._driver.state.ledger = self._ledger
        self._nodes = _Nodes(self._network, self._driver, cpus)
        pycoslite.WAITERS.append(self._wait)
        _clusters.append(self)
        try:
            self._nodes.find(locations)
        except BaseException:
            self._end(True)
            raise

    def __repr__(self) -> str:
        return "cluster of %s" % _client_name()

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def submit(self, fn: Callable, /, *args: Any, retries: int = 0, **kwargs: Any) -> ClusterFuture:    # type: ignore
        """Run `fn(*args, **kwargs)` on some server; `fn` is a function, a generator function or an async function. The
        future gives its result; what it raises comes back as its own type, with the remote traceback as cause.
        `retries`: how often it may be run again when its server dies. Raises CannotShip when the function or an
        argument cannot travel, ClusterClosed after shutdown."""
        packer = self._packer
        key = packer.function(fn)
        data, needs = packer.dumps((args, kwargs))
        if len(data) > pycoslite.settings.frame_bytes - _HEADROOM:
            raise CannotShip("the arguments are %d bytes long when packed, more than the %d that a message may have "
                             "(Settings.frame_bytes): send them in parts" % (len(data), pycoslite.settings.frame_bytes))
        with self._lock:
            if self._closed:
                raise ClusterClosed("the cluster is shut down and takes no more jobs: submit before shutdown()")
            kind = self._kinds.get(key)
            if kind is None:
                kind = self._kinds[key] = job_kind(fn)
                self._names[key] = getattr(fn, "__name__", None) or repr(fn)
            terms = self._terms.get(retries) or self._terms.setdefault(retries, Terms(retries=retries))
            job_id = next(self._job_ids)
            future = ClusterFuture(self._driver, job_id, len(data))
            self._open.add(future)
            self._driver.submit(Job(job_id, key, kind, terms, _Load(future, data, needs)))
        return future

    def map(self, fn: Callable, *iterables: Iterable, timeout: Optional[float] = None, chunksize: int = 1,
            retries: int = 0) -> Iterator:
        """Results of `fn` for the items of `iterables`, in order. The first jobs are submitted at once, later items are
        taken as results are, so the iterables may be endless. `timeout`: seconds from this call until a result must be
        there, else concurrent.futures.TimeoutError. When the iterator ends early (closed, a job failed) the jobs ahead
        are cancelled. `chunksize` has no effect: short jobs are batched on their way anyway."""
        deadline = None if timeout is None else time.monotonic() + timeout
        results = self._results(fn, zip(*iterables), deadline, retries)
        next(results)                           # to its first yield, where the first jobs are on their way
        return results

    def _results(self, fn: Callable, items: Iterator[tuple], deadline: Optional[float], retries: int) -> Iterator:
        """The generator behind `map`; what it yields first is not a result."""
        ahead: Any = collections.deque()
        room, more, future = _AHEAD_BYTES, True, None
        try:
            while more or ahead:
                while more and room > 0 and len(ahead) < _AHEAD_JOBS:
                    args = next(items, None)
                    if args is None:
                        more = False
                        break
                    ahead.append(self.submit(fn, *args, retries=retries))
                    room -= ahead[-1].size
                    if ahead[0].settled:
                        break
                if future is None:
                    yield
                if not ahead:
                    return
                future = ahead.popleft()
                room += future.size
                yield _result(future, deadline)
        finally:
            for future in ahead if future is not None else ():      # nobody has asked for results: just let them run
                future.cancel()

    def _settle(self, job: Job, outcome: int, payload: Any) -> None:
        """A job has ended: give its future the result. User kernel, or another thread while that is held up."""
        future: ClusterFuture = job.load.future
        try:
            value, error = self._outcome_of(job, outcome, payload)
            if error is not None:
                self._inform_of_end(self._plain(job), error, outcome)
            if error is None:
                future.set_result(value)
            elif outcome == ERROR and isinstance(error, Cancelled):
                future.withdraw()
            else:
                future.set_exception(error)
        except concurrent.futures.InvalidStateError:        # cancelled: who waits for it is still to be told
            future.set_running_or_notify_cancel()
        finally:
            future.settled = True
            self._open.discard(future)
            if self._closed and not self._open:
                with self._settled:
                    self._settled.notify_all()

    def _plain(self, job: Job) -> PlainJob:
        return PlainJob(job.id, self._names[job.key], _location_of(job), (), {})

    def _is_plain(self, job: Job) -> bool:
        return True

    def _on_status(self, code: Optional[int], info: Any, reason: str = "") -> None:
        """A change in the cluster; without a code it is what a node has free. User kernel, as `_settle`."""
        pycoslite.log.debug("cluster status %s: %s %s", code, info, reason)
        if code != SchedulerStatus.TaskStarted and self._watchers:      # nobody here has a reference to the task
            self._inform(_message(code, id(self) if info is None else info, reason))

    # -- the end -------------------------------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs, and when those there are have ended give the nodes back. With `cancel_futures` the jobs
        that have not begun are cancelled. Without `wait` this does not wait, but the program does, at its end."""
        self._shut()
        if cancel_futures:
            self._network.post(self._driver.cancel_waiting)
        if wait and threading.get_ident() != self._network.host.owner:
            self._finish()
        else:                                   # a callback of a future must not wait for itself
            threading.Thread(target=self._finish, name="pycoslite cluster's end", daemon=True).start()

    def _shut(self) -> None:
        """Take no more jobs. With the lock: a `submit` under way is in `_open` before anybody waits for that."""
        with self._lock:
            self._closed = True
        with self._settled:                     # whoever waits looks again
            self._settled.notify_all()

    def _wait(self) -> None:
        """Wait until all jobs have ended. When the program's own code has, in the main thread; else any thread."""
        self._shut()
        with self._settled:
            self._settled.wait_for(lambda: not self._open)

    def _finish(self) -> None:
        """Wait for all jobs, then end; Ctrl-C shortens it."""
        ended = False
        try:
            self._wait()
            ended = True
        finally:
            self._end(not ended)

    def _end(self, hurry: bool) -> None:
        """Give everything back; `hurry` cancels what has not ended. Later calls wait for the first."""
        self._shut()
        with self._ending:
            if self._gone:
                return
            self._gone = True
            pycoslite.WAITERS.remove(self._wait)
            _clusters.remove(self)
            try:
                closed = threading.Event()
                self._network.post(self._close, hurry, closed)
                closed.wait(_END_S)
                with self._settled:
                    self._settled.wait_for(lambda: not self._open, _END_S)
            finally:
                self._nodes.end()
                _sharing.leave(self._network)

    def _close(self, hurry: bool, closed: threading.Event) -> None:
        """The engine's part of the end; `closed` is set once the nodes know it, whatever else fails. Engine."""
        try:
            self._nodes.close()
            self._driver.close(hurry)
            self._driver.carry_out()
        finally:
            self._driver.when_given_back(closed.set)

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> bool:
        """Leave the with block: wait for all jobs, or after an exception (Ctrl-C) cancel them."""
        if exc_type is None:
            self.shutdown()
        else:
            self._end(True)
        return False


_clusters: List[Cluster] = []           # those that have not ended


def _stop_clusters() -> None:
    """Runs before the network is stopped."""
    for cluster in list(_clusters):
        cluster._end(True)


pycoslite.STOPPERS.insert(0, _stop_clusters)


# ======================================================================================================================
# 9. Scheduler program
# ======================================================================================================================

#
# ``python3 -m dispycos_lite`` (or ``python3 dispycos_lite.py``): clients of many processes, which name its address in
# `Client.schedule`, take turns. It keeps their queue and knows the nodes; no job, file or result goes through it, so it
# is no bottleneck, and when it ends, the client that has the nodes does not notice.
#
#   client             program                what it means
#   scheduler.enter                           this client (a number of its process's own) wants the nodes
#                      scheduler.turn         it is first now: where the nodes are, and for how long it may be idle, see
#                                             `_Patience`; again for each node that comes
#   scheduler.leave                           it is done, or has given up; the next one is first
#   (its process ends)                        all its entries leave, as if it had said so
#
# The options may also stand in a file (`read_config`, `write_config`: an INI file with one section, [DEFAULT]); what
# the command line says wins. The node program's files are of the same kind, with options of its own.
#
# That only the first client uses the nodes is an agreement, not a lock: a node itself takes one client at a time, so a
# program that does not ask here waits in the nodes' queues like any other.


class _Entry(NamedTuple):
    """A client in the queue."""

    peer: Any
    number: int
    name: str


class SharedScheduler:
    """The queue of a scheduler program. `nodes` are locations of nodes to contact besides those that a search finds
    every `ping_s` seconds (0: as often as makes sense). A client whose turn it is may be idle for twice `zombie_s`
    (0: for ever). With `relay_nodes` each of `nodes` announces this program on its network. Engine, but for
    `status`."""

    def __init__(self, network: Any, discovery: Any, nodes: Iterable[Any] = (), ping_s: float = 0,
                 zombie_s: float = 0, relay_nodes: bool = False) -> None:
        self.network, self._discovery, self._nodes, self._zombie_s = network, discovery, list(nodes), zombie_s
        self._relays = _Relays(network, relay_nodes, ping_s)
        self._ping_s = ping_s or _SEARCH_AGAIN_S
        self._queue: List[_Entry] = []              # the first one has the nodes
        network.on_request("scheduler.enter", self._on_enter)
        network.on_request("scheduler.leave", self._on_leave)
        network.on_peer(self._on_peer)

    def begin(self) -> None:
        """Look for nodes from now on."""
        for location in self._nodes:
            self.network.spawn(self._keep_contact, location)
        self._search()

    def status(self) -> Dict[str, Any]:
        """Client (the name of the one that has the nodes), Pending (names of those that wait), Nodes (locations). Any
        thread."""
        names = [entry.name for entry in list(self._queue)]
        return {"Client": names[0] if names else "", "Pending": names[1:], "Nodes": self._known()}

    def _known(self) -> List[Any]:
        """Where the nodes are that this program is connected to; those that a client embeds are that client's alone."""
        return [peer.location for peer in list(self.network.peers.values())
                if peer.online and peer.info.get("role") == "node" and not peer.info.get("embedded")]

    def _search(self) -> None:
        self._discovery.search(pycoslite.ROLES["node"])
        self.network.call_later(self._ping_s, self._search)

    def _keep_contact(self, location: Any) -> Iterator:
        """Stay connected to a node that was named. A system task."""
        while True:
            try:
                self._relays.ask((yield self.network.connect(
                    [location], timeout=pycoslite.settings.message_timeout_s)))
            except pycoslite.PycosError as error:
                pycoslite.log.info("node %s: %s", location, error)
            yield pycoslite.Suspend(_CONTACT_AGAIN_S)

    def _on_enter(self, peer: Any, args: dict, _payload: bytes) -> None:
        """scheduler.enter: to the end of the queue, which may also be its front."""
        checked("scheduler.enter", args)
        self._queue.append(_Entry(peer, args["client"], args["name"]))
        if len(self._queue) == 1:
            self._tell_first()

    def _on_leave(self, peer: Any, args: dict, _payload: bytes) -> None:
        checked("scheduler.leave", args)
        self._remove([entry for entry in self._queue if entry.peer is peer and entry.number == args["client"]])

    def _on_peer(self, peer: Any, event: str, _detail: str) -> None:
        if event == "online" and peer.info.get("role") == "node":
            self._tell_first()
        elif event == "lost":                       # a client that was killed gives its place up, too
            self._remove([entry for entry in self._queue if entry.peer is peer])

    def _remove(self, entries: List[_Entry]) -> None:
        """Take these out; only when there is another first one now has anybody to be told."""
        first = self._queue[:1]
        self._queue = [entry for entry in self._queue if entry not in entries]
        if self._queue[:1] != first:
            self._tell_first()

    def _tell_first(self) -> None:
        """Tell the client whose turn it is so, and where the nodes are."""
        for peer, number, _ in self._queue[:1]:
            nodes = [[location.addr, location.port] for location in self._known()]
            peer.notify("scheduler.turn", {"client": number, "nodes": nodes, "zombie_s": self._zombie_s})


def read_config(path: str) -> Dict[str, str]:
    """The options in a configuration file: name -> text, those without a text left out. Raises ValueError with a
    sentence. The file is what `write_config` writes, or anything like it; nothing in it is evaluated."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except OSError as error:
        raise ValueError("the file %s cannot be read: %s" % (path, error.strerror)) from None
    except (configparser.Error, UnicodeDecodeError) as error:
        raise ValueError("the file %s is no configuration: %s" % (path, " ".join(str(error).split()))) from None
    if parser.sections():
        raise ValueError("the file %s has a section [%s]: options belong into [%s]" % (
            path, parser.sections()[0], configparser.DEFAULTSECT))
    return {name: text for name, text in parser.defaults().items() if text}


def write_config(path: str, options: Dict[str, str]) -> None:
    """Write options (name -> text, '' for what has no value) to a file that `read_config` reads; raises OSError. Only
    its owner may read it: it tells where things are."""
    parser = configparser.ConfigParser(interpolation=None)
    parser[configparser.DEFAULTSECT] = options          # type: ignore[assignment]
    with open(path, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        parser.write(file)


def parse_size(text: str) -> int:
    """A number of bytes with an optional unit: 500k, 10M, 2G, 1T (times 1024 each). Raises ValueError."""
    digits, unit = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "")
    if not (digits.isascii() and digits.isdigit()) or unit not in ("", "k", "m", "g", "t"):
        raise ValueError("%r is not a size" % text)
    return int(digits) * 1024 ** " kmgt".index(unit or " ")


def _zombie_period(text: str) -> float:
    """Seconds; at least as long as clients may wait between two pulses. Raises ValueError."""
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError("%r is not a number of seconds" % text) from None
    if not (seconds == 0 or seconds >= MaxPulseInterval):
        raise ValueError("%s is neither 0 nor at least %g (MaxPulseInterval)" % (text, MaxPulseInterval))
    return seconds


def _argument(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """For argparse: a parser whose ValueError is the message."""
    def _parse(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return _parse


def _scheduler_options() -> argparse.ArgumentParser:
    """The command line, with the spellings of older scheduler programs beside our own."""
    parser = argparse.ArgumentParser(prog="dispycos_lite", description="Lets the clients of many processes take turns.")
    add = parser.add_argument
    add("-i", "--ip_addr", "--host", action="append", default=[], help="address to listen at; may be repeated")
    add("--ext_ip_addr", "--ext_host", action="append", default=[], help="address that others are told")
    add("-u", "--udp_port", type=int, help="port of discovery (default: %d)" % pycoslite.settings.net_port)
    add("--ipv4_udp_multicast", action="store_true", help="search IPv4 networks by multicast and not by broadcast")
    add("-t", "--tcp_port", "--scheduler_port", type=int, help="port to listen at (default: %d, if it is free)" % (
        pycoslite.settings.net_port))
    add("-n", "--name", help="what this process is called (default: this host's name)")
    add("-s", "--secret", help="the cluster's secret; others can see it in the list of processes: prefer a file")
    add("--secret_file", help="file with the cluster's secret")
    add("--certfile", help="certificate for TLS with all peers (PEM), with its key unless --keyfile is given")
    add("--keyfile", help="key of that certificate")
    add("--cafile", help="CA that has signed the certificates of all peers")
    add("--certname", help="name that the certificates of all peers must have")
    add("--node", action="append", default=[], help="node on another network, HOST or HOST:PORT; may be repeated")
    add("--node_port", type=int, default=NODE_PORT, help="port of nodes named without one (default: %(default)s)")
    add("--ping_interval", type=float, default=0, help="seconds between searches for nodes")
    add("--daemon", action="store_true", help="do not read commands from the standard input")
    add("-d", "--debug", action="store_true", help="log everything")
    add("--dest_path", help="directory for files that others send to this program; those of clients go to the nodes")
    add("--max_file_size", type=_argument(parse_size), metavar="SIZE",
        help="longest of these, in bytes or with a unit k, M, G, T (default: no limit)")
    add("--zombie_period", type=_argument(_zombie_period), default=100 * MaxPulseInterval, metavar="SECONDS",
        help="a client that has the nodes and runs no job gives its servers up after so long, and its turn after "
             "twice that; 0: never (default: %(default)s)")
    add("--config", metavar="FILE", help="read options that are not given here from that file")
    add("--save_config", metavar="FILE",
        help="write the options to that file and end, but for the addresses and name of this machine, and the secret")
    add("--pulse_interval", help=argparse.SUPPRESS)         # as `_TAKEN` says
    add("--relay_nodes", action="store_true", help="each --node announces this program to the nodes of its network")
    add("--clean", action="store_true", help=argparse.SUPPRESS)
    return parser


# Options of one machine, and those that a file is no place for.
_NOT_SAVED = ("ip_addr", "ext_ip_addr", "name", "secret", "config", "save_config")


def _parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The options, with what a configuration file adds to the command line. SystemExit after --save_config (0), and for
    what is wrong (2)."""
    parser = _scheduler_options()
    given = parser.parse_args(argv)
    defaults = {name: value for name, value in vars(parser.parse_args([])).items() if name not in _NOT_SAVED}
    try:
        words = _config_words(given, defaults) if given.config else []
        options = parser.parse_args(words + list(argv))
        if options.save_config:
            write_config(options.save_config, {name: _config_text(getattr(options, name)) for name in defaults})
            raise SystemExit(0)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return options


def _config_words(given: argparse.Namespace, defaults: Dict[str, Any]) -> List[str]:
    """What the configuration file says, as words of a command line, without what was `given` there. Raises
    ValueError."""
    config = read_config(given.config)
    if set(config) - set(defaults):
        raise ValueError("the file %s has options that cannot be had from it: %s" % (
            given.config, ", ".join(sorted(set(config) - set(defaults)))))
    words = []
    for name, text in config.items():
        if getattr(given, name) != defaults[name]:
            continue
        if defaults[name] is False:
            words += ["--" + name] if text == "True" else []
        else:
            words += ["--%s=%s" % (name, each) for each in (
                text.split(", ") if isinstance(defaults[name], list) else [text])]
    return words


def _config_text(value: Any) -> str:
    """An option's value as `_config_words` reads it."""
    if isinstance(value, list):
        return ", ".join(value)
    return "" if value is None or value is False else str(value)


def _read_commands(scheduler: SharedScheduler, ending: pycoslite.Ending) -> None:
    """The console, in a thread; at the end of the input the program just goes on."""
    for line in sys.stdin:
        command = line.strip().lower()
        if command in ("quit", "exit"):
            ending.set()
        elif command in ("status", ""):
            for item in scheduler.status().items():
                print("%s: %s" % item, flush=True)
        else:
            print("commands: status, quit", flush=True)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the scheduler program with these arguments (None: the command line's) until told to end; the exit status.

    0 after an orderly end (a signal, or "quit" at the console), 1 with a line on stderr when it cannot listen or has no
    secret, 2 (SystemExit, by argparse) for a wrong option. In the main thread, for the signals.
    """
    options = _parse_arguments(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.DEBUG if options.debug else logging.WARNING, format="%(message)s")
    for name in _TAKEN:
        if getattr(options, name):
            pycoslite.log.warning("--%s has no effect: %s", name, _TAKEN[name])
    try:
        nodes = [pycoslite.Location.parse(node, options.node_port) for node in options.node]
        pycos = pycoslite.Pycos(host=options.ip_addr, ext_host=options.ext_ip_addr or None, udp_port=options.udp_port,
                                ipv4_udp_multicast=options.ipv4_udp_multicast, tcp_port=options.tcp_port,
                                name=options.name, secret=options.secret, secret_file=options.secret_file,
                                certfile=options.certfile, keyfile=options.keyfile, cafile=options.cafile,
                                certname=options.certname, role="scheduler", dest_path=options.dest_path,
                                max_file_size=options.max_file_size)
    except (OSError, ValueError, pycoslite.PycosError) as error:
        sys.stderr.write("dispycos_lite: %s\n" % error)
        return 1
    scheduler = SharedScheduler(pycos.network, pycos.discovery, nodes, options.ping_interval, options.zombie_period,
                                options.relay_nodes)
    pycos.network.post(scheduler.begin)
    ending = pycoslite.Ending()
    ending.attend()
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGABRT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, frame: ending.set())
    print("scheduler %s listens at %s" % (pycos.name, ", ".join(map(repr, pycos.locations))), flush=True)
    if not options.daemon and sys.stdin is not None:
        threading.Thread(target=_read_commands, args=(scheduler, ending), name="console", daemon=True).start()
    ending.wait()
    pycos.terminate()
    return 0


# ---- older names ----

Computation = Client                    # what it was called in discoro and early dispycos


if __name__ == "__main__":
    sys.exit(main())
