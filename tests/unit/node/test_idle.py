"""What stays as it is costs a node nothing: an idle second is the same however much of the control plane there is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.control_cost import Case, leader, namespace, node_record, running, until
from metastore.coordination.interface import Change, Op
from metastore.node.node import Node

SIZES = ((16, 10), (800, 1000))
#: of a second of a node that has next to nothing
MAX_IDLE_CALLS = 100


def calls_of(work: Callable[[], Any]) -> int:
    """Calls of functions, Python's and C's."""
    count = 0

    def seen(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(seen)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def a_second(node: Node) -> Callable[[], None]:
    """What a node does each second for all that it knows, but for what waits for etcd."""

    def once() -> None:
        control = node.control
        control.assignment.leader_keys_read()
        control.assignment.drop_what_left()
        control.assignment.open_waiting()
        control._remember()
        node.quotas.recount()
        node.leader_balancer.tick(node.leader_balancer._again_ns + 1)
        node.status_pages.topology.frame(node.topology.revision)
        node.ticks.note_room()

    return once


async def idle_calls(second: Callable[[], None], bound: float) -> int:
    """What a second comes down to: on a busy machine some of the start may be left to do."""
    with suppress(TimeoutError):
        await until(lambda: calls_of(second) < bound)
    return calls_of(second)


async def changes(case: Case, make: Callable[[Case], Op]) -> int:
    """Calls that a change of one record takes the node, until it is in the log."""
    control = case.node.control
    watch: Any = control.link.watch
    await until(lambda: watch.revision >= case.etcd.revision)
    case.number += 1
    op: Any = make(case)
    told: list[list[Change]] = []
    take, watch._on_change = watch._on_change, lambda revision, found: told.append(found)
    case.etcd.txn([], [op], [])
    await until(lambda: bool(told))
    watch._on_change = take

    def work() -> None:
        control._on_change(case.etcd.revision, told[0])
        control._remember()
        case.node.quotas.recount()

    return calls_of(work)


async def test_a_second_and_a_change_are_the_same_however_much_there_is(tmp_path: Path) -> None:
    idle: list[int] = []
    changed: list[list[int]] = []
    for partitions, namespaces in SIZES:
        async with running(tmp_path / f"{partitions}", partitions, namespaces) as case:
            idle.append(await idle_calls(a_second(case.node), idle[0] * 1.1 + 20 if idle else MAX_IDLE_CALLS))
            changed.append(
                [min([await changes(case, m) for _ in range(3)]) for m in (namespace, leader, node_record)]
            )
    assert idle[0] * 1.1 + 20 > idle[1], idle
    for few, many in zip(*changed, strict=True):
        assert few * 1.1 + 40 > many, changed
