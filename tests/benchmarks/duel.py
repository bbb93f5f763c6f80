"""Our engine beside transformers and CTranslate2: the same weights, prompts and lengths, in turn, in one run.

    python tests/benchmarks/duel.py --output=tests/benchmarks/results/duel_88m.json

Every contestant is a worker process that stays loaded and runs the cases it is sent, one contestant at a time. Of an
engine's variants (its dtypes, our two Pythons) one run each decides which of them enters the counted rounds.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import json
import pathlib
import statistics
import subprocess
import sys
import time

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT)]

import cases  # noqa: E402
import model88m  # noqa: E402

from solver.facts.hardware import cpu_model  # noqa: E402

CONTROL_TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way of running a case.

    Attributes:
      engine: contestants of the same engine are its variants; the fastest stands for it.
      only: a case prefix: the contestant runs these cases alone.
    """

    engine: str
    name: str
    python: str
    worker: str
    arguments: tuple[str, ...]
    only: str = ""


def contestants(flags: argparse.Namespace) -> list[Contestant]:
    ours, newer, reference = flags.python, flags.newer_python, flags.reference_python
    float32, bfloat16, bare = "--dtype=float32", "--dtype=bfloat16", "--bare"
    rows = [
        Contestant("ours", "ours float32 (3.11)", ours, "exegpt_worker.py", (float32,)),
        Contestant("ours", "ours float32 (3.12)", newer, "exegpt_worker.py", (float32,)),
        Contestant("ours", "ours bfloat16 (3.12)", newer, "exegpt_worker.py", (bfloat16,)),
        Contestant("bare", "bare loop float32 (3.11)", ours, "exegpt_worker.py", (float32, bare), "batch-"),
        Contestant("bare", "bare loop float32 (3.12)", newer, "exegpt_worker.py", (float32, bare), "batch-"),
        Contestant("bare", "bare loop bfloat16 (3.12)", newer, "exegpt_worker.py", (bfloat16, bare), "batch-"),
        Contestant(
            "static", "ours static float32 (3.11)", ours, "exegpt_worker.py", (float32, "--policy=static"), "mixed-"
        ),
        Contestant("transformers f32", "transformers float32", reference, "transformers_worker.py", (float32,)),
        Contestant("transformers bf16", "transformers bfloat16", reference, "transformers_worker.py", (bfloat16,)),
        Contestant("ctranslate2", "ctranslate2 float32", reference, "ctranslate2_worker.py", (float32,)),
        Contestant("ctranslate2", "ctranslate2 int8", reference, "ctranslate2_worker.py", ("--dtype=int8",)),
    ]
    wanted = flags.contestants.split(",") if flags.contestants else None
    return [row for row in rows if wanted is None or any(part in row.name for part in wanted)]


class Worker:
    """One contestant's process; `run` sends a case and waits for its time."""

    def __init__(self, contestant: Contestant, model: pathlib.Path) -> None:
        self.contestant = contestant
        command = [
            contestant.python,
            str(HERE / "workers" / contestant.worker),
            f"--model={model}",
            *contestant.arguments,
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.versions = self._answer()["ready"]

    def run(self, case: cases.Case) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(dataclasses.asdict(case)) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        if answer["new_tokens"] != case.new_tokens:
            raise RuntimeError(f"{self.contestant.name}: {answer['new_tokens']} tokens, expected {case.new_tokens}")
        return answer["seconds"]

    def _answer(self) -> dict:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.contestant.name}: the worker ended with status {self.process.wait()}")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def control_s() -> float:
    """A fixed piece of work; its time tells whether the machine itself changed speed."""
    matrix = np.ones((512, 512), np.float32)
    began = time.perf_counter()
    for _ in range(40):
        matrix = matrix @ matrix * 1e-3
    return time.perf_counter() - began


def warm_up(worker: Worker, case: cases.Case) -> None:
    """A run that compiles and allocates; engines that compile nothing do with the first batch of a long case."""
    if worker.contestant.worker != "exegpt_worker.py":
        case = dataclasses.replace(
            case, prompts=case.prompts[: case.batch], output_tokens=case.output_tokens[: case.batch]
        )
    worker.run(case)


def qualify(workers: list[Worker], case: cases.Case) -> tuple[list[Worker], dict[str, float]]:
    """The fastest variant of each engine, in the given order, and what those took of which there are several."""
    taken: dict[str, float] = {}
    engines = collections.Counter(worker.contestant.engine for worker in workers)
    for worker in workers:
        warm_up(worker, case)
        if engines[worker.contestant.engine] > 1:
            taken[worker.contestant.name] = worker.run(case)
    best: dict[str, Worker] = {}
    for worker in sorted(workers, key=lambda w: taken.get(w.contestant.name, 0.0)):
        best.setdefault(worker.contestant.engine, worker)
    # The bare loop is held against our engine in the same dtype and Python.
    if "bare" in best and "ours" in best:
        like = best["ours"].contestant.name.removeprefix("ours ")
        best["bare"] = next((w for w in workers if w.contestant.name == f"bare loop {like}"), best["bare"])
    return [w for w in workers if w in best.values()], taken


