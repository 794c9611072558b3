"""How a command finds its cluster: ``--router``, METASTORE_ROUTER, a local cluster's folder,
or the default address."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import orjson

from cellctl.dev_files import read_json
from metastore.client import AsyncClient
from metastore.errors import ConfigError, InvalidRequest, Unavailable
from metastore.topology import TopologyTable

DEFAULT_ROUTER = "http://127.0.0.1:8080"
DEFAULT_DATA = Path("metastore-data")


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--router`` and ``--data``."""
    command = click.option(
        "--data",
        type=click.Path(path_type=Path),
        default=None,
        help="Folder of a local cluster (cellctl dev).",
    )(command)
    return click.option("--router", envvar="METASTORE_ROUTER", default=None, help="URL of a router.")(command)


def local_cluster(data: Path | None) -> dict[str, Any] | None:
    found: dict[str, Any] | None = read_json((data or DEFAULT_DATA) / "cluster.json")
    if data is not None and found is None:
        raise ConfigError(f"{data} holds no cluster (no cluster.json)")
    return found


def router_url(router: str | None, data: Path | None) -> str:
    """The router's URL."""
    if router:
        return router.rstrip("/")
    local = local_cluster(data)
    return str(local["router"]["url"]) if local else DEFAULT_ROUTER


def fetch_json(url: str, timeout_s: float = 5.0, method: str = "GET") -> Any:
    """A JSON document. Raises Unavailable, and InvalidRequest with what a server that refuses says."""
    try:
        request = urllib.request.Request(url, method=method)
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return orjson.loads(response.read())
    except urllib.error.HTTPError as e:
        try:
            detail = str(orjson.loads(e.read())["detail"])
        except (ValueError, KeyError, TypeError):
            detail = f"{url} answers {e.code}"
        raise (InvalidRequest if e.code < 500 else Unavailable)(detail) from None
    except (urllib.error.URLError, OSError, ValueError) as e:
        reason = getattr(e, "reason", e)
        raise Unavailable(f"{url} does not answer: {reason}") from None


def topology(router: str | None, data: Path | None) -> TopologyTable:
    """The table, from the router or, when it is down, from a local cluster's nodes' files."""
    return TopologyTable.from_wire(fetch_json(router_url(router, data) + "/v1/topology"))


def make_client(router: str | None, data: Path | None, deadline_s: float = 30.0) -> AsyncClient:
    """A client that goes to the leaders directly; seeds from the local cluster or the router."""
    local = None if router else local_cluster(data)
    if local:
        seeds = [n["rpc"] for n in local["nodes"] if n["pid"]]
    else:
        seeds = [n.rpc for n in topology(router, data).nodes.values()]
    if not seeds:
        raise Unavailable("no node is known; is the cluster up?")
    return AsyncClient(seeds, deadline_s=deadline_s, name="cellctl")


def etcd_endpoints(router: str | None, data: Path | None, etcd: str | None) -> list[str]:
    """``--etcd``, or the local cluster's. Raises ConfigError."""
    if etcd:
        return [part.strip() for part in etcd.split(",") if part.strip()]
    local = None if router else local_cluster(data)
    if local is None:
        raise ConfigError("which etcd? give --etcd host:port,… or set METASTORE_ETCD")
    return [e["url"].removeprefix("http://") for e in local["etcd"]]
