"""The OpenAPI 3.1 document of the table of operations. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from typing import Any

from router.api.bodies import PROBLEM
from router.api.operation import Answer, Operation
from router.api.operations import TAGS
from router.api.shapes import Schema, Shape

INFO = """\
A sharded, replicated metadata store. Records are opaque bytes under keys in namespaces; every change
gives a record a higher `version`, which is its ETag. Reads are linearizable unless asked for otherwise.

Every error is a problem document (RFC 9457) with a `code` for programs, `retryable`, and `outcome`:
`none` (a write had no effect and will have none) or `unknown` (it took effect at most once; send the same
request with the same Idempotency-Key to learn which). 503 always has Retry-After.
"""
PROBLEM_TEXTS = {
    400: "The request breaks a rule; the detail names value, bound and fix.",
    404: "There is no such record.",
    405: "The path does not accept this method; see Allow.",
    409: "Refused because of the present state: `request_id_expired`, `fenced`, `not_a_number`, `routing_fixed`, `namespace_not_empty`, …",
    410: "`compacted`: changes that old are not kept any more. List again, and watch from there.",
    412: "A condition failed; `version` and `current` are those of the present record.",
    413: "A key, value, body or number of elements is over its limit.",
    415: "The body is of another type than this takes.",
    422: "`idempotency_mismatch`: the Idempotency-Key was used for another request.",
    428: "`condition_required`: the namespace accepts only conditional writes.",
    500: "A bug or a failed disk.",
    503: "Nobody can serve this now, or a bound is met; Retry-After says when to come again.",
    504: "The deadline passed before anything was done.",
    507: "`quota_exceeded`: the namespace is at its bound of records or bytes. `disk_low`: the disks are nearly full; "
    "reads and deletes are served, and Retry-After says when to retry.",
}


def version() -> str:
    try:
        return metadata.version("metastore")
    except metadata.PackageNotFoundError:
        return "0"


def components(operations: Iterable[Operation]) -> dict[str, Schema]:
    """Every shape that has a name, by it."""
    found: dict[str, Shape] = {}

    def visit(shape: Shape | None) -> None:
        if shape is None or (shape.name and shape.name in found):
            assert shape is None or found[shape.name] is shape or found[shape.name] == shape, shape.name
            return
        if shape.name:
            found[shape.name] = shape
        for part in shape.parts():
            visit(part)

    visit(PROBLEM)
    for op in operations:
        for param in op.params:
            visit(param.shape)
        visit(op.body.shape if op.body else None)
        for answer in op.answers:
            visit(answer.shape)
    return {name: found[name].schema() for name in sorted(found)}


def _answer(answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = {"description": answer.text}
    if answer.headers:
        found["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in answer.headers.items()
        }
    if answer.shape is not None:
        found["content"] = {answer.media: {"schema": answer.shape.reference()}}
    elif answer.status == 200:
        found["content"] = {answer.media: {}}
    return found


def _problem(status: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "description": PROBLEM_TEXTS[status],
        "content": {"application/problem+json": {"schema": PROBLEM.reference()}},
    }
    if status == 503:
        seconds = {"type": "integer", "minimum": 1}
        found["headers"] = {"Retry-After": {"description": "Seconds.", "required": True, "schema": seconds}}
    return found


def _operation(op: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": op.id,
        "tags": [op.tag],
        "summary": op.summary,
        "description": op.text,
        "parameters": [param.document() for param in op.params],
        "responses": {str(answer.status): _answer(answer) for answer in op.answers},
    }
    for status in sorted({*op.problems, 405}):
        found["responses"].setdefault(str(status), _problem(status))
    if op.method == "HEAD":
        for answer in found["responses"].values():
            answer.pop("content", None)
    if op.body is not None:
        schema = op.body.shape.reference() if op.body.shape else {}
        found["requestBody"] = {
            "description": op.body.text,
            "required": op.body.kind != "raw",
            "content": {op.body.media: {"schema": schema} if schema else {}},
        }
    if op.example:
        source = op.example.replace("URL", "http://127.0.0.1:8080")
        found["x-codeSamples"] = [{"lang": "Shell", "label": "curl", "source": source}]
    return found


def document(operations: Iterable[Operation]) -> dict[str, Any]:
    """The whole document, as plain data."""
    operations = list(operations)
    paths: dict[str, dict[str, Any]] = {}
    for op in operations:
        paths.setdefault(op.path, {})[op.method.lower()] = _operation(op)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "metastore",
            "version": version(),
            "description": INFO,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {"schemas": components(operations)},
    }
