"""What a node tells of the control plane (``/v1/control``), read at the door. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from metastore import fields
from metastore.errors import InvalidRequest
from metastore.fields import Field, Shape
from metastore.layout import FIRST_LEVEL, MAX_EPOCH, MAX_LEVEL, ConfigRecord, NodeRecord
from metastore.topology import TopologyTable


class Held(NamedTuple):
    """What a store says of a partition."""

    id: int
    sealed: int
    leads: bool
    dropped: bool
    config: ConfigRecord | None


@dataclass(frozen=True)
class Report:
    """What a node tells of the control plane (``/v1/control``)."""

    node: NodeRecord
    identity: str
    cluster_id: int | None
    revision: int
    base: int
    number: int
    untrusted: str
    connected: bool
    partitions: dict[int, Held]
    table: TopologyTable
    #: what it saw last of the records that only etcd has, by key below the root; None = nothing since it started
    mirror: dict[str, str] | None
    mirror_revision: int
    #: the cluster's feature level, as far as it knows
    level: int = FIRST_LEVEL

    @property
    def counts(self) -> bool:
        """Whether its store is known to be the one that it says (R13)."""
        return self.identity in ("confirmed", "provisional")


def _etcd_id(value: Any) -> int:
    return int(fields.text(value), 16)


_HELD: Final = Shape(
    "what a store says of a partition",
    Held,
    {
        "id": Field(fields.whole()),
        "sealed": Field(fields.whole(0, MAX_EPOCH)),
        "leads": Field(fields.flag),
        "dropped": Field(fields.flag),
        "config": Field(fields.maybe(ConfigRecord.from_plain)),
    },
)
_PAIR: Final = fields.row(fields.text, fields.anything)


def report_from_plain(raw: Any, cluster: str) -> Report:
    """What a node answered. Raises InvalidRequest when it is not valid, or is of another cluster."""
    try:
        if raw["cluster"] != cluster:
            raise InvalidRequest(f"it belongs to cluster {raw['cluster']!r:.80}, not to {cluster!r}")
        etcd, mirror = raw["etcd"], raw["mirror"]
        held = [_HELD.read(one) for one in raw["partitions"]]
        count = fields.whole()
        records = None
        if mirror is not None:
            records = {str(key): str(value) for key, value in map(_PAIR, mirror["records"])}
        return Report(
            NodeRecord.from_plain(raw["node"]),
            fields.text(raw["identity"]),
            fields.maybe(_etcd_id)(etcd["cluster_id"]),
            count(etcd["revision"]),
            count(etcd["base"]),
            count(etcd["number"]),
            fields.text(etcd["untrusted"]),
            fields.flag(etcd["connected"]),
            {one.id: one for one in held},
            TopologyTable.from_wire(raw["topology"]),
            records,
            count(mirror["revision"]) if mirror is not None else 0,
            fields.whole(FIRST_LEVEL, MAX_LEVEL)(raw["level"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise InvalidRequest(f"the node's report is not valid: {type(e).__name__}: {e}"[:300]) from None
