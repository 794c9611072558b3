"""The client on real nodes: typed values, both twins, many threads, forks, batching, consistency."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
import sys
import threading
from typing import Any

import pytest

from metastore import (
    JSON,
    MSGPACK,
    TEXT,
    Add,
    AsyncClient,
    Client,
    Compare,
    Delete,
    Get,
    Put,
    Record,
    RequestIds,
)
from metastore.client import AddResult, Fence, PutResult
from metastore.errors import (
    ClientClosed,
    ConditionFailed,
    CrossPartition,
    DecodeFailed,
    DidNotHappen,
    InvalidRequest,
    NotANumber,
    TooStale,
)
from metastore.history import FencingToken, Version
from metastore.routing.connection import NodeConnection
from tests.integration.harness import Cluster, refusal
from tests.processes import PATIENCE_S


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Points:
    """A codec of one's own."""

    content_type = "application/x-point"

    def encode(self, value: Point) -> bytes:
        return f"{value.x},{value.y}".encode()

    def decode(self, raw: bytes) -> Point:
        return Point(*map(int, raw.split(b",")))


def nodes_of(cluster: Cluster) -> list[str]:
    return [n["rpc"] for n in cluster.json()["nodes"]]


async def test_values_are_what_the_codec_makes_of_them(shared: Cluster) -> None:
    async with shared.client() as client:
        points = client.namespace("points", Points())
        put = await points.put("a/p", Point(1, 2))
        assert await points.get("a/p") == Record(put.version, put.version, Point(1, 2), Points.content_type)
        raw = await client.namespace("points").get("a/p")
        assert raw is not None
        assert raw.value == b"1,2"
        async with points.watch("a/") as watcher:
            await points.put("a/q", Point(3, 4), content_type="text/plain")
            event = await asyncio.wait_for(anext(watcher), 30)
            assert event.record is not None
            assert (event.record.value, event.record.content_type) == (Point(3, 4), "text/plain")
            assert [(k, r.value) for k, r in (await points.list("a/")).items] == [
                ("a/p", Point(1, 2)),
                ("a/q", Point(3, 4)),
            ]
            # a value of another codec: told where it is met, and the watch goes on behind it
            await client.namespace("points", JSON).put("a/r", {"x": 1})
            await points.put("a/s", Point(5, 6))
            with pytest.raises(DecodeFailed, match="a/r"):
                await asyncio.wait_for(anext(watcher), 30)
            assert (await asyncio.wait_for(anext(watcher), 30)).key == "a/s"
        with pytest.raises(DecodeFailed):
            await points.get("a/r")
        # what a transaction did is done, also when one of its reads cannot be decoded
        done = await points.txn([], [Get("a/r"), Put("a/t", Point(7, 8))])
        assert isinstance(done.results[0], DecodeFailed)
        assert isinstance(done.results[1], PutResult)
        with pytest.raises(TypeError, match="codec"):
            await client.namespace("points").put("a/u", "text")  # type: ignore[arg-type]
        with pytest.raises(AttributeError):
            await points.batch([Put("a/u", Point(1, 1)), Put("a/v", "no point")])  # type: ignore[arg-type]
        assert await points.get("a/u") is None, "nothing of a batch is sent when part of it cannot be"
        held = await points.txn(
            [Compare("a/p", "value", "==", Point(1, 2)), Compare.absent("a/u")], [Delete("a/p")], [Get("a/p")]
        )
        assert held.succeeded


