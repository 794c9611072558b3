"""The keys of one cluster's records in etcd. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from metastore.layout.epochs import RESTART_BITS, term_of

#: of each partition's history: terms, and of each the owners that went on in it without etcd
HISTORY_TERMS: Final = 32
HISTORY_RESTARTS: Final = 4


class Layout:
    """Key names of one cluster."""

    def __init__(self, cluster: str) -> None:
        self.cluster = cluster
        self.root = f"/metastore/{cluster}/"
        self.meta = self.root + "meta"
        #: beside the root, so that nobody who follows the cluster is told of it
        self.history_root = f"/metastore-history/{cluster}/"
        self.marks_root = f"/metastore-marks/{cluster}/"

    @property
    def lineage(self) -> str:
        """From which etcd the records went on to this one (metastore.coordination.lineage)."""
        return self.root + "lineage"

    def cell(self, cell: str) -> str:
        return f"{self.root}cells/{cell}"

    def node(self, node: str) -> str:
        return f"{self.root}nodes/{node}"

    def presence(self, node: str) -> str:
        return f"{self.root}presence/{node}"

    def config(self, cell: str, partition: int) -> str:
        return f"{self.root}config/{cell}/{partition:05d}"

    def leader(self, cell: str, partition: int) -> str:
        return f"{self.root}leader/{cell}/{partition:05d}"

    @property
    def features(self) -> str:
        return self.root + "features"

    @property
    def paused(self) -> str:
        return self.root + "paused"

    def drained(self, node: str) -> str:
        return f"{self.root}drained/{node}"

    def move(self, partition: int) -> str:
        return f"{self.root}moves/{partition:05d}"

    def split(self, partition: int) -> str:
        return f"{self.root}splits/{partition:05d}"

    @property
    def next_partition(self) -> str:
        """The lowest number that no partition has had, once there was a split."""
        return self.root + "next_partition"

    def history(self, partition: int, epoch: int) -> str:
        """A place that later epochs of the partition use again: so many are kept, and no more."""
        restart = epoch & ((1 << RESTART_BITS) - 1)
        slot = f"{term_of(epoch) % HISTORY_TERMS:02d}.{restart % HISTORY_RESTARTS}"
        return f"{self.history_root}{partition:05d}/{slot}"

    def namespace(self, namespace: str) -> str:
        return f"{self.root}namespaces/{namespace}"

    def mark(self, node: str) -> str:
        return f"{self.marks_root}{node}"

    def usage(self, node: str) -> str:
        return f"{self.root}usage/{node}"

    def parse(self, key: str) -> tuple[str, ...]:
        """``("config", cell, "00001")`` and the like; the parts below the cluster's root."""
        return tuple(key[len(self.root) :].split("/"))

    def key(self, parts: Iterable[str]) -> str:
        """The key of ``parse``'s parts."""
        return self.root + "/".join(parts)
