"""What docs/http.md says is what happens."""

from __future__ import annotations

import re
from pathlib import Path

from metastore.errors import BY_STATUS
from router.api.operations import OPERATIONS
from tests.integration.docs_console import commands, run
from tests.integration.harness import Cluster

PAGE = Path(__file__).parents[2] / "docs/http.md"


def test_every_command_of_the_page_does_what_it_says(shared_cell: Cluster) -> None:
    wrong = run(PAGE, {"http://127.0.0.1:8080": shared_cell.router, "curl ": "curl -sS "})
    assert not wrong, "\n".join(wrong)


def test_the_page_speaks_of_every_operation_on_data() -> None:
    text = PAGE.read_text()
    for op in OPERATIONS:
        if op.tag != "Service" and op.id not in ("listNamespaces", "getNamespace", "headRecord"):
            start = op.path.partition("{")[0]
            assert start in text, op.id
    assert len(commands(PAGE)) > 20


def test_the_page_names_no_code_that_does_not_exist() -> None:
    from metastore.admin import errors as of_admin
    from router import errors as of_router

    codes = {cls.code for cls in BY_STATUS.values()} | {
        getattr(found, "code", "") for module in (of_admin, of_router) for found in vars(module).values()
    }
    named = set(re.findall(r"`(fenced|compacted|[a-z]+_[a-z_]+)`", PAGE.read_text()))
    known = {
        "retry_after_s",
        "ttl_ms",
        "ttl_s",
        "value_base64",
        "idempotency_key",
        "timeout_ms",
        "heartbeat_s",
        "drain_s",
        "raise_fence",
        "at_least",
        "disk_low_mib",
    }
    bounds = {name for name in named if name.startswith(("max_", "metastore_"))}  # settings and metrics
    assert named - codes - known - bounds == set()
