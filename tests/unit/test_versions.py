"""Two builds that meet: the highest version that both speak, or a clear word on whose turn it is."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastore.core.messages import Lineage, PreVote, Process, Run
from metastore.errors import InvalidRequest, NoCommonVersion, ProtocolError, from_wire
from metastore.node import clients
from metastore.node.peers import PeerConnection, PeerLinks
from metastore.routing.connection import NodeConnection
from metastore.wire import frames
from metastore.wire.peer_messages import encode
from metastore.wire.versions import (
    OPTIONAL,
    UNTOLD,
    Levels,
    Spoken,
    agree,
    build,
    from_header,
    read_spoken,
    spoken_at,
    to_header,
)
from router import rpc
from tests.unit.client.fake_node import FakeNode
from tests.unit.node.single import Single
from tests.unit.node.test_bounds import Wire, gets

SPOKEN = st.tuples(st.integers(1, 9), st.integers(0, 4), st.sampled_from(["", "0.1.0", "1.2 dev"])).map(
    lambda t: Spoken(t[0], t[0] + t[1], t[2])
)


@given(SPOKEN, SPOKEN)
def test_the_highest_that_both_speak(mine: Spoken, theirs: Spoken) -> None:
    """Whoever says it; and where there is none, both name the same side as the one to upgrade."""
    common = set(range(mine[0], mine[1] + 1)) & set(range(theirs[0], theirs[1] + 1))
    if common:
        assert agree(mine, "a", theirs, "b") == agree(theirs, "b", mine, "a") == max(common)
        return
    older = "a" if mine.highest < theirs.lowest else "b"
    for told in ((mine, "a", theirs, "b"), (theirs, "b", mine, "a")):
        with pytest.raises(NoCommonVersion, match=f"upgrade {older} first") as found:
            agree(*told)
        assert f"a speaks {mine}" in found.value.message
        assert f"b speaks {theirs}" in found.value.message


@given(SPOKEN)
def test_what_is_told_comes_back(spoken: Spoken) -> None:
    assert read_spoken([*spoken, "and more"]) == spoken
    assert from_header(to_header(spoken)) == spoken
    assert spoken_at([1, 2, list(spoken)], 2) == spoken
    assert spoken_at([1, 2], 2) == from_header(None) == UNTOLD


@pytest.mark.parametrize(
    "raw",
    [None, 7, [], [1, 1], [0, 1, ""], [2, 1, ""], [1, 1 << 16, ""], [True, 1, ""], [1, 1, b""], [1, 1, "x" * 65],
     [1, 1, "\n"], [1, 1, "", *range(20)]],
)  # fmt: skip
def test_what_makes_no_sense_is_no_version(raw: Any) -> None:
    with pytest.raises(ProtocolError, match="malformed hello"):
        read_spoken(raw)


@pytest.mark.parametrize("text", ["", "1", "x 1", "1 x 0.1", "-1 1 b", "1 999999999 b", "2 1 b"])
def test_what_makes_no_sense_is_no_header(text: str) -> None:
    with pytest.raises(ProtocolError):
        from_header(text)


# --- nodes ------------------------------------------------------------------------------------------------


class Pipe:
    """A transport: what is written comes to the other side at once."""

    def __init__(self) -> None:
        self.other: Any = None
        self.closed = False
        self.sent: list[tuple[int, Any]] = []

    def write(self, data: bytes) -> None:
        self.sent += frames.FrameDecoder().feed(data)
        asyncio.get_running_loop().call_soon(lambda: self.closed or self.other.data_received(data))

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True

    abort = close


class Pair:
    """Node ``a`` dials node ``b``. ``levels``: their feature levels, as they are now; ``got``: what each was told, in order."""

    def __init__(
        self,
        first: Spoken = UNTOLD,
        second: Spoken = UNTOLD,
        levels: tuple[Levels, Levels] = (Levels(), Levels()),
    ) -> None:
        self.got: list[Any] = []
        self.accused: list[str] = []
        self.levels = list(levels)
        me = [Process(name, f"s{name}", "1") for name in "ab"]
        self.links = [
            PeerLinks(
                "c",
                m,
                Lineage((Run(1, "1"),)),
                lambda p, ms: self.got.extend(ms),
                lambda n: None,
                lambda n: None,
            )
            for m in me
        ]
        for links, spoken in zip(self.links, (first, second), strict=True):
            links.spoken, links.not_yet = spoken, ""
            links.on_accused = lambda by, why, seen: self.accused.append(why)
        for at, links in enumerate(self.links):
            links.levels = lambda at=at: self.levels[at]  # type: ignore[misc]
            links.on_level = lambda level, at=at: self.learn(at, level)  # type: ignore[misc]
        self.dials = PeerConnection(self.links[0], ("b", "sb"))
        self.answers = PeerConnection(self.links[1], None)
        self.pipes = Pipe(), Pipe()
        self.pipes[0].other, self.pipes[1].other = self, self.dials
        self.answers.transport = self.pipes[1]  # type: ignore[assignment]

    def learn(self, at: int, level: int) -> None:
        """As ``features.Features`` does it."""
        if level > self.levels[at].level:
            self.got.append(level)
            self.levels[at] = self.levels[at]._replace(level=level)
            self.links[at].raised()

    async def meet(self) -> None:
        self.dials.connection_made(self.pipes[0])  # type: ignore[arg-type]
        await self.settle()

    async def settle(self) -> None:
        for _ in range(9):
            await asyncio.sleep(0)

    def send(self) -> None:
        """From ``a`` to ``b``, once this turn is over."""
        self.links[0].queue("b", PreVote(0, 1, 2))
        self.links[0].flush()

    @property
    def connected(self) -> list[list[str]]:
        return [links.connected() for links in self.links]

    def data_received(self, data: bytes) -> None:
        """As ``clients.ClientConnection`` does it."""
        for kind, body in frames.FrameDecoder().feed(data):
            if kind != frames.PEER_HELLO:
                self.answers.handle(kind, body)
                continue
            try:
                self.answers.accept(body)
            except ProtocolError as e:
                self.pipes[1].write(frames.pack(frames.ERROR, [e.status, e.message, e.detail]))

    def end(self) -> None:
        for connection in (self.dials, self.answers):
            connection.connection_lost(None)


async def test_nodes_use_the_highest_version_that_both_speak() -> None:
    pair = Pair(Spoken(1, 3, "old"), Spoken(2, 7, "new"))
    await pair.meet()
    assert (pair.dials.version, pair.answers.version) == (3, 3)
    assert [links.connected() for links in pair.links] == [["b"], ["a"]]
    pair.end()


@pytest.mark.parametrize("spans", [((1, 1), (2, 3)), ((2, 3), (1, 1))])
async def test_nodes_that_have_none_in_common_are_told(
    spans: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    pair = Pair(Spoken(*spans[0], "1.0"), Spoken(*spans[1], "2.0"))
    await pair.meet()
    assert [links.connected() for links in pair.links] == [[], []]
    old = "node a" if spans[0] == (1, 1) else "node b"
    assert [f"upgrade {old} first" in why for why in pair.accused] == [True]
    pair.end()


async def test_a_feature_level_is_told_before_anything_that_is_written_by_it() -> None:
    """In the hello, by whichever side knows more; and once more when it is raised while they are connected."""
    for levels in ((Levels(2, 3), Levels(1, 3)), (Levels(1, 3), Levels(2, 4))):
        pair = Pair(levels=levels)
        await pair.meet()
        assert pair.connected == [["b"], ["a"]]
        assert pair.got == [2], "who knew less"
        assert [one.level for one in pair.levels] == [2, 2]
        pair.learn(0, 3)  # by etcd
        pair.send()
        await pair.settle()
        assert pair.got == [2, 3, 3, PreVote(0, 1, 2)]
        assert [kind for pipe in pair.pipes for kind, _ in pipe.sent].count(frames.LEVEL) == 1, "no echo"
        pair.end()


async def test_a_feature_level_that_is_raised_between_the_hellos_is_told() -> None:
    pair = Pair(levels=(Levels(1, 2), Levels(1, 2)))
    pair.dials.connection_made(pair.pipes[0])  # type: ignore[arg-type]
    pair.learn(0, 2)
    await pair.settle()
    assert [one.level for one in pair.levels] == [2, 2]
    pair.end()


@pytest.mark.parametrize("levels", [(Levels(2, 2), Levels(1, 1)), (Levels(1, 1), Levels(2, 3))])
async def test_nodes_of_which_one_does_not_support_the_level_are_not_connected(
    levels: tuple[Levels, Levels],
) -> None:
    """And nobody keeps a level that it does not support for what a peer says."""
    pair = Pair(levels=levels)
    await pair.meet()
    assert pair.connected == [[], []]
    old = "a" if levels[0].supported == 1 else "b"
    assert frames.PEER_HELLO_OK not in [kind for kind, _ in pair.pipes[1].sent]
    assert [f"node '{old}' has a build that supports up to 1: upgrade it" in why for why in pair.accused] == [
        True
    ]
    assert pair.got == []
    pair.end()


async def test_who_does_not_support_a_level_that_is_raised_is_a_peer_no_more() -> None:
    pair = Pair(levels=(Levels(1, 2), Levels(1, 1)))
    await pair.meet()
    assert pair.connected == [["b"], ["a"]]
    pair.learn(0, 2)
    pair.send()
    assert pair.pipes[0].closed
    await pair.settle()
    assert [kind for kind, _ in pair.pipes[0].sent][-1] == frames.ERROR, "nothing goes after it"
    assert pair.got == [2]
    pair.end()


@pytest.mark.parametrize("told", [2, 0, "2", None, 1 << 40])
async def test_a_level_that_is_told_beyond_what_is_supported_ends_the_connection(told: Any) -> None:
    pair = Pair()
    await pair.meet()
    with pytest.raises(ProtocolError, match="feature level"):
        pair.answers.handle(frames.LEVEL, told)
    assert pair.got == []
    pair.end()


async def test_what_a_later_build_sends_besides_is_passed_over() -> None:
    pair = Pair(Spoken(1, 1, "a"), Spoken(1, 1, "b"))
    await pair.meet()
    late = [OPTIONAL, 1, {"a": "new one"}]
    pair.dials.handle(frames.PEER, [late, [*encode(PreVote(0, 1, 2)), "more"], late])
    pair.dials.handle(OPTIONAL + 7, {"what": "ever"})
    assert pair.got == [PreVote(0, 1, 2)]
    for kind, body in ((frames.PEER, [[99, 1]]), (77, None)):  # below it has to be known
        with pytest.raises(ProtocolError):
            pair.dials.handle(kind, body)
    pair.end()


# --- clients ----------------------------------------------------------------------------------------------


async def connect(address: str) -> NodeConnection:
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: NodeConnection("c", "test"), host, int(port))
    return connection


class Telling(FakeNode):
    """A node whose hello says what it speaks."""

    def __init__(self, *more: Any) -> None:
        super().__init__()
        self.more = more

    def _answers(self, name: str, kind: int, body: Any) -> Any:
        if kind == frames.HELLO:
            self.heard = body
            yield frames.pack(frames.HELLO_OK, ["c", "n1", "c1", "s1", "i1", *self.more])
        else:
            yield from super()._answers(name, kind, body)


@pytest.mark.parametrize(
    ("more", "version"), [((), 1), (([1, 3, "2.0"],), 3), (([2, 9, "2.0", "x"], "later"), 4)]
)
async def test_clients_use_the_highest_version_that_both_speak(
    more: tuple[Any, ...], version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NodeConnection, "spoken", Spoken(1, 4, "1.0"))
    async with Telling(*more) as node:
        connection = await connect(node.address)
        assert connection.version == 1
        await connection.topology(5)
        assert connection.version == version
        assert isinstance(node, Telling)
        assert node.heard[2] == [1, 4, "1.0"]
        connection.close()


async def test_a_client_that_no_node_speaks_with_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after its patience, and not that nobody is there."""
    from metastore import AsyncClient

    monkeypatch.setattr(NodeConnection, "spoken", Spoken(1, 1, "1.0"))
    async with Telling([2, 3, "2.0"]) as node:
        client = AsyncClient([node.address])
        try:
            with pytest.raises(NoCommonVersion, match="upgrade this client first"):
                await client.namespace("ns").get("key", deadline_s=60)
        finally:
            await client.close()


