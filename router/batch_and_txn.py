"""Handlers of many operations in one request: batches and transactions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

from aiohttp import web

from metastore.client.namespace import AsyncNamespace
from metastore.client.results import (
    Add,
    Compare,
    Delete,
    Fence,
    Get,
    Op,
    Put,
)
from metastore.errors import MetastoreError, NotFound, TooLarge
from metastore.keys import storage_key_of
from metastore.records import Record
from router.bulkheads import CellDispatcher, Reservation
from router.calls import Call
from router.idempotency import OneRequest, aged, note_batch
from router.problems import problem_body, result_json
from router.records import consistency, json_response, ttl_s, with_current

#: operations of one request under way to one cell; the others of that cell wait their turn
WINDOW_PER_CELL = 128
MAX_ANSWER_BYTES = 16 << 20
T = TypeVar("T")
R = TypeVar("R")


async def spread(
    items: Sequence[T], cell_of: Callable[[T], str], work: Callable[[T], Awaitable[R]]
) -> list[R]:
    """``work`` on every item, its results in order; of the items of one cell a window at a time, so
    that a slow cell holds up its own and no others."""
    by_cell: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        by_cell.setdefault(cell_of(item), []).append(number)
    results: list[Any] = [None] * len(items)

    async def worker(numbers: Iterator[int]) -> None:
        for number in numbers:
            results[number] = await work(items[number])

    workers = []
    for numbers in by_cell.values():
        shared = iter(numbers)
        workers += [worker(shared) for _ in range(min(WINDOW_PER_CELL, len(numbers)))]
    tasks = [asyncio.ensure_future(w) for w in workers]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return results


def value_of(op: dict[str, Any], name: str = "value") -> bytes:
    """Text as UTF-8, or what was base64."""
    if name in op:
        text: str = op[name]
        return text.encode()
    found: bytes = op[f"{name}_base64"]
    return found


def fence_of(op: dict[str, Any]) -> Fence | None:
    found = op.get("fence")
    return None if found is None else Fence(found["name"], found["token"])


def condition_of(op: dict[str, Any]) -> dict[str, Any]:
    """``if_version`` and so on, as the client takes them; ``if_exists: false`` asks for nothing."""
    found: dict[str, Any] = {}
    if "if_version" in op:
        found["version"] = op["if_version"]
    if op.get("if_absent"):
        found["absent"] = True
    if op.get("if_exists"):
        found["exists"] = True
    return found


class AnswerRoom:
    """What the records in one answer to many operations may hold. Once one has found no room, what has not been read
    yet is not read: it would be refused all the same, after the work. ``refusal`` makes the error."""

    def __init__(self, reservation: Reservation, refusal: Callable[[], MetastoreError]) -> None:
        self.reservation = reservation
        self.refusal = refusal
        self.used = 0
        self.full = False

    def look(self) -> None:
        """Before something is read for it. Raises ``refusal``."""
        if self.full:
            raise self.refusal()

    def take(self, size: int) -> None:
        """Room for what was read. Raises ``refusal``, Overloaded."""
        if self.used + size > MAX_ANSWER_BYTES:
            self.full = True
            raise self.refusal()
        self.reservation.take(size)
        self.used += size


def answer_is_full() -> TooLarge:
    return TooLarge(
        f"the records in the answer to a batch would be over the limit of {MAX_ANSWER_BYTES} bytes: "
        "get this record in another request"
    )


class BatchAndTxn:
    """See the module."""

    def __init__(self, dispatcher: CellDispatcher) -> None:
        self.dispatcher = dispatcher

    def namespace(self, call: Call) -> AsyncNamespace:
        return AsyncNamespace(self.dispatcher, call["namespace"], max(0.0, call.left_s))

    # --- batches ----------------------------------------------------------------------------

    async def batch(self, call: Call) -> web.Response:
        ops = (await call.json())["ops"]
        note_batch(call.request, ops)
        call.in_time()
        ns = self.namespace(call)
        rule = self.dispatcher.table.rule(ns.name)
        answer = AnswerRoom(call.reservation, answer_is_full)

        def cell_of(op: Any) -> str:
            try:
                return self.dispatcher.cell_of(storage_key_of(ns.name, op["key"], rule))
            except (MetastoreError, TypeError):
                return ""

        async def work(op: Any) -> dict[str, Any]:
            key = op["key"] if isinstance(op, dict) else None
            try:
                if isinstance(op, MetastoreError):
                    raise op
                return await self._one(call, ns, op, answer)
            except MetastoreError as e:
                if key is not None:
                    e = await self._explained(call, ns, key, e, answer)
                return problem_body(e, key)

        return json_response({"results": await spread(ops, cell_of, work)})

    async def _explained(
        self, call: Call, ns: AsyncNamespace, key: str, error: MetastoreError, answer: AnswerRoom
    ) -> MetastoreError:
        error = await with_current(error, ns, key, call.left_s)
        held = error.detail.get("current") or error.detail.get("record")
        try:
            answer.take(0 if held is None else len(getattr(held, "value", held)))
        except MetastoreError:
            error.detail.pop("current", None)
            error.detail.pop("record", None)
        return error

    async def _one(
        self, call: Call, ns: AsyncNamespace, op: dict[str, Any], answer: AnswerRoom
    ) -> dict[str, Any]:
        kind, key, left_s = op["op"], op["key"], max(0.0, call.left_s)
        if kind == "get":
            answer.look()
            record, _ = await ns.get_with_age(key, **consistency(op), deadline_s=left_s)
            if record is None:
                raise NotFound(f"there is no record {key!r:.200} in namespace {ns.name}")
            answer.take(len(record.value))
            return {"status": 200, **result_json(key, record)}
        if kind == "touch":
            touched = await ns.touch(key, version=op.get("if_version"), deadline_s=left_s)
            if touched is None:
                raise NotFound(f"there is no record {key!r:.200} in namespace {ns.name}")
            return {"status": 200, **result_json(key, touched)}
        common: dict[str, Any] = {
            **condition_of(op),
            "fence": fence_of(op),
            "ids": self._ids(call, ns, op),
            "deadline_s": left_s,
        }
        if kind == "put":
            ttl = ttl_s(op.get("ttl_ms"), op.get("ttl_s"))
            content_type, name = op["content_type"], op.get("raise_fence")
            put = await ns.put(
                key, value_of(op), content_type=content_type, ttl_s=ttl, raise_fence=name, **common
            )
            return {"status": 201 if put.created else 200, **result_json(key, put)}
        if kind == "add":
            added = await ns.add(key, op["delta"], **common)
            return {"status": 200, **result_json(key, added)}
        version = await ns.delete(key, **common)
        if not version:
            raise NotFound(f"there was no record {key!r:.200} in namespace {ns.name}; nothing was changed")
        return {"status": 200, **result_json(key, version)}

    def _ids(self, call: Call, ns: AsyncNamespace, op: dict[str, Any]) -> OneRequest | None:
        key, age_s = op.pop("idempotency_key", None), op.pop("idempotency_age_s", None)
        if key is None:
            return None
        return OneRequest(
            self.dispatcher.ids, key, (ns.name, op["key"]), ["batch", op], aged(age_s, call.since_s)
        )

    # --- transactions -----------------------------------------------------------------------

    async def txn(self, call: Call) -> web.Response:
        txn = await call.json()
        call.in_time()
        ns = self.namespace(call)
        compares = [self._compare(c) for c in txn["compare"]]
        then = [self._part(op) for op in txn["then"]]
        otherwise = [self._part(op) for op in txn["otherwise"]]
        ids = None
        if call["idempotency_key"] is not None:
            key, age_s = call["idempotency_key"], aged(call["idempotency_age"], call.since_s)
            ids = OneRequest(self.dispatcher.ids, key, (ns.name,), ["txn", txn], age_s)
        result = await ns.txn(compares, then, otherwise, fence=fence_of(txn), ids=ids)
        branch = then if result.succeeded else otherwise
        for found in result.results:
            if isinstance(found, Record):
                call.reservation.force(len(found.value))
        results = [result_json(op.key, found) for op, found in zip(branch, result.results, strict=True)]
        return json_response({"succeeded": result.succeeded, "results": results})

    @staticmethod
    def _compare(c: dict[str, Any]) -> Compare:
        operand = value_of(c, "operand") if c["what"] == "value" else c["operand"]
        return Compare(c["key"], c["what"], c["relation"], operand)

    @staticmethod
    def _part(op: dict[str, Any]) -> Op:
        kind, key = op["op"], op["key"]
        if kind == "get":
            return Get(key)
        if kind == "put":
            ttl = ttl_s(op.get("ttl_ms"), op.get("ttl_s"))
            return Put(key, value_of(op), content_type=op["content_type"], ttl_s=ttl)
        return Add(key, op["delta"]) if kind == "add" else Delete(key)
