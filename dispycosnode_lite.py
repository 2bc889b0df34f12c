"""Node program: lends the cores of this machine to one client of the cluster at a time.

Sections (the banners below carry the same numbers and titles):

     1. Options
     2. Node state (pure)
     3. Server process
     4. Processes
     5. Node driver
     6. Console and main()

Processes, each the parent of the next (fork; with spawn the supervisor starts servers itself):

    supervisor   the node program: network, options, console; runs no code of clients, and so is what stays
    nursery      forked before the first thread, as forking is safe only then; forks templates
    template     one per client: its working directory, its session, what its node_setup left in memory
    server       one per CPU: runs jobs; the client connects to it directly

Who calls whom in the supervisor, all of it in the engine unless said otherwise:

    Peer requests, Processes' events, timers --> NodeDriver (5) --> NodeState (2): who has the node, what should run
    NodeState's instructions --> _Carrier (5) --> Processes (4): the only place that starts and kills
    Console (6), a thread --> NodeDriver, by `network.post`
    Ending --> the main thread, which waits for nothing else and then takes everything down

The messages between client, node and servers are those of dispycos_lite's section "Messages (pure)".
"""
from __future__ import annotations

import argparse
import builtins
import collections
import dataclasses
import difflib
import functools
import gc
import getpass
import importlib
import json
import logging
import math
import mmap
import os
import platform
import queue
import re
import selectors
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from typing import (
    Any, Callable, Deque, Dict, Iterable, Iterator, List, Mapping, NamedTuple, NoReturn, Optional, Sequence, Set, Tuple,
    Type, Union)

try:
    import fcntl
    msvcrt = None
except ImportError:                     # Windows
    fcntl = None
    import msvcrt

try:
    import psutil
except ImportError:                     # not in the standard library; what it would tell is told less exactly
    psutil = None

try:
    from . import dispycos_lite, pycoslite
except ImportError:                     # the files lie side by side, not in a package
    import dispycos_lite
    import pycoslite

log = pycoslite.log

# ======================================================================================================================
# 1. Options                                                           command line and environment to one frozen record
# ======================================================================================================================
#
# `OPTIONS` is a table with one row for each option; argparse, the environment, the help text and the hints are all made
# from it. The way of a value:
#
#   _parser           argparse sorts the command line into texts, and refuses what is no option
#   _all_texts        takes the text from the command line, else the environment, else the file that --config names
#   _values           parses it, or takes the default; --save_config writes the texts, after all was checked
#   check_options     what concerns several options, or this machine; gives the frozen `NodeOptions`
#   parse_options     all of that; a wrong option ends the program with one line, a hint, and exit status 2
#
# A configuration file is an INI file with one section, [DEFAULT], whose names are those of the table and whose texts
# are those of the environment; nothing in it is evaluated. It is written for many nodes: what belongs to one machine
# (addresses, name), and the secret, is neither written to it nor taken from it.
#
# Names are those of older node programs wherever they had the option; further spellings stand in the same row. An
# option that is added needs its row, and its field of `NodeOptions` under the same name.

# 9705 is the port of schedulers and of discovery, so nodes begin one higher; PYCOSLITE_NET_PORT moves both.
DEFAULT_PORT = dispycos_lite.NODE_PORT          # of the node itself; its servers take the following ones
_DAY = 24 * 60                                  # minutes
_PEER_HINT = "for example --peer head.example.org:9705"

EXAMPLES = """\
examples:
  python3 dispycosnode_lite.py                                lend all CPUs to this network's clients
  python3 dispycosnode_lite.py --cpus -1 --peer head:9705     keep one CPU back; announce it to a scheduler elsewhere
  python3 dispycosnode_lite.py --daemon --tcp_ports 51347-51355 --ext_host node7.example.org
                                                              in the background, behind a NAT that forwards these ports
"""


class OptionError(pycoslite.PycosError):
    """An option has a value that cannot be used; `hint` says what to write instead."""

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(problem)
        self.hint = hint


def clock_time(minutes: int) -> str:
    """HH:MM of minutes since midnight."""
    return "%02d:%02d" % divmod(minutes, 60)


@dataclasses.dataclass(frozen=True)
class Hours:
    """When the node serves, in minutes since midnight by the machine's clock: it takes jobs from `start` to `stop` (or
    `end`), and those that run may go on until `end`, without one as long as they like. What is earlier than `start` is
    on the next day.

    `Hours(17 * 60, 7 * 60, 8 * 60)` is a machine that computes at night: from five in the afternoon, no new jobs from
    seven in the morning, all ended at eight. At least one of `stop` and `end` is given, and if both are, `end` does not
    come before `stop`; `_service_hours` sees to that. Days are 24 hours long here: when clocks are put forward or back,
    the window is so much shorter or longer in that night.
    """

    start: int
    stop: Optional[int]
    end: Optional[int]

    def length(self, minutes: int) -> int:
        """From `start` to then."""
        return (minutes - self.start) % _DAY

    def phase(self, minutes: int) -> str:
        """'open', 'stopping' (no more jobs) or 'closed' (none may run any more) at that time of day."""
        since = self.length(minutes)
        if self.end is not None and since >= self.length(self.end):
            return "closed"
        return "stopping" if self.stop is not None and since >= self.length(self.stop) else "open"

    def sentence(self) -> str:
        """What clients are told."""
        stop = self.end if self.stop is None else self.stop
        assert stop is not None
        tail = "" if self.stop is None or self.end is None else "; what runs then may go on until %s" % (
            clock_time(self.end))
        return "this node serves from %s to %s%s" % (clock_time(self.start), clock_time(stop), tail)


@dataclasses.dataclass(frozen=True)
class NodeOptions:
    """Everything the node is told at its start, checked; made by `parse_options`.

    Frozen, as several threads read it. The secret stays out of its repr. For `embedded` nodes the client's first line
    replaces `serve`, the key, the certificates and where to listen.
    """

    cpus: int                                   # number of servers
    cpus_note: str                              # where that number comes from
    hosts: Tuple[str, ...]                      # addresses to listen at; none: all interfaces
    ext_hosts: Tuple[str, ...]                  # addresses to announce in place of ours
    tcp_ports: Tuple[int, ...]                  # as listed, in order; none: DEFAULT_PORT upward, skipping taken ones
    udp_port: int
    ipv4_udp_multicast: bool                    # search by a group and not by broadcast
    ping_interval: int                          # seconds between announcements while it is free, 0: when it becomes so
    msg_timeout: float
    discover_peers: bool                        # by servers
    scheduler_port: int
    peers: Tuple[pycoslite.Location, ...]
    name: str
    secret: Optional[str] = dataclasses.field(repr=False)       # None: the file, else the user's own secret
    secret_file: Optional[str]
    auth: bool                                  # False: everybody who reaches the node may run code on it
    certfile: Optional[str]                     # these four as for `pycoslite.certificates`
    keyfile: Optional[str]
    cafile: Optional[str]
    certname: Optional[str]
    dest_path: Optional[str]                    # None: `default_root`
    max_file_size: Optional[int]                # bytes
    serve: int                                  # clients before the program ends, -1: no limit
    hours: Optional[Hours]                      # when it serves; None: always
    pulses: Tuple[float, float]                 # the least and the most seconds between two node.avail
    zombie_period: int                          # seconds after which an idle client loses the node, 0: never
    start_method: Optional[str]                 # None: the system's best
    clean: bool                                 # end the node before this one
    daemon: bool
    embedded: bool                              # started by a client for itself, over the standard input
    debug: bool
    warnings: Tuple[str, ...] = ()              # to be shown at the start

    def ports(self) -> Tuple[int, ...]:
        """The node's own port and one for each server: the lowest listed is the node's, after the highest it counts on.

        Without listed ports these are only the first to try. There are always ``cpus + 1``; the last one may be beyond
        65535, which `check_options` refuses.
        """
        ports = list(self.tcp_ports or (DEFAULT_PORT,))[:self.cpus + 1]
        highest = (self.tcp_ports or ports)[-1]
        ports += range(highest + 1, highest + 2 + self.cpus - len(ports))
        return tuple(ports)


# -- what the text of an option may be; each raises ValueError with the rest of a sentence


def _number(lowest: Optional[int] = None, highest: Optional[int] = None) -> Callable[[str], int]:
    """A parser of whole numbers within limits. Its messages follow the option's name: "--serve: 'x' is not ..."."""
    def _parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise ValueError("%r is not a whole number" % text) from None
        if lowest is not None and number < lowest:
            raise ValueError("%d is too small, the least is %d" % (number, lowest))
        if highest is not None and number > highest:
            raise ValueError("%d is too large, the most is %d" % (number, highest))
        return number
    return _parse


_port = _number(1, 65535)


def _port_range(text: str) -> Tuple[int, ...]:
    """All ports of "n" or "n1-n2"."""
    first, dash, last = text.partition("-")
    low, high = _port(first), _port(last if dash else first)
    if low > high:
        raise ValueError("the range %s ends before it begins" % text)
    return tuple(range(low, high + 1))


def _seconds(text: str) -> float:
    """A number of seconds, perhaps with a fraction."""
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError("%r is not a number of seconds" % text) from None
    if not 0 < seconds < math.inf:
        raise ValueError("%s is no time to wait" % text)
    return seconds


def _time_of_day(text: str) -> int:
    """Minutes since midnight of HH:MM."""
    found = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", text.strip(), re.ASCII)
    if found is None:
        raise ValueError("%r is not a time of day" % text)
    return 60 * int(found.group(1)) + int(found.group(2))


def _text(text: str) -> str:
    """Anything that can be shown."""
    if not text.strip() or not text.isprintable():
        raise ValueError("%r is empty or not printable" % text)
    return text


def _choice(*words: str) -> Callable[[str], str]:
    """A parser that takes some words only."""
    def _parse(text: str) -> str:
        if text not in words:
            raise ValueError("%r is not one of %s" % (text, ", ".join(words)))
        return text
    return _parse


def _switch(text: str) -> bool:
    """A switch as a variable of the environment spells it."""
    if text.lower() not in ("1", "yes", "true", "on", "0", "no", "false", "off", ""):
        raise ValueError("%r is neither yes nor no" % text)
    return text.lower() in ("1", "yes", "true", "on")


class _Option(NamedTuple):
    """One row of the table below; the environment's variable is PYCOSLITE_NODE_ and `name` in capitals."""

    group: str
    flags: str                                  # blank-separated
    name: str                                   # of the attribute
    metavar: str                                # "": a switch
    parse: Callable[[str], Any]
    default: Any                                # a tuple: may be repeated (in the environment: commas)
    hint: str                                   # how to write it right
    text: str

    @property
    def variable(self) -> str:
        """Its variable in the environment."""
        common = "PYCOSLITE_" + self.name.upper()
        return common if common in READ_ELSEWHERE else "PYCOSLITE_NODE_" + self.name.upper()


_WORK, _NETWORK, _SECURITY, _FILES, _PROGRAM = (
    "what it lends", "network", "security", "files", "how it runs")

_NET_PORT = pycoslite.settings.net_port

READ_ELSEWHERE = (                              # by pycoslite, for every program of the cluster
    "PYCOSLITE_SECRET", "PYCOSLITE_SECRET_FILE", "PYCOSLITE_CERTFILE", "PYCOSLITE_KEYFILE", "PYCOSLITE_CAFILE",
    "PYCOSLITE_CERTNAME")

OPTIONS = (
    _Option(_WORK, "-c --cpus", "cpus", "N", _number(), 0, "for example --cpus 2, --cpus -1 or --cpus 0",
            "number of servers: N, or all CPUs but N when negative, or all of them with 0 (default: 0)"),
    _Option(_WORK, "--serve", "serve", "N", _number(-1), -1, "for example --serve 1",
            "end after so many clients; 0: take none, -1: no limit (default: -1)"),
    _Option(_WORK, "--service_start", "service_start", "HH:MM", _time_of_day, None, "for example --service_start 17:00",
            "time of day from which it takes clients; --service_stop or --service_end belongs to it (default: the time "
            "when it starts, if one of these is given)"),
    _Option(_WORK, "--service_stop", "service_stop", "HH:MM", _time_of_day, None, "for example --service_stop 07:00",
            "time of day from which it takes no more jobs, while those that run go on; earlier than --service_start is "
            "the next day (default: none)"),
    _Option(_WORK, "--service_end", "service_end", "HH:MM", _time_of_day, None, "for example --service_end 08:00",
            "time of day at which it ends the jobs that still run (default: none)"),
    _Option(_WORK, "--min_pulse_interval", "min_pulse_interval", "SECONDS", _seconds,
            float(dispycos_lite.MinPulseInterval), "for example --min_pulse_interval 5",
            "a client is not told more often than so what the node has free (default: %g)" %
            dispycos_lite.MinPulseInterval),
    _Option(_WORK, "--max_pulse_interval", "max_pulse_interval", "SECONDS", _seconds,
            float(dispycos_lite.MaxPulseInterval), "for example --max_pulse_interval 100",
            "and not less often than so (default: %g)" % dispycos_lite.MaxPulseInterval),
    _Option(_WORK, "--zombie_period", "zombie_period", "SECONDS", _number(0), 0, "for example --zombie_period 1000",
            "take the node from a client that ran no job for so long; 0: never (default: 0)"),
    _Option(_NETWORK, "-i --host --ip_addr", "hosts", "HOST", _text, (), "for example --host 10.0.0.7",
            "address to listen at; may be repeated (default: all interfaces)"),
    _Option(_NETWORK, "--ext_host --ext_ip_addr", "ext_hosts", "HOST", _text, (),
            "for example --ext_host node7.example.org",
            "address to announce, behind a NAT; may be repeated (default: those of the interfaces)"),
    _Option(_NETWORK, "--tcp_ports --node_ports", "tcp_ports", "N[-M]", _port_range, (),
            "for example --tcp_ports 51347-51355",
            "TCP ports: the lowest is the node's, the following the servers', then on after the highest; may be "
            "repeated (default: %d and up, next free ones)" % DEFAULT_PORT),
    _Option(_NETWORK, "-u --udp_port", "udp_port", "PORT", _port, _NET_PORT, "for example --udp_port %d" % _NET_PORT,
            "UDP port of the discovery, the same in the whole cluster (default: %d)" % _NET_PORT),
    _Option(_NETWORK, "--ipv4_udp_multicast", "ipv4_udp_multicast", "", _switch, False,
            "--ipv4_udp_multicast takes no value",
            "announce the node to the multicast group %s of IPv4 networks (default: broadcast); it is found both ways" %
            pycoslite.settings.ipv4_group),
    _Option(_NETWORK, "--ping_interval", "ping_interval", "SECONDS", _number(0), 0, "for example --ping_interval 60",
            "announce the node that often while it is free (default: when it starts and when it becomes free)"),
    _Option(_NETWORK, "--scheduler_port", "scheduler_port", "PORT", _port, _NET_PORT,
            "for example --scheduler_port %d" % _NET_PORT,
            "TCP port of schedulers, for --peer without a port (default: %d)" % _NET_PORT),
    _Option(_NETWORK, "--peer", "peers", "HOST[:PORT]", _text, (), _PEER_HINT,
            "a scheduler or client to contact at the start, on other networks; may be repeated (default: none)"),
    _Option(_NETWORK, "--discover_peers", "discover_peers", "", _switch, False, "--discover_peers takes no value",
            "servers search the local networks for peers, and are found by these, so that tasks can locate tasks there "
            "(default: they know their client alone)"),
    _Option(_NETWORK, "--msg_timeout", "msg_timeout", "SECONDS", _seconds, pycoslite.settings.message_timeout_s,
            "for example --msg_timeout 20",
            "how long an answer of another process may take (default: %g)" % pycoslite.settings.message_timeout_s),
    _Option(_NETWORK, "-n --name", "name", "NAME", _text, "", "for example --name node7",
            "name of this node in the cluster (default: the host's name)"),
    _Option(_SECURITY, "--secret-file --secret_file", "secret_file", "FILE", _text, None,
            "for example --secret-file /etc/pycoslite.secret",
            "file that holds the cluster's secret (default: ~/.pycoslite/secret, made on first use)"),
    _Option(_SECURITY, "-s --secret", "secret", "TEXT", _text, None, "better use --secret-file FILE",
            "the secret itself, which every user of this machine can then read in the list of processes (default: "
            "from the file)"),
    _Option(_SECURITY, "--no-auth --no_auth", "no_auth", "", _switch, False, "--no-auth takes no value",
            "ask nobody for a secret: whoever reaches the node can run programs on it (default: ask)"),
    _Option(_SECURITY, "--certfile", "certfile", "FILE", _text, None, "for example --certfile /etc/pycoslite/cert.pem",
            "certificate for TLS with all peers, in PEM form, with its key unless --keyfile is given (default: none; "
            "between Pythons from 3.13 on the secret encrypts what goes to other hosts)"),
    _Option(_SECURITY, "--keyfile", "keyfile", "FILE", _text, None, "for example --keyfile /etc/pycoslite/key.pem",
            "key of that certificate (default: it is in the same file)"),
    _Option(_SECURITY, "--cafile", "cafile", "FILE", _text, None, "for example --cafile /etc/pycoslite/ca.pem",
            "CA that has signed the certificates of all peers (default: all have copies of one self-signed pair)"),
    _Option(_SECURITY, "--certname", "certname", "NAME", _text, None, "for example --certname cluster.example.org",
            "name that the certificates of all peers must have (default: any that the CA has signed)"),
    _Option(_FILES, "--dest_path", "dest_path", "DIR", _text, None, "for example --dest_path /var/lib/pycoslite",
            "where clients' files are kept as long as they use the node (default: pycoslite-UID in the temporary "
            "directory)"),
    _Option(_FILES, "--max_file_size", "max_file_size", "SIZE", dispycos_lite.parse_size, None,
            "for example --max_file_size 10M",
            "longest file taken from a client, in bytes or with a unit k, M, G, T (default: no limit)"),
    _Option(_PROGRAM, "--clean --phoenix", "clean", "", _switch, False, "--clean takes no value",
            "first end the node program that was started before with the same port and --dest_path, if it still runs, "
            "whatever it does (default: leave it, and take another port)"),
    _Option(_PROGRAM, "--config", "config", "FILE", _text, None, "for example --config node.ini",
            "read options that are given neither here nor in the environment from that file (default: none)"),
    _Option(_PROGRAM, "--save_config", "save_config", "FILE", _text, None, "for example --save_config node.ini",
            "write the options to that file and end, but for the addresses and name of this machine, and the secret "
            "(default: start)"),
    _Option(_PROGRAM, "--daemon", "daemon", "", _switch, False, "--daemon takes no value",
            "do not read commands from the standard input (default: read them)"),
    _Option(_PROGRAM, "--embedded", "embedded", "", _switch, False, "--embedded takes no value",
            "serve one client on this machine that says on the standard input how to reach it; clients use this "
            "themselves (default: serve any client)"),
    _Option(_PROGRAM, "--start_method", "start_method", "METHOD", _choice("fork", "spawn"), None, "fork or spawn",
            "how servers are started: fork or spawn (default: fork where the system can)"),
    _Option(_PROGRAM, "-d --debug", "debug", "", _switch, False, "--debug takes no value",
            "log what happens in detail (default: warnings only)"),
)


