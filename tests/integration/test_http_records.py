"""Records over HTTP: conditions, TTL, counters, fences, locks, consistency, request ids."""

from __future__ import annotations

import asyncio
import base64
import gzip
from collections.abc import AsyncIterator

import pytest

from metastore.errors import InvalidRequest
from metastore.keys import storage_key_of
from tests.integration.harness import Cluster, until
from tests.integration.http_api import Api, api_of, router_beside

TEXT = {"Content-Type": "text/plain"}


@pytest.fixture
async def api(shared_cell: Cluster) -> AsyncIterator[Api]:
    async with api_of(shared_cell.router) as found:
        yield found


async def test_a_failed_condition_tells_what_is_there(api: Api) -> None:
    """412 has the present version and value, small or large; also on a retry and on GET."""
    put = await api("PUT", "/v1/kv/cond/k", b"first", headers=TEXT)
    for headers in ({"If-None-Match": "*"}, {"If-Match": '"999999"'}):
        failed = await api("PUT", "/v1/kv/cond/k", b"no", headers=headers)
        assert failed.status == 412
        current = failed.body["current"]
        assert (current["value"], current["content_type"]) == ("first", "text/plain")
        assert current["version"] == failed.body["version"] == failed.version == put.version
    large = bytes(range(256)) * 2048
    await api("PUT", "/v1/kv/cond/large", large)
    failed = await api("PUT", "/v1/kv/cond/large", b"no", headers={"If-None-Match": "*"})
    assert base64.b64decode(failed.body["current"]["value_base64"]) == large
    absent = await api("PUT", "/v1/kv/cond/none", b"x", headers={"If-Match": "*"})
    assert (absent.status, absent.body["version"], absent.body["current"]) == (412, 0, None)
    retried = {"If-None-Match": "*", "Idempotency-Key": "again"}
    for _ in range(2):  # what dedupe remembers is without the record: it is read
        failed = await api("PUT", "/v1/kv/cond/k", b"no", headers=retried)
        assert (failed.status, failed.body["current"]["value"]) == (412, "first")
    read = await api("GET", "/v1/kv/cond/k", headers={"If-Match": '"1234567"'})
    assert (read.status, read.body["current"]["value"]) == (412, "first")
    results = await api(
        "POST", "/v1/batch/cond", json={"ops": [{"op": "put", "key": "k", "value": "no", "if_absent": True}]}
    )
    assert results.body["results"][0]["current"]["value"] == "first"


async def test_conditional_reads(api: Api) -> None:
    put = await api("PUT", "/v1/kv/reads/k", b"v", headers=TEXT)
    tag = put.headers["ETag"]
    for wanted, status in [
        (tag, 304),
        (f"W/{tag}", 304),
        (f'"7777", {tag}', 304),
        ("*", 304),
        ('"7777"', 200),
    ]:
        for method in ("GET", "HEAD"):
            reply = await api(method, "/v1/kv/reads/k", headers={"If-None-Match": wanted})
            assert reply.status == status, (method, wanted)
            assert reply.headers["ETag"] == tag
            assert reply.raw == (b"v" if status == 200 and method == "GET" else b"")
    head = await api("HEAD", "/v1/kv/reads/none")
    assert (head.status, head.raw) == (404, b"")


async def test_ttl(api: Api) -> None:
    """Shown in headers and JSON, from the write or the last touch, and then the record is gone."""
    for path in ("/v1/kv/ttl/long?ttl_ms=600000", "/v1/kv/ttl/long?ttl_s=600"):
        put = await api("PUT", path, b"v")
        got = await api("GET", "/v1/kv/ttl/long")
        assert got.headers["Metastore-Ttl-Ms"] == "600000"
        items = (await api("GET", "/v1/kv/ttl?prefix=long")).body["items"]
        assert items[0]["ttl_ms"] == 600000
        touched = await api("POST", "/v1/touch/ttl/long", headers={"If-Match": put.headers["ETag"]})
        assert touched.body == {"key": "long", "version": put.version, "ttl_ms": 600000}
    await api("PUT", "/v1/kv/ttl/ever", b"v")
    assert "Metastore-Ttl-Ms" not in (await api("GET", "/v1/kv/ttl/ever")).headers
    assert (await api("POST", "/v1/touch/ttl/ever")).body["ttl_ms"] == 0
    assert (await api("POST", "/v1/touch/ttl/none")).status == 404
    assert (await api("POST", "/v1/touch/ttl/none", headers={"If-Match": '"3"'})).status == 412
    assert (await api("POST", "/v1/touch/ttl/long", headers={"If-Match": '"3"'})).status == 412
    assert (await api("PUT", "/v1/kv/ttl/k?ttl_ms=5&ttl_s=1", b"v")).status == 400
    await api("PUT", "/v1/kv/ttl/short?ttl_ms=200", b"v")

    async def gone() -> bool:
        return (await api("GET", "/v1/kv/ttl/short")).status == 404

    await until("the record is over", gone)


