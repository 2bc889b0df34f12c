"""A TCP relay on loopback that cuts connections where it is told to, or lets them go dark."""
from __future__ import annotations

import select
import socket
import struct
import threading
from typing import Callable

from pycoslite import Location

HOST = "127.0.0.1"


class CuttingProxy:
    """A relay that cuts connections: `budget()` gives after how many bytes, `reset()` whether with RST or FIN."""

    def __init__(self, target: Location, budget: Callable[[], int], reset: Callable[[], bool]) -> None:
        self.target, self.budget, self.reset = target, budget, reset
        self.cuts = 0
        self.dark = False                       # nothing is passed on, nothing is closed
        self.listener = socket.create_server((HOST, 0))
        self.at = Location(HOST, self.listener.getsockname()[1])
        self._pairs: dict = {}                  # socket -> the other one
        self._left: dict = {}                   # socket -> [bytes until the cut], the same list for both
        self._wake, self._stop = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="cutting proxy")
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._stop.close()
        self._thread.join()
        for sock in [self.listener, self._wake, *self._pairs]:
            sock.close()

    def _run(self) -> None:
        while True:
            watched = [self._wake, self.listener] + ([] if self.dark else list(self._pairs))
            ready = select.select(watched, [], [], 0.02)[0]
            if self._wake in ready:
                return
            for sock in ready:
                if sock is self.listener:
                    self._accept()
                elif sock in self._pairs:
                    self._pass_on(sock)

    def _accept(self) -> None:
        near = self.listener.accept()[0]
        try:
            far = socket.create_connection((self.target.addr, self.target.port))
        except OSError:
            near.close()
            return
        self._pairs[near], self._pairs[far] = far, near
        self._left[near] = self._left[far] = [self.budget()]

    def _pass_on(self, sock: socket.socket) -> None:
        other, left = self._pairs[sock], self._left[sock]
        try:
            data = sock.recv(min(65536, left[0]))
            other.sendall(data)
        except OSError:
            data = b""
        left[0] -= len(data)
        if not data or left[0] <= 0:
            self.cuts += left[0] <= 0
            self._cut(sock, other)

    def _cut(self, *both: socket.socket) -> None:
        for sock in both:
            del self._pairs[sock], self._left[sock]
            if self.reset():
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
