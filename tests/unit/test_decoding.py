"""The doors of ``metastore.decoding``: what is refused is refused before anything is made of it; nobody goes around them."""

from __future__ import annotations

import ast
import tracemalloc
import zlib
from pathlib import Path

import msgpack
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastore import decoding
from metastore.core.payloads import read_payload
from metastore.decoding import (
    TooMany,
    Undecodable,
    inflate,
    json_items,
    load_json,
    read_json_file,
    unpack_body,
)
from metastore.errors import ProtocolError

PACKAGES = [
    Path(decoding.__file__).parent,
    *(Path(decoding.__file__).parents[1] / p for p in ("router", "cellctl")),
]
#: module -> functions that make objects, or more bytes, of bytes
DECODERS = {
    "msgpack": {"unpackb", "unpack", "loads", "load", "Unpacker"},
    "orjson": {"loads"},
    "json": {"loads", "load", "JSONDecoder"},
    "zlib": {"decompress", "decompressobj"},
    "gzip": {"decompress", "open", "GzipFile"},
    "bz2": {"decompress", "open"},
    "lzma": {"decompress", "open"},
    "pickle": {"loads", "load", "Unpickler"},
    "marshal": {"loads", "load"},
    "yaml": {"load", "safe_load", "load_all", "safe_load_all", "full_load", "unsafe_load"},
}


def decoder_calls(source: str) -> list[str]:
    """Every use of a decoder in a module, by whatever way it was imported."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in DECODERS.get(node.value.id, ()):
                found.append(f"{node.value.id}.{node.attr}, line {node.lineno}")
        elif isinstance(node, ast.ImportFrom) and node.module in DECODERS:
            found += [
                f"{node.module}.{a.name}, line {node.lineno}"
                for a in node.names
                if a.name in DECODERS[node.module]
            ]
        elif isinstance(node, ast.Import):
            found += [f"{a.name} as {a.asname}" for a in node.names if a.name in DECODERS and a.asname]
    return found


def test_no_other_module_decodes() -> None:
    modules = [path for package in PACKAGES for path in package.rglob("*.py")]
    assert len(modules) > 100
    around = {
        str(p): calls for p in modules if p.name != "decoding.py" and (calls := decoder_calls(p.read_text()))
    }
    assert not around, "use a door of metastore.decoding"


def test_the_lint_sees_every_way_around() -> None:
    for line in ("msgpack.unpackb(x)", "from orjson import loads", "import zlib as z", "f = zlib.decompress"):
        assert decoder_calls(line), line
    assert not decoder_calls("msgpack.packb(x); zlib.crc32(y); orjson.dumps(z)")


# --- JSON -------------------------------------------------------------------------------------------

HEAVY = [b"[" + b"[]," * 400_000 + b"1]", b"{" + b",".join(b'"a%d":1' % i for i in range(200_000)) + b"}"]
HEAVY += [b"[" * 400_000, b'["' + b'","' * 400_000 + b'"]', b"[" + b'{"":0},' * 200_000 + b"0]"]


@pytest.mark.parametrize("raw", HEAVY, ids=range(len(HEAVY)))
def test_json_with_too_much_in_it_is_refused_before_it_is_parsed(raw: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TooMany, match="more than 300000 elements, the limit"):
            load_json(raw, max_bytes=len(raw))
        assert tracemalloc.get_traced_memory()[1] < 8 * len(raw)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "text", ["[],:{" * 300_000, '"' * 400_000, "\\" * 400_000, '\\"' * 200_000, '","' * 200_000]
)
def test_what_stands_in_texts_does_not_count(text: str) -> None:
    value = {"ops": [{"op": "put", "value": text}]}
    assert load_json(orjson.dumps(value), max_bytes=8 << 20) == value


def elements(value: object) -> int:
    if isinstance(value, list):
        return 1 + sum(map(elements, value))
    return 1 + sum(1 + elements(v) for v in value.values()) if isinstance(value, dict) else 1


JSON = st.recursive(
    st.none() | st.integers(0, 9) | st.text('"\\[]{},:a'),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
)


@given(JSON)
def test_json_items_is_never_too_few(value: object) -> None:
    """By either way of counting: a sign stands before each value but the first, and before each name's value."""
    raw = orjson.dumps(value)
    quick = json_items(raw, len(raw))
    exact = json_items(raw, quick - 1)
    assert elements(value) <= 2 * exact + 2
    assert elements(value) <= 2 * quick + 2


def test_a_file_of_any_size_is_read_up_to_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b" " * (3 << 20))
    with pytest.raises(TooMany, match="over 2097152 bytes"):
        read_json_file(path)
    path.write_bytes(b"{")
    with pytest.raises(Undecodable, match="is not JSON"):
        read_json_file(path)


# --- msgpack ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        b"\xdc\x00\x10" + (b"\xdc\x3f\x00" + b"\x90" * 0x3F00) * 16,
        msgpack.packb([[]] * 10),
        b"\x91" * 100_000 + b"\x90",
        b"\xdd\xff\xff\xff\xff" + b"\x90" * 70_000,
        b"\xdf\xff\xff\xff\xff" + b"\x90" * 70_000,
        b"\xc7\xff\x05" + b"x" * 255,
    ],
)
def test_msgpack_is_counted(raw: bytes) -> None:
    try:
        made = unpack_body(raw, 100_000)
    except ProtocolError:
        return
    assert made == [[]] * 10


# --- zlib -------------------------------------------------------------------------------------------


def test_a_small_thing_does_not_become_a_large_one() -> None:
    bomb = zlib.compress(b"\0" * (64 << 20), 9)
    tracemalloc.start()
    try:
        with pytest.raises(TooMany, match="more than 1048576 bytes"):
            inflate(bomb, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=200), st.integers(0, 20))
def test_inflate_takes_what_is_whole_and_nothing_else(raw: bytes, cut: int) -> None:
    packed = zlib.compress(raw)
    assert inflate(packed, len(raw)) == inflate(packed, 1000) == raw
    for odd in (packed + b"x", packed[: -1 - cut % (len(packed) - 1)], b"", raw):
        with pytest.raises(Undecodable):
            inflate(odd, 1000)
    if raw:
        with pytest.raises(TooMany):
            inflate(packed, len(raw) - 1)


# --- what the doors are for -------------------------------------------------------------------------


def test_an_entry_of_a_peer_does_not_become_more_than_an_entry_can_be() -> None:
    """It lies within a frame as bytes, so the elements of the frame say nothing of it."""
    hollow = b"\x95\x00\x90\xdd\x00\x00\x00\x80" + (b"\xdc\xff\xff" + b"\x90" * 0xFFFF) * 128 + b"\x90\x90"
    assert len(hollow) > 8 << 20
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="does not parse"):
            read_payload(hollow)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
