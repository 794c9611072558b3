"""The cluster's feature level: what may be written that builds from before cannot read.

etcd's record ``features`` says it, and ``cellctl features raise`` raises it once every node that is registered supports
the next one, which its own record says. It never falls. A node keeps the highest it has heard of as a fact, for starts
without etcd: the fact stands in the log before anything that is written by it. What is new in an entry, a row, a fact or a
file is written only where ``has`` says so; reading it needs no level. A build that meets a level above
its own takes part in nothing: others may write what it cannot read.
"""

from __future__ import annotations

import logging
from typing import Final

from metastore import fields
from metastore.layout import FIRST_LEVEL, MAX_LEVEL
from metastore.node.identity import Verdict
from metastore.storage.facts import read_fact
from metastore.storage.store import Store
from metastore.wire.versions import build

log = logging.getLogger("metastore.features")

#: the highest level that this build supports
LEVEL: Final = FIRST_LEVEL
FACT_LEVEL: Final = "feature_level"


class Features:
    """``level``: the cluster's, as far as this node knows. ``supported``: by this build."""

    def __init__(self, store: Store, supported: int) -> None:
        self._store = store
        self.supported = supported
        # a level that makes no sense here is of a later version, and so above ours
        read = fields.whole(FIRST_LEVEL, MAX_LEVEL)
        self.level = read_fact(store.facts, FACT_LEVEL, read, FIRST_LEVEL, MAX_LEVEL)

    def has(self, level: int) -> bool:
        """Whether what came with ``level`` may be written."""
        return self.level >= level

    def learn(self, level: int) -> Verdict | None:
        """etcd says that the cluster is at ``level``; why this node can take no part, None = it can."""
        if level > self.level:
            log.info("the cluster is at feature level %d", level)
            self.level = level
            self._store.keep_fact(FACT_LEVEL, level)
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
