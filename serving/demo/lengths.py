"""What the demo asks, in numbers: the lengths of prompts and answers, and a latency bound that suits the machine.

The planner gets the distribution of lengths of other numbers than those that will be asked. The bound is set as ExeGPT
sets its bounds: a percentile of the latencies that static batching has at batches of 4, 8, .. rows, each the time of
the longest answer; predicted from the profile, so that it suits a fast machine and a slow one.
"""

from __future__ import annotations

import math
import random

import numpy as np

from exegpt_jax.testing import numbers_task as task
from solver.facts.cluster import Cluster
from solver.facts.model_spec import ModelSpec
from solver.facts.profile import Profile
from solver.facts.workload import Workload, merge
from solver.simulate.costs import Pipeline, PlacedStage
from solver.simulate.lengths import lengths_of
from solver.simulate.padding import Padding
from solver.simulate.points import Conditions
from solver.simulate.static import evaluate_static
from solver.simulate.unit_costs import unit_costs

MIN_DIGITS = 3
MAX_TOKENS = 15
"""Of an answer: no right one is longer, end of sequence included."""
BOUND_PERCENTILE = 50.0
_DRAWN, _SEED = 20_000, 20240427
_STATIC_STEP = 4


def workload() -> Workload:
    """Lengths of numbers that training has seen: <s>, the digits and the arrow; the words and the end of sequence."""
    rng = random.Random(_SEED)
    numbers = [task.draw(rng, MIN_DIGITS, task.MAX_DIGITS, unseen=False) for _ in range(_DRAWN)]
    prompts = np.array([2 + len(str(number)) for number in numbers])
    answers = np.array([1 + len(task.words(number).split()) for number in numbers])
    source = f"{_DRAWN} numbers of {MIN_DIGITS} to {task.MAX_DIGITS} digits, seed {_SEED}"
    return merge("numbers in words", source, prompts, answers, np.ones(_DRAWN))


def bound_s(profile: Profile, spec: ModelSpec, cluster: Cluster, asked: Workload, max_rows: int) -> float:
    """The latency bound, in seconds, from the start of a request's encode phase; rounded up to three digits.

    The profile's spread is added, since the planner keeps that much away from it.
    """
    lengths = lengths_of(asked, spec.first_token)
    padding = Padding(asked.most_tokens, asked.most_input)
    unit = unit_costs(profile, spec, lengths, cluster, 1, max_rows, padding)
    pipeline = Pipeline((PlacedStage(unit, spec.num_layers, True, True, None),))
    conditions = Conditions(cache_tokens=asked.most_tokens)
    batches = np.arange(min(_STATIC_STEP, max_rows), max_rows + 1, _STATIC_STEP)
    points = evaluate_static(pipeline, lengths, conditions, batches, lengths.most_decode, padding=padding)
    kept_s = float(np.percentile(points.latency_s, BOUND_PERCENTILE)) * (1 + profile.spread)
    third_digit = 10.0 ** (math.floor(math.log10(kept_s)) - 2)
    return float(f"{math.ceil(kept_s / third_digit) * third_digit:.3g}")
