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
from urllib.parse import unquote_to_bytes

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
from metastore.keys import MAX_CONTENT_TYPE_BYTES, MAX_VALUE_BYTES, storage_key
from metastore.records import Record, unpack_record
from metastore.wire.client_messages import (
    DELETE,
    EXISTS,
    GET,
    LINEARIZABLE,
    MAX_LIST_LIMIT,
    MAX_OPS_PER_FRAME,
    NOT_FOUND,
    PUT,
)
from router.problems import problem, problem_body

log = logging.getLogger("router")

MAX_BATCH_BODY_BYTES = 8 << 20
PROBE_KEY = b"metastore\0probe"
Handler = Callable[[web.Request], Awaitable[web.Response]]


def split_path(request: web.Request, prefix: str) -> tuple[str, str]:
    """``(namespace, key)`` of the path, percent-decoded exactly once; nothing is normalised, so
    that keys such as ``a//b`` and ``a/../b`` survive. Raises InvalidRequest."""
    raw = request.raw_path.partition("?")[0][len(prefix) :]
    namespace, _, key = raw.partition("/")
    try:
        return unquote_to_bytes(namespace).decode(), unquote_to_bytes(key).decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"the path {raw!r:.100} is not percent-encoded UTF-8") from None


def query(request: web.Request, *known: str) -> dict[str, str]:
    """The query parameters; unknown or repeated ones are refused."""
    found: dict[str, str] = {}
    for name, value in request.query.items():
        if name not in known:
            raise InvalidRequest(f"unknown query parameter {name!r:.60}; known here: {', '.join(known)}")
        if name in found:
            raise InvalidRequest(f"query parameter {name!r} is given twice")
        found[name] = value
    return found


def number(name: str, text: str, low: int, high: int) -> int:
    """A whole number within bounds. Raises InvalidRequest."""
    if not text.isascii() or not text.isdigit() or len(text) > 19 or not low <= int(text) <= high:
        raise InvalidRequest(f"{name} = {text!r:.40} is not a whole number from {low} to {high}")
    return int(text)


def flag(name: str, text: str) -> bool:
    if text not in ("true", "false", "1", "0", ""):
        raise InvalidRequest(f"{name} = {text!r:.40}: use true or false")
    return text in ("true", "1", "")


def etag_version(name: str, text: str) -> int | None:
    """The version in an entity tag, None for ``*``. Raises InvalidRequest."""
    text = text.strip()
    if text == "*":
        return None
    tag = text.removeprefix("W/").strip('"')
    if not tag.isascii() or not tag.isdigit() or len(tag) > 18:
        raise InvalidRequest(f'{name}: {text!r:.60} is neither * nor one version such as "12"')
    return int(tag)


def write_condition(request: web.Request) -> int | None:
    """The wire condition of If-Match / If-None-Match on a write."""
    match, none_match = request.headers.get("If-Match"), request.headers.get("If-None-Match")
    if match is not None and none_match is not None:
        raise InvalidRequest("give If-Match or If-None-Match, not both")
    if none_match is not None:
        if etag_version("If-None-Match", none_match) is not None:
            raise InvalidRequest("If-None-Match on a write takes only *")
        return 0
    if match is not None:
        version = etag_version("If-Match", match)
        if version == 0:
            raise InvalidRequest(
                'If-Match: "0" is no version; for a record that must be absent use If-None-Match: *'
            )
        return EXISTS if version is None else version
    return None


def item_json(key: str, record: Record, keys_only: bool) -> dict[str, Any]:
    item: dict[str, Any] = {"key": key, "version": record.version}
    if keys_only:
        return item
    item["created"] = record.created
    item["content_type"] = record.content_type
    try:
        item["value"] = record.value.decode()
    except UnicodeDecodeError:
        item["value_base64"] = base64.b64encode(record.value).decode()
    return item


def json_response(value: Any, status: int = 200, **headers: str) -> web.Response:
    return web.Response(
        body=orjson.dumps(value), status=status, content_type="application/json", headers=headers
    )


