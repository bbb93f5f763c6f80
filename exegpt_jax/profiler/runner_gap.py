"""What a phase costs on the host while the device waits: the Runner's own work between two phases.

Between the last token of a phase and the dispatch of the next the Runner hands tokens over, frees rows and forms a
command. On a small model that is a good part of a phase. It is timed with the real Runner on the real engine, a few
dozen short phases under full load.
"""

from __future__ import annotations

import itertools
import statistics

from exegpt_jax.engine.api import Sampling
from exegpt_jax.engine.engine import Engine
from exegpt_jax.engine.executor import LocalExecutor
from exegpt_jax.profiler.grid import Limits
from exegpt_jax.runner.loop import Runner
from exegpt_jax.runner.request import Request
from exegpt_jax.sharding.stage import Stage
from solver.plan.buckets import Buckets
from solver.plan.plan import Plan
from solver.plan.schedule import Schedule

_PHASES = 40
_WARM_PHASES = 8
_ITERATIONS = 4
_MOST_ROWS = 16
_PROMPT_TOKENS = 8


def runner_gap_s(stage: Stage, limits: Limits, cache_dtype: str) -> float:
    """Median seconds from the end of a phase to the dispatch of the next, of a batch of medium size."""
    rows = max(1, min(_MOST_ROWS, limits.max_rows))
    prompt = max(1, min(_PROMPT_TOKENS, limits.max_prompt_tokens, limits.cache_tokens - 1))
    answer = min(2 * _ITERATIONS + 1, limits.cache_tokens - prompt)
    encode = max(1, rows // 2)
    schedule = Schedule("rra", encode, _ITERATIONS, rows, rows, (stage.stage,), rows, encode)
    length = prompt + answer
    plan = Plan(
        model="profile",
        dtype=stage.dtype,
        cache_dtype=cache_dtype,
        cache_tokens=length,
        max_prompt_tokens=prompt,
        schedule=schedule,
        buckets=Buckets((encode,), (prompt,), (rows,), (length,)),
        first_token=stage.spec.first_token,
    )
    engine = Engine(stage, plan)
    engine.warm_up(kinds=("alloc", "encode", "insert", "decode", "release", "move"))
    runner = Runner(plan, LocalExecutor(engine), lambda events: None)
    vocab = stage.spec.vocab_size
    for number in range((_PHASES + 2) * rows):
        tokens = tuple((number + place) % vocab for place in range(prompt))
        runner.submit(Request(str(number), tokens, Sampling(max_tokens=answer)))
    for _ in range(_PHASES):
        runner.run_phase()
    entries = [entry for entry in runner.timeline if entry.phase >= _WARM_PHASES]
    gaps = [
        after.dispatched_s - before.ready_s
        for before, after in itertools.pairwise(entries)
        if after.phase != before.phase
    ]
    return max(0.0, statistics.median(gaps)) if gaps else 0.0
