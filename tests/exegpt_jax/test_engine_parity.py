"""The whole engine under the Runner gives transformers' tokens: compiled programs, cache, buckets, phases and all."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import pytest

from exegpt_jax.engine.api import Sampling
from exegpt_jax.engine.engine import Engine
from exegpt_jax.engine.executor import LocalExecutor
from exegpt_jax.runner.events import Event, Tokens
from exegpt_jax.runner.loop import Runner
from exegpt_jax.runner.request import Request
from solver.plan.buckets import Buckets
from solver.plan.plan import Plan
from solver.plan.schedule import Schedule
from tests.exegpt_jax.parity import TIE, load, read_case

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.name for path in GOLDEN.iterdir())
# One case a family in the quick run, on a degree of its own.
QUICK = {
    ("gpt2", 2),
    ("opt", 1),
    ("llama-gqa-tied-llama3", 8),
    ("mistral-window", 1),
    ("qwen2-window-mixed", 4),
    ("qwen3", 2),
    ("t5", 4),
}


@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
@pytest.mark.parametrize("name", CASES)
def test_tokens_of_transformers(name: str, tensor: int, full: bool) -> None:
    if not full and (name, tensor) not in QUICK:
        pytest.skip("one case a family; all of them on 1, 2, 4 and 8 devices in make test-full")
    case = read_case(GOLDEN / name)
    golden = case.golden
    requests, steps = golden["tokens"].shape
    longest = int(golden["lengths"].max())
    stage = load(case, tensor)
    # Fewer rows than requests, and an odd phase length: requests join and leave while others decode.
    rows = max(1, requests - 1)
    schedule = Schedule("rra", rows, 5, rows, rows, (stage.stage,), rows, rows)
    buckets = Buckets((rows,), (longest,), (rows,), (longest + steps,))
    first_token = case.spec.first_token
    engine = Engine(stage, Plan(name, "float32", "float32", longest + steps, longest, schedule, buckets, first_token))
    engine.warm_up(kinds=("alloc", "encode", "insert", "decode", "release"))
    got: dict[str, list[int]] = collections.defaultdict(list)

    def hear(events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Tokens):
                got[event.id] += event.token_ids

    runner = Runner(engine.plan, LocalExecutor(engine), hear)
    for row in range(requests):
        prompt = tuple(int(token) for token in golden["prompts"][row, : golden["lengths"][row]])
        runner.submit(Request(str(row), prompt, Sampling(max_tokens=steps)))
    while runner.run_phase():
        pass
    assert runner.stats().failed_phases == 0
    for row in range(requests):
        close = np.flatnonzero(golden["margins"][row] < TIE)
        end = int(close[0]) if len(close) else steps
        assert end > 0
        assert got[str(row)][:end] == golden["tokens"][row, :end].tolist()
        assert len(got[str(row)]) == steps
