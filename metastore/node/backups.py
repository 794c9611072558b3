"""A partition's records out of its leader, as of one applied entry, for ``cellctl snapshot save``.

    GET /v1/partitions/{p}/snapshot -> frames of ``u32 length | u32 crc32 | msgpack``

The first frame is a map (partition, epoch, index, version), then arrays of ``[storage key, packed record]``, at
the end a map ``{"records": n}``: what ends without it is not whole. It has every write that was answered
before it was asked for: the leader holds its grants (R8) and saves its state before it begins.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import zlib
from typing import TYPE_CHECKING, Any, Final

import msgpack
from aiohttp import web

from metastore.clock import now_ns
from metastore.errors import CorruptState, NotFound, NotLeader, Overloaded, Unavailable
from metastore.node.pins import Pin
from metastore.storage.snapshot import DATA

if TYPE_CHECKING:
    from metastore.node.node import Node
    from metastore.partition.partition import Partition

log = logging.getLogger("metastore.backups")

HEAD: Final = struct.Struct(">II")
MEDIA_TYPE: Final = "application/vnd.metastore.snapshot"
CHUNK_BYTES: Final = 256 << 10
MAX_CONCURRENT: Final = 2
SAVE_S: Final = 30.0
#: without the reader taking a chunk
PATIENCE_S: Final = 30.0


def frame(value: Any) -> bytes:
    body: bytes = msgpack.packb(value)
    return HEAD.pack(len(body), zlib.crc32(body)) + body


class Backups:
    """See the module."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._under_way = 0

    async def send(self, request: web.Request, p: int) -> web.StreamResponse:
        """Raises NotFound, NotLeader, Overloaded, Unavailable."""
        partition = self.node.partitions.get(p)
        if partition is None:
            raise NotFound(f"this node holds no replica of partition {p}")
        if self._under_way >= MAX_CONCURRENT:
            raise Overloaded(
                f"{MAX_CONCURRENT} snapshots are under way, the limit of a node; try again", retry_after_s=1
            )
        if not partition.replica.can_read(now_ns()):
            leader = partition.replica.leader_node
            raise NotLeader(f"partition {p} is led by {leader or 'nobody'}", leader=leader)
        if partition.replica.damaged:
            raise partition.refusals.damage()
        self._under_way += 1
        try:
            return await self._send(request, partition)
        except CorruptState as e:
            raise partition.refusals.is_rotten(e) from None
        finally:
            self._under_way -= 1

    async def _send(self, request: web.Request, partition: Partition) -> web.StreamResponse:
        store, p, epoch, applied = (
            self.node.store,
            partition.p,
            partition.replica.sealed_epoch,
            partition.applied,
        )
        version = partition.machine.last_version
        try:
            async with asyncio.timeout(SAVE_S):
                await store.save(p, applied)
        except TimeoutError:
            raise Unavailable(
                f"the state of partition {p} could not be saved within {SAVE_S:g} s: the disk is slow; try again",
                retry_after_s=1,
            ) from None
        with self.node.pins.pin(p, f"a backup at {request.remote}") as pin:
            return await self._stream(request, {"partition": p, "epoch": epoch, "version": version}, pin)

    async def _stream(self, request: web.Request, head: dict[str, int], pin: Pin) -> web.StreamResponse:
        p = head["partition"]
        reader = self.node.store.open_snapshot(p)
        try:
            response = web.StreamResponse(headers={"Content-Type": MEDIA_TYPE})
            await response.prepare(request)
            await self._write(response, head | {"index": reader.index}, pin)
            records = 0
            while True:
                rows = [[key, value] for kind, key, value in reader.chunk(CHUNK_BYTES) if kind == DATA]
                if not rows:
                    break
                await self._write(response, rows, pin)
                records += len(rows)
            await self._write(response, {"records": records}, pin)
            await response.write_eof()
            return response
        finally:
            reader.close()

    @staticmethod
    async def _write(response: web.StreamResponse, value: Any, pin: Pin) -> None:
        """Raises ConnectionError when nobody takes it, or too slowly: an answer that was begun can only be broken
        off."""
        data = frame(value)
        try:
            await pin.wait(response.write(data), PATIENCE_S)
        except TimeoutError:
            raise ConnectionError("the client did not read the snapshot") from None
        except Unavailable as e:
            log.warning("%s", e.message)
            raise ConnectionError(e.message) from None
        pin.sent_bytes += len(data)
