"""What only `helper` imports."""


def square(x):
    return x * x
