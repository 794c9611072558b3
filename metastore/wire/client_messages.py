"""What clients and nodes say to each other (inside frames). Plain arrays, documented here once.

A connection opens with ``HELLO [cluster, client name, spoken]`` -> ``HELLO_OK [cluster, node, cell,
store_id, incarnation, spoken]``, where each side tells the versions that it speaks (``versions``; a client that tells none
is told none) (requests may follow the HELLO without waiting), or ``ERROR [status, message,
detail]`` and a close. ``cluster`` may be "" when the client does not know it yet.

``REQUEST [client_id (16 bytes), timeout_ms, [op, ...]]``, at most MAX_OPS_PER_FRAME ops; an op, as
``metastore.operations`` describes it for programs, is

    [id, GET,    partition, storage_key, consistency, arg]
    [id, PUT,    partition, storage_key, seq, lowest_open, last_seen, condition, value, content_type, ttl_ms]
    [id, DELETE, partition, storage_key, seq, lowest_open, last_seen, condition]
    [id, ADD,    partition, storage_key, seq, lowest_open, last_seen, condition, delta]
    [id, TXN,    partition, storage_key, seq, lowest_open, last_seen, [compare, ...], [part, ...], [part, ...]]
    [id, RENAME, partition, storage_key, seq, lowest_open, last_seen, condition, to, to_condition]
    [id, TOUCH,  partition, storage_key, condition]
    [id, LIST,   partition, start, end, limit, flags, consistency, arg, wanted]

A LIST may end before ``wanted``, else only records count whose namespace and key begin with it. PUT, DELETE, ADD, RENAME and TXN take one more element, ``[fence name, token]``: the write is refused once a
higher token of that name was seen in the partition. A PUT with the token RAISE takes a lock (R20): if it is carried out,
the fence is raised to the record's new version by the same entry. ``ttl_ms``: None = the namespace's default, 0 = none.
A TXN does its first list of parts if all compares hold, else its second; all its keys are of one
partition, that of ``storage_key``. A compare is ``[storage_key, target, relation, operand]``: VERSION or CREATED
(0 = absent) with a number, VALUE with bytes. A part is ``[GET, storage_key]``, ``[PUT, storage_key, value, content_type,
ttl_ms]``, ``[DELETE, storage_key]`` or ``[ADD, storage_key, delta]``. TOUCH starts a record's TTL anew.
RENAME deletes the record at ``storage_key`` and puts it at ``to``, a key of the same namespace and partition, if there is one that
meets ``condition``; ``to_condition``: None, or ABSENT: there is none at ``to``. It came with version 2 of the protocol.

``id``: chosen by the client, unique among its outstanding ops on the connection.
``consistency``: LINEARIZABLE (arg None), STALE (arg = max staleness in ms, None = any age),
AT_LEAST (arg = a version). ``condition``: None, or ABSENT, or EXISTS, or the version it must have.
``start`` (inclusive) and ``end`` (exclusive) are storage_keys; a node returns at most ``limit`` rows.

Request ids (R7): ``(client_id, seq)``, ``seq`` from 1, growing, below ONE_REQUEST; 0 = no dedupe asked for.
``lowest_open``: every seq of this client below it *towards this partition* is finished and never sent
again; a lowest_open above the op's own seq (ONE_REQUEST or above) says that the client makes this one request and
no other, and any other is refused. ``last_seen``: the highest ``index`` this client had seen from this partition when it first
sent the op (0 = none); a retry repeats seq and last_seen unchanged.

``RESPONSE [result, ...]`` in any order; a result is

    [id, OK, record, age_ms]            GET   (record: see metastore.records)
    [id, NOT_FOUND, age_ms]             GET
    [id, OK, version, index, created]   PUT
    [id, OK, version, index]            DELETE (version of the delete; 0: there was nothing to delete)
    [id, OK, version, index, value]     ADD   (value: the new count)
    [id, OK, succeeded, index, parts]   TXN   (a part: [OK, record] or [NOT_FOUND] of a GET, [OK, version,
                                               created], [OK, version], [OK, version, value])
    [id, OK, True, index, parts]        RENAME (parts: [OK, version] of the delete, [OK, version, created] of the put)
    [id, OK, version, 0, ttl_ms]        TOUCH
    [id, NOT_FOUND, 0]                  TOUCH
    [id, OK, rows, next, age_ms, version]  LIST (rows: [[storage_key, record], ...], or [[storage_key, version], ...]
                                               with KEYS_ONLY; next: the start from which to go on, None
                                               at the end; version: the partition's when it was read)
    [id, status, message, detail]       any error (metastore.errors; detail is a map). A failed condition
                                        has ``record``, the present one, unless it is large or a retry.

Watching. ``WATCH [watch_id, partition, start, end, after, flags, wanted]``: every change of keys ``start <=
storage_key < end`` (whose namespace and key begin with ``wanted``) with a version above ``after`` (None = from now on), in order, once. Answered by ``EVENTS [watch_id,
version, [event, ...]]``: all changes up to ``version`` have now been sent; an event is ``[kind (PUT,
DELETE or EXPIRE), storage_key, version, record (None but for PUT)]``. The first EVENTS comes at once. A watch
ends with ``WATCH_END [watch_id, status, message, detail]`` or the connection; ``UNWATCH [watch_id]``
ends it. Flags: WATCH_ANY = from any replica, not only the leader; WATCH_KEYS = without records.

``TOPOLOGY_REQUEST [known_revision]`` -> ``TOPOLOGY [map]`` (metastore.topology's wire form): all of it, or, with a
member ``since``, what a table of the known revision lacks (0 = there is none); a node may always tell all.
``STATUS_REQUEST []`` -> ``STATUS [map]``: the node's own view, for tools.
"""

from __future__ import annotations

from typing import Final

WATCH_ANY: Final = 1
WATCH_KEYS: Final = 2

MAX_OPS_PER_FRAME: Final = 4096
MAX_TIMEOUT_MS: Final = 120_000
CLIENT_ID_BYTES: Final = 16
MAX_WATCHES_PER_CONNECTION: Final = 8192
