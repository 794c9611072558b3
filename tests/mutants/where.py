"""Whether the tree that this runs in is the one that is imported."""

from __future__ import annotations

import sys
from pathlib import Path

import cellctl
import metastore
import router

HERE = Path.cwd().resolve()
for package in (metastore, router, cellctl):
    found = Path(str(package.__file__)).resolve()
    if HERE not in found.parents:
        sys.exit(f"{package.__name__} is {found}, not of {HERE}")
