"""Channels of other processes: found, subscribed to, sent to, chained; one copy of a message for each process."""
from __future__ import annotations

import signal
import sys
import threading
import unittest
from pathlib import Path
from typing import Any, List

import pycoslite
from pycoslite import Channel, Pycos, Task
from tests.support import running
from tests.test_pycoslite_network import COME_S, NetworkTestCase

PEER = Path(__file__).with_name("service_peer.py")


class ServiceTestCase(NetworkTestCase):
    """A test with agents that know channels, services and files (see service_peer.py)."""

    def peer(self, *options: str) -> Any:
        """A running agent: `.at` is where, `.agent` its task."""
        process = self.enter(running([sys.executable, PEER, *options], ready=r"READY (\S+)"))
        process.at = pycoslite.Location.parse(process.match.group(1))
        process.agent = self.find(process)
        return process

    def enter(self, manager: Any) -> Any:
        """Enter a context that ends with the test."""
        entered = manager.__enter__()
        self.addCleanup(manager.__exit__, None, None, None)
        return entered

    def channel_of(self, process: Any, name: str = "news") -> Any:
        """A channel that is made there."""
        status, channel = self.ask(process.agent, "channel", name)
        self.assertEqual(status, 0)
        return channel

    def collector(self) -> Any:
        """A task that keeps what it gets, in `.got`, which is returned with it."""
        got: List[Any] = []

        def collect(task=None):
            task.set_daemon()
            while True:
                got.append((yield task.receive()))
        return Task(collect), got

    def listen(self, process: Any, channel: Any, count: int = 1) -> List[Any]:
        """So many tasks there subscribe to `channel`; the list that what they hear is put into."""
        task, got = self.collector()
        process.agent.send(("listen", task, channel, count))
        self.wait_until(lambda: got.count(("subscribed", 0)) == count)
        got.clear()
        return got

    def deliver(self, channel: Any, message: Any, timeout: Any = COME_S, n: int = 0) -> Any:
        """What `deliver` gives."""
        def run():
            return (yield channel.deliver(message, timeout=timeout, n=n))
        return self.do(run)


class ReferenceTest(ServiceTestCase):
    def test_locate(self):
        self.node()
        process = self.peer()
        made = self.channel_of(process)

        def locate(name="news", location=None, timeout=COME_S):
            return (yield Channel.locate(name, location, timeout))
        for location in (None, process.at):
            found = self.do(locate, "news", location)
            self.assertEqual((found, found.name, found.location), (made, "news", process.at))
            self.assertEqual(hash(found), hash(made))
            self.assertIn("news@", repr(found))
        self.assertIsNone(self.do(locate, "olds", None, 0.1))
        here = Channel("here")
        here.register()
        self.addCleanup(here.close)
        self.assertIs(self.do(locate, "here"), here)
        self.assertNotEqual(found, here)

    def test_what_works_at_home_only(self):
        self.node()
        channel = self.channel_of(self.peer())
        self.assertEqual((channel.register(), channel.unregister()), (-1, -1))
        self.assertEqual((channel.set_transform(None), channel.close()), (-1, -1))

    def test_a_reference_comes_home_as_the_channel_itself(self):
        self.node()
        process = self.peer()
        here = Channel("mine")
        self.assertIs(self.ask(process.agent, "echo", here), here)
        theirs = self.channel_of(process)
        self.assertEqual(self.ask(process.agent, "echo", theirs), theirs)

    def test_one_that_cannot_be_found_by_its_name_is_not_sent(self):
        self.node()
        process = self.peer()
        first = Channel("twice")
        with self.expect_log("a channel 'twice' already"):
            second = Channel("twice")
        with self.expect_log("cannot be found by its name"):
            self.assertEqual(process.agent.send(("echo", second)), -1)
        self.assertEqual(first.count(), 0)

    def test_a_closed_channel_is_gone(self):
        self.node()
        process = self.peer()
        channel = self.channel_of(process)
        process.agent.send(("close", "news"))
        self.wait_until(lambda: self.deliver(channel, 1) == -1)
        task, _ = self.collector()

        def subscribe():
            return (yield channel.subscribe(task))
        with self.expect_log("there is no channel 'news' any more"):
            self.assertEqual(self.do(subscribe), -1)


