"""``cellctl export jsonl`` and ``import jsonl``: records as lines of JSON, one each.

    {"namespace": "files", "key": "etc/hosts", "value": "…", "content_type": "text/plain", "ttl_ms": 60000}

A value that is no UTF-8 text is ``value_base64``. A counter has ``"counter": true`` and its number as
``value``. A TTL is what the record had in full: it starts anew. Versions belong to the cluster they were made
in and are written for people only. Within a folder an export is of one moment; as a whole it is not.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click
import orjson

from cellctl.connect import Where, cluster_options, make_client
from cellctl.import_tree import MAX_REPORTED, import_
from cellctl.output import note
from metastore.client import AsyncClient
from metastore.decoding import Undecodable, load_json
from metastore.errors import ConditionFailed, InvalidRequest, MetastoreError
from metastore.history import first_version
from metastore.keys import check_namespace, encode_key
from metastore.records import Record

MAX_LINE_BYTES = 4 << 20
FIELDS = frozenset(
    {"namespace", "key", "value", "value_base64", "content_type", "ttl_ms", "counter", "version", "created"}
)


def to_line(namespace: str, key: str, record: Record) -> bytes:
    """One record as a line, its end included."""
    row: dict[str, Any] = {"namespace": namespace, "key": key}
    if record.counter:
        row |= {"counter": True, "value": int(record.value)}
    else:
        try:
            row["value"] = record.value.decode()
        except UnicodeDecodeError:
            row["value_base64"] = base64.b64encode(record.value).decode()
    if record.content_type:
        row["content_type"] = record.content_type
    if record.ttl_ms:
        row["ttl_ms"] = record.ttl_ms
    return orjson.dumps(row | {"version": record.version}) + b"\n"


def from_line(line: bytes, namespace: str | None) -> tuple[str, str, Record]:
    """Namespace, key and record of a line; ``namespace``: instead of the line's own. Raises InvalidRequest."""
    try:
        row = load_json(line, max_bytes=MAX_LINE_BYTES, what="the line")
    except Undecodable as e:
        raise InvalidRequest(str(e)) from None
    if type(row) is not dict or not FIELDS.issuperset(row):
        odd = sorted(set(row) - FIELDS)[:3] if type(row) is dict else []
        raise InvalidRequest(f"not an object with fields of {', '.join(sorted(FIELDS))}; odd: {odd}")
    name, key = namespace or row.get("namespace"), row.get("key")
    if type(name) is not str or type(key) is not str:
        raise InvalidRequest("namespace and key have to be text; --namespace NAME says it for all lines")
    check_namespace(name)
    encode_key(key)
    counter, ttl_ms, kind = row.get("counter", False), row.get("ttl_ms", 0), row.get("content_type", "")
    if type(ttl_ms) is not int or ttl_ms < 0 or type(kind) is not str or type(counter) is not bool:
        raise InvalidRequest(
            "ttl_ms has to be a number of at least 0, content_type a text, counter true or false"
        )
    value = row.get("value")
    if counter:
        if type(value) is not int:
            raise InvalidRequest(f"a counter's value is a number, not {value!r:.40}")
        return name, key, Record(first_version(0), first_version(0), b"%d" % value, kind, ttl_ms, True)
    if ("value" in row) == ("value_base64" in row):
        raise InvalidRequest("give value, or value_base64")
    if "value_base64" in row:
        try:
            raw = base64.b64decode(row["value_base64"], validate=True)
        except (ValueError, TypeError) as e:
            raise InvalidRequest(f"value_base64 is not base64: {e}") from None
    elif type(value) is str:
        raw = value.encode()
    else:
        raise InvalidRequest(f"value is a text, not {value!r:.40}; other bytes go into value_base64")
    return name, key, Record(first_version(0), first_version(0), raw, kind, ttl_ms)


@click.group()
def export() -> None:
    """Records out of the cluster."""


