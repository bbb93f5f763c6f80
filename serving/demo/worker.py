"""The demo's server process: one engine, measured once, then served over gRPC under each schedule it is asked for.

    python -m serving.demo.worker MODEL_DIRECTORY MAX_ROWS

Lines on standard input name the policy to serve next; their end ends the process, so it never outlives the client.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from pathlib import Path
from typing import IO

from exegpt_jax.engine.api import Executor
from exegpt_jax.runner.build import build
from exegpt_jax.runner.loop import Runner
from exegpt_jax.text.prompts import ModelText
from serving.demo.messages import Message, Trial
from serving.demo.tuning import best, candidates, measure, plan_for
from serving.doors import generation, health
from serving.frontend import Frontend
from serving.server import ServerOptions, make_server
from solver.plan.plan import Plan

CACHE_TOKENS = 32
MAX_PROMPT_TOKENS = 11
"""Of both, what the task needs: <s>, nine digits and the arrow; 14 words and the end of sequence."""
TRIAL_WAVES = 4
"""Requests of one trial, in caches full of rows."""
TRIAL_ROUNDS = 2


def main() -> int:
    directory, max_rows = Path(sys.argv[1]), int(sys.argv[2])
    # The messages keep standard output to themselves, whatever a library may print.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        plan, executor, text = _load(directory, max_rows, out)
        chosen = _tune(plan, executor, text, out)
        asyncio.run(_serve(plan, executor, text, chosen, out))
    except (ValueError, OSError) as error:
        Message("failed", str(error)).send(out)
        return 1
    return 0


def _load(directory: Path, max_rows: int, out: IO[str]) -> tuple[Plan, Executor, ModelText]:
    # Static with all rows in one batch asks for every program; RRA runs a part of them.
    built = build(
        directory,
        policy="static",
        encode_batch=max_rows,
        decode_iterations=8,
        decode_batch=max_rows,
        max_rows=max_rows,
        token_budget=None,
        tensor=1,
        dtype=None,
        cache_tokens=CACHE_TOKENS,
        max_prompt_tokens=MAX_PROMPT_TOKENS,
        memory_fraction=0.9,
        progress=lambda line: Message("say", line).send(out),
    )
    text = ModelText.load(
        directory,
        vocab_size=built.spec.vocab_size,
        max_prompt_tokens=built.plan.max_prompt_tokens,
        cache_tokens=built.plan.cache_tokens,
    )
    return built.plan, built.executor, text


def _tune(plan: Plan, executor: Executor, text: ModelText, out: IO[str]) -> dict[str, Trial]:
    rows = plan.schedule.max_rows
    tried = candidates(rows)
    # In turns, the better of each: another program's burst of work must not decide.
    for _ in range(TRIAL_ROUNDS):
        again = [measure(plan, executor, text, trial, TRIAL_WAVES * rows, 2 * rows) for trial in tried]
        tried = [max(pair, key=lambda trial: trial.requests_per_s) for pair in zip(tried, again, strict=True)]
    chosen = {policy: best(tried, policy) for policy in ("rra", "static")}
    Message("tuned", trials=tuple(tried), chosen=tuple(chosen.values())).send(out)
    return chosen


async def _serve(plan: Plan, executor: Executor, text: ModelText, chosen: dict[str, Trial], out: IO[str]) -> None:
    frontend = Frontend(max_requests=1024)
    states = health.Health([generation.SERVICE_NAME])
    server, address = make_server(ServerOptions("127.0.0.1:0"), frontend, states)
    await server.start()
    gc.collect()
    gc.freeze()
    runner: Runner | None = None
    while policy := (await asyncio.to_thread(sys.stdin.readline)).strip():
        if runner is not None:
            runner.stop()
            executor.reset()
        runner = Runner(plan_for(plan, chosen[policy]), executor, frontend.hand_over)
        runner.start()
        frontend.open(text, runner)
        states.set_serving(True)
        Message("serving", address).send(out)
    if runner is not None:
        runner.stop()
    states.close()
    await server.stop(1.0)


if __name__ == "__main__":
    sys.exit(main())
