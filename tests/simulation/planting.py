"""Planted bugs: what each may break, and whether it was that which was seen.

A bug that crashes by itself (an AttributeError in its own lines, say) plants nothing, whatever the
simulation makes of it: that is a failure of the test.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.simulation.violation import PROMISES, Violation

Patch = Callable[["Planter"], None]


class Planter:
    """Replaces functions of the product by those of a planted bug; knows when one of these fails itself."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.crashes: list[str] = []

    def setattr(self, target: Any, name: str, value: Any) -> None:
        """As MonkeyPatch does it."""
        replaced = callable(value) and not isinstance(value, type)
        self._patch.setattr(target, name, self._watched(value) if replaced else value)

    def _watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        code = getattr(function, "__code__", None)

        @functools.wraps(function)
        def watched(*args: Any, **named: Any) -> Any:
            try:
                return function(*args, **named)
            except Exception as e:
                if not isinstance(e, AssertionError) and code is not None and raised_in(e, code.co_filename):
                    self.crashes.append(f"{type(e).__name__}: {e}")
                raise

        return watched


def raised_in(error: BaseException, file: str) -> bool:
    """Whether the line that raised it stands in ``file``."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and at.tb_frame.f_code.co_filename == file


@dataclass(frozen=True)
class Plant:
    """``breaks``: the promises of which any may be seen to be broken; ``seed``: one that shows it now, tried
    first; ``plans``: in which it shows soonest, tried next."""

    breaks: frozenset[str]
    seed: int
    plans: tuple[str, ...]

    def __post_init__(self) -> None:
        unknown = self.breaks - PROMISES.keys()
        if unknown or not self.breaks:
            raise ValueError(f"no such promise: {sorted(unknown)}")


def plant(breaks: str, seed: int, *plans: str) -> Plant:
    """``breaks``: names of promises, apart by blanks."""
    return Plant(frozenset(breaks.split()), seed, plans)


def must_be_seen(
    bug: Patch,
    planted: Plant,
    patch: pytest.MonkeyPatch,
    seeds: Iterable[int],
    play: Callable[[int], object],
) -> None:
    """Fails unless a world in which ``bug`` is planted breaks a promise that it was planted to break."""
    planter = Planter(patch)
    bug(planter)
    others: dict[str, int] = {}
    tried = 0
    for seed in [planted.seed, *seeds]:
        tried += 1
        seen: Violation | None = None
        try:
            play(seed)
        except Violation as e:
            seen = e
        name = getattr(bug, "__name__", "the bug")
        if planter.crashes:
            pytest.fail(f"{name} plants nothing, it crashes: {planter.crashes[0]} (seed {seed})")
        if seen is not None:
            line = str(seen).splitlines()[0][:200]
            if seen.of in planted.breaks:
                print(f"{seen.of} seen with seed {seed}: {line}")
                return
            others[seen.of] = others.get(seen.of, 0) + 1
            print(f"something else with seed {seed}: {line}")
    pytest.fail(
        f"{name} was not seen to break {' or '.join(sorted(planted.breaks))} in {tried} seeds"
        + (f"; something else was: {others}" if others else "")
    )
