"""One suite for the coordination service: in memory, and a real etcd that is really killed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from cellctl.dev_files import pick_ports
from metastore.coordination.etcd import EtcdCoordinator
from metastore.coordination.interface import KV, Change, Compare, Coordinator, Delete, Get, Known, Put
from metastore.coordination.memory import MemoryCoordinator, MemoryEtcd
from metastore.errors import CoordinationError, CoordinationUnavailable, CoordinationUnknown
from tests.conftest import RealEtcd
from tests.processes import PATIENCE_S

#: long enough for a busy machine to keep a session alive, short enough to wait for its end
TTL_S = 4.0


class Backend(Protocol):
    """A service and the ways to hurt it."""

    def connect(self, known: Known | None = None) -> Coordinator: ...
    def away(self) -> None: ...
    def back(self) -> None: ...
    async def compact(self) -> None: ...
    def close(self) -> None: ...


class MemoryBackend:
    def __init__(self) -> None:
        self.service = MemoryEtcd()

    def connect(self, known: Known | None = None) -> Coordinator:
        return MemoryCoordinator(self.service, time.monotonic, known)

    def away(self) -> None:
        self.service.up = False

    def back(self) -> None:
        self.service.up = True

    async def compact(self) -> None:
        self.service.compact()

    def close(self) -> None:
        pass


class EtcdBackend:
    """``how``: killed and restarted on the same data, or paused and resumed."""

    def __init__(self, etcd: RealEtcd, how: str) -> None:
        self.etcd = etcd
        self.how = how

    def connect(self, known: Known | None = None) -> Coordinator:
        return EtcdCoordinator([self.etcd.endpoint], known)

    def away(self) -> None:
        if self.how == "kill":
            self.etcd.kill()
        else:
            self.etcd.pause()

    def back(self) -> None:
        if self.how == "kill":
            self.etcd.start()
        else:
            self.etcd.resume()

    async def compact(self) -> None:
        from aetcd import rpc

        coordinator = EtcdCoordinator([self.etcd.endpoint])
        revision, _ = await coordinator.range("/")
        client = await coordinator.client()
        await client.kvstub.Compact(rpc.CompactionRequest(revision=revision, physical=True))
        await coordinator.close()

    def close(self) -> None:
        self.etcd.kill()


@pytest.fixture(params=["memory", "etcd-kill", "etcd-pause"])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    if request.param == "memory":
        made: Backend = MemoryBackend()
    else:
        ports = pick_ports("127.0.0.1", ["client", "peer"], set())
        etcd = RealEtcd(tmp_path / "etcd", ports["client"], ports["peer"])
        etcd.start()
        made = EtcdBackend(etcd, request.param.removeprefix("etcd-"))
    yield made
    made.close()


async def until(what: str, condition: Callable[[], Any], timeout_s: float = PATIENCE_S) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.02)
    return value


async def eventually(call: Callable[[], Any], timeout_s: float = PATIENCE_S) -> Any:
    """Call until the service answers."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return await call()
        except CoordinationError:
            assert time.monotonic() < deadline, "the service does not come back"
            await asyncio.sleep(0.05)


async def connected(c: Coordinator) -> Coordinator:
    """``c`` once it has been answered: on a busy machine the first attempt to connect may time out."""
    await eventually(lambda: c.get("/none"))
    return c


