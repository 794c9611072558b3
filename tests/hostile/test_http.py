"""HTTP of the router and of the nodes: whatever comes, a clear answer, and bounds."""

from __future__ import annotations

import gzip
import json
import select
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metastore.node.http import MAX_CONNECTIONS
from tests.hostile.attack import Answer, dial, drain, exchange, head, http, http_answers, send
from tests.hostile.conftest import HANG_S, ROUTER_CONNECTIONS, ROUTER_MEMORY_MIB
from tests.integration.harness import Cluster

KV = "/v1/kv/hostile/k"


def put(body: bytes, *headers: str, path: str = KV) -> bytes:
    return head("PUT", path, f"Content-Length: {len(body)}", *headers) + body


def batch(body: bytes, path: str = "/v1/batch/hostile") -> bytes:
    kind = "Content-Type: application/json"
    return head("POST", path, kind, f"Content-Length: {len(body)}", "Connection: close") + body


def check_problem(answer: Answer, name: str) -> None:
    """RFC 9457, with a code, whatever the error."""
    assert answer.headers["content-type"] == "application/problem+json", (name, answer)
    body = json.loads(answer.body)
    assert body["status"] == answer.status, (name, body)
    assert body["code"], (name, body)
    assert body["outcome"] in ("none", "unknown"), (name, body)
    assert 0 < len(body["detail"]) < 600, (name, body)
    if answer.status == 503:
        assert int(answer.headers["retry-after"]) >= 1, name