@pytest.mark.parametrize(("codec", "value"), [(JSON, [1, {"a": None}]), (MSGPACK, {b"k": 1}), (TEXT, "ä")])
def test_for_threads_as_for_tasks(shared: Cluster, codec: Any, value: Any) -> None:
    with Client(nodes_of(shared), cluster="dev") as client:
        ns = client.namespace("twins", codec)
        first = ns.put("d/k", value, absent=client.namespace("twins").get("d/k") is None, ttl_s=600)
        record = ns.get("d/k")
        assert record is not None
        assert (record.value, record.version, record.ttl_ms) == (value, first.version, 600_000)
        touched = ns.touch("d/k", version=first.version)
        assert touched is not None
        assert touched.ttl_s == 600
        with pytest.raises(ConditionFailed):
            ns.put("d/k", value, version=Version(1 << 40))
        count = ns.add("d/count", 5)
        counted = ns.get("d/count")
        assert counted is not None
        assert counted.value == (str(count.value) if codec is TEXT else count.value)
        with pytest.raises(NotANumber):
            ns.add("d/k")
        results = ns.batch([Get("d/k"), Put("d/n", value), Add("d/count"), Delete("d/none"), Add("d/k")])
        assert isinstance(results[0], Record)
        assert isinstance(results[1], PutResult)
        assert isinstance(results[2], AddResult)
        assert results[3] == 0
        assert isinstance(results[4], NotANumber)
        page = ns.list("d/", limit=2)
        rest = ns.list("d/", cursor=page.cursor)
        assert [k for k, _ in page.items + rest.items] == ["d/count", "d/k", "d/n"]
        assert [k for k, _ in ns.scan("d/", page=1)] == ["d/count", "d/k", "d/n"]
        with ns.watch("d/", after=rest.resume) as watcher:
            deleted = ns.delete("d/n")
            event = next(watcher)
            assert (event.kind, event.key, event.version) == ("delete", "d/n", deleted)
            assert watcher.next(0.01) is None
            resume = watcher.resume
        assert list(watcher) == []
        ns.delete("d/count")
        with ns.watch("d/", after=resume) as watcher:
            assert next(watcher).key == "d/count"
        assert ns.get_with_age("d/k")[0] is not None
    with pytest.raises(ClientClosed):
        ns.get("d/k")


def test_many_threads_share_one_client(shared: Cluster) -> None:
    with Client(nodes_of(shared)) as client:
        ns = client.namespace("threads")
        errors: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for n in range(50):
                    ns.add("total")
                    ns.put(f"own/{number}", b"%d" % n)
                    found = ns.get(f"own/{number}")
                    assert found is not None
                    assert found.value == b"%d" % n
            except BaseException as e:
                errors.append(e)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not errors
        total = ns.get("total")
        assert total is not None
        assert int(total.value) == 16 * 50


FORKING = """
import os, sys
from metastore import Client

client = Client(sys.argv[1].split(","))
ns = client.namespace("forks")
ns.add("count")
lock = ns.lock("locks/parents")
lock.acquire()
watcher = ns.watch("w/")
watcher.started()
pids = []
for number in range(3):
    pid = os.fork()
    if pid == 0:
        try:
            for _ in range(20):
                ns.add("count")
            for mine in (lambda: next(watcher), lock.release, lambda: lock.check() or lock.release()):
                try:
                    mine()
                except Exception as e:
                    assert type(e).__name__ == "ClientClosed" and "fork" in str(e), repr(e)
                else:
                    raise AssertionError("the parent's lock was usable")
            with ns.lock("locks/own"):
                ns.put("w/child", b"x")
        except BaseException as e:
            print(repr(e), file=sys.stderr, flush=True)
            os._exit(1)
        sys.exit(0)     # with everything that runs at exit
    pids.append(pid)
for _ in range(20):
    ns.add("count")
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
assert codes == [0, 0, 0], codes
assert int(ns.get("count").value) == 81, ns.get("count")
assert [next(watcher).key for _ in range(3)] == ["w/child"] * 3
lock.check()
lock.release()
print("good")
"""


def test_a_fork_starts_anew(shared: Cluster) -> None:
    """Request ids are the process's own: a child's writes are not taken for its parent's retries."""
    done = subprocess.run(
        [sys.executable, "-c", FORKING, ",".join(nodes_of(shared))],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "good\n"), done.stderr


