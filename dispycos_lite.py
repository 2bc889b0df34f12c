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

import collections
import dataclasses
import re
import struct
from concurrent.futures import CancelledError
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Tuple, Union

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
