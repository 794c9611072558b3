"""Facts that a node keeps of itself and of others, read back: what does not parse is dropped with a warning.

They lie under checksums, so what does not parse was written by another version, or was accepted by one that looked less
closely. A node must start with it all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeVar

from metastore.errors import InvalidRequest
from metastore.fields import Read
from metastore.storage.kept import FACT_ROWS, KeptRows
from metastore.storage.records import Fact

log = logging.getLogger("metastore.facts")

T = TypeVar("T")


def keep_fact(facts: dict[str, Any], kept: KeptRows, fact: Fact) -> None:
    """A fact of the log is so from here on."""
    if fact.key == FACT_ROWS:
        kept.take(fact.value)
    else:
        facts[fact.key] = fact.value


def read_fact(facts: Mapping[str, Any], key: str, read: Read[T], absent: T, unreadable: T) -> T:
    """What is kept under ``key``; ``absent`` when nothing is, ``unreadable`` when it is not valid: what is safe to
    assume then."""
    if key not in facts:
        return absent
    try:
        return read(facts[key])
    except (ValueError, InvalidRequest) as e:
        log.warning("this node's stored record %r cannot be read and is dropped: %s", key, e)
        return unreadable
