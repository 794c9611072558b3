"""Every small way in which an answer can be wrong."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Final

ODD: Final[list[Any]] = [
    None,
    True,
    False,
    -1,
    3,
    1 << 53,
    (1 << 64) - 1,
    -(1 << 63),
    0.5,
    float("nan"),
    "",
    "text",
    b"",
    *(b"bytes" * 9, [], [[[[]]]], {}, {"a": {"b": []}}, "x" * 70_000, [0] * 16_000),
]


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every part of ``value``."""
    yield at
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from places(item, (*at, number))
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from places(item, (*at, name))


def with_at(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    """A copy with ``new`` in one place."""
    if not at:
        return new
    made = copy.copy(value)
    made[at[0]] = with_at(value[at[0]], at[1:], new)
    return made


def part(value: Any, at: tuple[Any, ...]) -> Any:
    for step in at:
        value = value[step]
    return value


def mutations(value: Any) -> Iterator[tuple[str, Any]]:
    """``(what, value with one thing wrong)``: of another type, missing, more than there should be, nested, huge. Some
    are right by chance."""
    for at in places(value):
        found = part(value, at)
        for number, odd in enumerate(ODD):
            if type(odd) is not type(found) or odd != found:
                yield f"{list(at)} = odd {number}", with_at(value, at, odd)
        yield f"{list(at)} nested", with_at(value, at, [found])
        if isinstance(found, list):
            yield f"{list(at)} and one more", with_at(value, at, [*found, 0])
            yield f"{list(at)} twice over", with_at(value, at, found * 2)
            for number in range(len(found)):
                yield f"{list(at)} without {number}", with_at(value, at, found[:number] + found[number + 1 :])
        if isinstance(found, dict):
            for name in found:
                yield (
                    f"{list(at)} without {name}",
                    with_at(value, at, {k: v for k, v in found.items() if k != name}),
                )
            for name in ("self", "message", "current", "leader", "epoch", "retry_after_s"):
                yield f"{list(at)} with {name}", with_at(value, at, {**found, name: [[]]})
