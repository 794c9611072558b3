"""The journal of a core, its file, and playing it again: the same comes of the same, from the middle too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from metastore import replay
from metastore.core import effects as fx
from metastore.core import events as ev
from metastore.core import journal as journal_module
from metastore.core import messages as m
from metastore.core.journal import MAX_BYTES, Journal
from metastore.core.leading import LeadingReplica
from metastore.core.messages import KINDS as MESSAGES
from metastore.core.node import NodeCore
from metastore.core.recording import KINDS, MAGIC, Recording, made_of, pack, plain, unpack
from metastore.core.settings import MS
from metastore.errors import CorruptLog, InvalidRequest, RottenEntry
from metastore.layout import ConfigRecord
from tests.simulation.core.world import world_of
from tests.unit.core.nodes import START, Node, blob, deliver, led, process


def leader() -> Node:
    """One that is active. How it came to that went around the door, so its journal begins here."""
    node = led()["a"]
    begin(node)
    return node


def begin(node: Node) -> None:
    node.core.journal = Journal(node.core.checkpoint)
    node.core.journal.begin()


def recording_of(core: NodeCore) -> Recording:
    return Recording("a build", core.me.node, 1_795_000_000_000, "a test", core.journal.halves(core.effects))


def played(core: NodeCore) -> replay.Player:
    """By way of the bytes of a file."""
    player = replay.Player()
    for _ in player.play(unpack(pack(recording_of(core)))):
        pass
    return player


@pytest.mark.parametrize("seed", range(12))
def test_what_is_recorded_comes_out_again(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the schedule, and wherever the halves begin."""
    monkeypatch.setattr(journal_module, "MAX_RECORDS", 40 + 30 * seed)
    world = world_of(seed, checked=False)
    world.play()
    events = 0
    for node in world.nodes.values():
        if node.up:
            player = played(node.core)
            assert player.difference is None
            events += player.events
    assert events > 50


