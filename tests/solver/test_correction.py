"""The correction of B_E by hand: which band gives way to which, and how long anybody stands back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from solver.plan.bands import Bands, planned_bands, unknown_bands
from solver.plan.correction import corrected_batch, deferrals_after, most_encoded
from solver.plan.schedule import Schedule, StageSpec
from solver.simulate.events.arrivals import Demand
from solver.simulate.events.outcome import Outcome
from solver.simulate.events.simulation import Machines, simulate
from solver.simulate.points import Conditions
from tests.solver.planner_cases import random_pipeline

# B_E = 8 of 32 planned rows; 100 prompt tokens are expected in a phase.
PLANNED = Schedule("rra", 8, 4, 32, 48, (StageSpec("both", (0, 1), (0,), 1),), 48, 8, bands=Bands(60, 140, 16, 48, 2))


@pytest.mark.parametrize(
    ("live", "prompt", "deferrals", "batch"),
    [
        (24, 12, 0, 8),  # 32 - 24 rows are missing
        (28, 12, 0, 5),  # 4 are, but 60 tokens take five prompts
        (32, 12, 0, 5),
        (0, 12, 0, 11),  # 32 are, but 140 tokens hold eleven prompts
        (0, 5, 0, 16),  # twice B_E
        (30, 40, 0, 3),  # half of B_E would be 160 tokens
        (30, 200, 0, 1),  # longer than the band: alone
        (45, 12, 0, 3),  # up to 48 rows
        (48, 12, 0, 0),
        (48, 12, 1, 0),
        (48, 12, 2, 1),  # has stood back twice
        (50, 12, 2, 1),
    ],
)
def test_bands_give_way_in_order(live: int, prompt: int, deferrals: int, batch: int) -> None:
    assert corrected_batch(PLANNED, live, [prompt] * most_encoded(PLANNED), deferrals) == batch


def test_calm_rows_leave_the_batch_alone() -> None:
    assert PLANNED.bands is not None
    calm = dataclasses.replace(PLANNED, bands=dataclasses.replace(PLANNED.bands, encode_tokens_low=0, calm_rows=3))
    batches = {live: corrected_batch(calm, live, [12] * most_encoded(calm)) for live in range(19, 31)}
    # 24 rows and B_E = 8 make the planned 32.
    assert batches == {19: 11, 20: 11, **dict.fromkeys(range(21, 28), 8), 28: 4, 29: 4, 30: 4}
    # Rows do not pass their band for that.
    assert corrected_batch(dataclasses.replace(calm, decode_batch=48), 42, [12] * 16) == 6


def test_few_waiting_are_all_wanted_and_lengths_may_be_unknown() -> None:
    assert corrected_batch(PLANNED, 30, [12, 12]) >= 2
    assert corrected_batch(PLANNED, 28, ()) == 4
    assert corrected_batch(dataclasses.replace(PLANNED, bands=None), 48, [12]) == 4


def test_deferrals_count_phases_in_which_a_row_was_free() -> None:
    count = 0
    for waiting, free, admitted, expected in ((3, 2, 0, 1), (3, 0, 0, 1), (3, 1, 0, 2), (2, 1, 1, 0), (0, 5, 0, 0)):
        count = deferrals_after(count, waiting, free, admitted)
        assert count == expected


def test_planned_bands_hold_what_fluctuation_explains() -> None:
    # Variance 100 x 400: three deviations are 600 around 100 x 16.
    assert planned_bands(100, 200, 240, 16.0, 400.0, 64) == Bands(1000, 2200, 160, 240, calm_rows=13)
    # A single long prompt is wider than any deviation: the band starts at 0 and holds it.
    assert planned_bands(1, 4, 6, 10.0, 150.0, 200) == Bands(0, 200, 2, 6, calm_rows=1)
    assert unknown_bands(4, 10, 10, 50) == Bands(0, 400, 10, 10)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ((5, 4, 1, 2), "bands.encode_tokens"),
        ((0, 4, 3, 2), "bands.decode_rows"),
        ((0, 4, 1, 2, -1), "bands.most_deferrals"),
        ((0, 4, 1, 2, 4, -1), "bands.calm_rows"),
    ],
)
def test_bands_that_are_none_are_refused(values: tuple[int, ...], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Bands(*values)


def simulated(
    schedule: Schedule, inputs: np.ndarray, outputs: np.ndarray, arrival_s: np.ndarray | None = None
) -> Outcome:
    pipeline = random_pipeline(np.random.default_rng(0), 1, 130)
    conditions = Conditions(compaction="iteration", delivery="iteration")
    return simulate(schedule, Machines(pipeline, pipeline, 30.0), Demand(inputs, outputs, arrival_s), conditions)


@pytest.mark.parametrize("seed", range(3))
def test_every_encode_phase_of_a_long_queue_lies_in_its_band(seed: int) -> None:
    rng = np.random.default_rng(seed)
    inputs, outputs = rng.integers(1, 60, 4000), rng.integers(2, 60, 4000)
    rows = 4 * 32
    bands = planned_bands(12, 96, rows, float(inputs.mean()), float((inputs**2.0).mean()), 60)
    schedule = dataclasses.replace(
        PLANNED, encode_batch=12, encode_micro_batch=12, decode_batch=96, max_rows=rows, micro_batch=rows, bands=bands
    )
    found = simulated(schedule, inputs, outputs)
    encoded = [entry for entry in found.timeline if entry.kind == "encode"]
    assert len(encoded) > 100
    # The last phases take what is left.
    for entry in encoded[:-2]:
        assert bands.encode_tokens_low <= entry.tokens <= bands.encode_tokens_high
    assert found.peak_rows <= bands.decode_rows_high


def test_whoever_comes_first_stands_back_only_so_long() -> None:
    """Answers far longer than planned fill the band of rows; the queue still moves on every third phase."""
    schedule = dataclasses.replace(PLANNED, bands=Bands(0, 1000, 8, 32, 2))
    found = simulated(schedule, np.full(60, 10), np.full(60, 400), arrival_s=np.zeros(60))
    decoded = [entry for entry in found.timeline if entry.kind == "decode"]
    encoded = {entry.phase: entry.rows for entry in found.timeline if entry.kind == "encode"}
    # Twice B_E and again, the band is full; then one in three phases until every row that is allocated is taken.
    assert [encoded.get(entry.phase, 0) for entry in decoded[:11]] == [16, 16, 0, 0, 1, 0, 0, 1, 0, 0, 1]
    assert found.peak_rows == 48