async def test_counters(api: Api) -> None:
    first = await api("POST", "/v1/add/count/visits")
    assert (first.status, first.body["count"]) == (200, 1)
    assert (await api("POST", "/v1/add/count/visits?delta=41")).body["count"] == 42
    down = await api("POST", "/v1/add/count/visits?delta=-50")
    assert (down.body["count"], down.version) == (-8, down.body["version"])
    assert (await api("GET", "/v1/kv/count/visits")).raw == b"-8"
    refused = await api("POST", "/v1/add/count/visits", headers={"If-Match": first.headers["ETag"]})
    assert (refused.status, refused.body["current"]["value"]) == (412, "-8")
    once = await api("POST", "/v1/add/count/once", headers={"If-None-Match": "*"})
    assert (once.status, once.body["count"]) == (200, 1)
    await api("PUT", "/v1/kv/count/text", b"seven")
    for path in ("/v1/add/count/text", f"/v1/add/count/visits?delta={-(1 << 63)}"):
        refused = await api("POST", path)
        assert (refused.status, refused.body["code"]) == (409, "not_a_number")
    assert (await api("POST", f"/v1/add/count/visits?delta={1 << 63}")).status == 400


async def test_a_lock_with_fencing(api: Api) -> None:
    """A lock is a record with a TTL taken by absence; its version fences who has lost it, from the moment on in
    which another takes it (R20)."""
    lock, data = "/v1/kv/locks/%7Bjob%7D/lock", "/v1/kv/locks/%7Bjob%7D/state"
    take = {"If-None-Match": "*"}
    first = await api("PUT", lock + "?ttl_s=30&raise_fence=job", b"worker-1", headers=take)
    assert first.status == 201
    busy = await api("PUT", lock + "?ttl_s=30", b"worker-2", headers=take)
    assert (busy.status, busy.body["current"]["value"]) == (412, "worker-1")
    assert (await api("PUT", f"{data}?fence=job:{first.version}", b"1")).status == 201
    touch = lock.replace("/kv/", "/touch/")
    assert (await api("POST", touch, headers={"If-Match": first.headers["ETag"]})).status == 200
    assert (await api("DELETE", lock, headers={"If-Match": first.headers["ETag"]})).status == 200
    op = {"op": "put", "key": "{job}/lock", "value": "worker-2", "if_absent": True, "ttl_s": 30}
    ops = [op | {"raise_fence": "job"}]
    second = (await api("POST", "/v1/batch/locks", json={"ops": ops})).body["results"][0]["version"]
    assert second > first.version
    late = f"fence=job:{first.version}"
    for method, path in (
        ("PUT", f"{data}?{late}"),
        ("DELETE", f"{data}?{late}"),
        ("POST", "/v1/add/locks/%7Bjob%7D/n?" + late),
    ):
        refused = await api(method, path, b"late" if method == "PUT" else None)
        assert (refused.status, refused.body["code"]) == (409, "fenced"), path
        assert refused.body["token"] == second
    token = {"name": "job", "token": first.version}
    ops = [{"op": "put", "key": "{job}/state", "value": "late", "fence": token}]
    results = (await api("POST", "/v1/batch/locks", json={"ops": ops})).body["results"]
    assert results[0]["code"] == "fenced"
    then = [{"op": "put", "key": "{job}/state", "value": "late"}]
    refused = await api("POST", "/v1/txn/locks", json={"then": then, "fence": token})
    assert refused.body["code"] == "fenced"
    assert (await api("GET", data)).raw == b"1"
    fence = {"Metastore-Fence": f"job:{second}"}
    assert (await api("PUT", data, b"2", headers=fence)).status == 200
    assert (await api("PUT", f"{data}?fence=job:1", b"x", headers=fence)).status == 400
    assert (await api("PUT", f"{data}?raise_fence=job", b"x", headers=fence)).status == 400
    assert (await api("PUT", f"{data}?raise_fence=job:1", b"x")).status == 400


