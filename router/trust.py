"""Which etcd a router believes (R13). A router that starts remembers nothing of the etcd that it followed, and nodes do: they have
it in their stores. So nothing that etcd says goes into the topology table before a node has been heard that knows etcd, and

    no node that answers distrusts etcd             (it was wiped, restored or replaced, and is not rebuilt yet)
    etcd was read at no lower revision than any of them has seen, or the table that they told is of
    no partition's record is of a lower term than nodes tell    (also a restored etcd may have a high revision)

Until then the router serves by what nodes tell (``Dispatcher``): the newest of their tables, and higher epochs over lower ones; of
etcd it takes only the addresses of nodes, to ask them. Silence proves nothing: a router that reaches no node serves nothing anyway.

From then on the router has its own memory of that etcd (``Lineal``), as nodes have, for as long as its stream lasts. Where etcd was
away and is back, nodes are asked again; when one distrusts etcd then, what etcd has told gives way to what nodes tell.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from metastore import schema
from metastore.coordination.interface import Change, Coordinator, Watch
from metastore.errors import CoordinationError, MetastoreError
from metastore.fields import BadRecord
from metastore.following import Following
from metastore.layout import ConfigRecord, Layout, NodeRecord, term_of
from metastore.routing.dispatcher import Dispatcher
from metastore.topology import is_config

log = logging.getLogger("router.trust")

#: from one look to the next, while etcd is not believed
LOOK_S: Final = (0.05, 1.0)
STATUS_TIMEOUT_S: Final = 2.0
READING_TIMEOUT_S: Final = 5.0
POLL_S: Final = 0.02
#: nodes asked at a look, at most
MAX_ASKED: Final = 6
#: nodes whose addresses are remembered from an etcd that is not believed
MAX_ADDRESSES: Final = 10_000


class Word(NamedTuple):
    """What a node says of etcd. ``revision``: the highest that it has seen, 0 = none; ``untrusted``: why it distrusts etcd."""

    node: str
    revision: int
    untrusted: str


def word_of(address: str, status: Any) -> Word | None:
    """None: the node says nothing of etcd that makes sense, or knows none yet."""
    etcd = status.get("etcd") if isinstance(status, dict) else None
    if not isinstance(etcd, dict):
        return None
    revision, untrusted = etcd.get("revision", 0), etcd.get("untrusted", "")
    if type(revision) is not int or type(untrusted) is not str or (revision <= 0 and not untrusted):
        return None
    return Word(str(status.get("node", address))[:80], revision, untrusted)


class Trust:
    """See the module. ``watch`` delivers to ``take``."""

    def __init__(self, layout: Layout, dispatcher: Dispatcher, coordinator: Coordinator) -> None:
        self.layout, self.dispatcher, self.coordinator = layout, dispatcher, coordinator
        self.watch: Watch
        #: why etcd is not believed; "" = it is
        self.doubt = "no node has been asked yet"
        self._records = Following(layout, dispatcher.table)
        self._addresses: dict[str, str] = {}
        self._was_away = False

    def take(self, revision: int, changes: list[Change]) -> None:
        """A watch's delivery."""
        if not self.doubt:
            self._records.take(revision, changes)
            return
        for change in changes:
            parts = self.layout.parse(change.key)
            if parts[0] != "nodes" or change.new is None or len(self._addresses) >= MAX_ADDRESSES:
                continue
            try:
                record = schema.read_record(parts, change.new.value, NodeRecord)
            except BadRecord:
                continue
            self._addresses[record.node] = record.rpc

    async def run(self) -> None:
        """For ever."""
        pause_s = LOOK_S[0]
        while True:
            self._was_away |= not self.coordinator.connected
            if self.doubt or (self._was_away and self.coordinator.connected):
                try:
                    await self.look()
                except MetastoreError as e:
                    log.debug("trust: %s", e.message)
            pause_s = min(2 * pause_s, LOOK_S[1]) if self.doubt else LOOK_S[1]
            await asyncio.sleep(pause_s)

    async def look(self) -> None:
        """Ask nodes once, and act on what they say. Raises CoordinationError while etcd is away."""
        words = await self._ask()
        if not words:
            return
        for word in words:
            if word.untrusted:
                self._do_doubt(f"node {word.node} distrusts etcd, because {word.untrusted}")
                return
        self._was_away = False
        if self.doubt:
            await self._compare(words)

    async def _compare(self, words: list[Word]) -> None:
        if not self.watch.ready.is_set():
            return
        await self.dispatcher.refresh()
        table = self.dispatcher.table
        needed = max(table.revision, *(word.revision for word in words))
        # what is compared was read after it was asked what it has to be
        if self.watch.read_at < needed or self._lacking():
            await self._read_again()
        if self.watch.read_at < needed:
            self._say(
                f"etcd is at revision {self.watch.read_at}, and nodes have seen {needed}: it was restored or replaced; see: "
                "cellctl control rebuild"
            )
            return
        if lacking := self._lacking():
            self._say(f"etcd {lacking}: it was restored from a backup; see: cellctl control rebuild")
            return
        records = Following(self.layout, table)
        await records.read_ahead(list(self.watch.kvs.values()))
        if self.coordinator.untrusted:
            return
        log.info("etcd is trusted: its records are at least as new as those of %d nodes", len(words))
        self.doubt, self._records = "", records
        content = [Change(key, None, kv) for key, kv in self.watch.kvs.items()]
        self._records.take(max(self.watch.revision, self.watch.read_at), content)

    def _lacking(self) -> str:
        """A partition whose record in etcd is of a lower term than nodes tell."""
        placed = self.dispatcher.table.partitions
        for key, kv in self.watch.kvs.items():
            parts = self.layout.parse(key)
            if not is_config(parts) or int(parts[2]) not in placed:
                continue
            try:
                term = term_of(schema.read_record(parts, kv.value, ConfigRecord).epoch)
            except BadRecord:
                continue
            known = term_of(placed[int(parts[2])].epoch)
            if term < known:
                return f"has partition {parts[2]} at term {term}, and nodes know {known}"
        return ""

    async def _read_again(self) -> None:
        readings = self.watch.readings
        self.watch.begin_again()
        try:
            async with asyncio.timeout(READING_TIMEOUT_S):
                while self.watch.readings == readings:
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise CoordinationError("etcd did not answer in time") from None

    async def _ask(self) -> list[Word]:
        """What nodes say that answer; some, where there are many."""
        nodes = [record.rpc for record in self.dispatcher.table.nodes.values()]
        known = list(dict.fromkeys([*nodes, *self.dispatcher.seeds, *self._addresses.values()]))
        asked = random.sample(known, min(len(known), MAX_ASKED))
        told: Iterable[Word | None] = await asyncio.gather(*map(self._word_of, asked))
        if not self.dispatcher.table.complete and not self.dispatcher.seeds:
            self.dispatcher.seeds = list(self._addresses.values())[:MAX_ASKED]
        return [word for word in told if word is not None]

    async def _word_of(self, address: str) -> Word | None:
        try:
            connection = await self.dispatcher.connect(address)
            return word_of(address, await connection.status(STATUS_TIMEOUT_S))
        except MetastoreError:
            return None

    def _do_doubt(self, why: str) -> None:
        was_believed = not self.doubt
        self._say(why)
        if was_believed:
            self.dispatcher.table.doubt()
            self.dispatcher.refresh_soon()

    def _say(self, why: str) -> None:
        if why != self.doubt:
            self.doubt = why
            log.warning("etcd is not trusted, and the nodes are asked for the topology instead: %s", why)
