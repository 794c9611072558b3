"""The file of ``cellctl snapshot``, and what a leader sends of a partition: written, and read by one reader that checks all.

The file is ``metastore snapshot 1\\n`` and then frames, ``u32 length | u32 crc32 | zlib(msgpack [kind, …])``:

    head   cluster, when (ms since 1970), partitions, namespaces with their policies
    part   partition, epoch, index, version: what follows is of that moment
    rows   [[storage key, packed record], …]
    done   partition, records
    end    partitions, records: what ends without it is not whole

A checksum tells damage, not who wrote it: whatever a file holds, it is read within bounds and comes out in these forms, or
as an InvalidRequest that says at which byte it is none.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgpack

from metastore.decoding import MAX_ANSWER_ITEMS, Undecodable, inflate, unpack_body
from metastore.errors import InvalidRequest, ProtocolError, Unavailable
from metastore.history import COUNT_BITS, MAX_GENERATIONS
from metastore.keys import check_namespace, is_storage_key
from metastore.namespaces import policy_from_plain
from metastore.records import is_sound

MAGIC: Final = b"metastore snapshot 1\n"
HEAD: Final = struct.Struct(">II")
#: of a frame as it is in the file, and as it was before it was compressed. Rows come by some 256 KiB and a record
MAX_FRAME: Final = 16 << 20
MAX_INFLATED: Final = 32 << 20
MAX_PARTITIONS: Final = 1 << 16
#: the year 9999, in ms since 1970
_LAST_MS: Final = 253_402_300_799_999


def _counts(*names: str) -> Callable[[Any], str]:
    """A check: a map of these names to numbers, and perhaps more."""

    def check(value: Any) -> str:
        if type(value) is not dict:
            return "it is not a map"
        for name in names:
            if type(value.get(name)) is not int or not 0 <= value[name] < 1 << 63:
                return f"{name} = {value.get(name)!r:.40} is not a number"
        return ""

    return check


def _head(value: Any) -> str:
    wrong = _counts("at_ms", "partitions")(value)
    if wrong:
        return wrong
    if type(value.get("cluster")) is not str or type(value.get("namespaces")) is not list:
        return "it does not name a cluster and its namespaces"
    if value["at_ms"] > _LAST_MS or value["partitions"] > MAX_PARTITIONS:
        return f"{value['partitions']} partitions at {value['at_ms']} ms since 1970"
    for row in value["namespaces"]:
        if type(row) is not list or len(row) != 2 or type(row[0]) is not str:
            return "a namespace is not [name, policy]"
        try:
            check_namespace(row[0])
            policy_from_plain(row[1])
        except InvalidRequest as e:
            return e.message
    return ""


def check_rows(rows: Any) -> str:
    """ "", or why these are not ``[[storage key, packed record], …]``."""
    if type(rows) is not list:
        return "it is not a list of rows"
    for row in rows:
        if type(row) is not list or len(row) != 2 or type(row[0]) is not bytes or type(row[1]) is not bytes:
            return "a row is not [storage key, record]"
        if not is_storage_key(row[0]):
            return f"{row[0][:80]!r} is not a storage key"
        if not is_sound(row[1]):
            return f"the record of {row[0][:80]!r} does not match its checksum"
    return ""


def check_part(value: Any) -> str:
    """ "", or why this does not say of which moment a partition's records are."""
    wrong = _counts("partition", "epoch", "index")(value)
    version = value.get("version", 0) if not wrong else 0
    if type(version) is not int or not 0 <= version < MAX_GENERATIONS << COUNT_BITS:
        return f"version = {version!r:.40} is none"
    return wrong


_CHECKS: Final[dict[str, Callable[[Any], str]]] = {
    "head": _head,
    "part": check_part,
    "rows": check_rows,
    "done": _counts("partition", "records"),
    "end": _counts("partitions", "records"),
}


def write_frame(out: BinaryIO, kind: str, value: Any) -> None:
    body = zlib.compress(msgpack.packb([kind, value]), 1)
    if len(body) > MAX_FRAME:
        raise InvalidRequest(f"a frame of {len(body)} bytes is over the limit of a snapshot, {MAX_FRAME}")
    out.write(HEAD.pack(len(body), zlib.crc32(body)) + body)


def read_frames(source: BinaryIO, path: Path) -> Iterator[tuple[str, Any]]:
    """Every frame, ``(kind, value)``, of the form that its kind has. Raises InvalidRequest where the file is damaged, of
    another kind, or not whole."""
    if source.read(len(MAGIC)) != MAGIC:
        raise InvalidRequest(f"{path} is not a snapshot that this version reads")
    first = True
    while True:
        at, head = source.tell(), source.read(HEAD.size)
        length, crc = HEAD.unpack(head) if len(head) == HEAD.size else (0, 0)
        body = source.read(length) if 0 < length <= MAX_FRAME else b""
        if not body or len(body) != length or zlib.crc32(body) != crc:
            raise InvalidRequest(f"{path} is damaged or incomplete at byte {at}")
        try:
            kind, value = read_frame(body)
        except ValueError as e:
            raise InvalidRequest(f"{path} is not a snapshot, from byte {at} on: {e}") from None
        if first != (kind == "head"):
            raise InvalidRequest(
                f"{path} is damaged at byte {at}: the head of a snapshot comes first, and once"
            )
        first = False
        yield kind, value
        if kind == "end":
            if source.read(1):
                raise InvalidRequest(f"{path} has bytes after its end, at byte {source.tell() - 1}")
            return


def read_frame(body: bytes) -> tuple[str, Any]:
    """A frame without its length and checksum. Raises ValueError."""
    try:
        frame = unpack_body(inflate(body, MAX_INFLATED), MAX_ANSWER_ITEMS, max_array=MAX_ANSWER_ITEMS)
    except ProtocolError as e:
        raise Undecodable(e.message) from None
    if type(frame) is not list or len(frame) != 2 or type(frame[0]) is not str:
        raise ValueError("a frame is not [kind, value]")
    kind, value = frame
    check = _CHECKS.get(kind)
    if check is None:
        raise ValueError(f"frames of kind {kind!r:.40} are not known here")
    wrong = check(value)
    if wrong:
        raise ValueError(f"in a frame of kind {kind}, {wrong}")
    return kind, value


def sent_frames(source: BinaryIO, url: str) -> Iterator[tuple[str, Any]]:
    """What a leader sends of a partition, as frames of a file: ``part``, ``rows`` and, at the end, ``done``, without the
    partition. Raises Unavailable where it is not that."""
    kind = ""
    while kind != "done":
        head = source.read(HEAD.size)
        length, crc = HEAD.unpack(head) if len(head) == HEAD.size else (0, 0)
        body = source.read(length) if 0 < length <= MAX_FRAME else b""
        if not body or len(body) != length or zlib.crc32(body) != crc:
            raise Unavailable(f"{url} sent a snapshot that is damaged or incomplete; try again")
        try:
            value = unpack_body(body, MAX_ANSWER_ITEMS, max_array=MAX_ANSWER_ITEMS)
        except ProtocolError as e:
            raise Unavailable(f"{url} sent a snapshot that cannot be read: {e.message}") from None
        if type(value) is list:
            kind, wrong = "rows", check_rows(value)
        elif type(value) is dict and "records" in value:
            kind, wrong = "done", _counts("records")(value)
        else:
            kind, wrong = "part", check_part(value)
        if wrong:
            raise Unavailable(f"{url} sent a part of a snapshot that is not valid: {wrong}")
        yield kind, value
