"""Fixtures that several layers share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from cellctl.dev_files import pick_ports
from metastore.coordination.embedded import etcd_command, wait_healthy
from tests.processes import PATIENCE_S, pause, resume

# how long an example takes says something of the machine: no test fails for that. At every commit the examples are the same,
# so that what a test says of a change is not chance; fresh ones are tried nightly (``lanes.py``)
settings.register_profile(
    "commit", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.register_profile("nightly", settings.get_profile("commit"), derandomize=False)
settings.load_profile(os.environ.get("METASTORE_TEST_LANE", "commit"))


@dataclass
class RealEtcd:
    """A real etcd of the test's own."""

    data: Path
    port: int
    peer_port: int
    process: subprocess.Popen[bytes] | None = None
    #: beside the usual ones; the last of two counts
    flags: tuple[str, ...] = ()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [*etcd_command(self.data, "test", self.port, self.peer_port), *self.flags]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert wait_healthy(f"http://{self.endpoint}", PATIENCE_S), "etcd did not become healthy"

    def pause(self) -> None:
        assert self.process is not None
        pause(self.process.pid)

    def resume(self) -> None:
        assert self.process is not None
        resume(self.process.pid)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def real_etcd(tmp_path: Path) -> Iterator[RealEtcd]:
    ports = pick_ports("127.0.0.1", ["client", "peer"], set())
    etcd = RealEtcd(tmp_path / "etcd", ports["client"], ports["peer"])
    etcd.start()
    yield etcd
    etcd.kill()
