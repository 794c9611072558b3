"""Each check of ``cellctl doctor`` finds its ill, and nothing in a cluster that is well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cellctl.findings import findings
from cellctl.findings.partitions import FLAP_ELECTIONS
from cellctl.findings.seen import Seen
from cellctl.records import Records
from metastore.coordination.etcd_members import EtcdMember
from metastore.layout import CellRecord, ConfigRecord, HistoryRecord, NodeRecord

MEMBER = EtcdMember("b:1", "", "3.5.1", 1, leader=7, index=20_000, size=1 << 20, in_use=1 << 20)
NOW = 1_700_000_000_000
NODES = ("c1n1", "c1n2", "c1n3")
MEMBERS = tuple((n, f"store-{n}") for n in NODES)


def view(name: str) -> dict[str, Any]:
    return {
        "node": name,
        "version": "1.0",
        "clock_ms": NOW + 5,
        "failed": None,
        "settings": {"heartbeat_ms": 150, "lease_ttl_s": 5.0},
        "disk": {"free_bytes": 50, "total_bytes": 100, "state_bytes": 1, "state_limit_bytes": 100},
        "etcd": {
            "connected": True,
            "lease": True,
            "lease_margin_s": 3.3,
            "untrusted": "",
            "trouble": "",
            "watch_silent_s": 0.1,
        },
        "lapses": {"c1n2": [1, 9]},
        "stalls": 0,
        "worst_stall_ms": 0,
        "storage": {"log_last_sync_us": 900, "rebuilt_total": 0},
        "partitions": [{"id": 0, "damaged": None}],
        "clients": {"refused_total": 0},
        "identity": {
            "state": "confirmed",
            "generation": 1,
            "why": "",
            "do": "",
            "accused": "",
            "lacking": {},
        },
    }


def row(p: int, leader: str = "c1n1") -> dict[str, Any]:
    return {
        "id": p,
        "cell": "c1",
        "leader": leader,
        "replicas": list(NODES),
        "down": [],
        "missing": [],
        "lag": {},
        "health": "ok",
    }


def well() -> dict[str, Any]:
    ends = (0, 1 << 62, 1 << 63, 1 << 64)
    configs = {p: ("c1", ConfigRecord(p, ends[p], ends[p + 1], 1 << 16, "c1n1", MEMBERS)) for p in range(3)}
    nodes = {n: NodeRecord(n, "c1", s, "h:1", "h:2") for n, s in MEMBERS}
    records = Records(1, {"c1": CellRecord()}, nodes, frozenset(), frozenset(NODES), configs, {}, False)
    return {
        "statuses": {n: view(n) for n in NODES},
        "cells": dict.fromkeys(NODES, "c1"),
        "rows": [row(p, NODES[p]) for p in range(3)],
        "asked_ms": (NOW, NOW + 10),
        "records": records,
        "history": [],
        "members": [MEMBER],
    }


def test_a_cluster_that_is_well() -> None:
    assert findings(Seen(**well())) == []


def _elections(count: int, age_ms: int = 1000, kind: str = "election") -> list[HistoryRecord]:
    return [HistoryRecord(1, i << 16, "c1", "c1n1", NODES, kind, "x", NOW - age_ms) for i in range(count)]


def _records(seen: dict[str, Any], **changes: Any) -> None:
    old = seen["records"]
    fields = {f: getattr(old, f) for f in old.__slots__} | changes
    seen["records"] = Records(**fields)


def _misfit(seen: dict[str, Any]) -> None:
    bad = ConfigRecord(77, 5, 1 << 62, 1 << 16, "c1n1", MEMBERS)
    _records(seen, configs=seen["records"].configs | {77: ("c1", bad)})


def _without(seen: dict[str, Any], what: str, key: Any) -> None:
    _records(seen, **{what: {k: v for k, v in getattr(seen["records"], what).items() if k != key}})


KEY = "/metastore/dev/nodes/\\xff"
ILLS: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("a node is down", lambda s: s["statuses"].update(c1n2=None), "error: node c1n2: it does not answer"),
    ("a node stopped itself", lambda s: s["statuses"]["c1n1"].update(failed="disk"), "error: node c1n1: it has stopped"),
    ("no leader", lambda s: s["rows"][0].update(health="no leader"), "error: partition 0: no leader"),
    ("two replicas", lambda s: s["rows"][0].update(replicas=list(NODES[:2])), "warning: partition 0: it has 2"),
    (
        "rot",
        lambda s: s["statuses"]["c1n2"]["partitions"][0].update(damaged="a row does not match"),
        "error: partition 0: its copy on c1n2 is damaged: a row does not match",
    ),
    (
        "rot that was mended",
        lambda s: s["statuses"]["c1n2"]["storage"].update(rebuilt_total=2),
        "warning: node c1n2: 2 damaged copies were rebuilt",
    ),
    (
        "a record that makes no sense",
        lambda s: _records(s, bad={KEY: "its key is no UTF-8"}),
        f"error: record {KEY}: it is not valid: its key is no UTF-8",
    ),
    ("ranges that overlap", _misfit, "error: partition 77: its record, in cell c1, has the range 0000000000000005 to"),
    (
        "no record of a partition",
        lambda s: _without(s, "configs", 1),
        "error: cluster: no partition's record covers the points from 4000000000000000 to 8000000000000000",
    ),
    ("no record of a node", lambda s: _without(s, "nodes", "c1n2"), "error: node c1n2: 3 partitions name it, and there is no"),
    ("lag", lambda s: s["rows"][1].update(lag={"c1n3": 5000}), "warning: partition 1: c1n3 is 5000 entries"),
    ("flapping", lambda s: s.update(history=_elections(FLAP_ELECTIONS)), "warning: partition 1: 4 elections"),
    (
        "a node that flaps",
        lambda s: (s["statuses"]["c1n1"].update(lapses={"c1n3": [3, 40]}), s["statuses"]["c1n2"].update(lapses={"c1n3": [2, 9]})),
        "warning: node c1n3: it was silent for so long that others took its leaders, 3 times lately",
    ),
    ("no etcd", lambda s: s["statuses"]["c1n1"]["etcd"].update(connected=False), "warning: node c1n1: it does not reach"),
    ("distrust", lambda s: s["statuses"]["c1n1"]["etcd"].update(untrusted="it went back"), "error: node c1n1: it distrusts etcd, because it went back"),
    ("full etcd", lambda s: s["statuses"]["c1n1"]["etcd"].update(trouble="alarm NOSPACE"), "error: node c1n1: alarm NOSPACE"),
    ("blind", lambda s: s["statuses"]["c1n1"]["etcd"].update(watch_silent_s=9.0), "error: node c1n1: its watch of etcd has heard nothing for 9 s"),
    ("member gone", lambda s: s.update(members=[EtcdMember("a:1", "no answer"), MEMBER]), "error: etcd a:1: it does not answer: no answer"),
    ("member alone", lambda s: s.update(members=[replace(MEMBER, leader=0)]), "error: etcd b:1: it has no leader"),
    ("member behind", lambda s: s.update(members=[replace(MEMBER, index=9_000), MEMBER]), "error: etcd b:1: it is 11000 entries behind"),
    ("two etcds", lambda s: s.update(members=[replace(MEMBER, cluster_id=9), MEMBER]), "error: etcd: the members are of 2 different"),
    ("free pages", lambda s: s.update(members=[replace(MEMBER, size=1 << 30)]), "error: etcd b:1: 1023 of the 1024 MiB"),
    ("NOSPACE", lambda s: s.update(members=[replace(MEMBER, alarms=("NOSPACE",))]), "error: etcd: alarm NOSPACE"),
    ("CORRUPT", lambda s: s.update(members=[replace(MEMBER, alarms=("CORRUPT",))]), "error: etcd: alarm CORRUPT"),
    ("no lease", lambda s: s["statuses"]["c1n1"]["etcd"].update(lease=False), "warning: node c1n1: it has no lease"),
    ("margin", lambda s: s["statuses"]["c1n1"]["etcd"].update(lease_margin_s=1.0), "warning: node c1n1: its lease of 5 s"),
    ("stalls", lambda s: s["statuses"]["c1n2"].update(stalls=3), "warning: node c1n2: its loop stood still 3 times"),
    ("disk", lambda s: s["statuses"]["c1n2"]["disk"].update(free_bytes=9), "warning: node c1n2: 9% of its disk"),
    (
        "low disk",
        lambda s: s["statuses"]["c1n2"]["disk"].update(low=1, room_bytes=7 << 20, free_bytes=5 << 20, low_mark_bytes=9 << 20),
        "error: node c1n2: 7 MiB may be added to its state, 5 MiB of its disk are free; its low-water mark is 9 MiB",
    ),
    ("full disk", lambda s: s["statuses"]["c1n2"]["disk"].update(low=1, full=1), "error: node c1n2: its disk is full"),
    (
        "a snapshot without end",
        lambda s: s["statuses"]["c1n2"].update(snapshots=[{"partition": 3, "to": "c1n1", "seconds": 1200}]),
        "sending a snapshot of partition 3 to c1n1 for 20 minutes",
    ),
    ("state", lambda s: s["statuses"]["c1n2"]["disk"].update(state_bytes=81), "warning: node c1n2: its state takes 81%"),
    ("sync", lambda s: s["statuses"]["c1n2"]["storage"].update(log_last_sync_us=60_000), "its last sync to disk took 60"),
    ("clock", lambda s: s["statuses"]["c1n3"].update(clock_ms=NOW - 3000), "warning: node c1n3: its wall clock is 3.0 s"),
    ("clock ahead", lambda s: s["statuses"]["c1n3"].update(clock_ms=NOW + 3010), "c1n3: its wall clock is 3.0 s"),
    ("versions", lambda s: s["statuses"]["c1n3"].update(version="2.0"), "warning: cluster: versions differ"),
    ("settings", lambda s: s["statuses"]["c1n3"]["settings"].update(heartbeat_ms=9), "cell c1: heartbeat_ms differs"),
    ("leaders", lambda s: s.update(rows=[row(p) for p in range(3)]), "warning: cell c1: leaders are uneven"),
    ("paused", lambda s: _records(s, paused=True), "warning: cluster: automatic changes are paused"),
    ("drained", lambda s: _records(s, drained=frozenset({"c1n1"})), "warning: node c1n1: it is draining, holds 3"),
    ("etcd away", lambda s: s.update(records=None, history=None), "warning: etcd: it does not answer"),
    ("refused", lambda s: s["statuses"]["c1n1"]["clients"].update(refused_total=7), "node c1n1: 7 connections"),
    ("an old copy", lambda s: s["statuses"]["c1n2"]["identity"].update(state="refused", why="an old copy", do="x"), "error: node c1n2: it serves nothing: an old copy"),
    ("it waits", lambda s: s["statuses"]["c1n2"]["identity"].update(state="starting", why="who?"), "error: node c1n2: it waits: who?"),
    ("accused", lambda s: s["statuses"]["c1n2"]["identity"].update(accused="c1n1 says"), "error: node c1n2: peers do not let it in: c1n1"),
    ("lacking", lambda s: s["statuses"]["c1n1"]["identity"].update(lacking={"c1n3": "entry 7"}), "error: node c1n3: as c1n1 sees it, it has less"),
    ("another store", lambda s: s["rows"][1].update(missing=["c1n3"]), "warning: node c1n3: it has another store than 1 partitions"),
    ("router", lambda s: s.update(router_error="it is away"), "error: router: it is away"),
    (
        "a node below the level",
        lambda s: _records(s, level=2, nodes={n: replace(r, level=2 - (n == "c1n2")) for n, r in s["records"].nodes.items()}),
        "error: node c1n2: its build supports feature levels up to 1, and the cluster is at 2",
    ),
    (
        "a level that could be raised",
        lambda s: _records(s, nodes={n: replace(r, level=3) for n, r in s["records"].nodes.items()}),
        "warning: cluster: it is at feature level 1, and every node supports 3",
    ),
    ("namespaces", lambda s: s.update(namespaces=8000), "warning: cluster: 8000 namespaces have a policy; at 10000 no more"),
    (
        "namespaces by setting",
        lambda s: s.update(namespaces=80, max_namespaces=100),
        "warning: cluster: 80 namespaces have a policy; at 100 no more",
    ),
    (
        "a namespace near to its quota",
        lambda s: [v.update(namespaces={"full": 0, "near": 1, "fullest": [["ns", 0.84]]}) for v in s["statuses"].values()],
        "warning: namespace ns: it holds 84% of its quota",
    ),
    (
        "a topology that is nearly too large",
        lambda s: s["statuses"]["c1n1"].update(
            topology={"namespaces": 9, "partitions": 8, "bytes": 13 << 20, "limit_bytes": 16 << 20}
        ),
        "warning: node c1n1: the topology has 13631488 bytes; from 16777216 on new clients",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("ill", "says"), [case[1:] for case in ILLS], ids=[case[0] for case in ILLS])
def test_each_ill_is_found(ill: Callable[[dict[str, Any]], Any], says: str) -> None:
    seen = well()
    ill(seen)
    found = [f"{f.level}: {f.about}: {f.what}" for f in findings(Seen(**seen))]
    assert len(found) == 1, found
    assert says in found[0]


def test_errors_come_first_and_all_say_what_to_do() -> None:
    seen = well()
    for _, ill, _ in ILLS[3:-6]:
        ill(seen)
    seen["rows"][0]["health"] = "no quorum"
    found = findings(Seen(**seen))
    assert [f.level for f in found] == sorted((f.level for f in found), key=lambda level: level != "error")
    assert all(f.why and f.do for f in found)


def test_old_and_planned_elections_are_no_flapping() -> None:
    for events in (
        _elections(20, 3_600_000),
        _elections(20, kind="hand-over"),
        _elections(FLAP_ELECTIONS - 1),
    ):
        assert findings(Seen(**(well() | {"history": events}))) == []


def test_without_etcd_the_nodes_tell_which_records_make_no_sense() -> None:
    seen = well() | {"records": None, "history": None}
    seen["statuses"]["c1n1"]["etcd"]["records"] = {"bad": {KEY: "its key is no UTF-8"}}
    assert f"record {KEY}" in {f.about for f in findings(Seen(**seen))}
