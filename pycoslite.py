"""Lightweight tasks, messages and peers from one file of standard-library Python.

A task is a generator function (or an ``async def``) that the kernel of this module runs; tasks send each
other messages, whether they live in the same process or on another machine.

    import pycoslite

    def server(task=None):
        task.set_daemon()                      # the program may end without it
        while True:
            client, number = yield task.receive()
            client.send(number * 2)

    def client(server, task=None):
        server.send((task, 21))
        print((yield task.receive()))          # 42

    pycoslite.Task(client, pycoslite.Task(server))

Sections (the banners below carry the same numbers and titles):

     1. Settings
     2. Errors
     3. Logging and platform
     4. Timer queue (pure)
     5. Addresses (pure)
     6. Wire format (pure)
     7. Handshake (pure)
     8. Session (pure)
     9. Poller and wake-up
    10. Requests and tasks
    11. Kernel
    12. Synchronisation
    13. Channels and categories
    14. Threads and databases
    15. Async sockets and TLS
    16. Async files, pipes and child processes
    17. Secrets
    18. Network engine
    19. Links and peers
    20. Network
    21. Discovery
    22. Remote tasks
    23. Remote channels and services
    24. Peers by name
    25. File transfer
    26. Facade
    27. Doctor
    28. Command line

Rules that hold everywhere: importing starts nothing (no thread, socket, file, signal handler); sections marked
"pure" take bytes, events and ``now`` and give bytes, events and instructions, and touch no socket, clock or thread;
a section uses only what stands above it; nothing on the wire names a Python module of ours.
"""
from __future__ import annotations

import atexit
import binascii
import copyreg
import dataclasses
import dis
import errno
import functools
import hashlib
import hmac
import importlib.util
import inspect
import io
import ipaddress
import itertools
import json
import linecache
import logging
import math
import mmap
import operator
import os
import pickle
import queue
import random
import select
import selectors
import shutil
import signal
import socket
import stat
import struct
import sys
import tempfile
import threading
import time
import traceback
import types
import weakref
from _thread import get_ident
from collections import OrderedDict, deque, namedtuple
from heapq import heapify, heappop, heappush
from typing import Any, Callable, Dict, Generator, Iterable, Iterator, List, NamedTuple, Optional, Tuple, Union

__version__ = "0.1.0"

if __name__ == "__main__":              # started as a program: hand over to the module under its own name, of which
    _own = __spec__.name if __spec__ else os.path.splitext(os.path.basename(__file__))[0]   # there is one copy then
    sys.exit(importlib.import_module(_own).main())

# ======================================================================================================================
# 1. Settings                                              every number that has a unit, and the environment's overrides
# ======================================================================================================================


@dataclasses.dataclass
class Settings:
    """Defaults of the whole package; units are in the names. An instance, `settings`, is what the code reads.

    Every field can be set before the network starts with an environment variable of its name in capitals with the
    prefix ``PYCOSLITE_`` (``PYCOSLITE_HEARTBEAT_S=1``).
    """

    heartbeat_s: float = 5.0            # an idle connection says it lives this often
    missed_heartbeats: int = 3          # so many silent intervals make a peer offline
    give_up_s: float = 60.0             # an unreachable peer's messages are kept this long, then reported as lost
    refused_s: float = 1.0              # a port that refuses for this long has no process behind it any more
    reconnect_min_s: float = 0.05       # back-off of a broken connection: doubles from here ...
    reconnect_max_s: float = 0.5        # ... to here, so that a line that is whole again is used within two seconds
    connect_s: float = 2.0              # one TCP connection attempt
    handshake_s: float = 3.0            # a connection must have proved the secret by then
    pending_handshakes: int = 64        # connections that have not; the oldest gives way to the next
    handshake_bytes: int = 4096         # most that is kept of what such a connection says, and ...
    tls_handshake_bytes: int = 16384    # ... most that it may say where TLS is below: certificates are long
    encrypt: str = "hosts"              # without certificates: see `Secrecy`; "never", "always" or "demand" instead
    record_bytes: int = 256 * 1024      # what one write carries at most (one MAC each)
    frame_bytes: int = 1 << 30          # longest message taken from an authenticated peer
    window_bytes: int = 64 << 20        # memory of unconfirmed messages per peer before senders are held back
    window_messages: int = 100_000      # likewise, messages ...
    queue_messages: int = 10_000        # ... and messages while there is no connection
    ack_bytes: int = 256 * 1024         # received bytes after which a confirmation is owed at once
    ack_messages: int = 1000            # likewise, messages
    ack_delay_s: float = 0.2            # a confirmation that found nothing to ride on goes by itself after this
    message_timeout_s: float = 10.0     # control requests (the documents' MsgTimeout)
    sync_files: int = 0                 # 1: a received file is on the disk before its sender hears that it is there
    lanes: int = 16                     # most connections that carry one link's bytes at a time; 1: never more than one
    lanes_loss: float = 0.01            # more are made where at least this share of the packets is lost (0: on every
    lanes_rtt_s: float = 0.01           # line), which is this long, there and back (a short one makes up for its losses
    lanes_after_s: float = 0.3          # by itself), once more is to be sent for so long than goes out
    lanes_idle_s: float = 30.0          # every second one ends when all that was to be sent went out for this long
    lanes_held_bytes: int = 8 << 20     # of one link, that have come by the others before what one of them still owes
    takeover_s: float = 0.05            # a user task that holds its thread this long loses the network to the watcher
    net_port: int = 9705                # UDP discovery, and the first TCP port tried
    ipv4_group: str = "239.255.97.5"    # multicast groups of discovery
    ipv6_group: str = "ff05::674f:48ba:b409:3171:9705"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            text = os.environ.get("PYCOSLITE_" + field.name.upper())
            if text is not None:
                setattr(self, field.name, _setting(field.name, field.default, text))


# A number out of range may do anything later on: a window of no bytes lets nobody send, a heartbeat of 0 seconds takes
# the processor, a record that is longer than others take is refused by them, as an attack, again and again.
_LONGEST_S = 4e6                                # less than what the waits of all systems take
_NOT_0_S = (0.001, _LONGEST_S)
_RANGES: Dict[str, Tuple[float, float]] = {     # field -> (least, most) of it; of others see `_setting`
    "heartbeat_s": _NOT_0_S, "connect_s": _NOT_0_S, "handshake_s": _NOT_0_S, "takeover_s": _NOT_0_S,
    "message_timeout_s": _NOT_0_S, "reconnect_min_s": _NOT_0_S, "reconnect_max_s": _NOT_0_S,
    "handshake_bytes": (4096, math.inf), "tls_handshake_bytes": (4096, math.inf),
    "record_bytes": (1024, 1 << 20),            # each end takes so much
    "frame_bytes": (64 * 1024, (1 << 32) - 1),  # control requests must fit, and the length has four bytes
    "net_port": (1, 65535),
    "sync_files": (0, 1), "lanes": (0, math.inf), "lanes_loss": (0, 1),
}


def _setting(name: str, default: Any, text: str) -> Any:
    """What a variable of the environment sets a field of `Settings` to: a number of the range that is right for it,
    others from 0 or, if they are counts, from 1 on; the address of a group. Raises ValueError with a sentence."""
    kind = _group_address if name.endswith("_group") else type(default)
    least, most = _RANGES.get(name, (1, math.inf) if kind is int else (0, _LONGEST_S))
    try:
        value = kind(text)
    except ValueError:
        raise ValueError("PYCOSLITE_%s=%r is not a %s (its default is %r)" % (
            name.upper(), text, kind.__name__.strip("_").replace("_", " "), default)) from None
    if kind in (int, float) and not least <= value <= most:
        raise ValueError("PYCOSLITE_%s=%r: it must be %r or more%s (its default is %r)" % (
            name.upper(), text, least, ", %r at most" % most if most != math.inf else "", default))
    return value


def _group_address(text: str) -> str:
    """The same text; raises ValueError unless it is the address of a multicast group."""
    if not ipaddress.ip_address(text).is_multicast:
        raise ValueError(text)
    return text


settings = Settings()

# ======================================================================================================================
# 2. Errors                                                                                               one small tree
# ======================================================================================================================


class PycosError(Exception):
    """Root of every error this package raises by itself."""


class ProtocolError(PycosError):
    """The other end broke the wire format; the connection is closed, the sentence says what was wrong."""


class AuthenticationError(PycosError):
    """A handshake was refused, by us or by the other end; the sentence says why and what to change."""


class PeerBusy(AuthenticationError):
    """More strangers knock at the other end than it lets wait: nothing was decided, trying again is right."""


class SecretError(PycosError):
    """The cluster's secret, or the certificate for TLS, cannot be had; the sentence says why and what to do."""


class PeerLost(PycosError):
    """The peer's process is gone, or was unreachable for longer than `Settings.give_up_s`."""


class OperationTimeout(PycosError, TimeoutError):
    """What was waited for did not come in time."""


class MisuseError(PycosError):
    """The program used an API in a way that cannot work; the sentence names the place and the remedy."""


# ======================================================================================================================
# 3. Logging and platform                                                                  quiet unless the program asks
# ======================================================================================================================

PROTOCOL = 5                            # of pickle; every Python from 3.8 on reads it

log = logging.getLogger("pycoslite")     # no handler: warnings and errors reach stderr, the rest only who asks for it


_MALFORMED = (PycosError, struct.error, ArithmeticError, LookupError, RecursionError, TypeError, ValueError)


def log_failure(error: Exception, text: str, *args: Any) -> None:
    """Log that what another process sent could not be handled: `text` % `args` and the error, in one line. A peer with
    a mistake in it may send such things without end, so only errors that malformed data cannot raise, which are then
    ours, come with their traceback; with debugging switched on all do. Any thread."""
    show = log.isEnabledFor(logging.DEBUG) or not isinstance(error, _MALFORMED)
    log.error(text + ": %s: %.300s", *args, type(error).__name__, error, exc_info=error if show else None)


_DEVICES = {"CON", "PRN", "AUX", "NUL"} | {port + digit for port in ("COM", "LPT") for digit in "123456789"}


def _misleads_windows(part: str) -> bool:
    """Whether Windows takes one part of a path for something else than the file of that name: a device, a drive, a
    stream of another file, or a name without the dots and spaces at its end. Any thread."""
    return (part.split(".")[0].rstrip(" ").upper() in _DEVICES or part.rstrip(". ") != part
            or any(char in '<>:"|?*' or char < " " for char in part))


def caller() -> str:
    """Where the program called into this module, "FILE, line N": for warnings, which have no traceback. Any thread."""
    frame: Any = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals is globals():
        frame = frame.f_back
    return "%s, line %d" % (frame.f_code.co_filename, frame.f_lineno)


def confined_path(base: str, name: str) -> str:
    """The path of `name`, which came from another process, below the directory `base`: the one check of all such names.

    Raises MisuseError unless it is relative and stays there, whatever symbolic links there are at this moment: who
    cannot rule out that others change the directory opens it step by step then (see `_Folder`). On Windows, what is no
    plain name there is refused, too. Any thread; reads the disk.
    """
    base = os.path.realpath(base)
    parts = name.replace("\\", "/").split("/")
    wrong = ("\0" in name or os.path.isabs(name) or os.path.splitdrive(name)[0] or os.pardir in parts
             or os.name == "nt" and any(_misleads_windows(part) for part in parts if part != os.curdir))
    path = "" if wrong else os.path.realpath(os.path.join(base, name))
    if not path.startswith(os.path.join(base, "")):
        raise MisuseError("the file name %.300r does not stay below the directory it belongs to" % name)
    return path


class Singleton(type):
    """Metaclass of classes that have one object: constructing again returns the first one, whatever the arguments."""

    _instances: Dict[type, Any] = {}
    _lock = threading.RLock()           # guards: _instances

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        with Singleton._lock:
            if cls not in Singleton._instances:
                Singleton._instances[cls] = super().__call__(*args, **kwargs)
            return Singleton._instances[cls]

    def instance(cls, *args: Any, **kwargs: Any) -> Any:
        """The object of `cls`, ``Singleton.instance(cls)`` or ``cls.instance()``; None when there is none yet. Any
        thread."""
        return Singleton._instances.get(cls)

    @staticmethod
    def discard(cls: type) -> None:
        """Forget the object of `cls`: the next construction makes a new one. Any thread."""
        with Singleton._lock:
            Singleton._instances.pop(cls, None)


MetaSingleton = Singleton


class Struct:
    """A bag of attributes, named when it is made: ``Struct(x=1)``. Assigning any other raises AttributeError; reading
    one gives None, with a warning."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.__dict__:
            raise AttributeError("this Struct has no attribute %r: name it when the Struct is made" % name)
        self.__dict__[name] = value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):           # copy, pickle and their like ask for what may not be there
            raise AttributeError(name)
        log.warning("this Struct has no attribute %r, read in %s: it gives None; name it when the Struct is made", name,
                    caller())
        return None

    def __repr__(self) -> str:
        return "Struct(%s)" % ", ".join("%s=%r" % item for item in self.__dict__.items())


class Logger:
    """Lines with date, time, name and text on `stream` (None: stdout): ``Logger("prog").info("%d done", 5)``.

    Made by `logging`, whose logger of that name gets one handler when the first line is written. `level` is one of the
    constants, INFO if None; `log_ms` adds milliseconds to the time. A context manager that flushes at its end. Any
    thread.
    """

    DEBUG = logging.DEBUG
    INFO = logging.INFO
    WARN = WARNING = logging.WARNING
    ERROR = logging.ERROR
    CRITICAL = FATAL = logging.CRITICAL

    def __init__(self, name: str, stream: Any = None, level: Optional[int] = None, log_ms: bool = False) -> None:
        self.name = name
        self._stream = stream               # None: sys.stdout as it is when the first line is written
        self._level = level
        self._log_ms = log_ms
        self._handler: Optional[logging.StreamHandler] = None

    def _logger(self) -> logging.Logger:
        found = logging.getLogger(self.name)
        if self._handler is None:
            self._handler = logging.StreamHandler(self._stream or sys.stdout)
            self.show_ms(self._log_ms)
            found.addHandler(self._handler)
            found.setLevel(self.INFO if self._level is None else self._level)
            found.propagate = False
        return found

    def setLevel(self, level: int) -> None:
        """Write nothing below `level` from now on."""
        self._level = level
        self._logger().setLevel(level)

    def show_ms(self, flag: bool) -> None:
        """Whether the time has milliseconds."""
        self._log_ms = flag
        if self._handler is not None:
            when = "%(asctime)s.%(msecs)03d" if flag else "%(asctime)s"
            self._handler.setFormatter(logging.Formatter(when + " %(name)s - %(message)s", "%Y-%m-%d %H:%M:%S"))

    def _write(self, level: int, message: Any, *args: Any) -> None:
        """A line if the level allows; `message` is a %-format only when there are `args`."""
        self._logger().log(level, message, *args)

    debug = functools.partialmethod(_write, logging.DEBUG)
    info = functools.partialmethod(_write, logging.INFO)
    warn = warning = functools.partialmethod(_write, logging.WARNING)
    error = functools.partialmethod(_write, logging.ERROR)
    critical = fatal = functools.partialmethod(_write, logging.CRITICAL)

    def log(self, message: Any, *args: Any) -> None:
        """A line whatever the level."""
        found = self._logger()
        found.handle(found.makeRecord(self.name, logging.CRITICAL, "", 0, message, args, None))

    def flush(self) -> None:
        """Have the stream written out."""
        if self._handler is not None:
            self._handler.flush()

    def shutdown(self) -> None:
        """Flush, and give the logger of that name back its former quiet."""
        if self._handler is not None:
            self.flush()
            logging.getLogger(self.name).removeHandler(self._handler)
            logging.getLogger(self.name).propagate = True
            self._handler = None

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, *_error: Any) -> None:
        self.flush()


logger = Logger("pycoslite")

# ======================================================================================================================
# 4. Timer queue (pure)                                                               deadlines in order; `now` comes in
# ======================================================================================================================


class TimerQueue:
    """Items in the order of their deadlines; each item is in it at most once.

    An item is any object with a writable attribute ``timer`` (0 when it is not queued) and a method ``expire()``.
    Cancelling is O(1): the heap's entry goes stale, and once more than half of the heap is stale it is rebuilt, so
    that timers set and cancelled a million times leave nothing behind.
    """

    __slots__ = ("heap", "_sequence", "_live")

    def __init__(self) -> None:
        self.heap: list = []            # (deadline, sequence, item); live while item.timer == sequence
        self._sequence = 0
        self._live = 0

    def __len__(self) -> int:
        return self._live

    def push(self, deadline: float, item: Any) -> None:
        """Queue `item`, which must not be queued already, for `deadline`."""
        self._sequence = sequence = self._sequence + 1
        self._live += 1
        item.timer = sequence
        heappush(self.heap, (deadline, sequence, item))

    def cancel(self, item: Any) -> None:
        """Take `item` out; does nothing when it is not queued."""
        if item.timer:
            item.timer = 0
            self._live -= 1
            size = len(self.heap)
            if size > 64 and self._live * 2 < size:
                self.heap = [entry for entry in self.heap if entry[2].timer == entry[1]]
                heapify(self.heap)

    def next_deadline(self) -> Optional[float]:
        """When the first item is due; None when there is none."""
        heap = self.heap
        while heap:
            deadline, sequence, item = heap[0]
            if item.timer == sequence:
                return deadline
            heappop(heap)
        return None

    def expired(self, now: float, most: int = sys.maxsize) -> Iterator:
        """Take out the items due at `now` (at most so many, and never mind the rest), earliest first, those of one
        deadline in the order they came; one at a time, so that one may still cancel the next. What is pushed meanwhile
        waits for the next call."""
        heap, due = self.heap, []
        while heap and heap[0][0] <= now and len(due) < most:
            due.append(heappop(heap))
        for _, sequence, item in due:
            if item.timer == sequence:
                item.timer = 0
                self._live -= 1
                yield item

# ======================================================================================================================
# 5. Addresses (pure)                                                                     where a process can be reached
# ======================================================================================================================
#
# Spec. An address is written ``host:port``, ``host``, ``[v6]:port``, ``[v6]`` or a bare IPv6 address (two colons or
# more, so it cannot carry a port). Nothing is resolved here: names and IPv4 addresses are kept as they were given, an
# IPv6 address gets its one canonical form (RFC 5952), so that two spellings of it are equal.
#
# A link-local IPv6 address (fe80::/10) means something together with an interface only: ``fe80::1%eth0`` (RFC 4007).
# What follows the % is the name that this machine has for the interface, so it is never told to another machine: what
# goes on the wire is `Location.bare`, and who hears it puts its own interface there.


def canonical_host(host: str) -> str:
    """A host as it is compared: an IPv6 address in its shortest form, one that only wraps an IPv4 address as that,
    anything else as it is. Raises ValueError when it has a colon and is no IPv6 address. Any thread."""
    if ":" not in host:
        return host
    bare, percent, scope = host.partition("%")      # ipaddress takes the scope from Python 3.9 on
    try:
        address = ipaddress.IPv6Address(bare)
    except ValueError:
        raise ValueError("%r is neither a host name nor an IPv6 address" % host) from None
    if address.ipv4_mapped is not None:             # what a socket for both families says of an IPv4 peer
        return str(address.ipv4_mapped)
    return str(address) + percent + scope


def is_loopback(host: str) -> bool:
    """Whether a numeric address means the machine it is used on. Any thread."""
    return host.startswith("127.") or host == "::1"


def is_numeric(host: str) -> bool:
    """Whether a host is an address and no name. Any thread."""
    return ":" in host or host.replace(".", "").isdigit()


def wildcard_of(address: str) -> str:
    """How all addresses of that one's family are named where one listens: '0.0.0.0' or '::'. Any thread."""
    return "::" if ":" in address else "0.0.0.0"


def is_link_local(host: str) -> bool:
    """Whether an address is an IPv6 one that needs its interface to be of use. Any thread."""
    return ":" in host and host[:3].lower() in ("fe8", "fe9", "fea", "feb")


def same_network(one: str, other: str, prefix: int) -> bool:
    """Whether two numeric addresses agree in their first `prefix` bits; False for those of two families. Any thread."""
    first, second = (ipaddress.ip_address(host.partition("%")[0]) for host in (one, other))
    rest = first.max_prefixlen - prefix
    return first.version == second.version and int(first) >> rest == int(second) >> rest


class Location:
    """Where a process can be reached: ``Location("node7", 9705)``. Equal and hashed by host and port.

    `host` is a name or a numeric address, without the brackets of an IPv6 address, which is brought into its shortest
    form; `tcp_port` is anything `int` takes, 0 to 65535. They are read back as ``.addr`` and ``.port``. Raises
    ValueError with a sentence.
    """

    __slots__ = ("addr", "port")

    def __init__(self, host: str, tcp_port: Any) -> None:
        if not isinstance(host, str) or not host.strip("[] "):
            raise ValueError("%r is not a host name or address" % (host,))
        try:
            port = int(tcp_port)
        except (TypeError, ValueError):
            port = -1
        if not 0 <= port <= 65535:
            raise ValueError("%r is not a port number (0 to 65535)" % (tcp_port,))
        self.addr = canonical_host(host[1:-1] if host[0] == "[" and host[-1] == "]" else host)
        self.port = port

    @property
    def bare(self) -> str:
        """The host without the interface of a link-local address: what another machine can be told. Any thread."""
        return self.addr.partition("%")[0]

    @classmethod
    def parse(cls, text: str, default_port: Optional[int] = None) -> Location:
        """Location written as ``host:port``, ``[v6]:port``, or either without the port, which is then `default_port`.

        Raises ValueError when the port is missing and has no default, or when something is no host or no port.
        """
        if not isinstance(text, str):
            raise ValueError("%.200r is no address: it must be a Location, or a text like host:port" % (text,))
        text = text.strip()
        if text.startswith("["):
            host, bracket, rest = text.partition("]")
            if not bracket or rest and rest[0] != ":":
                raise ValueError("%r is not an address: write [address]:port" % text)
            host, colon, port = host[1:], rest[:1], rest[1:]
        elif text.count(":") > 1:
            host, colon, port = text, "", ""
        else:
            host, colon, port = text.partition(":")
        if not colon:
            if default_port is None:
                raise ValueError("%r names no port: write host:port" % text)
            return cls(host, default_port)
        if not (port.isascii() and port.isdigit()):
            raise ValueError("%r is not an address: what follows the colon must be a port number" % text)
        return cls(host, port)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Location):
            return NotImplemented
        return self.addr == other.addr and self.port == other.port

    def __hash__(self) -> int:
        return hash((self.addr, self.port))

    def __repr__(self) -> str:
        return ("[%s]:%d" if ":" in self.addr else "%s:%d") % (self.addr, self.port)


# ======================================================================================================================
# 6. Wire format (pure)                                                 records carry the MAC, frames carry the messages
# ======================================================================================================================
#
# Spec. After the handshake a connection is a chain of records each way; the bodies of the records, put end to end, are
# a chain of frames. The two have nothing to do with each other's borders: one record holds many small frames, a long
# frame is cut over many records. Numbers are big-endian.
#
#   record   offset 0       u32  length of the body, at most RECORD_CAP
#                   4            body
#                   4 + n  16 B  MAC, absent when the connection has no key (open cluster, or below TLS)
#            An empty body says that no more records follow on this connection: they go in lanes, see below.
#            MAC = BLAKE2b of 16 bytes, keyed with the key of the direction (RFC 7693), of the chain: of this record and
#            all before it in its direction, from the first one on, put end to end, each as
#              length | body                a body of up to 1,024 bytes
#              length | SHA-256(body)       a longer one
#            So nothing can be replayed, reordered, left out or reflected, and nothing is counted for that; whatever
#            does not fit ends the connection (and not the session above it).
#   frame    offset 0       u32  length of the body, at most Settings.frame_bytes
#                   4       u8   code: 1-15 link control, not counted by the session; 16-63 this module; 64-255 others
#                   5            body
#
# Where a chain of records goes over several connections (lanes, section 19), its bytes are cut into chunks, whose
# borders have nothing to do with those of records; below TLS it is the ciphertext that is cut.
#
#   chunk    offset 0       u64  number of bytes that the sender has put into lanes before; all ones: the lane's last
#                   8       u32  length of the body, at most RECORD_CAP; 0: nothing, the lane is in use
#                  12       8 B  check: the beginning of a MAC (see record), keyed with the key of the lane's direction,
#                                or of SHA-256 where there is none, of the first 12 bytes of this chunk and all before
#                                it on the lane, put end to end
#                  20            body
#            A body has no check of its own: who changes it changes the records that are put together from it. But a
#            changed head, or a chunk that was left out, could leave those waiting for bytes that never come.
#
# Invariants: lengths are checked before anything is kept; what is kept grows with what came, never with what was
# promised; events do not depend on where the stream was cut.
#
# A long frame is received where it stays, which takes a third off the receiver's time beside the MAC. Once its first
# record is in, `FrameDecoder.room` is the memory for the rest of it; `RecordOpener.place` says where in it the next
# bytes belong: the body of a record, then, beside it, its MAC with the length of the next one. What is not proved yet
# lies there, too, but belongs to no frame until it is; if it is wrong, the connection ends and the memory is forgotten.
# The last record of a frame comes in the usual way, as another frame may begin in it.

RECORD_CAP = 1 << 20            # part of the wire format: every end takes this, Settings.record_bytes stays below it
MAC_BYTES = 16
_CHAINED = 1024                 # likewise: longer bodies are hashed before they go into the chain of MACs
_SMALL = 16 * 1024              # copying less than this is cheaper than a buffer of its own in sendmsg
_FEW = 16                       # likewise, number of buffers
_ASSEMBLED = 64 * 1024          # longer frames that came in pieces are handed out as the bytearray they grew in, ...
_LONG_FRAME = 1 << 20           # ... from here on in memory that is had at once, see `_space_for`
_HUGE = 4 << 20                 # memory this long is worth asking for large pages, see `_in_large_pages`
_SEARCHED = 256                 # first bytes of a frame among which its message must begin for that to be seen
_BYTEARRAY = b"\x80\x05\x96"    # a bytearray is pickled, in protocol 5, to this, the u64 number of its bytes (the one
_BYTEARRAY_END = b"\x94."       # number here that is little-endian), its bytes, and this

_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_FRAME = struct.Struct(">IB")
_LONE = struct.Struct(">IIB")   # a record's length field and the head of its first frame
_CHUNK_HEAD = struct.Struct(">QI")
_CHECK_BYTES = 8
_LANE_ENDS = (1 << 64) - 1      # in place of a position
_PIECE_COSTS = 128              # bytes that a piece of a chunk costs beside its own while it waits
_HELD = struct.Struct(">QQQ")
_PICKLED_SIZE = struct.Struct("<Q")
_equal = hmac.compare_digest    # takes a time that does not tell where two MACs differ
_WRONG_MAC = "a record was changed, repeated or forged on its way (wrong MAC)"


class Code:
    """Frame codes of the link itself; these frames are not counted, kept or repeated by the session."""

    SESSION = 1                 # '>QQQ' own session id, other's session id or 0, frames received: first on a connection
    ACK = 2                     # '>Q'   sequenced frames received so far in this session
    PING = 3                    # any bytes; answered with PONG and the same bytes
    PONG = 4
    BYE = 5                     # UTF-8 reason; the sender ends this session for good
    LANES = 6                   # u8: so many lanes are wanted, see section 19
    FIRST_SEQUENCED = 16        # from here on frames are counted and arrive exactly once, in order


_FIRST_SEQUENCED = Code.FIRST_SEQUENCED


def encode_frame(code: int, *parts: bytes) -> bytes:
    """One frame as one bytes object; for bodies that are cheap to copy."""
    if len(parts) == 1:
        return _FRAME.pack(len(parts[0]), code) + parts[0]
    return b"".join((_FRAME.pack(sum(map(len, parts)), code), *parts))


def frame_buffers(code: int, *parts: bytes) -> list:
    """The same as [header, *parts] without a copy; every part must be bytes-like with one byte per item."""
    return [_FRAME.pack(sum(map(len, parts)), code), *parts]


def session_frame(local_sid: int, remote_sid: int, received: int) -> bytes:
    """SESSION frame; see section 8 for what its fields do."""
    return encode_frame(Code.SESSION, _HELD.pack(local_sid, remote_sid, received))


def ack_frame(received: int) -> bytes:
    """ACK frame: `received` sequenced frames have been taken in this session."""
    return encode_frame(Code.ACK, _U64.pack(received))


def parse_session(body: bytes) -> tuple:
    """The three fields of a SESSION frame, in `session_frame`'s order; ProtocolError if malformed."""
    return _unpack(_HELD, body, "SESSION")


def parse_ack(body: bytes) -> int:
    """Frames received, of an ACK frame; ProtocolError if malformed."""
    return _unpack(_U64, body, "ACK")[0]


def serialize(value: Any) -> bytes:
    """Pickle `value`. Raises whatever pickling it raises. Any thread."""
    return pickle.dumps(value, PROTOCOL)


def set_pickle_protocol(version: Optional[int]) -> None:
    """Have `serialize` use that protocol from now on: None for the highest that every supported Python reads, 0 for the
    one that `pickle` prefers, or a number. Raises ValueError for one that not all of them read. Any thread."""
    global PROTOCOL
    if version is not None and not (isinstance(version, int) and 0 <= version <= 5):
        raise ValueError("PickleProtocolVersion = %r: it must be None, or a number from 0 to 5" % (version,))
    PROTOCOL = 5 if version is None else version or pickle.DEFAULT_PROTOCOL


def deserialize(data: Any, load: Callable = pickle.loads) -> Any:
    """Inverse of `serialize`; for bytes from an authenticated peer only. Raises what unpickling raises, with one
    exception: a class whose code ends in SystemExit and its like must not end the network. `load` is `pickle.load` when
    `data` is a file. Any thread."""
    try:
        return load(data)
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise PycosError("unpickling it ended with %s: %s" % (type(error).__name__, error)) from None


unserialize = deserialize


class _Parts(list):
    """File for a pickler that keeps what it is given: the long bytes objects of the pickled value itself, uncopied, as
    they cannot change until they are confirmed; of its long bytearrays, which can, copies."""

    def write(self, data: Any) -> None:
        """Called by the pickler with bytes, or with the bytearrays and PickleBuffers (numpy's arrays) of the value."""
        if type(data) is not bytes:
            data = data if type(data) is bytearray else data.raw()
            data = bytes(data) if len(data) < _LONG_FRAME else _Mapped.copy_of(data)
        self.append(data)


def serialize_long(value: Any) -> list:
    """The same as `serialize` in parts to be put end to end. Bytes objects of 64 KiB and more are parts themselves and
    not copied, which for a message of 64 MiB of bytes saves 64 MiB and 30 ms; a short value takes 1 us longer than by
    `serialize`. Raises whatever pickling it raises. Any thread."""
    parts = _Parts()
    pickle.Pickler(parts, PROTOCOL).dump(value)
    return parts


# Memory that is shared with children, the default, would not be given back page by page; Windows has no such choice.
_PRIVATE: dict = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


class _Mapped(mmap.mmap):
    """Memory for the body of one long frame, and the file that its message is unpickled from.

    The system gives it page by page as the bytes come, whatever length was announced, and takes each page back as soon
    as the unpickler has copied it into the message (on Linux; elsewhere all at the end). So a message of 64 MiB takes
    64 MiB and a little, where a bytearray and what it is unpickled to take twice that. In pages of 2 MiB, if the system
    has them: filling 64 MiB takes 8 ms then, and 36 in small ones.
    """

    _PIECE = 1 << 20                    # most that is there twice
    _SPARE_BYTES = 64 << 20             # most that is kept of copies' memory, those in use included
    _spare: deque = deque()             # that memory, by age of the copy; any thread takes out and puts back
    _used = False                       # a copy was made since `forget_spare` was called
    _ADVICE = sys.platform.startswith("linux") and hasattr(mmap, "MADV_DONTNEED") and hasattr(mmap, "MADV_HUGEPAGE")

    def __new__(cls, size: int) -> "_Mapped":
        memory = super().__new__(cls, -1, size, **_PRIVATE)
        if cls._ADVICE:
            try:
                memory.madvise(mmap.MADV_HUGEPAGE)
            except OSError as error:    # a kernel without them
                log.debug("memory of %d bytes in small pages: %s", size, error)
        return memory

    @classmethod
    def copy_of(cls, data: Any) -> Any:
        """A copy, as a view: for 64 MiB a fifth of the time that a bytes object takes, or a tenth when the memory of an
        earlier one can be used again. Any thread."""
        size = len(data)
        memory = cls._take_spare(size) or cls(size)
        copy = memoryview(memory)[:size]
        copy[:] = data
        if cls._ADVICE:
            cls._used = True
            cls._spare.append(memory)
            while sum(map(len, tuple(cls._spare))) > cls._SPARE_BYTES:
                cls._spare.popleft()
        return copy

    @classmethod
    def _take_spare(cls, size: int) -> Optional["_Mapped"]:
        """The memory of the earliest copy if nobody has a view of it any more and it is of about that size."""
        try:
            memory = cls._spare.popleft()
            if size <= len(memory) <= 2 * size:
                memory.resize(len(memory))      # changes nothing, and is refused while there is a view
                return memory
        except IndexError:
            pass
        except BufferError:
            cls._spare.appendleft(memory)
        return None

    @classmethod
    def forget_spare(cls) -> None:
        """Give the memory of earlier copies back if none was made since the last call. Any thread."""
        if not cls._used:
            cls._spare.clear()
        cls._used = False

    def readinto(self, into: Any) -> int:
        """Move the next bytes into the buffer `into`: fills it, as the unpickler demands. They are gone here."""
        target, source, at = memoryview(into).cast("B"), memoryview(self), self.tell()
        _in_large_pages(target)
        for start in range(0, len(target), self._PIECE):
            piece = source[at + start:at + min(start + self._PIECE, len(target))]
            target[start:start + len(piece)] = piece
            self._forget(at + start, at + start + len(piece))
        self.seek(at + len(target))
        return len(target)

    def _forget(self, start: int, stop: int) -> None:
        """Give pages back to the system: all before `start` has been read, too, what follows `stop` has not."""
        start, stop = start // mmap.PAGESIZE * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
        if stop > start and self._ADVICE:
            self.madvise(mmap.MADV_DONTNEED, start, stop - start)


@functools.lru_cache(maxsize=None)
def _find_madvise() -> Optional[Callable]:
    """A function (writable buffer, advice), which gives that advice about the pages that lie whole in the buffer: by
    the C library, as `mmap.madvise` is for memory of its own only. None where there is no such thing."""
    if not _Mapped._ADVICE:
        return None
    try:
        import ctypes                   # here, as few programs send anything so long
        call = ctypes.CDLL(None).madvise
    except (ImportError, OSError, AttributeError) as error:
        log.debug("long messages are kept in small pages: %s", error)
        return None
    call.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int

    def madvise(memory: Any, advice: int) -> None:
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        first = (address + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE
        last = (address + len(memory)) // mmap.PAGESIZE * mmap.PAGESIZE
        call(first, last - first, advice)
    return madvise


def _in_large_pages(memory: Any) -> None:
    """Have the long memory of a new object, which nothing was written to yet, in pages of 2 MiB if the system has them:
    the first touch of 64 MiB in small ones takes 30 ms, nearly as long as their MAC, and 4 in these. This is advice:
    where it is not taken, all else is the same."""
    madvise = _find_madvise() if len(memory) >= _HUGE else None
    if madvise is not None:
        madvise(memory, mmap.MADV_HUGEPAGE)


class _Blank(io.BytesIO):
    """File with the pickle of a bytearray, without its bytes."""

    def readinto(self, into: Any) -> int:
        """Called by the unpickler for the bytes: leaves them as they are."""
        return len(into)


def _blank(size: int) -> bytearray:
    """A bytearray of that size, to be filled; until then its bytes are anything. The system gives its pages as they are
    filled, while bytearray(size) writes zeros to all at once. Raises MemoryError."""
    blank = pickle.load(_Blank(_BYTEARRAY + _PICKLED_SIZE.pack(size) + b"."))
    _in_large_pages(blank)
    return blank


def _space_for(size: int, data: bytes) -> Any:
    """Memory for the body of a frame of `size` bytes, of which `data` has come: a bytearray that grows, or a view of
    memory of that size, for which the system gives pages as bytes come. If the message is just a bytearray, that is
    memory of a bytearray, which becomes the message where it lies (see `deserialize_frame`), else of `_Mapped`."""
    if size < _LONG_FRAME:
        return bytearray()
    start = data.find(_BYTEARRAY, 0, _SEARCHED)
    try:
        return memoryview(_blank(size) if start >= 0 and _is_bytearray(data, start, size) else _Mapped(size))
    except (OSError, MemoryError):      # so much cannot be had, or not in one piece: let it grow
        return bytearray()


def _is_bytearray(data: Any, start: int, size: int) -> bool:
    """Whether `data`, which may be cut short, has the pickle of a bytearray from `start` up to the end at `size`."""
    head = start + len(_BYTEARRAY) + _PICKLED_SIZE.size
    return data[start:start + len(_BYTEARRAY)] == _BYTEARRAY and len(data) >= head and _PICKLED_SIZE.unpack_from(
        data, start + len(_BYTEARRAY))[0] == size - head - len(_BYTEARRAY_END)


def deserialize_frame(body: Any, start: int) -> Any:
    """What is pickled behind the first `start` bytes of a frame's body; raises what `deserialize` raises. The body of a
    long frame is spent afterwards: it may have become the message. Any thread."""
    if len(body) < _SMALL:
        return deserialize(body[start:])
    if type(body) is bytearray and _is_bytearray(body, start, len(body)) and body.endswith(_BYTEARRAY_END):
        del body[-len(_BYTEARRAY_END):]             # neither copies anything: a bytearray may begin and end
        del body[:start + len(_BYTEARRAY) + _PICKLED_SIZE.size]         # anywhere within its memory
        return body
    if type(body) is memoryview and type(body.obj) is _Mapped:
        body.obj.seek(start)
        return deserialize(body.obj, pickle.load)
    return deserialize(memoryview(body)[start:])


def _unpack(layout: struct.Struct, body: bytes, name: str) -> tuple:
    if len(body) != layout.size:
        raise ProtocolError("%s frame of %d bytes instead of %d" % (name, len(body), layout.size))
    return layout.unpack(body)


class _RecordMac:
    """MACs of one direction: one keyed hash takes all of its records; what it gives after each is the MAC so far.

    That is two calls of C for a short record, a quarter of what the HMAC of each record and its number takes. Long
    bodies go through SHA-256, for which processors have instructions: 64 KiB take half the time there.
    """

    __slots__ = ("take", "tell")

    def __init__(self, key: bytes) -> None:
        try:
            chain = hashlib.blake2b(key=key, digest_size=MAC_BYTES)
        except (AttributeError, ValueError) as error:       # every Python has it, but some are built or told not to
            raise AuthenticationError("this Python has no BLAKE2b, which messages are authenticated with (%s): use "
                                      "another one, or give both ends certfile and keyfile, for TLS" % error) from None
        self.take, self.tell = chain.update, chain.digest   # `next` for a short record, written out where it counts

    def next(self, record: bytes) -> bytes:
        """MAC of the next record, whose length field and body are `record`."""
        if len(record) > 4 + _CHAINED:
            return self.next_of([record[:4], record[4:]])
        self.take(record)
        return self.tell()

    def next_of(self, parts: list) -> bytes:
        """The same for a record in `parts`, which are not joined for this; the first one is its length field."""
        body = parts[1:]
        if sum(map(len, body)) > _CHAINED:
            hashed = hashlib.sha256()
            for part in body:
                hashed.update(part)
            body = [hashed.digest()]
        for part in (parts[0], *body):
            self.take(part)
        return self.tell()


class RecordSealer:
    """Makes records of one direction. `key` is the direction's key, or None for records without a MAC."""

    __slots__ = ("_mac",)

    def __init__(self, key: Optional[bytes]) -> None:
        self._mac = None if key is None else _RecordMac(key)

    def seal(self, parts: list) -> list:
        """One record whose body is `parts` end to end, as buffers to be sent in this order.

        Small records and records of many parts come as few joined buffers (usually one bytes object); a few large parts
        are passed on uncopied and must not change until sent. The body must not be longer than RECORD_CAP.
        """
        if len(parts) > _FEW or len(parts) > 1 and sum(map(len, parts)) <= _CHAINED:
            parts = [b"".join(parts)]
        size = sum(map(len, parts))
        if size <= _CHAINED and parts:
            return [self.seal_short(parts[0])]
        record = [_U32.pack(size), *parts]
        if self._mac is not None:
            record.append(self._mac.next_of(record))
        return [b"".join(record)] if size <= _SMALL else record

    def seal_short(self, body: bytes) -> bytes:
        """The same for one body of at most `_CHAINED` bytes, the usual case: one bytes object."""
        record = _U32.pack(len(body)) + body
        mac = self._mac
        if mac is None:
            return record
        take, tell = mac.take, mac.tell
        take(record)
        return record + tell()


class RecordOpener:
    """Takes one direction's records apart; only what carries the right MAC ever comes out.

    `key` as for RecordSealer; `cap` is the longest body taken. After an error it takes nothing any more.
    """

    __slots__ = ("_cap", "_error", "_filled", "_foot", "_kept", "_mac", "_place", "_short", "_tail", "_wanted")

    def __init__(self, key: Optional[bytes], cap: int = RECORD_CAP) -> None:
        self._mac = None if key is None else _RecordMac(key)
        self._cap = cap
        self._tail = 0 if key is None else MAC_BYTES
        self._short = 4 + min(cap, _CHAINED) + self._tail       # longest that `lone_frame` takes; 0 after an error
        self._kept = bytearray()        # the record that has begun, at most 4 + cap + 16 bytes
        self._wanted = 4                # bytes it must have before there is something to decide
        self._place: Optional[memoryview] = None        # where its body is to lie, see `place`; of that and ...
        self._foot = memoryview(bytearray(self._tail + 4))      # ... its MAC with the length of the next record ...
        self._filled = 0                # ... so many bytes have come
        self._error = ""

    def place(self, room: memoryview) -> Optional[memoryview]:
        """Memory to receive the next bytes into, which are then fed as they lie there: so the body of a long record
        comes to lie at the start of `room`, where it belongs, and is copied no more. None when it must come in the
        usual way: it is short, or has as many bytes as `room` or more, where something may end and something begin.
        Nothing else may be fed before these bytes."""
        kept, size = self._kept, self._wanted - 4 - self._tail
        if self._place is None:
            if self._wanted == 4:
                return memoryview(bytearray(4 - len(kept)))
            if not _SMALL < size < len(room) or len(kept) > 4 + size:
                return None
            self._place, self._filled = room[:size], len(kept) - 4
            self._place[:self._filled] = memoryview(kept)[4:]
            self._kept = kept[:4]
        return self._place[self._filled:] if self._filled < size else self._foot[self._filled - size:]

    def _fill(self, count: int) -> list:
        """So many bytes have come to where `place` said; what `feed` returns."""
        self._filled += count
        place, size = self._place, len(self._place)
        behind = self._filled - size - self._tail       # bytes of the next record
        if behind < 0:
            return []
        if self._mac is not None and not _equal(self._mac.next_of([self._kept, place]), self._foot[:self._tail]):
            raise self._fail(_WRONG_MAC)
        self._place, self._kept = None, bytearray(self._foot[self._tail:self._tail + behind])
        self._wanted = 4 if behind < 4 else self._length(self._kept)
        return [place]

    def lone_frame(self, data: Any, decoder: "FrameDecoder") -> Optional[tuple]:
        """What this end's `decoder` would make of the bodies that `feed` gives, in half of their time, when `data` is
        one short record with one sequenced frame, both whole, and neither had begun before: the life of requests and
        answers. (code, body); None, and nothing is taken, in any other case. Raises ProtocolError if the MAC is wrong.
        """
        size = len(data)
        if not 9 <= size <= self._short or self._kept or decoder._head or decoder._body is not None:
            return None
        whole = data if type(data) is bytes else bytes(data)
        stop, mac = size - self._tail, self._mac
        length, frame, code = _LONE.unpack_from(whole)
        if frame + 9 != stop or length + 4 != stop or frame > decoder._short or code < _FIRST_SEQUENCED:
            return None
        if mac is not None:
            take, tell = mac.take, mac.tell
            take(whole[:stop])
            if not _equal(tell(), whole[stop:]):
                raise self._fail(_WRONG_MAC)
        return code, whole[9:stop]

    def feed(self, data: bytes) -> list:
        """Take what came; return the bodies of the records now complete, to be fed to FrameDecoder in this order.

        Bodies are bytes, long ones may be memoryviews (of `data`, which must not change while they are used). Raises
        ProtocolError for a record that is too long or whose MAC is wrong; bodies before it in `data` are lost with it.
        """
        if self._error:
            raise ProtocolError(self._error)
        if not self._kept and 4 < len(data) <= _SMALL:
            whole = bytes(data)
            stop = len(whole) - self._tail
            if _U32.unpack_from(whole)[0] + 4 == stop <= self._cap:     # the usual case, one small record; what
                mac = self._mac                                         # follows says the same for all others
                if mac is None or _equal(mac.next(whole[:stop]), whole[stop:]):
                    return [whole[4:stop]]
                raise self._fail(_WRONG_MAC)
        if self._place is not None:
            return self._fill(len(data))
        bodies: list = []
        view = memoryview(data)
        position, end = (self._complete(view, bodies) if self._kept else 0), len(data)
        while end - position >= 4:
            stop = position + self._length(view[position:position + 4])
            if stop > end:
                break
            bodies.append(self._body(view[position:stop]))
            position = stop
        if position < end:
            self._kept = bytearray(view[position:])
            self._wanted = 4 if end - position < 4 else self._length(view[position:position + 4])
        return bodies

    def _complete(self, view: memoryview, bodies: list) -> int:
        """Fill up the record that had begun from the start of `view`; return how much of it that took."""
        kept, position = self._kept, 0
        while position < len(view):
            piece = view[position:position + self._wanted - len(kept)]
            kept += piece
            position += len(piece)
            if len(kept) < self._wanted:
                break
            if self._wanted == 4:
                self._wanted = self._length(kept)
            if len(kept) == self._wanted:       # at once for an empty record without a MAC
                self._kept, self._wanted = bytearray(), 4
                bodies.append(self._body(memoryview(kept)))
                break
        return position

    def _length(self, head: bytes) -> int:
        """Bytes of the whole record that begins with `head`."""
        size = _U32.unpack_from(head)[0]
        if size > self._cap:
            raise self._fail("a record of %d bytes was announced, more than the %d allowed" % (size, self._cap))
        return 4 + size + self._tail

    def _body(self, record: memoryview) -> bytes:
        """Body of a whole record, once its MAC is proved."""
        stop = len(record) - self._tail
        if self._mac is not None and not _equal(self._mac.next(record[:stop]), record[stop:]):
            raise self._fail(_WRONG_MAC)
        return bytes(record[4:stop]) if stop <= _SMALL else record[4:stop]      # type: ignore[return-value]

    def _fail(self, sentence: str) -> ProtocolError:
        self._error = sentence
        self._short = 0
        self._kept = bytearray()
        self._place = None
        return ProtocolError(sentence)


class FrameDecoder:
    """Takes the bodies of one connection's records, gives its frames. `cap` is the longest frame body in bytes."""

    __slots__ = ("_body", "_cap", "_code", "_head", "_missing", "_short", "long")

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._short = min(cap, _CHAINED)            # the same for `RecordOpener.lone_frame`: a number quickly compared
        self.long = False                           # a long frame has begun and not ended, and there is a `room`
        self._head = b""                            # begun header, less than 5 bytes
        self._body: Any = None                      # begun body, see `_space_for`; of it ...
        self._missing = 0                           # ... so much has not come yet
        self._code = 0

    @property
    def between_frames(self) -> bool:
        """Whether the stream may end here: nothing has begun and not ended."""
        return self._body is None and not self._head

    @property
    def room(self) -> memoryview:
        """While `long`: memory for what has not come yet of the frame. What was put at its start need not be copied
        when it is fed."""
        return self._body[len(self._body) - self._missing:]

    def feed(self, data: bytes) -> list:
        """Take what came; return the frames now complete as (code, body) pairs.

        A body is bytes, or a bytearray of its own when it is longer than 64 KiB and came in pieces, or a memoryview
        when it is longer than 1 MiB, see `deserialize_frame`. Raises ProtocolError for a frame longer than the cap.
        """
        if self._body is None and not self._head and type(data) is bytes and len(data) >= 5:
            size, code = _FRAME.unpack_from(data)
            if size + 5 == len(data) <= self._cap:      # one whole frame, too long for `lone_frame`
                return [(code, data[5:])]
        frames: list = []
        position = 0
        if self._body is not None:
            position = self._continue(self._body, data, frames)
        if position or type(data) is not bytes:
            if position == len(data):
                return frames
            data = bytes(memoryview(data)[position:])
        if self._head:
            data, self._head = self._head + data, b""
        self._parse(data, frames)
        return frames

    def _begin(self, code: int, size: int, data: bytes) -> None:
        """A frame begins whose end has not come yet; `data` is what has come of its body."""
        self._code, self._missing = code, size
        self._body = _space_for(size, data)
        self.long = type(self._body) is memoryview
        self._continue(self._body, data, [])

    def _continue(self, body: Any, data: bytes, frames: list) -> int:
        """Add the start of `data` to the frame that has begun; return how much of it that took."""
        taken = min(len(data), self._missing)
        if type(body) is bytearray:
            body += memoryview(data)[:taken]
        elif type(data) is not memoryview or data.obj is not body.obj:      # else it lies there already
            start = len(body) - self._missing
            body[start:start + taken] = memoryview(data)[:taken]
        self._missing -= taken
        if not self._missing:
            self._body, self.long = None, False
            if type(body) is memoryview and type(body.obj) is bytearray:
                view, body = body, body.obj
                view.release()          # or it could not become the message
            frames.append((self._code, body if len(body) > _ASSEMBLED else bytes(body)))
        return taken

    def _parse(self, data: bytes, frames: list) -> None:
        """The hot loop: whole frames of `data`, which begins with a header."""
        unpack, append, cap, short = _FRAME.unpack_from, frames.append, self._cap, self._short
        position, end = 0, len(data)
        last = end - _FRAME.size
        while position <= last:
            size, code = unpack(data, position)
            if size > short and size > cap:         # the first is quickly compared, and there are few others
                raise ProtocolError("a message of %d bytes was announced, more than the %d allowed" % (size, cap))
            start = position + 5
            position = start + size
            if position > end:
                self._begin(code, size, data[start:])
                return
            append((code, data[start:position]))
        self._head = data[position:]


def _head_checks(key: Optional[bytes]) -> Any:
    """What the heads of one lane's chunks are put into, one after the other, for their checks."""
    return hashlib.sha256() if key is None else hashlib.blake2b(key=key, digest_size=MAC_BYTES)


class ChunkWriter:
    """Makes the chunks of one lane; `key` is the lane's key of this direction, if it has one. What `chunk` gives counts
    when `sent` says so: until then it may be made anew, with another content."""

    __slots__ = ("_checks", "_next")

    def __init__(self, key: Optional[bytes]) -> None:
        self._checks = self._next = _head_checks(key)

    def chunk(self, position: int, body: Any) -> bytes:
        """A chunk with the bytes that are at `position` among all those of the direction."""
        head = _CHUNK_HEAD.pack(position, len(body))
        self._next = self._checks.copy()
        self._next.update(head)
        return head + self._next.digest()[:_CHECK_BYTES] + body

    def sent(self) -> None:
        """The last chunk is on its way, at least the beginning of it."""
        self._checks = self._next

    def end(self) -> bytes:
        """What says that no chunk follows; it counts at once."""
        chunk = self.chunk(_LANE_ENDS, b"")
        self.sent()
        return chunk


class ChunkReader:
    """Takes the bytes of one lane apart; `key` as for the writer. `position` is where, among all bytes of the
    direction, what comes next on this lane can begin at the earliest: a lane's chunks are in order, only those of
    different lanes overtake each other. `ended`: the other end has said that none follow."""

    __slots__ = ("position", "ended", "_checks", "_head", "_missing")

    def __init__(self, key: Optional[bytes]) -> None:
        self.position = 0
        self.ended = False
        self._checks = _head_checks(key)
        self._head = b""                # begun header, less than 20 bytes
        self._missing = 0               # bytes of the chunk that have not come

    def feed(self, data: Any) -> list:
        """Take what came, cut anyhow; return what it has of bodies as (position, bytes). Raises ProtocolError for a
        head that is not the sender's next one, and for a chunk that is too long, lies before what came earlier, or
        comes behind the end."""
        pieces, at, end, whole = [], 0, len(data), _CHUNK_HEAD.size + _CHECK_BYTES
        while at < end:
            if self._missing:
                piece = bytes(data[at:at + self._missing])
                pieces.append((self.position, piece))
                self.position += len(piece)
                self._missing -= len(piece)
                at += len(piece)
            else:
                part = bytes(data[at:at + whole - len(self._head)])
                self._head += part
                at += len(part)
                if len(self._head) == whole:
                    head, self._head = self._head, b""
                    self._begin(head[:_CHUNK_HEAD.size], head[_CHUNK_HEAD.size:])
        return pieces

    def _begin(self, head: bytes, check: bytes) -> None:
        """A head has come."""
        self._checks.update(head)
        if not _equal(self._checks.digest()[:_CHECK_BYTES], check):
            raise ProtocolError("a chunk was changed, repeated, left out or forged on its way (wrong check)")
        position, size = _CHUNK_HEAD.unpack(head)
        if size > RECORD_CAP:
            raise ProtocolError("a chunk of %d bytes was announced, more than the %d allowed" % (size, RECORD_CAP))
        if self.ended or size and position < self.position:
            raise ProtocolError("a chunk at %d came behind %s" % (
                position, "the last one" if self.ended else "what ends at %d" % self.position))
        if size:
            self.position, self._missing = position, size
        else:
            self.ended = position == _LANE_ENDS


class Assembly:
    """Puts what has come by several lanes in order again, each byte once. `position` is how many bytes have come in
    order since the beginning; `held` how many are kept, those that wait for their turn and those not taken yet, with
    `_PIECE_COSTS` for each piece, as somebody could send them singly."""

    __slots__ = ("held", "position", "_early", "_ready")

    def __init__(self) -> None:
        self.position = 0
        self.held = 0
        self._early: list = []          # heap of (position, bytes): something before them has not come
        self._ready: deque = deque()    # bytes in order that were not taken yet

    @property
    def ready(self) -> bool:
        """Whether `read_into` would give anything."""
        return bool(self._ready)

    def add(self, position: int, piece: bytes) -> None:
        """A piece has come. Raises ProtocolError if a byte of it, or of what waited for it, has come before."""
        heappush(self._early, (position, piece))
        self.held += len(piece) + _PIECE_COSTS
        while self._early and self._early[0][0] <= self.position:
            position, piece = heappop(self._early)
            if position < self.position:
                raise ProtocolError("byte %d came twice" % position)
            self._ready.append(piece)
            self.position += len(piece)

    def read_into(self, space: memoryview) -> int:
        """Move bytes that are in order into `space`, as many as there are and fit; returns how many."""
        size, ready = 0, self._ready
        while ready and size < len(space):
            piece = ready.popleft()
            taken = min(len(piece), len(space) - size)
            space[size:size + taken] = piece[:taken]
            size += taken
            self.held -= taken
            if taken < len(piece):
                ready.appendleft(piece[taken:])
            else:
                self.held -= _PIECE_COSTS
        return size


# ======================================================================================================================
# 7. Handshake (pure)                                                    both ends prove the secret, then share two keys
# ======================================================================================================================
#
# Spec. B accepted the connection and speaks first, A dialled. K is the cluster's 32-byte key (empty when the cluster
# runs open: then the MACs prove nothing). M is all that was said before, both ways, plus the message itself.
#
#   B  HELLO    4s 'PYCL' | u8 lowest | u8 highest version | u8 flags | 32s nonce
#   A  START    'S' | u8 flags     only if TLS is agreed on; all that follows is below TLS, of which A is the client
#   A  AUTH     'A' | u8 version | u8 flags | 32s nonce | 16s process id | u16 n | n info | 32s HMAC(K, 'A' M)
#   B  ACCEPT   'B' | 16s process id | u16 n | n info | 32s HMAC(K, 'B' M)
#   or REFUSE   'R' | u8 code      instead of any message but the first; both ends then raise AuthenticationError
#
#   state       waits for             next, having checked
#   A hello     HELLO                 answer: magic, common version, terms (else REFUSE); tls, having said START
#   B proof     AUTH, START, REFUSE   done:   the same, then the MAC, then info, cluster, not ourselves (else REFUSE)
#                                     tls:    after START, terms
#   both tls    `bind`, A: REFUSE     A answer, having said AUTH; B proof
#   A answer    ACCEPT, REFUSE        done:   the MAC, then info, cluster, not ourselves
#
# Terms. Each end says in its flags what it can and wants, B in HELLO, A in START and AUTH; from both follows the
# channel, at both ends by the same rule (`_agreed`):
#
#   bit 0  authenticates             both or neither
#   bit 1  has a certificate         both: TLS with certificates; one alone is refused
#   bit 2  can encrypt with K        both, and bit 3 of either: TLS 1.3 by a shared key, HMAC(K, 'pycoslite tls-psk')
#   bit 3  wants that                (the other end seems to be another host)
#   bit 4  wants nothing else        of either: refused when there would be no TLS
#
# Who sits in between and takes a bit away, so that the two speak in clear, leads them to different channels, which B
# notices (REFUSE, 'downgraded'), or, if he changes both statements, to different M, so that no MAC holds. With TLS, M
# has in its place what is said to `bind`: the Finished message of TLS, which depends on both certificates and on
# keys that only the two ends of that very TLS connection have. So nobody can end TLS in between and pass on the rest,
# not even who holds a certificate of the cluster, but not its secret.
#
# Who only connects learns a nonce and has nothing to guess against: B proves itself last. Letters in the MACs stop
# reflection, both nonces stop replay; versions, flags, ids and info (which names the cluster) are all under the MACs.
# Keys: HKDF (extract with all that was said as salt, expand once per direction); none below TLS, which has its own.
# JSON is read only after its MAC holds.

# What this section does not do: open or close connections, keep time, begin TLS, choose what to offer. That is for the
# link (section 19), the deadline of `Settings.handshake_s` included; the secret and the certificates are section 17's.
# An object serves one connection and one thread. Its state is `_step`, the method that takes the next message: it looks
# at what has come (`_inbox`), gives 0 while that is less than a message, else the message's length, and has set the
# next step by then; None when it is over, by `result` or by an exception. `_said` is M. A message is added to it when
# it has been checked, the own ones when they are queued: both ends add the same bytes in the same order.
#
# A REFUSE is not under a MAC, as the ends may have no key in common. So whoever sits in between can forge one: he can
# prevent a connection, which he can do anyway, and nothing that is believed follows from it.

_MAGIC = b"PYCL"
_HELLO = struct.Struct(">4sBBB32s")
_START = struct.Struct(">cB")
_AUTH = struct.Struct(">cBB32s16sH")
_ACCEPT = struct.Struct(">c16sH")
_INFO_BYTES = 2048              # longest info: it has up to 16 addresses, and room for facts that other modules add
_PROOF_BYTES = 32               # HMAC-SHA-256

_AUTHENTICATED, HAS_CERTIFICATE, CAN_ENCRYPT, WANTS_ENCRYPTION, DEMANDS_ENCRYPTION = 1, 2, 4, 8, 16     # flags
PLAIN, BY_CERTIFICATES, BY_SECRET = "", "certificates", "psk"           # channels


def _agreed(one: int, other: int) -> str:
    """The channel that follows from the flags of both ends."""
    if one & other & HAS_CERTIFICATE:
        return BY_CERTIFICATES
    if one & other & CAN_ENCRYPT and (one | other) & WANTS_ENCRYPTION:
        return BY_SECRET
    return PLAIN


class Refusal:
    """Codes of REFUSE; `Handshake.refusal` has the one a handshake ended with.

    They are on the wire: a number keeps its meaning for ever, new ones are added at the end. Each has its sentence in
    `_REFUSALS`, which must be true at both ends: it is raised at the one that refuses and at the one that is refused.
    """

    SECRET = 1
    CLUSTER = 2
    VERSION = 3
    ITSELF = 4
    BUSY = 5
    ONE_SIDED = 6
    ONE_CERTIFICATE = 7
    CERTIFICATE = 8
    DOWNGRADED = 9
    UNENCRYPTED = 10


_REFUSALS = {
    Refusal.SECRET: "the other end has another secret: copy ~/.pycoslite/secret from one machine to the other, "
                    "or set PYCOSLITE_SECRET_FILE",
    Refusal.CLUSTER: "the other end belongs to another cluster than this one (%(cluster)r): "
                     "start both with the same cluster name",
    Refusal.VERSION: "the other end speaks another version of the protocol (this one %(lowest)d to %(highest)d): "
                     "install the same release of pycoslite on both machines",
    Refusal.ITSELF: "the address leads back to this process itself: name another process's address and port",
    Refusal.BUSY: "too many connections wait to be authenticated at the accepting end: try again in a moment",
    Refusal.ONE_SIDED: "one end demands authentication and the other runs without (this one %(mode)s): "
                       "start both with the same secret, or both without authentication (--no-auth)",
    Refusal.ONE_CERTIFICATE: "one end has a certificate and the other none (this one %(certificate)s): start both with "
                             "certfile and keyfile, or both without",
    Refusal.CERTIFICATE: "a certificate was shown that does not belong to the cluster: without cafile both ends need "
                         "copies of one pair of certfile and keyfile, with certname a certificate of that name",
    Refusal.DOWNGRADED: "the connection is not encrypted although both ends can do that: something between them "
                        "changes what they say to each other, so look at what the connection passes through",
    Refusal.UNENCRYPTED: "one end demands encryption (PYCOSLITE_ENCRYPT=demand) and the connection would have none: "
                         "run Python 3.13 or newer at both ends, or start both with certfile and keyfile",
}
_UNKNOWN_REFUSAL = ("the other end refused the connection with a reason (%(code)d) that this release does not know: "
                    "install the same release of pycoslite on both machines")


@dataclasses.dataclass
class HandshakeResult:
    """What a finished handshake knows; the keys are None in an open cluster, and below TLS."""

    peer_id: bytes                      # 16 bytes: the other process
    peer_info: dict                     # what it says about itself
    send_key: Optional[bytes] = dataclasses.field(repr=False)       # for RecordSealer
    receive_key: Optional[bytes] = dataclasses.field(repr=False)    # for RecordOpener
    version: int                        # of the protocol, from here on
    leftover: bytes = b""               # what came behind the handshake: the first bytes for RecordOpener
    channel: str = PLAIN                # what is below it: PLAIN, BY_CERTIFICATES or BY_SECRET
    flags: int = 0                      # what the other end said that it can and wants
    name: str = ""                      # of this very connection, the same at both ends and no secret


class Handshake:
    """One end of a connection's first exchange; bytes in, bytes out.

    `role` is 'dial' or 'accept'; `key` 32 bytes or None for an open cluster; `process_id` 16 bytes; `info` what the
    other end is told (JSON, at most 2 KiB with the cluster's name, which is added); `nonce` 32 random bytes, never used
    twice. Send what `data_to_send` gives at once and after each `receive`, also when that raised: it tells the other
    end why, close after it. `result` is None until this end is satisfied; `refusal` is a code of `Refusal` when the
    handshake ended with one.

    When `channel` is no longer PLAIN, START has crossed and the rest is said below TLS: send what there is to send,
    begin TLS with `ciphertext`, and when its handshake is done `bind` the two; from then on `receive` takes what TLS
    has decrypted, and what `data_to_send` gives goes through it.
    """

    VERSIONS = (1, 1)                   # lowest and highest version of the protocol spoken here

    def __init__(self, role: str, key: Optional[bytes], process_id: bytes, info: dict, nonce: bytes,
                 cluster: str) -> None:
        self.result: Optional[HandshakeResult] = None
        self.refusal: Optional[int] = None
        self.peer_versions: Optional[tuple] = None      # dialling end: what HELLO said, once it has come
        self.channel = PLAIN
        self._role = role
        self._key = key
        self._flags = 0 if key is None else _AUTHENTICATED
        self._process_id = process_id
        self._info = json.dumps(dict(info, cluster=cluster), separators=(",", ":")).encode()
        self._nonce = nonce
        self._cluster = cluster
        self._version = 0
        self._peer_flags = 0
        self._refusable = role == "dial"    # the other end may answer START with REFUSE
        self._inbox = bytearray()
        self._outbox = b""
        self._said = b""                # everything said so far, both ways
        for name, right in (("role", role in ("dial", "accept")), ("key", key is None or len(key) == 32),
                            ("process_id", len(process_id) == 16), ("nonce", len(nonce) == 32),
                            ("info", len(self._info) <= _INFO_BYTES)):
            if not right:
                raise MisuseError("a handshake takes role 'dial' or 'accept', a key of 32 bytes or None, 16 bytes of "
                                  "process id, 32 of nonce, up to %d of info; wrong: %s" % (_INFO_BYTES, name))
        self._labels = (b"dial to accept", b"accept to dial")       # what we send, what we receive
        self._step: Optional[Callable[[], int]] = self._on_hello    # takes one message; returns its length or 0
        if role == "accept":
            self._labels = self._labels[::-1]
            self._step = self._on_proof
            self.offer(0)

    def offer(self, flags: int) -> None:
        """Say what TLS this end can do and wants: HAS_CERTIFICATE, or CAN_ENCRYPT, WANTS_ENCRYPTION and
        DEMANDS_ENCRYPTION. Before anything is sent or received; without it there is no TLS."""
        self._flags |= flags
        if self._role == "accept":
            self._outbox = self._said = b""
            self._say(_HELLO.pack(_MAGIC, self.VERSIONS[0], self.VERSIONS[1], self._flags, self._nonce))

    def ciphertext(self) -> bytes:
        """What came behind START and belongs to TLS; given out once."""
        data, self._inbox = bytes(self._inbox), bytearray()
        self._refusable = self._refusable and not data
        return data

    def bind(self, channel: bytes) -> None:
        """TLS stands: go on below it. `channel` is what both ends know of this TLS connection and nobody can have
        another one agree to (its first Finished message). Raises MisuseError where no TLS was agreed on."""
        if self._step != self._on_refusal:
            raise MisuseError("a handshake is bound to TLS once, after START")
        self._said += _U32.pack(len(channel)) + channel
        if self._role == "dial":
            self._authenticate()
        else:
            self._step = self._on_proof

    def data_to_send(self) -> bytes:
        """What is to be sent now; each byte is given out once."""
        data, self._outbox = self._outbox, b""
        return data

    def receive(self, data: bytes) -> None:
        """Take what came, cut anyhow. Raises AuthenticationError (PeerBusy for the code BUSY) or ProtocolError; the
        handshake is over then, and what `data_to_send` still has is the last word. Raises MisuseError after the end. At
        most `Settings.handshake_bytes` are kept of what is not a whole message yet."""
        if self._step is None:
            raise MisuseError("this handshake is over: what comes now belongs to RecordOpener")
        self._inbox += data
        try:
            while self._step is not None:
                used = self._step()
                if not used:
                    break
                del self._inbox[:used]
            if self.result is not None:
                self.result.leftover, self._inbox = bytes(self._inbox), bytearray()
            elif len(self._inbox) > settings.handshake_bytes:
                raise ProtocolError("the other end says more than a handshake has")
        except PycosError:
            self._step, self._inbox = None, bytearray()
            raise

    def refuse(self, code: int) -> AuthenticationError:
        """End the handshake with a code of `Refusal`: REFUSE is queued; returns the error for this end, which the
        caller raises or reports. Also for reasons that lie outside: no room (BUSY), a certificate that does not do."""
        self._outbox += b"R" + bytes((code,))
        return self._refused(code)

    def _refused(self, code: int) -> AuthenticationError:
        """The error of a refusal, by either end, with what this end has and wants filled in."""
        self._step, self.refusal = None, code
        kind = PeerBusy if code == Refusal.BUSY else AuthenticationError
        return kind(_REFUSALS.get(code, _UNKNOWN_REFUSAL) % dict(
            code=code, cluster=self._cluster, lowest=self.VERSIONS[0], highest=self.VERSIONS[1],
            mode="runs without" if self._key is None else "demands it",
            certificate="has one" if self._flags & HAS_CERTIFICATE else "has none"))

    def _say(self, message: bytes) -> None:
        """Queue a message of this end, its proof included: from here on it has been said."""
        self._outbox += message
        self._said += message

    def _prove(self, letter: bytes, message: bytes) -> bytes:
        """Proof that `message`, by the end called `letter`, was said after all that was said before."""
        return hmac.digest(self._key or b"", letter + self._said + message, "sha256")

    def _on_hello(self) -> int:
        """Dialling end: HELLO in, AUTH out, or START."""
        if self._inbox[:4] != _MAGIC[:len(self._inbox)]:
            raise ProtocolError("what answers there is not pycoslite: it began with %r" % bytes(self._inbox[:16]))
        if len(self._inbox) < _HELLO.size:
            return 0
        _, lowest, highest, flags, _ = _HELLO.unpack_from(self._inbox)
        self.peer_versions = (lowest, highest)
        version = min(highest, self.VERSIONS[1])
        self.channel = self._check_terms(version, version >= lowest, flags)
        self._said += bytes(self._inbox[:_HELLO.size])
        if self.channel == PLAIN:
            self._authenticate()
        else:
            self._say(_START.pack(b"S", self._flags))
            self._step = self._on_refusal
        return _HELLO.size

    def _authenticate(self) -> None:
        """Dialling end: AUTH out."""
        message = _AUTH.pack(b"A", self._version, self._flags, self._nonce, self._process_id, len(self._info))
        message += self._info
        self._say(message + self._prove(b"A", message))
        self._step = self._on_answer

    def _on_start(self) -> int:
        """Accepting end: START in."""
        if len(self._inbox) < _START.size:
            return 0
        message = bytes(self._inbox[:_START.size])
        self.channel = self._check_terms(self.VERSIONS[1], True, message[1])
        if self.channel == PLAIN:
            raise self.refuse(Refusal.DOWNGRADED)
        self._said += message
        self._step = self._on_refusal
        return _START.size

    def _on_refusal(self) -> int:
        """TLS begins; in its place only the accepting end can have something to say, which is that it will not."""
        if self._refusable and self._inbox[:1] == b"R" and len(self._inbox) >= 2:
            raise self._refused(self._inbox[1])
        return 0

    def _on_proof(self) -> int:
        """Accepting end: AUTH in, ACCEPT out; or START."""
        if self._inbox[:1] == b"S" and self.channel == PLAIN:
            return self._on_start()
        message = self._whole_message(b"A", _AUTH)
        if not message:
            return 0
        _, version, flags, _, peer_id, size = _AUTH.unpack_from(message)
        if self._check_terms(version, True, flags) != self.channel:
            raise self.refuse(Refusal.DOWNGRADED)
        self._check_proof(b"A", message)
        peer_info = self._admit(peer_id, message[_AUTH.size:_AUTH.size + size])
        answer = _ACCEPT.pack(b"B", self._process_id, len(self._info)) + self._info
        self._say(answer + self._prove(b"B", answer))
        self._finish(peer_id, peer_info)
        return len(message)

    def _on_answer(self) -> int:
        """Dialling end: ACCEPT in, and done."""
        message = self._whole_message(b"B", _ACCEPT)
        if not message:
            return 0
        _, peer_id, size = _ACCEPT.unpack_from(message)
        self._check_proof(b"B", message)
        self._finish(peer_id, self._admit(peer_id, message[_ACCEPT.size:_ACCEPT.size + size]))
        return len(message)

    def _whole_message(self, letter: bytes, layout: struct.Struct) -> bytes:
        """The message of that letter once it is here whole, else nothing; `layout` ends with info's length."""
        inbox = self._inbox
        if inbox[:1] == b"R" and len(inbox) >= 2:
            raise self._refused(inbox[1])
        if inbox[:1] not in (b"", b"R", letter):
            raise ProtocolError("what comes from there is not pycoslite: it began with %r" % bytes(inbox[:16]))
        if inbox[:1] != letter or len(inbox) < layout.size:
            return b""
        size = layout.unpack_from(inbox)[-1]
        if size > _INFO_BYTES:
            raise ProtocolError("%d bytes of info were announced, more than the %d allowed" % (size, _INFO_BYTES))
        whole = layout.size + size + _PROOF_BYTES
        return bytes(inbox[:whole]) if len(inbox) >= whole else b""

    def _check_terms(self, version: int, common: bool, flags: int) -> str:
        """The channel that both ends agree on; refuse unless both speak `version`, both authenticate or neither does,
        likewise for certificates, and whoever demands encryption has it."""
        if not common or not self.VERSIONS[0] <= version <= self.VERSIONS[1]:
            raise self.refuse(Refusal.VERSION)
        if (flags ^ self._flags) & _AUTHENTICATED:
            raise self.refuse(Refusal.ONE_SIDED)
        if (flags ^ self._flags) & HAS_CERTIFICATE:
            raise self.refuse(Refusal.ONE_CERTIFICATE)
        channel = _agreed(flags, self._flags)
        if channel == PLAIN and (flags | self._flags) & DEMANDS_ENCRYPTION:
            raise self.refuse(Refusal.UNENCRYPTED)
        self._version, self._peer_flags = version, flags
        return channel

    def _check_proof(self, letter: bytes, message: bytes) -> None:
        """Refuse unless `message` ends with the proof of the other end, called `letter`; then it has been said."""
        claim, proof = message[:-_PROOF_BYTES], message[-_PROOF_BYTES:]
        if not hmac.compare_digest(self._prove(letter, claim), proof):
            raise self.refuse(Refusal.SECRET)
        self._said += message

    def _admit(self, peer_id: bytes, text: bytes) -> dict:
        """Info of the other end, whose proof held; refuse another cluster and ourselves."""
        try:
            info = json.loads(text)
        except (ValueError, RecursionError):
            info = None
        if not isinstance(info, dict):
            raise ProtocolError("what the other end says about itself is not a JSON object")
        if info.get("cluster") != self._cluster:
            raise self.refuse(Refusal.CLUSTER)
        if peer_id == self._process_id:
            raise self.refuse(Refusal.ITSELF)
        return info

    def _finish(self, peer_id: bytes, peer_info: dict) -> None:
        """All is checked: make the keys and the result. The keys are HKDF-SHA-256 (RFC 5869) with all that was said as
        salt, so that no two connections have the same, and one block of output for each direction, by its label."""
        send_key = receive_key = None
        if self._key is not None and self.channel == PLAIN:
            extracted = hmac.digest(self._said, self._key, "sha256")
            send_key, receive_key = (hmac.digest(extracted, label + b"\x01", "sha256") for label in self._labels)
        self.result = HandshakeResult(peer_id, peer_info, send_key, receive_key, self._version, channel=self.channel,
                                      flags=self._peer_flags, name=hashlib.sha256(self._said).hexdigest()[:32])
        self._step = None


def keyed_digest(key: Optional[bytes], data: bytes) -> bytes:
    """HMAC-SHA-256 of `data`, 32 bytes, for messages that are no connection's (datagrams of discovery) and for keys
    that are made from the cluster's; without a key it proves nothing. What is signed must say what it is for, or it
    could be used in another place. Any thread."""
    return hmac.digest(key or b"", data, "sha256")


def same_digest(one: bytes, other: bytes) -> bool:
    """Whether two digests are equal, in a time that does not tell where they differ: with ``==`` somebody who measures
    could find a valid one byte by byte. Any thread."""
    return hmac.compare_digest(one, other)


# ======================================================================================================================
# 8. Session (pure)                                                   exactly once and in order, whatever connections do
# ======================================================================================================================
#
# What is promised. Between two processes that both live, each sequenced frame arrives exactly once, and in the order of
# sending, whatever becomes of connections. When one of them ends, or gives the other up, each frame of the survivor's
# has arrived, or is named by `lost`, as 'may have arrived' or as 'never sent'; nothing is repeated in a new session.
#
# Spec. One per pair of processes; it outlives connections and ends with either process, or when it is given up. Each
# end numbers its frames 1, 2, 3 ... without sending the numbers; the other counts what it takes. A frame is in turn:
#
#   queued -> batched (a batch becomes one record) -> on its way, kept -> confirmed by a count, forgotten
#                          ^______ a new connection puts all kept batches back ______|
#
# Frames of its own (section 6 has their header); they belong to a connection, are not counted and never repeated:
#
#   SESSION  code 1   offset 0  u64  id of the sender's session, random, not 0
#                            8  u64  id of the receiver's session as far as it is known, else 0
#                           16  u64  sequenced frames that the sender has taken in this session
#   ACK      code 2   offset 0  u64  the same count, later on; it never falls
#
# A connection that both ends use is in turn
#
#   closed    (`disconnected`)   everything is queued; `queue_messages` of it at most before senders are held back
#   greeting  (`connected`)      SESSION is the first frame each way; nothing sequenced before the other's is in
#   open      (`on_session`)     frames flow, ACK confirms; a second SESSION, or a count that cannot be, ends it
#
# What SESSION leads to. L, R: our id and what we know of the other's (0: nothing); l, r, n: the fields that came.
#
#   R == 0 or l      r == 0 or L     what it means                               result
#   R == 0, yes      r == 0, yes     first contact                               'new'       R = l
#   R == 0, yes      r == L, yes     our SESSION arrived once, theirs never did  'new'       R = l
#   R == l, yes      yes             the connection was re-made                  'resumed'   n confirmed, rest again
#   R == other       any             the other end gave our session up           'mismatch'  restart(): ours is lost
#   R == 0           r == other      our own restart; they do not know yet       'mismatch'  restart(): nothing to do
#   R == l           r == other      cannot be: they know both ids               'mismatch'  restart(): ours is lost
#
# After a mismatch the driver calls restart() and re-makes the connection; the second exchange then agrees.
#
# Confirmations. What was taken is confirmed after `ack_delay_s` at the latest, at once after `ack_messages` or
# `ack_bytes`; it rides along with what is sent anyway once half of the delay is over. The receiver may withhold it
# while it cannot pass on what it gets: that fills the sender's window, and nothing else stops.
#
# Window. Frames are always taken; `push` tells when the window is full, and `below_window` until it is half empty
# again, so that senders wait in long strides. It is `window_bytes` and `window_messages` of unconfirmed frames, while
# closed `queue_messages`, as there nothing is on its way: it only piles up for a peer that may be dead. What is counted
# is the memory that frames take, which the driver knows; so that memory is bounded, at every size of message.
#
# Invariants (checked by the tests at each step, with a network that cuts, loses, doubles, reorders and forges):
#   - confirmed <= taken by the other end <= sent <= numbered; base <= confirmed, as half a batch may be confirmed
#   - kept batches + ready batches + the open batch = all that is unconfirmed, in order; the window counts exactly these
#   - one batch costs one entry, so a confirmation costs per batch, not per frame
#   - a batch longer than its record (a long frame) is handed out over several, nothing in between; a new connection
#     starts at its first byte again, or at the first byte of the first frame not confirmed
#   - a frame was 'never sent' only if no connection of this session was ever handed its first byte

_RIDERS = 1024                  # bytes of a record kept free for link frames that ride along with a full batch
_NO_TAG = (None,)               # tags of a batch of one frame that has none

Unconfirmed = namedtuple("Unconfirmed", "tag frame sent")
Unconfirmed.__doc__ = "A frame given up: its tag, its bytes or buffers, and whether it may have arrived (`sent`)."


def _frame_bytes(frame: Any) -> int:
    return len(frame) if type(frame) is bytes else sum(map(len, frame))


class Session:
    """What keeps frames in order and exactly once between two processes while both live. Not thread-safe.

    `local_sid` is a random number, 1 to 2**64 - 1; `limits` a `Settings` (window_*, ack_*, record_bytes are used).
    """

    # `below_window`: whether senders may go on; False once the window is full, True again when it is half empty. The
    # window is `window_bytes` and `window_messages`, or `queue_messages` while the session is not open.
    __slots__ = ("_ack_at", "_ack_bytes", "_ack_frames", "_base", "_batch_bytes", "_clear", "_confirmed", "_control",
                 "_early", "_frames", "_kept", "_limits", "_most_bytes", "_most_frames", "_nbytes", "_open", "_ready",
                 "_received", "_reserve", "_rest", "_ride_at", "_room_bytes", "_room_frames", "_sent", "_sent_before",
                 "_tags", "_withheld", "below_window", "has_more", "local_sid", "remote_sid")

    def __init__(self, local_sid: int, limits: Optional[Settings] = None) -> None:
        self._limits = limits or settings
        self._batch_bytes = min(self._limits.record_bytes, RECORD_CAP) - _RIDERS
        self._most_frames, self._most_bytes = self._limits.ack_messages, self._limits.ack_bytes     # unconfirmed
        self._withheld = False                  # nothing is confirmed for now, see `withhold`
        self._begin(local_sid)

    def _begin(self, local_sid: int) -> None:
        if not 0 < local_sid < 1 << 64:
            raise ValueError("a session id is a number from 1 to 2**64 - 1, not %r" % (local_sid,))
        self.local_sid = local_sid
        self.remote_sid = 0
        self._frames: list = []                 # the open batch: frames, ...
        self._tags: list = []                   # ... their tags, ...
        self._nbytes = 0                        # ... their bytes
        self._ready: deque = deque()            # closed batches (frames, tags, nbytes) to be sent
        self._kept: deque = deque()             # those on their way (number of the last frame, nbytes, frames, tags)
        self._rest: deque = deque()             # buffers of the last kept batch not handed out yet
        self._control: list = []                # link frames to go before anything else
        self._open = False                      # the other end's SESSION of this connection is in
        self._clear = False                     # it is, and nothing is to be sent: the next frame may pass by the queue
        self.has_more = False                   # the last `next_batch` left something for the next one
        self._base = 0                          # frames before the first kept (or ready) batch
        self._confirmed = 0                     # frames the other end has, >= _base (it may confirm half a batch)
        self._sent = 0                          # frames handed out on this connection or confirmed
        self._sent_before = 0                   # most that were on the session's earlier connections
        self._received = 0                      # frames of the other end taken
        self._ack_bytes = self._ack_frames = 0  # taken and not confirmed yet
        self._ack_at: Optional[float] = None    # when that must be confirmed; 0.0: at once
        self._early = self._limits.ack_delay_s / 2      # so much before that time it rides along with a batch, ...
        self._ride_at = math.inf                # ... that is, from then on
        self._room_bytes = self._limits.window_bytes
        self._room_frames = self._limits.window_messages
        self._reserve = self._closed_reserve()  # the part of that which only an open session may use
        self.below_window = True

    def _closed_reserve(self) -> int:
        return max(0, self._limits.window_messages - self._limits.queue_messages)

    # ---- sending

    @property
    def flooded(self) -> bool:
        """Whether the window is full twice over: somebody goes on sending although he should not."""
        limits, reserve = self._limits, self._reserve
        return (self._room_bytes <= -limits.window_bytes
                or self._room_frames <= 2 * reserve - limits.window_messages)

    @property
    def unconfirmed_bytes(self) -> int:
        """Bytes queued or on their way."""
        return self._limits.window_bytes - self._room_bytes

    @property
    def unconfirmed_frames(self) -> int:
        """Frames queued or on their way."""
        return self._limits.window_messages - self._room_frames

    def push(self, frame: Any, nbytes: int, tag: Any = None) -> bool:
        """Queue an encoded sequenced frame that takes `nbytes` bytes of memory, at least its length; False when the
        window is full: hold the sender back.

        `frame` is bytes, or a list of buffers for a frame too long to be copied (it gets records of its own, and must
        not change until confirmed). The frame is taken in any case. `tag` comes back from `lost` with the frame.
        """
        self._clear = False
        if type(frame) is not bytes:
            self._close_batch()
            self._ready.append(([frame], [tag], nbytes))
        else:
            if self._nbytes + nbytes > self._batch_bytes:
                self._close_batch()
            self._frames.append(frame)
            self._tags.append(tag)
            self._nbytes += nbytes
        self._room_bytes -= nbytes
        self._room_frames -= 1
        if self._room_bytes <= 0 or self._room_frames <= self._reserve:
            self.below_window = False
        return self.below_window

    def push_all(self, queued: deque) -> None:
        """Take every (frame, nbytes) out of `queued`, a deque to which other threads may append meanwhile, and do with
        it what `push` does. The window is accounted for once for all of them: a message among many costs a third of
        what it would by `push`, and one alone no more."""
        self._clear = False
        frames, tags, used, most = self._frames, self._tags, self._nbytes, self._batch_bytes
        before, kept = used, len(frames)
        while queued:
            frame, nbytes = queued.popleft()
            if type(frame) is bytes and used + nbytes <= most:
                frames.append(frame)
                tags.append(None)
                used += nbytes
                continue
            self._nbytes = used                 # a batch ends here; `push` knows how
            self._room_bytes -= used - before
            self._room_frames -= len(frames) - kept
            self.push(frame, nbytes)
            frames, tags, used = self._frames, self._tags, self._nbytes
            before, kept = used, len(frames)
        self._nbytes = used
        self._room_bytes -= used - before
        self._room_frames -= len(frames) - kept
        if self._room_bytes <= 0 or self._room_frames <= self._reserve:
            self.below_window = False

    def pass_on(self, queued: deque, most: int, now: float) -> Optional[bytes]:
        """What `push_all` and then `next_batch` would do, in a third of their time, for one frame of up to `most` bytes
        while nothing else is to be sent: the life of requests and answers. None, and nothing is done, in any other
        case."""
        if not self._clear or len(queued) != 1 or now >= self._ride_at:
            return None
        one = frame, nbytes = queued.popleft()
        if nbytes > most or type(frame) is not bytes:
            queued.appendleft(one)
            return None
        self._sent = sent = self._sent + 1
        self._kept.append((sent, nbytes, (frame,), _NO_TAG))
        self._room_bytes = room = self._room_bytes - nbytes
        self._room_frames = left = self._room_frames - 1
        if room <= 0 or left <= 0:              # nothing is in reserve: it is open
            self.below_window = False
        return frame

    @property
    def queued_control(self) -> int:
        """How many link frames wait to go out."""
        return len(self._control)

    def control(self, frame: bytes) -> None:
        """Queue a link frame (PING, PONG, BYE) of this connection: it goes out next and is never repeated."""
        self._clear = False
        self._control.append(frame)

    def wants_write(self, now: float) -> bool:
        """Whether `next_batch` would give anything."""
        return bool(self._rest or self._control or self._open and (
            self._ready or self._frames or self._ack_at is not None and now >= self._ack_at))

    def next_batch(self, limit_bytes: int, now: float) -> list:
        """Buffers to seal in one record, not more than `limit_bytes` together; [] when there is nothing to send.

        Link frames come first. What a long batch leaves over comes out of the next calls, before anything else.
        """
        frames = self._frames
        if frames and self._open and self._nbytes <= limit_bytes and not (self._rest or self._ready or self._control) \
                and now < self._ride_at:        # the usual case, in short
            self._sent = sent = self._sent + len(frames)
            self._kept.append((sent, self._nbytes, frames, self._tags))
            self._frames, self._tags, self._nbytes, self.has_more, self._clear = [], [], 0, False, True
            return frames                       # which is also what is kept: not to be changed by who gets it
        if self._rest:
            parts = self._take(self._rest, [], limit_bytes)
            self.has_more = True                # as far as is known
            return parts
        self.has_more = False
        parts, self._control = self._control, []
        if not self._open:
            return parts
        if self._ack_at is not None and now >= self._ack_at - (self._early if self._frames or self._ready else 0):
            parts.append(self._take_ack())      # rides along from half of the delay on, so that few go alone
        if self._ready:
            batch = self._ready.popleft()
            self.has_more = True
        elif self._frames:
            batch = self._frames, self._tags, self._nbytes
            self._frames, self._tags, self._nbytes = [], [], 0
        else:
            self._clear = True
            return parts
        return self._hand_out(batch, parts, limit_bytes)

    def _close_batch(self) -> None:
        if self._frames:
            self._ready.append((self._frames, self._tags, self._nbytes))
            self._frames, self._tags, self._nbytes = [], [], 0

    def _hand_out(self, batch: tuple, parts: list, limit_bytes: int) -> list:
        """Keep `batch` until it is confirmed; return its buffers behind `parts`, up to the limit."""
        frames, tags, nbytes = batch
        self._sent += len(frames)
        self._kept.append((self._sent, nbytes, frames, tags))
        buffers = frames if type(frames[0]) is bytes else frames[0]
        used = sum(map(len, parts))
        if used + nbytes <= limit_bytes:
            return [*parts, *buffers]
        self._rest.extend(buffers)
        self.has_more = True
        return self._take(self._rest, parts, limit_bytes - used)

    @staticmethod
    def _take(rest: deque, parts: list, room: int) -> list:
        """Move the first `room` bytes of `rest` behind `parts`."""
        while rest and room > 0:
            buffer = rest.popleft()
            if len(buffer) > room:
                view = memoryview(buffer)
                rest.appendleft(view[room:])
                buffer = view[:room]
            parts.append(buffer)
            room -= len(buffer)
        return parts

    # ---- confirmations

    @property
    def received(self) -> int:
        """Sequenced frames of the other end taken so far."""
        return self._received

    @property
    def confirmed(self) -> int:
        """Frames of this end that the other one is known to have taken."""
        return self._confirmed

    @property
    def ack_deadline(self) -> Optional[float]:
        """When `next_batch` must be called for a confirmation to go out: a time, 0.0 for at once, None for never."""
        return self._ack_at

    def note_received(self, count: int, nbytes: int, now: float) -> Optional[float]:
        """`count` sequenced frames of `nbytes` bytes in all have been delivered, in order; they are confirmed later.
        Returns `ack_deadline` if that is a new one, else None."""
        if not self._open:
            raise ProtocolError("messages came before the session was announced")
        self._received += count
        self._ack_frames = frames = self._ack_frames + count
        self._ack_bytes = size = self._ack_bytes + nbytes
        if frames >= self._most_frames or size >= self._most_bytes:
            due = 0.0
        elif self._ack_at is None:
            due = now + self._limits.ack_delay_s
        else:
            return None
        if self._withheld:
            return None
        self._ack_at, self._ride_at = due, due - self._early
        return due

    def on_ack(self, count: int) -> bool:
        """The other end has our first `count` frames. True when held senders may go on; ProtocolError if absurd."""
        if count > self._sent:
            raise ProtocolError("%d messages were confirmed, only %d were sent" % (count, self._sent))
        kept, base, room = self._kept, self._base, 0
        while kept and kept[0][0] <= count:
            base, nbytes, _, _ = kept.popleft()
            room += nbytes
        self._room_bytes += room
        self._room_frames += base - self._base
        self._base = base
        if count > self._confirmed:
            self._confirmed = count
        return not self.below_window and self._release()

    def _release(self) -> bool:
        limits = self._limits
        if (self._room_bytes * 2 >= limits.window_bytes
                and self._room_frames * 2 >= limits.window_messages + self._reserve):
            self.below_window = True
        return self.below_window

    def confirm(self) -> None:
        """Let the next batch carry what is not confirmed yet, however little it is."""
        if self._ack_frames and not self._withheld:
            self._ack_at = self._ride_at = 0.0

    def withhold(self, flag: bool) -> None:
        """Confirm nothing from now on (True), or again, and at once (False): the other end's window fills, and its
        senders are held back, while what they have sent cannot be passed on. A new connection's SESSION tells what came
        all the same, so this holds back and does not block."""
        self._withheld = flag
        if flag:
            self._ack_at, self._ride_at = None, math.inf
        else:
            self.confirm()

    def _take_ack(self) -> bytes:
        self._ack_bytes = self._ack_frames = 0
        self._ack_at, self._ride_at = None, math.inf
        return ack_frame(self._received)

    # ---- connections

    def connected(self) -> None:
        """A new connection stands; SESSION is queued on it. Of earlier ones nothing may be handed in any more."""
        self.disconnected()
        self._control = [session_frame(self.local_sid, self.remote_sid, self._received)]

    def disconnected(self) -> None:
        """The connection is gone: all that is unconfirmed is queued again, link frames are forgotten."""
        self._open = self._clear = False
        self._control = []
        self._rest.clear()
        self._ready.extendleft((frames, tags, nbytes) for _, nbytes, frames, tags in reversed(self._kept))
        self._kept.clear()
        self._sent_before = max(self._sent_before, self._sent)
        self._sent = self._base
        self._ack_bytes = self._ack_frames = 0      # SESSION says it anew
        self._ack_at, self._ride_at = None, math.inf
        self._reserve = self._closed_reserve()
        if self._room_frames <= self._reserve:
            self.below_window = False

    def on_session(self, local_sid: int, remote_sid: int, received: int) -> str:
        """SESSION came, with these fields as its sender wrote them: 'new', 'resumed' or 'mismatch', see the table.

        ProtocolError when it contradicts what went before, or when it is the second on this connection.
        """
        if self._open or not local_sid:
            raise ProtocolError("a session was announced twice, or without a number")
        if self.remote_sid not in (0, local_sid) or remote_sid not in (0, self.local_sid):
            return "mismatch"
        if not self._confirmed <= received <= self._sent_before or not remote_sid and self._received:
            raise ProtocolError("%d messages are said to have arrived; between %d and %d can have" % (
                received, self._confirmed, self._sent_before))
        result = "resumed" if self.remote_sid else "new"
        self.remote_sid = local_sid
        self._open = True
        self._reserve = 0
        self._forget(received)
        self._clear = not (self._rest or self._control or self._ready or self._frames)
        return result

    def _forget(self, received: int) -> None:
        """Drop the first frames of what is to be sent again, up to number `received`."""
        ready = self._ready
        while self._base < received:
            frames, tags, nbytes = ready.popleft()
            known = min(len(frames), received - self._base)
            sizes = list(map(_frame_bytes, frames))
            known_bytes = nbytes * sum(sizes[:known]) // sum(sizes)     # they may count for more, see `push`
            if known < len(frames):
                ready.appendleft((frames[known:], tags[known:], nbytes - known_bytes))
            self._base += known
            self._room_bytes += known_bytes
            self._room_frames += known
        self._confirmed = self._sent = received
        if not self.below_window:
            self._release()

    def restart(self, local_sid: int) -> list:
        """After a mismatch: begin a fresh session with that id, unless ours is the fresh one. Returns what is lost."""
        return self.lost(local_sid) if self.remote_sid else []

    def lost(self, local_sid: int) -> list:
        """Give the session up and begin a fresh one with that id; returns its `Unconfirmed` frames in order."""
        self.disconnected()
        self._close_batch()
        found, number = [], self._base
        for frames, tags, _ in self._ready:
            for frame, tag in zip(frames, tags):
                number += 1
                if number > self._confirmed:
                    found.append(Unconfirmed(tag, frame, number <= self._sent_before))
        self._begin(local_sid)
        return found


# ======================================================================================================================
# 9. Poller and wake-up                                            the only place that knows which poller a platform has
# ======================================================================================================================
#
# A poller maps descriptors to handlers, level triggered: `poll` tells what is ready, as often as it is asked, until
# somebody reads or writes it. It belongs to the thread that runs its kernel; only the `Waker` is for others. Pollers
# can be nested (`nests`): the one of the network engine is watched by that of the kernel that drives it.
#
# Level triggered, because a handler may then read as much as is fair and come back later, and because what was there
# before a descriptor was registered is reported, too. The price: whoever registers a descriptor for something must take
# it, or ask for less (`modify`), else the poller never sleeps again.
#
# Asking (`poll`) and calling (`handle`) are two steps, so that a kernel can note in between that it no longer sleeps.
# A descriptor has one handler. What a handler raises is logged and ends nothing: the loop belongs to all.
#
# Waking: the byte that `wake` sends makes the poller return, and nothing else; what there is to do lies in an inbox.
# However many threads wake a sleeping kernel, one byte is under way, and one system call is paid for.

READ, WRITE = 1, 4                      # event bits; epoll's own, so that the fast poller need not translate
_BOTH = READ | WRITE


class _Handlers:
    """What the pollers have in common: who is called for which descriptor."""

    def __init__(self) -> None:
        self._handlers: Dict[int, Callable[[int], None]] = {}

    def handle(self, found: list) -> None:
        """Call the handlers of what `poll` has found, as ``handler(events)``; errors of a descriptor are both events.
        (Looked up only now: one may have unregistered the next.)"""
        handlers = self._handlers
        for fd, events in found:
            handler = handlers.get(fd)
            if handler is not None:
                try:
                    handler(events if events <= _BOTH else _BOTH)
                except Exception:
                    log.exception("a descriptor's handler failed: %r", handler)


class EpollPoller(_Handlers):
    """Readiness of descriptors through epoll (Linux)."""

    nests = True                        # its own descriptor can be watched by another poller

    def __init__(self) -> None:
        super().__init__()
        self._epoll = select.epoll()
        # poll(timeout): wait at most so many seconds (None: for ever); returns what `handle` takes: (descriptor,
        # events) pairs. The system's own, as a method around it would be a fortieth of an echo.
        self.poll = self._epoll.poll

    def register(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Watch `fd`, which must not be watched yet, for `events` (READ, WRITE or both): `handle` calls
        ``handler(events)`` with those that are due. Raises OSError, PermissionError for a file on a disk."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def modify(self, fd: int, events: int) -> None:
        """Watch a registered `fd` for other events; 0 keeps it registered and silent but for errors."""
        self._epoll.modify(fd, events)

    def unregister(self, fd: int) -> None:
        """Stop watching `fd`; harmless when it is not watched."""
        if self._handlers.pop(fd, None) is not None:
            try:
                self._epoll.unregister(fd)
            except OSError:             # closed before it was unregistered: the system has forgotten it already
                pass

    def fileno(self) -> int:
        """Descriptor that is readable when any watched descriptor is ready."""
        return self._epoll.fileno()

    def close(self) -> None:
        """Forget everything and give the descriptor back."""
        self._handlers.clear()
        self._epoll.close()


class SelectorPoller(_Handlers):
    """The same over `selectors`, for platforms without epoll (kqueue on macOS, select on Windows).

    It tells no errors of its own: these platforms report a broken connection as one that can be read or written. With
    select there is no descriptor to watch it by (`nests` is false), and the number of descriptors is limited (512).
    """

    def __init__(self) -> None:
        super().__init__()
        self._selector = selectors.DefaultSelector()
        self.nests = hasattr(self._selector, "fileno")

    def _mask(self, events: int) -> int:
        """READ and WRITE in the numbers of `selectors`."""
        return (selectors.EVENT_READ if events & READ else 0) | (selectors.EVENT_WRITE if events & WRITE else 0)

    def register(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Watch `fd`, which must not be watched yet."""
        self._selector.register(fd, self._mask(events))
        self._handlers[fd] = handler

    def modify(self, fd: int, events: int) -> None:
        """Watch a registered `fd` for other events."""
        self._selector.modify(fd, self._mask(events))

    def unregister(self, fd: int) -> None:
        """Stop watching `fd`; harmless when it is not watched."""
        if self._handlers.pop(fd, None) is not None:
            try:
                self._selector.unregister(fd)
            except (KeyError, ValueError):
                pass

    def poll(self, timeout: Optional[float]) -> list:
        """Wait at most `timeout` seconds (None: for ever); return (descriptor, events) pairs for `handle`."""
        reads, writes = selectors.EVENT_READ, selectors.EVENT_WRITE
        return [(key.fd, (READ if mask & reads else 0) | (WRITE if mask & writes else 0))
                for key, mask in self._selector.select(timeout)]

    def fileno(self) -> int:
        """Descriptor that is readable when any watched descriptor is ready (only where `nests` is true)."""
        return self._selector.fileno()      # type: ignore[attr-defined]

    def close(self) -> None:
        """Forget everything and give the descriptor back."""
        self._handlers.clear()
        self._selector.close()


Poller = EpollPoller if hasattr(select, "epoll") else SelectorPoller


class Waker:
    """Ends another thread's wait in a poller: one end of a socket pair is watched there, the other written to.

    A socket pair and not a pipe, as Windows can wait for sockets only. `wake` is for any thread, all else for the one
    that owns the poller. Two threads may both find nothing under way and send a byte each, which does no harm.
    """

    def __init__(self, poller: Any) -> None:
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)
        self._awake = False             # a byte is under way: further calls would add nothing
        poller.register(self._near.fileno(), READ, self._drain)

    def wake(self) -> None:
        """Let the poller return. Any thread."""
        if not self._awake:
            self._awake = True
            try:
                self._far.send(b"\0")
            except OSError:             # closing, or the pipe is full of wake-ups already
                pass

    def _drain(self, _events: int) -> None:
        try:
            self._near.recv(4096)
        except OSError:
            pass
        self._awake = False             # last, or a byte could be read whose writer believes it is under way; what
        # a call before this line posted is seen, because whoever polls looks for work before it sleeps again

    def close(self) -> None:
        """Close both ends; the poller is closed by its owner."""
        self._near.close()
        self._far.close()


class Ending:
    """Tells the main thread that the program is to end, and why.

    The main thread waits at a socket that the interpreter writes to when a signal comes. A lock or a queue would not
    do: a signal that comes while the thread lets go of the interpreter, just before it waits, interrupts neither, and
    its handler then runs when the wait is over, which may be never (seen in one start of four with `spawn`).
    """

    def __init__(self) -> None:
        self._reasons: "queue.SimpleQueue[str]" = queue.SimpleQueue()
        self._waiting, self._waking = socket.socketpair()
        self._waking.setblocking(False)

    def attend(self) -> None:
        """Have signals wake the waiting up, from now on. Main thread."""
        signal.set_wakeup_fd(self._waking.fileno(), warn_on_full_buffer=False)

    def set(self, reason: str = "it has ended") -> None:
        """End, for this reason (a phrase that can follow the node's name). Any thread, any signal handler."""
        self._reasons.put(reason)
        try:
            self._waking.send(b"\0")
        except OSError:                     # full of bytes that have not been read: it will wake up; or it has
            pass

    def wait(self) -> str:
        """Wait for the first reason. Main thread, once."""
        with self._waiting, self._waking:
            while self._reasons.empty():
                self._waiting.recv(4096)
            signal.set_wakeup_fd(-1)
        return self._reasons.get()


# ======================================================================================================================
# 10. Requests and tasks                                                             what a task may yield, and the task
# ======================================================================================================================
#
# A blocking call returns a request object; the task yields it (``yield request``, ``yield from request`` and
# ``await request`` all do) and the kernel calls its `begin(kernel, task)`:
#
#   True    there is a result, in task.carried; the task goes on at once, without a trip through the ready queue
#   False   the task is parked; task.wait is the request until something unparks it
#
# A parked task is unparked once, by whichever comes first: its event (`Task.unpark`), its timer (`expired` gives the
# value), or an exception thrown into it (`abandon` lets the request forget the task). Generators and coroutines are
# requests too: "run this, then go on with its result". What `begin` raises is raised at the yield.
#
# Between being unparked and its next step a task owns a result that nobody else has: a message, a lock. task.wait is
# HANDED then, and an exception thrown into it comes one yield later, so that the result is not lost.
#
# A forgotten yield (``task.sleep(1)`` alone) makes a request that is dropped, and nothing happens. To report that, each
# request would need a finalizer (5 % of a lock or a sleep) and `receive` an object of its own (a tenth of a message).
# So requests are watched only where there is reason to. When a function first becomes a task, the instructions of the
# generator functions of its module are looked through (`_Forgotten.search`) for the result of what is called like a
# blocking call being dropped, or kept in a variable. If there is one, all requests made from then on are watched: noted
# with the place of the call when made, struck out when begun, reported in the log when they are still there at their
# end. A suspicion that is wrong costs two microseconds for each request, and no report. What is not noticed: calls
# named like those that need no yield (`read`, `readline`, `write` of plain files, `send` of a task, `monitor` of an
# RPS), calls that are generators themselves (`connect`, `communicate`, a channel's `deliver`), and code in modules that
# no task begins in.


class _Requests(dict):
    """Class of a yielded object -> begin function, or None for plain values; subclasses are found when first seen."""

    _MOST = 1000                        # plain classes are remembered only while there are few: programs make new ones

    def __missing__(self, kind: type) -> Optional[Callable]:
        """Decide about a class when it is first yielded, by its bases; what only other event loops can await is given
        `_refuse`. Kernel thread."""
        futures = sys.modules.get("concurrent.futures")     # who has none need not pay for importing it
        if futures is not None:
            self.setdefault(futures.Future, _wait_for_future)
        begin = next((self[base] for base in kind.__mro__ if base in self), None)
        if begin is None and hasattr(kind, "__await__"):
            begin = _refuse
        if begin is not None or len(self) < self._MOST:
            self[kind] = begin
        return begin


REQUESTS = _Requests()
_begin_of = REQUESTS.get                # found once, and not in each turn of a kernel


class Request:
    """Something a task waits for. Subclasses define `begin`; see the rules at the head of this section."""

    __slots__ = ()
    receives = False                    # a message sent to the task ends this wait
    does_nothing = True                 # unless it is begun: dropping it is a mistake

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Enter the class into REQUESTS: the kernel finds `begin` there with one look-up. So `begin` must be defined in
        the class body, and not assigned later."""
        super().__init_subclass__(**kwargs)
        REQUESTS[cls] = cls.begin
        if _Forgotten.watching:
            _Forgotten.watch_kind(cls)

    def begin(self, kernel: "Kernel", task: "Task") -> bool:
        """Start to wait, or answer at once: True with the result in ``task.carried``, or False with ``task.wait`` set
        to this request, and to be unparked later, once. Called by the kernel, in its thread, while `task` runs. What it
        raises is raised at the task's yield; a timer that it has pushed is taken back then."""
        raise NotImplementedError

    def expired(self, task: "Task") -> Any:
        """The task's timer ran out: what the yield gives, or an exception for it. The request must have forgotten the
        task when this returns."""
        return None

    def abandon(self, task: "Task") -> Any:
        """The task no longer waits: an exception is thrown into it. From here on the request must not unpark it. Or it
        gives True: the task goes on waiting for something that it must have before the exception comes, and is unparked
        once as ever."""

    def __iter__(self) -> Generator:
        return (yield self)

    __await__ = __iter__


class _Forgotten:
    """Finds blocking calls without ``yield``; see the head of this section. Any thread, as functions become tasks."""

    watching = False
    _CALLS = frozenset((
        "accept", "acquire", "async_task", "callproc", "deliver", "execute", "executemany", "finish", "receive", "recv",
        "recv_into", "recv_msg", "recvall", "recvfrom", "send_msg", "sendall", "sendto", "sleep", "subscribe",
        "suspend", "unsubscribe", "wait"))
    _OURS = ("dispycos_lite", "dispycosnode_lite", "httpd_lite")    # need not be looked through in every program
    _USES = ("YIELD", "GET_", "SEND", "RETURN", "LIST_APPEND")      # beginnings of instructions that take a result
    _searched: set = set()              # code objects, and names of modules
    _made: Dict[int, Tuple[str, str, int]] = {}     # id of a request that has not begun -> call, file, line
    _reported: set = set()              # the same places: once each

    @classmethod
    def search(cls, function: Any) -> None:
        """Look through what has become a task, and its module; watch all requests if there is reason to."""
        known = getattr(function, "__globals__", {})
        name = known.get("__name__", "")
        if cls.watching or known is globals() or function.__code__ in cls._searched or (
                name.rpartition(".")[2] in cls._OURS):
            return
        found = [function.__code__]
        if name not in cls._searched:
            cls._searched.add(name)
            found += cls._codes_of(list(known.values()), name)
        while found:
            code = found.pop()
            if code not in cls._searched:
                cls._searched.add(code)
                found += [inner for inner in code.co_consts if isinstance(inner, types.CodeType)]
                if code.co_flags & _GENERATOR_FLAGS and cls._drops_results(code):
                    cls._watch()
                    return

    @classmethod
    def _codes_of(cls, things: list, module: Optional[str]) -> list:
        """The code of a module's functions and methods."""
        found = []
        for thing in things:
            if isinstance(thing, (staticmethod, classmethod)):
                thing = thing.__func__
            if type(thing) is types.FunctionType:
                found.append(thing.__code__)
            elif type(thing) is type and thing.__module__ == module:
                found += cls._codes_of(list(vars(thing).values()), module)
        return found

    @classmethod
    def _drops_results(cls, code: types.CodeType) -> bool:
        """Whether the result of what is called like a blocking call is dropped, or kept in a variable."""
        called = False
        for step in dis.get_instructions(code) if not cls._CALLS.isdisjoint(code.co_names) else ():
            if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and step.argval in cls._CALLS:
                called = True
            elif called and (step.opname == "POP_TOP" or step.opname.startswith("STORE_")):
                return True
            elif step.opname.startswith(cls._USES):
                called = False
        return False

    @classmethod
    def _watch(cls) -> None:
        """Watch all requests from now on. Once, and never undone: it patches the classes, so that programs without a
        suspicion pay nothing. RECEIVE, which all tasks share, cannot tell who forgot it; each gets its own then."""
        cls.watching = True
        Request.__del__ = cls._reporting()                  # type: ignore[attr-defined]
        for kind in list(REQUESTS):
            if issubclass(kind, Request):
                cls.watch_kind(kind)
        receive = Task.receive

        @functools.wraps(receive)
        def receive_watched(task: "Task", timeout: Optional[float] = None, alarm_value: Any = None) -> Any:
            request = receive(task, timeout, alarm_value)
            return _Receive(None) if request is RECEIVE else request
        Task.receive = Task.recv = receive_watched          # type: ignore[assignment]

    @classmethod
    def watch_kind(cls, kind: type) -> None:
        """Have requests of a class noted when they are made and struck out when they are begun."""
        begin, init = REQUESTS[kind], kind.__init__         # type: ignore[misc]

        def begin_watched(request: Request, kernel: "Kernel", task: "Task") -> bool:
            cls.begun(request)
            return begin(request, kernel, task)             # type: ignore[misc]
        REQUESTS[kind] = begin_watched
        if "__init__" in vars(kind) and kind.does_nothing:  # type: ignore[attr-defined]
            @functools.wraps(init)
            def init_watched(request: Request, *args: Any, **kwargs: Any) -> None:
                init(request, *args, **kwargs)
                if type(request).__init__ is init_watched:      # type: ignore[misc]  # not that of a base
                    cls._note(request)
            kind.__init__ = init_watched                    # type: ignore[misc]

    @classmethod
    def begun(cls, request: Any) -> None:
        """A kernel or something else runs the request, or drops it for good reason."""
        cls._made.pop(id(request), None)

    @classmethod
    def _note(cls, request: Request) -> None:
        """Note where a request was made: the innermost frame outside of this module, and the method it called."""
        frame, call = sys._getframe(1), ""
        while frame.f_back is not None and frame.f_globals is globals():
            frame, call = frame.f_back, frame.f_code.co_name
        call = type(request).__name__ if call == "init_watched" else call.replace("_watched", "")
        cls._made[id(request)] = call, frame.f_code.co_filename, frame.f_lineno

    @classmethod
    def _reporting(cls) -> Callable:
        """The finalizer of watched requests; it does without the module's names, which the interpreter's end may have
        taken away."""
        made, report, ending = cls._made, cls._report, sys.is_finalizing

        def finalizer(request: Request) -> None:
            place = made.pop(id(request), None)
            if place is not None and not ending():
                report(place)
        return finalizer

    @classmethod
    def _report(cls, place: Tuple[str, str, int]) -> None:
        """Log that a call was dropped, once for each place. The frames tell which task it was, as a rule: requests are
        dropped while their task runs. Those dropped in a ``finally`` block of a terminated task are passed over."""
        frame: Any = sys._getframe(1)
        while frame is not None and (frame.f_code.co_name != "run_ready" or frame.f_globals is not globals()):
            if frame.f_code is _Steps.closing.__code__:     # its end is no time to wait, with or without yield
                return
            frame = frame.f_back
        if place in cls._reported:
            return
        cls._reported.add(place)
        who = "task %r" % frame.f_locals["task"] if frame is not None else "a task"
        call, file, line = place
        log.warning('%s called %s() in %s, line %d, and did not wait for it, so that it did nothing: put "yield" '
                    'before it ("await" in an async function): %s', who, call, file, line,
                    linecache.getline(file, line).strip())


class _ReceiveForEver(Request):
    """Wait for a message, without a timeout. Holds nothing, so that one object (RECEIVE) does for all tasks."""

    __slots__ = ()
    receives = True

    def begin(self, kernel: "Kernel", task: "Task") -> bool:
        """The oldest message, or wait; `Task.send` knows this object and hands the next one in without calling it."""
        if task.mailbox:
            task.carried = task.mailbox.popleft()
            return True
        task.wait = self
        task.carried = None             # the message before: it may be large, and the next one is to come beside it
        return False


RECEIVE = _ReceiveForEver()             # one object for all tasks: a receive without timeout allocates nothing
HANDED = Request()                      # as task.wait: not parked any more, its result is still to be handed in


class _Timed(Request):
    """A wait with an optional timer and the value that its expiry gives. `timeout` in seconds: None for ever, 0 or less
    not at all. Yielded by itself it is a pause, which nothing ends but its timer."""

    __slots__ = ("timeout", "alarm_value")

    def __init__(self, timeout: Optional[float], alarm_value: Any = None) -> None:
        self.timeout = timeout
        self.alarm_value = alarm_value

    def begin(self, kernel: "Kernel", task: "Task") -> bool:
        """Park the task, with a timer if there is a limit; subclasses look first whether there is anything to wait for.
        True when no time is left: `carried` is the alarm value then."""
        timeout = self.timeout
        if timeout is not None:
            if not timeout > 0:         # written so that "not a number" does not get into the timer queue
                task.carried = self.alarm_value
                return True
            clock = kernel.clock
            kernel.timers.push(clock() + timeout, task)
        task.wait = self
        return False

    def expired(self, task: "Task") -> Any:
        """See `Request.expired`."""
        return self.alarm_value


class Suspend(_Timed):
    """Wait for `Task.resume`, at most `timeout` seconds: what `Task.suspend` gives. ``yield Suspend(s)`` works without
    the Task at hand, in system tasks as well. Gives the update, or `alarm_value`."""

    __slots__ = ()


class _Receive(_Timed):
    """Wait for a message at most so long."""

    __slots__ = ()
    receives = True

    def begin(self, kernel: "Kernel", task: "Task") -> bool:
        """A message that is there already counts also when no time is left."""
        if task.mailbox:
            task.carried = task.mailbox.popleft()
            return True
        task.carried = None             # as above
        return super().begin(kernel, task)


class Join(_Timed):
    """Wait until another task of the same process has ended; gives its exit value, or None when time is up.

    What `Task.finish` gives. The other task may belong to another kernel (a user task and a system task): then its end
    is noticed there and posted here, and this task is not parked a second time by it (`joined` compares the request).
    """

    __slots__ = ("target",)

    def __init__(self, target: "Task", timeout: Optional[float] = None) -> None:
        super().__init__(timeout)
        self.target = target

    def begin(self, kernel: "Kernel", task: "Task") -> bool:
        """See `Request.begin`. Raises MisuseError for a task that would wait for itself."""
        target = self.target
        if target.generator is None:
            task.carried = target.outcome
            return True
        if target is task:
            raise MisuseError("task %r waits for its own end, which would never come: let another task wait for it, or "
                              "end with 'return'" % task)
        if super().begin(kernel, task):
            return True
        if target.kernel is kernel:
            target.watch(task.joined)
        else:                           # ends in another thread: its watchers run there
            target.kernel.post(target.watch, task.joined)
        return False

    def expired(self, task: "Task") -> Any:
        """Time is up: None, which a task may have returned as well; `Task.is_alive` tells."""
        self.abandon(task)
        return None

    def abandon(self, task: "Task") -> None:
        """Nobody waits for the other task's end any more."""
        self.target.unwatch(task.joined)


DEPTH = 100_000                         # nested generators; each is a few hundred bytes, and no recursion of Python's


def _call(generator: Any, _kernel: "Kernel", task: "Task") -> bool:
    """A task yielded a generator or coroutine: its caller waits on the stack, it runs in the same task at once."""
    callers = task.callers
    if callers is None:
        callers = task.callers = []
    elif len(callers) >= DEPTH:
        raise RecursionError("task %r is %d generators deep: one that calls itself without end? A loop, or a task of "
                             "its own for each part, needs no depth" % (task, DEPTH))
    callers.append(task.generator)
    task.generator = generator
    task.step = generator.send
    task.carried = None
    return True


def _refuse(awaitable: Any, _kernel: "Kernel", task: "Task") -> bool:
    """Something that only another event loop can wait for."""
    raise MisuseError("task %r cannot wait for %r, which belongs to another event loop: use calls of pycoslite, or run "
                      "it there and wait for a concurrent.futures.Future" % (task, awaitable))


class _Sequence(Request):
    """Several waits as one request: a generator that runs in the task that yields it. (A generator alone would not be
    missed when nobody does.)"""

    __slots__ = ("generator",)

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def begin(self, kernel: "Kernel", task: "Task") -> bool:
        """Never parks: the generator's own requests do."""
        return _call(self.generator, kernel, task)


class FutureResult(Request):
    """Wait for a `concurrent.futures.Future`, done in another thread: gives its result, or raises its exception.

    ``yield future`` does the same; where an async function awaits, it is ``await FutureResult(future)``. A task that is
    interrupted leaves the future as it is, uncancelled: others may wait for it.
    """

    __slots__ = ("future",)

    def __init__(self, future: Any) -> None:
        self.future = future

    def begin(self, kernel: "Kernel", task: "Task") -> bool:
        """See `Request.begin`. The future's callback runs in the thread that completes it, hence `Kernel.call`."""
        if self.future.done():
            task.carried = self.future.result()
            return True
        task.wait = self
        self.future.add_done_callback(lambda _future: kernel.call(self._done, task))
        return False

    def _done(self, task: "Task") -> None:
        if task.wait is not self:       # an exception was thrown into it meanwhile
            return
        try:
            result = self.future.result()
        except BaseException as error:  # whatever the other thread raised, SystemExit too
            task.unpark_with(error)
        else:
            task.unpark(result)


def _wait_for_future(future: Any, kernel: "Kernel", task: "Task") -> bool:
    """A task yielded a `concurrent.futures.Future` itself."""
    return REQUESTS[FutureResult](FutureResult(future), kernel, task)


_COROUTINE = types.CoroutineType
REQUESTS[types.GeneratorType] = _call
REQUESTS[_COROUTINE] = _call
REQUESTS.update(dict.fromkeys((bool, bytes, bytearray, dict, float, frozenset, int, list, set, str, tuple)))


class MonitorStatus(Exception):
    """How a task ended: `info` (the task, or a text where there is none), `type` (StopIteration, or the exception's
    class), `value` (the exit value, or the traceback's text). Monitors get it as a message; a failed task has it as
    exit value:

        result = yield worker.finish()
        if isinstance(result, pycoslite.MonitorStatus):
            print("failed:", result.type.__name__, result.value)

    A task that was terminated ends with StopIteration and None, as one that returns nothing. It is an exception, with
    ``args == (info, (type, value))``, as older programs expect it to be (MonitorException). In the task's own process
    `error` is the exception itself.
    """

    error: Optional[BaseException] = None

    def __init__(self, info: Any, type: Any, value: Any = None) -> None:
        super().__init__(info, (type, value))
        self.info = info
        self.type = type
        self.value = value


MonitorException = MonitorStatus


class _Terminated(BaseException):
    """Ends a task inside the kernel after `Task.terminate`; user code sees GeneratorExit instead."""


_INJECTED = ("task", "coro")            # parameters that get the Task itself, by their names in both generations
_GENERATOR_FLAGS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE
_SIGNATURES: Dict[Any, Tuple[Optional[str], int]] = {}     # code object -> (injected parameter, its position)


def _signature(target: Any) -> Tuple[Optional[str], int]:
    """Which parameter of a generator function wants the Task, cached by its code object; TypeError when it is none."""
    function = target
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if isinstance(target, (types.GeneratorType, _COROUTINE)):
        raise TypeError("a task needs a function, %r is what one gave when it was called: write Task(function, *args)"
                        % (target,))
    if code is None or not code.co_flags & _GENERATOR_FLAGS:
        raise TypeError("a task needs a generator function or an async function, %r is neither: use 'yield' or 'await' "
                        "in it, or call it directly" % (target,))
    found: Tuple[Optional[str], int] = (None, 0)
    _Forgotten.search(function)
    known = hasattr(target, "__code__")     # a partial has none, and its signature depends on what it binds
    for position, parameter in enumerate(inspect.signature(function if known else target).parameters.values()):
        kind = parameter.kind
        if parameter.name in _INJECTED and parameter.default is None and kind is not parameter.POSITIONAL_ONLY:
            found = (parameter.name, position if kind is parameter.POSITIONAL_OR_KEYWORD else sys.maxsize)
            break
    if known:
        _SIGNATURES[code] = found
    return found


def _keyword_form(kwargs: dict) -> Tuple[Callable, tuple, dict]:
    """The function and its arguments where they were given as (target=function, args=(), kwargs={})."""
    wrong = set(kwargs) - {"target", "args", "kwargs"}
    if "target" not in kwargs or wrong:
        raise TypeError("write (function, *args, **kwargs) or (target=function, args=(), kwargs={})%s" % (
            ", not %s=" % wrong.pop() if wrong else ": the function is missing"))
    return kwargs["target"], tuple(kwargs.get("args", ())), kwargs.get("kwargs", {})


_task_ids = itertools.count(1)
NAMES: Dict[Tuple[str, str], Any] = {}          # (kind, name) -> what this process has registered
NAME_WATCHERS: List[Callable] = []              # called with (kind, name, thing) for each new one


class HotSwapException(Exception):
    """Raised in a task that is about to get new code; ``args[0]`` is the new generator. Let it pass, or raise it again,
    to be replaced; catch it to refuse and go on.

    Local variables are lost with the old code: what the new one should have of them, the old one sends to itself as a
    message (``task.send(state)``) before it raises again. Another exception than this one ends the task as usual, and
    the new code is dropped.
    """


class _Swap:
    """What a task knows of hot swapping: whether it may happen now, and the new code that waits for it. Tasks that have
    nothing to do with it have none."""

    __slots__ = ("allowed", "generator", "target")

    def __init__(self) -> None:
        self.allowed = False
        self.generator: Any = None
        self.target: Any = None

    def offer(self, generator: Any, target: Any) -> None:
        """New code; what waited until now is dropped."""
        if isinstance(self.generator, _COROUTINE):
            self.generator.close()      # else Python would warn that it was never awaited
        self.generator, self.target = generator, target


class _Steps:
    """The part of a task that the kernel and the requests handle; kernel thread only. `Task` is what users see.

    What a step runs is in `step`, so that the kernel's loop has one call and no tests: the send of the innermost
    generator as a rule, else `throwing`, `handing`, `interrupting` or `swapping`, which set it back, or `closing`, the
    last one.

    It is one object with slots, made once for each task: a program may have a million. What most tasks do without
    (mailbox, watchers, callers, swap) is None until it is needed, so that an idle task is little more than its
    generator.
    """

    # `generator` now running (None: ended) and its `callers`, `step` (what runs it on: its send, or one of the methods
    # below), `carried` (what the next step hands in: the last yield's result), `wait` (the request it is parked in,
    # HANDED, or stale while it is ready), `mailbox` and `watchers` (made when needed; watchers are the keys),
    # `since` (the clock in the turn that parked it; only people look at it), `interruption` (step and argument due at
    # the next yield), `outcome` (exit value), `timer` (see TimerQueue).
    __slots__ = ("kernel", "id", "generator", "callers", "step", "carried", "wait", "since", "mailbox", "watchers",
                 "outcome", "interruption", "swap", "timer", "daemon", "_name", "__weakref__")

    def unpark(self, value: Any) -> None:
        """What the task waited for is there: it goes on with `value`. For a parked task, and once: requests call it
        from their event, and see to it that they do not when the task has left them."""
        if self.timer:
            self.kernel.timers.cancel(self)
        self.wait = HANDED
        self.carried = value
        self.kernel.ready.append(self)

    def unpark_with(self, error: BaseException) -> None:
        """What the task waited for failed: `error` is raised at its yield."""
        self.unpark(error)
        self.wait = None
        if self.step != self.interrupting:      # else what interrupts it comes in its place
            self.step = self.throwing

    def expire(self) -> None:
        """Its timer has run out."""
        wait = self.wait
        try:
            value = wait.expired(self)
        except Exception as error:      # a request's way to say that running out of time is an error
            self.unpark_with(error)
        else:
            self.unpark(value)

    def joined(self, other: "Task") -> None:
        """Watcher of a task it joins: `other` has ended."""
        wait = self.wait
        if wait.__class__ is Join and wait.target is other:
            if get_ident() == self.kernel.owner:
                self.unpark(other.outcome)
            else:
                self.kernel.post(self.joined, other)

    def watch(self, watcher: Callable[["Task"], None]) -> None:
        """Call `watcher(task)` when the task ends; at once when it has."""
        if self.generator is None:
            watcher(self)
        elif self.watchers is None:
            self.watchers = {watcher: None}
        else:
            self.watchers[watcher] = None

    def unwatch(self, watcher: Callable[["Task"], None]) -> None:
        """Take a watcher back; harmless when it has been called."""
        if self.watchers:
            self.watchers.pop(watcher, None)

    def reachable(self) -> bool:
        """Whether a message may still be received: not when the task has ended, or is known to be gone with its
        process. Any thread."""
        return self.generator is not None

    def watch_for(self, monitor: "Task") -> None:
        """Have `monitor` told when the task ends. A task that lives on forgets those that have ended before it."""
        if self.watchers and is_time_to_look(len(self.watchers)):
            for watcher in list(self.watchers):
                if getattr(watcher, "func", None) is _tell_monitor and not watcher.args[0].reachable():  # type: ignore
                    del self.watchers[watcher]
        self.watch(functools.partial(_tell_monitor, monitor))

    # -- exceptions from outside: what `step` can be beside the generator's send ---------------------------------------

    def interrupt(self, step: Callable, argument: Any) -> None:
        """Let `step(argument)` be the task's next one: a parked task leaves its wait, one that is about to go on with a
        result does so first. Not for the running task."""
        wait = self.wait
        if self.generator is None:
            return
        if self.step == self.interrupting:
            self._put_off(step, argument)
            return
        if wait is HANDED and self.carried is not None and self.step != self.throwing:
            self.wait = None
            self.interruption = step, argument
            self.step = self.handing
            return
        if wait is not None and wait is not HANDED:
            self.wait = None            # first, as what is abandoned may be done at this very moment, and look here
            if wait.abandon(self):
                self.interruption, self.step = (step, argument), self.interrupting
                return
            self.unpark(None)
        elif self.step == self.closing:
            return                      # nothing comes before its end
        elif self.step == self.handing:
            self._put_off(step, argument)
            return
        self.wait = self.interruption = None
        self.carried = argument
        self.step = step

    def _put_off(self, step: Callable, argument: Any) -> None:
        """Another interruption waits already: the newer one comes, but nothing in place of the end."""
        if self.interruption[0] != self.closing:
            self.interruption = step, argument

    def interrupting(self, _carried: Any) -> Any:
        """What has been put off comes now."""
        (step, argument), self.interruption = self.interruption, None
        return step(argument)

    def handing(self, value: Any) -> None:
        """Hand in a result, then let the interruption come at the yield that follows."""
        self.step = self.generator.send
        self._replace(self.generator.send(value))

    def throwing(self, error: BaseException) -> Any:
        """Raise `error` at the current yield."""
        self.step = self.generator.send
        self.carried = None
        value = self.generator.throw(error)
        return value if self.interruption is None else self._replace(value)

    def _replace(self, dropped: Any) -> None:
        """The interruption takes the place of what the task has just yielded, which was not begun yet."""
        if isinstance(dropped, _COROUTINE):
            dropped.close()             # else Python would warn that it was never awaited
        _Forgotten.begun(dropped)
        self.step = self.interrupting

    def closing(self, _argument: Any) -> Any:
        """Close the generators from the innermost outward; one that refuses to go is dropped."""
        for generator in [self.generator] + (self.callers or [])[::-1]:
            try:
                generator.close()
            except Exception:
                log.debug("%r: error while it was terminated", self, exc_info=True)
        self.callers = None
        raise _Terminated

    def swapping(self, _argument: Any) -> Any:
        """Ask the code of the task whether it gives way to the new one; if so, that runs from its next step on."""
        swap, new = self.swap, self.swap.generator
        error = HotSwapException(new)
        try:
            return self.throwing(error)
        except HotSwapException as passed:
            if passed is not error:
                raise
            swap.generator = None       # in use now
            self.generator, self.step, self._name, self.swap = new, new.send, swap.target, None
            return None
        finally:
            swap.offer(None, None)

    def offer_swap(self, generator: Any, target: Callable) -> None:
        """New code for the task, for when it lets itself be swapped; an ended one begins with it at once."""
        self.swap = self.swap or _Swap()
        self.swap.offer(generator, target)
        if self.generator is None:
            self._begin(generator, target)      # type: ignore[attr-defined]
        elif self.kernel.current is self:
            self.kernel.post(self.try_swap)
        else:
            self.try_swap()

    def try_swap(self) -> None:
        """Swap if there is new code and the task lets itself be swapped now: at top level and not in the middle of I/O,
        whose result it gets first. Called again whenever one of these may have changed. Not for the running task."""
        swap, wait = self.swap, self.wait
        if swap is None or swap.generator is None or not swap.allowed or self.callers or self.interruption:
            return
        if wait is None or wait is HANDED or isinstance(wait, (Suspend, Join)) or wait.receives:
            self.interrupt(self.swapping, None)
        else:
            self.interruption = self.swapping, None
            self.step = self.handing


class Task(_Steps):
    """A generator function (or async function) run by the kernel beside all other tasks of its thread.

        Task(function, *args, **kwargs)      or      Task(target=function, args=(), kwargs={})

    It is scheduled at once; the first task of a program starts the kernel. If the function has a parameter ``task``
    (or ``coro``) that defaults to None and is not given, it gets the Task. Any thread may create tasks and call
    `send`, `resume`, `throw`, `terminate`, `value` and `is_alive`; what is described as "use with yield" works only in
    a task, as ``yield x``, ``yield from x`` or, in an async function, ``await x``. Raises TypeError when the target is
    no generator function or the arguments do not fit it.
    """

    __slots__ = ()
    remote = False                      # whether it runs in another process

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if args:
            target, args = args[0], args[1:]
        else:
            target, args, kwargs = _keyword_form(kwargs)
        self._start(default_kernel(), target, args, kwargs)

    def _start(self, kernel: "Kernel", target: Callable, args: tuple, kwargs: dict) -> None:
        """The rest of `__init__`, for a kernel of choice (`Kernel.spawn`)."""
        self.kernel = kernel
        self.id = next(_task_ids)
        self._begin(self._generator(target, args, kwargs), target)

    def _begin(self, generator: Any, target: Callable) -> None:
        """Give all slots their first values and have the kernel schedule it; again when an ended task is swapped. The
        last step is `adopt`: from there on the kernel's thread may run it."""
        self.generator = generator
        self.step = generator.send
        self._name = target
        self.callers = self.carried = self.wait = self.mailbox = self.watchers = self.outcome = None
        self.interruption = self.swap = None
        self.timer = 0
        self.daemon = False
        self.kernel.adopt(self)

    def _generator(self, target: Callable, args: tuple, kwargs: dict) -> Any:
        """What runs: `target` called, with the Task as an argument if it has a parameter for it."""
        try:
            wanted, position = _SIGNATURES[target.__code__]
        except (AttributeError, KeyError):
            wanted, position = _signature(target)
        if wanted is not None and wanted not in kwargs and len(args) + (type(target) is types.MethodType) <= position:
            kwargs = dict(kwargs)
            kwargs[wanted] = self
        return target(*args, **kwargs)

    # -- what it is ----------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Name of the task's function."""
        target = self._name
        return getattr(target, "__name__", None) or type(target).__name__

    def __repr__(self) -> str:
        return "%s/%d" % (self.name, self.id)

    def is_alive(self) -> bool:
        """Whether the task has not ended yet. Any thread."""
        return self.generator is not None

    # -- messages ------------------------------------------------------------------------------------------------------

    def send(self, message: Any) -> int:
        """Put `message` into the task's mailbox; never waits. Any thread. Returns 0, or -1 when the task has ended.

        The message itself is handed over, no copy: leave it alone then. Messages of one sender keep their order. From
        another thread 0 says that the task had not ended yet; should it end before the message gets to it, that is
        lost. A mailbox has no limit: who sends faster than the task reads waits for an answer now and then.
        """
        kernel = self.kernel
        if get_ident() != kernel.owner:
            if self.generator is None:
                return -1
            kernel.post(self.send, message)
            return 0
        wait = self.wait
        if wait is RECEIVE:
            self.wait = HANDED
            self.carried = message
            kernel.ready.append(self)
        elif wait is not None and wait is not HANDED and wait.receives:
            self.unpark(message)
        elif self.mailbox is not None:
            self.mailbox.append(message)
        elif self.generator is None:    # the end takes the mailbox away
            return -1
        else:
            self.mailbox = deque((message,))
        return 0

    def deliver(self, message: Any, timeout: Optional[float] = None) -> Any:
        """Like `send`, and tells whether the mailbox has the message. Use with yield.

        `timeout`: seconds to wait for the answer of another process (None: for ever); a task of this one needs none.
        Gives 1, 0 when time is up or the other process is lost, -1 when the task has ended. (Row T11.)
        """
        return Value(1 if self.send(message) == 0 else -1)

    def receive(self, timeout: Optional[float] = None, alarm_value: Any = None) -> Any:
        """The oldest message of this task's mailbox. Use with yield, in this task only.

        `timeout`: seconds to wait for one at most; None: for ever, 0 or less: not at all. `alarm_value`: what it gives
        when time is up. Messages that come while the task waits for something else stay in the mailbox. Raises
        MisuseError outside of the task, and TypeError at the yield for a timeout that is no number. (Row T12.)
        """
        if self.kernel.current is not self:
            raise MisuseError("receive() of task %r was called outside of it: a task reads its own mailbox only, so "
                              "let it send() here what is for others" % self)
        if timeout is None:
            return RECEIVE
        return _Receive(timeout, alarm_value)

    recv = receive

    # -- waiting -------------------------------------------------------------------------------------------------------

    def suspend(self, timeout: Optional[float] = None, alarm_value: Any = None) -> Any:
        """Wait until another task or thread calls `resume`; also under the name `sleep`. Use with yield, in this task
        only.

        `timeout`: seconds to wait at most; None: for ever, 0 or less: not at all. Gives the value resumed with, or
        `alarm_value` when time is up; -1 for another task, and (with a warning) for a timeout that is no number.
        Messages do not end the wait: they are there afterwards. (Rows T07, T08.)
        """
        if timeout is not None and not isinstance(timeout, (int, float)):
            log.warning("suspend(%r) of task %r in %s is ignored: the timeout must be a number of seconds, or None",
                        timeout, self, caller())
            return Value(-1)
        return Suspend(timeout, alarm_value) if self.kernel.current is self else Value(-1)

    sleep = suspend

    def resume(self, update: Any = None) -> int:
        """End the `suspend` of the task, which gives `update`; also under the name `wakeup`. Never waits. Any thread.

        Returns 0, or -1 when it has ended. A task that is not suspended goes on as it was: the update is lost, with a
        warning (a message, which `send` puts into the mailbox, would not be). (Row T09.)
        """
        kernel = self.kernel
        if self.generator is None:
            return -1
        if get_ident() != kernel.owner:
            kernel.post(self.resume, update)
        elif self.wait.__class__ is Suspend:
            self.unpark(update)
        else:
            log.warning("resume(%r) of task %r in %s, is ignored: it is not suspended; send() keeps a message until it "
                        "is asked for", update, self, caller())
        return 0

    wakeup = resume

    def finish(self, timeout: Optional[float] = None) -> Any:
        """The task's exit value, once it has ended; ``yield task()`` is the same. Use with yield, in any other task,
        any number of times.

        `timeout`: seconds to wait at most (None: for ever). Gives what the task returned, else what its last yield
        gave; None when it was terminated, or time is up (`is_alive` tells which); a `MonitorStatus` when an exception
        ended it, whose `error` is the exception. Raises MisuseError in the task itself. (Rows T21, T22.)
        """
        return Join(self, timeout)

    __call__ = finish

    def value(self, timeout: Optional[float] = None) -> Any:
        """Like `finish`, for threads: blocks the calling one until the task has ended, at most `timeout` seconds (None:
        for ever). Raises MisuseError inside a task of the same kernel, which it would block for ever. (Row T20.)"""
        if self.generator is not None:
            if get_ident() == self.kernel.owner:
                raise MisuseError("value() of task %r was called inside a task, which would block all of them: "
                                  "use 'yield task.finish()'" % self)
            ended = threading.Event()

            def watcher(_task: Task) -> None:
                ended.set()
            self.kernel.post(self.watch, watcher)
            if not ended.wait(timeout):
                self.kernel.post(self.unwatch, watcher)
                return None
        return self.outcome

    # -- the end -------------------------------------------------------------------------------------------------------

    def set_daemon(self, flag: bool = True) -> int:
        """Let the program end without waiting for this task, which is terminated then; with False, not any more. Never
        waits; in this task only. Returns 0, or -1 when called outside of the task."""
        if self.kernel.current is not self:
            return -1
        self.kernel.count_daemon(self, bool(flag))
        return 0

    def throw(self, *args: Any) -> int:
        """Raise an exception at the task's current yield: throw(exc), throw(type, exc[, tb]) or throw((type, exc)).

        A task that is about to go on with a result (a message, a lock) gets that first and the exception at its next
        yield; one that waits for a `Condition` gets its lock first. Any thread. Returns 0, or -1 without an exception,
        for an ended task and for the running one itself.
        """
        if len(args) == 1 and isinstance(args[0], tuple):
            args = args[0]
        exceptions = [arg for arg in args if isinstance(arg, BaseException)]
        if not exceptions and args and isinstance(args[0], type) and issubclass(args[0], BaseException):
            exceptions = [args[0]()]
        if not exceptions or self.generator is None or self.is_running():
            return -1
        self.kernel.call(self.interrupt, self.throwing, exceptions[0])
        return 0

    def is_running(self) -> bool:
        """Whether it is this task itself that asks. Any thread: from all others the answer is False."""
        return self.kernel.current is self and self.kernel.owner == get_ident()

    def terminate(self) -> int:
        """End the task: GeneratorExit is raised at its yield, so that its ``finally`` blocks run; its exit value is
        None. Never waits; `finish` does, for its end. Any thread.

        The ``finally`` blocks cannot wait for anything: a task that yields there, or swallows the exception, is dropped
        where it is. The running task ends at its next yield, and so does one to which a message or a lock has just been
        handed; one that waits for a `Condition` when it has its lock again; one that has not begun never does. Returns
        0, or -1 when it has ended already. (Row T19.)
        """
        if self.generator is None:
            return -1
        if self.is_running():
            self.step, self.interruption = self.closing, (self.closing, None)
            self.kernel.post(self.interrupt, self.closing, None)    # in case that yield makes it wait
        else:
            self.kernel.call(self.interrupt, self.closing, None)
        return 0

    def hot_swappable(self, flag: bool = True) -> int:
        """Allow (or forbid) the running task's code to be replaced from now on; a replacement that waits for this comes
        at the next yield. Returns 0, or -1 when called outside of the task."""
        if not self.is_running():
            return -1
        self.swap = self.swap or _Swap()
        self.swap.allowed = bool(flag)
        self.kernel.post(self.try_swap)
        return 0

    def hot_swap(self, target: Callable, *args: Any, **kwargs: Any) -> int:
        """Replace the task's code by ``target(*args, **kwargs)``, which gets the task as parameter as usual.

        `HotSwapException` is raised in it as soon as it is hot-swappable, at top level (not in a generator that it has
        yielded) and not in the middle of I/O. Unless it is caught, the new code begins from its top, with the same
        mailbox, names and monitors; it is not hot-swappable before it says so. A second offer takes the place of one
        that still waits. An ended task begins anew. Any thread; never waits. Returns 0, or -1 (with a warning) when
        `target` is no generator function or the arguments do not fit. (Rows T27-T29.)
        """
        try:
            generator = self._generator(target, args, kwargs)
        except TypeError as error:
            log.warning("task %r is not swapped, as asked for in %s: %s", self, caller(), error)
            return -1
        self.kernel.call(self.offer_swap, generator, target)
        return 0

    def future(self) -> Any:
        """A `concurrent.futures.Future` of the task's end, for threads and other event loops
        (``await asyncio.wrap_future(task.future())``): the exit value, or the exception that ended it; cancelled when
        the task was terminated. Cancelling it does not touch the task. Any thread."""
        from concurrent.futures import Future       # not at the top: most programs do without
        future: Any = Future()
        self.kernel.call(self.watch, functools.partial(_tell_future, future))
        return future

    def monitor(self, observe: "Task") -> Any:
        """Have a `MonitorStatus` sent to this task when `observe`, a task of any process, ends. Use with yield.

        Gives 0, or -1 when `observe` has ended or is not known where it lived. A task may observe any number of others
        and be observed by any number; each end is told once. (Rows T14, T16.)
        """
        answer = observe.notify(self)
        return answer if isinstance(answer, Request) else Value(answer)     # a task of another process must be asked

    def notify(self, monitor: "Task") -> int:
        """Have a `MonitorStatus` sent to `monitor`, a task of any process, when this task ends: its `type` is
        StopIteration and its `value` the exit value, or the exception's class and the traceback's text. Never waits.
        Any thread. Returns 0, or -1 when this task has ended. (Row T15.)"""
        if self.generator is None:
            return -1
        self.kernel.call(self.watch_for, monitor)
        return 0

    # -- names ---------------------------------------------------------------------------------------------------------

    def register(self, name: Optional[str] = None) -> int:
        """Let others, in this process and others, find this task with `Task.locate(name)`. Any thread; never waits.

        `name`: None for that of its function; a task may have several. They are taken back when it ends. Returns 0, or
        -1 when the name is taken, is no text, begins with '^', or the task has ended. (Row T24.)
        """
        name = self.name if name is None else name
        if not isinstance(name, str) or name[:1] == "^" or self.generator is None:
            return -1
        if NAMES.setdefault(("task", name), self) is not self:
            return -1
        self.kernel.call(self.watch, functools.partial(_forget_name, ("task", name)))
        for watcher in NAME_WATCHERS:
            watcher("task", name, self)
        return 0

    def unregister(self, name: Optional[str] = None) -> int:
        """Take a name back (None: that of its function). Any thread; never waits. Returns 0, or -1 when the task does
        not have it. References that others have found by it stay good."""
        return _forget_name(("task", self.name if name is None else name), self)


def is_time_to_look(count: int) -> bool:
    """Whether a collection that has grown to `count` should be looked through for what is of no use any more: near each
    power of two, so that this costs little for each that is added, and never most of it is useless."""
    return count >= _WORTH_A_LOOK and count - (1 << count.bit_length() - 1) < 8


_WORTH_A_LOOK = 64                      # fewer are not


def _forget_name(key: Tuple[str, str], task: Task) -> int:
    """Remove a name, if it is that task's; also the watcher that does so at its end."""
    if NAMES.get(key) is not task:
        return -1
    del NAMES[key]
    return 0


def _tell_future(future: Any, task: Task) -> None:
    """Watcher: completes the future of a task's end."""
    outcome = task.outcome
    if task.interruption is _Terminated:
        future.cancel()
        future.set_running_or_notify_cancel()
    elif future.set_running_or_notify_cancel():
        if isinstance(outcome, MonitorStatus):
            future.set_exception(outcome.error or outcome)
        else:
            future.set_result(outcome)


def _tell_monitor(monitor: Task, task: Task) -> None:
    """Watcher: sends the completion notice. One that cannot be sent to another process is replaced by one that says so;
    a monitor that is gone gets neither."""
    outcome = task.outcome
    if not isinstance(outcome, MonitorStatus):
        outcome = MonitorStatus(task, StopIteration, outcome)
    if monitor.send(outcome) and monitor.remote:
        text = "a %s, which cannot be sent to another process" % type(outcome.value).__qualname__
        monitor.send(MonitorStatus(task, TypeError, "the exit value of task %r is %s" % (task, text)))


class Value(Request):
    """A result that is there already, for calls that wait only sometimes: their caller yields in any case. Dropping one
    loses nothing, so it is not reported."""

    __slots__ = ("value",)
    does_nothing = False

    def __init__(self, value: Any) -> None:
        self.value = value

    def begin(self, kernel: "Kernel", task: Task) -> bool:
        """See `Request.begin`: never parks."""
        task.carried = self.value
        return True


# ======================================================================================================================
# 11. Kernel                                                                                    one kernel is one thread
# ======================================================================================================================
#
# A kernel owns a deque of ready tasks, a timer queue, a poller and an inbox of calls from other threads. Its loop:
#
#     inbox -> due timers -> ready tasks (a bounded number of steps) -> descriptors that are ready, then again
#
# Everything in it is touched by the thread that runs it (`owner`) and nothing is locked; other threads use `post`
# (or append to `ready`, which the interpreter makes atomic) and wake the poller only when it sleeps.
#
# Nothing is missed by that: who posts appends first and looks at `sleeping` then; the kernel sets `sleeping` first and
# looks for work then. One of the two sees the other.
#
# Fairness: ready tasks run in the order they became ready. A turn serves at most STEPS steps, so that timers and
# descriptors are looked at however many tasks are ready; a busy kernel looks at descriptors every POLL_EVERY_S only,
# as a look costs a system call and the interpreter's lock; and a task whose requests are all answered at once gives way
# after TURNS of them. What no kernel can do is to interrupt a task that does not yield: it holds up all others of its
# thread (and not the network, see the engine), and `dump` shows where it is.
#
# The life of the default kernel, the one that user tasks get: started by the first task (`default_kernel`), in a daemon
# thread; at the end of the program `_wait_at_exit` waits for all tasks that are no daemons, then `stop_default` ends
# the network (STOPPERS), every task that is left, and the thread, and calls AFTERWARDS. A task made after that starts a
# new one. A forked child has none of its parent's tasks: its first task starts a kernel of its own.
#
# A task's states, as `run_ready` and the requests (section 10) see them:
#
#   ready      in `ready`, once; `step(carried)` runs it on; `wait` is HANDED if it owns a result, else stale or None
#   running    `current`; in no queue
#   waiting    `wait` is the request that knows it; perhaps in the timer queue besides
#   ended      `generator` is None, `outcome` is there, it is not in `tasks`; its watchers have been told, or are being
#
# What is called by the kernel (posted functions, timers, handlers, watchers) must not raise: it is logged then and the
# loop goes on, for one mistake must not end all tasks. Exceptions of tasks end the task, and go to who observes it.

# PASSES and STEPS: a look at timers and descriptors costs as much as several steps, so few ready tasks get many passes
# for one look, and very many of them a part of one. How late a timer may be is limited by that: by the time that STEPS
# steps take, 0.3 ms if they do nothing.
PASSES = 16                             # over the ready queue between two looks at timers and descriptors, ...
STEPS = 1600                            # ... and fewer, or a part of one, where that would be more steps than this
LONGEST_SLEEP_S = 86_400.0              # pollers count milliseconds in 31 bits
LAST_ROUNDS = 10                        # of a kernel that stops: what tasks may still do in their ``finally`` blocks
HURRY_S = 2.0                           # after Ctrl-C a task that does not yield holds the program open this long
TURNS = 64                              # results that were there already, before a task gives the others a turn
POLL_EVERY_S = 0.006                    # a busy kernel looks at its descriptors this often; less than the interpreter's
                                        # switch interval (5 ms) would starve other threads: each look gives the GIL up
                                        # and takes it back before a waiting thread has woken up to ask for it


class Kernel:
    """Runs tasks, timers and descriptor handlers. `clock` and `poller` can be replaced, so that tests need not wait.

    It runs nothing by itself: `start` gives it a thread, `loop` takes the calling one, and the network engine (section
    18), which is one too, is driven turn by turn from elsewhere. `clock` gives seconds and never goes back. Methods are
    for its own thread, unless they say "any thread". Between two turns: a task that is in `tasks` has not ended; it is
    in `ready` once, or parked in `wait`, and then the request, a timer or both know it.
    """

    # Found faster than in a dict: a message looks at some fifty of them at each end, two hundredths of its time. What
    # is called through one (`clock`) is put into a variable first, as CPython 3.11 is slow to look such a method up.
    __slots__ = ("clock", "poller", "ready", "pop_ready", "push_ready", "timers", "inbox", "tasks", "current", "owner",
                 "sleeping", "polled", "daemons", "idle_events", "waker", "thread", "stopping", "guest", "rounds",
                 "__weakref__")

    def __init__(self, clock: Callable[[], float] = time.monotonic, poller: Any = None) -> None:
        self.clock = clock
        self.poller = Poller() if poller is None else poller
        self.ready: deque = deque()         # never another one, as `run_ready` uses these methods of it
        self.pop_ready, self.push_ready = self.ready.popleft, self.ready.append
        self.timers = TimerQueue()
        self.inbox: deque = deque()
        self.tasks: Dict[int, Task] = {}
        self.current: Optional[Task] = None
        self.owner: Optional[int] = None    # ident of the thread that runs it
        self.sleeping = False               # in the poller, and nothing was there when it went
        self.polled = 0.0                   # when descriptors were last looked at
        self.daemons = 0                    # how many of `tasks` do not hold the program open
        self.idle_events: List[threading.Event] = []
        self.waker = Waker(self.poller)
        self.thread: Optional[threading.Thread] = None
        self.stopping = False
        self.guest: Any = None              # the network engine, when this kernel drives it (section 18)
        self.rounds = 0                     # grows while the loop comes round; the engine's watcher looks at it

    # -- from any thread -----------------------------------------------------------------------------------------------

    def post(self, function: Callable, *args: Any) -> None:
        """Call `function(*args)` in the kernel soon, in the order of the posts of one thread; what it raises is logged.
        Never waits. Any thread."""
        self.inbox.append((function, args))
        if self.sleeping:
            self.waker.wake()

    def call(self, function: Callable, *args: Any) -> None:
        """Call `function(*args)` in the kernel: now when this is its thread, else soon. Any thread."""
        if get_ident() == self.owner:
            function(*args)
        else:
            self.post(function, *args)

    def spawn(self, target: Callable, *args: Any, **kwargs: Any) -> Task:
        """Start a task in this kernel and return it; `Task(...)` always takes the default one. Arguments and exceptions
        are those of Task. Any thread."""
        task = Task.__new__(Task)
        task._start(self, target, args, kwargs)
        return task

    def adopt(self, task: Task) -> None:
        """Schedule a new task, which may begin before this returns if another thread calls it. Any thread: single
        operations of dict and deque need no lock."""
        self.tasks[task.id] = task
        self.ready.append(task)
        if self.sleeping:
            self.waker.wake()

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run_inbox(self) -> None:
        """Make the calls that other threads have posted: those that are there now. What they post in turn comes next
        time, so that a call which posts itself again cannot hold up everything else."""
        inbox = self.inbox
        for _ in range(len(inbox)):
            function, args = inbox.popleft()
            try:
                function(*args)
            except Exception:
                log.exception("a call posted to the kernel failed: %r", function)

    def run_timers(self) -> None:
        """Expire what is due. Where more tasks are ready than one turn serves, those that this wakes go before them, as
        they have waited for their time already; but no more of them than leave the others half of the turn."""
        ready, clock, heap = self.ready, self.clock, self.timers.heap
        now = clock()
        if not heap or heap[0][0] > now:
            return
        before = len(ready)
        for item in self.timers.expired(now, STEPS // 2 if before > STEPS else sys.maxsize):
            try:
                item.expire()
            except Exception:
                log.exception("what was to be done at a certain time failed: %r", item)
        if before > STEPS:
            ready.rotate(len(ready) - before)       # moves the last ones to the front and keeps their order

    def run_ready(self) -> None:
        """Step ready tasks: each PASSES times at most, all together STEPS times.

        The hot loop, in one piece on purpose, long and deep as that makes it: with a task's step in a method of its own
        a bare switch takes 21 % longer, a message 4 %. What a step does: hand in `carried`; then by what came out

            StopIteration, another exception   `_returned`, `_raised`: the calling generator goes on, or the task ends
            nothing, or a plain value          to the end of the queue
            a request, a generator             `begin`: goes on at once (at most TURNS times), or is parked
        """
        ready, pop, push, begin_of, clock = self.ready, self.pop_ready, self.push_ready, _begin_of, self.clock
        passes, steps, now = PASSES, STEPS, clock()
        while ready and passes and steps:
            passes -= 1
            count = len(ready)
            if count > steps:           # the rest is served after a look at timers and descriptors
                count = steps
            steps -= count
            for _ in range(count):
                self.current = task = pop()
                turns = TURNS
                while turns:
                    try:
                        step = task.step        # looked up first, as `clock` is
                        value = step(task.carried)
                    except StopIteration as stop:
                        if not self._returned(task, stop.value):
                            break
                    except BaseException as error:
                        if not self._raised(task, error):
                            break
                    else:
                        if value is None:
                            task.carried = None
                            push(task)
                            break
                        begin = begin_of(value.__class__)
                        if begin is None:
                            begin = REQUESTS[value.__class__]       # which knows more than it holds
                            if begin is None and task.generator.__class__ is not _COROUTINE:
                                task.carried = value
                                task.wait = None
                                push(task)
                                break
                            begin = begin or _refuse
                        try:
                            if not begin(value, self, task):
                                task.since = now
                                break
                        except BaseException as error:
                            self.timers.cancel(task)        # it may have begun to wait before it failed
                            task.step, task.carried, task.wait = task.throwing, error, None
                    turns -= 1
                else:
                    task.wait = HANDED
                    push(task)
        self.current = None

    def work(self) -> None:
        """All there is to do without looking at descriptors; what there is none of costs no call."""
        if self.inbox:
            self.run_inbox()
        if self.timers.heap:
            self.run_timers()
        if self.ready:
            self.run_ready()

    def timeout(self) -> Optional[float]:
        """How long the kernel may sleep: 0 when there is work, None when only a descriptor can bring some."""
        if self.ready or self.inbox or self.stopping:
            return 0
        deadline = self.timers.next_deadline() if self.timers.heap else None
        return None if deadline is None else min(max(0.0, deadline - self.clock()), LONGEST_SLEEP_S)

    def poll(self, timeout: Optional[float]) -> None:
        """Wait for descriptors, at most `timeout` seconds (None: until one is ready, or somebody wakes it), and call
        their handlers. `sleeping` is set before the last look for work; the section's head says why."""
        if timeout != 0:
            self.sleeping = True
            if self.ready or self.inbox:    # came in before `sleeping` was set, so nobody woke us
                timeout = 0
        found = self.poller.poll(timeout)
        self.sleeping = False
        if timeout == 0:                # a kernel that slept is not the busy one that this is for
            self.polled = self.clock()
        if found:
            self.poller.handle(found)

    def turn(self, limit: Optional[float] = None) -> None:
        """Once round the loop, sleeping at most `limit` seconds (None: as long as nothing is due)."""
        self.work()
        timeout = None
        if self.ready or self.inbox or self.timers.heap or self.stopping:       # else nothing is due
            timeout = self.timeout()
        if limit is not None and (timeout is None or timeout > limit):
            timeout = limit
        if timeout != 0 or self.clock() - self.polled >= POLL_EVERY_S:
            self.poll(timeout)

    # -- ends of generators and tasks ----------------------------------------------------------------------------------

    def _returned(self, task: Task, value: Any) -> bool:
        """The innermost generator returned; an explicit value wins over what its last yield gave. (Async functions, and
        generators marked with `types.coroutine`, yield nothing of their own: theirs is what they return.) True: it has
        a caller, which goes on."""
        if value is None and task.generator.__class__ is not _COROUTINE and not (
                task.generator.gi_code.co_flags & inspect.CO_ITERABLE_COROUTINE):
            value = task.carried
        if task.callers:
            task.generator = caller = task.callers.pop()
            task.step = caller.send if task.interruption is None else task.handing
            task.carried = value
            if task.swap is not None:
                self.post(task.try_swap)    # which is done at top level only
            return True
        self._end(task, value)
        return False

    def _raised(self, task: Task, error: BaseException) -> bool:
        """The innermost generator raised; its caller gets the exception, if there is one. True: goes on."""
        if isinstance(error, RuntimeError) and isinstance(error.__cause__, StopIteration):
            values = error.__cause__.args       # ``raise StopIteration(v)``, a return in programs of old (PEP 479)
            return self._returned(task, values[0] if len(values) == 1 else values or None)
        if isinstance(error, _Terminated):
            self._end(task, None, _Terminated)
            return False
        if task.callers:
            task.generator = task.callers.pop()
            task.step = task.throwing
            task.carried = error
            if task.swap is not None:
                self.post(task.try_swap)
            return True
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        level = logging.DEBUG if task.watchers else logging.ERROR       # someone is told: no need to shout
        log.log(level, "task %r ended with an uncaught exception:\n%s", task, trace)
        status = MonitorStatus(task, type(error), trace)
        status.error = error
        self._end(task, status)
        return False

    def _end(self, task: Task, outcome: Any, how: Optional[type] = None) -> None:
        """The task is over; `how` is _Terminated when that was not its own doing, and stays as its `interruption`."""
        if self.tasks.pop(task.id, None) is None:
            return                      # it was over: a request woke it up twice, as the log says; the others go on
        task.outcome = outcome
        task.generator = task.step = task.callers = task.carried = task.mailbox = None
        task.interruption = how
        if task.swap is not None:
            task.swap.offer(None, None)
        self.daemons -= task.daemon
        self._check_idle()
        watchers, task.watchers = task.watchers, None
        for watcher in watchers or ():
            try:
                watcher(task)
            except Exception:
                log.exception("%r has ended, telling %r failed", task, watcher)

    def count_daemon(self, task: Task, flag: bool) -> None:
        """A task becomes a daemon, or stops being one. Also for tasks of our own that must not hold a program open."""
        self.daemons += flag - task.daemon
        task.daemon = flag
        self._check_idle()

    def _check_idle(self) -> None:
        """Tell those who wait for the last task that is no daemon. Looked at whenever one of the two counts changes."""
        if self.idle_events and len(self.tasks) == self.daemons:
            events, self.idle_events = self.idle_events, []
            for event in events:
                event.set()

    def notify_idle(self, event: threading.Event) -> None:
        """Set `event` once only daemon tasks are left; at once if that is so. Others may be started right after."""
        self.idle_events.append(event)
        self._check_idle()

    # -- as a thread ---------------------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Run the kernel in a daemon thread of its own; `finish` is what makes a program wait for its tasks."""
        self.thread = threading.Thread(target=self.loop, name=name, daemon=True)
        self.thread.start()

    def loop(self) -> None:
        """Run until `stop`, in the calling thread, which is the owner meanwhile; then end the tasks that are left. With
        a guest the sleeping is done by `Engine.visit`, which waits for the descriptors of both."""
        self.owner = get_ident()
        self.stopping = False
        while True:                     # and not "while not stopping": CPython 3.11 does not come to specialise the
            if self.stopping:           # instructions of a loop that is entered once and whose jump back is conditional
                break
            guest = self.guest
            if guest is None:
                self.turn()
            else:
                self.work()
                self.rounds += 1
                guest.visit()
        self._end_all()
        self.owner = None

    def _end_all(self) -> None:
        """Terminate every task, those too that others start in their ``finally`` blocks; but not for ever."""
        for _ in range(LAST_ROUNDS):
            for task in list(self.tasks.values()):
                task.terminate()
            self.run_inbox()
            left = math.inf
            while self.ready and len(self.tasks) < left:        # each may wait for another's end, as for a lock
                left = len(self.tasks)
                self.run_ready()
            if not self.tasks:
                return
        log.warning("these tasks did not end: %s", ", ".join(map(repr, self.tasks.values())))

    def stop(self, timeout: Optional[float] = None) -> bool:
        """End the loop and every task that is left; waits for it unless called from within, at most `timeout` seconds.
        Returns False when a task held the thread for longer than that. Any thread."""
        self.post(setattr, self, "stopping", True)
        if self.thread is not None and get_ident() != self.owner:
            self.thread.join(timeout)
            if self.thread.is_alive():
                log.warning("the program ends while task %r is busy", self.current)
                return False
            self.close()
        return True

    def close(self) -> None:
        """Give the descriptors back; for a kernel that does not run (any more). `stop` does it where it has waited for
        the thread; a kernel whose `loop` was called directly is for its caller to close."""
        self.waker.close()
        self.poller.close()

    def join(self, timeout: Optional[float] = None) -> bool:
        """Block this thread until only daemon tasks are left. True, or False when `timeout` seconds (None: no limit)
        were not enough. Any thread but the kernel's own, which would wait for itself."""
        idle = threading.Event()
        self.post(self.notify_idle, idle)
        return idle.wait(timeout)


_default: Optional[Kernel] = None       # guarded by _default_lock; replaced only while no kernel runs
_default_lock = threading.Lock()


def default_kernel() -> Kernel:
    """The kernel that runs this program's tasks; started on first use. Any thread."""
    return _default or _start_default()


def running_kernel() -> Optional[Kernel]:
    """The kernel that runs this program's tasks, if it has been started. Any thread."""
    return _default


STARTERS: List[Callable[[], None]] = []     # called by the thread that has just started the default kernel


def _start_default() -> Kernel:
    """The slow half of `default_kernel`: two threads may come here at once, and the second finds the first one's. The
    STARTERS are called without the lock, as they may make tasks. Any thread."""
    global _default
    with _default_lock:
        if _default is not None:
            return _default
        kernel = _default = Kernel()
        kernel.start("pycoslite")
        _hook_exit()
        _hook_exit_of_child()
    for starter in STARTERS:
        starter()
    return kernel


def main_kernel() -> Kernel:
    """A kernel for this program's tasks that the calling thread runs itself, with `Kernel.loop`. Before the first
    task: raises MisuseError when there is a kernel already. Nothing waits for its tasks at the end of the program, nor
    calls STARTERS: who runs it decides."""
    global _default
    with _default_lock:
        if _default is not None:
            raise MisuseError("the kernel of this process runs already, in a thread of its own")
        _default = Kernel()
        return _default


@functools.lru_cache(maxsize=None)
def _hook_exit() -> None:
    """Once a process: have a program wait for its tasks when its own code has ended, and end them after its threads.

    The first is done before the threads are waited for, while threads and children can still be started; `atexit`,
    which comes after them, has been too late for both since 3.12. (3.8 has only `atexit`, and no such limit.) CPython
    3.12.0 and 3.12.1 refuse both as soon as the main program has ended (gh-113964, fixed in 3.12.2): there a task that
    goes on after that can use no thread pool, disk file, host name or child process that it did not use before; a
    program that has to run on them waits at its end itself, with ``Pycos().join()``.
    """
    atexit.register(_stop_at_exit)
    try:
        getattr(threading, "_register_atexit", atexit.register)(_wait_at_exit)
    except RuntimeError:                # the first task is made after that
        pass


_BEFORE_ALL = 1 << 30                   # of what `multiprocessing` calls at the end of a process


def _hook_exit_of_child() -> None:
    """A child that `multiprocessing` has forked leaves without `atexit`, and what its tasks have sent would be lost:
    that module's own list is for it. Tasks are waited for first, as in all programs, while pools and queues work."""
    process, util = sys.modules.get("multiprocessing.process"), sys.modules.get("multiprocessing.util")
    if process is not None and util is not None and process.parent_process() is not None:
        util.Finalize(None, _stop_at_exit, exitpriority=_BEFORE_ALL)


_SAME_KEY_S = 0.3                       # SIGINTs so close together are one Ctrl-C: it is often told to a process and
                                        # to its group, by `timeout` for one
_interrupted_at = -math.inf             # when the last one came
_leaving = False                        # there was a second Ctrl-C: nothing is waited for any more


def _on_interrupt(_signal: int, _frame: Any) -> None:
    """SIGINT while the program waits for its tasks at its end. A repetition raises nothing: it would break the locks
    that are held while the first one is answered."""
    global _interrupted_at
    before, _interrupted_at = _interrupted_at, time.monotonic()
    if _interrupted_at - before > _SAME_KEY_S:
        raise KeyboardInterrupt


def _take_interrupts(came_already: bool) -> None:
    """Have `_on_interrupt` called from now on, unless the program has a handler of its own."""
    global _interrupted_at
    if came_already:
        _interrupted_at = time.monotonic()
    if (threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        signal.signal(signal.SIGINT, _on_interrupt)


def _wait_at_exit() -> None:
    """A program lives until its non-daemon tasks have ended; Ctrl-C ends them, also when it came earlier and ended the
    program's own code."""
    kernel = _default
    if _leaving or kernel is None or kernel.thread is None:
        return
    interrupted = getattr(sys, "last_type", None) is KeyboardInterrupt and not hasattr(sys, "ps1")
    try:
        _take_interrupts(interrupted)
        if not interrupted:
            for waiter in list(WAITERS):
                waiter()
            kernel.join()
            return
    except KeyboardInterrupt:
        pass
    _stop_at_exit(HURRY_S)


def _stop_at_exit(timeout: Optional[float] = None) -> None:
    """The last act, by `atexit` or after Ctrl-C: end everything. With a `timeout` there is no waiting for tasks, and a
    kernel whose task does not yield is left behind after so many seconds."""
    global _leaving
    try:
        if timeout is None:
            _wait_at_exit()             # for what the last threads have started
        if not _leaving:
            stop_default(timeout)
    except KeyboardInterrupt:           # the second one: leave at once
        _leaving = True


STOPPERS: List[Callable[[], None]] = []     # what must end before the kernel that drives it
AFTERWARDS: List[Callable[[], None]] = []   # called when the default kernel has ended
WAITERS: List[Callable[[], None]] = []      # what else is waited for when the program's own code has ended


def stop_default(timeout: Optional[float] = None) -> None:
    """End the default kernel with all its tasks; the next task starts a new one. Not from within a task. A task that
    does not yield is waited for, at most `timeout` seconds."""
    global _default
    for stopper in STOPPERS:
        stopper()
    with _default_lock:
        kernel, _default = _default, None
    if kernel is not None:
        kernel.stop(timeout)
        for function in AFTERWARDS:
            function()


_inherited: List[Kernel] = []           # by a forked child; kept, or ``finally`` blocks of the parent's tasks would run


def _forget_after_fork() -> None:
    """A forked child has the parent's memory but none of its threads: it starts anew."""
    global _default, _default_lock
    if _default is not None:
        _inherited.append(_default)
        _default.close()
    _default = None
    _default_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)

# ======================================================================================================================
# 12. Synchronisation                                                     between tasks of one kernel, all over one line
# ======================================================================================================================
#
# Who has to wait stands in a line, first come first served; leaving it costs the same from the middle as from the
# front. What is waited for (a lock, a unit of a semaphore) is passed straight to the first in line, so nobody can
# overtake, and a task that is interrupted before it could take note of it gets it first (see `_Steps.interrupt`).
# `Event.set`, `Condition.notify` and `Semaphore.release` may be called by any thread, the rest by tasks only.
#
# A lock is in one of three states:
#
#   free       owner None, nobody in line
#   held       owner is a task, depth counts how often it acquired (1 unless reentrant)
#   orphaned   its owner ended without releasing it: who waits is told with MisuseError (`orphaned`), and so is who
#              comes later, instead of hanging. Noticed by a watcher of the owner, set only while somebody waits.
#
# A task that waits for a Condition goes through two lines: that of `notify` and then that of the lock. It is moved from
# one to the other by `admit` and never stands in both; its timeout counts for the first only. An exception that is
# thrown into it meanwhile moves it, too, and comes when it has the lock, as in asyncio and threading. One that ends by
# that and does not release what it had not asked for leaves the lock to the next in line, and not orphaned.


class _InLine(_Timed):
    """A wait in a line (task -> request) that ends with True, or with False when time is up."""

    __slots__ = ("line",)

    def __init__(self, line: OrderedDict, timeout: Optional[float]) -> None:
        super().__init__(timeout, False)
        self.line = line

    def begin(self, kernel: Kernel, task: Task) -> bool:
        if super().begin(kernel, task):
            return True
        self.line[task] = self
        return False

    def expired(self, task: Task) -> Any:
        self.line.pop(task, None)
        return False

    def abandon(self, task: Task) -> Any:
        self.line.pop(task, None)


class _Acquire(_InLine):
    """The wait for a lock; `depth` is what the lock's becomes when it is passed to this one."""

    __slots__ = ("lock", "depth")

    def __init__(self, lock: "Lock", blocking: bool, timeout: Optional[float]) -> None:
        forever = timeout is None or timeout < 0
        super().__init__(lock.line, 0 if not blocking else None if forever else timeout)
        self.lock = lock
        self.depth = 1

    def begin(self, kernel: Kernel, task: Task) -> bool:
        lock = self.lock
        owner = lock.owner
        if owner is None:
            lock.owner = task
            lock.depth = 1
        elif owner is task and lock.reentrant:
            lock.depth += 1
        else:
            self._check(task, owner)
            if super().begin(kernel, task):
                return True
            owner.watch(lock.orphaned)
            return False
        task.carried = True
        return True

    def _check(self, task: Task, owner: Task) -> None:
        if owner.kernel is not task.kernel:
            raise MisuseError("%r cannot wait for a lock of %r: one of them is a SysTask" % (task, owner))
        if owner is task and self.timeout is None:
            raise MisuseError("task %r waits for a lock that it holds itself: release it first, or use RLock" % task)
        if owner.generator is None and self.timeout is None:
            raise self.lock.abandoned(owner)


class Lock:
    """A lock between tasks, not reentrant; in async functions also ``async with lock``.

        yield lock.acquire()
        try:
            ...                         # may yield: nobody else gets in
        finally:
            lock.release()

    Tasks take turns only where they yield, so what is done between two yields needs no lock. It is no lock between
    threads, nor between a user task and a SysTask (MisuseError): these send each other messages. (Rows L01-L03.)
    """

    __slots__ = ("owner", "depth", "line", "__weakref__")
    reentrant = False

    def __init__(self) -> None:
        self.owner: Optional[Task] = None
        self.depth = 0                  # how often the owner has to release it
        self.line: OrderedDict = OrderedDict()

    def acquire(self, blocking: bool = True, timeout: Optional[float] = -1) -> Any:
        """Take the lock. Use with yield; of the tasks that wait, the first that came gets it.

        `blocking`: False does not wait at all. `timeout`: seconds to wait at most; negative (the default) or None: for
        ever. Gives True, or False when it is not to be had in time. Raises MisuseError where it never will be, without
        a timeout: the task has it already (and it is no RLock), or its owner ended without releasing it.
        """
        return _Acquire(self, blocking, timeout)

    def release(self) -> None:
        """Give the lock to who waits longest, or to nobody; never waits. In the task that has it only: raises
        RuntimeError elsewhere, with the name of the task that owns it."""
        self.check_owner("release")
        self.depth -= 1
        if not self.depth:
            self.pass_on()

    def check_owner(self, what: str) -> None:
        """Raise RuntimeError unless the running task owns the lock."""
        owner = self.owner
        if owner is None or not owner.is_running():
            raise RuntimeError("%s() of a %s that %s: only the task that acquired it can do that" % (
                what, type(self).__name__, "nobody has acquired" if owner is None else "task %r owns" % owner))

    def pass_on(self) -> None:
        """The owner has no more use for it."""
        owner = self.owner
        if not self.line:
            self.owner = None
            return
        owner.unwatch(self.orphaned)
        task, request = self.line.popitem(last=False)
        self.owner = task
        self.depth = request.depth
        if self.line:
            task.watch(self.orphaned)
        task.unpark(True)

    def orphaned(self, owner: Task) -> None:
        """Watcher of an owner that others wait for: it has ended; if it took the lock along, they are told."""
        if self.owner is owner:
            while self.line:
                self.line.popitem(last=False)[0].unpark_with(self.abandoned(owner))

    def abandoned(self, owner: Task) -> MisuseError:
        """The error of those who wait for a lock that nobody can release any more."""
        return MisuseError("task %r ended without releasing a %s: release it in a 'finally' block" % (
            owner, type(self).__name__))

    async def __aenter__(self) -> Any:
        await self.acquire()
        return self

    async def __aexit__(self, *_error: Any) -> None:
        self.release()


class RLock(Lock):
    """A lock that its owner may acquire again without waiting; it must be released as often, and is free only then.
    Otherwise like `Lock`. (Rows L04, L05.)"""

    __slots__ = ()
    reentrant = True


class _Notified(_InLine):
    """The wait for `Condition.notify`, then for its lock."""

    __slots__ = ("condition", "depth")

    def __init__(self, condition: "Condition", timeout: Optional[float]) -> None:
        super().__init__(condition.waiting, timeout)
        self.condition = condition

    def begin(self, kernel: Kernel, task: Task) -> bool:
        condition = self.condition
        self.depth = condition.depth
        condition.kernel = kernel
        late = super().begin(kernel, task)
        condition.pass_on()
        return late

    def abandon(self, task: Task) -> bool:
        """An exception comes when the task has the lock again, or who releases that in a ``finally`` block could not. A
        notification that it has no use for is the next one's."""
        condition, task.wait = self.condition, self
        task.watch(condition.left_by)       # before it is the owner: before others have it watched, see `orphaned`
        if self.line is condition.waiting:
            del self.line[task]
            condition.admit(task, self)
        else:
            condition.notify()
        return True


class Condition(RLock):
    """A reentrant lock, and a place where its owner waits until another task says that something has changed.

        yield condition.acquire()
        while not items:                # look again: another one may have been faster
            yield condition.wait()
        item = items.pop()
        condition.release()

    The lock is its own, there is no argument for another one; `acquire` and `release` are those of `RLock`.
    (Rows L06-L11.)
    """

    __slots__ = ("waiting", "kernel")

    def __init__(self) -> None:
        super().__init__()
        self.waiting: OrderedDict = OrderedDict()
        self.kernel: Optional[Kernel] = None

    def wait(self, timeout: Optional[float] = None) -> Any:
        """Release the lock, however often it was acquired, and wait for `notify`. Use with yield.

        `timeout`: seconds to wait for the notification at most (None: for ever). Gives True, and the lock is the task's
        again as often as it was; or False when time is up, and then the lock is not the task's. An exception that is
        thrown into the task meanwhile, its end by `terminate` included, comes when the lock is the task's again, so
        that it may be released in a ``finally`` block; if it is not, it becomes free when the task has ended. Raises
        RuntimeError unless the running task owns the lock.
        """
        self.check_owner("wait")
        return _Notified(self, timeout)

    def notify(self, n: int = 1) -> None:
        """Wake up to `n` waiting tasks, those that wait longest; each goes on once it has the lock. Who is not waiting
        yet hears nothing of it. Any thread, owner or not; never waits."""
        if self.kernel is not None:
            self.kernel.call(self._notify, n)

    def notify_all(self) -> None:
        """Wake all waiting tasks. Any thread."""
        self.notify(sys.maxsize)

    notifyAll = notify_all

    def _notify(self, n: int) -> None:
        while n > 0 and self.waiting:
            n -= 1
            self.admit(*self.waiting.popitem(last=False))

    def admit(self, task: Task, request: _Notified) -> None:
        """A task that waited to be notified waits for the lock from now on."""
        task.kernel.timers.cancel(task)
        request.line = self.line
        self.line[task] = request
        if self.owner is not None:
            self.owner.watch(self.orphaned)
        else:
            self.owner = task               # only for the moment: it is the first in line
            self.pass_on()

    def left_by(self, task: Task) -> None:
        """Watcher of a task that was interrupted while it waited: it has ended; if it has the lock, that is free."""
        if self.owner is task:
            self.pass_on()


class _EventWait(_InLine):
    __slots__ = ("event",)

    def __init__(self, event: "Event", timeout: Optional[float]) -> None:
        super().__init__(event.line, timeout)
        self.event = event

    def begin(self, kernel: Kernel, task: Task) -> bool:
        event = self.event
        if not event.flag:
            self.line = event.line
            if super().begin(kernel, task):
                return True
            if not event.flag and self.line is event.line:
                return False
            self.abandon(task)              # set by another thread between the two looks
            kernel.timers.cancel(task)
            task.wait = None
        task.carried = True
        return True

    def wake(self, task: Task) -> None:
        """The event was set."""
        if task.wait is self:
            task.unpark(True)


class Event:
    """A flag that tasks can wait for: ``yield event.wait()`` in any number of tasks, ``event.set()`` anywhere.

    Tasks of all kernels of the process may wait for the same event, SysTasks too. (Rows L12-L15.)
    """

    __slots__ = ("flag", "line", "__weakref__")

    def __init__(self) -> None:
        self.flag = False
        self.line: OrderedDict = OrderedDict()      # replaced by each `set`: no thread changes what another reads

    def set(self) -> None:
        """Set the flag: all who wait go on, also when `clear` follows at once; who comes later does not wait at all
        until then. Any thread; never waits."""
        self.flag = True
        line, self.line = self.line, OrderedDict()
        for task, request in list(line.items()):
            task.kernel.call(request.wake, task)

    def clear(self) -> None:
        """Reset the flag. Any thread."""
        self.flag = False

    def is_set(self) -> bool:
        """Whether the flag is set. Any thread."""
        return self.flag

    isSet = is_set

    def wait(self, timeout: Optional[float] = None) -> Any:
        """Wait until the flag is set. Use with yield. `timeout`: seconds to wait at most; None: for ever, 0 or less:
        only look. Gives True, or False when time is up."""
        return _EventWait(self, timeout)


class _TakeUnit(_InLine):
    __slots__ = ("semaphore",)

    def __init__(self, semaphore: "Semaphore", blocking: bool) -> None:
        super().__init__(semaphore.line, None if blocking else 0)
        self.semaphore = semaphore

    def begin(self, kernel: Kernel, task: Task) -> bool:
        semaphore = self.semaphore
        semaphore.kernel = kernel
        if not semaphore.value:
            return super().begin(kernel, task)
        semaphore.value -= 1
        task.carried = True
        return True


class Semaphore:
    """A counter that never gets below 0: whoever would take it there waits. In async functions also ``async with``.

        yield slots.acquire()           # at most `value` tasks are between these two lines at a time
        ...
        slots.release()

    `value`: what it begins with, at least 1; raises ValueError otherwise. (Rows L16-L18.)
    """

    __slots__ = ("value", "line", "kernel", "__weakref__")

    def __init__(self, value: int = 1) -> None:
        if not value >= 1:
            raise ValueError("a semaphore begins with 1 or more, not %r" % (value,))
        self.value = value
        self.line: OrderedDict = OrderedDict()
        self.kernel: Optional[Kernel] = None

    def acquire(self, blocking: bool = True) -> Any:
        """Take one off the counter, waiting while it is 0, for ever; of those who wait, the first that came goes on
        first. Use with yield. `blocking`: False does not wait. Gives True, or False when it is 0 and not `blocking`.
        """
        return _TakeUnit(self, blocking)

    def release(self) -> None:
        """Add one to the counter, or pass it to who waits longest; it may get above its first value. Any thread."""
        if self.kernel is None:         # nobody has ever taken one
            self.value += 1
        else:
            self.kernel.call(self._release)

    def _release(self) -> None:
        if self.line:
            self.line.popitem(last=False)[0].unpark(True)
        else:
            self.value += 1

    async def __aenter__(self) -> Any:
        await self.acquire()
        return self

    async def __aexit__(self, *_error: Any) -> None:
        self.release()


# ======================================================================================================================
# 13. Channels and categories                                                 one message to many, many messages by kind
# ======================================================================================================================
#
# A channel keeps its subscribers in three dicts (used as sets that keep their order): `_tasks` of one kernel, that of
# the first subscriber, whose mailboxes it fills in a plain loop; `_others`, channels and tasks of other kernels, which
# are asked one by one; and `_far`, those in other processes, which a section further up reaches (`spread`). All three
# are changed in that kernel's thread only: calls from elsewhere are posted to it, so that a message sent and a
# subscription made by the same thread take effect in this order.
#
# Chained channels may not feed themselves. What is known of that here is checked (`_feeds`); a ring over several
# processes is not noticed.


def _takes(function: Any, count: int) -> bool:
    """Whether `function` can be called with so many arguments."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except (TypeError, ValueError):     # other arguments; no function; a built-in that does not tell
        return False
    return True


class _Enough(_InLine):
    """Waits until a channel has `n` subscribers."""

    __slots__ = ("n",)

    def __init__(self, line: OrderedDict, n: int, timeout: Optional[float]) -> None:
        super().__init__(line, timeout)
        self.n = n


class Channel:
    """Sends each message to all subscribers, tasks or other channels: ``yield channel.subscribe(task)``,
    ``channel.send(message)``.

    `name` begins with a letter or digit (what stands before is left out, with a warning) and belongs to one channel of
    the process at a time; a second one works, but cannot be found by its name. `transform(name, message)` returns what
    is sent instead, None for nothing.
    """

    _named: Any = weakref.WeakValueDictionary()     # name -> the channel that has it, until it is gone
    _spreading: Any = weakref.WeakValueDictionary()     # id -> each that has had subscribers in other processes
    remote = False                                  # whether it is in another process
    answers_until: Any = staticmethod(lambda timeout: None)     # both are replaced by the section that knows how other
    spread: Any = staticmethod(lambda *_: [])                   # processes are reached

    def __init__(self, name: str, transform: Optional[Callable[[str, Any], Any]] = None) -> None:
        stripped = name.lstrip("".join(char for char in name if not char.isalnum()))
        if stripped != name:
            log.warning("the name of channel %r should begin with a letter or digit: it is %r now (made in %s)", name,
                        stripped, caller())
        self.name = stripped
        self.location: Optional[Location] = None    # of the process it is in, for a channel of another process
        self._transform: Optional[Callable] = None
        self._tasks: Dict[Task, None] = {}          # subscribers of the kernel `_kernel`; changed in its thread only
        self._others: Dict[Any, None] = {}          # channels, and tasks of other kernels
        self._far: Dict[Any, None] = {}             # subscribers in other processes
        self.routes: Any = None                     # how these are reached, kept by who spreads until they change
        self._kernel: Optional[Kernel] = None
        self._line: OrderedDict = OrderedDict()     # of those who wait for subscribers
        if Channel._named.setdefault(stripped, self) is not self:
            log.warning("there is a channel %r already: the new one, made in %s, cannot be found by this name; close() "
                        "the first, or take another name", stripped, caller())
        if transform is not None:
            self.set_transform(transform)

    def __repr__(self) -> str:
        return self.name if self.location is None else "%s@%r" % (self.name, self.location)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Channel) and other.name == self.name and other.location == self.location

    def __hash__(self) -> int:
        return hash((self.name, self.location))

    @classmethod
    def named(cls, name: str) -> Optional["Channel"]:
        """The channel of this process that has that name. Any thread."""
        return Channel._named.get(name)

    def set_transform(self, transform: Optional[Callable[[str, Any], Any]]) -> int:
        """Use another transform from now on, or none. Any thread. Returns 0, or -1 unless it takes two arguments."""
        if transform is not None and not _takes(transform, 2):
            log.warning("channel %r: %r, given in %s, is no transform: that is a function of two arguments, a "
                        "channel's name and a message", self, transform, caller())
            return -1
        self._transform = transform
        return 0

    # -- subscribers ---------------------------------------------------------------------------------------------------

    def subscribe(self, subscriber: Any, timeout: Optional[float] = None) -> Any:
        """Let a task or channel, of this process or another, have every message from now on. Use with yield.

        `timeout` matters for channels of other processes only. Gives 0 (also when it has them already: each message
        comes once), or -1 for anything else, for a task that has ended or whose process is lost, and for a channel that
        would feed itself.
        """
        if isinstance(subscriber, Channel):
            if subscriber._feeds(self):
                log.warning("channel %r cannot subscribe to %r, which would feed itself (%s)", subscriber, self,
                            caller())
                return Value(-1)
        elif not isinstance(subscriber, Task) or not subscriber.reachable():
            return Value(-1)
        elif self._kernel is None:
            self._kernel = subscriber.kernel
        self._change(self._subscribe, subscriber)
        return Value(0)

    def unsubscribe(self, subscriber: Any, timeout: Optional[float] = None) -> Any:
        """Send it no more messages. Use with yield. Gives 0, or -1 when it is no subscriber."""
        if not any(subscriber in some for some in (self._tasks, self._others, self._far)):
            return Value(-1)
        self._change(self._unsubscribe, subscriber)
        return Value(0)

    def _change(self, function: Callable, *args: Any) -> None:
        """Call `function` in the thread that owns the subscribers."""
        if self._kernel is None:
            function(*args)
        else:
            self._kernel.call(function, *args)

    def _subscribe(self, subscriber: Any) -> None:
        if subscriber.remote:
            if not subscriber.reachable():
                return                              # just now
            self._far[subscriber], self.routes = None, None
            Channel._spreading[id(self)] = self
        else:
            near = isinstance(subscriber, Task) and subscriber.kernel is self._kernel
            (self._tasks if near else self._others)[subscriber] = None
            if is_time_to_look(len(self._tasks) + len(self._others)):       # nothing may be sent for long
                for task in [*self._tasks, *self._others]:
                    if isinstance(task, Task) and not task.reachable():
                        self._unsubscribe(task)
        count = self.count()
        for task, request in list(self._line.items()):
            if count >= request.n:
                del self._line[task]
                task.unpark(True)

    def _unsubscribe(self, subscriber: Any) -> None:
        self._tasks.pop(subscriber, None)
        self._others.pop(subscriber, None)
        if subscriber.remote:
            self._far.pop(subscriber, None)
            self.routes = None

    @staticmethod
    def drop_far(gone: Callable[[Any], bool]) -> None:
        """Have all channels of this process forget the subscribers in other processes that `gone` says. Any thread."""
        for reference in Channel._spreading.valuerefs():
            channel = reference()
            if channel is not None:
                channel._change(channel._drop_far, gone)

    def _drop_far(self, gone: Callable[[Any], bool]) -> None:
        for subscriber in list(filter(gone, self._far)):
            self._unsubscribe(subscriber)

    def count(self) -> int:
        """How many subscribers there are. Any thread."""
        return len(self._tasks) + len(self._others) + len(self._far)

    def enough(self, n: int, timeout: Optional[float] = None) -> Request:
        """Waits until there are `n` subscribers, at most `timeout` seconds; True, or False when time is up. Use with
        yield, in a task of the subscribers' kernel."""
        return _Enough(self._line, n, timeout)

    def _feeds(self, channel: "Channel") -> bool:
        """Whether what is sent here arrives there, as far as this process can know."""
        return self == channel or any(other._feeds(channel) for other in self._others if isinstance(other, Channel))

    # -- messages ------------------------------------------------------------------------------------------------------

    def send(self, message: Any) -> int:
        """Send `message` to all who are subscribers now; never waits. Any thread. Returns 0, or -1 for a channel of
        another process that cannot be reached."""
        self._change(self.publish, message)
        return 0

    @types.coroutine
    def deliver(self, message: Any, timeout: Optional[float] = None, n: int = 0) -> Any:
        """Like `send`, and tells how many got it. Use with yield.

        `n`: wait until there are so many subscribers before sending; 0: do not. `timeout`: seconds to wait for them,
        and for answers from other processes (None: for ever). Gives how many tasks have the message in their mailbox,
        those of chained channels and of other processes too; 0 when time is up before there are `n`, or the transform
        drops the message; -1 for negative `n`. It does not wait for more than `n` answers of other processes, unless
        `n` is 0: then for all of them.
        """
        if n < 0:
            return -1
        answers = self.answers_until(timeout)
        if self.count() < n and not (yield self.enough(n, timeout)):
            return 0
        count = self.publish(message, answers)
        if answers is not None and answers.open and not 0 < n <= count:
            count += yield answers.wait(n - count)
        return count

    def publish(self, message: Any, answers: Any = None) -> int:
        """Send to all subscribers, and count the tasks of this process that were reached; `answers` notes whom of other
        processes to wait for. In the thread of the subscribers' kernel."""
        if self._transform is not None:
            try:
                message = self._transform(self.name, message)
            except Exception:
                log.exception("channel %r: the transform failed, its message is dropped", self)
                return 0
            if message is None:
                return 0
        tasks = self._tasks
        ended = [task for task in tasks if task.send(message)]
        count = len(tasks) - len(ended)
        for other in list(self._others):
            if isinstance(other, Channel):
                count += other.publish(message, answers)
            elif other.send(message) == 0:
                count += 1
            else:
                ended.append(other)
        if self._far:
            ended += self.spread(self, self._far, message, answers)
        for task in ended:
            self._unsubscribe(task)
        return count

    # -- its name ------------------------------------------------------------------------------------------------------

    def register(self, name: Optional[str] = None) -> int:
        """Let others find the channel with `Channel.locate(name)`; the default is its own name. Any thread. Returns 0,
        or -1 when the name is taken or is another channel's."""
        name = self.name if name is None else name
        if not isinstance(name, str) or Channel._named.get(name, self) is not self:
            return -1
        if NAMES.setdefault(("channel", name), self) is self and Channel._named.get(self.name) is self:
            for watcher in NAME_WATCHERS:
                watcher("channel", name, self)
            return 0
        return -1

    def unregister(self, name: Optional[str] = None) -> int:
        """Take a name back. Any thread. Returns 0, or -1 when the channel does not have it."""
        return _forget_name(("channel", self.name if name is None else name), self)

    def close(self) -> None:
        """Take back all its names, drop its subscribers and free its own name. Any thread."""
        for kind, name in [key for key, thing in list(NAMES.items()) if thing is self]:
            _forget_name((kind, name), self)
        if Channel._named.get(self.name) is self:
            del Channel._named[self.name]
        for subscribers in (self._tasks, self._others, self._far):
            self._change(subscribers.clear)


_NO_MESSAGE = object()                  # what no message can be


class CategorizeMessages:
    """Receives a task's messages by category, in order of arrival within each.

        box = pycoslite.CategorizeMessages(task)
        box.add(lambda message: "urgent" if message.startswith("!") else None)
        message = yield box.receive("urgent")       # ordinary ones wait in the box meanwhile
        message = yield box.receive()               # those first, in the order they came

    `task` is the task itself; use it in that task only, and let it receive through the box alone: `task.receive` knows
    nothing of what is in there. Messages have the category that the functions given to `add` tell. (Rows U15-U18.)
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._functions: List[Callable] = []
        self._stored: Dict[Any, deque] = {}         # category -> messages that came while another one was waited for

    def add(self, function: Callable[[Any], Any]) -> None:
        """Ask `function(message)` for the category before those added earlier; None lets it ask those. What does not
        take one argument is ignored, with a warning."""
        if _takes(function, 1):
            self._functions.insert(0, function)
        else:
            log.warning("%r, given in %s, tells no category: it must be a function of one argument, the message",
                        function, caller())

    def remove(self, function: Callable[[Any], Any]) -> None:
        """Do not ask `function` any more; a warning when it was not asked."""
        if function in self._functions:
            self._functions.remove(function)
        else:
            log.warning("%r, to be removed in %s, is not among the functions that tell categories", function, caller())

    def _category(self, message: Any) -> Any:
        for function in self._functions:
            try:
                category = function(message)
                hash(category)
            except Exception:
                log.exception("%r failed to tell the category of a message", function)
                continue
            if category is not None:
                return category
        return None

    @types.coroutine
    def receive(self, category: Any = None, timeout: Optional[float] = None, alarm_value: Any = None) -> Any:
        """The oldest message of a category. Use with yield, in the task itself.

        `category`: what one of the functions gave, None: that of messages for which all gave None. `timeout`: seconds
        to wait at most (None: for ever, 0: only what is there). `alarm_value`: what it gives when time is up; a message
        that equals it ends the wait, too, also when it is None and the message is. Messages of other categories that
        come meanwhile are kept, in order, for the call that asks for them.
        """
        stored = self._stored.get(category)
        if stored:
            return stored.popleft()
        task, clock = self._task, self._task.kernel.clock
        deadline = None if timeout is None else clock() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - clock())
            message = yield task.receive(left, _NO_MESSAGE)
            if message is _NO_MESSAGE or message is alarm_value or message == alarm_value:
                return alarm_value
            found = self._category(message)
            if found == category:
                return message
            self._stored.setdefault(found, deque()).append(message)

    recv = receive


# ======================================================================================================================
# 14. Threads and databases                                         calls that block run in threads, the task waits here
# ======================================================================================================================
#
# A call (`_ThreadCall`) goes through these hands: the task's kernel puts it into the pool's queue, a pool's thread
# takes it out and makes it, and posts what came of it back to the kernel, which unparks the task. A task that is
# interrupted meanwhile takes its wish back (`abandon`): a call that has not begun is never made, one that has begun
# runs to its end unheard, as threads cannot be stopped.
#
# Threads are started when a call finds no idle one, up to the pool's number, and stay until `terminate`. They are
# daemons: a program ends without waiting for a call that no task waits for.


class _ThreadCall(Request):
    """A call that a pool's thread makes for a task."""

    __slots__ = ("pool", "function", "kernel", "task")

    def __init__(self, pool: "AsyncThreadPool", function: Callable) -> None:
        self.pool = pool
        self.function: Optional[Callable] = function    # None: not wanted any more

    def begin(self, kernel: Kernel, task: Task) -> bool:
        self.kernel, self.task = kernel, task
        task.wait = self
        self.pool.put(self)
        return False

    def abandon(self, task: Task) -> None:
        self.function = None

    def run(self) -> None:
        """Make the call. The pool's thread."""
        function = self.function
        if function is None:
            return
        try:
            result, error = function(), None
        except BaseException as raised:     # raised in the task instead, SystemExit too
            result, error = None, raised
        self.kernel.post(self._done, result, error)

    def _done(self, result: Any, error: Optional[BaseException]) -> None:
        if self.task.wait is not self:
            return
        if error is None:
            self.task.unpark(result)
        else:
            self.task.unpark_with(error)


class AsyncThreadPool:
    """At most `num_threads` threads that make blocking calls for tasks.

        def reader(pool, path, task=None):
            print((yield pool.async_task(path.read_text, encoding="utf-8")))

        with pycoslite.AsyncThreadPool(4) as pool:      # outside of tasks, as its end waits in terminate()
            pycoslite.Task(reader, pool, path).value()

    For calls that wait (files, databases, libraries that know nothing of tasks): the interpreter runs one thread of
    Python code at a time, so a computation gains nothing here. `num_threads`: 1 or more, else ValueError. The threads
    are daemons, started when there is work for them; `terminate` ends them. Any thread may make a pool, and tasks of
    any kernel use it. (Rows H01-H04.)
    """

    def __init__(self, num_threads: int) -> None:
        if not num_threads >= 1:
            raise ValueError("a thread pool needs 1 thread or more, not %r" % (num_threads,))
        self._most = num_threads
        self._calls: queue.Queue = queue.Queue()
        self._lock = threading.Lock()       # guards: the rest
        self._threads: List[threading.Thread] = []
        self._idle = 0                      # threads that no queued call is meant for
        self._closed = False

    def async_task(self, *args: Any, **kwargs: Any) -> Any:
        """``async_task(function, *args, **kwargs)`` or ``async_task(target=function, args=(), kwargs={})``: have it
        called in a thread of the pool. Use with yield.

        Gives what it returns, or raises what it raises (SystemExit too: it ends the task, not the thread). Waits for a
        thread when all are busy, first come first served. There is no timeout, as a thread cannot be stopped: a call
        that has begun goes on, unheard, when its task is terminated or gets an exception meanwhile. Raises MisuseError
        after `terminate`.
        """
        if args:
            function, args = args[0], args[1:]
        else:
            function, args, kwargs = _keyword_form(kwargs)
        return _ThreadCall(self, functools.partial(function, *args, **kwargs))

    def put(self, call: _ThreadCall) -> None:
        """Queue a call; raises MisuseError once the pool was terminated. Any thread."""
        with self._lock:
            if self._closed:
                raise MisuseError("this thread pool was terminated: make another one")
            self._calls.put(call)
            if self._idle:
                self._idle -= 1
            elif len(self._threads) < self._most:
                name = "pycoslite pool thread %d" % (len(self._threads) + 1)
                self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
                self._threads[-1].start()

    def _work(self) -> None:
        while True:
            call = self._calls.get()
            try:
                if call is None:
                    return
                call.run()
            finally:
                call = None                 # or an idle thread would keep its last task alive
                with self._lock:
                    if self._calls.empty():
                        self._idle += 1
                self._calls.task_done()

    def join(self) -> None:
        """Block the calling thread until all calls are done, those too that are queued meanwhile. Raises MisuseError in
        a task, which waits for its calls by yielding them."""
        self._outside("join")
        self._calls.join()

    @staticmethod
    def _outside(call: str) -> None:
        kernel = _default
        if kernel is not None and kernel.owner == get_ident():
            raise MisuseError("%s() of a thread pool was called inside task %r, which would block all of them: call it "
                              "in the main thread" % (call, kernel.current))

    def terminate(self) -> None:
        """Block the calling thread until all calls are done, then end the threads. The pool takes no more calls: they
        raise MisuseError. Itself raises MisuseError in a task. (A pool that is not terminated keeps its threads until
        the program ends, which does not wait for them.)"""
        self._outside("terminate")
        with self._lock:
            self._closed = True
        self.join()
        with self._lock:
            threads, self._threads = self._threads, []
        for _ in threads:
            self._calls.put(None)
        for thread in threads:
            thread.join()

    def __enter__(self) -> "AsyncThreadPool":
        return self

    def __exit__(self, *_error: Any) -> None:
        self.terminate()


class AsyncDBCursor:
    """A database cursor (PEP 249) whose slow calls run in `thread_pool`, one at a time.

        connection = sqlite3.connect(path, check_same_thread=False)
        cursor = pycoslite.AsyncDBCursor(pool, connection.cursor())
        yield cursor.execute("SELECT name FROM users WHERE id = ?", (5,))
        name, = cursor.fetchone()       # not waited for: a driver that has fetched all rows already answers at once

    Several tasks may use one cursor; their calls take turns, but what one fetches is what the last call found. All
    other attributes are those of `cursor`. The driver must allow its use in several threads; `sqlite3` does with
    ``check_same_thread=False``. (Rows H05-H08.)
    """

    def __init__(self, thread_pool: AsyncThreadPool, cursor: Any) -> None:
        self._pool = thread_pool
        self._cursor = cursor
        self._turn = Lock()
        self._busy = threading.Lock()       # held in the thread: its task may be gone and the turn passed on

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def _run(self, method: Callable, *args: Any) -> Request:
        return _Sequence(self._in_turn(method, *args))

    @types.coroutine
    def _in_turn(self, method: Callable, *args: Any) -> Any:
        yield self._turn.acquire()
        try:
            return (yield self._pool.async_task(self._exclusively, method, *args))
        finally:
            self._turn.release()

    def _exclusively(self, method: Callable, *args: Any) -> Any:
        with self._busy:
            return method(*args)

    def execute(self, query: str, args: Any = None) -> Any:
        """The cursor's ``execute(query)``, or ``execute(query, args)``. Use with yield. Gives what that returns."""
        return self._run(self._cursor.execute, query, *(() if args is None else (args,)))

    def executemany(self, query: str, args: Any) -> Any:
        """The cursor's ``executemany(query, args)``. Use with yield."""
        return self._run(self._cursor.executemany, query, args)

    def callproc(self, proc: str, args: Any = ()) -> Any:
        """The cursor's ``callproc(proc, args)``. Use with yield."""
        return self._run(self._cursor.callproc, proc, args)


# ======================================================================================================================
# 15. Async sockets and TLS                                         what would not block is done at once, the rest waits
# ======================================================================================================================
#
# A blocking method returns an operation, the request a task yields. Its system call is made at once; if that would
# block, the operation takes its place in the descriptor's watch (one reader, one writer) and the task is parked:
#
#   begin      tried; parked if it would block
#   retry      the poller says ready: tried again, which ends it or leaves it where it is
#   expired    the timer ran out: what had been done so far, or socket.timeout
#   abandon    an exception is thrown into the task
#   closed     another task closed the descriptor: end of file for a reader, an OSError for a writer
#
# All but `begin` give the place in the watch back, so whatever ends a wait leaves nothing behind. A descriptor stays in
# the poller between two waits (level triggered): waiting again costs no system call. It is taken out when it reports
# something nobody waits for, as it would go on reporting that. Everything here belongs to the kernel's thread.
#
# Trying costs a system call and an exception when nothing is there. So reading begins with the wait where that is to be
# expected (`drained`): the last recv got less than it asked for, or something was sent since. Nothing can be missed by
# that, as the poller reports what has been there for long just like what has just come.
#
# Blocking sockets, for threads that are no tasks, run the very same operations; `_run_here` takes the kernel's place.
#
# What a wait that ends early does to the stream:
#
#              timeout                                exception thrown in, or terminated
#   recv, ...  nothing was taken                      likewise
#   recvall    gives what has come, if anything       what has come goes back: `_Stream.keep`
#   recv_msg   goes back, its length field too        likewise
#   sendall    gives how much went, if anything       nobody knows how much went: close the connection
#
# What went back is in `kept`, and the next read gets it first. Such a stream is not `plain`, so that every operation
# takes the slow way, where `kept` is looked at; the fast ways need not look. `plain` comes back when it is used up.
#
# Where the time of a small message goes (an echo over the loopback, CPython 3.11): more than half of it into system
# calls, the rest into some fifteen calls of Python functions. Hence: no `__getattr__` on AsyncSocket (an eighth of all
# instructions), `begin` and `retry` of `_Recv` and `begin` of `_SendAll` written out, the poller's own `poll`.

# Error that means "would block" -> what to wait for before the next try; 0: the operation's own direction. TLS has
# errors of its own, as it may have to write in order to read; they come in with `_load_ssl`.
_WANTS: Dict[type, int] = {BlockingIOError: 0}
_RAISES: Any = object()                 # as `at_close`: closing the descriptor is an error for this operation


class _Watch:
    """One descriptor's place in the poller of the kernel whose tasks wait for it, and the operations that wait."""

    __slots__ = ("fd", "kernel", "mask", "reader", "writer", "owes_end")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.owes_end = False                   # another thread has closed it, and no reader has heard of that
        self.kernel: Optional[Kernel] = None    # in whose poller it is
        self.mask = 0                           # for what
        self.reader: Any = None
        self.writer: Any = None

    def wait(self, kernel: Kernel, operation: "_Operation") -> None:
        """Retry `operation` once what it wants is ready."""
        wants = operation.wants
        if self.kernel is not kernel:
            self._enter(kernel, wants)
        elif wants & ~self.mask:
            kernel.poller.modify(self.fd, self.mask | wants)
            self.mask |= wants
        if operation.reads:
            self.reader = operation
        else:
            self.writer = operation

    def _enter(self, kernel: Kernel, wants: int) -> None:
        """Move to the poller of another kernel. That happens when user tasks hand a socket to SysTasks, or when the
        kernel was ended and started anew. While somebody waits it is refused: the old kernel's poller would wake them
        from another thread."""
        if self.reader is not None or self.writer is not None:
            raise MisuseError("descriptor %d is waited for by tasks of another kernel: use it in user tasks or in "
                              "SysTasks, not in both" % self.fd)
        self.leave()
        kernel.poller.register(self.fd, wants, self.ready)
        self.kernel = kernel
        self.mask = wants

    def leave(self) -> None:
        """Take the descriptor out of the poller; it comes back with the next wait."""
        kernel, self.kernel, self.mask = self.kernel, None, 0
        if kernel is not None:
            kernel.poller.unregister(self.fd)

    def ready(self, events: int) -> None:
        """The poller's handler: `events` are the READ and WRITE of it that are due.

        An error or a hang-up of the descriptor comes as both, so that whoever waits tries and meets it. What nobody
        waits for is left out of the mask from then on: level-triggered pollers report it for ever.
        """
        reader = self.reader
        writer = self.writer
        if writer is None and reader is not None and reader.wants == events:
            reader.retry()                              # nearly always
            return
        unwanted = events
        if reader is not None and reader.wants & events:
            unwanted &= ~reader.wants
            reader.retry()
        if writer is not None and writer.wants & events:
            unwanted &= ~writer.wants
            writer.retry()
        if unwanted & self.mask:
            if reader is None and writer is None:       # its errors would be reported again and again
                self.leave()
            else:
                self.mask &= ~unwanted
                self.kernel.poller.modify(self.fd, self.mask)

    def closed(self) -> None:
        """The descriptor is closed: end the waits."""
        for operation in (self.reader, self.writer):
            if operation is not None:
                operation.closed()


def _fail(task: Task, error: BaseException) -> bool:
    """Answer of a `begin` that failed: `error` is raised at the task's yield."""
    task.carried = error
    task.step = task.throwing
    return True


class _Operation(Request):
    """A system call on a stream (an AsyncSocket or AsyncFile); subclasses define `attempt`, which makes it.

    It is made once for one call of a method. Until it is yielded nothing happens, so that a forgotten `yield` does
    no harm but is told of (`_Forgotten`). `stream` and `timeout` (seconds; 0 or None: no limit) are set by the
    subclass, `task` and `wants` only when it must wait. `attempt` may be called any number of times: what it has
    done so far it keeps in the operation. An operation that restarts its timeout has a `late` with a partial result.
    """

    __slots__ = ("stream", "timeout", "wants", "task")
    reads = True                        # takes the reader's place, else the writer's
    restarts = False                    # whenever something moved the timeout begins anew
    at_close: Any = _RAISES

    def attempt(self) -> Any:
        """The result; raises what is a key of `_WANTS` when there is none yet."""
        raise NotImplementedError

    def late(self) -> Any:
        """What running out of time gives."""
        raise socket.timeout("timed out")

    def begin(self, kernel: Kernel, task: Task) -> bool:
        """Try at once. A second reader or writer is refused here, and not by `wait`: the attempt itself would take
        bytes that the first one waits for."""
        watch = self.stream.watch
        if (watch.reader if self.reads else watch.writer) is not None:
            raise self._taken()
        try:
            task.carried = self.attempt()
            return True
        except OSError as error:
            wants = _WANTS.get(error.__class__)
            if wants is None:
                return self._refused(task, error)
        return self._park(kernel, task, wants)

    def _refused(self, task: Task, error: OSError) -> bool:
        """The first attempt failed: raises `error`, but not for the first read after another thread has closed the
        socket. Its end of file must not depend on who was faster."""
        watch = self.stream.watch
        if self.at_close is _RAISES or error.errno != errno.EBADF or not watch.owes_end:
            raise error
        watch.owes_end = False
        task.carried = self.at_close
        return True

    def _taken(self) -> MisuseError:
        """The error of who comes second. Two readers would each get parts of a stream, by chance."""
        return MisuseError("a task is %s %r already: one reader and one writer at a time, let them take turns with a "
                           "Lock" % ("reading from" if self.reads else "writing to", self.stream))

    def _park(self, kernel: Kernel, task: Task, wants: int) -> bool:
        """Wait: in the watch, in the timers, and as the task's `wait`. `wants` is 0 when the error named no direction:
        then it is the operation's own (TLS alone may want the other one)."""
        self.task = task
        self.wants = wants or (READ if self.reads else WRITE)
        self.stream.watch.wait(kernel, self)
        if self.timeout:
            kernel.timers.push(kernel.clock() + self.timeout, task)
        task.wait = self
        return False

    def retry(self) -> None:
        """The descriptor is ready."""
        task = self.task
        try:
            result = self.attempt()
        except Exception as error:              # it belongs to the task, and not to the poller
            self._not_done(error)
        else:
            self._leave()
            task.unpark(result)

    def _not_done(self, error: Exception) -> None:
        """It failed, or waits on; TLS may want to write in order to read, and the other way round."""
        wants = _WANTS.get(error.__class__)
        if wants is None:
            self._leave()
            self.task.unpark_with(error)
            return
        self.wants = wants or (READ if self.reads else WRITE)
        kernel = self.task.kernel
        self.stream.watch.wait(kernel, self)
        if self.restarts and self.timeout:
            kernel.timers.cancel(self.task)
            kernel.timers.push(kernel.clock() + self.timeout, self.task)

    def _leave(self) -> None:
        """Give the place back. The poller keeps the descriptor: the next wait is likely to want it there."""
        if self.reads:
            self.stream.watch.reader = None
        else:
            self.stream.watch.writer = None

    def expired(self, task: Task) -> Any:
        """Out of time: what `late` gives or raises."""
        self._leave()
        return self.late()

    def abandon(self, task: Task) -> None:
        """Interrupted; subclasses give back to the stream what they have taken."""
        self._leave()

    def closed(self) -> None:
        """Another task closed the stream."""
        self._leave()
        if self.at_close is _RAISES:
            self.task.unpark_with(_closed_meanwhile())
        else:
            self.task.unpark(self.at_close)


def _call_owner(kernel: Optional[Kernel], function: Callable[[], None]) -> None:
    """Call `function` in the thread that runs `kernel`; here if nobody does (any more, or in this forked process).

    For closing: a poller must not lose a descriptor while its thread is about to use it, and the waits that end with
    it belong to that thread. Any thread.
    """
    if kernel is None or kernel.owner is None or kernel in _inherited:
        function()
    else:
        kernel.call(function)


def _closed_meanwhile() -> OSError:
    """What a writer gets. ECONNABORTED makes it a ConnectionAbortedError, which `except OSError` of programs that send
    is ready for; EBADF would speak of a mistake."""
    return OSError(errno.ECONNABORTED, "closed by another task while this one waited for it")


_HELPERS = 4                            # threads for what the system has no way to do without blocking
_helpers: Optional[AsyncThreadPool] = None      # guarded by _helpers_lock
_helpers_lock = threading.Lock()


def _helper_threads() -> AsyncThreadPool:
    """The pool for files on disks and the look-up of host names; made when first needed. Any thread."""
    global _helpers
    with _helpers_lock:
        if _helpers is None:
            _helpers = AsyncThreadPool(_HELPERS)
        return _helpers


def _end_pool(pool: AsyncThreadPool) -> None:
    """End a pool's threads; one that is stuck in its call is left behind. Any thread but a kernel's."""
    calls = pool._calls
    with calls.all_tasks_done:                  # looking up a name can take long, and nobody waits for it any more
        done = calls.all_tasks_done.wait_for(lambda: not calls.unfinished_tasks, 1.0)
    if done:
        pool.terminate()


def _stop_helpers() -> None:
    """End the threads of `_helper_threads`."""
    global _helpers
    with _helpers_lock:
        pool, _helpers = _helpers, None
    if pool is not None:
        _end_pool(pool)


def _forget_helpers() -> None:
    """A forked child has none of the threads."""
    global _helpers, _helpers_lock
    _helpers = None
    _helpers_lock = threading.Lock()


STOPPERS.append(_stop_helpers)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_helpers)


def _run_operation(operation: _Operation) -> Any:
    """Make an operation's call in this thread, which waits for it: what a blocking socket does.

    The socket itself stays non-blocking, for its timeout. The guard is held for the call alone and not for the wait,
    so that one thread can write while another waits to read: TLS objects must not be entered by two at once.
    """
    while True:
        try:
            with operation.stream.guard:
                return operation.attempt()
        except OSError as error:
            wants = _WANTS.get(error.__class__)
            if wants is None:
                raise
        wants = wants or (READ if operation.reads else WRITE)
        if not _wait_here(operation.stream.watch.fd, wants, operation.timeout):
            return operation.late()


def _wait_here(fd: int, events: int, timeout: Optional[float]) -> bool:
    """Block this thread until `fd` is ready; False when `timeout` seconds (0 or None: no limit) were not enough."""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ if events == READ else selectors.EVENT_WRITE)
        return bool(selector.select(timeout or None))


_IN_A_THREAD: Dict[type, Callable] = {  # how a thread that is no task does what a task would yield
    Value: lambda request: request.value,
    _ThreadCall: lambda request: request.function(),
    _Timed: lambda request: time.sleep(request.timeout),
}


def _run_here(request: Any) -> Any:
    """Run an operation, or a generator of operations, in this thread; gives its result.

    It drives the generators of `connect`, `sendfile` ... as a kernel does, so that blocking sockets need no second copy
    of them. They may yield operations and what `_IN_A_THREAD` names, nothing else.
    """
    if not isinstance(request, types.GeneratorType):
        _Forgotten.begun(request)
        return _IN_A_THREAD.get(request.__class__, _run_operation)(request)
    step, value = request.send, None
    while True:
        try:
            asked = step(value)
        except StopIteration as stop:
            return stop.value
        try:
            step, value = request.send, _run_here(asked)
        except Exception as error:              # of the operation: it belongs to who yielded it
            step, value = request.throw, error


class _Call(_Operation):
    """One system call that needs nothing but its arguments: `function` raises BlockingIOError until it can be done.
    `at_close` is its result when another task closes the stream, unless that is to raise."""

    __slots__ = ("function", "args", "at_close")

    def __init__(self, stream: Any, function: Callable, *args: Any, at_close: Any = _RAISES) -> None:
        self.stream = stream
        self.timeout = stream.timeout
        self.function = function
        self.args = args
        self.at_close = at_close

    def attempt(self) -> Any:
        """The call itself; it keeps nothing between two attempts."""
        return self.function(*self.args)


class _WriteCall(_Call):
    """The same in the writer's place."""

    __slots__ = ()
    reads = False


class _Recv(_Operation):
    """Up to `size` bytes of a stream; also says whether more is likely to be there (`drained`)."""

    __slots__ = ("size",)
    at_close = b""

    def __init__(self, stream: Any, size: int) -> None:
        self.stream = stream
        self.timeout = stream.timeout
        self.size = size

    # What a generic operation does, written out for the one call that programs make most.

    def begin(self, kernel: Kernel, task: Task) -> bool:
        """The short way is for a stream that is drained, and in this kernel's poller already, without a timeout."""
        stream = self.stream
        watch = stream.watch
        if not stream.drained or watch.reader is not None or not self.size:
            return _Operation.begin(self, kernel, task)
        if watch.kernel is not kernel or not watch.mask & READ or self.timeout:
            return self._park(kernel, task, READ)
        self.task = task
        self.wants = READ
        watch.reader = task.wait = self
        return False

    def retry(self) -> None:
        """`_Operation.retry`, `attempt`, `_leave` and `Task.unpark` in one piece. It need not look at `kept`: while
        something is kept no read waits, as it is given out at once."""
        stream = self.stream
        try:
            data = stream.sock.recv(self.size)
        except Exception as error:              # as in `_Operation.retry`
            self._not_done(error)
        else:
            stream.drained = stream.plain and len(data) < self.size
            stream.watch.reader = None
            task = self.task
            if task.timer:
                task.kernel.timers.cancel(task)
            task.wait = HANDED
            task.carried = data
            task.kernel.ready.append(task)

    def attempt(self) -> bytes:
        """One recv, of what is kept first; it notes whether that took all there was."""
        stream = self.stream
        data = stream.sock.recv(self.size) if stream.kept is None else stream.again(self.size)
        stream.drained = stream.plain and len(data) < self.size
        return data


_CHUNK_BYTES = 1 << 20                  # most asked for at once: memory follows what came, and not what was promised


class _RecvAll(_Operation):
    """So many bytes and no fewer; `chunks` has what came so far, which an exception gives back to the stream.

    The end of the stream gives b"" and drops what came: half a record is of no use, and the caller has one test to
    make. It never sets `drained`: what it asks for is what is left, which says nothing about what is there.
    """

    __slots__ = ("left", "chunks")
    restarts = True
    at_close = b""

    def __init__(self, stream: Any, size: int) -> None:
        self.stream = stream
        self.timeout = stream.timeout
        self.left = size
        self.chunks: List[bytes] = []

    def begin(self, kernel: Kernel, task: Task) -> bool:
        """Wait first where nothing is to be expected; zero bytes need no waiting."""
        stream = self.stream
        if stream.drained and stream.watch.reader is None and self.left:
            return self._park(kernel, task, READ)
        return _Operation.begin(self, kernel, task)

    def attempt(self) -> bytes:
        """Take what is there, until it is all or would block. One piece that is all is given without a copy."""
        recv = self.stream.sock.recv if self.stream.kept is None else self.stream.again
        self.stream.drained = False
        while self.left:
            data = recv(self.left if self.left < _CHUNK_BYTES else _CHUNK_BYTES)
            if not data:
                return b""
            self.left -= len(data)
            if not self.left and not self.chunks:
                return data
            self.chunks.append(data)
        return b"".join(self.chunks)

    def late(self) -> bytes:
        """What has come, or socket.timeout."""
        if self.chunks:
            return b"".join(self.chunks)
        return super().late()

    def abandon(self, task: Task) -> None:
        """The next read gets what has come."""
        self.stream.keep(self.chunks)
        super().abandon(task)


class _RecvMsg(_RecvAll):
    """Length and body of one message; running out of time gives what came of it back to the stream, too.

    It is a `_RecvAll` twice: of the four bytes of the length, then, when these are there (`in_body`), of the body. What
    goes back has the length field in front, made anew, so that the next call begins where a message begins.
    """

    __slots__ = ("limit", "in_body")

    def __init__(self, stream: Any, limit: int) -> None:
        super().__init__(stream, _U32.size)
        self.limit = limit
        self.in_body = False

    def attempt(self) -> bytes:
        """The length, then the body. What is too long is refused before memory is taken for it."""
        if not self.in_body:
            header = super().attempt()
            if not header:
                return b""
            self.left, self.chunks, self.in_body = _U32.unpack(header)[0], [], True
            if self.left > self.limit:
                raise ProtocolError("a message of %d bytes was announced, the limit is %d: raise it with "
                                    "recv_msg(limit=...) or close this connection" % (self.left, self.limit))
        return super().attempt()

    def late(self) -> bytes:
        """Always socket.timeout: a part of a message is no result."""
        self._give_back()
        return _Operation.late(self)

    def abandon(self, task: Task) -> None:
        """As `late`: the next call has the whole message."""
        self._give_back()
        _Operation.abandon(self, task)

    def _give_back(self) -> None:
        """The message goes back from its beginning, as far as it has come: the length is made anew if it was complete,
        else its first bytes are in `chunks`."""
        header = [_U32.pack(self.left + sum(map(len, self.chunks)))] if self.in_body else []
        self.stream.keep(header + self.chunks)


class _SendAll(_Operation):
    """All of `rest`; `sent` counts what has gone.

    Data that is no bytes object is taken as a view and not copied: who yields it leaves it alone until then. Running
    out of time gives `sent` if that is not 0, and raises otherwise.
    """

    __slots__ = ("rest", "sent")
    reads = False
    restarts = True

    def __init__(self, stream: Any, data: Any) -> None:
        self.stream = stream
        self.timeout = stream.timeout
        self.rest = data if data.__class__ is bytes else memoryview(data).cast("B")
        self.sent = 0

    def begin(self, kernel: Kernel, task: Task) -> bool:
        """The short way: one send that takes all, on a plain stream nobody else writes to."""
        stream, rest = self.stream, self.rest
        if not stream.plain or stream.watch.writer is not None:
            return _Operation.begin(self, kernel, task)
        try:                                    # written out like `_Recv`: nearly always one call sends it all
            count = stream.sock.send(rest)
        except BlockingIOError:
            return self._park(kernel, task, WRITE)
        stream.drained = True
        if count == len(rest):
            task.carried = None
            return True
        self.sent = count
        self.rest = memoryview(rest)[count:]
        return _Operation.begin(self, kernel, task)

    def attempt(self) -> None:
        """Send until all has gone or it would block."""
        stream, rest = self.stream, self.rest
        stream.drained = stream.plain           # who asks has to wait for the answer
        send = stream.sock.send
        while rest:
            count = send(rest)
            if count == len(rest):
                return
            self.sent += count
            rest = self.rest = memoryview(rest)[count:]

    def late(self) -> int:
        """How many bytes went, or socket.timeout."""
        return self.sent or super().late()


class _SendParts(_SendAll):
    """Several buffers end to end, uncopied (`sendmsg`): a long message and the length in front of it."""

    __slots__ = ()
    begin = _Operation.begin

    def __init__(self, stream: Any, parts: list) -> None:
        self.stream = stream
        self.timeout = stream.timeout
        self.rest = parts
        self.sent = 0

    def attempt(self) -> None:
        """Send until all has gone or it would block."""
        while self.rest:
            count = self.stream.sock.sendmsg(self.rest)
            self.sent += count
            self.rest = _beyond(self.rest, count)


def _beyond(parts: list, count: int) -> list:
    """What is left of `parts` (memoryviews of bytes) after their first `count` bytes."""
    for index, part in enumerate(parts):
        if count < len(part):
            return [part[count:], *parts[index + 1:]]
        count -= len(part)
    return []


class _SendFile(_Operation):
    """From a file's descriptor to the socket inside the system: `left` bytes from `offset` on; gives how many went.

    At most 1 GiB is asked for in one call, as some systems take the count for a signed number of 32 bits.
    """

    __slots__ = ("source", "offset", "left", "sent")
    reads = False
    restarts = True

    def __init__(self, stream: Any, source: int, offset: int, count: int) -> None:
        self.stream = stream
        self.timeout = stream.timeout
        self.source = source
        self.offset = offset
        self.left = count
        self.sent = 0

    def attempt(self) -> int:
        """Have the system send until all has gone, it would block, or the file ends."""
        while self.left:
            count = os.sendfile(self.stream.watch.fd, self.source, self.offset + self.sent,
                                min(self.left, 1 << 30))
            if not count:                       # the file has become shorter
                break
            self.sent += count
            self.left -= count
        return self.sent

    def late(self) -> int:
        """How many bytes went, or socket.timeout."""
        return self.sent or super().late()


_CONNECTING = {errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EALREADY}


class _SockConnect(_Operation):
    """Connect to a numeric address; gives 0, or EAGAIN for a Unix socket whose listener's queue is full.

    The first attempt starts it, those that follow only ask how it ended (SO_ERROR, once the descriptor is writable).
    """

    __slots__ = ("address", "started")
    reads = False

    def __init__(self, stream: Any, address: Any) -> None:
        self.stream = stream
        self.timeout = stream.timeout
        self.address = address
        self.started = False

    def attempt(self) -> int:
        """Begin to connect, or ask how it ended. Raises OSError with the address in its text."""
        sock = self.stream.sock
        if self.started:
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        else:
            number = sock.connect_ex(self.address)
            if number == errno.EAGAIN and sock.family == getattr(socket, "AF_UNIX", None):
                return errno.EAGAIN
            if number in _CONNECTING:
                self.started = True
                raise BlockingIOError(number, os.strerror(number))
        if number:
            raise OSError(number, "%s: %r" % (os.strerror(number), self.address))
        return 0


class _Accept(_Operation):
    """The next connection of a listener, without TLS."""

    __slots__ = ()

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.timeout = stream.timeout

    def attempt(self) -> tuple:
        """(AsyncSocket, address) of the next connection that still stands."""
        while True:
            try:
                conn, address = self.stream.sock.accept()
            except ConnectionAbortedError:      # gave up while it was in the queue
                continue
            return AsyncSocket(conn), address


class _AcceptTLS(_Accept):
    """The next connection whose handshake is done; handshakes run side by side in tasks of their own.

    An attempt that finds none takes all that the listener's queue holds. The operation ends when a handshake does,
    whose end retries it (`_Greeter._ended`). Handshakes go on while nobody is in accept(), but no new ones begin then.
    """

    __slots__ = ()

    def begin(self, kernel: Kernel, task: Task) -> bool:
        """As usual; `attempt` needs the task's kernel, for the tasks of the handshakes."""
        self.task = task
        return super().begin(kernel, task)

    def attempt(self) -> tuple:
        """A connection that is ready, else begin the handshakes of all that wait, and wait."""
        greeter = self.stream.greeter
        while not greeter.done:
            conn, address = super().attempt()
            greeter.greet(self.task.kernel, conn, address)
        return greeter.done.popleft()


class _Greeter:
    """Handshakes of a TLS listener: a client that keeps silent holds up nobody, and is dropped in the end."""

    __slots__ = ("listener", "done", "pending")

    def __init__(self, listener: "AsyncSocket") -> None:
        self.listener = listener
        self.done: deque = deque()              # (AsyncSocket, address) for accept()
        self.pending: Dict[Task, AsyncSocket] = {}

    def greet(self, kernel: Kernel, conn: "AsyncSocket", address: Any) -> None:
        """Start the handshake of a new connection; with too many under way the oldest gives way."""
        if len(self.pending) >= settings.pending_handshakes:
            next(iter(self.pending)).terminate()
        task = kernel.spawn(self._greet, conn, address)
        kernel.count_daemon(task, True)
        self.pending[task] = conn
        task.watch(self._ended)

    def _greet(self, conn: "AsyncSocket", address: Any) -> Generator:
        """Task of one handshake, a daemon: gives True when the connection is in `done`. A failure is the other end's
        doing and only logged; the listener goes on."""
        timeout = conn.gettimeout()
        conn.settimeout(settings.handshake_s)
        try:
            yield from conn.start_tls(self.listener.tls.context(True), server_side=True)
        except OSError as error:                # ssl.SSLError is one, too
            _log_refusal(address, error)
            return False
        conn.settimeout(timeout)
        self.done.append((conn, address))
        return True

    def _ended(self, task: Task) -> None:
        """A handshake's task is over, in whatever way: close what came to nothing, wake who waits in accept()."""
        conn = self.pending.pop(task)
        if task.outcome is not True:
            conn.close()
        waiting = self.listener.watch.reader
        if waiting is not None and self.done:
            waiting.retry()

    def close(self) -> None:
        """Drop every connection that accept() has not given out."""
        for task in list(self.pending):
            task.terminate()
        while self.done:
            self.done.popleft()[0].close()


def _log_refusal(address: Any, error: Exception) -> None:
    """The line about a client that failed in the handshake: `accept` tells its caller of good ones only."""
    log.warning("TLS connection from %s refused: %s", address, error)


# The newest TLS is used anyway, the version is what the other end must have at least; older ones than 1.2 are no more.
_TLS_VERSIONS = {"PROTOCOL_TLS": "TLSv1_2", "PROTOCOL_TLS_CLIENT": "TLSv1_2", "PROTOCOL_TLS_SERVER": "TLSv1_2",
                 "PROTOCOL_TLSv1_2": "TLSv1_2", "TLSv1_2": "TLSv1_2", "TLSv1_3": "TLSv1_3"}


@functools.lru_cache(maxsize=None)
def _load_ssl() -> Any:
    """The ssl module, which takes its time to import: only who uses TLS pays for it."""
    import ssl
    _WANTS[ssl.SSLWantReadError] = READ
    _WANTS[ssl.SSLWantWriteError] = WRITE
    return ssl


def _tls_version(version: Any) -> Any:
    """The ssl.TLSVersion that is meant by what users of several generations write: None, one of these, or one of the
    ssl.PROTOCOL_ constants. They are known by their names: not every Python has each of them, nor the same numbers."""
    ssl = _load_ssl()
    name = "TLSv1_2" if version is None else _TLS_VERSIONS.get(getattr(version, "name", ""))
    if name is None:
        raise ValueError("%r is not a version of TLS that is spoken here: TLS 1.2 or newer (None, "
                         "ssl.TLSVersion.TLSv1_2 or ssl.TLSVersion.TLSv1_3)" % (version,))
    return getattr(ssl.TLSVersion, name)


def tls_context(server_side: bool, certfile: str, keyfile: Optional[str] = None, cafile: Optional[str] = None,
                version: Any = None) -> "ssl.SSLContext":  # type: ignore[name-defined]  # noqa: F821
    """A TLS context in which both ends show a certificate and verify the other's.

    `certfile` (PEM) holds the certificate to show and its key, unless that is in `keyfile`. It must be signed by one of
    those in `cafile`; without it by those in `certfile` itself, so that copies of one self-signed pair trust each other
    and nothing else. Names are not compared: who holds a trusted certificate belongs to the cluster. `version`: the
    oldest TLS accepted, None for 1.2. Raises OSError, ssl.SSLError or ValueError. Any thread.
    """
    ssl = _load_ssl()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = _tls_version(version)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certfile, keyfile, password=functools.partial(_refuse_password, keyfile or certfile))
    context.load_verify_locations(cafile or certfile)
    return context


def _refuse_password(path: str) -> bytes:
    """A key is encrypted. Without this OpenSSL would ask for the password at the terminal, and wait."""
    raise ValueError("the key in %s is protected by a password, which nobody could be asked for: store it without "
                     "(openssl pkey -in %s -out NEW), in a file that only you can read" % (path, path))


class _Tls:
    """What a socket needs for TLS, as both kinds of end: whether it connects or listens shows only later.

    A context is made when first needed and kept, as that reads files and takes milliseconds. But that the files can
    be read is tested when the socket is made: the mistake is told where it was made. A listener and the connections
    it accepts share one.
    """

    __slots__ = ("given", "make")

    def __init__(self, certfile: Optional[str], keyfile: Optional[str], version: Any, given: Any) -> None:
        self.given = given                      # the user's own context
        if given is None:
            if certfile is None:
                raise ValueError("keyfile without certfile: a key is of no use without its certificate")
            for path in filter(None, (certfile, keyfile)):
                open(path, "rb").close()        # now, and not at the first connection
            _tls_version(version)
        self.make = functools.lru_cache(2)(functools.partial(
            tls_context, certfile=certfile, keyfile=keyfile, version=version))

    def context(self, server_side: bool) -> Any:
        """The context for one kind of end."""
        return self.given or self.make(server_side)


class _Stream:
    """What is common to the ways a descriptor is shared with tasks: its socket, its watch, its end."""

    # For the operations: `sock` (the socket itself), `watch`, `plain` (a stream without TLS and nothing kept),
    # `drained` (its last recv took all there was; only ever set while `plain`), `kept` (what interrupted reads had
    # taken, None if nothing), `guard` (of a blocking socket's threads), `tls` and `greeter` (None without TLS),
    # `original` (timeout the socket came with).
    __slots__ = ("sock", "watch", "timeout", "plain", "drained", "kept", "guard", "tls", "greeter", "original",
                 "__weakref__")

    def keep(self, chunks: List[bytes]) -> None:
        """Take back what a read had received before it was interrupted: the next one gets it first."""
        if chunks:
            self.kept = deque(chunks)
            self.plain = self.drained = False

    def again(self, size: int) -> bytes:
        """The socket's recv while something is kept: gives that first, at most `size` bytes of it and of one piece.
        With the last of it the stream is plain again, if it was before."""
        kept = self.kept
        if kept is None:
            return self.sock.recv(size)
        data = kept.popleft()
        if len(data) > size:
            kept.appendleft(data[size:])
            return data[:size]
        if not kept:
            self.kept = None
            self.plain = self._is_plain()
        return data

    def _again_into(self, buffer: Any, nbytes: int) -> int:
        """The socket's recv_into while something is kept."""
        view = memoryview(buffer).cast("B")
        data = self.again(nbytes or len(view))
        view[:len(data)] = data
        return len(data)

    def _is_plain(self) -> bool:
        """Whether the short cuts may be taken: of a stream without TLS only it is true that a recv that got less than
        it asked for took everything (TLS keeps bytes of its own, and a datagram says nothing about the next)."""
        return self.sock.type == socket.SOCK_STREAM and not hasattr(self.sock, "unwrap")

    def _check_unused(self, what: str) -> None:
        """Refuse to hand the socket on while a task waits for it, or bytes of it are here."""
        if self.watch.reader is not None or self.watch.writer is not None:
            raise MisuseError("a task waits for %r: end it before %s" % (self, what))
        if self.kept is not None:
            raise MisuseError("%r holds %d bytes that an interrupted recvall or recv_msg had received: read them "
                              "before %s" % (self, sum(map(len, self.kept)), what))

    def fileno(self) -> int:
        """The descriptor; -1 when closed. Any thread."""
        return self.sock.fileno()

    def close(self) -> None:
        """Close it: a task that waits to read gets end of file, one that waits to write an OSError. TLS says goodbye
        without waiting for the answer. Any thread; from another than the tasks' it happens soon, and not at once, and
        if no task waits, the next read still gets that end of file."""
        kernel = running_kernel()
        from_outside = kernel is None or kernel.owner != get_ident()
        _call_owner(self.watch.kernel, functools.partial(self._close, from_outside))

    def _close(self, from_outside: bool) -> None:
        """The poller first, then the socket, then the waits: its number may be another file's as soon as it is closed,
        and a task that is woken must find it closed."""
        if self.sock.fileno() < 0:
            return
        self.watch.leave()
        self.drained = False                    # the next call tries, and hears of it
        if self.greeter is not None:
            self.greeter.close()
        if hasattr(self.sock, "unwrap"):
            try:
                self.sock.unwrap()
            except (OSError, ValueError):       # the answer has not come yet, there was no handshake, it is broken
                pass
        self.sock.close()
        self.watch.owes_end = from_outside and self.watch.reader is None
        self.watch.closed()

    def detach(self) -> int:
        """Let go of the descriptor without closing it, and return it. Raises MisuseError while a task waits for it."""
        return self.unwrap().detach()

    def unwrap(self) -> socket.socket:
        """The socket itself, as it was given (TLS, once agreed, stays); this object is of no use any more. Raises
        MisuseError while a task waits for it, or an interrupted read has left something to be read."""
        self._check_unused("the socket is taken away")
        self.watch.leave()
        sock, self.sock = self.sock, socket.socket.__new__(type(self.sock))     # one without a descriptor
        self.drained = False
        sock.settimeout(self.original)
        return sock

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_exc: Any) -> None:
        self.close()

    def __lt__(self, other: Any) -> bool:
        if not isinstance(other, _Stream):
            return NotImplemented
        return self.fileno() < other.fileno()

    def __repr__(self) -> str:
        return "<%s %d>" % (AsyncSocket.__name__, self.fileno())

    def __del__(self) -> None:                  # dropped without close: the socket warns, the poller must forget it
        watch = getattr(self, "watch", None)
        if watch is not None and watch.kernel is not None and watch.reader is None and watch.writer is None:
            watch.leave()


class AsyncSocket(_Stream):
    """A socket for tasks: ``AsyncSocket(socket.socket())``.

        def client(task=None):
            with pycoslite.AsyncSocket(socket.socket()) as sock:
                sock.settimeout(5)
                yield sock.connect(("localhost", 8007))
                yield sock.sendall(b"hello")
                print((yield sock.recv(100)))

    `sock` may be of any family and kind; an AsyncSocket is shared with the new one. Methods marked "use with yield"
    make only their own task wait, as ``yield x``, ``yield from x`` or ``await x``. At one time one task may read and
    one may write; a second one gets MisuseError. Every other attribute is the socket's: bind, listen, setsockopt,
    shutdown ... `blocking`: see `setblocking`.

    TLS: with `certfile` (and `keyfile`, see `tls_context`; `ssl_version` is the oldest accepted) what the socket
    connects to and accepts speaks TLS, and both ends are verified. `context`, an ssl.SSLContext of your own, decides
    otherwise. A socket that is connected already takes `start_tls`. What has been cut off in the midst of sending, by
    a timeout or an exception, cannot be sent on: close the connection then.

    Any thread may make one; the methods belong to tasks, all of one kernel at a time. Raises OSError, ValueError,
    MisuseError.
    """

    __slots__ = ()
    _default_timeout: Optional[float] = 0
    _default_version: Any = None

    def __init__(self, sock: Any, blocking: bool = False, keyfile: Optional[str] = None, certfile: Optional[str] = None,
                 ssl_version: Any = None, context: Any = None) -> None:
        if isinstance(sock, AsyncSocket):
            log.warning("%r is an AsyncSocket already: the one made of it in %s shares its socket", sock, caller())
            for name in _Stream.__slots__[:-1]:
                setattr(self, name, getattr(sock, name))
            self.setblocking(blocking)
            return
        _check_wrappable(sock)
        self.sock = sock
        self.watch = _Watch(sock.fileno())
        self.timeout = AsyncSocket._default_timeout
        self.original = sock.gettimeout()
        _pass_on(sock)
        self.plain = self._is_plain()
        self.drained = False
        self.kept = self.guard = self.tls = self.greeter = None
        if certfile or keyfile or context:
            self._use_tls(_Tls(certfile, keyfile, ssl_version or AsyncSocket._default_version, context))
        sock.setblocking(False)
        if blocking:
            self.setblocking(True)

    def _use_tls(self, tls: _Tls) -> None:
        """TLS for what will be connected or accepted. A socket that is connected already is refused: nobody could
        tell which end of the handshake it is."""
        if not self.plain or _is_connected(self.sock):
            raise MisuseError("TLS begins with connect() or accept() of a stream socket; one that is connected already "
                              "takes 'yield sock.start_tls(context, server_side)'")
        self.tls = tls
        self.greeter = _Greeter(self)

    # -- reading -------------------------------------------------------------------------------------------------------

    def recv(self, bufsize: int) -> Any:
        """Receive up to `bufsize` bytes, as soon as there are any; b"" at the end of the stream, and when another task
        closes the socket meanwhile. Use with yield. Raises OSError (ConnectionResetError ...), socket.timeout after
        `settimeout` seconds, MisuseError while another task reads from the socket. (Row A04.)"""
        return _Recv(self, bufsize)

    def recvall(self, size: int) -> Any:
        """Receive exactly `size` bytes; b"" when the stream ends before. Use with yield. The timeout begins anew with
        every piece; when it runs out what has come is the result, and socket.timeout is raised if that is nothing. When
        the task is interrupted by an exception, what has come stays here: the next read gets it first. Raises
        ValueError for a negative size at once, else as `recv`."""
        if size < 0:
            raise ValueError("recvall(%d): a size cannot be negative" % size)
        return _RecvAll(self, size)

    def recv_into(self, buffer: Any, nbytes: int = 0) -> Any:
        """Receive up to `nbytes` bytes (0: as many as fit) into a writable buffer, as soon as there are any; gives
        their number, 0 at the end of the stream. Use with yield. For large amounts: the same memory serves again and
        again, and nothing is copied. Raises as `recv`."""
        receive = self.sock.recv_into if self.kept is None else self._again_into
        return _Call(self, receive, buffer, nbytes, at_close=0)

    def recvfrom(self, bufsize: int) -> Any:
        """Receive one datagram: (data, address of the sender). Use with yield. What is longer than `bufsize` bytes is
        cut off by the system. When another task closes the socket it gives (b"", None). Raises as `recv`. (Row A06.)
        """
        return _Call(self, self.sock.recvfrom, bufsize, at_close=(b"", None))

    def recv_msg(self, limit: Optional[int] = None) -> Any:
        """Receive one message that `send_msg` sent; b"" when it is empty, or the stream ended before its end. Use with
        yield.

        Other programs take part with a length of 4 bytes, big-endian, before each message. `limit`: most bytes that a
        message may have (None: `Settings.frame_bytes`); for a longer one ProtocolError is raised before memory is taken
        for it, and the connection is of no further use. After socket.timeout or an exception thrown into the task the
        next call has the same message. Raises OSError. (Row A11.)
        """
        return _RecvMsg(self, settings.frame_bytes if limit is None else limit)

    # -- writing -------------------------------------------------------------------------------------------------------

    def send(self, data: Any) -> Any:
        """Send what the system takes of `data` (bytes-like) at once, waiting only while it takes nothing; gives the
        number of bytes, which may be less than there are: `sendall` sends them all. Use with yield. Raises OSError
        (BrokenPipeError when nobody reads any more ...), socket.timeout, MisuseError while another task writes."""
        return _WriteCall(self, self.sock.send, data)

    def sendall(self, data: Any) -> Any:
        """Send all of `data` (bytes-like, not copied: leave it alone until then); gives None. Use with yield. The
        timeout begins anew whenever some of it went; when it runs out the number of bytes that went is the result, and
        socket.timeout is raised if there were none. That the system took it does not mean that the other end has it.
        Raises as `send`."""
        return _SendAll(self, data)

    def sendto(self, data: Any, address: Any) -> Any:
        """Send one datagram to `address`, for IP (host, port); gives the number of bytes. Use with yield. A host name
        is looked up first, in a thread, each time anew: who sends much gives a number. Raises OSError (socket.gaierror
        for an unknown name), socket.timeout. (Row A08.)"""
        if _is_name(self.sock.family, address):
            return self._sendto_name(data, address)
        return _WriteCall(self, self.sock.sendto, data, address)

    @types.coroutine
    def _sendto_name(self, data: Any, address: tuple) -> Generator:
        """`sendto` for a host name; the first address found is used, as a datagram tells nothing of its success."""
        addresses = yield _look_up(self.sock, address)
        return (yield _WriteCall(self, self.sock.sendto, data, addresses[0]))

    def send_msg(self, data: Any) -> Any:
        """Send `data` (bytes-like, less than 4 GiB: else ValueError) as one message: its length in four bytes,
        big-endian, then itself. Use with yield. Timeout, result and exceptions as for `sendall`, the count includes the
        length. Several tasks may send messages on one connection if they take turns with a Lock. (Row A10.)"""
        view = memoryview(data).cast("B")
        if len(view) >= 1 << 32:
            raise ValueError("a message of %d bytes is too long: 4 GiB is what its length field can tell" % len(view))
        header = _U32.pack(len(view))
        if len(view) <= _SMALL or not self.plain or not hasattr(self.sock, "sendmsg"):
            return _SendAll(self, header + view)
        return _SendParts(self, [memoryview(header), view])

    @types.coroutine
    def sendfile(self, file: Any, offset: int = 0, count: Optional[int] = None) -> Generator:
        """Send `count` bytes (None: the rest) of a binary file from `offset` on; gives the number of bytes sent, fewer
        if the file ends before. Use with yield.

        `file`: an open file object on a disk; its position is not kept. Inside the system where it can do that (no
        copy passes through Python), with TLS and elsewhere in pieces of 64 KiB, whose reading holds up other tasks if
        the disk is slow. Timeout as for `sendall`. Raises OSError.
        """
        file.seek(0, os.SEEK_END)
        size = max(0, file.tell() - offset)
        left = size if count is None else min(size, count)
        sent = 0
        if self.plain and hasattr(os, "sendfile"):
            try:
                sent = yield _SendFile(self, file.fileno(), offset, left)
            except OSError as error:            # a kind of file, or of socket, that this cannot do
                if error.errno not in (errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP):
                    raise
            else:
                left = 0
        file.seek(offset + sent)
        while left:
            data = file.read(min(left, 1 << 16))
            if not data or (yield _SendAll(self, data)) is not None:
                break
            sent += len(data)
            left -= len(data)
        return sent

    # -- connections ---------------------------------------------------------------------------------------------------

    @types.coroutine
    def connect(self, address: Any) -> Generator:
        """Connect, with TLS up to the end of its handshake; gives 0. Use with yield.

        `address`: what the family wants, for IP (host, port). Host names are looked up in a thread, without holding up
        other tasks, and every address found is tried in turn; `settimeout` counts for each of them. With TLS the host
        is told to the other end (SNI). Raises ConnectionRefusedError and other OSErrors (socket.gaierror for an unknown
        name), socket.timeout, ssl.SSLError; close the socket then. (Row A02.)
        """
        addresses = [address]
        if _is_name(self.sock.family, address):
            addresses = yield _look_up(self.sock, address)
        for candidate in addresses:
            try:
                while (yield _SockConnect(self, candidate)):
                    yield _Timed(0.01)          # a Unix listener's queue is full, and nothing tells when it is not
                break
            except OSError as failure:
                error = failure
        else:
            raise error
        if self.tls is not None:
            yield from AsyncSocket.start_tls(self, self.tls.context(False), server_hostname=_host_of(address))
        return 0                                # (not self.start_tls, which for a blocking socket is no generator)

    @types.coroutine
    def create_connection(self, host_port: Any, timeout: Optional[float] = None,
                          source_address: Any = None) -> Generator:
        """Bind to `source_address` and set `timeout` (seconds, for this and all later operations), if given, then
        `connect` to `host_port`; gives None. Use with yield. Raises as `connect`. (Row A18.)"""
        if source_address is not None:
            self.sock.bind(source_address)
        if timeout is not None:
            self.settimeout(timeout)
        yield from AsyncSocket.connect(self, host_port)
        yield Value(None)                       # a task's yield gives the last value if there is no other

    @types.coroutine
    def start_tls(self, context: Any, server_side: bool = False, server_hostname: Optional[str] = None) -> Generator:
        """Speak TLS on this connected socket from now on; gives None when the handshake is done. Use with yield.
        `context`: an ssl.SSLContext, see `tls_context`. Raises ssl.SSLError (an OSError) when the other end or its
        certificate is not accepted, socket.timeout, MisuseError while a task waits for the socket."""
        self._check_unused("TLS begins")
        _load_ssl()
        self.sock = context.wrap_socket(self.sock, server_side=server_side, do_handshake_on_connect=False,
                                        server_hostname=None if server_side else server_hostname)
        _pass_on(self.sock)
        self.plain = self.drained = False
        yield _Call(self, self.sock.do_handshake)

    def accept(self) -> Any:
        """The next connection of a listening socket: (AsyncSocket, address). Use with yield.

            sock.bind(("", 8007))
            sock.listen(128)
            while True:
                conn, _ = yield sock.accept()
                pycoslite.Task(serve, conn)     # one task for each connection

        The new socket has the default timeout, not the listener's. With TLS its handshake is done: handshakes go on
        side by side while accept is waited for, at most `Settings.pending_handshakes` of them and none for longer than
        `Settings.handshake_s`; who fails in it is dropped with a line in the log. Raises OSError (EMFILE when the
        process has no descriptor left: the connection stays in the queue), socket.timeout. (Row A03.)
        """
        return _Accept(self) if self.tls is None else _AcceptTLS(self)

    # -- settings ------------------------------------------------------------------------------------------------------

    def settimeout(self, timeout: Optional[float]) -> None:
        """Seconds that each operation may wait before it raises socket.timeout; 0 or None: no limit.

        Counts from the next operation on. Raises ValueError for a negative one.
        """
        if timeout is not None and timeout < 0:
            raise ValueError("a timeout of %r seconds is over already" % (timeout,))
        self.timeout = timeout

    def gettimeout(self) -> Optional[float]:
        """What `settimeout` was given; 0 for a new socket."""
        return self.timeout

    @staticmethod
    def setdefaulttimeout(timeout: Optional[float]) -> None:
        """The timeout of AsyncSockets made from now on, those that `accept` gives included: seconds as for
        `settimeout`, 0 or None: no limit. Any thread. (That of the socket module counts for none of them.)"""
        AsyncSocket._default_timeout = timeout

    @staticmethod
    def getdefaulttimeout() -> Optional[float]:
        """The timeout of new sockets: what `setdefaulttimeout` was given, 0 (no limit) at first."""
        return AsyncSocket._default_timeout

    @staticmethod
    def set_ssl_version(version: Any) -> None:
        """The oldest TLS that new sockets accept, unless they are made with `ssl_version` or a `context`: an
        ssl.TLSVersion (or ssl.PROTOCOL_TLS...), None for 1.2. Sockets that exist keep theirs, and links between peers
        have nothing to do with it. Raises ValueError for one that is too old. Any thread."""
        _tls_version(version)
        AsyncSocket._default_version = version

    @staticmethod
    def get_ssl_version() -> Any:
        """What `set_ssl_version` was given; None at first."""
        return AsyncSocket._default_version

    def setblocking(self, blocking: bool) -> None:
        """True: for threads that are no tasks. The same methods then block the calling thread and return their result,
        with the same timeouts, framing and exceptions; what `accept` gives is blocking too. One thread may read and
        one write at a time. False: for tasks, as at first. Not while anybody waits for the socket. (Row A15.)"""
        self.guard = threading.Lock() if blocking else None
        self.__class__ = _BlockingSocket if blocking else AsyncSocket   # no test in any call for it


_passed_on: set = set()                 # classes of sockets whose attributes an AsyncSocket has, too


def _pass_on(sock: Any) -> None:
    """Give AsyncSocket the attributes of a socket that it has none of its own for. (A `__getattr__` would do, but then
    the interpreter looks up every attribute of a stream the slow way: an eighth of an echo's instructions.)"""
    if type(sock) not in _passed_on:
        _passed_on.add(type(sock))
        for name in dir(sock):
            if not name.startswith("__") and not hasattr(AsyncSocket, name):
                setattr(AsyncSocket, name, property(operator.attrgetter("sock." + name), doc="The socket's."))


_pass_on(socket.socket.__new__(socket.socket))      # one without a descriptor


def _here(name: str) -> Callable:
    """Method of the blocking socket: the asynchronous one, run in the calling thread."""
    method = getattr(AsyncSocket, name)

    @functools.wraps(method)
    def call(self: AsyncSocket, *args: Any, **kwargs: Any) -> Any:
        return _run_here(method(self, *args, **kwargs))
    return call


class _BlockingSocket(AsyncSocket):
    """What `AsyncSocket.setblocking` makes of a socket.

    Its methods are those of AsyncSocket through `_here`, and `accept`, which without a kernel has no tasks to run
    handshakes in. A class of its own costs the asynchronous calls nothing. Both have the same slots, so that an object
    can change from one to the other.
    """

    __slots__ = ()

    def accept(self) -> tuple:
        """As in AsyncSocket, in the calling thread; TLS handshakes one at a time."""
        while True:
            conn, address = _run_here(_Accept(self))
            conn.setblocking(True)
            if self.tls is None:
                return conn, address
            conn.settimeout(settings.handshake_s)
            try:
                conn.start_tls(self.tls.context(True), server_side=True)
            except OSError as error:
                _log_refusal(address, error)
                conn.close()
            else:
                conn.settimeout(AsyncSocket._default_timeout)
                return conn, address


for _name in ("recv", "recvall", "recv_into", "recvfrom", "recv_msg", "send", "sendall", "sendto", "send_msg",
              "sendfile", "connect", "create_connection", "start_tls"):
    setattr(_BlockingSocket, _name, _here(_name))


def _check_wrappable(sock: Any) -> None:
    """Refuse what cannot become an AsyncSocket. An SSLSocket makes its handshake within connect(), blocking: it is
    taken only after that."""
    if not isinstance(sock, socket.socket):
        raise ValueError("%r is not a socket: AsyncSocket takes a socket.socket" % (sock,))
    if hasattr(sock, "unwrap"):
        _load_ssl()
        if not _is_connected(sock):
            raise MisuseError("an ssl.SSLSocket must be connected before AsyncSocket takes it: give the plain socket, "
                              "and the SSLContext as 'context'")


def _is_connected(sock: socket.socket) -> bool:
    """Whether the socket has another end, which a listening one and a new one have not."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _host_of(address: Any) -> Optional[str]:
    """The host that TLS names to the other end (SNI); None for what has none, as the path of a Unix socket."""
    return address[0] if isinstance(address, tuple) and address[0] else None


def _is_name(family: int, address: Any) -> bool:
    """Whether an address holds a host name, whose look-up may take long."""
    if family not in (socket.AF_INET, socket.AF_INET6) or not isinstance(address, tuple) or not address:
        return False
    host = address[0]
    if not isinstance(host, str) or host in ("", "<broadcast>"):
        return False
    try:
        socket.inet_pton(family, host.partition("%")[0])
    except OSError:
        return True
    return False


def _look_up(sock: socket.socket, address: tuple) -> Request:
    """The request for the addresses of a host name, as a list. `getaddrinfo` blocks, for many seconds if no server
    of names answers, and so runs in a helper thread. A task that gives up leaves it there."""
    return _helper_threads().async_task(_addresses, sock.family, sock.type, address)


def _addresses(family: int, kind: int, address: tuple) -> list:
    """Numeric addresses of a host name, for sockets of one family and kind; blocks."""
    return [found[4] for found in socket.getaddrinfo(address[0], address[1], family, kind)]


# ======================================================================================================================
# 16. Async files, pipes and child processes                                   how to wait depends on what is waited for
# ======================================================================================================================
#
#   sockets, pipes    non-blocking, in the poller like any AsyncSocket
#   terminals         left blocking, as other programs share that setting; asked before each call whether it would block
#   files on disk     are always "ready" and block all the same: their calls are made by helper threads (`_Disk`)
#   ends of children  a pidfd in the poller (Linux 5.3, CPython 3.9 and newer), else asked for, more and more rarely
#
# What was read and not yet asked for is in the file's buffer: a wait that ends early loses nothing.
#
# A file takes part in the machinery of the section before through four things: `watch` (a `_Watch`, or a `_Disk` that
# stands in for one), `receive(count)` and `transmit(data)`, which raise BlockingIOError when they would block, and
# `buffer`. Closing replaces both calls by one that refuses, as the descriptor's number may soon mean another file.
#
# A disk file's call is under way in a helper thread (`starter` is the operation it was made for) or answered and not
# yet taken (`answer`), or neither. A reader that gives up leaves the answer to the next reader, whichever it is; what a
# writer that gives up has written is written, and no other writer's business.
#
# `AsyncPipe.communicate` runs three tasks of its own, so that no full pipe holds up another: two read, one writes. When
# it ends early, by a timeout or an exception, the readers are ended and what they have goes back into the files'
# buffers; the writer goes on. So it can be called again, and nothing is lost or written twice.

_PIECE_BYTES = 64 * 1024                # one read: as much as a pipe holds
_LINGER_S = 1.0                         # communicate waits so long for the first of a chain, which may go on unread
_AT_ONCE_S = 1e-6                       # a timeout that is over: 0 would be none


class _DiskCall:
    """os.read or os.write of one disk file, in a helper thread; called like the function without its descriptor.

    The first call notes what is wanted and raises BlockingIOError; `_Disk.wait` has the call made; the next one gives
    its answer. So an operation's `attempt` is written as for a descriptor that does not block. `run` belongs to the
    helper thread, all else to the kernel's.
    """

    __slots__ = ("function", "fd", "report", "argument", "answer", "starter")

    def __init__(self, function: Callable, fd: int, report: Callable) -> None:
        self.function = function
        self.fd = fd
        self.report = report            # called with the call and its answer, in the helper thread
        self.argument: Any = None
        self.answer: Any = None         # of the last call, until somebody takes it
        self.starter: Any = None        # operation for which the call under way was started

    def __call__(self, argument: Any) -> Any:
        answer, self.answer = self.answer, None
        if answer is None:
            self.argument = argument
            raise BlockingIOError(errno.EAGAIN, "in a helper thread")
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, bytes) and len(answer) > argument:    # was read for an operation that gave up
            answer, self.answer = answer[:argument], answer[argument:]
        return answer

    def run(self) -> None:
        """Make the call. The helper thread."""
        try:
            answer = self.function(self.fd, self.argument)
        except Exception as error:      # it belongs to the operation
            answer = error
        self.report(self, answer)


class _Disk:
    """Stands in for the watch of a file on a disk: "ready" is when a helper thread has made the call.

    One read and one write may be under way at a time, each with its `_DiskCall`. A call that is under way cannot be
    taken back: the descriptor is closed only after it.
    """

    __slots__ = ("fd", "kernel", "reader", "writer", "receive", "transmit", "closing")
    closed = _Watch.closed

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.kernel: Optional[Kernel] = None
        self.reader: Any = None
        self.writer: Any = None
        self.receive = _DiskCall(os.read, fd, self._report)
        self.transmit = _DiskCall(os.write, fd, self._report)
        self.closing: Optional[Callable] = None

    def wait(self, kernel: Kernel, operation: _Operation) -> None:
        """Have the call made that `operation` has just tried; one that is under way already is waited for."""
        self.kernel = kernel
        if operation.reads:
            self.reader, call = operation, self.receive
        else:
            self.writer, call = operation, self.transmit
        if call.starter is None:
            call.starter = operation
            _helper_threads().put(call)

    def _report(self, call: _DiskCall, answer: Any) -> None:
        """The helper thread: hand the answer to the kernel's."""
        self.kernel.post(self._done, call, answer)

    def _done(self, call: _DiskCall, answer: Any) -> None:
        """A call is made. What was read is for whoever reads next, as the file's position has moved on; what was
        written is told only to who asked for it."""
        starter, call.starter = call.starter, None
        operation = self.reader if call is self.receive else self.writer
        if call is self.receive or operation is starter:
            call.answer = answer        # another writer has nothing to do with it
        if operation is not None:
            operation.retry()
        self.leave()

    def leave(self, closing: Optional[Callable] = None) -> None:
        """Call `closing` once no helper thread uses the descriptor; without one, that of an earlier call, if any."""
        self.closing = closing or self.closing
        if self.closing is not None and self.receive.starter is None and self.transmit.starter is None:
            self.closing()


class _FileOperation(_Operation):
    """Reading through the file's buffer; closing the file gives what is in it."""

    __slots__ = ("size",)

    def __init__(self, stream: "AsyncFile", size: int, timeout: Optional[float]) -> None:
        self.stream = stream
        self.size = size
        self.timeout = timeout

    def closed(self) -> None:
        """Another task closed the file: what has come is the result, as at the end of file."""
        self._leave()
        self.task.unpark(self.stream.take(self.size))


class _Read(_FileOperation):
    """Until there are `size` bytes (all: with 0, the end of file comes first), or any if `full` is not asked for.

    An empty buffer and no `full`: what the system gives is the result, without a copy through the buffer.
    """

    __slots__ = ("full",)

    def __init__(self, stream: "AsyncFile", size: int, full: bool, timeout: Optional[float]) -> None:
        super().__init__(stream, size, timeout)
        self.full = full or size <= 0

    def attempt(self) -> bytes:
        """Read into the buffer until it holds enough, then take it out; what would block leaves it there."""
        file, buffer, size = self.stream, self.stream.buffer, self.size
        if not buffer and not self.full:
            return file.receive(size)
        while size <= 0 or self.full and len(buffer) < size:
            data = file.receive(max(_PIECE_BYTES, size - len(buffer)))
            if not data:
                break
            buffer += data
        return file.take(size)

    def late(self) -> bytes:
        """What has come, or socket.timeout."""
        return self.stream.take(self.size) or super().late()


class _ReadLine(_FileOperation):
    """Up to a newline, `size` bytes or the end of file; `scanned` bytes of the buffer hold no newline."""

    __slots__ = ("piece", "scanned")

    def __init__(self, stream: "AsyncFile", size: int, sizehint: int, timeout: Optional[float]) -> None:
        super().__init__(stream, size, timeout)
        self.piece = max(sizehint, _PIECE_BYTES)
        self.scanned = 0

    def attempt(self) -> bytes:
        """Look for the newline in what is new, read on if it is not there. (From the beginning each time, a long line
        that comes in small pieces would cost the square of its length.)"""
        file, buffer, size = self.stream, self.stream.buffer, self.size
        while True:
            end = buffer.find(b"\n", self.scanned) + 1
            if end or 0 < size <= len(buffer):
                return file.take(min(end or size, size) if size > 0 else end)
            self.scanned = len(buffer)
            data = file.receive(self.piece)
            if not data:
                return file.take(0)
            buffer += data


class _Write(_Operation):
    """What the file takes of `rest` at once, or all of it if `full`; `sent` counts what has gone."""

    __slots__ = ("rest", "full", "sent")
    reads = False

    def __init__(self, stream: "AsyncFile", data: Any, full: bool, timeout: Optional[float]) -> None:
        self.stream = stream
        self.timeout = timeout
        self.rest = memoryview(data).cast("B")
        self.full = full
        self.sent = 0

    def attempt(self) -> int:
        """Write once, or with `full` until all has gone or it would block; how many bytes went in all."""
        while self.rest:
            count = self.stream.transmit(self.rest)
            self.sent += count
            self.rest = self.rest[count:]
            if not self.full:
                break
        return self.sent

    def late(self) -> int:
        """How many bytes went, or socket.timeout."""
        return self.sent or super().late()


def _asking(function: Callable, fd: int) -> Callable:
    """os.read or os.write of a blocking descriptor that raises BlockingIOError where it would block.

    For terminals: O_NONBLOCK is a setting of the open file, which the shell and its other programs share, and which
    would outlive this process.
    """
    reads = [fd] if function is os.read else []
    writes = [] if reads else [fd]

    def call(argument: Any) -> Any:
        if not any(select.select(reads, writes, [], 0)):
            raise BlockingIOError(errno.EAGAIN, "not ready")
        return function(fd, argument)
    return call


def _refuse_closed(_argument: Any) -> Any:
    """`receive` and `transmit` of a closed file; the exception is the one of closed file objects."""
    raise ValueError("I/O operation on a closed AsyncFile")


class AsyncFile:
    """A file for tasks: ``AsyncFile(thing)``, where `thing` is a file object, socket, AsyncSocket or descriptor.

        with pycoslite.AsyncFile(open(path, "rb")) as file:
            while True:
                line = yield file.readline()
                if not line:
                    break

    It belongs to the AsyncFile from then on: do not use or close it beside. Bytes go in and come out; what `thing` has
    in buffers of its own is passed by. Pipes and sockets become non-blocking. One task may read and one write at a
    time; a second one gets MisuseError. Any thread may make one. Where the system cannot wait for it (pipes and
    consoles of Windows) MisuseError is raised, for what is no file ValueError. (Rows F01-F05.)
    """

    # For the operations: `watch`, `buffer`, `receive(n)` and `transmit(data)`; `owner` is closed in the end.
    __slots__ = ("watch", "buffer", "receive", "transmit", "owner", "__weakref__")

    def __init__(self, fd: Any) -> None:
        if isinstance(fd, AsyncSocket):
            fd = fd.unwrap()
        elif isinstance(fd, int) and not isinstance(fd, bool):
            fd = open(fd, "rb", buffering=0)    # it warns when nobody closes it
        if not callable(getattr(fd, "fileno", None)):
            raise ValueError("%r is not a file: AsyncFile takes a descriptor, a socket or what has a fileno()" % (fd,))
        self.owner = fd
        self.buffer = bytearray()
        number = fd.fileno()
        if isinstance(fd, socket.socket):
            fd.setblocking(False)
            self._use(_Watch(number), fd.recv, fd.send)
        else:
            self._open(number, os.fstat(number).st_mode)

    def _open(self, fd: int, mode: int) -> None:
        """Decide how it is waited for, by its kind (the table at the head of the section). epoll refuses files on
        disks, other pollers call them ready at all times; hence the threads."""
        if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
            disk = _Disk(fd)
            self._use(disk, disk.receive, disk.transmit)
        elif os.name == "nt":
            raise MisuseError("Windows cannot wait for descriptor %d, a pipe or console, together with others: use a "
                              "socket, or read it in a thread (AsyncThreadPool)" % fd)
        elif os.isatty(fd):
            self._use(_Watch(fd), _asking(os.read, fd), _asking(os.write, fd))
        else:
            os.set_blocking(fd, False)
            self._use(_Watch(fd), functools.partial(os.read, fd), functools.partial(os.write, fd))

    def _use(self, watch: Any, receive: Callable, transmit: Callable) -> None:
        self.watch = watch
        self.receive = receive
        self.transmit = transmit

    def take(self, size: int) -> bytes:
        """Up to `size` bytes (0 or less: all) out of the buffer, without waiting."""
        buffer = self.buffer
        if 0 < size < len(buffer):
            data = bytes(memoryview(buffer)[:size])
            del buffer[:size]
        else:
            data = bytes(buffer)
            buffer.clear()
        return data

    def fileno(self) -> int:
        """The descriptor. Raises ValueError when closed."""
        return self.owner.fileno()

    def read(self, size: int = 0, full: bool = False, timeout: Optional[float] = None) -> Any:
        """Read bytes; b"" at the end of file. Use with yield.

        `size`: at most so many, as soon as there are any; 0 or less: all to the end of file. `full`: exactly `size`,
        unless the file ends before. After `timeout` seconds (0 or None: no limit) it gives what has come, or raises
        socket.timeout if that is nothing. A task that is interrupted loses nothing: the next call has it. Raises
        OSError.
        """
        return _Read(self, size, full, timeout)

    def readline(self, size: int = 0, sizehint: int = 100, timeout: Optional[float] = None) -> Any:
        """Read a line with its newline; the rest at the end of file, then b"". Use with yield.

        `size`: most bytes, 0: no limit; what is left of a longer line comes with the next call. `sizehint`: how long
        lines are expected to be, in bytes; never needed. `timeout`: seconds for the whole line (0 or None: no limit),
        then socket.timeout is raised, and the part that has come is there for the next call. Raises OSError.
        """
        return _ReadLine(self, size, sizehint, timeout)

    def write(self, buf: Any, full: bool = False, timeout: Optional[float] = None) -> Any:
        """Write `buf` (bytes-like, not copied: leave it alone until then); gives the number of bytes. Use with yield.

        `full`: all of it; otherwise as much as goes at once, 1 byte at least. After `timeout` seconds (0 or None: no
        limit) it gives what has been written, or raises socket.timeout if that is nothing. What had been written when
        an exception interrupts the task stays written, and is not told. Raises BrokenPipeError when nobody reads any
        more, and other OSErrors.
        """
        return _Write(self, buf, full, timeout)

    def close(self) -> None:
        """Close the descriptor: a task that waits to read gets what has come, one that waits to write an OSError. Any
        thread; from another than the tasks' it happens soon, and not at once."""
        _call_owner(self.watch.kernel, self._close)

    def _close(self) -> None:
        """The kernel's part of `close`. A disk file is closed later if a helper thread is in the midst of a call."""
        self.receive = self.transmit = _refuse_closed       # the descriptor's number may soon mean something else
        if isinstance(self.watch, _Disk):
            self.watch.leave(self.owner.close)
        else:
            self.watch.leave()
            self.owner.close()
        self.watch.closed()

    def __enter__(self) -> "AsyncFile":
        return self

    def __exit__(self, *_exc: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        return "<AsyncFile of %r>" % (getattr(self, "owner", None),)

    def __del__(self) -> None:                  # as for _Stream
        watch = getattr(self, "watch", None)
        if watch is not None and watch.kernel is not None and watch.reader is None and watch.writer is None:
            watch.leave()


class _Current(Request):
    """Gives the task that yields it: `communicate` needs its kernel, which no argument tells."""

    __slots__ = ()

    def begin(self, kernel: Kernel, task: Task) -> bool:
        """See `Request.begin`: never parks."""
        task.carried = task
        return True


class _Exit(_Operation):
    """A child's exit status; its pidfd is readable once it has ended. None when time runs out.

    `poll` of the Popen reaps the child, so that who asks it beside, or waits for it in a thread, gets the same status.
    A handler of SIGCHLD would be for the main thread only, and not ours to set.
    """

    __slots__ = ("process",)

    def __init__(self, stream: Any, process: Any, timeout: Optional[float]) -> None:
        self.stream = stream
        self.process = process
        self.timeout = timeout

    def attempt(self) -> int:
        """The exit status, if there is one yet."""
        if self.process.poll() is None:
            raise BlockingIOError(errno.EAGAIN, "it runs")
        return self.process.returncode

    def late(self) -> None:
        """None: that it runs on is no error."""
        return None


@types.coroutine
def _exit_of(process: Any, timeout: Optional[float] = None) -> Generator:
    """Wait for a child's end and reap it; gives its exit status, or None after `timeout` seconds."""
    if process.poll() is not None:
        return process.returncode
    try:
        fd = os.pidfd_open(process.pid)         # type: ignore[attr-defined]
    except (AttributeError, OSError):           # not on this system, or not allowed
        return (yield from _exit_asked(process, timeout))
    watch = _Watch(fd)
    try:
        return (yield _Exit(types.SimpleNamespace(watch=watch), process, timeout))
    finally:
        watch.leave()
        os.close(fd)


def _exit_asked(process: Any, timeout: Optional[float]) -> Generator:
    """The same where nothing tells: ask, after 2 ms first, then more and more rarely, every 50 ms in the end."""
    pause, left = 0.001, timeout or math.inf
    while process.poll() is None and left > 0:
        pause = min(pause * 2, 0.05, left)
        yield _Timed(pause)
        left -= pause
    return process.returncode


def _settled(request: Any) -> Generator:
    """Task: (result, None) of a request, or (None, error). A task that ended with the error would have it logged,
    though `communicate` raises it where it belongs."""
    try:
        return (yield request), None
    except Exception as error:                  # it belongs to who asked
        return None, error


def _countdown(kernel: Kernel, timeout: Optional[float]) -> Callable[[], Optional[float]]:
    """A function that tells what is left of `timeout` seconds from now on; None stays None."""
    if timeout is None:
        return lambda: None
    deadline = kernel.clock() + timeout
    return lambda: max(deadline - kernel.clock(), _AT_ONCE_S)


class AsyncPipe:
    """Child processes for tasks: ``AsyncPipe(process)``, or ``AsyncPipe(first, last)`` for the two ends of a chain.

        pipe = pycoslite.AsyncPipe(pycoslite.Popen(["sort"], stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        output, _ = yield pipe.communicate("b\\na\\n")

    `first` and `last` are subprocess.Popen objects, made with PIPE for what is to be used here. `stdin` (of first),
    `stdout` and `stderr` (of last) are AsyncFiles, or None; every other attribute (pid, returncode, terminate, kill
    ...) is last's. This process's copy of the pipe between first and the next of the chain is closed, so that first
    notices when that ends; in a chain of more than two, close the others' likewise. What comes is bytes, whatever the
    processes were told about text. Raises ValueError for what is no Popen, MisuseError as AsyncFile.
    """

    def __init__(self, first: Any, last: Any = None) -> None:
        last = first if last is None else last
        for process in (first, last):
            if not all(hasattr(process, name) for name in ("stdin", "stdout", "stderr", "poll")):
                raise ValueError("%r is not a process: AsyncPipe takes Popen objects" % (process,))
        self.first = first
        self.last = last
        self.stdin = AsyncFile(first.stdin) if first.stdin else None
        self.stdout = AsyncFile(last.stdout) if last.stdout else None
        self.stderr = AsyncFile(last.stderr) if last.stderr else None
        if first is not last and first.stdout:
            first.stdout.close()
        self._feeder: Any = None                # task that writes communicate's input

    def _piped(self, name: str) -> AsyncFile:
        """The AsyncFile of one end. Raises ValueError when the process was started without a pipe there."""
        file = getattr(self, name)
        if file is None:
            raise ValueError("%s of the process is not a pipe: start it with %s=subprocess.PIPE" % (name, name))
        return file

    def write(self, buf: Any, full: bool = False, timeout: Optional[float] = None) -> Any:
        """`AsyncFile.write` to first's stdin. Use with yield. Besides, ValueError is raised, here and in the four
        methods that read, when the end it is about was not made with PIPE."""
        return self._piped("stdin").write(buf, full=full, timeout=timeout)

    def read(self, size: int = 0, timeout: Optional[float] = None) -> Any:
        """`AsyncFile.read` from last's stdout. Use with yield. A process that fills its stderr meanwhile, which nobody
        reads, stands still: have another task read that, or use `communicate`."""
        return self._piped("stdout").read(size, timeout=timeout)

    def readline(self, size: int = 0, sizehint: int = 100, timeout: Optional[float] = None) -> Any:
        """`AsyncFile.readline` from last's stdout. Use with yield."""
        return self._piped("stdout").readline(size, sizehint, timeout)

    def read_stderr(self, size: int = 0, timeout: Optional[float] = None) -> Any:
        """`AsyncFile.read` from last's stderr. Use with yield."""
        return self._piped("stderr").read(size, timeout=timeout)

    def readline_stderr(self, size: int = 0, sizehint: int = 100, timeout: Optional[float] = None) -> Any:
        """`AsyncFile.readline` from last's stderr. Use with yield."""
        return self._piped("stderr").readline(size, sizehint, timeout)

    @types.coroutine
    def communicate(self, input: Any = None, timeout: Optional[float] = None) -> Generator:
        """Write `input` to stdin and close it, read stdout and stderr to their ends, wait for the exit; gives (stdout,
        stderr) as bytes, None for what is not a pipe. Use with yield. `input`: bytes, str (sent as UTF-8), a file or
        AsyncFile (closed afterwards). A child that ends without reading it all is no error: look at `returncode`.

        After `timeout` seconds (None: no limit) it raises subprocess.TimeoutExpired, whose `output` and `stderr` are
        what has come. The processes go on, and so does the writing; nothing is lost: call it again, without `input`,
        after a kill() as a rule. The same holds for an exception thrown into the task. Raises OSError, ValueError for
        an `input` where stdin is no pipe, or where the first call had one.
        """
        if input is not None:
            self._piped("stdin")
            if self._feeder is not None:
                raise ValueError("communicate() goes on with what its first call was given: leave out `input`")
        kernel = (yield _CURRENT).kernel
        self._feeder = self._feeder or self._worker(kernel, self._feed(input))
        readers = [self._worker(kernel, file.read() if file else Value(None)) for file in (self.stdout, self.stderr)]
        again = False
        try:
            said = yield from self._exchange(readers, _countdown(kernel, timeout))
        except Exception as error:
            yield from self._take_back(readers)
            again = True
            if isinstance(error, OperationTimeout):
                raise self._expired(timeout) from None
            raise
        finally:
            if not again:
                for worker in readers:
                    worker.terminate()
                self.close()
        for _, failure in said:
            if failure is not None:
                raise failure
        return said[0][0], said[1][0]

    @staticmethod
    def _worker(kernel: Kernel, job: Any) -> Task:
        """A task for one of communicate's three jobs; a daemon, as the task that waits for it is what keeps the program
        going."""
        worker = kernel.spawn(_settled, job)
        kernel.count_daemon(worker, True)
        return worker

    def _exchange(self, readers: List[Task], left: Callable[[], Optional[float]]) -> Generator:
        """What the readers have read, once the processes have ended; OperationTimeout when no time is `left`."""
        said = []
        for reader in readers:
            said.append((yield Join(reader, left())))
            if said[-1] is None:
                raise OperationTimeout
        if (yield from _exit_of(self.last, left())) is None:
            raise OperationTimeout
        self._feeder.terminate()                # who should read it has gone
        yield Join(self._feeder)
        yield from _exit_of(self.first, timeout=_LINGER_S)
        return said

    def _take_back(self, readers: List[Task]) -> Generator:
        """What the readers have read goes back into the files' buffers, where those that had not come to the end of the
        file have left it anyway."""
        for reader, file in zip(readers, (self.stdout, self.stderr)):
            reader.terminate()
            said = yield Join(reader)
            if file is not None and said is not None and said[0]:
                file.buffer[:0] = said[0]

    def _expired(self, timeout: Optional[float]) -> Exception:
        """communicate's TimeoutExpired, with a copy of what has come: it stays in the buffers for the next call."""
        import subprocess                       # loaded already, by whoever made the process
        output, errors = (None if file is None else bytes(file.buffer) for file in (self.stdout, self.stderr))
        return subprocess.TimeoutExpired(self.last.args, timeout or 0, output, errors)

    def _feed(self, data: Any) -> Generator:
        """Write all of communicate's input, then close stdin."""
        try:
            while data:
                piece, data = yield from _next_piece(data)
                if not piece:
                    break
                yield self.stdin.write(piece, full=True)
        except (BrokenPipeError, ConnectionResetError):
            log.debug("process %d ended before it had read all its input", self.first.pid)
        finally:
            if self.stdin is not None:
                self.stdin.close()
            if hasattr(data, "close"):
                data.close()

    @types.coroutine
    def finish(self, timeout: Optional[float] = None) -> Generator:
        """Wait for last's end at most `timeout` seconds (None: for ever); gives its exit status (negative: the signal
        that ended it), or None when time is up. Use with yield. A child that fills a pipe nobody reads does not end:
        `communicate` reads while it waits."""
        return (yield from _exit_of(self.last, timeout))

    def poll(self) -> Optional[int]:
        """Last's exit status (negative: the signal that ended it); None while it runs. Never waits. Also reaps first,
        if that has ended."""
        if self.first is not self.last:
            self.first.poll()                   # leaves no zombie
        return self.last.poll()

    def close(self) -> None:
        """Close the pipes, and write no more of what `communicate` was given; the processes go on by themselves."""
        if self._feeder is not None:
            self._feeder.terminate()
        for file in (self.stdin, self.stdout, self.stderr):
            if file is not None:
                file.close()

    def __enter__(self) -> "AsyncPipe":
        return self

    def __exit__(self, *_exc: Any) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        if name in ("first", "last", "_feeder"):
            raise AttributeError(name)
        return getattr(self.last, name)


_CURRENT = _Current()


def _next_piece(data: Any) -> Generator:
    """The next piece of communicate's input, and where the one after it comes from: a file is read piece by piece, in a
    helper thread if it is an ordinary one, so that its size costs no memory."""
    if isinstance(data, str):
        return data.encode(), None
    if isinstance(data, AsyncFile):
        return (yield data.read(_PIECE_BYTES)), data
    if hasattr(data, "read"):
        piece = yield _helper_threads().async_task(data.read, _PIECE_BYTES)
        return piece.encode() if isinstance(piece, str) else piece, data
    return data, None


def Popen(args: Any, stdin: Any = None, stdout: Any = None, stderr: Any = None, **kwargs: Any) -> Any:
    """subprocess.Popen under the name that AsyncPipe's programs know: starts a process. Any thread.

    Arguments, result and exceptions are those of subprocess.Popen.
    """
    import subprocess                           # takes its time to import: only who starts processes pays for it
    return subprocess.Popen(args, stdin=stdin, stdout=stdout, stderr=stderr, **kwargs)


def pipe(bufsize: int = 8192) -> Tuple[int, int]:
    """The descriptors of a new pipe, (read end, write end), for AsyncFile and Popen; it holds `bufsize` bytes at least.
    Raises MisuseError on Windows, where nothing can wait for one. Any thread."""
    if os.name == "nt":
        raise MisuseError("Windows cannot wait for a pipe: use socket.socketpair()")
    ends = os.pipe()
    if bufsize > _PIECE_BYTES and sys.platform.startswith("linux"):
        import fcntl                            # not everywhere
        fcntl.fcntl(ends[1], 1031, bufsize)     # F_SETPIPE_SZ, which fcntl names from 3.10 on
    return ends


# ======================================================================================================================
# 17. Secrets                                                                                 who belongs to the cluster
# ======================================================================================================================
#
# The key of a cluster is 32 bytes. It comes from, in this order: the argument or option; PYCOSLITE_SECRET (a text) or
# PYCOSLITE_SECRET_FILE; ~/.pycoslite/secret, which is made on first use. 64 hexadecimal digits, from wherever, are the
# key itself; any other text was thought up by a person and is stretched by scrypt (RFC 7914), so that each guess costs
# 64 MiB and 0.18 s of a processor of today, whatever of the traffic it is tried on.
#
# The key is told to other processes of this machine (servers of a node, a client's own node) through a pipe, never on a
# command line, and is in no log line, no repr and no message of an exception.
#
# What the key is used for, each time with data that says what for, so that nothing made for one purpose serves another:
# proofs of the handshake and keys of records (section 7), datagrams of discovery (section 21), the pre-shared key of
# TLS, the fingerprint for people.
#
# Who has the key may do everything in the cluster: run code in each process of it, read and write what its users may.
# There are no lesser rights. So the file is for its owner alone. One that others can read brings a warning only, as
# there are disks where permissions cannot be set; so does one that is somebody else's, as containers have such.
#
# Everything here is read and checked before a port is open, in the thread that starts the network. Nothing changes
# afterwards: a new secret or certificate counts from the next start on.

_SECRET_FILE = os.path.join("~", ".pycoslite", "secret")
_SALT = b"pycoslite cluster key"        # the same everywhere, as every machine must get the same key from a text
_STRETCH_N, _STRETCH_R = 1 << 16, 8     # scrypt's cost: 128 * n * r bytes; other values make other keys


class Key(bytes):
    """The 32 bytes of a cluster's key. They do not show where objects are printed: in tracebacks that list local
    variables, in debuggers, in logs of what a function was called with."""

    __slots__ = ()

    def __repr__(self) -> str:
        """The same text for every key; `bytes(key)`, or any slice of it, shows it again."""
        return "<cluster key>"

    __str__ = __repr__


def secret_key(secret: Any = None, secret_file: Optional[str] = None) -> Optional[Key]:
    """The cluster's 32-byte key; None when `secret` is False, which runs the cluster open to everyone who can reach it.

    `secret` is a text, `secret_file` names a file that holds one (or a random key); without either the environment and
    then the user's own secret file decide, which is made when it is missing. Raises SecretError. Any thread.
    """
    if secret is False:
        log.warning("running without authentication: whoever reaches this process can run code in it")
        return None
    if not isinstance(secret, (str, bytes, type(None))):
        raise SecretError("the secret is a %s: it must be a text, False to run without one, or None for the secret file"
                          % type(secret).__name__)      # of a number `bytes` would make zeros
    path, own = secret_path(secret, secret_file)
    if path is None:
        return Key(_key_of_text(secret or os.environ["PYCOSLITE_SECRET"]))
    if own and not os.path.exists(path):
        _make_secret(path)
    return Key(_key_of_file(path))


def secret_path(secret: Any = None, secret_file: Optional[str] = None) -> Tuple[Optional[str], bool]:
    """Path of the file that `secret_key` reads when it gets the same arguments (None: a text decides), and whether it
    is the user's own, which is made when it is missing. Looks at the environment and at no file. Any thread."""
    named = secret_file or os.environ.get("PYCOSLITE_SECRET_FILE")
    if secret or not named and os.environ.get("PYCOSLITE_SECRET"):
        return None, False
    return os.path.expanduser(named or _SECRET_FILE), not named


def secret_fingerprint(key: bytes) -> str:
    """Four hexadecimal digits by which people compare the keys of two machines. Any thread.

    They are the first 16 bits of an HMAC under the key, which is random or has gone through scrypt. So few because a
    fingerprint is read aloud, mailed and logged: whoever tries the words of a dictionary on it pays scrypt for each,
    and is left with one word in 65,536; nothing of a random key can be learned from it.
    """
    return keyed_digest(key, b"fingerprint for people")[:2].hex()


def _key_of_text(secret: Union[str, bytes]) -> bytes:
    """A key as it is, anything else stretched."""
    text = secret.encode("utf8", "surrogateescape") if isinstance(secret, str) else bytes(secret)
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        key = b""
    return key if len(key) == 32 else _stretch(text)


@functools.lru_cache(maxsize=8)
def _stretch(text: bytes) -> bytes:
    """The key of a text that a person thought up. Remembered, as programs that start several networks, and tests, would
    pay 0.18 s each time. `maxmem` is twice what is needed: OpenSSL counts a little more than the formula."""
    if not hasattr(hashlib, "scrypt"):
        raise SecretError("this Python cannot stretch a typed secret (its OpenSSL lacks scrypt): use a secret file of "
                          "64 random hexadecimal digits instead")
    return hashlib.scrypt(text, salt=_SALT, n=_STRETCH_N, r=_STRETCH_R, p=1, dklen=32,
                          maxmem=256 * _STRETCH_N * _STRETCH_R)


def _key_of_file(path: str) -> bytes:
    """The key that a secret file holds, white space around it left out: editors end files with a newline. At most 4 KiB
    are read, should the path lead to something else. Raises SecretError."""
    try:
        with open(path, "rb") as file:
            text = file.read(4096).strip()
            if text:
                _warn_if_open("secret file %s" % path, file.fileno())
    except OSError as error:
        raise SecretError("cannot read the secret file %s (%s): copy it from a machine of the cluster, or name another "
                          "with PYCOSLITE_SECRET_FILE" % (path, error.strerror)) from None
    if not text:
        raise SecretError("the secret file %s is empty: remove it to have a new one made, or copy it again" % path)
    return _key_of_text(text)


def _warn_if_open(name: str, descriptor: int) -> None:
    """Complain about an open file, called `name`, that is to be secret and other users can read, or have made: as with
    sudo, which may leave HOME as it is."""
    if os.name != "posix":
        return
    found = os.fstat(descriptor)
    if found.st_mode & 0o077:
        log.warning("the %s can be read by other users of this machine: run chmod 600 on it", name)
    if found.st_uid not in (0, os.geteuid()):
        log.warning("the %s belongs to another user of this machine (number %d), who can do by it whatever this "
                    "process may: use a file of your own", name, found.st_uid)


def _make_secret(path: str) -> None:
    """Write a new random key; of several processes that do so at once the first wins and all use its key.

    It is written under another name and then linked to the right one, which fails if that is there: so nobody ever
    reads half a key, nor one that is replaced a moment later. Raises SecretError.
    """
    folder = os.path.dirname(path)
    fresh = "%s.%s" % (path, os.urandom(4).hex())
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(os.urandom(32).hex() + "\n")
            os.link(fresh, path)
        except FileExistsError:
            pass
        finally:
            os.unlink(fresh)
    except OSError as error:
        raise SecretError("cannot make the secret file %s (%s): set HOME to a folder that can be written, or name a "
                          "secret file with PYCOSLITE_SECRET_FILE" % (path, error.strerror)) from None
    log.info("made a new cluster secret: %s (copy it to the other machines)", path)


# TLS of connections between peers. The handshake of section 7 decides whether there is any, and proves the secret
# inside it all the same: a certificate alone lets nobody in (unless the cluster runs open: then it keeps others out).
#
#   certificates   given at both ends. Without `cafile` the certificate that the other end shows must be the very one
#                  shown here: all have copies of one pair. With it, any certificate that this CA has signed will do, so
#                  let it be a CA of the cluster's own; else `certname` says what name a certificate must have. Host
#                  names are not compared: a process is dialled at addresses that others have told, of interfaces, NATs
#                  and tunnels, which no certificate lists; who it is, it proves by the secret.
#   the secret     both ends run Python 3.13 or newer, which can use it as the pre-shared key of TLS 1.3. The Diffie-
#                  Hellman exchange that goes with it gives forward secrecy: who learns the secret one day cannot read
#                  what he has recorded before.
#
# Processes of one host do without the second kind: who can read the loopback interface can read their memory.

_SAYS_TRUST = ("start both ends with copies of the same certfile and keyfile, or name the CA that has signed the "
               "certificates of both with cafile")
_TLS_TROUBLES = (               # part of OpenSSL's reason -> what it means; the first that is found counts
    ("DID_NOT_RETURN_A_CERTIFICATE", "the other end shows no certificate: start it with certfile and keyfile"),
    ("ALERT_UNKNOWN_CA", "the other end does not trust the certificate of this end: " + _SAYS_TRUST),
    ("ALERT_CERTIFICATE_EXPIRED", "the certificate of this end has expired: renew it"),
    ("ALERT_BAD_CERTIFICATE", "the other end does not accept the certificate of this end (it may not be valid yet): "
                              "compare the clocks of both machines, and look at the log there"),
    ("CERTIFICATE", "the other end does not accept the certificate of this end: look at the log there"),
    ("PROTOCOL", "the ends have no version of TLS in common, which must be 1.2 or newer: update the older Python"),
    ("", "TLS cannot begin: look at the log at the other end"),
)
_KEY_TROUBLES = ("BINDER_DOES_NOT_VERIFY", "ALERT_ILLEGAL_PARAMETER", "ALERT_DECRYPT_ERROR")    # two secrets
_VERIFY_TROUBLES = {            # OpenSSL's code of what is wrong with a certificate (X509_V_ERR_...)
    9: "is not valid yet: compare the clocks of both machines",
    10: "has expired: renew it there",
    26: "is not made for both ends of a connection: leave extendedKeyUsage out, or list clientAuth and serverAuth",
}


def tls_trouble(error: Exception, channel: str) -> str:
    """What it means that TLS of that channel (BY_CERTIFICATES, BY_SECRET) cannot begin: a sentence. Any thread."""
    reason = str(getattr(error, "reason", None) or error)
    code = getattr(error, "verify_code", None)          # of a certificate that does not do
    if code is not None:
        return "the certificate of the other end " + _VERIFY_TROUBLES.get(code, "is not trusted (%s): %s" % (
            getattr(error, "verify_message", reason), _SAYS_TRUST))
    if channel == BY_SECRET and any(part in reason for part in _KEY_TROUBLES):
        return _REFUSALS[Refusal.SECRET]
    found = next(sentence for part, sentence in _TLS_TROUBLES if part in reason)
    return "%s (TLS says: %s)" % (found, reason.lower().replace("_", " "))


class Certificates:
    """The certificate that this process shows to its peers, and which of theirs it takes; made by `certificates`, whose
    arguments and exceptions it has. All files are read when it is made, and not again.

    `files` has the arguments that `certificates` needs to make the same in another process of this machine.
    """

    __slots__ = ("files", "_certname", "_contexts", "_pinned")

    def __init__(self, certfile: str, keyfile: Optional[str] = None, cafile: Optional[str] = None,
                 certname: Optional[str] = None) -> None:
        given = {"certfile": certfile, "keyfile": keyfile, "cafile": cafile}
        paths = {option: path and os.path.abspath(os.path.expanduser(path)) for option, path in given.items()}
        has_key = "keyfile" if keyfile else "certfile"
        texts = {option: _read_pem(option, path, option == has_key) for option, path in paths.items() if path}
        self.files: Dict[str, Optional[str]] = dict(paths, certname=certname)
        self._certname = certname
        try:
            self._contexts = [tls_context(server_side, **paths) for server_side in (False, True)]   # type: ignore
            self._pinned = None if cafile else _first_certificate(texts["certfile"])
        except (OSError, ValueError) as error:          # ssl.SSLError is an OSError
            raise SecretError(_pem_trouble(error, self.files)) from None
        for context in self._contexts:
            _no_resumption(context)

    def context(self, server_side: bool) -> Any:
        """The ssl.SSLContext of that end: `server_side` for connections that were accepted. The same object each time,
        shared by all connections. Any thread."""
        return self._contexts[server_side]

    def accepts(self, tls: Any) -> bool:
        """Whether the certificate shown on a TLS connection, which is valid and trusted, is a member's: the same as
        ours where there is no CA, one of the name that is asked for. Any thread."""
        if self._pinned not in (None, tls.getpeercert(True)):
            return False
        return self._certname is None or self._certname.lower() in _names(tls.getpeercert())


def certificates(certfile: Optional[str] = None, keyfile: Optional[str] = None, cafile: Optional[str] = None,
                 certname: Optional[str] = None) -> Optional[Certificates]:
    """The certificate for TLS between peers, for `start_network`; None when there is none to be used.

    Paths of PEM files: `certfile` has the certificate to be shown, and its key unless that is in `keyfile`; `cafile`
    the CA that has signed it and those of all peers. Without a CA all peers have copies of one self-signed pair.
    `certname`: a name (DNS entry of subjectAltName; where there is no such entry, the common name) that the
    certificates of all peers must have. When nothing is given, PYCOSLITE_CERTFILE, PYCOSLITE_KEYFILE, PYCOSLITE_CAFILE
    and PYCOSLITE_CERTNAME are used. Raises SecretError with a sentence. Any thread.
    """
    given = {"certfile": certfile, "keyfile": keyfile, "cafile": cafile, "certname": certname}
    if not any(given.values()):
        given = {option: os.environ.get("PYCOSLITE_" + option.upper()) for option in given}
    found = {option: value for option, value in given.items() if value}
    if not found:
        return None
    if "certfile" not in found:
        raise SecretError("%s without certfile: name the certificate that is to be shown, too" % " and ".join(found))
    return Certificates(**found)


def _read_pem(option: str, path: str, has_key: bool) -> str:
    """The file that an option names; a warning if it holds the key (`has_key`) and others can read it. OpenSSL reads it
    again: this is for a sentence that names the file, which its own errors do not. Raises SecretError."""
    try:
        with open(path, encoding="latin-1") as file:
            if has_key:
                _warn_if_open("%s %s" % (option, path), file.fileno())
            return file.read(1 << 20)
    except OSError as error:
        raise SecretError("cannot read the %s %s (%s): name the right file, or make it readable for this user" % (
            option, path, error.strerror)) from None


def _first_certificate(text: str) -> bytes:
    """The first certificate of a PEM file, in DER."""
    ssl = _load_ssl()
    start = text.index(ssl.PEM_HEADER)
    return ssl.PEM_cert_to_DER_cert(text[start:text.index(ssl.PEM_FOOTER, start) + len(ssl.PEM_FOOTER)])


def _pem_trouble(error: Exception, files: dict) -> str:
    """What is wrong with the files of a certificate."""
    if isinstance(error, ValueError):                   # a sentence of our own, see tls_context
        return str(error)
    reason = str(getattr(error, "reason", None) or error)
    if "KEY_VALUES_MISMATCH" in reason:
        return "the key in %s does not belong to the certificate in %s: name two files that belong together" % (
            files["keyfile"] or files["certfile"], files["certfile"])
    if "NO_CERTIFICATE" in reason and files["cafile"]:
        return "the cafile %s holds no certificate in PEM form: name the file of the CA" % files["cafile"]
    named = " and ".join(filter(None, (files["certfile"], files["keyfile"])))
    return ("%s cannot be used for TLS (%s): a certificate and its key are wanted, in PEM form, and by the rules of "
            "today (RSA of 2048 bits or more, SHA-256)" % (named, reason.lower().replace("_", " ")))


def _names(certificate: dict) -> List[str]:
    """The names that a certificate, as `getpeercert` gives it, stands for."""
    names = [name for kind, name in certificate.get("subjectAltName", ()) if kind == "DNS"]
    subject = itertools.chain.from_iterable(certificate.get("subject", ()))
    return [name.lower() for name in names or [value for kind, value in subject if kind == "commonName"]]


def _no_resumption(context: Any) -> None:
    """Each connection makes its own keys from the beginning, and nobody can ask for new ones under way."""
    ssl = _load_ssl()
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | getattr(ssl, "OP_NO_RENEGOTIATION", 0)
    if context.protocol == ssl.PROTOCOL_TLS_SERVER and hasattr(context, "num_tickets"):
        context.num_tickets = 0


@functools.lru_cache(maxsize=None)
def can_encrypt_by_secret() -> bool:
    """Whether this Python can use a secret as the key of TLS: 3.13 or newer, where `ssl` has callbacks for pre-shared
    keys, over an OpenSSL with them and TLS 1.3. Any thread."""
    if sys.version_info < (3, 13):
        return False
    try:                                # not `ssl`, which takes four times as long to load and may never be needed
        ssl = importlib.import_module("_ssl")
    except ImportError:                 # a Python without OpenSSL
        return False
    return bool(ssl.HAS_PSK and ssl.HAS_TLSv1_3)


def _secret_context(server_side: bool, key: bytes) -> Any:
    """Context for TLS by a secret. It trusts any certificate, but `Secrecy.accepts` sees to it that none is shown."""
    ssl = _load_ssl()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _no_resumption(context)
    if server_side:
        context.set_psk_server_callback(lambda _identity: key)
    else:
        context.set_psk_client_callback(lambda _hint: ("pycoslite", key))       # the name of the key; there is one
    return context


class Secrecy:
    """Which connections of a process are encrypted, and by what. Made by `Network`. All methods: any thread.

    With `certificates` all of them. Else what `Settings.encrypt` says, where both ends run Python 3.13 or newer and
    have a secret: "hosts" (the default) those to other hosts; "always" those within a host, too; "demand" like "hosts",
    but a connection to another host that cannot be encrypted is refused; "never" none. Raises MisuseError for another
    word.
    """

    __slots__ = ("certificates", "_contexts", "_key", "_rule")

    def __init__(self, key: Optional[bytes], found: Optional[Certificates]) -> None:
        if settings.encrypt not in ("hosts", "always", "demand", "never"):
            raise MisuseError("settings.encrypt (PYCOSLITE_ENCRYPT) is %r: it must be 'hosts', 'always', 'demand' or "
                              "'never'" % (settings.encrypt,))
        self.certificates = found
        self._key = key
        self._rule = settings.encrypt
        self._contexts: Dict[bool, Any] = {}    # for TLS by the secret; made when needed

    @property
    def files(self) -> Dict[str, Optional[str]]:
        """Arguments with which `certificates` makes the same in another process of this machine; fit for JSON."""
        return self.certificates.files if self.certificates is not None else {}

    def offer(self, near: bool) -> int:
        """The flags (section 7) for a connection; `near`: its other end is on this host."""
        if self.certificates is not None:
            return HAS_CERTIFICATE
        if self._rule == "never":
            return 0
        flags = CAN_ENCRYPT if self._key is not None and can_encrypt_by_secret() else 0
        if not near or self._rule == "always":
            flags |= WANTS_ENCRYPTION
        return flags | (DEMANDS_ENCRYPTION if not near and self._rule == "demand" else 0)

    def context(self, channel: str, server_side: bool) -> Any:
        """The ssl.SSLContext for a channel that was agreed on (BY_CERTIFICATES or BY_SECRET), at the end that accepted
        the connection (`server_side`) or dialled it. Made when first needed, then shared by all connections."""
        if channel == BY_CERTIFICATES:
            return self.certificates.context(server_side)       # type: ignore[union-attr]
        if server_side not in self._contexts:
            key = keyed_digest(self._key, b"pycoslite tls-psk")
            self._contexts[server_side] = _secret_context(server_side, key)
        return self._contexts[server_side]

    def accepts(self, channel: str, tls: Any) -> bool:
        """Whether what the other end has shown in the TLS handshake, now done, is right for the channel."""
        if channel == BY_CERTIFICATES:
            return self.certificates.accepts(tls)               # type: ignore[union-attr]
        return tls.session_reused and tls.getpeercert(True) is None     # the key was used, and no certificate

    def describe(self, result: HandshakeResult, near: bool, version: str) -> str:
        """How a connection is protected, in words for people; `version` of TLS as `ssl` names it."""
        if result.channel == BY_CERTIFICATES:
            return "tls %s, certificates" % version.replace("TLSv", "")
        if result.channel == BY_SECRET:
            return "tls-psk"
        return "open" if self._key is None else "authenticated, not encrypted (%s)" % self._why_plain(result, near)

    def one_sided(self, result: HandshakeResult) -> bool:
        """Whether a connection to another host is in clear because one end alone could encrypt it."""
        own = self.offer(False)
        return result.channel == PLAIN and bool((own ^ result.flags) & CAN_ENCRYPT and result.flags & WANTS_ENCRYPTION)

    def _why_plain(self, result: HandshakeResult, near: bool) -> str:
        """Why a connection is not encrypted, in words: nobody wanted it, or one end would not or could not. What the
        other end says of its Python is not to be relied on before its type is looked at."""
        if not (self.offer(near) | result.flags) & WANTS_ENCRYPTION:
            return "same host"
        if self._rule == "never":
            return "switched off at this end"
        if not can_encrypt_by_secret():
            return "this end runs Python %d.%d" % sys.version_info[:2]
        python = result.peer_info.get("python")
        if isinstance(python, list) and python[:1] == [3] and isinstance(python[1], int) and python[1] < 13:
            return "the other end runs Python 3.%d" % python[1]
        return "switched off at the other end"


# ======================================================================================================================
# 18. Network engine                                                       one lock, one thread at a time, see the rules
# ======================================================================================================================
#
# The engine is a second kernel. It runs everything that has to do with peers (and the SysTasks), never user code, and
# whoever drives it holds its lock:
#
#   the user kernel's thread   each time its loop comes round (`Engine.visit`); it also sleeps in the engine's poller,
#                              in which the user kernel's own poller is nested, and does so without the lock
#   the watcher thread         when the user kernel has not come round for `takeover_s` because a task computes or
#                              blocks; it gives the engine back when asked. It sleeps while the user kernel does.
#   any other thread           for the length of one call (`Engine.post`), if the lock is free
#
# Where pollers do not nest (Windows) the watcher drives it all the time.
#
# A round trip between two tasks is three system calls at each end: send, epoll_wait, recv; with both ends on one core
# it may be two and a half, see `Engine._peek`. What is left, 40 to 65 us of one core for a request and its answer, is
# three quarters interpreter. So the way of one short message that finds nothing else to be sent is written out in a few
# places (`Session.pass_on`, `RecordSealer.seal_short`, `RecordOpener.lone_frame`, `Link.take`, `Link.write_short`),
# each of which does what the general way beside it does: 1,730 bytecodes at each end of a round trip became 1,280. Not
# all cost the same: those that CPython cannot specialise (a function called as a method that lies in a slot, a number
# beyond 30 bits compared, & and ~) go through code that nothing else in a round trip needs, and that the processor has
# forgotten by the next one. Without a handful of these it takes a sixth less.
#
# Order: what the watcher or another thread has read for user tasks waits in the host's inbox; the host empties that
# each time it takes the lock, so nothing it reads itself can overtake it.
#
# What holds at all times, and what would break without it:
#
#   - `owner` is set by who holds the lock, and only by him. So a call from inside of the engine (`owner` is the calling
#     thread) is only queued, and the round under way makes it: no call is made in the midst of another
#   - no wake-up is lost. Who queues something queues first and then looks whether somebody sleeps (`rouse`); who goes
#     to sleep says so first (`sleeping`, `host.sleeping`) and then looks at the queues. Either way round, one sees the
#     other
#   - who sleeps does so until the earliest timer that he has seen (`_sleeps_until`); `post` wakes him for an earlier
#     one
#   - nothing that may block is called with the lock, but for the watcher's own poll: the host, who needs the lock then,
#     says so (`_wanted`) and wakes it up. Names are resolved, and files read, in threads
#   - no step of a user task is made with the lock. The only code of the user's that runs in the engine is his SysTasks
#     and what unpickling a message calls; it must not wait for what only the network brings

RECEIVE_BYTES = 256 * 1024              # most taken from a connection at a time
_PEEK_S = 0.001                         # for so long answers may be looked for without asking the poller, see `_peek`
_LUCKY = 3                              # looks in vain in a row, after one that found something, before ...
_UNLUCKY = 50                           # ... so many are left out


class _Later:
    """A call to be made by a kernel at some time; `cancel` takes it back (kernel thread only)."""

    __slots__ = ("kernel", "timer", "function", "args")

    def __init__(self, kernel: Kernel, delay_s: float, function: Callable, args: tuple) -> None:
        self.kernel = kernel
        self.timer = 0
        self.function = function
        self.args = args
        kernel.timers.push(kernel.clock() + delay_s, self)

    def expire(self) -> None:
        """The time has come."""
        try:
            self.function(*self.args)
        except Exception:
            log.exception("a timed call failed: %r", self.function)

    def cancel(self) -> None:
        """Do not make the call; harmless when it was made."""
        self.kernel.timers.cancel(self)


class Engine(Kernel):
    """The kernel of the network; `host` is the user kernel beside it."""

    __slots__ = ("host", "lock", "dirty", "spoken", "now", "space", "_nests", "_visited", "_wanted", "_dozing",
                 "_awake", "_tick", "_left", "_sleeps_until", "_due", "_watcher")

    def __init__(self, host: Kernel) -> None:
        super().__init__()
        self.host = host
        self.lock = threading.Lock()        # guards: the engine's whole state and every peer, link and session
        self.dirty: deque = deque()         # peers with something to send; any thread appends, see `Peer.push`
        self.spoken: Optional[Link] = None  # the link that was written to last, unless it was looked at since
        self.now = self.clock()             # when the clock was last looked at; good enough for whatever is not a timer
        self.space = memoryview(bytearray(RECEIVE_BYTES))       # what every link receives into
        self._nests = self.poller.nests and host.poller.nests
        self._visited = False               # the host is in `visit`; set with the lock only
        self._wanted = False                # the host waits for the lock while the watcher has it
        self._dozing = False                # the watcher sleeps until the host wakes up
        self._awake = threading.Event()
        self._tick = threading.Event()      # never set but at the end: the watcher's clock
        self._left = threading.Event()      # the host drives it no more
        self._sleeps_until = -math.inf      # when the host, if it sleeps, wakes up by itself
        self._due = -math.inf               # no timer expires before that
        self._watcher = threading.Thread(target=self._watch, name="pycoslite network watcher", daemon=True)

    def begin(self) -> None:
        """Start to be driven. Host's thread or before it runs."""
        if self._nests:
            self.poller.register(self.host.poller.fileno(), READ, self._host_events)
            self.host.guest = self
            self.host.waker.wake()
        self._watcher.start()

    def end(self) -> None:
        """Stop being driven, then close. Any thread but the engine's."""
        self.stopping = True
        self._tick.set()
        self._awake.set()
        self.waker.wake()
        if self._nests:
            while self._visiting() and not self._left.wait(settings.takeover_s):
                self.waker.wake()
        self.host.guest = None
        self._watcher.join()
        self.close()

    def _visiting(self) -> bool:
        """Whether another thread is in `visit`, with the lock or asleep. Once it is to stop, none begins; and a user
        task that computes for ever must not keep it from ending."""
        with self.lock:
            return self._visited and self.host.owner not in (None, get_ident())

    # -- from any thread -----------------------------------------------------------------------------------------------

    def post(self, function: Callable, *args: Any) -> None:
        """Call `function(*args)` in the engine: at once when it is idle, else soon. Any thread."""
        self.inbox.append((function, args))
        if self.owner == get_ident() or not self.lock.acquire(False):
            self.rouse()
            return
        self.owner = get_ident()
        try:
            self.work()
            deadline = self.timers.next_deadline()
        finally:
            self.owner = None
            self.lock.release()
        if self._pending() or deadline is not None and deadline < self._sleeps_until:
            self.rouse()

    def adopt(self, task: Task) -> None:
        """Schedule a new system task. Any thread."""
        super().adopt(task)
        self.rouse()

    def rouse(self) -> None:
        """Let whoever sleeps in the poller look again. Any thread. What is to be found must have been queued before:
        who goes to sleep says so first and looks at the queues last, as does who drives the engine before he leaves it.
        """
        if (self.sleeping or self.host.sleeping) and self.owner != get_ident():
            self.waker.wake()

    def _pending(self) -> bool:
        return bool(self.inbox or self.ready or self.dirty)

    def call_later(self, delay_s: float, function: Callable, *args: Any) -> _Later:
        """Call `function(*args)` in `delay_s` seconds; returns something with `cancel()`. Engine only."""
        return _Later(self, delay_s, function, args)

    # -- driving -------------------------------------------------------------------------------------------------------

    def work(self) -> None:
        """All there is to do without looking at descriptors. With the lock."""
        if self.inbox:
            self.run_inbox()
        clock = self.clock
        self.now = now = clock()
        if now >= self._due:
            self.run_timers()
        if self.ready:
            self.run_ready()
        if self.dirty:
            self._flush()

    def _flush(self) -> None:
        """Let the peers that have something to send write it; what all tasks of a pass have sent goes out together."""
        dirty, peer = self.dirty, None
        last = dirty[-1]                    # who is marked again goes behind it
        while peer is not last:
            peer = dirty.popleft()
            try:
                peer.flush()
            except Exception:
                log.exception("%s: what is queued for it could not be sent", peer)

    def visit(self) -> None:
        """The host's loop has come round: work, then sleep until something happens. Host's thread."""
        host = self.host
        if not self.lock.acquire(False):
            self._claim()
        if self.stopping:                   # with the lock: `end` looks whether this is under way
            host.guest = None
            self.lock.release()
            self._left.set()
            return
        self.owner = host.owner
        try:
            self._visited = True            # and the watcher keeps away, also while the lock is given back below
            if host.inbox:                  # what others have read and posted there came before what is read next
                host.run_inbox()
            self.work()
            link = self.spoken
            if link is not None and not host.ready:
                self.spoken = None
                if link.luck < 0:           # see `_peek`
                    link.luck += 1
                elif self._peek(link):
                    return
            host.sleeping = True            # before the queues are looked at: who comes later wakes us
            if host.ready or host.inbox or host.stopping or self.inbox or self.ready or self.dirty:
                self._stay_awake()
                if self.now - self.polled >= POLL_EVERY_S:
                    self._due = -math.inf
                    self._handle(self.poller.poll(0))
            else:
                self._sleep(host)
        finally:
            self._visited = False
            self.owner = None
            self.lock.release()

    def _claim(self) -> None:
        """Take the lock, from the watcher too. Host's thread."""
        self._wanted = True
        self.waker.wake()
        self.lock.acquire()
        self._wanted = False

    def _stay_awake(self) -> None:
        """The host, which slept or was about to, goes on: the watcher must look at it again. Host's thread.

        Also for a host that found something to do after it had said that it sleeps: in the moment between, the watcher
        may have believed it, and would not take over from a task that blocks now.
        """
        self.host.sleeping = False
        if self._dozing:
            self._dozing = False
            self._awake.set()

    def _peek(self, link: Link) -> bool:
        """Before sleeping: has the process that was written to last answered already? With the lock; host's thread.

        While both ends are on one core it may have, if writing to it let it run at once: then this saves one of the
        three system calls of a round trip and all that is around it. Where it has not, looking costs 2 us; so a link on
        which that happens a few times in a row is left to the poller for a while. The poller is asked at least every
        `_PEEK_S`, so one that always answers at once keeps nobody waiting for longer than that. (Giving up the core
        before looking makes a round trip a tenth shorter, and ten times longer where other programs compute.)
        """
        if link.sock is None or self.now - self.polled >= _PEEK_S:
            return False
        try:
            found = link.read()
        except Exception:
            log.exception("%s: what came from it could not be handled", link.where)
            found = True
        if not found:
            link.luck = link.luck - 1 if link.luck else -_UNLUCKY
        else:
            link.luck = _LUCKY
            if self.dirty:
                self._flush()
        return found

    def _sleep(self, host: Kernel) -> None:
        """Wait for descriptors, without the lock, and handle them."""
        until = self.timers.next_deadline()
        self._due = math.inf if until is None else until
        if host.timers.heap:
            other = host.timers.next_deadline()
            if until is None or other is not None and other < until:
                until = other
        self._sleeps_until = math.inf if until is None else until
        poll, clock = self.poller.poll, self.clock
        self.owner = None
        self.lock.release()
        try:
            if until is not None:
                until -= clock()
                if not 0.0 <= until <= LONGEST_SLEEP_S:
                    until = min(max(0.0, until), LONGEST_SLEEP_S)
            events = poll(until)
        finally:
            host.sleeping = False
            if self._dozing:
                self._stay_awake()
            if not self.lock.acquire(False):
                self._claim()
            self.owner = host.owner
            if host.inbox:                  # as above
                host.run_inbox()
        self._handle(events)

    def _handle(self, events: list) -> None:
        """Call the handlers of what a poll has found, and send what they have to say."""
        clock = self.clock
        self.now = self.polled = clock()
        self.poller.handle(events)
        if self.dirty:
            self._flush()

    def _host_events(self, _mask: int) -> None:
        """A descriptor of the user kernel is ready. Host's thread (the watcher does not watch these)."""
        poller = self.host.poller
        poller.handle(poller.poll(0))

    # -- the watcher ---------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        host = self.host
        while not self.stopping:
            rounds = host.rounds
            if host.sleeping:
                self._dozing = True
                if host.sleeping and not self.stopping:     # still: it will see `_dozing` when it wakes up
                    self._awake.wait()
                self._awake.clear()
            if self._nests:
                self._tick.wait(settings.takeover_s)
            if not self._nests or host.rounds == rounds and not self._visited and host.owner is not None:
                self._take_over(rounds)

    def _take_over(self, rounds: int) -> None:
        """Drive the engine until the host comes round again, unless it just has."""
        host = self.host
        with self.lock:
            if self._nests and (self._visited or host.rounds != rounds):
                return
            self.owner = get_ident()
            try:
                if self._nests:
                    log.debug("the network is driven by the watcher: a task has not yielded for a while")
                    self.poller.unregister(host.poller.fileno())
                while not (self.stopping or self._wanted):
                    self._drive()
                if self._nests and not self.stopping:
                    self.poller.register(host.poller.fileno(), READ, self._host_events)
            finally:
                self.owner = None

    def _drive(self) -> None:
        """Once round: work, then sleep until something happens, with the lock: the host asks for it."""
        self.work()
        self.sleeping = True                # before the queues are looked at, as in `visit`
        if self._wanted or self.stopping or self._pending():
            events = self.poller.poll(0)
        else:
            deadline = self.timers.next_deadline()
            events = self.poller.poll(None if deadline is None else min(max(0.0, deadline - self.clock()),
                                                                        LONGEST_SLEEP_S))
        self._due = -math.inf
        self.sleeping = False
        self._handle(events)

# ======================================================================================================================
# 19. Links and peers                                                             engine only, unless a method says else
# ======================================================================================================================
#
# A link is one TCP connection (over a bad line it gets more, see lanes at the end of this section), a peer is another
# process. What a link goes through:
#
#   connecting (dialled only) -> handshake -> session (SESSION frames cross) -> up -> closed
#
# Where section 7 agrees on TLS, the handshake of TLS lies between START and AUTH, within the same deadline, and all
# that follows goes through the link's `cipher`; what a stranger may say before he is authenticated has a limit of its
# own then (`tls_handshake_bytes`), as certificates are long. Nothing waits: TLS takes bytes and gives bytes.
#
# Of two links with the same peer (both dialled at once) both ends keep the one that the smaller process id dialled: it
# replaces the other at once; the other, if it comes second, waits unread as `candidate` until the first has answered a
# PING (then it is closed) or proved dead (then it takes over). A peer without a link:
#
#   down      dialling with growing pauses; messages are kept; 'offline' is told after `refused_s`, at once if the link
#             was cut because nothing had been heard for `missed_heartbeats`
#   refused   its port refuses for `refused_s`: the process is gone. Only an address proves that which is known to lead
#             to it: one it was dialled at, or seen at and said itself. Behind NAT or a relay a refusal tells nothing.
#   lost      gone, or down for `give_up_s`, or it said BYE: what is unconfirmed is reported, waiting requests fail.
#             Who was silent has been down for one heartbeat when that is noticed: with the defaults, a cut of 60 s is
#             healed, idle or not, and of one of 75 s everybody has been told by then
#
# A Peer is one session from the first message to `lost`. If the process is heard of again it is a new Peer; one that
# was given up for being silent is looked for a while longer (`_Missing`), so that traffic resumes by itself.
#
# Signs of life. Whatever is heard counts. Who has said nothing for `heartbeat_s` sends PING, which is answered by PONG;
# after `missed_heartbeats` of silence the link is closed. The engine does all this, whatever user tasks do: one that
# computes for a minute does not look dead. What can be known of an end is known
#
#   the process died, its host lives     within `refused_s`: the connection breaks, and its port refuses
#   it is stopped, its host is silent    after `heartbeat_s` * `missed_heartbeats` (5 s * 3)
#
# and a line that is whole again is used within two seconds: by TCP itself, which is told to try each second where the
# system can be told (Linux 6.15), by the next attempt otherwise, at most `connect_s` + `reconnect_max_s` later.
#
# A connection that breaks while both ends send: what the other end has said before is read to the end first (`mute`),
# or most of what each connection has carried would be thrown away, and a line that keeps breaking would stand still.
#
# Senders are held back (section 22) while the session's window is full or `_LONG_QUEUE` frames wait for the engine.
# Answers cannot be: not to read on would keep the confirmations out that make room, and two ends that ask each other a
# lot would wait for each other. So they count against the window like all else, and beyond it until two more windows
# are full of answers alone (`Peer.answer`): then the peer asks and takes nothing, and is cut off, as lost. One that
# takes them never comes near that, as it cannot have more on its way than its own window holds.
#
# Frames of users' messages that are given up are reported one by one (`Network.account`); of all others their askers
# are told, by PeerLost, or they are of no use without the peer.

_REQUEST_HEAD = struct.Struct(">II")    # request number (0: no answer wanted), bytes of JSON
_REPLY_HEAD = struct.Struct(">IBI")     # request number, 0 done or 1 failed, bytes of JSON
REQUEST, REPLY = 16, 17                 # frame codes
_UNCOPIED = 64 * 1024                   # a frame this long goes out from the buffers it was given in
_HOLED = 1000                           # from here to there a frame counts twice in the window: at worst a hole as long
                                        # lies beside it, where its pickle was, just too short for the next frame
_IN_A_ROW = 16                          # reads of a long frame, two a record, before others get their turn
_BRIEF = 2048                           # a read that brings less is followed by one for so much, which gives bytes: a
                                        # view of memory for much, and a copy of it, would be a thirtieth of an answer
_FIRST_BYTES = 1024                     # of a link's first records; they grow while there is more to send, up to
                                        # Settings.record_bytes: so a line that keeps breaking gets on, too
_LONG_QUEUE = 1024                      # frames that wait for the engine: senders are held back until it has come round
_SOME = 256                             # at each so many of them it is asked to come at once
_CROWDED_TRIES, _CROWDED_PAUSE_S = 4, 0.05      # who is turned away because too many wait tries again, a bit later each
                                        # time, before that counts as a failure
_MOST_PONGS = 100                       # answers that are kept for a peer that does not take them
_ANSWERS_TOGETHER = 256                 # are counted as one, see `_Owed`
_MOST_SAID = 8                          # addresses of a process that are told, and taken
_LONGEST_PING = 256                     # bytes of a PING that are answered: they come back in one record with others
_RIVAL_ANSWERS_S = 1.0                  # the better one of two links has this long to prove that it works
_REFUSED_LONG_ENOUGH = 0.6              # of Settings.refused_s, between the first refusal and one more: the first comes
                                        # a moment after the end, the next one up to a quarter of refused_s too late
_SURE_TRIES = 4                         # one of so many attempts tries all addresses of a peer, as each that is dead
                                        # costs connect_s; the others only the one that it has been reached at
_TCP_RTO_MAX_MS = 44                    # Linux's number of a socket option that the socket module does not name
_RESEND_MS = 1000                       # TCP, whose pauses double up to two minutes, resends at least this often: once
                                        # a line is whole again, that is noticed (the least that the option allows)


def _tune(sock: socket.socket) -> None:
    """Make a new TCP socket one for a link. Raises OSError when its connection is gone already (macOS)."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if sys.platform.startswith("linux"):
        try:
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_RTO_MAX_MS, _RESEND_MS)
        except OSError:                     # before Linux 6.15
            pass


class _Cipher:
    """TLS between the socket of a link and its records: bytes in, bytes out.

    OpenSSL reads from and writes to memory and not the socket: 1,070 MiB/s and 175,000 short records/s of one core,
    where a socket of the ssl module had 820 and 112,000, as it makes two system calls for each 16 KiB; and a partial
    write is the link's matter, as ever.
    """

    __slots__ = ("established", "bound", "tls", "_incoming", "_outgoing")

    def __init__(self, context: Any, server_side: bool) -> None:
        ssl = _load_ssl()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side)
        self.established = False            # the handshake of TLS is done
        self.bound = False                  # `binding` was taken

    def receive(self, data: bytes) -> bytes:
        """Take what came while the link shakes hands; what of it was decrypted. Raises ssl.SSLError."""
        ssl = _load_ssl()
        self._incoming.write(data)
        if not self.established:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                return b""
            self.established = True
        space, plain = memoryview(bytearray(16384)), b""
        while True:
            size = self.open(space)
            if not size:
                return plain
            plain += space[:size]

    def binding(self) -> bytes:
        """What only the two ends of this TLS connection know, for `Handshake.bind`. RFC 5929 calls it tls-unique: the
        first Finished message, a MAC of all that was said under a key that comes from a Diffie-Hellman exchange."""
        self.bound = True
        found = self.tls.get_channel_binding("tls-unique")
        if not found:
            raise AuthenticationError("the TLS library of this Python does not tell its first Finished message, so "
                                      "nobody in between could be noticed: use a Python that is built with OpenSSL")
        return found

    def feed(self, data: bytes) -> None:
        """Take what came from an authenticated peer; `open` gives it."""
        self._incoming.write(data)

    def open(self, space: memoryview) -> int:
        """Decrypt into `space` what has come and fits; how many bytes (0: no more for now). Raises ssl.SSLError, and
        ConnectionError when the other end has closed."""
        ssl = _load_ssl()
        size, incoming, tls = 0, self._incoming, self.tls
        try:
            while size < len(space) and (incoming.pending or tls.pending()):
                count = tls.read(len(space) - size, space[size:])
                if not count:
                    raise ConnectionError("the other end closed the connection")
                size += count
        except ssl.SSLWantReadError:            # a record that has begun
            pass
        return size

    @property
    def untaken(self) -> bool:
        """Whether more has come than `receive` has given."""
        return self._incoming.pending > 0 or self.tls.pending() > 0

    @property
    def owes(self) -> bool:
        """Whether TLS itself has something to say: the answer to a change of keys."""
        return self._outgoing.pending > 0

    def seal(self, buffers: list) -> bytes:
        """Encrypt; also what TLS itself has to say. Before it stands, what is to be sent goes out as it is."""
        data = buffers[0] if len(buffers) == 1 else b"".join(buffers)
        if not self.established:
            return bytes(data) + self._outgoing.read()
        if data:
            view, position = memoryview(data), 0
            while position < len(view):         # each call writes one record of TLS, 16 KiB
                position += self.tls.write(view[position:])
        return self._outgoing.read()


class Link:
    """One connection, from its first byte to its last: a socket, the handshake, then the codecs of its records. It
    belongs to a `_Dial` until it is authenticated, if this end has dialled, and to a `Peer` afterwards; whichever it is
    hears of its end, by `fail`, once. A socket of None means that it is closed. Engine only."""

    __slots__ = ("network", "engine", "sock", "role", "where", "peer", "handshake", "dial", "sealer", "opener",
                 "decoder", "unsent", "interest", "connecting", "last_in", "last_out", "timer", "leftover",
                 "record_bytes", "brief", "useful", "cipher", "heard", "luck", "lanes")

    def __init__(self, network: "Network", sock: socket.socket, role: str, where: str, dial: Any = None) -> None:
        self.network = network
        self.engine = network.engine
        self.sock: Optional[socket.socket] = sock
        self.role = role                    # 'dial' or 'accept'
        self.where = where                  # the other end, for sentences
        self.dial = dial                    # the _Dial it belongs to
        self.peer: Optional[Peer] = None    # once authenticated
        self.unsent: list = []              # buffers the socket has not taken yet
        self.connecting = role == "dial"
        told = {"lane": dial.lanes.name} if dial and dial.lanes else {}
        self.handshake: Optional[Handshake] = network.handshake(role, **told)
        self.cipher: Optional[_Cipher] = None       # TLS, from START on
        self.lanes: Optional[_Lanes] = None         # once authenticated, where it may have any; `sock`, when it has
        self.heard = 0                      # bytes that came before the other end was authenticated
        self.leftover = b""
        self.record_bytes = _FIRST_BYTES    # most that the next record carries
        self.brief = False                  # authenticated, and the last read was short: so will the next be
        self.useful = False                 # a message has come, or a confirmation
        self.luck = 0                       # how answers to what is written were found until now, see `Engine._peek`
        self.timer = 0
        self.last_in = self.last_out = self.engine.clock()
        self.interest = WRITE if self.connecting else READ
        network.links.add(self)
        self.engine.poller.register(sock.fileno(), self.interest, self.on_events)
        self.engine.timers.push(self.last_in + (settings.connect_s if dial else settings.handshake_s), self)
        if not self.connecting:
            self._greet()

    @property
    def encrypted(self) -> bool:
        """Whether TLS is below the records."""
        return self.cipher is not None

    # -- descriptor events ---------------------------------------------------------------------------------------------

    def on_events(self, events: int) -> None:
        """The socket is ready. It may have been closed since the poller said so, as that is asked without the lock."""
        if self.sock is None:
            return
        if self.connecting:
            self._connected()
        elif self.interest:
            if events != WRITE and self.read() and self.peer is not None and self.decoder.long:
                self._read_on()
            if events != READ and self.sock is not None:
                self._writable()
        else:
            self.fail(ConnectionError("the other end closed the connection"))

    def _connected(self) -> None:
        error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self.fail(OSError(error, os.strerror(error)))
            return
        self.connecting = False
        self.engine.timers.cancel(self)
        self.engine.timers.push(self.engine.clock() + settings.handshake_s, self)
        self._watch(READ)
        self._greet()

    def _greet(self) -> None:
        """The connection stands: say which TLS there can be, and whatever else is to be said first."""
        self.handshake.offer(self.network.secrecy.offer(_is_near(self.sock)))
        self.write([self.handshake.data_to_send()])

    def read(self) -> bool:
        """Take what has come; False when that was nothing."""
        try:
            if self.brief:
                data = self.sock.recv(_BRIEF)
                if len(data) == _BRIEF:
                    self.brief = False
            elif self.peer is None:
                data = self.sock.recv(settings.handshake_bytes)
            else:
                data = self._read_much()
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self.fail(error)
            return True
        if not data:
            self.fail(ConnectionError("the other end closed the connection"))
            return True
        self.last_in = self.engine.now
        try:
            if self.peer is None:
                self._shake(data)
            elif self.cipher is None:
                self.take(data)
            else:
                self._decrypt(data)
        except (PycosError, ConnectionError) as error:
            if self.peer is None and self.sock is not None:
                _drop_unread(self.sock)
            self.fail(error)
        return True

    def _read_much(self) -> memoryview:
        """Take as much as there is room for, and see whether the next read may be `brief`."""
        space = self.engine.space
        if self.decoder.long and self.cipher is None:
            space = self.opener.place(self.decoder.room) or space
            return space[:self.sock.recv_into(space)]
        size = self.sock.recv_into(space)
        self.brief = 0 < size < _BRIEF
        return space[:size]

    def _read_on(self) -> None:
        """In a long frame, of which a read takes a piece: go on without asking the poller each time."""
        for _ in range(_IN_A_ROW):
            if self.sock is None or not self.decoder.long or not self.read():
                break

    def _shake(self, data: bytes) -> None:
        """Take what came before the other end is authenticated."""
        handshake = self.handshake
        self.heard += len(data)
        try:
            if self.cipher is not None:
                self._shake_below_tls(data)
            else:
                handshake.receive(data)
                if handshake.channel != PLAIN:
                    self._begin_tls()
        finally:
            if self.sock is not None:
                self.write([handshake.data_to_send()])
        if handshake.result is not None and self.sock is not None:
            result = handshake.result
            self.handshake = None
            self.sealer = RecordSealer(result.send_key)
            self.opener = RecordOpener(result.receive_key)
            self.decoder = FrameDecoder(settings.frame_bytes)
            self.leftover = result.leftover
            self.network.authenticated(self, result)

    def _begin_tls(self) -> None:
        """START has crossed, or is about to."""
        self.write([self.handshake.data_to_send()])         # before TLS, not below it
        server_side = self.role == "accept"
        self.cipher = _Cipher(self.network.secrecy.context(self.handshake.channel, server_side), server_side)
        self._shake_below_tls(b"")

    def _shake_below_tls(self, data: bytes) -> None:
        """The handshake of TLS, in which certificates and keys are proved, then what is left of ours."""
        handshake, cipher = self.handshake, self.cipher
        if self.heard > settings.tls_handshake_bytes:
            raise ProtocolError("the other end says more than a handshake has")
        if not cipher.established:
            handshake.receive(data)                         # which knows a refusal when it sees one
            data = handshake.ciphertext()
        try:
            plain = cipher.receive(data)
        except _load_ssl().SSLError as error:
            raise AuthenticationError(tls_trouble(error, handshake.channel)) from None
        if cipher.established and not cipher.bound:
            if not self.network.secrecy.accepts(handshake.channel, cipher.tls):
                by_secret = handshake.channel == BY_SECRET
                raise handshake.refuse(Refusal.SECRET if by_secret else Refusal.CERTIFICATE)
            handshake.bind(cipher.binding())
        if plain:
            handshake.receive(plain)

    def _decrypt(self, data: bytes) -> None:
        """Take what came through TLS from an authenticated peer."""
        cipher, space = self.cipher, self.engine.space
        cipher.feed(data)                       # a copy: `space`, where it may be, is free again
        while self.sock is not None:
            try:
                size = cipher.open(space)
            except _load_ssl().SSLError as error:
                raise ProtocolError("what came through TLS was changed or forged on its way (%s)" % error) from None
            if not size:
                break
            self.take(space[:size])
        if self.sock is not None and cipher.owes:
            self.write([b""])

    def take(self, data: bytes) -> None:
        """Records of an authenticated peer: hand their frames to whom they concern."""
        lone = self.opener.lone_frame(data, self.decoder)
        if lone is None:
            self._take_all(data)
            return
        code, payload = lone
        peer = self.peer
        try:
            self.network.frame_handlers[code](peer, payload)
        except Exception as error:
            _not_handled(peer, code, error)
        if self.sock is not None:               # else the connection has ended, or the peer
            self.useful = True
            due = peer.session.note_received(1, len(payload), self.engine.now)
            if due is not None:
                peer.confirm_by(due)

    def _take_all(self, data: bytes) -> None:
        """The same for any number of frames, of which the first and the last may be cut."""
        peer, handlers = self.peer, self.network.frame_handlers
        for body in self.opener.feed(data):
            count = 0
            for code, payload in self.decoder.feed(body):
                if code >= _FIRST_SEQUENCED:
                    count += 1
                    try:
                        handlers[code](peer, payload)
                    except Exception as error:
                        _not_handled(peer, code, error)
                else:
                    if count:                   # first, for this frame may end the connection
                        peer.note_received(count, 0)
                        count = 0
                    peer.on_link_frame(self, code, payload)
                if self.sock is None:           # the connection has ended, or the peer
                    return
            if count:                           # at once: what follows in `data` may end the connection
                self.useful = True
                peer.note_received(count, max(len(body), len(payload)))     # of a long frame this is the last record
            elif not body:
                self._go_wide()

    def _go_wide(self) -> None:
        """An empty record came: what follows comes in lanes."""
        if self.lanes is None:
            raise ProtocolError("an empty record came, and there are no lanes")
        self.lanes.turn()

    # -- sending -------------------------------------------------------------------------------------------------------

    def write(self, buffers: list, sealed: bool = False) -> bool:
        """Send, through TLS if there is any and it has not `sealed` them before; what the socket does not take is kept
        for later. True when all is gone."""
        if self.cipher is not None and not sealed:
            buffers = [self.cipher.seal(buffers)]
        if self.unsent:
            self.unsent += buffers
            return False
        alone = len(buffers) == 1
        try:
            sent = self.sock.send(buffers[0]) if alone else self._sendmsg(buffers)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self.mute(error)
            return False
        self.last_out = self.engine.now
        return alone and sent == len(buffers[0]) or self._keep(buffers, sent)

    def _keep(self, buffers: list, sent: int) -> bool:
        """The socket has taken the first `sent` bytes of `buffers`: keep the others for later. True if there are none.
        """
        self.unsent = _behind(buffers, sent)
        if self.unsent:
            self._watch(READ | WRITE)
            if self.lanes is not None:
                self.lanes.supply.strained()
            return False
        return True

    def write_short(self, record: bytes) -> None:
        """What `write` does, in half of its time, for one short record while nothing is unsent. The answer to it may be
        there soon."""
        engine = self.engine
        engine.spoken = self
        if self.cipher is not None:
            self.write([record])
            return
        try:
            sent = self.sock.send(record)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self.mute(error)
            return
        self.last_out = engine.now
        if sent != len(record):
            self._keep([record], sent)

    def mute(self, error: OSError) -> None:
        """Nothing can be sent any more. What the other end has said before counts, or two ends that both send a lot
        would hardly get on over a line that keeps breaking; it is read soon, as this may be called while reading."""
        if self.peer is None or not self.interest:
            self.fail(error)
            return
        self.unsent = [b"\0"]               # holds up whatever would be sent
        self._watch(READ)
        self.engine.post(self._last_words, error)

    def _last_words(self, error: OSError) -> None:
        """Read until nothing more comes, then fail."""
        while self.sock is not None and self.read():
            pass
        self.fail(error)

    def _sendmsg(self, buffers: list) -> int:
        if hasattr(self.sock, "sendmsg"):
            return self.sock.sendmsg(buffers)
        return self.sock.send(b"".join(buffers))        # Windows

    def _writable(self) -> None:
        buffers, self.unsent = self.unsent, []
        if buffers and not self.write(buffers, sealed=True):
            return
        self._watch(READ)
        if self.peer is not None and self.peer.link is self:
            self.peer.flush()

    def _watch(self, interest: int) -> None:
        if self.sock is not None and interest != self.interest:
            self.interest = interest
            if self.sock is self.lanes:
                self.lanes.watch()
            else:
                self.engine.poller.modify(self.sock.fileno(), interest)

    def pause(self) -> None:
        """Do not read on: a candidate waits."""
        self.engine.timers.cancel(self)
        self._watch(0)

    def resume(self) -> None:
        """Read (again), beginning with what came behind the handshake."""
        self._watch(READ)
        data, self.leftover = self.leftover, b""
        if data:
            try:
                self.take(data)
            except PycosError as error:
                self.fail(error)

    # -- time and end --------------------------------------------------------------------------------------------------

    def expire(self) -> None:
        """Its timer: the handshake took too long, or it is time to show or to look for a sign of life."""
        if self.connecting:
            self.fail(OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))
        elif self.peer is None:
            self.fail(OperationTimeout("the handshake was not finished within %g seconds: is what answers there "
                                       "pycoslite?" % settings.handshake_s))
        elif self.sock is not None:
            self._look_for_life(settings.heartbeat_s, settings.heartbeat_s * settings.missed_heartbeats)

    def _look_for_life(self, heartbeat_s: float, limit_s: float) -> None:
        _Mapped.forget_spare()              # here, as this comes by every few seconds
        self.engine.now = now = self.engine.clock()
        if now - self.last_in >= limit_s:
            self.read()                     # it may have spoken while nobody here listened
            if self.sock is None:
                return
            if now - self.last_in >= limit_s:
                self.fail(OperationTimeout("nothing was heard from it for %g seconds" % limit_s))
                return
        if now - self.last_out >= heartbeat_s:
            self.last_out = now             # also when something is in the way: then that is what it will hear
            if not self.unsent:
                self.peer.session.control(encode_frame(Code.PING, b""))
                self.peer.flush()
        self.arm()

    def arm(self) -> None:
        """Set the timer for the next sign of life that is due, here or there."""
        if self.sock is not None:
            timers = self.engine.timers
            timers.cancel(self)
            due = min(self.last_out + settings.heartbeat_s,
                      self.last_in + settings.heartbeat_s * settings.missed_heartbeats)
            timers.push(max(due, self.engine.now + 0.001), self)

    def give_way(self) -> None:
        """Too many connections wait to be authenticated: the other end of this one is told to try again."""
        error = self.handshake.refuse(Refusal.BUSY)
        self.write([self.handshake.data_to_send()])
        self.fail(error)

    def fail(self, error: Exception) -> None:
        """The connection cannot go on; whoever it belongs to is told."""
        if self.sock is None:
            return
        self.close()
        if self.peer is not None:
            self.peer.link_failed(self, error)
        elif self.dial is not None:
            self.dial.failed(error)
        else:
            self.network.refused(self, error)

    def close(self) -> None:
        """Let go of the socket; tells nobody."""
        if self.sock is not None:
            self.release().close()

    def release(self) -> socket.socket:
        """Give the socket away: the connection goes on, and not as a link."""
        sock, self.sock = self.sock, None
        self.engine.timers.cancel(self)
        self.engine.poller.unregister(sock.fileno())
        if self.lanes is not None:
            self.lanes.stop()
            self.lanes = None               # so that neither keeps the other
        self.network.links.discard(self)
        return sock


def _drop_unread(sock: socket.socket) -> None:
    """Before a connection is closed with a refusal: what has not been read would have TCP reset the connection, and the
    other end might never see the reason. It may just have sent a long chain of certificates."""
    try:
        sock.recv(settings.tls_handshake_bytes)
    except OSError:                         # there is nothing
        pass


def _is_near(sock: socket.socket) -> bool:
    """Whether the other end of a connection is on this host, as far as addresses tell: a relay on it looks the same."""
    try:
        here, there = address_text(sock.getsockname()), address_text(sock.getpeername())
    except OSError:                         # it has been reset
        return False
    return here == there or is_loopback(there)


def _note_security(peer: "Peer", link: Link, result: HandshakeResult) -> None:
    """A connection stands: tell, where it is new, how it is protected."""
    network, near = peer.network, _is_near(link.sock)
    security = network.secrecy.describe(result, near, link.cipher.tls.version() if link.cipher else "")
    if security != peer.security:
        log.info("%s: %s", peer, security)
    peer.security = security
    if network.secrecy.one_sided(result) and not near and not network.said_one_sided:
        network.said_one_sided = True
        log.warning("messages to %s are %s: run Python 3.13 or newer at both ends, or start both with certfile and "
                    "keyfile; of further such peers only the status tells", peer, security)


def _not_handled(peer: "Peer", code: int, error: Exception) -> None:
    """A sequenced frame was malformed, or its handler failed: it is dropped, all else goes on."""
    if code not in peer.network.frame_handlers:
        error = ProtocolError("nothing here takes these: is it the same release, and the right port?")
    log_failure(error, "%s: a message of kind %d could not be handled", peer, code)


def _behind(buffers: list, sent: int) -> list:
    """What is left of `buffers` once their first `sent` bytes are gone."""
    for index, buffer in enumerate(buffers):
        if sent < len(buffer):
            return [memoryview(buffer)[sent:] if sent else buffer, *buffers[index + 1:]]
        sent -= len(buffer)
    return []


class _Ask(Request):
    """A request to a peer; the asking system task waits for the reply."""

    __slots__ = ("peer", "op", "args", "payload", "timeout", "number")

    def __init__(self, peer: "Peer", op: str, args: dict, payload: bytes, timeout: Optional[float]) -> None:
        self.peer, self.op, self.args, self.payload, self.timeout = peer, op, args, payload, timeout
        self.number = 0

    def begin(self, kernel: Kernel, task: Task) -> bool:
        peer = self.peer
        if peer.state == "lost":
            return _fail(task, PeerLost("%s is gone: %s" % (peer, peer.reason)))
        self.number = peer.last_request % 0xFFFFFFFF + 1
        deadline = None if self.timeout is None else kernel.clock() + self.timeout     # first, as it may be no number
        try:
            peer.send_request(self.number, self.op, self.args, self.payload)
        except (TypeError, ValueError, PycosError) as error:    # it cannot be written as JSON, or is too long
            return _fail(task, error)
        peer.last_request = self.number
        peer.requests[self.number] = task
        if deadline is not None:
            kernel.timers.push(deadline, task)
        task.wait = self
        return False

    def expired(self, task: Task) -> Any:
        self.abandon(task)
        raise OperationTimeout("%s did not answer '%s' within %g seconds" % (self.peer, self.op, self.timeout))

    def abandon(self, task: Task) -> None:
        self.peer.requests.pop(self.number, None)


class Peer:
    """Another process of the cluster, from the first message for it to its loss; made by `Network`.

    Read `name`, `info` (what it said of itself), `location`, `process_id`, `online`, `state` and `reason` (why it is
    down or lost), `connections` (how many), and `security`, which tells how its last connection was protected: 'tls
    1.3, certificates', 'tls-psk' (by the secret), 'authenticated, not encrypted (WHY)' or 'open'; '' before the first.

    Any thread may send (`send_frame`, `send_request`, `notify`), which never blocks and never fails for want of a
    connection: what is sent to a peer that is down waits for it, what is sent to one that is lost is reported as never
    sent. A False from `send_frame` says that the window is full; who goes on all the same makes it grow. Everything
    else is for the engine.
    """

    def __init__(self, network: "Network", process_id: bytes) -> None:
        self.network = network
        self.engine = network.engine
        self.tasks = network.host.tasks         # whom its messages are for; here to be found quickly
        self.process_id = process_id
        self.info: dict = {}
        self.security = ""
        self.route = _Route(self)
        self.session = Session(_random_id())
        self.link: Optional[Link] = None
        self.candidate: Optional[Link] = None
        self.state = "down"                     # 'down', 'up' or 'lost'; set only by _online, _down and lost
        self.told_online = False                # the listeners believe it is online
        self.accounted = False                  # who talks to it says by himself what is lost with it: not logged
        self.reason = ""
        self.requests: Dict[int, Task] = {}
        self.last_request = 0
        self.longest = settings.frame_bytes     # what it takes, and we, as one frame
        self.outbox: deque = deque()            # (frame, bytes) not yet handed to the session; any thread appends
        self.latest: Optional[RemoteTask] = None        # the reference to a task of it that came last
        self.marked = False                     # a flush is on its way
        self.bulky = False                      # the last message to a task of it was long, see `_serialize_again`
        self.held: list = []                    # called once the window has room again
        self.owed = _Owed(self)                 # answers beyond the window
        self.parting = False                    # goodbye is being said: it is looked for no more, if it has all
        self.ack_timer: Optional[_Later] = None

    @property
    def name(self) -> str:
        """What it calls itself."""
        return str(self.info.get("name", ""))

    @property
    def locations(self) -> List[Location]:
        """Where it can be dialled, best first."""
        return self.route.locations

    @property
    def location(self) -> Optional[Location]:
        """Where it can be reached, if it can."""
        return self.route.locations[0] if self.route.locations else None

    @property
    def online(self) -> bool:
        """Whether there is a working connection at this moment."""
        return self.state == "up"

    @property
    def connections(self) -> int:
        """How many connections there are at this moment: 0, 1, or more over a bad line (section 19, lanes)."""
        link = self.link
        return 0 if link is None else 1 if link.lanes is None else 1 + len(link.lanes.lanes)

    def __repr__(self) -> str:
        name = self.name if self.name.isprintable() else ascii(self.name)[1:-1]     # it goes into lines of logs
        return '"%.100s" @ %s' % (name, self.location or self.process_id.hex()[:8])

    # -- sending: any thread -------------------------------------------------------------------------------------------

    def send_frame(self, code: int, *parts: Any) -> bool:
        """Send a sequenced frame made of bytes-like parts. Any thread. False when the peer's window is full (the frame
        is taken all the same: hold back what follows). Raises MisuseError when it is longer than either end takes."""
        size = sum(map(len, parts))
        if size < _UNCOPIED:
            return self.push(encode_frame(code, *parts), size)
        self.check_size(size)
        self.push(frame_buffers(code, *parts), size)
        self.engine.post(self.flush)            # at once, if possible: what is long fills the window by itself
        return self.session.below_window

    def check_size(self, size: int) -> None:
        """Raise MisuseError when a frame of `size` bytes is longer than either end takes. Any thread."""
        if size > self.longest:
            raise MisuseError("%d bytes are more than a message to %s may have (%d): send it in pieces or as a file, "
                              "or set PYCOSLITE_FRAME_BYTES at both ends" % (size, self, self.longest))

    def push(self, frame: Any, size: int) -> bool:
        """Queue an encoded sequenced frame with a body of `size` bytes; otherwise like `send_frame`. Any thread."""
        outbox = self.outbox
        outbox.append((frame, size + 5 if size < _HOLED or size >= _UNCOPIED else 2 * size))
        if not self.marked:
            self.marked = True
            engine = self.engine
            engine.dirty.append(self)
            if engine.host.sleeping or engine.sleeping:     # else nobody is to be roused
                engine.rouse()
            return self.session.below_window    # the outbox is empty but for this, or is just being emptied
        waiting = len(outbox)
        if waiting < _SOME:
            return self.session.below_window
        if not waiting % _SOME:                 # who sends so much in one go must see the window fill
            self.engine.post(self.flush)
        return self.session.below_window and waiting < _LONG_QUEUE

    def answer(self, code: int, *parts: Any) -> None:
        """Send a sequenced frame that the peer has asked for; raises as `send_frame`. One that goes on asking and takes
        no answers is cut off. Engine."""
        if not self.send_frame(code, *parts):
            self.owed.add(sum(map(len, parts)))

    def send_request(self, number: int, op: str, args: dict, payload: bytes) -> None:
        """Send a request frame; number 0 wants no reply. Any thread."""
        head = json.dumps({"op": op, "args": args}, separators=(",", ":")).encode()
        self.send_frame(REQUEST, _REQUEST_HEAD.pack(number, len(head)), head, payload)

    def notify(self, op: str, args: dict, payload: bytes = b"") -> None:
        """A request without a reply. Any thread."""
        self.send_request(0, op, args, payload)

    def request(self, op: str, args: Optional[dict] = None, payload: bytes = b"",
                timeout: Optional[float] = None) -> Request:
        """Ask the peer; gives (dict, bytes). Use with yield in a system task. Raises PeerLost, OperationTimeout after
        `timeout` seconds (None: never), PycosError with the peer's sentence when it refuses."""
        return _Ask(self, op, args or {}, payload, timeout)

    # -- the session -----------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Hand what is queued to the socket, as far as it takes it."""
        self.marked = False                     # before the outbox is emptied: what comes later marks again
        outbox, session, link = self.outbox, self.session, self.link
        if link is not None and not link.unsent:
            frame = session.pass_on(outbox, _CHAINED, self.engine.now)
            if frame is not None:
                link.write_short(link.sealer.seal_short(frame))
                return
        elif self.state == "lost":              # a thread saw it alive when it began to send
            self.network.account(self, [Unconfirmed(None, outbox.popleft()[0], False) for _ in range(len(outbox))])
            return
        if outbox:
            session.push_all(outbox)
        if link is None:
            if not self.route.searching:        # a reference came from elsewhere: now it is needed
                self.network.enlist(self)
                self._down(ConnectionError("not connected yet"))
            return
        if link.unsent:
            return
        now = self.engine.now
        while link.sock is not None:
            parts = session.next_batch(link.record_bytes, now)
            if not parts or not link.write(link.sealer.seal(parts)):
                break
            if not session.has_more:
                self.engine.spoken = link
                break
            link.record_bytes = min(link.record_bytes * 2, settings.record_bytes, RECORD_CAP)

    def note_received(self, count: int, size: int) -> None:
        """Sequenced frames were handled: confirm them in time."""
        due = self.session.note_received(count, size, self.engine.now)
        if due is not None:
            self.confirm_by(due)

    def confirm_by(self, due: float) -> None:
        """See to it that what came is confirmed at that time (0.0: at once), or with something before."""
        if due == 0.0:
            self.flush()
        elif self.ack_timer is None:
            self.ack_timer = self.engine.call_later(due - self.engine.now, self._confirm)

    def _confirm(self) -> None:
        self.ack_timer = None
        self.engine.now = self.engine.clock()   # not before the deadline, or nothing would go out
        self.flush()
        due = self.session.ack_deadline
        if due is not None and due > self.engine.now:       # something went out before the timer did, and more came
            self.confirm_by(due)

    def on_link_frame(self, link: Link, code: int, body: bytes) -> None:
        """SESSION, ACK, PING, PONG or BYE came."""
        handler = _LINK_FRAMES.get(code)
        if handler is None:
            raise ProtocolError("a frame of the unknown kind %d" % code)
        handler(self, link, body)

    def go_on(self) -> None:
        """There is room in the window, or the peer is lost: senders that were held back go on."""
        held, self.held = self.held, []
        for function in held:
            function()

    # -- links come and go ---------------------------------------------------------------------------------------------

    def adopt(self, link: Link) -> None:
        """An authenticated link: use it, or hold it as a candidate beside a better one."""
        link.peer = self
        old = self.link
        if old is not None and _preferred(old) and not _preferred(link):
            if self.candidate is not None:
                self.candidate.close()
            self.candidate = link
            link.pause()
            self.session.control(encode_frame(Code.PING, link.where.encode()))      # the answer names it
            self.flush()
            self.engine.call_later(_RIVAL_ANSWERS_S, self._prefer, link)
            return
        if old is not None:
            old.close()
        self._use(link)

    def _prefer(self, link: Link) -> None:
        """The link beside the candidate `link` had its time to answer and did not, or has failed."""
        if self.candidate is link:
            if self.link is not None:
                self.link.close()
            self.candidate = None
            self._use(link)

    def _use(self, link: Link) -> None:
        self.link = link
        self.route.found(stop=_preferred(link))
        self.session.connected()
        link.arm()
        self.flush()
        link.resume()

    def link_failed(self, link: Link, error: Exception) -> None:
        """A link has broken."""
        if link is self.candidate:
            self.candidate = None
        elif link is self.link:
            self.link = None
            self.session.disconnected()
            if link.useful:                     # else the next attempt comes later and later
                self.route.pause_s = 0.0
            if self.candidate is not None:
                self._prefer(self.candidate)
            else:
                self._down(error)

    def came_up(self) -> None:
        """Both sessions agree: messages flow."""
        self.state = "up"
        self.route.since = None
        if not self.told_online:
            self.told_online = True
            log.info("%s is online", self)
            self.network.tell(self, "online", "")
        self.network.came_online(self)

    def _down(self, error: Exception) -> None:
        self.state, self.reason = "down", str(error)
        log.debug("%s: no connection: %s", self, error)
        silent = isinstance(error, OperationTimeout)
        self.route.search(settings.heartbeat_s if silent else 0.0)
        if silent:                                  # for long enough
            self._still_down(self.route.since)
        elif self.told_online:
            self.engine.call_later(settings.refused_s, self._still_down, self.route.since)

    def _still_down(self, since: Optional[float]) -> None:
        if self.state == "down" and self.route.since == since and self.told_online:
            self.told_online = False
            log.info("%s is offline: %s", self, self.reason)
            self.network.tell(self, "offline", self.reason)

    def lost(self, reason: str, expected: bool = False) -> None:
        """The process is gone, or given up, for the `reason` that all are told: whoever asked to know gets a report of
        each message that was not confirmed, else one line of the log counts them (not when that is `expected`);
        requests that wait fail with PeerLost, senders that were held back go on. Once; later calls change nothing."""
        if self.state == "lost":
            return
        self.session.push_all(self.outbox)
        self.state, self.reason, self.latest = "lost", reason, None
        self.route.found(stop=True)
        for link in (self.link, self.candidate):
            if link is not None:
                link.close()
        self.link = self.candidate = None
        self.accounted = self.accounted or expected
        self.network.account(self, self.session.lost(_random_id()))
        requests, self.requests = self.requests, {}
        for task in requests.values():
            task.unpark_with(PeerLost("%s is gone: %s" % (self, reason)))
        self.go_on()
        log.log(logging.INFO if self.info else logging.DEBUG, "%s is gone: %s", self, reason)   # met, or only named
        self.network.forget(self)


class _Owed:
    """How much of what waits for a peer answers it and was queued while its window was full. It is counted in lots,
    each of which is forgotten when the last answer in it is confirmed. Engine only."""

    __slots__ = ("peer", "frames", "size", "lots")

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.frames = self.size = 0
        self.lots: deque = deque()              # [number of the last frame, how many answers, their bytes]

    def add(self, size: int) -> None:
        """One more answer of `size` bytes; the peer is lost if those are more than it may leave."""
        peer, session, lots = self.peer, self.peer.session, self.lots
        while lots and lots[0][0] <= session.confirmed:
            _, frames, total = lots.popleft()
            self.frames -= frames
            self.size -= total
        if not lots or lots[-1][1] >= _ANSWERS_TOGETHER:
            lots.append([0, 0, 0])
        lot = lots[-1]
        lot[:] = session.confirmed + session.unconfirmed_frames + len(peer.outbox), lot[1] + 1, lot[2] + size
        self.frames += 1
        self.size += size
        if peer.state != "lost" and max(self.frames / settings.window_messages, self.size / settings.window_bytes) > 2:
            log.warning("%s asks and does not take the answers: it is cut off, and %d messages that wait for it are "
                        "dropped", peer, session.unconfirmed_frames + len(peer.outbox))
            peer.lost("it did not take its answers")


def _preferred(link: Link) -> bool:
    """Whether the smaller process id dialled it: of two links both ends keep that one."""
    return (link.role == "dial") == (link.network.process_id < link.peer.process_id)


def _on_session(peer: Peer, link: Link, body: bytes) -> None:
    session, unconfirmed = peer.session, peer.session.unconfirmed_frames
    if session.on_session(*parse_session(body)) != "mismatch":
        link.useful = session.unconfirmed_frames < unconfirmed      # the link before it was
        peer.came_up()
        peer.flush()
        if session.below_window:
            peer.go_on()
    elif session.remote_sid:            # ours is the one that was given up there
        peer.lost("it had given this process up, and begins anew")
        peer.network.dial_again(peer)
    else:
        link.fail(ConnectionError("what it knows of this process is older; connecting again"))


def _on_ack(peer: Peer, link: Link, body: bytes) -> None:
    link.useful = True
    if peer.session.on_ack(parse_ack(body)):
        peer.go_on()


def _on_ping(peer: Peer, _link: Link, body: bytes) -> None:
    if len(body) > _LONGEST_PING:
        raise ProtocolError("a PING of %d bytes, more than the %d that are answered" % (len(body), _LONGEST_PING))
    if peer.session.queued_control >= _MOST_PONGS:
        return                          # who asks so often, and takes no answers, gets no more of them
    peer.session.control(encode_frame(Code.PONG, bytes(body)))
    peer.flush()


def _on_pong(peer: Peer, link: Link, body: bytes) -> None:
    candidate = peer.candidate
    if candidate is not None and link is peer.link and body == candidate.where.encode():
        candidate.close()
        peer.candidate = None


def _on_lanes(peer: Peer, link: Link, body: bytes) -> None:
    if link.lanes is None or len(body) != 1:
        raise ProtocolError("LANES came, and there are none on this connection")
    link.lanes.supply.told(body[0])


def _on_bye(peer: Peer, _link: Link, body: bytes) -> None:
    peer.session.confirm()
    peer.flush()                        # the last confirmation: the other end waits for it
    peer.lost(bytes(body).decode("utf8", "replace") or "it has ended")


_LINK_FRAMES = {                        # code -> (peer, link, body)
    Code.SESSION: _on_session,
    Code.ACK: _on_ack,
    Code.PING: _on_ping,
    Code.PONG: _on_pong,
    Code.BYE: _on_bye,
    Code.LANES: _on_lanes,
}


def _random_id() -> int:
    return int.from_bytes(os.urandom(8), "big") | 1


class _Route:
    """How a peer is reached: its addresses, and the search for it while there is no link."""

    __slots__ = ("peer", "locations", "sure", "since", "dial", "redial", "refused_since", "pause_s", "tries")

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.locations: List[Location] = []     # best first
        self.sure: Optional[Location] = None    # where nothing but this process can be: a refusal there tells its end
        self.since: Optional[float] = None      # when it was cut off, until messages flow again
        self.dial: Optional[_Dial] = None
        self.redial: Optional[_Later] = None
        self.refused_since: Optional[float] = None
        self.pause_s = 0.0
        self.tries = 0                          # attempts of this search so far

    @property
    def searching(self) -> bool:
        """Whether an attempt is under way or planned."""
        return self.dial is not None or self.redial is not None

    def learn(self, link: Link, info: dict, dialled: Optional[Location]) -> None:
        """Take the addresses that an authenticated link tells: the one `dialled`, the one seen, those it says."""
        try:
            seen = address_text(link.sock.getpeername())
        except OSError:                         # gone already
            return
        port, said = _said_addresses(info, seen)
        near = is_loopback(seen) and not {at.addr for at in self.peer.network.locations}.isdisjoint(said)
        listens = _listens_at(info, seen)       # it may have dialled from where it does not
        if dialled is not None:
            self.sure = dialled
        elif port and listens and (seen in said or near):
            self.sure = Location(seen, port)
        found = {} if self.sure is None else {self.sure: None}      # a dict keeps the order and drops what is twice
        if port:
            found.update((Location(host, port), None) for host in [seen] * listens + said)
        self.locations = list(found) or self.locations

    def search(self, silent_s: float) -> None:
        """The peer has no link, since `silent_s` in truth: look for it until it is found, or lost."""
        if (self.peer.parting or self.peer.network.closing) and not self.peer.session.unconfirmed_frames:
            return
        if self.since is None:
            self.since = self.peer.engine.clock() - silent_s
            self.refused_since, self.tries = None, 0
            later = self.peer.told_online and self.peer.network.process_id > self.peer.process_id
            self._plan(self.pause_s + (settings.reconnect_min_s if later else 0.0))     # after you: not both at once
            self.pause_s = min(max(self.pause_s * 2, settings.reconnect_min_s), settings.reconnect_max_s)
        elif not self.searching:
            self._failed(ConnectionError(self.peer.reason), False)

    def found(self, stop: bool) -> None:
        """There is a link, or nobody is interested any more. An attempt under way goes on unless `stop`: both ends may
        prefer what it leads to."""
        if self.redial is not None:
            self.redial.cancel()
            self.redial = None
        if self.dial is not None and stop:
            self.dial.stop()
            self.dial = None

    def _plan(self, delay_s: float) -> None:
        if not self.searching:
            self.redial = self.peer.engine.call_later(delay_s, self._attempt)

    def _attempt(self) -> None:
        self.redial = None
        peer = self.peer
        if peer.state != "down" or peer.link is not None:
            return
        if self.locations:
            every = self.sure is None or self.tries % _SURE_TRIES == 0
            self.tries += 1
            self.dial = _Dial(peer.network, self.locations if every else [self.sure], self._ended, peer.process_id,
                              self.sure)
            self.dial.next()
        else:
            self._failed(ConnectionError("its address is not known"), False)

    def _ended(self, peer: Optional[Peer], error: Optional[Exception], gone: bool) -> None:
        """An attempt has ended."""
        self.dial = None
        if peer is None and self.peer.state == "down" and self.peer.link is None:
            self._failed(error or ConnectionError("no connection"), gone)

    def _failed(self, error: Exception, gone: bool) -> None:
        peer, now = self.peer, self.peer.engine.clock()
        since = now if self.since is None else self.since
        if not gone:
            self.refused_since = None
        elif self.refused_since is None:
            self.refused_since = now
        if self.refused_since is not None and now - self.refused_since >= settings.refused_s * _REFUSED_LONG_ENOUGH:
            peer.lost("its process has ended (%s)" % error)
        elif now - since >= settings.give_up_s:
            peer.lost("not reached for %g seconds: %s" % (settings.give_up_s, error))
            peer.network.miss(peer)
        else:
            limit_s = settings.refused_s / 5 if gone else settings.reconnect_max_s
            self.pause_s = min(max(self.pause_s * 2, settings.reconnect_min_s), limit_s)
            self._plan(max(0.0, min(self.pause_s * random.uniform(0.8, 1.2), since + settings.give_up_s - now)))


def address_text(address: tuple) -> str:
    """The host of a socket's address as a `Location` has it: an IPv4 address in its own form whatever kind of socket
    saw it, a link-local one with the interface it was seen at. Any thread."""
    host = canonical_host(address[0].partition("%")[0])
    if len(address) == 4 and address[3] and is_link_local(host):
        try:
            scope = socket.if_indextoname(address[3])
        except OSError:                         # the interface has just gone
            scope = str(address[3])
        return "%s%%%s" % (host, scope if os.name == "posix" else address[3])       # Windows dials numbers only
    return host


def _said_addresses(info: dict, seen: str) -> Tuple[int, List[str]]:
    """Port (0: none) and addresses that a process says it has; whatever else it may have said in their place. A
    link-local address is of use only if the process was `seen` at one: then it is at the same interface."""
    port, said = info.get("port"), info.get("addresses")
    hosts = []
    for host in said[:_MOST_SAID] if isinstance(said, list) else ():
        try:
            host = Location(host, 0).bare
        except ValueError:
            continue
        if is_link_local(host):
            if not is_link_local(seen):
                continue
            host += seen[seen.find("%"):]
        hosts.append(host)
    return port if isinstance(port, int) and 0 < port < 65536 else 0, hosts


def _listens_at(info: dict, host: str) -> bool:
    """Whether a process says that it listens at an address, or at all of that kind; True when it does not say."""
    hosts = info.get("hosts")
    return not isinstance(hosts, list) or host.partition("%")[0] in hosts or wildcard_of(host) in hosts


class _Dial:
    """Tries addresses one after the other until an authenticated link stands; calls `done(peer, error, gone)` once.

    `expect` is the process that should answer, `sure` an address that only it can have; `gone` tells that it has not.
    With `lanes` what it leads to becomes one of these; `done` is then told nothing but that it is over.
    """

    def __init__(self, network: "Network", locations: Iterable[Location], done: Callable,
                 expect: Optional[bytes] = None, sure: Optional[Location] = None,
                 lanes: "Optional[_Lanes]" = None) -> None:
        self.network = network
        self.todo = deque(locations)
        self.done: Optional[Callable] = done
        self.expect = expect
        self.sure = sure
        self.lanes = lanes
        self.error: Optional[Exception] = None
        self.gone = False
        self.tried_sure = False
        self.crowded = 0                            # times that others were in the way
        self.link: Optional[Link] = None
        self.at: Optional[Location] = None          # the location being tried, and ...
        self.addresses: deque = deque()             # ... addresses of it that were not

    def next(self) -> None:
        """Try the next address."""
        if self.done is None:
            return
        if self.addresses:
            self._connect(*self.addresses.popleft())
            return
        if not self.todo:
            self.finish(None, self.error or ConnectionError("no address to dial"))
            return
        self.at = location = self.todo.popleft()
        if is_link_local(location.addr) and "%" not in location.addr:
            self._resolved(_on_each_link(location))
            return
        try:
            found: Any = socket.getaddrinfo(location.addr, location.port, type=socket.SOCK_STREAM,
                                            flags=socket.AI_NUMERICHOST)
        except (OSError, ValueError):
            if "%" not in location.addr:    # a name: ask in a thread, the engine must not wait
                threading.Thread(target=self._resolve, args=(location,), name="pycoslite resolver", daemon=True).start()
                return
            found = OSError(0, "this machine has no interface %r" % location.addr.partition("%")[2])
        self._resolved(found)

    def _resolve(self, location: Location) -> None:
        try:
            found: Any = socket.getaddrinfo(location.addr, location.port, type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:      # ValueError: what no name can be (a label too long, a NUL)
            found = OSError(getattr(error, "errno", None), "the host name %.80r cannot be resolved (%s): use its IP "
                            "address" % (location.addr, getattr(error, "strerror", error)))
        if not self.network.engine.stopping:
            self.network.engine.post(self._resolved, found)

    def _resolved(self, found: Any) -> None:
        if isinstance(found, OSError):
            self.failed(found)
        else:
            self.addresses.extend((family, address) for family, _, _, _, address in found)
            self.next()

    def _connect(self, family: int, address: tuple) -> None:
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:            # no descriptor left, or no such protocol here
            self.failed(error)
            return
        try:
            _tune(sock)
            sock.connect(address)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            sock.close()
            self.failed(error)
            return
        self.link = Link(self.network, sock, "dial", repr(self.at), self)

    def failed(self, error: Exception) -> None:
        """This address did not do."""
        self.link = None
        if isinstance(error, (PeerBusy, ConnectionResetError)) and self.crowded < _CROWDED_TRIES:
            self.crowded += 1               # too many strangers knock there: the reset is a refusal that came too late
            self.todo.appendleft(self.at)
            self.network.call_later(_CROWDED_PAUSE_S * self.crowded, self.next)
            return
        if self.at == self.sure:            # does nothing but the process that is looked for not answer there?
            other = (isinstance(error, (ConnectionRefusedError, AuthenticationError, ProtocolError))
                     and not isinstance(error, PeerBusy))
            self.gone = other and (self.gone or not self.tried_sure)
            self.tried_sure = True
        if not isinstance(self.error, AuthenticationError):     # which says most about what to change
            self.error = _explained(error, self.at)
        self.next()

    def finish(self, peer: Optional[Peer], error: Optional[Exception]) -> None:
        """Tell the outcome, once."""
        done, self.done = self.done, None
        if done is not None:
            done(peer, error, self.gone)

    def stop(self) -> None:
        """Nobody is interested any more; a link that is not authenticated yet is closed."""
        self.done = None
        if self.link is not None and self.link.peer is None:
            self.link.close()


def _on_each_link(location: Location) -> Any:
    """What `getaddrinfo` would say of a link-local address that came without its interface, as it does from another
    machine: it may be at any interface of this one."""
    found = [(socket.AF_INET6, socket.SOCK_STREAM, 0, "", (location.addr, location.port, 0, index))
             for index, name in socket.if_nameindex() if name != "lo"]
    return found or OSError(0, "a link-local address needs an interface, and there is none: write it [address%eth0]")


def _explained(error: Exception, location: Optional[Location]) -> Exception:
    """The error of an attempt to reach `location`, as a sentence. Who was turned away by a crowd, again and again, has
    not heard that it does not belong there: that is no AuthenticationError, after which some do not try again."""
    if isinstance(error, PeerBusy):
        return PeerLost("cannot reach %s: %s" % (location, error))
    if isinstance(error, PycosError):
        return type(error)("%s: %s" % (location, error))
    number = getattr(error, "errno", None)
    text = _REASONS.get(number, getattr(error, "strerror", None) or str(error))
    return PeerLost("cannot reach %s: %s" % (location, text))


_REASONS = {
    errno.ECONNREFUSED: "connection refused, nothing listens at that port",
    errno.EHOSTUNREACH: "no route to that host, or it is switched off",
    errno.ENETUNREACH: "no route to that network",
    errno.EADDRNOTAVAIL: "no address of this machine's can be used towards it",
    errno.EAFNOSUPPORT: "this machine does not have that version of the Internet protocol",
    errno.ETIMEDOUT: "no answer: the host is off, the address is wrong, or a firewall drops the packets",
}


# -- lanes -------------------------------------------------------------------------------------------------------------
#
# What one TCP connection carries over a long line that loses packets depends on how it takes the losses: at 50 ms and 5
# % it is 500 KiB/s with BBR and 100 with Cubic, and each further connection carries as much again. So a link over such
# a line, with more to send than goes out, gets lanes: connections beside its first one, which then share its bytes.
# Nothing above notices. Records, MACs and TLS are the link's: made before its bytes are dealt out as chunks (section
# 6), checked when they are in order again. Who changes, repeats or drops anything in a lane ends the link as soon as
# what comes next is there, and who holds it back when nothing has come in order for `missed_heartbeats`; the session
# goes on over the next link. So lanes take nothing from what section 8 promises.
#
# A `_Lanes` takes the place of the link's socket: it takes bytes, as many as there is room for, and gives bytes in
# order. Each direction is by itself in one of two states:
#
#   narrow    its bytes go over the first connection as they are. The sender changes to wide when it has found the line
#             to be bad, there are `_LEAST_LANES` at least, and the first connection has taken all there was: the last
#             thing that this carries is an empty record
#   wide      its bytes go as chunks over whichever lane takes them; the first connection carries nothing any more. What
#             comes in lanes before the empty record waits for that. There is no way back: `_LEAST_LANES` last as long
#             as the link, and a line that was bad once gets more again in no time
#
# Who dials: the end that has dialled the link, to the same address, as the other may not be able to. The other says how
# many it wants (frame LANES), and there are as many as the one wants that wants more. A lane's handshake is that of a
# link, TLS included, and proves as much; its info has `lane`, the name of the link that it is for
# (`HandshakeResult.name`, which both ends have), and only that process's own link can be named. Behind the handshake
# there are chunks, and no TLS any more. The end that has dialled speaks first, by an empty chunk: before it, the other
# one could be taken for a part of the handshake.
#
# When: `_Supply` is told whenever the socket takes less than there is. From then on, each `_LOOK_S` while something
# waits to be sent, it looks at TCP's own counts (Linux tells them), which `_Strain` judges. It begins with
# `_FIRST_LANES` and doubles that, up to `Settings.lanes`, as long as this pays. Where TCP does not tell, or the line is
# short or sound, there are no lanes; what comes that way is taken in any case. An end whose socket has taken everything
# for `lanes_idle_s` wants half as many, and so on down to `_LEAST_LANES`.
#
# What becomes of a lane, at each end:
#
#   dialled or accepted   the end that has dialled begins at once; the other may send when the first bytes have come
#   in use                carries chunks, both ways
#   leaving               this end has said that no chunk follows: the one that dials lanes when there are more than
#                         either end wants, the other as an answer to that
#   gone                  both have said so, and what this end has said is with TCP: closed. Each has
#                         heard all that the other said there; should what this end has said last be lost on its way,
#                         the other takes the lane for a broken one, as ever
#
# What is kept is bounded: a sender fills a lane only as far as TCP is about to send (`_LANE_AHEAD`), and a receiver
# that keeps more than `Settings.lanes_held_bytes` reads only from lanes that may owe what comes next, which are those
# that have not got beyond it. As each lane is in order, the one that owes it is always among them.
#
# Signs of life: the link hears something when bytes have come in order (`Link.read`), not when a lane has carried
# something: so a lane that has died in silence ends the link in time, though others may go on. Lanes are used in turn
# when little is sent, so that no router forgets one.
#
# The end: the link closes all. An end that sees one of the connections closed reads the others until they are, too, for
# `_LAST_WORDS_S` at most: what was said last may still be on its way on another one. A lane that breaks ends the link;
# one that nothing depends on yet is only dropped. Who gets no answer to a dial has fewer lanes.

_LEAST_LANES, _FIRST_LANES = 2, 4       # one alone would carry no more than the first connection does
_LANE_CHUNK = 8 * 1024                  # most that a chunk carries: 20 bytes in 8 KiB do not matter
_LANE_AHEAD = 32 * 1024                 # bytes that TCP has and has not sent yet: what waits in a slow lane delays all
_LANE_TRIES = 2                         # a SYN is lost sooner than a line is down
_LOOK_S = 0.1
_FRESH_S = 2.0                          # counts older than that do not say what the line is like now
_SETTLED_S, _SETTLED_TRIPS = 0.5, 12    # more lanes show what they carry after this long, and so many round trips
_PAYS = 1.3                             # times as much as before must be carried, or there is nothing to be had by more
_ASKED_S = 5.0                          # lanes that were asked for come within this, or never
_LEAST_RESENT = 3                       # packets: fewer say nothing about a line
_TURN_S = 1.0                           # after so long a silence the next lane is used
_LAST_WORDS_S = 1.0
_TCP_INFO_BYTES = 160                   # Linux 4.6: struct tcp_info, of which four numbers are used, by their offsets
_TCP_FIELDS = struct.Struct("=68xI28xI16xQ28xI")    # rtt in us, total_retrans, bytes_acked, data_segs_out


class _Line(NamedTuple):
    """What TCP knows of a line, from one connection or several together."""

    rtt_s: float
    resent: int                         # packets, of all those ...
    sent: int                           # ... with data
    confirmed: int                      # bytes


def _line_by(told: List[bytes]) -> Optional[_Line]:
    """The line, from the tcp_info of each connection over it; None if one of them is too short to tell."""
    if not told or min(map(len, told)) < _TCP_INFO_BYTES:
        return None
    rtt, resent, confirmed, sent = zip(*map(_TCP_FIELDS.unpack_from, told))
    return _Line(max(rtt) / 1e6, sum(resent), sum(sent), sum(confirmed))


def _line_of(socks: List[socket.socket]) -> Optional[_Line]:
    """The line that these connections go over; None where the system does not tell, or one of them is broken."""
    if not sys.platform.startswith("linux"):    # others have other structures by that name
        return None
    try:
        return _line_by([sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES) for sock in socks])
    except OSError:
        return None


class _Strain:
    """Whether more connections would help a link that has more to send than goes out. Time and counts come in."""

    __slots__ = ("_since", "_before", "_carried")

    def __init__(self) -> None:
        self._carried = 0.0                     # bytes/s when there were fewer lanes
        self.begin(-math.inf, None)

    def begin(self, now: float, line: Optional[_Line]) -> None:
        """There is more to be sent than goes out, since `now`; or the number of lanes has just changed."""
        self._since, self._before = now, line

    def judge(self, now: float, line: Optional[_Line], wide: bool) -> str:
        """Why there should be more connections, '' if not, or not yet. Asked again and again while it lasts."""
        took_s, before = now - self._since, self._before
        if took_s < settings.lanes_after_s:
            return ""
        if settings.lanes_loss <= 0 and not wide:
            return "as settings.lanes_loss says"
        if line is None or before is None or wide and took_s < max(_SETTLED_S, _SETTLED_TRIPS * line.rtt_s):
            return ""
        resent, sent = line.resent - before.resent, line.sent - before.sent
        bad = resent >= max(_LEAST_RESENT, settings.lanes_loss * sent) and line.rtt_s >= settings.lanes_rtt_s
        rate = (line.confirmed - before.confirmed) / took_s
        if bad and rate >= self._carried * _PAYS:
            self._carried = rate if wide else 0.0       # what one connection carries says nothing: it has just begun
            return "of the packets %.0f %% had to be sent again, at %.0f ms there and back" % (
                100 * resent / sent, 1000 * line.rtt_s)
        if took_s >= max(_FRESH_S, 2 * _SETTLED_TRIPS * line.rtt_s):
            self.begin(now, line)
        return ""


class _Lane:
    """One connection that carries chunks both ways, and belongs to a `_Lanes`. `begun`: the other end knows what it is;
    `leaving`: this end has said that no chunk follows; `open`: it is watched. `keys` are those of its handshake, to
    send and to receive."""

    __slots__ = ("lanes", "sock", "reader", "writer", "unsent", "begun", "leaving", "open", "interest")

    def __init__(self, lanes: "_Lanes", sock: socket.socket, begun: bool, keys: tuple) -> None:
        self.lanes = lanes
        self.sock = sock
        self.writer, self.reader = ChunkWriter(keys[0]), ChunkReader(keys[1])
        self.unsent = b""                       # the rest of a chunk that TCP has not taken whole
        self.begun = begun
        self.leaving = False
        self.open = True
        self.interest = READ
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _LANE_AHEAD)
            except OSError:                     # it is broken, as will be noticed
                pass
        lanes.engine.poller.register(sock.fileno(), READ, self.on_events)

    @property
    def usable(self) -> bool:
        """Whether this end may send chunks."""
        return self.begun and self.open and not self.leaving

    @property
    def gone(self) -> bool:
        """Whether both ends have said that nothing follows."""
        return self.leaving and self.reader.ended and not self.unsent

    def on_events(self, events: int) -> None:
        """The socket is ready. It may have been closed since the poller said so."""
        if events & READ and self.open:
            self.lanes.receive(self)
        if events & WRITE and self.open:
            self.lanes.writable(self)

    def watch(self, reading: int, writing: int) -> None:
        """Whether anything is to be read from it (READ or 0), and whether anything waits for it (WRITE or 0)."""
        interest = reading | (WRITE if self.unsent or writing and self.usable else 0)
        if self.open and interest != self.interest:
            self.interest = interest
            self.lanes.engine.poller.modify(self.sock.fileno(), interest)

    def send(self, position: int, body: Any) -> bool:
        """Send a chunk; False if there is no room for any of it. Raises OSError."""
        if self.unsent or not self.usable:
            return False
        chunk = self.writer.chunk(position, body)
        try:
            sent = self.sock.send(chunk)
        except (BlockingIOError, InterruptedError):
            return False
        self.writer.sent()
        self.unsent = chunk[sent:]
        if self.unsent:
            self.watch(self.interest & READ, WRITE)
        return True

    def flush(self) -> bool:
        """Send the rest of a chunk; whether there is room for more. Raises OSError."""
        if self.unsent:
            try:
                self.unsent = self.unsent[self.sock.send(self.unsent):]
            except (BlockingIOError, InterruptedError):
                pass
        return not self.unsent

    def leave(self) -> None:
        """Say that no chunk follows, once; what was said before goes first. Raises OSError."""
        if not self.leaving:
            self.leaving = True
            self.unsent += self.writer.end()
            self.flush()
            self.watch(self.interest & READ, 0)

    def read(self, space: memoryview) -> Optional[list]:
        """The pieces of chunks that have come; None at the end of the connection. Raises OSError, ProtocolError."""
        count = self.sock.recv_into(space)
        self.begun = self.begun or count > 0
        return self.reader.feed(space[:count]) if count else None

    def end(self) -> None:
        """Watch it no more."""
        if self.open:
            self.open = False
            self.lanes.engine.poller.unregister(self.sock.fileno())


class _Supply:
    """How many lanes a link has: looks whether more or fewer would do, and dials them, lets them go, or has the other
    end do so. Engine only.

    `reason` is why this end wants to send in lanes, '' as long as it does not; `wanted` how many it wants then.
    """

    __slots__ = ("reason", "wanted", "_theirs", "_lanes", "_link", "_engine", "_strain", "_strained", "_asked",
                 "_dials", "_looking", "_resting")

    def __init__(self, lanes: "_Lanes") -> None:
        self.reason = ""
        self.wanted = 0
        self._theirs = 0                    # what the other end wants, if it is this one that dials them
        self._lanes = lanes
        self._link = lanes.link
        self._engine = lanes.engine
        self._strain = _Strain()
        self._strained = False              # something had to wait since `_rest` was called last
        self._asked = -math.inf             # when more lanes were asked for
        self._dials: List[_Dial] = []
        self._looking: Optional[_Later] = None
        self._resting: Optional[_Later] = None

    def strained(self) -> None:
        """The socket takes less than there is to send."""
        self._strained = True
        if self._looking is None and self._link.peer.link is self._link:
            self.begin()
            self._looking = self._engine.call_later(min(_LOOK_S, settings.lanes_after_s), self._look)

    def begin(self) -> None:
        """Count anew from here on, as the connections are others now."""
        self._strain.begin(self._engine.clock(), self._lanes.line())

    def _look(self) -> None:
        """Something could not be sent a while ago: if that is still so, see whether more connections would help."""
        link, lanes, self._looking = self._link, self._lanes, None
        if not link.unsent or link.peer.link is not link:
            return
        self._looking = self._engine.call_later(_LOOK_S, self._look)
        now = self._engine.clock()
        if self._dials or now - self._asked < _ASKED_S and len(lanes.lanes) < _LEAST_LANES:
            self.begin()
        elif link.peer.state == "up":
            reason = self._strain.judge(now, lanes.line(), lanes.wide)
            if reason:
                self.reason = reason
                self.begin()
                self._asked = now
                link.record_bytes = min(link.record_bytes, _SMALL)      # so that there is soon an end of a record
                self._want(2 * len(lanes.used()) if lanes.wide else _FIRST_LANES)   # last: the link may end by it

    def _rest(self) -> None:
        """A while has gone by: if all went out in it at once, this end wants half as many lanes."""
        self._resting = None
        idle, self._strained = not (self._strained or self._link.unsent), False
        if idle:
            self._strain = _Strain()
            self.begin()
        self._want(max(_LEAST_LANES, self.wanted // 2) if idle else self.wanted)

    def _want(self, number: int) -> None:
        """This end wants so many lanes, or as many as there may be."""
        before, self.wanted = self.wanted, min(number, self._lanes.most)
        if self.wanted > _LEAST_LANES and self._resting is None:
            self._resting = self._engine.call_later(settings.lanes_idle_s, self._rest)
        if self._link.role == "dial":
            self._settle()
        elif self.wanted != before or len(self._lanes.used()) < self.wanted:
            self._link.peer.session.control(encode_frame(Code.LANES, bytes((self.wanted,))))
            self._link.peer.flush()

    def told(self, number: int) -> None:
        """The frame LANES has come."""
        if self._link.role != "dial":
            raise ProtocolError("lanes were asked for by the end that dials them")
        self._theirs = number
        self._settle()

    def _settle(self) -> None:
        """Dial lanes, or let some go, until there are as many as are wanted; those under way count."""
        link, lanes = self._link, self._lanes
        number, used = min(lanes.most, max(_LEAST_LANES, self.wanted, self._theirs)), lanes.used()
        for lane in used[number:]:
            lanes.let_go(lane)
        if link.sock is None:                   # one of them was broken
            return
        try:
            address = link.sock.getpeername()
        except OSError:                         # broken, which is about to be noticed
            return
        place = [Location(address_text(address), address[1])] * _LANE_TRIES
        for _ in range(number - len(used) - len(self._dials)):
            self._dials.append(_Dial(link.network, place, self._dialled, link.peer.process_id, None, lanes))
        for dial in list(self._dials):
            if dial.at is None:
                dial.next()

    def _dialled(self, _peer: Optional[Peer], error: Optional[Exception], _gone: bool) -> None:
        """A dial is over."""
        self._dials = [dial for dial in self._dials if dial.done is not None]
        if error is not None:
            log.debug("%s: there is one lane less: %s", self._link.peer, error)

    def stop(self) -> None:
        """The link ends."""
        for timer in (self._looking, self._resting):
            if timer is not None:
                timer.cancel()
        for dial in self._dials:
            dial.stop()


class _First:
    """The first connection of a link that has lanes beside it. It carries the bytes of a direction as long as that is
    narrow, then nothing but its end; `open`: the other end has not closed it."""

    __slots__ = ("sock", "open", "_lanes", "_interest", "_last")

    def __init__(self, lanes: "_Lanes", sock: socket.socket) -> None:
        """`sock` was the link's until now."""
        self.sock = sock
        self.open = True
        self._lanes = lanes
        self._interest = lanes.link.interest
        self._last = b""                    # what is said on it last, of what was not sent yet
        lanes.engine.poller.unregister(sock.fileno())
        lanes.engine.poller.register(sock.fileno(), self._interest, self._on_events)

    def watch(self, reading: int, writing: int) -> None:
        """Whether anything is to be read from it (READ or 0), and whether anything waits for it (WRITE or 0)."""
        interest = reading | (WRITE if self._last else writing)
        if self.open and interest != self._interest:
            self._interest = interest
            self._lanes.engine.poller.modify(self.sock.fileno(), interest)

    def say_last(self, data: bytes) -> None:
        """Send what it carries last. Raises OSError."""
        self._last = data
        self.flush()

    def flush(self) -> None:
        """Send the rest of that. Raises OSError."""
        if self._last:
            try:
                self._last = self._last[self.sock.send(self._last):]
            except (BlockingIOError, InterruptedError):
                pass

    def has_ended(self) -> bool:
        """Whether the other end has closed it just now: nothing else can come over it any more. Raises OSError."""
        if not self.open:
            return False
        try:
            data = self.sock.recv(1)
        except (BlockingIOError, InterruptedError):
            return False
        if data:
            raise ConnectionError("it goes on where it had said that nothing follows")
        self.open = False
        self._lanes.engine.poller.unregister(self.sock.fileno())
        return True

    def _on_events(self, events: int) -> None:
        """It is ready."""
        lanes, link = self._lanes, self._lanes.link
        if link.sock is not lanes:
            return
        if events & WRITE and lanes.wide:
            try:
                self.flush()
            except OSError as error:
                link.fail(error)
                return
            lanes.watch()
        if events & READ or not lanes.wide:
            link.on_events(events & READ if lanes.wide else events)


class _Lanes:
    """The lanes of a link, and what takes the place of its socket once there are any; see above. Engine only.

    `name` is that of the link, at both ends; `most` how many connections both of them want it to have.
    """

    def __init__(self, link: Link, name: str, most: int) -> None:
        self.link = link
        self.engine = link.engine
        self.name = name
        self.most = most
        self.lanes: List[_Lane] = []
        self._first: Any = None             # the first connection, from when this has its place
        self.wide = False                   # what is sent goes in lanes
        self._turned = False                # likewise, what comes
        self._position = 0                  # bytes put into lanes
        self._assembly = Assembly()
        self._crowded = False               # too much is kept
        self._current = 0                   # index of the lane that is used next
        self._waiting: Optional[_Later] = None          # for the end of all connections, as one has ended
        self.supply = _Supply(self)

    # -- as the link's socket ------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Descriptor of the first connection."""
        return self._first.sock.fileno()

    def getpeername(self) -> tuple:
        """Where the first connection leads. Raises OSError."""
        return self._first.sock.getpeername()

    def getsockname(self) -> tuple:
        """This end of the first connection. Raises OSError."""
        return self._first.sock.getsockname()

    def send(self, data: Any) -> int:
        """As `sendmsg`, with one buffer."""
        return self.sendmsg([data])

    def sendmsg(self, buffers: list) -> int:
        """Send; how many bytes of it were taken. Raises BlockingIOError if that is none, OSError when a connection is
        broken."""
        data = buffers[0] if len(buffers) == 1 else b"".join(buffers)
        if not data:
            return 0
        if not self.wide:
            sent = self._first.sock.send(data)
            if sent == len(data) and self.supply.reason and sum(lane.usable for lane in self.lanes) >= _LEAST_LANES:
                self._widen()
            return sent
        self._first.flush()
        if self.engine.now - self.link.last_out >= _TURN_S:
            self._current += 1
        taken = self._deal(memoryview(data))
        if not taken:
            raise BlockingIOError
        return taken

    def _deal(self, data: memoryview) -> int:
        """Put bytes into lanes, first into the one that was used last; how many there was room for. Raises OSError."""
        taken = 0
        for _ in self.lanes:
            lane = self.lanes[self._current % len(self.lanes)]
            while taken < len(data) and lane.send(self._position, data[taken:taken + _LANE_CHUNK]):
                size = min(_LANE_CHUNK, len(data) - taken)
                taken += size
                self._position += size
            if taken == len(data):
                break
            self._current += 1
        return taken

    def recv(self, size: int) -> bytes:
        """As `recv_into`, at most `size` bytes; none when the other end has closed."""
        space = memoryview(bytearray(size))
        return bytes(space[:self.recv_into(space)])

    def recv_into(self, space: memoryview) -> int:
        """Take bytes that are in order; 0 when the other end has closed. Raises BlockingIOError when there are none,
        OSError when a connection is broken."""
        if not self._turned:
            return self._first.sock.recv_into(space)
        if not self._assembly.ready:
            for lane in list(self.lanes):
                if lane.open:
                    self._take(lane)
            if self._first.has_ended():
                self._ended()
        size = self._assembly.read_into(space)
        if not size and (self.link.sock is None or self._any_open()):
            raise BlockingIOError
        return size

    def close(self) -> None:
        """Close all connections."""
        for lane in self.lanes:
            lane.sock.close()
        self._first.sock.close()

    # -- for the link --------------------------------------------------------------------------------------------------

    def line(self) -> Optional[_Line]:
        """The line, as what is sent goes over it; None where that is not known."""
        first = self.link.sock if self._first is None else self._first.sock
        return _line_of([lane.sock for lane in self.lanes] if self.wide else [first])

    def used(self) -> List[_Lane]:
        """The lanes that are not about to go."""
        return [lane for lane in self.lanes if not lane.leaving]

    def watch(self) -> None:
        """What the link waits for has changed, or what a lane does."""
        reading, writing = self.link.interest & READ, self.link.interest & WRITE
        for lane in self.lanes:
            held_back = self._crowded and (not self._turned or lane.reader.position > self._assembly.position)
            lane.watch(0 if held_back else reading, writing if self.wide else 0)
        self._first.watch(reading, 0 if self.wide else writing)

    def turn(self) -> None:
        """The empty record has come."""
        if self._first is None or self._turned:
            raise ProtocolError("an empty record came without any lanes, or twice")
        self._turned = True
        self.engine.post(self._pass_on)         # the link is still reading

    def stop(self) -> None:
        """The link lets go of its socket: what lanes still have to say is sent, as far as they take it."""
        self.supply.stop()
        if self._waiting is not None:
            self._waiting.cancel()
        for lane in self.lanes:
            if lane.open:
                try:
                    lane.flush()
                except OSError:
                    pass
                lane.end()

    def join(self, sock: socket.socket, dialled: bool, keys: tuple) -> bool:
        """Take a connection whose handshake is done and gave those keys, to send and to receive; False if there are
        enough, or it is broken."""
        if len(self.lanes) >= self.most or self.link.sock is None:
            return False
        lane = _Lane(self, sock, dialled, keys)
        try:
            if dialled:
                lane.send(0, b"")
        except OSError:
            lane.end()
            return False
        if self._first is None:
            self._first, self.link.sock = _First(self, self.link.sock), self
        self.lanes.append(lane)
        self.supply.begin()
        self.watch()
        return True

    def let_go(self, lane: _Lane) -> None:
        """There are more than are wanted: use that one no more."""
        try:
            lane.leave()
        except OSError as error:
            self._over(lane, error)
            return
        if lane.gone:
            self._drop(lane)

    # -- sending -------------------------------------------------------------------------------------------------------

    def _widen(self) -> None:
        """All that was sent before is with the first connection: from here on, lanes."""
        link = self.link
        record = link.sealer.seal([b""])
        self.wide = True
        log.info("%s: its messages go over %d connections: %s", link.peer, len(self.lanes), self.supply.reason)
        self._first.say_last(b"".join(record) if link.cipher is None else link.cipher.seal(record))
        self.supply.begin()
        self.watch()

    def writable(self, lane: _Lane) -> None:
        """There is room in a lane."""
        try:
            room = lane.flush()
        except OSError as error:
            self._over(lane, error)
            return
        if lane.gone:
            self._drop(lane)
        elif room:
            self.watch()
            if self.wide and self.link.interest & WRITE:
                self.link.on_events(WRITE)

    # -- receiving -----------------------------------------------------------------------------------------------------

    def receive(self, lane: _Lane) -> None:
        """Something has come over a lane."""
        self._take(lane)
        self._pass_on()

    def _take(self, lane: _Lane) -> None:
        """Take what has come over a lane, once, as others wait."""
        begun = lane.begun
        try:
            pieces = lane.read(self.engine.space)
            for position, piece in pieces or ():
                self._assembly.add(position, piece)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._over(lane, error)
        except ProtocolError as error:
            self.link.fail(error)
        else:
            if pieces is None:
                self._over(lane)
            elif lane.reader.ended:
                self.let_go(lane)
            elif not begun:
                self.watch()

    def _pass_on(self) -> None:
        """Let the link read what is in order."""
        while self._turned and self.link.sock is self and (self._assembly.ready or not self._any_open()):
            self.link.read()
        limit = settings.lanes_held_bytes
        if self.link.sock is self and (self._crowded or self._assembly.held > limit):
            self._crowded = self._assembly.held > (limit // 2 if self._crowded else limit)
            self.watch()

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _any_open(self) -> bool:
        return self._first.open or any(lane.open for lane in self.lanes)

    def _drop(self, lane: _Lane) -> None:
        """Nothing depends on a lane: close it."""
        lane.end()
        lane.sock.close()
        self.lanes.remove(lane)
        self.supply.begin()
        log.debug("%s: a lane has ended, there are %d", self.link.peer, len(self.lanes))

    def _over(self, lane: _Lane, error: Optional[Exception] = None) -> None:
        """A lane does not go on: it is broken, or the other end has closed it. If nothing was put into lanes yet, or it
        has said nothing there, that is a dial it has given up."""
        in_use = self.wide or self._turned or self._assembly.held > 0
        if not (in_use and lane.begun):
            self._drop(lane)
        elif error is None:
            lane.end()
            self._ended()
        else:
            lane.end()
            self.link.mute(error)

    def _ended(self) -> None:
        """One of the connections is at its end: so are the others soon."""
        if self._waiting is None:
            error = ConnectionError("the other end closed the connection, or a part of it")
            self._waiting = self.engine.call_later(_LAST_WORDS_S, self.link.fail, error)


def _lanes_for(link: Link, result: HandshakeResult) -> Optional[_Lanes]:
    """The lanes that a new link may have; None within a host, and where one of the ends wants none."""
    said = result.peer_info.get("lanes")
    most = min(settings.lanes, said if isinstance(said, int) else 1, 255)      # LANES has a byte for it
    if most < _LEAST_LANES or settings.lanes_loss > 0 and _is_near(link.sock):
        return None
    return _Lanes(link, result.name, most)


def _join(network: "Network", link: Link, result: HandshakeResult) -> None:
    """An authenticated connection is a lane: give it to its link, or close it. `link` ends here, as what it was made
    for is done; TLS that was used for its handshake, too."""
    dial, link.dial = link.dial, None
    peer = network.peers.get(result.peer_id)
    owner = peer.link if peer is not None else None
    lanes = owner.lanes if owner is not None else None
    name = dial.lanes.name if dial is not None else result.peer_info["lane"]
    more = bool(result.leftover) or link.cipher is not None and link.cipher.untaken
    sock = link.release()
    keys = result.send_key, result.receive_key
    if lanes is None or lanes.name != name or more or not lanes.join(sock, dial is not None, keys):
        sock.close()
        log.debug("a connection from %s is no lane of a link that is there", link.where)
    if dial is not None:
        dial.finish(None, None)

# ======================================================================================================================
# 20. Network                                                               the processes that are known, and the way in
# ======================================================================================================================
#
# Addresses: one TCP port, the same on all that is listened at. Without hosts that is every IPv4 and every IPv6 address,
# on a socket each. What others are told are the addresses of interfaces that are up (from the system, never by
# resolving the host's name), the one with the default route first: IPv4, then IPv6; link-local ones if there are no
# others, loopback if there is nothing else. Behind NAT the user says what to tell. A wrong one costs a failed attempt.
#
# Strangers: a connection that has not proved the secret costs a descriptor, a few KiB and a place among the
# `pending_handshakes`, for `handshake_s` at most; nothing it says is taken for more than a handshake. When all places
# are taken, a new connection takes that of the oldest from the host that has most of them, which is told to try again
# (REFUSE 5, 'busy'); an IPv6 network has half of the places at most. What is logged of strangers is limited, so that
# they cannot fill a disk.
#
# Peers with a mistake in them: a sequenced frame that is malformed, or asks for what nobody knows, costs a line in the
# log and, if it is a request, an answer that says why; all else goes on. What makes no sense to the link ends it.
#
# The end: a peer is told BYE when it has confirmed, or been sent, all there was. It answers with its last confirmation
# and closes; so what was sent right before the end arrives, and what did not is reported.
#
# A Network is the table of all that: `peers` by process id, `links` (connections of all kinds, authenticated or not),
# handlers by frame code and by name of request, one for each. Sections further down, and other modules, add handlers
# for what is theirs; what comes before its handler is there is refused, and logged. A process is one Peer from the
# first time its id is heard, or found in a reference, until it is lost; after that the same id gets a new Peer, with a
# new session. One that only references lead to, and to which nothing was sent, is not in `peers`, and goes with the
# last of them. `peers` may be read by any thread (single dict operations), all else belongs to the engine.
#
# The life of a connection as seen from here: a `_Listener` or a dial makes a Link; that ends (`refused`) or proves who
# is there (`authenticated`); then it is handed to the file or the link that it is for, or to its peer (`Peer.adopt`),
# which picks one where there are several. When both ends have agreed on where their session stands, watchers hear
# 'online', and those who wait for the connection go on (`came_online`). What ends a peer for good comes by `forget`,
# its undelivered messages by `account`.
#
# Requests: REQUEST and REPLY are frames of the session, so neither is lost or doubled while the peer lives. A number of
# 0 asks for no reply (a notice). A handler answers at once or as a system task; requests are begun in the order in
# which they came, and may end in another.

_COMPLAIN_AGAIN_S = 10.0                # a complaint about strangers is not repeated before that, and ...
_COMPLAINTS = 10                        # ... so many of a level are made in that time at most
_ACCEPT_AT_ONCE = 16                    # so that those who wait can be read before so many newer ones crowd them out
_ACCEPT_AGAIN_S = 1.0                   # pause after descriptors ran out: they come back when others close something
_FAREWELL_S = 2.0                       # at the end, a peer that takes nothing for so long is not waited for: it must
                                        # not hold a program open whose own work is done
_LOOK_AGAIN_S = 0.001                   # how often it is looked at: a program's end is not to wait for a pause
_NAMED = 3                              # recipients that the line about lost messages names
_MISSED_AGAIN_S = 2.0                   # who was given up, and may live, is dialled again after that, ...
_MISSED_FOR_S = 600.0                   # ... until so much time has gone by


def _frame_code(frame: Any) -> int:
    """Code of an encoded frame: bytes, or buffers that begin with the header."""
    return frame[4] if type(frame) is bytes else frame[0][4]


def add_listener(listeners: Dict[Task, None], task: Task) -> None:
    """Add one to the tasks that are told of something. Those that have ended go: there may be nothing to tell for long.
    Engine."""
    for other in list(listeners):
        if not other.reachable():
            del listeners[other]
    listeners[task] = None


def _no_reports(_peer: Peer, _item: Unconfirmed) -> tuple:
    """Accountant of frames that no user has sent."""
    return ()


class Network:
    """All connections of this process. Made by `Pycos`; other modules build on its methods, which are for the engine
    (handlers, system tasks) unless they say "any thread".

    `process_id` (16 random bytes) is this process, on the wire and in references; `name` what it calls itself; `port`
    where it listens, and `hosts` the addresses there; `locations` is what others are told of that.
    """

    def __init__(self, host: Kernel, key: Optional[bytes], name: str, cluster: str = "pycoslite",
                 role: str = "peer", tls: Optional[Certificates] = None) -> None:
        self.host = host
        self.key = None if key is None else Key(key)
        self.secrecy = Secrecy(self.key, tls)
        self.name = name
        self.cluster = cluster
        self.role = role
        self.process_id = os.urandom(16)
        self.engine = Engine(host)
        self.port = 0
        self.hosts: List[str] = []              # addresses that are listened at; '0.0.0.0' and '::' mean all
        self.locations: List[Location] = []
        self.peers: Dict[bytes, Peer] = {}      # by process id; a lost one is taken out
        self._named: Any = weakref.WeakValueDictionary()        # those that references lead to, and nothing else yet
        self._naming = threading.Lock()         # guards: making a Peer, so that there is one for each process
        self.links: set = set()                 # accepted or dialled and not closed
        self.frame_handlers: Dict[int, Callable] = {REQUEST: _on_request, REPLY: _on_reply}
        self.request_handlers: Dict[str, Callable] = {}
        self.facts: dict = {}                   # told to peers in the handshake, besides what `handshake` lists
        self.closing = False
        self.sockets: List[socket.socket] = []  # that listen, for connections or datagrams
        self.tasks: Any = None                  # section 22's: names, monitors, ...
        self.itself: Any = None                 # ... who references to ended tasks of this process lead to, ...
        self.addresses: list = []               # ... `locations` as references carry them, ...
        self.where = b""                        # ... and as those to tasks do, see `_where`
        self.discovery: Optional[Discovery] = None
        self.roster: Any = None                 # who is online, and ...
        self.files: Any = None                  # ... files on their way: the sections about peers and about files
        self.accountants: Dict[int, Callable] = {}      # frame code -> gives its `Undelivered`, see `account`
        self.undelivered: Dict[Task, None] = {}         # tasks that are sent these
        self.passing: Dict[Peer, Any] = {}              # section 23's: whose messages go on to others too slowly
        self._watchers: List[Callable] = []
        self._arriving: Dict[Peer, list] = {}   # dials whose session is being agreed on
        self.said_one_sided = False             # that a peer could encrypt, or this process, and the other could not
        self._complained: Dict[tuple, float] = {}
        self._complaints: Dict[int, deque] = {}         # level -> when the last ones were logged

    # -- set-up --------------------------------------------------------------------------------------------------------

    def listen(self, hosts: List[str], ports: Iterable[int], announced: Optional[List[str]] = None) -> None:
        """Accept connections at the first of `ports` that is free on all `hosts`; port 0 takes any.

        A host is a name or an address of this machine, of either family; '0.0.0.0' stands for all that are IPv4, '::'
        for all that are IPv6, none at all for both. Others are told the addresses in `announced` (those of a gateway
        that hands connections on to this process) in place of the hosts, the first for the first and so on; or in place
        of all that were found, where no host is named. Sets `port`, `hosts` and `locations`. Before `begin`. Raises
        OSError with a full sentence, ValueError when something announced is no address."""
        told = [Location(host, 0).addr for host in announced or ()]     # first, as it may raise
        self.sockets = _listen_at_first(hosts, ports)
        self.port = self.sockets[0].getsockname()[1]
        self.hosts = [address_text(listener.getsockname()) for listener in self.sockets]
        named = {"0.0.0.0", "::"}.isdisjoint(self.hosts)
        names = told + self.hosts[len(told):] if named else told or own_addresses(self.hosts)
        self.locations = [Location(host, self.port) for host in dict.fromkeys(names)]
        for listener in self.sockets:
            _Listener(self, listener)

    def begin(self) -> None:
        """Start the traffic: the engine is driven from here on. Once, after `listen`. Any thread."""
        self.engine.begin()

    def on_frame(self, code: int, handler: Callable) -> None:
        """Have `handler(peer, body)` called in the engine for sequenced frames of `code` (64 to 255 for other modules),
        in the order in which they were sent. It must not block; what it raises is logged, and all else goes on."""
        self.frame_handlers[code] = handler

    def on_request(self, op: str, handler: Callable) -> None:
        """Have `handler(peer, args, payload)` answer requests: with a dict, a (dict, bytes) pair, or as a generator
        function that runs as a system task and returns one of these. A PycosError it raises reaches the asker."""
        self.request_handlers[op] = handler

    def on_peer(self, watcher: Callable) -> None:
        """Have `watcher(peer, event, detail)` told of 'online', 'offline' (it may come back) and 'lost', until
        `off_peer(watcher)`."""
        self._watchers.append(watcher)

    def off_peer(self, watcher: Callable) -> None:
        """Tell `watcher` no more; nothing happens if it was not told. Any thread."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)

    # -- any thread ----------------------------------------------------------------------------------------------------

    def post(self, function: Callable, *args: Any) -> None:
        """Run `function(*args)` in the engine, at once if it is free. Any thread."""
        self.engine.post(function, *args)

    def spawn(self, target: Callable, *args: Any, **kwargs: Any) -> Task:
        """Start a system task and return it; it runs in the engine and must not block, nor call code of the user's.
        Raises TypeError as `Task`. Any thread."""
        return self.engine.spawn(target, *args, **kwargs)

    def call_later(self, delay_s: float, function: Callable, *args: Any) -> _Later:
        """Run `function(*args)` in the engine in `delay_s` seconds; has `cancel()`. Engine only."""
        return self.engine.call_later(delay_s, function, *args)

    def peer(self, process_id: bytes, locations: Iterable[Location]) -> Peer:
        """The peer of that id, known or not; it is dialled when there is something to send. Until then it is forgotten
        when nobody holds it any more: references to any number of processes may come through here. Any thread."""
        found = self.peers.get(process_id)
        if found is None:
            with self._naming:
                found = self.known(process_id)
                if found is None:
                    found = self._named[process_id] = Peer(self, process_id)
                    found.route.locations = list(locations)
        return found

    def known(self, process_id: bytes) -> Optional[Peer]:
        """The peer of that id, if it is one, or somebody here holds a reference to it. Any thread."""
        return self.peers.get(process_id) or self._named.get(process_id)

    def everybody(self) -> List[Peer]:
        """All peers, also those that only references lead to. Any thread."""
        named = [reference() for reference in self._named.valuerefs()]      # a copy: others may be named meanwhile
        return [*self.peers.values(), *filter(None, named)]

    def enlist(self, peer: Peer) -> None:
        """It has been heard of, or something is to be sent to it: it is one of `peers` until it is lost. Engine."""
        if self.peers.setdefault(peer.process_id, peer) is peer:
            self._named.pop(peer.process_id, None)

    # -- connecting ----------------------------------------------------------------------------------------------------

    def connect(self, locations: List[Location], timeout: Optional[float] = None) -> Request:
        """The peer that answers at the first of `locations` that can be reached, once messages can flow. Use with yield
        in a system task. Raises PeerLost or AuthenticationError with a sentence, OperationTimeout."""
        return _Connect(self, locations, timeout)

    def peer_at(self, location: Location) -> Optional[Peer]:
        """The peer known to be reachable there and online; None when nobody is, though a process may be there that has
        not been met yet. Engine."""
        for peer in self.peers.values():
            if peer.state == "up" and location in peer.locations:
                return peer
        return None

    def handshake(self, role: str, **more: str) -> Handshake:
        """A new handshake of this process (`role` 'dial' or 'accept'), which tells `more` than usual. Any thread.

        What is told: `name`, `port`, `role`, `pid`; `python` and `magic`, by which programs see whether code of this
        interpreter runs there; `longest`, the bytes of a frame that are taken; `lanes`, how many a link may have;
        `addresses` to be dialled at, `hosts` that are listened at; `release`, for people; and `facts`. It is believed
        of an authenticated peer only, and each item is checked where it is used.
        """
        info = {**self.facts, **more, "name": self.name, "port": self.port, "role": self.role, "pid": os.getpid(),
                "python": list(sys.version_info[:3]), "magic": importlib.util.MAGIC_NUMBER.hex(),
                "longest": settings.frame_bytes, "lanes": settings.lanes,
                "addresses": [at.bare for at in self.locations[:_MOST_SAID]],
                "hosts": [host.partition("%")[0] for host in self.hosts[:_MOST_SAID]],
                "release": __version__}
        return Handshake(role, self.key, self.process_id, info, os.urandom(32), self.cluster)

    def refused(self, link: Link, error: Exception) -> None:
        """A connection made to us ended before it was authenticated. A wrong secret is a warning, as somebody should do
        something about it; a port scanner's noise is not. A crowd is one warning, from however many hosts it comes."""
        if isinstance(error, PeerBusy):
            self.complain(logging.WARNING, "too many connections wait to be authenticated: the oldest are turned away, "
                          "those from where most come first; is somebody flooding this port?")
            return
        host = link.where.rpartition(":")[0]
        level = logging.WARNING if isinstance(error, AuthenticationError) else logging.DEBUG
        self.complain(level, "refused a connection from %s: %s", host, str(error))

    def complain(self, level: int, text: str, *args: str) -> None:
        """Log a line about strangers: the same one at most every 10 seconds, and at most `_COMPLAINTS` of a level in
        that time, so that mere noise, logged or not, never takes the place of what somebody should do something about.
        """
        now = self.engine.clock()
        since, key = now - _COMPLAIN_AGAIN_S, (text,) + args
        latest = self._complaints.setdefault(level, deque((-math.inf,) * _COMPLAINTS, _COMPLAINTS))
        if self._complained.get(key, -math.inf) > since or latest[0] > since:
            return
        if len(self._complained) >= 100:
            self._complained.clear()
        self._complained[key] = now
        latest.append(now)
        log.log(level, text, *args)

    def authenticated(self, link: Link, result: HandshakeResult) -> None:
        """A link has proved who it is: give it to its peer, which may be new, or to the file it was made for.

        A dial that wanted this very process (`expect`: a peer's own, after its link broke) is done with it. One that
        took whoever answers waits until messages can flow. Where another process answers than was wanted, the dial goes
        on to the next address, and the link is used all the same: it leads to a member of the cluster.
        """
        if link.role == "accept" and "file" in result.peer_info:
            self.files.attach(link, result)
            return
        if link.dial is not None and link.dial.lanes is not None or "lane" in result.peer_info:
            _join(self, link, result)
            return
        peer = self.peer(result.peer_id, ())
        self.enlist(peer)
        peer.info = result.peer_info
        longest = result.peer_info.get("longest")
        peer.longest = min(settings.frame_bytes, longest if isinstance(longest, int) else settings.frame_bytes)
        dial, link.dial = link.dial, None
        if dial is not None:
            dial.link = None
        peer.route.learn(link, result.peer_info, dial and dial.at)
        _note_security(peer, link, result)
        link.lanes = _lanes_for(link, result)
        if dial is not None and dial.expect not in (None, peer.process_id):
            dial.failed(ProtocolError("another process answers there"))
        elif dial is not None and dial.expect is not None:
            dial.finish(peer, None)             # the peer's own: should this link break, it dials again
        elif dial is not None and dial.done is not None:
            self._arriving.setdefault(peer, []).append(dial)
        peer.adopt(link)
        if peer.state == "up":
            self.came_online(peer)

    def came_online(self, peer: Peer) -> None:
        """Messages can flow: who waited to be connected goes on."""
        for dial in self._arriving.pop(peer, ()):
            dial.finish(peer, None)

    def dial_again(self, peer: Peer) -> None:
        """A peer is lost, and its process lives: begin anew with it. The new Peer takes over what is known of its
        addresses, and nothing of the session: what that had not delivered has been reported."""
        if not self.closing:
            fresh = self.peer(peer.process_id, peer.locations)
            fresh.info, fresh.route.sure = peer.info, peer.route.sure
            self.post(fresh.flush)

    def miss(self, peer: Peer) -> None:
        """A peer was given up because it could not be reached: its process may live, so look for it now and then."""
        if peer.info and peer.locations:        # it has been here, and can be dialled
            _Missing(self, peer)

    def tell(self, peer: Peer, event: str, detail: str) -> None:
        """Tell the watchers of a peer: `event` is 'online', 'offline' or 'lost', `detail` why (empty for the first).
        One that fails is logged, the others are told."""
        for watcher in list(self._watchers):
            try:
                watcher(peer, event, detail)
            except Exception:
                log.exception("a watcher of peers failed")

    def forget(self, peer: Peer) -> None:
        """A peer is lost: take it out, unless a new one has its place already, and tell who waits for it and who
        watches."""
        if self.peers.get(peer.process_id) is peer:
            del self.peers[peer.process_id]
        for dial in self._arriving.pop(peer, ()):
            dial.finish(None, PeerLost("%s is gone: %s" % (peer, peer.reason)))
        self.tell(peer, "lost", peer.reason)

    def account(self, peer: Peer, unconfirmed: Iterable[Unconfirmed]) -> None:
        """Frames for a lost peer were given up. Those that users know as messages have an accountant, by their code: a
        function of (peer, item) that gives an `Undelivered` for each recipient. Of the others the askers are told by
        PeerLost, or they are of no use without the peer. The reports go to the tasks that asked for them
        (`Pycos.undelivered`); without any, one line of the log counts them and names some, unless the peer is
        `accounted`. Each frame is reported in the order in which it was sent. Engine."""
        reports = [report for item in unconfirmed
                   for report in self.accountants.get(_frame_code(item.frame), _no_reports)(peer, item)]
        if not reports:
            return
        for task in list(self.undelivered):
            if any(task.send(report) for report in reports):
                del self.undelivered[task]      # it has ended
        if not self.undelivered and not peer.accounted:
            names = list(OrderedDict.fromkeys(repr(report.recipient) for report in reports))
            log.warning("%s: %d messages were not confirmed, %d of them may have arrived: %s; they were for %s%s", peer,
                        len(reports), sum(report.status == "unknown" for report in reports), peer.reason,
                        ", ".join(names[:_NAMED]), ", ..." if len(names) > _NAMED else "")

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> Generator:
        """Say goodbye to all peers, once they have what was sent to them. A peer is waited for as long as it goes on
        taking something, `_FAREWELL_S` more, and `Settings.give_up_s` at most. A system task."""
        self.closing = True
        while self.sockets:
            self.close_socket(self.sockets[0])
        farewells = [self.spawn(_say_goodbye, peer) for peer in list(self.peers.values())]
        for farewell in farewells:
            yield Join(farewell)
        for peer in self.everybody():           # who has come meanwhile, and those that only references lead to
            peer.lost("this process ends", True)
        for link in list(self.links):
            link.close()

    def close_socket(self, sock: socket.socket) -> None:
        """Close one of `sockets`. Engine."""
        self.sockets.remove(sock)
        self.engine.poller.unregister(sock.fileno())
        sock.close()


class _Listener:
    """A listening socket of a network: takes the connections that come there. Engine only."""

    __slots__ = ("network", "sock")

    def __init__(self, network: Network, sock: socket.socket) -> None:
        """`sock` listens; it stays the network's, which closes it."""
        self.network, self.sock = network, sock
        network.engine.poller.register(sock.fileno(), READ, self._accept)

    def _accept(self, _events: int) -> None:
        """Take the connections that wait, a few at a time, and make room for each among those that have not proved the
        secret yet."""
        network = self.network
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                sock, address = self.sock.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._pause(error)
                return
            try:
                _tune(sock)
            except OSError:                     # reset before it was taken (macOS)
                sock.close()
                continue
            pending = [link for link in network.links if link.peer is None and link.role == "accept"]
            if len(pending) >= settings.pending_handshakes:
                _most_crowding(pending).give_way()
            Link(network, sock, "accept", repr(Location(address_text(address), address[1])))

    def _pause(self, error: OSError) -> None:
        """Out of descriptors: trying again at once would only burn the processor."""
        self.network.complain(logging.ERROR, "no connection can be accepted for now: %s", error.strerror)
        self.network.engine.poller.modify(self.sock.fileno(), 0)
        self.network.call_later(_ACCEPT_AGAIN_S, self._go_on)

    def _go_on(self) -> None:
        """The pause is over; what came meanwhile waits in the system's queue."""
        if not self.network.closing:
            self.network.engine.poller.modify(self.sock.fileno(), READ)


def _most_crowding(pending: List[Link]) -> Link:
    """Which of the connections that wait to be authenticated gives way to a new one: the oldest (timers are numbered)
    of the host that has the most. So who opens many takes his own places, and those of others only when each has one.
    Who has an IPv6 network has more addresses than there are places: all of it is to have half of them at most.
    """
    counts: Dict[Any, int] = {}
    places = [_places_of(link.where) for link in pending]
    for place in itertools.chain.from_iterable(places):
        counts[place] = counts.get(place, 0) + 1
    most = settings.pending_handshakes // 2
    ranks = [(counts[site] <= most, -counts[host]) for host, site in places]
    first = min(ranks)
    return min((link for link, rank in zip(pending, ranks) if rank == first), key=lambda link: link.timer)


@functools.lru_cache(maxsize=256)
def _places_of(where: str) -> Tuple[str, bytes]:
    """The host that a connection comes from, and its site: of an IPv6 address the network of 64 bits that it is in,
    what one customer has at least (RFC 6177)."""
    host = where.rpartition(":")[0]
    if host[0] != "[":
        return host, host.encode()
    return host, socket.inet_pton(socket.AF_INET6, host[1:-1].partition("%")[0])[:8]


def _on_request(peer: Peer, body: bytes) -> None:
    """Frame REQUEST: find the handler, and answer by what it gives. Whatever that raises becomes a refusal; a head that
    cannot be read is logged like any malformed frame, as it is not known what to answer."""
    number, size = _REQUEST_HEAD.unpack_from(body)
    start = _REQUEST_HEAD.size + size
    head = json.loads(bytes(body[_REQUEST_HEAD.size:start]))
    op = head["op"]
    try:
        handler = peer.network.request_handlers.get(op)
        if handler is None:
            raise PycosError("it does not know the request '%s': is it the same release, and the right port?" % op)
        answer = handler(peer, head["args"], bytes(memoryview(body)[start:]))
    except Exception as error:
        _refuse_request(peer, number, op, error)
    else:
        if isinstance(answer, types.GeneratorType):
            peer.network.spawn(_serve_request, peer, number, op, answer)
        else:
            _reply(peer, number, op, 0, answer)


def _serve_request(peer: Peer, number: int, op: str, answer: Generator) -> Generator:
    """Run a handler that is a generator, and answer the request."""
    try:
        reply = yield answer
    except Exception as error:
        _refuse_request(peer, number, op, error)
    else:
        _reply(peer, number, op, 0, reply)


def _refuse_request(peer: Peer, number: int, op: str, error: Exception) -> None:
    """Answer that a request failed. A PycosError is meant for the asker, as it is; any other exception is a mistake
    here, so it is logged here as well, and the asker gets a short text of it."""
    text = str(error)
    if not isinstance(error, PycosError):
        log_failure(error, "request '%.80s' of %s failed", op, peer)
        text = "request '%.80s' failed there: %s: %.300s" % (op, type(error).__name__, error)
    _reply(peer, number, op, 1, {"error": text})


def _reply(peer: Peer, number: int, op: str, failed: int, answer: Any) -> None:
    """Send a REPLY, unless nobody wants one. A dict, a (dict, bytes) pair, or None for an empty dict; one that cannot
    be sent becomes a refusal, or the asker would wait for ever."""
    if number:
        reply, payload = answer if isinstance(answer, tuple) else (answer or {}, b"")
        try:
            head = json.dumps(reply, separators=(",", ":")).encode()
            peer.answer(REPLY, _REPLY_HEAD.pack(number, failed, len(head)), head, payload)
        except (TypeError, ValueError, MisuseError) as error:       # no JSON, or too long
            _refuse_request(peer, number, op, error)


def _on_reply(peer: Peer, body: bytes) -> None:
    """Frame REPLY: the system task that asked goes on with (dict, bytes), or with the error."""
    number, failed, size = _REPLY_HEAD.unpack_from(body)
    task = peer.requests.pop(number, None)
    if task is None:
        return                          # the asker gave up
    start = _REPLY_HEAD.size
    try:
        reply = json.loads(bytes(body[start:start + size]))
    except (ValueError, RecursionError):
        reply = None
    if not isinstance(reply, dict):     # whoever asked must not wait for ever because of it
        task.unpark_with(ProtocolError("%s: its answer cannot be read: is it the same release?" % peer))
    elif failed:
        task.unpark_with(PycosError("%s: %s" % (peer, reply.get("error", "it gives no reason"))))
    else:
        task.unpark((reply, bytes(body[start + size:])))


def _say_goodbye(peer: Peer, there: str = "it has ended", here: str = "this process ends") -> Generator:
    """Tell a peer that this process has done with it, once it has what was sent to it; `there` and `here` are the
    reasons that are told at the two ends. A system task."""
    session, clock, peer.parting = peer.session, peer.engine.clock, True
    told: Optional[Link] = None
    taken: Optional[tuple] = None
    deadline = last = clock() + settings.give_up_s
    while peer.state != "lost" and clock() < min(deadline, last):
        peer.flush()
        link = peer.link
        now_taken = session.confirmed, sum(map(len, link.unsent)) if link is not None else 0
        if taken != now_taken:      # a long message is taken piece by piece; what daemons go on sending does not count
            taken, deadline = now_taken, clock() + _FAREWELL_S
        if link is None and not session.unconfirmed_frames:
            break
        if link is not None and link is not told and peer.state == "up" and _said_all(peer, link):
            session.control(encode_frame(Code.BYE, there.encode()))
            peer.flush()
            told = link             # it confirms what it has not yet, and closes
        yield Suspend(_LOOK_AGAIN_S)
    peer.lost(here)


def _said_all(peer: Peer, link: Link) -> bool:
    """Whether everything queued for the peer, confirmations included, is with the socket."""
    peer.session.confirm()
    peer.flush()
    return not link.unsent and not peer.session.wants_write(math.inf)


class _Missing:
    """A process that was given up because it could not be reached. It is dialled every `_MISSED_AGAIN_S`, for
    `_MISSED_FOR_S`, until it answers, has become another `Peer` in some other way, or has ended. Engine only."""

    __slots__ = ("network", "peer", "until")

    def __init__(self, network: Network, peer: Peer) -> None:
        self.network, self.peer = network, peer
        self.until = network.engine.clock() + _MISSED_FOR_S
        self._wait()

    def _wait(self) -> None:
        """A timer, and no task: there may be many of them, and each does next to nothing."""
        self.network.call_later(_MISSED_AGAIN_S, self._look)

    def _look(self) -> None:
        """Try once all addresses it was known at, unless that is no longer wanted."""
        network, peer = self.network, self.peer
        if not (network.closing or peer.process_id in network.peers or network.engine.clock() >= self.until):
            _Dial(network, peer.locations, self._ended, peer.process_id, peer.route.sure).next()

    def _ended(self, found: Optional[Peer], _error: Optional[Exception], gone: bool) -> None:
        """An attempt has ended: `gone` means that the process has."""
        if found is None and not gone:
            self._wait()


class _Connect(Request):
    """A system task waits for a connection: what `Network.connect` gives. A peer that is online at one of the addresses
    is the answer at once; else they are dialled, also when another dial to the same process is under way (which of the
    two links stays is decided in `Peer.adopt`). Giving up stops this dial alone."""

    __slots__ = ("network", "locations", "timeout", "task", "dial")

    def __init__(self, network: Network, locations: List[Location], timeout: Optional[float]) -> None:
        self.network, self.locations, self.timeout = network, locations, timeout

    def begin(self, kernel: Kernel, task: Task) -> bool:
        """A peer that is online, or dial. The task is parked before the dial begins, which may end at once."""
        for location in self.locations:
            peer = self.network.peer_at(location)
            if peer is not None:
                task.carried = peer
                return True
        self.task = task
        task.wait = self
        self.dial = _Dial(self.network, self.locations, self._done)
        if self.timeout is not None:
            kernel.timers.push(kernel.clock() + self.timeout, task)
        self.dial.next()
        return False

    def _done(self, peer: Optional[Peer], error: Optional[Exception], _gone: bool) -> None:
        if self.task.wait is self:
            if peer is not None:
                self.task.unpark(peer)
            else:
                self.task.unpark_with(error or PeerLost("no connection"))

    def expired(self, task: Task) -> Any:
        """Time is up: OperationTimeout, with the last attempt's error if there was one."""
        self.dial.stop()
        raise OperationTimeout("no connection to %s within %g seconds%s" % (
            ", ".join(map(repr, self.locations)), self.timeout, ": %s" % self.dial.error if self.dial.error else ""))

    def abandon(self, task: Task) -> None:
        """Nobody waits for it: no more addresses are tried."""
        self.dial.stop()


def _listen(hosts: List[str], port: int) -> List[socket.socket]:
    """Listening sockets at one port of all hosts (see `Network.listen`); port 0 is chosen by the first, and chosen anew
    when that one is not free at another host. Raises OSError."""
    for _ in range(0 if port else _PORT_TRIES):
        try:
            return _listen_once(hosts, 0)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    return _listen_once(hosts, port)


def _listen_once(hosts: List[str], port: int) -> List[socket.socket]:
    """Listening sockets at one port of all hosts, which the first chooses if it is 0. Raises OSError."""
    listeners: List[socket.socket] = []
    try:
        for family, address, needed in _bindable(hosts):
            try:
                listeners.append(_listener(family, (address[0], port) + address[2:]))
            except OSError as error:
                if needed or error.errno not in _NO_SUCH_PROTOCOL:
                    raise
            else:
                port = listeners[0].getsockname()[1]
        if not listeners:
            raise OSError(errno.EADDRNOTAVAIL, "this machine has neither IPv4 nor IPv6")
    except OSError:
        for sock in listeners:
            sock.close()
        raise
    return listeners


def _listen_at_first(hosts: List[str], ports: Iterable[int]) -> List[socket.socket]:
    """Listening sockets at the first port that can be had. Raises OSError with a full sentence about the last one."""
    place = ", ".join(hosts) or "any interface"
    number, sentence = 0, "cannot listen at %s: no port was named" % place
    for port in ports:
        try:
            return _listen(hosts, port)
        except OSError as error:
            number = error.errno or 0
            sentence = "cannot listen at port %s of %s: %s" % (port, place, _why_not_bound(error))
    raise OSError(number, sentence)


def _bindable(hosts: List[str]) -> Iterator[Tuple[int, tuple, bool]]:
    """(family, socket address, whether it is needed) of all that is to be listened at. Raises OSError."""
    if not any(hosts):
        yield socket.AF_INET, ("0.0.0.0", 0), False
        yield socket.AF_INET6, ("::", 0), False
    named: Dict[str, tuple] = {}            # whoever is named twice is listened at once
    for host in filter(None, hosts):
        found = socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_STREAM)
        family, _, _, _, address = min(found, key=lambda item: item[0] == socket.AF_INET6)      # IPv4 is preferred
        named.setdefault(address_text(address), (family, address, True))
    for host, place in named.items():
        if host == wildcard_of(host) or wildcard_of(host) not in named:
            yield place


def _listener(family: int, address: tuple) -> socket.socket:
    """A socket that listens. An IPv6 one leaves IPv4 alone on every system, so that both can have the same port."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":              # a port whose last owner has just ended; on Windows it would mean theft
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(1024)                   # the system takes less if that is its limit
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


_PORT_TRIES = 10                        # of ports that the system chooses for one family and the other has in use
_NO_SUCH_PROTOCOL = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)


def _why_not_bound(error: OSError) -> str:
    """Why an address cannot be listened at, and what to change."""
    if isinstance(error, socket.gaierror):
        return "that host name cannot be resolved (%s): use an IP address of this machine" % error.strerror
    if error.errno == errno.EADDRNOTAVAIL:
        return ("this machine has no such address (%s); the address of a gateway in front of it is told to others with "
                "the option ext_ip_addr" % error.strerror)
    if error.errno == errno.EINVAL:
        return "%s; a link-local address is written with its interface, like fe80::1%%eth0" % error.strerror
    return error.strerror or str(error)


Interface = namedtuple("Interface", "address broadcast name index prefix")
Interface.__doc__ = """An address of this machine: as text (with its interface if it is link-local), the broadcast
address of its network or None, name and number of the interface, and how many of its bits are the network's."""

# Linux tells its interfaces over a netlink socket (rtnetlink(7)), to any user. A question is a header and a structure
# of zeros; the answer comes as one or more datagrams of messages, each a header, a structure of the kind that was asked
# for, and attributes, until a message says that this was all, or that it went wrong. All is in native byte order.
_NETLINK = struct.Struct("=IHHII")      # header: length of the message, type, flags, sequence, sender
_OF_ADDRESS = struct.Struct("=BBBBI")   # family, prefix, flags, scope, interface
_OF_LINK = struct.Struct("=BxHiII")     # family, type, interface, flags, changes
_ATTRIBUTE = struct.Struct("=HH")       # length, type; what follows is padded to 4 bytes
_GET_LINKS, _GET_ADDRESSES = (18, 16, _OF_LINK), (22, 20, _OF_ADDRESS)      # question, answer, layout
_REQUEST_DUMP, _END_OF_DUMP = 0x301, (2, 3)
_DEAD_ADDRESS = 0x08 | 0x20 | 0x40      # flags of one that another machine has too, is outdated, or not verified yet


def _netlink_dump(kind: tuple) -> Iterator[Tuple[tuple, Dict[int, bytes]]]:
    """What the Linux kernel knows of its links or addresses: (fields, attributes by type) of each. Raises OSError where
    such sockets are forbidden. One datagram of the answer fits into 64 KiB: the kernel sends 32 at most."""
    question, answer, layout = kind
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.send(_NETLINK.pack(_NETLINK.size + layout.size, question, _REQUEST_DUMP, 1, 0) + bytes(layout.size))
        while True:
            data, at = sock.recv(1 << 16), 0
            while at < len(data):
                length, what = _NETLINK.unpack_from(data, at)[:2]
                if what in _END_OF_DUMP:
                    return
                if what == answer:
                    yield (layout.unpack_from(data, at + _NETLINK.size),
                           _attributes(data, at + _NETLINK.size + layout.size, at + length))
                at += length + 3 & ~3


def _attributes(data: bytes, at: int, end: int) -> Dict[int, bytes]:
    """The attributes that lie between two offsets of a netlink message, by type."""
    found = {}
    while at + _ATTRIBUTE.size <= end:
        length, what = _ATTRIBUTE.unpack_from(data, at)
        found[what] = data[at + _ATTRIBUTE.size:at + length]
        at += max(length, _ATTRIBUTE.size) + 3 & ~3
    return found


def interfaces() -> List[Interface]:
    """The addresses, IPv4 first, of this machine's interfaces that are up, from the system itself; empty where it
    cannot be asked without a helper program (any system but Linux, or a sandbox that forbids it). Any thread."""
    if not hasattr(socket, "AF_NETLINK"):
        return []
    try:
        up = {fields[2]: attributes[3].rstrip(b"\0").decode(errors="replace")       # 3: the name
              for fields, attributes in _netlink_dump(_GET_LINKS) if fields[3] & 1}
        addresses = [entry for entry in _netlink_dump(_GET_ADDRESSES) if entry[0][4] in up]
    except OSError as error:
        log.debug("the system does not tell its network interfaces: %s", error)
        return []
    found = []
    for (family, prefix, flags, _, index), attributes in addresses:
        raw = attributes.get(2) or attributes.get(1)                                # 2: local, 1: address
        if family not in (socket.AF_INET, socket.AF_INET6) or raw is None or flags & _DEAD_ADDRESS:
            continue
        address = address_text((socket.inet_ntop(family, raw), 0, 0, index))
        broadcast = socket.inet_ntop(family, attributes[4]) if 4 in attributes else None
        found.append(Interface(address, broadcast, up[index], index, prefix))
    return sorted(found, key=lambda interface: ":" in interface.address)


def socket_address(host: str, port: int) -> tuple:
    """What sockets take for a numeric address, which may have an interface behind a %. Raises OSError when this machine
    has no such interface. Any thread."""
    bare, _, scope = host.partition("%")
    if ":" not in bare:
        return bare, port
    return bare, port, 0, int(scope) if scope.isdigit() else socket.if_nametoindex(scope) if scope else 0


def source_address(address: str) -> str:
    """Address that packets from here to `address` (numeric, either family) carry; '' when there is no route. Sends
    nothing: a connected datagram socket knows. Any thread."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(socket_address(address, 9))
            return address_text(sock.getsockname())
    except OSError:
        return ""


def own_addresses(hosts: Iterable[str] = ("0.0.0.0", "::")) -> List[str]:
    """Addresses of this machine that others may reach, of the families of `hosts`: IPv4 before IPv6, that by which
    packets leave for other networks first. Link-local ones only when there are no others, loopback when there is
    nothing else. Any thread."""
    families = {":" in host for host in hosts}
    found = [interface.address for interface in interfaces() if (":" in interface.address) in families]
    preferred = [source_address(place) for place in ("192.0.2.1", "2001:db8::1") if (":" in place) in families]
    found = list(dict.fromkeys(sorted(preferred + found, key=lambda address: ":" in address)))
    found = [address for address in found if address and not is_loopback(address)]
    return ([address for address in found if not is_link_local(address)] or found
            or ["127.0.0.1" if False in families else "::1"])


# ======================================================================================================================
# 21. Discovery                                                         a convenience: naming an address does without it
# ======================================================================================================================
#
# Datagrams over UDP, all of one size, so that an answer is never longer than the question:
#
#   offset 0   4s  'PCLD'        6  16s  process id of the sender        24  u8   roles wanted (pings), had (pong)
#          4   u8  version      22  u16  port                            25  8s   cluster (zeros: every one)
#          5   u8  kind         49  16s  place, IPv6 or mapped IPv4,     33  16s  nonce of the ping
#                               65  u32  and its interface               69  32s  MAC over all before it
#
#   kind                 sent to                                        port, and place (zeros: where it comes from)
#   1 ping               broadcast addresses and multicast groups       TCP port of the sender
#   2 pong               who pinged                                     TCP port, and where it listens
#   3 refusal            who pinged with another secret                 as a pong, without a MAC that holds
#   4 host ping          one host, of whose processes one gets it       TCP port of the sender
#   5 passed-on ping     the other processes of that host               UDP port and place of who sent the host ping
#
# Whoever looks for peers pings all its networks: the broadcast addresses of the IPv4 ones (or the IPv4 group, if that
# is wanted), and a moment later the IPv6 group on all interfaces that have such an address, so that peers that have
# both are found by IPv4. A process of a wanted role whose MAC holds answers to the pinger alone, unless the two are
# connected; the pinger, if the pong carries a nonce of its own of the last seconds and a right MAC, connects to it. So
# either end learns of the other from one search. A replayed ping earns a few answers (`_ANSWERS_EACH`) and nothing
# else, so no clocks need to agree.
#
# Pings are repeated at `PING_TIMES_S`. At 30 % loss each way one of them is answered with probability 0.49, so 15 of
# them miss one process in 24,000; and a process searches when it starts, as others did, or do again while they lack
# something. Nodes search for clients and schedulers when they start and when they become free.
#
# Unrelated processes share the network and the port. Those of another cluster are dropped by a look at eight bytes.
# Those of the same cluster name and another secret may be somebody's mistake: they get a refusal, which makes one line
# in the log of either end; both are limited, so that a hundred of them cost nothing.
#
# A process that listens at some addresses only answers those that can reach one of these, and says which one.
#
# What anybody can make a process keep, or do, has a bound: nonces of its own pings for `_ANSWER_S`, nonces of pings
# that it passed on (256), pings that it answered (`_ANSWERED_KEPT`), addresses with another secret (`_STRANGERS_KEPT`),
# refusals sent (`_MOST_REFUSALS` in ten seconds), one dial for each process that has proved the secret. A datagram is
# worth one MAC, and 64 of them at most are taken before the engine looks at other things. What has no right MAC leads
# to a refusal and a line in the log at most.

_DATAGRAM = struct.Struct(">4sBB16sHB8s16s16sI")
PING, PONG, REFUSAL, HOST_PING, PASSED_PING = 1, 2, 3, 4, 5
ROLES = {"peer": 1, "node": 2, "scheduler": 4, "client": 8}
PING_TIMES_S = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
_SLOW = 5                               # from this one on, when the same search is asked for while it is going on
_IPV6_LATER_S = 0.25                    # the start that IPv4 has where there is both, as in RFC 8305
_ANSWER_S = 10.0                        # a pong to an older ping is not believed
_JOIN_AGAIN_S = 10.0                    # interfaces come and go: the groups are joined on new ones this often
_ANSWERS_EACH = 8                       # to one ping from one host, at most, of ...
_ANSWERED_KEPT = 1024                   # ... so many of which that is known
_MOST_REFUSALS = 20                     # are sent in `_COMPLAIN_AGAIN_S`, at most
_STRANGERS = 5                          # lines in the log that tell of another secret, ever ...
_STRANGERS_KEPT = 100                   # ... and how many addresses and processes are known to have one
_EVERY_CLUSTER = bytes(8)
_QUESTIONS = (PING, HOST_PING, PASSED_PING)


class Datagram(NamedTuple):
    """A discovery datagram, taken apart; `authentic` when its MAC is right for our secret. `place` is an address as
    text ('': where the datagram comes from), `interface` the number of its interface if it is link-local."""

    authentic: bool
    kind: int
    process_id: bytes
    port: int
    roles: int
    nonce: bytes
    place: str = ""
    interface: int = 0

    def location(self, source: tuple) -> Location:
        """Where the sender of this pong, which came from the socket address `source`, listens."""
        return Location(self.place or address_text(source), self.port)


def encode_datagram(key: Optional[bytes], kind: int, process_id: bytes, port: int, roles: int, cluster: Optional[str],
                    nonce: bytes, place: Tuple[str, int] = ("", 0)) -> bytes:
    """A discovery datagram, with its MAC; without a `cluster` it concerns every cluster of that secret. `place` is an
    address and the number of its interface (0: it needs none). Pure."""
    raw = bytes(16)
    if place[0]:
        address = ipaddress.ip_address(place[0])
        raw = address.packed if address.version == 6 else _MAPPED + address.packed
    body = _DATAGRAM.pack(b"PCLD", 1, kind, process_id, port, roles, _cluster_tag(cluster), nonce, raw, place[1])
    return body + keyed_digest(key, b"discovery" + body)


def parse_datagram(key: Optional[bytes], cluster: Optional[str], data: bytes) -> Optional[Datagram]:
    """A received datagram; None for another cluster's (unless `cluster` is None), or when it is no datagram of ours at
    all. Of one whose MAC is wrong the place is not looked at. Pure."""
    if len(data) != _DATAGRAM.size + 32 or data[:5] != b"PCLD\x01":
        return None
    body = data[:_DATAGRAM.size]
    _, _, kind, process_id, port, roles, tag, nonce, raw, interface = _DATAGRAM.unpack(body)
    if cluster is not None and tag not in (_cluster_tag(cluster), _EVERY_CLUSTER):
        return None
    authentic = same_digest(keyed_digest(key, b"discovery" + body), data[_DATAGRAM.size:])
    place = canonical_host(str(ipaddress.IPv6Address(raw))) if authentic and any(raw) else ""
    return Datagram(authentic, kind, process_id, port, roles, nonce, place, interface)


_MAPPED = bytes(10) + b"\xff\xff"       # an IPv4 address as an IPv6 one begins like this (RFC 4291, 2.5.5.2)


@functools.lru_cache(maxsize=8)
def _cluster_tag(cluster: Optional[str]) -> bytes:
    return _EVERY_CLUSTER if cluster is None else hashlib.sha256(cluster.encode()).digest()[:8]


class Target(NamedTuple):
    """Where a ping goes: an address of that `family`, sent out by way of `interface` if it is a group's: an own address
    (IPv4) or the interface's number (IPv6); None leaves it to the system."""

    family: int
    host: str
    interface: Any = None


def search_targets(found: List[Interface], links: List[Tuple[int, str]], hosts: List[str],
                   multicast: bool) -> List[Target]:
    """Where to ping in order to search the networks of `hosts`, addresses of this machine ('0.0.0.0', '::': all of that
    family). `found` are its interfaces (none: the system does not tell them), `links` their numbers and names. With
    `multicast` IPv4 networks are searched by their group in place of their broadcast address. Pure."""
    outside = [host for host in hosts if not is_loopback(host)]
    if found:
        targets = [_target_at(interface, multicast) for interface in found
                   if not is_loopback(interface.address)
                   and (interface.address in outside or wildcard_of(interface.address) in outside)]
    else:
        targets = _blind_targets(links, outside, multicast)
    if len(outside) < len(hosts) or not {"0.0.0.0", "::"}.isdisjoint(outside):      # other processes of this machine
        targets.append(Target(socket.AF_INET, _EVERYBODY_HERE))
        if multicast or not found:      # systems other than Linux have no such broadcast
            targets.append(Target(socket.AF_INET, settings.ipv4_group, "127.0.0.1"))
    return list(dict.fromkeys(filter(None, targets)))


_EVERYBODY_HERE = "127.255.255.255"     # the loopback interface's broadcast address, as Linux has it



def _target_at(interface: Interface, multicast: bool) -> Optional[Target]:
    """Where the network of an address is searched; None where it cannot be (a point-to-point line)."""
    if ":" in interface.address:
        return Target(socket.AF_INET6, settings.ipv6_group, interface.index)
    if multicast:
        return Target(socket.AF_INET, settings.ipv4_group, interface.address)
    return Target(socket.AF_INET, interface.broadcast) if interface.broadcast else None


def _blind_targets(links: List[Tuple[int, str]], hosts: List[str], multicast: bool) -> List[Optional[Target]]:
    """What can be done without knowing the addresses of interfaces: IPv4 by that on which the default route is."""
    targets: List[Optional[Target]] = []
    if any(":" not in host for host in hosts):
        targets.append(Target(socket.AF_INET, settings.ipv4_group if multicast else "255.255.255.255"))
    if any(":" in host for host in hosts):
        targets += [Target(socket.AF_INET6, settings.ipv6_group, index) for index, _ in links]
    return targets


class Discovery:
    """Finds peers on the local networks, and lets itself be found; see the head of this section. Methods are for the
    engine.

    `udp_port` is that of all who are to find each other. `hosts` are addresses of this machine whose networks are
    searched (None: those that `network` listens at; empty: all); with `multicast` IPv4 networks are searched by group
    and not by broadcast. Set `roles` to the sum of those (`ROLES`) under which this process is found, its own at first;
    `ignore` to answer nobody; `cluster` to None to search the clusters of all names that have the same secret.
    """

    def __init__(self, network: Network, udp_port: int, hosts: Optional[List[str]] = None,
                 multicast: bool = False) -> None:
        self.network = network
        self.udp_port = udp_port
        self.hosts = list(network.hosts if hosts is None else hosts) or ["0.0.0.0", "::"]
        self.multicast = multicast
        self.roles = ROLES.get(network.role, 0)
        self.ignore = False
        self.cluster: Optional[str] = network.cluster
        self._answering: List[socket.socket] = []
        self._joined: set = set()                           # (family, interface) whose group is listened to
        self._asking: Dict[int, socket.socket] = {}         # by family
        self._searches: Dict[tuple, int] = {}               # those going on -> pings sent, and ...
        self._timers: Dict[Any, _Later] = {}                # ... the next one of each; None: the next `_join`
        self._nonces: "OrderedDict[bytes, float]" = OrderedDict()       # of pings, and when they were sent
        self._connecting: Dict[bytes, _Dial] = {}           # process id -> the way to it
        self._passed: deque = deque(maxlen=256)             # nonces of host pings that were passed on
        self._answered: "OrderedDict[tuple, int]" = OrderedDict()       # (nonce, host) -> how often it has come
        self._strangers: set = set()                        # addresses and process ids with another secret
        self._warnings = 0                                  # lines logged about these
        self._refused: deque = deque((-math.inf,) * _MOST_REFUSALS, _MOST_REFUSALS)     # when the last were sent

    # -- being found ---------------------------------------------------------------------------------------------------

    def answer(self) -> None:
        """Be found from now on. Without the UDP port it is left out, with a line."""
        try:
            self.listen()
        except OSError as error:
            log.warning("discovery is off, UDP port %d cannot be used (%s): others must name this address",
                        self.udp_port, error.strerror)

    def listen(self) -> None:
        """Hear what comes to the UDP port, as other processes of this machine may, too; again changes nothing. Raises
        OSError when the port cannot be shared, or there is no network at all."""
        if not self._answering:
            self._answering = self._sockets(self.udp_port)
            self._join()

    def _join(self) -> None:
        """Listen to the groups on all interfaces that are there now, and look again later."""
        found = interfaces()
        wanted = {(socket.AF_INET6, interface.index) if ":" in interface.address else
                  (socket.AF_INET, interface.address) for interface in found}
        if not found:
            wanted = {(socket.AF_INET6, index) for index, _ in socket.if_nameindex()}
            wanted |= {(socket.AF_INET, "0.0.0.0"), (socket.AF_INET, "127.0.0.1")}
        for sock in self._answering:
            for family, interface in wanted - self._joined:
                if family == sock.family:
                    _join_group(sock, interface)
        self._joined = wanted                               # one that has gone may come back
        self._timers[None] = self.network.call_later(_JOIN_AGAIN_S, self._join)

    # -- finding -------------------------------------------------------------------------------------------------------

    def search(self, roles: int, port: int = 0, addresses: Optional[List[str]] = None) -> bool:
        """Find processes of `roles` (a sum of `ROLES`) and connect to them: ping all networks, or the hosts at numeric
        `addresses`, now and several times over the next ten seconds, at UDP `port` (0: the usual one). A search that is
        going on is prolonged. False, with a line in the log, where there is no network at all, or no descriptor left.
        """
        if not self._asking:
            try:
                self._asking = {sock.family: sock for sock in self._sockets(0)}
            except OSError as error:
                self.network.complain(logging.WARNING, "no search for peers is possible now (%s): name their addresses,"
                                      " or search again later", str(error.strerror))
                return False
        search = roles, port or self.udp_port, tuple(addresses or ())
        if search in self._searches:
            self._searches[search] = min(self._searches[search], _SLOW)
            self._ping(*search)
        else:
            self._searches[search] = 0
            self._go_on(search)
        return True

    def _go_on(self, search: tuple) -> None:
        """The next ping of a search, until `PING_TIMES_S` has no more."""
        if self.network.closing:
            return
        self._ping(*search)
        sent = self._searches[search] = self._searches[search] + 1
        if sent < len(PING_TIMES_S):
            self._timers[search] = self.network.call_later(PING_TIMES_S[sent] - PING_TIMES_S[sent - 1], self._go_on,
                                                           search)
        else:
            del self._searches[search]
            self._timers.pop(search, None)

    def _ping(self, roles: int, port: int, addresses: Iterable[str] = ()) -> None:
        """One ping, to these hosts or to all networks; all copies of it carry one nonce. Interfaces are looked up each
        time, as they come and go."""
        network, nonce = self.network, os.urandom(16)
        self._nonces[nonce] = now = network.engine.clock()
        while next(iter(self._nonces.values())) < now - _ANSWER_S:
            self._nonces.popitem(last=False)
        targets = [Target(socket.AF_INET6 if ":" in host else socket.AF_INET, host) for host in addresses]
        kind = HOST_PING if any(target.host != _EVERYBODY_HERE for target in targets) else PING
        data = encode_datagram(network.key, kind, network.process_id, network.port, roles, self.cluster, nonce)
        if targets:
            self._send_all(targets, data, port)
            return
        targets = search_targets(interfaces(), socket.if_nameindex(), self.hosts, self.multicast)
        self._send_all([target for target in targets if target.family == socket.AF_INET], data, port)
        later = [target for target in targets if target.family == socket.AF_INET6]
        if any(target.family == socket.AF_INET and not is_loopback(target.host) for target in targets):
            network.call_later(_IPV6_LATER_S, self._send_all, later, data, port)
        else:
            self._send_all(later, data, port)

    def _send_all(self, targets: List[Target], data: bytes, port: int) -> None:
        """Send a ping to all targets, each by its interface."""
        for target in targets:
            sock = self._asking.get(target.family)
            if sock is not None:            # not closed meanwhile, and there is that protocol here
                if target.interface is not None:
                    _send_by(sock, target.interface)
                try:
                    address = socket_address(target.host, port)
                except OSError as error:
                    log.debug("discovery: there is no interface for %s: %s", target.host, error)
                else:
                    self._send(sock, data, address)

    def close(self) -> None:
        """Search no more, and be found no more."""
        for sock in [*self._answering, *self._asking.values()]:
            if sock in self.network.sockets:
                self.network.close_socket(sock)
        for timer in self._timers.values():
            timer.cancel()
        self._answering = []
        for known in (self._asking, self._searches, self._timers, self._joined):
            known.clear()

    # -- datagrams -----------------------------------------------------------------------------------------------------

    def _sockets(self, port: int) -> List[socket.socket]:
        """Sockets of all families that there are and that are wanted, at UDP `port`. IPv4 always is: the loopback
        interface is searched by it. Raises OSError when one cannot be had, or none."""
        found: List[socket.socket] = []
        for family in (socket.AF_INET, socket.AF_INET6):
            if family == socket.AF_INET6 and not any(":" in host for host in self.hosts):
                continue
            try:
                found.append(_datagram_socket(family, port))
            except OSError as error:
                if error.errno not in _NO_SUCH_PROTOCOL or family == socket.AF_INET6 and not found:
                    for sock in found:
                        sock.close()
                    raise
        for sock in found:
            self.network.sockets.append(sock)
            self.network.engine.poller.register(sock.fileno(), READ, functools.partial(self._receive, sock))
        return found

    def _send(self, sock: socket.socket, data: bytes, address: tuple) -> None:
        try:
            sock.sendto(data, address)
        except OSError as error:            # that network is not there (any more)
            log.debug("discovery: nothing can be sent to %s: %s", address[0], error.strerror)

    def _receive(self, sock: socket.socket, _events: int) -> None:
        for _ in range(64):
            try:
                data, address = sock.recvfrom(512)
            except OSError:
                return
            self._take(sock, address, data)

    def _take(self, sock: socket.socket, address: tuple, data: bytes) -> None:
        """A datagram has come: ours or not, honest or not."""
        datagram = parse_datagram(self.network.key, self.network.cluster, data)
        if datagram is None or self.network.closing:
            return
        if datagram.kind in _QUESTIONS:
            if not self.ignore:
                self._on_ping(sock, address, datagram)
        elif self._nonces.get(datagram.nonce, -math.inf) >= self.network.engine.clock() - _ANSWER_S:
            self._on_answer(address, datagram)

    def _on_ping(self, sock: socket.socket, address: tuple, ping: Datagram) -> None:
        """Answer who searches for processes like this one, at the place that a passed-on ping names. Who is connected
        gets no answer: on a large network most of what a search would hear is from processes that it has."""
        network = self.network
        if not ping.authentic:
            self._refuse(sock, address, ping)
            return
        if ping.kind == HOST_PING:
            self._pass_on(address, ping)
        peer = network.peers.get(ping.process_id)
        if ping.process_id == network.process_id or not ping.roles & self.roles or peer is not None and peer.online:
            return
        if ping.kind == PASSED_PING:
            if not is_loopback(address_text(address)):      # processes of this machine pass on pings, others do not
                return
            sock, address = self._way_to(ping, sock)
        place = self._place_for(address_text(address))
        if place is not None and self._first_few(ping.nonce, address[0]):
            self._send(sock, encode_datagram(network.key, PONG, network.process_id, network.port, self.roles,
                                             network.cluster, ping.nonce, (place, 0)), address)

    def _first_few(self, nonce: bytes, host: str) -> bool:
        """Whether a ping has come from that host no more often than it does by all ways there are: who has recorded it,
        and says it again in the name of another host, is not to have all processes of a network send that one things.
        """
        key = nonce, host
        self._answered[key] = count = self._answered.pop(key, 0) + 1
        if len(self._answered) > _ANSWERED_KEPT:
            self._answered.popitem(last=False)
        return count <= _ANSWERS_EACH

    def _refuse(self, sock: socket.socket, address: tuple, ping: Datagram) -> None:
        """A hint to somebody with another secret."""
        network, now = self.network, self.network.engine.clock()
        if ping.roles & self.roles:
            self._complain(address, ping.process_id)
            if self._refused[0] < now - _COMPLAIN_AGAIN_S:
                self._refused.append(now)
                self._send(sock, encode_datagram(b"", REFUSAL, network.process_id, network.port, self.roles,
                                                 network.cluster, ping.nonce), address)

    def _pass_on(self, address: tuple, ping: Datagram) -> None:
        """Of the processes that share the port only this one got what was sent to the host: let the others know."""
        sock = next((sock for sock in self._answering if sock.family == socket.AF_INET), None)
        if ping.nonce in self._passed or sock is None:
            return
        self._passed.append(ping.nonce)
        host, _, scope = address_text(address).partition("%")
        data = encode_datagram(self.network.key, PASSED_PING, ping.process_id, address[1], ping.roles,
                               self.network.cluster, ping.nonce, (host, address[3] if scope else 0))
        self._send(sock, data, (_EVERYBODY_HERE, self.udp_port))

    def _way_to(self, ping: Datagram, sock: socket.socket) -> Tuple[socket.socket, tuple]:
        """Socket and address for the answer to a passed-on ping."""
        address: tuple = (ping.place, ping.port)
        if ":" in ping.place:
            address += (0, ping.interface)
            sock = next((other for other in self._answering if other.family == socket.AF_INET6), sock)
        return sock, address

    def _place_for(self, asker: str) -> Optional[str]:
        """Where `asker` can reach this process: '' if at the address that its ping came to; None if nowhere."""
        hosts = self.network.hosts
        if wildcard_of(asker) in hosts:
            return ""
        if is_loopback(asker):
            return {"::": "::1", "0.0.0.0": "127.0.0.1"}.get(hosts[0], hosts[0].partition("%")[0])
        if source_address(asker) in hosts:
            return ""
        near = (interface.address for interface in interfaces() if interface.address in hosts and (
            same_network(interface.address, asker, interface.prefix) or asker.endswith("%" + interface.name)))
        return next(near, None)

    def _on_answer(self, address: tuple, answer: Datagram) -> None:
        """A pong or a refusal to a ping of ours."""
        if answer.process_id == self.network.process_id:
            return
        if answer.kind == REFUSAL:
            self._complain(address, answer.process_id)
        elif answer.kind == PONG and answer.authentic:
            self._found(answer.process_id, answer.location(address))

    def _complain(self, address: tuple, process_id: bytes) -> None:
        """One line for either end, whoever searched, and no other about that address, or what claims to be that process
        at another address of its machine."""
        host = address_text(address)
        known = host in self._strangers or process_id in self._strangers
        if len(self._strangers) < _STRANGERS_KEPT:
            self._strangers.update((host, process_id))
        if not known and self._warnings < _STRANGERS:
            self._warnings += 1
            self.network.complain(logging.WARNING, "a process at %s has another secret than this one, they are no "
                                  "peers (copy ~/.pycoslite/secret from one machine to the other)", host)

    def _found(self, process_id: bytes, location: Location) -> None:
        """A process has answered: connect to it, unless that is done or under way."""
        known, dial = self.network.peers.get(process_id), self._connecting.get(process_id)
        if known is not None and known.online:
            return
        if dial is None:
            self._connecting[process_id] = dial = _Dial(
                self.network, [location], functools.partial(self._connected, process_id), process_id)
            dial.next()
        elif location != dial.at and location not in dial.todo:
            dial.todo.append(location)      # it can be reached in two ways: the second one if the first does not do

    def _connected(self, process_id: bytes, peer: Optional[Peer], error: Optional[Exception], _refused: bool) -> None:
        """The way to a process that has answered was taken to its end."""
        self._connecting.pop(process_id, None)
        if peer is None:
            self.network.complain(logging.WARNING, "a peer was found and cannot be reached: %s", str(error))


def _datagram_socket(family: int, port: int) -> socket.socket:
    """A socket that can broadcast, and reaches groups no farther than the next router."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
        if port:                            # all processes of a machine share it and all hear a broadcast
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if sys.platform == "darwin":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setblocking(False)
        sock.bind(("", port))
    except OSError:
        sock.close()
        raise
    return sock


def _join_group(sock: socket.socket, interface: Any) -> None:
    """Have a datagram socket hear what is sent to its family's group by way of that interface (see `Target`)."""
    try:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.inet_pton(
                socket.AF_INET6, settings.ipv6_group) + struct.pack("@I", interface))
        else:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(
                settings.ipv4_group) + socket.inet_aton(interface))
    except OSError as error:                # joined before (an address of an interface that came back), or too many
        log.debug("discovery: the group is not heard at %s: %s", interface, error.strerror)


def _send_by(sock: socket.socket, interface: Any) -> None:
    """What a datagram socket sends to groups goes out by that interface (see `Target`) from now on."""
    try:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, interface)
        else:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(interface))
    except OSError as error:
        log.debug("discovery: nothing can be sent by %s: %s", interface, error.strerror)


# ======================================================================================================================
# 22. Remote tasks                                               references, names, messages to tasks of other processes
# ======================================================================================================================
#
#   frame 18 MESSAGE     u64 task id | pickled message
#   frame 19 DELIVER     u64 task id | u32 number | pickled message       answered with
#   frame 20 DELIVERED   u32 number | i8 1, 0 or -1
#   request task.seek {kind, name, id}, answered any time later with the notice task.found {id} + pickled reference;
#   task.unseek {id}; task.terminate {task}
#   request task.monitor {task, id}, answered with {status}, and when the task ends with the notice task.ended {id} +
#   pickled MonitorStatus. Who asked passes it on to the monitor, so a peer that is lost cannot keep it from doing so.
#   Notice task.unmonitor {task, id}: nobody wants to hear of that end any more.
#
# References travel as numbers and addresses; the class that they become is ours by a code that both ends register with
# pickle, so no module path of ours is ever on the wire.
#
# What becomes of a message. `send` gives 0 when it is queued: then it arrives, or its sender's program is told that it
# may not have (`Undelivered`). `deliver` gives 1 when it is in the task's mailbox, -1 when it never will be, 0 when
# that is not known (time is up, or the process is lost). A message to a task that has ended is dropped at its process.
# Who sends faster than a peer takes is held back: a task at its next step, a thread at once; a task that sends on and
# on without a step fills the window twice, and then its thread waits.
#
# What is remembered, and how it ends. All of it also ends when the process that it concerns is lost (`_on_peer_event`),
# so peers may come and go without end:
#
#   `_deliveries`           a `deliver` of ours: it is answered, its time is up, or the task was ended
#   `_Tasks.searches`       a `locate` of ours: found, time is up, or the task was ended; then the others are told
#   `_Tasks.monitored`      a monitor of ours at a task elsewhere: its end is told, or (when there are many) the monitor
#                           has ended
#   `_Tasks.seekers`        a name that a peer looks for: registered here, or the question is taken back
#   `_Tasks.watched`        a task of ours whose end a peer wants to hear of: it has ended
#   `_travelled`            a task of ours of which a reference went out: for as long as the program keeps the task
#
# Threads: `send` is for any thread, and what it does is one append to the peer's outbox; all tables are the engine's,
# but for single dict operations where a line says so. What comes for a user task is put into its mailbox by the engine;
# what wakes the task goes through the user kernel's inbox.

MESSAGE, DELIVER, DELIVERED = 18, 19, 20
_TASK_ID = struct.Struct(">Q")
_MESSAGE_FRAME = struct.Struct(">IBQ")  # head of the frame and of its body in one
_DELIVER_HEAD = struct.Struct(">QI")
_DELIVER_FRAME = struct.Struct(">IBQI")
_DELIVERED_BODY = struct.Struct(">Ib")
_DELIVERED_FRAME = struct.Struct(">IBIb")
_REVIVE_CODE = 0x70636C                 # 'pcl': pickle's extension code for `_revive`, ...
_REVIVE_TASK_CODE = 0x70636D            # ... and for `_revive_task`

_network: Optional[Network] = None      # this process's, once started (see Pycos); guarded by ...
_network_lock = threading.Lock()        # ... this while it is set or taken away


def _revive(kind: str, *args: Any) -> Any:
    """What references and records of ours are unpickled with."""
    return _REVIVERS[kind](*args)


def _peer_of(process_id: bytes, addresses: list, name: str) -> Peer:
    """The process that a reference to `name` leads to; `Network.itself` for this one."""
    network = _network
    if network is None:
        raise MisuseError("a reference to %r came before this process's network was started: do that first, with an "
                          "option of Pycos(...), or have the task located here" % name)
    peer = network.peers.get(process_id)
    if peer is None and process_id == network.process_id:
        peer = network.itself
    return peer or network.peer(process_id, [Location(host, port) for host, port in addresses])


def _where(addresses: list) -> bytes:
    """(address, port) pairs as references to tasks carry them: one object, JSON. Each object that is pickled and
    unpickled takes its time; most messages carry a reference, and few of those who get it have to look here."""
    return json.dumps(addresses, separators=(",", ":")).encode()


def _revive_task(process_id: bytes, where: bytes, task_id: int, name: str) -> "Task":
    """A reference to a task, unpickled: the task itself where it is at home, also when it has ended meanwhile (what is
    sent to it then fails as it would there), else a `RemoteTask`."""
    network = _network
    peer = None if network is None else network.peers.get(process_id)
    if peer is not None:                # so it is not at home; who asks something is named again and again
        reference = peer.latest
        if reference is None or reference.id != task_id or reference._name != name:
            reference = peer.latest = RemoteTask(peer, task_id, name)
        return reference
    peer = None if network is None else network.known(process_id)
    if peer is not None:                # only named until now: `latest` would keep it from going with its references
        return RemoteTask(peer, task_id, name)
    peer = _peer_of(process_id, json.loads(where), name)
    home = peer is peer.network.itself and (_local_task(peer.network, task_id) or _travelled.get(task_id))
    return home or RemoteTask(peer, task_id, name)


_travelled: Any = weakref.WeakValueDictionary()     # id -> task that references were sent of; ended ones, too
_last_travelled = 0                     # the latest one's id, which is therefore in there; ids are never used again


def _local_task(network: Network, task_id: int) -> Optional[Task]:
    """The task of this process with that id, unless it has ended."""
    return network.host.tasks.get(task_id) or network.engine.tasks.get(task_id)


def _revive_status(info: Any, kind: Any, value: Any) -> MonitorStatus:
    """`kind` is the (module, name) of a class, or what else the type was. An exception class that this process does not
    have becomes one of the same name."""
    if not isinstance(kind, tuple):
        return MonitorStatus(info, kind, value)
    module, name = kind
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, BaseException)):
        found = type(name.rpartition(".")[2], (Exception,), {"__module__": module})
    return MonitorStatus(info, found, value)


_REVIVERS: Dict[str, Callable] = {"status": _revive_status, "location": Location}


def _reduce_task(task: Task) -> tuple:
    """How a task of this process is pickled: by whom to ask and where, never by what it is. It is kept in mind as long
    as the program keeps it, so that a reference which comes home after its end is still the same task."""
    network = _network
    if network is None:
        raise MisuseError("task %r cannot be sent to another process: the network is not started" % task)
    global _last_travelled
    task_id = task.id
    if task_id != _last_travelled:      # who asks something names himself again and again
        if task_id not in _travelled:
            _travelled[task_id] = task
        _last_travelled = task_id
    name = getattr(task._name, "__name__", None) or task.name       # the same, as a rule without a call
    return _revive_task, (network.process_id, network.where, task_id, name)


def _addresses_of(peer: Peer) -> list:
    """The addresses of a peer, as a reference carries them, which may go to another machine: those first that mean the
    same there, which a name need not, and it may take long to be resolved, or not."""
    addresses = [(at.bare, at.port) for at in peer.locations]
    addresses.sort(key=lambda address: (is_loopback(address[0]), not is_numeric(address[0])))
    return addresses


def _reduce_remote_task(task: "RemoteTask") -> tuple:
    """How a reference is passed on to a third process, which then talks to the task's own process, not through us."""
    return _revive_task, (task.peer.process_id, _where(_addresses_of(task.peer)), task.id, task.name)


def _reduce_status(status: MonitorStatus) -> tuple:
    """How a status is pickled: its type by name, as the other end need not have that class."""
    kind = status.type                  # programs make statuses of their own, whose type may be a number or a text
    if isinstance(kind, type):
        kind = kind.__module__, kind.__qualname__
    return _revive, ("status", status.info, kind, status.value)


def _reduce_location(location: Location) -> tuple:
    """How a location is pickled: two values, without the module's name."""
    return _revive, ("location", location.addr, location.port)


copyreg.pickle(Task, _reduce_task)                  # type: ignore[arg-type]
copyreg.pickle(MonitorStatus, _reduce_status)       # type: ignore[arg-type]
copyreg.pickle(Location, _reduce_location)          # type: ignore[arg-type]
try:
    copyreg.add_extension(__name__, "_revive", _REVIVE_CODE)
    copyreg.add_extension(__name__, "_revive_task", _REVIVE_TASK_CODE)
except ValueError:                      # a second copy of this file in the process: pickles name its module then
    log.debug("%s: another copy of this module was imported before", __name__)



def _serialize_again(peer: Peer, message: Any) -> Any:
    """Pickle a message that is bytes, or for a peer whose last one was long: its long bytes objects are not copied
    then, which cannot be known before a message is pickled, but is well guessed from the one before. Bytes, or a list
    of parts."""
    if not peer.bulky and len(message) < _UNCOPIED:
        return serialize(message)
    parts = serialize_long(message)
    if sum(map(len, parts)) >= _UNCOPIED:
        return parts
    peer.bulky = False
    return b"".join(parts)


def _send_long(peer: Peer, code: int, head: bytes, data: Any) -> bool:
    """Send a long message, bytes or a list of parts; as `Peer.send_frame`."""
    peer.bulky = True
    return peer.send_frame(code, head, data) if type(data) is bytes else peer.send_frame(code, head, *data)


class RemoteTask(Task):
    """Reference to a task of another process (N39), from `Task.locate`, from a message, or from a call of a service.

    `send`, `deliver`, `terminate`, `notify` and being monitored work as with a task of this process; it can be sent on
    to third processes, and is the task itself again when it comes home. Two references to one task are equal. What can
    be done in the task's own process only (`suspend`, `register` and so on) gives -1. It goes on working when the
    connection breaks and is made again, and when its process was given up and is heard of later. Any thread.
    """

    __slots__ = ("peer",)
    remote = True

    def __init__(self, peer: Peer, task_id: int, name: str) -> None:
        self.peer = peer
        self.id = task_id
        self._name = name
        self.kernel = peer.network.host
        self.generator = self.outcome = None

    name = property(lambda self: self._name, doc="Name of the task's function.")

    @property
    def location(self) -> Optional[Location]:
        """Where the task's process is."""
        return self.peer.location

    def __repr__(self) -> str:
        return "%s/%d@%s" % (self._name, self.id, self.peer.location or self.peer.process_id.hex()[:8])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteTask) and other.id == self.id and other.peer.process_id == self.peer.process_id

    def __hash__(self) -> int:
        return hash((self.id, self.peer.process_id))

    def send(self, message: Any) -> int:
        """Queue `message` for the task; a task that outruns the peer is held back at its next yield, a thread that is
        no task at once. Any thread. Returns 0, or -1 when the peer is gone, or the message cannot be pickled or is too
        long (logged)."""
        peer, kind = self.peer, type(message)
        if peer.state == "lost":
            if not self._found_again():
                return -1
            peer = self.peer
        try:
            data = _serialize_again(peer, message) if peer.bulky or kind is bytes or kind is bytearray else serialize(
                message)
            size = len(data) + 8            # of a list not what it says, but that is long anyway
            if size < _UNCOPIED and type(data) is bytes:
                roomy = peer.push(_MESSAGE_FRAME.pack(size, MESSAGE, self.id) + data, size)
            else:
                roomy = _send_long(peer, MESSAGE, _TASK_ID.pack(self.id), data)
        except Exception as error:      # pickling runs code of the user's
            log.error("message to %r was not sent: %s", self, _unsendable(error))
            return -1
        if not roomy:
            _hold_back(peer)
        return 0

    def _found_again(self) -> bool:
        """Whether the process has been heard of since it was given up, if only by a network that was started after the
        reference's own had ended; then the reference works again."""
        self.peer = (_network or self.peer.network).known(self.peer.process_id) or self.peer
        return self.peer.state != "lost"

    def reachable(self) -> bool:
        """Whether its process is not known to be gone; of the task itself this says nothing. Any thread."""
        return self.peer.state != "lost" or RemoteTask._found_again(self)

    def deliver(self, message: Any, timeout: Optional[float] = None) -> Any:
        """Send and wait until the task's mailbox has it, at most `timeout` seconds. Use with yield. Gives 1, or 0 (time
        is up, or the connection is gone for good), or -1 (there is no such task any more, or it cannot be pickled)."""
        return _Deliver(self, message, timeout)

    def terminate(self) -> int:
        """End the task. Any thread. Returns 0 (the request is queued), or -1 when the peer is gone."""
        if self.peer.state == "lost" and not self._found_again():
            return -1
        self.peer.notify("task.terminate", {"task": self.id})
        return 0

    def notify(self, monitor: Task) -> Any:
        """Have a `MonitorStatus` sent to `monitor` when the task ends, or its process is lost (then its type is
        `PeerLost`). Use with yield. Gives 0, or -1 when the task has ended or cannot be asked (logged)."""
        if not self.reachable():            # its network may have ended, too
            log.warning("%r cannot be monitored: %s is gone: %s", self, self.peer, self.peer.reason)
            return Value(-1)
        return _Remote(self.peer.network, self._monitor, monitor)

    def _monitor(self, monitor: Task) -> Generator:
        """Ask the task's process to tell its end; a system task. The number is known here before the question leaves,
        so that an end which is told at once finds it."""
        monitored, number = self.peer.network.tasks.monitored, next(_numbers)
        if is_time_to_look(len(monitored)):
            self.peer.network.tasks.forget_monitors()
        monitored[number] = self, monitor
        status = -1
        try:
            reply, _ = yield self.peer.request("task.monitor", {"task": self.id, "id": number},
                                               timeout=settings.message_timeout_s)
            status = reply["status"]
        except PycosError as error:
            log.warning("%r cannot be monitored: %s", self, error)
        finally:
            if status:
                monitored.pop(number, None)
        return status

    def finish(self, timeout: Optional[float] = None) -> Any:
        """Exit value of a remote task, where its creator can know it; for a located one None, with a warning."""
        log.warning("%r: the exit value of a located task is not known here: monitor it", self)
        return Value(None)

    __call__ = finish

    def is_alive(self) -> Any:
        """Not known for a remote task: None, with a warning."""
        log.warning("%r: is_alive works only in the task's own process", self)
        return None

    def _refuse(self, *_args: Any, **_kwargs: Any) -> int:
        """Works in the task's own process only: -1."""
        return -1

    suspend = sleep = resume = wakeup = throw = set_daemon = register = unregister = _refuse


copyreg.pickle(RemoteTask, _reduce_remote_task)     # type: ignore[arg-type]


class Undelivered:
    """Report of a message that was sent and not confirmed before the process of its recipient was given up; what
    `Pycos.undelivered` has sent to a task, one for each message and recipient, in the order of sending.

        recipient   the `RemoteTask` or `RemoteChannel`; equal to the reference that was sent to
        channel     name of the channel of this process that the message was sent to, None if it was sent directly
        message     what was sent; unpickled anew when it is asked for, and raises what that raises
        status      "unknown": it has left this process and may have arrived; "never sent": it has not
        location    where the process could be reached, a `Location` or None
        reason      why the process was given up, a sentence

    An unknown message may be sent again only where twice does no harm; nothing is repeated by itself.
    """

    __slots__ = ("recipient", "channel", "status", "location", "reason", "_data")
    UNKNOWN, NEVER_SENT = "unknown", "never sent"

    def __init__(self, recipient: Any, channel: Optional[str], status: str, location: Optional[Location], reason: str,
                 data: Any) -> None:
        self.recipient, self.channel, self.status = recipient, channel, status
        self.location, self.reason = location, reason
        self._data = data                   # pickled: it takes no more memory than it did while it was queued

    @classmethod
    def of(cls, peer: Peer, item: Unconfirmed, recipient: Any, data: Any,
           channel: Optional[str] = None) -> "Undelivered":
        """The report of a frame given up by the session with `peer`; `data` is the pickled message in it."""
        return cls(recipient, channel, cls.UNKNOWN if item.sent else cls.NEVER_SENT, peer.location, peer.reason, data)

    @property
    def message(self) -> Any:
        """What was sent, as a copy of its own. Any thread."""
        return deserialize(self._pickled)

    @property
    def _pickled(self) -> Any:
        """The pickled message in one piece. Any thread."""
        return b"".join(self._data) if type(self._data) is list else self._data

    def __repr__(self) -> str:
        return "<message to %r: %s (%s)>" % (self.recipient, self.status, self.reason)


def _reduce_undelivered(report: Undelivered) -> tuple:
    return _revive, ("undelivered", report.recipient, report.channel, report.status, report.location, report.reason,
                     bytes(report._pickled))


_REVIVERS["undelivered"] = Undelivered
copyreg.pickle(Undelivered, _reduce_undelivered)    # type: ignore[arg-type]


def _head_of(frame: Any) -> Any:
    """The body of an encoded frame, or, of one that is kept as buffers, its first part, which says whom it is for."""
    return memoryview(frame)[_FRAME.size:] if type(frame) is bytes else frame[1]


def _behind_head(frame: Any, size: int) -> Any:
    """The pickled message of such a frame, behind `size` bytes that say whom it is for: in one piece, or a list of its
    parts. Uncopied, as all that was queued for a peer may be given up at once."""
    if type(frame) is bytes:
        return memoryview(frame)[_FRAME.size + size:]
    return frame[2] if len(frame) == 3 else frame[2:]


def _message_reports(peer: Peer, item: Unconfirmed) -> list:
    """Accountant of MESSAGE frames."""
    recipient = RemoteTask(peer, _TASK_ID.unpack_from(_head_of(item.frame))[0], "task")
    return [Undelivered.of(peer, item, recipient, _behind_head(item.frame, _TASK_ID.size))]


class _Deliver(_Timed):
    """A task waits until a mailbox of another process has its message. The answer finds it by `number`; 0 when none
    came in time, when the peer is lost, and at once when it is lost already."""

    __slots__ = ("target", "peer", "message", "number", "task")

    def __init__(self, target: RemoteTask, message: Any, timeout: Optional[float]) -> None:
        self.target = target
        self.message = message
        self.timeout = timeout
        self.alarm_value = 0

    def begin(self, kernel: Kernel, task: Task) -> bool:
        target = self.target
        if target.peer.state == "lost" and not target._found_again():
            task.carried = 0 if target.peer is not target.peer.network.itself else -1
            return True
        self.peer = peer = target.peer          # which `target` may replace by another one
        try:
            message, kind = self.message, type(self.message)
            data = _serialize_again(peer, message) if peer.bulky or kind is bytes or kind is bytearray else serialize(
                message)
            size = len(data) + 12
            if size >= _UNCOPIED or type(data) is not bytes:
                size = 12 + (len(data) if type(data) is bytes else sum(map(len, data)))
                peer.check_size(size)
        except Exception as error:      # pickling runs code of the user's
            log.error("message to %r was not delivered: %s", target, _unsendable(error))
            task.carried = -1
            return True
        if _Timed.begin(self, kernel, task):
            return True
        self.task = task
        self.number = number = next(_numbers) & 0xFFFFFFFF
        _deliveries[number] = self
        if size < _UNCOPIED:
            peer.push(_DELIVER_FRAME.pack(size, DELIVER, target.id, number) + data, size)
        else:
            _send_long(peer, DELIVER, _DELIVER_HEAD.pack(target.id, number), data)
        if peer.state == "lost" and _deliveries.pop(number, None):      # just now, before this one was to be seen
            self.done(0)
        return False

    def done(self, status: int) -> None:
        """The answer came, or never will. Any thread."""
        task = self.task
        if task.kernel.owner != get_ident():
            task.kernel.post(self.done, status)
        elif task.wait is self:
            task.unpark(status)

    def expired(self, task: Task) -> Any:
        _deliveries.pop(self.number, None)
        return 0

    def abandon(self, task: Task) -> None:
        _deliveries.pop(self.number, None)


_numbers = itertools.count(1)
_deliveries: Dict[int, _Deliver] = {}   # by number; entries are made and taken out by single dict operations


def _unsendable(error: Exception) -> str:
    """Why a message was not sent, for a sentence: too long (which says so itself), or no pickle can be made of it."""
    return str(error) if isinstance(error, MisuseError) else "it cannot be pickled: %s" % _said_by(error)


def _said_by(error: Exception) -> str:
    """The text of an exception that code of the user's has raised: also that may raise one, or have no end."""
    try:
        return "%.1000s" % error
    except Exception:
        return "its exception, %s, has no text" % type(error).__name__


class _HeldBack(Request):
    """A task that outran a peer waits until its window has room again, then goes on with what it had."""

    __slots__ = ("peer", "carried")

    def __init__(self, peer: Peer, carried: Any) -> None:
        self.peer = peer
        self.carried = carried

    def begin(self, kernel: Kernel, task: Task) -> bool:
        task.wait = self
        self.peer.network.post(_when_roomy, self.peer, functools.partial(kernel.call, self._go_on, task))
        return False

    def _go_on(self, task: Task) -> None:
        if task.wait is self:
            task.unpark(self.carried)


class _WaitFirst:
    """In the place of a task's next step: waits for `peer` before it."""

    __slots__ = ("task", "peer", "step")

    def __init__(self, task: Task, peer: Peer) -> None:
        self.task, self.peer, self.step = task, peer, task.step

    def __call__(self, carried: Any) -> Any:
        self.task.step = self.step
        return _HeldBack(self.peer, carried)


def _wait_between(peer: Peer) -> Generator:
    """In the place of a generator's caller: waits for `peer` when that has returned, and passes its result on."""
    result = yield
    yield _HeldBack(peer, result)
    return result


def _when_roomy(peer: Peer, function: Callable) -> None:
    """Call `function()` once the window of `peer` has room, or it is lost. Engine."""
    peer.flush()
    if peer.session.below_window or peer.state == "lost":
        function()
    else:
        peer.held.append(function)


def _hold_back(peer: Peer) -> None:
    """Let the running task wait, at its next step, until `peer` has room; a thread that is no task waits right here, as
    do all user tasks when one sends on and on without a step and has filled the window twice: the watcher drives the
    network then, so it ends. System tasks never wait here, as the engine would wait with them."""
    me, host, engine = get_ident(), peer.network.host, peer.engine
    task = engine.current if engine.owner == me and engine.current is not None else host.current
    if me not in (host.owner, engine.owner) or me != engine.owner and peer.session.flooded:
        roomy = threading.Event()
        peer.network.post(_when_roomy, peer, roomy.set)
        roomy.wait()
    elif task is not None and task.step.__class__ is not _WaitFirst:
        if task.callers:                # it may return instead of taking another step
            between = _wait_between(peer)
            next(between)
            task.callers.append(between)
        task.step = _WaitFirst(task, peer)


def _on_message(peer: Peer, body: bytes) -> None:
    """A MESSAGE: into the mailbox, or, when the task has ended, nowhere: `send` promises no more. What cannot be
    unpickled here is logged by this end, as the sender is not asked for a reaction."""
    task_id = _TASK_ID.unpack_from(body)[0]
    task = peer.tasks.get(task_id) or _local_task(peer.network, task_id)
    if task is None:
        log.debug("%s: a message came for task %d, which has ended", peer, task_id)
        return
    try:
        message = deserialize(body[8:]) if len(body) < _SMALL else deserialize_frame(body, 8)
    except Exception as error:          # unpickling runs code of the user's
        log.error("%s: a message to %r cannot be unpickled: %s: %s", peer, task, type(error).__name__, _said_by(error))
    else:
        task.send(message)


def _on_deliver(peer: Peer, body: bytes) -> None:
    """A DELIVER: into the mailbox first, then the answer; -1 when there is no such task any more or the message cannot
    be unpickled."""
    task_id, number = _DELIVER_HEAD.unpack_from(body)
    task = peer.tasks.get(task_id) or _local_task(peer.network, task_id)
    status = -1
    if task is not None:
        try:
            status = task.send(deserialize_frame(body, 12)) or 1
        except Exception as error:      # as above
            log.error("%s: a message to %r cannot be unpickled: %s: %s", peer, task, type(error).__name__,
                      _said_by(error))
    if not peer.push(_DELIVERED_FRAME.pack(5, DELIVERED, number, status), 5):
        peer.owed.add(5)


def _on_delivered(_peer: Peer, body: bytes) -> None:
    """The answer to a DELIVER. Nobody waits for it any more when the time of the delivery was up before."""
    number, status = _DELIVERED_BODY.unpack(body)
    waiting = _deliveries.pop(number, None)
    if waiting is not None:
        waiting.done(status)


def _on_terminate(peer: Peer, args: dict, _payload: bytes) -> None:
    """A peer ends a task of this process; one that has ended already is as wanted."""
    task = _local_task(peer.network, args["task"])
    if task is not None:
        task.terminate()


def _on_monitor(peer: Peer, args: dict, _payload: bytes) -> dict:
    """A peer wants to hear of the end of a task of this process; -1 when it has ended, as for a monitor here (N39)."""
    task = _local_task(peer.network, args["task"])
    if task is None:
        return {"status": -1}
    _watch_for(peer, task, args["id"])
    return {"status": 0}


def _on_unmonitor(peer: Peer, args: dict, _payload: bytes) -> None:
    """A peer does not want to hear of the end of a task of this process any more."""
    task, watcher = peer.network.tasks.watched.get(peer, {}).pop((args["id"], args["task"]), (None, None))
    if task is not None:
        task.kernel.call(task.unwatch, watcher)


def _watch_for(peer: Peer, task: Task, number: int) -> None:
    """Have `peer` told of the end of a task of this process, under that number, unless it is lost before: a task may
    live on when thousands of processes that asked about it have come and gone. Engine."""
    watcher = functools.partial(_tell_asker, peer, number)
    peer.network.tasks.watched.setdefault(peer, {})[number, task.id] = task, watcher
    task.kernel.call(task.watch, watcher)


def _tell_asker(peer: Peer, number: int, task: Task) -> None:
    """Watcher of a task that `peer` asked about: it has ended. In the task's kernel."""
    peer.network.tasks.watched.get(peer, {}).pop((number, task.id), None)
    status = task.outcome
    if not isinstance(status, MonitorStatus):
        status = MonitorStatus(task, StopIteration, status)
    try:
        data = serialize(status)
        peer.check_size(len(data) + _SMALL)
    except Exception as error:          # pickling runs code of the user's
        log.error("%r: how it ended cannot be told to %s: %s", task, peer, _unsendable(error))
        data = serialize(MonitorStatus(task, type(error), _unsendable(error)))
    peer.notify("task.ended", {"id": number}, data)


def _on_ended(peer: Peer, args: dict, payload: bytes) -> None:
    """A task there has ended: pass its status on to who monitors it here, once."""
    task, monitor = peer.network.tasks.monitored.pop(args["id"], (None, None))
    if monitor is None:
        return
    try:
        status = deserialize(payload)
    except Exception as error:          # unpickling runs code of the user's; the monitor is told all the same
        status = MonitorStatus(task, type(error), "it has ended, and how cannot be unpickled here: %s" % error)
    monitor.send(status)


class _Elsewhere(Request):
    """A task waits for what a function gives, or raises, that is called where it belongs. A subclass says where: its
    `_start` has `_run` called there."""

    __slots__ = ("network", "function", "args", "task")

    def __init__(self, network: Network, function: Callable, *args: Any) -> None:
        self.network, self.function, self.args = network, function, args

    def begin(self, kernel: Kernel, task: Task) -> bool:
        """Park the task, and only then start: the result may be there at once."""
        self.task = task
        task.wait = self
        self._start()
        return False

    def _start(self) -> None:
        raise NotImplementedError

    def _run(self) -> Any:
        """Where the function belongs."""
        try:
            result, error = self.function(*self.args), None
        except Exception as failure:
            result, error = None, failure
        self._end(result, error)

    def _end(self, result: Any, error: Optional[Exception]) -> None:
        self.task.kernel.call(self._done, result, error)

    def _done(self, result: Any, error: Optional[Exception]) -> None:
        if self.task.wait is self:
            if error is None:
                self.task.unpark(result)
            else:
                self.task.unpark_with(error)


class _Remote(_Elsewhere):
    """A user task waits for the result of a generator function that runs as a system task, and ends it if it is itself
    ended before.

    This is how whatever needs several steps of the engine is made an API for user tasks: ``yield _Remote(network,
    function, *args)``. What the function returns is the result, what it raises is raised at the yield. It runs in the
    engine, so it must not call code of the user's.
    """

    __slots__ = ("system",)

    def _start(self) -> None:
        self.system = self.network.spawn(self._run)

    def _run(self) -> Generator:
        try:
            result, error = (yield self.function(*self.args)), None
        except Exception as failure:
            result, error = None, failure
        self._end(result, error)

    def abandon(self, task: Task) -> None:
        self.system.terminate()


class _Search:
    """Looks for a name in this process and all peers, present and future.

    Every peer is asked once and remembers the question until it is taken back (`task.unseek`) or the asker is lost, so
    nothing is repeated, and a name that is registered later is told at once. The first answer counts (N43: the name may
    exist in several processes). With `only`, the process at that location alone is asked, and connected to before.
    Engine only.
    """

    def __init__(self, network: Network, kind: str, name: str, only: Optional[Location]) -> None:
        self.network, self.kind, self.name, self.only = network, kind, name, only
        self.number = next(_numbers)
        self.task: Optional[Task] = None
        self.asked: List[Peer] = []
        self.found: Any = None

    def run(self, timeout: Optional[float]) -> Generator:
        """The search, as a system task: gives what was found, or None when time is up."""
        network, clock = self.network, self.network.engine.clock
        deadline = None if timeout is None else clock() + timeout
        self.task = network.engine.current
        network.tasks.searches[self.number] = self
        try:
            if self.only is not None and network.peer_at(self.only) is None:
                yield network.connect([self.only], settings.message_timeout_s if timeout is None else timeout)
            for peer in list(network.peers.values()):
                self.ask(peer)
            if self.found is None:
                yield Suspend(None if deadline is None else deadline - clock())
        except PycosError as error:
            level = logging.WARNING if isinstance(error, AuthenticationError) else logging.INFO
            log.log(level, "%s %r was not found: %s", self.kind, self.name, error)
        finally:
            self._end()
        return self.found

    def _end(self) -> None:
        del self.network.tasks.searches[self.number]
        for peer in self.asked:
            if peer.state != "lost":
                peer.notify("task.unseek", {"id": self.number})

    def ask(self, peer: Peer) -> None:
        """Ask one more peer, unless it was asked. One that has been online and is cut off for the moment will get the
        question when it is back; one that never was online is asked when it comes."""
        if peer.told_online and peer not in self.asked and (self.only is None or self.only in peer.locations):
            self.asked.append(peer)
            peer.notify("task.seek", {"kind": self.kind, "name": self.name, "id": self.number})

    def answer(self, reference: Any) -> None:
        """A peer has it: the first that says so ends the search."""
        if self.found is None:
            self.found = reference
            if type(self.task.wait) is Suspend:     # else it is still connecting, and looks when it has done that
                self.task.resume()


NETWORK_STARTERS: List[Callable[[], Network]] = []      # what starts this process's network; the facade's is the first


def _locate(kind: str, name: str, location: Optional[Location], timeout: Optional[float]) -> Request:
    """What `Task.locate` and its like do. Use with yield. A location may also be a text, as elsewhere."""
    network = _network
    if not isinstance(location, (Location, type(None))):
        location = Location.parse(location, settings.net_port)
    local = NAMES.get((kind, name))
    if local is not None and (location is None or network is None or location in network.locations):
        return Value(local)
    if network is None:
        network = NETWORK_STARTERS[0]()
    if location in network.locations:
        return Value(None)
    return _Remote(network, _Search(network, kind, name, location).run, timeout)


def _locate_task(name: str, location: Optional[Location] = None, timeout: Optional[float] = None) -> Any:
    """Reference to the task registered as `name`: in this process, else in any peer, now or in the future, or only in
    the process at `location`. Use with yield. Gives None when `timeout` seconds (None: for ever) were not enough."""
    return _locate("task", name, location, timeout)


Task.locate = staticmethod(_locate_task)            # type: ignore[attr-defined]


def _on_seek(peer: Peer, args: dict, _payload: bytes) -> None:
    """A peer looks for a name: answer now, or as soon as it is registered here."""
    wanted = args["kind"], args["name"]
    found = NAMES.get(wanted)
    if found is not None:
        peer.notify("task.found", {"id": args["id"]}, serialize(found))
    else:
        peer.network.tasks.seekers.setdefault(wanted, {})[peer.process_id, args["id"]] = peer


def _on_unseek(peer: Peer, args: dict, _payload: bytes) -> None:
    """A peer looks for a name no more: found, or its time was up."""
    peer.network.tasks.forget_seekers(lambda key: key == (peer.process_id, args["id"]))


def _on_found(peer: Peer, args: dict, payload: bytes) -> None:
    """A peer has what was looked for here; the second answer and those that come too late are dropped."""
    search = peer.network.tasks.searches.get(args["id"])
    if search is not None:
        search.answer(deserialize(payload))


def _announce(kind: str, name: str, thing: Any) -> None:
    """A name was registered here: tell the peers that look for it. Any thread."""
    network = _network
    if network is not None:
        network.post(_tell_seekers, network, (kind, name), thing)


def _tell_seekers(network: Network, wanted: Tuple[str, str], thing: Any) -> None:
    """Answer all peers that have asked for a name, unless it was taken back by now. Engine."""
    if NAMES.get(wanted) is thing:
        data = serialize(thing)
        for (_, number), peer in network.tasks.seekers.pop(wanted, {}).items():
            peer.notify("task.found", {"id": number}, data)


NAME_WATCHERS.append(_announce)


class _Tasks:
    """What a network knows of tasks here and there; engine only."""

    def __init__(self) -> None:
        self.searches: Dict[int, _Search] = {}              # ours, by number
        self.seekers: Dict[Tuple[str, str], dict] = {}      # (kind, name) -> (process id, number) -> who looks for it
        self.monitored: Dict[int, tuple] = {}               # number -> (remote task, who is told of its end)
        self.watched: Dict[Peer, dict] = {}                 # who asked -> (number, task) -> (task here, watcher);
                                                            # also taken out of by the task's kernel

    def forget_monitors(self) -> None:
        """Drop those that have ended before the task that they monitor, there too."""
        for number, (task, monitor) in list(self.monitored.items()):
            if not monitor.reachable():
                del self.monitored[number]
                task.peer.notify("task.unmonitor", {"task": task.id, "id": number})

    def forget_seekers(self, gone: Callable[[tuple], bool]) -> None:
        """Drop those whose (process id, number) `gone` says."""
        for wanted, asked in list(self.seekers.items()):
            for key in [key for key in asked if gone(key)]:
                del asked[key]
            if not asked:
                del self.seekers[wanted]


def _on_peer_event(peer: Peer, event: str, reason: str) -> None:
    """Watcher of peers: a search includes who comes later; who is lost seeks, ends and answers nothing any more."""
    tasks = peer.network.tasks
    if event == "online":
        for search in list(tasks.searches.values()):
            search.ask(peer)
    elif event == "lost":
        tasks.forget_seekers(lambda key: key[0] == peer.process_id)
        for task, watcher in list(tasks.watched.pop(peer, {}).values()):
            task.kernel.call(task.unwatch, watcher)
        for number, waiting in list(_deliveries.items()):
            if waiting.peer is peer and _deliveries.pop(number, None):
                waiting.done(0)
        for number, (task, monitor) in list(tasks.monitored.items()):
            if task.peer is peer:
                del tasks.monitored[number]
                monitor.send(MonitorStatus(task, PeerLost, reason))


def serve_tasks(network: Network) -> None:
    """Let `network` carry messages and references to tasks. Before it begins.

    `network.itself` is the peer that references to tasks of this process lead to once these have ended: it is lost from
    the start, so whatever is sent there fails in the way it does for an ended task.
    """
    network.tasks = _Tasks()
    network.itself = Peer(network, network.process_id)
    network.itself.state, network.itself.reason = "lost", "the task has ended"
    network.addresses = [(at.bare, at.port) for at in network.locations]
    network.where = _where(network.addresses)
    network.frame_handlers.update({MESSAGE: _on_message, DELIVER: _on_deliver, DELIVERED: _on_delivered})
    network.accountants[MESSAGE] = _message_reports
    for op, handler in (("task.terminate", _on_terminate), ("task.monitor", _on_monitor),
                        ("task.unmonitor", _on_unmonitor), ("task.ended", _on_ended), ("task.seek", _on_seek),
                        ("task.unseek", _on_unseek), ("task.found", _on_found)):
        network.on_request(op, handler)
    network.on_peer(_on_peer_event)


# ======================================================================================================================
# 23. Remote channels and services                       channels of other processes, and functions they let others call
# ======================================================================================================================
#
#   frame 21 SPREAD      u32 number (0: no answer wanted) | u8 hops | u32 n | f64 seconds | u32 bytes of JSON | JSON
#                        {from, tasks, channels} | pickled message; answered with
#   frame 22 REACHED     u32 number | i32 tasks that have it; -1: there is no such channel
#   request channel.subscribe {name} + pickled subscriber, channel.unsubscribe likewise; answered with {status}
#   notice channel.gone {from, tasks, channels}: those subscribers of channel `from` have ended
#   request rps.call {name, id} + pickled (args, kwargs), answered with {task, name}, and at its end by task.ended {id}
#
# A channel pickles a message once and sends one SPREAD to each process that has subscribers of it, with the names and
# numbers of these; what is sent to a channel of another process is a SPREAD to that channel alone, with `from` null.
# `n` and `seconds` are those of `deliver`. Channels that feed each other across processes are found out by `hops`.
# A process that passes messages on confirms them to where they come from only as long as those it passes them on to
# keep up (`_Passing`): so who sends too much is held back, however many processes are in between.
#
# Threads: channels and their subscribers belong to the user kernel; the engine reads frames, unpickles, and hands what
# concerns a channel over (`_spread_here`), and what is for tasks alone to their mailboxes (`_spread_to_tasks`). A
# request that changes a channel waits in the engine for the user kernel (`_AtHome`). Sending is done by whoever sends,
# in any thread.
#
# The way of a delivery that wants to know how many have it (`deliver`): it makes one `_Answers`, asks each process
# under a number of its own, and waits (`_Tally`) until `open` is empty, enough are `reached`, or time is up. A process
# that passes the message on makes an `_Answers` likewise and answers when its own is complete. A peer that is lost has
# reached 0. What comes after the end finds no number in `_awaited` and is dropped.
#
# The subscribers in other processes are grouped by process once (`channel.routes`), and anew when they change. They are
# those of a process until that is lost. One that has ended is noticed where it lived, at the next message, and told by
# channel.gone.
#
# A service is a name for a generator function. A call is a request, its task a user task there like any other. The
# caller's reference, a `ServiceTask`, is made before the request is sent: the end of a short task may overtake the
# answer that says it has begun. It is entered into `_Tasks.monitored`, where ends are looked up that are told from
# elsewhere, with an `_Ending` in the place of a monitor.

SPREAD, REACHED = 21, 22
_SPREAD_HEAD = struct.Struct(">IBIdI")
_REACHED_BODY = struct.Struct(">Ii")
_MOST_HOPS = 16                         # processes a message goes through, from channel to channel


def _reduce_named(kind: str, find: Callable, thing: Any) -> tuple:
    """A channel or service of this process, for others: they find it by its name. Pickling one that has no name here,
    or whose name is another one's by now, is refused: the reference would lead nowhere."""
    network = _network
    if network is None or find(thing.name) is not thing:
        raise MisuseError("%s %r cannot be sent to another process: %s" % (
            kind, thing, "the network is not started" if network is None else "it cannot be found by its name"))
    return _revive, (kind, network.process_id, network.addresses, thing.name)


def _reduce_remote(kind: str, thing: Any) -> tuple:
    """How a reference to a channel or service is passed on: like that to a task, by name in place of a number."""
    return _revive, (kind, thing.peer.process_id, _addresses_of(thing.peer), thing.name)


def _revive_named(find: Callable, remote: type, process_id: bytes, addresses: list, name: str) -> Any:
    """Such a reference, unpickled: the thing itself where it is at home, if it can still be found by its name there."""
    peer = _peer_of(process_id, addresses, name)
    home = find(name) if peer is peer.network.itself else None
    return home or remote(peer, name)


class _Answers:
    """What a delivery hears from other processes: who has still to answer, and how many tasks the others have reached.
    Changed by the engine only, but for `open`, which also grows in the thread that delivers."""

    __slots__ = ("hops", "open", "wanted", "reached", "source", "waiter", "_clock", "_deadline")

    def __init__(self, timeout: Optional[float], hops: int = 0, wanted: bool = True,
                 source: Optional[Peer] = None) -> None:
        self._clock = default_kernel().clock
        self._deadline = math.inf if timeout is None else self._clock() + timeout
        self.hops = hops
        self.wanted = wanted
        self.source = source                        # who sent the message that is passed on
        self.open: Dict[int, Peer] = {}             # number -> who was asked
        self.reached = 0
        self.waiter: Optional[Callable] = None      # called after each answer; engine

    def left(self) -> float:
        """Seconds until time is up; infinite without a limit."""
        return self._deadline - self._clock()

    def timeout(self) -> Optional[float]:
        """The same for a wait: None without a limit."""
        return None if self._deadline == math.inf else self.left()

    def ask(self, peer: Peer) -> int:
        """A number for an answer of `peer`; 0 when none is wanted."""
        if not self.wanted:
            return 0
        number = next(_numbers) & 0xFFFFFFFF
        self.open[number] = peer
        _awaited[number] = self
        return number

    def answer(self, number: int, count: int) -> None:
        """So many tasks were reached there."""
        _awaited.pop(number, None)
        if self.open.pop(number, None) is not None:
            self.reached += count
        if self.waiter is not None:
            self.waiter()

    def close(self) -> int:
        """Wait for no more; gives how many were reached."""
        for number in list(self.open):
            _awaited.pop(number, None)
        return self.reached

    def wait(self, n: int) -> Request:
        """Wait for all answers, or for `n` tasks if that is above 0; gives how many were reached. Use with yield."""
        return _Tally(self, n)


_awaited: Dict[int, _Answers] = {}      # by number; entries are made and taken out by single dict operations


class _Tally(_Timed):
    """A task waits for the answers to what it delivers: gives how many tasks have it, so far if time is up.

    Answers come in the engine, perhaps between a look at them and the parking; so the waiter is set first, and it looks
    again in the task's own thread (`_look`), where nothing else can end the wait at that moment.
    """

    __slots__ = ("answers", "n", "task")

    def __init__(self, answers: _Answers, n: int) -> None:
        super().__init__(answers.timeout())
        self.answers, self.n = answers, n

    def begin(self, kernel: Kernel, task: Task) -> bool:
        """Wait, unless all have answered or no time is left."""
        self.task = task
        self.answers.waiter = self._changed     # before looking: answers may come in another thread
        if self._enough() or super().begin(kernel, task):
            task.carried = self.answers.close()
            return True
        return False

    def _enough(self) -> bool:
        return not self.answers.open or 0 < self.n <= self.answers.reached

    def _changed(self) -> None:
        self.task.kernel.call(self._look)

    def _look(self) -> None:
        if self.task.wait is self and self._enough():
            self.task.unpark(self.answers.close())

    def expired(self, task: Task) -> Any:
        """Time is up: how many are known to have it; others may get it yet."""
        return self.answers.close()

    def abandon(self, task: Task) -> None:
        """What has been sent stays sent; the answers are dropped."""
        self.answers.close()


# -- messages from channels to other processes -------------------------------------------------------------------------


class _Passing:
    """Holds back a process whose messages channels of this one pass on to others that do not keep up. Engine only.

    There is no task here that could wait, so nothing is confirmed to `source` until all of `targets` have room again:
    its window fills, and its senders wait. Should two processes wait for each other in this way, neither would confirm
    anything any more; therefore a target that is connected and has confirmed nothing for a while is not waited for.
    """

    __slots__ = ("source", "targets")

    def __init__(self, source: Peer) -> None:
        self.source = source
        self.targets: Dict[Peer, _Later] = {}       # who is waited for -> when he is looked at next

    @staticmethod
    def wait(source: Peer, target: Peer) -> None:
        """Something that came from `source` has filled the window of `target`."""
        if source.state == "lost":
            return
        passing = source.network.passing.setdefault(source, _Passing(source))
        if target not in passing.targets:
            passing._look_later(target)
            source.session.withhold(True)
            _when_roomy(target, functools.partial(passing._go_on, target))

    def _go_on(self, target: Peer) -> None:
        """`target` has room again, or is lost, or must not be waited for any longer."""
        timer = self.targets.pop(target, None)
        if timer is not None:
            timer.cancel()
        if not self.targets and self.source.network.passing.get(self.source) is self:   # else it has done this before
            del self.source.network.passing[self.source]
            self.source.session.withhold(False)
            self.source.flush()

    def _look_later(self, target: Peer) -> None:
        self.targets[target] = target.engine.call_later(settings.message_timeout_s, self._look, target,
                                                        target.session.confirmed)

    def _look(self, target: Peer, confirmed: int) -> None:
        """Whether `target`, which had that much confirmed the last time, gets on."""
        if target.online and target.session.confirmed == confirmed or self.source.state == "lost":
            self._go_on(target)
        else:
            self._look_later(target)


def _addressees(source: Optional[str], tasks: List[int], channels: List[str]) -> bytes:
    """Whom a SPREAD is for in the process that it goes to, and the channel it comes from; kept with the route."""
    return json.dumps({"from": source, "tasks": tasks, "channels": channels}, separators=(",", ":")).encode()


@functools.lru_cache(maxsize=256)
def _parse_addressees(data: bytes) -> tuple:
    """(source, task ids, channel names); a channel that sends often says the same each time. Raises ProtocolError."""
    found = json.loads(data)
    source, tasks, names = found["from"], tuple(found["tasks"]), tuple(found["channels"])
    if not (isinstance(source, (str, type(None))) and all(isinstance(number, int) for number in tasks)
            and all(isinstance(name, str) for name in names)):
        raise ProtocolError("a message of a channel is for what can be no task and no channel")
    return source, tasks, names


def _find_routes(channel: Channel, far: Iterable[Any]) -> list:
    """Group the subscribers in other processes by process, as `channel.routes`; gives those that are gone."""
    groups: Dict[Peer, tuple] = {}
    gone = []
    for subscriber in far:
        if not subscriber.reachable():
            gone.append(subscriber)
            continue
        tasks, channels = groups.setdefault(subscriber.peer, ([], []))
        if isinstance(subscriber, Channel):
            channels.append(subscriber.name)
        else:
            tasks.append(subscriber.id)
    channel.routes = [(peer, _addressees(channel.name, *both)) for peer, both in groups.items()]
    return gone


def _spread(channel: Channel, far: Iterable[Any], message: Any, answers: Optional[_Answers]) -> list:
    """Send `message` to the subscribers of `channel` in other processes; gives those that are gone."""
    gone: list = []
    if channel.routes is None or [peer for peer, _ in channel.routes if peer.state == "lost"]:
        gone = _find_routes(channel, far)
    if answers is not None and answers.hops > _MOST_HOPS:
        log.error("channel %r: a message has come through %d processes and is dropped: do channels subscribe to each "
                  "other in a circle?", channel, answers.hops)
        return gone
    try:
        data = serialize(message)
    except Exception as error:          # pickling runs code of the user's
        log.error("channel %r: a message was not sent to other processes: %s", channel, _unsendable(error))
        return gone
    for peer, addressees in channel.routes:
        try:
            _send_spread(peer, addressees, data, answers)
        except MisuseError as error:    # too long for that one
            log.error("channel %r: a message was not sent to %s: %s", channel, peer, error)
    return gone


@functools.lru_cache(maxsize=256)
def _plain_spread(addressees: bytes, n: int) -> bytes:
    """Beginning of a SPREAD that wants no answer and has come through no other process: a channel that sends often says
    the same each time."""
    return _SPREAD_HEAD.pack(0, 0, n, math.inf, len(addressees)) + addressees


def _send_spread(peer: Peer, addressees: bytes, data: bytes, answers: Optional[_Answers] = None, n: int = 0) -> None:
    """Send a pickled message to some subscribers in one process. Holds back who sends when its window is full: a task
    or thread of this process itself, or, for a message that is only passed on, the process it came from. Any thread."""
    number, size = 0, _SPREAD_HEAD.size + len(addressees) + len(data)
    if answers is None:
        head = _plain_spread(addressees, n)
    else:
        peer.check_size(size)               # before a number is given away for it
        number = answers.ask(peer)
        head = _SPREAD_HEAD.pack(number, answers.hops, n, answers.left(), len(addressees)) + addressees
    if size < _UNCOPIED:
        roomy = peer.push(_FRAME.pack(size, SPREAD) + head + data, size)
    else:
        roomy = peer.send_frame(SPREAD, head, data)
    if not roomy:
        if answers is None or answers.source is None:
            _hold_back(peer)
        else:
            peer.network.post(_Passing.wait, answers.source, peer)
    if answers is not None and number and peer.state == "lost":     # just now: who told others may not have seen this
        peer.network.post(answers.answer, number, 0)


def _spread_reports(peer: Peer, item: Unconfirmed) -> list:
    """Accountant of SPREAD frames: one report for each subscriber; who delivers hears of it in the answer."""
    head = _head_of(item.frame)
    number, _, _, _, size = _SPREAD_HEAD.unpack_from(head)
    if number:
        return []
    size += _SPREAD_HEAD.size
    source, tasks, names = _parse_addressees(bytes(head[_SPREAD_HEAD.size:size]))
    data = _behind_head(item.frame, size)
    recipients: list = [RemoteTask(peer, task_id, "task") for task_id in tasks]
    recipients += [RemoteChannel(peer, name) for name in names]
    return [Undelivered.of(peer, item, recipient, data, source) for recipient in recipients]


def _on_spread(peer: Peer, body: bytes) -> None:
    """A SPREAD: check and unpickle it in the engine, then hand it to the user kernel, which owns channels."""
    number, hops, n, seconds, size = _SPREAD_HEAD.unpack_from(body)
    start = _SPREAD_HEAD.size + size
    addressed = _parse_addressees(bytes(body[_SPREAD_HEAD.size:start]))
    if n and not addressed[2] or math.isnan(seconds):
        raise ProtocolError("a message of a channel waits for subscribers of no channel, or for no time at all")
    try:
        message = deserialize_frame(body, start)
    except Exception as error:          # unpickling runs code of the user's
        log.error("%s: a message of channel %r cannot be unpickled: %s: %s", peer, addressed[0] or addressed[2][0],
                  type(error).__name__, error)
        _tell_reached(peer, number, 0)
        return
    if not addressed[2] and addressed[0] is not None:
        _tell_reached(peer, number, _spread_to_tasks(peer, addressed[0], addressed[1], message))
        return
    answers = _Answers(None if seconds == math.inf else seconds, hops + 1, bool(number), peer)
    peer.network.host.call(_spread_here, peer, number, n, addressed, message, answers)


def _tell_reached(peer: Peer, number: int, count: int) -> None:
    """Answer a SPREAD, if an answer is wanted."""
    if number:
        if not peer.send_frame(REACHED, _REACHED_BODY.pack(number, count)):
            peer.network.post(peer.owed.add, _REACHED_BODY.size)


def _take_message(network: Network, task_id: int, message: Any) -> bool:
    """Give a message to a task of this process; False when it has ended."""
    task = _local_task(network, task_id)
    return task is not None and task.send(message) == 0


def _spread_to_tasks(peer: Peer, source: str, tasks: Tuple[int, ...], message: Any) -> int:
    """A message of channel `source` of another process for tasks of this one and for no channel, the usual case: it
    needs nothing that only the user kernel may touch, and goes to the mailboxes at once. How many have it. Any thread.
    """
    gone = [task_id for task_id in tasks if not _take_message(peer.network, task_id, message)]
    if gone:
        peer.notify("channel.gone", {"from": source, "tasks": gone, "channels": []})
    return len(tasks) - len(gone)


def _spread_here(peer: Peer, number: int, n: int, addressed: tuple, message: Any, answers: _Answers) -> None:
    """A message of another process, for tasks and channels of this one. User kernel's thread."""
    source, tasks, names = addressed
    channels = [channel for channel in map(Channel.named, names) if channel is not None]
    if source is None and not channels:
        _tell_reached(peer, number, -1)
        return
    gone_tasks = [task_id for task_id in tasks if not _take_message(peer.network, task_id, message)]
    if gone_tasks or len(channels) < len(names):
        peer.notify("channel.gone", {"from": source, "tasks": gone_tasks,
                                     "channels": [name for name in names if Channel.named(name) is None]})
    if n and channels and channels[0].count() < n:      # a `deliver` waits for subscribers, and concerns one channel
        waiting = peer.network.host.spawn(_deliver_later, peer, number, n, channels[0], message, answers)
        peer.network.host.count_daemon(waiting, True)
        return
    count = len(tasks) - len(gone_tasks) + sum(channel.publish(message, answers) for channel in channels)
    _tell_when_known(peer, number, count, answers)


def _deliver_later(peer: Peer, number: int, n: int, channel: Channel, message: Any, answers: _Answers) -> Generator:
    """Deliver to `channel` once it has `n` subscribers."""
    if (yield channel.enough(n, answers.timeout())):
        _tell_when_known(peer, number, channel.publish(message, answers), answers)
    else:
        _tell_reached(peer, number, 0)


def _tell_when_known(peer: Peer, number: int, count: int, answers: _Answers) -> None:
    """Answer `peer` once the processes that the message went on to have answered."""
    def tell() -> None:
        if not answers.open:
            _tell_reached(peer, number, count + answers.reached)
    if number:
        answers.waiter = tell
        tell()


def _on_reached(_peer: Peer, body: bytes) -> None:
    """The answer to a SPREAD; too late when the delivery's time was up."""
    number, count = _REACHED_BODY.unpack(body)
    answers = _awaited.get(number)
    if answers is not None:
        answers.answer(number, count)


def _on_channel_gone(peer: Peer, args: dict, _payload: bytes) -> None:
    """Subscribers there have ended: a channel of this process sends to them no more."""
    channel = Channel.named(args["from"])
    if channel is not None:
        gone: list = [RemoteTask(peer, task_id, "") for task_id in args["tasks"]]
        gone += [RemoteChannel(peer, name) for name in args["channels"]]
        for subscriber in gone:
            peer.network.host.call(channel.unsubscribe, subscriber)


class _ByName:
    """A thing of another process that is known by its name there: what references to channels and services share.

    The process is part of what it is: after that has ended and begun anew, the same name there is another thing, and
    has to be located again.
    """

    reachable = RemoteTask.reachable

    def __init__(self, peer: Peer, name: str) -> None:
        self.peer = peer
        self.name = name

    @property
    def location(self) -> Optional[Location]:
        """Where its process is."""
        return self.peer.location

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and (other.name, other.peer.process_id) == (self.name, self.peer.process_id)

    def __hash__(self) -> int:
        return hash((self.name, self.peer.process_id))


class RemoteChannel(_ByName, Channel):
    """Reference to a channel of another process (N38), from `Channel.locate` or from a message.

    `send`, `deliver`, `subscribe` and `unsubscribe` work as with a channel of this process; it can be a subscriber
    itself, can be sent on, and is the channel again when it comes home. The transform runs where the channel is. What
    works there only (`register`, `set_transform`, `close` and so on) gives -1. Two references to one channel are equal.
    """

    remote = True

    def _feeds(self, channel: Channel) -> bool:
        """What it feeds in other processes is not known here: circles across processes are found out by their hops."""
        return self == channel

    def _post(self, message: Any, answers: Optional[_Answers] = None, n: int = 0) -> int:
        """Send a message to the channel's process; 0, or -1 when it cannot be sent (logged). `answers` and `n` are
        those of a delivery. Any thread."""
        try:
            _send_spread(self.peer, _addressees(None, [], [self.name]), serialize(message), answers, n)
        except Exception as error:      # pickling runs code of the user's
            log.error("channel %r: a message was not sent: %s", self, _unsendable(error))
            return -1
        return 0

    def send(self, message: Any) -> int:
        """As `Channel.send`; waits for no answer. Who sends more than the other process takes is held back: a task at
        its next step, a thread that runs none right here (section 22). Any thread. Returns 0, or -1 when the process is
        lost or the message cannot be pickled (logged)."""
        return self._post(message) if self.reachable() else -1

    @types.coroutine
    def deliver(self, message: Any, timeout: Optional[float] = None, n: int = 0) -> Any:
        """As `Channel.deliver`; also 0 when the channel's process is lost meanwhile, -1 when there is no such channel
        any more or the message cannot be pickled."""
        if n < 0:
            return -1
        if not self.reachable():
            return -1 if self.peer is self.peer.network.itself else 0
        answers = _Answers(timeout)
        if self._post(message, answers, n):
            return -1
        return (yield answers.wait(0))

    def subscribe(self, subscriber: Any, timeout: Optional[float] = None) -> Any:
        """As `Channel.subscribe`; also -1 when the channel's process does not answer in `timeout` seconds (None:
        `Settings.message_timeout_s`; logged). Use with yield. `subscriber`: a task or channel of any process."""
        return self._change_there("subscribe", subscriber, timeout)

    def unsubscribe(self, subscriber: Any, timeout: Optional[float] = None) -> Any:
        """As `Channel.unsubscribe`; -1 and `timeout` as for `subscribe`. Use with yield."""
        return self._change_there("unsubscribe", subscriber, timeout)

    def _change_there(self, what: str, subscriber: Any, timeout: Optional[float]) -> Request:
        """Have the channel's process change its subscribers; -1 at once for what can be none."""
        if not isinstance(subscriber, (Task, Channel)) or not self.reachable():
            return Value(-1)
        try:
            data = serialize(subscriber)
        except MisuseError as error:
            log.error("%s", error)
            return Value(-1)
        return _Remote(self.peer.network, self._ask, what, data, timeout)

    def _ask(self, what: str, data: bytes, timeout: Optional[float]) -> Generator:
        """Ask for that change; a system task."""
        try:
            reply, _ = yield self.peer.request("channel." + what, {"name": self.name}, data,
                                               settings.message_timeout_s if timeout is None else timeout)
        except PycosError as error:
            log.warning("channel %r: %s failed: %s", self, what, error)
            return -1
        return reply["status"]

    def _refuse(self, *_args: Any, **_kwargs: Any) -> int:
        """Works in the channel's own process only: -1."""
        return -1

    register = unregister = set_transform = close = _refuse     # type: ignore[assignment]


class _AtHome(_Elsewhere):
    """A system task waits for the result of a function that is called in the user kernel's thread, where channels and
    their subscribers belong. It comes when that kernel's loop does: not while a user task computes."""

    __slots__ = ()

    def _start(self) -> None:
        self.network.host.call(self._run)


def _on_change(what: str, peer: Peer, args: dict, payload: bytes) -> Generator:
    """A task or channel of the asking process, or of a third one, comes or goes as subscriber of a channel of this one;
    `what` is the name of the method that is called. Raises PycosError when there is no such channel (any more)."""
    channel = Channel.named(args["name"])
    if channel is None:
        raise PycosError("there is no channel %r any more" % args["name"])
    answer = yield _AtHome(peer.network, getattr(channel, what), deserialize(payload))
    return {"status": answer.value}


def _locate_channel(name: str, location: Optional[Location] = None, timeout: Optional[float] = None) -> Any:
    """The channel registered as `name`: of this process, else of any peer, now or in the future, or only of the process
    at `location`. Use with yield. Gives None when `timeout` seconds (None: for ever) were not enough."""
    return _locate("channel", name, location, timeout)


Channel.locate = staticmethod(_locate_channel)          # type: ignore[attr-defined]
Channel.answers_until = staticmethod(lambda timeout: _Answers(timeout) if _network is not None else None)
Channel.spread = staticmethod(_spread)


# -- services ----------------------------------------------------------------------------------------------------------


class RPS:
    """A generator function that tasks of other processes may call; each call is a task of its own.

        RPS(function).register()                        where the function is
        rps = yield RPS.locate("function")              elsewhere
        rtask = yield rps(1, x=2)                       starts it there; None when that failed (logged)
        value = yield rtask()                           waits for its end; a MonitorStatus when it failed

    Raises RuntimeError when `method` is no generator function (or async function). Any thread.
    """

    location: Optional[Location] = None

    def __init__(self, method: Callable, name: Optional[str] = None) -> None:
        if not (inspect.isgeneratorfunction(method) or inspect.iscoroutinefunction(method)):
            raise RuntimeError("RPS takes a generator function or an async function, not %r" % (method,))
        self.method = method
        self.name = name or method.__name__
        self._monitors: List[Task] = []

    def __repr__(self) -> str:
        return self.name if self.location is None else "%s@%s" % (self.name, self.location)

    @staticmethod
    def named(name: str) -> Optional["RPS"]:
        """The service that this process has registered by that name. Any thread."""
        return NAMES.get(("rps", name))

    def register(self) -> int:
        """Let others, in this process and others, find it with `RPS.locate(name)`, and call it; those that wait for the
        name are told. Never waits. Any thread. Returns 0 (also when it is registered already), or -1 when the name is
        another service's."""
        if NAMES.setdefault(("rps", self.name), self) is not self:
            return -1
        for watcher in NAME_WATCHERS:
            watcher("rps", self.name, self)
        return 0

    def unregister(self) -> int:
        """Take the name back: it cannot be found or called any more. Any thread. Returns 0, or -1 when it was not
        registered."""
        return _forget_name(("rps", self.name), self)

    @staticmethod
    def locate(name: str, location: Optional[Location] = None, timeout: Optional[float] = None) -> Any:
        """The service registered as `name`: of this process, else of any peer, now or in the future, or only of the
        process at `location`. Use with yield. Gives None when `timeout` seconds (None: for ever) were not enough."""
        return _locate("rps", name, location, timeout)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Start a task of this process, as other processes do by a reference; gives it, or None when the arguments do
        not fit (logged). Use with yield, so that the caller need not know which of the two it has."""
        try:
            task = self.start(args, kwargs)
        except TypeError as error:
            log.error("RPS %r was not called: %s", self, error)
            return Value(None)
        self._forget_ended()
        for monitor in self._monitors:
            task.notify(monitor)
        return Value(task)

    def start(self, args: tuple, kwargs: dict) -> Task:
        """Start a task of this process. Raises TypeError when the arguments do not fit. Any thread."""
        return Task(self.method, *args, **kwargs)

    def monitor(self, task: Task) -> int:
        """Have a `MonitorStatus` sent to `task` at the end of each task that is started through this object. Any
        thread. Returns 0, or -1 when `task` is no task."""
        if not isinstance(task, Task):
            return -1
        self._forget_ended()
        self._monitors.append(task)
        return 0

    def _forget_ended(self) -> None:
        """Keep the monitors that may still take a message."""
        self._monitors = [task for task in self._monitors if task.reachable()]

    def close(self) -> int:
        """-1: only references to services of other processes can be closed."""
        return -1


class RemoteRPS(_ByName, RPS):
    """Reference to a service of another process, from `RPS.locate` or from a message (N32 to N37).

    Calls may be made one after the other or at the same time, each starts a task there: ``rtask = yield rps(...)``,
    then ``value = yield rtask()``. `monitor` counts for the calls that are made through this object; `close` ends
    these, and no others. Equal to another reference to the same service.
    """

    def __init__(self, peer: Peer, name: str) -> None:
        super().__init__(peer, name)
        self.closed = False
        self.running: Dict[ServiceTask, None] = {}      # changed in the user kernel's thread only
        self._monitors = []

    def _refuse(self) -> int:
        """Works in the service's own process only: -1."""
        return -1

    register = unregister = _refuse

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Start a task in the service's process; gives a reference to it, a `ServiceTask`, or None when that failed
        (logged): closed, arguments that cannot be pickled or do not fit, no such service any more, no answer within
        `Settings.message_timeout_s`. Use with yield. After a missing answer the task may run there all the same."""
        if self.closed:
            log.error("RPS %r was not called: it is closed", self)
            return Value(None)
        try:
            data = serialize((args, kwargs))
        except Exception as error:      # pickling runs code of the user's
            log.error("RPS %r was not called: %s", self, _unsendable(error))
            return Value(None)
        if not self.reachable():            # as for a `RemoteTask`
            log.warning("RPS %r was not called: %s is gone: %s", self, self.peer, self.peer.reason)
            return Value(None)
        return _ServiceCall(self.peer.network, self._call, data)

    def _call(self, data: bytes) -> Generator:
        """Have the task started; a system task. `ServiceTask` is made before the answer comes, as its end may be told
        before."""
        number = next(_numbers)
        rtask = ServiceTask(self)
        monitored = self.peer.network.tasks.monitored
        monitored[number] = rtask, _Ending(rtask)       # its end may be told before it is said to have begun
        try:
            reply, _ = yield self.peer.request("rps.call", {"name": self.name, "id": number}, data,
                                               settings.message_timeout_s)
        except PycosError as error:
            monitored.pop(number, None)
            log.warning("RPS %r was not called: %s", self, error)
            return None
        rtask.begins(reply["task"], reply["name"])
        return rtask

    def monitor(self, task: Task) -> int:
        """As `RPS.monitor`; 0, or -1 when closed or `task` is no task."""
        return -1 if self.closed else super().monitor(task)

    def close(self) -> int:
        """Terminate the tasks that were started through this reference and use it no more. Any thread. Returns 0, or -1
        when it was closed before."""
        if self.closed:
            return -1
        self.closed = True
        for rtask in list(self.running):
            rtask.terminate()
        return 0

    def told(self, status: MonitorStatus) -> None:
        """A task that was started through this reference has ended: tell the monitors, in the order they were named.
        User kernel's thread."""
        self._forget_ended()
        for monitor in self._monitors:
            monitor.send(status)


class _ServiceCall(_Remote):
    """A user task calls a service. Should it be ended before the answer comes, that is waited for all the same: what
    has begun there is one of the tasks that the reference has started."""

    __slots__ = ()

    def abandon(self, task: Task) -> None:
        """Nobody waits for the result."""


class ServiceTask(RemoteTask):
    """Reference to a task that an RPS has started (N34): a `RemoteTask` whose exit value can be waited for by who
    called it, ``yield rtask()`` or ``yield rtask.finish(timeout)`` in a task, ``rtask.value(timeout)`` in a thread.

    They give what the task returned, None when it was terminated, a `MonitorStatus` when it failed or its process is
    lost (the type is `PeerLost` then), None also when `timeout` seconds were not enough. Passed on to another process
    it is a plain `RemoteTask` there: the exit value goes to the caller alone.
    """

    __slots__ = ("rps",)
    finish = __call__ = Task.finish     # type: ignore[assignment]
    is_alive = Task.is_alive

    def __init__(self, rps: RemoteRPS) -> None:
        """Before it is known whether it begins, and as what: see `begins`."""
        super().__init__(rps.peer, 0, rps.name)
        self.rps = rps
        self.generator = "elsewhere"    # until it has ended
        self.watchers = self.interruption = None

    def begins(self, task_id: int, name: str) -> None:
        """It has begun there, with that id and name. Engine."""
        self.id, self._name = task_id, name
        self.kernel.call(self._note_begin)

    def _note_begin(self) -> None:
        """In the user kernel's thread: it runs, unless its end was told first. It is to end if the service's reference
        was closed before it was said to have begun."""
        if self.generator is not None:
            self.rps.running[self] = None
            if self.rps.closed:
                self.terminate()

    def ended(self, status: MonitorStatus) -> None:
        """It has ended there, or is lost. Any thread."""
        self.kernel.call(self._note_end, status)

    def _note_end(self, status: MonitorStatus) -> None:
        """In the user kernel's thread: who waits for the exit value goes on, the monitors are told."""
        self.rps.running.pop(self, None)
        self.outcome = status.value if status.type is StopIteration else status
        self.generator = None
        watchers, self.watchers = self.watchers, None
        for watcher in watchers or ():
            watcher(self)
        self.rps.told(status)


class _Ending:
    """In the place of a monitor: what is told of the end of a task goes to its reference. (The reference itself cannot
    stand there: its `send` is for messages to the task.)"""

    __slots__ = ("rtask",)

    def __init__(self, rtask: ServiceTask) -> None:
        self.rtask = rtask

    def send(self, status: MonitorStatus) -> None:
        """The end was told."""
        self.rtask.ended(status)

    @staticmethod
    def reachable() -> bool:
        """As of a task: it wants to hear of the end."""
        return True


def _on_rps_call(peer: Peer, args: dict, payload: bytes) -> dict:
    """A peer calls a service of this process. The task belongs to the user kernel like any other; only its end is told
    to the caller. Raises PycosError, which reaches the caller's log, when there is no such service or the arguments do
    not fit."""
    rps = RPS.named(args["name"])
    if rps is None:
        raise PycosError("no function is registered as %r there any more" % args["name"])
    try:
        positional, keywords = deserialize(payload)
        task = rps.start(positional, keywords)
    except Exception as error:          # unpickling runs code of the user's; a TypeError tells of the wrong arguments
        raise PycosError("the call of %r was refused: %s: %s" % (args["name"], type(error).__name__, error)) from error
    _watch_for(peer, task, args["id"])
    return {"task": task.id, "name": task.name}


def _on_spread_event(peer: Peer, event: str, _reason: str) -> None:
    """Watcher of peers: who is lost answers nothing, and subscribes to nothing, any more."""
    if event == "lost":
        peer.network.passing.pop(peer, None)
        for number, answers in list(_awaited.items()):
            if answers.open.get(number) is peer:
                answers.answer(number, 0)
        Channel.drop_far(lambda subscriber: subscriber.peer is peer)


def serve_channels(network: Network) -> None:
    """Let `network` carry messages of channels, and calls of services. Before it begins, after `serve_tasks`."""
    network.frame_handlers.update({SPREAD: _on_spread, REACHED: _on_reached})
    network.accountants[SPREAD] = _spread_reports
    for what in ("subscribe", "unsubscribe"):
        network.on_request("channel." + what, functools.partial(_on_change, what))
    network.on_request("channel.gone", _on_channel_gone)
    network.on_request("rps.call", _on_rps_call)
    network.on_peer(_on_spread_event)


for _kind, _class, _remote in (("channel", Channel, RemoteChannel), ("rps", RPS, RemoteRPS)):
    _REVIVERS[_kind] = functools.partial(_revive_named, _class.named, _remote)              # type: ignore[attr-defined]
    copyreg.pickle(_class, functools.partial(_reduce_named, _kind, _class.named))           # type: ignore
    copyreg.pickle(_remote, functools.partial(_reduce_remote, _kind))                       # type: ignore[arg-type]
copyreg.pickle(ServiceTask, _reduce_remote_task)                                            # type: ignore[arg-type]


# ======================================================================================================================
# 24. Peers by name                                                     who is there, who comes and goes, and telling so
# ======================================================================================================================
#
#   request peer.relay {[roles]}: announce the asker to those that know the other end, and to those of its networks that
#                    have one of these roles (a sum of ROLES; else to plain peers); it answers {} and
#   notice peer.meet {process, addresses}: connect to that process; sent to its peers, and to those it finds soon, about
#                    the asker, and to the asker about each of them: of two networks often one alone has a way to the
#                    other
#   request peer.time {}, answered with {clock}, seconds since 1970 by the clock there
#
# How a process becomes a peer, whatever lies between the two:
#
#   same network           discovery finds it (section 21)
#   another network        `peer(Location)` or the option `peers` name it; `peer(host)` finds all processes of a host
#   many there             `peer(location, relay=True)`: a process there, the relay, makes it known to all that it knows
#                          or finds, and these to it; a relay passes nothing on but the addresses
#   behind NAT             it dials; or the gateway hands one port on to it, and it says so (`ext_ip_addr`)
#   UDP is blocked         whatever names a port does without UDP
#
# Peers are told from each other by their process ids. A name is a label that several processes may have: `locate` gives
# any of them. An address is where a process was reached, and may change.
#
# A peer that is named as an option is tried until it answers. Its secret may be another one because somebody has not
# copied the file yet, or because another program has taken its port for a while: neither is for ever, so who was
# refused comes again, too, only seldom. Nobody can keep two processes apart longer than he goes on doing so.
#
# A relay tells both ends, and each of them dials: where one alone has a way to the other, that one gets through, and
# the other says once that it could not. A dial that was started by an introduction goes to that process id alone, and
# is forgotten when it has ended (`_meeting`). Who asked to be announced is remembered for `_RELAY_S`, no longer than a
# search takes. Watchers are told 'offline' once, whether the peer is only cut off or lost, and 'online' when it is
# back.

_RELAY_S = PING_TIMES_S[-1] + 1.0       # peers found within this time after a relay was asked for are told, too
_NAMED_AGAIN_S = 0.5                    # a peer named as an option that is not there yet: pauses double from here ...
_NAMED_AGAIN_MOST_S = 10.0              # ... to here
_REFUSED_AGAIN_S = 30.0, 600.0          # likewise, where one is that has another secret


class PeerStatus:
    """Message about a peer: its `location`, its `name`, and `status`, which is `Online` or `Offline`."""

    Online, Offline = 1, 0

    def __init__(self, location: Optional[Location], name: str, status: int) -> None:
        self.location, self.name, self.status = location, name, status

    def __repr__(self) -> str:
        return '"%s" @ %s is %s' % (self.name, self.location, "online" if self.status else "offline")


def _reduce_peer_status(status: PeerStatus) -> tuple:
    return _revive, ("peer status", status.location, status.name, status.status)


HostInfo = namedtuple("HostInfo", "family ip ifn broadcast netmask")
HostInfo.__doc__ = """An address of a host: `family` (of the socket module), `ip`, and if it is one of this machine's
the name `ifn` of its interface, where its network is searched for peers (`broadcast`), and its `netmask`; else None."""


class _Roster:
    """Which peers are online, and who wants to know; introduces peers to each other where that was asked for. One
    for each network, as `Network.roster`; engine only."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.online: Dict[Peer, None] = {}
        self.watchers: Dict[Task, None] = {}
        self._wanted: Dict[Task, str] = {}          # system tasks that wait for a peer of that name
        self._relays: Dict[Peer, float] = {}        # who asked to be announced -> until when
        self._meeting: set = set()                  # process ids that are dialled because somebody introduced them
        network.on_peer(self._on_peer)
        network.on_request("peer.relay", self._on_relay)
        network.on_request("peer.meet", self._on_meet)
        network.on_request("peer.time", self._on_time)

    @staticmethod
    def _on_time(_peer: Peer, _args: dict, _payload: bytes) -> dict:
        """What this machine's clock says, for one who compares clocks or takes the time of a round trip."""
        return {"clock": time.time()}

    def _on_peer(self, peer: Peer, event: str, _detail: str) -> None:
        """A peer has come or gone: tell those that watch, or wait for its name, and introduce it to who asked a short
        while ago to be announced here."""
        if event != "online":
            if self.online.pop(peer, self) is None:     # it was: told once, though 'offline' and 'lost' may both come
                self._tell(peer, PeerStatus.Offline)
            return
        self.online[peer] = None
        self._tell(peer, PeerStatus.Online)
        for task, name in list(self._wanted.items()):
            if name == peer.name:
                del self._wanted[task]                  # another one of that name may come before it has gone on
                task.resume(peer.location)
        now = self.network.engine.clock()
        self._relays = {asker: until for asker, until in self._relays.items() if until > now}
        for asker in self._relays:
            self.introduce(asker, peer)

    def _tell(self, peer: Peer, status: int) -> None:
        for task in list(self.watchers):
            if task.send(PeerStatus(peer.location, peer.name, status)):
                del self.watchers[task]                 # it has ended

    def watch(self, task: Optional[Task]) -> None:
        """Tell `task` who comes and goes from now on, and who is here; None: tell nobody any more."""
        if task is None:
            self.watchers.clear()
        elif task not in self.watchers:
            add_listener(self.watchers, task)
            for peer in self.online:
                task.send(PeerStatus(peer.location, peer.name, PeerStatus.Online))

    def find(self, name: str, timeout: Optional[float]) -> Generator:
        """Location of a peer of that name, now or in the future; None when time is up. A system task."""
        for peer in self.online:
            if peer.name == name:
                return peer.location
        task = self.network.engine.current
        self._wanted[task] = name
        try:
            return (yield Suspend(timeout))
        finally:
            self._wanted.pop(task, None)

    # -- relays --------------------------------------------------------------------------------------------------------

    def _on_relay(self, asker: Peer, args: dict, _payload: bytes) -> dict:
        """Announce the asker to those that are here, and to those that a search finds now: whoever answers comes
        online, and is introduced by `_on_peer`."""
        roles = args["roles"] if "roles" in args else ROLES["peer"]
        if not isinstance(roles, int) or not 0 < roles <= sum(ROLES.values()):
            raise ProtocolError("peer.relay: roles must be a sum of those there are, not %.80r" % (roles,))
        self._relays[asker] = self.network.engine.clock() + _RELAY_S
        for peer in self.online:
            self.introduce(asker, peer)
        if self.network.discovery is not None:
            self.network.discovery.search(roles)
        return {}

    @staticmethod
    def introduce(asker: Peer, peer: Peer) -> None:
        """Have `peer` and `asker` connect to each other."""
        if peer is not asker:
            for one, other in ((peer, asker), (asker, peer)):
                one.notify("peer.meet", {"process": other.process_id.hex(),
                                         "addresses": [[at.bare, at.port] for at in other.locations]})

    def _on_meet(self, _peer: Peer, args: dict, _payload: bytes) -> None:
        """Somebody introduces a process: connect to it. That process and no other must answer, as the same private
        address may lead to another one here."""
        process_id = bytes.fromhex(args["process"])
        if process_id != self.network.process_id and process_id not in self._meeting and not self._knows(process_id):
            locations = [Location(host, port) for host, port in args["addresses"][:_MOST_SAID]]
            self._meeting.add(process_id)
            _Dial(self.network, locations, functools.partial(self._met, process_id), process_id).next()

    def _knows(self, process_id: bytes) -> bool:
        known = self.network.peers.get(process_id)
        return known is not None and known.online

    def _met(self, process_id: bytes, peer: Optional[Peer], error: Optional[Exception], _gone: bool) -> None:
        """The attempt has ended."""
        self._meeting.discard(process_id)
        if peer is None and not self._knows(process_id):        # it may have found the way here
            self.network.complain(logging.WARNING, "a peer was introduced to this process that it cannot reach: %s; "
                                  "without a way between the two networks they can only be served by processes that "
                                  "have both", str(error))


class _Switch(int):
    """A truth value that is also called to set it: programs of different ages do either."""

    change: Callable[[bool], None]

    def __call__(self, flag: bool = True) -> None:
        self.change(flag)


def _location(place: Any) -> Location:
    """A `Location`, or what is written as host, host:port or [v6]:port."""
    return place if isinstance(place, Location) else Location.parse(place, settings.net_port)


class PeerCalls:
    """The methods of `Pycos` that are about peers."""

    network: Network

    def locate(self, name: str, timeout: Optional[float] = None) -> Any:
        """Location of the process that calls itself `name`, this one included; any of them, if several do. Waits for
        one to come online for at most `timeout` seconds (None: for ever), then gives None. Use with yield; starts the
        network."""
        network = self.network
        if name == network.name:
            return Value(network.locations[0])
        return _Remote(network, network.roster.find, name, timeout)

    def peers(self) -> List[Location]:
        """Locations of the peers that are online at this moment, those where they were reached; empty without a
        network. Any thread."""
        known = list(_network.peers.values()) if _network is not None else []
        return [peer.location for peer in known if peer.online and peer.location]

    def peer(self, loc: Any, udp_port: int = 0, stream_send: bool = False, relay: bool = False,
             broadcast: bool = False) -> Any:
        """Make processes peers. Use with yield. Gives 0, or -1 with a line in the log that says why not.

        `loc` is a `Location` or "host:port", which is connected to (a connection may take `Settings.connect_s`, all
        together `Settings.message_timeout_s`); again changes nothing. Or it is a host alone (port 0 likewise): then all
        processes there are asked at `udp_port` (0: the usual one) to show themselves, which takes a moment longer than
        this call; a line in the log tells when nobody did within ten seconds. `relay` (or `broadcast`) has that process
        announce this one to those that it knows, and on its networks: they and this one connect to each other as far as
        there is a way. Connections are kept open, so `stream_send` makes no difference.

        A link-local IPv6 address is written with its interface, "[fe80::1%eth0]:9705"; without it all are tried.
        Raises ValueError when `loc` is no address.
        """
        location = loc if isinstance(loc, Location) else Location.parse(loc, 0)
        if location.port:
            return _Remote(self.network, self._contact, location, relay or broadcast)
        return _Remote(self.network, self._ask_host, location.addr, Location(location.addr, udp_port or 0).port)

    def _contact(self, location: Location, relay: bool = False) -> Generator:
        """Connect to a process, and have it announce this one; a system task. Gives 0, or -1 with a line in the log."""
        try:
            peer = yield self.network.connect([location], timeout=settings.message_timeout_s)
            if relay:
                yield peer.request("peer.relay", timeout=settings.message_timeout_s)
        except PycosError as error:
            log.warning("no peer: %s", error)
            return -1
        return 0

    def _contact_later(self, location: Location) -> Generator:
        """Contact a peer that was named as an option and may be started later; a system task. Ends with the first
        connection. Where a process has another secret, what is there later may have the right one: that is tried
        seldom, as the process there logs it each time. The log here has one line for either case, and not one for each
        attempt."""
        pauses = {PycosError: (_NAMED_AGAIN_S, _NAMED_AGAIN_MOST_S), AuthenticationError: _REFUSED_AGAIN_S}
        pause_s, said = 0.0, set()
        while not self.network.closing:
            try:
                yield self.network.connect([location], timeout=settings.message_timeout_s)
                return
            except PycosError as error:
                kind = AuthenticationError if isinstance(error, AuthenticationError) else PycosError
                log.log(logging.DEBUG if kind in said else logging.WARNING, "no peer%s: %s; trying again",
                        "" if kind is AuthenticationError else " yet", error)
            said.add(kind)
            least_s, most_s = pauses[kind]
            pause_s = min(max(2 * pause_s, least_s), most_s)
            yield Suspend(pause_s)

    def _ask_host(self, host: str, udp_port: int) -> Generator:
        """Ask the processes at `host` to show themselves; a system task."""
        network = self.network
        address = host if is_link_local(host) else (yield _InThread(network, self.host_ipaddr, host))
        if address is None:
            log.warning("no peer: the host name %r cannot be resolved: use its IP address", host)
            return -1
        discovery = self._searching(udp_port)
        own = is_loopback(address) or any(interface.address == address for interface in interfaces())
        if not discovery.search(ROLES["peer"], udp_port, [_EVERYBODY_HERE if own else address]):
            return -1
        network.call_later(PING_TIMES_S[-1] + 1.0, self._note_silence, host, address, udp_port or discovery.udp_port)
        return 0

    def _note_silence(self, host: str, address: str, udp_port: int) -> None:
        """A host was asked to show its processes: say so if none has."""
        if not any(at.addr == address for peer in self.network.peers.values() for at in peer.locations):
            log.warning("no peer: nobody at %s has answered at UDP port %d; is it open there, and the secret and the "
                        "cluster's name the same? Naming host:port does without UDP", host, udp_port)

    def peer_status(self, task: Optional[Task]) -> int:
        """Have a `PeerStatus` sent to `task` for each peer that comes or goes, and for those that are here; None: send
        them to nobody any more. Any thread. Returns 0, or -1 when `task` is no task."""
        if task is not None and not isinstance(task, Task):
            return -1
        network = self.network
        network.post(network.roster.watch, task)
        return 0

    def undelivered(self, task: Optional[Task]) -> int:
        """Have an `Undelivered` sent to `task` for each message of `RemoteTask.send`, `Channel.send` or
        `RemoteChannel.send` that was not confirmed when its recipient's process ended or was given up; None: to nobody
        any more. More tasks than one can ask. A line of the log counts them when nobody does. Messages that were
        confirmed are in the recipient's mailbox; of `deliver` the result tells. Any thread. Returns 0, or -1 when
        `task` is no task."""
        if task is not None and not isinstance(task, Task):
            return -1
        listeners = self.network.undelivered
        self.network.post(listeners.clear) if task is None else self.network.post(add_listener, listeners, task)
        return 0

    def close_peer(self, location: Any, timeout: Optional[float] = None) -> Any:
        """Part with the peer at `location`, once it has what was sent to it; both ends see the other go offline, `peer`
        can bring it back. Use with yield. Gives 0, or -1 without such a peer, or when `timeout` seconds did not do."""
        return _Remote(self.network, self._close_peer, location, timeout)

    def _close_peer(self, location: Any, timeout: Optional[float]) -> Generator:
        """Say goodbye to the peer there; a system task. Gives 0 or -1."""
        try:
            peer = self.network.peer_at(_location(location))
        except ValueError as error:
            log.warning("close_peer: %s", error)
            return -1
        if peer is None:
            log.warning("close_peer: there is no peer at %s", location)
            return -1
        parting = self.network.spawn(_say_goodbye, peer, "it has closed the connection", "closed by this process")
        yield Join(parting, settings.message_timeout_s if timeout is None else timeout)
        return -1 if parting.is_alive() else 0

    def discover_peers(self, port: int = 0) -> int:
        """Search the local networks for peers now and for ten seconds, at UDP `port` (0: the usual one); whoever
        answers comes online. Others find this process only if it was started with ``discover_peers=True``, or is a
        server of a node, which they do from now on. Any thread. Returns 0. Raises ValueError when `port` is none."""
        self.network.post(self._discover, Location(_EVERYBODY_HERE, port or 0).port)
        return 0

    def _discover(self, port: int) -> None:
        started = self.network.discovery is not None
        discovery = self._searching(port)
        discovery.search(ROLES["peer"], port)
        if not started:
            discovery.answer()

    def _searching(self, port: int = 0) -> Discovery:
        """This process's discovery. One that has none at first (a server of a node) gets one when its program wants to
        search, at that UDP port or the usual one, and is a peer like others then; engine only."""
        network = self.network
        if network.discovery is None:
            network.discovery = Discovery(network, port or settings.net_port)
            network.discovery.roles |= ROLES["peer"]
        return network.discovery

    @property
    def ignore_peers(self) -> Any:
        """Whether searches of others are not answered; can be assigned, or called with the new value. Those that are
        peers already stay so, and whoever names this process's address still gets in. Any thread."""
        discovery = self.network.discovery
        switch = _Switch(discovery is not None and discovery.ignore)
        switch.change = functools.partial(setattr, self, "ignore_peers")
        return switch

    @ignore_peers.setter
    def ignore_peers(self, flag: bool) -> None:
        """Answer no searches of others, or do so again (N24). Any thread; counts from the next ping."""
        if self.network.discovery is not None:
            self.network.discovery.ignore = bool(flag)

    @staticmethod
    def host_ipaddr(host: str) -> Optional[str]:
        """Address of a host as text; None when its name cannot be resolved. Blocks for as long as that takes."""
        info = PeerCalls.host_addrinfo(host)
        return None if info is None else info.ip

    @staticmethod
    def host_addrinfo(host: Optional[str] = None, socket_family: Optional[int] = None,
                      ipv4_multicast: bool = False) -> Optional[HostInfo]:
        """What is known of an address of `host` (None: the best one of this machine), of that family if one is given;
        None when it cannot be resolved. `broadcast` is where its network is searched: with `ipv4_multicast` the IPv4
        group, for an IPv6 address that group, None if it is no address of this machine. Blocks for as long as a name
        takes to be resolved."""
        own = host or own_addresses(["::" if socket_family == socket.AF_INET6 else "0.0.0.0"])[0]
        try:
            found = socket.getaddrinfo(own, None, socket_family or 0, socket.SOCK_STREAM)
        except OSError:
            return None
        family, _, _, _, sockaddr = min(found, key=lambda item: item[0] == socket.AF_INET6)     # IPv4 if it has both
        address = address_text(sockaddr)
        interface = next((interface for interface in interfaces() if interface.address == address), None)
        if interface is None:
            return HostInfo(family, address, None, None, None)
        group = settings.ipv6_group if family == socket.AF_INET6 else settings.ipv4_group if ipv4_multicast else (
            _EVERYBODY_HERE if is_loopback(address) else None)
        netmask = ipaddress.ip_network("%s/%d" % (address.partition("%")[0], interface.prefix), strict=False).netmask
        return HostInfo(family, address, interface.name, group or interface.broadcast, str(netmask))


class _InThread(_Elsewhere):
    """A system task waits for the result of a function that may block, which is called in a thread of its own."""

    __slots__ = ()

    def _start(self) -> None:
        threading.Thread(target=self._run, name="pycoslite call of %s" % self.function.__name__, daemon=True).start()


_REVIVERS["peer status"] = PeerStatus
copyreg.pickle(PeerStatus, _reduce_peer_status)         # type: ignore[arg-type]


# ======================================================================================================================
# 25. File transfer                                               windows of chunks; a file is there whole or not at all
# ======================================================================================================================
#
# Spec. S sends a file, R receives it. S numbers its files; a large one also has a token, which only S and R know.
#
#   S > R  request file.offer {id, name, dir, place, size, mtime_ns, mode, overwrite; digest | bytes, or
#          token, dials, line}. A file of at most `_SMALL_FILE` bytes comes along, with its CRC-32 as `digest`.
#          `place` is "" for `dest_path`, or a directory that another module has given a name. R answers {state}:
#            'same'  it is there already: size, permissions, and time (to a second, as some file systems keep it)
#            'other' another file is there and `overwrite` is false; with {size, mtime, mode} of that file
#            'busy'  as many files as can be are on their way to R: S offers it again a moment later
#            'done'  it was small, and has its name now
#            'go'    R waits for the bytes, with {check}, the checksum that it makes of them: 'sha256' or 'crc32', see
#                    below. They come one way or the other:
#   1      a TCP connection for this file alone, dialled by the end that `dials` names ('S' or 'R': that which dialled
#          the link, to the same address), with the handshake of section 7, whose info has {"file": token}. On it
#          R > S  u64 bytes that are written: at once, after every `_TOLD_EVERY` bytes, and at the end
#          S > R  the file from the first such number on, to its end
#   2      through the link, when no connection can be made, or the link is encrypted, which the connection is not, or
#          has lanes (section 19), which carry more over a bad line than any one connection (`dials` is "" then, in both
#          cases); also when it is found out on the way that the line is such a one
#          S > R  request file.rest {id}, answered with {written}: connections are given up, chunks come from there on
#          S > R  frame 24 CHUNK    u64 id | bytes of the file, in order
#          R > S  frame 25 WRITTEN  u64 id | u64 bytes that are written
#   S > R  request file.end {id, digest}, answered with {} when the file has its name
#   S > R  notice file.abort {id}: S has given up;  R > S  notice file.refused {id, reason}: R has
#   R > S  notice file.undialled {id}: R cannot make a connection, S goes the other way
#   S > R  request file.delete {name, dir}, answered with {}
#
# What an offer says: name (the last part alone), dir (relative to the place; "" for itself), size in bytes, mtime_ns
# since the epoch, mode (permissions; bits beyond 0o777 are not taken over), overwrite. R believes none of it before it
# has looked: `_OFFER` has what each item must be, `_plain_name` and `_Folder` where the name may lead.
#
# The states of a transfer:
#
#   at S      goes on with                                   at R       goes on with
#   offered   carried ('go'), ended (else, or refused)       opening    receiving ('go'), ended (any other answer)
#   carried   carried: a connection was cut, so another is   receiving  receiving: a connection was cut; R waits for
#             made, and begins where R says; or the link               the next, or for chunks
#             takes over. all written: closing               receiving  all is there, and file.end: closing
#   closing   ended: R has answered                          closing    size and checksum are right: given its name,
#                                                                       answered; else discarded
#   any       failed: R refused or is lost, or took nothing  any        discarded: S gave up or is lost, or the disk is
#             for `timeout`                                             full; the sender is told why
#
# What comes is written to a file in the directory of the final name. It has none before it is complete, or where the
# system cannot do that (see `_Folder.create`) a temporary one. The final name is given in one step: until then an old
# file stays as it was. Directories are opened step by step, following no links, and everything is done relative to what
# was opened, where the platform can; where not, see `_Folder`.
#
# How much may come: a file has at most `max_file_size` bytes, all files below the first `dest_path`, with those that
# are on their way to it, `max_total_size` (`_Quota`), and what is announced and not written yet must find room on the
# disk. All three are looked at when a file is offered, and it cannot get larger than it was announced.
#
# Which checksum: it goes through the link, which is authenticated, so nobody can make it fit another file; but whether
# another file can be made to fit it depends on what carries the bytes. A link has MACs or TLS, so mistakes are all that
# is left: CRC-32. A connection of its own between two hosts carries neither: SHA-256; who meddles with it can make the
# transfer fail and nothing else. Unless it stays in the system, where only who rules that can get at it: CRC-32. `line`
# tells that (`_inner_line`): both ends make the same text of the running system, its network namespace, both addresses
# and ports of the link, which are to be this host's, and the token. The connection goes where the link goes.
# (On a processor with instructions for it, SHA-256 costs 0.55 ns a byte at either end, no other function of hashlib
# less than 0.5, CRC-32 0.23, and all else 0.6 at both ends together.)
# S keeps the checksums of files it has sent, for the next peer that gets the same file.
#
# On the disk or not: 0 from `send_file` says that the file is there for every program, and goes on being there if the
# receiving process ends. It does not say that it outlives a power failure, as it does not with cp, scp, rsync and curl:
# what would need that are programs that outlive it themselves, tasks do not, and `dest_path` is in the directory for
# temporary files unless the program says otherwise. A file that such a failure has caught is shorter (ext4, xfs and
# btrfs let a size grow when the data is on the disk), so it is not 'same' and sending it again mends it; for that no
# room is allocated in advance, which would leave zeros in the right size. `Settings.sync_files` = 1 at the receiver is
# for those who need more: written out (fsync) before the name is given, and the directories after that. Then 0 does
# say it; it doubles the time of large files here, and small ones take 0.5 to 3 ms more, on rotating disks 10 to 30.
#
# Cost: bytes go from the disk to the connection by sendfile, which does not bring them into the process; both ends
# check them once, while they are in the processor's cache, and R copies them once, from the connection to the file. A
# second thread at R, to check or to write while the next bytes come, was tried: with both ends on two cores it gains
# nothing, and where CRC-32 is made it costs a fifth to a third more processor time, for bytes that have left the cache
# of the core that looks at them. (What splice saves, reading it back for the checksum takes; receiving into mapped
# memory takes twice as long; and a sender that reads mapped memory dies of a file that becomes shorter.)
#
# Threads: disks and hashes are never waited for by the engine. Short calls run in `_Files.calls`, each transfer of a
# large file has a thread of `_Files.carriers` for as long as it takes, at either end. The engine and such a thread meet
# in `_Carried.changed` and in a queue (`_Incoming.items`, `_Outgoing.arrivals`); the engine never waits for either.

CHUNK, WRITTEN = 24, 25
_TRANSFER = struct.Struct(">Q")
_WRITTEN_BODY = struct.Struct(">QQ")
_SMALL_FILE = 256 * 1024                # fits into one request: one round trip and one call of a thread at either end
_PIECE = 1 << 20                        # sent before it is hashed, while it is still in the processor's cache; a chunk
_SPACE = 512 * 1024                     # received into: what has been hashed must not have left the cache when written
_TOLD_EVERY = 1 << 20
_SYNC_EVERY = 64 << 20                  # so many bytes are written out at a time: on a slow disk the last ones must not
                                        # take longer than the sender waits for an answer
_AHEAD_S = 0.1                          # a link has as many bytes of a file on their way as are written in this time,
_LEAST_AHEAD, _MOST_AHEAD = 2 << 20, 16 << 20       # within limits: other messages wait behind them
_MOST_INCOMING = 64                     # large files received at the same time; each has a thread
_LANES = 8                              # files sent to one peer at the same time; the others wait here
_BUSY_S = 0.05, 1.0                     # pauses before a busy receiver is asked again: the first, the longest
_CALLS = 8                              # threads for short calls
_TRIES = 3                              # connections in a row that carried nothing, before the link takes over; also
                                        # how often a directory is made that others delete at the same time
_PAUSE_S = 0.05                         # before a connection is made again
_WAKE_S = 1.0                           # a thread looks so often whether it is still wanted
_SETTLED_NS = 2_000_000_000
_MOST_KNOWN = 256                       # checksums of files that were sent, for the next peer that gets them
_MOST_STORED = 16 << 20                 # bytes of small files that wait for the disk; more are 'busy'
_DIR_FDS = {os.open, os.mkdir, os.stat, os.unlink, os.rmdir, os.rename} <= os.supports_dir_fd
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)
_NAMELESS = getattr(os, "O_TMPFILE", 0) if _DIR_FDS and os.link in os.supports_dir_fd else 0
_OPEN_FILES = "/proc/self/fd"
_NOT_SENDFILE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}      # this file system cannot
_DEFAULT = object()                     # as a timeout: Settings.message_timeout_s
_FilePoll = getattr(selectors, "PollSelector", selectors.SelectSelector)    # costs no descriptor, knows no largest one


class FileStat:
    """What `send_file` gives when another file is there already: its `st_size` in bytes, `st_mtime` in seconds since
    the epoch, and `st_mode`, as in os.stat_result.

    It compares greater than any number, so that programs that ask whether the result is negative, as those of old do,
    take it for what it is: no failure.
    """

    def __init__(self, st_size: int, st_mtime: float, st_mode: int) -> None:
        self.st_size, self.st_mtime, self.st_mode = st_size, st_mtime, st_mode

    def __repr__(self) -> str:
        return "FileStat(st_size=%d, st_mtime=%r, st_mode=0o%o)" % (self.st_size, self.st_mtime, self.st_mode)

    def __gt__(self, other: Any) -> bool:
        return isinstance(other, (int, float))

    def __lt__(self, other: Any) -> bool:
        return False

    __ge__, __le__ = __gt__, __lt__


class _Folder:
    """A directory below the one for received files. It is held open, so that nothing put in its place later leads
    elsewhere. A context manager, or to be closed. In a thread, as are all methods, which raise OSError.

    Where the platform has no calls relative to a directory (Windows), paths are used, and before each use it is made
    sure that they lead through the same directories as in the beginning, none of them a link or a junction; a file
    that was made is looked at through its path again. Windows does not rename a directory in which a file is open, nor
    those above it: so what was found while one is open goes on holding, and `rename` has one open. Elsewhere, who
    exchanges a directory between two system calls could still lead a file astray.
    """

    def __init__(self, base: str, relative: str, create: bool) -> None:
        """Open `relative` below `base`, making what is missing if `create`. Raises MisuseError for one that is not
        below it, OSError for a link or a file on the way."""
        base = os.path.realpath(base)
        plain = os.path.normpath(relative) == os.curdir
        self.path = base if plain else confined_path(base, relative)
        self.parts = [] if plain else os.path.relpath(self.path, base).split(os.sep)
        self.fds: List[int] = []
        self._met: List[Tuple[str, tuple]] = []     # without descriptors: (path of a directory, which one it is)
        if _DIR_FDS:
            self._descend(base, create)
        else:
            self._walk(base, create)

    def _walk(self, base: str, create: bool) -> None:
        """Without descriptors: see which directories the path leads through. Raises MisuseError for a link, OSError."""
        path = base
        self._met.append((path, _which_directory(path)))
        for part in self.parts:
            path = os.path.join(path, part)
            if create:
                self._check()
                try:
                    os.mkdir(path)
                except FileExistsError:
                    pass
            self._met.append((path, _which_directory(path)))

    def _check(self) -> None:
        """Without descriptors: raise MisuseError if the path leads elsewhere by now, OSError if nowhere."""
        for path, which in self._met:
            if _which_directory(path) != which:
                raise MisuseError("the directory %s was exchanged for another one meanwhile" % os.path.basename(path))

    def _descend(self, base: str, create: bool) -> None:
        """Open the parts one after the other: no link is followed, whoever may put one there meanwhile."""
        flags = os.O_RDONLY | os.O_DIRECTORY | _NO_LINKS
        try:
            self.fds.append(os.open(base, flags))
            for part in self.parts:
                self.fds.append(self._enter(part, flags, _TRIES if create else 1))
        except OSError:
            self.close()
            raise

    def _enter(self, part: str, flags: int, tries: int) -> int:
        """Open the directory `part` of the one that was opened last; with several `tries` it is made, again if somebody
        deletes it before it is open, as `del_file` does with an empty one."""
        if tries > 1:
            try:
                os.mkdir(part, dir_fd=self.fds[-1])
            except FileExistsError:
                pass
        try:
            return os.open(part, flags, dir_fd=self.fds[-1])
        except FileNotFoundError:
            if tries <= 1:
                raise
        return self._enter(part, flags, tries - 1)

    def __enter__(self) -> "_Folder":
        return self

    def __exit__(self, *_error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it; harmless when that was done."""
        while self.fds:
            os.close(self.fds.pop())

    def _at(self, name: str) -> tuple:
        """How calls of `os` name a file in it: (name, keywords). Raises as `_check`."""
        if self.fds:
            return name, {"dir_fd": self.fds[-1]}
        self._check()
        return os.path.join(self.path, name), {}

    def look(self, name: str) -> Optional[os.stat_result]:
        """What a regular file is like; None when there is none. Raises MisuseError when something else has the name: a
        link, which would lead elsewhere, a directory, a device, a pipe, which could block who opens it."""
        path, where = self._at(name)
        try:
            found = os.stat(path, follow_symlinks=False, **where)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(found.st_mode):
            raise MisuseError("%r is there and is no regular file" % name)
        return found

    def room(self) -> Optional[int]:
        """How many bytes the disk still takes from this user; None where it cannot be asked."""
        try:
            if not self.fds:
                return shutil.disk_usage(self.path).free
            found = os.statvfs(self.fds[-1])
        except OSError:                 # a file system that does not tell
            return None
        return found.f_bavail * found.f_frsize

    def create(self, name: str) -> Tuple[int, bool]:
        """Descriptor of a new file, and whether it has its name: without one, which Linux can do on most disks, nothing
        is left of it if this process is killed."""
        if _NAMELESS and self.fds and os.path.isdir(_OPEN_FILES):
            try:
                return os.open(os.curdir, _NAMELESS | os.O_WRONLY, 0o600, dir_fd=self.fds[-1]), False
            except OSError:             # not on this file system
                pass
        path, where = self._at(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINKS | getattr(os, "O_BINARY", 0)
        fd = os.open(path, flags, 0o600, **where)
        if not self.fds:
            self._look_behind(fd, path)
        return fd, True

    def _look_behind(self, fd: int, path: str) -> None:
        """Without descriptors: close and remove the file that was just made as `path` if it is elsewhere, and raise
        MisuseError or OSError."""
        made = os.fstat(fd).st_ino      # of the device, the two calls need not have the same notion on Windows
        try:
            self._check()
            if os.lstat(path).st_ino != made:
                raise MisuseError("the directory for it was exchanged for another one meanwhile")
        except (OSError, MisuseError):
            os.close(fd)
            if os.path.lexists(path) and os.lstat(path).st_ino == made:
                os.unlink(path)
            raise

    def name(self, fd: int, name: str) -> None:
        """Give the nameless file that is open as `fd` a name; FileExistsError if something has it. FileNotFoundError:
        the directory, in which nothing was to be seen, has been deleted."""
        os.link(os.path.join(_OPEN_FILES, str(fd)), name, dst_dir_fd=self.fds[-1], follow_symlinks=True)

    def rename(self, name: str, new: str) -> None:
        """Give a file another name, in the place of what had it, in one step: whoever opens that name gets either the
        old file or the new one. A link of that name is replaced, not followed."""
        if self.fds:
            os.rename(name, new, src_dir_fd=self.fds[-1], dst_dir_fd=self.fds[-1])
            return
        path = os.path.join(self.path, name)
        pin = self._pin(path + ".pin")
        try:
            self._check()
            os.replace(path, os.path.join(self.path, new))
        finally:
            if pin is not None:
                os.close(pin)

    def sync(self) -> None:
        """Have its names, and its own, written out, where the system can be asked for that."""
        for fd in self.fds:
            os.fsync(fd)

    @staticmethod
    def _pin(path: str) -> Optional[int]:
        """Windows: a new file, open, which is gone when it is closed; see the class. None elsewhere."""
        temporary = getattr(os, "O_TEMPORARY", 0)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | temporary, 0o600) if temporary else None

    def mark(self, fd: int, name: str, mode: int, mtime_ns: int) -> None:
        """Give the file that is open as `fd` its permissions and time, through `fd` where the system can: `name` could
        be another file's by now."""
        path: Any = fd if os.chmod in os.supports_fd and os.utime in os.supports_fd else self._at(name)[0]
        os.chmod(path, mode)
        os.utime(path, ns=(mtime_ns, mtime_ns))

    def remove(self, name: str) -> None:
        """Delete a file."""
        path, where = self._at(name)
        os.unlink(path, **where)

    def prune(self) -> None:
        """Remove it, and what it is in, as far as they are empty and below the directory for received files."""
        try:
            for depth in range(len(self.parts) - 1, -1, -1):
                if self.fds:
                    os.rmdir(self.parts[depth], dir_fd=self.fds[depth])
                else:
                    self._check()
                    os.rmdir(self._met.pop()[0])
        except (OSError, MisuseError):  # not empty, or somebody is at work there
            pass


_MEANS_ANOTHER = 0x20000000             # in st_reparse_tag: a junction, a link, a mount point (a "name surrogate")


def _which_directory(path: str) -> tuple:
    """What tells a directory from all others. Raises MisuseError for a link, or a junction of Windows, OSError for what
    is not there. In a thread."""
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or getattr(found, "st_reparse_tag", 0) & _MEANS_ANOTHER:
        raise MisuseError("%s, on the way to it, is no directory" % os.path.basename(path))
    return found.st_dev, found.st_ino


def _plain_name(base: str, folder: str, name: str) -> str:
    """`name`, if it is that of a file in `folder` below `base`, and nothing else. Raises MisuseError for one with a
    directory in it, and for what `confined_path` refuses. In a thread."""
    if not name or name != os.path.basename(name) or name in (os.curdir, os.pardir):
        raise MisuseError("%r is no name of a file" % name)
    confined_path(base, os.path.join(folder, name))
    return name


# -- checksums ---------------------------------------------------------------------------------------------------------

class _Crc32:
    """CRC-32, with the methods of hashlib's objects: against mistakes, not against who makes them on purpose."""

    def __init__(self) -> None:
        self._sum = 0

    def update(self, data: Any) -> None:
        """Take bytes."""
        self._sum = binascii.crc32(data, self._sum)

    def hexdigest(self) -> str:
        """What it is so far."""
        return "%08x" % self._sum


_CHECKS: Dict[str, Callable] = {"sha256": hashlib.sha256, "crc32": _Crc32}


def _checksum(kind: str, data: bytes) -> str:
    """That of `data`, in hexadecimal."""
    check = _CHECKS[kind]()
    check.update(data)
    return check.hexdigest()


@functools.lru_cache(maxsize=None)
def _network_stack() -> str:
    """What tells the running system, and the network namespace in it, from all others; "" where that is not known."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip() + os.readlink("/proc/self/ns/net")
    except OSError:
        return ""


def _inner_line(peer: Peer, token: str) -> str:
    """For a link that does not leave this system: what only the other end of that very connection can say, too; else
    "". A relay in between makes two connections, whose ports differ. Engine."""
    sock, stack = peer.link.sock if peer.link is not None else None, _network_stack()
    if sock is None or not stack or not _is_near(sock):
        return ""
    try:
        ends = sorted("%s %d" % (address_text(at), at[1]) for at in (sock.getsockname(), sock.getpeername()))
    except OSError:                     # it has been reset
        return ""
    return hashlib.sha256("\n".join([stack, token] + ends).encode("utf-8", "backslashreplace")).hexdigest()


# -- connections for one file ------------------------------------------------------------------------------------------

_FAILURES = (OSError, AuthenticationError, ProtocolError)       # of a connection; also OperationTimeout, see its users


def _dialled_from(peer: Peer) -> str:
    """Which end can dial the other for a connection beside the link: 'here', 'there', or '' if there must be none.
    Engine."""
    link = peer.link
    if link is None or link.encrypted:
        return ""
    return "here" if link.role == "dial" else "there"


def _link_address(peer: Peer) -> Optional[tuple]:
    """Where the link that was dialled from here leads; None when there is none (any more). Engine."""
    try:
        return peer.link.sock.getpeername() if _dialled_from(peer) == "here" else None
    except OSError:                     # broken, and not noticed yet
        return None


def _dial_for_file(peer: Peer, address: tuple, token: str) -> Tuple[socket.socket, bytes]:
    """A connection to `peer` for the file with that token, and what came behind the handshake. In a thread. Raises
    `_FAILURES`.

    The handshake is that of a link, and proves as much; it offers no TLS, as there is none below the link either. It
    has `Settings.connect_s` to be connected, and `handshake_s` for each answer.
    """
    sock = socket.socket(socket.AF_INET if len(address) == 2 else socket.AF_INET6)
    try:
        sock.settimeout(settings.connect_s)
        sock.connect(address)
        sock.settimeout(settings.handshake_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        handshake = peer.network.handshake("dial", file=token)
        while handshake.result is None:
            data = sock.recv(settings.handshake_bytes)
            if not data:
                raise ConnectionError("the other end closed the connection")
            try:
                handshake.receive(data)
            finally:
                sock.sendall(handshake.data_to_send())
        if handshake.result.peer_id != peer.process_id:
            raise ProtocolError("another process answers there")
    except _FAILURES:
        sock.close()
        raise
    return sock, handshake.result.leftover


class _Carried:
    """What both ends of a large file's transfer have in common: the connection in use, and how it is ended.

    A thread that waits for a socket cannot be stopped from elsewhere, but the socket can: `interrupt` shuts it down,
    and whatever the thread waits for ends at once. Each wait has a limit of `_WAKE_S` besides, after which the thread
    looks whether it is still wanted, for systems where that does not wake it.
    """

    def __init__(self, peer: Peer) -> None:
        """A transfer from or to `peer`; nothing is begun."""
        self.peer = peer
        self.written = 0                            # bytes that R has written, as far as this end knows
        self.failure = ""                           # why it cannot go on
        self.sock: Optional[socket.socket] = None
        self.changed = threading.Condition()        # guards: written, failure, sock

    def use(self, sock: Optional[socket.socket]) -> None:
        """`sock` is what the thread waits for from now on, and what `interrupt` ends; None: nothing, before it is
        closed. In a thread. Raises PycosError when it is not wanted, as the transfer was given up meanwhile."""
        with self.changed:
            self.sock = sock
            if self.failure and sock is not None:
                raise PycosError(self.failure)

    def interrupt(self, reason: str = "") -> None:
        """Wake the thread up: with a `reason`, it cannot go on; else the connection it uses is over. Any thread."""
        with self.changed:
            self.failure = self.failure or reason
            if self.sock is not None:
                try:
                    self.sock.shutdown(socket.SHUT_RDWR)
                except OSError:         # it is not connected any more
                    pass
            self.changed.notify_all()


# -- the sending end ---------------------------------------------------------------------------------------------------

class _BadLine(ConnectionError):
    """A connection for a file carries less than the link does with its lanes."""


class _LineWatch:
    """Looks now and then whether the line of a connection is one over which links have lanes. In a thread."""

    def __init__(self, sock: socket.socket, now: float) -> None:
        self._sock = sock
        self._strain = _Strain()
        self._strain.begin(now, _line_of([sock]))
        self._again = now + _LOOK_S

    def look(self, now: float) -> None:
        """Something waits to be sent. Raises _BadLine."""
        if now >= self._again:
            self._again = now + _LOOK_S
            reason = self._strain.judge(now, _line_of([self._sock]), False)
            if reason:
                raise _BadLine(reason)


class _Outgoing(_Carried):
    """A large file on its way to a peer: the state 'carried' of the table.

    `by_connection` and then, if it gives False, `by_link` send it, in a thread; a checksum grows along with what is
    sent, once, however often parts of it are sent again. `written` is what R has said, and nothing that was only handed
    to a socket counts: from there a transfer goes on, and when it has not changed for `timeout` seconds it fails.

    A file that goes to many peers is read for its checksum once: `known`, if that is had from before.
    """

    def __init__(self, peer: Peer, path: str, status: os.stat_result, timeout: Optional[float],
                 progress: Optional[Callable]) -> None:
        """`status` is what `path` is like; `timeout` and `progress` as in `send_file`."""
        super().__init__(peer)
        self.path, self.size, self.timeout, self.progress = path, status.st_size, timeout, progress
        self.number = next(_numbers)
        self.token = os.urandom(16).hex()
        self.address: Optional[tuple] = None        # to be dialled from here, for a connection
        self.arrivals: Any = queue.SimpleQueue()    # connections that R has dialled; None: it cannot
        self.identity = _which_content(status)
        self.lasting = False                        # the checksum is good for another time
        self.known = ""
        self._settled = _is_settled(status)
        self._since = self.peer.engine.clock()      # when something was written last
        self.link_has_lanes = False                 # or may have some
        self._digest: Any = None                    # see `_CHECKS`
        self._hashed = 0                            # bytes that are in it
        self._space = memoryview(bytearray(_SPACE))
        self._met = False                           # a connection has worked, if only for a moment
        self._by_system = hasattr(os, "sendfile")
        self._file: Any = None

    def check_with(self, kind: Any) -> None:
        """R has said which checksum it makes. Engine. Raises ProtocolError for a kind that there is not."""
        if not isinstance(kind, str) or kind not in _CHECKS:
            raise ProtocolError("a checksum of the kind %.100r was asked for" % (kind,))
        self._digest = _CHECKS[kind]()

    # -- in a thread ---------------------------------------------------------------------------------------------------

    def by_connection(self, address: Optional[tuple]) -> bool:
        """Send all through connections, which are dialled at `address`, or by R if that is None. True when all is
        written; False when there is no connection to be had: at the first failure if none has ever worked, as behind a
        firewall, after `_TRIES` in a row that brought nothing if one has; and when the link carries more. Raises
        PycosError when it was given up, OperationTimeout when nothing is written for too long, OSError when the file
        cannot be read."""
        tries = 0
        with open(self.path, "rb", buffering=0) as self._file:
            while self.written < self.size:
                before = self.written
                try:
                    self._converse(address)
                except OperationTimeout:
                    raise
                except _FAILURES as error:
                    log.debug("%s: the connection for %s has ended: %s", self.peer, self.path, error)
                    self._check()
                    if isinstance(error, _BadLine):
                        return False
                    allowed = _TRIES if self._met else 1
                    tries = 1 if self.written > before else tries + 1
                    if tries >= allowed:
                        return False
                    with self.changed:
                        self.changed.wait(_PAUSE_S)
            self._look_again()
        return True

    def _look_again(self) -> None:
        """All is written: whether the file, still open, was this content all the time."""
        self.lasting = self._settled and _which_content(os.fstat(self._file.fileno())) == self.identity

    def _converse(self, address: Optional[tuple]) -> None:
        """Make a connection and use it until all is written or it is cut. Raises `_FAILURES` for the latter."""
        if address is not None:
            sock, rest = _dial_for_file(self.peer, address, self.token)
        else:
            sock, rest = self._next_arrival(), b""
        with sock:
            try:
                self.use(sock)
                sock.setblocking(False)
                self._transmit(sock, bytearray(rest))
            finally:
                self.use(None)

    def _next_arrival(self) -> socket.socket:
        """The connection that R makes. Raises ConnectionError when R cannot, or does not within the time that one
        attempt may take."""
        try:
            sock = self.arrivals.get(timeout=settings.connect_s + settings.handshake_s)
        except queue.Empty:
            sock = None
        self._check()
        if sock is None:
            raise ConnectionError("none came from there")
        return sock

    def _transmit(self, sock: socket.socket, heard: bytearray) -> None:
        """Send what R has not, until it says that all is written; `heard` begins with what it has said. One thread does
        all: while R takes what is in the system's buffers, the piece before is hashed. Raises as `_converse`."""
        while not self._listen(sock, heard):
            self._await(sock, selectors.EVENT_READ)
        sent = self.written
        line = _LineWatch(sock, self.peer.engine.clock()) if self.link_has_lanes else None
        while self.written < self.size:
            moved = self._send_some(sock, sent) if sent < self.size else 0
            sent += moved
            self._hash(sent)
            if not moved:
                self._await(sock, selectors.EVENT_READ | (selectors.EVENT_WRITE if sent < self.size else 0))
            self._listen(sock, heard)
            if line is not None:
                line.look(self.peer.engine.clock())

    def _send_some(self, sock: socket.socket, position: int) -> int:
        """Hand what follows `position` to the socket; how much of it that took, 0 if it is full. Where sendfile is
        missing, or this file system has none, by reading. Raises PycosError at the end of a file that has shrunk."""
        count = min(_PIECE, self.size - position)
        try:
            if self._by_system:
                moved = os.sendfile(sock.fileno(), self._file.fileno(), position, count)
            else:
                moved = sock.send(self._read(position, count))
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            if not self._by_system or error.errno not in _NOT_SENDFILE:
                raise
            self._by_system = False
            return 0
        if not moved:
            raise PycosError("it has become shorter meanwhile")
        return moved

    def _read(self, position: int, count: int) -> memoryview:
        """What is in the file behind `position`: at most `count` bytes, at least one. Raises PycosError at its end."""
        self._file.seek(position)
        got = self._file.readinto(self._space[:count])
        if not got:
            raise PycosError("it has become shorter meanwhile")
        return self._space[:got]

    def _hash(self, position: int) -> None:
        """Take what is before `position` into the checksum."""
        while self._hashed < position and not self.known:
            data = self._read(self._hashed, position - self._hashed)
            self._digest.update(data)
            self._hashed += len(data)

    def _await(self, sock: socket.socket, events: int) -> None:
        """Wait for the socket, or a moment. Raises PycosError when there is nothing to be waited for any more."""
        with _FilePoll() as poll:
            poll.register(sock, events)
            poll.select(self._patience())

    def _patience(self) -> float:
        """Seconds that may be waited before looking around. Raises as `_check` when there is nothing to wait for."""
        self._check()
        if self.timeout is None:
            return _WAKE_S
        return max(0.001, min(_WAKE_S, self._since + self.timeout - self.peer.engine.clock()))

    def _check(self) -> None:
        """Raise PycosError when it was given up, OperationTimeout when R has taken nothing for too long."""
        if self.failure:
            raise PycosError(self.failure)
        if self.timeout is not None and self.peer.engine.clock() - self._since >= self.timeout:
            raise OperationTimeout("nothing of it was taken for %g seconds" % self.timeout)

    def _listen(self, sock: socket.socket, heard: bytearray) -> bool:
        """Take what R has said, of which the last number counts; whether there was one. Raises ConnectionError at the
        end of the connection, ProtocolError for a number that cannot be."""
        try:
            data = sock.recv(4096)
        except (BlockingIOError, InterruptedError):
            data = None
        if data == b"":
            raise ConnectionError("the other end closed the connection")
        heard += data or b""
        whole = len(heard) // _TRANSFER.size * _TRANSFER.size
        if whole:
            self._met = True
            self.note(_TRANSFER.unpack_from(heard, whole - _TRANSFER.size)[0])
            del heard[:whole]
        return whole > 0

    def by_link(self, position: int) -> None:
        """Send what is behind `position` through the link, as chunks. What is on its way there may be sent again by the
        session, and holds up messages behind it, so S runs ahead of R by no more than `_AHEAD_S` at the speed so far.
        Raises PycosError, OperationTimeout, OSError."""
        self.note(position)                         # the last counts may have been lost with their connection
        head, begun, begun_at = _TRANSFER.pack(self.number), self.peer.engine.clock(), position
        most = min(_PIECE, self.peer.longest - len(head))
        with open(self.path, "rb", buffering=0) as self._file:
            while position < self.size:
                self._file.seek(position)
                data = self._file.read(min(most, self.size - position))
                if not data:
                    raise PycosError("it has become shorter meanwhile")
                elapsed_s = self.peer.engine.clock() - begun
                ahead = int((self.written - begun_at) / (elapsed_s or 1.0) * _AHEAD_S)
                self._wait(position + len(data) - max(_LEAST_AHEAD, min(_MOST_AHEAD, ahead)))
                self.peer.send_frame(CHUNK, head, data)
                if self._hashed == position and not self.known:     # nothing of it came there by a connection
                    self._digest.update(data)
                    self._hashed += len(data)
                position += len(data)
                self._hash(position)
            self._wait(self.size)
            self._look_again()

    def _wait(self, count: int) -> None:
        """Block until so many bytes are written there. Raises as `_patience`."""
        with self.changed:
            while self.written < count:
                self.changed.wait(self._patience())

    def digest(self) -> str:
        """The checksum of what was sent, once all is written."""
        return self.known or self._digest.hexdigest()

    # -- any thread ----------------------------------------------------------------------------------------------------

    def note(self, count: int) -> None:
        """So many bytes are written there: the transfer gets on, and its time begins anew; the program's `progress` is
        told in its own thread. Any thread. Raises ProtocolError for less than before, and for more than all."""
        with self.changed:
            if not self.written <= count <= self.size:
                raise ProtocolError("%d bytes of a file are said to be written, %d were before" % (count, self.written))
            if count > self.written:
                self._since = self.peer.engine.clock()
            self.written = count
            self.changed.notify_all()
        if self.progress is not None:
            self.peer.network.host.call(self.progress, count, self.size)

    def attach(self, sock: socket.socket) -> None:
        """R has made a connection. Engine."""
        self.interrupt()                # the one before it is over, whether that has been noticed here or not
        self.arrivals.put(sock)

    def fail(self, reason: str) -> None:
        """It cannot go on, as `reason` says; the thread raises that as a PycosError from whatever it waits for.
        Harmless when it has ended. Any thread."""
        self.interrupt(reason)
        self.arrivals.put(None)


def _which_content(status: os.stat_result) -> tuple:
    """What is another one as soon as the file is another, or is written to a moment later (see `_is_settled`)."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _is_settled(status: os.stat_result) -> bool:
    """Whether the file was changed so long ago that the next change will have another time, coarse as clocks are."""
    return max(status.st_mtime_ns, status.st_ctime_ns) < time.time_ns() - _SETTLED_NS


# -- the receiving end -------------------------------------------------------------------------------------------------

# Numbers fit what carries them: ids and sizes eight bytes and a file's signed offset, times what os.utime takes. Types
# are compared exactly, as True is an int otherwise. What names mean is looked at in a thread, since that asks the disk.
_OFFER = {                              # item of file.offer -> (its type, what else must hold)
    "id": (int, lambda value: 0 < value < 1 << 63),
    "name": (str, lambda value: True),
    "dir": (str, lambda value: True),
    "place": (str, lambda value: True),
    "size": (int, lambda value: 0 <= value < 1 << 63),
    "mtime_ns": (int, lambda value: abs(value) < 1 << 62),
    "mode": (int, lambda value: 0 <= value <= 0o7777),
    "overwrite": (bool, lambda value: True),
}


def _check_offer(args: dict, payload: bytes) -> None:
    """Raise ProtocolError unless `args` is what the messages say that file.offer has: a peer is authenticated, and may
    have mistakes in it all the same. Engine, before anything is kept of it."""
    for name, (kind, holds) in _OFFER.items():
        value = args.get(name)
        if type(value) is not kind or not holds(value):
            raise ProtocolError("a file was offered with %s = %.100r" % (name, value))
    for name in ("digest", "token", "dials", "line"):
        if not isinstance(args.get(name, ""), str):
            raise ProtocolError("a file was offered with %s = %.100r" % (name, args[name]))
    if "digest" in args and args["size"] != len(payload):
        raise ProtocolError("a file of %d bytes was offered with %d" % (args["size"], len(payload)))


class _Quota:
    """What the files below a directory may take together, those on their way there included: `max_total_size`.

    How much is there is found by walking through the directory: when it is first asked for, and again when it seems to
    be too much, since whoever uses the files deletes and adds some as he likes. A file that is to replace another
    counts besides it until it does. In threads, unless a method says else.
    """

    def __init__(self, path: str = "", limit: Optional[int] = None) -> None:
        """`limit` in bytes; None or 0: none. It may be changed at any time. Any thread."""
        self.path, self.limit = path, limit
        self._lock = threading.RLock()          # guards: the rest, and that no file gets its name during a walk
        self._used: Optional[int] = None        # bytes that are there, as far as known
        self._claims: Dict[str, int] = {}       # temporary name of a file on its way -> its bytes

    def claim(self, temporary: str, size: int) -> None:
        """A file is on its way. Raises PycosError, and keeps nothing of it, if it is too large beside the others."""
        with self._lock:
            if self.limit:
                promised = sum(self._claims.values())
                if self._used is None or self._used + promised + size > self.limit:
                    self._used = self._weigh()
                left = self.limit - self._used - promised
                if size > left:
                    raise PycosError("it has %d bytes, and of the %d that all files together may have there "
                                     "(max_total_size) %d are left" % (size, self.limit, max(0, left)))
            self._claims[temporary] = size

    def _weigh(self) -> int:
        """Bytes of all files but those on their way, which may be seen under their temporary names."""
        total = 0
        for folder, _, names in os.walk(self.path):
            for name in names:
                try:
                    total += 0 if name in self._claims else os.lstat(os.path.join(folder, name)).st_size
                except OSError:                 # it has just been deleted
                    pass
        return total

    def steady(self) -> Any:
        """A context in which names are given and taken, and that is told: no walk sees half of it. Where there is no
        limit, nobody waits for anybody."""
        return self._lock if self.limit else threading.RLock()

    def settle(self, temporary: str, change: int) -> None:
        """It is on its way no more, and all that is there has become larger by `change` bytes. Harmless when that was
        told."""
        with self._lock:
            if self._claims.pop(temporary, None) is not None:
                self.add(change)

    def add(self, change: int) -> None:
        """All that is there has become larger by so many bytes."""
        with self._lock:
            if self._used is not None:
                self._used += change


class _Incoming(_Carried):
    """A file on its way from a peer: the states 'opening' to 'closing' of the table.

    `open` and `run`, or for a small file `store`, do the work in threads. `run` takes from `items` what the engine puts
    there, in the order in which it came: chunks, connections, requests. So a request for the rest, or for the end, is
    answered when everything before it is written, and nobody else writes to the file or changes its state.
    """

    def __init__(self, peer: Peer, args: dict, check: str = "sha256", quota: Optional[_Quota] = None) -> None:
        """`args` is an offer that `_check_offer` has seen, `check` one of `_CHECKS`."""
        super().__init__(peer)
        self.args, self.check, self._quota = args, check, quota or _Quota()
        self.number, self.size, self.token = args["id"], args["size"], args.get("token", "")
        self.address: Optional[tuple] = None        # to be dialled from here, for a connection
        self.taken = 0                              # bytes that have come, of those that come as chunks
        self.items: Any = queue.SimpleQueue()       # a chunk; a socket; (handler, task, argument); None: look around
        self.temporary = ".%s.%s.part" % (args["name"][:50], os.urandom(4).hex())
        self._told = self._synced = 0               # bytes that the sender knows of; that are on the disk
        self._digest = _CHECKS[check]()
        self.fd = -1
        self.folder: Any = None
        self._base = ""                             # the directory that `folder` is below
        self._named = False                         # it has the temporary name, which may have to be removed

    # -- in a thread ---------------------------------------------------------------------------------------------------

    def open(self, base: str, promised: int) -> dict:
        """Look what is there, and make a file for it if it is wanted; what the sender is answered. `promised` bytes are
        on their way to the disk besides. Raises OSError, PycosError for a disk with too little room or a quota that is
        used up, and MisuseError for a name that leads elsewhere or is something else's."""
        args, self._base = self.args, base
        name = _plain_name(base, args["dir"], args["name"])
        self.folder = _Folder(base, args["dir"], create=True)
        try:
            there = self.folder.look(name)
            if there is None or not _same_file(there, args) and args["overwrite"]:
                self._begin(promised)
                return {"state": "go", "check": self.check}
        except (OSError, PycosError):
            self._quota.settle(self.temporary, 0)
            self.folder.close()
            raise
        self.folder.close()
        return {"state": "same" if _same_file(there, args) else "other", "size": there.st_size,
                "mtime": there.st_mtime, "mode": there.st_mode}

    def _begin(self, promised: int) -> None:
        """Make a file for it if there is room. Raises as `open`."""
        room = self.folder.room()
        if room is not None and room - promised < self.size:
            raise PycosError("it has %d bytes, and the disk there has room for %d" % (
                self.size, max(0, room - promised)))
        self._quota.claim(self.temporary, self.size)
        self.fd, self._named = self.folder.create(self.temporary)

    def store(self, base: str, promised: int, data: bytes) -> dict:
        """All of a small file, from the look at what is there to its name; what the sender is answered. Raises OSError,
        PycosError; nothing is left of it then."""
        answer = self.open(base, promised)
        if answer["state"] == "go":
            try:
                self._write(data)
                self._complete(self.args["digest"])
            except (OSError, PycosError):
                self._discard()
                raise
            finally:
                self.folder.close()
            answer = {"state": "done"}
        return answer

    def run(self) -> None:
        """Write what comes, until its end: `complete` has given it its name, or something has gone wrong, and it is
        removed. Tells `_Files.received` last."""
        error: Optional[Exception] = None
        asker: Optional[Task] = None
        try:
            if self.address is not None:
                self._dial()
            while self.fd >= 0:
                item = self.items.get()
                if self.failure:
                    raise PycosError(self.failure)
                if isinstance(item, tuple):
                    handler, asker, argument = item
                    handler(self, argument)
                    answer, asker = asker, None
                    self._resume(answer, "")
                elif isinstance(item, socket.socket):
                    self._drain(item)
                elif item is not None:
                    self._take(item)
        except Exception as failure:        # whatever it is, somebody waits for the end of this
            if not isinstance(failure, (OSError, PycosError)):
                log_failure(failure, "a file of %s, %s, was not received", self.peer, self.args["name"])
            error = failure
            self._discard()
        self.folder.close()
        self.peer.network.post(self.peer.network.files.received, self, asker, error)

    def _resume(self, asker: Task, text: str) -> None:
        """Let the system task go on that asked for something; `text` is why it cannot be had."""
        self.peer.network.post(asker.resume, text)

    def _dial(self) -> None:
        """Make the connections, as the sender cannot; tell it when that does not work (any more)."""
        tries, allowed = 0, 1
        while tries < allowed and self.written < self.size and not self.failure:
            before = self.written
            try:
                sock, _ = _dial_for_file(self.peer, self.address, self.token)
            except _FAILURES as error:
                log.debug("%s: no connection for a file: %s", self.peer, error)
            else:
                allowed = _TRIES
                self._drain(sock)
            tries = 1 if self.written > before else tries + 1
            with self.changed:
                if self.written < self.size and not self.failure:
                    self.changed.wait(_PAUSE_S)
        if self.written < self.size and not self.failure:
            self.peer.notify("file.undialled", {"id": self.number})

    def _drain(self, sock: socket.socket) -> None:
        """Write what comes through a connection until all is there or it is cut, which is the sender's to mend. An
        OSError that is raised is one of the disk; PycosError when it was given up."""
        space = memoryview(bytearray(_SPACE))
        self._told = -1
        with sock:
            try:
                self.use(sock)
                sock.settimeout(_WAKE_S)
                while self._tell(sock) and self.written < self.size:
                    data = self._next_bytes(sock, space)
                    if data is None:
                        break
                    self._write(data)
            finally:
                self.use(None)

    def _next_bytes(self, sock: socket.socket, space: memoryview) -> Optional[memoryview]:
        """What comes next, if only nothing for now; None when the connection is over."""
        if self.failure:
            raise PycosError(self.failure)
        try:
            count = sock.recv_into(space[:self.size - self.written])
        except socket.timeout:
            return space[:0]
        except OSError as error:
            log.debug("%s: a connection for a file was cut: %s", self.peer, error)
            return None
        return space[:count] if count else None

    def _tell(self, sock: socket.socket) -> bool:
        """Say how much is written when that is due; False when nobody is there to hear it."""
        if 0 <= self._told and self.written < min(self._told + _TOLD_EVERY, self.size):
            return True
        self._told = self.written
        try:
            sock.sendall(_TRANSFER.pack(self.written))
        except OSError as error:
            log.debug("%s: a connection for a file was cut: %s", self.peer, error)
            return False
        return True

    def _take(self, chunk: Any) -> None:
        """Write a chunk of the link, and say so now and then."""
        self._write(chunk)
        if self.written - self._told >= _TOLD_EVERY or self.written == self.size:
            self._told = self.written
            self.peer.send_frame(WRITTEN, _WRITTEN_BODY.pack(self.number, self.written))

    def _write(self, data: Any) -> None:
        """Check and write what came next, all of it, and have it written out now and then if it is to be on the disk in
        the end. Raises OSError."""
        self._digest.update(data)
        data = memoryview(data)
        while data:
            count = os.write(self.fd, data)
            data = data[count:]
            self.written += count
        if settings.sync_files and self.written - self._synced >= _SYNC_EVERY:
            os.fsync(self.fd)
            self._synced = self.written

    def rest(self, _nothing: None) -> None:
        """Request file.rest, in its place among what came: chunks follow from `written` on, which the sender is told.
        Bytes of a connection that were cut off with it are sent again."""
        self.taken = self._told = self.written

    def complete(self, digest: str) -> None:
        """Request file.end, in its place: nothing more comes, so give the file its name if it is right; `digest` is the
        sender's checksum, in hexadecimal. Raises PycosError, OSError; `run` then leaves nothing behind."""
        self._complete(digest)

    def _complete(self, digest: str) -> None:
        """The state 'closing'. The order matters: what is wrong is never given the name, what is not on the disk
        neither where that is asked for, and the name is looked at again as late as possible."""
        if self.written != self.size or digest != self._digest.hexdigest():
            raise PycosError("what arrived of it is not what was sent, or it was changed meanwhile")
        self.folder.mark(self.fd, self.temporary, self.args["mode"] & 0o777, self.args["mtime_ns"])
        if settings.sync_files:
            os.fsync(self.fd)
        with self._quota.steady():
            self._quota.settle(self.temporary, self._give_name())
        self._close()
        if settings.sync_files:
            self.folder.sync()

    def _give_name(self) -> int:
        """Give it its name, in the place of the old file if there is one; how many bytes more are there then."""
        name = self.args["name"]
        if not self._named and self.folder.look(name) is None and self._show(name):
            return self.size                # with nothing to replace, this was one step, too
        old = self.folder.look(name)
        if old is not None and not self.args["overwrite"]:
            raise PycosError("another file has got its name meanwhile")
        self._named = self._named or self._show(self.temporary)
        self._close()                       # Windows renames no file that is open
        self.folder.rename(self.temporary, name)
        return self.size - (old.st_size if old is not None else 0)

    def _show(self, name: str) -> bool:
        """Let a nameless file be seen, under that name; False if something has it."""
        try:
            self.folder.name(self.fd, name)
        except FileExistsError:
            return False
        except FileNotFoundError:
            self.folder.close()
            self.folder = _Folder(self._base, self.args["dir"], create=True)
            self.folder.name(self.fd, name)
        return True

    def _close(self) -> None:
        """The file is written; harmless when that was said."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _discard(self) -> None:
        """Leave nothing of it behind."""
        self._close()
        try:
            if self._named:
                self.folder.remove(self.temporary)
        except (OSError, MisuseError) as error:
            log.warning("%s: what came of a file cannot be removed: %s", self.temporary, error)
        self._quota.settle(self.temporary, 0)

    # -- engine --------------------------------------------------------------------------------------------------------

    def take(self, data: Any) -> None:
        """A chunk came: more of them than were announced, or so much more than is written that S cannot have waited for
        WRITTEN, end it, so that a peer can fill neither the disk nor the memory. Engine."""
        self.taken += len(data)
        if self.taken > self.size or self.taken - self.written > 2 * _MOST_AHEAD:
            self.fail("more of it came than was announced")
        else:
            self.items.put(data)

    def attach(self, sock: socket.socket) -> None:
        """The sender has made a connection, since it found that the one before is cut. Engine."""
        self.interrupt()                # the one before it is over, whether that has been noticed here or not
        self.items.put(sock)

    def ask(self, handler: Callable, argument: Any = None) -> Generator:
        """Have `handler(self, argument)` called in the thread once all that came before is done, and wait for it; the
        connection, if one is open, is over. Use with ``yield`` in the system task of a request. Raises PycosError with
        what went wrong, also when the file was given up before its turn came."""
        self.interrupt()
        self.items.put((handler, self.peer.engine.current, argument))
        error = yield Suspend(None)
        if error:
            raise PycosError(error)

    def fail(self, reason: str) -> None:
        """It cannot go on, as `reason` says: wake the thread up, whatever it waits for. What it has written is removed,
        and the sender told, by that thread's end. Any thread."""
        self.interrupt(reason)
        self.items.put(None)


def _same_file(there: os.stat_result, args: dict) -> bool:
    """Whether a file is the one offered: by size, permissions, and time (to a second, as some file systems keep it)."""
    return (there.st_size == args["size"] and abs(there.st_mtime_ns - args["mtime_ns"]) <= 1_000_000_000
            and stat.S_IMODE(there.st_mode) & 0o777 == args["mode"] & 0o777)


# -- all files ---------------------------------------------------------------------------------------------------------

class _Sending:
    """The sending half of `_Files`: offers files, has them carried, and hears what receivers have to say. Engine only,
    unless a method says else."""

    def __init__(self, network: Network) -> None:
        """Both pools are empty: threads start with the first files."""
        self.network = network
        self.outgoing: Dict[int, _Outgoing] = {}
        self.expected: Dict[str, _Carried] = {}             # token -> file that the other end dials a connection for
        self.lanes: Any = weakref.WeakKeyDictionary()       # peer -> Semaphore
        self.checksums: Dict[tuple, str] = {}               # (kind, `_which_content`) -> checksum, the latest last
        self.calls = AsyncThreadPool(_CALLS)
        self.carriers = AsyncThreadPool(4 * _MOST_INCOMING)
        network.frame_handlers[WRITTEN] = self._on_written
        network.on_request("file.refused", self._on_refused)
        network.on_request("file.undialled", self._on_undialled)

    def send(self, location: Any, path: str, args: dict, timeout: Optional[float],
             progress: Optional[Callable]) -> Generator:
        """See `FileCalls.send_file`. A system task."""
        try:
            peer = yield self.network.connect([_location(location)], timeout)
            reply = yield self.send_to(peer, path, args, timeout, progress)
        except (OSError, ValueError, PycosError) as error:      # ValueError: no location, or no path
            log.error("file %s was not sent to %r: %s", path, location, error)
            return -1
        if reply["state"] == "other":
            return FileStat(reply["size"], reply["mtime"], reply["mode"])
        return 1 if reply["state"] == "same" else 0

    def send_to(self, peer: Peer, path: str, args: dict, timeout: Optional[float],
                progress: Optional[Callable] = None) -> Generator:
        """Send the file `path` to `peer`; `args` has name, dir and overwrite, and place if it is not "". Use with yield
        in a system task; also for other modules.

        Gives the answer to the offer: its `state` is 'same', 'other', 'done' or 'go' (done likewise). Raises OSError
        when the file cannot be read, PycosError with a sentence for all else; nothing is logged. At most `_LANES` files
        are on their way to one peer, so that many of them cost neither end more threads than are of use.
        """
        lane = self.lanes.setdefault(peer, Semaphore(_LANES))
        yield lane.acquire()
        try:
            most = min(_SMALL_FILE, peer.longest // 2)
            status, content, digest = yield self.calls.async_task(_look_at, path, most)
            offer = {"place": "", **args, "size": status.st_size, "mtime_ns": status.st_mtime_ns,
                     "mode": stat.S_IMODE(status.st_mode)}
            if content is None:
                return (yield self._send_large(_Outgoing(peer, path, status, timeout, progress), offer))
            offer.update(id=next(_numbers), digest=digest)
            reply = yield self._offer(peer, offer, content, timeout)
        finally:
            lane.release()
        if progress is not None and reply["state"] == "done":
            self.network.host.call(progress, status.st_size, status.st_size)
        return reply

    def _offer(self, peer: Peer, offer: dict, content: bytes, timeout: Optional[float]) -> Generator:
        """Offer a file until the receiver has time for it; its answer. There is no limit to how often: a busy receiver
        answers, and the files that it is busy with end, as each of them has limits. Raises PycosError."""
        pause_s, longest_s = _BUSY_S
        while True:
            reply, _ = yield peer.request("file.offer", offer, content, timeout)
            if reply["state"] != "busy":
                return reply
            yield Suspend(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(pause_s * 2, longest_s)

    def _send_large(self, outgoing: _Outgoing, offer: dict) -> Generator:
        """All from the offer to the name; the answer to the offer. However it ends, also when the task is terminated,
        the thread that carries it is told, and so is the receiver unless all is well. Raises OSError, PycosError."""
        peer, number = outgoing.peer, outgoing.number
        lanes = peer.link.lanes if peer.link is not None else None
        dials = "" if lanes is not None and lanes.wide else _dialled_from(peer)
        offer.update(id=number, token=outgoing.token, dials={"here": "S", "there": "R"}.get(dials, ""),
                     line=_inner_line(peer, outgoing.token))
        outgoing.address, outgoing.link_has_lanes = _link_address(peer) if dials else None, lanes is not None
        self.outgoing[number] = self.expected[outgoing.token] = outgoing
        reply: dict = {}
        done = False
        try:
            reply = yield self._offer(peer, offer, b"", outgoing.timeout)
            if reply["state"] == "go":
                yield self._carry_checked(outgoing, dials, reply.get("check"))
            done = True
        finally:
            del self.outgoing[number]
            self.expected.pop(outgoing.token, None)
            outgoing.fail("it was given up")
            if not done and peer.state != "lost":
                peer.notify("file.abort", {"id": number})
        return reply

    def _carry_checked(self, outgoing: _Outgoing, dials: str, kind: Any) -> Generator:
        """`_carry`, with a checksum of that kind: one that is known already, or to be known for the next peer. When the
        transfer fails it is forgotten: the file may have been changed and its times set back. Raises as that."""
        outgoing.check_with(kind)
        key = kind, outgoing.identity
        outgoing.known = self.checksums.get(key, "")
        try:
            yield self._carry(outgoing, dials)
        finally:
            self.checksums.pop(key, None)
        if outgoing.lasting:
            self.checksums[key] = outgoing.digest()
            if len(self.checksums) > _MOST_KNOWN:
                del self.checksums[next(iter(self.checksums))]

    def _carry(self, outgoing: _Outgoing, dials: str) -> Generator:
        """Get the bytes there, one way or the other, and the file its name. Raises OSError, PycosError."""
        peer, timeout, address = outgoing.peer, outgoing.timeout, outgoing.address
        carried = (dials == "there" or address is not None) and (
            yield self.carriers.async_task(outgoing.by_connection, None if dials == "there" else address))
        if not carried:
            log.debug("%s: %s goes through the link", peer, outgoing.path)
            reply, _ = yield peer.request("file.rest", {"id": outgoing.number}, timeout=timeout)
            yield self.carriers.async_task(outgoing.by_link, reply["written"])
        yield peer.request("file.end", {"id": outgoing.number, "digest": outgoing.digest()}, timeout=timeout)

    def delete(self, location: Any, args: dict, timeout: Optional[float]) -> Generator:
        """See `FileCalls.del_file`. A system task."""
        try:
            peer = yield self.network.connect([_location(location)], timeout)
            yield peer.request("file.delete", args, timeout=timeout)
        except (ValueError, PycosError) as error:
            log.error("file %s was not deleted at %r: %s", args["name"], location, error)
            return -1
        return 0

    def _mine(self, peer: Peer, args: dict) -> Optional[_Outgoing]:
        """The file on its way to `peer` that it speaks of."""
        outgoing = self.outgoing.get(args["id"])
        return outgoing if outgoing is not None and outgoing.peer is peer else None

    def _on_written(self, peer: Peer, body: bytes) -> None:
        """Frame WRITTEN; of a file that was given up it may come late."""
        number, count = _WRITTEN_BODY.unpack(body)
        outgoing = self._mine(peer, {"id": number})
        if outgoing is not None:
            outgoing.note(count)

    def _on_refused(self, peer: Peer, args: dict, _payload: bytes) -> None:
        """Notice file.refused: the receiver cannot go on."""
        outgoing = self._mine(peer, args)
        if outgoing is not None:
            outgoing.fail("%s: %s" % (peer, args["reason"]))

    def _on_undialled(self, peer: Peer, args: dict, _payload: bytes) -> None:
        """Notice file.undialled: no connection will come from there."""
        outgoing = self._mine(peer, args)
        if outgoing is not None:
            outgoing.arrivals.put(None)


class _Files(_Sending):
    """The files of a network: where they go, and which are on their way. Engine only, unless a method says else.

    `places` maps what an offer may name as `place` to functions ``(peer, args)`` that are called in the engine, raise
    PycosError for a file that is not wanted, and return a function that gives the directory, which is called in a
    thread: so other modules take files where they want them, under conditions of their own.
    """

    def __init__(self, network: Network) -> None:
        """Serve the requests about files."""
        super().__init__(network)
        self.default = self.prefix = _default_folder()
        self.dest_path = self.prefix
        self.max_file_size: Optional[int] = None
        self.places: Dict[str, Callable] = {"": self._dest}
        self.incoming: Dict[tuple, _Incoming] = {}          # (peer, number) -> file
        self.storing = 0                                    # bytes of small files that wait for the disk
        self.quota = _Quota(self.prefix)
        network.frame_handlers[CHUNK] = self._on_chunk
        for op, handler in (("offer", self._on_offer), ("rest", self._on_rest), ("end", self._on_end),
                            ("abort", self._on_abort), ("delete", self._on_delete)):
            network.on_request("file." + op, handler)
        network.on_peer(self._on_peer)

    def begin(self, prefix: Optional[str], limit: Optional[int], total: Optional[int] = None) -> None:
        """The options `dest_path`, `max_file_size` and `max_total_size` of a network that begins. A directory that was
        named is made now, so that a mistake shows at the start; the default one when it is first needed. Raises
        OSError."""
        self.max_file_size = limit
        if prefix:
            self.prefix = self.dest_path = os.path.abspath(prefix)
            os.makedirs(self.prefix, exist_ok=True)
        self.quota = _Quota(self.prefix, total)

    def close(self) -> None:
        """End the threads, once the network has ended: a thread that is stuck in the system is left behind. Any thread
        but the engine's."""
        _end_pool(self.calls)
        _end_pool(self.carriers)

    def place(self, path: str) -> None:
        """Let received files go to `path`; one outside of the directory of the beginning is taken as below it. Raises
        MisuseError when that cannot be. Any thread."""
        found = os.path.realpath(os.path.join(self.prefix, path))
        if not (found + os.sep).startswith(os.path.realpath(self.prefix) + os.sep):
            found = confined_path(self.prefix, os.path.splitdrive(path)[1].lstrip("/" + os.sep))
        os.makedirs(found, mode=0o700, exist_ok=True)
        self.dest_path = found

    def base(self) -> str:
        """The directory for received files, made if need be. The default one is where anybody may make files, so it
        must be this user's. In a thread."""
        os.makedirs(self.dest_path, mode=0o700, exist_ok=True)
        if self.dest_path == self.default and hasattr(os, "getuid"):
            found = os.lstat(self.dest_path)
            if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
                raise MisuseError("%s belongs to another user: set dest_path" % self.dest_path)
        return self.dest_path

    def _dest(self, _peer: Peer, args: dict) -> Callable:
        """The place of what `send_file` sends."""
        limit = self.max_file_size
        if limit and args["size"] > limit:
            raise PycosError("it has %d bytes, more than the %d that are taken there (max_file_size)" % (
                args["size"], limit))
        return self.base

    # -- receiving -----------------------------------------------------------------------------------------------------

    def _on_offer(self, peer: Peer, args: dict, payload: bytes) -> Generator:
        """Request file.offer: a small file is stored, for a large one everything is prepared. The cap on files received
        at the same time counts from here on, so that who offers many cannot have them all opened."""
        _check_offer(args, payload)
        if args["place"] not in self.places:
            raise PycosError("it knows no place %r for files" % args["place"])
        base = self.places[args["place"]](peer, args)
        small = "digest" in args
        stored = self.storing + len(payload)
        if self.storing and stored > _MOST_STORED if small else len(self.incoming) >= _MOST_INCOMING:
            return {"state": "busy"}
        promised = sum(other.size - other.written for other in self.incoming.values())
        incoming = _Incoming(peer, args, self._check_for(peer, args), None if args["place"] else self.quota)
        if args.get("dials") == "R":
            incoming.address = _link_address(peer)      # now, as what `_check_for` found holds for this link
        self.storing = stored
        try:
            if small:
                return (yield self.calls.async_task(lambda: incoming.store(base(), promised, payload)))
            return (yield self._receive(incoming, base, promised))
        except (OSError, ValueError) as error:
            raise PycosError("it cannot be written there: %s" % _reason(error)) from error
        finally:
            self.storing -= len(payload)

    @staticmethod
    def _check_for(peer: Peer, args: dict) -> str:
        """By which checksum to tell that what comes is the file; see the head of the section."""
        if not args.get("dials"):               # all of it comes through the link
            return "crc32"
        line = args.get("line")
        return "crc32" if line and line == _inner_line(peer, args.get("token", "")) else "sha256"

    def _receive(self, incoming: _Incoming, base: Callable, promised: int) -> Generator:
        """Open a large file, and let it come; the answer."""
        peer, key = incoming.peer, (incoming.peer, incoming.number)
        if key in self.incoming:
            raise ProtocolError("a file was offered twice under one number")
        self.incoming[key] = incoming
        answer = {"state": ""}
        try:
            answer = yield self.calls.async_task(lambda: incoming.open(base(), promised))
        finally:
            if answer["state"] != "go":
                del self.incoming[key]
        if answer["state"] == "go":
            dials = incoming.args.get("dials")
            if dials == "S" and incoming.token:
                self.expected[incoming.token] = incoming
            elif dials == "R" and incoming.address is None:
                peer.notify("file.undialled", {"id": incoming.number})
            self.carriers.put(_Carrier(incoming.run))
        return answer

    def attach(self, link: Link, result: HandshakeResult) -> None:
        """An authenticated connection that names a file: it is no link. Refused unless that file is expected there."""
        token = result.peer_info["file"]
        file = self.expected.get(token) if isinstance(token, str) else None
        if file is None or file.peer.process_id != result.peer_id or result.leftover or link.unsent:
            link.fail(ProtocolError("a connection for a file came, and no such file is expected"))
        else:
            file.attach(link.release())

    def _theirs(self, peer: Peer, args: dict) -> _Incoming:
        """The file on its way from `peer` that it speaks of. Raises PycosError when there is none (any more)."""
        incoming = self.incoming.get((peer, args["id"]))
        if incoming is None:
            raise PycosError("it was given up there")
        return incoming

    def _on_rest(self, peer: Peer, args: dict, _payload: bytes) -> Generator:
        """Request file.rest: connections have failed, chunks come."""
        incoming = self._theirs(peer, args)
        yield incoming.ask(_Incoming.rest)
        return {"written": incoming.written}

    def _on_end(self, peer: Peer, args: dict, _payload: bytes) -> Generator:
        """Request file.end: all was sent."""
        yield self._theirs(peer, args).ask(_Incoming.complete, args["digest"])
        return {}

    def _on_chunk(self, peer: Peer, body: bytes) -> None:
        """Frame CHUNK; of a file that was given up here some may still come."""
        incoming = self.incoming.get((peer, _TRANSFER.unpack_from(body)[0]))
        if incoming is not None:
            incoming.take(memoryview(body)[_TRANSFER.size:])

    def _on_abort(self, peer: Peer, args: dict, _payload: bytes) -> None:
        """Notice file.abort: no more of it comes."""
        incoming = self.incoming.get((peer, args["id"]))
        if incoming is not None:
            incoming.fail("the sender has given up")

    def received(self, incoming: _Incoming, asker: Optional[Task], error: Optional[Exception]) -> None:
        """A file is complete, or given up because of `error`, and its thread has ended. `asker` waits for what it has
        asked for, as may others whose requests came too late: all of them are told, and so is the sender, who may be
        in the midst of sending."""
        peer = incoming.peer
        del self.incoming[peer, incoming.number]
        self.expected.pop(incoming.token, None)
        askers = [asker]
        while not incoming.items.empty():               # what came when the thread had ended
            item = incoming.items.get()
            if isinstance(item, tuple):
                askers.append(item[1])
            elif isinstance(item, socket.socket):
                item.close()
        if error is None:
            return
        text = _reason(error)
        log.info("a file of %s, %s, was not received: %s", peer, incoming.args["name"], text)
        for task in askers:
            if task is not None:
                task.resume(text)
        if peer.state != "lost":
            peer.notify("file.refused", {"id": incoming.number, "reason": text})

    def _on_delete(self, _peer: Peer, args: dict, _payload: bytes) -> Generator:
        """Request file.delete. Files of other places than `dest_path` are not to be deleted."""
        try:
            yield self.calls.async_task(self._delete, args["name"], args["dir"])
        except (OSError, ValueError) as error:
            raise PycosError("it cannot be deleted there: %s" % _reason(error)) from error
        return {}

    def _delete(self, name: str, relative: str) -> None:
        """Delete a file, and the directories that are empty then. In a thread. Raises OSError, PycosError."""
        base = self.base()
        name = _plain_name(base, relative, name)
        with _Folder(base, relative, create=False) as folder:
            found = folder.look(name)
            if found is None:
                raise PycosError("there is no file %r" % name)
            with self.quota.steady():
                folder.remove(name)
                self.quota.add(-found.st_size)
            folder.prune()

    def _on_peer(self, peer: Peer, event: str, reason: str) -> None:
        """A peer that is only offline comes back, and its transfers go on; one that is lost never does."""
        if event == "lost":
            for (sender, _), incoming in self.incoming.items():
                if sender is peer:
                    incoming.fail("the sender is gone: %s" % reason)
            for outgoing in self.outgoing.values():
                if outgoing.peer is peer:
                    outgoing.fail("%s is gone: %s" % (peer, reason))


class _Carrier:
    """A call for a thread of a pool whose result nobody waits for: what it has to tell, it posts to the engine."""

    __slots__ = ("run",)

    def __init__(self, run: Callable) -> None:
        self.run = run


def _look_at(path: str, most: int) -> Tuple[os.stat_result, Optional[bytes], str]:
    """What a regular file is like, and if it has at most `most` bytes all of it and its CRC-32. In a thread. Raises
    OSError, MisuseError for what is no regular file, PycosError when the file changed at that very moment."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):         # before it is opened: that might wait
        raise MisuseError("it is no regular file")
    if found.st_size > most:
        return found, None, ""
    with open(path, "rb") as file:
        content = file.read(found.st_size + 1)
        found = os.fstat(file.fileno())
    if len(content) != found.st_size:
        raise PycosError("it was changed meanwhile")
    return found, content, _checksum("crc32", content)


def _reason(error: Exception) -> str:
    """What went wrong, without the path on this machine that an OSError names."""
    return getattr(error, "strerror", None) or str(error)


def _default_folder() -> str:
    """Where received files go unless the program says otherwise. Many programs receive none: where nothing can be
    written, as in some containers, they go on, and who sends a file there hears why that fails."""
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError:
        folder = os.environ.get("TMPDIR") or os.path.join(os.sep, "tmp")
    return os.path.join(folder, "pycoslite")


class _Progress:
    """A program's function that is told of the progress of one file. One that has failed is not called any more: it
    would fail again for each MiB. Raises TypeError when it is no function."""

    __slots__ = ("function",)

    def __init__(self, function: Any) -> None:
        if not callable(function):
            raise TypeError("progress must be a function of (bytes_written, bytes_in_all), not %r" % (function,))
        self.function: Optional[Callable] = function

    def __call__(self, written: int, size: int) -> None:
        """Tell it. User kernel's thread."""
        if self.function is not None:
            try:
                self.function(written, size)
            except Exception:
                log.exception("what is told of the progress of a file has failed, and is told no more: %r",
                              self.function)
                self.function = None


class FileCalls:
    """The methods of `Pycos` that are about files.

        def sender(location, task=None):
            result = yield pycoslite.Pycos().send_file(location, "report.pdf", dir="incoming")
            if result < 0:
                ...                             # the log says why

    The receiving program does nothing for it: files come to its `dest_path`, as long as its network runs. Who belongs
    to the cluster may send and delete files there; `max_file_size` and the place are all that limits it.
    """

    network: Network

    def send_file(self, location: Any, file: Any, dir: Any = None, overwrite: bool = False,
                  timeout: Any = _DEFAULT, progress: Optional[Callable[[int, int], Any]] = None) -> Any:
        """Send a file to the process at `location`, which keeps it below its `dest_path`, in the directory `dir` there
        if one is given (relative), with the same name, time and permissions. Use with yield.

        Gives 0 when it is there, whole (to outlive a power failure as well, if `settings.sync_files`, or
        PYCOSLITE_SYNC_FILES, is 1 there); 1 when it was there already (same size, time and permissions); a `FileStat`
        of what is there when that differs and `overwrite` is False, which leaves it as it is; -1 when it failed, with a
        line in the log that says why: no such file, a name or `dir` that would lead out of `dest_path`, more than
        `max_file_size` or `max_total_size`, no room, no location, the peer gone or silent. A file that was to be
        replaced is then as before, and nothing is left of the new one.

        `timeout` is for each step, a request or a piece of the file, in seconds (None: no limit; default:
        `Settings.message_timeout_s`); a connection that is cut meanwhile is made again, and the transfer goes on where
        it was. `progress(bytes_written, bytes_in_all)`, a function, is called now and then, and when all is written,
        in the thread of the tasks: it must not block; what it raises is logged, and it is called no more. Any number of
        files may be sent at the same time, by so many tasks. Terminating the task ends the transfer.
        """
        path = os.path.abspath(os.fsdecode(file))
        args = {"name": os.path.basename(path), "dir": os.fsdecode(dir or ""), "overwrite": bool(overwrite)}
        timeout = settings.message_timeout_s if timeout is _DEFAULT else timeout
        told = None if progress is None else _Progress(progress)
        return _Remote(self.network, self.network.files.send, location, path, args, timeout, told)

    def del_file(self, location: Any, file: Any, dir: Any = None, timeout: Any = _DEFAULT) -> Any:
        """Delete a file that was sent to the process at `location`, with the same `file` and `dir`; directories that
        are empty then go, too. Use with yield. Gives 0, or -1 with a line in the log that says why. `timeout` is for
        each step, in seconds, as in `send_file`."""
        args = {"name": os.path.basename(os.fsdecode(file)), "dir": os.fsdecode(dir or "")}
        timeout = settings.message_timeout_s if timeout is _DEFAULT else timeout
        return _Remote(self.network, self.network.files.delete, location, args, timeout)

    @property
    def dest_path(self) -> str:
        """Directory for received files; the option of that name, or "pycoslite" in the system's temporary directory.
        What is assigned is below that, or is taken as relative to it. It is there once it has been asked for. Any
        thread. Raises OSError when it cannot be made, MisuseError when it belongs to another user."""
        return self.network.files.base()

    @dest_path.setter
    def dest_path(self, path: Any) -> None:
        """Set it; the directory is made. Raises MisuseError for what would lead out of the first one."""
        self.network.files.place(os.fspath(path))

    @property
    def max_file_size(self) -> Optional[int]:
        """Most bytes that a received file may have; None or 0: no limit. Larger ones are refused before anything of
        them is sent, and the sender is told. How much many files may take together is limited by `max_total_size`, and
        by the disk. What is assigned counts for files that are offered from then on. Any thread."""
        return self.network.files.max_file_size

    @max_file_size.setter
    def max_file_size(self, size: Optional[int]) -> None:
        """Set it, for files that are offered from now on."""
        self.network.files.max_file_size = size

    @property
    def max_total_size(self) -> Optional[int]:
        """Most bytes that all files below the first `dest_path` may have together, whoever put them there, and those
        on their way to it; None or 0: no limit but the disk. A file that does not fit any more is refused before
        anything of it is sent, and the sender is told. One that is to replace another counts besides it until it has
        its name. What is assigned counts for files that are offered from then on. Any thread."""
        return self.network.files.quota.limit

    @max_total_size.setter
    def max_total_size(self, size: Optional[int]) -> None:
        """Set it, for files that are offered from now on."""
        self.network.files.quota.limit = size


# ======================================================================================================================
# 26. Facade                                                              Pycos: the process's kernel and network in one
# ======================================================================================================================
#
# A process has one default kernel (section 11), one network at most, and one Pycos object, which stands for both:
#
#   kernel     begins with the first task or the first Pycos(); ends with `stop_default`
#   network    begins with the first option of Pycos(), with what needs it (a reference, a SysTask), or with a program
#              of old that imports pycos.netpycos; ends before the kernel, which drives it
#   Pycos      made by the first Pycos(...), found again by every other one; given up when the kernel has ended
#
# After the end all three may begin again, in the same process; a forked child begins with none of them. The end, by
# `finish`, `terminate` or the program's own, goes through `stop_default`: STOPPERS (the network says goodbye), then the
# kernel's tasks, then AFTERWARDS (`_part`: the calls that `Pycos.atexit` was told of). Sections further down do not
# know this one: they reach it through the lists at its end.
#
# Options are looked at before anything starts (`_RULES`, and what each needs for itself: files, names, addresses): what
# is wrong with one would otherwise show later, in a thread of ours, as an exception that its user cannot place, or as
# nothing at all. None asks for nothing, whatever the option.
#
# References are numbers and addresses, and those of a network that has ended lead to nothing: what is sent by them is
# -1, not lost in silence. When the same process is met by the network that was started after it, they work again. So
# it is in a forked child, with those of its parent.
#
# Locks, in the order in which they are taken: Singleton's (making the object, later options), `Pycos._lock` (the start
# of its network), `_network_lock` (that there is one). The kernel's and the engine's threads must not wait for the end
# of what they drive: `_outside` refuses that.
#
# `status` and `dump` look at tasks of both kernels from any thread without stopping them: what they tell of a task may
# be over when it is read, and each list that may change meanwhile is copied by `_snapshot`. They may be called by a
# signal handler, in the midst of anything, so they take none of these locks.


class SysTask(Task):
    """A task that runs in the network engine: it goes on while user tasks compute or block, and must do neither itself.

        SysTask(function, *args, **kwargs)      or as with `Task`

    For what must answer in time whatever the program is busy with: watching peers, passing messages on, small services.
    A step that takes long delays all traffic of the process. It is sent messages, monitored and located like any task
    (T32). Starts the network; raises what that raises, and TypeError as `Task`. Any thread.
    """

    __slots__ = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if args:
            target, args = args[0], args[1:]
        else:
            target, args, kwargs = _keyword_form(kwargs)
        self._start(Pycos().network.engine, target, args, kwargs)


def start_network(host: Optional[str] = None, tcp_port: Any = None, name: Optional[str] = None, *,
                  key: Optional[bytes] = None, cluster: str = "pycoslite", role: str = "peer",
                  announced: Optional[List[str]] = None, facts: Optional[dict] = None,
                  tls: Optional[Certificates] = None) -> Network:
    """Start this process's network; there is one at most. `Pycos` is the comfortable way in.

    `host` is an address to listen at, a list of them ('0.0.0.0' and '::' mean all of one family), or None for all
    interfaces, IPv4 and IPv6; `announced` what others are told, see `Network.listen`; `tcp_port` a number (0: any), an
    iterable of candidates, or None for `Settings.net_port` if it is free, else any; `key` as of `secret_key`; `facts`
    are added to what peers are told of this process (`Peer.info`); `tls` as of `certificates`. Raises OSError when it
    cannot listen, MisuseError when a network is running. Any thread but the engine's.
    """
    global _network
    kernel = default_kernel()           # before the lock: what starts with it may start the network, too
    with _network_lock:
        if _network is not None:
            raise MisuseError("the network of this process is running already: give the options to the first "
                              "Pycos(...)")
        network = Network(kernel, key, name or socket.gethostname(), cluster, role, tls)
        network.facts.update(facts or {})
        ports = [settings.net_port, 0] if tcp_port is None else [tcp_port] if isinstance(tcp_port, int) else tcp_port
        try:
            network.listen([host] if isinstance(host, str) else host or [], ports, announced)
        except (OSError, ValueError):
            network.engine.close()
            raise
        serve_tasks(network)
        serve_channels(network)
        network.roster = _Roster(network)
        network.files = _Files(network)
        _network = network
        network.begin()
        return network


def stop_network() -> None:
    """Say goodbye to all peers and close the network; what was sent before arrives, or is reported (N42).

    Blocks until that is done, `Settings.give_up_s` and a moment at most. Does nothing when no network runs, and when
    another thread does it already. Any thread but the kernel's and the engine's, before the kernel is stopped.
    """
    global _network
    with _network_lock:
        network = _network
        if network is None or network.closing:
            return
        network.closing = True
    closed = threading.Event()

    def closing() -> Generator:
        """A system task: this thread waits for its end, whatever becomes of it."""
        try:
            yield network.close()
        finally:
            closed.set()
    network.spawn(closing)
    closed.wait(settings.give_up_s + _FAREWELL_S)
    network.files.close()
    network.engine.end()
    _network = None


def _forget_network_after_fork() -> None:
    """A forked child has the parent's connections and none of its threads: it closes its copies, so that the end of the
    parent is seen by its peers, and starts anew. The poller is shared with the parent: nothing is unregistered. What is
    sent by references of the parent's fails until this process has met theirs by a network of its own."""
    global _network, _network_lock
    network, _network = _network, None
    _network_lock = threading.Lock()
    Singleton._lock = threading.RLock()
    Singleton.discard(Pycos)
    _deliveries.clear()
    _awaited.clear()
    if network is not None:
        for sock in network.sockets + [link.sock for link in network.links if link.sock is not None]:
            sock.close()
        network.engine.close()
        for peer in network.everybody():
            peer.state, peer.reason = "lost", "it is a peer of the process that this one was forked from"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_network_after_fork)


def running_network() -> Optional[Network]:
    """This process's network, or None while none is running: this never starts one. Any thread."""
    return _network


def _kernels() -> List[Kernel]:
    """The network engine and the kernel of user tasks, as far as they run."""
    return [kernel for kernel in (_network.engine if _network else None, running_kernel()) if kernel is not None]


_INSIDE = {                             # where the inside of what runs a generator is: its frame, what it delegates to
    types.GeneratorType: ("gi_frame", "gi_yieldfrom"),
    types.CoroutineType: ("cr_frame", "cr_await"),
    types.AsyncGeneratorType: ("ag_frame", "ag_await"),
}
_WAITS = {                              # class of a wait -> text of what ends it; the first base found counts
    type(RECEIVE): lambda wait: "a message",
    _Receive: lambda wait: "a message",
    Suspend: lambda wait: "resume()" if wait.timeout is None else "resume(), or its time",
    _Timed: lambda wait: "%g s to pass" % wait.timeout,
    Join: lambda wait: "the end of %r" % wait.target,
    FutureResult: lambda wait: "%r" % wait.future,
    _Acquire: lambda wait: "a lock that %r holds" % (wait.lock.owner,),
    _Notified: lambda wait: "notify() of a Condition, or its lock, among %d tasks" % len(wait.line),
    _EventWait: lambda wait: "an Event to be set",
    _TakeUnit: lambda wait: "a Semaphore at 0, among %d tasks" % len(wait.line),
    _Enough: lambda wait: "a channel to have %d subscribers" % wait.n,
    _ThreadCall: lambda wait: "%s() in a thread of its pool" % getattr(wait.function.func, "__name__", "a call"),
    _Operation: lambda wait: "%r (%s)" % (wait.stream, type(wait).__name__.strip("_")),
    _Call: lambda wait: "%r (%s)" % (wait.stream, wait.function.__name__),
    _Exit: lambda wait: "the exit of process %d" % wait.process.pid,
    _Ask: lambda wait: "the answer of %s to '%s'" % (wait.peer, wait.op),
    _Connect: lambda wait: "a connection to %s" % ", ".join(map(repr, wait.locations)),
    _Deliver: lambda wait: "the delivery to %r" % wait.target,
    _HeldBack: lambda wait: "%s, which takes messages too slowly" % wait.peer,
    _Remote: lambda wait: "an answer from the network (%s)" % wait.function.__name__.strip("_"),
    Request: lambda wait: type(wait).__name__.strip("_"),
}


def _inside(generator: Any) -> Iterator[Tuple[str, int, str]]:
    """(file, line, function) of a generator or coroutine, and of those it delegates to."""
    while type(generator) in _INSIDE:
        frame_of, inside_of = _INSIDE[type(generator)]
        frame = getattr(generator, frame_of)
        if frame is not None and frame.f_code is not Request.__iter__.__code__:
            yield frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
        generator = getattr(generator, inside_of)


def _running_inside(kernel: Kernel) -> Iterator[Tuple[str, int, str]]:
    """The same of what the thread of a kernel calls from its loop: all frames above the innermost `run_ready`, as the
    loop of one kernel may drive that of the other."""
    top = sys._current_frames().get(kernel.owner or 0)
    frames = list(traceback.walk_stack(top))[::-1] if top is not None else []
    loops = [n for n, (frame, _) in enumerate(frames) if frame.f_code is Kernel.run_ready.__code__]
    for frame, line in frames[max(loops) + 1:] if loops else ():
        yield frame.f_code.co_filename, line, frame.f_code.co_name


def _stack(task: Task) -> List[Tuple[str, int, str]]:
    """(file, line, function) of what a task is in, outermost first; of the running one with the plain calls it makes.
    A generator that is in a plain call is on its thread's stack, its callers never are."""
    found = [place for caller in list(task.callers or ()) for place in _inside(caller)]
    innermost = list(_running_inside(task.kernel)) if task.kernel.current is task else []
    return found + (innermost or list(_inside(task.generator)))


def _snapshot(changing: Any) -> list:
    """The items of what another thread may change at this moment. Empty after ten attempts that were all disturbed: a
    list with a gap is better than a `dump` that fails. No lock, which a stuck thread might hold."""
    for _ in range(10):
        try:
            return list(changing)
        except RuntimeError:            # it just has
            continue
    return []


def _tasks_of(kernel: Kernel) -> Iterator[dict]:
    """The tasks of a kernel for `Pycos.status`."""
    ready = {task.id for task in _snapshot(kernel.ready)}
    for task in _snapshot(kernel.tasks.values()):
        state = "running" if kernel.current is task else "ready" if task.id in ready else "waiting"
        yield _described(task, state)


def _described(task: Task, state: str) -> dict:
    """A task in `Pycos.status`. What it waits for is asked while its kernel may run on: it can be over by then."""
    wait, text, waited = task.wait, None, None
    if state == "waiting" and wait is not None:
        try:
            text = next(_WAITS[base] for base in type(wait).__mro__ if base in _WAITS)(wait)
        except (AttributeError, TypeError):
            text = type(wait).__name__.strip("_")
        now = task.kernel.clock()
        waited = max(0.0, now - getattr(task, "since", now))        # it may be about to wait for the first time
    return {"id": task.id, "name": task.name, "daemon": task.daemon, "system": isinstance(task.kernel, Engine),
            "state": state, "waits_for": text, "waited_s": waited, "mailbox": len(task.mailbox or ()),
            "stack": [list(place) for place in _stack(task)]}


def _dumped(task: dict) -> Iterator[str]:
    """The lines of `dump` on one task of `Pycos.status`."""
    kinds = [kind for kind in ("daemon", "system") if task[kind]]
    yield "task %s/%d%s is %s%s%s; messages in its mailbox: %d" % (
        task["name"], task["id"], " (%s)" % ", ".join(kinds) if kinds else "", task["state"],
        " for " + task["waits_for"] if task["waits_for"] else "",
        ", for %.1f s" % task["waited_s"] if task["waited_s"] is not None else "", task["mailbox"])
    for place in task["stack"]:
        yield '  File "%s", line %d, in %s' % tuple(place)
        source = linecache.getline(place[0], place[1]).strip()
        if source:
            yield "    " + source


def dump(file: Any = None) -> None:
    """Write what every task is doing, with its stack, and where every other thread is, to `file` (None: stderr): for
    programs that hang. Any thread, in any state of the program, also a signal handler; see
    `Pycos.enable_dump_signal`."""
    status = Pycos.status()
    lines = ["%d tasks in process %d:" % (len(status["tasks"]), status["pid"])]
    for task in status["tasks"]:
        lines.extend(_dumped(task))
    ours = {kernel.owner for kernel in _kernels()}
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        if ident not in ours:
            lines.append("thread %s:" % names.get(ident, ident))
            lines += [line.rstrip("\n") for line in traceback.format_stack(frame)]
    lines += ["peer %(name)s at %(location)s is %(state)s" % peer for peer in status["peers"]]
    file = file or sys.stderr
    file.write("\n".join(lines) + "\n")
    file.flush()


class _Once(Singleton):
    """Singleton whose options may also come later, as long as they can be followed; else there is a warning.

    Programs of old call ``Pycos()`` wherever they need the scheduler, and often before the call that has the options:
    what was started without a network must be able to get one by these.
    """

    def __call__(cls, *args: Any, **options: Any) -> Any:
        """The object; options are for a new one, or added to the one that is there. Any thread."""
        with Singleton._lock:
            found = Singleton._instances.get(cls)
            if found is not None and options:
                found.add_options(options)
            return super().__call__(*args, **options)

    def instance(cls, *args: Any, **options: Any) -> Any:
        """The object, made with the options if there is none: ``Pycos.instance()`` of older programs, the same as
        ``Pycos()``. Any thread."""
        return cls(*args, **options)


_NOT_BUILT = {                          # option of older programs -> (what it is without it, why it is refused)
    "notifier": (None, "the best poller of the platform is used"),
}


def _listed(places: Any) -> list:
    """A host or a peer, several, or none, as a list."""
    several = [places] if isinstance(places, (str, Location)) else places or ()
    return [place for place in several if place != ""]


def _is_count(value: Any) -> bool:
    """A number of bytes, for one. True is an int otherwise, and would be taken for 1."""
    return type(value) is int and value >= 0


def _is_port(value: Any) -> bool:
    """0 is for any that is free."""
    return _is_count(value) and value < 1 << 16


def _are_ports(value: Any) -> bool:
    """One, or some to be tried in their order: an iterator could be looked at only once."""
    return all(map(_is_port, value)) if isinstance(value, (list, tuple, range)) else _is_port(value)


def _are_hosts(value: Any) -> bool:
    """Whether they are there is found when they are listened at."""
    return isinstance(value, str) or isinstance(value, (list, tuple, set)) and all(
        isinstance(host, str) for host in value)


def _fits_handshake(value: Any) -> bool:
    """It must leave room for all else that a handshake tells."""
    return isinstance(value, str) and len(json.dumps(value)) <= 514


_A_NAME = "a text of at most 512 bytes"
_A_SIZE = "a number of bytes; None or 0: no limit"
_HOSTS = "an address of this machine, as a text, or a list of them"
_RULES: Dict[str, Tuple[Callable[[Any], bool], str]] = {       # option -> what holds for each value but None, in words
    "host": (_are_hosts, _HOSTS),
    "ext_host": (_are_hosts, "an address, as a text, or a list of them"),
    "tcp_port": (_are_ports, "a port number (0 to 65535), or a list or range of them"),
    "udp_port": (_is_port, "a port number (0 to 65535)"),
    "name": (_fits_handshake, _A_NAME),
    "cluster": (_fits_handshake, _A_NAME),
    "max_file_size": (_is_count, _A_SIZE),
    "max_total_size": (_is_count, _A_SIZE),
}


def _hosts_of_family(hosts: Any, family: int) -> List[str]:
    """Addresses of that family of `hosts`; without any the one that means all. Raises MisuseError when one has none."""
    found = []
    for host in _listed(hosts):
        info = PeerCalls.host_addrinfo(host, family)
        if info is None:
            raise MisuseError("Pycos(host=%r, socket_family=%r): that host has no address of that family" % (
                host, family))
        found.append(info.ip)
    return found or ["::" if family == socket.AF_INET6 else "0.0.0.0"]


def _make_folder(path: Optional[str]) -> None:
    """The directory for received files, if one was named. Raises OSError with a full sentence."""
    try:
        if path:
            os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, "the directory for received files, dest_path=%r, cannot be made: %s" % (
            path, error.strerror)) from None


class Pycos(PeerCalls, FileCalls, metaclass=_Once):
    """The scheduler of this process: kernel and network. Made once; options count until the network has started.

    Without options it is local; the network starts with the first option, or when it is first needed.

        scheduler = pycoslite.Pycos(name="collector", secret_file="cluster.secret")
        ...                             # tasks; further calls of Pycos() give the same object
        scheduler.finish()              # or leave it to the end of the program

    Options:

        host            (or node, ip_addr) address of this machine to listen at, or a list of them; all interfaces
        tcp_port        None: 9705 if it is free, else any; 0: any; or a number, which must be free
        udp_port        of discovery; None or 0: 9705
        ext_host        (or ext_ip_addr) address, or list of them, that others are told instead, the first for the first
                        `host` and so on: that of a gateway which hands connections to its `tcp_port` on to this machine
        socket_family   socket.AF_INET or AF_INET6: listen at addresses of that family alone
        ipv4_udp_multicast  search by the multicast group IPV4_MULTICAST_GROUP and not by broadcast: False
        name            what others call this process; this host's name
        discover_peers  search the local networks at start, and be found: True
        peers           list of `Location`, or texts like "host:port", to contact, however late they start
        secret          text that all of the cluster share; False runs open; else see section 17
        secret_file     file that holds it, or a random key
        certfile        certificate for TLS with all peers, and its key unless that is in ...
        keyfile         ... another file; without a CA all peers have copies of one self-signed pair
        cafile          CA that has signed the certificates of all peers
        certname        name that all these certificates must have; see `certificates`
        cluster         name; clusters never meet
        dest_path       (or dest_path_prefix) directory for received files; "pycoslite" in the temporary directory
        max_file_size   most bytes that a received file may have; None or 0: no limit
        max_total_size  most bytes that all files in that directory may have together, with those on their way; likewise

    Raises TypeError for another option, MisuseError for a value that an option cannot have, for an option of older
    programs that cannot be had (notifier) and for a host without an address of `socket_family`, ValueError for a peer
    that is no address, SecretError also for a certificate, OSError when it cannot listen or make `dest_path`. Nothing
    has started then, and the next call with options tries anew. Any thread.
    """

    networked = False                   # whether the network starts with the first task, as once `pycos.netpycos` did
    _making = False                     # guarded by Singleton's lock
    _ALIASES = {"node": "host", "ip_addr": "host", "ext_ip_addr": "ext_host", "dest_path_prefix": "dest_path"}
    _OPTIONS = {"host", "udp_port", "tcp_port", "ext_host", "name", "discover_peers", "peers", "secret", "secret_file",
                "cluster", "role", "socket_family", "ipv4_udp_multicast",
                "dest_path", "max_file_size", "max_total_size", "certfile", "keyfile", "cafile",
                "certname"}

    def __init__(self, **options: Any) -> None:
        self._options = self._checked(options)
        self._lock = threading.Lock()       # guards: the start of the network
        self._network: Optional[Network] = None
        self._farewells: List[tuple] = []   # (priority, function, args, kwargs) in the order they came
        Pycos._making = True
        try:
            self.kernel = default_kernel()
        finally:
            Pycos._making = False
        if options or Pycos.networked:
            self._start()

    @classmethod
    def _checked(cls, options: dict) -> dict:
        """The options under their present names, without those that ask for nothing."""
        given = {cls._ALIASES.get(name, name): value for name, value in options.items()}
        unknown = set(given) - cls._OPTIONS - set(_NOT_BUILT)
        if unknown:
            raise TypeError("Pycos() has no option %s; it has: %s" % (
                ", ".join(sorted(unknown)), ", ".join(sorted(cls._OPTIONS))))
        for name in set(given) & set(_NOT_BUILT):
            value, (nothing, reason) = given.pop(name), _NOT_BUILT[name]
            if value and value != nothing:
                raise MisuseError("Pycos(%s=%r) cannot be had yet: %s. Leave it out" % (name, value, reason))
        for name in sorted(set(given) & set(_RULES)):
            value, (holds, wanted) = given[name], _RULES[name]
            if value is not None and not holds(value):
                raise MisuseError("Pycos(%s=%.200r): it must be %s" % (name, value, wanted))
        if given.get("dest_path"):
            given["dest_path"] = os.path.expanduser(os.fsdecode(given["dest_path"]))
        family = given.pop("socket_family", None)
        if family not in (None, socket.AF_INET, socket.AF_INET6):
            raise MisuseError("Pycos(socket_family=%r): it must be socket.AF_INET or socket.AF_INET6" % (family,))
        if family is not None:
            given["host"] = _hosts_of_family(given.get("host"), family)
        return given

    def add_options(self, options: dict) -> None:
        """Options given to a later ``Pycos(...)``: followed while the network has not started, else a warning. Any
        thread."""
        options = self._checked(options)
        with self._lock:
            if running_network() is None:
                before = self._options
                self._options = dict(before, **options)
                try:
                    self._start()
                except BaseException:
                    self._options = before      # or no later call could do better
                    raise
                return
        late = [name for name, value in options.items() if self._options.get(name, value) != value or
                name not in self._options]
        if late:
            log.warning("Pycos(%s=...) is ignored: the network has started already, give options to the first Pycos()",
                        "=..., ".join(sorted(late)))

    def _start(self) -> None:
        """Start the network with the options so far: whatever may be wrong with them is found before a port is open,
        so that a mistake leaves no half of a network; peers that were named are contacted last, in tasks of their own,
        as one may not answer for long."""
        get = self._options.get
        hosts, announced = _listed(get("host")), _listed(get("ext_host"))
        peers = [_location(place) for place in _listed(get("peers"))]
        _make_folder(get("dest_path"))
        key = secret_key(get("secret"), get("secret_file"))
        tls = certificates(get("certfile"), get("keyfile"), get("cafile"), get("certname"))
        cluster = "pycoslite" if get("cluster") is None else get("cluster")
        network = start_network(hosts, get("tcp_port"), get("name"), key=key, cluster=cluster,
                                role=get("role") or "peer", tls=tls, announced=announced)
        self._network = network
        network.files.begin(get("dest_path"), get("max_file_size"), get("max_total_size"))
        self.discovery = network.discovery = Discovery(network, get("udp_port") or settings.net_port,
                                                       multicast=bool(get("ipv4_udp_multicast")))
        log.info('"%s" listens at %s', network.name, ", ".join(map(repr, network.locations)))
        if get("discover_peers", True):
            network.post(self.discovery.answer)
            network.post(self.discovery.search, ROLES["peer"])
        for location in peers:
            network.spawn(self._contact_later, location)

    @property
    def network(self) -> Network:
        """The network, started with the options so far when it is not running yet: may block for as long as listening
        and reading the secret take. Raises what `Pycos(...)` does. Any thread but the engine's."""
        with self._lock:
            if self._network is None:
                self._network = running_network()       # `start_network` was used
            if self._network is None:
                self._start()
        return self._network                # type: ignore[return-value]

    @property
    def location(self) -> Optional[Location]:
        """Where this process can be reached; None without a network. Any thread."""
        return next(iter(self.locations), None)

    @property
    def locations(self) -> List[Location]:
        """All addresses of this process that others are told, the preferred one first (see section 20); empty without
        a network, which this does not start. A new list each time. Any thread."""
        network = running_network()
        return list(network.locations) if network else []

    @property
    def name(self) -> str:
        """What this process is called by others; empty without a network. Any thread."""
        network = running_network()
        return network.name if network else ""

    def __repr__(self) -> str:
        return '"%s" @ %s' % (self.name, self.location) if self.locations else "<Pycos without network>"

    @staticmethod
    def cur_task(scheduler: Optional["Pycos"] = None) -> Optional[Task]:
        """The running task of this thread; None outside of tasks. There is one `scheduler` at most, and no need to name
        it. Any thread."""
        for kernel in _kernels():
            if kernel.owner == get_ident() and kernel.current is not None:
                return kernel.current
        return None

    cur_coro = cur_task

    @staticmethod
    def scheduler() -> Optional["Pycos"]:
        """The scheduler that runs the calling thread (that of a task); None in other threads. Any thread."""
        return Pycos() if any(kernel.owner == get_ident() for kernel in _kernels()) else None

    def is_alive(self) -> bool:
        """Whether the kernel that this object was made for runs, and is not about to end. Any thread."""
        return running_kernel() is self.kernel and not self.kernel.stopping

    # -- the end -------------------------------------------------------------------------------------------------------

    def _outside(self, call: str) -> None:
        """Refuse what would block the thread that all tasks need: raises MisuseError when the calling thread runs a
        kernel, user or system."""
        if any(kernel.owner == get_ident() for kernel in _kernels()):
            raise MisuseError("Pycos().%s() was called inside a task, which would block all of them: call it in the "
                              "main thread" % call)

    def join(self, show_running: bool = False, timeout: Optional[float] = None) -> bool:
        """Block until only daemon tasks are left, at most `timeout` seconds (None: no limit); True if so. With
        `show_running` the log names those that are waited for. Nothing is shut down: more tasks may follow. Any thread
        that runs no tasks; raises MisuseError inside a task."""
        self._outside("join")
        if show_running:
            names = [repr(task) for task in list(self.kernel.tasks.values()) if not task.daemon]
            log.warning("waiting for %s", ", ".join(names) or "nothing")
        return self.kernel.join(timeout)

    def finish(self) -> None:
        """Wait for all non-daemon tasks, then shut down: peers are told goodbye once they have what was sent to them
        (N42). Happens by itself when the program ends. A new `Pycos` can be made after. Blocks. Raises MisuseError
        inside a task."""
        self._outside("finish")
        if self.is_alive():
            self.kernel.join()
        self.terminate()

    def terminate(self) -> None:
        """End all tasks, daemons or not, and shut down as `finish` does; a new `Pycos` can be made after. Again does
        nothing. Raises MisuseError inside a task."""
        self._outside("terminate")
        if self.is_alive():
            stop_default()
        if Singleton._instances.get(Pycos) is self:
            Singleton.discard(Pycos)

    def atexit(self, priority: int, function: Callable, *args: Any, **kwargs: Any) -> None:
        """Call `function(*args, **kwargs)` at shutdown, once all tasks have ended, in the thread that shuts down: those
        of higher priority first, of equal ones the last added (P08). What it raises is logged and stops no other. Any
        thread."""
        self._farewells.append((priority, function, args, kwargs))

    def drop_atexit(self, priority: int, function: Callable) -> None:
        """Forget all that `atexit` was told of `function` at that priority. Any thread."""
        self._farewells[:] = [entry for entry in self._farewells if entry[:2] != (priority, function)]

    def say_farewell(self) -> None:
        """Make the calls that `atexit` was told of, each once; calls that they add are made, too. The shutdown does
        this; a program need not."""
        while self._farewells:
            last = max(reversed(self._farewells), key=lambda entry: entry[0])
            self._farewells.remove(last)
            _, function, args, kwargs = last
            try:
                function(*args, **kwargs)
            except Exception:
                log.exception("a function registered with Pycos().atexit failed: %r", function)

    # -- what goes on --------------------------------------------------------------------------------------------------

    @staticmethod
    def status() -> dict:
        """What goes on in this process, fit for JSON: its `name`, `locations` and `pid`; `tasks`, each with `id`,
        `name`, `daemon`, `system`, `state` ('running', 'ready' or 'waiting'), `waits_for` (a text), `waited_s` (for
        how long), `mailbox` (messages in it) and `stack` ([file, line, function], outermost first); `peers`, each with
        `name`, `location`, `state`, `security` and `connections` (see `Peer`). Any thread."""
        network = running_network()
        return {"pid": os.getpid(), "name": network.name if network else "",
                "locations": [repr(location) for location in network.locations] if network else [],
                "tasks": [task for kernel in _kernels() for task in _tasks_of(kernel)],
                "peers": [{"name": peer.name, "location": repr(peer.location) if peer.location else None,
                           "state": peer.state, "security": peer.security, "connections": peer.connections}
                          for peer in _snapshot(network.peers.values())] if network else []}

    @staticmethod
    def enable_dump_signal(number: Optional[int] = None) -> None:
        """Have `dump` write to stderr whenever the process gets the signal `number`, SIGQUIT if None (Ctrl-\\ in a
        terminal). The environment variable PYCOSLITE_DUMP_SIGNAL=1 does the same when the first task starts. Raises
        MisuseError on a platform without SIGQUIT and outside of the main thread."""
        number = number or getattr(signal, "SIGQUIT", None)
        if number is None or threading.current_thread() is not threading.main_thread():
            raise MisuseError("a signal that dumps all tasks can be asked for in the main thread only, and by its "
                              "number where there is no SIGQUIT")
        signal.signal(number, lambda _number, _frame: dump())


def _start_what_was_asked_for() -> None:
    """The first task has been made: the network of programs that import `pycos.netpycos`, and the dump signal."""
    if os.environ.get("PYCOSLITE_DUMP_SIGNAL") == "1":
        try:
            Pycos.enable_dump_signal()
        except MisuseError as error:
            log.warning("PYCOSLITE_DUMP_SIGNAL=1 is ignored: %s", error)
    if Pycos.networked and not Pycos._making:
        Pycos()


def _part() -> None:
    """The kernel has ended: the object made for it does what is left to do (calls that `Pycos.atexit` was told of), and
    the next `Pycos()` is a new one."""
    found = Singleton._instances.get(Pycos)
    if found is not None:
        found.say_farewell()
        Singleton.discard(Pycos)


class _Module(types.ModuleType):
    """The class of this module: the documented constants are attributes of it that can be assigned. They stand for
    fields of `settings`, so assign them before the network starts."""

    MsgTimeout = property(lambda _module: settings.message_timeout_s,
                          lambda _module, seconds: setattr(settings, "message_timeout_s", seconds),
                          doc="Seconds that a control message may take.")
    NetPort = property(lambda _module: settings.net_port, lambda _module, port: setattr(settings, "net_port", port),
                       doc="Port of discovery, and the first TCP port tried.")
    PickleProtocolVersion = property(lambda _module: PROTOCOL, lambda _module, version: set_pickle_protocol(version),
                                     doc="Protocol of `serialize`; see `set_pickle_protocol`.")

    def _ignored(self, _value: Any) -> None:
        """Setter of constants that steered what is no more: programs that assign them go on, and are told."""
        log.warning("that constant has no effect any more: a peer that cannot be reached is given up after "
                    "settings.give_up_s (%g seconds), ports are options of the programs", settings.give_up_s)

    MaxConnectionErrors = property(lambda _module: 10, _ignored, doc="Of older programs; no effect.")
    IPV4_MULTICAST_GROUP = property(lambda _module: settings.ipv4_group,
                                    lambda _module, group: setattr(settings, "ipv4_group", group),
                                    doc="Group by which IPv4 networks are searched if Pycos(ipv4_udp_multicast=True).")
    IPV6_MULTICAST_GROUP = property(lambda _module: settings.ipv6_group,
                                    lambda _module, group: setattr(settings, "ipv6_group", group),
                                    doc="Group by which IPv6 networks are searched.")
    DispycosSchedulerPort = property(lambda _module: settings.net_port, _ignored, doc="The scheduler's; NetPort.")
    DispycosNodePort = property(lambda _module: settings.net_port + 1, _ignored, doc="The node program's.")


AsynCoro = Pycos
Coro = Coroutine = Task
RTI = RCI = RPS
SysCoro = SysTask
AsynCoroSocket = AsyncSocket
Task.scheduler = staticmethod(lambda: Pycos())      # type: ignore[attr-defined]
Task.location = property(                           # type: ignore[attr-defined]
    lambda task: Pycos().location, doc="Where the task's process can be reached; None without a network.")

copyreg.pickle(SysTask, _reduce_task)               # type: ignore[arg-type]
sys.modules[__name__].__class__ = _Module
NETWORK_STARTERS.append(lambda: Pycos().network)
STARTERS.append(_start_what_was_asked_for)
STOPPERS.append(stop_network)
AFTERWARDS.append(_part)

# ======================================================================================================================
# 27. Doctor                                                      why two processes do not find each other, step by step
# ======================================================================================================================
#
# A step is a function that takes the `_Case`, which holds what earlier steps have found, and gives a `Finding`. The two
# tables at the end say in which order steps run and which earlier ones each needs: if one of those has failed (or was
# skipped), so is the step. Nothing is imitated: the doctor is a process of the cluster while it runs, in a role that
# nobody searches, and it searches, dials and proves the secret with the code of sections 7 and 19 to 21, of which it
# only writes down how far it got. So a step that is found well is well for a peer, too.
#
# The report is a dict, which --json prints as it is. Its names stay; later releases may add more:
#
#   pycoslite, python   releases of both: texts            target     HOST as it was given, or null
#   host, at            this machine, seconds since 1970   cluster    its name
#   status              "ok", "warning" or "failed": the worst of the steps
#   steps               list of {"step": its name, "status": as above or "skipped", "seen": sentence, "advice":
#                       sentence or "", "details": {} or what a program may want of it, named as in the step}
#   processes           list of {"name", "location", "role", "python", "release", "cluster", "round_trip_s", "clock_s":
#                       how much its clock is ahead of this one, "problem": sentence or ""}; null where not known
#   log                 list of warnings that other parts logged meanwhile

_OK, _WARNING, _FAILED, _SKIPPED = "ok", "warning", "failed", "skipped"         # status of a finding
_SEARCH_S = 3.0                         # processes have this long to answer a search
_ECHO_S = 0.5                           # own broadcasts must have come back by then
_CLOCK_APART_S = 30.0                   # clocks that differ by more deserve a word
_SHORT_SECRET = 12                      # characters of a typed secret that look short
_ROUND_TRIPS = 5


@dataclasses.dataclass
class Finding:
    """What a step of the doctor has found: `status` 'ok', 'warning', 'failed' or 'skipped', what was `seen` and what to
    change (`advice`) as sentences, and `details` for programs."""

    status: str
    seen: str
    advice: str = ""
    details: dict = dataclasses.field(default_factory=dict)


def _several(count: int, thing: str, ending: str = "s") -> str:
    """'1 thing' or '2 things'."""
    return "%d %s%s" % (count, thing, "" if count == 1 else ending)


def _split(status: str, sentence: str, **details: Any) -> Finding:
    """A finding from one of this package's own refusals, which say what was seen, a colon, and what to change."""
    seen, _, advice = sentence.partition(": ")
    return Finding(status, seen, advice, details)


def _unless_out_of_files(error: OSError, advice: str) -> str:
    """What to change after `error`: `advice`, unless it is only that too many files and connections are open."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "let programs open more files and connections: ulimit -n, or LimitNOFILE= of a systemd service"
    return advice


class _Survey(Discovery):
    """A search that connects to nobody, and notes who answers from any cluster; engine only, but what it has noted may
    be read by any thread.

    Others see nothing unusual: its pings are those of any process, for every cluster, and it answers none, as nobody
    looks for its role. It hears its own broadcasts, which a peer ignores: they tell what this machine lets through.
    """

    def __init__(self, network: Network, udp_port: int) -> None:
        super().__init__(network, udp_port, [])
        self.cluster = None                         # search all
        self.echoes: set = set()                    # addresses from which own pings came back
        self.found: Dict[bytes, List[Location]] = {}        # processes of this cluster, where they answered
        self.others: Dict[bytes, bytes] = {}        # processes of other clusters -> their cluster's tag
        self.strangers: set = set()                 # addresses of processes that have another secret

    def _take(self, sock: socket.socket, address: tuple, data: bytes) -> None:
        """Note what a datagram tells; nothing is answered."""
        network = self.network
        datagram = parse_datagram(network.key, None, data)
        if datagram is None:
            return
        if datagram.process_id == network.process_id:
            self.echoes.add(address_text(address))
        elif datagram.nonce in self._nonces and datagram.kind == REFUSAL:
            self.strangers.add(address_text(address))
        elif datagram.nonce in self._nonces and datagram.kind == PONG and datagram.authentic:
            if parse_datagram(network.key, network.cluster, data) is None:
                self.others.setdefault(datagram.process_id, _DATAGRAM.unpack_from(data)[6])
            else:
                places, place = self.found.setdefault(datagram.process_id, []), datagram.location(address)
                places += [place] if place not in places else []


_STAGES = ("connection", "greeting", "version", "encryption", "secret", "cluster", "session")   # of a connection
_REFUSED_AT = {                         # code of a refusal -> stage
    Refusal.SECRET: "secret", Refusal.ONE_SIDED: "secret", Refusal.CLUSTER: "cluster", Refusal.VERSION: "version",
    Refusal.ITSELF: "greeting", Refusal.BUSY: "greeting", Refusal.ONE_CERTIFICATE: "encryption",
    Refusal.CERTIFICATE: "encryption", Refusal.DOWNGRADED: "encryption", Refusal.UNENCRYPTED: "encryption",
}


class _Probe(_Dial):
    """Dials addresses as a peer does and remembers how far the best attempt got.

    Construct it and call `run`, in a thread that is not the engine's. Then read `stage`, that of `_STAGES` at which the
    best attempt ended ('' if messages can flow), `cause` (what ended it), `refusal` (a code of `Refusal`, if it was
    one), `versions` (what the other end speaks, once it has said so) and `peer` (None unless messages can flow).
    """

    def __init__(self, network: Network, locations: List[Location]) -> None:
        super().__init__(network, locations, self._ended)
        self.limit_s = (settings.connect_s + settings.handshake_s) * len(locations) + settings.handshake_s
        self.stage = _STAGES[0]
        self.cause: Optional[Exception] = None      # what ended the best attempt
        self.refusal: Optional[int] = None
        self.versions: Optional[tuple] = None       # of the protocol, as the other end says
        self.peer: Optional[Peer] = None
        self._over = threading.Event()

    def failed(self, error: Exception) -> None:
        """This address did not do. The link tells how far it came: it had not connected, it had not heard HELLO, it was
        refused with a code, or it broke off in between."""
        link, stage, refusal = self.link, _STAGES[0], None
        if link is not None and not link.connecting and link.handshake is not None:
            handshake, refusal = link.handshake, link.handshake.refusal
            self.versions = handshake.peer_versions
            below_tls = link.cipher is not None and not link.cipher.established and isinstance(error, PycosError)
            if refusal is None and below_tls and handshake.channel == BY_SECRET:
                refusal = Refusal.SECRET            # TLS itself has noticed
            stage = _REFUSED_AT.get(refusal, "greeting" if not self.versions else       # type: ignore[arg-type]
                                    "encryption" if below_tls else "secret")
        if self.cause is None or _STAGES.index(stage) > _STAGES.index(self.stage):
            self.stage, self.cause, self.refusal = stage, error, refusal
        super().failed(error)

    def _ended(self, peer: Optional[Peer], _error: Optional[Exception], _gone: bool) -> None:
        self.peer = peer
        self._over.set()

    def run(self) -> "_Probe":
        """Try all addresses; returns itself."""
        self.network.post(self.next)
        if not self._over.wait(self.limit_s):
            self.stage, self.cause = "session", OperationTimeout("it did not get further in %g seconds" % self.limit_s)
        elif self.peer is not None:
            self.stage = ""
        return self


@dataclasses.dataclass
class _Case:
    """What one examination was asked for, and what its steps have found so far.

    Belongs to the thread that examines; only `call` and `meet` reach into the engine, and wait for it. A step may rely
    on what those have set that it is listed to need, and on nothing else.
    """

    target: Optional[str]               # as given; None: this machine
    secret: Any = None                  # False: the cluster runs open
    secret_file: Optional[str] = None   # None: the usual one
    cluster: str = "pycoslite"
    udp_port: int = 0                   # of discovery; 0: the usual one
    wait_s: float = _SEARCH_S           # processes have this long to answer
    tls_files: dict = dataclasses.field(default_factory=dict)       # arguments for `certificates`
    key: Optional[bytes] = None         # from here on what steps have found: the cluster's key, ...
    tls: Optional[Certificates] = None  # ... the certificate to be shown, ...
    network: Any = None                 # ... the running network, from the step 'addresses' on, and ...
    survey: Any = None                  # ... the search in it, ...
    at: Optional[Location] = None       # ... the target, as soon as it is understood, and its numeric addresses, ...
    addresses: List[str] = dataclasses.field(default_factory=list)
    probe: Any = None                   # ... the attempt to connect to it, ...
    processes: List[dict] = dataclasses.field(default_factory=list)     # ... and rows of the report
    steps: Dict[str, dict] = dataclasses.field(default_factory=dict)    # of the report, so far

    def __post_init__(self) -> None:
        self.udp_port = self.udp_port or settings.net_port

    @property
    def fingerprint(self) -> str:
        """Of the key in use, for sentences."""
        return secret_fingerprint(self.key) if self.key is not None else "none"

    def start(self) -> None:
        """Be a process of the cluster, at any free port, so that the usual one stays free to be looked at. Raises
        OSError when there is no network at all, MisuseError when this process has one already."""
        self.network = start_network(None, 0, "doctor on " + socket.gethostname(), key=self.key, cluster=self.cluster,
                                     role="doctor", tls=self.tls)
        self.survey = _Survey(self.network, self.udp_port)

    def call(self, function: Callable, *args: Any) -> Any:
        """Call a function in the engine and wait for its result; raises what it raises. For what is quick: the engine
        does nothing else meanwhile."""
        answers: Any = queue.SimpleQueue()

        def calling() -> None:
            try:
                answers.put((function(*args), None))
            except Exception as error:              # whatever it is, it belongs to the caller
                answers.put((None, error))
        self.network.post(calling)
        result, error = answers.get()
        if error is not None:
            raise error
        return result

    def meet(self, processes: Iterable[List[Location]]) -> None:
        """Connect to processes, each at one of its locations, all at once, and describe them in `processes`. Takes as
        long as the slowest of them, `Settings.message_timeout_s` for each of its steps at most."""
        asking = [self.network.spawn(_described_process, self.network, locations) for locations in processes]
        for task in asking:
            row = task.value()
            if isinstance(row, MonitorStatus):
                raise row
            self.processes.append(row)


def _described_process(network: Network, locations: List[Location]) -> Generator:
    """A row of the report's `processes`, for the process at the first of `locations` that can be reached; `problem`
    says why it is not complete, if it is not. A system task."""
    row = dict.fromkeys(("name", "role", "python", "release", "cluster", "round_trip_s", "clock_s"))
    row.update(location=repr(locations[0]), problem="")
    try:
        peer = yield network.connect(locations, settings.message_timeout_s)
        info = peer.info
        row.update(name=peer.name, location=repr(peer.location), python=_python_of(info))
        row.update((name, info.get(name)) for name in ("role", "release", "cluster"))
        row["round_trip_s"], row["clock_s"] = yield _compared_clocks(peer)
    except PycosError as error:
        row["problem"] = str(error)
    return row


def _python_of(info: dict) -> str:
    """Which Python a process says that it runs; '' when it says nothing that could be one."""
    version = info.get("python")
    return ".".join(map(str, version)) if isinstance(version, list) else ""


def _compared_clocks(peer: Peer) -> Generator:
    """(seconds of the quickest of some round trips, by how much the peer's clock is ahead); in a system task. Raises
    PycosError."""
    best = (math.inf, 0.0)
    for _ in range(_ROUND_TRIPS):
        asked, now = time.monotonic(), time.time()
        reply, _ = yield peer.request("peer.time", timeout=settings.message_timeout_s)
        took = time.monotonic() - asked
        if not isinstance(reply.get("clock"), (int, float)):
            raise ProtocolError("%s: it tells no time when it is asked: is it the same release?" % peer)
        best = min(best, (took, reply["clock"] - now - took / 2))
    return best


# -- steps about this machine ------------------------------------------------------------------------------------------

_LACKING = (                            # (whether it is lacking, what cannot be done then, whether peers may notice)
    (lambda: not hasattr(hashlib, "scrypt"), "hashlib.scrypt is missing: a typed secret cannot be used, a secret file "
                                             "of 64 hexadecimal digits can", True),
    (lambda: importlib.util.find_spec("_ssl") is None, "the ssl module is missing: no TLS", True),
    (lambda: sys.version_info[:3] in ((3, 12, 0), (3, 12, 1)),
     "3.12.0 and 3.12.1 refuse threads and processes that tasks start after the main program has ended", False),
)


def _see_python(_case: _Case) -> Finding:
    """What runs here. WARNING when this Python lacks something that keeps it from peers, or from some of them.

    Details: `lacking`, sentences; also of what peers do not notice.
    """
    lacking = [(text, grave) for missing, text, grave in _LACKING if missing()]
    seen = "%s %s, pycoslite %s in %s" % (sys.implementation.name, sys.version.split()[0], __version__, os.path.dirname(
        os.path.abspath(__file__)))
    grave = any(grave for _, grave in lacking)
    return Finding(_WARNING if grave else _OK, "; ".join([seen] + [text for text, _ in lacking]),
                   "use another Python, or do without" if grave else "", {"lacking": [text for text, _ in lacking]})


def _see_secret(case: _Case) -> Finding:
    """Where the secret is from, who can read it, and its fingerprint. Reads it as a peer does, so makes one when there
    is none yet: that is a WARNING, for the most frequent cause of all is that two machines have made one each. FAILED
    when it cannot be read; then no connection can be tried.

    Details: `path` (null: the environment), `mode` (permissions as a number), `made_now`, `fingerprint`.
    """
    if case.secret is False:
        return Finding(_WARNING, "none is used: whoever reaches a process that runs so can run code in it",
                       "leave out --no-auth, unless nobody else can reach this network")
    path, own = secret_path(None, case.secret_file)
    fresh = own and not os.path.exists(path or "")
    try:
        case.key = secret_key(None, case.secret_file)
    except SecretError as error:
        return _split(_FAILED, str(error), path=path)
    mode = stat.S_IMODE(os.stat(path).st_mode) if path else None
    where = "in %s (mode %04o)" % (path, mode) if path else "in the environment, PYCOSLITE_SECRET"
    details = {"path": path, "mode": mode, "made_now": fresh, "fingerprint": case.fingerprint}
    troubles = (
        (fresh, "; there was none, it was made now", "if other machines have one already, copy theirs to this file, "
         "else copy this file to them: processes with different secrets never meet"),
        (mode is not None and os.name == "posix" and mode & 0o077, "; other users of this machine can read it",
         "run chmod 600 %s" % path),
        (path is None and len(os.environ["PYCOSLITE_SECRET"]) < _SHORT_SECRET, "; it is short",
         "use a longer one, or a secret file of 64 random hexadecimal digits"),
        (True, "", ""))
    text, advice = next(trouble[1:] for trouble in troubles if trouble[0])
    return Finding(_WARNING if advice else _OK, "%s, fingerprint %s%s" % (where, case.fingerprint, text), advice,
                   details)


def _see_encryption(case: _Case) -> Finding:
    """How this end could encrypt; what two ends have agreed on is another step. FAILED when the files of a certificate
    cannot be used.

    Details: `certfile` (null: none), `by_secret`.
    """
    try:
        case.tls = certificates(**case.tls_files)
    except SecretError as error:
        return _split(_FAILED, str(error))
    by_secret = can_encrypt_by_secret() and case.key is not None and settings.encrypt != "never"
    details = {"certfile": case.tls.files["certfile"] if case.tls else None, "by_secret": by_secret}
    if case.tls is not None:
        return Finding(_OK, "TLS with the certificate in %(certfile)s, to peers that have one, too" % details,
                       details=details)
    if by_secret:
        return Finding(_OK, "TLS with the secret, to other hosts whose Python is 3.13 or newer", details=details)
    return Finding(_OK, "none with the secret alone (that takes Python 3.13 or newer at both ends); certificates can "
                   "be had with every Python", details=details)


def _see_addresses(case: _Case) -> Finding:
    """Begin to be a process of the cluster, and tell the addresses under which others hear of it, best first, each with
    the reason why it was chosen. WARNING when they lead nowhere beyond this machine.

    Details: `addresses`, a list of {address, interface, why}.
    """
    try:
        case.start()
    except MisuseError as error:
        return _split(_FAILED, str(error))
    except OSError as error:
        advice = _unless_out_of_files(error, "")
        return Finding(_FAILED, error.strerror, advice) if advice else _split(_FAILED, error.strerror or str(error))
    preferred = source_address("192.0.2.1")
    reasons = {preferred: "packets to other networks leave with it", "127.0.0.1": "this machine has no other"}
    names = {interface.address: interface.name for interface in interfaces()}
    told = [{"address": at.addr, "interface": names.get(at.addr), "why": reasons.get(at.addr, "its interface is up")}
            for at in case.network.locations]
    seen = "others are told %s" % ", ".join("%(address)s (%(interface)s: %(why)s)" % item for item in told)
    details = {"addresses": told}
    if all(is_loopback(item["address"]) for item in told):
        return Finding(_WARNING, seen + ": no other machine can reach this one", "bring a network interface up, unless "
                       "all processes are to run on this machine", details)
    if not preferred:
        seen += "; there is no default route, so only machines of these networks can be reached"
    return Finding(_OK, seen, details=details)


def _see_tcp_port(case: _Case) -> Finding:
    """Whether a program can listen at the usual TCP port. That another process of ours has it already is no fault: the
    next one takes any other. WARNING when something else has it, FAILED when nobody may.

    Details: `port`, `free`.
    """
    port = settings.net_port
    try:
        for listener in _listen([], port):
            listener.close()
    except OSError as error:
        return _taken_port(case, port, error)
    return Finding(_OK, "%d is free, the next program will listen there" % port, details={"port": port, "free": True})


def _taken_port(case: _Case, port: int, error: OSError) -> Finding:
    """What to say of a port that cannot be had: whoever has it is dialled, and how far that comes tells who it is."""
    details = {"port": port, "free": False}
    if error.errno != errno.EADDRINUSE:
        return Finding(_FAILED, "%d cannot be used: %s" % (port, error.strerror), _unless_out_of_files(
            error, "choose another one: PYCOSLITE_NET_PORT on all machines"), details)
    hosts = dict.fromkeys(["127.0.0.1", "::1"] + [at.addr for at in case.network.locations])    # it may be at one only
    probe = _Probe(case.network, [Location(host, port) for host in hosts]).run()
    seen = "%d is in use by " % port
    if probe.peer is not None:
        return Finding(_OK, seen + '"%s", the next program takes any other port' % probe.peer.name, "", details)
    if _STAGES.index(probe.stage) > _STAGES.index("greeting"):
        return Finding(_OK, seen + "a pycoslite process of another cluster or secret, the next program takes any other "
                       "port", "", details)
    return Finding(_WARNING, seen + "something else (%s)" % probe.cause, "others cannot leave out the port when they "
                   "name this machine; PYCOSLITE_NET_PORT on all machines chooses another", details)


def _see_broadcast(case: _Case) -> Finding:
    """Whether the UDP port of discovery can be shared, and whether what this machine sends to its networks comes back
    to itself: where it does not, a firewall on this machine is in the way, and no other machine can be blamed. Begins
    the search whose answers a later step collects.

    Details: `port`, `heard_from` and `not_heard_from` (own addresses).
    """
    survey, port = case.survey, case.udp_port
    try:
        case.call(survey.listen)
        if not case.call(survey.search, sum(ROLES.values())):
            raise OSError(errno.ENFILE, "no more sockets can be had")
    except OSError as error:
        return Finding(_FAILED, "UDP port %d cannot be used: %s" % (port, error.strerror), _unless_out_of_files(
            error, "end the program that holds it alone, or set PYCOSLITE_NET_PORT on all machines; without discovery, "
            "name addresses"), {"port": port})
    networks: Dict[Optional[str], List[str]] = {}       # broadcast address -> own addresses there; one is sent from
    for interface in interfaces():
        if interface.broadcast or interface.address == "127.0.0.1" and sys.platform.startswith("linux"):
            networks.setdefault(interface.broadcast, []).append(interface.address)
    until = time.monotonic() + _ECHO_S
    while time.monotonic() < until and (_not_heard(survey, networks) or not survey.echoes):
        time.sleep(0.01)
    deaf = _not_heard(survey, networks) if survey.echoes else ["any address"]
    details = {"port": port, "heard_from": sorted(survey.echoes), "not_heard_from": deaf}
    if deaf:
        return Finding(_WARNING, "UDP port %d: a broadcast from %s did not come back to this machine itself" % (
            port, ", ".join(deaf)), "let UDP port %d in and out at this machine's firewall; a container or cloud "
            "network may not broadcast at all: name addresses then" % port, details)
    return Finding(_OK, "UDP port %d can be used, broadcasts come back on %s" % (
        port, ", ".join(sorted(survey.echoes))), details=details)


def _not_heard(survey: _Survey, networks: Dict[Optional[str], List[str]]) -> List[str]:
    """An own address on each network from which no broadcast has come back."""
    return sorted(own[0] for own in networks.values() if survey.echoes.isdisjoint(own))


_FIREWALLS = (                          # (name, file that tells whether it is active, text in it, how to open it)
    ("ufw", "/etc/ufw/ufw.conf", "ENABLED=yes", "sudo ufw allow %d"),
    ("firewalld", "/run/firewalld.pid", "", "sudo firewall-cmd --permanent --add-port=%d/tcp --add-port=%d/udp"),
)
_OTHER_FIREWALLS = {                    # sys.platform -> where to look
    "darwin": "System Settings, Network, Firewall: allow incoming connections for Python",
    "win32": "Windows asks once whether Python may accept connections: allow it for private networks, see "
             "'Allow an app through Windows Firewall'",
}


def _see_firewall(_case: _Case) -> Finding:
    """Which firewall is active. Its rules can be read by the administrator alone, so this is never more than a hint,
    and always ok; but with the command to type.

    Details: `active`, a name or null.
    """
    for name, path, text, command in _FIREWALLS:
        try:
            with open(path, encoding="utf8") as file:
                active = text in file.read()
        except OSError:
            continue
        if active:
            ports = (settings.net_port,) * command.count("%d")
            return Finding(_OK, "%s is active; its rules cannot be seen from here" % name, "if others cannot reach "
                           "this machine: " + command % ports, {"active": name})
    other = _OTHER_FIREWALLS.get(sys.platform, "")
    return Finding(_OK, "ufw and firewalld are not active; rules made by hand cannot be seen from here"
                   if not other else "its rules cannot be seen from here", other, {"active": None})


def _see_processes(case: _Case) -> Finding:
    """Who answers the search. Connects to those of this cluster, for the report's table; counts those of other
    clusters, which are recognised by the same secret. WARNING when somebody cannot be connected to, when somebody has
    another secret, and when nobody answers.

    Details: `answered`, `unreachable` (locations), `other_clusters`, `other_processes`, `other_secret` (addresses).
    """
    survey = case.survey
    time.sleep(case.wait_s)
    for peer in list(case.network.peers.values()):          # one that an earlier step has met does not answer any more
        if peer.online:
            survey.found.setdefault(peer.process_id, peer.locations)
    case.meet(survey.found.values())
    trouble = [row for row in case.processes if row["problem"]]
    details = {"answered": len(survey.found), "unreachable": [row["location"] for row in trouble],
               "other_clusters": len(set(survey.others.values())), "other_processes": len(survey.others),
               "other_secret": sorted(survey.strangers)}
    seen = "%s of cluster %r answered within %g s" % (_several(len(survey.found), "process", "es"), case.cluster,
                                                      case.wait_s)
    if survey.others:
        seen += ", and %d of %s" % (len(survey.others), _several(details["other_clusters"], "other cluster"))
    if trouble:
        return Finding(_WARNING, seen + "; cannot be connected to: " + "; ".join(row["problem"] for row in trouble),
                       "run the doctor with each of these addresses", details)
    if survey.strangers:
        return Finding(_WARNING, "%s; at %s there are some with another secret" % (
            seen, ", ".join(details["other_secret"])), "run the doctor there and compare the fingerprints", details)
    if not survey.found:
        return Finding(_WARNING, seen, "start a program on another machine, with the same cluster name and secret; if "
                       "it runs, run the doctor with its HOST:PORT: broadcasts may not get there", details)
    return Finding(_OK, seen, details=details)


def _see_clocks(case: _Case) -> Finding:
    """How far the clocks of the processes met so far are from this one, half the round trip taken off. Discovery and
    messages need no clocks that agree (nonces, not times, keep what is old apart), so it is a WARNING at most.

    Details: `furthest` (location), `clock_s`.
    """
    known = [row for row in case.processes if row["clock_s"] is not None]
    if not known:
        return Finding(_OK, "%s; nobody answered to compare with" % time.strftime("%Y-%m-%d %H:%M:%S %Z"))
    furthest = max(known, key=lambda row: abs(row["clock_s"]))
    ahead = furthest["clock_s"]
    details = {"furthest": furthest["location"], "clock_s": ahead}
    seen = 'the clock of "%s" is %.2f s %s this one' % (
        furthest["name"], abs(ahead), "ahead of" if ahead > 0 else "behind")
    if abs(ahead) > _CLOCK_APART_S:
        return Finding(_WARNING, seen, "set both clocks (timedatectl set-ntp true): messages do not mind, but "
                       "certificates may seem expired or not valid yet, and files and log lines bear wrong times",
                       details)
    return Finding(_OK, seen, details=details)


# -- steps about another one -------------------------------------------------------------------------------------------


def _see_name(case: _Case) -> Finding:
    """What the target is: a port that can be one, a name that the system can resolve. FAILED otherwise.

    Details: `addresses`, numeric, in the order in which a peer would try them.
    """
    try:
        case.at = Location.parse(case.target or "", 0)
        found = socket.getaddrinfo(case.at.addr, case.at.port, type=socket.SOCK_STREAM)
    except ValueError as error:
        return _split(_FAILED, str(error))
    except OSError as error:
        return Finding(_FAILED, "the name %r cannot be resolved (%s)" % (case.at and case.at.addr, error.strerror),
                       "correct it, use the IP address instead, or add the name to DNS or to /etc/hosts")
    case.addresses = list(dict.fromkeys(address_text(address) for _, _, _, _, address in found))
    return Finding(_OK, "%s is %s" % (case.at.addr, ", ".join(case.addresses)), details={"addresses": case.addresses})


def _see_route(case: _Case) -> Finding:
    """By which of its own addresses this machine would send packets there. FAILED when it knows no way at all.

    Details: `source`, {address of the target: own address or ''}.
    """
    sources = {address: source_address(address) for address in case.addresses}
    details = {"source": sources}
    ways = ["packets to %s leave from %s" % item for item in sources.items() if item[1]]
    lost = [address for address, source in sources.items() if not source]
    if not ways:
        return Finding(_FAILED, "there is no route to %s" % ", ".join(lost), "check the address, this machine's cable "
                       "or wireless network, and its routes (ip route)", details)
    if all(map(is_loopback, case.addresses)):
        ways.append("it is this machine itself, where nobody else gets to")
    if lost:
        ways.append("no route to " + ", ".join(lost))
    return Finding(_OK, ", ".join(ways), details=details)


def _see_pings(case: _Case) -> Finding:
    """Whether processes at the target's addresses answer a search sent to them alone, and at which TCP ports they
    listen, which decides the port when the user named none. WARNING, as connections work without: when nobody answers,
    when the port that was named is none of theirs, when they are of another secret or cluster.

    Details: `port` (UDP), `tcp_ports`, `other_processes`, `other_secret` (addresses).
    """
    survey, ports = case.survey, _ask_for_ports(case)
    assert case.at is not None
    if not case.at.port:
        case.at = Location(case.at.addr, ports[0] if ports else settings.net_port)
    udp, tcp = case.udp_port, case.at.port
    details = {"port": udp, "tcp_ports": ports, "other_processes": len(survey.others),
               "other_secret": sorted(survey.strangers)}
    text = "UDP port %d: answered by %s, listening at TCP port %s" % (
        udp, _several(len(ports), "process", "es"), ", ".join(map(str, ports)))
    if tcp in ports:
        return Finding(_OK, text, details=details)
    if ports:
        return Finding(_WARNING, "%s, not %d" % (text, tcp), "is %s meant? (A program with discover_peers=False does "
                       "not answer.)" % " or ".join(map(str, ports)), details)
    if survey.strangers or survey.others:
        return Finding(_WARNING, "processes answer at UDP port %d with another %s" % (
            udp, "secret" if survey.strangers else "cluster name"), "see below, if the same is said of the process at "
            "TCP port %d" % tcp, details)
    return Finding(_WARNING, "nobody answers there at UDP port %d: it will not be found by searching" % udp,
                   "name its address (peers=[...], --peer), or let UDP port %d in at its firewall; a program with "
                   "discover_peers=False does not answer" % udp, details)


def _ask_for_ports(case: _Case) -> List[int]:
    """TCP ports of the processes of this cluster that answer a search sent to the target's addresses."""
    survey = case.survey
    asked = [_EVERYBODY_HERE if is_loopback(address) else address for address in case.addresses]
    case.call(survey.search, sum(ROLES.values()), 0, asked)
    until = time.monotonic() + case.wait_s / 2
    while time.monotonic() < until and not survey.found:
        time.sleep(0.01)
    time.sleep(_ECHO_S)                             # several may answer
    return sorted(places[0].port for places in survey.found.values())


_UNREACHED = {                          # errno -> (what was seen, what to change); %s is host:port
    errno.ECONNREFUSED: ("%s refuses connections: the host is there, and nothing listens at that port",
                         "start the program there, or name the port that it printed at its start; if it listens at "
                         "127.0.0.1 alone (host=...), have it listen at an address that others can reach"),
    errno.ETIMEDOUT: ("%s does not answer: somebody drops the packets",
                      "see that the host is on and the address is right (ping), then let that TCP port in at its "
                      "firewall and at those in between (cloud: security group)"),
    errno.EHOSTUNREACH: ("%s is unreachable: no host of that address on the network, or something refuses to pass "
                         "packets on", "see that the host is on and the address is right; if there is a router or "
                         "firewall in between, have it let that port through"),
    errno.ENETUNREACH: ("there is no route to the network of %s", "check the address and the routes (ip route)"),
    errno.EACCES: ("this machine does not let packets out to %s", "let that port out at this machine's own firewall"),
    errno.EPERM: ("this machine does not let packets out to %s", "let that port out at this machine's own firewall"),
}
_NOT_OURS = ("see which program has that port (there: ss -ltnp): it may be another service, or a process of ours that "
             "is stopped or hangs; name the port that ours printed at its start")


def _unconnected(case: _Case) -> Tuple[str, str]:
    """No TCP connection: refused, dropped, unreachable and forbidden have different causes, so different advice."""
    number = getattr(case.probe.cause, "errno", None)
    text, advice = _UNREACHED.get(number, ("%s cannot be reached: {}".format(case.probe.cause), "check the address"))
    return text % case.at, advice


def _ungreeted(case: _Case) -> Tuple[str, str]:
    """A connection, and no HELLO: another service, or one of ours that does not run on, or has no time."""
    if case.probe.refusal is not None:
        return _unagreed(case)
    text = str(case.probe.cause)
    if isinstance(case.probe.cause, OperationTimeout):
        text = "it accepts the connection and says nothing for %g s, where pycoslite would speak first" % \
            settings.handshake_s
    return text, _NOT_OURS


def _unlike_version(case: _Case) -> Tuple[str, str]:
    """HELLO named no version that this end speaks."""
    there = case.probe.versions or (0, 0)
    return ("it speaks versions %d to %d of the protocol, this one %d to %d" % (there + Handshake.VERSIONS),
            "install the same release of pycoslite (this one is %s) on both machines" % __version__)


def _unagreed(case: _Case) -> Tuple[str, str]:
    """What the handshake itself says, taken apart."""
    seen, _, advice = str(case.probe.cause).partition(": ")
    return seen, advice


def _unlike_secret(case: _Case) -> Tuple[str, str]:
    """The other end did not accept our proof, or TLS below it did not, or one of both has no secret at all."""
    if case.probe.refusal == Refusal.ONE_SIDED:
        return ("it demands a secret and this end has none (--no-auth)", "leave out --no-auth") if case.key is None \
            else ("it runs without a secret, and this end has one", "start it without --no-auth and secret=False")
    if case.probe.refusal == Refusal.SECRET:
        path, _ = secret_path(None, case.secret_file)
        return ("it has another secret than this end (whose fingerprint is %s)" % case.fingerprint,
                "run the doctor there: if it prints another fingerprint, copy %s from one machine to the other; then "
                "restart the program, which read its secret at its start" % (path or "the value of PYCOSLITE_SECRET"))
    return "it ended the handshake without saying why: %s" % case.probe.cause, "look at its log, and try again"


def _unlike_cluster(case: _Case) -> Tuple[str, str]:
    """The proofs were right, the names of the clusters differ (the other end does not tell its own)."""
    return ("the secret is right, and it belongs to another cluster than %r" % case.cluster,
            "start both with the same cluster name (cluster=..., --cluster)")


def _unjoined(case: _Case) -> Tuple[str, str]:
    """All was proved, and no message flows: the sessions of both ends do not agree in time."""
    return "it was connected and goes no further: %s" % case.probe.cause, "look at its log"


def _connected_text(case: _Case) -> str:
    """Who the other end is, by what it said in the handshake."""
    info = case.probe.peer.info
    return '"%s" is connected (%s, Python %s, pycoslite %s)' % (
        case.probe.peer.name, info.get("role"), _python_of(info),
        info.get("release", "of an older release"))


# One attempt gives the findings of all stages: those before the one at which it ended went well, what follows was not
# reached. Stage -> (what is seen if it went well, function that gives what was seen and what to change if not).
_TALK: Dict[str, Tuple[Callable, Callable]] = {
    "connection": (lambda case: "%s accepts connections" % case.at, _unconnected),
    "greeting": (lambda case: "it speaks pycoslite", _ungreeted),
    "version": (lambda case: "both speak version %d of the protocol" % Handshake.VERSIONS[1], _unlike_version),
    "encryption": (lambda case: case.probe.peer.security if case.probe.peer else "both agree about it", _unagreed),
    "secret": (lambda case: "both have proved the same one (fingerprint %s)" % case.fingerprint
               if case.key is not None else "both run without", _unlike_secret),
    "cluster": (lambda case: "both belong to %r" % case.cluster, _unlike_cluster),
    "session": (_connected_text, _unjoined),
}


def _see_stage(stage: str, case: _Case) -> Finding:
    """A step for one of `_STAGES`; the first one dials, the others look at how far that came.

    Details: `location`, what was dialled.
    """
    if case.probe is None:
        assert case.at is not None
        case.probe = _Probe(case.network, [Location(address, case.at.port) for address in case.addresses]).run()
    well, badly = _TALK[stage]
    details = {"location": repr(case.at)}
    if case.probe.stage == stage:
        return Finding(_FAILED, *badly(case), details)
    return Finding(_OK, well(case), details=details)


def _see_round_trip(case: _Case) -> Finding:
    """How long a question and its answer take, over the connection that stands. Details: `round_trip_s`."""
    assert case.at is not None
    case.meet([[case.at]])
    row = case.processes[0]
    if row["problem"] or row["round_trip_s"] is None:
        return Finding(_WARNING, row["problem"] or "it does not tell the time", "look at its log", {})
    return Finding(_OK, "%.3g ms, the quickest of %d" % (row["round_trip_s"] * 1000, _ROUND_TRIPS),
                   details={"round_trip_s": row["round_trip_s"]})


# (name, function, names of earlier steps without which it makes no sense). Steps are called in this order: what is
# cheap and local first, so that the first one that fails is the one to look at.
_HERE_STEPS: Tuple[tuple, ...] = (
    ("python", _see_python, ()),
    ("secret", _see_secret, ()),
    ("encryption", _see_encryption, ("secret",)),
    ("addresses", _see_addresses, ("encryption",)),
    ("TCP port", _see_tcp_port, ("addresses",)),
    ("broadcast", _see_broadcast, ("addresses",)),
    ("firewall", _see_firewall, ()),
    ("processes", _see_processes, ("broadcast",)),
    ("clock", _see_clocks, ("processes",)),
)
_THERE_STEPS: Tuple[tuple, ...] = (
    ("python", _see_python, ()),
    ("own secret", _see_secret, ()),
    ("own TLS", _see_encryption, ("own secret",)),
    ("addresses", _see_addresses, ("own TLS",)),
    ("name", _see_name, ()),
    ("route", _see_route, ("name",)),
    ("discovery", _see_pings, ("addresses", "route")),
) + tuple(
    (stage, functools.partial(_see_stage, stage), _STAGES[index - 1:index] if index else ("addresses", "route"))
    for index, stage in enumerate(_STAGES)
) + (
    ("round trip", _see_round_trip, ("session",)),
    ("clock", _see_clocks, ("round trip",)),
)


class _Overheard(logging.Handler):
    """Collects what is logged while the doctor works, for the report: other sections complain of strangers and files
    that they meet, and those lines would come in between the doctor's."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: List[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def examine(target: Optional[str] = None, told: Optional[Callable[[dict], None]] = None, **options: Any) -> dict:
    """The doctor's report (see above) about this machine, or about the way to the process at `target`, "host:port" or a
    host; `told` is called with each of its steps as soon as it is done.

    Options: `secret` (False: none), `secret_file`, `cluster` and `udp_port`, as of `Pycos`; `tls_files`, arguments for
    `certificates`; `wait_s`, how long processes may take to answer. Starts the network, which must not be running (else
    the step that does so fails), and stops it. Takes some seconds. Any thread that is no task's.
    """
    case, overheard = _Case(target, **options), _Overheard()
    log.addHandler(overheard)
    passing, log.propagate = log.propagate, False
    try:
        for name, function, needs in _THERE_STEPS if target else _HERE_STEPS:
            case.steps[name] = _taken_step(case, name, function, needs)
            if told is not None:
                told(case.steps[name])
    finally:
        if case.network is not None:
            stop_network()
        log.removeHandler(overheard)
        log.propagate = passing
    steps = list(case.steps.values())
    return {"pycoslite": __version__, "python": sys.version.split()[0], "host": socket.gethostname(),
            "at": time.time(), "target": target, "cluster": case.cluster, "steps": steps, "processes": case.processes,
            "status": max((step["status"] for step in steps), key=(_SKIPPED, _OK, _WARNING, _FAILED).index),
            "log": overheard.lines}


def _taken_step(case: _Case, name: str, function: Callable, needs: Iterable[str]) -> dict:
    """A step of the report: what `function` finds, unless one that it needs has failed."""
    failed = next((need for need in needs if case.steps[need]["status"] in (_FAILED, _SKIPPED)), None)
    if failed is None:
        return {"step": name, **dataclasses.asdict(function(case))}
    root = case.steps[failed]["details"].get("failed", failed)
    return {"step": name, **dataclasses.asdict(Finding(_SKIPPED, "not looked at, as '%s' failed" % root, details={
        "failed": root}))}


_MARKS = {_FAILED: "FAILED", _WARNING: "WARNING", _SKIPPED: "not looked at"}
_WIDTH = 98
_ROW = "  %-22.22s %-22.22s %-9.9s %-8.8s %-10.10s %s"


def step_lines(step: dict) -> Iterator[str]:
    """A step of a report as lines for people, of at most `_WIDTH` characters; none for one that was skipped. Pure."""
    if step["status"] != _SKIPPED:
        yield from _wrapped("%-8s%-12s" % (_MARKS.get(step["status"], _OK), step["step"]), step["seen"])
        if step["advice"]:
            yield from _wrapped(" " * 20 + "-> ", step["advice"])


def summary_lines(report: dict) -> Iterator[str]:
    """What stands below the steps: the processes (unless one was named), what was logged, and the steps to look at
    first. Pure."""
    if report["processes"] and not report["target"]:
        yield ""
        yield _ROW % ("NAME", "LOCATION", "ROLE", "PYTHON", "ROUND TRIP", "CLUSTER")
        yield from map(_process_line, report["processes"])
    if report["log"]:
        yield ""
        for line in report["log"]:
            yield from _wrapped("logged  ", line)
    yield ""
    for status, mark in _MARKS.items():
        names = [step["step"] for step in report["steps"] if step["status"] == status]
        if names:
            yield from _wrapped(mark + ": ", ", ".join(names))
    if report["status"] == _OK:
        yield "Nothing is wrong."


def _process_line(row: dict) -> str:
    """A row of the table of processes; `?` for what is not known."""
    took = row["round_trip_s"]
    return _ROW % (row["name"] or "?", row["location"], row["role"] or "?", row["python"] or "?",
                   "?" if took is None else "%.3g ms" % (took * 1000), row["cluster"] or "?")


def _wrapped(head: str, text: str) -> List[str]:
    """Lines of `text`, the first after `head`, the others indented by its length; none is longer than `_WIDTH`. Paths
    and addresses are not cut at hyphens, so that they can be copied."""
    import textwrap                     # not at the top: nothing else needs it
    return textwrap.wrap(text, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)

# ======================================================================================================================
# 28. Command line                                                programs of pycos and asyncoro run as they are written
# ======================================================================================================================
#
#   python3 -m pycoslite run FILE [ARGS]                or, the same, python3 pycoslite.py run FILE [ARGS]
#   python3 -m pycoslite doctor [HOST[:PORT]] [--json]  see section 27
#
# Programs that are run so import modules that this one replaces. A finder gives them modules of those names that hold
# nothing of their own: whatever is read from them, or assigned, is an attribute of ours.
#
# There is one copy of this module in the process, whichever way it was started: a file that is run as a program imports
# itself under its own name and hands over (top of the file), as two copies would have two kernels, and classes whose
# objects do not recognise each other. The program that is run becomes ``__main__``, so that what it pickles (messages
# to other processes) has the names it would have without us.
#
# The names are installed for the whole process, when somebody asks for it and never by importing this module: another
# library of the program may want the original. They are looked up by name alone, and our modules imported when they
# are first wanted, so that a program that does without dispycos does not load it.
#
# Exit status of `main`: that of the command; 2 when it was called wrongly, as argparse has it.

_HERE = ("pycoslite",)
_OLD_MODULES = {                        # name in older programs -> ours; the first that has an attribute counts
    "pycos": _HERE, "pycos.netpycos": _HERE, "pycos.asyncfile": _HERE,
    "pycos.config": _HERE + ("dispycos_lite",), "pycos.dispycos": ("dispycos_lite",), "pycos.httpd": ("httpd_lite",),
    "asyncoro": _HERE, "asyncoro.disasyncoro": _HERE, "asyncoro.asyncfile": _HERE,
    "asyncoro.config": _HERE + ("dispycos_lite",), "asyncoro.discoro": ("dispycos_lite",),
    "asyncoro.discoro_schedulers": ("dispycos_lite",), "asyncoro.httpd": ("httpd_lite",),
}
_NETWORKED = ("pycos.netpycos", "asyncoro.disasyncoro")     # who imports one of these has always had a network


def _ours(name: str, wanted_as: str) -> types.ModuleType:
    """Our module of that name, from where this one is: beside it, in its package, in the same zip file. Raises
    ImportError, with a sentence that names what the program wanted (`wanted_as`), when it is not there."""
    if name == "pycoslite":
        return sys.modules[__name__]
    package = __name__.rpartition(".")[0]
    try:
        return importlib.import_module(name if not package else package + "." + name)
    except ModuleNotFoundError as error:
        if (error.name or "").rpartition(".")[2] != name:
            raise
        raise ImportError("%s cannot be imported: it is %s.py here, which does not lie beside pycoslite.py (yet)" % (
            wanted_as, name), name=wanted_as) from None


class _OldModule(types.ModuleType):
    """A module of an older name; see above.

    Reading an attribute gives that of the first of our modules that has it, assigning sets it there, so that constants
    which programs assign (``pycos.config.MsgTimeout = 4``) count. `__file__` is that of our first module, as examples
    look for files beside it. Raises AttributeError with the name of what it stands for.
    """

    def __init__(self, name: str, targets: List[types.ModuleType]) -> None:
        super().__init__(name, "Stands for %s." % " and ".join(target.__name__ for target in targets))
        self.__dict__["_targets"] = targets

    def __getattr__(self, name: str) -> Any:
        """What the module has not itself: for ``import *``, the public names of our first module but for the modules it
        imports; else the attribute of ours. Of names with double underscores, which importing asks for, only two."""
        if name == "__all__":
            return [public for public in vars(self._targets[0]) if not public.startswith("_")
                    and not isinstance(getattr(self._targets[0], public), types.ModuleType)]
        for target in self._targets:
            if hasattr(target, name) and (name in ("__version__", "__file__") or not name.startswith("__")):
                return getattr(target, name)
        raise AttributeError("%s has no attribute %r: it stands for %s here" % (
            self.__name__, name, " and ".join(target.__name__ for target in self._targets)))

    def __setattr__(self, name: str, value: Any) -> None:
        """Set it in the first of our modules that has it, or in the first one."""
        if name.startswith("__") or isinstance(value, _OldModule):      # what importing sets
            self.__dict__[name] = value
            return
        setattr(next((target for target in self._targets if hasattr(target, name)), self._targets[0]), name, value)


class _OldNames:
    """Finder and loader of the modules of older names (`_OLD_MODULES`), for `sys.meta_path`. It stands first there: a
    program that is run by us gets our modules even where pycos itself is installed."""

    @staticmethod
    def find_spec(name: str, _path: Any = None, _target: Any = None) -> Any:
        """A spec for what is in the table, None for all else, which the other finders look for. Called by the import
        system, as are the other two methods."""
        if name in _OLD_MODULES:
            loader: Any = _OldNames
            return importlib.util.spec_from_loader(name, loader, is_package="." not in name)
        return None

    @staticmethod
    def create_module(spec: Any) -> types.ModuleType:
        """The module that stands for ours, which are imported now. Raises ImportError as `_ours`."""
        return _OldModule(spec.name, [_ours(name, spec.name) for name in _OLD_MODULES[spec.name]])

    @staticmethod
    def exec_module(module: types.ModuleType) -> None:
        """Those that are about networks have it start with the first task, or at `Pycos(...)` with its options: not at
        once, as the options that say how come later in the program."""
        if module.__name__ in _NETWORKED:
            Pycos.networked = True


def install_old_names() -> None:
    """From now on ``import pycos``, ``import asyncoro`` and their modules give this package's, in the whole process;
    again changes nothing. `run_program` does so; a program of its own that imports some of old may, too. Any thread."""
    if _OldNames not in sys.meta_path:
        sys.meta_path.insert(0, _OldNames)              # type: ignore[arg-type]


def run_program(path: str, source: bytes, arguments: Iterable[str] = ()) -> None:
    """Run the Python program that was read from the file `path` as ``__main__``, with the names of older modules
    installed. It stays ``__main__`` afterwards, for its tasks go on. Raises whatever it raises. Main thread."""
    # This file's own `annotations` future must not become the program's.
    code = compile(source, path, "exec", dont_inherit=True)
    install_old_names()
    if "." not in __name__:                             # our other modules are found when they are imported later
        sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    program = types.ModuleType("__main__")
    program.__dict__.update(__file__=path, __builtins__=sys.modules["builtins"])
    sys.modules["__main__"] = program
    sys.argv[:] = [path, *arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(path))
    exec(code, program.__dict__)


def main(arguments: Optional[List[str]] = None) -> int:
    """The command line, `arguments` or those of the process; returns the exit status: 2 when it was called wrongly or
    the program cannot be read, else what the command says. A program that is run may end the process itself. Main
    thread."""
    import argparse                     # not at the top: only programs that are run this way need it
    parser = argparse.ArgumentParser(
        prog="python3 -m pycoslite", description="Lightweight tasks, messages and peers.",
        epilog="Environment: PYCOSLITE_DUMP_SIGNAL=1 has every SIGQUIT (Ctrl-\\) print what all tasks are doing; "
               "PYCOSLITE_SECRET_FILE and the other settings are described in the module.")
    parser.add_argument("--version", action="version", version="pycoslite " + __version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    run = commands.add_parser("run", help="run a program written for pycos or asyncoro, unchanged",
                              description="Run FILE, whose imports of pycos or asyncoro give this package.")
    run.add_argument("file", metavar="FILE", help="the program")
    run.add_argument("arguments", metavar="ARGS", nargs=argparse.REMAINDER, help="its arguments")
    run.set_defaults(function=_run)
    _add_doctor(commands)
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_usage(sys.stderr)
        return 2
    return options.function(options)


def _add_doctor(commands: Any) -> None:
    """The subcommand 'doctor'; no option takes a secret, for other users can read the command line."""
    doctor = commands.add_parser(       # abbreviated, --secret-file would seem to take a secret
        "doctor", allow_abbrev=False, help="say why processes do not find each other",
        description="Walk the way that a peer would, step by step, and say which step failed and what to change: on "
                    "this machine, or to the process at HOST (any that answers there) or HOST:PORT.",
        epilog="Exit status: 0 nothing is wrong, 1 there are warnings, 2 a step failed.")
    doctor.add_argument("target", metavar="HOST[:PORT]", nargs="?", help="a process that should be reached")
    doctor.add_argument("--json", action="store_true", help="print the report as JSON")
    doctor.add_argument("--cluster", metavar="NAME", default="pycoslite", help="name of the cluster (pycoslite)")
    doctor.add_argument("--secret-file", metavar="FILE", help="file of the secret, if it is not the usual one")
    doctor.add_argument("--no-auth", action="store_true", help="the cluster runs without a secret")
    for option, text in (("certfile", "certificate to show to peers"), ("keyfile", "its key, if not in there"),
                         ("cafile", "CA that has signed the peers' certificates")):
        doctor.add_argument("--" + option, metavar="FILE", help=text)
    doctor.add_argument("--udp-port", metavar="PORT", type=int, default=0, help="of discovery, if not the usual one")
    doctor.add_argument("--wait", metavar="SECONDS", type=float, default=_SEARCH_S, help="for answers to a search (3)")
    doctor.set_defaults(function=_doctor)


def _doctor(options: Any) -> int:
    """The command; returns the exit status: that of the report, 130 after Ctrl-C, 2 when nobody reads it to its end."""
    try:
        return _report_of_doctor(options)
    except KeyboardInterrupt:               # names and connections may take their time
        return 130
    except BrokenPipeError:                 # as in `doctor | head`: what is still to be written goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2


def _report_of_doctor(options: Any) -> int:
    """Run the doctor, with each step printed as soon as it is done; with --json nothing else than the report, and that
    once. Returns the exit status: 0 nothing is wrong, 1 there are warnings, 2 a step failed."""
    def told(step: dict) -> None:
        for line in step_lines(step):
            print(line, flush=True)             # at once: a step may take seconds

    if not options.json:
        print("pycoslite %s, Python %s on %s: %s\n" % (
            __version__, sys.version.split()[0], socket.gethostname(),
            "the way to " + options.target if options.target else "this machine"))
    report = examine(options.target, None if options.json else told, cluster=options.cluster, wait_s=options.wait,
                     secret=False if options.no_auth else None, secret_file=options.secret_file,
                     udp_port=options.udp_port,
                     tls_files={name: getattr(options, name) for name in ("certfile", "keyfile", "cafile")})
    for line in [json.dumps(report, indent=2)] if options.json else summary_lines(report):
        print(line)
    sys.stdout.flush()
    return {_OK: 0, _WARNING: 1, _FAILED: 2}[report["status"]]


def _run(options: Any) -> int:
    """Run a program. It is read before anything else is touched, so that a wrong name is one line and no traceback."""
    try:
        with open(options.file, "rb") as file:
            source = file.read()
    except OSError as error:
        print("python3 -m pycoslite: cannot open %s: %s" % (options.file, error.strerror), file=sys.stderr)
        return 2
    run_program(options.file, source, options.arguments)
    return 0
