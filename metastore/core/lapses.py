"""Who lost leaders by silence, and for how long it gets none back (R9, flap damping with a memory). Pure.

A node whose machine stands still now and then is missed by all its partitions at once, and has everything again a little
later, since it leads fewest: each time its clients wait for an election. So a *lapse* is remembered by each node that saw it,
and doubles the time for which that node is the last to be handed a leader and the last to campaign. It is the
last, not none: where nobody else can lead, it does. A lapse is forgotten after a while without another one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

SECOND_NS: Final = 1_000_000_000
#: nodes that are remembered: of more the oldest lapse goes
MAX_NODES: Final = 1024


class Lapse(NamedTuple):
    """How many there were as of ``last_ns``, the last one."""

    times: int
    last_ns: int


@dataclass(frozen=True, slots=True)
class LapseSettings:
    """In nanoseconds. Partitions lost within ``together_ns`` are lost at once. After one lapse a node waits for ``first_ns``,
    after each further one twice as long, up to ``most_ns``. ``forget_ns`` without another takes one off."""

    together_ns: int = 5 * SECOND_NS
    first_ns: int = 15 * SECOND_NS
    most_ns: int = 600 * SECOND_NS
    forget_ns: int = 600 * SECOND_NS


class Lapses:
    """See the module. One for all partitions of a node; it is memory only, and each node has its own."""

    def __init__(self, settings: LapseSettings | None = None) -> None:
        self.settings = settings or LapseSettings()
        self.known: dict[str, Lapse] = {}

    def note(self, now: int, node: str) -> None:
        """``node`` has just lost a leader, and had not said a word for so long that others took its place."""
        known = self.known.pop(node, None)
        count = 1
        if known is not None:
            together = now - known.last_ns < self.settings.together_ns
            count = known.times if together else self._left(now, known) + 1
        elif len(self.known) >= MAX_NODES:
            del self.known[min(self.known, key=lambda n: self.known[n].last_ns)]
        self.known[node] = Lapse(count, now)

    def count(self, now: int, node: str) -> int:
        """How many are remembered."""
        known = self.known.get(node)
        return 0 if known is None else self._left(now, known)

    def waits_ns(self, now: int, node: str) -> int:
        """For how long ``node`` is still the last to lead anything; 0 = it is as good as others."""
        known = self.known.get(node)
        if known is None:
            return 0
        wait = min(self.settings.first_ns << min(known.times - 1, 40), self.settings.most_ns)
        return max(0, known.last_ns + wait - now)

    def steady(self, now: int, nodes: Iterable[str]) -> list[str]:
        """Those of ``nodes`` that may get a leader now, in order; all of them where none may."""
        every = list(nodes)
        return [n for n in every if not self.waits_ns(now, n)] or every

    def view(self, now: int) -> dict[str, list[int]]:
        """Node -> [lapses remembered, seconds for which it waits still], of those that have any, for people."""
        return {
            n: [self.count(now, n), -(-self.waits_ns(now, n) // SECOND_NS)]
            for n in sorted(self.known)
            if self.count(now, n)
        }

    def _left(self, now: int, known: Lapse) -> int:
        return max(0, known.times - (now - known.last_ns) // self.settings.forget_ns)