async def test_consistency(shared_cell: Cluster, api: Api) -> None:
    """Stale and at-least reads tell their age; what does not go together is refused."""
    put = await api("PUT", "/v1/kv/stale/k", b"v")
    assert "Metastore-Age-Ms" not in (await api("GET", "/v1/kv/stale/k")).headers
    for query in (f"at_least={put.version}", f"consistency=at_least&at_least={put.version}"):
        got = await api("GET", f"/v1/kv/stale/k?{query}")
        assert (got.status, got.raw) == (200, b"v"), "a replica that lacks the version is not asked to answer"
        assert got.headers["Metastore-Age-Ms"].isdigit()

    async def stale() -> bool:
        got = await api("GET", "/v1/kv/stale/k?max_staleness_ms=60000")
        return got.status == 200 and got.headers["Metastore-Age-Ms"].isdigit()

    await until("a replica that is young enough has it", stale)
    page = (await api("GET", "/v1/kv/stale?prefix=k&consistency=stale")).body
    assert type(page["age_ms"]) is int
    assert (await api("GET", "/v1/kv/stale?prefix=k")).body["age_ms"] == 0
    for query in (
        "consistency=at_least",
        "consistency=linearizable&max_staleness_ms=5",
        "consistency=stale&at_least=5",
        "max_staleness_ms=5&at_least=5",
    ):
        assert (await api("GET", f"/v1/kv/stale/k?{query}")).status == 400, query
    reply = await api("GET", "/v1/kv/stale/k?consistency=linearizable&at_least=99999999&timeout_ms=300")
    assert reply.status == 400
    too_new = await api("GET", "/v1/kv/stale/k?at_least=99999999&timeout_ms=300")
    assert too_new.status in (503, 504)
    ops = [
        {"op": "get", "key": "k", "at_least": put.version},
        {"op": "get", "key": "k", "consistency": "stale"},
    ]
    results = (await api("POST", "/v1/batch/stale", json={"ops": ops})).body["results"]
    assert results[0]["value"] == "v"


async def test_values_come_back_as_they_were(api: Api) -> None:
    everything = bytes(range(256))
    for kind in ("application/x-thing; v=2", "text/html", ""):
        skip = {"skip_auto_headers": ["Content-Type"]} if not kind else {"headers": {"Content-Type": kind}}
        await api("PUT", "/v1/kv/values/k", everything, **skip)
        got = await api("GET", "/v1/kv/values/k")
        assert (got.raw, got.headers["Content-Type"]) == (everything, kind or "application/octet-stream")
        assert got.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in got.headers["Content-Security-Policy"]
    packed = {"Content-Encoding": "gzip"}
    await api("PUT", "/v1/kv/values/z", gzip.compress(b"plain" * 99), headers=packed)
    assert (await api("GET", "/v1/kv/values/z")).raw == b"plain" * 99
    assert (await api("PUT", "/v1/kv/values/z", b"not gzip", headers=packed)).status == 400
    bomb = gzip.compress(bytes(64 << 20))
    assert (await api("PUT", "/v1/kv/values/z", bomb, headers=packed)).status == 413
    assert (await api("PUT", "/v1/kv/values/empty", b"")).status == 201
    got = await api("GET", "/v1/kv/values/empty")
    assert (got.raw, got.headers["Content-Length"]) == (b"", "0")


async def test_a_type_that_no_header_can_hold_is_refused(shared_cell: Cluster, api: Api) -> None:
    async with shared_cell.client() as client:
        with pytest.raises(InvalidRequest, match="content type"):
            await client.namespace("values").put("odd", b"v", content_type="a\r\nSet-Cookie: x=1")
    assert (await api("GET", "/v1/kv/values/odd")).status == 404


