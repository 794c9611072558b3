"""The topology as a node tells it: made once for all who ask, and by change for who has it already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metastore.errors import ProtocolError
from metastore.namespaces import Policy
from metastore.node import status
from metastore.node.node import Node
from metastore.topology import TopologyTable
from metastore.wire import frames
from tests.unit.node.single import Single

Asked = list[int | None]


def told(frame: bytes) -> Any:
    [(kind, body)] = frames.FrameDecoder().feed(frame)
    assert kind == frames.TOPOLOGY
    return body[0]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """How often all of the topology was made, and no view lasts for its time alone."""
    calls: Asked = []
    to_wire = TopologyTable.to_wire

    def counted(self: TopologyTable, since: int | None = None) -> Any:
        calls.append(since)
        return to_wire(self, since)

    monkeypatch.setattr(TopologyTable, "to_wire", counted)
    monkeypatch.setattr(status, "VIEW_AGE_NS", -1)
    return calls


def policy(node: Node, name: str) -> int:
    revision = node.topology.revision + 1
    node.topology.apply([(("namespaces", name), Policy())], revision)
    return revision


async def test_all_of_it_is_made_once_until_it_changes(tmp_path: Path, made: Asked) -> None:
    async with Single(tmp_path) as single:
        view, node = single.node.status_pages.topology, single.node
        first = view.frame()
        made.clear()
        assert view.frame() is view.frame() is first
        assert made == []
        policy(node, "new")
        assert [name for name, _ in told(view.frame())["namespaces"]] == ["new"]
        assert len(made) == 1
        assert view.bytes == len(view.frame())


async def test_who_has_it_is_told_what_has_changed(tmp_path: Path, made: Asked) -> None:
    async with Single(tmp_path) as single:
        view, node = single.node.status_pages.topology, single.node
        node.topology.begin([("nodes", "f"), ("config", "c1", "00000")], node.topology.revision)
        before = node.topology.revision
        assert told(view.frame(before))["since"] == before
        policy(node, "one")
        changed = told(view.frame(before))
        assert (len(changed["namespaces"]), changed["partitions"], changed["nodes"]) == (1, [], [])
        assert "since" not in told(view.frame(before - 1)), "of before it was read nothing is known"
        made.clear()
        for n in range(status.MAX_ROWS_TOLD):
            policy(node, f"ns{n}")
        assert "since" not in told(view.frame(before)), "much at once is the frame that all get"
        assert len(made) == 1


async def test_what_is_too_large_to_be_told_is_not_made_for_each_who_asks(
    tmp_path: Path, made: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Single(tmp_path) as single:
        view = single.node.status_pages.topology
        monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 100)
        made.clear()
        for _ in range(5):
            with pytest.raises(ProtocolError, match=r"the topology cannot be sent: .* over the limit of 100"):
                view.frame()
        assert len(made) == 1
        monkeypatch.undo()
        policy(single.node, "other")
        assert told(view.frame())
