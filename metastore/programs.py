"""The console scripts: each starts its program, or says which extra of the package it needs."""

from __future__ import annotations

import importlib
import sys


def _run(script: str, extra: str, module: str) -> int | None:
    try:
        main = importlib.import_module(module).main
    except ModuleNotFoundError as e:
        missing = (e.name or "").partition(".")[0]
        if missing in ("", "metastore", "router", "cellctl"):
            raise
        print(
            f"{script}: {missing} is not installed; install what {script} needs: pip install 'metastore[{extra}]'",
            file=sys.stderr,
        )
        return 2
    result: int | None = main()
    return result


def node() -> int | None:
    """``metastore-node``. The exit code."""
    return _run("metastore-node", "node", "metastore.node.main")


def router() -> int | None:
    """``metastore-router``. The exit code."""
    return _run("metastore-router", "router", "router.main")


def cellctl() -> int | None:
    """``cellctl``. The exit code."""
    return _run("cellctl", "cellctl", "cellctl.main")
