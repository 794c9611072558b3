"""Packets between the lab's namespaces, later: a TUN device whose other end is this process.

A rule sends what comes from one address for another into the device; here each packet waits its
time, plus a random part, and is given back to be routed on. Packets may overtake each other, which
TCP has to mend, as it has in a real network. Kernels without netem have this at least.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import struct
import subprocess

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
DEVICE, TABLE, PRIORITY = "late0", "77", "500"


class Delays:
    """See the module. Made in the namespace that forwards between the others."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.links: dict[tuple[bytes, bytes], tuple[float, float]] = {}
        self.carried = 0
        self._rules: list[list[str]] = []
        self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(self._fd, TUNSETIFF, struct.pack("16sH", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
        for command in (
            ["ip", "link", "set", DEVICE, "up"],
            ["ip", "route", "add", "default", "dev", DEVICE, "table", TABLE],
        ):
            subprocess.run(command, check=True)
        for name in ("all", "default", DEVICE):
            with open(f"/proc/sys/net/ipv4/conf/{name}/rp_filter", "w") as f:
                f.write("0")

    def add(self, device: str, src: str, dst: str, delay_ms: float, jitter_ms: float) -> None:
        """From now on what comes from ``src`` by ``device`` for ``dst`` is late."""
        if not self.links:
            asyncio.get_running_loop().add_reader(self._fd, self._read)
        rule = ["iif", device, "from", src, "to", dst, "lookup", TABLE, "priority", PRIORITY]
        subprocess.run(["ip", "rule", "add", *rule], check=True)
        self._rules.append(rule)
        self.links[_packed(src), _packed(dst)] = delay_ms / 1000, jitter_ms / 1000

    def clear(self) -> None:
        """Everything in time again; what is on its way still arrives. Raises AssertionError when nothing
        has been late."""
        for rule in self._rules:
            subprocess.run(["ip", "rule", "del", *rule], check=True)
        self._rules.clear()
        self.links.clear()
        asyncio.get_running_loop().remove_reader(self._fd)
        carried, self.carried = self.carried, 0
        assert carried, "no packet came by the device that was to make it late"

    def _read(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(BlockingIOError):
            while True:
                packet = os.read(self._fd, 65536)
                delay, jitter = self.links.get((packet[12:16], packet[16:20]), (0.0, 0.0))
                loop.call_later(max(0.0, delay + self.random.uniform(-jitter, jitter)), self._give, packet)

    def _give(self, packet: bytes) -> None:
        self.carried += 1
        with contextlib.suppress(OSError):  # what does not fit is lost, as anywhere
            os.write(self._fd, packet)


def _packed(address: str) -> bytes:
    return bytes(int(part) for part in address.split("."))
