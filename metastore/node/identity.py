"""Whether the store of this node is the one that its name and its runs say (R13).

A store knows which processes ran on it (its lineage), the present one durably before that one's first message, and how far
its log had come when each of them ended. Others know the newest of them, and how far it reported that its log was durable (its
mark): etcd, whose record of the node is compared and swapped, and peers, who remember what they heard, for when
etcd is away. A store whose own lineage does not have that is no descendant of what it acknowledged then: an old copy that was
put back, or a clone. (A number of starts alone would not do: an old copy that is started often enough passes it.)
The judgements are pure.

    starting     nothing is sent or served: etcd's word comes first
    provisional  etcd does not answer, and a restarted owner must go on (R12): peers refuse an old copy
    confirmed    etcd's record names this process
    refused      an old copy, a clone or a replaced store: it takes part in nothing, and says so

A process is refused for what it has compared with its own lineage itself: etcd's record, which it has read, and a run that a
peer has met, which the peer names. That another process ran as the same generation of the store, or told more than it left
here, does not become false. All else that a peer says (that its table has another store, that a run is too long
ago to be known here) may be out of date: it costs the connection, and is tried again.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

from metastore import fields
from metastore.core.messages import Lineage, Process, Seen
from metastore.layout import MarkRecord, NodeRecord
from metastore.storage.facts import read_fact
from metastore.storage.store import Store

FACT_GENERATIONS: Final = "peer_generations"
FACT_REGISTERED: Final = "registered"
FACT_REFUSED: Final = "refused"
MAX_REMEMBERED: Final = 1024

_GENERATIONS: Final = fields.mapping(
    fields.name,
    fields.row(fields.name, fields.whole(), fields.text, fields.whole(), fields.flag),
    high=1 << 20,
)
_REFUSED: Final = fields.maybe(fields.row(fields.text, fields.text))

State = Literal["starting", "provisional", "confirmed", "refused"]

WAY_OUT: Final = (
    "its records are on the other replicas: stop it, set its folder aside (metastore-node --config FILE --discard-store "
    "deletes nothing) and start it: it comes back empty under its name, and is filled by itself"
)
#: of a store that was refused, in words that are not valid here
UNREADABLE_REFUSAL: Final = ("it was refused before", WAY_OUT)
OTHER_NAME: Final = "stop it; to run one more node, give it a name and an empty folder of its own"


class Known(NamedTuple):
    """The newest process known to have run on a store, the generation that it told, and its mark; ``vouched``: it was etcd's,
    so that all that etcd confirms later descends from it."""

    store: str
    generation: int
    incarnation: str
    mark: int = 0
    vouched: bool = False

    @property
    def seen(self) -> Seen:
        return Seen(self.generation, self.incarnation, self.mark)


class Verdict(NamedTuple):
    """``good``: it may be registered; ``wait``: another process may be alive; ``refused``: never.
    ``lasting``: it says something of the folder, and is true after a restart too."""

    kind: Literal["good", "wait", "refused"]
    why: str = ""
    do: str = ""
    lasting: bool = False


class PeerRefusal(NamedTuple):
    """Why a process is no peer. ``seen``: what it is to compare with its own lineage; None = this says nothing of its store
    that it could compare, and it is to try again."""

    why: str
    seen: Seen | None = None


def judge(
    mine: NodeRecord,
    lineage: Lineage,
    known: NodeRecord | None,
    present: str,
    fresh: bool,
    mark: MarkRecord | None = None,
) -> Verdict:
    """Whether ``mine`` may replace ``known``, etcd's record. ``lineage``: of this store; ``present``: the process whose lease holds the
    node's presence, "" = none; ``fresh``: this store has never been registered and holds nothing; ``mark``: the last
    that etcd was told by a process of the node.

    A process that listens at the address of ``known`` itself knows that no other process serves there any more. But of another
    store, which may be on another machine whose address has the same name, only the lease says so.
    """
    told = Seen(mark.generation, mark.incarnation, mark.mark) if mark is not None else Seen(0, "")
    if mark is not None and mark.store_id == mine.store_id and lineage.lacks(told):
        return Verdict("refused", behind(lineage, told), WAY_OUT, True)
    if known is None or (known.store_id, known.incarnation) == (mine.store_id, mine.incarnation):
        return Verdict("good")
    holder = f"process {known.incarnation or 'unknown'} at {known.rpc}"
    same_store = known.store_id == mine.store_id
    if same_store and not lineage.has(Seen(known.generation, known.incarnation)):
        why = (
            f"{holder} ran on this store as its generation {known.generation}, of which this folder, at "
            f"{mine.generation}, has no trace: it is an old copy, and lacks what was acknowledged since"
        )
        return Verdict("refused", why, WAY_OUT, True)
    if not same_store and not fresh:
        why = (
            f"node {mine.node} has store {known.store_id} now: this one ({mine.store_id}) was replaced by it"
        )
        return Verdict("refused", why, WAY_OUT, True)
    if (known.rpc != mine.rpc or not same_store) and present not in ("", mine.incarnation):
        return Verdict("wait", f"{holder} may still run as node {mine.node}")
    return Verdict("good")


def behind(lineage: Lineage, seen: Seen) -> str:
    """Why a store that lacks what was ``seen`` is an old copy."""
    return (
        f"process {seen.incarnation}, which ran on this store as its generation {seen.generation}, reported that its log was durable "
        f"up to record {seen.mark}, and in this folder the log ends at {lineage.end_of(seen)}: it is an old copy, made while that ran"
    )


def judge_living(mine: NodeRecord, known: NodeRecord) -> Verdict:
    """The process of ``known`` has just answered, at another address than this one's."""
    holder = f"process {known.incarnation or 'unknown'} at {known.rpc}"
    if known.store_id == mine.store_id:
        why = f"{holder} runs on this store too, with generation {known.generation}: this folder is a clone"
        return Verdict("refused", why, WAY_OUT, True)
    return Verdict("refused", f"{holder} runs as node {mine.node} already", OTHER_NAME)


