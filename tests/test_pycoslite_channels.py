"""Channels in one process (C01-C14) and messages by category (U15-U18), on a kernel whose time stands still."""
from __future__ import annotations

import functools
import threading
import unittest

import pycoslite
from pycoslite import NAMES, CategorizeMessages, Channel, Task
from tests.fake_kernel import FakeKernel
from tests.support import TestCase
from tests.test_pycoslite_kernel import send_from_threads


class ChannelTestCase(TestCase):
    """With a kernel of its own for each test."""

    def setUp(self):
        self.kernel = FakeKernel(self)
        self.spawn, self.settle, self.result = self.kernel.spawn, self.kernel.settle, self.kernel.result
        Channel._named.clear()              # what other tests made may not have been collected yet

    def subscriber(self, channel, *others):
        """A subscribed task; `mailbox(task)` has its messages."""
        def subscribe(task=None):
            for one in (channel, *others):
                self.assertEqual((yield one.subscribe(task)), 0)
            yield task.suspend()
        task = self.spawn(subscribe)
        self.settle()
        return task

    @staticmethod
    def mailbox(task):
        """Messages that a task has not read."""
        return list(task.mailbox or ())

    def asked(self, request):
        """What a task gets for yielding that."""
        def ask():
            got = yield request
            return "%r" % (got,)
        return self.result(ask)