class _Parser(argparse.ArgumentParser):
    """argparse, with one line and a hint for what it would answer with its whole usage."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        flags = {flag: option for option in OPTIONS for flag in option.flags.split()}
        hint = "--help lists the options"
        for word in re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", message):
            similar = difflib.get_close_matches(word, flags, 1)
            if similar:
                hint = flags[word].hint if word in flags else "did you mean %s?" % similar[0]
        raise OptionError(message, hint)


def _parser() -> argparse.ArgumentParser:
    """It only sorts texts; `_values` reads them, so that command line and environment are read in the same way."""
    parser = _Parser(prog="dispycosnode_lite", allow_abbrev=False, epilog=EXAMPLES, usage="%(prog)s [options]",
                     description="Lend the CPUs of this machine to one client of the cluster at a time.",
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    groups = {title: parser.add_argument_group(title) for title in dict.fromkeys(option.group for option in OPTIONS)}
    for option in OPTIONS:
        how: Dict[str, Any] = {"action": "store_const", "const": "yes"}
        if option.metavar:
            how = {"action": "append" if isinstance(option.default, tuple) else "store", "metavar": option.metavar}
        text = "%s [%s]" % (option.text, option.variable)
        groups[option.group].add_argument(*option.flags.split(), dest=option.name, help=text.replace("%", "%%"), **how)
    return parser


def _texts(given: Dict[str, Any], environ: Mapping[str, str], config: Mapping[str, str],
           path: str) -> Dict[str, Tuple[str, Any]]:
    """The text of each option (None, or a list for one that may be repeated), and the source to name if it is wrong:
    from the command line, else from the environment, else from the configuration file at `path`."""
    texts = {}
    for option in OPTIONS:
        source, text = next(flag for flag in option.flags.split() if flag.startswith("--")), given[option.name]
        variable = option.variable if option.variable not in READ_ELSEWHERE else ""
        for other, found in ((variable, environ.get(variable)), ("%s in %s" % (option.name, path),
                                                                 config.get(option.name))):
            if text is None and found:
                source, text = other, found
                if isinstance(option.default, tuple):
                    text = [part.strip() for part in text.split(",")]
        texts[option.name] = source, text
    return texts


def _values(texts: Dict[str, Tuple[str, Any]]) -> Dict[str, Any]:
    """Each option's value: what its text means, else its default."""
    values = {}
    for option in OPTIONS:
        source, text = texts[option.name]
        try:
            values[option.name] = (option.default if text is None else tuple(map(option.parse, text))
                                   if isinstance(text, list) else option.parse(text))
        except ValueError as error:
            raise OptionError("%s: %s" % (source, error), option.hint) from None
    return values


def parse_options(argv: Optional[Sequence[str]] = None, environ: Mapping[str, str] = os.environ,
                  available: Optional[Tuple[int, str]] = None) -> NodeOptions:
    """The options of a command line (default: this program's) and the environment.

    `available` is the number of CPUs and where it comes from (default: `available_cpus`). On a wrong option it prints
    one line and a hint to stderr and raises SystemExit(2); after --help and --save_config, SystemExit(0).
    """
    try:
        texts = _all_texts(vars(_parser().parse_args(argv)), environ)
        values = _values(texts)
        save_to = values.pop("save_config")
        options = check_options(values, available or available_cpus())
        if save_to:
            _save_config(save_to, texts)
            raise SystemExit(0)
        return options
    except OptionError as error:
        sys.stderr.write("dispycosnode_lite: %s\n  hint: %s\n" % (error, error.hint))
        raise SystemExit(2) from None


def _all_texts(given: Dict[str, Any], environ: Mapping[str, str]) -> Dict[str, Tuple[str, Any]]:
    """`_texts`, with the configuration file that the other two may name. Raises OptionError."""
    _, path = _texts(given, environ, {}, "")["config"]
    if path is None:
        return _texts(given, environ, {}, "")
    try:
        config = dispycos_lite.read_config(path)
    except ValueError as error:
        raise OptionError("--config: %s" % error, "write one with --save_config %s" % path) from None
    for name in config:
        if name not in _SAVED:
            similar = difflib.get_close_matches(name, _SAVED, 1)
            raise OptionError("--config: there is no option %s to be had from a file (%s)" % (name, path),
                              "did you mean %s?" % similar[0] if similar else "it may have: " + ", ".join(_SAVED))
    return _texts(given, environ, config, path)


# Options of one machine, and those that a file of many nodes is no place for.
_NOT_SAVED = ("hosts", "ext_hosts", "name", "secret", "config", "save_config", "embedded")
_SAVED = tuple(option.name for option in OPTIONS if option.name not in _NOT_SAVED)


def _save_config(path: str, texts: Dict[str, Tuple[str, Any]]) -> None:
    """Write the options to a file; those without a text have their defaults wherever it is read. Raises OptionError."""
    found = {name: texts[name][1] for name in _SAVED}
    try:
        dispycos_lite.write_config(path, {
            name: "" if text is None else ", ".join(text) if isinstance(text, list) else text
            for name, text in found.items()})
    except OSError as error:
        raise OptionError("--save_config: %s cannot be written: %s" % (path, error.strerror),
                          "name a file in a directory of your own") from None
    if texts["secret"][1] is not None:
        sys.stderr.write("the secret is not saved: put it in a file that only you can read, and give --secret-file\n")


def _service_hours(values: Dict[str, Any], now: Callable[[], time.struct_time] = time.localtime) -> Optional[Hours]:
    """The service window, None without one. Raises OptionError for one that is none."""
    start, stop, end = [values.pop("service_" + name) for name in ("start", "stop", "end")]
    if start is stop is end is None:
        return None
    if stop is None and end is None:
        raise OptionError("--service_start alone says nothing", "give --service_stop or --service_end, too")
    if start is None:
        start = 60 * now().tm_hour + now().tm_min
    hours = Hours(start, stop, end)
    if start in (stop, end) or stop is not None and end is not None and hours.length(end) < hours.length(stop):
        raise OptionError("--service_start %s, --service_stop %s and --service_end %s do not follow each other" % tuple(
            "is not given" if minutes is None else clock_time(minutes) for minutes in (start, stop, end)),
            "for example --service_start 17:00 --service_stop 07:00 --service_end 08:00")
    return hours


def check_options(values: Dict[str, Any], available: Tuple[int, str]) -> NodeOptions:
    """What has to do with more than one option, or with this machine; raises OptionError.

    `values` are those of `OPTIONS` by name, `available` is what `available_cpus` gives.
    """
    warnings = _check_secret(values)
    values["cpus"], values["cpus_note"] = _count_cpus(values["cpus"], *available)
    values["tcp_ports"] = tuple(sorted({port for ports in values["tcp_ports"] for port in ports}))
    values["auth"] = not values.pop("no_auth")
    values["hours"] = _service_hours(values)
    values["pulses"] = least_s, most_s = values.pop("min_pulse_interval"), values.pop("max_pulse_interval")
    if least_s > most_s:
        raise OptionError("--min_pulse_interval %g is longer than --max_pulse_interval %g" % (least_s, most_s),
                          "for example --min_pulse_interval 10 --max_pulse_interval 100")
    del values["config"]
    values["name"] = values["name"] or socket.gethostname() or "node"
    try:
        values["peers"] = tuple(pycoslite.Location.parse(peer, values["scheduler_port"]) for peer in values["peers"])
    except ValueError as error:
        raise OptionError("--peer: %s" % error, _PEER_HINT) from None
    options = NodeOptions(warnings=warnings, **values)
    if options.ports()[-1] > 65535:
        raise OptionError("--tcp_ports: %d servers need ports up to %d" % (options.cpus, options.ports()[-1]),
                          "list %d ports below 65536" % (options.cpus + 1))
    return options


def _check_secret(values: Dict[str, Any]) -> Tuple[str, ...]:
    """Refuse what contradicts itself; returns warnings of what is allowed and unwise."""
    secret, secret_file, open_to_all = values["secret"], values["secret_file"], values["no_auth"]
    if secret and secret_file:
        raise OptionError("--secret and --secret-file are both given", "keep --secret-file and leave the other one out")
    if open_to_all and (secret or secret_file):
        raise OptionError("--no-auth contradicts the secret that is given", "leave one of them out")
    if open_to_all:
        return ("authentication is switched off (--no-auth): whoever reaches this node can run programs as %s"
                % getpass.getuser(),)
    if secret:
        return ("the secret is on the command line, where every user of this machine can read it (ps): put it in a "
                "file that only you can read, and give --secret-file FILE",)
    return ()


def _count_cpus(asked: int, available: int, note: str) -> Tuple[int, str]:
    """The number of servers for --cpus `asked`, and where it comes from."""
    if asked > available:
        raise OptionError("--cpus %d is more than this node has: %s" % (asked, note),
                          "--cpus %d is the most, --cpus 0 means all" % available)
    if available + asked < 1:
        raise OptionError("--cpus %d leaves none: %s" % (asked, note), "--cpus %d leaves one" % (1 - available))
    if asked == 0:
        return available, note
    return (asked if asked > 0 else available + asked), "--cpus %d of %s" % (asked, note)


def available_cpus(root: str = "/") -> Tuple[int, str]:
    """How many CPUs this process may use, and a phrase that says where the number comes from.

    The least of the machine's count, the affinity mask and the quota of the control group (rounded up). `root` is where
    the system's files are found. In a container os.cpu_count() is the whole machine's, so a node that trusted it would
    start many more servers than get CPU time. Never fails: what the system does not tell is no limit.
    """
    count, note = os.cpu_count() or 1, "%d CPUs in this machine"
    if hasattr(os, "sched_getaffinity"):
        mask = len(os.sched_getaffinity(0))
        if mask < count:
            count, note = mask, "%d CPUs by the affinity mask (taskset)"
    quota = cgroup_quota(root)
    if quota is not None and math.ceil(quota) < count:
        count, note = math.ceil(quota), "%%d CPUs by the control group's quota of %g" % quota
    return count, note % count


