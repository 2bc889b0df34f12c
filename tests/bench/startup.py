"""J3: how long a client takes from its start to its first result, beside a node that is already running."""
from __future__ import annotations

import contextlib
import os
import pickle
import socket
import statistics
import subprocess
import sys
import time
from typing import List, Optional, Tuple

from .harness import HOST, Child, Measured, WrongResult, child, clock, contestant, expect, follow_parent, ready

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
CLIENT = os.path.join(HERE, "first_result.py")
WORKERS = 2
HUNG_S = 12             # a client that has not ended by then is killed and counted


def _run_client(name: str, port: str) -> Optional[Tuple[float, float]]:
    """Seconds to the first result and to the client's end; None when it hung."""
    command = [sys.executable, CLIENT, name] + ([port] if port else [])
    start = clock()
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=HUNG_S)
    except subprocess.TimeoutExpired:
        return None
    ended = clock() - start
    words = [line.split() for line in done.stdout.splitlines() if line.startswith("FIRST")]
    expect([word[1] for word in words], ["42"], "result of the client")
    return float(words[0][2]) - start, ended


def _measure(n: int, name: str, port: str = "", node_s: float = 0.0) -> Measured:
    """So many clients one after the other; the median of those that did not hang."""
    runs = [_run_client(name, port) for _ in range(n)]
    good: List[Tuple[float, float]] = [run for run in runs if run]
    if not good:
        raise WrongResult("all %d clients hung" % n)
    first, ended = (statistics.median(column) for column in zip(*good))
    notes = {"first_result_s": round(first, 4), "client_exit_s": round(ended, 4), "clients_hung": n - len(good)}
    if port:
        notes["node_ready_s"] = round(node_s, 4)
    return Measured(1, first, notes)


# ---- limit -----------------------------------------------------------------------------------------------------------

def serve_node() -> None:
    """WORKERS processes forked in advance; each takes connections and does the one job they bring."""
    listener = socket.create_server((HOST, 0))
    for _ in range(WORKERS - 1):
        if not os.fork():
            follow_parent()                         # threads do not come along through a fork
            os.close(1)
            break
    else:
        ready(listener.getsockname()[1])
    while True:
        with listener.accept()[0] as sock:
            sock.sendall(pickle.dumps(pickle.loads(sock.recv(4096)) * 2, 5))


@contestant("J3", "limit")
def first_limit(n: int) -> Measured:
    """A node of two processes that wait in accept()."""
    start = clock()
    node = child(serve_node)
    return _measure(n, "limit", node.told[0], clock() - start)


# ---- ours ------------------------------------------------------------------------------------------------------------

def _free_ports(count: int) -> int:
    """The first of so many consecutive ports that are free now."""
    while True:
        with contextlib.ExitStack() as held:
            first = held.enter_context(socket.create_server((HOST, 0))).getsockname()[1]
            try:
                for port in range(first + 1, first + count):
                    held.enter_context(socket.create_server((HOST, port)))
            except (OSError, OverflowError):        # taken, or beyond the last port there is
                continue
        return first


def _wait_until_listening(node: Child, port: int) -> None:
    """Return once the node takes connections on its port; the run's time limit ends a wait in vain."""
    while node.process.poll() is None:
        try:
            socket.create_connection((HOST, port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.002)
    raise WrongResult("the node program ended at once, with status %d" % node.process.returncode)


@contestant("J3", "ours")
def first_ours(n: int) -> Measured:
    """The node program, and clients that name it."""
    port = _free_ports(1 + WORKERS)
    start = clock()
    node = Child([sys.executable, os.path.join(ROOT, "dispycosnode_lite.py"), "--cpus", str(WORKERS), "--ip_addr", HOST,
                  "--node_ports", "%d-%d" % (port, port + WORKERS), "--udp_port", str(port), "--daemon"],
                 stdout=subprocess.DEVNULL)
    _wait_until_listening(node, port)
    return _measure(n, "ours", str(port), clock() - start)


# ---- the standard library's pools: no node, the client starts its own workers ---------------------------------------

@contestant("J3", "ppe")
def first_ppe(n: int) -> Measured:
    """concurrent.futures.ProcessPoolExecutor"""
    return _measure(n, "ppe")


@contestant("J3", "mppool")
def first_mppool(n: int) -> Measured:
    """multiprocessing.Pool"""
    return _measure(n, "mppool")
