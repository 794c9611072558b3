"""What tests wait by: a condition that cannot be asked yet is not a condition that is true."""

from __future__ import annotations

import pytest

from tests.integration.harness import until


@pytest.mark.parametrize("plain", [True, False])
async def test_who_does_not_answer_yet_is_asked_again(plain: bool) -> None:
    asked = 0

    def ask() -> int:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise ConnectionRefusedError
        return asked

    async def ask_later() -> int:
        return ask()

    assert await until("it answers", ask if plain else ask_later) == 3
    assert asked == 3
