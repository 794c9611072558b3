"""What a node changes in the control plane's records, as transactions; and what became of one whose answer was lost. Pure.

Every change of a partition's record compares the record that it was made from (R2), and writes its event of history in the
same transaction. Nothing is decided by an answer that did not come: what is there decides.
"""

from __future__ import annotations

from typing import NamedTuple

from metastore.coordination.interface import KV, Compare, Delete, Get, Op, Put
from metastore.core import effects as fx
from metastore.fields import BadRecord
from metastore.layout import ConfigRecord, HistoryRecord, Layout, LeaderRecord, MoveRecord


class Transaction(NamedTuple):
    """``then`` if all ``compares`` hold, else the reading ``otherwise``."""

    compares: list[Compare]
    then: list[Op]
    otherwise: list[Get]


class Author(NamedTuple):
    """Who writes: a process, and its lease."""

    node: str
    incarnation: str
    lease: int

    def leads(self, epoch: int) -> bytes:
        """The value of a leader key that says so."""
        return LeaderRecord(self.node, self.incarnation, epoch).to_json()


def event(layout: Layout, config: ConfigRecord, cell: str, kind: str, cause: str, at_ms: int) -> Put:
    """For history, in the transaction that makes it so."""
    replicas = tuple(node for node, _ in config.members())
    record = HistoryRecord(config.partition, config.epoch, cell, config.leader, replicas, kind, cause, at_ms)
    return Put(layout.history(config.partition, config.epoch), record.to_json())


# --- R2 -------------------------------------------------------------------------------------------


def election(layout: Layout, cell: str, me: Author, effect: fx.Campaign, at_ms: int) -> Transaction:
    """The candidate that commits it owns the term (R2)."""
    config_key, leader_key = layout.config(cell, effect.p), layout.leader(cell, effect.p)
    leader_is = (
        Compare.absent(leader_key) if effect.replace is None else Compare.value_is(leader_key, effect.replace)
    )
    kind = "hand-over" if effect.handed_over else "election"
    return Transaction(
        [Compare.mod_revision_is(config_key, effect.expect_mod_revision), leader_is],
        [
            Put(config_key, effect.new.to_json()),
            Put(leader_key, me.leads(effect.new.epoch), me.lease),
            event(layout, effect.new, cell, kind, effect.reason, at_ms),
        ],
        [Get(config_key), Get(leader_key)],
    )


def election_found(me: Author, effect: fx.Campaign, config: KV | None, leader: KV | None) -> int:
    """The revision at which an election was won whose answer was lost, by what is there; 0 = it was not."""
    if config is None or leader is None or leader.value != me.leads(effect.new.epoch):
        return 0
    return config.mod_revision


# --- R10, R18 -------------------------------------------------------------------------------------


def changed_key(layout: Layout, home: str, effect: fx.ChangeConfig) -> str:
    """Where the record lies once the change is made."""
    return layout.config(home if effect.cell is None else effect.cell, effect.p)


def change(
    layout: Layout,
    home: str,
    me: Author,
    effect: fx.ChangeConfig,
    move: MoveRecord | None,
    child_epoch: int | None,
    at_ms: int,
) -> Transaction:
    """The compare-and-swap of ``config(p)``. ``move``: that it is part of; ``child_epoch``: of the child, if it is led here
    already. Nobody without a lease names itself leader."""
    p, new = effect.p, effect.new
    config_key, leader_key = layout.config(home, p), layout.leader(home, p)
    compares = [Compare.mod_revision_is(config_key, effect.expect_mod_revision)]
    ops: list[Op] = []
    if effect.cell is not None:
        config_key = layout.config(effect.cell, p)
        compares.append(Compare.absent(config_key))
        ops.append(Delete(layout.config(home, p)))
    ops.append(Put(config_key, new.to_json()))
    cause = f"{effect.reason}, for {move.cause}" if move and move.cause else effect.reason
    if effect.child is not None:
        child = effect.child
        compares.append(Compare.absent(layout.config(home, child.partition)))
        ops.append(Put(layout.config(home, child.partition), child.to_json()))
        ops.append(Delete(layout.split(p)))
        if child_epoch is not None:
            ops.append(Put(layout.leader(home, child.partition), me.leads(child_epoch), me.lease))
        ops.append(event(layout, child, home, "split", f"is split off {p}", at_ms))
    kind = "split" if effect.child else "move"
    ops.append(event(layout, new, effect.cell or home, kind, cause, at_ms))
    if new.leader == me.node:
        ops.append(Put(leader_key, me.leads(new.epoch), me.lease))
    else:
        ops.append(Delete(leader_key))
    return Transaction(compares, ops, [])


def change_found(effect: fx.ChangeConfig, config: KV | None) -> int:
    """The revision at which a change was made whose answer was lost, by what is there; 0 = it was not."""
    return config.mod_revision if config is not None and config.value == effect.new.to_json() else 0


def end_of_move(layout: Layout, p: int, mod_revision: int) -> Transaction:
    """The wish for a move goes, unless it has changed."""
    key = layout.move(p)
    return Transaction([Compare.mod_revision_is(key, mod_revision)], [Delete(key)], [])


# --- R12 ------------------------------------------------------------------------------------------


def is_to_be_put_back(me: Author, epoch: int, seen: KV | None) -> bool:
    """Whether ``leader(p)``, as it was ``seen``, is not this leader's of ``epoch`` on its present lease, nor somebody else's."""
    if seen is None:
        return True
    if seen.value == me.leads(epoch) and seen.lease == me.lease:
        return False
    try:
        return LeaderRecord.from_json(seen.value).node == me.node
    except BadRecord:
        return False  # it is told of already; whose it is cannot be known


def put_back(
    layout: Layout,
    cell: str,
    me: Author,
    p: int,
    epoch: int,
    seen: KV | None,
    config_revision: int,
    began: Put | None,
) -> Transaction:
    """``leader(p)`` at this process's own epoch and on its present lease, if config is still the record of
    ``config_revision``, and the key still ``seen``. ``began``: the event of history that etcd lacks."""
    key = layout.leader(cell, p)
    leader_is = Compare.absent(key) if seen is None else Compare.value_is(key, seen.value)
    ops: list[Op] = [Put(key, me.leads(epoch), me.lease)]
    if began is not None:
        ops.append(began)
    return Transaction([Compare.mod_revision_is(layout.config(cell, p), config_revision), leader_is], ops, [])
