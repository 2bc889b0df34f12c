"""A module with relative imports, one of them in a circle."""
from . import outer
from .late import VALUE

BASE = 10


def value():
    return outer.plus(VALUE)
