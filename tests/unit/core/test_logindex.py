"""LogIndex against a list of epochs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastore.core.logindex import LogIndex

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 2)),
        st.tuples(st.just("truncate"), st.integers(0, 12)),
        st.tuples(st.just("compact"), st.integers(0, 12)),
    ),
    max_size=40,
)


@given(STEPS, st.integers(0, 12), st.integers(0, 30))
def test_like_a_list(steps: list[tuple[str, int]], epoch: int, index: int) -> None:
    log, model, base = LogIndex(), [0], 0  # model[i] = epoch of entry i; below base: forgotten
    for what, n in steps:
        last = len(model) - 1
        if what == "append":
            model.append(max(model[-1], 1) + n)
            log.append(last + 1, model[-1])
        elif what == "truncate" and n >= base:
            del model[n + 1 :]
            log.truncate(n)
        elif what == "compact" and base <= n <= last:
            log.compact(n)
            base = n
    last = len(model) - 1
    assert (log.base_index, log.base_epoch, log.last_index) == (base, model[base], last)
    assert [log.epoch_at(i) for i in range(base, last + 1)] == model[base:]
    assert log.last_position() == (model[-1], last)
    below = [i for i in range(base, last + 1) if i <= index and model[i] <= epoch]
    expect = max(below, default=base)
    assert log.position_at_or_below(epoch, index) == (model[expect], expect)


def test_gaps_and_falling_epochs_are_refused() -> None:
    log = LogIndex()
    log.append(1, 5)
    for index, epoch in ((3, 5), (1, 5), (2, 4)):
        with pytest.raises(AssertionError, match="I2"):
            log.append(index, epoch)
    log.compact(1)
    with pytest.raises(AssertionError, match="I4"):
        log.truncate(0)
    with pytest.raises(IndexError):
        log.epoch_at(2)
    log.reset(9, 7)
    assert log.last_position() == (7, 9)
