"""Breadth-first exploration of every reachable state. Pure.

A model gives ``initial`` and ``steps(state)`` -> (what happened, next state); states are hashable
values. Invariants are checked by the model as it makes a state: it raises Violation. The path to
the first violation is a shortest one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

State = tuple[Any, ...]
Steps = Callable[[State], Iterable[tuple[str, State]]]


class Violation(Exception):
    """An invariant does not hold."""


class Found(NamedTuple):
    """``violation``: None when all states keep all invariants; ``path``: what led to it."""

    states: int
    depth: int
    violation: str | None
    path: list[str]


def explore(initial: State, steps: Steps, limit: int) -> Found:
    """Visit every state. Raises RuntimeError when there are more than ``limit``."""
    came: dict[State, tuple[State | None, str]] = {initial: (None, "")}
    frontier, depth = [initial], 0
    while frontier:
        depth += 1
        fresh: list[State] = []
        for state in frontier:
            step = steps(state)
            try:
                for what, after in step:
                    if after not in came:
                        came[after] = (state, what)
                        fresh.append(after)
            except Violation as e:
                return Found(len(came), depth, str(e), [*_path(came, state), f"!! {e}"])
        if len(came) > limit:
            raise RuntimeError(f"over {limit} states at depth {depth}: narrow the bounds")
        frontier = fresh
    return Found(len(came), depth, None, [])


def _path(came: dict[State, tuple[State | None, str]], state: State | None) -> list[str]:
    path: list[str] = []
    while state is not None:
        before, what = came[state]
        state = before
        if what:
            path.append(what)
    return path[::-1]
