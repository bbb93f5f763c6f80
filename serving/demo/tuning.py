"""The demo's few seconds of measuring: each schedule gets the best of its own settings, on the engine that will serve.

Both may use every row of the same cache. The sweep's requests are drawn like the load's, but they are other numbers.
"""

from __future__ import annotations

import dataclasses
import random
import time

from exegpt_jax.engine.api import Executor
from exegpt_jax.session import Completion, Session, complete_in_order
from exegpt_jax.testing import numbers_task as task
from exegpt_jax.text.prompts import ModelText
from serving.demo.messages import Trial
from solver.plan.plan import Plan

MIN_DIGITS = 3
MAX_TOKENS = 20
"""Of an answer; right ones take 15 at most, end of sequence included."""


def candidates(max_rows: int) -> list[Trial]:
    """Settings to try: RRA's encode batch and frequency, static's batch and how often it looks for the end."""
    rra = [Trial("rra", max(1, max_rows // share), i, 0.0) for share, i in ((4, 4), (4, 5), (4, 6), (2, 6))]
    static = [Trial("static", batch, i, 0.0) for batch in (max_rows // 2, max_rows) for i in (4, 8)]
    return [*rra, *static]


def plan_for(plan: Plan, trial: Trial) -> Plan:
    """The same engine's plan under other control variables."""
    schedule = dataclasses.replace(
        plan.schedule,
        policy=trial.policy,
        encode_batch=trial.encode_batch,
        encode_micro_batch=trial.encode_batch,
        decode_iterations=trial.decode_iterations,
        decode_batch=plan.schedule.max_rows if trial.policy == "rra" else trial.encode_batch,
    )
    return dataclasses.replace(plan, schedule=schedule)


def measure(plan: Plan, executor: Executor, text: ModelText, trial: Trial, requests: int, in_flight: int) -> Trial:
    """The trial with the requests per second that it reaches in this process, without the wire.

    Raises ValueError if a request fails.
    """
    rng = random.Random(0)
    numbers = [task.draw(rng, MIN_DIGITS, task.MAX_DIGITS, unseen=False) for _ in range(requests)]
    asked = [(n, text.prepare({"prompt": task.prompt(n), "max_tokens": MAX_TOKENS})) for n in numbers]
    with Session(plan_for(plan, trial), executor, text) as session:
        started_s = time.monotonic()
        for number, outcome in complete_in_order(session, asked, window=in_flight):
            if not isinstance(outcome, Completion):
                raise ValueError(f"model: no answer to {task.prompt(number)!r} while measuring: {outcome.error}")
        took_s = time.monotonic() - started_s
    executor.reset()
    return dataclasses.replace(trial, requests_per_s=requests / took_s)


def best(trials: list[Trial], policy: str) -> Trial:
    return max((trial for trial in trials if trial.policy == policy), key=lambda trial: trial.requests_per_s)
