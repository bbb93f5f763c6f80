"""Writes the workload presets of `configs/workloads` from the paper's Table 3 and the traces in `../shared/data`.

Prints a Markdown line per preset for the README beside them. The same input gives the same bytes.

Usage: python tests/tools/make_workloads.py [--data=../shared/data] [--output=configs/workloads]
"""

from __future__ import annotations

import argparse
import ast
import csv
import gzip
import json
from pathlib import Path

import numpy as np

from solver.facts import workload_file
from solver.facts.histogram import Histogram, bins_of, histogram, margins
from solver.facts.raw_log import read_trace
from solver.facts.truncated_normal import Moments
from solver.facts.workload import Trace, Workload
from solver.facts.workload_file import SCHEMA_VERSION, MomentsForm, PairsForm, TraceForm, WorkloadFile

ROOT = Path(__file__).parents[2]

# Input (mean, deviation, maximum), then output, in tokens.
PAPER_TASKS = {
    "s": ("summarisation", (256, 252, 512), (32, 13, 80)),
    "t": ("translation", (128, 81, 256), (128, 68, 320)),
    "g": ("code generation", (64, 23, 128), (192, 93, 480)),
    "c1": ("conversation, short", (256, 115, 512), (64, 30, 160)),
    "c2": ("conversation, long", (512, 252, 1024), (256, 134, 640)),
}
CLIENTS = (0, 1, 2, 9, 12, 25)
WINDOW_S, STEP_S = 21_600, 600
DEEPSEEK_LENGTHS = 130


def paper(key: str) -> WorkloadFile:
    task, inputs, outputs = PAPER_TASKS[key]
    return WorkloadFile(
        SCHEMA_VERSION,
        f"paper-{key}",
        f"ExeGPT (ASPLOS 2024, arXiv 2404.07947), Table 3, task {key.upper()}, {task}; outputs: moments after"
        " truncation, which gives the table's 99th percentile to the token; inputs: moments of the parent, since after"
        " truncation some of them are impossible; independent of each other, as the paper draws them",
        "figures from a paper published under CC-BY 4.0; Hyungjun Oh et al.",
        moments=MomentsForm(Moments(*inputs, "parent"), Moments(*outputs, "truncated")),
    )


def azure(data: Path) -> WorkloadFile:
    trace, _ = read_trace(
        str(data / "azure" / "AzureLLMInferenceTrace_code.csv"), "ContextTokens", "GeneratedTokens", "TIMESTAMP"
    )
    assert trace.arrival_s is not None
    return WorkloadFile(
        SCHEMA_VERSION,
        "azure-code",
        "AzureLLMInferenceTrace_code.csv, https://github.com/Azure/AzurePublicDataset commit b469a113: a code"
        " assistant, about one hour of 2023-11-16; every request; times from the first request on, rounded to a"
        " millisecond",
        "CC-BY 4.0; AzureLLMInferenceDataset2023, (c) Microsoft; Patel et al., Splitwise, ISCA 2024",
        trace=_trace_form(trace, np.round(trace.arrival_s, 3)),
    )


def _trace_form(trace: Trace, arrival: np.ndarray) -> TraceForm:
    return TraceForm(tuple(trace.input_tokens.tolist()), tuple(trace.output_tokens.tolist()), tuple(arrival.tolist()))


def lengths_only(path: Path, name: str, source: str, licence: str) -> WorkloadFile:
    """Rows of (prefill, decode) tokens as pairs, in order of output length."""
    trace, _ = read_trace(str(path), "num_prefill_tokens", "num_decode_tokens", None)
    order = np.lexsort([trace.input_tokens, trace.output_tokens])
    inputs, outputs = trace.input_tokens[order], trace.output_tokens[order]
    return WorkloadFile(
        SCHEMA_VERSION, name, source, licence, pairs=PairsForm(tuple(inputs.tolist()), tuple(outputs.tolist()))
    )


def sharegpt(data: Path) -> WorkloadFile:
    return lengths_only(
        data / "sharegpt" / "sharegpt_8k_filtered_stats_llama2_tokenizer.csv.gz",
        "sharegpt",
        "sharegpt_8k_filtered_stats_llama2_tokenizer.csv, https://github.com/microsoft/sarathi-serve commit 72339db5:"
        " turns of ShareGPT conversations under the Llama-2 tokenizer, at most 8192 tokens; every row",
        "repository Apache-2.0, (c) Microsoft Corporation; token counts only, the conversations have no stated licence",
    )


def arxiv(data: Path) -> WorkloadFile:
    return lengths_only(
        data / "vidur" / "data" / "processed_traces" / "arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv.gz",
        "arxiv",
        "arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv, https://github.com/microsoft/vidur commit"
        " 7d475133: papers and their abstracts under the Llama-2 tokenizer; every row",
        "MIT, Copyright (c) Microsoft Corporation",
    )


