"""The supervisor of a local cluster: starts, watches and stops its processes.

Runs in the foreground of ``cellctl dev up``, or detached. Commands (kill, pause, resume,
restart, status, down) come over a unix socket, one JSON line each, answered by one JSON line.
A process that dies unasked is told in ``cluster.json`` and the log, and left dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import difflib
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from cellctl.bootstrap import RecordsLost, bootstrap
from cellctl.dev_files import Shape, port_is_free, save_shape, write_atomically
from cellctl.http_client import fetch_json
from metastore.coordination.embedded import etcd_command, wait_healthy
from metastore.coordination.etcd import EtcdCoordinator
from metastore.decoding import load_json
from metastore.errors import ConfigError, MetastoreError

log = logging.getLogger("cellctl.dev")

STOP_PATIENCE_S = 10.0
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    """In the child: be killed when the supervisor dies, so that nothing is left over."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


@dataclass(slots=True)
class Child:
    """One process of the cluster. ``state``: stopped, running, paused or dead (unasked)."""

    name: str
    role: str
    command: list[str]
    cell: str = ""
    process: subprocess.Popen[bytes] | None = None
    state: str = "stopped"
    exit_code: int | None = None
    ending: bool = False

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None else None


class Supervisor:
    """See the module."""

    def __init__(self, data: Path, shape: Shape) -> None:
        self.data = data
        self.shape = shape
        self.children: dict[str, Child] = {}
        self._stopping = False
        self.down = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._define()

    def _url(self, name: str) -> str:
        return self.shape.address(name)

    @property
    def router_url(self) -> str:
        return f"http://{self.shape.host}:{self.shape.port}"

    def _define(self) -> None:
        shape, data, python = self.shape, self.data, sys.executable
        etcd = self._url("etcd")
        self.children["etcd"] = Child(
            "etcd",
            "etcd",
            shape.wrap.get("etcd", [])
            + etcd_command(
                data / "etcd",
                "etcd",
                shape.ports["etcd"],
                shape.ports["etcd-peer"],
                shape.hosts.get("etcd", shape.host),
            ),
        )
        rpcs = []
        for cell, nodes in shape.node_names().items():
            for node in nodes:
                rpcs.append(self._url(f"{node}-rpc"))
                self.children[node] = self._node(node, cell)
        command = [python, "-m", "router.main", "--cluster", shape.cluster, "--etcd", etcd]
        command += ["--http", f"{shape.listen or shape.host}:{shape.port}", "--nodes", ",".join(rpcs)]
        command += ["--snapshot-path", str(data / "router-topology.json")]
        self.children["router"] = Child("router", "router", command)

    def _node(self, node: str, cell: str) -> Child:
        shape = self.shape
        command = [*shape.wrap.get(node, []), sys.executable, "-m", shape.node_module]
        command += ["--cluster", shape.cluster, "--cell", cell, "--node", node]
        command += ["--data-dir", str(self.data / "nodes" / node)]
        for kind in ("rpc", "http"):
            name = f"{node}-{kind}"
            command += [f"--{kind}", self._url(name)]
            if shape.listen:
                command += [f"--{kind}-listen", shape.listening(name)]
        command += ["--etcd", self._url("etcd")]
        command += [part for k, v in shape.settings.items() for part in (f"--{k}", v)]
        return Child(node, "node", command, cell)

    def add(self, cell: str | None, count: int) -> list[str]:
        """Start nodes that the cluster did not have: empty, and part of nothing yet."""
        fresh = self.shape.add(cell, count)
        save_shape(self.data, self.shape)
        cells = {node: c for c, nodes in self.shape.node_names().items() for node in nodes}
        for node in fresh:
            self.children[node] = self._node(node, cells[node])
            self.spawn(self.children[node])
        return fresh

    # --- processes ------------------------------------------------------------------------

    def check_ports(self) -> None:
        """Raises ConfigError naming a port that is taken."""
        for name, port in [("router", self.shape.port), *self.shape.ports.items()]:
            if name.split("-")[0] in self.shape.hosts:
                continue  # an address that is not this process's to try
            if not port_is_free(self.shape.host, port):
                what = "choose another with --port" if name == "router" else "stop what uses it"
                raise ConfigError(f"port {port} (for {name}) is in use on {self.shape.host}; {what}")

    def spawn(self, child: Child) -> None:
        logs = self.data / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / f"{child.name}.log").open("ab") as out:
            child.process = subprocess.Popen(
                child.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        child.state, child.exit_code, child.ending = "running", None, False
        self.write_cluster()

    def write_cluster(self) -> None:
        """``cluster.json``: rewritten whenever a process starts or ends."""
        shape = self.shape
        router, etcd = self.children["router"], self.children["etcd"]
        nodes = [
            {
                "name": c.name,
                "cell": c.cell,
                "pid": c.pid,
                "rpc": self._url(f"{c.name}-rpc"),
                "http": f"http://{self._url(f'{c.name}-http')}",
            }
            for c in self.children.values()
            if c.role == "node"
        ]
        write_atomically(
            self.data / "cluster.json",
            {
                "cluster": shape.cluster,
                "router": {"url": self.router_url, "pid": router.pid},
                "etcd": [{"name": "etcd", "url": f"http://{self._url('etcd')}", "pid": etcd.pid}],
                "nodes": nodes,
            },
        )

    def reap(self, child: Child) -> bool:
        """Note that ``child`` has ended, if it has; whether it was asked to, it says itself."""
        process = child.process
        if process is None or process.poll() is None:
            return process is None
        child.exit_code, child.process = process.returncode, None
        child.state = "stopped" if child.ending else "dead"
        self.write_cluster()
        if not child.ending and not self._stopping:
            log.warning(
                "%s ended by itself with code %s; see logs/%s.log", child.name, child.exit_code, child.name
            )
        return True

    async def watch_children(self) -> None:
        while True:
            for child in self.children.values():
                if child.process is not None:
                    self.reap(child)
            await asyncio.sleep(0.05)

    async def end(self, child: Child, how: signal.Signals) -> None:
        """Signal ``child`` and return when it is gone; SIGKILL after a while."""
        if child.process is None:
            return
        child.ending = True
        if child.state == "paused" and how != signal.SIGKILL:
            child.process.send_signal(signal.SIGCONT)
        child.process.send_signal(how)
        deadline = time.monotonic() + STOP_PATIENCE_S
        while not self.reap(child):
            if time.monotonic() > deadline:
                child.process.kill()
                deadline += STOP_PATIENCE_S
            await asyncio.sleep(0.005)

    async def pause(self, child: Child) -> None:
        """SIGSTOP ``child`` and return when none of its threads runs any more: the signal alone returns before that, and
        a busy machine lets the process answer what it is asked next."""
        assert child.process is not None
        child.process.send_signal(signal.SIGSTOP)
        child.state = "paused"
        deadline = time.monotonic() + STOP_PATIENCE_S
        while child.process is not None and time.monotonic() < deadline:
            if os.waitid(os.P_PID, child.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG):
                return
            await asyncio.sleep(0.002)

    # --- the whole ------------------------------------------------------------------------

    async def up(self) -> None:
        """Start everything and wait until it serves. Raises MetastoreError."""
        shape = self.shape
        self.check_ports()
        self._server = await asyncio.start_unix_server(self._serve, str(self.data / "dev.sock"))
        etcd = self.children["etcd"]
        self.spawn(etcd)
        etcd_url = f"http://{self._url('etcd')}"
        if not await asyncio.to_thread(wait_healthy, etcd_url, 30.0):
            raise ConfigError(f"etcd did not become healthy; see {self.data}/logs/etcd.log")
        for child in self.children.values():
            if child.role == "node":
                self.spawn(child)
        coordinator = EtcdCoordinator([self._url("etcd")])
        try:
            made = await bootstrap(
                coordinator,
                shape.cluster,
                shape.first_names(),
                shape.partitions,
                60,
                partial(asyncio.to_thread, self.lost),
            )
        except RecordsLost as e:  # the nodes serve what they have all the same (R12, R16)
            made = False
            log.warning(
                "%s; nothing was written; the data is served; next: cellctl control rebuild", e.message
            )
        finally:
            await coordinator.close()
        if made:
            log.info(
                "made cluster %s: %d partitions in %d cells", shape.cluster, shape.partitions, shape.cells
            )
        self.spawn(self.children["router"])

    def lost(self) -> str:
        """What nodes say that shows that etcd is not the one that they knew; "" = nothing."""
        for child in self.children.values():
            if child.role != "node":
                continue
            with contextlib.suppress(MetastoreError, LookupError, TypeError):
                view = fetch_json(f"http://{self._url(f'{child.name}-http')}/v1/status", 2.0)
                if why := view["etcd"]["untrusted"]:
                    return f"node {child.name} distrusts it, because {why}"
        return ""

    async def stop(self) -> None:
        """Stop everything, gently first: routers, nodes, then etcd."""
        self._stopping = True
        children = self.children
        await self.end(children["router"], signal.SIGTERM)
        # SIGINT: no hand-over of leaders, since all of them stop
        nodes = [c for c in children.values() if c.role == "node"]
        await asyncio.gather(*(self.end(c, signal.SIGINT) for c in nodes))
        await self.end(children["etcd"], signal.SIGTERM)
        if self._server is not None:
            self._server.close()
        with contextlib.suppress(FileNotFoundError):
            (self.data / "dev.sock").unlink()

    # --- commands -------------------------------------------------------------------------

    def find(self, name: str) -> Child:
        child = self.children.get(name)
        if child is None:
            close = difflib.get_close_matches(name, self.children, 1)
            hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(self.children)}"
            raise ConfigError(f"no process is called {name!r}{hint}")
        return child

    async def command(self, verb: str, names: list[str], graceful: bool) -> Any:
        if verb == "status":
            return [
                {
                    "name": c.name,
                    "role": c.role,
                    "cell": c.cell,
                    "state": c.state,
                    "pid": c.pid,
                    "exit": c.exit_code,
                }
                for c in self.children.values()
            ]
        if verb == "down":
            self.down.set()
            return "stopping"
        if verb in ("add-cell", "add-node"):
            return self.add(names[0] if verb == "add-node" else None, int(names[-1]))
        children = [self.find(name) for name in names]
        for child in children:
            if verb != "restart" and child.process is None:
                raise ConfigError(
                    f"{child.name} is not running; start it with: cellctl dev restart {child.name}"
                )
        if verb == "kill":
            await asyncio.gather(*(self.end(c, signal.SIGKILL) for c in children))
        elif verb == "pause":
            await asyncio.gather(*map(self.pause, children))
        elif verb == "resume":
            for child in children:
                assert child.process is not None
                child.process.send_signal(signal.SIGCONT)
                child.state = "running"
        elif verb == "restart":
            how = signal.SIGTERM if graceful else signal.SIGKILL
            await asyncio.gather(*(self.end(c, how) for c in children))
            for child in children:
                self.spawn(child)
        else:
            raise ConfigError(f"unknown command {verb!r}")
        return {c.name: c.pid for c in children}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = load_json(await asyncio.wait_for(reader.readline(), 5))
            try:
                result = await self.command(
                    request["verb"], request.get("names", []), request.get("graceful", False)
                )
                answer = {"ok": True, "result": result}
            except MetastoreError as e:
                answer = {"ok": False, "error": e.message}
            writer.write(orjson.dumps(answer) + b"\n")
            await writer.drain()
        except (OSError, ValueError, TimeoutError, KeyError) as e:
            log.debug("control connection: %s", e)
        finally:
            writer.close()


def ask_supervisor(data: Path, verb: str, names: list[str] | None = None, graceful: bool = False) -> Any:
    """Send one command; its result. Raises ConfigError when nobody answers or it is refused."""
    import socket

    path = data / "dev.sock"
    request = orjson.dumps({"verb": verb, "names": names or [], "graceful": graceful}) + b"\n"
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(60)
            # a unix address holds some 100 bytes: go by the folder's descriptor when it is longer
            folder = os.open(data, os.O_RDONLY)
            try:
                s.connect(f"/proc/self/fd/{folder}/dev.sock")
            finally:
                os.close(folder)
            s.sendall(request)
            raw = b""
            while not raw.endswith(b"\n"):
                more = s.recv(65536)
                if not more:
                    break
                raw += more
    except (FileNotFoundError, ConnectionRefusedError):
        raise ConfigError(
            f"no cluster is up in {data}; start one with: cellctl dev up --data {data}"
        ) from None
    except OSError as e:
        raise ConfigError(f"the supervisor at {path} did not answer: {e}") from None
    answer = load_json(raw or b'{"ok": false, "error": "the supervisor closed the connection"}')
    if not answer["ok"]:
        raise ConfigError(answer["error"])
    return answer["result"]
