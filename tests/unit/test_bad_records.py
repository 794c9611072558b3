"""What is made of etcd's records as they come: what makes no sense changes nothing that was known, and is told until it is mended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from metastore import following, schema
from metastore.coordination.interface import KV, Change
from metastore.following import Following
from metastore.layout import ConfigRecord, Layout, NodeRecord, first_epoch, to_json
from metastore.namespaces import Policy
from metastore.schema import MAX_VALUE
from metastore.topology import TopologyTable

LAYOUT = Layout("c")
NODE = NodeRecord("a", "c1", "sa", "127.0.0.1:1", "127.0.0.1:2")
CONFIG = ConfigRecord(0, 0, 1 << 64, first_epoch(1), "a", (("a", "sa"),))
SPARE = replace(NODE, node="spare")  # no partition names it, so nothing but its record keeps it
KNOWN = {
    LAYOUT.node("a"): to_json(NODE),
    LAYOUT.node("spare"): to_json(SPARE),
    LAYOUT.config("c1", 0): CONFIG.to_json(),
    LAYOUT.namespace("app"): Policy(max_records=7).to_json(),
}


class Follows:
    """Follows an etcd that has KNOWN."""

    def __init__(self) -> None:
        self.records = Following(LAYOUT, TopologyTable("c"))
        self.revision = 1
        self.tell(KNOWN)

    def tell(self, found: Mapping[str, bytes | None]) -> list[schema.Parts]:
        """One delivery; whose records were bad."""
        self.revision += 1
        seen = self.records.take(
            self.revision,
            [
                Change(key, None, None if value is None else KV(key, value, self.revision, 2))
                for key, value in found.items()
            ],
        )
        return [one.parts for one in seen if one.bad]


@pytest.mark.parametrize(
    "bad", [b"", b"{", b"[]", b"null", b'{"node": 7, "routing": 7}', b"x" * (MAX_VALUE + 1)]
)
@pytest.mark.parametrize("key", KNOWN)
def test_a_bad_record_changes_nothing_and_is_told_until_it_is_mended(key: str, bad: bytes) -> None:
    f = Follows()
    table, below = f.records.table, key[len(LAYOUT.root) :]
    known = dict(table.nodes), dict(table.partitions), dict(table.namespaces)
    assert table.complete
    for ends in (KNOWN[key], None):
        assert f.tell({key: bad}) == [tuple(below.split("/"))]
        assert (table.nodes, table.partitions, table.namespaces) == known
        assert below in table.unreadable
        assert f.records.status()["bad_now"] == 1
        assert list(f.records.bad) == [key]
        f.tell({LAYOUT.node("b"): to_json(replace(NODE, node="b"))})
        assert list(f.records.bad) == [key], "whatever else is told"
        f.tell({LAYOUT.node("b"): None})
        f.tell({key: ends})
        assert f.records.bad == {}
        assert below not in table.unreadable
    assert f.records.bad_total == 2


def test_a_record_is_bounded_before_it_is_read() -> None:
    """However well it reads: spaces are JSON."""
    f = Follows()
    room = b" " * (MAX_VALUE - len(KNOWN[LAYOUT.node("a")]))
    assert not f.tell({LAYOUT.node("a"): KNOWN[LAYOUT.node("a")] + room})
    assert f.tell({LAYOUT.node("a"): KNOWN[LAYOUT.node("a")] + room + b" "})


def test_so_many_bad_records_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "MAX_REMEMBERED", 5)
    f = Follows()
    f.tell({LAYOUT.node(f"n{i}"): b"{" for i in range(9)})
    assert len(f.records.bad) == 5
    assert f.records.bad_total == 9
    f.tell({LAYOUT.node("n0"): b"[]"})
    assert "is an object" in f.records.bad[LAYOUT.node("n0")], "what is remembered is as it is now"


def test_kinds_of_a_later_version_are_passed_over() -> None:
    f = Follows()
    assert f.tell({LAYOUT.root + "later/x": b"{", LAYOUT.root + "nodes/a/b/c": b"{"}) == []
