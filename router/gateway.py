"""The HTTP gateway: /v1/kv, /v1/batch, /v1/topology, health. Stateless; thin handlers.

One bound on requests under way in all and one per cell (bulkheads): a dead or slow cell
uses up its own share and no more; beyond a bound the answer is 503 at once.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from metastore.client.dispatch import Dispatcher, RequestIds
from metastore.client.namespace import Namespace, condition_of, consistency_of
from metastore.config import RouterConfig
from metastore.errors import (
    ConditionFailed,
    InternalError,
    InvalidRequest,
    MetastoreError,
    NotFound,
    Overloaded,
    TooLarge,
)
from metastore.keys import MAX_CONTENT_TYPE_BYTES, MAX_VALUE_BYTES, is_content_type, storage_key
from metastore.problems import problem, problem_body
from metastore.records import unpack_record
from metastore.wire.client_messages import (
    DELETE,
    GET,
    LINEARIZABLE,
    MAX_LIST_LIMIT,
    MAX_OPS_PER_FRAME,
    NOT_FOUND,
    PUT,
)
from router.requests import (
    etag_version,
    flag,
    item_json,
    json_response,
    number,
    query,
    split_path,
    write_condition,
)

log = logging.getLogger("router")

MAX_BATCH_BODY_BYTES = 8 << 20
PROBE_KEY = b"metastore\0probe"
LEASE = "lease"
#: listings under way, each of a page of client.MAX_PAGE_BYTES
MAX_LISTINGS = 32
#: what the gets of one batch may bring, and how many of them are under way at once
MAX_BATCH_ANSWER_BYTES = 16 << 20
MAX_BATCH_GETS = 64
#: what a request may hold whatever the others do: large ones shall not lock out small ones
SMALL_BYTES = 16 << 10
Handler = Callable[[web.Request], Awaitable[web.Response]]


class Lease:
    """What one request makes the router hold, in bytes, of what all may."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.bytes = 0

    def take(self, size: int) -> None:
        """Raises Overloaded when there is no room for ``size`` bytes more; for a few there is."""
        gateway = self._gateway
        if self.bytes + size > SMALL_BYTES and gateway.held + size > gateway.limit:
            raise Overloaded(
                f"the requests under way hold {gateway.held} bytes; {size} more are over the limit",
                retry_after_s=1,
            )
        self.bytes += size
        gateway.held += size

    def end(self) -> None:
        self._gateway.held -= self.bytes
        self.bytes = 0


