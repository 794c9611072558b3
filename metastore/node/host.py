"""One partition on a node: its replica and state machine, its waiting operations.

Writes gather until the log is free and are then resolved and proposed as one entry (R7).
Reads are answered from the committed state while grants hold (R8); otherwise they wait for a
quorum's answer to a heartbeat sent after they arrived, as do writes, so that a leader that
slept refuses what it can no longer do instead of leaving its outcome unknown.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

import xxhash

from metastore.clock import now_ns
from metastore.core.dedupe import Window
from metastore.core.electing import PartitionReplica
from metastore.core.entry import entry_payload, entry_position
from metastore.core.machine import Applied, Machine
from metastore.core.messages import FULL, LOW
from metastore.core.quorum import is_quorum
from metastore.core.replica import (
    ACTIVATING,
    ACTIVE,
    ADOPTING,
    RESIGNED,
    RESIGNING,
    SEALING,
    InvariantBroken,
    pack_config,
)
from metastore.errors import (
    CorruptState,
    DeadlineExceeded,
    DiskLow,
    MetastoreError,
    Moved,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    RottenEntry,
    ShuttingDown,
    StorageError,
    TooStale,
    Unavailable,
)
from metastore.history import history_changed
from metastore.keys import end_point
from metastore.layout import SplitRecord
from metastore.node.clients import ClientConnection, error_result
from metastore.node.splitting import Splitting, child_config
from metastore.node.ttls import Deadlines
from metastore.node.waiters import FOREVER_NS, Waiters
from metastore.node.watches import PartitionWatches
from metastore.operations import (
    AT_LEAST,
    COMPOUND,
    CONSISTENCY_AT,
    FLAGS_AT,
    GET,
    ID_AT,
    KEY_AT,
    KEYS_ONLY,
    KIND_AT,
    LINEARIZABLE,
    MANY_KEYS,
    NOT_FOUND,
    OK,
    READS,
    SEQ_AT,
    START_AT,
    TOUCH,
    WANTED_AT,
    WRITES,
    Op,
    adds,
    is_local,
    is_read,
    keys_of,
    size_of,
    work_of,
)
from metastore.records import record_versions
from metastore.storage.store import Fork
from metastore.topology import placement_to_plain

if TYPE_CHECKING:
    from metastore.node.node import Node

MAX_BATCH_OPS = 2048
#: operations that are proposed and not committed: followers that do not keep up get no more than that
MAX_PROPOSED = 16_384
#: of partitions told with an error: beyond it the topology has to be asked for
MAX_FAMILY = 64
#: roles in which entries proposed here may still be uncommitted
PROPOSING = frozenset({ACTIVE, RESIGNING})
HANDING_OVER = frozenset({RESIGNING, RESIGNED})
BEGINNING = frozenset({SEALING, ADOPTING, ACTIVATING})
#: so long an operation waits to hear who leads, or where its key went
MAX_WAIT_NS = 300_000_000
MAX_BATCH_BYTES = 4 << 20
MAX_PARKED = 4096
MAX_LIST_BYTES = 2 << 20
MAX_LIST_LOOKS = 20_000
DIGEST_SLICE = 500
#: of one turn of the loop; what comes beyond it is refused. More than clients have of a turn in all
#: (clients.MAX_CLIENT_NS): other frames wait for the next one, and it is one frame's many listings that are refused
MAX_LISTING_NS = 60_000_000
APPLY_READ_BYTES = 4 << 20
MAX_STAGED_BYTES = 1 << 20
MAX_EXPIRED_AT_ONCE = 256
#: over how long operations a second are counted
RATE_NS = 5_000_000_000
#: proposed without giving way to others
MAX_ENTRIES_A_TURN = 4

Waiting = tuple[ClientConnection, bytes, Op, int, int]
"""``(connection, client id, op, deadline in ns, bytes that it takes)``."""


def batch_length(pending: list[Waiting]) -> int:
    """How many of those waiting make one entry."""
    size, parts, count = 0, 0, 0
    for _, _, op, _, taken in pending:
        work, reads = work_of(op)
        parts += work
        size += taken + reads
        if count and (size > MAX_BATCH_BYTES or parts > MAX_BATCH_OPS):
            break
        count += 1
    return count


class PartitionHost:
    """See the module."""

    def __init__(self, node: Node, p: int, lo: int, hi: int) -> None:
        self.node = node
        self.p = p
        #: storage keys ``lo <= lkey < hi`` are served: each begins with its point. ``hi`` follows from what ``narrow`` says
        self.lo, self.hi = lo.to_bytes(8, "big"), end_point(hi)
        self._held = node.store.partitions[p]
        self.replica: PartitionReplica
        self.machine = Machine(partial(node.store.get, p))
        self.pending: list[Waiting] = []
        #: of those: the bytes they take, whether transactions are among them, and when the first of them is
        #: no longer waited for
        self.pending_bytes = 0
        self.pending_txns = False
        self.pending_until = FOREVER_NS
        self.parked: deque[tuple[int, Waiting]] = deque()
        #: operations that came while leadership, or the upper half, changed hands, and until when they wait
        self.waiting: deque[tuple[int, Waiting]] = deque()
        self.waiters = Waiters()
        self.watches = PartitionWatches(self)
        #: entries that came from a leader and are not applied yet: index -> their bytes, and them decoded
        self.staged: dict[int, tuple[bytes, Any]] = {}
        self._staged_bytes = 0
        self.deadlines = Deadlines()
        self.window = Window()
        self.expired: list[tuple[bytes, int]] = []
        #: while a leader of it prepares to split it (R18)
        self.splitting: Splitting | None = None
        self.wanted_split: SplitRecord | None = None
        #: the state could not even be loaded (R14): nothing is applied to it, all waits in the log
        self.frozen = False
        #: up to this entry those who follow the changes have been told
        self._told = 0
        #: operations of clients so far, and a second over the last while
        self.operations = 0
        self.rate = 0.0
        self._rated = (0, now_ns())

    @property
    def log_base(self) -> int:
        """The last entry that can no longer be read."""
        own = self.node.store.partitions[self.p].log.base_index
        parent = self._parent(own)
        return own if parent is None else parent.log_base

    def _parent(self, own_base: int) -> PartitionHost | None:
        """Whose log holds what was before this partition was split off, if it is here and joins up. That one may have
        been split off itself."""
        config = self.replica.config
        if config is None or config.parent is None or own_base != config.parent[2]:
            return None
        parent, epoch, index = config.parent
        host = self.node.hosts.get(parent)
        if host is None:
            return None
        log = self.node.store.partitions[parent].log
        joins = log.base_index <= index <= log.last_index and log.epoch_at(index) == epoch
        return host if joins else None

    def read_log(self, first: int, max_bytes: int) -> list[bytes]:
        """Entries from ``first`` on, above ``log_base``; at least one."""
        store, own = self.node.store, self.node.store.partitions[self.p].log.base_index
        parent = self._parent(own) if first <= own else None
        if parent is None:
            return store.read_entries(self.p, first, max_bytes)
        return parent.read_log(first, max_bytes)[: own - first + 1]

    # --- operations -------------------------------------------------------------------------

    def covers(self, lkey: bytes) -> bool:
        return self.lo <= lkey < self.hi

    @property
    def role(self) -> str:
        return self.replica.role

    @property
    def applied(self) -> int:
        """The last entry that the state has: the store's word, which nobody else keeps."""
        return self._held.meta.applied

    def load(self) -> None:
        """Begin with what the store has: at the start, after a snapshot (R17), or as what was split off (R18)."""
        if self.load_state():
            self.watches.snapshot_installed()

    def load_state(self) -> bool:
        """What the state has. False when it cannot be read (R14): nothing is applied to it then either."""
        self.machine.reset()
        try:
            self.machine.load(self.node.store.load_aux(self.p))
        except CorruptState as e:
            self.frozen = True
            self.node.rebuilding.found(self.p, e)
            return False
        self.frozen = False
        self.narrow()
        return True

    def take_fork(self) -> None:
        """R18: the store has made this copy, if it was empty, what its parent's entry split off."""
        replica, info = self.replica, self.node.store.partitions[self.p]
        if replica.is_empty and info.applied_index:
            self.load()
            replica.take_fork(now_ns(), info.applied_index, info.applied_epoch)

    def narrow(self) -> None:
        """R18: where the range ends that is served here, by the word of those who know: etcd's record, the splits that the
        state has, and the one that is proposed, above which nothing may be proposed after it. One that is
        forgotten again is none."""
        config, parting = self.replica.config, self.replica.parting
        assert config is not None
        proposed = () if parting is None else (end_point(parting),)
        self.hi = min([end_point(config.hi), *(split.at for split in self.machine.splits), *proposed])
        self.tell_split()

    def tell_split(self) -> None:
        """The replica has the last split recorded, if it is a leader's and etcd does not know yet."""
        replica = self.replica
        if self.machine.splits:
            split = self.machine.splits[-1]
            if replica.config is not None and int.from_bytes(split.at, "big") < replica.config.hi:
                replica.split = child_config(self.p, split)
                replica.split_durable = split.child not in self.node.store.forks(self.p)

    def operate(self, connection: ClientConnection, client: bytes, op: Op, deadline: int, now: int) -> None:
        """One checked operation of a client, that came at ``now``."""
        self.operations += 1
        kind = op[KIND_AT]
        if self.replica.damaged and self.refuses(connection, op):
            return
        if not self.covers(op[KEY_AT]) or (kind in MANY_KEYS and not all(map(self.covers, keys_of(op)))):
            if self.is_parting() and len(self.waiting) < MAX_PARKED:
                self.wait(connection, client, op, deadline)
                return
            error: MetastoreError | None = self.elsewhere()
        else:
            error = self.refuse(client, op)
            if error is not None and kind in WRITES and op[SEQ_AT] and not self.replica.can_read(now):
                error = None  # whether it is a retry only a leader knows, and one that is confirmed as such
        if error is not None:
            connection.answer(error_result(op[ID_AT], error))
        elif kind in READS:
            if op[CONSISTENCY_AT[kind]] == LINEARIZABLE:
                self.read_linearizable(connection, client, op, deadline)
            else:
                self.read_local(connection, op)
        elif kind in COMPOUND and is_read(op):
            self.read_linearizable(connection, client, op, deadline)
        else:
            self.write(connection, client, op, deadline, now)

    def is_parting(self) -> bool:
        """R18: whether the upper half is on its way to be another partition, which is not open here yet."""
        return self.role == ACTIVE and (
            self.replica.parting is not None or bool(self.node.store.forks(self.p))
        )

    def elsewhere(self) -> MetastoreError:
        """For a key, or a range, that this partition does not hold: with what was split off it, as far as is known here."""
        text = f"partition {self.p} does not hold all of that; refresh the topology"
        family = self.node.topology.family(self.p) if self.machine.splits else []
        if not 1 < len(family) <= MAX_FAMILY:  # a part of it would leave a gap
            return Moved(text, partition=self.p)
        return Moved(text, partition=self.p, family=[placement_to_plain(q) for q in family])

    def refuse(self, client: bytes, op: Op) -> MetastoreError | None:
        """What the namespace's policy, or the room on the disks, has against an operation; nothing, when it is a
        retry of what was done before there was anything against it: that gets the first outcome (R7)."""
        error = self.node.policies.refuse(self, op)
        if error is None and self.node.tight and op[KIND_AT] in WRITES:
            error = self.no_room(op)
        if error is not None and op[KIND_AT] in WRITES and op[SEQ_AT]:
            seq = op[SEQ_AT]
            waits = any(
                other == client and w[KIND_AT] in WRITES and w[SEQ_AT] == seq
                for _, other, w, _, _ in self.pending
            )
            if waits or self.machine.knows(client, op):
                return None
        return error

    def no_room(self, op: Op) -> MetastoreError | None:
        """Why a write is refused for want of room; None = it is not. What frees room, or ends a lock, goes on
        as long as anything can be logged; so does everything once somebody leads who has room."""
        replica, node = self.replica, self.node
        if replica.role != ACTIVE or is_read(op):
            return None
        ctx, space = node.core.ctx, node.store.space
        low = replica.short_of_room(LOW)
        if replica.short_of_room(FULL):
            return self.no_room_at_all()
        if not low or not adds(op):
            return None
        elif ctx.room and self.heir_with_room():
            text = f"the disk of {node.me.node} is nearly full; partition {self.p} is handed to a node that has room"
            return Overloaded(text, retry_after_s=0.3)
        else:
            own = f": {space.text()}" if ctx.room else " (disk_low_mib)"
            what = f"partition {self.p} takes deletes only, since the disks of {', '.join(low)} are nearly full{own}"
        text = f"{what}; delete records, or make room on the disks: cellctl doctor"
        return DiskLow(text, nodes=low, retry_after_s=10)

    def no_room_at_all(self) -> DiskLow | None:
        """Why nothing can be logged: this leader's disk is full, or those of so many others are that no quorum can take
        an entry. Whatever was proposed would wait, and could come true long after everybody has given up."""
        node, full = self.node, self.replica.short_of_room(FULL)
        if not full:
            return None
        ctx, space = node.core.ctx, node.store.space
        if ctx.room == FULL:
            what = f"the disk of {node.me.node} is full, so nothing can be written: {space.text()}"
        else:
            what = f"the disks of {', '.join(full)} are full, so no quorum of partition {self.p} can take a write"
        return DiskLow(f"{what}; make room on the disks: cellctl doctor", nodes=full, retry_after_s=10)

    def heir_with_room(self) -> bool:
        """Whether a replica that can be led from has room (node.spreading hands over to it)."""
        node, term = self.node, self.replica.term
        if term is None or node.core.ctx.moves_paused or not node.control.can_elect() or term.config.joint:
            return False
        low = node.core.ctx.peer_room
        return any(
            n != node.me.node and n not in low and not node.links.away_for_s(n) for n, _ in term.members
        )

    def refuses(self, connection: ClientConnection, op: Op) -> bool:
        """R14: nothing is read here while the state is damaged. What is for the leader goes on to it, if that
        is another node."""
        local = is_local(op)
        if self.replica.role != ACTIVE and not local:
            return False
        error: MetastoreError = self.damage()
        if local:
            error = TooStale(error.message, age_ms=None)
        connection.answer(error_result(op[ID_AT], error))
        return True

    def damage(self) -> MetastoreError:
        return Unavailable(
            f"partition {self.p}: its copy on this node is damaged; another replica is to lead and to serve",
            retry_after_s=0.2,
            partition=self.p,
        )

    def is_rotten(self, error: CorruptState) -> MetastoreError:
        """What was read from the state is not what was put there (R14): what to answer."""
        self.node.rebuilding.found(self.p, error)
        return self.damage()

    def write(self, connection: ClientConnection, client: bytes, op: Op, deadline: int, now: int) -> None:
        replica, node = self.replica, self.node
        if replica.role != ACTIVE:
            self.turn_away(connection, client, op, deadline)
        elif (
            len(self.pending) >= node.config.max_pending_writes
            or len(self.waiters) >= MAX_PROPOSED
            or node.store.overlay_full
            or node.admission.writes_full
        ):
            error = Overloaded("too many writes wait here", retry_after_s=0.1)
            connection.answer(error_result(op[ID_AT], error))
        elif replica.can_read(now):
            self.queue(connection, client, op, deadline)
        else:
            self.park(connection, client, op, deadline)

    def queue(self, connection: ClientConnection, client: bytes, op: Op, deadline: int) -> None:
        """To be proposed when the log is free."""
        node, pending = self.node, self.pending
        if not pending and not self.expired:
            node.writing.append(self)
        size = size_of(op)
        node.admission.waiting += size
        self.pending_bytes += size
        if op[KIND_AT] in COMPOUND:
            self.pending_txns = True
        if deadline < self.pending_until:
            self.pending_until = deadline
        pending.append((connection, client, op, deadline, size))

    def read_linearizable(self, connection: ClientConnection, client: bytes, op: Op, deadline: int) -> None:
        replica = self.replica
        if replica.role == ACTIVE:
            result, size = self.read(connection, op, 0)
            if replica.can_read(now_ns()):  # R8: after the data was read
                connection.answer(result, size)
                return
            self.park(connection, client, op, deadline)
        else:
            self.turn_away(connection, client, op, deadline)

    def turn_away(self, connection: ClientConnection, client: bytes, op: Op, deadline: int) -> None:
        """An operation for the leader, which this is not. While one hands over (R11), or has just begun, it is better
        told a little later than sent to look around."""
        if self.is_changing_hands() and len(self.waiting) < MAX_PARKED:
            self.wait(connection, client, op, deadline)
        else:
            connection.answer(error_result(op[ID_AT], self.not_leader()))

    def is_changing_hands(self) -> bool:
        role, term = self.role, self.replica.term
        if role in BEGINNING:
            return term is not None and now_ns() - term.started_ns < MAX_WAIT_NS
        return role in HANDING_OVER

    def wait(self, connection: ClientConnection, client: bytes, op: Op, deadline: int) -> None:
        size = size_of(op)
        self.node.admission.waiting += size
        self.waiting.append((now_ns() + MAX_WAIT_NS, (connection, client, op, deadline, size)))

    def answer_waiting(self, error: MetastoreError | None = None, until: int | None = None) -> None:
        """Those who waited are answered with ``error``, or served as if they came now. ``until``: only those who wait
        for longer than up to then."""
        for _ in range(len(self.waiting)):
            if until is not None and self.waiting[0][0] > until:
                return
            _, (connection, client, op, deadline, size) = self.waiting.popleft()
            self.node.admission.waiting -= size
            if error is not None:
                connection.answer(error_result(op[ID_AT], error))
            else:
                self.operations -= 1
                self.operate(connection, client, op, deadline, now_ns())

    def read_local(self, connection: ClientConnection, op: Op) -> None:
        """A stale or at-least read, from any replica."""
        at = CONSISTENCY_AT[op[KIND_AT]]
        consistency, arg = op[at : at + 2]
        age_ms = self.age_ms()
        error: MetastoreError | None = None
        if not self.has_state():
            error = TooStale(f"this replica of partition {self.p} has no state yet", age_ms=None)
        elif consistency == AT_LEAST:
            last = self.machine.last_version
            if arg and self.machine.is_left_behind(arg, self.replica.can_read(now_ns())):
                error = history_changed(arg, last)
            elif last < arg:
                error = TooStale(f"this replica is at version {last}, below {arg}", age_ms=age_ms)
        elif arg is not None and (age_ms is None or age_ms > arg):
            error = TooStale(f"this replica is {age_ms} ms old, over {arg} ms", age_ms=age_ms)
        if error is not None:
            connection.answer(error_result(op[ID_AT], error))
        else:
            connection.answer(*self.read(connection, op, age_ms))

    def has_state(self) -> bool:
        """R8: whether what is here was the partition's state at some moment. Nothing applied or installed yet is
        no state, nor is what a new member has been sent so far, before it once had all (R10): by either the
        records that are there would not exist."""
        return self.applied > 0 and (self.replica.fresh_ns > 0 or self.replica.is_member())

    def age_ms(self) -> int | None:
        """Upper bound of the age of this copy (R8); None when it is not known."""
        age_ns = self.replica.age_ns(now_ns())
        return None if age_ns is None else -(-age_ns // 1_000_000)

    def read(self, connection: ClientConnection, op: Op, age_ms: int | None) -> tuple[list[Any], int]:
        """The answer, and about how many bytes it is."""
        try:
            return self._read(connection, op, age_ms)
        except CorruptState as e:
            return error_result(op[ID_AT], self.is_rotten(e)), 0

    def _read(self, connection: ClientConnection, op: Op, age_ms: int | None) -> tuple[list[Any], int]:
        store = self.node.store
        if connection.crowded():
            error = Overloaded("too many answers wait to be read on this connection", retry_after_s=0.1)
            return error_result(op[ID_AT], error), 0
        kind = op[KIND_AT]
        if kind == GET:
            record = self.machine.read(op[KEY_AT])
            if record is None:
                return [op[ID_AT], NOT_FOUND, age_ms], 0
            if self.machine.first_version:
                record = self.machine.shown(record)
            return [op[ID_AT], OK, record, age_ms], len(record)
        if kind in COMPOUND:
            tail, size = self.machine.read_txn(op)
            return [op[ID_AT], *tail], size
        if self.node.listing_ns > MAX_LISTING_NS:
            error = Overloaded("too many listings at once", retry_after_s=0.1)
            return error_result(op[ID_AT], error), 0
        began = now_ns()
        result = self.list_rows(op, age_ms)
        self.node.listing_ns += now_ns() - began
        return result, MAX_LIST_BYTES - store.scan_bytes_left

    def list_rows(self, op: Op, age_ms: int | None) -> list[Any]:
        store = self.node.store
        start, end, limit, flags = op[START_AT : FLAGS_AT + 1]
        hi = self.hi
        wanted = op[WANTED_AT] if len(op) > WANTED_AT else b""
        rows = store.scan(
            self.p, start, min(end, hi) if end else hi, limit, MAX_LIST_BYTES, wanted, MAX_LIST_LOOKS
        )
        # what lies beyond this partition (it may have been split, R18) others tell
        following = hi if store.scan_next is None and end > hi else store.scan_next
        tail = [following, age_ms, self.machine.last_version]
        if self.machine.first_version:
            shown = self.machine.shown
            rows = [(k, shown(r)) for k, r in rows]
        if flags & KEYS_ONLY:
            return [op[ID_AT], OK, [[k, record_versions(r)[1]] for k, r in rows], *tail]
        return [op[ID_AT], OK, rows, *tail]

    def missing(self, now: int) -> list[str]:
        """The replicas that are away while without them there is no quorum, as seen from here for longer than
        an election would take; none = there may be one."""
        replica, term, me = self.replica, self.replica.term, self.node.me.node
        patience = 2 * self.node.settings.suspect_after_ns
        config = replica.config if term is None else term.config
        if config is None:
            return []
        members = {n for n, _ in config.members()}
        if term is not None and replica.role in PROPOSING:
            if replica.has_quorum(now):
                return []
            away = {n for n in members if now - term.acked_at_ns.get(n, 0) >= patience}
        else:
            away = {n for n in members if self.node.links.away_for_s(n) * 1e9 >= patience}
        away.discard(me)
        return [] if is_quorum(config, members - away) else sorted(away)

    def no_quorum(self, missing: list[str]) -> Unavailable:
        """The refusal of what needs a quorum while those are away. ``final``: this replica knows no better."""
        return Unavailable(
            f"partition {self.p} has no quorum of its replicas: {self.node.me.node} hears nothing of "
            f"{', '.join(missing)}; stale reads are served",
            retry_after_s=1,
            partition=self.p,
            missing=missing,
            final=True,
        )

    def not_leader(self) -> MetastoreError:
        replica = self.replica
        leader = replica.leader_node
        if self.node.stopping and leader == self.node.me.node:
            return ShuttingDown("this node is stopping", retry_after_s=0.1)
        missing = self.missing(now_ns())
        if missing:
            return self.no_quorum(missing)
        if replica.role == RESIGNING or leader == self.node.me.node:
            return Unavailable(
                f"partition {self.p}: leadership is {replica.role} here", retry_after_s=0.2, partition=self.p
            )
        without = not self.node.config.claim_without_etcd and not self.node.control.can_elect()
        if without and replica.leader_is_lost(now_ns()):
            return Unavailable(
                f"partition {self.p}: its leader {leader} is lost, and without etcd no other can be named; "
                "stale reads are served",
                retry_after_s=2,
                partition=self.p,
                final=True,
            )
        return NotLeader(
            f"partition {self.p} is led by {leader}",
            partition=self.p,
            epoch=replica.sealed_epoch,
            leader=leader,
            rpc=self.node.address_of(leader),
        )

    # --- parked: a leader without enough grants asks a quorum (R8) -----------------------------

    def park(self, connection: ClientConnection, client: bytes, op: Op, deadline: int) -> None:
        now = now_ns()
        missing = self.missing(now)
        if missing or len(self.parked) >= MAX_PARKED:
            error: MetastoreError = (
                self.no_quorum(missing)
                if missing
                else Overloaded("too many operations wait for a quorum here", retry_after_s=0.5)
            )
            connection.answer(error_result(op[ID_AT], error))
            return
        core = self.node.core
        if not self.parked:
            self.node.parking.append(self)
        mark = core.last_number
        size = size_of(op)
        self.node.admission.waiting += size
        self.parked.append((mark, (connection, client, op, min(deadline, now + 2_000_000_000), size)))
        self.node.ask_quorum()

    def unpark(self, now: int) -> None:
        """Carry out what a quorum has confirmed, refuse what waited too long."""
        replica = self.replica
        while self.parked:
            mark, (connection, client, op, deadline, _) = self.parked[0]
            if replica.role != ACTIVE:
                error = self.not_leader()
            elif replica.damaged:
                error = self.damage()
            elif replica.confirmed_since(mark):
                self.unpark_first()
                if is_read(op):
                    connection.answer(*self.read(connection, op, 0))
                    continue
                # policies may have changed meanwhile: what is proposed after a change obeys it
                refused = self.refuse(client, op)
                if refused is None:
                    self.queue(connection, client, op, deadline)
                else:
                    connection.answer(error_result(op[ID_AT], refused))
                continue
            elif now > deadline:
                error = Unavailable(
                    f"partition {self.p}: no quorum of replicas answered", retry_after_s=1, partition=self.p
                )
            else:
                return
            self.unpark_first()
            connection.answer(error_result(op[ID_AT], error))

    def unpark_first(self) -> None:
        _, (_, _, _, _, size) = self.parked.popleft()
        self.node.admission.waiting -= size

    # --- proposing and applying -----------------------------------------------------------------

    def propose_pending(self, now: int) -> None:
        """Resolve and propose what has gathered, as few entries as the bounds allow."""
        pending, self.pending = self.pending, []
        left, self.pending_bytes = self.pending_bytes, 0
        first_due, self.pending_until = self.pending_until, FOREVER_NS
        # many records may be over at once (R15: all begin anew together): so many to an entry
        expired, self.expired = self.expired[:MAX_EXPIRED_AT_ONCE], self.expired[MAX_EXPIRED_AT_ONCE:]
        replica = self.replica
        entries = 0
        if self.applied < replica.commit_index and not (replica.installing or replica.damaged):
            raise InvariantBroken(
                f"R7: partition {self.p} would resolve at entry {self.applied}, {replica.commit_index} is committed"
            )
        full = self.no_room_at_all() if self.node.tight else None
        while pending or expired:
            if replica.role != ACTIVE or replica.damaged:
                error = self.damage() if replica.role == ACTIVE else self.not_leader()
                self.node.admission.waiting -= left
                for connection, _, op, _, _ in pending:
                    connection.answer(error_result(op[ID_AT], error))
                return
            if entries == MAX_ENTRIES_A_TURN:
                break
            entries += 1
            if left <= MAX_BATCH_BYTES and len(pending) <= MAX_BATCH_OPS and not self.pending_txns:
                batch, pending, taken = pending, [], left
            else:
                count = batch_length(pending)
                batch, pending = pending[:count], pending[count:]
                taken = sum([w[4] for w in batch])
            left -= taken
            self.node.admission.waiting -= taken
            if now > first_due:
                batch = self.without_late(now, batch)
            if full is not None:
                batch = self.without_new(batch, full)
                self.deadlines.put_back(expired)
                expired = []
            over: list[tuple[bytes, int]] = []
            if expired:
                over = [e for e in expired if self.covers(e[0]) and self.deadlines.is_over(now, *e)]
                expired = []
            index = replica.log.last_index + 1
            try:
                payload, results = self.machine.resolve(index, [(w[1], w[2]) for w in batch], over)
            except CorruptState as e:
                error = self.is_rotten(e)
                for connection, _, op, _, _ in batch:
                    connection.answer(error_result(op[ID_AT], error))
                self.machine.abandon()  # what was proposed before is applied as the log has it
                continue
            if payload is not None:
                proposed = replica.propose(now, payload)
                assert proposed == index
            applied, waiters = self.applied, self.waiters
            if first_due < waiters.until:
                waiters.until = first_due
            for (connection, _, op, deadline, _), (at, tail) in zip(batch, results, strict=True):
                if op[KIND_AT] == TOUCH:
                    tail = self.touched(now, op, at, tail)
                if at > applied:
                    waiters.append((at, connection, op[ID_AT], tail, deadline))
                else:
                    connection.answer([op[ID_AT], *tail])
        self.pending, self.pending_bytes = pending, left
        if pending:
            self.pending_until = first_due
        else:
            self.pending_txns = False
        if self.pending or self.expired:
            self.node.writing.append(self)
            self.node.schedule_turn()
        elif self.splitting is not None and self.splitting.counted and not self.parked:
            self.splitting.propose(now)

    @staticmethod
    def without_late(now: int, batch: list[Waiting]) -> list[Waiting]:
        """Whoever sent these has given up; they are told that nothing was done."""
        error = DeadlineExceeded("the deadline passed before the write was proposed; nothing was done")
        for connection, _, op, deadline, _ in batch:
            if now > deadline:
                connection.answer(error_result(op[ID_AT], error))
        return [w for w in batch if now <= w[3]]

    def without_new(self, batch: list[Waiting], full: DiskLow) -> list[Waiting]:
        """Those that need no entry: what changes nothing, and retries of what has its outcome (R7)."""
        rest = []
        for waiting in batch:
            connection, client, op, _, _ = waiting
            if op[KIND_AT] not in WRITES or (op[SEQ_AT] and self.machine.knows(client, op)):
                rest.append(waiting)
            else:
                connection.answer(error_result(op[ID_AT], full))
        return rest

    def drop_late(self, now: int) -> None:
        """Those whose time is up while the log hangs hear that nothing was done."""
        self.pending = self.without_late(now, self.pending)
        size = sum([w[4] for w in self.pending])
        self.node.admission.waiting -= self.pending_bytes - size
        self.pending_bytes = size
        self.pending_until = min((w[3] for w in self.pending), default=FOREVER_NS)

    def touched(self, now: int, op: Op, at: int, tail: tuple[Any, ...]) -> tuple[Any, ...]:
        """Renew on this leader's clock, and answer so only while it is the leader (R8, R15): a
        later one starts all TTLs anew, which is later still."""
        if tail[0] == OK:
            lkey = op[KEY_AT]
            self.deadlines.renew(now, lkey, self.machine.timed.get(lkey))
            if at <= self.applied and not self.replica.can_read(now_ns()):
                error = Unavailable(
                    f"partition {self.p}: no quorum confirms its leader now", retry_after_s=0.2
                )
                return error.status, error.message, error.detail
        return tail

    def stage(self, blobs: list[bytes], entries: list[Any]) -> None:
        """Keep entries just appended to the log as they were decoded, for when they are committed. Who is
        far behind decodes them again."""
        if self._staged_bytes > MAX_STAGED_BYTES:
            self.staged.clear()
            self._staged_bytes = 0
        index = entry_position(blobs[0])[0]
        for blob, entry in zip(blobs, entries, strict=True):
            self.staged[index] = blob, b"" if entry is None else entry
            self._staged_bytes += len(blob)
            index += 1

    def unstage(self, index: int) -> Any:
        """Entry ``index`` decoded, if it is staged and still the one that the log has; else None."""
        blob, entry = self.staged.pop(index, (None, None))
        if blob is None:
            return None
        self._staged_bytes -= len(blob)
        return entry if self.node.store.log.partitions[self.p].blobs.get(index) is blob else None

    def apply_to(self, upto: int) -> None:
        """Apply committed entries in order and answer those who wait for them (R6)."""
        machine, store, node = self.machine, self.node.store, self.node
        while self.applied < upto and not self.frozen:
            index = self.applied + 1
            entry = self.unstage(index) if self.staged else None
            if entry is not None or machine.proposed(index):
                self.save(index, self.replica.log.epoch_at(index), machine.apply(index, entry))
                continue
            try:
                blobs = store.read_entries(self.p, index, APPLY_READ_BYTES)
            except RottenEntry as e:
                node.rebuilding.lost(e)
                break
            for blob in blobs:
                index, epoch = entry_position(blob)
                if index > upto:
                    break
                if index != self.applied + 1:
                    raise StorageError(f"partition {self.p}: entry {index} read after {self.applied}")
                self.unstage(index)
                self.save(index, epoch, machine.apply(index, entry_payload(blob)))
        self.answer_waiters(upto)
        if node.core_started and self.pending and not self.waiters:
            node.schedule_turn()

    def answer_waiters(self, upto: int) -> None:
        """Entries up to ``upto`` are committed (R6): so are the operations that were resolved into them."""
        self.waiters.answer(upto)

    def save(self, index: int, epoch: int, applied: Applied) -> None:
        """Entry ``index`` is applied: to the store, with what it splits off (R18), and to whoever follows the changes."""
        store, fork = self.node.store, None
        if applied.forked is not None:
            split, me = applied.forked.split, self.node.me
            mine = (me.node, me.store) in split.members
            config = pack_config(child_config(self.p, split)) if mine else None
            fork = Fork(split.child, split.at, applied.forked.aux, config)
        store.apply(self.p, index, epoch, applied.changes, applied.aux, fork)
        if fork is not None:
            self.splitting, self.replica.parting = None, None
            self.narrow()
            self.watches.split()
        if index <= self._told:
            return  # applied again, to a state that was rebuilt
        self._told = index
        if self.watches.count:
            self.watches.applied(index, applied)
        timed = self.machine.timed
        if self.deadlines.running and (timed or self.deadlines):
            now = now_ns()
            for lkey, _ in applied.changes:
                self.deadlines.changed(now, lkey, timed.get(lkey))

    # --- leadership -------------------------------------------------------------------------------

    def on_role(self, role: str, was: str) -> None:
        """Leadership begins or ends here: what was proposed and is not committed is forgotten;
        who waits for it learns that its outcome is not known (R7)."""
        if role in PROPOSING and was in PROPOSING:  # one reign: what it proposed stands
            if role == ACTIVE:  # what was over while it was about to resign was passed over
                self.restart_ttls(now_ns())
                self.answer_waiting()
            return
        self.machine.abandon()
        self.splitting, self.replica.parting = None, None
        self.narrow()
        if role in PROPOSING:
            self.deadlines.start(now_ns(), self.machine.timed)  # R15: anew, in full
            self.window.begin(now_ns(), self.replica.log.last_index)
        else:
            self.deadlines.stop()
            self.window.end()
            if self.watches.count:
                self.watches.end_all(self.not_leader(), also_any=False)
            self.answer_proposed()
            self.unpark(now_ns())
            if self.pending:
                self.propose_pending(now_ns())
        if not self.is_changing_hands():
            self.answer_waiting()

    def answer_proposed(self) -> None:
        """What was proposed here is not this replica's to commit any more."""
        error = OutcomeUnknown(
            f"partition {self.p}: leadership was lost before the write was committed", partition=self.p
        )
        self.waiters.end(error)

    def retire(self) -> None:
        """The partition leaves this node, whatever its role here: everybody who waits is sent elsewhere, and nothing is
        proposed any more."""
        moved = self.node.unknown_partition(self.p)
        self.machine.abandon()
        self.deadlines.stop()
        self.window.end()
        self.answer_waiting(moved)
        self.answer_proposed()
        self.watches.end_all(moved)
        while self.parked:
            _, (connection, _, op, _, _) = self.parked[0]
            self.unpark_first()
            connection.answer(error_result(op[ID_AT], moved))
        for connection, _, op, _, _ in self.pending:
            connection.answer(error_result(op[ID_AT], moved))
        self.node.admission.waiting -= self.pending_bytes
        self.pending, self.expired, self.pending_bytes = [], [], 0

    async def digest(self) -> dict[str, Any] | None:
        """A checksum over every record and what dedupe remembers, as of one applied index; None
        when the state moved on meanwhile. Gives way to others between slices."""
        if self.replica.damaged:
            raise self.damage()
        applied, start, records = self.applied, b"", 0
        total = xxhash.xxh3_128()
        while True:
            try:
                rows = self.node.store.scan(self.p, start, b"\xff" * 9, DIGEST_SLICE, MAX_LIST_BYTES)
            except CorruptState as e:
                raise self.is_rotten(e) from None
            if not rows:
                break
            for lkey, record in rows:
                total.update(len(lkey).to_bytes(4, "big") + lkey + record)
            records += len(rows)
            start = rows[-1][0] + b"\0"
            await asyncio.sleep(0)
            if self.applied != applied:
                return None
        for key in self.machine.aux_keys():
            total.update(key + (self.machine.aux(key) or b""))
        version = self.machine.last_version
        return {"applied": applied, "version": version, "records": records, "digest": total.hexdigest()}

    def restart_ttls(self, now: int) -> None:
        """All TTLs anew, in full (R15)."""
        self.deadlines.start(now, self.machine.timed)

    def sweep(self, now: int) -> None:
        """Let records expire; keep watches informed; answer those whose entry no quorum is there to commit."""
        if self.deadlines.running and self.deadlines:
            room = MAX_EXPIRED_AT_ONCE - len(self.expired)
            may = self.role == ACTIVE and not self.replica.short_of_room(FULL)
            over = self.deadlines.due(now, room) if room > 0 and may else []
            if over:
                if not self.pending and not self.expired:
                    self.node.writing.append(self)
                self.expired += over
                self.node.schedule_turn()
        self.machine.horizon = self.window.horizon(now, self.replica.log.last_index)
        self.watches.sweep(now)
        if self.waiting and now >= self.waiting[0][0]:
            self.answer_waiting(self.not_leader(), now)
        if now - self._rated[1] > RATE_NS:
            self.rate = (self.operations - self._rated[0]) * 1e9 / (now - self._rated[1])
            self._rated = self.operations, now
        if now > self.pending_until:
            self.drop_late(now)
        if self.waiters and (missing := self.missing(now)):
            error = OutcomeUnknown(
                f"partition {self.p}: proposed, and no quorum has acknowledged it: "
                f"{', '.join(missing)} do not answer",
                partition=self.p,
                missing=missing,
            )
            self.waiters.end(error)
        elif now > self.waiters.until:
            text = f"partition {self.p}: proposed, and no quorum had acknowledged it when its time was up"
            self.waiters.end_late(now, OutcomeUnknown(text, partition=self.p))
