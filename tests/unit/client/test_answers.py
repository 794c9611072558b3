"""A server that answers anything: every call ends with an error that has an outcome, never with any other exception."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import Any

import pytest

from metastore.client import Add, AsyncClient, AsyncNamespace, Compare, Delete, Get, Put
from metastore.client.watch import direct_watch
from metastore.errors import (
    BY_STATUS,
    MetastoreError,
    Moved,
    NotLeader,
    OutcomeUnknown,
    RequestIdExpired,
    Unavailable,
    WrongRouting,
)
from metastore.history import Version
from metastore.keys import END_OF_RING
from metastore.operations import DELETE, PUT
from metastore.routing.connection import NodeConnection
from metastore.routing.dispatcher import Dispatcher
from metastore.wire import frames
from metastore.wire.answer_checks import check_answer, check_end
from tests.unit.client.fake_node import EPOCH, RECORD, FakeNode, failed, good
from tests.unit.client.nonsense import mutations

AT_A_TIME = 100
Call = Callable[[AsyncNamespace[bytes]], Awaitable[Any]]
TXN_OPS: list[Get | Put[bytes] | Delete | Add] = [Get("d/a"), Put("d/b", b"v"), Delete("d/c"), Add("d/e", 1)]
READS: dict[str, Call] = {
    "get": lambda ns: ns.get("k"),
    "get stale": lambda ns: ns.get("k", consistency="stale", max_staleness_ms=500),
    "touch": lambda ns: ns.touch("k"),
    "list": lambda ns: ns.list("d/"),
    "list all": lambda ns: ns.list(""),
    "list keys": lambda ns: ns.list("d/", keys_only=True),
}
WRITES: dict[str, Call] = {
    "put": lambda ns: ns.put("k", b"v"),
    "put if": lambda ns: ns.put("k", b"v", version=Version(3)),
    "delete": lambda ns: ns.delete("k"),
    "add": lambda ns: ns.add("k", 2),
    "txn": lambda ns: ns.txn([Compare.absent("d/x")], TXN_OPS),
}
CALLS = READS | WRITES


async def each(cases: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """All of them, some side by side."""
    gate = asyncio.Semaphore(AT_A_TIME)

    async def one(case: Callable[[], Awaitable[None]]) -> None:
        async with gate:
            await case()

    await asyncio.gather(*(one(case) for case in cases))


@contextlib.asynccontextmanager
async def client(
    node: FakeNode, name: str = "x", patience_s: float = 0.02
) -> AsyncIterator[AsyncNamespace[bytes]]:
    """A namespace of a client of its own, which gives up soon, by attempts and not by the clock."""
    dispatcher = Dispatcher([node.address], name=name, election_patience_s=patience_s)
    try:
        dispatcher.table.merge(node.table)
        yield AsyncNamespace(dispatcher, "n", 60.0)
    finally:
        await dispatcher.close()


async def outcome(node: FakeNode, name: str, call: Call) -> Any:
    """What a call returns or raises, of a client of its own."""
    async with client(node, name) as ns:
        try:
            return await call(ns)
        except MetastoreError as e:
            return e


async def sample(name: str) -> list[Any]:
    """The operation that a call sends."""
    sent: list[list[Any]] = []

    def answer(_: str, op: list[Any]) -> Any:
        sent.append(op)
        return good(op)

    async with FakeNode(answer) as node:
        await outcome(node, "sample", CALLS[name])
    return sent[0]


@pytest.mark.parametrize("name", CALLS)
async def test_the_right_answer_is_taken(name: str) -> None:
    op = await sample(name)
    assert check_answer(op, good(op)) == ""
    assert check_answer(op, failed(op)) == ""


@pytest.mark.parametrize("make", [good, failed])
@pytest.mark.parametrize("name", CALLS)
async def test_every_mutation_of_every_answer(name: str, make: Callable[[list[Any]], list[Any]]) -> None:
    op = await sample(name)
    found = list(mutations(make(op)[1:]))
    assert len(found) > 60

    def answer(number: str, op: list[Any]) -> Any:
        mutated = found[int(number)][1]
        return [op[0], *mutated] if isinstance(mutated, list) else mutated

    malformed = 0
    async with FakeNode(answer) as node:

        async def case(number: int) -> None:
            nonlocal malformed
            what, told = found[number][0], await outcome(node, f"{number}", CALLS[name])
            answered = answer(f"{number}", op)
            wrong = not isinstance(answered, list) or bool(check_answer(op, answered))
            malformed += wrong
            assert not wrong or isinstance(told, MetastoreError), what
            if isinstance(told, MetastoreError):
                assert name in WRITES or told.outcome == "none", (what, told)
                assert not wrong or name in READS or isinstance(told, OutcomeUnknown), (what, told)

        await each(partial(case, number) for number in range(len(found)))
    assert malformed > 0.6 * len(found), "few of them are right by chance"


@pytest.mark.parametrize("status", [*sorted(BY_STATUS), 77, 1 << 15])
async def test_every_error_has_an_outcome(status: int) -> None:
    """Of a read it is none, whatever the server says, and of a write that a server knows no name for, unknown."""
    async with FakeNode(lambda name, op: [op[0], status, "as told", {}]) as node:
        for name, call in CALLS.items():
            if status == WrongRouting.status:
                continue  # that is asked for a newer table, until the deadline
            told = await outcome(node, name, call)
            assert isinstance(told, MetastoreError), name
            assert told.outcome == "none" or name in WRITES, (name, told)
            if status not in BY_STATUS:
                assert isinstance(told, OutcomeUnknown if name in WRITES else Unavailable), (name, told)


FRAMES = {
    "no list": frames.pack(frames.RESPONSE, 5),
    "none": frames.pack(frames.RESPONSE, None),
    "a map": frames.pack(frames.RESPONSE, {"a": 1}),
    "results of no list": frames.pack(frames.RESPONSE, [5]),
    "empty results": frames.pack(frames.RESPONSE, [[]]),
    "unhashable ids": frames.pack(frames.RESPONSE, [[[], 0, 1]]),
    "cut": frames.pack(frames.RESPONSE, [[1, 0, b"x"]])[:-2],
    "another version": b"\x00\x00\x00\x03\x09\x04\x90",
    "no msgpack": frames.HEADER.pack(3, frames.WIRE_VERSION, frames.RESPONSE) + b"\xc1",
    "endless": b"\xff" * 64,
    "too many": frames.HEADER.pack(2 + (3 << 20), frames.WIRE_VERSION, frames.RESPONSE)
    + b"\xdc\x00\xc0"
    + (b"\xdc\x3f\xfd" + b"\x90" * 0x3FFD) * 192
    + b"\x90" * ((3 << 20) - 3 - 192 * 0x4000),
    "an error of no form": frames.pack(frames.ERROR, [6]),
    "an error of another": frames.pack(frames.ERROR, [6, 7, 8]),
    "a hello": frames.pack(frames.HELLO_OK, {}),
    "events": frames.pack(frames.EVENTS, [1]),
    "topology": frames.pack(frames.TOPOLOGY, 9),
    "status": frames.pack(frames.STATUS, [[]]),
    "the end of a watch": frames.pack(frames.WATCH_END, [1, 2]),
}


@pytest.mark.parametrize("what", FRAMES)
async def test_frames_of_no_form(what: str) -> None:
    calls = CALLS if len(FRAMES[what]) < 1000 else ("get", "put")
    async with FakeNode(lambda client, op: FRAMES[what]) as node:

        async def case(name: str) -> None:
            told = await outcome(node, name, CALLS[name])
            assert isinstance(told, MetastoreError), name
            assert told.outcome == ("unknown" if name in WRITES else "none"), (name, told)

        await each(partial(case, name) for name in calls)


async def test_a_status_of_no_form() -> None:
    forms: tuple[Any, ...] = ([5], [[]], 7, [{}, {}], {})
    for odd in forms:
        frame = frames.pack(frames.STATUS, odd)
        async with FakeNode(watch=partial(lambda frame, name, body: [frame], frame)) as node:
            loop = asyncio.get_running_loop()
            host, _, port = node.address.rpartition(":")
            _, connection = await loop.create_connection(lambda: NodeConnection("c", "x"), host, int(port))
            asked = asyncio.ensure_future(connection.status(5))
            await asyncio.sleep(0)
            connection.watch([0, b"", END_OF_RING, None, 0, b""], lambda *_: None, lambda _: None)
            with pytest.raises(MetastoreError):
                await asked


# --- topology ---------------------------------------------------------------------------------------


async def test_every_mutation_of_a_topology() -> None:
    """A client that is told nonsense knows nothing, or goes on with what makes sense."""
    async with FakeNode() as node:
        wires = [frame for _, frame in mutations([node.table.to_wire()])]
        assert len(wires) > 300
        node.topology = lambda name, wire: wires[int(name)]
        outcomes: set[str] = set()

        async def case(number: int) -> None:
            dispatcher = Dispatcher([node.address], name=f"{number}", election_patience_s=0.02)
            try:
                await dispatcher.start(0.3)
                await AsyncNamespace(dispatcher, "n", 0.3).get("k")
            except MetastoreError as e:
                outcomes.add(e.outcome)
            finally:
                await dispatcher.close()

        await each(partial(case, number) for number in range(len(wires)))
    assert outcomes == {"none"}


@pytest.mark.parametrize("error", [NotLeader, Moved])
async def test_a_hint_of_a_huge_epoch_is_not_believed(error: type[MetastoreError]) -> None:
    for ahead in (65 << 16, 1 << 40, (1 << 62) - EPOCH):
        detail = {"partition": 0, "leader": "ghost", "epoch": EPOCH + ahead, "rpc": None}
        told = iter([detail, detail])

        def answer(_: str, op: list[Any], told: Any = told, error: type[MetastoreError] = error) -> list[Any]:
            lie = next(told, None)
            return good(op) if lie is None else [op[0], error.status, "as told", lie]

        async with FakeNode(answer) as node, client(node, patience_s=60) as ns:
            assert await ns.get("k") is not None
            placement = ns.dispatcher.table.partitions[0]
            assert (placement.leader, placement.epoch) == ("n1", EPOCH)


async def test_an_epoch_that_proved_wrong_does_not_stay() -> None:
    """A whole table with a huge epoch is believed, for want of a better one; until another than its leader serves."""
    ghost = 1 << 60

    def lie(name: str, wire: dict[str, Any]) -> Any:
        wire["partitions"][0] |= {
            "leader": "n2",
            "epoch": ghost,
            "replicas": ["n2", "n1"],
            "stores": ["s2", "s1"],
        }
        wire["nodes"].append({**wire["nodes"][0], "node": "n2", "rpc": other.address})
        return [wire]

    def no_leader(_: str, op: list[Any]) -> list[Any]:
        return [op[0], NotLeader.status, "n1 leads", {"partition": 0, "leader": "n1", "epoch": EPOCH + 7}]

    async with (
        FakeNode(no_leader) as other,
        FakeNode(topology=lie) as node,
        AsyncClient([node.address], deadline_s=60) as client,
    ):
        table = client.dispatcher.table
        assert (table.partitions[0].leader, table.partitions[0].epoch) == ("n2", ghost)
        assert await client.namespace("n").get("k") is not None
        assert (table.partitions[0].leader, table.partitions[0].epoch) == ("n1", EPOCH + 7)
        assert table.apply_hint(0, "n3", EPOCH + 8), "and what is heard next is believed"


# --- watches ----------------------------------------------------------------------------------------


def events(body: list[Any], at: int) -> list[Any]:
    key = body[2] + b"k"
    return [body[0], at + 1, [[PUT, key, at, RECORD], [DELETE, key, at + 1, None]]]


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_watch, "RETRY_S", (0.001, 0.01))


@pytest.mark.usefixtures("hurried")
async def test_every_mutation_of_what_a_watch_is_told() -> None:
    """The watch ends with an error, or tells what is right: it is never silent."""
    probe = [1, 0, b"\0" * 8 + b"n\0d/", b"\1", None, 0, b"n\0d/"]
    found = [what for what, _ in mutations(events(probe, 5)[1:])]
    assert len(found) > 200
    silent: list[str] = []
    told_of: list[Any] = []
    outcomes: set[str] = set()

    def told(name: str, body: list[Any]) -> list[bytes]:
        if not told_of:
            told_of.extend(mutated for _, mutated in mutations(events(body, 5)[1:]))
        mutated = told_of[int(name)]
        frame = [body[0], *mutated] if isinstance(mutated, list) else mutated
        begun = frames.pack(frames.EVENTS, [body[0], 4, []])
        after = frames.pack(frames.EVENTS, events(body, 8))
        return [begun, frames.pack(frames.EVENTS, frame), after]

    async with FakeNode(watch=told) as node:

        async def case(number: int) -> None:
            async with client(node, f"{number}") as ns:
                watcher = ns.watch("d/")
                try:
                    event = await watcher.next(20)
                    if event is None:
                        silent.append(found[number])
                except MetastoreError as e:
                    outcomes.add(e.outcome)
                finally:
                    await watcher.close()

        await each(partial(case, number) for number in range(len(found)))
    assert not silent
    assert outcomes == {"none"}


@pytest.mark.usefixtures("hurried")
async def test_a_watch_whose_end_is_malformed() -> None:
    outcomes: list[str] = []
    detail = {"leader": "n2", "epoch": EPOCH}
    ends = [end for _, end in mutations([1, NotLeader.status, "n2 leads", detail]) if check_end(end)]
    assert len(ends) > 60

    def told(name: str, body: list[Any]) -> list[bytes]:
        end = ends[int(name)]
        if isinstance(end, list) and end and type(end[0]) is int and end[0] == 1:
            end = [body[0], *end[1:]]
        return [frames.pack(frames.EVENTS, [body[0], 4, []]), frames.pack(frames.WATCH_END, end)]

    async with FakeNode(watch=told) as node:

        async def case(number: int) -> None:
            async with client(node, f"{number}") as ns:
                watcher = ns.watch("d/")
                try:
                    await watcher.next(30)
                except MetastoreError as e:
                    outcomes.append(e.outcome)
                finally:
                    await watcher.close()

        await each(partial(case, number) for number in range(len(ends)))
    assert outcomes == ["none"] * len(ends)


@pytest.mark.usefixtures("hurried")
async def test_a_version_that_is_too_high_ends_the_watch() -> None:
    """What comes after it is of lower versions, and would be passed over without a word."""

    def told(name: str, body: list[Any]) -> list[bytes]:
        return [
            frames.pack(frames.EVENTS, [body[0], 1 << 50, []]),
            frames.pack(frames.EVENTS, events(body, 8)),
        ]

    async with FakeNode(watch=told) as node, client(node) as ns, ns.watch("d/") as watcher:
        with pytest.raises(Unavailable, match="malformed, the last one: a change at version 8 came after"):
            await watcher.next(20)


@pytest.mark.parametrize(
    "tail", [[0, 8, 1 << 60, True], [RequestIdExpired.status, "old", {"index": 1 << 60, "reused": False}]]
)
async def test_an_index_that_nobody_has_is_not_taken(tail: list[Any]) -> None:
    """One beyond all histories would be the stamp of every later write."""
    async with FakeNode(lambda name, op: [op[0], *tail]) as node, client(node) as ns:
        with pytest.raises(OutcomeUnknown):
            await ns.put("k", b"v")
        assert ns.dispatcher.ids.last_seen(0) == 0
