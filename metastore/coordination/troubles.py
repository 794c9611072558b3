"""What ails etcd, in words that lead somewhere, from what it answers. Pure."""

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
        "it takes no writes",
        "no elections but by claims (R16), no moves, no policies",
        "compact and defragment it (etcdctl compact, etcdctl defrag), raise --quota-backend-bytes if that is too little, then: "
        "etcdctl alarm disarm",
    ),
    Alarm(
        "CORRUPT",
        "corrupt cluster",
        "its members hold different data",
        "it takes no requests",
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
        "etcd changes its leader; if that goes on, its members are slow or cut off from each other",
    ),
    (
        "request timed out",
        "etcd does not get its writes done in time: look at its disks, and at the network between its members",
    ),
    (
        "too many requests",
        "etcd is overloaded: more is asked of it than it gets done",
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
        "etcd does not take this user's name or password",
    ),
)


def trouble_of(details: str) -> str:
    """What is wrong with etcd when it refuses with ``details``; "" = nothing that is known by its words."""
    lower = details.lower()
    return next((f"{text} ({details})" for words, text in TROUBLES if words in lower), "")