def cgroup_quota(root: str = "/") -> Optional[float]:
    """The CPUs that the control groups of this process, version 1 or 2, let it use; None without a limit.

    A line of /proc/self/cgroup is "number:controllers:path"; version 2 is the line without controllers, and has quota
    and period in one file, version 1 in two. In version 1 the controllers may be mounted under their joint name.
    """
    try:
        with open(os.path.join(root, "proc/self/cgroup")) as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return None
    quotas = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if not controllers:
            quotas += _quotas(root, "", path, ("cpu.max",))
        elif "cpu" in controllers.split(","):
            for mount in ("cpu", controllers):
                quotas += _quotas(root, mount, path, ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    return min(quotas, default=None)


def _quotas(root: str, mount: str, path: str, names: Sequence[str]) -> List[float]:
    """The limits of a group and those above it; in a container the path may be the host's, and only "/" be there."""
    found = []
    parts = [part for part in path.split("/") if part]
    for depth in range(len(parts), -1, -1):
        folder = os.path.join(root, "sys/fs/cgroup", mount, *parts[:depth])
        try:
            words = []
            for name in names:
                with open(os.path.join(folder, name)) as file:
                    words += file.read().split()
            quota, period = int(words[0]), int(words[1])
        except (OSError, ValueError, IndexError):       # not there, or "max": no limit at this level
            continue
        if quota > 0 and period > 0:
            found.append(quota / period)
    return found

# ======================================================================================================================
# 2. Node state (pure)                                                               events and now in, instructions out
# ======================================================================================================================


# A generation is a template process and its servers, made for one client and thrown away with it:
#
#     spare ---- a client reserves ----> serving ---- it releases, or is lost ----> ending ---- all is dead ----> (gone)
#
# There is one spare or one serving, never both: the next spare is forked when the client goes, not while it computes.
# A server is starting, up or down; one that is down is started again, at once unless it keeps failing.
#
# Why a spare: a client that comes gets servers that are up, and need not wait while Python starts. Why it is thrown
# away: what one client's code did to memory, modules, files and processes must not reach the next client.
#
# A server of a generation that is spare or serving (in one that is ending nothing counts but `generation_died`):
#
#   state      event                     to         what is done
#   starting   server_ready              up         TellServer, if a client has it
#   starting,  server_died               down       TellServer; then StartServer, at once or after a delay, unless it
#   up                                              is `retired`
#   starting,  generation_died           down       the same for all of them; they are started with their template
#   up
#   down       restart, or it is due     starting   StartServer
#   starting,  restart                   the same   KillServer; server_died follows, and does not count as a failure
#   up
#
# A client (`Holder`) waits in `queue`, or is `holder`, or is not known:
#
#   event      not known                             waits                        has the node
#   reserve    Grant if the node is free, else Wait  Wait again                   Grant again
#   release    nothing                               Wait for those behind it     KillGeneration, a new spare, Grant for
#                                                                                 the next, Wait for the others
#   idle       -                                     -                            Refuse, then as if it had released
#   pause      (later reserve: Refuse)               Refuse                       Pause: it is to release when its jobs
#                                                                                 have ended
#   vacate     (later reserve: Refuse)               Refuse                       Refuse, then as if it had released
#   stop       (later reserve: Refuse)               Refuse                       KillGeneration; Stop when all is dead
#
# Asking twice gives the same answer, so a client that lost a reply may simply ask again.
#
# Idle is a client of which no job ran for `zombie_s`. Jobs do not come by the node, so it has to look: a Look every
# fifth of that time brings `activity`. pause, vacate and resume are what `Hours` (the service window) leads to.
#
# Why the node looks, and is not told by the client: the rule is the owner's, and a client that hangs, or is of another
# version, is just the one that it is for. Why it does not end single servers that are idle: their client does that by
# its own zombie_period (see dispycos_lite's section "Cluster state"), and a node without a client for some of its
# servers has no use for them, as it serves one client at a time. Why it does not wait for twice the time, as clients
# do: there is nothing to warn of; who is told by Refuse with `idle` asks again when it has jobs, and gets servers that
# are up already, unless others have waited.
#
# The service window (`Hours`), by the machine's clock; what is earlier than its start is on the next day:
#
#   phase      from     clients may come    what runs            event
#   open       start    yes                 runs                 resume, and the node announces itself
#   stopping   stop     no                  runs to its end      pause
#   closed     end      no                  is ended             vacate
#
# Without a stop the node goes from open to closed, without an end it stays stopping until it opens again.
#
# What holds after every event, from `fork_spare` on:
#   - Unless stopping, exactly one generation is not ending; it is serving if and only if there is a holder.
#   - Nobody waits while there is no holder.
#   - A server that is down, and not retired, is due in `_due`, or its template is.
#   - Of a generation that is ending nothing is started or told any more.

_LOOKS = 5                                      # so many in the time after which an idle client loses the node
STEADY_S = 1.0                                  # a server that was up for this long was not failing
# Jobs that crash are no reason to make the client wait, so the first starts are immediate. A server that cannot start
# at all (no memory, no port) is tried every 5 s for ever: the reason may go away, and nobody has to notice.
RESTART_DELAYS_S = (0.0, 0.0, 0.0, 0.25, 0.5, 1.0, 2.0, 5.0)    # before the next start, by failures in a row


@dataclasses.dataclass(frozen=True)
class ForkGeneration:
    """Start the template of a generation (again, if it died; its directory stays)."""

    generation: int


@dataclasses.dataclass(frozen=True)
class StartServer:
    """Start server `n` of a generation whose template was started before."""

    generation: int
    n: int


@dataclasses.dataclass(frozen=True)
class KillServer:
    """End one server; its death is reported like any other."""

    generation: int
    n: int


@dataclasses.dataclass(frozen=True)
class KillGeneration:
    """End a generation and delete its directory once it is dead."""

    generation: int


@dataclasses.dataclass(frozen=True)
class ServerFacts:
    """What a client is told of a server: `state` is "up" or "down", `reason` says of what it died, `begun` which CPU
    job it began last (0: none, None: nobody knows)."""

    n: int
    state: str
    pid: Optional[int] = None
    port: Optional[int] = None
    process: Optional[str] = None
    reason: Optional[str] = None
    begun: Optional[int] = None


@dataclasses.dataclass(frozen=True)
class Grant:
    """Tell a client that the node is its own; `servers` are those that are up, the others follow as TellServer."""

    client: str
    generation: int
    cpus: int
    servers: Tuple[ServerFacts, ...]


@dataclasses.dataclass(frozen=True)
class Wait:
    """Tell a client its place in the queue (1 is next) and the name of the client that has the node."""

    client: str
    position: int
    holder: str


@dataclasses.dataclass(frozen=True)
class Refuse:
    """Tell a client that it does not get what it asked for, or has it no longer, and why; `idle`: it did not use it."""

    client: str
    reason: str
    idle: bool = False


@dataclasses.dataclass(frozen=True)
class TellServer:
    """Tell the client that one of its servers came up or went down."""

    client: str
    server: ServerFacts


@dataclasses.dataclass(frozen=True)
class Pause:
    """Ask the client that has the node to release it when its jobs have ended, and say why."""

    client: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Look:
    """Look what the servers of a generation do, and report it as `NodeState.activity`."""

    generation: int


@dataclasses.dataclass(frozen=True)
class Stop:
    """Nothing runs any more, and nothing will: the program may end."""


Instruction = Union[ForkGeneration, StartServer, KillServer, KillGeneration, Grant, Wait, Refuse, TellServer, Pause,
                    Look, Stop]


@dataclasses.dataclass
class Server:
    """One server of a living generation."""

    n: int
    state: str = "starting"                     # or "up", "down"
    pid: Optional[int] = None
    port: Optional[int] = None
    process: Optional[str] = None
    reason: Optional[str] = None                # of its last death
    up_since: Optional[float] = None
    failures: int = 0                           # deaths in a row after less than STEADY_S
    restart_reason: Optional[str] = None        # it is being killed because its client asked for that
    retired: bool = False                       # and its client wants no other in its place
    begun: Optional[int] = None                 # see `ServerFacts`

    def down(self, reason: str, begun: Optional[int]) -> None:
        """It died."""
        self.state, self.reason, self.begun, self.up_since = "down", reason, begun, None
        self.port = self.process = None

    def facts(self) -> ServerFacts:
        """What its client may know."""
        if self.state == "up":
            return ServerFacts(self.n, "up", self.pid, self.port, self.process)
        return ServerFacts(self.n, "down", self.pid, reason=self.reason, begun=self.begun)


@dataclasses.dataclass
class Generation:
    """A template and its servers."""

    number: int
    servers: Dict[int, Server]
    phase: str = "spare"                        # or "serving", "ending"
    failures: int = 0                           # deaths of the template


@dataclasses.dataclass
class Holder:
    """A client that has the node or waits for it."""

    client: str                                 # identity: the hex id of its process
    name: str                                   # for people
    cpus: int                                   # how many servers it gets, the first ones


class _Generations:
    """Which processes there should be: the half of `NodeState` that clients do not see.

    It knows the holder only to tell it of its servers. Deaths are followed by starts, at once or by `_due`, as the
    first tables of this section say; nothing here waits, and nothing is asked twice.
    """

    def __init__(self, cpus: int) -> None:
        self.cpus = cpus
        self.holder: Optional[Holder] = None    # set as long as a generation is serving
        self.generations: Dict[int, Generation] = {}
        self.stopping = False                   # and no new generation
        self._due: Dict[Tuple[int, Optional[int]], float] = {}      # delayed starts; server number None: the template
        self._last = 0                          # number of the newest generation

    def fork_spare(self) -> List[Instruction]:
        """Make a generation for the next client; called once, when the node begins."""
        self._last += 1
        servers = {n: Server(n) for n in range(1, self.cpus + 1)}
        self.generations[self._last] = Generation(self._last, servers)
        return self._begin(self._last, None)

    def server_started(self, generation: int, n: int, pid: int) -> List[Instruction]:
        """A server's process exists."""
        server = self._living(generation, n)
        if server:
            server.pid = pid
        return []

    def server_ready(self, now: float, generation: int, n: int, port: int, process: str) -> List[Instruction]:
        """A server takes jobs at `port`; `process` is its hex id."""
        server = self._living(generation, n)
        if not server or server.state != "starting":
            return []
        server.state, server.port, server.process, server.up_since = "up", port, process, now
        return self._tell(generation, server)

    def server_died(self, now: float, generation: int, n: int, reason: str,
                    begun: Optional[int] = None) -> List[Instruction]:
        """A server's process is gone; `reason` is a short sentence, `begun` as in `ServerFacts`."""
        server = self._living(generation, n)
        if not server or server.state == "down":
            return []
        steady = server.up_since is not None and now - server.up_since >= STEADY_S
        wanted = server.restart_reason is not None
        server.failures = 0 if steady or wanted else server.failures + 1
        server.down(server.restart_reason or reason, begun)
        told = self._tell(generation, server)
        return told if server.retired else told + self._later(now, generation, n, server.failures)

    def generation_died(self, now: float, generation: int, reason: str,
                        begun: Mapping[int, Optional[int]] = types.MappingProxyType({})) -> List[Instruction]:
        """A template is gone, and with it its servers: because it was told to, or by itself. `begun` has by server what
        `server_died` is told.

        By itself: a new template takes its place in the same generation, whose client keeps the node and its files;
        what node_setup left in memory is gone, though. Its deaths are never forgotten, unlike a server's.
        """
        found = self.generations.get(generation)
        if not found:                           # it died by itself at the moment it was killed
            return []
        if found.phase == "ending":
            del self.generations[generation]
            return [Stop()] if self.stopping and not self.generations else []
        out: List[Instruction] = []
        for server in found.servers.values():
            self._due.pop((generation, server.n), None)
            if server.state != "down":
                server.down("its template process: " + reason, begun.get(server.n))
                out += self._tell(generation, server)
        found.failures += 1
        return out + self._later(now, generation, None, found.failures)

    # -- steps of the above

    def _current(self) -> Generation:
        """The spare or serving one; there is one unless the node is stopping."""
        return next(g for g in self.generations.values() if g.phase != "ending")

    def _living(self, generation: int, n: int) -> Optional[Server]:
        """A server; None when its generation is ending or gone, so that nothing about it matters any more."""
        found = self.generations.get(generation)
        return found.servers[n] if found and found.phase != "ending" else None

    def _begin(self, generation: int, n: Optional[int]) -> List[Instruction]:
        """Start a server, or (n is None) a template and all its servers."""
        found = self.generations[generation]
        if n is not None:
            return self._start_server(found, n)
        self._due.pop((generation, None), None)
        out: List[Instruction] = [ForkGeneration(generation)]
        for server in found.servers.values():
            out += [] if server.retired else self._start_server(found, server.n)
        return out

    def _start_server(self, generation: Generation, n: int) -> List[Instruction]:
        """From down to starting."""
        self._due.pop((generation.number, n), None)
        server = generation.servers[n]
        server.state, server.pid, server.restart_reason = "starting", None, None
        return [StartServer(generation.number, n)]

    def _later(self, now: float, generation: int, n: Optional[int], failures: int) -> List[Instruction]:
        """Start again what died: at once, or when `tick` finds it due."""
        delay = RESTART_DELAYS_S[min(failures, len(RESTART_DELAYS_S) - 1)]
        if delay == 0:
            return self._begin(generation, n)
        self._due[generation, n] = now + delay
        return []

    def _tell(self, generation: int, server: Server) -> List[Instruction]:
        """To the client whose server it is, if there is one."""
        if not self.holder or self.generations[generation].phase != "serving" or server.n > self.holder.cpus:
            return []
        return [TellServer(self.holder.client, server.facts())]

    def _end(self, generation: Generation) -> List[Instruction]:
        """To phase ending, in which nothing is started any more; `generation_died` is its last event."""
        if generation.phase == "ending":
            return []
        generation.phase = "ending"
        self._due = {key: due for key, due in self._due.items() if key[0] != generation.number}
        return [KillGeneration(generation.number)]


class NodeState(_Generations):
    """Who has the node, who waits, which processes there should be: events and ``now`` in, instructions out.

    Each event is a method that returns the instructions to carry out, in order. `now` is in seconds of any monotonic
    clock; `tick` is to be called when `next_deadline` has come.

    Events of clients: reserve, release, restart; of processes: server_started, server_ready, server_died,
    generation_died; of the program: fork_spare (once, first), activity, pause, vacate, resume, stop, tick. Questions:
    serving, status, next_deadline.
    Late news of processes that do not matter any more give []. One thread at a time: the engine.
    """

    def __init__(self, cpus: int, serve: int = -1, zombie_s: float = 0.0) -> None:
        super().__init__(cpus)
        self.serve = serve                      # so many clients, then stop; -1: no limit
        self.zombie_s = zombie_s                # a client that runs nothing for so long loses the node; 0: never
        self.served = 0
        self.queue: List[Holder] = []           # in the order of their requests; nobody waits while there is no holder
        self.refusal: Optional[str] = None      # to be set: no new clients, for this reason; who waits goes on waiting
        self._activity: Any = None              # what the last look found, ...
        self._active = 0.0                      # ... when something was new, ...
        self._look_at: Optional[float] = None   # ... and when the next look is due; None: nobody's activity matters

    # -- clients

    def reserve(self, now: float, client: str, name: str, cpus: int = 0) -> List[Instruction]:
        """A client wants the node; asking again while it has it, or waits for it, repeats the answer.

        `cpus`: that many servers; 0 is all, negative is all but so many. `client` is the hex id of its process, `name`
        what others that wait are told. Among the instructions is one Grant, Wait or Refuse for this client.
        """
        known = self._find(client)
        if known:
            return [self._grant()] if known is self.holder else [self._wait(known)]
        granted = cpus if cpus > 0 else self.cpus + cpus
        refusal = self.refusal
        if not self.serve:
            refusal = "this node was started to take no clients (--serve 0)"
        elif not refusal and not 0 < granted <= self.cpus:
            refusal = "this node has %d cpus, asked for were %s" % (
                self.cpus, cpus if cpus > 0 else "all but %d" % -cpus)
        if refusal:
            return [Refuse(client, refusal)]
        self.queue.append(Holder(client, name, granted))
        if self.holder is None:
            return self._serve_next(now)
        return [self._wait(self.queue[-1])]

    def release(self, now: float, client: str) -> List[Instruction]:
        """A client is done, or lost: the node is free for the next one, or the queue closes up."""
        known = self._find(client)
        if known is None:
            return []
        if known is not self.holder:
            place = self.queue.index(known)
            self.queue.remove(known)
            return [self._wait(waiting) for waiting in self.queue[place:]]
        self.holder, self._look_at = None, None
        self.served += 1
        out = self._end(self._current())
        if self.served == self.serve:
            return out + self.stop("this node has served the %d clients it was started for" % self.serve)
        return out + self.fork_spare() + self._serve_next(now)

    def restart(self, client: str, n: int, reason: str, again: bool = True) -> List[Instruction]:
        """The client wants a fresh server `n`, because of `reason`; or (again=False) only the end of this one.

        Its failures are forgotten: who asks wants it now. A Refuse when the node is not this client's, or has no such
        server. The reason is what the client is told of the death that follows.
        """
        if not self.holder or self.holder.client != client:
            return [Refuse(client, "a server can be restarted only by the client that has the node")]
        if not 1 <= n <= self.holder.cpus:
            return [Refuse(client, "there is no server %d, only 1 to %d" % (n, self.holder.cpus))]
        generation = self._current()
        server = generation.servers[n]
        server.restart_reason, server.failures = ("restarted: " if again else "ended: ") + reason, 0
        server.retired = not again
        if server.state != "down":
            return [KillServer(generation.number, n)]
        if not again:
            self._due.pop((generation.number, n), None)
        if not again or (generation.number, None) in self._due:     # or comes back together with its template
            return []
        return self._start_server(generation, n)

    def stop(self, reason: str) -> List[Instruction]:
        """End everything, and take no new clients; Stop comes when all processes are gone."""
        self.stopping = True
        self.holder, self._look_at = None, None
        out = self._turn_away(reason)
        for generation in self.generations.values():
            out += self._end(generation)
        return out if self.generations else out + [Stop()]

    # -- time

    def tick(self, now: float) -> List[Instruction]:
        """Start what is due, or look at it."""
        out: List[Instruction] = []
        for generation, n in [key for key, due in self._due.items() if due <= now]:
            out += self._begin(generation, n)
        if self._look_at is not None and self._look_at <= now:
            self._look_at = now + self.zombie_s / _LOOKS
            out.append(Look(self._current().number))
        return out

    def next_deadline(self) -> Optional[float]:
        """When `tick` has something to do; None: only after another event."""
        return min([*self._due.values()] + ([] if self._look_at is None else [self._look_at]), default=None)

    def activity(self, now: float, generation: int, busy: bool, done: Any) -> List[Instruction]:
        """What a Look found: whether anything runs now, and something that differs whenever anything was done since."""
        if self._look_at is None or generation != self.serving():
            return []
        if busy or done != self._activity:
            self._activity, self._active = done, now
        if now - self._active < self.zombie_s:
            return []
        reason = "its client was idle for %.3g s, --zombie_period %g of the node; it may have it again when there is " \
                 "work" % (now - self._active, self.zombie_s)
        return self._take_back(now, reason, True)

    def _take_back(self, now: float, reason: str, idle: bool) -> List[Instruction]:
        """Take the node from the client that has it, whatever that does."""
        if self.holder is None:
            return []
        client = self.holder.client
        return [Refuse(client, reason, idle), *self.release(now, client)]

    def _turn_away(self, reason: str) -> List[Instruction]:
        """Take no new client, for this reason, and send those that wait away."""
        self.refusal = reason
        out: List[Instruction] = [Refuse(waiting.client, reason) for waiting in self.queue]
        self.queue.clear()
        return out

    def pause(self, reason: str) -> List[Instruction]:
        """Take no new client, for this reason, and let what runs run on."""
        out = self._turn_away(reason)
        return out + ([Pause(self.holder.client, reason)] if self.holder else [])

    def vacate(self, now: float, reason: str) -> List[Instruction]:
        """Take no new client, for this reason, and end what runs."""
        return self._turn_away(reason) + self._take_back(now, reason, False)

    def resume(self) -> None:
        """Take clients again."""
        self.refusal = None

    def status(self) -> Dict[str, Any]:
        """The node at one glance, good for JSON: served, holder, waiting (names), refusal, servers (current ones)."""
        current = [g for g in self.generations.values() if g.phase != "ending"]
        return {"served": self.served, "holder": self.holder.name if self.holder else None,
                "waiting": [waiting.name for waiting in self.queue], "refusal": self.refusal,
                "servers": [dataclasses.asdict(server) for g in current for server in g.servers.values()]}

    # -- steps of the above

    def _find(self, client: str) -> Optional[Holder]:
        """The client if it has the node or waits for it."""
        for known in self.queue + ([self.holder] if self.holder else []):
            if known.client == client:
                return known
        return None

    def serving(self) -> Optional[int]:
        """Number of the generation that has a client."""
        return self._current().number if self.holder else None

    def _serve_next(self, now: float) -> List[Instruction]:
        """The spare goes to the first of the queue; the others hear of their new places."""
        if not self.queue:
            return []
        self.holder = self.queue.pop(0)
        if self.zombie_s:
            self._activity, self._active, self._look_at = None, now, now + self.zombie_s / _LOOKS
        self._current().phase = "serving"
        return [self._grant()] + [self._wait(waiting) for waiting in self.queue]

    def _grant(self) -> Grant:
        """What the holder has to know."""
        assert self.holder
        generation = self._current()
        servers = [generation.servers[n].facts() for n in range(1, self.holder.cpus + 1)]
        return Grant(self.holder.client, generation.number, self.holder.cpus,
                     tuple(server for server in servers if server.state == "up"))

    def _wait(self, waiting: Holder) -> Wait:
        """What a waiting client has to know."""
        assert self.holder
        return Wait(waiting.client, self.queue.index(waiting) + 1, self.holder.name)

# ======================================================================================================================
# 3. Server process                                                                               runs the client's code
# ======================================================================================================================
#
# A server has two halves. Frames of its client are taken in the engine, which the watcher thread may drive while a job
# computes: jobs are put in line there, given back on RECALL, struck out on CANCEL. The user kernel, in the main thread,
# runs them: plain functions and CPU tasks one after the other in order, I/O tasks at once. What both touch are deques,
# whose single operations the interpreter makes atomic, so that a job is taken by exactly one of them.
#
#   frame      engine (any thread may drive it)                    user kernel (main thread)
#   DEFINE     appended to `_blobs`                                 taken before the next job is prepared
#   JOB, CPU   appended to `_line`; the first one wakes the runner  `_run_jobs` takes it from the front, and runs it
#   JOB, I/O   -                                                    `_start_io` makes its task at once
#   RECALL     taken from the back of `_line`, RETURNED sent        -
#   CANCEL     removed from `_line`: RESULT TERMINATED; or          KeyboardInterrupt in its task; a plain function is
#              posted to the user kernel                            not interrupted: the client has the server killed
#
# What the server does is noted in its progress file (`Progress`), for the node to read: when the server has died, which
# job it began last, so that the client knows which jobs may be run again without asking; and while it lives, whether
# anything runs at all. `_run_jobs` notes a CPU job before any code of the client runs for it, and again after its
# result was handed over; `_start`, `_ended` and `_set_up` note how many tasks run.
#
# Why a mapped file and not a message: a message that tells of a beginning is one more per job, and may die with the
# server just as results do. A store to memory costs some ten nanoseconds, and survives even SIGKILL.
#
# What becomes of a job, and what the client is told:
#
#   it returns                           VALUE, or UNPICKLABLE if the value does not pickle or is too long
#   it raises an Exception               EXCEPTION, of its own type where that pickles
#   it ends like a program               EXCEPTION with a JobExit: SystemExit and the like must not end the client
#   it was stopped, and lets itself be   TERMINATED
#   this process dies                    nothing; the node tells
#
# Results: `_run_jobs` calls jobs without a pause for `_FLUSH_AFTER_S`, then lets the kernel come round once, which
# sends what was reported meanwhile in one go. When the client does not take results fast enough, `send_frame` says so,
# and no more CPU jobs are begun until there is room; results of jobs that run already are kept by the session.
#
# The process belongs to the first client that attaches, until it is killed. What anybody else sends is ignored, with a
# line in the log.

_FLUSH_AFTER_S = 0.001                  # results of jobs shorter than this go out together
_DEBUG_FORMAT = "%(asctime)s %(levelname)s %(message)s"


class _Job(NamedTuple):
    """A JOB frame: its fields in the frame's order. `data` is still packed; it is unpickled when the job begins."""

    id: int
    attempt: int
    kind: int
    key: bytes
    data: Any


class _Round(pycoslite.Request):
    """Lets the kernel come round once: results go out and messages come in before the task goes on."""

    __slots__ = ()

    def begin(self, kernel: Any, task: Any) -> bool:
        """Called by the kernel: park the task, and have it go on with what is posted."""
        task.wait = self
        kernel.post(self._go_on, task)
        return False

    def _go_on(self, task: Any) -> None:
        """Unless the task was woken by something else meanwhile."""
        if task.wait is self:
            task.unpark(None)


_spaces: List[Any] = []                 # made by node_setup in the template, and inherited by its servers; one at most


def setup_failure(outcome: Any) -> str:
    """What is wrong with how a node_setup or server_setup ended: '' when it ended with 0, as it must."""
    if isinstance(outcome, pycoslite.MonitorStatus):
        return str(outcome.value)
    if outcome == 0 and outcome is not False:
        return ""
    return "it ended with %.80r, and success is 0: let it end with 'return 0'" % (outcome,)


def setup_main(spec: Message) -> Optional[str]:
    """Run a client's node_setup, in the template: a process without threads and network. `spec` has the path of a file
    with what `node.setup` brought. Returns None, or what went wrong. What it leaves in globals, all servers have.

    A path and not the bytes, as lines between processes are JSON. The kernel it runs on is closed before it returns:
    servers are forked from this process. Raises what the client's code raises, and ProtocolError for bytes that are no
    setup; the template reports that as the error.
    """
    with open(spec["path"], "rb") as file:
        setup, args, blobs = dispycos_lite.unpack_setup(file.read())
    os.remove(spec["path"])
    space = dispycos_lite.Namespace()
    for blob in blobs:
        space.define(blob)
    setup_args, setup_kwargs = space.loads(args)
    kernel = pycoslite.main_kernel()
    try:
        task = kernel.spawn(space.function(setup), *setup_args, **setup_kwargs)
        task.watch(lambda _task: kernel.stop())
        kernel.loop()
    finally:
        pycoslite.stop_default()
        kernel.close()
    _spaces[:] = [space]
    return setup_failure(task.outcome) or None


class Progress(NamedTuple):
    """What a server has done, as it stands in its progress file: four whole numbers of 64 bits, in this order, in the
    byte order of the machine.

    The server has the file mapped into its memory (`map_progress`), so to note something costs it no call of the
    system, and what was noted outlives the process, however that ends. One number is one store of the CPU; together
    they are no snapshot, so that nothing may depend on two of them agreeing at one moment.
    """

    begun: int = 0                              # id of the CPU job that began last, 0: none
    ended: int = 0                              # id of the one that ended last
    running: int = 0                            # tasks of jobs, and set-ups, that run
    started: int = 0                            # how many of these were started

    @classmethod
    def read(cls, path: str) -> "Optional[Progress]":
        """What the file says; None when it cannot be read, or is none."""
        try:
            with open(path, "rb") as file:
                return cls(*_PROGRESS.unpack(file.read(_PROGRESS.size)))
        except (OSError, struct.error):
            return None

    def busy(self) -> bool:
        """Whether anything ran when it was read."""
        return self.running > 0 or self.begun != self.ended


_PROGRESS = struct.Struct("=4Q")


def make_progress(path: str) -> bool:
    """Make a fresh progress file for a server that is about to be started, in place of its predecessor's; False, with a
    line in the log, when that cannot be."""
    try:
        if os.path.exists(path):
            os.unlink(path)
        with open(path, "wb") as file:
            file.write(bytes(_PROGRESS.size))
    except OSError as error:
        log.warning("what a server has begun when it dies will not be known: %s", error)
        return False
    return True


def map_progress(path: Optional[str]) -> "memoryview":
    """The numbers of a progress file, to be assigned to by their places in `Progress`. Without a file (None, or it
    cannot be mapped) they are nobody else's."""
    numbers: Any = bytearray(_PROGRESS.size)
    try:
        if path is not None:
            with open(path, "r+b") as file:
                numbers = mmap.mmap(file.fileno(), _PROGRESS.size)
    except OSError as error:
        log.warning("what this server has begun when it dies will not be known: %s", error)
    return memoryview(numbers).cast("Q")


class JobServer:
    """Runs the jobs of one client in this process; made before any client is known, the first that attaches has it.

    Methods that begin with `_on_` belong to the engine; the others to the user kernel, unless they say otherwise. The
    `network` must run; its user kernel is the main thread's. What it does stands in `progress` (see `map_progress`).
    """

    def __init__(self, network: Any, progress: Any = None) -> None:
        self.network = network
        self._progress = map_progress(None) if progress is None else progress
        self.kernel = network.host
        self.client: Any = None                 # its peer
        self.space: Any = None                  # its code and globals
        self._blobs: Deque[Any] = collections.deque()      # definitions not taken yet
        self._line: Deque[_Job] = collections.deque()      # CPU jobs that have not begun
        self._tasks: Dict[int, Any] = {}        # job id -> its task, while that runs
        self._setups = 0                        # set-ups that run
        self._stopped: Set[int] = set()         # ids of those that were asked to stop
        self._full = False                      # the client is behind with taking results: no more of them for now
        self._runner = self.kernel.spawn(self._run_jobs)
        network.on_request("server.attach", self._on_attach)
        network.on_request("server.setup", self._on_setup)
        for code, handler in ((dispycos_lite.DEFINE, self._on_define), (dispycos_lite.JOB, self._on_job),
                              (dispycos_lite.RECALL, self._on_recall), (dispycos_lite.CANCEL, self._on_cancel)):
            network.on_frame(code, functools.partial(self._of_client, handler))

    # -- engine --------------------------------------------------------------------------------------------------------

    def _on_attach(self, peer: Any, _args: dict, _payload: bytes) -> dict:
        """server.attach: first come, first served; the same client may ask again."""
        if self.client not in (None, peer):
            raise pycoslite.PycosError("this server process belongs to another client already")
        self.client = peer
        peer.accounted = True                   # results without a client are of no use to anybody
        return {}

    def _on_setup(self, peer: Any, args: dict, payload: bytes) -> Iterator:
        """Make the client's components known and run its server_setup. A system task, which waits for one that may."""
        args = dispycos_lite.checked("server.setup", args)
        if peer is not self.client:
            raise pycoslite.PycosError("a server is set up for its own client only")
        error = yield self.kernel.spawn(self._set_up, args, payload).finish()
        return {"error": error}

    def _of_client(self, handler: Callable[[Any], None], peer: Any, body: Any) -> None:
        """All frames come by here: to know the secret is not enough to run something in another client's server."""
        if peer is self.client:
            handler(body)
        else:
            pycoslite.log.warning("%s sent a job and is not this server's client: ignored", peer)

    def _on_define(self, body: Any) -> None:
        """DEFINE: only kept, as the client's code and its import hooks are the main thread's."""
        self._blobs.append(body)

    def _on_job(self, body: Any) -> None:
        """JOB. Only the first in line wakes the runner: with more there it is busy, or held back by `_full`."""
        job = _Job(*dispycos_lite.unpack_job(body))
        if job.kind == dispycos_lite.IO:
            self.kernel.call(self._start_io, job)
        else:
            self._line.append(job)
            if len(self._line) == 1:
                self.kernel.call(self._wake)

    def _on_recall(self, body: Any) -> None:
        """RECALL: give back what would run last, at most so many. It is answered even when there is nothing."""
        count = dispycos_lite.unpack_recall(body)
        runs = []
        try:
            while len(runs) < count:
                job = self._line.pop()
                runs.append((job.id, job.attempt))
        except IndexError:                      # the main thread has taken the rest
            pass
        self.client.send_frame(dispycos_lite.RETURNED, dispycos_lite.pack_returned(runs))

    def _on_cancel(self, body: Any) -> None:
        """CANCEL: a job in line is struck out, a task is stopped; one that has ended has sent its RESULT already."""
        run = dispycos_lite.unpack_run(body)
        for job in list(self._line):
            if (job.id, job.attempt) == run:
                try:
                    self._line.remove(job)
                except ValueError:              # has just begun
                    break
                self._report(job, dispycos_lite.TERMINATED, b"")
                return
        task = self._tasks.get(run[0])
        if task is not None:
            self._stopped.add(run[0])
            self.kernel.post(task.throw, KeyboardInterrupt())       # posted: it must not be running then

    # -- user kernel ---------------------------------------------------------------------------------------------------

    def _run_jobs(self, task: Any = None) -> Iterator:
        """The task that runs CPU jobs, in order."""
        task.set_daemon()
        line, clock, progress = self._line, self.kernel.clock, self._progress
        while True:
            if not line:
                yield task.suspend()
            since = clock()
            while line and not self._full and clock() - since < _FLUSH_AFTER_S:
                try:
                    job = line.popleft()
                except IndexError:              # recalled meanwhile
                    break
                progress[0] = job.id            # before any code of the client runs: that may end this process
                if job.kind == dispycos_lite.FUNCTION:
                    self._call(job)
                else:
                    running = self._start(job)
                    if running is not None:
                        yield running.finish()
                progress[1] = job.id
                job = running = None            # do not keep what it was about while idle
            yield _Round()
            if self._full:
                self.network.post(self._go_on_with_room)
            while self._full:
                yield task.suspend()

    def _wake(self) -> None:
        """Have `_run_jobs` go on if it waits; otherwise it looks once more before it does."""
        if type(self._runner.wait) is pycoslite.Suspend:
            self._runner.resume()

    def _go_on_with_room(self) -> None:
        """Go on once the client has taken what was sent to it. Engine."""
        if self.client.session.below_window:
            self._full = False
            self.kernel.call(self._wake)
        else:
            self.client.held.append(self._go_on_with_room)

    def _call(self, job: _Job) -> None:
        """Run a plain function."""
        try:
            function, args, kwargs = self._prepare(job)
            value = function(*args, **kwargs)
        except BaseException as error:
            self._failed(job, error)
        else:
            self._succeeded(job, value)

    def _start_io(self, job: _Job) -> None:
        """An I/O job has no turn to wait for, and nobody here waits for its end."""
        self._start(job)

    def _start(self, job: _Job) -> Any:
        """Start the task of a job; None when it could not begin."""
        try:
            function, args, kwargs = self._prepare(job)
            task = self.kernel.spawn(function, *args, **kwargs)
        except BaseException as error:
            self._failed(job, error)
            return None
        self._tasks[job.id] = task
        self._note_running(1)
        task.watch(functools.partial(self._ended, job))
        self.client.send_frame(dispycos_lite.STARTED, dispycos_lite.pack_started(job.id, job.attempt, task.id))
        return task

    def _ended(self, job: _Job, task: Any) -> None:
        """A job's task has ended. One that was asked to stop, and ended by itself all the same, has its own result."""
        del self._tasks[job.id]
        self._note_running(0)
        outcome = task.outcome
        error = getattr(outcome, "error", None)
        stopped = job.id in self._stopped
        self._stopped.discard(job.id)
        if stopped and isinstance(error, KeyboardInterrupt):
            self._report(job, dispycos_lite.TERMINATED, b"")
        elif isinstance(outcome, pycoslite.MonitorStatus) and error is not None:
            self._failed(job, error)
        else:
            self._succeeded(job, outcome)

    def _note_running(self, started: int) -> None:
        """Note how many tasks and set-ups run, and that so many were started just now."""
        self._progress[2] = len(self._tasks) + self._setups
        self._progress[3] += started

    def _prepare(self, job: _Job) -> tuple:
        """Function, args and kwargs of a job."""
        space = self._current_space()
        args, kwargs = space.loads(job.data)
        return space.function(job.key), args, kwargs

    def _current_space(self) -> Any:
        """The client's code and globals, with everything that has arrived."""
        space = self.space
        if space is None:
            space = self.space = _spaces[0] if _spaces else dispycos_lite.Namespace()
            # As built-in names, for the client's modules have globals of their own.
            vars(builtins).update(dispycos_close_server=self._close_server, dispycos_close_node=self._close_node)
        while self._blobs:
            space.define(self._blobs.popleft())
        return space

    def _set_up(self, args: dict, payload: bytes) -> Iterator:
        """A task that makes what a client's jobs need; gives '' or what went wrong."""
        try:
            space = self._current_space()
            for key in args["components"]:
                space.function(bytes.fromhex(key))
            setup, (setup_args, setup_kwargs) = list(map(bytes.fromhex, args["setup"])), space.loads(payload)
            if not setup:
                return ""
            task = self.kernel.spawn(space.function(setup[0]), *setup_args, **setup_kwargs)
        except BaseException:                   # the client's code runs here
            return traceback.format_exc()
        self._setups += 1
        self._note_running(1)
        outcome = yield task.finish()
        self._setups -= 1
        self._note_running(0)
        return setup_failure(outcome)

    # The client's code calls these two by the names they are given above.

    def _close_server(self, terminate: bool = False, restart: bool = False) -> int:
        """End this server process once its tasks have ended (`terminate`: stop them); `restart`: replace it."""
        self.client.notify("client.close_server", {"terminate": bool(terminate), "restart": bool(restart)})
        return 0

    def _close_node(self, terminate: bool = False) -> int:
        """Give this node back once its tasks have ended (`terminate`: stop them)."""
        self.client.notify("client.close_node", {"terminate": bool(terminate)})
        return 0

    def _succeeded(self, job: _Job, value: Any) -> None:
        """Pack and report a value; what goes wrong with that is the job's outcome, and must not end the server."""
        try:
            data = self.space.dumps(value)
        except pycoslite.PycosError as error:
            self._report(job, dispycos_lite.UNPICKLABLE, str(error).encode())
        except BaseException as error:          # the client's code runs in pickle
            self._report(job, dispycos_lite.UNPICKLABLE, ("cannot send the result: to pickle it ended with %s" % (
                "".join(traceback.format_exception_only(type(error), error)).strip())).encode())
        else:
            self._report(job, dispycos_lite.VALUE, data)

    def _failed(self, job: _Job, error: BaseException) -> None:
        """Pack and report an exception; if not even its text can be had, its type's name has to do."""
        if not isinstance(error, Exception):    # raised at the client it might end that
            how = "ended with %s: %s" % (type(error).__name__, error)
            if isinstance(error, SystemExit):
                how = "called sys.exit(%s)" % ("" if error.code is None else repr(error.code))
            error = dispycos_lite.JobExit("the job " + how, job.id, job.attempt, dispycos_lite.current_server())
        try:
            data = self.space.pack_exception(error)
        except BaseException as trouble:        # the client's code runs there, too
            data = self.space.pack_exception(dispycos_lite.RemoteError(
                type(error).__qualname__, "which raised %s when it was to be sent" % type(trouble).__qualname__, ""))
        self._report(job, dispycos_lite.EXCEPTION, data)

    def _report(self, job: _Job, outcome: int, payload: bytes) -> None:
        """Send a result. Any thread."""
        most = self.client.longest - 1024       # less than all, for what is not the payload
        if len(payload) > most:
            outcome, payload = dispycos_lite.UNPICKLABLE, (
                "the result is %d bytes long when packed, more than the %d that a message may have "
                "(Settings.frame_bytes): return it in parts" % (len(payload), most)).encode()
        head = dispycos_lite.pack_result(job.id, job.attempt, outcome)
        if not self.client.send_frame(dispycos_lite.RESULT, head, payload):
            self._full = True


def server_main(spec: Message, control: "Control") -> int:
    """A server process, from its fork (or spawn) to its end by the supervisor. `spec` has key (hex or None), tls
    (arguments of `pycoslite.certificates`), cluster, hosts, announced, ports, name, label, debug, max_file_size,
    progress (path of a file that `make_progress` made, or None), msg_timeout (seconds) and discover (UDP port at which
    to find peers, or None).
    Files that are sent to it go to its working directory, where its jobs look for them.

    The first port of `ports` that is free is taken. What it listens at is reported by `control`, and only then does the
    node tell a client of it. Exits with a sentence when it cannot listen; the node starts it again.
    """
    if spec["debug"]:                           # a forked one logs already
        logging.basicConfig(level=logging.DEBUG, format=_DEBUG_FORMAT)
    pycoslite.settings.message_timeout_s = spec["msg_timeout"]
    pycoslite.main_kernel()
    pycoslite.install_old_names()               # for functions of clients that import pycos
    try:
        network = pycoslite.start_network(
            spec["hosts"], spec["ports"], spec["name"], key=spec["key"] and bytes.fromhex(spec["key"]),
            cluster=spec["cluster"], role="server", announced=spec["announced"],
            tls=pycoslite.certificates(**spec["tls"]))
    except (OSError, pycoslite.SecretError) as error:
        sys.exit("%s: %s" % (spec["name"], error))
    network.files.begin(os.getcwd(), spec["max_file_size"])
    dispycos_lite.enter_server(spec["label"])
    JobServer(network, map_progress(spec["progress"]))
    if spec["discover"] is not None:
        pycoslite.Pycos().discover_peers(spec["discover"])
    control.report(ready=True, port=network.port, process=network.process_id.hex())
    network.host.loop()
    return 0


# ======================================================================================================================
# 4. Processes                                                nursery, templates, servers: the only fork, spawn and kill
# ======================================================================================================================
# Who is whose parent: supervisor -> nursery -> template (one per generation) -> servers. Nursery and template are the
# same small program, a forker: JSON lines come down a socket, children are forked, their deaths and their lines go up.
# A line is addressed by a path: [] is the nursery, [7] the template of generation 7, [7, 2] its server number 2; a
# forker takes the head off a line's "to" on its way down and puts its child's key in front of "from" on its way up.
#
# Everything hangs on who holds which end of a pipe: each end is held by one process alone, so whoever dies, even by
# SIGKILL, closes it. A forker that reads the end of its parent kills what it started; a server kills its own group.
#
# Lines down ("to" is a path, "op" or "tell" says what it is):
#
#   to         op      more                      what it does
#   []         fork    key, directory            nursery: fork template `key` and let it work in that directory
#   []         kill    key, grace_s              nursery: end template `key` and its group; it says "died" in any case
#   []         quit                              nursery: kill all templates, wait for them, end
#   [g]        fork    key, spec                 template g: fork server `key`, which runs server_main(spec, control)
#   [g]        kill    key, grace_s              template g: end server `key`
#   [g]        setup   spec                      template g: run setup_main(spec) in itself
#   [g]        end                               template g: end once it has no children; sent by the nursery
#   [g, n]     -       tell                      server n: for its control.listen
#
# Lines up ("from" is the path of the process they are about; see `Processes` for the events these become):
#
#   event      more                              sent by
#   started    pid                               the forker, after the fork
#   report     report                            the template, around what its server says
#   setup      error                             the template
#   died       pid, returncode, reason           the forker, after it has reaped the child and read its last lines
#
# Signals: a forker ignores all that would end it, as a Ctrl-C or a hasty kill must not leave servers behind; its pipe
# is its only way out. Children get the default handlers back before they run anything (`_default_signals`).
#
# Groups: nursery and each template lead a session of their own; servers stay in their template's group, so that one
# killpg ends all that a client's code started, unless that made a session of its own; on Linux those are found, too
# (`_offspring`, `_Nursery._bury`).

SERVER_DIRECTORY = "dispycos_server_%d"         # below the client's directory, as the documents name it
JOIN_S = 5.0                                    # close() waits so long for processes that were sent SIGKILL

SIGKILL = getattr(signal, "SIGKILL", signal.SIGTERM)    # Windows has only one way to end a process

Message = Dict[str, Any]
NOT_RUNNING = {"event": "died", "pid": None, "returncode": None, "reason": "none of its processes runs"}


def death_reason(returncode: int) -> str:
    """What a process died of, from its exit status (negative: minus the signal's number), as a short sentence."""
    if returncode >= 0:
        return "exit status %d" % returncode
    try:
        return "killed by signal %d (%s)" % (-returncode, signal.Signals(-returncode).name)
    except ValueError:                          # a real-time signal
        return "killed by signal %d" % -returncode


def _returncode(wait_status: int) -> int:
    """os.waitstatus_to_exitcode, which Python 3.8 does not have."""
    return -os.WTERMSIG(wait_status) if os.WIFSIGNALED(wait_status) else os.WEXITSTATUS(wait_status)


class Lines:
    """JSON objects, one a line, over a socket's descriptor or a pair of pipe descriptors, which it owns.

    `send` may be called from any thread; `receive` from one. With a non-blocking descriptor `send` never waits: what
    the other end did not take yet is `pending` until `flush`.

    A stream and not datagrams, so that the end of the other process is seen as the end of the stream. JSON and not
    pickle: user code can write into a server's end.
    """

    def __init__(self, read_fd: int, write_fd: Optional[int] = None) -> None:
        self._read_fd = read_fd
        self._write_fd = read_fd if write_fd is None else write_fd
        self._partial = b""
        self._lock = threading.Lock()           # guards: pending, and so the order of what is written
        self.pending = b""

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._read_fd

    def send(self, message: Message) -> None:
        """Queue one line and write what the other end takes; says nothing when there is no other end any more."""
        with self._lock:
            self.pending += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Go on writing what is pending."""
        with self._lock:
            try:
                while self.pending:
                    self.pending = self.pending[os.write(self._write_fd, self.pending):]
            except BlockingIOError:
                pass                            # the selector tells when to go on
            except OSError:                     # its death is reported by who waits for it
                self.pending = b""

    def receive(self) -> Optional[List[Message]]:
        """What one read gives: complete lines, perhaps none; None when the other end is closed."""
        try:
            data = os.read(self._read_fd, 1 << 16)
        except BlockingIOError:
            return []
        except OSError:                         # reset: it closed without reading all of ours
            data = b""
        if not data:
            return None
        *complete, self._partial = (self._partial + data).split(b"\n")
        return [message for message in map(_parse_line, complete) if message is not None]

    def close(self) -> None:
        """Give the descriptors back; what is sent from then on goes nowhere."""
        with self._lock:
            for fd in {self._read_fd, self._write_fd}:
                os.close(fd)
            self._write_fd = -1                 # not the descriptor that gets this number next


def _parse_line(line: bytes) -> Optional[Message]:
    """The message, or None: user code can write to its process's end of a pipe, and must not stop who reads it."""
    try:
        message = json.loads(line)
        if isinstance(message, dict):
            return message
    except ValueError:
        pass
    log.warning("ignored a line that is not a message, on the pipe between two of the node's processes: %.80r", line)
    return None


class Control:
    """A server's line to its supervisor; `server_main` is given one.

    Its thread ends this process, and all others in its process group, as soon as the process that started it is gone.
    It is the only thing that can: the main thread may be in a job that never returns. `heard` are "tell" lines that
    came before this object was made.
    """

    def __init__(self, lines: Lines, heard: Sequence[Message] = ()) -> None:
        self._lines = lines
        self._lock = threading.Lock()           # guards: _heard, _listener, and the order of calls to the listener
        self._heard = [message["tell"] for message in heard]
        self._listener: Optional[Callable[[Message], None]] = None

    def report(self, **facts: Any) -> None:
        """Tell the supervisor, for instance ``report(ready=True, port=9707, process="ab12...")``; any thread."""
        self._lines.send({"report": facts})

    def listen(self, listener: Callable[[Message], None]) -> None:
        """Call ``listener(message)``, in this object's thread, for what `Processes.tell` sends, and now for earlier.

        The earlier ones are passed on in the caller's thread, before this returns; no message is lost or comes twice.
        The listener must not call `listen`.
        """
        with self._lock:
            heard, self._heard, self._listener = self._heard, [], listener
            for message in heard:
                listener(message)

    def start(self) -> None:
        """Start the thread that reads the line."""
        threading.Thread(target=self._watch, name="supervisor's line", daemon=True).start()

    def _watch(self) -> None:
        """The thread: ends with the process only."""
        while True:
            messages = self._lines.receive()
            if messages is None:
                _end_group()
            for message in messages or ():
                with self._lock:
                    if self._listener:
                        self._listener(message["tell"])
                    else:
                        self._heard.append(message["tell"])


def _end_group() -> None:
    """Kill this process's group, so that nothing the user's code started stays, and this process with it."""
    if hasattr(os, "killpg"):
        os.killpg(0, SIGKILL)
    os._exit(1)


ServerMain = Callable[[Message, Control], Optional[int]]
"""``server_main(spec, control)`` is a server's program; what it returns is the exit status (None is 0)."""
SetupMain = Callable[[Message], Optional[str]]
"""``setup_main(spec)`` runs in a template before its servers are forked; it returns None, or what went wrong."""


def _serve(server_main: ServerMain, spec: Message, control: Control, directory: str) -> int:
    """The rest of a fresh server process: give it its directory, watch its parent, run it."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    _enter(directory)
    _tell_kernel("oom_score_adj", "500")        # when memory runs out, a job goes, and not the node
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)     # what a job prints is seen when it prints it
    control.start()
    return server_main(spec, control) or 0


def _enter(directory: str) -> None:
    """Make `directory` the working directory and the first place to import from."""
    os.chdir(directory)
    sys.path.insert(0, directory)
    importlib.invalidate_caches()


def _enter_client(directory: str) -> None:
    """Likewise, and the first place to look for programs: the client's files are there."""
    _enter(directory)
    os.environ["PATH"] = directory + os.pathsep + os.environ.get("PATH", os.defpath)


def _null_stdin() -> None:
    """Make the standard input an empty one: user code must not read what is typed for the supervisor."""
    fd = os.open(os.devnull, os.O_RDONLY)
    os.dup2(fd, 0)
    os.close(fd)


def _tell_kernel(name: str, text: str) -> None:
    """Write to a file of /proc/self, where there is one; none of what is told is more than a convenience."""
    if sys.platform.startswith("linux"):
        try:
            with open("/proc/self/" + name, "w") as file:
                file.write(text)
        except OSError:
            pass


def _default_signals() -> None:
    """In a forked process: no handler of the process it was forked from stays."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _become(program: Callable[[], int]) -> NoReturn:
    """In a forked process: run `program` and end there, without the clean-up that is the original process's own.

    os._exit, as atexit functions, buffers and temporary files are the parent's; only what was printed is written out.
    What `program` returns is the exit status; an exception is 1, with its traceback on stderr.
    """
    status = 1
    try:
        _default_signals()
        status = program()
    except SystemExit as ended:
        status = 0 if ended.code is None else 1
        if isinstance(ended.code, int):
            status = ended.code
        elif ended.code is not None:            # sys.exit("the reason"), as the interpreter does it
            sys.stderr.write("%s\n" % ended.code)
    except BaseException:                       # nothing may get out of here: the original's stack is below
        traceback.print_exc()
    finally:
        _flush_standard_files()
        os._exit(status & 0xFF)


def _flush_standard_files() -> None:
    """Write out what print() has kept so far."""
    for file in (sys.stdout, sys.stderr):
        try:
            if file is not None:
                file.flush()
        except (OSError, ValueError):           # closed, or its reader is gone: nothing to save
            pass


# ---- the forked programs ---------------------------------------------------------------------------------------------


class _Child:
    """What a forker knows of one child."""

    __slots__ = ("key", "pid", "lines", "kill_at")

    def __init__(self, key: int, pid: int, lines: Lines) -> None:
        self.key, self.pid, self.lines = key, pid, lines
        self.kill_at: Optional[float] = None    # monotonic time: SIGKILL then, if SIGTERM has not been enough


class _Forker:
    """A single-threaded process that forks others: lines in, fork, reap, lines out.

    Subclasses say what a child is (`_child_main`), how a signal reaches it (`_hit`), what is left to do when it is
    dead (`_bury`) and what to do when the parent is gone (`_orphaned`).

    One thread, because fork copies only the thread that calls it, and locks that others hold stay locked in the child.
    Nothing in it blocks but the selector and writes to the parent: children's pipes are non-blocking. After each round
    it asks for deaths, whatever woke it, so a signal that is lost costs nothing.

    A child that is in `_children` has not been reaped, so its process id is its own, and may be sent a signal.
    """

    _OPS: Dict[str, Callable[..., None]] = {}

    def __init__(self, parent: Lines, server_main: ServerMain, setup_main: Optional[SetupMain]) -> None:
        self._parent = parent
        self._server_main, self._setup_main = server_main, setup_main
        self._children: Dict[int, _Child] = {}
        self._ending = False                    # to end as soon as there are no children
        # Not epoll or kqueue: these are descriptors themselves, which a fork would share.
        self._selector = getattr(selectors, "PollSelector", selectors.SelectSelector)()
        self._wake_fd, self._woken_fd = os.pipe()

    def run(self) -> int:
        """Serve the parent; returns the exit status."""
        self._wake_at_signals()
        self._selector.register(self._wake_fd, selectors.EVENT_READ, self._wake_up)
        self._selector.register(self._parent, selectors.EVENT_READ, self._from_parent)
        while not self._ending or self._children:
            for key, events in self._selector.select(self._patience()):
                key.data(events)
            self._reap()
            self._kill_overdue()
        return 0

    def _wake_at_signals(self) -> None:
        """Let a child's death wake the selector, and let no other signal end this process: its parent's pipe does.

        Handlers, not SIG_IGN: they are reset in programs that are executed from here.
        """
        for fd in (self._wake_fd, self._woken_fd):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self._woken_fd, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, lambda signum, frame: None)

    def _wake_up(self, events: int) -> None:
        """A signal came; run() asks for deaths in any case."""
        os.read(self._wake_fd, 4096)

    def _patience(self) -> Optional[float]:
        """How long the selector may wait."""
        deadlines = [child.kill_at for child in self._children.values() if child.kill_at is not None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _kill_overdue(self) -> None:
        """SIGKILL for those whose grace is over."""
        now = time.monotonic()
        for child in self._children.values():
            if child.kill_at is not None and child.kill_at <= now:
                child.kill_at = None
                self._hit(child, SIGKILL)

    # -- lines down and up

    def _from_parent(self, events: int) -> None:
        """Its pipe is readable: lines, or its end."""
        messages = self._parent.receive()
        if messages is None:
            self._orphaned()
        for message in messages or ():
            self._handle(message)

    def _handle(self, message: Message) -> None:
        """Do it here, or send it on; what is for a child that is gone is dropped, its death was reported."""
        if not message["to"]:
            self._OPS[message["op"]](self, message)
            return
        child = self._children.get(message["to"].pop(0))
        if child:
            child.lines.send(message)
            self._watch(child)

    def _from_child(self, child: _Child, events: int) -> None:
        """A child's pipe is readable, or takes more of what is pending."""
        if events & selectors.EVENT_WRITE:
            child.lines.flush()
        if not events & selectors.EVENT_READ or self._relay(child) is not None:
            self._watch(child)
        else:                                   # its end is closed; waitpid has the last word
            self._selector.unregister(child.lines)

    def _relay(self, child: _Child) -> Optional[List[Message]]:
        """Send up what one read gives; None at the end of the stream."""
        messages = child.lines.receive()
        for message in messages or ():
            self._report(child.key, message)
        return messages

    def _watch(self, child: _Child) -> None:
        """Wait for what there is to do with a child's pipe now."""
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if child.lines.pending else 0)
        if child.lines in self._selector.get_map():
            self._selector.modify(child.lines, wanted, functools.partial(self._from_child, child))

    def _report(self, key: int, message: Message) -> None:
        """Send up what child `key` says, or what is to be said of it."""
        self._parent.send(dict(message, **{"from": [key] + message.get("from", [])}))

    # -- birth

    def _on_fork(self, message: Message) -> None:
        """{key, ...}: start child `key`; the rest is for `_child_main`.

        A fork that fails is reported as a death, so that the cluster's one way to deal with those does for it, too.
        """
        ours, theirs = socket.socketpair()
        _flush_standard_files()                 # or the child would print it once more
        gc.freeze()                             # the collector leaves what is there alone: its pages stay shared
        try:
            pid = os.fork()
        except OSError as error:                # out of processes or memory: as good as dead at once
            ours.close()
            theirs.close()
            self._report(message["key"], {"event": "died", "pid": None, "returncode": None,
                                          "reason": "it could not be started: %s" % error})
            return
        if not pid:
            ours.close()
            _become(functools.partial(self._in_child, Lines(theirs.detach()), message))
        theirs.close()
        os.set_blocking(ours.fileno(), False)   # a stopped child must not stop its parent
        child = self._children[message["key"]] = _Child(message["key"], pid, Lines(ours.detach()))
        self._selector.register(child.lines, selectors.EVENT_READ, functools.partial(self._from_child, child))
        self._report(child.key, {"event": "started", "pid": pid})

    def _in_child(self, parent: Lines, message: Message) -> int:
        """The child's first steps."""
        self._let_go()
        return self._child_main(parent, message)

    def _let_go(self) -> None:
        """In a child: close what is the forker's, so that each end of a pipe is held by one process only."""
        self._selector.close()
        self._parent.close()
        for fd in (self._wake_fd, self._woken_fd):
            os.close(fd)
        for child in self._children.values():
            child.lines.close()

    # -- death

    def _on_kill(self, message: Message) -> None:
        """{key, grace_s}: end child `key`, if it is still there."""
        child = self._children.get(message["key"])
        if not child:
            return
        if message["grace_s"] > 0:
            child.kill_at = time.monotonic() + message["grace_s"]
            self._hit(child, signal.SIGTERM)
        else:
            self._hit(child, SIGKILL)

    def _reap(self) -> None:
        """Fetch all that died; orphans that user code left to us are among them."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for child in [child for child in self._children.values() if child.pid == pid]:
                self._dead(child, _returncode(status))

    def _dead(self, child: _Child, returncode: int) -> None:
        """It was reaped: end what it left, pass on its last words, then report its death.

        In this order: what it left may hold the pipe open, and "died" is to be the last that is heard of it.
        """
        del self._children[child.key]
        if child.lines in self._selector.get_map():
            self._selector.unregister(child.lines)
        self._bury(child)
        while self._relay(child):               # its last words
            pass
        child.lines.close()
        self._report(child.key, {"event": "died", "pid": child.pid, "returncode": returncode,
                                 "reason": death_reason(returncode)})

    def _child_main(self, parent: Lines, message: Message) -> int:
        """In a child: what it does; returns the exit status."""
        raise NotImplementedError

    def _hit(self, child: _Child, number: int) -> None:
        """Send a signal."""
        raise NotImplementedError

    def _bury(self, child: _Child) -> None:
        """The child is dead: end what it left behind."""

    def _orphaned(self) -> None:
        """The parent is gone: end everything started from here, and this process."""
        raise NotImplementedError


class _Template(_Forker):
    """Leader of a generation's session and process group; its children are the servers.

    It has loaded everything that servers need, node_setup's results included, so a server is a fork away, and shares
    that memory until one of them writes to it.
    """

    directory = ""

    def _child_main(self, parent: Lines, message: Message) -> int:
        """Be a server, in a directory of its own below the client's."""
        _tell_kernel("comm", "pycos server %d" % message["key"])       # what ps and top show
        directory = os.path.join(self.directory, SERVER_DIRECTORY % message["key"])
        return _serve(self._server_main, message["spec"], Control(parent), directory)

    def _report(self, key: int, message: Message) -> None:
        """What a server says is wrapped, so that user code cannot speak for the machinery."""
        super()._report(key, {"event": "report", "report": message["report"]} if "report" in message else message)

    def _on_setup(self, message: Message) -> None:
        """{spec}: run node_setup here, so that servers forked from now on share the memory it filled."""
        error: Optional[str] = "this node has no program for node_setup"
        try:
            if self._setup_main:
                error = self._setup_main(message["spec"])
        except BaseException:                   # the user's code, SystemExit included; the template has to live on
            error = traceback.format_exc()
        if threading.active_count() > 1:
            log.warning("node_setup left threads running; servers are forked without them, and locks held then stay "
                        "locked there: stop them before node_setup returns")
        self._parent.send({"event": "setup", "error": error})

    def _on_end(self, message: Message) -> None:
        """{}: no more servers will be asked for."""
        self._ending = True

    def _hit(self, child: _Child, number: int) -> None:
        """A server that is killed takes the processes along that it started, where the system tells which."""
        offspring = _offspring(child.pid) if number == SIGKILL else []
        os.kill(child.pid, number)              # not reaped yet: the id is still its own
        for pid in offspring:
            _kill_quietly(os.kill, pid, number)

    def _orphaned(self) -> None:
        """The servers, and what they started, are in the group."""
        _end_group()

    _OPS = {"fork": _Forker._on_fork, "kill": _Forker._on_kill, "setup": _on_setup, "end": _on_end}


