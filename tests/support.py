"""What every test file uses: a TestCase that finds leaks, real processes, other Pythons, two hosts, logs, a clock.

    TestCase             leak checks around every test, warnings as errors, unexpected log lines fail, a time limit
        .temp_dir()          a fresh directory (Path), removed after the test
        .expect_log(regex)   context manager: the line must come, and is hidden
        .log.allowed         such lines may come or not, until the test ends
        .wait_until(fn)      bounded wait for a condition that offers no event
    running(cmd, ready=) a real process in its own session; always ended and reaped; its output is shown on failure
    two_hosts()          two network namespaces joined by a cable, nothing else; skips where that cannot be had
    empty_hosts(n)       so many without an interface; switch.py joins them by a bad line
    interpreters()       the other CPythons of this machine
    free_port()          a TCP and UDP port that is free now, never the same one twice in a run
    alive(pid)           False also for a process that has ended and was not reaped yet
    FakeClock()          a clock that moves when told
    skip_unless_root     decorator
    need_cpus(n)         skips where nodes cannot have so many servers
    needs_threads_after_main        decorator

Environment: PYCOSLITE_TEST_SLOWEST=5 lists the slowest tests at the end; PYCOSLITE_TEST_TIMEOUT_S is the limit of one
test where its class sets none.
"""
from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import functools
import gc
import itertools
import logging
import os
import random
import re
import select
import shlex
import shutil
import signal
import socket
import string
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import unittest
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple, Union

from . import REAL_HOME

ROOT = Path(__file__).resolve().parent.parent
"""The directory that holds the modules under test; `running` starts processes there."""

MODULES = ("pycoslite", "dispycos_lite", "dispycosnode_lite", "httpd_lite")
"""Names of the modules that make up the package, lowest layer first (the last ones may not exist yet)."""

__unittest = True           # keeps the frames of this file out of the tracebacks of failures

# Limits are there for what never comes. Whatever comes at all comes within them on a machine that does ten other things,
# so that they decide about no test; what is to happen soon is waited for, not timed.
GRACE_S = 15.0              # what a test left behind may take this long to end before it counts as a leak
EVENT_S = 30.0              # a condition that is asked again and again
STOP_S = 8.0                # what a process takes to end after SIGTERM, before it is killed
PROCESS_S = 60.0            # a process's start, output and end
TIMEOUT_S = float(os.environ.get("PYCOSLITE_TEST_TIMEOUT_S", "120"))

# ======================================================================================================================
# Leaks: what a process holds, before and after
# ======================================================================================================================

FD_DIR = next((d for d in ("/proc/self/fd", "/dev/fd") if os.path.isdir(d)), None)


def adopt_orphans() -> None:
    """Make this process the parent of whatever its children leave behind, so that leaked grandchildren are seen."""
    pr_set_child_subreaper = 36
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)


adopt_orphans()


def open_descriptors() -> Dict[int, str]:
    """Number -> what it is, for every descriptor of this process; empty where the system does not tell."""
    found = {}
    for name in os.listdir(FD_DIR) if FD_DIR else ():
        try:
            found[int(name)] = os.readlink("%s/%s" % (FD_DIR, name)) if FD_DIR == "/proc/self/fd" else str(
                os.fstat(int(name))[:3])
        except OSError:
            continue                                    # the descriptor of the listing itself
    return found


def _describe_fd(fd: int, what: str) -> str:
    if what.startswith("socket:"):
        with contextlib.suppress(OSError):
            with socket.socket(fileno=os.dup(fd)) as sock:
                peer = ""
                with contextlib.suppress(OSError):
                    peer = " to %s" % (sock.getpeername(),)
                return "%d: %s %s bound to %s%s" % (fd, sock.family.name, sock.type.name, sock.getsockname(), peer)
    return "%d: %s" % (fd, what)


def _stat_fields(pid: int) -> List[str]:
    """The fields of /proc/PID/stat after the name, which may hold blanks and brackets; raises OSError."""
    with open("/proc/%d/stat" % pid) as file:
        return file.read().rpartition(")")[2].split()