async def test_expect_continue(shared_cell: Cluster) -> None:
    """Whoever asks first is told to go on, or is refused before it has sent anything."""
    host, _, port = shared_cell.router.removeprefix("http://").rpartition(":")
    for length, expect, status in (
        (5, "100-continue", b"201"),
        (9 << 20, "100-continue", b"413"),
        (5, "a-pony", b"417"),
    ):
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"PUT /v1/kv/values/e{length}{expect[0]} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n"
        writer.write(f"{head}Expect: {expect}\r\nConnection: close\r\n\r\n".encode())
        line = await reader.readline()
        if status == b"201":
            assert line.split()[1] == b"100"
            await reader.readline()
            writer.write(b"hello")
            line = await reader.readline()
        assert line.split()[1] == status
        writer.close()


async def test_one_idempotency_key_is_one_request(api: Api) -> None:
    """The same request gets the first outcome; another one under the key is refused, also while the
    first is under way; on another record it is a key of its own."""
    key = {"Idempotency-Key": "order-17"}
    first = await api("POST", "/v1/add/idem/n?delta=5", headers=key)
    for _ in range(3):
        again = await api("POST", "/v1/add/idem/n?delta=5", headers=key)
        assert (again.status, again.body) == (200, first.body)
    for method, path, data in (
        ("POST", "/v1/add/idem/n?delta=6", None),
        ("PUT", "/v1/kv/idem/n", b"5"),
        ("DELETE", "/v1/kv/idem/n", None),
        ("POST", "/v1/add/idem/n?delta=5&fence=f:1", None),
    ):
        refused = await api(method, path, data, headers=key)
        assert (refused.status, refused.body["code"]) == (422, "idempotency_mismatch"), path
    assert (await api("GET", "/v1/kv/idem/n")).raw == b"5"
    assert (await api("POST", "/v1/add/idem/other?delta=5", headers=key)).body["count"] == 5
    for number in range(5):  # all at once: one of the bodies wins, and no other is ever carried out
        together = {"Idempotency-Key": f"race-{number}"}
        replies = await asyncio.gather(
            *(api("PUT", f"/v1/kv/idem/race{number}", b"%d" % (i % 4), headers=together) for i in range(16))
        )
        done = {r.body["version"] for r in replies if r.status == 201}
        assert {r.status for r in replies} == {201, 422}
        assert len(done) == 1
        assert (await api("GET", f"/v1/kv/idem/race{number}")).version in done
    for bad in ("", "with space", "x y"):
        reply = await api("PUT", "/v1/kv/idem/k", b"v", headers={"Idempotency-Key": bad})
        assert reply.status == 400, bad


async def test_a_key_holds_across_routers(shared_cell: Cluster, api: Api) -> None:
    """It is the partition that remembers, not the router."""
    key = {"Idempotency-Key": "across"}
    first = await api("POST", "/v1/add/idem/across?delta=1", headers=key)
    async with router_beside(shared_cell) as (_, other):
        again = await other("POST", "/v1/add/idem/across?delta=1", headers=key)
        assert again.body == first.body
        assert (await other("POST", "/v1/add/idem/across?delta=2", headers=key)).status == 422


async def test_how_old_a_request_is_can_be_told(api: Api) -> None:
    """What is remembered is answered, however old it is said to be; a first attempt that was turned away did
    nothing, and of a repetition nobody knows what those before it did."""
    key = {"Idempotency-Key": "told"}
    first = await api("POST", "/v1/add/idem/told?delta=5", headers=key | {"Idempotency-Age": "0"})
    again = await api("POST", "/v1/add/idem/told?delta=5", headers=key | {"Idempotency-Age": "86400"})
    assert (again.status, again.body) == (200, first.body)
    late = "/v1/add/idem/told?delta=1&timeout_ms=1"
    outcomes = {}
    for age in ("0", "1", None):
        headers = {"Idempotency-Key": f"late-{age}"} | ({} if age is None else {"Idempotency-Age": age})
        replies = [await api("POST", late, headers=headers) for _ in range(30)]
        outcomes[age] = {r.body["outcome"] for r in replies if r.status == 504 or r.status == 503}
    assert outcomes["1"] <= {"unknown"}
    assert outcomes[None] <= {"unknown"}
    for bad in ("-1", "soon", ""):
        reply = await api("PUT", "/v1/kv/idem/k", b"v", headers=key | {"Idempotency-Age": bad})
        assert reply.status == 400, bad


