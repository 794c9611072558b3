"""Where things are in etcd, and what is there. Pure. ``metastore.schema`` says which kind of record a key has.

/metastore/{cluster}/meta                     ClusterMeta      made once
/metastore/{cluster}/cells/{cell}             CellRecord       absent: weight 1, not draining
/metastore/{cluster}/lineage                  LineageRecord    which etcd this one replaces (R13)
/metastore/{cluster}/drained/{node}           {}               the node is to hold nothing
/metastore/{cluster}/features                 FeaturesRecord   absent: the first level
/metastore/{cluster}/paused                   {}               no move goes on while it is there
/metastore/{cluster}/nodes/{node}             NodeRecord       durable registration
/metastore/{cluster}/presence/{node}          {"incarnation"}  on the node's lease
/metastore-marks/{cluster}/{node}             MarkRecord       how far its store was durable lately (R13)
/metastore/{cluster}/config/{cell}/{p:05d}    ConfigRecord     R2, R10
/metastore/{cluster}/leader/{cell}/{p:05d}    LeaderRecord     on the leader's lease
/metastore/{cluster}/moves/{p:05d}            MoveRecord       until the move has ended
/metastore/{cluster}/splits/{p:05d}           SplitRecord      until the split has ended
/metastore/{cluster}/next_partition           a number         the lowest that no partition has had
/metastore/{cluster}/namespaces/{namespace}   namespaces.Policy
/metastore/{cluster}/usage/{node}             {namespace: [records, bytes]} of what it leads, on its lease
"""

from metastore.layout.epochs import MAX_EPOCH, first_epoch, term_of
from metastore.layout.names import Layout
from metastore.layout.records import (
    CELL,
    CONFIG,
    FEATURES,
    FIRST_LEVEL,
    FORMAT,
    HISTORY,
    LEADER,
    LINEAGE,
    MARK,
    MAX_LEVEL,
    MAX_MEMBERS,
    MAX_PARTITION,
    MAX_REPLACED,
    META,
    MOVE,
    NODE,
    SPLIT,
    CellRecord,
    ClusterMeta,
    ConfigRecord,
    FeaturesRecord,
    HistoryRecord,
    LeaderRecord,
    LineageRecord,
    MarkRecord,
    Member,
    MoveRecord,
    NodeRecord,
    SplitRecord,
    node_record_from_json,
    to_json,
)

__all__ = [
    "CELL",
    "CONFIG",
    "FEATURES",
    "FIRST_LEVEL",
    "FORMAT",
    "HISTORY",
    "LEADER",
    "LINEAGE",
    "MARK",
    "MAX_EPOCH",
    "MAX_LEVEL",
    "MAX_MEMBERS",
    "MAX_PARTITION",
    "MAX_REPLACED",
    "META",
    "MOVE",
    "NODE",
    "SPLIT",
    "CellRecord",
    "ClusterMeta",
    "ConfigRecord",
    "FeaturesRecord",
    "HistoryRecord",
    "Layout",
    "LeaderRecord",
    "LineageRecord",
    "MarkRecord",
    "Member",
    "MoveRecord",
    "NodeRecord",
    "SplitRecord",
    "first_epoch",
    "node_record_from_json",
    "term_of",
    "to_json",
]
