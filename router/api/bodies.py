"""The JSON bodies that operations take and give."""

from __future__ import annotations

from collections.abc import Iterable

from metastore.elements import FENCE_OR_RAISE, MAX_FENCE_NAME_BYTES, MAX_TTL_MS
from metastore.keys import MAX_CONTENT_TYPE_BYTES, MAX_VALUE_BYTES
from metastore.namespaces import MAX_QUOTA
from metastore.operations import BY_NAME, MAX_TXN_PARTS, OPERATIONS, SINGLE, Operation
from metastore.wire.client_messages import MAX_OPS_PER_FRAME
from router.api.parameters import (
    AGE_S,
    FENCE_NAME,
    I64,
    KEY_SHAPE,
    MAX_VERSION,
    NAMESPACE_SHAPE,
    TTL_MS,
    TTL_S,
    VERSION,
)
from router.api.shapes import (
    Base64,
    Choice,
    Const,
    EachOf,
    Flag,
    Integer,
    ListOf,
    Member,
    Object,
    OneOf,
    Tagged,
    Text,
    or_null,
)

_U63 = Integer(0, MAX_VERSION)

_FREE = Text()

CONTENT_TYPE = Text(
    0,
    MAX_CONTENT_TYPE_BYTES,
    r"[\x20-\x7e]*",
    f"a content type: visible ASCII of at most {MAX_CONTENT_TYPE_BYTES} characters",
)
FENCE = Object(
    {
        "name": Member(
            Text(1, MAX_FENCE_NAME_BYTES, what="a fence's name"), "Of the lock, election, …", True
        ),
        "token": Member(VERSION, "The version of the record that is the lock.", True),
    },
    name="FenceToken",
    text="Refuse the write if a higher token of this name was seen in the partition.",
)

# --- what comes in ------------------------------------------------------------------------------

_KEY = Member(KEY_SHAPE, "", True)
#: of an operation's element, by its name in ``metastore.operations``: its members here
_ELEMENTS: dict[str, dict[str, Member]] = {
    "value": {
        "value": Member(
            Text(0, MAX_VALUE_BYTES, what=f"text of at most {MAX_VALUE_BYTES} bytes"), "The value, text."
        ),
        "value_base64": Member(Base64(MAX_VALUE_BYTES), "The value, any bytes."),
    },
    "content_type": {"content_type": Member(CONTENT_TYPE, "Kept with the value.", default="")},
    "ttl_ms": {
        "ttl_ms": Member(TTL_MS, "0 = lives for ever; without it, the namespace's default."),
        "ttl_s": Member(TTL_S, "The same in seconds."),
    },
    "delta": {"delta": Member(I64, "", default=1)},
    "consistency": {"consistency": Member(Choice(("linearizable", "stale", "at_least")))},
    "arg": {"max_staleness_ms": Member(Integer(0, 10**12)), "at_least": Member(_U63)},
}
_CONDITIONS = {
    "version": ("if_version", Member(VERSION, "Only if the record is at this version.")),
    "absent": ("if_absent", Member(Flag(), "Only if there is no such record.")),
    "exists": ("if_exists", Member(Flag(), "Only if there is such a record.")),
}
_WRITE = {
    "fence": Member(FENCE),
    "idempotency_key": Member(
        Text(1, 256, r"[\x21-\x7e]+", "1 to 256 visible ASCII characters"), "As the header Idempotency-Key."
    ),
    "idempotency_age_s": Member(AGE_S, "As the header Idempotency-Age."),
}
_RAISE_FENCE = Member(FENCE_NAME, "The record is a lock: raise this fence to its new version.")


def _form(prefix: str, op: Operation, more: str, names: Iterable[str], extra: dict[str, Member]) -> Object:
    """The JSON form of an operation: its elements of these names, and what stands beside them."""
    members = {"op": Member(Const(op.name), "", True), "key": _KEY}
    for name in names:
        members |= _ELEMENTS.get(name, {})
    members |= extra
    alone = (("ttl_ms", "ttl_s"), tuple(name for name, _ in _CONDITIONS.values()), ("fence", "raise_fence"))
    given = (tuple(name for name in names if name in members) for names in alone)
    return Object(
        members,
        f"{prefix}{op.name.capitalize()}",
        op.text + more,
        one_of=(("value", "value_base64"),) if "value" in members else (),
        not_both=tuple(names for names in given if len(names) > 1),
    )


