"""A user's program as the tests of code shipping run it: prog.py PYTHON, with PYTHON the server's interpreter.

It sends a bit of everything that lives in __main__ and in modules of its tree, and prints a line for each result.
"""
import abc
import collections
import contextlib
import dataclasses
import enum
import functools
import os.path
import sys
import typing
import xml.dom.minidom

import dispycos_lite
import helper
import pkg.inner
from helper import Shape, area
from tests.shipping_peer import Server

FACTOR = 7
TABLE = {"a": [1, 2]}
T = typing.TypeVar("T")


def scaled(x):
    return x * FACTOR


def work(x, y=3, *, z=TABLE):
    """Its docstring."""
    return scaled(x) + y + len(z["a"])


def even(n):
    return n == 0 or odd(n - 1)


def odd(n):
    return n != 0 and even(n - 1)


def counting(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args) + 1
    return wrapper


@counting
@counting
def decorated(x):
    return x


@functools.lru_cache(maxsize=None)
def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


@contextlib.contextmanager
def surrounded(value):
    yield value


def use_surrounded():
    with surrounded(5) as value:
        return value


def numbers(n):
    for i in range(n):
        yield i


async def later(n):
    return n


def factorial():
    def inner(n):
        return 1 if n < 2 else n * inner(n - 1)
    return inner


class Base(abc.ABC):
    registry = []
    level = 1
    __secret = 3

    def __init__(self, value):
        self.value = value

    @abc.abstractmethod
    def get(self):
        return self.value

    @property
    def double(self):
        return 2 * self.value

    @classmethod
    def make(cls, value):
        return cls(value)

    @staticmethod
    def plus(a, b):
        return a + b

    def secret(self):
        return (lambda: self.__secret)()


class Child(Base):
    def get(self):
        return super().get() + self.level

    def again(self):
        return Child(self.value + 1)

    def __eq__(self, other):
        return self.value == other.value


@dataclasses.dataclass(order=True)
class Point:
    x: int
    y: "int" = 2
    tags: list = dataclasses.field(default_factory=list)


class Color(enum.Enum):
    RED = 1
    BLUE = 2

    def lower(self):
        return self.name.lower()


class Pair(typing.NamedTuple):
    left: int
    right: int = 9


class Box(typing.Generic[T]):
    __slots__ = ("content",)

    def __init__(self, content: T):
        self.content = content


Row = collections.namedtuple("Row", "a b", defaults=[4])
Mood = enum.Enum("Mood", "GOOD BAD")


class Config:
    debug = False


Config.debug = True                     # as an option on the command line would


class Trouble(Exception):
    def __init__(self, code, text):
        super().__init__(code, text)
        self.code = code


class Picky(Exception):
    def __init__(self, code, text):
        super().__init__(text)          # so it cannot be unpickled


def fail():
    raise Trouble(3, "three")


def fail_picky():
    raise Picky(3, "three")


def fail_locally():
    class Hidden(Exception):
        pass
    raise Hidden("only there")


def classes(value):
    child = Child.make(value)
    local = local_class(2)
    return [child.get(), child.double, child.plus(1, 2), child.secret(), child.again().get(), local(1).next().n,
            Color.RED.lower(), Pair(1).right, Box("x").content, Row(1).b, Mood.BAD.name, Config.debug]


def local_class(step):
    class Node:
        def __init__(self, n):
            self.n = n

        def next(self):
            return Node(self.n + step)
    return Node


def instances(value):
    return Child(value), Point(value), Color.BLUE, Pair(value), Row(value), Mood.GOOD


def modules(name):
    from pkg import late                # named nowhere else in this file
    return [os.path.join("a", name), xml.dom.minidom.Node.ELEMENT_NODE, helper.area(Shape(2)), area(Shape(3)),
            pkg.inner.value(), late.VALUE, __name__]


def remember(value):
    global remembered
    remembered = value


def recall():
    return remembered


def where():
    raise ValueError("with its line")


def cases():
    """Label -> function, arguments."""
    return {
        "work": (work, 2), "even": (even, 10), "decorated": (decorated, 1), "fibonacci": (fibonacci, 30),
        "surrounded": (use_surrounded,), "numbers": (numbers, 3), "later": (later, 4), "factorial": (factorial(), 5),
        "lambda": (lambda a, b=FACTOR: a + b + FACTOR, 1), "partial": (functools.partial(work, 1, y=0),),
        "bound": (Child(4).get,), "classes": (classes, 5), "modules": (modules, "b"), "imported": (area, Shape(4)),
        "builtin": (max, 3, 4), "function as argument": (lambda f, x: f(x), scaled, 3),
        "remember": (remember, 5), "recall": (recall,), "local class": (lambda n: n.next().n, local_class(3)(1)),
    }


def main():
    with Server(sys.argv[1], dispycos_lite) as server:
        for label, (function, *args) in cases().items():
            print(label, server.call(function, *args))
        back = server.call(instances, 6)
        print("instances", back == instances(6), [type(item).__name__ for item in back])
        for function in (fail, fail_picky, fail_locally, where):
            try:
                server.call(function)
            except Exception as error:
                line = [text for text in str(error.__cause__).splitlines() if "raise " in text or "<client>/" in text]
                print(function.__name__, type(error).__name__, error, getattr(error, "code", None), "|".join(
                    text.strip() for text in line))


if __name__ == "__main__":
    main()
