"""The router's HTTP beside aiohttp's own ceiling: ``python -m bench.http``.

64 keep-alive connections with one request each outstanding, as bytes made beforehand. The ceiling is an aiohttp
application whose handler answers 100 bytes from memory, nothing else. Shown is the CPU of the process that speaks HTTP, which
for the router includes asking the node; the nodes' own comes beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from bench.compare import VALUE, fill
from bench.drive import Driven, Load, Result, close, connect
from bench.measure import cpu_seconds, show
from bench.peers import KEYS, MetastorePeer, key
from bench.wire import Wrong
from cellctl.dev_files import pick_ports

CONNECTIONS = 64
BARE = """
import sys, uvloop
from aiohttp import web
async def get(request):
    return web.Response(body=b"x" * 100, content_type="application/octet-stream")
async def put(request):
    await request.read()
    return web.Response(body=b'{"key":"k","version":1,"created":true}', content_type="application/json")
app = web.Application()
app.router.add_get("/v1/kv/bench/{key:.*}", get)
app.router.add_put("/v1/kv/bench/{key:.*}", put)
uvloop.install()
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
"""


class Http:
    """One keep-alive connection of HTTP/1.1."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._number = 0
        self._due: list[int] = []
        self._buffer = b""

    def begin(self) -> bytes:
        return b""

    def _request(self, method: str, n: int, body: bytes = b"") -> tuple[bytes, int]:
        self._number += 1
        self._due.append(self._number)
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        head = f"{method} /v1/kv/bench/{key(n % KEYS)} HTTP/1.1\r\nHost: {self.host}\r\n{length}\r\n"
        return head.encode() + body, self._number

    def get(self, n: int) -> tuple[bytes, int]:
        return self._request("GET", n)

    def put(self, n: int) -> tuple[bytes, int]:
        return self._request("PUT", n, VALUE)

    def listing(self, n: int) -> tuple[bytes, int]:
        raise NotImplementedError

    def join(self, requests: Sequence[bytes]) -> bytes:
        return b"".join(requests)

    def feed(self, data: bytes) -> list[int]:
        self._buffer += data
        done = []
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            if head[9:11] != b"20":
                raise Wrong(f"HTTP said {self._buffer[:200]!r}")
            at = head.index(b"content-length:") + 15
            stop = head.find(b"\r\n", at)
            length = int(head[at : stop if stop >= 0 else len(head)])
            if len(self._buffer) < end + 4 + length:
                break
            self._buffer = self._buffer[end + 4 + length :]
            done.append(self._due.pop(0))
        return done


async def turn(address: tuple[str, int], kind: str, seconds: float, speaker_pid: int, others: list[int]) -> tuple[Result, float]:  # fmt: skip
    connections: list[Driven] = [
        await connect(address, Http(f"{address[0]}:{address[1]}")) for _ in range(CONNECTIONS)
    ]
    await asyncio.sleep(0.2)
    try:
        await Load(connections, kind, 1, KEYS).run(1.0, [speaker_pid])
        before = cpu_seconds(others)
        result = await Load(connections, kind, 1, KEYS).run(seconds, [speaker_pid])
        return result, (cpu_seconds(others) - before) / result.operations * 1e6
    finally:
        await close(connections)


async def measure(folder: Path, turns: int, seconds: float) -> dict[str, Any]:
    peer = MetastorePeer(folder)
    port = pick_ports("127.0.0.1", ["bare"], set())["bare"]
    bare = await asyncio.create_subprocess_exec(sys.executable, "-c", BARE, str(port))
    try:
        await fill(peer)
        router = peer.cluster.json()["router"]
        host, _, router_port = router["url"].removeprefix("http://").partition(":")
        ways = {
            "aiohttp alone": (("127.0.0.1", port), bare.pid, []),
            "router": ((host, int(router_port)), router["pid"], peer.pids()),
        }
        results: dict[str, dict[str, list[tuple[Result, float]]]] = {}
        for _ in range(turns):
            for kind in ("get", "put"):
                for name, (address, pid, others) in ways.items():
                    got = await turn(address, kind, seconds, pid, others)
                    results.setdefault(kind, {}).setdefault(name, []).append(got)
        return {
            kind: {
                name: {
                    "per_second": round(statistics.median(r.rate for r, _ in rs)),
                    "http_us": round(statistics.median(r.server_us for r, _ in rs), 1),
                    "nodes_us": round(statistics.median(n for _, n in rs), 1),
                    "p99_ms": round(statistics.median(r.ms(0.99) for r, _ in rs), 2),
                }
                for name, rs in by.items()
            }
            for kind, by in results.items()
        }
    finally:
        bare.kill()
        await bare.wait()
        peer.stop()


def tables(found: dict[str, Any]) -> None:
    rows = []
    for kind, by in found.items():
        for name, v in by.items():
            ratio = v["http_us"] / by["aiohttp alone"]["http_us"]
            rows.append(
                [kind, name, f"{v['per_second']:,}", v["http_us"], f"{ratio:.2f}", v["nodes_us"], v["p99_ms"]]
            )
    show(
        ["", "", "per second", "CPU of the HTTP process µs/op", "against aiohttp", "of the nodes", "p99 ms"],
        rows,
    )


def run(turns: int, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="metastore-bench-") as folder:
        return uvloop.run(measure(Path(folder), turns, seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    found = run(args.turns, args.seconds)
    tables(found)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