def _batch_form(op: Operation) -> Object:
    extra = dict(_CONDITIONS[condition] for condition in op.conditions)
    if op.writes:
        extra |= _WRITE
    if op.optional is FENCE_OR_RAISE:
        extra["raise_fence"] = _RAISE_FENCE
    return _form(
        "Batch", op, "" if op.adds else " 404 when there is none.", [f.name for f in op.fields], extra
    )


def _txn_form(op: Operation) -> Object:
    return _form("Txn", op, "", op.part or (), {})


BATCH_OP = Tagged(
    "op", {op.name: _batch_form(op) for op in OPERATIONS.values() if op.kind in SINGLE}, "BatchOp"
)
BATCH = Object(
    {"ops": Member(EachOf(BATCH_OP, MAX_OPS_PER_FRAME), "Worked on side by side, in no order.", True)},
    "Batch",
)
TXN_OP = Tagged("op", {op.name: _txn_form(op) for op in OPERATIONS.values() if op.part is not None}, "TxnOp")
_RELATION = Member(Choice(("==", "!=", "<", ">")), "What has to hold between the two.", default="==")
COMPARE = Tagged(
    "what",
    {
        word: Object(
            {
                "key": _KEY,
                "what": Member(Const(word), "", True),
                "relation": _RELATION,
                "operand": Member(_U63, "0 stands for: there is no such record.", True),
            },
            name,
        )
        for word, name in (("version", "CompareVersion"), ("created", "CompareCreated"))
    }
    | {
        "value": Object(
            {
                "key": _KEY,
                "what": Member(Const("value"), "", True),
                "relation": _RELATION,
                "operand": Member(Text(0, MAX_VALUE_BYTES), "Text."),
                "operand_base64": Member(Base64(MAX_VALUE_BYTES), "Any bytes."),
            },
            "CompareValue",
            "Of a record that is absent only `!=` holds.",
            one_of=(("operand", "operand_base64"),),
        )
    },
    "Compare",
)
TXN = Object(
    {
        "compare": Member(
            ListOf(COMPARE, MAX_TXN_PARTS), "All have to hold for `then` to be done.", default=()
        ),
        "then": Member(
            ListOf(TXN_OP, MAX_TXN_PARTS),
            "Applied if the compares hold, all of them or none; each operation sees the effects of those before it.",
            default=(),
        ),
        "otherwise": Member(ListOf(TXN_OP, MAX_TXN_PARTS), "Done if they do not.", default=()),
        "fence": Member(FENCE),
    },
    "Txn",
)
_POLICY = {
    "routing": Member(
        Text(3, 11, "parent|key|segments:([1-9]|1[0-6])", "parent, key, or segments:N with N from 1 to 16"),
        "What decides where a key lives: its `{tag}` or parent path, the whole key, or its first N segments. "
        "Fixed when the namespace is made; may be left out later.",
    ),
    "default_ttl_ms": Member(
        Integer(0, MAX_TTL_MS), "Of records written without a TTL; 0 = they live for ever.", default=0
    ),
    "max_records": Member(
        Integer(0, MAX_QUOTA), "0 = no bound. Kept within seconds, not to the record.", default=0
    ),
    "max_bytes": Member(Integer(0, MAX_QUOTA), "Of keys and values; 0 = no bound.", default=0),
    "require_condition": Member(Flag(), "Refuse writes without a condition (428).", default=False),
}
POLICY = Object(_POLICY, "Policy", "What is left out gets its default, but `routing` stays as it is.")

# --- what goes out ------------------------------------------------------------------------------

_VERSION = Member(VERSION, "Grows with every change in the partition; the ETag.", True)
ITEM = Object(
    {
        "key": _KEY,
        "version": _VERSION,
        "created": Member(VERSION, "The version that made the record."),
        "content_type": Member(_FREE),
        "ttl_ms": Member(_U63, "What it was made with; 0 = it lives for ever."),
        "value": Member(_FREE, "The value, when it is UTF-8 text without control characters."),
        "value_base64": Member(Base64(MAX_VALUE_BYTES), "The value, when it is not."),
    },
    "Item",
    "A record. With `keys_only`, key and version alone.",
)
#: of an answer's element, by its name
_TOLD = {
    "version": _VERSION,
    "created": Member(Flag(), "There was no record before.", True),
    "count": Member(I64, "The counter after the addition.", True),
    "ttl_ms": Member(_U63, "How long the record lives from now on; 0 = for ever.", True),
}


