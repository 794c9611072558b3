"""Connections between nodes: one per pair, dialled by the node whose name sorts first.

Messages of one loop turn to one peer leave in one write. A peer that does not read has its
messages dropped beyond a bound (the core repeats what matters), so a paused peer costs
neither memory nor time. A refused or reset connection is told to the core at once (R9).
Each side pings, and ends a connection on which nothing came for long: when the other machine
loses its power no reset ever arrives, and a node that has nothing to send would wait for ever. A ping
tells its sender's mark: how far its log is durable (R13).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any, cast

from metastore import net
from metastore.core.messages import Lineage, Process, Seen
from metastore.elements import shown
from metastore.errors import ProtocolError
from metastore.node.identity import PeerRefusal
from metastore.wire import frames
from metastore.wire.peer_messages import (
    MAX_COUNT,
    Hello,
    bulk,
    decode,
    encode,
    hello,
    hello_ok,
    read_hello,
    read_hello_ok,
    read_seen,
)
from metastore.wire.versions import OPTIONAL, Levels, agree, peer_versions, read_level

log = logging.getLogger("metastore.peers")

MAX_BUFFERED_BYTES = 16 << 20
MAX_FRAME_BODY_BYTES = 8 << 20
MAX_FRAME_MESSAGES = 4096
MAX_PEERS = 256
DIAL_TIMEOUT_S = 1.0
PING_S = 1.0
MAX_IDLE_PINGS = 5
#: from so many on a peer counts as away for who asks
IDLE_PINGS = 3
#: a connection on which something came within so many pings has a living process at its other end
HEARD_PINGS = 2
DIAL_PAUSE_MIN_S, DIAL_PAUSE_MAX_S = 0.05, 0.4
PING_FRAME = frames.pack(frames.PING, None)


class PeerConnection(asyncio.Protocol):
    """One connection, either side. Created with ``target`` set when this side dials."""

    def __init__(self, links: PeerLinks, target: tuple[str, str] | None) -> None:
        self.links = links
        self.target = target
        self.peer: Process | None = None
        #: of the protocol, as both speak it; 0 = not agreed on yet
        self.version = 0
        #: up to which feature level the other side supports any, and the highest that it was told here, or told itself
        self.supported = self.level = 0
        self.transport: asyncio.Transport | None = None
        self.decoder = frames.FrameDecoder(max_items=frames.MAX_ITEMS)
        self.closed = asyncio.get_running_loop().create_future()
        #: pings since anything came
        self.idle_pings = 0
        self._pinger: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # not isinstance: uvloop's transports are no subclasses of asyncio's
        self.transport = transport = cast(asyncio.Transport, transport)
        if self.target is not None:
            links = self.links
            mine = links.hello()
            self.level = mine.levels.level
            transport.write(frames.pack(frames.PEER_HELLO, hello(links.cluster, mine, *self.target)))
        self._ping_later()

    def _ping_later(self) -> None:
        self._pinger = asyncio.get_running_loop().call_later(PING_S, self._ping)

    def _ping(self) -> None:
        self.idle_pings += 1
        if self.idle_pings > MAX_IDLE_PINGS:
            log.warning(
                "peer %s disconnected: it sent nothing for %.0f s",
                self.peer.node if self.peer else self.target,
                MAX_IDLE_PINGS * PING_S,
            )
            self.abort()
            return
        if self.peer is not None and self.transport is not None:
            self.transport.write(frames.pack(frames.PING, self.links.mark()))
        self._ping_later()

    def data_received(self, data: bytes) -> None:
        self.decoder.push(data)
        self.work()

    def work(self) -> None:
        """Take what has come."""
        self.idle_pings = 0
        try:
            while self.decoder.buffer and (frame := self.decoder.pull()) is not None:
                self.handle(*frame)
                if self.transport is None or self.transport.is_closing():
                    return
        except ProtocolError as e:
            log.warning("peer %s disconnected: %s", self.peer.node if self.peer else "?", e)
            self.abort()

    def handle(self, kind: int, body: Any) -> None:
        if self.peer is not None and kind == frames.PING:
            if type(body) is int and 0 < body < MAX_COUNT:
                self.links.on_mark(self.peer, body)
            return
        if kind == frames.ERROR and (self.peer is not None or self.target is not None):
            self.refused(
                self.peer.node if self.peer is not None else str(self.target and self.target[0]), body
            )
        elif self.peer is not None:
            if kind == frames.LEVEL:
                self.raised(read_level(body))
            if kind >= OPTIONAL:
                return
            if kind != frames.PEER or type(body) is not list:
                raise ProtocolError(f"a peer's frame has type {kind}, which is not one that peers send")
            messages = [decode(raw) for raw in body]
            if None in messages:
                messages = [message for message in messages if message is not None]
            self.links.on_messages(self.peer, messages)
        elif self.target is not None and kind == frames.PEER_HELLO_OK:
            theirs = read_hello_ok(body)
            peer = theirs.process
            if (peer.node, peer.store) != self.target:
                raise ProtocolError(f"{self.target[0]} answered as {peer.node!r} with store {peer.store}")
            try:
                self.version = self.links.agree(theirs)
                self.links.check(theirs)
            except ProtocolError as e:
                self.refuse(peer.node, e)
                return
            self.open(theirs)
        else:
            raise ProtocolError(f"the first frame has type {kind}; a hello was expected")

    def refused(self, by: str, body: Any) -> None:
        """The other side does not take this process for a peer. Raises ProtocolError."""
        said = body if type(body) is list else [body]
        text = shown(said[1] if len(said) > 1 else body, 400)
        detail = said[2] if len(said) > 2 and type(said[2]) is dict else {}
        if detail.get("starting") is not True:  # which says nothing of this node
            self.links.on_accused(by, text, read_seen(detail.get("seen")))
        raise ProtocolError(f"{by} refused: {text}")

    def refuse(self, node: str, e: ProtocolError) -> None:
        """End the connection, so that the other side learns why."""
        assert self.transport is not None
        self.transport.write(frames.pack(frames.ERROR, [e.status, e.message, e.detail]))
        self.transport.close()
        log.warning("%s is not connected: %s", node, e.message)

    def accept(self, body: Any) -> None:
        """The accepting side has read a PEER_HELLO. Raises ProtocolError."""
        links = self.links
        theirs = read_hello(body, links.cluster, links.me)
        self.version = links.agree(theirs)
        links.check_caller(theirs)
        assert self.transport is not None
        mine = links.hello()
        self.level = mine.levels.level
        self.transport.write(frames.pack(frames.PEER_HELLO_OK, hello_ok(mine)))
        self._ping_later()
        self.open(theirs)

    def open(self, theirs: Hello) -> None:
        self.peer, self.supported = theirs.process, theirs.levels.supported
        self.raised(theirs.levels.level)
        self.tell_level(self.links.levels())
        self.links.opened(theirs, self)

    def raised(self, level: int) -> None:
        """The other side tells the cluster's feature level. Raises ProtocolError when this build does not support it."""
        assert self.peer is not None
        self.links.check_levels(self.peer.node, Levels(level, max(level, self.supported)))
        self.level = max(self.level, level)
        self.links.on_level(level)

    def tell_level(self, mine: Levels) -> None:
        """Before anything that is written by it. Who does not support it is a peer no more."""
        if mine.level <= self.level or self.peer is None or self.transport is None:
            return
        try:
            self.links.check_levels(self.peer.node, Levels(self.level, self.supported))
        except ProtocolError as e:
            self.refuse(self.peer.node, e)
            return
        self.level = mine.level
        self.transport.write(frames.pack(frames.LEVEL, mine.level))

    @property
    def alive(self) -> bool:
        """Whether something came from the other side lately."""
        return (
            self.transport is not None and not self.transport.is_closing() and self.idle_pings <= HEARD_PINGS
        )

    def send(self, messages: list[Any]) -> None:
        transport = self.transport
        if transport is None or transport.is_closing() or self.peer is None:
            return
        if transport.get_write_buffer_size() > MAX_BUFFERED_BYTES:
            self.links.dropped += len(messages)
            self.links.on_dropped(self.peer.node, messages)
            return
        body: list[list[Any]] = []
        size = 0
        out: list[bytes] = []
        for message in messages:
            more = bulk(message)
            if body and (size + more > MAX_FRAME_BODY_BYTES or len(body) >= MAX_FRAME_MESSAGES):
                out.append(frames.pack(frames.PEER, body))
                body, size = [], 0
            body.append(encode(message))
            size += more
        if body:
            out.append(frames.pack(frames.PEER, body))
        transport.write(out[0] if len(out) == 1 else b"".join(out))

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._pinger is not None:
            self._pinger.cancel()
        if not self.closed.done():
            self.closed.set_result(None)
        if self.peer is not None:
            self.links.lost(self.peer, self)


