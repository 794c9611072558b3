"""The client for threads is made from the one for asyncio, and is the same but for ``await``."""

from __future__ import annotations

import inspect
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from metastore.client import (
    AsyncClient,
    AsyncElection,
    AsyncLeadership,
    AsyncLock,
    AsyncNamespace,
    AsyncWatcher,
    Client,
    Election,
    Leadership,
    Lock,
    Namespace,
    Watcher,
)
from tests.twins import ROOT, NotMade, made_files, stale_files

TWINS = [
    (AsyncClient, Client),
    (AsyncNamespace, Namespace),
    (AsyncWatcher, Watcher),
    (AsyncLock, Lock),
    (AsyncElection, Election),
    (AsyncLeadership, Leadership),
]
#: not for users: what the router, and the twin itself, reach the inside by
INSIDE = {"until", "write", "leave", "looks_held"}
PROTOCOLS = {
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
}


def members(cls: type) -> dict[str, Any]:
    """Public methods and properties by name, the protocols of asyncio by those of threads."""
    found = {}
    for name, member in inspect.getmembers_static(cls):
        if name in PROTOCOLS or name in PROTOCOLS.values():
            found[PROTOCOLS.get(name, name)] = member
        elif not name.startswith("_") and name not in INSIDE:
            found[name] = member
    return found


def plain(annotation: Any) -> str:
    return re.sub(r"\bAsync", "", str(annotation))


def signature(member: Any) -> list[tuple[str, Any, Any, str]] | str:
    if isinstance(member, property):
        assert member.fget is not None
        return plain(inspect.signature(member.fget).return_annotation)
    found = inspect.signature(member)
    parameters = [(p.name, p.kind, p.default, plain(p.annotation)) for p in found.parameters.values()]
    return [*parameters, ("return", None, None, plain(found.return_annotation))]


@pytest.mark.parametrize(("for_tasks", "for_threads"), TWINS, ids=lambda c: c.__name__)
def test_same_methods_and_signatures(for_tasks: type, for_threads: type) -> None:
    left, right = members(for_tasks), members(for_threads)
    assert set(left) == set(right)
    for name in left:
        assert isinstance(left[name], property) == isinstance(right[name], property), name
        assert signature(left[name]) == signature(right[name]), name
        assert not inspect.iscoroutinefunction(right[name]), name
        if not name.startswith("__"):
            assert left[name].__doc__, f"{name} is not described"
            assert right[name].__doc__, f"{name} is not described"
            assert not re.search(r"Async|``async|event loop", right[name].__doc__), name


def test_same_arguments_to_make_a_client() -> None:
    assert signature(AsyncClient.__init__) == signature(Client.__init__)


def test_same_attributes() -> None:
    for_tasks, for_threads = AsyncClient(["127.0.0.1:1"]), Client(["127.0.0.1:1"])
    a, b = for_tasks.namespace("n"), for_threads.namespace("n")
    left = [for_tasks, a, a.lock("k"), a.election("k"), a.watch()]
    right = [for_threads, b, b.lock("k"), b.election("k"), b.watch()]
    for one, other in zip(left, right, strict=True):
        public = {n for n in vars(one) if not n.startswith("_")} - {"dispatcher"}
        assert public == {n for n in vars(other) if not n.startswith("_")}, type(one)
    for_threads.close()


# --- the generator --------------------------------------------------------------------------


def test_what_is_committed_is_what_the_generator_makes() -> None:
    assert not list(stale_files()), "run `make fix`"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "metastore" / "client", tmp_path / "metastore" / "client")
    return tmp_path


def changed(root: Path, module: str, before: str, after: str) -> Path:
    path = root / "metastore" / "client" / module
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))
    return root


@pytest.mark.parametrize(
    ("module", "before", "after"),
    [
        (
            "locks.py",
            "Take it if it is free now; whether it was.",
            "Take it if nobody has it; whether it was.",
        ),
        ("records.py", "        delta: int = 1,", "        delta: int = 2,"),
        ("watch/watcher.py", "    def waiting(self) -> int:", "    def waiting(self) -> float:"),
        ("blocking/elections.py", "return iterate(", "yield from iterate("),
    ],
    ids=["a docstring", "a default", "a type", "the twin itself"],
)
def test_what_changes_for_tasks_alone_is_noticed(copied: Path, module: str, before: str, after: str) -> None:
    assert not list(stale_files(copied))
    name = module.rpartition("/")[2]
    assert list(stale_files(changed(copied, module, before, after))) == [f"metastore/client/blocking/{name}"]


def test_a_new_method_gets_a_twin(copied: Path) -> None:
    new = """    async def forget(self, key: str, *, soon: bool = False) -> int:
        \"\"\"Another task waits: another task waits.\"\"\"
        raise NotImplementedError

    async def delete("""
    made = made_files(changed(copied, "records.py", "    async def delete(", new))
    expected = """    def forget(self, key: str, *, soon: bool = False) -> int:
        \"\"\"Another task waits: another thread waits.\"\"\"
        inner = self._inner
        return self._call(lambda: inner.forget(key, soon=soon))
"""
    assert expected in made["metastore/client/blocking/records.py"]


@pytest.mark.parametrize(
    ("module", "before", "after"),
    [
        ("locks.py", "async def holder(self)", "async def holder(self, *keys: str)"),
        ("client.py", "    One client serves any number of tasks", "    A client serves any number of tasks"),
        ("leasing.py", "when the lease is lost. It runs in", "when the lease is lost; in"),
    ],
    ids=["parameters of another kind", "a paragraph that goes", "words that nobody says"],
)
def test_what_the_generator_cannot_make_it_refuses(
    copied: Path, module: str, before: str, after: str
) -> None:
    root = changed(copied, module, before, after)
    if module == "leasing.py":
        changed(root, module, "gets at risk. It runs in", "gets at risk; in")
    with pytest.raises(NotMade):
        made_files(root)
