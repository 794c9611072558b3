"""What tests say to the type checker, once."""

from __future__ import annotations

from typing import TypeVar, cast

from metastore.storage import records
from metastore.storage.journal import SimpleRecord
from metastore.storage.store import Store

T = TypeVar("T")


def there(found: T | None) -> T:
    """``found``, which is there. Raises AssertionError when it is not."""
    assert found is not None
    return found


def put_in_log(store: Store, record: records.Record) -> int:
    """Append any record; its number. A store appends entries by ``append_entries``, which compares epochs first (R1);
    tests of the log and of its recovery write records that no comparison has let in."""
    return store.append(cast(SimpleRecord, record))