def measure(workers: list[Worker], case: cases.Case, rounds: int, repeats: int) -> dict:
    """A qualifying run, then interleaved rounds; returns per contestant the seconds of each round."""
    entrants, qualifying = qualify([w for w in workers if case.name.startswith(w.contestant.only)], case)
    seconds: dict[str, list[float]] = {w.contestant.name: [] for w in entrants}
    control: list[float] = []
    noisy = 0
    usual = statistics.median(control_s() for _ in range(5))
    for number in range(rounds):
        for attempt in range(repeats + 1):
            controls, times = [], []
            for worker in entrants:
                controls.append(control_s())
                times.append(worker.run(case))
            steady = all(abs(value / usual - 1) <= CONTROL_TOLERANCE for value in controls)
            if steady or attempt == repeats:
                break
        noisy += not steady
        control += controls
        for worker, taken in zip(entrants, times, strict=True):
            seconds[worker.contestant.name].append(taken)
        print(
            f"{case.name} round {number + 1}/{rounds}: " + "  ".join(f"{t:.2f}" for t in times),
            file=sys.stderr,
            flush=True,
        )
    return {
        "qualifying_s": qualifying,
        "seconds": seconds,
        "control_s": control,
        "noisy_rounds": noisy,
        "rounds": rounds,
    }


def report(case: cases.Case, measured: dict) -> list[str]:
    lines = [f"## {case.name}: {len(case.prompts)} requests, {case.new_tokens} new tokens", ""]
    lines += ["| contestant | median tokens/s | median seconds | ours / it, median of rounds |", "|---|---|---|---|"]
    median = {name: statistics.median(times) for name, times in measured["seconds"].items()}
    best = next((name for name in median if name.startswith("ours ") and "static" not in name), None)
    for name, value in sorted(median.items(), key=lambda item: item[1]):
        ratio = ""
        if best is not None:
            rounds = zip(measured["seconds"][best], measured["seconds"][name], strict=True)
            ratio = f"{statistics.median(theirs / own for own, theirs in rounds):.2f}"
        lines.append(f"| {name} | {case.new_tokens / value:.0f} | {value:.2f} | {ratio} |")
    left_out = {name: taken for name, taken in measured["qualifying_s"].items() if name not in median}
    lines += ["", f"Noisy rounds: {measured['noisy_rounds']} of {measured['rounds']}."]
    if left_out:
        lines.append(f"Slower in the qualifying run: {', '.join(f'{n} ({t:.2f} s)' for n, t in left_out.items())}.")
    return [*lines, ""]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", default=str(HERE / "results" / "duel_88m.json"), help="results file; a .md lies beside it"
    )
    parser.add_argument("--model", default=str(ROOT / ".cache" / "benchmarks" / "llama-88m"), help="made on first use")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds of each fixed batch")
    parser.add_argument("--mixed_rounds", type=int, default=9, help="interleaved rounds of the mixed load")
    parser.add_argument("--repeats", type=int, default=3, help="how often a round is repeated whose control moved")
    parser.add_argument("--cases", default="1,8,32,mixed", help="batch sizes, and mixed")
    parser.add_argument("--mixed_requests", type=int, default=256)
    parser.add_argument("--mixed_batch", type=int, default=32, help="the static batch of contestants that have one")
    parser.add_argument("--contestants", default="", help="comma-separated parts of names; empty runs all")
    parser.add_argument("--python", default=str(ROOT / ".venv/bin/python"))
    parser.add_argument("--newer_python", default=str(ROOT / ".venv-3.12/bin/python"))
    parser.add_argument("--reference_python", default=str(ROOT / ".venv-reference/bin/python"))
    return parser.parse_args()


def main() -> None:
    flags = parse()
    model = model88m.make(pathlib.Path(flags.model))
    vocab = model88m.CONFIG["vocab_size"]
    todo = [
        cases.mixed(flags.mixed_requests, flags.mixed_batch, vocab)
        if name == "mixed"
        else cases.fixed(int(name), vocab)
        for name in flags.cases.split(",")
    ]
    workers = [Worker(contestant, model) for contestant in contestants(flags)]
    results: dict = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": cpu_model(),
        "cores": 2,
        "seed": 0,
        "versions": {w.contestant.name: w.versions for w in workers},
        "cases": {},
    }
    text = [f"# 88M Llama, {results['date'][:10]}, {results['processor']}", ""]
    output = pathlib.Path(flags.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        for case in todo:
            rounds = flags.mixed_rounds if case.name.startswith("mixed") else flags.rounds
            results["cases"][case.name] = measured = measure(workers, case, rounds, flags.repeats)
            text += report(case, measured)
            output.write_text(json.dumps(results, indent=1) + "\n")
            output.with_suffix(".md").write_text("\n".join(text))
    finally:
        for worker in workers:
            worker.close()
    print("\n".join(text))


if __name__ == "__main__":
    main()
