"""The files of a local cluster: ``dev.json`` (its shape and ports), ``cluster.json`` (its
processes, always true), and what tells a left-over process from a new one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from metastore.decoding import Undecodable, load_json, read_json_file
from metastore.errors import ConfigError

FORMAT = 1
#: within so many seconds a process listens on the port that was picked for it
PICKED_S: Final = 120.0


@dataclass(slots=True)
class Shape:
    """What a local cluster was made with; kept, so that a second ``up`` is the same cluster."""

    cells: int
    nodes: int
    partitions: int
    host: str
    port: int
    ports: dict[str, int] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    #: process -> address of its own, and what its command line begins with (tests of the network)
    hosts: dict[str, str] = field(default_factory=dict)
    wrap: dict[str, list[str]] = field(default_factory=dict)
    node_module: str = "metastore.node.main"
    cluster: str = "dev"
    #: cell -> nodes that came after the cluster was made
    added: dict[str, list[str]] = field(default_factory=dict)
    #: what nodes and the router listen on, where that is another than ``host``
    listen: str = ""
    format: int = FORMAT

    def address(self, name: str) -> str:
        """``host:port`` of a named port: ``etcd``, ``etcd-peer``, ``c1n1-rpc``, ``c1n1-http``."""
        return f"{self.hosts.get(name.split('-')[0], self.host)}:{self.ports[name]}"

    def listening(self, name: str) -> str:
        """Where a named port is served."""
        return f"{self.listen}:{self.ports[name]}" if self.listen else self.address(name)

    def node_names(self) -> dict[str, list[str]]:
        """Cell -> its nodes: ``c1`` -> ``c1n1``, ``c1n2``, …, and those added since."""
        names = {f"c{c}": [f"c{c}n{n}" for n in range(1, self.nodes + 1)] for c in range(1, self.cells + 1)}
        for cell, added in self.added.items():
            names[cell] = names.get(cell, []) + added
        return names

    def first_names(self) -> dict[str, list[str]]:
        """What the cluster was made of."""
        first = {
            cell: [n for n in names if n not in self.added.get(cell, [])]
            for cell, names in self.node_names().items()
        }
        return {cell: names for cell, names in first.items() if names}

    def add(self, cell: str | None, count: int) -> list[str]:
        """Nodes for a cell, or (None) for a new one; their names. Ports are picked."""
        names = self.node_names()
        if cell is None:
            cell = f"c{len(names) + 1}"
        elif cell not in names:
            raise ConfigError(f"there is no cell {cell!r}; the cells are {', '.join(names)}")
        first = len(names.get(cell, [])) + 1
        fresh = [f"{cell}n{n}" for n in range(first, first + count)]
        ports = [f"{n}-{kind}" for n in fresh for kind in ("rpc", "http")]
        self.ports |= pick_ports(self.host, ports, {self.port, *self.ports.values()})
        self.added.setdefault(cell, []).extend(fresh)
        return fresh


def write_atomically(path: Path, value: Any) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n")
    temporary.rename(path)


def read_json(path: Path) -> Any:
    try:
        return read_json_file(path)
    except FileNotFoundError:
        return None
    except Undecodable as e:
        raise ConfigError(f"{path} is damaged: {e}") from None


def load_shape(data: Path) -> Shape | None:
    """Raises ConfigError for the format of another version."""
    raw = read_json(data / "dev.json")
    if raw is None:
        return None
    if raw.get("format") != FORMAT:
        raise ConfigError(
            f"{data} has data format {raw.get('format')!r}; this version reads {FORMAT}: "
            "use the version that made it, or name another folder with --data"
        )
    return Shape(**raw)


def save_shape(data: Path, shape: Shape) -> None:
    write_atomically(data / "dev.json", asdict(shape))


def port_is_free(host: str, port: int) -> bool:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _lately_picked() -> Iterator[dict[str, float]]:
    """Port -> when it was picked, of all clusters that this user starts on this machine; one at a time picks."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    path = Path(tempfile.gettempdir()) / f"metastore-ports-{os.getuid()}.json"
    with os.fdopen(os.open(path, flags, 0o600), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        now = time.time()
        found: dict[str, float] = {}
        with contextlib.suppress(Undecodable, AttributeError, TypeError):  # a hint: damage costs nothing
            found = {p: at for p, at in load_json(file.read()).items() if abs(now - at) < PICKED_S}
        yield found
        file.seek(0)
        file.truncate()
        file.write(orjson.dumps(found))


def pick_ports(host: str, names: list[str], taken: set[int]) -> dict[str, int]:
    """A free port for each name, outside the range that outgoing connections use. Another cluster that starts at the
    same time gets others: what was picked lately is not free, though nobody listens on it yet."""
    found: dict[str, int] = {}
    port = 20000 + os.getpid() * 37 % 10000
    with _lately_picked() as picked:
        for name in names:
            while True:
                port = port + 1 if port < 31999 else 20000
                if port not in taken and str(port) not in picked and port_is_free(host, port):
                    break
            taken.add(port)
            picked[str(port)] = time.time()
            found[name] = port
    return found


def process_start(pid: int) -> int | None:
    """When ``pid`` started (clock ticks since boot), None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] == "Z" else int(fields[19])


def process_of_folder(pid: int | None, data: Path) -> bool:
    """Whether ``pid`` runs and its command line names this folder."""
    if not pid or process_start(pid) is None:
        return False
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return False
    return str(data) in command


def left_over(data: Path) -> list[tuple[str, int]]:
    """Processes of an earlier run of this folder that still live."""
    cluster = read_json(data / "cluster.json")
    if not cluster:
        return []
    entries = [("router", cluster["router"])]
    entries += [(e["name"], e) for e in cluster["etcd"]] + [(n["name"], n) for n in cluster["nodes"]]
    return [(name, e["pid"]) for name, e in entries if process_of_folder(e["pid"], data)]
