"""Random plans over 1 to 8 devices, as a planner may make them: stages, degrees, B_E, N_D and B_m drawn freely."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import jax

from exegpt_jax.models.random import random_stage
from exegpt_jax.sharding.stage import Stage
from solver.facts.model_spec import ModelSpec
from solver.plan.buckets import Buckets
from solver.plan.plan import Plan
from solver.plan.schedule import Schedule, StageSpec

CACHE_TOKENS = 48
PROMPT_TOKENS = 16


def stage_specs(cuts: Sequence[tuple[tuple[int, int], int]]) -> tuple[StageSpec, ...]:
    """Stages of (layers, degree) on devices in a row."""
    found, at = [], 0
    for layers, tensor in cuts:
        found.append(StageSpec("both", layers, tuple(range(at, at + tensor)), tensor))
        at += tensor
    return tuple(found)


def random_cuts(rng: random.Random, layers: int) -> list[tuple[tuple[int, int], int]]:
    """Unequal stages of unequal degrees on at most 8 devices."""
    stages = rng.choice([1, *range(2, layers + 1), *range(2, layers + 1)])
    while True:
        inner = sorted(rng.sample(range(1, layers), stages - 1))
        bounds = [0, *inner, layers]
        degrees = [rng.choice([1, 1, 2, 2, 4, 8]) for _ in bounds[1:]]
        if sum(degrees) <= 8:
            return list(zip(itertools.pairwise(bounds), degrees, strict=True))


def plan_over(
    stages: tuple[StageSpec, ...],
    *,
    policy: str = "rra",
    encode_batch: int = 2,
    iterations: int = 4,
    parts: int = 2,
    buckets: Buckets,
    prompt_tokens: int = PROMPT_TOKENS,
) -> Plan:
    """A plan whose decode batch is all its rows, in `parts` micro-batches."""
    rows = buckets.decode_rows[-1]
    schedule = Schedule(
        policy=policy,  # type: ignore[arg-type]
        encode_batch=encode_batch,
        decode_iterations=iterations,
        decode_batch=rows,
        max_rows=rows,
        stages=stages,
        micro_batch=-(-rows // parts),
        encode_micro_batch=buckets.encode_rows[-1],
        token_budget=13 if policy == "chunked" else 0,
    )
    return Plan("test", "float32", "float32", buckets.cache_tokens[-1], prompt_tokens, schedule, buckets)


def random_plans(rng: random.Random, layers: int, count: int) -> list[Plan]:
    """Plans that the programs of the first of them serve: the same stages and B_m, other policies, B_E and N_D.

    Few shapes, so that few programs must be compiled: what rungs do is tested without numerics.
    """
    rows = rng.choice([4, 6, 8])
    decode_rows = rng.choice([(rows,), (rows // 2, rows)])
    stages = stage_specs(random_cuts(rng, layers))
    parts = rng.choice([parts for parts in (1, 2, 3, 4) if rows % parts == 0])
    # Its programs are a superset of all others'.
    policies = rng.choice([("rra", "rra", "static", "iteration"), ("chunked", "rra", "rra", "static")])
    found = []
    for number in range(count):
        policy = policies[0] if number == 0 else rng.choice(policies)
        found.append(
            plan_over(
                stages,
                policy=policy,
                # A static batch is all there is to decode.
                encode_batch=rows if policy == "static" else rng.randint(1, rows // 2),
                iterations=1 if policy in ("iteration", "chunked") else rng.randint(1, 7),
                parts=parts,
                buckets=Buckets((2,), (PROMPT_TOKENS,), decode_rows, (CACHE_TOKENS,)),
            )
        )
    return found


def stages_of(plan: Plan, spec: ModelSpec) -> list[Stage]:
    """The same random weights whatever the stages."""
    return [
        random_stage(
            spec,
            stage.layers,
            stage.tensor,
            seed=3,
            scale=2.0,
            devices=[jax.devices()[number] for number in stage.devices],
        )
        for stage in plan.schedule.stages
    ]
