"""Handlers of namespace policies."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from aiohttp import web

from metastore.admin.namespaces import NamespaceAdmin, NamespaceRecord
from metastore.errors import CoordinationError, NotFound, Unavailable
from metastore.namespaces import Policy
from router.bulkheads import CellDispatcher
from router.calls import Call
from router.records import condition, etag, json_response

T = TypeVar("T")


def namespace_json(name: str, policy: Policy, revision: int | None) -> dict[str, Any]:
    plain = policy.to_plain()
    ready = plain.pop("ready")
    return {"name": name, "policy": plain, "ready": ready, "revision": revision}


class Namespaces:
    """See the module. ``admin``: None for a router without a control plane (in tests)."""

    def __init__(self, dispatcher: CellDispatcher, admin: NamespaceAdmin | None) -> None:
        self.dispatcher = dispatcher
        self._admin = admin
        self._running: set[asyncio.Task[Any]] = set()

    @property
    def admin(self) -> NamespaceAdmin:
        if self._admin is None:
            raise Unavailable(
                "this router knows no etcd, so it cannot read or change namespaces; set etcd in its settings"
            )
        return self._admin

    async def _to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Also when the client goes away: what was begun is finished, or undone."""
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def close(self, timeout_s: float) -> None:
        """Wait for what is under way."""
        if self._running:
            await asyncio.wait(self._running, timeout=timeout_s)

    def _known(self) -> dict[str, Policy]:
        """What this router knows of them without etcd."""
        return self.dispatcher.table.namespaces

    async def list(self, call: Call) -> web.Response:
        try:
            found = [namespace_json(r.name, r.policy, r.revision) for r in await self.admin.list()]
            return json_response({"namespaces": found, "from_copy": False})
        except (CoordinationError, Unavailable):
            known = [namespace_json(name, policy, None) for name, policy in sorted(self._known().items())]
            return json_response({"namespaces": known, "from_copy": True})

    async def get(self, call: Call) -> web.Response:
        name = call["name"]
        try:
            found = await self.admin.get(name)
        except (CoordinationError, Unavailable):
            policy = self._known().get(name)
            if policy is None:
                raise
            return json_response(namespace_json(name, policy, None))
        if found is None:
            raise NotFound(f"namespace {name} has no policy of its own: it has the default one")
        return self._answer(found)

    async def put(self, call: Call) -> web.Response:
        when = self._condition(call)
        wanted = await call.json()
        work = self.admin.put(call["name"], wanted, call.until, **when)
        found, made = await self._to_the_end(work)
        return self._answer(found, 201 if made else 200)

    async def delete(self, call: Call) -> web.Response:
        when = self._condition(call)
        when.pop("exists", None)  # If-Match: * asks for what is asked anyway
        await self._to_the_end(self.admin.delete(call["name"], call.until, **when))
        return web.Response(status=204)

    @staticmethod
    def _condition(call: Call) -> dict[str, Any]:
        when = condition(call)
        if "version" in when:
            when["revision"] = when.pop("version")
        return when

    @staticmethod
    def _answer(found: NamespaceRecord, status: int = 200) -> web.Response:
        body = namespace_json(found.name, found.policy, found.revision)
        return json_response(body, status, ETag=etag(found.revision))
