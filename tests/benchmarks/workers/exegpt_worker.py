"""Contestant: this project: the Runner on the real engine, or (--bare) its programs in a loop without a Runner."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent.parent
sys.path.insert(0, str(ROOT))

import flax  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402

from exegpt_jax.engine.api import EncodeCall, EncodeRow, Sampling  # noqa: E402
from exegpt_jax.engine.compiling import forbid_compilations, keep_on_disk  # noqa: E402
from exegpt_jax.engine.engine import Engine  # noqa: E402
from exegpt_jax.engine.executor import LocalExecutor  # noqa: E402
from exegpt_jax.runner.events import Event, Finished, Tokens  # noqa: E402
from exegpt_jax.runner.loop import Runner  # noqa: E402
from exegpt_jax.runner.request import Request  # noqa: E402
from exegpt_jax.sharding.stage import Stage  # noqa: E402
from exegpt_jax.testing.hidden_lengths import HiddenLengths  # noqa: E402
from exegpt_jax.weights.loading import load_stage  # noqa: E402
from solver.facts.model_config import read_model_spec  # noqa: E402
from solver.plan.buckets import Buckets, ladder  # noqa: E402
from solver.plan.plan import Plan, make_plan  # noqa: E402
from solver.plan.schedule import Policy, Schedule, StageSpec  # noqa: E402


def plan_for(case: dict, stage: Stage, policy: Policy, cache_dtype: str) -> Plan:
    """Fixed batches: all rows at once, 32 iterations a phase. Mixed: B_E and N_D from a sweep (see README)."""
    prompt = max(map(len, case["prompts"]))
    rows = case["batch"]
    mixed = len(case["prompts"]) > rows
    length = prompt + case["max_tokens"]
    encode = rows if not mixed or policy == "static" else max(1, rows // 4)
    iterations = 16 if mixed and policy == "rra" else 32
    schedule = Schedule(policy, encode, iterations, rows, rows, (stage.stage,), rows, encode)
    plan = make_plan(
        stage.spec,
        schedule,
        model="benchmark",
        dtype=stage.dtype,
        cache_dtype=cache_dtype,
        cache_tokens=length,
        max_prompt_tokens=prompt,
    )
    if mixed:
        return plan
    return dataclasses.replace(plan, buckets=Buckets((rows,), (prompt,), (rows,), ladder(128, length)))


def run_with_runner(executor: LocalExecutor, plan: Plan, case: dict) -> dict:
    requests = [
        Request(str(number), tuple(prompt), Sampling(max_tokens=case["max_tokens"]))
        for number, prompt in enumerate(case["prompts"])
    ]
    # Encode rows carry the Runner's own number of a request, which counts submissions.
    hidden = HiddenLengths(executor, lambda row: case["output_tokens"][row.request])
    left, produced, done = len(requests), 0, threading.Event()

    def hear(events: list[Event]) -> None:
        nonlocal left, produced
        for event in events:
            if isinstance(event, Tokens):
                produced += len(event.token_ids)
            elif isinstance(event, Finished):
                left -= 1
        if left == 0:
            done.set()

    runner = Runner(plan, hidden, hear)
    for request in requests:
        runner.submit(request)
    runner.start()  # collects garbage before the first phase
    began = time.perf_counter()
    done.wait()
    seconds = time.perf_counter() - began
    runner.stop()
    return {"seconds": seconds, "new_tokens": produced}


def run_bare(engine: Engine, case: dict) -> dict:
    """One encode, one insert, then decode calls over the same buckets, with one read at the end."""
    rows, tokens = len(case["prompts"]), len(case["prompts"][0])
    left = case["max_tokens"]
    began = time.perf_counter()
    sampling = Sampling(max_tokens=left)
    encode_rows = tuple(EncodeRow(i, tuple(p), 0, i, sampling) for i, p in enumerate(case["prompts"]))
    state = engine.initial_state()
    payload, first = engine.encode(EncodeCall(encode_rows, rows, tokens))
    state = engine.insert(state, payload, range(rows), tokens)
    blocks = []
    left -= 1
    reach = tokens
    while left:
        now = min(left, engine.plan.schedule.decode_iterations)
        reach += now
        bucket = next(size for size in engine.plan.buckets.cache_tokens if size >= reach)
        state, block = engine.decode(state, now, rows, bucket)
        blocks.append(block)
        left -= now
    produced = rows + sum(int(np.asarray(block.counts).sum()) for block in blocks)
    np.asarray(first.tokens)
    return {"seconds": time.perf_counter() - began, "new_tokens": produced}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--cache_dtype", default="float32")
    parser.add_argument("--policy", default="rra")
    parser.add_argument("--bare", action="store_true")
    flags = parser.parse_args()
    keep_on_disk(ROOT / ".cache" / "programs")
    directory = pathlib.Path(flags.model)
    spec = read_model_spec(directory)
    stage = load_stage(directory, spec, StageSpec("both", (0, spec.num_layers), (0,), 1), flags.dtype)
    versions = {"jax": jax.__version__, "flax": flax.__version__, "python": sys.version.split()[0]}
    print(json.dumps({"ready": versions}), flush=True)
    warm: dict[str, LocalExecutor] = {}
    for line in sys.stdin:
        case = json.loads(line)
        plan = plan_for(case, stage, flags.policy, flags.cache_dtype)
        if case["name"] not in warm:
            engine = Engine(stage, plan)
            engine.warm_up()
            warm = {case["name"]: LocalExecutor(engine)}
        executor = warm[case["name"]]
        with forbid_compilations():
            result = run_bare(executor.engine, case) if flags.bare else run_with_runner(executor, plan, case)
        executor.reset()
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
