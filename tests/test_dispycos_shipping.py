"""Code shipping: what travels, in both forms, what is refused and how, keys, payloads, exceptions.

Most tests put a program into a file, run it as __main__ of this process, and send its functions to a Namespace that
stays out of sys.modules. The last ones run a whole program against a server process of another Python.
"""
from __future__ import annotations

import collections
import functools
import importlib.machinery
import importlib.util
import linecache
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import threading
import types
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import dispycos_lite
import pycoslite
from dispycos_lite import CannotShip, Namespace, Packer, RemoteError, RemoteTraceback, explain_send
from tests.support import MODULES, ROOT, TestCase, interpreters

MAGIC = importlib.util.MAGIC_NUMBER
OTHER_MAGIC = b"\0\0\0\0"
FORMS = {"bytecode": MAGIC, "source": OTHER_MAGIC}
PROGRAM = Path(__file__).with_name("shipping_program")


class ShippingCase(TestCase):
    """Programs as __main__, and the way to a server."""

    def setUp(self) -> None:
        super().setUp()
        self.packer = Packer()

    def program(self, text: str, file: bool = True) -> Any:
        """Run a text as __main__ until the end of the test; without `file` there is no source, as in a REPL."""
        module: Any = types.ModuleType("__main__")
        name = "<stdin>"
        text = textwrap.dedent(text)
        if file:
            name = str(self.temp_dir() / "prog.py")
            Path(name).write_text(text, encoding="utf-8")
            module.__file__ = name
            module.__loader__ = importlib.machinery.SourceFileLoader("__main__", name)
        before = sys.modules["__main__"]
        self.addCleanup(sys.modules.__setitem__, "__main__", before)
        self.addCleanup(linecache.clearcache)
        sys.modules["__main__"] = module
        exec(compile(text, name, "exec", dont_inherit=True), vars(module))
        return module

    def send(self, fn: Any, magic: bytes = MAGIC, space: Optional[Namespace] = None) -> Any:
        """What a server (a new one by default) has for a function."""
        space = space or Namespace(install=False)
        return self.define(space, self.packer.function(fn), magic).function(self.packer.function(fn))

    def define(self, space: Namespace, key: bytes, magic: bytes = MAGIC) -> Namespace:
        """Send what a key stands for to a server."""
        for digest in self.packer.closure_of(key):
            space.define(self.packer.blob(digest, magic))
        return space

    def both(self, fn: Callable, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """The result of a call at a server, for each form of code."""
        for form, magic in FORMS.items():
            with self.subTest(form=form):
                yield self.send(fn, magic)(*args, **kwargs)

    def refusal(self, fn: Any) -> str:
        """The sentence with which a function is refused."""
        with self.assertRaises(CannotShip) as caught:
            self.packer.function(fn)
        return str(caught.exception)


class FunctionTest(ShippingCase):
    """Functions of all kinds, by value."""

    def test_globals_defaults_and_other_functions_come_along(self) -> None:
        main = self.program("""
            DATA = {"a": [1, 2]}
            def helper(x): return x + len(DATA["a"])
            def work(a, b=DATA, /, c=3, *, d=4):
                'doc'
                return helper(a) + len(b) + c + d
        """)
        for result in self.both(main.work, 1, d=5):
            self.assertEqual(result, 1 + 2 + 1 + 3 + 5)
        self.assertEqual(self.send(main.work).__doc__, "doc")

    def test_server_globals_are_not_the_clients(self) -> None:
        main = self.program("DATA = []\ndef work(): DATA.append(1); return len(DATA)")
        work = self.send(main.work)
        self.assertEqual((work(), work(), main.DATA), (1, 2, []))

    def test_mutual_recursion(self) -> None:
        main = self.program("""
            def even(n): return n == 0 or odd(n - 1)
            def odd(n): return n != 0 and even(n - 1)
        """)
        for result in self.both(main.even, 7):
            self.assertIs(result, False)

    def test_recursion_and_mutual_recursion_in_closures(self) -> None:
        main = self.program("""
            def make():
                def even(n): return n == 0 or odd(n - 1)
                def odd(n): return n != 0 and even(n - 1)
                return even
        """)
        for result in self.both(main.make(), 7):
            self.assertIs(result, False)

    def test_long_chain_of_functions(self) -> None:
        count = sys.getrecursionlimit() * 2
        main = self.program("".join("def f%d(n): return n or f%d(n)\n" % (i, i + 1) for i in range(count)))
        self.assertEqual(self.send(main.f0)(1), 1)

    def test_lambdas_of_one_line(self) -> None:
        main = self.program("""
            K = 10
            pair = [lambda x: x + K, lambda x: x - K]; more = (lambda x: (x, "\u00fc")) if K else lambda x: None
            long = [lambda a,
                           b=2: a *
                    b]
        """)
        for function, wanted in zip(main.pair + [main.more] + main.long, (11, -9, (1, "\u00fc"), 2)):
            for result in self.both(function, 1):
                self.assertEqual(result, wanted)

    def test_strings_over_several_lines_keep_their_margin(self) -> None:
        main = self.program('''
            if True:
                def work():
                    return """a
              b"""
        ''')
        for result in self.both(main.work):
            self.assertEqual(result, main.work())

    def test_decorators_are_applied_once(self) -> None:
        main = self.program("""
            import functools
            def plus(n):
                def decorate(function):
                    @functools.wraps(function)
                    def wrapper(*args): return function(*args) + n
                    return wrapper
                return decorate
            @plus(1)
            @plus(10)
            def work(x):
                "doc"
                return x
        """)
        for result in self.both(main.work, 100):
            self.assertEqual(result, 111)
        work = self.send(main.work)
        self.assertEqual((work.__name__, work.__doc__, work.__wrapped__.__wrapped__(5)), ("work", "doc", 5))

    def test_decorators_of_the_library(self) -> None:
        main = self.program("""
            import contextlib, functools
            @functools.lru_cache(maxsize=5)
            def fibonacci(n): return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)
            @contextlib.contextmanager
            def around(x): yield x
            def work(n):
                with around(n) as inside:
                    return fibonacci(inside)
        """)
        for result in self.both(main.work, 20):
            self.assertEqual(result, 6765)
        self.assertEqual(self.send(main.fibonacci).cache_info().maxsize, 5)

    def test_private_names_and_super_in_nested_functions(self) -> None:
        main = self.program("""
            class Base:
                def value(self): return 1
            class Child(Base):
                def __init__(self): self.__hidden = 5
                def value(self): return 2
                def make(self): return lambda: (self.__hidden, super(__class__, self).value(), __class__.__name__)
        """)
        for result in self.both(main.Child().make()):
            self.assertEqual(result, (5, 1, "Child"))

    def test_generator_and_async_functions(self) -> None:
        main = self.program("""
            def numbers(n):
                got = yield n
                yield got
            async def later(n): return n
        """)
        for generator in self.both(main.numbers, 3):
            self.assertEqual((next(generator), generator.send(4)), (3, 4))
        for coroutine in self.both(main.later, 3):
            with self.assertRaises(StopIteration) as ended:
                coroutine.send(None)
            self.assertEqual(ended.exception.value, 3)

    def test_qualified_names_are_kept(self) -> None:
        main = self.program("""
            def make():
                def work():
                    class Inside: pass
                    return Inside.__qualname__
                return work
        """)
        for result in self.both(main.make()):
            self.assertEqual(result, "make.<locals>.work.<locals>.Inside")

    def test_modules_are_imported_with_their_submodules(self) -> None:
        main = self.program("""
            import os.path, xml.dom.minidom, os as system
            from os import path
            def work(): return os.path.join("a", "b"), xml.dom.minidom.Node.ELEMENT_NODE, path is system.path
        """)
        for result in self.both(main.work):
            self.assertEqual(result, (os.path.join("a", "b"), 1, True))

    def test_attribute_that_is_named_like_a_global_does_not_count(self) -> None:
        main = self.program("""
            import threading
            lock = threading.Lock()
            class Door: lock = 5
            def work(): return Door.lock
        """)
        for result in self.both(main.work):
            self.assertEqual(result, 5)

    def test_callables_with_a_state_travel_as_they_are_now(self) -> None:
        main = self.program("""
            import functools
            class Adder:
                def __init__(self, n): self.n = n
                def __call__(self, x): return x + self.n
                def add(self, x): return x + self.n
            adder = Adder(1)
            part = functools.partial(adder.add, 5)
        """)
        self.assertEqual((self.send(main.adder)(1), self.send(main.adder.add)(1), self.send(main.part)()), (2, 2, 6))
        main.adder.n = 10
        self.assertEqual((self.send(main.adder)(1), self.send(main.adder.add)(1), self.send(main.part)()), (11, 11, 15))

    def test_what_every_python_has_goes_by_name(self) -> None:
        for function in (len, os.path.join, collections.OrderedDict, functools.partial):
            self.assertIs(self.send(function), function)

    def test_globals_that_jobs_assign_are_shared_and_kept(self) -> None:
        main = self.program("""
            total = 0
            table = {}
            def add(n):
                global total, fresh
                total += n
                fresh = n
                table[n] = total
            def look(): return total, fresh, table
            def look_again(): return total, fresh, table
        """)
        space = Namespace(install=False)
        self.send(main.add, space=space)(2)
        self.assertEqual(self.send(main.look, space=space)(), (2, 2, {2: 2}))
        self.send(main.add, space=space)(3)
        self.assertEqual(self.send(main.look_again, space=space)(), (5, 3, {2: 2, 3: 5}))

    def test_relative_import_in_a_function_of_main_knows_its_package(self) -> None:
        main = self.program("def work(): return __package__")
        main.__package__ = "some.package"
        self.assertEqual(self.send(main.work)(), "some.package")

    def test_failed_building_is_tried_again(self) -> None:
        main = self.program("""
            import sys
            def helper(): return late.value
            def work(): return helper()
        """)
        main.late = sys.modules["late_module"] = types.ModuleType("late_module")
        main.late.value = 5
        self.addCleanup(sys.modules.pop, "late_module", None)
        space = self.define(Namespace(install=False), self.packer.function(main.work))
        key = self.packer.function(main.work)
        module = sys.modules.pop("late_module")
        for _ in range(2):
            self.assertRaises(ImportError, space.function, key)
        sys.modules["late_module"] = module
        self.assertEqual(space.function(key)(), 5)


class ClassTest(ShippingCase):
    """Classes of __main__, from their statement and without one."""

    def test_hierarchies(self) -> None:
        main = self.program("""
            import abc, typing
            T = typing.TypeVar("T")
            class Meta(type):
                def __new__(meta, name, bases, entries, **options):
                    return super().__new__(meta, name, bases, dict(entries, options=options))
                def __init__(cls, *args, **options): pass
            class Base(abc.ABC):
                @abc.abstractmethod
                def get(self): return 1
                @property
                def double(self): return self.get() * 2
                @classmethod
                def make(cls): return cls()
                @staticmethod
                def plus(a, b): return a + b
            class Child(Base, typing.Generic[T]):
                __slots__ = ("x",)
                def get(self): return super().get() + 1
                def same(self): return type(self) is Child is __class__
                class Inner:
                    value = 3
            class Special(metaclass=Meta, size=5): pass
            def work():
                child = Child.make()
                return child.get(), child.double, child.plus(1, 2), child.same(), Child.Inner.value, Special.options
        """)
        for result in self.both(main.work):
            self.assertEqual(result, (2, 4, 3, True, 3, {"size": 5}))

    def test_classes_and_functions_that_need_each_other(self) -> None:
        main = self.program("""
            class Base:
                def other(self): return Child()
            class Child(Base):
                def again(self): return make()
            def make(): return Child().other()
        """)
        for function in (main.make, main.Base, main.Child):
            for result in self.both(function):
                self.assertEqual(type(result.other().again()).__name__, "Child")

    def test_dataclass_enum_and_named_tuple(self) -> None:
        main = self.program("""
            import collections, dataclasses, enum, typing
            def zero(): return 0
            @dataclasses.dataclass(frozen=True, order=True)
            class Point:
                x: int
                y: "int" = dataclasses.field(default_factory=zero)
            class Color(enum.IntEnum):
                RED = 1
                def lower(self): return self.name.lower()
            class Pair(typing.NamedTuple):
                left: int
                right: int = 9
            Row = collections.namedtuple("Row", "a b", defaults=[4])
            Mood = enum.Enum("Mood", "GOOD BAD")
            def work():
                return (Point(1) < Point(2), hash(Point(1)) == hash(Point(1)), repr(Point(1)), Color(1).lower(),
                        Pair(1), Row(1), Mood.BAD.value)
        """)
        for result in self.both(main.work):
            self.assertEqual(result, (True, True, "Point(x=1, y=0)", "red", (1, 9), (1, 4), 2))

    def test_attributes_that_were_changed_since(self) -> None:
        main = self.program("""
            class Config:
                debug = False
                level = 1
            Config.debug = True
            Config.extra = {"a": [1]}
            def work(): return Config.debug, Config.level, Config.extra
        """)
        for result in self.both(main.work):
            self.assertEqual(result, (True, 1, {"a": [1]}))

    def test_class_with_what_only_its_statement_can_make(self) -> None:
        main = self.program("""
            import threading
            class Guarded:
                lock = threading.Lock()
                def work(self):
                    with self.lock: return 1
            def work(): return Guarded().work()
        """)
        for result in self.both(main.work):
            self.assertEqual(result, 1)

    def test_classes_inside_functions(self) -> None:
        main = self.program("""
            import dataclasses
            def make(step):
                class Base:
                    def get(self): return step
                class Node(Base):
                    __slots__ = ("n",)
                    def __init__(self, n): self.n = n
                    def get(self): return super().get() + 1
                    def next(self): return Node(self.n + self.get())
                @dataclasses.dataclass
                class Point:
                    x: int
                    y: list = dataclasses.field(default_factory=list)
                    def more(self): return Point(self.x + step)
                return lambda: (Node(1).next().n, Point(1).more())
        """)
        for number, point in self.both(main.make(3)):
            self.assertEqual((number, repr(point)), (5, "make.<locals>.Point(x=4, y=[])"))

    def test_classes_without_source(self) -> None:
        main = self.program("""
            import dataclasses, enum
            class Base:
                def get(self): return 1
            class Child(Base):
                def get(self): return super().get() + 1
                @property
                def me(self): return Child
                class Inner:
                    def get(self): return 7
            @dataclasses.dataclass
            class Point:
                x: int
                def more(self): return Point(self.x + 1)
            class Color(enum.Enum):
                RED = 1
            def work():
                return Child().get(), Child().me is Child, Child.Inner().get(), Point(1).more().x, Color.RED.value
        """, file=False)
        self.assertEqual(self.send(main.work)(), (2, True, 7, 2, 1))

    def test_file_that_was_edited_since(self) -> None:
        main = self.program("class Point:\n    def get(self): return 1\ndef work(): return Point().get()")
        Path(main.__file__).write_text(Path(main.__file__).read_text().replace("1", "2"))
        self.assertEqual(self.send(main.work)(), 1)
        self.assertRaisesRegex(CannotShip, "another version of Python.*has changed since", self.send, main.work,
                               OTHER_MAGIC)


class KeyTest(ShippingCase):
    """Keys say what is the same."""

    def test_equal_content_has_one_key(self) -> None:
        main = self.program("def make(n): return lambda x: x + n")
        self.assertEqual(self.packer.function(main.make(1)), self.packer.function(main.make(1)))
        self.assertNotEqual(self.packer.function(main.make(1)), self.packer.function(main.make(2)))

    def test_key_depends_on_what_is_needed_and_in_which_place(self) -> None:
        main = self.program("""
            def one(x): return x
            def join(f, g): return lambda x: f(g(x))
            a, b = (lambda x: x + 1), (lambda x: x * 2)
            both = [join(join(a, b), join(b, a)), join(join(b, a), join(a, b)), join(join(a, b), join(a, b))]
        """)
        self.assertEqual(len({self.packer.function(fn) for fn in main.both}), 3)
        self.assertEqual([self.send(fn)(3) for fn in main.both], [fn(3) for fn in main.both])

    def test_redefined_function_is_new_and_wins(self) -> None:
        main = self.program("def helper(): return 1\ndef work(): return helper()")
        space = Namespace(install=False)
        old, key = main.work, self.packer.function(main.work)
        self.assertEqual(self.send(main.work, space=space)(), 1)
        self.program("def helper(): return 2\ndef work(): return helper()")
        new = sys.modules["__main__"].work
        self.assertNotEqual(self.packer.function(new), key)
        self.assertEqual(self.packer.function(old), key)
        self.assertEqual(self.send(new, space=space)(), 2)

    def test_definitions_come_before_what_needs_them(self) -> None:
        main = self.program("def a(): return 1\ndef b(): return a()\ndef c(): return b()")
        order = self.packer.closure_of(self.packer.function(main.c))
        self.assertEqual(order, [self.packer.function(fn) for fn in (main.a, main.b, main.c)])
        self.assertEqual({len(key) for key in order}, {16})

    def test_known_function_costs_one_call(self) -> None:
        main = self.program("def work(x): return x")
        self.packer.function(main.work)
        self.assertEqual(self.calls(lambda: self.packer.function(main.work)), ["function"])
        self.assertEqual(self.calls(lambda: self.packer.dumps(((1, "a", None), {}))), ["dumps"])

    def calls(self, job: Callable[[], Any]) -> List[str]:
        """Names of the Python functions that a job calls."""
        names: List[str] = []

        def note(frame: Any, event: str, _: Any) -> None:
            if event == "call":
                names.append(frame.f_code.co_name)
        sys.setprofile(note)
        try:
            job()
        finally:
            sys.setprofile(None)
        return names[1:]

    def test_many_functions_do_not_pile_up_in_the_cache(self) -> None:
        main = self.program("def make(n): return lambda: n")
        keys = [self.packer.function(main.make(n % 3)) for n in range(dispycos_lite._REMEMBERED + 10)]
        self.assertEqual(len(set(keys)), 3)
        self.assertEqual(len(self.packer._keys), dispycos_lite._REMEMBERED)


class RefusalTest(ShippingCase):
    """What cannot travel is refused with a sentence that helps."""

    def test_sentences(self) -> None:
        main = self.program("""
            import threading, socket
            lock = threading.Lock()
            stream = open(__file__)
            def uses_lock(): return lock
            def uses_file(): return stream
            def make(what): return lambda: what
            def default(a, b=lock): pass
            def indirect(): return uses_lock()
            class Holder:
                def __init__(self): self.lock = lock
            holder = Holder()
            def uses_holder(): return holder
            class Door:
                def open(self): return lock
            def uses_class(): return Door()
        """)
        self.addCleanup(main.stream.close)
        table = {
            main.uses_lock: r"cannot send 'uses_lock' \(prog.py:5\): its global 'lock' is a _thread.lock; create it",
            main.uses_file: r"'uses_file' \(prog.py:6\): its global 'stream' is a _io.TextIOWrapper; open it inside",
            main.make(main.lock): r"'make.<locals>.<lambda>' \(prog.py:7\): its closure variable 'what' is a _thread",
            main.make(i for i in ()): r"its closure variable 'what' is a generator; pass a list",
            main.make(threading.Thread()): r"variable 'what' is a threading.Thread; start it inside",
            main.default: r"'default' \(prog.py:8\): the default of its parameter 'b' is a _thread.lock",
            main.indirect: r"cannot send 'uses_lock' \(prog.py:5\)",
            main.uses_holder: r"global 'holder' is a __main__.Holder and holds what cannot travel \(.*_thread.lock",
            main.uses_class: r"cannot send 'Door' \(prog.py:14\): its global 'lock' is a _thread.lock",
            functools.partial(len, main.lock): r"cannot send a functools.partial: it .* holds what cannot travel",
        }
        for function, wanted in table.items():
            with self.subTest(wanted):
                self.assertRegex(self.refusal(function), wanted)
        self.assertRegex(self.refusal(5), "cannot send a int as a function")

    def test_compiled_module_of_the_users_tree(self) -> None:
        fast = self.compiled("fast")
        main = self.program("import fast\ndef work(): return fast.run()\n")
        self.assertRegex(self.refusal(main.work), r"'work' \(prog.py:2\): its global 'fast' is module 'fast' .* is")
        self.assertRegex(self.refusal(fast.run), "cannot send 'run' .*module 'fast' .* is compiled, not Python source")

    def compiled(self, name: str) -> Any:
        """A loaded module, with a function `run`, that looks like an extension in the user's tree."""
        path = str(self.temp_dir() / (name + importlib.machinery.EXTENSION_SUFFIXES[0]))
        module: Any = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(
            name, importlib.machinery.ExtensionFileLoader(name, path), origin=path)
        module.__spec__.has_location = True
        module.run = lambda: None
        module.run.__module__, module.run.__qualname__ = name, "run"
        sys.modules[name] = module
        self.addCleanup(sys.modules.pop, name, None)
        return module

    def test_refused_function_can_be_sent_once_it_is_mended(self) -> None:
        main = self.program("""
            import threading
            lock = threading.Lock()
            def helper(): return lock
            def work(): return helper()
        """)
        self.refusal(main.work)
        main.lock = 5
        self.assertEqual(self.send(main.work)(), 5)

    def test_arguments(self) -> None:
        lock = threading.Lock()
        table: List[Tuple[Tuple[Any, ...], Dict[str, Any], str]] = [
            ((1, lock), {}, "cannot send argument 2: it is a _thread.lock; create it inside"),
            ((), {"key": [lock]}, "cannot send argument 'key': it is a list and holds what cannot travel"),
            ((lambda: lock,), {}, "its closure variable 'lock' is a _thread.lock"),
        ]
        for args, kwargs, wanted in table:
            with self.subTest(wanted), self.assertRaisesRegex(CannotShip, wanted):
                self.packer.dumps((args, kwargs))
        self.assertEqual(pickle.loads(self.packer.dumps(((1,), {}))[0]), ((1,), {}))

    def test_no_source_for_another_version(self) -> None:
        main = self.program("def work(): return 1", file=False)
        self.assertEqual(self.send(main.work)(), 1)
        self.assertRaisesRegex(CannotShip, r"cannot send 'work' \(<stdin>:1\) to another version of Python",
                               self.send, main.work, OTHER_MAGIC)

    def test_explanation(self) -> None:
        main = self.program("""
            import json
            class Point: pass
            def work(): return json.dumps(1), Point
        """)
        version = "Python %d.%d" % sys.version_info[:2]
        self.assertEqual(explain_send(main.work), [
            "class 'Point' (prog.py:3) goes bytecode for %s, source text for other versions" % version,
            "function 'work' (prog.py:4) goes bytecode for %s, source text for other versions" % version,
            "    it imports json there, which is not sent"])
        self.assertRegex("".join(explain_send(threading.Lock().acquire)), "^cannot send 'lock.acquire': [^\n]*$")


class PayloadTest(ShippingCase):
    """Arguments and results."""

    def travel(self, space: Namespace, obj: Any) -> Any:
        data, needed = self.packer.dumps(obj)
        for key in needed:
            self.define(space, key)
        return space.loads(data)

    def test_plain_data_is_a_plain_pickle(self) -> None:
        for obj in (((1, "a", None), {}), (([1, 2], {"a": 1}), {"k": (1.5, b"b")}), 5, ((set(),), {})):
            data, needed = self.packer.dumps(obj)
            self.assertEqual((pickle.loads(data), needed), (obj, ()))
            space = Namespace(install=False)
            self.assertEqual((space.loads(memoryview(data)), self.packer.loads(space.dumps(obj))), (obj, obj))

    def test_instances_functions_classes_and_modules_in_arguments(self) -> None:
        main = self.program("""
            class Point:
                def __init__(self, x): self.x = x
                def double(self): return twice(self.x)
            def twice(x): return 2 * x
        """)
        space = Namespace(install=False)
        args, kwargs = self.travel(space, (([main.Point(3)], main.Point, os.path, lambda x: x), {"f": main.twice}))
        self.assertEqual((args[0][0].double(), args[2], kwargs["f"](4)), (6, os.path, 8))
        self.assertIs(type(args[0][0]), args[1])
        self.assertIsNot(args[1], main.Point)
        self.assertIs(args[1], space.main.Point)

    def test_class_is_found_by_an_ordinary_pickle_before_any_job(self) -> None:
        main = self.program("class Point: pass\ndef work(): return Point")
        space = self.define(Namespace(install=False), self.packer.function(main.work))
        message = pickle.dumps(main.Point())
        sys.modules["__main__"] = space.main
        self.assertIs(type(pickle.loads(message)), self.send(main.work, space=space)())
        self.assertFalse(hasattr(space.main, "absent"))

    def test_results_come_back_as_the_clients_own(self) -> None:
        main = self.program("""
            class Point:
                class Inner: pass
            def make():
                class Local: pass
                return Local
            Local = None
            def work(local): return Point(), Point.Inner, work, local(), local
        """)
        local, space = main.make(), Namespace(install=False)
        (there,), _ = self.travel(space, ((local,), {}))
        data = space.dumps(self.send(main.work, space=space)(there))
        point, inner, work, instance, cls = self.packer.loads(memoryview(data))
        self.assertEqual((type(point), inner, work, type(instance), cls),
                         (main.Point, main.Point.Inner, main.work, local, local))

    def test_result_that_does_not_pickle_names_its_type(self) -> None:
        space = Namespace(install=False)
        for result, wanted in ((threading.Lock(), "cannot send the result: it is a _thread.lock"),
                               ((i for i in ()), "the result: it is a generator; pass a list")):
            self.assertRaisesRegex(CannotShip, wanted, space.dumps, result)

    def test_our_own_types_travel_without_a_path(self) -> None:
        space = Namespace(install=False)
        settings = [pycoslite.Settings(net_port=5), pycoslite.Location("127.0.0.1", 5)]
        data = self.packer.dumps(((settings,), {}))[0]
        self.assertNotIn(b"Settings\x94\x93", data)
        self.assertIn(b"@pycoslite:Settings", data)
        self.assertEqual(self.travel(space, ((settings,), {})), ((settings,), {}))
        self.assertEqual(self.packer.loads(space.dumps(settings)), settings)

    def test_broken_definitions(self) -> None:
        main = self.program("def work(): return 1")
        blob = self.packer.blob(self.packer.function(main.work), MAGIC)
        space = Namespace(install=False)
        for broken in (b"", b"x" * 40, blob[:30], blob[:8]):
            self.assertRaises(pycoslite.ProtocolError, space.define, broken)
        self.assertRaisesRegex(pycoslite.PycosError, "has not arrived", space.function, b"k" * 16)


class ExceptionTest(ShippingCase):
    """Exceptions on their way back."""

    def raised(self, function: Callable, *args: Any) -> BaseException:
        """What the client gets of an exception at a server."""
        space = Namespace(install=False)
        try:
            self.send(function, space=space)(*args)
        except BaseException as error:
            return self.packer.unpack_exception(space.pack_exception(error))
        raise AssertionError("nothing was raised")

    def test_own_type_with_attributes_and_traceback(self) -> None:
        main = self.program("""
            class Trouble(Exception):
                def __init__(self, code, text):
                    super().__init__(code, text)
                    self.code = code
            def work():
                raise Trouble(3, "three")
        """)
        error: Any = self.raised(main.work)
        self.assertEqual((type(error), error.code, error.args), (main.Trouble, 3, (3, "three")))
        self.assertIsInstance(error.__cause__, RemoteTraceback)
        self.assertIn('File "<client>/prog.py", line 7, in work\n    raise Trouble(3, "three")\n', str(error.__cause__))

    def test_types_that_do_not_travel_arrive_as_text(self) -> None:
        main = self.program("""
            import sys, threading
            class Picky(Exception):
                def __init__(self, a, b): super().__init__(a)
            class Leaving(Exception):
                def __init__(self, *args):
                    if not args: sys.exit(3)
                def __reduce__(self): return Leaving, ()
            class Mute(Exception):
                def __str__(self): raise ValueError
                def __reduce__(self): raise ValueError
            def picky(): raise Picky(1, 2)
            def leaving(): raise Leaving(1)
            def mute(): raise Mute()
            def locked(): raise ValueError(threading.Lock())
            def hidden():
                class Hidden(Exception): pass
                raise Hidden("text")
        """)
        table = {main.picky: "__main__.Picky: 1", main.leaving: "__main__.Leaving: 1", main.mute: "__main__.Mute: <its",
                 main.locked: "ValueError: <unlocked", main.hidden: "__main__.hidden.<locals>.Hidden: text"}
        for function, text in table.items():
            with self.subTest(text):
                error = self.raised(function)
                self.assertIsInstance(error, RemoteError)
                self.assertTrue(str(error).startswith(text), str(error))
                self.assertIn("in " + function.__name__, str(error.__cause__))

    def test_error_while_a_class_is_built(self) -> None:
        main = self.program("""
            import os
            class Broken:
                if "SHIPPING_TEST" in os.environ:
                    raise ValueError("only there")
            def work(): return Broken()
        """)
        os.environ["SHIPPING_TEST"] = "1"
        self.addCleanup(os.environ.pop, "SHIPPING_TEST")
        error = self.raised(main.work)
        self.assertEqual((type(error), error.args), (ValueError, ("only there",)))
        self.assertNotIn("During handling", str(error.__cause__))
        self.assertIn('    raise ValueError("only there")\n', str(error.__cause__))

    def test_systemexit_is_an_exception_like_any_other(self) -> None:
        main = self.program("def work(): raise SystemExit(4)")
        self.assertEqual(self.raised(main.work).code, 4)


class ProcessTest(TestCase):
    """A whole program, its modules and a server process, of the same and of another Python."""

    here = sys.executable

    def start(self, command: List[str], directory: Path, stdin: str = "") -> str:
        """Run a client and return what it printed."""
        environment = dict(os.environ, PYTHONPATH=str(ROOT), PYTHONDONTWRITEBYTECODE="1")
        ended = subprocess.run(command, cwd=str(directory), env=environment, input=stdin, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, timeout=100)
        return ended.stdout

    def tree(self) -> Path:
        """A fresh copy of the user's program."""
        directory = self.temp_dir() / "tree"
        shutil.copytree(str(PROGRAM), str(directory), ignore=shutil.ignore_patterns("__pycache__"))
        return directory

    def assert_program(self, output: str, name: str = "prog.py") -> None:
        """The program printed what it should."""
        wanted = (PROGRAM / "output.txt").read_text(encoding="utf-8").replace("prog.py", name)
        self.assertEqual(output, wanted)

    def test_same_python(self) -> None:
        self.assert_program(self.start([self.here, "prog.py", self.here], self.tree()))

    def others(self) -> List[Any]:
        """The oldest and the newest of the other Pythons."""
        found = interpreters()
        if not found:
            self.skipTest("no other CPython from 3.8 up in PATH or among pyenv's")
        return sorted({found[0], found[-1]})

    def test_server_of_another_python(self) -> None:
        for other in self.others():
            with self.subTest(server=other.version):
                self.assert_program(self.start([self.here, "prog.py", other.path], self.tree()))

    def test_client_of_another_python(self) -> None:
        for other in self.others():
            with self.subTest(client=other.version):
                self.assert_program(self.start([other.path, "prog.py", self.here], self.tree()))

    def test_run_as_module(self) -> None:
        self.assert_program(self.start([self.here, "-m", "prog", self.here], self.tree()))

    def test_run_from_a_zip(self) -> None:
        tree = self.tree()
        with zipfile.ZipFile(str(tree.parent / "prog.zip"), "w") as archive:
            for path in tree.rglob("*.py"):
                name = path.relative_to(tree).as_posix()
                archive.write(str(path), "__main__.py" if name == "prog.py" else name)
        self.assert_program(self.start([self.here, "prog.zip", self.here], tree.parent), "__main__.py")

    TYPED = """
import sys, dispycos_lite
from tests.shipping_peer import Server
class Base:
    def get(self): return 1
class Child(Base):
    def get(self): return super().get() + 1
def work(n): return Child().get() + n, sorted([1, 2], key=lambda item: -item)
with Server(sys.argv[1], dispycos_lite) as server:
    try:
        print(server.call(work, 5))
    except dispycos_lite.CannotShip as error:
        print(error)
"""

    def test_typed_in(self) -> None:
        for command, stdin in (([self.here, "-c", self.TYPED], ""), ([self.here, "-"], self.TYPED)):
            with self.subTest(command[1]):
                self.assertEqual(self.start(command + [self.here], self.temp_dir(), stdin), "(7, [2, 1])\n")

    def test_typed_in_for_another_python(self) -> None:
        output = self.start([self.here, "-", self.others()[0].path], self.temp_dir(), self.TYPED)
        self.assertRegex(output, r"^cannot send '[\w.]+' \(<stdin>:\d\) to another version of Python: .*\n$")

    def test_vendored(self) -> None:
        vendor = self.temp_dir() / "app" / "_vendor"
        vendor.mkdir(parents=True)
        for name in MODULES[:2]:
            shutil.copy(str(ROOT / (name + ".py")), str(vendor))
        for folder in (vendor, vendor.parent):
            (folder / "__init__.py").write_text("")
        (vendor.parent / "side.py").write_text("from ._vendor import pycoslite\ndef name(): return pycoslite.__name__\n")
        (vendor.parent / "main.py").write_text(textwrap.dedent("""
            import sys
            from . import side
            from ._vendor import dispycos_lite, pycoslite
            from tests.shipping_peer import Server
            def work(error):
                from .side import name
                import app._vendor.pycoslite as again
                return name(), side.name(), again is pycoslite, type(error).__module__, error
            with Server(sys.argv[1], dispycos_lite) as server:
                *names, error = server.call(work, pycoslite.PeerLost("text"))
                print(names, type(error) is pycoslite.PeerLost)
        """))
        self.assertEqual(self.start([self.here, "-m", "app.main", self.here], vendor.parent.parent),
                         "['pycoslite', 'pycoslite', True, 'pycoslite'] True\n")
