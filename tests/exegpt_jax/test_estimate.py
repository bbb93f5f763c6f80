"""The estimate of lengths: right on known distributions, unbiased while the batch fills, quick after a change."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from exegpt_jax.runner.estimate import Estimate, Seen, Tables, estimated, no_tables, observed
from solver.facts.workload import Ints

MOST = 200


class Batch:
    """Rows that a phase of N iterations advances: the first token comes with the encode part."""

    def __init__(self, seed: int, admit: int, iterations: int, cancel: float = 0.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.admit, self.iterations, self.cancel = admit, iterations, cancel
        self.done, self.goal = np.zeros(0, np.int64), np.zeros(0, np.int64)

    def phase(self, mean: float, deviation: float) -> Seen:
        drawn = self.rng.normal(mean, deviation, self.admit).round().clip(1, MOST).astype(np.int64)
        prompts = self.rng.integers(5, 16, self.admit)
        before = np.concatenate([self.done, np.zeros(self.admit, np.int64)])
        goal = np.concatenate([self.goal, drawn])
        fresh = (before == 0).astype(np.int64)
        after = np.minimum(before + fresh + self.iterations, goal)
        seen = Seen(before, after, after == goal, prompts)
        stays = (after < goal) & (self.rng.random(len(goal)) >= self.cancel)
        self.done, self.goal = after[stays], goal[stays]
        return seen


def follow(batch: Batch, phases: int, mean: float, deviation: float, tables: Tables | None = None) -> Tables:
    tables = no_tables(MOST, 20) if tables is None else tables
    for _ in range(phases):
        tables = observed(tables, batch.phase(mean, deviation))
    return tables


def known(tables: Tables) -> Estimate:
    found = estimated(tables)
    assert found is not None
    return found


@pytest.mark.parametrize("iterations", [1, 7, 50])
def test_the_estimate_is_the_distribution(iterations: int) -> None:
    found = known(follow(Batch(1, 8, iterations), 400, 40.0, 15.0))
    assert abs(found.outputs.mean - 40.0) < 4 * found.output_error
    assert 0.2 < found.output_error < 1.5
    assert abs(found.outputs.std - 15.0) < 2.0
    assert found.unseen < 0.01
    assert abs(found.inputs.mean - 10.0) < 0.6
    assert abs(found.mean_input2 - 110.0) < 12.0


def test_its_error_is_honest() -> None:
    """Over many runs the mean lies within two of its errors about as often as it should."""
    found = [known(follow(Batch(seed, 6, 10), 60, 40.0, 15.0)) for seed in range(60)]
    within = [abs(one.outputs.mean - 40.0) < 2 * one.output_error for one in found]
    assert np.mean(within) > 0.85
    spread = np.std([one.outputs.mean for one in found])
    assert 0.6 < np.mean([one.output_error for one in found]) / spread < 1.7


def test_short_answers_that_end_first_do_not_bias_it() -> None:
    """While the batch fills, whoever has ended was short: their plain mean is far below, the estimate is not."""
    errors, plain = [], []
    for seed in range(40):
        batch = Batch(seed, 20, 5)
        tables, ended = no_tables(MOST, 20), []
        for _ in range(14):  # 70 iterations: the first have ended, of the later ones only the short
            seen = batch.phase(40.0, 15.0)
            tables = observed(tables, seen)
            ended += seen.after[seen.ended].tolist()
        errors.append(known(tables).outputs.mean - 40.0)
        plain.append(np.mean(ended) - 40.0)
    assert np.mean(plain) < -4.0
    assert abs(np.mean(errors)) < 0.7


def test_it_follows_a_step() -> None:
    """After a change by 60% half of the way within one half-life of ended rows, nearly all within six."""
    batch = Batch(3, 8, 5)
    tables = follow(batch, 300, 30.0, 10.0)
    means, ended = [], 0
    while ended < 6 * 256:
        seen = batch.phase(48.0, 16.0)
        tables = observed(tables, seen)
        ended += int(seen.ended.sum())
        means.append((ended, known(tables).outputs.mean))
    at = dict(means)
    half = at[min(n for n in at if n >= 300)]
    assert 36.0 < half < 46.0
    assert abs(means[-1][1] - 48.0) < 1.5


def test_a_cancelled_row_tells_what_it_knows() -> None:
    found = known(follow(Batch(5, 8, 5, cancel=0.1), 400, 40.0, 15.0))
    assert abs(found.outputs.mean - 40.0) < 4 * found.output_error + 0.5


def test_nothing_is_said_before_anybody_has_ended() -> None:
    tables = no_tables(MOST, 20)
    assert estimated(tables) is None
    nobody = np.zeros(0, np.int64)
    assert estimated(observed(tables, Seen(nobody, nobody, np.zeros(0, bool), nobody))) is None
    running: Ints = np.array([0, 3])
    tables = observed(tables, Seen(running, running + 4, np.array([False, False]), np.array([7])))
    assert estimated(tables) is None


def test_counts_by_hand() -> None:
    """Three rows: one ends at its first token, one at its second, one goes on behind its third."""
    seen = Seen(np.array([0, 0, 0]), np.array([1, 2, 3]), np.array([True, True, False]), np.array([4, 4, 6]))
    found = known(observed(no_tables(10, 10), seen))
    assert found.outputs.lengths.tolist() == [1, 2, 3]
    assert found.outputs.share == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert found.unseen == pytest.approx(1 / 3)
    assert found.inputs.lengths.tolist() == [4, 6]
    assert found.requests == 2.0
    # D = 0, 1, 2: phases of two iterations that each lives.
    assert found.mean_periods(2) == pytest.approx((0 + 1 + 1) / 3)
    assert dataclasses.replace(found, first_token="decode").mean_periods(2) == pytest.approx((1 + 1 + 2) / 3)
