"""A few seconds of measuring, to choose the control variables that nobody gave.

Times one decode iteration of all rows and encode calls of a few sizes on the real programs, then takes the B_E and N_D
with the highest steady throughput for answers of an assumed length. The planner does this with real length
distributions and a bound; this is the default where no plan is given.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np

from exegpt_jax.engine.api import EncodeCall, EncodeRow, Sampling
from exegpt_jax.engine.engine import Engine
from exegpt_jax.sharding.stage import Stage
from solver.plan.buckets import Buckets
from solver.plan.plan import Plan
from solver.plan.schedule import Policy, Schedule

# Encode calls that are timed; sizes between are interpolated.
ENCODE_ROWS = (1, 4, 16)
PROMPT_TOKENS = 64
OUTPUT_TOKENS = 64
DECODE_CHOICES = (1, 2, 4, 8, 16, 32, 64)
_DECODE_ITERATIONS = 8
_REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was timed.

    Attributes:
      iteration_s: one decode iteration of `rows` rows.
      dispatch_s: what a decode call costs beside its iterations.
      encode_s: one encode call of so many rows.
      rows: rows of the decode iteration.
      prompt_tokens: tokens of each encoded prompt.
    """

    iteration_s: float
    dispatch_s: float
    encode_s: Mapping[int, float]
    rows: int
    prompt_tokens: int


@dataclasses.dataclass(frozen=True)
class Choice:
    """B_E and N_D, and what they promise for the assumed output length."""

    encode_batch: int
    decode_iterations: int
    requests_per_s: float
    output_tokens: int


def measure(stage: Stage, plan: Plan, progress: Callable[[str, int, int], None]) -> Measured:
    """Times the real programs on an engine of their own; takes seconds, most of them to compile."""
    probe = _probe(plan)
    engine = Engine(stage, probe)
    engine.warm_up(progress, kinds=("alloc", "encode", "insert", "decode"))
    tokens = probe.buckets.encode_tokens[-1]
    encode_s = {rows: _encode_s(engine, rows, tokens) for rows in probe.buckets.encode_rows}
    short_s, long_s = _decode_s(engine, 1), _decode_s(engine, _DECODE_ITERATIONS)
    iteration_s = max((long_s - short_s) / (_DECODE_ITERATIONS - 1), 1e-6)
    dispatch_s = max(short_s - iteration_s, 0.0)
    return Measured(iteration_s, dispatch_s, encode_s, probe.schedule.max_rows, tokens)


def choose(measured: Measured, policy: Policy, cache_tokens: int) -> Choice:
    """The best B_E and N_D for answers of an assumed length (64 tokens, or a quarter of a row).

    With N iterations a phase a request lives K periods of N iterations, (N - 1)/2 of them lost on average behind its
    end; B_E = B_D / K holds the decode batch at B_D (Little's law), and throughput is B_E per period.
    """
    output = max(1, min(OUTPUT_TOKENS, cache_tokens // 4))
    if policy == "static":
        return Choice(measured.rows, min(32, output), 0.0, output)
    best: Choice | None = None
    for iterations in DECODE_CHOICES if policy == "rra" else (1,):
        periods = max(1.0, (output + (iterations - 1) / 2) / iterations)
        batch = max(1, min(measured.rows, round(measured.rows / periods)))
        encode_s = float(np.interp(batch, list(measured.encode_s), list(measured.encode_s.values())))
        largest = max(measured.encode_s)
        if batch > largest:
            encode_s = measured.encode_s[largest] * batch / largest
        period_s = encode_s + measured.dispatch_s + iterations * measured.iteration_s
        choice = Choice(batch, iterations, min(batch, measured.rows / periods) / period_s, output)
        if best is None or choice.requests_per_s > best.requests_per_s:
            best = choice
    assert best is not None
    return best


def _probe(plan: Plan) -> Plan:
    """The plan with few programs: one prompt length, one decode shape."""
    rows = plan.schedule.max_rows
    encode_rows = tuple(size for size in ENCODE_ROWS if size <= rows)
    # Short enough that no row reaches its end while it is timed.
    room = plan.cache_tokens - (_REPEATS + 1) * _DECODE_ITERATIONS - 1
    tokens = max(1, min(PROMPT_TOKENS, plan.max_prompt_tokens, room))
    schedule: Schedule = dataclasses.replace(
        plan.schedule,
        policy="rra",
        token_budget=0,
        encode_batch=encode_rows[-1],
        encode_micro_batch=encode_rows[-1],
        decode_iterations=_DECODE_ITERATIONS,
    )
    buckets = Buckets(encode_rows, (tokens,), (rows,), (plan.cache_tokens,))
    # Longer prompts than the probe's would need programs for chunks.
    return dataclasses.replace(plan, schedule=schedule, buckets=buckets, max_prompt_tokens=tokens)


def _call(engine: Engine, rows: int, tokens: int) -> EncodeCall:
    sampling = Sampling(max_tokens=engine.plan.cache_tokens)
    prompt = tuple(index % engine.stage.spec.vocab_size for index in range(tokens))
    return EncodeCall(tuple(EncodeRow(row, prompt, 0, row, sampling) for row in range(rows)), rows, tokens)


def _encode_s(engine: Engine, rows: int, tokens: int) -> float:
    call = _call(engine, rows, tokens)
    return _median_s(lambda: np.asarray(engine.encode(call)[1].tokens))


def _decode_s(engine: Engine, iterations: int) -> float:
    """A decode call with every row alive."""
    rows, tokens = engine.plan.schedule.max_rows, engine.plan.buckets.encode_tokens[-1]
    state = engine.initial_state()
    largest = engine.plan.buckets.encode_rows[-1]
    for first in range(0, rows, largest):
        payload, _ = engine.encode(_call(engine, largest, tokens))
        slots = [slot if slot < rows else rows for slot in range(first, first + largest)]
        state = engine.insert(state, payload, slots, tokens)

    def run() -> None:
        nonlocal state
        state, block = engine.decode(state, iterations, rows, engine.plan.cache_tokens)
        np.asarray(block.tokens)

    return _median_s(run)


def _median_s(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(_REPEATS):
        began_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - began_s)
    return statistics.median(times)
