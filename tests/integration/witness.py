"""Writers and watchers of one namespace, and a judge that needs to trust neither.

Versions of a partition are dense. So where all changes are of one namespace, what a watch of it must
tell is known: every version, one after the other; at those that were acknowledged, what was written;
and at the rest what a writer attempted without hearing the end of it. Nothing else may change in the
cluster meanwhile, not even a record of an earlier test expire. Where partitions were split meanwhile,
the two halves share the versions before, and all that is acknowledged has to be told, in order.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from metastore import AsyncClient, MaybeHappened, MetastoreError
from metastore.client import AsyncNamespace, AsyncWatcher, Event
from metastore.client.watch.resume_tokens import decode_resume
from metastore.keys import storage_key_of
from tests.integration.harness import keys_by_partition, until

Change = tuple[str, str, bytes | None]
"""``(kind, key, value)``."""

LAG = 500
"""Changes a watcher may be behind before the writers wait: a slow reader never catches up otherwise."""


def partition_of(client: AsyncClient, namespace: str, key: str) -> int:
    return client.dispatcher.table.route(storage_key_of(namespace, key)).id


@dataclass
class Watch:
    """What one watcher has seen, in order, where it began, and the last mark met of each key of marks."""

    name: str
    seen: list[tuple[int, Change]] = field(default_factory=list)
    began: dict[int, int] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)
    reopened: int = 0
    due: int = 0
    """Changes acknowledged since it began, less those it has seen."""


class Witness:
    """Runs ``writers`` tasks over ``keys`` of every partition, and watchers beside them."""

    def __init__(self, client: AsyncClient, namespace: str, seed: int) -> None:
        self.client = client
        self.namespace = namespace
        self.ns = client.namespace(namespace)
        self.random = random.Random(seed)
        self.keys = [k for ks in keys_by_partition(client, 3, namespace).values() for k in ks]
        self.marks = [ks[-1] for ks in keys_by_partition(client, 4, namespace).values()]
        self.partitions = set(client.dispatcher.table.partitions)
        self.acknowledged: list[tuple[int, Change]] = []
        self.unknown: set[Change] = set()
        self.watches: list[Watch] = []
        self.stop = False
        self.mark_number = 0
        self.tasks: list[asyncio.Task[None]] = []
        self.writing: list[asyncio.Task[None]] = []

    # --- writers ----------------------------------------------------------------------------

    def write(self, writers: int) -> None:
        for number in range(writers):
            keys = self.keys[number::writers]
            rng = random.Random(self.random.random())
            self.writing.append(asyncio.create_task(self._writer(number, keys, rng)))

    async def _writer(self, number: int, keys: list[str], rng: random.Random) -> None:
        count = 0
        while not self.stop:
            if any(w.due > LAG for w in self.watches):
                await asyncio.sleep(0.01)
                continue
            count += 1
            key, value = rng.choice(keys), f"{number}.{count}".encode()
            if rng.random() < 0.2:
                await self._change(("delete", key, None), partial(self.ns.delete, key))
            else:
                await self._put(key, value)
            await asyncio.sleep(0.002 * rng.random())

    async def _put(self, key: str, value: bytes) -> None:
        async def put() -> int:
            return (await self.ns.put(key, value)).version

        await self._change(("put", key, value), put)

    async def _change(self, change: Change, call: Callable[[], Awaitable[int]]) -> None:
        try:
            version = await call()
        except MaybeHappened:
            self.unknown.add(change)
        except MetastoreError:
            pass
        else:
            if version:  # a delete of nothing changes nothing
                self.acknowledged.append((version, change))
                for watch in self.watches:
                    watch.due += 1

    async def everybody_has_seen(self, what: str) -> None:
        """Write a mark in every partition, and wait until every watcher has met them all."""
        self.mark_number += 1
        number = self.mark_number
        for key in self.marks:
            while not any(c == ("put", key, b"%d" % number) for _, c in self.acknowledged):
                await self._put(key, b"%d" % number)

        def behind() -> list[tuple[str, list[str]]]:
            for task in (*self.tasks, *self.writing):
                if task.done():
                    task.result()
            rest = [(w.name, [k for k in self.marks if w.marks.get(k, 0) < number]) for w in self.watches]
            return [(name, missing) for name, missing in rest if missing]

        try:
            await until(f"all watchers have seen all partitions after: {what}", lambda: not behind())
        except AssertionError as e:
            raise AssertionError(f"{e}: {behind()}") from None

    # --- watchers ---------------------------------------------------------------------------

    async def watch(
        self, name: str, client: AsyncClient, *, reopen: int = 0, slow: bool = False, **how: object
    ) -> None:
        """Begin one. ``reopen``: close it after so many events, and go on with another at its ``resume``."""
        watch = Watch(name)
        ns = client.namespace(self.namespace)
        watcher = ns.watch(**how)  # type: ignore[arg-type]
        await watcher.started()
        assert watcher.resume is not None
        for point, version in decode_resume(watcher.resume):
            watch.began[client.dispatcher.table.route(point).id] = version
        self.watches.append(watch)
        self.tasks.append(asyncio.create_task(self._watcher(watch, ns, watcher, reopen, slow, how)))

    async def _watcher(
        self,
        watch: Watch,
        ns: AsyncNamespace,
        watcher: AsyncWatcher,
        reopen: int,
        slow: bool,
        how: dict[str, object],
    ) -> None:
        rng = random.Random(self.random.random())
        left = reopen
        try:
            while True:
                async for event in watcher:
                    self._note(watch, event)
                    left -= 1
                    if slow:
                        await asyncio.sleep(0.002 * rng.random())
                    if reopen and left <= 0:
                        break
                left = rng.randint(1, max(1, reopen))
                resume = watcher.resume
                await watcher.close()
                watch.reopened += 1
                watcher = ns.watch(after=resume, **how)  # type: ignore[arg-type]
        finally:
            await watcher.close()

    def _note(self, watch: Watch, event: Event) -> None:
        value = event.record.value if event.record is not None else None
        watch.due -= 1
        watch.seen.append((event.version, (event.kind, event.key, value)))
        if event.key in self.marks and value is not None:
            watch.marks[event.key] = int(value)

    # --- the judge --------------------------------------------------------------------------

    async def end(self) -> None:
        """Stop, and judge what was seen. Raises AssertionError."""
        self.stop = True
        await asyncio.gather(*self.writing)
        await self.everybody_has_seen("the end")
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for watch in self.watches:
            for p in self.client.dispatcher.table.partitions:
                self._judge(watch, p)

    def _of(self, partition: int, changes: list[tuple[int, Change]]) -> list[tuple[int, Change]]:
        return [c for c in changes if partition_of(self.client, self.namespace, c[1][1]) == partition]

    def _judge(self, watch: Watch, partition: int) -> None:
        seen = self._of(partition, watch.seen)
        name = f"{watch.name}, partition {partition}"
        versions = [v for v, _ in seen]
        origin = self.client.dispatcher.table.lineage(self.client.dispatcher.table.partitions[partition])[-1]
        first = watch.began[origin] + 1
        whole = set(self.client.dispatcher.table.partitions) == self.partitions
        expected = list(range(first, first + len(versions))) if whole else sorted(set(versions))
        assert versions == expected, f"{name}: {_first_difference(versions, expected)}"
        acknowledged = dict(self._of(partition, self.acknowledged))
        if not whole:
            missed = [v for v in acknowledged if v >= first and v not in set(versions)]
            assert not missed, f"{name}: acknowledged versions {missed[:5]} were not seen"
        for version, change in seen:
            told = acknowledged.get(version)
            if told is not None:
                assert change == told, f"{name}: version {version} is {change}, acknowledged was {told}"
            else:
                assert change in self.unknown, f"{name}: version {version}, {change}, was never written"
        missing = [v for v in acknowledged if v > max(versions, default=0) and v >= first]
        assert not missing, f"{name}: acknowledged versions {missing[:5]} were not seen"


def _first_difference(seen: list[int], expected: list[int]) -> str:
    for number, (a, b) in enumerate(zip(seen, expected, strict=False)):
        if a != b:
            return f"version {a} where {b} was due, after {seen[max(0, number - 5) : number]}"
    return "the same"
