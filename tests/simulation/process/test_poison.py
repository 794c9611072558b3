"""Records in etcd that make no sense, on whole nodes: nothing stops for them, not even a restart of everything while they are
there; and when they are gone nothing of them is left."""

from __future__ import annotations

from metastore.coordination.interface import Delete, Put
from metastore.layout import ConfigRecord
from tests.simulation.process.process import Process
from tests.simulation.process.test_splits import LAYOUT, Schedule
from tests.simulation.process.world import surroundings

ROOT = LAYOUT.root
NEW = {
    ROOT + "nodes/ghost": b'{"node": "ghost", "rpc": 5}',
    ROOT + "nodes/\udcff": b"{}",
    ROOT + "namespaces/ns": b'{"routing": 7}',
    ROOT + "moves/00001": b"[",
    ROOT + "splits/00001": b"null",
    ROOT + "usage/x": b'{"n": ["a", "b"]}',
}


def knows(process: Process) -> set[str]:
    """The records that make no sense to a process, once it runs."""
    return set(process.node.control.records.bad) if process.runs else set()


def test_nonsense_in_etcd_stops_nobody() -> None:
    with surroundings():
        s = Schedule(1)
        world = s.world
        key = LAYOUT.config("c1", 0)
        good = world.etcd.kvs[key].value
        overlap = LAYOUT.config("c1", 77)
        members = world.config(0).replicas
        bad = ConfigRecord(77, 5, 1 << 62, 1 << 16, members[0][0], members)
        hurt = {**NEW, key: b'{"partition": 0', overlap: bad.to_json()}
        keys = s.keys(0, 3) + s.keys(1, 3)
        s.put_all(keys)
        world.etcd.txn([], [Put(k, v) for k, v in hurt.items()], [])
        everybody = list(world.processes.values())
        world.until(lambda: all(len(knows(p)) == len(NEW) + 1 for p in everybody), 10, "not all were met")
        assert all(set(p.node.topology.aside) == {77} and 77 not in p.node.partitions for p in everybody)
        s.put_all(keys, b"w")
        # the leader whose record makes no sense is lost: its followers claim
        lost = s.leader(0)
        lost.die(silently=False)
        lost.disk.kill()
        s.put_all(keys, b"x")
        lost.restart()
        world.until(lambda: all(p.runs for p in everybody), 20, "it does not come back")
        # everything at once
        for process in everybody:
            process.crash("is killed with all others")
        world.until(
            lambda: (
                all(p.runs for p in everybody)
                and all(
                    any(h.replica.role == "active" for h in world.hosts(p))
                    for p in range(world.plan.partitions)
                )
            ),
            20,
            "no leaders after a restart of everything",
        )
        s.put_all(keys, b"y")
        world.until(
            lambda: all(len(knows(p)) == len(NEW) + 1 for p in everybody), 10, "not all were met again"
        )
        # and it is gone
        world.etcd.txn([], [Put(key, good), *(Delete(k) for k in (*NEW, overlap))], [])
        world.until(
            lambda: all(p.runs and not knows(p) and not p.node.topology.aside for p in everybody),
            10,
            "some stays",
        )
        s.put_all(keys, b"z")
        world.until(world.all_led, 20, "no leaders")
