"""The table of operations. A handler sees only what is declared here: parameters that are not are
refused, and ``/openapi.json`` and ``/docs`` are made from the same table.

Why the paths are what they are. A record is a resource, so reading and writing it are the methods of
its path. Adding and touching are neither idempotent replacements nor of the record's own form: they are
POSTs. A key may hold anything, ``/add`` at its end too, so what is done stands before the namespace and
not behind the key; and it stands in the path and not in a parameter, so that a proxy's rules, logs and
metrics can tell a counter from a read.
"""

from __future__ import annotations

from metastore.keys import MAX_VALUE_BYTES
from metastore.operations import MAX_TXN_PARTS
from metastore.wire.client_messages import MAX_OPS_PER_FRAME
from router.api import bodies as b
from router.api import parameters as p
from router.api.operation import Answer, Body, MiB, Operation
from router.api.service import SERVICE
from router.api.shapes import Flag, Object, Param

MAX_JSON_BYTES = 8 * MiB
MAX_RPC_BYTES = 8 * MiB

TAGS = {
    "Records": "One record at a time. The ETag is the record's version.",
    "Batches and transactions": "Many records in one request.",
    "Watching": "Changes as they happen.",
    "Namespaces": "Policies: routing, default TTL, quotas. Nobody has to make a namespace to use it.",
    "Service": "Health, figures, and where things are.",
}

_READ = (400, 404, 409, 412, 413, 500, 503, 504)
_WRITE = (400, 409, 412, 413, 422, 428, 500, 503, 504, 507)
_WRITE_KEY = (
    p.NAMESPACE,
    p.KEY,
    p.IF_MATCH,
    p.IF_NONE_MATCH,
    *p.FENCE_QUERY,
    p.IDEMPOTENCY_KEY,
    p.IDEMPOTENCY_AGE,
)
_ETAG = {"ETag": "The record's version in quotes."}
_RECORD_HEADERS = {
    **_ETAG,
    "Metastore-Created": "The version that made the record.",
    "Metastore-Ttl-Ms": "The TTL that it was written with; missing when it lives for ever.",
    "Metastore-Age-Ms": "How old what was read may be; `unknown` if the replica does not know. Missing for a "
    "linearizable read.",
}
_RENAMED = Object(b.DELETED.members, "Renamed", "The new key, and the version that its record is at.")
_CONSISTENCY = (p.CONSISTENCY, p.MAX_STALENESS_MS, p.AT_LEAST, p.TIMEOUT_MS)

