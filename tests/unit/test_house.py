"""What only one place does: sockets are opened in ``metastore.net``, and cellctl speaks HTTP in ``cellctl.http_client``."""

from __future__ import annotations

import ast
import re
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


#: a fact -> where it may be set; everybody else reads it there (ARCHITECTURE.md, "Who owns which fact")
OWNERS = {
    "role": {"metastore/core"},
    "commit_index": {"metastore/core"},
    "sealed_epoch": {"metastore/core"},
    "config_mod_revision": {"metastore/core"},
    "applied": {"metastore/storage"},
    "applied_epoch": {"metastore/storage"},
    "applied_index": set[str](),
    "saved": {"metastore/storage"},
    "hi": {"metastore/partition/split.py", "metastore/partition/state.py"},
    "home": {"metastore/core"},
    "registered": {"metastore/node/control/agent.py", "metastore/node/control/link.py"},
}


def assigned(source: str) -> Iterator[str]:
    """Names of attributes that are set."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


@pytest.mark.parametrize("fact", OWNERS)
def test_a_fact_has_one_owner(fact: str) -> None:
    owners = OWNERS[fact]
    setting = {
        str(path.relative_to(ROOT))
        for part in ("core", "partition", "storage", "node")
        for path in (ROOT / "metastore" / part).rglob("*.py")
        if fact in assigned(path.read_text())
    }
    found = {path if path in owners else path.rsplit("/", path.count("/") - 1)[0] for path in setting}
    assert found == owners, setting


MODULES = [
    path.relative_to(ROOT)
    for program in PRODUCT
    for path in sorted((ROOT / program).rglob("*.py"))
    if path.name != "__init__.py"
]
MAX_LINES = 500


def test_no_product_file_is_long() -> None:
    long = {str(path) for path in MODULES if len((ROOT / path).read_text().splitlines()) > MAX_LINES}
    assert not long, f"more than {MAX_LINES} lines: {sorted(long)}"


def test_each_module_has_a_test_of_its_name_or_a_line_that_says_what_holds_it() -> None:
    page = (ROOT / "tests/README.md").read_text().split("## Which layer holds which module")[1]
    told = re.findall(r"`((?:metastore|router|cellctl)/[\w/]+\.py)`", page.split("\n## ")[0])
    of_their_name = {path.stem.removeprefix("test_") for path in (ROOT / "tests").rglob("test_*.py")}
    modules = {str(path) for path in MODULES}
    without = {str(path) for path in MODULES if path.stem not in of_their_name} - set(told)
    assert not without, f"name them in tests/README.md, with what holds them: {sorted(without)}"
    assert set(told) <= modules, f"there are no such modules: {sorted(set(told) - modules)}"
    assert len(told) == len(set(told)), "each of them once"
