"""``cellctl dev``: a whole cluster on this machine, for play and for tests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from cellctl.dev_files import Shape, left_over, load_shape, pick_ports, save_shape
from cellctl.dev_supervisor import Supervisor, ask_supervisor
from cellctl.http_client import answer_of, fetch_json
from cellctl.output import note, output_option, print_data, print_table, say
from metastore.addresses import ANY, check_address
from metastore.errors import ConfigError, MetastoreError
from metastore.logs import setup_logging

SERVE_TIMEOUT_S = 60.0
#: of the first record
FIRST_S = 10.0
data_option = click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("metastore-data"),
    show_default=True,
    help="Data folder.",
)


@click.group()
def dev() -> None:
    """A whole cluster on this machine: real etcd, nodes and a router."""


def _shape(data: Path, cells: int | None, nodes: int | None, partitions: int | None, **more: Any) -> Shape:
    """The folder's shape, or a new one. Flags that contradict what is there are refused."""
    known = load_shape(data)
    if known is None:
        shape = Shape(
            cells or 2, nodes or 3, partitions or 32, more["host"] or "127.0.0.1", more["port"] or 8080
        )
        if not 1 <= shape.cells <= 16 or not 1 <= shape.nodes <= 9:
            raise ConfigError(
                f"{shape.cells} cells of {shape.nodes} nodes: use 1 to 16 cells of 1 to 9 nodes"
            )
        _check_host("host", shape.host)
        names = ["etcd", "etcd-peer"]
        for cell_nodes in shape.node_names().values():
            names += [f"{n}-{kind}" for n in cell_nodes for kind in ("rpc", "http")]
        shape.ports = pick_ports(shape.host, names, {shape.port})
    else:
        shape = known
        for name, wanted in (("cells", cells), ("nodes", nodes), ("partitions", partitions)):
            if wanted is not None and wanted != getattr(shape, name):
                raise ConfigError(
                    f"{data} was made with --{name} {getattr(shape, name)}, not {wanted}; leave the flag out, "
                    "or name another folder with --data"
                )
        if more["port"]:
            shape.port = more["port"]
    if more["listen"] is not None:
        _check_host("listen", more["listen"])
        shape.listen = more["listen"]
    for item in more["settings"]:
        name, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--set {item!r} is not name=value")
        shape.settings[name] = value
    return shape


def _check_host(flag: str, host: str) -> None:
    """Raises ConfigError."""
    if ":" in host:
        raise ConfigError(
            f"--{flag} {host!r:.100}: a local cluster is reached by IPv4, or by a name; without a port"
        )
    listen_by = f"--listen {host}" if host in ANY else "a setting of its own"
    try:
        check_address(f"{host}:1", to_listen=flag == "listen", listen_by=listen_by)
    except ValueError as e:
        raise ConfigError(f"--{flag} {host!r:.100} {e}") from None


@dev.command()
@data_option
@click.option("--cells", type=int, default=None, help="Number of cells.  [default: 2]")
@click.option("--nodes", type=int, default=None, help="Nodes in each cell.  [default: 3]")
@click.option("--partitions", type=int, default=None, help="Partitions, a power of two.  [default: 32]")
@click.option("--port", type=int, default=None, help="Port of the router.  [default: 8080]")
@click.option("--host", default=None, help="Address by which all is reached.  [default: 127.0.0.1]")
@click.option("--listen", default=None, help="Address to listen on, such as 0.0.0.0.  [default: --host]")
@click.option("--detach", is_flag=True, help="Go on in the background once it serves.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of every node.")
def up(
    data: Path,
    cells: int | None,
    nodes: int | None,
    partitions: int | None,
    port: int | None,
    host: str | None,
    listen: str | None,
    detach: bool,
    settings: tuple[str, ...],
) -> None:
    """Start a cluster, or the one that is in the folder. Example: cellctl dev up --cells 2 --detach"""
    data = data.absolute()
    data.mkdir(parents=True, exist_ok=True)
    shape = _shape(data, cells, nodes, partitions, port=port, host=host, listen=listen, settings=settings)
    with contextlib.suppress(ConfigError):
        ask_supervisor(data, "status")
        raise click.ClickException(
            f"a cluster is already up in {data}; see: cellctl dev status --data {data}"
        )
    left = left_over(data)
    if left:
        names = ", ".join(f"{name} (pid {pid})" for name, pid in left)
        raise ConfigError(f"processes of an earlier run in {data} still live: {names}; end them first")
    Supervisor(data, shape).check_ports()
    save_shape(data, shape)
    if detach:
        _detach(data)
        _first_record(data)
        return
    sys.exit(asyncio.run(_foreground(data, shape)))


