"""The rpc port: client connections, and the first frame that tells a client from a peer.

No task, future or message object per operation: a read buffer is parsed whole, each operation
goes straight to its partition, and the answers of a loop turn leave in one write.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, cast

import msgpack

from metastore.clock import now_ns
from metastore.elements import shown
from metastore.errors import InvalidRequest, MetastoreError, Overloaded, ProtocolError, StorageError
from metastore.node.peers import PING_FRAME, PeerConnection
from metastore.operations import ID_AT, PARTITION_AT
from metastore.partition.waiters import error_result
from metastore.partition.watches import PartitionWatches
from metastore.wire import frames
from metastore.wire.client_messages import MAX_WATCHES_PER_CONNECTION
from metastore.wire.op_checks import check_op, check_request, check_watch, is_simple, op_shape
from metastore.wire.versions import OPTIONAL, Spoken, agree, client_versions, spoken_at

if TYPE_CHECKING:
    from metastore.node.node import Node

log = logging.getLogger("metastore.clients")

#: answers that a client has not taken: beyond the first its reads are refused, beyond the second it goes
MAX_UNREAD_BYTES = 8 << 20
MAX_UNSENT_BYTES = 32 << 20
MAX_RESPONSE_ROWS = 8192
#: what all clients together have of one turn of the loop, but for the frame that is begun
MAX_CLIENT_NS = 30_000_000
_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


class ClientConnection(asyncio.Protocol):
    """One accepted connection; hands itself to a PeerConnection if the caller is a node. ``version``: of the protocol,
    as both speak it, 0 = not agreed on yet."""

    spoken: Spoken = client_versions()

    def __init__(self, node: Node) -> None:
        self.node = node
        self.admission = node.admission
        self.transport: asyncio.Transport | None = None
        self.decoder = frames.FrameDecoder(frames.MAX_HELLO_BYTES, frames.MAX_ITEMS)
        self.version = 0
        self.peer: PeerConnection | None = None
        self.greeted = False
        self.since_ns = now_ns()
        self.results: list[Any] = []
        self.result_bytes = 0
        self.reading = True
        self.congested_writing = False
        self.deferred = False
        self.watches: dict[int, PartitionWatches] = {}
        #: closed, or about to be
        self.gone = False
        self.refused = False
        #: as the admission has them in its sums
        self.unfinished = 0
        self.unread = 0
        self._frame_since_ns = 0
        self._unread_since_ns = 0
        self._written = 0
        #: once so much of what was written is taken, what was unread then is read
        self._mark = 0

    # --- asyncio.Protocol -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # not isinstance: uvloop's transports are no subclasses of asyncio's
        self.transport = transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(high=4 << 20)
        self.admission.arrived(self)

    def data_received(self, data: bytes) -> None:
        if self.peer is not None:
            self.peer.data_received(data)
            return
        self.decoder.push(data)
        if not (self.deferred or self.congested_writing):
            self.work()

    def work(self) -> None:
        """Take what has come, as far as its answers are read and the time for clients in this turn goes."""
        node, decoder, complete = self.node, self.decoder, False
        began = now_ns()
        try:
            while not (self.gone or self.refused or self.congested_writing):
                if node.ticks.client_ns > MAX_CLIENT_NS:
                    self.defer()
                    break
                frame = decoder.pull()
                if frame is None:
                    break
                complete = True
                kind, body = frame
                if kind == frames.REQUEST and self.greeted:
                    self.request(body, began)
                elif self.greeted:
                    self.other(kind, body)
                else:
                    self.greet(kind, body)
                    if self.peer is not None:
                        self.peer.work()
                        break
                now = now_ns()
                node.ticks.client_ns += now - began
                began = now
                if not decoder.buffer:  # as after nearly every frame
                    break
        except ProtocolError as e:
            self.admission.ration.line(logging.INFO, "client disconnected: %s", e)
            self.refuse(e)
        except StorageError as e:
            node.halt.fail_stop(e)  # R14: also when it is a read that finds the damage
        except Exception:  # a mistake of ours: it shall not be the others' affair
            log.exception("a client's frame could not be handled; the client is disconnected")
            self.close()
        if (decoder.buffer or self.unfinished) and self.peer is None:
            self.note_unfinished(complete)
        node.ticks.wake()

    def defer(self) -> None:
        """What has come is for a later turn: others have their share of this one."""
        self.deferred = True
        self.node.ticks.deferred.append(self)
        self.read_or_not()

    def resume(self) -> None:
        """A later turn."""
        self.deferred = False
        self.read_or_not()
        self.work()

    def read_or_not(self) -> None:
        """Nothing more is taken in while answers pile up, or what came waits to be looked at."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        reading = not self.deferred and not self.congested_writing
        if reading != self.reading:
            self.reading = reading
            if reading:
                transport.resume_reading()
            else:
                transport.pause_reading()

    def note_unfinished(self, complete: bool) -> None:
        """Tell the admission how much of a frame that is not all here this holds."""
        held, now = self.decoder.buffered_bytes, now_ns()
        if complete or not self._frame_since_ns or self.deferred or self.congested_writing:
            self._frame_since_ns = now
        if not held:
            self._frame_since_ns = 0
        self.admission.holds(self, held, self.unread, now)

    def pause_writing(self) -> None:
        self.congested_writing = True
        self.read_or_not()

    def resume_writing(self) -> None:
        self.congested_writing = False
        self.read_or_not()
        if not self.deferred and self.peer is None:
            self.work()
        for watches in dict.fromkeys(self.watches.values()):
            self.node.ticks.feed(watches.state.p)

    def connection_lost(self, exc: Exception | None) -> None:
        self.admission.left(self)
        if self.peer is not None:
            self.peer.connection_lost(exc)
        self.transport = None
        self.results = []
        for watch_id, watches in list(self.watches.items()):
            watches.remove(self, watch_id)
        self.watches.clear()

    # --- what it holds ------------------------------------------------------------------------

    def measure(self, now: int) -> int:
        """How many bytes of answers wait to be taken."""
        unread = self.transport.get_write_buffer_size() if self.transport is not None else 0
        if not unread:
            self._unread_since_ns = 0
        elif not self._unread_since_ns or self._written - unread >= self._mark:
            self._unread_since_ns, self._mark = now, self._written
        return unread

    def held_since_ns(self) -> int:
        """Since when this node keeps something for it that has not got on."""
        since = [t for t in (self._frame_since_ns, self._unread_since_ns) if t]
        return min(since, default=now_ns())

    def crowded(self) -> bool:
        """Whether so many answers wait to be read that another is too much."""
        if self.unread + self.result_bytes <= MAX_UNREAD_BYTES:
            return False
        now = now_ns()
        self.admission.holds(self, self.unfinished, self.measure(now), now)
        return self.unread + self.result_bytes > MAX_UNREAD_BYTES

    # --- frames ---------------------------------------------------------------------------

    def greet(self, kind: int, body: Any) -> None:
        node = self.node
        self.greeted = True
        if kind == frames.PEER_HELLO:
            peer = PeerConnection(node.links, None)
            peer.transport = self.transport
            peer.decoder = self.decoder
            peer.accept(body)
            self.decoder.max_frame = frames.MAX_FRAME_BYTES
            self.peer = peer
            self.admission.left(self)
            return
        if kind != frames.HELLO or type(body) is not list or len(body) < 2 or type(body[0]) is not str:
            raise ProtocolError(f"the first frame has type {kind}; a hello was expected")
        if body[0] and body[0] != node.config.cluster:
            raise ProtocolError(
                f"this node belongs to cluster {node.config.cluster!r}, not to {shown(body[0], 80)}; check the client's cluster"
            )
        client = f"client {shown(body[1], 80)}"
        self.version = agree(self.spoken, f"node {node.config.node}", spoken_at(body, 2), client)
        if not self.admission.greeted(self):
            limit = node.config.max_connections
            error = Overloaded(f"{limit} clients are connected, the limit (max_connections)", retry_after_s=1)
            self.refuse(error)
            return
        config, self.decoder.max_frame = node.config, frames.MAX_FRAME_BYTES
        answer: list[Any] = [config.cluster, config.node, config.cell, *node.me[1:]]
        if len(body) > 2:  # it tells what it speaks, so it reads what this node speaks
            answer.append(list(self.spoken))
        self.write(frames.pack(frames.HELLO_OK, answer))

    def request(self, body: Any, now: int) -> None:
        error = check_request(body)
        if error is not None:
            raise ProtocolError(error.message)
        client, timeout_ms, ops = body
        node = self.node
        partitions = node.partitions
        deadline = now + timeout_ms * 1_000_000
        for op in ops:
            if self.gone:
                return
            if not is_simple(op):
                error = op_shape(op)
                if error is not None:
                    raise ProtocolError(error.message)
                error = check_op(op)
                if error is not None:
                    self.answer(error_result(op[ID_AT], error))
                    continue
            partition = partitions.get(op[PARTITION_AT])
            if partition is not None:
                partition.operate(self, client, op, deadline, now)
            else:
                self.answer(error_result(op[ID_AT], node.surroundings.whereabouts(op[PARTITION_AT])))

    def other(self, kind: int, body: Any) -> None:
        if kind == frames.TOPOLOGY_REQUEST:
            since = body[0] if type(body) is list and body and type(body[0]) is int else 0
            self.write(self.node.status_pages.topology.frame(since))
        elif kind == frames.STATUS_REQUEST:
            self.write(self.node.status_pages.status_frame())
        elif kind == frames.PING:
            self.write(PING_FRAME)
        elif kind == frames.WATCH:
            self.watch(body)
        elif kind == frames.UNWATCH:
            watch_id = body[0] if type(body) is list and body and type(body[0]) is int else -1
            watches = self.watches.pop(watch_id, None)
            if watches is not None:
                watches.remove(self, watch_id)
        elif kind < OPTIONAL:
            raise ProtocolError(f"a client's frame has type {kind}, which is not one that clients send")

    # --- watches ----------------------------------------------------------------------------

    def watch(self, body: Any) -> None:
        error = check_watch(body)
        if error is not None:
            raise ProtocolError(error.message)
        node, partition = self.node, self.node.partitions.get(body[1])
        if body[0] in self.watches:
            raise ProtocolError(f"watch id {body[0]} is in use on this connection; use another")
        if len(self.watches) >= MAX_WATCHES_PER_CONNECTION or node.watch_count() >= node.config.max_watches:
            error = Overloaded("too many watches here (max_watches)", retry_after_s=5)
        elif partition is None:
            error = node.surroundings.whereabouts(body[1])
        else:
            self.watches[body[0]] = partition.watches
            partition.watches.add(self, body)
            return
        self.watch_ended(body[0], error)

    def watch_ended(self, watch_id: int, error: MetastoreError) -> None:
        self.watches.pop(watch_id, None)
        self.write(frames.pack(frames.WATCH_END, [watch_id, error.status, error.message, error.detail]))

    def congested(self, limit: int) -> bool:
        """Whether over ``limit`` bytes wait to be read by the other side."""
        return self.transport is None or self.transport.get_write_buffer_size() > limit

    # --- answers ----------------------------------------------------------------------------

    def answer(self, result: list[Any], size: int = 0) -> None:
        """Queue one result of about ``size`` bytes; it leaves at the end of the loop turn."""
        results = self.results
        if not results:
            self.node.ticks.answering.append(self)
        results.append(result)
        self.result_bytes += size

    def flush(self) -> None:
        results, self.results, self.result_bytes = self.results, [], 0
        transport = self.transport
        if transport is None or not results or transport.is_closing():
            return
        body: bytes = _pack(results)
        if len(results) <= MAX_RESPONSE_ROWS and len(body) + 2 <= frames.MAX_FRAME_BYTES:
            self.write(frames.HEADER.pack(len(body) + 2, frames.WIRE_VERSION, frames.RESPONSE) + body)
        elif len(results) == 1:
            error = InvalidRequest(
                f"the answer of {len(body)} bytes is over the limit of a frame; ask for less"
            )
            self.write(frames.pack(frames.RESPONSE, [error_result(results[0][0], error)]))
        else:
            half = len(results) // 2
            for part in (results[:half], results[half:]):
                self.results = part
                self.flush()

    def write(self, data: bytes) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        transport.write(data)
        self._written += len(data)
        if self.peer is None and (self.unread or transport.get_write_buffer_size()):
            now = now_ns()
            self.admission.holds(self, self.unfinished, self.measure(now), now)
            if self.unread > MAX_UNSENT_BYTES:
                self.admission.evict(self, "it does not read its answers")

    def refuse(self, error: MetastoreError) -> None:
        """Send the error, and accept nothing more; the connection is closed when the client has read that, or its time has passed."""
        self.write(frames.pack(frames.ERROR, [error.status, error.message, error.detail]))
        self.refused = True
        if self.transport is not None:
            self.transport.close()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()
