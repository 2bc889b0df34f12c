"""A node for the tests of clients, and what these have in common."""
from __future__ import annotations

import contextlib
import sys
import threading
from typing import Any, Callable, Iterable, Iterator, List

import dispycos_lite
import pycoslite
from tests.support import EVENT_S, PROCESS_S, ROOT, Process, TestCase, free_port, need_cpus, running

START_S = PROCESS_S
# Options of Scheduler: other tests that run on this machine are not to be found.
LOOPBACK = {"host": "127.0.0.1", "tcp_port": 0, "udp_port": free_port(), "discover_peers": False}


@contextlib.contextmanager
def running_node(cpus: int = 2, *options: Any) -> Iterator[Process]:
    """A node program on the loopback interface, at a port of its own (attribute `port`). Skips where there are not so
    many CPUs."""
    need_cpus(cpus)
    command = [sys.executable, ROOT / "dispycosnode_lite.py", "--cpus", cpus, "--host", "127.0.0.1",
               "--min_pulse_interval", "0.01",
               "--udp_port", free_port(), "--daemon", *options]
    with running(command, ready=r"listening at 127\.0\.0\.1:(\d+)") as process:
        process.port = int(process.match.group(1))
        yield process


def each(calls: Iterable[Any]) -> Iterator:
    """What these give, one after the other, in a list. Use with yield."""
    found = []
    for call in calls:
        found.append((yield call))
    return found


class ClientTestCase(TestCase):
    """Tests whose clients use the class's node (`cpus` servers), one after the other."""

    cpus = 2
    node: Process

    @classmethod
    def setUpClass(cls) -> None:
        context = running_node(cls.cpus)
        cls.node = context.__enter__()
        cls.addClassCleanup(context.__exit__, None, None, None)

    def scheduler(self, **options: Any) -> Any:
        """This test's scheduler, which knows the class's node."""
        self.addCleanup(self.stop_all)
        given = {"nodes": ["127.0.0.1:%d" % self.node.port], **LOOPBACK, **options}
        return dispycos_lite.Scheduler(**given)

    @staticmethod
    def stop_all() -> None:
        """End the network and the tasks of this process."""
        pycoslite.Pycos().terminate()

    def run_task(self, target: Callable, *args: Any, timeout_s: float = START_S) -> Any:
        """Run a program's main task and give its result; what it raises is raised here."""
        ended = threading.Event()
        task = pycoslite.Task(target, *args)
        task.kernel.post(task.watch, lambda _task: ended.set())
        if not ended.wait(timeout_s):
            self.fail("the program's task has not ended within %g s" % timeout_s)
        outcome = task.value()
        if isinstance(outcome, pycoslite.MonitorStatus) and outcome.info is task:
            raise outcome.error
        return outcome

    def with_client(self, body: Callable, components: Any = (), **options: Any) -> Any:
        """Run ``body(client, task)`` as a task, with a client that is scheduled before and closed after; its result."""
        scheduler_options = {name: options.pop(name) for name in ("nodes_named", "embedded") if name in options}
        if "nodes_named" in scheduler_options:
            scheduler_options["nodes"] = scheduler_options.pop("nodes_named")
        self.scheduler(**scheduler_options)

        def main(task: Any = None) -> Iterator:
            client = dispycos_lite.Client(components, **options)
            self.assertEqual((yield client.schedule()), 0)
            result = yield body(client, task)
            self.assertEqual((yield client.close()), 0)
            return result
        return self.run_task(main)


class Statuses:
    """A status task that keeps what it is sent: `messages`, and `wait` for the one that answers a question."""

    def __init__(self) -> None:
        self.messages: List[Any] = []
        self._looking: List[Any] = []               # tasks in `wait`
        self.task = pycoslite.Task(self._receive)

    def _receive(self, task: Any = None) -> Iterator:
        task.set_daemon()
        while True:
            self.messages.append((yield task.receive()))
            waiting, self._looking = self._looking, []
            for looking in waiting:
                looking.resume()

    def wait(self, test: Callable, task: Any, timeout_s: float = EVENT_S) -> Iterator:
        """Wait until ``test(message)`` is true of a message, one that came already included; gives that. Use with
        yield."""
        seen = 0
        while True:
            for message in self.messages[seen:]:
                seen += 1
                if test(message):
                    return message
            self._looking.append(task)
            if (yield task.suspend(timeout_s, "late")) == "late":
                raise AssertionError("no such message among %s" % self.messages)

    def status(self, code: int, task: Any, count: int = 1) -> Iterator:
        """Wait for the `count`-th `DispycosStatus` with this code; gives its info. Use with yield."""
        left = [count]

        def is_it(message: Any) -> bool:
            left[0] -= isinstance(message, dispycos_lite.DispycosStatus) and message.status == code
            return left[0] == 0
        found = yield self.wait(is_it, task)
        return found.info

    def codes(self) -> List[int]:
        """Codes of the status messages so far, in order."""
        return [message.status for message in self.messages if isinstance(message, dispycos_lite.DispycosStatus)]