class ChannelTest(ChannelTestCase):
    """C01-C08, C12-C14."""

    def test_every_subscriber_gets_every_message(self):
        channel = Channel("news")
        self.assertEqual(channel.send("nobody"), 0)
        tasks = [self.subscriber(channel) for _ in range(3)]
        for message in (1, None, "three"):
            self.assertEqual(channel.send(message), 0)
        for task in tasks:
            self.assertEqual(self.mailbox(task), [1, None, "three"])

    def test_subscribing_twice_is_once(self):
        channel = Channel("news")
        task = self.subscriber(channel, channel)
        channel.send(1)
        self.assertEqual(self.mailbox(task), [1])

    def test_what_cannot_subscribe(self):
        channel, ended = Channel("news"), self.spawn(lambda: (yield))
        self.settle()
        for wrong in (5, None, print, "task", ended):
            self.assertEqual(self.asked(channel.subscribe(wrong)), "-1")

    def test_unsubscribe(self):
        channel = Channel("news")
        task = self.subscriber(channel)
        self.assertEqual(self.asked(channel.unsubscribe(task)), "0")
        self.assertEqual(self.asked(channel.unsubscribe(task)), "-1")
        self.assertEqual(self.asked(channel.unsubscribe(5)), "-1")
        channel.send(1)
        self.assertEqual(self.mailbox(task), [])

    def test_ended_subscribers_are_removed(self):
        channel = Channel("news")
        task, other = self.subscriber(channel), self.subscriber(channel)
        task.terminate()
        self.settle()
        self.assertEqual(channel.publish("a"), 1)
        self.assertEqual(list(channel._tasks), [other])

    def test_all_kinds_of_receivers(self):
        channel = Channel("news")

        def receiver(timeout, task=None):
            yield channel.subscribe(task)
            return (yield task.receive(timeout))
        tasks = [self.spawn(receiver, timeout) for timeout in (None, 5)]
        self.settle()
        channel.send("news")
        self.kernel.run()
        self.assertEqual([task.outcome for task in tasks], ["news", "news"])

    def test_direct_messages_come_in_between(self):
        channel = Channel("news")
        task = self.subscriber(channel)
        channel.send(1)
        task.send(2)
        channel.send(3)
        self.assertEqual(self.mailbox(task), [1, 2, 3])

    def test_transform(self):
        def transform(name, message):
            if message == "fail":
                raise ValueError("the transform's own")
            return None if message == "drop" else (name, message)
        channel = Channel("news", transform)
        task = self.subscriber(channel)
        for message in ("a", "drop", "b"):
            self.assertEqual(channel.send(message), 0)
        with self.expect_log("transform failed"):
            self.assertEqual(channel.send("fail"), 0)
        self.assertEqual(self.mailbox(task), [("news", "a"), ("news", "b")])
        self.assertEqual(self.asked(channel.deliver("drop")), "0")
        self.assertEqual(self.asked(channel.deliver("c")), "1")

    def test_set_transform(self):
        channel = Channel("news")
        task = self.subscriber(channel)
        self.assertEqual(channel.set_transform(lambda name, message: message + 1), 0)
        channel.send(1)
        for wrong in (5, lambda message: message, len):
            with self.expect_log("is no transform"):
                self.assertEqual(channel.set_transform(wrong), -1)
        channel.send(2)
        self.assertEqual(channel.set_transform(None), 0)
        channel.send(3)
        self.assertEqual(self.mailbox(task), [2, 3, 3])
        with self.expect_log("is no transform"):
            Channel("wrong arity", lambda message: message)

    def test_deliver_counts(self):
        channel = Channel("news")
        self.assertEqual(self.asked(channel.deliver("nobody")), "0")
        tasks = [self.subscriber(channel) for _ in range(3)]
        self.assertEqual(self.asked(channel.deliver("all")), "3")
        self.assertEqual(self.asked(channel.deliver("all", n=2)), "3")
        self.assertEqual(self.asked(channel.deliver("none", n=-1)), "-1")
        self.assertEqual(self.mailbox(tasks[0]), ["all", "all"])

    def test_deliver_waits_for_subscribers(self):
        channel = Channel("news")

        def sender(timeout):
            start = self.kernel.clock()
            return (yield channel.deliver("late", timeout, n=2)), self.kernel.clock() - start
        self.assertEqual(self.result(sender, 3), (0, 3))
        task = self.spawn(sender, None)
        self.settle()
        first = self.subscriber(channel)
        self.assertTrue(task.is_alive())
        self.subscriber(channel)
        self.settle()
        self.assertEqual(task.outcome, (2, 0))
        self.assertEqual(self.mailbox(first), ["late"])

    def test_deliver_terminated(self):
        channel = Channel("news")
        task = self.spawn(lambda: (yield from channel.deliver(1, n=1)))
        self.settle()
        task.terminate()
        self.settle()
        self.assertEqual(len(channel._line), 0)

    def test_await(self):
        channel = Channel("news")

        async def function(task=None):
            await channel.subscribe(task)
            return await channel.deliver("x", n=1), await task.receive()
        self.assertEqual(self.result(function), (1, "x"))

    def test_chained_channels(self):
        top, middle, low = Channel("top"), Channel("middle", lambda name, message: (name, message)), Channel("low")
        self.assertEqual(self.asked(top.subscribe(middle)), "0")
        self.assertEqual(self.asked(middle.subscribe(low)), "0")
        tasks = [self.subscriber(top), self.subscriber(middle), self.subscriber(low), self.subscriber(low)]
        self.assertEqual(self.asked(top.deliver("x")), "4")
        self.assertEqual([self.mailbox(task) for task in tasks], [["x"]] + [[("middle", "x")]] * 3)
        self.assertEqual(self.asked(top.unsubscribe(middle)), "0")
        self.assertEqual(self.asked(top.deliver("y")), "1")

    def test_a_channel_never_feeds_itself(self):
        one, two = Channel("one"), Channel("two")
        self.assertEqual(self.asked(one.subscribe(two)), "0")
        for channel in (one, two):
            with self.expect_log("would feed itself"):
                self.assertEqual(self.asked(two.subscribe(one) if channel is two else one.subscribe(one)), "-1")

    def test_name(self):
        channel = Channel("news")
        self.assertEqual((channel.name, repr(channel), channel.location), ("news", "news", None))
        with self.expect_log("begin with a letter or digit"):
            self.assertEqual(Channel("^ _x-y").name, "x-y")
        self.assertEqual(len({channel, Channel("other")}), 2)

    def test_a_second_channel_of_one_name_cannot_be_found(self):
        first = Channel("news")
        with self.expect_log("already"):
            second = Channel("news")
        self.assertEqual(first, second)
        self.assertEqual(second.register(), -1)
        self.assertEqual(first.register(), 0)
        self.addCleanup(first.close)
        self.assertIs(NAMES["channel", "news"], first)

    def test_register(self):
        channel, other = Channel("news"), Channel("other")
        self.addCleanup(other.close)
        self.assertEqual(channel.unregister(), -1)
        self.assertEqual(channel.register(), 0)
        self.assertEqual(channel.register("alias"), 0)
        self.assertEqual(other.register("alias"), -1)
        self.assertEqual(other.register("news"), -1)
        self.assertEqual(channel.register(5), -1)
        self.assertEqual(channel.unregister("alias"), 0)
        self.assertEqual(channel.unregister(), 0)
        self.assertEqual(channel.unregister(), -1)

    def test_close(self):
        channel = Channel("news")
        task = self.subscriber(channel)
        channel.register()
        channel.register("alias")
        channel.close()
        channel.send("nobody")
        self.assertEqual(self.mailbox(task), [])
        self.assertNotIn(("channel", "alias"), NAMES)
        again = Channel("news")
        self.assertEqual(again.register(), 0)
        again.close()

    def test_100000_subscribers_come_and_go(self):
        channel = Channel("news")

        def subscriber(task=None):
            yield channel.subscribe(task)
            yield task.receive()
            yield channel.unsubscribe(task)
        for _ in range(100_000):
            self.spawn(subscriber)
        self.settle()
        self.assertEqual(channel.publish("all"), 100_000)
        self.settle()
        self.assertEqual(len(channel._tasks), 0)
        self.assertEqual(len(self.kernel.tasks), 0)

    def test_tasks_of_two_kernels(self):
        channel, other = Channel("news"), FakeKernel(self)
        near = self.subscriber(channel)

        def far(task=None):
            yield channel.subscribe(task)
            return (yield task.receive())
        task = other.spawn(far)
        other.settle()
        self.settle()
        channel.send("both")
        other.settle()
        self.assertEqual(self.mailbox(near), ["both"])
        self.assertEqual(task.outcome, "both")

    def test_threads(self):
        self.addCleanup(pycoslite.stop_default)
        channel, ready = Channel("news"), threading.Event()

        def subscriber(task=None):
            yield channel.subscribe(task)
            ready.set()
            got = []
            while len(got) < 400:
                got.append((yield task.receive()))
            return got
        task = Task(subscriber)
        ready.wait(60)
        send_from_threads(channel.send, 100)
        got = task.value(60)
        for k in range(4):
            self.assertEqual([n for key, n in got if key == k], list(range(100)))