def alive(pid: int) -> bool:
    """Whether process `pid` still runs; a zombie does not."""
    if os.path.isdir("/proc/self"):
        try:
            return _stat_fields(pid)[0] not in "ZX"
        except OSError:
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def children() -> Set[int]:
    """Ids of this process's children, adopted orphans included, ended ones that were not reaped too (needs /proc)."""
    if not os.path.isdir("/proc/self/task"):
        return set()
    found: Set[int] = set()
    try:
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):    # the thread ended meanwhile
                with open("/proc/self/task/%s/children" % thread) as file:
                    found.update(map(int, file.read().split()))
        if os.path.exists("/proc/self/task/%d/children" % os.getpid()):
            return found
    except PermissionError:
        pass
    for name in os.listdir("/proc"):                    # kernels built without the short cut
        with contextlib.suppress(OSError, ValueError):
            if int(_stat_fields(int(name))[1]) == os.getpid():
                found.add(int(name))
    return found


def _command_line(pid: int) -> str:
    try:
        with open("/proc/%d/cmdline" % pid, "rb") as file:
            words = file.read().decode("utf-8", "replace").split("\0")
        return " ".join(words).strip()[:200] or "?"
    except OSError:
        return "?"


def _stacks(threads: Sequence[threading.Thread]) -> str:
    frames = sys._current_frames()
    text = []
    for thread in threads:
        frame = frames.get(thread.ident or 0)
        stack = "".join(traceback.format_stack(frame)) if frame else "  (no stack: it has just ended)\n"
        text.append("thread %r (daemon=%s)\n%s" % (thread.name, thread.daemon, stack))
    return "".join(text)


class _Holdings:
    """What this process holds at one moment; `leaks` compares with what it holds later."""

    def __init__(self) -> None:
        self.threads = set(threading.enumerate())
        self.fds = set(open_descriptors().items())
        self.children = children()

    def leaks(self, grace_s: float = GRACE_S) -> List[str]:
        """What came since and has not gone within `grace_s`, one text each; leaked children are killed and reaped."""
        gc.collect()
        deadline = time.monotonic() + grace_s
        return [text for text in (self._threads(deadline), self._children(deadline), self._fds(deadline)) if text]

    def _threads(self, deadline: float) -> str:
        new = [t for t in threading.enumerate() if t not in self.threads]
        for thread in new:
            thread.join(max(0.0, deadline - time.monotonic()))
        new = [t for t in new if t.is_alive()]
        return "threads left running:\n" + _stacks(new) if new else ""

    def _children(self, deadline: float) -> str:
        stayed = []
        for pid in sorted(children() - self.children):
            if not _ends(pid, deadline):
                stayed.append("%d: %s" % (pid, _command_line(pid)))
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        if stayed:                                      # what those leave behind is ours now, too
            self._children(deadline)
        return "processes left running (killed now):\n  " + "\n  ".join(stayed) if stayed else ""

    def _fds(self, deadline: float) -> str:
        while True:
            new = set(open_descriptors().items()) - self.fds
            if not new:
                return ""
            if time.monotonic() > deadline:
                return "descriptors left open:\n  " + "\n  ".join(_describe_fd(*item) for item in sorted(new))
            time.sleep(0.01)                            # nothing signals the closing of a descriptor


def _ends(pid: int, deadline: float) -> bool:
    """Wait for process `pid` to end, without reaping it; False when it still runs at `deadline`."""
    while alive(pid):
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        try:
            fd = os.pidfd_open(pid)
        except (AttributeError, OSError):               # before Python 3.9, or just gone
            time.sleep(min(left, 0.01))
            continue
        try:
            select.select([fd], [], [], left)
        finally:
            os.close(fd)
    return True


# ======================================================================================================================
# TestCase
# ======================================================================================================================

DURATIONS: List[Tuple[float, str]] = []