async def test_batches(api: Api) -> None:
    """A result each, whatever became of the others."""
    odd = base64.b64encode(b"\xff\xfe").decode()
    ops = [
        {"op": "put", "key": "a", "value": "1", "content_type": "text/plain", "ttl_s": 600},
        {"op": "put", "key": "b", "value_base64": odd},
        {"op": "add", "key": "n", "delta": 3, "idempotency_key": "x1"},
        {"op": "put", "key": "c", "value": "1", "value_base64": odd},
        {"op": "put", "key": "k" * 3000, "value": "1"},
        {"op": "put", "key": "d", "value": "1", "colour": "red"},
        {"op": "delete", "key": "nothing"},
        "not an object",
        {"op": "put", "key": "a2", "value": "x" * ((1 << 20) + 1)},
    ]
    results = (await api("POST", "/v1/batch/batches", json={"ops": ops})).body["results"]
    assert [r["status"] for r in results] == [201, 201, 200, 400, 413, 400, 404, 400, 413]
    ops = [
        {"op": "get", "key": "a"},
        {"op": "get", "key": "b"},
        {"op": "touch", "key": "a", "if_version": results[0]["version"]},
        {"op": "add", "key": "n", "delta": 3, "idempotency_key": "x1"},
        {"op": "add", "key": "n", "delta": 4, "idempotency_key": "x1"},
        {"op": "put", "key": "a", "value": "2", "if_version": results[0]["version"] + 1_000_000},
        {"op": "put", "key": "b", "value": "2", "if_exists": True},
        {"op": "delete", "key": "c", "if_exists": True},
    ]
    found = (await api("POST", "/v1/batch/batches", json={"ops": ops})).body["results"]
    assert [r["status"] for r in found] == [200, 200, 200, 200, 422, 412, 200, 412]
    assert (found[0]["value"], found[0]["ttl_ms"], found[0]["content_type"]) == ("1", 600000, "text/plain")
    assert found[1]["value_base64"] == odd
    assert (found[3]["count"], found[3]["version"]) == (3, results[2]["version"])
    assert (await api("POST", "/v1/batch/batches", json={"ops": []})).body == {"results": []}


async def test_a_batch_does_not_answer_more_than_it_may(api: Api) -> None:
    """Twenty reads of a megabyte: as many as fit are answered, the others told to come alone."""
    await api("PUT", "/v1/kv/big/k", bytes(1 << 20))
    ops = [{"op": "get", "key": "k"}] * 20
    results = (await api("POST", "/v1/batch/big", json={"ops": ops})).body["results"]
    assert [r["status"] for r in results].count(200) == 16
    assert {r["status"] for r in results} == {200, 413}


async def test_transactions(api: Api) -> None:
    await api("PUT", "/v1/kv/txns/d/a", b"1")
    version = (await api("GET", "/v1/kv/txns/d/a")).version
    txn = {
        "compare": [
            {"key": "d/a", "what": "version", "operand": version},
            {"key": "d/a", "what": "value", "operand": "1"},
            {"key": "d/b", "what": "created", "operand": 0},
            {"key": "d/b", "what": "value", "relation": "!=", "operand_base64": "AAE="},
        ],
        "then": [
            {"op": "put", "key": "d/b", "value": "2", "ttl_ms": 60000},
            {"op": "add", "key": "d/n", "delta": 2},
            {"op": "get", "key": "d/b"},
            {"op": "get", "key": "d/none"},
            {"op": "delete", "key": "d/a"},
            {"op": "delete", "key": "d/none"},
        ],
        "otherwise": [{"op": "get", "key": "d/a"}],
    }
    done = (await api("POST", "/v1/txn/txns", json=txn)).body
    assert done["succeeded"] is True
    put, added, got, none, deleted, nothing = done["results"]
    assert (put["created"], added["count"], got["value"], got["ttl_ms"]) == (True, 2, "2", 60000)
    assert none == {"key": "d/none", "version": 0} == nothing
    assert deleted["version"] > put["version"]
    again = (await api("POST", "/v1/txn/txns", json=txn)).body
    assert again == {"succeeded": False, "results": [{"key": "d/a", "version": 0}]}
    once = {"Idempotency-Key": "t1"}
    adds = {"then": [{"op": "add", "key": "d/n"}]}
    replies = [(await api("POST", "/v1/txn/txns", json=adds, headers=once)).body for _ in range(3)]
    assert [r["results"][0]["count"] for r in replies] == [3, 3, 3]
    adds["then"][0]["delta"] = 7  # type: ignore[assignment]
    assert (await api("POST", "/v1/txn/txns", json=adds, headers=once)).status == 422
    for bad, status in (
        ({}, 400),
        ({"then": [{"op": "touch", "key": "d/a"}]}, 400),
        ({"then": [{"op": "put", "key": "d/a", "value": "1", "if_version": 3}]}, 400),
        ({"compare": [{"key": "d/a", "what": "colour", "operand": 1}]}, 400),
        ({"then": [{"op": "get", "key": "d/a"}] * 129}, 413),
    ):
        assert (await api("POST", "/v1/txn/txns", json=bad)).status == status, bad