def _detach(data: Path) -> None:
    """Start the supervisor apart from this terminal and wait until the cluster serves."""
    (data / "logs").mkdir(exist_ok=True)
    ready = data / "ready"
    ready.unlink(missing_ok=True)  # one of a supervisor that was killed says nothing
    with (data / "logs" / "supervisor.log").open("ab") as out:
        start = out.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "cellctl.main", "dev", "supervise", "--data", str(data)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    deadline = time.monotonic() + SERVE_TIMEOUT_S + 60
    while not ready.exists():
        if process.poll() is not None:
            text = (data / "logs" / "supervisor.log").read_bytes()[start:].decode(errors="replace").strip()
            raise ConfigError(text.splitlines()[-1] if text else "the supervisor ended at once")
        if time.monotonic() > deadline:
            raise ConfigError(
                f"the cluster does not serve after {SERVE_TIMEOUT_S + 60:.0f} s; see {data}/logs"
            )
        time.sleep(0.05)


@dev.command(hidden=True)
@data_option
def supervise(data: Path) -> None:
    """The supervisor itself, detached."""
    shape = load_shape(data)
    if shape is None:
        raise ConfigError(f"{data} holds no cluster")
    sys.exit(asyncio.run(_supervise(data, shape)))


async def _supervise(data: Path, shape: Shape, on_ready: Any = None) -> int:
    setup_logging("info")
    ready = data / "ready"
    ready.unlink(missing_ok=True)
    supervisor = Supervisor(data, shape)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, supervisor.down.set)
    watcher = loop.create_task(supervisor.watch_children())
    down = loop.create_task(supervisor.down.wait())
    code = 0
    try:
        rising = loop.create_task(_rise(supervisor))
        await asyncio.wait({rising, down}, return_when=asyncio.FIRST_COMPLETED)
        if rising.done():
            rising.result()
            ready.write_text(str(os.getpid()))
            if on_ready is not None:
                await asyncio.to_thread(on_ready)
            await down
        else:
            rising.cancel()
    except MetastoreError as e:
        note(f"cellctl: {e.message}")
        code = 2
    finally:
        ready.unlink(missing_ok=True)
        await supervisor.stop()
        watcher.cancel()
        down.cancel()
    return code


async def _rise(supervisor: Supervisor) -> None:
    await supervisor.up()
    deadline = time.monotonic() + SERVE_TIMEOUT_S
    while not await asyncio.to_thread(_serves, supervisor.router_url, supervisor.shape.partitions):
        dead = [c.name for c in supervisor.children.values() if c.state == "dead"]
        if dead:
            raise ConfigError(f"{dead[0]} ended by itself; see {supervisor.data}/logs/{dead[0]}.log")
        if time.monotonic() > deadline:
            raise ConfigError(
                f"the cluster does not serve after {SERVE_TIMEOUT_S:.0f} s; see {supervisor.data}/logs"
            )
        await asyncio.sleep(0.05)


def _serves(url: str, partitions: int) -> bool:
    """Whether the router is ready and every partition has a leader that serves."""
    try:
        return int(fetch_json(f"{url}/readyz?leaders=true")["partitions_led"]) >= partitions
    except (MetastoreError, KeyError, ValueError, TypeError):
        return False


async def _foreground(data: Path, shape: Shape) -> int:
    note(f"starting {shape.cells} cells of {shape.nodes} nodes, {shape.partitions} partitions, in {data} …")
    code = await _supervise(data, shape, lambda: _first_record(data, foreground=True))
    if code == 0:
        note("stopped; the same command brings the same data back")
    return code


