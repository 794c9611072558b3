"""Which method of a replica each message and each event of it goes to. Pure.

The tables are made anew for each node, so that a method that a test has replaced is the one that is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metastore.core import events as ev
from metastore.core import messages as m
from metastore.core.electing import PartitionReplica
from metastore.core.messages import Process

OnMessage = Callable[[PartitionReplica, int, Process, Any], None]
OnEvent = Callable[[PartitionReplica, int, Any], object]


def message_handlers() -> dict[type[Any], OnMessage]:
    """Kinds of messages that go to one replica."""
    return {
        m.Append: PartitionReplica.on_append,
        m.Appended: PartitionReplica.on_appended,
        m.Missed: PartitionReplica.on_missed,
        m.Seal: PartitionReplica.on_seal,
        m.Sealed: PartitionReplica.on_sealed,
        m.Refused: PartitionReplica.on_refused,
        m.Pull: PartitionReplica.on_pull,
        m.Pulled: PartitionReplica.on_pulled,
        m.PullMissed: PartitionReplica.on_pull_missed,
        m.PreVote: PartitionReplica.on_prevote,
        m.PreVoteReply: PartitionReplica.on_prevote_reply,
        m.HandOff: PartitionReplica.on_handoff,
        m.Appoint: PartitionReplica.on_appoint,
        m.Appointed: PartitionReplica.on_appointed,
        m.Recall: PartitionReplica.on_recall,
        m.Rebuild: PartitionReplica.on_rebuild,
    }


def event_handlers() -> dict[type[Any], OnEvent]:
    """Kinds of events that are of one replica."""
    return {
        ev.Propose: lambda r, now, e: r.propose(now, e.payload),
        ev.ConfigSeen: lambda r, now, e: r.on_config(now, e.config, e.mod_revision),
        ev.LeaderSeen: lambda r, now, e: r.on_leader_value(e.value),
        ev.RecordSeen: lambda r, now, e: r.on_record(e.is_sound),
        ev.HomeSeen: lambda r, now, e: r.on_home(e.cell),
        ev.MoveWanted: lambda r, now, e: r.on_move(e.move),
        ev.CampaignEnded: lambda r, now, e: r.on_campaign_done(now, e.won, e.mod_revision),
        ev.ChangeEnded: lambda r, now, e: r.on_change_done(now, e.new, e.mod_revision, e.reason),
        ev.TransferWanted: lambda r, now, e: r.transfer(now, e.to),
        ev.Compacted: lambda r, now, e: r.on_compacted(e.index),
        ev.StateLost: lambda r, now, e: r.lose_state(),
        ev.EntryLost: lambda r, now, e: r.lose_entry(e.index),
        ev.RebuildDue: lambda r, now, e: r.tick_damaged(now),
        ev.SnapshotProgress: lambda r, now, e: r.on_snapshot_progress(now, e.node),
        ev.SnapshotRefused: lambda r, now, e: r.on_snapshot_refused(now, e.node),
        ev.SnapshotStaged: lambda r, now, e: r.on_snapshot_staged(
            now, e.src, e.epoch, e.index, e.index_epoch
        ),
        ev.SnapshotInstalled: lambda r, now, e: r.on_snapshot_installed(now, e.index, e.index_epoch),
        ev.StateRebuilt: lambda r, now, e: r.on_rebuilt(now, e.done),
        ev.PartingProposed: lambda r, now, e: r.on_parting(e.at),
        ev.SplitApplied: lambda r, now, e: r.on_split_applied(e.child, e.durable),
        ev.SplitOff: lambda r, now, e: r.follow_config(now, f"split off {e.parent}"),
        ev.SplitTaken: lambda r, now, e: r.take_split(now, e.index, e.index_epoch),
        ev.EntryCommitted: lambda r, now, e: r.learn_committed(e.epoch, e.index),
    }
