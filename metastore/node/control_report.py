"""The report of a node on the control plane, from its own store and memory, without asking etcd: what the records are rebuilt
from when etcd has lost them (R13; ``cellctl control rebuild``)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final, Protocol

from metastore.coordination.interface import Coordinator
from metastore.core.configs import unpack_config
from metastore.core.replica import ACTIVE
from metastore.layout import NodeRecord
from metastore.node.features import Features
from metastore.node.ports import HasConfig, HasIdentity, HasPartitions, HasStore, HasTopology

#: records that only etcd and its followers have: the others are the stores' own, or on a lease
ONLY_IN_ETCD: Final = frozenset(
    {
        "meta",
        "cells",
        "drained",
        "features",
        "paused",
        "moves",
        "splits",
        "next_partition",
        "namespaces",
    }
)


class Registered(Protocol):
    def record(self) -> NodeRecord:
        """This node's, as it is to be registered."""


class ControlPlane(Protocol):
    """What this needs of the control plane."""

    @property
    def coordinator(self) -> Coordinator: ...
    @property
    def registration(self) -> Registered: ...

    def records_seen(self) -> tuple[int, list[tuple[str, str]]] | None:
        """Records that only etcd has, and etcd's revision; None = none has been seen."""


class Here(HasConfig, HasPartitions, HasIdentity, HasStore, HasTopology, Protocol):
    """What this needs of the node."""

    @property
    def control(self) -> ControlPlane: ...
    @property
    def features(self) -> Features: ...


def control_view(node: Here) -> dict[str, Any]:
    """For ``/v1/control``. Cluster ids of etcd are hexadecimal text: JSON has no such numbers."""
    control = node.control
    return {
        "cluster": node.config.cluster,
        "node": asdict(control.registration.record()),
        "identity": node.identity.state,
        "level": node.features.level,
        "etcd": etcd_view(node),
        "partitions": [_held(node, p) for p in sorted(node.store.partitions)],
        "topology": node.topology.to_wire(),
        "mirror": mirror(node),
    }


def etcd_view(node: Here) -> dict[str, Any]:
    """Which etcd it follows, or would not."""
    coordinator = node.control.coordinator
    known = coordinator.known
    return {
        "cluster_id": None if known.cluster_id is None else f"{known.cluster_id:x}",
        "revision": known.revision,
        "base": known.base,
        "number": known.number,
        "untrusted": coordinator.untrusted,
        "connected": coordinator.connected,
    }


def _held(node: Here, p: int) -> dict[str, Any]:
    """What the store promised of a partition (R1), and the newest record of it that it knows; also of one that it has
    dropped."""
    info, partition = node.store.partitions[p], node.partitions.get(p)
    config = unpack_config(info.config) if info.config is not None else None
    sealed, leads = info.sealed_epoch, False
    if partition is not None:
        replica = partition.replica
        sealed, leads = max(sealed, replica.sealed_epoch), replica.role == ACTIVE
        if replica.config is not None and (config is None or replica.config.epoch >= config.epoch):
            config = replica.config
    return {
        "id": p,
        "sealed": sealed,
        "leads": leads,
        "dropped": info.dropped,
        "config": None if config is None else config.to_plain(),
    }


def mirror(node: Here) -> dict[str, Any] | None:
    """The records that only etcd has, as this node saw them last; None = it has not seen any since it started."""
    seen = node.control.records_seen()
    if seen is None:
        return None
    revision, kvs = seen
    return {"revision": revision, "records": [[key, value] for key, value in kvs]}
