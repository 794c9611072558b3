"""A node, without its sockets, that is told nonsense by the thousand by whoever may be its peer.

Here, where a message costs a tenth of a millisecond, is the breadth; what the sockets add is in
``tests/hostile/test_rpc_peers.py``."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from metastore.clock import now_ns
from metastore.config import NodeConfig
from metastore.core import messages as m
from metastore.core.messages import Process
from metastore.errors import ProtocolError
from metastore.keys import storage_key_of
from metastore.layout import ConfigRecord
from metastore.node.node import Node
from metastore.storage.options import StorageOptions
from metastore.storage.store import Store
from metastore.wire.peer_messages import decode
from tests.hostile.messages import Facts, Nonsense, seal

OPTIONS = StorageOptions(segment_bytes=2 << 20, log_retention_bytes=6 << 20, map_size_bytes=1 << 28)
EPOCH = 1 << 16
MESSAGES = 4000
LEADER, OTHER, STRANGER = Process("l", "sl", "1"), Process("x", "sx", "1"), Process("z", "sz", "1")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    config = NodeConfig(
        cell="c",
        node="m",
        data_dir=str(tmp_path),
        rpc="127.0.0.1:1",
        http="127.0.0.1:2",
        suspect_after_ms=450,
    )
    store = Store.open(tmp_path, cluster="metastore", node="m", options=OPTIONS)
    store.raise_generation("1")
    node = Node(config, store, "1")
    node.start()
    node.links.queue = lambda node, message: None  # type: ignore[method-assign]
    members = (("l", "sl"), ("m", store.store_id), ("x", "sx"))
    record = ConfigRecord(0, 0, 1 << 64, EPOCH, "l", members)
    node.open_partition(record)
    node.on_peer_messages(LEADER, [seal(EPOCH, record, 0)])
    yield node
    if not node.stopping:
        await node.stop(hand_over=False)


def facts_of(node: Node) -> Facts:
    replica = node.partitions[0].replica
    assert replica.config is not None
    last_epoch, last_index = replica.log.last_position()
    return Facts(
        0,
        replica.sealed_epoch,
        replica.config,
        last_index,
        last_epoch,
        replica.commit_index,
        node.partitions[0].machine.last_version,
        storage_key_of("app", "k"),
    )


def lead(node: Node) -> None:
    """Make it the owner of a new term, and let it come as far as it does."""
    replica = node.core._replicas[0]
    assert replica.config is not None
    epoch = (max(replica.sealed_epoch, replica.config.epoch) >> 16) + 1 << 16
    record = dataclasses.replace(replica.config, epoch=epoch, leader="m")
    replica.begin_term(now_ns(), epoch, record, "for the test")
    node.ticks.run_effects()
    for peer in (LEADER, OTHER):
        last_epoch, last_index = replica.log.last_position()
        if last_epoch < epoch:
            node.on_peer_messages(peer, [m.Sealed(0, epoch, last_epoch, last_index, 0, 0)])
            node.on_peer_messages(peer, [m.Appended(0, epoch, last_index + 1)])


@pytest.mark.parametrize(("seed", "leads"), [(1, False), (2, False), (3, True), (4, True)])
async def test_nonsense_costs_its_sender_the_connection_and_nobody_else_anything(
    node: Node, tmp_path: Path, seed: int, leads: bool
) -> None:
    """Whatever comes, nothing but ProtocolError leaves, the node goes on, and no promise is taken
    back: what is sealed and committed only grows, and what is on disk can be read again."""
    rng = Random(seed)
    outcomes: Counter[str] = Counter()
    for number in range(MESSAGES):
        replica = node.partitions[0].replica
        if leads and replica.term is None and replica.sealed_epoch < 1 << 40:
            lead(node)
        facts = facts_of(node)
        owner = replica.owner if replica.owner is not None and replica.owner != node.me else LEADER
        src = rng.choice([owner, owner, owner, LEADER, OTHER, STRANGER])
        raw: list[Any] = [Nonsense(rng, facts).raw() for _ in range(rng.choice([1, 1, 3]))]
        try:
            node.on_peer_messages(src, [decode(one) for one in raw])
            outcomes["taken"] += 1
        except ProtocolError:
            outcomes["refused"] += 1
        assert node.failure is None, f"seed {seed}, message {number}, from {src}: {raw}: {node.failure!r}"
        assert replica.sealed_epoch >= facts.epoch
        assert replica.commit_index >= facts.commit
        assert replica.commit_index <= replica.log.last_index
        if number % 50 == 0:
            await asyncio.sleep(0.03 if number % 500 == 0 else 0)  # ticks: it may campaign, and lead
        outcomes[replica.role] += 1
    assert outcomes["taken"] > MESSAGES // 20, outcomes
    assert outcomes["refused"] > MESSAGES // 20, outcomes
    sealed, commit = node.partitions[0].replica.sealed_epoch, node.partitions[0].replica.commit_index
    print(outcomes, hex(sealed), commit)
    await node.stop(hand_over=False)
    again = Store.open(tmp_path, cluster="metastore", node="m", options=OPTIONS)
    assert again.partitions[0].sealed_epoch == sealed
    assert again.partitions[0].applied_index <= commit
    second = Node(node.config, again, "2")
    second.start()
    assert second.failure is None
    await second.stop(hand_over=False)
