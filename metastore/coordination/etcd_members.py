"""Each member of etcd asked by itself, and what ails it: what requests to the whole do not show."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from metastore.coordination.etcd import EtcdCoordinator
from metastore.coordination.etcd_calls import CALL_TIMEOUT_S, rpc
from metastore.coordination.troubles import ALARMS

#: entries that a member may be behind the one that is furthest
LAG_ENTRIES: Final = 5000
#: of the pages of its file, unused; and what size makes that worth a word
FREE_PART, FREE_BYTES = 0.5, 256 << 20


@dataclass(frozen=True, slots=True)
class EtcdMember:
    """``error``: why it gave no answer, "" = it did. ``index``: of the last entry that it has applied; ``size``
    and ``in_use``: bytes of its file. ``alarms``: of the whole, as it knows them."""

    endpoint: str
    error: str = ""
    version: str = ""
    cluster_id: int = 0
    leader: int = 0
    index: int = 0
    size: int = 0
    in_use: int = 0
    alarms: tuple[str, ...] = ()


async def ask_members(endpoints: Sequence[str]) -> list[EtcdMember]:
    """All of them at once; none takes longer than CALL_TIMEOUT_S."""
    return list(await asyncio.gather(*(_ask(endpoint) for endpoint in endpoints)))


async def _ask(endpoint: str) -> EtcdMember:
    coordinator = EtcdCoordinator([endpoint])
    try:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            stub = (await coordinator.client()).maintenancestub
            status = await stub.Status(rpc.StatusRequest(), timeout=CALL_TIMEOUT_S)
            alarms = await stub.Alarm(rpc.AlarmRequest(), timeout=CALL_TIMEOUT_S)
    except TimeoutError:
        return EtcdMember(endpoint, f"no answer within {CALL_TIMEOUT_S:g} s")
    except rpc.AioRpcError as e:
        return EtcdMember(endpoint, e.details() or str(e.code()))
    finally:
        await coordinator.close()
    names = tuple(sorted({rpc.AlarmType.Name(alarm.alarm) for alarm in alarms.alarms}))
    return EtcdMember(
        endpoint,
        "",
        status.version,
        status.header.cluster_id,
        status.leader,
        status.raftAppliedIndex,
        status.dbSize,
        status.dbSizeInUse,
        names,
    )


def ailments(members: Sequence[EtcdMember]) -> Iterator[tuple[str, str, str, str]]:
    """(about whom, what, why it matters, what to do) of each thing that is wrong."""
    up = [member for member in members if not member.error]
    for member in members:
        about = f"etcd {member.endpoint}"
        if member.error:
            yield (
                about,
                f"it does not answer: {member.error}",
                "with a majority of the members gone nothing can be changed, and elections go by claims (R16)",
                "start it, or replace it",
            )
        elif not member.leader:
            yield (
                about,
                "it has no leader",
                "this member is cut off, or a majority of the members is down",
                "look at the other members, and at the network between them",
            )
        elif member.index + LAG_ENTRIES < max(m.index for m in up):
            yield (
                about,
                f"it is {max(m.index for m in up) - member.index} entries behind the others",
                "processes that follow it learn late what has changed",
                "look at its disk, and at the network to the others",
            )
        if member.size > FREE_BYTES and member.in_use < (1 - FREE_PART) * member.size:
            yield (
                about,
                f"{member.size - member.in_use >> 20} of the {member.size >> 20} MiB of its file are free pages",
                "they count for its space quota",
                "defragment it: etcdctl defrag",
            )
    if len({member.cluster_id for member in up}) > 1:
        yield (
            "etcd",
            f"the members are of {len({m.cluster_id for m in up})} different clusters",
            "a process that asks another member than before no longer trusts etcd (R13)",
            "name members of one cluster only",
        )
    raised = {name for member in up for name in member.alarms}
    for alarm in ALARMS:
        if alarm.name in raised:
            yield ("etcd", f"alarm {alarm.name}: {alarm.what}", f"{alarm.costs}: {alarm.here}", alarm.do)
