"""Namespaces: a named set of keys with one policy, kept in etcd and cached everywhere. Pure.

No one must create a namespace: one that has no record has DEFAULT. The routing rule of a
namespace is fixed when it is created, since it says where its records are; all else may change.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from typing import Any, Final

import orjson

from metastore.elements import MAX_TTL_MS
from metastore.errors import InvalidRequest
from metastore.fields import Field, Shape, anything, with_more
from metastore.keys import MAX_SEGMENTS, PARENT, WHOLE_KEY

MAX_QUOTA = 1 << 53
#: that have a policy: every node and client knows them all, so the cluster has a bound; and how many a topology can tell
MAX_NAMESPACES = 10_000
MOST_NAMESPACES = 16_000
#: from this part of the bound on it is told that it comes near
NEARLY_FULL = 0.8


@dataclass(frozen=True, slots=True)
class Policy:
    """Bounds are checked on construction. Raises InvalidRequest.

    ``routing``: ``parent`` (a ``{tag}``, else the parent path), ``key`` (the whole key) or
    ``segments:N`` (its first N). ``default_ttl_ms``: of records written without one, 0 = they live
    for ever. ``max_records``, ``max_bytes`` (keys and values): 0 = no bound; enforced within seconds,
    not to the record. ``require_condition``: writes must carry one. ``ready`` is False while the
    namespace is being created: nothing can be written yet.
    """

    routing: str = "parent"
    default_ttl_ms: int = 0
    max_records: int = 0
    max_bytes: int = 0
    require_condition: bool = False
    ready: bool = True
    #: what a later version has in the record, as JSON: kept when it is written again, and sent nowhere
    more: bytes = b""

    def __post_init__(self) -> None:
        _rule(self.routing)
        for name, high in (
            ("default_ttl_ms", MAX_TTL_MS),
            ("max_records", MAX_QUOTA),
            ("max_bytes", MAX_QUOTA),
        ):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value <= high:
                raise InvalidRequest(f"{name} = {value!r:.40} is not a whole number from 0 to {high}")
        for name in ("require_condition", "ready"):
            if type(getattr(self, name)) is not bool:
                raise InvalidRequest(f"{name} = {getattr(self, name)!r:.40} is not true or false")

    @property
    def rule(self) -> int:
        """The routing rule as metastore.keys counts them."""
        return _rule(self.routing)

    @property
    def has_quota(self) -> bool:
        return bool(self.max_records or self.max_bytes)

    def to_plain(self) -> dict[str, Any]:
        plain = asdict(self)
        del plain["more"]
        return plain

    def to_json(self) -> bytes:
        return orjson.dumps(with_more(self.to_plain(), self.more))


def _rule(routing: Any) -> int:
    if routing == "parent":
        return PARENT
    if routing == "key":
        return WHOLE_KEY
    name, _, count = routing.partition(":") if isinstance(routing, str) else ("", "", "")
    if name == "segments" and count.isascii() and count.isdigit() and 1 <= int(count) <= MAX_SEGMENTS:
        return int(count)
    raise InvalidRequest(
        f"routing = {routing!r:.60}: use parent, key, or segments:N with N from 1 to {MAX_SEGMENTS}"
    )


DEFAULT = Policy()
#: of what a user may say of a policy, and of what a record of etcd says: the bounds are the Policy's own
_MEMBERS: Final = {f.name: Field(anything, f.default) for f in dataclass_fields(Policy) if f.name != "more"}
POLICY: Final = Shape("a policy", Policy, _MEMBERS, keeps=True)


def policy_from_plain(plain: Any) -> Policy:
    """What a user wants: a member that is not known is refused. Raises InvalidRequest."""
    if not isinstance(plain, dict):
        raise InvalidRequest(f"a policy is an object, not {plain!r:.80}")
    for name in plain:
        if name not in _MEMBERS:
            raise InvalidRequest(
                f"unknown member {name!r:.60} of a policy; known: {', '.join(sorted(_MEMBERS))}"
            )
    return Policy(**plain)


def policy_from_json(raw: bytes) -> Policy:
    """A record: what is not known is of a later version, and kept. Raises BadRecord."""
    return POLICY.read_json(raw)