class _Nursery(_Forker):
    """Forked before its parent, the supervisor, starts a thread; its children are the templates.

    It exists because the supervisor has threads (engine, console) and so cannot fork safely, and because it never runs
    a line of a client's code: whatever a client does to its template, the next one comes from a clean process.
    """

    def _child_main(self, parent: Lines, message: Message) -> int:
        """Be a template, the leader of a session, in the client's directory."""
        os.setsid()
        _tell_kernel("comm", "pycos template")
        _enter_client(message["directory"])
        template = _Template(parent, self._server_main, self._setup_main)
        template.directory = message["directory"]
        return template.run()

    def _on_kill(self, message: Message) -> None:
        """Likewise; the supervisor waits for "died" before it deletes files, so it gets one in any case."""
        super()._on_kill(message)
        child = self._children.get(message["key"])
        if not child:
            self._report(message["key"], dict(NOT_RUNNING))
        else:
            child.lines.send({"to": [], "op": "end"})   # so that it does not outlive the last of its servers
            self._watch(child)

    def _hit(self, child: _Child, number: int) -> None:
        """To the whole group: the template ignores SIGTERM, its servers and what they started need not."""
        try:
            os.killpg(child.pid, number)
        except (ProcessLookupError, PermissionError):   # it has not come to setsid yet, or is a zombie (macOS)
            os.kill(child.pid, number)          # not reaped yet: the id is still its own

    def _bury(self, child: _Child) -> None:
        """Nothing of a generation outlives its template: neither its group nor what went to another group."""
        _kill_quietly(os.killpg, child.pid, SIGKILL)
        for pid in [pid for pid, _, session in _process_table() if session == child.pid]:
            _kill_quietly(os.kill, pid, SIGKILL)

    def _orphaned(self, message: Optional[Message] = None) -> None:
        """Each template is the leader of a group of its own; also done when the supervisor says "quit"."""
        children = list(self._children.values())
        for child in children:
            self._hit(child, SIGKILL)
        for child in children:
            os.waitpid(child.pid, 0)
            self._bury(child)
        os._exit(0)

    _OPS = {"fork": _Forker._on_fork, "kill": _on_kill, "quit": _orphaned}


