"""Replicas and what they share as they are between two events, as plain data, and the same made of that again: where a journal
begins. Pure."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

from metastore.core.context import Context
from metastore.core.electing import PartitionReplica
from metastore.core.term import Progress, Term

#: of what they share: values that nobody changes, and sets and maps that are copied
_VALUES: Final = ("seal_not_before_ns", "can_elect", "stuck", "room", "moves_paused", "runs")
_COPIED: Final = ("peer_room", "moving", "down")
_TERM_FIELDS: Final = tuple(f.name for f in fields(Term))
_PROGRESS_FIELDS: Final = tuple(f.name for f in fields(Progress))


def shared_state(ctx: Context) -> dict[str, Any]:
    """Nothing in it changes when the core goes on."""
    return {
        "me": ctx.me,
        "settings": ctx.settings,
        "random": ctx.random.getstate(),
        "reads_payloads": ctx.read_payload is not None,
        **{name: getattr(ctx, name) for name in _VALUES},
        **{name: getattr(ctx, name).copy() for name in _COPIED},
        "lapses": dict(ctx.lapses.known),
    }


def restore_shared(ctx: Context, state: dict[str, Any]) -> None:
    ctx.random.setstate(state["random"])
    for name in _VALUES:
        setattr(ctx, name, state[name])
    for name in _COPIED:
        setattr(ctx, name, state[name].copy())
    ctx.lapses.known.update(state["lapses"])


def replica_state(replica: PartitionReplica) -> dict[str, Any]:
    """All that a replica is, but for what it shares. Nothing in it changes when the replica goes on."""
    state = dict(vars(replica))
    del state["ctx"], state["adoption"]
    term = replica.term
    state["log"] = replica.log.copy()
    state["grants"] = dict(replica.grants)
    state["prevotes"] = set(replica.prevotes)
    state["term"] = None if term is None else _term_copy(term)
    return state


def restored_replica(ctx: Context, state: dict[str, Any]) -> PartitionReplica:
    replica = object.__new__(PartitionReplica)
    vars(replica).update(state, ctx=ctx)
    replica.make_parts()
    return replica


def _term_copy(term: Term) -> Term:
    copy = object.__new__(Term)
    for name in _TERM_FIELDS:
        value = getattr(term, name)
        setattr(copy, name, dict(value) if type(value) is dict else value)
    copy.progress = {node: _progress_copy(progress) for node, progress in term.progress.items()}
    return copy


def _progress_copy(progress: Progress) -> Progress:
    copy = object.__new__(Progress)
    for name in _PROGRESS_FIELDS:
        setattr(copy, name, getattr(progress, name))
    return copy
