"""What the demo's plan is held against: static batching, iteration-level batching and chunked prefill, each tuned.

`configs/demo/baselines.json` holds the best setting of each that kept the demo's bound, measured on the embedded model
by `tests/benchmarks/demo_sweep.py`. Rows are shares of the demo's rows, so that the settings suit any number of them.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from solver.facts.model_spec import ModelSpec
from solver.facts.presets import CONFIGS
from solver.facts.workload import Workload
from solver.plan.plan import Plan, encode_call_rows, make_plan
from solver.plan.schedule import Policy, Schedule, StageSpec

BASELINES: tuple[Policy, ...] = ("static", "iteration", "chunked")
SETTINGS = CONFIGS / "demo" / "baselines.json"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of a baseline.

    Attributes:
      policy: which.
      rows: share of the rows that all may use; static: its batch.
      encode_rows: share of them in one encode call.
      decode_iterations: of a phase.
      token_budget: chunked: tokens of one iteration for each row allocated; else 0.
    """

    policy: Policy
    rows: float
    encode_rows: float
    decode_iterations: int
    token_budget: float = 0.0


def read_settings(path: Path = SETTINGS) -> dict[str, Setting]:
    """The chosen setting of each baseline. Raises ValueError where the file lacks one."""
    chosen = json.loads(path.read_text(encoding="utf-8"))["chosen"]
    found = {fields["policy"]: Setting(**fields) for fields in chosen}
    missing = [policy for policy in BASELINES if policy not in found]
    if missing:
        raise ValueError(f"{path}: chosen: no setting of {missing[0]}; run tests/benchmarks/demo_sweep.py")
    return found


def baseline_plan(setting: Setting, spec: ModelSpec, asked: Workload, max_rows: int) -> Plan:
    """The setting as a plan for one CPU device."""
    rows = max(1, min(max_rows, round(setting.rows * max_rows)))
    batch = max(1, min(rows, round(setting.encode_rows * max_rows)))
    schedule = Schedule(
        policy=setting.policy,
        encode_batch=batch,
        decode_iterations=setting.decode_iterations,
        decode_batch=rows,
        max_rows=rows,
        stages=(StageSpec("both", (0, spec.num_layers), (0,), 1),),
        micro_batch=rows,
        encode_micro_batch=encode_call_rows(batch, asked.most_input),
        token_budget=max(1, round(setting.token_budget * rows)) if setting.policy == "chunked" else 0,
    )
    return make_plan(
        spec,
        schedule,
        model=f"numbers, {setting.policy}",
        dtype="float32",
        cache_dtype="float32",
        cache_tokens=asked.most_tokens,
        max_prompt_tokens=asked.most_input,
    )
