"""Placement may never change unnoticed: keys, routing keys, points, partitions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastore.errors import InvalidRequest, TooLarge
from metastore.keys import (
    MAX_KEY_BYTES,
    PartitionMap,
    PartitionRange,
    check_namespace,
    hash_point,
    prefix_routing_key,
    routing_key,
    split_storage_key,
    storage_key_of,
)


@pytest.mark.parametrize(
    ("namespace", "key", "point"),
    [
        ("default", "hello", "d2ff3cefc59b4063"),
        ("files", "usr/share/doc/bash", "95849e3a599c5bf2"),
        ("files", "usr/share/doc/zlib", "95849e3a599c5bf2"),
        ("t", "{tenant-7}/a/b", "2c34152a2b9e9289"),
        ("t", "x/{tenant-7}", "2c34152a2b9e9289"),
        ("t", "größe/π", "2cf4bc16cc8ee2f3"),
    ],
)
def test_golden_points(namespace: str, key: str, point: str) -> None:
    """Changing any of these strands all data that was ever written."""
    storage_key = storage_key_of(namespace, key)
    assert storage_key[:8].hex() == point
    assert storage_key[8:] == namespace.encode() + b"\0" + key.encode()
    assert PartitionMap.even(16).of(storage_key) == int(point[0], 16)


def test_the_hash_is_xxh3_64_big_endian() -> None:
    import xxhash

    assert hash_point(b"n", b"r") == xxhash.xxh3_64_intdigest(b"n\0r").to_bytes(8, "big")


@pytest.mark.parametrize(
    ("key", "routing"),
    [
        (b"x", b"x"),
        (b"a/b", b"a"),
        (b"a/b/c", b"a/b"),
        (b"a/", b"a"),
        (b"/a", b""),
        (b"{t}/x", b"t"),
        (b"a/{t}/b/c", b"t"),
        (b"{}/x", b"{}"),
        (b"{t", b"{t"),
        (b"a/{t", b"a"),
        (b"{a}{b}", b"a"),
    ],
)
def test_routing_keys(key: bytes, routing: bytes) -> None:
    assert routing_key(key) == routing


@pytest.mark.parametrize(
    ("prefix", "routing"),
    [(b"", None), (b"a", None), (b"a/", b"a"), (b"a/b", b"a"), (b"{t}", b"t"), (b"{t", None), (b"a/{", None)],
)
def test_prefixes_that_mean_one_folder(prefix: bytes, routing: bytes | None) -> None:
    assert prefix_routing_key(prefix) == routing


@given(st.text(min_size=1, max_size=40), st.text(max_size=10))
def test_a_prefix_that_routes_routes_as_its_keys_do(folder: str, rest: str) -> None:
    """What a listing of ``folder/`` asks is where its entries are."""
    try:
        key, prefix = (folder + "/" + rest.replace("/", "") + "x").encode(), (folder + "/").encode()
    except UnicodeEncodeError:
        return
    found = prefix_routing_key(prefix)
    if found is not None and b"{" not in rest.encode() and b"}" not in rest.encode():
        assert routing_key(key) == found


@given(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True), st.text(min_size=1, max_size=200))
def test_storage_keys_come_apart_again(namespace: str, key: str) -> None:
    try:
        storage_key = storage_key_of(namespace, key)
    except InvalidRequest:
        with pytest.raises(UnicodeEncodeError):
            key.encode()
        return
    assert split_storage_key(storage_key) == (namespace, key)


@given(st.lists(st.text(alphabet="abz/é\0", min_size=1, max_size=6), min_size=2, max_size=8))
def test_byte_order_is_key_order_within_a_routing_key(keys: list[str]) -> None:
    storage_keys = sorted(storage_key_of("n", "d/" + k.replace("/", "")) for k in keys)
    assert [split_storage_key(k)[1].encode() for k in storage_keys] == sorted(
        ("d/" + k.replace("/", "")).encode() for k in keys
    )


def test_bounds() -> None:
    assert len(storage_key_of("n", "k" * MAX_KEY_BYTES)) == 8 + 2 + MAX_KEY_BYTES
    with pytest.raises(TooLarge, match=f"{MAX_KEY_BYTES + 1} bytes is over the limit of {MAX_KEY_BYTES}"):
        storage_key_of("n", "k" * (MAX_KEY_BYTES + 1))
    with pytest.raises(TooLarge):
        storage_key_of("n", "é" * (MAX_KEY_BYTES // 2 + 1))
    for key in ("", None, 7, "a\ud800"):
        with pytest.raises(InvalidRequest):
            storage_key_of("n", key)  # type: ignore[arg-type]
    assert check_namespace("a" * 64)
    for namespace in ("", "A", "-a", "a b", "a" * 65, "a\n", "é", None):
        with pytest.raises(InvalidRequest, match="namespace"):
            check_namespace(namespace)  # type: ignore[arg-type]


@given(st.integers(0, 10), st.binary(min_size=8, max_size=12))
def test_every_point_has_one_partition(power: int, storage_key: bytes) -> None:
    table = PartitionMap.even(1 << power)
    owner = table.ranges[table.of(storage_key)]
    assert owner.covers(storage_key)
    assert sum(r.covers(storage_key) for r in table.in_order()) == 1


def test_edges_of_partitions() -> None:
    table = PartitionMap.even(2)
    assert table.of(b"\x7f" + b"\xff" * 7) == 0
    assert table.of(b"\x80" + b"\0" * 7) == 1
    assert table.of(b"\xff" * 8) == 1


@pytest.mark.parametrize("count", [0, 3, -1, 65537, 131072])
def test_counts_that_are_no_power_of_two(count: int) -> None:
    with pytest.raises(InvalidRequest, match=f"partitions = {count}"):
        PartitionMap.even(count)


@pytest.mark.parametrize(
    "ranges", [[], [(0, 5)], [(0, 5), (6, 1 << 64)], [(0, 7), (6, 1 << 64)], [(1, 1 << 64)]]
)
def test_ranges_with_gaps_or_overlaps(ranges: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="partition"):
        PartitionMap(PartitionRange(i, lo, hi) for i, (lo, hi) in enumerate(ranges))
