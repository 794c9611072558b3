"""The node's own small HTTP port: liveness, readiness, status, usage, metrics, a partition's
snapshot, and the request to hand its leadership over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from aiohttp import web

from metastore.clock import now_ns
from metastore.core.events import TransferWanted
from metastore.errors import InvalidRequest, MetastoreError, NotFound, NotLeader, Overloaded, Unavailable
from metastore.node.backups import Backups
from metastore.node.recorder import Asked
from metastore.problems import problem
from metastore.web import WebServer

if TYPE_CHECKING:
    from metastore.node.node import Node
    from metastore.partition.partition import Partition


T = TypeVar("T")
DIGEST_TRIES = 20
#: a digest reads a whole partition: one at a time, and few wait for their turn
MAX_DIGESTS = 16
DIGEST_AGE_S = 1.0
MAX_CONNECTIONS = 256
ANSWER_BYTES = 64 << 20
MAX_USAGE_ROWS = 10_000
#: how long a hand-over may take, both ways if the target does not win
HAND_OVER_S = 5.0


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def _metrics(node: Node) -> str:
    status = node.status()
    leading = sum(1 for p in status["partitions"] if p["role"] == "active")
    rows = [
        ("metastore_partitions", "replicas held", len(status["partitions"])),
        ("metastore_partitions_leading", "partitions led", leading),
        ("metastore_client_connections", "open client connections", status["clients"]["connections"]),
        ("metastore_loop_stalls_total", "times the loop stood still for over 500 ms", status["stalls"]),
        ("metastore_peer_messages_dropped_total", "messages not buffered for a peer", node.links.dropped),
        (
            "metastore_snapshots",
            "snapshots being sent; each pins the state's pages",
            len(status["snapshots"]),
        ),
        (
            "metastore_snapshot_oldest_seconds",
            "for how long the oldest of them is under way",
            max((pin["seconds"] for pin in status["snapshots"]), default=0),
        ),
        ("metastore_snapshots_ended_total", "snapshots broken off for being slow", node.pins.ended),
        ("metastore_etcd_connected", "whether etcd answers", int(status["etcd"]["connected"])),
        (
            "metastore_etcd_trouble",
            "whether etcd says that it is not well, or is not trusted",
            int(bool(status["etcd"]["trouble"])),
        ),
        (
            "metastore_etcd_watch_silent_seconds",
            "for how long the watch of etcd has heard nothing",
            status["etcd"]["watch_silent_s"],
        ),
        ("metastore_elections_won_total", "terms won", node.control.elections_won),
        ("metastore_records_bad", "records in etcd that are not valid", len(node.control.records.bad)),
        ("metastore_records_bad_total", "times that such a record came", node.control.records.bad_total),
        ("metastore_records_aside", "partitions whose ranges are others'", len(node.topology.aside)),
        ("metastore_namespaces", "namespaces with a policy", status["topology"]["namespaces"]),
        ("metastore_namespaces_full", "namespaces that hold their quota", status["namespaces"]["full"]),
        (
            "metastore_namespaces_nearly_full",
            "namespaces that hold at least four fifths of their quota",
            status["namespaces"]["near"],
        ),
        (
            "metastore_topology_bytes",
            "the size of the complete topology, as clients get it",
            status["topology"]["bytes"],
        ),
        ("metastore_topology_limit_bytes", "the limit of that size", status["topology"]["limit_bytes"]),
    ]
    rows += [
        (f"metastore_storage_{name}", f"storage: {name}", value)
        for name, value in status["storage"].items()
        if isinstance(value, int | float)
    ]
    rows += [
        (f"metastore_clients_{name}", f"clients: {name}", value)
        for name, value in status["clients"].items()
        if name != "connections"
    ]
    label = f'{{node="{node.config.node}",cell="{node.config.cell}"}}'
    lines = []
    for name, text, value in rows:
        kind = "counter" if name.endswith("_total") else "gauge"
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name}{label} {value}"]
    return "\n".join(lines) + "\n"


async def in_slices(work: Generator[None, None, T]) -> T:
    """The result of ``work``; others have a turn whenever it yields."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            found: T = done.value
            return found
        await asyncio.sleep(0)


