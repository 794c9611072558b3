"""How a command finds its cluster: ``--router``, METASTORE_ROUTER, a local cluster's folder,
or the default address."""

from __future__ import annotations

import asyncio
import difflib
import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from cellctl.dev_files import read_json
from cellctl.http_client import fetch_json
from metastore.client import AsyncClient
from metastore.coordination.etcd import EtcdCoordinator
from metastore.coordination.interface import Coordinator
from metastore.errors import ConfigError, CoordinationUnavailable, NotFound, Unavailable
from metastore.topology import TopologyTable

DEFAULT_ROUTER = "http://127.0.0.1:8080"
DEFAULT_DATA = Path("metastore-data")
TIMEOUT_S = 30.0
WAIT_S = 3600.0
#: names told when one is not known
MAX_NAMES = 20
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Where:
    """The cluster that a command is about. ``timeout_s``: how long it may take."""

    router: str | None
    data: Path | None
    etcd: str | None
    timeout_s: float = TIMEOUT_S


def _options(command: Callable[..., Any], timeout_s: float, what: str) -> Callable[..., Any]:
    @functools.wraps(command)
    def with_where(
        router: str | None, data: Path | None, etcd: str | None, timeout_s: float, **more: Any
    ) -> Any:
        return command(where=Where(router, data, etcd, timeout_s), **more)

    options = (
        click.option("--router", envvar="METASTORE_ROUTER", default=None, help="URL of a router."),
        click.option(
            "--data",
            type=click.Path(path_type=Path),
            default=None,
            help="Folder of a local cluster (cellctl dev).",
        ),
        click.option(
            "--etcd", envvar="METASTORE_ETCD", default=None, help="host:port of etcd, separated by commas."
        ),
        click.option(
            "--timeout",
            "timeout_s",
            type=click.FloatRange(0.1, 86_400),
            default=timeout_s,
            show_default=True,
            help=what,
        ),
    )
    wrapped: Callable[..., Any] = with_where
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--router``, ``--data``, ``--etcd`` and ``--timeout``; the command gets ``where``."""
    return _options(command, TIMEOUT_S, "Seconds that an answer may take.")


def waiting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """As ``cluster_options``, of a command that waits until the cluster has done something."""
    return _options(command, WAIT_S, "Seconds to wait until it is done.")


def unknown(kind: str, name: object, known: Iterable[str]) -> NotFound:
    """To be raised: there is nothing of that name; with the nearest one that there is."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, 1)
    hint = f"; did you mean {close[0]!r}" if close else ""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return NotFound(
        f"there is no {kind} {name!r}{hint}; there are {', '.join(names[:MAX_NAMES]) or 'none'}{more}"
    )


def unknown_partition(number: int, partitions: Iterable[int]) -> NotFound:
    """To be raised."""
    known = sorted(partitions)
    span = f"; there are {len(known)}, of {known[0]} to {known[-1]}" if known else ""
    return NotFound(f"there is no partition {number}{span}")


def local_cluster(data: Path | None) -> dict[str, Any] | None:
    found: dict[str, Any] | None = read_json((data or DEFAULT_DATA) / "cluster.json")
    if data is not None and found is None:
        raise ConfigError(f"{data} holds no cluster (no cluster.json)")
    return found


def router_url(where: Where) -> str:
    """The router's URL."""
    if where.router:
        return where.router.rstrip("/")
    local = local_cluster(where.data)
    return str(local["router"]["url"]) if local else DEFAULT_ROUTER


def http_url(address: str) -> str:
    """Of a node's HTTP port, whose address is as its record or an option says it."""
    return address if address.startswith("http") else f"http://{address}"


def ask_each(addresses: Mapping[str, str], ask: Callable[[str], T]) -> dict[str, T]:
    """What ``ask`` says of the URL of each HTTP address, all at once; by name, in order."""
    names = sorted(addresses)
    with ThreadPoolExecutor(max_workers=16) as pool:
        return dict(zip(names, pool.map(lambda n: ask(http_url(addresses[n])), names), strict=True))


def topology(where: Where) -> TopologyTable:
    """The table, from the router or, when it does not answer, from a local cluster's nodes. Raises
    Unavailable."""
    timeout_s = min(where.timeout_s, TIMEOUT_S)
    try:
        return TopologyTable.from_wire(fetch_json(router_url(where) + "/v1/topology", timeout_s))
    except Unavailable:
        local = None if where.router else local_cluster(where.data)
        for node in local["nodes"] if local else []:
            try:
                return TopologyTable.from_wire(fetch_json(node["http"] + "/v1/topology", timeout_s))
            except Unavailable:
                continue
        raise


def make_client(where: Where, deadline_s: float | None = None) -> AsyncClient:
    """A client that goes to the leaders directly; seeds from the local cluster or the router."""
    local = None if where.router else local_cluster(where.data)
    if local:
        seeds = [n["rpc"] for n in local["nodes"] if n["pid"]]
    else:
        seeds = [n.rpc for n in topology(where).nodes.values()]
    if not seeds:
        raise Unavailable("no node is known: is the cluster up, and do --etcd or --node name it?")
    return AsyncClient(seeds, deadline_s=deadline_s or min(where.timeout_s, TIMEOUT_S), name="cellctl")


def etcd_endpoints(where: Where) -> list[str]:
    """``--etcd``, or the local cluster's. Raises ConfigError."""
    if where.etcd:
        return [part.strip() for part in where.etcd.split(",") if part.strip()]
    local = None if where.router else local_cluster(where.data)
    if local is None:
        raise ConfigError("no etcd is given: use --etcd host:port,… or set METASTORE_ETCD")
    return [e["url"].removeprefix("http://") for e in local["etcd"]]


def with_etcd(where: Where, work: Callable[[Coordinator, str], Awaitable[T]]) -> T:
    """Run ``work`` with the cluster's etcd and its name. Raises CoordinationUnavailable when it takes
    longer than ``--timeout``."""

    async def run() -> T:
        coordinator = EtcdCoordinator(etcd_endpoints(where))
        try:
            async with asyncio.timeout(min(where.timeout_s, TIMEOUT_S)):
                return await work(coordinator, topology(where).cluster)
        except TimeoutError:
            raise CoordinationUnavailable(
                f"etcd ({', '.join(etcd_endpoints(where))}) did not answer in {min(where.timeout_s, TIMEOUT_S):g} s"
            ) from None
        finally:
            await coordinator.close()

    return asyncio.run(run())