def _answer(name: str, component: str, text: str = "") -> Object:
    """The JSON form of a good answer to an operation."""
    told = {t.name: _TOLD[t.name] for t in BY_NAME[name].result if t.name in _TOLD}
    return Object({"key": _KEY, **told}, component, text)


WRITTEN = _answer("put", "Written")
DELETED = _answer("delete", "Deleted", "The version is that of the delete.")
ADDED = _answer("add", "Added")
TOUCHED = _answer("touch", "Touched", "The record's version stays.")
#: of the operations that a batch takes
ANSWERS = {"get": ITEM, "put": WRITTEN, "delete": DELETED, "add": ADDED, "touch": TOUCHED}
PROBLEM = Object(
    {
        "type": Member(_FREE, "A URN that ends in the code.", True),
        "title": Member(_FREE, "", True),
        "status": Member(Integer(300, 599), "The HTTP status.", True),
        "detail": Member(_FREE, "What went wrong, with the value, the bound, and what to do.", True),
        "code": Member(_FREE, "What programs look at; a code never changes its meaning.", True),
        "retryable": Member(Flag(), "Whether the same request may succeed later.", True),
        "outcome": Member(
            Choice(("none", "unknown")),
            "What a write did: `none`, it had no effect and will have none; `unknown`, it took effect at most once.",
            True,
        ),
        "version": Member(
            _U63,
            "412: the record's version, 0 when there is none. 409 `history_changed`: the version that was given.",
        ),
        "generation": Member(_U63, "409 `history_changed`: the generation that the partition is in now."),
        "current": Member(or_null(ITEM), "412: the record as it is; null when there is none."),
        "keys": Member(ListOf(_FREE, 2), "400 `cross_partition`: two keys that do not live together."),
        "token": Member(_U63, "409 `fenced`: the highest token seen under that name."),
        "retry_after_s": Member(Integer(1, 3600), "503: when to come again; the header says the same."),
    },
    "Problem",
    "RFC 9457.",
    open=True,
)
PAGE = Object(
    {
        "items": Member(ListOf(ITEM, 10_000), "", True),
        "cursor": Member(or_null(_FREE), "Give it back to get the next page; null at the end.", True),
        "resume": Member(
            or_null(_FREE),
            "Of a listing of one directory: give it to a watch as `after` to see all that changed since; null "
            "for a listing of the whole namespace (begin the watch first, then list).",
            True,
        ),
        "age_ms": Member(
            or_null(_U63),
            "How old the records may be: 0 for a linearizable listing, null if unknown.",
            True,
        ),
    },
    "Page",
)
_STATUS = {"status": Member(Integer(200, 599), "As if it had been a request of its own.", True)}


def _result(shape: Object, name: str) -> Object:
    return Object({**_STATUS, **shape.members}, name)


BATCH_RESULTS = Object(
    {
        "results": Member(
            ListOf(
                OneOf(
                    (
                        *(_result(shape, f"{name.capitalize()}Result") for name, shape in ANSWERS.items()),
                        PROBLEM,
                    ),
                    "BatchResult",
                ),
                MAX_OPS_PER_FRAME,
            ),
            "One for each operation, in order.",
            True,
        )
    },
    "BatchResults",
)
ABSENT = Object(
    {"key": _KEY, "version": Member(Integer(0, 0), "0: there is no such record.", True)}, "Absent"
)
TXN_RESULT = Object(
    {
        "succeeded": Member(Flag(), "All compares held, and `then` was done; else `otherwise` was.", True),
        "results": Member(
            ListOf(OneOf((ITEM, WRITTEN, DELETED, ADDED, ABSENT), "TxnOpResult"), MAX_TXN_PARTS),
            "One for each operation of that branch, in order.",
            True,
        ),
    },
    "TxnResult",
)
NAMESPACE = Object(
    {
        "name": Member(NAMESPACE_SHAPE, "", True),
        "policy": Member(
            Object({n: Member(m.shape, m.text, True) for n, m in _POLICY.items()}, "FullPolicy"), "", True
        ),
        "ready": Member(Flag(), "false while it is being made: nothing can be written yet.", True),
        "revision": Member(or_null(_U63), "The ETag; null when only the router's copy could be asked.", True),
    },
    "NamespaceRecord",
)
NAMESPACES = Object(
    {
        "namespaces": Member(ListOf(NAMESPACE, 1 << 20), "Those that have a policy of their own.", True),
        "from_copy": Member(Flag(), "etcd did not answer: this is what the router knew last.", True),
    },
    "Namespaces",
)
FREE_OBJECT = Object({}, open=True)
