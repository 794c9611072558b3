"""R2, R9, R11, R12, R16: who may try for which epoch, with what in hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from metastore.core import effects as fx
from metastore.core import messages as m
from metastore.core.events import PeerDown, Restored, Resumed, Tick
from metastore.core.logindex import LogIndex
from metastore.core.messages import Process
from metastore.core.settings import MS, CoreSettings
from metastore.layout import ConfigRecord, first_epoch
from tests.unit.core.nodes import CONFIG, MEMBERS, START, TERM1, Node, deliver, followers, led, process, seal

TERM2 = first_epoch(2)
LEADER = process("a")
NO_CLAIMS = CoreSettings(claim_without_etcd=False)


def replica(
    name: str = "b", owner: Process | None = LEADER, config: ConfigRecord = CONFIG, sealed: int = TERM1
) -> Node:
    """A replica that etcd has told of ``config`` at revision 7 and of its leader key."""
    node = Node(process(name), Restored(LogIndex(), sealed, owner, config, 0))
    node.replica.config_mod_revision = 7
    node.replica.on_leader_value(b"the leader key")
    return node


def ticks(node: Node, from_ms: int, to_ms: int, *, can_elect: bool = True) -> list[Any]:
    effects: list[Any] = []
    for ms in range(from_ms, to_ms, 20):
        node.core.handle(START + ms * MS, Tick(can_elect))
        effects += node.take()
    return effects


def campaigns(effects: list[Any]) -> list[fx.Campaign]:
    return [e for e in effects if isinstance(e, fx.Campaign)]


def prevotes(effects: list[Any]) -> list[m.PreVote]:
    return [e.message for e in effects if isinstance(e, fx.Send) and isinstance(e.message, m.PreVote)]


def loses(node: Node, at_ms: int, voter: str = "c", **reply: Any) -> list[Any]:
    """``voter`` answers the newest PRE-VOTE that it has lost the leader too."""
    r = node.replica
    fields = {"epoch": r.sealed_epoch, "round": r.prevote_round, "lost": True, **reply}
    node.core.handle(START + at_ms * MS, m.PreVoteReply(0, **fields), process(voter))
    return node.take()


# --- R9: when, and whom it asks ---------------------------------------------------------------------------


def test_a_leader_that_is_heard_is_left_alone() -> None:
    node = replica()
    for ms in range(0, 3000, 500):
        node.core.handle(START + ms * MS, m.Heartbeat(ms, 0, [(0, TERM1, 1, 0)]), LEADER)
        effects = ticks(node, ms, ms + 500)
        assert not prevotes(effects)
        assert not campaigns(effects)
        node.core.handle(START + ms * MS, m.PreVote(0, TERM1, 1), process("c"))
        assert [x.lost for x in node.sent(m.PreVoteReply)] == [False]


def test_silence_is_asked_about_before_anything_is_tried() -> None:
    node = replica()
    effects = ticks(node, 0, 1500)
    assert prevotes(effects)
    assert not campaigns(effects), "it is one of three"
    (campaign,) = campaigns(loses(node, 1500))
    assert campaign.expect_mod_revision == 7
    assert campaign.replace == b"the leader key"
    assert campaign.new == replace(CONFIG, epoch=TERM2, leader="b")


@pytest.mark.parametrize("reply", [{"lost": False}, {"round": 0}, {"epoch": TERM1 - 1}])
def test_an_answer_that_says_no_or_something_else_is_no_vote(reply: dict[str, Any]) -> None:
    node = replica()
    ticks(node, 0, 1500)
    assert not campaigns(loses(node, 1500, **reply))


def test_a_leader_that_is_back_is_not_replaced() -> None:
    """The votes come late."""
    node = replica()
    ticks(node, 0, 1500)
    node.core.handle(START + 1500 * MS, m.Heartbeat(9, 0, [(0, TERM1, 1, 0)]), LEADER)
    assert not campaigns(loses(node, 1501))


def test_a_leader_key_that_is_gone_is_enough() -> None:
    node = replica()
    node.core.handle(START, PeerDown("a"))
    node.replica.on_leader_value(None)
    (campaign,) = campaigns(ticks(node, 0, 300))
    assert campaign.replace is None, "the key has to be absent"


def test_who_is_no_member_tries_nothing() -> None:
    """R2, R13."""
    for config in (replace(CONFIG, replicas=MEMBERS[:1]), replace(CONFIG, replicas=(("b", "old"),))):
        node = replica(config=config)
        effects = ticks(node, 0, 5000)
        assert not prevotes(effects)
        assert not campaigns(effects)
        node.core.handle(START, m.HandOff(0, TERM1), LEADER)
        assert not campaigns(node.take())


def test_who_does_not_know_etcds_record_campaigns_for_nothing() -> None:
    node = replica()
    node.replica.config_mod_revision = 0
    node.replica.campaign(START, "test")
    assert not campaigns(node.take())


def test_a_term_that_etcd_has_yet_to_show_is_not_campaigned_against() -> None:
    """R13: etcd's record is older than what is sealed here."""
    node = replica(sealed=TERM2)
    node.replica.campaign(START, "test")
    assert not campaigns(node.take())


