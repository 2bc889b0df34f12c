"""House rules that a machine can check: sections, layers, one place per concern, importing is free, copying installs.

The tables at the top are the rules; an exception is an entry in a table, with its reason beside it.
"""
from __future__ import annotations

import ast
import builtins
import functools
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Set, Tuple

from tests.support import MODULES, ROOT, TestCase

PRESENT = tuple(name for name in MODULES if (ROOT / (name + ".py")).exists())

# Ours that a module may import: the layers, lowest first.
MAY_IMPORT: Dict[str, Set[str]] = {
    "pycoslite": set(),
    "dispycos_lite": {"pycoslite"},
    "dispycosnode_lite": {"pycoslite", "dispycos_lite"},
    "httpd_lite": {"pycoslite", "dispycos_lite"},
}

# Outside the standard library, used only when it happens to be installed.
OPTIONAL_IMPORTS = {"psutil"}

# What a section marked "pure" may not name: the world comes in as arguments.
IMPURE = {"socket", "select", "selectors", "threading", "time", "os", "random", "secrets", "subprocess", "open"}
PURE_EXCEPTIONS: Set[Tuple[str, str, str]] = set()          # (module, section, name)

# Concern: (module, section) of every place that may name it.
ONE_PLACE: Dict[str, Set[Tuple[str, str]]] = {
    "pickle": {("pycoslite", "Wire format (pure)"), ("dispycos_lite", "Code shipping")},
    "marshal": {("dispycos_lite", "Code shipping")},
    "exec": {("dispycos_lite", "Code shipping"),
             ("pycoslite", "Command line")},                    # runs the program it was given
    "eval": set(),
    "hmac": {("pycoslite", "Handshake (pure)"),
             ("pycoslite", "Wire format (pure)")},              # compares the MAC of a record
}

# Sections that are a program's face, where print() is the output; elsewhere only main() prints.
PRINTING = {("pycoslite", "Command line"), ("dispycos_lite", "Scheduler program"),
            ("dispycosnode_lite", "Console and main()")}

# (module, section, name from a later section): references upwards that are registration or unavoidable.
UPWARD_EXCEPTIONS: Set[Tuple[str, str, str]] = {
    ("pycoslite", "Requests and tasks", "default_kernel"),      # Task(...) outside every kernel starts that one
}

