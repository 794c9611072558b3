"""Makes ``metastore/client/blocking`` from the client for asyncio: signatures, types, docstrings and delegation.

``python -m tests.twins`` writes the files (``make fix`` does), ``--check`` says whether they are up to date (``make check``
does). What cannot be made is by hand, in ``portal.py`` (the thread with the loop) and ``bases.py`` (iteration, and what a lock
looks up without the loop). How a member is made follows from its kind:

- a coroutine is called in the loop, and its result waited for; a result that has a twin is wrapped in it;
- ``__aenter__``, ``__aexit__`` and what ``REWRITTEN`` names keep their bodies, without ``await``;
- another asynchronous generator is iterated through the loop;
- a plain method or property runs in the loop, unless ``DIRECT`` names it: what only reads an attribute, or appends to a list;
- ``BODIES`` has the bodies that call what is by hand (``arguments``: the method's own, passed on).
"""

from __future__ import annotations

import ast
import copy
import inspect
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
CLIENT: Final = "metastore.client"
BLOCKING: Final = f"{CLIENT}.blocking"
DOC_WIDTH: Final = 100
HEADER: Final = "{doc}\n\nMade from ``{source}`` by ``make fix``: change that, or ``tests/twins.py``."

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Twin:
    """A class that is made. ``source``: the module of the one for asyncio below ``metastore.client``; its last part is the module of
    this one below ``blocking``. ``base``: by hand,
    or made. ``wraps``: it is made of one for asyncio, whose public attributes it has. ``without``: members that are not for
    users, or that the base has. ``note``: a paragraph that its docstring has at the end, in place of ``instead_of`` (the beginning of the
    paragraph that is for asyncio only)."""

    source: str
    name: str
    base: str
    wraps: bool = False
    without: frozenset[str] = frozenset()
    note: str = ""
    instead_of: str = ""


TWINS: Final = (
    Twin("leasing", "Lease", "HeldBase", without=frozenset({"__init__", "__repr__", "looks_held", "leave"})),
    Twin(
        "locks",
        "AsyncLock",
        "Held",
        wraps=True,
        note="Between threads of one process use one object each, or a ``threading.Lock`` as well: an object is held once.",
    ),
    Twin("elections", "AsyncLeadership", "Held", wraps=True),
    Twin("elections", "AsyncElection", "Bound", wraps=True),
    Twin(
        "watch.watcher",
        "AsyncWatcher",
        "WatcherBase[T]",
        without=frozenset({"__init__"}),
        note="``close`` may be called from any thread.",
    ),
    Twin("records", "AsyncRecords", "RecordsBase[T]", without=frozenset({"until", "write"})),
    Twin("namespace", "AsyncNamespace", "Records[T]"),
    Twin(
        "client",
        "AsyncClient",
        "ClientBase",
        note="One client serves any number of threads. Its event loop runs in a daemon thread, which starts with the first call. "
        "One that is forgotten is closed when it is collected, and at exit. May be made before a fork (a server that preloads): "
        "the child starts its own thread, with connections and request ids of its own; watchers, locks and leaderships "
        "stay the parent's.",
        instead_of="One client serves",
    ),
)

#: what a class is called in blocking code, where that is not its name without ``Async``
RENAMED: Final = {"Lease": "Held", "AsyncIterator": "Iterator"}
PROTOCOLS: Final = {
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
}
REWRITTEN: Final = {
    *PROTOCOLS,
    "AsyncRecords.__init__",
    "AsyncRecords.__repr__",
    "AsyncRecords.scan",
    "AsyncElection.__repr__",
    "AsyncClient.namespace",
}
DIRECT: Final = {
    "Lease.token",
    "Lease.fence",
    "Lease.remaining_s",
    "Lease.on_at_risk",
    "Lease.on_lost",
    "AsyncWatcher.waiting",
}
BODIES: Final = {
    "AsyncClient.__init__": "super().__init__(lambda: AsyncClient({arguments}))",
    "AsyncClient.close": "self._portal.close()",
    "AsyncWatcher.__anext__": "return self._take()",
    "Lease.held": "return self._looks_held()",
    "Lease.check": "self._check()",
}
#: what docstrings say of asyncio, and of threads; each is used
WORDS: Final = {
    "an async context manager": "a context manager",
    "An async iterator": "An iterator",
    "``async with``": "``with``",
    "another task waits": "another thread waits",
    "It runs in the event loop: be short.": "It runs in the client's thread: be short, and do not call the client.",
    "The Python client, asynchronous": "The Python client, for threads",
    "The operations on the records of a namespace, asynchronous: the client's and the router's way in.": "The operations on the records of a namespace, for threads.",
    "A namespace, asynchronous": "A namespace, for threads",
    "are events to wait for": "are events (``threading.Event``) to wait for",
}