async def test_a_transaction_across_partitions_is_told_how_to_come_together(
    shared_cell: Cluster, api: Api
) -> None:
    async with shared_cell.client() as client:
        table = client.dispatcher.table
        home = table.route(storage_key_of("cross", "a")).id
        other = next(k for k in map(str, range(99)) if table.route(storage_key_of("cross", k)).id != home)
    then = [{"op": "put", "key": key, "value": "1"} for key in ("a", other)]
    refused = await api("POST", "/v1/txn/cross", json={"then": then})
    assert (refused.status, refused.body["code"]) == (400, "cross_partition")
    assert refused.body["keys"] == ["a", other]
    assert "{tag}" in refused.body["detail"]
    then = [{"op": "put", "key": "{t}/" + key, "value": "1"} for key in ("a", other)]
    assert (await api("POST", "/v1/txn/cross", json={"then": then})).status == 200


async def test_everything_that_is_wrong_is_a_problem_document(api: Api) -> None:
    for method, path, status, code in (
        ("GET", "/", 404, "no_such_path"),
        ("GET", "/v1/kv", 404, "no_such_path"),
        ("GET", "/v1/namespaces/a/b", 404, "no_such_path"),
        ("TRACE", "/v1/kv/app/k", 405, "method_not_allowed"),
        ("POST", "/v1/kv/app", 405, "method_not_allowed"),
        ("GET", "/v1/kv/app/k?a=1&a=1", 400, "invalid_request"),
        ("GET", "/v1/kv/app/k?consistency=%FF", 400, "invalid_request"),
        ("GET", "/v1/kv/app?" + "&".join(f"a{i}=1" for i in range(40)), 400, "invalid_request"),
        ("GET", "/v1/kv/app?prefix=a/&cursor=AAAAAAAAAAA", 400, "invalid_request"),
        ("GET", "/livez?x=1", 400, "invalid_request"),
        ("GET", "/v1/kv/app/" + "k" * 20000, 400, "malformed_http"),
    ):
        reply = await api(method, path)
        assert (reply.status, reply.body["code"]) == (status, code), (method, path[:60])
        if status == 405:
            assert "GET" in reply.headers["Allow"]
    options = await api("OPTIONS", "/v1/kv/app/k")
    assert (options.status, options.headers["Allow"]) == (204, "DELETE, GET, HEAD, PUT, OPTIONS")


@pytest.mark.parametrize(
    "hostile",
    [
        b"nonsense\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 70000 + b"\r\n\r\n",
        b"PUT /v1/kv/app/k HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"PUT /v1/kv/app/k HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_not_http_is_told_so_too(shared_cell: Cluster, hostile: bytes) -> None:
    host, _, port = shared_cell.router.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(hostile)
    answer = await reader.read(4096)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400")), answer
    assert b"application/problem+json" in answer
    assert b"Server: metastore" in answer
    writer.close()


async def test_a_page_ends_early_when_its_records_are_large(api: Api) -> None:
    for number in range(6):
        await api("PUT", f"/v1/kv/large/k{number}", bytes(1 << 20))
    seen: list[str] = []
    cursor, pages = "", 0
    while cursor is not None:
        page = (await api("GET", f"/v1/kv/large?cursor={cursor}")).body
        seen += [item["key"] for item in page["items"]]
        cursor, pages = page["cursor"], pages + 1
        assert len(page["items"]) < 6
    assert sorted(seen) == [f"k{n}" for n in range(6)]
    assert pages > 1