RECORDS = (
    Operation(
        "getRecord",
        "GET",
        "/v1/kv/{namespace}/{key}",
        "Records",
        "Read a record",
        "The value as it was written, with its content type.",
        (p.NAMESPACE, p.KEY, *_CONSISTENCY, p.IF_MATCH, p.IF_NONE_MATCH_READ),
        answers=(
            Answer(200, "The value.", None, "*/*", _RECORD_HEADERS),
            Answer(304, "The caller has this version.", headers=_ETAG),
        ),
        problems=_READ,
        example="curl -i URL/v1/kv/app/greeting",
    ),
    Operation(
        "headRecord",
        "HEAD",
        "/v1/kv/{namespace}/{key}",
        "Records",
        "Look at a record",
        "As GET, without the value.",
        (p.NAMESPACE, p.KEY, *_CONSISTENCY, p.IF_MATCH, p.IF_NONE_MATCH_READ),
        answers=(
            Answer(200, "There is such a record.", None, "*/*", _RECORD_HEADERS),
            Answer(304, "The caller has this version.", headers=_ETAG),
        ),
        problems=_READ,
        example="curl -I URL/v1/kv/app/greeting",
    ),
    Operation(
        "putRecord",
        "PUT",
        "/v1/kv/{namespace}/{key}",
        "Records",
        "Write a record",
        "Replaces value, content type and TTL. A lock is a record taken with `If-None-Match: *`, a TTL and "
        "`raise_fence`: its version is the fencing token, touching with If-Match keeps it, deleting with If-Match gives it "
        "back.",
        (*_WRITE_KEY, p.RAISE_FENCE, *p.TTL_QUERY, p.TIMEOUT_MS),
        Body("raw", MAX_VALUE_BYTES, "The value: any bytes, at most 1 MiB. Its Content-Type is kept."),
        (
            Answer(200, "Replaced.", b.WRITTEN, headers=_ETAG),
            Answer(201, "There was no such record.", b.WRITTEN, headers=_ETAG),
        ),
        _WRITE,
        "curl -X PUT -H 'Content-Type: text/plain' --data-binary 'hello' URL/v1/kv/app/greeting",
    ),
    Operation(
        "deleteRecord",
        "DELETE",
        "/v1/kv/{namespace}/{key}",
        "Records",
        "Delete a record",
        "404 when there was none; nothing is changed then.",
        (
            p.NAMESPACE,
            p.KEY,
            p.IF_MATCH,
            *p.FENCE_QUERY,
            p.IDEMPOTENCY_KEY,
            p.IDEMPOTENCY_AGE,
            p.TIMEOUT_MS,
        ),
        answers=(Answer(200, "Deleted.", b.DELETED),),
        problems=(404, *_WRITE),
        example="curl -X DELETE URL/v1/kv/app/greeting",
    ),
    Operation(
        "addToRecord",
        "POST",
        "/v1/add/{namespace}/{key}",
        "Records",
        "Add to a counter",
        "From 0 when there is no such record; refused (409 `not_a_number`) when it is not a counter or the sum "
        "leaves 64 bits. Not idempotent: give an Idempotency-Key to be able to repeat it.",
        (
            *_WRITE_KEY,
            Param("delta", "query", p.I64, "How much, also negative.", default=1),
            p.TIMEOUT_MS,
        ),
        answers=(Answer(200, "Added.", b.ADDED, headers=_ETAG),),
        problems=_WRITE,
        example="curl -X POST 'URL/v1/add/app/visits?delta=1'",
    ),
    Operation(
        "renameRecord",
        "POST",
        "/v1/rename/{namespace}/{key}",
        "Records",
        "Give a record another key",
        "In one step: no reader sees both or none. The record keeps value, content type and `created`, its TTL begins anew. 404 "
        "when there is no record, 412 when it is not at If-Match, or there is one under the new key already; nothing is changed "
        "then. Both keys have to be in one directory or have one `{tag}`, else 400 `cross_partition`.",
        (
            p.NAMESPACE,
            p.KEY,
            Param("to", "query", p.KEY.shape, "The new key.", required=True),
            Param("replace", "query", Flag(), "Replace a record that is under the new key.", default=False),
            p.IF_MATCH,
            *p.FENCE_QUERY,
            p.IDEMPOTENCY_KEY,
            p.IDEMPOTENCY_AGE,
            p.TIMEOUT_MS,
        ),
        answers=(Answer(200, "Renamed.", _RENAMED, headers=_ETAG),),
        problems=(404, *_WRITE),
        example="curl -X POST 'URL/v1/rename/app/drafts%2F1?to=drafts/2'",
    ),
    Operation(
        "touchRecord",
        "POST",
        "/v1/touch/{namespace}/{key}",
        "Records",
        "Restart a record's TTL",
        "Its version and value stay. With If-Match only while it is still that version, as the holder of a lock wants.",
        (p.NAMESPACE, p.KEY, p.IF_MATCH, p.TIMEOUT_MS),
        answers=(Answer(200, "It lives on.", b.TOUCHED, headers=_ETAG),),
        problems=_READ,
        example="curl -X POST URL/v1/touch/app/lock",
    ),
)

BATCH_AND_TXN = (
    Operation(
        "listRecords",
        "GET",
        "/v1/kv/{namespace}",
        "Batches and transactions",
        "List records",
        "One page. Each page is read at once and is consistent in itself where it lies within one partition.",
        (
            p.NAMESPACE,
            p.PREFIX,
            p.LIMIT,
            p.CURSOR,
            p.KEYS_ONLY,
            p.LIST_CONSISTENCY,
            p.MAX_STALENESS_MS,
            p.TIMEOUT_MS,
        ),
        answers=(Answer(200, "A page.", b.PAGE),),
        problems=(400, 413, 500, 503, 504),
        example="curl 'URL/v1/kv/app?prefix=services/&limit=100'",
    ),
    Operation(
        "batch",
        "POST",
        "/v1/batch/{namespace}",
        "Batches and transactions",
        "Many operations, a result each",
        "No atomicity: each operation succeeds or fails by itself, with the status that it would have had as a "
        "request of its own, and the batch as a whole does not fail.",
        (p.NAMESPACE, p.TIMEOUT_MS),
        Body("json", MAX_JSON_BYTES, f"At most {MAX_OPS_PER_FRAME} operations in 8 MiB.", b.BATCH),
        (Answer(200, "A result for each.", b.BATCH_RESULTS),),
        (400, 413, 415, 500, 503, 504),
        """curl --json '{"ops":[{"op":"put","key":"a/x","value":"1"},{"op":"get","key":"a/y"}]}' URL/v1/batch/app""",
    ),
    Operation(
        "txn",
        "POST",
        "/v1/txn/{namespace}",
        "Batches and transactions",
        "A transaction",
        "Does all of `then` if all of `compare` hold, else all of `otherwise`, at once and atomically, within one "
        "partition. Keys of one directory, or with one `{tag}`, live together; for others the answer is 400 "
        f"`cross_partition` and names two. At most {MAX_TXN_PARTS} compares, and operations in a branch.",
        (p.NAMESPACE, p.IDEMPOTENCY_KEY, p.IDEMPOTENCY_AGE, p.TIMEOUT_MS),
        Body("json", MAX_JSON_BYTES, "The transaction; 2 MiB of keys and values at most.", b.TXN),
        (Answer(200, "One of the branches was done.", b.TXN_RESULT),),
        (415, *_WRITE),
        """curl --json '{"compare":[{"key":"a/x","what":"version","relation":">","operand":0}],"""
        """"then":[{"op":"put","key":"a/y","value":"2"}]}' URL/v1/txn/app""",
    ),
)