def _kill_quietly(kill: Callable[[int, int], None], pid: int, number: int) -> None:
    """Processes that end by themselves at this moment, or run as somebody else by now, are no error."""
    try:
        kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def _process_table() -> List[Tuple[int, int, int]]:
    """(pid, parent's pid, session) of every process; empty where there is no Linux /proc.

    Not one moment's picture: processes come and go while it is read. It only adds to what process groups do, so what
    it misses is what other systems always miss.
    """
    table = []
    for name in os.listdir("/proc") if sys.platform.startswith("linux") and os.path.isdir("/proc/self") else ():
        if name.isdigit():
            try:
                with open("/proc/%s/stat" % name, "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()    # the name before it may hold anything
            except OSError:
                continue                        # gone meanwhile
            table.append((int(name), int(fields[1]), int(fields[3])))
    return table


def _offspring(pid: int) -> List[int]:
    """Children of `pid`, their children, and so on."""
    children: Dict[int, List[int]] = {}
    for child, parent, _ in _process_table():
        children.setdefault(parent, []).append(child)
    found = list(children.get(pid, ()))
    for child in found:                         # grows while it runs
        found += children.get(child, ())
    return found


def _close_descriptors_but(kept: int) -> None:
    """Close everything but the standard files and `kept`."""
    try:
        numbers = [int(name) for name in os.listdir("/dev/fd")]
    except OSError:
        numbers = list(range(min(os.sysconf("SC_OPEN_MAX"), 1 << 16)))
    for fd in numbers:
        if fd > 2 and fd != kept:
            try:
                os.close(fd)
            except OSError:                     # the listing's own
                pass


def _nursery_main(fd: int, server_main: ServerMain, setup_main: Optional[SetupMain]) -> int:
    """In the process that the supervisor forked: be the nursery; `fd` is the line to the supervisor."""
    os.setsid()                                 # a Ctrl-C at the terminal is for the supervisor alone
    _close_descriptors_but(fd)
    _null_stdin()
    _tell_kernel("comm", "pycos nursery")
    return _Nursery(Lines(fd), server_main, setup_main).run()


# ---- the supervisor's side -------------------------------------------------------------------------------------------


class Processes:
    """Starts, watches and ends the processes that run clients' code; `START_METHODS` has the kinds.

    Generations are numbered by the caller, and so are the servers of one (from 1). No method waits, except `start` and
    `close`. All that happens is told by ``report(event)``, called from this object's threads with a dict:

        event       one of the words below
        generation  its number
        n           the server's number; None: it is about the generation (its template)

        started     pid                 the process exists
        report      report              a server called ``control.report(**report)``
        setup       error               node_setup has run: None, or what went wrong
        died        pid, returncode, reason     returncode as in subprocess, None when it could not be started; with
                                        n None the whole generation is gone: servers, and what they started
        lost        reason              (n and generation None) no process can be started any more

    Events of one process come in order, and a server's before those of the generation's end. A generation that died by
    itself may be started again under its number; one that was killed is over. The order of calls is the order in which
    they are carried out; calls that concern what is not there are dropped, as its death is reported anyway.

    `server_main` must be a function of a module's top level: a spawned process finds it by its name.
    """

    def __init__(self, server_main: ServerMain, report: Callable[[Message], None],
                 setup_main: Optional[SetupMain] = None) -> None:
        self._server_main, self._report, self._setup_main = server_main, report, setup_main

    def start(self) -> None:
        """Get ready; before the process starts its first thread."""
        raise NotImplementedError

    def new_generation(self, generation: int, directory: str) -> None:
        """Start a template whose working directory is `directory`, which exists and belongs to one client."""
        raise NotImplementedError

    def setup(self, generation: int, spec: Message) -> None:
        """Run ``setup_main(spec)`` in the template; servers started after that have what it left in memory."""
        raise NotImplementedError

    def start_server(self, generation: int, n: int, spec: Message) -> None:
        """Start server `n`, which runs ``server_main(spec, control)``; `spec` must be good for JSON."""
        raise NotImplementedError

    def tell(self, generation: int, n: int, message: Message) -> None:
        """Send `message` to server `n`'s ``control.listen``er; dropped when that server is gone."""
        raise NotImplementedError

    def kill_server(self, generation: int, n: int, grace_s: float = 0.0) -> None:
        """End server `n` and what it started: SIGTERM and after `grace_s` seconds SIGKILL; with 0 SIGKILL at once."""
        raise NotImplementedError

    def kill_generation(self, generation: int, grace_s: float = 0.0) -> None:
        """End the template, its servers and what they started, like `kill_server`; "died" comes in any case."""
        raise NotImplementedError

    def close(self) -> None:
        """End everything at once and wait for it; nothing is reported any more."""
        raise NotImplementedError


class ForkedProcesses(Processes):
    """Servers are forked from a template, templates from a nursery, which is forked by `start`.

    This side only writes lines and turns those that come back into events; what they do is said at the head of this
    section. Its one thread reads, and calls `report`.
    """

    _pid = 0
    _closing = False

    def start(self) -> None:
        """See `Processes.start`; raises MisuseError when this process has threads already."""
        if threading.active_count() > 1:
            names = ", ".join(thread.name for thread in threading.enumerate())
            raise pycoslite.MisuseError(
                "the processes of a node must be started before the first thread (now running: %s): call start() at "
                "the program's beginning, or use start_method='spawn'" % names)
        ours, theirs = socket.socketpair()
        _flush_standard_files()
        self._pid = os.fork()
        if not self._pid:
            _become(functools.partial(_nursery_main, theirs.detach(), self._server_main, self._setup_main))
        theirs.close()
        # Blocking writes, from the engine, too: the nursery never does anything but read and fork.
        self._lines = Lines(ours.detach())
        self._reader = threading.Thread(target=self._read, name="nursery's line", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        """The thread: pass on what comes up, until the nursery is gone."""
        messages: Optional[List[Message]] = []
        while messages is not None:
            for message in messages:
                self._deliver(message)
            messages = self._lines.receive()
        _, status = os.waitpid(self._pid, 0)
        self._deliver({"event": "lost", "from": [None], "reason": "the process that starts all others (the nursery, "
                       "pid %d) is gone: %s" % (self._pid, death_reason(_returncode(status)))})

    def _deliver(self, message: Message) -> None:
        """From a line's form to an event's."""
        generation, *n = message.pop("from")
        if not self._closing:
            self._report(dict(message, generation=generation, n=n[0] if n else None))

    def _send(self, to: List[int], op: str, **rest: Any) -> None:
        """Let the forker at the end of path `to` do `op`."""
        self._lines.send(dict(rest, to=to, op=op))

    def new_generation(self, generation: int, directory: str) -> None:
        """See `Processes`."""
        self._send([], "fork", key=generation, directory=directory)

    def setup(self, generation: int, spec: Message) -> None:
        """See `Processes`."""
        self._send([generation], "setup", spec=spec)

    def start_server(self, generation: int, n: int, spec: Message) -> None:
        """See `Processes`."""
        self._send([generation], "fork", key=n, spec=spec)

    def tell(self, generation: int, n: int, message: Message) -> None:
        """See `Processes`."""
        self._lines.send({"to": [generation, n], "tell": message})

    def kill_server(self, generation: int, n: int, grace_s: float = 0.0) -> None:
        """See `Processes`."""
        self._send([generation], "kill", key=n, grace_s=grace_s)

    def kill_generation(self, generation: int, grace_s: float = 0.0) -> None:
        """See `Processes`."""
        self._send([], "kill", key=generation, grace_s=grace_s)

    def close(self) -> None:
        """See `Processes`."""
        if not self._pid or self._closing:
            return
        self._closing = True
        self._send([], "quit")
        self._reader.join(JOIN_S)
        if self._reader.is_alive():             # it was stopped, say; its children see the end of its pipes
            os.kill(self._pid, SIGKILL)
            self._reader.join()
        self._lines.close()


class _Spawned:
    """One server that was started as a program of its own.

    It may be killed before its program was started, while that runs, or when it has ended: `unwanted`, `popen` and
    `reaped` tell these apart, always under the lock, so that no signal goes to a process id that was given away.
    """

    def __init__(self, generation: int, n: int) -> None:
        self.generation, self.n = generation, n
        self.lock = threading.Lock()            # guards: popen, reaped, unwanted, timer
        self.popen: Optional["subprocess.Popen[bytes]"] = None
        self.reaped = False                     # its process id may be another's by now
        self.unwanted = False                   # killed, perhaps before it was started
        self.timer: Optional[threading.Timer] = None
        self.lines: Optional[Lines] = None
        self.thread = threading.current_thread()        # the one that waits for its end; set before it can be needed

    def kill(self, grace_s: float) -> None:
        """Kill it and what it started; with `grace_s` first SIGTERM and, if need be, SIGKILL so many seconds later."""
        with self.lock:
            self.unwanted = True
            if not self.popen or self.reaped:
                return
            _hit_tree(self.popen, signal.SIGTERM if grace_s > 0 else SIGKILL)
            if grace_s > 0 and not self.timer:
                self.timer = threading.Timer(grace_s, self.kill, (0.0,))
                self.timer.daemon = True
                self.timer.start()

    def wait(self, popen: "subprocess.Popen[bytes]") -> int:
        """Wait for its end and end what it started; returns its exit status. In a thread of its own."""
        with self.lock:
            self.popen = popen
            if self.unwanted:
                _hit_tree(popen, SIGKILL)
        returncode = popen.wait()
        with self.lock:
            self.reaped = True
            if self.timer:
                self.timer.cancel()
        _hit_tree(popen, SIGKILL)
        return returncode


def _lines_of(popen: "subprocess.Popen[bytes]") -> Lines:
    """Its pipes, taken away from the Popen object, whose own locks and buffers are of no use here."""
    assert popen.stdin and popen.stdout
    with popen.stdin, popen.stdout:
        return Lines(os.dup(popen.stdout.fileno()), os.dup(popen.stdin.fileno()))


def _hit_tree(popen: "subprocess.Popen[bytes]", number: int) -> None:
    """Send a signal to a spawned server and what it started, as far as the system knows that."""
    if hasattr(os, "killpg"):
        _kill_quietly(os.killpg, popen.pid, number)
    else:                                       # Windows has no groups that could be killed, but a program for it
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(popen.pid)], stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


class SpawnedProcesses(Processes):
    """Servers are programs of their own, started by this process: slower, no node_setup, works everywhere.

    Their standard output is this process's standard error, as standard input and output of the program are the line to
    the supervisor. The first line down is {program, spec, directory}: what to import and call, with what, and where;
    then "tell" lines as in the other kind. There is no template: a generation is a directory and a number here, and its
    death is reported when it was killed and its last server has ended.

    Two threads watch each server: one waits for its end, the other reads its line.
    A server stopped by a signal outlives a supervisor that is killed, until it is continued.
    """

    def __init__(self, server_main: ServerMain, report: Callable[[Message], None],
                 setup_main: Optional[SetupMain] = None) -> None:
        super().__init__(server_main, report, setup_main)
        self._lock = threading.Lock()           # guards: the three below
        self._directories: Dict[int, str] = {}
        self._servers: Dict[Tuple[int, int], _Spawned] = {}
        self._unwanted: Set[int] = set()        # generations that end with their last server
        self._closing = False

    def start(self) -> None:
        """See `Processes`; nothing is needed here."""

    def new_generation(self, generation: int, directory: str) -> None:
        """See `Processes`."""
        with self._lock:
            self._directories[generation] = directory
        self._tell(generation, None, event="started", pid=None)

    def setup(self, generation: int, spec: Message) -> None:
        """See `Processes`; this kind has nowhere to run it and says so."""
        self._tell(generation, None, event="setup", error="node_setup needs a system that can fork processes; on this "
                   "node every server is started by itself: prepare each server instead (server_setup)")

    def start_server(self, generation: int, n: int, spec: Message) -> None:
        """See `Processes`."""
        with self._lock:
            directory = self._directories.get(generation)
            if directory is None or generation in self._unwanted:
                return
            server = self._servers[generation, n] = _Spawned(generation, n)
            server.thread = threading.Thread(target=self._run, args=(server, directory, spec), daemon=True,
                                             name="server %d of generation %d" % (n, generation))
        server.thread.start()

    def _run(self, server: _Spawned, directory: str, spec: Message) -> None:
        """One thread per server: start it, wait for its end."""
        try:
            popen = _spawn(directory)
        except OSError as error:
            self._gone(server, None, None, "it could not be started: %s" % error)
            return
        server.lines = _lines_of(popen)
        server.lines.send({"program": _reference(self._server_main), "spec": spec,
                           "directory": os.path.join(directory, SERVER_DIRECTORY % server.n)})
        self._tell(server.generation, server.n, event="started", pid=popen.pid)
        reader = threading.Thread(target=self._read, args=(server, server.lines), daemon=True,
                                  name=server.thread.name + ", its line")
        reader.start()
        returncode = server.wait(popen)
        reader.join(1.0)                        # its last words; a process it started may hold the pipe for longer
        self._gone(server, popen.pid, returncode, death_reason(returncode))

    def _read(self, server: _Spawned, lines: Lines) -> None:
        """The other thread per server."""
        messages: Optional[List[Message]] = []
        while messages is not None:
            for message in messages:
                if "report" in message:
                    self._tell(server.generation, server.n, event="report", report=message["report"])
            messages = lines.receive()
        lines.close()

    def _tell(self, generation: int, n: Optional[int], **event: Any) -> None:
        """Report; never with a lock held, as the receiver may call back or wait for another thread."""
        if not self._closing:
            self._report(dict(event, generation=generation, n=n))

    def _gone(self, server: _Spawned, pid: Optional[int], returncode: Optional[int], reason: str) -> None:
        """A server's thread is done with it."""
        key = server.generation, server.n
        self._tell(*key, event="died", pid=pid, returncode=returncode, reason=reason)
        with self._lock:
            if self._servers.get(key) is server:        # not its successor
                del self._servers[key]
        self._end_if_empty(server.generation)

    def _end_if_empty(self, generation: int) -> None:
        """Report the end of a generation that was killed, once, by whoever comes last."""
        with self._lock:
            if generation not in self._unwanted or any(key[0] == generation for key in self._servers):
                return
            self._unwanted.remove(generation)
            self._directories.pop(generation, None)
        self._tell(generation, None, **NOT_RUNNING)

    def tell(self, generation: int, n: int, message: Message) -> None:
        """See `Processes`."""
        with self._lock:
            server = self._servers.get((generation, n))
        if server and server.lines:
            server.lines.send({"tell": message})

    def kill_server(self, generation: int, n: int, grace_s: float = 0.0) -> None:
        """See `Processes`."""
        with self._lock:
            server = self._servers.get((generation, n))
        if server:
            server.kill(grace_s)

    def kill_generation(self, generation: int, grace_s: float = 0.0) -> None:
        """See `Processes`."""
        with self._lock:
            self._unwanted.add(generation)
            servers = [server for server in self._servers.values() if server.generation == generation]
        for server in servers:
            server.kill(grace_s)
        self._end_if_empty(generation)

    def close(self) -> None:
        """See `Processes`."""
        self._closing = True
        with self._lock:
            servers = list(self._servers.values())
        for server in servers:
            server.kill(0.0)
        deadline = time.monotonic() + JOIN_S
        for server in servers:
            server.thread.join(max(0.0, deadline - time.monotonic()))


def _spawn(directory: str) -> "subprocess.Popen[bytes]":
    """Start this Python with this module as a server; its first line of input says the rest (`spawned_server`).

    sys.path goes along, as it may have been changed by the program, and begins with the program's own folder. What is
    on the command line can be read by every user of the machine; the key is not.
    """
    boot = ("import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]); "
            "importlib.import_module(sys.argv[2]).spawned_server()")
    here = [os.path.abspath(path or os.curdir) for path in sys.path]
    command = [sys.executable, "-c", boot, json.dumps(here), _module_name(__name__)]
    options: Dict[str, Any] = {"start_new_session": True}
    if os.name == "nt":                         # a Ctrl-C at the console is for the supervisor alone
        options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=directory, **options)


