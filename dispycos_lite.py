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
import dataclasses
import dis
import enum
import functools
import hashlib
import importlib.machinery
import importlib.util
import inspect
import io
import json
import linecache
import marshal
import os
import pickle
import re
import struct
import sys
import threading
import traceback
import types
from concurrent.futures import CancelledError
from heapq import heapify, heappop, heappush, heapreplace
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
    max_runs: int = 3                   # a job that may have been begun so often, and took its server along, is given up
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
    """The job ran, and what it returned or raised cannot be sent: the sentence names the object that does not pickle."""


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


def _client_name(filename: str) -> str:
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
    if kind is dict:
        return len(obj) <= _SMALL and _SCALARS.issuperset(map(type, obj)) and (
            _SCALARS.issuperset(map(type, obj.values())) or deep > 0 and _is_plain(list(obj.values()), deep - 1))
    if kind is not tuple and kind is not list or len(obj) > _SMALL:
        return False
    if _SCALARS.issuperset(map(type, obj)):
        return True
    return deep > 0 and all([_is_plain(item, deep - 1) for item in obj])


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

# NEXT PART OF SECTION 3

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
_STARTED = struct.Struct(">QIQ")
_RESULT = struct.Struct(">QIB")
_RUN = struct.Struct(">QI")             # one run of one job: its id and attempt
_COUNT = struct.Struct(">I")

pack_job = _JOB.pack                    # (job id, attempt, kind, function key) -> header; the arguments follow it
pack_started = _STARTED.pack            # (job id, attempt, task id) -> frame
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
    return _unpack(_STARTED, "STARTED", body)


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
    # A server process came ('up') or ended ('down': reason; begun: id of the last job it began, where the node knows).
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

    def __init__(self, where: Any = None, retries: int = 0, timeout: Optional[float] = None, priority: float = 0) -> None:
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
            load, bias, ticket, server = free[0]
            held = len(server.held)
            if ticket != server.ticket or held >= server.limit:
                heappop(free)
            elif load != held:
                heapreplace(free, (held, bias, ticket, server))
            else:
                return server
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
            if place not in lacking or not server.serves():
                self._reserved.pop(server)
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
        """Stop a job; `fate` is what it ends with, Cancelled if None. Returns False if it has ended or is being stopped.

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
        """Take a server out of all places, and tell: that it closed, if that was not said before, and `code`."""
        if server.state in (_UP, _SUSPENDED):
            self._out.append((STATUS, SchedulerStatus.ServerClosed, server.location))
        _move_place(server, "down")
        self._reserved.pop(server, None)
        self._open(server)
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

    def _restart(self, server: Server, reason: str) -> None:
        if self._change(server, "restart", SchedulerStatus.ServerClosed, self.now):
            self._out.append((RESTART_SERVER, server, reason, True))

    def _emptied(self, server: Server) -> None:
        """If a closing server has nothing left, have it ended."""
        if server.state != _CLOSING or server.held or server.io:
            return
        if server.node.state == _CLOSING:
            self._release_if_empty(server.node)
        elif _move_place(server, "restart"):
            self._out.append((RESTART_SERVER, server, "it was closed", server.again))

    def _release_if_empty(self, node: Node) -> None:
        if not any(server.held or server.io for server in node.servers.values()):
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
        if self._change(server, "close", SchedulerStatus.ServerClosed, now):
            if terminate:
                self._stop_all(list(server.held.values()) + list(server.io.values()), "its server is closed")
            self._emptied(server)

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
            servers = self._place(job.terms.where).servers
            assert job.state == _QUEUED and self.jobs[job.id] is job and job.suspect, job.id
            assert not any(server in self.idle for server in servers), "suspect %d could be sent" % job.id
            assert any(server in self._reserved for server in servers) or not any(
                server.serves() for server in servers), "no server will be idle for suspect %d" % job.id
        known = [server for node in self.nodes.values() for server in node.servers.values()]
        assert set(known) == set(self.anywhere.servers) and set(known) >= set(self._reserved)
        for server in known:
            self._validate_server(server)

    def _all_places(self) -> List[Place]:
        return [self.anywhere] + list(self.places.values())

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
        listed = {entry[3] for entry in place.free if entry[2] == entry[3].ticket}
        listed_io = {entry[3] for entry in place.io_free if entry[2] == entry[3].io_ticket}
        for server in place.servers:
            assert place.where is None or place in server.places and place.where in _keys(server), str(server)
            assert server in listed or len(server.held) >= server.limit, "%s is not offered" % server
            assert server in listed_io or not server.limit, "%s is not offered for I/O" % server
        assert place.queue.peek() is None or place.best() is None, "a job could be sent to %r" % (place.where,)
        assert place.io_queue.peek() is None or place.best_io() is None, "an I/O job could be sent to %r" % (place.where,)

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
# 6. Scheduler driver                                                                                     engine context
# ======================================================================================================================

# ======================================================================================================================
# 7. Client (Computation)
# ======================================================================================================================

# ======================================================================================================================
# 8. Cluster (Executor)                                                                                       any thread
# ======================================================================================================================

# ======================================================================================================================
# 9. Scheduler program
# ======================================================================================================================