WATCHING = (
    Operation(
        "watch",
        "GET",
        "/v1/watch/{namespace}",
        "Watching",
        "Follow changes",
        "Server-sent events, as a browser's EventSource reads them. First comes `started`, once no later change can "
        "be missed; then a message for every change, each once and in order for each key: "
        '`{"kind": "put"|"delete"|"expire", "key", "version", …}`. The `id` of an event is a resume token: an '
        "EventSource that reconnects, to any router, goes on behind the last one. What is too old is told as 410 "
        "`compacted`: list again and watch from there. An `error` event, a problem document, ends a stream that had "
        "begun.",
        (
            p.NAMESPACE,
            p.PREFIX,
            p.AFTER,
            p.LAST_EVENT_ID,
            p.KEYS_ONLY,
            p.ANY_REPLICA,
            p.HEARTBEAT_S,
            p.TIMEOUT_MS,
        ),
        answers=(Answer(200, "The stream; it ends when the router stops.", None, "text/event-stream"),),
        problems=(400, 409, 410, 413, 500, 503, 504),
        example="curl -N 'URL/v1/watch/app?prefix=services/'",
    ),
)

NAMESPACES = (
    Operation(
        "listNamespaces",
        "GET",
        "/v1/namespaces",
        "Namespaces",
        "List policies",
        "Namespaces that have a policy of their own; all others have the default one.",
        (p.TIMEOUT_MS,),
        answers=(Answer(200, "All of them.", b.NAMESPACES),),
        problems=(400, 500, 503, 504),
        example="curl URL/v1/namespaces",
    ),
    Operation(
        "getNamespace",
        "GET",
        "/v1/namespaces/{name}",
        "Namespaces",
        "Read a policy",
        "404 for a namespace without one: it has the default.",
        (p.NAME, p.TIMEOUT_MS),
        answers=(Answer(200, "The policy.", b.NAMESPACE, headers={"ETag": "The policy's revision."}),),
        problems=(400, 404, 500, 503, 504),
        example="curl URL/v1/namespaces/app",
    ),
    Operation(
        "putNamespace",
        "PUT",
        "/v1/namespaces/{name}",
        "Namespaces",
        "Make a namespace, or change its policy",
        "All but `routing` may change at any time and takes effect within a second. A routing rule other than "
        "`parent` can only be given to an empty namespace while it is made, which waits for every node.",
        (p.NAME, p.IF_MATCH, p.IF_NONE_MATCH, p.TIMEOUT_MS),
        Body("json", 65_536, "The policy; what is left out gets its default.", b.POLICY),
        (
            Answer(200, "Changed.", b.NAMESPACE, headers={"ETag": "The policy's revision."}),
            Answer(201, "Made.", b.NAMESPACE, headers={"ETag": "The policy's revision."}),
        ),
        (400, 409, 412, 413, 415, 500, 503, 504, 507),
        """curl -X PUT --json '{"default_ttl_ms":60000,"max_records":1000000}' URL/v1/namespaces/sessions""",
    ),
    Operation(
        "deleteNamespace",
        "DELETE",
        "/v1/namespaces/{name}",
        "Namespaces",
        "Remove a policy",
        "The namespace has the default policy from then on. Records stay: one that routes otherwise than by parent "
        "has to be empty (409), for its records would not be found any more.",
        (p.NAME, p.IF_MATCH, p.TIMEOUT_MS),
        answers=(Answer(204, "Removed."),),
        problems=(400, 404, 409, 412, 500, 503, 504),
        example="curl -X DELETE URL/v1/namespaces/sessions",
    ),
)

RPC = (
    Operation(
        "rpc",
        "POST",
        "/v1/rpc",
        "Service",
        "Operations in the binary form",
        "For client libraries that cannot reach the nodes: the body of a REQUEST frame, "
        "`[client_id, timeout_ms, [op, …]]` in msgpack, answered by `[result, …]` with the same ids in any order. "
        "The router routes each operation and retries it with the caller's own request id.",
        (),
        Body("msgpack", MAX_RPC_BYTES, f"At most {MAX_OPS_PER_FRAME} operations in 8 MiB."),
        (Answer(200, "A result for each.", None, "application/x-msgpack"),),
        (400, 413, 415, 500, 503, 504),
    ),
)

OPERATIONS: tuple[Operation, ...] = (*RECORDS, *BATCH_AND_TXN, *WATCHING, *NAMESPACES, *RPC, *SERVICE)
