"""Seeds by plan: plans are taken in turn, so a seed names its plan."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from itertools import count
from typing import Any

import pytest


def fixed(how_many: int, commit: int) -> list[Any]:
    """So many seeds, the first ``commit`` of them at every commit and the others nightly."""
    return [
        *range(commit),
        *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(commit, how_many)),
    ]


def seeds_of(names: Container[str], plans: Iterable[str], how_many: int) -> Iterator[int]:
    """The first so many seeds of the plans named."""
    plans = list(plans)
    for seed in count():
        if plans[seed % len(plans)] in names:
            if not how_many:
                return
            how_many -= 1
            yield seed
