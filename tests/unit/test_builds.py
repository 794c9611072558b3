"""The other build of the chaos scenario `rolling-upgrade` can be made, and says more than this one knows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from metastore.core.messages import HandOff, Process
from metastore.layout import ConfigRecord, NodeRecord, first_epoch
from metastore.topology import TopologyTable
from metastore.wire import peer_messages
from metastore.wire.versions import agree, peer_versions, read_spoken
from tests.chaos import builds

SAYS = """
import sys; sys.path.insert(0, sys.argv[1])
import orjson
from metastore.core.messages import HandOff, Lineage, Process, Run
from metastore.layout import NodeRecord, to_json
from metastore.node.features import LEVEL
from metastore.wire import peer_messages as p, versions as v
me = Process("a", "sa", "1")
told = p.Hello(me, Lineage((Run(1, "1"),)), v.peer_versions(), v.Levels(1, LEVEL))
hello = p.hello("c", told, "b", "sb")
record = orjson.loads(to_json(NodeRecord("a", "c", "sa", "h:1", "h:2", level=LEVEL)))
from metastore.topology import Placement, TopologyTable
table = TopologyTable("c")
table.apply_kv(("config", "c1", "00000"), sys.argv[2].encode(), 5)
table.begin([("config", "c1", "00000")], 5)
table.apply_kv(("namespaces", "ns"), b"{}", 6)
wires = [table.to_wire(), table.to_wire(5)]
print(orjson.dumps([p.encode(HandOff(1, 2)), hello, record, wires]).decode())
"""


def test_the_other_build_says_more_and_is_understood(tmp_path: Path) -> None:
    import orjson

    folder = builds.make(tmp_path / "later")
    config = ConfigRecord(0, 0, 1 << 64, first_epoch(3), "a", (("a", "sa"),)).to_json()
    done = subprocess.run(
        [sys.executable, "-c", SAYS, str(folder), config.decode()], capture_output=True, text=True, check=True
    )
    message, hello, record, (whole, change) = orjson.loads(done.stdout)
    assert len(message) == 4
    assert peer_messages.decode(message) == HandOff(1, 2)
    told = peer_messages.read_hello(hello, "c", Process("b", "sb", "1"))
    assert len(hello) == 10
    assert (told.process.node, told.lineage.generation, told.levels) == ("a", 1, (1, 2))
    spoken = told.spoken
    assert (spoken.highest, spoken.build) == (2, builds.LATER)
    assert agree(peer_versions(), "b", spoken, "a") == 1
    assert read_spoken(hello[7]) == spoken
    assert NodeRecord.from_plain(record).level == 2
    assert whole["later"]
    assert change["later"]
    assert whole["partitions"][0]["later"]
    assert (change["since"], change["partitions"]) == (5, [])
    table = TopologyTable.from_wire(whole)
    assert (table.partitions[0].leader, table.left_out) == ("a", [])
    table.revision = 5
    table.merge(TopologyTable.from_wire(change))
    assert (table.revision, set(table.namespaces)) == (6, {"ns"})
