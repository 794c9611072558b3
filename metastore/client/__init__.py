"""The Python client: ``Client`` for threads, ``AsyncClient`` for asyncio, alike in all else."""

from metastore.client.blocking.client import Client
from metastore.client.blocking.elections import Election, Leadership
from metastore.client.blocking.locks import Lock
from metastore.client.blocking.namespace import Namespace
from metastore.client.blocking.watcher import Watcher
from metastore.client.client import AsyncClient, ClientStats
from metastore.client.codecs import BYTES, JSON, MSGPACK, TEXT, Codec
from metastore.client.elections import AsyncElection, AsyncLeadership
from metastore.client.locks import AsyncLock
from metastore.client.namespace import AsyncNamespace
from metastore.client.results import (
    Add,
    AddResult,
    Compare,
    Delete,
    Event,
    Fence,
    Get,
    Page,
    Put,
    PutResult,
    TouchResult,
    TxnResult,
)
from metastore.client.watch.watcher import AsyncWatcher
from metastore.history import FencingToken, Version
from metastore.records import Record
from metastore.routing.request_ids import RequestIds

__all__ = [
    "BYTES",
    "JSON",
    "MSGPACK",
    "TEXT",
    "Add",
    "AddResult",
    "AsyncClient",
    "AsyncElection",
    "AsyncLeadership",
    "AsyncLock",
    "AsyncNamespace",
    "AsyncWatcher",
    "Client",
    "ClientStats",
    "Codec",
    "Compare",
    "Delete",
    "Election",
    "Event",
    "Fence",
    "FencingToken",
    "Get",
    "Leadership",
    "Lock",
    "Namespace",
    "Page",
    "Put",
    "PutResult",
    "Record",
    "RequestIds",
    "TouchResult",
    "TxnResult",
    "Version",
    "Watcher",
]
