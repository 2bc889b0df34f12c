"""A channel sends each number to two tasks: one adds, one multiplies.

    python3 examples/channel.py

Printed: the four numbers, their sum and their product.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where pycoslite.py lies

import functools  # noqa: E402
import operator  # noqa: E402
import random  # noqa: E402

from pycoslite import Channel, Task  # noqa: E402


def fold(channel, function, start, task=None):
    yield channel.subscribe(task)
    result = start
    while True:
        number = yield task.receive()
        if number is None:                          # the sender's way to say that this was all
            break
        result = function(result, number)
    yield channel.unsubscribe(task)
    return result


def sender(task=None):
    channel = Channel("numbers")
    adder = Task(fold, channel, operator.add, 0)
    multiplier = Task(fold, channel, operator.mul, 1)
    numbers = [random.randint(1, 9) for _ in range(4)]
    print("numbers:", *numbers)
    yield channel.deliver(numbers[0], n=2)          # waits until both have subscribed
    for number in numbers[1:]:
        channel.send(number)
    channel.send(None)
    print("sum:", (yield adder.finish()))
    print("product:", (yield multiplier.finish()))
    assert (yield adder()) == functools.reduce(operator.add, numbers)


Task(sender)