def test_one_transaction_at_a_time() -> None:
    node = replica()
    node.replica.campaign(START, "test")
    node.replica.campaign(START + MS, "test")
    assert len(campaigns(node.take())) == 1


def test_an_election_that_was_not_won_begins_nothing() -> None:
    node = replica()
    node.replica.campaign(START, "test")
    node.replica.on_campaign_done(START + MS, None, 0)
    assert node.replica.term is None
    assert node.replica.sealed_epoch == TERM1


def test_a_won_term_that_is_sealed_for_another_is_left_alone() -> None:
    node = replica()
    node.replica.campaign(START, "test")
    (campaign,) = campaigns(node.take())
    third = first_epoch(3)
    node.core.handle(START, seal(third, replace(CONFIG, epoch=third, leader="c")), process("c"))
    node.replica.on_campaign_done(START + MS, campaign.new, 8)
    assert node.replica.term is None
    assert node.replica.sealed_epoch == third


def test_a_won_term_that_the_watch_told_of_first_is_begun_once() -> None:
    node = replica()
    node.replica.campaign(START, "test")
    (campaign,) = campaigns(node.take())
    node.replica.on_config(START, campaign.new, 8)
    term = node.replica.term
    assert term is not None
    node.replica.on_campaign_done(START + MS, campaign.new, 8)
    assert node.replica.term is term


def test_a_won_term_is_sealed_with_its_config() -> None:
    node = replica()
    node.replica.campaign(START, "test")
    (campaign,) = campaigns(node.take())
    node.replica.on_campaign_done(START + MS, campaign.new, 8)
    assert (node.replica.sealed_epoch, node.replica.owner) == (TERM2, node.me)
    assert (node.replica.config, node.replica.config_mod_revision) == (campaign.new, 8)
    assert node.replica.role == "sealing"


# --- what etcd says -------------------------------------------------------------------------------------------


def test_a_record_of_an_earlier_term_is_passed_over() -> None:
    """R13: etcd went back; whatever its revision says."""
    node = replica(config=replace(CONFIG, epoch=TERM2), sealed=TERM2)
    node.replica.on_config(START, replace(CONFIG, leader="c"), 99)
    assert node.replica.config == replace(CONFIG, epoch=TERM2)
    assert node.replica.config_mod_revision == 7
    assert node.take() == []


def test_a_record_that_is_known_already_changes_nothing() -> None:
    node = replica()
    node.replica.on_config(START, replace(CONFIG, epoch=TERM2), 7)
    assert node.replica.config == CONFIG


def test_a_newer_record_is_made_durable() -> None:
    node = replica()
    newer = replace(CONFIG, epoch=TERM2, leader="c")
    node.replica.on_config(START, newer, 8)
    assert [type(e) for e in node.take()] == [fx.PersistConfig]
    assert (node.replica.config, node.replica.config_mod_revision) == (newer, 8)


@pytest.mark.parametrize(("name", "begins"), [("b", True), ("c", False)])
def test_who_etcd_names_owner_of_a_later_term_begins_it(name: str, begins: bool) -> None:
    node = replica(name)
    node.replica.on_config(START, replace(CONFIG, epoch=TERM2, leader="b"), 8)
    assert (node.replica.term is not None) == begins


def test_another_store_under_the_name_begins_nothing() -> None:
    node = replica()
    others = (("a", "sa"), ("b", "another store"), ("c", "sc"))
    node.replica.on_config(START, replace(CONFIG, epoch=TERM2, leader="b", replicas=others), 8)
    assert node.replica.term is None


# --- R12: a restarted owner ----------------------------------------------------------------------------------