LINE_LENGTH = 120
RULE = "# " + "=" * (LINE_LENGTH - 2)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SCOPES = FUNCTIONS + (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Section(NamedTuple):
    """One part of a module between two banners."""

    number: int
    title: str
    line: int


class Source:
    """One module: text, tree and sections."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = ROOT / (name + ".py")
        self.text = self.path.read_text(encoding="utf-8")
        self.lines = self.text.splitlines()
        self.tree = ast.parse(self.text)
        self.sections = list(self._banners())

    def _banners(self) -> Iterator[Section]:
        for index in range(1, len(self.lines) - 1):
            found = re.match(r"# (\d+)\. (\S+(?: \S+)*)", self.lines[index])
            if found and self.lines[index - 1] == RULE == self.lines[index + 1]:
                yield Section(int(found.group(1)), found.group(2), index + 1)

    def section(self, line: int) -> Section:
        """The section that holds `line`; number 0 for what stands above the first banner."""
        return next((s for s in reversed(self.sections) if s.line <= line), Section(0, "", 0))

    def where(self, node: ast.AST) -> str:
        """Text for a failure message: file, line, section."""
        section = self.section(node.lineno)
        return "%s:%d (section %d. %s)" % (self.path.name, node.lineno, section.number, section.title)


source = functools.lru_cache(maxsize=None)(Source)


def named(tree: ast.AST) -> Iterator[Tuple[str, ast.AST]]:
    """Every plain name that is read in `tree`, annotations left out (they are never evaluated)."""
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id, node
        for field, value in ast.iter_fields(node):
            if field not in ("annotation", "returns"):
                stack.extend(v for v in (value if isinstance(value, list) else [value]) if isinstance(v, ast.AST))


def bound_in(scope: ast.AST) -> Set[str]:
    """Names that are local to a function, lambda or comprehension."""
    found: Set[str] = set()
    for node in ast.walk(scope):
        if isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
            found.add(node.id)
        elif isinstance(node, FUNCTIONS + (ast.ClassDef,)) and node is not scope:
            found.add(node.name)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            found.add(node.name)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).split(".")[0])
    return found


def globals_read(tree: ast.AST, hidden: Set[str] = frozenset()) -> Iterator[Tuple[str, ast.AST]]:
    """Like `named`, without the names that a function around them binds itself."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, SCOPES):
            declared = {n for g in ast.walk(child) if isinstance(g, ast.Global) for n in g.names}
            yield from globals_read(child, hidden | (bound_in(child) - declared))
        elif isinstance(child, ast.Name):
            if isinstance(child.ctx, ast.Load) and child.id not in hidden:
                yield child.id, child
        else:
            yield from globals_read(child, hidden)


def imported_names(tree: ast.AST) -> Iterator[Tuple[str, int, ast.AST]]:
    """(top-level name of what is imported, level of a relative import, node) for every import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], 0, node
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0], node.level, node
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.name, node.level, node


def definitions(tree: ast.Module) -> Iterator[Tuple[str, ast.AST]]:
    """Names that the module itself defines at its top level, below any `if` or `try`."""
    stack: List[ast.AST] = list(reversed(tree.body))
    while stack:
        node = stack.pop()
        if isinstance(node, FUNCTIONS + (ast.ClassDef,)):
            yield node.name, node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield from ((n.id, node) for n in ast.walk(target)
                            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            stack.extend(reversed(list(ast.iter_child_nodes(node))))
        elif isinstance(node, ast.ExceptHandler):
            stack.extend(reversed(node.body))


class SourceTest(TestCase):
    """What the source looks like."""

    def check(self, wrong: List[str]) -> None:
        if wrong:
            self.fail("\n  ".join(["%d places:" % len(wrong)] + sorted(set(wrong))))

    def each(self) -> Iterator[Source]:
        for name in PRESENT:
            yield source(name)

    def test_modules_are_known(self):
        self.assertIn("pycoslite", PRESENT)
        found = {path.stem for path in ROOT.glob("*.py")}
        self.assertEqual(found, set(PRESENT))

    def test_docstring_map_equals_banners(self):
        for module in self.each():
            with self.subTest(module.name):
                listed = re.findall(r"^ {4,5}(\d+)\. (\S.*)$", ast.get_docstring(module.tree, clean=False) or "", re.M)
                self.assertEqual([(str(s.number), s.title) for s in module.sections], listed)
                self.assertEqual([s.number for s in module.sections], list(range(1, len(listed) + 1)))
                self.assertGreater(len(listed), 1)

    def test_every_full_rule_belongs_to_a_banner(self):
        for module in self.each():
            rules = sum(line.startswith("# ====") for line in module.lines)
            self.assertEqual(rules, 2 * len(module.sections), module.name)

    def test_lines_are_not_too_long(self):
        self.check(["%s:%d" % (module.path.name, number) for module in self.each()
                    for number, line in enumerate(module.lines, 1) if len(line) > LINE_LENGTH])

    def test_imports_are_standard_or_ours(self):
        standard = set(getattr(sys, "stdlib_module_names", ())) | {"__future__"}
        if len(standard) == 1:
            self.skipTest("this Python does not list its standard library (3.10 does)")
        self.check(["%s imports %s" % (module.where(node), name) for module in self.each()
                    for name, level, node in imported_names(module.tree)
                    if name not in standard | OPTIONAL_IMPORTS | set(MODULES)])

    def test_imports_of_ours_go_downwards(self):
        self.check(["%s imports %s" % (module.where(node), name) for module in self.each()
                    for name, level, node in imported_names(module.tree)
                    if (level or name in MODULES) and name not in MAY_IMPORT[module.name]])

    def test_no_private_name_of_another_module(self):
        self.check(["%s uses %s.%s" % (module.where(node), node.value.id, node.attr) for module in self.each()
                    for node in ast.walk(module.tree)
                    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
                    and node.value.id in MODULES and re.match(r"_(?!_)", node.attr)])

    def test_no_section_uses_a_later_one(self):
        for module in self.each():
            home = {name: module.section(node.lineno) for name, node in reversed(list(definitions(module.tree)))}
            with self.subTest(module.name):
                self.check([
                    "%s uses %s of section %d" % (module.where(node), name, home[name].number)
                    for name, node in globals_read(without_annotations(module.text))
                    if name in home and home[name].number > module.section(node.lineno).number
                    and (module.name, module.section(node.lineno).title, name) not in UPWARD_EXCEPTIONS])

    def test_pure_sections_are_pure(self):
        self.check(["%s names %s" % (module.where(node), name) for module in self.each()
                    for name, node in named(module.tree)
                    if name in IMPURE and "(pure)" in module.section(node.lineno).title
                    and (module.name, module.section(node.lineno).title, name) not in PURE_EXCEPTIONS])

    def test_one_place_per_concern(self):
        self.check(["%s uses %s" % (module.where(node), name) for module in self.each()
                    for name, node in named(module.tree)
                    if name in ONE_PLACE and (module.name, module.section(node.lineno).title) not in ONE_PLACE[name]])

    def test_concerns_are_imported_under_their_own_name(self):
        """Otherwise the test above would look for the wrong name."""
        self.check(["%s" % module.where(node) for module in self.each() for node in ast.walk(module.tree)
                    if isinstance(node, ast.Import) and any(a.name in ONE_PLACE and a.asname for a in node.names)
                    or isinstance(node, ast.ImportFrom) and node.module in ONE_PLACE])

    def test_only_programs_print(self):
        for module in self.each():
            allowed = [node for node in ast.walk(module.tree) if isinstance(node, FUNCTIONS) and node.name == "main"]
            self.check([module.where(node) for name, node in named(module.tree) if name == "print"
                        and (module.name, module.section(node.lineno).title) not in PRINTING
                        and not any(f.lineno <= node.lineno <= f.end_lineno for f in allowed)])

    def test_no_name_is_defined_twice(self):
        """Sections are many, names short, and the second one would be used in the place of the first."""
        for module in self.each():
            seen: Dict[str, ast.AST] = {}
            for name, node in definitions(module.tree):
                first = seen.setdefault(name, node)
                with self.subTest(name):
                    self.assertTrue(first is node or node not in module.tree.body,
                                    "%s defines %s, and so does line %d" % (module.where(node), name, first.lineno))

    def test_no_builtin_is_replaced(self):
        self.check(["%s defines %s" % (module.where(node), name) for module in self.each()
                    for name, node in definitions(module.tree) if hasattr(builtins, name)])

    def test_public_names_are_documented(self):
        for module in self.each():
            classes = {node.name: node for node in module.tree.body if isinstance(node, ast.ClassDef)}
            places = [(node, None) for node in module.tree.body]
            places += [(node, owner) for owner in classes.values() for node in owner.body]
            with self.subTest(module.name):
                self.check(["%s: %s%s" % (module.where(node), owner.name + "." if owner else "", node.name)
                            for node, owner in places
                            if isinstance(node, FUNCTIONS + (ast.ClassDef,)) and not node.name.startswith("_")
                            and not (owner and owner.name.startswith("_"))
                            and not documented(node, owner, classes)])


def documented(node: ast.AST, owner: ast.ClassDef, classes: Dict[str, ast.ClassDef]) -> bool:
    """Whether a definition, or what it overrides in a base class of the same module, has a docstring."""
    if ast.get_docstring(node):
        return True
    bases = [base.id for base in (owner.bases if owner else ()) if isinstance(base, ast.Name) and base.id in classes]
    return any(documented(child, classes[base], classes) for base in bases for child in classes[base].body
               if isinstance(child, FUNCTIONS) and child.name == node.name)


def without_annotations(text: str) -> ast.Module:
    """The tree of `text` with the annotations taken out, which `from __future__ import annotations` never evaluates."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, FUNCTIONS):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(value=None, lineno=node.lineno, col_offset=0)
    return tree


STATE = """
import importlib, logging, os, signal, sys, threading
def state():
    package = logging.getLogger("pycoslite")
    return {
        "threads": threading.active_count(),
        "descriptors": sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else [],
        "signal handlers": [signal.getsignal(n) for n in sorted(signal.Signals)],
        "wake-up descriptor": signal.set_wakeup_fd(-1),
        "root logger": (logging.root.level, list(logging.root.handlers), logging.root.disabled),
        "own logger": (package.level, package.propagate,
                       [h for h in package.handlers if type(h) is not logging.NullHandler]),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.displayhook, sys.stdin, sys.stdout),
        "sys.path": list(sys.path), "directory": os.getcwd(), "environment": dict(os.environ),
        "files": sorted(os.listdir(os.path.expanduser("~"))), "switch interval": sys.getswitchinterval(),
        "main module": sys.modules["__main__"],
    }
before = state()
module = importlib.import_module(sys.argv[1])
after = state()
changed = [name for name in before if before[name] != after[name]]
assert not changed, [(name, before[name], after[name]) for name in changed]
print("imported from", module.__file__)
"""


class ImportTest(TestCase):
    """Importing starts nothing, and works wherever the files lie."""

    def python(self, code: str, cwd: Path, *options: str, args: Tuple[str, ...] = ()) -> str:
        done = subprocess.run([sys.executable, *options, "-c", code, *args], cwd=str(cwd), text=True, timeout=100,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout

    def copied(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name in PRESENT:
            shutil.copy(str(ROOT / (name + ".py")), str(folder))
        return folder

    def test_importing_starts_nothing(self):
        for name in PRESENT:
            with self.subTest(name):
                self.python(STATE, ROOT, args=(name,))

    def test_importing_with_warnings_as_errors(self):
        for name in PRESENT:
            with self.subTest(name):
                self.python("import " + name, self.copied(self.temp_dir()), "-Werror", "-bb")

    def test_copied_alone_into_an_empty_directory(self):
        folder = self.copied(self.temp_dir())
        for name in PRESENT:
            with self.subTest(name):
                self.assertIn(str(folder / name), self.python(STATE, folder, "-E", "-s", "-S", args=(name,)))

    def test_vendored_in_a_package(self):
        self.check_vendored(self.vendored(), "")

    def test_vendored_in_a_zip_file(self):
        self.check_vendored(self.temp_dir(), "sys.path.insert(0, %r)" % str(self.zipped(self.vendored())))

    def vendored(self) -> Path:
        folder = self.temp_dir()
        self.copied(folder / "theirpkg" / "_vendor")
        for package in ("theirpkg", "theirpkg/_vendor"):
            (folder / package / "__init__.py").write_text("")
        return folder

    def check_vendored(self, cwd: Path, first: str) -> None:
        for name in PRESENT:
            with self.subTest(name):
                code = "import sys\n%s\nimport theirpkg._vendor.%s\n" % (first, name)
                code += "plain = [m for m in %r if m in sys.modules]\nassert not plain, plain" % (PRESENT,)
                self.python(code, cwd, "-E", "-s", "-S")

    def test_from_a_zip_file(self):
        archive, elsewhere = self.zipped(self.copied(self.temp_dir())), self.temp_dir()
        for name in PRESENT:
            with self.subTest(name):
                where = self.python("import sys; sys.path.insert(0, %r); import %s as m; print(m.__file__)" % (
                    str(archive), name), elsewhere, "-E", "-s", "-S")
                self.assertIn(str(archive), where)

    def zipped(self, folder: Path) -> Path:
        archive = self.temp_dir() / "all.zip"
        with zipfile.ZipFile(str(archive), "w") as file:
            for path in sorted(folder.rglob("*.py")):
                file.write(str(path), str(path.relative_to(folder)))
        return archive
