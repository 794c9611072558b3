"""How a rebuilding is carried out, on an etcd in memory that changes and loses answers; and the file of a backup."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from cellctl.control import Backup, carry_out, read_backup
from cellctl.rebuild import Rebuild, Step
from metastore.coordination.interface import Compare, Op, Put, TxnResult
from metastore.coordination.memory import MemoryCoordinator, MemoryEtcd
from metastore.errors import InvalidRequest, Unavailable

KEYS = [*(f"/r/{i:02d}" for i in range(40)), "/r/lineage"]


class Slow(MemoryCoordinator):
    """Each transaction takes a while, and the last to be asked for would be the first to be done. ``lost``: the key of
    the one whose answer is lost."""

    def __init__(self, etcd: MemoryEtcd, lost: str = "", made: bool = True) -> None:
        super().__init__(etcd, asyncio.get_running_loop().time)
        self.service, self.lost, self.made = etcd, lost, made
        self.begun = 0
        self.done: list[str] = []

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()
    ) -> TxnResult:
        self.begun += 1
        for _ in range(200 - self.begun):
            await asyncio.sleep(0)
        key = then[0].key
        self.done.append(key)
        if key == self.lost:
            self.service.lose_next_answer = True
            if not self.made:
                compares = [Compare.mod_revision_is(key, 1 << 40)]
        return await super().txn(compares, then, otherwise)


def rebuild() -> Rebuild:
    steps = [Step(key[3:], [Compare.absent(key)], [Put(key, b"new " + key.encode())]) for key in KEYS]
    return Rebuild(steps=steps)


async def test_nodes_are_told_when_everything_is_written() -> None:
    """R13: by the lineage they trust what is there, so it is asked for only after all the rest is done."""
    c = Slow(MemoryEtcd())
    await carry_out(c, rebuild())
    assert sorted(c.done) == sorted(KEYS)
    assert c.done[-1] == "/r/lineage"
    assert {key: kv.value for key, kv in c.service.kvs.items()} == {k: b"new " + k.encode() for k in KEYS}


async def test_what_has_changed_meanwhile_stays_and_nobody_is_told() -> None:
    etcd = MemoryEtcd()
    etcd.txn([], [Put(KEYS[3], b"of somebody else")], [])
    with pytest.raises(Unavailable, match="record 03 has changed meanwhile"):
        await carry_out(Slow(etcd), rebuild())
    assert etcd.kvs[KEYS[3]].value == b"of somebody else"
    assert "/r/lineage" not in etcd.kvs


@pytest.mark.parametrize("lost", [KEYS[5], "/r/lineage"])
async def test_a_lost_answer_is_decided_by_what_is_there(lost: str) -> None:
    c = Slow(MemoryEtcd(), lost)
    await carry_out(c, rebuild())
    assert set(c.service.kvs) == set(KEYS)
    etcd = MemoryEtcd()
    with pytest.raises(Unavailable, match="do the same again"):
        await carry_out(Slow(etcd, lost, made=False), rebuild())
    assert "/r/lineage" not in etcd.kvs
    etcd = MemoryEtcd()
    etcd.txn([], [Put(lost, b"of somebody else")], [])
    with pytest.raises(Unavailable, match="do the same again"):
        await carry_out(Slow(etcd, lost), rebuild())


def test_a_backup_is_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "control.json"
    plain = Backup("c", "ab", 7, 5, (("/r/a", "1"), ("/r/b", "2"))).to_plain()
    path.write_text(json.dumps(plain))
    assert read_backup(path) == Backup("c", "ab", 7, 5, (("/r/a", "1"), ("/r/b", "2")))
    for changed in ({"revision": 8}, {"records": [["/r/a", "1"]]}, {"cluster": "d"}):
        path.write_text(json.dumps(plain | changed))
        with pytest.raises(InvalidRequest, match="does not match its checksum"):
            read_backup(path)
