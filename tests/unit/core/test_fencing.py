"""R1: an epoch belongs to one process. Whoever else names it is refused, whatever it asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from metastore.core import effects as fx
from metastore.core import messages as m
from metastore.core.configs import pack_config
from metastore.core.events import Restored
from metastore.core.logindex import LogIndex
from metastore.core.messages import Process
from metastore.core.replica import InvariantBroken
from metastore.core.settings import MS
from metastore.errors import ProtocolError
from metastore.layout import first_epoch
from tests.unit.core.nodes import (
    CONFIG,
    MEMBERS,
    START,
    TERM1,
    Node,
    blob,
    followers,
    log_of,
    process,
    seal,
)

OWNER = process("a")
#: the same node in another run, and another node: neither owns the epoch
STRANGERS = [process("a", "2"), process("c"), Process("a", "another store", "1")]


def follower(log: LogIndex | None = None, commit: int = 0) -> Node:
    return Node(process("b"), Restored(log or LogIndex(), TERM1, OWNER, CONFIG, commit))


def requests(epoch: int) -> list[Any]:
    return [
        m.Append(0, epoch, 0, 0, 0, [blob(1, epoch)]),
        m.Pull(0, epoch, 0, 0),
        m.HandOff(0, epoch),
        m.Appoint(0, epoch, b"", 0),
    ]


@pytest.mark.parametrize("message", requests(TERM1), ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("src", STRANGERS, ids=str)
def test_the_epoch_of_another_is_refused(message: Any, src: Process) -> None:
    node = follower()
    node.replica.on_config(START, replace(CONFIG, leader="x"), 7)
    node.take()
    node.core.handle(START, message, src)
    effects = node.take()
    assert effects == [fx.Send(src.node, m.Refused(0, TERM1, TERM1), True)]
    assert node.replica.log.last_index == 0


@pytest.mark.parametrize("epoch", [TERM1 - 1, TERM1 + 1])
@pytest.mark.parametrize("kind", range(4))
def test_another_epoch_is_refused_with_the_one_that_is_sealed(kind: int, epoch: int) -> None:
    """Lower: it is over. Higher: it has to be sealed first."""
    node = follower()
    node.core.handle(START, requests(epoch)[kind], OWNER)
    assert node.take() == [fx.Send("a", m.Refused(0, epoch, TERM1), True)]


@pytest.mark.parametrize("src", STRANGERS, ids=str)
def test_grants_go_to_the_owner_only(src: Process) -> None:
    """R8: who names the epoch and is not its owner gets none, and is no sign of the owner's life (R9)."""
    node = follower()
    r = node.replica
    later = START + 500 * MS
    node.core.handle(later, m.Heartbeat(7, later, [(0, TERM1, 1, 0)]), src)
    (ack,) = node.sent(m.HeartbeatAck)
    assert ack.refused == [(0, TERM1)]
    assert r.grants == {}
    assert (r.contact_ns, r.fresh_ns) == (START, 0)
    node.core.handle(later, m.Heartbeat(8, later, [(0, TERM1, 1, 0)]), OWNER)
    (ack,) = node.sent(m.HeartbeatAck)
    assert ack.refused == []
    assert r.grants == {OWNER: (TERM1, later + 900 * MS)}
    assert r.contact_ns == later


@pytest.mark.parametrize("epoch", [TERM1 - 1, TERM1 + 1])
def test_a_heartbeat_of_another_epoch_grants_nothing(epoch: int) -> None:
    node = follower()
    node.core.handle(START, m.Heartbeat(7, START, [(0, epoch, 1, 0), (9, epoch, 1, 0)]), OWNER)
    (ack,) = node.sent(m.HeartbeatAck)
    assert ack.refused == [(0, TERM1), (9, 0)], "named, so that its sender does not count them (R8)"
    assert node.replica.grants == {}


@pytest.mark.parametrize("src", STRANGERS[:2], ids=str)
def test_an_epoch_is_sealed_for_one_owner(src: Process) -> None:
    node = follower()
    node.core.handle(START, seal(TERM1, CONFIG), src)
    assert node.take() == [fx.Send(src.node, m.Refused(0, TERM1, TERM1), True)]
    assert node.replica.owner == OWNER


def test_the_owner_may_ask_again() -> None:
    node = follower(log_of(TERM1), 1)
    node.core.handle(START, seal(TERM1, CONFIG), OWNER)
    assert node.take() == [fx.Send("a", m.Sealed(0, TERM1, TERM1, 1, 1, 0), True)]


def test_an_older_seal_is_refused() -> None:
    node = follower()
    node.core.handle(START, seal(TERM1 - 1, replace(CONFIG, epoch=TERM1 - 1)), OWNER)
    assert node.take() == [fx.Send("a", m.Refused(0, TERM1 - 1, TERM1), True)]


def test_a_seal_is_durable_before_it_is_answered() -> None:
    """Epoch, owner and config in one record; the answer waits for the disk."""
    node = follower(log_of(TERM1), 1)
    second = first_epoch(2)
    config = replace(CONFIG, epoch=second, leader="c")
    message = seal(second, config)
    node.core.handle(START, message, process("c"))
    assert node.take() == [
        fx.PersistSeal(0, second, process("c"), message.config),
        fx.Send("c", m.Sealed(0, second, TERM1, 1, 1, 0), True),
    ]
    assert (node.replica.sealed_epoch, node.replica.owner) == (second, process("c"))


