"""A namespace, for threads: its records, what follows them, and what is built on them.

Made from ``metastore/client/namespace.py`` by ``make fix``: change that, or ``tests/twins.py``."""

from __future__ import annotations

from typing_extensions import TypeVar

from metastore.client.blocking.elections import Election
from metastore.client.blocking.locks import Lock
from metastore.client.blocking.records import Records
from metastore.client.blocking.watcher import Watcher
from metastore.client.watch.subscription import MAX_BUFFER_BYTES

T = TypeVar("T", default=bytes)


class Namespace(Records[T]):
    """A named set of keys, with values as the codec has them (bytes without one).

    All calls end by their deadline (``deadline_s``, seconds; None = the client's), whatever died. They
    raise a DidNotHappen error when the operation certainly has no effect, and a MaybeHappened error
    when a write's outcome is not known (R7): then it took effect once, or not at all. What any call may
    raise: Unavailable, DeadlineExceeded, Overloaded, InvalidRequest, ClientClosed, and OutcomeUnknown
    for writes."""

    def watch(
        self,
        prefix: str = "",
        *,
        after: str | None = None,
        keys_only: bool = False,
        any_replica: bool = False,
        buffer: int = 10000,
        buffer_bytes: int = MAX_BUFFER_BYTES,
    ) -> Watcher[T]:
        """Every change of keys that begin with ``prefix``, each once, in order for each key.

        Prefixes mean what they mean in ``list``. ``after``: a watcher's or a page's ``resume``, to see
        everything since; None = from now on, which ``with`` or ``started()`` waits for. ``any_replica``:
        also followers may tell, a little later. ``buffer``, ``buffer_bytes``: how much may wait for the
        reader; beyond it the servers are told to wait. Iteration raises Compacted when what comes next is
        not kept any more: list again, and watch from there."""
        return Watcher(
            self._portal,
            self._inner.watch(
                prefix,
                after=after,
                keys_only=keys_only,
                any_replica=any_replica,
                buffer=buffer,
                buffer_bytes=buffer_bytes,
            ),
        )

    def lock(self, key: str, *, ttl_s: float = 10.0, owner: str = "") -> Lock:
        """A lock of everybody who uses this key. ``ttl_s``: how long it outlives a holder that died (at least
        0.5 s). ``owner``: shown to who looks at it; "" = host name and process id."""
        return Lock(self._portal, self._inner.lock(key, ttl_s=ttl_s, owner=owner))

    def election(self, key: str, *, ttl_s: float = 10.0) -> Election[T]:
        """An election of one leader among everybody who campaigns for this key. ``ttl_s``: how long the place
        stays taken when a leader died (at least 0.5 s)."""
        return Election(self._portal, self._inner.election(key, ttl_s=ttl_s))
