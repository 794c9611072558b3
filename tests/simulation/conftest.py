"""Nothing that the interpreter can only complain of goes by unseen: an exception where nobody can catch it, a coroutine that nobody
has awaited. Such a warning says that something was forgotten, in the code or in the simulation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.process.loop import abandon_worlds

HERE = Path(__file__).parent
STRICT = (
    "error::pytest.PytestUnraisableExceptionWarning",
    "error:.*was never awaited:RuntimeWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            for one in STRICT:
                item.add_marker(pytest.mark.filterwarnings(one))


@pytest.fixture(autouse=True)
def _the_world_is_over() -> Iterator[None]:
    yield
    abandon_worlds()
