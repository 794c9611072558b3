"""The Python client."""

from metastore.client.client import AsyncClient
from metastore.client.namespace import Namespace
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
from metastore.client.watching import Watcher
from metastore.records import Record

__all__ = [
    "Add",
    "AddResult",
    "AsyncClient",
    "Compare",
    "Delete",
    "Event",
    "Fence",
    "Get",
    "Namespace",
    "Page",
    "Put",
    "PutResult",
    "Record",
    "TouchResult",
    "TxnResult",
    "Watcher",
]
