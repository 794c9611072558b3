"""What only one place does: sockets are opened in ``metastore.net``, and cellctl speaks HTTP in ``cellctl.http_client``."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = ("metastore", "router", "cellctl")
#: what opens a connection or listens -> the files that may
OPENERS = {
    "create_connection": {"metastore/net.py"},
    "create_server": {"metastore/net.py"},
    "open_connection": set[str](),
    "start_server": set[str](),
    "TCPSite": set[str](),
    # aiohttp's client: what goes through a router
    "ClientSession": {"metastore/routing/router_connection.py"},
    # etcd's health, before its client is there
    "urlopen": {"cellctl/http_client.py", "metastore/coordination/embedded.py"},
}


def calls(source: str) -> Iterator[str]:
    """The last name of whatever is called."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                # a method of ours may have such a name
                if not (
                    isinstance(node.func.value, ast.Name) and node.func.value.id in ("self", "dispatcher")
                ):
                    yield node.func.attr
            elif isinstance(node.func, ast.Name):
                yield node.func.id


@pytest.mark.parametrize("opener", OPENERS)
def test_sockets_are_opened_in_one_place(opener: str) -> None:
    found = {
        str(path.relative_to(ROOT))
        for program in PRODUCT
        for path in (ROOT / program).rglob("*.py")
        if opener in calls(path.read_text())
    }
    assert found == OPENERS[opener]


def writers(source: str) -> Iterator[str]:
    """Whoever has the state, or an engine, write: ``state.write`` and the like."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in ("write", "delete_step"):
            held = node.value
            name = (
                held.attr
                if isinstance(held, ast.Attribute)
                else held.id
                if isinstance(held, ast.Name)
                else ""
            )
            if name.lstrip("_") in ("state", "engine"):
                yield name.lstrip("_")


@pytest.mark.parametrize(
    ("written", "by"),
    [("state", "metastore/storage/transactions.py"), ("engine", "metastore/storage/state.py")],
)
def test_one_place_says_what_is_one_transaction(written: str, by: str) -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "metastore").rglob("*.py")
        if written in writers(path.read_text())
    }
    assert found == {by}
