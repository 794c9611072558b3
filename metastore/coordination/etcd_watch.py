"""Following a prefix of etcd: a reading, then the stream of events from the next revision on.

After a compaction, or in any doubt, a reading again, of which only the differences count. A stream that
opens and ends without bringing anything, twice in a row, is such a doubt: what it chokes on lies in between,
and a reading passes over it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any, Final

from metastore.clock import now_ns
from metastore.coordination.etcd_calls import CALL_TIMEOUT_S, RETRY_S, aetcd, key_of, kv_of, prefix_end, rpc
from metastore.coordination.etcd_connection import EtcdConnection
from metastore.coordination.interface import Change, OnChange, OnRead
from metastore.coordination.mirror import Mirror
from metastore.coordination.troubles import trouble_of
from metastore.errors import CoordinationError, CoordinationUnavailable

log = logging.getLogger("metastore.etcd")

#: so many streams in a row that opened and brought nothing, and the prefix is read again
FRUITLESS_STREAMS: Final = 2
#: the more of them, the longer the wait for the next, up to so many times
MAX_PATIENCE: Final = 10
#: parts of one response that is too large for a message; more than that are read anew, in pages
MAX_FRAGMENT_EVENTS: Final = 200_000


class EtcdWatch(Mirror):
    """Implements Watch. ``quiet_s``: a stream that is silent for so long is asked whether it is alive."""

    def __init__(
        self,
        coordinator: EtcdConnection,
        prefix: str,
        on_change: OnChange,
        quiet_s: float,
        on_read: OnRead | None = None,
    ) -> None:
        super().__init__()
        self._etcd = coordinator
        self._prefix = prefix
        self._on_change = on_change
        self._on_read = on_read
        self._quiet_s = quiet_s
        self._heard_ns = now_ns()
        self._fruitless = 0
        self.ready = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        self._task.cancel()

    def begin_again(self) -> None:
        """Read everything anew: it is another etcd, or its revisions count from elsewhere."""
        self._task.cancel()
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def silent_s(self) -> float:
        return (now_ns() - self._heard_ns) / 1e9

    def _heard(self) -> None:
        """All that there was up to now has been delivered."""
        self._heard_ns = now_ns()
        self._fruitless = 0

    async def _run(self, reread: bool = True) -> None:
        while True:
            try:
                if reread:
                    revision, content = await self._etcd.range(self._prefix)
                    if self._on_read is not None:
                        await self._on_read(content)
                    self._deliver(revision, self.snapshot(revision, content))
                    self.ready.set()
                    self._heard_ns = now_ns()  # whether a stream brings anything is not known by that
                reread = await self._stream()
            except CoordinationError as e:
                log.debug("watch: %s", e)
            except Exception:
                log.exception("the watch failed; it begins again")
                reread = True
            await asyncio.sleep(random.uniform(*RETRY_S) / 2 * min(1 + self._fruitless, MAX_PATIENCE))

    def _deliver(self, revision: int, changes: list[Change]) -> None:
        if changes or not self.ready.is_set():
            try:
                self._on_change(revision, changes)
            except Exception:
                log.exception("a watch's consumer failed")

    async def _stream(self) -> bool:
        """Follow events until the stream ends; whether the prefix must be read again. Raises CoordinationError."""
        etcd, opened = self._etcd, False
        client = await etcd.client()
        # a member cut off from its leader ends the stream instead of keeping it without news
        call = rpc.WatchStub(client.channel).Watch(metadata=(("hasleader", "true"),))
        raw = self._prefix.encode()
        create = rpc.WatchCreateRequest(
            key=raw,
            range_end=prefix_end(raw),
            start_revision=max(1, self.revision + 1 - etcd.base),
            progress_notify=True,
            fragment=True,
        )
        events: list[Any] = []
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await call.write(rpc.WatchRequest(create_request=create))
            while (response := await self._read(call)) is not None:
                if response.canceled or response.compact_revision:
                    etcd.note_trouble("watch", trouble_of(response.cancel_reason))
                    return True
                if not etcd.see(response.header, 0):
                    raise CoordinationUnavailable(etcd.untrusted)
                if response.created:
                    if await self._lags(client, etcd.base + response.header.revision):
                        break
                    opened = True
                    continue
                events += response.events
                if len(events) > MAX_FRAGMENT_EVENTS:
                    return True
                if not response.fragment:
                    self._take(events)
                    events = []
        except (TimeoutError, asyncio.InvalidStateError) as e:  # the last: it ended as we wrote
            log.debug("watch: %s", e)
        except rpc.AioRpcError as e:
            log.debug("watch: %s", e.details())
            etcd.note_trouble("watch", trouble_of(e.details() or ""))
        finally:
            call.cancel()
        etcd.next_endpoint(client)
        self._fruitless += opened
        return self._fruitless >= FRUITLESS_STREAMS

    def _take(self, events: list[Any]) -> None:
        """Whole responses: of the changes of one revision all or none, or a stream that breaks in between and
        goes on at the next one would pass some over."""
        if events:
            told = self._etcd.told
            revision = self._etcd.base + max(e.kv.mod_revision for e in events)
            self._etcd.revision = max(self._etcd.revision, revision)
            found = [
                (key_of(e.kv.key), told(kv_of(e.kv)) if e.type == rpc.Event.PUT else None) for e in events
            ]
            self._deliver(revision, self.events(revision, found))
        self._etcd.note_trouble("watch", "")
        self._heard()

    async def _lags(self, client: aetcd.Client, revision: int) -> bool:
        """Whether the member is behind what is known of etcd. Its own word says nothing against etcd (R13): a reading,
        which goes by etcd's majority, does; it raises CoordinationUnavailable then."""
        etcd, about = self._etcd, f"member {self._etcd.endpoint_of(client)}"
        known = etcd.revision
        if revision >= known:
            etcd.note_trouble(about, "")
            return False
        await etcd.get(self._prefix)
        etcd.note_trouble(
            about,
            f"{about} of etcd lags: it is at revision {revision}, and etcd was at {known}; look at its disk, and at the "
            "network to the others",
        )
        return True

    async def _read(self, call: Any) -> Any:
        """The next response; None when the stream ended or stays dead silent when asked."""
        reading = asyncio.ensure_future(call.read())
        try:
            done, _ = await asyncio.wait({reading}, timeout=self._quiet_s)
            if not done:
                progress = rpc.WatchRequest(progress_request=rpc.WatchProgressRequest())
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    await call.write(progress)
                done, _ = await asyncio.wait({reading}, timeout=CALL_TIMEOUT_S)
            if not done:
                return None
            response = reading.result()
            return response if response else None
        finally:
            if not reading.done():
                reading.cancel()
