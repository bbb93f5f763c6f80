"""Ladders, and when a decode call is worth a copy of part of the cache."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solver.plan.buckets import Buckets, attended_tokens, ladder, round_up


@given(st.integers(1, 100), st.integers(1, 5000), st.sampled_from([1.2, 1.5, 2.0, 4.0]))
def test_a_ladder_rises_to_its_last_rung(first: int, last: int, factor: float) -> None:
    rungs = ladder(first, last, factor)
    assert Buckets(rungs, rungs, rungs, rungs).cache_tokens[-1] == last
    assert rungs[0] == min(first, last)
    for value in (1, rungs[0], last):
        assert round_up(value, rungs) == min(rung for rung in rungs if rung >= value)
    with pytest.raises(ValueError, match=f"{last + 1} exceeds the largest bucket {last}"):
        round_up(last + 1, rungs)


@pytest.mark.parametrize("rungs", [(4, 4), (5, 4), (), (0, 1)])
def test_what_does_not_rise_is_no_ladder(rungs: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"buckets\.decode_rows"):
        Buckets((1,), (1,), rungs, (1,))


@given(st.integers(1, 1024), st.integers(1, 256), st.booleans())
def test_attended_tokens_hold_the_row_and_never_cost_more(reach: int, iterations: int, all_rows: bool) -> None:
    rungs = (128, 256, 512, 1024)
    chosen = attended_tokens(reach, iterations, all_rows, rungs)
    assert chosen in (round_up(reach, rungs), 1024)
    assert all_rows or chosen == round_up(reach, rungs)
    # What a long call chooses, programs exist for: they are listed by the longest.
    if chosen == round_up(reach, rungs):
        assert attended_tokens(chosen, 256, all_rows, rungs) == chosen


def test_few_iterations_attend_to_whole_rows_where_they_lie() -> None:
    assert attended_tokens(100, 1, True, (128, 1024)) == 128
    assert attended_tokens(300, 1, True, (512, 1024)) == 1024
    assert attended_tokens(300, 1, False, (512, 1024)) == 512
    assert attended_tokens(300, 8, True, (512, 1024)) == 512