def test_a_checkpoint_is_not_changed_by_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[dict[str, Any], Any]] = []

    def noting(checkpoint: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
        def make() -> dict[str, Any]:
            made = checkpoint()
            taken.append((made, plain(made)))
            return made

        return make

    original = Journal.__init__
    monkeypatch.setattr(Journal, "__init__", lambda self, checkpoint: original(self, noting(checkpoint)))
    monkeypatch.setattr(journal_module, "MAX_RECORDS", 25)
    for seed in range(4):
        world_of(seed, checked=False).play()
    assert len(taken) > 50
    for checkpoint, as_it_was in taken:
        assert plain(checkpoint) == as_it_was


def test_a_core_that_does_otherwise_is_told_by_its_first_effect(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = led()
    begin(nodes["a"])
    nodes["a"].core.handle(START, ev.Propose(0, b"one"))
    deliver(nodes, START)
    file = tmp_path / "one.msrec"
    file.write_bytes(pack(recording_of(nodes["a"].core)))
    assert replay.main([str(file)]) == 0
    shown = capsys.readouterr().out
    assert "Propose p=0 payload=3 B" in shown
    assert "-> Committed p=0 upto=2" in shown
    assert "the same came of them as the node recorded" in shown
    monkeypatch.setattr(LeadingReplica, "maybe_commit", lambda *_: None)
    assert replay.main([str(file), "--quiet"]) == 1
    shown = capsys.readouterr().out
    assert "something else came of event" in shown
    assert "recorded: Committed p=0 upto=2" in shown


def test_what_is_shown_can_be_less(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = leader()
    node.core.handle(START, ev.Tick(True))
    file = tmp_path / "one.msrec"
    file.write_bytes(pack(recording_of(node.core)))
    assert replay.main([str(file), "--last", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if "  " in line).endswith("Tick can_elect=True stuck=False room=0")
    assert replay.main([str(file), "--partition", "7"]) == 0
    assert "Sealed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda raw: b"nonsense", "no recording"),
        (lambda raw: b"", "no recording"),
        (lambda raw: MAGIC[:5] + b"999" + raw[8:], "version b'999', and this build reads b'001' only"),
        (lambda raw: raw[:-1], "cut off, or has been damaged"),
        (lambda raw: raw[:9], "cut off, or has been damaged"),
        (lambda raw: raw[:40] + bytes([raw[40] ^ 1]) + raw[41:], "cut off, or has been damaged"),
    ],
)
def test_what_is_no_recording_is_refused(
    spoil: Callable[[bytes], bytes], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "one.msrec"
    raw = spoil(pack(recording_of(leader().core)))
    file.write_bytes(raw)
    with pytest.raises((InvalidRequest, CorruptLog), match=told.replace("'", ".")):
        unpack(raw)
    assert replay.main([str(file)]) == 2
    assert told in capsys.readouterr().err


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main([str(tmp_path / "none")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_a_kind_or_field_of_another_build_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = pack(recording_of(leader().core))
    monkeypatch.delitem(KINDS, "CoreSettings")
    with pytest.raises(
        InvalidRequest, match=r"there is no CoreSettings.*replay it with the build that wrote it"
    ):
        unpack(raw)
    with pytest.raises(ValueError, match="Tick has no moon"):
        made_of(["n", "Tick", "can_elect", True, "moon", 1])
    with pytest.raises(ValueError, match="ConfigSeen without config"):
        made_of(["n", "ConfigSeen", "p", 1])


def test_all_that_happens_has_a_name_of_its_own() -> None:
    kinds = [*get_args(ev.Event), *get_args(fx.Effect), *MESSAGES.values()]
    assert len({kind.__name__ for kind in kinds}) == len(kinds)
    assert {kind.__name__ for kind in kinds} <= KINDS.keys()


@pytest.mark.parametrize(
    "value",
    [
        None,
        -5,
        1 << 64,
        1.5,
        (1, [b"x", {"a": {3}}], frozenset({"b"})),
        ConfigRecord(1, 0, 1 << 64, 5, None, (("a", "s"),), parent=(1, 2, 3)),
        fx.Lacking(1, "a", "entry 3"),
    ],
)
def test_values_come_back_as_they_were(value: Any) -> None:
    assert made_of(plain(value)) == value


def test_a_reading_that_failed_fails_again() -> None:
    """R14: an entry that had rotted when it was recorded has rotted in the replay."""
    a = leader()
    a.core.handle(START, ev.Propose(0, b"one"))
    a.take()

    def rotten(p: int, first: int, max_bytes: int) -> list[bytes]:
        raise RottenEntry("it has rotted", partition=p, index=first)

    a.core._read_store = rotten
    a.core.handle(START + 10_000 * MS, ev.Tick(True))
    assert [e for e in a.take() if isinstance(e, fx.Rotten)]
    assert played(a.core).difference is None


def test_the_journal_is_bounded_by_its_bytes_and_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MAX_RECORDS", 100)
    node = leader()
    core = node.core
    for n in range(1000):
        core.handle(START + n, ev.Tick(False))
        core.take()
    halves = core.journal.halves([])
    assert len(halves) == 2
    assert sum(len(half.records) for half in halves) < 2 * (100 + 10)
    large = bytes(1 << 20)
    for n in range(60):
        core.handle(START + n, ev.Propose(0, large))
        core.handle(START + n, ev.Tick(False))
        keep(node)
    kept = [r for half in core.journal.halves([]) for r in half.records if type(r) is tuple]
    proposals = sum(type(r[1]) is ev.Propose for r in kept)
    assert 5 < proposals < 2 * (MAX_BYTES >> 20)


def test_what_was_decoded_of_entries_is_let_go() -> None:
    """It would be many times their bytes."""
    follower = led()["b"]
    begin(follower)
    core = follower.core
    core._ctx.read_payload = lambda payload: [bytes(payload)]
    epoch, last = follower.replica.sealed_epoch, follower.replica.log.last_index
    one = blob(last + 1, epoch, b"one")
    core.handle(START, m.Append(0, epoch, epoch, last, last, [one]), process("a"))
    [stored] = [effect for effect in core.take() if isinstance(effect, fx.PersistEntries)]
    core.handle(START, ev.Tick(False))
    assert stored.entries == [[b"one"]], "the driver has it"
    kept = [e for half in core.journal.halves([]) for r in half.records if type(r) is list for e in r]
    assert [e.entries for e in kept if isinstance(e, fx.PersistEntries)] == [None]


def keep(node: Node) -> None:
    """Take the effects, and keep none of what they say."""
    node.core.take()


def test_a_core_that_breaks_an_invariant_is_played_up_to_there() -> None:
    node = led()["b"]
    begin(node)
    with pytest.raises(AssertionError, match="R17"):
        node.core.handle(START, ev.SnapshotInstalled(0, 9, 1))
    player = replay.Player()
    last = list(player.play(recording_of(node.core)))[-1]
    assert player.difference is None
    assert last.raised.startswith("InvariantBroken: R17")
