"""Snapshots of a partition between nodes, streamed in chunks while writes go on (R17).

The sender reads one consistent view of the applied state; the receiver stages the rows apart
and the store switches them in by one transaction, once the core has agreed.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

from metastore.clock import now_ns
from metastore.core.events import (
    SnapshotInstalled,
    SnapshotProgress,
    SnapshotRefused,
    SnapshotStaged,
    StateRebuilt,
)
from metastore.core.messages import Process, SnapshotAck, SnapshotBegin, SnapshotChunk
from metastore.core.payloads import check_metadata
from metastore.core.rows import SPLITS_KEY, unpack_splits
from metastore.errors import CorruptState, MetastoreError, NoRoom, ProtocolError, StorageError, Unavailable
from metastore.keys import END_OF_RING, end_point, is_storage_key
from metastore.logs import log_event
from metastore.node.pins import Pin
from metastore.node.ports import (
    HasConfig,
    HasCore,
    HasHalt,
    HasLinks,
    HasPartitions,
    HasPins,
    HasStore,
    HasTicks,
    HasTopology,
)
from metastore.node.rebuild import Rebuild
from metastore.partition.partition import Partition
from metastore.records import unpack_record
from metastore.storage.snapshot import DATA, METADATA, SnapshotInstaller

log = logging.getLogger("metastore.snapshots")

CHUNK_BYTES = 512 << 10
WINDOW = 4
ACK_TIMEOUT_S = 10.0
MAX_CONCURRENT_SENDS = 2
MAX_CONCURRENT_RECEIVES = 4
#: a chunk ends with the row that fills it: a record, or what dedupe remembers of one client
MAX_CHUNK_BYTES = CHUNK_BYTES + (6 << 20)
MAX_METADATA_KEY_BYTES = 64
#: applied again without giving way to others
REBUILD_ENTRIES = 200


class _Outgoing:
    def __init__(self, number: int, epoch: int) -> None:
        self.number = number
        self.epoch = epoch
        self.acked = -1
        self.sent_bytes = 0
        self.total_bytes = 0
        self.began_ns = now_ns()
        self.refused = False
        self.changed = asyncio.Event()


class _Incoming:
    def __init__(self, src: Process, begin: SnapshotBegin, installer: SnapshotInstaller) -> None:
        self.src = src
        self.begin = begin
        self.installer = installer
        self.next = 0
        self.queue: asyncio.Queue[SnapshotChunk] = asyncio.Queue(maxsize=2 * WINDOW)
        self.task: asyncio.Task[None] | None = None


class Children(Protocol):
    """What this needs of the control plane (R18)."""

    def misses(self, p: int, /) -> bool:
        """Whether this store may be a member of ``p`` and has no durable copy of it."""

    def open_now(self, child: int, /) -> None:
        """The entry that split it off will not come here any more."""


class Here(
    HasConfig, HasCore, HasHalt, HasPartitions, HasLinks, HasPins, HasStore, HasTicks, HasTopology, Protocol
):
    """What this needs of the node."""

    @property
    def control(self) -> Children: ...
    @property
    def rebuild(self) -> Rebuild: ...


class Snapshots:
    """All snapshots that this node sends and receives."""

    def __init__(self, node: Here) -> None:
        self.node = node
        self._out: dict[tuple[int, str], _Outgoing] = {}
        self._in: dict[int, _Incoming] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_SENDS)
        self._count = 0
        self._free_at_ns = 0
        self.sent = 0
        self.installed = 0

    # --- sending --------------------------------------------------------------------------

    def start(self, p: int, to: str, epoch: int) -> None:
        """Begin to stream partition ``p`` to ``to``, unless that is under way. One of another epoch, which ``to`` would
        not take any more (R1), ends."""
        under_way = self._out.get((p, to))
        if to not in self.node.links.connected():
            return
        if under_way is not None:
            if under_way.epoch == epoch and not under_way.refused:
                return
            under_way.changed.set()
        self._count += 1
        out = self._out[p, to] = _Outgoing(self._count, epoch)
        task = asyncio.get_running_loop().create_task(self._send(p, to, epoch, out))
        self._watched(task)

    def _watched(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self.node.halt.ended)

    async def _send(self, p: int, to: str, epoch: int, out: _Outgoing) -> None:
        node = self.node
        try:
            async with self._slots:
                if to not in node.links.connected():
                    raise Unavailable(f"{to} is no longer connected")
                self._refuse_damaged(p)
                with node.pins.pin(p, to) as pin:
                    await self._stream(p, to, epoch, out, pin)
        except CorruptState as e:
            node.rebuild.found(p, e)
        except StorageError:
            raise  # what is on this disk cannot be read: R14
        except (TimeoutError, MetastoreError) as e:
            log.info("snapshot of partition %d to %s given up: %s", p, to, e or "no acknowledgement")
        finally:
            if self._out.get((p, to)) is out:
                del self._out[p, to]

    async def _stream(self, p: int, to: str, epoch: int, out: _Outgoing, pin: Pin) -> None:
        node = self.node
        reader = node.store.open_snapshot(p)
        try:
            fields = {"node": node.config.node, "partition": p, "epoch": epoch}
            log_event(log, f"sends a snapshot at {reader.index} to {to}", **fields)
            node.store.hold_log(p, reader.index)
            out.began_ns = now_ns()
            splits = [(split.child, split.entry) for split in unpack_splits(reader.metadata(SPLITS_KEY))]
            self._queue(to, SnapshotBegin(p, epoch, out.number, reader.index, reader.epoch, splits))
            number = 0
            partition = node.partitions.get(p)
            if partition is not None:
                out.total_bytes = sum(held[1] for held in partition.machine.usage.values())
            while True:
                self._refuse_damaged(p)
                rows = reader.chunk(CHUNK_BYTES)
                size = sum(len(row[1]) + len(row[2]) for row in rows)
                await self._pace(size)
                out.sent_bytes += size
                await self._window(p, to, out, number - WINDOW, pin)
                self._queue(to, SnapshotChunk(p, epoch, out.number, number, rows))
                if not rows:
                    break
                number += 1
            await self._window(p, to, out, number, pin)
            self.sent += 1
        finally:
            reader.close()
            node.store.release_log(p)

    def _happens(self, event: SnapshotProgress | SnapshotRefused | SnapshotStaged) -> bool:
        """Tell the replica, if it is still here; whether it is."""
        is_here = event.p in self.node.partitions
        if is_here:
            self.node.core.handle(now_ns(), event)
        return is_here

    def _refuse_damaged(self, p: int) -> None:
        partition = self.node.partitions.get(p)
        if partition is not None and partition.replica.damaged:
            raise Unavailable(f"the state of partition {p} is damaged here (R14)")

    async def _pace(self, size: int) -> None:
        """Within the node's rate (snapshot_mib_s), all transfers together."""
        now = now_ns()
        begin = max(now, self._free_at_ns)
        self._free_at_ns = begin + size * 1_000_000_000 // (self.node.config.snapshot_mib_s << 20)
        if begin > now:
            await asyncio.sleep((begin - now) / 1e9)

    def progress(self, p: int, to: str) -> dict[str, int]:
        """Of a snapshot on its way (``ms``: since it began); nothing when there is none."""
        out = self._out.get((p, to))
        if out is None:
            return {}
        ms = (now_ns() - out.began_ns) // 1_000_000
        return {"sent_bytes": out.sent_bytes, "total_bytes": out.total_bytes, "ms": ms}

    async def _window(self, p: int, to: str, out: _Outgoing, until: int, pin: Pin) -> None:
        """Wait until chunk ``until`` is acknowledged. Raises Unavailable, TimeoutError."""
        pin.sent_bytes = out.sent_bytes
        while True:
            if self._out.get((p, to)) is not out:
                raise Unavailable("a later snapshot replaced it")
            if out.acked >= until:
                return
            if out.refused:
                self._happens(SnapshotRefused(p, to))
                raise Unavailable(f"{to} refused it")
            out.changed.clear()
            await pin.wait(out.changed.wait(), ACK_TIMEOUT_S)
            self._happens(SnapshotProgress(p, to))

    def _queue(self, to: str, message: SnapshotBegin | SnapshotChunk | SnapshotAck) -> None:
        self.node.links.queue(to, message)
        self.node.ticks.wake()

    # --- receiving ------------------------------------------------------------------------

    def receive(self, src: Process, message: SnapshotBegin | SnapshotChunk | SnapshotAck) -> None:
        if isinstance(message, SnapshotAck):
            out = self._out.get((message.p, src.node))
            if out is not None and out.number == message.snapshot:
                out.acked = max(out.acked, message.number) if message.ok else out.acked
                out.refused |= not message.ok
                out.changed.set()
        elif isinstance(message, SnapshotBegin):
            self._begin(src, message)
        else:
            self._check_rows(src, message)
            incoming = self._in.get(message.p)
            if (
                incoming is None
                or incoming.src != src
                or incoming.begin.snapshot != message.snapshot
                or incoming.next != message.number
                or incoming.queue.full()
            ):
                self._queue(
                    src.node, SnapshotAck(message.p, message.epoch, message.snapshot, message.number, False)
                )
                return
            incoming.next += 1
            incoming.queue.put_nowait(message)

    def _check_rows(self, src: Process, chunk: SnapshotChunk) -> None:
        """Rows that cannot be of that partition, or cannot be read back. Raises ProtocolError."""
        partition = self.node.partitions.get(chunk.p)
        # it may be of before a split, and reach as far as all that was split off since
        top = max([end_point(q.hi) for q in self.node.topology.family(chunk.p)], default=END_OF_RING)
        size = 0
        for kind, key, value in chunk.rows:
            size += len(key) + len(value)
            try:
                if kind == DATA:
                    unpack_record(value)
                    good = is_storage_key(key) and (partition is None or partition.state.lo <= key < top)
                else:
                    good = (
                        kind == METADATA and len(key) <= MAX_METADATA_KEY_BYTES and check_metadata(key, value)
                    )
            except (CorruptState, ValueError):
                good = False
            if not good or size > MAX_CHUNK_BYTES:
                raise ProtocolError(
                    f"partition {chunk.p}: a snapshot from {src.node} holds rows that are not valid"
                )

    def _begin(self, src: Process, begin: SnapshotBegin) -> None:
        partition = self.node.partitions.get(begin.p)
        if begin.at_epoch > begin.epoch:
            raise ProtocolError(
                f"partition {begin.p}: a snapshot of epoch {begin.at_epoch} was sent in the earlier epoch {begin.epoch}"
            )
        others = sum(1 for p, i in self._in.items() if i.src.node == src.node and p != begin.p)
        # what is staged comes on top of what is there: with little room the replica stays behind
        full = others >= MAX_CONCURRENT_RECEIVES or self.node.store.space.low
        takes = partition is not None and not full and partition.replica.takes_snapshot(src, begin.epoch)
        if partition is None or not takes or not self._keeps_children(partition, begin):
            self._queue(src.node, SnapshotAck(begin.p, begin.epoch, begin.snapshot, 0, False))
            return
        self.discard(begin.p)
        incoming = _Incoming(src, begin, self.node.store.begin_install(begin.p))
        self._in[begin.p] = incoming
        incoming.task = asyncio.get_running_loop().create_task(self._stage(incoming))
        self._watched(incoming.task)

    def _keeps_children(self, partition: Partition, begin: SnapshotBegin) -> bool:
        """R18: whether the snapshot takes away nothing that is needed here. What was split off at an entry that was not
        applied here has its rows, durable, in those that the snapshot would replace."""
        known = {split.child for split in partition.machine.splits}
        control = self.node.control
        missing = [child for child, _ in begin.splits if child not in known and control.misses(child)]
        for child in missing:
            control.open_now(child)
        return not missing

    async def _stage(self, incoming: _Incoming) -> None:
        begin, node = incoming.begin, self.node
        try:
            while True:
                async with asyncio.timeout(3 * ACK_TIMEOUT_S):
                    chunk = await incoming.queue.get()
                if chunk.rows:
                    await incoming.installer.add([(r[0], r[1], r[2]) for r in chunk.rows])
                ack = SnapshotAck(begin.p, begin.epoch, begin.snapshot, chunk.number, True)
                self._queue(incoming.src.node, ack)
                if not chunk.rows:
                    break
            at = begin.at_index, begin.at_epoch
            if not self._happens(SnapshotStaged(begin.p, incoming.src, begin.epoch, *at)):
                return
            node.ticks.run_effects()
        except TimeoutError:
            self.discard(begin.p)
        except NoRoom as e:
            log.warning("snapshot of partition %d from %s given up: %s", begin.p, incoming.src.node, e)
            ack = SnapshotAck(begin.p, begin.epoch, begin.snapshot, incoming.next, False)
            self._queue(incoming.src.node, ack)
            self.discard(begin.p)

    def install(self, p: int, at_index: int, at_epoch: int, keep_log: bool) -> None:
        """The core agreed: switch the staged state in; ``keep_log``: for one that is damaged (R14)."""
        incoming = self._in.pop(p)
        work = self._rebuild if keep_log else self._install
        task = asyncio.get_running_loop().create_task(work(p, incoming, at_index, at_epoch))
        self._watched(task)

    async def _install(self, p: int, incoming: _Incoming, at_index: int, at_epoch: int) -> None:
        node = self.node
        await incoming.installer.finish(at_index, at_epoch)
        partition = node.partitions[p]
        node.core.handle(now_ns(), SnapshotInstalled(p, at_index, at_epoch))
        partition.load()
        self.installed += 1
        fields = {"node": node.config.node, "partition": p, "epoch": partition.replica.sealed_epoch}
        log_event(log, f"installed a snapshot at {at_index}", **fields)
        node.ticks.run_effects()

    async def _rebuild(self, p: int, incoming: _Incoming, at_index: int, at_epoch: int) -> None:
        """The staged state takes the damaged one's place, and is brought to where that was before anybody sees it."""
        node, partition = self.node, self.node.partitions[p]
        done = await incoming.installer.rebuild(at_index, at_epoch)
        if not done:
            await incoming.installer.abort()
        if node.partitions.get(p) is not partition:
            return  # no member any more
        upto = partition.replica.commit_index
        if done and (done := partition.load_state()):
            while done and partition.applied < upto:
                before = partition.applied
                partition.apply_to(min(upto, before + REBUILD_ENTRIES))
                done = partition.applied > before  # else the log has rotted meanwhile
                await asyncio.sleep(0)
                if node.partitions.get(p) is not partition:
                    return
        node.core.handle(now_ns(), StateRebuilt(p, done))
        node.ticks.run_effects()

    def discard(self, p: int) -> None:
        """Drop what is staged for ``p``, if anything."""
        incoming = self._in.pop(p, None)
        if incoming is not None:
            if incoming.task is not None and incoming.task is not asyncio.current_task():
                incoming.task.cancel()
            task = asyncio.get_running_loop().create_task(incoming.installer.abort())
            self._watched(task)

    def dropped(self, node: str, messages: list[Any]) -> None:
        """Messages to ``node`` were not sent. Those of the core are sent again by itself; a stream with a gap is
        worth nothing, and starts anew when the core asks again."""
        if any(isinstance(message, SnapshotBegin | SnapshotChunk) for message in messages):
            self._lost_sending(node)

    def _lost_sending(self, node: str) -> None:
        for (_, to), out in self._out.items():
            if to == node:
                out.refused = True
                out.changed.set()

    def connection_changed(self, node: str) -> None:
        """A connection to ``node`` began or ended: what was on its way is lost, and starts anew when
        the core asks again."""
        self._lost_sending(node)
        for p in [p for p, i in self._in.items() if i.src.node == node]:
            self.discard(p)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