def _module_name(name: str) -> str:
    """The name another process can import a module by: a program run as a file or with -m is called __main__ here."""
    if name != "__main__":
        return name
    main = sys.modules[name]
    spec = getattr(main, "__spec__", None)
    return spec.name if spec else os.path.splitext(os.path.basename(main.__file__ or ""))[0]


def _reference(function: Callable[..., Any]) -> List[str]:
    """Where another process finds a function of a module's top level."""
    return [_module_name(function.__module__), function.__qualname__]


def spawned_server() -> None:
    """Be a server started by `SpawnedProcesses`: its standard input and output are the line to the supervisor.

    Never returns; called in a fresh interpreter's main thread.
    """
    lines = Lines(os.dup(0), os.dup(1))         # copies that programs started from here do not inherit
    _null_stdin()
    os.dup2(2, 1)
    messages: Optional[List[Message]] = []
    while messages == []:
        messages = lines.receive()
    if messages:                                # None: the supervisor is gone already
        first, *later = messages
        _become(functools.partial(_serve_spawned, lines, first, later))


def _serve_spawned(lines: Lines, first: Message, later: List[Message]) -> int:
    """What a template does for a forked server, and then the server's own program."""
    module, name = first["program"]
    server_main = getattr(importlib.import_module(module), name)
    _enter_client(os.path.dirname(first["directory"]))
    return _serve(server_main, first["spec"], Control(lines, later), first["directory"])


START_METHODS: Dict[str, Type[Processes]] = {"spawn": SpawnedProcesses}
"""Kinds of `Processes` that this system has, by name; the last one is the better one."""
if hasattr(os, "fork"):
    START_METHODS["fork"] = ForkedProcesses


# ---- directories -----------------------------------------------------------------------------------------------------


