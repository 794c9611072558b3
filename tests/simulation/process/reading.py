"""Clients that read at any replica, and clients that watch: what they are told is judged in the end against
the history, and against what was committed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from metastore.client import AsyncClient
from metastore.client.watch.resume_tokens import decode_resume
from metastore.errors import Compacted, MetastoreError, Unavailable
from metastore.keys import storage_key_of
from metastore.records import record_versions, unpack_record
from tests.checkers.history import Operation
from tests.checkers.staleness import StaleRead, check_read
from tests.checkers.watches import Change, Session, Truth, check_session, missing
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.process.world import World

#: of a stale read, in ms; None = it may be as old as it likes
BOUNDS = (20, 60, 150, 400, 2000, None)
DEADLINE_S = 2.0
#: made before anything happens, never changed: whoever has a state has them
OLD = "old"


@dataclass
class StaleReader:
    """Reads and lists the keys of ``registers``, and records of the beginning, at any replica."""

    client: AsyncClient
    keys: list[str]
    seed: int
    clock: Callable[[], int]
    #: what others did on those keys, so far
    history: Callable[[], list[Operation]]
    stop: bool = False
    found: list[StaleRead] = field(default_factory=list)
    old: dict[str, int] = field(default_factory=dict)
    problem: str = ""

    async def begin(self, keys: list[str]) -> None:
        for key in keys:
            self.old[key] = (await self.client.namespace(OLD).put(key, b"old", deadline_s=5.0)).version

    async def run(self) -> None:
        rng = random.Random(self.seed)
        while not self.stop:
            try:
                kind = rng.random()
                if kind < 0.15:
                    await self.read_old(rng)
                elif kind < 0.25:
                    await self.list_all(rng.choice(BOUNDS), rng.choice((1, 3, 1000)))
                else:
                    await self.read(rng)
            except MetastoreError:
                pass  # nobody has it: that is no lie
            await asyncio.sleep(0.012 * rng.random())

    async def read(self, rng: random.Random) -> None:
        key = rng.choice(self.keys)
        asked: dict[str, Any] = {"consistency": "stale", "max_staleness_ms": rng.choice(BOUNDS)}
        if rng.random() < 0.25:
            known = [op.version for op in self.history()[-60:] if op.key == key and op.outcome == "ok"]
            asked = {"consistency": "at_least", "at_least": max(known, default=0)}
        await self.one(key, asked)

    async def one(self, key: str, asked: dict[str, Any]) -> None:
        """Raises MetastoreError when nobody answers."""
        began = self.clock()
        record, age_ms = await self.client.namespace("chaos").get_with_age(
            key, deadline_s=DEADLINE_S, **asked
        )
        value, version = ("", 0) if record is None else (record.value.decode(), record.version)
        self.found.append(
            StaleRead(
                key,
                began,
                self.clock(),
                value,
                version,
                age_ms,
                asked.get("max_staleness_ms"),
                asked.get("at_least"),
            )
        )

    async def list_all(self, bound_ms: int | None, limit: int) -> None:
        """Lists everything, page by page: as old as the oldest page. Raises MetastoreError when nobody answers."""
        began, ns = self.clock(), self.client.namespace("chaos")
        ages: list[int | None] = []
        found: dict[str, tuple[str, int]] = {}
        cursor: str | None = None
        while cursor is not None or not ages:
            page = await ns.list(
                limit=limit,
                cursor=cursor,
                consistency="stale",
                max_staleness_ms=bound_ms,
                deadline_s=DEADLINE_S,
            )
            found.update({key: (record.value.decode(), record.version) for key, record in page.items})
            ages.append(page.age_ms)
            cursor = page.cursor
        known = [age for age in ages if age is not None]
        age_ms = max(known) if len(known) == len(ages) else None
        for key in self.keys:
            value, version = found.get(key, ("", 0))
            self.found.append(
                StaleRead(key, began, self.clock(), value, version, age_ms, bound_ms, listed=True)
            )

    async def list_old(self) -> None:
        page = await self.client.namespace(OLD).list(consistency="stale", deadline_s=DEADLINE_S)
        lacking = self.old.keys() - {key for key, _ in page.items}
        if lacking:
            self.problem = f"a listing of the beginning lacks {sorted(lacking)} at {self.clock() / 1e9:.4f}"

    async def read_old(self, rng: random.Random) -> None:
        if rng.random() < 0.25:
            await self.list_old()
            return
        key, version = rng.choice(list(self.old.items()))
        asked: dict[str, Any] = rng.choice(
            ({"consistency": "stale"}, {"consistency": "at_least", "at_least": rng.choice((0, version))})
        )
        record = await self.client.namespace(OLD).get(key, deadline_s=DEADLINE_S, **asked)
        if record is None:
            self.problem = f"{key}, of the beginning, is not there at {self.clock() / 1e9:.4f}, asked {asked}"

    async def look(self) -> None:
        """All is well: whoever asks for something of the last second gets it."""
        for key in self.keys:
            await self.one(key, {"consistency": "stale", "max_staleness_ms": 1000})
        await self.list_all(1000, 1000)

    def judge(self, by_key: dict[str, list[Operation]], of_key: dict[str, int]) -> None:
        if self.problem:
            raise Violation(f"stale: {self.problem}")
        for read in self.found:
            problem = check_read(read, by_key.get(read.key, []))
            if problem is not None:
                raise Violation(f"stale: {problem}", of_key[read.key])


@dataclass
class WatchReader:
    """Watches a namespace: at leaders or at any replica; eagerly, or so slowly that it falls behind; now and then
    it is gone for a while, and goes on where it was."""

    client: AsyncClient
    #: of the process that it is
    name: str
    seed: int
    any_replica: bool
    slow: bool
    namespace: str = "chaos"
    stop: bool = False
    hurry: bool = False
    sessions: list[Session] = field(default_factory=list)
    problem: str = ""
    told: int = 0
    resumed: int = 0

    async def run(self) -> None:
        rng = random.Random(self.seed)
        session: Session | None = None
        token: str | None = None
        while not self.stop and not self.problem:
            watcher = self.client.namespace(self.namespace).watch(
                "", after=token, any_replica=self.any_replica, buffer=rng.choice((2, 1000, 1000, 1000))
            )
            lost = False
            try:
                await watcher.started(1.0)
                if session is None:
                    assert watcher.resume is not None
                    where = decode_resume(watcher.resume)
                    session = Session(where, where)
                    self.sessions.append(session)
                await self.follow(rng, watcher, session)
                self.resumed += 1
            except Compacted:  # what follows is not kept, and it is told so: it begins anew
                lost = True
            except Unavailable:
                pass
            except MetastoreError as e:
                self.problem = f"a watch ended with {type(e).__name__}: {e.message}"
            finally:
                if session is not None:
                    token = self.reached(watcher, session) or token
                await watcher.close()
            if lost:
                session = token = None

    def reached(self, watcher: Any, session: Session) -> str | None:
        """Where its reader is, as it says itself."""
        token: str | None = watcher.resume
        if token is not None:
            session.end = decode_resume(token)
        return token

    async def follow(self, rng: random.Random, watcher: Any, session: Session) -> None:
        """Until it is gone, in the middle of anything. Raises MetastoreError when the watch ends."""
        left = rng.randrange(1, 200)
        while not self.stop and left:
            event = await watcher.next(timeout_s=0.05)
            self.reached(watcher, session)
            if event is None:
                continue
            self.told += 1
            left -= not self.hurry
            storage_key = storage_key_of(self.namespace, event.key)
            value = event.record.value if event.kind == "put" else None
            session.seen.append((storage_key, Change(event.version, value)))
            if self.slow and not self.hurry and rng.random() < 0.2:
                await asyncio.sleep(0.3 * rng.random())

    def judge(self, truth: Truth) -> None:
        if self.problem:
            raise Violation(f"watch: {self.problem}")
        for session in self.sessions:
            problem = check_session(session, truth)
            if problem is not None:
                how = "any replica" if self.any_replica else "the leader"
                raise Violation(f"watch: of {how}, {problem}")

    def is_done(self, truth: Truth) -> bool:
        """Whether it has been told everything that there is."""
        return bool(self.problem) or (bool(self.sessions) and not missing(self.sessions[-1], truth))


def truth_of(world: World, namespace: str) -> Truth:
    """Every change that was committed in a namespace, with its version: partition by partition, the part before
    it was split off its parent being the parent's."""
    found: Truth = {}
    lasts: dict[int, dict[int, int]] = {}

    def count(p: int) -> dict[int, int]:
        """Entry -> the version after it; takes note of the changes on the way."""
        if p in lasts:
            return lasts[p]
        parent = world.config(p).parent
        base, version = 0, 0
        if parent is not None:
            base = parent[2]
            version = count(parent[0])[base]
        lasts[p] = {base: version}
        applied = world.watcher.applied[p]
        for index in range(base + 1, max(applied, default=base) + 1):
            for storage_key, record in applied[index][1]:
                version += 1
                if record is not None and record_versions(record)[1] != version:
                    raise Violation(f"I7: entry {index} has version {version}, its record says otherwise", p)
                if storage_key[8 : storage_key.index(0, 8)].decode() == namespace:
                    value = None if record is None else unpack_record(record).value
                    found.setdefault(storage_key, []).append(Change(version, value))
            lasts[p][index] = version
        return lasts[p]

    for p in world.partitions():
        count(p)
    for changes in found.values():
        changes.sort()
    return found
