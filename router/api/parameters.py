"""The parameters that operations share."""

from __future__ import annotations

from metastore.elements import MAX_FENCE_NAME_BYTES, MAX_TTL_MS
from metastore.keys import MAX_KEY_BYTES
from metastore.operations import MAX_LIST_LIMIT
from metastore.wire.client_messages import MAX_TIMEOUT_MS
from router.api.shapes import Choice, Flag, Integer, Number, Param, Text

MAX_VERSION = (1 << 62) - 1
MAX_CURSOR_CHARS = 4096
MAX_TOKEN_CHARS = 12_288
I64 = Integer(-(1 << 63), (1 << 63) - 1)
VERSION = Integer(1, MAX_VERSION)
TTL_MS = Integer(0, MAX_TTL_MS)
TTL_S = Number(0, MAX_TTL_MS / 1000)

KEY_SHAPE = Text(
    1,
    MAX_KEY_BYTES,
    what=f"a key of 1 to {MAX_KEY_BYTES} bytes of UTF-8",
    name="Key",
    text=f"UTF-8 of at most {MAX_KEY_BYTES} bytes; `/` separates segments. Keys with one parent path, or "
    "with one `{tag}`, live together: they list in order and can share a transaction.",
    example="services/web/1",
)
NAMESPACE_SHAPE = Text(
    1,
    64,
    "[a-z0-9][a-z0-9._-]{0,63}",
    "a namespace: 1 to 64 of a-z 0-9 . _ - that begin with a letter or digit",
    name="Namespace",
    text="A named set of keys with one policy. Nobody has to make it: one without a record has the default policy.",
    example="app",
)
_ETAG = '(W/)?"?[1-9][0-9]{0,17}"?'

