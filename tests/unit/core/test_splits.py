"""R18 in the core: which copies count, what an empty one may become, and what has to wait for etcd's record."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from metastore.core import effects as fx
from metastore.core import messages as m
from metastore.core.configs import pack_config
from metastore.core.events import Restored, Tick
from metastore.core.logindex import LogIndex
from metastore.core.replica import SEALING, InvariantBroken
from metastore.errors import ProtocolError
from metastore.layout import MoveRecord, first_epoch
from tests.unit.core.nodes import CONFIG, MEMBERS, START, TERM1, Node, led, log_of, process

ENTRY = (TERM1, 9)
#: the first config of what ``a`` split off partition 7
CHILD = replace(CONFIG, epoch=first_epoch(2), parent=(7, *ENTRY))


def member(name: str, *, has_origin: bool) -> Node:
    return Node(process(name), Restored(LogIndex(*ENTRY) if has_origin else LogIndex(), config=CHILD))


def answers(node: Node, name: str, position: tuple[int, int]) -> None:
    epoch = node.replica.sealed_epoch
    node.core.handle(START, m.Sealed(0, epoch, *position, 0, 0), process(name))


def begin(node: Node) -> None:
    """``a`` owns the first term; its own answer comes back."""
    node.replica.follow_config(START, "split off 7")
    assert node.replica.role == SEALING
    answers(node, node.me.node, node.replica.log.last_position())


def test_an_empty_copy_counts_beside_one_that_has_what_the_child_began_with() -> None:
    node = member("a", has_origin=True)
    begin(node)
    answers(node, "b", (0, 0))
    assert node.replica.role == "activating"


def test_empty_copies_alone_are_no_quorum() -> None:
    node = member("a", has_origin=False)
    begin(node)
    for name in ("b", "c"):
        answers(node, name, (0, 0))
    assert node.replica.role == SEALING
    node = member("a", has_origin=False)
    begin(node)
    answers(node, "b", (0, 0))
    answers(node, "c", ENTRY)
    assert (node.replica.role, node.replica.term and node.replica.term.pull_from) == ("adopting", "c")


def test_an_empty_owner_becomes_the_fork() -> None:
    """The parent here comes to the entry while it seals: it has what it asks for."""
    node = member("a", has_origin=False)
    begin(node)
    answers(node, "b", (0, 0))
    node.replica.take_split(START, ENTRY[1], ENTRY[0])
    node.core.handle(START, Tick(False))
    assert node.replica.role == "activating"
    assert node.replica.log.last_position() == (CHILD.epoch, ENTRY[1] + 1), "its no-op follows the entry"
    assert node.replica.commit_index == ENTRY[1]


def test_what_holds_something_never_becomes_a_fork() -> None:
    node = Node(process("a"), Restored(log_of(TERM1), config=CHILD))
    with pytest.raises(InvariantBroken, match="R18"):
        node.replica.take_split(START, ENTRY[1], ENTRY[0])


@pytest.mark.parametrize(
    ("position", "commit"), [((TERM1, 2), 2), ((TERM1 + 1, 2), 1), ((TERM1, 4), 1), ((TERM1, 1), 1)]
)
def test_what_was_split_off_tells_that_the_entry_is_committed(position: tuple[int, int], commit: int) -> None:
    """I2: only if this log has that very entry."""
    node = Node(process("b"), Restored(log_of(TERM1, TERM1, TERM1), TERM1, process("a"), CONFIG, 1))
    node.replica.learn_committed(*position)
    assert node.replica.commit_index == commit


def test_a_seal_of_a_partition_that_is_not_here_is_told() -> None:
    node = member("b", has_origin=True)
    config = replace(CHILD, partition=5)
    node.core.handle(START, m.Seal(5, config.epoch, pack_config(config), 0), process("a"))
    assert [e for e in node.take() if isinstance(e, fx.Sought)] == [fx.Sought(5, config)]
    with pytest.raises(ProtocolError):
        node.core.handle(START, m.Seal(5, config.epoch, b"nonsense", 0), process("a"))
    assert not node.take()


def leader_with_a_move() -> tuple[Node, Any]:
    """An active leader whose record etcd made, and whose partition is to leave ``c``."""
    node = led()["a"]
    replica = node.replica
    replica.config, replica.config_mod_revision = replace(CONFIG, epoch=TERM1, leader="a"), 5
    replica.move = MoveRecord(0, "c1", MEMBERS[:2])
    return node, replica


def changes(node: Node) -> list[fx.ChangeConfig]:
    node.core.handle(START + 1, Tick(True))
    return [e for e in node.take() if isinstance(e, fx.ChangeConfig)]


def test_no_membership_change_before_the_child_is_recorded() -> None:
    """From the proposal on: who is removed has to know first what it is a member of."""
    node, replica = leader_with_a_move()
    assert [c.new.joint for c in changes(node)] == [MEMBERS[:2]]
    node, replica = leader_with_a_move()
    replica.parting = True
    assert changes(node) == []
    child = replace(CHILD, partition=5, lo=1 << 63)
    replica.parting, replica.split = False, child
    assert changes(node) == [], "it is not durable here"
    replica.split_durable = True
    [change] = changes(node)
    assert (change.child, change.new.hi, change.new.joint) == (child, 1 << 63, None)
