"""Where things are in etcd, and their JSON forms. Pure.

/metastore/{cluster}/meta                     ClusterMeta      made once
/metastore/{cluster}/cells/{cell}             CellRecord       absent: weight 1, not draining
/metastore/{cluster}/drained/{node}           {}               the node is to hold nothing
/metastore/{cluster}/paused                   {}               no move goes on while it is there
/metastore/{cluster}/nodes/{node}             NodeRecord       durable registration
/metastore/{cluster}/presence/{node}          {"incarnation"}  on the node's lease
/metastore/{cluster}/marks/{node}             MarkRecord       how far its store was durable lately (R13)
/metastore/{cluster}/config/{cell}/{p:05d}    ConfigRecord     R2, R10
/metastore/{cluster}/leader/{cell}/{p:05d}    LeaderRecord     on the leader's lease
/metastore/{cluster}/moves/{p:05d}            MoveRecord       until the move has ended
/metastore/{cluster}/namespaces/{namespace}   namespaces.Policy
/metastore/{cluster}/usage/{node}             {namespace: [records, bytes]} of what it leads, on its lease
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import orjson

from metastore.decoding import Undecodable, load_json
from metastore.errors import InvalidRequest
from metastore.history import check_generation

FORMAT: Final = 1
RESTART_BITS: Final = 16
#: of each partition's history: terms, and of each the owners that went on in it without etcd
HISTORY_TERMS: Final = 32
HISTORY_RESTARTS: Final = 4


def term_of(epoch: int) -> int:
    """The part of an epoch that only etcd hands out."""
    return epoch >> RESTART_BITS


def first_epoch(term: int) -> int:
    """The first epoch (restart 0) of ``term``."""
    return term << RESTART_BITS


@dataclass(frozen=True, slots=True)
class ClusterMeta:
    """Fixed when the cluster is made."""

    format: int
    cluster: str
    partitions: int
    hash: str
    ring: dict[str, Any]


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node: its store (R13) and addresses (``host:port``). ``generation``: of the store, as the process
    ``incarnation`` registered it; 0 = of a version that has none."""

    node: str
    cell: str
    store_id: str
    rpc: str
    http: str
    zone: str = ""
    generation: int = 0
    incarnation: str = ""

    @classmethod
    def from_plain(cls, d: dict[str, Any]) -> NodeRecord:
        """What it has besides is of a later version, and passed over. Raises ValueError."""
        try:
            names = ("node", "cell", "store_id", "rpc", "http")
            texts = [*(d[name] for name in names), d.get("zone", "")]
            generation, incarnation = d.get("generation", 0), d.get("incarnation", "")
        except (KeyError, TypeError, AttributeError) as e:
            raise ValueError(f"not a node's record: {type(e).__name__}: {e}"[:200]) from None
        good = all(type(text) is str for text in (*texts, incarnation))
        if not good or type(generation) is not int or generation < 0:
            raise ValueError(f"not a node's record: {d!r:.200}")
        node, cell, store_id, rpc, http, zone = texts
        return cls(node, cell, store_id, rpc, http, zone, generation, incarnation)


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
        """What it has besides is of a later version, and passed over. Raises InvalidRequest, ValueError."""
        d = _load(raw)
        texts, counts = (d.get("store_id"), d.get("incarnation")), (d.get("generation"), d.get("mark"))
        if not all(type(t) is str for t in texts) or not all(type(n) is int and n >= 0 for n in counts):
            raise ValueError(f"not a mark: {d!r:.200}")
        return cls(d["store_id"], d["generation"], d["incarnation"], d["mark"])


Member = tuple[str, str]
"""``(node, store_id)``: membership names the store, not only the node (R13)."""