def deepseek(data: Path) -> WorkloadFile:
    """Six clients' histograms per window of six hours, weighted by their requests; independent inside a window."""
    parts = list(_windows(data / "servegen" / "deepseek-r1"))
    pooled = [_pooled([part[side] for part in parts], [part[2] for part in parts]) for side in (0, 1)]
    to_bin = [_binning(lengths) for lengths in pooled]
    weight: dict[tuple[int, int], float] = {}
    for inputs, outputs, requests in parts:
        for i, p in _rebinned(inputs, to_bin[0]).items():
            for s, q in _rebinned(outputs, to_bin[1]).items():
                weight[i, s] = weight.get((i, s), 0.0) + requests * p * q
    pairs = sorted(weight, key=lambda pair: (pair[1], pair[0]))
    source = (
        "deepseek-r1 clients 0, 1, 2, 9, 12 and 25, https://github.com/alibaba/ServeGen commit f891d118: histograms of"
        " six-hour windows of one day, weighted by each window's requests (rate times time), input and output "
        " independent within a window (their joint distribution is not published); reasoning counts as output"
    )
    exact = pooled
    new = [
        _pooled([histogram(np.array([p[k] for p in pairs]), np.array([weight[p] for p in pairs]))], [1.0])
        for k in (0, 1)
    ]
    source += "; lengths binned, which moves " + " and ".join(
        f"the {word} mean by {100 * (n.mean / e.mean - 1):+.2f}% and its 99th by "
        f"{100 * (n.percentile(99) / e.percentile(99) - 1):+.2f}%"
        for word, n, e in zip(("input", "output"), new, exact, strict=True)
    )
    count = tuple(float(f"{weight[pair]:.4g}") for pair in pairs)
    return WorkloadFile(
        SCHEMA_VERSION, "deepseek-r1", source, "Apache-2.0; ServeGen, Alibaba Group",
        pairs=PairsForm(tuple(i for i, _ in pairs), tuple(s for _, s in pairs), count),
    )  # fmt: skip


def _windows(folder: Path) -> list[tuple[Histogram, Histogram, float]]:
    """(input histogram, output histogram, requests) of every window in which a client sent any."""
    found = []
    for client in CLIENTS:
        with gzip.open(folder / f"chunk-{client}-dataset.json.gz", "rt") as stream:
            windows = json.load(stream)
        with gzip.open(folder / f"chunk-{client}-trace.csv.gz", "rt") as stream:
            rates = [(float(row[0]), float(row[1])) for row in csv.reader(stream)]
        for start, window in windows.items():
            requests = STEP_S * sum(rate for at, rate in rates if int(start) <= at < int(start) + WINDOW_S)
            if requests > 0:
                found.append((_counts(window["input_tokens"]), _counts(window["output_tokens"]), requests))
    return found


def _counts(text: str) -> Histogram:
    shares = ast.literal_eval(text)
    return histogram(np.array(list(shares)), np.array(list(shares.values())))


def _pooled(parts: list[Histogram], weights: list[float]) -> Histogram:
    return histogram(
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.share * weight for part, weight in zip(parts, weights, strict=True)]),
    )


def _binning(pooled: Histogram) -> dict[int, int]:
    """From a length to the rounded mean of its bin."""
    bins = bins_of(pooled.lengths, DEEPSEEK_LENGTHS)
    share = np.bincount(bins, weights=pooled.share)
    middle = np.rint(np.bincount(bins, weights=pooled.share * pooled.lengths) / share).astype(int)
    return dict(zip(pooled.lengths.tolist(), middle[bins].tolist(), strict=True))


def _rebinned(given: Histogram, to_bin: dict[int, int]) -> dict[int, float]:
    found: dict[int, float] = {}
    for length, share in zip(given.lengths.tolist(), given.share.tolist(), strict=True):
        found[to_bin[length]] = found.get(to_bin[length], 0.0) + share
    return found


def markdown(workload: Workload) -> str:
    sides = margins(workload)
    figures = [
        f"{side.mean:.1f} | {side.std:.1f} | " + " / ".join(f"{side.percentile(p)}" for p in (50, 90, 99, 100))
        for side in sides
    ]
    return f"| {workload.name} | {' | '.join(figures)} | {workload.correlation:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--output", type=Path, default=ROOT / "configs" / "workloads")
    flags = parser.parse_args()
    files = [*map(paper, PAPER_TASKS), azure(flags.data), sharegpt(flags.data), arxiv(flags.data), deepseek(flags.data)]
    flags.output.mkdir(exist_ok=True)
    for made in files:
        (flags.output / f"{made.name}.json").write_text(workload_file.to_text(made), encoding="utf-8")
        print(markdown(workload_file.workload_of(made)))


if __name__ == "__main__":
    main()