def judge_peer(
    peer: Process, lineage: Lineage, known: list[Known], current: bool, rival: Process | None
) -> PeerRefusal | None:
    """Whether ``peer``, whose store has the ``lineage``, descends from what is ``known`` of it. ``current``: etcd
    answers, and its record names this process; ``rival``: another process of the node that is connected, and
    was heard lately.

    What etcd confirms descends from what it confirmed before, however long ago. But not from a run that came and went
    while etcd was away; nor need it have what a run told."""
    for one in known:
        if one.store != peer.store:
            continue
        if lineage.lacks(one.seen):
            return PeerRefusal(behind(lineage, one.seen), one.seen)
        implied = one.vouched and (current or one is not known[0])
        if not implied and not lineage.has(one.seen):
            return PeerRefusal(
                f"process {one.incarnation} ran on that store as its generation {one.generation}, of which this one, "
                f"at {lineage.generation}, knows nothing: it is an old copy",
                one.seen,
            )
    if not current and rival is not None and rival != peer:
        return PeerRefusal(
            f"process {rival.incarnation} of that node is connected here, and alive: if it keeps running, this is a clone"
        )
    return None


class Identity:
    """What this process knows of its own store, and of its peers' stores."""

    def __init__(self, store: Store, me: Process) -> None:
        self._store = store
        self.me = me
        self.state: State = "starting"
        self.why = self.do = ""
        #: peers that do not let it in, and why: what they say of its store may be out of date
        self._accusers: dict[str, str] = {}
        #: peers whose stores have less than they acknowledged, as leaders here noticed: node -> what
        self.lacking: dict[str, str] = {}
        none: dict[str, tuple[Any, ...]] = {}
        told = read_fact(store.facts, FACT_GENERATIONS, _GENERATIONS, none, none)
        self._peers = {node: Known(*found) for node, found in told.items()}
        refused = read_fact(store.facts, FACT_REFUSED, _REFUSED, None, UNREADABLE_REFUSAL)
        if refused is not None:
            self.refuse(*refused)

    @property
    def lineage(self) -> Lineage:
        return self._store.lineage

    @property
    def refused(self) -> bool:
        return self.state == "refused"

    @property
    def fresh(self) -> bool:
        """Whether the store has never been registered, for all it knows, and holds nothing."""
        return not self._store.facts.get(FACT_REGISTERED) and not self._store.partitions

    def refuse(self, why: str, do: str) -> None:
        self.state, self.why, self.do = "refused", why, do

    def known(self, node: str, record: NodeRecord | None) -> list[Known]:
        """What the node's store must descend from, the newest first: etcd's record, as last seen, and what a process told here."""
        told = self._peers.get(node)
        if record is None:
            return [told] if told is not None else []
        found = Known(record.store_id, record.generation, record.incarnation, vouched=True)
        if told is None or told.store != found.store:
            return [found]
        if told[:3] == found[:3]:
            return [told._replace(vouched=True)]
        if told.generation > found.generation:
            return [told]
        return [found, told]

    def vouch(self, record: NodeRecord) -> bool:
        """etcd has this record; whether that says something new of a process that is remembered."""
        told = self._peers.get(record.node)
        if (
            told is None
            or told.vouched
            or told[:3] != (record.store_id, record.generation, record.incarnation)
        ):
            return False
        self._peers[record.node] = told._replace(vouched=True)
        return True

    def remember(self, peer: Process, generation: int, nodes: dict[str, NodeRecord]) -> dict[str, Any] | None:
        """Keep what ``peer``, who was let in, told; what is to be made durable, None = nothing new. Stores
        that were replaced and nodes that are gone are forgotten."""
        record = nodes.get(peer.node)
        vouched = record is not None and (record.store_id, record.incarnation) == peer[1:]
        new = Known(peer.store, generation, peer.incarnation, vouched=vouched)
        old = self._peers.get(peer.node)
        if not generation or (old is not None and old[:3] == new[:3]):
            return None
        self._peers[peer.node] = new
        for node in [n for n in self._peers if n not in nodes and n != peer.node]:
            del self._peers[node]
        for node in list(self._peers)[: max(0, len(self._peers) - MAX_REMEMBERED)]:
            del self._peers[node]
        return self.memory()

    def memory(self) -> dict[str, Any]:
        """What is remembered of peers, as it is kept."""
        return {node: list(known) for node, known in self._peers.items()}

    def note_mark(self, peer: Process, mark: int) -> bool:
        """``peer``, who was let in, tells its mark; whether that is new."""
        known = self._peers.get(peer.node)
        if known is None or (known.store, known.incarnation) != peer[1:] or mark <= known.mark:
            return False
        self._peers[peer.node] = known._replace(mark=mark)
        return True

    def accuse(self, by: str, why: str) -> bool:
        """A peer does not let this process in, ``why``; "" = it does. Whether that is news."""
        news = self._accusers.get(by, "") != why
        if why:
            self._accusers[by] = why
        else:
            self._accusers.pop(by, None)
        return news

    def view(self) -> dict[str, Any]:
        """For status."""
        return {
            "state": self.state,
            "generation": self.lineage.generation,
            "why": self.why,
            "do": self.do,
            "accused": "; ".join(self._accusers.values()),
            "lacking": dict(self.lacking),
        }
