"""``cellctl kv``: records by hand."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import click

from cellctl.connect import Where, cluster_options, make_client
from cellctl.output import note, output_option, print_data, print_value, say, visible
from metastore.client import AsyncNamespace
from metastore.errors import InvalidRequest
from metastore.history import Version

namespace_option = click.option("--namespace", "-n", default="default", show_default=True, help="Namespace.")


@click.group()
def kv() -> None:
    """Read and write records."""


async def _with(where: Where, namespace: str, work: Any) -> Any:
    async with make_client(where) as client:
        ns: AsyncNamespace = client.namespace(namespace)
        return await work(ns)


@kv.command()
@cluster_options
@namespace_option
@click.option("--consistency", type=click.Choice(["linearizable", "stale"]), default="linearizable")
@output_option
@click.argument("key")
def get(where: Where, namespace: str, consistency: Any, output: str, key: str) -> None:
    """Print a record's value. Example: cellctl kv get -n hello world"""
    record = asyncio.run(_with(where, namespace, lambda ns: ns.get(key, consistency=consistency)))
    if record is None:
        note(f"{namespace}/{key}: there is no such record")
        sys.exit(1)
    if output != "table":
        print_data(
            output,
            {
                "key": key,
                "version": record.version,
                "created": record.created,
                "content_type": record.content_type,
                "value": record.value.decode(errors="replace"),
            },
        )
    else:
        print_value(record.value)


@kv.command()
@cluster_options
@namespace_option
@click.option("--file", "-f", "path", type=click.Path(path_type=Path), help="Take the value from a file.")
@click.option("--content-type", default="", help="Kept with the value.")
@click.option("--if-version", type=int, default=None, help="Only if the record is at this version.")
@click.option("--if-absent", is_flag=True, help="Only if there is no record.")
@click.argument("key")
@click.argument("value", required=False)
def put(
    where: Where,
    namespace: str,
    path: Path | None,
    content_type: str,
    if_version: int | None,
    if_absent: bool,
    key: str,
    value: str | None,
) -> None:
    """Write a record; the value is an argument, a file, or standard input. Example: cellctl kv put k v"""
    if value is not None and path is not None:
        raise InvalidRequest("give the value as an argument or with --file, not both")
    raw = value.encode() if value is not None else path.read_bytes() if path else sys.stdin.buffer.read()
    result = asyncio.run(
        _with(
            where,
            namespace,
            lambda ns: ns.put(key, raw, version=if_version, absent=if_absent, content_type=content_type),
        )
    )
    say(f"version {result.version}")


@kv.command()
@cluster_options
@namespace_option
@click.option("--if-version", type=int, default=None, help="Only if the record is at this version.")
@click.argument("key")
def delete(where: Where, namespace: str, if_version: int | None, key: str) -> None:
    """Delete a record. Example: cellctl kv delete -n hello world"""
    version = asyncio.run(_with(where, namespace, lambda ns: ns.delete(key, version=if_version)))
    if not version:
        note(f"{namespace}/{key}: there was no such record")
        sys.exit(1)
    say(f"version {version}")


@kv.command()
@cluster_options
@namespace_option
@click.option("--if-version", type=int, default=None, help="Only if the record is at this version.")
@click.option("--replace", is_flag=True, help="Replace a record that is under the new key.")
@click.argument("key")
@click.argument("to")
def rename(where: Where, namespace: str, if_version: int | None, replace: bool, key: str, to: str) -> None:
    """Give a record another key, in one step. Example: cellctl kv rename -n hello drafts/1 drafts/2"""
    version = None if if_version is None else Version(if_version)
    say(
        f"version {asyncio.run(_with(where, namespace, lambda ns: ns.rename(key, to, version=version, replace=replace)))}"
    )


@kv.command("list")
@cluster_options
@namespace_option
@click.option("--limit", type=int, default=None, help="At most so many.")
@click.option("--long", "-l", "long_", is_flag=True, help="With version and size.")
@output_option
@click.argument("prefix", default="")
def list_(
    where: Where,
    namespace: str,
    limit: int | None,
    long_: bool,
    output: str,
    prefix: str,
) -> None:
    """List keys. A prefix that ends in / lists that directory, in order.

    Example: cellctl kv list -n files usr/share/doc/
    """

    async def work(ns: AsyncNamespace) -> list[tuple[str, Any]]:
        found: list[tuple[str, Any]] = []
        async for item in ns.scan(prefix):
            found.append(item)
            if limit is not None and len(found) >= limit:
                break
        return found

    rows = asyncio.run(_with(where, namespace, work))
    if output != "table":
        print_data(output, [{"key": k, "version": r.version, "size": len(r.value)} for k, r in rows])
    else:
        for key, record in rows:
            name = visible(key)
            say(f"{record.version:>12} {len(record.value):>9} {name}" if long_ else name)
