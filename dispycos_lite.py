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
"""
from __future__ import annotations

import __future__
import ast
import builtins
import collections
import concurrent.futures
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
import marshal
import os
import pickle
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
import types
from concurrent.futures import CancelledError
from heapq import heapify, heappop, heappush
from itertools import islice
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
    """

    credit_min: int = 2                 # jobs a server may hold: the one that runs and the one that is next ...
    credit_max: int = 512               # ... up to so many when they are short
    credit_target_s: float = 0.02       # work a server should hold in seconds, so that it never waits for the next job
    credit_memory: float = 0.75         # how much of what was measured of a server's pace survives each new measure
    recall_after_s: float = 0.005       # a job that runs for so long gives back what waits behind it, if others idle
    recall_look: int = 64               # servers examined in one search for something to give back
    max_runs: int = 3                   # a job that may have begun so often, and took its server along, is given up
    grace_s: float = 1.0                # after a request to stop, before the server process is replaced

    __post_init__ = pycoslite.Settings.__post_init__


settings = ClusterSettings()

MinPulseInterval = 10                   # seconds; both may be assigned before a scheduler starts
MaxPulseInterval = 100


class JobError(pycoslite.PycosError):
    """A job ended without a result of its own. The text is a sentence; the attributes are for programs.

    `job_id` and `attempt` (1 is the first run) tell which run it was, `where` names the server or node ('' if none).
    """

    def __init__(self, sentence: str, job_id: int = 0, attempt: int = 0, where: str = "") -> None:
        super().__init__(sentence)
        self.job_id, self.attempt, self.where = job_id, attempt, where


class WorkerDied(JobError):
    """The server process that ran the job ended; the sentence names the server, its signal or exit status, the run."""


class NodeLost(JobError):
    """The node that ran the job was lost or given up; the sentence says why."""


class Cancelled(JobError, CancelledError):
    """The job was cancelled, or its computation closed, before it had a result."""


class TimedOut(JobError, pycoslite.OperationTimeout):
    """The job ran for longer than the ``timeout=`` it was submitted with (seconds, counted from its start)."""


class ResultError(JobError):
    """The job ran, and what it returned or raised cannot be sent; the sentence names what does not pickle."""


class JobExit(JobError):
    """The job called ``sys.exit``, or raised something else that is meant to end a program."""


class ClusterClosed(JobError):
    """The cluster or computation is closed, or closing, and takes no more jobs."""


# ======================================================================================================================
# 2. Status records (pure)                                                                    what a status task is sent
# ======================================================================================================================


class SchedulerStatus:
    """Codes of `DispycosStatus`, as attributes; compare by name. `Scheduler` inherits them.

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


class DispycosStatus(NamedTuple):
    """A change in the cluster, as status tasks receive it: `status` is a code of `SchedulerStatus`, `info` its subject.

    Also a plain tuple: ``status, info = message``.
    """

    status: int
    info: Any


@dataclasses.dataclass(eq=False)
class DispycosTaskInfo:
    """A job that started: its task (remote), its arguments, and when it started (seconds since the epoch)."""

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


class DispycosNodeAllocate:
    """Which nodes a computation uses, and how many CPUs of each. Override `allocate` for rules of your own.

    `node` is an IP address, a name, a pattern with ``*``, or a regular expression of addresses. `port` of the node
    program, if not the usual one. `platform` is a regular expression that must occur in the node's platform text, in
    any case of letters. `cpus`: None takes all, 0 rejects the node, a positive number takes exactly that many and
    rejects nodes with fewer, a negative one leaves that many free. `memory` and `disk` are bytes that must be free.

    The older form without a port, ``(node, platform, cpus, memory, disk)``, is told by its second argument.
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

        `memory` and `disk` are the free bytes, None where unknown (which passes).
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

    To restrict a computation to the nodes it names, end its rules with ``DispycosNodeAllocate('*', cpus=0)``.
    """
    for rule in rules:
        cpus = rule.allocate(info.addr, info.name, info.platform, info.cpus, info.memory, info.disk)
        if cpus >= 0:
            return min(cpus, info.cpus)
    return info.cpus


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


class CannotShip(pycoslite.PycosError):
    """Something cannot travel to the servers; the sentence names it, where it stands, why, and what to change."""


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


_MAGIC = importlib.util.MAGIC_NUMBER
_PICKLE_PROTOCOL = 5                    # the highest that Python 3.8, the oldest supported, has
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
    """This process's copy of the module of ours that `word` stands for."""
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
    """The spec of a module of the user's own tree, None for any other module."""
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
    """True for scalars and small containers of them, two levels deep: what pickle handles without our help."""
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
    """What `Packer` and `Namespace` share: payloads, and exceptions on their way back. One thread at a time."""

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
    """The traceback as Python prints it, without our own frames at its start."""
    frames = error.__traceback__
    while frames is not None and frames.tb_next:
        name = os.path.basename(frames.tb_frame.f_code.co_filename)
        if os.path.splitext(name)[0] not in _OWN_MODULES:
            break
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))


# ---- wire form ----

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
    except (struct.error, ValueError) as error:
        raise pycoslite.ProtocolError("a definition or exception cannot be read: %s" % error) from None
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

    The bytecode tells: co_names alone would not do, as a global `lock` is not meant by ``self.lock``.
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
    """Import statements of these names. They do not run: since 3.11 the compiler writes calls of names that the module
    imports in another way, so without them the bytecode would not be the same."""
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
    """Whether two code objects do the same, whatever their lines, file and nesting."""
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
        lines = [code.co_firstlineno for code in own]
        found = [node for node in _top_level(self.tree) if isinstance(node, ast.ClassDef) and node.name == cls.__name__
                 and all(node.lineno <= line <= node.end_lineno for line in lines)]
        if len(found) != 1:
            return None
        tree = ast.Module([found[0], *_import_nodes(sorted(self.imported))], [])
        inside = list(_all_code(_compile(tree, "", self.lazy)))
        return found[0] if all(any(_same_code(code, other) for other in inside) for code in own) else None


def _remember_lines(filename: str, first: int, text: str) -> None:
    """Let tracebacks show these lines: `text` stands from line `first` on in the client's file."""
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
    """One thing that servers have to know: its header, its parts, and the definitions it needs."""

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
    """The call, as a partial, that makes a class again which has no class statement to run."""
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
        for definition in self._graph.finish():
            self._definitions.setdefault(definition.key, definition)

    def closure_of(self, key: bytes) -> List[bytes]:
        """Keys of all definitions that one needs, itself last: to be sent in this order."""
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


class _Received:
    """A definition as it arrived."""

    __slots__ = ("key", "head", "code", "text", "parts", "references")

    def __init__(self, blob: Any) -> None:
        self.head, parts = _decode(blob)
        try:
            self.key = bytes.fromhex(self.head["key"])
            self.references = [bytes.fromhex(key) for key in self.head["references"]]
            self.code, self.text, self.parts = parts[0], parts[1].decode("utf-8", "surrogatepass"), parts[2:]
        except (LookupError, TypeError, ValueError) as error:
            raise pycoslite.ProtocolError("a definition cannot be read: %r" % error) from None