@export.command("jsonl")
@cluster_options
@click.option("--namespace", "-n", required=True, help="Namespace.")
@click.option(
    "--file",
    "-f",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Else standard output.",
)
@click.argument("prefix", default="")
def export_jsonl(where: Where, namespace: str, path: Path | None, prefix: str) -> None:
    """All records of a namespace, or those whose keys begin with PREFIX.

    Example: cellctl export jsonl -n files -f files.jsonl
    """

    async def run(out: BinaryIO) -> int:
        count = 0
        async with make_client(where) as client:
            async for key, record in client.namespace(namespace).scan(prefix):
                out.write(to_line(namespace, key, record))
                count += 1
        return count

    if path is None:
        count = asyncio.run(run(sys.stdout.buffer))
        sys.stdout.buffer.flush()
    else:  # a file with the final name is a whole one
        fresh = path.with_name(path.name + ".part")
        with fresh.open("wb") as out:
            count = asyncio.run(run(out))
        fresh.replace(path)
    note(f"{count} records")


@import_.command("jsonl")
@cluster_options
@click.option("--namespace", "-n", default=None, help="Instead of the one in each line.")
@click.option("--only-absent", is_flag=True, help="Leave alone what is there already.")
@click.option(
    "--concurrency", type=click.IntRange(1, 2048), default=256, show_default=True, help="Writes in flight."
)
@click.argument("path", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
def import_jsonl(
    where: Where,
    namespace: str | None,
    only_absent: bool,
    concurrency: int,
    path: Path,
) -> None:
    """Write the records of a file of lines (- = standard input). It may be run again: the same lines end in
    the same records.

    Example: cellctl import jsonl files.jsonl
    """
    with contextlib.ExitStack() as stack:
        source = sys.stdin.buffer if str(path) == "-" else stack.enter_context(path.open("rb"))
        sys.exit(asyncio.run(_import(where, source, namespace, only_absent, concurrency)))


async def _import(
    where: Where,
    source: BinaryIO,
    namespace: str | None,
    only_absent: bool,
    concurrency: int,
) -> int:
    done, kept, began = 0, 0, time.monotonic()
    problems: list[str] = []
    lines: Iterator[tuple[int, bytes]] = iter(enumerate(source, 1))

    async def worker(client: AsyncClient) -> None:
        nonlocal done, kept
        for number, line in lines:
            if not line.strip():
                continue
            try:
                name, key, record = from_line(line, namespace)
                await write(client, name, key, record, only_absent)
                done += 1
            except ConditionFailed:
                kept += 1
            except MetastoreError as e:
                problems.append(f"line {number}: {e.message}")
                if len(problems) > 1000:
                    return

    async with make_client(where) as client:
        await asyncio.gather(*(worker(client) for _ in range(concurrency)))
    took = time.monotonic() - began
    note(f"{done} records in {took:.1f} s ({done / max(took, 1e-9):,.0f} per second)")
    if kept:
        note(f"{kept} were there already and are as they were")
    for problem in problems[:MAX_REPORTED]:
        note(f"failed: {problem}")
    if len(problems) > MAX_REPORTED:
        note(f"… and {len(problems) - MAX_REPORTED} more failed")
    return 2 if problems else 0


async def write(client: AsyncClient, name: str, key: str, record: Record, only_absent: bool) -> None:
    """One record. Raises ConditionFailed when it is to be left alone, and as ``put``."""
    ns = client.namespace(name)
    if not record.counter:
        ttl_s = record.ttl_ms / 1000
        await ns.put(key, record.value, absent=only_absent, content_type=record.content_type, ttl_s=ttl_s)
        return
    while True:  # a counter is made by adding to nothing
        old = await ns.get(key)
        if old is not None and only_absent:
            raise ConditionFailed("it is there")
        if old is not None and old.counter and old.value == record.value:
            return
        try:
            if old is not None:
                await ns.delete(key, version=old.version)
            await ns.add(key, int(record.value), absent=True)
            return
        except ConditionFailed:
            continue  # somebody else changed it meanwhile
