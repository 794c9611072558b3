"""Members of etcd that say what a test wants them to say: what a real one cannot be brought to say on demand.

The messages are etcd's own. What a real etcd does by itself is in tests/conformance.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from aetcd import rpc
from aetcd.rpc import rpc_pb2_grpc

CLUSTER = 7

Script = Callable[["Member", Any, AsyncIterator[Any], Any], Awaitable[None]]


class Member(rpc_pb2_grpc.KVServicer, rpc_pb2_grpc.WatchServicer):  # type: ignore[misc]  # aetcd has no types
    """One member. ``script`` plays one stream of a watch, given what created it, what is asked and where to write."""

    def __init__(self, content: dict[bytes, tuple[bytes, int]], revision: int, script: Script) -> None:
        self.content = content
        #: by a majority, and what this member has of it
        self.revision = self.own_revision = revision
        self.script = script
        self.readings = 0
        self.streams = 0
        self.server = grpc.aio.server()
        rpc_pb2_grpc.add_KVServicer_to_server(self, self.server)
        rpc_pb2_grpc.add_WatchServicer_to_server(self, self.server)
        self.endpoint = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    def header(self, revision: int = 0) -> Any:
        return rpc.ResponseHeader(cluster_id=CLUSTER, revision=revision or self.revision)

    async def Range(self, request: Any, context: Any) -> Any:
        self.readings += 1
        kvs = [
            rpc.KeyValue(key=key, value=value, mod_revision=revision, create_revision=revision)
            for key, (value, revision) in sorted(self.content.items())
            if key.startswith(request.key) or key == request.key
        ]
        return rpc.RangeResponse(header=self.header(), kvs=kvs)

    async def Watch(self, requests: AsyncIterator[Any], context: Any) -> None:
        self.streams += 1
        created = (await anext(aiter(requests))).create_request
        await context.write(rpc.WatchResponse(header=self.header(self.own_revision), created=True))
        await self.script(self, created, requests, context)

    def events(self, keys: list[bytes], revision: int, *, fragment: bool = False) -> Any:
        events = [
            rpc.Event(
                type=rpc.Event.PUT,
                kv=rpc.KeyValue(key=key, value=b"new", mod_revision=revision, create_revision=revision),
            )
            for key in keys
        ]
        return rpc.WatchResponse(header=self.header(), events=events, fragment=fragment)


async def answers_progress(member: Member, created: Any, requests: AsyncIterator[Any], context: Any) -> None:
    """Nothing changes, and whoever asks is told so."""
    async for _ in requests:
        await context.write(rpc.WatchResponse(header=member.header()))
