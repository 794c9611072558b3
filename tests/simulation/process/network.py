"""Streams between simulated processes: in order, delayed, reset, cut, slow for a while.

A cut holds what is sent until it heals (as TCP does); a process that dies resets its
connections, unless its machine goes with it: then the other end hears nothing until it sends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.simulation.process.loop import MS, Events, SimLoop

HELD_NS = 10 * MS


class Transport(asyncio.Transport):
    """One end of a stream."""

    def __init__(self, network: Network, loop: SimLoop, protocol: Any) -> None:
        super().__init__()
        self.network = network
        self.loop = loop
        self.protocol = protocol
        self.peer: Transport
        self.ended = False
        self.closing = False
        self.reading = True
        self._last_at = 0
        self._pipe: deque[bytes | None] = deque()
        self._pumping = False

    # --- asyncio.Transport ----------------------------------------------------------------

    def write(self, data: bytes) -> None:  # type: ignore[override]
        if not self.closing and data:
            self._pipe.append(bytes(data))
            self._pump()

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self._pipe.append(None)
            self._pump()
            self.loop.call_soon(self.lost, None)

    def abort(self) -> None:
        if not self.ended:
            self.closing = True
            self._pipe.clear()
            self.loop.call_soon(self.lost, None)
            self.network.later(self, self.peer, lambda: self.peer.reset())

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return sum(len(p) for p in self._pipe if p)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    # --- the wire -----------------------------------------------------------------------------

    def _pump(self) -> None:
        if not self._pumping and self._pipe:
            self._pumping = True
            delay = self.network.delay(self.loop.name, self.peer.loop.name)
            self.network.events.at(delay, self._arrive)

    def _arrive(self) -> None:
        self._pumping = False
        if not self._pipe:
            return
        peer = self.peer
        if peer.ended:
            self._pipe.clear()
            if not self.network.is_cut(self.loop.name, peer.loop.name):
                self.reset()
            return
        if self.network.is_cut(self.loop.name, peer.loop.name) or not peer.reading:
            self._pumping = True
            self.network.events.at(HELD_NS, self._arrive)
            return
        chunks: list[bytes] = []
        end = False
        while self._pipe:
            piece = self._pipe.popleft()
            if piece is None:
                end = True
                break
            chunks.append(piece)
        if chunks:
            data = b"".join(chunks)
            self.network.note(self.loop.name, peer.loop.name, data)
            # torn anywhere: readers take a stream, not messages
            at = (
                self.network.events.random.randrange(len(data))
                if self.network.events.random.random() < 0.2
                else 0
            )
            for part in (data[:at], data[at:]):
                if part:
                    peer.loop.call_soon(peer.feed, part)
        if end:
            peer.loop.call_soon(peer.lost, None)
        self._pump()

    def feed(self, data: bytes) -> None:
        if not self.ended and not self.closing:
            self.protocol.data_received(data)

    def lost(self, error: Exception | None) -> None:
        if not self.ended:
            self.ended = self.closing = True
            self.network.open.discard(self)
            self.protocol.connection_lost(error)

    def reset(self) -> None:
        if not self.ended:
            self.closing = True
            self.loop.call_soon(self.lost, ConnectionResetError(104, "Connection reset by peer"))


class Network:
    """See the module. Addresses are process names; ``cuts`` holds pairs of names, one way each."""

    def __init__(self, events: Events) -> None:
        self.events = events
        self.max_delay_ns = 2 * MS
        self.slow_share = 0.0
        self.slow_delay_ns = 200 * MS
        self.cuts: set[tuple[str, str]] = set()
        self.open: dict[Transport, None] | Any = _OrderedSet()
        self.dark: set[str] = set()
        self.heard: Callable[[str, str, bytes], None] = lambda src, dst, data: None
        self._listening: dict[str, tuple[SimLoop, Any]] = {}

    def note(self, src: str, dst: str, data: bytes) -> None:
        self.heard(src, dst, data)

    def delay(self, src: str, dst: str) -> int:
        random = self.events.random
        slow = random.random() < self.slow_share
        return 1000 + random.randrange(self.slow_delay_ns if slow else self.max_delay_ns)

    def is_cut(self, src: str, dst: str) -> bool:
        return (src, dst) in self.cuts or src in self.dark or dst in self.dark

    def later(self, src: Transport, dst: Transport, what: Callable[[], None]) -> None:
        """``what`` when a packet from ``src`` reaches ``dst``: never, if it is lost on the way."""
        if not self.is_cut(src.loop.name, dst.loop.name):
            self.events.at(self.delay(src.loop.name, dst.loop.name), what)

    def listen(self, loop: SimLoop, factory: Any, host: str) -> None:
        self._listening[host] = (loop, factory)

    async def connect(self, loop: SimLoop, factory: Any, host: str) -> tuple[Transport, Any]:
        while True:
            await asyncio.sleep(self.delay(loop.name, host) / 1e9)
            if not self.is_cut(loop.name, host) and not self.is_cut(host, loop.name):
                break
            await asyncio.sleep(HELD_NS / 1e9)
        target = self._listening.get(host)
        if target is None or target[0].dead:
            raise ConnectionRefusedError(111, "Connection refused")
        other_loop, other_factory = target
        mine = Transport(self, loop, factory())
        theirs = Transport(self, other_loop, None)
        mine.peer, theirs.peer = theirs, mine
        self.open.add(mine)
        self.open.add(theirs)

        def accepted() -> None:
            theirs.protocol = other_factory()
            theirs.protocol.connection_made(theirs)

        other_loop.call_soon(accepted)
        mine.protocol.connection_made(mine)
        return mine, mine.protocol

    def process_died(self, name: str, *, silently: bool) -> None:
        """Its ends are gone; the others hear of it, or (the machine went too) do not."""
        self._listening.pop(name, None)
        for end in [t for t in self.open if t.loop.name == name]:
            end.ended = end.closing = True
            self.open.discard(end)
            if not silently:
                self.later(end, end.peer, end.peer.reset)

    def reset_between(self, a: str, b: str) -> None:
        """Both ends live, the stream does not."""
        for end in list(self.open):
            if end.loop.name == a and end.peer.loop.name == b:
                for one in (end, end.peer):
                    self.events.at(self.delay(a, b), one.reset)


class _OrderedSet:
    """A set that is walked in the order of arrival, so that a seed is a schedule."""

    def __init__(self) -> None:
        self._items: dict[Transport, None] = {}

    def add(self, item: Transport) -> None:
        self._items[item] = None

    def discard(self, item: Transport) -> None:
        self._items.pop(item, None)

    def __iter__(self) -> Any:
        return iter(list(self._items))
