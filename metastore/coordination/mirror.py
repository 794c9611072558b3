"""The mirror of a prefix that a watch keeps: snapshots and events in, net changes out. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from metastore.coordination.interface import KV, Change


class Mirror:
    """``kvs`` is the content at ``revision``."""

    def __init__(self) -> None:
        self.kvs: dict[str, KV] = {}
        self.revision = 0
        #: the revision of the newest reading: what came and went before it may never have been told
        self.read_at = 0
        #: how many readings there were
        self.readings = 0

    def snapshot(self, revision: int, content: Iterable[KV]) -> list[Change]:
        """Replace the content by a fresh reading; what differs, deletes first."""
        new = {kv.key: kv for kv in content}
        changes = [Change(key, old, None) for key, old in self.kvs.items() if key not in new]
        for key, kv in new.items():
            old = self.kvs.get(key)
            if old != kv:
                changes.append(Change(key, old, kv))
        self.kvs, self.revision = new, max(revision, self.revision)
        self.read_at = self.revision
        self.readings += 1
        return changes

    def events(self, revision: int, events: Iterable[tuple[str, KV | None]]) -> list[Change]:
        """Apply put and delete events; those already reflected are dropped."""
        changes = []
        for key, kv in events:
            old = self.kvs.get(key)
            if kv is None:
                if old is not None:
                    del self.kvs[key]
                    changes.append(Change(key, old, None))
            elif old is None or kv.mod_revision > old.mod_revision:
                self.kvs[key] = kv
                changes.append(Change(key, old, kv))
        self.revision = max(revision, self.revision)
        return changes
