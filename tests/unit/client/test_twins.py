"""The client for threads and the one for asyncio are the same, but for ``await``."""

from __future__ import annotations

import inspect
import re
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
