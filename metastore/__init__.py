"""metastore: a sharded, replicated metadata store.

What most programs need is here, and is imported when it is first asked for, so that importing
``metastore.core`` or ``metastore.errors`` stays light. ``Client`` is the one for threads and ``AsyncClient``
the one for asyncio, as the HTTP and database clients of Python name theirs: the plain name for what most
people reach for first, ``Async`` before it wherever ``await`` belongs before the call. The same holds for
what they make: ``Namespace`` and ``AsyncNamespace``, ``Lock`` and ``AsyncLock``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metastore.client import (
        BYTES,
        JSON,
        MSGPACK,
        TEXT,
        Add,
        AsyncClient,
        Client,
        Compare,
        Delete,
        Event,
        Fence,
        FencingToken,
        Get,
        Put,
        Record,
        RequestIds,
        Version,
    )
    from metastore.errors import (
        Compacted,
        ConditionFailed,
        DidNotHappen,
        HistoryChanged,
        LockLost,
        MaybeHappened,
        MetastoreError,
    )

__all__ = [
    "BYTES",
    "JSON",
    "MSGPACK",
    "TEXT",
    "Add",
    "AsyncClient",
    "Client",
    "Compacted",
    "Compare",
    "ConditionFailed",
    "Delete",
    "DidNotHappen",
    "Event",
    "Fence",
    "FencingToken",
    "Get",
    "HistoryChanged",
    "LockLost",
    "MaybeHappened",
    "MetastoreError",
    "Put",
    "Record",
    "RequestIds",
    "Version",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'metastore' has no attribute {name!r}")
    from metastore import client, errors

    value = getattr(client, name, None) or getattr(errors, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
