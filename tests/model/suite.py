"""What is explored of a model, as data: bounds that must be clean, and mutations that must break something.

``python -m tests.model [subject…] [name…]`` explores what is named, the deeper bounds too, and prints states,
depth, seconds and the shortest way to what breaks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from tests.model.checker import Found, State, explore

LIMIT = 1_000_000
DEEP_LIMIT = 20_000_000


class Model(Protocol):
    """What may happen in a world within its bounds."""

    def steps(self, world: Any) -> Iterable[tuple[str, Any]]: ...


class Mutation(NamedTuple):
    """The bounds in which a broken rule shows, the invariant that it breaks, and what happens first (to save
    the time of finding the way there), steps divided by ``|``."""

    bounds: Any
    invariant: str
    story: str = ""


@dataclass(frozen=True)
class Suite:
    """``initial(bounds)`` and ``model(bounds)`` of one subject. ``deeper``: bounds that take minutes, not for CI."""

    subject: str
    model: Callable[[Any], Model]
    initial: Callable[[Any], State]
    baselines: dict[str, Any]
    mutations: dict[str, Mutation]
    deeper: dict[str, Any] = field(default_factory=dict)
    #: fewer states than this leave out what should be explored
    floor: int = 1000

    def run(self, bounds: Any, story: str = "", limit: int = LIMIT) -> Found:
        """Explore from the state after exactly ``story``. Raises KeyError when a step of it is not possible."""
        model = self.model(bounds)
        state = self.initial(bounds)
        for what in story.split("|") if story else ():
            state = dict(model.steps(state))[what]
        return explore(state, model.steps, limit)

    def check_baseline(self, name: str) -> None:
        """Raises AssertionError with the way to what is violated."""
        found = self.run(self.baselines[name])
        print(f"\n{name}: {found.states} states, depth {found.depth}")
        assert found.violation is None, "\n".join(found.path)
        assert found.states > self.floor, "the bounds leave out what should be explored"

    def check_mutation(self, rule: str) -> None:
        """Raises AssertionError unless the broken rule breaks the invariant that it names."""
        mutation = self.mutations[rule]
        found = self.run(replace(mutation.bounds, broken=rule), mutation.story)
        assert found.violation is not None, f"{found.states} states and none shows it"
        assert found.violation.startswith(mutation.invariant), "\n".join(found.path)

    def show(self, names: list[str]) -> None:
        """Explore those of ``names``, or all, and print what is found."""
        for name in names or [*self.baselines, *self.deeper, *self.mutations]:
            bounds, story = self.deeper.get(name) or self.baselines.get(name), ""
            if bounds is None:
                bounds = replace(self.mutations[name].bounds, broken=name)
                story = self.mutations[name].story
            began = time.process_time()
            try:
                found = self.run(bounds, story, DEEP_LIMIT)
            except RuntimeError as e:
                print(f"{self.subject}: {name}: {e}", flush=True)
                continue
            took = time.process_time() - began
            print(
                f"{self.subject}: {name}: {found.states} states, depth {found.depth}, {took:.1f} s of a core"
            )
            print("".join(f"   {step}\n" for step in found.path), end="", flush=True)

    def names(self) -> set[str]:
        return {*self.baselines, *self.deeper, *self.mutations}