def _run(code: types.CodeType, namespace: Dict[str, Any]) -> None:
    """The only place that runs what a client sent; the client has proved that it knows the secret."""
    exec(code, namespace)


class _Finder:
    """Import hook for the modules a client sent, and their loader: import does packages, circles, relative names."""

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


class Namespace(_Codec):
    """A server's side: one client's __main__, built from the definitions that arrive. One thread at a time.

    `install` makes it ``sys.modules["__main__"]`` and hooks the client's modules into import, for the rest of the
    process; tests that share a process with the client pass False, and import what they have on disk.

    Globals are shared by all jobs of a server, which may change them. So a value that was set once is not set again
    when another function brings the same one, and a name that jobs assign (``global x``) keeps what it has.
    """

    def __init__(self, install: bool = True) -> None:
        self.main = types.ModuleType("__main__")
        vars(self.main)["__builtins__"] = builtins
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
        if self._building or self._built:
            return work(argument)                           # not the outermost call: a job's code unpickles something
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
        setattr(self.main, name, value)
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

DEFINE, JOB, STARTED, RESULT, RECALL, RETURNED, CANCEL = range(64, 71)

FUNCTION, TASK, IO = range(3)           # kinds of job: plain call; generator or async def on a CPU; the same without one

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


class Op(NamedTuple):
    """A control request: who sends it, the type of each argument and of each field of the reply (None: one-way).

    A name that ends in ``?`` may be left out. Arguments are JSON; ``float`` takes whole numbers too.
    """

    sender: str
    args: Dict[str, type]
    reply: Optional[Dict[str, type]]


