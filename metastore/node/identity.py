"""Whether the store of this node is the one that its name and generation say (R13).

A store has a generation: a counter of the processes that ran on it, raised and durable before a process's
first message, and it knows which those were. etcd's record of the node has the last that registered (by
compare-and-swap), and peers remember what they heard, for when etcd is away. A store whose own lineage does
not have that process at that generation is no descendant of what it acknowledged then: an old copy that was
put back, or a clone. (The number alone would not do: an old copy that is started often enough passes it.)
The judgements are pure.

    starting     nothing is sent, answered or served: etcd's word comes first
    provisional  etcd does not answer, and a restarted owner must go on (R12): peers refuse an old copy
    confirmed    etcd's record names this very process
    refused      an old copy, a clone or a replaced store: it takes part in nothing, and says so
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

from metastore.core.messages import Lineage, Process
from metastore.layout import NodeRecord
from metastore.storage.store import Store

FACT_GENERATIONS: Final = "peer_generations"
FACT_REGISTERED: Final = "registered"
FACT_REFUSED: Final = "refused"
MAX_REMEMBERED: Final = 1024

State = Literal["starting", "provisional", "confirmed", "refused"]

WAY_OUT: Final = (
    "its records are on the other replicas: stop it, set its folder aside (metastore-node --config FILE --discard-store "
    "deletes nothing) and start it: it comes back empty under its name, and is filled by itself"
)
OTHER_NAME: Final = "stop it; to run one more node, give it a name and an empty folder of its own"


class Known(NamedTuple):
    """The newest process known to have run on a store, and the generation that it told."""

    store: str
    generation: int
    incarnation: str


class Verdict(NamedTuple):
    """``good``: it may be registered; ``wait``: another process may be alive; ``refused``: never.
    ``lasting``: it says something of the folder, and is true after a restart too."""

    kind: Literal["good", "wait", "refused"]
    why: str = ""
    do: str = ""
    lasting: bool = False


class PeerRefusal(NamedTuple):
    """Why a process is no peer. ``copy``: because its store is an old copy, or was replaced."""

    why: str
    copy: bool = False


def judge(mine: NodeRecord, lineage: Lineage, known: NodeRecord | None, present: str, fresh: bool) -> Verdict:
    """Whether ``mine`` may replace ``known``, etcd's record. ``lineage``: of this store; ``present``: the process whose lease holds the
    node's presence, "" = none; ``fresh``: this store has never been registered and holds nothing.

    Whoever has bound the address of ``known`` itself knows that no other process serves there any more.
    """
    if known is None or (known.store_id, known.incarnation) == (mine.store_id, mine.incarnation):
        return Verdict("good")
    elsewhere = known.rpc != mine.rpc
    holder = f"process {known.incarnation or 'unknown'} at {known.rpc}"
    if known.store_id == mine.store_id and not lineage.descends_from(known.generation, known.incarnation):
        why = (
            f"{holder} ran on this store as its generation {known.generation}, of which this folder, at "
            f"{mine.generation}, knows nothing: it is an old copy, and lacks what was acknowledged since"
        )
        return Verdict("refused", why, WAY_OUT, True)
    if known.store_id != mine.store_id and not fresh:
        why = (
            f"node {mine.node} has store {known.store_id} now: this one ({mine.store_id}) was replaced by it"
        )
        return Verdict("refused", why, WAY_OUT, True)
    if elsewhere and present not in ("", mine.incarnation):
        return Verdict("wait", f"{holder} may still run as node {mine.node}")
    return Verdict("good")


def judge_living(mine: NodeRecord, known: NodeRecord) -> Verdict:
    """The process of ``known`` has just answered, at another address than this one's."""
    holder = f"process {known.incarnation or 'unknown'} at {known.rpc}"
    if known.store_id == mine.store_id:
        why = f"{holder} runs on this very store with generation {known.generation}: this folder is a clone"
        return Verdict("refused", why, WAY_OUT, True)
    return Verdict("refused", f"{holder} runs as node {mine.node} already", OTHER_NAME)


def judge_peer(
    peer: Process, lineage: Lineage, known: Known | None, current: bool, rival: Process | None
) -> PeerRefusal | None:
    """Whether ``peer``, whose store has the ``lineage``, descends from what is ``known`` of it. ``current``: etcd
    answers, and its record names this very process; ``rival``: another process of the node that is connected, and
    was heard lately."""
    if current:
        return None
    told = known is not None and known.store == peer.store
    if told and known is not None and not lineage.descends_from(known.generation, known.incarnation):
        return PeerRefusal(
            f"process {known.incarnation} ran on that store as its generation {known.generation}, of which this one, "
            f"at {lineage.generation}, knows nothing: it is an old copy",
            True,
        )
    if rival is not None and rival != peer:
        return PeerRefusal(
            f"process {rival.incarnation} of that node is connected here, and alive: if it goes on, this is a clone"
        )
    return None


class Identity:
    """What this process knows of its own store, and of its peers' stores."""

    def __init__(self, store: Store, me: Process) -> None:
        self._store = store
        self.me = me
        self.lineage = store.lineage
        self.state: State = "starting"
        self.why = self.do = ""
        #: what peers say against it, which etcd contradicts
        self.accused = ""
        #: peers whose stores have less than they acknowledged, as leaders here noticed: node -> what
        self.lacking: dict[str, str] = {}
        self._peers = {
            str(node): Known(*found) for node, found in store.facts.get(FACT_GENERATIONS, {}).items()
        }
        refused = store.facts.get(FACT_REFUSED)
        if refused is not None:
            self.refuse(str(refused[0]), str(refused[1]))

    @property
    def refused(self) -> bool:
        return self.state == "refused"

    @property
    def fresh(self) -> bool:
        """Whether the store has never been registered, and holds nothing."""
        return not self._store.facts.get(FACT_REGISTERED) and not self._store.partitions

    def refuse(self, why: str, do: str) -> None:
        self.state, self.why, self.do = "refused", why, do

    def known(self, node: str, record: NodeRecord | None) -> Known | None:
        """The newest that etcd's record (as last seen) or a hello told of the node's store."""
        told = self._peers.get(node)
        if record is None:
            return told
        if told is not None and told.store == record.store_id and told.generation > record.generation:
            return told
        return Known(record.store_id, record.generation, record.incarnation)

    def remember(self, peer: Process, generation: int, nodes: dict[str, NodeRecord]) -> dict[str, Any] | None:
        """Keep what ``peer``, who was let in, told; what is to be made durable, None = nothing new. Stores
        that were replaced and nodes that are gone are forgotten."""
        new = Known(peer.store, generation, peer.incarnation)
        if not generation or self._peers.get(peer.node) == new:
            return None
        self._peers[peer.node] = new
        for node in [n for n in self._peers if n not in nodes and n != peer.node]:
            del self._peers[node]
        for node in list(self._peers)[: max(0, len(self._peers) - MAX_REMEMBERED)]:
            del self._peers[node]
        return {node: list(known) for node, known in self._peers.items()}

    def view(self) -> dict[str, Any]:
        """For status."""
        return {
            "state": self.state,
            "generation": self.lineage.generation,
            "why": self.why,
            "do": self.do,
            "accused": self.accused,
            "lacking": dict(self.lacking),
        }