class FileLock:
    """An exclusive lock on a file that the system takes back when the process ends, however it ends.

    The file at `path` is made when need be, and deleted by who gives it back. As another may open it just before that,
    `take` looks whether the path still names the file that it has locked. One thread at a time.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1

    def take(self) -> bool:
        """Take it if it is free; False when another process (or another FileLock of this one) has it."""
        while self._fd < 0:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
            if not _lock_descriptor(fd):
                os.close(fd)
                return False
            if _same_file(fd, self.path):
                self._fd = fd
            else:                               # its holder deleted it between our two steps
                os.close(fd)
        return True

    def note(self, text: str) -> None:
        """Write `text` into the file for others to read; it is at most 100 bytes long."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        os.write(self._fd, text.encode().ljust(100))

    @property
    def held(self) -> bool:
        """Whether this object has it."""
        return self._fd >= 0

    def give_back(self) -> None:
        """Delete the file and release the lock."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            if os.name != "nt":                 # there, an open file cannot be deleted: it stays, unlocked
                os.unlink(self.path)
            os.close(fd)


def _lock_descriptor(fd: int) -> bool:
    """Lock the file without waiting; False when it is locked already."""
    try:
        if fcntl:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            os.lseek(fd, 1 << 20, os.SEEK_SET)  # beyond what is read: locked bytes cannot be
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    return True


def _same_file(fd: int, path: str) -> bool:
    """Whether `path` still is the file that was opened."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def private_directory(path: str, others: int) -> None:
    """Make `path` (mode 0700) unless it exists; raises MisuseError unless it is a directory of this user's own.

    `others` are the permission bits that group and others must not have there (0o022: write). What is there is looked
    at after the attempt to make it, and without following a link: in a temporary directory another user may have put
    one there first.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    if os.name == "nt":                         # a user's temporary directory is private there
        return
    found = os.lstat(path)
    problem = ("is not a directory" if not stat.S_ISDIR(found.st_mode)
               else "belongs to user id %d" % found.st_uid if found.st_uid != os.geteuid()
               else "is open to other users (mode %o)" % stat.S_IMODE(found.st_mode) if found.st_mode & others else "")
    if problem:
        raise pycoslite.MisuseError("cannot keep files in %s: it %s; name another directory with --dest_path, or "
                                    "remove it" % (path, problem))


def remove_tree(path: str) -> None:
    """Delete a directory and all below, never following a symbolic link; logs what cannot be deleted.

    Client code may have taken the permissions away that deleting needs; these are given back before the next try. Does
    not raise. Any thread; it may take long.
    """
    problem: Optional[OSError] = None
    for _ in range(3):                          # a process that is being killed may finish writing a file
        try:
            if os.path.islink(path):
                os.unlink(path)
            else:
                shutil.rmtree(path)
            return
        except OSError as error:
            problem = error
            if not os.path.lexists(path):       # somebody else was at it, too
                return
            _make_writable(path)
    log.warning("could not delete all of %s: %s", path, problem)


def _make_writable(path: str) -> None:
    """Undo what user code did to the permissions of its directories."""
    try:
        os.chmod(path, 0o700)
        for parent, names, _ in os.walk(path):  # from the top, and not into what a link names
            for name in names:
                directory = os.path.join(parent, name)
                if not os.path.islink(directory):
                    os.chmod(directory, 0o700)
    except OSError:
        pass                                    # deleting says it again, and more exactly


def default_root() -> str:
    """Where nodes keep their files unless told otherwise: in the temporary directory, one place for each user."""
    owner = str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()
    return os.path.join(tempfile.gettempdir(), "pycoslite-" + owner)


def command_line(pid: int) -> str:
    """The command line of a process, '' when there is none or the system does not tell."""
    try:
        if os.path.isdir("/proc/self"):
            with open("/proc/%d/cmdline" % pid, "rb") as file:
                return file.read().replace(b"\0", b" ").decode(errors="replace")
        return subprocess.run(["ps", "-o", "command=", "-p", str(pid)], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL).stdout.decode(errors="replace")
    except OSError:
        return ""


class NodeDirectory:
    """The files of one node: ROOT/node-LABEL, held by a lock on ROOT/node-LABEL.lock as long as the node lives.

    Below it is one directory for each generation (``client-1``), which the servers' directories are in. ROOT must
    belong to this user, and nobody else may write there. What killed nodes left in ROOT goes when the next one opens.

        ROOT/node-9706.lock                         holds "process PID" for people
        ROOT/node-9706/client-3/                    files of the third client; templates work here
        ROOT/node-9706/client-3/dispycos_server_1/  its first server works here
        ROOT/node-9706/progress-3-1                 what that has done, see `Progress`
        ROOT/dead-PID-TIME/                         renamed away, being deleted by a thread of process PID

    LABEL is the node's port: two nodes have the same only if they listen at different addresses, and then the second
    is refused, with a sentence. The default ROOT must be closed to all others; one that was named may be readable.
    """

    def __init__(self, root: Optional[str], label: str) -> None:
        self.root = os.path.abspath(root) if root else default_root()
        self._others = 0o022 if root else 0o077
        self.path = os.path.join(self.root, "node-" + label)
        self._lock = FileLock(self.path + ".lock")

    def open(self) -> None:
        """Make it, empty; raises MisuseError, with a sentence, when it is unsafe or another node's."""
        private_directory(self.root, self._others)
        if not self._lock.take():
            with open(self._lock.path, errors="replace") as file:
                holder = file.read(100).strip() or "it does not say which"
            raise pycoslite.MisuseError("another node (%s) works in %s: stop it, or give this one another port "
                                        "(--tcp_ports) or directory (--dest_path)" % (holder, self.path))
        self._lock.note("process %d" % os.getpid())
        self._sweep()
        os.mkdir(self.path, 0o700)

    def end_holder(self) -> None:
        """End the node program that holds this directory, if one does: politely, then by force. Raises MisuseError when
        it cannot be told which process that is, or it does not end.

        Only the node program is ended: its nursery, templates and servers end with the pipes to it, by themselves, and
        so does a nursery whose node was killed. A node that was killed has given its lock back, and there is nothing to
        do here: what it left in files goes when this one opens its own.
        """
        if not os.path.exists(self._lock.path):
            return
        for name, patience_s in (("SIGTERM", 5.0), ("SIGKILL", 5.0)):
            deadline = time.monotonic() + patience_s
            if not self._lock.take():
                pid = self._holder()
                log.warning("--clean: the node program before this one, process %d, is ended (%s)", pid, name)
                os.kill(pid, getattr(signal, name, signal.SIGTERM))
            while not self._lock.take() and time.monotonic() < deadline:
                time.sleep(0.05)
            if self._lock.held:
                return self._lock.give_back()
        raise pycoslite.MisuseError("--clean: the node program that holds %s does not end" % self.path)

    def _holder(self) -> int:
        """Process id of the living node that has the lock. A number alone proves nothing: the file may come from
        another machine or container, where it means another process."""
        with open(self._lock.path, errors="replace") as file:
            found = re.fullmatch(r"process (\d+)", file.read(100).strip())
        pid = int(found.group(1)) if found else 0
        if not pid or "dispycosnode_lite" not in command_line(pid):
            raise pycoslite.MisuseError("--clean: which process holds %s cannot be told (no node program is process %d "
                                        "here): end it by hand, or name another directory with --dest_path" % (
                                            self._lock.path, pid))
        return pid

    def client(self, generation: int) -> str:
        """Make and return the directory of one generation; one that exists is kept as it is."""
        path = os.path.join(self.path, "client-%d" % generation)
        os.makedirs(path, mode=0o700, exist_ok=True)
        return path

    def progress(self, generation: int, n: int) -> str:
        """Path of the file in which a server notes what it does."""
        return os.path.join(self.path, "progress-%d-%d" % (generation, n))

    def remove(self, generation: int) -> None:
        """Delete the directory of one generation, whose processes are gone, in a thread of its own."""
        for name in os.listdir(self.path):
            if name.startswith("progress-%d-" % generation):
                try:
                    os.unlink(os.path.join(self.path, name))
                except OSError as error:        # some systems keep what was mapped a moment longer; it goes with us
                    log.debug("progress file %s: %s", name, error)
        self._discard([self._aside(self.client(generation))])

    def close(self) -> None:
        """Delete everything, now, and release the lock."""
        if self._lock.held:
            remove_tree(self.path)
            self._lock.give_back()

    def _sweep(self) -> None:
        """Delete what no living node holds.

        Whose lock can be taken is dead. Our own is held by us: what is there under our name is from a node before us.
        """
        dead = []
        for name in os.listdir(self.root):
            path = os.path.join(self.root, name)
            if name.startswith("dead-"):
                dead.append(path)
            elif name.startswith("node-") and not name.endswith(".lock"):
                lock = FileLock(path + ".lock")
                if path == self.path or lock.take():
                    dead.append(self._aside(path))
                    lock.give_back()
        self._discard(dead)

    def _aside(self, path: str) -> str:
        """Rename it, so that its name is free at once, however long deleting takes; returns the new name."""
        aside = os.path.join(self.root, "dead-%d-%d" % (os.getpid(), time.monotonic_ns()))
        os.rename(path, aside)
        return aside

    def _discard(self, paths: List[str]) -> None:
        """Delete in a thread: a client may leave a million files, and nobody has to wait for that."""
        def _delete() -> None:
            for path in paths:
                remove_tree(path)
        if paths:
            threading.Thread(target=_delete, name="removal of old files", daemon=True).start()

# ======================================================================================================================
# 5. Node driver                                                                                          engine context
# ======================================================================================================================
#
# The driver has no state of its own but what it waits for; who has the node, and what should run, is in `NodeState`.
#
#   what comes                        event of NodeState       what goes out besides its instructions
#   node.reserve                      reserve                  the reply: a grant, a place in the queue, or an error
#   node.release; its peer is lost    release                  an announcement, if the node is free now
#   node.restart                      restart                  the reply: nothing, or an error for a client that may not
#   node.setup                        -, then restart for      the reply, when the servers are there again
#                                     each server
#   node.avail                        -                        the reply
#   "started", "report", "died"       server_started,          "died" of a generation that was ended: its directory is
#   from a process                    server_ready, ..._died   deleted
#   "setup" from a template           -                        wakes the task that waits in _on_node_setup
#   "lost" from Processes             -                        Ending: without the nursery nothing can be started
#   a timer                           tick                     -
#   console: close, quit              release, stop            node.refused to the client
#   the clock, by `keep_hours`        pause, vacate, resume    node.stopping or node.refused to the client, an
#                                                              announcement when it opens
#   Look, by a timer                  activity                 -; node.refused if the client is idle
#
# An instruction for a client becomes a one-way request, but for the answer to node.reserve, which is its reply. A
# client whose peer is not there any more is not told: `_on_peer` has freed the node, or is about to.
#
# How the program ends: NodeState's Stop, a signal, the console, the end of an embedding client, the loss of the
# nursery - each sets `ending`, whose first reason wakes the main thread; `run_node` then takes everything down.

PORTS_TRIED = 64                        # consecutive ones, when none are listed, before any free port will do
_GOODBYE_S = 1.0                        # a client has this long to hear that the node ends, before its servers do
_HOURS_S = 5.0                          # how often the service window is looked at
_LOOK_S = 0.01                          # how often a node that is being set up is looked at


def availability(path: str) -> Dict[str, Optional[float]]:
    """What this machine has free: cpu and swap in percent, memory and disk (where `path` is) in bytes; None for what
    the system does not tell. As psutil says, where that is installed.

    Without psutil, cpu is what the load of the last minute leaves free, which lags behind; memory and swap are known
    on Linux only. Never raises for what it cannot find out. Any thread; it reads a few small files.
    """
    found: Dict[str, Optional[float]] = dict.fromkeys(("cpu", "memory", "disk", "swap"))
    try:
        found["disk"] = shutil.disk_usage(path).free
        if psutil is not None:
            found["cpu"] = 100 - psutil.cpu_percent()
            found["memory"], found["swap"] = psutil.virtual_memory().available, 100 - psutil.swap_memory().percent
        elif hasattr(os, "getloadavg"):
            found["cpu"] = max(0.0, 100 * (1 - os.getloadavg()[0] / (os.cpu_count() or 1)))
        if psutil is None and sys.platform.startswith("linux"):
            found.update(_memory_of_linux())
    except OSError as error:
        log.debug("availability: %s", error)
    return found


def _memory_of_linux() -> Dict[str, Optional[float]]:
    """Memory that can be had without swapping (MemAvailable, not MemFree), and swap. Raises OSError."""
    with open("/proc/meminfo") as file:
        sizes = {words[0].rstrip(":"): int(words[1]) for words in map(str.split, file) if len(words) > 1}
    swap = sizes.get("SwapTotal")
    return {"memory": sizes["MemAvailable"] * 1024 if "MemAvailable" in sizes else None,
            "swap": 100 * sizes.get("SwapFree", 0) / swap if swap else None}


class _Carrier:
    """Carries out what `NodeState` decides: the lower half of `NodeDriver`.

    `_carry` has one entry for each kind of instruction. Carrying out never waits for what it leads to: that comes back
    as events.
    """

    def __init__(self, options: NodeOptions, network: Any, processes: Processes, directory: NodeDirectory) -> None:
        self.options, self.network, self.processes, self.directory = options, network, processes, directory
        self.state = NodeState(options.cpus, options.serve, options.zombie_period)
        self.setting_up = 0                     # runs of node_setup that go on
        self.ending = pycoslite.Ending()
        self._timer: Any = None
        self._carry: Dict[type, Callable[[Any], None]] = {
            ForkGeneration: self._fork, StartServer: self._start_server, KillGeneration: self._kill_generation,
            KillServer: lambda that: processes.kill_server(that.generation, that.n),
            Grant: lambda that: self._tell(that.client, "node.granted", self._granted(that)),
            Wait: lambda that: self._tell(that.client, "node.waiting", self._waiting(that)),
            Refuse: lambda that: self._tell(that.client, "node.refused", {"reason": that.reason, "idle": that.idle}),
            Pause: lambda that: self._tell(that.client, "node.stopping", {"reason": that.reason}),
            TellServer: self._tell_server, Look: self._look, Stop: lambda that: self.ending.set()}

    def do(self, instructions: Iterable[Instruction]) -> None:
        """Carry out, in order; then see to it that `tick` comes in time."""
        for instruction in instructions:
            self._carry[type(instruction)](instruction)
        if self._timer is not None:
            self._timer.cancel()
        deadline = self.state.next_deadline()
        self._timer = None if deadline is None else self.network.call_later(
            max(0.0, deadline - self.now()), lambda: self.do(self.state.tick(self.now())))

    def now(self) -> float:
        """The engine's time."""
        return self.network.engine.clock()

    def _fork(self, that: ForkGeneration) -> None:
        """The directory comes first: a template begins in it."""
        self.processes.new_generation(that.generation, self.directory.client(that.generation))

    def _start_server(self, that: StartServer) -> None:
        """Say to a server all that `server_main` is to know; the key goes down the line and so is in no argument.

        Its port follows the node's own, which need not be the first of the options. A listed port is taken or the
        server fails, as a firewall lets nothing else through; without a list it looks further, and takes any at last.
        """
        options, network, progress = self.options, self.network, self.directory.progress(that.generation, that.n)
        port = options.ports()[that.n] if network.port == options.ports()[0] else network.port + that.n
        ports = [port]
        if port not in options.tcp_ports:       # nobody counts on that very one
            ports += [at for at in range(port + 1, port + PORTS_TRIED) if at < 65536] + [0]
        self.processes.start_server(that.generation, that.n, {
            "key": network.key and network.key.hex(), "tls": network.secrecy.files,
            "cluster": network.cluster, "hosts": list(self.hosts()),
            "announced": list(options.ext_hosts), "ports": ports, "name": "%s_server-%d" % (options.name, that.n),
            "label": "%s/%d" % (options.name, that.n), "debug": options.debug,
            "max_file_size": options.max_file_size, "progress": progress if make_progress(progress) else None,
            "msg_timeout": options.msg_timeout,
            "discover": options.udp_port if options.discover_peers else None})

    def hosts(self) -> Tuple[str, ...]:
        """Where servers listen: where the node does."""
        return ("127.0.0.1",) if self.options.embedded else self.options.hosts

    def _kill_generation(self, that: KillGeneration) -> None:
        self.processes.kill_generation(that.generation)

    def _tell(self, client: str, op: str, args: dict) -> None:
        """A one-way request to a client, if it is there; what it misses it will ask for, or it is lost."""
        peer = self.network.peers.get(bytes.fromhex(client))
        if peer is not None:
            peer.notify(op, args)

    def _look(self, that: Look) -> None:
        """Read what all servers have done. One whose file cannot be read counts as busy: nothing is known of it."""
        found = [Progress.read(self.directory.progress(that.generation, n)) for n in range(1, self.options.cpus + 1)]
        busy = self.setting_up > 0 or any(each is None or each.busy() for each in found)
        self.network.post(lambda: self.do(self.state.activity(self.now(), that.generation, busy, found)))

    def _tell_server(self, that: TellServer) -> None:
        self._tell(that.client, "node.server", _facts(that.server))

    def _granted(self, that: Grant) -> dict:
        """The fields of node.granted, and with `state` those of the reply to node.reserve: they are the same."""
        return {"state": "granted", "directory": self.directory.client(that.generation), "name": self.options.name,
                "cpus": that.cpus, "platform": platform.platform(), "pulses": list(self.options.pulses),
                "servers": [_facts(server) for server in that.servers]}

    @staticmethod
    def _waiting(that: Wait) -> dict:
        return {"state": "waiting", "position": that.position, "holder": that.holder}