def test_a_client_that_is_forgotten_ends(shared: Cluster) -> None:
    """Without a word on stderr, where asyncio tells in its debug mode of what was left open. It tells too of each
    callback that took a tenth of a second: that says something of the machine only, and is left out."""
    code = (
        "import sys, threading, gc, logging\nfrom metastore import Client\n"
        "logging.getLogger('asyncio').addFilter(lambda r: not r.msg.startswith('Executing '))\n"
        "ns = Client(sys.argv[1].split(',')).namespace('n')\nns.put('k', b'1')\n"
        "assert threading.active_count() == 2\ndel ns\ngc.collect()\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "left = Client(sys.argv[1].split(','))\nleft.start()\nleft.namespace('n').get('k')\nprint('end')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", code, ",".join(nodes_of(shared))],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


async def test_operations_of_one_turn_share_frames(shared: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    async with shared.client() as client:
        ns = client.namespace("frames")
        await asyncio.gather(*(ns.put(f"k{n}", b"x") for n in range(64)))
        frames: list[int] = []
        flush = NodeConnection._flush

        def counted(self: NodeConnection) -> None:
            if len(self._out) > 1:  # beside them the client asks for the topology now and then
                frames.append(len(self._out))
            flush(self)

        monkeypatch.setattr(NodeConnection, "_flush", counted)
        await asyncio.gather(*(ns.put(f"k{n}", b"y") for n in range(300)))
        assert sum(frames) == 300
        assert len(frames) <= 3, "one for each node"
        frames.clear()
        await ns.batch([Get(f"k{n}") for n in range(300)])
        assert len(frames) <= 3
        assert client.stats().under_way == 0


async def test_consistency(shared: Cluster) -> None:
    async with shared.client() as client:
        ns = client.namespace("reads")
        for n in range(30):
            put = await ns.put("a/k", b"%d" % n)
            mine = await ns.get("a/k", at_least=put.version)
            assert mine is not None
            assert mine.value == b"%d" % n
            latest = await ns.get("a/k")
            assert latest is not None
            assert latest.version == put.version
        stale, age_ms = await ns.get_with_age("a/k")
        assert stale is not None
        assert age_ms is None or age_ms >= 0
        far = put.version + 1000
        await refusal(lambda s: ns.get("a/k", at_least=far, deadline_s=s), TooStale)
        for wrong in ({"consistency": "fast"}, {"consistency": "at_least"}, {"max_staleness_ms": 5}):
            with pytest.raises(InvalidRequest):
                await ns.get("a/k", **wrong)


async def test_named_request_ids_are_carried_out_once(shared: Cluster) -> None:
    """In two clients, as it were before and after a crash of the caller."""
    async with shared.client() as one, shared.client() as two:
        first = await one.namespace("orders").add("count", 5, ids=RequestIds.named("order 17"))
        again = await two.namespace("orders").add("count", 5, ids=RequestIds.named("order 17"))
        assert first == again
        other = await two.namespace("orders").add("count", 5, ids=RequestIds.named("order 18"))
        assert other.value == first.value + 5


async def test_what_is_refused_and_how(shared: Cluster) -> None:
    async with shared.client() as client:
        ns = client.namespace("refused")
        with pytest.raises(CrossPartition, match="tag"):
            await ns.txn([], [Put(f"k{n}", b"x") for n in range(64)])
        await ns.put("a/k", b"1", fence=Fence("f", FencingToken(7)))
        with pytest.raises(DidNotHappen):
            await ns.batch([], deadline_s=1) or await ns.put("a/k", b"2", fence=Fence("f", FencingToken(6)))
        results = await ns.batch([Put("a/k", b"2"), Get("a/k")], fence=Fence("f", FencingToken(6)))
        assert isinstance(results[0], DidNotHappen)
        assert isinstance(results[1], Record)
        for key, limit in (("", 1), ("x" * 3000, 1), ("a/k", 0)):
            with pytest.raises(InvalidRequest):
                await ns.get(key) if limit else await ns.list(limit=0)
        with pytest.raises(InvalidRequest):
            client.namespace("Not Valid")
    for nodes in (["127.0.0.1"], "a:b", [":80"], ["h:70000"]):
        with pytest.raises(InvalidRequest, match="host:port"):
            AsyncClient(nodes)
    with pytest.raises(InvalidRequest, match="router='http://h:8080'"):
        AsyncClient("http://h:8080")
    with pytest.raises(InvalidRequest, match="router"):
        AsyncClient()
    with pytest.raises(InvalidRequest, match="URL"):
        Client(router="127.0.0.1:8080")
    with pytest.raises(ClientClosed):
        await ns.get("a/k")
    # one string will do, with commas
    async with AsyncClient(", ".join(nodes_of(shared))) as client:
        assert await client.namespace("refused").get("a/k")
