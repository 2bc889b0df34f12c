"""Tasks that are ended, or get an exception, in the midst of every kind of wait: the kernel goes on, nothing is left.

Twenty tasks do one thing after the other, chosen by chance, while another task ends some of them and throws exceptions
into others. The seed is fixed, the moments are not; what must hold afterwards holds whenever it was.
"""
from __future__ import annotations

import random
import socket
import time
import unittest
from typing import Any, Callable, List

import pycoslite
from pycoslite import RPS, AsyncSocket, AsyncThreadPool, Channel, Condition, Event, Lock, Pycos, RLock, Semaphore, Task
from tests.test_pycoslite_network import COME_S
from tests.test_pycoslite_remote_channels import ServiceTestCase

WORKERS, INTERRUPTIONS = 20, 1000


class Interruption(Exception):
    """What is thrown into tasks."""


class Waits:
    """All kinds of waits: each public method is a generator function that takes its task. `process` is another process,
    of service_peer.py."""

    def __init__(self, process: Any, chance: random.Random) -> None:
        self.process, self.chance = process, chance
        self.lock, self.condition, self.event, self.units = RLock(), Condition(), Event(), Semaphore(2)
        self.plain = Lock()
        self.channel, self.pool = Channel("here"), AsyncThreadPool(2)
        self.far: Any = None                    # a channel there, and ...
        self.double: Any = None                 # ... a service
        self.listener = AsyncSocket(socket.socket())
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(WORKERS)

    def kinds(self) -> List[Callable]:
        """The methods."""
        return [getattr(self, name) for name in sorted(vars(Waits)) if name.startswith("wait_")]

    def wait_delivery(self, task):
        yield self.process.agent.deliver(("number", 1), self.chance.choice((None, 0.001)))

    def wait_call(self, task):
        yield (yield self.double(1)).finish(self.chance.choice((None, 0.001)))

    def wait_monitor(self, task):
        yield task.monitor((yield self.double(2)))
        yield task.receive(COME_S)

    def wait_subscription(self, task):
        yield self.far.subscribe(task)
        yield self.far.deliver("news", 0.01, 1)
        yield self.far.unsubscribe(task)

    def wait_name(self, task):
        yield Task.locate("nobody", self.chance.choice((None, self.process.at)), 0.002)

    def wait_peer(self, task):
        yield Pycos().peer(self.process.at)

    def wait_answer(self, task):
        self.process.agent.send(("echo", task, "answer"))
        yield task.receive(0.01)

    def wait_file(self, task):
        yield Pycos().send_file(self.process.at, __file__, overwrite=True)

    def wait_locks(self, task):
        for lock in self.plain, self.lock, self.units:
            yield lock.acquire()
            try:
                yield task.sleep(0.0005)
            finally:
                lock.release()

    def wait_condition(self, task):
        yield self.condition.acquire()
        mine = True
        try:
            mine = yield self.condition.wait(0.002)
        finally:
            if mine:
                self.condition.release()
        if not mine:
            self.condition.notify()

    def wait_event(self, task):
        (self.event.set if self.chance.random() < 0.5 else self.event.clear)()
        yield self.event.wait(0.001)

    def wait_channel(self, task):
        yield self.channel.subscribe(task)
        yield self.channel.deliver("here", 0.001, 3)
        yield self.channel.unsubscribe(task)

    def wait_thread(self, task):
        yield self.pool.async_task(time.sleep, 0.0005)

    def wait_end(self, task):
        yield Task(self.wait_suspended).finish(self.chance.choice((None, 0.0001)))

    def wait_suspended(self, task=None):
        yield task.suspend(0.001)

    def wait_socket(self, task):
        with AsyncSocket(socket.socket()) as sock:
            yield sock.connect(self.listener.getsockname())
            yield sock.sendall(b"x" * 500)
            yield sock.recvall(500)

    def serve(self, task=None):
        """Echoes what comes to the listener."""
        task.set_daemon()
        while True:
            sock, _ = yield self.listener.accept()
            Task(self.echo, sock)

    @staticmethod
    def echo(sock):
        """Serves one connection."""
        with sock:
            try:
                yield sock.sendall((yield sock.recvall(500)))
            except OSError:                     # the other end was ended
                pass


class InterruptedTest(ServiceTestCase):
    def test_nothing_is_left_of_tasks_that_are_ended_anywhere(self) -> None:
        network, process = self.node().network, self.peer()
        waits = Waits(process, random.Random(5))
        waits.far = self.channel_of(process)
        self.addCleanup(waits.pool.terminate)
        self.addCleanup(waits.listener.close)
        self.addCleanup(waits.channel.close)
        waits.channel.register()
        done = self.do(self.interrupt, waits)
        self.assertEqual(set(done), set(waits.kinds()))         # all of them were tried
        self.wait_until(lambda: not network.engine.tasks and not pycoslite._awaited)
        self.assertEqual((pycoslite._deliveries, network.tasks.searches, network.tasks.seekers), ({}, {}, {}))
        self.wait_until(lambda: not network.tasks.monitored)
        self.assertEqual(self.ask(process.agent, "echo", "alive"), "alive")

    def interrupt(self, waits: Waits, task: Any = None) -> Any:
        """Start tasks that wait, interrupt them, end them; gives what they have begun."""
        waits.double = yield RPS.locate("double", waits.process.at, COME_S)
        serving, kinds, chance, begun = Task(waits.serve), waits.kinds(), waits.chance, []

        def work(task=None):
            while True:
                begun.append(chance.choice(kinds))
                try:
                    yield begun[-1](task)
                except (Interruption, OSError):
                    pass
        workers: List[Task] = []
        for _ in range(INTERRUPTIONS):
            while len(workers) < WORKERS:
                workers.append(Task(work))
            yield task.sleep(chance.random() * 0.003)
            worker = chance.choice(workers)
            if chance.random() < 0.5:
                worker.throw(Interruption())
            else:
                worker.terminate()
                workers.remove(worker)
        for worker in workers + [serving]:
            worker.terminate()
            yield worker.finish(COME_S)
        return begun


if __name__ == "__main__":
    unittest.main()
