"""Quotas are counted by what has changed: the sums are those of a count of everything, at the cost of the change."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from metastore.namespaces import NEARLY_FULL, Policy
from metastore.node.quotas import Quotas
from metastore.topology import TopologyTable


class Usage(dict[bytes, list[int]]):
    """What a partition holds, which counts how often it is asked."""

    asked = 0

    def get(self, key: Any, default: Any = None) -> Any:
        Usage.asked += 1
        return super().get(key, default)


class World:
    """A node that leads two partitions, beside another; all that quotas go by."""

    def __init__(self, namespaces: int) -> None:
        self.table = TopologyTable("c")
        self.partitions = {
            p: SimpleNamespace(role="active", applied=0, machine=SimpleNamespace(usage=Usage()))
            for p in (0, 1)
        }
        node: Any = SimpleNamespace(
            topology=self.table, partitions=self.partitions, me=SimpleNamespace(node="n1")
        )
        self.quotas = Quotas(node)
        self.table.begin([], 1)
        for n in range(namespaces):
            self.policy(n, Policy(max_records=100, max_bytes=1000))

    def policy(self, n: int, policy: Policy | None) -> None:
        self.table.apply([(("namespaces", f"ns{n}"), policy)], self.table.revision + 1)

    def write(self, p: int, n: int, records: int) -> None:
        host = self.partitions[p]
        host.applied += 1
        host.machine.usage[b"ns%d" % n] = [records, records]

    def all_counted(self) -> tuple[Any, Any, Any]:
        """As if nothing had ever been counted."""
        local: dict[str, list[int]] = {}
        full: dict[str, tuple[bool, bool]] = {}
        near = set()
        for name, policy in self.table.namespaces.items():
            held = [
                host.machine.usage[name.encode()]
                for host in self.partitions.values()
                if host.role == "active" and policy.has_quota and name.encode() in host.machine.usage
            ]
            if held:
                local[name] = [sum(h[0] for h in held), sum(h[1] for h in held)]
            held += [u[name] for u in self.quotas.others.values() if name in u]
            records, size = sum(h[0] for h in held), sum(h[1] for h in held)
            is_full = 0 < policy.max_records <= records, 0 < policy.max_bytes <= size
            if any(is_full):
                full[name] = is_full
            if policy.max_records and records >= NEARLY_FULL * policy.max_records:
                near.add(name)
            if policy.max_bytes and size >= NEARLY_FULL * policy.max_bytes:
                near.add(name)
        return local, full, near


@pytest.mark.parametrize("seed", range(20))
def test_the_sums_are_those_of_a_count_of_everything(seed: int) -> None:
    random, w = Random(seed), World(6)
    for _ in range(200):
        n = random.randrange(8)
        match random.randrange(6):
            case 0:
                w.policy(n, Policy(max_records=random.choice([0, 10, 100])))
            case 1:
                w.policy(n, None)
            case 2 | 3:
                w.write(random.randrange(2), n, random.randrange(120))
            case 4:
                told = {f"ns{random.randrange(8)}": [random.randrange(99), 5] for _ in range(2)}
                w.quotas.published(random.choice(["n1", "n2"]), random.choice([None, told]))
            case _:
                w.partitions[1].role = random.choice(["active", "follower"])
        if random.randrange(2):
            usage = w.quotas.recount()
            assert (usage, w.quotas.full, set(w.quotas.near)) == w.all_counted()


def test_a_change_looks_at_itself_however_many_namespaces_there_are() -> None:
    costs = []
    for count in (10, 5000):
        w = World(count)
        for n in range(count):
            w.write(0, n, 5)
        first = w.quotas.recount()
        Usage.asked = 0
        assert w.quotas.recount() is first, "nothing has changed"
        idle = Usage.asked
        w.policy(3, Policy(max_records=7))
        w.quotas.recount()
        w.quotas.published("n2", {"ns4": [99, 99]})
        w.quotas.recount()
        costs.append((idle, Usage.asked))
        assert set(w.quotas.full) == {"ns4"}
    assert costs[0] == costs[1]
    assert costs[0][0] == 0


def test_the_fullest_are_named_and_the_others_counted() -> None:
    w = World(50)
    for n in range(50):
        w.write(0, n, 60 + n)
    w.quotas.recount()
    told = w.quotas.crowded()
    assert (told["near"], told["full"], len(told["fullest"])) == (30, 10, 20)
    assert told["fullest"][0] == ["ns49", 1.09]
