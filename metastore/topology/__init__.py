"""Where partitions are: the table (``table``), and what stands in it.

A table is of a revision of etcd: it has what etcd had then, all of it, and nothing else. So what another table lacks
that is of a later revision was removed since (``merge``), unless that one says that it could not read it
(``unreadable``). Beside it stands what only replicas have told as yet: what was split off (``learned``).

``partitions`` always covers the ring, once it did: records that overlap or leave a gap are put aside (``aside``), and the last
good map holds. A node's record that was removed is kept for as long as a partition names the node.

A change costs its own size: which rows are other than they were is noted (``changes``), and who has the table as it
was at a revision is told these alone (``to_wire`` with ``since``), by a table that ``merge`` takes for what it is.
"""

from metastore.topology.placements import Placement, placement_of, placement_to_plain
from metastore.topology.table import TopologyTable, is_config

__all__ = ["Placement", "TopologyTable", "is_config", "placement_of", "placement_to_plain"]
