"""A node's registration: its record and presence in etcd, by compare-and-swap of the store's generation (R13)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, Literal, Protocol, TypeVar, cast

from metastore import net
from metastore.clock import now_ns
from metastore.coordination.interface import KV, Compare, Get, Put, Session
from metastore.core.messages import ASKED, CONFIRMED, UNASKED
from metastore.errors import CoordinationError, ProtocolError
from metastore.fields import BadRecord
from metastore.layout import FeaturesRecord, MarkRecord, NodeRecord, node_record_from_json, to_json
from metastore.logs import log_event
from metastore.node.control.link import Link
from metastore.node.features import Features
from metastore.node.identity import FACT_REGISTERED, Verdict, judge, judge_living
from metastore.node.ports import HasConfig, HasIdentity, HasProcess, HasStore
from metastore.schema import Presence
from metastore.wire import frames

log = logging.getLogger("metastore.registering")

T = TypeVar("T")

SWAPS: Final = 3
PROBE_S: Final = 1.0
LEASE_POLL_S: Final = 0.01
AGAIN_S: Final = 0.05
WAIT_S: Final = 0.2
#: how often etcd is told the store's mark, if it is another (R13)
MARK_NS: Final = 5_000_000_000
#: how long a note about etcd may take to be durable
NOTE_S: Final = 1.0

Outcome = Literal["done", "refused", "wait", "no lease"]


class Here(HasConfig, HasIdentity, HasProcess, HasStore, Protocol):
    """What this needs of the node."""

    @property
    def features(self) -> Features: ...

    def condemn(self, verdict: Verdict) -> None:
        """This store is not what its name says: the node takes part in nothing."""


class Registration:
    """See the module."""

    def __init__(self, node: Here, link: Link) -> None:
        self.node, self._link = node, link
        self._waits = ""
        self._told_mark = self._told_at_ns = 0

    def record(self) -> NodeRecord:
        c, me = self.node.config, self.node.me
        generation = self.node.identity.lineage.generation
        level = self.node.features.supported
        return NodeRecord(c.node, c.cell, me.store, c.rpc, c.http, c.zone, generation, me.incarnation, level)

    async def admit(self, patience_s: float) -> None:
        """Have etcd's word whether this process may take part. Returns when it is there (the node is
        confirmed or refused), or when etcd has not answered for ``patience_s`` (R12): provisional."""
        clock = asyncio.get_running_loop().time
        identity, session = self.node.identity, self._link.session
        heard = clock()
        while (left := heard + patience_s - clock()) > 0:
            try:
                async with asyncio.timeout(left):
                    while not session.lease_id:  # it comes with the first answer
                        await asyncio.sleep(LEASE_POLL_S)
                    outcome = await self.register(session)
            except TimeoutError:
                break
            except CoordinationError as e:
                log.debug("registration: %s", e)
                await asyncio.sleep(AGAIN_S)
                continue
            if outcome in ("done", "refused"):
                return
            if outcome == "wait":
                heard = clock()
            await asyncio.sleep(WAIT_S if outcome == "wait" else LEASE_POLL_S)
        identity.state, identity.why = "provisional", ""
        log.warning("etcd did not answer; the node goes on with the records of its store and its peers (R12)")

    async def register(self, session: Session) -> Outcome:
        """One try. Raises CoordinationError; the next try finds out what became of this one."""
        link, mine = self._link, self.record()
        key, presence = link.layout.node(mine.node), link.layout.presence(mine.node)
        for _ in range(SWAPS):
            layout = link.layout
            asked = [Get(key), Get(presence), Get(layout.mark(mine.node)), Get(layout.features)]
            kv, present, told, features = (await link.coordinator.txn([], asked)).kvs
            beyond = self._beyond(features)
            if beyond is not None:
                self.node.condemn(beyond)
                return "refused"
            what = "the node's record in etcd is not understood, and is replaced"
            known = _read(kv, node_record_from_json, what)
            holder = present.value.decode(errors="replace") if present is not None else ""
            identity = self.node.identity
            what = "the mark of the node's store in etcd is not understood, and is passed over"
            mark = _read(told, MarkRecord.from_json, what)
            verdict = judge(mine, identity.lineage, known, holder, identity.fresh, mark)
            if known is not None and await self._answers(known):
                verdict = judge_living(mine, known)
            if verdict.kind == "refused":
                self.node.condemn(verdict)
                return "refused"
            if verdict.kind == "wait":
                self._say_wait(verdict)
                return "wait"
            if not await self._note_asked() or not session.alive or not session.lease_id:
                return "no lease"
            swapped = await link.coordinator.txn(
                [_unchanged(key, kv), _unchanged(presence, present), _unchanged(layout.features, features)],
                [
                    Put(key, to_json(mine)),
                    Put(presence, Presence(mine.incarnation).to_bytes(), session.lease_id),
                ],
            )
            if swapped.succeeded:
                self._confirmed(known, mine)
                return "done"
        return "wait"

    def _beyond(self, kv: KV | None) -> Verdict | None:
        """Why this build can take no part at the cluster's feature level."""
        what = "the cluster's feature level in etcd is not valid, and is ignored; see cellctl doctor"
        record, features = _read(kv, FeaturesRecord.from_json, what), self.node.features
        return features.learn(record.level) if record is not None else features.verdict()

    async def _note_asked(self) -> bool:
        """What etcd may have from here on the store never forgets, whatever becomes of the answer (R13). Whether that is
        durable."""
        store = self.node.store
        if store.lineage.runs[0].asked != UNASKED:
            return True
        seq = store.note_asked(ASKED)
        try:
            async with asyncio.timeout(NOTE_S):
                while store.durable_seq < seq:
                    await asyncio.sleep(LEASE_POLL_S)
        except TimeoutError:
            return False
        return True

    async def tell_mark(self) -> bool:
        """Tell etcd how far the store is durable, now and then; False = etcd's record is another's. Raises CoordinationError."""
        now, store, mine = now_ns(), self.node.store, self.record()
        mark = store.mark
        if mark <= self._told_mark or now - self._told_at_ns < MARK_NS:
            return True
        layout = self._link.layout
        record = MarkRecord(mine.store_id, mine.generation, mine.incarnation, mark)
        result = await self._link.coordinator.txn(
            [Compare.value_is(layout.node(mine.node), to_json(mine))],
            [Put(layout.mark(mine.node), record.to_json())],
        )
        if result.succeeded:
            self._told_mark, self._told_at_ns = mark, now
        return result.succeeded

    def _say_wait(self, verdict: Verdict) -> None:
        self.node.identity.why = verdict.why
        if self._waits != verdict.why:
            self._waits = verdict.why
            log.warning("%s; this node waits until its lease has gone", verdict.why)

    def _confirmed(self, known: NodeRecord | None, mine: NodeRecord) -> None:
        node, identity = self.node, self.node.identity
        if identity.refused:
            return
        identity.state, identity.why = "confirmed", ""
        if node.store.lineage.runs[0].asked != CONFIRMED:
            node.store.note_asked(CONFIRMED)
        if not node.store.facts.get(FACT_REGISTERED):
            node.store.keep_fact(FACT_REGISTERED, True)
        if known is not None and known.store_id != mine.store_id:
            text = f"store {mine.store_id} replaces {known.store_id} as node {mine.node}; it begins empty"
            log.warning("%s", text)
        log_event(log, f"registered: store {mine.store_id}, generation {mine.generation}", node=mine.node)

    async def _answers(self, known: NodeRecord) -> bool:
        """Whether the process of ``known`` answers at its address, which is not this one's."""
        mine = self.node.me.incarnation
        if known.rpc == self.node.config.rpc or known.incarnation in ("", mine):
            return False
        try:
            async with asyncio.timeout(PROBE_S):
                probe = await net.dial(lambda: _Probe(self.node.config.cluster), known.rpc)
                try:
                    answer = await probe.answer
                finally:
                    probe.close()
        except (TimeoutError, OSError, ProtocolError, ValueError):
            return False
        return (
            isinstance(answer, list)
            and answer[1:2] == [known.node]
            and answer[3:5]
            == [
                known.store_id,
                known.incarnation,
            ]
        )


def _read(kv: KV | None, read: Callable[[bytes], T], what: str) -> T | None:
    """What a record says; None = there is none that makes sense, which ``what`` tells."""
    try:
        return read(kv.value) if kv is not None else None
    except BadRecord as e:
        log.error("%s: %s", what, e.message)
        return None


def _unchanged(key: str, kv: KV | None) -> Compare:
    return Compare.absent(key) if kv is None else Compare.mod_revision_is(key, kv.mod_revision)


class _Probe(asyncio.Protocol):
    """Asks who serves at an address, as a client would."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._decoder = frames.FrameDecoder(frames.MAX_HELLO_BYTES)
        self._transport: asyncio.Transport | None = None
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(frames.pack(frames.HELLO, [self._cluster, "registration"]))

    def data_received(self, data: bytes) -> None:
        try:
            self._decoder.push(data)
            frame = self._decoder.pull()
        except ProtocolError as e:
            self._end(e)
            return
        if frame is not None and not self.answer.done():
            self.answer.set_result(frame[1] if frame[0] == frames.HELLO_OK else None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(ConnectionResetError("closed"))

    def _end(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)
            self.answer.exception()  # nobody may be waiting any more

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
