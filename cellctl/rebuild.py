"""What etcd's records have to be, by what the stores promised and the nodes remember (R13). Pure.

Each partition goes on with the newest config that any store knows, once the stores that answered are a quorum of it: every
later config would have been sealed by one of them (R3, R10), so there is none. Its next term lies above every one that any
store has sealed and any record names, by TERMS_AHEAD: what the lost etcd handed out last, and no store heard of, is none
that can win (R1). Its leader is the one that leads now, so that nothing changes hands; it seals a quorum like every other
owner of a new term (R3, R4), claims without etcd (R16) included: these are restarts of terms below.

A partition that was split off exists in a store only once the entry that split it is committed (R18), so its parent's record
ends where it begins, whether the lost etcd had been told or not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from cellctl.reports import Report
from metastore import schema
from metastore.coordination.interface import KV, Compare, Delete, Known, Op, Peek, Put
from metastore.coordination.lineage import objection
from metastore.core.quorum import is_quorum
from metastore.errors import InvalidRequest
from metastore.fields import BadRecord
from metastore.keys import HASH_NAME
from metastore.layout import (
    FIRST_LEVEL,
    FORMAT,
    MAX_EPOCH,
    MAX_REPLACED,
    CellRecord,
    ClusterMeta,
    ConfigRecord,
    FeaturesRecord,
    HistoryRecord,
    Layout,
    LineageRecord,
    NodeRecord,
    SplitRecord,
    first_epoch,
    term_of,
    to_json,
)
from metastore.node.control_report import ONLY_IN_ETCD
from metastore.placement import RING
from metastore.topology import is_config

#: events to a transaction: etcd takes 128 of each kind
MAX_EVENTS: Final = 100
#: so many terms the new ones are above all that are known
TERMS_AHEAD: Final = 16
RING_END: Final = 1 << 64
#: records of these kinds are taken from a backup when nobody remembers better ones
FROM_BACKUP: Final = frozenset({"cells", "drained", "features", "paused", "next_partition", "namespaces"})


@dataclass(frozen=True)
class Etcd:
    """etcd as it is: who it is, its own revision, the records below the cluster's root, by key, and the keys of the
    events that it has (``cellctl history``)."""

    cluster_id: int
    revision: int
    kvs: dict[str, KV]
    past: frozenset[str] = frozenset()


class Step(NamedTuple):
    """One transaction, and what it is for; it compares what was read, so that a run that was broken off, or met a change, is
    simply run again."""

    what: str
    compares: list[Compare]
    ops: list[Op]


@dataclass
class Rebuild:
    """What is to be done. ``refused``: partition -> why it cannot be; ``notes``: what people should know."""

    steps: list[Step] = field(default_factory=list)
    configs: dict[int, tuple[str, ConfigRecord]] = field(default_factory=dict)
    #: records that are good as they are
    kept: dict[int, ConfigRecord] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    left_out: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lineage: LineageRecord | None = None

    @property
    def needed(self) -> bool:
        return self.lineage is not None


def compute(
    layout: Layout,
    etcd: Etcd,
    reports: Iterable[Report],
    *,
    without: Collection[int] = (),
    backup: Mapping[str, bytes] | None = None,
    past: Mapping[str, bytes] | None = None,
    at_ms: int = 0,
) -> Rebuild:
    """``without``: partitions to leave as they are; ``backup``: records by key below the cluster's root; ``past``: the events
    of that backup, by their keys. Raises InvalidRequest when it would be wrong to write anything at all."""
    return _Rebuilding(
        layout, etcd, list(reports), set(without), dict(backup or {}), dict(past or {}), at_ms
    ).run()


class _Rebuilding:
    """One computation."""

    def __init__(
        self,
        layout: Layout,
        etcd: Etcd,
        reports: list[Report],
        without: set[int],
        backup: dict[str, bytes],
        past: dict[str, bytes],
        at_ms: int,
    ) -> None:
        self.layout, self.etcd, self.reports = layout, etcd, reports
        self.without, self.backup, self.past, self.at_ms = without, backup, past, at_ms
        self.stores = [r for r in reports if r.counts]
        self.result = Rebuild()
        self.there = {key[len(layout.root) :]: kv for key, kv in etcd.kvs.items()}
        self.nodes = self._nodes()
        found = self._there("lineage", LineageRecord)
        self.lineage = found if found is not None and found.cluster_id == etcd.cluster_id else None

    def run(self) -> Rebuild:
        self._check()
        if not self._is_due():
            return self.result
        self._partitions()
        self._check_ring()
        if self.result.refused:
            return self.result
        self._other_records()
        for p in sorted(self.result.configs):
            self._write_config(p, *self.result.configs[p])
        for p in self.result.left_out:
            self._leave_out(p)
        self._write_past()
        self._write_lineage()
        return self.result

    # --- whether at all -------------------------------------------------------------------------

    def _check(self) -> None:
        """Raises InvalidRequest."""
        if not self.stores:
            raise InvalidRequest("no node answers whose store is known to be its own; start the nodes first")
        for report in self.reports:
            follows = report.connected and not report.untrusted
            if follows and report.cluster_id not in (None, self.etcd.cluster_id):
                raise InvalidRequest(
                    f"node {report.node.node} follows another etcd ({report.cluster_id:x}) than this one "
                    f"({self.etcd.cluster_id:x}), and trusts it: two of them must never both assign terms. If this one is to "
                    "replace it: stop that one, give the nodes this one's address, restart them one by one, and try again"
                )

    def _is_due(self) -> bool:
        """Whether somebody distrusts this etcd, and will not come to trust it by what is there."""
        distrust = [r for r in self.reports if r.untrusted and not self._will_follow(r)]
        for report in distrust:
            self.result.notes.append(f"{report.node.node} distrusts etcd: {report.untrusted}")
        return bool(distrust)

    def _will_follow(self, report: Report) -> bool:
        """Whether the record of an earlier run lets it."""
        if self.lineage is None:
            return False
        known = Known(report.cluster_id, report.revision, report.base, report.number)
        seen = Peek(self.etcd.cluster_id, self.etcd.revision, None)
        return not objection(self.lineage, known, seen, False)

    # --- partitions -----------------------------------------------------------------------------

    def _partitions(self) -> None:
        result = self.result
        named = set(self.without)
        for p in sorted(self._known_partitions()):
            try:
                chosen = self._choose(p)
            except InvalidRequest as e:
                if p in self.without:
                    result.left_out.append(p)
                else:
                    result.refused[p] = e.message
                continue
            named.discard(p)
            result.configs[p] = chosen
        if wrong := sorted(named - set(result.left_out)):
            result.notes.append(f"there is no partition {', '.join(map(str, wrong))} to leave out")
        for q, (_, config) in list(result.configs.items()):
            self._end_parent(q, config)
        for p, (cell, config) in list(result.configs.items()):
            if self._is_good(p, cell, config):
                result.kept[p] = config
                del result.configs[p]
            else:
                result.configs[p] = cell, self._next(p, config)

    def _known_partitions(self) -> set[int]:
        found = {p for r in self.reports for p in r.partitions if r.partitions[p].config is not None}
        found |= {p for r in self.reports for p in r.table.partitions}
        return found | {p for _, p, _ in self._config_records()}

    def _config_records(self) -> list[tuple[str, int, KV]]:
        found = []
        for key, kv in self.there.items():
            parts = tuple(key.split("/"))
            if is_config(parts):
                found.append((parts[1], int(parts[2]), kv))
        return found

    def _choose(self, p: int) -> tuple[str, ConfigRecord]:
        """Cell and config of a partition, as the stores have it. Raises InvalidRequest."""
        configs = [
            r.partitions[p].config
            for r in self.stores
            if p in r.partitions and r.partitions[p].config is not None
        ]
        newest = max((c for c in configs if c is not None), key=lambda c: c.epoch, default=None)
        if newest is None:
            raise InvalidRequest("no store that answers has a record of it")
        if any(c is not None and c.epoch == newest.epoch and c != newest for c in configs):
            raise InvalidRequest(f"stores disagree on its record of epoch {newest.epoch}")
        here = {(r.node.node, r.node.store_id) for r in self.stores}
        answered = {node for node, store in newest.members() if (node, store) in here}
        if not is_quorum(newest, answered):
            lacking = sorted(node for node, _ in newest.members() if node not in answered)
            raise InvalidRequest(
                f"{len(answered)} of {len(newest.members())} of its stores answer, which is no quorum: what the others "
                f"have is not known. Start {', '.join(lacking)}"
            )
        cells = {self.nodes[node].cell for node, _ in newest.replicas if node in self.nodes}
        if len(cells) != 1:
            raise InvalidRequest(f"its replicas are in cells {', '.join(sorted(cells)) or 'unknown'}")
        return cells.pop(), newest

    def _end_parent(self, q: int, config: ConfigRecord) -> None:
        """R18: what is split off is above the parent's end."""
        parent = self.result.configs.get(config.parent[0]) if config.parent is not None else None
        if parent is not None and config.parent is not None and parent[1].lo < config.lo < parent[1].hi:
            self.result.configs[config.parent[0]] = parent[0], replace(parent[1], hi=config.lo)

    def _highest_term(self, p: int) -> int:
        """Of all that any store has sealed, and any record or table names."""
        epochs = [0]
        for report in self.reports:  # also of those that do not count: what they know is not less true
            held, placed = report.partitions.get(p), report.table.partitions.get(p)
            if held is not None:
                epochs += [held.sealed, held.config.epoch if held.config is not None else 0]
            if placed is not None:
                epochs.append(placed.epoch)
        for _, q, kv in self._config_records():
            if q == p:
                try:
                    epochs.append(ConfigRecord.from_json(kv.value).epoch)
                except BadRecord:
                    continue
        return term_of(max(epochs))

    def _leader(self, p: int, config: ConfigRecord) -> str | None:
        """Who leads in the newest epoch, if it is a member."""
        leading = [
            (r.partitions[p].sealed, r.node.node)
            for r in self.stores
            if p in r.partitions
            and r.partitions[p].leads
            and (r.node.node, r.node.store_id) in config.members()
        ]
        return max(leading)[1] if leading else None

    def _next(self, p: int, config: ConfigRecord) -> ConfigRecord:
        epoch = first_epoch(self._highest_term(p) + TERMS_AHEAD)
        if epoch > MAX_EPOCH:
            raise InvalidRequest(
                f"partition {p}: a store has sealed a term beyond the highest that a record can hold"
            )
        return replace(config, epoch=epoch, leader=self._leader(p, config))

    def _is_good(self, p: int, cell: str, config: ConfigRecord) -> bool:
        """Whether etcd's record is what the stores go by, and this etcd was rebuilt before: then it stays."""
        if self.lineage is None or [c for c, q, _ in self._config_records() if q == p] != [cell]:
            return False
        kv = self.there[f"config/{cell}/{p:05d}"]
        return kv.value == config.to_json() and self._highest_term(p) == term_of(config.epoch)

    def _check_ring(self) -> None:
        """Every key has a partition, but for those that are left out. Raises InvalidRequest."""
        result = self.result
        if result.refused or result.left_out:
            return
        at = 0
        every = [*result.kept.values(), *(config for _, config in result.configs.values())]
        for config in sorted(every, key=lambda c: c.lo):
            if config.lo != at:
                raise InvalidRequest(
                    f"the partitions leave a gap or overlap at {at:016x}, before partition {config.partition}: a node that "
                    "has one there does not answer; start all nodes, and try again"
                )
            at = config.hi
        if at != RING_END:
            raise InvalidRequest(f"the partitions end at {at:016x}: start all nodes, and try again")

    # --- everything else ------------------------------------------------------------------------

    def _nodes(self) -> dict[str, NodeRecord]:
        """By the nodes themselves, else by what others know of them."""
        found: dict[str, NodeRecord] = {}
        for report in sorted(self.reports, key=lambda r: r.table.revision):
            found |= report.table.nodes
        return found | {r.node.node: r.node for r in self.stores}

    def _there(self, key: str, wanted: type[Any]) -> Any:
        kv = self.there.get(key)
        if kv is None:
            return None
        try:
            return schema.read_record(tuple(key.split("/")), kv.value, wanted)
        except BadRecord:
            return None

    def _other_records(self) -> None:
        wanted = self._remembered()
        for name, record in self.nodes.items():
            wanted[f"nodes/{name}"] = to_json(record)
        configs = {p: c for p, (_, c) in self.result.configs.items()}
        cells = {cell for cell, _ in self.result.configs.values()} | {n.cell for n in self.nodes.values()}
        for cell in cells:
            wanted[f"cells/{cell}"] = wanted.get(f"cells/{cell}") or CellRecord().to_json()
        if wanted.get("meta") is None:
            first = len(self._known_partitions()) - sum(1 for c in configs.values() if c.parent is not None)
            meta = ClusterMeta(FORMAT, self.layout.cluster, first, HASH_NAME, RING)
            wanted["meta"] = to_json(meta)
        highest = max(self._known_partitions()) + 1
        counter = wanted.get("next_partition")
        if any(c.parent for c in configs.values()) or counter is not None:
            known = int(counter) if counter is not None and counter.isdigit() else 0
            wanted["next_partition"] = schema.next_partition_to_bytes(max(known, highest))
        level = self._level(wanted.get("features"))
        if level > FIRST_LEVEL:
            wanted["features"] = FeaturesRecord(level).to_json()
        for key, value in sorted(wanted.items()):
            self._write(key, value)

    def _level(self, remembered: bytes | None) -> int:
        """The cluster's feature level never falls."""
        there = self._there("features", FeaturesRecord)
        levels = [r.level for r in self.reports] + [there.level if there is not None else FIRST_LEVEL]
        if remembered is not None:
            levels.append(FeaturesRecord.from_json(remembered).level)
        return int(max(levels))

    def _remembered(self) -> dict[str, bytes | None]:
        """Of records that only etcd had: what they are to be, None = gone. By the report that saw most of them, else by what is
        there, a backup, and what nodes keep of namespaces."""
        notes, wanted = self.result.notes, self._mirrored()
        seen = self._best_mirror()
        if seen is not None and seen.untrusted:
            assert seen.mirror is not None
            notes.append(f"records that only etcd had are taken from the memory of {seen.node.node}")
            wanted = dict.fromkeys(wanted)
            wanted |= {k: v.encode() for k, v in seen.mirror.items() if self._makes_sense(k, v.encode())}
        elif seen is None:  # all who knew have been restarted since
            self._add_backup(wanted)
            best = max(self.reports, key=lambda r: r.table.revision).table
            wanted |= {f"namespaces/{name}": policy.to_json() for name, policy in best.namespaces.items()}
        for key in [k for k in wanted if k.startswith("splits/")]:
            wanted[key] = self._split(wanted[key])
        return wanted

    def _mirrored(self) -> dict[str, bytes | None]:
        """What is there, and makes sense, of the kinds that only etcd has."""
        return {
            k: kv.value
            for k, kv in self.there.items()
            if k.split("/")[0] in ONLY_IN_ETCD and self._makes_sense(k, kv.value)
        }

    def _add_backup(self, wanted: dict[str, bytes | None]) -> None:
        if self.backup:
            self.result.notes.append(
                "cells' settings, drained nodes and whether changes are paused are taken from the backup"
            )
            for key, value in self.backup.items():
                if key.split("/")[0] in FROM_BACKUP and self._makes_sense(key, value):
                    wanted.setdefault(key, value)
        elif not wanted:
            self.result.notes.append(
                "no node remembers the cells' settings, which nodes were drained, and whether changes were paused: set them "
                "again (cellctl cell, node, pause), or name a backup (--backup)"
            )

    def _split(self, value: bytes | None) -> bytes | None:
        """An intention to split that is not carried out yet."""
        if value is None:
            return None
        found = SplitRecord.from_json(value)
        return None if found.child in self._known_partitions() else value

    @staticmethod
    def _makes_sense(key: str, value: bytes) -> bool:
        try:
            return schema.read(tuple(key.split("/")), value) is not None
        except BadRecord:
            return False

    def _best_mirror(self) -> Report | None:
        """Who saw the latest of the records; not one that only knows this etcd as it is now, while others knew another."""
        distrust = any(r.untrusted for r in self.reports)
        usable = [
            r for r in self.stores if r.mirror is not None and (r.untrusted or r.number or not distrust)
        ]
        return max(usable, key=lambda r: r.mirror_revision, default=None)

    # --- writing --------------------------------------------------------------------------------

    def _unchanged(self, key: str) -> Compare:
        kv, full = self.there.get(key), self.layout.root + key
        return Compare.absent(full) if kv is None else Compare.mod_revision_is(full, kv.mod_revision)

    def _write(self, key: str, value: bytes | None) -> None:
        kv, full = self.there.get(key), self.layout.root + key
        if (kv.value if kv is not None else None) == value:
            return
        op = Delete(full) if value is None else Put(full, value)
        self.result.steps.append(Step(key, [self._unchanged(key)], [op]))

    def _write_config(self, p: int, cell: str, config: ConfigRecord) -> None:
        """With it goes whatever the old etcd had of the partition elsewhere, and who led it by a lease of its."""
        layout, homes = self.layout, {c for c, q, _ in self._config_records() if q == p} | {cell}
        compares = [self._unchanged(f"config/{home}/{p:05d}") for home in sorted(homes)]
        ops: list[Op] = [Put(layout.config(cell, p), config.to_json())]
        ops += [Delete(layout.config(home, p)) for home in sorted(homes - {cell})]
        ops += [Delete(layout.leader(home, p)) for home in sorted(homes)]
        names = tuple(node for node, _ in config.members())
        cause = "cellctl control rebuild"
        event = HistoryRecord(p, config.epoch, cell, config.leader, names, "rebuild", cause, self.at_ms)
        ops.append(Put(layout.history(p, config.epoch), event.to_json()))
        self.result.steps.append(Step(f"config/{cell}/{p:05d}", compares, ops))

    def _leave_out(self, p: int) -> None:
        """A record that is behind what stores have sealed would have etcd distrusted again; its members go on by claims."""
        for cell, q, _ in self._config_records():
            if q == p:
                self._write(f"config/{cell}/{p:05d}", None)
                self.result.steps[-1].ops.append(Delete(self.layout.leader(cell, p)))

    def _write_past(self) -> None:
        """Events that the backup has and etcd has not, for people (``cellctl history``); nothing else knows them. None takes
        the place of one that is there, or that this rebuilding makes."""
        layout, taken = self.layout, {op.key for step in self.result.steps for op in step.ops}
        puts: list[Op] = []
        for key, value in sorted(self.past.items()):
            if key in self.etcd.past or key in taken:
                continue
            try:
                event = HistoryRecord.from_json(value)
            except BadRecord:
                continue
            if key == layout.history(event.partition, event.epoch):
                puts.append(Put(key, value))
        for i in range(0, len(puts), MAX_EVENTS):
            some = puts[i : i + MAX_EVENTS]
            self.result.steps.append(Step("history", [Compare.absent(put.key) for put in some], some))

    def _write_lineage(self) -> None:
        """Last of all: by this nodes trust what is there."""
        known = self._there("lineage", LineageRecord)
        number = max([r.number for r in self.reports] + [known.number if known is not None else 0]) + 1
        base = max([r.revision for r in self.reports] + [r.table.revision for r in self.reports])
        if self.lineage is not None:
            base = max(base, self.lineage.base + self.etcd.revision)
        ids = {r.cluster_id for r in self.reports if r.cluster_id is not None}
        older = list(known.replaces) if known is not None else []
        replaces = sorted(ids) + [one for one in older if one not in ids]
        self.result.lineage = LineageRecord(
            number, self.etcd.cluster_id, base, tuple(replaces[:MAX_REPLACED]), self.at_ms
        )
        put = Put(self.layout.lineage, self.result.lineage.to_json())
        self.result.steps.append(Step("lineage", [self._unchanged("lineage")], [put]))