class ForgottenSubscribersTest(ChannelTestCase):
    def test_subscribers_that_have_ended_do_not_add_up(self):
        channel = Channel("silent")
        self.addCleanup(channel.close)

        def brief(task=None):
            self.assertEqual((yield channel.subscribe(task)), 0)
        for _ in range(500):
            self.spawn(brief)
            self.settle()
        self.assertLess(channel.count(), 100)


class CategorizeTest(ChannelTestCase):
    """U15-U18."""

    def receiver(self, *calls, functions):
        """A task that has a box with these functions and makes these receive calls, 10 messages (0-9) waiting."""
        def receive(task=None):
            box = CategorizeMessages(task)
            for function in functions:
                box.add(function)
            got = []
            for args in calls:
                got.append((yield box.receive(*args)))
            return got
        task = self.spawn(receive)
        for n in range(10):
            task.send(n)
        self.kernel.run()
        self.assertFalse(task.is_alive())
        return task.outcome

    @staticmethod
    def parity(message):
        return "even" if message % 2 == 0 else "odd"

    def test_by_category_in_order(self):
        got = self.receiver(("odd",), ("odd",), ("even",), ("even",), ("odd",), ("even",), functions=[self.parity])
        self.assertEqual(got, [1, 3, 0, 2, 5, 4])

    def test_messages_of_no_category(self):
        got = self.receiver((), ("big",), (), ("big",), functions=[lambda n: "big" if n > 4 else None])
        self.assertEqual(got, [0, 5, 1, 6])

    def test_the_latest_function_is_asked_first(self):
        got = self.receiver(("seven",), ("odd",), functions=[self.parity, lambda n: "seven" if n == 7 else None])
        self.assertEqual(got, [7, 1])

    def test_partials_and_what_is_no_category_function(self):
        def more(limit, message):
            return "more" if message > limit else None
        with self.expect_log("tells no category") as lines:
            got = self.receiver(("more",), functions=[functools.partial(more, 6), more, 5, lambda: 1])
        self.assertEqual(got, [7])
        self.assertEqual(len(lines), 3)

    def test_timeouts(self):
        start = self.kernel.clock()
        got = self.receiver(("none", 2, "late"), ("none", 0, "empty"), ("odd", 0), functions=[self.parity])
        self.assertEqual(got, ["late", "empty", 1])
        self.assertEqual(self.kernel.clock() - start, 2)

    def test_the_timeout_is_one_for_all_messages_that_come_meanwhile(self):
        def receive(task=None):
            box = CategorizeMessages(task)
            return (yield box.receive("wanted", 5, "late")), self.kernel.clock()

        def sender(task=None):
            while receiver.is_alive():
                receiver.send("other")
                yield task.sleep(1)
        start = self.kernel.clock()
        receiver = self.spawn(receive)
        self.spawn(sender)
        self.kernel.run()
        self.assertEqual(receiver.outcome, ("late", start + 5))

    def test_a_message_that_equals_the_alarm_value_ends_the_wait(self):
        got = self.receiver(("none", 100, 3), ("odd",), functions=[self.parity])
        self.assertEqual(got, [3, 1])

    def test_a_function_that_fails_is_passed_over(self):
        with self.expect_log("failed to tell the category") as lines:
            got = self.receiver(("odd",), functions=[self.parity, lambda n: 1 // 0, lambda n: []])
        self.assertEqual(got, [1])
        self.assertEqual(len(lines), 4)

    def test_without_an_alarm_value_it_is_none(self):
        self.assertEqual(self.receiver(("none", 1), ("none", 0), functions=[self.parity]), [None, None])

    def test_remove(self):
        def receive(task=None):
            box = CategorizeMessages(task)
            box.add(self.parity)
            box.remove(self.parity)
            with self.expect_log("is not among"):
                box.remove(self.parity)
            return (yield box.recv())
        task = self.spawn(receive)
        task.send(1)
        self.kernel.run()
        self.assertEqual(task.outcome, 1)

    def test_await(self):
        async def receive(task=None):
            box = CategorizeMessages(task)
            box.add(self.parity)
            return await box.receive("even"), await box.receive("odd")
        task = self.spawn(receive)
        task.send(1)
        task.send(2)
        self.kernel.run()
        self.assertEqual(task.outcome, (2, 1))


if __name__ == "__main__":
    unittest.main()