NAMESPACE = Param("namespace", "path", NAMESPACE_SHAPE, "The namespace.", True)
NAME = Param("name", "path", NAMESPACE_SHAPE, "The namespace.", True)
KEY = Param(
    "key",
    "path",
    KEY_SHAPE,
    "The key: the rest of the path, percent-decoded once and not normalised. A `/` may be sent as it is or "
    "as `%2F`; `a//b` and `a/../b` are keys of their own.",
    True,
)
IF_MATCH = Param(
    "If-Match",
    "header",
    Text(1, 32, rf"(\*|{_ETAG})", 'one version such as "12", or *'),
    "Only if the record is at this version (its ETag); `*`: only if there is one. Else 412, with the present record.",
)
IF_NONE_MATCH = Param(
    "If-None-Match",
    "header",
    Text(1, 8, r"\*", "*: on a write, If-None-Match accepts nothing else"),
    "`*`: only if there is no such record. Else 412, with the present record.",
)
IF_NONE_MATCH_READ = Param(
    "If-None-Match",
    "header",
    Text(1, 4096, rf"(\*|{_ETAG}( ?, ?{_ETAG})*)", 'versions such as "12", "13", or *'),
    "Versions (ETags) that the caller has: 304 without a body if the record is at one of them.",
)
TIMEOUT_MS = Param(
    "timeout_ms",
    "query",
    Integer(1, MAX_TIMEOUT_MS),
    "How long the answer may take; the router's own limit (`deadline_s`) holds beside it.",
)
TTL_QUERY = (
    Param(
        "ttl_ms",
        "query",
        TTL_MS,
        "Time to live in milliseconds, from this write or the last touch; 0 = it lives for ever. Without it, "
        "the namespace's default.",
    ),
    Param("ttl_s", "query", TTL_S, "The same in seconds. Give one of the two."),
)
_FENCE = Text(
    3,
    MAX_FENCE_NAME_BYTES + 20,
    rf"[^:\x00-\x1f\x7f]{{1,{MAX_FENCE_NAME_BYTES}}}:[1-9][0-9]{{0,17}}",
    "name:token, such as leader:17",
    name="Fence",
    text="A fencing token: `name:token`, where the token is the version of the record that is the lock.",
    example="locks/leader:17",
)
FENCE_QUERY = (
    Param(
        "fence",
        "query",
        _FENCE,
        "Refuse the write (409 `fenced`) if a higher token of this name was seen in the key's partition.",
    ),
    Param("Metastore-Fence", "header", _FENCE, "The same as `fence`, as a header. Give one of the two."),
)
FENCE_NAME = Text(
    1,
    MAX_FENCE_NAME_BYTES,
    rf"[^:\x00-\x1f\x7f]{{1,{MAX_FENCE_NAME_BYTES}}}",
    "a fence's name, such as leader, without a colon",
)
RAISE_FENCE = Param(
    "raise_fence",
    "query",
    FENCE_NAME,
    "This record is a lock, and its fence has this name: if the write is done, the fence is raised to the record's new "
    "version in the same step, so that an earlier holder's `fence` is refused in this partition from then on. Not together "
    "with `fence`.",
)
IDEMPOTENCY_KEY = Param(
    "Idempotency-Key",
    "header",
    Text(1, 256, r"[\x21-\x7e]+", "1 to 256 visible ASCII characters without spaces"),
    "A retry with the same key gets the first outcome and is not executed again. One key belongs to one "
    "request on one record (of a transaction: on one namespace): another request under it is refused with "
    "422. Kept for at least ten minutes (of a partition that gets more than 40,000 keys in that time: those), "
    "and for at least the last 10,000 keys and clients of each partition; then, for 50,000 keys more, a "
    "repetition is refused with 409 `request_id_expired`.",
)
AGE_S = Number(0, 10**9)
IDEMPOTENCY_AGE = Param(
    "Idempotency-Age",
    "header",
    AGE_S,
    "How many seconds ago this request was first sent, by the client's own clock; 0 = this is the first time. With "
    "it, a repetition of what is remembered no longer is always refused with 409 `request_id_expired` (from 30 "
    "seconds before the end of the ten minutes on, as of the end of `timeout_ms`), and a first attempt that did "
    "nothing is told `outcome: none`.",
)
CONSISTENCY = Param(
    "consistency",
    "query",
    Choice(("linearizable", "stale", "at_least")),
    "`linearizable`: what is read is the latest. `stale`: from any replica, the answer has its age. "
    "`at_least`: from any replica that has the version `at_least` (read your own writes).",
)
LIST_CONSISTENCY = Param(
    "consistency", "query", Choice(("linearizable", "stale")), "As for one record; a listing has no at_least."
)
MAX_STALENESS_MS = Param(
    "max_staleness_ms",
    "query",
    Integer(0, 10**12),
    "A stale read from a copy of at most this age; implies `consistency=stale`.",
)
AT_LEAST = Param(
    "at_least",
    "query",
    Integer(0, MAX_VERSION),
    "A version of this key, or of one in its folder, that must be seen; implies `consistency=at_least`.",
)
PREFIX = Param(
    "prefix",
    "query",
    Text(0, MAX_KEY_BYTES, what=f"a prefix of at most {MAX_KEY_BYTES} bytes"),
    "Only keys that begin with it. A prefix with a `/` (or a whole `{tag}`) means the entries of that one "
    "directory, in order and not deeper ones; any other the whole namespace, in hash order.",
    default="",
)
LIMIT = Param(
    "limit",
    "query",
    Integer(1, MAX_LIST_LIMIT),
    "At most so many; a page ends early at about 2 MiB.",
    default=1000,
)
CURSOR = Param(
    "cursor",
    "query",
    Text(0, MAX_CURSOR_CHARS, "[A-Za-z0-9_-]*", "a cursor of an earlier page"),
    "`cursor` of the page before.",
    default="",
)
KEYS_ONLY = Param("keys_only", "query", Flag(), "Without values.", default=False)
AFTER = Param(
    "after",
    "query",
    Text(1, MAX_TOKEN_CHARS, "[A-Za-z0-9_-]+", "a resume token"),
    "A resume token: an `id` of an earlier stream of the same prefix, or `resume` of a listing. Without it, "
    "from now on.",
)
LAST_EVENT_ID = Param(
    "Last-Event-ID",
    "header",
    Text(0, MAX_TOKEN_CHARS, "[A-Za-z0-9_-]*", "a resume token"),
    "What an EventSource sends when it reconnects; it goes before `after`.",
)
ANY_REPLICA = Param(
    "any_replica",
    "query",
    Flag(),
    "Followers may send changes too: a little later, without load on the leader.",
    default=False,
)
HEARTBEAT_S = Param(
    "heartbeat_s",
    "query",
    Integer(1, 300),
    "A comment, and the position, after so long without a change.",
    default=15,
)
