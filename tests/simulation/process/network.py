"""Streams between simulated processes: in order, delayed, reset, cut, clogged, slow for a while.

What is on its way over a link that is shut stays there until the link opens (as TCP does); a
process that dies ends its streams, unless its machine goes with it: then the other end hears
nothing until it sends. Sockets hold little: a receiver that does not read stops its sender.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from tests.simulation.process.loop import MS, Events, SimLoop

Link = tuple[str, str]
"""From whom, to whom."""

SOCKET_BYTES = 16 << 10
DIAL_AGAIN_S = 0.02


class Transport(asyncio.Transport):
    """One end of a stream."""

    peer: Transport
    link: Link

    def __init__(self, network: Network, loop: SimLoop, protocol: Any) -> None:
        super().__init__()
        self.network = network
        self.loop = loop
        self.protocol = protocol
        self.ended = False
        self.closing = False
        self.reading = True
        #: written here and not with the other end yet; None ends the stream
        self._pipe: deque[bytes | None] = deque()
        self._flying = False
        self._stalled = False
        #: arrived here and not read yet
        self._inbox: deque[bytes | None] = deque()
        self._unread = 0
        self._read_queued = False

    # --- asyncio.Transport ----------------------------------------------------------------

    def write(self, data: bytes) -> None:  # type: ignore[override]
        if data and not self.closing and not self.loop.dead:
            self._pipe.append(bytes(data))
            self._launch()

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self._pipe.append(None)
            self._launch()
            self.loop.call_soon(self.lost, None)

    def abort(self) -> None:
        if not self.ended:
            self.closing = True
            self._pipe.clear()
            self.loop.call_soon(self.lost, None)
            self.network.later(self.link, self.peer.reset)

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return sum([len(p) for p in self._pipe if p])

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
        if self._inbox:
            self._notice()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    # --- the wire -----------------------------------------------------------------------------

    def _launch(self) -> None:
        if not self._flying and self._pipe:
            self._flying = True
            network = self.network
            network.events.at(network.delay(), self.arrive)

    def arrive(self) -> None:
        """What was written so far comes to the other end, if it can."""
        network, peer, pipe = self.network, self.peer, self._pipe
        if network.is_shut(self.link):
            network.hold(self)
            return
        self._flying = False
        if peer.ended:
            pipe.clear()
            network.later(peer.link, self.reset)
        elif peer._unread > SOCKET_BYTES:
            self._stalled = True
        elif pipe:
            last = pipe.pop() if pipe[-1] is None else b""
            data = b"".join(pipe)  # type: ignore[arg-type]
            pipe.clear()
            if data:
                network.heard(self.link, data)
                peer._inbox.append(data)
                peer._unread += len(data)
            if last is None:
                peer._inbox.append(None)
            peer._notice()

    def _notice(self) -> None:
        if not self._read_queued and self.reading:
            self._read_queued = True
            self.loop.call_soon(self._read)

    def _read(self) -> None:
        self._read_queued = False
        inbox = self._inbox
        if self.closing or not self.reading or not inbox:
            return
        ends = inbox[-1] is None
        if ends:
            inbox.pop()
        data = b"".join(inbox)  # type: ignore[arg-type]
        inbox.clear()
        random = self.network.events.random
        if len(data) > 1 and random.random() < 0.1:  # torn anywhere: a stream, not messages
            at = random.randrange(1, len(data))
            inbox.append(data[at:])
            data = data[:at]
            if ends:
                inbox.append(None)
                ends = False
            self._notice()
        self._unread -= len(data)
        if data:
            self.protocol.data_received(data)
        if ends:
            self.lost(None)
        if self.peer._stalled:
            self.peer._stalled = False
            self.peer._launch()

    def lost(self, error: Exception | None) -> None:
        if not self.ended:
            self.ended = self.closing = True
            self.network.open.pop(self, None)
            self.protocol.connection_lost(error)

    def reset(self) -> None:
        if not self.ended:
            self.closing = True
            self.loop.call_soon(self.lost, ConnectionResetError(104, "Connection reset by peer"))

    def orphan(self, *, silently: bool) -> None:
        """The process at this end is gone. Its kernel ends the stream, if it lives on."""
        self.ended = self.closing = True
        self.network.open.pop(self, None)
        self._inbox.clear()
        if silently:
            self._pipe.clear()
        elif self.network.events.random.random() < 0.5:
            self._pipe.append(None)
            self._launch()
        else:
            self.network.later(self.link, self.peer.reset)


class Network:
    """See the module. Addresses are process names."""

    def __init__(self, events: Events) -> None:
        self.events = events
        self.max_delay_ns = 2 * MS
        self.slow_share = 0.0
        self.slow_delay_ns = 200 * MS
        #: link -> for how many reasons it is shut
        self.shut: dict[Link, int] = {}
        self.dark: set[str] = set()
        #: open ends, in the order of arrival, so that a seed is a schedule
        self.open: dict[Transport, None] = {}
        self.heard: Callable[[Link, bytes], None] = lambda link, data: None
        self._held: list[Transport] = []
        self._listening: dict[str, tuple[SimLoop, Any]] = {}

    def delay(self) -> int:
        random = self.events.random.random
        most = self.max_delay_ns
        if self.slow_share and random() < self.slow_share:
            most = self.slow_delay_ns
        return 1000 + int(random() * most)

    # --- links ------------------------------------------------------------------------------

    def is_shut(self, link: Link) -> bool:
        if link in self.shut:
            return True
        return bool(self.dark) and (link[0] in self.dark or link[1] in self.dark)

    def shut_links(self, links: Iterable[Link]) -> None:
        for link in links:
            self.shut[link] = self.shut.get(link, 0) + 1

    def open_links(self, links: Iterable[Link], within_ns: int = 10 * MS) -> None:
        """What was held goes on, each stream within a while of its own."""
        for link in links:
            reasons = self.shut.get(link, 0)
            if reasons > 1:
                self.shut[link] = reasons - 1
            else:
                self.shut.pop(link, None)
        self.release(within_ns)

    def open_all(self) -> None:
        self.shut.clear()
        self.release(10 * MS)

    def hold(self, end: Transport) -> None:
        self._held.append(end)

    def release(self, within_ns: int) -> None:
        held, self._held = self._held, []
        for end in held:
            if self.is_shut(end.link):
                self._held.append(end)
            else:
                self.events.at(int(self.events.random.random() * within_ns), end.arrive)

    def later(self, link: Link, what: Callable[[], None]) -> None:
        """``what`` when a packet comes over the link: never, if it is lost on the way."""
        if not self.is_shut(link):
            self.events.at(self.delay(), what)

    # --- streams ----------------------------------------------------------------------------

    def listen(self, loop: SimLoop, factory: Any, host: str) -> None:
        self._listening[host] = (loop, factory)

    async def connect(self, loop: SimLoop, factory: Any, host: str) -> tuple[Transport, Any]:
        there, back = (loop.name, host), (host, loop.name)
        while True:
            await asyncio.sleep(self.delay() / 1e9)
            if not self.is_shut(there) and not self.is_shut(back):
                break
            await asyncio.sleep(DIAL_AGAIN_S)
        target = self._listening.get(host)
        if target is None or target[0].dead:
            raise ConnectionRefusedError(111, "Connection refused")
        other_loop, other_factory = target
        mine = Transport(self, loop, factory())
        theirs = Transport(self, other_loop, None)
        mine.peer, theirs.peer = theirs, mine
        mine.link, theirs.link = there, back
        self.open[mine] = self.open[theirs] = None

        def accepted() -> None:
            theirs.protocol = other_factory()
            theirs.protocol.connection_made(theirs)

        other_loop.call_soon(accepted)
        mine.protocol.connection_made(mine)
        return mine, mine.protocol

    def process_died(self, name: str, *, silently: bool) -> None:
        """Its ends are gone; the others hear of it, or (the machine went too) do not."""
        self._listening.pop(name, None)
        for end in [t for t in self.open if t.link[0] == name]:
            end.orphan(silently=silently)

    def reset_between(self, a: str, b: str) -> None:
        """Both ends live, the stream does not. One end may hear of it only when it sends: until
        then what was on its way to it still comes."""
        for end in [t for t in self.open if t.link == (a, b)]:
            dice = self.events.random.random()
            if dice < 0.7:
                self.events.at(self.delay(), end.reset)
            if dice > 0.3:
                self.events.at(self.delay(), end.peer.reset)
