"""``POST /v1/rpc``: the body of a REQUEST frame over HTTP, for clients that cannot reach the nodes.

Each operation is checked as a node checks it, routed by its own storage key (the partition that the
client names is ignored) and retried here with the request id that the client gave it, so that who
falls back to HTTP in the middle of a write still has it executed once. Client and router tell the versions of the protocol
that they speak in a header, as others do in their hello (metastore.wire.versions).
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgpack
from aiohttp import web

from metastore.errors import InvalidRequest, MetastoreError, OutcomeUnknown, Overloaded, ProtocolError
from metastore.operations import ID_AT, KEY_AT, KIND_AT, READS, WRITES, Op, answer_size
from metastore.wire.op_checks import check_op, check_request, op_shape
from metastore.wire.versions import HEADER, agree, client_versions, from_header, to_header
from router.batch_and_txn import MAX_ANSWER_BYTES, AnswerRoom, spread
from router.bulkheads import CellDispatcher
from router.calls import Call

POINT_BYTES = 8


def plain(value: Any) -> Any:
    """What msgpack can say; an error's detail may hold more."""
    if isinstance(value, str | int | float | bytes | None):
        return value
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple | set) else str(value)


def error_result(op_id: int, error: MetastoreError) -> list[Any]:
    return [op_id, error.status, error.message, plain(error.detail)]


def checked(body: Any) -> tuple[bytes, int, list[Op]]:
    """``(client_id, timeout_ms, ops)``; each op is of a known shape. Raises InvalidRequest, TooLarge."""
    error = check_request(body)
    if error is not None:
        raise error
    client_id, timeout_ms, ops = body
    for op in ops:
        error = op_shape(op)
        if error is not None:
            raise InvalidRequest(error.message)
    return client_id, timeout_ms, ops


def version_of(header: str | None) -> int:
    """The version of the protocol that the router uses with a client that tells this. Raises InvalidRequest."""
    try:
        return agree(client_versions(), "this router", from_header(header), "the client")
    except ProtocolError as e:
        raise InvalidRequest(e.message) from None


class Rpc:
    """See the module."""

    def __init__(self, dispatcher: CellDispatcher) -> None:
        self.dispatcher = dispatcher

    def _cell_of(self, op: Op) -> str:
        return self.dispatcher.cell_of(op[KEY_AT]) if type(op[KEY_AT]) is bytes else ""

    async def rpc(self, call: Call) -> web.Response:
        version_of(call.request.headers.get(HEADER))
        client_id, timeout_ms, ops = checked(await call.msgpack())
        until = min(call.until, asyncio.get_running_loop().time() + timeout_ms / 1000)
        answer = AnswerRoom(call.reservation, answer_is_full)

        async def work(op: Op) -> list[Any]:
            op_id = op[ID_AT]
            try:
                error = check_op(op)
                if error is None and len(op[KEY_AT]) < POINT_BYTES:
                    error = InvalidRequest("the start of a list is not a storage key")
                if error is not None:
                    raise error
                if op[KIND_AT] in READS:
                    answer.look()
                found = await self.dispatcher.relay(client_id, op, until)
                take_room(answer, op, answer_size(op, found))
            except MetastoreError as e:
                return error_result(op_id, e)
            return [op_id, *found[1:]]

        body: bytes = msgpack.packb(await spread(ops, self._cell_of, work))
        headers = {"Cache-Control": "no-store", HEADER: to_header(client_versions())}
        return web.Response(body=body, content_type="application/x-msgpack", headers=headers)


def answer_is_full() -> Overloaded:
    """Which clients try again."""
    return Overloaded(f"an answer holds {MAX_ANSWER_BYTES} bytes of records", retry_after_s=0)


def take_room(answer: AnswerRoom, op: Op, size: int) -> None:
    """Room for what an operation has read. Raises Overloaded; of a write, which is done, OutcomeUnknown: the same
    request id gets the same outcome."""
    try:
        answer.take(size)
    except Overloaded as e:
        raise OutcomeUnknown(e.message, **e.detail) if op[KIND_AT] in WRITES else e from None