async def test_a_node_tells_a_client_that_it_does_not_speak_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With requests behind its hello, none of which is looked at."""
    async with Single(tmp_path) as s:
        monkeypatch.setattr(clients.ClientConnection, "spoken", Spoken(3, 4, "2.0"))
        connection, wire = clients.ClientConnection(s.node), Wire()
        connection.connection_made(wire)  # type: ignore[arg-type]
        connection.data_received(frames.pack(frames.HELLO, ["", "test", [1, 2, "1.0"]]) + gets(1))
        [(kind, (status, message, _))] = wire.frames
        assert (kind, status) == (frames.ERROR, NoCommonVersion.status)
        assert message == (
            "no version of the protocol in common: node f speaks versions 3 to 4 (build 2.0), client 'test' speaks "
            "versions 1 to 2 (build 1.0); upgrade client 'test' first, to a build that speaks version 3, or take node f "
            "back to the build it had"
        )
        connection.connection_lost(None)


async def test_a_router_tells_what_it_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """On ``/v1/rpc``, as a node does in its hello; who tells nothing speaks version 1."""
    for header, mine, version in ((None, (1, 4), 1), ("2 9 2.0", (1, 4), 4), ("1 2 0.9", (3, 4), 0)):
        monkeypatch.setattr(rpc, "client_versions", partial(Spoken, *mine, "1.0"))
        if version:
            assert rpc.version_of(header) == version
        else:
            with pytest.raises(InvalidRequest, match="upgrade the client first") as found:
                rpc.version_of(header)
            assert found.value.http_status == 400


def test_the_error_travels() -> None:
    assert isinstance(from_wire(NoCommonVersion.status, "no", {}), NoCommonVersion)
    assert build()
    assert clients.ClientConnection.spoken.build == build()
