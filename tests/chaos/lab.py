"""A network of namespaces: every node, and etcd, in one of its own, routed by this process's.

The process that opens the lab moves into a fresh network namespace and forwards between the
others; a cut is a routing rule that drops packets from one address to another without a word,
so it can be one-way, as delays can (``tests.chaos.delays``). Needs root; ``available`` tells.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess

from tests.chaos.delays import Delays

_CLONE_NEWNET = 0x40000000


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def available() -> bool:
    """Whether namespaces can be made and wired here."""
    if os.geteuid() != 0 or shutil.which("ip") is None or not os.path.exists("/dev/net/tun"):
        return False
    probe = f"ip netns add ms-probe{os.getpid()} && ip netns del ms-probe{os.getpid()}"
    probe += " && ip link set lo up && ip link add v0 type veth peer name v1"
    probe += " && ip rule add from 10.77.0.1 to 10.77.0.2 blackhole"
    done = subprocess.run(["unshare", "-n", "sh", "-c", probe], capture_output=True, check=False)
    return done.returncode == 0


class Lab:
    """See the module. ``hosts``: name -> address."""

    def __init__(self, names: list[str]) -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET) failed")
        _run("ip", "link", "set", "lo", "up")
        with open("/proc/sys/net/ipv4/ip_forward", "w") as f:
            f.write("1")
        self.hosts: dict[str, str] = {}
        self.cuts: set[tuple[str, str]] = set()
        self._spaces: dict[str, str] = {}
        self._devices: dict[str, str] = {}
        self.delays = Delays(len(names))
        for number, name in enumerate(names, 1):
            space, net = f"ms{os.getpid()}-{name}", f"10.77.{number}"
            _run("ip", "netns", "add", space)
            self._spaces[name], self.hosts[name], self._devices[name] = space, f"{net}.2", f"v{number}"
            _run("ip", "link", "add", f"v{number}", "type", "veth", "peer", "name", "e0", "netns", space)
            _run("ip", "addr", "add", f"{net}.1/24", "dev", f"v{number}")
            _run("ip", "link", "set", f"v{number}", "up")
            inside = ("ip", "-n", space)
            _run(*inside, "addr", "add", f"{net}.2/24", "dev", "e0")
            _run(*inside, "link", "set", "e0", "up")
            _run(*inside, "link", "set", "lo", "up")
            _run(*inside, "route", "add", "default", "via", f"{net}.1")

    def wrap(self, name: str) -> list[str]:
        """What the command line of a process of that namespace begins with."""
        return ["ip", "netns", "exec", self._spaces[name]]

    def cut(self, src: str, dst: str) -> None:
        """Drop what ``src`` sends to ``dst``."""
        if (src, dst) not in self.cuts:
            _run("ip", "rule", "add", "from", self.hosts[src], "to", self.hosts[dst], "blackhole")
            self.cuts.add((src, dst))

    def delay(self, src: str, dst: str, delay_ms: float, jitter_ms: float) -> None:
        """What ``src`` sends to ``dst`` takes ``delay_ms``, give or take ``jitter_ms``."""
        self.delays.add(self._devices[src], self.hosts[src], self.hosts[dst], delay_ms, jitter_ms)

    def heal(self) -> None:
        for src, dst in self.cuts:
            _run("ip", "rule", "del", "from", self.hosts[src], "to", self.hosts[dst], "blackhole")
        self.cuts.clear()
        if self.delays.links:
            self.delays.clear()

    def close(self) -> None:
        for space in self._spaces.values():
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)