class SubscribeTest(ServiceTestCase):
    def test_subscribe_and_unsubscribe(self):
        self.node()
        process = self.peer()
        channel = self.channel_of(process)
        task, got = self.collector()

        def change(what, subscriber=task):
            return (yield getattr(channel, what)(subscriber))
        self.assertEqual(self.do(change, "subscribe"), 0)
        self.assertEqual(self.do(change, "subscribe"), 0)
        self.assertEqual(self.ask(process.agent, "subscribers", "news"), 1)
        self.assertEqual(self.do(change, "subscribe", "no task"), -1)
        process.agent.send(("publish", "news", "first"))
        self.wait_until(lambda: got == ["first"])
        self.assertEqual(self.do(change, "unsubscribe"), 0)
        self.assertEqual(self.do(change, "unsubscribe"), -1)
        self.assertEqual(self.ask(process.agent, "subscribers", "news"), 0)

    def test_messages_come_in_order(self):
        self.node()
        process = self.peer()
        channel = self.channel_of(process)
        got = self.listen(process, channel)
        for number in range(500):
            self.assertEqual(channel.send(number), 0)
        self.wait_until(lambda: len(got) == 500)
        self.assertEqual(got, [("heard", number) for number in range(500)])

    def test_subscribers_in_many_processes_get_one_copy_each_process(self):
        self.node()
        first, second = self.peer("name=first"), self.peer("name=second")
        here = Channel("wide")
        heard = self.listen(first, here, 3), self.listen(second, here, 2)
        frames: List[tuple] = []
        for process in (first, second):
            peer = process.agent.peer
            peer.send_frame = lambda code, *parts, peer=peer, send=peer.send_frame: (
                frames.append((peer.process_id, code)), send(code, *parts))[1]
        self.assertEqual(self.deliver(here, b"x" * 100_000), 5)
        self.wait_until(lambda: [len(got) for got in heard] == [3, 2])
        spread = [peer for peer, code in frames if code == pycoslite.SPREAD]
        self.assertEqual((len(spread), len(set(spread))), (2, 2))

    def test_a_message_that_one_process_does_not_take_goes_to_the_others(self):
        self.node()
        first, second = self.peer("name=first"), self.peer("name=second")
        here = Channel("uneven")
        heard = self.listen(first, here), self.listen(second, here)
        for small, got in ((first, heard[1]), (second, heard[0])):
            small.agent.peer.longest, usual = 1000, small.agent.peer.longest
            with self.expect_log("a message was not sent to .*: 100"):
                here.send(bytes(100_000))
                self.wait_until(lambda got=got: len(got) == 1)
            with self.expect_log("a message was not sent to .*: 100"):
                self.assertEqual(self.deliver(here, bytes(100_001)), 1)
            small.agent.peer.longest = usual
        self.wait_until(lambda: [len(got) for got in heard] == [2, 2])

    def test_ended_subscribers_are_removed(self):
        self.node()
        process = self.peer()
        here = Channel("brief")
        got = self.listen(process, here, 2)
        self.assertEqual(self.deliver(here, "end"), 2)
        self.wait_until(lambda: len(got) == 2)
        self.assertEqual(self.deliver(here, "nobody"), 0)
        self.wait_until(lambda: here.count() == 0)

    def test_subscribers_of_a_lost_process_are_removed(self):
        self.node()
        process = self.peer()
        here = Channel("lonely")
        self.listen(process, here, 2)
        with self.lost_messages():
            process.signal(signal.SIGKILL)
            self.wait_until(lambda: not Pycos().network.peers)
        self.assertEqual(self.deliver(here, "nobody"), 0)
        self.assertEqual(here.count(), 0)

    def test_subscribers_of_a_lost_process_are_removed_though_nothing_is_sent(self):
        self.node()
        process, other = self.peer(), self.peer()
        here = Channel("silent")
        with self.expect_log("there is a channel 'silent' already"):
            same = Channel("silent")                    # cannot be found by its name
        self.listen(process, here, 2)
        self.listen(other, here, 1)

        def subscribe(channel, *subscribers):
            results = []
            for subscriber in subscribers:
                results.append((yield channel.subscribe(subscriber)))
            return results
        self.assertEqual(self.do(subscribe, same, process.agent, other.agent), [0, 0])
        self.assertEqual((here.count(), same.count()), (3, 2))
        with self.lost_messages():
            process.signal(signal.SIGKILL)
            self.wait_until(lambda: len(Pycos().network.peers) == 1)
        self.wait_until(lambda: here.count() == same.count() == 1)
        self.assertEqual(self.do(subscribe, here, process.agent, other.agent), [-1, 0])
        self.assertEqual(here.count(), 2)


