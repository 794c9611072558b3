"""Configuration: one documented dataclass per process.

Precedence: command line flag, then environment, then TOML file (``--config``), then default.
Unknown names are refused, and settings that contradict each other are told with what to change.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, get_type_hints

from metastore.addresses import check_address, check_name
from metastore.errors import ConfigError
from metastore.namespaces import MAX_NAMESPACES, MOST_NAMESPACES

T = TypeVar("T", bound="BaseConfig")
MAX_ZONE: Final = 255
#: the most that grant_ms may be, in any configuration there was
MAX_GRANT_MS: Final = 60_000


def setting(default: Any, text: str, low: float | None = None, high: float | None = None) -> Any:
    """A field with its documentation and bounds; ``default`` ... = required."""
    metadata = {"help": text, "low": low, "high": high}
    if default is ...:
        return dataclasses.field(metadata=metadata)
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """Bounds are checked on construction. Raises ConfigError."""

    log_level: str = setting("info", "debug, info, warning or error")
    log_format: str = setting("human", "human or json")

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value, low, high = getattr(self, f.name), f.metadata["low"], f.metadata["high"]
            if low is not None and value < low:
                raise ConfigError(f"{f.name} = {value} is below {low}: {f.metadata['help']}")
            if high is not None and value > high:
                raise ConfigError(f"{f.name} = {value} is above {high}: {f.metadata['help']}")
        self.check()

    def check(self) -> None:
        """Checks across settings."""


@dataclass(frozen=True, kw_only=True)
class NodeConfig(BaseConfig):
    """A storage node (``metastore-node``)."""

    cluster: str = setting("metastore", "name of the cluster; all its processes share it")
    cell: str = setting(..., "name of the cell this node belongs to")
    node: str = setting(..., "name of this node, unique in the cluster")
    data_dir: str = setting(..., "data folder; locked while the node runs")
    rpc: str = setting(..., "host:port by which clients and peers reach this node")
    http: str = setting(
        ..., "host:port by which tools reach the node's own HTTP: /livez /readyz /v1/status /metrics"
    )
    rpc_listen: str = setting(
        "", "host:port to serve clients and peers on, such as 0.0.0.0:7400; empty = rpc"
    )
    http_listen: str = setting("", "host:port to serve the node's own HTTP on; empty = http")
    etcd: list[str] = setting(["127.0.0.1:2379"], "etcd endpoints, host:port, separated by commas")
    zone: str = setting("", "failure zone; replicas spread over zones")
    lease_ttl_s: float = setting(5.0, "time to live of the node's etcd lease, in seconds", 1, 600)
    heartbeat_ms: int = setting(150, "how often a leader sends heartbeats to each peer", 10, 10_000)
    grant_ms: int = setting(
        900, "how long an acknowledged heartbeat lets a leader read locally (R8)", 30, MAX_GRANT_MS
    )
    suspect_after_ms: int = setting(1000, "silence after which a leader counts as lost (R9)", 30, 60_000)
    settle_ms: int = setting(50, "step between replicas that would campaign, by their order (R9)", 1, 10_000)
    clock_rate_error_ppm: int = setting(
        500, "how far clock rates may differ, in parts per million (R4)", 0, 100_000
    )
    claim_without_etcd: bool = setting(
        True, "with etcd away and a leader lost, the others name one among themselves (R16)"
    )
    leader_spread_s: float = setting(
        10.0, "how often a node hands one partition to a replica that leads two fewer; 0 = never", 0, 86_400
    )
    max_moves: int = setting(4, "partitions that get new replicas at a time, of those led here", 1, 1024)
    tick_ms: int = setting(20, "how often time-driven work is looked at", 1, 1000)
    segment_mib: int = setting(32, "size of one log segment", 18, 1024)
    log_retention_mib: int = setting(
        128, "log kept for followers that lag; beyond it they get a snapshot", 36, 1 << 20
    )
    overlay_mib: int = setting(
        64, "committed changes not in the state yet; beyond it writers wait", 1, 1 << 16
    )
    read_cache_mib: int = setting(
        32, "records lately read from the state, kept in memory; 0 = none", 0, 1 << 20
    )
    map_size_gib: int = setting(
        64, "upper bound of the state's size on disk (address space only)", 1, 1 << 14
    )
    disk_low_mib: int = setting(
        512,
        "low-water mark: with less than this to add, on the disk or in the state, writes that add data get 507; "
        "they are accepted again from a quarter more; 0 = none",
        0,
        1 << 30,
    )
    disk_reserve_mib: int = setting(
        64,
        "size of a file in the data folder that is deleted when the disk is nearly full; at least segment_mib + 16 is "
        "used; 0 = none",
        0,
        1 << 20,
    )
    snapshot_mib_s: int = setting(
        64, "rate of snapshots to other nodes, in MiB a second, all together", 1, 1 << 16
    )
    scrub_mib_s: int = setting(
        1,
        "how much of state and log is read again a second, to find rot before the copy is needed; 0 = none",
        0,
        1 << 16,
    )
    snapshot_min_kib_s: int = setting(
        256,
        "a receiver that reads a snapshot more slowly than this is sent no more of it; 0 = no lower bound",
        0,
        1 << 20,
    )
    snapshot_max_s: float = setting(
        3600.0, "how long a snapshot may take: it keeps the state's file from reusing its pages", 10, 604_800
    )
    max_pending_writes: int = setting(8192, "writes that may wait per partition; beyond it 503", 1, 1 << 20)
    max_watches: int = setting(50_000, "open watches; beyond it they are refused", 1, 1 << 20)
    max_connections: int = setting(4096, "client connections; beyond it they are refused", 1, 1 << 20)
    client_patience_s: float = setting(
        20.0,
        "time for a hello, for the rest of a frame, and for a client to read its answers; then it is disconnected",
        0.1,
        3600,
    )
    client_memory_mib: int = setting(
        128,
        "unfinished frames and unread answers of all clients, and as much again for writes that wait",
        16,
        1 << 16,
    )

    def check(self) -> None:
        if self.grant_ms < 3 * self.heartbeat_ms:
            raise ConfigError(
                f"grant_ms = {self.grant_ms} is below 3 heartbeats of {self.heartbeat_ms} ms: one late heartbeat "
                f"would stop local reads; raise grant_ms to {3 * self.heartbeat_ms} or lower heartbeat_ms"
            )
        if self.suspect_after_ms < 3 * self.heartbeat_ms:
            raise ConfigError(
                f"suspect_after_ms = {self.suspect_after_ms} is below 3 heartbeats of {self.heartbeat_ms} ms: healthy "
                f"leaders would be replaced; raise it to {3 * self.heartbeat_ms} or lower heartbeat_ms"
            )
        if self.lease_ttl_s * 1000 < 3 * self.heartbeat_ms or self.lease_ttl_s * 1000 < self.suspect_after_ms:
            raise ConfigError(
                f"lease_ttl_s = {self.lease_ttl_s} is shorter than 3 heartbeats or than suspect_after_ms = "
                f"{self.suspect_after_ms}: leases would lapse before a leader is even suspected; raise lease_ttl_s"
            )
        if self.tick_ms > self.heartbeat_ms:
            raise ConfigError(
                f"tick_ms = {self.tick_ms} is above heartbeat_ms = {self.heartbeat_ms}; lower tick_ms"
            )
        if self.log_retention_mib < 2 * self.segment_mib:
            raise ConfigError(
                f"log_retention_mib = {self.log_retention_mib} holds less than two segments of {self.segment_mib} MiB; "
                f"raise it to {2 * self.segment_mib}"
            )
        for name in ("cluster", "cell", "node"):
            _check_name(name, getattr(self, name))
        for name in ("rpc", "http"):
            _check_address(name, getattr(self, name), listen=f"{name}_listen")
            if listen := getattr(self, f"{name}_listen"):
                _check_address(f"{name}_listen", listen, to_listen=True)
        if len(self.zone) > MAX_ZONE or not self.zone.isprintable():
            raise ConfigError(f"zone = {self.zone!r:.80} is not up to {MAX_ZONE} printable characters")
        _check_endpoints("etcd", self.etcd)


@dataclass(frozen=True, kw_only=True)
class RouterConfig(BaseConfig):
    """A router (``metastore-router``)."""

    cluster: str = setting("metastore", "name of the cluster")
    http: str = setting("127.0.0.1:8080", "host:port to serve HTTP on; 0.0.0.0:8080 = on all interfaces")
    etcd: list[str] = setting(["127.0.0.1:2379"], "etcd endpoints, host:port, separated by commas")
    nodes: list[str] = setting([], "host:port of nodes to learn the topology from when etcd does not answer")
    snapshot_path: str = setting("", "file that keeps the topology for a start without etcd; empty = none")
    deadline_s: float = setting(5.0, "longest time a request may take", 0.05, 120)
    max_connections: int = setting(
        16_384, "open HTTP connections; beyond it the longest idle ends", 1, 1 << 20
    )
    max_inflight: int = setting(3072, "requests under way; beyond it 503", 1, 1 << 20)
    max_inflight_per_cell: int = setting(
        2048, "operations under way to one cell, those of batches too; beyond it 503", 1, 1 << 20
    )
    max_held_mib: int = setting(512, "bodies and answers in memory; beyond it 503", 16, 1 << 16)
    max_cell_mib: int = setting(128, "values on their way to one cell; beyond it 503", 4, 1 << 16)
    max_watches: int = setting(4096, "open watches; beyond it 503", 1, 1 << 20)
    max_watches_per_cell: int = setting(
        2048, "open watches that follow one cell, those of whole namespaces too; beyond it 503", 1, 1 << 20
    )
    max_namespaces: int = setting(
        MAX_NAMESPACES, "namespaces with a policy; beyond it 507 for a new one", 1, MOST_NAMESPACES
    )
    client_patience_s: float = setting(
        20.0, "time for a request's head, and for the end of a connection", 0.1, 3600
    )
    write_timeout_s: float = setting(
        30.0, "how long a client may take to read what waits for it before it is disconnected", 0.1, 600
    )
    drain_s: float = setting(
        0.0,
        "on SIGTERM, how long to go on serving while /readyz sends load balancers to other routers",
        0,
        600,
    )

    def check(self) -> None:
        _check_name("cluster", self.cluster)
        _check_address("http", self.http, to_listen=True)
        _check_endpoints("etcd", self.etcd)
        if self.nodes:
            _check_endpoints("nodes", self.nodes)
        for name in ("max_inflight", "max_watches"):
            if getattr(self, f"{name}_per_cell") > getattr(self, name):
                raise ConfigError(
                    f"{name}_per_cell = {getattr(self, f'{name}_per_cell')} is above {name} = {getattr(self, name)}: "
                    "one cell could use up everything; lower it"
                )
        if self.max_cell_mib > self.max_held_mib:
            raise ConfigError(
                f"max_cell_mib = {self.max_cell_mib} is above max_held_mib = {self.max_held_mib}: "
                "one cell could use up everything; lower it"
            )


def _check_address(name: str, address: str, *, to_listen: bool = False, listen: str = "") -> None:
    """``listen``: the setting that says where to listen, if there is one of its own."""
    listen_by = f"{listen} = {address}" if listen else "a setting of its own"
    try:
        check_address(address, to_listen=to_listen, listen_by=listen_by)
    except ValueError as e:
        raise ConfigError(f"{name} = {address!r:.300} {e}") from None


def _check_endpoints(name: str, addresses: Sequence[str]) -> None:
    if not addresses:
        raise ConfigError(f"{name} is empty: give at least one host:port")
    for address in addresses:
        _check_address(name, address)


def _check_name(setting: str, name: str) -> None:
    try:
        check_name(name)
    except ValueError as e:
        raise ConfigError(f"{setting} = {name!r:.300} {e}") from None


def _convert(name: str, kind: Any, raw: Any) -> Any:
    try:
        if kind == list[str]:
            items = raw.split(",") if isinstance(raw, str) else list(raw)
            return [str(item).strip() for item in items if str(item).strip()]
        if kind is bool:
            return {"true": True, "false": False}[str(raw).lower()]
        if kind is int and isinstance(raw, float | bool):
            raise ValueError
        return kind(raw)
    except (TypeError, ValueError, KeyError):
        wanted = (
            "a list"
            if kind == list[str]
            else {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "text")
        )
        raise ConfigError(f"{name} = {raw!r} is not {wanted}") from None


def _refuse_unknown(name: str, known: Sequence[str], where: str) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
        raise ConfigError(f"unknown setting {name!r} {where}{hint}")


def _from_flags(argv: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    flags: dict[str, str] = {}
    rest = list(argv)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            raise ConfigError(f"unexpected argument {flag!r}; settings are given as --name value")
        name, equals, value = flag[2:].partition("=")
        name = name.replace("-", "_")
        _refuse_unknown(name, [*known, "config", "help"], "on the command line")
        if not equals:
            if not rest and name != "help":
                raise ConfigError(f"--{name} needs a value")
            value = rest.pop(0) if rest else ""
        flags[name] = value
    return flags


def load_config(cls: type[T], argv: Sequence[str], env_prefix: str, section: str) -> T:
    """The configuration from ``argv``, the environment (``PREFIX_NAME``) and a TOML file with a
    table ``[section]``. Raises ConfigError; ``--help`` prints the settings and exits."""
    hints = get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    flags = _from_flags(argv, list(fields))
    if "help" in flags:
        print(describe(cls, env_prefix))
        raise SystemExit(0)
    raw: dict[str, Any] = {}
    path = flags.pop("config", None) or os.environ.get(f"{env_prefix}_CONFIG")
    if path:
        try:
            with open(path, "rb") as f:
                table = tomllib.load(f).get(section, {})
        except (OSError, tomllib.TOMLDecodeError) as e:
            raise ConfigError(f"configuration file {path}: {e}") from None
        for name in table:
            _refuse_unknown(name, list(fields), f"in [{section}] of {path}")
        raw.update(table)
    for name in fields:
        value = os.environ.get(f"{env_prefix}_{name.upper()}")
        if value is not None:
            raw[name] = value
    raw.update(flags)
    values = {name: _convert(name, hints[name], value) for name, value in raw.items()}
    missing = [
        name
        for name, f in fields.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"missing settings: {', '.join('--' + m.replace('_', '-') for m in missing)}")
    return cls(**values)


def describe(cls: type[BaseConfig], env_prefix: str) -> str:
    """Every setting as a Markdown table."""
    hints = get_type_hints(cls)
    lines = ["| setting | environment | type | default | bounds | meaning |", "|---|---|---|---|---|---|"]
    for f in sorted(dataclasses.fields(cls), key=lambda f: f.name):
        if f.default is not dataclasses.MISSING:
            default = f"`{f.default}`" if f.default != "" else "empty"
        elif f.default_factory is not dataclasses.MISSING:
            default = f"`{','.join(f.default_factory())}`" if f.default_factory() else "empty"
        else:
            default = "required"
        kind = "list" if hints[f.name] == list[str] else hints[f.name].__name__
        low, high = f.metadata["low"], f.metadata["high"]
        bounds = f"{low} to {high}" if low is not None else ""
        lines.append(
            f"| `{f.name}` | `{env_prefix}_{f.name.upper()}` | {kind} | {default} | {bounds} | {f.metadata['help']} |"
        )
    return "\n".join(lines)
