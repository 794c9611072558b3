"""Clusters for the tests; when one fails, its processes' logs are shown."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metastore.errors import MetastoreError
from tests.integration.harness import STEADY, Cluster


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Any:
    outcome = yield
    setattr(item, f"rep_{call.when}", outcome.get_result())


def _cluster(request: Any, tmp_path: Path, **shape: Any) -> Iterator[Cluster]:
    cluster = Cluster.up(tmp_path / "data", **shape)
    yield cluster
    failed = getattr(request.node, "rep_call", None)
    if failed is not None and failed.failed:
        for log in sorted((cluster.data / "logs").glob("*.log")):
            print(f"--- {log.name}\n" + log.read_text(errors="replace")[-3000:])
    with contextlib.suppress(MetastoreError, AssertionError):
        cluster.down()


@pytest.fixture
def cell(request: Any, tmp_path: Path) -> Iterator[Cluster]:
    """One cell of three nodes, 8 partitions."""
    yield from _cluster(request, tmp_path, cells=1, nodes=3, partitions=8)


@pytest.fixture
def steady_cell(request: Any, tmp_path: Path) -> Iterator[Cluster]:
    """One cell of three nodes, 8 partitions, whose leaders change for a reason of the test's only."""
    yield from _cluster(request, tmp_path, cells=1, nodes=3, partitions=8, settings=STEADY)


@pytest.fixture
def cell_without_claims(request: Any, tmp_path: Path) -> Iterator[Cluster]:
    """A steady cell whose nodes name no leader without etcd (R16 off)."""
    off = (*STEADY, "claim_without_etcd=false")
    yield from _cluster(request, tmp_path, cells=1, nodes=3, partitions=8, settings=off)


@pytest.fixture
def two_cells(request: Any, tmp_path: Path) -> Iterator[Cluster]:
    """Two cells of three nodes, 8 partitions."""
    yield from _cluster(request, tmp_path, cells=2, nodes=3, partitions=8)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cell of three nodes, 8 partitions, for the tests of a module that do no harm to it: each in
    namespaces of its own."""
    cluster = Cluster.up(tmp_path_factory.mktemp("shared") / "data", cells=1, nodes=3, partitions=8)
    yield cluster
    with contextlib.suppress(MetastoreError, AssertionError):
        cluster.down()


@pytest.fixture
def small_log(request: Any, tmp_path: Path) -> Iterator[Cluster]:
    """One cell of one partition whose nodes keep hardly any log."""
    settings = ("segment_mib=18", "log_retention_mib=36")
    yield from _cluster(request, tmp_path, cells=1, nodes=3, partitions=1, settings=settings)


@pytest.fixture(scope="module")
def shared_cell(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cell of three nodes for all tests of a module, which keep to namespaces of their own and
    leave it as they found it. Its logs are short, so that something can be too old."""
    failed_before = request.session.testsfailed
    short = ("segment_mib=18", "log_retention_mib=36")
    data = tmp_path_factory.mktemp("shared") / "data"
    cluster = Cluster.up(data, cells=1, nodes=3, partitions=8, settings=short)
    yield cluster
    if request.session.testsfailed > failed_before:
        for log in sorted((cluster.data / "logs").glob("*.log")):
            print(f"--- {log.name}\n" + log.read_text(errors="replace")[-3000:])
    with contextlib.suppress(MetastoreError, AssertionError):
        cluster.down()
