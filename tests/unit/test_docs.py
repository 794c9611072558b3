"""The documents say what is so: settings, named tests, links, example files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from metastore.config import NodeConfig, RouterConfig, describe, load_config

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "bench/README.md",
    *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.md"))),
    "tests/README.md",
    "deploy/README.md",
]


def configuration() -> str:
    """The text that deploy/configuration.md has to hold."""
    parts = ["# Settings", "", "From flags (`--name value`), the environment, or a TOML table; flags win."]
    for title, cls, prefix in (
        ("metastore-node, table `[node]`", NodeConfig, "METASTORE_NODE"),
        ("metastore-router, table `[router]`", RouterConfig, "METASTORE_ROUTER"),
    ):
        parts += ["", f"## {title}", "", describe(cls, prefix)]
    return "\n".join(parts) + "\n"


def test_every_setting_is_documented() -> None:
    """After a change: ``python -m tests.unit.test_docs``."""
    assert (ROOT / "deploy/configuration.md").read_text() == configuration()


def test_the_example_files_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    node = load_config(NodeConfig, ["--config", str(ROOT / "deploy/node.toml")], "METASTORE_NODE", "node")
    assert node.cell == "c1"
    router = load_config(
        RouterConfig, ["--config", str(ROOT / "deploy/router.toml")], "METASTORE_ROUTER", "router"
    )
    assert router.snapshot_path


@pytest.mark.parametrize("page", PAGES)
def test_links_and_named_tests_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target
    tests = "\n".join(p.read_text() for p in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"\b(test_[a-z0-9_]+)`", text):
        assert f"def {name}(" in tests or any((ROOT / "tests").rglob(f"{name}.py")), name
    for path in re.findall(r"`((?:metastore|router|cellctl|tests|bench|tools|deploy)/[\w/.-]*)", text):
        assert (ROOT / path).exists(), path


PACKAGES = [
    *(path.parent for path in sorted((ROOT / "metastore").glob("*/__init__.py"))),
    ROOT / "router",
    ROOT / "cellctl",
]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_each_package_has_a_page_that_names_its_modules(package: Path) -> None:
    page = (ROOT / "docs/packages" / f"{package.name}.md").read_text()
    modules = {str(path.relative_to(package)) for path in package.rglob("*.py") if path.name != "__init__.py"}
    named = set(re.findall(r"`([\w/]+)(?:\.py)?/?`", page))
    for module in modules:
        stem = module.removesuffix(".py")
        assert {stem, Path(stem).name} & named, module


if __name__ == "__main__":
    (ROOT / "deploy/configuration.md").write_text(configuration())
