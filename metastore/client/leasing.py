"""A key that is held: taken by absence, kept by touching, watched while another has it.

The record lives for ``ttl_s`` on its leader's clock, from when it was written or last touched (R15).
The holder counts on its own clock, which counts suspended time, from when it *sent* the request, less
a margin for clocks of different rates: so it gives up before the leader does. Who is paused for longer than that
cannot know, and must send the fencing token with what it writes: the record's version, which only grows. Taking the
key raises its fence by the same write (R20).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections.abc import Callable
from typing import Final

from metastore.client.records import AsyncRecords
from metastore.client.results import Fence
from metastore.client.watch.watcher import START_TIMEOUT_S, AsyncWatcher
from metastore.clock import now_ns
from metastore.elements import MAX_FENCE_NAME_BYTES
from metastore.errors import (
    ClientClosed,
    Compacted,
    ConditionFailed,
    DeadlineExceeded,
    HistoryChanged,
    InvalidRequest,
    LockLost,
    MaybeHappened,
    MetastoreError,
)
from metastore.history import NO_TOKEN, NO_VERSION, FencingToken, lock_version, token_of
from metastore.keys import encode_key
from metastore.records import Record
from metastore.routing.backoff import backoff_s

log = logging.getLogger("metastore.client")

MIN_TTL_S: Final = 0.5
MAX_TTL_S: Final = 86_400.0
#: twice the largest error of a clock's rate (R4)
CLOCK_MARGIN: Final = 2 * 500e-6
#: the lease is renewed when a third of it has passed, and at risk when more than half has
RENEW_AFTER: Final = 1 / 3
AT_RISK_AFTER: Final = 1 / 2
LOOK_S: Final = 0.5

Callback = Callable[[], object]


def fence_name(key: str) -> str:
    """The name of the fence of a lock: its key, or a digest of a long one."""
    raw = encode_key(key)
    return key if len(raw) <= MAX_FENCE_NAME_BYTES else hashlib.blake2b(raw, digest_size=32).hexdigest()


def check_lease_ttl(ttl_s: float) -> float:
    """Raises InvalidRequest."""
    if not isinstance(ttl_s, int | float) or not MIN_TTL_S <= ttl_s <= MAX_TTL_S:
        raise InvalidRequest(f"ttl_s = {ttl_s!r:.40} is not within {MIN_TTL_S} and {MAX_TTL_S:.0f} seconds")
    return float(ttl_s)


class Flag(asyncio.Event):
    """An event for tasks, and, as ``twin``, for threads."""

    def __init__(self) -> None:
        super().__init__()
        self.twin = threading.Event()

    def set(self) -> None:
        super().set()
        self.twin.set()

    def clear(self) -> None:
        super().clear()
        self.twin.clear()


class Lease:
    """What locks and leaderships have in common: one hold of a key, its clock and its token."""

    def __init__(self, namespace: AsyncRecords, key: str, ttl_s: float) -> None:
        encode_key(key)
        self._namespace = namespace
        self.key = key
        self.ttl_s = check_lease_ttl(ttl_s)
        #: set while more than half of the lease has passed without a renewal
        self.at_risk = Flag()
        #: set when the lease has ended, or another holds the key; stays set until it is acquired again
        self.lost = Flag()
        self._on_at_risk: list[Callback] = []
        self._on_lost: list[Callback] = []
        self._token = NO_TOKEN
        self._held = False
        self._why = ""
        #: the record that says that it is ours
        self._mark = (b"", "")
        self._over_at_ns = 0
        self._tasks: list[asyncio.Task[None]] = []
        #: a write of ours may have taken effect, or may yet
        self._doubt = False
        self._taking = False

    def __repr__(self) -> str:
        state = f"held, token {self._token}" if self.held else "not held"
        return f"<{type(self).__name__} {self.key}: {state}>"

    # --- looking ----------------------------------------------------------------------------

    @property
    def held(self) -> bool:
        """Whether it was taken, not given back, and not lost."""
        return self._held and not self._is_lost()

    def looks_held(self, now: int) -> bool:
        """``held`` for other threads: changes nothing."""
        return self._held and not self.lost.is_set() and now < self._over_at_ns

    @property
    def token(self) -> FencingToken:
        """The fencing token: greater than that of every earlier holder. Raises LockLost when not held
        at all (that of a lost hold may still be asked)."""
        if not self._token:
            raise LockLost(f"{self.key!r:.200} is not held")
        return self._token

    @property
    def fence(self) -> Fence:
        """For ``fence=`` of any write of the same namespace. In the partition that the lock's own key lives in (same folder,
        or same ``{tag}``) the write is refused (Fenced) from the moment on in which another takes the lock; in any other, once
        a later holder has written there with its fence. Raises LockLost."""
        return Fence(fence_name(self.key), self.token)

    @property
    def remaining_s(self) -> float:
        """Seconds until the lease ends if it is not renewed, on this process's clock, counted from when
        the last renewal was sent, less a margin; 0 when it is not held."""
        return max(0.0, (self._over_at_ns - now_ns()) / 1e9) if self._held else 0.0

    def check(self) -> None:
        """Raises LockLost unless it is held now, by this process's clock. Cheap: asks nobody."""
        if not self._held or self._is_lost():
            raise LockLost(self._why or f"{self.key!r:.200} is not held")

    def on_at_risk(self, callback: Callback) -> None:
        """Call ``callback`` whenever the lease gets at risk. It runs in the event loop: be short."""
        self._on_at_risk.append(callback)

    def on_lost(self, callback: Callback) -> None:
        """Call ``callback`` when the lease is lost. It runs in the event loop: be short."""
        self._on_lost.append(callback)

    def _is_lost(self) -> bool:
        if not self.lost.is_set() and now_ns() >= self._over_at_ns:
            self._lose(f"the lease of {self.key!r:.200} ran out: it could not be renewed in time")
        return self.lost.is_set()

    # --- taking -----------------------------------------------------------------------------

    async def _take(
        self, value: bytes, content_type: str, timeout_s: float | None, *, wait: bool = True
    ) -> bool:
        """Return once it is held, or, without ``wait``, whether it is. ``value`` and ``content_type`` are
        this hold's only. Raises DeadlineExceeded."""
        if self._held or self._taking:
            raise InvalidRequest(
                f"{self.key!r:.200} is held, or being acquired, by this object already; make another for a second holder"
            )
        loop = asyncio.get_running_loop()
        until = None if timeout_s is None else loop.time() + timeout_s
        self._mark, self._doubt, self._taking = (value, content_type), False, True
        try:
            if wait:
                await self._wait_and_take(until)
            else:
                await self._try(until)
            if self._held:
                self._doubt = False
            return self._held
        finally:
            self._taking = False
            if self._doubt:
                # cancelled, or given up, while a write of ours may have taken the key, or may yet
                self._namespace.dispatcher.spawn(self._abandon(self._mark))

    async def _wait_and_take(self, until: float | None) -> None:
        failures = 0
        while True:
            try:
                if await self._try(until):
                    return
                watcher = self._watcher()
                try:
                    await watcher.started(START_TIMEOUT_S if until is None else self._left_s(until))
                    while not await self._try(until):
                        await self._freed(watcher, until)
                finally:
                    await watcher.close()
                return
            except MetastoreError as e:
                if not (e.retryable or isinstance(e, Compacted | HistoryChanged)):
                    raise
                if until is not None and not self._left_s(until):
                    text = f"{self.key!r:.200} could not be acquired in time: {e.message}"
                    raise DeadlineExceeded(text) from e
                log.debug("acquiring %s: %s", self.key, e.message)
                await asyncio.sleep(backoff_s(failures))
                failures += 1

    @staticmethod
    def _left_s(until: float) -> float:
        return max(0.0, until - asyncio.get_running_loop().time())

    def _deadline_s(self, until: float | None) -> float:
        deadline_s = self._namespace.deadline_s
        return deadline_s if until is None else min(deadline_s, self._left_s(until))

    async def _try(self, until: float | None) -> bool:
        """One write. Raises MetastoreError."""
        value, content_type = self._mark
        sent, doubted = now_ns(), self._doubt
        self._doubt = True  # until we know: this task may be cancelled at any point
        try:
            result = await self._namespace.put(
                self.key,
                value,
                absent=True,
                ttl_s=self.ttl_s,
                content_type=content_type,
                raise_fence=fence_name(self.key),
                deadline_s=self._deadline_s(until),
            )
        except ConditionFailed:
            self._doubt = doubted
            return doubted and await self._look(until)
        except MaybeHappened:
            return await self._look(until)
        except MetastoreError:
            self._doubt = doubted
            raise
        self._hold(token_of(result.version), sent)
        return True

    async def _look(self, until: float | None) -> bool:
        """After doubt: whether the record that is there is ours; then its lease begins now."""
        deadline_s = self._deadline_s(until)
        record = await self._namespace.get(self.key, deadline_s=deadline_s)
        if record is None or not self._is_ours(record, self._mark):
            return False
        sent = now_ns()
        try:
            if await self._namespace.touch(self.key, version=record.version, deadline_s=deadline_s) is None:
                return False
        except (ConditionFailed, HistoryChanged):
            return False
        self._hold(token_of(record.version), sent)
        return True

    @staticmethod
    def _is_ours(record: Record, mark: tuple[bytes, str]) -> bool:
        return (record.value, record.content_type) == mark

    def _watcher(self) -> AsyncWatcher:
        namespace = self._namespace
        raw = encode_key(self.key)
        return AsyncWatcher(namespace.dispatcher, namespace.name, raw, None, keys_only=True, exact=True)

    async def _freed(self, watcher: AsyncWatcher, until: float | None) -> None:
        """Return once the record has gone. Raises DeadlineExceeded."""
        while True:
            event = await watcher.next(None if until is None else self._left_s(until))
            if event is None:
                raise DeadlineExceeded(
                    f"{self.key!r:.200} is held by another; the deadline passed while waiting for it"
                )
            if event.kind != "put" and event.key == self.key:
                return

    async def _abandon(self, mark: tuple[bytes, str]) -> None:
        """Release what may have been acquired without an answer. Its TTL would, too.

        A read could miss a write of ours that is still on its way. So first a write that changes nothing,
        of a version that there never is: it is resolved after ours, if that has arrived, and says that ours
        is never to be carried out, if it has not (R7: the floor)."""
        namespace, end = self._namespace, now_ns() + int(self.ttl_s * 1e9)
        settled = False
        while now_ns() < end and not namespace.dispatcher.closed:
            try:
                if not settled:
                    await namespace.delete(self.key, version=NO_VERSION, deadline_s=self.ttl_s)
                record = await namespace.get(self.key, deadline_s=self.ttl_s)
                if record is not None and self._is_ours(record, mark):
                    await namespace.delete(self.key, version=record.version, deadline_s=self.ttl_s)
                return
            except (ConditionFailed, HistoryChanged):
                if settled:
                    return
                settled = True
            except MetastoreError as e:
                log.debug("abandoning %s: %s", self.key, e.message)
                await asyncio.sleep(backoff_s(6))

    # --- holding ----------------------------------------------------------------------------

    def _hold(self, token: FencingToken, sent_ns: int) -> None:
        self._token, self._held, self._why = token, True, ""
        self.lost.clear()
        self._renewed(sent_ns)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._keep()), loop.create_task(self._look_at_clock())]

    def _renewed(self, sent_ns: int) -> None:
        self._over_at_ns = sent_ns + int(self.ttl_s * (1 - CLOCK_MARGIN) * 1e9)
        if self.remaining_s > self.ttl_s * AT_RISK_AFTER:
            self.at_risk.clear()

    async def _keep(self) -> None:
        """Touch the record now and then. A touch that fails is tried again; one that finds it gone, or
        another's, ends the hold."""
        failures = 0
        while not self._is_lost():
            due_s = self.remaining_s - self.ttl_s * (1 - RENEW_AFTER)
            if due_s > 0:
                await asyncio.sleep(min(due_s, LOOK_S))
                continue
            sent = now_ns()
            try:
                left = max(0.001, min(self.remaining_s, self._namespace.deadline_s))
                found = await self._namespace.touch(
                    self.key, version=lock_version(self._token), deadline_s=left
                )
                if found is not None and not self._is_lost():
                    failures = 0
                    self._renewed(sent)
            except ConditionFailed as e:
                what = (
                    "is held by another"
                    if e.detail.get("version")
                    else "does not exist any more: its TTL ended, or it was deleted"
                )
                self._lose(f"{self.key!r:.200} {what}")
            except HistoryChanged as e:
                self._lose(
                    f"{self.key!r:.200} was acquired in an earlier history of its partition: {e.message}"
                )
            except ClientClosed:
                self._lose(f"the client was closed while {self.key!r:.200} was held")
            except MetastoreError as e:
                log.debug("renewing %s: %s", self.key, e.message)
                await asyncio.sleep(backoff_s(failures))
                failures += 1

    async def _look_at_clock(self) -> None:
        """Tell when the lease is at risk, or over: on time also while a touch is under way."""
        while not self._is_lost():
            left = self.remaining_s - self.ttl_s * (1 - AT_RISK_AFTER)
            if left <= 0 and not self.at_risk.is_set():
                self.at_risk.set()
                self._call(self._on_at_risk)
            # in small steps: the loop's clock stands still while the machine sleeps, ours does not
            await asyncio.sleep(min(LOOK_S, max(0.001, left if left > 0 else self.remaining_s)))

    def _lose(self, why: str) -> None:
        if not self.lost.is_set():
            self._why = why
            self.at_risk.set()
            self.lost.set()
            log.warning("lock lost: %s", why)
            self._call(self._on_lost)

    def _call(self, callbacks: list[Callback]) -> None:
        for callback in callbacks:
            try:
                callback()
            except Exception:
                log.exception("a callback of %r failed", self)

    # --- giving back ------------------------------------------------------------------------

    async def _give_back(self) -> None:
        """Raises LockLost when it was lost before."""
        if not self._held:
            raise LockLost(self._why or f"{self.key!r:.200} is not held")
        self._is_lost()
        tasks, self._tasks, self._held = self._tasks, [], False
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            deadline_s = min(self.ttl_s, self._namespace.deadline_s)
            await self._namespace.delete(self.key, version=lock_version(self._token), deadline_s=deadline_s)
        except (ConditionFailed, HistoryChanged):
            self._lose(f"{self.key!r:.200} was no longer ours")
        except MetastoreError as e:  # its TTL frees it
            log.debug("giving back %s: %s", self.key, e.message)
        if self.lost.is_set():
            raise LockLost(self._why)

    async def leave(self, error: BaseException | None) -> None:
        """What leaving a ``with`` does: give it back; what the body raised comes first."""
        try:
            if self._held:
                await self._give_back()
        except LockLost:
            if error is None:
                raise
