"""A real vLLM run replayed by the event simulation (goal A5): Llama-3.1-8B on one RTX 4090, 300 recorded requests.

    python -m tests.benchmarks.vllm_replay --output=tests/benchmarks/results/vllm_replay

Trace, settings and operator times are LLMServingSim's (see ../shared/data/llmservingsim); nothing is fitted to the
run. What the simulation takes from the run's own settings: 2,587 pages of 16 tokens (2,588 less vLLM's null block),
256 rows, 2,048 tokens an iteration, the sizes that CUDA graphs were captured for, prefix caching. Two more columns
show what the last two are worth. Not modelled: the first iteration's warm-up (0.5 s in the run), the host's work
between iterations (vLLM schedules ahead of the device), operators that torch.compile fuses, though the tables were
measured without.
"""

from __future__ import annotations

import argparse
import gzip
import json
import pathlib

import numpy as np

from solver.facts.workload import Floats
from solver.plan.schedule import Schedule, StageSpec
from solver.plan.timeline import Timeline
from solver.simulate.events.arrivals import Demand
from solver.simulate.events.chunked import ChunkedLoop
from solver.simulate.events.outcome import Outcome
from solver.simulate.events.queue import Room
from tests.benchmarks import vllm_tables
from tests.benchmarks.provenance import provenance

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DATA = ROOT.parent / "shared" / "data" / "llmservingsim"
RUN = "bench/examples/RTX4090/Llama-3.1-8B/vllm"
TABLES = "profiler/perf/RTX4090/meta-llama/Llama-3.1-8B/bf16/tp1"
# Percent of error allowed, and what LLMServingSim's own simulator reached.
GOALS = {"tpot_mean": (1.0, 0.2), "latency_p99": (2.0, 0.4), "ttft_mean": (5.0, 0.6)}


class RecordedRun:
    """Requests and settings of the run.

    Attributes:
      demand: lengths and recorded arrivals (when a request entered vLLM's queue).
      first_s, last_s: float64 [requests]: first and last token, from the request's arrival.
      graph_sizes: token counts with a captured graph.
      page_tokens, pages, rows, budget: limits of the engine.
    """

    def __init__(self, data: pathlib.Path = DATA) -> None:
        with gzip.open(data / RUN / "requests.jsonl.gz", "rt", encoding="utf-8") as file:
            requests = [json.loads(line) for line in file]
        meta = json.loads((data / RUN / "meta.json").read_text())

        def column(name: str) -> np.ndarray:
            return np.array([request[name] for request in requests])

        queued_s = column("queued_ts")
        self.demand = Demand(column("input_toks"), column("output_toks"), queued_s - queued_s[0])
        self.first_s, self.last_s = column("first_token_ts") - queued_s, column("last_token_ts") - queued_s
        self.graph_sizes = tuple(meta["resolved_config"]["compilation_config"]["cudagraph_capture_sizes"])
        self.page_tokens, self.pages = meta["kv_cache"]["block_size"], meta["kv_cache"]["num_gpu_blocks"] - 1
        self.rows, self.budget = meta["engine_kwargs"]["max_num_seqs"], meta["engine_kwargs"]["max_num_batched_tokens"]

    def replay(self, data: pathlib.Path = DATA, *, graphs: bool = True, reuse: bool = True) -> Outcome:
        """The same requests through the event simulation."""
        stage = StageSpec("both", (0, vllm_tables.LAYERS), (0,), 1)
        schedule = Schedule("chunked", 1, 1, self.rows, self.rows, (stage,), self.rows, 1, self.budget)
        costs = vllm_tables.read(data / TABLES, self.graph_sizes if graphs else ())
        room = Room(self.rows, self.pages * self.page_tokens, self.page_tokens, reuse)
        return ChunkedLoop(schedule, costs, self.demand, room, Timeline()).run()


def statistics_of(first_s: Floats, last_s: Floats, output_tokens: np.ndarray) -> dict[str, float]:
    """Mean, median, 90th and 99th percentile of the three times, in seconds."""
    per_token_s = (last_s - first_s) / (output_tokens - 1)
    found = {}
    for name, values in (("ttft", first_s), ("tpot", per_token_s), ("latency", last_s)):
        found[f"{name}_mean"] = float(values.mean())
        for percent in (50, 90, 99):
            found[f"{name}_p{percent}"] = float(np.percentile(values, percent))
    return found


def compare(run: RecordedRun, outcome: Outcome) -> dict[str, dict[str, float]]:
    """Measured and simulated statistics, and the error of the latter in percent."""
    arrival_s = outcome.encode_start_s * 0 if outcome.arrival_s is None else outcome.arrival_s
    measured = statistics_of(run.first_s, run.last_s, run.demand.output_tokens)
    simulated = statistics_of(
        outcome.first_token_s - arrival_s, outcome.last_token_s - arrival_s, run.demand.output_tokens
    )
    return {
        name: {
            "measured_s": value,
            "simulated_s": simulated[name],
            "error_percent": 100 * (simulated[name] / value - 1),
        }
        for name, value in measured.items()
    }


def table(results: dict[str, object], variants: dict[str, dict[str, dict[str, float]]]) -> str:
    """The results as Markdown."""
    lines = [
        "# A real vLLM run, replayed",
        "",
        f"`{results['command']}`, {results['date']}, {results['cpu']}. {__doc__.splitlines()[0]}",
        "",
        "| | measured | simulated | error | without captured sizes | without prefix caching | goal | theirs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in variants["as the run was set"].items():
        others = [f"{variants[key][name]['error_percent']:+.2f}%" for key in list(variants)[1:]]
        goal = GOALS.get(name)
        goals = [f"{goal[0]:g}%", f"{goal[1]:g}%"] if goal else ["", ""]
        cells = [name, f"{row['measured_s']:.4f} s", f"{row['simulated_s']:.4f} s", f"{row['error_percent']:+.2f}%"]
        lines.append("| " + " | ".join([*cells, *others, *goals]) + " |")
    lines += ["", __doc__.split("\n\n")[-1].strip(), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="", help="results files' stem (.json and .md); printed if absent")
    options = parser.parse_args()
    run = RecordedRun()
    outcomes = {
        "as the run was set": run.replay(),
        "without captured sizes": run.replay(graphs=False),
        "without prefix caching": run.replay(reuse=False),
    }
    variants = {name: compare(run, outcome) for name, outcome in outcomes.items()}
    command = f"python -m tests.benchmarks.vllm_replay --output={options.output}"
    results: dict[str, object] = {**provenance(command, None), "variants": variants}
    results["thrown_out"] = {name: outcome.preemptions for name, outcome in outcomes.items()}
    text = table(results, variants)
    print(text)
    if options.output:
        path = pathlib.Path(options.output)
        path.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
        path.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