class _LogTrap(logging.Handler):
    """Keeps the records of logger 'pycoslite' from the screen: WARNING and above must be expected by the test."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.changed = threading.Condition()
        self.records: List[logging.LogRecord] = []
        self.expected: List[logging.LogRecord] = []
        self.allowed: List[str] = []            # regular expressions: such lines may come, at any time

    def emit(self, record: logging.LogRecord) -> None:
        with self.changed:
            self.records.append(record)
            self.changed.notify_all()

    def unexpected(self) -> List[str]:
        """WARNING and above that nobody expected, as lines."""
        with self.changed:
            expected = set(map(id, self.expected))
            return ["%s %s: %s" % (r.levelname, r.name, r.getMessage()) for r in self.records
                    if r.levelno >= logging.WARNING and id(r) not in expected
                    and not any(re.search(pattern, r.getMessage()) for pattern in self.allowed)]


class TestCase(unittest.TestCase):
    """A test fails when it leaves a thread, descriptor or process behind, warns, logs WARNING+ unexpectedly, or hangs.

    What `setUpClass` starts may stay until `tearDownClass`. `timeout_s` limits one test, its set-up and clean-up
    included. A test that failed by itself is not also blamed for what its traceback keeps alive.
    """

    timeout_s = TIMEOUT_S
    log: _LogTrap
    _noise: List[Tuple[type, str]]

    def run(self, result: Optional[unittest.TestResult] = None) -> Optional[unittest.TestResult]:
        """One test with all the checks around it; called by unittest."""
        started = time.perf_counter()
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("error")
            stack.enter_context(_time_limit(self.timeout_s, self.id()))
            self._noise = stack.enter_context(_caught_noise())
            self.log = stack.enter_context(_trapped_log())
            stack.enter_context(self._noticing_success())
            self.addCleanup(self._check, _Holdings())       # the first one added runs last
            outcome = super().run(result)
        DURATIONS.append((time.perf_counter() - started, self.id()))
        return outcome

    @contextlib.contextmanager
    def _noticing_success(self) -> Iterator[None]:
        """Set `_passed` when the test method comes to its end; unittest tells a test about itself in no public way."""
        name, method, self._passed = self._testMethodName, getattr(self, self._testMethodName), False

        @functools.wraps(method)                            # with its marks: skipped, expected to fail
        def noticing() -> None:
            method()
            self._passed = True
        setattr(self, name, noticing)
        try:
            yield
        finally:
            delattr(self, name)

    def _check(self, before: _Holdings) -> None:
        found = before.leaks(GRACE_S if self._passed else 0.2)
        found = found if self._passed else []
        found += [text for kind, text in self._noise if self._passed or not issubclass(kind, ResourceWarning)]
        lines = self.log.unexpected()
        if lines:
            found.append("log lines that no expect_log() asked for:\n  " + "\n  ".join(lines))
        if found:
            self.fail("\n".join(found))

    def temp_dir(self) -> Path:
        """A fresh empty directory, removed after the test."""
        path = tempfile.mkdtemp(prefix="t-")
        self.addCleanup(shutil.rmtree, path, ignore_errors=True)
        return Path(path)

    @contextlib.contextmanager
    def expect_log(self, pattern: str, *, level: int = logging.WARNING, timeout_s: float = EVENT_S) -> Iterator[
            List[logging.LogRecord]]:
        """Within the block at least one record of logger 'pycoslite' at `level` or above must match `pattern`.

        Yields the list that the matching records are put into, which are then no longer unexpected. At the end of the
        block it waits up to `timeout_s` for the first one, as another thread may be about to log it.
        """
        logger, before, found = logging.getLogger("pycoslite"), logging.getLogger("pycoslite").level, []
        if level < logger.getEffectiveLevel():
            logger.setLevel(level)
        start = len(self.log.records)

        def matching() -> List[logging.LogRecord]:
            return [r for r in self.log.records[start:] if r.levelno >= level and re.search(pattern, r.getMessage())]
        try:
            yield found
            with self.log.changed:
                self.log.changed.wait_for(matching, timeout_s)
        finally:
            logger.setLevel(before)
            with self.log.changed:
                found[:] = matching()
                self.log.expected += found
        if not found:
            seen = [r.getMessage() for r in self.log.records[start:]]
            self.fail("no log line matches %r; logged: %s" % (pattern, seen or "nothing"))

    def wait_until(self, condition: Callable[[], Any], timeout_s: float = EVENT_S, what: str = "") -> Any:
        """Ask `condition` again and again until it is true, and return what it gave; fail after `timeout_s`.

        Only for what offers no event to wait for (another process's files, say).
        """
        deadline, pause = time.monotonic() + timeout_s, 0.001
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > deadline:
                self.fail("not within %g s: %s" % (timeout_s, what or condition))
            time.sleep(pause)
            pause = min(0.05, pause * 2)


@contextlib.contextmanager
def _time_limit(limit_s: float, name: str) -> Iterator[None]:
    """Raise in the main thread after `limit_s`, with all stacks; end the whole run if even that does not help."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expired(signum: int, frame: Any) -> None:
        raise AssertionError("%s: not done after %g s\n%s" % (name, limit_s, _stacks(threading.enumerate())))
    previous = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    faulthandler.dump_traceback_later(limit_s + 15, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def _caught_noise() -> Iterator[List[Tuple[type, str]]]:
    """Collect what Python could only print: exceptions of threads and of finalizers (an unclosed socket's warning)."""
    noise: List[Tuple[type, str]] = []

    def thread_died(args: Any) -> None:
        noise.append((args.exc_type, "exception in thread %s:\n%s" % (args.thread and args.thread.name, "".join(
            traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback)))))

    def unraisable(args: Any) -> None:          # only text is kept: the object is half dead
        noise.append((args.exc_type, "%s in %r: %s\n%s" % (
            args.err_msg or "exception ignored", args.object, args.exc_value,
            "".join(traceback.format_tb(args.exc_traceback)))))
    hooks = threading.excepthook, sys.unraisablehook
    threading.excepthook, sys.unraisablehook = thread_died, unraisable
    try:
        yield noise
    finally:
        threading.excepthook, sys.unraisablehook = hooks


@contextlib.contextmanager
def _trapped_log() -> Iterator[_LogTrap]:
    logger, trap = logging.getLogger("pycoslite"), _LogTrap()
    before = logger.propagate, logger.level
    logger.addHandler(trap)
    logger.propagate = False
    try:
        yield trap
    finally:
        logger.removeHandler(trap)
        logger.propagate = before[0]
        logger.setLevel(before[1])


def _print_slowest(count: int) -> None:
    for seconds, name in sorted(DURATIONS, reverse=True)[:count]:
        print("%8.3f s  %s" % (seconds, name), file=sys.stderr)


if os.environ.get("PYCOSLITE_TEST_SLOWEST"):
    atexit.register(_print_slowest, int(os.environ["PYCOSLITE_TEST_SLOWEST"]))

skip_unless_root = unittest.skipUnless(getattr(os, "geteuid", lambda: 1)() == 0, "needs root")
"""Decorator of tests (or classes) that need root."""


def need_cpus(count: int) -> None:
    """Skip the test, or the class, on a machine with fewer CPUs for this process: a node refuses to use more."""
    from dispycosnode_lite import available_cpus
    found, note = available_cpus()
    if found < count:
        raise unittest.SkipTest("needs %d CPUs, there is %s" % (count, note))


# For a test of a program whose tasks start threads or processes when its main thread has nothing left to do.
needs_threads_after_main = unittest.skipIf(
    (3, 12) <= sys.version_info[:3] < (3, 12, 2),
    "CPython 3.12.0 and 3.12.1 start no thread or process once the main program has ended (gh-113964)")

# ======================================================================================================================
# Processes, ports, interpreters
# ======================================================================================================================

Ready = Union[str, Callable[["Process"], Any], None]


class Process:
    """A child process whose output (both streams) is read all the time; made by `running`.

    Attributes: `popen`, `pid`, `match` (what the regular expression `ready` matched).
    """

    def __init__(self, command: Sequence[Any], env: Dict[str, Optional[str]], cwd: Any) -> None:
        self.command = [str(word) for word in command]
        self.match: Any = None
        self._text = ""
        self._ended = False                                 # nobody writes to the pipe any more
        self._changed = threading.Condition()
        variables = dict(os.environ, PYTHONUNBUFFERED="1")
        for name, value in env.items():
            variables.pop(name, None)
            if value is not None:
                variables[name] = str(value)
        self.popen = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=subprocess.STDOUT, cwd=str(cwd), env=variables, start_new_session=True)
        self.pid = self.popen.pid
        self._stop, self._stopped = os.pipe(), False
        self._reader = threading.Thread(target=self._read, name="output of process %d" % self.pid, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout
        fd, data = self.popen.stdout.fileno(), b"?"
        while data:
            readable = select.select([fd, self._stop[0]], [], [])[0]
            with self._changed:                         # what is no longer in the pipe is in the text: see _read_all
                data = os.read(fd, 65536) if fd in readable else b""
                self._text += data.decode("utf-8", "replace")
                self._ended = not data
                self._changed.notify_all()

    @property
    def output(self) -> str:
        """All it has printed so far."""
        with self._changed:
            return self._text

    def _read_all(self) -> None:
        """It has ended: wait until all that it wrote is in the text. Others may hold the pipe, and go on."""
        assert self.popen.stdout
        with self._changed:
            self._changed.wait_for(lambda: self._ended or not select.select([self.popen.stdout], [], [], 0)[0],
                                   PROCESS_S)

    def wait_for(self, pattern: str, timeout_s: float = PROCESS_S, start: int = 0) -> Any:
        """Wait until `pattern` matches its output from character `start` on, and return the match.

        Raises AssertionError with the output when it ends before, or after `timeout_s`.
        """
        compiled = re.compile(pattern, re.MULTILINE)
        with self._changed:
            self._changed.wait_for(lambda: self._ended or compiled.search(self._text, start), timeout_s)
            found = compiled.search(self._text, start)
            how = "ended" if self._ended else "did not within %g s" % timeout_s
        if not found:
            raise AssertionError("waiting for %r to print %r: it %s\n%s" % (self, pattern, how, self.output))
        return found

    def wait_ready(self, ready: Ready, timeout_s: float) -> None:
        """Wait for what `running` was told to wait for."""
        if isinstance(ready, str):
            self.match = self.wait_for(ready, timeout_s)
        elif ready is not None:
            deadline = time.monotonic() + timeout_s
            while not ready(self):
                if self.popen.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError("%r did not become ready\n%s" % (self, self.output))
                time.sleep(0.01)

    def write(self, text: str) -> None:
        """Type `text` at its standard input."""
        assert self.popen.stdin
        self.popen.stdin.write(text.encode())
        self.popen.stdin.flush()

    def signal(self, number: int) -> None:
        """Send it a signal, to this process alone."""
        self.popen.send_signal(number)

    def wait(self, timeout_s: float = PROCESS_S) -> int:
        """Wait for its end and return its exit status (negative: the signal that killed it)."""
        try:
            status = self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError("%r has not ended within %g s\n%s" % (self, timeout_s, self.output)) from None
        self._read_all()
        return status

    def close(self, stop_s: float = STOP_S) -> None:
        """End it (SIGTERM, after `stop_s` SIGKILL to its process group), reap it, close the pipes."""
        assert self.popen.stdin and self.popen.stdout
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(stop_s)
            except subprocess.TimeoutExpired:
                os.killpg(self.pid, signal.SIGKILL)         # not reaped yet, so the id is still its own
                self.popen.wait()
        with contextlib.suppress(BrokenPipeError):
            self.popen.stdin.close()
        self._read_all()
        os.write(self._stop[1], b"!")
        self._reader.join()
        self.popen.stdout.close()
        for fd in self._stop:
            os.close(fd)

    def __repr__(self) -> str:
        return "<process %d: %s>" % (self.pid, " ".join(map(shlex.quote, self.command))[:160])


@contextlib.contextmanager
def running(command: Sequence[Any], ready: Ready = None, *, timeout_s: float = PROCESS_S, stop_s: float = STOP_S,
            env: Optional[Dict[str, Optional[str]]] = None, cwd: Any = ROOT) -> Iterator[Process]:
    """Start `command` in its own session and yield its `Process`; at the end of the block it is ended and reaped.

        with running([sys.executable, "dispycosnode_lite.py"], ready=r"port (\\d+)") as node:
            port = int(node.match.group(1))

    `ready`: a regular expression its output must match (searched line by line), or a function of the `Process` that
    returns something true, within `timeout_s`. `env`: variables on top of this process's, None removes one. Its output
    goes to stderr when the block fails.
    """
    process = Process(command, env or {}, cwd)
    try:
        process.wait_ready(ready, timeout_s)
        yield process
    except unittest.SkipTest:
        raise
    except BaseException:
        print("\n--- output of %r\n%s\n---" % (process, process.output), file=sys.stderr)
        raise
    finally:
        process.close(stop_s)


_ports_given: Set[int] = {int(os.environ.get("PYCOSLITE_NET_PORT", 9705)) + number for number in range(10)}
_dice = random.SystemRandom()       # forked processes must not try the same ports in the same order


def free_port(host: str = "127.0.0.1") -> int:
    """A port nobody uses for TCP or UDP at `host` right now; no port is given out twice in one run.

    It is none of those that the system gives to whoever asks for any port: of these, one that is free now may be the
    near end of somebody's connection a moment later, when the test's process wants to listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        port = _dice.randrange(10_100, _first_of_any())          # browsers refuse some below
        with socket.socket(family, socket.SOCK_STREAM) as tcp, socket.socket(family, socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind((host, port))
                udp.bind((host, port))
            except OSError:
                continue
        if port not in _ports_given:
            _ports_given.add(port)
            return port


def _first_of_any() -> int:
    """The lowest of the ports that the system gives to whoever asks for any."""
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
            return max(int(file.read().split()[0]), 20_000)
    except OSError:
        return 32_768               # Linux; elsewhere they begin at 49152


class Interpreter(NamedTuple):
    """One other Python: `version` like (3, 8), `path` of its executable."""

    version: Tuple[int, int]
    path: str


def _pythons_in(place: Path) -> List[Path]:
    """What is called python3.N there; nothing where this user may not look."""
    try:
        return sorted(place.glob("python3.*")) if os.path.isdir(str(place)) else []
    except OSError:
        return []


@functools.lru_cache(maxsize=None)
def interpreters() -> Tuple[Interpreter, ...]:
    """CPythons from 3.8 up found in PATH and among pyenv's, one per minor version, not the one that runs; ordered."""
    code = ("import sys, sysconfig; print(sys.implementation.name, sys.version_info[0], sys.version_info[1], "
            "sys.executable if not sysconfig.get_config_var('Py_GIL_DISABLED') else '')")
    places = [Path(d) for d in os.environ.get("PATH", "").split(os.pathsep) if d]
    places += sorted(Path(REAL_HOME, ".pyenv", "versions").glob("3.*/bin"))
    found: Dict[Tuple[int, int], Interpreter] = {}
    for path in itertools.chain.from_iterable(map(_pythons_in, places)):
        version = (3, int(path.name[8:])) if path.name[8:].isdigit() else (0, 0)
        if version < (3, 8) or version in found or version == sys.version_info[:2]:
            continue
        try:
            answer = subprocess.run([str(path), "-c", code], env=dict(os.environ, HOME=str(REAL_HOME)), timeout=20,
                                    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
        except (OSError, subprocess.TimeoutExpired):
            continue                                        # a broken link, or a launcher without its Python
        name, major, minor, executable = (answer.strip().split(None, 3) + [""] * 4)[:4]
        if name == "cpython" and executable and (int(major), int(minor)) == version:
            found[version] = Interpreter(version, executable)
    return tuple(found[version] for version in sorted(found))


# ======================================================================================================================
# Two hosts
# ======================================================================================================================

_networks = itertools.count(1)


class Host:
    """One network namespace with a loopback, one Ethernet interface and nothing else; made by `empty_hosts`.

    Attributes: `name` (of the namespace), `address` (IPv4), `address6` (IPv6), `interface`.
    """

    def __init__(self, name: str, address: str, address6: str, interface: str) -> None:
        self.name, self.address, self.address6, self.interface = name, address, address6, interface

    def command(self, command: Sequence[Any]) -> List[str]:
        """The words that run `command` in this host."""
        return ["ip", "netns", "exec", self.name] + [str(word) for word in command]

    def run(self, command: Sequence[Any], timeout_s: float = 30.0, **options: Any) -> subprocess.CompletedProcess:
        """Run `command` here to its end; its output (both streams) is the `stdout` of the result."""
        options.setdefault("cwd", str(ROOT))
        return subprocess.run(self.command(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=timeout_s, **options)

    def running(self, command: Sequence[Any], ready: Ready = None, **options: Any) -> Any:
        """`running` in this host; the process id is the command's own."""
        return running(self.command(command), ready, **options)

    def cable(self, plugged: bool) -> None:
        """Unplug (False) or plug in (True) the cable, seen from this host."""
        _ip("-n", self.name, "link", "set", self.interface, "up" if plugged else "down")

    def take(self, interface: str) -> None:
        """Move an interface of this machine here, and give it this host's addresses."""
        _ip("link", "set", interface, "netns", self.name)
        self.use(interface)

    def use(self, interface: str) -> None:
        """Give an interface that is here this host's addresses, and switch it on."""
        self.ip("address", "add", self.address + "/24", "broadcast", "+", "dev", interface)
        with contextlib.suppress(OSError):                  # a kernel without IPv6
            self.ip("address", "add", self.address6 + "/64", "dev", interface, "nodad")
        self.ip("link", "set", "lo", "up")
        self.ip("link", "set", interface, "up")

    def ip(self, *words: str) -> str:
        """Run ``ip -n <this host> words...`` and return its output."""
        return _ip("-n", self.name, *words)


def _ip(*words: str) -> str:
    done = subprocess.run(["ip"] + list(words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise OSError("ip %s: %s" % (" ".join(words), done.stdout.strip()))
    return done.stdout


@contextlib.contextmanager
def empty_hosts(count: int) -> Iterator[List[Host]]:
    """So many hosts without an interface, whose addresses are of one network; removed at the end. `Host.take` gives one
    its interface.

    Raises SkipTest, with the reason, where this cannot be had. The hosts share the file system and the host name; there
    are no default route, no name service, no names in /etc/hosts.
    """
    if getattr(os, "geteuid", lambda: 1)() != 0:
        raise unittest.SkipTest("network namespaces need root")
    if not shutil.which("ip"):
        raise unittest.SkipTest("network namespaces need iproute2's ip")
    with contextlib.ExitStack() as stack:
        number, net = next(_networks), os.getpid() % 200 + 20
        hosts = []
        for n, letter in enumerate(string.ascii_lowercase[:count], 1):
            host = Host("pl%d-%d%s" % (os.getpid(), number, letter), "10.%d.%d.%d" % (net, number % 250, n),
                        "fd00:%x:%x::%d" % (net, number, n), "v%d-%d%s" % (os.getpid(), number % 1000, letter))
            try:
                _ip("netns", "add", host.name)
            except OSError as error:
                raise unittest.SkipTest("cannot make a network namespace: %s" % error) from None
            stack.callback(_remove_host, host)
            hosts.append(host)
            _hide_names(host)
        yield hosts


@contextlib.contextmanager
def two_hosts() -> Iterator[Tuple[Host, Host]]:
    """Two hosts joined by a cable, and nothing else; see `empty_hosts`. Removed at the end."""
    with empty_hosts(2) as (a, b):
        # Made where they belong: other tests look at the interfaces of this machine, which must not come and go.
        a.ip("link", "add", a.interface, "type", "veth", "peer", b.interface, "netns", b.name)
        for host in (a, b):
            host.use(host.interface)
        yield a, b


def _hide_names(host: Host) -> None:
    """``ip netns exec`` lays the files of this directory over those in /etc."""
    folder = Path("/etc/netns", host.name)
    folder.mkdir(parents=True)
    for name in ("hosts", "resolv.conf"):
        if Path("/etc", name).exists():
            (folder / name).write_text("")


def _remove_host(host: Host) -> None:
    for pid in _ip("netns", "pids", host.name).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _ip("netns", "delete", host.name)
    shutil.rmtree("/etc/netns/" + host.name, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.rmdir("/etc/netns")                              # not when others keep something there


# ======================================================================================================================
# Clock
# ======================================================================================================================


class FakeClock:
    """A clock that stands still until told: ``clock()``, ``clock.advance(2.5)``; `sleep` advances it, too."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    time = monotonic = __call__

    def advance(self, seconds: float) -> float:
        """Move on by `seconds` (never back) and return the new time."""
        if seconds < 0:
            raise ValueError("a clock does not go back")
        self.now += seconds
        return self.now

    sleep = advance