class Seen:
    """What a watch delivered; the net content must equal the service's."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.changes: list[Change] = []

    def __call__(self, revision: int, changes: list[Change]) -> None:
        for change in changes:
            before = self.content.get(change.key)
            assert before == (change.old.value if change.old else None), "a change was missed or came twice"
            if change.new is None:
                del self.content[change.key]
            else:
                self.content[change.key] = change.new.value
        self.changes += changes


async def test_transactions(backend: Backend) -> None:
    c = await connected(backend.connect())
    made = await c.txn([Compare.absent("/t/a")], [Put("/t/a", b"1"), Put("/t/b", b"2")])
    assert made.succeeded
    again = await c.txn([Compare.absent("/t/a")], [Put("/t/a", b"x")], [Get("/t/a"), Get("/t/none")])
    assert not again.succeeded
    kv, none = again.kvs
    assert kv == KV("/t/a", b"1", made.revision, made.revision, 0)
    assert none is None
    won = await c.txn(
        [Compare.mod_revision_is("/t/a", made.revision), Compare.value_is("/t/b", b"2")],
        [Put("/t/a", b"3"), Delete("/t/b")],
    )
    assert won.succeeded
    assert won.revision > made.revision
    stale = await c.txn([Compare.mod_revision_is("/t/a", made.revision)], [Put("/t/a", b"4")])
    assert not stale.succeeded
    assert not (await c.txn([Compare.value_is("/t/b", b"2")], [Put("/t/b", b"5")])).succeeded
    revision, kvs = await c.range("/t/")
    assert [(kv.key, kv.value) for kv in kvs] == [("/t/a", b"3")]
    assert revision == c.revision == won.revision
    assert (await c.get("/t/b")) is None
    await c.close()


async def test_a_transaction_that_needs_what_lies_under_a_prefix_to_be_unchanged(backend: Backend) -> None:
    c = await connected(backend.connect())

    async def is_unchanged(prefix: str, revision: int) -> bool:
        return (await c.txn([Compare.unchanged_since(prefix, revision)], [Put("/q/done", b"")])).succeeded

    assert await is_unchanged("/p/", 0), "nothing is there"
    made = await c.txn([], [Put("/p/a", b"1"), Put("/p/b", b"1"), Put("/pa", b"1")])
    revision, _ = await c.range("/p/")
    assert revision == made.revision
    assert await is_unchanged("/p/", revision)
    assert not await is_unchanged("/p/", revision - 1)
    assert not await is_unchanged("/p/", 0)
    await c.txn([], [Delete("/p/a"), Put("/pa", b"2")])
    assert await is_unchanged("/p/", revision), "what is gone, or lies elsewhere, says nothing"
    await c.txn([], [Put("/p/b", b"2")])
    assert not await is_unchanged("/p/", revision), "changed"
    revision, _ = await c.range("/p/")
    await c.txn([], [Put("/p/new", b"1")])
    assert not await is_unchanged("/p/", revision), "new"
    await c.close()


async def test_a_session_is_kept_and_its_keys_go_with_it(backend: Backend) -> None:
    c, other = await connected(backend.connect()), await connected(backend.connect())
    session = c.session(TTL_S)
    leases: list[int] = []
    session.on_change = lambda s: leases.append(s.lease_id)
    session.start()
    await until("a lease", lambda: session.alive)
    await c.txn([], [Put("/s/key", b"mine", session.lease_id)])
    await asyncio.sleep(2 * TTL_S)
    assert session.alive
    kv = await other.get("/s/key")
    assert kv is not None
    assert kv.lease == session.lease_id
    await session.close()
    await until("the key is gone", lambda: session.lease_id == 0)
    assert await other.get("/s/key") is None
    assert leases[0] != 0
    await c.close()
    await other.close()


async def test_a_lost_session_is_made_anew(backend: Backend) -> None:
    c = await connected(backend.connect())
    session = c.session(TTL_S)
    session.start()
    await until("a lease", lambda: session.alive)
    first = session.lease_id
    backend.away()
    await until("its end is known by our own clock", lambda: not session.alive)
    backend.back()
    await until("a lease again", lambda: session.alive)
    await eventually(lambda: c.txn([], [Put("/s/k", b"v", session.lease_id)]))
    assert first
    await c.close()


async def test_a_watch_misses_nothing_while_the_service_is_away(backend: Backend) -> None:
    c, writer, seen = await connected(backend.connect()), await connected(backend.connect()), Seen()
    await writer.txn([], [Put("/w/a", b"1"), Put("/w/b", b"1"), Put("/x/other", b"0")])
    watch = c.watch("/w/", seen)
    await asyncio.wait_for(watch.ready.wait(), PATIENCE_S)
    assert seen.content == {"/w/a": b"1", "/w/b": b"1"}
    await writer.txn([], [Put("/w/c", b"2"), Delete("/w/a")])
    await until("live changes", lambda: seen.content == {"/w/b": b"1", "/w/c": b"2"})
    backend.away()
    await asyncio.sleep(0.3)
    backend.back()
    await eventually(lambda: writer.txn([], [Put("/w/b", b"3"), Delete("/w/c"), Put("/w/d", b"4")]))
    await until("changes after it", lambda: seen.content == {"/w/b": b"3", "/w/d": b"4"})
    await c.close()
    await writer.close()


async def test_a_watch_survives_compaction(backend: Backend) -> None:
    """What was compacted away while the watcher was cut off still shows as net changes."""
    c, writer, seen = await connected(backend.connect()), await connected(backend.connect()), Seen()
    await writer.txn([], [Put(f"/w/{i}", b"old") for i in range(5)])
    watch = c.watch("/w/", seen)
    await asyncio.wait_for(watch.ready.wait(), PATIENCE_S)
    if isinstance(c, MemoryCoordinator):
        c.cut = True
    else:  # hold the watcher's task, as a stalled loop would, so that its stream is far behind
        assert isinstance(c, EtcdCoordinator)
        watch.close()
        await asyncio.sleep(0.1)
    await writer.txn([], [Delete("/w/0"), Put("/w/1", b"new")])
    for i in range(20):
        await writer.txn([], [Put("/w/2", b"%d" % i)])
    await backend.compact()
    if isinstance(c, MemoryCoordinator):
        c.cut = False
    else:
        from metastore.coordination.etcd_watch import EtcdWatch

        assert isinstance(watch, EtcdWatch)
        watch._task = asyncio.create_task(watch._run(reread=False))
    expect = {"/w/1": b"new", "/w/2": b"19", "/w/3": b"old", "/w/4": b"old"}
    await until("the net changes", lambda: seen.content == expect)
    await c.close()
    await writer.close()


async def test_a_watch_takes_more_than_a_message_holds(real_etcd: RealEtcd) -> None:
    """What it missed comes in parts, and each is larger than what gRPC takes by itself."""
    c, writer, seen = EtcdCoordinator([real_etcd.endpoint]), EtcdCoordinator([real_etcd.endpoint]), Seen()
    watch = c.watch("/w/", seen)
    await asyncio.wait_for(watch.ready.wait(), PATIENCE_S)
    watch.close()
    for i in range(12):
        await eventually(lambda i=i: writer.txn([], [Put(f"/w/{i}", bytes(1 << 20))]))  # type: ignore[misc]
    watch._task = asyncio.create_task(watch._run(reread=False))
    await until("all of it", lambda: len(seen.content) == 12)
    await until("it hears", lambda: watch.silent_s < 1 and not c.trouble)
    await c.close()
    await writer.close()


async def test_a_watch_knows_for_how_long_it_has_heard_nothing(backend: Backend) -> None:
    c = await connected(backend.connect())
    watch = c.watch("/w/", Seen(), quiet_s=0.2)
    await asyncio.wait_for(watch.ready.wait(), PATIENCE_S)
    await until("it hears", lambda: watch.silent_s < 1)
    backend.away()
    await until("it hears nothing", lambda: watch.silent_s > 3)
    backend.back()
    await until("it hears again", lambda: watch.silent_s < 1)
    await c.close()


async def test_a_full_etcd_is_told_as_full(tmp_path: Path) -> None:
    """Alarm NOSPACE: readings, watches and leases go on. It is over once somebody has made room."""
    from aetcd import rpc

    ports = pick_ports("127.0.0.1", ["client", "peer"], set())
    quota = ("--quota-backend-bytes=8388608",)
    etcd = RealEtcd(tmp_path / "etcd", ports["client"], ports["peer"], flags=quota)
    etcd.start()
    c = EtcdCoordinator([etcd.endpoint])
    try:
        await c.txn([], [Put("/f/a", b"small")])
        session = c.session(TTL_S)
        session.start()
        await until("a lease", lambda: session.alive)
        refused = None
        for _ in range(40):
            try:
                await c.txn([], [Put("/f/b", bytes(1 << 20))])
            except CoordinationUnknown:  # a disk that is slow today
                continue
            except CoordinationUnavailable as e:
                refused = e
                break
        assert refused is not None
        assert not c.takes_writes
        assert "alarm NOSPACE" in c.trouble
        assert await c.get("/f/a") is not None
        await asyncio.sleep(1.5 * TTL_S)
        assert session.alive
        assert "etcdctl alarm disarm" in c.trouble, "a reading that went well says nothing of writes"
        client = await c.client()
        await client.kvstub.Compact(rpc.CompactionRequest(revision=c.revision, physical=True))
        await client.maintenancestub.Defragment(rpc.DefragmentRequest())
        for alarm in (await client.maintenancestub.Alarm(rpc.AlarmRequest())).alarms:
            disarm = rpc.AlarmRequest(action=2, memberID=alarm.memberID, alarm=alarm.alarm)
            await client.maintenancestub.Alarm(disarm)
        await eventually(lambda: c.txn([], [Put("/f/a", b"again")]))
        assert c.takes_writes
        assert not c.trouble
    finally:
        await c.close()
        etcd.kill()


async def test_away_is_told_apart_from_unknown(backend: Backend) -> None:
    """A request that certainly had no effect is Unavailable; one that was sent is Unknown."""
    c = await connected(backend.connect())
    await c.txn([], [Put("/u/a", b"0")])
    backend.away()
    if isinstance(backend, MemoryBackend):
        with pytest.raises(CoordinationUnavailable):
            await c.txn([], [Put("/u/a", b"1")])
        backend.back()
        backend.service.lose_next_answer = True
        with pytest.raises(CoordinationUnknown):
            await c.txn([], [Put("/u/a", b"1")])
        value = (await c.get("/u/a")).value  # type: ignore[union-attr]
        assert value == b"1"
    else:
        with pytest.raises(CoordinationError) as caught:
            await c.txn([], [Put("/u/a", b"1")])
        if isinstance(backend, EtcdBackend) and backend.how == "pause":
            assert isinstance(caught.value, CoordinationUnknown)
        with pytest.raises(CoordinationError):  # reads never pretend
            await c.get("/u/a")
        backend.back()
        kv = await eventually(lambda: c.get("/u/a"))
        assert kv.value in (b"0", b"1")
        if isinstance(caught.value, CoordinationUnavailable):
            assert kv.value == b"0"
    await c.close()


async def test_another_identity_is_not_trusted(backend: Backend) -> None:
    """R13: a cluster id that changed, or a revision that went back."""
    c = await connected(backend.connect())
    await c.txn([], [Put("/i/a", b"0")])
    assert c.cluster_id is not None
    for known in (Known(c.cluster_id + 1), Known(revision=c.revision + 1000)):
        changed = backend.connect(known)
        with pytest.raises(CoordinationUnavailable, match=r"replaced|restored"):
            await changed.get("/i/a")
        with pytest.raises(CoordinationUnavailable):
            await changed.txn([], [Put("/i/a", b"1")])
        await changed.close()
    same = backend.connect(c.known)
    assert (await same.get("/i/a")).value == b"0"  # type: ignore[union-attr]
    await same.close()
    await c.close()


async def test_a_dead_endpoint_is_passed_over(real_etcd: RealEtcd) -> None:
    dead = pick_ports("127.0.0.1", ["dead"], set())["dead"]
    c = EtcdCoordinator([f"127.0.0.1:{dead}", real_etcd.endpoint])
    seen = Seen()
    watch = c.watch("/e/", seen)
    assert (await eventually(lambda: c.txn([], [Put("/e/a", b"1")]))).succeeded
    await asyncio.wait_for(watch.ready.wait(), PATIENCE_S)
    await until("the watch finds the live one", lambda: seen.content == {"/e/a": b"1"})
    await c.close()


async def test_an_endpoint_that_greets_slowly_is_reached(real_etcd: RealEtcd) -> None:
    """A third of a second until a connection is greeted is no reason to call etcd away. On a machine that is so busy that
    it takes three times as long, one of ten is reached at once."""

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        etcd_reader, etcd_writer = await asyncio.open_connection("127.0.0.1", real_etcd.port)
        await asyncio.gather(pump(reader, etcd_writer), pump(etcd_reader, writer))

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
        writer.close()

    async def is_reached() -> bool:
        c = EtcdCoordinator([address])
        try:
            return await c.get("/none") is None
        except CoordinationUnavailable:
            return False
        finally:
            await c.close()

    proxy = await asyncio.start_server(late, "127.0.0.1", 0)
    address = f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    assert any([await is_reached() for _ in range(10)])
    proxy.close()
