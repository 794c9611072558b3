"""The table of operations, and what is made of it: routes, document, page."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from metastore.errors import InvalidRequest, MetastoreError
from router.api.openapi import PROBLEM_TEXTS, document
from router.api.operations import OPERATIONS, TAGS
from router.api.page import CONTENT_SECURITY_POLICY, page
from router.calls import Routes, decode_segment, parse_query
from router.errors import MethodNotAllowed, NoSuchPath
from router.problems import TITLES

ROUTES = Routes(OPERATIONS)


@pytest.mark.parametrize(
    ("method", "path", "operation", "parts"),
    [
        ("GET", "/v1/kv/app", "listRecords", ["app"]),
        ("GET", "/v1/kv/app/", "getRecord", ["app", ""]),
        ("HEAD", "/v1/kv/app/a//b/../c/", "headRecord", ["app", "a//b/../c/"]),
        ("PUT", "/v1/kv/app/a%2Fb%25", "putRecord", ["app", "a/b%"]),
        ("POST", "/v1/add/app/a/b", "addToRecord", ["app", "a/b"]),
        ("POST", "/v1/batch/app?x=1", "batch", ["app"]),
        ("GET", "/v1/namespaces", "listNamespaces", []),
        ("DELETE", "/v1/namespaces/x", "deleteNamespace", ["x"]),
        ("GET", "http://proxy.example:80/livez?a=b", "livez", []),
    ],
)
def test_routes(method: str, path: str, operation: str, parts: list[str]) -> None:
    op, found, query = ROUTES.find(method, path)
    assert (op.id, found) == (operation, parts)
    assert query == path.partition("?")[2]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "/v1",
        "/v1/kv",
        "/v1/kvx/a",
        "/v1/add/app",
        "/v1/batch/a/b",
        "/v1/namespaces/a/b",
        "/livez/",
        "http://x",
        "*",
    ],
)
def test_no_such_path(path: str) -> None:
    with pytest.raises(NoSuchPath):
        ROUTES.find("GET", path)


def test_methods_that_a_path_does_not_take() -> None:
    with pytest.raises(MethodNotAllowed) as failed:
        ROUTES.find("PATCH", "/v1/kv/app/k")
    assert failed.value.detail["allow"] == ["DELETE", "GET", "HEAD", "PUT"]
    with pytest.raises(MethodNotAllowed):
        ROUTES.find("GET", "/v1/add/app/k")


def test_what_is_not_utf8() -> None:
    for raw in ("%FF", "\udcff", "%C3"):
        with pytest.raises(InvalidRequest):
            decode_segment(raw)
    for raw in ("a=%FF", "a=1&a=2", "&".join(f"k{n}=1" for n in range(33))):
        with pytest.raises(InvalidRequest):
            parse_query(raw)
    assert parse_query("a=&b=x+y%2Bz&c") == {"a": "", "b": "x y+z", "c": ""}


def test_the_table_is_whole() -> None:
    ids = [op.id for op in OPERATIONS]
    assert len(set(ids)) == len(ids)
    for op in OPERATIONS:
        in_path = re.findall(r"{(\w+)}", op.path)
        assert [p.name for p in op.params if p.place == "path"] == in_path, op.id
        assert len({p.key for p in op.params}) == len(op.params), op.id
        assert op.tag in TAGS
        assert op.summary
        assert op.text.endswith((".", "`"))
        assert len({a.status for a in op.answers}) == len(op.answers)
        assert not {a.status for a in op.answers} & set(op.problems)
        assert {400, 500} <= set(op.problems)
        assert set(op.problems) <= set(PROBLEM_TEXTS)
        if op.admitted:
            assert 503 in op.problems, "whatever is bounded can be refused"
        if op.body is not None and op.body.kind != "raw":
            assert {413, 415} <= set(op.problems)
        assert op.example.startswith("curl ") or op.id == "rpc"


def test_every_error_of_the_store_has_a_title_and_a_text() -> None:
    todo: list[type[MetastoreError]] = [MetastoreError]
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        assert cls.http_status in TITLES, cls
    assert set(PROBLEM_TEXTS) <= {*TITLES}


def test_the_document_is_whole() -> None:
    doc = json.loads(json.dumps(document(OPERATIONS)))
    assert doc["openapi"] == "3.1.0"
    refs: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                refs.add(value["$ref"])
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(doc)
    names = {r.removeprefix("#/components/schemas/") for r in refs}
    assert names <= set(doc["components"]["schemas"])
    operations = [op for methods in doc["paths"].values() for op in methods.values()]
    assert len(operations) == len(OPERATIONS)
    for op in operations:
        assert "405" in op["responses"]
        for status, answer in op["responses"].items():
            if status == "503":
                assert "Retry-After" in answer["headers"]


def test_the_page_is_whole_and_stands_alone() -> None:
    text = page(OPERATIONS)
    for op in OPERATIONS:
        assert f'id="{op.id}"' in text
    anchors = set(re.findall(r'href="#([^"]+)"', text))
    ids = set(re.findall(r'id="([^"]+)"', text))
    assert anchors <= ids
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', text)
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert re.findall(r" on[a-z]+=", text) == [], "no handlers in attributes: the policy forbids them"
