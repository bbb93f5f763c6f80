"""Encode calls: every prompt once, in a shape that holds it, with little padding."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from solver.plan.buckets import Buckets, round_up
from solver.plan.packing import pack


def buckets(rows: tuple[int, ...], tokens: tuple[int, ...]) -> Buckets:
    return Buckets(rows, tokens, (1,), (1,))


@given(
    st.lists(st.integers(1, 64), max_size=60),
    st.sampled_from([(1,), (1, 4), (1, 4, 16), (1, 2, 4, 8), (3, 7)]),
    st.sampled_from([(64,), (16, 32, 64), (5, 64)]),
)
def test_every_prompt_stands_in_one_call_that_holds_it(
    lengths: list[int], rows: tuple[int, ...], tokens: tuple[int, ...]
) -> None:
    calls = pack(lengths, buckets(rows, tokens))
    assert sorted(index for call in calls for index in call.members) == list(range(len(lengths)))
    for call in calls:
        assert call.rows_bucket in rows
        assert 0 < len(call.members) <= call.rows_bucket
        assert max(round_up(lengths[index], tokens) for index in call.members) == call.tokens_bucket


@given(st.lists(st.integers(1, 64), min_size=1, max_size=60))
def test_padding_never_exceeds_what_one_rung_costs(lengths: list[int]) -> None:
    calls = pack(lengths, buckets((1, 4, 16), (16, 32, 64)))
    computed = sum(call.rows_bucket * call.tokens_bucket for call in calls)
    needed = sum(round_up(length, (16, 32, 64)) for length in lengths)
    assert computed <= 2 * needed


def test_by_hand() -> None:
    found = pack([10, 60, 12, 30, 61, 59], buckets((1, 4), (16, 32, 64)))
    # Three long prompts leave one row of their call to the next shorter one; two short ones fill half of a call of 4.
    assert [(call.members, call.rows_bucket, call.tokens_bucket) for call in found] == [
        ((4, 1, 5, 3), 4, 64),
        ((2, 0), 4, 16),
    ]
