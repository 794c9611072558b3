"""Watches of one partition: every committed change, in order, once (design.md: watch).

A watch stands at a position of the log. While it keeps up it is *live* and gets what each
applied entry changed; one whose connection is congested, or that begins in the past, is fed
from the log until it is live. So a slow watcher costs no memory: it is behind, and when the
log no longer holds its position it is told so. All runs in the loop's thread.

A version is a position in the changes of every point of the watch's range. Once part of that range is
another partition's (R18), the two count each for itself, so nothing is ever told with a version beyond
the entry that parted them: there the watch ends, and goes on as two.
"""

from __future__ import annotations

from typing import Any

import msgpack

from metastore.clock import now_ns
from metastore.core.entry import entry_payload
from metastore.core.replica import ACTIVE
from metastore.core.rows import Applied, base_version, changes_of
from metastore.errors import (
    Compacted,
    InvalidRequest,
    MetastoreError,
    Overloaded,
    RottenEntry,
    Unavailable,
)
from metastore.history import ResumePoint, first_version, history_changed, resume_after
from metastore.operations import DELETE, EXPIRE, PUT
from metastore.partition.log import PartitionLog
from metastore.partition.policies import Policies
from metastore.partition.ports import WatchSink
from metastore.partition.refusals import Refusals
from metastore.partition.state import PROPOSING, PartitionState
from metastore.wire import frames
from metastore.wire.client_messages import WATCH_ANY, WATCH_KEYS

SLICE_BYTES = 256 << 10
CONGESTED_BYTES = 1 << 20
MAX_FRAME_EVENTS = 4096
MAX_FRAME_EVENT_BYTES = 2 << 20
PROGRESS_NS = 2_000_000_000
#: of one turn of the loop, for watches that are behind
MAX_PUMP_NS = 10_000_000
#: likewise for finding where watches from the past begin; what comes beyond it is refused
MAX_SEEKING_NS = 20_000_000
_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack

Group = tuple[bytes, bytes, int, bytes]
"""``(start, end, flags, wanted)``: watches that get the same events, packed once."""


class Watch:
    """One watch of one connection. ``index``: the last entry it has been told of."""

    __slots__ = (
        "connection",
        "end",
        "flags",
        "group",
        "head",
        "id",
        "index",
        "live",
        "start",
        "told",
        "version",
    )

    def __init__(self, connection: WatchSink, body: list[Any]) -> None:
        self.connection = connection
        self.id, _, self.start, self.end, _, self.flags, wanted = body
        self.group: Group = (self.start, self.end, self.flags, wanted)
        self.head: bytes = b"\x93" + _pack(self.id)
        self.index = 0
        self.version = resume_after(first_version(0))
        self.told = self.version
        self.live = False


Groups = dict[Group, dict[Watch, None]]