class Digests:
    """Digests of partitions, one at a time; who asks for one that is being made shares it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._turn = asyncio.Lock()
        self._making: dict[int, asyncio.Task[dict[str, Any]]] = {}
        #: partition -> (digest, until when it is given again while nothing changes)
        self._made: dict[int, tuple[dict[str, Any], float]] = {}

    async def of(self, partition: int) -> dict[str, Any]:
        """What replicas of a partition compare: equal at equal ``applied`` (I2). Raises NotFound,
        Overloaded, Unavailable."""
        host = self.node.partitions.get(partition)
        if host is None:
            raise NotFound(f"this node holds no replica of partition {partition}")
        task = self._making.get(partition)
        made = self._made.get(partition)
        if made is not None and made[0]["applied"] == host.applied and time.monotonic() < made[1]:
            return made[0]
        if task is None:
            if len(self._making) >= MAX_DIGESTS:
                raise Overloaded(
                    f"{MAX_DIGESTS} digests wait already, the limit of a node; try again", retry_after_s=1
                )
            task = asyncio.get_running_loop().create_task(self._make(host))
            self._making[partition] = task
            task.add_done_callback(lambda _: self._making.pop(partition, None))
        return await asyncio.shield(task)

    async def _make(self, host: Partition) -> dict[str, Any]:
        async with self._turn:
            for _ in range(DIGEST_TRIES):
                found = await in_slices(host.digest())
                if found is not None:
                    self._made[host.p] = found, time.monotonic() + DIGEST_AGE_S
                    return found
        raise Unavailable(
            f"partition {host.p} applied entries during each attempt at its digest; try again",
            retry_after_s=1,
        )


async def hand_over(node: Node, partition: int, to: str) -> dict[str, Any]:
    """R11: lead ``partition`` no more, in favour of ``to`` ("": the replica that lacks least). Returns once
    somebody else leads, as this node sees it. Raises NotFound, NotLeader, InvalidRequest, Unavailable."""
    host = node.partitions.get(partition)
    if host is None:
        raise NotFound(f"this node holds no replica of partition {partition}")
    replica, term = host.replica, host.replica.term
    if term is None or replica.role != "active":
        leader = replica.leader_node
        raise NotLeader(f"partition {partition} is led by {leader or 'nobody'}", leader=leader)
    me = node.config.node
    targets = sorted(
        (n for n, _ in term.config.members() if n != me and n in node.links.connected()),
        key=lambda n: -term.progress[n].match,
    )
    targets.sort(key=lambda n: bool(node.core.ctx.lapses.waits_ns(now_ns(), n)))
    if to and to not in targets:
        raise InvalidRequest(
            f"{to} cannot lead partition {partition}; connected replicas: {', '.join(targets) or 'none'}"
        )
    if not targets or not replica.can_transfer(to or targets[0]):
        raise Unavailable(
            f"no replica of partition {partition} can become leader now: none is connected and up to date; see: cellctl status",
            retry_after_s=1,
        )
    node.core.handle(now_ns(), TransferWanted(partition, to or targets[0]))
    node.ticks.run_effects()
    until = time.monotonic() + HAND_OVER_S
    while replica.role in ("resigning", "resigned") or replica.leader_node == me:
        if time.monotonic() > until:
            raise Unavailable(
                f"{to or targets[0]} did not become leader of partition {partition} in time; the leader is as before",
                retry_after_s=1,
            )
        await asyncio.sleep(0.002)
    return {"partition": partition, "from": me, "to": replica.leader_node, "epoch": replica.sealed_epoch}


async def serve_http(node: Node) -> WebServer:
    """Start serving on ``config.http_listen``, or ``http``; the caller stops it. Raises OSError."""
    digests, backups, asked = Digests(node), Backups(node), Asked(node)

    async def livez(_: web.Request) -> web.Response:
        return _json({"status": "ok"}, 200)

    async def readyz(_: web.Request) -> web.Response:
        partitions = len(node.partitions)
        ready = not node.stopping and partitions > 0
        body: dict[str, Any] = {"ready": ready, "partitions": partitions}
        if node.identity.why:  # R13
            body |= {"why": node.identity.why, "do": node.identity.do}
        return _json(body, 200 if ready else 503)

    async def status(_: web.Request) -> web.Response:
        return _json(node.status())

    async def topology(_: web.Request) -> web.Response:
        return _json(node.status_pages.topology.wire())

    async def control(_: web.Request) -> web.Response:
        """What the control plane's records are rebuilt from, when etcd has lost them."""
        return _json(node.status_pages.control())

    async def digest(request: web.Request) -> web.Response:
        try:
            return _json(await digests.of(int(request.match_info["partition"])))
        except MetastoreError as e:
            return problem(e, request.method == "HEAD")

    async def handover(request: web.Request) -> web.Response:
        try:
            query = request.query.get("to", "")
            return _json(await hand_over(node, int(request.match_info["partition"]), query))
        except MetastoreError as e:
            return problem(e, False)

    async def snapshot(request: web.Request) -> web.StreamResponse:
        try:
            return await backups.send(request, int(request.match_info["partition"]))
        except MetastoreError as e:
            return problem(e, request.method == "HEAD")

    async def recording(_: web.Request) -> web.Response:
        """What the core heard lately, for ``python -m metastore.replay``."""
        try:
            return web.Response(body=await asked.pack(), content_type="application/octet-stream")
        except MetastoreError as e:
            return problem(e, False)

    async def usage(_: web.Request) -> web.Response:
        """Records and bytes of the partitions led here, by namespace; ``more``: of how many it is not told."""
        namespaces, more = node.quotas.held(MAX_USAGE_ROWS)
        return _json({"node": node.config.node, "namespaces": namespaces, "more": more})

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=_metrics(node), content_type="text/plain")

    app = web.Application(client_max_size=64 << 10)
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/v1/status", status)
    app.router.add_get("/v1/topology", topology)
    app.router.add_get("/v1/control", control)
    app.router.add_get("/v1/recording", recording, allow_head=False)
    app.router.add_get("/v1/usage", usage)
    app.router.add_get("/v1/partitions/{partition:[0-9]{1,5}}/digest", digest)
    app.router.add_get("/v1/partitions/{partition:[0-9]{1,5}}/snapshot", snapshot, allow_head=False)
    app.router.add_post("/v1/partitions/{partition:[0-9]{1,5}}/handover", handover)
    app.router.add_get("/metrics", metrics)
    server = WebServer(
        web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=2.0),
        max_connections=MAX_CONNECTIONS,
        patience_s=node.config.client_patience_s,
        answer_bytes=ANSWER_BYTES,
    )
    await server.start(node.config.http_listen or node.config.http)
    return server
