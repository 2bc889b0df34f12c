"""Logger, Struct, Singleton, serialize: U01-U11."""
from __future__ import annotations

import copy
import io
import logging
import subprocess
import sys
import unittest
from unittest import mock

import pycoslite
from pycoslite import Logger, MetaSingleton, Singleton, Struct
from tests.support import ROOT, TestCase


class LoggerTest(TestCase):
    """U05-U11."""

    def setUp(self):
        self.stream = io.StringIO()

    def logger(self, **options):
        logger = Logger("prog", stream=self.stream, **options)
        self.addCleanup(logger.shutdown)
        return logger

    def lines(self):
        return self.stream.getvalue().splitlines()

    def test_a_line_has_date_time_name_and_text(self):
        self.logger().info("%d done", 5)
        self.assertRegex(self.stream.getvalue(), r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d prog - 5 done\n$")

    def test_constants(self):
        self.assertEqual((Logger.DEBUG, Logger.INFO, Logger.WARN, Logger.WARNING, Logger.ERROR, Logger.CRITICAL,
                          Logger.FATAL), (10, 20, 30, 30, 40, 50, 50))
        self.assertEqual(pycoslite.logger.DEBUG, 10)

    def test_levels(self):
        logger = self.logger()
        for level, expected in ((None, 6), (Logger.DEBUG, 7), (Logger.WARN, 5), (Logger.ERROR, 3), (Logger.FATAL, 2)):
            if level is not None:
                logger.setLevel(level)
            before = len(self.lines())
            for method in ("debug", "info", "warn", "warning", "error", "critical", "fatal"):
                getattr(logger, method)("x")
            self.assertEqual(len(self.lines()) - before, expected)

    def test_level_of_the_constructor(self):
        self.logger(level=Logger.ERROR).warning("no")
        self.assertEqual(self.lines(), [])

    def test_formatting_only_with_arguments(self):
        logger = self.logger()
        logger.info("100% as it is")
        logger.info("%s of %d", "one", 2)
        self.assertTrue(self.lines()[0].endswith(" - 100% as it is"))
        self.assertTrue(self.lines()[1].endswith(" - one of 2"))

    def test_log_is_unconditional(self):
        logger = self.logger(level=Logger.FATAL + 1)
        logger.fatal("no")
        logger.log("%s", "yes")
        self.assertEqual(len(self.lines()), 1)

    def test_milliseconds(self):
        logger = self.logger(log_ms=True)
        logger.info("a")
        logger.show_ms(False)
        logger.info("b")
        self.assertRegex(self.lines()[0], r":\d\d\.\d{3} prog - a$")
        self.assertRegex(self.lines()[1], r":\d\d prog - b$")

    def test_flush_at_the_end_of_a_with(self):
        self.stream = mock.Mock(spec=io.StringIO)
        with self.logger() as logger:
            logger.info("x")
            before = self.stream.flush.call_count
        self.assertGreater(self.stream.flush.call_count, before)

    def test_shutdown_restores_what_was(self):
        logger = self.logger()
        logger.info("x")
        logger.shutdown()
        logger.shutdown()
        self.assertEqual((logging.getLogger("prog").handlers, logging.getLogger("prog").propagate), ([], True))

    def test_the_modules_own_logger_shows_its_own_lines_too(self):
        code = ("import pycoslite\npycoslite.logger.setLevel(pycoslite.logger.DEBUG)\npycoslite.logger.info('mine')\n"
                "def f(task=None):\n    yield task.suspend('x')\nprint(pycoslite.Task(f).value())")
        done = subprocess.run([sys.executable, "-c", code], cwd=str(ROOT), stdout=subprocess.PIPE, text=True,
                              timeout=100)
        self.assertRegex(done.stdout, r"(?s) pycoslite - mine\n.* pycoslite - suspend\('x'\) of task .*-1\n$")


class StructTest(TestCase):
    """U04."""

    def test_declared_attributes(self):
        bag = Struct(a=1, b=2)
        bag.a += 10
        self.assertEqual((bag.a, bag.b, repr(bag)), (11, 2, "Struct(a=11, b=2)"))

    def test_others(self):
        bag = Struct(a=1)
        with self.assertRaisesRegex(AttributeError, "no attribute 'c'"):
            bag.c = 3
        with self.expect_log("no attribute 'c'"):
            self.assertIsNone(bag.c)

    def test_copies(self):
        self.assertEqual(copy.deepcopy(Struct(a=[1])).a, [1])


class SingletonTest(TestCase):
    """U03."""

    def test_one_object(self):
        class One(metaclass=Singleton):
            """There is one."""

            def __init__(self, value):
                self.value = value
        self.assertIsNone(Singleton.instance(One))
        first = One(1)
        self.assertIs(One(2), first)
        self.assertEqual(first.value, 1)
        self.assertIs(Singleton.instance(One), first)
        Singleton.discard(One)
        self.assertIsNone(One.instance())
        self.assertIsNot(One(3), first)
        self.assertIs(MetaSingleton, Singleton)


class SerializeTest(TestCase):
    """U01, U02."""

    def test_round_trip(self):
        value = {"a": [1, 2.5, None, b"bytes"], ("t",): {1, 2}}
        self.assertEqual(pycoslite.deserialize(pycoslite.serialize(value)), value)


if __name__ == "__main__":
    unittest.main()
