"""``cellctl namespace``: policies of namespaces, and how much each holds."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click

from cellctl.connect import (
    Where,
    ask_each,
    cluster_options,
    etcd_endpoints,
    make_client,
    topology,
)
from cellctl.http_client import fetch_json
from cellctl.output import note, output_option, print_data, print_table, say
from metastore.admin.errors import as_callers_see
from metastore.admin.namespaces import NamespaceAdmin, NamespaceRecord
from metastore.coordination.etcd import EtcdCoordinator
from metastore.errors import ConditionFailed, InvalidRequest, MetastoreError, NotFound
from metastore.layout import Layout
from metastore.namespaces import DEFAULT, MAX_QUOTA, Policy
from metastore.topology import TopologyTable

DEADLINE_S = 30.0
USAGE_TIMEOUT_S = 3.0
_UNITS = {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
T = TypeVar("T")


def duration(text: str) -> int:
    """``90``, ``90s``, ``500ms``, ``10m``, ``2h``, ``7d``: in milliseconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)", text)
    if found is None:
        raise click.BadParameter(f"{text!r} is not a duration such as 90s, 10m, 2h, 7d or 0")
    return round(float(found[1]) * _UNITS[found[2]] * 1000)


def duration_text(ms: int) -> str:
    """As ``duration`` takes it."""
    if not ms:
        return "-"
    for unit in ("d", "h", "m", "s"):
        size = round(_UNITS[unit] * 1000)
        if ms % size == 0:
            return f"{ms // size}{unit}"
    return f"{ms}ms"