class PartitionWatches:
    """See the module."""

    def __init__(
        self, state: PartitionState, refusals: Refusals, log: PartitionLog, policies: Policies
    ) -> None:
        self.state, self.refusals, self.log, self.policies = state, refusals, log, policies
        self.count = 0
        self._all: dict[tuple[int, int], Watch] = {}
        #: live watches; those of one routing key by its point
        self._wide: Groups = {}
        self._narrow: dict[bytes, Groups] = {}
        self._behind: dict[Watch, None] = {}
        self._progress_ns = 0

    # --- beginning and ending ---------------------------------------------------------------

    def add(self, connection: WatchSink, body: list[Any]) -> None:
        """A checked WATCH frame."""
        state = self.state
        watch = Watch(connection, body)
        error = self._refuse(watch, body[4])
        if error is not None:
            connection.watch_ended(watch.id, error)
            return
        self._all[id(connection), watch.id] = watch
        self.count += 1
        if body[4] is None:
            watch.index, watch.version = state.store.applied, resume_after(state.machine.last_version)
        self._send(watch, watch.version, b"\x90")
        if body[4] is None:
            self._go_live(watch)
        else:
            self._behind[watch] = None
            state.agenda.feed(state.p)

    def _refuse(self, watch: Watch, after: ResumePoint | None) -> MetastoreError | None:
        state = self.state
        if not watch.flags & WATCH_ANY and state.replica.role not in PROPOSING:
            return self.refusals.not_leader()
        if not state.has_state():
            text = f"partition {state.p} has no state on this replica yet"
            return Unavailable(text, retry_after_s=0.1, partition=state.p)
        lo, hi = state.lo, state.hi
        if watch.start < lo or watch.end > hi or watch.start >= watch.end:
            return self.refusals.elsewhere()
        error = self.policies.refuse_range(watch.start, watch.end)
        if error is not None or after is None:
            return error
        if state.agenda.listing_ns > MAX_SEEKING_NS:
            return Overloaded("too many watches from the past at once", retry_after_s=0.1)
        began = now_ns()
        try:
            error = self._seek(watch, after)
        except RottenEntry as e:
            error = self._rotten(e, after)
        state.agenda.listing_ns += now_ns() - began
        return error

    def _rotten(self, error: RottenEntry, after: ResumePoint) -> MetastoreError:
        """R14: the log here cannot tell what followed ``after``."""
        self.state.around.lost(error)
        return self._not_kept(after, self.state.machine.last_version)

    def _seek(self, watch: Watch, after: ResumePoint) -> MetastoreError | None:
        """Stand before the first entry that may have a change above version ``after``."""
        state = self.state
        last = state.machine.last_version
        if state.machine.is_left_behind(after, state.replica.can_read(now_ns())):
            return history_changed(after, last)
        watch.version = after
        if after >= last:
            watch.index = state.store.applied
            if watch.version == resume_after(last):
                return None
            text = f"partition {state.p} is at version {last} here, so nothing can be resumed after {after}"
            if state.replica.can_read(now_ns()):
                return InvalidRequest(text)
            return Unavailable(text, retry_after_s=0.1, partition=state.p)  # another replica knows more
        first = self.log.base + 1
        oldest = self._base_at_or_after(first)
        if oldest is None or oldest > after:
            return self._too_old(after)
        low, high = (
            first,
            state.store.applied,
        )  # the first entry in [low, high] whose base is <= after, from the right
        while low < high:
            middle = (low + high + 1) // 2
            base = self._base_at_or_after(middle)
            if base is not None and base <= after:
                low = middle
            else:
                high = middle - 1
        watch.index = low - 1
        return None

    def _too_old(self, after: ResumePoint) -> MetastoreError:
        """What follows ``after`` is not kept here. Of another replica the leader may still have it."""
        oldest = self._base_at_or_after(self.log.base + 1)
        return self._not_kept(after, self.state.machine.last_version if oldest is None else oldest)

    def _not_kept(self, after: ResumePoint, oldest: int) -> MetastoreError:
        state = self.state
        text = (
            f"partition {state.p}: changes after version {after} are no longer kept, those after {oldest} are"
        )
        if state.replica.role not in PROPOSING:
            return Unavailable(f"{text}, on this replica", retry_after_s=0.1, partition=state.p)
        return Compacted(f"{text}; list again and watch from there", oldest=oldest)

    def _base_at_or_after(self, index: int) -> int | None:
        """The base version of entry ``index``, or of the next that is not a no-op."""
        state = self.state
        while index <= state.store.applied:
            base = base_version(entry_payload(self.log.read(index, 1)[0]))
            if base is not None:
                return base
            index += 1
        return None

    def remove(self, connection: WatchSink, watch_id: int) -> None:
        """The client ended it, or is gone."""
        watch = self._all.pop((id(connection), watch_id), None)
        if watch is not None:
            self.count -= 1
            self._not_live(watch)
            self._behind.pop(watch, None)

    def end_all(self, error: MetastoreError, *, also_any: bool = True) -> None:
        """Every watch ends, or (leadership is lost here) those that want the leader."""
        for watch in list(self._all.values()):
            if also_any or not watch.flags & WATCH_ANY:
                self.remove(watch.connection, watch.id)
                watch.connection.watch_ended(watch.id, error)

    # --- live ---------------------------------------------------------------------------------

    def _groups(self, watch: Watch) -> Groups:
        if watch.start[:8] != watch.end[:8]:
            return self._wide
        return self._narrow.setdefault(watch.start[:8], {})

    def _go_live(self, watch: Watch) -> None:
        watch.live = True
        self._groups(watch).setdefault(watch.group, {})[watch] = None

    def _not_live(self, watch: Watch) -> None:
        if not watch.live:
            return
        watch.live = False
        groups = self._groups(watch)
        del groups[watch.group][watch]
        if not groups[watch.group]:
            del groups[watch.group]
        if not groups and groups is not self._wide:
            del self._narrow[watch.start[:8]]

    def applied(self, index: int, applied: Applied) -> None:
        """Tell the live ones what entry ``index`` changed."""
        if not applied.changes:
            return
        if self._wide:
            for group, watches in list(self._wide.items()):
                self._tell(index, applied, group, list(watches))
        if self._narrow:
            for point in {storage_key[:8] for storage_key, _ in applied.changes}:
                for group, watches in list(self._narrow.get(point, {}).items()):
                    self._tell(index, applied, group, list(watches))

    def _tell(self, index: int, applied: Applied, group: Group, watches: list[Watch]) -> None:
        told = event_frames(applied, group)
        if not told:
            return
        for watch in watches:
            if watch.connection.congested(CONGESTED_BYTES):
                # not told: a connection may have thousands of watches, and each event is large
                watch.index, watch.version = index - 1, ResumePoint(applied.base)
                self._not_live(watch)
                self._behind[watch] = None
                continue
            watch.index, watch.version = index, told[-1][0]
            for version, body in told:
                self._send(watch, version, body)

    @staticmethod
    def _send(watch: Watch, version: ResumePoint, events: bytes) -> None:
        watch.told = version
        body = watch.head + _pack(version) + events
        watch.connection.write(frames.HEADER.pack(len(body) + 2, frames.WIRE_VERSION, frames.EVENTS) + body)

    # --- behind ---------------------------------------------------------------------------------

    def pump(self) -> bool:
        """Feed those that are behind one slice each from the log, for a while; whether some could go
        on at once."""
        more, until = False, now_ns() + MAX_PUMP_NS
        for watch in list(self._behind):
            if watch.connection.congested(CONGESTED_BYTES // 2):
                continue
            if now_ns() > until:
                return True
            self._behind[watch] = self._behind.pop(watch)  # the others have their turn before it
            try:
                more |= self._feed(watch)
            except RottenEntry as e:
                self.remove(watch.connection, watch.id)
                watch.connection.watch_ended(watch.id, self._rotten(e, watch.version))
        return more

    def _feed(self, watch: Watch) -> bool:
        state = self.state
        if watch.index < self.log.base:
            self.remove(watch.connection, watch.id)
            watch.connection.watch_ended(watch.id, self._too_old(watch.version))
            return False
        parted = self._parted(watch)
        last = state.store.applied if parted is None else parted
        if watch.index < last:
            after = watch.version
            for number, blob in enumerate(self.log.read(watch.index + 1, SLICE_BYTES), watch.index + 1):
                if number > last:
                    break
                entry = changes_of(entry_payload(blob))
                watch.index = number
                if not entry.changes:
                    continue
                watch.version = max(watch.version, ResumePoint(entry.base + len(entry.changes)))
                for version, body in event_frames(entry, watch.group, after):
                    self._send(watch, version, body)
        if watch.index < last:
            return not watch.connection.congested(CONGESTED_BYTES // 2)
        if parted is not None:
            self._send_on(watch)
            return False
        del self._behind[watch]
        self._go_live(watch)
        return False

    # --- R18 ------------------------------------------------------------------------------------

    def _parted(self, watch: Watch) -> int | None:
        """The first entry that gave part of the watch's range away: the last that it is told of here."""
        for split in self.state.machine.splits:
            if split.at < watch.end:
                return split.entry
        return None

    def split(self) -> None:
        """An entry that splits the partition was just applied. Who is live has been told everything up to it;
        who is behind comes to it later (``_feed``)."""
        for watch in list(self._all.values()):
            if watch.live and self._parted(watch) is not None:
                watch.version = resume_after(
                    self.state.machine.last_version
                )  # the entry itself changes no record
                self._send_on(watch)

    def _send_on(self, watch: Watch) -> None:
        """It has been told everything up to the entry that gave part of its range away."""
        self._send(watch, watch.version, b"\x90")
        self._part(watch)

    def _part(self, watch: Watch) -> None:
        """What follows the version that it was told last is for others to tell, who are named."""
        self.remove(watch.connection, watch.id)
        watch.connection.watch_ended(watch.id, self.refusals.elsewhere())

    # --- time -----------------------------------------------------------------------------------

    def sweep(self, now: int) -> None:
        """Feed on those that were behind a full connection; tell idle ones how far they are; end those of
        a leader that hears no quorum, and those whose namespace turned out to have another rule."""
        state = self.state
        if self._behind:  # a connection says that it is read again only if it was very full before
            state.agenda.feed(state.p)
        if not self.count or now - self._progress_ns < PROGRESS_NS:
            return
        self._progress_ns = now
        self._end_misplaced()
        if state.replica.role == ACTIVE and not state.replica.has_quorum(now):
            text = f"partition {state.p}: its leader hears no quorum of replicas"
            self.end_all(Unavailable(text, retry_after_s=1, partition=state.p), also_any=False)
        version = resume_after(state.machine.last_version)
        for watch in self._all.values():
            if watch.live and watch.told < version and not watch.connection.congested(CONGESTED_BYTES):
                watch.index, watch.version = state.store.applied, version
                self._send(watch, version, b"\x90")

    def _end_misplaced(self) -> None:
        """A namespace was created, with a routing rule of its own, after a watch of one routing key by the
        default rule began: what is written from now on lies elsewhere."""
        for watch in list(self._all.values()):
            error = self.policies.refuse_range(watch.start, watch.end)
            if error is not None:
                self.remove(watch.connection, watch.id)
                watch.connection.watch_ended(watch.id, error)

    def snapshot_installed(self) -> None:
        """The log begins anew (R17): who stood before it is behind, and will be told."""
        state = self.state
        for watch in list(self._all.values()):
            if self._parted(watch) is not None:
                self._part(watch)
            elif watch.version >= state.machine.last_version:
                watch.index = state.store.applied
            elif watch.live:
                self._not_live(watch)
                self._behind[watch] = None
        if self._behind:
            state.agenda.feed(state.p)


def event_frames(applied: Applied, group: Group, after: int = 0) -> list[tuple[ResumePoint, bytes]]:
    """``(version, msgpack of events)`` of what lies in a group's range above version ``after``, in
    pieces that fit a frame: with each the watch has all up to its version."""
    start, end, flags, wanted = group
    frames_: list[tuple[ResumePoint, bytes]] = []
    events: list[bytes] = []
    size = version = 0
    for version, (storage_key, record) in enumerate(applied.changes, applied.base + 1):
        if not (start <= storage_key < end and version > after and storage_key.startswith(wanted, 8)):
            continue
        if record is not None:
            event = _pack((PUT, storage_key, version, None if flags & WATCH_KEYS else record))
        else:
            event = _pack((EXPIRE if version in applied.expired else DELETE, storage_key, version, None))
        events.append(event)
        size += len(event)
        if len(events) >= MAX_FRAME_EVENTS or size >= MAX_FRAME_EVENT_BYTES:
            frames_.append((ResumePoint(version), _array(len(events)) + b"".join(events)))
            events, size = [], 0
    if events:
        frames_.append((ResumePoint(version), _array(len(events)) + b"".join(events)))
    elif frames_:
        frames_[-1] = ResumePoint(version), frames_[-1][1]
    return frames_


def _array(count: int) -> bytes:
    """The msgpack header of an array."""
    if count < 16:
        return bytes((0x90 | count,))
    return b"\xdc" + count.to_bytes(2, "big") if count < 65536 else b"\xdd" + count.to_bytes(4, "big")
