"""Decode on one accelerator against its memory bandwidth: a Llama of 1.2B parameters in bfloat16, random weights.

    python tests/benchmarks/roofline.py --output=tests/benchmarks/results/roofline.json

A decode iteration has to read every weight once and the keys and values of every row; the roofline is the time that
takes at the bandwidth which a plain copy on the same device reaches. It runs on a CPU too (--small), to be tried.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from exegpt_jax.engine.api import EncodeCall, EncodeRow, Sampling  # noqa: E402
from exegpt_jax.engine.engine import Engine  # noqa: E402
from exegpt_jax.models.random import random_stage  # noqa: E402
from exegpt_jax.sharding.stage import Stage  # noqa: E402
from solver.facts.model_config import parse_config  # noqa: E402
from solver.plan.buckets import Buckets  # noqa: E402
from solver.plan.memory import cache_row_bytes, weight_bytes  # noqa: E402
from solver.plan.plan import Plan  # noqa: E402
from solver.plan.schedule import Schedule  # noqa: E402

# The shapes of Llama 3.2 1B, with a plain rope.
LARGE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
}
SMALL = {**LARGE, "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
PROMPT_TOKENS, NEW_TOKENS, ITERATIONS = 64, 128, 64
CACHE_TOKENS = 256


@dataclasses.dataclass(frozen=True)
class Point:
    """One batch size.

    Attributes:
      batch: rows.
      tokens_per_s: decoded.
      iteration_s: median.
      read_bytes: weights, and keys and values of the mean context.
      roofline_share: the time to read them at the copy's bandwidth, over the measured time.
    """

    batch: int
    tokens_per_s: float
    iteration_s: float
    read_bytes: int
    roofline_share: float


def bandwidth_bytes_per_s(elements: int) -> float:
    """What a copy reaches: bytes read and written, per second."""
    source = jnp.ones(elements, jnp.bfloat16)
    copy = jax.jit(lambda x: x + 1)
    taken_s = _median_s(lambda: copy(source).block_until_ready(), 10)
    return 2 * source.nbytes / taken_s


def decode(stage: Stage, batch: int, rounds: int) -> tuple[float, int]:
    """Median seconds of an iteration, and the mean context it attended to."""
    schedule = Schedule("rra", batch, ITERATIONS, batch, batch, (stage.stage,), batch, batch)
    buckets = Buckets((batch,), (PROMPT_TOKENS,), (batch,), (CACHE_TOKENS,))
    plan = Plan("random", "bfloat16", "bfloat16", CACHE_TOKENS, PROMPT_TOKENS, schedule, buckets)
    engine = Engine(stage, plan)
    engine.warm_up()
    sampling = Sampling(max_tokens=NEW_TOKENS + 1)
    prompt = tuple(range(4, 4 + PROMPT_TOKENS))
    rows = tuple(EncodeRow(row, prompt, 0, row, sampling) for row in range(batch))

    def run() -> float:
        payload, _ = engine.encode(EncodeCall(rows, batch, PROMPT_TOKENS))
        state = engine.insert(engine.initial_state(), payload, range(batch), PROMPT_TOKENS)
        jax.block_until_ready(state)
        began_s = time.perf_counter()
        for _ in range(NEW_TOKENS // ITERATIONS):
            state, block = engine.decode(state, ITERATIONS, batch, CACHE_TOKENS)
        np.asarray(block.tokens)
        return (time.perf_counter() - began_s) / NEW_TOKENS

    run()
    return statistics.median(run() for _ in range(rounds)), PROMPT_TOKENS + NEW_TOKENS // 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="", help="results file; printed only if absent")
    parser.add_argument("--batches", default="1,8,32,128")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the harness")
    flags = parser.parse_args()
    spec = parse_config(SMALL if flags.small else LARGE)
    stage = random_stage(spec, dtype="bfloat16")
    reached = bandwidth_bytes_per_s(2**20 if flags.small else 2**30)
    points = []
    for batch in map(int, flags.batches.split(",")):
        iteration_s, context = decode(stage, batch, flags.rounds)
        cache_bytes = batch * cache_row_bytes(spec, stage.stage, context, "bfloat16")
        read_bytes = weight_bytes(spec, stage.stage, "bfloat16") + cache_bytes
        points.append(Point(batch, batch / iteration_s, iteration_s, read_bytes, read_bytes / reached / iteration_s))
        print(points[-1], flush=True)
    results = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "model": "small" if flags.small else "1.2B",
        "copy_bytes_per_s": reached,
        "points": [dataclasses.asdict(point) for point in points],
    }
    if flags.output:
        pathlib.Path(flags.output).write_text(json.dumps(results, indent=1) + "\n")


def _median_s(work: Callable[[], object], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        began_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - began_s)
    return statistics.median(times)


if __name__ == "__main__":
    main()
