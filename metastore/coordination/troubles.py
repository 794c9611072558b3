"""Troubles of etcd, recognised in its refusals, each with what to do. Pure.

etcd's gRPC status does not distinguish these: their texts, which are constants of etcd's protocol, are the only sign. What is recognised
here is for logs, status and ``cellctl doctor``; no program decides by it.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Alarm(NamedTuple):
    """``name``: etcd's; ``says``: a piece of what etcd refuses with; ``what`` is wrong, what that ``costs`` etcd's users and
    this cluster, and what to ``do``."""

    name: str
    says: str
    what: str
    costs: str
    here: str
    do: str


ALARMS: Final = (
    Alarm(
        "NOSPACE",
        "database space exceeded",
        "its space quota is used up",
        "it accepts no writes",
        "no elections but by claims (R16), no moves, no policies",
        "compact and defragment it (etcdctl compact, etcdctl defrag), raise --quota-backend-bytes if that is too little, then: "
        "etcdctl alarm disarm",
    ),
    Alarm(
        "CORRUPT",
        "corrupt cluster",
        "its members hold different data",
        "it accepts no requests",
        "data here is served on, and elections go by claims (R16)",
        "find and replace the member that differs, then: etcdctl alarm disarm",
    ),
)
#: a piece of what etcd or gRPC says -> what that is and what to do
TROUBLES: Final = (
    *((a.says, f"etcd: {a.costs}: {a.what} (alarm {a.name}); {a.do}") for a in ALARMS),
    (
        "no leader",
        "this member of etcd has no leader: a majority of etcd's members is down or cut off",
    ),
    (
        "leader changed",
        "etcd changes its leader; if that repeats, its members are slow or cut off from each other",
    ),
    (
        "request timed out",
        "etcd does not get its writes done in time: look at its disks, and at the network between its members",
    ),
    (
        "too many requests",
        "etcd is overloaded: it gets more requests than it can answer",
    ),
    (
        "certificate",
        "a certificate was refused between this process and etcd; look at its dates, its names and who signed it",
    ),
    (
        "permission denied",
        "etcd does not let this user do that; look at its users and roles",
    ),
    (
        "authentication failed",
        "etcd rejects this user's name or password",
    ),
)


def trouble_of(details: str) -> str:
    """What is wrong with etcd when it refuses with ``details``; "" = nothing that is known by its words."""
    lower = details.lower()
    return next((f"{text} ({details})" for words, text in TROUBLES if words in lower), "")