def restarted(settings: CoreSettings = NO_CLAIMS, **restored: Any) -> Node:
    """``a`` in its second run; its first owned TERM1."""
    fields: dict[str, Any] = {"sealed_epoch": TERM1, "owner": LEADER, "config": CONFIG}
    return Node(process("a", "2"), Restored(LogIndex(), **{**fields, **restored}), settings=settings)


def test_a_restarted_owner_goes_on_in_the_next_restart_of_its_term() -> None:
    node = restarted()
    node.core.handle(START, Resumed())
    assert node.replica.sealed_epoch == TERM1 + 1
    assert node.replica.owner == node.me


@pytest.mark.parametrize(
    "restored",
    [
        {"owner": process("b")},
        {"owner": Process("a", "another store", "1")},
        {"owner": None},
        {"owner": process("a", "2")},
        {"config": replace(CONFIG, epoch=TERM2, leader="b")},
        {"config": replace(CONFIG, replicas=MEMBERS[1:])},
    ],
)
def test_who_owned_nothing_goes_on_with_nothing(restored: dict[str, Any]) -> None:
    """Another process, this very run, a term that is over, a member no more."""
    node = restarted(**restored)
    node.core.handle(START, Resumed())
    assert node.replica.term is None
    assert node.replica.sealed_epoch == TERM1


@pytest.mark.parametrize("leader", ["a", "b"])
def test_what_was_split_off_begins_its_first_term_after_a_restart_too(leader: str) -> None:
    """R18: that term follows from the entry, and belongs to who proposed it; etcd, which would say so, may be away."""
    config = replace(CONFIG, epoch=TERM2, leader=leader, parent=(7, TERM1, 40))
    node = restarted(sealed_epoch=0, owner=None, config=config)
    node.core.handle(START, Resumed())
    assert node.replica.sealed_epoch == (TERM2 if leader == "a" else 0)
    assert (node.replica.term is not None) == (leader == "a")
    other = restarted(sealed_epoch=0, owner=None, config=replace(config, parent=None))
    other.core.handle(START, Resumed())
    assert other.replica.term is None, "of others etcd has to say so"


def test_where_others_may_have_claimed_it_a_majority_is_asked_first() -> None:
    """R16: the next restart may have been claimed meanwhile."""
    node = restarted(CoreSettings())
    node.core.handle(START, Resumed())
    effects = node.take()
    assert node.replica.term is None
    assert prevotes(effects)
    loses(node, 0, "b")
    assert node.replica.sealed_epoch == TERM1 + 1


def test_who_is_to_go_on_leaves_a_later_term_to_its_owner() -> None:
    """Before a majority has answered, etcd says that another was elected meanwhile."""
    node = restarted(CoreSettings())
    node.core.handle(START, Resumed())
    node.take()
    node.replica.on_config(START, replace(CONFIG, epoch=TERM2, leader="b"), 8)
    loses(node, 0, "b")
    assert (node.replica.sealed_epoch, node.replica.term) == (TERM1, None)


# --- R16: claims -------------------------------------------------------------------------------------------------


def test_a_claim_takes_a_lost_leader_a_majority_and_etcd_away() -> None:
    node = replica()
    assert not campaigns(ticks(node, 0, 1500, can_elect=False))
    assert not campaigns(loses(node, 1500))
    assert (node.replica.sealed_epoch, node.replica.owner) == (TERM1 + 1, node.me)
    assert node.replica.role == "sealing"


def test_with_etcd_there_nothing_is_claimed() -> None:
    node = replica()
    ticks(node, 0, 1500)
    assert campaigns(loses(node, 1500))
    assert node.replica.sealed_epoch == TERM1


def test_a_partition_that_etcd_has_no_good_record_of_is_claimed_though_etcd_is_there() -> None:
    """Nobody can be elected by a record that makes no sense: a lease that is alive must not keep the claim away."""
    node = replica()
    node.replica.unrecorded = True
    assert not campaigns(ticks(node, 0, 1500))
    assert not campaigns(loses(node, 1500))
    assert (node.replica.sealed_epoch, node.replica.owner) == (TERM1 + 1, node.me)
    node.replica.role = "active"
    assert not campaigns(ticks(node, 1500, 3000)), "nor does it try to have the claim recorded"
    node.replica.unrecorded = False
    assert campaigns(ticks(node, 3000, 4500))


def test_a_leader_key_that_goes_elects_nobody_by_a_bad_record() -> None:
    node = replica()
    node.replica.on_leader_value(None)
    node.replica.unrecorded = True
    assert not campaigns(ticks(node, 0, 3000))
    node.replica.unrecorded = False
    assert campaigns(ticks(node, 3000, 6000))


