"""Every kind of record in etcd: its fields, their types and bounds. Pure.

What comes in is read by a shape (metastore.fields), here and in ``namespaces``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import orjson

from metastore import fields
from metastore.fields import Field, Shape
from metastore.history import MAX_GENERATIONS
from metastore.layout.epochs import MAX_EPOCH

FORMAT: Final = 1
#: of features: where there is no record, and the highest that can be
FIRST_LEVEL: Final = 1
MAX_LEVEL: Final = 1 << 16
#: what the records below may say at most
MAX_PARTITION: Final = 99_999
MAX_MEMBERS: Final = 16
MAX_WEIGHT: Final = 1000
MAX_BASE: Final = (1 << 61) - 1
MAX_REPLACED: Final = 64


MEMBER = fields.row(fields.name, fields.name)
#: the most that an epoch, an index or a revision may be: msgpack and JSON of others hold no more
_COUNT = fields.whole()
_PARTITION = fields.whole(0, MAX_PARTITION)


@dataclass(frozen=True, slots=True)
class ClusterMeta:
    """Fixed when the cluster is made."""

    format: int
    cluster: str
    partitions: int
    hash: str
    ring: dict[str, Any]

    @classmethod
    def from_json(cls, raw: bytes) -> ClusterMeta:
        """Raises BadRecord."""
        return META.read_json(raw)


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node: its store (R13) and addresses (``host:port``). ``generation``: of the store, as the process
    ``incarnation`` registered it; 0 = of a version that has none. ``level``: the highest feature level that its build supports.
    Only the node itself writes it."""

    node: str
    cell: str
    store_id: str
    rpc: str
    http: str
    zone: str = ""
    generation: int = 0
    incarnation: str = ""
    level: int = FIRST_LEVEL

    @classmethod
    def from_plain(cls, d: Any) -> NodeRecord:
        """What it has besides is of a later version, and passed over. Raises BadRecord."""
        return NODE.read(d)


@dataclass(frozen=True, slots=True)
class FeaturesRecord:
    """The cluster's feature level: what of later builds may be written. It never falls."""

    level: int

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, raw: bytes) -> FeaturesRecord:
        """Raises BadRecord."""
        return FEATURES.read_json(raw)


@dataclass(frozen=True, slots=True)
class MarkRecord:
    """R13: how far the log of a node's store was durable, as the process ``incarnation``, its run ``generation``, told."""

    store_id: str
    generation: int
    incarnation: str
    mark: int

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, raw: bytes) -> MarkRecord:
        """Raises BadRecord."""
        return MARK.read_json(raw)


Member = tuple[str, str]
"""``(node, store_id)``: membership names the store, not only the node (R13)."""


@dataclass(frozen=True, slots=True)
class ConfigRecord:
    """``config(p)``: epoch, its owner, and the replicas that make its quorums.

    ``lo``/``hi``: the range of points, so that a table can be made from these records alone.
    ``leader`` is a node name, None before the first election. ``more``: what a later version has in it, as JSON; every
    record that follows keeps it.
    """

    partition: int
    lo: int
    hi: int
    epoch: int
    leader: str | None
    replicas: tuple[Member, ...]
    joint: tuple[Member, ...] | None = None
    #: of a partition that a split made (R18): whose upper part it was, and the epoch and index of the entry
    #: that split it. Its log goes on from there
    parent: tuple[int, int, int] | None = None
    #: of its history, at least (R19): every leader begins its term with a mark of it. What was split off has its
    #: parent's in its state
    generation: int = 0
    more: bytes = b""

    def members(self) -> tuple[Member, ...]:
        """Replicas of both sets, without doubles, in preference order."""
        extra = tuple(m for m in self.joint or () if m not in self.replicas)
        return self.replicas + extra

    def to_json(self) -> bytes:
        return orjson.dumps(self.to_plain())

    def to_plain(self) -> dict[str, Any]:
        plain = asdict(self)
        more = plain.pop("more")
        plain["lo"], plain["hi"] = f"{self.lo:016x}", f"{self.hi:016x}"
        return fields.with_more(plain, more)

    @classmethod
    def from_plain(cls, d: Any) -> ConfigRecord:
        """Raises BadRecord."""
        return CONFIG.read(d)

    @classmethod
    def from_json(cls, raw: bytes) -> ConfigRecord:
        """Raises BadRecord."""
        return CONFIG.read_json(raw)