#: names of a module that its twin has of its own, or has no use for
NOT_IMPORTED: Final = {"T", "R", "log", "__all__", "Namespace"}


class NotMade(Exception):
    """The generator does not know how to make something; the text says what, and where to say it."""


MADE: Final = {twin.name for twin in TWINS}
_used_words: set[str] = set()


def twin_name(name: str) -> str:
    return RENAMED.get(name, name.removeprefix("Async") if name in MADE else name)


def module_of(source: str) -> str:
    """The module below ``blocking`` that is made of one below ``metastore.client``."""
    return source.rpartition(".")[2]


def for_threads(doc: str) -> str:
    """A docstring, or a part of one, in the words of threads."""
    for before, after in WORDS.items():
        pattern = r"\s+".join(map(re.escape, before.split()))
        doc, count = re.subn(pattern, after.replace("\\", r"\\"), doc)
        if count:
            _used_words.add(before)
    return re.sub(r"\bAsync(?=[A-Z])", "", doc)


def wrapped(paragraphs: list[str]) -> str:
    fill = textwrap.TextWrapper(DOC_WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n\n".join(fill.fill(p) for p in paragraphs)


def docstring(node: ast.AST) -> list[str]:
    """The paragraphs of a docstring, for threads."""
    assert isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    raw = ast.get_docstring(node)
    if raw is None:
        return []
    return [" ".join(for_threads(p).split()) for p in re.split(r"\n\s*\n", inspect.cleandoc(raw))]


class Rewriter(ast.NodeTransformer):
    """Asyncio's syntax and names to those of threads."""

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        made = ast.FunctionDef(
            **{f: getattr(node, f) for f in node._fields}, lineno=node.lineno, col_offset=node.col_offset
        )
        return self.visit_FunctionDef(made)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name = PROTOCOLS.get(node.name, node.name)
        return self.generic_visit(node)

    def visit_Await(self, node: ast.Await) -> ast.AST:
        return self.visit(node.value)  # type: ignore[no-any-return]

    def visit_AsyncWith(self, node: ast.AsyncWith) -> ast.AST:
        return self.generic_visit(ast.With(node.items, node.body, lineno=node.lineno))

    def visit_AsyncFor(self, node: ast.AsyncFor) -> ast.AST:
        return self.generic_visit(ast.For(node.target, node.iter, node.body, node.orelse, lineno=node.lineno))

    def visit_Name(self, node: ast.Name) -> ast.AST:
        name = {"dispatcher": "portal", "Dispatcher": "Portal"}.get(node.id, twin_name(node.id))
        return ast.copy_location(ast.Name(name, node.ctx), node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.arg = "portal" if node.arg == "dispatcher" else node.arg
        return self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        node.attr = "_portal" if node.attr == "dispatcher" else PROTOCOLS.get(node.attr, node.attr)
        return self.generic_visit(node)


def rewritten(node: Function) -> ast.FunctionDef:
    made = Rewriter().visit(copy.deepcopy(node))
    assert isinstance(made, ast.FunctionDef)
    return made


def decorators(node: Function) -> set[str]:
    return {d.id for d in node.decorator_list if isinstance(d, ast.Name)}


def passed_on(node: Function) -> str:
    """The parameters of a method as arguments of its namesake."""
    a = node.args
    if a.vararg or a.kwarg or a.posonlyargs:
        raise NotMade(f"{node.name}: parameters of this kind are not passed on; write a body in BODIES")
    plain = [p.arg for p in a.args if p.arg != "self"]
    return ", ".join([*plain, *(f"{p.arg}={p.arg}" for p in a.kwonlyargs)])


def is_generator(node: Function) -> bool:
    return any(isinstance(n, ast.Yield) for n in ast.walk(node))


def result_twin(node: Function) -> str | None:
    """The twin that wraps the result, if it has one."""
    for_tasks = node.returns.value if isinstance(node.returns, ast.Subscript) else node.returns
    return twin_name(for_tasks.id) if isinstance(for_tasks, ast.Name) and for_tasks.id in MADE else None


def body(qualified: str, node: Function) -> str:
    """What a member that delegates does."""
    if qualified in BODIES:
        return BODIES[qualified].format(arguments=passed_on(node))
    call = node.name if "property" in decorators(node) else f"{node.name}({passed_on(node)})"
    wrapper, kept = result_twin(node), "inner = self._inner\n"
    if isinstance(node, ast.AsyncFunctionDef):
        if is_generator(node):
            return f"return iterate(self, self._inner.{call})"
        found = f"self._call(lambda: inner.{call})"
    elif wrapper is not None or qualified in DIRECT:
        kept, found = "", f"self._inner.{call}"
    else:
        found = f"self._look(lambda: inner.{call})"
    if wrapper is not None:
        return f"{kept}return {wrapper}(self._portal, {found})"
    nothing = isinstance(node.returns, ast.Constant) and node.returns.value is None
    return f"{kept}{'' if nothing else 'return '}{found}"


def with_body(node: ast.FunctionDef, paragraphs: list[str], text: str | None) -> ast.FunctionDef:
    """``node`` with a docstring for threads, and a body from text (None = its own)."""
    has_doc = ast.get_docstring(node) is not None
    statements = node.body[has_doc:] if text is None else ast.parse(text).body
    if paragraphs:
        doc = textwrap.indent(wrapped(paragraphs), " " * 8).strip()
        statements = [ast.Expr(ast.Constant(doc)), *statements]
    node.body = statements
    return node


def member(cls: str, node: Function) -> ast.FunctionDef:
    qualified, paragraphs = f"{cls}.{node.name}", docstring(node)
    made = rewritten(node)
    keeps_body = {node.name, qualified} & REWRITTEN and qualified not in BODIES
    if keeps_body or "overload" in decorators(node):
        return with_body(made, paragraphs, None)
    return with_body(made, paragraphs, body(qualified, node))


def constructor(cls: str, node: Function, of_t: str) -> ast.FunctionDef:
    """``__init__`` of a class that wraps one for asyncio. Its public attributes are the other's."""
    lines = [
        f"def __init__(self, portal: Portal, inner: {cls}{of_t}) -> None:",
        "super().__init__(portal, inner)",
    ]
    for statement in node.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Attribute):
            name = statement.targets[0].attr
            if not name.startswith("_"):
                lines.append(f"self.{name} = inner.{name}")
    made = ast.parse("\n    ".join(lines)).body[0]
    assert isinstance(made, ast.FunctionDef)
    return made


def comments_above(lines: list[str], node: Function) -> str:
    """The heading of a section, if the member is its first."""
    at = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 2
    while at >= 0 and not lines[at].strip():
        at -= 1
    return f"{lines[at].strip()}\n\n" if lines[at].strip().startswith("# ---") else ""


def class_docstring(twin: Twin, cls: ast.ClassDef) -> str:
    found = docstring(cls)
    kept = [p for p in found if not (twin.instead_of and p.startswith(twin.instead_of))]
    if twin.instead_of and kept == found:
        raise NotMade(f"{twin.name}: no paragraph begins with {twin.instead_of!r}; look at TWINS")
    return wrapped([*kept, *filter(None, [twin.note])])


def class_text(twin: Twin, cls: ast.ClassDef, lines: list[str]) -> str:
    of_t = "[T]" if any("[T]" in ast.unparse(b) for b in cls.bases) else ""
    parts = [f'"""{class_docstring(twin, cls)}"""']
    if twin.wraps:
        parts.append(f"_inner: {twin.name}{of_t}")
    for node in cls.body:
        if not isinstance(node, Function) or node.name in twin.without:
            continue
        if node.name == "__init__" and twin.wraps:
            made = constructor(twin.name, node, of_t)
        elif node.name.startswith("_") and not node.name.endswith("__"):
            continue
        else:
            made = member(twin.name, node)
        parts.append(comments_above(lines, node) + ast.unparse(made))
    head = f"class {twin_name(twin.name)}({twin.base}{', Generic[T]' if of_t and of_t not in twin.base else ''}):\n"
    return head + textwrap.indent("\n\n".join(parts), " " * 4)


def imports(source: str, tree: ast.Module) -> list[str]:
    """Everything that the twin may need; the linter drops what it does not."""
    found = [f"from {BLOCKING}.portal import Portal", f"from {BLOCKING}.bases import iterate"]
    made = {twin_name(t.name) for t in TWINS}
    bases = {t.base.removesuffix("[T]") for t in TWINS}
    found += [f"from {BLOCKING}.bases import {base}" for base in sorted(bases - made)]
    found += [
        f"from {BLOCKING}.{module_of(t.source)} import {twin_name(t.name)}"
        for t in TWINS
        if t.source != source
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module != "__future__":
            for name in node.names:
                if name.name != "TYPE_CHECKING":
                    found.append(ast.unparse(ast.ImportFrom(node.module, [name], node.level)))
        elif isinstance(node, ast.Import):
            found.append(ast.unparse(node))
    found += [f"from {CLIENT}.{source} import {name}" for name in defined(tree)]
    return [*found, "from collections.abc import Iterator"]


def defined(tree: ast.Module) -> list[str]:
    """What a module defines and a twin may name: classes, functions, constants, types."""
    found: list[str] = []
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef):
            found.append(statement.name)
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            found.append(statement.target.id)
        elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            found.append(statement.targets[0].id)
    return [name for name in found if name not in NOT_IMPORTED]


def type_variables(tree: ast.Module, text: str) -> str:
    return "".join(
        ast.unparse(s) + "\n"
        for s in tree.body
        if isinstance(s, ast.Assign)
        and isinstance(s.targets[0], ast.Name)
        and s.targets[0].id == "T"
        and "[T]" in text
    )


def tidy(text: str, name: str) -> str:
    """Without imports that are not needed, and formatted."""
    ruff = [sys.executable, "-m", "ruff"]
    fix = [
        "check",
        "--quiet",
        "--fix-only",
        "--unsafe-fixes",
        "--select",
        "I,F401,F811,UP028",
        "--stdin-filename",
        name,
        "-",
    ]
    for arguments in (fix, ["format", "--quiet", "--stdin-filename", name, "-"]):
        done = subprocess.run(
            [*ruff, *arguments], input=text, capture_output=True, text=True, cwd=ROOT, check=False
        )
        if done.returncode:
            raise NotMade(f"{name}: ruff {arguments[0]} said: {done.stderr}")
        text = done.stdout
    return text


def made_files(root: Path = ROOT) -> dict[str, str]:
    """The path below ``root`` and the text of each file that is made of the client there. Raises NotMade."""
    _used_words.clear()
    found: dict[str, str] = {}
    for source in dict.fromkeys(t.source for t in TWINS):
        path = f"{CLIENT}.{source}".replace(".", "/") + ".py"
        text = (root / path).read_text()
        tree = ast.parse(text)
        classes = {c.name: c for c in tree.body if isinstance(c, ast.ClassDef)}
        made = [class_text(t, classes[t.name], text.splitlines()) for t in TWINS if t.source == source]
        body_text = "\n\n\n".join(made)
        doc = HEADER.format(doc=wrapped(docstring(tree)[:1]), source=path)
        parts = [f'"""{doc}"""', "from __future__ import annotations", *imports(source, tree)]
        parts += [type_variables(tree, body_text), body_text]
        name = f"{BLOCKING}.{module_of(source)}".replace(".", "/") + ".py"
        found[name] = tidy("\n".join(parts) + "\n", name)
    if unused := WORDS.keys() - _used_words:
        raise NotMade(f"no docstring says {sorted(unused)} any more: take it out of WORDS")
    return found


def stale_files(root: Path = ROOT) -> dict[str, str]:
    """Those of ``made_files`` that are not there as they are made."""
    return {
        name: text
        for name, text in made_files(root).items()
        if not (root / name).exists() or (root / name).read_text() != text
    }


def main(arguments: list[str]) -> int:
    stale = stale_files()
    if arguments == ["--check"]:
        for name in stale:
            print(f"{name} is not what tests/twins.py makes of the client for asyncio: run `make fix`")
        return bool(stale)
    for name, text in stale.items():
        (ROOT / name).write_text(text)
        print(f"made {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