class DeliverTest(ServiceTestCase):
    def test_deliver_waits_for_subscribers_there(self):
        self.node()
        process = self.peer()
        channel = self.channel_of(process)
        self.assertEqual(self.deliver(channel, "nobody"), 0)
        self.assertEqual(self.deliver(channel, "too few", 0.1, 1), 0)
        self.assertEqual(self.deliver(channel, "negative", 0.1, -1), -1)
        results: List[int] = []

        def main():
            results.append((yield channel.deliver("both", timeout=COME_S, n=2)))
        waiting = Task(main)
        task, got = self.collector()
        process.agent.send(("listen", task, channel, 2))
        waiting.value(COME_S)
        self.assertEqual(results, [2])
        self.wait_until(lambda: got.count(("heard", "both")) == 2)

    def test_what_cannot_be_pickled(self):
        self.node()
        process = self.peer()
        channel = self.channel_of(process)
        with self.expect_log("cannot be pickled"):
            self.assertEqual(channel.send(threading.Lock()), -1)
        with self.expect_log("cannot be pickled"):
            self.assertEqual(self.deliver(channel, threading.Lock()), -1)
        here = Channel("careful")
        self.listen(process, here)
        with self.expect_log("channel careful: a message was not sent to other processes: it cannot be pickled"):
            self.assertEqual(self.deliver(here, threading.Lock()), 0)

    def test_counts_through_chained_channels(self):
        self.node()
        first, second = self.peer("name=first"), self.peer("name=second")
        top = self.channel_of(first)
        self.listen(first, top)
        task, got = self.collector()
        second.agent.send(("local_channel", task, "low", top))
        self.wait_until(lambda: ("chained", 0) in got and ("subscribed", 0) in got)
        here = Channel("bottom")

        def chain():
            yield here.subscribe(task)
            return (yield top.subscribe(here))
        self.assertEqual(self.do(chain), 0)
        self.assertEqual(self.deliver(top, "all"), 3)               # there, in a third process, and here
        self.wait_until(lambda: "all" in got and ("heard", "all") in got)
        self.assertEqual(self.deliver(top, "wait", n=3), 3)

    def test_a_stopped_process_is_waited_for_until_time_is_up(self):
        self.node()
        first, second = self.peer("name=first"), self.peer("name=second")
        here = Channel("patient")
        self.listen(first, here), self.listen(second, here)
        self.stop(second)
        self.wait_until(lambda: self.deliver(here, "half", 0.3) == 1)       # the first may be slow once, or twice
        self.assertEqual(self.deliver(here, "enough", COME_S, 1), 1)        # goes on as soon as `n` have it
        second.signal(signal.SIGCONT)
        self.assertEqual(self.deliver(here, "both"), 2)
        self.assertEqual(pycoslite._awaited, {})

    def test_a_delivery_ends_when_a_process_does(self):
        self.node()
        process = self.peer()
        channel = self.channel_of(process)
        self.listen(process, channel)
        self.stop(process)

        def deliver():
            return (yield channel.deliver("lost"))
        with self.lost_messages():                  # earlier ones
            waiting = Task(deliver)
            self.wait_until(lambda: pycoslite._awaited)
            process.signal(signal.SIGKILL)
            self.assertEqual(waiting.value(COME_S), 0)
        self.assertEqual(channel.send("lost"), -1)
        self.assertEqual(self.deliver(channel, "lost"), 0)

    def test_channels_in_a_circle_do_not_go_on_for_ever(self):
        self.node()
        process = self.peer()
        there, here = self.channel_of(process), Channel("here")

        def chain():
            return (yield there.subscribe(here)), (yield here.subscribe(there))
        self.assertEqual(self.do(chain), (0, 0))
        self.assertEqual(self.deliver(there, "round"), 0)
        process.wait_for("has come through 17 processes and is dropped: do channels subscribe to each other in a")


if __name__ == "__main__":
    unittest.main()