@dataclass(frozen=True, slots=True)
class CellRecord:
    """``weight``: its share of the partitions; ``draining``: it is to hold none; ``more``: of a later version."""

    weight: float = 1.0
    draining: bool = False
    more: bytes = b""

    def to_json(self) -> bytes:
        plain: dict[str, Any] = {"weight": self.weight, "draining": self.draining}
        return orjson.dumps(fields.with_more(plain, self.more))

    @classmethod
    def from_json(cls, raw: bytes) -> CellRecord:
        """Raises BadRecord."""
        return CELL.read_json(raw)


@dataclass(frozen=True, slots=True)
class MoveRecord:
    """A change of a partition's replicas that the cluster is to carry out (R10).

    ``target``: the replicas it is to have, in order of preference; ``cell``: where they are. ``cancel``:
    go back to the replicas it had. ``cause``: who asked for it, for history; ``more``: of a later version.
    """

    partition: int
    cell: str
    target: tuple[Member, ...]
    cancel: bool = False
    cause: str = ""
    more: bytes = b""

    def to_json(self) -> bytes:
        plain = asdict(self)
        return orjson.dumps(fields.with_more(plain, plain.pop("more")))

    @classmethod
    def from_json(cls, raw: bytes) -> MoveRecord:
        """Raises BadRecord."""
        return MOVE.read_json(raw)


@dataclass(frozen=True, slots=True)
class SplitRecord:
    """A partition that is to be split (R18): from the point ``at`` on it becomes ``child``."""

    partition: int
    child: int
    at: int
    cause: str = ""

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self) | {"at": f"{self.at:016x}"})

    @classmethod
    def from_json(cls, raw: bytes) -> SplitRecord:
        """Raises BadRecord."""
        return SPLIT.read_json(raw)


@dataclass(frozen=True, slots=True)
class HistoryRecord:
    """An election or a step of a move, for people (cellctl history). ``at_ms``: since 1970, by the clock of
    the node that wrote it; ``kind``: ``election``, ``hand-over``, ``restart``, ``claim``, ``move``, ``split``, ``forced`` or
    ``generation``."""

    partition: int
    epoch: int
    cell: str
    leader: str | None
    replicas: tuple[str, ...]
    kind: str
    cause: str
    at_ms: int

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, raw: bytes) -> HistoryRecord:
        """Raises BadRecord."""
        return HISTORY.read_json(raw)


@dataclass(frozen=True, slots=True)
class LeaderRecord:
    """``leader(p)``: the process (incarnation) that holds the partition's lease."""

    node: str
    incarnation: str
    epoch: int

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, raw: bytes) -> LeaderRecord:
        """Raises BadRecord."""
        return LEADER.read_json(raw)


@dataclass(frozen=True, slots=True)
class LineageRecord:
    """R13: from which etcd the cluster's records went on to this one (metastore.coordination.lineage). ``number``: counts the
    rebuildings; ``cluster_id``: of the etcd it was written for; ``base``: added to that one's revisions; ``replaces``: cluster
    ids of those before."""

    number: int
    cluster_id: int
    base: int
    replaces: tuple[int, ...]
    at_ms: int = 0

    def to_json(self) -> bytes:
        plain = asdict(self)
        plain["cluster_id"] = f"{self.cluster_id:x}"
        plain["replaces"] = [f"{one:x}" for one in self.replaces]
        return orjson.dumps(plain)

    @classmethod
    def from_json(cls, raw: bytes) -> LineageRecord:
        """Raises BadRecord."""
        return LINEAGE.read_json(raw)


def check_members(members: tuple[Member, ...] | None) -> None:
    """Raises ValueError when a node is among them twice."""
    if members is not None and len({node for node, _ in members}) != len(members):
        raise ValueError(f"{members!r:.200} names a node twice")


def _config(**read: Any) -> ConfigRecord:
    config = ConfigRecord(**{**read, "joint": read["joint"] or None})
    if not config.lo < config.hi:
        raise ValueError(f"its range, from {config.lo:016x} to {config.hi:016x}, is empty")
    check_members(config.replicas)
    check_members(config.joint)
    return config


def _move(**read: Any) -> MoveRecord:
    check_members(read["target"])
    return MoveRecord(**read)


def _id_of_etcd(value: Any) -> int:
    """A cluster id of etcd, which is too large a number for JSON, as hexadecimal text."""
    if type(value) is not str or not 0 < len(value) <= 16:
        raise ValueError(f"{value!r:.60} is not a cluster id of etcd: hexadecimal digits")
    return int(value, 16)


