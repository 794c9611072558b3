"""The package as it is installed: a wheel, the client's few dependencies, and programs that say what they lack."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.integration.harness import Cluster

ROOT = Path(__file__).parents[2]
PACKAGES = ("metastore", "router", "cellctl")
#: whatever the client imports, with what these bring along
SMALL = {"metastore", "msgpack", "orjson", "typing_extensions", "xxhash"}

IMPORTS_ALL_OF_THE_CLIENT = """
import importlib, pkgutil, sys
import metastore, metastore.client
for module in pkgutil.walk_packages(metastore.client.__path__, "metastore.client."):
    importlib.import_module(module.name)
origin = {name.partition(".")[0] for name, m in sys.modules.items() if getattr(m, "__file__", None)}
print(*sorted(origin - set(sys.stdlib_module_names) - {"__main__"}))
"""
PUTS_AND_GETS = """
import sys
from metastore import TEXT, Client
with Client(sys.argv[1].split(","), cluster=sys.argv[2]) as client:
    names = client.namespace("wheel", codec=TEXT)
    names.put("by", "the installed package")
    print(names.get("by").value)
"""
THROUGH_A_ROUTER = """
from metastore import Client
Client(router="http://127.0.0.1:1")
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and what the client depends on, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    # a copy: setuptools leaves its build folder beside the sources, with files of earlier builds
    sources = folder / "sources"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *PACKAGES, "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if (ROOT / name).exists():
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            (sources / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, sources], check=True)
    (wheel,) = folder.glob("*.whl")
    files = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith(tuple(f"{p}/" for p in PACKAGES))}
    expected = {
        str(f.relative_to(sources)) for p in PACKAGES for f in (sources / p).rglob("*") if f.is_file()
    }
    assert files == expected
    target = folder / "site"
    subprocess.run([*pip, "install", "--target", target, wheel], check=True)
    return target


def run(site: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """By a Python that sees its own library and the folder only."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(site)}
    command = [sys.executable, "-S", "-c", program, *arguments]
    return subprocess.run(command, env=env, cwd=site, capture_output=True, text=True, timeout=120)


def test_the_client_needs_four_packages(site: Path) -> None:
    done = run(site, IMPORTS_ALL_OF_THE_CLIENT)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= SMALL, done.stdout
    installed = {f.name.partition("-")[0] for f in site.glob("*.dist-info")}
    assert installed == SMALL


@pytest.mark.parametrize("program", ["node", "router", "cellctl"])
def test_a_program_without_its_extra_says_which(site: Path, program: str) -> None:
    done = run(site, f"import sys; from metastore.programs import {program}; sys.exit({program}())")
    assert done.returncode == 2, done.stderr
    assert f"pip install 'metastore[{program}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_client_through_a_router_says_what_it_needs(site: Path) -> None:
    done = run(site, THROUGH_A_ROUTER)
    assert "pip install 'metastore[http]'" in done.stderr


def test_the_wheel_serves_a_client(site: Path, shared: Cluster) -> None:
    nodes = ",".join(shared.node(name)["rpc"] for name in shared.names())
    done = run(site, PUTS_AND_GETS, nodes, "dev")
    assert done.stdout.strip() == "the installed package", done.stderr