#: name -> what is sent to a router or a node, and what it may answer; nothing = it just closes
BROKEN: dict[str, tuple[bytes, set[int]]] = {
    "no http": (b"\x00\x01\x02\x03\r\n\r\n", {400}),
    "tls": (bytes.fromhex("16030100c8010000c40303") + bytes(64) + b"\r\n\r\n", {400}),
    "empty lines": (b"\r\n\r\n\r\n", set()),
    "http/0.9": (b"GET /livez\r\n\r\n", set()),
    "http/1.0": (b"GET /livez HTTP/1.0\r\n\r\n", {200}),
    "http/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 404, 405}),
    "http/9.9": (head("GET", "/livez", version="HTTP/9.9"), {400, 505}),
    "version of text": (head("GET", "/livez", version="HTTP/x.y"), {400}),
    "no target": (b"GET  HTTP/1.1\r\nHost: h\r\n\r\n", {400}),
    "a method of its own": (head("FROBNICATE", "/livez"), {400, 405}),
    "a method of 10,000": (head("A" * 10_000, "/livez"), {400}),
    "a method in lower case": (head("get", "/livez"), {400, 405}),
    "trace": (head("TRACE", "/livez"), {405}),
    "connect": (head("CONNECT", "h:80"), {400, 404, 405}),
    "options": (head("OPTIONS", "*"), {400, 404, 405}),
    "patch": (head("PATCH", "/livez"), {405}),
    "a path of 100 KB": (head("GET", "/" + "a" * 100_000), {400, 414}),
    "a header of 100 KB": (head("GET", "/livez", "X: " + "a" * 100_000), {400, 431}),
    "a header's name of 100 KB": (head("GET", "/livez", "a" * 100_000 + ": x"), {400, 431}),
    "20,000 headers": (head("GET", "/livez", *[f"X{i}: y" for i in range(20_000)]), {400, 431}),
    "a header without colon": (head("GET", "/livez", "nonsense"), {400}),
    "a header with nul": (head("GET", "/livez", "X: a\0b"), {400}),
    "a header with control characters": (head("GET", "/livez", "X: a\x01\x02b"), {200, 400}),
    "a header that is no utf-8": (head("GET", "/livez", "X: \xff\xfe"), {200, 400}),
    "a folded header": (head("GET", "/livez", "X: a", " b"), {200, 400}),
    "two lengths": (head("GET", "/livez", "Content-Length: 1", "Content-Length: 2"), {400}),
    "a length below 0": (head("GET", "/livez", "Content-Length: -1"), {400}),
    "a length of text": (head("GET", "/livez", "Content-Length: ten"), {400}),
    "a length of 2**70": (head("GET", "/livez", f"Content-Length: {1 << 70}"), {400}),
    "length and chunks": (
        head("GET", "/livez", "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        {400},
    ),
    "an unknown transfer encoding": (head("GET", "/livez", "Transfer-Encoding: rot13"), {400, 501}),
    "a strange expectation": (head("GET", "/livez", "Expect: 200-maybe"), {200, 417}),
    "no such path": (head("GET", "/v9/nothing"), {404}),
    "a path with nul": (head("GET", "/li\0vez"), {400}),
    "a path with spaces": (head("GET", "/li vez"), {400}),
    "a path that is no utf-8": (head("GET", "/%ff%fe"), {404}),
    "a path of bad percents": (head("GET", "/%zz%"), {404}),
    "up and away": (head("GET", "/../../../etc/passwd"), {404}),
    "a whole url": (head("GET", "http://elsewhere/livez"), {200}),
    "a url without end": (head("GET", "http://"), {400, 404}),
    "garbage after a request": (head("GET", "/livez") + b"\xff" * 200 + b"\r\n\r\n", {200, 400}),
    "half a head": (b"GET /livez HTTP/1.1\r\nHost", set()),
}


@pytest.mark.parametrize("who", ["router", "node"])
def test_what_is_no_http_gets_a_problem_document(attacked: Cluster, who: str) -> None:
    address = attacked.router if who == "router" else str(attacked.node("c1n1")["http"])
    for name, (data, wanted) in BROKEN.items():
        answers = http(address, data)
        assert {a.status for a in answers} <= wanted, (name, answers)
        assert answers or not wanted, name
        for answer in answers:
            if answer.status >= 400:
                check_problem(answer, name)


#: name -> request to the gateway, status, code; each is answered, and the connection serves on or ends
REFUSED: dict[str, tuple[bytes, int, str]] = {
    "a namespace that is none": (put(b"x", path="/v1/kv/UPPER/k"), 400, "invalid_request"),
    "a namespace with nul": (put(b"x", path="/v1/kv/a%00b/k"), 400, "invalid_request"),
    "no key": (put(b"x", path="/v1/kv/hostile/"), 400, "invalid_request"),
    "a key that is no utf-8": (put(b"x", path="/v1/kv/hostile/%ff%fe"), 400, "invalid_request"),
    "a key of surrogates": (put(b"x", path="/v1/kv/hostile/%ed%a0%80"), 400, "invalid_request"),
    "a key of 3 KB": (put(b"x", path="/v1/kv/hostile/" + "k" * 3000), 413, "too_large"),
    "another spelling of the path": (put(b"x", path="/v1/%6bv/hostile/k"), 404, "no_such_path"),
    "an unknown parameter": (put(b"x", path=KV + "?colour=red"), 400, "invalid_request"),
    "a parameter twice": (put(b"x", path=KV + "?timeout_ms=1&timeout_ms=2"), 400, "invalid_request"),
    "a parameter of 2**70": (put(b"x", path=KV + f"?timeout_ms={1 << 70}"), 400, "invalid_request"),
    "a parameter of other digits": (put(b"x", path=KV + "?timeout_ms=%d9%a1"), 400, "invalid_request"),
    "a parameter that is no utf-8": (put(b"x", path=KV + "?%ff=%fe"), 400, "invalid_request"),
    "2,000 parameters": (
        put(b"x", path=KV + "?" + "&".join(f"a{i}=1" for i in range(2000))),
        400,
        "invalid_request",
    ),
    "both conditions": (put(b"x", 'If-Match: "1"', "If-None-Match: *"), 400, "invalid_request"),
    "a condition of text": (put(b"x", "If-Match: abc"), 400, "invalid_request"),
    "a condition of 2**70": (put(b"x", f'If-Match: "{1 << 70}"'), 400, "invalid_request"),
    "a content type of 1 KB": (put(b"x", "Content-Type: " + "a" * 1000), 400, "invalid_request"),
    "a content type beyond ascii": (put(b"x", "Content-Type: \xe4"), 400, "invalid_request"),
    "a long idempotency key": (put(b"x", "Idempotency-Key: " + "a" * 300), 413, "too_large"),
    "a length over the limit": (head("PUT", KV, "Content-Length: 99999999"), 413, "too_large"),
    "a body over the limit": (put(bytes((1 << 20) + 1)), 413, "too_large"),
    "a body over the limit in chunks": (
        head("PUT", KV, "Transfer-Encoding: chunked") + (b"10000\r\n" + bytes(65536) + b"\r\n") * 17 + b"0\r\n\r\n",
        413,
        "too_large",
    ),
    "a bomb": (
        put(gzip.compress(bytes(200 << 20)), "Content-Encoding: gzip"),
        413,
        "too_large",
    ),
    "a broken bomb": (put(b"\x1f\x8b" + bytes(50), "Content-Encoding: gzip"), 400, "malformed_http"),
    "chunks of text": (
        head("PUT", KV, "Transfer-Encoding: chunked") + b"zz\r\nabc\r\n0\r\n\r\n",
        400,
        "",
    ),
    "a chunk of 2**70": (
        head("PUT", KV, "Transfer-Encoding: chunked") + b"ffffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        400,
        "",
    ),
    "a chunk that is longer than it says": (
        head("PUT", KV, "Transfer-Encoding: chunked") + b"1\r\nabc\r\n0\r\n\r\n",
        400,
        "",
    ),
    "a list of 2**40": (head("GET", f"/v1/kv/hostile?limit={1 << 40}"), 400, "invalid_request"),
    "a cursor of nonsense": (head("GET", "/v1/kv/hostile?cursor=%21%21"), 400, "invalid_request"),
    "a cursor of another's": (head("GET", "/v1/kv/hostile?cursor=AAAA"), 400, "invalid_request"),
    "a consistency of its own": (head("GET", KV + "?consistency=eventual"), 400, "invalid_request"),
    "a batch that is no json": (batch(b"{"), 400, "invalid_request"),
    "a batch of nothing": (batch(b""), 400, "invalid_request"),
    "a batch that is a list": (batch(b"[]"), 400, "invalid_request"),
    "a batch of text": (batch(b'{"ops": "abc"}'), 400, "invalid_request"),
    "a batch 100,000 deep": (batch(b'{"ops": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), 400, "invalid_request"),
    "a batch of objects 100,000 deep": (batch(b'{"ops":' * 100_000 + b"1" + b"}" * 100_000), 400, "invalid_request"),
    "a batch of nan": (batch(b'{"ops": [NaN]}'), 400, "invalid_request"),
    "a batch of a lone surrogate": (
        batch(b'{"ops": [{"op": "put", "key": "\\ud800", "value": "v"}]}'),
        400,
        "invalid_request",
    ),
    "a batch that is no utf-8": (batch(b'{"ops": ["\xff\xfe"]}'), 400, "invalid_request"),
    "a batch with nul": (batch(b'{"ops": [\0]}'), 400, "invalid_request"),
    "a batch of 5,000": (batch(b'{"ops": [' + b",".join([b"{}"] * 5000) + b"]}"), 413, "too_large"),
    "a batch of two million": (batch(b'{"ops": [' + b",".join([b"[]"] * 2_000_000) + b"]}"), 413, "too_large"),
    "a batch to no namespace": (batch(b'{"ops": []}', "/v1/batch/"), 400, "invalid_request"),
}  # fmt: skip


@pytest.mark.growth_mib(300)  # parsing JSON may cost 25 times its 8 MiB, one batch at a time
def test_what_the_gateway_refuses(attacked: Cluster) -> None:
    for name, (data, status, code) in REFUSED.items():
        answers = http(attacked.router, data)
        assert answers, name
        assert answers[0].status == status, (name, answers)
        check_problem(answers[0], name)
        assert not code or answers[0].code == code, (name, answers)


#: operations of one batch, and the status of each
BATCH: list[tuple[Any, int]] = [
    (7, 400),
    ({}, 400),
    ({"op": "fly", "key": "k"}, 400),
    ({"op": ["get"], "key": "k"}, 400),
    ({"op": "get", "key": 7}, 400),
    ({"op": "get", "key": ""}, 400),
    ({"op": "get", "key": "k" * 3000}, 413),
    ({"op": "get", "key": "k", "colour": "red"}, 400),
    ({"op": "put", "key": "k", "value": 7}, 400),
    ({"op": "put", "key": "k", "value": {"a": [[]]}}, 400),
    ({"op": "put", "key": "k", "value": "v", "value_base64": "dg=="}, 400),
    ({"op": "put", "key": "k", "value_base64": "%%%"}, 400),
    ({"op": "put", "key": "k", "value_base64": ["dg=="]}, 400),
    ({"op": "put", "key": "k", "value": "v", "content_type": "a\r\nX-Evil: 1"}, 400),
    ({"op": "put", "key": "k", "value": "v", "content_type": ["text/plain"]}, 400),
    ({"op": "put", "key": "k", "value": "v", "if_version": 1 << 70}, 400),
    ({"op": "put", "key": "k", "value": "v", "if_version": -1}, 400),
    ({"op": "put", "key": "k", "value": "v", "if_version": 1.5}, 400),
    ({"op": "put", "key": "k", "value": "v", "if_version": True}, 400),
    ({"op": "put", "key": "k", "value": "v", "if_absent": "yes"}, 400),
    ({"op": "put", "key": "k", "value": "v", "if_version": 1, "if_absent": True}, 400),
    ({"op": "put", "key": "k", "value": "v" * ((1 << 20) + 1)}, 413),
    ({"op": "put", "key": "ok", "value": "v"}, 201),
]


def test_a_batch_answers_each_of_its_operations(attacked: Cluster) -> None:
    body = json.dumps({"ops": [op for op, _ in BATCH]}).encode()
    (answer,) = http(attacked.router, batch(body))
    assert answer.status == 200
    results = json.loads(answer.body)["results"]
    assert [r["status"] for r in results] == [status for _, status in BATCH]
    assert all(r["code"] for r in results if r["status"] >= 400)


def test_a_name_given_twice_has_its_last_value(attacked: Cluster) -> None:
    raw = b'{"ops": [7], "ops": [{"op": "put", "key": "x", "key": "twice", "value": "1", "value": "2"}]}'
    (answer,) = http(attacked.router, batch(raw))
    assert [r["key"] for r in json.loads(answer.body)["results"]] == ["twice"]
    (answer,) = http(attacked.router, head("GET", "/v1/kv/hostile/twice", "Connection: close"))
    assert answer.body == b"2"


def test_a_whole_url_names_the_same_record(attacked: Cluster) -> None:
    """RFC 9112: a target may be absolute. It named another record once, of another namespace."""
    for target in (KV, "http://elsewhere:99" + KV):
        (answer,) = http(attacked.router, put(b"x", "Connection: close", path=target))
        assert json.loads(answer.body)["key"] == "k"


def test_expectations_are_met(attacked: Cluster) -> None:
    with dial(attacked.router) as s:
        s.sendall(head("PUT", KV, "Content-Length: 5", "Expect: 100-continue", "Connection: close"))
        assert s.recv(100).startswith(b"HTTP/1.1 100 ")
        s.sendall(b"hello")
        (answer,) = http_answers(drain(s) or b"")
        assert answer.status in (200, 201)


def test_pipelined_requests_before_garbage(attacked: Cluster) -> None:
    """Each is answered in its turn, or the first answer says that what came is no HTTP: then
    nothing of it was done. What follows the garbage never is."""
    key = "/v1/kv/hostile/pipelined"
    data = put(b"x", path=key) + head("GET", key) + b"\xff\xff garbage \r\n\r\n" + put(b"y", path=key)
    answers = http(attacked.router, data)
    assert answers[-1].status == 400, answers
    check_problem(answers[-1], "pipelined")
    assert {a.status for a in answers[:-1]} <= {200, 201}
    (answer,) = http(attacked.router, head("GET", key, "Connection: close"))
    assert (answer.status, answer.body) == (200, b"x") if len(answers) > 1 else answer.status == 404


def test_a_body_that_ends_early_is_not_written(attacked: Cluster) -> None:
    key = "/v1/kv/hostile/early"
    for headers, body in (
        (["Content-Length: 100"], b"short"),
        (["Transfer-Encoding: chunked"], b"5\r\nshort\r\n"),
        (["Transfer-Encoding: chunked"], b"5\r\nsh"),
    ):
        exchange(attacked.router, head("PUT", key, *headers) + body)
    (answer,) = http(attacked.router, head("GET", key, "Connection: close"))
    assert answer.status == 404


@pytest.mark.parametrize("who", ["router", "node"])
def test_thousands_who_say_nothing(attacked: Cluster, who: str) -> None:
    """More than there may be: the newest are served all the same, the longest idle go."""
    address = attacked.router if who == "router" else str(attacked.node("c1n2")["http"])
    count = (ROUTER_CONNECTIONS if who == "router" else MAX_CONNECTIONS) + 300
    silent = [dial(address) for _ in range(count)]
    try:
        (answer,) = http(address, head("GET", "/livez", "Connection: close"))
        assert answer.status == 200
    finally:
        for s in silent:
            s.close()


# --- memory ---------------------------------------------------------------------------------------


def test_bodies_have_a_budget(attacked: Cluster) -> None:
    """Eighty bodies of which the last byte does not come: beyond the budget 503, at once. The rest waits for its
    last byte, and is taken then."""
    waiting = [dial(attacked.router) for _ in range(80)]
    data = head("PUT", KV, "Connection: close", f"Content-Length: {1 << 20}") + bytes((1 << 20) - 1)
    refused: list[Answer] = []
    try:
        for s in waiting:
            send(s, data)
        until = time.monotonic() + HANG_S
        while len(waiting) > ROUTER_MEMORY_MIB:
            assert time.monotonic() < until, f"{len(waiting)} bodies of one MiB are kept"
            for s in select.select(waiting, [], [], 1)[0]:
                waiting.remove(s)
                refused += http_answers(drain(s, HANG_S) or b"")
                s.close()
        assert {a.status for a in refused} == {503}
        for answer in refused:
            check_problem(answer, "budget")
        assert waiting, "there is room for none"
        statuses = Counter[int]()
        for s in waiting:
            send(s, b"\0")
            statuses.update(a.status for a in http_answers(drain(s, HANG_S) or b""))
        assert set(statuses) <= {200, 201, 503}, statuses
        assert statuses[200] + statuses[201], statuses
    finally:
        for s in waiting:
            s.close()


def test_a_batch_of_large_answers_has_a_bound(attacked: Cluster, big: str) -> None:
    """A hundred KiB of questions asked for four GiB once."""
    ops = [{"op": "get", "key": "r0"}] * 4096
    (answer,) = http(
        attacked.router, batch(json.dumps({"ops": ops}).encode(), "/v1/batch/big"), patience_s=HANG_S
    )
    statuses = {r["status"] for r in json.loads(answer.body)["results"]}
    assert {200, 413} <= statuses <= {200, 413, 503, 504}, statuses
    assert len(answer.body) < 40 << 20


def test_a_page_of_large_records_has_a_bound(attacked: Cluster, big: str) -> None:
    found: list[str] = []
    cursor = ""
    for _ in range(20):
        path = f"/v1/kv/big?limit=10000&cursor={cursor}"
        (answer,) = http(attacked.router, head("GET", path, "Connection: close"))
        assert answer.status == 200, answer
        assert len(answer.body) < 12 << 20
        page = json.loads(answer.body)
        found += [item["key"] for item in page["items"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert sorted(found) == sorted(f"r{i}" for i in range(20))


def test_digests_are_made_one_at_a_time(attacked: Cluster) -> None:
    """A digest reads a whole partition: two hundred at once are refused or share one."""
    address = str(attacked.node("c1n1")["http"])
    sockets = [dial(address) for _ in range(200)]
    for number, s in enumerate(sockets):
        send(s, head("GET", f"/v1/partitions/{number % 4}/digest", "Connection: close"))
    statuses = set()
    for s in sockets:
        (answer,) = http_answers(drain(s, HANG_S) or b"")
        statuses.add(answer.status)
        if answer.status >= 400:
            check_problem(answer, "digest")
        s.close()
    assert statuses <= {200, 503}
    (answer,) = http(address, head("GET", "/v1/partitions/77/digest", "Connection: close"))
    assert (answer.status, answer.code) == (404, "not_found")


# --- chance ---------------------------------------------------------------------------------------

QUICK = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
TOKENS = st.sampled_from(
    ["GET", "PUT", "/", KV, " ", "\r\n", "\n", ":", "HTTP/1.1", "Host: h", "Content-Length: 3", "abc", "\0",
     "Transfer-Encoding: chunked", "\r\n\r\n", "%", "?", "x" * 50, "\xff", "Connection: close", "0\r\n\r\n", "{", "]"]
)  # fmt: skip


def check_answers(data: bytes) -> None:
    for answer in http_answers(data):
        assert answer.status != 500
        if answer.status >= 400:
            check_problem(answer, "chance")


@QUICK
@given(st.binary(max_size=300), st.booleans())
def test_random_bytes(attacked: Cluster, data: bytes, to_node: bool) -> None:
    address = str(attacked.node("c1n3")["http"]) if to_node else attacked.router
    check_answers(exchange(address, data))


@QUICK
@given(st.lists(TOKENS, max_size=14), st.booleans())
def test_words_of_http_in_any_order(attacked: Cluster, words: list[str], to_node: bool) -> None:
    address = str(attacked.node("c1n3")["http"]) if to_node else attacked.router
    check_answers(exchange(address, "".join(words).encode("latin-1")))


@QUICK
@given(st.data())
def test_requests_with_flipped_bits(attacked: Cluster, data: st.DataObject) -> None:
    raw = bytearray(put(b"hello", 'If-Match: "1"', "Content-Type: text/plain", path=KV + "?timeout_ms=500"))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    check_answers(exchange(attacked.router, bytes(raw)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["op", "key", "value", "value_base64", "if_version", "if_absent", "content_type", "ops", "z"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@QUICK
@given(JSON)
def test_batches_of_any_json(attacked: Cluster, value: Any) -> None:
    check_answers(exchange(attacked.router, batch(json.dumps({"ops": value}).encode())))
