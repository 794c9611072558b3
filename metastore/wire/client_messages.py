"""What clients and nodes say to each other (inside frames). Plain arrays, documented here once.

A connection opens with ``HELLO [cluster, client name]`` -> ``HELLO_OK [cluster, node, cell,
store_id]`` (requests may follow the HELLO without waiting), or ``ERROR [status, message,
detail]`` and a close. ``cluster`` may be "" when the client does not know it yet.

``REQUEST [client_id (16 bytes), timeout_ms, [op, ...]]``, at most MAX_OPS_PER_FRAME ops; an op is

    [id, GET,    partition, lkey, consistency, arg]
    [id, PUT,    partition, lkey, seq, floor, stamp, condition, value, content_type, ttl_ms]
    [id, DELETE, partition, lkey, seq, floor, stamp, condition]
    [id, ADD,    partition, lkey, seq, floor, stamp, condition, delta]
    [id, LIST,   partition, start, end, limit, flags, consistency, arg]

``id``: chosen by the client, unique among its outstanding ops on the connection.
``consistency``: LINEARIZABLE (arg None), STALE (arg = max staleness in ms, None = any age),
AT_LEAST (arg = a version). ``condition``: None, or ABSENT, or EXISTS, or the version it must have.
``start`` (inclusive) and ``end`` (exclusive) are lkeys; a node returns at most ``limit`` rows.

Request ids (R7): ``(client_id, seq)``, ``seq`` from 1, growing; 0 = no dedupe asked for.
``floor``: every seq of this client below it *towards this partition* is finished and never sent
again. ``stamp``: the highest ``index`` this client had seen from this partition when it first
sent the op (0 = none); a retry repeats seq and stamp unchanged.

``RESPONSE [result, ...]`` in any order; a result is

    [id, OK, record, age_ms]            GET   (record: see metastore.records)
    [id, NOT_FOUND, age_ms]             GET
    [id, OK, version, index, created]   PUT
    [id, OK, version, index]            DELETE (version of the delete; 0: there was nothing to delete)
    [id, OK, version, index, value]     ADD   (value: the new count)
    [id, OK, rows, more, age_ms]        LIST  (rows: [[lkey, record], ...], or [[lkey, version], ...]
                                               with KEYS_ONLY; more: rows beyond the last one exist)
    [id, status, message, detail]       any error (metastore.errors; detail is a map)

``TOPOLOGY_REQUEST [known_revision]`` -> ``TOPOLOGY [map]`` (metastore.topology's wire form), or
``TOPOLOGY [None]`` when the node knows nothing newer.
``STATUS_REQUEST []`` -> ``STATUS [map]``: the node's own view, for tools.
"""

from __future__ import annotations

from typing import Final

GET: Final = 1
PUT: Final = 2
DELETE: Final = 3
ADD: Final = 4
LIST: Final = 5

OK: Final = 0
NOT_FOUND: Final = 1

LINEARIZABLE: Final = 0
STALE: Final = 1
AT_LEAST: Final = 2

ABSENT: Final = 0
EXISTS: Final = -1

KEYS_ONLY: Final = 1

MAX_OPS_PER_FRAME: Final = 4096
MAX_LIST_LIMIT: Final = 10_000
MAX_TIMEOUT_MS: Final = 120_000
CLIENT_ID_BYTES: Final = 16
