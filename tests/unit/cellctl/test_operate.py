"""What an operator asks for goes by the records as they are in that very moment: what others change meanwhile is neither lost nor
undone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cellctl.operate import Operator
from cellctl.plan import PlannedMove
from metastore.coordination.interface import Delete, Op, Put
from metastore.coordination.memory import MemoryEtcd
from metastore.errors import InvalidRequest, Unavailable
from metastore.layout import ConfigRecord, Layout, Member, MoveRecord, NodeRecord, to_json
from tests.unit.coordination.busy import Busy

LAYOUT = Layout("metastore")
HALF = 1 << 63
CAUSE = "a test"


def members(*names: str) -> tuple[Member, ...]:
    return tuple((name, f"s{name}") for name in names)


def config(p: int, *names: str, cell: str = "c", **more: object) -> Put:
    record = ConfigRecord(p, p * HALF, (p + 1) * HALF, 1 << 16, names[0], members(*names))
    return Put(LAYOUT.config(cell, p), replace(record, **more).to_json())  # type: ignore[arg-type]


def node(name: str, cell: str = "c", store: str = "") -> list[Op]:
    record = NodeRecord(name, cell, store or f"s{name}", "h:1", "h:2")
    return [Put(LAYOUT.node(name), to_json(record)), Put(LAYOUT.presence(name), b"run")]


def move(p: int, *names: str, cancel: bool = False) -> Put:
    return Put(LAYOUT.move(p), MoveRecord(p, "c", members(*names), cancel, "another").to_json())


@pytest.fixture
async def etcd() -> Busy:
    """Two partitions on ``a``, ``b`` and ``old``; ``c`` and ``new`` hold nothing; ``x`` is of another cell."""
    busy = Busy(MemoryEtcd())
    nodes = [op for name in ("a", "b", "c", "old", "new") for op in node(name)]
    await busy.txn([], [config(0, "a", "b", "old"), config(1, "old", "a", "b"), *nodes, *node("x", "d")])
    return busy


@pytest.fixture
def operator(etcd: Busy) -> Operator:
    return Operator(etcd, "metastore")


async def targets(operator: Operator) -> dict[int, tuple[Member, ...]]:
    return {p: move.target for p, (move, _) in (await operator.records()).moves.items()}


async def test_a_node_is_replaced(operator: Operator) -> None:
    found = await operator.replace_node("old", "new", CAUSE)
    assert (found.moving, found.busy, found.stuck) == ({0, 1}, set(), {})
    assert await targets(operator) == {0: members("a", "b", "new"), 1: members("new", "a", "b")}
    assert (await operator.records()).drained == {"old"}
    again = await operator.replace_node("old", "new", CAUSE)
    assert (again.moves, again.moving) == ([], {0, 1})


async def test_what_was_changed_just_now_is_not_undone(etcd: Busy, operator: Operator) -> None:
    etcd.happens = [config(0, "a", "c", "old"), config(1, "x", cell="d"), Delete(LAYOUT.config("c", 1))]
    found = await operator.replace_node("old", "new", CAUSE)
    assert found.moving == {0}
    assert await targets(operator) == {0: members("a", "c", "new")}


async def test_what_was_split_off_just_now_is_replaced_too(etcd: Busy, operator: Operator) -> None:
    child = ConfigRecord(
        2, HALF + HALF // 2, 2 * HALF, 2 << 16, "old", members("old", "a", "b"), parent=(1, 9, 1 << 16)
    )
    etcd.happens = [config(1, "old", "a", "b", hi=child.lo), Put(LAYOUT.config("c", 2), child.to_json())]
    await operator.set_drained("old", True)
    etcd.happens = [config(1, "old", "a", "b", hi=child.lo), Put(LAYOUT.config("c", 2), child.to_json())]
    assert (await operator.replace_node("old", "new", CAUSE)).moving == {0, 1, 2}


async def test_a_node_that_came_back_with_another_store_just_now(etcd: Busy, operator: Operator) -> None:
    """A move names the store that there is: the one of before would never be filled."""
    await operator.set_drained("old", True)
    etcd.happens = node("new", store="fresh")
    await operator.replace_node("old", "new", CAUSE)
    assert (await targets(operator))[0] == (*members("a", "b"), ("new", "fresh"))
    await etcd.txn([], [Delete(LAYOUT.move(0))])
    etcd.happens = node("c", store="other")
    await operator.request_move(0, "c", ["a", "b", "c"], CAUSE)
    assert (await targets(operator))[0] == (*members("a", "b"), ("c", "other"))


@pytest.mark.parametrize(
    ("other", "moving", "busy"),
    [
        (move(0, "a", "b", "c"), {0, 1}, set()),  # it leaves by itself
        (move(0, "a", "c", "old"), {1}, {0}),
        (move(0, "a", "b", "c", cancel=True), {1}, {0}),
    ],
)
async def test_a_move_that_was_asked_for_just_now_goes_on(
    etcd: Busy, operator: Operator, other: Put, moving: set[int], busy: set[int]
) -> None:
    await operator.set_drained("old", True)
    etcd.happens = [other]
    found = await operator.replace_node("old", "new", CAUSE)
    assert (found.moving, found.busy) == (moving, busy)
    kept = await etcd.get(other.key)
    assert kept is not None
    assert kept.value == other.value


async def test_what_cannot_be_replaced_is_told_and_the_rest_is(etcd: Busy, operator: Operator) -> None:
    await etcd.txn([], [config(0, "a", "new", "old")])
    found = await operator.replace_node("old", "new", CAUSE)
    assert found.moving == {1}
    assert "new holds it already" in found.stuck[0]
    await etcd.txn([], [Delete(LAYOUT.move(1)), Delete(LAYOUT.presence("a")), Delete(LAYOUT.presence("b"))])
    found = await operator.replace_node("old", "new", CAUSE)
    assert not found.moves
    assert "failover --force 1" in found.stuck[1]
    for wrong in ("nobody", "x"):
        with pytest.raises(Exception, match=wrong):
            await operator.replace_node("old", wrong, CAUSE)


async def test_a_store_that_is_lost_is_replaced_by_the_one_that_there_is(
    etcd: Busy, operator: Operator
) -> None:
    assert not (await operator.replace_node("old", "old", CAUSE)).moving
    await etcd.txn([], [*node("old", store="fresh"), move(1, "old", "a", "b")])
    found = await operator.replace_node("old", "old", CAUSE)
    assert (found.moving, found.busy) == ({0, 1}, set())
    assert [m.target for m in found.moves] == [(*members("a", "b"), ("old", "fresh"))]
    assert not (await operator.records()).drained


async def test_a_plan_leaves_alone_what_has_changed_just_now(etcd: Busy, operator: Operator) -> None:
    plan = [PlannedMove(p, "c", ("a", "b", "old"), "c", members("a", "b", "new"), 0, "") for p in (0, 1)]
    etcd.happens = [config(0, "a", "c", "old")]
    assert await operator.apply(plan, CAUSE) == ([1], [0])
    assert list(await targets(operator)) == [1]
    await etcd.txn([], [config(0, "a", "b", "old")])
    etcd.happens = [config(0, "b", "a", "old")]  # as it was, but for who leads
    assert await operator.apply(plan, CAUSE) == ([0, 1], [])


async def test_who_is_given_something_just_now_is_not_forgotten(etcd: Busy, operator: Operator) -> None:
    etcd.happens = [move(0, "a", "b", "new")]
    with pytest.raises(InvalidRequest, match="partitions 0 move to node new"):
        await operator.remove_node("new")
    etcd.happens = [config(0, "x", cell="d"), Delete(LAYOUT.config("c", 0))]
    with pytest.raises(InvalidRequest, match="cell d holds 1 partitions"):
        await operator.remove_cell("d")
    etcd.happens = [config(1, "a", "b", "c")]
    with pytest.raises(InvalidRequest, match="node c holds"):
        await operator.remove_node("c")
    await etcd.txn([], [Delete(LAYOUT.move(0))])
    etcd.happens = [config(1, "a", "b", "c", epoch=2 << 16)]  # an election
    await operator.remove_node("new")
    assert "new" not in (await operator.records()).nodes
    etcd.happens = [Delete(LAYOUT.node("c"))]
    assert await operator.apply(
        [PlannedMove(1, "c", ("a", "b", "c"), "c", members("a", "b", "c"), 0, "")], CAUSE
    ) == (
        [],
        [1],
    )


async def test_what_moves_is_not_split(etcd: Busy, operator: Operator) -> None:
    etcd.happens = [move(0, "a", "b", "new")]
    await operator.etcd.get(LAYOUT.root)
    with pytest.raises(Unavailable, match="being split or moved already"):
        await operator.request_split(0, None, CAUSE)
    assert await etcd.get(LAYOUT.split(0)) is None
