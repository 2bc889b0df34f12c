"""A node says that it is there when it starts and when it becomes free, so that clients that wait use it at once."""
from __future__ import annotations

import contextlib
import signal
import socket
import sys
import unittest
from types import SimpleNamespace
from typing import Any, Iterator, List

import dispycos_lite
import dispycosnode_lite
import pycoslite
from pycoslite import ROLES
from tests import client_support, support
from tests.client_support import ClientTestCase

START_S = support.PROCESS_S
WANTED = ROLES["client"] | ROLES["scheduler"]


@contextlib.contextmanager
def node_at(udp_port: int, *options: Any) -> Iterator[Any]:
    """A node program on the loopback interface that is found by way of that port."""
    command = [sys.executable, "dispycosnode_lite.py", "--cpus", "1", "--host", "127.0.0.1", "--tcp_ports",
               support.free_port(), "--udp_port", udp_port, "--daemon", *options]
    with support.running(command, ready=r"listening at 127\.0\.0\.1:(\d+)") as process:
        process.location = "127.0.0.1:%s" % process.match.group(1)
        yield process


class PingsTest(support.TestCase):
    """What a node sends to the networks."""

    def setUp(self) -> None:
        self.port, self.key = support.free_port(), pycoslite.secret_key()
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(self.sock.close)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind(("", self.port))

    def test_it_searches_for_clients_and_schedulers_when_it_starts(self) -> None:
        self.sock.settimeout(START_S)
        with node_at(self.port):
            ping = pycoslite.parse_datagram(self.key, "pycoslite", self.sock.recv(512))
            self.assertEqual((ping.authentic, ping.kind, ping.roles), (True, pycoslite.PING, WANTED))

    def test_and_when_it_becomes_free(self) -> None:
        for before, after, quitting, wanted in (
                ("one", None, False, ["announced"]),
                ("one", None, True, ["told: this node is being shut down"]),        # it will not be free
                ("one", "two", False, []),              # the next client has waited for it
                (None, None, False, []),                # who has gone did not have it
        ):
            with self.subTest(before=before, after=after, quitting=quitting):
                self.assertEqual(self.released(before, after, quitting), wanted)

    def test_at_intervals_while_it_is_free(self) -> None:
        later: List[Any] = []
        driver: Any = SimpleNamespace(state=SimpleNamespace(holder=None, refusal=None),
                                      options=SimpleNamespace(ping_interval=60),
                                      network=SimpleNamespace(call_later=lambda *call: later.append(call)),
                                      announce=lambda: later.append("announced"))
        driver.announce_regularly = lambda: dispycosnode_lite.NodeDriver.announce_regularly(driver)
        again = (60, driver.announce_regularly)
        for holder, refusal, interval, wanted in (
                (None, None, 60, ["announced", again]), ("one", None, 60, [again]), (None, None, 0, ["announced"]),
                (None, "it serves from 17:00", 60, [again])):
            driver.state.holder, driver.state.refusal, driver.options.ping_interval = holder, refusal, interval
            driver.announce_regularly()
            self.assertEqual(later, wanted)
            later.clear()

    @staticmethod
    def released(before: Any, after: Any, quitting: bool) -> List[str]:
        """What a node does when a client goes, which had it `before`, so that `after` has it then."""
        done: List[str] = []
        state = SimpleNamespace(holder=before, refusal=None, stop=lambda reason: ["told: " + reason],
                                release=lambda _now, _client: setattr(state, "holder", after) or [])
        driver: Any = SimpleNamespace(state=state, quitting=quitting, now=lambda: 0.0, do=done.extend,
                                      announce=lambda: done.append("announced"))
        dispycosnode_lite.NodeDriver.release(driver, "one")
        return done


class ClientTest(ClientTestCase):
    """Clients that wait, and never search a second time themselves."""

    @classmethod
    def setUpClass(cls) -> None:
        pass                                    # no node that all share

    def setUp(self) -> None:
        self.port = support.free_port()
        for module, name, value in ((dispycos_lite, "_SEARCH_AGAIN_S", 3600.0), (pycoslite, "PING_TIMES_S", (0.0,))):
            self.addCleanup(setattr, module, name, getattr(module, name))
            setattr(module, name, value)

    def listens(self) -> Any:
        """Whether this process answers nodes."""
        return dispycos_lite.Scheduler()._discovery._answering

    def scheduler(self, **options: Any) -> Any:
        """A scheduler that knows no node."""
        self.addCleanup(self.stop_all)
        return dispycos_lite.Scheduler(**{**client_support.LOOPBACK, "udp_port": self.port, **options})

    def with_waiting_client(self, body: Any) -> Any:
        """Run ``body(client, task)`` with a client of a scheduler that knows no node."""
        self.scheduler()

        def main(task: Any = None) -> Iterator:
            client = dispycos_lite.Client([])
            yield client.schedule()
            result = yield body(client, task)
            yield client.close()
            return result
        return self.run_task(main)

    def test_a_node_that_starts_later_is_used_and_so_is_the_next_when_it_has_ended(self) -> None:
        pool = pycoslite.AsyncThreadPool(1)                 # as a task must not block
        self.addCleanup(pool.terminate)

        def body(client: Any, task: Any) -> Iterator:
            while not self.listens():
                yield task.sleep(0.01)
            for _ in range(2):                  # the second time it is a client whose only node has ended
                node = yield pool.async_task(lambda: stack.enter_context(node_at(self.port)))
                self.assertEqual((yield client.run_result(abs, -2)), 2)
                node.signal(signal.SIGTERM)
                while dispycos_lite.Scheduler().status()["Nodes"]:
                    yield task.sleep(0.01)
        with contextlib.ExitStack() as stack, self.expect_log("node .* is lost: it was stopped"):
            self.with_waiting_client(body)

    def test_nobody_answers_nodes_without_a_client(self) -> None:
        self.setting_search(0.05)

        def body(client: Any, task: Any) -> Iterator:
            while not self.listens():
                yield task.sleep(0.01)
        self.with_waiting_client(body)
        self.wait_until(lambda: not self.listens())

    def setting_search(self, again_s: float) -> None:
        """Search again after that time; put back by `setUp`'s clean-up."""
        dispycos_lite._SEARCH_AGAIN_S = again_s

    def test_the_watcher_of_peers_leaves_with_the_scheduler(self) -> None:
        scheduler = self.scheduler()
        watchers = scheduler.network._watchers
        before = len(watchers)
        scheduler.stop()
        self.assertEqual(len(watchers), before - 1)


if __name__ == "__main__":
    unittest.main()