_MEMBERS = fields.several(MEMBER, 1, MAX_MEMBERS)
META: Final = Shape(
    "the cluster's record",
    ClusterMeta,
    {
        "format": Field(_COUNT),
        "cluster": Field(fields.name),
        "partitions": Field(fields.whole(1, MAX_PARTITION + 1)),
        "hash": Field(fields.name),
        "ring": Field(fields.mapping(fields.text, fields.anything, 64)),
    },
)
NODE: Final = Shape(
    "a node's record",
    NodeRecord,
    {
        "node": Field(fields.name),
        "cell": Field(fields.name),
        "store_id": Field(fields.name),
        "rpc": Field(fields.address),
        "http": Field(fields.address),
        "zone": Field(fields.text, ""),
        "generation": Field(_COUNT, 0),
        "incarnation": Field(fields.text, ""),
        "level": Field(fields.whole(FIRST_LEVEL, MAX_LEVEL), FIRST_LEVEL),
    },
)
FEATURES: Final = Shape(
    "the cluster's feature level",
    FeaturesRecord,
    {"level": Field(fields.whole(FIRST_LEVEL, MAX_LEVEL))},
)
CONFIG: Final = Shape(
    "a partition's record",
    _config,
    {
        "partition": Field(_PARTITION),
        "lo": Field(fields.point),
        "hi": Field(fields.point),
        "epoch": Field(fields.whole(0, MAX_EPOCH)),
        "leader": Field(fields.maybe(fields.name)),
        "replicas": Field(_MEMBERS),
        "joint": Field(fields.maybe(fields.several(MEMBER, 0, MAX_MEMBERS)), None),
        "parent": Field(fields.maybe(fields.row(_PARTITION, fields.whole(0, MAX_EPOCH), _COUNT)), None),
        "generation": Field(fields.whole(0, MAX_GENERATIONS - 1), 0),
    },
    keeps=True,
)
CELL: Final = Shape(
    "a cell's record",
    CellRecord,
    {"weight": Field(fields.real(0, MAX_WEIGHT), 1.0), "draining": Field(fields.flag, False)},
    keeps=True,
)
MOVE: Final = Shape(
    "a move's record",
    _move,
    {
        "partition": Field(_PARTITION),
        "cell": Field(fields.name),
        "target": Field(_MEMBERS),
        "cancel": Field(fields.flag, False),
        "cause": Field(fields.text, ""),
    },
    keeps=True,
)
MARK: Final = Shape(
    "a store's mark",
    MarkRecord,
    {
        "store_id": Field(fields.name),
        "generation": Field(_COUNT),
        "incarnation": Field(fields.text),
        "mark": Field(_COUNT),
    },
)
SPLIT: Final = Shape(
    "a split's record",
    SplitRecord,
    {
        "partition": Field(_PARTITION),
        "child": Field(_PARTITION),
        "at": Field(fields.point),
        "cause": Field(fields.text, ""),
    },
)
LEADER: Final = Shape(
    "a leader's record",
    LeaderRecord,
    {
        "node": Field(fields.name),
        "incarnation": Field(fields.text),
        "epoch": Field(fields.whole(0, MAX_EPOCH)),
    },
)
LINEAGE: Final = Shape(
    "a lineage record",
    LineageRecord,
    {
        "number": Field(fields.whole(1)),
        "cluster_id": Field(_id_of_etcd),
        "base": Field(fields.whole(0, MAX_BASE)),
        "replaces": Field(fields.several(_id_of_etcd, 0, MAX_REPLACED)),
        "at_ms": Field(_COUNT, 0),
    },
)
HISTORY: Final = Shape(
    "a record of history",
    HistoryRecord,
    {
        "partition": Field(_PARTITION),
        "epoch": Field(fields.whole(0, MAX_EPOCH)),
        "cell": Field(fields.text),
        "leader": Field(fields.maybe(fields.text)),
        "replicas": Field(fields.several(fields.text)),
        "kind": Field(fields.text),
        "cause": Field(fields.text),
        "at_ms": Field(_COUNT),
    },
)


def node_record_from_json(raw: bytes) -> NodeRecord:
    """Raises BadRecord."""
    return NODE.read_json(raw)


def to_json(record: ClusterMeta | NodeRecord) -> bytes:
    return orjson.dumps(asdict(record))
