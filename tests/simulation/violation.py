"""What a simulation raises, and which promise it says is broken.

Every message begins with the name of a promise (``I5: …``), so that a planted bug is seen only by what it
was planted for: one that merely crashes, or hangs, breaks no invariant.
"""

from __future__ import annotations

import re
from typing import Final

#: what can be broken: the invariants of the rules, and what else the worlds look at
PROMISES: Final = {
    "I1": "at most one process owns an epoch",
    "I2": "logs that share an entry are equal up to it",
    "I3": "what is committed is in the log of every later leader, and is applied alike",
    "I4": "nothing committed is truncated",
    "I5": "histories are linearizable: nothing acknowledged is lost, nothing is done twice",
    "I6": "no two leaders may read at once",
    "I7": "epochs, commit indexes and versions never go down",
    "I8": "service is back once all is well",
    "R6": "entries are applied in order, and only what is committed",
    "R7": "conditions are judged on all that is committed",
    "R14": "what was called durable is found again, and only a hurt disk ends a node",
    "R17": "a snapshot stands for what it says",
    "states": "replicas hold the same",
    "stale": "a stale read is as new as it says",
    "watch": "a watch tells each change once, in order",
    "usage": "what quotas count is what there is",
    "step": "each step of a replica is one that the rules allow",
    "moves": "moves and splits end, and who is no member holds nothing",
}
CRASH: Final = "crash"
UNNAMED: Final = "unnamed"
_NAME = re.compile(r"(\w+): ")


class Violation(AssertionError):
    """A promise was broken; the message says which. ``p``: in which partition, if in one; ``of``: the
    name of the promise, by default what the message begins with."""

    def __init__(self, message: str, p: int | None = None, of: str | None = None) -> None:
        super().__init__(message)
        self.p = p
        self.of = of or promise_of(message)


class Stopped(Exception):
    """So many events have happened, as asked."""


def promise_of(message: str) -> str:
    """The promise that a message names, UNNAMED if none."""
    found = _NAME.match(message)
    return found.group(1) if found is not None and found.group(1) in PROMISES else UNNAMED


def broken_by(error: BaseException) -> str:
    """The promise that any error says is broken. The code asserts invariants of its own (``InvariantBroken``),
    and says which; whatever names none is a CRASH."""
    if isinstance(error, Violation):
        return error.of
    named = promise_of(str(error))
    return CRASH if named == UNNAMED else named