OPS = {
    # Ask for a node's servers. state: 'granted' (the rest as in node.granted), or 'waiting' (position, holder).
    "node.reserve": Op("client", {"client": str, "python": list, "magic": str, "cpus": int},
                       {"state": str, "directory?": str, "servers?": list, "name?": str, "cpus?": int,
                        "platform?": str, "position?": int, "holder?": str}),
    # The turn of a client that waited. servers: [{n, pid, process, port, name}].
    "node.granted": Op("node", {"servers": list, "directory": str, "name": str, "cpus": int, "platform": str}, None),
    # A server process came ('up') or ended ('down'; begun: id of the last job it began, where the node knows that).
    "node.server": Op("node", {"n": int, "state": str, "pid?": int, "port?": int, "process?": str, "reason?": str,
                               "begun?": int}, None),
    # A file of the client (the payload), stored below its directory. mtime in seconds since the epoch.
    "node.file": Op("client", {"name": str, "mode": int, "mtime": float}, {}),
    # Kill server n and, unless again is false, start a fresh one in its place.
    "node.restart": Op("client", {"n": int, "reason": str, "again?": bool}, {}),
    # The client has done; the node frees itself.
    "node.release": Op("client", {}, {}),
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
#   (STATUS, code, info)                        tell the status task; info is the node's DispycosNodeInfo, the server's
#                                               location, or for TaskStarted (job, task id)
#   (RESTART_SERVER, server, reason, again)     have the node kill the process; again: and start another
#   (RELEASE_NODE, node)                        give the node back
#
# CPU jobs: a server runs those it holds one after the other, in the order in which it got them. It holds the running
# one and some that wait (prefetched), within its window, which follows its pace: about `credit_target_s` of work.
# I/O jobs take no part in that; each goes to the server with the fewest.
# What a server that died has begun of the jobs it held: the first one for sure (as far as the caller may know), those
# behind it not, unless the node knows better (`begun`). A job that has not begun goes back to the head of the queue;
# one that has, runs again only within its `retries`. Because results may die with their server, "not begun" can be
# wrong: a job that went down with `max_runs` - 1 servers is next sent alone to an idle one, so that the third time
# decides, and a job that kills its server cannot go round for ever.

SEND_JOB, RECALL_JOBS, CANCEL_JOB, JOB_DONE, STATUS, RESTART_SERVER, RELEASE_NODE = (
    "send", "recall", "cancel", "done", "status", "restart", "release")

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
    "drop": {_SENT: _GHOST, _STOPPING: _GHOST},
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
_NEVER = float("inf")


class Terms:
    """How a job is to be run; one object may serve any number of jobs.

    `where`: None for anywhere, or a node's id, name or address, or a server's location. `retries`: how often a run that
    was lost with its server may be repeated. `timeout`: seconds a run may take, None for any. `priority`: higher first.
    """

    __slots__ = ("where", "retries", "timeout", "priority", "plain")

    def __init__(self, where: Any = None, retries: int = 0, timeout: Optional[float] = None,
                 priority: float = 0) -> None:
        self.where, self.retries, self.timeout, self.priority = where, retries, timeout, priority
        self.plain = where is None and timeout is None


class Job:
    """One job: `id` (whole, larger than any before it), `key` of its function, `kind`, `terms`; `load` is the driver's.

    `attempt` numbers its runs from 1; `server` is where it is, or was last.
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
    """One node: `id`, `info` (DispycosNodeInfo), `servers` by number, `state`; `silent` while it is out of reach."""

    __slots__ = ("id", "info", "state", "silent", "servers")

    def __init__(self, id: Any, info: DispycosNodeInfo) -> None:
        self.id, self.info = id, info
        self.state = _FOUND
        self.silent = False
        self.servers: Dict[int, Server] = {}


class Server:
    """One server process: where it is, what it holds, how fast it is. `link` is the driver's.

    `held` has its CPU jobs by id in the order sent (the first one runs), `io` the others. `limit` is how many it may
    hold now: its `window`, 1 while it runs a suspect, 0 while it takes no jobs. `rtt_s` may be set to the round-trip
    time to it, which the window then covers too.
    """

    __slots__ = ("node", "n", "id", "location", "link", "state", "held", "io", "limit", "window", "solo",
                 "reserved", "again", "recalling", "timed", "places", "bias", "ticket", "io_ticket",
                 "since", "mark", "ends", "turn", "spent", "count", "rtt_s")

    def __init__(self, node: Node, n: int, id: Any, location: Any) -> None:
        self.node, self.n, self.id, self.location = node, n, id, location
        self.link: Any = None
        self.state = _FOUND
        self.held: Dict[int, Job] = {}
        self.io: Dict[int, Job] = {}
        self.limit = 0
        self.window = settings.credit_min
        self.solo = False                           # runs a suspect, which gets no company
        self.reserved = False                       # gets no more jobs until it is idle and can take a suspect
        self.again = self.recalling = False         # to be replaced when closed; a RECALL is on its way
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
    """Jobs that wait, by priority, then by age. Those cancelled meanwhile stay until they are met, or too many."""

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
    """Which job goes to which server, and when one comes back. The lower half of `ClusterState`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.jobs: Dict[int, Job] = {}              # all that have not ended, ghosts included
        self.ghosts = 0
        self.stale = 0                              # results of older attempts and second results: ignored
        self.anywhere = Place(None)
        self.places: Dict[Any, Place] = {}          # those some job has named
        self.idle: Dict[Server, None] = {}          # servers that take jobs and hold none
        self._by_key: Dict[Any, Dict[Server, None]] = {}        # servers by all that a job may name
        self._suspects: Dict[int, Job] = {}         # jobs that wait for an idle server, to run alone
        self._reserved: Dict[Server, Place] = {}    # servers that get no jobs until they are idle, and for which place
        self._loaded: Dict[Server, None] = {}       # servers that hold two jobs or more, and perhaps some others
        self._look_at = _NEVER                      # when to search those for jobs to recall
        self._tickets = 0
        self._timers = pycoslite.TimerQueue()       # deadlines of jobs that run, and of those asked to stop
        self._out: List[tuple] = []

    def _place(self, where: Any) -> Place:
        if where is None:
            return self.anywhere
        place = self.places.get(where)
        if place is None:
            place = self.places[where] = Place(where)
            for server in self._by_key.get(where, ()):
                self._join(server, place)
        return place

    def _join(self, server: Server, place: Place) -> None:
        place.servers[server] = None
        server.places += (place,)
        if server.limit:
            place.offer((len(server.held), server.bias, server.ticket, server))
            place.offer_io((len(server.io), server.bias, server.io_ticket, server))

    def _offer(self, server: Server) -> None:
        """Enter a server with room in the heaps of its places."""
        self._tickets = server.ticket = ticket = self._tickets + 1
        entry = (len(server.held), server.bias, ticket, server)
        self.anywhere.offer(entry)
        for place in server.places:
            place.offer(entry)
        if not server.held:
            self.idle[server] = None
            self._look_soon()

    def _offer_io(self, server: Server) -> None:
        self._tickets = server.io_ticket = ticket = self._tickets + 1
        entry = (len(server.io), server.bias, ticket, server)
        self.anywhere.offer_io(entry)
        for place in server.places:
            place.offer_io(entry)

    def _send(self, server: Server, job: Job) -> None:
        held = server.held
        if not held:
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
        self._out.append((SEND_JOB, server, job, attempt))
        if not job.plain:
            self._send_special(server, job)

    def _send_special(self, server: Server, job: Job) -> None:
        if job.suspect:
            server.solo = True
            server.reckon()
        if job.terms.timeout is not None:
            server.timed += 1
            self._arm(server)

    def _send_io(self, server: Server, job: Job) -> None:
        job.move("send")
        job.attempt += 1
        job.server = server
        server.io[job.id] = job
        self._out.append((SEND_JOB, server, job, job.attempt))
        if job.terms.timeout is not None:
            self._timers.push(self.now + job.terms.timeout, job)
        self._offer_io(server)

    def _arm(self, server: Server) -> None:
        """Start the clock of the job that runs at `server`, if it has one that does not run yet."""
        for job in server.held.values():
            if job.terms.timeout is not None and not job.timer and job.state in (_SENT, _STARTED):
                self._timers.push(self.now + job.terms.timeout, job)
            break

    def _unload(self, job: Job) -> None:
        """Take a job off its server, whatever becomes of it."""
        server = job.server
        self._timers.cancel(job)
        if job.kind == IO:
            del server.io[job.id]
            if server.limit:
                self._offer_io(server)
            return
        del server.held[job.id]
        if job.terms.timeout is not None:
            server.timed -= 1
        if server.solo:
            server.solo = False
            server.reckon()

    def _refill(self, server: Server) -> None:
        """Give a server that may have room what waits for it, and offer the room that is left."""
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

    def _requeue(self, jobs: Iterable[Job]) -> None:
        """Put jobs that have left their servers back in front, and send them on where there is room."""
        places: Dict[Place, None] = {}
        for job in jobs:
            if job.suspect:
                self._suspects[job.id] = job
            else:
                self._queue(job).push(job)
                places[self._place(job.terms.where)] = None
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
        """Keep one server of each of these places, and no other, from getting jobs, so that it will be idle."""
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
        job.move("end")
        del self.jobs[job.id]
        self._out.append((JOB_DONE, job, outcome, payload))

    def _look_soon(self) -> None:
        if self.idle and self._loaded:
            self._look_at = min(self._look_at, self.now + settings.recall_after_s)

    def _look(self) -> None:
        """If servers are idle, take from those that hold jobs behind a long one; the fullest of some first."""
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
        """Ask a server for half of what waits there, and for all that its window, cut to its pace, does not cover."""
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
        self.closing = False
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
            return place.io_queue.push(job)
        server = place.best() if place.free and not place.queue.live else None
        if server is None:
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
        self.now = now
        server = job.server
        if job.plain and job.state == _SENT:
            job.state = _ON_END[job.state]
            del server.held[job_id], self.jobs[job_id]
            self._out.append((JOB_DONE, job, outcome, payload))
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

    def _stop(self, job: Job, fate: JobError) -> None:
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
            elif self._may_run_again(job, ran, begun is None):
                job.move("requeue")
                again.append(job)
            else:
                self._finish(job, ERROR, self._loss(job, server, reason, error))
        self._requeue(again)

    @staticmethod
    def _may_run_again(job: Job, ran: bool, doubt: bool) -> bool:
        if ran:
            job.runs += 1
        elif doubt:
            job.doubts += 1
        job.plain = job.plain and not job.suspect
        return (not ran or job.runs <= job.terms.retries) and job.runs + job.doubts < settings.max_runs

    @staticmethod
    def _loss(job: Job, server: Server, reason: str, error: type) -> JobError:
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

    def _add(self, server: Server) -> None:
        """Enter a new server in all places that it belongs to, and tell."""
        server.node.servers[server.n] = server
        self.anywhere.servers[server] = None
        for key in _keys(server):
            self._by_key.setdefault(key, {})[server] = None
            if key in self.places:
                self._join(server, self.places[key])
        self._out.append((STATUS, SchedulerStatus.ServerDiscovered, server.location))

    def _remove(self, server: Server, code: Optional[int]) -> None:
        """Take a server out of all places, and tell that it closed, if that was not said before, and `code`."""
        self._reserved.pop(server, None)
        self._shut(server, "down")
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
        for server in list(entity.servers.values()) if isinstance(entity, Node) else [entity]:
            self._open(server)
        if self._suspects:
            self._attend()

    def _shut(self, server: Server, event: str) -> bool:
        """Carry out an event after which a server takes no jobs for good; tell it once if it ever took any."""
        took = server.state in (_UP, _SUSPENDED)
        if not _move_place(server, event):
            return False
        if took:
            self._out.append((STATUS, SchedulerStatus.ServerClosed, server.location))
        self._open(server)
        return True

    def _restart(self, server: Server, reason: str) -> None:
        if self._shut(server, "restart"):
            self._out.append((RESTART_SERVER, server, reason, True))
        if self._suspects:
            self._attend()

    def _emptied(self, server: Server) -> None:
        """If a closing server has nothing left, have it ended."""
        if server.state != _CLOSING or server.held or server.io:
            return
        if server.node.state == _CLOSING:
            self._release_if_empty(server.node)
        elif _move_place(server, "restart"):
            self._out.append((RESTART_SERVER, server, "it was closed", server.again))

    def _release_if_empty(self, node: Node) -> None:
        if node.state == _CLOSING and not any(server.held or server.io for server in node.servers.values()):
            self._release(node)

    def _release(self, node: Node) -> None:
        del self.nodes[node.id]
        _move_place(node, "down")
        for server in list(node.servers.values()):
            self._remove(server, None)
        self._out.append((STATUS, SchedulerStatus.NodeClosed, node.info))
        self._out.append((RELEASE_NODE, node))
        if self._suspects:
            self._attend()

    def _stop_all(self, jobs: List[Job], cause: str) -> None:
        for job in jobs:
            if job.state not in (_STOPPING, _GHOST):
                self._stop(job, Cancelled("job %d was cancelled because %s" % (job.id, cause), job.id, job.attempt))

    def _close_if_done(self) -> None:
        """When closing and all jobs are settled: release the nodes and say good-bye."""
        if not self.closing or self.closed or len(self.jobs) > self.ghosts:
            return
        self.closed = True
        for ghost in list(self.jobs.values()):
            self._unload(ghost)
            self._lay(ghost)
        for node in list(self.nodes.values()):
            self._release(node)
        self._out.append((STATUS, SchedulerStatus.ClientClosed, None))


class ClusterState(_Fleet):
    """The nodes, servers and jobs of one client. Every public method is one event; see the head of this section.

        state.node_up(id, info, now); state.server_up(id, 1, process_id, location, now)
        state.submit(Job(1, key), now)
        for instruction in state.take(): ...

    Events: node_up, node_ready, node_silent, node_heard, node_down; server_up, server_ready, server_down; submit,
    started, ended, returned, cancel; suspend, resume, restart_server, close_server, close_node, close; tick.
    Questions: next_deadline, why, servers_at, validate. One thread at a time.
    """

    def take(self) -> List[tuple]:
        """Return the instructions collected since the last call."""
        out, self._out = self._out, []
        return out

    def servers_at(self, where: Any) -> List[Server]:
        """Return the servers that a job's `where` names."""
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

    def node_silent(self, node_id: Any, now: float) -> None:
        """A node cannot be reached and may come back: it gets no new jobs."""
        self.now = now
        self.nodes[node_id].silent = True
        self._reopen(self.nodes[node_id])

    def node_heard(self, node_id: Any, now: float) -> None:
        """A silent node is there again, with all it had."""
        self.now = now
        self.nodes[node_id].silent = False
        self._reopen(self.nodes[node_id])

    def node_down(self, node_id: Any, reason: str, now: float, abandoned: bool = False) -> None:
        """A node's process is gone or (abandoned) was silent for too long; does nothing for one that is not known."""
        self.now = now
        node = self.nodes.pop(node_id, None)
        if node is None:
            return
        gone = SchedulerStatus.ServerAbandoned if abandoned else SchedulerStatus.ServerDisconnected
        servers = list(node.servers.values())
        _move_place(node, "down")
        for server in servers:
            self._remove(server, gone)
        self._out.append((STATUS, gone - _NODE_CODES, node.info))
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
        self.closing = True
        self._stop_all([job for job in self.jobs.values() if terminate or job.kind == IO and not await_io],
                       "its computation is closed")
        self._close_if_done()

    def validate(self) -> None:
        """Raise AssertionError if anything contradicts anything else. For tests: it looks at everything."""
        waiting = {id(queue): 0 for place in self._all_places() for queue in (place.queue, place.io_queue)}
        for job in self.jobs.values():
            if job.state != _QUEUED:
                self._validate_sent(job)
            elif job.id not in self._suspects:
                waiting[id(self._queue(job))] += 1
        assert self.ghosts == sum(job.state == _GHOST for job in self.jobs.values())
        for place in self._all_places():
            assert waiting[id(place.queue)] == place.queue.live, place.where
            assert waiting[id(place.io_queue)] == place.io_queue.live, place.where
            self._validate_place(place)
        for job in self._suspects.values():
            self._validate_suspect(job)
        known = [server for node in self.nodes.values() for server in node.servers.values()]
        assert set(known) == set(self.anywhere.servers) and set(known) >= set(self._reserved)
        for server in known:
            self._validate_server(server)

    def _all_places(self) -> List[Place]:
        return [self.anywhere] + list(self.places.values())

    def _validate_suspect(self, job: Job) -> None:
        servers = self._place(job.terms.where).servers
        assert job.state == _QUEUED and self.jobs[job.id] is job and job.suspect, job.id
        assert not any(server in self.idle for server in servers), "suspect %d could be sent" % job.id
        kept = any(server in self._reserved and server.serves() for server in servers)
        assert kept or not any(server.serves() and not server.reserved for server in servers), (
            "no server will be idle for suspect %d" % job.id)

    def _validate_sent(self, job: Job) -> None:
        server = job.server
        assert (server.io if job.kind == IO else server.held).get(job.id) is job, (job.id, job.state)
        timed = job.timer or server.state == _RESTARTING or self.closing and job.kind == IO
        assert timed or job.state in (_SENT, _STARTED), "nothing will end job %d, %s" % (job.id, job.state)
        assert not job.suspect or len(server.held) == 1, "suspect %d does not run alone" % job.id
        first = next(iter(server.held), None) == job.id and job.state in (_SENT, _STARTED)
        assert job.timer or not first or job.terms.timeout is None, "job %d has no deadline" % job.id

    @staticmethod
    def _validate_place(place: Place) -> None:
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
        held, limit = server.held, server.limit
        server.reckon()
        assert limit == server.limit and server.reserved == (server in self._reserved), str(server)
        assert len(held) <= settings.credit_max and settings.credit_min <= server.window <= settings.credit_max
        assert (server in self.idle) == bool(limit and not held), "%s: idle or not" % server
        assert len(held) < 2 or not limit or server in self._loaded, "%s: loaded or not" % server
        assert server.timed == sum(job.terms.timeout is not None for job in held.values()), str(server)
        assert all(self.jobs.get(job.id) is job for each in (held, server.io) for job in each.values()), str(server)


# ======================================================================================================================
# 6. Scheduler driver                                                                  engine context, unless it says else
# ======================================================================================================================
#
# Carries out what `ClusterState` decides, and tells it what happens: frames and requests of nodes and servers, peers that
# come and go, jobs handed in. Results are only noted here; they are unpickled, and futures settled, in the user kernel,
# because both run code of the user, which must never run with the engine's lock held.

_RESERVE_TIMEOUT_S = 10.0               # a node answers a reservation at once, with its servers or a place in the queue
_LAST_WORDS_S = 0.5                     # results a dead server had sent may still be on their way for so long

Notice = Callable[[str], None]


class _Load:
    """What the driver keeps with a job: its future, its pickled arguments, and the definitions these need."""

    __slots__ = ("future", "data", "needs")

    def __init__(self, future: Any, data: bytes, needs: Tuple[bytes, ...]) -> None:
        self.future, self.data, self.needs = future, data, needs


class _NodeLink:
    """A node that was reserved, or is waited for."""

    __slots__ = ("peer", "granted", "servers")

    def __init__(self, peer: Any) -> None:
        self.peer = peer
        self.granted = False
        self.servers: Dict[int, Any] = {}           # n -> what the node said of it last


class _ServerLink:
    """The connection to a server: its peer, and the definitions it has been sent."""

    __slots__ = ("peer", "defined", "magic", "node", "n")

    def __init__(self, peer: Any, node: _NodeLink, n: int) -> None:
        self.peer, self.node, self.n = peer, node, n
        self.defined: Set[bytes] = set()
        self.magic = bytes.fromhex(peer.info.get("magic", ""))


class SchedulerDriver:
    """One client's scheduler. `status(code, info)` is called for each change in the cluster, in the engine; `settle(job,
    outcome, payload)` for each job that has ended, in the user kernel. Methods are for the engine, except `submit`,
    `use_node` and `close`."""

    def __init__(self, network: Any, packer: "Packer", settle: Callable, status: Callable, client: str) -> None:
        self.network, self.packer, self.settle, self.status, self.client = network, packer, settle, status, client
        self.state = ClusterState()
        self.nodes: Dict[bytes, _NodeLink] = {}     # by process id
        self.servers: Dict[bytes, _ServerLink] = {}
        self._done: List[tuple] = []                # settled and not handed over yet
        self._planned = False                       # `carry_out` is on its way
        self._timer: Any = None
        self._carry = {SEND_JOB: self._send_job, RECALL_JOBS: self._recall, CANCEL_JOB: self._cancel_job,
                       JOB_DONE: self._job_done, STATUS: status, RESTART_SERVER: self._restart,
                       RELEASE_NODE: self._release}
        network.on_frame(RESULT, self._on_result)
        network.on_frame(STARTED, self._on_started)
        network.on_frame(RETURNED, self._on_returned)
        network.on_request("node.granted", self._on_granted)
        network.on_request("node.server", self._on_server)
        network.on_peer(self._on_peer)

    def now(self) -> float:
        """The time of what is being handled: that of the last look at the network, so that what came together counts as
        one batch."""
        return self.network.engine.polled

    # -- from any thread -----------------------------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Take a job. Any thread."""
        self.network.post(self._submit, job)

    def cancel(self, job_id: int) -> None:
        """Stop a job, wherever it is. Any thread."""
        self.network.post(self._event, self.state.cancel, job_id)

    def _submit(self, job: Job) -> None:
        try:
            self.state.submit(job, self.network.engine.clock())
        except ClusterClosed as error:
            self._job_done(job, ERROR, error)
        self._plan()

    def _event(self, event: Callable, *args: Any) -> None:
        event(*args, self.network.engine.clock())
        self._plan()

    # -- carrying out --------------------------------------------------------------------------------------------------

    def _plan(self) -> None:
        """Have `carry_out` run once what is being handled has been handled."""
        if not self._planned:
            self._planned = True
            self.network.engine.inbox.append((self.carry_out, ()))

    def carry_out(self) -> None:
        """Do what the state machine wants done."""
        self._planned = False
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
        self._timer = None
        self._event(self.state.tick)

    def _send_job(self, server: Server, job: Job, attempt: int) -> None:
        link: _ServerLink = server.link
        load: _Load = job.load
        if job.key not in link.defined:
            self._define(link, self.packer.closure_of(job.key))
        for digest in load.needs:
            if digest not in link.defined:
                self._define(link, self.packer.closure_of(digest))
        link.peer.send_frame(JOB, pack_job(job.id, attempt, job.kind, job.key), load.data)

    def _define(self, link: _ServerLink, digests: Iterable[bytes]) -> None:
        for digest in digests:
            if digest not in link.defined:
                link.defined.add(digest)
                link.peer.send_frame(DEFINE, self.packer.blob(digest, link.magic))

    @staticmethod
    def _recall(server: Server, count: int) -> None:
        server.link.peer.send_frame(RECALL, pack_recall(count))

    @staticmethod
    def _cancel_job(server: Server, job: Job, attempt: int) -> None:
        server.link.peer.send_frame(CANCEL, pack_run(job.id, attempt))

    def _job_done(self, job: Job, outcome: int, payload: Any) -> None:
        if not self._done:
            self.network.host.post(self._hand_over)
        self._done.append((job, outcome, payload))

    def _hand_over(self) -> None:
        """Settle what has ended. User kernel."""
        done, self._done = self._done, []
        for job, outcome, payload in done:
            self.settle(job, outcome, payload)

    def _restart(self, server: Server, reason: str, again: bool) -> None:
        link: _ServerLink = server.link
        link.node.peer.notify("node.restart", {"n": server.n, "reason": reason, "again": again})

    def _release(self, node: Node) -> None:
        link = self.nodes.pop(node.id, None)
        if link is not None:
            link.peer.notify("node.release", {})
            for server in node.servers.values():
                self._drop_server(server.link)

    # -- frames of servers ---------------------------------------------------------------------------------------------

    def _on_result(self, peer: Any, body: Bytes) -> None:
        job_id, attempt, outcome, payload = unpack_result(body)
        if peer.process_id in self.servers:
            self.state.ended(job_id, attempt, outcome, payload, self.now())
            self._plan()

    def _on_started(self, peer: Any, body: Bytes) -> None:
        self.state.started(*unpack_started(body), self.now())
        self._plan()

    def _on_returned(self, peer: Any, body: Bytes) -> None:
        link = self.servers.get(peer.process_id)
        server = self._record(link) if link is not None else None
        if server is not None:
            self.state.returned(server, unpack_returned(body), self.now())
            self._plan()

    def _record(self, link: _ServerLink) -> Optional[Server]:
        """The state's record of a server; None when it is not there (any more)."""
        node = self.state.nodes.get(link.node.peer.process_id)
        server = node.servers.get(link.n) if node is not None else None
        return server if server is not None and server.link is link else None

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def use_node(self, locations: List[Any], peer: Any = None) -> Iterator:
        """Connect to a node, reserve it, and use its servers when its turn comes. A system task; returns 'granted' or
        'waiting', or raises PycosError with a sentence."""
        if peer is None:
            peer = yield self.network.connect(locations, timeout=pycoslite.settings.message_timeout_s)
        if peer.process_id in self.nodes:
            return "granted" if self.nodes[peer.process_id].granted else "waiting"
        if peer.info.get("role") != "node":
            raise pycoslite.PycosError("%s is no node program but a %s: name the port that dispycosnode_lite.py prints" % (
                peer, peer.info.get("role")))
        link = self.nodes[peer.process_id] = _NodeLink(peer)
        try:
            reply, _ = yield peer.request("node.reserve", {
                "client": self.client, "python": list(sys.version_info[:3]),
                "magic": importlib.util.MAGIC_NUMBER.hex(), "cpus": 0}, timeout=_RESERVE_TIMEOUT_S)
        except pycoslite.PycosError:
            self.nodes.pop(peer.process_id, None)
            raise
        if reply["state"] == "granted":
            self._grant(link, reply)
        else:
            pycoslite.log.warning("node %s serves another client (%s): waiting for its turn, number %d in its queue",
                                  peer, reply["holder"], reply["position"])
        return reply["state"]

    def _on_granted(self, peer: Any, args: dict, _payload: bytes) -> None:
        link = self.nodes.get(peer.process_id)
        if link is None:
            peer.notify("node.release", {})         # the turn came after the client lost interest
        elif not link.granted:
            self._grant(link, checked("node.granted", args))

    def _grant(self, link: _NodeLink, facts: dict) -> None:
        """The node is ours: connect to its servers."""
        link.granted = True
        peer = link.peer
        avail = DispycosNodeAvailInfo(location=peer.location)
        info = DispycosNodeInfo(facts["name"], peer.location.addr, facts["cpus"], facts["platform"], avail)
        self._event(self.state.node_up, peer.process_id, info)
        for server in facts["servers"]:
            self._server_came(link, server)

    def _on_server(self, peer: Any, args: dict, _payload: bytes) -> None:
        link = self.nodes.get(peer.process_id)
        if link is None:
            return
        args = checked("node.server", args)
        if args["state"] == "up":
            self._server_came(link, args)
        else:
            self._server_died(link, args["n"], args.get("reason", "it ended"), args.get("begun"))

    def _server_came(self, link: _NodeLink, facts: dict) -> None:
        link.servers[facts["n"]] = facts
        self.network.spawn(self._use_server, link, facts)

    def _use_server(self, link: _NodeLink, facts: dict) -> Iterator:
        """Connect to a server process and put it to work. A system task."""
        locations = [pycoslite.Location(location.addr, facts["port"]) for location in link.peer.locations]
        try:
            peer = yield self.network.connect(locations, timeout=pycoslite.settings.message_timeout_s)
            if peer.process_id.hex() != facts["process"]:
                raise pycoslite.PeerLost("another process answers there")
            yield peer.request("server.attach", {}, timeout=_RESERVE_TIMEOUT_S)
        except pycoslite.PycosError as error:
            if link.servers.get(facts["n"]) is facts:
                pycoslite.log.warning("server %s of node %s cannot be used: %s", facts["n"], link.peer, error)
            return
        if link.servers.get(facts["n"]) is facts and link.peer.process_id in self.state.nodes:
            server_link = self.servers[peer.process_id] = _ServerLink(peer, link, facts["n"])
            server = self.state.server_up(link.peer.process_id, facts["n"], peer.process_id, locations[0],
                                          self.network.engine.clock())
            server.link = server_link
            self._plan()

    def _server_died(self, link: _NodeLink, n: int, reason: str, begun: Optional[int]) -> None:
        """The node reports the end of a server; what that had sent before is taken first."""
        link.servers.pop(n, None)
        node = self.state.nodes.get(link.peer.process_id)
        server = node.servers.get(n) if node is not None else None
        if server is None:
            return
        pycoslite.log.warning("server %s of node %s %s", n, link.peer.name, reason)
        self.network.spawn(self._bury, link, server, reason, begun)

    def _bury(self, link: _NodeLink, server: Server, reason: str, begun: Optional[int]) -> Iterator:
        peer, clock = server.link.peer, self.network.engine.clock
        deadline = clock() + _LAST_WORDS_S
        while peer.link is not None and clock() < deadline:
            yield pycoslite.Suspend(0.005)
        self._drop_server(server.link)
        if link.peer.process_id in self.state.nodes and self._is_current(server):
            self._event(functools.partial(self._server_down, link, server, reason, begun))

    def _is_current(self, server: Server) -> bool:
        return self._record(server.link) is server

    def _server_down(self, link: _NodeLink, server: Server, reason: str, begun: Optional[int], now: float) -> None:
        self.state.server_down(link.peer.process_id, server.n, reason, now, begun)

    def _drop_server(self, link: _ServerLink) -> None:
        """Its process has ended: do not look for it any more."""
        if self.servers.pop(link.peer.process_id, None) is not None:
            link.peer.lost("its process has ended", expected=True)

    # -- peers ---------------------------------------------------------------------------------------------------------

    def _on_peer(self, peer: Any, event: str, detail: str) -> None:
        node = self.nodes.get(peer.process_id)
        if node is not None:
            self._on_node_peer(node, event, detail)
        link = self.servers.get(peer.process_id)
        if link is not None and event != "online":
            self._on_server_silent(link, event, detail)

    def _on_node_peer(self, link: _NodeLink, event: str, detail: str) -> None:
        process_id = link.peer.process_id
        if event == "lost":
            del self.nodes[process_id]
            pycoslite.log.warning("node %s is lost: %s", link.peer, detail)
            known = self.state.nodes.get(process_id)
            for server in list(known.servers.values()) if known is not None else ():
                self._drop_server(server.link)
            self._event(self.state.node_down, process_id, detail)
        elif process_id in self.state.nodes:
            self._event(self.state.node_silent if event == "offline" else self.state.node_heard, process_id)

    def _on_server_silent(self, link: _ServerLink, event: str, detail: str) -> None:
        """A server cannot be reached though its node can, and the node does not say that it died: it hangs."""
        server = self._record(link)
        if event == "lost":
            self.servers.pop(link.peer.process_id, None)
        if server is not None and link.node.peer.online:
            pycoslite.log.warning("%s cannot be reached (%s): it is started anew", server, detail)
            self._event(self.state.restart_server, server, "it could not be reached: %s" % detail)

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self, terminate: bool = False) -> None:
        """Take no more jobs; release the nodes when those that run have ended (`terminate`: now)."""
        self._event(functools.partial(self._close_state, terminate))
        if terminate:
            self.carry_out()
            for node_id in list(self.state.nodes):
                self._release(self.state.nodes[node_id])
        for process_id in [key for key, link in self.nodes.items() if not link.granted]:
            self.nodes.pop(process_id).peer.notify("node.release", {})

    def _close_state(self, terminate: bool, now: float) -> None:
        self.state.close(now, terminate=terminate)