class Gateway:
    """All handlers, over one dispatcher."""

    def __init__(self, config: RouterConfig, dispatcher: Dispatcher) -> None:
        self.config = config
        self.dispatcher = dispatcher
        self.inflight = 0
        self.listings = 0
        #: bytes of bodies and gathered answers of the requests under way, and their bound
        self.held = 0
        self.limit = config.request_memory_mib << 20
        self._probing: asyncio.Task[int] | None = None
        self.cells: dict[str, int] = {}
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "metastore_router_requests", "Requests answered", ["operation", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "metastore_router_seconds", "Time to answer", ["operation"], registry=self.registry
        )
        Gauge("metastore_router_inflight", "Requests under way", registry=self.registry).set_function(
            lambda: self.inflight
        )
        Gauge("metastore_router_retries", "Attempts repeated", registry=self.registry).set_function(
            lambda: dispatcher.retries
        )

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BATCH_BODY_BYTES)
        add = app.router.add_route
        for method, name, handler in (
            ("GET", "get", self.get),
            ("HEAD", "get", self.get),
            ("PUT", "put", self.put),
            ("DELETE", "delete", self.delete),
        ):
            add(method, "/v1/kv/{path:.*}", self.guarded(name, handler))
        add("POST", "/v1/batch/{path:.*}", self.guarded("batch", self.batch))
        add("GET", "/v1/topology", self.topology)
        add("GET", "/livez", self.livez)
        add("GET", "/readyz", self.readyz)
        add("GET", "/metrics", self.metrics)
        return app

    # --- guards -----------------------------------------------------------------------------

    def guarded(self, name: str, handler: Handler) -> Handler:
        """Bounds, errors as problem documents, and metrics around a handler."""
        seconds = self.seconds.labels(name)

        async def guard(request: web.Request) -> web.Response:
            began = time.perf_counter()
            lease = request[LEASE] = Lease(self)
            if self.inflight >= self.config.max_inflight:
                response = problem(
                    Overloaded(f"{self.inflight} requests are under way, the limit", retry_after_s=1)
                )
            else:
                self.inflight += 1
                try:
                    response = await handler(request)
                except MetastoreError as e:
                    response = problem(e, request.method == "HEAD")
                except web.HTTPRequestEntityTooLarge:
                    response = problem(
                        TooLarge(f"the body is over the limit of {MAX_BATCH_BODY_BYTES} bytes")
                    )
                except web.RequestPayloadError as e:
                    response = problem(InvalidRequest(f"the body is not whole: {str(e)[:200]}"))
                    response.force_close()
                except (web.HTTPException, asyncio.CancelledError, ConnectionError):
                    raise
                except Exception:
                    log.exception("%s %s", request.method, request.path)
                    response = problem(InternalError("the router failed; its log tells more"))
                finally:
                    self.inflight -= 1
                    lease.end()
            self.requests.labels(name, str(response.status)).inc()
            seconds.observe(time.perf_counter() - began)
            return response

        return guard

    async def in_cell(self, lkey: bytes, work: Callable[[], Awaitable[Any]]) -> Any:
        """Run ``work`` within the share of the key's cell."""
        table = self.dispatcher.table
        cell = table.route(lkey).cell if table.complete else ""
        count = self.cells.get(cell, 0)
        if count >= self.config.max_inflight_per_cell:
            raise Overloaded(
                f"{count} requests to cell {cell} are under way, the limit", retry_after_s=1, cell=cell
            )
        self.cells[cell] = count + 1
        try:
            return await work()
        finally:
            self.cells[cell] -= 1

    def deadline_s(self, params: dict[str, str]) -> float:
        if "timeout_ms" not in params:
            return self.config.deadline_s
        return number("timeout_ms", params["timeout_ms"], 1, int(self.config.deadline_s * 1000)) / 1000

    def ids(self, request: web.Request) -> RequestIds | None:
        """An Idempotency-Key is a request id of its own (R7)."""
        key = request.headers.get("Idempotency-Key")
        if key is None:
            return None
        if not 1 <= len(key) <= 256:
            raise InvalidRequest(f"Idempotency-Key of {len(key)} characters: use 1 to 256")
        return RequestIds(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).digest())

    # --- records ------------------------------------------------------------------------------

    async def get(self, request: web.Request) -> web.Response:
        name, key = split_path(request, "/v1/kv/")
        if not key and not request.raw_path.partition("?")[0].endswith("/"):
            return await self.list(request, name)
        lkey = storage_key(name, key)
        params = query(request, "consistency", "max_staleness_ms", "at_least", "timeout_ms")
        kind, arg = self.consistency(params)
        until = asyncio.get_running_loop().time() + self.deadline_s(params)
        op = [0, GET, 0, lkey, kind, arg]
        result = await self.in_cell(lkey, lambda: self.dispatcher.read(op, lkey, until))
        if result[1] == NOT_FOUND:
            raise NotFound(f"there is no record {key!r:.200} in namespace {name}")
        request[LEASE].take(len(result[2]))
        record, age_ms = unpack_record(result[2]), result[3]
        del result  # and with it a second copy of the value
        etag = f'"{record.version}"'
        headers = {"ETag": etag, "X-Metastore-Created": str(record.created)}
        if kind != LINEARIZABLE:
            headers["X-Metastore-Age-Ms"] = "unknown" if age_ms is None else str(age_ms)
        wanted = request.headers.get("If-None-Match")
        if wanted is not None and (wanted.strip() == "*" or etag in [t.strip() for t in wanted.split(",")]):
            return web.Response(status=304, headers=headers)
        match = request.headers.get("If-Match")
        if match is not None and etag_version("If-Match", match) not in (None, record.version):
            raise ConditionFailed(f"the record is at version {record.version}", version=record.version)
        fits = record.content_type and is_content_type(record.content_type)
        headers["Content-Type"] = record.content_type if fits else "application/octet-stream"
        return web.Response(body=record.value, headers=headers)

    @staticmethod
    def consistency(params: dict[str, str]) -> tuple[int, int | None]:
        wanted: Any = params.get("consistency", "at_least" if "at_least" in params else "linearizable")
        staleness, at_least = params.get("max_staleness_ms"), params.get("at_least")
        if staleness is not None and wanted != "stale":
            raise InvalidRequest("max_staleness_ms goes with consistency=stale")
        return consistency_of(
            wanted,
            None if staleness is None else number("max_staleness_ms", staleness, 0, 10**12),
            None if at_least is None else number("at_least", at_least, 0, 1 << 62),
        )

    async def put(self, request: web.Request) -> web.Response:
        name, key = split_path(request, "/v1/kv/")
        lkey = storage_key(name, key)
        params = query(request, "timeout_ms")
        deadline_s = self.deadline_s(params)
        condition = write_condition(request)
        content_type = request.headers.get("Content-Type", "")
        if not is_content_type(content_type):
            raise InvalidRequest(
                f"Content-Type is not printable ASCII of at most {MAX_CONTENT_TYPE_BYTES} characters"
            )
        ids = self.ids(request)
        value = await self.body(request, MAX_VALUE_BYTES)
        op = [0, PUT, 0, lkey, 0, 0, 0, condition, value, content_type, 0]
        until = asyncio.get_running_loop().time() + deadline_s
        result = await self.in_cell(lkey, lambda: self.dispatcher.write(op, lkey, until, ids))
        version, created = result[2], bool(result[4])
        body = {"key": key, "version": version, "created": created}
        return json_response(body, 201 if created else 200, ETag=f'"{version}"')

    async def body(self, request: web.Request, limit: int) -> bytes:
        """The body; a too large one is refused without reading it whole. Raises TooLarge, Overloaded,
        and InvalidRequest when it does not come."""
        length = request.content_length
        if length is not None and length > limit:
            raise TooLarge(f"a body of {length} bytes is over the limit of {limit} bytes")
        chunks: list[bytes] = []
        size = 0
        lease: Lease = request[LEASE]
        try:
            async with asyncio.timeout(self.config.client_patience_s):
                async for chunk in request.content.iter_chunked(65536):
                    size += len(chunk)
                    if size > limit:
                        raise TooLarge(f"the body is over the limit of {limit} bytes")
                    lease.take(len(chunk))
                    chunks.append(chunk)
        except TimeoutError:
            raise InvalidRequest("the body did not arrive in time") from None
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def delete(self, request: web.Request) -> web.Response:
        name, key = split_path(request, "/v1/kv/")
        lkey = storage_key(name, key)
        params = query(request, "timeout_ms")
        op = [0, DELETE, 0, lkey, 0, 0, 0, write_condition(request)]
        until = asyncio.get_running_loop().time() + self.deadline_s(params)
        ids = self.ids(request)
        result = await self.in_cell(lkey, lambda: self.dispatcher.write(op, lkey, until, ids))
        if not result[2]:
            raise NotFound(f"there was no record {key!r:.200} in namespace {name}; nothing was changed")
        return json_response({"key": key, "version": result[2]})

    async def list(self, request: web.Request, name: str) -> web.Response:
        params = query(
            request, "prefix", "limit", "cursor", "keys_only", "consistency", "max_staleness_ms", "timeout_ms"
        )
        kind: Any = params.get("consistency", "linearizable")
        if kind not in ("linearizable", "stale"):
            raise InvalidRequest(f"consistency = {kind!r:.40}: a listing is linearizable or stale")
        staleness = params.get("max_staleness_ms")
        keys_only = flag("keys_only", params.get("keys_only", "false"))
        limit = number("limit", params.get("limit", "1000"), 1, MAX_LIST_LIMIT)
        age = None if staleness is None else number("max_staleness_ms", staleness, 0, 10**12)
        ns = Namespace(self.dispatcher, name, self.deadline_s(params))
        if self.listings >= MAX_LISTINGS:
            raise Overloaded(f"{MAX_LISTINGS} listings are under way, the limit", retry_after_s=1)
        self.listings += 1
        try:
            page = await ns.list(
                params.get("prefix", ""),
                limit=limit,
                cursor=params.get("cursor") or None,
                keys_only=keys_only,
                consistency=kind,
                max_staleness_ms=age,
            )
            request[LEASE].take(sum(len(key) + len(record.value) for key, record in page.items))
            items = [item_json(key, record, keys_only) for key, record in page.items]
            return json_response({"items": items, "cursor": page.cursor})
        finally:
            self.listings -= 1

    # --- batch --------------------------------------------------------------------------------

    async def batch(self, request: web.Request) -> web.Response:
        name, rest = split_path(request, "/v1/batch/")
        if rest:
            raise InvalidRequest("a batch is posted to /v1/batch/{namespace}")
        ns = Namespace(self.dispatcher, name, self.deadline_s(query(request, "timeout_ms")))
        raw = await self.body(request, MAX_BATCH_BODY_BYTES)
        try:
            ops = orjson.loads(raw)["ops"]
            if not isinstance(ops, list):
                raise TypeError
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise InvalidRequest(
                'the body is not JSON of the form {"ops": [{"op": "put", "key": …}]}'
            ) from None
        if len(ops) > MAX_OPS_PER_FRAME:
            raise TooLarge(f"{len(ops)} operations in a batch; the limit is {MAX_OPS_PER_FRAME}")
        gets, answers = asyncio.Semaphore(MAX_BATCH_GETS), Lease(self)
        try:
            results = await asyncio.gather(*(self.one_of_batch(ns, op, gets, answers) for op in ops))
            return json_response({"results": results})
        finally:
            answers.end()

    async def one_of_batch(
        self, ns: Namespace, op: Any, gets: asyncio.Semaphore, answers: Lease
    ) -> dict[str, Any]:
        try:
            return await self.batch_op(ns, op, gets, answers)
        except MetastoreError as e:
            return problem_body(e)

    async def batch_op(
        self, ns: Namespace, op: Any, gets: asyncio.Semaphore, answers: Lease
    ) -> dict[str, Any]:
        if not isinstance(op, dict) or not isinstance(op.get("key"), str):
            raise InvalidRequest("an operation is an object with op and key")
        unknown = set(op) - {"op", "key", "value", "value_base64", "content_type", "if_version", "if_absent"}
        if unknown:
            raise InvalidRequest(f"unknown member {sorted(unknown)[0]!r:.60} in an operation")
        kind, key = op.get("op"), op["key"]
        version, absent = op.get("if_version"), op.get("if_absent", False)
        content_type = op.get("content_type", "")
        if type(absent) is not bool or type(content_type) is not str:
            raise InvalidRequest("if_absent is true or false, and content_type is text")
        if version is not None and (type(version) is not int or not 0 < version < 1 << 62):
            raise InvalidRequest(f"if_version = {version!r:.40} is not a version")
        condition_of(version, absent, False)
        if kind == "get":
            async with gets:
                if answers.bytes > MAX_BATCH_ANSWER_BYTES:
                    raise TooLarge(f"the values of this batch are over {MAX_BATCH_ANSWER_BYTES} bytes")
                record = await ns.get(key)
                if record is None:
                    raise NotFound(f"there is no record {key!r:.200}")
                answers.take(len(record.value))
            return {"status": 200, **item_json(key, record, False)}
        if kind == "put":
            result = await ns.put(
                key,
                self.batch_value(op),
                version=version,
                absent=absent,
                content_type=content_type,
            )
            return {"status": 201 if result.created else 200, "key": key, "version": result.version}
        if kind == "delete":
            deleted = await ns.delete(key, version=version)
            if not deleted:
                raise NotFound(f"there was no record {key!r:.200}; nothing was changed")
            return {"status": 200, "key": key, "version": deleted}
        raise InvalidRequest(f"op = {kind!r:.40}: use get, put or delete")

    @staticmethod
    def batch_value(op: dict[str, Any]) -> bytes:
        if ("value" in op) == ("value_base64" in op):
            raise InvalidRequest("a put takes either value (text) or value_base64")
        try:
            if "value" in op:
                return str.encode(op["value"])
            return base64.b64decode(op["value_base64"], validate=True)
        except (TypeError, ValueError, binascii.Error):
            raise InvalidRequest("value is not text, or value_base64 not base64") from None

    # --- the rest -----------------------------------------------------------------------------

    async def topology(self, request: web.Request) -> web.Response:
        return json_response(self.dispatcher.table.to_wire())

    async def livez(self, request: web.Request) -> web.Response:
        return json_response({"status": "ok"})

    async def readyz(self, request: web.Request) -> web.Response:
        """Ready when the table is known; ``?leaders=1`` also counts partitions that serve now."""
        table = self.dispatcher.table
        body: dict[str, Any] = {"ready": table.complete, "partitions": len(table.partitions)}
        if table.complete and "leaders" in request.query:
            if self._probing is None or self._probing.done():  # whoever asks meanwhile shares it
                self._probing = asyncio.get_running_loop().create_task(self.probe_all())
            body["partitions_led"] = await asyncio.shield(self._probing)
        return json_response(
            body, 200 if table.complete else 503, **({} if table.complete else {"Retry-After": "1"})
        )

    async def probe_all(self) -> int:
        places = self.dispatcher.table.in_order()
        return sum(await asyncio.gather(*(self.probe(p.lo) for p in places)))

    async def probe(self, lo: int) -> bool:
        lkey = lo.to_bytes(8, "big") + PROBE_KEY
        until = asyncio.get_running_loop().time() + 1.0
        try:
            await self.dispatcher.read([0, GET, 0, lkey, LINEARIZABLE, None], lkey, until)
        except MetastoreError:
            return False
        return True

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self.registry), content_type="text/plain")
