"""Handlers of one record, and of listings."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from metastore.client.namespace import AsyncNamespace
from metastore.client.results import Fence
from metastore.errors import ConditionFailed, InvalidRequest, MetastoreError, NotFound
from metastore.history import FencingToken, Version, history_changed, is_of_another
from metastore.keys import MAX_CONTENT_TYPE_BYTES, is_content_type
from router.bulkheads import CellDispatcher
from router.calls import Call, Handler
from router.idempotency import OneRequest, aged
from router.problems import item_json, result_json

NO_STORE = "no-store"
#: what a value's own type could do in a browser, it does not do here
SANDBOX = "default-src 'none'; sandbox"
REREAD_S = 2.0


def json_response(value: Any, status: int = 200, **headers: str) -> web.Response:
    headers.setdefault("Cache-Control", NO_STORE)
    return web.Response(
        body=orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE),
        status=status,
        content_type="application/json",
        headers=headers,
    )


def etag(version: int) -> str:
    return f'"{version}"'


def etag_version(text: str) -> Version | None:
    """The version in an entity tag that its shape has let pass, None for ``*``."""
    text = text.strip()
    return None if text == "*" else Version(int(text.removeprefix("W/").strip('"')))


def condition(call: Call) -> dict[str, Any]:
    """If-Match and If-None-Match of a write, as the client takes them. Raises InvalidRequest."""
    match, none_match = call.values.get("if_match"), call.values.get("if_none_match")
    if match is not None and none_match is not None:
        raise InvalidRequest("give If-Match or If-None-Match, not both")
    if none_match is not None:
        return {"absent": True}
    if match is None:
        return {}
    version = etag_version(match)
    return {"exists": True} if version is None else {"version": version}


def ttl_s(ttl_ms: int | None, seconds: float | None) -> float | None:
    """Raises InvalidRequest when both are given."""
    if ttl_ms is not None and seconds is not None:
        raise InvalidRequest("give ttl_ms or ttl_s, not both")
    return seconds if ttl_ms is None else ttl_ms / 1000


def fence(call: Call) -> Fence | None:
    """Raises InvalidRequest when both are given."""
    in_query, in_header = call["fence"], call["metastore_fence"]
    if in_query is not None and in_header is not None:
        raise InvalidRequest("give fence or Metastore-Fence, not both")
    text = in_query if in_query is not None else in_header
    if text is None:
        return None
    name, _, token = text.rpartition(":")
    return Fence(name, FencingToken(int(token)))


def consistency(values: dict[str, Any]) -> dict[str, Any]:
    """The consistency of a read: named, or implied by what goes with it. Raises InvalidRequest."""
    kind, staleness = values.get("consistency"), values.get("max_staleness_ms")
    at_least = values.get("at_least")
    if kind is None:
        kind = "stale" if staleness is not None else "at_least" if at_least is not None else "linearizable"
    if (staleness is not None and kind != "stale") or (at_least is not None and kind != "at_least"):
        raise InvalidRequest(
            f"consistency = {kind} with {'max_staleness_ms' if staleness is not None else 'at_least'}: "
            "max_staleness_ms goes with stale, at_least with at_least"
        )
    return {"consistency": kind, "max_staleness_ms": staleness, "at_least": at_least}


def served_type(content_type: str) -> str:
    """The content type that a value is served with. Nodes refuse one that no header can hold; an older one
    may have stored it."""
    plain = is_content_type(content_type) and content_type.strip()
    return content_type if plain else "application/octet-stream"


async def with_current(error: MetastoreError, ns: AsyncNamespace, key: str, left_s: float) -> MetastoreError:
    """A failed condition with the record as it is now: the leader's answer has it, unless it is large
    or the answer is remembered from an earlier attempt."""
    if isinstance(error, ConditionFailed) and error.detail.get("version") and "record" not in error.detail:
        try:
            record = await ns.get(key, deadline_s=min(REREAD_S, max(0.0, left_s)))
            error.detail["version"] = 0 if record is None else record.version
            error.detail["current"] = record
        except MetastoreError:
            pass  # the version alone is an answer too
    return error


class Records:
    """See the module."""

    def __init__(self, dispatcher: CellDispatcher) -> None:
        self.dispatcher = dispatcher

    def handlers(self) -> dict[str, Handler]:
        """By the id of the operation that each answers, in the API's table."""
        return {
            "getRecord": self.get,
            "headRecord": self.get,
            "putRecord": self.put,
            "deleteRecord": self.delete,
            "addToRecord": self.add,
            "renameRecord": self.rename,
            "touchRecord": self.touch,
            "listRecords": self.list,
        }

    def namespace(self, call: Call) -> AsyncNamespace:
        return AsyncNamespace(self.dispatcher, call["namespace"], max(0.0, call.left_s))

    def ids(self, call: Call, *request: Any) -> OneRequest | None:
        """The request id of an Idempotency-Key; ``request``: what makes the request."""
        key = call["idempotency_key"]
        if key is None:
            return None
        scope = (call["namespace"], call["key"])
        request_of_key = [call.operation.id, *request]
        age_s = aged(call["idempotency_age"], call.since_s)
        return OneRequest(self.dispatcher.ids, key, scope, request_of_key, age_s)

    async def explained(self, call: Call, ns: AsyncNamespace, error: MetastoreError) -> MetastoreError:
        """The error of a write as it is answered."""
        error = await with_current(error, ns, call["key"], call.left_s)
        held = error.detail.get("current") or error.detail.get("record")
        if held is not None:
            call.reservation.force(len(held if isinstance(held, bytes) else held.value))
        return error

    # --- reading ----------------------------------------------------------------------------

    async def get(self, call: Call) -> web.Response:
        """GET and HEAD."""
        ns, key = self.namespace(call), call["key"]
        kind = consistency(call.values)
        record, age_ms = await ns.get_with_age(key, **kind)
        if record is None:
            raise NotFound(f"there is no record {key!r:.200} in namespace {ns.name}")
        call.reservation.take(len(record.value))
        tag = etag(record.version)
        headers = {
            "ETag": tag,
            "Cache-Control": "no-cache",
            "Metastore-Created": str(record.created),
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": SANDBOX,
        }
        if record.ttl_ms:
            headers["Metastore-Ttl-Ms"] = str(record.ttl_ms)
        if kind["consistency"] != "linearizable":
            headers["Metastore-Age-Ms"] = "unknown" if age_ms is None else str(age_ms)
        match, none_match = call["if_match"], call["if_none_match"]
        wanted = None if match is None else etag_version(match)
        if wanted is not None and wanted != record.version:
            if is_of_another(wanted, record.version):
                raise history_changed(wanted, record.version)
            raise ConditionFailed(
                f"the record is at version {record.version}", version=record.version, current=record
            )
        if none_match is not None:  # one of another history is not what there is now (R19)
            tags = [etag_version(text) for text in none_match.split(",")]
            if None in tags or record.version in tags:
                return web.Response(status=304, headers=headers)
        headers["Content-Type"] = served_type(record.content_type)
        return web.Response(body=record.value, headers=headers)

    async def list(self, call: Call) -> web.Response:
        ns = self.namespace(call)
        kind = consistency(call.values)
        del kind["at_least"]
        keys_only = call["keys_only"]
        page = await ns.list(
            call["prefix"],
            limit=call["limit"],
            cursor=call["cursor"] or None,
            keys_only=keys_only,
            **kind,
        )
        call.reservation.take(sum(len(key) + len(record.value) for key, record in page.items))
        items = [item_json(key, record, keys_only) for key, record in page.items]
        body = {"items": items, "cursor": page.cursor, "resume": page.resume, "age_ms": page.age_ms}
        return json_response(body)

    # --- writing ----------------------------------------------------------------------------

    async def put(self, call: Call) -> web.Response:
        ns, key = self.namespace(call), call["key"]
        when, ttl, token = condition(call), ttl_s(call["ttl_ms"], call["ttl_s"]), fence(call)
        raised = call["raise_fence"]
        content_type = call.request.headers.get("Content-Type", "")
        if len(content_type) > MAX_CONTENT_TYPE_BYTES or not content_type.isascii():
            raise InvalidRequest(f"Content-Type is not ASCII of at most {MAX_CONTENT_TYPE_BYTES} characters")
        value = await call.body()
        call.in_time()
        ids = self.ids(call, when, ttl, token, content_type, value, *([raised] if raised else []))
        try:
            result = await ns.put(
                key,
                value,
                **when,
                ttl_s=ttl,
                content_type=content_type,
                fence=token,
                raise_fence=raised,
                ids=ids,
                deadline_s=call.left_s,
            )
        except MetastoreError as e:
            raise await self.explained(call, ns, e) from None
        status = 201 if result.created else 200
        return json_response(result_json(key, result), status, ETag=etag(result.version))

    async def delete(self, call: Call) -> web.Response:
        ns, key = self.namespace(call), call["key"]
        when, token = condition(call), fence(call)
        ids = self.ids(call, when, token)
        try:
            version = await ns.delete(key, **when, fence=token, ids=ids)
        except MetastoreError as e:
            raise await self.explained(call, ns, e) from None
        if not version:
            raise NotFound(f"there was no record {key!r:.200} in namespace {ns.name}; nothing was changed")
        return json_response(result_json(key, version))

    async def add(self, call: Call) -> web.Response:
        ns, key = self.namespace(call), call["key"]
        when, token, delta = condition(call), fence(call), call["delta"]
        ids = self.ids(call, when, token, delta)
        try:
            result = await ns.add(key, delta, **when, fence=token, ids=ids)
        except MetastoreError as e:
            raise await self.explained(call, ns, e) from None
        return json_response(result_json(key, result), ETag=etag(result.version))

    async def rename(self, call: Call) -> web.Response:
        ns, key, to, replace = self.namespace(call), call["key"], call["to"], call["replace"]
        match, token = call["if_match"], fence(call)
        version = None if match is None else etag_version(match)
        ids = self.ids(call, version, token, to, replace)
        try:
            written = await ns.rename(key, to, version=version, replace=replace, fence=token, ids=ids)
        except ConditionFailed as e:
            if match is None and not e.detail.get("version"):
                raise NotFound(
                    f"there is no record {key!r:.200} in namespace {ns.name}; nothing was changed"
                ) from None
            raise
        return json_response(result_json(to, written), ETag=etag(written))

    async def touch(self, call: Call) -> web.Response:
        ns, key = self.namespace(call), call["key"]
        match = call["if_match"]
        version = None if match is None else etag_version(match)
        try:
            result = await ns.touch(key, version=version)
        except MetastoreError as e:
            raise await self.explained(call, ns, e) from None
        if result is None:
            if match is not None:
                raise ConditionFailed("condition failed: there is no such record", version=0)
            raise NotFound(f"there is no record {key!r:.200} in namespace {ns.name}")
        return json_response(result_json(key, result), ETag=etag(result.version))
