"""What all replicas of a node share. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from metastore.core import effects as fx
from metastore.core import messages as m
from metastore.core.lapses import Lapses
from metastore.core.messages import Process
from metastore.core.settings import CoreSettings

ReadLog = Callable[[int, int, int], list[bytes]]
"""``(partition, first index, max bytes)`` -> entry blobs from the log, at least one."""


@dataclass(slots=True)
class Context:
    """What all replicas of a node share. Only the core changes it (``core.node``), but for what a process begins with."""

    me: Process
    settings: CoreSettings
    random: Random
    read_log: ReadLog
    emit: Callable[[fx.Effect], None]
    #: R8: a restarted replica answers no SEAL before this time
    seal_not_before_ns: int = 0
    #: whether an election by etcd could be run from here now, as far as the driver knows
    can_elect: bool = False
    #: decodes a payload; raises ValueError when it is one that cannot be applied, whatever the state
    read_payload: Callable[[memoryview], Any] | None = None
    #: the disk has taken a round for longer than a leader may be silent: lead nothing from here
    stuck: bool = False
    #: how much room the disk has: m.ROOM, LOW (lead nothing that adds to it) or FULL (take no more entries)
    room: int = m.ROOM
    #: peer -> LOW or FULL, as it said of its own last; no word of those that have room
    peer_room: dict[str, int] = field(default_factory=dict)
    #: no membership change goes on (cellctl pause)
    moves_paused: bool = False
    #: partitions led here that get new replicas just now
    moving: set[int] = field(default_factory=set)
    #: the processes that ran on this store lately (R13)
    runs: tuple[str, ...] = ()
    #: peers whose connection was reset or refused, and not yet back (R9)
    down: set[str] = field(default_factory=set)
    #: nodes that lost leaders by silence
    lapses: Lapses = field(default_factory=Lapses)
