"""Lightweight tasks, messages and peers from one file of standard-library Python.

A task is a generator function (or an ``async def``) that the kernel of this module runs; tasks send each
other messages, whether they live in the same process or on another machine.

    import pycoslite

    def server(task=None):
        while True:
            client, number = yield task.receive()
            client.send(number * 2)

    def client(server, task=None):
        server.send((task, 21))
        print((yield task.receive()))          # 42

    pycoslite.Task(client, pycoslite.Task(server, daemon=True))

Sections (the banners below carry the same numbers and titles):

     1. Settings
     2. Errors
     3. Logging and platform

Rules that hold everywhere: importing starts nothing (no thread, socket, file, signal handler); sections marked
"pure" take bytes, events and ``now`` and give bytes, events and instructions, and touch no socket, clock or thread;
a section uses only what stands above it; nothing on the wire names a Python module of ours.
"""
from __future__ import annotations

import dataclasses
import logging
import os

__version__ = "0.1.0"

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
    reconnect_max_s: float = 5.0        # ... to here
    connect_s: float = 2.0              # one TCP connection attempt
    handshake_s: float = 3.0            # a connection must have proved the secret by then
    pending_handshakes: int = 64        # connections that have not; the oldest gives way to the next
    handshake_bytes: int = 4096         # most that is kept of what such a connection says
    record_bytes: int = 256 * 1024      # what one write carries at most (one MAC each)
    frame_bytes: int = 1 << 30          # longest message taken from an authenticated peer
    window_bytes: int = 64 << 20        # unconfirmed bytes per peer before senders are held back
    window_messages: int = 100_000      # likewise, messages
    ack_bytes: int = 256 * 1024         # received bytes after which a confirmation is owed at once
    ack_messages: int = 1000            # likewise, messages
    ack_delay_s: float = 0.2            # a confirmation that found nothing to ride on goes by itself after this
    message_timeout_s: float = 10.0     # control requests (the documents' MsgTimeout)
    takeover_s: float = 0.05            # a user task that holds its thread this long loses the network to the watcher
    net_port: int = 9705                # UDP discovery, and the first TCP port tried

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            text = os.environ.get("PYCOSLITE_" + field.name.upper())
            if text is not None:
                kind = type(field.default)
                try:
                    setattr(self, field.name, kind(text))
                except ValueError:
                    raise ValueError("PYCOSLITE_%s=%r is not a %s (its default is %r)" % (
                        field.name.upper(), text, kind.__name__, field.default)) from None


settings = Settings()

# ======================================================================================================================
# 2. Errors                                                                                            one small tree
# ======================================================================================================================


class PycosError(Exception):
    """Root of every error this package raises by itself."""


class ProtocolError(PycosError):
    """The other end broke the wire format; the connection is closed, the sentence says what was wrong."""


class AuthenticationError(PycosError):
    """A handshake was refused, by us or by the other end; the sentence says why and what to change."""


class PeerLost(PycosError):
    """The peer's process is gone, or was unreachable for longer than `Settings.give_up_s`."""


class OperationTimeout(PycosError, TimeoutError):
    """What was waited for did not come in time."""


class MisuseError(PycosError):
    """The program used an API in a way that cannot work; the sentence names the place and the remedy."""


# ======================================================================================================================
# 3. Logging and platform                                                             quiet unless the program asks
# ======================================================================================================================

log = logging.getLogger("pycoslite")
log.addHandler(logging.NullHandler())
