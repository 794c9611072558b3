"""The node's own small HTTP port: liveness, readiness, status, usage and metrics. No data."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson
from aiohttp import web

if TYPE_CHECKING:
    from metastore.node.node import Node


DIGEST_TRIES = 20
MAX_USAGE_ROWS = 10_000


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def _metrics(node: Node) -> str:
    status = node.status()
    leading = sum(1 for p in status["partitions"] if p["role"] == "active")
    rows = [
        ("metastore_partitions", "replicas held", len(status["partitions"])),
        ("metastore_partitions_leading", "partitions led", leading),
        ("metastore_client_connections", "open client connections", len(node.clients)),
        ("metastore_loop_stalls_total", "times the loop stood still for over 500 ms", status["stalls"]),
        ("metastore_peer_messages_dropped_total", "messages not buffered for a peer", node.links.dropped),
        ("metastore_elections_won_total", "terms won", node.control.elections_won),
    ]
    rows += [
        (f"metastore_storage_{name}", f"storage: {name}", value)
        for name, value in status["storage"].items()
        if isinstance(value, int | float)
    ]
    label = f'{{node="{node.config.node}",cell="{node.config.cell}"}}'
    lines = []
    for name, text, value in rows:
        kind = "counter" if name.endswith("_total") else "gauge"
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name}{label} {value}"]
    return "\n".join(lines) + "\n"


async def serve_http(node: Node) -> web.AppRunner:
    """Start serving on ``config.http``; the caller cleans the runner up. Raises OSError."""

    async def livez(_: web.Request) -> web.Response:
        return _json({"status": "ok"}, 200)

    async def readyz(_: web.Request) -> web.Response:
        status = node.status()
        ready = not node.stopping and bool(status["partitions"])
        return _json({"ready": ready, "partitions": len(status["partitions"])}, 200 if ready else 503)

    async def status(_: web.Request) -> web.Response:
        return _json(node.status())

    async def digest(request: web.Request) -> web.Response:
        """What replicas of a partition compare: equal at equal ``applied`` (I2)."""
        host = node.hosts.get(int(request.match_info["partition"]))
        if host is None:
            return _json({"code": "moved", "detail": "this node holds no such partition"}, 404)
        for _ in range(DIGEST_TRIES):
            found = await host.digest()
            if found is not None:
                return _json(found)
        return _json({"code": "unavailable", "detail": "it changes too fast; try again"}, 503)

    async def usage(_: web.Request) -> web.Response:
        """Records and bytes of the partitions led here, by namespace; ``more``: of how many it is not told."""
        namespaces, more = node.policies.held(MAX_USAGE_ROWS)
        return _json({"node": node.config.node, "namespaces": namespaces, "more": more})

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=_metrics(node), content_type="text/plain")

    app = web.Application()
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/v1/status", status)
    app.router.add_get("/v1/usage", usage)
    app.router.add_get("/v1/partitions/{partition:[0-9]{1,5}}/digest", digest)
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    host, _, port = node.config.http.rpartition(":")
    await web.TCPSite(runner, host, int(port), reuse_address=True).start()
    await asyncio.sleep(0)
    return runner
