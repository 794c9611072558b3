"""R13: when a process goes over to an etcd that was rebuilt; never by accident."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from metastore.coordination.interface import Change, Compare, Known, Peek, Put
from metastore.coordination.lineage import Follower, objection
from metastore.coordination.memory import MemoryCoordinator, MemoryEtcd
from metastore.errors import CoordinationUnavailable
from metastore.layout import LineageRecord

OLD, NEW = 0xA, 0xB
RECORD = LineageRecord(2, NEW, 500, (OLD,))
SEEN = Peek(NEW, 30, None)
KNOWN = Known(OLD, 500, 0, 1)


def test_it_is_followed_by_who_knows_no_more_than_the_rebuilding() -> None:
    assert objection(RECORD, KNOWN, SEEN, False) == ""


@pytest.mark.parametrize(
    ("record", "known", "seen", "why"),
    [
        (RECORD, KNOWN, Peek(0xC, 30, None), "copied or restored"),
        (RECORD, KNOWN._replace(number=2), SEEN, "lost again"),
        (RECORD, KNOWN._replace(number=7), SEEN, "lost again"),
        (replace(RECORD, replaces=(0xD,)), KNOWN, SEEN, "did not know"),
        (RECORD, KNOWN._replace(cluster_id=NEW), SEEN, "did not know"),
        (RECORD, KNOWN._replace(revision=501), SEEN, "has seen 501"),
    ],
)
def test_and_by_nobody_else(record: LineageRecord, known: Known, seen: Peek, why: str) -> None:
    assert why in objection(record, known, seen, False)


def test_who_trusts_it_already_only_counts_from_elsewhere() -> None:
    assert objection(RECORD, Known(NEW, 900, 0, 1), SEEN, True) == ""
    assert "below" in objection(RECORD, Known(NEW, 900, 501, 1), SEEN, True)


async def test_it_goes_over_and_revisions_go_on_above_all_that_were_seen() -> None:
    etcd = MemoryEtcd(OLD)
    clock = asyncio.get_running_loop().time
    c = MemoryCoordinator(etcd, clock)
    for _ in range(40):
        before = await c.txn([], [Put("/r/a", b"1")])
    old = await c.get("/r/a")
    assert old is not None
    changes: list[Change] = []
    watch = c.watch("/r/", lambda _, found: changes.extend(found))
    session = c.session(5.0)
    session.start()
    await watch.ready.wait()
    while not session.alive:
        await asyncio.sleep(0)
    etcd.cluster_id, etcd.revision, etcd.kvs = NEW, 3, {}
    etcd.leases.clear()
    etcd.compact()
    with pytest.raises(CoordinationUnavailable):
        await c.get("/r/a")
    follower = Follower(c, "/r/lineage")
    assert not await follower.look(), "there is nothing"
    base = before.revision
    for wrong in (replace(RECORD, base=base - 1), replace(RECORD, base=base, cluster_id=OLD)):
        etcd.txn([], [Put("/r/lineage", wrong.to_json())], [])
        assert not await follower.look()
        assert c.untrusted
    etcd.txn([], [Put("/r/lineage", b"{")], [])
    assert not await follower.look()
    lease = session.lease_id
    etcd.txn([], [Put("/r/a", b"2"), Put("/r/lineage", replace(RECORD, base=base).to_json())], [])
    changes.clear()
    assert await follower.look()
    assert not c.untrusted
    while len(changes) < 2 or not session.alive:
        await asyncio.sleep(0)
    assert lease not in etcd.leases or session.lease_id != lease or etcd.leases
    new = await c.get("/r/a")
    assert new is not None
    assert new.value == b"2"
    assert new.mod_revision > old.mod_revision
    assert not (await c.txn([Compare.mod_revision_is("/r/a", old.mod_revision)], [])).succeeded
    assert (await c.txn([Compare.mod_revision_is("/r/a", new.mod_revision)], [])).succeeded
    assert not (await c.txn([Compare.mod_revision_is("/r/none", base)], [])).succeeded, "not taken for absent"
    for since, unchanged in (
        (new.mod_revision, True),
        (new.mod_revision - 1, False),
        (old.mod_revision, False),
    ):
        assert (await c.txn([Compare.unchanged_since("/r/", since)], [])).succeeded is unchanged
    assert (await c.txn([Compare.absent("/r/none")], [])).succeeded
    again = MemoryCoordinator(etcd, clock, c.known)
    assert (await again.get("/r/a")) == new, "as after a restart"
    for one in (c, again):
        await one.close()


async def test_who_trusts_it_hears_that_it_is_rebuilt_once_more() -> None:
    """Its revisions count from higher up then; who distrusted it does so, and everybody has to."""
    etcd = MemoryEtcd(NEW)
    c = MemoryCoordinator(etcd, asyncio.get_running_loop().time, Known(NEW, 600, 500, 2))
    follower = Follower(c, "/r/lineage")
    task = asyncio.ensure_future(follower.run())
    etcd.txn([], [Put("/r/lineage", LineageRecord(3, NEW, 700, (OLD,)).to_json())], [])
    follower.notice()
    for _ in range(1000):
        await asyncio.sleep(0)
    assert (c.known.base, c.known.number) == (700, 3)
    task.cancel()
    await c.close()
