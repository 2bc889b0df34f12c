"""Timer queue: deadlines in order, cheap to cancel."""
from __future__ import annotations

import random
import unittest

from pycoslite import TimerQueue
from tests.support import TestCase


class Item:
    """Something with a deadline."""

    def __init__(self, name: object = None) -> None:
        self.name = name
        self.timer = 0


def names(items) -> list:
    return [item.name for item in items]


class TimerQueueTest(TestCase):
    """Pure: `now` is a number."""

    def setUp(self):
        self.queue = TimerQueue()

    def push(self, *deadlines: float) -> list:
        items = [Item(deadline) for deadline in deadlines]
        for item in items:
            self.queue.push(item.name, item)
        return items

    def test_an_empty_queue_has_no_deadline(self):
        self.assertIsNone(self.queue.next_deadline())
        self.assertEqual(list(self.queue.expired(1e9)), [])
        self.assertEqual(len(self.queue), 0)

    def test_items_expire_in_the_order_of_their_deadlines(self):
        self.push(3.0, 1.0, 2.0, 5.0)
        self.assertEqual(self.queue.next_deadline(), 1.0)
        self.assertEqual(names(self.queue.expired(0.999)), [])
        self.assertEqual(names(self.queue.expired(3.0)), [1.0, 2.0, 3.0])
        self.assertEqual(len(self.queue), 1)
        self.assertEqual(self.queue.next_deadline(), 5.0)

    def test_items_of_one_deadline_expire_in_the_order_they_came(self):
        items = [Item(n) for n in range(1000)]
        for item in items:
            self.queue.push(7.0, item)
        self.assertEqual(names(self.queue.expired(7.0)), list(range(1000)))

    def test_a_cancelled_item_does_not_expire(self):
        first, second, _ = self.push(1.0, 2.0, 3.0)
        self.queue.cancel(first)
        self.queue.cancel(first)
        self.assertEqual(len(self.queue), 2)
        self.assertEqual(self.queue.next_deadline(), 2.0)
        self.queue.cancel(second)
        self.assertEqual(names(self.queue.expired(9.0)), [3.0])
        self.assertEqual(len(self.queue), 0)

    def test_an_item_can_be_queued_anew_with_another_deadline(self):
        item, = self.push(1.0)
        self.queue.cancel(item)
        self.queue.push(5.0, item)
        self.assertEqual(names(self.queue.expired(4.0)), [])
        self.assertEqual(names(self.queue.expired(5.0)), [1.0])
        self.assertEqual(item.timer, 0)
        self.queue.push(6.0, item)
        self.assertEqual(len(self.queue), 1)

    def test_an_item_that_expires_can_cancel_the_next(self):
        _, second, _ = self.push(1.0, 1.0, 1.0)
        seen = []
        for item in self.queue.expired(1.0):
            seen.append(item)
            self.queue.cancel(second)
        self.assertEqual(len(seen), 2)
        self.assertNotIn(second, seen)
        self.assertEqual(len(self.queue), 0)

    def test_what_is_pushed_while_others_expire_waits_for_the_next_call(self):
        self.push(1.0)
        seen = 0
        for item in self.queue.expired(1.0):
            seen += 1
            self.queue.push(0.5, item)
        self.assertEqual(seen, 1)
        self.assertEqual(len(list(self.queue.expired(1.0))), 1)

    def test_cancelled_items_leave_nothing_behind(self):
        keep = self.push(*range(100))
        item = Item("again")
        largest = 0
        for n in range(100_000):
            self.queue.push(1000.0 + n, item)
            self.queue.cancel(item)
            largest = max(largest, len(self.queue.heap))
        self.assertLessEqual(largest, 2 * len(keep) + 64)
        self.assertEqual(len(self.queue), len(keep))

    def test_a_rebuild_costs_each_cancelled_item_a_bounded_amount(self):
        """Half of the heap is stale at a rebuild, so the work per cancelled item is bounded; counted, not timed."""
        rebuilt, n = 0, 20_000
        items = self.push(*range(n))
        for item in random.Random(1).sample(items, n):
            before = self.queue.heap
            self.queue.cancel(item)
            if self.queue.heap is not before:
                rebuilt += len(before)
        self.assertLessEqual(rebuilt, 2 * n)
        self.assertLessEqual(len(self.queue.heap), 64)

    def test_against_a_sorted_list(self):
        rng = random.Random(42)
        expected, now = {}, 0.0
        for _ in range(5000):
            action = rng.random()
            if action < 0.5:
                item = Item()
                deadline = now + rng.choice((0.0, 1.0, rng.random() * 10))
                self.queue.push(deadline, item)
                expected[item] = (deadline, item.timer)
            elif action < 0.75 and expected:
                item = rng.choice(list(expected))
                self.queue.cancel(item)
                del expected[item]
            else:
                now += rng.random()
                due = sorted((key, item) for item, key in expected.items() if key[0] <= now)
                self.assertEqual(list(self.queue.expired(now)), [item for _, item in due])
                for _, item in due:
                    del expected[item]
            self.assertEqual(len(self.queue), len(expected))
            self.assertEqual(self.queue.next_deadline(), min(expected.values())[0] if expected else None)


if __name__ == "__main__":
    unittest.main()
