"""What ``cellctl advise`` recommends can be configured, and its arithmetic holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellctl.advise import Costs, advise
from metastore.config import NodeConfig
from metastore.errors import InvalidRequest


def config(**settings: object) -> NodeConfig:
    return NodeConfig(cell="c1", node="n1", data_dir="/d", rpc="h:1", http="h:2", **settings)  # type: ignore[arg-type]


@given(st.floats(50, 120_000), st.floats(0, 49_000), st.integers(0, 3), st.floats(0.1, 200))
def test_every_advice_can_be_configured(rto: float, pause: float, survive: int, sync: float) -> None:
    advice = advise(rto, pause, 0, survive, Costs(sync_ms=sync))
    settings = config(**advice.settings)
    assert settings.suspect_after_ms > pause
    assert settings.suspect_after_ms >= settings.heartbeat_ms + round(pause)
    assert advice.met == (advice.failover_silent_ms <= rto)
    assert advice.failover_killed_ms <= advice.failover_silent_ms
    assert advice.replicas == 2 * survive + 1
    if not advice.met:
        assert any("RTO" in w for w in advice.warnings)


def test_a_three_second_rto_with_two_second_pauses() -> None:
    """By hand: S = 2000 * 6/5 = 2400; 2400 + 20 + (75 + 1 + 20) + 2 (5 + 1) = 2528."""
    advice = advise(3000, 2000, 0, 1, Costs())
    assert advice.met
    assert advice.settings["suspect_after_ms"] == 2400
    assert advice.failover_silent_ms == pytest.approx(2528)


def test_what_cannot_be_had_says_what_can() -> None:
    advice = advise(1000, 2000, 0, 1, Costs())
    assert not advice.met
    assert "--rto 2.5s" in advice.warnings[0]
    assert advise(2528, 2000, 0, 1, Costs()).met


def test_settings_that_flap_are_told() -> None:
    assert any("flap" in w for w in advise(3000, 500, 0, 1, Costs(worst_stall_ms=900)).warnings)
    assert any("flap" in w for w in advise(3000, 500, 0, 1, Costs(sync_ms=100)).warnings)
    assert any("majority" in w for w in advise(3000, 500, 60_000, 1, Costs()).warnings)
    assert not advise(3000, 500, 0, 1, Costs()).warnings


@pytest.mark.parametrize(
    "args", [(0, 0, 0, 1), (1, -1, 0, 1), (1, 0, -1, 1), (1, 0, 0, 4), (1, 50_001, 0, 1)]
)
def test_nonsense_is_refused(args: tuple[int, int, int, int]) -> None:
    with pytest.raises(InvalidRequest):
        advise(*args, Costs())
