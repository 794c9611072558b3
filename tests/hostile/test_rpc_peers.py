"""The rpc port, from those who are, or claim to be, nodes.

A peer is trusted not to lie about what it has stored (replication: a quorum of honest nodes). Short of
that nothing it sends may do harm: at most it is disconnected. Three are played here: one who is no node at
all; ``c1n0``, a node that is registered and a member of no partition, of whom nothing can change
anything; and a leader's own process, whom its follower believes until it makes no sense.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any
from urllib.request import urlopen

import msgpack
import orjson
import pytest

from metastore.coordination.etcd import EtcdCoordinator
from metastore.coordination.interface import Put
from metastore.core import messages as m
from metastore.core.configs import pack_config
from metastore.core.entry import pack_entry
from metastore.keys import storage_key_of
from metastore.layout import ConfigRecord, Layout, NodeRecord, to_json
from metastore.node.peers import MAX_IDLE_PINGS, PING_S
from metastore.records import pack_record
from metastore.storage.snapshot import DATA, METADATA
from metastore.wire import frames
from tests.hostile.attack import (
    HELLO,
    Speaker,
    dial,
    drain,
    exchange,
    frame,
    parse,
    peer,
    peer_hello,
    raw_frame,
)
from tests.hostile.conftest import HANG_S, Honest, logs
from tests.hostile.messages import Facts, Nonsense
from tests.integration.harness import Cluster

STORE = "0123456789abcdef" * 2
STRANGER = ("c1n0", STORE, "incarnation")


@pytest.fixture(scope="module")
def with_stranger(attacked: Cluster) -> Cluster:
    """The cluster, with a registered node that nobody has heard of yet."""
    url = attacked.json()["etcd"][0]["url"].removeprefix("http://")

    async def register() -> None:
        coordinator = EtcdCoordinator([url])
        records = [NodeRecord(name, "c1", STORE, "127.0.0.1:1", "127.0.0.1:2") for name in ("c1n0", "c1n00")]
        try:
            await coordinator.txn([], [Put(Layout("dev").node(r.node), to_json(r)) for r in records])
        finally:
            await coordinator.close()

    asyncio.run(register())
    until = time.monotonic() + HANG_S
    while any("c1n0" not in known(attacked, n) for n in attacked.names()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return attacked


@pytest.fixture(scope="module", autouse=True)
def silent(with_stranger: Cluster) -> Iterator[Speaker]:
    """A peer that says hello, and nothing else, from the first test to the last."""
    speaker = as_peer(with_stranger, "c1n2", ("c1n00", STORE, "incarnation"))
    wait_for(lambda: "c1n00" in with_stranger.status("c1n2")["peers"], "it is let in")
    yield speaker
    speaker.socket.close()


def wait_for(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.05)


def known(cluster: Cluster, name: str) -> set[str]:
    with Speaker(str(cluster.node(name)["rpc"])) as s:
        s.send(HELLO + frame(frames.TOPOLOGY_REQUEST, [0]))
        return {n["node"] for n in s.read(frames.TOPOLOGY)[0]["nodes"]}


def process(cluster: Cluster, name: str) -> tuple[str, str, str]:
    status = cluster.status(name)
    return name, status["store_id"], status["incarnation"]


def epochs(cluster: Cluster) -> dict[int, int]:
    return {p: epoch for p, (_, epoch) in cluster.leaders().items()}


def as_peer(cluster: Cluster, target: str, caller: tuple[str, str, str]) -> Speaker:
    """A connection to ``target`` that has been let in as ``caller``."""
    speaker = Speaker(str(cluster.node(target)["rpc"]))
    speaker.send(peer_hello(caller, process(cluster, target)[:2]))
    assert speaker.read(frames.PEER_HELLO_OK)[0] == target
    return speaker


def ended(speaker: Speaker, patience_s: float = HANG_S) -> bool:
    """Whether the other side closes."""
    return drain(speaker.socket, patience_s) is not None


def cut_off(cluster: Cluster) -> int:
    """How often a node has said that it disconnects the stranger, and why."""
    return sum(text.count("peer c1n0 disconnected") for text in logs(cluster).values())


def digests_agree(cluster: Cluster, honest: Honest) -> None:
    """All replicas hold the same; the honest client stands still meanwhile."""
    honest.paused = True
    try:
        deadline = time.monotonic() + HANG_S
        for p in range(4):
            while True:
                found = []
                for n in cluster.json()["nodes"]:
                    with urlopen(f"{n['http']}/v1/partitions/{p}/digest", timeout=30) as response:
                        found.append(orjson.loads(response.read()))
                if len({(f["applied"], f["digest"]) for f in found}) == 1:
                    break
                assert time.monotonic() < deadline, found
                time.sleep(0.05)
    finally:
        honest.paused = False


# --- no node at all ---------------------------------------------------------------------------


def test_who_is_no_peer_is_not_let_in(attacked: Cluster) -> None:
    rpc = str(attacked.node("c1n2")["rpc"])
    me, first, last = (process(attacked, n) for n in ("c1n2", "c1n1", "c1n3"))
    target = me[:2]
    hellos: dict[str, bytes] = {
        "an unknown node": peer_hello(("a", "s", "i"), target),
        "a known node with another store": peer_hello((first[0], STORE, first[2]), target),
        "itself": peer_hello(me, target),
        "one that this node dials": peer_hello(last, target),
        "an old copy of a node's store": peer_hello((*first[:2], "older"), target, 1),
        "one that tells no generation": peer_hello(first, target),
        "for another store": peer_hello(first, (target[0], STORE)),
        "for another node": peer_hello(first, (last[0], last[1])),
        "of another cluster": frame(frames.PEER_HELLO, ["other", *first, *target]),
        "a long name": peer_hello(("a" * 300, "s", "i"), target),
        "of numbers": frame(frames.PEER_HELLO, ["dev", 1, 2, 3, *target]),
        "of nested": raw_frame(frames.PEER_HELLO, b"\x96" + (b"\x91" * 150 + b"\xc0") * 6),
        "too short": frame(frames.PEER_HELLO, ["dev", *first]),
        "a map": frame(frames.PEER_HELLO, {"cluster": "dev"}),
        "a large one": raw_frame(frames.PEER_HELLO, b"", length=1 << 20),
    }
    for name, data in hellos.items():
        answers = parse(exchange(rpc, data + peer(m.PreVote(0, 0, 1)), half_close=False))
        assert [kind for kind, _ in answers] == [frames.ERROR], name
        assert len(answers[0][1][1]) < 400, name
    assert {"c1n1", "c1n3"} <= set(attacked.status("c1n2")["peers"])


# --- a node of no partition ---------------------------------------------------------------------


NO_FRAMES: dict[str, bytes] = {
    "a request": frame(frames.REQUEST, [b"i" * 16, 1000, []]),
    "another hello": HELLO,
    "no array": frame(frames.PEER, 7),
    "a message that is a map": frame(frames.PEER, [{}]),
    "an unknown message": frame(frames.PEER, [[99, 1, 2]]),
    "too few fields": frame(frames.PEER, [[6, 1, 2]]),
    "an epoch of 2**63": frame(frames.PEER, [[12, 0, 1 << 63, 1]]),
    "an epoch of 2**64 - 1": frame(frames.PEER, [[3, 0, (1 << 64) - 1, b"", 0]]),
    "an epoch below 0": frame(frames.PEER, [[12, 0, -1, 1]]),
    "an epoch that is text": frame(frames.PEER, [[12, 0, "1", 1]]),
    "a partition of 2**40": frame(frames.PEER, [[12, 1 << 40, 1, 1]]),
    "a grant for ever": frame(frames.PEER, [[2, 1, 1, (1 << 62) - 1, []]]),
    "beats of text": frame(frames.PEER, [[1, 1, 1, ["abcd"]]]),
    "beats of three": frame(frames.PEER, [[1, 1, 1, [[1, 2, 3]]]]),
    "a snapshot's row of two": frame(frames.PEER, [[16, 0, 1, 1, 0, [[1, b"k"]]]]),
    "nested": raw_frame(frames.PEER, b"\x91" * 900 + b"\xc0"),
    "millions of empty arrays": raw_frame(
        frames.PEER, b"\xdc\x03\xe8" + (b"\xdc\x3e\x80" + b"\x90" * 16000) * 1000
    ),
    "version 9": raw_frame(frames.PEER, b"\x90", version=9),
    "length 2**32 - 1": raw_frame(frames.PEER, b"", length=(1 << 32) - 1),
    "length 0": raw_frame(frames.PEER, b"", length=0),
}


def test_what_is_no_message_ends_the_connection(with_stranger: Cluster) -> None:
    for name, data in NO_FRAMES.items():
        with as_peer(with_stranger, "c1n3", STRANGER) as speaker:
            speaker.send(data)
            assert ended(speaker), name


def test_a_peer_of_no_partition_can_change_nothing(with_stranger: Cluster, honest: Honest) -> None:
    """Thousands of well-typed messages, near to the truth, from one who is no member."""
    before = epochs(with_stranger)
    rng = Random(7)
    seen = cut_off(with_stranger)
    for target in with_stranger.names():
        target_id = process(with_stranger, target)
        for _ in range(6):
            speaker = Speaker(str(with_stranger.node(target)["rpc"]))
            speaker.send(peer_hello(STRANGER, target_id[:2]))
            for _ in range(40):
                p = rng.randrange(4)
                message = Nonsense(rng, facts_of(with_stranger, target, p)).message()
                try:
                    speaker.socket.sendall(peer(message))
                except OSError:
                    break
            with contextlib.suppress(OSError):
                speaker.socket.shutdown(socket.SHUT_WR)
            assert ended(speaker), f"{target} keeps a connection on which nothing more can come"
            speaker.socket.close()
    assert cut_off(with_stranger) > seen, "nothing was found wrong"
    assert epochs(with_stranger) == before
    digests_agree(with_stranger, honest)


_facts: dict[tuple[str, int], Facts] = {}


def facts_of(cluster: Cluster, name: str, p: int) -> Facts:
    """How a partition stood a moment ago."""
    if (name, p) not in _facts:
        for part in cluster.status(name)["partitions"]:
            members = tuple((n, process(cluster, n)[1]) for n in cluster.names())
            width = (1 << 64) // 4
            lo = part["id"] * width
            config = ConfigRecord(part["id"], lo, lo + width, part["epoch"], part["leader"], members)
            storage_key = lo.to_bytes(8, "big") + storage_key_of("hostile", "k")[8:]
            _facts[name, part["id"]] = Facts(
                part["id"],
                part["epoch"],
                config,
                part["last_index"],
                part["epoch"],
                part["commit_index"],
                part["version"],
                storage_key,
            )
    return _facts[name, p]


# --- a leader's own process -------------------------------------------------------------------


def test_a_leader_that_makes_no_sense_is_disconnected(with_stranger: Cluster, honest: Honest) -> None:
    """Its follower obeys it, and so looks closely at what it is to store: nothing wrong is stored,
    nothing sealed, and the real leader goes on."""
    cluster = with_stranger
    leaders = cluster.leaders()
    p = next((p for p, (name, _) in leaders.items() if name < "c1n3"), None)
    if p is None:
        pytest.skip("c1n3 leads all partitions, and it dials nobody here")
    name, epoch = leaders[p]
    leader = process(cluster, name)
    _facts.clear()
    facts = facts_of(cluster, "c1n3", p)
    far = (1 << 61) - (1 << 61) % (1 << 16)
    other = ConfigRecord(p, 0, 1 << 64, epoch + (1 << 16), name, (("z", "s"),))
    ahead = facts.last_index + 1_000_000

    def append(prev: int, *blobs: bytes, at: int = epoch) -> m.Append:
        return m.Append(p, epoch, at, prev, 0, list(blobs))

    begin = m.SnapshotBegin(p, epoch, 1, ahead, epoch, [])
    elsewhere = bytes([255 - facts.storage_key[0]]) + facts.storage_key[1:]
    incredible = dataclasses.replace(facts.config, epoch=far)

    def chunk(*row: Any) -> m.SnapshotChunk:
        return m.SnapshotChunk(p, epoch, 1, 0, [row])

    #: what is sent, and what of it the log has to name
    messages: dict[str, tuple[list[Any], str]] = {
        "a wrong checksum": ([append(1, pack_entry(2, epoch, b"")[:-1] + b"\1")], "its checksum"),
        "cut short": ([append(1, pack_entry(2, epoch, b"")[:-3])], "of 17 bytes"),
        "nothing": ([append(1, b"")], "of 0 bytes"),
        "9 MiB": ([append(1, pack_entry(2, epoch, bytes(9 << 20)))], "of 9437204 bytes"),
        "does not follow": ([append(1, pack_entry(7, epoch, b""))], "entry 7 where 2 was due"),
        "of a later epoch": ([append(1, pack_entry(2, epoch + 1, b""))], "above"),
        "epochs that fall": ([append(1, pack_entry(2, epoch, b""), pack_entry(3, epoch - 1, b""))], "below"),
        "nobody can apply": ([append(1, pack_entry(2, epoch, b"\xc1 nonsense"))], "does not parse"),
        "of unknown rows": (
            [append(1, pack_entry(2, epoch, msgpack.packb([0, [], [[77]], [], []])))],
            "a form that there is not",
        ),
        "a seal of garbage": ([m.Seal(p, epoch + 1, b"garbage", 0)], "not a config"),
        "a seal of nothing": ([m.Seal(p, epoch + 1, b"", 0)], "not a config"),
        "a seal of another's config": ([m.Seal(p, other.epoch, pack_config(other), 0)], "of others' config"),
        "a seal without its config": (
            [m.Seal(p, epoch + (5 << 16), pack_config(facts.config), 0)],
            "with the config of",
        ),
        "an incredible epoch": ([m.Seal(p, far, pack_config(incredible), 0)], "is not credible"),
        "a snapshot of the future": ([begin._replace(at_epoch=epoch + (1 << 16))], "a snapshot of epoch"),
        "a key that cannot be": ([begin, chunk(DATA, b"k" * 600, b"v")], "holds rows that are not valid"),
        "another's key": (
            [begin, chunk(DATA, elsewhere, pack_record(1, 1, b""))],
            "holds rows that are not valid",
        ),
        "a broken record": (
            [begin, chunk(DATA, facts.storage_key, b"\0" * 30)],
            "holds rows that are not valid",
        ),
        "a broken session": (
            [begin, chunk(METADATA, b"s" + b"c" * 16, b"\xc1")],
            "holds rows that are not valid",
        ),
    }
    generation = cluster.status(name)["identity"]["generation"]
    hello = peer_hello(leader, process(cluster, "c1n3")[:2], generation)
    rpc = str(cluster.node("c1n3")["rpc"])
    log = cluster.data / "logs" / "c1n3.log"
    for what, (sent, why) in messages.items():
        seen = len(log.read_text())
        until = time.monotonic() + HANG_S
        while why not in log.read_text()[seen:]:
            assert time.monotonic() < until, what
            # in one piece, and again: the real leader dials at once, and the newest connection is the one
            exchange(rpc, hello + peer(*sent), half_close=False)
            patient = time.monotonic() + 0.5
            while why not in log.read_text()[seen:] and time.monotonic() < patient:
                time.sleep(0.01)
    status = next(s for s in cluster.status("c1n3")["partitions"] if s["id"] == p)
    assert status["epoch"] < far
    assert status["last_index"] < ahead
    with Speaker(rpc) as speaker:
        # chunks that do not follow are refused, and nothing else happens
        chunks = (m.SnapshotChunk(p, epoch, 3, 5, []), m.SnapshotChunk(p, epoch, 9, 0, []))
        speaker.send(hello + peer(begin._replace(snapshot=3), *chunks))
        acks: list[Any] = []
        until = time.monotonic() + HANG_S
        while len(acks) < 2 and time.monotonic() < until:
            acks += [x for x in speaker.read(frames.PEER) if x[0] == 17]
        assert [(a[3], a[4], a[5]) for a in acks[:2]] == [(3, 5, False), (9, 0, False)]
    wait_until_linked(cluster)
    digests_agree(cluster, honest)


def wait_until_linked(cluster: Cluster) -> None:
    until = time.monotonic() + HANG_S
    names = cluster.names()
    while any(set(names) - {n} - set(cluster.status(n)["peers"]) for n in names):
        assert time.monotonic() < until, {n: cluster.status(n)["peers"] for n in names}
        time.sleep(0.05)


def test_random_bytes_after_the_hello(with_stranger: Cluster) -> None:
    rng = Random(11)
    target = process(with_stranger, "c1n1")[:2]
    rpc = str(with_stranger.node("c1n1")["rpc"])
    for number in range(60):
        data = peer_hello(STRANGER, target)
        if number % 2:
            data += rng.randbytes(rng.randrange(1, 300))
        else:
            raw = bytearray(peer(Nonsense(rng, facts_of(with_stranger, "c1n1", 0)).message()))
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            data += bytes(raw)
        exchange(rpc, data)


def test_peers_get_in_while_thousands_say_nothing(with_stranger: Cluster) -> None:
    """Strangers may not keep a node from its peers."""
    rpc = str(with_stranger.node("c1n2")["rpc"])
    silent: list[socket.socket] = [dial(rpc) for _ in range(1500)]
    try:
        with as_peer(with_stranger, "c1n2", STRANGER):
            assert {"c1n1", "c1n3"} <= set(with_stranger.status("c1n2")["peers"])
    finally:
        for s in silent:
            s.close()


def test_a_peer_that_says_nothing_is_forgotten(with_stranger: Cluster, silent: Speaker) -> None:
    """The last of the module: by now its time is nearly over."""
    assert ended(silent, MAX_IDLE_PINGS * PING_S + HANG_S)
    wait_for(lambda: "c1n00" not in with_stranger.status("c1n2")["peers"], "it is forgotten")
