"""The Python client."""

from metastore.client.client import AddResult, AsyncClient, Delete, Get, Namespace, Page, Put, PutResult
from metastore.records import Record

__all__ = ["AddResult", "AsyncClient", "Delete", "Get", "Namespace", "Page", "Put", "PutResult", "Record"]