class Gateway:
    """All handlers, over one dispatcher."""

    def __init__(self, config: RouterConfig, dispatcher: Dispatcher) -> None:
        self.config = config
        self.dispatcher = dispatcher
        self.inflight = 0
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
        app = web.Application(client_max_size=MAX_BATCH_BODY_BYTES, handler_args={"max_field_size": 16384})
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
                except (web.HTTPException, asyncio.CancelledError, ConnectionError):
                    raise
                except Exception:
                    log.exception("%s %s", request.method, request.path)
                    response = problem(InternalError("the router failed; its log tells more"))
                finally:
                    self.inflight -= 1
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
        record = unpack_record(result[2])
        etag = f'"{record.version}"'
        headers = {"ETag": etag, "X-Metastore-Created": str(record.created)}
        if kind != LINEARIZABLE:
            headers["X-Metastore-Age-Ms"] = "unknown" if result[3] is None else str(result[3])
        wanted = request.headers.get("If-None-Match")
        if wanted is not None and (wanted.strip() == "*" or etag in [t.strip() for t in wanted.split(",")]):
            return web.Response(status=304, headers=headers)
        match = request.headers.get("If-Match")
        if match is not None and etag_version("If-Match", match) not in (None, record.version):
            raise ConditionFailed(f"the record is at version {record.version}", version=record.version)
        headers["Content-Type"] = record.content_type or "application/octet-stream"
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
        if len(content_type) > MAX_CONTENT_TYPE_BYTES or not content_type.isascii():
            raise InvalidRequest(f"Content-Type is not ASCII of at most {MAX_CONTENT_TYPE_BYTES} characters")
        ids = self.ids(request)
        value = await self.body(request, MAX_VALUE_BYTES)
        op = [0, PUT, 0, lkey, 0, 0, 0, condition, value, content_type, 0]
        until = asyncio.get_running_loop().time() + deadline_s
        result = await self.in_cell(lkey, lambda: self.dispatcher.write(op, lkey, until, ids))
        version, created = result[2], bool(result[4])
        body = {"key": key, "version": version, "created": created}
        return json_response(body, 201 if created else 200, ETag=f'"{version}"')

    async def body(self, request: web.Request, limit: int) -> bytes:
        """The body; a too large one is refused without reading it whole. Raises TooLarge."""
        length = request.content_length
        if length is not None and length > limit:
            raise TooLarge(f"a body of {length} bytes is over the limit of {limit} bytes")
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.config.deadline_s * 2):
                async for chunk in request.content.iter_chunked(65536):
                    size += len(chunk)
                    if size > limit:
                        raise TooLarge(f"the body is over the limit of {limit} bytes")
                    chunks.append(chunk)
        except TimeoutError:
            raise InvalidRequest("the body did not arrive in time") from None
        return b"".join(chunks)

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
        ns = Namespace(self.dispatcher, name, self.deadline_s(params))
        page = await ns.list(
            params.get("prefix", ""),
            limit=number("limit", params.get("limit", "1000"), 1, MAX_LIST_LIMIT),
            cursor=params.get("cursor") or None,
            keys_only=keys_only,
            consistency=kind,
            max_staleness_ms=None if staleness is None else number("max_staleness_ms", staleness, 0, 10**12),
        )
        items = [item_json(key, record, keys_only) for key, record in page.items]
        return json_response({"items": items, "cursor": page.cursor})

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
        results = await asyncio.gather(*(self.one_of_batch(ns, op) for op in ops))
        return json_response({"results": results})

    async def one_of_batch(self, ns: Namespace, op: Any) -> dict[str, Any]:
        try:
            return await self.batch_op(ns, op)
        except MetastoreError as e:
            return problem_body(e)

    async def batch_op(self, ns: Namespace, op: Any) -> dict[str, Any]:
        if not isinstance(op, dict) or not isinstance(op.get("key"), str):
            raise InvalidRequest("an operation is an object with op and key")
        unknown = set(op) - {"op", "key", "value", "value_base64", "content_type", "if_version", "if_absent"}
        if unknown:
            raise InvalidRequest(f"unknown member {sorted(unknown)[0]!r:.60} in an operation")
        kind, key = op.get("op"), op["key"]
        version, absent = op.get("if_version"), op.get("if_absent", False)
        if version is not None and (type(version) is not int or not 0 < version < 1 << 62):
            raise InvalidRequest(f"if_version = {version!r:.40} is not a version")
        condition_of(version, bool(absent), False)
        if kind == "get":
            record = await ns.get(key)
            if record is None:
                raise NotFound(f"there is no record {key!r:.200}")
            return {"status": 200, **item_json(key, record, False)}
        if kind == "put":
            result = await ns.put(
                key,
                self.batch_value(op),
                version=version,
                absent=bool(absent),
                content_type=str(op.get("content_type", "")),
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
            results = await asyncio.gather(*(self.probe(p.lo) for p in table.in_order()))
            body["partitions_led"] = sum(results)
        return json_response(
            body, 200 if table.complete else 503, **({} if table.complete else {"Retry-After": "1"})
        )

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