def policy_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What may change at any time; None = not given."""
    options = (
        click.option(
            "--default-ttl", type=duration, default=None, help="Of records without one, e.g. 10m; 0 = none."
        ),
        click.option("--max-records", type=click.IntRange(0, MAX_QUOTA), default=None, help="0 = no bound."),
        click.option("--max-bytes", type=click.IntRange(0, MAX_QUOTA), default=None, help="0 = no bound."),
        click.option(
            "--require-condition/--no-require-condition",
            default=None,
            help="Whether writes must carry a condition.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


async def with_admin(
    where: Where,
    work: Callable[[NamespaceAdmin, float], Awaitable[T]],
) -> T:
    endpoints = etcd_endpoints(where)
    async with make_client(where, DEADLINE_S) as client:
        coordinator = EtcdCoordinator(endpoints)
        try:
            layout = Layout(client.dispatcher.table.cluster)
            admin = NamespaceAdmin(coordinator, layout, client.dispatcher)
            return await work(admin, asyncio.get_running_loop().time() + DEADLINE_S)
        except MetastoreError as e:
            raise as_callers_see(e) from None
        finally:
            await coordinator.close()


def usage(table: TopologyTable) -> tuple[dict[str, list[int]], list[str]]:
    """Namespace -> [records, bytes] over all partitions, and the nodes that did not tell theirs."""

    def ask(url: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = fetch_json(f"{url}/v1/usage", USAGE_TIMEOUT_S)
            return found
        except MetastoreError:
            return None

    sums: dict[str, list[int]] = {}
    silent: list[str] = []
    answers = ask_each({name: record.http for name, record in table.nodes.items()}, ask)
    for name, told in answers.items():
        if told is None or told["more"]:
            silent.append(name)
        for namespace, (records, size) in (told or {"namespaces": {}})["namespaces"].items():
            held = sums.setdefault(namespace, [0, 0])
            held[0] += records
            held[1] += size
    return sums, silent


def _row(name: str, policy: Policy, held: list[int], own: bool) -> dict[str, Any]:
    plain = policy.to_plain()
    return {"name": name, **plain, "own_policy": own, "records": held[0], "bytes": held[1]}


def _print_rows(rows: list[dict[str, Any]]) -> None:
    print_table(
        (
            "namespace",
            "policy",
            "routing",
            "default ttl",
            "max records",
            "max bytes",
            "conditions",
            "records",
            "bytes",
        ),
        [
            (
                row["name"],
                ("own" if row["ready"] else "closed") if row["own_policy"] else "default",
                row["routing"],
                duration_text(row["default_ttl_ms"]),
                f"{row['max_records']:,}" if row["max_records"] else None,
                f"{row['max_bytes']:,}" if row["max_bytes"] else None,
                "required" if row["require_condition"] else None,
                f"{row['records']:,}",
                f"{row['bytes']:,}",
            )
            for row in rows
        ],
    )


@click.group()
def namespace() -> None:
    """Namespaces: their policies, and how much they hold."""


@namespace.command("list")
@cluster_options
@output_option
def list_(where: Where, output: str) -> None:
    """Every namespace that holds something or has a policy. Example: cellctl namespace list"""
    table = topology(where)
    held, silent = usage(table)
    rows = [
        _row(name, table.policy(name), held.get(name, [0, 0]), name in table.namespaces)
        for name in sorted({*held, *table.namespaces})
    ]
    if output != "table":
        print_data(output, {"namespaces": rows, "incomplete": silent})
    else:
        _print_rows(rows)
    if silent:
        note(f"records and bytes are not complete: {', '.join(silent)} did not answer with all")
        sys.exit(1)


@namespace.command()
@cluster_options
@output_option
@click.argument("name")
def show(where: Where, output: str, name: str) -> None:
    """One namespace. Example: cellctl namespace show files"""
    table = topology(where)
    held, silent = usage(table)
    row = _row(name, table.policy(name), held.get(name, [0, 0]), name in table.namespaces)
    if output != "table":
        print_data(output, row)
    else:
        _print_rows([row])
    if silent:
        note(f"records and bytes are not complete: {', '.join(silent)} did not answer with all")
        sys.exit(1)


def _given(**members: Any) -> dict[str, Any]:
    members["default_ttl_ms"] = members.pop("default_ttl")
    return {name: value for name, value in members.items() if value is not None}


@namespace.command()
@cluster_options
@click.option(
    "--routing", default=None, help="parent, key or segments:N; fixed from now on.  [default: parent]"
)
@policy_options
@click.argument("name")
def create(where: Where, routing: str | None, name: str, **members: Any) -> None:
    """Give a namespace a policy. Example: cellctl namespace create sessions --default-ttl 30m"""
    wanted = _given(**members) | ({"routing": routing} if routing else {})
    Policy(**wanted)  # before anybody is asked

    async def work(admin: NamespaceAdmin, until: float) -> NamespaceRecord:
        try:
            return (await admin.put(name, wanted, until, absent=True))[0]
        except ConditionFailed:
            raise InvalidRequest(
                f"namespace {name} has a policy already; change it with: cellctl namespace set {name}"
            ) from None

    record = asyncio.run(with_admin(where, work))
    say(f"namespace {name} made at revision {record.revision}")


@namespace.command("set")
@cluster_options
@policy_options
@click.argument("name")
def set_(where: Where, name: str, **members: Any) -> None:
    """Change what is given and leave the rest. Example: cellctl namespace set files --max-records 0"""
    wanted = _given(**members)
    if not wanted:
        raise InvalidRequest("nothing to change; see: cellctl namespace set --help")

    async def work(admin: NamespaceAdmin, until: float) -> tuple[NamespaceRecord, bool]:
        found = await admin.get(name)
        before = (DEFAULT if found is None else found.policy).to_plain()
        del before["ready"]
        if found is not None and found.policy.ready and before == before | wanted:
            return found, False
        revision = 0 if found is None else found.revision
        return (await admin.put(name, before | wanted, until, revision=revision))[0], True

    record, changed = asyncio.run(with_admin(where, work))
    if not changed:
        note(f"namespace {name} has that policy already")
        sys.exit(1)
    say(f"namespace {name} is at revision {record.revision}")


@namespace.command()
@cluster_options
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.argument("name")
def delete(where: Where, yes: bool, name: str) -> None:
    """Take a namespace's policy away; its records stay. Example: cellctl namespace delete sessions --yes"""
    if not yes:
        click.confirm(f"namespace {name} will have the default policy; its records stay. Go on?", abort=True)

    async def work(admin: NamespaceAdmin, until: float) -> bool:
        try:
            await admin.delete(name, until)
        except NotFound:
            return False
        return True

    if not asyncio.run(with_admin(where, work)):
        note(f"namespace {name} has no policy of its own")
        sys.exit(1)
    say(f"namespace {name} has the default policy")
