"""The file of ``cellctl snapshot``: what is not whole, to the last byte, is refused before anything is written."""

from __future__ import annotations

import contextlib
import io
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import msgpack
import pytest

from cellctl.backup import survey
from cellctl.main import run
from cellctl.snapshot_file import HEAD as FRAME
from cellctl.snapshot_file import MAGIC, check_rows, sent_frames, write_frame
from metastore.errors import InvalidRequest, Unavailable
from metastore.keys import is_storage_key, storage_key_of
from metastore.records import is_sound, pack_record
from tests.unit.client.nonsense import mutations

HEAD = {"cluster": "c", "at_ms": 1, "partitions": 2, "namespaces": []}


def frames(path: Path, *rows: tuple[Any, ...]) -> None:
    with path.open("wb") as out:
        out.write(MAGIC)
        for row in rows:
            write_frame(out, *row)


def whole() -> list[tuple[Any, ...]]:
    made: list[tuple[Any, ...]] = [("head", HEAD)]
    for p in range(2):
        made += [
            ("part", {"partition": p, "epoch": 1, "index": 5}),
            ("rows", [[storage_key_of("ns", f"k{p}"), pack_record(1, 1, b"value")]]),
            ("done", {"partition": p, "records": 1}),
        ]
    return [*made, ("end", {"partitions": 2, "records": 2})]


def test_each_byte(tmp_path: Path) -> None:
    path = tmp_path / "file"
    frames(path, *whole())
    assert survey(path)["namespaces"]["ns"]["records"] == 2
    raw = path.read_bytes()
    for at in range(len(raw)):
        garbled = bytearray(raw)
        garbled[at] ^= 1 << at % 8
        for content in (raw[:at], bytes(garbled)):
            path.write_bytes(content)
            with pytest.raises(InvalidRequest):
                survey(path)
    path.write_bytes(raw + b"\0")
    with pytest.raises(InvalidRequest, match="has bytes after its end"):
        survey(path)


@pytest.mark.parametrize("lost", range(8))
def test_each_frame(tmp_path: Path, lost: int) -> None:
    """A frame that is not there, the first one included, is missed. But for what says of which moment a part is."""
    path = tmp_path / "file"
    rows = whole()
    kind = rows.pop(lost)[0]
    frames(path, *rows)
    if kind == "part":
        survey(path)
    else:
        with pytest.raises(InvalidRequest):
            survey(path)


def test_a_record_has_to_match_its_own_checksum() -> None:
    """Whatever the frame says that it came in: it may have rotted before."""
    key, record = storage_key_of("ns", "k"), pack_record(1, 1, b"value")
    assert check_rows([[key, record]]) == ""
    for at in range(len(record)):
        rotten = record[:at] + bytes((record[at] ^ 1,)) + record[at + 1 :]
        assert "checksum" in check_rows([[key, record], [key, rotten]]), at


def test_a_snapshot_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    frames(path, ("end", {"partitions": 0, "records": 0}))
    with pytest.raises(InvalidRequest, match="head of a snapshot comes first"):
        survey(path)


# --- files of any content, with checksums that are right --------------------------------------------


def show(path: Path) -> tuple[int, str]:
    """What ``cellctl snapshot show`` does of a file: its exit code, and what it says."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = run(["snapshot", "show", str(path)])
    return code, said.getvalue()


def raw_frame(body: bytes) -> bytes:
    return FRAME.pack(len(body), zlib.crc32(body)) + body


def raw_file(path: Path, *values: Any) -> None:
    path.write_bytes(MAGIC + b"".join(raw_frame(zlib.compress(msgpack.packb(v), 1)) for v in values))


def test_every_mutation_of_every_frame(tmp_path: Path) -> None:
    """Whatever is in a file, and its checksums right: it is shown, or refused in a line that says where."""
    path = tmp_path / "file"
    frames_ = [list(row) for row in whole()]
    raw_file(path, *frames_)
    assert show(path)[0] == 0
    refused = count = 0
    for number in (0, 1, 2, 3, 7):
        for what, odd in mutations(frames_[number]):
            raw_file(path, *frames_[:number], odd, *frames_[number + 1 :])
            code, said = show(path)
            count += 1
            refused += code != 0
            assert code in (0, 2), what
            if code:
                assert said.startswith("cellctl: "), (what, said)
                assert said.count("\n") == 1, (what, said)
                assert "does not know" not in said, (what, said)
    assert count > 600
    assert refused > 0.8 * count


def test_bodies_that_are_no_frames(tmp_path: Path) -> None:
    path = tmp_path / "file"
    bombs = [zlib.compress(b"\0" * (64 << 20), 9), zlib.compress(b"\xdc\xff\xff" + b"\x90" * (3 << 20), 1)]
    for body in (
        *bombs,
        b"x",
        b"\0" * 100,
        zlib.compress(b""),
        zlib.compress(b"\xc1"),
        zlib.compress(b"\x91" * 5000),
    ):
        path.write_bytes(MAGIC + raw_frame(body))
        tracemalloc.start()
        code, said = show(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (code, said.count("\n")) == (2, 1)
        assert "is not a snapshot, from byte 21 on" in said
        assert peak < 160 << 20
    for junk in (
        b"",
        MAGIC[:-1],
        MAGIC,
        MAGIC + b"\0" * 8,
        MAGIC + b"\xff" * 8,
        b"\x1f\x8b" + bytes(100),
        MAGIC * 2,
    ):
        path.write_bytes(junk)
        code, said = show(path)
        assert (code, said.count("\n")) == (2, 1)


@pytest.mark.parametrize("sent", [b"", b"\xff" * 8, b"\0" * 20, FRAME.pack(1, zlib.crc32(b"\xc1")) + b"\xc1"])
def test_a_leader_that_sends_anything(sent: bytes) -> None:
    with pytest.raises(Unavailable, match="http://n1 sent a snapshot that"):
        list(sent_frames(io.BytesIO(sent), "http://n1"))


def test_every_mutation_of_what_a_leader_sends() -> None:
    moment = {"partition": 0, "epoch": 1, "index": 5, "version": 1}
    rows = [[storage_key_of("ns", "k"), pack_record(1, 1, b"value")]]
    for number, value in enumerate([moment, rows, {"records": 1}]):
        for _, odd in mutations(value):
            sent = [moment, rows, {"records": 1}]
            sent[number] = odd
            source = io.BytesIO(b"".join(raw_frame(msgpack.packb(v)) for v in sent))
            with contextlib.suppress(Unavailable):
                for kind, found in sent_frames(source, "http://n1"):
                    if kind == "rows":
                        assert all(is_storage_key(k) and is_sound(r) for k, r in found)