class NodeDriver(_Carrier):
    """Tells `NodeState` what clients ask for and what processes do, and carries out what it decides. `ending` is set
    when the program may end.

    All methods belong to the engine, but for `report`. `processes` must be ready (`start`), `directory` open, and
    `network` running; nothing happens before `begin`. `discovery` is set by `run_node`, where there is one.
    """

    def __init__(self, options: NodeOptions, network: Any, processes: Processes, directory: NodeDirectory) -> None:
        super().__init__(options, network, processes, directory)
        self.quitting = False                   # end as soon as there is no client
        self.discovery: Any = None              # without it clients name the node
        self.phase = "open"                     # of `Hours`
        self._setups: Dict[int, str] = {}       # generation -> how its node_setup ended ('': well)
        for op, handler in (("node.reserve", self._on_reserve), ("node.restart", self._on_restart),
                            ("node.release", self._on_release), ("node.setup", self._on_node_setup),
                            ("node.avail", self._on_avail)):
            network.on_request(op, handler)
        for place in (dispycos_lite.CLIENT_PLACE, ""):      # "": what its program sends with Pycos.send_file
            network.files.places[place] = self._place_of_client
        network.on_peer(self._on_peer)

    def begin(self) -> None:
        """Make the first servers."""
        self.do(self.state.fork_spare())
        self.keep_hours()

    def announce(self) -> None:
        """Let clients that wait for nodes, and schedulers, know at once that this one is free. Engine."""
        if self.discovery is not None:
            self.discovery.search(pycoslite.ROLES["client"] | pycoslite.ROLES["scheduler"])

    def keep_hours(self) -> None:
        """Open and close as the service window says. Engine.

        It looks every `_HOURS_S` at the clock on the wall, and has no timer for the next change: clocks are put forward
        and back, and machines sleep, so that the time until then is not known. A phase that was slept through is left
        out. Once the program is to end (`quitting`) the window has no say any more: to open would be to take clients.
        """
        hours, now = self.options.hours, time.localtime()
        if hours is None or self.quitting or self.state.stopping:
            return
        phase, before = hours.phase(60 * now.tm_hour + now.tm_min), self.phase
        if phase != before:
            self.phase = phase
            log.warning("%s; it is %s now", hours.sentence(), phase)
            if phase == "open":
                self.state.resume()
                self.announce()
            elif phase == "stopping":
                self.do(self.state.pause(hours.sentence()))
            else:
                self.do(self.state.vacate(self.now(), hours.sentence()))
        self.network.call_later(_HOURS_S, self.keep_hours)

    def announce_regularly(self) -> None:
        """Announce the node now, and at the intervals asked for as long as it is free then. Engine."""
        if self.state.holder is None and self.state.refusal is None:
            self.announce()
        if self.options.ping_interval:
            self.network.call_later(self.options.ping_interval, self.announce_regularly)

    def report(self, event: Message) -> None:
        """What `Processes` has to tell. Any thread."""
        self.network.post(self._on_event, event)

    # -- clients -------------------------------------------------------------------------------------------------------

    def _on_reserve(self, peer: Any, args: dict, _payload: bytes) -> dict:
        """The instruction for the client itself becomes the reply, the others are carried out."""
        args = dispycos_lite.checked("node.reserve", args)
        peer.accounted = True                   # what it cannot be told any more does not matter
        client = peer.process_id.hex()
        instructions = self.state.reserve(self.now(), client, args["client"], args["cpus"])
        answer = next(item for item in instructions
                      if isinstance(item, (Grant, Wait, Refuse)) and item.client == client)
        self.do(item for item in instructions if item is not answer)
        if isinstance(answer, Refuse):
            raise pycoslite.PycosError(answer.reason)
        log.info("client %s: %s", args["client"], "has the node" if isinstance(answer, Grant) else "waits")
        return self._granted(answer) if isinstance(answer, Grant) else self._waiting(answer)

    def _on_restart(self, peer: Any, args: dict, _payload: bytes) -> None:
        """node.restart; a client that may not is told so in the answer: it keeps what it has."""
        args = dispycos_lite.checked("node.restart", args)
        instructions = self.state.restart(peer.process_id.hex(), args["n"], args["reason"], args.get("again", True))
        for refusal in instructions:
            if isinstance(refusal, Refuse):
                raise pycoslite.PycosError(refusal.reason)
        self.do(instructions)

    def _on_release(self, peer: Any, _args: dict, _payload: bytes) -> None:
        self.release(peer.process_id.hex())

    def release(self, client: str) -> None:
        """The client is done, or lost."""
        served = self.state.holder
        self.do(self.state.release(self.now(), client))
        if self.state.holder is not None:
            return
        if self.quitting:
            self.do(self.state.stop("this node is being shut down"))
        elif served is not None and self.state.refusal is None:
            self.announce()

    def _place_of_client(self, peer: Any, args: dict) -> Callable:
        """Where the client's files go (see "place" in pycoslite's section about files): below its directory."""
        holder, limit = self.state.holder, self.options.max_file_size
        if holder is None or holder.client != peer.process_id.hex():
            raise pycoslite.PycosError("files are taken from the client that has the node only")
        if limit and args["size"] > limit:
            raise pycoslite.PycosError("the file %s of %d bytes is longer than the %d this node takes "
                                       "(--max_file_size)" % (args["name"], args["size"], limit))
        return functools.partial(self.directory.client, self.state.serving())

    def _on_node_setup(self, peer: Any, _args: dict, payload: bytes) -> Iterator:
        """Run node_setup, then replace the servers, which were made before it. A system task.

        It looks every `_LOOK_S` whether the template has answered: what it waits for may end in three ways (an answer,
        the template's death, the client's leaving), and none of these happens often. The reply comes when all servers
        that the client has were replaced, so that no job runs at one from before.
        """
        state, client = self.state, peer.process_id.hex()
        number = state.serving()
        if number is None or state.holder.client != client:
            raise pycoslite.PycosError("a node is set up for the client that has it only")
        generation = state.generations[number]
        path = os.path.join(self.directory.client(number), ".node_setup")
        with open(path, "wb") as file:
            file.write(payload)
        failures = generation.failures
        self.processes.setup(number, {"path": path})
        self.setting_up += 1
        while number not in self._setups and generation.phase == "serving" and generation.failures == failures:
            yield pycoslite.Suspend(_LOOK_S)
        self.setting_up -= 1
        error = self._setups.pop(number, "its process ended")
        if not error:
            for n in range(1, state.holder.cpus + 1):
                self.do(state.restart(client, n, "node_setup has run"))
            while generation.phase == "serving" and any(
                    server.restart_reason for server in generation.servers.values()):
                yield pycoslite.Suspend(_LOOK_S)
        return {"error": error}

    def _on_avail(self, _peer: Any, _args: dict, _payload: bytes) -> dict:
        return dict(availability(self.directory.path), platform=platform.platform())

    def _on_peer(self, peer: Any, event: str, detail: str) -> None:
        """Only "lost" frees the node: a client that is out of reach for a while finds all as it was."""
        if event == "lost":
            holder = self.state.holder
            if holder is not None and holder.client == peer.process_id.hex():
                log.info("client %s is gone: %s", holder.name, detail)
            self.release(peer.process_id.hex())
            if self.options.embedded:           # processes that it forked may keep our standard input open
                self.ending.set("its client has ended")

    # -- processes -----------------------------------------------------------------------------------------------------

    def _on_event(self, event: Message) -> None:
        """An event of `Processes`, by the table below this class."""
        handler = _EVENTS[event["event"]]
        self.do(handler(self, event))

    def _on_started(self, event: Message) -> List[Instruction]:
        return [] if event["n"] is None else self.state.server_started(event["generation"], event["n"], event["pid"])

    def _on_report(self, event: Message) -> List[Instruction]:
        facts = event["report"]
        return self.state.server_ready(self.now(), event["generation"], event["n"], facts["port"], facts["process"])

    def _on_died(self, event: Message) -> List[Instruction]:
        """A server or a generation. Files go only with the last process that could write to them."""
        generation, n, reason = event["generation"], event["n"], event["reason"]
        if n is not None:
            out = self.state.server_died(self.now(), generation, n, reason, self._begun(generation, n))
            if out:
                log.warning("server %d %s", n, reason)
            return out
        known = generation in self.state.generations
        out = self.state.generation_died(self.now(), generation, reason, {
            n: self._begun(generation, n) for n in range(1, self.options.cpus + 1)})
        if known and generation not in self.state.generations:
            self.directory.remove(generation)
        return out

    def _begun(self, generation: int, n: int) -> Optional[int]:
        """Which CPU job a server that died began last; None when nobody knows."""
        found = Progress.read(self.directory.progress(generation, n))
        return None if found is None else found.begun

    def _on_setup(self, event: Message) -> List[Instruction]:
        self._setups[event["generation"]] = event["error"] or ""
        return []

    def _on_lost(self, event: Message) -> List[Instruction]:
        log.error("the node ends: %s", event["reason"])
        self.ending.set(event["reason"])
        return []

    # -- the end -------------------------------------------------------------------------------------------------------

    def close_client(self) -> None:
        """Take the node from the client that has it."""
        holder = self.state.holder
        if holder is not None:
            self._tell(holder.client, "node.refused", {"reason": "its owner took it back", "final": True})
            self.release(holder.client)

    def say_goodbye(self, reason: str, told: threading.Event) -> Iterator:
        """Tell all clients that the program ends now. A system task; `told` is set once the one that has the node has
        answered: it must hear the reason before it hears of the end of its servers, by their own connections."""
        for client in self.state.queue:
            self._tell(client.client, "node.refused", {"reason": reason})
        holder = self.state.holder
        peer = holder and self.network.peers.get(bytes.fromhex(holder.client))
        try:
            if peer is not None:
                yield peer.request("node.refused", {"reason": reason}, timeout=_GOODBYE_S)
        except pycoslite.PycosError as error:       # it is gone, or does not answer
            log.info("client %s was not told of the end: %s", holder.name, error)
        finally:
            told.set()

    def quit(self) -> None:
        """Take no new client; end once the present one is done."""
        self.quitting = True
        self.state.refusal = "this node is about to end"
        if self.state.holder is None:
            self.do(self.state.stop(self.state.refusal))


_EVENTS: Dict[str, Callable[[NodeDriver, Message], List[Instruction]]] = {
    "started": NodeDriver._on_started,
    "report": NodeDriver._on_report,
    "setup": NodeDriver._on_setup,
    "died": NodeDriver._on_died,
    "lost": NodeDriver._on_lost,
}


def _facts(server: ServerFacts) -> dict:
    """As it goes over the wire: without what is not known."""
    return {name: value for name, value in dataclasses.asdict(server).items() if value is not None}


# ======================================================================================================================
# 6. Console and main()
# ======================================================================================================================
#
# Threads of the program: the main thread, which starts everything in `run_node` and then waits in `Ending.wait`; the
# engine's; the console's, or the one that reads an embedding client's line; and those of `Processes`.
#
#   start   processes.start (before any thread), with --clean the end of the node before, network, directory, driver,
#           signals, begin, ways in
#   end     clients are told, processes killed, network stopped, directory deleted - in this order, as servers write to
#           the directory, and clients are told over the network

COMMANDS = {
    "status": "what the node does (also an empty line)",
    "close": "take the node from its client; the next one gets it",
    "quit": "take no new client, end when the present one is done (also: exit)",
    "terminate": "end now",
}


class Console:
    """Commands from the standard input, in a thread of their own; at the end of the input the node just goes on.

    `COMMANDS` has them, in any case of letters; an unknown one prints the list. All but status only leave word
    (with the engine, or with `Ending`), and print nothing.
    """

    def __init__(self, driver: NodeDriver) -> None:
        self._driver = driver
        self._handlers = {"": self._status, "status": self._status, "close": self._close, "quit": self._quit,
                          "exit": self._quit, "terminate": self._terminate}

    def start(self) -> None:
        """Begin to read."""
        threading.Thread(target=self._read, name="console", daemon=True).start()

    def _read(self) -> None:
        for line in _input_lines():
            handler = self._handlers.get(line.strip().lower())
            if handler is None:
                self._say("commands: " + "; ".join("%s - %s" % item for item in COMMANDS.items()))
            else:
                handler()

    @staticmethod
    def _say(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def _terminate(self) -> None:
        self._driver.ending.set("it was stopped at its console")

    def _status(self) -> None:
        """Ask in the engine, whose state it is, and wait for the answer here."""
        answer: "queue.SimpleQueue[Dict[str, Any]]" = queue.SimpleQueue()
        self._driver.network.post(lambda: answer.put(self._driver.state.status()))
        status = answer.get()
        lines = ["served %d clients; now %s; waiting: %s" % (
            status["served"], status["holder"] or "free", ", ".join(status["waiting"]) or "nobody")]
        lines += ["  server %(n)d: %(state)s, process %(pid)s, port %(port)s" % server for server in status["servers"]]
        self._say("\n".join(lines))

    def _close(self) -> None:
        self._driver.network.post(self._driver.close_client)

    def _quit(self) -> None:
        self._driver.network.post(self._driver.quit)


def _input_lines() -> Iterator[str]:
    """Lines of the standard input, read without its buffer, as a thread that waits with the buffer's lock in hand would
    end the interpreter with an error message."""
    partial = b""
    while True:
        try:
            data = os.read(0, 4096)
        except OSError:                         # closed, or the terminal is another program's now
            return
        if not data:
            return
        *complete, partial = (partial + data).split(b"\n")
        yield from (line.decode(errors="replace") for line in complete)


def _end_with_input(lines: Iterator[str], driver: NodeDriver) -> None:
    """The thread of an embedded node: the end of the input is the end of the client, however that came."""
    for _ in lines:
        pass
    driver.ending.set("its client has ended")


def _start_network(options: NodeOptions, spec: Message) -> Any:
    """Listen, as the options (or the client that embeds this node) say.

    An embedded node listens at this machine's own address only. A listed port is taken or the start fails; without a
    list the first free one of `PORTS_TRIED`, else any. Raises OSError, SecretError.
    """
    tls = {"certfile": options.certfile, "keyfile": options.keyfile, "cafile": options.cafile,
           "certname": options.certname}
    if options.embedded:
        key, hosts, ports = spec["key"] and bytes.fromhex(spec["key"]), ("127.0.0.1",), [0]
        tls = spec["tls"]
    else:
        key = pycoslite.secret_key(options.secret if options.auth else False, options.secret_file)
        first = options.ports()[0]
        hosts, ports = options.hosts, [first] if options.tcp_ports else [*range(first, first + PORTS_TRIED), 0]
    return pycoslite.start_network(list(hosts), ports, options.name, key=key, role="node",
                                   cluster=spec.get("cluster", "pycoslite"), announced=list(options.ext_hosts),
                                   facts={"cpus": options.cpus, "embedded": options.embedded},
                                   tls=pycoslite.certificates(**tls))


def _contact(network: Any, locations: List[Any]) -> Iterator:
    """Make a scheduler or client a peer, however long it takes to start. A system task."""
    pause_s = 0.5
    while True:
        try:
            yield network.connect(locations, timeout=pycoslite.settings.message_timeout_s)
            return
        except pycoslite.AuthenticationError as error:
            log.error("%s", error)
            return
        except pycoslite.PycosError as error:
            log.info("%s; trying again", error)
        yield pycoslite.Suspend(pause_s)
        pause_s = min(2 * pause_s, 10.0)


def run_node(options: NodeOptions) -> int:
    """Be a node until told to end; the exit status. In the main thread, before any other thread is started.

    0 after an orderly end, 1 with a line on stderr when it cannot start (port or directory taken, no secret). A Ctrl-C
    while it ends is an exit at once, with 130: the system then ends its processes by their pipes.
    """
    method = START_METHODS[options.start_method or list(START_METHODS)[-1]]     # the last one is the best there is
    processes = method(server_main, lambda event: driver.report(event), setup_main)
    processes.start()
    lines = _input_lines()
    try:
        # A client that embeds this node says in one line what there is to know; when the input ends, so has the client.
        spec = json.loads(next(lines, "null")) if options.embedded else {}
        if spec is None:
            processes.close()
            return 0
        options = dataclasses.replace(options, serve=spec.get("serve", options.serve))
        pycoslite.settings.message_timeout_s = options.msg_timeout
        if options.clean:
            NodeDirectory(options.dest_path, str(options.ports()[0])).end_holder()
        network = _start_network(options, spec)
        directory = NodeDirectory(options.dest_path, str(network.port))
        directory.open()
    except (OSError, pycoslite.PycosError) as error:
        processes.close()
        pycoslite.stop_network()
        pycoslite.stop_default()
        sys.stderr.write("dispycosnode_lite: %s\n" % error)
        return 1
    driver = NodeDriver(options, network, processes, directory)
    _end_at_signals(driver.ending, options.daemon)
    network.post(driver.begin)
    if options.embedded:
        network.spawn(_contact, network, [pycoslite.Location(*place) for place in spec["dial"]])
        threading.Thread(target=_end_with_input, args=(lines, driver), name="client's line", daemon=True).start()
    else:
        _open_ways_in(options, driver)
    reason, told = driver.ending.wait(), threading.Event()
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    try:
        network.spawn(driver.say_goodbye, reason, told)
        told.wait(_GOODBYE_S + 1.0)             # longer than the other wait, which ends with a line in the log
    finally:
        processes.close()
        pycoslite.stop_network()
        pycoslite.stop_default()
        directory.close()
    return 0


def _end_at_signals(ending: pycoslite.Ending, daemon: bool) -> None:
    """Let Ctrl-C and signals that mean the same end the program in an orderly way."""
    ending.attend()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, frame: ending.set(
                "it was stopped (%s)" % signal.Signals(number).name))
    for name in ("SIGTTIN", "SIGHUP") if daemon else ("SIGTTIN",):      # the terminal is somebody else's, or closed
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _open_ways_in(options: NodeOptions, driver: NodeDriver) -> None:
    """Let clients find the node, and people talk to it."""
    network = driver.network
    for location in options.peers:
        network.spawn(_contact, network, [location])
    driver.discovery = pycoslite.Discovery(network, options.udp_port, multicast=options.ipv4_udp_multicast)
    network.discovery = driver.discovery        # by which it looks for others when a scheduler asks it to relay
    network.post(driver.discovery.answer)
    network.post(driver.announce_regularly)
    sys.stdout.write("node %s: %d servers (%s), listening at %s%s\n" % (
        options.name, options.cpus, options.cpus_note, ", ".join(map(repr, network.locations)),
        "" if network.key else ", OPEN TO EVERYONE"))
    sys.stdout.flush()
    if not options.daemon and sys.stdin is not None:
        Console(driver).start()


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the node program with these arguments (None: the command line's); returns its exit status.

    Sets up logging, so it is for programs and not for libraries; `run_node` does without. SystemExit after --help, and
    for a wrong option. See `run_node` for the exit status.
    """
    options = parse_options(argv)
    # What happens at an embedded node its client hears, and says itself.
    level = logging.DEBUG if options.debug else logging.ERROR if options.embedded else logging.WARNING
    logging.basicConfig(level=level,
                        format=_DEBUG_FORMAT if options.debug else "%(message)s")
    for warning in options.warnings:
        log.warning("%s", warning)
    return run_node(options)


if __name__ == "__main__":
    sys.exit(main())