@dataclass(frozen=True, slots=True)
class ConfigRecord:
    """``config(p)``: epoch, its owner, and the replicas that make its quorums.

    ``lo``/``hi``: the range of points, so that a table can be made from these records alone.
    ``leader`` is a node name, None before the first election.
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

    def members(self) -> tuple[Member, ...]:
        """Replicas of both sets, without doubles, in preference order."""
        extra = tuple(m for m in self.joint or () if m not in self.replicas)
        return self.replicas + extra

    def to_json(self) -> bytes:
        return orjson.dumps(self.to_plain())

    def to_plain(self) -> dict[str, Any]:
        plain = asdict(self)
        plain["lo"], plain["hi"] = f"{self.lo:016x}", f"{self.hi:016x}"
        return plain

    @classmethod
    def from_plain(cls, d: dict[str, Any]) -> ConfigRecord:
        joint, parent = d.get("joint"), d.get("parent")
        return cls(
            int(d["partition"]),
            int(d["lo"], 16),
            int(d["hi"], 16),
            int(d["epoch"]),
            d["leader"],
            tuple((n, s) for n, s in d["replicas"]),
            tuple((n, s) for n, s in joint) if joint else None,
            (int(parent[0]), int(parent[1]), int(parent[2])) if parent else None,
            check_generation(int(d.get("generation", 0))),
        )

    @classmethod
    def from_json(cls, raw: bytes) -> ConfigRecord:
        return cls.from_plain(_load(raw))


@dataclass(frozen=True, slots=True)
class CellRecord:
    """``weight``: its share of the partitions; ``draining``: it is to hold none."""

    weight: float = 1.0
    draining: bool = False

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, raw: bytes) -> CellRecord:
        d = _load(raw)
        return cls(float(d.get("weight", 1.0)), bool(d.get("draining", False)))


@dataclass(frozen=True, slots=True)
class MoveRecord:
    """A change of a partition's replicas that the cluster is to carry out (R10).

    ``target``: the replicas it is to have, in order of preference; ``cell``: where they are. ``cancel``:
    go back to the replicas it had. ``cause``: who asked for it, for history.
    """

    partition: int
    cell: str
    target: tuple[Member, ...]
    cancel: bool = False
    cause: str = ""

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, raw: bytes) -> MoveRecord:
        d = _load(raw)
        target = tuple((str(n), str(s)) for n, s in d["target"])
        if not target or len({n for n, _ in target}) != len(target):
            raise InvalidRequest(f"a move to {target!r:.200} names no node, or one twice")
        return cls(int(d["partition"]), str(d["cell"]), target, bool(d["cancel"]), str(d["cause"]))


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
        d = _load(raw)
        return cls(int(d["partition"]), int(d["child"]), int(d["at"], 16), str(d["cause"]))


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
        d = _load(raw)
        return cls(
            int(d["partition"]),
            int(d["epoch"]),
            str(d["cell"]),
            d["leader"],
            tuple(d["replicas"]),
            str(d["kind"]),
            str(d["cause"]),
            int(d["at_ms"]),
        )


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
        d = _load(raw)
        return cls(d["node"], d["incarnation"], int(d["epoch"]))


def _load(raw: bytes) -> dict[str, Any]:
    try:
        value = load_json(raw)
    except Undecodable as e:
        raise InvalidRequest(f"a control-plane record is not JSON ({e}): {raw[:80]!r}") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"a control-plane record is not an object: {raw[:80]!r}")
    return value


def node_record_from_json(raw: bytes) -> NodeRecord:
    try:
        return NodeRecord.from_plain(_load(raw))
    except ValueError as e:
        raise InvalidRequest(str(e)) from None


def meta_from_json(raw: bytes) -> ClusterMeta:
    d = _load(raw)
    return ClusterMeta(int(d["format"]), d["cluster"], int(d["partitions"]), d["hash"], d["ring"])


def to_json(record: ClusterMeta | NodeRecord) -> bytes:
    return orjson.dumps(asdict(record))


class Layout:
    """Key names of one cluster."""

    def __init__(self, cluster: str) -> None:
        self.cluster = cluster
        self.root = f"/metastore/{cluster}/"
        self.meta = self.root + "meta"
        #: beside the root, so that nobody who follows the cluster is told of it
        self.history_root = f"/metastore-history/{cluster}/"

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
        return f"{self.root}marks/{node}"

    def usage(self, node: str) -> str:
        return f"{self.root}usage/{node}"

    def parse(self, key: str) -> tuple[str, ...]:
        """``("config", cell, "00001")`` and the like; the parts below the cluster's root."""
        return tuple(key[len(self.root) :].split("/"))
