"""Predicted starts against a plain simulation with the Runner's own policies."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from exegpt_jax.runner.policies import POLICIES, View
from serving.admission.starts import Starts, admitted, iterations_of, phases_of
from solver.plan.bands import unknown_bands
from solver.plan.correction import deferrals_after
from solver.plan.schedule import Schedule, StageSpec


def schedule_of(policy: str, encode_batch: int, rows: int, iterations: int) -> Schedule:
    return Schedule(
        policy=policy,  # type: ignore[arg-type]
        encode_batch=min(encode_batch, rows),
        decode_iterations=iterations,
        decode_batch=max(1, rows - 1),
        max_rows=rows,
        stages=(StageSpec("both", (0, 2), (0,), 1),),
        micro_batch=rows,
        encode_micro_batch=min(encode_batch, rows),
        bands=unknown_bands(encode_batch, max(1, rows - 1), rows, 16) if policy == "rra" else None,
    )


@dataclasses.dataclass
class _Row:
    left: int


def simulated(schedule: Schedule, rows: list[int], waiting: list[int]) -> list[int]:
    """The phase with which each of those who wait starts, token by token.

    Args:
      rows: tokens that each resident row still has to get, at a boundary.
      waiting: tokens of each answer, in order.
    """
    live = [_Row(tokens) for tokens in rows]
    starts: list[int] = []
    phase = deferrals = 0
    while len(starts) < len(waiting):
        free = schedule.max_rows - len(live)
        left = len(waiting) - len(starts)
        admit = POLICIES[schedule.policy](schedule, View(left, 0, len(live), free, deferrals=deferrals)).admit
        deferrals = deferrals_after(deferrals, left, free, admit)
        for tokens in waiting[len(starts) : len(starts) + admit]:
            # The first token comes out of the encode part.
            live.append(_Row(tokens - 1))
            starts.append(phase)
        for _ in range(iterations_of(schedule)):
            for row in live:
                row.left -= 1
        live = [row for row in live if row.left > 0]
        phase += 1
        assert phase < 10_000
    return starts


CASES = st.tuples(
    st.sampled_from(["rra", "static", "iteration"]), st.integers(1, 6), st.integers(2, 12), st.integers(1, 5)
)


@given(CASES, st.lists(st.integers(1, 30), max_size=12), st.integers(2, 20), st.integers(1, 60))
def test_answers_alike_start_as_the_runner_would_have_it(
    case: tuple[str, int, int, int], resident: list[int], tokens: int, count: int
) -> None:
    schedule = schedule_of(*case)
    resident = resident[: schedule.max_rows]
    # Of a row with n tokens to come, n - 1 iterations are left behind one that it has been told.
    ends = [phases_of(schedule, left + 1, 1) for left in resident]
    starts = Starts(schedule, ends, phases_of(schedule, tokens), 4.0)
    found = [starts.boundary_of(ahead) for ahead in range(count)]
    assert found == simulated(schedule, resident, [tokens] * count)
    # In whatever order it is asked.
    again = Starts(schedule, ends, phases_of(schedule, tokens), 4.0)
    assert [again.boundary_of(ahead) for ahead in reversed(range(count))] == found[::-1]


def test_bands_of_tokens_limit_what_a_phase_takes() -> None:
    schedule = schedule_of("rra", 4, 12, 2)
    assert Starts(schedule, [], 9, 4.0).boundary_of(7) == 0
    # 2 x 4 prompts of 16 tokens are the band; of 64 tokens two go.
    assert [Starts(schedule, [], 9, 64.0).boundary_of(ahead) for ahead in range(5)] == [0, 0, 1, 1, 2]


def test_rows_that_are_allocated_but_not_held_start_nobody_earlier() -> None:
    """As in the larger cache of the plan before (`solver.plan.in_place`)."""
    asked = schedule_of("rra", 4, 6, 2)
    wide = dataclasses.replace(asked, max_rows=16, held_rows=6)
    found = [[Starts(each, [1, 2, 3, 5], 4, 4.0).boundary_of(n) for n in range(12)] for each in (asked, wide)]
    assert found[0] == found[1]
    assert found[0][-1] > found[0][0]
    assert [admitted(each, live, 9, 4.0) for each in (asked, wide) for live in (3, 6)] == [2, 0, 2, 0]


def test_phases_of_an_answer() -> None:
    schedule = schedule_of("rra", 4, 12, 8)
    assert [phases_of(schedule, tokens) for tokens in (1, 2, 9, 10, 17, 18)] == [1, 1, 1, 2, 2, 3]
    assert [phases_of(schedule, 18, told) for told in (1, 2, 9, 10, 17, 30)] == [3, 2, 2, 1, 1, 1]
    assert phases_of(dataclasses.replace(schedule, policy="iteration"), 18) == 17