class PeerLinks:
    """All peers of this node. ``on_up``/``on_down`` get node names, ``on_messages`` a batch."""

    def __init__(
        self,
        cluster: str,
        me: Process,
        lineage: Lineage,
        on_messages: Callable[[Process, list[Any]], None],
        on_up: Callable[[str], None],
        on_down: Callable[[str], None],
    ) -> None:
        self.cluster = cluster
        self.me = me
        self.lineage = lineage
        self.spoken = peer_versions()
        #: this node's, as they are now; and a peer tells that the cluster is at a level, which this build supports
        self.levels: Callable[[], Levels] = Levels
        self.on_level: Callable[[int], object] = lambda level: None
        self.on_messages = on_messages
        self.on_up = on_up
        self.on_down = on_down
        self.dropped = 0
        #: why a process with the lineage it tells is no peer, None = it is one; given the other process of
        #: that node which is connected and alive, if there is one (R13)
        self.refusal: Callable[[Process, Lineage, Process | None], PeerRefusal | None] = lambda p, line, r: (
            None
        )
        #: who was let in, with which lineage
        self.on_lineage: Callable[[Process, Lineage], None] = lambda peer, lineage: None
        #: messages to a peer that takes none of the many that wait for it are not sent
        self.on_dropped: Callable[[str, list[Any]], None] = lambda node, messages: None
        #: a peer does not let this process in; why, and what it has seen of the store that this is to descend from
        self.on_accused: Callable[[str, str, Seen | None], None] = lambda by, why, seen: None
        #: how far this node's log is durable, and what a peer tells of its own
        self.mark: Callable[[], int] = lambda: 0
        self.on_mark: Callable[[Process, int], None] = lambda peer, mark: None
        #: why nobody is let in yet, "" = they are
        self.not_yet = "is starting"
        self.shut = False
        self._open: dict[str, PeerConnection] = {}
        self._began = asyncio.get_running_loop().time()
        #: peer -> when its last connection ended
        self._lost_at: dict[str, float] = {}
        self._dialling: dict[str, asyncio.Task[None]] = {}
        self._targets: dict[str, tuple[str, str]] = {}
        self._out: dict[str, list[Any]] = {}

    # --- who there is ---------------------------------------------------------------------

    def set_peer(self, node: str, store: str, rpc: str) -> None:
        """Know a peer; dial it if that falls to this side. Its address or store may change."""
        target = (store, rpc)
        if node == self.me.node or self._targets.get(node) == target or self.shut:
            return
        self._targets[node] = target
        old = self._dialling.pop(node, None)
        if old is not None:
            old.cancel()
        if self.me.node < node:
            self._dialling[node] = asyncio.get_running_loop().create_task(self._keep_dialling(node))

    def forget(self, node: str) -> None:
        """Know a peer no more: it is not dialled, and its connection ends."""
        self._targets.pop(node, None)
        dialling = self._dialling.pop(node, None)
        if dialling is not None:
            dialling.cancel()
        connection = self._open.get(node)
        if connection is not None:
            connection.abort()

    def connected(self) -> list[str]:
        return sorted(self._open)

    def away_for_s(self, node: str) -> float:
        """For how long there has been no connection to ``node``, or only one on which it is silent; 0 = it is there."""
        connection = self._open.get(node)
        if connection is None:
            return asyncio.get_running_loop().time() - self._lost_at.get(node, self._began)
        return connection.idle_pings * PING_S if connection.idle_pings >= IDLE_PINGS else 0.0

    async def _keep_dialling(self, node: str) -> None:
        store, address = self._targets[node]
        pause = DIAL_PAUSE_MIN_S
        while True:
            try:
                async with asyncio.timeout(DIAL_TIMEOUT_S):
                    connection = await net.dial(lambda: PeerConnection(self, (node, store)), address)
                try:
                    await connection.closed
                finally:
                    connection.abort()
                if connection.peer is not None:
                    pause = DIAL_PAUSE_MIN_S
                elif node not in self._open:  # it is there, and lets nobody in
                    self.on_down(node)
            except TimeoutError:
                pass  # silence is not a refusal: suspicion takes its time (R9)
            except OSError:
                self.on_down(node)
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, DIAL_PAUSE_MAX_S)

    # --- connections ----------------------------------------------------------------------

    def hello(self) -> Hello:
        """What this node tells of itself."""
        return Hello(self.me, self.lineage, self.spoken, self.levels())

    def agree(self, theirs: Hello) -> int:
        """The version of the protocol that is used with a peer. Raises NoCommonVersion."""
        them = f"node {theirs.process.node[:80]}"
        return agree(self.spoken, f"node {self.me.node}", theirs.spoken, them)

    def check_levels(self, node: str, theirs: Levels) -> None:
        """What is written at a feature level goes only where it can be read. Raises ProtocolError."""
        mine = self.levels()
        level = max(mine.level, theirs.level)
        for name, supported in ((self.me.node, mine.supported), (node, theirs.supported)):
            if supported < level:
                raise ProtocolError(
                    f"the cluster is at feature level {level}, and node {name[:80]!r} has a build that supports up to "
                    f"{supported}: upgrade it"
                )

    def check_caller(self, theirs: Hello) -> None:
        """Whether it is a peer that dials this node. Raises ProtocolError."""
        peer = theirs.process
        if peer.node >= self.me.node:
            raise ProtocolError(f"node {peer.node!r} does not dial {self.me.node!r}: the first by name dials")
        self.check(theirs)
        if peer.node not in self._open and len(self._open) >= MAX_PEERS:
            raise ProtocolError(
                f"{peer.node!r} is not accepted: {MAX_PEERS} peers are connected, the limit of a node"
            )

    def check(self, theirs: Hello) -> None:
        """Whether this process is a peer, whichever side dialled (R13). Raises ProtocolError, which tells an old
        copy that it is one."""
        peer = theirs.process
        if self.shut:
            raise ProtocolError(f"node {self.me.node!r} serves nothing: see its /v1/status for the reason")
        if self.not_yet:
            raise ProtocolError(f"node {self.me.node!r} {self.not_yet}", starting=True)
        old = self._open.get(peer.node)
        rival = old.peer if old is not None and old.alive else None
        refusal = self.refusal(peer, theirs.lineage, rival)
        if refusal is not None:
            text = f"{peer.node!r} with store {peer.store!r} is not accepted as a peer here: {refusal.why}"
            raise ProtocolError(text, seen=list(refusal.seen)) if refusal.seen else ProtocolError(text)
        self.check_levels(peer.node, theirs.levels)

    def raised(self) -> None:
        """This node knows of a higher feature level than before: nobody hears of what is written by it before."""
        mine = self.levels()
        for connection in list(self._open.values()):
            connection.tell_level(mine)

    def opened(self, theirs: Hello, connection: PeerConnection) -> None:
        peer = theirs.process
        self.on_lineage(peer, theirs.lineage)
        old = self._open.get(peer.node)
        self._open[peer.node] = connection
        if old is not None and old is not connection:
            old.abort()
        self._out.pop(peer.node, None)
        self.on_up(peer.node)

    def lost(self, peer: Process, connection: PeerConnection) -> None:
        if self._open.get(peer.node) is connection:
            del self._open[peer.node]
            self._lost_at[peer.node] = asyncio.get_running_loop().time()
            self._out.pop(peer.node, None)
            self.on_down(peer.node)

    # --- sending --------------------------------------------------------------------------

    def queue(self, node: str, message: Any) -> None:
        """To be sent by the next flush; dropped when there is no connection."""
        if node in self._open:
            out = self._out.get(node)
            if out is None:
                self._out[node] = [message]
            else:
                out.append(message)

    def flush(self) -> None:
        if self._out:
            queued, self._out = self._out, {}
            for node, messages in queued.items():
                connection = self._open.get(node)
                if connection is not None:
                    connection.send(messages)

    async def close(self) -> None:
        self.shut = True
        for task in self._dialling.values():
            task.cancel()
        await asyncio.gather(*self._dialling.values(), return_exceptions=True)
        for connection in list(self._open.values()):
            connection.abort()