# ======================================================================================================================
# 7. Client (Computation)
# ======================================================================================================================

# ======================================================================================================================
# 8. Cluster (Executor)                                                                                       any thread
# ======================================================================================================================

NODE_PORT = pycoslite.settings.net_port + 1     # where a node program listens unless it is told otherwise
_SEARCH_S = 0.3                         # a node on the local networks answers a search within milliseconds
_EMBEDDED_START_S = 20.0                # a node program on this machine, even a busy one, has started by then
_AHEAD_BYTES = 64 << 20                 # arguments `map` keeps unfinished ...
_AHEAD_JOBS = 4096                      # ... and jobs


_EMBEDDED_START = ("import importlib, sys; sys.path.insert(0, sys.argv.pop(1)); "
                   "sys.exit(importlib.import_module(sys.argv.pop(1)).main())")

_server_name = ""                       # set in a server process


def current_server() -> str:
    """Name of the server process that runs the calling job, as in 'host/1'; '' outside of a server. Any thread."""
    return _server_name


def enter_server(name: str) -> None:
    """This process is a server of that name. For the node program."""
    global _server_name
    _server_name = name


def job_kind(fn: Any) -> int:
    """FUNCTION, or TASK for a generator function or async function."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return TASK if inspect.isgeneratorfunction(fn) or inspect.iscoroutinefunction(fn) else FUNCTION


def _client_name() -> str:
    """What nodes tell others that wait: program and process."""
    return "%s, process %d of %s" % (os.path.basename(sys.argv[0]) or "python", os.getpid(), socket.gethostname())


def _module_root() -> str:
    """The sys.path entry from which this module and its siblings are imported, be they vendored or in a zip."""
    root = os.path.dirname(os.path.abspath(__file__))
    for _ in filter(None, (__package__ or "").split(".")):
        root = os.path.dirname(root)
    return root


def _module_name(sibling: str) -> str:
    """Full name of a module beside this one."""
    return "%s.%s" % (__package__, sibling) if __package__ else sibling


def _client_network(locations: List[Any], secret: Any, secret_file: Optional[str], cluster: str) -> Tuple[Any, bool]:
    """The network to use, and whether it was started here. Without named nodes a missing secret is no hindrance: a key
    made up now does for the cores of this machine."""
    running = pycoslite.running_network()
    if running is not None:
        return running, False
    try:
        key = pycoslite.secret_key(secret, secret_file)
    except pycoslite.SecretError as error:
        if locations:
            raise
        pycoslite.log.warning("no nodes can be looked for: %s", error)
        return pycoslite.start_network("127.0.0.1", 0, key=os.urandom(32), cluster=cluster, role="client"), True
    local = locations and all(location.addr in ("localhost", "::1") or location.addr.startswith("127.")
                              for location in locations)
    return pycoslite.start_network("127.0.0.1" if local else None, 0, key=key, cluster=cluster, role="client"), True


def _outcome(packer: Packer, outcome: int, payload: Any) -> Tuple[Any, Optional[BaseException]]:
    """Value and exception of a job that has ended. Unpickles, so not in the engine."""
    try:
        if outcome == VALUE:
            return packer.loads(payload), None
        if outcome == EXCEPTION:
            return None, packer.unpack_exception(payload)
    except Exception as error:              # user code runs when its classes are unpickled
        return None, ResultError("the job has a result that cannot be unpickled here: %s: %s" % (
            type(error).__name__, error))
    if outcome == UNPICKLABLE:
        return None, ResultError(bytes(payload).decode("utf8", "replace"))
    return None, payload if outcome == ERROR else Cancelled("the job was stopped at its server")


def _result(future: "ClusterFuture", deadline: Optional[float]) -> Any:
    """The result of a future, or concurrent.futures.TimeoutError after the deadline."""
    return future.result(None if deadline is None else max(0.0, deadline - time.monotonic()))


class ClusterFuture(concurrent.futures.Future):
    """Future of a job. `cancel` stops it wherever it is, running or not; a result that comes too late is dropped."""

    def __init__(self, driver: SchedulerDriver, job_id: int, size: int) -> None:
        super().__init__()
        self._driver, self.job_id = driver, job_id
        self.size = size                        # bytes of its pickled arguments

    def cancel(self) -> bool:
        """Cancel the job; True unless it has ended already. A running one is asked to stop, then killed with its server
        process after `ClusterSettings.grace_s`. Any thread."""
        cancelled = super().cancel()
        if cancelled:
            self._driver.cancel(self.job_id)
        return cancelled

    def why(self) -> str:
        """A sentence that says what the job is doing or waiting for. Any thread."""
        return self._driver.state.why(self.job_id)


class Cluster(concurrent.futures.Executor):
    """The cores of all nodes as a `concurrent.futures.Executor`; the one obvious way in.

        with Cluster() as cluster:
            print(sum(cluster.map(work, range(1000))))

    `nodes` are the nodes to use ('host' or 'host:port'); without any, those found on the local networks are used, and if
    there are none, the cores of this machine (`cpus` of them, None: all) by a node program of its own. `secret`,
    `secret_file` and `cluster` as for `pycoslite.Pycos`. Raises PycosError with a sentence when no named node can be used.
    All methods may be called from any thread, but not in a task.
    """

    def __init__(self, nodes: Iterable[str] = (), cpus: Optional[int] = None, *, secret: Any = None,
                 secret_file: Optional[str] = None, cluster: str = "pycoslite") -> None:
        locations = [pycoslite.Location.parse(node, NODE_PORT) for node in nodes or ()]
        self._cluster, self._cpus = cluster, cpus
        self._lock = threading.Lock()               # guards: _packer, _job_ids, and the order of submits
        self._ended = threading.Condition()         # guards: _open
        self._open: Set[ClusterFuture] = set()      # not done yet
        self._packer = Packer()
        self._job_ids = itertools.count(1)
        self._terms: Dict[int, Terms] = {}          # by retries: one object serves all jobs
        self._closed = False
        self._embedded: Any = None                  # Popen of a node program of our own
        self._discovery: Any = None
        self._network, self._started_network = _client_network(locations, secret, secret_file, cluster)
        self._driver = SchedulerDriver(self._network, self._packer, self._settle, self._on_status, _client_name())
        try:
            self._find_nodes(locations)
        except BaseException:
            self.shutdown(wait=False, cancel_futures=True)
            raise

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def _find_nodes(self, locations: List[Any]) -> None:
        if locations:
            self._use_named(locations)
        elif self._network.locations[0].addr == "127.0.0.1" or not self._use_found():
            self._use_embedded()

    def _use_named(self, locations: List[Any]) -> None:
        """Use the nodes that were named; those that cannot be used make a warning, or the error if there is no other."""
        problems = []
        attempts = [self._attempt([location]) for location in locations]
        for attempt in attempts:
            try:
                attempt.result()
            except pycoslite.PycosError as error:
                problems.append(error)
        if len(problems) == len(attempts):
            raise type(problems[0])("; ".join(map(str, problems)))
        for error in problems:
            pycoslite.log.warning("going on without a node: %s", error)

    def _attempt(self, locations: List[Any], peer: Any = None) -> concurrent.futures.Future:
        """Begin to use a node; the future has the outcome."""
        done: concurrent.futures.Future = concurrent.futures.Future()

        def attempt() -> Iterator:
            try:
                done.set_result((yield self._driver.use_node(locations, peer)))
            except Exception as error:
                done.set_exception(error)
        self._network.spawn(attempt)
        return done

    def _use_found(self) -> bool:
        """Search the local networks; True when at least one node was found. Later ones are used as they come."""
        found = threading.Event()

        def watch(peer: Any, event: str, _detail: str) -> None:
            if event == "online" and peer.info.get("role") == "node":
                self._attempt([], peer).add_done_callback(lambda done: done.exception() is None and found.set())
        self._network.on_peer(watch)
        self._discovery = pycoslite.Discovery(self._network, pycoslite.settings.net_port, [])
        self._network.post(self._discovery.search, pycoslite.ROLES["node"])
        return found.wait(_SEARCH_S)

    def _use_embedded(self) -> None:
        """Start a node program for this machine's cores that lives as long as this cluster."""
        command = [sys.executable, "-c", _EMBEDDED_START, _module_root(), _module_name("dispycosnode_lite"), "--embedded"]
        if self._cpus is not None:
            command += ["--cpus", str(self._cpus)]
        network = self._network
        self._embedded = process = subprocess.Popen(command, stdin=subprocess.PIPE)
        arrived = threading.Event()

        def watch(peer: Any, event: str, _detail: str) -> None:
            if event == "online" and peer.info.get("pid") == process.pid and not arrived.is_set():
                self._attempt([], peer).add_done_callback(lambda done: arrived.set())
                pycoslite.log.warning("no node was named or found: using %s cores of this machine",
                                      peer.info.get("cpus"))
        network.on_peer(watch)
        spec = {"key": network.key and network.key.hex(), "cluster": network.cluster, "dial": network.port}
        process.stdin.write(json.dumps(spec).encode() + b"\n")
        process.stdin.flush()
        deadline = time.monotonic() + _EMBEDDED_START_S
        while not arrived.wait(0.05):
            if process.poll() is not None or time.monotonic() > deadline:
                raise pycoslite.PycosError("the node program for this machine did not start (exit status %s): run "
                                           "dispycosnode_lite.py by hand to see why" % process.poll())

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def submit(self, fn: Callable, *args: Any, retries: int = 0, **kwargs: Any) -> ClusterFuture:       # type: ignore
        """Run `fn(*args, **kwargs)` on some server; `fn` is a function, a generator function or an async function. The
        future gives its result; what it raises comes back as its own type, with the remote traceback as cause.
        `retries`: how often it may be run again when its server dies. Raises CannotShip when the function or an argument
        cannot travel, ClusterClosed after shutdown."""
        with self._lock:
            if self._closed:
                raise ClusterClosed("the cluster is shut down and takes no more jobs: submit before shutdown()")
            key = self._packer.function(fn)
            data, needs = self._packer.dumps((args, kwargs))
            job_id = next(self._job_ids)
            future = ClusterFuture(self._driver, job_id, len(data))
            self._open.add(future)
            terms = self._terms.get(retries) or self._terms.setdefault(retries, Terms(retries=retries))
            self._driver.submit(Job(job_id, key, job_kind(fn), terms, _Load(future, data, needs)))
        return future

    def map(self, fn: Callable, *iterables: Iterable, timeout: Optional[float] = None, chunksize: int = 1,
            retries: int = 0) -> Iterator:
        """Results of `fn` for the items of `iterables`, in order. Lazy: items are taken as servers get through them, so
        the iterables may be endless. `timeout`: seconds from this call until a result must be there, else
        concurrent.futures.TimeoutError. `chunksize` has no effect: short jobs are batched on their way anyway."""
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._results(fn, zip(*iterables), deadline, retries)

    def _results(self, fn: Callable, items: Iterable[tuple], deadline: Optional[float], retries: int) -> Iterator:
        ahead: collections.deque = collections.deque()
        try:
            room = _AHEAD_BYTES
            for args in items:
                future = self.submit(fn, *args, retries=retries)
                size = future.size
                ahead.append(future)
                room -= size
                while ahead and (room < 0 or len(ahead) >= _AHEAD_JOBS or ahead[0].done()):
                    room += ahead[0].size
                    yield _result(ahead.popleft(), deadline)
            while ahead:
                yield _result(ahead.popleft(), deadline)
        finally:
            for future in ahead:
                future.cancel()

    def _settle(self, job: Job, outcome: int, payload: Any) -> None:
        """A job has ended: give its future the result. User kernel."""
        future: ClusterFuture = job.load.future
        try:
            if future.set_running_or_notify_cancel():
                value, error = _outcome(self._packer, outcome, payload)
                if error is None:
                    future.set_result(value)
                else:
                    future.set_exception(error)
        finally:
            with self._ended:
                self._open.discard(future)
                if not self._open:
                    self._ended.notify_all()

    def _on_status(self, code: int, info: Any) -> None:
        """A change in the cluster. Engine."""
        pycoslite.log.debug("cluster status %d: %s", code, info)

    # -- the end -------------------------------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs and give the nodes back. `wait`: first let all jobs end; else those that have not ended are
        lost. `cancel_futures`: cancel them."""
        with self._lock:
            self._closed = True
        if cancel_futures:
            for future in list(self._open):
                future.cancel()
        if wait:
            with self._ended:
                self._ended.wait_for(lambda: not self._open)
        closed = threading.Event()
        self._network.post(self._close, not wait, closed)
        closed.wait(_EMBEDDED_START_S)
        if self._embedded is not None:
            self._end_embedded(self._embedded)
        if self._started_network:
            pycoslite.stop_network()

    def _close(self, terminate: bool, closed: threading.Event) -> None:
        if self._discovery is not None:
            self._discovery.close()
        self._driver.close(terminate)
        self._network.engine.inbox.append((closed.set, ()))

    @staticmethod
    def _end_embedded(process: subprocess.Popen) -> None:
        """Its standard input ends, and so does it."""
        process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> bool:
        """Leave the with block: wait for all jobs, or after an exception (Ctrl-C) drop them."""
        self.shutdown(wait=exc_type is None, cancel_futures=exc_type is not None)
        return False

# ======================================================================================================================
# 9. Scheduler program
# ======================================================================================================================
