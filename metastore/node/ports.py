"""What the parts of a node see of it, one thing each. A part names those that it needs (``class Here(HasStore, HasPartitions, Protocol)``), so that it
knows nothing of the node itself, and a test can stand in for all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from metastore.config import NodeConfig
from metastore.core.messages import Process
from metastore.core.node import NodeCore
from metastore.node.halt import Halt
from metastore.node.identity import Identity
from metastore.node.peers import PeerLinks
from metastore.node.pins import Pins
from metastore.partition.partition import Partition
from metastore.storage.store import Store
from metastore.topology import TopologyTable


class Ticks(Protocol):
    """The tick loop, as others use it."""

    def run_effects(self) -> None:
        """Carry out the effects that the replicas have, now."""

    def wake(self) -> None:
        """There is something to do: a tick comes."""

    def hold_back(self, p: int, /) -> None:
        """R14: what waits to leave and says what the log of a partition has is not true any more."""


class HasConfig(Protocol):
    @property
    def config(self) -> NodeConfig: ...


class HasProcess(Protocol):
    @property
    def me(self) -> Process:
        """This process."""


class HasCore(Protocol):
    @property
    def core(self) -> NodeCore: ...


class HasStore(Protocol):
    @property
    def store(self) -> Store: ...


class HasPartitions(Protocol):
    @property
    def partitions(self) -> Mapping[int, Partition]:
        """The partitions that are open here."""


class HasTopology(Protocol):
    @property
    def topology(self) -> TopologyTable: ...


class HasLinks(Protocol):
    @property
    def links(self) -> PeerLinks: ...


class HasTicks(Protocol):
    @property
    def ticks(self) -> Ticks: ...


class HasHalt(Protocol):
    @property
    def halt(self) -> Halt: ...


class HasPins(Protocol):
    @property
    def pins(self) -> Pins: ...


class HasIdentity(Protocol):
    @property
    def identity(self) -> Identity: ...


class Stops(Protocol):
    @property
    def stopping(self) -> bool:
        """Whether this node hands its leaders over and ends."""
