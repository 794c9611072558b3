"""Examples of every frame between nodes, and between clients and nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from metastore import operations as c
from metastore.core import messages as m
from metastore.elements import ONE_REQUEST, RAISE
from metastore.errors import NotLeader, Unavailable
from metastore.records import pack_record
from metastore.topology import TopologyTable
from metastore.wire import answer_checks, frames, peer_messages, versions
from metastore.wire.client_messages import WATCH_ANY, WATCH_KEYS
from metastore.wire.op_checks import check_op, check_request, check_watch, op_shape
from metastore.wire.peer_messages import Hello
from tests.golden.formats import Example, Form
from tests.golden.records import ENTRY, LKEY, TABLE

LINEAGE: Final = m.Lineage((m.Run(3, "run3"), m.Run(2, "run2", 71), m.Run(1, "run1", 40)))
SPOKEN: Final = versions.Spoken(1, 1, "0.1.0")
ME: Final = m.Process("n1", "s" * 32, "run3")
OTHER: Final = m.Process("n2", "t" * 32, "run8")
CLIENT: Final = b"client-id-16byte"
EPOCH: Final = 5 << 16 | 2


def frame(raw: bytes, kind: int) -> Any:
    """The body of the one frame that ``raw`` is."""
    [(found, body)] = frames.FrameDecoder(max_items=frames.MAX_ITEMS).feed(raw)
    assert found == kind
    return body


def framed(kind: int, body: Any, check: Callable[[Any], str | None]) -> Example:
    def read(raw: bytes) -> Any:
        found = frame(raw, kind)
        assert not check(found), check(found)
        return found

    return Example(body, lambda value: frames.pack(kind, value), read)


# --- between nodes --------------------------------------------------------------------------------------

PEER_MESSAGES: Final[list[Any]] = [
    m.Heartbeat(7, 1_000_000_007, [(3, EPOCH, m.HEALTHY | m.FRESH, 99), (4, EPOCH, 0, 0)]),
    m.HeartbeatAck(7, 1_000_000_009, 2_000_000_000, [(4, EPOCH + 1)], m.LOW),
    m.Seal(3, EPOCH, b"config", EPOCH - 1),
    m.Sealed(3, EPOCH, EPOCH - 1, 98, 97, 1_500_000_000),
    m.Refused(3, EPOCH, EPOCH + 1),
    m.Append(3, EPOCH, EPOCH - 1, 98, 97, [ENTRY, ENTRY]),
    m.Appended(3, EPOCH, 99),
    m.Missed(3, EPOCH, EPOCH - 1, 50),
    m.Pull(3, EPOCH, EPOCH - 1, 50),
    m.Pulled(3, EPOCH, EPOCH - 1, 50, [ENTRY]),
    m.PullMissed(3, EPOCH, EPOCH - 1, 40),
    m.PreVote(3, EPOCH, 2),
    m.PreVoteReply(3, EPOCH, 2, True),
    m.HandOff(3, EPOCH),
    m.SnapshotBegin(3, EPOCH, 11, 98, EPOCH - 1, [(9, 60)]),
    m.SnapshotChunk(3, EPOCH, 11, 1, [(1, LKEY, pack_record(1, 1, b"v")), (2, b"m", b"\x92\x01\x00")]),
    m.SnapshotAck(3, EPOCH, 11, 1, True),
    m.Appoint(3, EPOCH, b"config", 4711),
    m.Appointed(3, EPOCH),
    m.Recall(3, EPOCH, 99, "run2"),
    m.Rebuild(3, EPOCH),
]


def _plain(message: Any) -> Any:
    """With lists for what the wire has as lists."""
    return type(message)(
        *([list(row) if type(row) is tuple else row for row in v] if type(v) is list else v for v in message)
    )


def _peer_message(message: Any) -> Example:
    def read(raw: bytes) -> Any:
        return [peer_messages.decode(found) for found in frame(raw, frames.PEER)]

    def write(messages: Any) -> bytes:
        return frames.pack(frames.PEER, [peer_messages.encode(one) for one in messages])

    return Example([_plain(message)], write, read)


_SEEN: Final = m.Seen(2, "run2", 71)


def _refusal(raw: bytes) -> Any:
    status, message, detail = frame(raw, frames.ERROR)
    return [status, message, peer_messages.read_seen(detail["seen"])]


def _peer() -> dict[str, Example]:
    told = {"": Hello(ME, LINEAGE, SPOKEN), "-levels": Hello(ME, LINEAGE, SPOKEN, versions.Levels(2, 3))}
    return {
        **{
            f"hello{name}": Example(
                one,
                lambda v: frames.pack(
                    frames.PEER_HELLO, peer_messages.hello("c", v, OTHER.node, OTHER.store)
                ),
                lambda raw: peer_messages.read_hello(frame(raw, frames.PEER_HELLO), "c", OTHER),
            )
            for name, one in told.items()
        },
        **{
            f"hello-ok{name}": Example(
                one,
                lambda v: frames.pack(frames.PEER_HELLO_OK, peer_messages.hello_ok(v)),
                lambda raw: peer_messages.read_hello_ok(frame(raw, frames.PEER_HELLO_OK)),
            )
            for name, one in told.items()
        },
        "level": Example(
            2,
            lambda v: frames.pack(frames.LEVEL, v),
            lambda raw: versions.read_level(frame(raw, frames.LEVEL)),
        ),
        "refusal": Example(
            [400, "an old copy", _SEEN],
            lambda v: frames.pack(frames.ERROR, [v[0], v[1], {"seen": list(v[2])}]),
            _refusal,
        ),
        "ping": Example(71, lambda v: frames.pack(frames.PING, v), lambda raw: frame(raw, frames.PING)),
        "ping-of-old": Example(
            None, lambda v: frames.pack(frames.PING, v), lambda raw: frame(raw, frames.PING)
        ),
        **{f"{m.NUMBERS[type(one)]}-{type(one).__name__}": _peer_message(one) for one in PEER_MESSAGES},
    }


# --- between clients and nodes -----------------------------------------------------------------------------

_RECORD: Final = pack_record(17, 12, b"value", b"text/plain", 60_000)

OPS: Final[dict[str, list[Any]]] = {
    "get": [1, c.GET, 3, LKEY, c.LINEARIZABLE, None],
    "get-stale": [1, c.GET, 3, LKEY, c.STALE, 5000],
    "get-at-least": [1, c.GET, 3, LKEY, c.AT_LEAST, 17],
    "put": [2, c.PUT, 3, LKEY, 9, 8, 99, None, b"value", "text/plain", 60_000],
    "put-absent": [2, c.PUT, 3, LKEY, 9, 8, 99, c.ABSENT, b"value", "", None],
    "put-fenced": [2, c.PUT, 3, LKEY, 9, 8, 99, None, b"value", "", 0, ["lock", 5]],
    "put-takes": [2, c.PUT, 3, LKEY, 9, 8, 99, None, b"value", "", 0, ["lock", RAISE]],
    "delete": [3, c.DELETE, 3, LKEY, 10, 8, 0, c.EXISTS],
    "delete-fenced": [3, c.DELETE, 3, LKEY, 10, 8, 0, 17, ["lock", 5]],
    "add": [4, c.ADD, 3, LKEY, 11, ONE_REQUEST, 0, None, -2],
    "add-fenced": [4, c.ADD, 3, LKEY, 11, 8, 0, None, 2, ["lock", 5]],
    "list": [5, c.LIST, 3, LKEY[:8], LKEY + b"z", 100, 0, c.LINEARIZABLE, None],
    "list-wanted": [5, c.LIST, 3, LKEY[:8], LKEY + b"z", 100, c.KEYS_ONLY, c.STALE, None, b"ns\0"],
    "txn": [
        6,
        c.TXN,
        3,
        LKEY,
        12,
        8,
        0,
        [[LKEY, c.VERSION, c.EQUAL, 17], [LKEY, c.VALUE, c.NOT_EQUAL, b"x"], [LKEY, c.CREATED, c.LESS, 99]],
        [[c.GET, LKEY], [c.PUT, LKEY, b"value", "", None], [c.ADD, LKEY + b"n", 1]],
        [[c.DELETE, LKEY]],
    ],
    "txn-fenced": [6, c.TXN, 3, LKEY, 12, 8, 0, [], [[c.GET, LKEY]], [], ["lock", 5]],
    "touch": [7, c.TOUCH, 3, LKEY, None],
    "rename": [9, c.RENAME, 3, LKEY, 13, 8, 0, c.EXISTS, LKEY + b"r", c.ABSENT],
    "rename-fenced": [9, c.RENAME, 3, LKEY, 13, 8, 0, 17, LKEY + b"r", None, ["lock", 5]],
}

#: name of the operation, and what follows the result's id
ANSWERS: Final[dict[str, tuple[str, list[Any]]]] = {
    "get": ("get", [c.OK, _RECORD, None]),
    "get-stale": ("get-stale", [c.OK, _RECORD, 12]),
    "not-found": ("get", [c.NOT_FOUND, None]),
    "put": ("put", [c.OK, 18, 99, True]),
    "delete": ("delete", [c.OK, 18, 99]),
    "add": ("add", [c.OK, 18, 99, -2]),
    "list": ("list", [c.OK, [[LKEY, _RECORD]], LKEY + b"a", None, 18]),
    "list-keys": ("list-wanted", [c.OK, [[LKEY, 17]], None, 7, 18]),
    "txn": ("txn", [c.OK, True, 99, [[c.OK, _RECORD], [c.OK, 18, False], [c.OK, 19, 1]]]),
    "txn-else": ("txn", [c.OK, False, 99, [[c.OK, 18]]]),
    "touch": ("touch", [c.OK, 17, 0, 60_000]),
    "rename": ("rename", [c.OK, True, 99, [[c.OK, 18], [c.OK, 19, False]]]),
    "touch-nothing": ("touch", [c.NOT_FOUND, 0]),
    "not-leader": (
        "get",
        [NotLeader.status, "not the leader", {"partition": 3, "epoch": EPOCH, "leader": "n2"}],
    ),
    "unavailable": ("put", [Unavailable.status, "no leader", {"retry_after_s": 1}]),
}

WATCH: Final = [8, 3, LKEY[:8], LKEY + b"z", None, 0, b""]


def _request_error(body: Any) -> str | None:
    error = check_request(body) or op_shape(body[2][0]) or check_op(body[2][0])
    return error.message if error is not None else None


def _answer_error(op: list[Any]) -> Callable[[Any], str]:
    return lambda body: answer_checks.check_answer(op, body[0])


def _events_error(body: Any) -> str:
    return answer_checks.check_events(body) or answer_checks.check_changes(WATCH[1:], body[1], body[2])


def _watch_error(body: Any) -> str | None:
    error = check_watch(body)
    return error.message if error is not None else None


def _topology() -> Example:
    return Example(
        TABLE.to_wire(),
        lambda v: frames.pack(frames.TOPOLOGY, [TopologyTable.from_wire(v).to_wire()]),
        lambda raw: TopologyTable.from_wire(frame(raw, frames.TOPOLOGY)[0]).to_wire(),
    )


def _client() -> dict[str, Example]:
    def none(body: Any) -> None:
        return None

    return {
        "hello": framed(frames.HELLO, ["c", "a client", list(SPOKEN)], none),
        "hello-ok": framed(
            frames.HELLO_OK, ["c", "n1", "c1", "s" * 32, "run3", list(SPOKEN)], answer_checks.check_hello
        ),
        "error": framed(frames.ERROR, [400, "no", {"retry_after_s": 1}], answer_checks.check_refusal),
        **{
            f"request-{name}": framed(frames.REQUEST, [CLIENT, 2000, [op]], _request_error)
            for name, op in OPS.items()
        },
        **{
            f"answer-{name}": framed(frames.RESPONSE, [[OPS[of][0], *tail]], _answer_error(OPS[of]))
            for name, (of, tail) in ANSWERS.items()
        },
        "watch": framed(frames.WATCH, WATCH, _watch_error),
        "watch-after": framed(frames.WATCH, [*WATCH[:4], 17, WATCH_ANY | WATCH_KEYS, b"ns\0"], _watch_error),
        "unwatch": framed(frames.UNWATCH, [8], none),
        "events": framed(
            frames.EVENTS,
            [8, 20, [[c.PUT, LKEY, 17, _RECORD], [c.DELETE, LKEY, 18, None], [c.EXPIRE, LKEY, 19, None]]],
            _events_error,
        ),
        "watch-end": framed(frames.WATCH_END, [8, 503, "moved", {}], answer_checks.check_end),
        "topology-request": framed(frames.TOPOLOGY_REQUEST, [4711], none),
        "topology": _topology(),
        "topology-none": framed(frames.TOPOLOGY, [None], answer_checks.check_told),
        "status-request": framed(frames.STATUS_REQUEST, [], none),
        "status": framed(frames.STATUS, [{"node": "n1"}], answer_checks.check_told),
    }


def forms() -> list[Form]:
    return [Form("peer", frames.WIRE_VERSION, _peer()), Form("client", frames.WIRE_VERSION, _client())]
