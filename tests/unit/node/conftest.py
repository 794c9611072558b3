from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.node.test_fail_stop import Fixture


@pytest.fixture
async def f(tmp_path: Path) -> AsyncIterator[Fixture]:
    """A follower that runs."""
    fixture = Fixture(tmp_path)
    await fixture.start()
    yield fixture
    await fixture.node.stop(hand_over=False)