def _first_record(data: Path, foreground: bool = False) -> None:
    """Write and read a first record through the router, and say what to try next."""
    shape = load_shape(data)
    assert shape is not None
    url = f"http://{shape.host}:{shape.port}"
    first, text = f"{url}/v1/kv/hello/world", {"Content-Type": "text/plain"}
    with answer_of(first, FIRST_S, method="PUT", body=b"it works", headers=text) as response:
        version = response.headers["ETag"]
    with answer_of(first, FIRST_S) as response:
        value = response.read().decode()
    folder = "" if data.name == "metastore-data" and data.parent == Path.cwd() else f" --data {data}"
    tool = "cellctl"
    if shutil.which(tool) is None:  # not on the PATH: name it as it can be called from here
        tool = os.path.relpath(Path(sys.executable).parent / tool)
    lost = Supervisor(data, shape).lost()
    lines = [
        *([f"{lost}; see what its records would be: {tool} control rebuild{folder}", ""] if lost else []),
        f"the cluster serves: wrote hello/world, version {version}, and read back {value!r}",
        "",
        f"  router      {url}    (try {url}/v1/topology)",
        f"  etcd        http://{shape.address('etcd')}",
        f"  processes   {data}/cluster.json, logs in {data}/logs",
        "",
        "try next:",
        f"  curl -X PUT --data-binary 'hello' {url}/v1/kv/notes/today",
        f"  curl -i {url}/v1/kv/notes/today",
        f"  {tool} import tree /usr/share/doc --namespace files{folder}",
        f"  {tool} kv list --namespace files usr/share/doc/{folder}",
        f"  {tool} status{folder}",
        f"  {tool} dev kill c1n1{folder}    and see that all goes on; then: {tool} dev restart c1n1{folder}",
        "",
        "Ctrl-C stops it all" if foreground else f"{tool} dev down{folder}    stops it all",
    ]
    say("\n".join(lines))


@dev.command()
@data_option
def down(data: Path) -> None:
    """Stop the cluster; its data stays. Example: cellctl dev down"""
    data = data.absolute()
    ask_supervisor(data, "down")
    deadline = time.monotonic() + 60
    while (data / "dev.sock").exists():
        if time.monotonic() > deadline:
            raise ConfigError(f"the cluster in {data} did not stop; see {data}/logs/supervisor.log")
        time.sleep(0.05)
    note("stopped")


@dev.command("status")
@data_option
@output_option
def dev_status(data: Path, output: str) -> None:
    """The cluster's processes. Example: cellctl dev status -o json"""
    rows = ask_supervisor(data.absolute(), "status")
    if output != "table":
        print_data(output, rows)
    else:
        columns = ("name", "role", "cell", "state", "pid", "exit")
        print_table(columns, [[row[c] or None for c in columns] for row in rows])
    if any(row["state"] != "running" for row in rows):
        sys.exit(1)


def _verb(name: str, text: str, done: str) -> None:
    @dev.command(name, help=f"{text} Example: cellctl dev {name} c1n1")
    @data_option
    @click.argument("names", nargs=-1, required=True)
    def command(data: Path, names: tuple[str, ...]) -> None:
        ask_supervisor(data.absolute(), name, list(names))
        note(f"{done}: {', '.join(names)}")


_verb("kill", "kill -9 a node, `router` or `etcd`; it stays dead.", "killed")
_verb("pause", "Pause (SIGSTOP) a process.", "paused")
_verb("resume", "Resume (SIGCONT) a paused process.", "resumed")


@dev.command()
@data_option
@click.option("--graceful", is_flag=True, help="SIGTERM first: leaders are handed over.")
@click.argument("names", nargs=-1, required=True)
def restart(data: Path, graceful: bool, names: tuple[str, ...]) -> None:
    """Restart a process, or start a dead one. Example: cellctl dev restart c1n1"""
    ask_supervisor(data.absolute(), "restart", list(names), graceful)
    note(f"restarted: {', '.join(names)}")


@dev.command("add-cell")
@data_option
@click.option(
    "--nodes", type=click.IntRange(1, 9), default=3, show_default=True, help="Nodes of the new cell."
)
def add_cell(data: Path, nodes: int) -> None:
    """Start the nodes of one more cell, empty. Example: cellctl dev add-cell --nodes 3

    They hold nothing until `cellctl rebalance apply` moves partitions there."""
    fresh = ask_supervisor(data.absolute(), "add-cell", [str(nodes)])
    note(f"started: {', '.join(fresh)}")


@dev.command("add-node")
@data_option
@click.argument("cell")
@click.option("--count", type=click.IntRange(1, 9), default=1, show_default=True, help="How many.")
def add_node(data: Path, cell: str, count: int) -> None:
    """Start one more node in a cell, empty. Example: cellctl dev add-node c1"""
    fresh = ask_supervisor(data.absolute(), "add-node", [cell, str(count)])
    note(f"started: {', '.join(fresh)}")
