"""Clients that do everything at once to a few folders of every partition, and their history: transactions, counters,
locks with fences, listings, records that run out and are touched, beside plain reads and writes."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from metastore.client import Add, AsyncClient, AsyncNamespace, Compare, Delete, Fence, Get, Put
from metastore.errors import ConditionFailed, Fenced, MetastoreError
from metastore.history import FencingToken
from metastore.keys import storage_key_of
from tests.checkers.history import ABSENT, Check, Operation, Part

NAMESPACE = "mixed"
PAUSE_S = 0.004
DEADLINE_S = 5.0
#: what a record that may run out has; clocks may be wrong by less than the rest
TTL_S = 0.8
SURE = 0.995
RECORDS = ("a", "b", "c", "t")
#: kind -> how often it is drawn
KINDS = {
    "read": 8, "put": 6, "cas": 5, "delete": 2, "add": 6, "list": 4, "look": 3, "both": 5, "count": 4, "swap": 3,
    "timed": 3, "touch": 5, "lock": 3, "unlock": 2, "fenced": 6,
}  # fmt: skip

What = Literal["version", "created", "value"]
Relation = Literal["==", "!=", "<", ">"]


def homes_of(client: AsyncClient, count: int, namespace: str = NAMESPACE) -> list[str]:
    """``count`` folders of each partition."""
    table = client.dispatcher.table
    found: dict[int, list[str]] = {p: [] for p in table.partitions}
    number = 0
    while any(len(homes) < count for homes in found.values()):
        number += 1
        homes = found[table.route(storage_key_of(namespace, f"m{number}/a")).id]
        if len(homes) < count:
            homes.append(f"m{number}")
    return [home for homes in found.values() for home in homes]


#: who only looks stays with a leader that is cut off, as long as it answers: writers wait
LOOKS = {"read": 2, "list": 1, "look": 1, "touch": 4}


@dataclass
class Mixed:
    """As ``tests.chaos.traffic.Traffic``. ``homes``: the folders. ``default_ttl_s``: what a record may have that was
    written without one, since the policy of the namespace changes meanwhile; 0 = none."""

    clients: list[AsyncClient]
    homes: list[str]
    seed: int
    history: list[Operation] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    stop: bool = False
    clock: Callable[[], int] = time.monotonic_ns
    tasks: int = 6
    name: str = "m"
    default_ttl_s: float = 0.0
    kinds: dict[str, int] = field(default_factory=lambda: KINDS)
    #: key -> (value, version) that some task saw last, for conditions that have a chance to hold
    last: dict[str, tuple[str, int]] = field(default_factory=dict)
    #: home -> tokens of its lock, the latest last
    tokens: dict[str, list[int]] = field(default_factory=dict)

    namespace = NAMESPACE

    @property
    def keys(self) -> list[str]:
        return [f"{home}/{name}" for home in self.homes for name in (*RECORDS, "n", "lock")]

    async def run(self) -> None:
        await asyncio.gather(*(self._task(number) for number in range(self.tasks)))

    async def _task(self, number: int) -> None:
        rng = random.Random(self.seed * 1000 + number)
        ns = self.clients[number % len(self.clients)].namespace(NAMESPACE)
        count = 0
        while not self.stop:
            count += 1
            [kind] = rng.choices(list(self.kinds), list(self.kinds.values()))
            op = Operation(number, "", "", 0, 0, value=f"{self.name}{number}.{count}")
            await getattr(self, "_" + kind)(ns, rng, rng.choice(self.homes), op)
            await asyncio.sleep(PAUSE_S * rng.random() * 2)

    async def _ask(self, op: Operation, call: Awaitable[Any]) -> tuple[Operation, Any]:
        """Make the call; what it said as far as every kind of operation says it, and the result, None = an error."""
        op, result = replace(op, began=self.clock()), None
        try:
            result = await call
        except ConditionFailed as e:
            op = replace(op, outcome="refused", version=e.detail["version"])
        except Fenced as e:
            op = replace(op, outcome="fenced", version=e.detail["token"])
        except MetastoreError as e:
            op = replace(op, outcome=e.outcome)
            self.errors[e.code] = self.errors.get(e.code, 0) + 1
        return replace(op, ended=self.clock()), result

    def _note(self, op: Operation) -> Operation:
        self.history.append(op)
        for key, value, version in (*op.told(), *op.changes()):
            self.last[key] = (value, version)
        if op.outcome == "refused":
            self.last[op.key] = (self.last.get(op.key, ("", 0))[0], op.version)
        return op

    # --- one record ---------------------------------------------------------------------------

    async def _read(self, ns: AsyncNamespace, rng: random.Random, home: str, op: Operation) -> None:
        await self._get(ns, op, f"{home}/{rng.choice((*RECORDS, 'n', 'lock'))}")

    async def _get(self, ns: AsyncNamespace, op: Operation, key: str) -> Operation:
        op, record = await self._ask(
            replace(op, key=key, kind="read", value=""), ns.get(key, deadline_s=DEADLINE_S)
        )
        if record is not None:
            op = replace(op, value=record.value.decode(), version=record.version)
        return self._note(op)

    async def _put(
        self, ns: AsyncNamespace, rng: random.Random, home: str, op: Operation, **how: Any
    ) -> None:
        await self.put(ns, op, f"{home}/{rng.choice(RECORDS)}", **how)

    async def put(
        self, ns: AsyncNamespace, op: Operation, key: str, *, ttl_s: float | None = 0, **how: Any
    ) -> Operation:
        """``how``: as the namespace takes it. ``ttl_s`` None: whatever the policy says."""
        may_s = self.default_ttl_s if ttl_s is None else ttl_s
        op = replace(op, key=key, kind="put", ttl=int(may_s * SURE * 1e9))
        if "fence" in how:
            op = replace(op, fence=tuple(how["fence"]))
        if "raise_fence" in how:
            op = replace(op, locks=how["raise_fence"])
        if "version" in how or "absent" in how:
            op = replace(op, when=how.get("version", ABSENT))
        call = ns.put(key, op.value.encode(), ttl_s=ttl_s, deadline_s=DEADLINE_S, **how)
        op, result = await self._ask(op, call)
        return self._note(op if result is None else replace(op, version=result.version))

    async def _cas(self, ns: AsyncNamespace, rng: random.Random, home: str, op: Operation) -> None:
        key = f"{home}/{rng.choice(RECORDS)}"
        _, version = self.last.get(key, ("", ABSENT))
        how: dict[str, Any] = {"version": version} if version and self.last[key][0] else {"absent": True}
        await self.put(ns, op, key, ttl_s=rng.choice((0, None)), **how)

    async def _timed(self, ns: AsyncNamespace, rng: random.Random, home: str, op: Operation) -> None:
        await self.put(ns, op, f"{home}/t", ttl_s=TTL_S)

    async def _delete(self, ns: AsyncNamespace, rng: random.Random, home: str, op: Operation) -> None:
        await self._remove(ns, replace(op, key=f"{home}/{rng.choice((*RECORDS, 'n'))}"))

    async def _remove(self, ns: AsyncNamespace, op: Operation, **how: Any) -> None:
        op, version = await self._ask(
            replace(op, kind="delete", value=""), ns.delete(op.key, deadline_s=DEADLINE_S, **how)
        )
        self._note(op if version is None else replace(op, version=version))

    async def _add(
        self, ns: AsyncNamespace, rng: random.Random, home: str, op: Operation, **how: Any
    ) -> None:
        op = replace(op, key=f"{home}/n", kind="add", value="", delta=rng.choice((1, 1, 1, 3)))
        if "fence" in how:
            op = replace(op, fence=tuple(how["fence"]))
        op, result = await self._ask(op, ns.add(op.key, op.delta, deadline_s=DEADLINE_S, **how))
        self._note(op if result is None else replace(op, value=str(result.value), version=result.version))

    async def _touch(self, ns: AsyncNamespace, rng: random.Random, home: str, op: Operation) -> None:
        op = replace(op, key=f"{home}/{rng.choice(('t', 't', 'lock'))}", kind="touch", value="")
        op, found = await self._ask(op, ns.touch(op.key, deadline_s=DEADLINE_S))
        if found is not None:
            op = replace(op, version=found.version, ttl=int(found.ttl_s * SURE * 1e9))
        self._note(op)

    # --- locks ----------------------------------------------------------------------------------

    async def _lock(self, ns: AsyncNamespace, rng: random.Random, home: str, op: Operation) -> None:
        key = f"{home}/lock"
        ttl_s = rng.choice((TTL_S, 4 * TTL_S))
        op = await self.put(ns, op, key, ttl_s=ttl_s, absent=True, raise_fence=key)
        if op.outcome == "ok":
            self.tokens.setdefault(home, []).append(op.version)

    async def _unlock(self, ns: AsyncNamespace, rng: random.Random, home: str, op: Operation) -> None:
        token = self._token(rng, home)
        if token:
            await self._remove(ns, replace(op, key=f"{home}/lock", when=token), version=token)

    def _token(self, rng: random.Random, home: str) -> int:
        """One of the lock's last, which need not be held any more; 0 = there was none."""
        known = self.tokens.get(home, [])[-3:]
        return rng.choice([*known, known[-1]]) if known else 0

    async def _fenced(self, ns: AsyncNamespace, rng: random.Random, home: str, op: Operation) -> None:
        token = self._token(rng, home)
        if token:
            what = rng.choice((self._put, self._put, self._add))
            await what(ns, rng, home, op, fence=Fence(f"{home}/lock", FencingToken(token)))

    # --- several ----------------------------------------------------------------------------------

    async def _list(self, ns: AsyncNamespace, rng: random.Random, home: str, op: Operation) -> None:
        op = replace(op, kind="list", value="")
        op, page = await self._ask(op, ns.list(f"{home}/", limit=100, deadline_s=DEADLINE_S))
        told = {k: (r.value.decode(), r.version) for k, r in page.items} if page is not None else {}
        keys = [f"{home}/{name}" for name in (*RECORDS, "n", "lock")]
        keys += [key for key in told if key not in keys]
        self._note(replace(op, then=tuple(Part("get", key, *told.get(key, ("", 0))) for key in keys)))

    async def _look(self, ns: AsyncNamespace, rng: random.Random, home: str, op: Operation) -> None:
        """A transaction that only reads."""
        then = [Part("get", f"{home}/{name}") for name in rng.sample((*RECORDS, "n"), 3)]
        await self._txn(ns, op, [], then, [])

    async def _both(self, ns: AsyncNamespace, rng: random.Random, home: str, op: Operation) -> None:
        """Two records get one value, if the first is as it was."""
        one, other = (f"{home}/{name}" for name in rng.sample(RECORDS, 2))
        value, version = self.last.get(one, ("", ABSENT))
        check = Check(one, "version", "==", version if value else ABSENT)
        then = [Part("put", one, op.value), Part("put", other, op.value)]
        await self._txn(ns, op, [check], then, [Part("get", one), Part("get", other)])

    async def _count(self, ns: AsyncNamespace, rng: random.Random, home: str, op: Operation) -> None:
        """A write that is counted."""
        then = [
            Part("put", f"{home}/a", op.value),
            Part("add", f"{home}/n", delta=1),
            Part("get", f"{home}/b"),
        ]
        await self._txn(ns, op, [], then, [])

    async def _swap(self, ns: AsyncNamespace, rng: random.Random, home: str, op: Operation) -> None:
        """A record goes and another comes, if the first holds what it held; else that is counted."""
        one, other = (f"{home}/{name}" for name in rng.sample(RECORDS, 2))
        value, _ = self.last.get(one, ("", 0))
        check = Check(one, "value", "==", value) if value else Check(other, "version", ">", 0)
        then = [Part("delete", one), Part("put", other, op.value)]
        await self._txn(ns, op, [check], then, [Part("get", one), Part("add", f"{home}/n", delta=1)])

    async def _txn(
        self, ns: AsyncNamespace, op: Operation, checks: list[Check], then: list[Part], otherwise: list[Part]
    ) -> None:
        op = replace(op, kind="txn", value="", checks=tuple(checks))
        op = replace(op, then=tuple(then), otherwise=tuple(otherwise))
        compares: list[Any] = [
            Compare(
                c.key,
                cast(What, c.what),
                cast(Relation, c.relation),
                c.operand.encode() if isinstance(c.operand, str) else c.operand,
            )
            for c in checks
        ]
        branches = [[_asked(part) for part in branch] for branch in (then, otherwise)]
        op, result = await self._ask(op, ns.txn(compares, *branches, deadline_s=DEADLINE_S))
        if result is not None:
            branch = then if result.succeeded else otherwise
            done = tuple(_told(part, one) for part, one in zip(branch, result.results, strict=True))
            op = replace(op, succeeded=result.succeeded)
            op = replace(op, then=done) if result.succeeded else replace(op, otherwise=done)
        self._note(op)

    # --- the end ----------------------------------------------------------------------------------

    async def until_all_serve(self, patience_s: float) -> float:
        """Seconds until every folder takes a write again; raises AssertionError when it takes longer."""
        began, ns = self.clock(), self.clients[0].namespace(NAMESPACE)
        for number, home in enumerate(self.homes):
            while True:
                op = Operation(self.tasks, "", "", 0, 0, value=f"{self.name}back.{number}.{self.clock()}")
                if (await self.put(ns, op, f"{home}/a")).outcome == "ok":
                    break
                assert self.clock() - began < patience_s * 1e9, (
                    f"{home} takes no write {patience_s} s after healing: {self.errors}"
                )
                await asyncio.sleep(0.1)
        return (self.clock() - began) / 1e9

    async def read_all(self) -> None:
        """A last look at every folder."""
        ns = self.clients[-1].namespace(NAMESPACE)
        for home in self.homes:
            await self._list(ns, random.Random(0), home, Operation(self.tasks, "", "", 0, 0))
            await self._get(ns, Operation(self.tasks, "", "", 0, 0), f"{home}/n")


def _asked(part: Part) -> Any:
    if part.kind == "get":
        return Get(part.key)
    if part.kind == "put":
        return Put(part.key, part.value.encode(), ttl_s=0)
    return Delete(part.key) if part.kind == "delete" else Add(part.key, part.delta)


def _told(part: Part, result: Any) -> Part:
    """``part`` with what became of it."""
    if part.kind == "get":
        return part if result is None else replace(part, value=result.value.decode(), version=result.version)
    if part.kind == "put":
        return replace(part, version=result.version)
    if part.kind == "delete":
        return replace(part, version=result)
    return replace(part, value=str(result.value), version=result.version)