@pytest.mark.parametrize(("named", "due"), [(None, True), ("c", False)])
def test_a_claim_made_while_the_record_was_rebuilt_is_recorded(named: str | None, due: bool) -> None:
    """R13: the record is of a later term than the claim's, and names nobody. Where it names somebody, that one is waited for."""
    node = led()["a"]
    rebuilt = replace(CONFIG, epoch=first_epoch(17), leader=named)
    node.replica.on_config(START, rebuilt, 9)
    node.replica.on_leader_value(None)
    node.take()
    found = campaigns(ticks(node, 20, 200))
    assert bool(found) is due
    if due:
        assert (found[0].new.epoch, found[0].new.leader) == (first_epoch(18), "a")


def test_a_claim_is_of_the_newest_term_known() -> None:
    """A term that etcd gave to somebody who died before it sealed anything."""
    newer = replace(CONFIG, epoch=TERM2, leader="c")
    node = replica(config=newer)
    node.replica.elect_without_etcd(START, "test")
    assert node.replica.sealed_epoch == TERM2 + 1
    assert node.replica.term is not None
    assert node.replica.term.config == newer


def test_a_term_whose_config_is_not_known_is_not_claimed() -> None:
    node = replica(sealed=TERM2)
    node.replica.elect_without_etcd(START, "test")
    assert node.replica.sealed_epoch == TERM2


def test_a_restart_count_that_would_overflow_is_refused() -> None:
    """One more, and it would be the next term, which only etcd hands out."""
    last = TERM1 | 0xFFFF
    node = replica(sealed=last)
    assert not node.replica.can_elect_without_etcd()
    node.replica.elect_without_etcd(START, "test")
    assert node.replica.sealed_epoch == last
    assert node.replica.term is None
    before = replica(sealed=last - 1)
    assert before.replica.can_elect_without_etcd()
    before.replica.elect_without_etcd(START, "test")
    assert before.replica.sealed_epoch == last


def test_nor_to_take_a_rivals_follower_along() -> None:
    nodes = led()
    a = nodes["a"]
    last = TERM1 | 0xFFFF
    for node in nodes.values():
        node.replica.sealed_epoch = last - 1
    a.replica.term = None
    a.replica.elect_without_etcd(START, "test")
    deliver(nodes, START)
    assert (a.replica.role, a.replica.sealed_epoch) == ("active", last)
    a.core.handle(START, m.Refused(0, last, last), process("b"))
    assert a.replica.sealed_epoch == last
    assert a.replica.role == "active"


def test_a_rivals_follower_is_taken_along_once_all_is_settled() -> None:
    nodes = led()
    a, epoch = nodes["a"], TERM1 + 1
    index = a.replica.propose(START, b"")
    a.core.handle(START, m.Refused(0, epoch, epoch), process("b"))
    assert a.replica.sealed_epoch == epoch, "what is proposed would be unknown"
    a.core.handle(START, m.Appended(0, epoch, index), a.me)
    a.core.handle(START, m.Appended(0, epoch, index), process("c"))
    a.core.handle(START, m.Refused(0, epoch, epoch), process("b"))
    assert a.replica.sealed_epoch == epoch + 1


def test_a_claim_without_a_quorum_appends_nothing() -> None:
    node = followers(process("a", "0"), "a")["a"]
    node.replica.elect_without_etcd(START, "test")
    deliver({"a": node}, START)
    assert node.replica.role == "sealing"
    assert node.replica.log.last_index == 0


# --- R11: what an target is given --------------------------------------------------------------------------------------


def test_an_heir_campaigns_at_once_for_what_was_resigned() -> None:
    node = replica()
    node.core.handle(START, m.HandOff(0, TERM1), LEADER)
    (campaign,) = campaigns(node.take())
    assert campaign.handed_over
    node.replica.on_campaign_done(START, campaign.new, 8)
    seals = node.sent(m.Seal)
    assert [s.resigned for s in seals] == [TERM1] * 3


def test_an_election_that_nobody_resigned_for_says_so() -> None:
    node = replica()
    node.replica.campaign(START, "test")
    (campaign,) = campaigns(node.take())
    node.replica.on_campaign_done(START, campaign.new, 8)
    assert [s.resigned for s in node.sent(m.Seal)] == [0, 0, 0]
