"""The cluster's feature level: what may be written that builds from before cannot read.

etcd's record ``features`` says it, and ``cellctl features raise`` raises it once every node that is registered supports
the next one, which its own record says: the transaction compares all nodes' records, as a registration compares the level. It
never falls. A node keeps the highest it has heard of as a fact, for starts without etcd. What is new in an entry, a row, a fact
or a file is written only where ``has`` says so; reading it needs no level. A build that meets a level above its own takes part in
nothing: other nodes may write entries that it cannot read; start a build that supports the level.

The level travels with what is written by it. Nodes tell each other what they know of it in their hello, and when it is raised
later on each connection, before anything else that is sent from then on. Who is told keeps it too. So in every log the fact stands
before the first entry that is written by the level, whichever node wrote that, and a build that cannot read such entries finds the fact
first. A connection ends, or does not begin, where one side knows of a level that the other does not support. A peer's word goes no further than
what this build supports; only etcd's condemns a node.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from metastore import fields
from metastore.layout import FIRST_LEVEL, MAX_LEVEL
from metastore.node.identity import Verdict
from metastore.storage.facts import read_fact
from metastore.storage.store import Store
from metastore.wire.versions import Levels, build

log = logging.getLogger("metastore.features")

#: the highest level that this build supports
LEVEL: Final = FIRST_LEVEL
FACT_LEVEL: Final = "feature_level"


class Features:
    """``level``: the cluster's, as far as this node knows. ``supported``: by this build. ``on_raised``: called when the level
    has been raised, to one that this build supports, before anything is written by it."""

    def __init__(self, store: Store, supported: int) -> None:
        self._store = store
        self.supported = supported
        self.on_raised: Callable[[], None] = lambda: None
        # a level that is not valid here is of a later version, and so above ours
        read = fields.whole(FIRST_LEVEL, MAX_LEVEL)
        self.level = read_fact(store.facts, FACT_LEVEL, read, FIRST_LEVEL, MAX_LEVEL)

    def has(self, level: int) -> bool:
        """Whether what came with ``level`` may be written."""
        return self.level >= level

    @property
    def levels(self) -> Levels:
        """What peers are told."""
        return Levels(self.level, self.supported)

    def learn(self, level: int) -> Verdict | None:
        """The cluster is at ``level``; why this node can take no part, None = it can."""
        if level > self.level:
            log.info("the cluster is at feature level %d", level)
            self.level = level
            self._store.keep_fact(FACT_LEVEL, level)
            if level <= self.supported:
                self.on_raised()
        return self.verdict()

    def verdict(self) -> Verdict | None:
        """Why this build can take no part, None = it can."""
        if self.level <= self.supported:
            return None
        return Verdict(
            "refused",
            f"the cluster is at feature level {self.level}, and this build ({build() or 'unknown'}) supports up to {self.supported}: "
            "others may write what it cannot read",
            f"start this node with a build that supports level {self.level}, such as the other nodes have; a level is not lowered",
        )

    def status(self) -> dict[str, int]:
        """For status."""
        return {"level": self.level, "supported": self.supported}
