"""A topology table as plain maps and lists, for msgpack and JSON; points as hexadecimal text. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from metastore import fields, schema
from metastore.changes import RowKey
from metastore.errors import InvalidRequest
from metastore.fields import BadRecord, Field, Shape
from metastore.keys import check_namespace
from metastore.layout import MAX_PARTITION, NodeRecord
from metastore.namespaces import POLICY, Policy
from metastore.topology.placements import NUMBER, Placement, placement_from_plain, placement_to_plain

#: so many keys that could not be read are told on
MAX_UNREADABLE: Final = 1000


@dataclass(slots=True)
class Told:
    """What somebody told of a table. ``since``: None = all of it, else what has changed after that revision; ``removed``: what is gone
    then; ``left_out``: keys of rows that are not valid; ``learned``: partitions that only replicas have told of."""

    cluster: str
    revision: int
    unreadable: set[str]
    since: int | None
    removed: list[RowKey]
    learned: set[int]
    nodes: list[NodeRecord] = field(default_factory=list)
    namespaces: list[tuple[str, Policy]] = field(default_factory=list)
    partitions: list[Placement] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def read(raw: Any) -> Told:
    """A row that is not valid is left out; what is of a later version is passed over. Raises InvalidRequest when ``raw`` is
    not a table."""
    try:
        head = HEAD.read(raw)
    except (BadRecord, RecursionError) as e:
        raise InvalidRequest(f"not a topology table: {e}"[:300]) from None
    told = Told(
        head["cluster"],
        head["revision"],
        set(head["unreadable"]),
        head["since"],
        list(head["removed"]),
        set(head["learned"]),
    )
    kinds: tuple[tuple[str, list[Any], Any], ...] = (
        ("nodes", told.nodes, NodeRecord.from_plain),
        ("namespaces", told.namespaces, _NAMESPACE),
        ("partitions", told.partitions, placement_from_plain),
    )
    for kind, into, read_row in kinds:
        for plain in head[kind]:
            try:
                into.append(read_row(plain))
            except (ValueError, InvalidRequest, RecursionError):
                told.left_out.append(_row_key(kind, plain))
    told.unreadable.update(told.left_out)
    return told


def head_of(cluster: str, revision: int, learned: list[int], unreadable: set[str]) -> dict[str, Any]:
    """What is of a table as a whole. What earlier versions do not know is there only when there is something to say."""
    plain: dict[str, Any] = {"cluster": cluster, "revision": revision}
    if learned:
        plain["learned"] = learned
    if unreadable:
        plain["unreadable"] = [schema.shown(key) for key in sorted(unreadable)[:MAX_UNREADABLE]]
    return plain


def whole(
    head: dict[str, Any],
    nodes: dict[str, NodeRecord],
    namespaces: dict[str, Policy],
    partitions: dict[int, Placement],
) -> dict[str, Any]:
    """All of a table."""
    return {
        "cluster": head.pop("cluster"),
        "revision": head.pop("revision"),
        "nodes": [node_to_plain(n) for _, n in sorted(nodes.items())],
        "namespaces": [[name, policy.to_plain()] for name, policy in sorted(namespaces.items())],
        "partitions": [placement_to_plain(p) for p in sorted(partitions.values(), key=lambda p: p.id)],
        **head,
    }


def row(
    key: RowKey,
    nodes: dict[str, NodeRecord],
    namespaces: dict[str, Policy],
    partitions: dict[int, Placement],
) -> Any:
    """A row of a table; None = it is gone."""
    match key:
        case ("nodes", str(name)) if name in nodes:
            return node_to_plain(nodes[name])
        case ("namespaces", str(name)) if name in namespaces:
            return [name, namespaces[name].to_plain()]
        case ("partitions", int(p)) if p in partitions:
            return placement_to_plain(partitions[p])
    return None


def changed(rows: Iterable[RowKey], now: Callable[[RowKey], Any]) -> dict[str, Any]:
    """These rows as they are ``now``, and which of them are gone."""
    found: dict[str, list[Any]] = {"nodes": [], "namespaces": [], "partitions": [], "removed": []}
    for key in rows:
        plain = now(key)
        if key[0] in found:
            found["removed" if plain is None else key[0]].append(list(key) if plain is None else plain)
    return found


def node_to_plain(record: NodeRecord) -> dict[str, Any]:
    return asdict(record)


def _row_key(kind: str, plain: Any) -> str:
    """The key of a table's row that is not valid, as far as it can be told."""
    at: Any = {"nodes": "node", "namespaces": 0, "partitions": "id"}[kind]
    try:
        name = plain[at]
    except (LookupError, TypeError):
        name = ""
    if kind == "partitions":
        return f"config/?/{name:05d}" if type(name) is int and 0 <= name <= MAX_PARTITION else "config/?/?"
    return schema.shown(f"{kind}/{name!s:.100}")


def _row_name(value: Any) -> RowKey:
    """Of a row that is gone; what is of a later version is no row here."""
    kind, name = fields.row(fields.text, fields.anything)(value)
    return kind, NUMBER(name) if kind == "partitions" else fields.text(name)


_ROWS = fields.several(fields.anything, 0, 1 << 20)
_NAMESPACE = fields.row(check_namespace, POLICY.read)
HEAD: Final[Shape[dict[str, Any]]] = Shape(
    "it",
    dict,
    {
        "cluster": Field(fields.text),
        "revision": Field(fields.whole()),
        "nodes": Field(_ROWS),
        "namespaces": Field(_ROWS, ()),
        "partitions": Field(_ROWS),
        "learned": Field(fields.several(NUMBER, 0, MAX_PARTITION + 1), ()),
        "unreadable": Field(fields.several(fields.text, 0, MAX_UNREADABLE), ()),
        "since": Field(fields.maybe(fields.whole()), None),
        "removed": Field(fields.several(_row_name, 0, 1 << 20), ()),
    },
)