def test_everything_that_promises_waits_for_the_disk() -> None:
    """R1, R5: no answer of a replica leaves before what it says is durable."""
    node = follower(log_of(TERM1), 1)
    node.core.handle(START, m.Append(0, TERM1, TERM1, 1, 1, [blob(2, TERM1)]), OWNER)
    node.core.handle(START, m.Append(0, TERM1, TERM1, 7, 1, []), OWNER)
    node.core.handle(START, m.Pull(0, TERM1, TERM1, 1), OWNER)
    node.core.handle(START, m.Pull(0, TERM1, TERM1, 9), OWNER)
    node.core.handle(START, m.Heartbeat(7, 0, [(0, TERM1, 1, 0)]), OWNER)
    sends = [e for e in node.take() if isinstance(e, fx.Send)]
    assert [type(e.message) for e in sends] == [m.Appended, m.Missed, m.Pulled, m.PullMissed, m.HeartbeatAck]
    assert all(e.durable for e in sends)


def test_an_owner_seals_itself_before_its_first_message() -> None:
    node = followers(process("a", "0"), "a")["a"]
    node.replica.elect_without_etcd(START, "test")
    effects = node.take()
    assert isinstance(effects[0], fx.PersistSeal)
    assert effects[0].owner == node.me
    seals = [e for e in effects if isinstance(e, fx.Send)]
    assert [e.node for e in seals] == ["a", "b", "c"], "itself included"
    assert all(isinstance(e.message, m.Seal) and e.durable for e in seals)


def test_a_sealed_epoch_is_never_lowered() -> None:
    node = follower()
    for epoch in (TERM1, TERM1 - 1):
        with pytest.raises(InvariantBroken, match="I7"):
            node.replica.seal(START, epoch, OWNER, b"", handed_over=False)


def test_a_higher_epoch_ends_a_reign() -> None:
    node = followers(process("a", "0"), "a")["a"]
    node.replica.elect_without_etcd(START, "test")
    assert node.replica.term is not None
    second = first_epoch(2)
    node.core.handle(START, seal(second, replace(CONFIG, epoch=second, leader="c")), process("c"))
    assert node.replica.term is None
    assert node.replica.role == "follower"


# --- what can be known of a claim without etcd (R16) ------------------------------------------------


def refuses(node: Node, src: Process, message: Any, match: str) -> None:
    before = node.replica.sealed_epoch, node.replica.owner, node.replica.config
    with pytest.raises(ProtocolError, match=match):
        node.core.handle(START, message, src)
    assert (node.replica.sealed_epoch, node.replica.owner, node.replica.config) == before
    assert node.take() == []


def test_who_claims_is_a_member_of_the_config_that_it_brings() -> None:
    config = replace(CONFIG, epoch=first_epoch(2), leader="x")
    for src in (process("x"), Process("a", "another store", "1")):
        refuses(follower(), src, seal(first_epoch(2), config), "others' config")
    joint = replace(config, joint=(*MEMBERS, ("x", "sx")))
    node = follower()
    node.core.handle(START, seal(first_epoch(2), joint), process("x"))
    assert node.replica.owner == process("x"), "of the joint set too (R10)"


def test_an_epoch_and_its_config_are_of_one_term() -> None:
    refuses(follower(), OWNER, seal(first_epoch(2), CONFIG), "with the config of")
    refuses(follower(), OWNER, seal(TERM1 + 1, replace(CONFIG, epoch=TERM1 + 2)), "with the config of")


def test_an_epoch_that_is_not_credible_is_not_sealed() -> None:
    """It would be for ever."""
    far = first_epoch((1 << 32) + 2)
    refuses(follower(), OWNER, seal(far, replace(CONFIG, epoch=far)), "not credible")
    near = first_epoch((1 << 32) + 1)
    node = follower()
    node.core.handle(START, seal(near, replace(CONFIG, epoch=near)), OWNER)
    assert node.replica.sealed_epoch == near


def test_an_appointment_names_who_gets_it_and_a_later_term() -> None:
    def appoint(config: Any) -> m.Appoint:
        return m.Appoint(0, TERM1, pack_config(config), 9)

    second = replace(CONFIG, epoch=first_epoch(2), leader="b")
    refuses(follower(), OWNER, appoint(replace(second, leader="c")), "appointed by a config")
    others = (("a", "sa"), ("b", "another store"), ("c", "sc"))
    refuses(follower(), OWNER, appoint(replace(second, replicas=others)), "appointed by a config")
    refuses(follower(), OWNER, appoint(replace(second, epoch=TERM1)), "appoints to")
    refuses(follower(), OWNER, appoint(replace(second, epoch=first_epoch((1 << 32) + 2))), "appoints to")
    node = follower()
    node.core.handle(START, appoint(second), OWNER)
    assert node.replica.term is not None
    assert node.replica.sealed_epoch == first_epoch(2)
